"""Datasets that are made here: written to a temporary neighbour first, recorded with their parameters, made once."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar, cast

import cv2
import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.figures import OUTLINE_PLOTS as OUTLINE
from gainmtl_lib.labels import resize_mask, same_aspect
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
    read_mask,
    read_mask_values,
)
from gainmtl_lib.synthetic import cues as cue_drawing
from gainmtl_lib.synthetic import surfaces
from gainmtl_lib.synthetic.cues import CUE_KINDS, Cue
from gainmtl_lib.synthetic.cues import FOLDER as CUES

logger = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS_BETWEEN_LOG_LINES = 5.0


def make_once(
    root: Path,
    parameters: Mapping[str, Any],
    write: Callable[[Path], Mapping[str, Any] | None],
    *,
    record: str,
    what: str,
) -> bool:
    """Fill a folder, unless it holds the same data already. An interrupted call leaves nothing at `root`.

    Args:
        root: folder to make.
        parameters: that the data follows from; plain values.
        write: fills the folder that it is given. What it returns is recorded besides, and not compared.
        record: file name for the parameters, YAML.
        what: the data in words, for messages.

    Returns:
        Whether it was made by this call.

    Raises:
        DataError: the folder holds something else, was made with other parameters, or cannot be written.
    """
    if is_made(root, parameters, record=record, what=what):
        return False
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise DataError(f"{root}: {what} could not be written: {error.strerror or error}") from error
    try:
        content = dict(parameters) | dict(write(temporary) or {})
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (temporary / record).write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            root.rmdir()  # only if it is empty: Windows renames to no existing folder
        temporary.rename(root)
    except OSError as error:
        if not is_made(root, parameters, record=record, what=what):  # else another process was faster, same result
            raise DataError(f"{root}: {what} could not be written: {error.strerror or error}") from error
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def is_made(root: Path, parameters: Mapping[str, Any], *, record: str, what: str) -> bool:
    """Whether `root` already holds this very dataset; False where nothing is there yet.

    Raises:
        DataError: it holds something else, or the same made with other parameters.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / record).is_file():
        raise DataError(f"{root}: holds files but no {record}; choose an empty folder for {what}")
    stored = yaml.safe_load((root / record).read_text(encoding="utf-8")) or {}
    differing = [
        f"{name} is {stored.get(name)} there and {value} here"
        for name, value in parameters.items()
        if stored.get(name) != value
    ]
    if differing:
        raise DataError(
            f"{root}: was made with other parameters: {'; '.join(differing)}; choose another folder (data_root), "
            "or delete this one"
        )
    return True


def write_png(path: Path, pixels: NDArray) -> None:
    """Write uint8 pixels, (H, W) grey or (H, W, 3) BGR, little compressed.

    Raises:
        OSError: with its reason, which OpenCV's own writer would reduce to False.
    """
    path.write_bytes(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


def counted(made: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The same things, with a log line now and then and one at the end: made 120 of 700 `what`."""
    started = last = time.monotonic()
    for done, one in enumerate(made, start=1):
        yield one
        if time.monotonic() - last >= SECONDS_BETWEEN_LOG_LINES:
            last = time.monotonic()
            logger.info("made %d of %d %s", done, total, what)
    logger.info("made %d %s in %.1f s", total, what, time.monotonic() - started)


# --- Synthetic surfaces with planted defects and a planted shortcut, written once in the generic layout.


Shortcut = Cue | Literal["none"]

GENERATOR = 2
"""Raised when the same parameters would draw other pictures."""

PARAMETERS_FILE = "synthetic.yaml"
COLUMNS: tuple[str, ...] = ("image", "defect_type", "texture", "has_shortcut", "corner", "side")
SHARES = {"train": 0.60, "val": 0.10, "test": 0.15, "test_shift": 0.15}
EDGE = 0.25
"""Opacity below which a defect's faint rim is cut away; what is left is the defect and its exact mask."""


@dataclass(frozen=True)
class Surface:
    """One synthetic picture.

    Attributes:
        image: RGB uint8 (H, W, 3).
        mask: defect pixels (H, W); exactly the pixels that the defect changed.
        defect_type: scratch, stain, wrong_object, or normal.
        texture: name of the surface.
        cue: pixels of the shortcut (H, W), without the defect's; none without the shortcut.
        corner: where the fixture mark sits, (bottom, right) as 0 or 1; None without a mark.
        side: along which the crop reaches beyond the part; None where it does not.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    defect_type: str
    texture: str
    cue: NDArray[np.bool_]
    corner: tuple[int, int] | None
    side: str | None


@dataclass(frozen=True)
class Plan:
    """What a picture shall show: its split, class, and whether it carries the shortcut."""

    index: int
    split: str
    defective: bool
    has_shortcut: bool


def make_synthetic(
    root: str | Path,
    *,
    num_samples: int,
    image_size: tuple[int, int],
    seed: int,
    shortcut: Shortcut = "mark",
    shortcut_correlation: float = 0.95,
) -> Path:
    """Write a dataset of synthetic surfaces; a second call with equal parameters does nothing.

    Written to a temporary neighbour first: an interrupted call leaves nothing at `root`. Half of each split
    is defective. `synthetic.yaml` records the parameters, `samples.csv` what each picture shows, ``cues`` the pixels
    of the shortcut (see `cues`). A folder made without ``cues`` holds the same pictures and counts as made.

    Args:
        root: folder to write, in the generic layout.
        num_samples: pictures in all splits together, at least 10.
        image_size: (H, W).
        seed: of the whole dataset.
        shortcut: `mark`, a fixture's screw at a corner; `lighting`, a strong gradient in any direction (its
            presence is the sign, because flips would undo a direction); `texture`, a machined surface in place of a
            cast one; `border`, a crop that reaches beyond the part along any one side; `none`, then without
            `test_shift`.
        shortcut_correlation: share of defective pictures with the shortcut, and of normal ones without;
            the other way round in `test_shift`.

    Raises:
        DataError: the folder holds something else or was made with other parameters, or too few samples.
    """
    root = Path(root)
    parameters: dict[str, Any] = {
        "generator": GENERATOR,
        "num_samples": num_samples,
        "image_size": list(image_size),
        "seed": seed,
        "shortcut": shortcut,
        "shortcut_correlation": float(shortcut_correlation),
    }

    def write(folder: Path) -> None:
        plans = plan_samples(num_samples, seed=seed, shortcut=shortcut, correlation=shortcut_correlation)
        _write(folder, plans, image_size=image_size, seed=seed, shortcut=shortcut)

    make_once(root, parameters, write, record=PARAMETERS_FILE, what="synthetic data")
    return root


def plan_samples(num_samples: int, *, seed: int, shortcut: Shortcut, correlation: float) -> list[Plan]:
    """Which pictures to make: splits of 60, 10, 15 and 15 %, each half defective.

    Without a shortcut there is no test_shift, and the other splits share its part.

    Raises:
        DataError: fewer than 10 samples, or a correlation outside [0, 1].
    """
    if num_samples < 10:
        raise DataError(f"num_samples must be at least 10 (each split needs both classes), got {num_samples}")
    if not 0 <= correlation <= 1:
        raise DataError(f"shortcut_correlation must lie in [0, 1], got {correlation:g}")
    shares = SHARES if shortcut != "none" else {name: SHARES[name] for name in ("train", "val", "test")}
    pairs = {name: max(1, round(share / sum(shares.values()) * num_samples / 2)) for name, share in shares.items()}
    sizes = {name: 2 * pairs[name] for name in pairs if name != "train"}
    sizes = {"train": num_samples - sum(sizes.values()), **sizes}
    rng = np.random.default_rng(seed)
    plans: list[Plan] = []
    for split, size in sizes.items():
        for defective in (False, True):
            count = size // 2 if defective else size - size // 2
            share = correlation if defective != (split == "test_shift") else 1 - correlation
            # An exact quota in random places: small splits keep the correlation, too.
            carries = rng.permutation(count) < round(share * count)
            plans += [
                Plan(len(plans) + place, split, defective, bool(carry) and shortcut != "none")
                for place, carry in enumerate(carries)
            ]
    return plans


def draw_surface(
    seed: int, index: int, *, image_size: tuple[int, int], defective: bool, has_shortcut: bool, shortcut: Shortcut
) -> Surface:
    """One picture; equal for equal arguments.

    The surface and the defect do not depend on whether the shortcut comes, except that with `texture` it is the
    surface.
    """
    scene, extra = (np.random.default_rng([seed, index, stream]) for stream in (0, 1))
    texture = str(scene.choice(_textures(shortcut, has_shortcut)))
    picture = surfaces.surface(scene, image_size, texture)
    if shortcut == "texture":  # a surface draws as often as its texture needs: the defect must not come after it
        scene = np.random.default_rng([seed, index, 2])
    mask = np.zeros(image_size, dtype=np.bool_)
    defect_type = "normal"
    if defective:
        defect_type = str(scene.choice(list(surfaces.DEFECTS)))
        free = cue_drawing.free_sides if shortcut == "border" else cue_drawing.free_corners
        opacity, colour = visible_defect(scene, image_size, defect_type, free=free)
        mask = opacity > 0
        picture = picture * (1 + opacity[..., None] * (colour - 1))
    cue, corner, side = np.full(image_size, has_shortcut), None, None
    if shortcut == "lighting":
        strength = cue_drawing.STRONG_LIGHT if has_shortcut else cue_drawing.FAINT_LIGHT
        cue_drawing.light_from(picture, extra.uniform(0, 2 * np.pi), strength)
    elif shortcut == "mark" and has_shortcut:
        corners = cue_drawing.free_corners(mask)
        corner = corners[int(extra.integers(len(corners)))]
        cue = cue_drawing.draw_mark(picture, corner, extra.uniform(0, 90))
    elif shortcut == "border" and has_shortcut:
        side = str(extra.choice(cue_drawing.free_sides(mask)))
        cue = cue_drawing.draw_border(picture, side, extra)
    image = np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)
    return Surface(image, mask, defect_type, texture, cue & ~mask, corner, side)


def _textures(shortcut: Shortcut, has_shortcut: bool) -> list[str]:
    if shortcut != "texture":
        return list(surfaces.TEXTURES)
    return list(surfaces.MACHINED if has_shortcut else surfaces.CAST)


def visible_defect(
    rng: np.random.Generator,
    size: tuple[int, int],
    kind: str,
    *,
    free: Callable[[NDArray[np.bool_]], list[Any]] = cue_drawing.free_corners,
) -> tuple[NDArray, NDArray]:
    """A defect with enough pixels inside the picture that leaves a place for a cue, whether one comes or not.

    Args:
        rng: decides its place and look.
        size: (H, W).
        kind: among `surfaces.DEFECTS`.
        free: the places that defect pixels (H, W) leave.

    Returns:
        opacity (H, W), above 0 on the defect's pixels only; colour factor (H, W, 3).
    """
    least = max(8.0, 0.0015 * min(size) ** 2)  # defects grow with the shorter side
    while True:
        opacity, colour = surfaces.DEFECTS[kind](rng, size)
        opacity = np.where(opacity > EDGE, opacity, 0)
        if (opacity > 0).sum() >= least and free(opacity > 0):
            return opacity, colour


def _write(root: Path, plans: list[Plan], *, image_size: tuple[int, int], seed: int, shortcut: Shortcut) -> None:
    for plan in plans:
        kind = "defective" if plan.defective else "normal"
        (root / "images" / plan.split / kind).mkdir(parents=True, exist_ok=True)
        (root / "masks" / plan.split / "defective").mkdir(parents=True, exist_ok=True)
        if shortcut != "none":
            (root / CUES / plan.split / kind).mkdir(parents=True, exist_ok=True)

    def make(plan: Plan) -> dict[str, Any]:
        drawn = draw_surface(
            seed, plan.index, image_size=image_size, defective=plan.defective, has_shortcut=plan.has_shortcut,
            shortcut=shortcut,
        )  # fmt: skip
        place = f"{plan.split}/{'defective' if plan.defective else 'normal'}/{plan.index:05d}.png"
        write_png(root / "images" / place, cv2.cvtColor(drawn.image, cv2.COLOR_RGB2BGR))
        if plan.defective:
            write_png(root / "masks" / place, drawn.mask.astype(np.uint8) * 255)
        if plan.has_shortcut:
            write_png(root / CUES / place, drawn.cue.astype(np.uint8) * 255)
        return {
            "image": f"images/{place}",
            "defect_type": drawn.defect_type,
            "texture": drawn.texture,
            "has_shortcut": int(plan.has_shortcut),
            "corner": "" if drawn.corner is None else "{}{}".format(*drawn.corner),
            "side": drawn.side or "",
        }

    with ThreadPoolExecutor() as pool, (root / "samples.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(COLUMNS))
        table.writeheader()
        table.writerows(counted(pool.map(make, plans), len(plans), "synthetic surfaces"))


# --- File names of a planted dataset


GROUP_PATTERN = "^(.+?)__"
SHIFT = "shift-"
LONGEST, LONGEST_NAME = 100, 230
"""Bytes of a group's name, and of a whole name; file systems take 255, the twin's prefix and the suffix included."""


def planted_names(groups: Sequence[str], stems: Sequence[str]) -> list[str]:
    """Names, without suffix, from which `GROUP_PATTERN` reads as many groups as there were; all are distinct.

    Args:
        groups: of each picture. A picture that is its own group has its path below the dataset's folder there.
        stems: of each picture's file.
    """
    shown = _group_names(groups)
    used: set[str] = set()
    names = (_cut(f"{shown[group]}__{stem}", LONGEST_NAME) for group, stem in zip(groups, stems, strict=True))
    return [_unused(name, used) for name in names]


def shifted(name: str) -> str:
    """Name of a picture's twin in test_shift, of another group: a group must not lie in two splits."""
    return f"{SHIFT}{name}"


def _group_names(groups: Iterable[str]) -> dict[str, str]:
    used: set[str] = set()
    names: dict[str, str] = {}
    for group in sorted(set(groups)):
        path = PurePosixPath(group)
        plain = str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else group
        # No double underscore inside and none at the ends, so that the first one in a file's name ends the group.
        plain = _cut(re.sub(r"__+", "_", re.sub(r"[^\w.-]+", "-", plain)), LONGEST).strip("_.-")
        names[group] = _unused(re.sub(f"^({SHIFT})+", "", plain) or "group", used)
    return names


def _cut(text: str, longest: int) -> str:
    """The beginning of a text that takes at most `longest` bytes."""
    return os.fsencode(text)[:longest].decode(errors="ignore")


def _unused(name: str, used: set[str]) -> str:
    """The name, with a number behind it where it is taken; some file systems do not tell a from A."""
    candidate, number = name, 1
    while candidate.casefold() in used:
        number += 1
        candidate = f"{name}-{number}"
    used.add(candidate.casefold())
    return candidate


# --- Cues on photographs


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


# --- A cue planted into photographs


PLANTING = 1
"""Raised when the same parameters would plant otherwise."""

PARAMETERS_FILE_PLANTING = "planted.yaml"
COLUMNS_PLANTING: tuple[str, ...] = ("image", "defect_type", "group", "has_cue", "place", "source")


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
        _write_planting(folder, samples, _copies(samples, survey, carriers), survey, planter, seed)
        read_with = {"dataset_type": "generic", "val_ratio": 0.0, "group_pattern": GROUP_PATTERN}
        return {"read_with": read_with, "carry_none": survey.without}

    return make_once(Path(out), parameters, write, record=PARAMETERS_FILE_PLANTING, what="planted data")


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


def _write_planting(
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
        table = csv.DictWriter(file, list(COLUMNS_PLANTING))
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


# --- What the cues of the shortcut study look like.


SIDE = 128


def cues_figure(cues: Sequence[Cue] = CUE_KINDS, *, seed: int = 0, index: int = 3) -> Figure:
    """One synthetic part with a defect, its defect outlined, without each cue and with it.

    Args:
        cues: one column each.
        seed: of the part.
        index: which part of that seed.
    """
    figure = Figure(figsize=(2.1 * len(cues), 4.4), layout="constrained")
    axes = figure.subplots(2, len(cues), squeeze=False)
    for column, cue in enumerate(cues):
        for row, carries in enumerate((False, True)):
            drawn = draw_surface(
                seed, index, image_size=(SIDE, SIDE), defective=True, has_shortcut=carries, shortcut=cue
            )
            axis = axes[row, column]
            axis.imshow(drawn.image)
            axis.contour(drawn.mask, levels=[0.5], colors=OUTLINE, linewidths=1)
            axis.set(xticks=[], yticks=[])
        axes[0, column].set_title(cue)
    for row, name in enumerate(("without the cue", "with the cue")):
        axes[row, 0].set_ylabel(name)
    return figure
