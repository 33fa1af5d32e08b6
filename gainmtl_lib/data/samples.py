"""The table of samples, the contract between the readers of `layouts` and the rest.

One row per image: ``image`` (path), ``label`` (0 normal, 1 defective), ``mask`` (path or None),
``defect_type`` ("normal" for normal images), ``group`` (pictures of one part), ``split`` (train, val, test,
test_shift, or None where the layout does not say).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path

import pandas as pd

from gainmtl_lib.data.boxes.store import name_in_store
from gainmtl_lib.data.findings import DataError, Finding, raise_errors
from gainmtl_lib.data.layouts import LAYOUTS, SPLITS, Scan

__all__ = ["COLUMNS", "SPLITS", "DataError", "data_digest", "read_samples", "scan_samples"]

logger = logging.getLogger(__name__)

COLUMNS = ("image", "label", "mask", "defect_type", "group", "split")


def read_samples(
    root: str | Path, *, dataset_type: str, group_pattern: str | None = None, both_classes: bool = True
) -> pd.DataFrame:
    """Read a dataset's folder into the table of samples. No picture is decoded here: the loaders do that.

    Args:
        root: the dataset's folder; for `mvtec` that of one category.
        dataset_type: generic, mvtec, magnetic_tile or synthetic.
        group_pattern: regular expression searched in the file name; its first group, or the whole match,
            names the part that the picture shows. Without one each image is its own group, except where
            the reader knows better (magnetic_tile).
        both_classes: whether a single class is an error.

    Raises:
        DataError: the folder is missing, has no images or a single class, two files claim one stem, a name
            does not match the pattern, or a group lies in two splits.
    """
    samples, findings = scan_samples(
        root, dataset_type=dataset_type, group_pattern=group_pattern, both_classes=both_classes
    )
    raise_errors(findings)
    for finding in findings:
        logger.warning("%s", finding)
    return samples


def scan_samples(
    root: str | Path, *, dataset_type: str, group_pattern: str | None = None, both_classes: bool = True
) -> tuple[pd.DataFrame, list[Finding]]:
    """`read_samples` that reports instead of raising: the table so far, and every finding."""
    if dataset_type not in LAYOUTS:
        raise DataError(f"dataset_type must be one of {', '.join(LAYOUTS)}, got '{dataset_type}'")
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        return _table(Scan(root)), [Finding("error", str(root), f"data_root {what}; expected the dataset's folder")]
    scan = LAYOUTS[dataset_type](root)
    samples = _table(scan)
    if both_classes and len(set(samples["label"])) == 1:
        only = "normal" if samples["label"].iloc[0] == 0 else "defective"
        scan.report("error", root, f"all {len(samples)} images are {only}; expected normal and defective ones")
    samples["group"] = _groups(scan, samples, group_pattern)
    scan.findings += crossing_groups(samples)
    return samples, scan.findings


def crossing_groups(samples: pd.DataFrame) -> list[Finding]:
    """An error for each group whose images lie in more than one split."""
    firsts: dict[str, dict[str, str]] = {}
    for row in samples.to_dict("records"):
        if isinstance(row["split"], str):
            firsts.setdefault(row["group"], {}).setdefault(row["split"], row["image"])
    return [
        Finding(
            "error",
            group,
            f"group lies in {len(files)} splits: " + " and ".join(f"{file} ({split})" for split, file in files.items()),
        )
        for group, files in sorted(firsts.items())
        if len(files) > 1
    ]


def data_digest(samples: pd.DataFrame) -> str:
    """SHA-256 over each sample's label, split, file bytes and path below the common folder.

    Independent of the order of rows and of where the dataset lies.
    """
    files = [path for column in ("image", "mask") for path in samples[column] if isinstance(path, str)]
    files = [path for path in files if name_in_store(path) is None]  # masks of boxes lie beside the runs
    base = os.path.commonpath([os.path.dirname(path) for path in files]) if files else ""
    total = hashlib.sha256()
    for row in samples.sort_values("image").to_dict("records"):
        total.update(f"{row['label']} {row['split']}\n".encode())
        for path in (row["image"], row["mask"]):
            if isinstance(path, str):
                name = name_in_store(path) or Path(path).relative_to(base)
                total.update(f"{name.as_posix()}\n".encode())
                total.update(_file_digest(path))
    return total.hexdigest()


def _file_digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _table(scan: Scan) -> pd.DataFrame:
    rows = sorted(scan.rows, key=lambda row: row.image)
    columns = {
        "image": [str(row.image) for row in rows],
        "label": [row.label for row in rows],
        "mask": [None if row.mask is None else str(row.mask) for row in rows],
        "defect_type": [row.defect_type for row in rows],
        "group": [row.group for row in rows],
        "split": [row.split for row in rows],
    }
    # Plain objects, because pandas' own string type turns None into NaN, which is true in an `if`.
    return pd.DataFrame(columns, columns=list(COLUMNS), dtype=object).astype({"label": "int64"})


def _groups(scan: Scan, samples: pd.DataFrame, pattern: str | None) -> list[str]:
    groups = []
    for row in samples.to_dict("records"):
        path = Path(row["image"])
        match = re.search(pattern, path.name) if pattern is not None else None
        if pattern is not None and match is None:
            scan.report("error", path, f"group_pattern {pattern!r} does not match the file name")
        own = row["group"] if isinstance(row["group"], str) else path.relative_to(scan.root).as_posix()
        # A group that did not take part in the match is None: then the whole match names the part.
        groups.append(own if match is None else (match.groups() or (None,))[0] or match[0])
    return groups
