"""Where the defect lies in the picture as it was given: boxes and area from the localization map.

Sizes: h x w the given picture, H x W the network's input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from gainmtl_lib.data.transforms import Resize, inner_size, inside

THRESHOLD = 0.5
"""Probability from which a pixel counts as defect."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels; x1 and y1 stand just behind the last pixel."""


@dataclass(frozen=True)
class Frame:
    """Where a picture of (h, w) lies in the network's input.

    Attributes:
        picture: (h, w).
        rows: of the input that it takes.
        columns: likewise.
    """

    picture: tuple[int, int]
    rows: slice
    columns: slice

    @classmethod
    def of(cls, picture: tuple[int, int], size: tuple[int, int], resize: Resize) -> Frame:
        """The frame of a picture (h, w) in an input of `size` (H, W)."""
        return cls(picture, *inside(inner_size(picture, size, resize), size))

    def crop(self, plane: NDArray) -> NDArray:
        """A map (H, W) without the bars beside the picture."""
        return plane[self.rows, self.columns]

    def plane(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """True where the picture lies in an input of `size` (H, W), False in the bars beside it."""
        plane = np.zeros(size, dtype=np.bool_)
        plane[self.rows, self.columns] = True
        return plane

    def to_picture(self, box: Box) -> Box:
        """A box of `crop`'s pixels in the given picture's pixels, rounded outwards."""
        (h, w), (height, width) = self.picture, self._inner
        x0, y0, x1, y1 = box
        return x0 * w // width, y0 * h // height, -(-x1 * w // width), -(-y1 * h // height)

    def to_input(self, box: Box) -> tuple[float, float, float, float]:
        """A box of the given picture in the input's pixels, to be drawn."""
        (h, w), (height, width) = self.picture, self._inner
        x0, y0, x1, y1 = box
        left, top = self.columns.start, self.rows.start
        return left + x0 * width / w, top + y0 * height / h, left + x1 * width / w, top + y1 * height / h

    @property
    def _inner(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def marked(localization: NDArray, frame: Frame, *, threshold: float = THRESHOLD) -> NDArray[np.bool_]:
    """Pixels of the input that count as defect, bool (H, W); the bars beside the picture hold none.

    Args:
        localization: probabilities, (H, W).
        frame: of the picture.
        threshold: from where a pixel counts.
    """
    defect = np.zeros(localization.shape, dtype=np.bool_)
    defect[frame.rows, frame.columns] = frame.crop(localization) >= threshold
    return defect


def defect_boxes(defect: NDArray[np.bool_], frame: Frame) -> list[Box]:
    """One box around each connected region of `marked` pixels (diagonals connect), the largest region first.

    In pixels of the given picture.
    """
    found = ndimage.label(frame.crop(defect), structure=np.ones((3, 3)))
    labels, _ = cast("tuple[NDArray[np.int32], int]", found)
    sizes = np.bincount(labels.ravel())[1:]
    places = ndimage.find_objects(labels)
    rows_and_columns = [places[int(index)] for index in np.argsort(-sizes, kind="stable")]
    return [frame.to_picture((x.start, y.start, x.stop, y.stop)) for y, x in rows_and_columns]


def defect_area(defect: NDArray[np.bool_], frame: Frame) -> float:
    """Share of the picture that is `marked`, in [0, 1]."""
    return float(frame.crop(defect).mean())
