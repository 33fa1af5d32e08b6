"""What an evaluated run's files say of it, as numbers with intervals.

Sizes: N pictures of all evaluated splits.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib import stats
from gainmtl_lib.efficientad import evaluate as efficientad
from gainmtl_lib.evaluation import SPLITS, stored_maps, stored_tables
from gainmtl_lib.metrics import NAMED, MapScale, is_named, recall_threshold
from gainmtl_lib.runs import Run
from gainmtl_lib.stats import Estimate, group_codes, proportion
from gainmtl_lib.studies import faithfulness
from gainmtl_lib.wording import METRICS, PERCENT, join_words

# --- Defects by type and size

NOT_ANNOTATED = "size unknown (no mask)"


def defect_rows(rows: pd.DataFrame, bins: tuple[Any, ...] | None) -> dict[str, list[dict[str, Any]]]:
    """The defects of a split by type, and where there are bins by size, small to large.

    Each row says how many are found, and of those with a mask, whether for the right reason.
    """
    defects = rows[rows["label"] == 1]
    kinds: dict[str, Any] = {"by type": defects["defect_type"].fillna("unknown")}
    if bins is not None:
        areas, low, high = defects["defect_area"], *bins[1:]
        first, second = f"{100 * low:.2g}", f"{100 * high:.2g}{PERCENT}"
        names = [f"small (up to {first}{PERCENT})", f"medium ({first} to {second})", f"large (over {second})"]
        sizes = np.select([areas <= low, areas <= high, areas > high], names, NOT_ANNOTATED)
        kinds["by size"] = pd.Categorical(sizes, [*names, NOT_ANNOTATED])
    return {
        title: [_defect_row(str(name), part) for name, part in defects.groupby(kind, observed=True)]
        for title, kind in kinds.items()
    }


def _defect_row(name: str, defects: pd.DataFrame) -> dict[str, Any]:
    groups, found, iou = group_codes(defects), defects["predicted"].to_numpy(), defects["cam_iou"].to_numpy()
    judged, called = (found == 1) & ~np.isnan(iou), (is_named(defects) & (found == 1)).to_numpy()
    right = (defects["defect_type"] == defects.get(NAMED)).to_numpy()
    return {
        "name": name,
        "recall": proportion(found, groups),
        "cam_iou": stats.mean_score(iou, groups),
        "grid_iou": float(defects["grid_iou"].mean()),
        "wrong_reason": proportion(defects["wrong_reason"].to_numpy()[judged], groups[judged]),
        "named_right": proportion(right[called], groups[called]) if NAMED in defects else Estimate(),
    }


# --- Escapes and overkill


class RecallChoice(NamedTuple):
    """A threshold chosen on validation for a required recall; None where validation holds no defect."""

    required: float
    threshold: float | None
    defects: int  # that it was chosen on
    needed: int | None  # without which the recall cannot be told from 1; None for a recall of 1
    to_show: int | None  # that must all be found to show it with 95 % confidence: recall^n <= 0.05
    enough: bool  # whether these defects are as many as needed


def operating_point(rows: pd.DataFrame, called: pd.Series) -> dict[str, Estimate]:
    """Of the pictures that are called defective: which defects escape, and which normal pictures are overkill."""
    groups, defective = group_codes(rows), rows["label"].to_numpy() == 1
    return {
        "escapes": proportion(~called.to_numpy()[defective], groups[defective]),
        "overkill": proportion(called.to_numpy()[~defective], groups[~defective]),
    }


def choose_for_recall(labels: NDArray, probability: NDArray, required: float) -> RecallChoice:
    """The threshold for it, see `recall_threshold`, and how sure it can be."""
    needed = to_show = None
    if required < 1:
        needed = math.ceil(round(1 / (1 - required), 6))  # one miss among fewer is more than the recall allows
        to_show = math.ceil(math.log(1 - stats.CONFIDENCE) / math.log(required))
    defects, threshold = int(labels.sum()), recall_threshold(labels, probability, required)
    return RecallChoice(required, threshold, defects, needed, to_show, needed is not None and defects >= needed)


# --- The whole run


class Audit:
    """An evaluated run in numbers, from its tables and CAMs; splits are keys, validation first.

    Arguments and errors are those of `gainmtl_lib.audit.report.write_report`.
    """

    def __init__(self, run: Run, *, required_recall: float = 0.99) -> None:
        if not 0 < required_recall <= 1:
            raise ValueError(f"required_recall must be a share in (0, 1], such as 0.99; got {required_recall:g}")
        self.settings, self.manifest = run.settings, run.manifest
        self.random_weights = str(self.manifest.get("pretrained", "")).startswith("random")
        table, self.metrics = stored_tables(run)
        parts = {split: table[table["split"] == split] for split in SPLITS if (table["split"] == split).any()}
        self.splits = list(parts)
        self.tests = [split for split in parts if split != "val"]
        self.main = self.tests[0]  # which the headline numbers are of
        self.groups_known = bool((table["group"].notna() & (table["group"] != table["image"])).any())

        # At the run's own threshold the stored verdicts say it: stored probabilities are rounded.
        self.chosen = {split: operating_point(rows, rows["predicted"] == 1) for split, rows in parts.items()}
        val = parts.get("val", table.iloc[:0])
        self.choice = choose_for_recall(val["label"].to_numpy(), val["probability"].to_numpy(), required_recall)
        threshold, self.at_recall = self.choice.threshold, {}
        if threshold is not None:
            above = {split: rows["probability"] >= threshold for split, rows in parts.items()}
            self.at_recall = {split: operating_point(rows, above[split]) for split, rows in parts.items()}
        self.scores = {split: stats.split_scores(rows) for split, rows in parts.items()}
        for split, scores in self.scores.items():
            scores["overkill"] = self.chosen[split]["overkill"]
        # The first split with three different defect areas, validation if it is there, and their terciles.
        sized = [split for split, rows in parts.items() if rows["defect_area"].nunique() >= 3]
        self.bins = (sized[0], *parts[sized[0]]["defect_area"].quantile([1 / 3, 2 / 3])) if sized else None
        self.defects = {split: defect_rows(parts[split], self.bins) for split in self.tests}

        cams = stored_maps(run, len(table))["cam"]
        self.scales = {name: MapScale(**scale) for name, scale in self.metrics.get("map_scales", {}).items()}
        self.found: NDArray[np.bool_] | None = None  # whether each CAM rises above the floor of its scale, (N,)
        if scale := self.scales.get("cam"):
            # One at a time, because all of them at full precision may not fit into memory.
            self.found = np.array([bool(scale.finds(cam)) for cam in cams])
        self.faithfulness, self.novelty = faithfulness.stored_faithfulness(run), efficientad.stored_novelty(run)
        stale = self.faithfulness is None and (run.folder / faithfulness.FILE).is_file()
        self.stale = {"faithfulness": stale, "novelty": efficientad.out_of_date(run)}
        self.table = table if self.novelty is None else table.assign(novel=self.novelty.table["novel"])

    @property
    def drops(self) -> dict[str, Estimate]:
        """What each score loses from ``test`` to ``test_shift``; empty where one of them is missing."""
        test, shift = self.scores.get("test", {}), self.scores.get("test_shift", {})
        apart = not stats.share_parts(self.rows("test"), self.rows("test_shift"))  # planted data shows the same in both
        return {name: stats.difference(test[name], shift[name], independent=apart) for name in test if name in shift}

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


# --- Tables

_GRID, _EVEN, _EMPTY = "grid IoU", "even spread", "empty mask"
EXPLANATION = {
    "deciding CAM": {"cam_iou": _GRID, "cam_iou_pooled": "", "point_game": _EVEN, "energy_inside": _EVEN},
    "attention": {"attention_iou": _GRID, "attention_point_game": _EVEN, "attention_energy_inside": _EVEN},
    "localization": {
        "loc_iou": "",
        "loc_iou_pooled": "",
        "loc_dice": "",
        "loc_pixel_accuracy": _EMPTY,
        "loc_aupro": "",
    },
}
"""Map to score to what it is read beside: the IoU that the mask itself reaches on the grid, what a point or energy
spread evenly over the picture would score (the defect's share of it), what an empty mask would score."""


def explanation_rows(audit: Audit) -> dict[str, list[tuple]]:
    """By map its scores: name, what it is read beside, and by split its estimate and the number beside it.

    Scores that the strategy or the data lacks are left out.
    """
    areas = {split: float(audit.rows(split)["defect_area"].mean()) for split in audit.splits}
    besides = {
        _GRID: {split: audit.score("grid_iou", split).value for split in audit.splits},
        _EVEN: areas,
        _EMPTY: {split: 1 - area for split, area in areas.items()},
    }
    rows: dict[str, list[tuple]] = {}
    for part, scores in EXPLANATION.items():
        for name, beside in scores.items():
            found = {}
            for split in audit.splits:
                # Pooled scores and AUPRO are over pixels: only their values are stored, so that they have no interval.
                pooled = audit.metrics[split].get(name)
                found[split] = audit.scores[split].get(name, Estimate(math.nan if pooled is None else pooled))
            if any(not math.isnan(estimate.value) for estimate in found.values()):
                rows.setdefault(part, []).append((METRICS[name], beside, found, besides.get(beside, {})))
    return rows


MEASURES = {"deletion": "deletion", "insertion": "insertion", "road": "ROAD"}
"""Of the faithfulness of a map."""


def verdicts_in_words(measured: Mapping[str, Any], *, but: str = "") -> str:
    """``deletion and insertion: faithful; ROAD: worse than a random map``, without one of the verdicts."""
    labels: dict[str, list[str]] = {}
    for name, label in MEASURES.items():
        if name in measured["map"] and (verdict := measured["map"][name]["verdict"]) != but:
            labels.setdefault(verdict, []).append(label)
    return "; ".join(f"{join_words(names)}: {verdict}" for verdict, names in labels.items())
