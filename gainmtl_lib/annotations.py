"""Label files -> what they say of each picture: COCO, YOLO, Pascal VOC, labelme, and run lengths in a CSV.

Coordinates are in pixels: x to the right, y down, pixel c spans [c, c + 1). Pictures are h x w.
"""

import contextlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.findings import DataError, Finding, parsed, reported
from gainmtl_lib.pictures import Mask, MaskPixels, Size, files_below, read_mask_pixels

Found = list[Finding]
Corners = NDArray[np.float64]  # (n, 2): x and y
SHARES = (1, 1)  # size of a picture whose coordinates are shares of its sides


class Shape(NamedTuple):
    """One defect's outlines or runs."""

    place: str  # where the file says it
    outlines: list[Corners]  # each is filled, all together are the defect
    is_box: bool = False
    runs: list[int] | None = None  # pixels without and with defect in turn, down one column after the other
    kind: str = ""  # its class, as the file names or numbers it


class Label(NamedTuple):
    """What a file says of one picture; every class counts as defect."""

    file: Path
    picture: str  # its path as the labels name it; where each picture has a file, that file's own, without suffix
    size: Size | None  # of the picture that the shapes refer to; `SHARES`; None where the file does not say
    shapes: list[Shape]
    named: bool = True  # whether `picture` comes with the picture's suffix


def warn(found: Found, kind: str, file: Path, message: str) -> None:
    """A finding that is counted under ``labels KIND``."""
    found.append(Finding("warning", str(file), message, f"labels {kind}"))


# --- Where they lie

FORMATS = {".json": "COCO or labelme", ".txt": "YOLO", ".xml": "VOC", ".csv": "run lengths"}
EXPECTED = "a COCO (.json) or CSV file, or a folder of COCO, labelme (.json), YOLO (.txt) or VOC files (.xml)"
PLACES = (
    ("annotations", ".json"), ("annotations", ".csv"), ("labels", ".txt"), ("labels", ".json"), ("images", ".json"),
    ("images", ".txt"), ("Annotations", ".xml"), ("labels", ".xml"),
)  # fmt: skip


# What labelling tools and trainings write beside label files.
NO_LABELS = re.compile(
    r"(predefined_)?classes\.txt|(train|val|valid|test|labels|notes|readme.*)\.(txt|json)", re.IGNORECASE
)


def read_labels(given: Path | None, root: Path, found: Found) -> list[Label]:
    """All labels of a place, or of the usual places below a dataset's folder; `found` takes what is wrong."""
    labels: list[Label] = []
    with reported(found):
        place = given or _usual_place(root)
        one_file = place.is_file() and place.suffix.lower() in (".json", ".csv")
        if not place.is_dir() and not one_file:
            what = "is a file" if place.exists() else "does not exist"
            raise DataError(f"{place}: box_labels {what}; expected {EXPECTED}")
        files = [place] if one_file else _files_below(place)
        counts = sorted(Counter(file.suffix.lower() for file in files).items())
        if len(counts) > 1:
            formats = ", ".join(f"{count} of {FORMATS[suffix]} ({suffix})" for suffix, count in counts)
            raise DataError(f"{place}: holds label files of several formats: {formats}; keep one of them there")
        if not files:
            there = ", ".join(sorted(path.name for path in place.iterdir() if path.name[0] != ".")[:8]) or "nothing"
            raise DataError(f"{place}: holds no label files; expected {EXPECTED}, found {there}")
        for file in files:
            with reported(found):
                labels += _read_file(file, file.name if one_file else file.relative_to(place).as_posix(), found)
    return labels


def _usual_place(root: Path) -> Path:
    found: list[Path] = []
    for name, suffix in PLACES:
        files = [file for file in _files_below(root / name) if file.suffix.lower() == suffix]
        if files:
            alone = name == "annotations" and len(files) == 1
            found.append(files[0] if alone else root / name)
    found = [*dict.fromkeys(found)]
    names = ", ".join(path.relative_to(root).as_posix() for path in found[:8])
    if len(found) > 1:
        raise DataError(f"{root}: label files lie in {len(found)} places ({names}); choose by box_labels: {EXPECTED}")
    if not found:
        places = ", ".join(f"{name}/*{suffix}" for name, suffix in PLACES)
        raise DataError(f"{root}: no label files; expected one of {places} below it, or their place in box_labels")
    return found[0]


def told_unused(root: Path) -> str:
    """That label files lie in a usual place of a dataset without masks, and how to use them; empty where none do."""
    with contextlib.suppress(DataError):
        return f"; label files lie in {_usual_place(root)}: label_kind: box draws them as masks"
    return ""


def _files_below(folder: Path) -> list[Path]:
    files = (path for path in files_below(folder) if path.suffix.lower() in FORMATS)
    return sorted(path for path in files if not NO_LABELS.fullmatch(path.name))


def _read_file(file: Path, name: str, found: Found) -> list[Label]:
    picture = name[: -len(file.suffix)]
    match file.suffix.lower():
        case ".txt":
            return [_read_yolo(file, picture)]
        case ".xml":
            return [_read_voc(file, picture)]
        case ".csv":
            return _read_runs(file)
    content = parsed(file, "a JSON file", json.loads)
    if isinstance(content, dict) and "shapes" in content:
        size, shapes = _labelme(file, content)
        if ignored := len(content["shapes"]) - len(shapes):
            warn(found, "of no class", file, f"{ignored} shapes of the classes {' or '.join(NO_CLASS)}; left out")
        stem = PureWindowsPath(str(content.get("imagePath") or picture)).stem
        if stem.casefold() != Path(picture).name.casefold():
            told = f"imagePath names {stem}; taken for the picture that the file is named after"
            warn(found, "whose imagePath names another picture", file, told)
        return [Label(file, picture, size, shapes, named=False)]
    return _read_coco(file, content, found)


# --- The formats


NO_NUMBERS = (TypeError, ValueError, OverflowError)  # the last of whole numbers beyond what a float holds


def _numbers(values: Any, count: int, expected: str) -> list[float]:
    with contextlib.suppress(*NO_NUMBERS):
        if len(numbers := [float(value) for value in values]) == count:
            return numbers
    raise DataError(f"{expected}, found {values!r:.80}")


def _told_size(sides: list[Any], what: str) -> Size | None:
    """Height and width; None where a tool that does not know them wrote 0, -1 or nothing."""
    height, width = _numbers([side or 0 for side in sides], 2, f"{what} must be two numbers")
    return (int(height), int(width)) if 0 < height < math.inf and 0 < width < math.inf else None


def _box(place: str, left: float, top: float, right: float, bottom: float) -> Shape:
    return Shape(place, [np.array([[left, top], [right, top], [right, bottom], [left, bottom]])], is_box=True)


def _read_coco(file: Path, content: Any, found: Found) -> list[Label]:
    """An annotation's outlines or runs; its box where it has none. Crowds are left out."""
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        there = ", ".join(list(content)[:8]) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{file}: not a COCO file; expected images, annotations and categories, found {there}")
    for what, needed in {"images": ("id", "file_name"), "annotations": ("image_id",), "categories": ()}.items():
        entries = content.get(what) or []
        if not isinstance(entries, list):
            raise DataError(f"{file}: not a COCO file; expected a list of {what}, found {entries!r:.80}")
        for number, one in enumerate(entries):
            if lacks := [name for name in needed if not isinstance(one, dict) or name not in one]:
                raise DataError(f"{file}: not a COCO file: entry {number} of {what} has no {', '.join(lacks)}")
    labels: dict[str, Label] = {}
    categories = content.get("categories") or []
    names = {str(one.get("id")): str(one.get("name", "")) for one in categories if isinstance(one, dict)}
    for one in content["images"] or []:
        if str(one["id"]) in labels:
            raise DataError(f"{file}: images have the id {one['id']} more than once; ids must tell them apart")
        size = _told_size([one.get("height"), one.get("width")], f"{file}: image {one['id']}: height and width")
        labels[str(one["id"])] = Label(file, str(one["file_name"]), size, [])
    for number, one in enumerate(content["annotations"] or []):
        place = f"annotation {number if one.get('id') is None else one['id']}"
        if one.get("iscrowd"):
            warn(found, "of crowds", file, f"{place}: a crowd, not one object; left out")
            continue
        label = labels.get(str(one["image_id"]))
        shape = _coco_shape(one, f"{file}: {place}", place, label and label.size)
        if shape is None:
            warn(
                found, "that cover nothing", file, f"{place}: no outline of three or more corners and no box; left out"
            )
            continue
        shape = shape._replace(kind=names.get(str(one.get("category_id")), ""))
        if label is None:
            unknown = f"{place}: image_id {one['image_id']} is not among the file's images; left out"
            warn(found, "of an unknown image", file, unknown)
        else:
            label.shapes.append(shape)
    corners = [one for label in labels.values() for shape in label.shapes for one in shape.outlines]
    if corners and all((one >= 0).all() and (one <= 1).all() for one in corners):
        raise DataError(f"{file}: no coordinate is above 1; expected pixels, not shares of the picture's sides")
    return list(labels.values())


def _coco_shape(one: dict[str, Any], at: str, place: str, size: Size | None) -> Shape | None:
    """None where there is nothing to draw."""
    parts = one.get("segmentation")
    if isinstance(parts, list) and len(parts) == 1 and isinstance(parts[0], dict):
        parts = parts[0]
    if isinstance(parts, dict):
        told = f"{at}: size of the run lengths must be height and width"
        height, width = _numbers(parts.get("size"), 2, told)
        if not (height.is_integer() and width.is_integer()):
            raise DataError(f"{told}, found {parts['size']!r:.80}")
        if size is not None and size != (height, width):
            told = f"run lengths of a picture of {height:g}x{width:g} (height x width)"
            raise DataError(f"{at}: {told}, in one of {size[0]}x{size[1]}")
        return Shape(place, [], runs=_coco_runs(parts.get("counts"), at, int(height * width)))
    if parts and isinstance(parts, list):
        flat = [parts] if not isinstance(parts[0], list) else parts
        if whole := [part for part in flat if not isinstance(part, list) or len(part) >= 6]:
            return Shape(place, [_pairs(part, f"{at}: segmentation") for part in whole])
    if not one.get("bbox"):
        if parts is None:
            raise DataError(f"{at}: has neither bbox nor segmentation")
        return None
    x, y, width, height = _numbers(one["bbox"], 4, f"{at}: bbox must be four numbers")
    return _box(place, x, y, x + width, y + height)


def _pairs(values: Any, at: str) -> Corners:
    """Corners from x and y in turn."""
    with contextlib.suppress(*NO_NUMBERS):
        numbers = np.array(values, dtype=np.float64)
        if numbers.ndim == 1 and len(numbers) >= 6 and len(numbers) % 2 == 0 and (abs(numbers) < 1e9).all():
            return numbers.reshape(-1, 2)
    raise DataError(f"{at} must be x and y of three or more corners, finite numbers, found {values!r:.80}")


def _coco_runs(counts: Any, at: str, pixels: int) -> list[int]:
    """Run lengths of COCO's API, also compressed: base 32 with a sign, from the third on differences to the one before
    the last (cocoapi, common/maskApi.c)."""
    runs: list[int] = []
    if isinstance(counts, str):
        value = shift = 0
        for code in counts.encode(errors="replace"):
            value |= (code - 48 & 0x1F) << shift
            shift += 5
            if code - 48 & 0x20:
                continue
            if code - 48 & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    elif isinstance(counts, list) and all(type(count) is int for count in counts):
        runs = counts
    if not runs or min(runs) < 0 or sum(runs) != pixels:
        there = f"{sum(runs)} in {len(runs)} runs" if runs and min(runs) >= 0 else f"{counts!r:.60}"
        raise DataError(f"{at}: counts must be run lengths of the picture's {pixels} pixels, found {there}")
    return runs


def _read_yolo(file: Path, picture: str) -> Label:
    label = Label(file, picture, SHARES, [], named=False)
    lines = parsed(file, "a text file", lambda content: content.decode("utf-8-sig")).splitlines()
    for number, columns in enumerate(map(str.split, lines), start=1):
        at, place, count = f"{file}: line {number}", f"line {number}", len(columns)
        if not columns:
            continue
        if count != 5 and (count < 7 or count % 2 == 0):
            has = f"{count} columns{', as predictions with a confidence have' if count == 6 else ''}"
            expected = "five: class, centre x, centre y, width, height; or a class and x, y of three or more corners"
            raise DataError(f"{at} has {has}; expected {expected}")
        try:
            number_of_class, *values = map(float, columns)
        except ValueError:
            number_of_class, values = math.nan, []
        if not number_of_class.is_integer():
            raise DataError(f"{at} reads {' '.join(columns)!r:.60}; expected a class number and numbers")
        if count > 8 and count % 3 == 2 and {*values[6::3]} <= {0, 1, 2}:
            raise DataError(f"{at} has a box and {(count - 5) // 3} key points; expected a box alone, or an outline")
        largest = max(map(abs, values))
        if 2 < largest < math.inf:  # a box that is partly outside has values a little above 1
            raise DataError(f"{at} holds the value {largest:g}; expected shares of the picture from 0 to 1, not pixels")
        if count == 5:
            x, y, width, height = values
            shape = _box(place, x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        else:
            shape = Shape(place, [_pairs(values, at)])
        label.shapes.append(shape._replace(kind=columns[0]))
    return label


def _read_voc(file: Path, picture: str) -> Label:
    root = parsed(file, "a readable XML file", ElementTree.fromstring)  # expat refuses entities that blow up
    if root.tag != "annotation":
        raise DataError(f"{file}: not a VOC file; expected the element <annotation>, found <{root.tag}>")
    sides = [root.findtext(f"size/{name}") for name in ("height", "width")]
    label = Label(file, picture, _told_size(sides, f"{file}: height and width in <size>"), [], named=False)
    for number, thing in enumerate(root.iterfind("object"), start=1):
        corners = [thing.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
        expected = f"{file}: object {number} has no complete <bndbox>; expected xmin, ymin, xmax and ymax"
        left, top, right, bottom = _numbers(corners, 4, expected)
        # From 1, the last one included.
        shape = _box(f"object {number}", left - 1, top - 1, right, bottom)
        label.shapes.append(shape._replace(kind=thing.findtext("name") or ""))
    return label


def read_csv(file: Path) -> pd.DataFrame:
    """A table of texts, empty ones too; `UnreadableError` for a file that is none."""

    def parse(text: bytes) -> pd.DataFrame:
        head = text.partition(b"\n")[0]
        separator = max(",;\t", key=lambda one: head.count(one.encode()))
        table = pd.read_csv(io.BytesIO(text), dtype=str, keep_default_na=False, sep=separator)
        return table.rename(columns=lambda name: str(name).strip())

    return parsed(file, "a CSV file", parse)


RUNS = re.compile(r"\s*([0-9]{1,15}(\s+|$))+")
NO_RUNS = ("", "-1", "nan", "NaN")  # EncodedPixels of a picture without a defect
NAMES = ("ImageId", "ImageId_ClassId", "image_id", "image", "filename", "file_name")  # of a CSV's column of pictures


def _read_runs(file: Path) -> list[Label]:
    """``EncodedPixels`` as in Kaggle's competitions: pairs of a start, from 1 down the columns, and a length."""
    table = read_csv(file)
    name = next((name for name in NAMES if name in table), None)
    if name is None or "EncodedPixels" not in table:
        there = ", ".join(map(str, table.columns[:8]))
        raise DataError(f"{file}: expected the columns EncodedPixels and {NAMES[0]} or {NAMES[1]}, found {there}")
    labels: dict[str, Label] = {}
    classes = table["ClassId"] if "ClassId" in table else [""] * len(table)
    for number, (picture, kind, text) in enumerate(zip(table[name], classes, table["EncodedPixels"]), start=2):
        if name == "ImageId_ClassId":
            picture, _, kind = picture.rpartition("_")
        label = labels.setdefault(picture, Label(file, picture, None, []))
        if text.strip() in NO_RUNS:
            continue
        values = [int(part) for part in text.split()] if RUNS.fullmatch(text) else []
        starts, lengths = np.array(values[::2]) - 1, np.array(values[1::2])
        ends = starts[: len(lengths)] + lengths
        if not values or len(values) % 2 or starts.min() < 0 or (starts[1:] < ends[:-1]).any():
            told = "must be pairs of a start, from 1, and a length, ascending"
            raise DataError(f"{file}: line {number}: EncodedPixels {told}, found {text!r:.60}")
        gaps = starts - np.concatenate([[0], ends[:-1]])
        runs = np.stack([gaps, lengths], axis=1).ravel().tolist()
        label.shapes.append(Shape(f"line {number}", [], runs=runs, kind=kind))
    return list(labels.values())


NO_CLASS = ("__ignore__", "_background_")  # as labelme's own examples name them


def read_labelme(path: str | Path) -> tuple[Size, list[Shape]]:
    """(h, w) of the picture, and its shapes, their labels in small letters. `DataError` for what cannot be drawn."""
    return _labelme(Path(path), parsed(Path(path), "a JSON file", json.loads))


def _labelme(path: Path, content: Any) -> tuple[Size, list[Shape]]:
    told: dict[str, Any] = content if isinstance(content, dict) else {}
    shapes: Any = told.get("shapes")
    sides: tuple[Any, Any] = told.get("imageHeight"), told.get("imageWidth")
    if not isinstance(shapes, list) or not all(isinstance(one, dict) for one in shapes) or None in sides:
        there = ", ".join(list(told)[:8]) or f"a {type(content).__name__}"
        raise DataError(f"{path}: not a labelme file; expected shapes, imageHeight and imageWidth, found {there}")
    if not all(type(side) is int and 0 < side < 2**16 for side in sides):
        raise DataError(f"{path}: imageHeight and imageWidth must be whole numbers of pixels, found {[*sides]!r:.80}")
    kinds = Counter(str(one.get("shape_type", "polygon")) for one in shapes)
    if others := [f"{kind} ({count})" for kind, count in kinds.items() if kind not in ("polygon", "rectangle")]:
        raise DataError(f"{path}: holds shapes of type {', '.join(others)}; expected polygon or rectangle")
    labels = [str(one.get("label") or "defective").lower() for one in shapes]
    corners = [[_corners(one, f"{path}: shape {k}")] for k, one in enumerate(shapes)]
    drawn_ones = (k for k, label in enumerate(labels) if label not in NO_CLASS)
    return sides, [Shape(f"shape {k}", corners[k], kind=labels[k]) for k in drawn_ones]


def _corners(shape: dict[str, Any], place: str) -> Corners:
    points, is_rectangle = shape.get("points"), shape.get("shape_type") == "rectangle"
    corners: Corners = np.empty((0, 0))
    with contextlib.suppress(*NO_NUMBERS):
        corners = np.array(points, dtype=np.float64)
    if not (corners.ndim == 2 and corners.shape[1] == 2 and (abs(corners) < 1e9).all()):
        raise DataError(f"{place}: points must be pairs of finite numbers, found {points!r:.80}")
    if is_rectangle and len(corners) == 2:  # opposite corners; some tools write all four
        corners = np.stack([corners[[0, 1, 1, 0], 0], corners[[0, 0, 1, 1], 1]], axis=1)
    if len(corners) < 3 + is_rectangle:
        kind, expected = ("rectangle", "two or four") if is_rectangle else ("polygon", "three or more")
        raise DataError(f"{place}: a {kind} of {len(corners)} points; expected {expected}")
    return corners


# --- From shapes to pixels


def drawn(outlines: Iterable[Corners], runs: Iterable[list[int]], size: Size) -> Mask:
    """Pixels (h, w) of all outlines and runs together."""
    mask = np.zeros(size, dtype=np.bool_)
    for corners in outlines:
        edges = corners.min(0) // 1, corners.max(0) // 1 + 1
        low, high = (edge.clip(0, size[::-1]).astype(np.int64) for edge in edges)
        window = slice(low[1], high[1]), slice(low[0], high[0])
        mask[window] |= filled(corners - low, mask[window].shape)
    for one in runs:
        column_by_column, ends = np.zeros(mask.size, dtype=np.bool_), np.cumsum(one)
        for start, end in zip(ends[::2], ends[1::2]):
            column_by_column[start:end] = True
        mask |= column_by_column.reshape(size[::-1]).T
    return mask


def filled(corners: Corners, size: Size) -> Mask:
    """Pixels whose centre lies in a polygon, edges on the left and above included; where none does, what it touches."""
    (height, width), steps = size, np.roll(corners, -1, axis=0) - corners
    (x, y), (dx, dy), centres = corners.T, steps.T, np.arange(height) + 0.5
    row, edge = np.nonzero((y <= centres[:, None]) != (np.roll(y, -1) <= centres[:, None]))
    crossed = x[edge] + (centres[row] - y[edge]) / dy[edge] * dx[edge]
    turns = np.zeros((height, width + 1), dtype=np.bool_)  # where a row enters or leaves the polygon
    np.logical_xor.at(turns, (row, np.ceil(crossed - 0.5).clip(0, width).astype(np.int64)), True)
    inside = np.logical_xor.accumulate(turns, axis=1)[:, :width]
    for start, step in () if inside.any() else zip(corners, steps):
        # Cut at the lines between pixels, so that each piece of the edge lies within one.
        cuts = [(np.arange(side + 1) - a) / d for a, d, side in zip(start, step, (width, height)) if d]
        ends = np.unique(np.concatenate([[0, 1], *cuts]).clip(0, 1))
        column, row = np.floor(start + step * (ends[:-1] + ends[1:])[:, None] / 2).astype(np.int64).T
        there = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        inside[row[there], column[there]] = True
    return inside


MaskFiles = Path | tuple[Path, ...]  # several are joined


def read_mask(path: str | MaskFiles) -> Mask:
    """Defect pixels of a mask (h, w): of a picture as `read_mask_pixels` tells them, of a labelme file, or of several
    such, or a folder of them, joined."""
    return told_mask(path).defect


def told_mask(path: str | MaskFiles) -> MaskPixels:
    """As `read_mask`, with by what the pixels were told."""
    if isinstance(path, tuple) or Path(path).is_dir():
        files = path if isinstance(path, tuple) else [*files_below(Path(path))]
        return MaskPixels(joined({file: read_mask(file) for file in sorted(files)}), "several masks")
    if Path(path).suffix.lower() != ".json":
        return read_mask_pixels(path)
    size, shapes = read_labelme(path)
    outlines = (corners for shape in shapes for corners in shape.outlines)
    return MaskPixels(drawn(outlines, (), size), "outlines")


def joined(masks: Mapping[Any, Mask]) -> Mask:
    """The defect pixels of several masks of a picture, by their files; `DataError` where they differ in size."""
    if len({mask.shape for mask in masks.values()}) != 1:
        sizes = ", ".join(f"{Path(file).name} {mask.shape[0]}x{mask.shape[1]}" for file, mask in masks.items())
        told = f"masks of one picture, of {sizes or 'no'} size (height x width)"
        raise DataError(f"{Path(next(iter(masks), '')).parent}: {told}; expected some of one size")
    return np.logical_or.reduce([*masks.values()])
