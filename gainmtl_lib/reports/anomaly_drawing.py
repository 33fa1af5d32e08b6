"""A scored picture beside its heat map and its ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gainmtl_lib.data.images import read_image
from gainmtl_lib.efficientad.inference import Detector, ScoredPicture
from gainmtl_lib.explain.drawing import compose, enlarged_share, fitted, with_band
from gainmtl_lib.explain.picture_files import resized, resized_mask
from gainmtl_lib.explain.picture_input import read_defect
from gainmtl_lib.explain.regions import Frame

SIDE = 384
"""Longer side of each panel's picture, in pixels."""

NARROWEST = 256
"""Pixels a panel is wide at least, however narrow its picture: the words below must stay readable."""

GAP = 6
"""White pixels between two panels."""


def drawn(detector: Detector, scored: ScoredPicture, mask: Path | None = None) -> NDArray[np.uint8]:
    """Picture, heat map on the detector's scale and, where there is one, ground truth; below them the teacher.

    Args:
        detector: that scored it.
        scored: what it said.
        mask: file of the ground truth, also outlined on the heat map.

    Returns:
        RGB, (height, width, 3).

    Raises:
        DataError: picture or mask cannot be read, or the mask has another aspect ratio than its picture.
    """
    defect = None if mask is None else read_defect(mask, scored.size, str(mask))
    scale = SIDE / max(scored.size)
    shape = max(1, round(scored.size[0] * scale)), max(1, round(scored.size[1] * scale))
    picture, region = resized(read_image(scored.path), shape), resized_mask(defect, shape)
    heat = fitted(_share(detector, scored), shape)
    panels = [
        _panel(picture, _words(detector, scored)),
        _panel(compose(picture, heat, mask=region), f"anomaly map · {detector.scale_name}", bar=True),
    ]
    if region is not None:
        white = np.repeat(region[..., None].astype(np.uint8) * 255, 3, axis=2)
        panels.append(_panel(white, "ground truth"))
    return with_band(_beside(panels), f"EfficientAD · teacher: {detector.teacher}", bar=False)


def _share(detector: Detector, scored: ScoredPicture) -> NDArray[np.float32]:
    """The map in [0, 1], without the bars of a letterbox."""
    height, width = scored.anomaly_map.shape
    frame = Frame.of(scored.size, (height, width), detector.settings.resize)
    return frame.crop(enlarged_share(scored.anomaly_map, detector.scale, (height, width)))


def _words(detector: Detector, scored: ScoredPicture) -> str:
    verdict = detector.verdict(scored.score)
    said = [verdict] if verdict else []
    said += ["anomalous"] if detector.anomalous(scored.score) else []
    return " · ".join([scored.path.name, *said, f"score {scored.score:.4g}"])


def _panel(pixels: NDArray[np.uint8], words: str, *, bar: bool = False) -> NDArray[np.uint8]:
    missing = max(0, NARROWEST - pixels.shape[1])
    sides = (missing // 2, missing - missing // 2)
    return with_band(np.pad(pixels, ((0, 0), sides, (0, 0)), constant_values=255), words, bar=bar)


def _beside(panels: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    gap = np.full((len(panels[0]), GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)
