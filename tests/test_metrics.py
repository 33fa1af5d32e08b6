from __future__ import annotations

import math
import pickle
from collections.abc import Sequence

import pytest
import torch

from gainmtl_lib import metrics
from gainmtl_lib.metrics import (
    CamIoU,
    Dice,
    EnergyInside,
    GridIoU,
    LocalizationIoU,
    cam_iou,
    dice,
    energy_inside,
    grid_iou,
    mask_iou,
    normalize_maps,
    pixel_accuracy,
    point_game,
    resize_maps,
)

PER_IMAGE = [cam_iou, point_game, energy_inside, mask_iou, dice, pixel_accuracy]
CLASSES = [CamIoU, EnergyInside, GridIoU, LocalizationIoU, Dice]


def images(*pictures: Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.tensor(pictures, dtype=torch.float32).unsqueeze(1)


# two defect pixels in a 2 x 4 picture
MASK = images([[1, 1, 0, 0], [0, 0, 0, 0]])


def test_normalize_maps_is_per_image():
    maps = images([[0, 2], [4, 1]], [[-1, -3], [-2, -1]])
    assert torch.equal(normalize_maps(maps), images([[0, 0.5], [1, 0.25]], [[1, 0], [0.5, 1]]))


@pytest.mark.parametrize("value", [0.0, 0.3, -7.1, 1e-30])
def test_constant_map_normalizes_to_zero_even_after_upsampling(value):
    upsampled = resize_maps(torch.full((1, 1, 3, 5), value), torch.zeros(1, 1, 37, 41))
    assert not normalize_maps(upsampled).any()


def test_a_map_that_varies_little_around_zero_is_not_constant():
    assert torch.equal(normalize_maps(images([[1e-20, 0, 0, 0]])), images([[1, 0, 0, 0]]))


def test_resize_is_bilinear_without_corner_alignment():
    resized = resize_maps(images([[0, 1]]), torch.zeros(1, 1, 1, 4))
    assert torch.allclose(resized, images([[0, 0.25, 0.75, 1]]))


@pytest.mark.parametrize(("maps", "masks"), [((1, 1, 2, 2), (2, 1, 2, 2)), ((2, 2, 2), (2, 1, 2, 2))])
def test_shapes_that_do_not_belong_together_are_an_error(maps, masks):
    with pytest.raises(ValueError, match=r"maps must be \(B, 1, h, w\) and masks \(B, 1, H, W\) with the same B, got"):
        cam_iou(torch.zeros(maps), torch.ones(masks))


def test_cam_iou_counted_by_hand():
    # normalised: 1 .5 .5 0 / 0 ... : three pixels on, two of them in the defect
    assert cam_iou(images([[5, 3, 3, 1], [1, 1, 1, 1]]), MASK).tolist() == pytest.approx([2 / 3])
    assert cam_iou(images([[5, 3, 3, 1], [1, 1, 1, 1]]), MASK, threshold=0.6).tolist() == pytest.approx([1 / 2])
    assert cam_iou(images([[1, 1, 1, 1], [1, 1, 1, 1]]), MASK).tolist() == [0]


def test_point_game_counted_by_hand():
    hit, miss = [[9, 1, 8, 0], [0, 0, 0, 0]], [[8, 1, 9, 0], [0, 0, 0, 0]]
    tie, constant = [[9, 0, 9, 9], [0, 9, 0, 0]], [[3, 3, 3, 3], [3, 3, 3, 3]]
    scores = point_game(images(hit, miss, tie, constant), MASK.expand(4, -1, -1, -1))
    assert scores.tolist() == [1, 0, 0.25, 0]


def test_energy_inside_counted_by_hand():
    maps = images([[3, -5, 1, 0], [0, 0, 0, 0]], [[-1, -2, -3, 0], [0, 0, 0, 0]], [[1, 1, 1, 1], [1, 1, 1, 1]])
    assert energy_inside(maps, MASK.expand(3, -1, -1, -1)).tolist() == [0.75, 0, 0.25]


def test_grid_iou_counted_by_hand():
    # Cells hold the shares 1/2 and 0; upsampled (1/2 3/8 1/8 0 in both rows) and normalised 1 3/4 1/4 0,
    # so that the first two columns are on, four pixels, of which the two of the defect.
    assert grid_iou(MASK, (1, 2)).tolist() == pytest.approx([0.5])
    assert grid_iou(MASK, (2, 4)).tolist() == [1]
    assert grid_iou(MASK, (1, 1)).tolist() == [0]


def test_predicted_masks_counted_by_hand():
    prob = images([[0.9, 0.4, 0.5, 0.1], [0.7, 0, 0, 0]])  # on: one defect pixel, two others; one missed
    assert mask_iou(prob, MASK).tolist() == pytest.approx([1 / 4])
    assert dice(prob, MASK).tolist() == pytest.approx([2 * 1 / (3 + 2)])
    assert pixel_accuracy(prob, MASK).tolist() == pytest.approx([5 / 8])
    assert mask_iou(prob, MASK, threshold=0.4).tolist() == pytest.approx([2 / 4])
    assert mask_iou(torch.zeros_like(prob), MASK).tolist() == [0]


@pytest.mark.parametrize("score", PER_IMAGE)
def test_empty_mask_has_no_answer(score):
    maps, masks = torch.rand(2, 1, 2, 4), torch.cat([MASK, torch.zeros_like(MASK)])
    assert score(maps, masks).isnan().tolist() == [False, True]
    assert grid_iou(masks, (1, 2)).isnan().tolist() == [False, True]


@pytest.mark.parametrize("score", PER_IMAGE)
def test_values_that_are_not_finite_do_not_take_an_image_out(score):
    maps = torch.full((1, 1, 2, 4), torch.nan)
    assert score(maps, MASK).item() == pytest.approx(0.75 if score is pixel_accuracy else 0)


@pytest.mark.parametrize("score", PER_IMAGE)
def test_half_precision_scores_like_float(score):
    maps = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    masks = (torch.arange(64) % 5 == 0).float().view(1, 1, 8, 8).expand(3, -1, -1, -1)
    assert torch.equal(score(maps, masks), score(maps.float(), masks))
    assert score(maps, masks).dtype == torch.float32


@pytest.mark.parametrize("kind", CLASSES)
def test_batches_add_up_to_one_pass(kind):
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(7, 1, 4, 4, generator=generator)
    masks = torch.zeros(7, 1, 16, 16)
    for row in range(1, 6):  # the first and the last have no mask
        masks[row, :, row : 3 * row, 2 : 3 + 2 * row] = 1
    whole, parts = kind(), kind()
    whole.update(maps, masks)
    for piece in (slice(0, 1), slice(1, 4), slice(4, 7)):
        parts.update(maps[piece], masks[piece])
    assert parts.compute().item() == pytest.approx(whole.compute().item())
    assert parts.pooled().item() == pytest.approx(whole.pooled().item())
    assert (parts.count, parts.skipped) == (whole.count, whole.skipped) == (5, 2)


@pytest.mark.parametrize("kind", CLASSES)
def test_empty_masks_are_skipped_not_scored(kind):
    metric = kind()
    metric.update(torch.rand(2, 1, 2, 4), torch.zeros(2, 1, 2, 4))
    assert math.isnan(metric.compute())
    assert math.isnan(metric.pooled())
    assert metric.skipped == 2


@pytest.mark.parametrize(
    ("kind", "score"),
    [
        (CamIoU, cam_iou),
        (EnergyInside, energy_inside),
        (LocalizationIoU, mask_iou),
        (Dice, dice),
    ],
)
def test_class_is_the_mean_of_its_function(kind, score):
    maps = torch.rand(4, 1, 2, 4, generator=torch.Generator().manual_seed(2))
    metric = kind()
    metric.update(maps, MASK.expand(4, -1, -1, -1))
    assert metric.compute().item() == pytest.approx(score(maps, MASK.expand(4, -1, -1, -1)).mean().item())


def test_pooled_weighs_by_area():
    metric = LocalizationIoU()
    # first: defect of 2, both found; second: defect of 6, three found: IoU 1 and 1/2, pooled 5 / 8
    masks = torch.cat([MASK, images([[1, 1, 1, 1], [1, 1, 0, 0]])])
    metric.update(torch.cat([MASK, images([[1, 1, 1, 0], [0, 0, 0, 0]])]), masks)
    assert metric.compute().item() == pytest.approx(0.75)
    assert metric.pooled().item() == pytest.approx(5 / 8)


def test_grid_iou_class_reads_the_grid_of_the_maps():
    metric = GridIoU()
    metric.update(torch.rand(1, 1, 1, 2), MASK)
    assert metric.compute().item() == grid_iou(MASK, (1, 2)).item()


def test_metrics_can_be_sent_to_another_process():
    for kind in CLASSES:
        assert pickle.loads(pickle.dumps(kind())).skipped == 0


def test_metrics_stay_outside_the_graph():
    maps = torch.rand(1, 1, 2, 4, requires_grad=True)
    metric = metrics.CamIoU()
    metric.update(maps, MASK)
    assert not metric.compute().requires_grad
