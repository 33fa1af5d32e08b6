"""Other maps of a decision, deletion, insertion, ROAD, randomised weights, and what a run keeps of them."""

import functools
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from audited import row, write_audited
from click.testing import CliRunner
from drawn_data import write_picture
from torch import nn

from gainmtl_lib.audit.report import write_report
from gainmtl_lib.backbone import ModelError
from gainmtl_lib.cli import main
from gainmtl_lib.findings import DataError
from gainmtl_lib.model import GAINMTLModel, GainOutput
from gainmtl_lib.pictures import read_image
from gainmtl_lib.runs import RunError, load_run, save_weights
from gainmtl_lib.studies import faithfulness as faith

NARROW = {"backbone_arch": "b0", "pretrained": False, "map_channels": 8, "attention_channels": 8, "fpn_channels": 8,
          "out_indices": (3, 4), "head_channels": 8}  # fmt: skip


@functools.cache
def built(strategy, map_stride=16, **options):
    """A real model with random weights, as narrow as it can be; a test must leave it as it is."""
    torch.manual_seed(0)
    return GAINMTLModel(**NARROW, strategy=strategy, map_stride=map_stride, **options).eval()


IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

# --- A decision whose reason is known: the brightness of the upper left corner. 32 px, maps of 8 x 8 cells


CORNER, DEFECT = torch.zeros(2, 8, 8)
CORNER[:2, :2] = DEFECT[5:7, 5:7] = 1  # where the decision looks, a sixteenth of the picture, and where it does not


class LooksAtCorner(nn.Module):
    """Its map is `shown`, whatever that is; dropout of the picture tells whether it was asked as at inference."""

    calibration = (1.0, 0.0)

    def __init__(self, shown=CORNER, gain=40.0):
        super().__init__()
        self.shown, self.gain, self.dropout = shown, gain, nn.Dropout(0.5)

    def forward(self, images):
        margin = self.gain * (self.dropout(images)[:, :, :8, :8].mean((1, 2, 3)) - 0.85)
        logits = torch.stack([torch.zeros_like(margin), margin], 1)
        cam = self.shown.expand(len(images), 1, 8, 8)
        return GainOutput(logits=logits, cam=cam, cls_logits=logits, cls_cam=cam)


def picture(seed=0):
    """A dark noisy picture (3, 32, 32) with a bright corner and a bright defect."""
    image = 0.2 + 0.1 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed))
    image[:, :8, :8] = 1.0
    image[:, 20:28, 20:28] = 0.9
    return image


def pictures(count, size=32):
    """What the functions ask of a data module."""

    def batch(rows):
        return SimpleNamespace(images=F.interpolate(torch.stack([picture(row) for row in rows]), size=size))

    table = {"image": [f"/data/{row}.png" for row in range(count)], "group": None, "split": "test", "label": 1}
    return SimpleNamespace(dataset=SimpleNamespace(__getitems__=batch), samples=pd.DataFrame(table))


@pytest.mark.parametrize("strategy", ["S1", "S3", "S6"])
def test_maps_by_gradient_are_those_of_the_weights_by_hand(strategy):
    model = built(strategy)
    features, head = faith.head_input(model, IMAGES), faith.deciding_head(model)
    torch.testing.assert_close(head(features), model(IMAGES).logits)
    # The head averages first, so the margin's gradient in each cell is the exact map's weight over h * w.
    active = head.hidden(features.mean((2, 3))) > 0
    weights = (((head.out.weight[1] - head.out.weight[0]) * active) @ head.hidden.weight)[..., None, None] / 16
    signed = (weights * features).sum(1, keepdim=True)
    layer = (weights.relu() * features).sum(1, keepdim=True).relu()
    assert signed.min() < 0 < signed.max()
    for method, expected in zip(faith.CAM_METHODS, (signed * 16, signed.relu(), layer, signed)):
        torch.testing.assert_close(faith.compute_cam(model, IMAGES, method), expected)
    with pytest.raises(ModelError, match=r"method must be one of ours, grad_cam, .*, score_cam, got 'gradcam'"):
        faith.compute_cam(model, IMAGES, "gradcam")


def test_maps_of_s8s_margin_by_gradient_are_of_the_cells_that_decide():
    model = built("S8", evidence_cells=(3,))
    features, head = faith.head_input(model, IMAGES), faith.deciding_head(model)
    assert head is model.evidence
    torch.testing.assert_close(head(features)[0], model(IMAGES).logits)
    cam, weight = model(IMAGES).cam, head.cell.weight * head.log_scale.exp() / 3
    decide = cam >= cam.flatten(1).topk(3).values.amin(1)[:, None, None, None]  # noqa: PD011
    assert decide.flatten(1).sum(1).tolist() == [3, 3]
    signed = (weight * features).sum(1, keepdim=True) * decide
    torch.testing.assert_close(faith.compute_cam(model, IMAGES, "hires_cam"), signed)
    torch.testing.assert_close(faith.compute_cam(model, IMAGES), cam)
    mean = (weight * 3 / 16 * features).sum(1, keepdim=True).relu()
    torch.testing.assert_close(faith.compute_cam(model, IMAGES, "grad_cam"), mean)
    assert list(faith.cascade(built("S8", 8))) == ["deciding head", "projection", "backbone"]


def test_eigen_cam_is_the_first_component_with_what_stands_out_made_positive():
    features = torch.from_numpy(np.random.default_rng(0).random((2, 6, 5, 7), dtype=np.float32))
    features[:, :, 2, 3] += torch.tensor([5.0, -5.0])[:, None]  # one cell stands out: up, whatever the solver's sign
    for ours, given in zip(faith._eigen_cam(features)[:, 0], features):
        cells = given.flatten(1) - given.flatten(1).mean(1, keepdim=True)
        first = torch.linalg.svd(cells.T, full_matrices=False).Vh[0] @ cells
        torch.testing.assert_close(ours.flatten().abs(), first.abs(), atol=1e-4, rtol=1e-4)
        assert ours.argmax() == 2 * 7 + 3 and ours.max() >= -ours.min()
    assert not faith._eigen_cam(torch.ones(1, 4, 3, 3)).any()


def test_score_cam_weighs_channels_by_the_margin_seen_through_them(monkeypatch):
    model = built("S3")
    features = faith.head_input(model, IMAGES)
    margins = torch.empty(2, 8)
    for place in range(16):
        (which, channel), whole = divmod(place, 8), IMAGES[place // 8]
        mask = F.interpolate(features[which, channel][None, None], (64, 64), mode="bilinear", align_corners=True)
        mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-8)
        margins[which, channel] = model(model.mean + (whole - model.mean) * mask).logits[0].detach().diff()
    expected = (margins.softmax(1)[..., None, None] * features).sum(1, keepdim=True).relu()
    monkeypatch.setattr(faith, "CHANNELS_AT_A_TIME", 3)
    torch.testing.assert_close(faith.compute_cam(model, IMAGES, "score_cam"), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", faith.CAM_METHODS)
def test_every_method_gives_a_picture_its_raw_map_and_leaves_the_model_as_it_was(method):
    model = GAINMTLModel(**NARROW, strategy="S3", map_stride=8, freeze_backbone_stages=1).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.attention.attended_cls_head.out.weight.grad = torch.ones(2, 8)

    def state():
        hooks = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        gradients = [(p.requires_grad, None if p.grad is None else p.grad.sum()) for p in model.parameters()]
        return hooks, gradients, [module.training for module in model.modules()]

    before, maps = state(), faith.compute_cam(model, IMAGES, method)
    assert maps.shape == (2, 1, 8, 8) and maps.dtype == torch.float32
    assert maps.isfinite().all() and not maps.requires_grad
    assert state() == before and all(torch.equal(now, weights[name]) for name, now in model.state_dict().items())
    # Whatever the batch, the memory's order and the mode of the caller.
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        last = IMAGES.to(memory_format=torch.channels_last)
        frozen = faith.compute_cam(model.requires_grad_(False), last, method)
    torch.testing.assert_close(frozen, maps, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(faith.compute_cam(model, IMAGES[1:], method), maps[1:], atol=1e-5, rtol=1e-4)


def test_deleting_what_the_decision_looks_at_drops_it_at_once():
    model = LooksAtCorner().train()
    curves = faith.deletion_insertion(model, picture(), CORNER, steps=16)
    deletion, insertion = curves["deletion"].to_numpy(), curves["insertion"].to_numpy()
    ends = faith.probability_of(model, torch.stack([picture(), faith.blur(picture())]))
    assert deletion[[0, -1]].tolist() == insertion[[-1, 0]].tolist() == pytest.approx(ends)
    assert curves.index[[0, 1, -1]].tolist() == [0, 1 / 16, 1]
    assert deletion[0] > 0.99 and deletion[1] < 0.05  # the corner is a sixteenth of the picture
    assert insertion[0] < 0.05 and insertion[1] > 0.99
    # A sixteenth of the way down in a straight line, then next to nothing.
    areas = [np.trapezoid(curve, curves.index) for curve in (deletion, insertion)]
    assert areas == pytest.approx([1 / 32, 1 - 1 / 32], abs=0.02) and model.training and model.dropout.training
    values = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    there, back = (faith.deletion_insertion(model, picture(), sign * values, steps=8) for sign in (1, -1))
    np.testing.assert_allclose(back["deletion"], there["insertion"][::-1], atol=1e-3)  # reversed, read backwards


def test_equal_values_stand_in_random_order_and_a_moved_map_has_the_same_ones_elsewhere():
    image = picture()
    flat = faith.relevance_places(torch.full((8, 8), 0.3), image)
    assert sorted(flat.flatten().tolist()) == list(range(32 * 32))
    assert abs(flat[:16].double().mean() - flat[16:].double().mean()) < 150  # in the order of rows: 512
    assert torch.equal(flat, faith.relevance_places(torch.full((8, 8), -7.0), image))
    assert not torch.equal(flat, faith.relevance_places(torch.full((8, 8), 0.3), image, seed=1))
    broken = CORNER.clone()
    broken[4, 4] = torch.nan  # of a map that is not finite somewhere, or has many zeros, only those cells are drawn
    assert faith.relevance_places(broken, image)[:8, :8].max() == 63
    moved = [faith.moved_map(torch.arange(12.0).view(3, 4), seed) for seed in (*range(6), 5)]
    assert all(sorted(one.flatten().tolist()) == list(range(12)) for one in moved)
    assert len({tuple(one.flatten().tolist()) for one in moved}) > 3 and torch.equal(*moved[-2:])


def test_what_is_gone_is_the_weighted_mean_of_its_neighbours_with_little_noise():
    def impute(image, removed, **options):
        return faith.impute(image, removed, np.random.default_rng(0), **options)

    image = torch.arange(9.0).square().view(1, 3, 3)
    beside, across = image.flatten()[[1, 3, 5, 7]].sum() / 6, image.flatten()[[0, 2, 6, 8]].sum() / 12
    filled = impute(image, torch.arange(9).view(3, 3) == 4, noise=0)
    assert float(filled[0, 1, 1]) == pytest.approx(float(beside + across))
    ramp = torch.stack(torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 20), indexing="ij"))
    plain, hole, corner = torch.full((3, 16, 20), 0.5), *torch.zeros(2, 16, 20, dtype=torch.bool)
    hole[5:9, 6:12] = corner[:4, :4] = True
    torch.testing.assert_close(impute(ramp, hole, noise=0), ramp)
    torch.testing.assert_close(impute(plain, corner, noise=0), plain)
    noisy = impute(plain, hole)
    assert (noisy[:, ~hole] == 0.5).all() and torch.equal(noisy, impute(plain, hole))
    assert noisy[:, hole].std() == pytest.approx(0.01, rel=0.3)


def test_road_of_the_map_the_reversed_one_and_one_of_something_else():
    model, values = LooksAtCorner().train(), torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    assert faith.road(model, picture(), CORNER, fractions=(0.1, 0.5, 0.9)) == pytest.approx(1, abs=0.06)
    assert faith.road(model, picture(), -values) == pytest.approx(-faith.road(model, picture(), values), abs=0.02)
    flat = [faith.road(model, picture(), torch.zeros(8, 8), seed=k) for k in range(6)]
    assert abs(sum(flat) / 6) < 0.35 and faith.road(model, picture(), DEFECT) < 0.35
    assert faith.road(LooksAtCorner(gain=0.0), picture(), DEFECT) == 0  # a decision that looks at nothing
    with pytest.raises(ValueError, match=r"fractions must lie in \(0, 1\)"):
        faith.road(LooksAtCorner(), picture(), CORNER, fractions=(1.0,))


FEW_STEPS = {"steps": 8, "road_fractions": (0.1, 0.5)}
BETTER, AROUND, BELOW = "faithful", "not distinguishable from a random map", "worse than a random map"


def test_a_map_is_faithful_when_it_shows_what_the_decision_looks_at():
    for shown, gain, allowed in [
        (CORNER, 40.0, {BETTER}),
        (-CORNER, 40.0, {BELOW}),
        (DEFECT, 0.0, {AROUND}),
        (DEFECT, 40.0, {BELOW, AROUND}),  # a map of the defect fails where the decision ignores it
    ]:
        table = faith.faithfulness(LooksAtCorner(shown, gain), pictures(10), range(10), **FEW_STEPS)
        summary = faith.summarise_faithfulness(table)
        assert {summary[name]["verdict"] for name in ("deletion", "insertion", "road")} <= allowed


def predictions(**columns):
    table = pd.DataFrame({"image": [f"images/{row}.png" for row in range(6)], "split": "test"})
    return table.assign(**{"verdict": ["TP", "FN", "TP", "TP", "TP", "TN"]} | columns)


def test_one_row_per_picture_with_what_the_single_measures_and_the_flips_of_the_run_say():
    model, flips = LooksAtCorner().train(), {"cf_flip": [None, 1, 0, 0, 1, 0], "cf_control_flip": [None, 0, 0, 1, 1, 0]}
    asked = {**FEW_STEPS, "seed": 7}
    table = faith.faithfulness(model, pictures(6), [3, 1], **asked, predictions=predictions(**flips))
    assert table[["row", "image", "cf_flip", "cf_control_flip"]].to_numpy().tolist() == [
        [3, "/data/3.png", 0, 1], [1, "/data/1.png", 1, 0],
    ]  # fmt: skip
    curves, first = faith.deletion_insertion(model, picture(3), CORNER, steps=8, seed=(7, 3)), table.iloc[0]
    for name in curves:
        assert first[f"{name}_auc"] == pytest.approx(np.trapezoid(curves[name], curves.index))
    assert first["road"] == pytest.approx(faith.road(model, picture(3), CORNER, fractions=(0.1, 0.5), seed=(7, 3)))
    assert first["probability"] > 0.99 and first["baseline_probability"] < 0.05 and model.training
    shown = {"explain": lambda _, images: CORNER[None, None], "predictions": predictions()}  # whatever the model's own
    alone = faith.faithfulness(LooksAtCorner(DEFECT), pictures(6), [1], **asked, **shown)
    pd.testing.assert_frame_equal(alone, table.iloc[[1], :-2].reset_index(drop=True))


def test_found_defects_are_those_called_defective_as_rows_of_the_table():
    data = pictures(8)
    data.samples["split"] = ["train", "train", *["test"] * 6]
    table = predictions(image=[f"images/{row}.png" for row in range(2, 8)])
    assert faith.found_defects(table, data) == [2, 4, 5, 6]
    drawn, again = (faith.found_defects(table, data, limit=2) for _ in range(2))
    assert len(drawn) == 2 and set(drawn) < {2, 4, 5, 6} and drawn == sorted(drawn) == again
    with pytest.raises(ValueError, match=r"no defective picture of 'test' was found \(no TP\)"):
        faith.found_defects(predictions(verdict="FN"), pictures(6))
    with pytest.raises(ValueError, match="hold 6 pictures of 'test', the data 4, and they are not the same"):
        faith.found_defects(predictions(), pictures(4))
    with pytest.raises(ValueError, match="rows is empty"):
        faith.faithfulness(LooksAtCorner(), data, [])


def gained(gains, **columns):
    """Scores in which ours is better than random by `gains`, on every measure."""
    gains, names = np.array(gains), [f"{place}.png" for place in range(len(gains))]
    table = {"image": names, "group": None, "probability": 0.9, "baseline_probability": 0.1, "road": gains}
    table |= {"random_road": 0.0, "random_deletion_auc": 0.5, "random_insertion_auc": 0.5}
    return pd.DataFrame(table | {"deletion_auc": 0.5 - gains, "insertion_auc": 0.5 + gains} | columns)


def test_the_interval_decides_also_of_flips_against_their_control():
    for gains, verdict in [
        ([0.1, 0.2, 0.3, 0.2, 0.1] * 2, BETTER),
        ([0.3, -0.3] * 5, AROUND),
        ([-0.2, -0.1] * 5, BELOW),
        ([1.0] + [0.0] * 11, AROUND),  # one gain among many is no share
        ([0.0] * 10, AROUND),
        ([0.2] * 10, "no interval: every picture gains the same"),
        ([0.2, 0.3, 0.1] * 3, "too few pictures of different parts to say (9, at least 10)"),
    ]:
        summary = faith.summarise_faithfulness(gained(gains))
        for found in (summary[measure] for measure in ("deletion", "insertion", "road")):
            assert found["verdict"] == verdict and found["gain"] == pytest.approx(sum(gains) / len(gains))
            assert math.isnan(found["low"]) or found["low"] - 1e-9 <= found["gain"] <= found["high"] + 1e-9
        assert summary["pictures"] == len(gains)
    for flip, control, verdict in [
        ([1.0] * 9 + [None], [0.0] * 8 + [1.0, None], "the decision depends on the defect"),
        ([1.0] * 10, [1.0] * 10, "removing the defect is not distinguishable from removing something else"),
        ([0.0] * 10, [1.0] * 10, "removing something else flips more decisions than removing the defect"),
        ([1.0] * 10, [None] * 10, "too few pictures of different parts to say (0, at least 10)"),
    ]:
        table = gained([0.0] * 10, cf_flip=np.array(flip, float), cf_control_flip=np.array(control, float))
        assert faith.summarise_faithfulness(table)["counterfactual"]["verdict"] == verdict


def test_means_and_the_reversed_map():
    table = gained([0.1, 0.3] * 6)
    summary = faith.summarise_faithfulness(table)
    means = [summary["deletion"][name] for name in ("ours", "random", "reversed")]
    assert means == pytest.approx([0.3, 0.5, 0.7]) and summary == faith.summarise_faithfulness(table)
    assert [summary[name]["reversed"] for name in ("insertion", "road")] == pytest.approx([0.3, -0.2])
    assert (summary["probability"], summary["baseline_probability"]) == pytest.approx((0.9, 0.1))
    few = faith.summarise_faithfulness(table.assign(group=["a", "b", "c"] * 4))  # drawn part by part
    assert few["parts"] == 3 and "to say (3, at least 10)" in few["road"]["verdict"]


PICTURES = pictures(4, size=64)


def test_a_real_map_passes_one_without_weights_fails_also_upside_down_and_flat_maps_leave_nothing_to_check():
    parts, model = ["deciding head", "attention", "localization", "projection", "backbone"], built("S6", 8)
    table = faith.randomisation_check(model, PICTURES, range(4), draws=2)
    assert table["part"].unique().tolist() == parts and table["row"].tolist() == [0, 1, 2, 3] * (2 * len(parts))
    summary = faith.summarise_randomisation(table)
    assert summary["verdict"] == "depends on the learnt weights" and summary["similarity"] < 0.5
    head, backbone = summary["parts"]["deciding head"], summary["parts"]["backbone"]
    assert head["similarity"] < 0.999 and backbone["probability_change"] > 0
    assert list(faith.cascade(built("S3", 8))) == [part for part in parts if part != "localization"]
    named = {id(p) for modules in faith.cascade(model).values() for part in modules for p in part.parameters()}
    beside = {name.split(".")[0] for name, parameter in model.named_parameters() if id(parameter) not in named}
    assert beside == {"cls_head", "counterfactual"}
    shown = {"explain": lambda _, images: images[:, :1, ::8, ::8], "draws": 1}
    found = faith.randomisation_check(built("S1", 8), PICTURES, range(4), **shown)
    summary = faith.summarise_randomisation(found)
    assert summary["verdict"] == "stays the same without the learnt weights: it explains nothing"
    assert summary["similarity"] == pytest.approx(1) and summary["parts"]["projection"]["ssim"] == pytest.approx(1)
    assert summary["parts"]["deciding head"]["similarity"] > 0.999
    assert faith.summarise_randomisation(found.assign(spearman=-1.0))["verdict"] == summary["verdict"]
    flat = faith.summarise_randomisation(found.assign(spearman=math.nan))
    assert flat["verdict"] == "every map is flat: there is nothing to check"


def test_weights_are_shuffled_part_by_part_by_the_seed_on_copies():
    model, seen = built("S1", 8), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def explain(asked, images):
        seen.append({name: tensor.detach().clone() for name, tensor in asked.state_dict().items()})
        return faith.compute_cam(asked, images)

    table = faith.randomisation_check(model, PICTURES, range(4), explain=explain, draws=2)
    again = faith.randomisation_check(model, PICTURES, range(4), draws=1)
    pd.testing.assert_frame_equal(again, table[table["draw"] == 0], rtol=1e-3, atol=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name, tensor in before.items():  # the same numbers elsewhere
        assert torch.equal(tensor.flatten().sort().values, seen[3][name].flatten().sort().values)
    weight = next(name for name, tensor in before.items() if name.startswith("backbone") and tensor.ndim == 4)
    assert torch.equal(before[weight], seen[1][weight])  # the head comes first
    assert not torch.equal(before[weight], seen[3][weight]) and not torch.equal(seen[6][weight], seen[3][weight])
    between = again.iloc[-1][["probability", "trained_probability"]].mean()
    changed = faith.randomisation_check(model, PICTURES, range(4), draws=1, threshold=between)["verdict_changed"]
    assert changed.iloc[-1] and not table["verdict_changed"].all()


def test_maps_compared_by_hand():
    before = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(4, 1, 2, 2)
    after = torch.stack([before[0], -before[0], torch.full((1, 2, 2), 7.0), torch.tensor([[[2.0, 1.0], [3.0, 4.0]]])])
    scores = faith.compare_maps(before, after, torch.zeros(4, 3, 16, 16))
    # One swap of neighbours among four: 1 - 6 * 2 / (4 * 15).
    assert scores["spearman"].tolist() == pytest.approx([1, -1, 0, 0.8])
    assert scores["ssim"][0] == pytest.approx(1) and scores["ssim"][1] < 0.5
    flat = faith.compare_maps(after[2:3], before[:1], torch.zeros(1, 3, 16, 16))
    assert pd.isna(flat["spearman"][0]) and flat["ssim"].shape == (1,)


QUICK = {"steps": 2, "road_fractions": [0.5], "draws": 1}
DEFECTS = [f"images/test/defective/{number}.png" for number in range(3)]


def write_run(folder, **values):
    """A run of an untrained narrow model that called its defects defective: the threshold is low enough."""
    rows = []
    for name in DEFECTS:
        pixels = torch.from_numpy(read_image(str(write_picture(folder / "data" / name, size=(64, 64)))))
        probability = faith.probability_of(built("S1"), pixels.permute(2, 0, 1)[None] / 255)
        rows.append(row("test", 1, float(probability[0]), image=name))
    threshold = min(entry["probability"] for entry in rows) - 0.01
    rows += [row("test", 0, 0.0), row("val", 1, 0.9)]
    settings = NARROW | {"out_indices": [3, 4], "strategy": "S1", "device": "cpu", "threshold": threshold}
    run = write_audited(folder, rows, pictures=True, **settings | values)
    save_weights(built("S1"), run / "model.safetensors")
    return load_run(run)


def test_what_is_measured_is_stored_and_not_asked_twice_until_other_predictions_make_it_stale(tmp_path, monkeypatch):
    run = write_run(tmp_path)
    drawn = [faith.measure_faithfulness(run, limit=1, seed=seed, **QUICK)["pictures"] for seed in range(3)]
    assert len({tuple(pictures) for pictures in drawn}) > 1 and all(len(pictures) == 1 for pictures in drawn)
    measured = faith.measure_faithfulness(run, **QUICK)
    assert measured == json.loads((run.folder / faith.FILE).read_text()) == faith.stored_faithfulness(run)
    assert (measured["split"], measured["found"], measured["pictures"]) == ("test", 3, DEFECTS)
    assert measured["map"]["pictures"] == 3 and measured["map"]["deletion"]["low"] is None  # too few for an interval
    assert list(measured["randomisation"]["parts"]) == ["deciding head", "projection", "backbone"]
    monkeypatch.setattr(faith, "faithfulness", None)
    assert faith.measure_faithfulness(run, **QUICK) == measured
    assert "The same map with shuffled weights" in write_report(run).read_text("utf-8")
    table = pd.read_csv(run.folder / "predictions.csv")
    table.assign(cam_iou=table["cam_iou"] / 2).to_csv(run.folder / "predictions.csv", index=False)
    text = write_report(run).read_text("utf-8")
    assert "it was measured for other predictions" in text and "The same map with shuffled weights" not in text
    for text, told in (("{", "cannot be read"), ("{}", "not what gainmtl report .* writes; remove it")):
        (run.folder / faith.FILE).write_text(text)
        with pytest.raises(RunError, match=told):
            write_report(run)


def test_what_cannot_be_measured_is_named_and_the_command_finds_moved_pictures(tmp_path, monkeypatch):
    with pytest.raises(RunError, match="no defect of 'test' was found"):
        faith.measure_faithfulness(write_run(tmp_path / "none", threshold=1.0), **QUICK)
    with pytest.raises(RunError, match=r"takes masks from outside \(oracle\)"):
        faith.measure_faithfulness(write_run(tmp_path / "told", metrics={"mask_source": "oracle"}), **QUICK)
    run = write_run(tmp_path)
    (tmp_path / "data").rename(tmp_path / "now")
    with pytest.raises(DataError, match=r"3 of 3 pictures .* are not there, such as .*0\.png; if .* --data-root"):
        faith.measure_faithfulness(run, **QUICK)
    monkeypatch.setattr(faith, "HOW", faith.HOW | QUICK)
    options = ["report", str(run.folder), "--faithfulness", "--data_root", str(tmp_path / "now")]
    assert CliRunner().invoke(main, options, catch_exceptions=False).exit_code == 0
    assert faith.stored_faithfulness(run)["pictures"] == DEFECTS
    table = pd.read_csv(run.folder / "predictions.csv")
    table.assign(probability=table["probability"] + [0, 0.05, 0, 0, 0]).to_csv(run.folder / "predictions.csv")
    with pytest.raises(RunError, match=r"1\.png: p\(defect\) is .* when the run was evaluated: the picture or"):
        faith.measure_faithfulness(run, data_root=tmp_path / "now")
