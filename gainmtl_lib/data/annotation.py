"""Fewer and coarser training masks, to learn what annotation is worth: in memory, at the network's size.

Files and their digest, validation and test stay as they are. N samples, H x W network input.
"""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
MaskQuality = Literal["exact", "box", "dilated", "shifted"]

STREAM = 11
"""Sets these draws apart from others of the same seed. Not 0: NumPy takes the seeds [7] and [7, 0] for one."""


def annotated_defects(samples: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows are training defects with a mask, (N,)."""
    return ((samples["split"] == "train") & (samples["label"] == 1) & samples["mask"].notna()).to_numpy(dtype=bool)


def with_mask_share(samples: pd.DataFrame, share: float, *, seed: int) -> pd.DataFrame:
    """The table in which only a share of the training defects keeps its masks; the others have none.

    The order in which masks are given up follows from the seed alone, so that shares are nested: the masks of 5 %
    are among those of 25 %. Each defect type gives up about the same share. At least one mask stays, unless
    `share` is 0.

    Args:
        samples: with their splits.
        share: of the annotated training defects, in [0, 1].
        seed: of the order.
    """
    rows = np.flatnonzero(annotated_defects(samples))
    count = max(int(share > 0), round(share * len(rows)))
    order = rows[stratified_order(samples["defect_type"].to_numpy()[rows], np.random.default_rng([seed, STREAM]))]
    masks = samples["mask"].to_numpy(dtype=object, copy=True)
    masks[order[count:]] = None
    return samples.assign(mask=pd.Series(masks, index=samples.index, dtype=object))


def stratified_order(types: NDArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """Places of the items, such that every beginning of the list holds about the same share of each type."""
    mixed = rng.permutation(len(types))
    passed = np.empty(len(types))  # share of its type that comes before an item
    for name in sorted(set(types)):
        of_type = mixed[types[mixed] == name]
        passed[of_type] = (np.arange(len(of_type)) + 0.5) / len(of_type)
    return mixed[np.argsort(passed[mixed], kind="stable")]


def coarser_mask(mask: Mask, quality: MaskQuality, rng: np.random.Generator) -> Mask:
    """A mask as a hastier annotator would have drawn it, (H, W); never empty where `mask` is not.

    ``box``: the filled bounding box of each connected piece; boxes that overlap or touch are merged into one.
    ``dilated``: each piece grown by half its own size on all sides, size being the side of a square of its area.
    Small and large defects are then drawn equally generously (a square becomes four times as large); a margin that
    is a share of the picture would bury the small ones and leave the large ones as they are.
    ``shifted``: the whole mask moved by the size of its largest piece in a random direction, so that the mask of a
    compact defect lies beside it; by half of that, a quarter, … where most of the mask would leave the picture.

    Args:
        mask: defect pixels.
        quality: which of these; ``exact`` changes nothing.
        rng: draws the direction.
    """
    if quality not in get_args(MaskQuality):
        raise ValueError(f"mask quality must be one of {', '.join(get_args(MaskQuality))}, got {quality!r}")
    if quality == "exact" or not mask.any():
        return mask
    if quality == "box":
        return _boxed(mask)
    return _dilated(mask) if quality == "dilated" else _shifted(mask, rng)


def _pieces(mask: Mask) -> list[tuple[int, int, int, int, int]]:
    """Left, top, width, height and area of each connected piece; pieces that touch at a corner are one."""
    stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2]
    return [tuple(int(value) for value in row) for row in stats[1:]]  # type: ignore[misc]


def _boxed(mask: Mask) -> Mask:
    boxes = mask.copy()
    for left, top, width, height, _ in _pieces(mask):
        boxes[top : top + height, left : left + width] = True
    return boxes if np.array_equal(boxes, mask) else _boxed(boxes)  # boxes that meet are boxed once more


def _dilated(mask: Mask) -> Mask:
    grown = mask.copy()
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    for piece in range(1, count):
        apart = cv2.distanceTransform((labels != piece).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        grown |= apart <= max(1.0, np.sqrt((labels == piece).sum()) / 2)
    return grown


def _shifted(mask: Mask, rng: np.random.Generator) -> Mask:
    distance, area = np.sqrt(max(piece[4] for piece in _pieces(mask))), mask.sum()
    while True:
        for angle in rng.uniform(0, 2 * np.pi, size=8):
            down, right = round(distance * np.sin(angle)), round(distance * np.cos(angle))
            moved = _moved(mask, down, right)
            if moved.sum() >= area / 2:
                return moved
        distance /= 2


def _moved(mask: Mask, down: int, right: int) -> Mask:
    """The mask moved by whole pixels; what leaves the picture is lost."""
    rows, columns = mask.nonzero()
    rows, columns = rows + down, columns + right
    inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
    moved = np.zeros_like(mask)
    moved[rows[inside], columns[inside]] = True
    return moved
