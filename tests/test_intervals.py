"""Intervals against published numbers, and pictures of one part that count as one."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from gainmtl_lib.stats import (
    FEWEST_GROUPS,
    Estimate,
    difference,
    effective_count,
    group_codes,
    mean_gain,
    mean_score,
    paired_difference,
    proportion,
    resampled,
    share_parts,
    tango,
    wilson,
)

TWELVE = np.arange(12)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"), [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_wilson_against_known_values(hits, count, low, high):
    assert wilson(hits, count) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(("hits", "count"), [(0, 3), (3, 52), (49, 52), (52, 52), (1, 1000)])
def test_wilson_is_scipys_for_whole_counts(hits, count):
    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits, count) == pytest.approx((expected.low, expected.high))


def test_wilson_without_pictures_has_no_answer():
    assert all(math.isnan(end) for end in wilson(0, 0))


def test_a_share_says_what_it_rests_on():
    share = proportion(np.array([1, 0, 1, 1]), np.arange(4))
    assert (share.value, share.hits, share.count, share.groups) == (0.75, 3, 4, 4)
    assert (share.low, share.high) == pytest.approx(wilson(3, 4)) and share.has_interval
    none = proportion(np.array([]), np.array([]))
    assert math.isnan(none.value) and (none.hits, none.count) == (0, 0) and not none.has_interval


def test_pictures_of_their_own_parts_are_independent():
    assert effective_count(np.array([1, 0, 1, 1]), np.arange(4)) == 4


def test_copies_of_a_picture_add_nothing():
    values, groups = np.tile([1, 0, 1, 0, 0, 1], 2), np.tile(np.arange(6), 2)
    # The variance between six parts would say 5 pictures, but no fewer than the parts there are.
    assert effective_count(values, groups) == 6


def test_parts_that_all_have_the_same_share_are_no_worse_than_independent_pictures():
    assert effective_count(np.tile([1, 0], 6), np.repeat(np.arange(6), 2)) == 12


def test_where_all_pictures_agree_only_parts_count():
    # 4, 1 and 1 pictures of three parts: 6² / (16 + 1 + 1)
    assert effective_count(np.ones(6), np.array([0, 0, 0, 0, 1, 2])) == 2
    widened = proportion(np.ones(6), np.array([0, 0, 0, 0, 1, 2]))
    assert widened.low == pytest.approx(wilson(2, 2)[0]) and widened.count == 6 and widened.groups == 3


def test_the_mean_leaves_out_pictures_without_an_answer():
    mean = mean_score(np.array([0.25, np.nan, 0.75]), np.arange(3))
    assert (mean.value, mean.count, mean.hits) == (0.5, 2, None)
    assert not mean.has_interval  # two parts
    assert math.isnan(mean_score(np.array([np.nan]), np.arange(1)).value)


def test_scores_of_zero_and_one_are_a_share():
    assert mean_score(np.array([1.0, 0.0, np.nan]), np.arange(3)) == proportion(np.array([1, 0]), np.arange(2))


def test_the_interval_of_a_mean_is_seeded_and_around_it():
    values = np.linspace(0.1, 0.9, 30)
    mean = mean_score(values, np.arange(30))
    assert mean == mean_score(values, np.arange(30))
    standard_error = values.std() / math.sqrt(30)
    assert mean.low == pytest.approx(0.5 - 1.96 * standard_error, abs=0.02)
    assert mean.high == pytest.approx(0.5 + 1.96 * standard_error, abs=0.02)


def test_parts_are_drawn_whole_so_that_copies_do_not_narrow_the_interval():
    values, groups = np.linspace(0.1, 0.9, 15), np.arange(15)
    once, thrice = mean_score(values, groups), mean_score(np.tile(values, 3), np.tile(groups, 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert (thrice.count, thrice.groups) == (45, 15)
    drawn = resampled(lambda rows: float(np.tile(values, 3)[rows].mean()), np.tile(groups, 3))
    assert (drawn.low, drawn.high) == pytest.approx((once.low, once.high))


def test_too_few_parts_give_no_interval():
    values = np.linspace(0, 1, FEWEST_GROUPS - 1)
    assert not mean_score(values, np.arange(len(values))).has_interval
    assert mean_score(np.append(values, 0.5), np.arange(len(values) + 1)).has_interval


def test_a_statistic_that_never_changes_has_no_interval():
    estimate = resampled(lambda rows: 1.0, TWELVE)
    assert estimate.value == 1 and not estimate.has_interval


def test_resamples_without_an_answer_are_left_out():
    estimate = resampled(lambda rows: math.nan if 0 in rows else float(rows.mean()), TWELVE)
    assert math.isnan(estimate.value) and estimate.has_interval


def test_strata_keep_the_number_of_each_kind():
    labels = (TWELVE < 5).astype(int)

    def defects(rows):
        return float(labels[rows].sum())

    assert resampled(defects, TWELVE).has_interval
    assert not resampled(defects, TWELVE, strata=labels).has_interval


def test_a_kind_with_one_part_cannot_be_resampled():
    assert not resampled(lambda rows: float(rows.mean()), TWELVE, strata=(TWELVE == 0).astype(int)).has_interval


def test_the_difference_of_two_shares_is_newcombes():
    # Newcombe 1998, table II, (a): 56/70 and 48/80, method 10
    shares = (proportion(np.arange(70) < 56, np.arange(70)), proportion(np.arange(80) < 48, np.arange(80)))
    gap = difference(*shares, independent=True)
    assert (gap.value, gap.count) == (pytest.approx(0.2), 150)
    assert (gap.low, gap.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def paired(both, only_first, only_second, neither):
    """`paired_difference` of pictures counted by their two answers, each of a part of its own."""
    pairs = np.repeat([(1, 1), (1, 0), (0, 1), (0, 0)], [both, only_first, only_second, neither], axis=0)
    return paired_difference(pairs[:, 0], pairs[:, 1], np.arange(len(pairs)))


@pytest.mark.parametrize("count", [1, 7, 20])
def test_a_paired_difference_agrees_with_mcnemars_test(count):
    critical = 1.959964**2  # of chi-squared with one degree of freedom
    for first in range(count + 1):
        for second in range(count + 1 - first):
            gap = paired(0, first, second, count - first - second)
            gain, differing = first - second, max(1, first + second)
            assert gap.low <= gap.value <= gap.high and gap.value == pytest.approx(gain / count)
            assert (not gap.low <= 0 <= gap.high) == (gain**2 / differing > critical), (first, second)


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (1, 52), (2, 2), (10, 10)])
def test_a_paired_difference_in_one_direction_ends_where_the_share_does(hits, count):
    gap, mirrored = paired(0, hits, 0, count - hits), paired(0, 0, hits, count - hits)
    assert gap.high == pytest.approx(wilson(hits, count)[1])
    assert (mirrored.low, mirrored.high) == (pytest.approx(-gap.high), pytest.approx(-gap.low))


def test_one_picture_that_differs_shows_no_paired_difference():
    for count in (1, 2, 52):
        assert paired(0, 1, 0, count - 1).low < 0
    assert paired(0, 2, 0, 0).low < 0 < paired(0, 12, 0, 0).low


def test_many_opposite_differences_widen_a_paired_difference():
    # As many as of independent pictures would narrow it: the two shares vary against each other.
    gap, alone = (
        paired(0, 30, 20, 0),
        difference(*(proportion(np.arange(50) < hits, np.arange(50)) for hits in (30, 20)), independent=True),
    )
    assert gap.low < 0 < alone.low


def test_copies_do_not_narrow_a_paired_difference():
    first, second = np.array([1, 1, 1, 0, 1, 0, 0, 1]), np.array([0, 0, 1, 0, 0, 0, 1, 0])
    once = paired_difference(first, second, np.arange(8))
    thrice = paired_difference(np.tile(first, 3), np.tile(second, 3), np.tile(np.arange(8), 3))
    assert (thrice.low, thrice.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert (thrice.count, thrice.groups, thrice.hits) == (24, 8, None)


def test_no_pairs_have_no_difference():
    none = paired_difference(np.array([]), np.array([]), np.array([]))
    assert math.isnan(none.value) and none.count == 0 and not none.has_interval
    assert all(math.isnan(end) for end in tango(0, 0, 0))


def test_gains_are_never_taken_for_a_share():
    gain = mean_gain(np.array([1.0] + [0.0] * 11), TWELVE)
    assert gain.value == pytest.approx(1 / 12) and gain.low == 0 and gain.hits is None
    assert not mean_gain(np.ones(12), TWELVE).has_interval
    assert not mean_gain(np.linspace(0, 1, FEWEST_GROUPS - 1), np.arange(FEWEST_GROUPS - 1)).has_interval
    assert math.isnan(mean_gain(np.array([]), np.array([])).value)


def test_a_difference_needs_both_intervals():
    gap = difference(Estimate(0.9, 0.8, 1.0), Estimate(0.5), independent=True)
    assert gap.value == pytest.approx(0.4) and not gap.has_interval


def test_a_difference_of_the_same_parts_allows_for_the_worst_correlation():
    gap = difference(Estimate(0.9, 0.8, 0.95), Estimate(0.5, 0.3, 0.6), independent=False)
    assert (gap.low, gap.high) == (pytest.approx(0.4 - 0.1 - 0.1), pytest.approx(0.4 + 0.05 + 0.2))
    # Opposite answers on the same pictures: the interval holds that of the pairs themselves.
    shares = [proportion(np.arange(50) < 30, np.arange(50)), proportion(np.arange(50) >= 30, np.arange(50))]
    worst, pairs = difference(*shares, independent=False), paired(0, 30, 20, 0)
    assert worst.low <= pairs.low + 0.01 and worst.high >= pairs.high - 0.01


def test_parts_shown_in_both_tables():
    first, second = (pd.DataFrame({"group": groups}) for groups in (["a", "b", None], ["c", None]))
    assert not share_parts(first, second)
    assert share_parts(first, pd.DataFrame({"group": ["b"]}))


def test_a_picture_without_a_group_is_its_own():
    table = pd.DataFrame({"image": ["a", "b", "c", "d"], "group": ["p", None, "p", None]})
    codes = group_codes(table)
    assert codes[0] == codes[2] and len(set(codes)) == 3
