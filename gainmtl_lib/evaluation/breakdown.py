"""Which defects are found, and for the right reason: by type and by size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gainmtl_lib.evaluation.intervals import Estimate, group_codes, mean_score, proportion

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
