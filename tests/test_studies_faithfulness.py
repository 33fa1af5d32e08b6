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
from narrow_models import NARROW, built, images
from torch import nn

from gainmtl_lib.audit.report import write_report
from gainmtl_lib.backbone import ModelError
from gainmtl_lib.cli import main
from gainmtl_lib.model import GAINMTLModel, GainOutput
from gainmtl_lib.readers import DataError, read_image
from gainmtl_lib.runs import RunError, load_run, save_weights
from gainmtl_lib.studies import faithfulness as faith

# --- A decision whose reason is known: the brightness of the upper left corner. 32 px, maps of 8 x 8 cells


def patch_map(cells):
    values = torch.zeros(8, 8)
    values[cells, cells] = 1
    return values


CORNER = patch_map(slice(0, 2))  # where the decision looks: a sixteenth of the picture
DEFECT = patch_map(slice(5, 7))  # where it does not


class LooksAtCorner(nn.Module):
    """Its map is `shown`, whatever that is; dropout of the picture tells whether it was asked as at inference."""

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


class Pictures:
    """What the functions ask of a data module."""

    def __init__(self, count, size=32):
        self.dataset, self.size = SimpleNamespace(__getitems__=self.batch), size
        names = [f"/data/{row}.png" for row in range(count)]
        self.samples = pd.DataFrame({"image": names, "group": None, "split": "test", "label": 1})

    def batch(self, rows):
        return SimpleNamespace(images=F.interpolate(torch.stack([picture(row) for row in rows]), size=self.size))


# --- Maps of the same decision by other methods


@pytest.mark.parametrize("strategy", ["S1", "S3", "S6"])
def test_hires_cam_is_our_map_by_the_number_of_cells_and_grad_cam_its_positive_part(strategy):
    model = built(strategy)
    # The head averages first, so the margin's gradient in each cell is the exact map's weight over h * w.
    features = faith.deciding_features(model, images())
    torch.testing.assert_close(faith.deciding_head(model)(features), model(images()).logits)
    ours = faith.compute_cam(model, images(), "ours") / 16
    assert ours.min() < 0 < ours.max()
    for method, expected in (("hires_cam", ours), ("grad_cam", ours.relu()), ("ours", model(images()).cam)):
        torch.testing.assert_close(faith.compute_cam(model, images(), method), expected)


def test_layer_cam_by_hand():
    features, gradient = torch.tensor([[[[1.0, -2.0]], [[3.0, 4.0]]]]), torch.tensor([[[[0.5, 1.0]], [[-1.0, 0.25]]]])
    maps = {name: faith._from_gradient(features, gradient, name)[0, 0, 0].tolist() for name in faith.CAM_METHODS[1:4]}
    assert maps["layer_cam"] == [0.5, 0.0]  # 0.5 * 1 + 0; the second is -2 + 1, cut
    assert maps["hires_cam"] == [-2.5, -1.0]
    assert maps["grad_cam"] == [0.0, 0.0]  # 0.75 * 1 - 0.375 * 3 < 0, and 0.75 * -2 - 0.375 * 4


def test_eigen_cam_is_the_first_component_with_what_stands_out_made_positive():
    features = torch.from_numpy(np.random.default_rng(0).random((2, 6, 5, 7), dtype=np.float32))
    features[0, :, 2, 3] += 5  # one cell stands out: up, whatever the solver's sign
    features[1, :, 2, 3] -= 5
    maps = faith._eigen_cam(features)[:, 0]
    for ours, given in zip(maps, features):
        cells = given.flatten(1) - given.flatten(1).mean(1, keepdim=True)
        first = torch.linalg.svd(cells.T, full_matrices=False).Vh[0] @ cells
        torch.testing.assert_close(ours.flatten().abs(), first.abs(), atol=1e-4, rtol=1e-4)
        assert ours.argmax() == 2 * 7 + 3 and ours.max() >= -ours.min()
    assert not faith._eigen_cam(torch.ones(1, 4, 3, 3)).any()


def test_score_cam_weighs_channels_by_the_margin_seen_through_them(monkeypatch):
    model = built("S3")
    features = faith.deciding_features(model, images())
    margins = torch.empty(2, 8)
    for place in range(16):
        (which, channel), whole = divmod(place, 8), images()[place // 8]
        mask = F.interpolate(features[which, channel][None, None], (64, 64), mode="bilinear", align_corners=True)
        mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-8)
        logits = model(model.mean + (whole - model.mean) * mask).logits[0]
        margins[which, channel] = (logits[1] - logits[0]).detach()
    expected = (margins.softmax(1)[..., None, None] * features).sum(1, keepdim=True).relu()
    monkeypatch.setattr(faith, "CHANNELS_AT_A_TIME", 3)
    torch.testing.assert_close(faith.compute_cam(model, images(), "score_cam"), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [name for name in faith.CAM_METHODS if name != "score_cam"])
def test_a_picture_has_its_map_whatever_the_batch_and_memory_format(method):
    model, three = built("S3"), images(3)
    together = faith.compute_cam(model, three, method)
    torch.testing.assert_close(faith.compute_cam(model, three[1:2], method), together[1:2], atol=1e-5, rtol=1e-4)
    last = three.to(memory_format=torch.channels_last)
    torch.testing.assert_close(faith.compute_cam(model, last, method), together, atol=1e-5, rtol=1e-4)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        frozen = faith.compute_cam(model.requires_grad_(False), three.clone(), method)
    torch.testing.assert_close(frozen, together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", faith.CAM_METHODS)
def test_every_method_gives_raw_maps_on_the_grid_and_leaves_the_model_as_it_was(method):
    model = GAINMTLModel(**NARROW, strategy="S3", map_stride=8, freeze_backbone_stages=1).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    held = model.attention.attended_cls_head.out.weight
    held.grad = torch.ones_like(held)
    maps = faith.compute_cam(model, images(), method)
    assert maps.shape == (2, 1, 8, 8) and maps.dtype == torch.float32
    assert maps.isfinite().all() and not maps.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags and not all(flags)
    assert torch.equal(held.grad, torch.ones_like(held))
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not held)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_hooks_are_gone_after_an_error_and_an_unknown_method_is_named():
    model = built("S1")
    with pytest.raises(RuntimeError):
        faith.compute_cam(model, torch.rand(1, 5, 64, 64), "grad_cam")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ModelError, match=r"method must be one of ours, grad_cam, .*, score_cam, got 'gradcam'"):
        faith.compute_cam(model, images(), "gradcam")


# --- Deletion and insertion


def test_deleting_what_the_decision_looks_at_drops_it_at_once():
    model = LooksAtCorner().train()
    curves = faith.deletion_insertion(model, picture(), CORNER, steps=16)
    deletion, insertion = curves["deletion"].to_numpy(), curves["insertion"].to_numpy()
    ends = faith.defect_probability(model, torch.stack([picture(), faith.blur(picture())]))
    assert deletion[[0, -1]].tolist() == insertion[[-1, 0]].tolist() == pytest.approx(ends)
    assert curves.index[[0, 1, -1]].tolist() == [0, 1 / 16, 1]
    assert deletion[0] > 0.99 and deletion[1] < 0.05  # the corner is a sixteenth of the picture
    assert insertion[0] < 0.05 and insertion[1] > 0.99
    # A sixteenth of the way down in a straight line, then next to nothing.
    assert np.trapezoid(curves["deletion"], curves.index) == pytest.approx(1 / 32, abs=0.02)
    assert np.trapezoid(curves["insertion"], curves.index) == pytest.approx(1 - 1 / 32, abs=0.02)
    assert model.training and model.dropout.training


def test_deletion_by_the_reversed_map_is_insertion_read_backwards():
    values = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    model, image = LooksAtCorner(), torch.rand(3, 32, 32)
    there, back = (faith.deletion_insertion(model, image, sign * values, steps=8) for sign in (1, -1))
    np.testing.assert_allclose(back["deletion"], there["insertion"][::-1], atol=1e-3)


def test_equal_values_stand_in_random_order_not_in_that_of_rows():
    image = picture()
    flat = faith.relevance_places(torch.full((8, 8), 0.3), image)
    assert sorted(flat.flatten().tolist()) == list(range(32 * 32))
    assert abs(flat[:16].double().mean() - flat[16:].double().mean()) < 150  # in the order of rows: 512
    assert torch.equal(flat, faith.relevance_places(torch.full((8, 8), -7.0), image))
    assert not torch.equal(flat, faith.relevance_places(torch.full((8, 8), 0.3), image, seed=1))
    # Of a map with many zeros, or one that is not finite somewhere, only those cells are drawn.
    broken = CORNER.clone()
    broken[4, 4] = torch.nan
    for seed, values in enumerate((CORNER, CORNER, broken)):
        assert faith.relevance_places(values, image, seed)[:8, :8].max() == 63


def test_a_moved_map_has_the_same_values_elsewhere():
    values = torch.arange(12.0).view(3, 4)
    moved = [faith.moved_map(values, seed) for seed in range(6)]
    assert all(sorted(one.flatten().tolist()) == list(range(12)) for one in moved)
    assert len({tuple(one.flatten().tolist()) for one in moved}) > 3
    assert torch.equal(faith.moved_map(values, 3), moved[3])
    image = torch.rand(3, 64, 48, generator=torch.Generator().manual_seed(0))
    blurred = faith.blur(image)
    assert blurred.mean() == pytest.approx(float(image.mean()), abs=0.02) and blurred.std() < 0.1 * image.std()
    with pytest.raises(ValueError, match=r"fractions must lie in \(0, 1\)"):
        faith.road(LooksAtCorner(), picture(), CORNER, fractions=(1.0,))


# --- ROAD


def holes(rows, columns):
    removed = torch.zeros(16, 20, dtype=torch.bool)
    removed[rows, columns] = True
    return removed


HOLE, EDGE = holes(slice(5, 9), slice(6, 12)), holes(slice(4), slice(4))


def impute(image, removed, **options):
    return faith.impute(image, removed, np.random.default_rng(0), **options)


def test_a_ramp_and_a_plain_picture_are_restored_with_little_noise():
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 20), indexing="ij")
    ramp, plain = torch.stack([rows, columns, (rows + columns) / 2]), torch.full((3, 16, 20), 0.5)
    torch.testing.assert_close(impute(ramp, HOLE, noise=0), ramp)
    torch.testing.assert_close(impute(plain, EDGE, noise=0), plain)
    noisy = impute(plain, HOLE)
    assert (noisy[:, ~HOLE] == 0.5).all() and torch.equal(noisy, impute(plain, HOLE))
    assert noisy[:, HOLE].std() == pytest.approx(0.01, rel=0.3)


def test_a_pixel_is_the_weighted_mean_of_its_neighbours():
    image = torch.arange(9.0).square().view(1, 3, 3)
    beside, across = image.flatten()[[1, 3, 5, 7]].sum() / 6, image.flatten()[[0, 2, 6, 8]].sum() / 12
    filled = impute(image, torch.arange(9).view(3, 3) == 4, noise=0)
    assert float(filled[0, 1, 1]) == pytest.approx(float(beside + across))


def test_road_of_the_map_the_reversed_one_and_one_of_something_else():
    model, values = LooksAtCorner().train(), torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    assert faith.road(model, picture(), CORNER, fractions=(0.1, 0.5, 0.9)) == pytest.approx(1, abs=0.06)
    assert faith.road(model, picture(), -values) == pytest.approx(-faith.road(model, picture(), values), abs=0.02)
    flat = [faith.road(model, picture(), torch.zeros(8, 8), seed=k) for k in range(6)]
    assert abs(sum(flat) / 6) < 0.35
    assert faith.road(model, picture(), DEFECT) < 0.35
    assert faith.road(LooksAtCorner(gain=0.0), picture(), DEFECT) == 0  # a decision that looks at nothing


# --- Many pictures

FEW_STEPS = {"steps": 8, "road_fractions": (0.1, 0.5)}


@pytest.mark.parametrize(
    ("shown", "gain", "allowed"),
    [
        (CORNER, 40.0, {"faithful"}),
        (-CORNER, 40.0, {"worse than a random map"}),
        (DEFECT, 0.0, {"not distinguishable from a random map"}),
        # A map of the defect fails where the decision ignores it, and so does a flat one.
        (DEFECT, 40.0, {"worse than a random map", "not distinguishable from a random map"}),
        (torch.zeros(8, 8), 40.0, {"worse than a random map", "not distinguishable from a random map"}),
    ],
)
def test_a_map_is_faithful_when_it_shows_what_the_decision_looks_at(shown, gain, allowed):
    table = faith.faithfulness(LooksAtCorner(shown, gain), Pictures(10), range(10), **FEW_STEPS)
    summary = faith.summarise_faithfulness(table)
    assert {summary[name]["verdict"] for name in ("deletion", "insertion", "road")} <= allowed


def test_one_row_per_picture_with_what_the_single_measures_say():
    model = LooksAtCorner().train()
    table = faith.faithfulness(model, Pictures(5), [3, 1], **FEW_STEPS, seed=7)
    assert table["row"].tolist() == [3, 1] and table["image"].tolist() == ["/data/3.png", "/data/1.png"]
    curves = faith.deletion_insertion(model, picture(3), CORNER, steps=8, seed=(7, 3))
    first = table.iloc[0]
    assert first["deletion_auc"] == pytest.approx(np.trapezoid(curves["deletion"], curves.index))
    assert first["insertion_auc"] == pytest.approx(np.trapezoid(curves["insertion"], curves.index))
    assert first["road"] == pytest.approx(faith.road(model, picture(3), CORNER, fractions=(0.1, 0.5), seed=(7, 3)))
    assert first["probability"] > 0.99 and first["baseline_probability"] < 0.05
    assert model.training
    alone = faith.faithfulness(model, Pictures(5), [1], **FEW_STEPS, seed=7)
    pd.testing.assert_frame_equal(alone, table.iloc[[1]].reset_index(drop=True))


def predictions(**columns):
    table = pd.DataFrame({"image": [f"images/{row}.png" for row in range(6)], "split": "test"})
    return table.assign(**{"verdict": ["TP", "FN", "TP", "TP", "TP", "TN"]} | columns)


def test_the_flips_of_the_run_stand_beside():
    flips = predictions(cf_flip=[1.0, None, 0.0, 1, 1, None], cf_control_flip=[0.0, None, 0.0, 0, 1, None])
    table = faith.faithfulness(LooksAtCorner(), Pictures(6), [0, 2], **FEW_STEPS, predictions=flips)
    assert table["cf_flip"].tolist() == [1, 0] and table["cf_control_flip"].tolist() == [0, 0]
    table = faith.faithfulness(LooksAtCorner(), Pictures(6), [0], **FEW_STEPS, predictions=predictions())
    assert "cf_flip" not in table


def test_found_defects_are_those_called_defective_as_rows_of_the_table():
    data = Pictures(8)
    data.samples["split"] = ["train", "train", *["test"] * 6]
    table = predictions(image=[f"images/{row}.png" for row in range(2, 8)])
    assert faith.found_defects(table, data) == [2, 4, 5, 6]
    drawn = faith.found_defects(table, data, limit=2)
    assert len(drawn) == 2 and set(drawn) < {2, 4, 5, 6} and drawn == sorted(drawn)
    assert drawn == faith.found_defects(table, data, limit=2)
    with pytest.raises(ValueError, match=r"no defective picture of 'test' was found \(no TP\)"):
        faith.found_defects(predictions(verdict="FN"), Pictures(6))
    with pytest.raises(ValueError, match="hold 6 pictures of 'test', the data 4, and they are not the same"):
        faith.found_defects(predictions(), Pictures(4))
    with pytest.raises(ValueError, match="rows is empty"):
        faith.faithfulness(LooksAtCorner(), data, [])


def test_maps_of_another_method():
    asked, hires = (built("S1"), Pictures(1, size=64), [0]), functools.partial(faith.compute_cam, method="hires_cam")
    own, other = faith.faithfulness(*asked, **FEW_STEPS), faith.faithfulness(*asked, explain=hires, **FEW_STEPS)
    pd.testing.assert_frame_equal(own, other, rtol=1e-4)


# --- What they allow to say


def gained(gains, **columns):
    """Scores in which ours is better than random by `gains`, on every measure."""
    gains, names = np.array(gains), [f"{place}.png" for place in range(len(gains))]
    table = {"image": names, "group": None, "probability": 0.9, "baseline_probability": 0.1, "road": gains}
    table |= {"random_road": 0.0, "random_deletion_auc": 0.5, "random_insertion_auc": 0.5}
    return pd.DataFrame(table | {"deletion_auc": 0.5 - gains, "insertion_auc": 0.5 + gains} | columns)


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([0.1, 0.2, 0.3, 0.2, 0.1] * 2, "faithful"),
        ([0.3, -0.3] * 5, "not distinguishable from a random map"),
        ([-0.2, -0.1] * 5, "worse than a random map"),
        ([1.0] + [0.0] * 11, "not distinguishable from a random map"),  # one gain among many is no share
        ([0.0] * 10, "not distinguishable from a random map"),
        ([0.2] * 10, "no interval: every picture gains the same"),
        ([0.2, 0.3, 0.1] * 3, "too few pictures of different parts to say (9, at least 10)"),
    ],
)
def test_the_interval_decides(gains, verdict):
    summary = faith.summarise_faithfulness(gained(gains))
    for measure in ("deletion", "insertion", "road"):
        found = summary[measure]
        assert found["verdict"] == verdict and found["gain"] == pytest.approx(sum(gains) / len(gains))
        assert math.isnan(found["low"]) or found["low"] - 1e-9 <= found["gain"] <= found["high"] + 1e-9
    assert summary["pictures"] == len(gains) and summary["notes"] == []


def test_means_the_reversed_map_and_the_same_interval_each_time():
    table = gained([0.1, 0.3] * 6)
    summary = faith.summarise_faithfulness(table)
    means = [summary["deletion"][name] for name in ("ours", "random", "reversed")]
    assert means == pytest.approx([0.3, 0.5, 0.7])
    assert [summary[name]["reversed"] for name in ("insertion", "road")] == pytest.approx([0.3, -0.2])
    assert summary == faith.summarise_faithfulness(table)
    (note,) = faith.summarise_faithfulness(table.assign(baseline_probability=0.95))["notes"]
    assert "(probability 0.95 and 0.90)" in note and "little to measure" in note
    few = faith.summarise_faithfulness(table.assign(group=["a", "b", "c"] * 4))  # drawn part by part
    assert (few["pictures"], few["parts"]) == (12, 3)
    assert few["road"]["verdict"] == "too few pictures of different parts to say (3, at least 10)"


SAME = "removing the defect is not distinguishable from removing something else"


@pytest.mark.parametrize(
    ("flip", "control", "verdict"),
    [
        ([1.0] * 9 + [None], [0.0] * 8 + [1.0, None], "the decision depends on the defect"),
        ([1.0] * 10, [1.0] * 10, SAME),
        ([1.0] + [0.0] * 9, [0.0] * 10, SAME),
        ([0.0] * 10, [1.0] * 10, "removing something else flips more decisions than removing the defect"),
        ([1.0] * 10, [None] * 10, "too few pictures of different parts to say (0, at least 10)"),
    ],
)
def test_flips_against_their_control(flip, control, verdict):
    table = gained([0.0] * 10, cf_flip=pd.Series(flip, dtype=float), cf_control_flip=pd.Series(control, dtype=float))
    assert faith.summarise_faithfulness(table)["counterfactual"]["verdict"] == verdict


# --- Randomised weights

PICTURES = Pictures(4, size=64)


def edges(model, images):
    """A map that no weight has a part in."""
    grey = images.mean(1, keepdim=True)
    return F.adaptive_avg_pool2d((grey[..., 1:, 1:] - grey[..., :-1, :-1]).abs(), 8)


@functools.cache
def checked(strategy, explain=faith.compute_cam):
    return faith.randomisation_check(built(strategy, 8), PICTURES, range(4), explain=explain, draws=2)


def test_a_real_map_passes():
    parts = ["deciding head", "attention", "localization", "projection", "backbone"]
    table = checked("S6")
    assert table["part"].unique().tolist() == parts == list(faith.cascade(built("S6", 8)))
    assert list(faith.cascade(built("S3", 8))) == [part for part in parts if part != "localization"]
    assert table["row"].tolist() == [0, 1, 2, 3] * (2 * len(parts))
    summary = faith.summarise_randomisation(table)
    assert summary["verdict"] == "depends on the learnt weights" and summary["similarity"] < 0.5
    assert not summary["notes"] and summary["parts"]["backbone"]["probability_change"] > 0


def test_an_edge_detector_fails_also_upside_down_and_flat_maps_leave_nothing_to_check():
    found = checked("S1", edges)
    summary = faith.summarise_randomisation(found)
    assert summary["verdict"] == "stays the same without the learnt weights: it explains nothing"
    assert summary["similarity"] == pytest.approx(1) and summary["parts"]["projection"]["ssim"] == pytest.approx(1)
    assert "it shows features, not the decision" in summary["notes"][0]
    assert faith.summarise_randomisation(found.assign(spearman=-1.0))["verdict"] == summary["verdict"]
    flat = checked("S1", lambda _, images: images[:, :1, :8, :8] * 0)
    assert faith.summarise_randomisation(flat)["verdict"] == "every map is flat: there is nothing to check"


def test_weights_are_shuffled_part_by_part_by_the_seed_on_copies():
    model, seen = built("S1", 8), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def explain(asked, images):
        seen.append({name: tensor.detach().clone() for name, tensor in asked.state_dict().items()})
        return faith.compute_cam(asked, images)

    again = faith.randomisation_check(model, PICTURES, range(4), explain=explain, draws=2)
    pd.testing.assert_frame_equal(again, checked("S1"), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name, tensor in before.items():  # the same numbers elsewhere
        assert torch.equal(tensor.flatten().sort().values, seen[3][name].flatten().sort().values)
    weight = next(name for name, tensor in before.items() if name.startswith("backbone") and tensor.ndim == 4)
    assert torch.equal(before[weight], seen[1][weight])  # the head comes first
    assert not torch.equal(before[weight], seen[3][weight]) and not torch.equal(seen[6][weight], seen[3][weight])
    other = faith.randomisation_check(model, PICTURES, [0], draws=1, seed=9)
    assert other["spearman"].tolist() != again.query("row == 0 and draw == 0")["spearman"].tolist()
    last = again.query("part == 'backbone' and draw == 0").iloc[0]
    between = (last["probability"] + last["trained_probability"]) / 2
    asked = faith.randomisation_check(model, PICTURES, [0], draws=1, threshold=between)
    assert asked["verdict_changed"].iloc[-1] and not again["verdict_changed"].all()


def test_the_cascade_holds_all_that_the_decision_rests_on():
    model = built("S6", 8)
    named = {id(p) for modules in faith.cascade(model).values() for part in modules for p in part.parameters()}
    beside = {name.split(".")[0] for name, parameter in model.named_parameters() if id(parameter) not in named}
    assert beside == {"cls_head", "counterfactual"}


def test_maps_compared_by_hand():
    before = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(4, 1, 2, 2)
    after = torch.stack([before[0], -before[0], torch.full((1, 2, 2), 7.0), torch.tensor([[[2.0, 1.0], [3.0, 4.0]]])])
    scores = faith.compare_maps(before, after, torch.zeros(4, 3, 16, 16))
    # One swap of neighbours among four: 1 - 6 * 2 / (4 * 15).
    assert scores["spearman"].tolist() == pytest.approx([1, -1, 0, 0.8])
    assert scores["ssim"][0] == pytest.approx(1) and scores["ssim"][1] < 0.5
    flat = faith.compare_maps(after[2:3], before[:1], torch.zeros(1, 3, 16, 16))
    assert pd.isna(flat["spearman"][0]) and flat["ssim"].shape == (1,)


# --- A run's own map, measured, stored, shown in the report, and stale after a change

QUICK = {"steps": 2, "road_fractions": [0.5], "draws": 1}
DEFECTS = [f"images/test/defective/{number}.png" for number in range(3)]


def write_run(folder, *, found=DEFECTS, **values):
    """A run of an untrained narrow model that called its defects defective: the threshold is low enough."""
    rows = []
    for name in DEFECTS:
        pixels = torch.from_numpy(read_image(str(write_picture(folder / "data" / name, size=(64, 64)))))
        probability = faith.defect_probability(built("S1"), pixels.permute(2, 0, 1)[None] / 255)
        rows.append(row("test", 1, float(probability[0]), image=name))
    threshold = min(entry["probability"] for entry in rows) - 0.01
    rows = [entry for entry in rows if entry["image"] in found] + [row("test", 0, 0.0), row("val", 1, 0.9)]
    settings = NARROW | {"out_indices": [3, 4], "strategy": "S1", "device": "cpu"}
    run = write_audited(folder, rows, threshold=threshold, pictures=True, **settings, **values)
    save_weights(built("S1"), run / "model.safetensors")
    return load_run(run)


def test_what_is_measured_is_stored_with_how_it_was_and_not_asked_twice(tmp_path, monkeypatch):
    run = write_run(tmp_path)
    drawn = [faith.measure_faithfulness(run, limit=1, seed=seed, **QUICK)["pictures"] for seed in range(3)]
    assert len({tuple(pictures) for pictures in drawn}) > 1 and all(len(pictures) == 1 for pictures in drawn)
    measured = faith.measure_faithfulness(run, **QUICK)
    assert measured == json.loads((run.folder / faith.FILE).read_text()) == faith.stored_faithfulness(run)
    assert (measured["split"], measured["found"], measured["pictures"]) == ("test", 3, DEFECTS)
    assert measured["settings"] == {"limit": 24, "steps": 2, "road_fractions": [0.5], "draws": 1, "seed": 0}
    assert measured["map"]["pictures"] == 3 and measured["map"]["deletion"]["low"] is None  # too few for an interval
    assert -1 <= measured["map"]["road"]["gain"] <= 1
    assert list(measured["randomisation"]["parts"]) == ["deciding head", "projection", "backbone"]
    monkeypatch.setattr(faith, "faithfulness", None)
    assert faith.measure_faithfulness(run, **QUICK) == measured


def test_other_predictions_make_it_stale_and_the_report_says_so(tmp_path):
    run = write_run(tmp_path)
    assert "gainmtl report RUN --faithfulness does" in write_report(run).read_text("utf-8")
    faith.measure_faithfulness(run, **QUICK)
    assert "The same map with shuffled weights" in write_report(run).read_text("utf-8")
    table = pd.read_csv(run.folder / "predictions.csv")
    table.assign(cam_iou=table["cam_iou"] / 2).to_csv(run.folder / "predictions.csv", index=False)
    assert faith.stored_faithfulness(run) is None
    text = write_report(run).read_text("utf-8")
    assert "it was measured for other predictions" in text and "The same map with shuffled weights" not in text
    for text, told in (("{", "cannot be read"), ("{}", "not what gainmtl report .* writes; remove it")):
        (run.folder / faith.FILE).write_text(text)
        with pytest.raises(RunError, match=told):
            write_report(run)


def test_what_cannot_be_measured_is_named(tmp_path):
    with pytest.raises(RunError, match="no defect of 'test' was found"):
        faith.measure_faithfulness(write_run(tmp_path / "none", found=[]), **QUICK)
    with pytest.raises(RunError, match=r"takes masks from outside \(oracle\)"):
        faith.measure_faithfulness(write_run(tmp_path / "told", metrics={"mask_source": "oracle"}), **QUICK)
    run = write_run(tmp_path)
    (tmp_path / "data").rename(tmp_path / "now")
    with pytest.raises(DataError, match=r"3 of 3 pictures .* are not there, such as .*0\.png; if .* --data-root"):
        faith.measure_faithfulness(run, **QUICK)
    table = pd.read_csv(run.folder / "predictions.csv")
    table.assign(probability=table["probability"] + [0, 0.05, 0, 0, 0]).to_csv(run.folder / "predictions.csv")
    with pytest.raises(RunError, match=r"1\.png: p\(defect\) is .* when the run was evaluated: the picture or"):
        faith.measure_faithfulness(run, data_root=tmp_path / "now", **QUICK)


def test_the_command_measures_where_the_pictures_are_now(tmp_path, monkeypatch):
    run = write_run(tmp_path)
    (tmp_path / "data").rename(tmp_path / "now")
    monkeypatch.setattr(faith, "HOW", faith.HOW | QUICK)
    options = ["report", str(run.folder), "--faithfulness", "--data_root", str(tmp_path / "now")]
    result = CliRunner().invoke(main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    stored = faith.stored_faithfulness(run)
    assert stored is not None and stored["pictures"] == DEFECTS and math.isfinite(stored["map"]["insertion"]["gain"])
