"""What validation decides, and from one row per image the numbers of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from gainmtl_lib.decisions import (
    OFF_THE_DEFECT_IOU,
    choose_threshold,
    classification,
    novelty_threshold,
    verdicts,
)
from gainmtl_lib.efficientad.predictions import SplitPredictions
from gainmtl_lib.efficientad.runs import MAP, EfficientADRun
from gainmtl_lib.map_scale import fit_scale

MEANS = ("anomaly_iou", "grid_iou", "anomaly_point_game", "anomaly_energy_inside")
"""Columns whose mean over images with an answer is reported under the same name."""

SHOWN = {
    "auroc": "image AUROC",
    "average_precision": "AP",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "f1": "F1",
}
"""Metrics of a table of categories, and how its columns are headed."""


def decided_on(val: SplitPredictions) -> dict[str, Any]:
    """Threshold, novelty threshold and absolute scale of the map, from validation with its anomalies."""
    labels, scores = (val.table[name].to_numpy() for name in ("label", "anomaly_score"))
    scale = fit_scale(val.maps, labels)
    return {
        "threshold": choose_threshold(labels, scores, near=None),
        "threshold_from": "validation with its anomalies, highest F1",
        "novelty_threshold": novelty_threshold(scores[labels == 0]),
        "map_scales": {} if scale is None else {MAP: asdict(scale)},
    }


def add_verdicts(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Columns ``predicted``, ``verdict`` and ``wrong_reason``: a defect that was found, by a map that lies off it."""
    predicted = (table["anomaly_score"] >= threshold).astype(int)
    verdict = pd.Series(verdicts(table["label"].to_numpy(), predicted.to_numpy()), index=table.index, dtype=object)
    off = (table["anomaly_iou"] < OFF_THE_DEFECT_IOU) & (table["anomaly_point_game"] < 0.5)
    decided = {"predicted": predicted, "verdict": verdict, "wrong_reason": (verdict == "TP") & off}
    place = list(table.columns).index("anomaly_score") + 1
    columns = [*table.columns[:place], *decided, *table.columns[place:]]
    return table.assign(**decided)[columns]


def summarise(table: pd.DataFrame, predictions: SplitPredictions) -> dict[str, Any]:
    """The numbers of one split; one without an answer is NaN.

    Args:
        table: rows of the split, with verdicts. Defective images without a mask have no answer: ``skipped``.
        predictions: of the same split, for what its table cannot say.
    """
    counts = table["verdict"].value_counts()
    answered = table["anomaly_iou"].notna()
    found = (table["verdict"] == "TP") & answered
    return {
        "images": len(table),
        "normal": int((table["label"] == 0).sum()),
        "defective": int((table["label"] == 1).sum()),
        "annotated": int(answered.sum()),
        "skipped": int(((table["label"] == 1) & ~answered).sum()),
        **{name: int(counts.get(name, 0)) for name in ("TP", "FP", "FN", "TN")},
        **classification(*(table[name].to_numpy() for name in ("label", "predicted", "anomaly_score"))),
        "pixel_auroc": predictions.pixel_auroc,
        "aupro": predictions.aupro,
        **{name: float(table[name].mean()) for name in MEANS},
        "wrong_reason": int(table["wrong_reason"].sum()),
        "wrong_reason_rate": float(table.loc[found, "wrong_reason"].mean()),
    }


def category_table(runs: Sequence[EfficientADRun]) -> pd.DataFrame:
    """Test metrics of evaluated runs, one row per category (where there is none, per experiment), then their ``mean``.

    A metric that one category has no answer for is the mean over the others.
    """
    names = [run.settings.category or run.settings.experiment for run in runs]
    values = [{heading: run.metrics["test"][name] for name, heading in SHOWN.items()} for run in runs]
    table = pd.DataFrame(values, index=pd.Index(names, name="category"), dtype=float)
    table.loc["mean"] = table.mean()
    return table
