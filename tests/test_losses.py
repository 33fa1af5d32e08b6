"""The loss terms counted by hand, the sign of their gradients, and the stages they count from."""

import math

import pytest
import torch
from torch import Tensor

from gainmtl_lib import losses
from gainmtl_lib.dataset import Batch
from gainmtl_lib.losses import GainLoss, Schedule
from gainmtl_lib.model import GainOutput
from gainmtl_lib.settings import STRATEGY_WEIGHTS, TERMS

LN2 = math.log(2)
YES, NO = torch.tensor([True]), torch.tensor([False])


def images(*pictures: list[list[float]]) -> Tensor:
    return torch.tensor(pictures, dtype=torch.float32).unsqueeze(1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MASK = images([[1, 1, 0, 0], [0, 0, 0, 0]])


def cam_guide(cam: Tensor, masks: Tensor, has_mask: Tensor, gain: float = 1.0, offset: float = 0.0) -> Tensor:
    return losses.cam_guide_loss(cam, masks, has_mask, torch.tensor(gain), torch.tensor(offset))


GUIDANCE = [losses.guided_attention_loss, cam_guide, losses.localization_loss]


def test_focal_loss_counted_by_hand_weighs_the_rarer_class_more_and_stays_finite():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])  # p_t = 1/2 and 3/4
    expected = (0.7 * 0.5**2 * LN2 + 0.3 * 0.25**2 * -math.log(0.75)) / 2
    assert losses.focal_loss(logits, torch.tensor([1, 0]), gamma=2.0, alpha=0.7).item() == pytest.approx(expected)
    assert losses.focal_alpha(normals=90, defectives=10) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="needs training images of both classes, got 5 normal and 0 defective"):
        losses.focal_alpha(normals=5, defectives=0)
    certain = torch.tensor([[1e4, -1e4], [1e4, -1e4], [0.0, 200.0]], requires_grad=True)
    for gamma in (0.0, 0.5, 2.0):
        loss = losses.focal_loss(certain, torch.tensor([0, 1, 1]), gamma=gamma, alpha=0.5)
        assert loss.isfinite() and torch.autograd.grad(loss, certain)[0].isfinite().all()


def test_guided_attention_and_localization_counted_by_hand_and_per_image():
    # p = 1/2 on eight pixels, two of them defect: intersection 1, areas 4 + 2
    dice, iou = 1 - 2 * 1 / 6, 1 - 1 / 5
    for grid in ((2, 4), (1, 2)):
        loss = losses.guided_attention_loss(torch.zeros(1, 1, *grid), MASK, YES)
        assert loss.item() == pytest.approx(LN2 + dice + iou)
    assert losses.localization_loss(torch.zeros(1, 1, 2, 4), MASK, YES).item() == pytest.approx(LN2 + dice)
    # A large defect that is found and a small one that is missed: Dice 0 and 1, BCE 0 and 50 / 8.
    masks = torch.cat([torch.ones(1, 1, 2, 4), images([[1, 0, 0, 0], [0, 0, 0, 0]])])
    logits = torch.cat([torch.full((1, 1, 2, 4), 50.0), torch.full((1, 1, 2, 4), -50.0)])
    loss = losses.localization_loss(logits, masks, torch.tensor([True, True]))
    assert loss.item() == pytest.approx((0 + (1 + 50 / 8)) / 2)


def test_cam_guide_counted_by_hand_with_a_bounded_gradient():
    # already standardised: logits 1 on the defect, -1 beside it; areas 2 + 2, intersection 2 p
    cam, mask, p = images([[1, 1], [-1, -1]]), images([[1, 1], [0, 0]]), 1 / (1 + math.exp(-1))
    assert cam_guide(cam, mask, YES).item() == pytest.approx(-math.log(p) + (1 - 2 * (2 * p) / 4))
    q = 1 / (1 + math.exp(4))  # logits 0 and -4
    bce, dice = (LN2 - math.log(1 - q)) / 2, 1 - 2 * 1 / (1 + 2 * q + 2)
    assert cam_guide(cam, mask, YES, gain=2.0, offset=-2.0).item() == pytest.approx(bce + dice)
    for scale in (0.0, 1e-8, 1e-4, 1e4):
        cam = (3 + scale * noise(1, 1, 2, 4)).requires_grad_()
        (grad,) = torch.autograd.grad(cam_guide(cam, MASK, YES), cam)
        assert grad.isfinite().all() and grad.abs().max() < 1 / 0.01


def test_normal_attention_counterfactual_and_consistency_counted_by_hand():
    even, one_cell, half = [[3, 3], [3, 3]], [[99, 0], [0, 0]], [[99, 99], [0, 0]]
    for picture, expected in ((even, 0.0), (one_cell, 1.0), (half, 1 - math.log(2) / math.log(4)), ([[5.0]], 0.0)):
        assert losses.normal_attention_loss(images(picture), YES).item() == pytest.approx(expected, abs=1e-6)
    assert losses.normal_attention_loss(torch.zeros(1, 1, 2, 2), YES, kind="zero").item() == pytest.approx(LN2)
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 99.0]])
    assert losses.counterfactual_loss(logits, torch.tensor([True, False])).item() == pytest.approx(-math.log(0.75))
    attention = torch.zeros(1, 1, 1, 2)  # 1/2 in both cells; pooled localization 1 and 1/2
    localization = images([[99, 99, 99, 99], [99, 99, -99, -99]])
    assert losses.consistency_loss(attention, localization, YES).item() == pytest.approx(0.25 / 2)


@pytest.mark.parametrize("loss", GUIDANCE)
@pytest.mark.parametrize("size", [(2, 4), (4, 8)])
def test_guidance_raises_inside_and_lowers_outside(loss, size):
    logits = (0.1 * noise(1, 1, 2, 4, seed=1)).requires_grad_()
    loss(logits, torch.nn.functional.interpolate(MASK, size=size), YES).backward()
    assert (logits.grad[MASK == 1] < 0).all() and logits.grad[MASK == 0].mean() > 0
    assert loss is cam_guide or (logits.grad[..., 3] > 0).all()


def test_the_other_terms_pull_as_they_should():
    logits = images([[2, 0], [0, -3]]).requires_grad_()
    terms = [losses.normal_attention_loss(logits, YES, kind=kind) for kind in ("entropy", "zero")]
    even, zero = (torch.autograd.grad(term, logits)[0].flatten() for term in terms)
    assert even[0] > 0 and (even[1:] < 0).all() and (zero > 0).all()  # the peak alone, every cell
    attention, localization = torch.full((1, 1, 1, 2), -1.0), torch.full((1, 1, 2, 4), 1.0)
    term = losses.consistency_loss(attention.requires_grad_(), localization.requires_grad_(), YES)
    up, down = torch.autograd.grad(term, (attention, localization))
    assert (up < 0).all() and (down > 0).all()
    logits = torch.zeros(1, 2, requires_grad=True)
    losses.counterfactual_loss(logits, YES).backward()
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]


def test_without_an_image_to_apply_to_a_term_is_zero_and_attached():
    x = torch.randn(1, 1, 2, 4, requires_grad=True)
    found = [term(x, MASK, NO) for term in GUIDANCE] + [losses.normal_attention_loss(x, NO, kind="zero")]
    found += [losses.consistency_loss(x, torch.zeros(1, 1, 4, 8), NO), losses.counterfactual_loss(x.view(1, 8), NO)]
    for value in found:
        assert value.item() == 0 and not torch.autograd.grad(value, x)[0].any()


@pytest.mark.parametrize("loss", GUIDANCE)
def test_images_without_a_mask_do_not_count_and_half_precision_is_computed_in_float32(loss):
    logits, masks = noise(3, 1, 2, 4, seed=2), torch.cat([MASK, torch.zeros_like(MASK), MASK.flip(3)])
    both = loss(logits, masks, torch.tensor([True, False, True]))
    alone = [loss(logits[k : k + 1], masks[k : k + 1], YES) for k in (0, 2)]
    assert both.item() == pytest.approx(torch.stack(alone).mean().item())
    for dtype in (torch.float16, torch.bfloat16):
        half = logits[:1].to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(half, MASK.to(dtype), YES)
        assert value.dtype == torch.float32 and value.item() == loss(half.float(), MASK, YES).item()


def make_batch(labels: list[int], has_mask: list[bool]) -> Batch:
    present = torch.tensor(has_mask)
    masks = MASK.repeat_interleave(4, 2).repeat_interleave(4, 3) * present[:, None, None, None]  # (B, 1, 8, 16)
    return Batch(torch.rand(len(labels), 3, 8, 16), torch.tensor(labels), masks, present, torch.arange(len(labels)))


SHAPES = dict.fromkeys(("logits", "cls_logits", "attended_cls_logits", "cf_logits"), (2,))
SHAPES |= dict.fromkeys(("cam", "cls_cam", "attention_logits"), (1, 2, 4)) | {"localization_logits": (1, 8, 16)}


def make_output(size: int) -> GainOutput:
    tensors = {name: noise(size, *of, seed=k).requires_grad_() for k, (name, of) in enumerate(SHAPES.items())}
    return GainOutput(**tensors)


def make_loss(**changes) -> GainLoss:
    return GainLoss(**{"focal_gamma": 2.0, "focal_alpha": 0.6} | changes)


@pytest.mark.parametrize("strategy", STRATEGY_WEIGHTS)
def test_total_is_the_weighted_sum_of_the_terms_in_force(strategy):
    weights = STRATEGY_WEIGHTS[strategy]
    found = make_loss()(make_output(3), make_batch([0, 1, 1], [False, True, False]), weights)
    in_force = [term for term in TERMS if weights[term] > 0]
    assert list(found) == [*in_force, "total"]
    assert found["total"].item() == pytest.approx(sum(weights[term] * found[term].item() for term in in_force))
    assert all(value.ndim == 0 and value.requires_grad for value in found.values())


MOVED = {"cls": {"cls_logits"}, "am": {"attended_cls_logits"}, "cam_guide": {"cls_cam", "cam"}}
MOVED |= {"loc": {"localization_logits"}, "guide": {"attention_logits"}, "cf": {"cf_logits"}}
MOVED |= {"consist": {"attention_logits", "localization_logits"}, "evidence": {"cam"}}


def test_evidence_is_pulled_up_on_the_defect_and_down_where_it_is_high_off_it_however_small_it_is():
    evidence, masks = torch.zeros(2, 1, 4, 4, requires_grad=True), torch.zeros(2, 1, 4, 4)
    masks[0, 0, 1, 1] = 1
    known = torch.tensor([True, True])
    value = losses.evidence_loss(evidence, masks, known)
    # Logit 0: BCE is log 2 inside and outside alike; Dice 1 - 2 * 0.5 / (8 + 1).
    assert value.item() == pytest.approx((2 * LN2 + LN2 + 1 - 1 / 9) / 2, rel=1e-5)
    value.backward()
    assert evidence.grad[0, 0, 1, 1] < 0 and (evidence.grad[0].flatten()[[0, 1, 2]] > 0).all()
    assert (evidence.grad[1] > 0).sum() == 1
    # A defect without a mask is not among the known: it speaks through the margin alone.
    assert losses.evidence_loss(evidence, masks, torch.tensor([False, False])).item() == 0
    alone = losses.evidence_loss(evidence[1:], masks[1:], known[1:])
    second = losses.evidence_loss(evidence, masks, torch.tensor([False, True]))
    torch.testing.assert_close(second, alone)
    # The three hardest of fifteen pixels off the defect count; where there is none 1 %, the hardest.
    with torch.no_grad():
        evidence[0, 0, 0, 3], evidence[0, 0, 1, 2], evidence[1, 0, 3, 3] = 4.0, 9.0, 5.0
    hard = [math.log1p(math.exp(value)) for value in (4, 9, 5)]
    both = 0.5 + 0.5 * 13 + 1 / (1 + math.exp(-4)) + 1 / (1 + math.exp(-9))
    expected = LN2 + (hard[0] + hard[1] + LN2) / 3 + 1 - 2 * 0.5 / (both + 1)
    for row, value in enumerate((expected, hard[2])):
        one = slice(row, row + 1)
        assert losses.evidence_loss(evidence[one], masks[one], known[one]).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("term", TERMS)
def test_each_term_moves_its_outputs_and_nothing_else(term):
    output = make_output(2)
    make_loss()(output, make_batch([0, 1], [False, True]), {term: 1.0})["total"].backward()
    leaves = {name: output[name] for name in SHAPES}
    assert {name for name, leaf in leaves.items() if leaf.grad is not None and leaf.grad.any()} == MOVED[term]


@pytest.mark.parametrize("labels", [[0, 0], [1, 1]])
def test_a_batch_without_masks_adds_exactly_nothing(labels):
    loss = make_loss()
    found = loss(make_output(2), make_batch(labels, [False, False]), dict.fromkeys(TERMS, 1.0))
    assert all(found[term].item() == 0 and found[term].requires_grad for term in ("cam_guide", "loc", "cf", "consist"))
    assert (found["guide"].item() == 0) == (labels == [1, 1])
    found["total"].backward()
    assert loss.cam_offset.grad == 0  # attached: Adam's averages go on


def test_guide_joins_defects_and_normals_and_cam_guide_its_targets():
    output, batch = make_output(3), make_batch([0, 1, 1], [False, True, False])
    logits = output.attention_logits
    on_defect = losses.guided_attention_loss(logits[1:2], batch.masks[1:2], YES).item()
    for kind in ("entropy", "zero"):
        expected = on_defect + losses.normal_attention_loss(logits[:1], YES, kind=kind).item()
        value = make_loss(normal_attention=kind)(output, batch, {"guide": 0.5})["guide"]
        assert value.item() == pytest.approx(expected)
    targets = [make_loss(cam_guide_target=target) for target in ("cls", "deciding", "both")]
    cls, deciding, both = (loss(output, batch, {"cam_guide": 1.0})["cam_guide"].item() for loss in targets)
    assert cls != deciding and both == pytest.approx((cls + deciding) / 2)


S5 = Schedule(STRATEGY_WEIGHTS["S5"])
SECOND = {"cls", "am", "guide", "cam_guide"}


@pytest.mark.parametrize(("progresses", "stage", "in_force"), [
    ((0.0, 0.2499), 1, {"cls"}),
    ((0.25, 0.4999), 2, SECOND),
    ((0.5,), 3, SECOND | {"consist"}),  # loc starts from 0
    ((0.51, 0.7499), 3, SECOND | {"loc", "consist"}),
    ((0.75, 0.9999, 1.0), 4, set(TERMS) - {"evidence"}),
])  # fmt: skip
def test_stages_of_s5_and_of_a_strategy_without_some_terms(progresses, stage, in_force):
    for progress in progresses:
        weights = S5.weights(progress)
        assert S5.stage(progress) == stage and list(weights) == list(TERMS)
        assert {term for term, weight in weights.items() if weight > 0} == in_force
        assert all(weights[term] == STRATEGY_WEIGHTS["S5"][term] for term in in_force - {"loc"})
        fewer = Schedule(STRATEGY_WEIGHTS["S2"]).weights(progress)
        assert {term for term, weight in fewer.items() if weight > 0} == in_force & {"cls", "cam_guide"}
        assert Schedule(STRATEGY_WEIGHTS["S8"]).weights(progress) == STRATEGY_WEIGHTS["S8"]  # both of its terms at once


def test_stages_without_length_boundaries_and_the_warm_up():
    found = {(0, 0, 0, 1): ({4}, 0), (0.5, 0, 0, 0.5): ({1, 4}, 0.5), (0, 0.5, 0.5, 0): ({2, 3}, 0.5)}
    for ratios, (stages, final) in (found | {(0.25, 0.25, 0.25, 0.25): ({1, 2, 3, 4}, 0.75)}).items():
        schedule = Schedule(STRATEGY_WEIGHTS["S5"], ratios)
        assert {schedule.stage(step / 20) for step in range(21)} == stages and schedule.final_stage_start == final
    schedule = Schedule(STRATEGY_WEIGHTS["S5"], (0.1, 0.2, 0.3, 0.4))  # 0.1 + 0.2 > 0.3 in floating point
    assert [schedule.stage(step / 10) for step in range(10)] == [1, 2, 2, 3, 3, 3, 4, 4, 4, 4]
    assert schedule.weights(0.3)["loc"] == 0.0
    warmed = [S5.weights(0.5 + 0.25 * share)["loc"] for share in (0.0, 0.25, 0.375, 0.5, 0.9)]
    assert warmed == pytest.approx([0.0, 0.1, 0.15, 0.2, 0.2])
    assert [losses.mask_blend_alpha(progress) for progress in (0.0, 0.5, 0.75, 1.0)] == [0.5, 0.25, 0.125, 0.0]
