"""Figures of EfficientAD: its training, its scores, and its three maps beside each other.

Every function returns a figure and shows nothing; none is pyplot's, which a notebook would show a second time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from gainmtl_lib.efficientad.losses import TERMS
from gainmtl_lib.efficientad.model import BORDER, EfficientADModel
from gainmtl_lib.explain.curves import SPLIT_NAMES
from gainmtl_lib.explain.plots import map_grid
from gainmtl_lib.map_scale import MapScale
from gainmtl_lib.records import Batch

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
