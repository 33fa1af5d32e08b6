"""Ranks and intervals of indicators, against hand-made studies."""

from math import nan

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gainmtl_lib.stats import RESAMPLES
from gainmtl_lib.studies.reasons import (
    BY_CHANCE,
    MISLED,
    SIGNS,
    TOO_FEW,
    WARNED,
    drawn_ranks,
    drawn_times,
    rank_correlation,
    signs_table,
    verdict,
    warnings_table,
)


def study(drops, *, cells=4, **columns):
    """Runs in equal cells, their indicators in the order of the runs."""
    rows = pd.DataFrame({"drop": drops} | columns)
    each = len(rows) // cells
    return rows.assign(cue="mark", correlation=[0.5 + 0.01 * (k // each) for k in range(len(rows))])


DROPS = np.linspace(0, 0.75, 16)[np.random.default_rng(0).permutation(16)]


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 5, 12), rng.integers(0, 5, 12)
    assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert np.isnan(rank_correlation(np.ones(12), second)) and np.isnan(rank_correlation(first[:2], second[:2]))


def test_low_accuracy_warns_by_the_sign_stated_beforehand():
    found = warnings_table(study(DROPS, cam_iou=1 - DROPS, cue_energy=1 - DROPS, accuracy=0.9))
    assert list(found.index) == ["cam_iou", "cue_energy", "accuracy"]
    assert found.loc["cam_iou", "rank_correlation"] == pytest.approx(1)
    assert found.loc["cue_energy", "rank_correlation"] == pytest.approx(-1)
    assert found.loc["cam_iou", ["warns", "verdict"]].tolist() == ["low", WARNED]
    assert found.loc["cue_energy", ["warns", "verdict"]].tolist() == ["high", MISLED]
    assert np.isnan(found.loc["accuracy", "rank_correlation"]) and found.loc["accuracy", "verdict"] == TOO_FEW
    assert (found.loc["cam_iou", "runs"], found.loc["cam_iou", "cells"]) == (16, 4)


def test_noise_is_not_distinguishable_from_chance():
    noise = np.random.default_rng(3).permutation(16).astype(float)
    row = warnings_table(study(DROPS, cam_iou=noise)).loc["cam_iou"]
    assert row["low"] < 0 < row["high"] and row["verdict"] == BY_CHANCE


def test_an_indicator_is_judged_over_the_runs_that_have_it():
    values = np.where(np.arange(16) % 2, nan, 1 - DROPS)
    row = warnings_table(study(DROPS, attention_iou=values)).loc["attention_iou"]
    assert row["runs"] == 8 and row["rank_correlation"] == pytest.approx(1)
    assert "attention_iou" not in warnings_table(study(DROPS, attention_iou=nan)).index


def test_runs_without_a_shifted_test_are_left_out():
    drops = DROPS.copy()
    drops[:3] = nan
    assert warnings_table(study(drops, cam_iou=1 - DROPS)).loc["cam_iou", "runs"] == 13
    assert warnings_table(study(np.full(16, nan), cam_iou=DROPS)).empty


def test_auroc_tells_drops_of_a_tenth_from_smaller_ones():
    drops = [0.0, 0.05, 0.10, 0.5]
    found = warnings_table(study(drops, cells=1, cam_iou=[0.9, 0.1, 0.5, 0.2], cue_energy=[0, 0, 0.2, 0.2]))
    # Low CAM-IoU: of the four pairs, only 0.1 against 0.5 and 0.2 is the wrong way round.
    assert found.loc["cam_iou", "auroc"] == 0.5
    assert found.loc["cue_energy", "auroc"] == 1


def test_a_drop_of_a_tenth_counts_whatever_its_rounding():
    drops = [57 / 60 - 51 / 60, 0.0, 0.0, 0.0]
    assert drops[0] < 0.10
    assert warnings_table(study(drops, cells=1, cam_iou=[0.1, 0.9, 0.8, 0.7])).loc["cam_iou", "auroc"] == 1


def test_few_cells_or_runs_have_no_interval():
    for table in (study(DROPS, cells=2, cam_iou=1 - DROPS), study(DROPS[:6], cells=3, cam_iou=1 - DROPS[:6])):
        row = warnings_table(table).loc["cam_iou"]
        assert np.isnan(row["low"]) and row["verdict"] == TOO_FEW


def test_interval_is_that_of_drawn_rows():
    """The counted resamples give what drawing rows one by one gives."""
    noisy = DROPS + np.random.default_rng(5).normal(0, 0.3, 16)
    table = study(DROPS, cue_energy=noisy)
    cells = np.repeat(np.arange(4), 4)
    rng, drawn = np.random.default_rng(9), []
    for _ in range(2000):
        rows = np.concatenate([rng.choice(np.flatnonzero(cells == c), 4) for c in rng.integers(4, size=4)])
        drawn.append(rank_correlation(noisy[rows], DROPS[rows]))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    row = warnings_table(table).loc["cue_energy"]
    assert (row["low"], row["high"]) == (pytest.approx(low, abs=0.08), pytest.approx(high, abs=0.03))
    assert warnings_table(table).equals(warnings_table(table))


def test_cells_are_drawn_whole_number_of_times():
    times = drawn_times(np.array([0, 0, 0, 1, 1, 2, 2, 2, 2]))
    assert times.shape == (RESAMPLES, 9)
    sums = np.stack([times[:, :3].sum(1), times[:, 3:5].sum(1), times[:, 5:].sum(1)], 1)
    assert (sums % [3, 2, 4] == 0).all() and ((sums // [3, 2, 4]).sum(1) == 3).all()


def test_ranks_within_a_resample():
    times = np.array([[1, 1, 1], [2, 0, 1], [0, 3, 0]])
    ranks = drawn_ranks(np.array([5.0, 7.0, 6.0]), times)
    assert ranks[0].tolist() == [0.5, 2.5, 1.5]  # rankdata less one half
    assert ranks[1, [0, 2]].tolist() == [1.0, 2.5] and ranks[2, 1] == 1.5


@pytest.mark.parametrize(
    ("ends", "word"),
    [((0.1, 0.9), WARNED), ((-0.9, -0.1), MISLED), ((-0.1, 0.9), BY_CHANCE), ((0.0, 0.9), BY_CHANCE), ((nan, nan), TOO_FEW)],
)  # fmt: skip
def test_verdicts(ends, word):
    assert verdict(*ends) == word


def test_every_indicator_has_a_direction_and_a_reason():
    from gainmtl_lib.studies.reasons import NAMES

    assert set(SIGNS) <= set(NAMES)
    assert all(sign.warns in ("low", "high") and sign.why for sign in SIGNS.values())
    assert {name for name, sign in SIGNS.items() if sign.warns == "high"} == {
        "wrong_reason_rate", "cue_energy", "cue_excess",
    }  # fmt: skip


def test_what_is_expected_is_told_for_every_indicator():
    table = signs_table()
    assert list(table.index) == [sign.heading for sign in SIGNS.values()]
    assert table.loc["energy on the cue", "warns when"] == "high"
    assert table.loc["CAM-IoU", "warns when"] == "low"
