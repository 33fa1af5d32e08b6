"""Boxes to pixels.

A pixel belongs to a box when its centre lies in it, left and top edges included; a box too thin to hold a centre
takes the pixel of its middle. H x W is the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gainmtl_lib.data.boxes.records import (
    CLIPPED,
    NO_AREA,
    NOT_FINITE,
    OUTSIDE,
    REPEATED,
    SCALED,
    TINY,
    WHOLE,
    Annotation,
    Box,
    Report,
)
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.transforms import Resize, inner_size, same_aspect

HALF_PIXEL = 0.5
"""A box this far beyond the edge covers no pixel more than one that ends there: written decimals, not a mistake."""
NEARLY_WHOLE = 0.95
"""Share of the picture from which a box says hardly more than the label."""


@dataclass(frozen=True)
class PixelBox:
    """Rows `top` to `bottom` and columns `left` to `right` of a picture, the last ones not included."""

    top: int
    left: int
    bottom: int
    right: int
    name: str

    @property
    def area(self) -> int:
        """Pixels."""
        return (self.bottom - self.top) * (self.right - self.left)


@dataclass(frozen=True)
class Target:
    """What boxes are measured against: a picture's size on disk, and how it is shrunk to the network's input."""

    size: tuple[int, int]
    image_size: tuple[int, int]
    resize: Resize


def pixel_boxes(annotation: Annotation, target: Target, file: Path, report: Report) -> list[PixelBox]:
    """The boxes that can be drawn, as pixels, each once.

    Left out and counted: boxes wholly outside, without area, or not finite. Drawn and counted: boxes that are
    clipped, repeated, nearly as large as the picture, or below a pixel of the network's input.

    Raises:
        DataError: the file gives the picture another aspect ratio.
    """
    boxes = [box for box in _in_pixels(annotation, target.size, file, report) if _sound(box, target.size, file, report)]
    drawn: dict[tuple[int, int, int, int], PixelBox] = {}
    for box in boxes:
        clipped = _clipped(box, target.size, file, report)
        pixels = _pixels(clipped)
        place = (pixels.top, pixels.left, pixels.bottom, pixels.right)
        if place in drawn:
            report.warn(REPEATED, file, f"{box.place}: covers the same pixels as another box; drawn once")
        else:
            _judge_size(clipped, target, file, report)
        drawn.setdefault(place, pixels)
    return list(drawn.values())


def draw(boxes: Iterable[PixelBox], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask (H, W), 255 in the boxes and 0 elsewhere."""
    mask = np.zeros(size, dtype=np.uint8)
    for box in boxes:
        mask[box.top : box.bottom, box.left : box.right] = 255
    return mask


def _in_pixels(annotation: Annotation, size: tuple[int, int], file: Path, report: Report) -> list[Box]:
    """Edges in pixels of the picture on disk."""
    height, width = size
    of_file = (1, 1) if annotation.shares else annotation.size
    if of_file is None or of_file == size:
        return annotation.boxes
    if not annotation.shares:
        sizes = f"the picture is {of_file[0]}x{of_file[1]} (height x width) there, and {height}x{width} on disk"
        if not same_aspect(of_file, size):
            raise DataError(f"{file}: {sizes}; expected the same aspect ratio")
        report.warn(SCALED, file, f"{sizes}; its boxes are scaled")
    down, across = height / of_file[0], width / of_file[1]
    return [
        replace(box, left=box.left * across, right=box.right * across, top=box.top * down, bottom=box.bottom * down)
        for box in annotation.boxes
    ]


def _sound(box: Box, size: tuple[int, int], file: Path, report: Report) -> bool:
    edges = (box.left, box.top, box.right, box.bottom)
    numbers = ", ".join(f"{edge:.6g}" for edge in edges)
    if not all(map(math.isfinite, edges)):
        report.warn(NOT_FINITE, file, f"{box.place}: left, top, right, bottom are {numbers}; left out")
    elif box.right <= box.left or box.bottom <= box.top:
        width, height = box.right - box.left, box.bottom - box.top
        report.warn(NO_AREA, file, f"{box.place}: is {width:.6g} wide and {height:.6g} high; left out")
    elif box.right <= 0 or box.bottom <= 0 or box.left >= size[1] or box.top >= size[0]:
        where = f"left, top, right, bottom {numbers} lie outside the picture of {size[0]}x{size[1]} (height x width)"
        report.warn(OUTSIDE, file, f"{box.place}: {where}; left out")
    else:
        return True
    return False


def _clipped(box: Box, size: tuple[int, int], file: Path, report: Report) -> Box:
    height, width = size
    beyond = max(-box.left, -box.top, box.right - width, box.bottom - height)
    if beyond > HALF_PIXEL:
        where = f"reaches {beyond:.6g} pixels beyond the picture of {height}x{width} (height x width)"
        report.warn(CLIPPED, file, f"{box.place}: {where}; clipped")
    return replace(
        box, left=max(box.left, 0), top=max(box.top, 0), right=min(box.right, width), bottom=min(box.bottom, height)
    )


def _pixels(box: Box) -> PixelBox:
    left, right = _cells(box.left, box.right)
    top, bottom = _cells(box.top, box.bottom)
    return PixelBox(top, left, bottom, right, box.name)


def _cells(start: float, end: float) -> tuple[int, int]:
    """First cell whose centre lies in [start, end), and the one after the last."""
    # Rounded, because a share times a side misses a half by the last bit, on either side.
    first, last = math.ceil(round(start - 0.5, 6)), math.ceil(round(end - 0.5, 6))
    if last > first:
        return first, last
    middle = math.floor((start + end) / 2)
    return middle, middle + 1


def _judge_size(box: Box, target: Target, file: Path, report: Report) -> None:
    height, width = target.size
    inner = inner_size(target.size, target.image_size, target.resize)
    high, wide = (box.bottom - box.top) * inner[0] / height, (box.right - box.left) * inner[1] / width
    if min(high, wide) < 1:
        size = f"{high:.2g}x{wide:.2g} pixels (height x width) of the network's input"
        report.warn(TINY, file, f"{box.place}: is {size}, less than one; image_size may be too small for it")
    share = (box.bottom - box.top) * (box.right - box.left) / (height * width)
    if share >= NEARLY_WHOLE:
        report.warn(WHOLE, file, f"{box.place}: covers {share:.0%} of the picture, and hardly says where the defect is")
