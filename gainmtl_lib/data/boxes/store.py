"""Where the masks of boxes are kept: drawn once, found again by what they hold.

``<store>/<dataset>-<digest>/<the picture's path below the dataset>.png``; the digest is over every picture's path,
size and drawn boxes, so that other labels, or pictures of another size, get another folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import cv2

from gainmtl_lib.data.boxes.raster import PixelBox, draw
from gainmtl_lib.files import atomic_path

logger = logging.getLogger(__name__)

STORE = "box_masks"
"""Name of the folder that holds the stored masks of all datasets."""
DRAWING = 1
"""Number of the drawing rule; another rule draws into another folder."""
LETTERS = 12


@dataclass(frozen=True)
class Drawn:
    """A picture with boxes.

    Attributes:
        image: its path below the dataset's folder.
        size: (H, W) of the picture.
        boxes: at least one.
    """

    image: Path
    size: tuple[int, int]
    boxes: list[PixelBox]


def store_masks(pictures: list[Drawn], *, dataset: str, store: Path) -> list[Path]:
    """The mask file of each picture; files that are there are not drawn again.

    Args:
        pictures: of one dataset.
        dataset: its name.
        store: the folder for the masks of all datasets.

    Raises:
        FileError: the disk is full or the folder cannot be written to.
    """
    folder = store / f"{dataset}-{_digest(pictures)}"
    # After the picture's own suffix: a.jpg and a.bmp are two pictures.
    files = [folder / picture.image.with_name(f"{picture.image.name}.png") for picture in pictures]
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    for number in missing:
        mask = draw(pictures[number].boxes, pictures[number].size)
        encoded = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
        # File by file: what was drawn before an interruption stays, and two processes write the same bytes.
        with atomic_path(files[number]) as path:
            path.write_bytes(encoded)
    if missing:
        logger.info("drew the boxes of %d pictures as masks into %s", len(missing), folder)
    return files


def name_in_store(mask: str | Path) -> Path | None:
    """A stored mask's path below its dataset's folder in the store; None for any other file."""
    parts = Path(mask).parts
    if STORE not in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index(STORE)
    return Path(*parts[last + 2 :]) if len(parts) > last + 2 else None


def _digest(pictures: list[Drawn]) -> str:
    content = sorted(
        (
            picture.image.as_posix(),
            picture.size,
            sorted((box.top, box.left, box.bottom, box.right) for box in picture.boxes),
        )
        for picture in pictures
    )
    return hashlib.sha256(json.dumps([DRAWING, content]).encode()).hexdigest()[:LETTERS]
