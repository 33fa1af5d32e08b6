"""What one finished run shows about the reasons of its decisions, on the distribution that it was trained on.

Everything but the drop is measured on ``test``: whether it would have warned of the drop, without a shifted test set,
is what the shortcut study asks. Kept beside the run's evaluation as ``indicators.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from gainmtl_lib.data.cues import read_cue
from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.evaluation.evaluate import evaluated_data
from gainmtl_lib.evaluation.image_flips import FLIP_SETTINGS, flip_indicators, image_flips
from gainmtl_lib.evaluation.intervals import (
    Estimate,
    difference,
    group_codes,
    mean_score,
    proportion,
    resampled,
    share_parts,
)
from gainmtl_lib.evaluation.pairing import rows_of
from gainmtl_lib.evaluation.scores import auroc, flip_scores
from gainmtl_lib.evaluation.stored import file_digest, stored_maps, stored_tables
from gainmtl_lib.metrics import energy_inside
from gainmtl_lib.runs import Run, RunError, read_json, write_json

FILE = "indicators.json"
KEYS = {"predictions", "settings", "indicators", "left_out"}
MEASURED = 2
"""Raised when the same run would be measured otherwise."""

OF_PICTURES = ("cam_iou", "grid_iou", "energy_inside", "point_game", "attention_iou", "loc_iou")
"""Means over annotated defects, of the columns of the same name."""
NAMES = (
    "accuracy", "accuracy_shift", "drop", "auroc", "auroc_shift", "auroc_drop", *OF_PICTURES, "wrong_reason_rate",
    "cf_flip_rate", "cf_control_flip_rate", "cf_excess", "image_flip", "image_flip_control", "image_flip_excess",
    "paste_flip", "paste_flip_control", "paste_flip_excess", "counterfactual_accuracy", "cue_energy", "cue_area",
    "cue_excess",
)  # fmt: skip
"""Every indicator, in the order of the study's table."""


def measure_indicators(run: Run, *, device: str | None = None, reuse: bool = True) -> dict[str, Any]:
    """Ask an evaluated run for its reasons, and store the answers as ``indicators.json``.

    At the run's own threshold, chosen on validation:

    - ``accuracy``, ``auroc`` on ``test``; ``…_shift`` on ``test_shift``; ``drop`` and ``auroc_drop``, the first minus
      the second;
    - ``cam_iou``, ``grid_iou``, ``energy_inside``, ``point_game``, ``attention_iou``, ``loc_iou``,
      ``wrong_reason_rate``, ``cf_flip_rate``, ``cf_control_flip_rate`` and ``cf_excess`` (their difference) as
      the evaluation has them;
    - ``image_flip`` and the others of edited pictures, see `flip_indicators`;
    - ``cue_energy``: mean share of the deciding CAM's non-negative energy on the pixels of the cue, over defective
      pictures with the cue; ``cue_area``: the cue's mean share of these pictures, which an even map would give;
      ``cue_excess``: their difference.

    What the strategy or the data lacks (a counterfactual path, an attention map, ``test_shift``, a cue) is absent.

    Args:
        run: finished and evaluated.
        device: where to compute, see `checked_device`; None is where the run was trained.
        reuse: take what is stored where it was measured in this way for these predictions.

    Returns:
        ``predictions``, the SHA-256 of the predictions that it belongs to; ``settings`` of the measurement;
        ``indicators``, by name the fields of an `Estimate` (None for NaN); ``left_out``, edits that were impossible,
        by kind and reason, and how many.

    Raises:
        RunError: the run is not evaluated, has no ``test`` split, or its data changed.
        DataError: pictures that cannot be read.
        DeviceError: no such device.
    """
    if reuse and (stored := stored_indicators(run)) is not None:
        return stored
    table, metrics = stored_tables(run)
    rows = table[table["split"] == "test"]
    if rows.empty:
        raise RunError(f"{run.folder}: evaluated without a test split; indicators are measured on it")
    digest = _digest(run)  # before the seconds that measuring takes
    data = evaluated_data(run)
    flips, left_out = image_flips(run, data, rows, device=device)
    indicators = verdict_indicators(table) | picture_indicators(rows)
    indicators |= flip_indicators(rows, flips, float(metrics["threshold"]))
    indicators |= cue_indicators(*_cams_and_cues(run, data, table), group_codes(rows))
    write_json(
        run.folder / FILE,
        {
            "predictions": digest,
            "settings": _settings(),
            "indicators": {name: asdict(indicators[name]) for name in NAMES if name in indicators},
            "left_out": left_out,
        },
    )
    return read_json(run.folder / FILE)  # as a later call reads it


def indicator_table(measured: Mapping[str, Any]) -> pd.DataFrame:
    """What `measure_indicators` returned, a row per indicator: ``value``, ``low``, ``high``, ``count``."""
    table = pd.DataFrame.from_dict(measured["indicators"], orient="index").rename_axis("indicator")
    return table[["value", "low", "high", "count"]].astype({name: float for name in ("value", "low", "high")})


def stored_indicators(run: Run) -> dict[str, Any] | None:
    """What `measure_indicators` left; None where there is nothing, or it is damaged or out of date."""
    try:
        stored = read_json(run.folder / FILE)
    except RunError:
        return None
    current = isinstance(stored, dict) and stored.keys() >= KEYS and stored["settings"] == _settings()
    return stored if current and stored["predictions"] == _digest(run) else None


def verdict_indicators(table: pd.DataFrame) -> dict[str, Estimate]:
    """Accuracy and AUROC on ``test`` and ``test_shift``, and by how much they drop.

    Args:
        table: predictions of every split.
    """
    found: dict[str, Estimate] = {}
    for split, ending in (("test", ""), ("test_shift", "_shift")):
        rows = table[table["split"] == split]
        if len(rows):
            labels, prob, groups = rows["label"].to_numpy(), rows["probability"].to_numpy(), group_codes(rows)
            found[f"accuracy{ending}"] = proportion(labels == rows["predicted"].to_numpy(), groups)
            found[f"auroc{ending}"] = resampled(_auroc_of(labels, prob), groups, strata=labels)
    if "accuracy_shift" in found:
        independent = not share_parts(table[table["split"] == "test"], table[table["split"] == "test_shift"])
        for drop, score in (("drop", "accuracy"), ("auroc_drop", "auroc")):
            found[drop] = difference(found[score], found[f"{score}_shift"], independent=independent)
    return found


def _auroc_of(labels: NDArray, prob: NDArray) -> Any:
    return lambda chosen: auroc(labels[chosen], prob[chosen])


def picture_indicators(rows: pd.DataFrame) -> dict[str, Estimate]:
    """Agreement of the maps with the mask, and the flips of the model's own counterfactual path, of one split."""
    groups = group_codes(rows)
    scores = {name: mean_score(rows[name].to_numpy(), groups) for name in OF_PICTURES if name in rows}
    found = ((rows["verdict"] == "TP") & rows["cam_iou"].notna()).to_numpy()
    scores["wrong_reason_rate"] = proportion(rows["wrong_reason"].to_numpy()[found], groups[found])
    return scores | flip_scores(rows, groups)


def cue_indicators(
    rows: NDArray[np.intp], cams: NDArray, cues: NDArray[np.bool_], groups: NDArray
) -> dict[str, Estimate]:
    """How much of the deciding CAM lies on the cue, over the pictures that carry it.

    Args:
        rows: their positions in the split, (n,); none gives nothing.
        cams: deciding CAMs, (n, h, w).
        cues: pixels of the cue, (n, H, W).
        groups: codes of the whole split, (N,).
    """
    if not len(rows):
        return {}
    masks = torch.from_numpy(cues)[:, None].float()
    energy = energy_inside(torch.from_numpy(np.asarray(cams, dtype=np.float32))[:, None], masks).numpy()
    area = cues.mean(axis=(1, 2))
    shares = {"cue_energy": energy, "cue_area": area}
    found = {name: mean_score(values, groups[rows]) for name, values in shares.items()}
    found["cue_excess"] = Estimate(float((energy - area).mean()), count=len(rows))
    return found


def _cams_and_cues(run: Run, data: GainDataModule, table: pd.DataFrame) -> tuple[NDArray, NDArray, NDArray]:
    """Of the defective test pictures with a cue: position among the test rows, CAM, cue pixels."""
    settings = run.settings
    is_test = (table["split"] == "test").to_numpy()
    cams = stored_maps(run, len(table))["cam"][is_test]
    rows = table[is_test]
    cues = {}
    for position, (row, label) in enumerate(zip(rows_of(rows, data), rows["label"], strict=True)):
        if label == 1:
            path = data.dataset.paths[row]
            cue = read_cue(path, root=settings.data_root, image_size=settings.image_size, resize=settings.resize)
            if cue is not None and cue.any():
                cues[position] = cue
    chosen = np.array(list(cues), dtype=np.intp)
    planes = np.stack(list(cues.values())) if cues else np.zeros((0, *settings.image_size), dtype=np.bool_)
    return chosen, cams[chosen], planes


def _settings() -> dict[str, Any]:
    return {"measured": MEASURED} | FLIP_SETTINGS


def _digest(run: Run) -> str:
    return file_digest(run.folder / "predictions.csv")
