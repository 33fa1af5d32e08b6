"""Scores of one split against scikit-learn and against numbers counted by hand."""

import math

import numpy as np
import pytest
from audited import row, table_of
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from gainmtl_lib.stats import auroc, average_precision, f1, split_scores


@pytest.mark.parametrize("decimals", [1, 6])
def test_ranking_is_scikit_learns_ties_included(decimals):
    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 2, 200), rng.random(200).round(decimals)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores))
    called = (scores > 0.4).astype(int)
    assert f1(labels, called) == pytest.approx(f1_score(labels, called))


def test_ranking_by_hand():
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.6, 0.8])
    assert auroc(labels, scores) == 0.75
    assert average_precision(labels, scores) == pytest.approx((1 + 2 / 3) / 2)


def test_one_class_has_no_ranking():
    ones = np.ones(3, dtype=int)
    for labels in (ones, 1 - ones):
        assert math.isnan(auroc(labels, np.arange(3))) and math.isnan(average_precision(labels, np.arange(3)))
    assert math.isnan(f1(1 - ones, 1 - ones))


def test_scores_of_a_split():
    rows = [row("test", 1, 0.9), row("test", 1, 0.8, cam_iou=0.05, point_game=0.0), row("test", 1, 0.2)]
    rows += [row("test", 0, 0.1), row("test", 0, 0.7)]
    scores = split_scores(table_of(rows))
    told = {name: (scores[name].hits, scores[name].count) for name in ("recall", "precision", "accuracy")}
    assert told == {"recall": (2, 3), "precision": (2, 3), "accuracy": (3, 5)}
    assert scores["auroc"].value == pytest.approx(5 / 6)
    assert scores["cam_iou"].value == pytest.approx((0.5 + 0.05 + 0.5) / 3)
    assert (scores["wrong_reason_rate"].hits, scores["wrong_reason_rate"].count) == (1, 2)
    assert "loc_iou" not in scores and "cf_flip_rate" not in scores


def test_flips_count_beyond_their_control():
    rows = [row("test", 1, 0.9, cf_probability=p, cf_control_probability=c) for p, c in
            ((0.1, 0.8), (0.2, 0.3), (0.7, 0.8), (0.1, np.nan))]  # fmt: skip
    scores = split_scores(table_of([*rows, row("test", 0, 0.1)]))
    assert (scores["cf_flip_rate"].hits, scores["cf_flip_rate"].count) == (3, 4)
    assert (scores["cf_control_flip_rate"].hits, scores["cf_control_flip_rate"].count) == (1, 3)
    # asked both: flips 1, 1, 0 and control flips 0, 1, 0
    assert scores["cf_excess"].value == pytest.approx(1 / 3) and scores["cf_excess"].count == 3


def test_one_flip_in_fifty_two_shows_nothing():
    rows = [row("test", 1, 0.9, cf_probability=p, cf_control_probability=0.9) for p in [0.1] + [0.9] * 51]
    excess = split_scores(table_of(rows))["cf_excess"]
    assert (excess.value, excess.count, excess.hits) == (pytest.approx(1 / 52), 52, None)
    assert excess.low == pytest.approx(-0.051, abs=5e-4) and excess.high == pytest.approx(0.101, abs=5e-4)


def test_no_defect_was_found_so_that_nothing_was_asked():
    rows = [row("test", 1, 0.1, cf_probability=0.1, cf_control_probability=0.1), row("test", 0, 0.1)]
    scores = split_scores(table_of(rows))
    assert math.isnan(scores["cf_excess"].value) and scores["cf_flip_rate"].count == 0
    assert scores["precision"].count == 0 and math.isnan(scores["precision"].value)
