"""From faithfulness scores of single pictures to what they allow to say."""

from __future__ import annotations

from typing import Any

import pandas as pd

from gainmtl_lib.evaluation.intervals import FEWEST_GROUPS, Estimate, group_codes, mean_gain, paired_difference

LEAST_DROP = 0.1
"""Mean fall of probability from the picture to the blurred one, below which there is little for curves to measure."""

FAITHFUL = "faithful"
NOT_DISTINGUISHABLE = "not distinguishable from a random map"
WORSE = "worse than a random map"
DEPENDS = "the decision depends on the defect"
INDEPENDENT = "removing the defect is not distinguishable from removing something else"
CONTROL_FLIPS_MORE = "removing something else flips more decisions than removing the defect"
ALL_EQUAL = "no interval: every picture gains the same"


def summarise_faithfulness(table: pd.DataFrame) -> dict[str, Any]:
    """Means, the gain over a random map with its 95 % interval, and what that allows to say.

    Args:
        table: of `faithfulness`.

    Returns:
        ``pictures``, ``parts``, ``probability``, ``baseline_probability``; for ``deletion``, ``insertion`` and ``road``
        a dict of ``ours``, ``random``, ``reversed``, ``gain`` (positive is better), ``low``, ``high`` and ``verdict``;
        for ``counterfactual``, where the table has flips, ``flip``, ``control_flip`` and the rest likewise; and
        ``notes``, sentences on what these numbers cannot say. Gains are resampled by part, flips take the interval of
        paired shares; pictures of one part are never independent. "faithful" means that the interval of the gain over
        a random map lies above 0; how much better the map is, the gain says.

    Raises:
        ValueError: the table is empty.
    """
    if table.empty:
        raise ValueError("the table of faithfulness is empty; there is nothing to summarise")
    deletion, insertion = table["deletion_auc"], table["insertion_auc"]
    summary: dict[str, Any] = {
        "pictures": len(table),
        "parts": len(set(group_codes(table))),
        "probability": float(table["probability"].mean()),
        "baseline_probability": float(table["baseline_probability"].mean()),
        "deletion": _against_random(table, "deletion_auc", insertion, sign=-1),
        "insertion": _against_random(table, "insertion_auc", deletion, sign=1),
    }
    if "road" in table:
        summary["road"] = _against_random(table, "road", -table["road"], sign=1)
    if {"cf_flip", "cf_control_flip"} <= set(table.columns):
        summary["counterfactual"] = _flips(table.dropna(subset=["cf_flip", "cf_control_flip"]))
    return summary | {"notes": _notes(summary)}


def _against_random(table: pd.DataFrame, name: str, reverse: pd.Series, *, sign: int) -> dict[str, float | str]:
    ours, random = table[name], table[f"random_{name}"]
    means = {"ours": float(ours.mean()), "random": float(random.mean()), "reversed": float(reverse.mean())}
    gain = mean_gain((sign * (ours - random)).to_numpy(), group_codes(table))
    return means | _judged(gain, (FAITHFUL, NOT_DISTINGUISHABLE, WORSE))


def _flips(asked: pd.DataFrame) -> dict[str, float | str]:
    """Over the pictures whose mask had a place to move to."""
    flip, control = asked["cf_flip"], asked["cf_control_flip"]
    means = {"flip": float(flip.mean()), "control_flip": float(control.mean())}
    gain = paired_difference(flip.to_numpy(), control.to_numpy(), group_codes(asked))
    return means | _judged(gain, (DEPENDS, INDEPENDENT, CONTROL_FLIPS_MORE))


def _judged(gain: Estimate, verdicts: tuple[str, str, str]) -> dict[str, float | str]:
    """The gain, its interval, and the verdict for one above, around or below zero."""
    return {"gain": gain.value, "low": gain.low, "high": gain.high, "verdict": _verdict(gain, *verdicts)}


def _verdict(gain: Estimate, better: str, around: str, below: str) -> str:
    if gain.has_interval:
        return better if gain.low > 0 else below if gain.high < 0 else around
    if gain.groups < FEWEST_GROUPS:
        return f"too few pictures of different parts to say ({gain.groups}, at least {FEWEST_GROUPS})"
    return around if gain.value == 0 else ALL_EQUAL


def _notes(summary: dict[str, Any]) -> list[str]:
    notes = []
    picture, blurred = summary["probability"], summary["baseline_probability"]
    if picture - blurred < LEAST_DROP:
        notes.append(
            f"The blurred picture is called defective almost as surely as the picture itself (probability "
            f"{blurred:.2f} and {picture:.2f}): deletion and insertion have little to measure."
        )
    return notes
