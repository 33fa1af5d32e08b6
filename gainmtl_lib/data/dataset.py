"""Samples as batches by row: as they are stored or, for keys that name an epoch, edited and augmented for it.

B images of a batch, H x W network input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from gainmtl_lib.data.annotation import STREAM, MaskQuality, coarser_mask
from gainmtl_lib.data.edits.counterfactuals import ImageCounterfactuals
from gainmtl_lib.data.loading import Loaded, Picture, load_picture
from gainmtl_lib.data.transforms import Augmentation, Resize
from gainmtl_lib.records import Batch

Key = int | tuple[int, int]
"""A row, or (epoch, row) for the row as that epoch edits and augments it."""


class Shown(NamedTuple):
    """What one place of a batch shows: pixels and mask as in `Picture`, the label there, and the row of the picture."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None
    label: int
    row: int


class SampleDataset(Dataset[Batch]):
    """Samples by row. Whole batches are made at once, so that the step to float happens once a batch.

    Args:
        loaded: the samples that can be used, their pixels unless they stay on disk.
        image_size: network input (H, W).
        resize: squash or letterbox.
        augmentation: applied to keys that name an epoch.
        seed: of the augmentation.
        mask_quality: what training masks are made into, see `coarser_mask`.
        mask_seed: of shifted masks.

    Attributes:
        counterfactuals: edit pictures whose keys name an epoch, before augmentation; None edits none.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        image_size: tuple[int, int],
        resize: Resize,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        mask_quality: MaskQuality = "exact",
        mask_seed: int = 0,
    ) -> None:
        self.images, self.masks, self.places = loaded.images, loaded.masks, loaded.places
        self.image_size = image_size
        self.resize: Resize = resize
        self.augmentation, self.seed = augmentation, seed
        self.mask_quality: MaskQuality = mask_quality
        self.mask_seed = mask_seed
        self.counterfactuals: ImageCounterfactuals | None = None
        self.in_training = (loaded.samples["split"] == "train").to_numpy(dtype=bool)
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
        shown = [self._shown(key) for key in keys]
        images = torch.from_numpy(np.stack([each.image for each in shown]))
        masks = torch.zeros((len(keys), 1, *self.image_size))
        for mask, each in zip(masks, shown, strict=True):
            if each.mask is not None:
                mask[0] = torch.from_numpy(each.mask)
        # (B, H, W, 3) -> (B, 3, H, W) as a view: the memory stays channels-last, which convolutions like best.
        images = images.permute(0, 3, 1, 2).to(torch.float32).div_(255)
        labels = torch.tensor([each.label for each in shown])
        has_mask = torch.tensor([each.mask is not None for each in shown])
        return Batch(images, labels, masks, has_mask, torch.tensor([each.row for each in shown]))

    def _shown(self, key: Key) -> Shown:
        if isinstance(key, int):
            return self._unedited(key)
        epoch, row = key
        return self._augmented(self._edited(epoch, row), epoch, row)

    def _unedited(self, row: int) -> Shown:
        picture = self.stored(row)
        return Shown(picture.image, picture.mask, int(self.labels[row]), row)

    def _edited(self, epoch: int, row: int) -> Shown:
        drawn = self.counterfactuals.draw(epoch, row) if self.counterfactuals is not None else None
        if drawn is None or drawn.edit is None:
            return self._unedited(row)
        mask = drawn.edit.mask.astype(np.uint8) if drawn.edit.mask.any() else None
        return Shown(drawn.edit.image, mask, drawn.edit.label, drawn.row)

    def _augmented(self, shown: Shown, epoch: int, position: int) -> Shown:
        """By the position's row: a picture that takes the turn of several is augmented differently each time."""
        if self.augmentation is None:
            return shown
        mask = np.zeros(self.image_size, dtype=np.uint8) if shown.mask is None else shown.mask
        image, mask = self.augmentation(shown.image, mask, seed=self.seed, epoch=epoch, index=position)
        return shown._replace(image=image, mask=None if shown.mask is None else mask)

    def stored(self, row: int) -> Picture:
        """The picture of a row, neither edited nor augmented, with the mask that training uses, off the bars."""
        picture = self._loaded(row)
        if picture.mask is None or self.mask_quality == "exact" or not self.in_training[row]:
            return picture
        rng = np.random.default_rng([self.mask_seed, row, STREAM])
        mask = np.zeros_like(picture.mask)
        mask[picture.place] = coarser_mask(picture.without_bars[1], self.mask_quality, rng)
        return replace(picture, mask=mask)

    def _loaded(self, row: int) -> Picture:
        if self.images is None or self.masks is None:
            return load_picture(self.paths[row], self.mask_paths[row], image_size=self.image_size, resize=self.resize)
        mask = self.masks[self.mask_slots[row]].numpy() if self.has_mask[row] else None
        return Picture(self.images[row].numpy(), mask, self.places[row])


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
