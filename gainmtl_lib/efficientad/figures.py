"""Figures of EfficientAD: its training, its scores, and its three maps beside each other.

Every function returns a figure and shows nothing; none is pyplot's, which a notebook would show a second time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gainmtl_lib.dataset import Batch
from gainmtl_lib.efficientad.data import build_provider, found_categories
from gainmtl_lib.efficientad.evaluate import (
    Detector,
    ScoredPicture,
    category_table,
    evaluate_efficientad,
    picture_paths,
    score_pictures,
)
from gainmtl_lib.efficientad.model import BORDER, TERMS, EfficientADModel, EfficientADSettings
from gainmtl_lib.efficientad.train import EfficientADRun, fit_efficientad, load_efficientad
from gainmtl_lib.explain import Frame, read_defect
from gainmtl_lib.figures import (
    SPLIT_NAMES,
    enlarged_share,
    map_grid,
    overlay,
    pick_rows,
    resized,
    resized_mask,
    with_band,
)
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.readers import IMAGE_SUFFIXES, DataError, masks_of, read_image
from gainmtl_lib.runs import EFFICIENTAD, RunError, atomic_path, run_status
from gainmtl_lib.wording import frame_table, number

TERM_NAMES = {
    "st": "student–teacher (hard)",
    "penalty": "pretraining penalty",
    "ae": "teacher–autoencoder",
    "stae": "student–autoencoder",
}
CLASSES = {0: ("normal", "#1f77b4"), 1: ("defective", "#d62728")}


def anomaly_training_figure(history: pd.DataFrame) -> Figure:
    """The four terms by step on a logarithmic axis, and the validation AUROCs.

    Args:
        history: of a run, columns ``tag``, ``step``, ``value``.
    """
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    losses, scores = figure.subplots(1, 2, width_ratios=[1.3, 1])
    for term in TERMS:
        rows = history[history["tag"] == f"train/{term}_loss"]
        losses.plot(rows["step"], rows["value"].rolling(10, min_periods=1).mean(), lw=1, label=TERM_NAMES[term])
    losses.set(xlabel="optimiser step", yscale="log", title="training losses (mean of 10 log entries)")
    losses.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for tag, name in {"val/image_auroc": "image AUROC", "val/pixel_auroc": "pixel AUROC"}.items():
        rows = history[history["tag"] == tag]
        scores.plot(rows["step"], rows["value"], marker="o", ms=3, label=name)
    scores.set(xlabel="optimiser step", ylim=(0.4, 1.02), title="validation: normal, and synthesised anomalies")
    scores.legend(fontsize=7, loc="lower right")
    for axis in (losses, scores):
        axis.title.set_fontsize(9)
    return figure


def score_figure(
    predictions: pd.DataFrame, threshold: float, *, splits: Sequence[str] = ("test", "test_shift")
) -> Figure:
    """Anomaly scores of normal and defective pictures, one panel per split, the threshold as a line.

    Args:
        predictions: with ``split``, ``label`` and ``anomaly_score``.
        threshold: of the decision, chosen on validation.
        splits: that are shown, as far as there are pictures of them.

    Raises:
        ValueError: there is no picture of any.
    """
    present = [split for split in splits if (predictions["split"] == split).any()]
    if not present:
        found = ", ".join(map(str, predictions["split"].unique()))
        raise ValueError(f"no pictures of the splits {', '.join(splits)}; the table has {found or 'none at all'}")
    figure = Figure(figsize=(4.4 * len(present), 2.9), layout="constrained")
    scores = predictions.loc[predictions["split"].isin(present), "anomaly_score"]
    bins = np.linspace(min(scores.min(), threshold), max(scores.max(), threshold), 30)
    for axis, split in zip(figure.subplots(1, len(present), sharex=True, squeeze=False)[0], present):
        rows = predictions[predictions["split"] == split]
        for label, (name, colour) in CLASSES.items():
            axis.hist(rows.loc[rows["label"] == label, "anomaly_score"], bins, alpha=0.6, color=colour, label=name)
        axis.axvline(threshold, color="k", lw=1, ls=":", label="threshold")
        axis.set(xlabel="anomaly score", ylabel="pictures")
        axis.set_title(SPLIT_NAMES[split], fontsize=9)
        axis.legend(fontsize=7)
    return figure


def anomaly_maps_figure(
    model: EfficientADModel, batch: Batch, row_titles: Sequence[str], *, scale: MapScale | None = None
) -> Figure:
    """One row per picture: mask outline, the two local maps stretched per image, the joined map on its absolute scale.

    Args:
        model: in evaluation mode.
        batch: pictures at the network's input size.
        row_titles: what stands at the left of each row.
        scale: of the anomaly map, fixed on validation.
    """
    with torch.inference_mode():
        local = model.local_maps(batch.images)
        output = model.finish(local, (batch.images.shape[-2], batch.images.shape[-1]))
    maps = {
        "student–teacher": framed(local.student_teacher, model),
        "student–autoencoder": framed(local.student_autoencoder, model),
        "anomaly map": output.anomaly_map[:, 0].numpy(),
    }
    notes = {"anomaly map": [f"score {score:.2f}" for score in output.score.tolist()]}
    return map_grid(
        batch.images.permute(0, 2, 3, 1).numpy(),
        batch.masks[:, 0].numpy(),
        maps,
        row_titles,
        notes=notes,
        scales={"anomaly map": scale} if scale else None,
    )


def framed(maps: torch.Tensor, model: EfficientADModel) -> np.ndarray:
    """Local maps (B, 1, h, w) as (B, h', w'), the border that the networks leave out at each map's lowest value."""
    border = 0 if model.padding else BORDER
    padded = [torch.nn.functional.pad(one, (border,) * 4, value=float(one.min())) for one in maps[:, 0]]
    return torch.stack(padded).numpy()


# --- ``gainmtl efficientad train``


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


# --- A scored picture beside its heat map and its ground truth.


SIDE = 384
"""Longer side of each panel's picture, in pixels."""

NARROWEST = 256
"""Pixels a panel is wide at least, however narrow its picture: the words below must stay readable."""

GAP = 6
"""White pixels between two panels."""


def drawn(detector: Detector, scored: ScoredPicture, mask: Path | None = None) -> NDArray[np.uint8]:
    """Picture, heat map on the detector's scale and, where there is one, ground truth; below them the teacher.

    Args:
        detector: that scored it.
        scored: what it said.
        mask: file of the ground truth, also outlined on the heat map.

    Returns:
        RGB, (height, width, 3).

    Raises:
        DataError: picture or mask cannot be read, or the mask has another aspect ratio than its picture.
    """
    defect = None if mask is None else read_defect(mask, scored.size, str(mask))
    scale = SIDE / max(scored.size)
    shape = max(1, round(scored.size[0] * scale)), max(1, round(scored.size[1] * scale))
    picture, region = resized(read_image(scored.path), shape), resized_mask(defect, shape)
    heat = _share(detector, scored)
    panels = [
        _panel(picture, _words(detector, scored)),
        _panel(overlay(picture, heat, mask=region), f"anomaly map · {detector.scale_name}", bar=True),
    ]
    if region is not None:
        white = np.repeat(region[..., None].astype(np.uint8) * 255, 3, axis=2)
        panels.append(_panel(white, "ground truth"))
    return with_band(_beside(panels), f"EfficientAD · teacher: {detector.teacher}", bar=False)


def _share(detector: Detector, scored: ScoredPicture) -> NDArray[np.float32]:
    """The map in [0, 1], without the bars of a letterbox."""
    height, width = scored.anomaly_map.shape
    frame = Frame.of(scored.size, (height, width), detector.settings.resize)
    return frame.crop(enlarged_share(scored.anomaly_map, detector.scale, (height, width)))


def _words(detector: Detector, scored: ScoredPicture) -> str:
    verdict = detector.verdict(scored.score)
    said = [verdict] if verdict else []
    said += ["anomalous"] if detector.anomalous(scored.score) else []
    return " · ".join([scored.path.name, *said, f"score {scored.score:.4g}"])


def _panel(pixels: NDArray[np.uint8], words: str, *, bar: bool = False) -> NDArray[np.uint8]:
    missing = max(0, NARROWEST - pixels.shape[1])
    sides = (missing // 2, missing - missing // 2)
    return with_band(np.pad(pixels, ((0, 0), sides, (0, 0)), constant_values=255), words, bar=bar)


def _beside(panels: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    gap = np.full((len(panels[0]), GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


# --- ``gainmtl efficientad predict``


ROWS_PRINTED = 20
"""Of the table of scores; a folder may hold thousands."""


def predict_and_report(
    console: Console,
    place: Path,
    places: Sequence[Path],
    *,
    masks: Sequence[Path],
    output: Path,
    image_size: tuple[int, int] | None,
    device: str | None,
) -> bool:
    """Score each picture; one that cannot be used is named, and the others are scored all the same.

    Args:
        console: takes the table.
        place: a run's folder or a checkpoint file.
        places: pictures and folders of pictures; none takes the run's own synthetic test pictures.
        masks: of the pictures, in their order, or none at all: then those of a dataset around them.
        output: folder for the pictures, below it as they lay together, and ``scores.csv``; or the file of one
            picture, whose scores go beside it. Of the run's own pictures that one is the first defective one.
        image_size: network input (H, W); None is the training's.
        device: where to compute, see `checked_device`; None is the settings' accelerator.

    Returns:
        Whether every picture could be scored.

    Raises:
        RunError: no finished run or no checkpoint of EfficientAD, or no pictures and a run of other data.
        DataError: no pictures, a wrong number of masks, or pictures that would be drawn to the same file.
        ModelError: an image size below the smallest.
    """
    detector = Detector.open(place)
    settings = detector.settings
    single = output.suffix.lower() in IMAGE_SUFFIXES
    truth = _annotated(places, masks, output) if places else _own_pictures(settings, single=single)
    targets = _targets(list(truth), output, single=single)
    size = image_size or settings.image_size
    rows, failed = [], []
    scores = score_pictures(
        detector.model,
        list(truth),
        image_size=size,
        resize=settings.resize,
        device=device or settings.accelerator,
        precision=settings.precision,
    )
    for scored in scores:
        try:
            if isinstance(scored, DataError):
                raise scored
            row = _row(detector, scored)
            _write(drawn(detector, scored, truth[scored.path]), targets[scored.path])
            rows.append(row)
        except DataError as error:
            failed.append(str(error))
    table = pd.DataFrame(rows, columns=["image", "anomaly_score", "threshold", "verdict", "anomalous"])
    listed = output.with_suffix(".csv") if single else output / "scores.csv"
    with atomic_path(listed) as path:
        table.to_csv(path, index=False, float_format="%.9g")
    _print(console, detector, table, size)
    console.print(f"pictures: {escape(str(output))}; scores: {escape(str(listed))}")
    for message in failed:
        console.print(f"not scored: {escape(message)}")
    return not failed


def _annotated(places: Sequence[Path], masks: Sequence[Path], output: Path) -> dict[Path, Path | None]:
    """Pictures with their ground truth, given or found."""
    for place in places:
        if place.is_dir() and output.absolute().is_relative_to(place.absolute()):
            raise DataError(
                f"--output {output} lies in {place}, whose pictures are to be scored; choose another folder"
            )
    pictures = picture_paths(places)
    if masks and len(masks) != len(pictures):
        raise DataError(f"{len(pictures)} pictures but {len(masks)} masks; give one --mask for each picture, in order")
    found = dict(zip(pictures, masks, strict=True)) if masks else masks_of(pictures)
    return {picture: found.get(picture) for picture in pictures}


def _own_pictures(settings: EfficientADSettings, *, single: bool) -> dict[Path, Path | None]:
    if settings.dataset_type != "synthetic":
        raise RunError(f"the run's data is of type {settings.dataset_type}, not synthetic; give pictures")
    samples = build_provider(settings).samples
    chosen = samples[samples["split"] == "test"]
    chosen = chosen[chosen["label"] == 1].head(1) if single else chosen
    return {Path(row["image"]): row["mask"] and Path(row["mask"]) for row in chosen.to_dict("records")}


def _targets(pictures: Sequence[Path], output: Path, *, single: bool) -> dict[Path, Path]:
    """The file that each picture is drawn to; no two share one, and none is a picture that is scored."""
    if single and len(pictures) != 1:
        raise DataError(f"--output {output} is the file of one picture, got {len(pictures)}; give a folder")
    base = os.path.commonpath([picture.absolute().parent for picture in pictures])
    targets = {
        picture: output if single else (output / picture.absolute().relative_to(base)).with_suffix(".png")
        for picture in pictures
    }
    count = Counter(targets.values())
    if clashing := sorted(str(picture) for picture, target in targets.items() if count[target] > 1):
        raise DataError(f"{', '.join(clashing)} would be drawn to the same file; rename one or take them one at a time")
    originals = {picture.resolve() for picture in pictures}
    if lost := sorted(str(target) for target in targets.values() if target.resolve() in originals):
        raise DataError(f"--output {output} would overwrite {lost[0]}, which is to be scored; choose another place")
    return targets


def _row(detector: Detector, scored: ScoredPicture) -> dict[str, object]:
    return {
        "image": str(scored.path),
        "anomaly_score": scored.score,
        "threshold": detector.threshold,
        "verdict": detector.verdict(scored.score),
        "anomalous": detector.anomalous(scored.score),
    }


def _write(pixels: NDArray[np.uint8], path: Path) -> None:
    content = cv2.imencode(path.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _print(console: Console, detector: Detector, table: pd.DataFrame, size: tuple[int, int]) -> None:
    none = detector.threshold is None
    title = "no threshold: the run is not evaluated" if none else f"threshold {detector.threshold:.4g}"
    shown = Table("picture", "anomaly score", "verdict", "anomalous", title=title, title_justify="left")
    for row in table.head(ROWS_PRINTED).to_dict("records"):
        anomalous = "–" if row["anomalous"] is None else "yes" if row["anomalous"] else "no"
        shown.add_row(escape(Path(row["image"]).name), f"{row['anomaly_score']:.4g}", row["verdict"] or "–", anomalous)
    console.print(shown)
    if len(table) > ROWS_PRINTED:
        console.print(f"… {len(table) - ROWS_PRINTED} more; the table of scores has all of them")
    if size != detector.settings.image_size:
        trained, here = (f"{height}x{width}" for height, width in (detector.settings.image_size, size))
        console.print(f"computed at {here}; thresholds and scale are those of {trained} (height x width)")
    console.print(f"teacher: {escape(detector.teacher)}")


# --- The EfficientAD runs of an experiment, to stand below its strategies


COLUMNS = {
    "accuracy": "accuracy",
    "recall": "recall",
    "auroc": "image AUROC",
    "average_precision": "AP",
    "f1": "F1",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "anomaly_iou": "map IoU",
    "grid_iou": "grid IoU",
}
"""Metrics of a table, and how its columns are headed."""


def collect_efficientad(experiment: Path) -> list[EfficientADRun]:
    """Finished and evaluated runs of EfficientAD below ``outputs/<experiment>``, by folder; may be none."""
    folders = sorted(path.parent for path in (experiment / EFFICIENTAD).glob("**/seed*/manifest.json"))
    runs = [load_efficientad(folder) for folder in folders if run_status(folder) == "complete"]
    return [run for run in runs if run.is_evaluated]


def anomaly_table(runs: Sequence[EfficientADRun]) -> pd.DataFrame:
    """One row per run and test split as text, a dash for what has no answer; the last column is the teacher."""
    rows = {}
    for run in runs:
        metrics = run.metrics
        for split in ("test", "test_shift"):
            if split in metrics:
                values = [metrics[split][name] for name in COLUMNS]
                shown = ["–" if value is None else f"{value:.3f}" for value in values]
                name = run.settings.category or "EfficientAD"
                rows[f"{name}, seed {run.settings.seed}, {split}"] = [*shown, run.teacher]
    return pd.DataFrame.from_dict(rows, orient="index", columns=[*COLUMNS.values(), "teacher"])


def same_anomalies_figure(run: EfficientADRun) -> Figure:
    """The three maps of pictures of its test split, those that `same_pictures_figure` shows; names the teacher."""
    provider = build_provider(run.settings)
    rows = pick_rows(provider.samples, "test", defective=4, normal=1)
    titles = [str(provider.samples["defect_type"][row]) for row in rows]
    figure = anomaly_maps_figure(run.model, provider.batch(rows), titles, scale=run.scale)
    figure.supxlabel(f"teacher: {run.teacher}", fontsize=8)
    return figure
