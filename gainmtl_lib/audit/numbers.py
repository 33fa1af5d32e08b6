"""Which defects are found, and for the right reason: by type and by size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.efficientad.evaluate import Novelty
from gainmtl_lib.evaluation import SPLITS, stored_cams, stored_tables
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.runs import Run
from gainmtl_lib.settings import Settings
from gainmtl_lib.stats import (
    CONFIDENCE,
    Estimate,
    difference,
    group_codes,
    mean_score,
    proportion,
    share_parts,
    split_scores,
)
from gainmtl_lib.wording import (  # noqa: F401 - the report's words are all found here
    SPLIT_NAMES,
    interval,
    join_words,
    of_count,
    percent,
    plural,
)
from gainmtl_lib.wording import number as rounded  # noqa: F401

NOT_ANNOTATED = "size unknown (no mask)"


@dataclass(frozen=True)
class DefectRow:
    """One kind of defect in one split.

    Attributes:
        name: of the type or the size.
        recall: share that was found; its count is the number of defects.
        cam_iou: of those with a mask.
        grid_iou: what their masks reach on the map's grid.
        found_with_mask: found ones whose reason can be judged.
        wrong_reason: those of them whose CAM lies off the defect.
    """

    name: str
    recall: Estimate
    cam_iou: Estimate
    grid_iou: float
    found_with_mask: int
    wrong_reason: int


@dataclass(frozen=True)
class SizeBins:
    """Small, medium and large defects.

    Attributes:
        bounds: two shares of the picture; a defect up to the first is small, up to the second medium.
        chosen_on: the split whose terciles they are.
    """

    bounds: tuple[float, float]
    chosen_on: str

    @property
    def labels(self) -> list[str]:
        """Names from small to large; they hold the bounds."""
        small, large = (f"{100 * bound:.2g}" for bound in self.bounds)
        names = f"small (up to {small} %)", f"medium ({small} to {large} %)", f"large (over {large} %)"
        return [name.replace(" %", "\u00a0%") for name in names]  # a space that does not break

    def names(self, areas: pd.Series) -> pd.Series:
        """The size of each defect, by its share of the picture."""
        sizes = np.array(self.labels, dtype=object)[np.searchsorted(self.bounds, areas.fillna(0.0))]
        return pd.Series(sizes, index=areas.index).where(areas.notna(), NOT_ANNOTATED)


def choose_bins(table: pd.DataFrame, splits: Sequence[str]) -> SizeBins | None:
    """Terciles of the defect areas of the first of the splits that has at least three different ones.

    Args:
        table: of `evaluate`.
        splits: validation first, so that the bins do not follow the pictures that are judged.
    """
    for split in splits:
        areas = table.loc[table["split"] == split, "defect_area"].dropna()
        if areas.nunique() >= 3:
            first, second = areas.quantile([1 / 3, 2 / 3])
            return SizeBins((float(first), float(second)), split)
    return None


def by_type(rows: pd.DataFrame) -> list[DefectRow]:
    """One row per defect type of a split, by name."""
    defects = rows[rows["label"] == 1]
    types = defects["defect_type"].fillna("unknown")
    return [_row(name, defects[types == name]) for name in sorted(types.unique())]


def by_size(rows: pd.DataFrame, bins: SizeBins) -> list[DefectRow]:
    """One row per size of a split, small to large; sizes without a defect are left out."""
    defects = rows[rows["label"] == 1]
    sizes = bins.names(defects["defect_area"])
    names = (*bins.labels, NOT_ANNOTATED)
    return [_row(name, defects[sizes == name]) for name in names if (sizes == name).any()]


def _row(name: str, defects: pd.DataFrame) -> DefectRow:
    groups = group_codes(defects)
    return DefectRow(
        name=name,
        recall=proportion(defects["predicted"].to_numpy(), groups),
        cam_iou=mean_score(defects["cam_iou"].to_numpy(), groups),
        grid_iou=float(defects["grid_iou"].mean()),
        found_with_mask=int(((defects["predicted"] == 1) & defects["cam_iou"].notna()).sum()),
        wrong_reason=int(defects["wrong_reason"].sum()),
    )


# --- Escapes and overkill


@dataclass(frozen=True)
class OperatingPoint:
    """What one threshold does to one split.

    Attributes:
        threshold: defect probability from which a picture is called defective.
        escapes: share of the defective pictures that are called normal.
        overkill: share of the normal pictures that are called defective.
    """

    threshold: float
    escapes: Estimate
    overkill: Estimate


@dataclass(frozen=True)
class RecallChoice:
    """A threshold chosen for a required recall, on validation.

    Attributes:
        required: recall, in (0, 1].
        threshold: None where validation holds no defect.
        defects: defective validation pictures that it was chosen on.
        needed: how many it takes at least; None where no number is enough (a recall of 1).
    """

    required: float
    threshold: float | None
    defects: int
    needed: int | None

    @property
    def enough(self) -> bool:
        """Whether validation holds enough defects for the choice to mean something."""
        return self.needed is not None and self.defects >= self.needed


def operating_point(rows: pd.DataFrame, threshold: float, *, decided: bool = False) -> OperatingPoint:
    """Escapes and overkill of one split at a threshold.

    Args:
        rows: of `evaluate`'s table.
        threshold: from validation.
        decided: the threshold is the run's own, whose verdicts are stored: they, not the rounded
            probabilities, say what it does.
    """
    groups, labels = group_codes(rows), rows["label"].to_numpy()
    called = rows["predicted"].to_numpy() == 1 if decided else rows["probability"].to_numpy() >= threshold
    return OperatingPoint(
        threshold,
        escapes=proportion(~called[labels == 1], groups[labels == 1]),
        overkill=proportion(called[labels == 0], groups[labels == 0]),
    )


def choose_for_recall(labels: NDArray, probability: NDArray, required: float) -> RecallChoice:
    """The highest threshold that finds the required share of the defects.

    It lies midway to the next lower score, as `choose_threshold`'s do, so that the cut keeps a margin to both.

    Args:
        labels: 0 or 1, (N,), of the validation split; never of a test split.
        probability: of class 1, (N,).
        required: recall, in (0, 1].

    Raises:
        ValueError: a recall outside (0, 1].
    """
    check_recall(required)
    scores = np.sort(probability[labels == 1])[::-1]
    if not len(scores):
        return RecallChoice(required, None, 0, defects_needed(required))
    last = scores[math.ceil(round(required * len(scores), 9)) - 1]
    below = probability[probability < last]
    threshold = (last + (below.max() if len(below) else 0.0)) / 2
    return RecallChoice(required, float(threshold), len(scores), defects_needed(required))


def defects_needed(required: float) -> int | None:
    """Defects without which a recall cannot even be told from 1: 1 / (1 − recall); None for a recall of 1.

    One miss among fewer would already be more than the required recall allows.
    """
    return None if required == 1 else math.ceil(round(1 / (1 - required), 6))


def defects_to_show(required: float) -> int | None:
    """Defects that must all be found to show a recall with 95 % confidence: recall^n <= 0.05; None for 1."""
    return None if required == 1 else math.ceil(math.log(1 - CONFIDENCE) / math.log(required))


def check_recall(required: float) -> None:
    """Raises `ValueError` for a recall outside (0, 1]."""
    if not 0 < required <= 1:
        raise ValueError(f"required_recall must be a share of the defects in (0, 1], such as 0.99; got {required:g}")


# --- Everything that an evaluated run's files say of it, as numbers with intervals


@dataclass(frozen=True)
class Audit:
    """An evaluated run in numbers.

    Attributes:
        table: its predictions, one row per picture.
        metrics: its stored summary.
        scores: split to score to estimate.
        chosen: split to what the run's own threshold does there.
        choice: the threshold for the required recall.
        at_recall: split to what that threshold does there; empty where none could be chosen.
        bins: of defect sizes; None without enough annotated defects.
        types: test split to its defects by type.
        sizes: test split to its defects by size.
        found: whether each picture's CAM rises above what normal parts reach, (N,); None without an absolute scale.
    """

    table: pd.DataFrame
    metrics: dict[str, Any]
    scores: dict[str, dict[str, Estimate]]
    chosen: dict[str, OperatingPoint]
    choice: RecallChoice
    at_recall: dict[str, OperatingPoint]
    bins: SizeBins | None
    types: dict[str, list[DefectRow]]
    sizes: dict[str, list[DefectRow]]
    found: NDArray[np.bool_] | None

    @property
    def splits(self) -> list[str]:
        """Evaluated splits, validation first."""
        return list(self.scores)

    @property
    def tests(self) -> list[str]:
        """Evaluated test splits."""
        return [split for split in self.splits if split != "val"]

    @property
    def main(self) -> str:
        """The test split that the headline numbers are of."""
        return self.tests[0]

    @property
    def threshold(self) -> float:
        """The run's decision threshold."""
        return float(self.metrics["threshold"])

    @property
    def scales(self) -> dict[str, MapScale]:
        """The absolute scale of each map; none without a validation split."""
        return {name: MapScale(**scale) for name, scale in self.metrics.get("map_scales", {}).items()}

    @property
    def drops(self) -> dict[str, Estimate]:
        """What each score loses from ``test`` to ``test_shift``; empty where one of them is missing."""
        if not {"test", "test_shift"} <= self.scores.keys():
            return {}
        test, shift = self.scores["test"], self.scores["test_shift"]
        apart = self.shifted_apart
        return {name: difference(test[name], shift[name], independent=apart) for name in test if name in shift}

    @property
    def shifted_apart(self) -> bool:
        """Whether ``test`` and ``test_shift`` have no part in common; planted data shows the same in both."""
        return not share_parts(self.rows("test"), self.rows("test_shift"))

    @property
    def groups_known(self) -> bool:
        """Whether the data says which pictures show one part."""
        return bool((self.table["group"].notna() & (self.table["group"] != self.table["image"])).any())

    def rows(self, split: str) -> pd.DataFrame:
        """The pictures of one split."""
        return self.table[self.table["split"] == split]

    def calm(self, split: str, label: int) -> Estimate:
        """How often the CAM finds nothing on the defective (1) or normal (0) pictures of a split."""
        chosen = ((self.table["split"] == split) & (self.table["label"] == label)).to_numpy()
        if self.found is None:
            return Estimate()
        return proportion(~self.found[chosen], group_codes(self.table[chosen]))

    def parts(self, split: str) -> int:
        """How many parts the pictures of a split show."""
        return len(np.unique(group_codes(self.rows(split))))


def audit_run(run: Run, *, required_recall: float = 0.99) -> Audit:
    """Measure an evaluated run. Reads its tables and CAMs, not its pictures and weights.

    Args:
        run: finished and evaluated.
        required_recall: what the line demands, in (0, 1]; its threshold is chosen on validation.

    Raises:
        RunError: the run is not evaluated, or its files are damaged or do not belong together.
        ValueError: a recall outside (0, 1].
    """
    check_recall(required_recall)
    table, metrics = stored_tables(run)
    splits = [split for split in SPLITS if (table["split"] == split).any()]
    parts = {split: table[table["split"] == split] for split in splits}
    tests = {split: rows for split, rows in parts.items() if split != "val"}
    val = parts.get("val", table.iloc[:0])
    choice = choose_for_recall(val["label"].to_numpy(), val["probability"].to_numpy(), required_recall)
    bins = choose_bins(table, splits)
    return Audit(
        table=table,
        metrics=metrics,
        scores={split: split_scores(rows) for split, rows in parts.items()},
        chosen={split: operating_point(rows, metrics["threshold"], decided=True) for split, rows in parts.items()},
        choice=choice,
        at_recall={
            split: operating_point(rows, choice.threshold)
            for split, rows in parts.items()
            if choice.threshold is not None
        },
        bins=bins,
        types={split: by_type(rows) for split, rows in tests.items()},
        sizes={split: by_size(rows, bins) for split, rows in tests.items() if bins is not None},
        found=_found(stored_cams(run, len(table)), metrics.get("map_scales", {}).get("cam")),
    )


def _found(maps: NDArray, scale: dict[str, float] | None) -> NDArray[np.bool_] | None:
    """A thousand maps at a time, because all of them at full precision may not fit into memory."""
    if scale is None:
        return None
    parts = [MapScale(**scale).finds(maps[start : start + 1000]) for start in range(0, len(maps), 1000)]
    return np.concatenate(parts)


# --- What the known limits of a run are judged by.


@dataclass(frozen=True)
class Limit:
    """A known limit.

    Attributes:
        title: a few words.
        text: what it means here, with the numbers.
        serious: whether results must not be taken at face value because of it.
    """

    title: str
    text: str
    serious: bool = False


@dataclass(frozen=True)
class Evidence:
    """What the rules look at.

    Attributes:
        settings: of the run.
        manifest: of the run.
        audit: its numbers.
        missing_pictures: pictures that the report wanted to show and could not read.
        data_root: where the pictures were looked for, when they moved since the training.
        faithfulness: of `stored_faithfulness`; None where it was not measured for these predictions.
        stale_faithfulness: whether it was measured for others.
        novelty: of `stored_novelty`; None where it was not asked.
        stale_novelty: whether it was, and what it found is out of date.
    """

    settings: Settings
    manifest: Mapping[str, Any]
    audit: Audit
    missing_pictures: int = 0
    data_root: Path | None = None
    faithfulness: Mapping[str, Any] | None = None
    stale_faithfulness: bool = False
    novelty: Novelty | None = None
    stale_novelty: bool = False

    def score(self, name: str, split: str | None = None) -> Estimate:
        """A score of a split, by default of the headline one; an empty estimate where there is none."""
        return self.audit.scores[split or self.audit.main].get(name, Estimate())

    @property
    def pictures_below(self) -> str:
        """The folder that the pictures were looked for in."""
        return str(self.settings.plain()["data_root"] if self.data_root is None else self.data_root)

    @property
    def random_weights(self) -> bool:
        """Whether the backbone is known to have started from random weights."""
        return str(self.manifest.get("pretrained", "")).startswith("random")

    @property
    def teachers(self) -> dict[str, str]:
        """What EfficientAD did for these results, to where its teacher came from."""
        masks = self.audit.metrics.get("teacher")
        found = {} if masks is None else {"makes the masks of the attention": str(masks)}
        return found if self.novelty is None else found | {"flags novel pictures": self.novelty.teacher}

    @property
    def has_counterfactual(self) -> bool:
        """Whether flips were asked for."""
        return "cf_flip_rate" in self.audit.scores[self.audit.main]


Rule = Callable[[Evidence], Limit | None]
"""Answers with a limit, or with None where it does not apply."""


# --- Numbers as words


def percent_interval(estimate: Estimate) -> str:
    """``5.8 %, interval 2 % to 15.6 %``; likewise."""
    if not estimate.has_interval:
        return percent(estimate.value)
    return f"{percent(estimate.value)}, interval {percent(estimate.low)} to {percent(estimate.high)}"


def sentence(text: str) -> str:
    """With a capital letter."""
    return text[:1].upper() + text[1:]


# --- The report's tables


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
