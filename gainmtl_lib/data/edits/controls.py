"""The same operations with the label unchanged: what they leave behind must not tell the class."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from gainmtl_lib.data.edits.blending import RING
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
)
from gainmtl_lib.data.edits.healing import HEAL_METHODS, filled
from gainmtl_lib.data.edits.pasting import PASTE_METHODS, cut, stands_out, transplanted
from gainmtl_lib.data.edits.placing import drawn_turn, moved_mask, place, turned


def heal_spot(image: Picture, shape: Mask, *, method: str, rng: Generator, normal: Picture | None = None) -> Edit:
    """Heal a spot of a normal picture, shaped like a defect: label 0.

    Args:
        image: a normal picture, RGB uint8 (H, W, 3).
        shape: mask of some defect, any size; turned, mirrored and moved at random.
        method, rng, normal: as for `heal`.

    Raises:
        EditError: as for `heal`, or a shape larger than the picture.
    """
    checked_picture(image)
    checked_method(method, HEAL_METHODS)
    spot = _spot(image, shape, rng)
    region = grown(spot, rim(spot.shape))
    healed = filled(image, region, taken=region, method=method, rng=rng, normal=normal)
    return Edit(healed, np.zeros_like(spot), 0, "heal_spot", method, region)


def heal_beside(image: Picture, mask: Mask, *, method: str, rng: Generator, normal: Picture | None = None) -> Edit:
    """Heal a spot shaped like the picture's own defect, beside it: label 1, mask and defect as before.

    Raises:
        EditError: as for `heal`, or no free place beside the defect.
    """
    checked_mask(mask, checked_picture(image))
    checked_method(method, HEAL_METHODS)
    width = rim(mask.shape)
    region = grown(moved_mask(mask, rng, avoid=grown(mask, width + RING)), width)
    healed = filled(image, region, taken=region | grown(mask, width), method=method, rng=rng, normal=normal)
    return Edit(healed, mask.copy(), 1, "heal_beside", method, region)


def paste_clean(image: Picture, clean: Picture, shape: Mask, *, method: str, rng: Generator) -> Edit:
    """Paste a defect-shaped patch of another normal picture into a normal picture: label 0.

    Args:
        image: a normal picture, RGB uint8 (H, W, 3).
        clean: another normal picture, any size.
        shape: mask of some defect, any size.
        method, rng: as for `paste`.

    Raises:
        EditError: as for `paste`, a shape larger than either picture, or a patch that stands out as a defect does.
    """
    checked_picture(image)
    checked_picture(clean, "clean")
    checked_method(method, PASTE_METHODS)
    patch = cut(clean, _spot(clean, shape, rng))
    patch = patch.turned(drawn_turn(patch.inner, image.shape, rng))
    after, region = transplanted(image, patch, place(patch.inner, image.shape, rng), method=method)
    if stands_out(image, after, region):
        raise EditError("stands out", "the clean patch differs from its surroundings as much as a defect would")
    return Edit(after, np.zeros_like(region), 0, "paste_clean", method, region)


def repaste(image: Picture, mask: Mask, *, method: str, rng: Generator) -> Edit:
    """Cut a picture's defect out, heal the place, and paste the defect back there: label 1, mask as before.

    Raises:
        EditError: as for `heal` and `paste`.
    """
    checked_mask(mask, checked_picture(image))
    checked_method(method, PASTE_METHODS)
    region = grown(mask, rim(mask.shape))
    background = filled(image, region, taken=region, method="telea", rng=rng)
    background[~mask] = image[~mask]
    after, _ = transplanted(background, cut(image, mask), box_of(mask), method=method)
    if _distance(after, image, mask) > _distance(after, background, mask):
        raise EditError("too faint", "the defect pasted back resembles the healed place more than the defect")
    return Edit(after, mask.copy(), 1, "repaste", method, mask.copy())


def _distance(one: Picture, other: Picture, mask: Mask) -> float:
    """Mean absolute difference in grey levels over the mask."""
    return float(np.abs(one[mask].astype(np.float32) - other[mask]).mean())


def _spot(image: Picture, shape: Mask, rng: Generator) -> Mask:
    """A defect's shape somewhere in the picture, turned and mirrored at random, (H, W)."""
    if shape.ndim != 2 or shape.dtype != np.bool_:
        raise EditError("wrong input", f"shape must be bool (H, W), got {shape.dtype} {shape.shape}")
    if not shape.any():
        raise EditError("empty mask", "shape has no defect pixel; expected at least one")
    shape = shape[box_of(shape)]
    shape = turned(shape, drawn_turn(shape, image.shape, rng))
    spot = np.zeros(image.shape[:2], dtype=np.bool_)
    spot[place(shape, image.shape, rng)] = shape
    return spot
