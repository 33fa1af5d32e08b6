"""Masks from outside the dataset: one file per image, for strategy S6.

N images, H x W network input.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.images import read_image, read_mask_values
from gainmtl_lib.data.layouts import image_files
from gainmtl_lib.data.transforms import Resize, resize_values, same_aspect


def load_external_masks(images: Sequence[str], folder: Path, *, image_size: tuple[int, int], resize: Resize) -> Tensor:
    """One mask per image, grey values 0 to 255 as 0 to 1, resized but neither binarised nor rescaled.

    A mask has the path of its image below the images' common folder, or only its stem, with or without the
    suffix ``_mask``.

    Args:
        images: paths of the images.
        folder: holds the masks.
        image_size: network input (H, W).
        resize: as the images'.

    Returns:
        float32 (N, 1, H, W).

    Raises:
        DataError: the folder or a mask is missing, a stem does not tell which image is meant, or a mask has
            another aspect ratio than its image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; external_mask_dir holds one mask per image")
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in image_files(folder)}
    base = os.path.commonpath([os.path.dirname(image) for image in images])
    stems = [Path(image).stem for image in images]
    masks = torch.zeros((len(images), 1, *image_size))
    for row, image in enumerate(images):
        below = Path(image).relative_to(base).with_suffix("").as_posix()
        keys = [key for name in (below, stems[row]) for key in (name, f"{name}_mask") if key in files]
        if not keys:
            raise DataError(f"{folder}: has no mask for {image}; expected {below}.png or {stems[row]}.png")
        if "/" not in keys[0] and "/" in below and stems.count(stems[row]) > 1:
            raise DataError(
                f"{files[keys[0]]}: several images have the stem {stems[row]}; put their masks in subfolders, "
                f"as {below}.png"
            )
        values, size = read_mask_values(files[keys[0]]), read_image(image).shape[:2]
        if not same_aspect((values.shape[0], values.shape[1]), (size[0], size[1])):
            raise DataError(
                f"{files[keys[0]]}: mask is {values.shape[0]}x{values.shape[1]} (height x width), its image {image} "
                f"{size[0]}x{size[1]}; expected the same aspect ratio"
            )
        resized = resize_values(values / 255, image_size, resize, image_size=(size[0], size[1]))
        masks[row, 0] = torch.from_numpy(resized)
    return masks
