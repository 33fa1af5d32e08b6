import functools

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from looks_at_corner import Pictures
from narrow_models import built

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.studies.faithfulness import (
    cascade,
    compare_maps,
    compute_cam,
    randomisation_check,
    shuffle_weights,
    summarise_randomisation,
)

PICTURES = Pictures(4, size=64)


def edges(model, images):
    """A map that no weight has a part in."""
    grey = images.mean(1, keepdim=True)
    return F.adaptive_avg_pool2d((grey[..., 1:, 1:] - grey[..., :-1, :-1]).abs(), 8)


@functools.cache
def checked(strategy, explain="ours"):
    return randomisation_check(built(strategy, 8), PICTURES, range(4), explain=explain, draws=2)


@pytest.mark.parametrize(
    "strategy,parts",
    [
        ("S1", ["deciding head", "projection", "backbone"]),
        ("S3", ["deciding head", "attention", "projection", "backbone"]),
        ("S6", ["deciding head", "attention", "localization", "projection", "backbone"]),
    ],
)
def test_a_real_map_passes(strategy, parts):
    table = checked(strategy)
    assert table["part"].unique().tolist() == parts
    assert len(table) == len(parts) * 2 * 4 and table["row"].tolist() == [0, 1, 2, 3] * (2 * len(parts))
    summary = summarise_randomisation(table)
    assert summary["verdict"] == "depends on the learnt weights" and summary["similarity"] < 0.5
    assert list(summary["parts"]) == parts
    assert summary["parts"]["backbone"]["probability_change"] > 0


def test_an_edge_detector_fails():
    summary = summarise_randomisation(checked("S3", edges))
    assert summary["verdict"] == "stays the same without the learnt weights: it explains nothing"
    assert summary["similarity"] == pytest.approx(1) and summary["parts"]["attention"]["ssim"] == pytest.approx(1)
    assert "it shows features, not the decision" in summary["notes"][0]


def test_eigen_cam_does_not_follow_the_decision():
    assert summarise_randomisation(checked("S1", "eigen_cam"))["notes"]
    assert not summarise_randomisation(checked("S1"))["notes"]


def test_the_model_stays_and_the_seed_decides():
    model = built("S1", 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = randomisation_check(model, PICTURES, range(4), draws=2, batch_size=3)
    pd.testing.assert_frame_equal(again, checked("S1"), rtol=1e-3, atol=1e-3)
    other = randomisation_check(model, PICTURES, range(4), draws=2, seed=9)
    assert not other["spearman"].equals(again["spearman"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_verdicts_are_compared_at_the_threshold():
    table = checked("S1").query("part == 'backbone'")
    low, high = sorted(table.loc[table.index[0], ["probability", "trained_probability"]])
    assert low < high
    between = randomisation_check(built("S1", 8), PICTURES, [0], draws=1, threshold=(low + high) / 2)
    assert between["verdict_changed"].iloc[-1]
    below = randomisation_check(built("S1", 8), PICTURES, [0], draws=1, threshold=0.0)
    assert not below["verdict_changed"].any()


def test_shuffled_weights_are_the_same_numbers_elsewhere():
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    shuffle_weights(layer, torch.Generator().manual_seed(0))
    weight = layer[0].weight
    assert not torch.equal(weight, before["0.weight"])
    assert torch.equal(weight.flatten().sort().values, before["0.weight"].flatten().sort().values)
    assert torch.equal(layer[1].running_var, before["1.running_var"])  # all ones
    assert all(parameter.requires_grad for parameter in layer.parameters())


def test_the_cascade_holds_all_that_the_decision_rests_on():
    model = built("S6", 8)
    named = {id(parameter) for _, modules in cascade(model) for module in modules for parameter in module.parameters()}
    beside = {name.split(".")[0] for name, parameter in model.named_parameters() if id(parameter) not in named}
    assert beside == {"cls_head", "counterfactual"}


def test_maps_compared_by_hand():
    before = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(4, 1, 2, 2)
    after = torch.stack([before[0], -before[0], torch.full((1, 2, 2), 7.0), torch.tensor([[[2.0, 1.0], [3.0, 4.0]]])])
    scores = compare_maps(before, after, torch.zeros(4, 3, 16, 16))
    # One swap of neighbours among four: 1 - 6 * 2 / (4 * 15).
    assert scores["spearman"].tolist() == pytest.approx([1, -1, 0, 0.8])
    assert scores["ssim"][0] == pytest.approx(1) and scores["ssim"][1] < 0.5
    flat = compare_maps(after[2:3], before[:1], torch.zeros(1, 3, 16, 16))
    assert pd.isna(flat["spearman"][0]) and flat["ssim"].shape == (1,)


def test_flat_maps_leave_nothing_to_check():
    table = randomisation_check(built("S1", 8), PICTURES, [0, 1], explain=lambda _, x: x[:, :1, :8, :8] * 0, draws=1)
    assert summarise_randomisation(table)["verdict"] == "every map is flat: there is nothing to check"


def test_a_map_turned_upside_down_is_the_same_map():
    table = checked("S1", edges).assign(spearman=-1.0)
    assert summarise_randomisation(table)["verdict"].startswith("stays the same")


def test_the_maps_of_the_trained_model_are_the_methods():
    seen = []

    def explain(model, images):
        seen.append(not model.training and not torch.is_grad_enabled())
        return compute_cam(model, images, "layer_cam")

    randomisation_check(built("S1", 8), PICTURES, [0], explain=explain, draws=1)
    assert seen == [True] * 4


def test_what_cannot_be_checked_is_named():
    with pytest.raises(ValueError, match="got 0 rows and 3 draws"):
        randomisation_check(built("S1", 8), PICTURES, [])
    with pytest.raises(ValueError, match="got 1 rows and 0 draws"):
        randomisation_check(built("S1", 8), PICTURES, [0], draws=0)
    with pytest.raises(ModelError, match="strategy S1 has no attention"):
        randomisation_check(built("S1", 8), PICTURES, [0], explain="attention")
