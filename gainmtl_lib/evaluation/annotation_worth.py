"""What masks are worth: rows that differ in how many masks they were trained with, and in how good these were."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gainmtl_lib.evaluation.paired import rows_table
from gainmtl_lib.evaluation.planned import PlannedRun, split_tables
from gainmtl_lib.settings import Settings

QUALITY_NAMES = {"box": "boxes", "dilated": "dilated masks", "shifted": "shifted masks"}
SCORES = {
    "accuracy": ("accuracy", "test"),
    "accuracy_shift": ("accuracy", "test_shift"),
    "cam_iou": ("cam_iou", "test"),
}
"""Column to metric and split."""


def kind_of(settings: Settings) -> str:
    """A run's annotation in words: ``no masks``, ``5 % of the masks``, ``all masks``, ``boxes``, …"""
    share, quality = settings.mask_share, settings.mask_quality
    if share == 0:
        return "no masks"
    name = "masks" if quality == "exact" else QUALITY_NAMES[quality]
    if share == 1:
        return "all masks" if quality == "exact" else name
    return f"{100 * share:g} % of the {name}"


def annotation_table(runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """One row per kind of annotation and strategy: few masks to all of them, then worse ones.

    Returns:
        Index ``row``; ``kind``, ``strategy``, ``seeds`` and, of each name of `SCORES` whose split the data has, its
        mean over seeds and the interval ``<name>_low``, ``<name>_high`` over other pictures.
    """
    settings = {run.row: run.run.settings for run in runs}
    order = sorted(settings, key=lambda row: _place(settings[row]))
    table = pd.DataFrame({"kind": [kind_of(settings[row]) for row in order]}, index=pd.Index(order, name="row"))
    table["strategy"] = [settings[row].strategy for row in order]
    for name, (metric, split) in SCORES.items():
        tables = split_tables(runs, split)
        if tables:
            scores = rows_table(tables, metric).set_index("row")
            table[name], table[f"{name}_low"], table[f"{name}_high"] = scores["mean"], scores["low"], scores["high"]
    table["seeds"] = pd.Series([run.row for run in runs]).value_counts()
    return table


def _place(settings: Settings) -> tuple[int, float, str]:
    qualities = ["exact", *QUALITY_NAMES]
    return qualities.index(settings.mask_quality) if settings.mask_share else 0, settings.mask_share, settings.strategy
