"""The runs of a plan: trained and evaluated one after the other, and read back when they are there."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.devices import DeviceError
from gainmtl_lib.evaluation.evaluate import evaluate
from gainmtl_lib.files import FileError
from gainmtl_lib.models.weights import ModelError
from gainmtl_lib.parameters import SettingsError
from gainmtl_lib.plans import Plan
from gainmtl_lib.runs import Run, RunError, run_status
from gainmtl_lib.settings import Settings
from gainmtl_lib.training.fit import fit
from gainmtl_lib.training.module import TrainingDivergedError

logger = logging.getLogger(__name__)

REASONS = (
    RunError, DataError, ModelError, DeviceError, FileError, SettingsError, TrainingDivergedError,
    torch.OutOfMemoryError,
)  # fmt: skip
"""What ends one run and lets the others go on; anything else is a mistake in the library."""


@dataclass(frozen=True)
class PlannedRun:
    """A finished and evaluated run, and its place in the plan."""

    row: str
    seed: int
    run: Run


@dataclass(frozen=True)
class FailedRun:
    """A run of the plan that could not be finished, and why."""

    row: str
    seed: int
    reason: str

    def __str__(self) -> str:
        return f"{self.row}, seed {self.seed}: {self.reason}"


def run_plan(plan: Plan, *, failures: list[FailedRun] | None = None) -> list[PlannedRun]:
    """Train and evaluate every run of the plan. Finished ones are reused; after an interruption the same call goes on.

    Args:
        plan: what to run, in the order of `Plan.runs`.
        failures: takes the runs that failed, and the others go on; None: the first failure is raised.

    Returns:
        The runs that are finished, in the plan's order.
    """
    planned = {place: plan.settings(*place) for place in plan.runs()}
    waiting = {place for place, settings in planned.items() if not is_done(settings)}
    seconds = [_training_seconds(settings) for place, settings in planned.items() if place not in waiting]
    finished = []
    for number, ((row, seed), settings) in enumerate(planned.items(), start=1):
        if (row, seed) in waiting:
            left = _time_left(seconds, len(waiting))
            logger.info("run %d of %d: %s, seed %d%s", number, len(planned), row, seed, left)
        started = time.monotonic()
        try:
            run = fit(settings)
            evaluate(run)
        except REASONS as error:
            if failures is None:
                raise
            failures.append(FailedRun(row, seed, str(error)))
            logger.warning("run %d of %d failed: %s", number, len(planned), failures[-1])
        else:
            finished.append(PlannedRun(row, seed, Run(run.folder)))  # read anew: `run` holds its model in memory
            if (row, seed) in waiting:
                seconds.append(time.monotonic() - started)
        waiting.discard((row, seed))
    return finished


def finished_runs(plan: Plan) -> list[PlannedRun]:
    """The runs of the plan that are finished and evaluated, read and not trained.

    Raises:
        RunError: a run was trained with other settings than the plan's; each difference is named.
    """
    found = []
    for row, seed in plan.runs():
        settings = plan.settings(row, seed)
        if is_done(settings):
            run = Run(settings.run_dir)
            if differing := run.settings.differences(settings):
                raise RunError(
                    f"{run.folder} holds a run with other settings than the plan's (stored and planned):\n  "
                    + "\n  ".join(differing)
                )
            found.append(PlannedRun(row, seed, run))
    return found


def is_done(settings: Settings) -> bool:
    """Whether this run's folder says that it is finished and evaluated."""
    return run_status(settings.run_dir) == "complete" and Run(settings.run_dir).is_evaluated


def split_tables(runs: Sequence[PlannedRun], split: str) -> dict[str, dict[int, pd.DataFrame]]:
    """The predictions of one split by row and seed; runs whose data lacks the split are left out.

    Names of pictures and groups are led by their dataset's folder: the synthetic pictures of two seeds have the same
    names and are not the same pictures.
    """
    tables: dict[str, dict[int, pd.DataFrame]] = {}
    for planned in runs:
        table = planned.run.predictions
        table = table[table["split"] == split].reset_index(drop=True)
        if len(table):
            dataset = planned.run.settings.dataset_folder.name
            named = {name: dataset + "/" + table[name].astype("string") for name in ("image", "group")}
            tables.setdefault(planned.row, {})[planned.seed] = table.assign(**named)
    return tables


def _training_seconds(settings: Settings) -> float:
    return float(Run(settings.run_dir).manifest.get("duration_s", 0))


def _time_left(seconds: Sequence[float], left: int) -> str:
    """``, about 14 min left``, from the mean of the runs that are known; nothing where none is."""
    if not seconds:
        return ""
    minutes = sum(seconds) / len(seconds) * left / 60
    return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"
