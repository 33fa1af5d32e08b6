"""The strategies side by side: printed, and exported to a folder that is small enough to be committed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape

from gainmtl_lib.evaluation.ablation import by_strategy, collect_runs, compare, readable
from gainmtl_lib.explain.curves import strategies_figure
from gainmtl_lib.explain.pictures import same_pictures_figure
from gainmtl_lib.explain.plots import save_figure
from gainmtl_lib.files import atomic_path
from gainmtl_lib.reports.tables import frame_table
from gainmtl_lib.runs import Run


def print_comparison(console: Console, experiment: Path, *, export: Path | None = None) -> None:
    """The strategies of an experiment side by side, and where its files lie; exported where asked for."""
    runs = collect_runs(experiment)
    comparison = compare(runs)
    table = by_strategy(comparison)
    for split in table.index.get_level_values("split").unique():
        console.print(frame_table(split, readable(table, split)))
    if export is not None:
        export_comparison(runs, comparison, export)
        console.print(f"exported: {escape(str(export))}")
    folder = escape(str(experiment))
    console.print(f"backbone weights: {escape(', '.join(sorted({run.manifest['pretrained'] for run in runs})))}")
    console.print(f"executed notebooks: {folder}/*.ipynb and {folder}/s*/seed*/notebook.ipynb")
    console.print(f"figures: {folder}/figures and {folder}/s*/seed*/figures")
    console.print(f"tables: {folder}/comparison.csv and {folder}/s*/seed*/predictions.csv")


def export_comparison(runs: list[Run], comparison: pd.DataFrame, folder: Path) -> None:
    """``comparison.csv``, ``table.md``, ``strategies.png``, ``same_pictures.jpg``: small enough to be committed."""
    table = by_strategy(comparison)
    lines = [f"Backbone weights: {', '.join(sorted({run.manifest['pretrained'] for run in runs}))}.", ""]
    for split in table.index.get_level_values("split").unique():
        lines += [f"`{split}`:", "", *_markdown(readable(table, split)), ""]
    with atomic_path(folder / "table.md") as path:
        path.write_text("\n".join(lines), encoding="utf-8")
    with atomic_path(folder / "comparison.csv") as path:
        comparison.to_csv(path, index=False, float_format="%.4f")
    save_figure(strategies_figure(comparison), folder / "strategies.png")
    save_figure(same_pictures_figure(runs), folder / "same_pictures.jpg")


def _markdown(rows: pd.DataFrame) -> list[str]:
    header = [str(rows.index.name or ""), *map(str, rows.columns)]
    body = [[str(name), *map(str, row)] for name, row in zip(rows.index, rows.to_numpy())]
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body)]
