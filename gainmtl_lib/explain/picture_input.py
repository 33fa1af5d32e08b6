"""Any kind of picture, and any kind of mask, to pixels: files, PIL pictures, arrays and tensors, one or many.

What comes out is what a file with the same pixels would give, so that the kind of input never changes an answer.
Sizes: h x w the picture as it is given, C channels (1 grey, 3 RGB, 4 with an alpha channel, which is dropped).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.images import (
    MASK_THRESHOLD,
    UnreadableError,
    mask_to_8_bit,
    read_image,
    read_mask_values,
    to_8_bit,
)
from gainmtl_lib.data.transforms import same_aspect

logger = logging.getLogger(__name__)

KINDS = "a path, a PIL picture, an array (h, w[, C]) or a tensor (C, h, w)"
OVERSHOOT = 1e-3
"""How far floats may leave [0, 1], as resizing makes them do."""


class Asked(NamedTuple):
    """One picture to be explained, its mask or None, and what messages call them."""

    image: Any
    mask: Any
    name: str
    mask_name: str


def pair(image: Any, mask: Any = None) -> tuple[list[Asked], bool]:
    """Pictures with their masks, and whether many were given.

    Raises:
        DataError: another number of masks than of pictures.
    """
    images = _many(image)
    if images is None:
        if isinstance(mask, list | tuple):
            raise DataError(f"mask: got a {type(mask).__name__} of {len(mask)} for one picture; expected one mask")
        return [Asked(image, mask, _name(image, "image"), _name(mask, "mask"))], False
    if mask is None:
        masks: list[Any] = [None] * len(images)
    elif isinstance(mask, list | tuple | np.ndarray | Tensor):
        masks = list(mask)
    else:
        raise DataError(f"mask: got one {type(mask).__name__} for {len(images)} pictures; give a list, None for none")
    if len(masks) != len(images):
        raise DataError(f"mask: got {len(masks)} masks for {len(images)} pictures; give one each, None where none is")
    return [
        Asked(one, of_it, _name(one, f"image[{i}]"), _name(of_it, f"mask[{i}]"))
        for i, (one, of_it) in enumerate(zip(images, masks))
    ], True


def read_picture(picture: Any, name: str = "image") -> NDArray[np.uint8]:
    """One picture as RGB uint8 (h, w, 3).

    Grey becomes three channels, alpha is dropped, orientation tags are followed. Integers of 16 bits are scaled
    as files are, by `to_8_bit`; floats are rounded to 8 bits, which is what the model was trained on.

    Args:
        picture: a path, a PIL picture, an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), or a tensor (h, w) or
            (C, h, w); uint8, uint16 or float in [0, 1].
        name: what messages call it.

    Raises:
        DataError: it cannot be read, holds several pictures, or its shape or values are none of these.
    """
    if isinstance(picture, str | PathLike):
        _check_file(Path(picture))
        return read_image(Path(picture))
    if isinstance(picture, Image.Image):
        picture = _from_pil(picture, name)
    elif isinstance(picture, Tensor):
        picture = _from_tensor(picture, name)
    elif not isinstance(picture, np.ndarray):
        raise DataError(f"{name}: got a {type(picture).__name__}; expected {KINDS}, or a list of such")
    return _rgb(_eight_bit(_with_channels(picture, name), name))


def read_defect(mask: Any, picture_size: tuple[int, int], name: str = "mask") -> NDArray[np.bool_] | None:
    """Defect pixels of one mask, bool (h, w), in the mask's own size; None when it marks nothing.

    Values are those of a mask file, > 127 is defect; floats likewise with 0.5. Arrays and tensors may also hold
    just 0 and 1, or booleans.

    Args:
        mask: a path, a PIL picture, an array (h, w) or (h, w, 1), or a tensor (h, w) or (1, h, w).
        picture_size: (h, w) of the mask's picture.
        name: what messages call it.

    Raises:
        DataError: as for `read_picture`, or the mask has another aspect ratio than its picture.
    """
    values = _mask_values(mask, name)
    size = (values.shape[0], values.shape[1])
    if not same_aspect(size, picture_size):
        raise DataError(
            f"{name}: mask is {size[0]}x{size[1]} (height x width), its picture {picture_size[0]}x{picture_size[1]}; "
            "expected the same aspect ratio"
        )
    defect = values > MASK_THRESHOLD
    if values.any() and not defect.any():
        logger.warning("%s: no mask value exceeds %d; treated as no mask", name, MASK_THRESHOLD)
    return defect if defect.any() else None


def _many(image: Any) -> list[Any] | None:
    if isinstance(image, list | tuple):
        return list(image)
    if isinstance(image, np.ndarray | Tensor) and image.ndim == 4:
        return list(image)
    return None


def _name(given: Any, otherwise: str) -> str:
    return str(given) if isinstance(given, str | PathLike) else otherwise


def _check_file(path: Path) -> None:
    # What PIL cannot open, the decoder may: it is the one to complain.
    with suppress(OSError, SyntaxError, Image.DecompressionBombError), Image.open(path) as picture:
        _check_frames(picture, str(path))


def _check_frames(picture: Image.Image, name: str) -> None:
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a photograph with a preview behind it
        raise UnreadableError(
            f"{name}: holds {frames} frames ({picture.format}); expected one picture: save the frame that is meant "
            "as a file of its own"
        )


def _from_pil(picture: Image.Image, name: str) -> NDArray:
    _check_frames(picture, name)
    try:
        upright = ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableError(f"{name}: PIL cannot decode the picture: {error}") from None
    if upright.mode.startswith("I;16"):
        return np.asarray(upright).astype(np.uint16)
    if upright.mode == "I":  # 16-bit files in 32 bits
        return _as_16_bit(np.asarray(upright), name)
    if upright.mode == "F":
        return np.asarray(upright)
    return np.asarray(upright.convert("L" if upright.mode in ("1", "L", "LA") else "RGB"))


def _as_16_bit(pixels: NDArray, name: str) -> NDArray[np.uint16]:
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise DataError(f"{name}: values from {pixels.min()} to {pixels.max()}; expected 8- or 16-bit pixels")
    return pixels.astype(np.uint16)


def _from_tensor(picture: Tensor, name: str) -> NDArray:
    if picture.ndim == 3 and picture.shape[0] not in (1, 3, 4):
        hint = "; that is the order of arrays: permute(2, 0, 1)" if picture.shape[2] in (1, 3, 4) else ""
        raise DataError(f"{name}: tensor has shape {tuple(picture.shape)}; expected (1, h, w) or (3, h, w){hint}")
    return _as_array(picture.permute(1, 2, 0) if picture.ndim == 3 else picture)


def _as_array(tensor: Tensor) -> NDArray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # NumPy has no bfloat16


def _with_channels(pixels: NDArray, name: str) -> NDArray:
    """To (h, w) or (h, w, 3), without alpha, in the machine's own byte order."""
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        hint = "; that is the order of tensors: transpose(1, 2, 0)" if pixels.shape[:1] in ((1,), (3,)) else ""
        expected = "(h, w), (h, w, 1), (h, w, 3) or (h, w, 4)"
        raise DataError(f"{name}: array has shape {pixels.shape}; expected {expected}{hint}")
    if not pixels.size:
        raise DataError(f"{name}: has shape {pixels.shape}, no pixels")
    if pixels.ndim == 3:
        pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3]
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


def _eight_bit(
    pixels: NDArray, name: str, of_integers: Callable[[NDArray, str], NDArray[np.uint8]] = to_8_bit
) -> NDArray[np.uint8]:
    if pixels.dtype in (np.uint8, np.uint16):
        return of_integers(pixels, name)
    if pixels.dtype.kind != "f":
        raise DataError(f"{name}: pixels are {pixels.dtype}; expected uint8, uint16 or float in [0, 1]")
    pixels = pixels.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise DataError(f"{name}: {int((~np.isfinite(pixels)).sum())} values are not finite; expected [0, 1]")
    low, high = pixels.min(), pixels.max()
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        hint = "the model normalises by itself" if low < 0 else "divide by the full scale, or give integers"
        raise DataError(f"{name}: float values from {low:.4g} to {high:.4g}; expected [0, 1]: {hint}")
    return np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)


def _rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels[..., None].repeat(3, axis=2) if pixels.ndim == 2 else pixels


def _mask_values(mask: Any, name: str) -> NDArray[np.uint8]:
    if isinstance(mask, str | PathLike):
        _check_file(Path(mask))
        return read_mask_values(Path(mask))
    if isinstance(mask, Image.Image):
        values = _from_pil(mask, name)
        return _eight_bit(values if values.ndim == 2 else cv2.cvtColor(values, cv2.COLOR_RGB2GRAY), name, mask_to_8_bit)
    if not isinstance(mask, np.ndarray | Tensor):
        raise DataError(f"{name}: got a {type(mask).__name__}; expected {KINDS}")
    values = _as_array(mask) if isinstance(mask, Tensor) else mask
    while values.ndim > 2 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or not values.size:
        raise DataError(f"{name}: mask has shape {tuple(mask.shape)}; expected (h, w), (h, w, 1) or (1, h, w)")
    if values.dtype.kind in "biu" and values.min() >= 0 and values.max() <= 1:
        return np.where(values == 1, 255, 0).astype(np.uint8)
    return _eight_bit(_with_channels(values, name), name, mask_to_8_bit)
