"""One picture with one run's map as a drawing and its words: what a browser shows, without the browser.

Sizes: H x W network input, h x w map cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gainmtl_lib.evaluation.map_scale import MapScale
from gainmtl_lib.explain.drawing import compose, encode, one_thread, with_band
from gainmtl_lib.explain.library import KINDS, OpenedRun
from gainmtl_lib.explain.picture_files import Shown
from gainmtl_lib.explain.regions import Frame

SHORT = {"cam": "CAM", "attention": "attention", "localization": "localization"}
FLAT = 1e-6
"""Relative span below which a map is constant and says nothing."""
IOU_COLUMN = {"cam": "cam_iou", "attention": "attention_iou", "localization": "loc_iou"}
IOU_NAME = {"cam": "CAM-IoU", "attention": "attention IoU", "localization": "localization IoU"}


@dataclass(frozen=True)
class Look:
    """How maps are shown.

    Attributes:
        kind: ``cam``, ``attention`` or ``localization``; None for the picture alone.
        absolute: on the scale fixed on validation; otherwise stretched per image.
        strength: of the overlay, in [0, 1].
        level: draws the contour at this value of the shown scale; None for none.
        outline: draws the annotated defect.
    """

    kind: str | None = "cam"
    absolute: bool = True
    strength: float = 0.7
    level: float | None = 0.5
    outline: bool = True


@dataclass(frozen=True)
class Panel:
    """A drawing as JPEG, and what to say below it: short sentences."""

    jpeg: bytes
    words: tuple[str, ...]


@one_thread()
def plain_panel(shown: Shown, *, outline: bool) -> Panel:
    """The picture in its own colours."""
    text = "picture not found" if shown.problem else "picture"
    if outline and shown.mask is not None:
        text += " · outline: annotated defect"
    drawn = compose(shown.pixels, mask=shown.mask if outline else None)
    return Panel(encode(with_band(drawn, text, bar=False)), (shown.problem,) if shown.problem else ())


@one_thread()
def map_panel(opened: OpenedRun, row: int, shown: Shown, look: Look) -> Panel:
    """The picture with a run's map over it; a map that the run lacks is said instead."""
    mask = shown.mask if look.outline else None
    if look.kind is None or look.kind not in opened.maps:
        words = () if look.kind is None else (opened.why_no_map(look.kind),)
        text = f"{opened.name} · " + ("no map" if look.kind is None else f"no {KINDS[look.kind]}")
        return Panel(encode(with_band(compose(shown.pixels, mask=mask), text, bar=False)), words)
    values = np.asarray(opened.maps[look.kind][row], dtype=np.float32)
    scale = opened.scales.get(look.kind) if look.absolute else None
    size = opened.run.settings.image_size
    heat = on_scale(enlarged(values, size), scale)
    frame = Frame.of(shown.size, size, opened.run.settings.resize)
    fitted = _fitted(frame.crop(heat), (shown.pixels.shape[0], shown.pixels.shape[1]))
    drawn = compose(shown.pixels, fitted, strength=look.strength, level=look.level, mask=mask)
    nothing = scale is not None and not bool(scale.finds(values))
    text = f"{SHORT[look.kind]} · {'absolute' if scale else 'per-image'} scale" + (
        " · nothing found" if nothing else ""
    )
    words = tuple(_words(opened, row, look, scale, nothing, frame.crop(heat)))
    return Panel(encode(with_band(drawn, text, bar=True)), words)


def enlarged(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """(h, w) -> (H, W), bilinear, as the metrics see it. What is not finite counts as 0."""
    finite = np.nan_to_num(values, posinf=0, neginf=0)
    full = cv2.resize(finite, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(full).astype(np.float32, copy=False)


def on_scale(full: NDArray[np.float32], scale: MapScale | None) -> NDArray[np.float32]:
    """A map in [0, 1]: on an absolute scale, or stretched to its own range where there is none.

    The latter as `metrics.normalize_maps` does it, without torch's threads, which cost more than the sum.
    """
    if scale is not None:
        return scale.apply(full)
    low, high = float(full.min()), float(full.max())
    if high - low <= FLAT * max(abs(low), abs(high)):
        return np.zeros_like(full)
    return (full - low) / (high - low)


def _fitted(heat: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    return enlarged(heat, shape).clip(0, 1)


def _words(opened: OpenedRun, row: int, look: Look, scale: MapScale | None, nothing: bool, heat: NDArray) -> list[str]:
    words = []
    if nothing and scale is not None:
        words.append(f"Nothing found: the map stays below {scale.floor:.2f}, where maps of normal parts end.")
    if look.absolute and scale is None:
        words.append("No absolute scale for this map (it needs a validation split); shown per image.")
    if scale is not None and not scale.separates:
        words.append("This map peaks no higher on defects than on normal parts: it shows only what exceeds the floor.")
    if look.level is not None and not nothing:
        share = (heat >= look.level).mean()
        covered = f"{share:.1%} of the picture is" if share else "Nothing is"
        words.append(f"{covered} at or above {look.level:.2f}" + (" (white line)." if share else "."))
    return words
