"""What the longer commands do and print: evaluate, compare, explain, data check, data plant.

Each takes the console that its tables go to. Errors are those of the library's functions (`RunError`, `DataError`, …).
"""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import yaml
from rich.console import Console
from rich.markup import escape

from gainmtl_lib import evaluation, figures, runs
from gainmtl_lib.data_check import LEVELS, check_data_of, contact_sheet_samples
from gainmtl_lib.dataset import build_data, build_samples, build_test_samples
from gainmtl_lib.devices import checked_device
from gainmtl_lib.efficientad import evaluate as anomalies
from gainmtl_lib.efficientad.figures import anomaly_table, collect_efficientad, print_evaluation, same_anomalies_figure
from gainmtl_lib.efficientad.train import EfficientADRun, open_run
from gainmtl_lib.evaluation import MaskSource
from gainmtl_lib.explain import DefectExplainer
from gainmtl_lib.export import export_run
from gainmtl_lib.findings import DataError
from gainmtl_lib.labels import box_labels_of
from gainmtl_lib.layouts import SPLITS, TEST_SPLITS
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.predict import Arrivals, Drawings, Prediction, Predictor, VerdictFile, pictures_in, readable
from gainmtl_lib.progress import counted
from gainmtl_lib.runs import AnySettings, Run, RunError, atomic_path, write_json
from gainmtl_lib.settings import Settings
from gainmtl_lib.stats import expected_calibration_error
from gainmtl_lib.studies.reasons import indicator_table, measure_indicators
from gainmtl_lib.synthetic.data import PLANTED, plant_cue, planted_counts
from gainmtl_lib.wording import METRICS as METRIC_NAMES
from gainmtl_lib.wording import frame_table, interval, markdown_table, number, percent, summary_table

logger = logging.getLogger(__name__)

LEAKS = "[bold]mask_source oracle: the ground truth was given to the model; these are no results[/bold]"
COMMON = ("run_folder", "device", "export_results", "force")
"""Options of ``gainmtl evaluate`` for either system."""
PLACE_OPTIONS = ("efficientad_run", "external_mask_dir")
SHOWN = 20
"""Lines of a list that may hold hundreds."""


# --- gainmtl evaluate


def evaluate_and_report(console: Console, **options: Any) -> None:
    """Evaluate a run of either system, or a strategy's checkpoint; options as those of the command, by their names."""
    asked = SimpleNamespace(**options)
    if (asked.run_folder is None) == (asked.checkpoint is None):
        raise RunError("give either the folder of a run or --checkpoint FILE")
    if asked.run_folder is not None:
        run = open_run(asked.run_folder)
    else:
        folder = runs.run_of_best(asked.checkpoint)
        run = None if folder is None else runs.load_run(folder)
    own = {name: value for name, value in options.items() if name not in COMMON}
    if isinstance(run, EfficientADRun):
        others = {name: value for name, value in own.items() if name != "data_root"}
        _refuse(others, f"{run.folder}: a run of EfficientAD, which knows no {{}}; leave that out")
        provider = None
        if asked.data_root is not None:
            there = _elsewhere(run.settings, asked.data_root).changed(category=None)
            provider = anomalies.provider_elsewhere(run, there)
        options = {"provider": provider, "device": asked.device, "reuse": not asked.force}
        table, summary = anomalies.evaluate_efficientad(run, **options)
        print_evaluation(console, run, summary)
        _print_calibration(console, table)
    elif asked.mask_source == "all":
        if run is None:
            raise RunError("--mask-source all is for a finished run; give its folder in place of --checkpoint")
        others = {name: value for name, value in own.items() if name not in ("mask_source", *PLACE_OPTIONS)}
        _refuse(others, "--mask-source all compares results on the run's own data; leave {} out")
        summary = _compare_sources(console, run, asked)
    else:
        summary = _evaluate_strategy(console, run, asked)
    if asked.export_results is not None:
        write_json(asked.export_results, summary)
        console.print(f"results: {escape(str(asked.export_results))}")


def _refuse(options: Mapping[str, Any], message: str) -> None:
    if given := [f"--{name.replace('_', '-')}" for name, value in sorted(options.items()) if value]:
        raise RunError(message.format(", ".join(given)))


def _compare_sources(console: Console, run: Run, asked: SimpleNamespace) -> dict[str, Any]:
    """``--mask-source all``: one table per test split; a source whose masks some pictures lack is left out."""
    places = {name: getattr(asked, name) for name in PLACE_OPTIONS}
    MaskSource.of(run.settings, "none")  # complains where the strategy takes no masks
    data, parts, left_out = evaluation.evaluated_data(run), [], {}
    for name in evaluation.SOURCES:
        try:
            options = {"data": data, "device": asked.device, "reuse": not asked.force} | places
            parts.append(evaluation.mask_source_table(run, [name], **options))
        except (DataError, RunError) as error:
            left_out[name] = str(error)
    table = pd.concat(parts, ignore_index=True)
    for split, rows in table.groupby("split", sort=False):
        shown = rows.set_index("source").drop(columns=["split", "threshold", "teacher"])
        shown["label_leaks"] = shown["label_leaks"].map({True: "yes: no result", False: "no"})
        names = {**METRIC_NAMES, "label_leaks": "leaks the label"}
        console.print(frame_table(f"S6 by mask source, {split}", shown.rename(columns=names)))
    for row in table[table["teacher"].notna()].drop_duplicates("source").to_dict("records"):
        console.print(f"{row['source']}: its teacher: {escape(row['teacher'])}")
    if table["label_leaks"].any():
        console.print(LEAKS)
    for name, reason in left_out.items():
        console.print(f"left out: {name}, because {escape(reason)}")
    return {"sources": table.to_dict("records"), "left_out": left_out}


def _evaluate_strategy(console: Console, run: Run | None, asked: SimpleNamespace) -> dict[str, Any]:
    """On the run's own data, or on other data with the run's threshold and scale."""
    model, settings = (run, run.settings) if run is not None else runs.load_checkpoint_model(asked.checkpoint)
    masks_from = _masks_from(asked.efficientad_run, settings, asked.mask_source)
    source = MaskSource.of(
        settings, asked.mask_source, external_mask_dir=asked.external_mask_dir, efficientad_run=masks_from
    )
    elsewhere = (asked.data_root, asked.mask_source, asked.external_mask_dir, masks_from)
    as_trained = run is not None and not any(elsewhere)
    unfit = "leave --checkpoint, --data-root, --mask-source and --external-mask-dir out"
    if asked.efficientad_run is not None and masks_from is None and not as_trained:
        raise RunError(
            f"--efficientad-run flags novel pictures of a run as it was trained; {unfit}, or give --mask-source "
            "efficientad to take its masks"
        )
    if asked.reasons and not as_trained:
        raise RunError(f"--reasons asks a run as it was trained; {unfit}")
    places = {"external_mask_dir": asked.external_mask_dir, "efficientad_run": masks_from}
    if run is None and source.name in evaluation.PLACES:
        places[evaluation.PLACES[source.name][0]] = source.place  # which a model alone does not know
    data = None
    if asked.data_root is not None:
        there = _elsewhere(settings, asked.data_root)
        digest = "" if run is None else run.manifest["data_digest"]
        data = build_data(there, build_test_samples(there, digest=digest))
    elif run is None:
        data = build_data(settings)
    table, summary = evaluation.evaluate(
        model, data=data, mask_source=asked.mask_source, device=asked.device or settings.device, reuse=not asked.force,
        **places,
    )  # fmt: skip
    _print_summary(console, summary)
    _print_calibration(console, table)
    besides = _print_besides(console, run, asked) if run is not None and as_trained else {}
    if asked.error_analysis:
        _print_errors(console, table)
    if asked.visualize:
        folder = asked.vis_dir or (run.figures_dir if run else Path("outputs") / "figures")
        fixed = run.metrics if run is not None and run.is_evaluated else summary
        scale = MapScale(**fixed["map_scales"]["cam"]) if fixed.get("map_scales") else None
        options = {"threshold": summary["threshold"], "scale": scale, "source": source}
        pages = figures.explanation_pictures(model, evaluation.evaluated_data(run, data), table, **options)
        figures.save_figure(figures.classification_figure(table, summary["threshold"]), folder / "classification.png")
        count = sum(1 for name, figure in pages if figures.save_figure(figure, folder / f"{name}.jpg"))
        console.print(f"{count} pictures and classification.png: {escape(str(folder))}")
    return summary | besides


def _masks_from(efficientad_run: Path | None, settings: Settings, mask_source: str | None) -> Path | None:
    """The EfficientAD run that was asked for, where it is to make other masks than the run's own."""
    if efficientad_run is None or settings.strategy != "S6":
        return None
    own = settings.efficientad_run is not None and efficientad_run.resolve() == settings.efficientad_run.resolve()
    by_default = mask_source is None and settings.mask_source == "efficientad" and not own
    return efficientad_run if mask_source == "efficientad" or by_default else None


def _elsewhere(settings: AnySettings, data_root: Path) -> AnySettings:
    """The same reading of other data; of folders ``images/<split>`` that of the generic layout, whatever the run's own.

    A synthetic dataset is read as it lies there, not made anew.
    """
    root = data_root.absolute()
    generic = any((root / "images" / split).is_dir() for split in SPLITS)
    if settings.dataset_type != "generic" and (generic or settings.dataset_type == "synthetic"):
        settings = settings.changed(dataset_type="generic", group_pattern=None)
    return settings.changed(data_root=root, box_labels=box_labels_of(settings, root))


def _print_summary(console: Console, summary: Mapping[str, Any]) -> None:
    title = f"threshold {summary['threshold']:.3f} ({summary.get('threshold_from', 'origin not recorded')})"
    console.print(frame_table(title, summary_table(summary)))
    for split in (split for split in TEST_SPLITS if split in summary.get("defect_types", {})):
        counts = pd.DataFrame.from_dict(summary["defect_types"][split], orient="index").rename_axis("truth")
        console.print(frame_table(f"{split}: how many of which defect are called what", counts))
    if summary.get("teacher"):
        console.print(f"masks from {escape(summary['efficientad_run'])}; its teacher: {escape(summary['teacher'])}")
    if summary.get("label_leaks"):
        console.print(LEAKS)


def _print_calibration(console: Console, table: pd.DataFrame) -> None:
    for split in (split for split in TEST_SPLITS if (table["split"] == split).any()):
        error = expected_calibration_error(table[table["split"] == split])
        console.print(f"{split}: {METRIC_NAMES['ece']} {interval(error)}")


def _print_besides(console: Console, run: Run, asked: SimpleNamespace) -> dict[str, Any]:
    """Novel pictures, and what the verdicts rest on: of a run as it was trained."""
    besides: dict[str, Any] = {}
    if (novelty := _novelty(run, asked)) is not None:
        _print_novelty(console, novelty)
        console.print(f"score and flag of every picture: {escape(str(run.folder / anomalies.TABLE))}")
        besides["novelty"] = novelty.summary
    elif why := anomalies.out_of_date(run):
        console.print(f"novel pictures: not shown, {escape(why)}")
    if asked.reasons:
        measured = besides["reasons"] = measure_indicators(run, device=asked.device, reuse=not asked.force)
        shown = indicator_table(measured).rename(index=METRIC_NAMES)
        console.print(frame_table("what the verdicts rest on (test)", shown))
    return besides


def _novelty(run: Run, asked: SimpleNamespace) -> anomalies.Novelty | None:
    """By the EfficientAD run that is asked for; else what is stored, else by the one that the settings name."""
    if asked.efficientad_run is None and not asked.force and (stored := anomalies.stored_novelty(run)) is not None:
        return stored  # the run that it is from need not be there any more
    other = asked.efficientad_run or run.settings.efficientad_run
    if other is None:
        return anomalies.stored_novelty(run)
    return anomalies.find_novel(run, other, device=asked.device, reuse=not asked.force)


def _print_novelty(console: Console, novelty: anomalies.Novelty) -> None:
    headings = {"called_defective": "called defective", "novel": "novel (anomalous, called normal)"}
    for split, kinds in novelty.kinds.groupby(level="split"):
        table = kinds.droplevel("split").rename(columns=headings).rename_axis("pictures")
        table.index += table.pop("unseen").map({True: " (no training picture)", False: ""}).to_numpy()
        console.print(frame_table(f"{split}: novel pictures, anomaly score above {novelty.threshold:.3f}", table))
    console.print(f"threshold: {escape(novelty.summary['threshold_from'])}")
    console.print(f"EfficientAD run: {escape(novelty.summary['efficientad_run'])}; teacher: {escape(novelty.teacher)}")


def _print_errors(console: Console, table: pd.DataFrame) -> None:
    columns = ["image", "defect_type", "probability", "cam_iou", "energy_inside"]
    for split in (split for split in TEST_SPLITS if (table["split"] == split).any()):
        errors = evaluation.error_analysis(table, split)
        counts = ", ".join(
            f"{(errors['kind'] == kind).sum()} {kind} ({text})" for kind, text in evaluation.KINDS.items()
        )
        console.print(frame_table(f"{split}: {counts}", errors.set_index("kind")[columns].head(SHOWN)))
        if len(errors) > SHOWN:
            console.print(f"… {len(errors) - SHOWN} more; predictions.csv has all of them")


# --- gainmtl compare, and the end of gainmtl run all


def print_comparison(console: Console, experiment: Path, *, export: Path | None = None) -> None:
    """The strategies of an experiment's folder side by side, EfficientAD below them, and where its files lie.

    `export` is a folder for the tables and figures, small enough to be committed.
    """
    normal_only, strategies = collect_efficientad(experiment), []
    try:
        strategies = runs.collect_runs(experiment)
    except RunError:
        if not normal_only:
            raise
    if strategies:
        _compare_strategies(console, strategies, export)
    if normal_only:
        table = anomaly_table(normal_only)
        console.print(frame_table("EfficientAD, from good parts alone", table))
        if export is not None:
            _write_lines(export / "efficientad.md", markdown_table(table))
            figures.save_figure(same_anomalies_figure(normal_only[0]), export / "efficientad.jpg")
    if export is not None:
        console.print(f"exported: {escape(str(export))}")
    folder = escape(str(experiment))
    console.print(f"executed notebooks: {folder}/*.ipynb and {folder}/s*/seed*/notebook.ipynb")
    console.print(f"figures: {folder}/figures and {folder}/*/seed*/figures")
    console.print(f"tables: {folder}/comparison.csv and {folder}/*/seed*/predictions.csv")


def _compare_strategies(console: Console, strategies: list[Run], export: Path | None) -> None:
    comparison = runs.compare(strategies)
    table = runs.by_strategy(comparison)
    weights = ", ".join(sorted({run.manifest["pretrained"] for run in strategies}))
    lines = [f"Backbone weights: {weights}.", ""]
    for split in table.index.get_level_values("split").unique():
        console.print(frame_table(split, table.loc[split]))
        lines += [f"`{split}`:", "", *markdown_table(table.loc[split]), ""]
    console.print(f"backbone weights: {escape(weights)}")
    if export is not None:
        _write_lines(export / "table.md", lines[:-1])
        with atomic_path(export / "comparison.csv") as path:
            comparison.to_csv(path, index=False, float_format="%.4f")
        figures.save_figure(figures.strategies_figure(comparison), export / "strategies.png")
        figures.save_figure(figures.same_pictures_figure(strategies), export / "same_pictures.jpg")


def _write_lines(file: Path, lines: Sequence[str]) -> None:
    with atomic_path(file) as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# --- gainmtl predict, gainmtl export


def predict_and_report(console: Console, model: Path, places: Sequence[str], **options: Any) -> bool:
    """Judge pictures, and say whether all could be; options as those of the command, by their names."""
    asked = SimpleNamespace(**options)
    judging = {name: getattr(asked, name) for name in ("device", "threads", "trust")}
    names = ("threshold", "required_recall", "novelty", "tile_size", "tile_overlap", "class_names")
    folders = [Path(place) for place in places]
    drawn = _drawing_folder(asked, folders)
    judging["keep_pictures"] = drawn is not None
    predictor = Predictor(model, **{name: getattr(asked, name) for name in names}, **judging)
    pictures = folders if asked.watch else pictures_in(places)
    drawings = None
    if drawn is not None:
        base = os.path.commonpath([os.path.abspath(path if path.is_dir() else path.parent) for path in pictures])
        drawings = Drawings(drawn, base, absolute=predictor.card.scale is not None)
    counts, failed, shown = Counter(), [], {}
    with VerdictFile(asked.output, predictor, drawings=drawings, force=asked.force) as file:
        went_before = len(file.done)
        try:
            coming = _as_they_come(predictor, folders, file) if asked.watch else _judged(predictor, pictures, file)
            for prediction in coming:
                file.add(prediction)
                counts[prediction.verdict] += 1
                if prediction.error:
                    failed.append(prediction.error)
                    continue
                if len(shown) < SHOWN:
                    shown[readable(prediction.image)] = _verdict_row(prediction)
        except KeyboardInterrupt:
            if not asked.watch:
                raise
    if shown:
        names = _told_apart([Path(name) for name in shown])
        rows = dict(zip(names, shown.values(), strict=True))
        title = f"threshold {predictor.threshold:.3f} ({predictor.threshold_from})"
        console.print(frame_table(title, pd.DataFrame.from_dict(rows, orient="index").rename_axis("picture")))
    told = ", ".join(f"{counts[name]} {name}" for name in predictor.class_names)
    judged = sum(counts[name] for name in predictor.class_names)
    console.print(f"{judged} judged: {escape(told)}; {len(failed)} could not be read")
    if went_before:
        console.print(f"{went_before} were judged before")
    for message in failed[:SHOWN]:
        console.print(f"not judged: {escape(message)}")
    if len(failed) > SHOWN:
        console.print(f"… {len(failed) - SHOWN} more; the table has all of them")
    if drawn is not None:
        console.print(f"pictures: {escape(str(drawn))}")
    console.print(f"verdicts: {escape(str(asked.output))}")
    return not failed


def _drawing_folder(asked: SimpleNamespace, folders: Sequence[Path]) -> Path | None:
    """Where pictures of verdicts are drawn, if at all; `DataError` where the table is, or among what is judged."""
    if not (asked.visualize or asked.vis_dir):
        return None
    drawn = asked.vis_dir or asked.output.with_suffix("")
    own = Path(os.path.abspath(drawn))
    if own == Path(os.path.abspath(asked.output)):
        told = f"{drawn} would be both the table and the folder of the pictures drawn"
        raise DataError(f"{told}; give --output a suffix, such as .csv, or choose another place with --vis-dir")
    for folder in folders:
        if folder.is_dir() and own.is_relative_to(os.path.abspath(folder)):
            told = f"{drawn} lies in {folder}, and what is drawn there would be judged as well"
            raise DataError(f"{told}; choose another place with --vis-dir")
    return drawn


def _judged(predictor: Predictor, pictures: Sequence[Path], file: VerdictFile) -> Iterator[Prediction]:
    """Predictions of the pictures that have no verdict yet."""
    left = [path for path in pictures if readable(path) not in file.done]
    return counted(predictor(left), len(left), "judged", log=logger)


def _as_they_come(predictor: Predictor, folders: Sequence[Path], file: VerdictFile) -> Iterator[Prediction]:
    """Predictions of what arrives in the folders, without an end."""
    arrivals = Arrivals(folders, file.done)
    logger.info("watching %s; end with Ctrl-C", ", ".join(map(str, folders)))
    while True:
        for prediction in predictor(arrivals.ready()):
            if not (prediction.error and arrivals.try_again(Path(prediction.image))):
                logger.info("%s: %s", prediction.image, prediction.error or prediction.verdict)
                yield prediction
        time.sleep(LOOKED_AGAIN_AFTER)


LOOKED_AGAIN_AFTER = 1.0  # seconds: a folder may hold many thousands, which are listed each time


def _verdict_row(prediction: Prediction) -> dict[str, str]:
    verdict = " ".join(filter(None, [prediction.verdict, prediction.defect_type]))
    row = {"verdict": verdict, "p(defect)": number(prediction.probability)}
    boxes = prediction.boxes
    row["defects"] = "–" if boxes is None else str(len(boxes))
    row["area"] = percent(prediction.area)
    if prediction.novel is not None:
        row["novel"] = "novel" if prediction.novel else "–"
    return row


def export_and_report(console: Console, run_folder: Path, **options: Any) -> None:
    """Export a run, and print how the export agrees with it; options are those of `export_run`."""
    path, found = export_run(open_run(run_folder), **options)
    rows = {
        "validation pictures": found.pictures,
        "verdicts that differ": found.changed,
        "largest difference of p(defect)": found.largest,
        "mean difference of p(defect)": found.mean,
        "AUROC of the run": found.auroc,
        "AUROC of the export": found.auroc_exported,
    }
    table = pd.DataFrame({"value": pd.Series(rows, dtype=object)}).rename_axis("beside the run")
    console.print(frame_table(f"{options['kind']}, {options['precision']}", table))
    console.print(f"export: {escape(str(path))}")


# --- gainmtl explain


STORED = (
    "prediction", "prediction_name", "confidence", "probability", "threshold", "found", "cam_iou", "grid_iou",
    "point_game", "energy_inside", "box", "boxes", "area", "counterfactual", "counterfactual_missing",
)  # fmt: skip
"""Keys of an explanation that go into the exported file; pictures and maps stay in the figure."""


def explain_pictures(console: Console, run_folder: Path, images: Sequence[Path], **options: Any) -> bool:
    """Explain each picture, and say whether all could be: one that cannot be used is named.

    Args:
        options: those of the command, by their names.
    """
    asked = SimpleNamespace(**options)
    run, masks = runs.load_run(run_folder), asked.masks
    folder = asked.folder or run.folder / "explanations"
    if masks and len(masks) != len(images):
        raise DataError(f"{len(images)} pictures but {len(masks)} masks; give one --mask for each picture, in order")
    names = _told_apart(images)
    if asked.mask_source is not None:
        MaskSource.of(run.settings, asked.mask_source)  # complains where it does not fit
        run.model.mask_source = asked.mask_source
    run.model.to(checked_device(asked.device or run.settings.device))
    explainer = DefectExplainer.from_run(run, class_names=asked.class_names)
    answers, failed = {}, []
    for image, name, mask in zip(images, names, masks or [None] * len(images), strict=True):
        try:
            explained = explainer.explain(image, mask)
        except DataError as error:
            failed.append(f"not explained: {error}")
            continue
        answers[str(image)] = {name: explained[name] for name in STORED if name in explained}
        explainer.figure_of(explained, title=image.name, save_path=folder / f"{name}.png")
    if answers:
        shown = dict(zip(map(str, images), names, strict=True))
        rows = {shown[image]: _told(answer) for image, answer in answers.items()}
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("picture")
        console.print(frame_table("where the model looked, and whether it would say so without the defect", table))
        console.print(f"figures: {escape(str(folder))}")
    for message in failed:
        console.print(escape(message))
    if asked.export_results is not None:
        write_json(asked.export_results, answers)
        console.print(f"results: {escape(str(asked.export_results))}")
    return not failed


def _told_apart(images: Sequence[Path]) -> list[str]:
    """A name for each picture: its stem, or where others have it too, with suffix and as many folders as it takes."""
    names = [image.stem for image in images]
    for parts in range(1, max((len(image.absolute().parts) for image in images), default=1)):
        twice = {name for name, count in Counter(names).items() if count > 1}
        for place, image in enumerate(images):
            if names[place] in twice:
                names[place] = "_".join(image.absolute().parts[-parts:])
    return names


def _told(answer: Mapping[str, Any]) -> dict[str, str]:
    found, counterfactual = (answer.get("found") or {}).get("cam"), answer["counterfactual"]
    return {
        "verdict": answer["prediction_name"],
        "p(defect)": number(answer["probability"]),
        "CAM": "–" if found is None else "finds something" if found else "nothing found",
        "box": " ".join(map(str, answer.get("box") or ["–"])),
        "CAM-IoU": number(answer.get("cam_iou")),
        "counterfactual": counterfactual["message"] if counterfactual else answer.get("counterfactual_missing", "–"),
    }


# --- gainmtl data


def report_data_check(
    console: Console, settings: Settings, *, val_ratio: float | None, contact_sheet_path: Path | None
) -> bool:
    """Tables and findings of a dataset, and whether a training run with these settings would accept it."""
    report = check_data_of(settings, val_ratio=val_ratio)
    sections = {
        "images by split and defect type": report.counts,
        "masks": report.masks,
        "defect area, share of the image": report.defect_area,
        f"grid IoU at {' x '.join(map(str, settings.image_size))} px: what the masks reach on a map": report.grid_iou,
        "AUROC with which each of these alone predicts the class; low to high is chance": report.alone,
    }
    for title, rows in sections.items():
        if len(rows):
            console.print(frame_table(title, rows))
    for level in LEVELS:
        found = [finding for finding in report.findings if finding.level == level]
        for finding in found[:SHOWN]:
            console.print(f"{level}: {escape(str(finding))}")
        if len(found) > SHOWN:
            console.print(f"{level}: … and {len(found) - SHOWN} more")
    if contact_sheet_path is not None:
        figures.save_figure(figures.contact_sheet(*contact_sheet_samples(report.samples)), contact_sheet_path)
        console.print(f"contact sheet: {escape(str(contact_sheet_path))}")
    counts = {level: sum(finding.level == level for finding in report.findings) for level in ("error", "warning")}
    console.print(f"{counts['error']} errors, {counts['warning']} warnings")
    return report.usable


def report_planting(console: Console, settings: Settings, out: Path, *, cue: str, **options: Any) -> None:
    """Plant a cue into the photographs that `settings` read and split, see `plant_cue`; say what is there now."""
    if settings.dataset_type == "synthetic":  # whose reading would make a dataset where there is none
        raise DataError(
            "dataset_type is 'synthetic', and planting takes photographs; choose another layout, or make synthetic "
            "data with a cue: gainmtl data synth"
        )
    names = ("dataset_type", "group_pattern", "val_ratio", "test_ratio")
    origin = {name: getattr(settings, name) for name in names} | {"split_seed": settings.seed_of_split}
    options |= {"origin": origin, "skip_unreadable": settings.skip_unreadable}
    made = plant_cue(build_samples(settings), out, cue=cue, **options)
    record = yaml.safe_load((out / PLANTED).read_text(encoding="utf-8"))
    console.print(f"{escape(str(out))}: {'written' if made else 'was there already'}, {cue} planted")
    console.print(frame_table("pictures and cues", planted_counts(out)))
    for reason, files in record["carry_none"].items():
        console.print(f"{len(files)} pictures carry none: {reason}; listed in {PLANTED}")
    read_with = " ".join(f"-p {name} {json.dumps(value)}" for name, value in record["read_with"].items())
    console.print(f"read it with: {escape(read_with)}")
