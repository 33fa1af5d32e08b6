"""The networks of EfficientAD (arXiv 2303.14535, appendix A.1): patch description network and autoencoder.

Images come normalised. Sizes: B images, H x W pixels, C channels of a description, h x w its cells.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

ModelSize = Literal["S", "M"]

SMALLEST_IMAGE = 64
"""Pixels a side. Of these a description without padding has 8 cells, and the encoder's last grid 2."""

RECEPTIVE_FIELD = 33
"""Pixels a side that one cell of a description sees."""

BOTTLENECK = 8
"""Kernel of the encoder's last convolution; at 256 pixels it covers the whole grid."""


class _Layer(NamedTuple):
    """A convolution, the padding that a padded network gives it, and whether average pooling follows."""

    channels: int
    kernel: int
    padding: int
    pooled: bool = False


_HIDDEN: dict[ModelSize, tuple[_Layer, ...]] = {
    "S": (_Layer(128, 4, 3, pooled=True), _Layer(256, 4, 3, pooled=True), _Layer(256, 3, 1)),
    "M": (_Layer(256, 4, 3, pooled=True), _Layer(512, 4, 3, pooled=True), _Layer(512, 1, 0), _Layer(512, 3, 1)),
}


class PatchDescriptionNetwork(nn.Module):
    """Describes every patch of `RECEPTIVE_FIELD` pixels in one pass (PDN): S has four convolutions, M six.

    The convolutions are ``convolutions.0`` onwards.

    Args:
        model_size: S or M.
        out_channels: C.
        padding: whether convolutions and poolings pad with zeros. The description then covers the whole image,
            otherwise it ends four cells before each border.
    """

    def __init__(self, *, model_size: ModelSize, out_channels: int, padding: bool = False) -> None:
        super().__init__()
        last = (_Layer(out_channels, 4, 0), _Layer(out_channels, 1, 0))[: 2 if model_size == "M" else 1]
        self.padding = padding
        self._layers = (*_HIDDEN[model_size], *last)
        channels = (3, *(layer.channels for layer in self._layers))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, layer.kernel, padding=layer.padding if padding else 0)
            for layer, (before, after) in zip(self._layers, pairwise(channels), strict=True)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Shape: (B, 3, H, W) -> (B, C, h, w), unbounded."""
        return self.convolutions[-1](self.hidden(images))

    def hidden(self, images: Tensor) -> Tensor:
        """What the last convolution reads, (B, C', h', w'), for `part`."""
        features = images
        for layer, convolution in zip(self._layers[:-1], self.convolutions):
            features = F.relu(convolution(features), inplace=True)
            if layer.pooled:
                features = F.avg_pool2d(features, 2, padding=1 if self.padding else 0)
        return features

    def part(self, hidden: Tensor, channels: slice) -> Tensor:
        """Some channels of the description alone, at their share of the last convolution's cost."""
        last = self.convolutions[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        return F.conv2d(hidden, last.weight[channels], last.bias[channels])

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Cells (h, w) of the description of an image (H, W)."""
        height, width = (self._cells(side) for side in image_size)
        return height, width

    def _cells(self, side: int) -> int:
        pad = 1 if self.padding else 0
        for layer in self._layers:
            side += 2 * layer.padding * pad - layer.kernel + 1
            if layer.pooled:
                side = (side + 2 * pad) // 2
        return side


class AutoEncoder(nn.Module):
    """Reproduces the teacher's description through a bottleneck, so that it keeps to the global structure.

    The decoder's grids follow from the image: one less than an even share and the even share in turn, 3, 8, 15, 32, 63
    and 127 cells at 256 pixels. Where the encoder's grid is smaller than the bottleneck's kernel (images below 256
    pixels) it is padded with zeros around, so that one set of weights serves every size.

    Args:
        out_channels: C.
        dropout: of the decoder's first six convolutions, while training (the paper's 0.2).
    """

    def __init__(self, *, out_channels: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.dropout = dropout
        widths = (3, 32, 32, 64, 64, 64)
        strided = [nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths)]
        self.encoder = nn.ModuleList([*strided, nn.Conv2d(64, 64, BOTTLENECK)])
        mixing = [nn.Conv2d(64, 64, 4, padding=2) for _ in range(6)]
        self.decoder = nn.ModuleList(
            [*mixing, nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, out_channels, 3, padding=1)]
        )

    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Shape: (B, 3, H, W) -> (B, C, h, w) on the teacher's grid."""
        features = images
        *strided, bottleneck = self.encoder
        for convolution in strided:
            features = F.relu(convolution(features), inplace=True)
        features = bottleneck(_at_least(features, BOTTLENECK))
        *mixing, joining, last = self.decoder
        for convolution, size in zip(mixing, _decoder_grids((images.shape[-2], images.shape[-1])), strict=True):
            features = F.relu(convolution(_resized(features, size)), inplace=True)
            features = F.dropout(features, self.dropout, self.training)
        return last(F.relu(joining(_resized(features, grid)), inplace=True))


def _at_least(features: Tensor, side: int) -> Tensor:
    height, width = (max(0, side - cells) for cells in features.shape[-2:])
    return F.pad(features, (width // 2, width - width // 2, height // 2, height - height // 2))


def _decoder_grids(image_size: tuple[int, int]) -> list[tuple[int, int]]:
    steps = ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1))
    height, width = image_size
    return [(max(1, height // part - less), max(1, width // part - less)) for part, less in steps]


def _resized(features: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
