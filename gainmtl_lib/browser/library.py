"""Notes of people on single pictures, in a CSV beside the run that anyone can open.

Saving adds a line and changes none: an earlier note is never lost. The last line of a picture counts. The file begins
with a byte order mark, without which Excel takes Korean for another encoding.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from gainmtl_lib.efficientad.evaluate import OUT_OF_DATE, Novelty, is_stale, stored_novelty
from gainmtl_lib.efficientad.train import EfficientADRun, open_run
from gainmtl_lib.evaluation import AnyRun, stored_tables
from gainmtl_lib.evaluation import stored_maps_stored as stored_maps
from gainmtl_lib.figures import PictureFiles, Shown
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.runs import FileError, Run, RunError, StoredRun, atomic_path, row_name

COLUMNS = ("image", "check_label", "note", "time")
YES = "yes"
WAIT_SECONDS = 5.0


class NotesError(ValueError):
    """A notes file that cannot be read; it is left as it is."""


@dataclass(frozen=True)
class Note:
    """What was last said of a picture.

    Attributes:
        check_label: whether somebody should look at its label again.
        text: free words.
        time: when it was saved, ISO 8601 with the offset; empty for a picture that nobody spoke of.
    """

    check_label: bool = False
    text: str = ""
    time: str = ""


NOTHING_SAID = Note()


class Notes:
    """The notes of one run.

    Args:
        path: the CSV; it appears with the first note.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_at: tuple[int, int] | None = None
        self._last: dict[str, Note] = {}

    def of(self, image: str) -> Note:
        """The last note on a picture.

        Raises:
            NotesError: the file cannot be read.
        """
        return self._latest().get(image, NOTHING_SAID)

    @property
    def problem(self) -> str:
        """Why the file cannot be read; empty where it can."""
        try:
            self._latest()
        except NotesError as error:
            return str(error)
        return ""

    def marked(self) -> set[str]:
        """Pictures whose label somebody wants checked."""
        return {image for image, note in self._latest().items() if note.check_label}

    def save(self, image: str, *, check_label: bool | None = None, text: str | None = None) -> Note:
        """Add a line, after reading again what others added meanwhile.

        Args:
            image: path of the picture.
            check_label: None keeps what was last said, by whomever.
            text: likewise.

        Raises:
            NotesError: what is there cannot be read, so nothing is written over it.
            FileError: the file cannot be written.
        """
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            raise FileError(f"{self.path}: another program is writing notes here; try again") from None
        except OSError as error:
            raise FileError(f"{self.path}: could not be written: {error.strerror}") from None
        try:
            last = self.of(image)
            note = Note(
                last.check_label if check_label is None else check_label,
                last.text if text is None else text.strip(),
                datetime.now().astimezone().isoformat(timespec="seconds"),
            )
            self._append(image, note)
        finally:
            lock.release()
        return note

    def _append(self, image: str, note: Note) -> None:
        written, names = self._read()
        added = io.StringIO()
        writer = csv.DictWriter(added, names, lineterminator="\n")
        if not written:
            writer.writeheader()
        elif not written.endswith("\n"):
            added.write("\n")
        mark = YES if note.check_label else ""
        writer.writerow({"image": image, "check_label": mark, "note": note.text, "time": note.time})
        with atomic_path(self.path) as temporary:
            temporary.write_text(written + added.getvalue(), encoding="utf-8-sig", newline="")

    def _latest(self) -> dict[str, Note]:
        """Last note by picture; the file is read again only when it changed."""
        try:
            state = self.path.stat()
        except OSError:
            return {}
        if self._read_at != (state.st_mtime_ns, state.st_size):
            text, names = self._read()
            rows = csv.DictReader(io.StringIO(text, newline=""), names)
            next(rows, None)
            self._last = {row["image"]: _note(row) for row in rows}
            self._read_at = state.st_mtime_ns, state.st_size
        return self._last

    def _read(self) -> tuple[str, list[str]]:
        """The text as it stands, without a byte order mark, and its columns, others' own among them."""
        if not self.path.exists():
            return "", list(COLUMNS)
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise NotesError(f"{self.path}: cannot be read as UTF-8 text: {error}") from None
        names = next(csv.reader(io.StringIO(text, newline="")), [])
        if text and not set(COLUMNS) <= set(names):
            raise NotesError(
                f"{self.path}: expected the columns {', '.join(COLUMNS)} separated by commas, got {names}; "
                "mend or rename the file: nothing is written over it"
            )
        return text, names or list(COLUMNS)


def _note(row: dict[str, str | None]) -> Note:
    marked = (row["check_label"] or "").strip().lower() in {YES, "true", "1"}
    return Note(marked, row["note"] or "", row["time"] or "")


# --- What the results of the two systems are called where people look at them


@dataclass(frozen=True)
class MapWords:
    """A kind of map.

    Attributes:
        name: in a sentence.
        short: where there is little room.
        iou: what its overlap with the annotated defect is called.
        column: of that overlap in the table of predictions.
    """

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


@dataclass(frozen=True)
class System:
    """How one system's results are read.

    Attributes:
        name: of a run, as short as can be.
        score: the column that the verdict is from; high is defective.
        score_name: what it is called.
        digits: behind the point, as many as it takes to tell scores of this kind apart.
        main: kind of the map that shows where the verdict comes from.
        energy: column of that map's energy inside the defect.
        lacks: kind to why a run may have no such map.
        confidence: of the verdicts of a table of predictions, (N,), given the threshold.
    """

    name: Callable[[AnyRun], str]
    score: str
    score_name: str
    digits: int
    main: str
    energy: str
    lacks: Mapping[str, str]
    confidence: Callable[[pd.DataFrame, float], pd.Series]

    @property
    def iou_name(self) -> str:
        """What the main map's overlap with the annotated defect is called."""
        return MAPS[self.main].iou

    def rounded(self, score: float) -> str:
        """A score, or what it is compared with, as it is shown."""
        return f"{score:.{self.digits}f}"


def _strategy(run: AnyRun) -> str:
    assert isinstance(run, Run)
    name = row_name(run.settings)
    return f"{name} (oracle)" if run.metrics.get("label_leaks") else name


def _efficientad(run: AnyRun) -> str:
    assert isinstance(run, EfficientADRun)
    return "EfficientAD" if run.settings.category is None else f"EfficientAD {run.settings.category}"


def _probability_of_verdict(table: pd.DataFrame, threshold: float) -> pd.Series:
    return table["probability"].where(table["predicted"] == 1, 1 - table["probability"])


def _distance_to_threshold(table: pd.DataFrame, threshold: float) -> pd.Series:
    return (table["anomaly_score"] - threshold).abs()


GAIN_MTL = System(
    name=_strategy,
    score="probability",
    score_name="p(defect)",
    digits=2,
    main="cam",
    energy="energy_inside",
    lacks={"attention": "from S3 on", "localization": "from S4 on"},
    confidence=_probability_of_verdict,
)
EFFICIENTAD = System(
    name=_efficientad,
    score="anomaly_score",
    score_name="anomaly score",
    digits=3,
    main="anomaly",
    energy="anomaly_energy_inside",
    lacks={"attention": "GAIN-MTL has one", "localization": "GAIN-MTL has one"},
    confidence=_distance_to_threshold,
)
MAIN_MAPS = (GAIN_MTL.main, EFFICIENTAD.main)


def system_of(run: AnyRun) -> System:
    """The system that a run is of."""
    return EFFICIENTAD if isinstance(run, EfficientADRun) else GAIN_MTL


# --- One run's results, opened to be looked through


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


# --- What must be said of opened runs before anybody looks


def notices(opened: Sequence[OpenedRun]) -> Iterable[str]:
    """One sentence each."""
    for root, runs in _by_root(opened).items():
        if not runs[0].has_root:
            yield (
                f"The folder {root} of the pictures is missing: verdicts and maps are shown on a grey ground. "
                "If the pictures moved, name their folder with data_root."
            )
    for one in opened:
        if not one.has_masks:
            yield (
                f"{one.name}: no defect is annotated, so there is no outline, no {one.system.iou_name} and nothing to "
                "call right for the wrong reason. Verdicts, confidence and maps are there."
            )
        if not one.scales:
            yield f"{one.name}: no absolute scale (it needs a validation split); maps are shown per image."
        if one.run.metrics.get("label_leaks"):
            yield f"{one.name}: was given the ground truth as its mask; what it shows is no result."
        yield from _teachers(one)
        if isinstance(one.run, Run) and is_stale(one.run):
            yield f"{one.name}: novel pictures are not marked: {OUT_OF_DATE.format(folder=one.run.folder)}."
    first = opened[0]
    for other in opened[1:]:
        yield from _mismatch(first, other)


def _teachers(one: OpenedRun) -> Iterable[str]:
    """Wherever EfficientAD had a part in what is shown, its teacher stands beside it."""
    if isinstance(one.run, EfficientADRun):
        yield f"{one.name}: teacher {one.run.teacher}."
    elif teacher := one.run.metrics.get("teacher"):
        yield f"{one.name}: its attention takes masks from EfficientAD; teacher {teacher}."
    if one.novelty is not None:
        teacher = one.novelty.teacher
        yield f"{one.name}: novel pictures are flagged by EfficientAD ({one.novelty.source}); teacher {teacher}."


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
    if common and (unlike := _unlike(first, other)):
        yield f"{first.name} and {other.name} {unlike}: pictures are matched by path alone and may not be the same."


def _unlike(first: OpenedRun, other: OpenedRun) -> str:
    """Why pictures of the same path may be others; empty where nothing says so."""
    if first.system is other.system:
        return "were trained on different data" if first.data_digest != other.data_digest else ""
    return "have their pictures in different folders" if first.root.resolve() != other.root.resolve() else ""


# --- What finished runs left behind, ready to be looked through


Runs = AnyRun | str | Path | Sequence[AnyRun | str | Path]


class PictureLibrary:
    """Several runs opened side by side, their pictures matched by path.

    Args:
        runs: one or several of either system, as `Run`, `EfficientADRun` or folders.
        data_root: where the pictures lie now, when they moved since the runs were trained; of a category's run its own
            folder, or the one that the categories are in.

    Attributes:
        runs: by name, in the order given.
        notices: what is missing or does not fit, one sentence each.

    Raises:
        RunError: no run was given, one of them is unfinished or not evaluated, or its files do not fit together.
    """

    def __init__(self, runs: Runs, *, data_root: str | Path | None = None) -> None:
        given = [runs] if isinstance(runs, StoredRun | str | Path) else list(runs)
        if not given:
            raise RunError("no run was given; give one or several, such as load_run('outputs/quick/s5/seed42')")
        loaded = [open_run(run) if isinstance(run, str | Path) else run for run in given]
        root = None if data_root is None else Path(data_root).expanduser().absolute()
        self.runs = {name: _open(run, name, root) for name, run in zip(_names(loaded), loaded, strict=True)}
        self.notices = list(notices(list(self.runs.values())))
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


def _open(run: AnyRun, name: str, data_root: Path | None) -> OpenedRun:
    table, metrics = stored_tables(run, need_test=False)
    maps = stored_maps(run, len(table))
    system, threshold = system_of(run), float(metrics["threshold"])
    novelty = stored_novelty(run) if isinstance(run, Run) else None
    if novelty is not None:
        table[FLAGS] = novelty.table[FLAGS]
    return OpenedRun(
        name=name,
        run=run,
        system=system,
        root=_root(run, data_root),
        table=table.assign(
            score=table[system.score],
            iou=table[MAPS[system.main].column],
            energy=table[system.energy],
            confidence=system.confidence(table, threshold),
            found=table["verdict"] == "TP",
        ),
        maps={kind: maps[kind] for kind in MAPS if kind in maps},
        scales={kind: MapScale(**scale) for kind, scale in metrics.get("map_scales", {}).items()},
        threshold=threshold,
        notes=Notes(run.folder / "notes.csv"),
        novelty=novelty,
    )


def _root(run: AnyRun, data_root: Path | None) -> Path:
    settings = run.settings
    if data_root is None:
        return settings.dataset_folder
    below = data_root / settings.dataset_folder.relative_to(settings.data_root)
    return below if below.is_dir() else data_root


def _names(runs: Sequence[AnyRun]) -> list[str]:
    """The strategy or system, and as much more as tells the runs apart."""
    names = [system_of(run).name(run) for run in runs]
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
