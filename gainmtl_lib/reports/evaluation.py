"""``gainmtl evaluate``: metrics of every split, errors, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gainmtl_lib.build import build_data
from gainmtl_lib.evaluation.errors import KINDS, error_analysis
from gainmtl_lib.evaluation.evaluate import TEST_SPLITS, evaluate, evaluated_data
from gainmtl_lib.evaluation.mask_source import MaskSource
from gainmtl_lib.explain.curves import classification_figure
from gainmtl_lib.explain.pictures import explanation_pictures
from gainmtl_lib.explain.plots import save_figure
from gainmtl_lib.map_scale import MapScale
from gainmtl_lib.reports.tables import number
from gainmtl_lib.runs import Run, RunError, load_checkpoint_model, load_run, run_status, write_json
from gainmtl_lib.settings import Settings


def evaluate_and_report(
    console: Console,
    *,
    run_folder: Path | None,
    checkpoint: Path | None,
    data_root: Path | None,
    mask_source: str | None,
    external_mask_dir: Path | None,
    device: str | None,
    visualize: bool,
    vis_dir: Path | None,
    error_analysis: bool,
    export_results: Path | None,
    force: bool,
) -> None:
    """``gainmtl evaluate``: the run's own data, or other data with the run's threshold.

    Raises:
        RunError: neither or both of a run and a checkpoint were given, one of them cannot be used, or a mask source
            that does not fit it.
    """
    if (run_folder is None) == (checkpoint is None):
        raise RunError("give either the folder of a run or --checkpoint FILE")
    run = load_run(run_folder) if run_folder else _run_of(checkpoint)
    if run is not None:
        model, settings = run, run.settings
    else:
        assert checkpoint is not None
        model, settings = load_checkpoint_model(checkpoint)
    source = MaskSource.of(settings, mask_source, external_mask_dir)
    data, threshold = None, None
    if data_root is not None or run is None:
        data = build_data(_elsewhere(settings, data_root) if data_root else settings)
        # A threshold is chosen once, where the model was trained; other data must not move it.
        threshold = run.metrics["threshold"] if run is not None and run.is_evaluated else None
    table, summary = evaluate(
        model,
        data=data,
        mask_source=mask_source,
        external_mask_dir=external_mask_dir if run is not None else source.folder,
        threshold=threshold,
        device=device or settings.device,
        reuse=not force,
    )
    _print_summary(console, summary)
    if error_analysis:
        _print_errors(console, table)
    if export_results is not None:
        write_json(export_results, summary)
        console.print(f"results: {escape(str(export_results))}")
    if visualize:
        folder = vis_dir or (run.figures_dir if run else Path("outputs") / "figures")
        data = evaluated_data(run, data)
        # Like the threshold, the scale of the maps is the run's own, whatever data is shown.
        fixed = run.metrics if run is not None and run.is_evaluated else summary
        scale = MapScale(**fixed["map_scales"]["cam"]) if fixed.get("map_scales") else None
        pages = explanation_pictures(
            model, data, table, splits=TEST_SPLITS, threshold=summary["threshold"], scale=scale, source=source
        )
        save_figure(classification_figure(table, summary["threshold"]), folder / "classification.png")
        count = sum(1 for name, figure in pages if save_figure(figure, folder / f"{name}.jpg"))
        console.print(f"{count} pictures and classification.png: {escape(str(folder))}")


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
        table.add_row(name, *(number(summary[split].get(name)) for split in splits))
    console.print(table)
    if summary.get("label_leaks"):
        console.print("[bold]mask_source oracle: the ground truth was given to the model; these are no results[/bold]")


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
            shown.add_row(*(number(v) if isinstance(v, float) else escape(str(v)) for v in row))
        console.print(shown)
        if len(errors) > 20:
            console.print(f"… {len(errors) - 20} more; predictions.csv has all of them")
