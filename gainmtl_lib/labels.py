"""Image and mask to the network's input size.

H x W is the network's input, h x w a picture on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import unicodedata
import xml.parsers.expat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder

import cv2
import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ValidationError
from torch import Tensor

from gainmtl_lib.readers import (
    STORE,
    DataError,
    Finding,
    UnreadableError,
    image_files,
    raise_errors,
    read_image,
    read_mask_values,
)
from gainmtl_lib.runs import atomic_path

Resize = Literal["squash", "letterbox"]


def resize_image(image: NDArray[np.uint8], size: tuple[int, int], resize: Resize) -> NDArray[np.uint8]:
    """Resize (h, w, 3) to (H, W, 3): by area where it shrinks, bilinearly where it grows.

    `letterbox` keeps the aspect ratio, centred, and fills the rest with the image's own mean colour: a fixed
    grey would make an edge whose strength tells how bright the picture is, and mirrored or repeated borders
    would show defects that the mask does not have. The bars still show the aspect ratio; `squash` hides it.
    """
    inner = inner_size((image.shape[0], image.shape[1]), size, resize)
    fitted = _fit(image, inner)
    if inner == size:
        return fitted
    canvas = np.empty((*size, 3), dtype=np.uint8)
    canvas[:] = np.rint(fitted.mean(axis=(0, 1))).astype(np.uint8)
    canvas[inside(inner, size)] = fitted
    return canvas


def resize_mask(
    mask: NDArray[np.bool_], size: tuple[int, int], resize: Resize, *, image_size: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Resize defect pixels (h, w) to (H, W) by area, cut at half a pixel.

    A mask that the cut would empty keeps every pixel it touches, so that thin defects survive. A mask of
    other size than its image is fitted to it.

    Args:
        mask: defect pixels.
        size: network input (H, W).
        resize: as the image's.
        image_size: size on disk of the mask's image, when it is not the mask's.
    """
    share = resize_values(mask, size, resize, image_size=image_size)
    fitted = share >= 0.5
    return fitted if fitted.any() else share > 0


def resize_values(
    values: NDArray, size: tuple[int, int], resize: Resize, *, image_size: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Resize a plane of values (h, w) to (H, W) by area, zero outside a letterboxed image.

    Arguments as for `resize_mask`.
    """
    inner = inner_size(image_size or (values.shape[0], values.shape[1]), size, resize)
    canvas = np.zeros(size, dtype=np.float32)
    canvas[inside(inner, size)] = _fit(values.astype(np.float32), inner)
    return canvas


def same_aspect(mask_size: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Whether one could be a resized copy of the other, sides rounded to whole pixels."""
    (h, w), (height, width) = mask_size, image_size
    return abs(h * width / height - w) <= 1 or abs(w * height / width - h) <= 1


def inner_size(picture: tuple[int, int], size: tuple[int, int], resize: Resize) -> tuple[int, int]:
    """Size that the picture takes inside the input."""
    if resize == "squash":
        return size
    scale = min(size[0] / picture[0], size[1] / picture[1])
    return max(1, min(size[0], round(picture[0] * scale))), max(1, min(size[1], round(picture[1] * scale)))


def inside(inner: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the input that a picture of size `inner` fills: the middle."""
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    return slice(top, top + inner[0]), slice(left, left + inner[1])


def _fit(picture: NDArray, size: tuple[int, int]) -> NDArray:
    """Area where a side shrinks, then bilinear where it grows; OpenCV's area mode does only both sides at once."""
    height, width = min(picture.shape[0], size[0]), min(picture.shape[1], size[1])
    if (height, width) != picture.shape[:2]:
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    if (height, width) != size:
        picture = cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return picture


# --- What the readers of box labels return, and what they report.


OUTSIDE = "outside the picture"
CLIPPED = "beyond the picture's edge"
NO_AREA = "without area"
NOT_FINITE = "not finite"
CROWD = "crowd"
UNKNOWN_IMAGE = "of an unknown image"
UNKNOWN_CLASS = "of an unknown class"
REPEATED = "repeated"
WHOLE = "nearly the whole picture"
TINY = "below a pixel"
NO_PICTURE = "label without a picture"
SCALED = "picture of another size"
UNREADABLE = "picture unreadable"

KINDS = (
    *(OUTSIDE, NO_AREA, NOT_FINITE, CROWD, UNKNOWN_IMAGE, UNKNOWN_CLASS, NO_PICTURE, UNREADABLE),
    *(CLIPPED, REPEATED, WHOLE, TINY, SCALED),
)
"""What is counted: first what is left out, then what is drawn all the same."""


@dataclass(frozen=True)
class BoxFinding(Finding):
    """A finding about boxes; `kind` is what it is counted under, empty for errors."""

    kind: str = ""


@dataclass(frozen=True)
class Box:
    """One box, edges measured from the picture's top left corner, where pixel column c spans [c, c + 1).

    Attributes:
        left: edge, in the unit of its `Annotation`; as are `top`, `right` and `bottom`.
        top: see `left`.
        right: see `left`.
        bottom: see `left`.
        name: its class.
        place: where it stands in its file, for messages.
    """

    left: float
    top: float
    right: float
    bottom: float
    name: str
    place: str


@dataclass(frozen=True)
class Annotation:
    """The boxes of one picture.

    Attributes:
        boxes: in the file's order.
        size: (height, width) of the picture according to the file, None where it does not say.
        shares: whether edges are shares of the picture's sides; pixels otherwise.
    """

    boxes: list[Box]
    size: tuple[int, int] | None = None
    shares: bool = False


@dataclass
class Report:
    """Findings so far. A reader never stops at a box that can be left out."""

    findings: list[BoxFinding] = field(default_factory=list)

    def warn(self, kind: str, file: Path | str, message: str) -> None:
        """Count something under `kind`."""
        self.findings.append(BoxFinding("warning", str(file), message, kind))

    def error(self, error: DataError, file: Path | str) -> None:
        """Something that stops a run."""
        self.findings.append(BoxFinding("error", str(file), str(error).removeprefix(f"{file}: ")))


@dataclass(frozen=True)
class Entry:
    """A picture that labels exist for.

    Attributes:
        file: the label file.
        picture: the picture's path, as the labels name it; without suffix where `by_stem`.
        read: parses the boxes, adding what is left out to a report; raises `DataError` for a broken file.
        by_stem: whether the label file's own stem names the picture.
    """

    file: Path
    picture: str
    read: Callable[[Report], Annotation]
    by_stem: bool


# --- Which picture of a dataset a label means, and its size on disk.


ORIENTATION = 0x0112
"""The EXIF tag; 1 is upright."""


class Pictures:
    """Pictures by name.

    A label means the pictures of its name (or stem) whose folders fit: the label's folders occur in this order
    among the picture's below the dataset's folder, or the other way round. So ``train/a``, ``defective/a`` and
    ``/elsewhere/images/train/defective/a`` all mean ``images/train/defective/a.png``; ``val/a`` does not. Of several,
    those are meant whose folders end in the label's, or the other way round: beside ``images/train/defective/a.png``,
    ``defective/a`` does not mean ``images/train/defective/crack/a.png``.

    Args:
        images: paths of the pictures.
        root: the dataset's folder.
    """

    def __init__(self, images: Sequence[str], root: Path) -> None:
        self._folders = [_parts(Path(image).parent.relative_to(root).as_posix()) for image in images]
        self._names: dict[str, list[int]] = {}
        self._stems: dict[str, list[int]] = {}
        for row, image in enumerate(images):
            self._names.setdefault(_composed(Path(image).name), []).append(row)
            self._stems.setdefault(_composed(Path(image).stem), []).append(row)

    def find(self, picture: str, *, by_stem: bool) -> list[int]:
        """Rows that `picture` can mean; several where it does not tell them apart."""
        *folders, name = _parts(picture) or [""]
        rows = (self._stems if by_stem else self._names).get(name, [])
        fitting = [row for row in rows if _within(folders, self._folders[row]) or _within(self._folders[row], folders)]
        return [row for row in fitting if _same_end(folders, self._folders[row])] or fitting


def picture_size(path: str) -> tuple[int, int] | None:
    """(height, width) as `read_image` decodes it, mostly from the file's head alone; None if it cannot be decoded."""
    try:
        with Image.open(path) as picture:
            upright = picture.getexif().get(ORIENTATION, 1) == 1
            size = (picture.height, picture.width)
    except Exception:  # whatever a broken file makes Pillow raise; what decodes the pictures has the last word
        upright, size = False, (0, 0)
    if upright:
        return size
    try:
        pixels = read_image(path)
    except UnreadableError:
        return None
    return pixels.shape[0], pixels.shape[1]


def _parts(path: str) -> list[str]:
    """Parts of a path of any system, without root and drive."""
    parts = PurePosixPath(_composed(path).replace("\\", "/")).parts
    return [part for part in parts if part not in ("/", "//", ".")]


def _composed(text: str) -> str:
    """Hangul and accents in one form: macOS stores file names decomposed, label files hold them composed."""
    return unicodedata.normalize("NFC", text)


def _same_end(some: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the longer of the two ends in the shorter."""
    return all(one == other for one, other in zip(reversed(some), reversed(parts), strict=False))


def _within(some: Iterable[str], parts: Iterable[str]) -> bool:
    """Whether `some` occur in this order among `parts`."""
    left = iter(parts)
    return all(part in left for part in some)


# --- COCO


Id = int | str
ERRORS_SHOWN = 3


class _Image(BaseModel):
    id: Id
    file_name: str
    width: int | None = None
    height: int | None = None


class _Category(BaseModel):
    id: Id
    name: str


class _Annotation(BaseModel):
    id: Id | None = None
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    iscrowd: int | None = 0


class _Coco(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def coco_entries(file: Path, report: Report) -> list[Entry]:
    """The pictures that a COCO file lists.

    Left out and counted: annotations of an image or a category that the file does not list, and crowds. A
    segmentation beside the box is not read.

    Raises:
        DataError: no JSON, no COCO file of detections, or an image or category listed twice.
    """
    coco = _parse(file)
    names = {category.id: category.name for category in coco.categories}
    _unique(file, "images", [image.id for image in coco.images])
    _unique(file, "categories", [category.id for category in coco.categories])
    boxes: dict[Id, list[Box]] = {image.id: [] for image in coco.images}
    for number, annotation in enumerate(coco.annotations):
        place = f"annotation {number if annotation.id is None else annotation.id}"
        if annotation.image_id not in boxes:
            message = f"{place}: image_id {annotation.image_id} is not among the file's images; left out"
            report.warn(UNKNOWN_IMAGE, file, message)
        elif annotation.category_id not in names:
            message = f"{place}: category_id {annotation.category_id} is not among the file's categories; left out"
            report.warn(UNKNOWN_CLASS, file, message)
        elif annotation.iscrowd:
            report.warn(CROWD, file, f"{place}: a crowd, not one object's box; left out")
        else:
            x, y, width, height = annotation.bbox
            box = Box(x, y, x + width, y + height, names[annotation.category_id], place)
            boxes[annotation.image_id].append(box)
    return [
        Entry(file, image.file_name, partial(_annotation, image, boxes[image.id]), by_stem=False)
        for image in coco.images
    ]


def _annotation(image: _Image, boxes: list[Box], report: Report) -> Annotation:
    del report  # the whole file was read before
    # Exporters that do not know a size write 0, -1 or null.
    height, width = image.height or 0, image.width or 0
    return Annotation(boxes, (height, width) if height > 0 and width > 0 else None)


def _parse(file: Path) -> _Coco:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not encoded in UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not a JSON file: {error}") from None
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        found = ", ".join(list(content)[:8]) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{file}: not a COCO file; expected images, annotations and categories, found {found}")
    try:
        return _Coco.model_validate(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        more = f"; and {len(problems) - ERRORS_SHOWN} more" if len(problems) > ERRORS_SHOWN else ""
        raise DataError(f"{file}: not a COCO file of boxes: {'; '.join(problems[:ERRORS_SHOWN])}{more}") from None


def _unique(file: Path, what: str, ids: list[Id]) -> None:
    repeated = [one for one, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(f"{file}: {what} have the id {repeated[0]} more than once; ids must tell them apart")


# --- YOLO


CLASSES_FILE, DATA_FILE = "classes.txt", "data.yaml"
LARGEST_SHARE = 2.0
"""A box that is partly outside has values a little above 1; pixels have far larger ones."""


def yolo_boxes(file: Path, names: dict[int, str] | None, report: Report) -> Annotation:
    """The boxes of one label file; an empty one has none.

    Left out and counted: boxes of a class that `names` does not have.

    Args:
        file: the label file.
        names: class names by number; None where the labels come without.
        report: takes what is left out.

    Raises:
        DataError: no UTF-8 text, other than five columns (a polygon or a confidence is named), or values that are
            no numbers or no shares.
    """
    boxes = []
    for number, line in enumerate(_text(file).splitlines(), start=1):
        place, columns = f"line {number}", line.split()
        if not columns:
            continue
        kind, x, y, width, height = _values(columns, f"{file}: {place}")
        if names is not None and kind not in names:
            message = f"{place}: class {kind} is not among the {len(names)} named ones; left out"
            report.warn(UNKNOWN_CLASS, file, message)
            continue
        name = names[kind] if names is not None else str(kind)
        boxes.append(Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2, name, place))
    return Annotation(boxes, shares=True)


def yolo_names(folder: Path) -> dict[int, str] | None:
    """Class names by number; None where nothing beside the labels tells them, or what does is empty.

    Raises:
        DataError: a file of names that cannot be read.
    """
    for place in (folder, folder.parent):
        if (place / CLASSES_FILE).is_file():
            lines = _text(place / CLASSES_FILE).rstrip().splitlines()
            return {number: line.strip() or str(number) for number, line in enumerate(lines)} or None
        if (place / DATA_FILE).is_file():
            return _names_of(place / DATA_FILE)
    return None


def _names_of(file: Path) -> dict[int, str] | None:
    try:
        content: Any = yaml.safe_load(_text(file))
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{file}: not a YAML file: {error}") from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if names is not None and not (isinstance(names, dict) and all(isinstance(key, int) for key in names)):
        raise DataError(f"{file}: names must be a list, or class numbers with their names; got {names!r:.60}")
    return {number: str(name) for number, name in names.items()} if names else None


def _values(columns: list[str], where: str) -> tuple[int, float, float, float, float]:
    if len(columns) != 5:
        raise DataError(f"{where} has {_shape(len(columns))}; expected five: class, centre x, centre y, width, height")
    try:
        kind = int(columns[0])
        x, y, width, height = map(float, columns[1:])
    except ValueError:
        raise DataError(f"{where} reads {' '.join(columns)!r:.60}; expected a class number and four numbers") from None
    if kind < 0:
        raise DataError(f"{where}: class {kind}; expected 0 or more")
    largest = max(map(abs, (x, y, width, height)))
    if LARGEST_SHARE < largest < float("inf"):
        raise DataError(f"{where} holds the value {largest:g}; expected shares of the picture from 0 to 1, not pixels")
    return kind, x, y, width, height


def _shape(columns: int) -> str:
    if columns == 6:
        return "6 columns, as predictions with a confidence have"
    if columns > 6 and columns % 2:
        return f"{columns} columns, as a polygon of {columns // 2} points has"
    return f"{columns} column{'s' if columns > 1 else ''}"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not encoded in UTF-8 (byte {error.start}); save it as UTF-8") from None


# --- Pascal VOC


CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _DoctypeError(Exception):
    """The file declares a document type."""


def voc_boxes(file: Path, report: Report) -> Annotation:
    """The boxes of one file, difficult and truncated ones included.

    Raises:
        DataError: no XML, no VOC annotation, a declared document type, or an object without a complete box.
    """
    del report  # VOC has nothing to leave out
    root = _parse_voc(file)
    if root.tag != "annotation":
        raise DataError(f"{file}: not a VOC file; expected the element <annotation>, found <{root.tag}>")
    boxes = []
    for number, thing in enumerate(root.iterfind("object"), start=1):
        place = f"object {number}"
        left, top, right, bottom = _corners(thing, f"{file}: {place}")
        name = (thing.findtext("name") or "").strip() or "unnamed"
        boxes.append(Box(left - 1, top - 1, right, bottom, name, place))
    return Annotation(boxes, _size(root, file))


def _corners(thing: Element, where: str) -> list[float]:
    box = thing.find("bndbox")
    texts = [None if box is None else box.findtext(name) for name in CORNERS]
    try:
        return [float(text) for text in texts]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = ", ".join(f"{name} {text!r}" for name, text in zip(CORNERS, texts, strict=True))
        raise DataError(f"{where} has no complete <bndbox>; expected four numbers, found {found}") from None


def _size(root: Element, file: Path) -> tuple[int, int] | None:
    texts = [root.findtext(f"size/{name}") for name in ("height", "width")]
    try:
        height, width = (int(float(text or 0)) for text in texts)
    except (ValueError, OverflowError):
        raise DataError(f"{file}: <size> must hold whole numbers, found height and width {texts}") from None
    # Tools that do not know the size write 0.
    return (height, width) if height > 0 and width > 0 else None


def _parse_voc(file: Path) -> Element:
    """The element tree; a document type, the only place where XML can define entities, is refused unread."""
    parser, tree = xml.parsers.expat.ParserCreate(), TreeBuilder()
    parser.StartElementHandler, parser.EndElementHandler = tree.start, tree.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = tree.data, _refuse
    try:
        parser.Parse(file.read_bytes(), True)
        return tree.close()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    except _DoctypeError:
        raise DataError(
            f"{file}: declares a document type (<!DOCTYPE>), which can define entities and is not read; remove it"
        ) from None
    except xml.parsers.expat.ExpatError as error:
        raise DataError(f"{file}: not an XML file: {error}") from None
    except (LookupError, ValueError) as error:
        raise DataError(f"{file}: its encoding cannot be read: {error}; save it as UTF-8") from None


def _refuse(*_declaration: object) -> NoReturn:
    raise _DoctypeError


# --- Which label files there are, and of which format.


FORMATS = {".json": "COCO", ".txt": "YOLO", ".xml": "VOC"}
EXPECTED = "a COCO file (.json), or a folder of COCO, YOLO (.txt) or VOC files (.xml)"
USUAL_PLACES = "annotations/*.json, labels/*.txt or Annotations/*.xml"


def label_entries(labels: Path | None, root: Path, report: Report) -> list[Entry]:
    """Every picture that the labels of a dataset name.

    Args:
        labels: a file or a folder; None: the one of the usual places below `root` that holds label files.
        root: the dataset's folder.
        report: takes what is left out, and COCO files that are broken.

    Raises:
        DataError: no label files, or more than one kind or place of them.
    """
    place = _usual_place(root) if labels is None else labels
    files = _files_of_one_format(place)
    folder = place if place.is_dir() else place.parent
    suffix = files[0].suffix.lower()
    if suffix == ".json":
        return _coco(files, report)
    if suffix == ".xml":
        return [Entry(file, _stem(file, folder), partial(voc_boxes, file), by_stem=True) for file in files]
    names = yolo_names(folder)
    return [Entry(file, _stem(file, folder), partial(yolo_boxes, file, names), by_stem=True) for file in files]


def _coco(files: Sequence[Path], report: Report) -> list[Entry]:
    entries = []
    for file in files:
        try:
            entries += coco_entries(file, report)
        except DataError as error:
            report.error(error, file)
    return entries


def _files_of_one_format(place: Path) -> list[Path]:
    if place.is_file() and place.suffix.lower() == ".json":
        return [place]
    if not place.is_dir():
        what = "is a file" if place.exists() else "does not exist"
        raise DataError(f"{place}: box_labels {what}; expected {EXPECTED}")
    files = _label_files(place)
    counts = {suffix: sum(file.suffix.lower() == suffix for file in files) for suffix in FORMATS}
    found = [f"{count} of {FORMATS[suffix]} ({suffix})" for suffix, count in counts.items() if count]
    if len(found) > 1:
        raise DataError(f"{place}: holds label files of several formats: {', '.join(found)}; keep one of them there")
    if not found:
        inside = sorted(path.name for path in place.iterdir() if not path.name.startswith("."))
        there = f"{', '.join(inside[:8])}{' …' if len(inside) > 8 else ''}" if inside else "nothing"
        raise DataError(f"{place}: holds no label files; expected {EXPECTED}, found {there}")
    return files


def _label_files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.suffix.lower() in FORMATS and path.is_file())
    return sorted(path for path in files if not path.name.startswith(".") and path.name != CLASSES_FILE)


def _usual_place(root: Path) -> Path:
    jsons = sorted(path for path in (root / "annotations").glob("*.json") if not path.name.startswith("."))
    texts = [root / "labels"] if any(file.suffix.lower() == ".txt" for file in _label_files(root / "labels")) else []
    folder = root / "Annotations"
    xmls = [folder] if any(file.suffix.lower() == ".xml" for file in _label_files(folder)) else []
    found = [*jsons, *texts, *xmls]
    if not found:
        raise DataError(f"{root}: no box labels; expected {USUAL_PLACES} below it, or their place in box_labels")
    if len(found) > 1:
        names = ", ".join(path.relative_to(root).as_posix() for path in found[:8])
        raise DataError(f"{root}: box labels lie in {len(found)} places ({names}); choose by box_labels: {EXPECTED}")
    return found[0]


def _stem(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


# --- Boxes to pixels.


HALF_PIXEL = 0.5
"""A box this far beyond the edge covers no pixel more than one that ends there: written decimals, not a mistake."""
NEARLY_WHOLE = 0.95
"""Share of the picture from which a box says hardly more than the label."""


@dataclass(frozen=True)
class PixelBox:
    """Rows `top` to `bottom` and columns `left` to `right` of a picture, the last ones not included."""

    top: int
    left: int
    bottom: int
    right: int
    name: str

    @property
    def area(self) -> int:
        """Pixels."""
        return (self.bottom - self.top) * (self.right - self.left)


@dataclass(frozen=True)
class Target:
    """What boxes are measured against: a picture's size on disk, and how it is shrunk to the network's input."""

    size: tuple[int, int]
    image_size: tuple[int, int]
    resize: Resize


def pixel_boxes(annotation: Annotation, target: Target, file: Path, report: Report) -> list[PixelBox]:
    """The boxes that can be drawn, as pixels, each once.

    Left out and counted: boxes wholly outside, without area, or not finite. Drawn and counted: boxes that are
    clipped, repeated, nearly as large as the picture, or below a pixel of the network's input.

    Raises:
        DataError: the file gives the picture another aspect ratio.
    """
    boxes = [box for box in _in_pixels(annotation, target.size, file, report) if _sound(box, target.size, file, report)]
    drawn: dict[tuple[int, int, int, int], PixelBox] = {}
    for box in boxes:
        clipped = _clipped(box, target.size, file, report)
        pixels = _pixels(clipped)
        place = (pixels.top, pixels.left, pixels.bottom, pixels.right)
        if place in drawn:
            report.warn(REPEATED, file, f"{box.place}: covers the same pixels as another box; drawn once")
        else:
            _judge_size(clipped, target, file, report)
        drawn.setdefault(place, pixels)
    return list(drawn.values())


def draw(boxes: Iterable[PixelBox], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask (H, W), 255 in the boxes and 0 elsewhere."""
    mask = np.zeros(size, dtype=np.uint8)
    for box in boxes:
        mask[box.top : box.bottom, box.left : box.right] = 255
    return mask


def _in_pixels(annotation: Annotation, size: tuple[int, int], file: Path, report: Report) -> list[Box]:
    """Edges in pixels of the picture on disk."""
    height, width = size
    of_file = (1, 1) if annotation.shares else annotation.size
    if of_file is None or of_file == size:
        return annotation.boxes
    if not annotation.shares:
        sizes = f"the picture is {of_file[0]}x{of_file[1]} (height x width) there, and {height}x{width} on disk"
        if not same_aspect(of_file, size):
            raise DataError(f"{file}: {sizes}; expected the same aspect ratio")
        report.warn(SCALED, file, f"{sizes}; its boxes are scaled")
    down, across = height / of_file[0], width / of_file[1]
    return [
        replace(box, left=box.left * across, right=box.right * across, top=box.top * down, bottom=box.bottom * down)
        for box in annotation.boxes
    ]


def _sound(box: Box, size: tuple[int, int], file: Path, report: Report) -> bool:
    edges = (box.left, box.top, box.right, box.bottom)
    numbers = ", ".join(f"{edge:.6g}" for edge in edges)
    if not all(map(math.isfinite, edges)):
        report.warn(NOT_FINITE, file, f"{box.place}: left, top, right, bottom are {numbers}; left out")
    elif box.right <= box.left or box.bottom <= box.top:
        width, height = box.right - box.left, box.bottom - box.top
        report.warn(NO_AREA, file, f"{box.place}: is {width:.6g} wide and {height:.6g} high; left out")
    elif box.right <= 0 or box.bottom <= 0 or box.left >= size[1] or box.top >= size[0]:
        where = f"left, top, right, bottom {numbers} lie outside the picture of {size[0]}x{size[1]} (height x width)"
        report.warn(OUTSIDE, file, f"{box.place}: {where}; left out")
    else:
        return True
    return False


def _clipped(box: Box, size: tuple[int, int], file: Path, report: Report) -> Box:
    height, width = size
    beyond = max(-box.left, -box.top, box.right - width, box.bottom - height)
    if beyond > HALF_PIXEL:
        where = f"reaches {beyond:.6g} pixels beyond the picture of {height}x{width} (height x width)"
        report.warn(CLIPPED, file, f"{box.place}: {where}; clipped")
    return replace(
        box, left=max(box.left, 0), top=max(box.top, 0), right=min(box.right, width), bottom=min(box.bottom, height)
    )


def _pixels(box: Box) -> PixelBox:
    left, right = _cells(box.left, box.right)
    top, bottom = _cells(box.top, box.bottom)
    return PixelBox(top, left, bottom, right, box.name)


def _cells(start: float, end: float) -> tuple[int, int]:
    """First cell whose centre lies in [start, end), and the one after the last."""
    # Rounded, because a share times a side misses a half by the last bit, on either side.
    first, last = math.ceil(round(start - 0.5, 6)), math.ceil(round(end - 0.5, 6))
    if last > first:
        return first, last
    middle = math.floor((start + end) / 2)
    return middle, middle + 1


def _judge_size(box: Box, target: Target, file: Path, report: Report) -> None:
    height, width = target.size
    inner = inner_size(target.size, target.image_size, target.resize)
    high, wide = (box.bottom - box.top) * inner[0] / height, (box.right - box.left) * inner[1] / width
    if min(high, wide) < 1:
        size = f"{high:.2g}x{wide:.2g} pixels (height x width) of the network's input"
        report.warn(TINY, file, f"{box.place}: is {size}, less than one; image_size may be too small for it")
    share = (box.bottom - box.top) * (box.right - box.left) / (height * width)
    if share >= NEARLY_WHOLE:
        report.warn(WHOLE, file, f"{box.place}: covers {share:.0%} of the picture, and hardly says where the defect is")


# --- Where the masks of boxes are kept


logger = logging.getLogger(__name__)

DRAWING = 1
"""Number of the drawing rule; another rule draws into another folder."""
LETTERS = 12


@dataclass(frozen=True)
class Drawn:
    """A picture with boxes.

    Attributes:
        image: its path below the dataset's folder.
        size: (H, W) of the picture.
        boxes: at least one.
    """

    image: Path
    size: tuple[int, int]
    boxes: list[PixelBox]


def store_masks(pictures: list[Drawn], *, dataset: str, store: Path) -> list[Path]:
    """The mask file of each picture; files that are there are not drawn again.

    Args:
        pictures: of one dataset.
        dataset: its name.
        store: the folder for the masks of all datasets.

    Raises:
        FileError: the disk is full or the folder cannot be written to.
    """
    folder = store / f"{dataset}-{_digest(pictures)}"
    # After the picture's own suffix: a.jpg and a.bmp are two pictures.
    files = [folder / picture.image.with_name(f"{picture.image.name}.png") for picture in pictures]
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    for number in missing:
        mask = draw(pictures[number].boxes, pictures[number].size)
        encoded = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
        # File by file: what was drawn before an interruption stays, and two processes write the same bytes.
        with atomic_path(files[number]) as path:
            path.write_bytes(encoded)
    if missing:
        logger.info("drew the boxes of %d pictures as masks into %s", len(missing), folder)
    return files


def _digest(pictures: list[Drawn]) -> str:
    content = sorted(
        (
            picture.image.as_posix(),
            picture.size,
            sorted((box.top, box.left, box.bottom, box.right) for box in picture.boxes),
        )
        for picture in pictures
    )
    return hashlib.sha256(json.dumps([DRAWING, content]).encode()).hexdigest()[:LETTERS]


# --- The table of samples with masks drawn from boxes, in place of the dataset's mask files.


CLASS_COLUMNS = ["boxes", "images", "0%", "25%", "50%", "75%", "100%"]


@dataclass(frozen=True)
class BoxSource:
    """Where boxes come from, and what they are drawn for.

    Attributes:
        labels: label file or folder; None: the usual places below the dataset's folder.
        store: folder in which ``box_masks/`` holds the drawn masks.
        image_size: network input (H, W), for boxes that vanish on it.
        resize: squash or letterbox.
    """

    labels: Path | None
    store: Path
    image_size: tuple[int, int]
    resize: Resize


@dataclass(frozen=True)
class Boxed:
    """What box labels hold.

    Attributes:
        samples: the table, `mask` being a drawn file for pictures with boxes, and None for all others.
        findings: errors, and everything that was left out or changed.
        classes: by class name: boxes, images with one, and quantiles of a box's share of its image.
    """

    samples: pd.DataFrame
    findings: list[BoxFinding]
    classes: pd.DataFrame


def read_boxes(samples: pd.DataFrame, root: str | Path, source: BoxSource) -> pd.DataFrame:
    """Replace the masks of a table of samples by the ones drawn from its boxes.

    Args:
        samples: table of `read_samples`; not changed.
        root: the dataset's folder.
        source: of the boxes.

    Raises:
        DataError: no labels, labels of several formats, a broken label file, a box on a normal picture, a label that
            can mean several pictures, labels of which none means a picture, or no box that can be drawn.
        FileError: the masks cannot be written.
    """
    root = Path(os.path.abspath(root))
    report = Report()
    drawn = _read(samples, root, source, report)
    raise_errors(report.findings)
    _log(report.findings)
    ignored = int(samples["mask"].notna().sum())
    if ignored:
        logger.info("label_kind box: %d mask files of the dataset are ignored", ignored)
    return _with_masks(samples, root, source, drawn)


def scan_boxes(samples: pd.DataFrame, root: str | Path, source: BoxSource) -> Boxed:
    """`read_boxes` that reports instead of raising. What can be drawn is drawn."""
    root = Path(os.path.abspath(root))
    report = Report()
    drawn = _read(samples, root, source, report)
    return Boxed(_with_masks(samples, root, source, drawn), report.findings, _classes(drawn))


def _read(samples: pd.DataFrame, root: Path, source: BoxSource, report: Report) -> dict[int, Drawn]:
    """What to draw, by row."""
    images, labels = samples["image"].tolist(), samples["label"].tolist()
    pictures = Pictures(images, root)
    taken: dict[int, Entry] = {}
    drawn: dict[int, Drawn] = {}
    try:
        entries = label_entries(source.labels, root, report)
    except DataError as error:
        report.findings.append(BoxFinding("error", "", str(error)))
        return {}
    rows = [pictures.find(entry.picture, by_stem=entry.by_stem) for entry in entries]
    if entries and not any(rows):
        message = f"none of the {len(entries)} labels means a picture below {root}, such as '{entries[0].picture}'"
        report.error(DataError(message), entries[0].file)
        return {}
    for entry, found in zip(entries, rows, strict=True):
        try:
            annotation = _annotation_labels(entry, found, images, report)
            if annotation is None or not annotation.boxes:
                continue
            row = found[0]
            one = _draw(entry, annotation, images[row], root, source, report)
            if one is None:
                continue
            _check(entry, taken.get(row), labels[row], images[row])
        except DataError as error:
            report.error(error, entry.file)
            continue
        taken[row], drawn[row] = entry, one
    if not drawn and not any(finding.level == "error" for finding in report.findings):
        report.error(_no_boxes(len(entries), report), source.labels or root)
    return drawn


def _no_boxes(labels: int, report: Report) -> DataError:
    counts = Counter(finding.kind for finding in report.findings if finding.kind)
    lost = f"left out: {', '.join(f'{count} {kind}' for kind, count in counts.items())}; " if counts else ""
    advice = "expected boxes for some defective pictures; without any, set label_kind: mask"
    return DataError(f"the labels of {labels} pictures hold no box that can be drawn; {lost}{advice}")


def _annotation_labels(entry: Entry, found: list[int], images: list[str], report: Report) -> Annotation | None:
    """The boxes of a label's one picture; None where it has no picture."""
    if not found:
        message = f"there is no picture '{entry.picture}' in the dataset; its label is left out"
        report.warn(NO_PICTURE, entry.file, message)
        return None
    annotation = entry.read(report)
    if len(found) > 1 and annotation.boxes:
        raise DataError(
            f"{entry.file}: '{entry.picture}' can mean {len(found)} pictures, such as {images[found[0]]} and "
            f"{images[found[1]]}; name the picture's folders, too"
        )
    return annotation


def _draw(
    entry: Entry, annotation: Annotation, image: str, root: Path, source: BoxSource, report: Report
) -> Drawn | None:
    """None where nothing is left to draw."""
    size = picture_size(image)
    if size is None:
        report.warn(UNREADABLE, entry.file, f"{image} cannot be decoded; its boxes are left out")
        return None
    boxes = pixel_boxes(annotation, Target(size, source.image_size, source.resize), entry.file, report)
    return Drawn(Path(image).relative_to(root), size, boxes) if boxes else None


def _check(entry: Entry, before: Entry | None, label: int, image: str) -> None:
    if label == 0:
        raise DataError(
            f"{entry.file}: has boxes for {image}, which is labelled normal; move the picture, or remove the boxes"
        )
    if before is not None:
        other = f"{before.file} ('{before.picture}')" if before.file == entry.file else str(before.file)
        raise DataError(f"{entry.file}: '{entry.picture}' is {image}, which has boxes in {other}, too; keep one")


def _with_masks(samples: pd.DataFrame, root: Path, source: BoxSource, drawn: dict[int, Drawn]) -> pd.DataFrame:
    files = store_masks(list(drawn.values()), dataset=root.name, store=source.store / STORE)
    masks: dict[int, str] = {row: str(file) for row, file in zip(drawn, files, strict=True)}
    column = [masks.get(row) for row in range(len(samples))]
    return samples.assign(mask=pd.Series(column, index=samples.index, dtype=object))


def _classes(drawn: dict[int, Drawn]) -> pd.DataFrame:
    lines = [(box.name, row, box.area / (one.size[0] * one.size[1])) for row, one in drawn.items() for box in one.boxes]
    table = pd.DataFrame(lines, columns=["class", "image", "area"])
    if table.empty:
        return pd.DataFrame(columns=CLASS_COLUMNS)
    by_class = table.groupby("class")
    quantiles = {f"{share:.0%}": by_class["area"].quantile(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    return pd.DataFrame({"boxes": by_class.size(), "images": by_class["image"].nunique(), **quantiles})


def _log(findings: list[BoxFinding]) -> None:
    """One line of each kind, with an example: labels of thousands of pictures share one mistake."""
    firsts: dict[str, BoxFinding] = {}
    for finding in findings:
        firsts.setdefault(finding.kind, finding)
    counts = Counter(finding.kind for finding in findings)
    for kind, first in firsts.items():
        logger.warning("boxes, %s: %d, such as %s", kind, counts[kind], first)


# --- Masks from outside the dataset


def load_external_masks(images: Sequence[str], folder: Path, *, image_size: tuple[int, int], resize: Resize) -> Tensor:
    """One mask per image, grey values 0 to 255 as 0 to 1, resized but neither binarised nor rescaled.

    A mask has the path of its image below the images' common folder, or only its stem, with or without the
    suffix ``_mask``.

    Args:
        images: paths of the images.
        folder: holds the masks.
        image_size: network input (H, W).
        resize: as the images'.

    Returns:
        float32 (N, 1, H, W).

    Raises:
        DataError: the folder or a mask is missing, a stem does not tell which image is meant, or a mask has
            another aspect ratio than its image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; external_mask_dir holds one mask per image")
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in image_files(folder)}
    base = os.path.commonpath([os.path.dirname(image) for image in images])
    stems = [Path(image).stem for image in images]
    masks = torch.zeros((len(images), 1, *image_size))
    for row, image in enumerate(images):
        below = Path(image).relative_to(base).with_suffix("").as_posix()
        keys = [key for name in (below, stems[row]) for key in (name, f"{name}_mask") if key in files]
        if not keys:
            raise DataError(f"{folder}: has no mask for {image}; expected {below}.png or {stems[row]}.png")
        if "/" not in keys[0] and "/" in below and stems.count(stems[row]) > 1:
            raise DataError(
                f"{files[keys[0]]}: several images have the stem {stems[row]}; put their masks in subfolders, "
                f"as {below}.png"
            )
        values, size = read_mask_values(files[keys[0]]), read_image(image).shape[:2]
        if not same_aspect((values.shape[0], values.shape[1]), (size[0], size[1])):
            raise DataError(
                f"{files[keys[0]]}: mask is {values.shape[0]}x{values.shape[1]} (height x width), its image {image} "
                f"{size[0]}x{size[1]}; expected the same aspect ratio"
            )
        resized = resize_values(values / 255, image_size, resize, image_size=(size[0], size[1]))
        masks[row, 0] = torch.from_numpy(resized)
    return masks
