"""How sure a number is: 95 % intervals of scores of one run, and tests of what a study's rows changed.

Two pictures of one part (a group) are not two observations. Shares of pictures take Wilson's interval, differences of
two shares of the same pictures Tango's, both at the number of independent pictures that the groups are worth; other
scores are resampled group by group. Rows of a study are compared seed by seed with a paired t test.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot, isnan, nan, sqrt
from operator import add
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from gainmtl_lib.findings import DataError
from gainmtl_lib.metrics import (
    MEANS,
    NAMED,
    auroc,
    average_precision,
    calibration_error,
    f1,
    macro_f1,
    named_right,
    type_answers,
)
from gainmtl_lib.wording import METRICS, join_words

CONFIDENCE = 0.95
RESAMPLES, SEED = 2000, 0
FEWEST_GROUPS = 10  # percentiles of resamples of fewer are much too narrow: no interval is given then


@dataclass(frozen=True)
class Estimate:
    """A number, NaN where there is no answer, and how sure it is: `low` and `high` are NaN where nothing can be said.

    It rests on `count` pictures of `groups` parts; `hits` of them, where it is a share.
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
    """Which part each row shows. A row without a group is a part of its own."""
    return pd.factorize(table["group"].fillna(table["image"]))[0]


def share_parts(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Whether some part is shown in both tables, as in a test split and its copy with a planted cue reversed."""
    return bool(set(first["group"].dropna()) & set(second["group"].dropna()))


# --- Shares of pictures


def wilson(hits: float, count: float) -> tuple[float, float]:
    """Wilson's score interval of a share; `scipy.stats.binomtest` has it for whole counts only."""
    z, share = float(stats.norm.ppf((1 + CONFIDENCE) / 2)), hits / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    # At the ends the formula gives 0 and 1 only up to rounding.
    return (0.0 if share == 0 else middle - half), (1.0 if share == 1 else middle + half)


def tango(only_first: float, only_second: float, count: float) -> tuple[float, float]:
    """Score interval of the difference of two paired shares (Tango, Stat Med 1998).

    It excludes 0 exactly where McNemar's test rejects equal shares. Where all pairs that differ do so in one direction,
    its end on that side is Wilson's of their share. `only_first` and `only_second` count the pairs with a single 1.
    """
    gain, square = only_first - only_second, float(stats.chi2.ppf(CONFIDENCE, 1))

    def beyond(difference: float) -> float:
        """Above 0 where the pairs contradict this difference; `rare` is the likeliest share of only_second under it."""
        linear = (2 * count - gain) * difference - only_first - only_second
        root = linear**2 + 8 * count * only_second * difference * (1 - difference)
        rare = (sqrt(max(root, 0.0)) - linear) / (4 * count)
        return (gain - count * difference) ** 2 - square * count * (2 * rare + difference * (1 - difference))

    value, step = gain / count, 1e-9  # beside the value itself, where both terms are 0 when all pairs agree
    solve: Any = optimize.brentq
    low = -1.0 if value - step <= -1 else solve(beyond, -1, value - step)
    return low, 1.0 if value + step >= 1 else solve(beyond, value + step, 1)


def effective_count(values: NDArray, groups: NDArray) -> float:
    """How many independent pictures N pictures, (N,), of grouped parts are worth: N / design effect (Kish 1965).

    Between N² / Σ n_g² (all pictures of a part agree) and N (they are independent). Where all values are equal
    nothing tells how much the pictures of a part agree; the lower end is taken then.
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
    """The share of pictures with value 1, of 0 and 1, (N,), and Wilson's interval; `groups` are codes, (N,)."""
    if not len(values):
        return Estimate(hits=0)
    values = np.asarray(values, dtype=float)
    count, share = effective_count(values, groups), float(values.mean())
    low, high = wilson(share * count, count)
    return Estimate(share, low, high, len(values), len(np.unique(groups)), int(values.sum()))


def paired_difference(first: NDArray, second: NDArray, groups: NDArray) -> Estimate:
    """The share of 1 in `first` minus that in `second`, both (N,) of the same pictures, with Tango's interval."""
    gain = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    if not len(gain):
        return Estimate()
    count = effective_count(gain, groups)
    low, high = tango((gain > 0).mean() * count, (gain < 0).mean() * count, count)
    return Estimate(float(gain.mean()), low, high, len(gain), len(np.unique(groups)))


def difference(first: Estimate, second: Estimate, *, independent: bool) -> Estimate:
    """`first` − `second` of two sets of pictures, from their intervals (MOVER, Zou and Donner 2008).

    For two independent shares with Wilson's intervals this is Newcombe's interval. Where some part is in both sets (not
    `independent`, see `share_parts`) it is that of the worst correlation, −1, and at most √2 times as wide.
    """
    value, count = first.value - second.value, first.count + second.count
    if not (first.has_interval and second.has_interval):
        return Estimate(value, count=count)
    joined = hypot if independent else add
    down = joined(first.value - first.low, second.high - second.value)
    up = joined(first.high - first.value, second.value - second.low)
    return Estimate(value, value - down, value + up, count)


# --- Every other score: groups drawn with replacement


def resamples(
    statistic: Callable[[NDArray], float], groups: NDArray, *, strata: NDArray | None = None
) -> NDArray[np.float64]:
    """A statistic of row numbers in `RESAMPLES` draws of as many groups, without NaN; empty for too few groups.

    With `strata`, 0 or 1 per row, groups with and without a 1 are drawn apart: each resample has as many of both.
    """
    codes = np.unique(groups, return_inverse=True)[1]
    order, sizes = np.argsort(codes, kind="stable"), np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    kinds = np.zeros(len(sizes)) if strata is None else np.bincount(codes, weights=strata) > 0
    drawn_apart = [np.flatnonzero(kinds == kind) for kind in sorted(set(kinds), reverse=True)]
    if len(sizes) < FEWEST_GROUPS or min(map(len, drawn_apart)) < 2:
        return np.empty(0)

    def of_groups(*chosen: NDArray) -> float:
        found = np.concatenate(chosen)
        offsets = starts[found] - (np.cumsum(sizes[found]) - sizes[found])
        return statistic(order[np.repeat(offsets, sizes[found]) + np.arange(sizes[found].sum())])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap(
            drawn_apart, of_groups, n_resamples=RESAMPLES, batch=100, vectorized=False, method="percentile",
            rng=np.random.default_rng(SEED),
        ).bootstrap_distribution  # fmt: skip
    return drawn[~np.isnan(drawn)]


def resampled(statistic: Callable[[NDArray], float], groups: NDArray, *, strata: NDArray | None = None) -> Estimate:
    """A statistic and its percentile bootstrap over groups; no interval where all draws are equal."""
    low, high = _percentiles(resamples(statistic, groups, strata=strata))
    return Estimate(statistic(np.arange(len(groups))), low, high, len(groups), len(np.unique(groups)))


def _percentiles(drawn: NDArray) -> tuple[float, float]:
    if not len(drawn) or drawn.min() == drawn.max():
        return nan, nan
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def mean_score(values: NDArray, groups: NDArray) -> Estimate:
    """Mean of a per-picture score in [0, 1] over the pictures that have one (not NaN); all 0 or 1 are a share."""
    values = np.asarray(values, dtype=float)
    known = ~np.isnan(values)
    share = np.isin(values[known], (0.0, 1.0)).all() and known.any()
    return (proportion if share else mean_gain)(values[known], groups[known])


def mean_gain(values: NDArray, groups: NDArray) -> Estimate:
    """Mean of a per-picture difference of scores, (N,), resampled by group: 0 and 1 do not make it a share."""
    return resampled(lambda chosen: float(values[chosen].mean()), groups) if len(values) else Estimate()


# --- Scores of one split, from the table of predictions


def split_scores(rows: pd.DataFrame) -> dict[str, Estimate]:
    """Verdicts, ranking and explanation of one split of `evaluate`'s table, by the names of `METRICS`.

    Scores that the strategy lacks are absent. ``cf_excess`` is over the pictures that were asked both flips.
    """
    groups = group_codes(rows)
    labels, called, prob = (rows[name].to_numpy() for name in ("label", "predicted", "probability"))
    scores = {
        "accuracy": proportion(labels == called, groups),
        "precision": proportion(labels[called == 1], groups[called == 1]),
        "recall": proportion(called[labels == 1], groups[labels == 1]),
        "f1": resampled(lambda chosen: f1(labels[chosen], called[chosen]), groups, strata=labels),
    }
    for name, ranked in (("auroc", auroc), ("average_precision", average_precision)):
        scores[name] = resampled(lambda at, of=ranked: of(labels[at], prob[at]), groups, strata=labels)
    scores["ece"] = expected_calibration_error(rows)
    scores |= {name: mean_score(rows[name].to_numpy(), groups) for name in MEANS if name in rows}
    found = ((rows["verdict"] == "TP") & rows["cam_iou"].notna()).to_numpy()
    scores["wrong_reason_rate"] = proportion(rows["wrong_reason"].to_numpy()[found], groups[found])
    if {"cf_flip", "cf_control_flip"} <= set(rows):
        flip, control = (rows[name].to_numpy(dtype=float) for name in ("cf_flip", "cf_control_flip"))
        both = ~np.isnan(flip) & ~np.isnan(control)
        scores |= {"cf_flip_rate": mean_score(flip, groups), "cf_control_flip_rate": mean_score(control, groups)}
        scores["cf_excess"] = paired_difference(flip[both], control[both], groups[both])
    if NAMED in rows:
        scores |= _type_scores(rows)
    return scores


def expected_calibration_error(rows: pd.DataFrame) -> Estimate:
    """Of the probabilities of one split, of either system; see `metrics.calibration_error`."""
    labels, prob = (rows[name].to_numpy() for name in ("label", "probability"))
    return resampled(lambda at: calibration_error(labels[at], prob[at]), group_codes(rows), strata=labels)


def _type_scores(rows: pd.DataFrame) -> dict[str, Estimate]:
    answers = type_answers(rows)
    truth, called = (answers[name].to_numpy() for name in answers)
    right, groups = named_right(answers), group_codes(rows.loc[answers.index])
    return {
        "type_macro_f1": resampled(lambda at: macro_f1(truth[at], called[at]), groups, strata=pd.factorize(truth)[0]),
        "type_accuracy": proportion(right.to_numpy(), group_codes(rows.loc[right.index])),
    }


# --- Rows of a study, and the steps between them

BETTER, WORSE, NOT_DISTINGUISHABLE, NOT_TESTED = "better", "worse", "not distinguishable", "not tested"
Row = Mapping[int, pd.DataFrame]  # predictions of one split by seed, of one setting
_COLUMNS = {"accuracy": "predicted", "auroc": "probability", "cf_excess": "cf_flip"}


def score(rows: Mapping[str, Any] | pd.DataFrame, metric: str) -> float:
    """A score of one split: one of `METRICS` or a column's name; NaN where the table lacks it or has no answer."""
    column = _COLUMNS.get(metric, metric.removesuffix("_rate"))
    if column not in rows:
        return nan
    values = np.asarray(rows[column], dtype=float)
    if metric == "auroc":
        return auroc(np.asarray(rows["label"]), values)
    if metric == "accuracy":
        values = values == rows["label"]
    elif metric == "cf_excess":
        values = values - rows["cf_control_flip"]
    return float(np.nanmean(values)) if not np.isnan(values).all() else nan


def rows_table(rows: Mapping[str, Row], metric: str) -> pd.DataFrame:
    """One line per row: ``row``, ``mean`` over seeds, ``low``, ``high``, ``seeds``, ``pictures``, ``note``.

    The interval is Student's over seeds, from three on; that of one seed is the bootstrap over its groups.
    """
    columns = ["row", "value", "low", "high", "seeds", "pictures", "note"]
    tables = {name: {seed: [table] for seed, table in row.items()} for name, row in rows.items()}
    lines = [{"row": name} | _over_seeds(by_seed, metric) for name, by_seed in tables.items()]
    return pd.DataFrame(lines, columns=columns).rename(columns={"value": "mean"})


def steps_table(rows: Mapping[str, Row], steps: Iterable[Sequence[str]], metric: str) -> pd.DataFrame:
    """What each step changed: the paired t test over the seeds that both rows have, corrected for all steps (Holm).

    Seeds that are judged on the same pictures share their luck: the test says what other seeds would give, not other
    pictures. Of a single seed the groups are resampled instead, which says nothing about other seeds.

    Returns:
        ``step``, ``difference`` (after − before), ``low``, ``high`` (of this step alone: they may exclude 0 though the
        verdict does not), ``p``, ``p_holm``, ``verdict``, ``seeds``, ``pictures`` (of the fewest), ``note``.
        `DataError` where two runs of a seed hold different pictures.
    """
    lines = []
    for before, after in steps:
        first, second, name = rows.get(before, {}), rows.get(after, {}), f"{before}→{after}"
        both = sorted(set(first) & set(second))
        line = _over_seeds({seed: _paired(first[seed], second[seed], f"{name}, seed {seed}") for seed in both}, metric)
        alone = [str(seed) for seed in sorted(set(first) ^ set(second))]
        notes = [line["note"], f"left out, without a partner: seed {join_words(alone)}" if alone else ""]
        lines.append(line | {"step": name, "note": "; ".join(filter(None, notes))})
    columns = ["step", "value", "low", "high", "p", "p_holm", "verdict", "seeds", "pictures", "note"]
    table = pd.DataFrame(lines, columns=columns)
    table["p_holm"] = holm(table["p"])
    found = [table["p_holm"].isna(), table["p_holm"] >= 1 - CONFIDENCE, table["value"] > 0]
    table["verdict"] = np.select(found, [NOT_TESTED, NOT_DISTINGUISHABLE, BETTER], WORSE)
    return table.rename(columns={"value": "difference"})


def _paired(first: pd.DataFrame, second: pd.DataFrame, owner: str) -> list[pd.DataFrame]:
    first, second = (table.sort_values("image", ignore_index=True) for table in (first, second))
    common = set(first["image"]) & set(second["image"])
    if len(common) < max(len(first), len(second)):
        counts = f"{len(first)} and {len(second)}, {len(common)} of them in both"
        told = f"the two runs were evaluated on different pictures ({counts})"
        raise DataError(f"{owner}: {told}; compare runs of the same data and split")
    if differ := first["image"][first["label"] != second["label"]].tolist():
        told = f"{len(differ)} pictures have another label in the second run, the first is {differ[0]}"
        raise DataError(f"{owner}: {told}; compare runs of the same data")
    return [first, second]


def _over_seeds(tables: Mapping[int, Sequence[pd.DataFrame]], metric: str) -> dict[str, Any]:
    """The mean over seeds of a score (one table each) or difference (two), its interval, and its p for 0."""
    scores = {seed: _last_less_first(found, metric) for seed, found in tables.items()}
    scores = {seed: value for seed, value in scores.items() if value == value}
    line = dict.fromkeys(("value", "low", "high", "p"), nan) | {"seeds": len(scores), "pictures": 0, "note": ""}
    if not scores:
        return line | {"note": f"no {METRICS.get(metric, metric)}" if tables else "no runs"}
    values, column = np.array(list(scores.values())), _COLUMNS.get(metric, metric.removesuffix("_rate"))
    line |= {"value": float(values.mean()), "pictures": min(int(tables[s][0][column].notna().sum()) for s in scores)}
    if len(values) == 1:
        found = tables[next(iter(scores))]
        parts = [{str(name): table[name].to_numpy() for name in table} for table in found]  # faster than frames

        def statistic(chosen: NDArray) -> float:
            return _last_less_first([{name: of[chosen] for name, of in part.items()} for part in parts], metric)

        drawn = resamples(statistic, group_codes(found[0]), strata=found[0]["label"].to_numpy())
        low, high = _percentiles(drawn)
        p = nan if isnan(low) else min(1.0, 2 * float(min((drawn <= 0).mean(), (drawn >= 0).mean())))
        return line | {"low": low, "high": high, "p": p, "note": "one seed: judged over pictures"}
    if np.ptp(values) < 1e-12:  # nothing varies, so that nothing can be tested by how much it does
        return line | {"p": 1.0 if abs(values[0]) < 1e-12 else nan, "note": "the same in every seed"}
    test: Any = stats.ttest_1samp(values, 0)
    # Of two seeds Student's interval is 25 standard errors wide and often reaches beyond what a score can be.
    low, high = test.confidence_interval(CONFIDENCE) if len(values) > 2 else (nan, nan)
    return line | {"low": float(low), "high": float(high), "p": float(test.pvalue)}


def _last_less_first(tables: Sequence[Mapping[str, Any] | pd.DataFrame], metric: str) -> float:
    first, *others = (score(table, metric) for table in tables)
    return others[0] - first if others else first


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """p-values adjusted so that the probability of any false rejection among them stays below the level (Holm 1979).

    NaN is no member of the family and stays NaN.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]  # NaN comes last
    adjusted = np.full(len(values), nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted
