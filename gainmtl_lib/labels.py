"""Masks: pictures (h x w) and masks at the network's size (H x W), label files drawn as masks."""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal
from urllib.parse import unquote

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from gainmtl_lib.annotations import (
    SHARES,
    Corners,
    Label,
    MaskFiles,
    Shape,
    drawn,
    joined,
    read_labels,
    read_mask,
    warn,
)
from gainmtl_lib.findings import DataError, Finding, UnreadableError, reported, settle
from gainmtl_lib.layouts import DEFECTIVE, LAYOUTS, NORMAL, SPLITS
from gainmtl_lib.pictures import Mask, Size, orientation, picture_size
from gainmtl_lib.progress import counted
from gainmtl_lib.readers import STORE
from gainmtl_lib.runs import atomic_path
from gainmtl_lib.settings import RunSettings

logger = logging.getLogger(__name__)

Resize = Literal["squash", "letterbox"]
Pixels = NDArray[np.uint8]  # a picture, (h, w, 3)
Place = tuple[slice, slice]  # rows and columns
COVERS_MOST = 0.5  # share of the picture above which a mask says nothing about where: any map agrees with it


# --- To the network's input size


def resize_image(image: Pixels, size: Size, resize: Resize) -> Pixels:
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


def mask_of(image: str | Path | None, mask: str | MaskFiles, size: Size) -> Mask:
    """Defect pixels of mask files, by `read_mask`, in the frame of their picture, by `upright_mask`."""
    return upright_mask(read_mask(mask), mask[0] if isinstance(mask, tuple) else mask, image, size)[0]


def upright_mask(defect: Mask, mask: str | Path, image: str | Path | None, size: Size) -> tuple[Mask, bool]:
    """The mask of a picture that is of `size` upright, in that frame, and whether it had to be turned for that.

    A mask drawn in the frame that the camera stored is turned as the picture's orientation tag says. `DataError` where
    it has another aspect ratio than its picture.
    """
    if same_aspect((defect.shape[0], defect.shape[1]), size):
        return defect, False
    with contextlib.suppress(OSError, SyntaxError, ValueError, KeyError), Image.open(image or "") as picture:
        turned = TURNS[orientation(picture)](defect)
        if same_aspect((turned.shape[0], turned.shape[1]), size):
            return turned, True
    check_aspect(mask, defect.shape, image, size)
    return defect, False


def check_aspect(mask: str | Path, mask_size: tuple[int, ...], image: str | Path | None, size: Size) -> None:
    """`DataError` where a mask has another aspect ratio than its picture of `size`, an image file or None."""
    if not same_aspect((mask_size[0], mask_size[1]), size):
        its = "its picture" if image is None else f"its image {image}"
        sizes = f"mask is {mask_size[0]}x{mask_size[1]} (height x width), {its} {size[0]}x{size[1]}"
        raise DataError(f"{mask}: {sizes}; expected the same aspect ratio")


TURNS: dict[int, Callable[[NDArray], NDArray]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.T,
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).T,
    8: lambda stored: np.rot90(stored, 1),
}
"""From the stored to the upright frame, by the orientation tag (EXIF 2.3, 0x0112)."""


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


# --- Label files in place of mask files

Drawing = tuple[Size, list[list]]  # of the picture, and what is drawn there, as JSON has it
Found = list[Finding]


def with_labels(samples: pd.DataFrame, settings: RunSettings, findings: Found | None = None) -> pd.DataFrame:
    """The table of samples with masks that are one file each: several of a picture joined, inverted ones turned round,
    and those of label files drawn, where these are the labels.

    `DataError` for labels that are missing, broken, ambiguous, of several formats, on normal pictures, or without a
    shape that can be drawn; `findings` takes what is wrong instead. `FileError` where masks cannot be written.
    """
    root, found = Path(os.path.abspath(settings.dataset_folder)), list[Finding]()
    own = LAYOUTS[settings.dataset_type].labels
    if settings.label_kind == "mask" and own is None:
        samples = _joined(samples, root, settings, found)
        settle(found, findings)
        return samples
    place = settings.box_labels if settings.label_kind == "box" else root / str(own)
    drawings = _drawings(samples, read_labels(place, root, found), root, settings, found)
    settle(found, findings)
    if findings is None and (ignored := int(samples["mask"].notna().sum())):
        logger.info("label_kind box: %d mask files of the dataset are ignored", ignored)
    return _drawn_labels(samples, drawings, root, settings)


def _drawings(
    samples: pd.DataFrame, labels: list[Label], root: Path, settings: RunSettings, found: Found
) -> dict[str, Drawing]:
    """What the labels draw, by picture."""
    images, shown = samples["image"].tolist(), dict[str, tuple[Label, Drawing]]()
    for label, rows in _with_rows(labels, images, root, found):
        image, normal = images[rows[0]], samples["label"].iloc[rows[0]] == 0
        with reported(found), contextlib.suppress(UnreadableError):  # whoever decodes the pictures reports these
            if len(rows) > 1:
                several = f"can mean {len(rows)} pictures, such as {image} and {images[rows[1]]}"
                raise DataError(f"{label.file}: '{label.picture}' {several}; name the picture's folders, too")
            size = picture_size(image)
            if parts := _in_pixels(label, size, found):
                _check_owner(label, image, shown[image][0] if image in shown else None, normal=normal)
                shown[image] = label, (size, parts)
    where = str(settings.box_labels or root)
    classes = Counter(shape.kind for label, _ in shown.values() for shape in label.shapes if shape.kind)
    if len(classes) > 1:
        named = ", ".join(f"{name} ({count})" for name, count in classes.most_common(8))
        told = f"the labels tell {len(classes)} classes, which all count as defect: {named}"
        found.append(Finding("info", where, told))
    if not shown and not any(finding.level == "error" for finding in found):
        kinds = Counter(finding.kind for finding in found if finding.kind)
        lost = "".join(f"{count} {kind}; " for kind, count in kinds.items())
        advice = "expected boxes for some defective pictures; without any, set label_kind: mask"
        message = f"the labels of {len(labels)} pictures hold no box that can be drawn; {lost}{advice}"
        found.append(Finding("error", where, message))
    return {image: drawing for image, (_, drawing) in shown.items()}


def _check_owner(label: Label, image: str, other: Label | None, *, normal: bool) -> None:
    """`DataError` where a picture may have no boxes, or has those of an `other` label."""
    if normal:
        advice = "move the picture, or remove the boxes"
        raise DataError(f"{label.file}: has boxes for {image}, which is labelled normal; {advice}")
    if other is not None:
        there = f"{other.file} ('{other.picture}')" if other.file == label.file else other.file
        what = f"'{label.picture}' is {image}, which has boxes in {there}, too"
        raise DataError(f"{label.file}: {what}; keep one")


def _drawn_labels(
    samples: pd.DataFrame, drawings: Mapping[str, Drawing], root: Path, settings: RunSettings
) -> pd.DataFrame:
    """The table with the file of each drawing as its picture's mask, and no other mask."""

    def draw(image: str) -> Mask:
        size, parts = drawings[image]
        outlines = [np.array(part[1]) for part in parts if part[0] == "outline"]
        mask = drawn(outlines, [part[1] for part in parts if part[0] == "runs"], size)
        for _, top, left, bottom, right in (part for part in parts if part[0] == "box"):
            mask[top:bottom, left:right] = True
        return mask

    content = sorted((_below(image, root).as_posix(), *drawing) for image, drawing in drawings.items())
    files = _stored(drawings, draw, json.dumps([2, content]), root, settings)  # 2 numbers the drawing rule
    masks = [files.get(image) for image in samples["image"]]
    return samples.assign(mask=pd.Series(masks, index=samples.index, dtype=object))


def _joined(samples: pd.DataFrame, root: Path, settings: RunSettings, found: Found) -> pd.DataFrame:
    """The table with several masks of a picture joined, and with the complements of masks that mark the background."""
    invert, masks = settings.mask_marks == "background", dict[str, tuple[str, ...]]()
    for image, mask in zip(samples["image"], samples["mask"]):
        if isinstance(mask, tuple) or (mask and invert):
            masks[image] = mask if isinstance(mask, tuple) else (mask,)
    of = hashlib.sha256(str(invert).encode())
    for image, files in masks.items():
        with contextlib.suppress(OSError):  # whoever decodes the masks reports it
            of.update(f"{_below(image, root)}\n".encode() + b"".join(Path(one).read_bytes() for one in files))

    def draw(image: str) -> Mask:
        return joined({one: ~read_mask(one) if invert else read_mask(one) for one in masks[image]})

    stored = _stored(masks, draw, of.hexdigest(), root, settings)
    for image in sorted(masks.keys() - stored.keys()):
        # One that cannot be read at all is left to whoever decodes it, who may step over it.
        step_over = contextlib.suppress(*([UnreadableError] if len(masks[image]) == 1 else []))
        with reported(found), step_over:
            draw(image)
        stored[image] = masks[image][0]
    files = [stored.get(image, mask) for image, mask in zip(samples["image"], samples["mask"])]
    return samples.assign(mask=pd.Series(files, index=samples.index, dtype=object))


def _below(image: str, root: Path) -> Path:
    return Path(image).relative_to(root)


def _stored(
    of: Mapping[str, Any], draw: Callable[[str], Mask], content: str, root: Path, settings: RunSettings
) -> dict[str, str]:
    """The mask file of each picture that can be drawn, in a folder named by the content of all."""
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    folder = settings.outputs_dir / "data" / STORE / f"{root.name}-{digest}"
    names = {image: _below(image, root) for image in of}
    # After the picture's own suffix: a.jpg and a.bmp are two pictures.
    files = {image: folder / name.with_name(f"{name.name}.png") for image, name in names.items()}
    missing = [image for image, file in files.items() if not file.is_file()]

    def write(image: str) -> None:
        # File by file: what was drawn before an interruption stays, and two processes write the same bytes.
        try:
            pixels = draw(image).astype(np.uint8) * 255
        except DataError:  # of a mask file: whoever decodes it reports that
            del files[image]
            return
        with atomic_path(files[image]) as path:
            path.write_bytes(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())

    if missing:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for _ in counted(pool.map(write, missing), len(missing), "masks drawn", log=logger):
                pass
        logger.info("drew the labels of %d pictures as masks into %s", len(missing), folder)
    return {image: str(file) for image, file in files.items()}


def box_labels_of(settings: RunSettings, data_root: Path) -> Path | None:
    """Box labels of other data, at the same place below its folder; None where they lie outside the settings' data."""
    place = settings.box_labels and Path(os.path.abspath(settings.box_labels))
    own = Path(os.path.abspath(settings.data_root))
    return data_root / place.relative_to(own) if place and place.is_relative_to(own) else None


def _with_rows(labels: list[Label], images: list[str], root: Path, found: Found) -> Iterator[tuple[Label, list[int]]]:
    """Labels with shapes, and the rows of the pictures that each can mean.

    A label means the pictures of its name (or stem) whose folders fit: the label's occur in this order among the
    picture's below the dataset's folder, or the other way round. So ``train/a``, ``defective/a`` and
    ``/elsewhere/images/train/defective/a`` all mean ``images/train/defective/a.png``; ``val/a`` does not. Of several,
    those whose folders end in the label's, or the other way round: ``defective/a`` is not ``defective/crack/a.png``.
    Where none fits, the one picture of that name, or else of that stem, in any case, unless the label names another
    split or class: labels are often written before pictures are converted, and sorted into a dataset's folders.
    """
    own = [_parts(_below(image, root).as_posix()) for image in images]
    by_name: dict[str, list[int]] = {}
    for row, (*_, name) in enumerate(own):
        for key in {name, PurePosixPath(name).stem, name.casefold(), PurePosixPath(name).stem.casefold()}:
            by_name.setdefault(key, []).append(row)
    meant, loosely = [], []
    for label in labels:
        *folders, name = _parts(label.picture) or [""]
        rows = {row: own[row][:-1] for row in by_name.get(name, []) if (own[row][-1] == name) == label.named}
        fitting = [row for row, its in rows.items() if _occur(folders, its) or _occur(its, folders)]
        ending = [row for row in fitting if all(a == b for a, b in zip(folders[::-1], rows[row][::-1]))]
        if not fitting:
            fitting = _by_name_alone(folders, name, label.named, own, by_name)
            loosely += [label] * bool(fitting)
        meant.append(ending or fitting)
    if loosely:
        advice = "they were matched by that name"
        told = f"{len(loosely)} labels name other folders or another suffix, such as '{loosely[0].picture}'; {advice}"
        found.append(Finding("info", str(loosely[0].file), told))
    if labels and not any(meant):
        message = f"none of the {len(labels)} labels means a picture below {root}, such as '{labels[0].picture}'"
        message += f"; a picture there is '{_below(images[0], root).as_posix()}'" if images else ""
        found.append(Finding("error", str(labels[0].file), message))
        return
    for label, rows in zip(labels, meant):
        if not rows:
            lost = f"there is no picture '{label.picture}' in the dataset; its label is left out"
            warn(found, "without a picture", label.file, lost)
        elif label.shapes:
            yield label, rows


def _by_name_alone(
    folders: list[str], name: str, named: bool, own: list[list[str]], by_name: dict[str, list[int]]
) -> list[int]:
    stem = PurePosixPath(name).stem if named else name
    telling = {part.casefold() for part in folders} & {*SPLITS, NORMAL, DEFECTIVE}
    names = (name, name.casefold(), stem, stem.casefold(), *_before_export(name), *_before_export(stem))
    for key in dict.fromkeys(names):
        rows = {row for row in by_name.get(key, []) if telling <= {part.casefold() for part in own[row]}}
        if rows:
            return [*rows]
    return []


EXPORTED = (
    re.compile(r"(?P<name>.+)_(?:png|jpe?g|bmp|tiff?|webp)\.rf\.\w+(?:\.\w+)?", re.IGNORECASE),  # Roboflow
    re.compile(r"[0-9a-f]{8}-(?P<name>.+)"),  # Label Studio
)


def _before_export(name: str) -> Iterator[str]:
    """What a picture was named before a labelling tool wrote its name as an address, or added its own marks."""
    plain = unquote(name).strip()
    for one in (plain, *(match["name"] for form in EXPORTED if (match := form.fullmatch(plain)))):
        yield from (one.casefold(), PurePosixPath(one).stem.casefold())


def _parts(path: str) -> list[str]:
    """Parts of a path of any system, without root and drive."""
    # macOS stores Hangul and accents decomposed in file names, label files hold them composed.
    path = unicodedata.normalize("NFC", path)
    pure = PureWindowsPath(path)
    parts = PurePosixPath(path.removeprefix(pure.drive).replace("\\", "/")).parts
    return [part for part in parts if part not in ("/", "//", ".", "..")]


def _occur(some: list[str], parts: list[str]) -> bool:
    left = iter(parts)  # each `in` goes on where the last one stopped: in this order
    return all(part in left for part in some)


def _in_pixels(label: Label, size: Size, found: Found) -> list[list]:
    """What is to be drawn of a label in a picture (h, w): boxes by first and last cells, outlines, runs; each once."""
    (height, width), told, parts = size, label.size or size, []
    if told not in (SHARES, size):
        sizes = f"the picture is {told[0]}x{told[1]} (height x width) there, and {height}x{width} on disk"
        if not same_aspect(told, size):
            turned = same_aspect((told[1], told[0]), size)
            advice = "; the picture is turned by its orientation tag: save it upright, and label that" * turned
            raise DataError(f"{label.file}: {sizes}; expected the same aspect ratio{advice}")
        warn(found, "of a picture of another size", label.file, f"{sizes}; its shapes are scaled")
    for shape in label.shapes:
        if shape.runs is not None:
            parts.append(["runs", _fitting_runs(label, shape, told, size)])
            continue
        outlines = [corners * (width / told[1], height / told[0]) for corners in shape.outlines]
        if _is_drawable(outlines, label, shape, size, found):
            parts += [_box_cells(one, size) if shape.is_box else ["outline", one.tolist()] for one in outlines]
    return [json.loads(part) for part in sorted({json.dumps(part) for part in parts})]


def _is_drawable(outlines: list[Corners], label: Label, shape: Shape, size: Size, found: Found) -> bool:
    (height, width), corners = size, np.concatenate(outlines)
    edges = np.concatenate([corners.min(0), corners.max(0)])
    inner = edges.clip(0, [width, height] * 2)
    picture = f"the picture of {height}x{width} (height x width)"
    if not (np.isfinite(corners).all() and inner[0] < inner[2] and inner[1] < inner[3]):
        covers = f"{', '.join(f'{edge:.6g}' for edge in edges)} cover nothing of {picture}; left out"
        warn(found, "that cover nothing", label.file, f"{shape.place}: left, top, right, bottom {covers}")
        return False
    beyond = abs(edges - inner).max()
    share = (inner[2] - inner[0]) * (inner[3] - inner[1]) / (height * width)
    if beyond > 0.5:  # less covers no pixel more: written decimals, not a mistake
        reaches = f"{shape.place}: reaches {beyond:.6g} pixels beyond {picture}; clipped"
        warn(found, "beyond the picture's edge", label.file, reaches)
    if shape.is_box and share >= 0.95:
        covers = f"{shape.place}: covers {share:.0%} of the picture, and hardly says where the defect is"
        warn(found, "over nearly the whole picture", label.file, covers)
    return True


def _box_cells(corners: Corners, size: Size) -> list:
    (left, top), (right, bottom) = corners.min(0).clip(0, size[::-1]), corners.max(0).clip(0, size[::-1])
    (first, last), (start, end) = _cells(top, bottom), _cells(left, right)
    return ["box", first, start, last, end]


def _fitting_runs(label: Label, shape: Shape, told: Size, size: Size) -> list[int]:
    if told != size:
        sizes = f"{told[0]}x{told[1]} (height x width), it is {size[0]}x{size[1]}"
        raise DataError(f"{label.file}: {shape.place}: run lengths of a picture of {sizes}; save it in that size")
    runs = [*(shape.runs or [])]
    if (pixels := sum(runs)) > size[0] * size[1]:
        raise DataError(f"{label.file}: {shape.place}: runs end at pixel {pixels} of {size[0] * size[1]}")
    return runs


def _cells(start: float, end: float) -> tuple[int, int]:
    """First cell whose centre lies in [start, end), and the one after the last; the middle one if there is none."""
    # Rounded, because a share times a side misses a half by the last bit, on either side.
    first, last = math.ceil(round(start - 0.5, 6)), math.ceil(round(end - 0.5, 6))
    middle = math.floor((start + end) / 2)
    return (first, last) if last > first else (middle, middle + 1)
