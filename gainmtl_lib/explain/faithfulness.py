"""Whether a map shows what the decision rests on, beside whether it agrees with the mask. No mask is needed.

Each measure is compared with the same map moved to a random place, on the same pictures: alone its number says
nothing. A map can be faithful and the decision still wrong: a decision that follows a planted mark has a faithful map
of that mark. Nothing is ever chosen by these numbers, which is why test pictures may be used.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.evaluation.pairing import rows_of
from gainmtl_lib.explain.faithfulness_summary import summarise_faithfulness
from gainmtl_lib.explain.methods import compute_cam
from gainmtl_lib.explain.perturbation import Seed, deletion_insertion, device_of, moved_map
from gainmtl_lib.explain.road import ROAD_FRACTIONS, road
from gainmtl_lib.models.counterfactual import as_at_inference
from gainmtl_lib.models.gain_mtl import GAINMTLModel

__all__ = ["deletion_insertion", "faithfulness", "found_defects", "road", "summarise_faithfulness"]

logger = logging.getLogger(__name__)


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
