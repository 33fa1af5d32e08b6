import math

import pandas as pd
import pytest

from gainmtl_lib.explain.faithfulness_summary import summarise_faithfulness


def table(gains, **columns):
    """Scores in which ours is better than random by `gains`, on every measure."""
    count = len(gains)
    numbers = pd.DataFrame({"probability": [0.9] * count, "baseline_probability": 0.1})
    numbers["random_deletion_auc"] = numbers["random_insertion_auc"] = 0.5
    numbers["deletion_auc"] = [0.5 - gain for gain in gains]
    numbers["insertion_auc"] = [0.5 + gain for gain in gains]
    numbers["road"], numbers["random_road"] = gains, 0.0
    return numbers.assign(**columns)


@pytest.mark.parametrize(
    "gains,verdict",
    [
        ([0.2] * 10, "faithful"),
        ([0.1, 0.2, 0.3, 0.2, 0.1] * 2, "faithful"),
        ([0.0] * 10, "not distinguishable from a random map"),
        ([0.3, -0.3] * 5, "not distinguishable from a random map"),
        ([-0.2, -0.1] * 5, "worse than a random map"),
    ],
)
def test_the_interval_decides(gains, verdict):
    summary = summarise_faithfulness(table(gains))
    for measure in ("deletion", "insertion", "road"):
        found = summary[measure]
        assert found["verdict"] == verdict
        assert found["gain"] == pytest.approx(sum(gains) / len(gains))
        assert found["low"] <= found["gain"] + 1e-9 and found["gain"] <= found["high"] + 1e-9
    assert summary["pictures"] == 10 and summary["notes"] == []


def test_means_and_the_reversed_map():
    summary = summarise_faithfulness(table([0.1, 0.3] * 4))
    deletion = summary["deletion"]
    assert [deletion[name] for name in ("ours", "random", "reversed")] == pytest.approx([0.3, 0.5, 0.7])
    assert summary["insertion"]["reversed"] == pytest.approx(0.3)
    assert summary["road"]["reversed"] == pytest.approx(-0.2)
    assert summary["probability"] == pytest.approx(0.9)


def test_the_same_seed_gives_the_same_interval():
    numbers = table([0.1, 0.2, 0.4, 0.0] * 3)
    assert summarise_faithfulness(numbers) == summarise_faithfulness(numbers)


def test_few_pictures_say_nothing():
    found = summarise_faithfulness(table([0.2] * 7))["deletion"]
    assert found["verdict"] == "too few pictures to say (7, at least 8)"
    assert math.isnan(found["low"]) and found["gain"] == pytest.approx(0.2)


def test_flips_against_their_control():
    flips = {"cf_flip": [1.0] * 9 + [None], "cf_control_flip": [0.0] * 8 + [1.0, None]}
    found = summarise_faithfulness(table([0.0] * 10, **flips))["counterfactual"]
    assert found["flip"] == 1 and found["control_flip"] == pytest.approx(1 / 9)
    assert found["verdict"] == "the decision depends on the defect"
    flips = {"cf_flip": [1.0] * 10, "cf_control_flip": [1.0] * 10}
    found = summarise_faithfulness(table([0.0] * 10, **flips))["counterfactual"]
    assert found["verdict"] == "removing the defect is not distinguishable from removing something else"
    flips = {"cf_flip": [0.0] * 10, "cf_control_flip": [1.0] * 10}
    found = summarise_faithfulness(table([0.0] * 10, **flips))["counterfactual"]
    assert found["verdict"] == "removing something else flips more decisions than removing the defect"


def test_no_picture_with_both_flips():
    found = summarise_faithfulness(table([0.0] * 9, cf_flip=1.0, cf_control_flip=float("nan")))["counterfactual"]
    assert found["verdict"].startswith("too few pictures to say (0") and math.isnan(found["gain"])


def test_a_blurred_picture_that_is_called_defective_is_noted():
    (note,) = summarise_faithfulness(table([0.0] * 9, baseline_probability=0.95))["notes"]
    assert "(probability 0.95 and 0.90)" in note and "little to measure" in note


def test_without_road_and_without_rows():
    assert "road" not in summarise_faithfulness(table([0.1] * 8).drop(columns=["road", "random_road"]))
    with pytest.raises(ValueError, match="nothing to summarise"):
        summarise_faithfulness(table([]))
