"""Small datasets drawn on the spot; no test needs data from elsewhere."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np


def write_picture(path: Path, *, size: tuple[int, int] = (12, 16), value: int | None = None, seed: int = 0) -> Path:
    """A noisy RGB picture, or a plain one of `value`; the format follows the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *path.name.encode()])
    pixels = rng.integers(0, 256, (*size, 3)) if value is None else np.full((*size, 3), value)
    path.write_bytes(cv2.imencode(path.suffix, pixels.astype(np.uint8))[1].tobytes())
    return path


def write_mask(path: Path, *, size: tuple[int, int] = (12, 16), box: tuple[slice, slice] | None = None) -> Path:
    """A mask with one box of 255; without a box it is the upper left quarter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    mask[box or (slice(0, size[0] // 2), slice(0, size[1] // 2))] = 255
    path.write_bytes(cv2.imencode(path.suffix, mask)[1].tobytes())
    return path


Points = Sequence[tuple[float, float]]


def write_labelme(path: Path, *polygons: Points, size: tuple[int, int] = (12, 16), **fields) -> Path:
    """A label file of labelme with polygons of (x, y); other `fields` of the file go before these."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = [{"label": "Pitting", "points": points, "shape_type": "polygon"} for points in polygons]
    content = {"version": "4.5.6", "shapes": shapes, "imageHeight": size[0], "imageWidth": size[1], **fields}
    path.write_text(json.dumps(content))
    return path


def write_ball_screw(root: Path, *, positions: int, moments: int) -> Path:
    """Positions that pit earlier or later, the first one never, in the layout of BSData."""
    for position, moment in np.ndindex(positions, moments):
        stem = f"01_20040{moment + 1}120000_{10 + position}0000_090_crop_{1 + moment % 2}"
        write_picture(root / f"images/{stem}.jpg")
        if position and moment > position % (moments - 1):
            write_labelme(root / f"labels/{stem}.json", [(2, 1), (6, 1), (6, 4), (2, 4)])
    return root


def write_generic(
    root: Path, *, splits: tuple[str, ...] = ("train", "val", "test"), per_class: int = 3, split_masks: bool = True
) -> Path:
    """The generic layout with stems unique in the whole dataset, all defects annotated."""
    for split in splits:
        for number in range(per_class):
            write_picture(root / "images" / split / "normal" / f"{split}_n{number}.png")
            write_picture(root / "images" / split / "defective" / f"{split}_d{number}.png")
            folder = root / "masks" / split / "defective" if split_masks else root / "masks" / "defective"
            write_mask(folder / f"{split}_d{number}.png")
    return root


def truncate_file(path: Path) -> None:
    """Cut a picture short, as an interrupted copy does."""
    path.write_bytes(path.read_bytes()[:60])


def spoil_tiff(path: Path) -> None:
    """Let a TIFF's only page say that another one follows, where none is."""
    raw = bytearray(path.read_bytes())
    head = struct.unpack_from("<I", raw, 4)[0]
    struct.pack_into("<I", raw, head + 2 + 12 * struct.unpack_from("<H", raw, head)[0], 2)
    path.write_bytes(raw)
