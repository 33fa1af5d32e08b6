"""Which defect mask gates attention in S6's training: a sample's own, another sample's, or none.

If only defects were given masks, the presence of one would tell the class. So normal images get masks too,
other samples', as often as defects get any; and every mask a batch sees is drawn from one collection with
one augmentation, so that its look tells nothing either. What remains is whether the mask fits the picture.

Sizes: B images, H x W network input, h x w attention grid.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from gainmtl_lib.records import Batch


class MaskMixer:
    """Draws attention masks for training batches from a bank of the training set's defect masks.

    Defects with an annotation get their own mask with `own_prob`, another sample's with `other_prob`, none
    otherwise. All other images get another sample's with `own_prob + other_prob`, none otherwise. An annotated
    defect that is the only one in the bank has no other: it gets its own instead, so that masks stay as frequent
    there as elsewhere. With an empty bank nobody gets a mask.

    Args:
        masks: (index of the sample, its mask (1, H, W) in [0, 1]) of each annotated training defect, resized to
            the network's input but not augmented; with index None masks that no sample has as it is stored, such
            as those of pasted defects. Read once.
        grid: (h, w) of the attention.
        own_prob, other_prob: as above.
        hflip_prob, vflip_prob, rotate90_prob: the training augmentation's, applied to masks from the bank as
            the images' own masks have gone through it: an oblong grid is turned by 180° only.
    """

    def __init__(
        self,
        masks: Iterable[tuple[int | None, Tensor]],
        *,
        grid: tuple[int, int],
        own_prob: float,
        other_prob: float,
        hflip_prob: float = 0.0,
        vflip_prob: float = 0.0,
        rotate90_prob: float = 0.0,
    ) -> None:
        if min(own_prob, other_prob) < 0 or own_prob + other_prob > 1:
            raise ValueError(
                f"own_prob and other_prob must be probabilities whose sum is at most 1, got {own_prob} and {other_prob}"
            )
        pairs = [(index, F.adaptive_avg_pool2d(mask.float(), grid)) for index, mask in masks]
        self.grid = grid
        self.own_prob = own_prob
        self.other_prob = other_prob
        self.flip_probs = (hflip_prob, vflip_prob, rotate90_prob)
        self.bank = torch.stack([mask for _, mask in pairs]) if pairs else torch.zeros(0, 1, *grid)  # (N, 1, h, w)
        owned = [(int(index), row) for row, (index, _) in enumerate(pairs) if index is not None]
        self.place = dict(owned)
        if len(self.place) < len(owned):
            raise ValueError(f"each sample may bring one mask, got {len(owned)} masks of {len(self.place)} samples")

    def draw(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """One mask or none for each image of a training batch.

        Args:
            batch: its masks are the images' own, already augmented.
            generator: a CPU generator; the global one when None.

        Returns:
            Masks (B, 1, h, w) in [0, 1], zero where there is none, and which images have one, bool (B,).
        """
        size = len(batch.labels)
        chance, pick = torch.rand(2, size, generator=generator)
        turned = self._augmented(self._others(batch.index.tolist(), pick), generator)

        annotated = (batch.has_mask & (batch.labels == 1)).cpu()
        known = torch.tensor([int(index) in self.place for index in batch.index.tolist()], dtype=torch.bool)
        others_exist = len(self.bank) - known.long() > 0  # (B,)
        wanted = chance < self.own_prob + self.other_prob
        own = wanted & annotated & ((chance < self.own_prob) | ~others_exist)
        other = wanted & ~own & others_exist
        if not len(self.bank):
            own = torch.zeros_like(own)

        device = batch.masks.device
        own, other = own.to(device), other.to(device)
        masks = F.adaptive_avg_pool2d(batch.masks.float(), self.grid) * own[:, None, None, None]
        return masks + turned.to(device) * other[:, None, None, None], own | other

    def _others(self, indices: list[int], pick: Tensor) -> Tensor:
        """For each sample a mask of the bank that is not its own, by pick in [0, 1); zeros where there is none."""
        chosen = torch.zeros(len(indices), 1, *self.grid)
        for row, index in enumerate(indices):
            own = self.place.get(index)
            candidates = len(self.bank) - (own is not None)
            if candidates:
                place = min(int(pick[row] * candidates), candidates - 1)
                chosen[row] = self.bank[place + (own is not None and place >= own)]  # step over the own one
        return chosen

    def _augmented(self, masks: Tensor, generator: torch.Generator | None) -> Tensor:
        """Each mask mirrored and turned on its own draw, as the images' augmentation does."""
        hflip, vflip, rotate = torch.rand(3, len(masks), generator=generator) < torch.tensor(self.flip_probs)[:, None]
        square = self.grid[0] == self.grid[1]  # RandomRotate90: 0 to 3 quarter turns
        turns = rotate * (torch.randint(4, (len(masks),), generator=generator) if square else 2)
        masks = torch.where(hflip[:, None, None, None], masks.flip(3), masks)
        masks = torch.where(vflip[:, None, None, None], masks.flip(2), masks)
        if not rotate.any():
            return masks
        return torch.stack([mask.rot90(int(k), dims=(1, 2)) for mask, k in zip(masks, turns, strict=True)])
