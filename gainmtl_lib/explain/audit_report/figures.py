"""The report's figures, as data URIs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gainmtl_lib.evaluation.audit import Audit
from gainmtl_lib.explain.audit_report.thumbnails import figure_uri
from gainmtl_lib.explain.audit_report.wording import SPLITS
from gainmtl_lib.explain.curves import classification_figure

ESCAPES, OVERKILL = "#b3261e", "#1f5fa8"


def report_figures(audit: Audit) -> dict[str, str]:
    """``classification``: confusion, ROC, precision-recall. ``trade_off``: escapes and overkill over the threshold."""
    return {
        "classification": figure_uri(classification_figure(audit.table, audit.threshold)),
        "trade_off": figure_uri(trade_off_figure(audit)),
    }


def trade_off_figure(audit: Audit) -> Figure:
    """Escapes and overkill of every evaluated split over the threshold, with the thresholds in question."""
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    axes = figure.subplots(1, len(audit.splits), sharey=True, squeeze=False)
    for axis, split in zip(axes[0], audit.splits):
        thresholds, escapes, overkill = error_rates(audit.rows(split))
        axis.step(thresholds, escapes, where="post", color=ESCAPES, label="escapes (of the defects)")
        axis.step(thresholds, overkill, where="post", color=OVERKILL, ls="--", label="overkill (of the normals)")
        axis.axvline(audit.threshold, color="k", lw=0.8, label="decision threshold")
        if audit.choice.threshold is not None:
            name = f"for recall {audit.choice.required:g}"
            axis.axvline(audit.choice.threshold, color="k", lw=0.8, ls=":", label=name)
        axis.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="threshold on p(defect)")
        axis.set_title(SPLITS[split], fontsize=9)
    axes[0, 0].set_ylabel("share")
    axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def error_rates(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds where something changes, and escape and overkill rate from each on (NaN without that class).

    A picture is called defective from the threshold on, so that raising it past a score lets that picture pass.
    """
    thresholds = np.append(0.0, np.nextafter(np.unique(rows["probability"]), 2))
    rates = []
    for label in (1, 0):
        scores = np.sort(rows.loc[rows["label"] == label, "probability"])
        below = np.searchsorted(scores, thresholds, side="left") / len(scores) if len(scores) else np.nan * thresholds
        rates.append(below)
    escapes, overkill = rates[0], 1 - rates[1]
    return np.append(thresholds, 1.0), np.append(escapes, escapes[-1]), np.append(overkill, overkill[-1])
