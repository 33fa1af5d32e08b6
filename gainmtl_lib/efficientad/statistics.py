"""What EfficientAD measures once over many images: the teacher's channels, and how large normal maps are.

B images, C channels, h x w cells.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import torch
from torch import Tensor

from gainmtl_lib.efficientad.model import QUANTILES, EfficientADModel, LocalMaps

logger = logging.getLogger(__name__)

LARGEST_SAMPLE = 2**24
"""Values that quantiles are taken from at most; `torch.quantile` sorts no more."""

SECONDS_BETWEEN_LOG_LINES = 15.0


class ChannelMoments:
    """Mean and standard deviation of each channel over any number of descriptions.

    Each part's moments join the others' in float64 (Chan, Golub, LeVeque 1979), so that neither many images nor a mean
    far above the deviation cost precision.
    """

    def __init__(self) -> None:
        self.cells = 0
        self._mean = self._squares = torch.zeros((), dtype=torch.float64)

    def update(self, described: Tensor) -> None:
        """Shape: (B, C, h, w), on any device."""
        variance, mean = torch.var_mean(described.float(), dim=(0, 2, 3), correction=0)
        cells = described.numel() // described.shape[1]
        mean, squares = mean.cpu().double(), variance.cpu().double() * cells
        total = self.cells + cells
        away = mean - self._mean
        self._mean = self._mean + away * (cells / total)
        self._squares = self._squares + squares + away.square() * (self.cells * cells / total)
        self.cells = total

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (over all cells, not corrected), float32 (C,) each."""
        return self._mean.float(), (self._squares / self.cells).sqrt().float()


@torch.no_grad()
def measure_teacher(model: EfficientADModel, batches: Iterable[Tensor]) -> None:
    """Take the teacher's channel statistics over the training images and set them in the model.

    Args:
        model: its teacher describes, where the model lies.
        batches: images (B, 3, H, W) in [0, 1], one pass.

    Raises:
        ModelError: see `EfficientADModel.set_teacher_statistics`.
    """
    moments, images = ChannelMoments(), 0
    device = model.teacher_mean.device
    started = said = time.monotonic()
    for batch in batches:
        pixels = model.normalized(batch.to(device)).contiguous(memory_format=torch.channels_last)
        moments.update(model.teacher(pixels))
        images += len(batch)
        if time.monotonic() - said > SECONDS_BETWEEN_LOG_LINES:
            said = time.monotonic()
            logger.info("statistics of the teacher: %d images (%.1f/s)", images, images / (said - started))
    model.set_teacher_statistics(*moments.compute())
    logger.info("statistics of the teacher from %d images in %.1f s", images, time.monotonic() - started)


class MapQuantiles:
    """`QUANTILES` of both maps over the normal images, from a uniform random sample where they are many.

    Args:
        seed: of the sample.
        largest: values of a map that are kept at most.
    """

    def __init__(self, *, seed: int, largest: int = LARGEST_SAMPLE) -> None:
        self.images = 0
        self._largest = largest
        self._share = 1.0  # of all values, that is kept: halved whenever they become too many
        self._generator = torch.Generator().manual_seed(seed)
        self._kept = torch.zeros(2, 0)

    def update(self, maps: LocalMaps) -> None:
        """Shape: (B, 1, h, w) each, of normal images."""
        self.images += len(maps.student_teacher)
        values = torch.stack([one.detach().float().cpu().flatten() for one in maps])  # (2, B h w)
        self._kept = torch.cat([self._kept, self._thinned(values, self._share)], dim=1)
        while self._kept.shape[1] > self._largest:
            self._share /= 2
            self._kept = self._thinned(self._kept, 0.5)

    def _thinned(self, values: Tensor, share: float) -> Tensor:
        if share == 1:
            return values
        return values[:, torch.rand(values.shape[1], generator=self._generator) < share]

    def compute(self) -> Tensor:
        """(2, 2), as `EfficientADModel.set_quantiles` takes them; linear between neighbouring values."""
        return torch.quantile(self._kept, torch.tensor(QUANTILES), dim=1).T.contiguous()
