"""``gainmtl efficientad train``: runs trained and evaluated, their metrics, and the table over categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.efficientad.evaluate import evaluate_efficientad
from gainmtl_lib.efficientad.fit import fit_efficientad
from gainmtl_lib.efficientad.protocol import found_categories
from gainmtl_lib.efficientad.runs import EfficientADRun
from gainmtl_lib.efficientad.settings import EfficientADSettings
from gainmtl_lib.efficientad.summary import category_table
from gainmtl_lib.files import atomic_path
from gainmtl_lib.reports.tables import frame_table, number
from gainmtl_lib.runs import EFFICIENTAD

ALL = "all"
"""Stands for every category that is there."""


def train_and_report(
    console: Console,
    files: Sequence[Path],
    values: Mapping[str, Any],
    *,
    category: str | None,
    resume: Path | None,
    force: bool,
) -> None:
    """Train a run, or one for each category, evaluate it and print its metrics.

    Args:
        console: takes the tables.
        files: of parameters, later ones win.
        values: that win over the files.
        category: in place of the parameters' own; ``all`` also writes the table of all, ``categories.csv`` in
            ``outputs/<experiment>/efficientad``.
        resume: checkpoint to go on from.
        force: start anew.
    """
    named = {} if category in (None, ALL) else {"category": category}
    settings = EfficientADSettings.from_yaml(*files, **dict(values) | named)
    runs = []
    for each in _by_category(settings) if category == ALL else [settings]:
        run = fit_efficientad(each, resume=resume, force=force)
        evaluate_efficientad(run)
        print_evaluation(console, run)
        runs.append(run)
    if category == ALL:
        print_categories(console, runs, settings.outputs_dir / settings.experiment / EFFICIENTAD / "categories.csv")


def _by_category(settings: EfficientADSettings) -> list[EfficientADSettings]:
    found = found_categories(settings.data_root)
    if not found:
        raise DataError(f"{settings.data_root}: no category of MVTec AD in it; expected folders with train/good")
    return [settings.changed(category=name) for name in found]


def print_evaluation(console: Console, run: EfficientADRun) -> None:
    """The metrics of an evaluated run, by split, and what they rest on."""
    metrics = run.metrics
    splits = [name for name, values in metrics.items() if isinstance(values, dict) and "images" in values]
    title = f"{run.settings.run_name}: threshold {metrics['threshold']:.4g} ({metrics['threshold_from']})"
    table = Table("metric", title=escape(title), title_justify="left")
    for split in splits:
        table.add_column(split, justify="right")
    for name in metrics[splits[0]]:
        table.add_row(name, *(number(metrics[split][name]) for split in splits))
    console.print(table)
    console.print(f"novelty threshold: {metrics['novelty_threshold']:.4g}")
    console.print(f"teacher: {escape(metrics['teacher'])}")
    console.print(f"penalty images: {escape(metrics['penalty'])}")
    console.print(f"run: {escape(str(run.folder))}")


def print_categories(console: Console, runs: Sequence[EfficientADRun], path: Path) -> None:
    """The test metrics of every category and their mean, printed and written as CSV."""
    table = category_table(runs)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, float_format="%.6g")
    console.print(frame_table("test metrics by category", table))
    for teacher in sorted({run.teacher for run in runs}):
        console.print(f"teacher: {escape(teacher)}")
    console.print(f"table: {escape(str(path))}")
