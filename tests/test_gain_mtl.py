from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from torch import nn

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.model import GAINMTLModel, dilated, fuse_attention, mask_cells

STRATEGIES = ("S1", "S2", "S3", "S4", "S5", "S6", "S7")
NARROW = {
    "backbone_arch": "b0",
    "pretrained": False,
    "use_mmpretrain": False,
    "map_stride": 8,
    "map_channels": 16,
    "attention_channels": 8,
    "fpn_channels": 8,
    "out_indices": (2, 3, 4),
    "head_channels": 16,
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def _built(**options) -> GAINMTLModel:
    torch.manual_seed(0)
    return GAINMTLModel(**NARROW | options)


def build(strategy: str = "S5", **options) -> GAINMTLModel:
    """A fresh copy: drawing the numbers takes longer than copying them."""
    return copy.deepcopy(_built(strategy=strategy, **options))


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def defects(count: int = 2) -> torch.Tensor:
    """The first image has a defect, the others none."""
    masks = torch.zeros(count, 1, 64, 64)
    masks[0, :, 16:28, 24:40] = 1
    return masks


def moved(model: nn.Module, output: torch.Tensor) -> set[str]:
    """Names of the parameters that a loss on `output` moves."""
    model.zero_grad()
    (output * torch.linspace(0.5, 1.5, output.numel()).view_as(output)).sum().backward(retain_graph=True)
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


# --- the record ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("training", [True, False])
def test_the_record_is_the_same_in_training_and_evaluation(strategy, training):
    output = build(strategy).train(training)(images(), defects())
    keys = output.keys()
    shapes = {key: None if output[key] is None else tuple(output[key].shape) for key in keys}
    map_shape, pixel_shape = (2, 1, 8, 8), (2, 1, 64, 64)
    three, four, five = strategy >= "S3", strategy >= "S4", strategy >= "S5"
    assert shapes == {
        "logits": (2, 2),
        "cam": map_shape,
        "cls_logits": (2, 2),
        "cls_cam": map_shape,
        "attended_cls_logits": (2, 2) if three else None,
        "attention_logits": map_shape if three else None,
        "attention_map": map_shape if three else None,
        "effective_attention": map_shape if three else None,
        "cf_logits": (2, 2) if five else None,
        "localization_logits": pixel_shape if four else None,
        "localization_map": pixel_shape if four else None,
    }
    deciding = output.attended_cls_logits if three else output.cls_logits
    assert output.logits is deciding


@pytest.mark.parametrize("map_stride", [4, 8, 16, 32])
def test_map_stride_sets_the_grid_of_the_maps(map_stride):
    output = build("S3", map_stride=map_stride, out_indices=(3, 4)).eval()(torch.rand(1, 3, 64, 96))
    assert output.cam.shape == output.cls_cam.shape == (1, 1, 64 // map_stride, 96 // map_stride)
    assert output.attention_map is not None and output.attention_map.shape == output.cam.shape


@pytest.mark.parametrize("strategy", ["S1", "S3", "S6"])
@pytest.mark.parametrize("map_stride", [8, 32])
def test_the_cam_identity_holds_for_both_heads(strategy, map_stride):
    model = build(strategy, map_stride=map_stride).eval()
    seen = {}
    heads = {"cls": model.cls_head}
    if model.attention is not None:
        heads["attended"] = model.attention.attended_cls_head
    for name, head in heads.items():
        head.register_forward_hook(lambda _, inputs, logits, name=name: seen.update({name: (inputs[0], logits)}))
    output = model(images())
    for name, cam in (("cls", output.cls_cam), ("attended" if strategy >= "S3" else "cls", output.cam)):
        features, logits = seen[name]
        head = heads[name]
        hidden = head.hidden(features.mean((2, 3)))
        bias = ((hidden > 0) * head.hidden.bias) @ (head.out.weight[1] - head.out.weight[0])
        bias = bias + head.out.bias[1] - head.out.bias[0]
        torch.testing.assert_close(cam.mean((1, 2, 3)) + bias, logits[:, 1] - logits[:, 0])


def test_attention_is_the_mean_of_both_heads_and_gates_the_refined_features():
    model = build("S3").eval()
    path = model.attention
    assert path is not None
    features = torch.randn(2, 16, 8, 8)
    refined, logits = path.attend(features)
    torch.testing.assert_close(refined, path.cbam(features))
    torch.testing.assert_close(logits, (path.attention_head(refined) + path.mining_head(features)) / 2)
    gate = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(path.adapt(refined, gate), path.adapter(refined * gate))


def test_images_are_normalised_with_the_backbones_own_numbers():
    model = build("S1").eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.full((1, 3, 64, 64), 0.5))
    expected = [(0.5 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor(expected))
    assert {"mean", "std"} <= model.state_dict().keys()


# --- parts and gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy, names",
    [
        ("S1", ["backbone", "projection", "cls"]),
        ("S2", ["backbone", "projection", "cls"]),
        ("S3", ["backbone", "projection", "cls", "attention"]),
        ("S4", ["backbone", "projection", "cls", "attention", "localization"]),
        ("S5", ["backbone", "projection", "cls", "attention", "localization", "counterfactual"]),
        ("S6", ["backbone", "projection", "cls", "attention", "localization", "counterfactual"]),
        ("S7", ["backbone", "projection", "cls", "attention", "localization", "counterfactual"]),
    ],
)
def test_only_the_strategys_parts_exist(strategy, names):
    model = build(strategy)
    parts = model.parts()
    assert list(parts) == names
    counted = sum(p.numel() for part in parts.values() for p in part.parameters())
    assert counted == sum(p.numel() for p in model.parameters())
    assert "projection" not in build(strategy, map_stride=32).parts()


@pytest.fixture(scope="module")
def gradients():
    """What a loss on each output of S5 moves, as the names of parameters."""
    model = build(dropout=0.0).train()
    output = model(images(4), defects(4))
    keys = (
        "cls_logits",
        "cls_cam",
        "attended_cls_logits",
        "cam",
        "attention_logits",
        "localization_logits",
        "cf_logits",
    )
    return {key: moved(model, output[key]) for key in keys}


def parts_moved(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    "key, parts",
    [
        ("cls_logits", {"backbone", "projection", "cls_head"}),
        ("cls_cam", {"backbone", "projection", "cls_head"}),
        ("attended_cls_logits", {"backbone", "projection", "attention"}),
        ("cam", {"backbone", "projection", "attention"}),
        ("attention_logits", {"backbone", "projection", "attention"}),
        ("localization_logits", {"backbone", "localization"}),
        ("cf_logits", {"backbone", "projection", "attention", "counterfactual"}),
    ],
)
def test_each_output_moves_its_parts_and_nothing_else(gradients, key, parts):
    assert parts_moved(gradients[key]) == parts


def test_inside_path_two(gradients):
    def inside(key: str) -> set[str]:
        return {name.split(".")[1] for name in gradients[key] if name.startswith("attention.")}

    everything = {"cbam", "attention_head", "mining_head", "adapter", "attended_cls_head"}
    assert inside("attended_cls_logits") == inside("cam") == everything
    assert inside("attention_logits") == {"cbam", "attention_head", "mining_head"}
    assert inside("cf_logits") == everything - {"attended_cls_head"}
    assert "attention.attention_head.log_temperature" in gradients["attention_logits"]


def test_every_parameter_is_moved_by_some_output(gradients):
    assert {name for name, _ in build().named_parameters()} - set().union(*gradients.values()) == set()


# --- path 3 ----------------------------------------------------------------------------------------------------------


def test_without_masks_there_is_no_counterfactual():
    assert build("S5").eval()(images()).cf_logits is None
    assert build("S5", use_counterfactual=False).eval()(images(), defects()).cf_logits is None
    assert "counterfactual" not in build("S6", use_counterfactual=False).parts()


def test_images_with_an_empty_mask_keep_their_logits():
    output = build().eval()(images(3), defects(3))
    assert output.cf_logits is not None
    assert torch.equal(output.cf_logits[1:], output.logits[1:])
    assert not torch.equal(output.cf_logits[0], output.logits[0])


def test_without_any_defect_path_three_is_not_run():
    model = build().train()
    assert model.counterfactual is not None
    model.counterfactual.register_forward_pre_hook(lambda *_: pytest.fail("was run"))
    output = model(images(), torch.zeros(2, 1, 64, 64))
    assert output.cf_logits is not None and torch.equal(output.cf_logits, output.logits)


def test_the_answer_does_not_depend_on_the_company():
    model = build().eval()
    together = model(images(2), defects(2)).cf_logits
    alone = model(images(2)[:1], defects(2)[:1]).cf_logits
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_the_pass_leaves_path_twos_statistics_alone():
    first, second = build(dropout=0.0).train(), build(dropout=0.0).train()
    first(images())
    second(images(), defects())
    for name, tensor in first.state_dict().items():
        if not name.startswith("counterfactual."):
            assert torch.equal(tensor, second.state_dict()[name]), name
    assert all(part.training for part in second.modules())


@pytest.mark.parametrize("mode", ["learned", "mean", "zero"])
def test_features_are_replaced_in_the_dilated_region_only(mode):
    model = build(counterfactual_mode=mode).eval()
    assert model.counterfactual is not None
    seen = []
    model.counterfactual.register_forward_hook(lambda _, inputs, result: seen.append((*inputs, result)))
    model(images(), defects())
    ((features, masks, result),) = seen
    region = dilated(mask_cells(masks, (8, 8)), 1).bool()
    assert region.sum() == 4 * 4  # rows 2-3, columns 3-4 of the grid, and one cell around
    assert torch.equal((result != features).any(1, keepdim=True) | ~region, torch.ones_like(region))
    assert torch.equal(result.where(~region, 0), features.where(~region, 0))


def test_the_deciding_head_takes_part_as_it_is():
    """cf_logits are path 2 on the replaced features: same attention, adapter and head."""
    model = build(counterfactual_mode="zero").eval()
    seen = []
    assert model.counterfactual is not None and model.attention is not None
    model.counterfactual.register_forward_hook(lambda *call: seen.append(call[-1]))
    output = model(images(), defects())
    refined, logits = model.attention.attend(seen[0])
    expected = model.attention.attended_cls_head(model.attention.adapt(refined, logits.sigmoid()))
    torch.testing.assert_close(output.cf_logits[:1], expected)


# --- S6 --------------------------------------------------------------------------------------------------------------


def test_the_same_mask_and_features_give_the_same_attention():
    """Whatever stands beside them in the batch. (That masks are drawn without regard to the class: test_mask_mixing.)"""
    for training in (True, False):
        model = build("S6").train(training)
        batch = images(4)[[0, 1, 2, 3, 0]]
        masks = defects(4)[[0, 1, 2, 3, 0]]
        effective = model(batch, attention_masks=masks, attention_alpha=0.3).effective_attention
        torch.testing.assert_close(effective[0], effective[4], rtol=1e-3, atol=1e-4)


def test_the_rule_is_the_same_in_training_and_at_inference():
    for training in (True, False):
        model = build("S6", dropout=0.0).train(training)
        output = model(images(), attention_masks=defects(), has_attention_mask=torch.tensor([True, False]))
        pooled = torch.nn.functional.avg_pool2d(defects(), 8)
        expected = output.attention_map * torch.cat([pooled[:1], torch.ones(1, 1, 8, 8)])
        torch.testing.assert_close(output.effective_attention, expected)


def test_alpha_mixes_the_mask_in():
    output = build("S6").eval()(images(), attention_masks=defects(), attention_alpha=0.5)
    pooled = torch.nn.functional.avg_pool2d(defects(), 8)
    assert 0 < pooled.max() == 1 and ((pooled > 0) & (pooled < 1)).any()  # the mask does not end on cell borders
    torch.testing.assert_close(output.effective_attention, 0.5 * pooled + 0.5 * pooled * output.attention_map)


def test_masks_of_any_size_are_area_pooled():
    model = build("S6").eval()
    coarse = torch.rand(2, 1, 4, 4)
    output = model(images(), attention_masks=coarse)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(output.effective_attention, fine * output.attention_map)
    again = model(images(), attention_masks=fine.repeat_interleave(16, 2).repeat_interleave(16, 3))
    torch.testing.assert_close(again.effective_attention, output.effective_attention)


def test_low_attention_stays_low_whatever_the_mask_says():
    for norm, low in (("sigmoid", True), ("product", False)):
        model = build("S6", fusion_norm=norm).eval()
        path = model.attention
        assert path is not None
        with torch.no_grad():
            for head in (path.attention_head, path.mining_head):
                head.get_parameter("body.2.weight").zero_()
                head.get_parameter("body.2.bias").fill_(math.log(0.01 / 0.99))
        effective = model(images(), attention_masks=torch.ones(2, 1, 8, 8)).effective_attention
        torch.testing.assert_close(effective, torch.full((2, 1, 8, 8), 0.01 if low else 1.0))


@pytest.mark.parametrize("training", [True, False])
def test_without_a_mask_s6_confirms_with_its_own_localization(training):
    model = build("S6").train(training)
    output = model(images())
    pooled = torch.nn.functional.avg_pool2d(output.localization_map, 8)
    torch.testing.assert_close(output.effective_attention, pooled * output.attention_map)
    assert "localization" not in parts_moved(moved(model, output.effective_attention))


def test_s7_is_the_model_of_s5():
    s5, s7 = build("S5").eval(), build("S7").eval()
    assert [name for name, _ in s7.named_parameters()] == [name for name, _ in s5.named_parameters()]
    s7.load_state_dict(s5.state_dict())
    ours, theirs = s7(images(), defects()), s5(images(), defects())
    for key in ours.keys():  # noqa: SIM118
        assert torch.equal(ours[key], theirs[key]), key
    torch.testing.assert_close(ours.effective_attention, ours.attention_map)
    with pytest.raises(ModelError, match="attention_masks are for strategy S6, this model is S7"):
        s7(images(), attention_masks=defects())


def test_mask_source_none_leaves_attention_alone():
    output = build("S6", mask_source="none").eval()(images())
    torch.testing.assert_close(output.effective_attention, output.attention_map)


@pytest.mark.parametrize("source", ["efficientad", "external", "other", "oracle"])
def test_a_mask_that_must_be_given_is_asked_for(source):
    model = build("S6", mask_source=source).eval()
    with pytest.raises(ModelError, match=f"mask_source '{source}': attention_masks must be given"):
        model(images())
    assert model(images(), attention_masks=defects()).effective_attention is not None


def test_path_three_of_s6_goes_through_the_same_gate():
    model = build("S6", counterfactual_mode="zero").eval()
    seen = []
    assert model.counterfactual is not None and model.attention is not None
    model.counterfactual.register_forward_hook(lambda *call: seen.append(call[-1]))
    masks = torch.rand(2, 1, 8, 8)
    output = model(images(), defects(), attention_masks=masks, attention_alpha=0.2)
    refined, logits = model.attention.attend(seen[0])
    effective = fuse_attention(logits, masks[:1], alpha=0.2)
    expected = model.attention.attended_cls_head(model.attention.adapt(refined, effective))
    torch.testing.assert_close(output.cf_logits[:1], expected)


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_classes": 3}, r"num_classes must be 2 \(the CAM is a two-class margin\), got 3"),
        ({"strategy": "S9"}, "strategy must be one of S1, S2, S3, S4, S5, S6, S7, got 'S9'"),
        ({"map_stride": 2}, r"map_stride must be one of \[4, 8, 16, 32\], got 2"),
        ({"fusion_norm": "max"}, "fusion_norm must be one of sigmoid, product, got 'max'"),
        (
            {"mask_source": "guess"},
            "mask_source must be one of localization, efficientad, external, none, other, oracle, got 'guess'",
        ),
        ({"counterfactual_mode": "erase"}, "counterfactual_mode must be one of learned, mean, zero, got 'erase'"),
        ({"backbone_arch": "b9"}, "unknown backbone 'b9'. There are b0, b1"),
        ({"out_indices": (0, 4)}, r"out_indices must be ascending levels among 1, 2, 3, 4 .*, got \[0, 4\]"),
        ({"backbone_arch": "vit_tiny_patch16_224"}, "vit_tiny_patch16_224: this backbone has no features at stride 8"),
    ],
)
def test_what_cannot_be_built_is_named(options, message):
    with pytest.raises(ModelError, match=message):
        GAINMTLModel(**NARROW | options)


def test_masks_of_a_wrong_shape_are_named():
    model = build("S6").eval()
    with pytest.raises(ModelError, match=r"masks must be \(2, 1, height, width\), got \(2, 64, 64\)"):
        model(images(), defects()[:, 0])
    with pytest.raises(ModelError, match=r"attention_masks must be \(2, 1, height, width\), got \(1, 1, 64, 64\)"):
        model(images(), attention_masks=defects(1))


def test_attention_masks_are_for_s6_only():
    with pytest.raises(ModelError, match="attention_masks are for strategy S6, this model is S5"):
        build("S5").eval()(images(), attention_masks=defects())


# --- formats ---------------------------------------------------------------------------------------------------------


def test_channels_last_gives_the_same_answers():
    model = build().eval()
    before = model(images(), defects())
    model.to(memory_format=torch.channels_last)
    after = model(images().to(memory_format=torch.channels_last), defects())
    keys = before.keys()
    for key in keys:
        torch.testing.assert_close(after[key], before[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("strategy", ["S5", "S6"])
def test_runs_under_autocast(strategy):
    model = build(strategy).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images(), defects())
    assert output.cam.dtype == torch.float32 and output.cf_logits.isfinite().all()
    (output.cf_logits.sum() + output.logits.sum() + output.cam.sum()).backward()


def test_a_saved_model_loads_with_the_other_provider():
    pytest.importorskip("mmpretrain")
    ours, theirs = build("S5", use_mmpretrain=True).eval(), build("S5").eval()
    assert ours.backbone.provider == "mmpretrain"
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(theirs(images()).logits, ours(images()).logits, rtol=1e-4, atol=1e-5)
