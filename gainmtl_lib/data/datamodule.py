"""From the table of samples to batches: decoded once, shuffled and augmented by (seed, epoch, index).

B images of a batch, N samples, M annotated ones, H x W network input.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gainmtl_lib.data.external import load_external_masks
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.loading import Loaded, Picture, load_picture, load_samples
from gainmtl_lib.data.transforms import Augmentation, Resize
from gainmtl_lib.records import Batch

Key = int | tuple[int, int]
"""A row, or (epoch, row) for the row as that epoch augments it."""


class SampleDataset(Dataset[Batch]):
    """Samples by row. Whole batches are made at once, so that the step to float happens once a batch.

    Args:
        loaded: the samples that can be used, their pixels unless they stay on disk.
        image_size: network input (H, W).
        resize: squash or letterbox.
        augmentation: applied to keys that name an epoch.
        seed: of the augmentation.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        image_size: tuple[int, int],
        resize: Resize,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.masks = loaded.images, loaded.masks
        self.image_size = image_size
        self.resize: Resize = resize
        self.augmentation, self.seed = augmentation, seed
        self.paths = [str(path) for path in loaded.samples["image"]]
        self.mask_paths = [path if isinstance(path, str) else None for path in loaded.samples["mask"]]
        self.labels = torch.tensor(loaded.samples["label"].to_numpy(dtype=np.int64))
        self.has_mask = torch.tensor([path is not None for path in self.mask_paths], dtype=torch.bool)
        self.mask_slots = self.has_mask.cumsum(0) - 1

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> Batch:
        """A batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these keys; PyTorch's loaders call this instead of collecting single items."""
        rows = torch.tensor([key if isinstance(key, int) else key[1] for key in keys])
        pictures = [self._picture(key) for key in keys]
        images = torch.from_numpy(np.stack([picture.image for picture in pictures]))
        masks = torch.zeros((len(keys), 1, *self.image_size))
        for mask, picture in zip(masks, pictures, strict=True):
            if picture.mask is not None:
                mask[0] = torch.from_numpy(picture.mask)
        # (B, H, W, 3) -> (B, 3, H, W) as a view: the memory stays channels-last, which convolutions like best.
        images = images.permute(0, 3, 1, 2).to(torch.float32).div_(255)
        return Batch(images, self.labels[rows], masks, self.has_mask[rows], rows)

    def _picture(self, key: Key) -> Picture:
        row = key if isinstance(key, int) else key[1]
        picture = self.stored(row)
        if self.augmentation is None or isinstance(key, int):
            return picture
        mask = np.zeros(self.image_size, dtype=np.uint8) if picture.mask is None else picture.mask
        image, mask = self.augmentation(picture.image, mask, seed=self.seed, epoch=key[0], index=row)
        return Picture(image, mask if picture.mask is not None else None)

    def stored(self, row: int) -> Picture:
        """The picture of a row, not augmented."""
        if self.images is None or self.masks is None:
            return load_picture(self.paths[row], self.mask_paths[row], image_size=self.image_size, resize=self.resize)
        mask = self.masks[self.mask_slots[row]].numpy() if self.has_mask[row] else None
        return Picture(self.images[row].numpy(), mask)


class EpochSampler(Sampler[tuple[int, int]]):
    """Rows in an order drawn from (seed, epoch), each with the epoch, so that workers know it too.

    Args:
        rows: the rows to draw from.
        seed: of the order.
    """

    def __init__(self, rows: Sequence[int], *, seed: int) -> None:
        self.rows, self.seed, self.epoch = list(rows), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for position in np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows)):
            yield self.epoch, self.rows[position]


class GainDataModule(L.LightningDataModule):
    """Loaders of all splits over one table of samples.

    Args:
        samples: table with its split filled (`split_samples`).
        image_size: network input (H, W).
        resize: squash or letterbox.
        batch_size: B.
        seed: of shuffling and augmentation.
        hflip_prob: probability of an augmentation, training only; likewise the other four.
        vflip_prob: see `Augmentation`.
        rotate90_prob: see `Augmentation`.
        color_jitter_prob: see `Augmentation`.
        gaussian_noise_prob: see `Augmentation`.
        num_workers: loader processes; 0 makes batches in the training process.
        cache_images: keep all decoded pictures in memory instead of decoding them each epoch.
        skip_unreadable: go on without the files that cannot be decoded.
    """

    def __init__(
        self,
        samples: pd.DataFrame,
        *,
        image_size: tuple[int, int],
        resize: Resize = "squash",
        batch_size: int = 16,
        seed: int = 0,
        hflip_prob: float = 0.5,
        vflip_prob: float = 0.5,
        rotate90_prob: float = 0.5,
        color_jitter_prob: float = 0.3,
        gaussian_noise_prob: float = 0.2,
        num_workers: int = 0,
        cache_images: bool = True,
        skip_unreadable: bool = False,
    ) -> None:
        super().__init__()
        self._samples = samples.reset_index(drop=True)
        self.image_size, self.batch_size, self.seed = image_size, batch_size, seed
        self.resize: Resize = resize
        self.num_workers, self.cache_images, self.skip_unreadable = num_workers, cache_images, skip_unreadable
        self._augmentation = Augmentation(
            image_size=image_size,
            hflip_prob=hflip_prob,
            vflip_prob=vflip_prob,
            rotate90_prob=rotate90_prob,
            color_jitter_prob=color_jitter_prob,
            gaussian_noise_prob=gaussian_noise_prob,
        )
        self._dataset: SampleDataset | None = None

    @property
    def samples(self) -> pd.DataFrame:
        """The table that `Batch.index` points into; after `setup` without unreadable rows and empty masks."""
        return self._samples

    @property
    def class_counts(self) -> tuple[int, int]:
        """Normal and defective images of the training split."""
        labels = self._samples.loc[self._samples["split"] == "train", "label"]
        return int((labels == 0).sum()), int((labels == 1).sum())

    @property
    def dataset(self) -> SampleDataset:
        """All samples by row; loads them at first use."""
        return self._load()

    def setup(self, stage: str | None = None) -> None:
        """Decode every file once; a second call does nothing.

        Raises:
            DataError: files that cannot be decoded, or a training split that lacks a class.
        """
        self._load()
        normals, defectives = self.class_counts
        if stage == "fit" and 0 in (normals, defectives):
            raise DataError(f"the training split has {normals} normal and {defectives} defective images; needs both")

    def rows(self, split: str) -> list[int]:
        """Rows of one split, ascending.

        Raises:
            DataError: no image is in that split.
        """
        self.setup()
        rows = np.flatnonzero(self._samples["split"] == split).tolist()
        if not rows:
            found = ", ".join(str(name) for name in self._samples["split"].unique())
            raise DataError(f"no image is in split '{split}'; the data has {found}")
        return rows

    def training_masks(self) -> Iterator[tuple[int, Tensor]]:
        """Row and mask, float32 (1, H, W) of 0 and 1, of each annotated training image, not augmented."""
        dataset = self.dataset
        for row in self.rows("train"):
            if dataset.has_mask[row]:
                yield row, dataset[row].masks[0]

    def external_masks(self, split: str, folder: Path) -> Tensor:
        """Masks in [0, 1] from another folder, float32 (N, 1, H, W), in the order of `loader(split)`.

        Raises:
            DataError: a mask is missing or does not fit, see `load_external_masks`.
        """
        images = [self.dataset.paths[row] for row in self.rows(split)]
        return load_external_masks(images, folder, image_size=self.image_size, resize=self.resize)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, augmented. A last batch of a single image is dropped: batch norm needs two."""
        sampler = EpochSampler(self.rows("train"), seed=self.seed)
        single = self.batch_size > 1 and len(sampler) % self.batch_size == 1
        return self._loader(sampler, drop_last=single)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split in order, as it is."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test split in order, as it is."""
        return self.loader("test")

    def loader(self, split: str) -> DataLoader[Batch]:
        """Any split in the order of rows, without augmentation.

        Raises:
            DataError: no image is in that split.
        """
        return self._loader(self.rows(split), drop_last=False)

    def _load(self) -> SampleDataset:
        if self._dataset is None:
            loaded = load_samples(
                self._samples,
                image_size=self.image_size,
                resize=self.resize,
                keep=self.cache_images,
                skip_unreadable=self.skip_unreadable,
            )
            self._samples = loaded.samples
            if self.num_workers > 0:
                share_with_workers(loaded)
            self._dataset = SampleDataset(
                loaded,
                image_size=self.image_size,
                resize=self.resize,
                augmentation=self._augmentation,
                seed=self.seed,
            )
        return self._dataset

    def _loader(self, sampler: Sampler | Sequence[int], *, drop_last: bool) -> DataLoader[Batch]:
        return whole_batches(
            self.dataset,
            sampler,
            batch_size=self.batch_size,
            drop_last=drop_last,
            num_workers=self.num_workers,
            seed=self.seed,
        )


def share_with_workers(loaded: Loaded) -> None:
    """Put the pixels where loader processes see them without a copy."""
    if multiprocessing.get_start_method() == "fork":
        return  # forked workers see the same memory anyway, and /dev/shm is often too small for a dataset
    for pixels in (loaded.images, loaded.masks):
        if pixels is not None:
            pixels.share_memory_()


def whole_batches(
    dataset: Dataset[Any],
    sampler: Iterable[Any],
    *,
    batch_size: int,
    num_workers: int,
    seed: int,
    drop_last: bool = False,
) -> DataLoader[Any]:
    """A loader over a dataset that makes each batch at once (``__getitems__``), keys in the order of `sampler`."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_one_thread,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own, so that making an iterator draws nothing from the model's random numbers.
        generator=torch.Generator().manual_seed(seed),
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)
