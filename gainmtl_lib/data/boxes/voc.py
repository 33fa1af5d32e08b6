"""Pascal VOC: one XML file a picture; ``bndbox`` holds whole pixels counted from 1, the last one included.

Source: the VOC2007 development kit, "the top left pixel in the image has coordinates (1,1)": a box of xmin 3 and
xmax 5 covers the pixel columns 2, 3 and 4 counted from 0.
"""

from __future__ import annotations

import xml.parsers.expat
from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder

from gainmtl_lib.data.boxes.records import Annotation, Box, Report
from gainmtl_lib.data.findings import DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _DoctypeError(Exception):
    """The file declares a document type."""


def voc_boxes(file: Path, report: Report) -> Annotation:
    """The boxes of one file, difficult and truncated ones included.

    Raises:
        DataError: no XML, no VOC annotation, a declared document type, or an object without a complete box.
    """
    del report  # VOC has nothing to leave out
    root = _parse(file)
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


def _parse(file: Path) -> Element:
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
