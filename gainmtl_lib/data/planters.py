"""Cues on photographs: which can be planted, how, and where a picture leaves room for one.

H x W size of a photograph on disk.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.data import cue_drawing
from gainmtl_lib.data.findings import DataError, Finding, raise_errors
from gainmtl_lib.data.images import UnreadableError, read_image, read_mask
from gainmtl_lib.data.transforms import resize_mask, same_aspect

logger = logging.getLogger(__name__)

NO_PLACE, NO_MASK = "the defect covers every place", "no mask says where the defect is"
NAMED = 8
"""Files that a message names; the dataset's record holds all."""

Place = Any
"""Where a cue goes, as its drawing names it: a corner, a side, or None for the whole picture."""


@dataclass(frozen=True)
class Planter:
    """One kind of cue on photographs.

    Attributes:
        free: places that the defect's pixels (H, W) leave.
        draw: changes a picture (H, W, 3) in [0, 1] in place, and returns the pixels (H, W) that the cue takes.
    """

    free: Callable[[NDArray[np.bool_]], list[Place]]
    draw: Callable[[NDArray[np.floating], Place, Generator], NDArray[np.bool_]]


def _mark(picture: NDArray[np.floating], corner: Place, rng: Generator) -> NDArray[np.bool_]:
    return cue_drawing.plant_mark(picture, corner, rng.uniform(0, 90))


def _lighting(picture: NDArray[np.floating], _: Place, rng: Generator) -> NDArray[np.bool_]:
    cue_drawing.light_from(picture, rng.uniform(0, 2 * np.pi), cue_drawing.STRONG_LIGHT)
    return np.ones(picture.shape[:2], dtype=np.bool_)


PLANTERS: dict[str, Planter] = {
    "mark": Planter(cue_drawing.free_corners, _mark),
    "lighting": Planter(lambda _: [None], _lighting),
    "border": Planter(cue_drawing.free_sides, cue_drawing.draw_border),
}
"""Without the texture cue: a photograph's surface is what it shows."""


def planter_of(cue: str) -> Planter:
    """How a cue is planted.

    Raises:
        DataError: it cannot be.
    """
    if cue not in PLANTERS:
        why = " (a photograph's surface is what it shows)" if cue == "texture" else ""
        raise DataError(f"cue '{cue}' cannot be planted into photographs{why}; choose among {', '.join(PLANTERS)}")
    return PLANTERS[cue]


@dataclass
class Survey:
    """What a pass over the photographs found.

    Attributes:
        places: by row, the free places of each picture that can be decoded; none where it cannot carry a cue.
        without: files that cannot carry a cue, by reason; paths below the common folder.
    """

    places: dict[int, list[Place]] = field(default_factory=dict)
    without: dict[str, list[str]] = field(default_factory=dict)


def survey_places(samples: pd.DataFrame, planter: Planter, *, skip_unreadable: bool) -> Survey:
    """Decode every picture and mask once, and see where a cue could go.

    A normal picture has every place; so has none a defective one without mask, whose defect may be anywhere.

    Args:
        samples: table of samples.
        planter: of the cue.
        skip_unreadable: leave out samples that cannot be decoded, with a warning for each.

    Raises:
        DataError: files that cannot be decoded, or masks of another aspect ratio; all are named.
    """
    survey, findings = Survey(), []

    def look(row: Mapping[str, Any]) -> tuple[list[Place], str] | Finding:
        try:
            defect = defect_pixels(row)
        except UnreadableError as error:
            advice = "" if skip_unreadable else ", or leave it out with skip_unreadable: true"
            return Finding("warning" if skip_unreadable else "error", "", f"{error}{advice}")
        except DataError as error:
            return Finding("error", "", str(error))
        return ([], NO_MASK) if defect is None else (planter.free(defect), NO_PLACE)

    rows, base = records(samples), common_folder(samples)
    with ThreadPoolExecutor() as pool:
        for number, (row, found) in enumerate(zip(rows, pool.map(look, rows), strict=True)):
            if isinstance(found, Finding):
                findings.append(found)
                continue
            survey.places[number], reason = found
            if not survey.places[number]:
                survey.without.setdefault(reason, []).append(Path(row["image"]).relative_to(base).as_posix())
    raise_errors(findings)
    for finding in findings:
        logger.warning("left out: %s", finding)
    for reason, files in survey.without.items():
        more = f" … and {len(files) - NAMED} more" if len(files) > NAMED else ""
        logger.warning("%d pictures carry no cue (%s): %s%s", len(files), reason, ", ".join(files[:NAMED]), more)
    return survey


def records(samples: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table of samples, one dictionary each."""
    return cast(list[dict[str, Any]], samples.to_dict("records"))


def common_folder(samples: pd.DataFrame) -> Path:
    """The deepest folder that all pictures lie below."""
    return Path(os.path.commonpath([os.path.dirname(image) for image in samples["image"]]))


def defect_pixels(row: Mapping[str, Any]) -> NDArray[np.bool_] | None:
    """Defect pixels (H, W) at the picture's own size: none of a normal picture, None where no mask tells.

    Raises:
        UnreadableError: picture or mask cannot be decoded.
        DataError: the mask has another aspect ratio than its picture.
    """
    height, width = read_image(row["image"]).shape[:2]
    if row["label"] == 0:
        return np.zeros((height, width), dtype=np.bool_)
    if row["mask"] is None:
        return None
    mask = read_mask(row["mask"])
    if not same_aspect((mask.shape[0], mask.shape[1]), (height, width)):
        raise DataError(
            f"{row['mask']}: mask is {mask.shape[0]}x{mask.shape[1]} (height x width), its image {row['image']} "
            f"{height}x{width}; expected the same aspect ratio"
        )
    return resize_mask(mask, (height, width), "squash") if mask.any() else None
