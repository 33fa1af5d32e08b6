"""The strategies side by side: printed, and exported to a folder that is small enough to be committed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape

from gainmtl_lib.efficientad.runs import EfficientADRun
from gainmtl_lib.evaluation.ablation import by_strategy, collect_runs, compare, readable
from gainmtl_lib.explain.curves import strategies_figure
from gainmtl_lib.explain.pictures import same_pictures_figure
from gainmtl_lib.explain.plots import save_figure
from gainmtl_lib.files import atomic_path
from gainmtl_lib.reports.anomaly_comparison import anomaly_table, collect_efficientad, same_anomalies_figure
from gainmtl_lib.reports.tables import frame_table, markdown_table
from gainmtl_lib.runs import Run, RunError


def print_comparison(console: Console, experiment: Path, *, export: Path | None = None) -> None:
    """The strategies of an experiment side by side, EfficientAD below them, and where its files lie.

    Args:
        console: takes the tables.
        experiment: its folder.
        export: folder for small files of the same, see `export_comparison` and `export_anomalies`.

    Raises:
        RunError: no evaluated run of either system.
    """
    anomalies = collect_efficientad(experiment)
    runs = _strategies(experiment, required=not anomalies)
    if runs:
        comparison = compare(runs)
        table = by_strategy(comparison)
        for split in table.index.get_level_values("split").unique():
            console.print(frame_table(split, readable(table, split)))
        if export is not None:
            export_comparison(runs, comparison, export)
        console.print(f"backbone weights: {escape(', '.join(sorted({run.manifest['pretrained'] for run in runs})))}")
    if anomalies:
        console.print(frame_table("EfficientAD, from good parts alone", anomaly_table(anomalies)))
        if export is not None:
            export_anomalies(anomalies, export)
    if export is not None:
        console.print(f"exported: {escape(str(export))}")
    folder = escape(str(experiment))
    console.print(f"executed notebooks: {folder}/*.ipynb and {folder}/s*/seed*/notebook.ipynb")
    console.print(f"figures: {folder}/figures and {folder}/*/seed*/figures")
    console.print(f"tables: {folder}/comparison.csv and {folder}/*/seed*/predictions.csv")


def _strategies(experiment: Path, *, required: bool) -> list[Run]:
    try:
        return collect_runs(experiment)
    except RunError:
        if required:
            raise
        return []


def export_comparison(runs: list[Run], comparison: pd.DataFrame, folder: Path) -> None:
    """``comparison.csv``, ``table.md``, ``strategies.png``, ``same_pictures.jpg``: small enough to be committed."""
    table = by_strategy(comparison)
    lines = [f"Backbone weights: {', '.join(sorted({run.manifest['pretrained'] for run in runs}))}.", ""]
    for split in table.index.get_level_values("split").unique():
        lines += [f"`{split}`:", "", *markdown_table(readable(table, split)), ""]
    with atomic_path(folder / "table.md") as path:
        path.write_text("\n".join(lines), encoding="utf-8")
    with atomic_path(folder / "comparison.csv") as path:
        comparison.to_csv(path, index=False, float_format="%.4f")
    save_figure(strategies_figure(comparison), folder / "strategies.png")
    save_figure(same_pictures_figure(runs), folder / "same_pictures.jpg")


def export_anomalies(runs: list[EfficientADRun], folder: Path) -> None:
    """``efficientad.md``, and ``efficientad.jpg`` of the first run; nothing where there is no run."""
    if not runs:
        return
    with atomic_path(folder / "efficientad.md") as path:
        path.write_text("\n".join(markdown_table(anomaly_table(runs))) + "\n", encoding="utf-8")
    save_figure(same_anomalies_figure(runs[0]), folder / "efficientad.jpg")
