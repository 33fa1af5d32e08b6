"""Runs side by side: one row per strategy or variant of one, and what each step changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from gainmtl_lib.runs import EFFICIENTAD, Run, RunError, load_run, run_status, system_of
from gainmtl_lib.settings import Settings

COLUMNS = {
    "accuracy": "accuracy",
    "recall": "recall",
    "auroc": "AUROC",
    "cam_iou": "CAM-IoU",
    "grid_iou": "grid IoU",
    "attention_iou": "attention IoU",
    "point_game": "PointGame",
    "energy_inside": "Energy-Inside",
    "loc_iou": "Loc-IoU",
    "cf_flip_rate": "flip",
    "cf_control_flip_rate": "control flip",
}
"""Metrics of a comparison, and how its columns are headed. Without the grid IoU a CAM-IoU cannot be judged."""


ORACLE_MARK = " (oracle: leaks the label)"
"""Stands behind a strategy whose attention was given the ground truth at test time, in every table and figure."""
TEACHER_MARK = " (masks of a random teacher)"
"""Stands behind one whose attention was given masks of an EfficientAD run with an untrained teacher."""
BUILT_ON = {"S7": "S5"}
"""Strategies that are not built on the one before."""


def row_name(settings: Settings) -> str:
    """What a run's row is called: ``S5``, or ``S5-nowarmup`` for a variant."""
    return settings.strategy + (f"-{settings.variant}" if settings.variant else "")


def collect_runs(experiment: str | Path) -> list[Run]:
    """Finished and evaluated runs of the strategies below ``outputs/<experiment>``, by strategy, variant and seed.

    Raises:
        RunError: there is none; the message says what was found.
    """
    experiment = Path(experiment)
    started = sorted(path.parent for path in experiment.glob("*/seed*/manifest.json"))
    folders = [folder for folder in started if system_of(folder) != EFFICIENTAD]
    runs = [load_run(folder) for folder in folders if run_status(folder) == "complete"]
    evaluated = [run for run in runs if run.is_evaluated]
    if not evaluated:
        raise RunError(
            f"{experiment}: no evaluated run ({len(folders)} started, {len(runs)} finished); "
            "run the strategies first: gainmtl run all"
        )
    return sorted(evaluated, key=lambda run: (row_name(run.settings), run.settings.seed))


def compare(runs: list[Run]) -> pd.DataFrame:
    """One row per run and split: ``strategy`` (see `row_name`), ``seed``, ``split`` and the metrics of `COLUMNS`.

    Raises:
        RunError: runs of one seed were trained on different data, so that their numbers cannot be compared.
            (Between seeds the split may differ, where the data has none of its own and `split_seed` is null.)
    """
    for seed in sorted({run.settings.seed for run in runs}):
        of_seed = [run for run in runs if run.settings.seed == seed]
        digests = {run.manifest["data_digest"] for run in of_seed}
        if len(digests) > 1:
            raise RunError(
                f"the runs of seed {seed} were trained on {len(digests)} different datasets or splits and cannot be "
                "compared: " + ", ".join(str(run.folder) for run in of_seed)
            )
    rows = []
    for run in runs:
        metrics = run.metrics
        name = row_name(run.settings) + (ORACLE_MARK if metrics.get("label_leaks") else "")
        name += TEACHER_MARK if str(metrics.get("teacher", "")).startswith("random") else ""
        for split in ("test", "test_shift"):
            if split in metrics:
                values = {column: metrics[split].get(column) for column in COLUMNS}
                rows.append({"strategy": name, "seed": run.settings.seed, "split": split} | values)
    return pd.DataFrame(rows).astype(dict.fromkeys(COLUMNS, float))


def by_strategy(comparison: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds per split and strategy, and the half-width of its 95 % t interval (NaN for one seed).

    Returns:
        Index (split, strategy); columns (metric, ``mean`` | ``half_width``) and (``seeds``, ``count``).
    """
    grouped = comparison.groupby(["split", "strategy"])[list(COLUMNS)]
    mean, count, sem = grouped.mean(), grouped.count(), grouped.sem()
    half_width = sem * stats.t.ppf(0.975, (count - 1).where(count > 1))
    table = pd.concat({"mean": mean, "half_width": half_width}, axis=1).swaplevel(axis=1)
    table = table[[(name, part) for name in COLUMNS for part in ("mean", "half_width")]]
    table[("seeds", "count")] = comparison.groupby(["split", "strategy"]).size()
    return table


def readable(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """`by_strategy` of one split as text: ``0.93`` for one seed, ``0.93 ± 0.02`` for several, a dash for none."""
    part = table.loc[split]
    columns = {}
    for name, heading in COLUMNS.items():
        mean, half_width = part[(name, "mean")], part[(name, "half_width")]
        columns[heading] = [
            "–" if np.isnan(m) else f"{m:.3f}" if np.isnan(w) else f"{m:.3f} ± {w:.3f}"
            for m, w in zip(mean, half_width)
        ]
    return pd.DataFrame(columns, index=part.index)


def step_deltas(comparison: pd.DataFrame) -> pd.DataFrame:
    """What each strategy changed against the one that it is built on, and each variant against its strategy.

    Returns:
        Index (split, step) with steps like ``S1→S2``, ``S5→S5-nowarmup``; the mean over the seeds that both have, one
        column per metric.
    """
    means = comparison.set_index(["split", "seed", "strategy"])[list(COLUMNS)].sort_index()
    rows = {}
    for split in comparison["split"].unique():
        for before, after in _steps(sorted(comparison["strategy"].unique())):
            first, second = (means.loc[split].xs(s, level="strategy") for s in (before, after))
            rows[split, f"{before}→{after}"] = (second - first).mean()
    return pd.DataFrame(rows).T.rename_axis(["split", "step"])


def _steps(names: list[str]) -> list[tuple[str, str]]:
    """Pairs (before, after) of rows in their order; a variant whose strategy has no run is in none."""
    plain = [name for name in names if not _is_variant(name)]
    before = dict(zip(plain[1:], plain))
    before |= {name: BUILT_ON[name] for name in plain if BUILT_ON.get(name) in plain}
    before |= {name: name[:2] for name in names if _is_variant(name) and name[:2] in plain}
    return [(before[name], name) for name in names if name in before]


def _is_variant(name: str) -> bool:
    return name[2:3] == "-"
