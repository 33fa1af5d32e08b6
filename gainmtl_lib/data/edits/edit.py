"""What an edit is: the picture, mask and label after it, and the only pixels that may differ from before.

H x W size of the picture. Masks are bool (H, W), pictures RGB uint8 (H, W, 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
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
