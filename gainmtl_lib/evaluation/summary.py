"""From one row per image to the numbers of a split, and the threshold that the decision uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_auroc,
    binary_average_precision,
    binary_f1_score,
    binary_precision,
    binary_recall,
)

from gainmtl_lib.evaluation.predict import SplitPredictions

OFF_THE_DEFECT_IOU = 0.1
"""A CAM whose maximum misses the defect and whose IoU is below this counts as off the defect."""

MEANS = (
    "cam_iou",
    "grid_iou",
    "point_game",
    "energy_inside",
    "attention_iou",
    "attention_point_game",
    "attention_energy_inside",
    "loc_iou",
    "loc_dice",
    "loc_pixel_accuracy",
)
"""Columns whose mean over images with an answer is reported under the same name."""


def choose_threshold(labels: np.ndarray, probability: np.ndarray) -> float:
    """Defect probability from which an image is called defective: the highest F1, ties nearest to 0.5.

    Candidates lie midway between neighbouring scores, so that the cut keeps a margin to both.

    Args:
        labels: 0 or 1, (N,), of the validation split; never of a test split.
        probability: of class 1, (N,).
    """
    scores = np.unique(probability)
    if len(scores) < 2 or labels.min() == labels.max():
        return 0.5
    candidates = (scores[1:] + scores[:-1]) / 2
    predicted = probability[None, :] >= candidates[:, None]
    hits = (predicted & (labels == 1)).sum(axis=1)
    f1 = 2 * hits / (predicted.sum(axis=1) + (labels == 1).sum())
    best = candidates[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def add_verdicts(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Columns that depend on the threshold: ``predicted``, ``verdict``, flips, and ``wrong_reason``.

    ``wrong_reason``: a defect that was found although the CAM lies off it. Flips are asked of defects that
    were found (NaN elsewhere): does suppressing the defect, or the same mask off it, turn the verdict?
    """
    table = table.copy()
    table["predicted"] = (table["probability"] >= threshold).astype(int)
    names = {(1, 1): "TP", (0, 1): "FP", (1, 0): "FN", (0, 0): "TN"}
    table["verdict"] = [names[pair] for pair in zip(table["label"], table["predicted"])]
    found = (table["verdict"] == "TP") & table["cam_iou"].notna()
    table["wrong_reason"] = found & (table["cam_iou"] < OFF_THE_DEFECT_IOU) & (table["point_game"] < 0.5)
    for name in ("cf", "cf_control"):
        if f"{name}_probability" in table:
            score = table[f"{name}_probability"]
            table[f"{name}_flip"] = (score < threshold).astype(float).where(found & score.notna())
    return table


def summarise(table: pd.DataFrame, predictions: SplitPredictions) -> dict[str, Any]:
    """The numbers of one split; a metric that the strategy or the data lacks is absent, one without an answer NaN.

    Args:
        table: rows of the split, with verdicts. Defective images without a mask have no answer: ``skipped``.
        predictions: of the same split, for what its table cannot say.
    """
    verdicts = table["verdict"].value_counts()
    found = (table["verdict"] == "TP") & table["cam_iou"].notna()
    summary: dict[str, Any] = {
        "images": len(table),
        "normal": int((table["label"] == 0).sum()),
        "defective": int((table["label"] == 1).sum()),
        "annotated": int(table["cam_iou"].notna().sum()),
        "skipped": int(((table["label"] == 1) & table["cam_iou"].isna()).sum()),
        **{name: int(verdicts.get(name, 0)) for name in ("TP", "FP", "FN", "TN")},
        **classification(table),
        **{name: float(table[name].mean()) for name in MEANS if name in table},
        "wrong_reason": int(table["wrong_reason"].sum()),
        "wrong_reason_rate": float(table.loc[found, "wrong_reason"].mean()),
    }
    for name in ("cf_flip", "cf_control_flip"):
        if name in table:
            summary[f"{name}_rate"] = float(table[name].mean())
            summary[f"{name}_asked"] = int(table[name].notna().sum())
    return summary | predictions.pooled


def classification(table: pd.DataFrame) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of the verdicts; AUROC and AP of the probabilities (NaN for one class)."""
    labels = torch.tensor(table["label"].to_numpy())
    predicted = torch.tensor(table["predicted"].to_numpy())
    prob = torch.tensor(table["probability"].to_numpy())
    both = labels.min() != labels.max()
    return {
        "accuracy": float(binary_accuracy(predicted, labels)),
        "precision": float(binary_precision(predicted, labels)),
        "recall": float(binary_recall(predicted, labels)),
        "f1": float(binary_f1_score(predicted, labels)),
        "auroc": float(binary_auroc(prob, labels)) if both else float("nan"),
        "average_precision": float(binary_average_precision(prob, labels)) if both else float("nan"),
    }
