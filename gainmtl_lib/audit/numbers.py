"""What an evaluated run's files say of it, as numbers with intervals.

Sizes: N pictures of all evaluated splits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.efficientad.evaluate import Novelty, out_of_date, stored_novelty
from gainmtl_lib.evaluation import SPLITS, stored_maps, stored_tables
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
from gainmtl_lib.studies.faithfulness import is_stale as faithfulness_is_stale
from gainmtl_lib.studies.faithfulness import stored_faithfulness
from gainmtl_lib.wording import METRICS, PERCENT, join_words

# --- Defects by type and size

NOT_ANNOTATED = "size unknown (no mask)"


class DefectRow(NamedTuple):
    """One kind of defect in one split: how many are found, and of those with a mask, for the right reason."""

    name: str
    recall: Estimate
    cam_iou: Estimate
    grid_iou: float
    found_with_mask: int
    wrong_reason: int


class SizeBins(NamedTuple):
    """Small, medium and large defects: two shares of the picture, and the split whose terciles they are."""

    bounds: tuple[float, float]
    chosen_on: str

    @property
    def labels(self) -> list[str]:
        """Names from small to large; they hold the bounds."""
        low, high = (f"{100 * bound:.2g}" for bound in self.bounds)
        return [
            f"{name}{PERCENT})" for name in (f"small (up to {low}", f"medium ({low} to {high}", f"large (over {high}")
        ]


def choose_bins(table: pd.DataFrame, splits: Iterable[str]) -> SizeBins | None:
    """Terciles of the defect areas of the first split, validation if there is one, with three different ones."""
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
    return [_defect_row(name, defects[types == name]) for name in sorted(types.unique())]


def by_size(rows: pd.DataFrame, bins: SizeBins) -> list[DefectRow]:
    """One row per size of a split, small to large; sizes without a defect are left out."""
    defects = rows[rows["label"] == 1]
    areas = defects["defect_area"]
    sizes = np.array(bins.labels, dtype=object)[np.searchsorted(bins.bounds, areas.fillna(0.0))]
    sizes = np.where(areas.notna(), sizes, NOT_ANNOTATED)
    return [_defect_row(name, defects[sizes == name]) for name in (*bins.labels, NOT_ANNOTATED) if name in sizes]


def _defect_row(name: str, defects: pd.DataFrame) -> DefectRow:
    groups, found, iou = group_codes(defects), defects["predicted"].to_numpy(), defects["cam_iou"]
    judged, wrong = int(((found == 1) & iou.notna()).sum()), int(defects["wrong_reason"].sum())
    grid = float(defects["grid_iou"].mean())
    return DefectRow(name, proportion(found, groups), mean_score(iou.to_numpy(), groups), grid, judged, wrong)


# --- Escapes and overkill


class OperatingPoint(NamedTuple):
    """What one threshold does to one split: defects that are called normal, normal pictures called defective."""

    threshold: float
    escapes: Estimate
    overkill: Estimate


class RecallChoice(NamedTuple):
    """A threshold chosen on validation for a required recall; None where validation holds no defect."""

    required: float
    threshold: float | None
    defects: int

    @property
    def needed(self) -> int | None:
        """Defects without which the recall cannot even be told from 1; None for a recall of 1.

        One miss among fewer would already be more than the required recall allows.
        """
        return None if self.required == 1 else math.ceil(round(1 / (1 - self.required), 6))

    @property
    def to_show(self) -> int | None:
        """Defects that must all be found to show it with 95 % confidence: recall^n <= 0.05; None for a recall of 1."""
        return None if self.required == 1 else math.ceil(math.log(1 - CONFIDENCE) / math.log(self.required))

    @property
    def enough(self) -> bool:
        """Whether validation holds enough defects for the choice to mean something."""
        return self.needed is not None and self.defects >= self.needed


def operating_point(rows: pd.DataFrame, threshold: float, *, decided: bool = False) -> OperatingPoint:
    """Escapes and overkill of one split at a threshold; of the run's own (`decided`) the stored verdicts say it."""
    groups, labels = group_codes(rows), rows["label"].to_numpy()
    called = rows["predicted"].to_numpy() == 1 if decided else rows["probability"].to_numpy() >= threshold
    defective = labels == 1
    escapes = proportion(~called[defective], groups[defective])
    return OperatingPoint(threshold, escapes, proportion(called[~defective], groups[~defective]))


def choose_for_recall(labels: NDArray, probability: NDArray, required: float) -> RecallChoice:
    """The highest threshold that finds the required share of the defects, midway to the next lower score.

    Args:
        labels: 0 or 1, (N,), of the validation split; never of a test split.
        probability: of class 1, (N,).
        required: recall, in (0, 1].
    """
    scores = np.sort(probability[labels == 1])[::-1]
    if not len(scores):
        return RecallChoice(required, None, 0)
    last = scores[math.ceil(round(required * len(scores), 9)) - 1]
    below = probability[probability < last]
    return RecallChoice(required, float(last + (below.max() if len(below) else 0.0)) / 2, len(scores))


# --- The whole run


@dataclass(frozen=True)
class Audit:
    """An evaluated run in numbers; splits are keys, validation first.

    Attributes:
        chosen: what the run's own threshold does to a split.
        choice: the threshold for the required recall.
        at_recall: what that one does; empty where none could be chosen.
        bins: of defect sizes; None without enough annotated defects.
        found: whether each picture's CAM rises above what normal parts reach, (N,); None without an absolute scale.
        faithfulness, novelty: None where they were not measured for these predictions.
        stale: which of the two were measured and are out of date.
        data_root: the folder that the pictures are looked for in.
        missing_pictures: those that the report wanted to show and could not read.
    """

    settings: Settings
    manifest: Mapping[str, Any]
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
    faithfulness: Mapping[str, Any] | None
    novelty: Novelty | None
    stale: frozenset[str]
    data_root: Path | str
    missing_pictures: int = 0

    @property
    def splits(self) -> list[str]:
        """Evaluated splits, validation first."""
        return list(self.scores)

    @property
    def tests(self) -> list[str]:
        """Evaluated test splits; the headline numbers are of the first, `main`."""
        return [split for split in self.splits if split != "val"]

    @property
    def main(self) -> str:
        """The test split that the headline numbers are of."""
        return self.tests[0]

    @property
    def scales(self) -> dict[str, MapScale]:
        """The absolute scale of each map; none without a validation split."""
        return {name: MapScale(**scale) for name, scale in self.metrics.get("map_scales", {}).items()}

    @property
    def drops(self) -> dict[str, Estimate]:
        """What each score loses from ``test`` to ``test_shift``; empty where one of them is missing."""
        test, shift = self.scores.get("test", {}), self.scores.get("test_shift", {})
        apart = not share_parts(self.rows("test"), self.rows("test_shift"))  # planted data shows the same in both
        return {name: difference(test[name], shift[name], independent=apart) for name in test if name in shift}

    @property
    def groups_known(self) -> bool:
        """Whether the data says which pictures show one part."""
        return bool((self.table["group"].notna() & (self.table["group"] != self.table["image"])).any())

    @property
    def random_weights(self) -> bool:
        """Whether the backbone is known to have started from random weights."""
        return str(self.manifest.get("pretrained", "")).startswith("random")

    @property
    def has_counterfactual(self) -> bool:
        """Whether flips were asked for."""
        return "cf_flip_rate" in self.scores[self.main]

    def rows(self, split: str) -> pd.DataFrame:
        """The pictures of one split."""
        return self.table[self.table["split"] == split]

    def score(self, name: str, split: str | None = None) -> Estimate:
        """A score of a split, by default of the headline one; an empty estimate where there is none."""
        return self.scores[split or self.main].get(name, Estimate())

    def calm(self, split: str, label: int) -> Estimate:
        """How often the CAM finds nothing on the defective (1) or normal (0) pictures of a split."""
        if self.found is None:
            return Estimate()
        chosen = ((self.table["split"] == split) & (self.table["label"] == label)).to_numpy()
        return proportion(~self.found[chosen], group_codes(self.table[chosen]))

    def parts(self, split: str) -> int:
        """How many parts the pictures of a split show."""
        return len(np.unique(group_codes(self.rows(split))))


def audit_run(run: Run, *, required_recall: float = 0.99, data_root: Path | None = None) -> Audit:
    """Measure an evaluated run. Reads its tables and CAMs, not its pictures and weights.

    Args:
        run: finished and evaluated.
        required_recall: what the line demands, in (0, 1]; its threshold is chosen on validation.
        data_root: where the pictures lie now, when they moved since the training.

    Raises:
        RunError: the run is not evaluated, or its files are damaged or do not belong together.
        ValueError: a recall outside (0, 1].
    """
    if not 0 < required_recall <= 1:
        raise ValueError(
            f"required_recall must be a share of the defects in (0, 1], such as 0.99; got {required_recall:g}"
        )
    table, metrics = stored_tables(run)
    parts = {split: table[table["split"] == split] for split in SPLITS if (table["split"] == split).any()}
    tests = {split: rows for split, rows in parts.items() if split != "val"}
    val = parts.get("val", table.iloc[:0])
    choice = choose_for_recall(val["label"].to_numpy(), val["probability"].to_numpy(), required_recall)
    at_recall = choice.threshold
    cams, scale = stored_maps(run, len(table))["cam"], metrics.get("map_scales", {}).get("cam")
    # One at a time, because all of them at full precision may not fit into memory.
    found = None if scale is None else np.array([bool(MapScale(**scale).finds(cam)) for cam in cams])
    bins, novelty = choose_bins(table, list(parts)), stored_novelty(run)
    stale = {"faithfulness": faithfulness_is_stale(run), "novelty": out_of_date(run)}
    chosen = {split: operating_point(rows, metrics["threshold"], decided=True) for split, rows in parts.items()}
    scores = {split: split_scores(rows) | {"overkill": chosen[split].overkill} for split, rows in parts.items()}
    return Audit(
        settings=run.settings,
        manifest=run.manifest,
        table=table if novelty is None else table.assign(novel=novelty.table["novel"]),
        metrics=metrics,
        scores=scores,
        chosen=chosen,
        choice=choice,
        at_recall={} if at_recall is None else {s: operating_point(rows, at_recall) for s, rows in parts.items()},
        bins=bins,
        types={split: by_type(rows) for split, rows in tests.items()},
        sizes={} if bins is None else {split: by_size(rows, bins) for split, rows in tests.items()},
        found=found,
        faithfulness=stored_faithfulness(run),
        novelty=novelty,
        stale=frozenset(name for name, out_of_date in stale.items() if out_of_date),
        data_root=run.settings.plain()["data_root"] if data_root is None else data_root,
    )


# --- Tables


DECISION = ("recall", "precision", "accuracy", "f1", "auroc", "average_precision")
FLIPS = {
    "cf_flip_rate": "verdict flips with the defect suppressed",
    "cf_control_flip_rate": "control: the same area off the defect",
    "cf_excess": "flip minus control",
}
SHIFTED = ("recall", "overkill", *DECISION[1:], "cam_iou", "wrong_reason_rate", "cf_flip_rate", "cf_control_flip_rate")

_GRID, _EVEN, _EMPTY = "grid IoU", "even spread", "empty mask"
EXPLANATION = {
    "deciding CAM": {"cam_iou": _GRID, "cam_iou_pooled": "", "point_game": _EVEN, "energy_inside": _EVEN},
    "attention": {"attention_iou": _GRID, "attention_point_game": _EVEN, "attention_energy_inside": _EVEN},
    "localization": dict.fromkeys(("loc_iou", "loc_iou_pooled", "loc_dice"), "")
    | {"loc_pixel_accuracy": _EMPTY, "loc_aupro": ""},
}
"""Map to score to what it is read beside: the IoU that the mask itself reaches on the grid, what a point or energy
spread evenly over the picture would score (the defect's share of it), what an empty mask would score."""


ScoreRow = tuple[str, str, dict[str, Estimate], dict[str, float]]
"""A score's name, what it is read beside, and by split its estimate and the number beside it."""


def explanation_rows(audit: Audit) -> dict[str, list[ScoreRow]]:
    """Agreement of every map with the masks; scores that the strategy or the data lacks are left out."""
    areas = {split: float(audit.rows(split)["defect_area"].mean()) for split in audit.splits}
    besides = {
        _GRID: {split: audit.score("grid_iou", split).value for split in audit.splits},
        _EVEN: areas,
        _EMPTY: {split: 1 - area for split, area in areas.items()},
    }
    rows: dict[str, list[ScoreRow]] = {}
    for part, scores in EXPLANATION.items():
        for name, beside in scores.items():
            found = {split: _estimate(audit, split, name) for split in audit.splits}
            if any(estimate.value == estimate.value for estimate in found.values()):
                rows.setdefault(part, []).append((METRICS[name], beside, found, besides.get(beside, {})))
    return rows


def _estimate(audit: Audit, split: str, name: str) -> Estimate:
    """Pooled scores and AUPRO are over pixels: only their values are stored, so that they have no interval."""
    stored = audit.metrics.get(split, {}).get(name)
    return audit.scores[split].get(name) or Estimate(nan if stored is None else stored)


MEASURES = {"deletion": "deletion", "insertion": "insertion", "road": "ROAD"}
"""Of the faithfulness of a map."""


def verdicts_in_words(measured: Mapping[str, Any], *, but: str = "") -> str:
    """``deletion and insertion: faithful; ROAD: worse than a random map``, without one of the verdicts."""
    labels: dict[str, list[str]] = {}
    for name, label in MEASURES.items():
        if name in measured["map"] and (verdict := measured["map"][name]["verdict"]) != but:
            labels.setdefault(verdict, []).append(label)
    return "; ".join(f"{join_words(names)}: {verdict}" for verdict, names in labels.items())
