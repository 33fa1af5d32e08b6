"""Escapes and overkill: what a threshold lets through, and what it throws away.

An escape is a defect that is called normal (missed), overkill a normal part that is called defective (false alarm).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.evaluation.intervals import CONFIDENCE, Estimate, group_codes, proportion


@dataclass(frozen=True)
class OperatingPoint:
    """What one threshold does to one split.

    Attributes:
        threshold: defect probability from which a picture is called defective.
        escapes: share of the defective pictures that are called normal.
        overkill: share of the normal pictures that are called defective.
    """

    threshold: float
    escapes: Estimate
    overkill: Estimate


@dataclass(frozen=True)
class RecallChoice:
    """A threshold chosen for a required recall, on validation.

    Attributes:
        required: recall, in (0, 1].
        threshold: None where validation holds no defect.
        defects: defective validation pictures that it was chosen on.
        needed: how many it takes at least; None where no number is enough (a recall of 1).
    """

    required: float
    threshold: float | None
    defects: int
    needed: int | None

    @property
    def enough(self) -> bool:
        """Whether validation holds enough defects for the choice to mean something."""
        return self.needed is not None and self.defects >= self.needed


def operating_point(rows: pd.DataFrame, threshold: float, *, decided: bool = False) -> OperatingPoint:
    """Escapes and overkill of one split at a threshold.

    Args:
        rows: of `evaluate`'s table.
        threshold: from validation.
        decided: the threshold is the run's own, whose verdicts are stored: they, not the rounded
            probabilities, say what it does.
    """
    groups, labels = group_codes(rows), rows["label"].to_numpy()
    called = rows["predicted"].to_numpy() == 1 if decided else rows["probability"].to_numpy() >= threshold
    return OperatingPoint(
        threshold,
        escapes=proportion(~called[labels == 1], groups[labels == 1]),
        overkill=proportion(called[labels == 0], groups[labels == 0]),
    )


def choose_for_recall(labels: NDArray, probability: NDArray, required: float) -> RecallChoice:
    """The highest threshold that finds the required share of the defects.

    It lies midway to the next lower score, as `choose_threshold`'s do, so that the cut keeps a margin to both.

    Args:
        labels: 0 or 1, (N,), of the validation split; never of a test split.
        probability: of class 1, (N,).
        required: recall, in (0, 1].

    Raises:
        ValueError: a recall outside (0, 1].
    """
    check_recall(required)
    scores = np.sort(probability[labels == 1])[::-1]
    if not len(scores):
        return RecallChoice(required, None, 0, defects_needed(required))
    last = scores[math.ceil(round(required * len(scores), 9)) - 1]
    below = probability[probability < last]
    threshold = (last + (below.max() if len(below) else 0.0)) / 2
    return RecallChoice(required, float(threshold), len(scores), defects_needed(required))


def defects_needed(required: float) -> int | None:
    """Defects without which a recall cannot even be told from 1: 1 / (1 − recall); None for a recall of 1.

    One miss among fewer would already be more than the required recall allows.
    """
    return None if required == 1 else math.ceil(round(1 / (1 - required), 6))


def defects_to_show(required: float) -> int | None:
    """Defects that must all be found to show a recall with 95 % confidence: recall^n <= 0.05; None for 1."""
    return None if required == 1 else math.ceil(math.log(1 - CONFIDENCE) / math.log(required))


def check_recall(required: float) -> None:
    """Raises `ValueError` for a recall outside (0, 1]."""
    if not 0 < required <= 1:
        raise ValueError(f"required_recall must be a share of the defects in (0, 1], such as 0.99; got {required:g}")
