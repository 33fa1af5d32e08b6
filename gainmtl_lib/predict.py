"""Verdicts on new pictures: a row for each as it goes, from a run of either system or an exported model.

Sizes: height x width a picture as given; B pictures judged at once.
"""

import copy
import csv
import glob
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from gainmtl_lib import metrics
from gainmtl_lib.efficientad.train import EfficientADRun
from gainmtl_lib.explain import THRESHOLD, defect_boxes, read_picture
from gainmtl_lib.export import Card, Judge, Judged, is_export, open_judge
from gainmtl_lib.figures import encode, enlarged_share, fitting, overlay, with_band
from gainmtl_lib.findings import DataError
from gainmtl_lib.labels import Pixels, inside, resize_image
from gainmtl_lib.layouts import CLASS_NAMES
from gainmtl_lib.pictures import image_files
from gainmtl_lib.runs import FileError, Run, atomic_path, written
from gainmtl_lib.settings import LEAST_TILE

AT_ONCE = 8 * 512 * 512  # pixels of a batch: bounds the network's memory, whatever the pictures
MOST_AT_ONCE = 32  # pictures of a batch: bounds what is held of them, however small the network's input
AHEAD = min(32, (os.cpu_count() or 1) + 2)  # pictures that are decoded while others are judged
AHEAD_WHOLE = 2  # and of those that are looked at as large as they are
LONGEST_SHOWN = 2048  # pixels of the longer side, at which a larger picture is shown, and its defects are outlined


@dataclass(frozen=True)
class Prediction:
    """What is said of one picture; of one that could not be judged `error` alone, and why."""

    image: str  # its path, or its number where it was given as pixels
    width: int | None = None
    height: int | None = None
    verdict: str = ""  # a class name
    probability: float | None = None  # of a defect
    threshold: float | None = None  # from which the picture is called defective
    threshold_from: str = ""
    score: float | None = None  # that the probability is of: the margin, in S8 of the evidence, or the anomaly score
    boxes: tuple[tuple[int, int, int, int], ...] | None = None  # (x0, y0, x1, y1) of defects, the largest first
    area: float | None = None  # share of the picture that is called defect; None where a model localizes nothing
    defect_type: str = ""  # of a defective one, where the model tells types apart
    type_probability: float | None = None  # of this type among them, given that it is a defect
    anomaly_score: float | None = None  # of the EfficientAD run, where one is given
    novel: bool | None = None  # unlike the good parts although it passed
    model: str = ""  # which run, by its weights, how it was used, and which run flags what is new
    error: str = ""
    share: NDArray[np.float32] | None = None  # the deciding map in [0, 1] on its absolute scale, of the picture alone
    picture: Pixels | None = None  # as given, at most `LONGEST_SHOWN` pixels long; of a `Predictor` that keeps them

    @property
    def row(self) -> dict[str, Any]:
        """Its columns in the table of verdicts."""
        told = {name: getattr(self, name) for name in COLUMNS}
        if self.boxes is not None:
            told["boxes"] = "; ".join(" ".join(map(str, box)) for box in self.boxes)
        return {name: "" if value is None else _written(value) for name, value in told.items()}


COLUMNS = [field.name for field in fields(Prediction) if field.name not in ("share", "picture")]


def _written(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.9g}"
    return readable(value) if isinstance(value, str) else value


def readable(name: str | Path) -> str:
    """A name that can be written and printed: what is not UTF-8 in a file's is escaped, as in ``caf\\xe9.png``."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class _Read(NamedTuple):
    """One picture, decoded and, where it is judged whole, at the network's size; or why it could not be."""

    name: str
    size: tuple[int, int] = (0, 0)
    pixels: Pixels | None = None
    shown: Pixels | None = None
    for_novelty: Pixels | None = None
    error: str = ""


class Predictor:
    """Judges pictures one after the other, in order; a picture that cannot be read gives its reason in its place.

    Args:
        place: a finished and evaluated run of either system, its folder, or an export of it, see `open_judge`.
        threshold: probability from which a picture is called defective, in place of the model's own.
        required_recall: share of the defects to be found, in (0, 1]: the threshold for it is chosen on the run's own
            validation, see `metrics.recall_threshold`.
        novelty: a run of EfficientAD, or an export of one, that flags what is unlike the good parts.
        tile_size: (height, width) of overlapping tiles in which pictures are looked at in their own resolution; None:
            at the size and in the tiles of the training.
        tile_overlap: share of a tile that neighbours have in common, in [0, 0.5]; None is the training's.
        class_names: of normal and defective, in any language.
        keep_pictures: with what is said of them, to be `drawn`.
        judging: `device`, `threads` and `trust` of `open_judge`; the device is not of an exported `novelty`.

    `DataError`: both a threshold and a recall, one out of range, no validation defects to choose by, or tiles that the
    model cannot take. `RunError`, `ExportError`: nothing to judge by.
    """

    def __init__(
        self,
        place: str | Path | Run | EfficientADRun | Judge,
        *,
        threshold: float | None = None,
        required_recall: float | None = None,
        novelty: str | Path | EfficientADRun | None = None,
        tile_size: tuple[int, int] | None = None,
        tile_overlap: float | None = None,
        class_names: Sequence[str] | None = None,
        keep_pictures: bool = False,
        **judging: Any,
    ) -> None:
        self.judge = copy.copy(place) if isinstance(place, Judge) else open_judge(place, **judging)
        card = self.judge.card
        self.threshold, self.threshold_from = _threshold(card, threshold, required_recall)
        if isinstance(novelty, str | Path) and is_export(Path(novelty)):
            judging.pop("device", None)  # it is of the run
        self.novelty = None if novelty is None else open_judge(novelty, **judging)
        if self.novelty is not None and self.novelty.card.novelty_threshold is None:
            raise DataError(
                f"{novelty}: of {self.novelty.card.system}, which knows nothing new; give an EfficientAD run"
            )
        self.class_names = tuple(class_names or card.class_names)
        self.tile_size, self.keep_pictures = tile_size, keep_pictures
        changed: dict[str, Any] = {} if tile_overlap is None else {"tile_overlap": tile_overlap}
        if tile_size is not None:
            if not self.judge.any_size and tile_size != card.input_size:
                own = "x".join(map(str, card.input_size))
                raise DataError(f"tile_size is {'x'.join(map(str, tile_size))}, but the exported network takes {own}")
            if any(side % 32 or side < 32 for side in tile_size):
                raise DataError(f"tile_size must be multiples of 32 (the coarsest stride), got {list(tile_size)}")
            changed["input_size"] = tile_size
        if not 0 <= changed.get("tile_overlap", 0) <= 0.5:
            raise DataError(f"tile_overlap must lie in [0, 0.5], got {tile_overlap}")
        _check_shared(card.model_copy(update=changed), tile_size)
        self.judge.card = self.card = card.model_copy(update=changed)
        self.model = _identity(card)
        if self.in_tiles:
            size = f"{self.card.input_size[0]}x{self.card.input_size[1]}"
            self.model += f" in tiles of {size}, {self.card.tile_overlap:g} shared"
            self.model += " as given" if tile_size else ""
        if self.novelty is not None:
            self.model += f", novelty by {_identity(self.novelty.card)}"

    @property
    def in_tiles(self) -> bool:
        """Whether a picture may be looked at in more than one piece."""
        return self.tile_size is not None or self.card.input_size != self.card.image_size

    def __call__(self, pictures: Iterable[Any]) -> Iterator[Prediction]:
        """Predictions of pictures, paths or what `read_picture` takes, in their order; decoded in the background."""
        count, ahead = (1, AHEAD_WHOLE) if self.in_tiles else (_at_once(self.card), AHEAD)
        with ThreadPoolExecutor() as pool:
            coming = self._read_ahead(pool, pictures, ahead)
            for first in coming:
                yield from self._judged([first, *islice(coming, count - 1)])

    def _read_ahead(self, pool: ThreadPoolExecutor, pictures: Iterable[Any], ahead: int) -> Iterator[_Read]:
        numbered = enumerate(pictures)
        waiting = deque(pool.submit(self._read, *one) for one in islice(numbered, ahead))
        while waiting:
            read = waiting.popleft().result()
            waiting.extend(pool.submit(self._read, *one) for one in islice(numbered, 1))
            yield read

    def _read(self, number: int, picture: Any) -> _Read:
        name = str(picture) if isinstance(picture, str | os.PathLike) else f"[{number}]"
        try:
            pixels = read_picture(picture, name)
        except DataError as error:
            return _Read(name, error=readable(str(error)))
        size, other = (pixels.shape[0], pixels.shape[1]), None
        if self.novelty is not None:
            other = resize_image(pixels, self.novelty.card.image_size, self.novelty.card.resize)
        shown = None
        if self.keep_pictures:
            small = size if max(size) <= LONGEST_SHOWN else fitting(size, LONGEST_SHOWN)
            shown = resize_image(pixels, small, "squash")
        if self.tile_size is None:
            pixels = resize_image(pixels, self.card.image_size, self.card.resize)
        return _Read(name, size, pixels, shown, other)

    def _judged(self, batch: Sequence[_Read]) -> Iterator[Prediction]:
        there = [one.pixels for one in batch if one.pixels is not None]
        if self.in_tiles:
            told = [self.judge.judge_in_tiles(pixels, _at_once(self.card)) for pixels in there]
        else:
            told = _in_parts(self.judge, there)
        novelties: list[float | None] = [None] * len(there)
        if self.novelty is not None:
            seen = [one.for_novelty for one in batch if one.for_novelty is not None]
            novelties = [one.score for one in _in_parts(self.novelty, seen)]
        answers = iter(zip(told, novelties, strict=True))
        for one in batch:
            yield (
                Prediction(one.name, model=self.model, error=one.error)
                if one.error
                else self._predicted(one, *next(answers))
            )

    def _predicted(self, read: _Read, judged: Judged, anomaly_score: float | None) -> Prediction:
        card, (height, width), pixels = self.card, read.size, read.pixels
        assert pixels is not None
        probability = self.judge.probability(judged.score)
        defective, novel = probability >= self.threshold, None
        if anomaly_score is not None and self.novelty is not None:
            novel = not defective and anomaly_score > (self.novelty.card.novelty_threshold or 0.0)
        # Outlined as it was judged, a large picture smaller.
        seen = (pixels.shape[0], pixels.shape[1])
        size = seen if max(seen) <= LONGEST_SHOWN else fitting(seen, LONGEST_SHOWN)
        place = inside(read.size, size, card.resize) if self.tile_size is None else (slice(None), slice(None))
        boxes = area = None
        if judged.localization is not None:
            level = THRESHOLD if defective else card.localization_floor
            located = cv2.resize(judged.localization, size[::-1], interpolation=cv2.INTER_LINEAR)[place]
            defect = located >= (np.inf if level is None else level)
            boxes, area = tuple(defect_boxes(defect, read.size)), float(defect.mean())
        kind: tuple[str, float | None] = ("", None)
        if defective and judged.types is not None:
            kind = card.defect_types[int(judged.types.argmax())], float(judged.types.max())
        return Prediction(
            read.name, width, height, self.class_names[int(defective)], probability, self.threshold,
            self.threshold_from, judged.score, boxes, area, *kind, anomaly_score, novel, self.model,
            share=enlarged_share(judged.map, card.scale, size)[place],
            picture=read.shown,
        )  # fmt: skip


def _identity(card: Card) -> str:
    return f"{card.run} {card.weights[:12]}" + f" {card.precision}" * (card.precision != "float32")


def _at_once(card: Card) -> int:
    return max(1, min(MOST_AT_ONCE, AT_ONCE // (card.input_size[0] * card.input_size[1])))


def _in_parts(judge: Judge, pictures: Sequence[Pixels]) -> list[Judged]:
    """What a model says of pictures of its input size, as many at once as its own memory bears."""
    count = _at_once(judge.card)
    parts = (pictures[start : start + count] for start in range(0, len(pictures), count))
    return [said for part in parts for said in judge.judge(np.stack(part))]


CELL = 4  # pixels of a cell of EfficientAD's map


def _check_shared(card: Card, tile_size: tuple[int, int] | None) -> None:
    """`DataError` where neighbouring tiles share no cell, or less than what the network leaves out at their edges."""
    needed = 2 * card.border * CELL
    for tile in tile_size or ():
        if card.tile_overlap and tile < LEAST_TILE:
            told = f"tile_size must be at least {LEAST_TILE} a side, or neighbours share no cell"
            raise DataError(f"{told}, got {list(tile_size or ())}")
        if tile * card.tile_overlap < needed:
            told = f"tiles of {tile} pixels share {tile * card.tile_overlap:g}, and the network leaves out"
            raise DataError(f"{told} {needed // 2} at each edge; choose a larger tile_size or tile_overlap")


def _threshold(card: Card, threshold: float | None, required_recall: float | None) -> tuple[float, str]:
    """The probability from which a picture is called defective, and where it comes from."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise DataError(f"threshold must lie in [0, 1], got {threshold:g}")
    if required_recall is not None and not 0 < required_recall <= 1:
        raise DataError(f"required_recall must lie in (0, 1], got {required_recall:g}")
    if threshold is not None and required_recall is not None:
        raise DataError("both a threshold and a required recall are given, which chooses one; give either")
    if threshold is not None:
        return threshold, "given"
    if required_recall is None:
        return card.threshold, card.threshold_from
    scores = [np.array(card.validation.get(name, ())) for name in CLASS_NAMES]
    labels = np.repeat([0, 1], [len(one) for one in scores])
    chosen = metrics.recall_threshold(labels, np.concatenate(scores), required_recall)
    if chosen is None:
        told = (
            f"{card.run}: a required recall is chosen on validation defects, of which this {card.system} model has none"
        )
        raise DataError(f"{told}; give a threshold")
    return chosen, f"validation, recall {required_recall:g} of {len(scores[1])} defects"


# --- Which pictures, and those that are still to come


def pictures_in(places: Sequence[str | Path]) -> list[Path]:
    """Picture files, of folders those at any depth, of patterns (``*.png``, ``**/*.png``) what they match; each once.

    `DataError` for a place where there is none.
    """
    found: dict[Path, None] = {}
    for place in map(str, places):
        path = Path(place)
        here = [path] if path.is_file() else image_files(path) if path.is_dir() else _matching(place)
        if not here:
            raise DataError(f"{place}: no such picture, no folder of pictures, and no pattern that matches any")
        found |= dict.fromkeys(one for part in here for one in (image_files(part) if part.is_dir() else [part]))
    return list(found)


def _matching(pattern: str) -> list[Path]:
    return sorted(map(Path, glob.glob(pattern, recursive=True)))


WHOLE_AFTER = 1.0  # seconds without a change, after which a file counts as written
GIVEN_UP_AFTER = 10.0  # seconds without a change, after which a file that cannot be read stays so


class Arrivals:
    """New pictures in folders that something fills, each once it is whole.

    Folders are listed again and again: on network drives nothing tells of a new file. `known` are `readable` names.
    """

    def __init__(self, folders: Sequence[Path], known: Iterable[str]) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder; --watch takes folders that are filled")
        self.folders, self.known = folders, {*known}
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}  # their `_state`, and since when it holds

    def ready(self) -> list[Path]:
        """Pictures that have not changed for `WHOLE_AFTER`, and were not given out before."""
        now, whole = time.monotonic(), []
        for path in (one for folder in self.folders for one in image_files(folder) if readable(one) not in self.known):
            with suppress(OSError):  # gone again
                state = _state(path)
                before, since = self._seen.get(path, (None, now))
                self._seen[path] = (state, since if before == state else now)
                if before == state and now - since >= WHOLE_AFTER:
                    whole.append(path)
        self.known |= {*map(readable, whole)}
        return whole

    def try_again(self, path: Path) -> bool:
        """Whether a picture that could not be read may still be on its way, and then comes once more."""
        state, since = self._seen[path]
        with suppress(OSError):  # gone again
            # Others may have been judged for long since it was seen: it has changed, or it had its time.
            if _state(path) != state or time.monotonic() - since < GIVEN_UP_AFTER:
                self.known.discard(readable(path))
                return True
        self._seen.pop(path)
        return False


def _state(path: Path) -> tuple[int, int]:
    """Size and time of change."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


# --- The table of verdicts


class VerdictFile:
    """A CSV file that grows by a row for each picture as it is judged; an interruption loses none.

    Opened again it goes on: `done` are the pictures that have a verdict, by their `readable` names. Rows of pictures
    that could not be read are dropped, and so is a line that was left half-written. With `drawings` each is drawn
    before its row is written, and those that are not drawn are not done.

    `DataError`: the file is no table of verdicts, or of another model or threshold. `FileError`: it cannot be written,
    or another process writes to it.
    """

    def __init__(
        self, path: Path, predictor: Predictor, *, drawings: "Drawings | None" = None, force: bool = False
    ) -> None:
        self.path, self.drawings = path, drawings
        self.done: set[str] = set()
        self._undrawn: set[str] = set()  # that have a row
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        with written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise FileError(f"{path}: another process is writing to it; choose another --output") from None
        try:
            kept = [] if force or not path.is_file() else self._kept(predictor)
            with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(kept)
        except BaseException:
            self._lock.release()
            raise
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, COLUMNS)

    def _kept(self, predictor: Predictor) -> list[dict[str, str]]:
        text = self.path.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(StringIO(whole, newline=""))
        if whole and reader.fieldnames != COLUMNS:
            told = f"its columns are not those of verdicts ({', '.join(reader.fieldnames or ())[:200]})"
            raise DataError(f"{self.path}: {told}; choose another --output, or write over it with --force")
        kept = [row for row in reader if row["verdict"]]
        own = {"model": _written(predictor.model), "threshold": str(_written(predictor.threshold))}
        for name, value in own.items():
            if others := {row[name] for row in kept} - {value}:
                told = f"holds verdicts of {name} {min(others)}, asked for is {value}"
                raise DataError(f"{self.path}: {told}; choose another --output, or start anew with --force")
        if others := {row["verdict"] for row in kept} - {*predictor.class_names}:
            told = f"calls pictures {min(others)}, asked for are {' and '.join(predictor.class_names)}"
            raise DataError(f"{self.path}: {told}; choose another --output, or start anew with --force")
        rows = {row["image"] for row in kept}
        self._undrawn = {image for image in rows if self.drawings is not None and self.drawings.lack(image)}
        self.done = rows - self._undrawn
        return kept

    def add(self, prediction: Prediction) -> None:
        """Draw it, write its row, and see that this is on the disk's side of a crash of this process."""
        if self.drawings is not None and not prediction.error:
            self.drawings.add(prediction)
        if readable(prediction.image) in self._undrawn:
            return
        with written(self.path):
            self._writer.writerow(prediction.row)
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        with suppress(OSError):  # of a row that could not be written, which `add` has told
            self._file.close()
        self._lock.release()


# --- A picture of a verdict

BOX = (255, 176, 0)
SIDE = 768  # pixels of the longer side


def drawn(prediction: Prediction, *, absolute: bool) -> Pixels:
    """The picture with boxes around its defects, and the deciding map over it; the verdict in words below."""
    pixels = prediction.picture
    assert pixels is not None and prediction.share is not None
    size = fitting((pixels.shape[0], pixels.shape[1]), SIDE)
    picture = resize_image(pixels, size, "squash")
    boxed, heat = picture.copy(), overlay(picture, prediction.share)
    across, down = size[1] / (prediction.width or 1), size[0] / (prediction.height or 1)
    for x0, y0, x1, y1 in prediction.boxes or ():
        ends = (round(x0 * across) - 3, round(y0 * down) - 3), (round(x1 * across) + 2, round(y1 * down) + 2)
        cv2.rectangle(boxed, *ends, BOX, 2, cv2.LINE_AA)
    novel = "novel · " if prediction.novel else ""
    kind = prediction.defect_type and f" ({prediction.defect_type} {prediction.type_probability:.2f})"
    decided = f"p(defect) {prediction.probability:.3f}, from {prediction.threshold:.3f}"
    words = f"{novel}{prediction.verdict}{kind} · {decided}"
    panels = (
        with_band(boxed, words, bar=False),
        with_band(heat, f"{'absolute' if absolute else 'per-image'} scale", bar=True),
    )
    wide = size[1] > 1.6 * size[0]
    rim = np.full((6, size[1], 3) if wide else (panels[0].shape[0], 6, 3), 255, dtype=np.uint8)
    return np.concatenate([panels[0], rim, panels[1]], axis=0 if wide else 1)


class Drawings:
    """JPEG files in `folder`, below it as the pictures lie below `base`; their own suffixes stay in the names."""

    def __init__(self, folder: Path, base: str | Path, *, absolute: bool) -> None:
        self.folder, self.base, self.absolute = folder, _absolute(base), absolute

    def file(self, image: str) -> Path:
        """Where the drawing of a picture below `base` lies."""
        own = _absolute(image)
        return (self.folder / own.relative_to(self.base)).with_name(f"{own.name}.jpg")

    def lack(self, image: str) -> bool:
        """Whether a picture lies below `base` and is not drawn."""
        return _absolute(image).is_relative_to(self.base) and not self.file(image).is_file()

    def add(self, prediction: Prediction) -> None:
        """Draw one."""
        with atomic_path(self.file(prediction.image)) as temporary:
            temporary.write_bytes(encode(drawn(prediction, absolute=self.absolute)))


def _absolute(path: str | Path) -> Path:
    return Path(readable(os.path.abspath(path)))  # without .., which would lead out of the folder; links stay
