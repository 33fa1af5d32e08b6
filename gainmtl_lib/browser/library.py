"""What finished runs left behind, ready to be looked through, and what people noted on it.

Sizes: N pictures, h x w cells of a map.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.efficientad.evaluate import Novelty, out_of_date, stored_novelty
from gainmtl_lib.efficientad.train import EfficientADRun, open_run
from gainmtl_lib.evaluation import AnyRun, stored_maps, stored_tables
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.runs import Run, RunError, StoredRun, atomic_path, row_name

# --- Notes


NOTE_COLUMNS = ["image", "check_label", "note", "time"]


class NotesError(ValueError):
    """A notes file that cannot be read; it is left as it is."""


class Note(NamedTuple):
    """What was last said of a picture: whether its label needs a check, free words, and when (ISO 8601)."""

    check_label: bool = False
    text: str = ""
    time: str = ""


class Notes:
    """Notes on the pictures of one run, in a CSV beside it that anyone can open.

    Saving adds a line and changes none, so that no earlier note is lost; the last line of a picture counts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def last(self) -> dict[str, Note]:
        """The last note by picture, read anew each time.

        Raises:
            NotesError: the file cannot be read.
        """
        table = self._read().drop_duplicates("image", keep="last")
        marked = table["check_label"].str.strip().str.lower().isin(["yes", "true", "1"])
        return dict(zip(table["image"], map(Note, marked, table["note"], table["time"])))

    def marked(self) -> list[str]:
        """Pictures whose label needs a check; none where the file cannot be read, which the note's own field says."""
        try:
            return [image for image, note in self.last().items() if note.check_label]
        except NotesError:
            return []

    def save(self, image: str, *, check_label: bool, text: str) -> Note:
        """Add a line.

        Raises:
            NotesError: what is there cannot be read, so nothing is written over it.
            FileError: the file cannot be written.
        """
        note = Note(check_label, text.strip(), datetime.now().astimezone().isoformat(timespec="seconds"))
        line = [image, "yes" if check_label else "", note.text, note.time]
        table = pd.concat([self._read(), pd.DataFrame([line], columns=NOTE_COLUMNS)]).fillna("")
        with atomic_path(self.path) as temporary:
            table.to_csv(temporary, index=False, encoding="utf-8-sig")  # Excel reads Korean by the mark alone
        return note

    def _read(self) -> pd.DataFrame:
        """Every line as text, columns of others included."""
        try:
            table = pd.read_csv(self.path, dtype=str, keep_default_na=False, encoding="utf-8-sig").fillna("")
        except FileNotFoundError:
            return pd.DataFrame(columns=NOTE_COLUMNS)
        except (OSError, ValueError) as error:
            raise NotesError(f"{self.path}: cannot be read as a table: {error}; mend or rename it") from None
        if not set(NOTE_COLUMNS) <= set(table) or not isinstance(table.index, pd.RangeIndex):
            raise NotesError(
                f"{self.path}: expected the columns {', '.join(NOTE_COLUMNS)} separated by commas, got "
                f"{list(table)}; mend or rename the file: nothing is written over it"
            )
        return table


# --- What results are called


class MapWords(NamedTuple):
    """A map's name, its short one, what its overlap with the defect is called, and that overlap's column."""

    name: str
    short: str
    iou: str
    column: str


MAPS = {
    "cam": MapWords("deciding CAM", "CAM", "CAM-IoU", "cam_iou"),
    "anomaly": MapWords("anomaly", "anomaly", "anomaly IoU", "anomaly_iou"),
    "attention": MapWords("attention", "attention", "attention IoU", "attention_iou"),
    "localization": MapWords("localization", "localization", "localization IoU", "loc_iou"),
}
"""Every kind by the name that its file has in a run's folder, the main ones first."""
MAIN_MAPS = ("cam", "anomaly")


class System(NamedTuple):
    """How the results of one of the two systems are read."""

    score: str  # the column that the verdict is from; high is defective
    score_name: str
    digits: int  # behind the point, as many as it takes to tell scores of this kind apart
    main: str  # kind of the map that shows where the verdict comes from
    energy: str  # column of that map's energy inside the defect

    def rounded(self, score: float) -> str:
        """A score, or what it is compared with, as it is shown."""
        return f"{score:.{self.digits}f}"


GAIN_MTL = System("probability", "p(defect)", 2, "cam", "energy_inside")
EFFICIENTAD = System("anomaly_score", "anomaly score", 3, "anomaly", "anomaly_energy_inside")
VERDICTS = {"TP": "defect found", "FN": "defect missed", "FP": "false alarm", "TN": "normal passed"}

ORDERS: dict[str, tuple[str, dict[str, bool]]] = {
    "wrong_reason": ("right for the wrong reason first", {"wrong_reason": False, "found": False, "energy": True}),
    "unsure": ("least confident first", {"confidence": True}),
    "sure": ("most confident first", {"confidence": False}),
    "low_iou": ("lowest IoU first", {"iou": True}),
    "high_iou": ("highest IoU first", {"iou": False}),
    "large": ("largest defect first", {"defect_area": False}),
    "small": ("smallest defect first", {"defect_area": True}),
    "stored": ("as stored", {}),
}
"""Name, words, and the columns to sort by (True: ascending); rows without an answer come last."""
# --- One run


@dataclass(frozen=True)
class OpenedRun:
    """One run's results.

    Attributes:
        name: as short as tells it from the others, such as ``S5`` or ``EfficientAD``.
        root: folder that the table's paths are below.
        table: the predictions with ``score``, ``iou`` and ``energy`` of the run's system, ``confidence`` of the
            verdict and ``found`` (TP) added, and the flags of `novelty`.
        maps: kind to (N, h, w), memory-mapped.
        scales: absolute scale by map; a map without one is shown per image.
        threshold: of the decision.
        novelty: which pictures EfficientAD flags as novel; None where it was not asked.
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

    def image(self, row: int) -> str:
        """Path of a row's picture, as the table names it."""
        return str(self.table["image"].iloc[row])

    def files(self, row: int) -> tuple[Path | None, Path | None]:
        """Image and mask; None for a mask that is not there, and for both where the folder is missing."""
        if not self.root.is_dir():
            return None, None
        mask = self.table["mask"].iloc[row]
        return self.root / self.image(row), self.root / mask if isinstance(mask, str) else None

    def choose(
        self, *, order: str = "stored", marked_only: bool = False, novel_only: bool = False, **wanted: str
    ) -> NDArray[np.intp]:
        """Rows that fit, in one of the `ORDERS`; `wanted` gives values of columns, an empty text leaves one free."""
        rows = self.table
        for column, value in wanted.items():
            rows = rows[rows[column] == value] if value else rows
        if marked_only:
            rows = rows[rows["image"].isin(self.notes.marked())]
        if novel_only:
            rows = rows.iloc[:0] if self.novelty is None else rows[rows["novel"]]
        if columns := ORDERS[order][1]:
            rows = rows.sort_values([*columns], ascending=[*columns.values()], kind="stable")
        return rows.index.to_numpy()

    def counts(self, column: str, **choice: Any) -> dict[str, int]:
        """How many rows each value of a column would leave, the other filters of `choose` as they are."""
        choice |= {column: "", "order": "stored"}
        rows = self.choose(**choice)
        return {str(value): int(n) for value, n in self.table[column].iloc[rows].value_counts().items()}

    def own_kind(self, kind: str) -> str:
        """The kind of map that stands here for `kind`: a system's main map answers to the other's."""
        return self.system.main if kind in MAIN_MAPS else kind

    def why_no_map(self, kind: str) -> str:
        """Says that the run lacks a map, and what it has."""
        have = " and ".join(MAPS[name].name for name in self.maps)
        return f"{self.name} has no {MAPS[kind].name} map; it has: {have}"


def _open(run: AnyRun, name: str, data_root: Path | None) -> OpenedRun:
    table, metrics = stored_tables(run, need_test=False)
    maps, threshold = stored_maps(run, len(table)), float(metrics["threshold"])
    system, novelty = EFFICIENTAD, None
    if isinstance(run, Run):
        system, novelty = GAIN_MTL, stored_novelty(run)
    if novelty is not None:
        flags = ["anomaly_score", "anomalous", "novel"]
        table[flags] = novelty.table[flags]
    return OpenedRun(
        name=name,
        run=run,
        system=system,
        root=_root(run.settings, data_root),
        table=table.assign(
            score=table[system.score],
            iou=table[MAPS[system.main].column],
            energy=table[system.energy],
            confidence=(table[system.score] - threshold).abs(),
            found=table["verdict"] == "TP",
        ),
        maps={kind: maps[kind] for kind in MAPS if kind in maps},
        scales={kind: MapScale(**scale) for kind, scale in metrics.get("map_scales", {}).items()},
        threshold=threshold,
        notes=Notes(run.folder / "notes.csv"),
        novelty=novelty,
    )


def _root(settings: Any, data_root: Path | None) -> Path:
    if data_root is None:
        return settings.dataset_folder
    below = data_root / settings.dataset_folder.relative_to(settings.data_root)
    return below if below.is_dir() else data_root


# --- Several runs


Runs = AnyRun | str | Path | Sequence[AnyRun | str | Path]


def open_runs(runs: Runs, *, data_root: str | Path | None = None) -> dict[str, OpenedRun]:
    """Open runs to be looked through side by side, by name, in the order given.

    Args:
        runs: one or several of either system, as `Run`, `EfficientADRun` or folders.
        data_root: where the pictures lie now, when they moved since the runs were trained; of a category's run its own
            folder, or the one that the categories are in.

    Raises:
        RunError: no run was given, one of them is unfinished or not evaluated, or its files do not fit together.
    """
    given = [runs] if isinstance(runs, StoredRun | str | Path) else list(runs)
    if not given:
        raise RunError("no run was given; give one or several, such as load_run('outputs/quick/s5/seed42')")
    loaded = [open_run(run) if isinstance(run, str | Path) else run for run in given]
    root = None if data_root is None else Path(data_root).expanduser().absolute()
    return {name: _open(run, name, root) for name, run in zip(_names(loaded), loaded, strict=True)}


def _names(runs: Sequence[AnyRun]) -> list[str]:
    """The strategy or system, and as much more as tells the runs apart."""
    names = [_name(run) for run in runs]
    for more in (
        lambda run: f"seed {run.settings.seed}",
        lambda run: run.settings.experiment,
        lambda run: str(run.folder),
    ):
        twice = {name for name, count in Counter(names).items() if count > 1}
        names = [f"{name} {more(run)}" if name in twice else name for name, run in zip(names, runs)]
    if len(set(names)) < len(names):
        raise RunError(f"{runs[0].folder}: the same run was given twice")
    return names


def _name(run: AnyRun) -> str:
    if isinstance(run, EfficientADRun):
        return "EfficientAD" if run.settings.category is None else f"EfficientAD {run.settings.category}"
    return row_name(run.settings) + (" (oracle)" if run.metrics.get("label_leaks") else "")


def notices(opened: Sequence[OpenedRun]) -> Iterator[str]:
    """What is missing or does not fit, and must be said before anybody looks: one sentence each."""
    for root in dict.fromkeys(one.root for one in opened if not one.root.is_dir()):
        yield (
            f"The folder {root} of the pictures is missing: verdicts and maps are shown on a grey ground. "
            "If the pictures moved, name their folder with data_root."
        )
    for one in opened:
        if one.table["iou"].isna().all():
            yield (
                f"{one.name}: no defect is annotated, so there is no outline, no {MAPS[one.system.main].iou} and "
                "nothing to call right for the wrong reason. Verdicts, confidence and maps are there."
            )
        if not one.scales:
            yield f"{one.name}: no absolute scale (it needs a validation split); maps are shown per image."
        if one.run.metrics.get("label_leaks"):
            yield f"{one.name}: was given the ground truth as its mask; what it shows is no result."
        # Wherever EfficientAD had a part in what is shown, its teacher stands beside it.
        if isinstance(one.run, EfficientADRun):
            yield f"{one.name}: teacher {one.run.teacher}."
        elif teacher := one.run.metrics.get("teacher"):
            yield f"{one.name}: its attention takes masks from EfficientAD; teacher {teacher}."
        if one.novelty is not None:
            source, teacher = one.novelty.summary["efficientad_run"], one.novelty.teacher
            yield f"{one.name}: novel pictures are flagged by EfficientAD ({source}); teacher {teacher}."
        if isinstance(one.run, Run) and (why := out_of_date(one.run)):
            yield f"{one.name}: novel pictures are not marked: {why}."
    for other in opened[1:]:
        yield from _mismatch(opened[0], other)


def _mismatch(first: OpenedRun, other: OpenedRun) -> Iterator[str]:
    """What keeps two runs from being compared picture by picture."""
    common = len(first.row_of.keys() & other.row_of.keys())
    if not common:
        yield (
            f"{first.name} and {other.name} have no picture in common: they cannot be shown side by side, "
            "each can be browsed by itself."
        )
        return
    if common < len(first.row_of):
        yield f"{other.name} has {common} of the {len(first.row_of)} pictures of {first.name}; the others are left out."
    unlike = ""
    if first.system is not other.system:  # EfficientAD leaves defects out, so that its digests are its own
        if first.root.resolve() != other.root.resolve():
            unlike = "have their pictures in different folders"
    elif first.run.manifest.get("data_digest") != other.run.manifest.get("data_digest"):
        unlike = "were trained on different data"
    if unlike:
        yield f"{first.name} and {other.name} {unlike}: pictures are matched by path alone and may not be the same."
