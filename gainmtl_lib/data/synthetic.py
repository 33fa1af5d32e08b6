"""Synthetic surfaces with planted defects and a planted shortcut, written once in the generic layout.

The shortcut is a sign that has nothing to do with the defect but goes along with it in train, val and test,
and against it in test_shift: a classifier that follows it does well until the fixture changes.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from gainmtl_lib.data import surfaces
from gainmtl_lib.data.findings import DataError

logger = logging.getLogger(__name__)

Shortcut = Literal["none", "mark", "lighting"]

GENERATOR = 2
"""Raised when the same parameters would draw other pictures."""

PARAMETERS_FILE = "synthetic.yaml"
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
        corner: where the fixture mark sits, (bottom, right) as 0 or 1; None without a mark.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    defect_type: str
    texture: str
    corner: tuple[int, int] | None


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
    is defective. `synthetic.yaml` records the parameters, `samples.csv` what each picture shows.

    Args:
        root: folder to write, in the generic layout.
        num_samples: pictures in all splits together, at least 10.
        image_size: (H, W).
        seed: of the whole dataset.
        shortcut: `mark`, a fixture's screw at a corner; `lighting`, a strong gradient in any direction (its
            presence is the sign, because flips would undo a direction); `none`, then without `test_shift`.
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
    if _is_made(root, parameters):
        return root
    plans = plan_samples(num_samples, seed=seed, shortcut=shortcut, correlation=shortcut_correlation)
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write(temporary, plans, image_size=image_size, seed=seed, shortcut=shortcut)
        (temporary / PARAMETERS_FILE).write_text(yaml.safe_dump(parameters, sort_keys=False), encoding="utf-8")
        temporary.chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            root.rmdir()  # only if it is empty: Windows renames to no existing folder
        temporary.rename(root)
    except OSError as error:
        if not _is_made(root, parameters):  # otherwise another process was faster, with the same result
            raise DataError(f"{root}: synthetic data could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
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
    """One picture; equal for equal arguments. The surface and the defect do not depend on the shortcut."""
    scene, extra = (np.random.default_rng([seed, index, stream]) for stream in (0, 1))
    texture = str(scene.choice(list(surfaces.TEXTURES)))
    picture = surfaces.surface(scene, image_size, texture)
    mask = np.zeros(image_size, dtype=np.bool_)
    defect_type = "normal"
    if defective:
        defect_type = str(scene.choice(list(surfaces.DEFECTS)))
        opacity, colour = visible_defect(scene, image_size, defect_type)
        mask = opacity > 0
        picture = picture * (1 + opacity[..., None] * (colour - 1))
    corner = None
    if shortcut == "lighting":
        surfaces.light_from(picture, extra.uniform(0, 2 * np.pi), 0.4 if has_shortcut else 0.04)
    elif shortcut == "mark" and has_shortcut:
        free = _free_corners(mask)
        corner = free[int(extra.integers(len(free)))]
        surfaces.draw_mark(picture, corner, extra.uniform(0, 90))
    image = np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)
    return Surface(image, mask, defect_type, texture, corner)


def visible_defect(rng: np.random.Generator, size: tuple[int, int], kind: str) -> tuple[NDArray, NDArray]:
    """A defect with enough pixels inside the picture that leaves a corner free, whether a mark comes or not.

    Returns:
        opacity (H, W), above 0 on the defect's pixels only; colour factor (H, W, 3).
    """
    least = max(8.0, 0.0015 * min(size) ** 2)  # defects grow with the shorter side
    while True:
        opacity, colour = surfaces.DEFECTS[kind](rng, size)
        opacity = np.where(opacity > EDGE, opacity, 0)
        if (opacity > 0).sum() >= least and _free_corners(opacity > 0):
            return opacity, colour


def _free_corners(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    size = (mask.shape[0], mask.shape[1])
    return [corner for corner in surfaces.CORNERS if not mask[surfaces.mark_region(size, corner)].any()]


def _is_made(root: Path, parameters: dict[str, Any]) -> bool:
    """Whether `root` already holds this very dataset; False where nothing is there yet."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    record = root / PARAMETERS_FILE
    if not record.is_file():
        raise DataError(f"{root}: holds files but no {PARAMETERS_FILE}; choose an empty folder for synthetic data")
    stored = yaml.safe_load(record.read_text(encoding="utf-8")) or {}
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


def _write(root: Path, plans: list[Plan], *, image_size: tuple[int, int], seed: int, shortcut: Shortcut) -> None:
    started = last = time.monotonic()
    for plan in plans:
        kind = "defective" if plan.defective else "normal"
        (root / "images" / plan.split / kind).mkdir(parents=True, exist_ok=True)
        (root / "masks" / plan.split / "defective").mkdir(parents=True, exist_ok=True)

    def make(plan: Plan) -> dict[str, Any]:
        drawn = draw_surface(
            seed, plan.index, image_size=image_size, defective=plan.defective, has_shortcut=plan.has_shortcut,
            shortcut=shortcut,
        )  # fmt: skip
        place = f"{plan.split}/{'defective' if plan.defective else 'normal'}/{plan.index:05d}.png"
        _write_png(root / "images" / place, cv2.cvtColor(drawn.image, cv2.COLOR_RGB2BGR))
        if plan.defective:
            _write_png(root / "masks" / place, drawn.mask.astype(np.uint8) * 255)
        return {
            "image": f"images/{place}",
            "defect_type": drawn.defect_type,
            "texture": drawn.texture,
            "has_shortcut": int(plan.has_shortcut),
            "corner": "" if drawn.corner is None else "{}{}".format(*drawn.corner),
        }

    with ThreadPoolExecutor() as pool, (root / "samples.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["image", "defect_type", "texture", "has_shortcut", "corner"])
        table.writeheader()
        for done, line in enumerate(pool.map(make, plans), start=1):
            table.writerow(line)
            if time.monotonic() - last >= 5:
                last = time.monotonic()
                logger.info("made %d of %d synthetic surfaces", done, len(plans))
    logger.info("made %d synthetic surfaces in %.1f s", len(plans), time.monotonic() - started)


def _write_png(path: Path, pixels: NDArray) -> None:
    # Encoded in memory, so that a full disk is an OSError with its reason and not OpenCV's bare False.
    path.write_bytes(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
