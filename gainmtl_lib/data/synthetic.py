"""Synthetic surfaces with planted defects and a planted shortcut, written once in the generic layout.

The shortcut is a sign that has nothing to do with the defect but goes along with it in train, val and test,
and against it in test_shift: a classifier that follows it does well until the fixture changes.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from gainmtl_lib.data import cue_drawing, surfaces
from gainmtl_lib.data.cues import FOLDER as CUES
from gainmtl_lib.data.cues import Cue
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.making import counted, make_once, write_png

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
