"""Another picture's mask for S6's attention: does the decision follow the picture, or the mask it is given?

Sizes: B pictures of a batch, H x W network input.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.records import Batch

SEED = 0
"""The same for every run, so that runs of all seeds are given the same masks."""


class OtherMasks:
    """For each picture, normal or defective, the mask of an annotated defect of another part, of the same split.

    Which one is drawn from (seed, row), whatever stands beside the picture in a batch. Presence and look of a mask
    tell nothing of the label then. It lies where it lies on the other picture's input.

    Args:
        seed: of the draw.
    """

    def __init__(self, seed: int = SEED) -> None:
        self.seed = seed

    def masks(self, data: GainDataModule, batch: Batch) -> Tensor:
        """Masks of other pictures, one for each of a batch, 0 or 1, (B, 1, H, W).

        Raises:
            DataError: a split has no annotated defect of another part.
        """
        others = [self._other(data, row) for row in batch.index.tolist()]
        masks = [torch.from_numpy(np.asarray(data.dataset.stored(row).mask)) for row in others]
        return torch.stack(masks)[:, None].to(batch.masks)

    def _other(self, data: GainDataModule, row: int) -> int:
        samples, split = data.samples, data.samples.loc[row, "split"]
        annotated = (samples["split"] == split) & (samples["label"] == 1) & data.dataset.has_mask.numpy()
        others = np.flatnonzero(annotated & (samples["group"] != samples.loc[row, "group"]))
        if not len(others):
            raise DataError(
                f"mask_source 'other': split '{split}' has no annotated defect of another part than "
                f"{samples.loc[row, 'image']}; annotate more of its defects, or take another mask source"
            )
        return int(np.random.default_rng([self.seed, row]).choice(others))
