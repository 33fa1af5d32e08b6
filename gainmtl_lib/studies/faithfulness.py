"""Whether a map shows what the decision rests on: other methods' maps, and what taking pixels or weights away does.

Sizes: B images, C channels, H x W network input, h x w feature grid. A `model` may be in any mode, is asked as at
inference and left as it was. `rows` are of ``data.samples``. An `image` is RGB in [0, 1], (3, H, W), `values` its map,
(h, w) on any scale, higher being more relevant. `seed` is of every draw.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.linalg import splu
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from gainmtl_lib import stats
from gainmtl_lib.backbone import ModelError
from gainmtl_lib.dataset import GainDataModule, build_data
from gainmtl_lib.devices import checked_device
from gainmtl_lib.evaluation import file_digest, rows_of, stored_tables
from gainmtl_lib.findings import DataError
from gainmtl_lib.layouts import TEST_SPLITS
from gainmtl_lib.metrics import normalize_maps, resize_maps
from gainmtl_lib.model import (
    OUTSIDE_SOURCES,
    ClassificationHead,
    EvidenceHead,
    GAINMTLModel,
    as_at_inference,
    defect_probability,
)  # fmt: skip
from gainmtl_lib.progress import counted
from gainmtl_lib.runs import Run, RunError, read_json, write_json

logger = logging.getLogger(__name__)

Explain = Callable[[Any, Tensor], Tensor]  # of model and images to maps, such as partial(compute_cam, method=…)

# --- Maps of the same decision by other methods

CAM_METHODS = ("ours", "grad_cam", "layer_cam", "hires_cam", "eigen_cam", "score_cam")
CHANNELS_AT_A_TIME = 16  # of Score-CAM, in memory: all would take 4 GB at 1280 channels and 512 pixels


def compute_cam(model: GAINMTLModel, images: Tensor, method: str = "ours") -> Tensor:
    """The map of one of `CAM_METHODS` for the decision on each picture, not stretched, not resized.

    "ours" is the model's own exact map; Grad-CAM is of Selvaraju et al. 2017, LayerCAM of Jiang et al. 2021, HiResCAM,
    signed, of Draelos and Carin 2020. Images are (B, 3, H, W), maps float32 (B, 1, h, w), without graph.
    """
    if method not in CAM_METHODS:
        raise ModelError(f"method must be one of {', '.join(CAM_METHODS)}, got '{method}'")
    device = next(model.parameters(), images).device
    with as_at_inference(model), torch.autocast(device.type, enabled=False), torch.inference_mode(False):
        images = images.detach().clone().to(device).float()
        if method == "ours":
            with torch.no_grad():
                return model(images).cam.float()
        features, head = head_input(model, images), deciding_head(model)
        if method == "score_cam":
            return _score_cam(model, images, features)
        if method == "eigen_cam":
            return _eigen_cam(features)
        with torch.enable_grad():
            said = head(features.requires_grad_())
            logits = said if isinstance(said, Tensor) else said[0]
            (gradient,) = torch.autograd.grad(logits.diff(dim=1).sum(), features)
        features = features.detach()
        if method == "hires_cam":
            return (gradient * features).sum(1, keepdim=True)
        weights = gradient.mean((2, 3), keepdim=True) if method == "grad_cam" else gradient.relu()
        return (weights * features).sum(1, keepdim=True).relu()


def _eigen_cam(features: Tensor) -> Tensor:
    """The features' first principal component (Muhammad, Yeasin 2020), its largest deviation made positive."""
    cells = features.double().nan_to_num().flatten(2)  # (B, C, h * w)
    cells = cells - cells.mean(dim=2, keepdim=True)
    first = torch.linalg.eigh(cells @ cells.mT).eigenvectors[:, None, :, -1]  # (B, 1, C)
    projection = first @ cells
    turned = projection.amin(2, keepdim=True).abs() > projection.amax(2, keepdim=True)
    return torch.where(turned, -projection, projection).unflatten(2, features.shape[2:]).float()


@torch.no_grad()
def _score_cam(model: GAINMTLModel, images: Tensor, features: Tensor) -> Tensor:
    """Channels weighted by the margin of the picture seen through them, elsewhere grey (Wang et al. 2020)."""
    masks = F.interpolate(features, size=images.shape[-2:], mode="bilinear", align_corners=True)
    low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
    masks = (masks - low) / (high - low + 1e-8)
    batches = [(image, part) for image, own in zip(images, masks) for part in own[:, None].split(CHANNELS_AT_A_TIME)]
    batches = counted(batches, len(batches), "Score-CAM, batches", log=logger)
    margins = [model(model.mean + (image - model.mean) * part).logits.diff(dim=1) for image, part in batches]
    weights = torch.cat(margins).view(features.shape[:2]).softmax(1)
    return (weights[..., None, None] * features).sum(1, keepdim=True).relu()


def deciding_head(model: GAINMTLModel) -> ClassificationHead | EvidenceHead:
    """The head whose margin is the verdict: path 1's in S1-S2, path 2's in S3-S7, the evidence's in S8."""
    head = model.evidence or model.cls_head if model.attention is None else model.attention.attended_cls_head
    assert head is not None
    return head


@torch.no_grad()
def head_input(model: GAINMTLModel, images: Tensor) -> Tensor:
    """What the deciding head classifies, (B, C, h, w)."""
    seen: list[Tensor] = []
    with deciding_head(model).register_forward_pre_hook(lambda _, given: seen.append(given[0])):
        model(images)
    return seen[0].float()


# --- The decision when the pixels that a map calls relevant are taken away, or are all there is

BATCH = 32  # forward passes at a time
ROAD_FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
Seed = int | Sequence[int]


def probability_of(model: GAINMTLModel, images: Tensor) -> NDArray[np.float64]:
    """Probability of "defective", (B,)."""
    batches, device = images.split(BATCH), next(model.parameters(), images).device
    with as_at_inference(model), torch.inference_mode():
        logits = torch.cat([model(batch.to(device)).logits for batch in batches])
    return defect_probability(logits, model.calibration).cpu().double().numpy()


def deletion_insertion(
    model: GAINMTLModel, image: Tensor, values: Tensor, *, steps: int = 16, seed: Seed = 0
) -> pd.DataFrame:
    """Probability of "defective" while the most relevant pixels are blurred, or revealed on the blurred picture.

    Blurred, because a patch of one colour on a textured surface looks like a defect itself. Returns ``deletion`` and
    ``insertion`` by share of the pixels, 0 to 1, at `steps` + 1 places. The area is small under the first when the map
    names what the decision needs, large under the second when it names what suffices.
    """
    places, image = relevance_places(values, image, seed), image.cpu().float()
    blurred, fractions = blur(image), torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    taken = places < (fractions * places.numel()).round()[:, None, None, None]  # (steps + 1, 1, H, W)
    shown = {"deletion": torch.where(taken, blurred, image), "insertion": torch.where(taken, image, blurred)}
    curves = {name: probability_of(model, pictures) for name, pictures in shown.items()}
    return pd.DataFrame(curves, index=pd.Index(fractions.numpy(), name="fraction"))


def road(
    model: GAINMTLModel, image: Tensor, values: Tensor, *, fractions: Sequence[float] = ROAD_FRACTIONS, seed: Seed = 0
) -> float:
    """Probability without the least relevant minus that without the most relevant pixels (Rong et al. 2022).

    The mean over the `fractions` of pixels, each in (0, 1) (else `ValueError`), that are filled in from around them. In
    [-1, 1], 0 for a map that says nothing.
    """
    if not fractions or not all(0 < fraction < 1 for fraction in fractions):
        raise ValueError(f"fractions must lie in (0, 1), got {list(fractions)}; nothing can be filled in from nothing")
    places, rng = relevance_places(values, image, seed), np.random.default_rng(seed)
    counts = [round(fraction * places.numel()) for fraction in fractions]
    removed = [places < count for count in counts] + [places >= places.numel() - count for count in counts]
    pictures = [impute(image.cpu().float(), where, rng) for where in removed]
    most, least = np.split(probability_of(model, torch.stack(pictures)), 2)
    return float((least - most).mean())


def impute(image: Tensor, removed: Tensor, rng: np.random.Generator, *, noise: float = 0.01) -> Tensor:
    """Fill in the pixels of `removed`, bool (H, W): each the weighted mean of its neighbours, and the paper's noise."""
    gone = removed.numpy().ravel()
    weights = _neighbours(*removed.shape)[gone]
    system = (sparse.diags_array(weights.sum(axis=1)) - weights[:, gone]).tocsc()
    known = weights[:, ~gone] @ image.double().flatten(1).numpy().T[~gone]
    # Symmetric and diagonally dominant, so no pivoting is needed, and an ordering for symmetric matrices is fastest.
    solver = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    filled = image.clone()
    filled[:, removed] = torch.from_numpy(solver.solve(known).T).float()
    drawn = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
    return torch.where(removed, filled + noise * drawn, image)


@lru_cache(2)
def _neighbours(height: int, width: int) -> sparse.csr_array:
    """Weights of each pixel's neighbours, (HW, HW): 1/6 beside it, 1/12 across, as in the paper's code."""
    offsets: Any = [-1, 0, 1]  # the stubs know one diagonal only
    along = [sparse.diags_array([1.0, 2.0, 1.0], offsets=offsets, shape=(n, n)) for n in (height, width)]
    weights = sparse.kron(*along, format="csr") / 12
    return sparse.csr_array(weights - sparse.diags_array(weights.diagonal()))


def relevance_places(values: Tensor, image: Tensor, seed: Seed = 0) -> Tensor:
    """Each pixel's place in the order of relevance, int64 (H, W), 0 being the most relevant.

    Equal values, such as the zeros of a rectified map, stand in random order, drawn on the map's own grid: in the
    order of rows a flat map would be one of the upper left corner.
    """
    noise = torch.from_numpy(np.random.default_rng(seed).random(values.shape, dtype=np.float32))
    full = [resize_maps(grid[None, None].cpu(), image[None, :1].cpu()) for grid in (values, noise)]
    # Rounded, because upsampling leaves differences of a few float32 ulp between equal values.
    relevance, ties = (normalize_maps(full[0]) * 1e5).round().numpy().ravel(), full[1].numpy().ravel()
    places = np.empty(relevance.size, dtype=np.int64)
    places[np.lexsort((ties, -relevance))] = np.arange(relevance.size)
    return torch.from_numpy(places.reshape(image.shape[1:]))


def moved_map(values: Tensor, seed: Seed = 0) -> Tensor:
    """The random map to compare with, as smooth and as peaked: the same map, turned over and rolled to some place."""
    rng = np.random.default_rng(seed)
    flipped = values.flip([axis for axis in (0, 1) if rng.random() < 0.5])
    return flipped.roll([int(rng.integers(size)) for size in values.shape], (0, 1))


def blur(image: Tensor) -> Tensor:
    """The picture without anything smaller than about an eighth of it."""
    sigma = min(image.shape[1:]) / 8
    return torch.from_numpy(np.asarray(ndimage.gaussian_filter(image.numpy(), (0, sigma, sigma), truncate=2.5)))


# --- Many pictures, each beside the same map moved elsewhere, and what they allow to say

FAITHFUL, NOT_DISTINGUISHABLE, WORSE = "faithful", "not distinguishable from a random map", "worse than a random map"
OF_FLIPS = (
    "the decision depends on the defect",
    "removing the defect is not distinguishable from removing something else",
    "removing something else flips more decisions than removing the defect",
)


def found_defects(predictions: pd.DataFrame, data: GainDataModule, *, limit: int = 32) -> list[int]:
    """Rows of the defects of ``test`` that were found (TP), ascending; of more than `limit`, as many are drawn.

    `ValueError` where there is none, or predictions and data do not belong together.
    """
    chosen = (predictions["split"] == "test") & (predictions["verdict"] == "TP")
    found = rows_of(predictions, data)[chosen.to_numpy()]
    if not len(found):
        raise ValueError("no defective picture of 'test' was found (no TP); there is no such decision to explain")
    return sorted(np.random.default_rng(0).choice(found, min(limit, len(found)), replace=False).tolist())


def faithfulness(
    model: Any,
    data: GainDataModule,
    rows: Sequence[int],
    *,
    explain: Explain = compute_cam,
    steps: int = 16,
    road_fractions: Sequence[float] = ROAD_FRACTIONS,
    seed: int = 0,
    predictions: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Deletion, insertion and ROAD of each picture, for its map and for that map moved to a random place.

    `rows` are best those of `found_defects`; `predictions` of the run add its ``cf_flip`` and ``cf_control_flip``.
    Returns one row per picture: ``row``, ``image``, ``group``, ``probability``, ``baseline_probability`` (of the
    blurred picture), ``deletion_auc`` (lower is better), ``insertion_auc`` and ``road`` (higher is better), each also
    with ``random_``.
    """
    if not len(rows):
        raise ValueError("rows is empty; give rows of data.samples, for example of found_defects(…)")
    table = []
    for row in counted(map(int, rows), len(rows), "faithfulness, pictures", log=logger):
        images = data.dataset.__getitems__([row]).images
        own = explain(model, images)[0, 0]
        line: dict[Any, Any] = {"row": row} | data.samples.loc[row, ["image", "group"]].to_dict()
        for prefix, values in (("random_", moved_map(own, (seed, row, 1))), ("", own)):
            curves = deletion_insertion(model, images[0], values, steps=steps, seed=(seed, row))
            line |= {f"{prefix}{name}_auc": np.trapezoid(curves[name], curves.index) for name in curves}
            line[f"{prefix}road"] = road(model, images[0], values, fractions=road_fractions, seed=(seed, row))
        line |= {"probability": curves["deletion"].iloc[0], "baseline_probability": curves["insertion"].iloc[0]}
        table.append(line)
    if predictions is None:
        return pd.DataFrame(table)
    flips = predictions.filter(items=["cf_flip", "cf_control_flip"]).set_axis(rows_of(predictions, data))
    return pd.DataFrame(table).join(flips.astype(float), on="row")


def summarise_faithfulness(table: pd.DataFrame) -> dict[str, Any]:
    """Means, the gain over a random map with its 95 % interval, and the verdict on it.

    Returns ``pictures``, ``parts``, ``probability``, ``baseline_probability``; for ``deletion``, ``insertion`` and
    ``road`` ``ours``, ``random``, ``reversed``, ``gain`` (positive is better), ``low``, ``high`` and ``verdict``; for
    ``counterfactual``, where the table has flips, ``flip``, ``control_flip`` and the rest likewise.
    """
    groups, means = stats.group_codes(table), table.mean(numeric_only=True)
    summary: dict[str, Any] = {"pictures": len(table), "parts": len(set(groups))}
    summary |= {name: means[name] for name in ("probability", "baseline_probability")}
    # The reversed map's deletion is the map's insertion, and the other way round.
    reverse = {"deletion_auc": means["insertion_auc"], "insertion_auc": means["deletion_auc"], "road": -means["road"]}
    for name, reversed_map in reverse.items():
        told = {"ours": means[name], "random": means[f"random_{name}"], "reversed": reversed_map}
        gains = (table[name] - table[f"random_{name}"]).to_numpy() * (-1 if name == "deletion_auc" else 1)
        gain = stats.mean_gain(gains, groups)
        summary[name.removesuffix("_auc")] = told | _judged(gain, FAITHFUL, NOT_DISTINGUISHABLE, WORSE)
    if {"cf_flip", "cf_control_flip"} <= set(table.columns):
        asked = table.dropna(subset=["cf_flip", "cf_control_flip"])  # whose mask had a place to move to
        flip, control = asked["cf_flip"], asked["cf_control_flip"]
        gain = stats.paired_difference(flip.to_numpy(), control.to_numpy(), stats.group_codes(asked))
        told = {"flip": flip.mean(), "control_flip": control.mean()}
        summary["counterfactual"] = told | _judged(gain, *OF_FLIPS)
    return summary


def _judged(gain: stats.Estimate, better: str, around: str, below: str) -> dict[str, float | str]:
    if gain.has_interval:
        verdict = better if gain.low > 0 else below if gain.high < 0 else around
    elif gain.groups < stats.FEWEST_GROUPS:
        verdict = f"too few pictures of different parts to say ({gain.groups}, at least {stats.FEWEST_GROUPS})"
    else:
        verdict = around if gain.value == 0 else "no interval: every picture gains the same"
    return {"gain": gain.value, "low": gain.low, "high": gain.high, "verdict": verdict}


# --- Does the map depend on what the model learnt? (Adebayo et al. 2018)

SAME_MAP = 0.5  # mean absolute rank correlation, all weights destroyed, from which a map counts as the same
DEPENDS_ON_WEIGHTS = "depends on the learnt weights"
STAYS = "stays the same without the learnt weights: it explains nothing"
FLAT = "every map is flat: there is nothing to check"


def cascade(model: GAINMTLModel) -> dict[str, list[nn.Module]]:
    """The parts that the deciding map rests on, from the deciding head down; the pyramid only where it gates (S6)."""
    parts: dict[str, list[Any]] = {"deciding head": [deciding_head(model)]}
    if (path := model.attention) is not None:
        parts["attention"] = [path.cbam, path.attention_head, path.mining_head, path.adapter]
    if model.strategy == "S6":
        parts["localization"] = [model.localization]
    if model.projection is not None:
        parts["projection"] = [model.projection]
    parts["backbone"] = [model.backbone]
    return parts


def randomisation_check(
    model: GAINMTLModel,
    data: GainDataModule,
    rows: Sequence[int],
    *,
    explain: Explain = compute_cam,
    draws: int = 3,
    threshold: float = 0.5,
    seed: int = 0,
) -> pd.DataFrame:
    """Each picture's map and verdict with more and more of the weights shuffled, `draws` times, on copies of the model.

    Returns one row per draw, part and picture: ``part``, destroyed with all parts before it, ``draw``, ``row``;
    ``spearman`` and ``ssim`` of the map beside the trained model's, see `compare_maps`; ``probability``,
    ``trained_probability``, ``verdict_changed`` (at `threshold`).
    """
    images = data.dataset.__getitems__([int(row) for row in rows]).images

    def ask(asked: GAINMTLModel) -> tuple[Tensor, NDArray[np.float64]]:
        with as_at_inference(asked), torch.no_grad():
            maps = torch.cat([explain(asked, batch) for batch in images.split(BATCH)])
        return maps.cpu(), probability_of(asked, images)

    trained_maps, trained = ask(model)
    parts = []
    for draw in counted(range(draws), draws, "randomisation, draws", log=logger):
        shuffled = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed + draw)
        for name, modules in cascade(shuffled).items():
            # Not drawn anew: behind stored statistics, weights of another scale would leave features fainter still.
            for tensor in [tensor for part in modules for tensor in (*part.parameters(), *part.buffers())]:
                order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
                tensor.data = tensor.flatten()[order].view_as(tensor).detach()
            maps, probability = ask(shuffled)
            columns = {"part": name, "draw": draw, "row": list(rows), **compare_maps(trained_maps, maps, images)}
            changed = (probability >= threshold) != (trained >= threshold)
            columns |= {"probability": probability, "trained_probability": trained, "verdict_changed": changed}
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def compare_maps(before: Tensor, after: Tensor, images: Tensor) -> dict[str, NDArray]:
    """``spearman``, of cells, and ``ssim``, at input resolution, of two maps (B, 1, h, w) of each picture (B, 3, H, W).

    The rank correlation is 0 where only the second map is flat, NaN where the first one is.
    """
    full = [normalize_maps(resize_maps(maps, images[:, :1])) for maps in (before, after)]
    ssim = structural_similarity_index_measure(full[0], full[1], data_range=1.0, reduction="none")
    cells = [normalize_maps(maps).flatten(1).numpy() for maps in (before, after)]
    ranked: list[Any] = [spearmanr(b, a)[0] if np.ptp(a) and np.ptp(b) else 0.0 for b, a in zip(*cells)]
    spearman = np.where(np.ptp(cells[0], axis=1) == 0, np.nan, ranked)
    return {"spearman": spearman, "ssim": np.atleast_1d(torch.as_tensor(ssim).numpy())}


def summarise_randomisation(table: pd.DataFrame) -> dict[str, Any]:
    """Means by part, and the verdict on the map with all weights destroyed; one upside down shows the same thing.

    Returns ``parts``: by name ``similarity`` (mean absolute rank correlation), ``spearman``, ``ssim``,
    ``probability_change`` (mean absolute), ``verdicts_changed`` (share); ``similarity`` of the last part; ``level``,
    from which maps count as the same; and ``verdict``.
    """
    change = (table["probability"] - table["trained_probability"]).abs()
    columns = {"similarity": table["spearman"].abs(), "spearman": table["spearman"], "ssim": table["ssim"]}
    columns |= {"probability_change": change, "verdicts_changed": table["verdict_changed"]}
    means = pd.DataFrame(columns).groupby(table["part"], sort=False).mean()
    similarity = float(means["similarity"].iloc[-1])
    verdict = FLAT if similarity != similarity else STAYS if similarity >= SAME_MAP else DEPENDS_ON_WEIGHTS
    return {"parts": means.to_dict("index"), "similarity": similarity, "level": SAME_MAP, "verdict": verdict}


# --- A run's own map on its found defects, measured once and kept in the run's folder

FILE = "faithfulness.json"
KEYS = {"predictions", "settings", "split", "found", "pictures", "map", "randomisation"}
HOW = {"limit": 24, "steps": 16, "road_fractions": list(ROAD_FRACTIONS), "draws": 3, "seed": 0}
SAME_PROBABILITY = 0.02  # how far from the stored one a picture may lie now: as much as another device brings about


def measure_faithfulness(run: Run, *, data_root: str | Path | None = None, **how: Any) -> dict[str, Any]:
    """Deletion, insertion, ROAD and the randomisation check of the deciding CAM, kept as ``faithfulness.json``.

    On found defects of the first test split, at most ``limit``, drawn with the seed: there is a decision to explain,
    and nothing is chosen by it. What was measured before in the same way (`how` departs from `HOW`) for these
    predictions is taken as it is. `data_root` is where the pictures are, when they moved since the training. `RunError`
    for a run that is not evaluated, found no defect, takes its masks from outside, or decides otherwise now;
    `DataError` for pictures that are missing or broken. Returns ``predictions``, the SHA-256 of the predictions that it
    belongs to; ``settings``; ``split``; ``found``, how many defects were; ``pictures``, the names of those measured on;
    ``map`` (`summarise_faithfulness`) and ``randomisation`` (`summarise_randomisation`). None stands for NaN.
    """
    settings: dict[str, Any] = HOW | how
    limit, steps, fractions, draws, seed = settings.values()
    if (stored := stored_faithfulness(run)) is not None and stored["settings"] == settings:
        return stored
    table, metrics = stored_tables(run)
    if metrics.get("mask_source") in OUTSIDE_SOURCES:
        raise RunError(
            f"{run.folder}: its attention takes masks from outside ({metrics['mask_source']}), which have no place in "
            "deletion and insertion; faithfulness can be measured of the other mask sources only"
        )
    digest = file_digest(run.folder / "predictions.csv")  # before the minutes that measuring takes
    split = next(name for name in TEST_SPLITS if (table["split"] == name).any())
    found = table[(table["split"] == split) & (table["verdict"] == "TP")]
    if found.empty:
        raise RunError(f"{run.folder}: no defect of '{split}' was found (no TP); there is no such decision to explain")
    chosen = found.sample(min(limit, len(found)), random_state=seed).sort_index()
    data = _pictures_alone(run, chosen, data_root)
    asked, own_device = (run.model, data, range(len(chosen))), next(run.model.parameters()).device
    run.model.to(checked_device(run.settings.device))
    try:
        shuffled = randomisation_check(*asked, draws=draws, threshold=float(metrics["threshold"]), seed=seed)
        for name, now, before in zip(chosen["image"], shuffled["trained_probability"], chosen["probability"]):
            if abs(now - before) > SAME_PROBABILITY:
                raise RunError(
                    f"{name}: p(defect) is {now:.3f}, and was {before:.3f} when the run was evaluated: the picture or "
                    f"the weights are others; evaluate again: gainmtl evaluate {run.folder} --force"
                )
        scores = faithfulness(*asked, steps=steps, road_fractions=fractions, seed=seed)
    finally:
        run.model.to(own_device)
    measured = {"predictions": digest, "settings": settings, "split": split, "found": len(found)}
    measured |= {"pictures": chosen["image"].tolist(), "map": summarise_faithfulness(scores)}
    write_json(run.folder / FILE, measured | {"randomisation": summarise_randomisation(shuffled)})
    return read_json(run.folder / FILE)  # as a later call reads it


def _pictures_alone(run: Run, chosen: pd.DataFrame, data_root: str | Path | None) -> GainDataModule:
    root = Path(data_root or run.settings.data_root).expanduser().absolute()
    files = [root / name for name in chosen["image"]]
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(
            f"{len(missing)} of {len(files)} pictures to measure faithfulness on are not there, such as {missing[0]}; "
            "if the pictures moved, name their folder with --data-root (data_root)"
        )
    samples = chosen.assign(image=list(map(str, files)), mask=None)
    data = build_data(run.settings.changed(skip_unreadable=False), samples)
    data.setup("test")
    return data


def stored_faithfulness(run: Run) -> dict[str, Any] | None:
    """What `measure_faithfulness` left; None where nothing is or it is stale. `RunError` when damaged."""
    if not (run.folder / FILE).is_file():
        return None
    stored = read_json(run.folder / FILE)
    if not isinstance(stored, dict) or not stored.keys() >= KEYS:
        raise RunError(f"{run.folder / FILE}: not what gainmtl report {run.folder} --faithfulness writes; remove it")
    return stored if stored["predictions"] == file_digest(run.folder / "predictions.csv") else None
