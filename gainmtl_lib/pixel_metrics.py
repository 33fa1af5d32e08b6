"""How well scores tell defect pixels from others over a whole set of pictures, whatever threshold is taken.

Pixels are counted by score and not kept: 512 px pictures by the thousand would not fit into memory. Scores less than
1/2048 of their value apart may count as equal; those are told apart by sign, exponent and the first 11 bits of the
fraction.

Scores are of one scale for the whole set. Defective images without an annotation are to be left out: their pixels
would count as defect-free.

Sizes: B images, H x W masks, h x w maps (h <= H, w <= W).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from gainmtl_lib.metrics import resize_maps

LEVELS = 2**20
"""Scores that are told apart."""


class PixelAuroc(Metric):
    """Probability that a defect pixel scores higher than a defect-free one, ties half.

    Off by at most half the probability that the two share a level.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    defect: Tensor
    clean: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("defect", "clean"):
            self.add_state(state, torch.zeros(LEVELS, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Count the pixels of a batch. Shape: (B, 1, h, w), (B, 1, H, W), empty for normal images."""
        level, defect = _level_and_defect(maps, masks)
        inside = _count(level[defect])
        self.defect += torch.from_numpy(inside).to(self.defect)
        self.clean += torch.from_numpy(_count(level) - inside).to(self.clean)

    def compute(self) -> Tensor:
        """In [0, 1]; NaN without a defect pixel or without a defect-free one."""
        defect, clean = (counts.cpu().double() for counts in (self.defect, self.clean))
        below = clean.cumsum(0) - clean
        return (defect @ (below + clean / 2) / defect.sum() / clean.sum()).float()


class Aupro(Metric):
    """Area under the per-region-overlap curve up to a false-positive rate, divided by it (Bergmann et al. 2021).

    Lowering one threshold over the whole set, the mean share of each defect region (8-connected) that is covered is
    integrated over the share of defect-free pixels that are flagged.

    The points of the curve are exact, only those between two levels are missing, so the area is off by at most half
    the sum of (rate step x overlap step) / limit.

    Args:
        limit: false-positive rate at which integration ends, in (0, 1].
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    covered: Tensor
    clean: Tensor
    regions: Tensor

    def __init__(self, limit: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < limit <= 1:
            raise ValueError(f"limit must be a false-positive rate in (0, 1], got {limit}")
        self.limit = limit
        self.add_state("covered", torch.zeros(LEVELS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("clean", torch.zeros(LEVELS, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("regions", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Count the pixels of a batch. Shape: (B, 1, h, w), (B, 1, H, W), empty for normal images."""
        level, defect = _level_and_defect(maps, masks)
        inside, (share, found) = level[defect], _region_shares(defect)
        covered = np.bincount(inside, weights=share, minlength=LEVELS)
        self.clean += torch.from_numpy(_count(level) - _count(inside)).to(self.clean)
        self.covered += torch.from_numpy(covered).to(self.covered)
        self.regions += found

    def compute(self) -> Tensor:
        """In [0, 1]; NaN when there is no defect region or no defect-free pixel."""
        pixels = self.clean.sum()
        if not self.regions or not pixels:
            return torch.tensor(torch.nan)
        rate = np.append(0.0, (self.clean.flip(0).cumsum(0) / pixels).cpu().numpy())  # equal scores come together
        overlap = np.append(0.0, (self.covered.flip(0).cumsum(0) / self.regions).cpu().numpy())
        end = int(np.searchsorted(rate, self.limit))  # first level to reach the limit
        at_limit = np.interp(self.limit, rate[end - 1 : end + 1], overlap[end - 1 : end + 1])
        area = np.trapezoid(np.append(overlap[:end], at_limit), np.append(rate[:end], self.limit))
        return torch.tensor(area / self.limit)


def _level_and_defect(maps: Tensor, masks: Tensor) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Level of each pixel's score and whether it is defect, (B, H, W) both."""
    scores = resize_maps(maps, masks)[:, 0].cpu().numpy()
    return _levels(scores), (masks[:, 0] > 0.5).cpu().numpy()


def _levels(scores: NDArray[np.float32]) -> NDArray[np.int32]:
    """Scores to whole numbers in [0, LEVELS) of the same order: their first 20 bits, negative ones reversed."""
    bits = (scores + np.float32(0)).view(np.int32)  # there is no -0 in a sum
    bits = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
    return (bits >> 12) + np.int32(LEVELS // 2)


def _count(level: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.bincount(level.ravel(), minlength=LEVELS)


def _region_shares(defect: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """Which share of its region each defect pixel is, in the pixels' order, and how many regions there are."""
    shares, regions = [np.zeros(0)], 0
    for mask in defect[defect.any(axis=(1, 2))]:
        count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
        region = labels[mask]
        shares.append(1 / np.bincount(region)[region])
        regions += count - 1  # without the background
    return np.concatenate(shares), regions
