"""What finished runs left behind, ready to be looked through: tables, maps, pictures, notes. No widgets, no model.

Everything comes from the runs' own files; maps are memory-mapped, so that ten thousand pictures open at once.

Sizes: N rows, h x w map cells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.evaluation.stored import stored_maps, stored_tables
from gainmtl_lib.explain.notes import Notes
from gainmtl_lib.explain.picture_files import PictureFiles, Shown
from gainmtl_lib.map_scale import MapScale
from gainmtl_lib.runs import Run, RunError, load_run

KINDS = {"cam": "deciding CAM", "attention": "attention", "localization": "localization"}
FIRST_WITH = {"attention": "S3", "localization": "S4"}
VERDICTS = {"TP": "defect found", "FN": "defect missed", "FP": "false alarm", "TN": "normal passed"}

ORDERS: dict[str, tuple[str, tuple[tuple[str, int], ...]]] = {
    "wrong_reason": ("right for the wrong reason first", (("wrong_reason", -1), ("found", -1), ("energy_inside", 1))),
    "unsure": ("least confident first", (("confidence", 1),)),
    "sure": ("most confident first", (("confidence", -1),)),
    "low_iou": ("lowest CAM-IoU first", (("cam_iou", 1),)),
    "high_iou": ("highest CAM-IoU first", (("cam_iou", -1),)),
    "large": ("largest defect first", (("defect_area", -1),)),
    "small": ("smallest defect first", (("defect_area", 1),)),
    "stored": ("as stored", ()),
}
"""Name, words, and the columns to sort by with their direction; rows without an answer come last."""

NEEDS_MASKS = ("wrong_reason", "low_iou", "high_iou", "large", "small")

Runs = Run | str | Path | Sequence[Run | str | Path]


@dataclass(frozen=True)
class Choice:
    """Which rows of a run, and in which order; None leaves a column free."""

    split: str | None = None
    verdict: str | None = None
    defect_type: str | None = None
    marked_only: bool = False
    order: str = "stored"


@dataclass(frozen=True)
class OpenedRun:
    """One run's results.

    Attributes:
        name: as short as tells it from the others, such as ``S5``.
        run: where they came from.
        root: folder that the table's paths are below.
        table: the predictions with ``confidence`` (of the verdict) and ``found`` (verdict TP) added.
        maps: name to (N, h, w), memory-mapped.
        scales: absolute scale by map; a map without one is shown per image.
        threshold: of the decision.
        notes: of people on its pictures.
    """

    name: str
    run: Run
    root: Path
    table: pd.DataFrame
    maps: Mapping[str, NDArray]
    scales: Mapping[str, MapScale]
    threshold: float
    notes: Notes

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row by the table's image path."""
        return {image: row for row, image in reversed(list(enumerate(self.table["image"])))}

    @property
    def has_masks(self) -> bool:
        """Whether any defect is annotated."""
        return bool(self.table["cam_iou"].notna().any())

    @cached_property
    def has_root(self) -> bool:
        """Whether the folder of the pictures is there."""
        return self.root.is_dir()

    @property
    def orders(self) -> list[str]:
        """Orders that have an answer here."""
        return [order for order in ORDERS if self.has_masks or order not in NEEDS_MASKS]

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

    def why_no_map(self, kind: str) -> str:
        """Says that the run lacks a map, why, and what it has."""
        have = " and ".join(KINDS[name] for name in KINDS if name in self.maps)
        reason = f" (from {FIRST_WITH[kind]} on)" if kind in FIRST_WITH else ""
        return f"{self.name} has no {KINDS[kind]} map{reason}; it has: {have}"


class PictureLibrary:
    """Several runs opened side by side, their pictures matched by path.

    Args:
        runs: one or several, as `Run` or as folders.
        data_root: where the pictures lie now, when they moved since the runs were trained.

    Attributes:
        runs: by name, in the order given.
        notices: what is missing or does not fit, one sentence each.

    Raises:
        RunError: no run was given, one of them is unfinished or not evaluated, or its files do not fit together.
    """

    def __init__(self, runs: Runs, *, data_root: str | Path | None = None) -> None:
        given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
        if not given:
            raise RunError("no run was given; give one or several, such as load_run('outputs/quick/s5/seed42')")
        loaded = [run if isinstance(run, Run) else load_run(run) for run in given]
        root = None if data_root is None else Path(data_root).expanduser().absolute()
        self.runs = {name: _open(run, name, root) for name, run in zip(_names(loaded), loaded, strict=True)}
        self.notices = list(_notices(list(self.runs.values())))
        self.pictures = PictureFiles()

    def row_beside(self, name: str, image: str) -> int | None:
        """Row of the same picture in another run; None where that run does not have it."""
        return self.runs[name].row_of.get(image)

    def shown(self, name: str, row: int, side: int) -> Shown:
        """A picture with its mask, the longer side `side` pixels."""
        opened = self.runs[name]
        return self.pictures.load(*opened.files(row), side, opened.run.settings.image_size)

    def prefetch(self, name: str, row: int, side: int) -> None:
        """Decode a picture that is likely to be next."""
        opened = self.runs[name]
        self.pictures.prefetch(*opened.files(row), side, opened.run.settings.image_size)

    def thumbnails(self, name: str, rows: Iterable[int]) -> list[bytes]:
        """Small JPEGs of some rows."""
        return self.pictures.thumbnails(self._images(name, rows))

    def prefetch_thumbnails(self, name: str, rows: Iterable[int]) -> None:
        """Decode a page that is likely to be next."""
        self.pictures.prefetch_thumbnails(self._images(name, rows))

    def _images(self, name: str, rows: Iterable[int]) -> list[Path | None]:
        return [self.runs[name].files(row)[0] for row in rows]


def _open(run: Run, name: str, data_root: Path | None) -> OpenedRun:
    table, metrics = stored_tables(run, need_test=False)
    maps = stored_maps(run, len(table))
    prob = table["probability"]
    table["confidence"] = prob.where(table["predicted"] == 1, 1 - prob)
    table["found"] = table["verdict"] == "TP"
    return OpenedRun(
        name=name,
        run=run,
        root=data_root or run.settings.data_root,
        table=table,
        maps={kind: maps[kind] for kind in KINDS if kind in maps},
        scales={kind: MapScale(**scale) for kind, scale in metrics.get("map_scales", {}).items()},
        threshold=float(metrics["threshold"]),
        notes=Notes(run.folder / "notes.csv"),
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """The strategy, and as much more as tells the runs apart."""
    names = [_strategy(run) for run in runs]
    for more in (
        lambda run: f"seed {run.settings.seed}",
        lambda run: run.settings.experiment,
        lambda run: str(run.folder),
    ):
        if len(set(names)) == len(names):
            break
        twice = {name for name, count in Counter(names).items() if count > 1}
        names = [f"{name} {more(run)}" if name in twice else name for name, run in zip(names, runs)]
    if len(set(names)) < len(names):
        raise RunError(f"{runs[0].folder}: the same run was given twice")
    return names


def _strategy(run: Run) -> str:
    return f"{run.settings.strategy} (oracle)" if run.metrics.get("label_leaks") else run.settings.strategy


def _notices(opened: Sequence[OpenedRun]) -> Iterable[str]:
    for root, runs in _by_root(opened).items():
        if not runs[0].has_root:
            yield (
                f"The folder {root} of the pictures is missing: verdicts and maps are shown on a grey ground. "
                "If the pictures moved, name their folder with data_root."
            )
    for one in opened:
        if not one.has_masks:
            yield (
                f"{one.name}: no defect is annotated, so there is no outline, no CAM-IoU and nothing to call right for "
                "the wrong reason. Verdicts, confidence and maps are there."
            )
        if not one.scales:
            yield f"{one.name}: no absolute scale (it needs a validation split); maps are shown per image."
        if one.run.metrics.get("label_leaks"):
            yield f"{one.name}: was given the ground truth as its mask; what it shows is no result."
    first = opened[0]
    for other in opened[1:]:
        yield from _mismatch(first, other)


def _by_root(opened: Sequence[OpenedRun]) -> dict[Path, list[OpenedRun]]:
    roots: dict[Path, list[OpenedRun]] = {}
    for one in opened:
        roots.setdefault(one.root, []).append(one)
    return roots


def _mismatch(first: OpenedRun, other: OpenedRun) -> Iterable[str]:
    common = len(first.row_of.keys() & other.row_of.keys())
    if not common:
        yield (
            f"{first.name} and {other.name} have no picture in common: they cannot be shown side by side, "
            "each can be browsed by itself."
        )
    elif common < len(first.row_of):
        yield f"{other.name} has {common} of the {len(first.row_of)} pictures of {first.name}; the others are left out."
    digests = [one.run.manifest.get("data_digest") for one in (first, other)]
    if common and digests[0] != digests[1]:
        yield (
            f"{first.name} and {other.name} were trained on different data: pictures are matched by path alone and "
            "may not be the same."
        )
