"""Pasting: a donor's defect set into another picture, its mask moved along.

H x W picture; h x w aligned windows of donor and target around the defect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.edits.heal import (
    Edit,
    EditError,
    Mask,
    Picture,
    blend,
    box_of,
    checked_mask,
    checked_method,
    checked_picture,
    clone,
    drawn_turn,
    grown,
    inner_weights,
    matched,
    place,
    ring_around,
    turned,
    widened,
)

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


@dataclass(frozen=True)
class Patch:
    """A defect, or a defect's shape, cut out with its surroundings.

    Attributes:
        image: (h, w, 3) with `CONTEXT` pixels around the shape, filled smoothly where its picture ended.
        shape: pixels to paste, (h, w).
        known: surroundings that may be compared with, (h, w): inside the picture, no defect.
    """

    image: Picture
    shape: Mask
    known: Mask

    @property
    def inner(self) -> Mask:
        """The shape in its own box."""
        return self.shape[CONTEXT:-CONTEXT, CONTEXT:-CONTEXT]

    @property
    def ring(self) -> Mask:
        """Known surroundings, a little off the shape."""
        return ring_around(grown(self.shape, GAP), ~self.known)

    def turned(self, turn: int) -> Patch:
        """The patch turned and mirrored, see `placing`."""
        return Patch(turned(self.image, turn), turned(self.shape, turn), turned(self.known, turn))


Paste = Callable[[Patch, Picture], NDArray]


def paste(image: Picture, donor_image: Picture, donor_mask: Mask, *, method: str, rng: Generator) -> Edit:
    """Set a donor's defect into a picture, turned, mirrored and moved at random: label 1.

    Args:
        image: RGB uint8 (H, W, 3) without a defect; stays as it is.
        donor_image: picture with the defect, any size.
        donor_mask: its defect, bool.
        method: one of `PASTE_METHODS`.
        rng: decides on turn and place.

    Returns:
        The edit; its mask holds the pixels that changed visibly, inside the moved donor mask.

    Raises:
        EditError: unusable pictures or mask, a defect larger than the picture, nothing visible left of it.
    """
    checked_picture(image)
    checked_mask(donor_mask, checked_picture(donor_image, "donor_image"), "donor_mask")
    checked_method(method, PASTE_METHODS)
    patch = cut(donor_image, donor_mask)
    patch = patch.turned(drawn_turn(patch.inner, image.shape, rng))
    after, region = transplanted(image, patch, place(patch.inner, image.shape, rng), method=method)
    if not stands_out(image, after, region):
        raise EditError("too faint", "the pasted defect does not stand out from the texture there")
    return Edit(after, changed(image, after, region), 1, "paste", method, region)


def cut(image: Picture, mask: Mask) -> Patch:
    """What a mask covers, cut out with its surroundings."""
    window = box_of(mask)
    shape = np.pad(mask[window], CONTEXT)
    known, outside = np.zeros_like(shape), np.ones_like(shape)
    seen = widened(window, CONTEXT, mask.shape)
    there = tuple(slice(s.start - w.start + CONTEXT, s.stop - w.start + CONTEXT) for s, w in zip(seen, window))
    known[there], outside[there] = ~mask[seen], False
    patch = around(image, window)
    if outside.any() and known.any():
        # A defect at the picture's border ends there: mirrored, it would have no edge, and a clone of it no contrast.
        patch[outside] = inpainted(patch, ~known)[outside]
    return Patch(patch, shape, known)


def inpainted(image: Picture, unknown: Mask) -> Picture:
    """The picture with its unknown pixels filled smoothly."""
    return cast(Picture, cv2.inpaint(image, unknown.astype(np.uint8), 3, cv2.INPAINT_TELEA))


def around(image: Picture, window: tuple[slice, slice]) -> Picture:
    """A window with `CONTEXT` pixels more on each side, mirrored where the picture ends."""
    rows, columns = (
        _mirrored(np.arange(side.start - CONTEXT, side.stop + CONTEXT), length)
        for side, length in zip(window, image.shape[:2], strict=True)
    )
    return image[np.ix_(rows, columns)]


def _mirrored(places: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Places beyond 0 … length - 1 mirrored at the border pixels."""
    period = max(1, 2 * length - 2)
    return length - 1 - np.abs(length - 1 - places % period)


def transplanted(image: Picture, patch: Patch, window: tuple[slice, slice], *, method: str) -> tuple[Picture, Mask]:
    """Set a patch's shape into the picture at a window.

    Args:
        image: (H, W, 3).
        patch: what to set in.
        window: place of the patch without its surroundings.
        method: one of `PASTE_METHODS`.

    Returns:
        The picture after, and the shape's pixels in it (H, W), the only ones that may differ.
    """
    target = around(image, window)
    pasted = blend(PASTE_METHODS[method](patch, target), target, inner_weights(patch.shape))
    region = np.zeros(image.shape[:2], dtype=np.bool_)
    region[window] = patch.inner
    after = image.copy()
    after[region] = pasted[patch.shape]
    return after, region


def changed(before: Picture, after: Picture, region: Mask) -> Mask:
    """The region's pixels that changed by `STEP` or more, and the small gaps that chance left between them, (H, W)."""
    window = widened(box_of(region), CLOSED, region.shape)
    step = cv2.absdiff(after[window], before[window])
    moved = (np.maximum(np.maximum(step[..., 0], step[..., 1]), step[..., 2]) >= STEP) & region[window]
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * CLOSED + 1, 2 * CLOSED + 1))
    mask = np.zeros_like(region)
    mask[window] = cv2.morphologyEx(moved.astype(np.uint8), cv2.MORPH_CLOSE, disc).astype(np.bool_) & region[window]
    return mask


def stands_out(before: Picture, after: Picture, region: Mask) -> bool:
    """Whether the change of a region can be told from the texture there.

    The measure s is the standard deviation of the picture before, in and around the region, less its shading. Pasting
    the same surface without a defect moves the region's mean by less than 1.3 s and differs by less than 4.2 s in root
    mean square in 99 of 100 synthetic pictures, where defects move it by more than 2 s. A change stands out by a mean
    beyond `SHIFT` s, or, where bright and dark cancel, by a difference beyond `SPREAD` s.
    """
    window = widened(box_of(region), CONTEXT, region.shape)
    here = before[window].astype(np.float32)
    side = min(region.shape) // SHADING | 1
    grain = (here - cv2.blur(here, (side, side)))[grown(region[window], CONTEXT)]
    texture = max(float(grain.std(0).mean()), STEP)
    difference = after[region].astype(np.float32) - before[region]
    shift, spread = np.abs(difference.mean(0)).max(), np.sqrt((difference**2).mean())
    return bool(shift >= SHIFT * texture or spread >= SPREAD * texture)


def copied(patch: Patch, target: Picture) -> NDArray:
    """The pixels themselves, brightness matched on the surroundings."""
    return matched(patch.image, target, patch.ring, patch.ring)


def cloned(patch: Patch, target: Picture) -> NDArray:
    """The patch's gradients."""
    return clone(copied(patch, target), target, grown(patch.shape, 1))


def cloned_mixed(patch: Patch, target: Picture) -> NDArray:
    """At each pixel the gradient of patch or target, whichever is stronger by OpenCV's measure (see `clone`)."""
    return clone(copied(patch, target), target, grown(patch.shape, 1), mixed=True)


def relief(patch: Patch, target: Picture) -> NDArray:
    """The defect's relief, patch / healed patch, on the target: it keeps the target's texture."""
    healed = inpainted(patch.image, grown(~patch.known, GAP - 1))
    return target * np.clip((patch.image + 1.0) / (healed + 1.0), *RATIO)


PASTE_METHODS: dict[str, Paste] = {
    "copy": copied,
    "clone": cloned,
    "clone_mixed": cloned_mixed,
    "relief": relief,
}
