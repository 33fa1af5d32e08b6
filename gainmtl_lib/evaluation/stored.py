"""What an evaluation left in a run's folder, read and checked before anything is stated from it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.efficientad.runs import EfficientADRun
from gainmtl_lib.runs import Run, RunError

AnyRun = Run | EfficientADRun

SPLITS = ("val", "test", "test_shift")
NEEDED = (
    "image", "mask", "split", "label", "defect_type", "group", "predicted", "verdict", "wrong_reason", "defect_area",
    "grid_iou",
)  # fmt: skip
"""Columns of predictions.csv without which there is no audit, and none to browse."""
NEEDED_OF = {
    Run: ("probability", "cam_iou", "point_game", "energy_inside"),
    EfficientADRun: ("anomaly_score", "anomaly_iou", "anomaly_point_game", "anomaly_energy_inside"),
}
"""Those of one system beside them."""
NOT_ON_DISK: dict[tuple[type, str], tuple[str, ...]] = {(EfficientADRun, "val"): ("TP", "FN")}
"""Verdicts that the summary counts and the table lacks: EfficientAD's validation defects are synthesised."""


def stored_tables(run: AnyRun, *, need_test: bool = True) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The run's predictions and summary.

    Args:
        run: finished, of either system.
        need_test: refuse an evaluation of the validation split alone.

    Raises:
        RunError: the run is not evaluated, or its files are damaged or do not belong together.
    """
    if not run.is_evaluated:
        raise RunError(f"{run.folder}: the run is trained but not evaluated; first: {_command(run)}")
    again = _again(run)
    try:
        table, metrics = run.predictions, run.metrics
    except ValueError as error:  # what pandas raises for a damaged file
        raise RunError(
            f"{run.folder / 'predictions.csv'}: cannot be read: {' '.join(str(error).split())}; {again}"
        ) from None
    missing = [name for name in (*NEEDED, *NEEDED_OF[type(run)]) if name not in table]
    if missing:
        raise RunError(f"{run.folder / 'predictions.csv'}: lacks {', '.join(missing)}; {again}")
    if need_test and not table["split"].isin(SPLITS[1:]).any():
        raise RunError(f"{run.folder / 'predictions.csv'}: holds no test picture; {again}")
    for split in SPLITS:
        _check_counts(run, split, table[table["split"] == split], metrics.get(split, {}), again)
    return table, metrics


def _check_counts(run: AnyRun, split: str, rows: pd.DataFrame, summary: dict[str, Any], again: str) -> None:
    """The table and the summary must be of the same evaluation, or the report would state neither."""
    missing = NOT_ON_DISK.get((type(run), split), ())
    for name in ("TP", "FP", "FN", "TN"):
        counted, stored = int((rows["verdict"] == name).sum()), summary.get(name, 0)
        if counted != stored and name not in missing:
            raise RunError(
                f"{run.folder}: predictions.csv and metrics.json do not belong together "
                f"({split}: {counted} {name} and {stored}); {again}"
            )


def stored_cams(run: Run, count: int) -> NDArray:
    """The run's CAMs, (N, h, w), opened and not read.

    Raises:
        RunError: they are damaged, or are not those of `count` predictions.
    """
    return stored_maps(run, count)["cam"]


def stored_maps(run: AnyRun, count: int) -> dict[str, NDArray]:
    """All maps of an evaluated run by name, (N, h, w) each, opened and not read.

    Raises:
        RunError: some are damaged, or are not those of `count` predictions.
    """
    again = _again(run)
    try:
        maps = run.maps
    except (ValueError, EOFError, OSError) as error:
        raise RunError(f"{run.folder / 'maps'}: cannot be read: {error}; {again}") from None
    for name, values in maps.items():
        if values.ndim != 3 or len(values) != count:
            shape = " x ".join(map(str, values.shape))
            raise RunError(f"{run.folder / 'maps'}: {name}.npy is {shape} for {count} predictions; {again}")
    return maps


def file_digest(path: Path) -> str:
    """SHA-256 of a file, by which what was measured of it tells what it belongs to; empty where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _again(run: AnyRun) -> str:
    return f"evaluate again: {_command(run)} --force"


def _command(run: AnyRun) -> str:
    return f"gainmtl evaluate {run.folder}"
