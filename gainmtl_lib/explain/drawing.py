"""One picture with one map, composed from pixels: fast enough to follow a slider.

Inferno over grey, which people with any colour vision can read. Where the map is near 0 the picture shows through, so
that a calm map leaves the picture as it is.

Sizes: H x W pixels of the drawing, h x w map cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gainmtl_lib.map_scale import MapScale

OUTLINE = (0, 229, 255)
"""RGB of the annotated defect's outline, as in the figures."""
CONTOUR = (255, 255, 255)
RIM = (25, 25, 25)
BESIDE = 4
"""Pixels from the defect to its outline: more than the line and its rim reach inwards."""
BAND = (32, 36, 42)
BAND_TEXT = (235, 238, 242)
GROUND = 150
"""Grey of a picture that is not there."""

FLAT = 1e-6
"""Relative span below which a map is constant and says nothing."""
FADE = 0.35
"""Map value from which the overlay has its full strength."""
LETTER, SMALLEST = 15, 11
"""Height of the band's letters, and how small they may become where words are long."""
BAR_RIM = (120, 126, 134)
QUALITY = 90

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


_single = {"depth": 0, "before": 0}
_single_lock = Lock()


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV with a single thread; also a decorator.

    On a machine that is busy, with a training say, its threads wait for each other: decoding a picture then takes
    twenty times as long as with one.
    """
    with _single_lock:
        if not _single["depth"]:
            _single["before"] = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _single["depth"] += 1
    try:
        yield
    finally:
        with _single_lock:
            _single["depth"] -= 1
            if not _single["depth"]:
                cv2.setNumThreads(_single["before"])


def enlarged_share(values: NDArray[np.floating], scale: MapScale | None, size: tuple[int, int]) -> NDArray[np.float32]:
    """A map enlarged, then brought to [0, 1]: every picture of a map goes through here, so that all show the same.

    In this order, which is that of the metrics. Scaled first, a cell far above the ceiling would count as one at the
    ceiling, and the line of 0.5 would lie elsewhere.

    Args:
        values: (h, w); what is not finite counts as 0.
        scale: absolute; None stretches the map to its own range, a constant one to 0.
        size: (H, W), reached bilinearly.

    Returns:
        (H, W).
    """
    full = _enlarged(np.nan_to_num(np.asarray(values, dtype=np.float32), posinf=0, neginf=0), size)
    if scale is not None:
        return scale.apply(full)
    # As `metrics.normalize_maps`, without torch's threads, which cost more than the sum.
    low, high = float(full.min()), float(full.max())
    if high - low <= FLAT * max(abs(low), abs(high)):
        return np.zeros_like(full)
    return (full - low) / (high - low)


def fitted(share: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map in [0, 1] at another size (H, W), bilinearly."""
    return _enlarged(share, size).clip(0, 1)


def _enlarged(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    full = cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(full).astype(np.float32, copy=False)


def compose(
    picture: NDArray[np.uint8],
    heat: NDArray[np.float32] | None = None,
    *,
    strength: float = 0.6,
    level: float | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Lay a map over a greyed picture; without a map the picture keeps its colours.

    Args:
        picture: RGB, (H, W, 3).
        heat: map on its scale, (H, W) in [0, 1].
        strength: of the overlay, in [0, 1].
        level: draws the contour of the map at this value.
        mask: annotated defect, (H, W), outlined.

    Returns:
        (H, W, 3).
    """
    drawn = picture.copy()
    if heat is not None:
        drawn = _overlay(picture, heat, strength)
        if level is not None:
            _contour(drawn, heat >= level, CONTOUR)
    if mask is not None:
        _contour(drawn, _grown(mask), OUTLINE)
    return drawn


def _overlay(picture: NDArray[np.uint8], heat: NDArray[np.float32], strength: float) -> NDArray[np.uint8]:
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    index = np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8)
    colours = inferno()[index]
    share = cv2.cvtColor(_strengths(strength)[index], cv2.COLOR_GRAY2RGB)
    mixed = np.empty(picture.shape, dtype=np.uint8)
    cv2.add(cv2.multiply(colours, share, scale=1 / 255), cv2.multiply(grey, 255 - share, scale=1 / 255), dst=mixed)
    return mixed


@cache
def inferno() -> NDArray[np.uint8]:
    """The colours of 256 map values, RGB, (256, 3)."""
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(ramp[:, 0, ::-1], dtype=np.uint8)


def _strengths(strength: float) -> NDArray[np.uint8]:
    """Opacity of 256 map values: rises to the full strength at `FADE`."""
    values = np.arange(256, dtype=np.float32) / 255
    return np.rint(255 * strength * np.clip(values / FADE, 0, 1)).astype(np.uint8)


def _contour(drawn: NDArray[np.uint8], region: NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    """The region's edge with a dark rim, which keeps it visible on any ground."""
    lines, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    width = 2 if max(drawn.shape) >= 320 else 1
    cv2.drawContours(drawn, lines, -1, RIM, width + 2, cv2.LINE_AA)
    cv2.drawContours(drawn, lines, -1, colour, width, cv2.LINE_AA)


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Its outline then runs beside the defect: on a thin scratch it would otherwise cover what it shows."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * BESIDE + 1, 2 * BESIDE + 1))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0)


def ground(size: tuple[int, int]) -> NDArray[np.uint8]:
    """A grey field (H, W, 3) in place of a picture that is not there."""
    return np.full((*size, 3), GROUND, dtype=np.uint8)


def with_band(drawn: NDArray[np.uint8], text: str, *, bar: bool) -> NDArray[np.uint8]:
    """Add a line of words below the picture, so that a copy of it still says what is shown on which scale.

    Args:
        drawn: (H, W, 3).
        text: in smaller letters, then shortened, where it does not fit.
        bar: with the colours of 0 to 1 before the words.
    """
    width = drawn.shape[1]
    band = Image.new("RGB", (width, 2 * LETTER), BAND)
    pen = ImageDraw.Draw(band)
    start = _draw_bar(band, pen) if bar else 8
    words, font = _fitting(text, width - start - 6)
    pen.text((start, LETTER), words, BAND_TEXT, font, anchor="lm")
    return np.concatenate([drawn, np.asarray(band)])


def _draw_bar(band: Image.Image, pen: ImageDraw.ImageDraw) -> int:
    """Colours from 0 to 1; returns where the words begin."""
    left, width, half = 23, 56, 7
    ramp = inferno()[np.linspace(0, 255, width).astype(int)]
    band.paste(Image.fromarray(np.tile(ramp, (2 * half, 1, 1))), (left, LETTER - half))
    pen.rectangle((left - 1, LETTER - half - 1, left + width, LETTER + half), outline=BAR_RIM)
    pen.text((left - 6, LETTER), "0", BAND_TEXT, _font(LETTER), anchor="rm")
    pen.text((left + width + 6, LETTER), "1", BAND_TEXT, _font(LETTER), anchor="lm")
    return left + width + 24


@cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _fitting(text: str, width: int) -> tuple[str, Font]:
    """A line in the largest letters that fit; one too long for the smallest is shortened."""
    for size in range(LETTER, SMALLEST, -1):
        if _font(size).getlength(text) <= width:
            return text, _font(size)
    while len(text) > 1 and _font(SMALLEST).getlength(text) > width:
        text = text[:-2].rstrip() + "…"
    return text, _font(SMALLEST)


def encode(pixels: NDArray[np.uint8], quality: int = QUALITY) -> bytes:
    """RGB (H, W, 3) as JPEG, with colours at full resolution: outlines are thin."""
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)[1].tobytes()
