"""From one row per image to the numbers of a split."""

from __future__ import annotations

from typing import Any

import pandas as pd

from gainmtl_lib.decisions import OFF_THE_DEFECT_IOU, classification, verdicts
from gainmtl_lib.evaluation.predict import SplitPredictions

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


def add_verdicts(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Columns that depend on the threshold: ``predicted``, ``verdict``, flips, and ``wrong_reason``.

    ``wrong_reason``: a defect that was found although the CAM lies off it. Flips are asked of defects that
    were found (NaN elsewhere): does suppressing the defect, or the same mask off it, turn the verdict?
    """
    table = table.copy()
    table["predicted"] = (table["probability"] >= threshold).astype(int)
    table["verdict"] = verdicts(table["label"].to_numpy(), table["predicted"].to_numpy())
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
    counts = table["verdict"].value_counts()
    found = (table["verdict"] == "TP") & table["cam_iou"].notna()
    summary: dict[str, Any] = {
        "images": len(table),
        "normal": int((table["label"] == 0).sum()),
        "defective": int((table["label"] == 1).sum()),
        "annotated": int(table["cam_iou"].notna().sum()),
        "skipped": int(((table["label"] == 1) & table["cam_iou"].isna()).sum()),
        **{name: int(counts.get(name, 0)) for name in ("TP", "FP", "FN", "TN")},
        **classification(*(table[name].to_numpy() for name in ("label", "predicted", "probability"))),
        **{name: float(table[name].mean()) for name in MEANS if name in table},
        "wrong_reason": int(table["wrong_reason"].sum()),
        "wrong_reason_rate": float(table.loc[found, "wrong_reason"].mean()),
    }
    for name in ("cf_flip", "cf_control_flip"):
        if name in table:
            summary[f"{name}_rate"] = float(table[name].mean())
            summary[f"{name}_asked"] = int(table[name].notna().sum())
    return summary | predictions.pooled
