"""Healing: a defect's pixels replaced from its surroundings; and what all edits share.

H x W size of the picture, h x w of a window in it. Masks are bool (H, W), pictures RGB uint8 (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Window = tuple[slice, slice]

MOST = 0.5
"""Share of the picture that an edit may touch: beyond it the surroundings no longer say what belongs there."""


class EditError(ValueError):
    """An edit that is impossible here, for a `reason` to count by (such as ``no free place``) and a detail to read."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that a loader's worker process can send it pickled
        self.reason = reason

    def __str__(self) -> str:
        return ": ".join(self.args)


@dataclass(frozen=True)
class Edit:
    """A picture after an edit.

    Attributes:
        image: RGB uint8 (H, W, 3).
        mask: defect pixels (H, W); all False where no defect is left.
        label: 0 normal, 1 defective.
        kind: heal, paste, heal_spot, paste_clean, repaste or heal_beside.
        method: one of `HEAL_METHODS` or `PASTE_METHODS`.
        region: (H, W), the only pixels that may differ from before; the bars of a letterboxed picture besides.
    """

    image: Picture
    mask: Mask
    label: int
    kind: str
    method: str
    region: Mask


def framed(edit: Edit, size: tuple[int, int], place: Window) -> Edit:
    """The edit of a part at `place` as one of the whole input (H, W), its bars in the mean colour of the edited part.

    That is how a picture is letterboxed (`labels.resize_image`). Bars in the colour of the picture before would
    differ from its mean by what the edit took or brought, and so tell the edits that change the label.
    """
    if edit.mask.shape == size:
        return edit
    whole, mask, region = np.empty((*size, 3), np.uint8), np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    whole[:] = np.rint(edit.image.mean(axis=(0, 1))).astype(np.uint8)
    whole[place], mask[place], region[place] = edit.image, edit.mask, edit.region
    return replace(edit, image=whole, mask=mask, region=region)


def check_mask(mask: Mask, name: str = "mask") -> None:
    """Raise an `EditError` for an empty mask, and for one that leaves too little of the picture."""
    if not mask.any():
        raise EditError("empty mask", f"{name} has no defect pixel; expected at least one")
    if mask.mean() > MOST:
        raise EditError("covers the picture", f"{name} takes {mask.mean():.0%} of it; expected at most {MOST:.0%}")


# --- Healing and its controls

HEAL_METHODS = ("telea", "navier_stokes", "patch_same", "clone_same")
"""telea, navier_stokes: inpainting by fast marching (Telea 2004) or by lines of equal brightness (Bertalmio et al.
2001), with the grain of the surroundings; patch_same: patches of the same picture; clone_same: their gradients."""

CONTEXT = 12
"""Pixels around a piece that inpainting and cloning look at."""
REACH = 64
"""Pixels around a part of a hole within which a picture is searched for a source."""
PARTS = 4
"""A source is at most the picture's shorter side / 4 long: larger ones seldom fit on all sides."""
COARSE = (2.0, 10.0)
"""Least and largest standard deviation in pixels of the Gaussian that tells the grain from the shading."""


def heal(image: Picture, mask: Mask, *, method: str, rng: Generator) -> Edit:
    """Take a picture's defects away: label 0, empty mask.

    Args:
        image: RGB uint8 (H, W, 3).
        mask: its defects. With them a rim of 1 to 3 pixels is replaced, softly.
        method: one of `HEAL_METHODS`.
        rng: decides among about equally good sources.

    Raises:
        EditError: a mask that is empty or above half of the picture, no source.
    """
    check_mask(mask)
    region = grown(mask, rim(mask.shape))
    healed = filled(image, region, taken=region, method=method, rng=rng)
    return Edit(healed, np.zeros_like(mask), 0, "heal", method, region)


def heal_spot(image: Picture, shape: Mask, *, method: str, rng: Generator) -> Edit:
    """Control of healing: a spot of a normal picture, shaped like some defect's mask of any size; label 0."""
    spot = placed_at_random(shape, image, rng)
    region = grown(spot, rim(spot.shape))
    healed = filled(image, region, taken=region, method=method, rng=rng)
    return Edit(healed, np.zeros_like(spot), 0, "heal_spot", method, region)


def heal_beside(image: Picture, mask: Mask, *, method: str, rng: Generator) -> Edit:
    """Control of healing: a spot shaped like the picture's defect, beside it; label 1, mask and defect as before."""
    check_mask(mask)
    width = rim(mask.shape)
    shape, spot = mask[box_of(mask)], np.zeros_like(mask)
    spot[place(shape, mask.shape, rng, avoid=grown(mask, width + RING))] = shape
    region = grown(spot, width)
    healed = filled(image, region, taken=region | grown(mask, width), method=method, rng=rng)
    return Edit(healed, mask.copy(), 1, "heal_beside", method, region)


def filled(image: Picture, region: Mask, *, taken: Mask, method: str, rng: Generator) -> Picture:
    """The picture with a region replaced, piece by piece, each from sources of its own, (H, W, 3).

    Arguments as for `heal`, and `taken`: pixels that must not be learnt from, (H, W), the region and every defect.
    """
    check_mask(region, "the region to heal")
    result = image.copy()
    for piece in pieces(region):
        around = widened(box_of(piece), REACH + CONTEXT, image.shape)
        patched = patchwork(image[around], piece[around], taken[around], longest=min(image.shape[:2]) // PARTS, rng=rng)
        window = widened(box_of(piece[around]), CONTEXT, patched.shape)
        here, hole = image[around][window], piece[around][window]
        fill = _finished(method, patched[window], here, hole, taken[around][window])
        result[around][window][hole] = blend(fill, here, outer_weights(hole, rim(image.shape)))[hole]
    return result


def _finished(method: str, patches: NDArray, here: Picture, hole: Mask, unknown: Mask) -> NDArray:
    """The patches (h, w, 3) of a window themselves, their gradients, or their grain on the shading of inpainting."""
    if method == "patch_same":
        return patches
    flag = cv2.INPAINT_NS if method == "navier_stokes" else cv2.INPAINT_TELEA
    smooth = cv2.inpaint(here, unknown.astype(np.uint8), 3, flag)
    if method == "clone_same":
        return clone(patches, smooth, hole)  # into the smooth: the boundary must not be the defect's colour
    # Inpainting alone leaves a smooth blob on a grainy surface.
    depth = cv2.distanceTransform(hole.astype(np.uint8), cv2.DIST_L2, 3).max()
    return patches + cv2.GaussianBlur(smooth - patches, (0, 0), float(np.clip(depth / 2, *COARSE)))


# --- What to fill a hole with

BEST = 6
"""Sources to draw from: the best few, so that one picture is not always healed alike."""
SMALLEST = 8
"""Parts of a hole with no longer side than this are not cut again."""


def patchwork(image: Picture, hole: Mask, taken: Mask, *, longest: int, rng: Generator) -> NDArray[np.float32]:
    """The picture with its hole (H, W), and a ring around it, filled with patches of its other parts, float (H, W, 3).

    A part of the hole, at most `longest` pixels long, is found by what surrounds it, filled parts included, as in
    exemplar-based inpainting (Criminisi, Perez and Toyama 2004, doi:10.1109/TIP.2004.833105). A part without a source
    is cut in two. `taken`, the hole and every defect, is never learnt from.

    Raises:
        EditError: no source even for the smallest parts.
    """
    seen, unknown = image.astype(np.float32), taken.copy()
    result, painted = seen.copy(), np.zeros_like(hole)
    parts = list(_parts(hole, max(longest, SMALLEST)))
    while parts:
        part = parts.pop(_most_surrounded(parts, unknown))
        window = widened(box_of(part), RING, image.shape)
        inside, ring = part[window], ring_around(part[window], unknown[window])
        try:
            patch = _best(seen[window], inside, ring, image, taken, window, rng)
        except EditError:
            if longer_side(part) <= SMALLEST:
                raise
            parts += _parts(part, longer_side(part) // 2 + 1)
            continue
        patch = matched(patch, seen[window], ring, contrast=1.0)
        wide = grown(inside, RING)
        weights = np.where(painted[window][..., None], outer_weights(wide, RING), (inside | ring)[..., None])
        result[window] += weights * (patch - result[window])
        painted[window] |= inside | ring
        filled = inside | (wide & hole[window] & ~unknown[window])
        seen[window][filled] = np.clip(result[window][filled], 0, 255)  # a long row of parts must not drift
        unknown[window] &= ~inside
    return result


def _parts(piece: Mask, longest: int) -> Iterator[Mask]:
    """A piece cut across the longer side until no part's box is longer than `longest`."""
    if not piece.any():
        return
    if longer_side(piece) <= longest:
        yield piece
        return
    rows, columns = box_of(piece)
    upright = rows.stop - rows.start >= columns.stop - columns.start
    middle = (rows.start + rows.stop) // 2 if upright else (columns.start + columns.stop) // 2
    first = np.indices(piece.shape)[0 if upright else 1] < middle
    yield from _parts(piece & first, longest)
    yield from _parts(piece & ~first, longest)


def _most_surrounded(parts: list[Mask], unknown: Mask) -> int:
    """The part with the largest share of known pixels around it: what is known best is continued first."""
    shares: list[float] = []
    for part in parts:
        window = widened(box_of(part), 1, part.shape)
        around = grown(part[window], 1) & ~part[window]
        shares.append(float((around & ~unknown[window]).sum() / max(1, around.sum())))
    return int(np.argmax(shares))


def _best(
    target: NDArray, inside: Mask, ring: Mask, image: Picture, taken: Mask, window: Window, rng: Generator
) -> NDArray:
    """One of the patches (h, w, 3) near a window that resemble the target most on the ring and show nothing taken."""
    there = near(widened(window, REACH, (window[0].stop + REACH, window[1].stop + REACH)), taken.shape)
    picture, taken, (height, width) = image[there], taken[there], inside.shape
    score = _difference(grey(target), ring, grey(picture)).ravel()
    score[overlap(taken, inside | ring).ravel() > 0.5] = np.inf
    count = min(BEST, int(np.isfinite(score).sum()))
    if not count:
        raise EditError("no free place", f"no other {height}x{width} pixels to take from")
    best = np.argpartition(score, count - 1)[:count]
    best = best[np.lexsort((best, score[best]))]
    top, left = divmod(int(best[rng.integers(count)]), taken.shape[1] - width + 1)
    return picture[top : top + height, left : left + width]


def _difference(target: NDArray, ring: Mask, picture: NDArray) -> NDArray[np.float32]:
    """Sum of squares of picture - target over the ring, less that of its mean, at every place."""
    level = float(target[ring].mean()) if ring.any() else 0.0
    here = np.where(ring, target - level, 0).astype(np.float32)
    there = picture.astype(np.float32) - level  # small numbers: the sums are float32
    sums, squares = overlap(there, ring), overlap(there * there, ring)
    spread = squares - 2 * overlap(there, here) + float((here * here).sum())
    return np.asarray(spread - (sums - float(here.sum())) ** 2 / max(1, int(ring.sum())), dtype=np.float32)


# --- Masks and windows

JOIN = 3
"""Pieces of a mask at most about twice as many pixels apart are one piece."""


def rim(size: tuple[int, ...]) -> int:
    """Pixels around a defect mask that are healed with it, 1 to 3: masks drawn by people are not exact."""
    return int(np.clip(round(min(size[:2]) / 64), 1, 3))


def grown(mask: Mask, by: int) -> Mask:
    """The mask dilated by a disc of `by` pixels."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * by + 1, 2 * by + 1))
    return cv2.dilate(mask.astype(np.uint8), disc, borderValue=0).astype(np.bool_)


def pieces(mask: Mask) -> Iterator[Mask]:
    """The connected pieces of a mask, (H, W) each; near ones count as one."""
    count, labels = cv2.connectedComponents(grown(mask, JOIN).astype(np.uint8))
    return (mask & (labels == number) for number in range(1, count))


def box_of(mask: Mask) -> Window:
    """The smallest window (rows, columns) that holds a non-empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def longer_side(mask: Mask) -> int:
    """Length in pixels of the longer side of a mask's box."""
    return max(side.stop - side.start for side in box_of(mask))


def widened(window: Window, by: int, size: tuple[int, ...]) -> Window:
    """A window with `by` pixels more on each side, as far as the picture goes."""
    rows, columns = (slice(max(0, s.start - by), min(length, s.stop + by)) for s, length in zip(window, size[:2]))
    return rows, columns


def near(window: Window, size: tuple[int, ...]) -> Window:
    """A window of the same size, or as large as a picture of `size` has it, as near as it has it."""
    lengths = [min(length, side.stop - side.start) for side, length in zip(window, size[:2])]
    top, left = (min(side.start, whole - length) for side, whole, length in zip(window, size[:2], lengths))
    return slice(top, top + lengths[0]), slice(left, left + lengths[1])


def grey(picture: NDArray) -> NDArray:
    """An RGB picture (H, W, 3) in grey, (H, W)."""
    return cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)


# --- Where things go

TRIES = 40
"""Random places tried before all of them are looked at: most shapes find one at once."""


def placed_at_random(shape: Mask, image: Picture, rng: Generator) -> Mask:
    """A shape, the mask of some defect, somewhere in a picture, turned and mirrored at random, (H, W)."""
    shape = shape[box_of(shape)]
    shape = turned(shape, drawn_turn(shape, image.shape, rng))
    spot = np.zeros(image.shape[:2], dtype=np.bool_)
    spot[place(shape, image.shape, rng)] = shape
    return spot


def place(shape: Mask, size: tuple[int, ...], rng: Generator, *, avoid: Mask | None = None) -> Window:
    """A window for `shape` (h, w) in a picture of `size`, uniformly among those where it is off `avoid` (H, W)."""
    (height, width), rows, columns = shape.shape, size[0] - shape.shape[0] + 1, size[1] - shape.shape[1] + 1
    for _ in range(TRIES):
        top, left = int(rng.integers(rows)), int(rng.integers(columns))
        window = slice(top, top + height), slice(left, left + width)
        if avoid is None or not (avoid[window] & shape).any():
            return window
    free = [] if avoid is None else np.flatnonzero(overlap(avoid, shape) < 0.5)
    if not len(free):
        raise EditError("no free place", f"a shape of {height}x{width} pixels fits nowhere off what it must avoid")
    top, left = divmod(int(free[rng.integers(len(free))]), columns)
    return slice(top, top + height), slice(left, left + width)


def turned(array: NDArray, turn: int) -> NDArray:
    """The array turned by `turn % 4` quarters, and mirrored from 4 on."""
    array = np.rot90(array, turn % 4)
    return np.ascontiguousarray(array[:, ::-1] if turn >= 4 else array)


def drawn_turn(shape: Mask, size: tuple[int, ...], rng: Generator) -> int:
    """One of the eight turns with which the shape's box fits into a picture of `size`."""
    (height, width), (rows, columns) = shape.shape, size[:2]
    fits = [height <= rows and width <= columns, width <= rows and height <= columns]
    if not any(fits):
        raise EditError("larger than the picture", f"a shape of {height}x{width} pixels, a picture of {rows}x{columns}")
    return int(rng.choice([turn for turn in range(8) if fits[turn % 2]]))


def overlap(plane: NDArray, shape: NDArray) -> NDArray:
    """Sum of plane x shape at every place of the shape inside the plane, (H - h + 1, W - w + 1)."""
    return cv2.matchTemplate(plane.astype(np.float32), shape.astype(np.float32), cv2.TM_CCORR)


# --- How a patch joins its new surroundings

RING = 4
"""Width in pixels of the surroundings that brightness and texture are compared on."""
GAIN = 2.0
"""A patch's contrast is raised at most this much: more would show its noise."""
ERODED = 3
"""`cv2.seamlessClone` erodes its mask by three pixels; the mask is grown by as many, so that edges come along."""


def outer_weights(region: Mask, width: int) -> NDArray:
    """Weights (h, w, 1) for a mask `grown` by `width` pixels to `region`: 1 on the mask, falling to 0 outside."""
    # The nearest pixel outside OpenCV's disc of radius n lies n across and 1 down.
    return np.clip(_depth(region) / np.float32(np.hypot(width, 1) - 1e-4), 0, 1)[..., None]


def inner_weights(region: Mask) -> NDArray[np.float32]:
    """Weights (h, w, 1): 1 inside the region, 0.75 on its outermost pixels (a thin scratch has no others)."""
    return (np.clip(_depth(region) + 0.5, 0, 2) / 2 * region).astype(np.float32)[..., None]


def _depth(region: Mask) -> NDArray:
    """Distance in pixels to the nearest pixel outside; beyond the window's edge counts as inside."""
    return cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def ring_around(region: Mask, unknown: Mask) -> Mask:
    """Known pixels (h, w) up to `RING` from the region."""
    return grown(region, RING) & ~region & ~unknown


def matched(patch: NDArray, target: NDArray, ring: Mask, *, contrast: float | None = None) -> NDArray[np.float32]:
    """The patch with each channel's mean over the ring (h, w) brought to the target's, float (h, w, 3).

    The patch's differences from that mean are multiplied by `contrast`; None follows the brightness, because light
    multiplies, within `GAIN`. An empty ring leaves the patch as it is.
    """
    patch = patch.astype(np.float32)
    if not ring.any():
        return patch
    there, here = patch[ring].mean(0), target[ring].astype(np.float32).mean(0)
    gain = np.clip((here + 1) / (there + 1), 1 / GAIN, GAIN) if contrast is None else contrast
    return (patch - there) * gain + here


def blend(patch: NDArray, target: Picture, weights: NDArray) -> Picture:
    """Weighted mean of patch and target, rounded to uint8."""
    return _bytes(target + weights * (patch.astype(np.float32) - target))


def clone(patch: NDArray, target: NDArray, region: Mask, *, mixed: bool = False) -> Picture:
    """The patch's gradients within the region, set into the target (Perez, Gangnet and Blake 2003).

    `cv2.seamlessClone` moves the patch by the middle of its mask's bounding box, erodes the mask, and wants space
    around it: both sides are padded alike, so that patch and target stay aligned wherever the region lies. What stands
    under the region's outer rim in the target is the boundary that the result meets. `mixed` takes the gradient of the
    two whose x and y parts differ more, OpenCV's rule: of an isolated spot it keeps half.
    """
    pad = 2 * ERODED + 2
    wide = grown(np.pad(region, pad), ERODED + 1).astype(np.uint8) * 255
    x, y, width, height = cv2.boundingRect(wide)
    source, base = (
        cv2.copyMakeBorder(_bytes(side), pad, pad, pad, pad, cv2.BORDER_REFLECT) for side in (patch, target)
    )
    flag = cv2.MIXED_CLONE if mixed else cv2.NORMAL_CLONE
    return _bytes(cv2.seamlessClone(source, base, wide, (x + width // 2, y + height // 2), flag)[pad:-pad, pad:-pad])


def _bytes(picture: NDArray) -> Picture:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
