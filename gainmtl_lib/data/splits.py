"""Train, validation and test: whole groups, strata kept, seeded.

G groups, S strata. A stratum is one defect type (normal counts as one).
"""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.data.findings import DataError, raise_errors
from gainmtl_lib.data.samples import crossing_groups

logger = logging.getLogger(__name__)

OPEN = "open"
MAX_KINDS_FOR_SWAPS = 300
"""Above it the search takes single steps only: pairs would cost memory, and so many kinds leave little to mend."""


def split_samples(samples: pd.DataFrame, *, val_ratio: float, test_ratio: float, seed: int) -> pd.DataFrame:
    """`assign_splits` for training on both classes.

    Raises:
        DataError: see there, or a split that would lack a class.
    """
    assigned = assign_splits(samples, val_ratio=val_ratio, test_ratio=test_ratio, seed=seed)
    _check_classes(assigned["split"].to_numpy(dtype=object), assigned["label"].to_numpy(dtype=np.int64))
    return assigned


def assign_splits(samples: pd.DataFrame, *, val_ratio: float, test_ratio: float, seed: int) -> pd.DataFrame:
    """Fill the column `split` with train, val, test (and test_shift where its folder exists).

    What the layout says stays. Rows it leaves open, or all training rows where nothing is said of a test
    set, give `test_ratio` of themselves to test; then `val_ratio` of the training data goes to val.

    Args:
        samples: table of `read_samples`; not changed.
        val_ratio: share of the training data; 0 where the layout has its own validation folder.
        test_ratio: share of the images whose split is open.
        seed: another seed, another split; the same seed, the same split.

    Raises:
        DataError: no validation data or two sources of it, or a group that would cross splits.
    """
    raise_errors(crossing_groups(samples))
    groups = samples["group"].to_numpy(dtype=object)
    split = _follow_group(groups, samples["split"].to_numpy(dtype=object))
    label = samples["label"].to_numpy(dtype=np.int64)
    strata = np.array([f"{row['label']} {row['defect_type']}" for row in samples.to_dict("records")])

    def hold_out(rows: NDArray[np.intp], ratio: float, part: int) -> NDArray[np.intp]:
        rng = np.random.default_rng([seed, part])
        return rows[_held_rows(groups[rows].astype(str), strata[rows], label[rows], ratio, rng)]

    open_rows = np.flatnonzero(split == OPEN)
    if not len(open_rows) and not (split == "test").any():
        logger.info("no test folder: %g of the training images become the test split", test_ratio)
        open_rows = np.flatnonzero(split == "train")
    if len(open_rows):
        split[open_rows] = "train"
        split[hold_out(open_rows, test_ratio, 0)] = "test"
    in_val = int((split == "val").sum())
    if in_val and val_ratio > 0:
        raise DataError(
            f"val_ratio is {val_ratio:g}, but the data has a validation folder of its own ({in_val} "
            "images); set val_ratio to 0 to use it, or remove the folder"
        )
    if not in_val and val_ratio == 0:
        raise DataError(
            "val_ratio is 0, but the data has no validation folder (images/val); set val_ratio to the share of the "
            "training images to validate on, usually 0.2"
        )
    if not in_val:
        split[hold_out(np.flatnonzero(split == "train"), val_ratio, 1)] = "val"
    return samples.reset_index(drop=True).assign(split=pd.Series(split, dtype=object))


def _follow_group(groups: NDArray, split: NDArray) -> NDArray:
    """A copy of `split` in which open rows take over the split that their group already has, if any."""
    placed = {group: name for group, name in zip(groups, split, strict=True) if isinstance(name, str)}
    pairs = zip(groups, split, strict=True)
    return np.array([name if isinstance(name, str) else placed.get(group, OPEN) for group, name in pairs], dtype=object)


def _held_rows(
    groups: NDArray, strata: NDArray, label: NDArray[np.int64], ratio: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which rows to hold out: whole groups, close to `ratio` of every stratum and of both classes."""
    names, group_of = np.unique(groups, return_inverse=True)
    stratum_names, stratum_of = np.unique(strata, return_inverse=True)
    # The classes themselves count as two more strata, so that many small defect types cannot all round one way.
    counts = np.zeros((len(names), len(stratum_names) + 2), dtype=np.int64)
    np.add.at(counts, (group_of, stratum_of), 1)
    np.add.at(counts, (group_of, len(stratum_names) + label), 1)
    kinds, kind_of = np.unique(counts, axis=0, return_inverse=True)
    kind_of = kind_of.reshape(-1)
    held = np.zeros(len(names), dtype=np.bool_)
    for kind, number in enumerate(_held_per_kind(kinds, np.bincount(kind_of), ratio, rng)):
        held[rng.permutation(np.flatnonzero(kind_of == kind))[:number]] = True
    return held[group_of]


def _held_per_kind(
    kinds: NDArray[np.int64], available: NDArray[np.int64], ratio: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """How many groups of each kind to hold out so that every stratum comes near its share.

    Groups with the same counts are interchangeable, so the search runs over the few kinds of groups instead
    of over the groups: random rounding of the share of each kind, then single steps and swaps downhill.

    Args:
        kinds: images per stratum of one group of each kind, the two classes last, (K, S + 2).
        available: number of groups of each kind, (K,).
        ratio: share to hold out.
        rng: decides the rounding.
    """
    totals = available @ kinds
    weights = 1 / np.maximum(totals, 1)
    weights[-2:] *= len(weights) - 2  # the classes count as much as all their defect types together
    held = np.floor(ratio * available + rng.random(len(available))).astype(np.int64).clip(0, available)
    # A step moves one group of a kind in or out: (kind, sign). A move is a step or, unless kinds are many, two.
    kind = np.tile(rng.permutation(len(kinds)), 2)
    sign = np.repeat([1, -1], len(kinds))
    first = second = np.arange(len(kind))
    if len(kinds) <= MAX_KINDS_FOR_SWAPS:
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
            return held
        for step in {int(first[best]), int(second[best])}:
            held[kind[step]] += sign[step]


def _check_classes(split: NDArray, label: NDArray[np.int64]) -> None:
    for name in ("train", "val", "test"):
        labels = label[split == name]
        for value, kind in enumerate(("normal", "defective")):
            if value not in labels:
                raise DataError(
                    f"split '{name}' has no {kind} image among {len(labels)}; expected both classes in each split: "
                    "add images, or choose other val_ratio, test_ratio or split_seed"
                )
