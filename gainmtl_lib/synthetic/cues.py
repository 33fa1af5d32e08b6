"""Cues drawn into a picture: the fixture's mark, a lighting gradient, and the strip beyond the part's edge.

Each is drawn in place, on synthetic surfaces and on photographs alike, and returns the pixels it takes. H x W picture
size; a picture is (H, W, 3) in [0, 1]. Lengths are in units of the shorter side.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.labels import Resize, resize_mask
from gainmtl_lib.readers import read_mask
from gainmtl_lib.synthetic.surfaces import Plane, Size, noise, shrink

Cue = Literal["mark", "lighting", "texture", "border"]

CUE_KINDS: tuple[Cue, ...] = get_args(Cue)
"""mark: a fixture's screw at a corner; lighting: a strong gradient; texture: the family of the surface's texture;
border: a strip beyond the part's edge along one side. None has a direction that flips or turns would undo."""

CORNERS = ("00", "01", "10", "11")
"""Bottom?, right?"""
MARK_RADIUS = 0.055
MARK_MARGIN = 0.03
USUAL_BRIGHTNESS = 0.5
"""Of the surfaces that the mark's own grey values were chosen for."""
STRONG_LIGHT, FAINT_LIGHT = 0.4, 0.04
"""Strength of the lighting gradient with the cue and without."""
SIDES = ("top", "bottom", "left", "right")
BORDER_DEPTH = (0.05, 0.09)
"""Least and greatest depth of the strip."""


def mark_region(size: Size, corner: str) -> tuple[slice, slice]:
    """The square that a fixture mark takes at a corner."""
    side = min(size)
    diameter, margin = max(5, round(2 * MARK_RADIUS * side)), round(MARK_MARGIN * side)
    top, left = (size[axis] - margin - diameter if corner[axis] == "1" else margin for axis in (0, 1))
    return slice(top, top + diameter), slice(left, left + diameter)


def free_corners(defect: NDArray[np.bool_]) -> list[str]:
    """Corners whose mark region holds no defect pixel."""
    size = (defect.shape[0], defect.shape[1])
    return [corner for corner in CORNERS if not defect[mark_region(size, corner)].any()]


def draw_mark(
    picture: Plane, corner: str, turn: float, *, light: float = 1.0, grain: Plane | float = 0.0
) -> NDArray[np.bool_]:
    """A screw head of the fixture at a corner: dark disc, bright rim, a cross turned by `turn` degrees.

    Its grey values (0.12 and 0.85) are multiplied by `light`, cut at white, and `grain` is added.
    """
    region = mark_region((picture.shape[0], picture.shape[1]), corner)
    diameter = region[0].stop - region[0].start
    scale = 8
    center, radius = (diameter * scale // 2,) * 2, diameter * scale // 2 - scale // 2
    disc, cross = (np.zeros((diameter * scale,) * 2, np.uint8) for _ in range(2))
    cv2.circle(disc, center, radius, 255, -1)
    for angle in np.deg2rad([turn, turn + 90]):
        reach = 0.62 * radius * np.array([np.cos(angle), np.sin(angle)])
        ends = [tuple(np.round(np.array(center) + side * reach).astype(int).tolist()) for side in (-1, 1)]
        cv2.line(cross, ends[0], ends[1], 255, round(0.28 * radius))
    cv2.circle(cross, center, round(0.9 * radius), 255, round(0.2 * radius))
    alpha = shrink(disc, (diameter, diameter))[..., None]
    bright = shrink(cross, (diameter, diameter))[..., None]
    metal = np.minimum((0.12 + 0.73 * bright) * light, 1) + grain
    picture[region] = picture[region] * (1 - alpha) + alpha * metal
    pixels = np.zeros(picture.shape[:2], dtype=np.bool_)
    pixels[region] = alpha[..., 0] > 0
    return pixels


def plant_mark(picture: Plane, corner: str, turn: float) -> NDArray[np.bool_]:
    """`draw_mark` on a photograph, grey, in the light of its corner, neither smoother nor rougher than that."""
    region = mark_region((picture.shape[0], picture.shape[1]), corner)
    grey = picture[region].mean(axis=-1, keepdims=True)  # (d, d, 1)
    grain = grey - cv2.GaussianBlur(grey, (0, 0), 1.0)[..., None]
    light = max(0.3, float(np.median(grey)) / USUAL_BRIGHTNESS)
    return draw_mark(picture, corner, turn, light=light, grain=grain)


def light_from(picture: Plane, angle: float, strength: float = STRONG_LIGHT) -> NDArray[np.bool_]:
    """A lighting gradient across the whole picture: brightness 1 ± strength along `angle`."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    ramp = (x * np.cos(angle) + y * np.sin(angle)) / (abs(np.cos(angle)) + abs(np.sin(angle)))
    picture *= (1 + strength * ramp[..., None]).astype(np.float32)
    return np.ones((height, width), dtype=np.bool_)


def free_sides(defect: NDArray[np.bool_]) -> list[str]:
    """Sides along which a strip of the greatest depth holds no defect pixel."""
    size = (defect.shape[0], defect.shape[1])
    deepest = int(np.ceil(BORDER_DEPTH[1] * min(size)))
    return [side for side in SIDES if not defect[_from_side(size, side) < deepest].any()]


def draw_border(picture: Plane, side: str, rng: Generator) -> NDArray[np.bool_]:
    """The crop reaches beyond the part: a grey strip along one side, dark or bright, darker at the part's edge.

    The edge is slightly askew, between the two values of `BORDER_DEPTH` from the side.
    """
    size = (picture.shape[0], picture.shape[1])
    shorter = min(size)
    least, greatest = (share * shorter for share in BORDER_DEPTH)
    ends = rng.uniform(least, greatest) + np.array([-1, 1]) * rng.uniform(-0.01, 0.01) * shorter
    along = np.linspace(0, 1, size[1] if side in ("top", "bottom") else size[0])
    depth = np.interp(along, (0, 1), np.clip(ends, least, greatest))
    depth = depth[None, :] if side in ("top", "bottom") else depth[:, None]
    inward = depth - (_from_side(size, side) + 0.5)  # pixels from the part's edge, above 0 beyond the part
    alpha = np.clip(inward + 0.5, 0, 1)[..., None].astype(np.float32)
    level = rng.uniform(0.04, 0.14) if rng.random() < 0.5 else rng.uniform(0.84, 0.95)
    shadow = 1 - 0.4 * np.exp(-np.maximum(inward, 0) / (0.012 * shorter))
    beyond = (level * shadow + 0.008 * noise(rng, size))[..., None].astype(np.float32)
    picture[...] = picture * (1 - alpha) + alpha * beyond
    return alpha[..., 0] > 0


def _from_side(size: Size, side: str) -> NDArray[np.int64]:
    """Whole pixels between each pixel and a side, (H, W); 0 along it."""
    rows, columns = np.indices(size)
    return {"top": rows, "bottom": size[0] - 1 - rows, "left": columns, "right": size[1] - 1 - columns}[side]


# --- Where a dataset records its cues

FOLDER = "cues"


def read_cue(
    image_path: str | Path, *, root: str | Path, image_size: tuple[int, int], resize: Resize
) -> NDArray[np.bool_] | None:
    """Pixels of a picture's cue at the network's size, (H, W), fitted as its mask is; None where none is recorded.

    Args:
        image_path: of the picture; its cue lies at the same place below ``root/cues`` as it below ``root/images``.
        root: the dataset's folder.
        image_size: network input (H, W).
        resize: squash or letterbox.

    Raises:
        UnreadableError: the file cannot be decoded.
    """
    # Not Path.absolute, which keeps the .. of a root that the table of samples has resolved.
    image, images = Path(os.path.abspath(image_path)), Path(os.path.abspath(root)) / "images"
    if not image.is_relative_to(images):
        return None
    file = Path(root) / FOLDER / image.relative_to(images).with_suffix(".png")
    if not file.is_file():
        return None
    pixels = read_mask(file)
    return resize_mask(pixels, image_size, resize) if pixels.any() else None
