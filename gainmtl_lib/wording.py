"""What a metric is called, and how a number and a table are written: the same on the console, in notebooks and reports.

An estimate has ``value``, ``low`` and ``high``: a `gainmtl_lib.stats.Estimate`, or a row of a table.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

METRICS = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "auroc": "AUROC",
    "average_precision": "AP",
    "ece": "calibration error",
    "type_macro_f1": "type, macro F1",
    "type_accuracy": "type named right",
    "cam_iou": "CAM-IoU",
    "cam_iou_pooled": "CAM-IoU, pooled",
    "grid_iou": "grid IoU",
    "point_game": "PointGame",
    "energy_inside": "Energy-Inside",
    "wrong_reason_rate": "wrong-reason rate",
    "attention_iou": "attention IoU",
    "attention_point_game": "attention PointGame",
    "attention_energy_inside": "attention Energy-Inside",
    "loc_iou": "Loc-IoU",
    "loc_iou_pooled": "Loc-IoU, pooled",
    "loc_dice": "Dice",
    "loc_pixel_accuracy": "pixel accuracy",
    "loc_aupro": "AUPRO",
    "anomaly_iou": "map IoU",
    "anomaly_point_game": "map PointGame",
    "anomaly_energy_inside": "map Energy-Inside",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "cf_flip_rate": "flip",
    "cf_control_flip_rate": "control flip",
    "cf_excess": "flip − control flip",
    "image_flip": "healed flip",
    "image_flip_control": "healed control flip",
    "image_flip_excess": "healed flip − control",
    "paste_flip": "pasted flip",
    "paste_flip_control": "pasted control flip",
    "paste_flip_excess": "pasted flip − control",
    "counterfactual_accuracy": "accuracy, edited",
    "counterfactual_accuracy_val": "accuracy, edited validation",
    "accuracy_shift": "accuracy, test_shift",
    "drop": "drop",
    "auroc_shift": "AUROC, test_shift",
    "auroc_drop": "AUROC drop",
    "cue_energy": "energy on the cue",
    "cue_area": "area of the cue",
    "cue_excess": "energy on the cue − its area",
}
COMPARED = (
    "accuracy", "recall", "auroc", "cam_iou", "grid_iou", "attention_iou", "point_game", "energy_inside", "loc_iou",
    "cf_flip_rate", "cf_control_flip_rate",
)  # fmt: skip
"""What runs are compared by. Without the grid IoU a CAM-IoU cannot be judged."""

SPLIT_NAMES = {"val": "validation", "test": "test", "test_shift": "test_shift"}
NOTHING = "–"
PERCENT = "\u00a0%"  # with a space that does not break


def number(value: Any, digits: int = 3) -> str:
    """``0.123``, ``−0.500``; whole numbers as they are; a dash for what has no answer (None, NaN)."""
    if value is None or value != value:
        return NOTHING
    if isinstance(value, int):
        return str(value)
    rounded = round(value, digits) + 0.0  # adding 0 leaves no sign on what rounds to 0
    return f"{rounded:.{digits}f}".replace("-", "\u2212")


def signed(value: Any) -> str:
    """``+0.021`` or ``−0.021``; without a sign where it rounds to zero."""
    return f"+{number(value)}" if value is not None and round(value, 3) > 0 else number(value)


def percent(value: float | None) -> str:
    """A share in per cent, one decimal where it is not whole; a dash for no answer."""
    return NOTHING if value is None or value != value else f"{100 * value:.1f}".removesuffix(".0") + PERCENT


def interval(estimate: Any, show: Callable[[float], str] = number) -> str:
    """``0.942 (0.844 to 0.980)``; the number alone where no interval can be given. `show` writes a number."""
    if estimate.low != estimate.low or estimate.value != estimate.value:
        return show(estimate.value)
    return f"{show(estimate.value)} ({show(estimate.low)} to {show(estimate.high)})"


def of_count(estimate: Any) -> str:
    """``3 of 52``, for a share; it has ``hits`` and ``count``."""
    return NOTHING if estimate.hits is None else f"{estimate.hits} of {estimate.count}"


def probability(p: float) -> str:
    """A p-value: ``0.042``, ``< 0.001``, a dash for none."""
    return "< 0.001" if p < 0.0005 else number(p)


def plural(count: int, noun: str) -> str:
    """``1 picture``, ``2 pictures``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def join_words(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def summary_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """What an evaluation found, as text: a row for each number, a column for each split that it has."""
    splits = [split for split in SPLIT_NAMES if split in summary]
    table = pd.DataFrame({split: pd.Series(summary[split], dtype=object).map(number) for split in splits})
    return table.loc[list(summary[splits[0]])].rename_axis("metric")


def frame_table(title: str, rows: pd.DataFrame) -> Table:
    """A data frame for the console, its index as the first column."""
    table = Table(str(rows.index.name or ""), title=escape(title), title_justify="left")
    for column in rows.columns:
        table.add_column(escape(str(column)), justify="right")
    for name, *values in rows.itertuples(name=None):
        table.add_row(escape(str(name)), *(escape(_cell(value)) for value in values))
    return table


def markdown_table(rows: pd.DataFrame) -> list[str]:
    """The lines of a Markdown table, the frame's index as the first column."""
    lines = [[rows.index.name or "", *rows.columns], ["---"] * (rows.shape[1] + 1), *rows.itertuples(name=None)]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _cell(value: Any) -> str:
    """Four digits: a table holds shares and sizes beside each other."""
    return NOTHING if value is None or value != value else f"{value:.4g}" if isinstance(value, float) else str(value)
