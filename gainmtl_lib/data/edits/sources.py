"""What to fill a hole with: patches from elsewhere that continue its surroundings best, set side by side.

H x W the picture around a hole, h x w a window around a part of it. Pictures are (…, 3), masks bool.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.data.edits.blending import RING, matched, outer_weights, ring_around
from gainmtl_lib.data.edits.edit import EditError, Mask, box_of, grown, widened
from gainmtl_lib.data.edits.placing import halves, longer_side, overlap

REACH = 64
"""Pixels around a part of a hole within which a picture is searched for a source."""
BEST = 6
"""Sources to draw from: the best few, so that one picture is not always healed alike."""
SMALLEST = 8
"""Parts of a hole with no longer side than this are not cut again."""

Window = tuple[slice, slice]


def patchwork(
    image: NDArray,
    hole: Mask,
    unknown: Mask,
    source: NDArray,
    taken: Mask,
    *,
    longest: int,
    rng: Generator,
    contrast: float | None = None,
) -> NDArray[np.float32]:
    """Fill a hole with patches of a source, part by part, each in the surroundings' brightness.

    A part is found by what surrounds it, filled parts included, as in exemplar-based inpainting (Criminisi, Perez and
    Toyama 2004, doi:10.1109/TIP.2004.833105). A part without a source is cut in two.

    Args:
        image: (H, W, 3).
        hole: pixels to fill, (H, W).
        unknown: pixels that must not be compared with, (H, W): the hole and every defect.
        source: picture to take from, (H', W', 3).
        taken: its pixels that must not be shown, (H', W').
        longest: side in pixels of the largest part.
        rng: draws among the best few.
        contrast: as for `matched`.

    Returns:
        (H, W, 3): the filled hole and a ring of the patches' surroundings; the picture itself elsewhere.

    Raises:
        EditError: no source even for the smallest parts.
    """
    seen, unknown = image.astype(np.float32), unknown.copy()
    result, painted = seen.copy(), np.zeros_like(hole)
    parts = list(_parts(hole, max(longest, SMALLEST)))
    while parts:
        part = parts.pop(_most_surrounded(parts, unknown))
        window = widened(box_of(part), RING, image.shape)
        inside, ring = part[window], ring_around(part[window], unknown[window])
        try:
            patch = _best(seen[window], inside, ring, source, taken, window, rng)
        except EditError:
            if longer_side(part) <= SMALLEST:
                raise
            parts += _parts(part, longer_side(part) // 2 + 1)
            continue
        patch = matched(patch, seen[window], ring, ring, contrast=contrast)
        wide = grown(inside, RING)
        weights = np.where(painted[window][..., None], outer_weights(wide, RING), (inside | ring)[..., None])
        result[window] += weights * (patch - result[window])
        painted[window] |= inside | ring
        filled = inside | (wide & hole[window] & ~unknown[window])
        seen[window][filled] = np.clip(result[window][filled], 0, 255)  # a long row of parts must not drift
        unknown[window] &= ~inside
    return result


def _parts(piece: Mask, longest: int) -> Iterator[Mask]:
    """A piece cut in halves until no part's box is longer than `longest`."""
    if not piece.any():
        return
    if longer_side(piece) <= longest:
        yield piece
        return
    for half in halves(piece):
        yield from _parts(half, longest)


def _most_surrounded(parts: Sequence[Mask], unknown: Mask) -> int:
    """The part with the largest share of known pixels around it: what is known best is continued first."""
    if len(parts) == 1:
        return 0
    shares: list[float] = []
    for part in parts:
        window = widened(box_of(part), 1, part.shape)
        around = grown(part[window], 1) & ~part[window]
        shares.append(float((around & ~unknown[window]).sum() / max(1, around.sum())))
    return int(np.argmax(shares))


def _best(
    target: NDArray, inside: Mask, ring: Mask, source: NDArray, taken: Mask, window: Window, rng: Generator
) -> NDArray:
    """One of the patches (h, w, 3) of a source that resemble the target most on the ring and show nothing taken."""
    there = near(widened(window, REACH, (window[0].stop + REACH, window[1].stop + REACH)), taken.shape)
    picture, taken, (height, width) = source[there], taken[there], inside.shape
    if height > taken.shape[0] or width > taken.shape[1]:
        raise EditError("no free place", f"a hole of {height}x{width} pixels, a source of {taken.shape}")
    score = _difference(_grey(target), ring, _grey(picture))
    if taken.any():
        score[overlap(taken, inside | ring) > 0.5] = np.inf
    flat = score.ravel()
    count = min(BEST, int(np.isfinite(flat).sum()))
    if not count:
        raise EditError("no free place", f"no other {height}x{width} pixels to take from")
    best = np.argpartition(flat, count - 1)[:count]
    best = best[np.lexsort((best, flat[best]))]
    top, left = divmod(int(best[rng.integers(count)]), score.shape[1])
    return picture[top : top + height, left : left + width]


def near(window: Window, size: tuple[int, ...]) -> Window:
    """A window of the same size, or as large as a picture of `size` has it, as near as it has it."""
    sides: list[slice] = []
    for side, length in zip(window, size[:2], strict=True):
        extent = min(length, side.stop - side.start)
        start = min(side.start, length - extent)
        sides.append(slice(start, start + extent))
    return sides[0], sides[1]


def _difference(target: NDArray, ring: Mask, picture: NDArray) -> NDArray[np.float32]:
    """Sum of squares of picture - target over the ring, less that of its mean, at every place."""
    level = float(target[ring].mean()) if ring.any() else 0.0
    here = np.where(ring, target - level, 0).astype(np.float32)
    there = picture.astype(np.float32) - level  # small numbers: the sums are float32
    sums, squares = overlap(there, ring), overlap(there * there, ring)
    spread = squares - 2 * overlap(there, here) + float((here * here).sum())
    mean = (sums - float(here.sum())) ** 2 / max(1, int(ring.sum()))
    return np.asarray(spread - mean, dtype=np.float32)


def _grey(picture: NDArray) -> NDArray:
    return cast(NDArray, cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY))
