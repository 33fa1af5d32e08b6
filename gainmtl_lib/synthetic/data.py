"""Synthetic surfaces with defects and a planted shortcut, written once in the generic layout. H x W picture size."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import pandas as pd
import yaml
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.progress import counted
from gainmtl_lib.readers import DEFECTIVE, NORMAL, DataError
from gainmtl_lib.synthetic import drawing

logger = logging.getLogger(__name__)

Shortcut = drawing.Cue | Literal["none"]

GENERATOR = 2
"""Raised when the same parameters would draw other pictures."""
SHARES = {"train": 0.60, "val": 0.10, "test": 0.15, "test_shift": 0.15}


def make_synthetic(
    root: str | Path,
    *,
    num_samples: int,
    image_size: tuple[int, int],
    seed: int,
    shortcut: Shortcut = "mark",
    shortcut_correlation: float = 0.95,
) -> Path:
    """Write a dataset of synthetic surfaces, half of them defective; a second call with equal parameters does nothing.

    ``synthetic.yaml`` records the parameters, ``samples.csv`` what each picture shows, ``cues`` the shortcut's pixels.

    Args:
        root: folder to write, in the generic layout.
        num_samples: pictures in all splits together, at least 10.
        image_size: (H, W).
        seed: of the whole dataset.
        shortcut: one of `drawing.CUE_KINDS`, or none, then without ``test_shift``.
        shortcut_correlation: share of defective pictures with the shortcut, and of normal ones without;
            the other way round in ``test_shift``.

    Raises:
        DataError: the folder holds something else or was made with other parameters, or too few samples.
    """
    root = Path(root)
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
        raise DataError(f"{root}: {what} could not be written: {error.strerror or error}") from error
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
