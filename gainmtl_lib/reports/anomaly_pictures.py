"""``gainmtl efficientad predict``: scores of pictures as a table, and each drawn beside its heat map."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.ground_truth import masks_of
from gainmtl_lib.data.layouts import IMAGE_SUFFIXES
from gainmtl_lib.efficientad.inference import Detector, ScoredPicture, picture_paths, score_pictures
from gainmtl_lib.efficientad.provider import build_provider
from gainmtl_lib.efficientad.settings import EfficientADSettings
from gainmtl_lib.files import atomic_path
from gainmtl_lib.reports.anomaly_drawing import drawn
from gainmtl_lib.runs import RunError

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
