"""EfficientAD's model: from an image to its anomaly map and score, in one call (arXiv 2303.14535, section 3).

A frozen teacher describes patches, a student that saw good parts only imitates it, and an autoencoder predicts the
teacher through a bottleneck. Where the student differs from the teacher a patch is unusual, where it differs from the
autoencoder the arrangement is.

B images, H x W pixels, C channels, h x w cells. A map is the mean squared difference over channels, per cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gainmtl_lib.efficientad.networks import (
    SMALLEST_IMAGE,
    AutoEncoder,
    ModelSize,
    PatchDescriptionNetwork,
)
from gainmtl_lib.models.weights import ModelError

BORDER = 4
"""Cells before each border that a description without padding leaves out."""

QUANTILES = (0.9, 0.995)
"""Of the normal validation maps: shown as 0 and as 0.1 on the anomaly map's scale."""


class LocalMaps(NamedTuple):
    """The two maps on the description's grid, (B, 1, h, w), at least 0, not yet on a common scale.

    Attributes:
        student_teacher: local anomalies.
        student_autoencoder: logical anomalies.
    """

    student_teacher: Tensor
    student_autoencoder: Tensor


@dataclass(frozen=True)
class AnomalyOutput:
    """What the model says.

    Attributes:
        anomaly_map: float32 (B, 1, H, W): the mean of the two maps, 0 at the 90 % quantile of normal parts and 0.1 at
            the 99.5 % quantile; negative where calmer. 0 on the border that a network without padding leaves out.
        score: float32 (B,), the map's maximum before it is enlarged.
        cells: float32 (B, 1, h', w'): the map before it is enlarged, its border of 0 included.
    """

    anomaly_map: Tensor
    score: Tensor
    cells: Tensor


class EfficientADModel(nn.Module):
    """Teacher, student and autoencoder, with the statistics that make their maps comparable as buffers.

    Args:
        model_size: S or M, of teacher and student.
        out_channels: C of the teacher and of the autoencoder; the student has twice that, one half for each.
        padding: see `PatchDescriptionNetwork`.
    """

    teacher_mean: Tensor
    teacher_std: Tensor
    quantiles: Tensor
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, model_size: ModelSize = "S", out_channels: int = 384, *, padding: bool = False) -> None:
        super().__init__()
        if model_size not in ("S", "M"):
            raise ModelError(f"model_size must be S or M, got {model_size!r}")
        self.model_size, self.out_channels, self.padding = model_size, out_channels, padding
        self.teacher = PatchDescriptionNetwork(model_size=model_size, out_channels=out_channels, padding=padding)
        self.student = PatchDescriptionNetwork(model_size=model_size, out_channels=2 * out_channels, padding=padding)
        self.autoencoder = AutoEncoder(out_channels=out_channels)
        self.teacher.requires_grad_(False)
        self.register_buffer("teacher_mean", torch.zeros(1, out_channels, 1, 1))
        self.register_buffer("teacher_std", torch.ones(1, out_channels, 1, 1))
        self.register_buffer("quantiles", torch.tensor([[0.0, 0.1], [0.0, 0.1]]))  # (map, lower and upper)
        # ImageNet's, which the published teachers were made with.
        self.register_buffer("image_mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> AnomalyOutput:
        """Shape: (B, 3, H, W) in [0, 1] -> see `AnomalyOutput`."""
        return self.finish(self.local_maps(images), (images.shape[-2], images.shape[-1]))

    def local_maps(self, images: Tensor) -> LocalMaps:
        """The two maps, not yet put on their scale.

        Raises:
            ModelError: images below `SMALLEST_IMAGE`.
        """
        pixels = self.normalized(images)
        described = self.describe(pixels)
        local, whole = self.student(pixels).split(self.out_channels, dim=1)
        predicted = self.autoencoder(pixels, (described.shape[-2], described.shape[-1]))
        return LocalMaps(mean_square(described, local), mean_square(predicted, whole))

    def normalized(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] as the networks want them."""
        check_size(images.shape[-2], images.shape[-1])
        return (images - self.image_mean) / self.image_std

    @torch.no_grad()
    def describe(self, pixels: Tensor) -> Tensor:
        """The teacher's description of normalised images, each channel standardised, (B, C, h, w)."""
        return (self.teacher(pixels) - self.teacher_mean) / self.teacher_std

    def finish(self, maps: LocalMaps, image_size: tuple[int, int]) -> AnomalyOutput:
        """Put the maps on their common scale, join them, and enlarge the result to the image."""
        lower, upper = self.quantiles.float().unbind(dim=1)
        scaled = [0.1 * (one.float() - a) / (b - a) for one, a, b in zip(maps, lower, upper, strict=True)]
        joined = (scaled[0] + scaled[1]) / 2
        score = joined.amax(dim=(1, 2, 3))
        framed = joined if self.padding else F.pad(joined, (BORDER,) * 4)
        enlarged = F.interpolate(framed, size=image_size, mode="bilinear", align_corners=False)
        return AnomalyOutput(enlarged, score, framed)

    def set_teacher_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Mean and standard deviation of each teacher channel over the training images, (C,) each.

        Raises:
            ModelError: a channel that never changes, or values that are not finite.
        """
        if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise ModelError("the teacher's channel statistics are not finite; its weights are damaged")
        if dead := int((std <= 0).sum()):
            raise ModelError(
                f"{dead} of the teacher's {len(std)} channels never change on the training images; "
                "its weights are damaged, or the images are all the same"
            )
        self.teacher_mean.copy_(mean.view(1, -1, 1, 1))
        self.teacher_std.copy_(std.view(1, -1, 1, 1))

    def set_quantiles(self, quantiles: Tensor, *, images: int) -> None:
        """Where the scale of each map begins and ends.

        Args:
            quantiles: (2, 2), for the maps of `LocalMaps` in order those of `QUANTILES`.
            images: how many validation images they come from, for the error.

        Raises:
            ModelError: they are not finite, or a map's two are equal.
        """
        if not bool(torch.isfinite(quantiles).all()) or bool((quantiles[:, 1] <= quantiles[:, 0]).any()):
            values = ", ".join(f"{value:.4g}" for value in quantiles.flatten().tolist())
            raise ModelError(
                f"the quantiles of the normal validation maps give no scale ({values}) from {images} "
                f"image{'s' if images != 1 else ''}; expected finite values, the upper above the lower: validate on "
                "more normal images (val_ratio), and see that the loss is finite"
            )
        self.quantiles.copy_(quantiles)


def check_size(height: int, width: int) -> None:
    """Raises `ModelError`: images of that size are below `SMALLEST_IMAGE`."""
    if min(height, width) < SMALLEST_IMAGE:
        raise ModelError(
            f"EfficientAD needs images of at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels, "
            f"got {height}x{width} (height x width)"
        )


def mean_square(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference over channels, (B, C, h, w) twice -> float32 (B, 1, h, w)."""
    return (first.float() - second.float()).square().mean(dim=1, keepdim=True)
