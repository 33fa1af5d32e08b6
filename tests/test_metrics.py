"""Scores of maps and pixels, thresholds and the absolute scale, counted by hand, by brute force and by scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from gainmtl_lib import metrics
from gainmtl_lib.metrics import (
    MapScale,
    PixelScores,
    calibration_error,
    cam_iou,
    choose_threshold,
    energy_inside,
    f1_threshold,
    fit_calibration,
    grid_iou,
    mask_iou,
)


def images(*pictures: list[list[float]]) -> torch.Tensor:
    return torch.tensor(pictures, dtype=torch.float32).unsqueeze(1)


# two defect pixels in a 2 x 4 picture
MASK = images([[1, 1, 0, 0], [0, 0, 0, 0]])


def test_maps_are_normalised_per_image_and_a_constant_one_to_zero_even_after_upsampling():
    maps = images([[0, 2], [4, 1]], [[-1, -3], [-2, -1]])
    assert torch.equal(metrics.normalize_maps(maps), images([[0, 0.5], [1, 0.25]], [[1, 0], [0.5, 1]]))
    for value in (0.0, 0.3, -7.1, 1e-30):
        upsampled = metrics.resize_maps(torch.full((1, 1, 3, 5), value), torch.zeros(1, 1, 37, 41))
        assert not metrics.normalize_maps(upsampled).any()
    resized = metrics.resize_maps(images([[0, 1]]), torch.zeros(1, 1, 1, 4))  # bilinear, corners not aligned
    assert torch.allclose(resized, images([[0, 0.25, 0.75, 1]]))
    with pytest.raises(ValueError, match=r"maps must be \(B, 1, h, w\) and masks \(B, 1, H, W\) with the same B, got"):
        cam_iou(torch.zeros(1, 1, 2, 2), torch.ones(2, 1, 2, 2))


def test_scores_of_maps_counted_by_hand():
    # normalised: 1 .5 .5 0 / 0 ... : three pixels on, two of them in the defect
    assert cam_iou(images([[5, 3, 3, 1], [1, 1, 1, 1]]), MASK).tolist() == pytest.approx([2 / 3])
    assert cam_iou(images([[5, 3, 3, 1], [1, 1, 1, 1]]), MASK, threshold=0.6).tolist() == pytest.approx([1 / 2])
    hit, miss = [[9, 1, 8, 0], [0, 0, 0, 0]], [[8, 1, 9, 0], [0, 0, 0, 0]]
    tie, constant = [[9, 0, 9, 9], [0, 9, 0, 0]], [[3, 3, 3, 3], [3, 3, 3, 3]]
    assert metrics.point_game(images(hit, miss, tie, constant), MASK.expand(4, -1, -1, -1)).tolist() == [1, 0, 0.25, 0]
    maps = images([[3, -5, 1, 0], [0, 0, 0, 0]], [[-1, -2, -3, 0], [0, 0, 0, 0]], [[1, 1, 1, 1], [1, 1, 1, 1]])
    assert energy_inside(maps, MASK.expand(3, -1, -1, -1)).tolist() == [0.75, 0, 0.25]
    # Cells hold the shares 1/2 and 0; upsampled (1/2 3/8 1/8 0 in both rows) and normalised 1 3/4 1/4 0,
    # so that the first two columns are on, four pixels, of which the two of the defect.
    assert [grid_iou(MASK, grid).item() for grid in ((1, 2), (2, 4), (1, 1))] == pytest.approx([0.5, 1, 0])


def test_predicted_masks_counted_by_hand_and_pooled_by_area():
    prob = images([[0.9, 0.4, 0.5, 0.1], [0.7, 0, 0, 0]])  # on: one defect pixel, two others; one missed
    assert mask_iou(prob, MASK).tolist() == pytest.approx([1 / 4])
    assert metrics.dice(prob, MASK).tolist() == pytest.approx([2 * 1 / (3 + 2)])
    assert metrics.pixel_accuracy(prob, MASK).tolist() == pytest.approx([5 / 8])
    assert mask_iou(prob, MASK, threshold=0.4).tolist() == pytest.approx([2 / 4])
    # Defect of 2, both found; no defect, which does not count; of 4, half of the picture, three found: 5 / 6. A mask of
    # more than half of the picture does not count either: whatever is predicted would agree with it.
    most = images([[1, 1, 1, 1], [1, 0, 0, 0]])
    masks = torch.cat([MASK, torch.zeros_like(MASK), images([[1, 1, 1, 1], [0, 0, 0, 0]]), most])
    predicted = torch.cat([MASK, MASK, images([[1, 1, 1, 0], [0, 0, 0, 0]]), most]) > 0.5
    assert mask_iou(most, most).isnan().all() and metrics.point_game(most, most).isnan().all()
    shared, union = metrics.pooled_overlap(predicted, masks)
    assert shared / union == pytest.approx(5 / 6) and not metrics.pooled_overlap(predicted[1:2], masks[1:2]).any()


@pytest.mark.parametrize("score", [cam_iou, metrics.point_game, energy_inside, mask_iou, metrics.dice, metrics.pixel_accuracy])  # fmt: skip
def test_an_empty_mask_has_no_answer_and_values_that_are_not_finite_have_one(score):
    maps, masks = torch.rand(2, 1, 2, 4), torch.cat([MASK, torch.zeros_like(MASK)])
    assert score(maps, masks).isnan().tolist() == grid_iou(masks, (1, 2)).isnan().tolist() == [False, True]
    maps = torch.full((1, 1, 2, 4), torch.nan)
    assert score(maps, MASK).item() == pytest.approx(0.75 if score is metrics.pixel_accuracy else 0)


def pixels(maps: torch.Tensor | NDArray, masks: torch.Tensor | NDArray) -> PixelScores:
    scores = PixelScores()
    maps, masks = (torch.as_tensor(values).float().view(-1, 1, *values.shape[-2:]) for values in (maps, masks))
    for batch in range(0, len(maps), 3):
        scores.update(maps[batch : batch + 3], masks[batch : batch + 3])
    return scores


def blobs(seed: int, count: int, size: int, level: float) -> tuple[np.random.Generator, NDArray]:
    """A generator, and masks of a few irregular regions drawn with it."""
    generator = np.random.default_rng(seed)
    return generator, ndimage.gaussian_filter(generator.random((count, size, size)), (0, 1, 1)) > level


def test_pixel_scores_of_perfect_reversed_and_equal_maps_and_aupro_weighs_regions():
    found = [pixels(maps, MASK) for maps in (MASK, -MASK, torch.ones_like(MASK))]
    assert [scores.auroc() for scores in found] == [1, 0, 0.5]
    assert [scores.aupro() for scores in found] == pytest.approx([1, 0, 0.15])  # chance: overlap = rate, 0.3 / 2
    for masks in (torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)):  # no region, no clean pixel
        scores = pixels(torch.rand(2, 1, 4, 4), masks)
        assert math.isnan(scores.auroc()) and math.isnan(scores.aupro())
    # Regions of 1 and 3 pixels, four clean ones. Found in order: the small region, one clean, the large region:
    # overlap 1/2 until the false positive rate 1/4, which then rises to 1 straight away.
    scores = pixels(images([[9, 8, 5, 0], [0, 0, 5, 5]]), images([[1, 0, 1, 0], [0, 0, 1, 1]]))
    assert scores.aupro(limit=0.25) == pytest.approx(0.5)
    assert scores.aupro(limit=1.0) == pytest.approx(0.25 * 0.5 + 0.75 * 1)


def brute_force_aupro(maps: NDArray, masks: NDArray, limit: float) -> float:
    """The thresholds from the highest down: false-positive rate and mean overlap of the regions, then trapezoids."""
    regions, points, area = [], [(0.0, 0.0)], 0.0
    for image, mask in zip(maps, masks, strict=True):
        labels, found = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [image[labels == k] for k in range(1, found + 1)]
    for threshold in np.unique(maps)[::-1]:
        overlap = np.mean([np.mean(region >= threshold) for region in regions])
        points.append((np.mean(maps[~masks] >= threshold), overlap))
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 < limit and x1 > x0:
            stop = min(x1, limit)
            area += (stop - x0) * (y0 + y0 + (y1 - y0) * (stop - x0) / (x1 - x0)) / 2
    return area / limit


@pytest.mark.parametrize("limit", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("shift", [0.0, 0.5])  # scores of both signs
def test_aupro_in_batches_equals_brute_force(limit, shift):
    generator, masks = blobs(3, 5, 16, 0.55)
    masks[0] = False
    maps = generator.integers(0, 12, masks.shape) / 11 + 0.3 * masks - shift  # with ties
    assert pixels(maps, masks).aupro(limit) == pytest.approx(brute_force_aupro(maps, masks, limit), abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 2.0])  # scores of both signs
def test_pixel_auroc_counted_by_hand_and_by_scikit_learn(shift):
    # Of 2 x 6 pairs the first defect pixel wins six, the second four and ties one.
    assert pixels(images([[9, 3, 5, 3], [0, 0, 0, 0]]), MASK).auroc() == pytest.approx((6 + 4 + 0.5) / 12)
    scores = pixels(torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0], [0, 0]]]]))
    scores.clean *= 10_000_000_000  # more pixels than single precision can count
    assert scores.auroc() == 0.5
    generator, masks = blobs(6, 5, 32, 0.55)
    maps = (np.exp(generator.normal(size=masks.shape) + masks) - shift).astype(np.float32)
    assert pixels(maps, masks).auroc() == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-4)


def test_a_threshold_is_where_a_logistic_regression_says_one_half():
    labels = np.array([0, 0, 0, 1, 1])
    # Logits -3, -1, 1 with shares 1/4, 1/2, 3/4 of defects: by symmetry -1, although the cut at -2 has a higher F1.
    margins, marked = np.repeat([-3.0, -1.0, 1.0], 4), np.array([0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1])
    assert choose_threshold(marked, margins) == pytest.approx(-1.0, abs=1e-3)
    # Classes that do not overlap: midway between the margins that are nearest to each other.
    assert choose_threshold(np.array([0, 1]), np.array([-2.0, 6.0])) == pytest.approx(2.0, abs=1e-3)
    assert choose_threshold(np.array([0, 1]), np.array([-1e9, 1e9])) == pytest.approx(0, abs=1e-3)
    crowded = -0.25 + 1e-5 * np.array([-2.0, -1.0, 1.0, 2.0])  # whatever the scale of the margins
    assert crowded[1] < choose_threshold(np.array([0, 0, 1, 1]), crowded) < crowded[2]
    # Rare defects that stand out little: not above the highest margin.
    assert choose_threshold(np.repeat([0, 1], [50, 2]), np.array([-0.4] * 25 + [0.4] * 25 + [0.0, 0.4])) == 0.4
    for nothing in (np.full(5, 0.3), np.array([0.9, 0.8, 0.7, 0.2, 0.1])):
        assert choose_threshold(labels, nothing) == 0
    assert choose_threshold(np.zeros(3, int), np.array([0.1, 0.2, 0.3])) == 0


def test_a_calibration_gives_the_shares_there_are_with_platts_targets():
    # Shares 1/4, 1/2, 3/4 of many pictures at three margins: targets are as good as 0 and 1, and the fit goes through.
    margins, marked = np.repeat([-3.0, -1.0, 1.0], 4000), np.tile([0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1], 1000)
    marked = marked.reshape(1000, 3, 4).transpose(1, 0, 2).ravel()
    slope, offset = fit_calibration(marked, margins, -1.0)
    assert expit(slope * np.array([-3.0, -1.0, 1.0]) + offset) == pytest.approx([0.25, 0.5, 0.75], abs=1e-3)
    # One of each: Platt's targets are 1/3 and 2/3, which two points beside the threshold reach.
    slope, offset = fit_calibration(np.array([0, 1]), np.array([10.0, 12.0]), 11.0)
    assert expit(slope * np.array([10.0, 11.0, 12.0]) + offset) == pytest.approx([1 / 3, 0.5, 2 / 3], abs=1e-4)
    for nothing in (np.full(2, 0.3), np.array([0.9, 0.8])):
        assert fit_calibration(np.array([0, 1]), nothing, 0.85) == (1.0, 0.0)
    assert fit_calibration(np.array([1, 1]), np.array([0.1, 0.2]), 0.0) == (1.0, 0.0)


def test_the_calibration_error_by_hand():
    # In the bin from 0.2: two of 0.25 with one defect, off by 0.25; in the last one of 0.95 that is none, off by 0.95.
    assert calibration_error(np.array([0, 1, 0]), np.array([0.25, 0.25, 0.95])) == pytest.approx((2 * 0.25 + 0.95) / 3)
    assert calibration_error(np.array([1, 0]), np.array([1.0, 0.0])) == 0


def test_thresholds_by_hand_maximise_f1_with_a_margin():
    labels, scores = np.array([0, 1, 0, 0, 1]), np.array([-3.0, 9.0, 2.0, 0.0, 5.0])
    assert f1_threshold(labels, scores) == pytest.approx(3.5)
    # F1 of the cuts: 0.5 -> 4/5, 4.5 -> 1/2, 8.5 -> 2/3
    assert f1_threshold(np.array([0, 1, 0, 1]), np.array([0.0, 1.0, 8.0, 9.0])) == pytest.approx(0.5)
    assert f1_threshold(np.zeros(3, int), np.array([1.0, 7.0, 3.0])) == 7.0  # without a choice
    assert metrics.novelty_threshold(np.arange(1.0, 20.0)) == 19.0  # conformal rank ceil(20 * 0.95) of 19
    assert metrics.novelty_threshold(np.arange(1.0, 40.0)) == 38.0  # rank ceil(40 * 0.95) of 39
    assert metrics.novelty_threshold(np.array([0.3, 0.1])) == 0.3
    rng = np.random.default_rng(0)
    draws = [(rng.exponential(size=500), rng.exponential(size=39)) for _ in range(400)]
    rates = [(new > metrics.novelty_threshold(normal)).mean() for new, normal in draws]
    assert 0.035 < np.mean(rates) <= 0.055


def test_verdicts_and_classification_by_hand_and_by_scikit_learn():
    assert metrics.verdicts(np.array([1, 0, 1, 0]), np.array([1, 1, 0, 0])) == ["TP", "FP", "FN", "TN"]
    labels, scores = np.array([1, 1, 1, 1, 0, 0]), np.array([0.9, 0.8, 0.2, 0.7, 0.6, 0.1])
    calls = (scores >= 0.5).astype(int)
    found = metrics.classification(labels, calls, scores)
    expected = {"accuracy": 4 / 6, "precision": 3 / 4, "recall": 3 / 4, "f1": 3 / 4, "auroc": 7 / 8}  # 7 of 8 pairs
    assert found == pytest.approx(expected | {"average_precision": (1 + 1 + 1 + 4 / 5) / 4})
    assert found == metrics.classification(labels, calls, scores * 4000 - 100), "only the order of the scores counts"
    one_class = metrics.classification(labels[:4], np.ones(4, int), scores[:4])
    assert np.isnan(one_class["auroc"]) and np.isnan(one_class["average_precision"])
    sound = metrics.classification(np.zeros(3, int), np.array([0, 0, 1]), scores[:3])
    assert sound["accuracy"] == pytest.approx(2 / 3) and sound["precision"] == sound["f1"] == 0
    assert np.isnan(sound["recall"]) and np.isnan(metrics.classification(labels, 0 * calls, scores)["precision"])
    rng = np.random.default_rng(3)
    for decimals in (1, 6):  # with ties and without
        labels, scores = rng.integers(0, 2, 200), rng.random(200).round(decimals)
        called = (scores > 0.4).astype(int)
        assert metrics.auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
        assert metrics.average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores))
        assert metrics.f1(labels, called) == pytest.approx(f1_score(labels, called))


def peaked(*peaks: float) -> NDArray:
    return np.insert(np.full((len(peaks), 5), -5.0), 5, peaks, axis=1).reshape(-1, 2, 3)


def test_the_scale_begins_where_normal_maps_end():
    scale = metrics.fit_scale(peaked(0, 1, 2, 10, 20, 30), np.array([0, 0, 0, 1, 1, 1]))
    assert scale == MapScale(floor=2.0, ceiling=20.0) and scale.separates
    scale = metrics.fit_scale(peaked(*range(1, 41), 50), np.array([0] * 40 + [1]))
    assert scale.floor == 39  # which one normal picture in twenty may exceed
    assert scale.finds(peaked(38, 39, 39.5)).tolist() == [False, False, True]
    for label in (0, 1):
        assert metrics.fit_scale(peaked(1, 2), np.array([label, label])) is None
    scale = metrics.fit_scale(peaked(1, 2, -3, 7), np.array([0, 0, 1, 1]), zero=0.0)
    assert scale == metrics.MapScale(0.0, 2.0)  # a zero of its own, and the middle of -3 and 7
    # A calm map shows nothing and a strong one is cut.
    shown = MapScale(floor=2.0, ceiling=4.0).apply(np.array([[-1.0, 2.0], [3.0, 9.0]]))
    assert shown.tolist() == [[0.0, 0.0], [0.5, 1.0]]
    scale = MapScale(floor=2.0, ceiling=1.0)  # shows only what exceeds the floor
    assert not scale.separates and scale.apply(np.array([[1.5, 2.5]])).tolist() == [[0.0, 1.0]]
