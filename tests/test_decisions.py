"""Thresholds, verdicts and classification scores, counted by hand."""

import numpy as np
import pytest

from gainmtl_lib.metrics import choose_threshold, classification, novelty_threshold, verdicts


def test_threshold_maximises_f1_with_a_margin():
    labels = np.array([0, 0, 0, 1, 1])
    assert choose_threshold(labels, np.array([0.1, 0.2, 0.3, 0.7, 0.9])) == pytest.approx(0.5)
    # F1 of the cuts: 0.25 -> 6/7, 0.55 -> 0.5, 0.8 -> 1/2... the widest cut that keeps both defects wins.
    assert choose_threshold(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.7, 0.9])) == pytest.approx(0.25)
    assert choose_threshold(labels, np.full(5, 0.3)) == 0.5
    assert choose_threshold(np.zeros(3, int), np.array([0.1, 0.2, 0.3])) == 0.5


def test_threshold_of_unbounded_scores_takes_the_widest_margin():
    labels = np.array([0, 1, 0, 0, 1])
    scores = np.array([-3.0, 9.0, 2.0, 0.0, 5.0])
    assert choose_threshold(labels, scores, near=None) == pytest.approx(3.5)
    # F1 is 4/5 both below the lone defect at 1 (one false alarm) and ... above 8 it is 2/3: the cut at 4.5 keeps 4/5.
    assert choose_threshold(np.array([0, 1, 0, 1]), np.array([0.0, 1.0, 8.0, 9.0]), near=None) == pytest.approx(0.5)


def test_threshold_without_a_choice_is_the_highest_score_when_nothing_is_natural():
    assert choose_threshold(np.zeros(3, int), np.array([1.0, 7.0, 3.0]), near=None) == 7.0


def test_novelty_threshold_is_the_conformal_rank():
    scores = np.arange(1.0, 20.0)  # 19 normals: rank ceil(20 * 0.95) = 19
    assert novelty_threshold(scores) == 19.0
    assert novelty_threshold(np.arange(1.0, 40.0)) == 38.0  # rank ceil(40 * 0.95) of 39
    assert novelty_threshold(np.array([0.3, 0.1])) == 0.3


def test_novelty_threshold_keeps_its_promise_on_new_normals():
    rng = np.random.default_rng(0)
    rates = [(rng.exponential(size=500) > novelty_threshold(rng.exponential(size=39))).mean() for _ in range(400)]
    assert 0.035 < np.mean(rates) <= 0.055


def test_verdicts_by_hand():
    assert verdicts(np.array([1, 0, 1, 0]), np.array([1, 1, 0, 0])) == ["TP", "FP", "FN", "TN"]


LABELS = np.array([1, 1, 1, 1, 0, 0])
SCORES = np.array([0.9, 0.8, 0.2, 0.7, 0.6, 0.1])


def test_classification_by_hand():
    scores = classification(LABELS, (SCORES >= 0.5).astype(int), SCORES)
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["precision"] == pytest.approx(3 / 4)
    assert scores["recall"] == pytest.approx(3 / 4)
    assert scores["auroc"] == pytest.approx(7 / 8)  # 7 of 8 pairs of a defect and a normal are in order
    assert np.isnan(classification(LABELS[:4], np.ones(4, int), SCORES[:4])["auroc"])


def test_classification_depends_on_the_order_of_scores_only():
    calls = (SCORES >= 0.5).astype(int)
    small, large = classification(LABELS, calls, SCORES), classification(LABELS, calls, SCORES * 4000 - 100)
    assert small == large  # a sigmoid in between would tie what lies far from zero
