"""Scores of one split, each with its interval, from the table of predictions.

Sizes: N pictures.
"""

from __future__ import annotations

from math import nan

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from gainmtl_lib.evaluation.intervals import (
    Estimate,
    group_codes,
    mean_score,
    paired_difference,
    proportion,
    resampled,
)
from gainmtl_lib.evaluation.summary import MEANS


def split_scores(rows: pd.DataFrame) -> dict[str, Estimate]:
    """Verdicts, ranking and explanation of one split under the names that `summarise` gives them.

    Args:
        rows: of `evaluate`'s table. Scores that the strategy lacks are absent; one without an answer is NaN.
    """
    groups = group_codes(rows)
    labels, called = rows["label"].to_numpy(), rows["predicted"].to_numpy()
    prob = rows["probability"].to_numpy()
    scores = {
        "accuracy": proportion(labels == called, groups),
        "precision": proportion(labels[called == 1], groups[called == 1]),
        "recall": proportion(called[labels == 1], groups[labels == 1]),
        "f1": resampled(lambda chosen: f1(labels[chosen], called[chosen]), groups, strata=labels),
        "auroc": resampled(lambda chosen: auroc(labels[chosen], prob[chosen]), groups, strata=labels),
        "average_precision": resampled(
            lambda chosen: average_precision(labels[chosen], prob[chosen]), groups, strata=labels
        ),
    }
    scores |= {name: mean_score(rows[name].to_numpy(), groups) for name in MEANS if name in rows}
    found = ((rows["verdict"] == "TP") & rows["cam_iou"].notna()).to_numpy()
    scores["wrong_reason_rate"] = proportion(rows["wrong_reason"].to_numpy()[found], groups[found])
    return scores | flip_scores(rows, groups)


def flip_scores(rows: pd.DataFrame, groups: NDArray) -> dict[str, Estimate]:
    """How often the verdict flips without the defect, how often in the control, and by how much more it does.

    The difference is over the pictures that were asked both. Nothing where the strategy has no counterfactual.
    """
    if "cf_flip" not in rows or "cf_control_flip" not in rows:
        return {}
    flip, control = (rows[name].to_numpy(dtype=float) for name in ("cf_flip", "cf_control_flip"))
    asked = ~np.isnan(flip) & ~np.isnan(control)
    return {
        "cf_flip_rate": mean_score(flip, groups),
        "cf_control_flip_rate": mean_score(control, groups),
        "cf_excess": paired_difference(flip[asked], control[asked], groups[asked]),
    }


def f1(labels: NDArray, called: NDArray) -> float:
    """Of verdicts 0 and 1, both (N,); NaN where neither a defect nor a defective verdict is among them."""
    total = labels.sum() + called.sum()
    return float(2 * (labels * called).sum() / total) if total else nan


def auroc(labels: NDArray, scores: NDArray) -> float:
    """Share of (defective, normal) pairs in the right order, ties half (Mann and Whitney); NaN for one class.

    That of scikit-learn, without the checks that would make up most of the time of thousands of resamples.
    """
    defects = int(labels.sum())
    normals = len(labels) - defects
    if not defects or not normals:
        return nan
    ranks = stats.rankdata(scores)
    return float((ranks[labels == 1].sum() - defects * (defects + 1) / 2) / (defects * normals))


def average_precision(labels: NDArray, scores: NDArray) -> float:
    """Precision at each distinct score, weighted by the recall that it adds; NaN without a defect.

    That of scikit-learn, like `auroc`.
    """
    if not labels.any() or labels.all():
        return nan
    order = np.argsort(-scores, kind="stable")
    hits = labels[order].cumsum()
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # equal scores are called together
    return float((np.diff(hits[ends], prepend=0) * hits[ends] / (ends + 1)).sum() / hits[-1])
