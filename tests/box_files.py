"""Box labels of one set of pictures in all three formats, and the masks that they mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from drawn_data import write_generic

SIZE = (12, 16)
"""Height and width of every picture."""

PIXELS = {
    "train_d0": [(2, 1, 5, 4)],
    "train_d1": [(0, 0, 4, 2), (14, 9, 16, 12)],
    "val_d0": [(3, 2, 9, 8), (6, 5, 12, 10)],
}
"""Boxes by stem: first column, first row, and the column and row after the last, counted from 0."""


def drawn(stem: str) -> np.ndarray:
    """The mask of a picture, 255 in its boxes."""
    mask = np.zeros(SIZE, np.uint8)
    for x0, y0, x1, y1 in PIXELS[stem]:
        mask[y0:y1, x0:x1] = 255
    return mask


def boxed_data(root: Path) -> Path:
    """The generic layout without a mask; three of nine defective pictures are to get boxes."""
    write_generic(root)
    for mask in (root / "masks").rglob("*.png"):
        mask.unlink()
    return root


def coco(boxes: Sequence[dict] = (), **parts) -> dict:
    """A COCO file of the pictures of `PIXELS`, or with its parts replaced."""
    images, own = [], []
    for number, (name, pixels) in enumerate(PIXELS.items()):
        place = f"{name.split('_')[0]}/defective/{name}.png"
        images.append({"id": number, "file_name": place, "width": SIZE[1], "height": SIZE[0]})
        own += [{"image_id": number, "bbox": [x0, y0, x1 - x0, y1 - y0]} for x0, y0, x1, y1 in pixels]
    annotations = list(boxes) or [{"id": number, "category_id": 1} | one for number, one in enumerate(own)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "crack"}]} | parts


def write_label(root: Path, name: str, text: str) -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def write_coco(root: Path, content: dict | None = None, name: str = "annotations/boxes.json") -> Path:
    return write_label(root, name, json.dumps(coco() if content is None else content))


def write_yolo(root: Path) -> Path:
    height, width = SIZE
    for name, boxes in PIXELS.items():
        shares = [
            ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            for x0, y0, x1, y1 in boxes
        ]
        lines = [f"0 {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for x, y, w, h in shares]
        write_label(root, f"labels/{name.split('_')[0]}/{name}.txt", "".join(lines))
    return root / "labels"


def voc(boxes: Sequence[Sequence[float]], *, size: tuple[int, int] | None = SIZE, name: str = "crack") -> str:
    """A VOC file; boxes as written in it: xmin, ymin, xmax, ymax."""
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for a, b, c, d in boxes
    )
    told = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation><folder>x</folder>{told}{objects}</annotation>"


def write_voc(root: Path) -> Path:
    for name, boxes in PIXELS.items():
        # Counted from 1, the last pixel included.
        write_label(root, f"Annotations/{name}.xml", voc([(x0 + 1, y0 + 1, x1, y1) for x0, y0, x1, y1 in boxes]))
    return root / "Annotations"


def stored(mask: str) -> np.ndarray:
    return cv2.imread(mask, cv2.IMREAD_UNCHANGED)
