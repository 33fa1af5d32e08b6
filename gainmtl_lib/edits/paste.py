"""Pasting: a donor's defect set into another picture, its mask moved along.

H x W picture; h x w aligned windows of donor and target around the defect.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.edits.heal import (
    Edit,
    EditError,
    Mask,
    Picture,
    Window,
    blend,
    box_of,
    check_mask,
    clone,
    drawn_turn,
    filled,
    grown,
    inner_weights,
    matched,
    place,
    placed_at_random,
    rim,
    ring_around,
    turned,
    widened,
)

PASTE_METHODS = ("copy", "clone", "clone_mixed", "relief")
"""copy: the pixels, brightness matched; clone: their gradients; clone_mixed: the stronger gradient of patch and target;
relief: patch / healed patch on the target, which keeps its texture."""

CONTEXT = 8
"""Pixels around a defect that travel with it, to compare brightness on; they are not pasted."""
GAP = 2
"""Pixels between a mask and the ring of its surroundings: the rim of a defect is soft."""
STEP = 4
"""Grey levels of 255 below which a change counts as none."""
CLOSED = 3
"""Unchanged pixels up to about twice as wide amid changed ones belong to the defect: values coincide by chance."""
SHADING = 8
"""What varies over more than the picture's shorter side / 8 is light, not texture."""
SHIFT, SPREAD = 1.3, 4.2
"""Bounds of what stands out, in standard deviations of the texture."""
RATIO = (0.1, 10.0)
"""Least and largest brightness of a relief."""


def paste(image: Picture, donor_image: Picture, donor_mask: Mask, *, method: str, rng: Generator) -> Edit:
    """Set a donor's defect into a picture, turned, mirrored and moved at random: label 1.

    Args:
        image: RGB uint8 (H, W, 3) without a defect.
        donor_image: picture with the defect, any size.
        donor_mask: its defect, bool.
        method: one of `PASTE_METHODS`.
        rng: decides on turn and place.

    Returns:
        The edit; its mask holds the pixels that changed visibly, inside the moved donor mask.

    Raises:
        EditError: an unusable mask, a defect larger than the picture, nothing visible left of it.
    """
    check_mask(donor_mask, "donor_mask")
    after, region = _pasted_at_random(image, cut(donor_image, donor_mask), method, rng)
    if not stands_out(image, after, region):
        raise EditError("too faint", "the pasted defect does not stand out from the texture there")
    return Edit(after, changed(image, after, region), 1, "paste", method, region)


def paste_clean(image: Picture, clean: Picture, shape: Mask, *, method: str, rng: Generator) -> Edit:
    """Control of pasting: a patch of another normal picture, shaped like some defect, in a normal picture; label 0."""
    after, region = _pasted_at_random(image, cut(clean, placed_at_random(shape, clean, rng)), method, rng)
    if stands_out(image, after, region):
        raise EditError("stands out", "the clean patch differs from its surroundings as much as a defect would")
    return Edit(after, np.zeros_like(region), 0, "paste_clean", method, region)


def repaste(image: Picture, mask: Mask, *, method: str, rng: Generator) -> Edit:
    """Control of pasting: the picture's defect pasted back where it was cut out and healed; label 1, mask as before."""
    check_mask(mask)
    region = grown(mask, rim(mask.shape))
    background = filled(image, region, taken=region, method="telea", rng=rng)
    background[~mask] = image[~mask]
    after, _ = _pasted(background, cut(image, mask), box_of(mask), method)
    to_defect, to_healed = (np.abs(after[mask].astype(np.float32) - one[mask]).mean() for one in (image, background))
    if to_defect > to_healed:
        raise EditError("too faint", "the defect pasted back resembles the healed place more than the defect")
    return Edit(after, mask.copy(), 1, "repaste", method, mask.copy())


@dataclass(frozen=True)
class Patch:
    """A defect, or a defect's shape, cut out with `CONTEXT` pixels around it, (h, w).

    Attributes:
        image: filled smoothly where its picture ended.
        shape: pixels to paste.
        known: surroundings that may be compared with: inside the picture, no defect.
    """

    image: Picture
    shape: Mask
    known: Mask

    @property
    def inner(self) -> Mask:
        """The shape in its own box."""
        return self.shape[CONTEXT:-CONTEXT, CONTEXT:-CONTEXT]


def cut(image: Picture, mask: Mask) -> Patch:
    """What a mask covers, cut out with its surroundings."""
    window = box_of(mask)
    here = _in_padded(window)
    patch, shape, known = _around(image, window), np.pad(mask[window], CONTEXT), np.pad(~mask, CONTEXT)[here]
    outside = np.pad(np.zeros_like(mask), CONTEXT, constant_values=True)[here]
    if outside.any() and known.any():
        # A defect at the picture's border ends there: mirrored, it would have no edge, and a clone of it no contrast.
        patch[outside] = _inpainted(patch, ~known)[outside]
    return Patch(patch, shape, known)


def _in_padded(window: Window) -> Window:
    """The window and its surroundings in a picture that is padded by `CONTEXT`."""
    return slice(window[0].start, window[0].stop + 2 * CONTEXT), slice(window[1].start, window[1].stop + 2 * CONTEXT)


def _around(image: Picture, window: Window) -> Picture:
    """A window and its surroundings, mirrored where the picture ends."""
    return np.pad(image, ((CONTEXT, CONTEXT), (CONTEXT, CONTEXT), (0, 0)), mode="reflect")[_in_padded(window)].copy()


def _inpainted(image: Picture, unknown: Mask) -> NDArray:
    return cv2.inpaint(image, unknown.astype(np.uint8), 3, cv2.INPAINT_TELEA)


def _pasted_at_random(image: Picture, patch: Patch, method: str, rng: Generator) -> tuple[Picture, Mask]:
    turn = drawn_turn(patch.inner, image.shape, rng)
    patch = Patch(turned(patch.image, turn), turned(patch.shape, turn), turned(patch.known, turn))
    return _pasted(image, patch, place(patch.inner, image.shape, rng), method)


def _pasted(image: Picture, patch: Patch, window: Window, method: str) -> tuple[Picture, Mask]:
    """The picture with the patch's shape at a window, and the shape's pixels (H, W), the only ones that may differ."""
    target = _around(image, window)
    pasted = blend(_joined(patch, target, method), target, inner_weights(patch.shape))
    region = np.zeros(image.shape[:2], dtype=np.bool_)
    region[window] = patch.inner
    after = image.copy()
    after[region] = pasted[patch.shape]
    return after, region


def _joined(patch: Patch, target: Picture, method: str) -> NDArray:
    if method == "relief":
        healed = _inpainted(patch.image, grown(~patch.known, GAP - 1))
        return target * np.clip((patch.image + 1.0) / (healed + 1.0), *RATIO)
    copied = matched(patch.image, target, ring_around(grown(patch.shape, GAP), ~patch.known))
    if method == "copy":
        return copied
    return clone(copied, target, grown(patch.shape, 1), mixed=method == "clone_mixed")


def changed(before: Picture, after: Picture, region: Mask) -> Mask:
    """The region's pixels that changed by `STEP` or more, and the small gaps that chance left between them, (H, W)."""
    moved = (cv2.absdiff(after, before).max(-1) >= STEP) & region
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * CLOSED + 1, 2 * CLOSED + 1))
    return cv2.morphologyEx(moved.astype(np.uint8), cv2.MORPH_CLOSE, disc).astype(np.bool_) & region


def stands_out(before: Picture, after: Picture, region: Mask) -> bool:
    """Whether the change of a region can be told from the texture there: by `SHIFT` s on average, or `SPREAD` s.

    s is the standard deviation of the picture before, in and around the region, less its shading. Pasting the same
    surface without a defect stays below both in 99 of 100 synthetic pictures, where defects move the mean by above 2 s.
    """
    window = widened(box_of(region), CONTEXT, region.shape)
    here = before[window].astype(np.float32)
    side = min(region.shape) // SHADING | 1
    grain = (here - cv2.blur(here, (side, side)))[grown(region[window], CONTEXT)]
    texture = max(float(grain.std(0).mean()), STEP)
    difference = after[region].astype(np.float32) - before[region]
    shift, spread = np.abs(difference.mean(0)).max(), np.sqrt((difference**2).mean())
    return bool(shift >= SHIFT * texture or spread >= SPREAD * texture)
