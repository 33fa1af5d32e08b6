"""Which indicator would have warned of the drop, had there been no shifted test set?

Over all runs of a shortcut study: the rank correlation of each indicator, measured on ``test``, with the accuracy that
is lost on ``test_shift``. The direction in which each should warn is stated here beforehand and not chosen by the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from gainmtl_lib.evaluation.intervals import CONFIDENCE, RESAMPLES, SEED
from gainmtl_lib.evaluation.scores import auroc

LARGE_DROP = 0.10
"""Accuracy lost from which a run should have been warned of."""
ROUNDING = 1e-9
"""57/60 − 51/60 is a little less than 0.10."""
FEWEST_CELLS, FEWEST_RUNS = 3, 8
"""Below these no interval is given."""
CELL = ["cue", "correlation"]
WARNED, MISLED, BY_CHANCE, TOO_FEW = "warned", "misled", "not distinguishable from chance", "too few runs"


@dataclass(frozen=True)
class Sign:
    """What an indicator should show of a run that follows a cue.

    Attributes:
        heading: the indicator in words.
        warns: which end of it.
        why: what it would mean.
    """

    heading: str
    warns: Literal["low", "high"]
    why: str


SIGNS: dict[str, Sign] = {
    "accuracy": Sign("accuracy", "low", "the baseline: often all that is looked at"),
    "auroc": Sign("AUROC", "low", "likewise"),
    "cam_iou": Sign("CAM-IoU", "low", "the deciding map does not cover the defect"),
    "energy_inside": Sign("energy inside", "low", "its energy lies elsewhere"),
    "point_game": Sign("PointGame", "low", "its maximum lies elsewhere"),
    "attention_iou": Sign("attention IoU", "low", "the attention does not cover the defect"),
    "loc_iou": Sign("Loc-IoU", "low", "the localization does not cover the defect"),
    "wrong_reason_rate": Sign("found with the map elsewhere", "high", "defects are found with the map off them"),
    "cf_excess": Sign("flips, features suppressed", "low", "the verdict stands without the defect's features"),
    "image_flip_excess": Sign("flips, defect healed", "low", "healing the defect does not turn the verdict"),
    "paste_flip_excess": Sign("flips, defect pasted", "low", "pasting a defect does not turn the verdict"),
    "counterfactual_accuracy": Sign("accuracy on edited pictures", "low", "verdicts do not follow the edited defects"),
    "cue_energy": Sign("energy on the cue", "high", "the map lies on the cue; needs to know the cue"),
    "cue_excess": Sign("energy on the cue, less its area", "high", "likewise, beyond what an even map would give"),
}
"""Every indicator that could warn. `paste_flip` and others are parts of these."""


def signs_table() -> pd.DataFrame:
    """What is expected of every indicator, before any run is looked at: ``warns when`` and ``because``, by name."""
    lines = {sign.heading: {"warns when": sign.warns, "because": sign.why} for sign in SIGNS.values()}
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("indicator")


def warnings_table(table: pd.DataFrame) -> pd.DataFrame:
    """How well each indicator ranks the runs by what they lose.

    The interval is a seeded two-stage bootstrap: cells (cue and correlation) are drawn with replacement, then runs
    within each drawn cell. Strategies are those of the study: it says nothing about others.

    Args:
        table: of `Study.table`. An indicator is judged over the runs that have it; runs without a drop are left out.

    Returns:
        One row per indicator of `SIGNS` that some run has, the best first: ``indicator`` (in words), ``warns``
        (low or high), ``rank_correlation`` of Spearman with the drop, positive where it warns as expected, ``low`` and
        ``high``, ``auroc`` of telling the runs that lose `LARGE_DROP` or more from the others, ``runs``, ``cells`` and
        ``verdict``. NaN where there is no answer.
    """
    rows = {}
    for name, sign in SIGNS.items():
        known = table[[*CELL, name, "drop"]].dropna() if name in table else table.iloc[:0]
        if len(known):
            rows[name] = _row(known, name, sign)
    ranked = pd.DataFrame.from_dict(rows, orient="index")
    return ranked if ranked.empty else ranked.sort_values("rank_correlation", ascending=False, kind="stable")


def _row(known: pd.DataFrame, name: str, sign: Sign) -> dict[str, str | float | int]:
    warning = known[name].to_numpy(dtype=float) * (1 if sign.warns == "high" else -1)
    drop, cells = known["drop"].to_numpy(dtype=float), known.groupby(CELL, sort=False).ngroup().to_numpy()
    low, high = _interval(warning, drop, cells)
    return {
        "indicator": sign.heading,
        "warns": sign.warns,
        "rank_correlation": rank_correlation(warning, drop),
        "low": low,
        "high": high,
        "auroc": auroc((drop >= LARGE_DROP - ROUNDING).astype(int), warning),
        "runs": len(known),
        "cells": int(cells.max()) + 1,
        "verdict": verdict(low, high),
    }


def rank_correlation(first: NDArray, second: NDArray) -> float:
    """Spearman's, ties at their mean rank; NaN for fewer than three values, or where one side is constant."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return nan
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])


def verdict(low: float, high: float) -> str:
    """What an interval of the rank correlation says."""
    if np.isnan(low):
        return TOO_FEW
    return WARNED if low > 0 else MISLED if high < 0 else BY_CHANCE


def _interval(warning: NDArray, drop: NDArray, cells: NDArray) -> tuple[float, float]:
    if len(np.unique(cells)) < FEWEST_CELLS or len(drop) < FEWEST_RUNS:
        return nan, nan
    times = drawn_times(cells)
    first, second = drawn_ranks(warning, times), drawn_ranks(drop, times)
    total = times.sum(axis=1, keepdims=True)
    first, second = (ranks - (times * ranks).sum(axis=1, keepdims=True) / total for ranks in (first, second))
    product, own, other = ((times * values).sum(axis=1) for values in (first * second, first**2, second**2))
    known = (own > 0) & (other > 0)  # the others drew equal values only
    if known.sum() < RESAMPLES / 2:
        return nan, nan
    drawn = product[known] / np.sqrt(own[known] * other[known])
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def drawn_times(cells: NDArray) -> NDArray[np.int64]:
    """How often each run is drawn in each resample, (R, n): cells first, then runs within each drawn cell.

    Args:
        cells: which cell each run belongs to, (n,).
    """
    rng, names = np.random.default_rng(SEED), np.unique(cells)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)  # (R, cells)
    times = np.zeros((RESAMPLES, len(cells)), dtype=np.int64)
    for place, name in enumerate(names):
        runs = np.flatnonzero(cells == name)
        times[:, runs] = rng.multinomial(drawn[:, place] * len(runs), np.full(len(runs), 1 / len(runs)))
    return times


def drawn_ranks(values: NDArray, times: NDArray) -> NDArray[np.float64]:
    """The rank of each value within each resample, ties at their mean rank less one half, (R, n).

    Args:
        values: (n,).
        times: how often each was drawn, (R, n).
    """
    below = (values[None] < values[:, None]) + 0.5 * (values[None] == values[:, None])
    return times @ below.T
