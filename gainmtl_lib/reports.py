"""What the commands print and write: evaluation, comparison, data check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gainmtl_lib.build import build_data
from gainmtl_lib.evaluation.ablation import by_strategy, collect_runs, compare, readable
from gainmtl_lib.evaluation.data_check import LEVELS, check_dataset, contact_sheet_samples
from gainmtl_lib.evaluation.errors import KINDS, error_analysis
from gainmtl_lib.evaluation.evaluate import TEST_SPLITS, evaluate
from gainmtl_lib.explain.curves import classification_figure, strategies_figure
from gainmtl_lib.explain.pictures import explanation_pictures, same_pictures_figure
from gainmtl_lib.explain.plots import contact_sheet, save_figure
from gainmtl_lib.files import atomic_path
from gainmtl_lib.runs import Run, RunError, load_checkpoint_model, load_run, run_status, write_json
from gainmtl_lib.settings import Settings

FINDINGS_SHOWN = 12
"""Of each level; the data check may find hundreds of one kind."""


def evaluate_and_report(
    console: Console,
    *,
    run_folder: Path | None,
    checkpoint: Path | None,
    data_root: Path | None,
    mask_source: str | None,
    external_mask_dir: Path | None,
    device: str,
    visualize: bool,
    vis_dir: Path | None,
    error_analysis: bool,
    export_results: Path | None,
    force: bool,
) -> None:
    """``gainmtl evaluate``: the run's own data, or other data with the run's threshold.

    Raises:
        RunError: neither or both of a run and a checkpoint were given, or one of them cannot be used.
    """
    if (run_folder is None) == (checkpoint is None):
        raise RunError("give either the folder of a run or --checkpoint FILE")
    run = load_run(run_folder) if run_folder else _run_of(checkpoint)
    if run is not None:
        model, settings = run, run.settings
    else:
        assert checkpoint is not None
        model, settings = load_checkpoint_model(checkpoint)
    data, threshold = None, None
    if data_root is not None or run is None:
        data = build_data(_elsewhere(settings, data_root) if data_root else settings)
        # A threshold is chosen once, where the model was trained; other data must not move it.
        threshold = run.metrics["threshold"] if run is not None and run.is_evaluated else None
    table, summary = evaluate(
        model,
        data=data,
        mask_source=mask_source,
        external_mask_dir=external_mask_dir,
        threshold=threshold,
        device=device,
        reuse=not force,
    )
    _print_summary(console, summary)
    if error_analysis:
        _print_errors(console, table)
    if export_results is not None:
        write_json(export_results, summary)
        console.print(f"results: {export_results}")
    if visualize:
        folder = vis_dir or (run.figures_dir if run else Path("outputs") / "figures")
        if data is None:
            data = build_data(settings)
        _visualize(console, run.model if run else model, data, table, summary["threshold"], folder)


def _elsewhere(settings: Settings, data_root: Path) -> Settings:
    """The same reading of other data. A synthetic dataset is read as it lies there, not made anew."""
    layout = "generic" if settings.dataset_type == "synthetic" else settings.dataset_type
    return settings.changed(data_root=data_root.absolute(), dataset_type=layout)


def _run_of(checkpoint: Path | None) -> Run | None:
    """The finished run whose best checkpoint this is, if it is one."""
    if checkpoint is None or checkpoint.name != "best.ckpt":
        return None
    folder = checkpoint.absolute().parent.parent
    return load_run(folder) if run_status(folder) == "complete" else None


def _print_summary(console: Console, summary: dict[str, Any]) -> None:
    splits = [split for split in ("val", *TEST_SPLITS) if split in summary]
    table = Table(title=f"threshold {summary['threshold']:.3f} ({summary['threshold_from']})", title_justify="left")
    table.add_column("metric")
    for split in splits:
        table.add_column(split, justify="right")
    for name in summary[splits[0]]:
        table.add_row(name, *(_number(summary[split].get(name)) for split in splits))
    console.print(table)
    if summary.get("label_leaks"):
        console.print("[bold]mask_source oracle: the ground truth was given to the model; these are no results[/bold]")


def _number(value: Any) -> str:
    return "–" if value is None or value != value else str(value) if isinstance(value, int) else f"{value:.3f}"


def _print_errors(console: Console, table: pd.DataFrame) -> None:
    columns = ["kind", "image", "defect_type", "probability", "cam_iou", "energy_inside"]
    for split in TEST_SPLITS:
        if not (table["split"] == split).any():
            continue
        errors = error_analysis(table, split)
        counts = ", ".join(f"{(errors['kind'] == kind).sum()} {kind} ({text})" for kind, text in KINDS.items())
        shown = Table(title=f"{split}: {counts}", title_justify="left")
        for column in columns:
            shown.add_column(column)
        for _, row in errors[columns].head(20).iterrows():
            shown.add_row(*(_number(v) if isinstance(v, float) else escape(str(v)) for v in row))
        console.print(shown)
        if len(errors) > 20:
            console.print(f"… {len(errors) - 20} more; predictions.csv has all of them")


def _visualize(console: Console, model: Any, data: Any, table: pd.DataFrame, threshold: float, folder: Path) -> None:
    save_figure(classification_figure(table, threshold), folder / "classification.png")
    count = 0
    for name, figure in explanation_pictures(model, data, table, splits=TEST_SPLITS, threshold=threshold):
        save_figure(figure, folder / f"{name}.jpg")
        count += 1
    console.print(f"{count} pictures and classification.png: {folder}")


def print_comparison(console: Console, experiment: Path, *, export: Path | None = None) -> None:
    """The strategies of an experiment side by side, and where its files lie; exported where asked for."""
    runs = collect_runs(experiment)
    comparison = compare(runs)
    table = by_strategy(comparison)
    for split in table.index.get_level_values("split").unique():
        console.print(_frame_table(split, readable(table, split)))
    if export is not None:
        export_comparison(runs, comparison, export)
        console.print(f"exported: {export}")
    console.print(f"backbone weights: {', '.join(sorted({run.manifest['pretrained'] for run in runs}))}")
    console.print(f"executed notebooks: {experiment}/*.ipynb and {experiment}/s*/seed*/notebook.ipynb")
    console.print(f"figures: {experiment}/figures and {experiment}/s*/seed*/figures")
    console.print(f"tables: {experiment}/comparison.csv and {experiment}/s*/seed*/predictions.csv")


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


def report_data_check(console: Console, path: Path, *, contact_sheet_path: Path | None, **options: Any) -> bool:
    """``gainmtl data check``: tables and findings.

    Returns:
        Whether a training run would accept the data.
    """
    report = check_dataset(path.absolute(), **options)
    sections = {
        "images by split and defect type": report.counts,
        "masks": report.masks,
        "defect area, share of the image": report.defect_area,
        f"grid IoU at {' x '.join(map(str, options['image_size']))} px: what the masks reach on a map": report.grid_iou,
    }
    for title, rows in sections.items():
        if len(rows):
            console.print(_frame_table(title, rows))
    console.print(f"image size alone predicts the class with AUROC {report.size_auroc:.2f} (0.5: not at all)")
    for level in LEVELS:
        found = [finding for finding in report.findings if finding.level == level]
        for finding in found[:FINDINGS_SHOWN]:
            console.print(f"{level}: {escape(str(finding))}")
        if len(found) > FINDINGS_SHOWN:
            console.print(f"{level}: … and {len(found) - FINDINGS_SHOWN} more")
    if contact_sheet_path is not None:
        sheet = contact_sheet_samples(report.samples)
        save_figure(contact_sheet(sheet.images, sheet.masks, sheet.titles), contact_sheet_path)
        console.print(f"contact sheet: {contact_sheet_path}")
    counts = {level: sum(finding.level == level for finding in report.findings) for level in ("error", "warning")}
    console.print(f"{counts['error']} errors, {counts['warning']} warnings")
    return report.usable


def _frame_table(title: str, rows: pd.DataFrame) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(str(rows.index.name or ""))
    for column in rows.columns:
        table.add_column(str(column), justify="right")
    for name, row in rows.iterrows():
        table.add_row(str(name), *(_short(value) for value in row))
    return table


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
