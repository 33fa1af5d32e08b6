"""Where EfficientAD's batches come from: a class to subclass, and the provider of the settings' own data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gainmtl_lib.data.datamodule import share_with_workers, whole_batches
from gainmtl_lib.data.dataset import EpochSampler, SampleDataset
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.loading import load_samples
from gainmtl_lib.data.samples import SPLITS, data_digest
from gainmtl_lib.efficientad.anomalies import Image, NormalsAndAnomalies, Region, kind_of
from gainmtl_lib.efficientad.protocol import check_good_parts, samples_in_use
from gainmtl_lib.efficientad.settings import EfficientADSettings
from gainmtl_lib.records import Batch


class DatasetProvider(ABC):
    """Data to learn from and to be measured on. Subclass it to bring your own.

    Loaders yield `Batch`es, or plain images float32 (B, 3, H, W) in [0, 1], which count as normal; the model
    normalises. Who only wants to replace one loader of the settings' data subclasses `SplitProvider`.
    """

    @abstractmethod
    def get_train_dataloader(self) -> DataLoader[Any]:
        """Normal images, one pass over them, with a length. A training asks for it several times, always for the same.

        PyTorch's shuffling follows from (seed, pass), and a sampler of one's own with ``set_epoch`` is told the pass:
        then a training that goes on reads what an uninterrupted one reads. Items that draw random numbers break that.
        """

    @abstractmethod
    def get_val_dataloader(self) -> DataLoader[Any]:
        """Normal and anomalous images, always in the same order.

        `NormalsAndAnomalies` makes such a set of normal pictures alone.
        """

    def get_test_dataloader(self) -> DataLoader[Any] | None:
        """Labelled images, always in the same order; None where there is nothing to test on."""
        return None

    @property
    def splits(self) -> tuple[str, ...]:
        """What can be measured: val, then the test splits that exist."""
        return ("val",) if self.get_test_dataloader() is None else ("val", "test")

    def loader(self, split: str) -> DataLoader[Any]:
        """One of `splits`.

        Raises:
            DataError: there is no such split.
        """
        loader = {"val": self.get_val_dataloader, "test": self.get_test_dataloader}.get(split, lambda: None)()
        if loader is None:
            raise DataError(f"no images in split '{split}'; the data has {', '.join(self.splits)}")
        return loader

    def table(self, split: str) -> pd.DataFrame | None:
        """One row per image of `loader(split)`, in order, as `data.samples` describes; None where files have no name.

        Raises:
            DataError: there is no such split.
        """
        return None

    @property
    def split_sizes(self) -> dict[str, int]:
        """Images by split as far as known, for the record."""
        return {}

    @property
    def digest(self) -> str:
        """Text that changes when the data does. Without more knowledge, the name of the class."""
        return f"provider {type(self).__module__}.{type(self).__qualname__}"


class SplitProvider(DatasetProvider):
    """The data of the settings. Pictures are decoded once, for the first loader.

    A subclass that replaces the loader of a split replaces `table` for it as well.

    Args:
        settings: which data, how it is split, its size and how batches are made.

    Raises:
        DataError: see `samples_in_use`.
    """

    def __init__(self, settings: EfficientADSettings) -> None:
        self.settings = settings
        self._table = self._samples = samples_in_use(settings)
        self._dataset: SampleDataset | None = None

    @property
    def samples(self) -> pd.DataFrame:
        """The table that `Batch.index` points into; after the first loader without unreadable rows."""
        return self._samples

    @property
    def digest(self) -> str:
        """`data_digest` of the samples in use."""
        return self._digest

    @property
    def splits(self) -> tuple[str, ...]:
        """val, and test and test_shift where they exist."""
        return tuple(split for split in self.split_sizes if split != "train")

    @property
    def split_sizes(self) -> dict[str, int]:
        """Images by split, synthesised ones not counted."""
        sizes = self._samples["split"].value_counts(sort=False)
        return {split: int(sizes[split]) for split in SPLITS if split in sizes}

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Normal images in an order that follows from (seed, pass), as they are."""
        sampler = EpochSampler(self._rows("train"), seed=self.settings.seed)
        return self._loader(self._load(), sampler, batch_size=self.settings.train_batch_size)

    def get_val_dataloader(self) -> DataLoader[Batch]:
        """The normal images, then a copy of each with an anomaly; its index is the row of the picture below it."""
        return self._loader(self._validation, range(len(self._validation)))

    def get_test_dataloader(self) -> DataLoader[Batch] | None:
        """The test split, None where it is empty."""
        return self._test_loader("test")

    def loader(self, split: str) -> DataLoader[Any]:
        """One of `splits`.

        Raises:
            DataError: there is no such split.
        """
        shifted = self._test_loader(split) if split == "test_shift" else None
        return super().loader(split) if shifted is None else shifted

    def batch(self, rows: Sequence[int]) -> Batch:
        """Some rows of `samples`, as they are."""
        return self._load().__getitems__(list(rows))

    def table(self, split: str) -> pd.DataFrame:
        """One row per image of `loader(split)`, in order; synthesised ones have their picture's path and no mask file.

        Raises:
            DataError: files that cannot be decoded.
        """
        rows = self._rows(split)
        images = self._samples.iloc[rows]
        if split != "val":
            return images.reset_index(drop=True)
        kinds = [kind_of(place, seed=self.settings.seed_of_split) for place in range(len(rows))]
        return pd.concat([images, images.assign(label=1, defect_type=kinds)], ignore_index=True)

    @cached_property
    def _digest(self) -> str:
        return data_digest(self._table)

    @cached_property
    def _validation(self) -> NormalsAndAnomalies:
        rows = self._rows("val")
        pictures = _Pictures(self._load(), rows)
        return NormalsAndAnomalies(pictures, seed=self.settings.seed_of_split, rows=rows, regions=self._regions(rows))

    def _regions(self, rows: list[int]) -> list[Region] | None:
        """Where each picture lies on its letterbox."""
        return None if self.settings.resize == "squash" else [self._load().places[row] for row in rows]

    def _load(self) -> SampleDataset:
        """All samples by row.

        Raises:
            DataError: files that cannot be decoded; with `skip_unreadable`, too few that can.
        """
        if self._dataset is None:
            settings = self.settings
            loaded = load_samples(
                self._samples,
                image_size=settings.image_size,
                resize=settings.resize,
                keep=settings.cache_images,
                skip_unreadable=settings.skip_unreadable,
            )
            check_good_parts(loaded.samples, settings.dataset_folder)
            if settings.num_workers > 0:
                share_with_workers(loaded)
            self._samples = loaded.samples
            self._dataset = SampleDataset(loaded, image_size=settings.image_size, resize=settings.resize)
        return self._dataset

    def _rows(self, split: str) -> list[int]:
        self._load()  # unreadable files leave the table with it
        return np.flatnonzero(self._samples["split"] == split).tolist()

    def _test_loader(self, split: str) -> DataLoader[Batch] | None:
        rows = self._rows(split)
        return self._loader(self._load(), rows) if rows else None

    def _loader(
        self, dataset: Dataset[Batch], sampler: Iterable[int | tuple[int, int]], *, batch_size: int | None = None
    ) -> DataLoader[Batch]:
        return whole_batches(
            dataset,
            sampler,
            batch_size=batch_size or self.settings.eval_batch_size,
            num_workers=self.settings.num_workers,
            seed=self.settings.seed,
        )


class _Pictures(Sequence[Image]):
    """Some rows of the samples as pictures."""

    def __init__(self, dataset: SampleDataset, rows: list[int]) -> None:
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Image:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.dataset.stored(self.rows[place]).image


def build_provider(settings: EfficientADSettings) -> SplitProvider:
    """The provider of the settings' data; missing synthetic data is made first. Decodes nothing yet.

    Raises:
        DataError: see `samples_in_use`.
    """
    return SplitProvider(settings)


def as_batch(item: Any, *, split: str) -> Batch:
    """What a loader yielded, checked; plain images become a batch of normal ones.

    Raises:
        DataError: neither a `Batch` nor images, images of another shape, type or range, labels other than 0 and 1, or a
            defect in train.
    """
    batch = _all_normal(item) if isinstance(item, Tensor) else item
    if not isinstance(batch, Batch):
        raise DataError(
            f"the {split} loader yields {type(item).__name__}; expected gainmtl_lib.records.Batch, or a tensor of "
            "normal images (B, 3, H, W)"
        )
    images = batch.images
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.float32 or not len(images):
        raise DataError(
            f"the {split} loader yields images {tuple(images.shape)} of {images.dtype}; expected torch.float32 "
            "(B, 3, H, W)"
        )
    masks, labels = tuple(batch.masks.shape), tuple(batch.labels.shape)
    if masks != (len(images), 1, *images.shape[2:]) or labels != (len(images),):
        raise DataError(
            f"the {split} loader yields masks {masks} and labels {labels} beside images {tuple(images.shape)}; "
            "expected (B, 1, H, W) and (B,)"
        )
    if strange := set(batch.labels.unique().tolist()) - {0, 1}:
        raise DataError(f"the {split} loader yields labels {sorted(strange)}; expected 0 (normal) and 1 (anomalous)")
    low, high = (float(value) for value in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"the {split} loader yields images from {low:.4g} to {high:.4g}; expected 0 to 1, not normalised: the "
            "model does that"
        )
    if split == "train" and bool((batch.labels != 0).any()):
        raise DataError("the train loader yields defective images (label 1); EfficientAD learns from normal images")
    return batch


def _all_normal(images: Tensor) -> Batch:
    count = len(images)
    none = torch.zeros(count, dtype=torch.bool)
    return Batch(
        images, torch.zeros(count, dtype=torch.int64), torch.zeros_like(images[:, :1]), none, torch.arange(count)
    )
