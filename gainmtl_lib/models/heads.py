"""The heads: classification, attention, attention mining, adapter and localization.

Sizes: B images, C channels, h x w feature grid, H x W network input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gainmtl_lib.models.layers import conv_bn_relu


class ClassificationHead(nn.Module):
    """Average pooling and two linear layers, normal against defective.

    Args:
        channels: feature channels C.
        hidden: width between the layers.
        dropout: share of hidden units dropped in training.
    """

    def __init__(self, channels: int, *, hidden: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, C, h, w) -> (B, 2), logits."""
        return self.out(self.dropout(F.relu(self.hidden(features.mean((2, 3))))))


class AttentionHead(nn.Module):
    """One attention logit per feature cell, sharpened by a learned temperature.

    Args:
        channels: feature channels C.
        hidden: width of the two 3x3 convolutions.
    """

    def __init__(self, channels: int, *, hidden: int) -> None:
        super().__init__()
        self.body = _map_convolutions(channels, hidden)
        self.log_temperature = nn.Parameter(torch.zeros(()))  # learned as a logarithm: it cannot reach zero

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, C, h, w) -> (B, 1, h, w), unbounded logits."""
        return self.body(features) / self.log_temperature.exp()


class MiningHead(nn.Module):
    """A second attention head on the raw features; its logits are averaged with the first one's.

    "Attention mining" as in the method document. It is not the erasing loss of the GAIN paper.
    """

    def __init__(self, channels: int, *, hidden: int) -> None:
        super().__init__()
        self.body = _map_convolutions(channels, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, C, h, w) -> (B, 1, h, w), unbounded logits."""
        return self.body(features)


class FeatureAdapter(nn.Module):
    """1x1 convolution, batch norm, ReLU: from attended features to what the head classifies."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = conv_bn_relu(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, C, h, w) -> (B, C, h, w)."""
        return self.body(features)


class LocalizationHead(nn.Module):
    """Defect logits per pixel from the fused pyramid.

    Args:
        channels: of the fused pyramid, and of the two convolutions.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = _map_convolutions(channels, channels)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Shape: (B, C, h, w) -> (B, 1, *size), upsampled fourfold and then to `size`."""
        logits = F.interpolate(self.body(features), scale_factor=4.0, mode="bilinear")
        if logits.shape[2:] == size:
            return logits
        return F.interpolate(logits, size=size, mode="bilinear")


def _map_convolutions(channels: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        conv_bn_relu(channels, hidden, 3),
        conv_bn_relu(hidden, hidden, 3),
        nn.Conv2d(hidden, 1, 1),
    )
