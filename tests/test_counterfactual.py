from __future__ import annotations

import pytest
import torch
from torch import nn

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.model import MODES, Counterfactual, as_at_inference, control_masks, dilated, mask_cells, surroundings


def box(height: int, width: int, rows: slice, columns: slice) -> torch.Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[:, :, rows, columns] = 1
    return mask


def test_a_cell_counts_when_it_holds_one_defect_pixel():
    mask = box(8, 8, slice(5, 6), slice(2, 3))
    expected = torch.zeros(1, 1, 4, 4)
    expected[0, 0, 2, 1] = 1
    assert torch.equal(mask_cells(mask, (4, 4)), expected)
    assert not mask_cells(mask * 0.5, (4, 4)).any()


def test_dilation_grows_by_a_square():
    assert torch.equal(dilated(box(7, 9, slice(3, 4), slice(0, 1)), 2), box(7, 9, slice(1, 6), slice(0, 3)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [True, False])
def test_features_outside_the_dilated_region_are_unchanged(mode, training):
    torch.manual_seed(0)
    suppress = Counterfactual(16, mode=mode).train(training)
    features = torch.randn(2, 16, 8, 8)
    masks = torch.cat([box(64, 64, slice(16, 20), slice(16, 40)), box(64, 64, slice(0, 8), slice(60, 64))])
    region = dilated(mask_cells(masks, (8, 8)), 1).bool()
    assert region[0].sum() == 3 * 5 and region[1].sum() == 2 * 2
    changed = (suppress(features, masks) != features).any(1, keepdim=True)
    assert torch.equal(changed, region)


def test_zero_and_mean_by_hand():
    features = torch.arange(49.0).view(1, 1, 7, 7)
    mask = box(7, 7, slice(3, 4), slice(3, 4))  # the dilated region is the 3 x 3 in the middle, the ring the rest
    region = box(7, 7, slice(2, 5), slice(2, 5)).bool()
    assert (Counterfactual(1, mode="zero")(features, mask)[region] == 0).all()
    features = torch.where(region, features, 2.0)
    torch.testing.assert_close(Counterfactual(1, mode="mean")(features, mask), torch.full((1, 1, 7, 7), 2.0))


def test_only_near_features_count_as_surroundings():
    features = torch.zeros(1, 1, 1, 9)
    features[..., 1:3] = 4.0
    features[..., 7:] = 100.0
    region = torch.zeros(1, 1, 1, 9)
    region[..., 3:5] = 1
    assert surroundings(features, region).item() == 2.0  # (4 + 4 + 0 + 0) / 4
    assert surroundings(features, torch.ones_like(region)).item() == 0.0


@pytest.mark.parametrize("mode, count", [("learned", True), ("mean", False), ("zero", False)])
def test_only_the_learned_mode_has_parameters(mode, count):
    assert bool(list(Counterfactual(8, mode=mode).parameters())) == count


def test_every_learned_parameter_is_moved():
    suppress = Counterfactual(8)
    suppress(
        torch.randn(2, 8, 8, 8), box(8, 8, slice(3, 5), slice(3, 5)).expand(2, -1, -1, -1)
    ).square().sum().backward()
    assert [name for name, p in suppress.named_parameters() if p.grad is None] == []


def test_an_unknown_mode_is_named():
    with pytest.raises(ModelError, match="counterfactual_mode must be one of learned, mean, zero, got 'erase'"):
        Counterfactual(8, mode="erase")


def test_as_at_inference_leaves_statistics_and_modes_alone():
    module = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.9), nn.BatchNorm2d(2).eval())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    inputs = torch.randn(3, 2, 4, 4)
    with as_at_inference(module):
        torch.testing.assert_close(module(inputs), inputs, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert [part.training for part in module] == [True, True, False]


def test_modes_come_back_after_an_error():
    module = nn.Dropout()
    with pytest.raises(RuntimeError), as_at_inference(module):
        raise RuntimeError
    assert module.training


def test_the_control_is_the_same_mask_elsewhere():
    masks = torch.cat([box(48, 64, slice(2, 10), slice(5, 25)), box(48, 64, slice(30, 48), slice(60, 64))])
    masks[0, 0, 4:6, 5:10] = 0  # not a plain rectangle
    moved, placed = control_masks(masks, margin=5)
    assert placed.tolist() == [True, True] and moved.shape == masks.shape
    for before, after in zip(masks[:, 0], moved[:, 0]):
        assert after.sum() == before.sum()
        (r0, c0), (r1, c1) = before.nonzero()[0].tolist(), after.nonzero()[0].tolist()
        assert torch.equal(torch.roll(before, (r1 - r0, c1 - c0), (0, 1)), after)
        assert not (dilated(before[None, None], 5)[0, 0] * after).any()
        rows, columns = before.any(1).sum(), before.any(0).sum()
        span = after.nonzero().amax(0) - after.nonzero().amin(0) + 1
        assert span[1] == columns and span[0] == rows  # in one piece, not wrapped around the border
    again, _ = control_masks(masks, margin=5)
    assert torch.equal(moved, again)


def test_controls_of_different_defects_lie_in_different_places():
    masks = torch.cat([box(64, 64, slice(20, 24), slice(k, k + 4)) for k in range(8, 48, 5)])
    moved, placed = control_masks(masks)
    assert placed.all()
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in moved[:, 0]}) > 4


def test_what_cannot_be_placed_is_flagged():
    masks = torch.cat([box(32, 32, slice(0, 20), slice(0, 20)), torch.zeros(1, 1, 32, 32), torch.ones(1, 1, 32, 32)])
    moved, placed = control_masks(masks)
    assert placed.tolist() == [False, False, False]
    assert not moved.any()


def test_the_default_margin_is_a_sixteenth():
    # Of 32 columns, 15 + 2 + 15 are just enough, 16 + 2 + 16 too many.
    assert control_masks(box(32, 32, slice(0, 32), slice(0, 15)))[1].item()
    assert not control_masks(box(32, 32, slice(0, 32), slice(0, 16)))[1].item()


def test_the_only_place_is_found():
    moved, placed = control_masks(box(32, 32, slice(0, 32), slice(0, 15)))
    assert placed.item() and torch.equal(moved, box(32, 32, slice(0, 32), slice(17, 32)))


def test_the_control_stays_inside_a_letterboxed_picture():
    inside = box(64, 64, slice(16, 48), slice(0, 64)).bool()
    masks = torch.cat([box(64, 64, slice(20, 26), slice(k, k + 6)) for k in range(0, 56, 4)])
    anywhere, _ = control_masks(masks)
    assert (anywhere * ~inside).any()  # most places are in the bars
    moved, placed = control_masks(masks, inside=inside.expand(len(masks), -1, -1, -1))
    assert placed.all() and torch.equal(moved.sum((1, 2, 3)), masks.sum((1, 2, 3)))
    assert not (moved * ~inside).any()


def test_a_picture_without_room_has_no_control_though_its_bars_have():
    mask, inside = box(64, 64, slice(16, 48), slice(0, 40)), box(64, 64, slice(16, 48), slice(0, 64)).bool()
    assert control_masks(box(64, 64, slice(20, 26), slice(0, 40)))[1].item()
    assert not control_masks(mask, inside=inside)[1].item()


def test_a_picture_that_fills_the_input_changes_nothing():
    masks = torch.cat([box(48, 64, slice(k, k + 5), slice(2 * k, 2 * k + 9)) for k in range(3, 20, 4)])
    moved, placed = control_masks(masks, inside=torch.ones_like(masks, dtype=torch.bool))
    assert torch.equal(moved, control_masks(masks)[0]) and placed.all()
