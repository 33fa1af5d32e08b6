"""Does the map depend on what the model learnt? (Adebayo et al., NeurIPS 2018)

The weights are destroyed part by part, from the deciding head down to the backbone. A map that stays the same, as an
edge detector's would, shows the picture and not the model.

Sizes: B images, H x W network input, h x w feature grid.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.explain.methods import compute_cam
from gainmtl_lib.explain.package_methods import deciding_head
from gainmtl_lib.explain.perturbation import defect_probability, device_of
from gainmtl_lib.metrics import normalize_maps, resize_maps
from gainmtl_lib.models.counterfactual import as_at_inference
from gainmtl_lib.models.gain_mtl import GAINMTLModel

logger = logging.getLogger(__name__)

SAME_MAP = 0.5
"""Mean absolute rank correlation, all weights destroyed, from which a map counts as the same."""

DEPENDS = "depends on the learnt weights"
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
    verdict = FLAT if math.isnan(similarity) else STAYS if similarity >= SAME_MAP else DEPENDS
    return {
        "parts": means.to_dict("index"),
        "similarity": similarity,
        "level": SAME_MAP,
        "verdict": verdict,
        "notes": [HEAD_IGNORED] if head > HEAD_IGNORED_FROM else [],
    }
