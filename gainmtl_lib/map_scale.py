"""One scale for all maps of a model, fixed on validation, so that a picture without a defect looks calm.

Min-max per image stretches whatever is there to full brightness: a normal part glows as much as a broken one.
The absolute scale begins where maps of normal parts end. A map that stays below found nothing.

Sizes: N images, h x w map cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CALM_SHARE = 0.95
"""Share of the normal validation pictures whose map finds nothing, by construction of the scale."""


@dataclass(frozen=True)
class MapScale:
    """Floor and ceiling of a map's absolute scale, in the map's own unit.

    Attributes:
        floor: what the peaks of 95 % of the normal validation pictures stay below; shown as 0.
        ceiling: the median peak of the defective ones; shown as 1.
    """

    floor: float
    ceiling: float

    @property
    def separates(self) -> bool:
        """Whether defective pictures peak above normal ones at all; otherwise the map cannot tell them apart."""
        return self.ceiling > self.floor

    def apply(self, maps: NDArray) -> NDArray[np.float32]:
        """Maps of any shape to [0, 1]. A scale that does not separate shows only whether a cell exceeds the floor."""
        above = np.asarray(maps, dtype=np.float32) - self.floor
        if not self.separates:
            return (above > 0).astype(np.float32)
        return np.clip(above / (self.ceiling - self.floor), 0, 1)

    def finds(self, maps: NDArray) -> NDArray[np.bool_]:
        """Whether a map rises above the floor anywhere: (..., h, w) -> (...)."""
        return np.asarray(maps, dtype=np.float32).max(axis=(-2, -1)) > self.floor


def fit_scale(maps: NDArray, labels: NDArray) -> MapScale | None:
    """The scale of one kind of map.

    Args:
        maps: of the validation split, (N, h, w).
        labels: 0 normal, 1 defective, (N,).

    Returns:
        None where a class is missing, because nothing says then what is calm or what is not.
    """
    peaks = np.asarray(maps, dtype=np.float32).max(axis=(1, 2))
    normal, defective = peaks[labels == 0], peaks[labels == 1]
    if not len(normal) or not len(defective):
        return None
    floor = float(np.quantile(normal, CALM_SHARE, method="higher"))
    return MapScale(floor, float(np.median(defective)))
