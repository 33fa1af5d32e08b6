"""Readers of the folder layouts: each turns a dataset's folder into rows, without decoding a picture.

A reader never stops at the first problem: it returns what it could read together with its findings.
`samples.read_samples` makes errors of them, the data check lists them all.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gainmtl_lib.data.findings import Finding, Level

SPLITS = ("train", "val", "test", "test_shift")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
NORMAL, DEFECTIVE = "normal", "defective"

SAME_TILE_STEP = 150
"""Steps of the magnetic tiles' counter within which a second series shows the same tile: compared picture by
picture, 30 of the 53 neighbouring series this near agree, 3 of the 201 further apart. Zero gives the 255 series."""


@dataclass(frozen=True)
class Row:
    """One image; `split` is None where the layout does not say, `group` where the reader does not know."""

    image: Path
    label: int
    mask: Path | None = None
    defect_type: str = NORMAL
    group: str | None = None
    split: str | None = None


@dataclass
class Scan:
    """Rows and findings of one dataset folder."""

    root: Path
    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def report(self, level: Level, path: Path, message: str) -> None:
        """Add a finding about a file or folder."""
        self.findings.append(Finding(level, str(path), message))


def scan_generic(root: Path) -> Scan:
    """``images/<split>/{normal,defective}`` and ``masks/defective`` or ``masks/<split>/defective``.

    Subfolders of ``defective`` name defect types. An image's mask has the same path below the folder, with
    or without the suffix ``_mask``.
    """
    scan = Scan(root)
    images = root / "images"
    _report_unread(scan, images, SPLITS)
    shared: dict[str, dict[str, Path]] = {}
    for split in SPLITS:
        _report_unread(scan, images / split, (NORMAL, DEFECTIVE))
        scan.rows += [Row(path, 0, split=split) for path in image_files(images / split / NORMAL)]
        defective = _by_key(scan, images / split / DEFECTIVE)
        mask_folder = root / "masks" / split / DEFECTIVE
        if not mask_folder.is_dir():
            shared[split] = defective
            continue
        masks = _match_masks(scan, defective, mask_folder)
        scan.rows += _defective_rows(defective, masks, split)
    masks = _shared_masks(scan, shared, root / "masks" / DEFECTIVE)
    for split, defective in shared.items():
        scan.rows += _defective_rows(defective, masks, split)
    if not scan.rows:
        scan.report(
            "error", root, f"no images; expected images/{{{','.join(SPLITS)}}}/{{normal,defective}}, {_found(root)}"
        )
    return scan


def scan_synthetic(root: Path) -> Scan:
    """The generic layout, with the defect types that ``samples.csv`` of `make_synthetic` records."""
    scan = scan_generic(root)
    table = root / "samples.csv"
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            kinds = {line["image"]: line["defect_type"] for line in csv.DictReader(file)}
        scan.rows = [
            Row(row.image, row.label, row.mask, kinds.get(row.image.relative_to(root).as_posix(), row.defect_type),
                split=row.split)
            for row in scan.rows
        ]  # fmt: skip
    return scan


def scan_mvtec(root: Path) -> Scan:
    """One category of MVTec AD: ``train/good``, ``test/<defect>``, ``ground_truth/<defect>/*_mask.png``.

    All defects are in ``test``; their split is left open (None), so that `split_samples` can share them
    between train, val and test. Good images keep their folder's split.
    """
    scan = Scan(root)
    scan.rows += [Row(path, 0, split="train") for path in image_files(root / "train" / "good")]
    for folder in _folders(root / "test"):
        if folder.name == "good":
            scan.rows += [Row(path, 0, split="test") for path in image_files(folder)]
            continue
        defective = _by_key(scan, folder)
        masks = _match_masks(scan, defective, root / "ground_truth" / folder.name)
        scan.rows += [Row(path, 1, masks.get(key), folder.name) for key, path in defective.items()]
    if not scan.rows:
        categories = [folder.name for folder in _folders(root) if (folder / "train" / "good").is_dir()]
        expected = "no images; expected train/good, test/<defect> and ground_truth/<defect>"
        hint = f"data_root is one category's folder, choose among {', '.join(categories)}" if categories else ""
        scan.report("error", root, f"{expected}; {hint or _found(root)}")
    return scan


def scan_magnetic_tile(root: Path) -> Scan:
    """The published folders ``MT_<class>/Imgs/exp<k>_num_<n>.jpg`` with masks ``.png`` beside them.

    `group` is the tile. One tile was photographed at up to six exposures, with k rising along the counter n:
    a new tile starts where n jumps by more than 400, or where k stops rising, unless n moved by at most
    `SAME_TILE_STEP`: then the same tile was mostly photographed again.
    """
    scan = Scan(root)
    shots: list[tuple[int, int, Row]] = []
    for folder in _folders(root):
        if not folder.name.startswith("MT_"):
            continue
        defect = folder.name.removeprefix("MT_").lower()
        for path in image_files(folder / "Imgs"):
            if path.suffix.lower() == ".png":
                continue
            name = re.fullmatch(r"exp(\d+)_num_(\d+)", path.stem)
            if name is None:
                scan.report("error", path, "the name tells no tile; expected exp<k>_num_<n>.jpg")
                continue
            mask = path.with_suffix(".png")
            row = Row(path, 0) if defect == "free" else Row(path, 1, mask if mask.is_file() else None, defect)
            shots.append((int(name[2]), int(name[1]), row))
    shots.sort(key=lambda shot: (shot[0], shot[1], str(shot[2].image)))
    tile, last_number, last_exposure = -1, 0, 0
    for number, exposure, row in shots:
        step = number - last_number
        if tile < 0 or step > 400 or (exposure <= last_exposure and step > SAME_TILE_STEP):
            tile += 1
        last_number, last_exposure = number, exposure
        scan.rows.append(Row(row.image, row.label, row.mask, row.defect_type, f"tile{tile:04d}"))
    if not scan.rows:
        scan.report("error", root, f"no images; expected MT_<class>/Imgs/exp<k>_num_<n>.jpg, {_found(root)}")
    return scan


LAYOUTS: dict[str, Callable[[Path], Scan]] = {
    "generic": scan_generic,
    "mvtec": scan_mvtec,
    "magnetic_tile": scan_magnetic_tile,
    "synthetic": scan_synthetic,
}


def image_files(folder: Path) -> list[Path]:
    """Pictures below a folder, sorted; hidden files and other kinds are left out, a missing folder is empty."""
    if not folder.is_dir():
        return []
    files = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if not path.name.startswith(".") and path.is_file())


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _found(root: Path) -> str:
    names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    return f"found {', '.join(names[:8])}{' …' if len(names) > 8 else ''}" if names else "the folder is empty"


def _report_unread(scan: Scan, folder: Path, expected: Iterable[str]) -> None:
    """Pictures in a folder whose name the layout does not know would be left out without a word."""
    for other in _folders(folder):
        if other.name not in expected and image_files(other):
            scan.report("warning", other, f"folder is not read; expected one of {', '.join(expected)}")


def _by_key(scan: Scan, folder: Path) -> dict[str, Path]:
    """Files by their path below the folder without suffix; two files of one key are an error."""
    files: dict[str, Path] = {}
    for path in image_files(folder):
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in files:
            scan.report("error", path, f"has the same stem as {files[key]}, so that a mask cannot be told; rename one")
        files.setdefault(key, path)
    return files


def _match_masks(scan: Scan, images: dict[str, Path], folder: Path) -> dict[str, Path]:
    """The mask of each image key, of the same key or with the suffix ``_mask``."""
    files = _by_key(scan, folder)
    masks: dict[str, Path] = {}
    for key in images:
        candidates = [name for name in (key, f"{key}_mask") if name in files and (name == key or name not in images)]
        if len(candidates) == 2:
            scan.report("error", files[key], f"is a second mask of {images[key]} besides {files[candidates[1]]}")
        if candidates:
            masks[key] = files.pop(candidates[0])
            for name in candidates[1:]:
                files.pop(name)
    for path in files.values():
        scan.report("warning", path, "mask without an image; it is not used")
    return masks


def _shared_masks(scan: Scan, splits: dict[str, dict[str, Path]], folder: Path) -> dict[str, Path]:
    """Masks of a folder without split level: a stem in two splits has a mask that cannot be told apart."""
    images: dict[str, Path] = {}
    clashes: list[tuple[str, Path, Path]] = []
    for defective in splits.values():
        clashes += [(key, images[key], path) for key, path in defective.items() if key in images]
        images = defective | images
    masks = _match_masks(scan, images, folder)
    for key, first, second in clashes:
        if key in masks:
            scan.report(
                "error", second,
                f"has the same stem as {first}, and {masks[key]} can be the mask of only one; "
                "use masks/<split>/defective/",
            )  # fmt: skip
    return masks


def _defective_rows(images: dict[str, Path], masks: dict[str, Path], split: str) -> list[Row]:
    def defect_type(key: str) -> str:
        return key.split("/")[0] if "/" in key else DEFECTIVE

    return [Row(path, 1, masks.get(key), defect_type(key), split=split) for key, path in images.items()]
