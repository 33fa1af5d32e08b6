"""Planted cues of a dataset: which kinds there are, and the pixels that a picture's cue takes.

A dataset in the generic layout may hold ``cues/<split>/{normal,defective}/<path>.png`` beside ``images``: a plane
of the picture's size, 255 where the cue is, without the defect's pixels. A picture without such a file carries none.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.images import read_mask
from gainmtl_lib.data.transforms import Resize, resize_mask

Cue = Literal["mark", "lighting", "texture", "border"]

CUE_KINDS: tuple[Cue, ...] = get_args(Cue)
"""mark: a fixture's screw at a corner; lighting: a strong gradient; texture: the family of the surface's texture;
border: a strip beyond the part's edge along one side. None has a direction that flips or turns would undo."""

FOLDER = "cues"


def cue_file(image_path: str | Path, *, root: str | Path) -> Path | None:
    """Where the cue of a picture below ``root/images`` is recorded; None for a picture elsewhere."""
    try:
        # Not Path.absolute, which keeps the .. of a root that the table of samples has resolved.
        place = Path(os.path.abspath(image_path)).relative_to(Path(os.path.abspath(root)) / "images")
    except ValueError:
        return None
    return Path(root) / FOLDER / place.with_suffix(".png")


def read_cue(
    image_path: str | Path, *, root: str | Path, image_size: tuple[int, int], resize: Resize
) -> NDArray[np.bool_] | None:
    """Pixels of a picture's cue at the network's size, (H, W), fitted as its mask is.

    Args:
        image_path: of the picture.
        root: the dataset's folder.
        image_size: network input (H, W).
        resize: squash or letterbox.

    Returns:
        None where no cue is recorded: the picture carries none, or its dataset records none (see `require_cues`).

    Raises:
        UnreadableError: the file cannot be decoded.
    """
    file = cue_file(image_path, root=root)
    if file is None or not file.is_file():
        return None
    pixels = read_mask(file)
    return resize_mask(pixels, image_size, resize) if pixels.any() else None


def has_cues(root: str | Path) -> bool:
    """Whether the dataset records cues. Synthetic data made before they were recorded does not."""
    return (Path(root) / FOLDER).is_dir()


def require_cues(root: str | Path) -> None:
    """Refuse a dataset that records no cues, before something that cannot be said without them is measured.

    Raises:
        DataError: there is no folder ``cues``; says how to come by one.
    """
    if has_cues(root):
        return
    made = (Path(root) / "synthetic.yaml").is_file()
    advice = (
        "it was made before cues were recorded, or with shortcut: none; delete the folder, and it is made again"
        if made
        else "make one with a planted cue: gainmtl data plant, or gainmtl data synth"
    )
    raise DataError(f"{root}: no folder {FOLDER}, so that nothing says where a cue is; {advice}")
