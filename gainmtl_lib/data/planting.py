"""A cue planted into photographs: a dataset of any layout becomes one in which a sign goes along with the class.

In train, val and test the cue goes with the defects; in test_shift, which shows the same test photographs, it goes
the other way round: what differs between a test picture and its twin is the cue and nothing else.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.data.cues import FOLDER as CUES
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.images import read_image, read_mask_values
from gainmtl_lib.data.layouts import DEFECTIVE, NORMAL
from gainmtl_lib.data.making import counted, make_once, write_png
from gainmtl_lib.data.planted_names import GROUP_PATTERN, planted_names, shifted
from gainmtl_lib.data.planters import (
    Planter,
    Survey,
    common_folder,
    defect_pixels,
    planter_of,
    records,
    survey_places,
)
from gainmtl_lib.data.samples import data_digest

PLANTING = 1
"""Raised when the same parameters would plant otherwise."""

PARAMETERS_FILE = "planted.yaml"
COLUMNS: tuple[str, ...] = ("image", "defect_type", "group", "has_cue", "place", "source")


@dataclass(frozen=True)
class Copy:
    """One picture to write: its row in the source's table, its split and name, and whether it carries the cue."""

    row: int
    split: str
    name: str
    has_cue: bool


def plant_cue(
    samples: pd.DataFrame,
    out: str | Path,
    *,
    cue: str,
    correlation: float,
    seed: int,
    origin: Mapping[str, Any],
    skip_unreadable: bool = False,
) -> bool:
    """Write a copy of a dataset with a planted cue, in the generic layout; with equal parameters only once.

    In each of train, val and test, round(correlation n) of the n defective pictures carry the cue, and
    round((1 - correlation) n) of the n normal ones, as far as so many can. test_shift shows each test picture once
    more, with the cue where test has it without and the other way round. A defective picture whose defect covers
    every place, or that has no mask, carries none in either. Pictures become PNG, otherwise as they decode;
    `planted.yaml` records the parameters and who carries none, `samples.csv` each picture and its source below the
    source's common folder, ``cues`` the cue's pixels (see `cues`).

    Args:
        samples: table of samples with its split.
        out: folder to write.
        cue: mark, lighting or border.
        correlation: of cue and class, in [0, 1]; at 0.5 the cue tells nothing.
        seed: of the choice of pictures and places.
        origin: how the source was read, as plain values; recorded and compared.
        skip_unreadable: leave out pictures that cannot be decoded, with a warning for each.

    Returns:
        Whether it was written by this call.

    Raises:
        DataError: a cue that cannot be planted, a correlation outside [0, 1], a source with test_shift, files that
            cannot be decoded, masks of another aspect ratio, or a folder that holds something else.
    """
    planter = planter_of(cue)
    if not 0 <= correlation <= 1:
        raise DataError(f"correlation must lie in [0, 1], got {correlation:g}")
    if (samples["split"] == "test_shift").any():
        raise DataError("the source has a test_shift of its own, and planting makes one; remove images/test_shift")
    samples = samples.reset_index(drop=True)
    parameters = {
        "planting": PLANTING,
        "cue": cue,
        "correlation": float(correlation),
        "seed": seed,
        "source_digest": data_digest(samples),
        **origin,
    }

    def write(folder: Path) -> dict[str, Any]:
        survey = survey_places(samples, planter, skip_unreadable=skip_unreadable)
        carriers = choose_carriers(samples, survey, correlation=correlation, seed=seed)
        _write(folder, samples, _copies(samples, survey, carriers), survey, planter, seed)
        read_with = {"dataset_type": "generic", "val_ratio": 0.0, "group_pattern": GROUP_PATTERN}
        return {"read_with": read_with, "carry_none": survey.without}

    return make_once(Path(out), parameters, write, record=PARAMETERS_FILE, what="planted data")


def choose_carriers(samples: pd.DataFrame, survey: Survey, *, correlation: float, seed: int) -> set[int]:
    """Rows that carry the cue in train, val and test: an exact quota of each split and class, as far as so many can.

    Args:
        samples: table of samples with its split, rows numbered.
        survey: of its pictures.
        correlation: share of the defective that carry the cue, and of the normal that do not.
        seed: of the choice.
    """
    chosen: set[int] = set()
    for part, split in enumerate(("train", "val", "test")):
        for label, share in ((0, 1 - correlation), (1, correlation)):
            rows = np.flatnonzero((samples["split"] == split) & (samples["label"] == label))
            shown = [int(row) for row in rows if row in survey.places]
            able = [row for row in shown if survey.places[row]]
            order = np.random.default_rng([seed, part, label]).permutation(len(able))
            chosen |= {able[place] for place in order[: round(share * len(shown))]}
    return chosen


def planted_counts(out: str | Path) -> pd.DataFrame:
    """Pictures of a planted dataset by split and class, and how many of them carry the cue."""
    table = pd.read_csv(Path(out) / "samples.csv")
    folders = table["image"].str.split("/")
    groups = table.assign(split=folders.str[1], kind=folders.str[2]).groupby(["split", "kind"], sort=False)
    counts = groups["has_cue"].agg(["size", "sum"]).rename(columns={"size": "pictures", "sum": "with the cue"})
    return counts.set_axis([f"{split}, {kind}" for split, kind in counts.index])


def _copies(samples: pd.DataFrame, survey: Survey, carriers: set[int]) -> list[Copy]:
    rows = [row for row in range(len(samples)) if row in survey.places]
    shown = samples.iloc[rows]
    names = planted_names(shown["group"].tolist(), [Path(image).stem for image in shown["image"]])
    splits = shown["split"].tolist()
    copies = [Copy(row, split, name, row in carriers) for row, split, name in zip(rows, splits, names, strict=True)]
    twins = [
        Copy(copy.row, "test_shift", shifted(copy.name), bool(survey.places[copy.row]) and not copy.has_cue)
        for copy in copies
        if copy.split == "test"
    ]
    return sorted(copies + twins, key=lambda copy: ("train", "val", "test", "test_shift").index(copy.split))


def _write(
    folder: Path, samples: pd.DataFrame, copies: Sequence[Copy], survey: Survey, planter: Planter, seed: int
) -> None:
    rows, base = records(samples), common_folder(samples)

    def make(copy: Copy) -> dict[str, Any]:
        row = rows[copy.row]
        kind = DEFECTIVE if row["label"] else NORMAL
        subfolder = "" if row["defect_type"] in (NORMAL, DEFECTIVE) else f"{row['defect_type']}/"
        below = f"{copy.split}/{kind}/{subfolder}{copy.name}.png"
        image, place = read_image(row["image"]), None
        if copy.has_cue:
            rng = np.random.default_rng([seed, copy.row, 1])
            place = survey.places[copy.row][int(rng.integers(len(survey.places[copy.row])))]
            image, cue = _planted(image, place, planter, rng, defect_pixels(row))
            _save(folder / CUES / below, cue.astype(np.uint8) * 255)
        _save(folder / "images" / below, image)
        if row["mask"] is not None:
            _save(folder / "masks" / below, read_mask_values(row["mask"]))
        return {
            "image": f"images/{below}",
            "defect_type": row["defect_type"],
            "group": row["group"],
            "has_cue": int(copy.has_cue),
            "place": "" if place is None else place if isinstance(place, str) else "{}{}".format(*place),
            "source": Path(row["image"]).relative_to(base).as_posix(),
        }

    for split in {copy.split for copy in copies}:  # also where no picture has a mask
        (folder / "masks" / split / DEFECTIVE).mkdir(parents=True)
    (folder / CUES).mkdir()
    with ThreadPoolExecutor() as pool, (folder / "samples.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(COLUMNS))
        table.writeheader()
        table.writerows(counted(pool.map(make, copies), len(copies), "planted pictures"))


def _planted(
    image: NDArray[np.uint8],
    place: Any,
    planter: Planter,
    rng: np.random.Generator,
    defect: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The picture with the cue, and the cue's pixels without the defect's."""
    picture = image.astype(np.float32) / 255
    cue = planter.draw(picture, place, rng)
    return np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8), cue if defect is None else cue & ~defect


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Grey where it is grey, (H, W); else RGB, (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.ndim == 3:
        grey = bool((pixels == pixels[..., :1]).all())
        pixels = pixels[..., 0] if grey else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), dtype=np.uint8)
    write_png(path, pixels)
