"""ROAD: remove and debias (Rong et al., ICML 2022).

Removed pixels are replaced by a weighted mean of their neighbours, solved for all of them at once, with a little
noise: neither a new edge nor a flat patch tells where something was removed. One picture at a time: image (3, H, W),
map (h, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor, nn

from gainmtl_lib.explain.perturbation import Seed, check_picture, defect_probability, device_of, relevance_places

ROAD_FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
NEIGHBOURS = tuple((dy, dx, 1 / 12 if dy and dx else 1 / 6) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)
"""Offset and weight of the pixels that a replaced one is the mean of, as in the paper's code."""
NOISE = 0.01
"""Standard deviation of what is added to replaced pixels, for colours in [0, 1]; the paper's value."""


@dataclass(frozen=True)
class RoadCurves:
    """Probability of "defective" with a share of the pixels replaced.

    Attributes:
        fractions: of the pixels, (K,).
        most_first: the most relevant ones replaced, (K,).
        least_first: the least relevant ones replaced, (K,).
    """

    fractions: Tensor
    most_first: Tensor
    least_first: Tensor

    @property
    def score(self) -> float:
        """Mean of least minus most relevant first, in [-1, 1]; 0 for a map that says nothing."""
        return float((self.least_first - self.most_first).mean())


def road(
    model: nn.Module,
    image: Tensor,
    values: Tensor,
    *,
    fractions: Sequence[float] = ROAD_FRACTIONS,
    seed: Seed = 0,
    batch_size: int = 32,
) -> RoadCurves:
    """Both curves of one map on one picture.

    The ``grad-cam`` package has the same replacement, but cuts the map at a percentile of its values: of a flat map, or
    one with many zeros, it replaces every pixel, which turns the picture black and looks like a perfect score.

    Args:
        model: pictures to a record with ``logits``, such as `GAINMTLModel`; computed as at inference.
        image: RGB in [0, 1], (3, H, W).
        values: the map, (h, w), on any scale; what is higher is more relevant.
        fractions: of the pixels to replace, each in (0, 1). Each takes two sparse systems of that many unknowns:
            up to 0.1 s each at 128 pixels a side and 2 s at 512.
        seed: of the noise and of the order among pixels of equal value.
        batch_size: forward passes at a time.

    Raises:
        ValueError: image or map of a wrong shape, or fractions outside (0, 1).
    """
    check_picture(image, values)
    if not fractions or not all(0 < fraction < 1 for fraction in fractions):
        raise ValueError(f"fractions must lie in (0, 1), got {list(fractions)}; nothing can be filled in from nothing")
    places = relevance_places(values, image, seed)
    counts = [round(fraction * places.numel()) for fraction in fractions]
    removed = [places < count for count in counts] + [places >= places.numel() - count for count in counts]
    rng = np.random.default_rng(seed)
    device = device_of(model, image)
    parts = []
    for start in range(0, len(removed), batch_size):
        pictures = [impute(image.cpu().float(), where, rng) for where in removed[start : start + batch_size]]
        parts.append(defect_probability(model, torch.stack(pictures).to(device)).double())
    most_first, least_first = torch.cat(parts).chunk(2)
    return RoadCurves(torch.tensor(fractions, dtype=torch.float64), most_first, least_first)


def impute(image: Tensor, removed: Tensor, rng: np.random.Generator, *, noise: float = NOISE) -> Tensor:
    """The image (3, H, W) with the pixels of `removed`, bool (H, W), filled in from those around them.

    Each becomes the weighted mean of its neighbours, removed or not.

    Raises:
        ValueError: no pixel is left to fill in from.
    """
    if bool(removed.all()):
        raise ValueError("every pixel is removed; there is nothing left to fill in from")
    if not bool(removed.any()):
        return image
    system, known = _neighbour_system(image.numpy(), removed.numpy())
    # Symmetric and diagonally dominant, so no pivoting is needed, and an ordering for symmetric matrices is fastest.
    solver = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    filled = image.clone()
    filled[:, removed] = torch.from_numpy(solver.solve(known).T).float()
    drawn = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
    return torch.where(removed, filled + noise * drawn, image)


def _neighbour_system(
    image: NDArray[np.float32], removed: NDArray[np.bool_]
) -> tuple[sparse.csc_array, NDArray[np.float64]]:
    """Matrix (n, n) and right-hand side (n, 3) whose solution is the colours of the n removed pixels."""
    height, width = removed.shape
    rows, columns = np.nonzero(removed)
    unknown = np.full(removed.shape, -1)
    unknown[rows, columns] = own = np.arange(len(rows))
    weights, known = np.zeros(len(rows)), np.zeros((len(rows), len(image)))
    entries = []
    for dy, dx, weight in NEIGHBOURS:
        y, x = rows + dy, columns + dx
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        weights += weight * inside
        there = unknown[y.clip(0, height - 1), x.clip(0, width - 1)]
        given, linked = inside & (there < 0), inside & (there >= 0)
        known[given] += weight * image[:, y[given], x[given]].T
        entries.append((np.full(linked.sum(), -weight), own[linked], there[linked]))
    entries.append((weights, own, own))
    values, lines, places = (np.concatenate(part) for part in zip(*entries))
    return sparse.csc_array((values, (lines, places)), shape=(len(rows), len(rows))), known
