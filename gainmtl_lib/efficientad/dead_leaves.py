"""Pictures that are drawn, for want of natural images: dead leaves with textures.

Leaves of all sizes that lie over one another share edges, corners and scales with natural images, and features
learned from them come nearest to those from photographs among simple drawings (Baradad et al. 2021,
arXiv 2106.05963). They show no things, so that they are a stand-in and no replacement.

H x W picture, L leaves.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.data.surfaces import TEXTURES, Plane, Size, smooth_noise

LEAVES = (60, 300)
RADIUS = (0.04, 0.6)
"""Of a leaf, shares of the shorter side; drawn with density 1 / radius³, as natural images look alike at all scales."""
ROUND = 24
"""Corners of an ellipse; other leaves have three to five."""
SHEETS = 3
"""Textures in a picture, one of them clouds; leaves share them."""


def draw_leaves(rng: Generator, size: Size) -> NDArray[np.uint8]:
    """One picture, RGB (H, W, 3)."""
    leaves = int(rng.integers(*LEAVES))
    owner = _lie(rng, size, leaves)  # (H, W)
    colour = rng.uniform(0, 1, (leaves + 1, 3)).astype(np.float32)
    contrast = rng.uniform(0, 0.3, leaves + 1).astype(np.float32)
    sheets = np.stack([_clouds(rng, size), *(_texture(rng, size) for _ in range(SHEETS - 1))])
    sheet = rng.integers(0, SHEETS, leaves + 1)[owner]
    grain = np.take_along_axis(sheets, sheet[None], axis=0)[0] * contrast[owner]
    picture = cv2.GaussianBlur(colour[owner] + grain[..., None], (0, 0), rng.uniform(0.3, 1.2))
    return np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)


def _lie(rng: Generator, size: Size, leaves: int) -> NDArray[np.int32]:
    """Which leaf is seen at each pixel, later ones on top; 0 is the ground."""
    owner = np.zeros(size, dtype=np.int32)
    low, high = (share * min(size) for share in RADIUS)
    radius = (low**-2 - rng.random(leaves) * (low**-2 - high**-2)) ** -0.5
    flat, turn = rng.uniform(0.3, 1, leaves), rng.uniform(0, 2 * np.pi, leaves)
    middle = rng.random((leaves, 2)) * (size[1], size[0])
    corners = rng.choice([3, 4, 5, ROUND], leaves)
    uneven = rng.uniform(0, 0.7, (leaves, ROUND)) * (corners < ROUND)[:, None]
    for leaf in range(leaves):
        number = corners[leaf]
        angle = 2 * np.pi * (np.arange(number) + uneven[leaf, :number]) / number
        outline = radius[leaf] * np.exp(1j * turn[leaf]) * (np.cos(angle) + 1j * flat[leaf] * np.sin(angle))
        points = np.stack([outline.real, outline.imag], axis=1) + middle[leaf]
        cv2.fillPoly(owner, [np.rint(points).astype(np.int32)], leaf + 1)
    return owner


def _clouds(rng: Generator, size: Size) -> Plane:
    """Noise of all scales, each as strong as its cells are wide, of unit variance."""
    cells = [cell for cell in (2, 4, 8, 16, 32, 64) if cell < min(size)]
    return _unit(np.sum([cell * smooth_noise(rng, size, cell) for cell in cells], axis=0))


def _texture(rng: Generator, size: Size) -> Plane:
    """One of the synthetic surfaces, of unit variance: far stronger than there."""
    return _unit(TEXTURES[str(rng.choice(list(TEXTURES)))](rng, size))


def _unit(plane: Plane) -> Plane:
    return ((plane - plane.mean()) / max(float(plane.std()), 1e-6)).astype(np.float32)
