"""COCO: one JSON file for many pictures; ``bbox`` is x, y, width, height in pixels from the top left corner.

Source: https://cocodataset.org/#format-data, "coordinates are measured from the top left image corner and are
0-indexed": a box of x 2 and width 3 covers the pixel columns 2, 3 and 4.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ValidationError

from gainmtl_lib.data.boxes.records import CROWD, UNKNOWN_CLASS, UNKNOWN_IMAGE, Annotation, Box, Entry, Report
from gainmtl_lib.data.findings import DataError

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
