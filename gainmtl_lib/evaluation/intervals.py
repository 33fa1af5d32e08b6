"""How sure a number is: 95 % intervals for shares and for scores, with the pictures of one part kept together.

Two pictures of one part are not two observations. A share of pictures takes Wilson's interval, the difference of two
shares of the same pictures Tango's, both at the number of independent pictures that the groups are worth; every other
score is resampled group by group.

Sizes: N pictures, G groups (pictures of one part).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import hypot, nan, sqrt
from operator import add
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats

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
