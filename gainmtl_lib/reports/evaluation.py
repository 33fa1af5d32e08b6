"""``gainmtl evaluate``: metrics of every split, novel pictures, errors, reasons, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gainmtl_lib.build import box_labels_of, build_data
from gainmtl_lib.efficientad.evaluate import evaluate_efficientad
from gainmtl_lib.efficientad.runs import EfficientADRun, open_run
from gainmtl_lib.evaluation.errors import KINDS, error_analysis
from gainmtl_lib.evaluation.evaluate import TEST_SPLITS, evaluate, evaluated_data
from gainmtl_lib.evaluation.indicators import measure_indicators
from gainmtl_lib.evaluation.mask_source import PLACES, MaskSource
from gainmtl_lib.evaluation.novelty import OUT_OF_DATE, TABLE, Novelty, find_novel, is_stale, stored_novelty
from gainmtl_lib.explain.curves import classification_figure
from gainmtl_lib.explain.pictures import explanation_pictures
from gainmtl_lib.explain.plots import save_figure
from gainmtl_lib.map_scale import MapScale
from gainmtl_lib.reports.anomalies import print_evaluation
from gainmtl_lib.reports.mask_sources import ALL, LEAKS, compare_mask_sources
from gainmtl_lib.reports.novelty import print_novelty
from gainmtl_lib.reports.reasons import print_reasons
from gainmtl_lib.reports.tables import number
from gainmtl_lib.runs import Run, RunError, load_checkpoint_model, load_run, run_status, write_json
from gainmtl_lib.settings import Settings


def evaluate_and_report(
    console: Console,
    *,
    run_folder: Path | None,
    device: str | None,
    export_results: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """``gainmtl evaluate``, of a run of either system.

    Args:
        console: takes the tables.
        run_folder: of the run, or None where the options name a checkpoint.
        device: see `checked_device`.
        export_results: where the summary goes as JSON.
        force: evaluate anew.
        options: those of `_evaluate_strategy`, none of which EfficientAD has.

    Raises:
        RunError: the run or the checkpoint cannot be used, or an option does not fit it.
    """
    common: dict[str, Any] = {"device": device, "export_results": export_results, "force": force}
    if run_folder is None or not isinstance(run := open_run(run_folder), EfficientADRun):
        _evaluate_strategy(console, run_folder=run_folder, **common, **options)
        return
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise RunError(f"{run.folder}: a run of EfficientAD, which knows no {', '.join(given)}; leave that out")
    _, summary = evaluate_efficientad(run, device=device, reuse=not force)
    print_evaluation(console, run)
    _export(console, summary, export_results)


def _evaluate_strategy(
    console: Console,
    *,
    run_folder: Path | None,
    checkpoint: Path | None,
    data_root: Path | None,
    mask_source: str | None,
    external_mask_dir: Path | None,
    efficientad_run: Path | None,
    device: str | None,
    visualize: bool,
    vis_dir: Path | None,
    error_analysis: bool,
    reasons: bool,
    export_results: Path | None,
    force: bool,
) -> None:
    """On the run's own data, or on other data with the run's threshold.

    Raises:
        RunError: neither or both of a run and a checkpoint were given, one of them cannot be used, a mask source
            that does not fit it, or novel pictures or reasons were asked for of what is no evaluation of a run as it
            was trained.
    """
    if (run_folder is None) == (checkpoint is None):
        raise RunError("give either the folder of a run or --checkpoint FILE")
    run = load_run(run_folder) if run_folder else _run_of(checkpoint)
    if mask_source == ALL:
        others = {
            "data-root": data_root,
            "visualize": visualize,
            "vis-dir": vis_dir,
            "error-analysis": error_analysis,
            "reasons": reasons,
        }
        _compare_sources(
            console,
            run,
            others,
            efficientad_run=efficientad_run,
            external_mask_dir=external_mask_dir,
            device=device,
            export=export_results,
            force=force,
        )
        return
    if run is not None:
        model, settings = run, run.settings
    else:
        assert checkpoint is not None
        model, settings = load_checkpoint_model(checkpoint)
    masks_from = _masks_from(efficientad_run, settings, mask_source)
    source = MaskSource.of(settings, mask_source, external_mask_dir, masks_from)
    as_trained = run is not None and not any((data_root, mask_source, external_mask_dir, masks_from))
    if efficientad_run is not None and masks_from is None and not as_trained:
        raise RunError(
            "--efficientad-run flags novel pictures of a run as it was trained; leave --checkpoint, --data-root, "
            "--mask-source and --external-mask-dir out, or give --mask-source efficientad to take its masks"
        )
    if reasons and not as_trained:
        raise RunError(
            "--reasons asks a run as it was trained; leave --checkpoint, --data-root, --mask-source and "
            "--external-mask-dir out"
        )
    places = {"external_mask_dir": external_mask_dir, "efficientad_run": masks_from}
    if run is None and source.name in PLACES:
        places[PLACES[source.name][0]] = source.place  # which a model alone does not know
    data, threshold = None, None
    if data_root is not None or run is None:
        data = build_data(_elsewhere(settings, data_root) if data_root else settings)
        # A threshold is chosen once, where the model was trained; other data must not move it.
        threshold = run.metrics["threshold"] if run is not None and run.is_evaluated else None
    table, summary = evaluate(
        model,
        data=data,
        mask_source=mask_source,
        threshold=threshold,
        device=device or settings.device,
        reuse=not force,
        **places,
    )
    _print_summary(console, summary)
    novelty = _novelty(run, efficientad_run, device, force) if run is not None and as_trained else None
    if run is not None and novelty is not None:
        print_novelty(console, novelty)
        console.print(f"score and flag of every picture: {escape(str(run.folder / TABLE))}")
    elif run is not None and as_trained and is_stale(run):
        console.print(f"novel pictures: not shown, {escape(OUT_OF_DATE.format(folder=run.folder))}")
    if error_analysis:
        _print_errors(console, table)
    besides: dict[str, Any] = {} if novelty is None else {"novelty": novelty.summary}
    if run is not None and reasons:
        measured = measure_indicators(run, device=device, reuse=not force)
        print_reasons(console, measured)
        besides["reasons"] = measured
    _export(console, summary | besides, export_results)
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


def _compare_sources(console: Console, run: Run | None, others: dict[str, Any], **options: Any) -> None:
    """``--mask-source all``, which `others` have no place in."""
    if run is None:
        raise RunError(f"--mask-source {ALL} is for a finished run; give its folder in place of --checkpoint")
    if given := [f"--{name}" for name, value in others.items() if value]:
        raise RunError(f"--mask-source {ALL} compares results on the run's own data; leave {', '.join(given)} out")
    compare_mask_sources(console, run, **options)


def _export(console: Console, summary: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        write_json(path, summary)
        console.print(f"results: {escape(str(path))}")


def _masks_from(efficientad_run: Path | None, settings: Settings, mask_source: str | None) -> Path | None:
    """The EfficientAD run that was asked for, where it is to make other masks than the run's own."""
    if efficientad_run is None or settings.strategy != "S6":
        return None
    own = settings.efficientad_run is not None and efficientad_run.resolve() == settings.efficientad_run.resolve()
    by_default = mask_source is None and settings.mask_source == "efficientad" and not own
    return efficientad_run if mask_source == "efficientad" or by_default else None


def _novelty(run: Run, efficientad_run: Path | None, device: str | None, force: bool) -> Novelty | None:
    """By the EfficientAD run that is asked for; else what is stored, else by the one that the settings name."""
    if efficientad_run is None and not force and (stored := stored_novelty(run)) is not None:
        return stored  # the run that it is from need not be there any more
    other = efficientad_run or run.settings.efficientad_run
    return stored_novelty(run) if other is None else find_novel(run, other, device=device, reuse=not force)


def _elsewhere(settings: Settings, data_root: Path) -> Settings:
    """The same reading of other data. A synthetic dataset is read as it lies there, not made anew."""
    layout = "generic" if settings.dataset_type == "synthetic" else settings.dataset_type
    root = data_root.absolute()
    return settings.changed(data_root=root, dataset_type=layout, box_labels=box_labels_of(settings, root))


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
    if summary.get("teacher"):
        console.print(f"masks from {escape(summary['efficientad_run'])}; its teacher: {escape(summary['teacher'])}")
    if summary.get("label_leaks"):
        console.print(LEAKS)


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
