"""What a probe found: how well it tells two sorts of pictures apart on pictures that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.evaluation.intervals import FEWEST_GROUPS, Estimate, resampled
from gainmtl_lib.evaluation.scores import auroc


@dataclass(frozen=True)
class ProbeResult:
    """Answer of a probe.

    Attributes:
        auroc: on the held-out pictures, with its interval by part; 0.5 is guessing.
        table: the same by kind and by method of the edit: ``of`` (all, kind, method), ``name``, ``edits``, ``auroc``,
            ``low`` and ``high``, the latter two NaN where too few parts are there.
        trained_on: pictures that the probe learnt from.
        question: what it was asked, ``edited`` or ``class from the border``.
    """

    auroc: Estimate
    table: pd.DataFrame
    trained_on: int
    question: str

    @property
    def finds(self) -> bool:
        """Whether the interval lies above 0.5; an AUROC of 1, whose resamples are all 1, has no other."""
        low = self.auroc.low if self.auroc.has_interval else self.auroc.value if self.auroc.value == 1 else 0.0
        return low > 0.5 and not self.too_few

    @property
    def too_few(self) -> bool:
        """Whether the held-out pictures show too few parts to say anything."""
        return self.auroc.groups < FEWEST_GROUPS

    @property
    def sentence(self) -> str:
        """The number in words, whichever way it came out."""
        if self.too_few:
            return f"{TOO_FEW[self.question]}: {self.auroc.groups} held-out parts, AUROC {self.auroc.value:.2f}."
        return _SENTENCES[self.question, self.finds].format(number=told(self.auroc))


TOO_FEW = {
    "edited": "Too few pictures to say whether edits can be told from what was there before",
    "class from the border": "Too few pictures to say whether the border of an edit tells the class",
}
_SENTENCES = {
    ("edited", True): (
        "Shown the place, a small network tells edits from what was there before, AUROC {number}, where 0.5 is "
        "guessing: edits leave traces. They mislead only where they go along with the class, which the probe of the "
        "border asks."
    ),
    ("edited", False): (
        "Shown the place, a small network tells edits from what was there before no better than by guessing, AUROC "
        "{number}. A larger one, or one trained for longer, may."
    ),
    ("class from the border", True): (
        "A small network tells the class from the border of an edit, AUROC {number}, where 0.5 is guessing: to that "
        "extent the border can stand in for the defect in training."
    ),
    ("class from the border", False): (
        "A small network tells the class from the border of an edit no better than by guessing, AUROC {number}."
    ),
}


def told(estimate: Estimate) -> str:
    """``0.53 (95 % interval 0.47 to 0.59)``, or the number alone where it has none."""
    interval = f" (95 % interval {estimate.low:.2f} to {estimate.high:.2f})" if estimate.has_interval else ""
    return f"{estimate.value:.2f}{interval}"


def auroc_by_part(labels: NDArray, scores: NDArray, groups: NDArray, *, apart: NDArray | None = None) -> Estimate:
    """AUROC with its interval, the pictures of one part kept together.

    Args:
        labels: 0 or 1, (N,).
        scores: (N,).
        groups: codes, (N,).
        apart: pictures of different values are not compared with each other, (N,); the AUROCs are averaged by how many
            pictures of label 1 they rest on.
    """
    sorts = np.zeros(len(labels), int) if apart is None else apart

    def statistic(chosen: NDArray) -> float:
        return _auroc_apart(labels[chosen], scores[chosen], sorts[chosen])

    # Most parts show pictures of both labels: drawn apart, the few that do not could be too few for an interval.
    return resampled(statistic, groups)


def _auroc_apart(labels: NDArray, scores: NDArray, sorts: NDArray) -> float:
    """NaN where no sort has both labels."""
    selections = [sorts == sort for sort in np.unique(sorts)]
    parts = [(int(labels[chosen].sum()), auroc(labels[chosen], scores[chosen])) for chosen in selections]
    known = [(count, value) for count, value in parts if value == value]
    return sum(count * value for count, value in known) / sum(count for count, _ in known) if known else nan


def score_table(rows: Sequence[tuple[str, str, int, Estimate]]) -> pd.DataFrame:
    """See `ProbeResult.table`; rows are (of, name, edits, estimate)."""
    return pd.DataFrame(
        [(of, name, edits, one.value, one.low, one.high) for of, name, edits, one in rows],
        columns=["of", "name", "edits", "auroc", "low", "high"],
    ).astype({"auroc": np.float64, "low": np.float64, "high": np.float64})
