"""What masks are worth: rows that differ in how many masks they were trained with, and in how good these were."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gainmtl_lib.evaluation.planned import PlannedRun
from gainmtl_lib.evaluation.study_tables import scores_of_rows
from gainmtl_lib.settings import Settings

QUALITY_NAMES = {"box": "boxes", "dilated": "dilated masks", "shifted": "shifted masks"}


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
        Index ``row``; ``kind``, ``strategy``, and the columns of `scores_of_rows`.
    """
    settings = {run.row: run.run.settings for run in runs}
    order = sorted(settings, key=lambda row: _place(settings[row]))
    table = scores_of_rows(runs).loc[order]
    table.insert(0, "kind", [kind_of(settings[row]) for row in order])
    table.insert(1, "strategy", [settings[row].strategy for row in order])
    return table


def _place(settings: Settings) -> tuple[int, float, str]:
    qualities = ["exact", *QUALITY_NAMES]
    return qualities.index(settings.mask_quality) if settings.mask_share else 0, settings.mask_share, settings.strategy
