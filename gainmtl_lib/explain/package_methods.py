"""Class activation maps of the ``grad-cam`` package (Gildenblat et al.), tapped before its scaling.

The package cuts every map at zero, stretches it per image to [0, 1] and resizes it. Here a map stays as its method
defines it, on the grid of the features, so that all maps pass through the same metrics.

Sizes: B images, C channels, H x W network input, h x w feature grid.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pytorch_grad_cam import EigenCAM, GradCAM, HiResCAM, LayerCAM, ScoreCAM
from torch import Tensor, nn

from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.models.heads import ClassificationHead

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOG_LINES = 5.0


def deciding_head(model: GAINMTLModel) -> ClassificationHead:
    """The head whose margin is the verdict: path 1's in S1-S2, path 2's from S3 on."""
    return model.cls_head if model.attention is None else model.attention.attended_cls_head


def deciding_features(model: GAINMTLModel, images: Tensor) -> Tensor:
    """What the deciding head classifies, (B, C, h, w): conv_head, the projection, or the adapter's output."""
    seen: list[Tensor] = []
    handle = deciding_head(model).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        model(images)
    finally:
        handle.remove()
    return seen[0]


class DecidingLogits(nn.Module):
    """Pictures to the deciding logits alone, with a module to hook where the deciding head begins.

    The head is a copy and the model is no submodule, so that the package's backward pass, ``zero_grad`` and
    ``eval`` reach none of the model's own weights; the gradient ends at the tap, also when every weight is frozen.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: GAINMTLModel) -> None:
        super().__init__()
        self.head = copy.deepcopy(deciding_head(model)).float().requires_grad_(False)
        self.tap = nn.Identity()
        self._features: Callable[[Tensor], Tensor] = lambda images: deciding_features(model, images)
        self._mean, self._std = model.mean, model.std

    def forward(self, normalised: Tensor) -> Tensor:
        """Shape: (B, 3, H, W), pictures as the backbone expects them, zero being their mean colour -> (B, 2)."""
        with torch.no_grad():
            features = self._features(normalised * self._std + self._mean)
        return self.head(self.tap(features.float().requires_grad_(torch.is_grad_enabled())))


class _RawMap:
    """The package's way to a map, ended before the map is cut, stretched and resized."""

    rectified = False  # whether the method's own definition ends with a ReLU
    activations_and_grads: Any
    target_layers: Any
    get_cam_image: Any

    def compute_cam_per_layer(
        self, input_tensor: Tensor, targets: Sequence[Callable[[Tensor], Tensor]], eigen_smooth: bool
    ) -> list[NDArray[np.float32]]:
        """One map (B, h, w) in a list; the package calls this after its forward and backward pass."""
        activations = self.activations_and_grads.activations[0].numpy()
        gradients = next((gradient.numpy() for gradient in self.activations_and_grads.gradients), None)
        arguments = (input_tensor, self.target_layers[0], targets, activations, gradients, eigen_smooth)
        return [self.get_cam_image(*arguments)]

    def aggregate_multi_layers(self, cam_per_target_layer: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """The only layer's map."""
        return np.maximum(cam_per_target_layer[0], 0) if self.rectified else cam_per_target_layer[0]


class RawGradCAM(_RawMap, GradCAM):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Selvaraju et al. 2017: channels weighted by their mean gradient, ReLU."""

    rectified = True


class RawHiResCAM(_RawMap, HiResCAM):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Draelos and Carin 2020: gradient times activation, cell by cell, signed."""


class RawLayerCAM(_RawMap, LayerCAM):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Jiang et al. 2021: positive gradient times activation, cell by cell, ReLU."""

    rectified = True


class RawEigenCAM(_RawMap, EigenCAM):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Muhammad and Yeasin 2020: the features' first principal component. It does not look at the decision at all."""

    def get_cam_image(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_tensor: Any, target_layer: Any, targets: Any, activations: Any, grads: Any, eigen_smooth: bool
    ) -> NDArray[np.float32]:
        """The package's projection, its largest deviation made positive; the package leaves the sign to chance.

        From the C x C covariance: the package's full decomposition needs (h w)^2 numbers.
        """
        cells = torch.from_numpy(activations).double().nan_to_num().flatten(2)  # (B, C, h * w)
        cells = cells - cells.mean(dim=2, keepdim=True)
        first = torch.linalg.eigh(cells @ cells.mT).eigenvectors[:, None, :, -1]  # (B, 1, C)
        projection = (first @ cells)[:, 0]
        turned = projection.amin(dim=1).abs() > projection.amax(dim=1)
        projection = projection * (1 - 2 * turned.double())[:, None]
        return projection.unflatten(1, activations.shape[2:]).float().numpy()


class RawScoreCAM(_RawMap, ScoreCAM):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Wang et al. 2020: channels weighted by the margin of the picture seen through them, ReLU.

    One forward pass per channel and picture. Where a channel is off, the picture has its mean colour.
    """

    rectified = True
    batch_size = 16

    def get_cam_weights(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_tensor: Tensor, target_layer: Any, targets: Any, activations: Any, grads: Any
    ) -> NDArray[np.float32]:
        """The package's weights (B, C), with the masked pictures made a batch at a time.

        The package makes all of them at once (12 C H W bytes a picture, 4 GB at 1280 channels and 512 pixels).
        """
        scores, last = torch.empty(activations.shape[:2]), time.monotonic()
        for row, (image, channels) in enumerate(zip(input_tensor, torch.from_numpy(activations), strict=True)):
            masks = channels[:, None].to(image.device)  # (C, 1, h, w)
            for start in range(0, len(masks), self.batch_size):
                part = slice(start, start + self.batch_size)
                with torch.no_grad():
                    logits = self.model(image * _as_masks(masks[part], image))
                scores[row, part] = torch.stack([targets[row](one) for one in logits]).cpu()
                self.activations_and_grads.clear()  # the hooks keep the features of every pass
                if time.monotonic() - last >= SECONDS_BETWEEN_LOG_LINES:
                    last = time.monotonic()
                    logger.info("Score-CAM: picture %d of %d, channel %d", row + 1, len(scores), start)
        return scores.softmax(dim=1).numpy()


def _as_masks(channels: Tensor, image: Tensor) -> Tensor:
    """Channels (b, 1, h, w) at the picture's size, each stretched to [0, 1]; a constant one masks everything."""
    masks = F.interpolate(channels, size=image.shape[-2:], mode="bilinear", align_corners=True)
    low, high = masks.amin(dim=(2, 3), keepdim=True), masks.amax(dim=(2, 3), keepdim=True)
    return (masks - low) / (high - low + 1e-8)
