"""What the commands of EfficientAD print and draw: ``train``, ``predict``, and its rows and maps in ``compare``."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from gainmtl_lib.annotations import MaskFiles
from gainmtl_lib.dataset import Batch
from gainmtl_lib.efficientad import evaluate
from gainmtl_lib.efficientad.data import SplitProvider
from gainmtl_lib.efficientad.model import BORDER, EfficientADModel, EfficientADSettings
from gainmtl_lib.efficientad.train import EfficientADRun, fit_efficientad, load_efficientad
from gainmtl_lib.explain import read_defect
from gainmtl_lib.figures import enlarged_share, fitting, map_grid, overlay, pick_rows, resized_mask, with_band
from gainmtl_lib.findings import DataError
from gainmtl_lib.labels import inside, resize_image
from gainmtl_lib.launch import Launch
from gainmtl_lib.layouts import LAYOUTS, masks_of
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.pictures import IMAGE_SUFFIXES, image_files, read_image
from gainmtl_lib.readers import categories_in
from gainmtl_lib.runs import EFFICIENTAD, RunError, atomic_path, run_status
from gainmtl_lib.wording import METRICS, frame_table, number

HEADINGS = METRICS | {"auroc": "image AUROC"}  # a pixel's AUROC stands beside it
BY_CATEGORY = ("auroc", "average_precision", "pixel_auroc", "aupro", "f1")
COMPARED = ("accuracy", "recall", *BY_CATEGORY, "anomaly_iou", "grid_iou")

SIDE = 384  # longer side of each panel's picture, in pixels
NARROWEST = 256  # pixels a panel is wide at least: the words below it must stay readable


# --- ``gainmtl efficientad train``


def train_and_report(
    console: Console, files: Sequence[Path], values: Mapping[str, Any], *, category: str | None, **options: Any
) -> None:
    """Train a run, evaluate it and print its metrics; of category ``all`` a run for each, and ``categories.csv``.

    Of several processes the main one evaluates and prints. `options` are those of `fit_efficientad`.
    """
    named = {} if category in (None, "all") else {"category": category}
    settings = EfficientADSettings.from_yaml(*files, **dict(values) | named)
    kind = settings.dataset_type
    categories = categories_in(settings.data_root, kind) if category == "all" else [settings.category]
    if not categories:
        expected = f"expected folders with {LAYOUTS[kind].category or 'categories, as dataset_type mvtec has'}"
        raise DataError(f"{settings.data_root}: no category of {kind} data in it; {expected}")
    runs, is_main = [], Launch.of(settings).is_main
    for name in categories:
        runs.append(run := fit_efficientad(settings.changed(category=name), **options))
        if is_main:
            evaluate.evaluate_efficientad(run)
            print_evaluation(console, run, run.metrics)
    if category == "all" and is_main:
        values = {run.settings.category: run.metrics["test"] for run in runs}
        table = pd.DataFrame(values, index=list(BY_CATEGORY), dtype=float).T.rename(columns=HEADINGS)
        table.loc["mean"] = table.mean()  # over those that have an answer
        table, path = table.rename_axis("category"), runs[0].folder.parents[1] / "categories.csv"
        with atomic_path(path) as temporary:
            table.to_csv(temporary, float_format="%.6g")
        console.print(frame_table("test metrics by category", table))
        console.print(f"table: {escape(str(path))}")


def print_evaluation(console: Console, run: EfficientADRun, metrics: Mapping[str, Any]) -> None:
    """The metrics of an evaluation, by split, and what they rest on."""
    splits = [name for name, values in metrics.items() if isinstance(values, dict) and "images" in values]
    table = pd.DataFrame({split: {name: number(value) for name, value in metrics[split].items()} for split in splits})
    title = f"{run.settings.run_name}: threshold {metrics['threshold']:.4g} ({metrics['threshold_from']})"
    console.print(frame_table(title, table.rename_axis("metric")))
    console.print(f"novelty threshold: {metrics['novelty_threshold']:.4g}\nteacher: {escape(metrics['teacher'])}")
    console.print(f"penalty images: {escape(metrics['penalty'])}\nrun: {escape(str(run.folder))}")


# --- ``gainmtl efficientad predict``


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
    """Score each picture and say whether all could be; one that cannot be used is named.

    Args:
        place: a run's folder or a checkpoint file.
        places: pictures and folders of pictures; none takes the run's own synthetic test pictures.
        masks: of the pictures, in their order, or none at all: then those of a dataset around them.
        output: folder for the pictures, below it as they lay together, and ``scores.csv``; or the file of one picture
            (of the run's own the first defective one), whose scores go beside it.
        image_size, device: see `score_pictures`.
    """
    detector = evaluate.Detector.open(place)
    single = output.suffix.lower() in IMAGE_SUFFIXES
    if places:
        truth = _annotated(places, masks, output)
    elif (settings := detector.settings).dataset_type == "synthetic":
        samples = SplitProvider(settings).samples
        chosen = samples[(samples["split"] == "test") & ((samples["label"] == 1) | (not single))]
        pairs = zip(chosen["image"], chosen["mask"], strict=True)
        truth = {Path(image): mask and Path(mask) for image, mask in list(pairs)[: 1 if single else None]}
    else:
        raise RunError(f"the run's data is of type {settings.dataset_type}, not synthetic; give pictures")
    targets = _targets(list(truth), output, single=single)
    rows, failed = [], []
    for scored in evaluate.score_pictures(detector, list(truth), failed=failed, image_size=image_size, device=device):
        try:
            pixels = cv2.cvtColor(drawn(detector, scored, truth[scored.path]), cv2.COLOR_RGB2BGR)
            with atomic_path(targets[scored.path]) as temporary:
                temporary.write_bytes(cv2.imencode(targets[scored.path].suffix, pixels)[1].tobytes())
            rows.append((str(scored.path), scored.score, detector.threshold, *detector.decide(scored.score)))
        except DataError as error:
            failed.append(str(error))
    table = pd.DataFrame(rows, columns=["image", "anomaly_score", "threshold", "verdict", "anomalous"])
    listed = output.with_suffix(".csv") if single else output / "scores.csv"
    with atomic_path(listed) as path:
        table.to_csv(path, index=False, float_format="%.9g")
    known = detector.threshold is not None
    title = f"threshold {detector.threshold:.4g}" if known else "no threshold: the run is not evaluated"
    shown = table.head(20).drop(columns="threshold").rename(columns={"anomaly_score": "anomaly score"})
    shown.index = pd.Index([Path(image).name for image in shown.pop("image")], name="picture")
    console.print(frame_table(title, shown))
    if len(table) > len(shown):
        console.print(f"… {len(table) - len(shown)} more; the table of scores has all of them")
    if image_size not in (None, detector.settings.image_size):
        trained, here = (f"{height}x{width}" for height, width in (detector.settings.image_size, image_size))
        console.print(f"computed at {here}; thresholds and scale are those of {trained} (height x width)")
    console.print(f"teacher: {escape(detector.teacher)}")
    console.print(f"pictures: {escape(str(output))}; scores: {escape(str(listed))}")
    for message in sorted(failed):
        console.print(f"not scored: {escape(message)}")
    return not failed


def _annotated(places: Sequence[Path], masks: Sequence[Path], output: Path) -> dict[Path, MaskFiles | None]:
    """Pictures, of folders those at any depth, with their ground truth, given or found."""
    pictures: list[Path] = []
    for place in places:
        if place.is_dir() and output.absolute().is_relative_to(place.absolute()):
            raise DataError(f"--output {output} lies in {place}, whose pictures are to be scored; choose another")
        found = [place] if place.is_file() else image_files(place)
        if not found:
            raise DataError(f"{place}: no such picture, or no folder of png, jpg, bmp, tif or webp pictures")
        pictures += found
    if masks and len(masks) != len(pictures):
        raise DataError(f"{len(pictures)} pictures but {len(masks)} masks; give one --mask for each picture, in order")
    known: Mapping[Path, MaskFiles] = dict(zip(pictures, masks, strict=True)) if masks else masks_of(pictures)
    return {picture: known.get(picture) for picture in pictures}


def _targets(pictures: Sequence[Path], output: Path, *, single: bool) -> dict[Path, Path]:
    """The file that each picture is drawn to; no two share one, and none is a picture that is scored."""
    if single and len(pictures) != 1:
        raise DataError(f"--output {output} is the file of one picture, got {len(pictures)}; give a folder")
    base = os.path.commonpath([picture.absolute().parent for picture in pictures])
    drawn_to = {picture: (output / picture.absolute().relative_to(base)).with_suffix(".png") for picture in pictures}
    targets = dict.fromkeys(pictures, output) if single else drawn_to
    count = Counter(targets.values())
    if clashing := sorted(str(picture) for picture, target in targets.items() if count[target] > 1):
        raise DataError(f"{', '.join(clashing)} would be drawn to the same file; rename one or take them one at a time")
    originals = {picture.resolve() for picture in pictures}
    if lost := sorted(str(target) for target in targets.values() if target.resolve() in originals):
        raise DataError(f"--output {output} would overwrite {lost[0]}, which is to be scored; choose another place")
    return targets


def drawn(
    detector: evaluate.Detector, scored: evaluate.ScoredPicture, mask: MaskFiles | None = None
) -> NDArray[np.uint8]:
    """Picture, heat map on the detector's scale and, where there is one, ground truth; below them the teacher."""
    defect = None if mask is None else read_defect(mask, scored.size, str(mask), picture=scored.path)
    height, width = fitting(scored.size, SIDE)
    picture = resize_image(read_image(scored.path), (height, width), "squash")
    region = resized_mask(defect, (height, width))
    size = (scored.anomaly_map.shape[0], scored.anomaly_map.shape[1])
    share = enlarged_share(scored.anomaly_map, detector.scale, size)
    heat = share[inside(scored.size, size, detector.settings.resize)]
    verdict, anomalous = detector.decide(scored.score)
    said = [scored.path.name, verdict, anomalous and "anomalous", f"score {scored.score:.4g}"]
    words = " · ".join(word for word in said if word)
    scale = "90 % to 99.5 % of normal parts" if detector.scale is evaluate.QUANTILE_SCALE else "absolute scale"
    panels = [(picture, words), (overlay(picture, heat, mask=region), f"anomaly map · {scale}")]
    if region is not None:
        panels.append((np.repeat(region[..., None].astype(np.uint8) * 255, 3, axis=2), "ground truth"))
    missing, beside = max(0, NARROWEST - width), []
    for turn, (pixels, below) in enumerate(panels):
        white = ((0, 0), (missing // 2, missing - missing // 2 + 6), (0, 0))
        beside.append(with_band(np.pad(pixels, white, constant_values=255), below, bar=turn == 1))
    return with_band(np.concatenate(beside, axis=1), f"EfficientAD · teacher: {detector.teacher}", bar=False)


# --- The EfficientAD runs of an experiment, to stand below its strategies


def collect_efficientad(experiment: Path) -> list[EfficientADRun]:
    """Finished and evaluated runs of EfficientAD below ``outputs/<experiment>``, by folder; may be none."""
    folders = sorted(path.parent for path in (experiment / EFFICIENTAD).glob("**/seed*/manifest.json"))
    runs = [load_efficientad(folder) for folder in folders if run_status(folder) == "complete"]
    return [run for run in runs if run.is_evaluated]


def anomaly_table(runs: Sequence[EfficientADRun]) -> pd.DataFrame:
    """One row per run and test split as text; the last column is the teacher."""
    rows = {}
    for run in runs:
        for split in ("test", "test_shift"):
            if split in run.metrics:
                name = f"{run.settings.category or 'EfficientAD'}, seed {run.settings.seed}, {split}"
                rows[name] = [*(number(run.metrics[split][metric]) for metric in COMPARED), run.teacher]
    return pd.DataFrame.from_dict(rows, orient="index", columns=[*(HEADINGS[name] for name in COMPARED), "teacher"])


def same_anomalies_figure(run: EfficientADRun) -> Figure:
    """The three maps of the test pictures that `same_pictures_figure` shows."""
    provider = SplitProvider(run.settings)
    rows = pick_rows(provider.samples, "test", defective=4, normal=1)
    titles = [str(provider.samples["defect_type"][row]) for row in rows]
    figure = anomaly_maps_figure(run.model, provider.batch(rows), titles, scale=run.scale)
    figure.supxlabel(f"teacher: {run.teacher}", fontsize=8)
    return figure


def anomaly_maps_figure(
    model: EfficientADModel, batch: Batch, row_titles: Sequence[str], *, scale: MapScale | None = None
) -> Figure:
    """One row per picture: its mask, the two local maps stretched per image, the joined map on its absolute scale."""
    with torch.inference_mode():
        local = model.local_maps(batch.images)
        output = model.finish(local, (batch.images.shape[-2], batch.images.shape[-1]))
    maps = {"student–teacher": local.student_teacher, "student–autoencoder": local.student_autoencoder}
    # Stretched per image: the border that the networks leave out is at each map's lowest value.
    border = (0 if model.padding else BORDER,) * 4
    maps = {name: F.pad(one - one.amin(dim=(1, 2, 3), keepdim=True), border) for name, one in maps.items()}
    maps = {name: one[:, 0].numpy() for name, one in (maps | {"anomaly map": output.anomaly_map}).items()}
    notes = {"anomaly map": [f"score {score:.2f}" for score in output.score.tolist()]}
    scales = {"anomaly map": scale} if scale else None
    pictures = batch.images.permute(0, 2, 3, 1).numpy()
    return map_grid(pictures, batch.masks[:, 0].numpy(), maps, row_titles, notes=notes, scales=scales)
