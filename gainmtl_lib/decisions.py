"""From scores to decisions: the threshold chosen on validation, the verdicts, and how good they are.

N images. A score is higher the more a picture looks defective: a probability, or an anomaly score of any range.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_auroc,
    binary_average_precision,
    binary_f1_score,
    binary_precision,
    binary_recall,
)

OFF_THE_DEFECT_IOU = 0.1
"""A map whose maximum misses the defect and whose IoU is below this counts as off the defect."""

FALSE_ALARMS = 0.05
"""Share of new normal pictures that may be called unlike the normal ones."""

_VERDICTS = {(1, 1): "TP", (0, 1): "FP", (1, 0): "FN", (0, 0): "TN"}


def choose_threshold(labels: NDArray, scores: NDArray, *, near: float | None = 0.5) -> float:
    """Score from which an image is called defective: the highest F1.

    Candidates lie midway between neighbouring scores, so that the cut keeps a margin to both.

    Args:
        labels: 0 or 1, (N,), of the validation split; never of a test split.
        scores: (N,).
        near: which of several equally good candidates is taken: the nearest to this value; None for scores without
            a natural middle takes the one with the widest margin.

    Returns:
        Where there is nothing to choose (one class, or all scores equal): `near`, without it the highest score.
    """
    values = np.unique(scores)
    if len(values) < 2 or labels.min() == labels.max():
        return float(values[-1]) if near is None else near
    candidates = (values[1:] + values[:-1]) / 2
    predicted = scores[None, :] >= candidates[:, None]
    hits = (predicted & (labels == 1)).sum(axis=1)
    f1 = 2 * hits / (predicted.sum(axis=1) + (labels == 1).sum())
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    chosen = np.diff(values)[best].argmax() if near is None else np.abs(candidates[best] - near).argmin()
    return float(candidates[best[chosen]])


def novelty_threshold(normal_scores: NDArray, *, false_alarms: float = FALSE_ALARMS) -> float:
    """Anomaly score above which a picture is unlike the normal ones: their conformal quantile.

    A new normal picture exceeds it with a probability of at most `false_alarms`, whatever the scores' distribution,
    once there are 1 / false_alarms - 1 of them (Vovk, Gammerman, Shafer 2005); with fewer it is the highest score.

    Args:
        normal_scores: of the normal validation pictures, (N,), at least one.
        false_alarms: in (0, 1).
    """
    rank = math.ceil((len(normal_scores) + 1) * (1 - false_alarms))
    return float(np.sort(normal_scores)[min(rank, len(normal_scores)) - 1])


def verdicts(labels: NDArray, predicted: NDArray) -> list[str]:
    """TP, FP, FN or TN of each image."""
    return [_VERDICTS[int(label), int(call)] for label, call in zip(labels, predicted, strict=True)]


def classification(labels: NDArray, predicted: NDArray, scores: NDArray) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of the verdicts; AUROC and AP of the scores (NaN for one class).

    Args:
        labels: 0 or 1, (N,).
        predicted: 0 or 1, (N,).
        scores: (N,), of any range.
    """
    truth, calls = torch.tensor(labels), torch.tensor(predicted)
    both = truth.min() != truth.max()
    ranks = _ranks(scores)
    return {
        "accuracy": float(binary_accuracy(calls, truth)),
        "precision": float(binary_precision(calls, truth)),
        "recall": float(binary_recall(calls, truth)),
        "f1": float(binary_f1_score(calls, truth)),
        "auroc": float(binary_auroc(ranks, truth)) if both else float("nan"),
        "average_precision": float(binary_average_precision(ranks, truth)) if both else float("nan"),
    }


def _ranks(scores: NDArray) -> torch.Tensor:
    """The order of the scores as values in [0, 1]: torchmetrics puts others through a sigmoid, which makes ties."""
    _, place = np.unique(scores, return_inverse=True)
    return torch.as_tensor(place / max(int(place.max(initial=0)), 1), dtype=torch.float64)
