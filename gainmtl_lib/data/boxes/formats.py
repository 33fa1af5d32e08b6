"""Which label files there are, and of which format."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gainmtl_lib.data.boxes.coco import coco_entries
from gainmtl_lib.data.boxes.records import Entry, Report
from gainmtl_lib.data.boxes.voc import voc_boxes
from gainmtl_lib.data.boxes.yolo import CLASSES_FILE, yolo_boxes, yolo_names
from gainmtl_lib.data.findings import DataError

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
