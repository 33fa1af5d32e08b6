"""Faithfulness of a run's own map on its found defects, measured once and kept in the run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.build import build_data
from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.devices import checked_device
from gainmtl_lib.evaluation.stored import SPLITS, file_digest, stored_tables
from gainmtl_lib.explain.faithfulness import faithfulness, summarise_faithfulness
from gainmtl_lib.explain.perturbation import defect_probability
from gainmtl_lib.explain.randomisation import randomisation_check, summarise_randomisation
from gainmtl_lib.explain.road import ROAD_FRACTIONS
from gainmtl_lib.models.gain_mtl import OUTSIDE_SOURCES, GAINMTLModel
from gainmtl_lib.runs import Run, RunError, read_json, write_json

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
