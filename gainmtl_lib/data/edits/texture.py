"""How strong a texture is and which way it runs, from the steps between neighbouring pixels.

h x w picture; `known` (h, w) are the pixels to look at, None is all.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from gainmtl_lib.data.edits.edit import Mask, Picture

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
