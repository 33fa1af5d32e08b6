"""Small pictures for a page: a part with its mask's outline, a map laid over it, a figure; all as data URIs.

Sizes: H x W pixels of the network's input.
"""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gainmtl_lib.data.loading import Picture
from gainmtl_lib.explain.drawing import compose, encode, fitted, inferno, one_thread
from gainmtl_lib.explain.picture_files import resized, resized_mask

SIDE = 192
"""Pixels of the longer side."""

JPEG_QUALITY = 82


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) scaled so that the longer one is `SIDE`."""
    scale = SIDE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@one_thread()
def picture_uri(picture: Picture) -> str:
    """The part as the network sees it, with its mask's outline."""
    pixels, mask = _small(picture)
    return _jpeg(compose(pixels, mask=mask))


@one_thread()
def map_uri(share: NDArray[np.float32], picture: Picture | None) -> str:
    """A map in colour over the greyed part, or alone.

    Args:
        share: the map on its scale, in [0, 1], (H, W).
        picture: None where it is not at hand.
    """
    small = fitted(share, shown_size((share.shape[0], share.shape[1])))
    if picture is None:
        return _jpeg(inferno()[np.rint(small * 255).astype(np.uint8)])
    pixels, mask = _small(picture)
    return _jpeg(compose(pixels, small, mask=mask))


def figure_uri(figure: Figure) -> str:
    """A figure as SVG, which prints sharp; the same bytes each time."""
    buffer = BytesIO()
    with rc_context({"svg.hashsalt": "gainmtl", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{b64encode(buffer.getvalue()).decode()}"


def _small(picture: Picture) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Pixels and mask as shown; however thin the defect is, something of its mask stays."""
    size = shown_size((picture.image.shape[0], picture.image.shape[1]))
    mask = None if picture.mask is None else resized_mask(picture.mask > 0, size)
    return resized(picture.image, size), mask


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    return f"data:image/jpeg;base64,{b64encode(encode(pixels, quality=JPEG_QUALITY)).decode()}"
