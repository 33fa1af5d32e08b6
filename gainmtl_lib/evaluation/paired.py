"""What the steps of a study changed: rows compared seed by seed on the same pictures, with a verdict for each step.

A row is one setting trained with several seeds, given as the predictions of one split by seed. Other seeds may have
the same pictures or their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan

import numpy as np
import pandas as pd

from gainmtl_lib.evaluation.drawn_seeds import DrawnSeeds, check_pair, checked, contrast, draw_seeds
from gainmtl_lib.evaluation.seeds_test import TTest, seeds_t_test
from gainmtl_lib.evaluation.verdicts import holm, sentence, verdict
from gainmtl_lib.evaluation.weighted_scores import check_metric, percentiles, scorer

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
    test: TTest = TTest(nan)  # noqa: RUF009, it is frozen
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
