"""Scores of one split as functions of how often each picture counts, and the draws of a bootstrap over parts.

A resample of parts is a row of weights, so that thousands of resamples are one array operation.

Sizes: N pictures, G parts (groups of pictures), R resamples, K seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.evaluation.intervals import CONFIDENCE, RESAMPLES, SEED
from gainmtl_lib.evaluation.summary import MEANS
from gainmtl_lib.wording import closest

SAME_AREA = 1e-5
"""Defect areas (share of the picture) that differ by more are of different pictures."""
BLOCK = 200
"""Resamples that are scored at once: a block of weights of ten thousand pictures takes 16 MB."""

Terms = tuple[Any, Any]
_RATIOS: dict[str, tuple[set[str], Callable[[pd.DataFrame], Terms]]] = {
    "accuracy": ({"predicted"}, lambda t: (t["label"] == t["predicted"], np.ones(len(t)))),
    "precision": ({"predicted"}, lambda t: (t["label"] * t["predicted"], t["predicted"])),
    "recall": ({"predicted"}, lambda t: (t["label"] * t["predicted"], t["label"])),
    "f1": ({"predicted"}, lambda t: (2 * t["label"] * t["predicted"], t["label"] + t["predicted"])),
    "wrong_reason_rate": ({"wrong_reason", "verdict", "cam_iou"}, lambda t: _wrong_reasons(t)),
    "cf_flip_rate": ({"cf_flip"}, lambda t: _mean(t["cf_flip"])),
    "cf_control_flip_rate": ({"cf_control_flip"}, lambda t: _mean(t["cf_control_flip"])),
    "cf_excess": ({"cf_flip", "cf_control_flip"}, lambda t: _mean(t["cf_flip"] - t["cf_control_flip"])),
}
"""Scores that are a sum over pictures divided by another: the columns they need, and both terms of each picture."""

NAMES = (*_RATIOS, "auroc", *MEANS)
LOWER_IS_BETTER = frozenset({"wrong_reason", "wrong_reason_rate", "cf_control_flip", "cf_control_flip_rate"})


class Scorer(Protocol):
    """One score of one table; called with weights (R, N) it gives the scores (R,), NaN where there is no answer."""

    used: NDArray[np.bool_]
    """Which pictures the score rests on, (N,)."""

    def __call__(self, weights: NDArray) -> NDArray:
        """The score of each row of weights."""
        ...


def score(table: pd.DataFrame, metric: str) -> float:
    """A score of one split, as in `split_scores`; NaN where the table lacks it or holds no answer.

    Args:
        table: rows of one split of `Run.predictions`.
        metric: one of `NAMES`, or any column of numbers: its mean over the pictures that have one.

    Raises:
        ValueError: no such metric.
    """
    check_metric(metric, [table])
    found = scorer(table, metric)
    return float("nan") if found is None else float(found(np.ones((1, len(table))))[0])


def check_metric(metric: str, tables: Sequence[pd.DataFrame]) -> None:
    """ValueError where the name is no metric and a column of numbers in none of the tables."""
    if metric not in NAMES and not any(_has_numbers(table, metric) for table in tables):
        raise ValueError(f"unknown metric '{metric}'{closest(metric, NAMES)}; known: {', '.join(NAMES)}")


def scorer(table: pd.DataFrame, metric: str) -> Scorer | None:
    """The score as a function of weights; None where the table lacks its columns."""
    if metric == "auroc":
        return _Auroc(table) if "probability" in table else None
    if metric in _RATIOS:
        columns, terms = _RATIOS[metric]
        return _Ratio(*terms(table)) if columns <= set(table) else None
    return _Ratio(*_mean(table[metric])) if _has_numbers(table, metric) else None


def _has_numbers(table: pd.DataFrame, column: str) -> bool:
    return column in table and pd.api.types.is_numeric_dtype(table[column])


def _mean(values: pd.Series) -> Terms:
    known = values.notna().to_numpy()
    return values.fillna(0).to_numpy(dtype=float), known


def _wrong_reasons(table: pd.DataFrame) -> Terms:
    found = ((table["verdict"] == "TP") & table["cam_iou"].notna()).to_numpy()
    return table["wrong_reason"].to_numpy(dtype=float) * found, found


class _Ratio:
    def __init__(self, above: Any, below: Any) -> None:
        self.above, self.below = (np.asarray(term, dtype=float) for term in (above, below))
        self.used = self.below > 0

    def __call__(self, weights: NDArray) -> NDArray:
        return _divide(weights @ self.above, weights @ self.below)


class _Auroc:
    """Share of (defective, normal) pairs in the right order, ties half, each pair with the product of its weights."""

    def __init__(self, table: pd.DataFrame) -> None:
        scores = table["probability"].to_numpy()
        self.order = np.argsort(scores, kind="stable")
        self.defective = table["label"].to_numpy()[self.order] == 1
        self.starts = np.flatnonzero(np.diff(scores[self.order], prepend=-np.inf))  # of equal scores
        self.used = np.ones(len(table), dtype=bool)

    def __call__(self, weights: NDArray) -> NDArray:
        if not len(self.order):
            return np.full(len(weights), np.nan)
        drawn = weights[:, self.order]
        defects, normals = (
            np.add.reduceat(drawn * kind, self.starts, axis=1) for kind in (self.defective, ~self.defective)
        )
        right = defects * (normals.cumsum(axis=1) - normals / 2)
        return _divide(right.sum(axis=1), defects.sum(axis=1) * normals.sum(axis=1))


def _divide(above: NDArray, below: NDArray) -> NDArray:
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


class PartDraws:
    """Draws with replacement of the parts that the pictures of several seeds show, seeded.

    A part that several seeds show is drawn for all of them at once. Parts with and without a defective picture are
    drawn apart, and so are the seeds where none shares a part with another, so that each resample has as many parts of
    each kind as the data. Pictures of two seeds are the same where their names are, unless a label or a defect area
    contradicts it for any of them: synthetic data made for each seed has the same file names.

    Args:
        tables: one per seed, columns ``image``, ``label``, ``group`` and, where known, ``defect_area``.
        resamples: R.
    """

    def __init__(self, tables: Sequence[pd.DataFrame], *, resamples: int = RESAMPLES) -> None:
        codes = _part_codes(tables)
        self.codes = np.split(codes, np.cumsum([len(table) for table in tables])[:-1])
        owners = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        of_part = pd.DataFrame({"part": codes, "seed": owners, "label": np.concatenate([t["label"] for t in tables])})
        seeds, defective = (of_part.groupby("part")[name] for name in ("seed", "label"))
        self.shared = bool((seeds.max() > seeds.min()).any())
        """Whether a part is shown by more than one seed."""
        self.strata = (defective.max() + (0 if self.shared else 2 * seeds.first())).to_numpy()
        """Kind of each part, (G,)."""
        rng = np.random.default_rng(SEED)
        self._counts = np.zeros((resamples, len(self.strata)), dtype=np.uint16)
        for kind in np.unique(self.strata):
            parts = np.flatnonzero(self.strata == kind)
            for row in range(resamples):  # several times as fast for thousands of parts as one multinomial draw
                self._counts[row, parts] = np.bincount(rng.integers(len(parts), size=len(parts)), minlength=len(parts))

    def scores(self, place: int, found: Scorer) -> NDArray:
        """The score of the table at this place in every resample, (R,)."""
        blocks = np.split(self._counts, range(BLOCK, len(self._counts), BLOCK))
        return np.concatenate([found(block[:, self.codes[place]].astype(float)) for block in blocks])

    def parts(self, place: int, used: NDArray) -> int:
        """How many parts the given pictures (bool, (N,)) of a table show."""
        return len(np.unique(self.codes[place][used]))

    def vary(self, place: int, used: NDArray) -> bool:
        """Whether each kind that the given pictures show has a second part that can be drawn in place of the first."""
        kinds, sizes = np.unique(self.strata, return_counts=True)
        shown = np.unique(self.strata[self.codes[place][used]])
        return bool((sizes[np.isin(kinds, shown)] > 1).all())


def percentiles(drawn: NDArray) -> tuple[float, float]:
    """Ends of the 95 % percentile interval of a score in resamples, (R,); NaN where they are all the same or NaN."""
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn) or drawn.min() == drawn.max():
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _part_codes(tables: Sequence[pd.DataFrame]) -> NDArray[np.intp]:
    """Part of every row of all tables, one after another."""
    stacked = pd.concat([table.assign(seed=place) for place, table in enumerate(tables)], ignore_index=True)
    names = (stacked["group"] if "group" in stacked else stacked["image"]).fillna(stacked["image"]).astype(str)
    alike = stacked.groupby("image")
    same = bool((alike["label"].max() == alike["label"].min()).all())
    if "defect_area" in stacked:
        same &= bool(((alike["defect_area"].max() - alike["defect_area"].min()).fillna(0) <= SAME_AREA).all())
    return pd.factorize(names if same else stacked["seed"].astype(str) + ":" + names)[0]
