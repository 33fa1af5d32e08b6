"""Textures and defects of the synthetic surfaces, and cues, drawn with numpy and OpenCV.

H x W picture size. Lengths are in units of the shorter side, so that every size shows the same scene.
A plane is (H, W), a surface or picture (H, W, 3), roughly in [0, 1].
"""

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.annotations import read_mask
from gainmtl_lib.labels import Place, Resize, resize_mask
from gainmtl_lib.pictures import Size

Plane = NDArray[np.floating]


def noise(rng: Generator, size: Size) -> Plane:
    """White noise of unit variance."""
    return rng.standard_normal(size, dtype=np.float32)


def smooth_noise(rng: Generator, size: Size, cell: float) -> Plane:
    """Noise of unit variance that varies over about `cell` pixels."""
    grid = max(2, round(size[0] / cell) + 1), max(2, round(size[1] / cell) + 1)
    field = cv2.resize(noise(rng, grid), (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / max(float(field.std()), 1e-6)


def brushed(rng: Generator, size: Size) -> Plane:
    """Metal brushed in one direction, along either axis."""
    height, width = size
    along = rng.random() < 0.5
    length = int((width if along else height) * rng.uniform(0.3, 0.6)) | 1
    kernel = (length, 1) if along else (1, length)
    grain = np.asarray(cv2.blur(noise(rng, size), kernel), dtype=np.float32)
    return 0.055 / max(float(grain.std()), 1e-6) * grain + 0.012 * noise(rng, size)


def grainy(rng: Generator, size: Size) -> Plane:
    """Cast grain: speckle of one or two pixels on a faint mottle."""
    grain = cv2.GaussianBlur(noise(rng, size), (0, 0), rng.uniform(0.7, 1.3))
    return 0.05 * grain / float(grain.std()) + 0.015 * smooth_noise(rng, size, min(size) / 6)


def woven(rng: Generator, size: Size) -> Plane:
    """Cloth: threads over and under in turn, slightly uneven."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    period = min(size) * rng.uniform(0.045, 0.08)
    x += rng.uniform(0, 9) + 0.06 * period * smooth_noise(rng, size, min(size) / 4)
    y += rng.uniform(0, 9) + 0.06 * period * smooth_noise(rng, size, min(size) / 4)
    warp, weft = np.cos(2 * np.pi * x / period), np.cos(2 * np.pi * y / period)
    over = np.cos(np.pi * x / period) * np.cos(np.pi * y / period) > 0
    return np.where(over, 0.075 * warp, 0.075 * weft - 0.03).astype(np.float32) + 0.02 * noise(rng, size)


def mottled(rng: Generator, size: Size) -> Plane:
    """Cast or painted surface: clouds of several sizes."""
    side = min(size)
    clouds = sum(weight * smooth_noise(rng, size, side / parts) for parts, weight in ((4, 1.0), (9, 0.7), (20, 0.5)))
    return 0.025 * np.asarray(clouds, dtype=np.float32) + 0.012 * noise(rng, size)


def turned(rng: Generator, size: Size) -> Plane:
    """Turned on a lathe: fine arcs around a centre outside the picture."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    side, angle = min(size), rng.uniform(0, 2 * np.pi)
    distance = side * rng.uniform(1.0, 2.0)
    radius = np.hypot(y - size[0] / 2 - distance * np.sin(angle), x - size[1] / 2 - distance * np.cos(angle))
    groove = noise(rng, (1, int(radius.max()) + 3))[0]
    groove = np.convolve(groove, [0.25, 0.5, 0.25], mode="same")
    lines = np.interp(radius, np.arange(len(groove)), groove)
    return (0.07 * lines + 0.015 * noise(rng, size)).astype(np.float32)


TEXTURES = {texture.__name__: texture for texture in (brushed, grainy, woven, mottled, turned)}
MACHINED, CAST = ("brushed", "turned"), ("grainy", "mottled")
"""The families of the texture cue, with it and without. Defects are about as hard to find on both."""


def surface(rng: Generator, size: Size, texture: str) -> Plane:
    """A flawless surface (H, W, 3): texture on a base colour, slightly uneven light."""
    base = rng.uniform(0.4, 0.62)
    tint = 1 + rng.uniform(-0.05, 0.05, 3)
    grey = base + TEXTURES[texture](rng, size) + 0.012 * smooth_noise(rng, size, min(size) / 2)
    return (grey[..., None] * tint).astype(np.float32)


def scratch(rng: Generator, size: Size) -> tuple[Plane, Plane]:
    """A curved line, dark or bright, that thins out at its ends. -> opacity (H, W), colour factor (H, W, 3)."""
    side = min(size)
    length, angle = side * rng.uniform(0.18, 0.7), rng.uniform(0, 2 * np.pi)
    middle = np.array([rng.uniform(0.1, 0.9) * size[1], rng.uniform(0.1, 0.9) * size[0]])
    direction = np.array([np.cos(angle), np.sin(angle)])
    bend = np.array([-direction[1], direction[0]]) * length * rng.uniform(-0.25, 0.25)
    t = np.linspace(0, 1, 40)[:, None]
    points = middle + direction * length * (t - 0.5) + bend * 4 * t * (1 - t)
    width = max(1.5, side * rng.uniform(0.012, 0.026)) * np.sqrt(np.sin(np.pi * np.linspace(0.12, 0.88, 40)))
    opacity = _draw(size, lambda canvas, scale: _stroke(canvas, points * scale, width * scale))
    dark = rng.random() < 0.6
    factor = rng.uniform(0.35, 0.6) if dark else rng.uniform(1.4, 1.7)
    return opacity, np.full((*size, 3), factor, dtype=np.float32)


def stain(rng: Generator, size: Size) -> tuple[Plane, Plane]:
    """An irregular patch that the texture shows through. -> opacity (H, W), colour factor (H, W, 3)."""
    side = min(size)
    radius = side * rng.uniform(0.07, 0.19)
    center = rng.uniform(0.1, 0.9) * size[0], rng.uniform(0.1, 0.9) * size[1]
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    stretch, angle = rng.uniform(0.6, 1.0), rng.uniform(0, np.pi)
    across = (x - center[1]) * np.cos(angle) + (y - center[0]) * np.sin(angle)
    down = (y - center[0]) * np.cos(angle) - (x - center[1]) * np.sin(angle)
    distance = np.hypot(across, down / stretch) / radius + 0.16 * smooth_noise(rng, size, max(3.0, radius * 0.7))
    softness = rng.uniform(0.12, 0.35)
    opacity = np.clip((1 - distance) / softness + 0.5, 0, 1).astype(np.float32)
    factor = rng.uniform(0.5, 0.72) if rng.random() < 0.7 else rng.uniform(1.3, 1.5)
    return opacity, np.full((*size, 3), factor * (1 + rng.uniform(-0.08, 0.08, 3)), dtype=np.float32)


def wrong_object(rng: Generator, size: Size) -> tuple[Plane, Plane]:
    """A thing that does not belong there: chip, pellet, washer or fibre. -> opacity (H, W), colour factor."""
    side = min(size)
    radius = side * rng.uniform(0.04, 0.11)
    center = np.array([rng.uniform(0.08, 0.92) * size[1], rng.uniform(0.08, 0.92) * size[0]])
    kind = rng.choice(["chip", "pellet", "washer", "fibre"])
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(5, 8)))
    chip = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.6, 1.2, (len(angles), 1))
    turn, aspect = rng.uniform(0, 180), rng.uniform(0.5, 1.0)
    t = np.linspace(0, 4, 60)
    fibre = np.stack([t - 2, rng.uniform(0.3, 0.9) * np.sin(rng.uniform(1.2, 2.2) * t + turn)], axis=1)
    spin = np.deg2rad(turn)
    fibre = fibre @ np.array([[np.cos(spin), np.sin(spin)], [-np.sin(spin), np.cos(spin)]])

    def shape(canvas: NDArray[np.uint8], scale: float) -> None:
        middle, r = center * scale, radius * scale
        point = (round(middle[0]), round(middle[1]))
        if kind == "chip":
            cv2.fillPoly(canvas, [np.round(middle + chip * r).astype(np.int32)], 255)
        elif kind == "pellet":
            cv2.ellipse(canvas, point, (round(r), round(r * aspect)), turn, 0, 360, 255, -1)
        elif kind == "washer":
            cv2.circle(canvas, point, round(r * 0.8), 255, max(1, round(r * 0.5)))
        else:
            _stroke(canvas, middle + fibre * r, np.full(60, max(1.4 * scale, r * 0.28)))

    opacity = _draw(size, shape)
    shine = np.clip((np.mgrid[: size[0], : size[1]][0] - center[1]) / (2 * radius), -1, 1)
    factor = rng.uniform(0.3, 0.65) if rng.random() < 0.6 else rng.uniform(1.4, 1.7)
    colour = factor * (1 + rng.uniform(-0.25, 0.25, 3)) * (1 - 0.15 * shine[..., None])
    return opacity, colour.astype(np.float32)


DEFECTS = {defect.__name__: defect for defect in (scratch, stain, wrong_object)}


def _draw(size: Size, paint: Callable[[NDArray[np.uint8], float], None]) -> Plane:
    """Opacity of a shape painted four times as large, so that its edge is smooth."""
    scale = 4
    canvas = np.zeros((size[0] * scale, size[1] * scale), dtype=np.uint8)
    paint(canvas, scale)
    return shrink(canvas, size)


def shrink(canvas: NDArray[np.uint8], size: Size) -> Plane:
    """A canvas of 0 to 255 by area to opacities in [0, 1], (H, W)."""
    shrunk = cv2.resize(canvas, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return shrunk.astype(np.float32) / 255


def _stroke(canvas: NDArray[np.uint8], points: NDArray, widths: NDArray) -> None:
    corners = np.round(points).astype(np.int32)
    for start, end, width in zip(corners[:-1], corners[1:], widths[:-1], strict=True):
        cv2.line(canvas, start.tolist(), end.tolist(), 255, max(1, round(float(width))))


# --- Cues, each drawn in place, on surfaces and photographs alike; what draws one returns the pixels it takes

# mark: a fixture's screw at a corner; lighting: a strong gradient; texture: the family of the surface's texture;
# border: a strip beyond the part's edge along one side. None has a direction that flips or turns would undo.
CORNERS = ("00", "01", "10", "11")  # bottom?, right?
MARK_RADIUS, MARK_MARGIN = 0.055, 0.03
STRONG_LIGHT, FAINT_LIGHT = 0.4, 0.04  # strength of the lighting gradient with the cue and without
SIDES = ("top", "bottom", "left", "right")
BORDER_DEPTH = (0.05, 0.09)  # least and greatest depth of the strip


def mark_region(size: tuple[int, ...], corner: str) -> Place:
    """The square that a fixture mark takes at a corner."""
    side = min(size[:2])
    diameter, margin = max(5, round(2 * MARK_RADIUS * side)), round(MARK_MARGIN * side)
    top, left = (size[axis] - margin - diameter if corner[axis] == "1" else margin for axis in (0, 1))
    return slice(top, top + diameter), slice(left, left + diameter)


def free_corners(defect: NDArray[np.bool_]) -> list[str]:
    """Corners whose mark region holds no defect pixel."""
    return [corner for corner in CORNERS if not defect[mark_region(defect.shape, corner)].any()]


def draw_mark(
    picture: Plane, corner: str, turn: float, *, light: float = 1.0, grain: Plane | float = 0.0
) -> NDArray[np.bool_]:
    """A screw head of the fixture at a corner: dark disc, bright rim, a cross turned by `turn` degrees.

    Its grey values (0.12 and 0.85) are multiplied by `light`, cut at white, and `grain` is added.
    """
    region, scale = mark_region(picture.shape, corner), 8
    diameter = region[0].stop - region[0].start
    center, radius = (diameter * scale // 2,) * 2, diameter * scale // 2 - scale // 2
    disc, cross = (np.zeros((diameter * scale,) * 2, np.uint8) for _ in range(2))
    cv2.circle(disc, center, radius, 255, -1)
    for angle in np.deg2rad([turn, turn + 90]):
        reach = 0.62 * radius * np.array([np.cos(angle), np.sin(angle)])
        ends = [tuple(np.round(np.array(center) + side * reach).astype(int).tolist()) for side in (-1, 1)]
        cv2.line(cross, ends[0], ends[1], 255, round(0.28 * radius))
    cv2.circle(cross, center, round(0.9 * radius), 255, round(0.2 * radius))
    alpha, bright = (shrink(canvas, (diameter, diameter))[..., None] for canvas in (disc, cross))
    metal = np.minimum((0.12 + 0.73 * bright) * light, 1) + grain
    picture[region] = picture[region] * (1 - alpha) + alpha * metal
    pixels = np.zeros(picture.shape[:2], dtype=np.bool_)
    pixels[region] = alpha[..., 0] > 0
    return pixels


def plant_mark(picture: Plane, corner: str, rng: Generator) -> NDArray[np.bool_]:
    """`draw_mark` on a photograph, grey, in the light of its corner, neither smoother nor rougher than that."""
    region = mark_region(picture.shape, corner)
    grey = picture[region].mean(axis=-1, keepdims=True)  # (d, d, 1)
    grain = grey - cv2.GaussianBlur(grey, (0, 0), 1.0)[..., None]
    light = max(0.3, float(np.median(grey)) / 0.5)  # its grey values were chosen for surfaces of 0.5
    return draw_mark(picture, corner, rng.uniform(0, 90), light=light, grain=grain)


def light_from(picture: Plane, angle: float, strength: float = STRONG_LIGHT) -> NDArray[np.bool_]:
    """A lighting gradient across the whole picture: brightness 1 ± strength along `angle`."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    ramp = (x * np.cos(angle) + y * np.sin(angle)) / (abs(np.cos(angle)) + abs(np.sin(angle)))
    picture *= (1 + strength * ramp[..., None]).astype(np.float32)
    return np.ones((height, width), dtype=np.bool_)


def free_sides(defect: NDArray[np.bool_]) -> list[str]:
    """Sides along which a strip of the greatest depth holds no defect pixel."""
    deepest = int(np.ceil(BORDER_DEPTH[1] * min(defect.shape)))
    return [side for side in SIDES if not defect[_from_side(defect.shape, side) < deepest].any()]


def draw_border(picture: Plane, side: str, rng: Generator) -> NDArray[np.bool_]:
    """The crop reaches beyond the part: a grey strip along one side, dark or bright, darker at the part's edge.

    The edge is slightly askew, between the two values of `BORDER_DEPTH` from the side.
    """
    size, lying = (picture.shape[0], picture.shape[1]), side in ("top", "bottom")
    shorter = min(size)
    least, greatest = (share * shorter for share in BORDER_DEPTH)
    ends = rng.uniform(least, greatest) + np.array([-1, 1]) * rng.uniform(-0.01, 0.01) * shorter
    depth = np.interp(np.linspace(0, 1, size[1] if lying else size[0]), (0, 1), np.clip(ends, least, greatest))
    depth = depth[None, :] if lying else depth[:, None]
    inward = depth - (_from_side(size, side) + 0.5)  # pixels from the part's edge, above 0 beyond the part
    alpha = np.clip(inward + 0.5, 0, 1)[..., None].astype(np.float32)
    level = rng.uniform(0.04, 0.14) if rng.random() < 0.5 else rng.uniform(0.84, 0.95)
    shadow = 1 - 0.4 * np.exp(-np.maximum(inward, 0) / (0.012 * shorter))
    beyond = (level * shadow + 0.008 * noise(rng, size))[..., None].astype(np.float32)
    picture[...] = picture * (1 - alpha) + alpha * beyond
    return alpha[..., 0] > 0


def _from_side(size: tuple[int, ...], side: str) -> NDArray[np.int64]:
    """Whole pixels between each pixel and a side, (H, W); 0 along it."""
    rows, columns = np.indices(size)
    return {"top": rows, "bottom": size[0] - 1 - rows, "left": columns, "right": size[1] - 1 - columns}[side]


CUES = "cues"
"""Folder in which a dataset records them."""


def read_cue(
    image_path: str | Path, *, root: str | Path, image_size: tuple[int, int], resize: Resize
) -> NDArray[np.bool_] | None:
    """Pixels of a picture's cue at the network's size, (H, W), fitted as its mask is; None where none is recorded.

    The cue lies at the same place below ``root/cues`` as its picture below ``root/images``.
    """
    # Not Path.absolute, which keeps the .. of a root that the table of samples has resolved.
    image, images = Path(os.path.abspath(image_path)), Path(os.path.abspath(root)) / "images"
    if not image.is_relative_to(images):
        return None
    file = Path(root) / CUES / image.relative_to(images).with_suffix(".png")
    if not file.is_file() or not (pixels := read_mask(file)).any():
        return None
    return resize_mask(pixels, image_size, resize)
