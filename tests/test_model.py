"""The network part by part on tensors counted by hand, then as a whole: its record, its gradients, S6's gate."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from gainmtl_lib import model as module
from gainmtl_lib.backbone import ModelError
from gainmtl_lib.model import GAINMTLModel, class_activation_map, control_masks, dilated, fuse_attention, margin_of
from gainmtl_lib.settings import PARTS


def row(*pictures: list[float]) -> Tensor:
    """Pictures of one line, (B, 1, 1, w)."""
    return torch.tensor(pictures)[:, None, None]


def box(height: int, width: int, rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[:, :, rows, columns] = 1
    return mask


FEATURES = torch.tensor([[1.0, 3.0], [4.0, 4.0]]).view(1, 2, 1, 2)  # channel means 2 and 4


def test_cbam_follows_its_equations():
    cbam = module.CBAM(2, kernel_size=1)
    with torch.no_grad():
        for parameter in cbam.parameters():
            parameter.zero_()
        for name in ("mlp.0.weight", "mlp.2.weight"):
            cbam.get_parameter(name)[0, 0] = 1
        cbam.spatial.weight[0, 1] = 1
    # channel 0: MLP(mean 2) + MLP(max 3) = 5; channel 1: 0. Then the larger channel gates each cell.
    channel = FEATURES * torch.tensor([5.0, 0.0]).sigmoid().view(1, 2, 1, 1)
    assert_close(cbam(FEATURES), channel * channel.amax(1, keepdim=True).sigmoid())


def test_pyramid_sums_on_the_finest_grid():
    fusion = module.PyramidFusion([3, 5, 7], 4)
    with torch.no_grad():
        for name, parameter in fusion.named_parameters():
            parameter.fill_(float("layer_blocks" in name and name.endswith("bias")))
    levels = [torch.randn(2, 3, 8, 6), torch.randn(2, 5, 4, 3), torch.randn(2, 7, 2, 2)]
    assert_close(fusion(levels), torch.full((2, 4, 8, 6), 3.0))


def test_the_map_projection_sums_its_levels_on_the_finest_grid_and_mixes_them():
    projection = module.MapProjection([1, 2, 1], 2).eval()
    for number, lateral in enumerate(projection.lateral, start=1):
        nn.init.constant_(lateral.weight, float(number))
        nn.init.constant_(lateral.bias, 0.5)
    nn.init.dirac_(projection.mix[0].weight)  # every cell itself, then batch norm and ReLU
    fine, middle = torch.tensor([[1.0, -2, 3, 0], [0, 0, -50, 0]]).view(1, 1, 2, 4), torch.full((1, 2, 1, 2), 3.0)
    found = projection([fine, middle, torch.full((1, 1, 1, 1), -2.0)])
    # (fine + 0.5) + (2 * 3 * 2 + 0.5) + (3 * -2 + 0.5), and nothing below 0
    assert_close(found, (fine + 7.5).relu().expand(1, 2, 2, 4), rtol=1e-4, atol=1e-4)


def test_temperature_starts_at_one_and_divides():
    head, features = module.AttentionHead(4, hidden=3).eval(), torch.randn(2, 4, 5, 6)
    assert torch.equal(head(features), head.body(features))
    nn.init.constant_(head.log_temperature, math.log(4.0))
    assert_close(head(features), head.body(features) / 4)


@pytest.mark.parametrize(("alpha", "norm", "expected"), [
    (0.0, "sigmoid", [[0.4, 0.0, 0.2], [0.01, 0.01, 0.005]]),  # low attention stays low
    (0.5, "sigmoid", [[0.7, 0.0, 0.35], [0.505, 0.505, 0.2525]]),  # 0.5 * mask + 0.5 * mask * attention
    (1.0, "sigmoid", [[1.0, 0.0, 0.5], [1.0, 1.0, 0.5]]),
    (0.0, "product", [[1.0, 0.0, 0.5], [1.0, 1.0, 0.5]]),  # unless divided by the maximum of its image
])  # fmt: skip
def test_a_mask_confirms_attention_alpha_lets_it_through_and_images_without_one_keep_theirs(alpha, norm, expected):
    attention = row([0.4, 0.4, 0.4], [0.01, 0.01, 0.01])
    mask = row([1.0, 0.0, 0.5], [1.0, 1.0, 0.5])
    assert_close(fuse_attention(attention.logit(), mask, alpha=alpha, norm=norm), row(*expected))
    assert_close(fuse_attention(attention.logit(), None, alpha=alpha, norm=norm), attention)
    logits = attention.logit().requires_grad_()
    fused = fuse_attention(logits, torch.zeros_like(mask), torch.tensor([True, False]), alpha=alpha, norm=norm)
    assert_close(fused, row([0.0, 0.0, 0.0], [0.01, 0.01, 0.01]))
    fused.sum().backward()
    assert logits.grad.isfinite().all() and logits.grad[1].abs().min() > 0


def test_the_decision_and_its_map_by_hand():
    head = module.ClassificationHead(2, hidden=2, dropout=0.5).eval()
    numbers = {"hidden.weight": [[1.0, 2.0], [0.0, -1.0]], "hidden.bias": [1.0, 1.0]}
    numbers |= {"out.weight": [[1.0, 1.0], [3.0, 9.0]], "out.bias": [0.5, 0.0]}
    head.load_state_dict({name: torch.tensor(values) for name, values in numbers.items()})
    # hidden relu(2 + 8 + 1), relu(-4 + 1) = 11, 0
    assert_close(head(FEATURES), torch.tensor([[11.5, 33.0]]))
    # The second hidden unit is off, so the weight is (3 - 1) * (1, 2): 2 * F0 + 4 * F1.
    cam, bias = class_activation_map(FEATURES, head)
    assert_close(cam.flatten(), torch.tensor([18.0, 22.0]))
    assert_close(bias, torch.tensor([1.5]))  # 2 * 1 + 0 - 0.5


def test_mean_and_bias_are_the_margin_and_so_are_their_gradients_whatever_dropout_and_precision():
    torch.manual_seed(0)
    head = module.ClassificationHead(3, hidden=4, dropout=0.5).eval()
    features = torch.randn(4, 3, 3, 7, requires_grad=True)
    cam, bias = class_activation_map(features, head)
    normal, defective = head(features).T
    assert cam.shape == (4, 1, 3, 7)
    assert_close(cam.mean((1, 2, 3)) + bias, defective - normal)
    by_map = torch.autograd.grad((cam.mean((1, 2, 3)) + bias).sum(), [features, *head.parameters()])
    by_margin = torch.autograd.grad((defective - normal).sum(), [features, *head.parameters()])
    for ours, theirs in zip(by_map, by_margin, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, bias = class_activation_map(features, head.train())
    assert again.dtype == bias.dtype == torch.float32 and torch.equal(again, cam)


@pytest.mark.parametrize(("counted", "strongest"), [(1, 5.0), (2, 4.5), (3, 4.0), (10, 1.5), (99, 1.5)])
def test_s8s_margin_is_the_mean_of_the_strongest_cells_scaled_and_shifted_by_hand(counted, strongest):
    head = module.EvidenceHead(1, cells=[counted])
    nn.init.constant_(head.log_scale, math.log(2))
    nn.init.constant_(head.offset, 0.25)
    nn.init.constant_(head.cell.weight, 0.5)
    nn.init.constant_(head.cell.bias, 1.0)
    cells = torch.tensor([[3.0, 5, -2, 0, 1], [4, 0, 1, 2, 1]])  # ten of them
    assert_close(head.margin(torch.stack([cells, -cells])[:, None])[:1], torch.tensor([2 * strongest + 0.25]))
    features = torch.stack([2 * cells - 2, torch.zeros(2, 5)])[:, None].requires_grad_()
    logits, evidence = head(features)
    assert_close(evidence[:, 0], torch.stack([cells, torch.ones(2, 5)]))
    assert_close(logits[:, 1] - logits[:, 0], torch.tensor([2 * strongest + 0.25, 2.25]))
    (logits[0, 1] - logits[0, 0]).backward()  # cells that do not count are not moved
    assert (features.grad[0] != 0).sum() == min(counted, 10) and features.grad[0].sum() == pytest.approx(2 * 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(features.bfloat16())[0].dtype == head(features.bfloat16())[1].dtype == torch.float32


def test_s8_decides_by_few_cells_or_by_many_whichever_says_more():
    head = module.EvidenceHead(1, cells=(1, 4))
    assert_close(head.offset, torch.tensor([0, math.log(2)]))  # half of log 4: a mean of four is steadier by √4
    small, large = torch.full((2, 4, 4), -2.0)
    small[1, 2], large[:2] = 3.0, -0.1
    evidence = torch.stack([small, large])[:, None].requires_grad_()
    assert_close(head.margin(evidence), torch.tensor([3.0, -0.1 + math.log(2)]))
    head.margin(evidence).sum().backward()
    assert [(part != 0).sum().item() for part in evidence.grad] == [1, 4]
    assert (head.offset.grad == 1).all()  # each decided once
    nn.init.constant_(head.offset, 0.0)
    nn.init.constant_(head.log_scale, math.log(0.5))
    assert_close(head.margin(evidence), torch.tensor([1.5, -0.05]))


@pytest.mark.parametrize(("size", "tile", "count"), [
    ((160, 256), (64, 96), 4 * 4),  # columns from 0, 64, 128 and, where the step does not fit, 160
    ((64, 96), (64, 96), 1),
    ((64, 96), (32, 32), 6),  # too small to overlap
    ((64, 96), (512, 32), 3),  # higher than the picture
    ((64, 96), (512, 512), 1),
])  # fmt: skip
def test_tiles_join_to_the_maps_of_the_whole(size, tile, count):
    pixels, tiles = torch.rand(2, 3, *size), module.Tiles(size, tile, 0.25)
    parts = [pixels[..., *place] for place in tiles.places]
    assert [tuple(part.shape[2:]) for part in parts] == [(min(size[0], tile[0]), min(size[1], tile[1]))] * count
    for stride in (4, 8, 32):  # of local means: each cell depends on its own pixels alone
        joined = tiles.join([F.avg_pool2d(part, stride) for part in parts])
        assert_close(joined, F.avg_pool2d(pixels, stride))


def test_a_border_that_tiles_leave_out_is_filled_by_their_neighbours_and_0_at_the_pictures_edge():
    tiles = module.Tiles((128, 160), (128, 96), 0.5)
    pixels = torch.rand(1, 1, 32, 40)
    parts = [pixels[:, :, y.start // 4 : y.stop // 4, x.start // 4 : x.stop // 4].clone() for y, x in tiles.places]
    for part in parts:
        part[..., :4, :], part[..., -4:, :], part[..., :4], part[..., -4:] = 9, 9, 9, 9
    joined = tiles.join(parts, border=4)
    assert_close(joined[..., 4:-4, 4:-4], pixels[..., 4:-4, 4:-4])
    assert not joined[..., :4, :].any() and not joined[..., -4:].any()


def test_between_tiles_maps_change_over_linearly():
    tiles = module.Tiles((32, 320), (32, 128), 0.25)
    level = tiles.join([torch.full((1, 1, 8, 32), float(number)) for number in range(len(tiles.places))])
    steps = level[0, 0, 0].diff()
    assert level[0, 0].unique(dim=0).shape == (1, 80) and level.min() == 0 and level.max() == 2
    assert steps.min() >= 0 and steps.max() == pytest.approx(1 / 8, rel=0.1)  # a quarter of a tile is eight cells


@pytest.mark.parametrize("mode", ["learned", "mean", "zero"])
@pytest.mark.parametrize("training", [True, False])
def test_features_outside_the_dilated_region_are_unchanged(mode, training):
    torch.manual_seed(0)
    suppress = module.Counterfactual(16, mode=mode).train(training)
    features = torch.randn(2, 16, 8, 8)
    masks = torch.cat([box(64, 64, slice(16, 20), slice(16, 40)), box(64, 64, slice(0, 8), slice(60, 64))])
    # cells of 8 x 8 that hold a defect pixel, and one around them
    region = torch.cat([box(8, 8, slice(1, 4), slice(1, 6)), box(8, 8, slice(0, 2), slice(6, 8))]).bool()
    assert torch.equal((suppress(features, masks) != features).any(1, keepdim=True), region)


def test_zero_and_mean_by_hand():
    features = row([0.0, 4, 4, 0, 7, 0, 0, 0, 100])
    mask = row([0.0, 0, 0, 0, 1, 0, 0, 0, 0])  # the region is columns 3 to 5, its surroundings two more to each side
    zero, mean = (module.Counterfactual(1, mode=mode) for mode in ("zero", "mean"))
    assert mean(features, mask).flatten().tolist() == [0, 4, 4, 2, 2, 2, 0, 0, 100]  # (4 + 4 + 0 + 0) / 4
    assert zero(features, mask).flatten().tolist() == [0, 4, 4, 0, 0, 0, 0, 0, 100]
    assert not mean(features, torch.ones_like(features)).any()


def test_the_control_is_the_same_mask_elsewhere_and_another_place_for_another_defect():
    masks = torch.cat([box(48, 64, slice(2, 10), slice(5, 25)), box(48, 64, slice(30, 48), slice(60, 64))])
    masks[0, 0, 4:6, 5:10] = 0  # not a plain rectangle
    moved, placed = control_masks(masks, margin=5)
    assert placed.tolist() == [True, True] and torch.equal(moved, control_masks(masks, margin=5)[0])
    for before, after in zip(masks[:, 0], moved[:, 0], strict=True):
        (r0, c0), (r1, c1) = before.nonzero()[0].tolist(), after.nonzero()[0].tolist()
        assert torch.equal(torch.roll(before, (r1 - r0, c1 - c0), (0, 1)), after)
        assert not (dilated(before[None, None], 5)[0, 0] * after).any()
        span = after.nonzero().amax(0) - after.nonzero().amin(0) + 1
        assert span.tolist() == [before.any(1).sum(), before.any(0).sum()]  # in one piece, not around the border
    moved, placed = control_masks(torch.cat([box(64, 64, slice(20, 24), slice(k, k + 4)) for k in range(8, 48, 5)]))
    assert placed.all() and len({tuple(mask.nonzero()[0].tolist()) for mask in moved[:, 0]}) > 4


def test_the_only_place_is_found_and_where_there_is_none_there_is_no_control():
    # Of 32 columns, 15 + 2 + 15 are just enough at a margin of a sixteenth, 16 + 2 + 16 too many.
    masks = [box(32, 32, slice(0, 32), slice(0, 15)), box(32, 32, slice(0, 32), slice(0, 16))]
    moved, placed = control_masks(torch.cat([*masks, torch.zeros(1, 1, 32, 32), torch.ones(1, 1, 32, 32)]))
    assert placed.tolist() == [True, False, False, False] and not moved[1:].any()
    assert torch.equal(moved[:1], box(32, 32, slice(0, 32), slice(17, 32)))
    inside = box(64, 64, slice(16, 48), slice(0, 64)).bool()  # a letterboxed picture: its bars are no place
    masks = torch.cat([box(64, 64, slice(20, 26), slice(0, 6)), box(64, 64, slice(26, 38), slice(0, 60))])
    moved, placed = control_masks(masks, inside=inside.expand(2, -1, -1, -1))
    assert placed.tolist() == [True, False] and moved.sum() == 36 and not (moved * ~inside).any()
    assert control_masks(masks)[1].tolist() == [True, True]


NARROW = {"backbone_arch": "b0", "pretrained": False, "use_mmpretrain": False, "out_indices": (2, 3, 4)}
NARROW |= {"map_stride": 8, "map_channels": 16, "attention_channels": 8, "fpn_channels": 8, "head_channels": 16}


def build(strategy: str = "S5", **options) -> GAINMTLModel:
    torch.manual_seed(0)
    return GAINMTLModel(**NARROW | options, strategy=strategy).eval()


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def defects(count: int = 2) -> Tensor:
    """The first image has a defect, the others none."""
    return torch.cat([box(64, 64, slice(16, 28), slice(24, 40)), torch.zeros(count - 1, 1, 64, 64)])


@pytest.mark.parametrize("strategy", PARTS)
@pytest.mark.parametrize("training", [True, False])
def test_only_the_strategys_parts_exist_and_the_record_is_the_same_in_training(strategy, training):
    model = build(strategy).train(training)
    output = model(images(), defects())
    added = [*PARTS[strategy]] if strategy == "S8" else ["cls_head", *PARTS[strategy]]
    assert [name for name, _ in model.named_children()] == ["backbone", "projection", *added]
    expected = {"logits": (2, 2), "cam": (2, 1, 8, 8), "cls_logits": (2, 2), "cls_cam": (2, 1, 8, 8)}
    if "attention" in added:
        expected |= dict.fromkeys(("attention_logits", "attention_map", "effective_attention"), (2, 1, 8, 8))
        expected |= {"attended_cls_logits": (2, 2)}
    if {"localization", "evidence"} & {*added}:
        expected |= dict.fromkeys(("localization_logits", "localization_map"), (2, 1, 64, 64))
    if "counterfactual" in added:
        expected |= {"cf_logits": (2, 2)}
    if not training:
        expected |= {"deciding_features": (2, 48)}
    assert {key: (*output[key].shape,) for key in output.keys() if output[key] is not None} == expected  # noqa: SIM118
    assert output.logits is (output.attended_cls_logits if "attention" in added else output.cls_logits)


@pytest.mark.parametrize("map_stride", [4, 8, 16, 32])
def test_s8s_map_is_its_decision_and_its_localization(map_stride):
    model = build("S8", map_stride=map_stride, evidence_cells=[3])
    nn.init.constant_(model.evidence.log_scale, -0.7)
    nn.init.constant_(model.evidence.offset, 0.4)
    output = model(images())
    assert output.cam.shape == (2, 1, 64 // map_stride, 64 // map_stride) and output.cam.std() > 0
    strongest = output.cam.flatten(1).sort(descending=True).values[:, :3]
    assert_close(output.logits[:, 1] - output.logits[:, 0], math.exp(-0.7) * strongest.mean(1) + 0.4)
    fine = F.interpolate(output.cam, size=(64, 64), mode="bilinear")
    assert torch.equal(output.localization_map, fine.sigmoid()) and torch.equal(output.localization_logits, fine)
    assert output.cls_cam is output.cam and output.cls_logits is output.logits


def test_s8s_counterfactual_asks_the_same_head_of_features_that_gave_way_to_their_surroundings():
    model = build("S8", evidence_cells=[2], counterfactual_mode="learned")
    assert model.counterfactual.mode == "mean" and not [*model.counterfactual.parameters()]
    output = model(images(3), defects(3))
    assert torch.equal(output.cf_logits[1:], output.logits[1:]), "an empty mask leaves the decision"
    features, _ = model.features(images(3))
    expected, _ = model.evidence(model.counterfactual(features, defects(3)))
    assert_close(output.cf_logits[0], expected[0])
    assert not torch.equal(output.cf_logits[0], output.logits[0]) and model(images()).cf_logits is None
    assert build("S8", use_counterfactual=False)(images(), defects()).cf_logits is None
    output = model.train()(images(4), defects(4))
    for said in (output.logits, output.cam, output.cf_logits):
        assert {name.split(".")[0] for name in moved(model, said)} == {"backbone", "projection", "evidence"}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("strategy", ["S1", "S5", "S8"])
def test_pictures_go_through_the_network_in_tiles_outside_training_only(strategy):
    model, whole, sizes = build(strategy, tile_size=(64, 128)), build(strategy), []
    pixels, masks = images(), defects()
    assert_close(model(pixels).logits, whole(pixels).logits)  # the picture fits into one
    model.tile_size = (32, 64)
    model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    output = model(pixels, masks)
    assert sizes == [(32, 64)] * 2 and output.cam.shape == (2, 1, 8, 8)
    tops = [model(pixels[..., rows, :], masks[..., rows, :]) for rows in (slice(0, 32), slice(32, 64))]
    for name in {"S1": ("logits",), "S5": ("logits", "cf_logits"), "S8": ()}[strategy]:
        worst = torch.stack([margin_of(top[name]) for top in tops]).amax(0)
        assert_close(margin_of(output[name]), worst)
    if strategy == "S8":  # the map of the whole picture still is the decision
        assert_close(model.evidence.margin(output.cam), margin_of(output.logits))
    sizes.clear()
    model.train()(pixels)
    assert sizes == [(64, 64)]


@pytest.mark.parametrize("map_stride", [4, 8, 16, 32])
@pytest.mark.parametrize("strategy", ["S1", "S3", "S6"])
def test_map_stride_sets_the_grid_on_which_the_cam_identity_holds_for_both_heads(strategy, map_stride):
    model, seen = build(strategy, map_stride=map_stride, out_indices=(3, 4)), []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for head in (part for part in model.modules() if isinstance(part, module.ClassificationHead)):
        head.register_forward_hook(lambda head, inputs, logits: seen.append((head, inputs[0], logits)))
    pixels = torch.rand(2, 3, 64, 96)
    output = model(pixels)
    normalised, *decided = seen
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    assert_close(normalised, (pixels - mean) / std)  # with the backbone's own numbers
    assert len(decided) == (1 if strategy == "S1" else 2)
    assert output.cam.shape == output.cls_cam.shape == (2, 1, 64 // map_stride, 96 // map_stride)
    for (head, features, logits), cam in zip(decided, (output.cls_cam, output.cam)):
        _, bias = class_activation_map(features, head)
        assert_close(cam.mean((1, 2, 3)) + bias, logits[:, 1] - logits[:, 0])


SHARED = {"backbone", "projection"}
MOVED = dict.fromkeys(("cls_logits", "cls_cam"), SHARED | {"cls_head"})
MOVED |= dict.fromkeys(("attended_cls_logits", "cam", "attention_logits"), SHARED | {"attention"})
MOVED |= {"localization_logits": {"backbone", "localization"}, "cf_logits": SHARED | {"attention", "counterfactual"}}


def moved(model: nn.Module, output: Tensor) -> set[str]:
    """What a loss on `output` moves, by the first two steps of the parameters' names."""
    model.zero_grad()
    (output * torch.linspace(0.5, 1.5, output.numel()).view_as(output)).sum().backward(retain_graph=True)
    touched = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    return {".".join(name.split(".")[:2]) for name in touched}


def test_each_output_moves_its_parts_and_nothing_else():
    model = build(dropout=0.0).train()
    output = model(images(4), defects(4))
    found = {key: moved(model, output[key]) for key in MOVED}
    assert {key: {name.split(".")[0] for name in names} for key, names in found.items()} == MOVED
    inside = {key: {name.split(".")[1] for name in found[key] if name.startswith("attention.")} for key in MOVED}
    everything = {"cbam", "attention_head", "mining_head", "adapter", "attended_cls_head"}
    assert inside["attended_cls_logits"] == inside["cam"] == everything
    assert inside["attention_logits"] == {"cbam", "attention_head", "mining_head"}
    assert inside["cf_logits"] == everything - {"attended_cls_head"}
    model.zero_grad()
    sum((output[key] * torch.rand_like(output[key])).sum() for key in MOVED).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_images_with_an_empty_mask_keep_their_logits_and_the_company_does_not_matter():
    model = build()
    output = model(images(3), defects(3))
    assert torch.equal(output.cf_logits[1:], output.logits[1:])
    assert not torch.equal(output.cf_logits[0], output.logits[0])
    assert_close(output.cf_logits[:1], model(images(3)[:1], defects(1)).cf_logits, rtol=1e-4, atol=1e-5)
    assert model(images()).cf_logits is None
    assert build("S6", use_counterfactual=False)(images(), defects()).cf_logits is None


def test_the_counterfactual_leaves_path_twos_statistics_and_modes_alone():
    first, second = build(dropout=0.0).train(), build(dropout=0.0).train()
    second.attention.cbam.eval()
    first(images())
    second(images(), defects())
    for name, tensor in first.state_dict().items():
        assert name.startswith("counterfactual.") or torch.equal(tensor, second.state_dict()[name]), name
    assert all(part.training != name.startswith("attention.cbam") for name, part in second.named_modules())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("given", [{}, {"attention_masks": torch.rand(2, 1, 8, 8), "attention_alpha": 0.2}])
def test_path_two_decides_on_the_counterfactual_as_at_inference(given, training):
    model, seen = build("S6" if given else "S5", counterfactual_mode="zero").train(training), []
    model.counterfactual.register_forward_hook(lambda *call: seen.append(call[-1]))
    output = model(images(), defects(), **given)
    masks = given["attention_masks"][:1] if given else None
    *_, adapted = model.eval().attention(seen[0], masks, None, alpha=0.2)
    assert_close(output.cf_logits[:1], model.attention.attended_cls_head(adapted))


@pytest.mark.parametrize("training", [True, False])
def test_s6_gates_by_one_rule_whatever_stands_beside_and_without_a_mask_by_its_own(training):
    model = build("S6", dropout=0.0).train(training)
    order, has_mask = [0, 1, 2, 3, 0], torch.tensor([True, False, True, True, True])
    masks = {"attention_masks": defects(4)[order], "has_attention_mask": has_mask}
    output = model(images(4)[order], **masks, attention_alpha=0.3)
    pooled, own = F.avg_pool2d(defects(4)[order], 8), output.attention_map
    expected = torch.where(has_mask[:, None, None, None], 0.3 * pooled + 0.7 * pooled * own, own)
    assert_close(output.effective_attention, expected)
    assert_close(output.effective_attention[0], output.effective_attention[4], rtol=1e-3, atol=1e-4)
    coarse = torch.rand(2, 1, 4, 4)  # masks of any size are pooled by area
    fine = F.interpolate(coarse, scale_factor=2)
    for given in (coarse, F.interpolate(fine, scale_factor=16)):
        output = model(images(), attention_masks=given)
        assert_close(output.effective_attention, fine * output.attention_map)
    output = model(images())  # without a mask its own localization confirms, which learns nothing from it
    assert_close(output.effective_attention, F.avg_pool2d(output.localization_map, 8) * output.attention_map)
    assert not any(name.startswith("localization") for name in moved(model, output.effective_attention))
    output = build("S6", mask_source="none")(images())
    assert_close(output.effective_attention, output.attention_map)


def test_what_cannot_be_built_and_masks_of_a_wrong_shape_of_no_use_or_missing_are_named():
    for options, message in (
        ({"num_classes": 3}, r"num_classes must be 2 \(the CAM is a two-class margin\), got 3"),
        ({"strategy": "S9"}, "strategy must be one of S1, S2, S3, S4, S5, S6, S7, S8, got 'S9'"),
        ({"map_stride": 2}, "map_stride must be one of 4, 8, 16, 32, got '2'"),
        ({"fusion_norm": "max"}, "fusion_norm must be one of sigmoid, product, got 'max'"),
        ({"mask_source": "guess"}, "mask_source must be one of localization, .*, oracle, got 'guess'"),
        ({"counterfactual_mode": "erase"}, "counterfactual_mode must be one of learned, mean, zero, got 'erase'"),
        ({"out_indices": ()}, r"out_indices must be ascending levels among 1, 2, 3, 4 .*, got \[\]"),
    ):
        with pytest.raises(ModelError, match=message):
            GAINMTLModel(**NARROW | options)
    model = build("S6")
    with pytest.raises(ModelError, match=r"masks must be \(2, 1, height, width\), got \(2, 64, 64\)"):
        model(images(), defects()[:, 0])
    with pytest.raises(ModelError, match=r"attention_masks must be \(2, 1, height, width\), got \(1, 1, 64, 64\)"):
        model(images(), attention_masks=defects(1))
    with pytest.raises(ModelError, match="attention_masks are for strategy S6, this model is S7"):
        build("S7")(images(), attention_masks=defects())
    for model.mask_source in ("efficientad", "external", "other", "oracle"):
        with pytest.raises(ModelError, match=f"mask_source '{model.mask_source}': attention_masks must be given"):
            model(images())


def test_channels_last_gives_the_same_answers_and_autocast_finite_ones():
    model = build()
    before = model(images(), defects())
    after = model.to(memory_format=torch.channels_last)(images().to(memory_format=torch.channels_last), defects())
    for key in before.keys():  # noqa: SIM118
        assert_close(after[key], before[key], rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = build("S6").train()(images(), defects())
    assert output.cam.dtype == torch.float32 and output.cf_logits.isfinite().all()
    (output.cf_logits.sum() + output.logits.sum() + output.cam.sum()).backward()
