"""The data that the project makes, written once in the generic layout: surfaces, and photographs with a planted cue.

H x W size of a picture.
"""

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import pandas as pd
import yaml
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib import readers
from gainmtl_lib.dataset import load_picture
from gainmtl_lib.findings import DataError, Finding, UnreadableError, raise_errors
from gainmtl_lib.labels import mask_of
from gainmtl_lib.layouts import DEFECTIVE, NORMAL
from gainmtl_lib.pictures import IMAGE_SUFFIXES, read_image
from gainmtl_lib.progress import counted
from gainmtl_lib.settings import Cue
from gainmtl_lib.synthetic import drawing

logger = logging.getLogger(__name__)

Shortcut = Literal["none", Cue]

GENERATOR = 2
"""Raised when the same parameters would draw other pictures."""
SHARES = {"train": 0.60, "val": 0.10, "test": 0.15, "test_shift": 0.15}


def make_synthetic(
    root: Path,
    *,
    num_samples: int,
    image_size: tuple[int, int],
    seed: int,
    shortcut: Shortcut,
    shortcut_correlation: float,
) -> Path:
    """Write a dataset of synthetic surfaces, half of them defective; a second call with equal parameters does nothing.

    ``synthetic.yaml`` records the parameters, ``samples.csv`` what each picture shows, ``cues`` the shortcut's pixels.
    `shortcut_correlation` is the share of defective pictures with the shortcut, and of normal ones without; in
    ``test_shift``, which there is with a shortcut only, the other way round.
    """
    parameters: dict[str, Any] = {"generator": GENERATOR, "num_samples": num_samples, "image_size": list(image_size)}
    parameters |= {"seed": seed, "shortcut": shortcut, "shortcut_correlation": float(shortcut_correlation)}

    def write(folder: Path) -> None:
        plan = plan_samples(num_samples, seed=seed, shortcut=shortcut, correlation=shortcut_correlation)

        def make(row: Any) -> tuple:
            looks = {"defective": row.defective, "has_shortcut": row.has_shortcut, "shortcut": shortcut}
            drawn = draw_surface(seed, row.Index, image_size=image_size, **looks)
            place = f"{row.split}/{DEFECTIVE if row.defective else NORMAL}/{row.Index:05d}.png"
            write_png(folder / "images" / place, cv2.cvtColor(drawn.image, cv2.COLOR_RGB2BGR))
            if row.defective:
                write_png(folder / "masks" / place, drawn.mask.astype(np.uint8) * 255)
            if row.has_shortcut:
                write_png(folder / drawing.CUES / place, drawn.cue.astype(np.uint8) * 255)
            return (f"images/{place}", drawn.defect_type, drawn.texture, drawn.place, int(row.has_shortcut))

        with ThreadPoolExecutor() as pool:
            rows = list(counted(pool.map(make, plan.itertuples()), len(plan), "synthetic surfaces", log=logger))
        columns = ["image", "defect_type", "texture", "place", "has_shortcut"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / "samples.csv", index=False)

    make_once(root, parameters, write, record="synthetic.yaml", what="synthetic data")
    return root


def plan_samples(num_samples: int, *, seed: int, shortcut: Shortcut, correlation: float) -> pd.DataFrame:
    """What each picture shall show: ``split``, ``defective`` (half of each), ``has_shortcut``.

    Without a shortcut there is no test_shift, and the other splits share its part.
    """
    if num_samples < 10:
        raise DataError(f"num_samples must be at least 10 (each split needs both classes), got {num_samples}")
    if not 0 <= correlation <= 1:
        raise DataError(f"shortcut_correlation must lie in [0, 1], got {correlation:g}")
    shares = SHARES if shortcut != "none" else {name: SHARES[name] for name in ("train", "val", "test")}
    sizes = {name: 2 * max(1, round(share / sum(shares.values()) * num_samples / 2)) for name, share in shares.items()}
    sizes["train"] = num_samples - sum(size for name, size in sizes.items() if name != "train")
    rng = np.random.default_rng(seed)
    rows = []
    for split, size in sizes.items():
        for defective in (False, True):
            count = size // 2 if defective else size - size // 2
            share = correlation if defective != (split == "test_shift") else 1 - correlation
            # An exact quota in random places: small splits keep the correlation, too.
            carries = (rng.permutation(count) < round(share * count)) & (shortcut != "none")
            rows += [(split, defective, carry) for carry in carries]
    return pd.DataFrame(rows, columns=["split", "defective", "has_shortcut"])


# --- One picture


class Surface(NamedTuple):
    """One synthetic picture."""

    image: NDArray[np.uint8]  # RGB (H, W, 3)
    mask: NDArray[np.bool_]  # (H, W), exactly the pixels that the defect changed
    defect_type: str  # scratch, stain, wrong_object, or normal
    texture: str  # name of the surface
    cue: NDArray[np.bool_]  # pixels of the shortcut (H, W), without the defect's; none without the shortcut
    place: str  # of the shortcut: a corner for the mark, a side for the border, else empty


def draw_surface(
    seed: int, index: int, *, image_size: tuple[int, int], defective: bool, has_shortcut: bool, shortcut: Shortcut
) -> Surface:
    """One picture; equal for equal arguments.

    Surface and defect do not depend on whether the shortcut comes, except that with `texture` it is the surface.
    """
    scene, extra = (np.random.default_rng([seed, index, stream]) for stream in (0, 1))
    family = drawing.MACHINED if has_shortcut else drawing.CAST
    texture = str(scene.choice(family if shortcut == "texture" else list(drawing.TEXTURES)))
    picture = drawing.surface(scene, image_size, texture)
    if shortcut == "texture":  # a surface draws as often as its texture needs: the defect must not come after it
        scene = np.random.default_rng([seed, index, 2])
    mask, defect_type, place = np.zeros(image_size, dtype=np.bool_), NORMAL, ""
    if defective:
        defect_type = str(scene.choice(list(drawing.DEFECTS)))
        free = drawing.free_sides if shortcut == "border" else drawing.free_corners
        opacity, colour = visible_defect(scene, image_size, defect_type, free=free)
        mask = opacity > 0
        picture = picture * (1 + opacity[..., None] * (colour - 1))
    cue = np.full(image_size, has_shortcut)
    if shortcut == "lighting":
        strength = drawing.STRONG_LIGHT if has_shortcut else drawing.FAINT_LIGHT
        drawing.light_from(picture, extra.uniform(0, 2 * np.pi), strength)
    elif shortcut == "mark" and has_shortcut:
        corners = drawing.free_corners(mask)
        place = corners[int(extra.integers(len(corners)))]
        cue = drawing.draw_mark(picture, place, extra.uniform(0, 90))
    elif shortcut == "border" and has_shortcut:
        place = str(extra.choice(drawing.free_sides(mask)))
        cue = drawing.draw_border(picture, place, extra)
    return Surface(to_bytes(picture), mask, defect_type, texture, cue & ~mask, place)


def visible_defect(
    rng: Generator, size: tuple[int, int], kind: str, *, free: Callable[..., list[str]] = drawing.free_corners
) -> tuple[NDArray, NDArray]:
    """A defect with enough pixels inside the picture that leaves a place for a cue, whether one comes or not.

    Its opacity (H, W), above 0 on its pixels only, and colour factor (H, W, 3). `free` tells the places that are left.
    """
    least = max(8.0, 0.0015 * min(size) ** 2)  # defects grow with the shorter side
    while True:
        opacity, colour = drawing.DEFECTS[kind](rng, size)
        opacity = np.where(opacity > 0.25, opacity, 0)  # without its faint rim, so that the mask is exact
        if (opacity > 0).sum() >= least and free(opacity > 0):
            return opacity, colour


def to_bytes(picture: NDArray) -> NDArray[np.uint8]:
    """A picture in [0, 1], rounded to 0 to 255."""
    return np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)


# --- A dataset is made once, and whole or not at all


def make_once(
    root: Path, parameters: Mapping[str, Any], write: Callable[[Path], Mapping | None], *, record: str, what: str
) -> bool:
    """Fill a folder, and say so, unless it holds the same data already. An interruption leaves nothing at `root`.

    `write` fills the folder that it is given; what it returns goes into the YAML file `record` beside the `parameters`
    that the data follows from, and is not compared. A `DataError` where the folder holds something else, was made with
    other parameters, or cannot be written; `what` is the data in its words.
    """
    if _is_made(root, parameters, record, what):
        return False
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as beside:
            made = Path(beside) / root.name
            made.mkdir()
            content = {**parameters, **(write(made) or {})}
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            (made / record).write_text(text, encoding="utf-8")
            with contextlib.suppress(FileNotFoundError):
                root.rmdir()  # only if it is empty: Windows renames to no existing folder
            made.rename(root)
    except OSError as error:
        if _is_made(root, parameters, record, what):  # another process was faster, same result
            return False
        raise DataError(
            f"{root}: {what} could not be written: {error.strerror or error}; make room, or choose another folder"
        ) from error
    return True


def _is_made(root: Path, parameters: Mapping[str, Any], record: str, what: str) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / record).is_file():
        raise DataError(f"{root}: holds files but no {record}; choose an empty folder for {what}")
    stored = yaml.safe_load((root / record).read_text(encoding="utf-8")) or {}
    differing = [name for name, value in parameters.items() if stored.get(name) != value]
    if differing:
        told = "; ".join(f"{name} is {stored.get(name)} there and {parameters[name]} here" for name in differing)
        again = "choose another folder (data_root), or delete this one"
        raise DataError(f"{root}: was made with other parameters: {told}; {again}")
    return True


def write_png(path: Path, pixels: NDArray) -> None:
    """Write uint8 pixels, (H, W) grey or (H, W, 3) BGR, little compressed; its folder is made."""
    # Not OpenCV's own writer, which reduces the reason of a failure to False.
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


# --- A cue planted into photographs: a copy of a dataset in which the cue goes with the class

PLANTING = 1
"""Raised when the same parameters would plant otherwise."""
PLANTED = "planted.yaml"
NO_PLACE, NO_MASK = "the defect covers every place", "no mask says where the defect is"

PLANTERS: dict[str, tuple] = {
    "mark": (drawing.free_corners, drawing.plant_mark),
    "lighting": (lambda _: [""], lambda picture, _, rng: drawing.light_from(picture, rng.uniform(0, 2 * np.pi))),
    "border": (drawing.free_sides, drawing.draw_border),
}
"""Of each cue the places that a defect (H, W) leaves, and how it is drawn at one of them."""


def plant_cue(
    samples: pd.DataFrame, out: Path, *, cue: str, correlation: float, seed: int, origin: dict, skip_unreadable: bool
) -> bool:
    """Write a copy of a dataset with a planted cue, in the generic layout; with equal parameters only once.

    In each of train, val and test, round(correlation n) of the n defective pictures carry the cue, and
    round((1 - correlation) n) of the n normal ones, as far as so many can: a defect that covers every place, or has no
    mask, carries none. test_shift shows each test picture the other way round. Pictures become PNG, otherwise as they
    decode; ``planted.yaml`` records the parameters and who carries none, ``samples.csv`` each picture and its source,
    ``cues`` the cue's pixels.

    `origin`, plain values, says how the source was read; it is recorded and compared. True where this call wrote.
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
    parameters |= {"source_digest": readers.data_digest(samples), **origin}

    def write(folder: Path) -> dict[str, Any]:
        found, carry_none = _with_places(samples, cue, skip_unreadable=skip_unreadable)
        copies = _copies(found, correlation, seed)

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
                size = (image.shape[0], image.shape[1])
                write_png(folder / "masks" / below, mask_of(row.image, row.mask, size).astype(np.uint8) * 255)
            return (f"images/{below}", row.defect_type, row.group, place, row.source, int(row.has_cue))

        for split in copies["split"].unique():  # also where no picture has a mask
            (folder / "masks" / split / DEFECTIVE).mkdir(parents=True)
        (folder / drawing.CUES).mkdir()
        with ThreadPoolExecutor() as pool:
            rows = list(counted(pool.map(make, copies.itertuples()), len(copies), "planted pictures", log=logger))
        columns = ["image", "defect_type", "group", "place", "source", "has_cue"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / "samples.csv", index=False)
        read_with = {"dataset_type": "generic", "val_ratio": 0.0, "group_pattern": GROUP_PATTERN}
        return {"read_with": read_with, "carry_none": carry_none}

    return make_once(out, parameters, write, record=PLANTED, what="planted data")


def planted_counts(out: str | Path) -> pd.DataFrame:
    """Pictures of a planted dataset by split and class, and how many of them carry the cue."""
    table = pd.read_csv(Path(out) / "samples.csv")
    part = table["image"].str.split("/").str[1:3].str.join(", ")
    counts = table.groupby(part, sort=False)["has_cue"].agg(["size", "sum"])
    return counts.set_axis(["pictures", "with the cue"], axis=1)


def _with_places(samples: pd.DataFrame, cue: str, *, skip_unreadable: bool) -> tuple[pd.DataFrame, dict]:
    """The pictures that can be decoded, with the free ``places`` of each; and those that have none, by reason."""

    def look(row: Any) -> list[str] | str | Finding:
        try:
            defect = _defect_pixels(row)
        except UnreadableError as error:
            if skip_unreadable:
                return Finding("warning", "", str(error))
            return Finding("error", "", f"{error}, or leave it out with skip_unreadable: true")
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
    # Twins are of other groups: a group must not lie in two splits.
    twins = twins.assign(split="test_shift", name=SHIFT + twins["name"], has_cue=able & ~twins["has_cue"])
    copies = pd.concat([samples, twins])
    return pd.concat([copies[copies["split"] == split] for split in ("train", "val", "test", "test_shift")])


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


def _cut(text: str, longest: int) -> str:
    return os.fsencode(text)[:longest].decode(errors="ignore")


def _unused(name: str, used: set[str]) -> str:
    """The name, with a number behind it where it is taken; some file systems do not tell a from A."""
    numbered = chain([name], (f"{name}-{number}" for number in count(2)))
    found = next(candidate for candidate in numbered if candidate.casefold() not in used)
    used.add(found.casefold())
    return found
