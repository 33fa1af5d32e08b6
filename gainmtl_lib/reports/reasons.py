"""``gainmtl evaluate --reasons``: what a run's verdicts rest on, asked of its own test pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console

from gainmtl_lib.evaluation.early_warning import SIGNS
from gainmtl_lib.reports.tables import frame_table, number

ABOUT = (
    "Flips are shares of verdicts that turn, less those that turn in the control; on edited pictures a coin has 0.5. "
    "No limit is known beyond which a run is safe: compare runs on the same data. In this project's shortcut studies "
    "healed flips and accuracy on edited pictures warned, accuracy did not."
)
NO_EDITS = "No defect of the test split could be healed or pasted: flips and accuracy on edited pictures are missing."


def reasons_table(measured: Mapping[str, Any]) -> pd.DataFrame:
    """The indicators that may warn without a shifted test set, as text.

    Args:
        measured: of `measure_indicators`.

    Returns:
        Index ``indicator`` in words, the order of `SIGNS`; ``value``, ``95 % interval``, ``pictures``, ``warns when``
        (low or high) and ``because``. What the run lacks is left out.
    """
    lines = {}
    for name, sign in SIGNS.items():
        if (found := measured["indicators"].get(name)) is not None:
            ends = [number(found[end]) for end in ("low", "high")]
            lines[sign.heading] = {
                "value": number(found["value"]),
                "95 % interval": "–" if "–" in ends else " to ".join(ends),
                "pictures": found["count"],
                "warns when": sign.warns,
                "because": sign.why,
            }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("indicator")


def print_reasons(console: Console, measured: Mapping[str, Any]) -> None:
    """The table, how to read it, and which edits were impossible."""
    console.print(frame_table("what the verdicts rest on (test)", reasons_table(measured)))
    console.print(ABOUT)
    if "counterfactual_accuracy" not in measured["indicators"]:
        console.print(NO_EDITS)
    if measured["left_out"]:
        told = ", ".join(f"{kind} ({count})" for kind, count in measured["left_out"].items())
        console.print(f"edits that were impossible: {told}")
