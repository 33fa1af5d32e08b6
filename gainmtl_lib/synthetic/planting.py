"""A cue planted into photographs: a copy of a dataset in which the cue goes with the class. H x W size of a picture."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.dataset import load_picture
from gainmtl_lib.progress import counted
from gainmtl_lib.readers import (
    DEFECTIVE,
    IMAGE_SUFFIXES,
    NORMAL,
    DataError,
    Finding,
    UnreadableError,
    data_digest,
    raise_errors,
    read_image,
    read_mask_values,
)
from gainmtl_lib.synthetic import drawing
from gainmtl_lib.synthetic.data import make_once, to_bytes, write_png

logger = logging.getLogger(__name__)

PLANTING = 1
"""Raised when the same parameters would plant otherwise."""
RECORD = "planted.yaml"
NO_PLACE, NO_MASK = "the defect covers every place", "no mask says where the defect is"

PLANTERS: dict[str, tuple] = {
    "mark": (
        drawing.free_corners,
        lambda picture, corner, rng: drawing.plant_mark(picture, corner, rng.uniform(0, 90)),
    ),
    "lighting": (lambda _: [""], lambda picture, _, rng: drawing.light_from(picture, rng.uniform(0, 2 * np.pi))),
    "border": (drawing.free_sides, drawing.draw_border),
}
"""Of each cue the places that a defect (H, W) leaves, and how it is drawn at one of them."""


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
    round((1 - correlation) n) of the n normal ones, as far as so many can: a defect that covers every place, or has no
    mask, carries none. test_shift shows each test picture the other way round. Pictures become PNG, otherwise as they
    decode; ``planted.yaml`` records the parameters and who carries none, ``samples.csv`` each picture and its source,
    ``cues`` the cue's pixels.

    Args:
        samples: table of samples with its split.
        out: folder to write.
        cue: one of `PLANTERS`.
        correlation: of cue and class, in [0, 1]; at 0.5 the cue tells nothing.
        seed: of the choice of pictures and places.
        origin: how the source was read, as plain values; recorded and compared.
        skip_unreadable: leave out pictures that cannot be decoded, with a warning for each.

    Returns:
        Whether it was written by this call.

    Raises:
        DataError: a cue, correlation or source that does not do, files that cannot be decoded, masks of another aspect
            ratio, or a folder that holds something else.
    """
    if cue not in PLANTERS:
        why = " (a photograph's surface is what it shows)" if cue == "texture" else ""
        raise DataError(f"cue '{cue}' cannot be planted into photographs{why}; choose among {', '.join(PLANTERS)}")
    if not 0 <= correlation <= 1:
        raise DataError(f"correlation must lie in [0, 1], got {correlation:g}")
    if (samples["split"] == "test_shift").any():
        raise DataError("the source has a test_shift of its own, and planting makes one; remove images/test_shift")
    base = Path(os.path.commonpath([os.path.dirname(image) for image in samples["image"]]))
    samples = samples.reset_index(drop=True)
    samples["source"] = [Path(image).relative_to(base).as_posix() for image in samples["image"]]
    parameters = {"planting": PLANTING, "cue": cue, "correlation": float(correlation), "seed": seed}
    parameters |= {"source_digest": data_digest(samples), **origin}

    def write(folder: Path) -> dict[str, Any]:
        found, carry_none = _with_places(samples, cue, skip_unreadable=skip_unreadable)
        _write(folder, _copies(found, correlation, seed), cue, seed)
        read_with = {"dataset_type": "generic", "val_ratio": 0.0, "group_pattern": GROUP_PATTERN}
        return {"read_with": read_with, "carry_none": carry_none}

    return make_once(Path(out), parameters, write, record=RECORD, what="planted data")


def planted_counts(out: str | Path) -> pd.DataFrame:
    """Pictures of a planted dataset by split and class, and how many of them carry the cue."""
    table = pd.read_csv(Path(out) / "samples.csv")
    folders = table["image"].str.split("/")
    groups = table.assign(split=folders.str[1], kind=folders.str[2]).groupby(["split", "kind"], sort=False)
    counts = groups["has_cue"].agg(["size", "sum"]).rename(columns={"size": "pictures", "sum": "with the cue"})
    return counts.set_axis([f"{split}, {kind}" for split, kind in counts.index])


def _with_places(samples: pd.DataFrame, cue: str, *, skip_unreadable: bool) -> tuple[pd.DataFrame, dict]:
    """The pictures that can be decoded, with the free ``places`` of each; and those that have none, by reason."""

    def look(row: Any) -> list[str] | str | Finding:
        try:
            defect = _defect_pixels(row)
        except UnreadableError as error:
            advice = "" if skip_unreadable else ", or leave it out with skip_unreadable: true"
            return Finding("warning" if skip_unreadable else "error", "", f"{error}{advice}")
        except DataError as error:
            return Finding("error", "", str(error))
        return NO_MASK if defect is None else PLANTERS[cue][0](defect) or NO_PLACE

    with ThreadPoolExecutor() as pool:
        places: list[Any] = list(pool.map(look, samples.itertuples()))
    findings = [found for found in places if isinstance(found, Finding)]
    raise_errors(findings)
    for finding in findings:
        logger.warning("left out: %s", finding)
    carry_none: dict[str, list[str]] = {}
    for number, found in enumerate(places):
        if isinstance(found, str):
            carry_none.setdefault(found, []).append(samples["source"][number])
            places[number] = []
    for reason, files in carry_none.items():
        more = f" … and {len(files) - 8} more" if len(files) > 8 else ""
        logger.warning("%d pictures carry no cue (%s): %s%s", len(files), reason, ", ".join(files[:8]), more)
    return samples.assign(places=places)[[isinstance(found, list) for found in places]], carry_none


def _defect_pixels(row: Any) -> NDArray[np.bool_] | None:
    """Defect pixels (H, W) at the picture's own size: none of a normal picture, None where no mask tells."""
    size = read_image(row.image).shape[:2]
    if row.label == 0:
        return np.zeros(size, dtype=np.bool_)
    mask = load_picture(row.image, row.mask, image_size=size, resize="squash").mask
    return None if mask is None else mask > 0


def _copies(samples: pd.DataFrame, correlation: float, seed: int) -> pd.DataFrame:
    """The pictures to write, in the order of splits, with ``name`` and ``has_cue``; test pictures with their twins.

    The quota of each split and class is exact, as far as so many can carry the cue.
    """
    able = samples["places"].map(len) > 0
    names = planted_names(samples["group"].tolist(), [Path(image).stem for image in samples["image"]])
    samples = samples.assign(name=names, has_cue=False)
    for part, split in enumerate(("train", "val", "test")):
        for label, share in ((0, 1 - correlation), (1, correlation)):
            shown = (samples["split"] == split) & (samples["label"] == label)
            rows = samples.index[shown & able]
            order = np.random.default_rng([seed, part, label]).permutation(len(rows))
            samples.loc[rows[order[: round(share * shown.sum())]], "has_cue"] = True
    twins = samples[samples["split"] == "test"]
    twins = twins.assign(split="test_shift", name=twins["name"].map(shifted), has_cue=able & ~twins["has_cue"])
    copies = pd.concat([samples, twins])
    return pd.concat([copies[copies["split"] == split] for split in ("train", "val", "test", "test_shift")])


def _write(folder: Path, copies: pd.DataFrame, cue: str, seed: int) -> None:
    def make(row: Any) -> tuple:
        kind = "" if row.defect_type in (NORMAL, DEFECTIVE) else f"{row.defect_type}/"
        below = f"{row.split}/{DEFECTIVE if row.label else NORMAL}/{kind}{row.name}.png"
        image, place = read_image(row.image), ""
        if row.has_cue:
            rng = np.random.default_rng([seed, row.Index, 1])
            place = row.places[int(rng.integers(len(row.places)))]
            picture = image.astype(np.float32) / 255
            pixels = PLANTERS[cue][1](picture, place, rng) & ~np.asarray(_defect_pixels(row))
            image = to_bytes(picture)
            write_png(folder / drawing.CUES / below, pixels.astype(np.uint8) * 255)
        grey = bool((image == image[..., :1]).all())
        write_png(folder / "images" / below, image[..., 0] if grey else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        if row.mask is not None:
            write_png(folder / "masks" / below, read_mask_values(row.mask))
        return (f"images/{below}", row.defect_type, row.group, place, row.source, int(row.has_cue))

    for split in copies["split"].unique():  # also where no picture has a mask
        (folder / "masks" / split / DEFECTIVE).mkdir(parents=True)
    (folder / drawing.CUES).mkdir()
    with ThreadPoolExecutor() as pool:
        rows = list(counted(pool.map(make, copies.itertuples()), len(copies), "planted pictures", log=logger))
    columns = ["image", "defect_type", "group", "place", "source", "has_cue"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "samples.csv", index=False)


# --- File names of a planted dataset

GROUP_PATTERN = "^(.+?)__"
SHIFT = "shift-"
LONGEST, LONGEST_NAME = 100, 230
"""Bytes of a group's name, and of a whole name; file systems take 255, the twin's prefix and the suffix included."""


def planted_names(groups: list[str], stems: list[str]) -> list[str]:
    """Distinct file names, without suffix, from which `GROUP_PATTERN` reads as many groups as there were.

    A picture that is its own group has its path below the dataset's folder there.
    """
    shown: dict[str, str] = {}
    used: set[str] = set()
    for group in sorted(set(groups)):
        path = PurePosixPath(group)
        plain = str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else group
        # No double underscore inside and none at the ends, so that the first one in a file's name ends the group.
        plain = _cut(re.sub(r"__+", "_", re.sub(r"[^\w.-]+", "-", plain)), LONGEST).strip("_.-")
        shown[group] = _unused(re.sub(f"^({SHIFT})+", "", plain) or "group", used)
    used = set()
    names = (_cut(f"{shown[group]}__{stem}", LONGEST_NAME) for group, stem in zip(groups, stems, strict=True))
    return [_unused(name, used) for name in names]


def shifted(name: str) -> str:
    """Name of a picture's twin in test_shift, of another group: a group must not lie in two splits."""
    return f"{SHIFT}{name}"


def _cut(text: str, longest: int) -> str:
    return os.fsencode(text)[:longest].decode(errors="ignore")


def _unused(name: str, used: set[str]) -> str:
    """The name, with a number behind it where it is taken; some file systems do not tell a from A."""
    candidate, number = name, 1
    while candidate.casefold() in used:
        number += 1
        candidate = f"{name}-{number}"
    used.add(candidate.casefold())
    return candidate
