"""What the decision does when the pixels that a map calls relevant are taken away, or are all that is left.

Deletion and insertion curves (RISE: Petsiuk et al., BMVC 2018). One picture at a time: image (3, H, W), map (h, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from gainmtl_lib.metrics import normalize_maps, resize_maps
from gainmtl_lib.models.counterfactual import as_at_inference

BLUR = 8
"""The shorter side in standard deviations of the blur that stands for "taken away"."""

Seed = int | Sequence[int]


@dataclass(frozen=True)
class Curves:
    """Probability of "defective" along a path of replaced pixels.

    Attributes:
        fractions: of the pixels deleted, or inserted, ascending from 0 to 1, (K,).
        deletion: the most relevant pixels blurred first, (K,); begins with the picture, ends with the blurred one.
        insertion: the most relevant pixels revealed first on the blurred picture, (K,).
    """

    fractions: Tensor
    deletion: Tensor
    insertion: Tensor

    @property
    def deletion_auc(self) -> float:
        """Area under the deletion curve; low when the map names what the decision needs."""
        return float(torch.trapezoid(self.deletion, self.fractions))

    @property
    def insertion_auc(self) -> float:
        """Area under the insertion curve; high when the map names what suffices."""
        return float(torch.trapezoid(self.insertion, self.fractions))


def deletion_insertion(
    model: nn.Module, image: Tensor, values: Tensor, *, steps: int = 16, seed: Seed = 0, batch_size: int = 32
) -> Curves:
    """Both curves of one map on one picture.

    What is taken away is replaced by the heavily blurred picture: a patch of one colour on a textured surface looks
    like a defect itself. It is not beyond doubt either: see the curves' last and first point.

    Args:
        model: pictures to a record with ``logits``, such as `GAINMTLModel`; computed as at inference.
        image: RGB in [0, 1], (3, H, W).
        values: the map, (h, w), on any scale; what is higher is more relevant.
        steps: equal parts of the pixels; 2 (steps + 1) forward passes.
        seed: of the order among pixels of equal value, see `relevance_places`.
        batch_size: forward passes at a time.

    Raises:
        ValueError: image, map or steps of a wrong shape or number.
    """
    check_picture(image, values)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    image = image.to(device_of(model, image)).float()
    places = relevance_places(values, image, seed).to(image.device)
    blurred = blur(image)
    fractions = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    counts = (fractions * places.numel()).round().long().to(image.device)

    def curve(before: Tensor, after: Tensor) -> Tensor:
        parts = [torch.where(places < some[:, None, None, None], after, before) for some in counts.split(batch_size)]
        return torch.cat([defect_probability(model, part) for part in parts]).double()

    return Curves(fractions, curve(image, blurred), curve(blurred, image))


def relevance_places(values: Tensor, image: Tensor, seed: Seed = 0) -> Tensor:
    """Each pixel's place in the order of relevance, int64 (H, W); 0 is the most relevant.

    The map is upsampled as the metrics do. Equal values, such as the zeros of a rectified map, stand in random order,
    drawn on the map's own grid: in the order of rows a flat map would be a map of the upper left corner.
    """
    noise = torch.from_numpy(np.random.default_rng(seed).random(values.shape, dtype=np.float32))
    full = [resize_maps(grid[None, None].cpu(), image[None, :1].cpu()) for grid in (values, noise)]
    # Rounded, because upsampling leaves differences of a few float32 ulp between equal values.
    relevance, ties = (normalize_maps(full[0]) * 1e5).round().numpy().ravel(), full[1].numpy().ravel()
    places = np.empty(relevance.size, dtype=np.int64)
    places[np.lexsort((ties, -relevance))] = np.arange(relevance.size)
    return torch.from_numpy(places.reshape(image.shape[1:]))


def moved_map(values: Tensor, seed: Seed = 0) -> Tensor:
    """The random map to compare with: the same map, turned over and rolled to a random place, (h, w).

    As smooth and as peaked as the map itself. Independent noise is neither: it hits a bit of everything at each
    step, so that what differs would be the texture of the perturbation and not the place.
    """
    rng = np.random.default_rng(seed)
    flipped = values.flip([axis for axis in (0, 1) if rng.random() < 0.5])
    return flipped.roll([int(rng.integers(size)) for size in values.shape], (0, 1))


def blur(image: Tensor) -> Tensor:
    """The picture (3, H, W) without anything smaller than about an eighth of it."""
    sigma = min(image.shape[1:]) / BLUR
    pixels = np.asarray(ndimage.gaussian_filter(image.cpu().numpy(), (0, sigma, sigma), truncate=2.5))
    return torch.from_numpy(pixels).to(image.device)


def defect_probability(model: nn.Module, images: Tensor) -> Tensor:
    """Probability of "defective", float32 (B,), as at inference."""
    with as_at_inference(model), torch.inference_mode():
        return model(images).logits.float().softmax(dim=1)[:, 1].cpu()


def device_of(model: nn.Module, image: Tensor) -> torch.device:
    """Where the model's weights are; where the image is, for a model without any."""
    return next(model.parameters(), image).device


def check_picture(image: Tensor, values: Tensor) -> None:
    """Raises `ValueError` unless one picture (3, H, W) and one map (h, w) are given."""
    if image.ndim != 3 or values.ndim != 2:
        raise ValueError(
            f"expected one image (3, H, W) and one map (h, w), got {tuple(image.shape)} and {tuple(values.shape)}"
        )
