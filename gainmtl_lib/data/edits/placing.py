"""Where things go: the pieces of a mask, free places of a shape, its turns.

H x W size of the picture, h x w of a shape. `turn` is a number of quarter turns (0 to 3), mirrored from 4 to 7.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.data.edits.edit import EditError, Mask, box_of, grown

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
