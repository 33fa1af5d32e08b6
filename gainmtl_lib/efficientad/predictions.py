"""What the model says of a split: one row per image, the map of each, and how well pixels are told apart.

B images, H x W network input, h x w cells of the stored map.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.devices import checked_device
from gainmtl_lib.efficientad.model import AnomalyOutput, EfficientADModel
from gainmtl_lib.efficientad.provider import DatasetProvider, as_batch
from gainmtl_lib.metrics import cam_iou, energy_inside, grid_iou, point_game
from gainmtl_lib.pixel_metrics import Aupro, PixelAuroc
from gainmtl_lib.records import Batch

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOG_LINES = 10.0

FLOATS = "%.9g"
"""How numbers are stored: enough to tell any two scores apart."""

DESCRIBED = ("image", "mask", "split", "label", "defect_type", "group")
"""Columns that the table of samples gives."""


@dataclass(frozen=True)
class SplitPredictions:
    """What the model says of one split.

    Attributes:
        table: one row per image, in the loader's order.
        maps: float16 (N, h, w), the anomaly map on the networks' own grid.
        pixel_auroc: over images whose defect pixels are known; NaN without an answer, as the next.
        aupro: up to a false-positive rate of 0.3.
    """

    table: pd.DataFrame
    maps: NDArray[np.float16]
    pixel_auroc: float
    aupro: float


@contextmanager
def computing_on(model: EfficientADModel, device: str) -> Iterator[torch.device]:
    """The model in evaluation mode on a device, see `checked_device`; afterwards back on the one that it had."""
    own = next(model.parameters()).device
    where = checked_device(device)
    try:
        model.eval().to(where).to(memory_format=torch.channels_last)
        yield where
    finally:
        model.to(own)


@torch.inference_mode()
def predict_split(model: EfficientADModel, provider: DatasetProvider, split: str) -> SplitPredictions:
    """Run the model over one split, batch by batch.

    Args:
        model: in evaluation mode; its device decides where the work is done.
        provider: of the data.
        split: one of its splits; val with the anomalies synthesised on it.
    """
    pixel_auroc, aupro = PixelAuroc(), Aupro()
    rows, maps = [], []
    for batch, output in _forward(model, provider, split):
        rows.append(_score_batch(batch, output))
        maps.append(output.cells[:, 0].clamp(-6e4, 6e4).to(torch.float16).cpu().numpy())
        known = batch.has_mask | (batch.labels == 0)
        for metric in (pixel_auroc, aupro):
            metric.update(output.anomaly_map[known], batch.masks[known])
    if len(grids := {part.shape[1:] for part in maps}) > 1:
        shown = " and ".join("x".join(map(str, grid)) for grid in sorted(grids))
        raise DataError(
            f"the loader of split '{split}' yields images of several sizes (maps of {shown}); resize to one"
        )
    table = pd.concat(rows, ignore_index=True)
    described = _described(provider, split, table.pop("label"))
    return SplitPredictions(
        table=pd.concat([described, table], axis=1),
        maps=np.concatenate(maps),
        pixel_auroc=float(pixel_auroc.compute()),
        aupro=float(aupro.compute()),
    )


def _forward(model: EfficientADModel, provider: DatasetProvider, split: str) -> Iterator[tuple[Batch, AnomalyOutput]]:
    device = next(model.parameters()).device
    loader = provider.loader(split)
    started = said = time.monotonic()
    done = 0
    for item in loader:
        batch = Batch(*(part.to(device) for part in as_batch(item, split=split)))
        yield batch, model(batch.images)
        done += len(batch.images)
        if time.monotonic() - said > SECONDS_BETWEEN_LOG_LINES:
            said = time.monotonic()
            logger.info("%s: %d images scored (%.1f/s)", split, done, done / (said - started))
    if not done:
        raise DataError(f"the loader of split '{split}' yields no image; expected at least one")
    logger.info("%s: %d images scored in %.1f s", split, done, time.monotonic() - started)


def _score_batch(batch: Batch, output: AnomalyOutput) -> pd.DataFrame:
    masks = batch.masks * batch.has_mask[:, None, None, None]
    columns: dict[str, Tensor] = {
        "anomaly_score": output.score,
        "defect_area": masks.mean(dim=(1, 2, 3)).where(batch.has_mask, torch.nan),
        "anomaly_iou": cam_iou(output.anomaly_map, masks),
        "grid_iou": grid_iou(masks, (output.cells.shape[-2], output.cells.shape[-1])),
        "anomaly_point_game": point_game(output.anomaly_map, masks),
        "anomaly_energy_inside": energy_inside(output.anomaly_map, masks),
    }
    table = pd.DataFrame({name: values.float().cpu().numpy() for name, values in columns.items()})
    # As they are stored, so that a threshold taken from them decides the same on what is read back.
    scores = [float(FLOATS % score) for score in table["anomaly_score"]]
    return table.assign(anomaly_score=scores, label=batch.labels.cpu().numpy())


def _described(provider: DatasetProvider, split: str, labels: pd.Series) -> pd.DataFrame:
    """Where each image comes from; the images of a provider that does not say go by number."""
    known = provider.table(split)
    if known is None:
        names = [f"{split} {number}" for number in range(len(labels))]
        kinds = ["defective" if label else "normal" for label in labels]
        known = pd.DataFrame({"image": names, "mask": None, "label": labels, "defect_type": kinds, "group": names})
    elif len(known) != len(labels):
        raise DataError(f"the loader of split '{split}' yields {len(labels)} images, its table has {len(known)} rows")
    elif missing := [name for name in DESCRIBED if name != "split" and name not in known]:
        raise DataError(f"the table of split '{split}' has no column {', '.join(missing)}; see DatasetProvider.table")
    elif (wrong := known["label"].to_numpy() != labels.to_numpy()).any():
        raise DataError(
            f"the table of split '{split}' has other labels than its loader's images, first in row {wrong.argmax()}; "
            "whoever replaces a loader replaces its table as well"
        )
    return known.assign(split=split)[list(DESCRIBED)].reset_index(drop=True)
