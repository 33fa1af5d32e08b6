"""The pictures that an auditor wants to see: failures first, each with its CAM on both scales.

Sizes: N predictions, h x w map cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.loading import Picture, load_picture
from gainmtl_lib.evaluation.errors import KINDS, error_analysis
from gainmtl_lib.evaluation.stored import stored_cams
from gainmtl_lib.explain.audit_report.thumbnails import map_uri, picture_uri
from gainmtl_lib.explain.drawing import enlarged_share
from gainmtl_lib.map_scale import MapScale
from gainmtl_lib.runs import Run
from gainmtl_lib.settings import Settings

SHOWN = 12
"""Of each kind of failure and split."""

KIND_NAMES = {"missed": "missed defects", "wrong reason": "right for the wrong reason", "false alarm": "false alarms"}
ORDERS = {
    "missed": "lowest probability first",
    "wrong reason": "least energy inside the mask first",
    "false alarm": "highest probability first",
}
TYPICAL = {
    "typical find": "for comparison: found, CAM-IoU nearest to the median",
    "typical pass": "for comparison: normal, called normal, probability nearest to the median",
}
TYPICAL_SHOWN = 2


@dataclass(frozen=True)
class Case:
    """One picture of a gallery.

    Attributes:
        row: of the table of predictions.
        picture: data URI of the part with its mask's outline; None where the file cannot be read.
        absolute: of the deciding CAM on its absolute scale; None where the run has none.
        per_image: of the same, stretched to the full range.
        finds: whether the CAM rises above what normal parts reach; None without an absolute scale.
    """

    row: Mapping[str, Any]
    picture: str | None
    absolute: str | None
    per_image: str
    finds: bool | None


@dataclass(frozen=True)
class Gallery:
    """Cases of one kind in one split.

    Attributes:
        split: where they are from.
        kind: its name.
        meaning: of the kind, and the order.
        total: how many there are.
        cases: those that are shown.
    """

    split: str
    kind: str
    meaning: str
    total: int
    cases: list[Case]


def galleries(
    run: Run, table: pd.DataFrame, splits: Sequence[str], scale: MapScale | None, *, data_root: Path | None = None
) -> list[Gallery]:
    """Failures of each split in the order of `error_analysis`, then typical cases of the first split beside them.

    Args:
        run: evaluated.
        table: its predictions, all N rows.
        splits: test splits.
        scale: absolute scale of the CAM; None where the run has none.
        data_root: where the pictures lie now, when they moved since the training.

    Raises:
        RunError: the stored maps are damaged, or are not those of the table.
    """
    maps = stored_cams(run, len(table))
    table = table.assign(row=np.arange(len(table)))
    root = data_root or run.settings.data_root

    def gallery(split: str, kind: str, meaning: str, rows: pd.DataFrame, shown: int) -> Gallery:
        cases = [_case(run.settings, root, maps, row, scale) for row in rows.head(shown).to_dict("records")]
        return Gallery(split, kind, meaning, len(rows), cases)

    found = []
    for split in splits:
        errors = error_analysis(table, split)
        for kind, meaning in KINDS.items():
            rows = errors[errors["kind"] == kind]
            found.append(gallery(split, KIND_NAMES[kind], f"{meaning}; {ORDERS[kind]}", rows, SHOWN))
    for kind, rows in _typical(table[table["split"] == splits[0]]).items():
        found.append(gallery(splits[0], kind, TYPICAL[kind], rows, TYPICAL_SHOWN))
    return found


def _typical(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    found = rows[(rows["verdict"] == "TP") & rows["cam_iou"].notna()]
    passed = rows[rows["verdict"] == "TN"]
    return {"typical find": _nearest(found, "cam_iou"), "typical pass": _nearest(passed, "probability")}


def _nearest(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    distance = (rows[column] - rows[column].median()).abs()
    return rows.loc[distance.sort_values(kind="stable").index]


def _case(settings: Settings, root: Path, maps: NDArray, row: dict[Any, Any], scale: MapScale | None) -> Case:
    cam = np.asarray(maps[row["row"]], dtype=np.float32)  # (h, w)
    picture = _load(settings, root, row)
    size = settings.image_size
    return Case(
        row=row,
        picture=None if picture is None else picture_uri(picture),
        absolute=None if scale is None else map_uri(enlarged_share(cam, scale, size), picture),
        per_image=map_uri(enlarged_share(cam, None, size), picture),
        finds=None if scale is None else bool(scale.finds(cam)),
    )


def _load(settings: Settings, root: Path, row: Mapping[str, Any]) -> Picture | None:
    mask = str(root / row["mask"]) if isinstance(row["mask"], str) else None
    image = str(root / row["image"])
    try:
        return load_picture(image, mask, image_size=settings.image_size, resize=settings.resize)
    except DataError:
        return None
