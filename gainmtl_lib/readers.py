"""A data set on disk -> the table of samples, and its split into train, validation and test."""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.findings import DataError, Finding, raise_errors, reported, settle
from gainmtl_lib.layouts import CLASS_NAMES, LAYOUTS, NORMAL, SPLITS, Row, Scan, folders_in
from gainmtl_lib.pictures import IMAGE_SUFFIXES, files_below

logger = logging.getLogger(__name__)

# --- The table of samples, the contract between the layouts and the rest

COLUMNS = Row._fields
STORE = "label_masks"  # the folder that holds the masks drawn from label files, of all datasets


def read_samples(
    root: str | Path,
    *,
    dataset_type: str,
    group_pattern: str | None = None,
    mask_suffix: str = "",
    both_classes: bool = True,
    findings: list[Finding] | None = None,
) -> pd.DataFrame:
    """Read a dataset's folder, of layouts with categories that of one, into the table of samples. Decodes no picture.

    Args:
        group_pattern: searched in the file name; its first group, or the whole match, names the part that the picture
            shows. Without one each image is its own group, unless the layout knows better.
        mask_suffix: what a mask's name has behind its picture's, see `Scan`.
        both_classes: whether a single class is an error.
        findings: takes what is wrong, so that nothing is raised (`DataError`, of all that is wrong) or logged.
    """
    layout, scan, rows = LAYOUTS[dataset_type], Scan(Path(os.path.abspath(root)), mask_suffix), []
    root = scan.root
    with reported(scan.findings):
        rows = sorted(layout.read(scan), key=lambda row: row.image) if root.is_dir() else []
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        scan.report("error", root, f"data_root {what}; expected the dataset's folder")
    elif not rows and not any(finding.level == "error" for finding in scan.findings):
        names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))[:8]
        there = f"found {', '.join(names)}" if names else "the folder is empty"
        if categories := categories_in(root, dataset_type):
            there = f"data_root is one category's folder, choose among {', '.join(categories)}"
        scan.report("error", root, f"no images; expected {layout.expected}; {there}")
    rows = _without_links(rows, scan)
    for place, row in enumerate(rows):
        group = row.group or row.image.relative_to(root).as_posix()
        if group_pattern and (match := re.search(group_pattern, row.image.name)):
            group = (match.groups() or (None,))[0] or match[0]  # None: the group took no part in the match
        elif group_pattern:
            scan.report("error", row.image, f"group_pattern {group_pattern!r} does not match the file name")
        if row.label and row.defect_type == NORMAL:
            told = "is defective, and its folder says that its defect type is 'normal'; rename that folder"
            scan.report("error", row.image, told)
        mask = tuple(map(str, row.mask)) if isinstance(row.mask, tuple) else row.mask and str(row.mask)
        rows[place] = row._replace(image=str(row.image), mask=mask, group=group)
    # Plain objects, because pandas' own string type turns None into NaN, which is true in an `if`.
    samples = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object).astype({"label": "int64"})
    if both_classes and len(set(samples["label"])) == 1:
        only = CLASS_NAMES[samples["label"].iloc[0]]
        scan.report("error", root, f"all {len(samples)} images are {only}; expected normal and defective ones")
    scan.findings += _crossing_groups(samples)
    if findings is not None:
        scan.findings += _left_out(scan, samples)
    settle(scan.findings, findings)
    return samples


def categories_in(root: Path, dataset_type: str) -> list[str]:
    """Folders that each hold a category of a dataset, sorted; empty for data without."""
    own = LAYOUTS[dataset_type].category
    return [folder.name for folder in folders_in(root) if own and (folder / own).is_dir()]


def _without_links(rows: list[Row], scan: Scan) -> list[Row]:
    """The rows less links to a picture of the same split, which are counted; of the other class they are an error.

    A picture that is linked into another split stays: the check names it among the duplicates.
    """
    files: dict[str, Row] = {}
    kept: dict[tuple[str, str | None], Row] = {}
    for row in rows:
        file = os.path.realpath(row.image)
        if (first := files.setdefault(file, row)).label != row.label:
            scan.report("error", row.image, f"is the same file as {first.image}, which is of the other class")
        kept.setdefault((file, row.split), row)
    if count := len(rows) - len(kept):
        told = f"{count} pictures are links to others of the dataset; each is read once"
        scan.report("info", scan.root, told)
    return [*kept.values()]


# Texts and what programs keep; any other file may be a picture.
NO_PICTURES = {
    ".json", ".xml", ".csv", ".txt", ".yaml", ".yml", ".md", ".html", ".pdf", ".log", ".toml", ".ini", ".db", ".lnk",
    ".py", ".ipynb", ".sh", ".bat", ".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".cache", ".pkl", ".pt", ".pth",
    ".onnx", ".safetensors", ".ckpt", ".xlsx", ".docx", ".names", ".data", ".cff", ".bib", ".url", ".license",
}  # fmt: skip


def _left_out(scan: Scan, samples: pd.DataFrame) -> Iterator[Finding]:
    """A line of the pictures below the folder that are neither images nor masks of the table, one of other files."""
    root, used = scan.root, {*samples["image"], *samples["mask"].dropna().explode(), *map(str, scan.read)}
    used |= {os.path.realpath(path) for path in used}
    cues = root / "cues"  # of planted data
    files = [path for path in files_below(root) if cues not in path.parents]
    rest = [
        path
        for path in files
        if path.suffix.lower() in IMAGE_SUFFIXES and not {str(path), os.path.realpath(path)} & used
    ]
    if rest:
        folders = Counter(path.parent.relative_to(root).as_posix() for path in rest).most_common(5)
        there = ", ".join(f"{count} in {name}" for name, count in folders)
        told = f"{len(rest)} pictures are neither images nor masks of the layout, and are not read: {there}"
        yield Finding("info", str(root), told)
    of_pictures = {path.parent for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    others = (path for path in files if path.suffix or path.parent in of_pictures)
    kinds = Counter(path.suffix.lower() for path in others if path.suffix.lower() not in IMAGE_SUFFIXES | NO_PICTURES)
    if kinds:
        named = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(kinds.items()))
        told = f"{sum(kinds.values())} files are of types that are not read: {named}"
        yield Finding("warning", str(root), told)


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
    for name, (value, kind) in product(SPLITS[:3], enumerate(CLASS_NAMES)) if both_classes else ():
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
