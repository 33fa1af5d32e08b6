"""Small pictures for a page: a part with its mask's outline, a map laid over it, a figure; all as data URIs.

Sizes: h x w map cells, H x W pixels as shown.
"""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gainmtl_lib.data.loading import Picture
from gainmtl_lib.explain.plots import HEAT

SIDE = 192
"""Pixels of the longer side."""

STRENGTH = 0.6
OUTLINE_RGB = (0, 229, 255)
JPEG_QUALITY = 82


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) scaled so that the longer one is `SIDE`."""
    scale = SIDE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def picture_uri(picture: Picture) -> str:
    """The part as the network sees it, with its mask's outline."""
    return _jpeg(_outlined(_fitted(picture.image), picture))


def map_uri(values: NDArray, size: tuple[int, int], picture: Picture | None) -> str:
    """A map in colour over the greyed part, or alone.

    Args:
        values: in [0, 1], (h, w); enlarged bilinearly, as the metrics see it.
        size: of the network's input.
        picture: None where it is not at hand.
    """
    size = shown_size(size)
    tensor = torch.tensor(np.asarray(values, dtype=np.float32))[None, None]
    full = F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0, 0].clamp(0, 1).numpy()
    heat = colormaps[HEAT](full)[..., :3] * 255
    if picture is None:
        return _jpeg(np.rint(heat).astype(np.uint8))
    grey = cv2.cvtColor(_fitted(picture.image), cv2.COLOR_RGB2GRAY)[..., None]
    blended = np.rint((1 - STRENGTH) * grey + STRENGTH * heat).astype(np.uint8)
    return _jpeg(_outlined(blended, picture))


def figure_uri(figure: Figure) -> str:
    """A figure as SVG, which prints sharp; the same bytes each time."""
    buffer = BytesIO()
    with rc_context({"svg.hashsalt": "gainmtl", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{b64encode(buffer.getvalue()).decode()}"


def _fitted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = shown_size((image.shape[0], image.shape[1]))
    mode = cv2.INTER_AREA if image.shape[0] > height else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=mode), dtype=np.uint8)


def _outlined(shown: NDArray[np.uint8], picture: Picture) -> NDArray[np.uint8]:
    if picture.mask is None:
        return shown
    mask = cv2.resize(picture.mask, (shown.shape[1], shown.shape[0]), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(shown.copy(), contours, -1, OUTLINE_RGB, 1), dtype=np.uint8)


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    coded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return f"data:image/jpeg;base64,{b64encode(coded.tobytes()).decode()}"
