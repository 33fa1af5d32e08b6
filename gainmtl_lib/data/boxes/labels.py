"""The table of samples with masks drawn from boxes, in place of the dataset's mask files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gainmtl_lib.data.boxes.formats import label_entries
from gainmtl_lib.data.boxes.pictures import Pictures, picture_size
from gainmtl_lib.data.boxes.raster import Target, pixel_boxes
from gainmtl_lib.data.boxes.records import NO_PICTURE, UNREADABLE, Annotation, BoxFinding, Entry, Report
from gainmtl_lib.data.boxes.store import STORE, Drawn, store_masks
from gainmtl_lib.data.findings import DataError, raise_errors
from gainmtl_lib.data.transforms import Resize

logger = logging.getLogger(__name__)

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
            annotation = _annotation(entry, found, images, report)
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


def _annotation(entry: Entry, found: list[int], images: list[str], report: Report) -> Annotation | None:
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
