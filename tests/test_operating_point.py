"""Escapes, overkill and thresholds for a required recall, counted by hand."""

import math

import numpy as np
import pytest
from audited import row, table_of

from gainmtl_lib.audit.numbers import choose_for_recall, defects_needed, defects_to_show, operating_point

LABELS = np.array([1, 1, 1, 1, 0, 0, 0])
SCORES = np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.2, 0.1])


def rows():
    return table_of([row("test", int(label), float(score)) for label, score in zip(LABELS, SCORES)], 0.65)


def test_escapes_and_overkill_by_hand():
    point = operating_point(rows(), 0.5)
    assert (point.escapes.hits, point.escapes.count, point.escapes.value) == (1, 4, 0.25)
    assert (point.overkill.hits, point.overkill.count) == (1, 3)


def test_the_runs_own_threshold_takes_the_stored_verdicts():
    table = rows()
    assert operating_point(table, 0.65, decided=True).escapes.hits == 2
    table.loc[0, "predicted"] = 0  # as if the probability had been rounded across the threshold
    assert operating_point(table, 0.65, decided=True).escapes.hits == 3
    assert operating_point(table, 0.65).escapes.hits == 2


def test_a_split_without_normals_has_no_overkill():
    point = operating_point(table_of([row("test", 1, 0.9)]), 0.5)
    assert math.isnan(point.overkill.value) and point.overkill.count == 0


@pytest.mark.parametrize(
    ("required", "threshold"),
    [(0.25, 0.85), (0.5, 0.75), (0.51, 0.45), (0.75, 0.45), (0.76, 0.25), (1.0, 0.25)],
)
def test_the_highest_threshold_that_finds_enough_lies_midway(required, threshold):
    choice = choose_for_recall(LABELS, SCORES, required)
    assert choice.threshold == pytest.approx(threshold) and choice.defects == 4
    assert (SCORES[LABELS == 1] >= choice.threshold).mean() >= required


def test_shares_that_binary_fractions_miss_are_not_rounded_up():
    scores = np.linspace(0.01, 1, 100)
    # 0.07 * 100 is 7.000000000000001: the seventh of a hundred, not the eighth
    assert choose_for_recall(np.ones(100, int), scores, 0.07).threshold == pytest.approx(0.935)


def test_with_no_score_below_the_cut_lies_midway_to_zero():
    assert choose_for_recall(np.array([1]), np.array([0.4]), 1.0).threshold == pytest.approx(0.2)


def test_without_validation_defects_nothing_is_chosen():
    choice = choose_for_recall(np.zeros(3, int), np.arange(3) / 3, 0.9)
    assert choice.threshold is None and choice.defects == 0 and not choice.enough


def test_one_miss_must_be_allowed():
    assert [defects_needed(r) for r in (0.5, 0.9, 0.95, 0.99, 0.999)] == [2, 10, 20, 100, 1000]
    assert defects_needed(1.0) is None
    assert choose_for_recall(np.ones(10, int), np.arange(10) / 10, 0.9).enough
    assert not choose_for_recall(np.ones(9, int), np.arange(9) / 9, 0.9).enough
    assert not choose_for_recall(np.ones(9, int), np.arange(9) / 9, 1.0).enough


def test_defects_to_show_a_recall():
    assert defects_to_show(0.99) == 299  # 0.99^299 = 0.0496
    assert defects_to_show(0.9) == 29
    assert defects_to_show(1.0) is None


@pytest.mark.parametrize("required", [0, -0.1, 1.01, 99, math.nan])
def test_a_recall_is_a_share(required):
    with pytest.raises(
        ValueError, match=r"required_recall must be a share of the defects in \(0, 1\], such as 0\.99; got"
    ):
        choose_for_recall(LABELS, SCORES, required)
