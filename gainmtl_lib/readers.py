"""A data set on disk: table of samples, five folder layouts, splits, decoded files. A picture there is h x w."""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.settings import UserError

logger = logging.getLogger(__name__)

Level = Literal["error", "warning", "info"]


class DataError(UserError, ValueError):
    """Data that cannot be used: names the path, what was found, and what was expected."""


class UnreadableError(DataError):
    """A file that cannot be decoded: the one error that a run may be asked to step over."""


class Finding(NamedTuple):
    """One problem of a dataset: what was found and what was expected."""

    level: Level  # `error` stops a run, `warning` changes what it learns or measures, `info` is good to know
    file: str  # or folder; empty for the dataset as a whole, or where the message names it
    message: str
    kind: str = ""  # what it is counted under where there can be thousands; empty for single problems

    def __str__(self) -> str:
        return f"{self.file}: {self.message}" if self.file else self.message


def raise_errors(findings: Iterable[Finding]) -> None:
    """Raise one `DataError` that lists every finding of level `error`, the first twenty in full."""
    if errors := [str(finding) for finding in findings if finding.level == "error"]:
        more = [f"… and {len(errors) - 20} more"] if len(errors) > 20 else []
        raise DataError("\n".join(errors[:20] + more))


@contextlib.contextmanager
def reported(found: list[Finding], file: str = "") -> Iterator[None]:
    """A `DataError` becomes a finding, so that an error in one file does not hide another."""
    try:
        yield
    except DataError as error:
        found.append(Finding("error", file, str(error)))


# --- The table of samples, the contract between the layouts and the rest

SPLITS = ("train", "val", "test", "test_shift")
NORMAL, DEFECTIVE = "normal", "defective"
STORE = "box_masks"  # the folder that holds the masks drawn from boxes, of all datasets


class Row(NamedTuple):
    """One image; `split` is None where the layout does not say, `group` where the reader does not know."""

    image: Path
    label: int
    mask: Path | None = None
    defect_type: str = NORMAL
    group: str | None = None
    split: str | None = None


COLUMNS = Row._fields
Report = Callable[[Level, Path, str], None]  # takes a finding about a file or folder


def read_samples(
    root: str | Path,
    *,
    dataset_type: str,
    group_pattern: str | None = None,
    both_classes: bool = True,
    findings: list[Finding] | None = None,
) -> pd.DataFrame:
    """Read a dataset's folder, for `mvtec` that of one category, into the table of samples. No picture is decoded.

    Args:
        group_pattern: searched in the file name; its first group, or the whole match, names the part that the picture
            shows. Without one each image is its own group, unless the layout knows better.
        both_classes: whether a single class is an error.
        findings: takes what is wrong, so that nothing is raised (`DataError`, of all that is wrong) or logged.
    """
    (read, expected), root, found = LAYOUTS[dataset_type], Path(os.path.abspath(root)), []

    def report(level: Level, path: Path, message: str) -> None:
        found.append(Finding(level, str(path), message))

    rows = sorted(read(root, report), key=lambda row: row.image) if root.is_dir() else []
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        report("error", root, f"data_root {what}; expected the dataset's folder")
    elif not rows:
        names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))[:8]
        there = f"found {', '.join(names)}" if names else "the folder is empty"
        if categories := [folder.name for folder in _folders(root) if (folder / "train" / "good").is_dir()]:
            there = f"data_root is one category's folder, choose among {', '.join(categories)}"
        report("error", root, f"no images; expected {expected}; {there}")
    for place, row in enumerate(rows):
        group = row.group or row.image.relative_to(root).as_posix()
        if group_pattern and (match := re.search(group_pattern, row.image.name)):
            group = (match.groups() or (None,))[0] or match[0]  # None: the group took no part in the match
        elif group_pattern:
            report("error", row.image, f"group_pattern {group_pattern!r} does not match the file name")
        rows[place] = row._replace(image=str(row.image), mask=row.mask and str(row.mask), group=group)
    # Plain objects, because pandas' own string type turns None into NaN, which is true in an `if`.
    samples = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object).astype({"label": "int64"})
    if both_classes and len(set(samples["label"])) == 1:
        only = (NORMAL, DEFECTIVE)[samples["label"].iloc[0]]
        report("error", root, f"all {len(samples)} images are {only}; expected normal and defective ones")
    found += _crossing_groups(samples)
    if findings is None:
        raise_errors(found)
        for finding in found:
            logger.log(logging.INFO if finding.level == "info" else logging.WARNING, "%s", finding)
    else:
        findings += found
    return samples


def _crossing_groups(samples: pd.DataFrame) -> Iterator[Finding]:
    firsts = samples.dropna(subset=["split"]).drop_duplicates(["group", "split"])
    for group, rows in firsts[firsts["group"].duplicated(keep=False)].groupby("group"):
        images = [f"{row.image} ({row.split})" for row in rows.itertuples()]
        yield Finding("error", str(group), f"group lies in {len(images)} splits: {' and '.join(images)}")


def data_digest(samples: pd.DataFrame) -> str:
    """SHA-256 over each sample's label, split, file bytes and path below the common folder.

    Independent of the order of rows and of where the dataset lies. `DataError` for a file that cannot be read.
    """
    files = [path for column in ("image", "mask") for path in samples[column] if isinstance(path, str)]
    folders = {os.path.dirname(path) for path in files if not _name_in_store(path)}  # the store lies beside the runs
    base = os.path.commonpath(folders) if folders else ""
    total = hashlib.sha256()
    for row in samples.sort_values("image").to_dict("records"):
        total.update(f"{row['label']} {row['split']}\n".encode())
        for path in (path for path in (row["image"], row["mask"]) if isinstance(path, str)):
            total.update(f"{_name_in_store(path) or Path(path).relative_to(base).as_posix()}\n".encode())
            try:
                total.update(hashlib.sha256(Path(path).read_bytes()).digest())
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return total.hexdigest()


def _name_in_store(mask: str) -> str:
    """A stored mask's path below its dataset's folder in the store; empty for any other file."""
    _, store, below = Path(mask).as_posix().rpartition(f"/{STORE}/")
    return below.partition("/")[2] if store else ""


# --- The folder layouts

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def scan_generic(root: Path, report: Report) -> Iterator[Row]:
    """``images/<split>/{normal,defective}`` and ``masks/defective`` or ``masks/<split>/defective``.

    Subfolders of ``defective`` name defect types. A mask has its image's path below the folder, or ends in ``_mask``.
    """
    for folder, expected in ((root / "images", SPLITS), *((root / "images" / s, (NORMAL, DEFECTIVE)) for s in SPLITS)):
        for other in _folders(folder):  # pictures there would be left out without a word
            if other.name not in expected and image_files(other):
                report("warning", other, f"folder is not read; expected one of {', '.join(expected)}")
    masks = {split: root / "masks" / split / DEFECTIVE for split in SPLITS}
    defective = {split: _by_key(report, root / "images" / split / DEFECTIVE) for split in SPLITS}
    shared = ChainMap(*(defective[split] for split in SPLITS if not masks[split].is_dir()))  # the first split wins
    shared_masks = _match_masks(report, shared, root / "masks" / DEFECTIVE)
    for split in SPLITS:
        yield from (Row(path, 0, split=split) for path in image_files(root / "images" / split / NORMAL))
        own = masks[split].is_dir()
        of_split = _match_masks(report, defective[split], masks[split]) if own else shared_masks
        for key, path in defective[split].items():
            mask = of_split.get(key)
            yield Row(path, 1, mask, key.split("/")[0] if "/" in key else DEFECTIVE, split=split)
            if mask is not None and not own and path != shared[key]:
                clash = f"has the same stem as {shared[key]}, and {mask} can be the mask of only one"
                report("error", path, f"{clash}; use masks/<split>/defective/")


def scan_synthetic(root: Path, report: Report) -> Iterator[Row]:
    """The generic layout, with the defect types that ``samples.csv`` of `make_synthetic` records."""
    table, types = root / "samples.csv", {}
    if table.is_file():
        types = pd.read_csv(table, dtype=str, keep_default_na=False).set_index("image")["defect_type"].to_dict()
    for row in scan_generic(root, report):
        yield row._replace(defect_type=types.get(row.image.relative_to(root).as_posix(), row.defect_type))


def scan_mvtec(root: Path, report: Report) -> Iterator[Row]:
    """One category of MVTec AD: ``train/good``, ``test/<defect>``, ``ground_truth/<defect>/*_mask.png``.

    The defects, all in ``test``, get no split, so that `split_samples` can share them; good images keep their folder's.
    """
    for split in ("train", "test"):
        yield from (Row(path, 0, split=split) for path in image_files(root / split / "good"))
    for folder in _folders(root / "test"):
        if folder.name != "good":
            defective = _by_key(report, folder)
            masks = _match_masks(report, defective, root / "ground_truth" / folder.name)
            yield from (Row(path, 1, masks.get(key), folder.name) for key, path in defective.items())


def scan_magnetic_tile(root: Path, report: Report) -> Iterator[Row]:
    """The published folders ``MT_<class>/Imgs/exp<k>_num_<n>.jpg`` with masks ``.png`` beside them; a group is a tile.

    One tile was photographed at up to six exposures, with k rising along the counter n: a new tile starts where n jumps
    by more than 400, or where k stops rising, unless n moved so little that it is mostly the same tile once more.
    """
    shots: list[tuple[int, int, str]] = []
    for folder in (folder for folder in _folders(root) if folder.name.startswith("MT_")):
        for path in (path for path in image_files(folder / "Imgs") if path.suffix.lower() != ".png"):
            if name := re.fullmatch(r"exp(\d+)_num_(\d+)", path.stem):
                shots.append((int(name[2]), int(name[1]), str(path)))
            else:
                report("error", path, "the name tells no tile; expected exp<k>_num_<n>.jpg")
    tile, last_number, last_exposure = -1, 0, 0
    for number, exposure, path in sorted(shots):
        step = number - last_number
        # Of the 53 neighbouring series within 150 steps, 30 show the same tile; of the 201 further apart, 3 do.
        if tile < 0 or step > 400 or (exposure <= last_exposure and step > 150):
            tile += 1
        last_number, last_exposure = number, exposure
        image, mask = Path(path), Path(path).with_suffix(".png")
        defect = image.parent.parent.name.removeprefix("MT_").lower()
        of_class = (0, None, NORMAL) if defect == "free" else (1, mask if mask.is_file() else None, defect)
        yield Row(image, *of_class, group=f"tile{tile:04d}")


def scan_ball_screw(root: Path, report: Report) -> Iterator[Row]:
    """BSData: ``images/01_<time>_<position>_crop_<k>.jpg`` and ``labels/<stem>.json`` of labelme, its masks.

    A picture whose label file holds shapes is defective, of the type that the first one names. A group is a position on
    the drive, photographed again and again while it wore.
    """
    images = _by_key(report, root / "images")
    masks = _match_masks(report, images, root / "labels", suffixes={".json"})
    of_drive = {key: path for key, path in images.items() if not path.name.startswith("KGT")}
    if others := len(images) - len(of_drive):
        why = "another drive, always with pitting and of other sizes: name and size would give the class away"
        report("info", root / "images", f"{others} pictures named KGT… are left out: {why}")
    if of_drive and not of_drive.keys() & masks.keys():  # without a label, each would count as normal
        expected = "expected labels/<stem>.json, of labelme, for the defective ones"
        report("error", root / "labels", f"holds no label file of any of the {len(of_drive)} pictures; {expected}")
    for key, path in of_drive.items():
        if not (name := re.fullmatch(r"01_\d{12}_(\d+_\d+)_crop_\d+", path.stem)):
            report("error", path, "the name tells no position; expected 01_<yymmddHHMMSS>_<position>_crop_<k>.jpg")
            continue
        try:
            kinds = [kind for kind, _ in _read_labelme(masks[key])[1]] if key in masks else []
        except DataError as error:
            report("error", masks[key], str(error).removeprefix(f"{masks[key]}: "))
            continue
        yield Row(path, *((1, masks[key], kinds[0]) if kinds else (0, None, NORMAL)), group=name[1])


# Reader and expected folders by `dataset_type`.
LAYOUTS: dict[str, tuple[Callable[[Path, Report], Iterator[Row]], str]] = {
    "generic": (scan_generic, "images/{train,val,test,test_shift}/{normal,defective}"),
    "mvtec": (scan_mvtec, "train/good, test/<defect> and ground_truth/<defect>"),
    "magnetic_tile": (scan_magnetic_tile, "MT_<class>/Imgs/exp<k>_num_<n>.jpg"),
    "ball_screw": (scan_ball_screw, "images/01_<yymmddHHMMSS>_<position>_crop_<k>.jpg and labels/<stem>.json"),
    "synthetic": (scan_synthetic, "images/{train,val,test,test_shift}/{normal,defective}"),
}


def image_files(folder: Path, suffixes: set[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Pictures below a folder, sorted; hidden files and other kinds are left out, a missing folder is empty."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    return sorted(path for path in files if not path.name.startswith(".") and path.is_file())


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/") if not path.name.startswith("."))


def _by_key(report: Report, folder: Path, suffixes: set[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Files by their path below the folder without suffix; two files of one key are an error."""
    files: dict[str, Path] = {}
    for path in image_files(folder, suffixes):
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in files:
            report("error", path, f"has the same stem as {files[key]}, so that a mask cannot be told; rename one")
        files.setdefault(key, path)
    return files


def _match_masks(
    report: Report, images: Mapping[str, Path], folder: Path, suffixes: set[str] = IMAGE_SUFFIXES
) -> dict[str, Path]:
    """The mask of each image key, of the same key or with the suffix ``_mask``."""
    files, masks = _by_key(report, folder, suffixes), {}
    for key in images:
        candidates = [name for name in (key, f"{key}_mask") if name in files and (name == key or name not in images)]
        for name in reversed(candidates):
            masks[key] = files.pop(name)
            if name != candidates[0]:
                report("error", files[key], f"is a second mask of {images[key]} besides {masks[key]}")
    for path in files.values():
        report("warning", path, "mask without an image; it is not used")
    return masks


def masks_of(pictures: Sequence[Path]) -> dict[Path, Path]:
    """Pictures that a dataset around them has a mask for, and that mask, told by the folders that they lie in."""
    datasets = set()
    for root, name in {(folder.parent, folder.name) for one in pictures for folder in one.absolute().parents}:
        if name == "images" and (root / "masks").is_dir():
            datasets.add((scan_generic, root))
        if name == "images" and (root / "labels").is_dir():
            datasets.add((scan_ball_screw, root))
        if name == "test" and (root / "ground_truth").is_dir():
            datasets.add((scan_mvtec, root))
        if name == "Imgs" and root.name.startswith("MT_"):
            datasets.add((scan_magnetic_tile, root.parent))
    masks = {row.image: row.mask for read, root in datasets for row in read(root, lambda *_: None)}
    return {picture: mask for picture in pictures if (mask := masks.get(picture.absolute())) is not None}


# --- Train, validation and test


def split_samples(
    samples: pd.DataFrame, *, val_ratio: float, test_ratio: float, seed: int, both_classes: bool = True
) -> pd.DataFrame:
    """Fill the column `split` of a table of `read_samples` with train, val, test (and test_shift if it is there).

    What the layout says stays, and holds for the whole group. Rows it leaves open, or all training rows where nothing
    is said of a test set, give `test_ratio` of themselves to test; then `val_ratio` of the training data, 0 where the
    layout has a validation folder, goes to val. The same seed gives the same split. `DataError` for no validation data
    or two sources of it, a group that would cross splits, or (`both_classes`) a split that lacks a class.
    """
    raise_errors(_crossing_groups(samples))
    groups, label = samples["group"].to_numpy(dtype=object), samples["label"].to_numpy(dtype=np.int64)
    placed = samples["group"].map(samples.dropna(subset=["split"]).set_index("group")["split"].to_dict())
    split = samples["split"].fillna(placed).fillna("open").to_numpy(dtype=object, copy=True)
    strata = np.array([f"{row['label']} {row['defect_type']}" for row in samples.to_dict("records")])

    def hold_out(rows: NDArray[np.intp], name: str, ratio: float, part: int) -> None:
        rng = np.random.default_rng([seed, part])
        split[rows[_held_rows(groups[rows].astype(str), strata[rows], label[rows], ratio, rng)]] = name

    open_rows = np.flatnonzero(split == "open")
    if not len(open_rows) and not (split == "test").any():
        logger.info("no test folder: %g of the training images become the test split", test_ratio)
        open_rows = np.flatnonzero(split == "train")
    if len(open_rows):
        split[open_rows] = "train"
        hold_out(open_rows, "test", test_ratio, 0)
    in_val = int((split == "val").sum())
    if in_val and val_ratio > 0:
        own = f"the data has a validation folder of its own ({in_val} images)"
        raise DataError(f"val_ratio is {val_ratio:g}, but {own}; set val_ratio to 0 to use it, or remove the folder")
    if not in_val and val_ratio == 0:
        advice = "set val_ratio to the share of the training images to validate on, usually 0.2"
        raise DataError(f"val_ratio is 0, but the data has no validation folder (images/val); {advice}")
    if not in_val and (split == "train").any():
        hold_out(np.flatnonzero(split == "train"), "val", val_ratio, 1)
    for name, (value, kind) in product(SPLITS[:3], enumerate((NORMAL, DEFECTIVE))) if both_classes else ():
        if value not in (labels := label[split == name]):
            found = f"split '{name}' has no {kind} image among {len(labels)}; expected both classes in each split"
            raise DataError(f"{found}: add images, or choose other val_ratio, test_ratio or split_seed")
    return samples.reset_index(drop=True).assign(split=pd.Series(split, dtype=object))


def _held_rows(groups: NDArray, strata: NDArray, label: NDArray, ratio: float, rng: np.random.Generator) -> NDArray:
    """Which rows to hold out: whole groups, close to `ratio` of every stratum and of both classes.

    Groups with the same counts are interchangeable, so the search runs over the few kinds of groups, and how many of
    each to hold out: random rounding of the share of each kind, then single steps and swaps downhill.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    stratum_names, stratum_of = np.unique(strata, return_inverse=True)
    # The classes themselves count as two more strata, so that many small defect types cannot all round one way.
    counts = np.zeros((len(names), len(stratum_names) + 2), dtype=np.int64)
    np.add.at(counts, (group_of, stratum_of), 1)
    np.add.at(counts, (group_of, len(stratum_names) + label), 1)
    kinds, kind_of, available = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
    totals = available @ kinds
    weights = 1 / np.maximum(totals, 1)
    weights[-2:] *= len(weights) - 2  # the classes count as much as all their defect types together
    held = np.floor(ratio * available + rng.random(len(available))).astype(np.int64).clip(0, available)
    # A step moves one group of a kind in or out: (kind, sign). A move is a step or, unless kinds are many, two.
    kind, sign = np.tile(rng.permutation(len(kinds)), 2), np.repeat([1, -1], len(kinds))
    first = second = np.arange(len(kind))
    if len(kinds) <= 300:  # so many kinds leave little to mend, and their pairs would fill the memory
        first, second = np.triu_indices(len(kind))
    steps = sign[:, None] * kinds[kind]
    changes = steps[first] + np.where((first == second)[:, None], 0, steps[second])
    while True:
        deviation = held @ kinds - ratio * totals
        gain = (weights * deviation**2).sum() - (weights * (deviation + changes) ** 2).sum(axis=1)
        possible = (held[kind] + sign >= 0) & (held[kind] + sign <= available[kind])
        gain[~(possible[first] & possible[second])] = 0
        best = int(np.argmax(gain))
        if gain[best] <= 1e-9:
            break
        for step in {int(first[best]), int(second[best])}:
            held[kind[step]] += sign[step]
    chosen = np.zeros(len(names), dtype=np.bool_)
    for one, number in enumerate(held):
        chosen[rng.permutation(np.flatnonzero(kind_of.reshape(-1) == one))[:number]] = True
    return chosen[group_of]


# --- Decoding

MASK_THRESHOLD = 127  # mask values above it are defect: published masks have grey edges


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Decode an image to (h, w, 3) RGB, turned as its orientation tag says; grey is repeated, alpha dropped.

    `UnreadableError` where the file is missing, truncated, or not an image; so do the two below.
    """
    # Not IMREAD_COLOR_RGB: with 16-bit TIFF files OpenCV 5.0 then returns memory it never wrote.
    image = to_8_bit(_decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, "image"), path)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def read_mask_values(path: str | Path) -> NDArray[np.uint8]:
    """Decode a mask to its 8-bit values, (h, w); the shapes of a labelme file (.json) are drawn, 255 on 0.

    `DataError`, too, where a labelme file holds what cannot be drawn.
    """
    if Path(path).suffix.lower() == ".json":
        size, shapes = _read_labelme(path)
        drawn = [_filled(corners, size) for _, corners in shapes]
        return np.logical_or.reduce([np.zeros(size, np.bool_), *drawn]) * np.uint8(255)
    return mask_to_8_bit(_decode(path, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH, "mask"), path)


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """Defect pixels of a mask file, (h, w)."""
    return read_mask_values(path) > MASK_THRESHOLD


def to_8_bit(image: NDArray, path: str | Path = "image") -> NDArray[np.uint8]:
    """Scale integers by their type: 16 bits are divided by 257, whatever the image holds; others: `UnreadableError`.

    A depth guessed from an image's largest value would differ within a dataset: brightness could tell the class.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise UnreadableError(f"{path}: pixels are {image.dtype}; expected 8- or 16-bit integers")
    return image if image.dtype == np.uint8 else cv2.convertScaleAbs(image, alpha=1 / 257)  # type: ignore[return-value]


def mask_to_8_bit(mask: NDArray, path: str | Path = "mask") -> NDArray[np.uint8]:
    """As `to_8_bit`, but a mask whose values all fit 8 bits keeps them: it has two values and no brightness."""
    fits = mask.dtype == np.uint16 and mask.max(initial=0) <= 255
    return mask.astype(np.uint8) if fits else to_8_bit(mask, path)


def _decode(path: str | Path, flags: int, what: str) -> NDArray:
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UnreadableError(f"{path}: {what} cannot be read: {error.strerror}") from None
    with contextlib.suppress(cv2.error):  # of an empty file, too
        if (image := cv2.imdecode(raw, flags)) is not None:
            return image
    raise UnreadableError(f"{path}: {what} is {'truncated or not an image' if raw.size else 'empty'}; replace the file")


def _read_labelme(path: str | Path) -> tuple[tuple[int, int], list[tuple[str, NDArray[np.float64]]]]:
    """(h, w) of the picture, and of each shape its label and corners (n, 2): x, y, where pixel c spans [c, c + 1)."""
    content = parsed(Path(path), "a JSON file", json.loads)
    told: dict[str, Any] = content if isinstance(content, dict) else {}
    shapes: Any = told.get("shapes")
    sides: tuple[Any, Any] = told.get("imageHeight"), told.get("imageWidth")
    if not isinstance(shapes, list) or not all(isinstance(one, dict) for one in shapes) or None in sides:
        there = ", ".join(list(told)[:8]) or f"a {type(content).__name__}"
        raise DataError(f"{path}: not a labelme file; expected shapes, imageHeight and imageWidth, found {there}")
    if not all(type(side) is int and 0 < side < 2**16 for side in sides):
        raise DataError(f"{path}: imageHeight and imageWidth must be whole numbers of pixels, found {[*sides]!r:.80}")
    kinds = Counter(str(one.get("shape_type", "polygon")) for one in shapes)
    if others := [f"{kind} ({count})" for kind, count in kinds.items() if kind not in ("polygon", "rectangle")]:
        raise DataError(f"{path}: holds shapes of type {', '.join(others)}; expected polygon or rectangle")
    labels = [str(one.get("label") or DEFECTIVE).lower() for one in shapes]
    return sides, [*zip(labels, (_corners(one, f"{path}: shape {k}") for k, one in enumerate(shapes)))]


def _corners(shape: dict[str, Any], place: str) -> NDArray[np.float64]:
    points, is_rectangle = shape.get("points"), shape.get("shape_type") == "rectangle"
    corners: NDArray[np.float64] = np.empty((0, 0))
    with contextlib.suppress(TypeError, ValueError):
        corners = np.array(points, dtype=np.float64)
    if not (corners.ndim == 2 and corners.shape[1] == 2 and (abs(corners) < 1e9).all()):
        raise DataError(f"{place}: points must be pairs of finite numbers, found {points!r:.80}")
    if is_rectangle and len(corners) == 2:  # opposite corners; some tools write all four
        corners = np.stack([corners[[0, 1, 1, 0], 0], corners[[0, 0, 1, 1], 1]], axis=1)
    if len(corners) < 3 + is_rectangle:
        kind, expected = ("rectangle", "two or four") if is_rectangle else ("polygon", "three or more")
        raise DataError(f"{place}: a {kind} of {len(corners)} points; expected {expected}")
    return corners


def _filled(corners: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centre lies in a polygon, edges on the left and above included; where none does, what it touches."""
    (height, width), steps = size, np.roll(corners, -1, axis=0) - corners
    (x, y), (dx, dy), centres = corners.T, steps.T, np.arange(height) + 0.5
    row, edge = np.nonzero((y <= centres[:, None]) != (np.roll(y, -1) <= centres[:, None]))
    crossed = x[edge] + (centres[row] - y[edge]) / dy[edge] * dx[edge]
    turns = np.zeros((height, width + 1), dtype=np.bool_)  # where a row enters or leaves the polygon
    np.logical_xor.at(turns, (row, np.ceil(crossed - 0.5).clip(0, width).astype(np.int64)), True)
    filled = np.logical_xor.accumulate(turns, axis=1)[:, :width]
    for start, step in () if filled.any() else zip(corners, steps):
        # Cut at the lines between pixels, so that each piece of the edge lies within one.
        cuts = [(np.arange(side + 1) - a) / d for a, d, side in zip(start, step, (width, height)) if d]
        ends = np.unique(np.concatenate([[0, 1], *cuts]).clip(0, 1))
        column, row = np.floor(start + step * (ends[:-1] + ends[1:])[:, None] / 2).astype(np.int64).T
        there = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        filled[row[there], column[there]] = True
    return filled


def parsed(file: Path, form: str, parse: Callable[[bytes], Any]) -> Any:
    """What `parse` makes of a text file's bytes; `UnreadableError` where it cannot: not of that `form`, or no file."""
    try:
        return parse(file.read_bytes())
    except OSError as error:
        raise UnreadableError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{file}: is not encoded in UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (ValueError, SyntaxError, LookupError, RecursionError) as error:
        raise UnreadableError(f"{file}: not {form}: {error}") from None
