"""The colour augmentation of the autoencoder's images: a little brightness, contrast or saturation.

B images, H x W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

CHANGES = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
RANGE = (0.8, 1.2)
_STREAM = 30
"""Keeps these random numbers apart from others of the same seed and number."""


def recoloured(images: Tensor, *, seed: int, number: int) -> Tensor:
    """Each image with one of brightness, contrast and saturation changed by a factor in `RANGE`.

    Which, and by how much, follows from (seed, number, place in the batch) alone.

    Args:
        images: (B, 3, H, W) in [0, 1], on any device; not changed.
        seed: of the run.
        number: of the batch.
    """
    rng = np.random.default_rng([seed, number, _STREAM])
    changed = [CHANGES[int(rng.integers(len(CHANGES)))](image, float(rng.uniform(*RANGE))) for image in images]
    return torch.stack(changed).contiguous(memory_format=_format(images))


def _format(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
