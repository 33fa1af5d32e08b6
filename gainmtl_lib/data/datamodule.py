"""From the table of samples to the loaders of all splits, decoded once.

N samples, H x W network input.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gainmtl_lib.data.annotation import MaskQuality, with_mask_share
from gainmtl_lib.data.dataset import EpochSampler, SampleDataset
from gainmtl_lib.data.edits.counterfactuals import ImageCounterfactuals
from gainmtl_lib.data.external import load_external_masks
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.loading import Loaded, load_samples
from gainmtl_lib.data.transforms import Augmentation, Resize
from gainmtl_lib.records import Batch


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
        image_counterfactual: share of training pictures that are edited, see `ImageCounterfactuals`.
        mask_share: share of training defects that keep their masks, see `with_mask_share`.
        mask_quality: what training masks are made into, see `coarser_mask`.
        mask_seed: of the masks that are kept and of the shifts.
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
        image_counterfactual: float = 0.0,
        mask_share: float = 1.0,
        mask_quality: MaskQuality = "exact",
        mask_seed: int = 0,
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
        self.image_counterfactual, self.mask_share, self.mask_seed = image_counterfactual, mask_share, mask_seed
        self.mask_quality: MaskQuality = mask_quality
        self._dataset: SampleDataset | None = None
        self._edits_checked = False

    @property
    def samples(self) -> pd.DataFrame:
        """The table that `Batch.index` points into; after `setup` without unreadable rows, and without the masks that
        are empty or that `mask_share` leaves out."""
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
            DataError: files that cannot be decoded, a training split that lacks a class, or one whose pictures cannot
                be edited although `image_counterfactual` asks for it.
        """
        self._load()
        if stage == "fit" and self.counterfactuals is not None and not self._edits_checked:
            self.counterfactuals.check()
            self._edits_checked = True
        normals, defectives = self.class_counts
        if stage == "fit" and 0 in (normals, defectives):
            raise DataError(f"the training split has {normals} normal and {defectives} defective images; needs both")

    @property
    def counterfactuals(self) -> ImageCounterfactuals | None:
        """The edits of training pictures; None where `image_counterfactual` is 0.

        Raises:
            DataError: the training split lacks a class or has no mask.
        """
        dataset = self._load()
        if dataset.counterfactuals is None and self.image_counterfactual > 0:
            dataset.counterfactuals = ImageCounterfactuals(
                labels=dataset.labels.numpy(),
                annotated=dataset.has_mask.numpy(),
                rows=np.flatnonzero(dataset.in_training).tolist(),
                picture=dataset.stored,
                share=self.image_counterfactual,
                seed=self.seed,
            )
        return dataset.counterfactuals

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

    def pasted_masks(self) -> Iterator[Tensor]:
        """Masks of defects pasted in training, float32 (1, H, W), as many as `ImageCounterfactuals` finds apt."""
        if self.counterfactuals is not None:
            for mask in self.counterfactuals.pasted_masks():
                yield torch.from_numpy(mask)[None].float()

    def external_masks(self, split: str, folder: Path) -> Tensor:
        """Masks in [0, 1] from another folder, float32 (N, 1, H, W), in the order of `loader(split)`.

        Raises:
            DataError: a mask is missing or does not fit, see `load_external_masks`.
        """
        images = [self.dataset.paths[row] for row in self.rows(split)]
        return load_external_masks(images, folder, image_size=self.image_size, resize=self.resize)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, edited, augmented. A last batch of a single image is dropped: batch norm needs two."""
        _ = self.counterfactuals  # in place before workers copy the dataset
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
            loaded = _with_fewer_masks(loaded, self.mask_share, seed=self.mask_seed)
            self._samples = loaded.samples
            if self.num_workers > 0:
                share_with_workers(loaded)
            self._dataset = SampleDataset(
                loaded,
                image_size=self.image_size,
                resize=self.resize,
                augmentation=self._augmentation,
                seed=self.seed,
                mask_quality=self.mask_quality,
                mask_seed=self.mask_seed,
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


def _with_fewer_masks(loaded: Loaded, share: float, *, seed: int) -> Loaded:
    samples = with_mask_share(loaded.samples, share, seed=seed)
    if loaded.masks is None:
        return replace(loaded, samples=samples)
    kept = samples["mask"].notna()[loaded.samples["mask"].notna()].to_numpy(dtype=bool)
    return replace(loaded, samples=samples, masks=loaded.masks if kept.all() else loaded.masks[torch.tensor(kept)])


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
