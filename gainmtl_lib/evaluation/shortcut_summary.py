"""What each strategy keeps of its accuracy when the cue is reversed.

Tables are those of `shortcut_study.Study.table`: one row per run.
"""

from __future__ import annotations

import pandas as pd

from gainmtl_lib.evaluation.shortcut_settings import NO_SHORTCUT

GOAL = 0.02
"""Accuracy that the best strategy may lose when the cue is reversed."""
MARGIN = 1e-9
"""For rounding: 0.86 − 0.84 is more than 0.02."""


def followed(table: pd.DataFrame) -> pd.DataFrame:
    """The runs whose cue goes along with the class, and that were tested with it reversed.

    Of the cells and seeds that every strategy has: means over different cells could not be compared.
    """
    rows = table[(table["correlation"] > NO_SHORTCUT) & table["drop"].notna()]
    asked = rows["strategy"].drop_duplicates()
    of_cell = rows.groupby(["cue", "correlation", "seed"])["strategy"].transform("size")
    return rows[of_cell == len(asked)]


def by_strategy(table: pd.DataFrame) -> pd.DataFrame:
    """What each strategy keeps, over the runs with a cue to follow.

    Returns:
        Index ``strategy``; ``runs``; mean ``accuracy`` as in training, ``accuracy_shift`` with the cue reversed and its
        ``worst_shift``; mean ``drop`` and ``worst_drop``; mean ``cam_iou``; ``met``, in how many runs the drop is at
        most `GOAL`.
    """
    rows = followed(table)
    return (
        rows.assign(met=rows["drop"] <= GOAL + MARGIN)
        .groupby("strategy")
        .agg(
            runs=("drop", "size"),
            accuracy=("accuracy", "mean"),
            accuracy_shift=("accuracy_shift", "mean"),
            worst_shift=("accuracy_shift", "min"),
            drop=("drop", "mean"),
            worst_drop=("drop", "max"),
            cam_iou=("cam_iou", "mean"),
            met=("met", "sum"),
        )
    )


def best_strategy(table: pd.DataFrame) -> str | None:
    """The one that is most accurate with the cue reversed, over the runs with a cue to follow; the simplest of ties."""
    means = by_strategy(table)["accuracy_shift"]
    return None if means.empty else str(means.idxmax())
