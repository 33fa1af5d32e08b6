"""YOLO: one text file a picture, a line a box: class, centre x, centre y, width, height as shares of the picture.

Source: https://docs.ultralytics.com/datasets/detect. Class names are optional: ``classes.txt`` or ``names`` of
``data.yaml``, in the labels' folder or the one above.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gainmtl_lib.data.boxes.records import UNKNOWN_CLASS, Annotation, Box, Report
from gainmtl_lib.data.findings import DataError

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
