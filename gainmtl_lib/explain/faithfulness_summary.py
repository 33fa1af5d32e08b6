"""From faithfulness scores of single pictures to what they allow to say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

FEWEST_PICTURES = 8
"""Fewer give an interval by bootstrap that is too narrow to be believed."""
LEAST_DROP = 0.1
"""Mean fall of probability from the picture to the blurred one, below which there is little for curves to measure."""

FAITHFUL = "faithful"
NOT_DISTINGUISHABLE = "not distinguishable from a random map"
WORSE = "worse than a random map"
DEPENDS = "the decision depends on the defect"
INDEPENDENT = "removing the defect is not distinguishable from removing something else"
CONTROL_FLIPS_MORE = "removing something else flips more decisions than removing the defect"


def summarise_faithfulness(table: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """Means, the gain over a random map with its 95 % bootstrap interval over pictures, and what that allows to say.

    Args:
        table: of `faithfulness`.
        seed: of the bootstrap.

    Returns:
        ``pictures``, ``probability``, ``baseline_probability``; for ``deletion``, ``insertion`` and ``road`` a dict of
        ``ours``, ``random``, ``reversed``, ``gain`` (positive is better), ``low``, ``high`` and ``verdict``; for
        ``counterfactual``, where the table has flips, ``flip``, ``control_flip`` and the rest likewise; and ``notes``,
        sentences on what these numbers cannot say. "faithful" means better than a random map beyond chance, which
        one random map in forty is by chance; how much better, the gain says.

    Raises:
        ValueError: the table is empty.
    """
    if table.empty:
        raise ValueError("the table of faithfulness is empty; there is nothing to summarise")
    deletion, insertion = table["deletion_auc"], table["insertion_auc"]
    summary: dict[str, Any] = {
        "pictures": len(table),
        "probability": float(table["probability"].mean()),
        "baseline_probability": float(table["baseline_probability"].mean()),
        "deletion": _against_random(table, "deletion_auc", insertion, sign=-1, seed=seed),
        "insertion": _against_random(table, "insertion_auc", deletion, sign=1, seed=seed),
    }
    if "road" in table:
        summary["road"] = _against_random(table, "road", -table["road"], sign=1, seed=seed)
    if {"cf_flip", "cf_control_flip"} <= set(table.columns):
        summary["counterfactual"] = _flips(table[["cf_flip", "cf_control_flip"]].dropna(), seed)
    return summary | {"notes": _notes(summary)}


def _against_random(
    table: pd.DataFrame, name: str, reverse: pd.Series, *, sign: int, seed: int
) -> dict[str, float | str]:
    ours, random = table[name], table[f"random_{name}"]
    means = {"ours": float(ours.mean()), "random": float(random.mean()), "reversed": float(reverse.mean())}
    return means | _gain(sign * (ours - random), (FAITHFUL, NOT_DISTINGUISHABLE, WORSE), seed)


def _flips(flips: pd.DataFrame, seed: int) -> dict[str, float | str]:
    """Over the pictures whose mask had a place to move to."""
    means = {"flip": float(flips["cf_flip"].mean()), "control_flip": float(flips["cf_control_flip"].mean())}
    gain = flips["cf_flip"] - flips["cf_control_flip"]
    return means | _gain(gain, (DEPENDS, INDEPENDENT, CONTROL_FLIPS_MORE), seed)


def _gain(gain: pd.Series, verdicts: tuple[str, str, str], seed: int) -> dict[str, float | str]:
    """Mean, its 95 % interval, and the verdict for one above, around or below zero."""
    values = gain.to_numpy(dtype=float)
    mean = float(values.mean()) if len(values) else float("nan")
    if len(values) < FEWEST_PICTURES:
        verdict = f"too few pictures to say ({len(values)}, at least {FEWEST_PICTURES})"
        return {"gain": mean, "low": float("nan"), "high": float("nan"), "verdict": verdict}
    # The percentile method, because the others have no answer where all gains are equal.
    interval = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    better, around, below = verdicts
    return {"gain": mean, "low": low, "high": high, "verdict": better if low > 0 else below if high < 0 else around}


def _notes(summary: dict[str, Any]) -> list[str]:
    notes = []
    picture, blurred = summary["probability"], summary["baseline_probability"]
    if picture - blurred < LEAST_DROP:
        notes.append(
            f"The blurred picture is called defective almost as surely as the picture itself (probability "
            f"{blurred:.2f} and {picture:.2f}): deletion and insertion have little to measure."
        )
    return notes
