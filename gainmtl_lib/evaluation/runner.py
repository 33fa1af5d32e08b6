"""Several trainings one after the other: a failure ends its own run only, and the log tells how long the rest takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

import torch

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.devices import DeviceError
from gainmtl_lib.files import FileError
from gainmtl_lib.models.weights import ModelError
from gainmtl_lib.parameters import SettingsError
from gainmtl_lib.runs import Run, RunError
from gainmtl_lib.settings import Settings
from gainmtl_lib.training.module import TrainingDivergedError

logger = logging.getLogger(__name__)

REASONS = (
    RunError, DataError, ModelError, DeviceError, FileError, SettingsError, TrainingDivergedError,
    torch.OutOfMemoryError,
)  # fmt: skip
"""What ends one run and lets the others go on; anything else is a mistake in the library."""


@dataclass(frozen=True)
class Job:
    """One run to make.

    Attributes:
        name: for the log and for what it returns, as in ``S5, seed 1``; no two of a list are the same.
        kind: jobs of one kind are taken to last equally long.
        settings: of the run.
        done: nothing is left to do; the run is only read again.
    """

    name: str
    kind: str
    settings: Settings
    done: bool


def run_jobs(
    jobs: Sequence[Job], make: Callable[[Settings], Run], *, failures: dict[str, str] | None = None
) -> dict[str, Run]:
    """Make every run, in order.

    Args:
        jobs: what to make.
        make: trains and evaluates a run, or reuses what is there.
        failures: takes name and reason of the runs that failed, and the others go on; None: the first one is raised.

    Returns:
        The finished runs by name.
    """
    ahead = [job.kind for job in jobs if not job.done]
    spent = [(job.kind, _training_seconds(job.settings)) for job in jobs if job.done]
    finished: dict[str, Run] = {}
    for number, job in enumerate(jobs, start=1):
        if not job.done:
            logger.info("run %d of %d: %s%s", number, len(jobs), job.name, time_left(spent, ahead))
            ahead.remove(job.kind)
        started = time.monotonic()
        try:
            run = make(job.settings)
        except REASONS as error:
            if failures is None:
                raise
            failures[job.name] = str(error)
            logger.warning("run %d of %d failed: %s: %s", number, len(jobs), job.name, error)
            continue
        finished[job.name] = Run(run.folder)  # read anew: `run` holds its model in memory
        if not job.done:
            spent.append((job.kind, time.monotonic() - started))
    return finished


def time_left(spent: Sequence[tuple[str, float]], ahead: Sequence[str]) -> str:
    """``, about 14 min left``, from the runs whose time is known; empty where there are none.

    Args:
        spent: kind and seconds of each run that is known.
        ahead: kind of each run still to be made; one that is not known counts as the mean of all.
    """
    if not spent or not ahead:
        return ""
    overall = mean(seconds for _, seconds in spent)
    by_kind = {kind: mean(seconds for other, seconds in spent if other == kind) for kind, _ in spent}
    minutes = sum(by_kind.get(kind, overall) for kind in ahead) / 60
    return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"


def _training_seconds(settings: Settings) -> float:
    return float(Run(settings.run_dir).manifest.get("duration_s", 0))
