"""What finished runs left behind, ready to be looked through: their tables, notes on them, and their pictures drawn.

Sizes: N pictures, H x W network input, h x w cells of a map.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib import figures
from gainmtl_lib.backbone import ModelError
from gainmtl_lib.efficientad.evaluate import out_of_date, stored_novelty
from gainmtl_lib.efficientad.train import EfficientADRun, open_run
from gainmtl_lib.evaluation import NEEDED_OF, AnyRun, stored_maps, stored_tables
from gainmtl_lib.explain import DefectExplainer, answer
from gainmtl_lib.findings import DataError
from gainmtl_lib.labels import inside, mask_of, resize_image
from gainmtl_lib.layouts import CLASS_NAMES
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.pictures import read_image
from gainmtl_lib.runs import Run, RunError, StoredRun, atomic_path, row_name
from gainmtl_lib.settings import Settings, strategies_with

# --- Notes

NOTE_COLUMNS = ["image", "check_label", "note", "time"]


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
        """The last note by picture, read anew each time."""
        table = self._read().drop_duplicates("image", keep="last")
        marked = table["check_label"].str.strip().str.lower().isin(["yes", "true", "1"])
        return dict(zip(table["image"], map(Note, marked, table["note"], table["time"])))

    def marked(self) -> list[str]:
        """Pictures whose label needs a check; none where the file cannot be read, which the note's own field says."""
        try:
            return [image for image, note in self.last().items() if note.check_label]
        except RunError:
            return []

    def save(self, image: str, *, check_label: bool, text: str) -> Note:
        """Add a line; where what is there cannot be read nothing is written over it (`RunError`, or `FileError`)."""
        note = Note(check_label, text.strip(), datetime.now().astimezone().isoformat(timespec="seconds"))
        line = [image, "yes" if check_label else "", note.text, note.time]
        table = pd.concat([self._read(), pd.DataFrame([line], columns=NOTE_COLUMNS)]).fillna("")
        with atomic_path(self.path) as temporary:
            table.to_csv(temporary, index=False, encoding="utf-8-sig")  # Excel reads Korean by the mark alone
        return note

    def _read(self) -> pd.DataFrame:
        try:
            table = pd.read_csv(self.path, dtype=str, keep_default_na=False, encoding="utf-8-sig").fillna("")
        except FileNotFoundError:
            return pd.DataFrame(columns=NOTE_COLUMNS)
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path}: cannot be read as a table: {error}; mend or rename it") from None
        if not set(NOTE_COLUMNS) <= set(table) or not isinstance(table.index, pd.RangeIndex):
            raise RunError(
                f"{self.path}: expected the columns {', '.join(NOTE_COLUMNS)} separated by commas, got "
                f"{list(table)}; mend or rename the file: nothing is written over it"
            )
        return table


# --- What results are called

MAPS = {"cam": "CAM", "anomaly": "anomaly", "attention": "attention", "localization": "localization"}
"""Every kind by the name that its file has in a run's folder, the main ones first."""
IOU_COLUMNS = {"cam": "cam_iou", "anomaly": "anomaly_iou", "attention": "attention_iou", "localization": "loc_iou"}
SCORES = {"cam": "p(defect) {:.2f}", "anomaly": "anomaly score {:.3f}"}
"""What each system's verdict is from, by its main map, with as many digits as tell scores of this kind apart."""
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


class OpenedRun:
    """One run's results; its name is as short as tells it from the others, such as ``S5`` or ``EfficientAD``."""

    def __init__(self, run: AnyRun, name: str, data_root: Path | None) -> None:
        self.run, self.name, self.notes = run, name, Notes(run.folder / "notes.csv")
        # None where EfficientAD was not asked for novel pictures.
        self.novelty = stored_novelty(run) if isinstance(run, Run) else None
        table, metrics = stored_tables(run, need_test=False)
        table["novel"] = False
        if self.novelty is not None:
            flags = ["anomaly_score", "anomalous", "novel"]
            table[flags] = self.novelty.table[flags]
        self.threshold = float(metrics["threshold"])
        score, iou, _, energy = NEEDED_OF[run.main_map]
        self.table = table.assign(
            score=table[score],
            iou=table[iou],
            energy=table[energy],
            confidence=(table[score] - self.threshold).abs(),
            found=table["verdict"] == "TP",
        )
        self.row_of = {image: row for row, image in enumerate(table["image"])}
        maps = stored_maps(run, len(table))  # (N, h, w) each, memory-mapped
        self.maps = {kind: maps[kind] for kind in MAPS if kind in maps}
        # A map without an absolute scale is shown per image.
        self.scales = {kind: MapScale(**scale) for kind, scale in metrics.get("map_scales", {}).items()}
        self.root = run.settings.dataset_folder
        if data_root is not None:
            below = data_root / self.root.relative_to(run.settings.data_root)
            self.root = below if below.is_dir() else data_root

    def image(self, row: int) -> str:
        """As the table names it."""
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
            rows = rows[rows["novel"]]
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
        return self.run.main_map if kind in SCORES else kind


# --- Several runs

Runs = AnyRun | str | Path | Sequence[AnyRun | str | Path]


def open_runs(runs: Runs, *, data_root: str | Path | None = None) -> dict[str, OpenedRun]:
    """Open runs of either system to be looked through side by side, by name, in the order given, see `CamBrowser`.

    The `data_root` of a category's run is its own folder, or the one that the categories are in.
    """
    given = [runs] if isinstance(runs, StoredRun | str | Path) else list(runs)
    if not given:
        raise RunError("no run was given; give one or several, such as load_run('outputs/quick/s5/seed42')")
    loaded = [open_run(run) if isinstance(run, str | Path) else run for run in given]
    root = None if data_root is None else Path(data_root).expanduser().absolute()
    return {name: OpenedRun(run, name, root) for name, run in zip(_names(loaded), loaded)}


def _names(runs: Sequence[AnyRun]) -> list[str]:
    """The strategy or system, and as much more as tells the runs apart."""
    names = []
    for run in runs:
        if isinstance(run, EfficientADRun):
            names.append(" ".join(filter(None, ["EfficientAD", run.settings.category])))
        else:
            names.append(row_name(run.settings) + (" (oracle)" if run.metrics.get("label_leaks") else ""))
    for more in ("seed {0.settings.seed}", "{0.settings.experiment}", "{0.folder}"):
        counts = Counter(names)
        names = [f"{name} {more.format(run)}" if counts[name] > 1 else name for name, run in zip(names, runs)]
    if len(set(names)) < len(names):
        raise RunError(f"{runs[0].folder}: the same run was given twice")
    return names


def notices(opened: Sequence[OpenedRun]) -> Iterator[str]:
    """What is missing or does not fit, and must be said before anybody looks: one sentence each."""
    for root in dict.fromkeys(one.root for one in opened if not one.root.is_dir()):
        yield (
            f"The folder {root} of the pictures is missing: verdicts and maps are shown on a grey ground. "
            "If the pictures moved, name their folder with data_root."
        )
    for one in opened:
        if one.table["iou"].isna().all():
            yield f"{one.name}: no defect is annotated: no outline, no IoU, nothing to call right for the wrong reason."
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
    first = opened[0]
    for other in opened[1:]:
        common = len(first.row_of.keys() & other.row_of.keys())
        unlike = first.run.manifest["data_digest"] != other.run.manifest["data_digest"]
        if first.run.main_map != other.run.main_map:  # EfficientAD leaves defects out, so that its digests are its own
            unlike = first.root.resolve() != other.root.resolve()
        if not common:
            yield f"{first.name} and {other.name} have no picture in common; each can be browsed by itself."
        elif common < len(first.row_of):
            yield f"{other.name} has {common} of the {len(first.row_of)} pictures of {first.name}."
        if common and unlike:
            told = "are of different data: pictures are matched by path alone and may not be the same"
            yield f"{first.name} and {other.name} {told}."


# --- Pictures decoded once and kept for a while

THUMBNAIL = 84


class Shown(NamedTuple):
    """A picture ready to be drawn on, a grey field where the file is not there."""

    pixels: NDArray[np.uint8]  # RGB, as large as it is drawn
    size: tuple[int, int]  # height and width on disk
    mask: NDArray[np.bool_] | None  # as large as the pixels
    problem: str  # what is missing, in words


class PictureFiles:
    """Decoded pictures and thumbnails, the most recently used kept; safe to use from several threads."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)  # beside a training its threads wait for each other, and a picture takes 20 times as long
        self.load, self.thumbnail = lru_cache(32)(load_shown), lru_cache(4096)(thumbnail)
        self.readers = ThreadPoolExecutor(2)  # decoding releases the interpreter lock


def load_shown(image: Path | None, mask: Path | None, side: int, size: tuple[int, int]) -> Shown:
    """Decode a picture and its mask, the longer side of `side` pixels; a grey field of `size` without a file."""
    pixels, region, problems = figures.ground(size), None, []
    try:
        pixels = pixels if image is None else read_image(image)
    except DataError as error:
        problems.append(str(error).split(";")[0])
    h, w = pixels.shape[:2]
    try:
        region = None if mask is None else mask_of(image, mask, (h, w))
    except DataError as error:
        problems.append(str(error).split(";")[0])
    shape = figures.fitting((h, w), side)
    pixels = resize_image(pixels, shape, "squash")
    return Shown(pixels, (h, w), figures.resized_mask(region, shape), "; ".join(problems))


def thumbnail(path: Path | None) -> bytes:
    """A small JPEG of the whole picture; grey where the file is not there."""
    pixels: Any = figures.ground((THUMBNAIL, THUMBNAIL))
    with suppress(DataError, OSError, cv2.error):  # an empty file is an error of OpenCV's own
        if path is not None:
            jpeg = path.suffix.lower() in {".jpg", ".jpeg"}  # a quarter of its size is decoded several times faster
            small = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_REDUCED_COLOR_4) if jpeg else None
            if small is None or max(small.shape) < THUMBNAIL:
                pixels = read_image(path)
            else:
                pixels = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
    h, w = pixels.shape[:2]
    return figures.encode(resize_image(pixels, figures.fitting((h, w), THUMBNAIL), "squash"), quality=80)


# --- Panels


class Look(NamedTuple):
    """How maps are shown."""

    kind: str = "cam"  # one of `MAPS`; a run shows its own main map in place of the other system's; "" for none
    absolute: bool = True  # on the scale fixed on validation; otherwise stretched per image
    strength: float = 0.7  # of the overlay
    level: float = 0.5  # of the shown scale, where a white line is drawn
    outline: bool = True  # of the annotated defect


def plain_panel(shown: Shown, *, outline: bool) -> tuple[bytes, list[str]]:
    """The picture in its own colours as JPEG, and short sentences to stand below it."""
    text = "picture not found" if shown.problem else "picture"
    if outline and shown.mask is not None:
        text += " · outline: annotated defect"
    drawn = figures.overlay(shown.pixels, mask=shown.mask if outline else None)
    return figures.encode(figures.with_band(drawn, text, bar=False)), [shown.problem] if shown.problem else []


def map_panel(opened: OpenedRun, row: int, shown: Shown, look: Look) -> tuple[bytes, list[str]]:
    """The same with a run's map over it; a map that the run lacks is said instead."""
    mask = shown.mask if look.outline else None
    kind = opened.own_kind(look.kind)
    if kind not in opened.maps:
        drawn = figures.with_band(figures.overlay(shown.pixels, mask=mask), f"{opened.name} · no map", bar=False)
        have = " and ".join(MAPS[name] for name in opened.maps)
        return figures.encode(drawn), [f"{opened.name} has no {MAPS[kind]} map; it has: {have}"] if kind else []
    values = np.asarray(opened.maps[kind][row], dtype=np.float32)  # (h, w)
    scale = opened.scales.get(kind) if look.absolute else None
    size = opened.run.settings.image_size
    place = inside(shown.size, size, opened.run.settings.resize)
    heat = figures.enlarged_share(values, scale, size)[place]
    drawn = figures.overlay(shown.pixels, heat, strength=look.strength, level=look.level, mask=mask)
    nothing = scale is not None and not bool(scale.finds(values))
    text = f"{MAPS[kind]} · {'absolute' if scale else 'per-image'} scale" + " · nothing found" * nothing
    words = []
    if scale is None and look.absolute:
        words.append("No absolute scale for this map (it needs a validation split); shown per image.")
    if scale is not None and nothing:
        settings = opened.run.settings
        turns = isinstance(settings, Settings) and settings.has("evidence")
        why = "from where on evidence speaks for a defect" if turns else "where maps of normal parts end"
        words.append(f"Nothing found: the map stays below {scale.floor:z.2f}, {why}.")
    if scale is not None and not scale.separates:
        words.append("On defects this map rarely peaks above the floor of its scale: it shows only what exceeds it.")
    return figures.encode(figures.with_band(drawn, text, bar=True)), words


# --- Would the verdict stand without the defect?


def ask(opened: OpenedRun, row: int) -> list[str]:
    """The answer in sentences, from the run's model where it is at hand, else from the stored evaluation."""
    run, (image, mask) = opened.run, opened.files(row)
    if not isinstance(run, Run) or not run.settings.has("counterfactual") or not run.settings.use_counterfactual:
        have = f"{strategies_with('counterfactual')} have one unless use_counterfactual is false"
        return [f"{opened.name} has no counterfactual path; {have}."]
    try:
        if image is None:
            raise DataError(f"the folder {opened.root} of the pictures is missing")
        explained = DefectExplainer.from_run(run).explain(image, mask)
        if explained["counterfactual"] is not None:
            return [f"{opened.name}: {explained['counterfactual']['message']}", "Computed now, by the run's model."]
        said = explained.get("counterfactual_missing") or "the verdict is normal, so there is no defect to take away"
        return [f"{opened.name}: {said}."]
    except (DataError, ModelError, OSError, RuntimeError) as error:
        problem = f"Not asked of the model: {error}."
    record = opened.table.iloc[row]
    without, control = record.get("cf_probability"), record.get("cf_control_probability")
    if pd.isna(without):
        lacking = f"{opened.name}: the evaluation stored no answer for this picture (it has no annotated defect)."
        return [lacking, problem]
    moved = None if pd.isna(control) else float(control)
    stored = answer(float(record["probability"]), float(without), moved, opened.threshold, "annotation", CLASS_NAMES)
    return [f"{opened.name}: {stored['message']}", "From the stored evaluation.", problem]
