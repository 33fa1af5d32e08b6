"""Evaluate a run on its validation and test splits, and leave the results in the run's folder."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gainmtl_lib.claims import hold
from gainmtl_lib.devices import inference_autocast
from gainmtl_lib.efficientad.predictions import FLOATS, SplitPredictions, computing_on, predict_split
from gainmtl_lib.efficientad.provider import DatasetProvider, build_provider
from gainmtl_lib.efficientad.runs import MAP, EfficientADRun
from gainmtl_lib.efficientad.summary import add_verdicts, decided_on, summarise
from gainmtl_lib.files import atomic_path, remove_temporaries
from gainmtl_lib.runs import RunError, write_json

logger = logging.getLogger(__name__)

DECIDED = ("threshold", "novelty_threshold", "map_scales")
"""What is chosen once, on the data that the run was trained with."""


def evaluate_efficientad(
    run: EfficientADRun, *, provider: DatasetProvider | None = None, device: str | None = None, reuse: bool = True
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Score, decide and summarise every image of ``val``, ``test`` and, where present, ``test_shift``.

    On the data that the run was trained with, the results stay in its folder (``predictions.csv``,
    ``maps/anomaly.npy``, ``metrics.json``) and are not made twice. On other data they are returned only, and the
    thresholds and the scale are those that the run's own evaluation chose.

    Args:
        run: finished.
        provider: of the data, in place of the one that the settings name.
        device: where to compute, see `checked_device`; None is the settings' accelerator.
        reuse: take stored results of the run where they exist.

    Returns:
        One row per image, without the anomalies synthesised for validation, which are no files; and the summary:
        ``threshold``, ``novelty_threshold``, ``teacher``, ``penalty``, ``data_digest``, ``map_scales`` and one dict
        per split, that of ``val`` with its anomalies.

    Raises:
        RunError: the data changed since the run was trained, other data is given to a run without an evaluation of
            its own, or another process writes to the run.
        DataError: pictures that cannot be read.
    """
    as_trained = provider is None or provider.digest == run.manifest["data_digest"]
    if as_trained and reuse and run.is_evaluated:
        logger.info("reusing the evaluation in %s", run.folder)
        return run.predictions, run.metrics
    provider = _own_data(run) if provider is None else provider
    decided = None if as_trained else _decided(run)
    with hold(run.folder) if as_trained else nullcontext():
        predictions = _predict(run, provider, device)
        decided = decided or decided_on(predictions["val"])
        summary = decided | {"teacher": run.teacher, "penalty": run.penalty, "data_digest": provider.digest}
        tables = {split: add_verdicts(part.table, decided["threshold"]) for split, part in predictions.items()}
        summary |= {split: summarise(tables[split], part) for split, part in predictions.items()}
        table = pd.concat(tables.values(), ignore_index=True)
        on_disk = ~table.duplicated(["split", "image"]).to_numpy()  # an anomaly has the path of the picture it is on
        if as_trained:
            maps = np.concatenate([part.maps for part in predictions.values()])
            _store(run, table[on_disk], maps[on_disk], summary)
            return run.predictions, run.metrics  # as a later call reads them
    return table[on_disk].reset_index(drop=True), summary


def _own_data(run: EfficientADRun) -> DatasetProvider:
    provider = build_provider(run.settings)
    then, here = run.manifest["data_digest"], provider.digest
    if then != here:
        raise RunError(
            f"{run.settings.dataset_folder}: not the data that {run.folder} was trained on ({then} then, {here} "
            "here); bring that data back, or give the data as provider=…"
        )
    return provider


def _decided(run: EfficientADRun) -> dict[str, Any]:
    """What the run's own evaluation chose: other data must not move it."""
    metrics = run.metrics
    return {name: metrics[name] for name in DECIDED} | {"threshold_from": "the run's own evaluation"}


def _predict(run: EfficientADRun, provider: DatasetProvider, device: str | None) -> dict[str, SplitPredictions]:
    with (
        computing_on(run.model, device or run.settings.accelerator) as where,
        inference_autocast(run.settings.precision, where),
    ):
        return {split: predict_split(run.model, provider, split) for split in provider.splits}


def _store(run: EfficientADRun, table: pd.DataFrame, maps: np.ndarray, summary: dict[str, Any]) -> None:
    # Written last and removed first: an interruption leaves a run that is not evaluated, never a mixture of two.
    (run.folder / "metrics.json").unlink(missing_ok=True)
    stored, arrays = run.folder / "predictions.csv", run.folder / "maps" / f"{MAP}.npy"
    remove_temporaries(stored, arrays, run.folder / "metrics.json")
    places = table[["image", "mask"]].map(lambda path: _relative(path, run.settings.dataset_folder))
    with atomic_path(stored) as path:
        table.assign(image=places["image"], mask=places["mask"]).to_csv(path, index=False, float_format=FLOATS)
    with atomic_path(arrays) as path:
        np.save(path, maps)
    write_json(run.folder / "metrics.json", summary)


def _relative(path: str | None, folder: Path) -> str | None:
    if not isinstance(path, str):  # None, or pandas' NaN in a table that somebody else made
        return None
    return Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else str(path)
