"""Pictures and masks at the size they are shown in, decoded once and kept for a while.

A file that is missing or damaged is told in words and never stops the browsing.

Sizes: h x w a picture on disk, H x W as shown.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.images import read_image, read_mask
from gainmtl_lib.explain.drawing import encode, ground, one_thread

KEPT_PICTURES = 32
KEPT_THUMBNAILS = 4096
THUMBNAIL = 84
READERS = 2


@dataclass(frozen=True)
class Shown:
    """A picture ready to be drawn on.

    Attributes:
        pixels: RGB, (H, W, 3); a grey field where the file is not there.
        size: (h, w) on disk; of the grey field where the file is not there.
        mask: annotated defect, (H, W), or None.
        problem: what is missing, in words; empty where nothing is.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    mask: NDArray[np.bool_] | None
    problem: str


class PictureFiles:
    """Decoded pictures and thumbnails, the most recently used kept; safe to use from several threads."""

    def __init__(self) -> None:
        self.load = lru_cache(KEPT_PICTURES)(load_shown)
        self.thumbnail = lru_cache(KEPT_THUMBNAILS)(thumbnail)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="pictures")
        self._ahead: list[Future[bytes]] = []

    def thumbnails(self, paths: list[Path | None]) -> list[bytes]:
        """Small JPEGs in the order of the paths; decoding releases the interpreter lock."""
        self.prefetch_thumbnails([])  # what may be wanted later stands back
        return list(self._readers.map(self.thumbnail, paths))

    def prefetch_thumbnails(self, paths: list[Path | None]) -> None:
        """Decode those of a page that is likely to be next; what an earlier call left to do is given up."""
        for waiting in self._ahead:
            waiting.cancel()
        self._ahead = [self._readers.submit(self.thumbnail, path) for path in paths]

    def prefetch(self, image: Path | None, mask: Path | None, side: int, size: tuple[int, int]) -> None:
        """Decode a picture that is likely to be looked at next, beside whatever goes on."""
        self._readers.submit(self.load, image, mask, side, size)

    def close(self) -> None:
        """Stop reading ahead."""
        self._readers.shutdown(wait=False, cancel_futures=True)


@one_thread()
def load_shown(image: Path | None, mask: Path | None, side: int, size: tuple[int, int]) -> Shown:
    """Decode a picture and its mask, the longer side brought to `side`.

    Args:
        image: None where its folder is known to be missing.
        mask: None where there is no annotation.
        side: in pixels.
        size: (h, w) of the grey field that stands for a picture that is not there.
    """
    problems = []
    try:
        pixels = read_image(image) if image is not None else ground(size)
    except DataError as error:
        pixels = ground(size)
        problems.append(_first_sentence(error))
    h, w = pixels.shape[:2]
    outlined = None
    try:
        outlined = read_mask(mask) if mask is not None else None
    except DataError as error:
        problems.append(_first_sentence(error))
    scale = side / max(h, w)
    shape = max(1, round(h * scale)), max(1, round(w * scale))
    return Shown(resized(pixels, shape), (h, w), resized_mask(outlined, shape), "; ".join(problems))


@one_thread()
def thumbnail(path: Path | None) -> bytes:
    """A small JPEG of the whole picture; grey where the file is not there."""
    pixels = ground((THUMBNAIL, THUMBNAIL))
    try:
        if path is not None:
            pixels = _reduced_jpeg(path) if path.suffix.lower() in {".jpg", ".jpeg"} else read_image(path)
    except (DataError, OSError, cv2.error):  # an empty file is an error of OpenCV's own
        pass
    h, w = pixels.shape[:2]
    scale = THUMBNAIL / max(h, w)
    return encode(resized(pixels, (max(1, round(h * scale)), max(1, round(w * scale)))), quality=80)


def _reduced_jpeg(path: Path) -> NDArray[np.uint8]:
    """A JPEG decoded at a quarter of its size, which is several times faster; small ones at their own."""
    reduced = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_REDUCED_COLOR_4)
    if reduced is None or max(reduced.shape) < THUMBNAIL:
        return read_image(path)
    return np.asarray(cv2.cvtColor(reduced, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def resized(pixels: NDArray, shape: tuple[int, int]) -> NDArray:
    """Bring (h, w[, C]) to (H, W[, C]): by area where it shrinks, smoothly where it grows."""
    if pixels.shape[:2] == shape:
        return pixels
    shrinks = shape[0] < pixels.shape[0]
    return cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def resized_mask(mask: NDArray[np.bool_] | None, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """A region that shrinking would lose keeps every pixel it touches, so that a thin defect stays outlined."""
    if mask is None or not mask.any():
        return None
    shrinks = shape[0] < mask.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    share = cv2.resize(mask.astype(np.float32), shape[::-1], interpolation=method)
    if not shrinks:  # half a pixel of the mask, so that its outline is no staircase
        share = cv2.GaussianBlur(share, (0, 0), max(0.5, 0.5 * shape[0] / mask.shape[0]))
    kept, touched = share >= 0.5, share > 0
    count, labels = cv2.connectedComponents(touched.astype(np.uint8))
    regions = labels.astype(np.intp)
    lost = np.arange(count) > 0  # region 0 is what is not touched
    lost[regions[kept]] = False
    return kept | lost[regions]


def _first_sentence(error: DataError) -> str:
    return str(error).split(";")[0]
