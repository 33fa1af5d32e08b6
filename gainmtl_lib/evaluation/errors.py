"""Which pictures to look at first: missed defects, then defects found for the wrong reason, then false alarms."""

from __future__ import annotations

import pandas as pd

KINDS = {
    "missed": "defective, called normal",
    "wrong reason": "found, but the CAM lies off the defect",
    "false alarm": "normal, called defective",
}


def error_analysis(predictions: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """The images of one split that need a look, most urgent first.

    Missed defects come first (lowest probability first: the surest mistakes), then the right verdicts whose
    CAM is off the defect (lowest energy inside first), then false alarms (highest probability first).

    Args:
        predictions: table of `evaluate`.
        split: which split.

    Returns:
        The table's rows with a first column ``kind``, one of `KINDS`.
    """
    rows = predictions[predictions["split"] == split]
    parts = {
        "missed": rows[rows["verdict"] == "FN"].sort_values("probability"),
        "wrong reason": rows[rows["wrong_reason"]].sort_values("energy_inside"),
        "false alarm": rows[rows["verdict"] == "FP"].sort_values("probability", ascending=False),
    }
    found = [part.assign(kind=kind) for kind, part in parts.items() if len(part)]
    table = pd.concat(found, ignore_index=True) if found else rows.iloc[:0].assign(kind=pd.Series(dtype=str))
    return table[["kind", *(column for column in table.columns if column != "kind")]]
