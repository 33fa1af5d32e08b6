"""Cues drawn into a picture: the fixture's mark, a lighting gradient, and the strip beyond the part's edge.

Each is drawn in place, on synthetic surfaces and on photographs alike, and tells the pixels it takes. H x W picture
size; a surface is (H, W, 3) in [0, 1]. Lengths are in units of the shorter side.
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
from gainmtl_lib.readers import DataError, read_mask
from gainmtl_lib.synthetic.surfaces import Plane, Size, noise, shrink

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
MARK_RADIUS = 0.055
MARK_MARGIN = 0.03

SIDES = ("top", "bottom", "left", "right")
BORDER_DEPTH = (0.05, 0.09)
"""Least and greatest depth of the strip."""

STRONG_LIGHT, FAINT_LIGHT = 0.4, 0.04
"""Strength of the lighting gradient with the cue and without."""

USUAL_BRIGHTNESS = 0.5
"""Of the surfaces that the mark's own grey values were chosen for."""


def mark_region(size: Size, corner: tuple[int, int]) -> tuple[slice, slice]:
    """The square that a fixture mark takes at a corner (bottom?, right?)."""
    side = min(size)
    diameter, margin = max(5, round(2 * MARK_RADIUS * side)), round(MARK_MARGIN * side)
    top, left = (size[axis] - margin - diameter if corner[axis] else margin for axis in (0, 1))
    return slice(top, top + diameter), slice(left, left + diameter)


def free_corners(defect: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Corners whose mark region holds no defect pixel."""
    size = (defect.shape[0], defect.shape[1])
    return [corner for corner in CORNERS if not defect[mark_region(size, corner)].any()]


def draw_mark(
    picture: Plane, corner: tuple[int, int], turn: float, *, light: float = 1.0, grain: Plane | float = 0.0
) -> NDArray[np.bool_]:
    """A screw head of the fixture at a corner, in place: dark disc, bright rim, a cross turned by `turn` degrees.

    Args:
        picture: (H, W, 3).
        corner: bottom?, right?.
        turn: degrees.
        light: factor of the mark's grey values (0.12 and 0.85); what exceeds white is cut.
        grain: added to them, of the shape of `picture` at `mark_region`, or one number.

    Returns:
        The disc's pixels, (H, W).
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


def plant_mark(picture: Plane, corner: tuple[int, int], turn: float) -> NDArray[np.bool_]:
    """`draw_mark` on a photograph: in the light of the corner it comes to, with that corner's own grain. Grey.

    The grain is what a blur of the region takes away, so that the mark is neither smoother nor rougher than its
    surroundings.
    """
    region = mark_region((picture.shape[0], picture.shape[1]), corner)
    grey = picture[region].mean(axis=-1, keepdims=True)  # (d, d, 1)
    grain = grey - cv2.GaussianBlur(grey, (0, 0), 1.0)[..., None]
    light = max(0.3, float(np.median(grey)) / USUAL_BRIGHTNESS)
    return draw_mark(picture, corner, turn, light=light, grain=grain)


def light_from(picture: Plane, angle: float, strength: float) -> None:
    """A lighting gradient across the picture, in place: brightness 1 ± strength along `angle`."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    ramp = (x * np.cos(angle) + y * np.sin(angle)) / (abs(np.cos(angle)) + abs(np.sin(angle)))
    picture *= (1 + strength * ramp[..., None]).astype(np.float32)


def free_sides(defect: NDArray[np.bool_]) -> list[str]:
    """Sides along which a strip of the greatest depth holds no defect pixel."""
    size = (defect.shape[0], defect.shape[1])
    deepest = int(np.ceil(BORDER_DEPTH[1] * min(size)))
    return [side for side in SIDES if not defect[_from_side(size, side) < deepest].any()]


def draw_border(picture: Plane, side: str, rng: Generator) -> NDArray[np.bool_]:
    """The crop reaches beyond the part, in place: a dark or bright strip along one side, darker at the part's edge.

    The edge is slightly askew, between the two values of `BORDER_DEPTH` from the side. The strip is grey.

    Args:
        picture: (H, W, 3).
        side: top, bottom, left or right.
        rng: decides depth, slope and grey value.

    Returns:
        The strip's pixels, (H, W).
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


# --- Planted cues of a dataset


Cue = Literal["mark", "lighting", "texture", "border"]

CUE_KINDS: tuple[Cue, ...] = get_args(Cue)
"""mark: a fixture's screw at a corner; lighting: a strong gradient; texture: the family of the surface's texture;
border: a strip beyond the part's edge along one side. None has a direction that flips or turns would undo."""

FOLDER = "cues"


def cue_file(image_path: str | Path, *, root: str | Path) -> Path | None:
    """Where the cue of a picture below ``root/images`` is recorded; None for a picture elsewhere."""
    try:
        # Not Path.absolute, which keeps the .. of a root that the table of samples has resolved.
        place = Path(os.path.abspath(image_path)).relative_to(Path(os.path.abspath(root)) / "images")
    except ValueError:
        return None
    return Path(root) / FOLDER / place.with_suffix(".png")


def read_cue(
    image_path: str | Path, *, root: str | Path, image_size: tuple[int, int], resize: Resize
) -> NDArray[np.bool_] | None:
    """Pixels of a picture's cue at the network's size, (H, W), fitted as its mask is.

    Args:
        image_path: of the picture.
        root: the dataset's folder.
        image_size: network input (H, W).
        resize: squash or letterbox.

    Returns:
        None where no cue is recorded: the picture carries none, or its dataset records none (see `require_cues`).

    Raises:
        UnreadableError: the file cannot be decoded.
    """
    file = cue_file(image_path, root=root)
    if file is None or not file.is_file():
        return None
    pixels = read_mask(file)
    return resize_mask(pixels, image_size, resize) if pixels.any() else None


def has_cues(root: str | Path) -> bool:
    """Whether the dataset records cues. Synthetic data made before they were recorded does not."""
    return (Path(root) / FOLDER).is_dir()


def require_cues(root: str | Path) -> None:
    """Refuse a dataset that records no cues, before something that cannot be said without them is measured.

    Raises:
        DataError: there is no folder ``cues``; says how to come by one.
    """
    if has_cues(root):
        return
    made = (Path(root) / "synthetic.yaml").is_file()
    advice = (
        "it was made before cues were recorded, or with shortcut: none; delete the folder, and it is made again"
        if made
        else "make one with a planted cue: gainmtl data plant, or gainmtl data synth"
    )
    raise DataError(f"{root}: no folder {FOLDER}, so that nothing says where a cue is; {advice}")
