"""The tables of a plan's finished runs: one row per run, per row of the plan, and per step with its verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from gainmtl_lib.evaluation.ablation import COLUMNS
from gainmtl_lib.evaluation.paired import rows_table, steps_table
from gainmtl_lib.evaluation.planned import PlannedRun, split_tables

SPLITS = ("test", "test_shift")
FAMILIES = (
    ("test", "accuracy"),
    ("test", "auroc"),
    ("test", "cam_iou"),
    ("test", "cf_excess"),
    ("test_shift", "accuracy"),
    ("test_shift", "auroc"),
)
"""Split and metric of each family of steps; the correction is for the number of steps within one."""

METRIC_NAMES = COLUMNS | {"cf_excess": "flip − control flip"}
WITH_INTERVAL = ("accuracy", "auroc", "cam_iou")
CAM_COMPANIONS = ("grid_iou", "cf_flip_rate", "cf_control_flip_rate")
"""Shown beside them on the test split, without intervals."""


def runs_table(runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """One row per run and test split: ``row``, ``strategy``, ``seed``, ``split`` and the metrics of `COLUMNS`."""
    lines = []
    for planned in runs:
        metrics = planned.run.metrics
        place = {"row": planned.row, "strategy": planned.run.settings.strategy, "seed": planned.seed}
        for split in SPLITS:
            if split in metrics:
                values = {name: metrics[split].get(name) for name in COLUMNS}
                lines.append(place | {"split": split} | values)
    return pd.DataFrame(lines, columns=["row", "strategy", "seed", "split", *COLUMNS])


def rows_of_study(runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """`rows_table` of every split and metric that is shown, with columns ``split`` and ``metric`` before its own."""
    parts = []
    for split in SPLITS:
        tables = split_tables(runs, split)
        names = WITH_INTERVAL + CAM_COMPANIONS if split == "test" else ("accuracy", "auroc")
        parts += [rows_table(tables, name).assign(split=split, metric=name) for name in names if tables]
    return _led_by(parts, ["split", "metric"])


def steps_of_study(runs: Sequence[PlannedRun], steps: Iterable[Sequence[str]]) -> pd.DataFrame:
    """`steps_table` of every family, with columns ``split`` and ``metric`` before its own."""
    pairs = list(steps)
    parts = []
    tables = {split: split_tables(runs, split) for split in SPLITS}
    for split, metric in FAMILIES if pairs else ():
        if tables[split]:
            parts.append(steps_table(tables[split], pairs, metric).assign(split=split, metric=metric))
    return _led_by(parts, ["split", "metric"])


SCORES = {
    "accuracy": ("accuracy", "test"),
    "accuracy_shift": ("accuracy", "test_shift"),
    "cam_iou": ("cam_iou", "test"),
}
"""Of a row, in the tables of single studies: column to metric and split."""


def scores_of_rows(runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """What each row reaches, over its seeds.

    Returns:
        Index ``row``, in the order of the runs; of each name of `SCORES` whose split the data has, its mean over seeds
        and the interval ``<name>_low``, ``<name>_high`` over other pictures; ``seeds``, how many there are.
    """
    counts = pd.Series([run.row for run in runs]).value_counts(sort=False)
    table = pd.DataFrame(index=pd.Index(counts.index, name="row"))
    for name, (metric, split) in SCORES.items():
        tables = split_tables(runs, split)
        if tables:
            scores = rows_table(tables, metric).set_index("row")
            table[name], table[f"{name}_low"], table[f"{name}_high"] = scores["mean"], scores["low"], scores["high"]
    return table.assign(seeds=counts)


def readable_rows(rows: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split as text: ``0.912 [0.874, 0.943]`` with an interval, a dash for no answer.

    Args:
        rows: of `rows_of_study`.
        split: ``test`` or ``test_shift``.
    """
    part = rows[rows["split"] == split]
    columns = {}
    for metric, lines in part.groupby("metric", sort=False):
        with_interval = metric in WITH_INTERVAL
        columns[METRIC_NAMES[str(metric)]] = pd.Series(
            [_with_interval(*ends) if with_interval else _three(ends[0]) for ends in _ends(lines, "mean")],
            index=lines["row"],
        )
    table = pd.DataFrame(columns)
    table["seeds"] = part[part["metric"] == "accuracy"].set_index("row")["seeds"]
    return table.rename_axis("row")


def readable_steps(steps: pd.DataFrame, split: str, metric: str) -> pd.DataFrame:
    """One family of steps as text.

    Args:
        steps: of `steps_of_study`.
        split, metric: one of `FAMILIES`.
    """
    part = steps[(steps["split"] == split) & (steps["metric"] == metric)]
    table = pd.DataFrame({"change": [signed_interval(*ends) for ends in _ends(part, "difference")]})
    table["p, Holm"] = ["< 0.001" if p < 0.0005 else _three(p) for p in part["p_holm"]]
    table["verdict"] = part["verdict"].to_list()
    table["seeds"] = part["seeds"].to_list()
    return table.set_axis(pd.Index(part["step"], name="step"))


def signed_interval(value: float, low: float, high: float) -> str:
    """``+0.021 [−0.004, +0.046]``; without an interval (NaN) the number alone, without a number a dash."""
    if np.isnan(value):
        return "–"
    first, *ends = (f"{number:+.3f}".replace("-", "−") for number in (value, low, high))
    return first if np.isnan(low) else f"{first} [{', '.join(ends)}]"


def _led_by(parts: list[pd.DataFrame], first: list[str]) -> pd.DataFrame:
    if not parts:
        return pd.DataFrame(columns=first)
    table = pd.concat(parts, ignore_index=True)
    return table[[*first, *(name for name in table if name not in first)]]


def _ends(lines: pd.DataFrame, value: str) -> list[tuple[float, float, float]]:
    return [tuple(map(float, ends)) for ends in lines[[value, "low", "high"]].to_numpy()]  # type: ignore[misc]


def _three(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _with_interval(value: float, low: float, high: float) -> str:
    return _three(value) if np.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
