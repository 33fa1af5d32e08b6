"""Class activation maps of the ``grad-cam`` package (Gildenblat et al.), tapped before its scaling.

The package cuts every map at zero, stretches it per image to [0, 1] and resizes it. Here a map stays as its method
defines it, on the grid of the features, so that all maps pass through the same metrics.

Sizes: B images, C channels, H x W network input, h x w feature grid.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pytorch_grad_cam import EigenCAM, GradCAM, HiResCAM, LayerCAM, ScoreCAM
from pytorch_grad_cam.base_cam import BaseCAM
from scipy import ndimage, sparse, stats
from scipy.sparse.linalg import splu
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.dataset import GainDataModule, build_data
from gainmtl_lib.evaluation import SPLITS, file_digest, rows_of, stored_tables
from gainmtl_lib.metrics import cam_iou, energy_inside, grid_iou, normalize_maps, point_game, resize_maps
from gainmtl_lib.model import OUTSIDE_SOURCES, ClassificationHead, GAINMTLModel, as_at_inference
from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import Run, RunError, read_json, write_json
from gainmtl_lib.stats import FEWEST_GROUPS, Estimate, group_codes, mean_gain, paired_difference
from gainmtl_lib.train import checked_device

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


# --- Other class activation maps of the same decision, beside the model's own exact one, with the same me


CAM_METHODS: dict[str, type[BaseCAM] | None] = {
    "ours": None,
    "grad_cam": RawGradCAM,
    "layer_cam": RawLayerCAM,
    "hires_cam": RawHiResCAM,
    "eigen_cam": RawEigenCAM,
    "score_cam": RawScoreCAM,
}
"""Methods by name, and the class that computes each; None is the model's own map."""


def compute_cam(model: GAINMTLModel, images: Tensor, method: str) -> Tensor:
    """The map of one method for the decision on each picture.

    Raw values: nothing is stretched per image or resized. "ours", "hires_cam" and "eigen_cam" are signed; the
    definitions of the other three end with a ReLU. The model is left as it was: training mode, gradients,
    ``requires_grad`` and hooks.

    Args:
        model: in any mode; computed as at inference, in single precision, on its own device.
        images: RGB in [0, 1], (B, 3, H, W).
        method: a name of `CAM_METHODS`, or ``attention``, what gates the features from S3 on: no explanation of the
            decision by itself, to be compared with them.

    Returns:
        float32 (B, 1, h, w), without graph.

    Raises:
        ModelError: there is no such method, or no attention in this strategy.
    """
    check_method(model, method)
    device = next(model.parameters()).device
    with as_at_inference(model), torch.autocast(device.type, enabled=False):
        images = images.detach().to(device).float()
        package_class = CAM_METHODS.get(method)
        if package_class is not None:
            return _package_map(model, images, package_class)
        with torch.no_grad():
            output = model(images)
        return (output.cam if method == "ours" else output.effective_attention).float()


def check_method(model: GAINMTLModel, method: str) -> None:
    """Raises `ModelError` when this model has no map of that name; says which it has."""
    if method == "attention" and model.attention is None:
        raise ModelError(
            f"strategy {model.strategy} has no attention, which begins with S3; there are {', '.join(CAM_METHODS)}"
        )
    if method not in CAM_METHODS and method != "attention":
        raise ModelError(f"method must be one of {', '.join(CAM_METHODS)} or attention, got '{method}'")


def _package_map(model: GAINMTLModel, images: Tensor, package_class: type[BaseCAM]) -> Tensor:
    # Not as a context manager: the package's would swallow every IndexError.
    with torch.inference_mode(False), torch.enable_grad():
        decision = DecidingLogits(model).eval()
        cam = package_class(decision, [decision.tap])
        try:
            maps = cam((images - model.mean) / model.std, [_margin] * len(images))  # type: ignore[arg-type]  # called, not modules
        finally:
            cam.activations_and_grads.release()
    return torch.from_numpy(maps)[:, None].float().to(images.device)


def _margin(logits: Tensor) -> Tensor:
    return logits[1] - logits[0]


def method_scores(
    model: GAINMTLModel,
    data: GainDataModule,
    rows: Sequence[int],
    methods: Sequence[str] = tuple(CAM_METHODS),
    *,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Agreement with the mask of every method's map, on the same pictures.

    Args:
        model: as for `compute_cam`.
        data: set up.
        rows: of ``data.samples``; pictures without an annotation have NaN scores.
        methods: as for `compute_cam`. Score-CAM takes as many forward passes a picture as the map has channels.
        batch_size: pictures at a time.

    Returns:
        One row per method and picture: ``method``, ``row``, ``cam_iou``, ``point_game``, ``energy_inside`` and
        ``grid_iou``, what the mask itself reaches on the map's grid.

    Raises:
        ModelError: see `compute_cam`.
        ValueError: no rows.
    """
    if not len(rows):
        raise ValueError("rows is empty; give rows of data.samples, for example data.rows('test')")
    for method in methods:
        check_method(model, method)
    parts = []
    for method in methods:
        started = time.monotonic()
        for start in range(0, len(rows), batch_size):
            chosen = [int(row) for row in rows[start : start + batch_size]]
            batch = data.dataset.__getitems__(chosen)
            maps = compute_cam(model, batch.images, method).cpu()
            scores = _scores(maps, batch.masks * batch.has_mask[:, None, None, None])
            parts.append(pd.DataFrame({"method": method, "row": chosen} | scores))
        logger.info("%s: %.2f s a picture", method, (time.monotonic() - started) / len(rows))
    return pd.concat(parts, ignore_index=True)


def _scores(maps: Tensor, masks: Tensor) -> dict[str, NDArray[np.float32]]:
    scores = {
        "cam_iou": cam_iou(maps, masks),
        "point_game": point_game(maps, masks),
        "energy_inside": energy_inside(maps, masks),
        "grid_iou": grid_iou(masks, (maps.shape[-2], maps.shape[-1])),
    }
    return {name: values.numpy() for name, values in scores.items()}


# --- What the decision does when the pixels that a map calls relevant are taken away, or are all that is


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


# --- ROAD


ROAD_FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
NEIGHBOURS = tuple((dy, dx, 1 / 12 if dy and dx else 1 / 6) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)
"""Offset and weight of the pixels that a replaced one is the mean of, as in the paper's code."""
NOISE = 0.01
"""Standard deviation of what is added to replaced pixels, for colours in [0, 1]; the paper's value."""


@dataclass(frozen=True)
class RoadCurves:
    """Probability of "defective" with a share of the pixels replaced.

    Attributes:
        fractions: of the pixels, (K,).
        most_first: the most relevant ones replaced, (K,).
        least_first: the least relevant ones replaced, (K,).
    """

    fractions: Tensor
    most_first: Tensor
    least_first: Tensor

    @property
    def score(self) -> float:
        """Mean of least minus most relevant first, in [-1, 1]; 0 for a map that says nothing."""
        return float((self.least_first - self.most_first).mean())


def road(
    model: nn.Module,
    image: Tensor,
    values: Tensor,
    *,
    fractions: Sequence[float] = ROAD_FRACTIONS,
    seed: Seed = 0,
    batch_size: int = 32,
) -> RoadCurves:
    """Both curves of one map on one picture.

    The ``grad-cam`` package has the same replacement, but cuts the map at a percentile of its values: of a flat map, or
    one with many zeros, it replaces every pixel, which turns the picture black and looks like a perfect score.

    Args:
        model: pictures to a record with ``logits``, such as `GAINMTLModel`; computed as at inference.
        image: RGB in [0, 1], (3, H, W).
        values: the map, (h, w), on any scale; what is higher is more relevant.
        fractions: of the pixels to replace, each in (0, 1). Each takes two sparse systems of that many unknowns:
            up to 0.1 s each at 128 pixels a side and 2 s at 512.
        seed: of the noise and of the order among pixels of equal value.
        batch_size: forward passes at a time.

    Raises:
        ValueError: image or map of a wrong shape, or fractions outside (0, 1).
    """
    check_picture(image, values)
    if not fractions or not all(0 < fraction < 1 for fraction in fractions):
        raise ValueError(f"fractions must lie in (0, 1), got {list(fractions)}; nothing can be filled in from nothing")
    places = relevance_places(values, image, seed)
    counts = [round(fraction * places.numel()) for fraction in fractions]
    removed = [places < count for count in counts] + [places >= places.numel() - count for count in counts]
    rng = np.random.default_rng(seed)
    device = device_of(model, image)
    parts = []
    for start in range(0, len(removed), batch_size):
        pictures = [impute(image.cpu().float(), where, rng) for where in removed[start : start + batch_size]]
        parts.append(defect_probability(model, torch.stack(pictures).to(device)).double())
    most_first, least_first = torch.cat(parts).chunk(2)
    return RoadCurves(torch.tensor(fractions, dtype=torch.float64), most_first, least_first)


def impute(image: Tensor, removed: Tensor, rng: np.random.Generator, *, noise: float = NOISE) -> Tensor:
    """The image (3, H, W) with the pixels of `removed`, bool (H, W), filled in from those around them.

    Each becomes the weighted mean of its neighbours, removed or not.

    Raises:
        ValueError: no pixel is left to fill in from.
    """
    if bool(removed.all()):
        raise ValueError("every pixel is removed; there is nothing left to fill in from")
    if not bool(removed.any()):
        return image
    system, known = _neighbour_system(image.numpy(), removed.numpy())
    # Symmetric and diagonally dominant, so no pivoting is needed, and an ordering for symmetric matrices is fastest.
    solver = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    filled = image.clone()
    filled[:, removed] = torch.from_numpy(solver.solve(known).T).float()
    drawn = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
    return torch.where(removed, filled + noise * drawn, image)


def _neighbour_system(
    image: NDArray[np.float32], removed: NDArray[np.bool_]
) -> tuple[sparse.csc_array, NDArray[np.float64]]:
    """Matrix (n, n) and right-hand side (n, 3) whose solution is the colours of the n removed pixels."""
    height, width = removed.shape
    rows, columns = np.nonzero(removed)
    unknown = np.full(removed.shape, -1)
    unknown[rows, columns] = own = np.arange(len(rows))
    weights, known = np.zeros(len(rows)), np.zeros((len(rows), len(image)))
    entries = []
    for dy, dx, weight in NEIGHBOURS:
        y, x = rows + dy, columns + dx
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        weights += weight * inside
        there = unknown[y.clip(0, height - 1), x.clip(0, width - 1)]
        given, linked = inside & (there < 0), inside & (there >= 0)
        known[given] += weight * image[:, y[given], x[given]].T
        entries.append((np.full(linked.sum(), -weight), own[linked], there[linked]))
    entries.append((weights, own, own))
    values, lines, places = (np.concatenate(part) for part in zip(*entries))
    return sparse.csc_array((values, (lines, places)), shape=(len(rows), len(rows))), known


# --- From faithfulness scores of single pictures to what they allow to say.


LEAST_DROP = 0.1
"""Mean fall of probability from the picture to the blurred one, below which there is little for curves to measure."""

FAITHFUL = "faithful"
NOT_DISTINGUISHABLE = "not distinguishable from a random map"
WORSE = "worse than a random map"
DEPENDS = "the decision depends on the defect"
INDEPENDENT = "removing the defect is not distinguishable from removing something else"
CONTROL_FLIPS_MORE = "removing something else flips more decisions than removing the defect"
ALL_EQUAL = "no interval: every picture gains the same"


def summarise_faithfulness(table: pd.DataFrame) -> dict[str, Any]:
    """Means, the gain over a random map with its 95 % interval, and what that allows to say.

    Args:
        table: of `faithfulness`.

    Returns:
        ``pictures``, ``parts``, ``probability``, ``baseline_probability``; for ``deletion``, ``insertion`` and ``road``
        a dict of ``ours``, ``random``, ``reversed``, ``gain`` (positive is better), ``low``, ``high`` and ``verdict``;
        for ``counterfactual``, where the table has flips, ``flip``, ``control_flip`` and the rest likewise; and
        ``notes``, sentences on what these numbers cannot say. Gains are resampled by part, flips take the interval of
        paired shares; pictures of one part are never independent. "faithful" means that the interval of the gain over
        a random map lies above 0; how much better the map is, the gain says.

    Raises:
        ValueError: the table is empty.
    """
    if table.empty:
        raise ValueError("the table of faithfulness is empty; there is nothing to summarise")
    deletion, insertion = table["deletion_auc"], table["insertion_auc"]
    summary: dict[str, Any] = {
        "pictures": len(table),
        "parts": len(set(group_codes(table))),
        "probability": float(table["probability"].mean()),
        "baseline_probability": float(table["baseline_probability"].mean()),
        "deletion": _against_random(table, "deletion_auc", insertion, sign=-1),
        "insertion": _against_random(table, "insertion_auc", deletion, sign=1),
    }
    if "road" in table:
        summary["road"] = _against_random(table, "road", -table["road"], sign=1)
    if {"cf_flip", "cf_control_flip"} <= set(table.columns):
        summary["counterfactual"] = _flips(table.dropna(subset=["cf_flip", "cf_control_flip"]))
    return summary | {"notes": _notes(summary)}


def _against_random(table: pd.DataFrame, name: str, reverse: pd.Series, *, sign: int) -> dict[str, float | str]:
    ours, random = table[name], table[f"random_{name}"]
    means = {"ours": float(ours.mean()), "random": float(random.mean()), "reversed": float(reverse.mean())}
    gain = mean_gain((sign * (ours - random)).to_numpy(), group_codes(table))
    return means | _judged(gain, (FAITHFUL, NOT_DISTINGUISHABLE, WORSE))


def _flips(asked: pd.DataFrame) -> dict[str, float | str]:
    """Over the pictures whose mask had a place to move to."""
    flip, control = asked["cf_flip"], asked["cf_control_flip"]
    means = {"flip": float(flip.mean()), "control_flip": float(control.mean())}
    gain = paired_difference(flip.to_numpy(), control.to_numpy(), group_codes(asked))
    return means | _judged(gain, (DEPENDS, INDEPENDENT, CONTROL_FLIPS_MORE))


def _judged(gain: Estimate, verdicts: tuple[str, str, str]) -> dict[str, float | str]:
    """The gain, its interval, and the verdict for one above, around or below zero."""
    return {"gain": gain.value, "low": gain.low, "high": gain.high, "verdict": _verdict(gain, *verdicts)}


def _verdict(gain: Estimate, better: str, around: str, below: str) -> str:
    if gain.has_interval:
        return better if gain.low > 0 else below if gain.high < 0 else around
    if gain.groups < FEWEST_GROUPS:
        return f"too few pictures of different parts to say ({gain.groups}, at least {FEWEST_GROUPS})"
    return around if gain.value == 0 else ALL_EQUAL


def _notes(summary: dict[str, Any]) -> list[str]:
    notes = []
    picture, blurred = summary["probability"], summary["baseline_probability"]
    if picture - blurred < LEAST_DROP:
        notes.append(
            f"The blurred picture is called defective almost as surely as the picture itself (probability "
            f"{blurred:.2f} and {picture:.2f}): deletion and insertion have little to measure."
        )
    return notes


# --- Whether a map shows what the decision rests on, beside whether it agrees with the mask


__all__ = ["deletion_insertion", "faithfulness", "found_defects", "road", "summarise_faithfulness"]


def found_defects(
    predictions: pd.DataFrame, data: GainDataModule, split: str = "test", *, limit: int = 32, seed: int = 0
) -> list[int]:
    """Rows of ``data.samples`` to test on: the defects of a split that were found (TP).

    Args:
        predictions: of a run.
        data: set up, the run's own.
        split: which pictures.
        limit: of more than that many, as many are drawn with the seed; always ascending.
        seed: of the draw.

    Raises:
        ValueError: there is no such picture, or predictions and data do not belong together.
    """
    rows = rows_of(predictions, data)
    chosen = (predictions["split"] == split) & (predictions["verdict"] == "TP")
    found = rows[chosen.to_numpy()]
    if not len(found):
        raise ValueError(f"no defective picture of '{split}' was found (no TP); there is no such decision to explain")
    if len(found) > limit:
        found = np.random.default_rng(seed).choice(found, limit, replace=False)
    return sorted(int(row) for row in found)


def faithfulness(
    model: nn.Module,
    data: GainDataModule,
    rows: Sequence[int],
    *,
    maps: Tensor | str | None = None,
    steps: int = 16,
    road_fractions: Sequence[float] = ROAD_FRACTIONS,
    seed: int = 0,
    batch_size: int = 32,
    predictions: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Deletion, insertion and ROAD of each picture, for its map and for that map moved to a random place.

    A picture takes 4 (steps + 1) + 4 K forward passes and 4 K solved systems for K ROAD fractions.

    Args:
        model: pictures to a record with ``logits`` and ``cam``, such as `GAINMTLModel`.
        data: set up.
        rows: of ``data.samples``; meant for pictures called defective, see `found_defects`.
        maps: (N, 1, h, w) in the order of rows, the name of a method (`compute_cam`), or None for the model's own
            map of its decision.
        steps: see `deletion_insertion`.
        road_fractions: see `road`; empty leaves ROAD out.
        seed: of random maps, ties and noise, drawn for each row by itself.
        batch_size: forward passes at a time.
        predictions: of the run; adds its ``cf_flip`` and ``cf_control_flip`` of each picture, where it has them.

    Returns:
        One row per picture: ``row``, ``image``, ``group`` (the part it shows), ``probability``,
        ``baseline_probability`` (of the blurred picture), ``deletion_auc`` (lower is better), ``insertion_auc`` and
        ``road`` (higher is better), each also with ``random_``. The reversed map needs no columns: its deletion is
        the map's insertion, and the other way round, and its ROAD the negative.

    Raises:
        ValueError: no rows, or maps of another number or shape.
    """
    rows = [int(row) for row in rows]
    if not rows:
        raise ValueError("rows is empty; give rows of data.samples, for example of found_defects(…)")
    if isinstance(maps, Tensor) and (maps.ndim != 4 or maps.shape[:2] != (len(rows), 1)):
        raise ValueError(f"maps must be ({len(rows)}, 1, h, w), one for each row, got {tuple(maps.shape)}")
    started, table = time.monotonic(), []
    for index, row in enumerate(rows):
        images = data.dataset.__getitems__([row]).images
        values = maps[index] if isinstance(maps, Tensor) else _map(model, images, maps)[0]
        measured = partial(measure, image=images[0], steps=steps, road_fractions=road_fractions, batch_size=batch_size)
        ours = measured(model, values=values[0], seed=(seed, row))
        moved = measured(model, values=moved_map(values[0], (seed, row, 1)), seed=(seed, row))
        random = {f"random_{name}": value for name, value in moved.items() if not name.endswith("probability")}
        sample = {name: data.samples.loc[row, name] for name in ("image", "group")}
        table.append({"row": row} | sample | ours | random)
        logger.info("faithfulness: %d of %d (%.1f s)", index + 1, len(rows), time.monotonic() - started)
    result = pd.DataFrame(table)
    return result if predictions is None else _with_counterfactual(result, predictions, data)


def measure(
    model: nn.Module,
    image: Tensor,
    values: Tensor,
    *,
    steps: int,
    road_fractions: Sequence[float],
    seed: Seed,
    batch_size: int,
) -> dict[str, float]:
    """``probability``, ``baseline_probability``, ``deletion_auc``, ``insertion_auc`` and ``road`` of one map (h, w)."""
    curves = deletion_insertion(model, image, values, steps=steps, seed=seed, batch_size=batch_size)
    scores = {
        "probability": float(curves.deletion[0]),
        "baseline_probability": float(curves.insertion[0]),
        "deletion_auc": curves.deletion_auc,
        "insertion_auc": curves.insertion_auc,
    }
    if road_fractions:
        scores["road"] = road(model, image, values, fractions=road_fractions, seed=seed, batch_size=batch_size).score
    return scores


def _map(model: nn.Module, images: Tensor, method: str | None) -> Tensor:
    if method is not None:
        return compute_cam(cast(GAINMTLModel, model), images, method)
    with as_at_inference(model), torch.inference_mode():
        return model(images.to(device_of(model, images))).cam


def _with_counterfactual(table: pd.DataFrame, predictions: pd.DataFrame, data: GainDataModule) -> pd.DataFrame:
    columns = [name for name in ("cf_flip", "cf_control_flip") if name in predictions]
    flips = predictions[columns].set_axis(rows_of(predictions, data)).astype(float)
    return table.join(flips, on="row")


# --- Does the map depend on what the model learnt? (Adebayo et al., NeurIPS 2018)


SAME_MAP = 0.5
"""Mean absolute rank correlation, all weights destroyed, from which a map counts as the same."""

DEPENDS_RANDOMISATION = "depends on the learnt weights"
STAYS = "stays the same without the learnt weights: it explains nothing"
HEAD_IGNORED_FROM = 0.999
HEAD_IGNORED = "With the deciding head alone destroyed the map stays the same: it shows features, not the decision."
FLAT = "every map is flat: there is nothing to check"

Explain = Callable[[GAINMTLModel, Tensor], Tensor]


def cascade(model: GAINMTLModel) -> list[tuple[str, list[nn.Module]]]:
    """The parts that the deciding map rests on, from the deciding head down; the pyramid only where it gates (S6)."""
    parts: list[tuple[str, list[nn.Module]]] = [("deciding head", [deciding_head(model)])]
    if model.attention is not None:
        path = model.attention
        parts.append(("attention", [path.cbam, path.attention_head, path.mining_head, path.adapter]))
    if model.strategy == "S6" and model.localization is not None:
        parts.append(("localization", [model.localization]))
    if model.projection is not None:
        parts.append(("projection", [model.projection]))
    return [*parts, ("backbone", [model.backbone])]


def shuffle_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Put the values of each parameter and buffer in random order, in place.

    Not drawn anew: batch norms use stored statistics here, behind which fresh weights, of another scale than the
    learnt ones, leave features fainter still. A tensor of one value stays.
    """
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
            tensor.copy_(tensor.flatten()[order].view_as(tensor))


def randomisation_check(
    model: GAINMTLModel,
    data: GainDataModule,
    rows: Sequence[int],
    *,
    explain: Explain | str = "ours",
    draws: int = 3,
    threshold: float = 0.5,
    seed: int = 0,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Each picture's map and verdict with more and more of the weights shuffled, on a copy of the model.

    Args:
        model: stays as it is.
        data: set up.
        rows: of ``data.samples``.
        explain: a method's name (`compute_cam`), or a function of model and images to maps (B, 1, h, w).
        draws: how many times to begin anew from the trained weights.
        threshold: of the verdict.
        seed: of the shuffles.
        batch_size: pictures at a time.

    Returns:
        One row per draw, part and picture: ``part``, destroyed with all parts before it, ``draw``, ``row``;
        ``spearman``, the rank correlation of the map's cells with the trained model's (0 where only the new map is
        flat, NaN where the trained one is); ``ssim`` of both, per-image scaled at input resolution;
        ``probability``, ``trained_probability``, ``verdict_changed``.

    Raises:
        ValueError: no rows, or no draws.
        ModelError: see `compute_cam`.
    """
    if not len(rows) or draws < 1:
        raise ValueError(f"expected at least one row and one draw, got {len(rows)} rows and {draws} draws")
    images = data.dataset.__getitems__([int(row) for row in rows]).images
    images = images.to(device_of(model, images))
    make = partial(compute_cam, method=explain) if isinstance(explain, str) else explain
    trained_maps, trained = _look(model, images, make, batch_size)
    parts = []
    for draw in range(draws):
        shuffled = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed + draw)
        for name, modules in cascade(shuffled):
            for module in modules:
                shuffle_weights(module, generator)
            maps, probability = _look(shuffled, images, make, batch_size)
            columns = {"part": name, "draw": draw, "row": list(rows), **compare_maps(trained_maps, maps, images)}
            changed = (probability >= threshold) != (trained >= threshold)
            columns |= {"probability": probability, "trained_probability": trained, "verdict_changed": changed}
            parts.append(pd.DataFrame(columns))
        logger.info("randomisation: draw %d of %d", draw + 1, draws)
    return pd.concat(parts, ignore_index=True)


def _look(model: GAINMTLModel, images: Tensor, make: Explain, batch_size: int) -> tuple[Tensor, NDArray[np.float32]]:
    """Maps (B, 1, h, w) and probabilities of "defective" (B,)."""
    batches = images.split(batch_size)
    with as_at_inference(model), torch.no_grad():
        maps = torch.cat([make(model, batch) for batch in batches])
    return maps, torch.cat([defect_probability(model, batch) for batch in batches]).numpy()


def compare_maps(before: Tensor, after: Tensor, images: Tensor) -> dict[str, np.ndarray]:
    """``spearman`` and ``ssim`` of two maps (B, 1, h, w) of each picture (B, 3, H, W)."""
    full = [normalize_maps(resize_maps(maps, images[:, :1])) for maps in (before, after)]
    ssim = structural_similarity_index_measure(full[0], full[1], data_range=1.0, reduction="none")
    pairs = zip(normalize_maps(before).flatten(1).cpu().numpy(), normalize_maps(after).flatten(1).cpu().numpy())
    return {
        "spearman": np.array([_rank_correlation(first, second) for first, second in pairs]),
        "ssim": np.atleast_1d(torch.as_tensor(ssim).cpu().numpy()),  # type: ignore[arg-type]
    }


def _rank_correlation(before: np.ndarray, after: np.ndarray) -> float:
    if np.ptp(before) == 0:
        return math.nan
    if np.ptp(after) == 0:
        return 0.0
    return float(np.corrcoef(stats.rankdata(np.stack([before, after]), axis=1))[0, 1])


def summarise_randomisation(table: pd.DataFrame) -> dict[str, Any]:
    """Means by part, and the verdict on the map with all weights destroyed.

    The absolute correlation counts: a map turned upside down still shows the same thing.

    Args:
        table: of `randomisation_check`.

    Returns:
        ``parts``: by name ``similarity`` (mean absolute rank correlation), ``spearman``, ``ssim``,
        ``probability_change`` (mean absolute) and ``verdicts_changed`` (share); ``similarity`` of the last part;
        ``level``, `SAME_MAP`; ``verdict``; and ``notes``, sentences.
    """
    table = table.assign(
        similarity=table["spearman"].abs(),
        probability_change=(table["probability"] - table["trained_probability"]).abs(),
    )
    names = ["similarity", "spearman", "ssim", "probability_change", "verdict_changed"]
    means = table.groupby("part", sort=False)[names].mean().rename(columns={"verdict_changed": "verdicts_changed"})
    head, similarity = (float(means["similarity"].iloc[place]) for place in (0, -1))
    verdict = FLAT if math.isnan(similarity) else STAYS if similarity >= SAME_MAP else DEPENDS_RANDOMISATION
    return {
        "parts": means.to_dict("index"),
        "similarity": similarity,
        "level": SAME_MAP,
        "verdict": verdict,
        "notes": [HEAD_IGNORED] if head > HEAD_IGNORED_FROM else [],
    }


# --- Faithfulness of a run's own map on its found defects, measured once and kept in the run's folder.


FILE = "faithfulness.json"
KEYS = {"predictions", "settings", "split", "found", "pictures", "map", "randomisation"}
SAME_PROBABILITY = 0.02
"""How far the model may lie from the stored probability of a picture: as much as another device may bring about."""


def measure_faithfulness(
    run: Run,
    *,
    data_root: str | Path | None = None,
    limit: int = 24,
    steps: int = 16,
    road_fractions: Sequence[float] = ROAD_FRACTIONS,
    draws: int = 3,
    seed: int = 0,
    device: str | None = None,
    reuse: bool = True,
) -> dict[str, Any]:
    """Deletion, insertion, ROAD and the randomisation check of the deciding CAM, stored as ``faithfulness.json``.

    On the found defects of the first test split: there is a decision to explain, and nothing is chosen by it.

    Args:
        run: finished and evaluated, its pictures at hand.
        data_root: where the pictures lie now, when they moved since the training.
        limit: of more found defects, as many are drawn with the seed.
        steps: see `faithfulness`.
        road_fractions: see `faithfulness`.
        draws: see `randomisation_check`.
        seed: of every draw.
        device: see `checked_device`; None is where the run was trained.
        reuse: take what is stored where it was measured with these settings for these predictions.

    Returns:
        ``predictions``, the SHA-256 of the predictions that it belongs to; ``settings``; ``split``; ``found``, how many
        defects were; ``pictures``, the names of those measured on; ``map`` (`summarise_faithfulness`) and
        ``randomisation`` (`summarise_randomisation`). None stands for NaN.

    Raises:
        RunError: the run is not evaluated, found no defect, takes its masks from outside, or its model decides
            otherwise on the pictures than when it was evaluated.
        DataError: pictures that are not there or cannot be read.
        DeviceError: no such device.
    """
    settings = {"limit": limit, "steps": steps, "road_fractions": list(road_fractions), "draws": draws, "seed": seed}
    path = run.folder / FILE
    if reuse and (stored := _stored(run)) is not None and stored["settings"] == settings:
        return stored
    table, metrics = stored_tables(run)
    if metrics.get("mask_source") in OUTSIDE_SOURCES:
        raise RunError(
            f"{run.folder}: its attention takes masks from outside ({metrics['mask_source']}), which have no place in "
            "deletion and insertion; faithfulness can be measured of the other mask sources only"
        )
    digest = _digest(run)  # before the minutes that measuring takes
    split, found = _found_defects(run, table)
    chosen = found.sample(min(limit, len(found)), random_state=seed).sort_index()
    data = _data(run, chosen, _root(run, data_root))
    rows = range(len(chosen))
    own_device = next(run.model.parameters()).device
    try:
        model = run.model.to(checked_device(device or run.settings.device))
        _check_probabilities(run, model, data, chosen["probability"].to_numpy())
        scores = faithfulness(model, data, rows, steps=steps, road_fractions=road_fractions, seed=seed)
        threshold = float(metrics["threshold"])
        shuffled = randomisation_check(model, data, rows, draws=draws, threshold=threshold, seed=seed)
    finally:
        run.model.to(own_device)
    measured = {
        "predictions": digest,
        "settings": settings,
        "split": split,
        "found": len(found),
        "pictures": chosen["image"].tolist(),
        "map": summarise_faithfulness(scores),
        "randomisation": summarise_randomisation(shuffled),
    }
    write_json(path, measured)
    return read_json(path)  # as a later call reads it


def stored_faithfulness(run: Run) -> dict[str, Any] | None:
    """What `measure_faithfulness` left in the run's folder; None where nothing is, or where it is stale.

    Raises:
        RunError: the file is damaged.
    """
    if not (run.folder / FILE).is_file():
        return None
    stored = read_json(run.folder / FILE)
    if not isinstance(stored, dict) or not stored.keys() >= KEYS:
        raise RunError(f"{run.folder / FILE}: not what gainmtl report {run.folder} --faithfulness writes; remove it")
    return stored if stored["predictions"] == _digest(run) else None


def is_stale(run: Run) -> bool:
    """Whether what is stored was measured for other predictions than the run has."""
    return (run.folder / FILE).is_file() and stored_faithfulness(run) is None


def _stored(run: Run) -> dict[str, Any] | None:
    """A damaged file is measured anew."""
    try:
        return stored_faithfulness(run)
    except RunError:
        return None


def _digest(run: Run) -> str:
    return file_digest(run.folder / "predictions.csv")


def _found_defects(run: Run, table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The first test split, and its rows with a found defect."""
    split = next(name for name in SPLITS[1:] if (table["split"] == name).any())
    found = table[(table["split"] == split) & (table["verdict"] == "TP")]
    if found.empty:
        raise RunError(f"{run.folder}: no defect of '{split}' was found (no TP); there is no such decision to explain")
    return split, found


def _root(run: Run, data_root: str | Path | None) -> Path:
    return run.settings.data_root if data_root is None else Path(data_root).expanduser().absolute()


def _data(run: Run, chosen: pd.DataFrame, root: Path) -> GainDataModule:
    """The chosen pictures alone, without their masks, which faithfulness does not ask for."""
    files = [root / name for name in chosen["image"]]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(files)} pictures to measure faithfulness on are not there, such as {missing[0]}; "
            "if the pictures moved, name their folder with --data-root (data_root)"
        )
    samples = chosen[["image", "label", "mask", "defect_type", "group", "split"]]
    samples = samples.assign(image=[str(file) for file in files], mask=None)
    data = build_data(run.settings.changed(skip_unreadable=False), samples)
    data.setup("test")
    return data


def _check_probabilities(run: Run, model: GAINMTLModel, data: GainDataModule, stored: NDArray) -> None:
    device = next(model.parameters()).device
    for row, before in enumerate(stored):
        images = data.dataset.__getitems__([row]).images
        prob = float(defect_probability(model, images.to(device)))
        if abs(prob - before) > SAME_PROBABILITY:
            raise RunError(
                f"{data.samples.loc[row, 'image']}: p(defect) is {prob:.3f}, and was {before:.3f} when the run was "
                "evaluated: the picture or the weights are others; evaluate again: "
                f"gainmtl evaluate {run.folder} --force"
            )
