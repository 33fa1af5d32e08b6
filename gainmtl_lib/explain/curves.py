"""Figures of numbers: confusion, ROC and precision-recall, training curves, strategies side by side.

Every function returns a figure and shows nothing; none is pyplot's, which a notebook would show a second time.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay, confusion_matrix

SPLIT_NAMES = {"val": "validation", "test": "test (same distribution)", "test_shift": "test_shift (changed conditions)"}
SPLIT_COLORS = {"val": "#7f7f7f", "test": "#1f77b4", "test_shift": "#d62728"}


def classification_figure(predictions: pd.DataFrame, threshold: float) -> Figure:
    """Confusion matrix per test split, then ROC and precision-recall curves with the chosen threshold marked.

    Args:
        predictions: table of `evaluate`.
        threshold: the decision threshold, from validation.
    """
    splits = [split for split in ("test", "test_shift") if (predictions["split"] == split).any()]
    panels = len(splits) + 2
    figure = Figure(figsize=(3.1 * panels, 3.1), layout="constrained")
    axes = figure.subplots(1, panels)
    for axis, split in zip(axes, splits):
        rows = predictions[predictions["split"] == split]
        counts = confusion_matrix(rows["label"], rows["predicted"], labels=[0, 1])
        names = ["normal", "defective"]
        sns.heatmap(
            counts,
            annot=True,
            fmt="d",
            cmap="Blues",
            cbar=False,
            ax=axis,
            xticklabels=names,
            yticklabels=names,
            square=True,
        )
        axis.set_title(SPLIT_NAMES[split], fontsize=9)
        axis.set(xlabel=f"verdict at {threshold:.2f}", ylabel="truth")
    _curves(axes[-2], axes[-1], predictions, splits, threshold)
    return figure


def _curves(roc: Axes, pr: Axes, predictions: pd.DataFrame, splits: list[str], threshold: float) -> None:
    for split in splits:
        rows = predictions[predictions["split"] == split]
        if rows["label"].nunique() < 2:
            continue
        style = {"name": split, "curve_kwargs": {"color": SPLIT_COLORS[split]}}
        RocCurveDisplay.from_predictions(rows["label"], rows["probability"], ax=roc, **style)
        PrecisionRecallDisplay.from_predictions(rows["label"], rows["probability"], ax=pr, **style)
        called = rows["probability"] >= threshold
        recall = called[rows["label"] == 1].mean()
        roc.plot(called[rows["label"] == 0].mean(), recall, "o", color=SPLIT_COLORS[split])
        if called.any():
            pr.plot(recall, rows.loc[called, "label"].mean(), "o", color=SPLIT_COLORS[split])
    roc.set(title="ROC (dot: threshold)", xlabel="false alarm rate", ylabel="recall")
    pr.set(title="precision-recall (dot: threshold)", xlabel="recall", ylabel="precision", ylim=(0, 1.03))
    for axis in (roc, pr):
        axis.title.set_fontsize(9)
        if axis.get_legend_handles_labels()[0]:  # a split of one class has no curve
            axis.legend(fontsize=7, loc="lower right" if axis is roc else "lower left")


def training_figure(history: pd.DataFrame) -> Figure:
    """Loss terms by step with the stages shaded, and validation scores by epoch.

    Args:
        history: of a run, columns ``tag``, ``step``, ``value``.
    """
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    losses, scores = figure.subplots(1, 2, width_ratios=[1.15, 1])
    for tag, rows in history[history["tag"].str.startswith("train/loss_")].groupby("tag"):
        name = str(tag).removeprefix("train/loss_")
        style = {"label": "total (weighted)", "color": "k", "lw": 2} if name == "total" else {"label": name, "lw": 1}
        losses.plot(rows["step"], rows["value"].rolling(5, min_periods=1).mean(), **style)
    _shade_stages(losses, history[history["tag"] == "train/stage"])
    losses.set(xlabel="optimiser step", title="training losses (mean of 5 log entries)")
    losses.margins(y=0.12)
    losses.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    tags = {"val/average_precision": "AP", "val/accuracy": "accuracy at 0.5", "val/cam_iou": "CAM-IoU"}
    for tag, name in tags.items():
        values = history.loc[history["tag"] == tag, "value"]
        if len(values):
            scores.plot(np.arange(1, len(values) + 1), values, marker="o", ms=3, label=name)
    scores.set(xlabel="epoch", ylim=(0, 1.02), title="validation")
    scores.legend(fontsize=7)
    for axis in (losses, scores):
        axis.title.set_fontsize(9)
    return figure


def _shade_stages(axis: Axes, stages: pd.DataFrame) -> None:
    for stage in sorted(stages["value"].astype(int).unique()):
        steps = stages.loc[stages["value"] == stage, "step"]
        axis.axvspan(steps.min(), steps.max(), color="k", alpha=0.02 + 0.03 * (stage % 2), lw=0)
        place = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "top"}
        axis.text(steps.median(), 0.98, f"stage {stage}", fontsize=7, **place)


def strategies_figure(comparison: pd.DataFrame) -> Figure:
    """Accuracy on both test splits beside what the deciding CAM reaches, by strategy; dots are single runs.

    Args:
        comparison: of `ablation.compare`.
    """
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for split, rows in comparison.groupby("split"):
        mean = rows.groupby("strategy")["accuracy"].mean()
        left.plot(mean.index, mean, marker="o", color=SPLIT_COLORS[str(split)], label=SPLIT_NAMES[str(split)])
        left.scatter(rows["strategy"], rows["accuracy"], s=10, color=SPLIT_COLORS[str(split)], alpha=0.5)
    left.axhline(0.5, color="k", lw=0.7, ls=":")
    left.set(ylim=(0, 1.02), title="accuracy (dotted: a coin)")
    rows = comparison[comparison["split"] == "test"]
    for name, label in {
        "cam_iou": "CAM-IoU (deciding)",
        "attention_iou": "attention IoU",
        "loc_iou": "Loc-IoU",
    }.items():
        mean = rows.groupby("strategy")[name].mean()
        right.plot(mean.index, mean, marker="o", label=label)
    grid = rows.groupby("strategy")["grid_iou"].mean()
    right.plot(grid.index, grid, color="k", lw=0.8, ls="--", label="grid IoU (the mask itself)")
    right.set(ylim=(0, 1.02), title="agreement with the mask, test")
    for axis in (left, right):
        axis.legend(fontsize=7)
    return figure
