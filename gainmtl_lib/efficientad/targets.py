"""What a teacher is taught: a backbone's features, joined per patch as PatchCore does (arXiv 2106.08265, section 3.1).

B images, H x W pixels, C channels of a description, h x w its cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gainmtl_lib.models.backbone import Backbone

LEVELS = (2, 3)
"""Of the backbone: strides 8 and 16."""

LEVEL_VALUES = 1024
"""Values per cell and level on the way to C."""

PATCH = 3
"""Cells a side that are described together."""


class BackboneTargets(nn.Module):
    """Describes patches by two levels of a frozen backbone.

    Around each cell of a level, the values of the 3 x 3 neighbourhood, channel by channel, are averaged in
    `LEVEL_VALUES` even shares; the deeper level is resized to the shallower one's grid; the values of both are averaged
    in C even shares. All of it is linear, so that each level needs one fixed convolution and one resizing.

    Args:
        backbone: whose first two levels are `LEVELS`.
        out_channels: C.
        grid: (h, w), to which both levels are resized. The shallower one has it already when the image is twice that of
            a padded patch description network and the backbone keeps to its strides.
    """

    image_mean: Tensor
    image_std: Tensor
    local: Tensor
    context: Tensor

    def __init__(self, backbone: Backbone, *, out_channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.out_channels, self.grid = out_channels, grid
        shares = even_shares(2 * LEVEL_VALUES, out_channels)
        half = -(-out_channels // 2)  # of an odd C, the middle channel hears both levels
        shallow, deep = backbone.channels[:2]
        self.register_buffer("local", _kernel(shares[:half, :LEVEL_VALUES], shallow))
        self.register_buffer("context", _kernel(shares[-half:, LEVEL_VALUES:], deep))
        self.register_buffer("image_mean", torch.tensor(backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(backbone.std).view(1, 3, 1, 1))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Shape: (B, 3, H, W) in [0, 1] -> (B, C, h, w), unbounded."""
        shallow, deep = self.backbone.net.forward_intermediates(
            (images - self.image_mean) / self.image_std,
            indices=self.backbone.indices,
            intermediates_only=True,
            stop_early=True,
        )
        local, context = self._described(shallow, self.local), self._described(deep, self.context)
        other = self.out_channels - local.shape[1]
        return F.pad(local, (0, 0, 0, 0, 0, other)) + F.pad(context, (0, 0, 0, 0, other, 0))

    def _described(self, level: Tensor, kernel: Tensor) -> Tensor:
        return F.interpolate(F.conv2d(level, kernel, padding=PATCH // 2), size=self.grid, mode="bilinear")


def even_shares(values: int, shares: int) -> Tensor:
    """Adaptive average pooling of a row of values as a matrix, (shares, values); neighbouring shares may overlap."""
    share, value = torch.arange(shares).unsqueeze(1), torch.arange(values)
    inside = (value >= share * values // shares) & (value < ((share + 1) * values).add(shares - 1) // shares)
    return inside / inside.sum(dim=1, keepdim=True)


def _kernel(shares: Tensor, channels: int) -> Tensor:
    """The convolution that averages neighbourhoods in `LEVEL_VALUES` shares, and those in `shares`."""
    neighbourhood = even_shares(channels * PATCH**2, LEVEL_VALUES)
    return (shares @ neighbourhood).view(len(shares), channels, PATCH, PATCH)
