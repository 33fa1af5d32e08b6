"""A test of paired seeds that also counts what other pictures would change.

Two things vary between repetitions of a comparison: how a training turned out (seeds), and which pictures it was
judged on. That is the study of several readers who judge the same cases, and its test is used here.

Sizes: K seeds, R resamples, G parts (groups of pictures).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gainmtl_lib.evaluation.intervals import CONFIDENCE


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
