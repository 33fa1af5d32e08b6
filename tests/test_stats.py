"""Intervals against published numbers, scores and tests counted by hand, pictures of one part that count as one."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from audited import row, table_of

from gainmtl_lib import stats
from gainmtl_lib.findings import DataError
from gainmtl_lib.stats import Estimate, paired_difference

TWELVE = np.arange(12)


@pytest.mark.parametrize(("hits", "count"), [(0, 3), (5, 10), (3, 52), (49, 52), (52, 52), (1, 1000)])
def test_wilson_is_scipys_for_whole_counts(hits, count):
    expected = scipy.stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert stats.wilson(hits, count) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("values", "groups", "count"), [
    ([1, 0, 1, 1], range(4), 4),  # pictures of their own parts are independent
    (np.tile([1, 0, 1, 0, 0, 1], 2), np.tile(range(6), 2), 6),  # copies add nothing
    (np.tile([1, 0], 6), np.repeat(range(6), 2), 12),  # parts of equal shares are no worse than independent
    (np.ones(6), [0, 0, 0, 0, 1, 2], 2),  # where all agree only parts count: 6² / (16 + 1 + 1)
])  # fmt: skip
def test_how_many_independent_pictures_there_are(values, groups, count):
    assert stats.effective_count(np.array(values), np.array(groups)) == count


def test_pictures_without_a_part_are_their_own_and_no_pictures_have_no_answer():
    first, second = (pd.DataFrame({"group": groups}) for groups in (["a", "b", None], ["c", None]))
    assert not stats.share_parts(first, second) and stats.share_parts(first, pd.DataFrame({"group": ["b"]}))
    codes = stats.group_codes(pd.DataFrame({"image": ["a", "b", "c", "d"], "group": ["p", None, "p", None]}))
    assert codes[0] == codes[2] and len(set(codes)) == 3
    nothing = np.array([])
    asked = stats.proportion(nothing, nothing), paired_difference(nothing, nothing, nothing)
    for none in (*asked, stats.mean_gain(nothing, nothing), stats.mean_score(np.array([np.nan]), np.arange(1))):
        assert math.isnan(none.value) and none.count == 0 and not none.has_interval
    assert not stats.difference(Estimate(0.9, 0.8, 1.0), Estimate(0.5), independent=True).has_interval


def test_the_mean_leaves_out_pictures_without_an_answer():
    mean = stats.mean_score(np.array([0.25, np.nan, 0.75]), np.arange(3))
    assert (mean.value, mean.count, mean.hits, mean.has_interval) == (0.5, 2, None, False)  # two parts
    share = stats.mean_score(np.array([1.0, np.nan, 0.0, 1.0, 1.0]), np.arange(5))
    assert (share.value, share.hits, share.count, share.groups) == (0.75, 3, 4, 4)
    assert (share.low, share.high) == pytest.approx(stats.wilson(3, 4))
    # One gain among many is no share, though all are 0 or 1.
    gain = stats.mean_gain(np.array([1.0] + [0.0] * 11), TWELVE)
    assert gain.value == pytest.approx(1 / 12) and gain.low == 0 and gain.hits is None
    assert not stats.mean_gain(np.ones(12), TWELVE).has_interval
    assert not stats.mean_score(np.linspace(0, 1, 9), np.arange(9)).has_interval  # one group less than are enough


def test_parts_are_drawn_whole_so_that_copies_make_no_interval_narrower_and_strata_apart():
    values, parts = np.linspace(0.1, 0.9, 30), np.arange(30)
    once, thrice = stats.mean_score(values, parts), stats.mean_score(np.tile(values, 3), np.tile(parts, 3))
    half = 1.96 * values.std() / math.sqrt(30)
    assert once == stats.mean_score(values, parts)
    assert (once.low, once.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.02)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert (thrice.count, thrice.groups) == (90, 30)
    first, second, parts = np.array([1, 1, 1, 0, 1, 0, 0, 1]), np.array([0, 0, 1, 0, 0, 0, 1, 0]), np.arange(8)
    once, thrice = (paired_difference(*(np.tile(v, times) for v in (first, second, parts))) for times in (1, 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert (thrice.count, thrice.groups, thrice.hits) == (24, 8, None)
    # Strata keep the number of each kind.
    labels = (TWELVE < 5).astype(int)
    drawn = [stats.resampled(lambda rows: float(labels[rows].sum()), TWELVE, strata=of) for of in (None, labels)]
    assert [one.has_interval for one in drawn] == [True, False]


def paired(both, only_first, only_second, neither):
    """`paired_difference` of pictures counted by their two answers, each of a part of its own."""
    pairs = np.repeat([(1, 1), (1, 0), (0, 1), (0, 0)], [both, only_first, only_second, neither], axis=0)
    return paired_difference(pairs[:, 0], pairs[:, 1], np.arange(len(pairs)))


def test_differences_of_shares_are_newcombes_and_of_the_same_parts_allow_for_the_worst_correlation():
    # Newcombe 1998, table II, (a): 56/70 and 48/80, method 10
    shares = [stats.proportion(np.arange(n) < hits, np.arange(n)) for hits, n in ((56, 70), (48, 80))]
    gap = stats.difference(*shares, independent=True)
    assert (gap.value, gap.count) == (pytest.approx(0.2), 150)
    assert (gap.low, gap.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
    gap = stats.difference(Estimate(0.9, 0.8, 0.95), Estimate(0.5, 0.3, 0.6), independent=False)
    assert (gap.low, gap.high) == (pytest.approx(0.4 - 0.1 - 0.1), pytest.approx(0.4 + 0.05 + 0.2))
    # Opposite answers on the same pictures: the interval holds that of the pairs themselves.
    shares = [stats.proportion((np.arange(50) < 30) == first, np.arange(50)) for first in (True, False)]
    worst, pairs = stats.difference(*shares, independent=False), paired(0, 30, 20, 0)
    assert worst.low <= pairs.low + 0.01 and worst.high >= pairs.high - 0.01


@pytest.mark.parametrize("count", [1, 7, 20])
def test_a_paired_difference_agrees_with_mcnemars_test_and_in_one_direction_ends_where_the_share_does(count):
    critical = 1.959964**2  # of chi-squared with one degree of freedom
    for first in range(count + 1):
        for second in range(count + 1 - first):
            gap = paired(0, first, second, count - first - second)
            gain, differing = first - second, max(1, first + second)
            assert gap.low <= gap.value <= gap.high and gap.value == pytest.approx(gain / count)
            assert (not gap.low <= 0 <= gap.high) == (gain**2 / differing > critical), (first, second)
        gap, mirrored = paired(0, first, 0, count - first), paired(0, 0, first, count - first)
        assert gap.high == pytest.approx(stats.wilson(first, count)[1])
        assert (mirrored.low, mirrored.high) == (pytest.approx(-gap.high), pytest.approx(-gap.low))
    one = paired(0, 1, 0, 51)  # one flip in fifty-two shows nothing
    assert (one.low, one.high) == pytest.approx((-0.051, 0.101), abs=5e-4)


def test_scores_of_a_split():
    rows = [row("test", 1, 0.9), row("test", 1, 0.8, cam_iou=0.05, point_game=0.0), row("test", 1, 0.2)]
    rows += [row("test", 0, 0.1), row("test", 0, 0.7)]
    scores = stats.split_scores(table_of(rows))
    told = {name: (scores[name].hits, scores[name].count) for name in ("recall", "precision", "accuracy")}
    assert told == {"recall": (2, 3), "precision": (2, 3), "accuracy": (3, 5)}
    assert scores["auroc"].value == pytest.approx(5 / 6)
    assert scores["cam_iou"].value == pytest.approx((0.5 + 0.05 + 0.5) / 3)
    assert (scores["wrong_reason_rate"].hits, scores["wrong_reason_rate"].count) == (1, 2)
    assert "loc_iou" not in scores and "cf_flip_rate" not in scores
    # Flips count beyond their control.
    rows = [row("test", 1, 0.9, cf_probability=p, cf_control_probability=c) for p, c in
            ((0.1, 0.8), (0.2, 0.3), (0.7, 0.8), (0.1, np.nan))]  # fmt: skip
    scores = stats.split_scores(table_of([*rows, row("test", 0, 0.1)]))
    assert (scores["cf_flip_rate"].hits, scores["cf_flip_rate"].count) == (3, 4)
    assert (scores["cf_control_flip_rate"].hits, scores["cf_control_flip_rate"].count) == (1, 3)
    # asked both: flips 1, 1, 0 and control flips 0, 1, 0
    assert scores["cf_excess"].value == pytest.approx(1 / 3) and scores["cf_excess"].count == 3


def test_a_score_counted_by_hand():
    table = pd.DataFrame({"image": list("abcd"), "label": [0, 0, 1, 1], "predicted": [0, 1, 1, 1]})
    table["probability"] = [0.2, 0.6, 0.6, 0.9]
    table["cf_flip"], table["cf_control_flip"] = [np.nan, np.nan, 1, 1], [np.nan, np.nan, 0, np.nan]
    assert stats.score(table, "accuracy") == 0.75 and stats.score(table, "cf_flip_rate") == 1
    assert stats.score(table, "auroc") == 3.5 / 4  # one tie among four pairs
    assert stats.score(table, "cf_excess") == 1  # of the one picture that was asked both
    assert math.isnan(stats.score(table, "cam_iou")) and math.isnan(stats.score(table.head(2), "auroc"))


def predictions(right, *, count=20, prefix="a"):
    """Half normal, half defective; the first `right` of each class are called rightly."""
    label = np.repeat([0, 1], count // 2)
    predicted = np.where(np.tile(np.arange(count // 2) >= right, 2), 1 - label, label)
    images = [f"{prefix}{number:03}.png" for number in range(count)]
    table = pd.DataFrame({"image": images, "label": label, "group": None, "predicted": predicted})
    return table.assign(probability=np.where(predicted == 1, 0.9, 0.1))


def row_of(rights, **columns):
    return {seed: predictions(right, prefix=f"{seed}/", **columns) for seed, right in enumerate(rights)}


def step(before, after, metric="accuracy"):
    return stats.steps_table({"A": before, "B": after}, [("A", "B")], metric).iloc[0]


def test_steps_are_paired_t_tests_over_seeds():
    before, after = np.array([5, 6, 5, 7]), np.array([8, 8, 9, 9])
    gain = (after - before) / 10
    found, expected = step(row_of(before), row_of(after)), scipy.stats.ttest_rel(after / 10, before / 10)
    assert found["difference"] == pytest.approx(gain.mean()) and found["p"] == pytest.approx(expected.pvalue)
    half = scipy.stats.t.ppf(0.975, 3) * gain.std(ddof=1) / 2
    assert (found["low"], found["high"]) == (pytest.approx(gain.mean() - half), pytest.approx(gain.mean() + half))
    assert (found["verdict"], found["seeds"], found["pictures"], found["note"]) == ("better", 4, 20, "")
    assert step(row_of(after), row_of(before))["verdict"] == "worse"
    shuffled = {seed: table.sample(frac=1, random_state=1) for seed, table in row_of(after).items()}
    assert step(row_of(before), shuffled).equals(found)
    rows = {"A": row_of(before), "B": row_of(after), "C": row_of([9, 8, 9, 8])}
    table = stats.steps_table(rows, [("A", "B"), ("B", "C")], "accuracy")
    assert table["p_holm"][0] == pytest.approx(2 * table["p"][0])
    assert table["verdict"][1] == "not distinguishable"


def test_one_seed_is_judged_over_its_pictures():
    one = step(row_of([10], count=60), row_of([25], count=60))
    assert one["difference"] == pytest.approx(0.5) and one["low"] > 0 and one["verdict"] == "better"
    assert one["note"] == "one seed: judged over pictures" and one["seeds"] == 1
    none = step(row_of([10], count=60), row_of([10], count=60))
    assert none["difference"] == 0 and none["verdict"] == "not tested"
    tables = [predictions(right, count=60) for right in (10, 25)]
    thrice = [pd.concat([t.assign(image=t["image"] + str(k), group=t["image"]) for k in range(3)]) for t in tables]
    copied = step({0: thrice[0]}, {0: thrice[1]})  # copies of pictures make nothing surer
    assert copied["high"] - copied["low"] == pytest.approx(one["high"] - one["low"])
    few = step(row_of([1], count=6), row_of([3], count=6))  # too few groups to resample
    assert math.isnan(few["low"]) and few["verdict"] == "not tested"


def test_what_cannot_be_tested_or_compared_is_said():
    assert step(row_of([5, 5, 5]), row_of([5, 5, 5]))[["p", "verdict"]].tolist() == [1, "not distinguishable"]
    moved = step(row_of([5, 5, 5]), row_of([6, 6, 6]))
    assert moved["difference"] == pytest.approx(0.1) and moved["verdict"] == "not tested"
    assert moved["note"] == "the same in every seed"
    both = {"A": row_of([5, 6, 5]), "B": row_of([7, 9])}
    found = stats.steps_table(both, [("A", "B"), ("A", "C")], "accuracy")
    assert found["seeds"].tolist() == [2, 0] and found["note"][0] == "left out, without a partner: seed 2"
    assert found["verdict"][1] == "not tested" and found["note"][1].startswith("no runs")
    assert step(row_of([5, 6]), row_of([5, 6]), "cam_iou")["note"] == "no CAM-IoU"
    assert stats.steps_table({}, [], "accuracy").empty
    with pytest.raises(DataError, match=r"A→B, seed 0: .* different pictures \(20 and 20, 0 of them in both\)"):
        step({0: predictions(5)}, {0: predictions(5, prefix="b")})
    turned = predictions(5).assign(label=lambda table: 1 - table["label"])
    with pytest.raises(DataError, match=r"20 pictures have another label in the second run, the first is a000\.png"):
        step({0: predictions(5)}, {0: turned})


def test_rows_have_the_mean_over_seeds_and_its_interval():
    table = stats.rows_table({"A": row_of([5, 7, 6]), "B": row_of([9])}, "accuracy").set_index("row")
    values = np.array([0.5, 0.7, 0.6])
    low, high = scipy.stats.t.interval(0.95, 2, values.mean(), scipy.stats.sem(values))
    assert table.loc["A", ["mean", "low", "high"]].tolist() == pytest.approx([0.6, low, high])
    assert table["seeds"].tolist() == [3, 1] and table.loc["B", "low"] < 0.9 <= table.loc["B", "high"]


def test_holm_by_hand():
    found = {(0.01, 0.04, 0.03): [0.03, 0.06, 0.06], (0.5, 0.6): [1, 1], (0.02, math.nan, 0.01): [0.02, math.nan, 0.02]}
    for p, adjusted in found.items():
        assert stats.holm(p) == pytest.approx(np.array(adjusted), nan_ok=True)
