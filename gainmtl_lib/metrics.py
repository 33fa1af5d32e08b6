"""How well a map or a predicted mask agrees with the annotated defect, image by image.

Every score is taken at the resolution of the masks (the network's input); a coarser map is upsampled
first. An image whose mask is empty has no answer: its score is NaN, and the metric classes count it as
skipped. Values of a map that are not finite count as zero.

Sizes: B images, H x W masks, h x w maps (h <= H, w <= W).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

# Upsampling a constant map leaves differences of a few float32 ulp; min-max would blow them up to a pattern.
_FLAT = 1e-6


def resize_maps(maps: Tensor, masks: Tensor) -> Tensor:
    """Bring maps to the masks' resolution, bilinear. (B, 1, h, w) -> float32 (B, 1, H, W)."""
    if maps.ndim != 4 or maps.shape[:2] != (len(masks), 1) or masks.shape[:2] != maps.shape[:2] or masks.ndim != 4:
        raise ValueError(
            "maps must be (B, 1, h, w) and masks (B, 1, H, W) with the same B, "
            f"got {tuple(maps.shape)} and {tuple(masks.shape)}"
        )
    maps = maps.detach().float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    if maps.shape == masks.shape:
        return maps
    return F.interpolate(maps, size=masks.shape[-2:], mode="bilinear", align_corners=False)


def normalize_maps(maps: Tensor) -> Tensor:
    """Min-max each map to [0, 1]; a constant map, which says nothing, becomes all zeros. Any (B, ...)."""
    maps = maps.detach().float()
    low, high = (bound.view(-1, *[1] * (maps.ndim - 1)) for bound in torch.aminmax(maps.flatten(1), dim=1))
    span = high - low
    varied = span > _FLAT * torch.maximum(low.abs(), high.abs())
    return (maps - low) / span.clamp_min(torch.finfo(torch.float32).tiny) * varied


# Each score is a ratio. The functions below give numerator and denominator per image, (B,) each, in shares of the
# image's pixels: their quotient is the image's score, the quotient of their sums the pooled one.

Parts = tuple[Tensor, Tensor]


def _share(values: Tensor) -> Tensor:
    return values.float().flatten(1).mean(dim=1)


def _iou_parts(predicted: Tensor, masks: Tensor) -> Parts:
    defect = masks > 0.5
    return _share(predicted & defect), _share(predicted | defect)


def _cam_iou_parts(maps: Tensor, masks: Tensor, threshold: float = 0.5) -> Parts:
    return _iou_parts(normalize_maps(resize_maps(maps, masks)) >= threshold, masks)


def _point_game_parts(maps: Tensor, masks: Tensor) -> Parts:
    peak = normalize_maps(resize_maps(maps, masks)) >= 1 - _FLAT
    inside, all_peaks = _share(peak & (masks > 0.5)), _share(peak)
    hit = inside / all_peaks.clamp_min(torch.finfo(torch.float32).tiny)
    return hit, torch.ones_like(hit)


def _energy_inside_parts(maps: Tensor, masks: Tensor) -> Parts:
    energy = resize_maps(maps, masks).relu()
    return _share(energy * (masks > 0.5)), _share(energy)


def _grid_iou_parts(masks: Tensor, grid: tuple[int, int]) -> Parts:
    return _cam_iou_parts(F.adaptive_avg_pool2d(masks.float(), grid), masks)


def _own_grid_iou_parts(maps: Tensor, masks: Tensor) -> Parts:
    return _grid_iou_parts(masks, (maps.shape[-2], maps.shape[-1]))


def _mask_iou_parts(prob: Tensor, masks: Tensor, threshold: float = 0.5) -> Parts:
    return _iou_parts(resize_maps(prob, masks) >= threshold, masks)


def _dice_parts(prob: Tensor, masks: Tensor, threshold: float = 0.5) -> Parts:
    predicted, defect = resize_maps(prob, masks) >= threshold, masks > 0.5
    return 2 * _share(predicted & defect), _share(predicted) + _share(defect)


def _pixel_accuracy_parts(prob: Tensor, masks: Tensor, threshold: float = 0.5) -> Parts:
    correct = _share((resize_maps(prob, masks) >= threshold) == (masks > 0.5))
    return correct, torch.ones_like(correct)


def _answerable(masks: Tensor) -> Tensor:
    return (masks > 0.5).flatten(1).any(dim=1)


def _score(parts: Parts, masks: Tensor) -> Tensor:
    """(B,) scores: 0 where the denominator is 0, NaN where the mask is empty."""
    numerator, denominator = parts
    score = numerator / denominator.clamp_min(torch.finfo(torch.float32).tiny)
    return score.masked_fill(~_answerable(masks), torch.nan)


def cam_iou(maps: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """IoU of the min-max normalised map, cut at the threshold, with the mask. -> (B,), NaN without a mask."""
    return _score(_cam_iou_parts(maps, masks, threshold), masks)


def point_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Whether the map's maximum lies inside the mask (Zhang et al. 2018). -> (B,), NaN without a mask.

    Tied maxima share the point: the score is the share of them inside. A constant map points nowhere: 0.
    """
    return _score(_point_game_parts(maps, masks), masks)


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the map's positive energy that lies inside the mask. -> (B,), NaN without a mask.

    A map without any positive energy scores 0: its image has an answer and the map misses it. Skipping it
    would favour a model whose CAM is negative wherever it overlooks the defect.
    """
    return _score(_energy_inside_parts(maps, masks), masks)


def grid_iou(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """CAM-IoU that the mask itself reaches when it is put on a grid of (h, w) cells by area.

    What a map of that resolution can be expected to reach at most; a reference, not a strict bound.
    -> (B,), NaN without a mask.
    """
    return _score(_grid_iou_parts(masks, grid), masks)


def mask_iou(prob: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """IoU of a predicted mask, probabilities cut at the threshold. -> (B,), NaN without a mask."""
    return _score(_mask_iou_parts(prob, masks, threshold), masks)


def dice(prob: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Dice coefficient of a predicted mask, 2 IoU / (1 + IoU). -> (B,), NaN without a mask."""
    return _score(_dice_parts(prob, masks, threshold), masks)


def pixel_accuracy(prob: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Share of pixels predicted rightly. -> (B,), NaN without a mask."""
    return _score(_pixel_accuracy_parts(prob, masks, threshold), masks)


class PerImageMean(Metric):
    """Mean of a per-image score over the images that have a mask; NaN when there is none.

    Attributes:
        count: how many images were scored.
        skipped: how many had no mask.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    total: Tensor
    count: Tensor
    skipped: Tensor
    numerator: Tensor
    denominator: Tensor

    def __init__(self, parts: Callable[[Tensor, Tensor], Parts], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._parts = parts
        for state in ("total", "numerator", "denominator"):
            self.add_state(state, torch.zeros(()), dist_reduce_fx="sum")
        for state in ("count", "skipped"):
            self.add_state(state, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Shape: (B, 1, h, w), (B, 1, H, W)."""
        parts = self._parts(maps, masks)
        valid = _answerable(masks)
        self.total = self.total + _score(parts, masks)[valid].sum()
        self.numerator = self.numerator + parts[0][valid].sum()
        self.denominator = self.denominator + parts[1][valid].sum()
        self.count = self.count + valid.sum()
        self.skipped = self.skipped + (~valid).sum()

    def compute(self) -> Tensor:
        """The mean over images; 0 / 0 is the NaN of "no answer"."""
        return self.total / self.count

    def pooled(self) -> Tensor:
        """The score of all images taken as one, where large defects weigh more."""
        with self.sync_context():
            return self.numerator / self.denominator


class CamIoU(PerImageMean):
    """Mean `cam_iou`."""

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(partial(_cam_iou_parts, threshold=threshold), **kwargs)


class EnergyInside(PerImageMean):
    """Mean `energy_inside`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(_energy_inside_parts, **kwargs)


class GridIoU(PerImageMean):
    """Mean `grid_iou` on the grid of the maps it is given, whose values it does not read."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(_own_grid_iou_parts, **kwargs)


class LocalizationIoU(PerImageMean):
    """Mean `mask_iou`."""

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(partial(_mask_iou_parts, threshold=threshold), **kwargs)


class Dice(PerImageMean):
    """Mean `dice`."""

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(partial(_dice_parts, threshold=threshold), **kwargs)
