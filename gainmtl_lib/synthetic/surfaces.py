"""Textures and defects of the synthetic surfaces, drawn with numpy and OpenCV.

H x W picture size. Lengths are in units of the shorter side, so that every size shows the same scene.
A plane is (H, W), a surface (H, W, 3), roughly in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Plane = NDArray[np.floating]
Size = tuple[int, int]


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
    """Cloth: threads of both directions, over and under in turn, slightly uneven."""
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


TEXTURES: dict[str, Callable[[Generator, Size], Plane]] = {
    "brushed": brushed, "grainy": grainy, "woven": woven, "mottled": mottled, "turned": turned,
}  # fmt: skip

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


DEFECTS: dict[str, Callable[[Generator, Size], tuple[Plane, Plane]]] = {
    "scratch": scratch, "stain": stain, "wrong_object": wrong_object,
}  # fmt: skip


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
