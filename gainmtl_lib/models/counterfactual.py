"""What the features would be without the defect, and the control that moves the mask off it.

Sizes: B images, C channels, h x w feature grid, H x W mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gainmtl_lib.models.layers import conv_bn_relu
from gainmtl_lib.models.weights import ModelError

MODES = ("learned", "mean", "zero")


class Counterfactual(nn.Module):
    """Replace the features of the defect region and leave every other cell as it is.

    Args:
        channels: feature channels C.
        mode: ``learned`` (suppression, replacement and refinement by convolutions), ``mean`` (the surrounding
            features; nothing to learn, so no loophole) or ``zero``.
    """

    def __init__(self, channels: int, *, mode: str = "learned") -> None:
        super().__init__()
        if mode not in MODES:
            raise ModelError(f"counterfactual_mode must be one of {', '.join(MODES)}, got '{mode}'")
        self.mode = mode
        if mode == "learned":
            hidden = max(8, channels // 4)
            self.suppressor = nn.Sequential(
                conv_bn_relu(1, hidden, 3), conv_bn_relu(hidden, hidden, 3), nn.Conv2d(hidden, channels, 1)
            )
            nn.init.constant_(self.suppressor[-1].bias, 2.0)  # type: ignore[arg-type]  # start by suppressing 88 %
            self.replacer = _bottleneck(channels, hidden)
            self.refiner = _bottleneck(channels, hidden)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Shape: (B, C, h, w), (B, 1, H, W) -> (B, C, h, w)."""
        cells = mask_cells(masks, features.shape[2:])
        region = dilated(cells, 1).to(features.dtype)
        if self.mode == "zero":
            return features * (1 - region)
        if self.mode == "mean":
            return features * (1 - region) + surroundings(features, region) * region
        suppression = self.suppressor(cells.to(features.dtype)).sigmoid() * region  # (B, C, h, w)
        features = features + (self.replacer(features) - features) * suppression
        return features + self.refiner(features) * region


def mask_cells(masks: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Cells of the feature grid that hold a defect pixel: float {0, 1}, (B, 1, *size)."""
    return F.adaptive_max_pool2d((masks > 0.5).float(), tuple(size))  # type: ignore[arg-type]


def dilated(masks: Tensor, margin: int) -> Tensor:
    """Binary masks (B, 1, H, W) grown by a square of `margin` cells to each side."""
    size = 2 * margin + 1
    rows = F.max_pool2d(masks, (size, 1), stride=1, padding=(margin, 0))
    return F.max_pool2d(rows, (1, size), stride=1, padding=(0, margin))


def surroundings(features: Tensor, region: Tensor) -> Tensor:
    """Mean feature of the two cells around the region, (B, C, 1, 1); zero where the region fills the grid."""
    ring = dilated(region.float(), 2).to(region.dtype) - region
    return (features * ring).sum((2, 3), keepdim=True) / ring.sum((2, 3), keepdim=True).clamp(min=1)


@contextmanager
def as_at_inference(module: nn.Module) -> Iterator[None]:
    """Run a module with its batch norms' running statistics, which stay as they are, and without dropout."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def control_masks(masks: Tensor, *, margin: int | None = None, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same masks moved off the defect: suppressing there must not change the decision.

    Where to is drawn among all places inside the picture from the mask itself: the same every time, and not always
    the same corner.

    Args:
        masks: defect masks, (B, 1, H, W).
        margin: pixels to keep between the defect and its moved copy; None is a sixteenth of the shorter side.
            ``2 * map_stride`` keeps the copy's dilated region clear of the defect's cells.
        inside: where the pictures lie, bool (B, 1, H, W); None is everywhere. A copy in the flat bars beside a
            letterboxed picture would be a control that hardly ever changes anything.

    Returns:
        The moved masks, all zero where there is no place, and which were placed, bool (B,). An empty mask has no
        place.
    """
    if margin is None:
        margin = min(masks.shape[2:]) // 16
    defects = (masks > 0.5).float()
    forbidden = dilated(defects, margin)
    if inside is not None:
        forbidden = torch.maximum(forbidden, 1 - inside.to(forbidden))
    moved = torch.zeros_like(masks)
    placed = torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
    for index in range(len(masks)):
        shift = _free_shift(defects[index, 0], forbidden[index, 0])
        if shift is not None:
            moved[index, 0] = torch.roll(defects[index, 0], shift, (0, 1))
            placed[index] = True
    return moved, placed


def _free_shift(defect: Tensor, forbidden: Tensor) -> tuple[int, int] | None:
    """A shift of `defect` (H, W) that stays inside the image and off `forbidden` (H, W)."""
    defect, forbidden = defect.cpu().double(), forbidden.cpu().double()  # float32 sums of large masks are not exact
    height, width = defect.shape
    rows, columns = defect.any(1).nonzero()[:, 0], defect.any(0).nonzero()[:, 0]
    if not len(rows):
        return None
    # overlap[dy, dx] = sum of forbidden * defect rolled by (dy, dx): a circular correlation.
    spectrum = torch.fft.rfft2(forbidden) * torch.fft.rfft2(defect).conj()
    overlap = torch.fft.irfft2(spectrum, s=(height, width)).round()
    dy = torch.arange(-int(rows[0]), height - int(rows[-1]))
    dx = torch.arange(-int(columns[0]), width - int(columns[-1]))
    free = (overlap[dy % height][:, dx % width] == 0).nonzero()
    if not len(free):
        return None
    drawn = (int(rows.sum()) * 7919 + int(columns.sum()) * 104729 + int(defect.sum())) % len(free)
    return int(dy[free[drawn, 0]]), int(dx[free[drawn, 1]])


def _bottleneck(channels: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        conv_bn_relu(channels, hidden, 1), conv_bn_relu(hidden, hidden, 3), nn.Conv2d(hidden, channels, 1)
    )
