"""Healing: a defect replaced by what its surroundings let one expect.

H x W picture; h x w the part of it around one piece of the region, which the methods work on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.data.edits.blending import GAIN, blend, clone, outer_weights
from gainmtl_lib.data.edits.edit import (
    Edit,
    EditError,
    Mask,
    Picture,
    box_of,
    checked_mask,
    checked_method,
    checked_picture,
    grown,
    rim,
    uncovered,
    widened,
)
from gainmtl_lib.data.edits.placing import pieces, turned
from gainmtl_lib.data.edits.sources import REACH, near, patchwork
from gainmtl_lib.data.edits.texture import aligning_turn, direction, grain

CONTEXT = 12
"""Pixels around a piece that inpainting and cloning look at."""
PARTS = 4
"""A source is at most the picture's shorter side / 4 long: larger ones seldom fit on all sides."""
COARSE = (2.0, 10.0)
"""Least and largest standard deviation in pixels of the Gaussian that tells the grain from the shading."""
INPAINT_RADIUS = 3


@dataclass(frozen=True)
class Hole:
    """One piece of the region to heal, in the part of its picture that it is healed from.

    Attributes:
        image: (h, w, 3).
        piece: pixels to replace, (h, w).
        taken: pixels that must not be learnt from, (h, w): every piece and every defect.
        normal: the same part of a normal picture, or None.
        longest: side in pixels of the largest patch.
    """

    image: Picture
    piece: Mask
    taken: Mask
    normal: Picture | None
    longest: int

    @property
    def window(self) -> tuple[slice, slice]:
        """The piece's box and `CONTEXT` pixels around it."""
        return widened(box_of(self.piece), CONTEXT, self.piece.shape)

    def from_same(self, rng: Generator) -> NDArray[np.float32]:
        """The window filled from other places of the same picture."""
        return self._filled(self.image, self.taken, 1.0, rng)

    def from_normal(self, rng: Generator) -> NDArray[np.float32]:
        """The window filled from the normal picture, its texture turned and strengthened to match."""
        if self.normal is None:
            raise EditError("no normal picture", "this method takes its source from one; pass normal=…")
        here, known = self.image[self.window], ~self.taken[self.window]
        ratio = grain(here, known) / max(grain(self.normal), 1.0)
        normal = turned(self.normal, aligning_turn(direction(here, known), direction(self.normal)))
        nothing = np.zeros(normal.shape[:2], dtype=np.bool_)
        return self._filled(normal, nothing, float(np.clip(ratio, 1 / GAIN, GAIN)), rng)

    def inpainted(self, flag: int) -> Picture:
        """The window with all its unknown pixels inpainted from the known ones."""
        unknown = self.taken[self.window].astype(np.uint8)
        return cast(Picture, cv2.inpaint(self.image[self.window], unknown, INPAINT_RADIUS, flag))

    def _filled(self, source: Picture, taken: Mask, contrast: float, rng: Generator) -> NDArray[np.float32]:
        result = patchwork(
            self.image, self.piece, self.taken, source, taken, longest=self.longest, rng=rng, contrast=contrast
        )
        return result[self.window]


Fill = Callable[[Hole, Generator], NDArray]


def heal(image: Picture, mask: Mask, *, method: str, rng: Generator, normal: Picture | None = None) -> Edit:
    """Take a picture's defects away: label 0, empty mask.

    Args:
        image: RGB uint8 (H, W, 3); stays as it is.
        mask: its defects, bool (H, W). With them a rim of 1 to 3 pixels is replaced, softly.
        method: one of `HEAL_METHODS`.
        rng: decides among about equally good sources.
        normal: a picture without defects, for the methods that take from one (`NEEDS_NORMAL`); any size.

    Raises:
        EditError: unusable picture or mask, a mask above half of the picture, no source.
    """
    checked_mask(mask, checked_picture(image))
    region = grown(mask, rim(mask.shape))
    healed = filled(image, region, taken=region, method=method, rng=rng, normal=normal)
    return Edit(healed, np.zeros_like(mask), 0, "heal", method, region)


def filled(
    image: Picture, region: Mask, *, taken: Mask, method: str, rng: Generator, normal: Picture | None = None
) -> Picture:
    """The picture with a region replaced, piece by piece, each from sources of its own, (H, W, 3).

    Args:
        image: (H, W, 3).
        region: pixels to replace, (H, W).
        taken: pixels that must not be learnt from, (H, W): the region and every defect.
        method, rng, normal: as for `heal`.

    Raises:
        EditError: unknown method, a region above half of the picture, no source.
    """
    fill = HEAL_METHODS[checked_method(method, HEAL_METHODS)]
    if normal is not None:
        checked_picture(normal, "normal")
    uncovered(region, "the region to heal")
    result, longest = image.copy(), min(image.shape[:2]) // PARTS
    for piece in pieces(region):
        around = widened(box_of(piece), REACH + CONTEXT, image.shape)
        part = None if normal is None else normal[near(around, normal.shape)]
        hole = Hole(image[around], piece[around], taken[around], part, longest)
        inside, before = hole.piece[hole.window], hole.image[hole.window]
        healed = blend(fill(hole, rng), before, outer_weights(inside, rim(image.shape)))
        result[around][hole.window][inside] = healed[inside]
    return result


def telea(hole: Hole, rng: Generator) -> NDArray:
    """Inpainting by fast marching (Telea 2004), with the grain of the surroundings."""
    return _with_grain(hole, hole.inpainted(cv2.INPAINT_TELEA), hole.from_same(rng))


def navier_stokes(hole: Hole, rng: Generator) -> NDArray:
    """Inpainting by continuing lines of equal brightness (Bertalmio et al. 2001), with the surroundings' grain."""
    return _with_grain(hole, hole.inpainted(cv2.INPAINT_NS), hole.from_same(rng))


def patch_same(hole: Hole, rng: Generator) -> NDArray:
    """Patches from other places of the same picture."""
    return hole.from_same(rng)


def patch_normal(hole: Hole, rng: Generator) -> NDArray:
    """Patches from a normal picture."""
    return hole.from_normal(rng)


def clone_same(hole: Hole, rng: Generator) -> NDArray:
    """The gradients of patches from other places of the same picture."""
    return _cloned(hole, hole.from_same(rng))


def clone_normal(hole: Hole, rng: Generator) -> NDArray:
    """The gradients of patches from a normal picture."""
    return _cloned(hole, hole.from_normal(rng))


HEAL_METHODS: dict[str, Fill] = {
    "telea": telea,
    "navier_stokes": navier_stokes,
    "patch_same": patch_same,
    "patch_normal": patch_normal,
    "clone_same": clone_same,
    "clone_normal": clone_normal,
}
NEEDS_NORMAL = ("patch_normal", "clone_normal")
"""The methods that take from a normal picture."""


def _cloned(hole: Hole, patches: NDArray) -> NDArray:
    # The boundary must not be the defect's colour: what the clone meets is inpainted first.
    return clone(patches, hole.inpainted(cv2.INPAINT_TELEA), hole.piece[hole.window])


def _with_grain(hole: Hole, inpainted: Picture, patches: NDArray) -> NDArray:
    """Shading from inpainting, grain from patches: inpainting alone leaves a smooth blob on a grainy surface."""
    depth = cv2.distanceTransform(hole.piece[hole.window].astype(np.uint8), cv2.DIST_L2, 3).max()
    width = float(np.clip(depth / 2, *COARSE))
    return patches + cv2.GaussianBlur(inpainted - patches.astype(np.float32), (0, 0), width)
