"""Scores of pixels over a whole set, against counting by hand, by brute force and by scikit-learn."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from gainmtl_lib.metrics import Aupro, PixelAuroc

# two defect pixels in a 2 x 4 picture
MASK = torch.tensor([[[[1.0, 1, 0, 0], [0, 0, 0, 0]]]])


def images(*pictures) -> torch.Tensor:
    return torch.tensor(pictures, dtype=torch.float32).unsqueeze(1)


def aupro(maps: torch.Tensor, masks: torch.Tensor, limit: float = 0.3) -> float:
    metric = Aupro(limit)
    metric.update(maps, masks)
    return float(metric.compute())


def test_aupro_of_perfect_and_reversed_scores():
    assert aupro(MASK, MASK) == pytest.approx(1)
    assert aupro(-MASK, MASK) == pytest.approx(0)
    assert aupro(torch.ones_like(MASK), MASK) == pytest.approx(0.15)  # chance: overlap = rate, 0.3 / 2


def test_aupro_weighs_regions_not_pixels():
    # Regions of 1 and 3 pixels, four clean ones. Found in order: the small region, one clean, the large region:
    # overlap 1/2 until the false positive rate 1/4, which then rises to 1 straight away.
    masks = images([[1, 0, 1, 0], [0, 0, 1, 1]])
    maps = images([[9, 8, 5, 0], [0, 0, 5, 5]])
    assert aupro(maps, masks, limit=0.25) == pytest.approx(0.5)
    assert aupro(maps, masks, limit=1.0) == pytest.approx(0.25 * 0.5 + 0.75 * 1)


@pytest.mark.parametrize("limit", [0.1, 0.3, 1.0])
def test_aupro_equals_brute_force(limit):
    generator = np.random.default_rng(3)
    masks = ndimage.gaussian_filter(generator.random((5, 16, 16)), (0, 1, 1)) > 0.55
    masks[0] = False
    maps = generator.integers(0, 12, masks.shape) / 11 + 0.3 * masks  # with ties
    expected = brute_force_aupro(maps, masks, limit)
    result = aupro(torch.from_numpy(maps).float()[:, None], torch.from_numpy(masks).float()[:, None], limit)
    assert result == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.5])  # probabilities; scores of both signs
def test_aupro_of_scores_that_hardly_differ_is_within_its_bound(shift):
    generator = np.random.default_rng(4)
    masks = ndimage.gaussian_filter(generator.random((4, 24, 24)), (0, 1, 1)) > 0.52
    maps = (0.7 + 0.04 * generator.random(masks.shape) + 0.01 * masks - shift).astype(np.float32)
    maps[1] *= -1 if shift else 1
    bits = 2.0 ** (np.floor(np.log2(np.abs(maps))) - 11)  # the value of the last bit that is told apart
    levels = np.unique(np.floor(maps / bits) * bits)
    assert 2 * len(levels) < np.unique(maps).size  # many scores share a level
    points = [(0.0, 0.0), *(point(maps, masks, level) for level in levels[::-1])]
    bound = sum((x1 - x0) * (y1 - y0) for (x0, y0), (x1, y1) in itertools.pairwise(points)) / 2 / 0.3
    result = aupro(torch.from_numpy(maps)[:, None], torch.from_numpy(masks).float()[:, None])
    assert 0 < abs(result - brute_force_aupro(maps, masks, 0.3)) <= bound < 0.02


def test_aupro_in_batches_is_aupro_in_one():
    generator = torch.Generator().manual_seed(5)
    maps, masks = torch.rand(6, 1, 8, 8, generator=generator), torch.zeros(6, 1, 8, 8)
    masks[::2, :, 1:4, 2:6] = 1
    masks[0, :, 6:, 6:] = 1
    metric = Aupro()
    for piece in (slice(0, 1), slice(1, 4), slice(4, 6)):
        metric.update(maps[piece], masks[piece])
    assert metric.regions == 4 and float(metric.compute()) == pytest.approx(aupro(maps, masks), abs=1e-12)


def point(maps: np.ndarray, masks: np.ndarray, threshold: float) -> tuple[float, float]:
    """False-positive rate and mean overlap of the regions at one threshold."""
    shares = []
    for image, mask in zip(maps, masks, strict=True):
        labels, found = ndimage.label(mask, structure=np.ones((3, 3)))
        shares += [np.mean(image[labels == k] >= threshold) for k in range(1, found + 1)]
    return float(np.mean(maps[~masks] >= threshold)), float(np.mean(shares))


def brute_force_aupro(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    thresholds = sorted(np.unique(maps), reverse=True)
    points = [(0.0, 0.0), *(point(maps, masks, threshold) for threshold in thresholds)]
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 < limit and x1 > x0:
            stop = min(x1, limit)
            area += (stop - x0) * (y0 + y0 + (y1 - y0) * (stop - x0) / (x1 - x0)) / 2
    return area / limit


def test_aupro_without_regions_or_without_clean_pixels_has_no_answer():
    assert math.isnan(aupro(torch.rand(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)))
    assert math.isnan(aupro(torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4)))


def test_aupro_limit_out_of_range_is_an_error():
    with pytest.raises(ValueError, match=r"limit must be a false-positive rate in \(0, 1\], got 0"):
        Aupro(limit=0)


def auroc(maps: torch.Tensor, masks: torch.Tensor) -> float:
    metric = PixelAuroc()
    metric.update(maps, masks)
    return float(metric.compute())


def test_pixel_auroc_counted_by_hand():
    assert auroc(MASK, MASK) == 1
    assert auroc(-MASK, MASK) == 0
    assert auroc(torch.ones_like(MASK), MASK) == 0.5
    # Of 2 x 6 pairs the first defect pixel wins six, the second four and ties one.
    assert auroc(images([[9, 3, 5, 3], [0, 0, 0, 0]]), MASK) == pytest.approx((6 + 4 + 0.5) / 12)


@pytest.mark.parametrize("shift", [0.0, 2.0])  # scores of both signs
def test_pixel_auroc_is_that_of_scikit_learn(shift):
    generator = np.random.default_rng(6)
    masks = ndimage.gaussian_filter(generator.random((5, 1, 32, 32)), (0, 0, 1, 1)) > 0.55
    maps = (np.exp(generator.normal(size=masks.shape) + masks) - shift).astype(np.float32)
    expected = roc_auc_score(masks.ravel(), maps.ravel())
    assert auroc(torch.from_numpy(maps), torch.from_numpy(masks).float()) == pytest.approx(expected, abs=1e-4)


def test_pixel_auroc_in_batches_is_pixel_auroc_in_one():
    generator = torch.Generator().manual_seed(7)
    maps, masks = torch.randn(6, 1, 4, 4, generator=generator), torch.zeros(6, 1, 8, 8)
    masks[::2, :, 1:4, 2:6] = 1
    metric = PixelAuroc()
    for piece in (slice(0, 1), slice(1, 4), slice(4, 6)):
        metric.update(maps[piece], masks[piece])
    assert float(metric.compute()) == auroc(maps, masks)


def test_pixel_auroc_of_one_class_has_no_answer():
    assert math.isnan(auroc(torch.rand(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)))
    assert math.isnan(auroc(torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4)))


def test_pixel_auroc_counts_more_pixels_than_single_precision_can():
    metric = PixelAuroc()
    metric.update(torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0], [0, 0]]]]))
    metric.clean *= 10_000_000_000
    assert float(metric.compute()) == 0.5


def test_metrics_can_be_sent_to_another_process():
    for kind in (Aupro, PixelAuroc):
        assert pickle.loads(pickle.dumps(kind())).clean.sum() == 0
