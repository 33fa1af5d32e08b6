"""The annotation of a picture that lies in a dataset's folder, found as a training would find it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gainmtl_lib.data.layouts import LAYOUTS


def masks_of(pictures: Sequence[Path]) -> dict[Path, Path]:
    """Pictures that a dataset around them has a mask for, and that mask. Nothing is decoded.

    Understands the layouts generic (and synthetic), mvtec and magnetic_tile, by the folders that a picture lies in.
    """
    absolute = {picture: picture.absolute() for picture in pictures}
    datasets = {found for path in absolute.values() if (found := _dataset_around(path)) is not None}
    masks: dict[Path, Path] = {}
    for layout, root in sorted(datasets):
        masks |= {row.image: row.mask for row in LAYOUTS[layout](root).rows if row.mask is not None}
    return {picture: masks[path] for picture, path in absolute.items() if path in masks}


def _dataset_around(picture: Path) -> tuple[str, Path] | None:
    """Layout and root of the dataset that a picture lies in, if it lies in one."""
    for folder in picture.parents:
        if folder.name == "images" and (folder.parent / "masks").is_dir():
            return "generic", folder.parent
        if folder.name == "test" and (folder.parent / "ground_truth").is_dir():
            return "mvtec", folder.parent
        if folder.name == "Imgs" and folder.parent.name.startswith("MT_"):
            return "magnetic_tile", folder.parent.parent
    return None
