"""How many pictures to edit: rows that differ in `image_counterfactual`, from none to all."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gainmtl_lib.data.edits.counterfactuals import cue_left
from gainmtl_lib.evaluation.planned import PlannedRun
from gainmtl_lib.evaluation.study_tables import scores_of_rows
from gainmtl_lib.parameters import SettingsError


def edited_share_table(runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """One row per share of edited training pictures, from few to many.

    Returns:
        Index ``share``; ``cue_left`` (see there), ``strategy``, and the columns of `scores_of_rows`.

    Raises:
        SettingsError: two rows have the same share.
    """
    rows: dict[float, PlannedRun] = {}
    for run in runs:
        share = run.run.settings.image_counterfactual
        if rows.setdefault(share, run).row != run.row:
            raise SettingsError(
                f"rows {rows[share].row!r} and {run.row!r} both have image_counterfactual {share:g}; keep one"
            )
    shares = sorted(rows)
    table = scores_of_rows(runs).loc[[rows[share].row for share in shares]].set_axis(pd.Index(shares, name="share"))
    table.insert(0, "cue_left", [cue_left(share) for share in shares])
    table.insert(1, "strategy", [rows[share].run.settings.strategy for share in shares])
    return table
