"""A defect healed or pasted, and the controls of both: the same operation with the label unchanged.

H x W size of the picture, h x w of a window in it. Masks are bool (H, W), pictures RGB uint8 (H, W, 3).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.labels import Pixels, Place
from gainmtl_lib.pictures import Mask

MOST = 0.5  # share of the picture that an edit may touch: beyond it the surroundings no longer say what belongs there


class EditError(ValueError):
    """An edit that is impossible here, for a `reason` to count by (such as ``no free place``) and a detail to read."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that a loader's worker process can send it pickled
        self.reason = reason

    def __str__(self) -> str:
        return ": ".join(self.args)


@dataclass(frozen=True)
class Edit:
    """A picture after an edit."""

    image: Pixels
    mask: Mask  # defect pixels; all False where no defect is left
    label: int  # 0 normal, 1 defective
    kind: str  # heal, paste, heal_spot, paste_clean, repaste or heal_beside
    method: str  # one of `HEAL_METHODS` or `PASTE_METHODS`
    region: Mask  # the only pixels that may differ from before; the bars of a letterboxed picture besides


def framed(edit: Edit, size: tuple[int, int], place: Place) -> Edit:
    """The edit of a part at `place` as one of the whole input (H, W), its bars in the mean colour of the edited part.

    So a picture is letterboxed (`labels.resize_image`): bars in the mean colour from before would tell the edit.
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
CONTEXT = 12  # pixels around a piece that inpainting and cloning look at
REACH = 64  # pixels around a part of a hole within which a picture is searched for a source
PARTS = 4  # a source is at most the picture's shorter side / 4 long: larger ones seldom fit on all sides
COARSE = (2.0, 10.0)  # least and largest sigma in pixels of the Gaussian that tells the grain from the shading
JOIN = 3  # pieces of a mask at most about twice as many pixels apart are one piece


def heal(image: Pixels, mask: Mask, *, method: str, rng: Generator) -> Edit:
    """Take a picture's defects away, with them a rim of 1 to 3 pixels, softly: label 0, empty mask.

    `rng` decides among about equally good sources. An `EditError` for a mask that is empty or above half of the
    picture, and where there is no source.
    """
    check_mask(mask)
    region = grown(mask, rim(mask.shape))
    healed = filled(image, region, taken=region, method=method, rng=rng)
    return Edit(healed, np.zeros_like(mask), 0, "heal", method, region)


def heal_spot(image: Pixels, shape: Mask, *, method: str, rng: Generator) -> Edit:
    """Control of healing: a spot of a normal picture, shaped like some defect's mask of any size; label 0."""
    return replace(heal(image, placed_at_random(shape, image, rng), method=method, rng=rng), kind="heal_spot")


def heal_beside(image: Pixels, mask: Mask, *, method: str, rng: Generator) -> Edit:
    """Control of healing: a spot shaped like the picture's defect, beside it; label 1, mask and defect as before."""
    check_mask(mask)
    width = rim(mask.shape)
    shape, spot = mask[box_of(mask)], np.zeros_like(mask)
    spot[place(shape, mask.shape, rng, avoid=grown(mask, width + RING))] = shape
    region = grown(spot, width)
    healed = filled(image, region, taken=region | grown(mask, width), method=method, rng=rng)
    return Edit(healed, mask.copy(), 1, "heal_beside", method, region)


def filled(image: Pixels, region: Mask, *, taken: Mask, method: str, rng: Generator) -> Pixels:
    """The picture with a region replaced, each connected piece of it (near ones are one) from sources of its own.

    `taken`, the region and every defect, must not be learnt from.
    """
    check_mask(region, "the region to heal")
    result = image.copy()
    count, labels = cv2.connectedComponents(grown(region, JOIN).astype(np.uint8))
    for number in range(1, count):
        piece = region & (labels == number)
        around = widened(box_of(piece), REACH + CONTEXT, image.shape)
        patches = patchwork(image[around], piece[around], taken[around], longest=min(image.shape[:2]) // PARTS, rng=rng)
        window = widened(box_of(piece[around]), CONTEXT, patches.shape)
        here, hole, fill = image[around][window], piece[around][window], patches[window]
        if method != "patch_same":
            flag = cv2.INPAINT_NS if method == "navier_stokes" else cv2.INPAINT_TELEA
            smooth = cv2.inpaint(here, taken[around][window].astype(np.uint8), 3, flag)
            if method == "clone_same":
                fill = clone(fill, smooth, hole)  # into the smooth: the boundary must not be the defect's colour
            else:  # inpainting alone leaves a smooth blob on a grainy surface
                depth = cv2.distanceTransform(hole.astype(np.uint8), cv2.DIST_L2, 3).max()
                fill = fill + cv2.GaussianBlur(smooth - fill, (0, 0), float(np.clip(depth / 2, *COARSE)))
        result[around][window][hole] = blend(fill, here, outer_weights(hole, rim(image.shape)))[hole]
    return result


# --- What to fill a hole with

BEST = 6  # sources to draw from: the best few, so that one picture is not always healed alike
SMALLEST = 8  # parts of a hole with no longer side than this are not cut again


def patchwork(image: Pixels, hole: Mask, taken: Mask, *, longest: int, rng: Generator) -> NDArray[np.float32]:
    """The picture with its hole (H, W), and a ring around it, filled with patches of its other parts, float (H, W, 3).

    A part of the hole, at most `longest` pixels long, is found by what surrounds it, filled parts included, as in
    exemplar-based inpainting (Criminisi, Perez and Toyama 2004, doi:10.1109/TIP.2004.833105). A part without a source
    is cut in two; an `EditError` where not even the smallest has one.
    """
    seen, unknown = image.astype(np.float32), taken.copy()
    result, painted = seen.copy(), np.zeros_like(hole)
    parts = list(_parts(hole, max(longest, SMALLEST)))

    def known_around(part: Mask) -> float:
        window = widened(box_of(part), 1, part.shape)
        around = grown(part[window], 1) & ~part[window]
        return (around & ~unknown[window]).sum() / max(1, around.sum())

    while parts:
        part = parts.pop(int(np.argmax([known_around(one) for one in parts])))  # what is known best goes on first
        window = widened(box_of(part), RING, image.shape)
        inside, wide = part[window], grown(part[window], RING)
        ring = wide & ~inside & ~unknown[window]
        try:
            patch = _best(seen[window], inside, ring, image, taken, window, rng)
        except EditError:
            if longer_side(part) <= SMALLEST:
                raise
            parts += _parts(part, longer_side(part) // 2 + 1)
            continue
        patch = matched(patch, seen[window], ring, contrast=1.0)
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
    box = box_of(piece)
    axis = int(np.argmax([side.stop - side.start for side in box]))
    first = np.indices(piece.shape)[axis] < (box[axis].start + box[axis].stop) // 2
    yield from _parts(piece & first, longest)
    yield from _parts(piece & ~first, longest)


def _best(
    target: NDArray, inside: Mask, ring: Mask, image: Pixels, taken: Mask, window: Place, rng: Generator
) -> NDArray:
    """One of the patches (h, w, 3) near a window that resemble the target most on the ring and show nothing taken.

    By the sum of squares of their difference over the ring in grey, less that of its mean.
    """
    there = []
    for side, length in zip(window, taken.shape):
        wide = side.stop + REACH - max(0, side.start - REACH)  # at the picture's end too
        start = max(0, min(side.start - REACH, length - wide))
        there.append(slice(start, start + wide))
    picture, taken, (height, width) = image[tuple(there)], taken[tuple(there)], inside.shape
    grey, grey_picture = (cv2.cvtColor(np.ascontiguousarray(one), cv2.COLOR_RGB2GRAY) for one in (target, picture))
    level = float(grey[ring].mean()) if ring.any() else 0.0
    here = np.where(ring, grey - level, 0).astype(np.float32)
    near = grey_picture.astype(np.float32) - level  # small numbers: the sums are float32
    sums, squares = overlap(near, ring), overlap(near * near, ring)
    spread = squares - 2 * overlap(near, here) + float((here * here).sum())
    score = spread - (sums - float(here.sum())) ** 2 / max(1, int(ring.sum()))
    score = np.where(overlap(taken, inside | ring) > 0.5, np.inf, score).ravel()
    count = min(BEST, int(np.isfinite(score).sum()))
    if not count:
        raise EditError("no free place", f"no other {height}x{width} pixels to take from")
    best = np.argpartition(score, count - 1)[:count]
    best = best[np.lexsort((best, score[best]))]
    top, left = divmod(int(best[rng.integers(count)]), taken.shape[1] - width + 1)
    return picture[top : top + height, left : left + width]


# --- Pasting and its controls

PASTE_METHODS = ("copy", "clone", "clone_mixed", "relief")
"""copy: the pixels, brightness matched; clone: their gradients; clone_mixed: the stronger gradient of patch and target;
relief: patch / healed patch on the target, which keeps its texture."""
MARGIN = 8  # pixels around a defect that travel with it, to compare brightness on; they are not pasted
GAP = 2  # pixels between a mask and the ring of its surroundings: the rim of a defect is soft
STEP = 4  # grey levels of 255 below which a change counts as none
CLOSED = 3  # unchanged pixels up to about twice as wide amid changed ones are the defect's: values coincide by chance
SHADING = 8  # what varies over more than the picture's shorter side / 8 is light, not texture
SHIFT, SPREAD = 1.3, 4.2  # bounds of what stands out, in standard deviations of the texture
RATIO = (0.1, 10.0)  # least and largest brightness of a relief


def paste(image: Pixels, donor_image: Pixels, donor_mask: Mask, *, method: str, rng: Generator) -> Edit:
    """Set the defect of a donor of any size into a picture, turned, mirrored and moved at random: label 1.

    The mask holds the pixels that changed visibly, inside the moved donor mask. An `EditError` for an unusable mask, a
    defect larger than the picture, and where nothing visible is left of it.
    """
    check_mask(donor_mask, "donor_mask")
    after, region = _pasted_at_random(image, cut(donor_image, donor_mask), method, rng)
    if not stands_out(image, after, region):
        raise EditError("too faint", "the pasted defect does not stand out from the texture there")
    changed = ((cv2.absdiff(after, image).max(-1) >= STEP) & region).astype(np.uint8)
    mask = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, _disc(CLOSED)).astype(np.bool_) & region
    return Edit(after, mask, 1, "paste", method, region)


def paste_clean(image: Pixels, clean: Pixels, shape: Mask, *, method: str, rng: Generator) -> Edit:
    """Control of pasting: a patch of another normal picture, shaped like some defect, in a normal picture; label 0."""
    after, region = _pasted_at_random(image, cut(clean, placed_at_random(shape, clean, rng)), method, rng)
    if stands_out(image, after, region):
        raise EditError("stands out", "the clean patch differs from its surroundings as much as a defect would")
    return Edit(after, np.zeros_like(region), 0, "paste_clean", method, region)


def repaste(image: Pixels, mask: Mask, *, method: str, rng: Generator) -> Edit:
    """Control of pasting: the picture's defect pasted back where it was cut out and healed; label 1, mask as before."""
    background = heal(image, mask, method="telea", rng=rng).image
    background[~mask] = image[~mask]
    after, _ = _pasted(background, cut(image, mask), box_of(mask), method)
    to_defect, to_healed = (np.abs(after[mask].astype(np.float32) - one[mask]).mean() for one in (image, background))
    if to_defect > to_healed:
        raise EditError("too faint", "the defect pasted back resembles the healed place more than the defect")
    return Edit(after, mask.copy(), 1, "repaste", method, mask.copy())


class Patch(NamedTuple):
    """A defect, or a defect's shape, cut out with `MARGIN` pixels around it, (h, w)."""

    image: Pixels  # filled smoothly where its picture ended
    shape: Mask  # pixels to paste
    known: Mask  # surroundings that may be compared with: inside the picture, no defect

    @property
    def inner(self) -> Mask:
        """The shape in its own box."""
        return self.shape[MARGIN:-MARGIN, MARGIN:-MARGIN]


def cut(image: Pixels, mask: Mask) -> Patch:
    """What a mask covers, cut out with its surroundings."""
    window = box_of(mask)
    patch = _around(image, window, mode="reflect")
    known, outside = _around(~mask, window), ~_around(np.ones_like(mask), window)
    if outside.any() and known.any():
        # A defect at the picture's border ends there: mirrored, it would have no edge, and a clone of it no contrast.
        patch[outside] = cv2.inpaint(patch, (~known).astype(np.uint8), 3, cv2.INPAINT_TELEA)[outside]
    return Patch(patch, np.pad(mask[window], MARGIN), known)


def _around(plane: NDArray, window: Place, mode: Literal["constant", "reflect"] = "constant") -> NDArray:
    """A window and its surroundings, zero or mirrored where the picture ends."""
    padded = np.pad(plane, [(MARGIN, MARGIN)] * 2 + [(0, 0)] * (plane.ndim - 2), mode=mode)
    rows, columns = (slice(side.start, side.stop + 2 * MARGIN) for side in window)
    return padded[rows, columns].copy()


def _pasted_at_random(image: Pixels, patch: Patch, method: str, rng: Generator) -> tuple[Pixels, Mask]:
    turn = drawn_turn(patch.inner, image.shape, rng)
    patch = Patch(*(turned(part, turn) for part in patch))
    return _pasted(image, patch, place(patch.inner, image.shape, rng), method)


def _pasted(image: Pixels, patch: Patch, window: Place, method: str) -> tuple[Pixels, Mask]:
    """The picture with the patch's shape at a window, and the shape's pixels (H, W), the only ones that may differ."""
    target = _around(image, window, mode="reflect")
    if method == "relief":
        healed = cv2.inpaint(patch.image, grown(~patch.known, GAP - 1).astype(np.uint8), 3, cv2.INPAINT_TELEA)
        joined = target * np.clip((patch.image + 1.0) / (healed + 1.0), *RATIO)
    else:
        near = grown(patch.shape, GAP)
        joined = matched(patch.image, target, grown(near, RING) & ~near & patch.known)
        if method != "copy":
            joined = clone(joined, target, grown(patch.shape, 1), mixed=method == "clone_mixed")
    # 0.75 on the shape's outermost pixels: a thin scratch has no others.
    weights = (np.clip(_depth(patch.shape) + 0.5, 0, 2) / 2 * patch.shape).astype(np.float32)[..., None]
    after, region = image.copy(), np.zeros(image.shape[:2], dtype=np.bool_)
    region[window] = patch.inner
    after[region] = blend(joined, target, weights)[patch.shape]
    return after, region


def stands_out(before: Pixels, after: Pixels, region: Mask) -> bool:
    """Whether the change of a region can be told from the texture in and around it, less its shading.

    Pasting the same surface without a defect stays below both bounds in 99 of 100 synthetic pictures.
    """
    window = widened(box_of(region), MARGIN, region.shape)
    here, side = before[window].astype(np.float32), min(region.shape) // SHADING | 1
    grain = (here - cv2.blur(here, (side, side)))[grown(region[window], MARGIN)]
    texture = max(float(grain.std(0).mean()), STEP)
    difference = after[region].astype(np.float32) - before[region]
    shift, spread = np.abs(difference.mean(0)).max(), np.sqrt((difference**2).mean())
    return bool(shift >= SHIFT * texture or spread >= SPREAD * texture)


# --- Masks and windows


def rim(size: tuple[int, ...]) -> int:
    """Pixels around a defect mask that are healed with it: masks drawn by people are not exact."""
    return int(np.clip(round(min(size[:2]) / 64), 1, 3))


def _disc(radius: int) -> NDArray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def grown(mask: Mask, by: int) -> Mask:
    """The mask dilated by a disc of `by` pixels."""
    return cv2.dilate(mask.astype(np.uint8), _disc(by), borderValue=0).astype(np.bool_)


def box_of(mask: Mask) -> Place:
    """The smallest window (rows, columns) that holds a non-empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def longer_side(mask: Mask) -> int:
    """Length in pixels of the longer side of a mask's box."""
    return max(side.stop - side.start for side in box_of(mask))


def widened(window: Place, by: int, size: tuple[int, ...]) -> Place:
    """A window with `by` pixels more on each side, as far as the picture goes."""
    rows, columns = (slice(max(0, s.start - by), min(length, s.stop + by)) for s, length in zip(window, size[:2]))
    return rows, columns


# --- Where things go

TRIES = 40  # random places tried before all of them are looked at: most shapes find one at once


def placed_at_random(shape: Mask, image: Pixels, rng: Generator) -> Mask:
    """A shape, the mask of some defect, somewhere in a picture, turned and mirrored at random, (H, W)."""
    shape = shape[box_of(shape)]
    shape = turned(shape, drawn_turn(shape, image.shape, rng))
    spot = np.zeros(image.shape[:2], dtype=np.bool_)
    spot[place(shape, image.shape, rng)] = shape
    return spot


def place(shape: Mask, size: tuple[int, ...], rng: Generator, *, avoid: Mask | None = None) -> Place:
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

RING = 4  # width in pixels of the surroundings that brightness and texture are compared on
GAIN = 2.0  # a patch's contrast is raised at most this much: more would show its noise
ERODED = 3  # pixels by which `cv2.seamlessClone` erodes its mask, which is grown by as many: edges come along


def outer_weights(region: Mask, width: int) -> NDArray:
    """Weights (h, w, 1) for a mask `grown` by `width` pixels to `region`: 1 on the mask, falling to 0 outside."""
    # The nearest pixel outside OpenCV's disc of radius n lies n across and 1 down.
    return np.clip(_depth(region) / np.float32(np.hypot(width, 1) - 1e-4), 0, 1)[..., None]


def _depth(region: Mask) -> NDArray:
    """Distance in pixels to the nearest pixel outside; beyond the window's edge counts as inside."""
    return cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def matched(patch: NDArray, target: NDArray, ring: Mask, *, contrast: float | None = None) -> NDArray[np.float32]:
    """The patch with each channel's mean over the ring (h, w) brought to the target's, float (h, w, 3).

    Its differences from that mean are multiplied by `contrast`; None follows the brightness, because light
    multiplies, within `GAIN`. An empty ring leaves the patch as it is.
    """
    patch = patch.astype(np.float32)
    if not ring.any():
        return patch
    there, here = patch[ring].mean(0), target[ring].astype(np.float32).mean(0)
    gain = np.clip((here + 1) / (there + 1), 1 / GAIN, GAIN) if contrast is None else contrast
    return (patch - there) * gain + here


def blend(patch: NDArray, target: Pixels, weights: NDArray) -> Pixels:
    """Weighted mean of patch and target, rounded to uint8."""
    return _bytes(target + weights * (patch.astype(np.float32) - target))


def clone(patch: NDArray, target: NDArray, region: Mask, *, mixed: bool = False) -> Pixels:
    """The patch's gradients within the region, set into the target (Perez, Gangnet and Blake 2003).

    `cv2.seamlessClone` moves the patch by the middle of its mask's box, erodes the mask, and wants space around it:
    both sides are padded alike, so that they stay aligned. The boundary that the result meets is the target under the
    region's outer rim. `mixed` takes the stronger gradient of the two: of an isolated spot it keeps half.
    """
    pad = 2 * ERODED + 2
    wide = grown(np.pad(region, pad), ERODED + 1).astype(np.uint8) * 255
    x, y, width, height = cv2.boundingRect(wide)
    source, base = (np.pad(_bytes(each), ((pad, pad), (pad, pad), (0, 0)), "symmetric") for each in (patch, target))
    flag = cv2.MIXED_CLONE if mixed else cv2.NORMAL_CLONE
    return _bytes(cv2.seamlessClone(source, base, wide, (x + width // 2, y + height // 2), flag)[pad:-pad, pad:-pad])


def _bytes(picture: NDArray) -> Pixels:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
