"""The EfficientAD runs of an experiment, to stand below its strategies: a table, and maps of the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from gainmtl_lib.efficientad.provider import build_provider
from gainmtl_lib.efficientad.runs import EfficientADRun, load_efficientad
from gainmtl_lib.explain.anomaly_figures import anomaly_maps_figure
from gainmtl_lib.explain.pictures import pick_rows
from gainmtl_lib.runs import EFFICIENTAD, run_status

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
