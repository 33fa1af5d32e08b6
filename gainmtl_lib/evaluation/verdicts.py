"""From the p-values of a family of steps to words: Holm's correction, a verdict per step, a sentence.

scipy corrects for the false discovery rate only (`scipy.stats.false_discovery_control`), not family-wise.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gainmtl_lib.evaluation.intervals import CONFIDENCE
from gainmtl_lib.evaluation.seeds_test import TTest
from gainmtl_lib.evaluation.weighted_scores import LOWER_IS_BETTER

BETTER, WORSE = "better", "worse"
NOT_DISTINGUISHABLE, NOT_TESTED = "not distinguishable", "not tested"
LEVEL = 1 - CONFIDENCE


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """p-values adjusted so that the probability of any false rejection among them stays below the level (Holm 1979).

    Args:
        p: in [0, 1], (S,); NaN is no member of the family and stays NaN.

    Raises:
        ValueError: a value outside [0, 1].
    """
    values = np.asarray(p, dtype=float)
    known = np.flatnonzero(~np.isnan(values))
    wrong = values[known][(values[known] < 0) | (values[known] > 1)]
    if len(wrong):
        raise ValueError(f"p-values must lie in [0, 1], got {wrong[0]:g}")
    order = known[np.argsort(values[known], kind="stable")]
    adjusted = np.full(len(values), nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


def verdict(difference: float, adjusted: float, metric: str) -> str:
    """What a step did, by its adjusted p-value: `BETTER`, `WORSE`, `NOT_DISTINGUISHABLE`, or for NaN `NOT_TESTED`."""
    if isnan(adjusted):
        return NOT_TESTED
    if adjusted >= LEVEL:
        return NOT_DISTINGUISHABLE
    return BETTER if (difference > 0) != (metric in LOWER_IS_BETTER) else WORSE


def sentence(test: TTest, adjusted: float, family: int, metric: str, pictures: Sequence[int]) -> str:
    """Number, interval, what it rests on and the verdict: ``accuracy +0.021 (95 % interval −0.004 to +0.046; …): …``.

    Args:
        test: of the step.
        adjusted: its p-value by `holm`.
        family: steps that it was adjusted for.
        metric: that was compared.
        pictures: that the score rests on, of each seed; none where no seed was compared.
    """
    words = verdict(test.difference, adjusted, metric)
    if not pictures:
        return f"{metric} {words}"
    ends = "" if isnan(test.p) else f"95 % interval {signed(test.low)} to {signed(test.high)}; "
    number = f"{metric} {signed(test.difference)} ({ends}{_rests_on(pictures)})"
    p = "" if isnan(adjusted) else f", {probability(test.p)}"
    corrected = f", {probability(adjusted)} by Holm's correction for {family} steps" if p and family > 1 else ""
    return f"{number}: {words}{p}{corrected}"


def signed(value: float) -> str:
    """``+0.021`` or ``−0.021``; without a sign where it rounds to zero."""
    rounded = f"{value:+.3f}".replace("-", "−")
    return rounded if float(rounded[1:]) else rounded[1:]


def _rests_on(pictures: Sequence[int]) -> str:
    seeds, least, most = len(pictures), min(pictures), max(pictures)
    count = f"{least}" if least == most else f"{least} to {most}"
    return f"{seeds} seed{'s' * (seeds > 1)}, {count} picture{'s' * (most != 1)}{' each' * (seeds > 1)}"


def probability(p: float) -> str:
    """``p = 0.042``, or ``p < 0.001``."""
    return f"p = {p:.3f}" if p >= 0.0005 else "p < 0.001"
