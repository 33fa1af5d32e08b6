"""Masks: pictures (h x w) and masks at the network's size (H x W), boxes drawn as masks."""

import contextlib
import hashlib
import json
import logging
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from gainmtl_lib import readers
from gainmtl_lib.readers import DataError, Finding, UnreadableError, parsed, read_image, reported
from gainmtl_lib.runs import atomic_path
from gainmtl_lib.settings import RunSettings

logger = logging.getLogger(__name__)

Resize = Literal["squash", "letterbox"]
Size = tuple[int, int]  # height and width
Mask = NDArray[np.bool_]
Place = tuple[slice, slice]  # rows and columns


# --- To the network's input size


def resize_image(image: NDArray[np.uint8], size: Size, resize: Resize) -> NDArray[np.uint8]:
    """Resize (h, w, 3) to (H, W, 3): by area where it shrinks, bilinearly where it grows.

    `letterbox` keeps the aspect ratio, centred, and fills the rest with the image's own mean colour: a fixed grey edge
    would tell the brightness, mirrored borders would show defects without a mask. Only `squash` hides the aspect ratio.
    """
    place = inside((image.shape[0], image.shape[1]), size, resize)
    fitted = _fit(image, place)
    if fitted.shape[:2] == size:
        return fitted
    canvas = np.full((*size, 3), np.rint(fitted.mean(axis=(0, 1))), dtype=np.uint8)
    canvas[place] = fitted
    return canvas


def resize_mask(mask: Mask, size: Size, resize: Resize, *, image_size: Size | None = None) -> Mask:
    """Resize defect pixels (h, w) to (H, W) by area, cut at half a pixel.

    A mask that the cut would empty keeps every pixel it touches, so that thin defects survive. A mask of another size
    than its image, which is `image_size` on disk, is fitted to it.
    """
    share = resize_values(mask, size, resize, image_size=image_size)
    return share >= 0.5 if share.max() >= 0.5 else share > 0


def resize_values(values: NDArray, size: Size, resize: Resize, *, image_size: Size | None = None) -> NDArray:
    """Resize values (h, w) to float32 (H, W) by area, zero on the bars. Arguments as for `resize_mask`."""
    place = inside(image_size or (values.shape[0], values.shape[1]), size, resize)
    canvas = np.zeros(size, dtype=np.float32)
    canvas[place] = _fit(values.astype(np.float32), place)
    return canvas


def check_aspect(mask: str | Path, values: NDArray, image: str, pixels: NDArray) -> Size:
    """Size of an image on disk; `DataError` where its mask has another aspect ratio."""
    (h, w), (height, width) = values.shape, pixels.shape[:2]
    if not same_aspect((h, w), (height, width)):
        sizes = f"mask is {h}x{w} (height x width), its image {image} {height}x{width}"
        raise DataError(f"{mask}: {sizes}; expected the same aspect ratio")
    return height, width


def same_aspect(mask_size: Size, image_size: Size) -> bool:
    """Whether one could be a resized copy of the other, sides rounded to whole pixels."""
    (h, w), (height, width) = mask_size, image_size
    return abs(h * width / height - w) <= 1 or abs(w * height / width - h) <= 1


def inside(picture: Size, size: Size, resize: Resize) -> Place:
    """Rows and columns of the input that a picture fills: all, or the middle between the bars of a letterbox."""
    height, width = size
    if resize == "letterbox":
        scale = min(height / picture[0], width / picture[1])
        height, width = (max(1, min(side, round(own * scale))) for own, side in zip(picture, size))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return slice(top, top + height), slice(left, left + width)


def _fit(picture: NDArray, place: Place) -> NDArray:
    """Area where a side shrinks, then bilinear where it grows; OpenCV's area mode does only both sides at once."""
    rows, columns = (side.stop - side.start for side in place)
    height, width = min(picture.shape[0], rows), min(picture.shape[1], columns)
    if (height, width) != picture.shape[:2]:
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    if (height, width) != (rows, columns):
        picture = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return picture


# --- Box labels in place of mask files

SHARES = (1, 1)  # size of a picture whose boxes are shares of its sides


class Label(NamedTuple):
    """What a file says of one picture; every class counts as defect."""

    file: Path
    picture: str  # its path as the labels name it; of YOLO and VOC the label file's own, without suffix
    size: Size | None  # of the picture that the boxes refer to; `SHARES`; None where the file does not say
    boxes: list[tuple[str, float, float, float, float]]  # place, left, top, right, bottom; pixel c spans [c, c + 1)


Pixels = set[tuple[int, int, int, int]]  # of each box: first row and column, and those after the last
Found = list[Finding]


def with_boxes(samples: pd.DataFrame, settings: RunSettings, findings: Found | None = None) -> pd.DataFrame:
    """The table of samples as it is, or with masks drawn from boxes where these are the labels.

    `DataError` for labels that are missing, broken, ambiguous, of several formats, on normal pictures, or without a box
    that can be drawn; `findings` takes what is wrong instead. `FileError` where the masks cannot be written.
    """
    if settings.label_kind == "mask":
        return samples
    root, images, found = Path(os.path.abspath(settings.dataset_folder)), samples["image"].tolist(), []
    labels = _read_labels(settings.box_labels, root, found)
    drawn: dict[int, tuple[Label, Size, Pixels]] = {}
    for label, rows in _with_rows(labels, images, root, found):
        row, image = rows[0], images[rows[0]]
        with reported(found), contextlib.suppress(UnreadableError):  # whoever decodes the pictures reports these
            if len(rows) > 1:
                several = f"can mean {len(rows)} pictures, such as {image} and {images[rows[1]]}"
                raise DataError(f"{label.file}: '{label.picture}' {several}; name the picture's folders, too")
            size = picture_size(image)
            boxes = _in_pixels(label, size, found)
            if boxes and samples["label"].iloc[row] == 0:
                advice = "move the picture, or remove the boxes"
                raise DataError(f"{label.file}: has boxes for {image}, which is labelled normal; {advice}")
            if boxes and row in drawn:
                other = drawn[row][0]
                place = f"{other.file} ('{other.picture}')" if other.file == label.file else other.file
                what = f"'{label.picture}' is {image}, which has boxes in {place}, too"
                raise DataError(f"{label.file}: {what}; keep one")
            if boxes:
                drawn[row] = label, size, boxes
    kinds = Counter(finding.kind for finding in found)
    if not drawn and not any(finding.level == "error" for finding in found):
        lost = "".join(f"{count} {kind}; " for kind, count in kinds.items())
        advice = "expected boxes for some defective pictures; without any, set label_kind: mask"
        message = f"the labels of {len(labels)} pictures hold no box that can be drawn; {lost}{advice}"
        found.append(Finding("error", str(settings.box_labels or root), message))
    if findings is None:
        readers.raise_errors(found)
        # One line of each kind, with an example: labels of thousands of pictures share one mistake.
        for kind, count in kinds.items():
            example = next(finding for finding in found if finding.kind == kind)
            logger.warning("%s: %d, such as %s", kind, count, example)
        if ignored := int(samples["mask"].notna().sum()):
            logger.info("label_kind box: %d mask files of the dataset are ignored", ignored)
    else:
        findings += found
    files = _stored({images[row]: boxed[1:] for row, boxed in drawn.items()}, root, settings)
    return samples.assign(mask=pd.Series([files.get(image) for image in images], index=samples.index, dtype=object))


def _stored(drawn: dict[str, tuple[Size, Pixels]], root: Path, settings: RunSettings) -> dict[str, str]:
    """The mask file of each picture, in a folder named by what is drawn there."""
    names = {image: Path(image).relative_to(root) for image in drawn}
    content = sorted((names[image].as_posix(), size, sorted(boxes)) for image, (size, boxes) in drawn.items())
    digest = hashlib.sha256(json.dumps([1, content]).encode()).hexdigest()[:12]  # 1 numbers the drawing rule
    folder = settings.outputs_dir / "data" / readers.STORE / f"{root.name}-{digest}"
    # After the picture's own suffix: a.jpg and a.bmp are two pictures.
    files = {image: folder / name.with_name(f"{name.name}.png") for image, name in names.items()}
    missing = {file: drawn[image] for image, file in files.items() if not file.is_file()}
    for file, (size, boxes) in missing.items():
        mask = np.zeros(size, dtype=np.uint8)
        for top, left, bottom, right in boxes:
            mask[top:bottom, left:right] = 255
        # File by file: what was drawn before an interruption stays, and two processes write the same bytes.
        with atomic_path(file) as path:
            path.write_bytes(cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
    if missing:
        logger.info("drew the boxes of %d pictures as masks into %s", len(missing), folder)
    return {image: str(file) for image, file in files.items()}


def box_labels_of(settings: RunSettings, data_root: Path) -> Path | None:
    """Box labels of other data, at the same place below its folder; None where they lie outside the settings' data."""
    place = settings.box_labels and Path(os.path.abspath(settings.box_labels))
    own = Path(os.path.abspath(settings.data_root))
    return data_root / place.relative_to(own) if place and place.is_relative_to(own) else None


def _warn(found: Found, kind: str, file: Path, message: str) -> None:
    found.append(Finding("warning", str(file), message, f"boxes {kind}"))


def _with_rows(labels: list[Label], images: list[str], root: Path, found: Found) -> Iterator[tuple[Label, list[int]]]:
    """Labels with boxes, and the rows of the pictures that each can mean.

    A label means the pictures of its name (or stem) whose folders fit: the label's occur in this order among the
    picture's below the dataset's folder, or the other way round. So ``train/a``, ``defective/a`` and
    ``/elsewhere/images/train/defective/a`` all mean ``images/train/defective/a.png``; ``val/a`` does not. Of several,
    those whose folders end in the label's, or the other way round: ``defective/a`` is not ``defective/crack/a.png``.
    """
    own = [_parts(Path(image).relative_to(root).as_posix()) for image in images]
    by_name: dict[str, list[int]] = {}
    for row, (*_, name) in enumerate(own):
        for key in {name, PurePosixPath(name).stem}:
            by_name.setdefault(key, []).append(row)
    meant = []
    for label in labels:
        *folders, name = _parts(label.picture) or [""]
        whole = label.file.suffix.lower() == ".json"  # only COCO names pictures with their suffix
        rows = {row: own[row][:-1] for row in by_name.get(name, []) if (own[row][-1] == name) == whole}
        fitting = [row for row, its in rows.items() if _occur(folders, its) or _occur(its, folders)]
        ending = [row for row in fitting if all(a == b for a, b in zip(folders[::-1], rows[row][::-1]))]
        meant.append(ending or fitting)
    if labels and not any(meant):
        message = f"none of the {len(labels)} labels means a picture below {root}, such as '{labels[0].picture}'"
        found.append(Finding("error", str(labels[0].file), message))
        return
    for label, rows in zip(labels, meant):
        if not rows:
            lost = f"there is no picture '{label.picture}' in the dataset; its label is left out"
            _warn(found, "without a picture", label.file, lost)
        elif label.boxes:
            yield label, rows


def _parts(path: str) -> list[str]:
    """Parts of a path of any system, without root and drive."""
    # macOS stores Hangul and accents decomposed in file names, label files hold them composed.
    parts = PurePosixPath(unicodedata.normalize("NFC", path).replace("\\", "/")).parts
    return [part for part in parts if part not in ("/", "//", ".")]


def _occur(some: list[str], parts: list[str]) -> bool:
    left = iter(parts)  # each `in` goes on where the last one stopped: in this order
    return all(part in left for part in some)


def picture_size(path: str) -> Size:
    """(height, width) as `read_image` decodes it, mostly from the file's head alone."""
    with contextlib.suppress(Exception), Image.open(path) as picture:
        if picture.getexif().get(0x0112, 1) == 1:  # the tag of the orientation: upright
            return picture.height, picture.width
    height, width, _ = read_image(path).shape
    return height, width


def _in_pixels(label: Label, size: Size, found: Found) -> Pixels:
    (height, width), told, boxes = size, label.size or size, set()
    if told not in (SHARES, size):
        sizes = f"the picture is {told[0]}x{told[1]} (height x width) there, and {height}x{width} on disk"
        if not same_aspect(told, size):
            raise DataError(f"{label.file}: {sizes}; expected the same aspect ratio")
        _warn(found, "of a picture of another size", label.file, f"{sizes}; its boxes are scaled")
    for place, *written in label.boxes:
        edges = np.array(written) * ([width / told[1], height / told[0]] * 2)
        left, top, right, bottom = clipped = edges.clip(0, [width, height] * 2)
        picture = f"the picture of {height}x{width} (height x width)"
        if not (np.isfinite(edges).all() and left < right and top < bottom):
            covers = f"{', '.join(f'{edge:.6g}' for edge in edges)} cover nothing of {picture}; left out"
            _warn(found, "that cover nothing", label.file, f"{place}: left, top, right, bottom {covers}")
            continue
        beyond, share = abs(edges - clipped).max(), (right - left) * (bottom - top) / (height * width)
        if beyond > 0.5:  # less covers no pixel more: written decimals, not a mistake
            reaches = f"{place}: reaches {beyond:.6g} pixels beyond {picture}; clipped"
            _warn(found, "beyond the picture's edge", label.file, reaches)
        if share >= 0.95:
            covers = f"{place}: covers {share:.0%} of the picture, and hardly says where the defect is"
            _warn(found, "over nearly the whole picture", label.file, covers)
        (first, last), (start, end) = _cells(top, bottom), _cells(left, right)
        boxes.add((first, start, last, end))
    return boxes


def _cells(start: float, end: float) -> tuple[int, int]:
    """First cell whose centre lies in [start, end), and the one after the last; the middle one if there is none."""
    # Rounded, because a share times a side misses a half by the last bit, on either side.
    first, last = math.ceil(round(start - 0.5, 6)), math.ceil(round(end - 0.5, 6))
    middle = math.floor((start + end) / 2)
    return (first, last) if last > first else (middle, middle + 1)


# --- The three formats of box labels

FORMATS = {".json": "COCO", ".txt": "YOLO", ".xml": "VOC"}
EXPECTED = "a COCO file (.json), or a folder of COCO, YOLO (.txt) or VOC files (.xml)"


def _read_labels(given: Path | None, root: Path, found: Found) -> list[Label]:
    labels: list[Label] = []
    with reported(found):
        place = given or _usual_place(root)
        if not place.is_dir() and not (place.is_file() and place.suffix.lower() == ".json"):
            what = "is a file" if place.exists() else "does not exist"
            raise DataError(f"{place}: box_labels {what}; expected {EXPECTED}")
        files = _files_below(place) if place.is_dir() else [place]
        counts = sorted(Counter(file.suffix.lower() for file in files).items())
        if len(counts) > 1:
            formats = ", ".join(f"{count} of {FORMATS[suffix]} ({suffix})" for suffix, count in counts)
            raise DataError(f"{place}: holds label files of several formats: {formats}; keep one of them there")
        if not files:
            there = ", ".join(sorted(path.name for path in place.iterdir() if path.name[0] != ".")[:8]) or "nothing"
            raise DataError(f"{place}: holds no label files; expected {EXPECTED}, found {there}")
        for file in files:
            with reported(found):
                if (kind := file.suffix.lower()) == ".json":
                    labels += _read_coco(file, found)
                else:
                    picture = file.relative_to(place).with_suffix("").as_posix()
                    labels.append(_read_yolo(file, picture) if kind == ".txt" else _read_voc(file, picture))
    return labels


def _usual_place(root: Path) -> Path:
    found = sorted(path for path in (root / "annotations").glob("*.json") if not path.name.startswith("."))
    for folder, suffix in ((root / "labels", ".txt"), (root / "Annotations", ".xml")):
        found += [folder] if any(file.suffix.lower() == suffix for file in _files_below(folder)) else []
    names = ", ".join(path.relative_to(root).as_posix() for path in found[:8])
    if len(found) > 1:
        raise DataError(f"{root}: box labels lie in {len(found)} places ({names}); choose by box_labels: {EXPECTED}")
    if not found:
        places = "annotations/*.json, labels/*.txt or Annotations/*.xml"
        raise DataError(f"{root}: no box labels; expected {places} below it, or their place in box_labels")
    return found[0]


def _files_below(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.suffix.lower() in FORMATS and path.is_file())
    return sorted(path for path in files if not path.name.startswith(".") and path.name != "classes.txt")


def _numbers(values: Any, count: int, expected: str) -> list[float]:
    with contextlib.suppress(TypeError, ValueError):
        if len(numbers := [float(value) for value in values]) == count:
            return numbers
    raise DataError(f"{expected}, found {values!r:.80}")


def _told_size(sides: list[Any], what: str) -> Size | None:
    """Height and width; None where a tool that does not know them wrote 0, -1 or nothing."""
    height, width = _numbers([side or 0 for side in sides], 2, f"{what} must be two numbers")
    return (int(height), int(width)) if min(height, width) > 0 and max(height, width) < math.inf else None


def _read_coco(file: Path, found: Found) -> list[Label]:
    """A segmentation beside a box is not read; crowds are left out."""
    content = parsed(file, "a JSON file", json.loads)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        there = ", ".join(list(content)[:8]) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{file}: not a COCO file; expected images, annotations and categories, found {there}")
    for what, needed in {"images": ("id", "file_name"), "annotations": ("image_id", "bbox")}.items():
        for number, one in enumerate(content[what] if isinstance(content[what], list) else [content[what]]):
            if lacks := [name for name in needed if not isinstance(one, dict) or name not in one]:
                raise DataError(f"{file}: not a COCO file of boxes: entry {number} of {what} has no {', '.join(lacks)}")
    labels: dict[str, Label] = {}
    for one in content["images"]:
        if repr(one["id"]) in labels:
            raise DataError(f"{file}: images have the id {one['id']} more than once; ids must tell them apart")
        size = _told_size([one.get("height"), one.get("width")], f"{file}: image {one['id']}: height and width")
        labels[repr(one["id"])] = Label(file, str(one["file_name"]), size, [])
    for number, one in enumerate(content["annotations"]):
        place = f"annotation {number if one.get('id') is None else one['id']}"
        x, y, width, height = _numbers(one["bbox"], 4, f"{file}: {place}: bbox must be four numbers")
        if (label := labels.get(repr(one["image_id"]))) is None:
            unknown = f"{place}: image_id {one['image_id']} is not among the file's images; left out"
            _warn(found, "of an unknown image", file, unknown)
        elif one.get("iscrowd"):
            _warn(found, "of crowds", file, f"{place}: a crowd, not one object's box; left out")
        else:
            label.boxes.append((place, x, y, x + width, y + height))
    return list(labels.values())


def _read_yolo(file: Path, picture: str) -> Label:
    label = Label(file, picture, SHARES, [])
    lines = parsed(file, "a text file", lambda content: content.decode("utf-8-sig")).splitlines()
    for number, columns in enumerate(map(str.split, lines), start=1):
        at, count = f"{file}: line {number}", len(columns)
        if not columns:
            continue
        if count != 5:
            polygon = f", as a polygon of {count // 2} points has" if count > 6 and count % 2 else ""
            has = f"{count} columns{', as predictions with a confidence have' if count == 6 else polygon}"
            raise DataError(f"{at} has {has}; expected five: class, centre x, centre y, width, height")
        try:
            _, x, y, width, height = int(columns[0]), *map(float, columns[1:])
        except ValueError:
            raise DataError(f"{at} reads {' '.join(columns)!r:.60}; expected a class number and four numbers") from None
        largest = max(map(abs, (x, y, width, height)))
        if 2 < largest < math.inf:  # a box that is partly outside has values a little above 1
            raise DataError(f"{at} holds the value {largest:g}; expected shares of the picture from 0 to 1, not pixels")
        label.boxes.append((f"line {number}", x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    return label


def _read_voc(file: Path, picture: str) -> Label:
    root = parsed(file, "a readable XML file", ElementTree.fromstring)  # expat refuses entities that blow up
    if root.tag != "annotation":
        raise DataError(f"{file}: not a VOC file; expected the element <annotation>, found <{root.tag}>")
    sides = [root.findtext(f"size/{name}") for name in ("height", "width")]
    label = Label(file, picture, _told_size(sides, f"{file}: height and width in <size>"), [])
    for number, thing in enumerate(root.iterfind("object"), start=1):
        corners = [thing.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
        expected = f"{file}: object {number} has no complete <bndbox>; expected xmin, ymin, xmax and ymax"
        left, top, right, bottom = _numbers(corners, 4, expected)
        label.boxes.append((f"object {number}", left - 1, top - 1, right, bottom))  # from 1, the last one included
    return label
