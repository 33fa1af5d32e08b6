"""Other class activation maps of the same decision, beside the model's own exact one, with the same metrics.

All explain the margin logit1 - logit0 of the deciding head, at what that head classifies. The head averages its
features first, so the margin's gradient is the same in every cell: HiResCAM is the exact map divided by h w, and
Grad-CAM that map's positive part. Their agreement with ours is a check of the arithmetic and no second opinion.
EigenCAM does not look at the decision. Score-CAM costs one forward pass per channel.

Sizes: B images, H x W network input, h x w feature grid.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pytorch_grad_cam.base_cam import BaseCAM
from torch import Tensor

from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.explain.package_methods import (
    DecidingLogits,
    RawEigenCAM,
    RawGradCAM,
    RawHiResCAM,
    RawLayerCAM,
    RawScoreCAM,
)
from gainmtl_lib.metrics import cam_iou, energy_inside, grid_iou, point_game
from gainmtl_lib.models.counterfactual import as_at_inference
from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.models.weights import ModelError

logger = logging.getLogger(__name__)

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
