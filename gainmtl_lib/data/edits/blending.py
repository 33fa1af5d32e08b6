"""How a patch joins its new surroundings: soft rims, matched brightness, gradient-domain cloning.

All on aligned windows: patch, target and mask have the same size (h, w).
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from gainmtl_lib.data.edits.edit import Mask, Picture, grown

RING = 4
"""Width in pixels of the surroundings that brightness and texture are compared on."""
GAIN = 2.0
"""A patch's contrast is raised at most this much: more would show its noise."""
ERODED = 3
"""`cv2.seamlessClone` erodes its mask by three pixels; the mask is grown by as many, so that edges come along."""


def outer_weights(region: Mask, width: int) -> NDArray[np.float32]:
    """Weights (h, w, 1) for a mask `grown` by `width` pixels to `region`: 1 on the mask, falling to 0 outside."""
    # The nearest pixel outside OpenCV's disc of radius n lies n across and 1 down.
    return np.clip(_depth(region) / np.float32(np.hypot(width, 1) - 1e-4), 0, 1)[..., None]


def inner_weights(region: Mask) -> NDArray[np.float32]:
    """Weights (h, w, 1): 1 inside the region, 0.75 on its outermost pixels (a thin scratch has no others)."""
    return (np.clip(_depth(region) + 0.5, 0, 2) / 2 * region).astype(np.float32)[..., None]


def ring_around(region: Mask, unknown: Mask, width: int = RING) -> Mask:
    """Known pixels (h, w) up to `width` from the region."""
    return grown(region, width) & ~region & ~unknown


def matched(
    patch: NDArray, target: NDArray, patch_ring: Mask, target_ring: Mask, *, contrast: float | None = None
) -> NDArray[np.float32]:
    """The patch with each channel's mean over its ring brought to the target's, float (h, w, 3).

    Args:
        patch, target: (h, w, 3).
        patch_ring, target_ring: known surroundings of either, (h, w); an empty one leaves the patch as it is.
        contrast: what the patch's differences from that mean are multiplied by. None follows the brightness, because
            light multiplies, within `GAIN`.
    """
    patch = patch.astype(np.float32)
    if not patch_ring.any() or not target_ring.any():
        return patch
    there, here = (side[ring].astype(np.float32).mean(0) for side, ring in ((patch, patch_ring), (target, target_ring)))
    gain = np.clip((here + 1) / (there + 1), 1 / GAIN, GAIN) if contrast is None else contrast
    return (patch - there) * gain + here


def blend(patch: NDArray, target: Picture, weights: NDArray[np.float32]) -> Picture:
    """Weighted mean of patch and target, rounded to uint8."""
    mixed = target + weights * (patch.astype(np.float32) - target)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def clone(patch: NDArray, target: Picture, region: Mask, *, mixed: bool = False) -> Picture:
    """The patch's gradients within the region, set into the target (Perez, Gangnet and Blake 2003).

    `cv2.seamlessClone` moves the patch by the middle of its mask's bounding box, erodes the mask, and wants space
    around it: both sides are padded alike, so that patch and target stay aligned wherever the region lies.

    Args:
        patch: (h, w, 3).
        target: (h, w, 3); what stands under the region's outer rim is the boundary that the result meets.
        region: (h, w), not empty.
        mixed: take the gradient of the two whose x and y parts differ more, which is OpenCV's rule. Of an isolated spot
            it keeps half, so defects come out weaker than with the rule of the paper, the longer gradient.
    """
    pad = 2 * ERODED + 2
    wide = grown(np.pad(region, pad), ERODED + 1).astype(np.uint8) * 255
    x, y, width, height = cv2.boundingRect(wide)
    source, base = (
        cv2.copyMakeBorder(_bytes(side), pad, pad, pad, pad, cv2.BORDER_REFLECT) for side in (patch, target)
    )
    flag = cv2.MIXED_CLONE if mixed else cv2.NORMAL_CLONE
    result = cv2.seamlessClone(source, base, wide, (x + width // 2, y + height // 2), flag)
    return cast(Picture, result[pad:-pad, pad:-pad])


def _depth(region: Mask) -> NDArray[np.float32]:
    """Distance in pixels to the nearest pixel outside; beyond the window's edge counts as inside."""
    return cast(NDArray[np.float32], cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))


def _bytes(picture: NDArray) -> Picture:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
