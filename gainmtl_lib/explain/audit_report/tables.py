"""The report's tables: which score stands in which row, and beside what it is to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from gainmtl_lib.evaluation.audit import Audit
from gainmtl_lib.evaluation.intervals import Estimate, difference
from gainmtl_lib.explain.audit_report.wording import join_words

DECISION = {
    "recall": "recall",
    "precision": "precision",
    "accuracy": "accuracy",
    "f1": "F1",
    "auroc": "AUROC",
    "average_precision": "AP",
}

FLIPS = {
    "cf_flip_rate": "verdict flips with the defect suppressed",
    "cf_control_flip_rate": "control: the same area off the defect",
    "cf_excess": "flip minus control",
}


@dataclass(frozen=True)
class Reading:
    """A score of one split and the number that it is to be read beside (NaN for none)."""

    estimate: Estimate
    beside: float = nan


@dataclass(frozen=True)
class ScoreRow:
    """One score.

    Attributes:
        part: which map it is of.
        label: its name.
        beside: what the second number is.
        readings: by split.
    """

    part: str
    label: str
    beside: str
    readings: dict[str, Reading]


@dataclass(frozen=True)
class ShiftRow:
    """One score on both test splits.

    Attributes:
        label: its name.
        test: on ``test``.
        shift: on ``test_shift``.
        drop: test − test_shift.
    """

    label: str
    test: Estimate
    shift: Estimate
    drop: Estimate

    @property
    def words(self) -> str:
        """What the interval of the drop says of ``test_shift``."""
        if not self.drop.has_interval:
            return "no interval"
        return "lower" if self.drop.low > 0 else "higher" if self.drop.high < 0 else "no clear change"


# What each score is read beside: the IoU that the mask itself reaches on the grid, what a point or energy spread
# evenly over the picture would score (the defect's share of it), what an empty mask would score.
_GRID, _EVEN, _EMPTY = "grid IoU", "even spread", "empty mask"
_EXPLANATION = (
    ("deciding CAM", "CAM-IoU", "cam_iou", _GRID),
    ("deciding CAM", "CAM-IoU, pooled", "cam_iou_pooled", ""),
    ("deciding CAM", "PointGame", "point_game", _EVEN),
    ("deciding CAM", "Energy-Inside", "energy_inside", _EVEN),
    ("attention", "IoU", "attention_iou", _GRID),
    ("attention", "PointGame", "attention_point_game", _EVEN),
    ("attention", "Energy-Inside", "attention_energy_inside", _EVEN),
    ("localization", "IoU", "loc_iou", ""),
    ("localization", "IoU, pooled", "loc_iou_pooled", ""),
    ("localization", "Dice", "loc_dice", ""),
    ("localization", "pixel accuracy", "loc_pixel_accuracy", _EMPTY),
    ("localization", "AUPRO", "loc_aupro", ""),
)


def explanation_rows(audit: Audit) -> list[ScoreRow]:
    """Agreement of every map with the masks; scores that the strategy or the data lacks are left out."""
    rows = []
    for part, label, name, beside in _EXPLANATION:
        readings = {
            split: Reading(_estimate(audit, split, name), _beside(audit, split, beside)) for split in audit.splits
        }
        if any(reading.estimate.value == reading.estimate.value for reading in readings.values()):
            rows.append(ScoreRow(part, label, beside, readings))
    return rows


@dataclass(frozen=True)
class FaithfulnessRow:
    """One measure of faithfulness.

    Attributes:
        label: its name.
        ours: of the deciding CAM.
        random: of the same map moved to a random place.
        gain: of ours over random, positive is better.
        verdict: in words.
    """

    label: str
    ours: float
    random: float
    gain: Estimate
    verdict: str


_FAITHFULNESS = {"deletion": "deletion", "insertion": "insertion", "road": "ROAD"}


def faithfulness_rows(measured: Mapping[str, Any] | None) -> list[FaithfulnessRow]:
    """What `measure_faithfulness` found, by measure; empty where nothing was measured."""
    if measured is None:
        return []
    return [
        FaithfulnessRow(label, found["ours"], found["random"], _stored_estimate(found), found["verdict"])
        for name, label in _FAITHFULNESS.items()
        if (found := measured["map"].get(name))
    ]


def _stored_estimate(found: Mapping[str, Any]) -> Estimate:
    """None in a file stands for NaN."""
    value, low, high = (nan if found[name] is None else float(found[name]) for name in ("gain", "low", "high"))
    return Estimate(value, low, high)


def verdicts_in_words(rows: Sequence[FaithfulnessRow]) -> str:
    """``deletion and insertion: faithful; ROAD: worse than a random map``."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        labels.setdefault(row.verdict, []).append(row.label)
    return "; ".join(f"{join_words(names)}: {verdict}" for verdict, names in labels.items())


def calm_rows(audit: Audit) -> dict[str, dict[str, Estimate]]:
    """Where the CAM finds nothing on the absolute scale, by class and split; empty without such a scale."""
    if audit.found is None:
        return {}
    labels = {
        "defective": 1,
        "normal": 0,
    }
    return {name: {split: audit.calm(split, label) for split in audit.splits} for name, label in labels.items()}


def shift_rows(audit: Audit) -> list[ShiftRow]:
    """What changes from ``test`` to ``test_shift``; empty where one of them is missing."""
    if not audit.drops:
        return []
    names = DECISION | {"cam_iou": "CAM-IoU", "wrong_reason_rate": "wrong-reason rate"}
    names |= {"cf_flip_rate": "flip rate", "cf_control_flip_rate": "control flip rate"}
    test, shift = audit.scores["test"], audit.scores["test_shift"]
    rows = [
        ShiftRow(label, test[name], shift[name], audit.drops[name])
        for name, label in names.items()
        if name in audit.drops
    ]
    before, after = (audit.chosen[split].overkill for split in ("test", "test_shift"))
    rows.insert(1, ShiftRow("overkill", before, after, difference(before, after, independent=audit.shifted_apart)))
    return [row for row in rows if row.drop.value == row.drop.value]


def _estimate(audit: Audit, split: str, name: str) -> Estimate:
    """Pooled scores and AUPRO are over pixels: only their values are stored, so that they have no interval."""
    stored = audit.metrics.get(split, {}).get(name)
    return audit.scores[split].get(name) or Estimate(nan if stored is None else stored)


def _beside(audit: Audit, split: str, beside: str) -> float:
    area = float(audit.rows(split)["defect_area"].mean())
    grid = audit.scores[split]["grid_iou"].value
    return {_GRID: grid, _EVEN: area, _EMPTY: 1 - area}.get(beside, nan)
