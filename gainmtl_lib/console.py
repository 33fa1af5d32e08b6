"""``gainmtl evaluate --reasons``: what a run's verdicts rest on, asked of its own test pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gainmtl_lib.data_check import LEVELS, check_data_of, contact_sheet_samples
from gainmtl_lib.dataset import box_labels_of, build_data, build_samples
from gainmtl_lib.efficientad.evaluate import (
    OUT_OF_DATE,
    TABLE,
    Novelty,
    evaluate_efficientad,
    find_novel,
    is_stale,
    stored_novelty,
)
from gainmtl_lib.efficientad.figures import anomaly_table, collect_efficientad, print_evaluation, same_anomalies_figure
from gainmtl_lib.efficientad.train import EfficientADRun, open_run
from gainmtl_lib.evaluation import (
    KINDS,
    METRICS,
    PLACES,
    TEST_SPLITS,
    MaskSource,
    error_analysis,
    evaluate,
    evaluated_data,
    known_sources,
    mask_source_table,
)
from gainmtl_lib.explain import DefectExplainer, Explanation
from gainmtl_lib.figures import (
    classification_figure,
    contact_sheet,
    explanation_pictures,
    same_pictures_figure,
    save_figure,
    strategies_figure,
)
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import (
    COLUMNS,
    Run,
    RunError,
    atomic_path,
    by_strategy,
    collect_runs,
    compare,
    load_checkpoint_model,
    load_run,
    readable,
    run_status,
    write_json,
)
from gainmtl_lib.settings import Settings
from gainmtl_lib.studies.reasons import SIGNS, measure_indicators
from gainmtl_lib.synthetic.planting import RECORD, plant_cue, planted_counts
from gainmtl_lib.train import checked_device
from gainmtl_lib.wording import frame_table, markdown_table, number

ABOUT = (
    "Flips are shares of verdicts that turn, less those that turn in the control; on edited pictures a coin has 0.5. "
    "No limit is known beyond which a run is safe: compare runs on the same data. In this project's shortcut studies "
    "healed flips and accuracy on edited pictures warned, accuracy did not."
)
NO_EDITS = "No defect of the test split could be healed or pasted: flips and accuracy on edited pictures are missing."


def reasons_table(measured: Mapping[str, Any]) -> pd.DataFrame:
    """The indicators that may warn without a shifted test set, as text.

    Args:
        measured: of `measure_indicators`.

    Returns:
        Index ``indicator`` in words, the order of `SIGNS`; ``value``, ``95 % interval``, ``pictures``, ``warns when``
        (low or high) and ``because``. What the run lacks is left out.
    """
    lines = {}
    for name, sign in SIGNS.items():
        if (found := measured["indicators"].get(name)) is not None:
            ends = [number(found[end]) for end in ("low", "high")]
            lines[sign.heading] = {
                "value": number(found["value"]),
                "95 % interval": "–" if "–" in ends else " to ".join(ends),
                "pictures": found["count"],
                "warns when": sign.warns,
                "because": sign.why,
            }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("indicator")


def print_reasons(console: Console, measured: Mapping[str, Any]) -> None:
    """The table, how to read it, and which edits were impossible."""
    console.print(frame_table("what the verdicts rest on (test)", reasons_table(measured)))
    console.print(ABOUT)
    if "counterfactual_accuracy" not in measured["indicators"]:
        console.print(NO_EDITS)
    if measured["left_out"]:
        told = ", ".join(f"{kind} ({count})" for kind, count in measured["left_out"].items())
        console.print(f"edits that were impossible: {told}")


# --- ``gainmtl evaluate RUN --mask-source all``


ALL = "all"
LEAK_MARKS = {True: "[bold]yes: no result[/bold]", False: "no"}
LEAKS = "[bold]mask_source oracle: the ground truth was given to the model; these are no results[/bold]"


def compare_mask_sources(
    console: Console,
    run: Run,
    *,
    efficientad_run: Path | None = None,
    external_mask_dir: Path | None = None,
    device: str | None = None,
    export: Path | None = None,
    force: bool = False,
) -> None:
    """Evaluate a run with each source of masks, print one table per test split, and name what is left out.

    Args:
        console: takes the tables.
        run: a finished run of S6.
        efficientad_run: see `mask_source_table`.
        external_mask_dir: likewise.
        device: likewise.
        export: JSON file for the rows and for what is left out.
        force: evaluate the run's own source anew.

    Raises:
        RunError: another strategy, or what `evaluate` refuses.
        DataError: pictures that cannot be read.
    """
    places = {"efficientad_run": efficientad_run, "external_mask_dir": external_mask_dir}
    known, left_out = known_sources(run, **places)
    data = evaluated_data(run)
    parts = []
    for name in known:
        try:
            parts.append(mask_source_table(run, [name], data=data, device=device, reuse=not force, **places))
        except DataError as error:  # masks that some pictures lack are no reason to withhold the other sources
            left_out[name] = str(error)
    table = pd.concat(parts, ignore_index=True)
    _print(console, table, left_out)
    if export is not None:
        write_json(export, {"sources": table.to_dict("records"), "left_out": left_out})
        console.print(f"results: {escape(str(export))}")


def _print(console: Console, table: pd.DataFrame, left_out: dict[str, str]) -> None:
    for split, rows in table.groupby("split", sort=False):
        console.print(_split_table(f"S6 by mask source, {split}", rows))
    for _, row in table[table["teacher"].notna()].drop_duplicates("source").iterrows():
        console.print(f"{row['source']}: its teacher: {escape(row['teacher'])}")
    if table["label_leaks"].any():
        console.print(LEAKS)
    for name, reason in left_out.items():
        console.print(f"left out: {name}, because {escape(reason)}")


def _split_table(title: str, rows: pd.DataFrame) -> Table:
    shown = Table(title=title, title_justify="left")
    for heading in ("source", "mask"):
        shown.add_column(heading)
    for name in METRICS:
        shown.add_column(COLUMNS[name], justify="right")
    shown.add_column("leaks the label")
    for row in rows.to_dict("records"):
        shown.add_row(
            row["source"], row["mask"], *(number(row[name]) for name in METRICS), LEAK_MARKS[row["label_leaks"]]
        )
    return shown


# --- Novel pictures on the console


def print_novelty(console: Console, novelty: Novelty) -> None:
    """One table for each test split, and where the flag comes from."""
    for split, kinds in novelty.kinds.items():
        title = f"{split}: novel pictures, anomaly score above {novelty.threshold:.3f}"
        table = Table(title=title, title_justify="left")
        table.add_column("pictures")
        for heading in ("count", "called defective", "anomalous", "novel (anomalous, called normal)"):
            table.add_column(heading, justify="right")
        for kind in kinds:
            name = escape(kind.name) + (" (no training picture)" if kind.unseen else "")
            counts = kind.count, kind.called_defective, kind.anomalous, kind.novel
            table.add_row(name, *map(str, counts))
        console.print(table)
    console.print(f"threshold: {escape(novelty.summary['threshold_from'])}")
    console.print(f"EfficientAD run: {escape(novelty.source)}; teacher: {escape(novelty.teacher)}")


# --- ``gainmtl data plant``


def report_planting(
    console: Console, settings: Settings, out: Path, *, cue: str, correlation: float, seed: int
) -> None:
    """``gainmtl data plant``: write the dataset where it is missing, and say what is in it.

    Args:
        console: where it is printed.
        settings: that read and split the source.
        out: folder to write.
        cue: mark, lighting or border.
        correlation: of cue and class.
        seed: of the choice of pictures and places.

    Raises:
        DataError: the source's type is synthetic, or as `plant_cue`.
    """
    if settings.dataset_type == "synthetic":  # whose reading would make a dataset where there is none
        raise DataError(
            "dataset_type is 'synthetic', and planting takes photographs; choose generic, mvtec or magnetic_tile, or "
            "make synthetic data with a cue: gainmtl data synth"
        )
    origin = {
        "dataset_type": settings.dataset_type,
        "group_pattern": settings.group_pattern,
        "val_ratio": settings.val_ratio,
        "test_ratio": settings.test_ratio,
        "split_seed": settings.seed_of_split,
    }
    made = plant_cue(
        build_samples(settings), out, cue=cue, correlation=correlation, seed=seed, origin=origin,
        skip_unreadable=settings.skip_unreadable,
    )  # fmt: skip
    record = yaml.safe_load((out / RECORD).read_text(encoding="utf-8"))
    console.print(f"{escape(str(out))}: {'written' if made else 'was there already'}, {cue} planted")
    console.print(frame_table("pictures and cues", planted_counts(out)))
    for reason, files in record["carry_none"].items():
        console.print(f"{len(files)} pictures carry none: {reason}; listed in {RECORD}")
    read_with = " ".join(f"-p {name} {json.dumps(value)}" for name, value in record["read_with"].items())
    console.print(f"read it with: {escape(read_with)}")


# --- ``gainmtl data check``


FINDINGS_SHOWN = 12
"""Of each level; the data check may find hundreds of one kind."""


def report_data_check(
    console: Console, settings: Settings, *, val_ratio: float | None, contact_sheet_path: Path | None
) -> bool:
    """``gainmtl data check``: tables and findings.

    Args:
        console: where they are printed.
        settings: of the training that the data is for.
        val_ratio: as for `check_dataset`.
        contact_sheet_path: file of the contact sheet; None for none.

    Returns:
        Whether a training run would accept the data.
    """
    report = check_data_of(settings, val_ratio=val_ratio)
    sections = {
        "images by split and defect type": report.counts,
        "boxes by class, with quantiles of their share of the image": report.boxes,
        "masks": report.masks,
        "defect area, share of the image": report.defect_area,
        f"grid IoU at {' x '.join(map(str, settings.image_size))} px: what the masks reach on a map": report.grid_iou,
    }
    for title, rows in sections.items():
        if len(rows):
            console.print(frame_table(title, rows))
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
        console.print(f"contact sheet: {escape(str(contact_sheet_path))}")
    counts = {level: sum(finding.level == level for finding in report.findings) for level in ("error", "warning")}
    console.print(f"{counts['error']} errors, {counts['warning']} warnings")
    return report.usable


# --- ``gainmtl explain``


STORED = (
    "prediction", "prediction_name", "confidence", "probability", "threshold", "found", "cam_iou", "grid_iou",
    "point_game", "energy_inside", "box", "boxes", "area", "counterfactual", "counterfactual_missing",
)  # fmt: skip
"""Keys of an explanation that go into the exported file; pictures and maps stay in the figure."""


def explain_pictures(
    console: Console,
    run_folder: Path,
    images: Sequence[Path],
    *,
    masks: Sequence[Path],
    class_names: Sequence[str],
    mask_source: str | None,
    device: str | None,
    folder: Path | None,
    export_results: Path | None,
) -> bool:
    """Explain each picture; one that cannot be used is named, and the others are explained all the same.

    Args:
        console: takes the table.
        run_folder: a finished run.
        images: picture files.
        masks: of the pictures, in their order, or none at all.
        class_names: of normal and defective.
        mask_source: S6 only, localization or none in place of the run's own; threshold and scales stay the run's.
        device: where to compute, see `checked_device`; None is where the run was trained.
        folder: where figures go; ``explanations`` in the run's folder by default.
        export_results: JSON file for the answers.

    Returns:
        Whether every picture could be explained.

    Raises:
        RunError: no finished run, or a mask source for another strategy than S6.
        ModelError: an S6 run whose masks come from outside, and no other source.
        DataError: a wrong number of masks, or pictures whose figures would have the same name.
    """
    run = load_run(run_folder)
    folder = folder or run.folder / "explanations"
    _check(images, masks)
    if mask_source is not None:
        MaskSource.of(run.settings, mask_source)  # complains where it does not fit
        run.model.mask_source = mask_source
    run.model.to(checked_device(device or run.settings.device))
    explainer = DefectExplainer.from_run(run, class_names=class_names)
    answers: dict[str, dict[str, Any]] = {}
    failed: list[str] = []
    for image, explained in zip(images, explainer.attempts(images, masks or None), strict=True):
        if isinstance(explained, DataError):
            failed.append(str(explained))
            continue
        answers[str(image)] = _plain(explained)
        explainer.figure_of(explained, title=image.name, save_path=folder / f"{image.stem}.png")
    if answers:
        console.print(_table(answers))
        console.print(f"figures: {escape(str(folder))}")
    for message in failed:
        console.print(f"not explained: {escape(message)}")
    if export_results is not None:
        write_json(export_results, answers)
        console.print(f"results: {escape(str(export_results))}")
    return not failed


def _check(images: Sequence[Path], masks: Sequence[Path]) -> None:
    if masks and len(masks) != len(images):
        raise DataError(f"{len(images)} pictures but {len(masks)} masks; give one --mask for each picture, in order")
    stems = [image.stem for image in images]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise DataError(
            f"several pictures are named {', '.join(twice)}, and their figures would be too; explain them one at a "
            "time with --output"
        )


def _table(answers: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="what the model decided, and whether it would say so without the defect", title_justify="left")
    for column in ("picture", "verdict", "p(defect)", "CAM", "box", "CAM-IoU", "counterfactual"):
        table.add_column(column)
    for image, answer in answers.items():
        counterfactual = answer["counterfactual"]
        found = answer.get("found", {}).get("cam")
        table.add_row(
            escape(Path(image).name),
            escape(answer["prediction_name"]),
            number(answer["probability"]),
            "–" if found is None else "finds something" if found else "nothing found",
            " ".join(map(str, answer.get("box") or ["–"])),
            number(answer.get("cam_iou")),
            escape(counterfactual["message"] if counterfactual else answer.get("counterfactual_missing", "–")),
        )
    return table


def _plain(answer: Explanation) -> dict[str, Any]:
    return {name: _as_json(answer[name]) for name in STORED if name in answer}


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


# --- The strategies side by side


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


# --- ``gainmtl evaluate``


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
