"""How sure a number is: 95 % intervals for shares and for scores, with the pictures of one part kept together.

Two pictures of one part are not two observations. A share of pictures takes Wilson's interval, the difference of two
shares of the same pictures Tango's, both at the number of independent pictures that the groups are worth; every other
score is resampled group by group.

Sizes: N pictures, G groups (pictures of one part).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot, isnan, nan, sqrt
from operator import add
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from gainmtl_lib.metrics import MEANS
from gainmtl_lib.readers import DataError
from gainmtl_lib.settings import closest

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0
FEWEST_GROUPS = 10
"""Percentiles of resamples of fewer groups are much too narrow: no interval is given then."""


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is.

    Attributes:
        value: NaN where there is no answer.
        low: lower end of the interval; NaN, like `high`, where none can be given.
        high: upper end.
        count: pictures that it rests on.
        groups: parts that these pictures show.
        hits: how many of the pictures, for a share; None for other scores.
    """

    value: float = nan
    low: float = nan
    high: float = nan
    count: int = 0
    groups: int = 0
    hits: int | None = None

    @property
    def has_interval(self) -> bool:
        """Whether the interval is known."""
        return self.low == self.low and self.high == self.high


def group_codes(table: pd.DataFrame) -> NDArray[np.intp]:
    """Which part each row shows, (N,). A row without a group is a part of its own."""
    return pd.factorize(table["group"].fillna(table["image"]))[0]


def share_parts(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Whether some part is shown in both tables, as in a test split and its copy with a planted cue reversed."""
    return bool(set(first["group"].dropna()) & set(second["group"].dropna()))


def wilson(hits: float, count: float) -> tuple[float, float]:
    """Wilson's score interval of a share.

    For whole counts it is that of `scipy.stats.binomtest`, which takes no others.
    """
    if count <= 0:
        return nan, nan
    z = _z()
    share = hits / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    # At the ends the formula gives 0 and 1 only up to rounding.
    return (0.0 if share == 0 else middle - half), (1.0 if share == 1 else middle + half)


def _z() -> float:
    return float(stats.norm.ppf((1 + CONFIDENCE) / 2))


def effective_count(values: NDArray, groups: NDArray) -> float:
    """How many independent pictures N pictures of G parts are worth: N / design effect (Kish 1965).

    Between N² / Σ n_g² (all pictures of a part agree) and N (they are independent). Where all values are equal
    nothing tells how much the pictures of a part agree; the lower end is taken then.

    Args:
        values: 0 or 1, or their differences, (N,).
        groups: codes, (N,).
    """
    codes = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(codes).astype(float)
    count, mean = sizes.sum(), float(values.mean())
    least = count**2 / (sizes**2).sum()
    if np.ptp(values) == 0 or len(sizes) < 2:
        return float(least)
    deviation = np.bincount(codes, weights=values) - mean * sizes
    variance = len(sizes) / (len(sizes) - 1) * (deviation**2).sum() / count**2
    return float(np.clip(np.var(values) / max(variance, 1e-12), least, count))


def proportion(values: NDArray, groups: NDArray) -> Estimate:
    """The share of pictures with value 1 and Wilson's interval.

    Args:
        values: 0 or 1, (N,); none gives an empty estimate.
        groups: codes, (N,).
    """
    if not len(values):
        return Estimate(hits=0)
    values = np.asarray(values, dtype=float)
    count = effective_count(values, groups)
    share = float(values.mean())
    low, high = wilson(share * count, count)
    return Estimate(share, low, high, len(values), len(np.unique(groups)), int(values.sum()))


def paired_difference(first: NDArray, second: NDArray, groups: NDArray) -> Estimate:
    """The share of 1 in `first` minus that in `second`, of the same pictures, with Tango's interval.

    Args:
        first: 0 or 1, (N,); none gives an empty estimate.
        second: likewise, in the same order.
        groups: codes, (N,).
    """
    gain = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    if not len(gain):
        return Estimate()
    count = effective_count(gain, groups)
    low, high = tango((gain > 0).mean() * count, (gain < 0).mean() * count, count)
    return Estimate(float(gain.mean()), low, high, len(gain), len(np.unique(groups)))


def tango(only_first: float, only_second: float, count: float) -> tuple[float, float]:
    """Score interval of the difference of two paired shares (Tango, Stat Med 1998).

    It excludes 0 exactly where McNemar's test rejects equal shares. Where all pairs that differ do so in one direction,
    its end on that side is Wilson's of their share.

    Args:
        only_first: pairs in which the first is 1 and the second 0.
        only_second: the other way round.
        count: of all pairs.
    """
    if count <= 0:
        return nan, nan
    gain, square = only_first - only_second, _z() ** 2

    def beyond(difference: float) -> float:
        """Above 0 where the pairs contradict this difference; `rare` is the likeliest share of only_second under it."""
        linear = (2 * count - gain) * difference - only_first - only_second
        root = linear**2 + 8 * count * only_second * difference * (1 - difference)
        rare = (sqrt(max(root, 0.0)) - linear) / (4 * count)
        return (gain - count * difference) ** 2 - square * count * (2 * rare + difference * (1 - difference))

    value, step = gain / count, 1e-9  # beside the value itself, where both terms are 0 when all pairs agree
    low = -1.0 if value - step <= -1 else float(optimize.brentq(beyond, -1, value - step))  # type: ignore[arg-type]
    high = 1.0 if value + step >= 1 else float(optimize.brentq(beyond, value + step, 1))  # type: ignore[arg-type]
    return low, high


def mean_score(values: NDArray, groups: NDArray) -> Estimate:
    """Mean of a per-picture score in [0, 1] over the pictures that have one (not NaN).

    Scores that are all 0 or 1 are a share and take its interval, others are resampled by group. Not for differences,
    which may be 0 and 1 without being a share: see `paired_difference` and `mean_gain`.
    """
    values = np.asarray(values, dtype=float)
    known = ~np.isnan(values)
    values, groups = values[known], groups[known]
    if not len(values):
        return Estimate()
    if np.isin(values, (0.0, 1.0)).all():
        return proportion(values, groups)
    rows = _RowsOfGroups(groups)
    sums = np.bincount(rows.codes, weights=values)

    def means(chosen: NDArray, axis: int) -> NDArray:
        return sums[chosen].sum(axis=axis) / rows.sizes[chosen].sum(axis=axis)

    low, high = _percentiles(rows.kinds(None), means, vectorized=True)
    return Estimate(float(values.mean()), low, high, len(values), len(rows.sizes))


def mean_gain(values: NDArray, groups: NDArray) -> Estimate:
    """Mean of a per-picture difference of scores, resampled by group whatever its values.

    Args:
        values: (N,); none gives an empty estimate.
        groups: codes, (N,).
    """
    values = np.asarray(values, dtype=float)
    return resampled(lambda chosen: float(values[chosen].mean()), groups) if len(values) else Estimate()


def resampled(statistic: Callable[[NDArray], float], groups: NDArray, *, strata: NDArray | None = None) -> Estimate:
    """A statistic and its percentile bootstrap over groups, seeded.

    Args:
        statistic: of row numbers; NaN where they hold no answer (such resamples are left out).
        groups: codes, (N,).
        strata: 0 or 1 per row, (N,): groups with and without a 1 are drawn apart, so that each resample has as
            many of both as the data.

    Returns:
        No interval where there are fewer than `FEWEST_GROUPS`, or where every resample gives the same number.
    """
    rows = _RowsOfGroups(groups)
    low, high = _percentiles(rows.kinds(strata), lambda *chosen: statistic(rows(np.concatenate(chosen))))
    return Estimate(statistic(np.arange(len(groups))), low, high, len(groups), len(rows.sizes))


def _percentiles(
    kinds: tuple[NDArray, ...], statistic: Callable[..., Any], *, vectorized: bool = False
) -> tuple[float, float]:
    """Of a statistic of groups, over resamples of each kind of groups; NaN where they say nothing."""
    if sum(map(len, kinds)) < FEWEST_GROUPS or min(map(len, kinds)) < 2:
        return nan, nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap(
            kinds,
            statistic,
            n_resamples=RESAMPLES,
            batch=100,
            vectorized=vectorized,
            method="percentile",
            rng=np.random.default_rng(SEED),
        ).bootstrap_distribution
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn) or drawn.min() == drawn.max():
        return nan, nan
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


class _RowsOfGroups:
    """From drawn groups to the rows of all of them."""

    def __init__(self, groups: NDArray) -> None:
        self.codes = np.unique(groups, return_inverse=True)[1]
        self.order = np.argsort(self.codes, kind="stable")
        self.sizes = np.bincount(self.codes)
        self.starts = np.cumsum(self.sizes) - self.sizes

    def __call__(self, chosen: NDArray) -> NDArray:
        sizes = self.sizes[chosen]
        offsets = self.starts[chosen] - (np.cumsum(sizes) - sizes)
        return self.order[np.repeat(offsets, sizes) + np.arange(sizes.sum())]

    def kinds(self, strata: NDArray | None) -> tuple[NDArray, ...]:
        if strata is None:
            return (np.arange(len(self.sizes)),)
        marked = np.bincount(self.codes, weights=strata) > 0
        return tuple(kind for kind in (np.flatnonzero(marked), np.flatnonzero(~marked)) if len(kind))


def difference(first: Estimate, second: Estimate, *, independent: bool) -> Estimate:
    """`first` − `second` of two sets of pictures, from their intervals (MOVER, Zou and Donner 2008).

    For two independent shares with Wilson's intervals this is Newcombe's interval.

    Args:
        first: of one set.
        second: of the other.
        independent: whether no part is in both; see `share_parts`. Otherwise the interval is that of the worst
            correlation, −1, and at most √2 times as wide.
    """
    value, count = first.value - second.value, first.count + second.count
    if not (first.has_interval and second.has_interval):
        return Estimate(value, count=count)
    joined = hypot if independent else add
    down = joined(first.value - first.low, second.high - second.value)
    up = joined(first.high - first.value, second.value - second.low)
    return Estimate(value, value - down, value + up, count)


# --- Scores of one split, each with its interval, from the table of predictions.


def split_scores(rows: pd.DataFrame) -> dict[str, Estimate]:
    """Verdicts, ranking and explanation of one split under the names that `summarise` gives them.

    Args:
        rows: of `evaluate`'s table. Scores that the strategy lacks are absent; one without an answer is NaN.
    """
    groups = group_codes(rows)
    labels, called = rows["label"].to_numpy(), rows["predicted"].to_numpy()
    prob = rows["probability"].to_numpy()
    scores = {
        "accuracy": proportion(labels == called, groups),
        "precision": proportion(labels[called == 1], groups[called == 1]),
        "recall": proportion(called[labels == 1], groups[labels == 1]),
        "f1": resampled(lambda chosen: f1(labels[chosen], called[chosen]), groups, strata=labels),
        "auroc": resampled(lambda chosen: auroc(labels[chosen], prob[chosen]), groups, strata=labels),
        "average_precision": resampled(
            lambda chosen: average_precision(labels[chosen], prob[chosen]), groups, strata=labels
        ),
    }
    scores |= {name: mean_score(rows[name].to_numpy(), groups) for name in MEANS if name in rows}
    found = ((rows["verdict"] == "TP") & rows["cam_iou"].notna()).to_numpy()
    scores["wrong_reason_rate"] = proportion(rows["wrong_reason"].to_numpy()[found], groups[found])
    return scores | flip_scores(rows, groups)


def flip_scores(rows: pd.DataFrame, groups: NDArray) -> dict[str, Estimate]:
    """How often the verdict flips without the defect, how often in the control, and by how much more it does.

    The difference is over the pictures that were asked both. Nothing where the strategy has no counterfactual.
    """
    if "cf_flip" not in rows or "cf_control_flip" not in rows:
        return {}
    flip, control = (rows[name].to_numpy(dtype=float) for name in ("cf_flip", "cf_control_flip"))
    asked = ~np.isnan(flip) & ~np.isnan(control)
    return {
        "cf_flip_rate": mean_score(flip, groups),
        "cf_control_flip_rate": mean_score(control, groups),
        "cf_excess": paired_difference(flip[asked], control[asked], groups[asked]),
    }


def f1(labels: NDArray, called: NDArray) -> float:
    """Of verdicts 0 and 1, both (N,); NaN where neither a defect nor a defective verdict is among them."""
    total = labels.sum() + called.sum()
    return float(2 * (labels * called).sum() / total) if total else nan


def auroc(labels: NDArray, scores: NDArray) -> float:
    """Share of (defective, normal) pairs in the right order, ties half (Mann and Whitney); NaN for one class.

    That of scikit-learn, without the checks that would make up most of the time of thousands of resamples.
    """
    defects = int(labels.sum())
    normals = len(labels) - defects
    if not defects or not normals:
        return nan
    ranks = stats.rankdata(scores)
    return float((ranks[labels == 1].sum() - defects * (defects + 1) / 2) / (defects * normals))


def average_precision(labels: NDArray, scores: NDArray) -> float:
    """Precision at each distinct score, weighted by the recall that it adds; NaN without a defect.

    That of scikit-learn, like `auroc`.
    """
    if not labels.any() or labels.all():
        return nan
    order = np.argsort(-scores, kind="stable")
    hits = labels[order].cumsum()
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # equal scores are called together
    return float((np.diff(hits[ends], prepend=0) * hits[ends] / (ends + 1)).sum() / hits[-1])


# --- Scores of one split as functions of how often each picture counts, and the draws of a bootstrap over


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


# --- A score, or the difference of two, of several seeds


ROUNDING = 1e-12
"""A smaller difference comes from the order of summation."""
NEEDED = ("image", "label")


@dataclass(frozen=True)
class Contrast:
    """The score of one table, or the second's minus the first's of two tables of the same pictures.

    Attributes:
        table: of the pictures.
        scorers: one or two.
        value: not NaN.
    """

    table: pd.DataFrame
    scorers: tuple[Scorer, ...]
    value: float

    @property
    def used(self) -> NDArray[np.bool_]:
        """Which pictures it rests on, (N,)."""
        return np.logical_or.reduce([found.used for found in self.scorers])

    def in_resamples(self, draws: PartDraws, place: int) -> NDArray:
        """Its values where this table is the one at `place` of the draws, (R,)."""
        return _last_minus_first([draws.scores(place, found) for found in self.scorers])


def contrast(tables: Sequence[pd.DataFrame], metric: str) -> Contrast | None:
    """The score of one table or the difference of two; None where one lacks the metric or holds no answer."""
    scorers = [found for table in tables if (found := scorer(table, metric)) is not None]
    if len(scorers) < len(tables):
        return None
    once = np.ones((1, len(tables[0])))
    value = float(_last_minus_first([found(once) for found in scorers])[0])
    return None if isnan(value) else Contrast(tables[0], tuple(scorers), 0.0 if abs(value) < ROUNDING else value)


def _last_minus_first(scores: Sequence[NDArray]) -> NDArray:
    return scores[0] if len(scores) == 1 else scores[1] - scores[0]


@dataclass(frozen=True)
class DrawnSeeds:
    """Contrasts of several seeds and their bootstrap over parts.

    Attributes:
        seeds: K seeds, in order.
        observed: the contrasts, (K,).
        pictures: that each rests on.
        drawn: the contrasts in each resample, (R, K), without NaN; none, (0, K), where there are too few parts.
        shared: whether two seeds were judged on the same parts.
        parts: of the seed and score with the fewest.
        why_not: why nothing was drawn; empty where it was.
    """

    seeds: tuple[int, ...]
    observed: NDArray
    pictures: tuple[int, ...]
    drawn: NDArray
    shared: bool
    parts: int
    why_not: str = ""


def draw_seeds(contrasts: Mapping[int, Contrast]) -> DrawnSeeds:
    """Resample the parts that the seeds' pictures show; at least one seed."""
    found = list(contrasts.values())
    draws = PartDraws([each.table for each in found])
    parts = min(draws.parts(place, one.used) for place, each in enumerate(found) for one in each.scorers)
    why_not = ""
    if parts < FEWEST_GROUPS:
        why_not = f"too few parts: {parts}, needed are {FEWEST_GROUPS}"
    elif not all(draws.vary(place, each.used) for place, each in enumerate(found)):
        why_not = "too few parts: one alone of its class"
    drawn = np.empty((0, len(found)))
    if not why_not:
        drawn = np.stack([each.in_resamples(draws, place) for place, each in enumerate(found)], axis=1)
    return DrawnSeeds(
        seeds=tuple(contrasts),
        observed=np.array([each.value for each in found]),
        pictures=tuple(int(each.used.sum()) for each in found),
        drawn=drawn[~np.isnan(drawn).any(axis=1)],
        shared=draws.shared,
        parts=parts,
        why_not=why_not,
    )


def checked(table: pd.DataFrame, owner: str) -> pd.DataFrame:
    """The rows in the order of their pictures' names.

    Args:
        table: rows of one split of `Run.predictions`.
        owner: that an error names.

    Raises:
        ValueError: a column is missing, there are rows of several splits, or a picture stands there twice.
    """
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise ValueError(f"{owner}: the predictions lack {' and '.join(missing)}; give rows of Run.predictions")
    splits = sorted(table["split"].unique()) if "split" in table else []
    if len(splits) > 1:
        raise ValueError(f"{owner}: the predictions hold the splits {', '.join(splits)}; give the rows of one of them")
    twice = table.loc[table["image"].duplicated(), "image"]
    if len(twice):
        raise ValueError(f"{owner}: {twice.iloc[0]} stands in the predictions twice; give one row per picture")
    return table.sort_values("image", ignore_index=True)


def check_pair(first: pd.DataFrame, second: pd.DataFrame, owner: str) -> None:
    """DataError where two tables, both `checked`, do not hold the same pictures with the same labels."""
    common = set(first["image"]) & set(second["image"])
    if len(common) < max(len(first), len(second)):
        raise DataError(
            f"{owner}: the two runs were evaluated on different pictures ({len(first)} and {len(second)}, "
            f"{len(common)} of them in both); compare runs of the same data and split"
        )
    differ = (first["label"] != second["label"]).to_numpy()
    if differ.any():
        raise DataError(
            f"{owner}: {differ.sum()} pictures have another label in the second run, the first is "
            f"{first['image'][differ.argmax()]}; compare runs of the same data"
        )


# --- A test of paired seeds that also counts what other pictures would change.


@dataclass(frozen=True)
class TTest:
    """A mean difference, its 95 % interval and its two-sided p-value; p < 0.05 exactly where the interval excludes 0.

    Attributes:
        difference: mean over seeds.
        low: lower end of the interval; NaN, like all that follows, for one seed.
        high: upper end.
        p: of a difference of zero.
        standard_error: of the mean.
        freedom: degrees of freedom.
    """

    difference: float
    low: float = nan
    high: float = nan
    p: float = nan
    standard_error: float = nan
    freedom: float = nan


def seeds_t_test(differences: NDArray, drawn: NDArray, *, shared: bool, parts: int) -> TTest:
    """Paired t test over seeds whose standard error is never below the bootstrap's over pictures.

    A signed-rank or sign-flip test of five pairs cannot reach 0.05: its smallest p is 2/2⁵ = 0.0625. A plain t test
    can, but sees only what differs between seeds: not what the pictures that they share do to all of them, and next to
    nothing where a few shares of few pictures agree by chance. So (Obuchowski and Rockette 1995)

        standard error² = max(s²/K, b² − c) + c

    with s² the variance of the differences, b² the bootstrap variance of their mean, and c the mean bootstrap
    covariance of two seeds' differences, 0 for pictures of their own. Degrees of freedom by Satterthwaite: K − 1 for
    the first term, G − 1 for the second (Hillis 2007). Nor is the standard error below |mean| / G, what one dissenting
    part leaves where all agree. Where pictures dominate and each seed has its own, the test is conservative.

    Args:
        differences: one per seed, (K,).
        drawn: the same in each resample of the parts, (R, K), without NaN.
        shared: whether seeds were judged on the same pictures, so that their differences vary together.
        parts: G, of the seed that has the fewest, at least 2.
    """
    mean, seeds = float(np.mean(differences)), len(differences)
    if seeds < 2:
        return TTest(mean)
    own, common = _picture_variance(drawn, shared=shared)
    of_seeds = max(float(np.var(differences, ddof=1)) / seeds, own / seeds, (mean / parts) ** 2 - common)
    square = of_seeds + common
    if square == 0:
        return TTest(mean, mean, mean, 1.0, 0.0, seeds - 1)  # no picture was decided or scored otherwise
    freedom = square**2 / (of_seeds**2 / (seeds - 1) + common**2 / (parts - 1))
    error = sqrt(square)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return TTest(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, freedom)), error, freedom)


def _picture_variance(drawn: NDArray, *, shared: bool) -> tuple[float, float]:
    """What pictures add to one seed's difference alone, b² − c for K = 1, and to all seeds' alike, c."""
    covariance, seeds = np.cov(drawn, rowvar=False), drawn.shape[1]
    total = float(np.trace(covariance)) / seeds
    if not shared:
        return total, 0.0
    common = (float(covariance.sum()) - total * seeds) / (seeds * (seeds - 1))
    common = min(max(common, 0.0), total)
    return total - common, common


# --- From the p-values of a family of steps to words


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


# --- What the steps of a study changed


Row = Mapping[int, pd.DataFrame]


@dataclass(frozen=True)
class Step:
    """The comparison of two rows.

    Attributes:
        name: ``before→after``.
        metric: that was compared.
        test: without interval and p where nothing was tested.
        drawn: 95 % percentile interval over resampled parts, of these trainings; NaN where there is none.
        seeds: that were compared.
        pictures: that the score rests on, of each of these seeds.
        notes: why nothing was tested, and what was left out.
    """

    name: str
    metric: str
    test: TTest = TTest(nan)
    drawn: tuple[float, float] = (nan, nan)
    seeds: tuple[int, ...] = ()
    pictures: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def steps_table(rows: Mapping[str, Row], steps: Iterable[Sequence[str]], metric: str) -> pd.DataFrame:
    """One row per step, each tested, and corrected for their number by Holm's method.

    Args:
        rows: predictions of one split by seed, under the name of the setting.
        steps: pairs of names, before and after. A step with a name without runs is not tested.
        metric: see `score`; the family of the correction is these steps, of one metric and split.

    Returns:
        ``step``, ``difference``, ``low`` and ``high`` (t interval of this step alone, so it may exclude 0 where the
        verdict does not), ``p``, ``p_holm``, ``verdict``, ``seeds`` (number), ``pictures`` (of the seed with
        the fewest), ``drawn_low`` and ``drawn_high`` (bootstrap over parts), ``note``, ``sentence``.

    Raises:
        DataError, ValueError: see `compare_rows`.
    """
    check_metric(metric, [table for row in rows.values() for table in row.values()])
    found = [
        compare_rows(rows.get(first, {}), rows.get(then, {}), metric, names=(first, then)) for first, then in steps
    ]
    adjusted = holm([step.test.p for step in found])
    family = int((~np.isnan(adjusted)).sum())
    lines = [_line(step, float(p), family) for step, p in zip(found, adjusted, strict=True)]
    return pd.DataFrame(lines, columns=list(_line(Step("", metric), nan, 0)))


def _line(step: Step, adjusted: float, family: int) -> dict[str, object]:
    test, notes = step.test, "; ".join(step.notes)
    words = sentence(test, adjusted, family, step.metric, step.pictures)
    return {
        "step": step.name,
        "difference": test.difference,
        "low": test.low,
        "high": test.high,
        "p": test.p,
        "p_holm": adjusted,
        "verdict": verdict(test.difference, adjusted, step.metric),
        "seeds": len(step.seeds),
        "pictures": min(step.pictures, default=0),
        "drawn_low": step.drawn[0],
        "drawn_high": step.drawn[1],
        "note": notes,
        "sentence": f"{step.name}: {words}" + f" ({notes})" * bool(notes),
    }


def rows_table(rows: Mapping[str, Row], metric: str) -> pd.DataFrame:
    """One row per setting: its score, how sure it is, and how much its seeds differ.

    Args:
        rows: as in `steps_table`.
        metric: see `score`.

    Returns:
        ``row``, ``mean`` over seeds, ``low`` and ``high`` (bootstrap over parts: what other pictures would give for
        these trainings; NaN where there are too few parts or all resamples agree), ``seed_sd`` (standard deviation over
        seeds, NaN for one), ``lowest`` and ``highest`` seed, ``seeds`` (number), ``pictures`` (that the score rests on,
        of the seed with the fewest), ``note``.

    Raises:
        ValueError: a table is not of one split with one row per picture, or there is no such metric.
    """
    check_metric(metric, [table for row in rows.values() for table in row.values()])
    lines = [{"row": name} | _summary(name, row, metric) for name, row in rows.items()]
    return pd.DataFrame(lines, columns=["row", *_no_answer("")])


def _summary(name: str, row: Row, metric: str) -> dict[str, object]:
    row = _checked(name, row)
    found = {seed: contrast([row[seed]], metric) for seed in sorted(row)}
    known = {seed: each for seed, each in found.items() if each is not None}
    if not known:
        return _no_answer(_lacking(name, row, metric) or "no answer in any seed")
    seeds = draw_seeds(known)
    mute = [seed for seed in found if seed not in known]
    low, high = percentiles(seeds.drawn.mean(axis=1))
    return {
        "mean": float(seeds.observed.mean()),
        "low": low,
        "high": high,
        "seed_sd": float(seeds.observed.std(ddof=1)) if len(known) > 1 else nan,
        "lowest": float(seeds.observed.min()),
        "highest": float(seeds.observed.max()),
        "seeds": len(known),
        "pictures": min(seeds.pictures),
        "note": "; ".join(filter(None, [seeds.why_not, _left_out(mute, "without an answer")])),
    }


def _no_answer(note: str) -> dict[str, object]:
    unknown = dict.fromkeys(("mean", "low", "high", "seed_sd", "lowest", "highest"), nan)
    return {**unknown, "seeds": 0, "pictures": 0, "note": note}


def compare_rows(before: Row, after: Row, metric: str, *, names: tuple[str, str] = ("before", "after")) -> Step:
    """What changed from one row to another, over the seeds that both have; tested where these are two or more.

    Args:
        before: predictions of one split by seed.
        after: likewise.
        metric: see `score`.
        names: of the two rows.

    Raises:
        DataError: the two runs of a seed hold different pictures.
        ValueError: a table is not of one split with one row per picture, or there is no such metric.
    """
    check_metric(metric, [*before.values(), *after.values()])
    step = Step("→".join(names), metric)
    before, after = (_checked(name, row) for name, row in zip(names, (before, after)))
    lacking = [note for name, row in zip(names, (before, after)) if (note := _lacking(name, row, metric))]
    if lacking:
        return replace(step, notes=tuple(lacking))
    found = {}
    for seed in sorted(set(before) & set(after)):
        check_pair(before[seed], after[seed], f"{step.name}, seed {seed}")
        found[seed] = contrast([before[seed], after[seed]], metric)
    known = {seed: each for seed, each in found.items() if each is not None}
    left_out = [
        _left_out(sorted(set(before) ^ set(after)), "without a partner"),
        _left_out([seed for seed in found if seed not in known], "without an answer"),
    ]
    tested = _tested(step, draw_seeds(known)) if known else step
    return replace(tested, notes=(*tested.notes, *filter(None, left_out)))


def _tested(step: Step, seeds: DrawnSeeds) -> Step:
    step = replace(step, seeds=seeds.seeds, pictures=seeds.pictures)
    one = ("one seed",) if len(seeds.seeds) == 1 else ()
    if seeds.why_not:
        return replace(step, test=TTest(float(seeds.observed.mean())), notes=(*one, seeds.why_not))
    test = seeds_t_test(seeds.observed, seeds.drawn, shared=seeds.shared, parts=seeds.parts)
    return replace(step, test=test, drawn=percentiles(seeds.drawn.mean(axis=1)), notes=one)


def _checked(name: str, row: Row) -> Row:
    return {seed: checked(table, f"{name}, seed {seed}") for seed, table in row.items()}


def _lacking(name: str, row: Row, metric: str) -> str:
    if not row:
        return f"no run of {name}"
    return f"{name} has no {metric}" if all(scorer(table, metric) is None for table in row.values()) else ""


def _left_out(seeds: Sequence[int], why: str) -> str:
    """``left out: seeds 3 and 4 (without a partner)``, or nothing."""
    names = [str(seed) for seed in seeds]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    return f"left out: seed{'s' * (len(names) > 1)} {listed} ({why})" if names else ""
