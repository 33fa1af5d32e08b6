"""Which loss terms are in force at what point of the training: the four stages of the method document §4.

Progress is the share of optimiser steps done, in [0, 1), so that any number of epochs works.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from gainmtl_lib.settings import TERMS

FIRST_STAGE = {"cls": 1, "am": 2, "guide": 2, "cam_guide": 2, "loc": 3, "consist": 3, "cf": 4}
"""The stage from which each term counts."""

# Sums such as 0.1 + 0.2 may lie an ulp above the step that should open the next stage.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Schedule:
    """Four stages that multiply the strategy's λ by 0 or 1, `loc` by a linear warm-up.

    Attributes:
        lambdas: the strategy's λ by term; a term left out counts as 0.
        ratios: the stages' shares of the training, summing to 1; a stage may have length 0.
        loc_warmup_ratio: share of stage 3 over which λ_loc rises from 0 to its value.
    """

    lambdas: Mapping[str, float]
    ratios: tuple[float, float, float, float] = (0.25, 0.25, 0.25, 0.25)
    loc_warmup_ratio: float = 0.5

    def __post_init__(self) -> None:
        unknown = sorted(set(self.lambdas) - set(TERMS))
        if unknown:
            raise ValueError(f"unknown loss term {', '.join(unknown)}; there are {', '.join(TERMS)}")
        if len(self.ratios) != 4 or min(self.ratios) < 0 or not math.isclose(sum(self.ratios), 1, abs_tol=1e-6):
            raise ValueError(f"ratios must be four shares that sum to 1, got {list(self.ratios)}")
        if not 0 <= self.loc_warmup_ratio <= 1:
            raise ValueError(f"loc_warmup_ratio must lie in [0, 1], got {self.loc_warmup_ratio}")

    @property
    def starts(self) -> tuple[float, float, float, float]:
        """Progress at which each stage begins."""
        first, second, third, _ = accumulate(self.ratios)
        return 0.0, first, second, third

    @property
    def final_stage_start(self) -> float:
        """Progress at which the last stage that has any length begins; "best" is chosen from there on."""
        return max(start for start, ratio in zip(self.starts, self.ratios, strict=True) if ratio > 0)

    def stage(self, progress: float) -> int:
        """The stage in force, 1 to 4. At the very end of the training, progress 1, the last one with any length."""
        reached = min(progress + _TOLERANCE, 1 - _TOLERANCE)
        return sum(start <= reached for start in self.starts)

    def weights(self, progress: float) -> dict[str, float]:
        """λ in force, for every one of `TERMS`; 0 where a term does not count yet."""
        stage = self.stage(progress)
        weights = {term: self.lambdas.get(term, 0.0) if stage >= FIRST_STAGE[term] else 0.0 for term in TERMS}
        warmup = self.loc_warmup_ratio * self.ratios[2]
        if stage == 3 and warmup > 0:
            weights["loc"] *= min(max((progress - self.starts[2]) / warmup, 0.0), 1.0)
        return weights


def mask_blend_alpha(progress: float) -> float:
    """Share of the plain mask in S6's attention: from 0.5 down to 0 over the training, linear."""
    return 0.5 * (1 - min(max(progress, 0.0), 1.0))
