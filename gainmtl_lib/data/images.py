"""Decoding: any image file to 8-bit RGB, any mask file to defect pixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from gainmtl_lib.data.findings import DataError

MASK_THRESHOLD = 127
"""Mask values above it are defect: published masks have grey edges."""


class UnreadableError(DataError):
    """A file that cannot be decoded: the one error that a run may be asked to step over."""


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Decode an image to (H, W, 3) RGB. Grey becomes three equal channels, an alpha channel is dropped.

    Orientation tags are followed.

    Raises:
        UnreadableError: the file is missing, truncated, or not an image.
    """
    # Not IMREAD_COLOR_RGB: with 16-bit TIFF files OpenCV 5.0 then returns memory it never wrote.
    image = to_8_bit(_decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, "image"), path)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def read_mask_values(path: str | Path) -> NDArray[np.uint8]:
    """Decode a mask to its 8-bit values, (H, W).

    Raises:
        UnreadableError: the file is missing, truncated, or not an image.
    """
    return mask_to_8_bit(_decode(path, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH, "mask"), path)


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """Defect pixels of a mask file, (H, W)."""
    return read_mask_values(path) > MASK_THRESHOLD


def to_8_bit(image: NDArray, path: str | Path = "image") -> NDArray[np.uint8]:
    """Scale integer images by their type: 16 bits are divided by 257, whatever the image holds.

    A depth guessed from an image's own largest value would differ within a dataset, and brightness with it, which
    could tell the class. So 12-bit data in 16-bit files comes out dark (at most 16 of 255) but comparable: scale
    such files to 16 bits first.

    Raises:
        UnreadableError: pixels that are not 8- or 16-bit integers.
    """
    if image.dtype == np.uint8:
        return image
    if image.dtype != np.uint16:
        raise UnreadableError(f"{path}: pixels are {image.dtype}; expected 8- or 16-bit integers")
    return cv2.convertScaleAbs(image, alpha=1 / 257)  # type: ignore[return-value]


def mask_to_8_bit(mask: NDArray, path: str | Path = "mask") -> NDArray[np.uint8]:
    """As `to_8_bit`, but a mask whose values all fit 8 bits keeps them: it has two values and no brightness.

    Raises:
        UnreadableError: pixels that are not 8- or 16-bit integers.
    """
    if mask.dtype == np.uint16 and mask.max(initial=0) <= 255:
        return mask.astype(np.uint8)
    return to_8_bit(mask, path)


def _decode(path: str | Path, flags: int, what: str) -> NDArray:
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UnreadableError(f"{path}: {what} cannot be read: {error.strerror}") from None
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error:
        image = None
    if image is None:
        state = "is empty" if not data.size else "is truncated or not an image"
        raise UnreadableError(f"{path}: {what} {state}; replace the file")
    return image
