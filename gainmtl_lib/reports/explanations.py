"""``gainmtl explain``: what a run says of pictures from anywhere, as figures and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.devices import checked_device
from gainmtl_lib.evaluation.mask_source import MaskSource
from gainmtl_lib.explain.explainer import DefectExplainer
from gainmtl_lib.explain.explanation import Explanation
from gainmtl_lib.reports.tables import number
from gainmtl_lib.runs import load_run, write_json

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
