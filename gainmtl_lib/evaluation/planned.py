"""The runs of a plan: trained and evaluated one after the other, and read back when they are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from gainmtl_lib.evaluation.evaluate import evaluate
from gainmtl_lib.evaluation.runner import Job, run_jobs
from gainmtl_lib.plans import Plan
from gainmtl_lib.runs import Run, RunError, run_status
from gainmtl_lib.settings import Settings
from gainmtl_lib.training.fit import fit


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
    places = {f"{row}, seed {seed}": (row, seed) for row, seed in plan.runs()}
    jobs = [_job(name, plan, *place) for name, place in places.items()]
    reasons: dict[str, str] = {}
    runs = run_jobs(jobs, _evaluated, failures=None if failures is None else reasons)
    if failures is not None:
        failures += [FailedRun(*places[name], reason) for name, reason in reasons.items()]
    return [PlannedRun(*places[name], run) for name, run in runs.items()]


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

    Names of pictures and groups are led by their dataset's folder.
    """
    tables: dict[str, dict[int, pd.DataFrame]] = {}
    for planned in runs:
        table = split_table(planned.run, split, lead=planned.run.settings.dataset_folder.name)
        if len(table):
            tables.setdefault(planned.row, {})[planned.seed] = table
    return tables


def split_table(run: Run, split: str, *, lead: str) -> pd.DataFrame:
    """A run's predictions of one split, names of pictures and groups led by `lead`.

    Synthetic pictures of two datasets have the same names and are not the same pictures.
    """
    table = run.predictions
    table = table[table["split"] == split].reset_index(drop=True)
    return table.assign(**{name: f"{lead}/" + table[name].astype("string") for name in ("image", "group")})


def _job(name: str, plan: Plan, row: str, seed: int) -> Job:
    settings = plan.settings(row, seed)
    return Job(name, row, settings, is_done(settings))


def _evaluated(settings: Settings) -> Run:
    run = fit(settings)
    evaluate(run)
    return run
