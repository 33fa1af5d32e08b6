"""Layers shared by the paths: CBAM, pyramid fusion, finer maps, and the fusion of a mask with attention.

Sizes: B images, C channels, h x w feature grid.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork


def conv_bn_relu(channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Convolution that keeps the grid, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class CBAM(nn.Module):
    """Channel, then spatial attention (Woo et al., ECCV 2018).

    As the paper's equations have it: no batch norm on the spatial gate, which some implementations add.

    Args:
        channels: feature channels C.
        reduction: C divided by the width of the shared MLP, which is at least 8: fewer rectified units can all
            be off, and then never come back.
        kernel_size: of the spatial convolution.
    """

    def __init__(self, channels: int, *, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.spatial = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2)

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, C, h, w) -> (B, C, h, w)."""
        gate = self.mlp(features.mean((2, 3))) + self.mlp(features.amax((2, 3)))  # (B, C)
        features = features * gate.sigmoid()[:, :, None, None]
        pooled = torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], 1)  # (B, 2, h, w)
        return features * self.spatial(pooled).sigmoid()


class PyramidFusion(nn.Module):
    """Feature pyramid (Lin et al., 2017) whose levels are resized to the finest and summed.

    Args:
        in_channels: of each level, finest first.
        channels: of the pyramid.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(list(in_channels), channels)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels, finest first, to (B, channels, h, w) on the finest grid."""
        named = OrderedDict((str(index), level) for index, level in enumerate(levels))
        fused, *coarser = self.pyramid(named).values()
        for level in coarser:
            fused = fused + F.interpolate(level, size=fused.shape[2:], mode="bilinear")
        return fused


class MapProjection(nn.Module):
    """Features for maps finer than stride 32: conv_head and one level, summed on the level's grid and mixed.

    Args:
        head_channels: of conv_head.
        level_channels: of the backbone level whose stride the maps shall have.
        channels: of the result.
    """

    def __init__(self, head_channels: int, level_channels: int, channels: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(head_channels, channels, 1)
        self.level = nn.Conv2d(level_channels, channels, 1)
        self.mix = conv_bn_relu(channels, channels, 3)

    def forward(self, head: Tensor, level: Tensor) -> Tensor:
        """Shape: (B, _, h / k, w / k), (B, _, h, w) -> (B, channels, h, w)."""
        coarse = F.interpolate(self.head(head), size=level.shape[2:], mode="bilinear")
        return self.mix(coarse + self.level(level))


def fuse_attention(
    attention_logits: Tensor,
    mask: Tensor | None = None,
    has_mask: Tensor | None = None,
    *,
    alpha: float = 0.0,
    norm: str = "sigmoid",
) -> Tensor:
    """What gates the features: own attention, confirmed by a mask where there is one.

    alpha * mask + (1 - alpha) * mask * sigma(logits); without a mask sigma(logits). A product of two numbers in
    [0, 1], so that low attention stays low whatever the mask says.

    Args:
        attention_logits: (B, 1, h, w).
        mask: in [0, 1], (B, 1, h, w).
        has_mask: which images have one, bool (B,); None means all.
        alpha: share of the mask taken as it is.
        norm: ``"product"`` divides mask * sigma by its maximum per image. It turns a uniform 0.01 into 1 and is
            kept for comparison only.
    """
    attention = attention_logits.sigmoid()
    if mask is None:
        return attention
    fused = mask * attention
    if norm == "product":
        fused = fused / fused.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
    fused = alpha * mask + (1 - alpha) * fused
    return fused if has_mask is None else torch.where(has_mask[:, None, None, None], fused, attention)
