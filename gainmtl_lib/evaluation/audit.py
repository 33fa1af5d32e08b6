"""Everything that an evaluated run's files say of it, as numbers with intervals: what the audit report states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.evaluation.breakdown import DefectRow, SizeBins, by_size, by_type, choose_bins
from gainmtl_lib.evaluation.intervals import Estimate, difference, group_codes, proportion, share_parts
from gainmtl_lib.evaluation.operating_point import (
    OperatingPoint,
    RecallChoice,
    check_recall,
    choose_for_recall,
    operating_point,
)
from gainmtl_lib.evaluation.scores import split_scores
from gainmtl_lib.evaluation.stored import SPLITS, stored_cams, stored_tables
from gainmtl_lib.map_scale import MapScale
from gainmtl_lib.runs import Run


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
