"""What is shown and said of one picture: the picture, a run's map over it, and the verdict without the defect.

Sizes: H x W network input, h x w map cells.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.browser.library import GAIN_MTL, MAPS, OpenedRun
from gainmtl_lib.explain import CLASS_NAMES, DefectExplainer, answer
from gainmtl_lib.figures import (
    encode,
    enlarged_share,
    fitting,
    ground,
    overlay,
    resized,
    resized_mask,
    with_band,
)
from gainmtl_lib.labels import inner_size, inside
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.readers import DataError, read_image, read_mask
from gainmtl_lib.runs import Run

# --- Pictures decoded once and kept for a while

THUMBNAIL = 84


class Shown(NamedTuple):
    """A picture ready to be drawn on, a grey field where the file is not there."""

    pixels: NDArray[np.uint8]  # RGB, (H, W, 3)
    size: tuple[int, int]  # (h, w) on disk
    mask: NDArray[np.bool_] | None  # (H, W)
    problem: str  # what is missing, in words


class PictureFiles:
    """Decoded pictures and thumbnails, the most recently used kept; safe to use from several threads."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)  # beside a training its threads wait for each other, and a picture takes 20 times as long
        self.load, self.thumbnail = lru_cache(32)(load_shown), lru_cache(4096)(thumbnail)
        self.readers = ThreadPoolExecutor(2, thread_name_prefix="pictures")  # decoding releases the interpreter lock
        self._ahead: list[Future[bytes]] = []

    def thumbnails(self, paths: list[Path | None]) -> list[bytes]:
        """Small JPEGs in the order of the paths."""
        self.prefetch_thumbnails([])  # what may be wanted later stands back
        return list(self.readers.map(self.thumbnail, paths))

    def prefetch_thumbnails(self, paths: list[Path | None]) -> None:
        """Decode those of a page that is likely to be next; what an earlier call left to do is given up."""
        for waiting in self._ahead:
            waiting.cancel()
        self._ahead = [self.readers.submit(self.thumbnail, path) for path in paths]


def load_shown(image: Path | None, mask: Path | None, side: int, size: tuple[int, int]) -> Shown:
    """Decode a picture and its mask, as far as they are there, the longer side brought to `side` pixels.

    A grey field of `size` (h, w) stands for a picture that is not there.
    """
    pixels, region, problems = ground(size), None, []
    try:
        pixels = pixels if image is None else read_image(image)
    except DataError as error:
        problems.append(str(error).split(";")[0])
    try:
        region = None if mask is None else read_mask(mask)
    except DataError as error:
        problems.append(str(error).split(";")[0])
    h, w = pixels.shape[:2]
    shape = fitting((h, w), side)
    return Shown(resized(pixels, shape), (h, w), resized_mask(region, shape), "; ".join(problems))


def thumbnail(path: Path | None) -> bytes:
    """A small JPEG of the whole picture; grey where the file is not there."""
    pixels = None
    try:
        # A quarter of a JPEG's size is decoded several times faster.
        if path is not None and path.suffix.lower() in {".jpg", ".jpeg"}:
            pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_REDUCED_COLOR_4)
        if pixels is not None and max(pixels.shape) >= THUMBNAIL:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        elif path is not None:
            pixels = read_image(path)
    except (DataError, OSError, cv2.error):  # an empty file is an error of OpenCV's own
        pixels = None
    pixels = ground((THUMBNAIL, THUMBNAIL)) if pixels is None else pixels
    return encode(resized(pixels, fitting((pixels.shape[0], pixels.shape[1]), THUMBNAIL)), quality=80)


# --- Panels


class Look(NamedTuple):
    """How maps are shown."""

    kind: str = GAIN_MTL.main  # one of `MAPS`; a run shows its own main map in place of the other system's; "" for none
    absolute: bool = True  # on the scale fixed on validation; otherwise stretched per image
    strength: float = 0.7  # of the overlay
    level: float | None = 0.5  # of the shown scale, where a contour is drawn
    outline: bool = True  # of the annotated defect


Panel = tuple[bytes, list[str]]
"""A drawing as JPEG, and what to say below it: short sentences."""


def plain_panel(shown: Shown, *, outline: bool) -> Panel:
    """The picture in its own colours."""
    text = "picture not found" if shown.problem else "picture"
    if outline and shown.mask is not None:
        text += " · outline: annotated defect"
    drawn = overlay(shown.pixels, mask=shown.mask if outline else None)
    return encode(with_band(drawn, text, bar=False)), [shown.problem] if shown.problem else []


def map_panel(opened: OpenedRun, row: int, shown: Shown, look: Look) -> Panel:
    """The picture with a run's map over it; a map that the run lacks is said instead."""
    mask = shown.mask if look.outline else None
    kind = opened.own_kind(look.kind)
    if kind not in opened.maps:
        drawn = with_band(overlay(shown.pixels, mask=mask), f"{opened.name} · no map", bar=False)
        return encode(drawn), [opened.why_no_map(kind)] if kind else []
    values = np.asarray(opened.maps[kind][row], dtype=np.float32)  # (h, w)
    scale = opened.scales.get(kind) if look.absolute else None
    size = opened.run.settings.image_size
    place = inside(inner_size(shown.size, size, opened.run.settings.resize), size)
    heat = enlarged_share(values, scale, size)[place]
    drawn = overlay(shown.pixels, heat, strength=look.strength, level=look.level, mask=mask)
    nothing = scale is not None and not bool(scale.finds(values))
    text = f"{MAPS[kind].short} · {'absolute' if scale else 'per-image'} scale" + " · nothing found" * nothing
    return encode(with_band(drawn, text, bar=True)), _words(look, scale, heat, nothing)


def _words(look: Look, scale: MapScale | None, heat: NDArray, nothing: bool) -> list[str]:
    words = []
    if scale is None and look.absolute:
        words.append("No absolute scale for this map (it needs a validation split); shown per image.")
    if scale is not None and nothing:
        words.append(f"Nothing found: the map stays below {scale.floor:z.2f}, where maps of normal parts end.")
    if scale is not None and not scale.separates:
        words.append("This map peaks no higher on defects than on normal parts: it shows only what exceeds the floor.")
    if look.level is not None and not nothing:
        share, above = (heat >= look.level).mean(), f"at or above {look.level:.2f}"
        covered = "Less than 0.1%" if share < 0.001 else f"{share:.1%}"
        words.append(f"{covered} of the picture is {above} (white line)." if share else f"Nothing is {above}.")
    return words


# --- Would the verdict stand without the defect?


def ask(opened: OpenedRun, row: int) -> list[str]:
    """The answer in sentences, from the run's model where it is at hand, else from the stored evaluation."""
    if not isinstance(opened.run, Run):
        return [f"{opened.name}: this system has no counterfactual path; S5 to S7 of GAIN-MTL have one."]
    settings = opened.run.settings
    if settings.strategy < "S5":
        return [f"{opened.name}: strategy {settings.strategy} has no counterfactual path; S5 to S7 have one."]
    if not settings.use_counterfactual:
        return [f"{opened.name}: trained without a counterfactual path (use_counterfactual: false)."]
    try:
        return _ask_model(opened, opened.run, row)
    except (DataError, ModelError, OSError, RuntimeError, SafetensorError) as error:
        return [*_read_stored(opened, row), f"Not asked of the model: {error}."]


def _ask_model(opened: OpenedRun, run: Run, row: int) -> list[str]:
    if not (run.folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{run.folder} holds no model.safetensors")
    image, mask = opened.files(row)
    if image is None:
        raise FileNotFoundError(f"the folder {opened.root} of the pictures is missing")
    explained = DefectExplainer.from_run(run).explain(image, mask)
    asked = explained["counterfactual"]
    if asked is not None:
        return [f"{opened.name}: {asked['message']}", "Computed now, by the run's model."]
    said = explained.get("counterfactual_missing") or "the verdict is normal, so there is no defect to take away"
    return [f"{opened.name}: {said}."]


def _read_stored(opened: OpenedRun, row: int) -> list[str]:
    record = opened.table.iloc[row]
    without, control = record.get("cf_probability"), record.get("cf_control_probability")
    if pd.isna(without):
        return [f"{opened.name}: the evaluation stored no answer for this picture (it has no annotated defect)."]
    moved = None if pd.isna(control) else float(control)
    stored = answer(float(record["probability"]), float(without), moved, opened.threshold, "annotation", CLASS_NAMES)
    return [f"{opened.name}: {stored['message']}", "From the stored evaluation."]
