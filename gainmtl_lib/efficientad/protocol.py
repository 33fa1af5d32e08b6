"""Which pictures EfficientAD learns from, validates on and is tested on."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from gainmtl_lib.build import make_data, with_boxes
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.samples import read_samples
from gainmtl_lib.data.splits import assign_splits
from gainmtl_lib.efficientad.settings import MVTEC_CATEGORIES, EfficientADSettings
from gainmtl_lib.wording import closest

logger = logging.getLogger(__name__)

GOOD_PARTS = ("train", "val")
"""Splits of which the normal images alone are used."""


def samples_in_use(settings: EfficientADSettings) -> pd.DataFrame:
    """The table of samples with its split, defects of `GOOD_PARTS` left out; missing synthetic data is made first.

    The split is that of GAIN-MTL with the same ratios and `seed_of_split`, so that both systems are tested on the
    same pictures, except for MVTec AD: there its own protocol holds, everything in ``test`` is tested on.

    Raises:
        DataError: the dataset cannot be read or split, has no such category, or no normal image in `GOOD_PARTS`.
    """
    make_data(settings)
    samples = read_samples(
        _dataset_folder(settings),
        dataset_type=settings.dataset_type,
        group_pattern=settings.group_pattern,
        both_classes=False,
    )
    samples = with_boxes(samples, settings)
    if settings.dataset_type == "mvtec":
        samples["split"] = [split or "test" for split in samples["split"]]
    samples = assign_splits(
        samples, val_ratio=settings.val_ratio, test_ratio=settings.test_ratio, seed=settings.seed_of_split
    )
    check_good_parts(samples, settings.dataset_folder)
    dropped = samples["split"].isin(GOOD_PARTS) & (samples["label"] == 1)
    if dropped.any():
        logger.info("left out: %d defective images of train and val; EfficientAD learns from good parts", dropped.sum())
    return samples[~dropped].reset_index(drop=True)


def check_good_parts(samples: pd.DataFrame, folder: Path) -> None:
    """Raise a `DataError` that names the dataset's folder where a split of `GOOD_PARTS` has no normal image."""
    for split in GOOD_PARTS:
        labels = samples.loc[samples["split"] == split, "label"]
        if not (labels == 0).any():
            raise DataError(
                f"{folder}: split '{split}' has no normal image among {len(labels)}; EfficientAD learns from normal "
                "images: add some, or choose other val_ratio, test_ratio or split_seed"
            )


def found_categories(data_root: Path) -> list[str]:
    """Folders of `data_root` that hold a category of MVTec AD, sorted."""
    if not data_root.is_dir():
        return []
    return sorted(folder.name for folder in data_root.iterdir() if (folder / "train" / "good").is_dir())


def _dataset_folder(settings: EfficientADSettings) -> Path:
    folder = settings.dataset_folder
    if settings.category is None or folder.is_dir() or not settings.data_root.is_dir():
        return folder
    found = found_categories(settings.data_root)
    near = closest(settings.category, [*found, *MVTEC_CATEGORIES])
    there = f"found {', '.join(found)}" if found else "no folder there holds train/good"
    raise DataError(f"{settings.data_root}: has no category '{settings.category}'{near} ({there})")
