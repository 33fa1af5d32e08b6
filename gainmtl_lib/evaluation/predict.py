"""One row per image: what the model decided, how its maps agree with the defect, what removing the defect does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.evaluation.mask_source import MaskSource
from gainmtl_lib.evaluation.pooled import PooledScores
from gainmtl_lib.metrics import (
    cam_iou,
    dice,
    energy_inside,
    grid_iou,
    mask_iou,
    pixel_accuracy,
    point_game,
)
from gainmtl_lib.models.counterfactual import control_masks
from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.records import Batch, GainOutput


@dataclass(frozen=True)
class SplitPredictions:
    """What the model says of one split.

    Attributes:
        table: one row per image.
        maps: float16 arrays in the rows' order: ``cam`` (N, h, w), from S3 on ``attention`` (N, h, w), from
            S4 on ``localization`` (N, H / 4, W / 4).
        pooled: see `PooledScores`.
    """

    table: pd.DataFrame
    maps: dict[str, np.ndarray]
    pooled: dict[str, float]


@torch.inference_mode()
def predict_split(model: GAINMTLModel, data: GainDataModule, split: str, *, source: MaskSource) -> SplitPredictions:
    """Run the model over one split, in evaluation mode and single precision.

    Args:
        model: its device decides where the work is done.
        data: set up; gives the split's images in a fixed order.
        split: ``val``, ``test`` or ``test_shift``.
        source: of S6's masks.
    """
    rows, maps, pooled = [], [], PooledScores()
    with source.applied(model):
        for batch, given, output in _forward(model, data, split, source):
            places = None if output.cf_logits is None else _places(data, batch)
            rows.append(_score_batch(batch, output) | _counterfactual_columns(model, batch, given, output, places))
            maps.append(stored_maps(output))
            pooled.update(batch, output)
    table = pd.concat([_as_table(columns) for columns in rows], ignore_index=True)
    samples = data.samples.loc[table.pop("index"), ["image", "mask", "split", "label", "defect_type", "group"]]
    return SplitPredictions(
        table=pd.concat([samples.reset_index(drop=True), table], axis=1),
        maps={name: np.concatenate([part[name] for part in maps]) for name in maps[0]},
        pooled=pooled.compute(),
    )


def _forward(
    model: GAINMTLModel, data: GainDataModule, split: str, source: MaskSource
) -> Iterator[tuple[Batch, Tensor | None, GainOutput]]:
    device = next(model.parameters()).device
    model.eval()
    for batch in data.loader(split):
        batch = Batch(*(part.to(device) for part in batch))
        given = source.masks(data, batch)
        yield batch, given, model(batch.images, batch.masks, attention_masks=given)


def _score_batch(batch: Batch, output: GainOutput) -> dict[str, Tensor]:
    masks = batch.masks * batch.has_mask[:, None, None, None]
    columns = {
        "index": batch.index,
        "probability": _defect_probability(output.logits),
        "defect_area": masks.mean(dim=(1, 2, 3)).where(batch.has_mask, torch.nan),
        "cam_iou": cam_iou(output.cam, masks),
        "grid_iou": grid_iou(masks, (output.cam.shape[-2], output.cam.shape[-1])),
        "point_game": point_game(output.cam, masks),
        "energy_inside": energy_inside(output.cam, masks),
    }
    if output.attention_map is not None:
        columns |= {
            "attention_iou": cam_iou(output.attention_map, masks),
            "attention_point_game": point_game(output.attention_map, masks),
            "attention_energy_inside": energy_inside(output.attention_map, masks),
        }
    if output.localization_map is not None:
        columns |= {
            "loc_iou": mask_iou(output.localization_map, masks),
            "loc_dice": dice(output.localization_map, masks),
            "loc_pixel_accuracy": pixel_accuracy(output.localization_map, masks),
        }
    return columns


def _counterfactual_columns(
    model: GAINMTLModel, batch: Batch, given: Tensor | None, output: GainOutput, places: Tensor | None
) -> dict[str, Tensor]:
    """Defect probability with the annotated defect suppressed, and with the same mask moved off it as control."""
    if output.cf_logits is None:
        return {}
    # Two cells clear of the defect, because suppression reaches one cell beyond its mask.
    moved, placed = control_masks(batch.masks, margin=2 * model.map_stride, inside=places)
    control_logits = model(batch.images, moved, attention_masks=given).cf_logits
    return {
        "cf_probability": _defect_probability(output.cf_logits).where(batch.has_mask, torch.nan),
        "cf_control_probability": _defect_probability(control_logits).where(batch.has_mask & placed, torch.nan),
    }


def _places(data: GainDataModule, batch: Batch) -> Tensor | None:
    """Where the annotated pictures of a batch lie in the input, bool (B, 1, H, W); None where they fill it."""
    if data.resize == "squash":
        return None
    places = torch.ones_like(batch.masks, dtype=torch.bool)
    for place, row in zip(places[:, 0], batch.index.tolist(), strict=True):
        if data.dataset.has_mask[row]:
            place.fill_(False)
            place[data.dataset.places[row]] = True
    return places


def _as_table(columns: dict[str, Tensor]) -> pd.DataFrame:
    return pd.DataFrame({name: values.float().cpu().numpy() for name, values in columns.items()}).astype({"index": int})


def _defect_probability(logits: Tensor) -> Tensor:
    return logits.float().softmax(dim=1)[:, 1]


def stored_maps(output: GainOutput) -> dict[str, np.ndarray]:
    """The maps as a run keeps them, see `SplitPredictions.maps`; those that the strategy has."""
    maps = {"cam": output.cam, "attention": output.effective_attention}
    if output.localization_map is not None:
        maps["localization"] = torch.nn.functional.avg_pool2d(output.localization_map, 4)
    return {name: value[:, 0].to(torch.float16).cpu().numpy() for name, value in maps.items() if value is not None}
