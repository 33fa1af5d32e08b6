"""One file of a dataset at a time: what decoding it tells the data check.

H x W network input.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from gainmtl_lib.data.findings import DataError, Finding
from gainmtl_lib.data.images import MASK_THRESHOLD, read_image, read_mask_values
from gainmtl_lib.data.transforms import Resize, resize_mask, same_aspect
from gainmtl_lib.metrics import grid_iou

logger = logging.getLogger(__name__)

STRIDES = (32, 16, 8, 4)
THUMBNAIL = 32


@dataclass(frozen=True)
class Inspected:
    """What decoding one sample told.

    Attributes:
        height: of the image on disk; NaN where it cannot be decoded, like `width`.
        width: see `height`.
        digest: SHA-256 of the image file.
        thumbnail: its fine structure as a unit vector; None for a flat picture.
        mask_state: ok, empty, misfit, unreadable, missing; None for normal images.
        mask_resized: the mask's size differs from its image's, the aspect ratio does not.
        mask_binary: the mask holds no other values than 0 and its largest.
        defect_area: share of the mask that is defect.
        grid_ious: IoU that the mask reaches on the map's grid, for each of `STRIDES`.
        findings: problems of these files.
    """

    height: float = np.nan
    width: float = np.nan
    digest: str | None = None
    thumbnail: NDArray | None = None
    mask_state: str | None = None
    mask_resized: bool = False
    mask_binary: bool = True
    defect_area: float = np.nan
    grid_ious: tuple[float, ...] = (np.nan,) * len(STRIDES)
    findings: tuple[Finding, ...] = ()


def inspect_samples(samples: pd.DataFrame, *, image_size: tuple[int, int], resize: Resize) -> list[Inspected]:
    """Decode every file of the table, in its order."""
    jobs = list(zip(samples["image"], samples["label"], samples["mask"], strict=True))
    results: list[Inspected] = []
    started = last = time.monotonic()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for result in pool.map(lambda job: _inspect(*job, image_size=image_size, resize=resize), jobs):
            results.append(result)
            if time.monotonic() - last >= 5:
                last = time.monotonic()
                rate = len(results) / (last - started)
                logger.info("checked %d of %d images (%.0f/s)", len(results), len(jobs), rate)
    return results


def _inspect(image: str, label: int, mask: str | None, *, image_size: tuple[int, int], resize: Resize) -> Inspected:
    findings: list[Finding] = []
    facts: dict[str, Any] = {}
    size = None
    try:
        pixels = read_image(image)
        size = (pixels.shape[0], pixels.shape[1])
        facts = {
            "height": float(size[0]),
            "width": float(size[1]),
            "digest": hashlib.sha256(Path(image).read_bytes()).hexdigest(),
            "thumbnail": _thumbnail(pixels),
        }
    except DataError as error:
        findings.append(Finding("error", image, str(error).removeprefix(f"{image}: ")))
    if mask is not None:
        facts |= _inspect_mask(mask, size, findings, image_size=image_size, resize=resize)
    elif label == 1:
        facts["mask_state"] = "missing"
    return Inspected(**facts, findings=tuple(findings))


def _inspect_mask(
    mask: str,
    size: tuple[int, int] | None,
    findings: list[Finding],
    *,
    image_size: tuple[int, int],
    resize: Resize,
) -> dict[str, Any]:
    try:
        values = read_mask_values(mask)
    except DataError as error:
        findings.append(Finding("error", mask, str(error).removeprefix(f"{mask}: ")))
        return {"mask_state": "unreadable"}
    defect = values > MASK_THRESHOLD
    own = (defect.shape[0], defect.shape[1])
    sizes = f"mask is {own[0]}x{own[1]} (height x width), its image {size[0]}x{size[1]}" if size else ""
    facts: dict[str, Any] = {"mask_state": "ok", "mask_binary": bool(np.isin(values, (0, values.max())).all())}
    if size is not None and own != size:
        if not same_aspect(own, size):
            findings.append(Finding("error", mask, f"{sizes}; expected the same aspect ratio"))
            return facts | {"mask_state": "misfit"}
        findings.append(Finding("info", mask, f"{sizes}; it is fitted"))
        facts["mask_resized"] = True
    if not defect.any():
        message = f"mask holds no defect pixel (largest value {values.max()}, above {MASK_THRESHOLD} counts)"
        findings.append(Finding("warning", mask, f"{message}; treated as missing"))
        return facts | {"mask_state": "empty"}
    fitted = torch.from_numpy(resize_mask(defect, image_size, resize, image_size=size)).float()[None, None]
    grids = [(max(1, image_size[0] // stride), max(1, image_size[1] // stride)) for stride in STRIDES]
    return facts | {
        "defect_area": float(defect.mean()),
        "grid_ious": tuple(float(grid_iou(fitted, grid=grid)) for grid in grids),
    }


def _thumbnail(pixels: NDArray[np.uint8]) -> NDArray | None:
    """Unit vector of the fine structure of a small grey picture; None for a picture without any."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    detail = small - cv2.GaussianBlur(small, (0, 0), 2)
    norm = float(np.linalg.norm(detail))
    return (detail / norm).ravel() if norm > 0.1 * THUMBNAIL else None
