"""What an edit is: the picture, mask and label after it, and the only pixels that may differ from before.

H x W size of the picture. Masks are bool (H, W), pictures RGB uint8 (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

MOST = 0.5
"""Share of the picture that an edit may touch: beyond it the surroundings no longer say what belongs there."""


class EditError(ValueError):
    """An edit that is impossible here.

    Args:
        reason: short name to count by, such as `no free place`.
        detail: what was found and what was expected.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason

    def __reduce__(self) -> tuple[type[EditError], tuple[str, str]]:
        """A loader's worker process sends its errors pickled."""
        return type(self), (self.reason, str(self).removeprefix(f"{self.reason}: "))


@dataclass(frozen=True)
class Edit:
    """A picture after an edit.

    Attributes:
        image: RGB uint8 (H, W, 3) after the edit.
        mask: defect pixels (H, W) after the edit; all False where no defect is left.
        label: 0 normal, 1 defective, after the edit.
        kind: heal, paste, heal_spot, paste_clean, repaste or heal_beside.
        method: one of `HEAL_METHODS` or `PASTE_METHODS`.
        region: (H, W), the only pixels that may differ from the picture before; bars of a letterboxed one besides, see
            `framed`.
    """

    image: Picture
    mask: Mask
    label: int
    kind: str
    method: str
    region: Mask


def checked_picture(image: Picture, name: str = "image") -> Picture:
    """The picture itself, if it is RGB uint8 (H, W, 3).

    Raises:
        EditError: another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise EditError("wrong input", f"{name} must be RGB uint8 (H, W, 3), got {image.dtype} {image.shape}")
    return image


def checked_mask(mask: Mask, image: Picture, name: str = "mask") -> Mask:
    """The mask itself, if it has its picture's size and holds some defect but leaves surroundings.

    Raises:
        EditError: another shape or type than bool (H, W), an empty mask, or one above `MOST` of the picture.
    """
    if mask.dtype != np.bool_ or mask.shape != image.shape[:2]:
        raise EditError(
            "wrong input", f"{name} must be bool {image.shape[:2]} as its picture, got {mask.dtype} {mask.shape}"
        )
    if not mask.any():
        raise EditError("empty mask", f"{name} has no defect pixel; expected at least one")
    return uncovered(mask, name)


def uncovered(mask: Mask, name: str = "mask") -> Mask:
    """The mask itself, if it leaves enough of the picture.

    Raises:
        EditError: more than `MOST` of the picture.
    """
    if mask.mean() > MOST:
        raise EditError("covers the picture", f"{name} takes {mask.mean():.0%} of it; expected at most {MOST:.0%}")
    return mask


def checked_method(method: str, methods: dict) -> str:
    """The method itself, if it is one of `methods`.

    Raises:
        EditError: unknown.
    """
    if method not in methods:
        raise EditError("wrong input", f"method must be one of {', '.join(methods)}, got '{method}'")
    return method


def rim(size: tuple[int, ...]) -> int:
    """Pixels around a defect mask that are healed with it, 1 to 3: masks drawn by people are not exact."""
    return int(np.clip(round(min(size[:2]) / 64), 1, 3))


def grown(mask: Mask, by: int) -> Mask:
    """The mask dilated by a disc of `by` pixels."""
    if by < 1:
        return mask.copy()
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * by + 1, 2 * by + 1))
    return cv2.dilate(mask.astype(np.uint8), disc, borderValue=0).astype(np.bool_)


def box_of(mask: Mask) -> tuple[slice, slice]:
    """The smallest window (rows, columns) that holds a non-empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def widened(window: tuple[slice, slice], by: int, size: tuple[int, ...]) -> tuple[slice, slice]:
    """A window with `by` pixels more on each side, as far as the picture goes."""
    rows, columns = (
        slice(max(0, side.start - by), min(length, side.stop + by))
        for side, length in zip(window, size[:2], strict=True)
    )
    return rows, columns


# --- Edits of letterboxed pictures


def framed(edit: Edit, size: tuple[int, int], place: tuple[slice, slice]) -> Edit:
    """The edit of a part as one of the whole input, its bars in the mean colour of the edited part.

    That is how a picture is letterboxed (`transforms.resize_image`). Bars in the colour of the picture before would
    differ from its mean by what the edit took or brought, and so tell the edits that change the label.

    Args:
        edit: of the part (h, w).
        size: of the input (H, W).
        place: rows and columns of the part.
    """
    if edit.mask.shape == size:
        return edit
    whole, mask, region = np.empty((*size, 3), np.uint8), np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    whole[:] = np.rint(edit.image.mean(axis=(0, 1))).astype(np.uint8)
    whole[place], mask[place], region[place] = edit.image, edit.mask, edit.region
    return replace(edit, image=whole, mask=mask, region=region)


# --- How a patch joins its new surroundings


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


# --- How strong a texture is and which way it runs, from the steps between neighbouring pixels.


TURNS = {0: (1, 1), 1: (-1, -1), 4: (1, -1), 5: (-1, 1)}
"""What the turns of `placing` do to the two numbers of a direction; the others repeat them."""
UPRIGHT = 0.4
"""How much better a turned texture must fit: photographs of a part share one direction, and their light has one."""


def grain(picture: Picture, known: Mask | None = None) -> float:
    """Root mean square of the steps between neighbouring pixels of the same row or column, in grey levels."""
    across, down = _steps(picture, known)
    return float(np.sqrt((across @ across + down @ down) / max(1, 2 * across.size)))


def direction(picture: Picture, known: Mask | None = None) -> NDArray[np.float32]:
    """Which way a texture runs: cosine and sine of twice its angle times how far it has one direction, (2,).

    From the structure tensor: (1, 0) is upright stripes, (-1, 0) level ones, (0, 0) no direction.
    """
    across, down = _steps(picture, known)
    total = max(float(across @ across + down @ down), 1e-6)
    return np.array([across @ across - down @ down, 2 * (across @ down)], dtype=np.float32) / np.float32(total)


def aligning_turn(target: NDArray[np.float32], source: NDArray[np.float32]) -> int:
    """The turn (see `placing`) that brings a source's direction closest to the target's; 0 unless another helps."""
    misfit = {turn: float(np.hypot(*(source * signs - target))) for turn, signs in TURNS.items()}
    best = min(misfit, key=lambda turn: misfit[turn])
    return best if misfit[best] < misfit[0] - UPRIGHT else 0


def _steps(picture: Picture, known: Mask | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Differences to the right and downwards at the pixels where all three are known."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    known = np.ones(grey.shape, dtype=np.bool_) if known is None else known
    seen = known[:-1, :-1] & known[:-1, 1:] & known[1:, :-1]
    corner = grey[:-1, :-1]
    return (grey[:-1, 1:] - corner)[seen], (grey[1:, :-1] - corner)[seen]


# --- Where things go


TRIES = 40
"""Random places tried before all of them are looked at: most shapes find one at once."""
JOIN = 3
"""Pieces of a mask at most about twice as many pixels apart are one piece."""


def pieces(mask: Mask) -> Iterator[Mask]:
    """The connected pieces of a mask, (H, W) each; near ones count as one."""
    count, labels = cv2.connectedComponents(grown(mask, JOIN).astype(np.uint8))
    return (mask & (labels == number) for number in range(1, count))


def halves(piece: Mask) -> tuple[Mask, Mask]:
    """A piece cut across the longer side of its box, (H, W) each."""
    rows, columns = box_of(piece)
    first = np.zeros_like(piece)
    if rows.stop - rows.start >= columns.stop - columns.start:
        first[: (rows.start + rows.stop) // 2] = True
    else:
        first[:, : (columns.start + columns.stop) // 2] = True
    return piece & first, piece & ~first


def longer_side(mask: Mask) -> int:
    """Length in pixels of the longer side of a mask's box."""
    return max(side.stop - side.start for side in box_of(mask))


def moved_mask(mask: Mask, rng: Generator, *, avoid: Mask) -> Mask:
    """The same shape at another place of the same picture, wholly inside it and off `avoid`, (H, W).

    Every free place is equally likely.

    Raises:
        EditError: no free place.
    """
    shape = mask[box_of(mask)]
    moved = np.zeros_like(mask)
    moved[place(shape, mask.shape, rng, avoid=avoid)] = shape
    return moved


def place(shape: Mask, size: tuple[int, ...], rng: Generator, *, avoid: Mask | None = None) -> tuple[slice, slice]:
    """A window for `shape` (h, w) in a picture of `size`, uniformly among those where it is off `avoid` (H, W).

    Raises:
        EditError: the shape is larger than the picture, or there is no free place.
    """
    require_fit(shape, size)
    (height, width), rows, columns = shape.shape, size[0] - shape.shape[0] + 1, size[1] - shape.shape[1] + 1
    for _ in range(TRIES):
        top, left = int(rng.integers(rows)), int(rng.integers(columns))
        window = slice(top, top + height), slice(left, left + width)
        if avoid is None or not (avoid[window] & shape).any():
            return window
    free = np.flatnonzero(overlap(avoid, shape) < 0.5) if avoid is not None else np.arange(rows * columns)
    if not len(free):
        raise EditError("no free place", f"a shape of {height}x{width} pixels fits nowhere off what it must avoid")
    top, left = divmod(int(free[rng.integers(len(free))]), columns)
    return slice(top, top + height), slice(left, left + width)


def overlap(plane: NDArray, shape: NDArray) -> NDArray[np.float32]:
    """Sum of plane x shape at every place of the shape inside the plane, (H - h + 1, W - w + 1)."""
    return cv2.matchTemplate(plane.astype(np.float32), shape.astype(np.float32), cv2.TM_CCORR)  # type: ignore[return-value]


def turned(array: NDArray, turn: int) -> NDArray:
    """The array turned and mirrored, see above."""
    array = np.rot90(array, turn % 4)
    return np.ascontiguousarray(array[:, ::-1] if turn >= 4 else array)


def drawn_turn(shape: Mask, size: tuple[int, ...], rng: Generator) -> int:
    """One of the turns with which the shape's box fits into a picture of `size`.

    Raises:
        EditError: the shape is larger than the picture either way.
    """
    fits = [height <= size[0] and width <= size[1] for height, width in (shape.shape, shape.shape[::-1])]
    if not any(fits):
        require_fit(shape, size)
    return int(rng.choice([turn for turn in range(8) if fits[turn % 2]]))


def require_fit(shape: Mask, size: tuple[int, ...]) -> None:
    """Raise an `EditError` unless the shape's box fits into a picture of `size` as it stands."""
    (height, width), (rows, columns) = shape.shape, size[:2]
    if height > rows or width > columns:
        raise EditError("larger than the picture", f"a shape of {height}x{width} pixels, a picture of {rows}x{columns}")


# --- What to fill a hole with


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


# --- Healing


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
