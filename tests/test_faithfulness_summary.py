import math

import pandas as pd
import pytest

from gainmtl_lib.studies.faithfulness import summarise_faithfulness


def table(gains, **columns):
    """Scores in which ours is better than random by `gains`, on every measure."""
    count = len(gains)
    numbers = pd.DataFrame({"image": [f"{place}.png" for place in range(count)], "group": None})
    numbers["probability"], numbers["baseline_probability"] = 0.9, 0.1
    numbers["random_deletion_auc"] = numbers["random_insertion_auc"] = 0.5
    numbers["deletion_auc"] = [0.5 - gain for gain in gains]
    numbers["insertion_auc"] = [0.5 + gain for gain in gains]
    numbers["road"], numbers["random_road"] = gains, 0.0
    return numbers.assign(**columns)


@pytest.mark.parametrize(
    "gains,verdict",
    [
        ([0.1, 0.2, 0.3, 0.2, 0.1] * 2, "faithful"),
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


@pytest.mark.parametrize("gain", [1.0, 0.2, -0.2])
def test_equal_gains_have_no_interval(gain):
    found = summarise_faithfulness(table([gain] * 10))["road"]
    assert found["verdict"] == "no interval: every picture gains the same" and found["gain"] == pytest.approx(gain)
    assert math.isnan(found["low"]) and math.isnan(found["high"])


def test_a_map_that_gains_nothing_on_any_picture_is_not_distinguishable():
    found = summarise_faithfulness(table([0.0] * 10))["road"]
    assert found["verdict"] == "not distinguishable from a random map" and math.isnan(found["low"])


def test_one_gain_among_many_is_not_a_share():
    assert summarise_faithfulness(table([1.0] + [0.0] * 11))["road"]["verdict"].startswith("not distinguishable")


def test_pictures_of_one_part_are_drawn_together():
    gains = [0.6, -0.1, 0.5, -0.2, 0.4, 0.1, 0.3, -0.3, 0.4, 0.0, 0.2, 0.1]
    alone = summarise_faithfulness(table(gains * 4))
    of_parts = summarise_faithfulness(table(gains * 4, group=[f"part {place}" for place in range(12)] * 4))
    assert (alone["parts"], of_parts["parts"], of_parts["pictures"]) == (48, 12, 48)
    widths = [said["road"]["high"] - said["road"]["low"] for said in (alone, of_parts)]
    assert widths[1] > 1.7 * widths[0]  # four copies are worth one
    few = summarise_faithfulness(table(gains, group=["a", "b", "c"] * 4))["road"]["verdict"]
    assert few == "too few pictures of different parts to say (3, at least 10)"


def test_the_same_seed_gives_the_same_interval():
    numbers = table([0.1, 0.2, 0.4, 0.0] * 3)
    assert summarise_faithfulness(numbers) == summarise_faithfulness(numbers)


def test_few_pictures_say_nothing():
    found = summarise_faithfulness(table([0.2, 0.3, 0.1] * 3))["deletion"]
    assert found["verdict"] == "too few pictures of different parts to say (9, at least 10)"
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


def test_one_flip_among_ten_shows_nothing():
    flips = {"cf_flip": [1.0] + [0.0] * 9, "cf_control_flip": 0.0}
    found = summarise_faithfulness(table([0.0] * 10, **flips))["counterfactual"]
    assert found["low"] < 0 < found["high"]
    assert found["verdict"] == "removing the defect is not distinguishable from removing something else"


def test_no_picture_with_both_flips():
    found = summarise_faithfulness(table([0.0] * 9, cf_flip=1.0, cf_control_flip=float("nan")))["counterfactual"]
    assert found["verdict"].startswith("too few pictures of different parts to say (0,") and math.isnan(found["gain"])


def test_a_blurred_picture_that_is_called_defective_is_noted():
    (note,) = summarise_faithfulness(table([0.0] * 9, baseline_probability=0.95))["notes"]
    assert "(probability 0.95 and 0.90)" in note and "little to measure" in note


def test_without_road_and_without_rows():
    assert "road" not in summarise_faithfulness(table([0.1] * 8).drop(columns=["road", "random_road"]))
    with pytest.raises(ValueError, match="nothing to summarise"):
        summarise_faithfulness(table([]))
