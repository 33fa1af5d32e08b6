"""One run's results, opened to be looked through: which pictures, in which order, and how they are called.

Sizes: N rows, h x w map cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.evaluation.novelty import Novelty
from gainmtl_lib.evaluation.stored import AnyRun
from gainmtl_lib.explain.notes import Notes
from gainmtl_lib.explain.systems import MAIN_MAPS, MAPS, System
from gainmtl_lib.map_scale import MapScale

VERDICTS = {"TP": "defect found", "FN": "defect missed", "FP": "false alarm", "TN": "normal passed"}

ORDERS: dict[str, tuple[str, tuple[tuple[str, int], ...]]] = {
    "wrong_reason": ("right for the wrong reason first", (("wrong_reason", -1), ("found", -1), ("energy", 1))),
    "unsure": ("least confident first", (("confidence", 1),)),
    "sure": ("most confident first", (("confidence", -1),)),
    "low_iou": ("lowest {iou} first", (("iou", 1),)),
    "high_iou": ("highest {iou} first", (("iou", -1),)),
    "large": ("largest defect first", (("defect_area", -1),)),
    "small": ("smallest defect first", (("defect_area", 1),)),
    "stored": ("as stored", ()),
}
"""Name, words, and the columns to sort by with their direction; rows without an answer come last.

``iou`` and ``energy`` are those of the main map, whatever the run's system calls them.
"""

FLAGS = ["anomaly_score", "anomalous", "novel"]
"""Columns of `Novelty.table` that a run's table takes over."""

NEEDS_MASKS = ("wrong_reason", "low_iou", "high_iou", "large", "small")


@dataclass(frozen=True)
class Choice:
    """Which rows of a run, and in which order; None leaves a column free."""

    split: str | None = None
    verdict: str | None = None
    defect_type: str | None = None
    marked_only: bool = False
    novel_only: bool = False
    order: str = "stored"


@dataclass(frozen=True)
class OpenedRun:
    """One run's results.

    Attributes:
        name: as short as tells it from the others, such as ``S5`` or ``EfficientAD``.
        run: where they came from.
        system: how its results are called.
        root: folder that the table's paths are below.
        table: the predictions with ``score``, ``iou`` and ``energy`` of the run's system, ``confidence`` (of the
            verdict) and ``found`` (verdict TP) added, and where they are known those of `FLAGS`.
        maps: name to (N, h, w), memory-mapped.
        scales: absolute scale by map; a map without one is shown per image.
        threshold: of the decision.
        notes: of people on its pictures.
        novelty: which pictures another system flags as novel; None where it was not asked.
    """

    name: str
    run: AnyRun
    system: System
    root: Path
    table: pd.DataFrame
    maps: Mapping[str, NDArray]
    scales: Mapping[str, MapScale]
    threshold: float
    notes: Notes
    novelty: Novelty | None

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row by the table's image path."""
        return {image: row for row, image in reversed(list(enumerate(self.table["image"])))}

    @property
    def has_masks(self) -> bool:
        """Whether any defect is annotated."""
        return bool(self.table["iou"].notna().any())

    @cached_property
    def has_root(self) -> bool:
        """Whether the folder of the pictures is there."""
        return self.root.is_dir()

    @property
    def data_digest(self) -> str | None:
        """Of the samples it was trained with; EfficientAD leaves defects out, so that its digests are its own."""
        return self.run.manifest.get("data_digest")

    @property
    def orders(self) -> list[str]:
        """Orders that have an answer here."""
        return [order for order in ORDERS if self.has_masks or order not in NEEDS_MASKS]

    def words_of(self, order: str) -> str:
        """An order, as it is called here."""
        return ORDERS[order][0].format(iou=self.system.iou_name)

    def image(self, row: int) -> str:
        """Path of a row's picture, as the table names it."""
        return str(self.table["image"].iloc[row])

    def files(self, row: int) -> tuple[Path | None, Path | None]:
        """Image and mask; None for a mask that is not there, and for both where the folder is missing."""
        if not self.has_root:
            return None, None
        mask = self.table["mask"].iloc[row]
        return self.root / self.image(row), self.root / mask if isinstance(mask, str) else None

    def choose(self, choice: Choice) -> NDArray[np.intp]:
        """Rows that fit, in order."""
        keep = np.ones(len(self.table), dtype=bool)
        for column in ("split", "verdict", "defect_type"):
            wanted = getattr(choice, column)
            if wanted is not None:
                keep &= (self.table[column] == wanted).to_numpy(dtype=bool)
        if choice.marked_only:
            marked = set() if self.notes.problem else self.notes.marked()
            keep &= self.table["image"].isin(marked).to_numpy()
        if choice.novel_only:
            keep &= np.zeros(1, dtype=bool) if self.novelty is None else self.table["novel"].to_numpy(dtype=bool)
        rows = np.flatnonzero(keep)
        columns = ORDERS[choice.order][1]
        if not columns:
            return rows
        # The first column decides; lexsort reads its keys from the last. NaN sorts behind every number.
        keys = [sign * self.table[name].to_numpy(dtype=float)[rows] for name, sign in reversed(columns)]
        return rows[np.lexsort(keys)]

    def counts(self, choice: Choice, column: str) -> dict[str, int]:
        """How many rows each value of a column would leave, the other filters as they are."""
        rows = self.choose(replace(choice, **{column: None, "order": "stored"}))
        return {str(value): int(n) for value, n in self.table[column].iloc[rows].value_counts().items()}

    def own_kind(self, kind: str) -> str:
        """The kind of map that stands here for `kind`: a system's main map answers to the other's."""
        return self.system.main if kind in MAIN_MAPS else kind

    def why_no_map(self, kind: str) -> str:
        """Says that the run lacks a map, why, and what it has."""
        have = " and ".join(MAPS[name].name for name in MAPS if name in self.maps)
        reason = f" ({self.system.lacks[kind]})" if kind in self.system.lacks else ""
        return f"{self.name} has no {MAPS[kind].name} map{reason}; it has: {have}"
