"""Evaluate a run or a model on its validation and test splits, and leave the results in the run's folder."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gainmtl_lib.build import build_data, build_samples
from gainmtl_lib.claims import hold
from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.data.samples import data_digest
from gainmtl_lib.decisions import choose_threshold
from gainmtl_lib.devices import checked_device
from gainmtl_lib.evaluation.mask_source import MaskSource
from gainmtl_lib.evaluation.predict import SplitPredictions, predict_split
from gainmtl_lib.evaluation.summary import add_verdicts, summarise
from gainmtl_lib.files import atomic_path, remove_temporaries
from gainmtl_lib.map_scale import fit_scale
from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.runs import Run, RunError, write_json
from gainmtl_lib.settings import Settings

logger = logging.getLogger(__name__)

TEST_SPLITS = ("test", "test_shift")


def evaluate(
    run_or_model: Run | GAINMTLModel,
    *,
    data: GainDataModule | None = None,
    mask_source: str | None = None,
    external_mask_dir: Path | None = None,
    efficientad_run: Path | None = None,
    threshold: float | None = None,
    device: str | None = None,
    reuse: bool = True,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Decide, score and summarise every image of ``val``, ``test`` and, where present, ``test_shift``.

    The decision threshold is chosen on ``val``. A run evaluated as it was trained keeps its results
    (``predictions.csv``, ``maps/``, ``metrics.json``) and is not evaluated twice; with other data, another
    mask source, place of its masks or threshold the results are returned only.

    Args:
        run_or_model: a finished run, or a model (which needs `data`).
        data: in place of the run's own.
        mask_source: S6 only, in place of the settings' own. ``oracle`` hands it the ground truth, which
            leaks the label: its results are marked.
        external_mask_dir: one mask per image, found by stem, for ``external``; in place of the settings' own.
        efficientad_run: folder of the run that makes the masks, for ``efficientad``; in place of the settings' own.
        threshold: fixed beforehand, in place of the one chosen on ``val``.
        device: where to compute, see `checked_device`; None is where the run was trained, ``auto`` for a model.
        reuse: take stored results of the run where they exist.

    Returns:
        One row per image, and the summary: ``threshold``, ``map_scales`` (see `MapScale`), where the masks are from
        (see `MaskSource.summary`), and one dict per split.

    Raises:
        RunError: the data changed since the run was trained, there is no split to evaluate, a mask source was
            given for another strategy than S6 or a place of masks for another source than its own, an
            EfficientAD run learnt from the test pictures, or another process writes to the run.
    """
    run = run_or_model if isinstance(run_or_model, Run) else None
    otherwise = (data, mask_source, external_mask_dir, efficientad_run, threshold)
    as_trained = run is not None and all(asked is None for asked in otherwise)
    if run is not None and as_trained and reuse and run.is_evaluated:
        logger.info("reusing the evaluation in %s", run.folder)
        return run.predictions, run.metrics
    model = run.model if run is not None else run_or_model
    if not isinstance(model, GAINMTLModel):
        raise TypeError(f"expected a Run or a GAINMTLModel, got {type(model).__name__}")
    source = MaskSource.of(model if run is None else run.settings, mask_source, external_mask_dir, efficientad_run)
    with hold(run.folder) if run is not None and as_trained else nullcontext():
        data = evaluated_data(run, data)
        predictions = _predict(model, data, source, device or ("auto" if run is None else run.settings.device))
        table, summary = _summary(predictions, threshold)
        summary |= source.summary
        if run is not None and as_trained:
            _store(run, table, summary, predictions)
            return run.predictions, run.metrics  # as a later call reads them
    return table, summary


def evaluated_data(run: Run | None, data: GainDataModule | None = None) -> GainDataModule:
    """The data to evaluate or to draw, set up: that of the run as it was trained, or what is given.

    Raises:
        RunError: neither is given, the run's data changed since it was trained, or there is no test split.
        DataError: pictures that cannot be read.
    """
    if data is None:
        if run is None:
            raise RunError("evaluating a model needs data; give data=GainDataModule(…), or a run")
        data = build_data(run.settings, samples_as_trained(run))
    data.setup("test")
    if not set(data.samples["split"]) & set(TEST_SPLITS):
        raise RunError("the data has no test split; there is nothing to evaluate")
    return data


def samples_as_trained(run: Run) -> pd.DataFrame:
    """The table of samples that a run was trained on.

    Raises:
        RunError: the data changed since.
    """
    samples = build_samples(run.settings)
    if data_digest(samples) != run.manifest["data_digest"]:
        raise RunError(f"{run.settings.data_root}: the data changed since {run.folder} was trained on it")
    return samples


def _predict(model: GAINMTLModel, data: GainDataModule, source: MaskSource, device: str) -> dict[str, SplitPredictions]:
    """Every split that is there; the model comes back on the device that it had."""
    own_device = next(model.parameters()).device
    try:
        model.to(checked_device(device))
        present = [split for split in ("val", *TEST_SPLITS) if (data.samples["split"] == split).any()]
        return {split: predict_split(model, data, split, source=source) for split in present}
    finally:
        model.to(own_device)


def _summary(predictions: dict[str, SplitPredictions], threshold: float | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    origin = "given"
    if threshold is None and "val" in predictions:
        val = predictions["val"].table
        threshold = choose_threshold(val["label"].to_numpy(), val["probability"].to_numpy())
        origin = "validation, highest F1"
    elif threshold is None:
        threshold, origin = 0.5, "default, no validation split"
    tables = {split: add_verdicts(part.table, threshold) for split, part in predictions.items()}
    summary: dict[str, Any] = {"threshold": threshold, "threshold_from": origin}
    summary["map_scales"] = _map_scales(predictions.get("val"))
    summary |= {split: summarise(tables[split], part) for split, part in predictions.items()}
    return pd.concat(tables.values(), ignore_index=True), summary


def _map_scales(val: SplitPredictions | None) -> dict[str, dict[str, float]]:
    """The absolute scale of every map, fixed on validation; none without a validation split."""
    if val is None:
        return {}
    labels = val.table["label"].to_numpy()
    scales = {name: fit_scale(maps, labels) for name, maps in val.maps.items()}
    return {name: asdict(scale) for name, scale in scales.items() if scale is not None}


def _store(run: Run, table: pd.DataFrame, summary: dict[str, Any], predictions: dict[str, SplitPredictions]) -> None:
    # Written last and removed first: an interruption leaves a run that is not evaluated, never a mixture of two.
    (run.folder / "metrics.json").unlink(missing_ok=True)
    remove_temporaries(run.folder / "predictions.csv", run.folder / "metrics.json", run.folder / "maps" / "*.npy")
    places = table[["image", "mask"]].map(lambda path: _relative(path, run.settings))
    with atomic_path(run.folder / "predictions.csv") as path:
        table.assign(image=places["image"], mask=places["mask"]).to_csv(path, index=False, float_format="%.6g")
    parts = [part.maps for part in predictions.values()]
    for name in parts[0]:
        with atomic_path(run.folder / "maps" / f"{name}.npy") as path:
            np.save(path, np.concatenate([part[name] for part in parts]))
    write_json(run.folder / "metrics.json", summary)


def _relative(path: str | Path | None, settings: Settings) -> str | None:
    if path is None:
        return None
    path = Path(path)
    return path.relative_to(settings.data_root).as_posix() if path.is_relative_to(settings.data_root) else str(path)
