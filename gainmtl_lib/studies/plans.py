"""A study's plan: which rows are trained with which seeds, and which of them are compared.

A plan is a YAML file, ``params/studies/<name>.yaml``::

    experiment: ablation                 # outputs/<experiment>/…
    base: [params/small.yaml]            # parameter files of every run, later ones win
    seeds: [0, 1, 2, 3, 4]
    data_per_seed: true                  # every seed its own synthetic data, so that the pairs are independent
    rows:                                # name -> strategy and what departs from it
      S1: {strategy: S1}
      S4: {strategy: S4}
      S4, no warm-up: {strategy: S4, loc_warmup_ratio: 0.0}
    steps: [[S1, S4], [S4, "S4, no warm-up"]]    # paired comparisons: before, after
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal, Self

import pandas as pd
import torch
import yaml
from pydantic import BeforeValidator, Field, model_validator

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.evaluation import evaluate
from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import FileError, Run, RunError, run_status
from gainmtl_lib.settings import (
    STRATEGY_WEIGHTS,
    AnyPath,
    FolderName,
    OneOfEachName,
    ParameterRecord,
    Settings,
    SettingsError,
    closest,
    read_parameters,
    repository_root,
)
from gainmtl_lib.train import DeviceError, TrainingDivergedError, fit

DATA_PARAMETERS = ("num_samples", "image_size", "shortcut", "shortcut_correlation", "synthetic_seed")
"""What synthetic data is made from: one folder holds one choice of them."""

PLAN_NAMES = ("experiment", "seeds", "data_per_seed")
"""Fields of a plan that `load_plan` replaces by name; any other name is a parameter of the runs."""


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_rows(value: Any) -> Any:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"rows must map names to parameters, at least one, got {value!r}")
    for name, row in value.items():
        if not isinstance(name, str) or not isinstance(row, dict):
            raise ValueError(f"row {name!r} must be a name with a mapping of parameters, got {row!r}")
    return value


def _as_steps(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise ValueError(f"steps must be a list of pairs [before, after], got {value!r}")
    for step in value:
        if not isinstance(step, list | tuple) or len(step) != 2 or not all(isinstance(name, str) for name in step):
            raise ValueError(f"a step must be a pair of row names [before, after], got {step!r}")
    return tuple((before, after) for before, after in value)


Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Plan(ParameterRecord):
    """Rows × seeds of a study. Every row's parameters are checked when the plan is made.

    Attributes:
        experiment: folder of all its runs below the outputs.
        base: parameter files of every run, later ones win. They choose no strategy.
        seeds: of the runs; rows are compared seed by seed.
        data_per_seed: each seed has synthetic data of its own: ``synthetic_seed`` is the seed, the folder
            ``<data_root>-<seed>``.
        parameters: win over `base`, lose against a row.
        rows: name to parameters; each gives ``strategy``.
        steps: pairs of rows (before, after).
        report: what beside rows and steps is shown of the finished runs.
    """

    experiment: FolderName
    base: Annotated[tuple[AnyPath, ...], BeforeValidator(_as_tuple)] = ()
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    data_per_seed: bool = False
    parameters: dict[str, Any] = Field(default_factory=dict)
    rows: Annotated[dict[str, dict[str, Any]], BeforeValidator(_as_rows)]
    steps: Annotated[tuple[tuple[str, str], ...], BeforeValidator(_as_steps)] = ()
    report: Literal["steps", "map_stride", "annotation", "edited_share"] = "steps"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        for base in self.base:
            if "strategy" in read_parameters(base):
                raise ValueError(f"base file {base} chooses a strategy, which the rows do; leave it out")
        _check_steps(self.steps, self.rows)
        self._check_reserved("parameters", self.parameters, {"strategy"})
        folders: dict[str, str] = {}
        pictures: dict[str, str] = {}
        data: dict[Path, tuple[str, dict[str, Any]]] = {}
        for row, values in self.rows.items():
            self._check_reserved(f"row {row!r}", values)
            settings = self._checked(row)
            same = folders.setdefault(settings.run_name, row)
            if same != row:
                raise ValueError(f"rows {same!r} and {row!r} would share the folder {settings.run_name}; rename one")
            _check_data(row, settings, data)
            pictures[row] = settings.dataset_folder.name
        _check_pictures(self.steps, pictures)
        return self

    def settings(self, row: str, seed: int) -> Settings:
        """The parameters of one run; its ``variant`` is the row's name where that is not the bare strategy.

        Raises:
            KeyError: no such row.
        """
        values = self.parameters | self.rows[row]
        own = {"experiment": self.experiment, "seed": seed, "variant": variant_of(row, str(values.get("strategy")))}
        settings = Settings.from_yaml(*self.base, **values | own)
        if not self.data_per_seed:
            return settings
        root = settings.data_root
        return settings.changed(synthetic_seed=seed, data_root=root.with_name(f"{root.name}-{seed}"))

    def runs(self) -> Iterator[tuple[str, int]]:
        """Row and seed of every run, all rows of a seed before the next seed: stopped early, rows stay comparable."""
        return ((row, seed) for seed in self.seeds for row in self.rows)

    def plain(self) -> dict[str, Any]:
        """The plan as a YAML file can hold it, so that it can be run again."""
        root = repository_root()
        base = [path.relative_to(root) if path.is_relative_to(root) else path for path in self.base]
        steps = [list(step) for step in self.steps]
        return super().plain() | {"base": [path.as_posix() for path in base], "steps": steps}

    def only(self, *, rows: Iterable[str] | None = None, seeds: Iterable[int] | None = None) -> Plan:
        """The part of the plan with these rows and seeds, and the steps between the rows that are left.

        Raises:
            SettingsError: a row or seed that the plan lacks.
        """
        kept = list(self.rows if rows is None else rows)
        for row in kept:
            if row not in self.rows:
                raise SettingsError(_no_row(row, self.rows))
        chosen = tuple(self.seeds if seeds is None else seeds)
        if strange := sorted(set(chosen) - set(self.seeds)):
            raise SettingsError(f"seed {strange[0]} is not in the plan, which has {_listed(self.seeds)}")
        steps = tuple(step for step in self.steps if set(step) <= set(kept))
        return self.changed(rows={row: self.rows[row] for row in kept}, seeds=chosen, steps=steps)

    def _checked(self, row: str) -> Settings:
        if row in STRATEGY_WEIGHTS and self.rows[row].get("strategy") not in (row, None):
            raise ValueError(f"row {row!r} has strategy {self.rows[row]['strategy']!r}; name it otherwise")
        if "strategy" not in self.rows[row]:
            raise ValueError(f"row {row!r} has no strategy; give one of {_listed(STRATEGY_WEIGHTS)}")
        try:
            settings = self.settings(row, self.seeds[0])
        except SettingsError as error:
            raise ValueError("\n".join(f"row {row!r}: {line}" for line in str(error).split("\n"))) from None
        if not settings.variant and row != settings.strategy:
            raise ValueError(f"row {row!r} needs a letter or digit beside its strategy, to name its folder")
        if self.data_per_seed and settings.dataset_type != "synthetic":
            raise ValueError(
                f"row {row!r}: data_per_seed needs dataset_type 'synthetic', got {settings.dataset_type!r}; "
                "set data_per_seed to false"
            )
        return settings

    def _check_reserved(self, where: str, values: Mapping[str, Any], more: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        reserved = {"seed", "variant", "experiment", *more} | ({"synthetic_seed"} if self.data_per_seed else set())
        if found := sorted(reserved & set(values)):
            raise ValueError(f"{where}: {_listed(found)} comes from the plan itself; leave it out")


def load_plan(path: str | Path, **overrides: Any) -> Plan:
    """Read and check a plan.

    Args:
        path: the file, or the name of one in ``params/studies``.
        overrides: in place of the file's own: ``experiment``, ``seeds``, ``data_per_seed``, and parameters of the
            runs, which win over the base files and lose against what a row departs in.

    Raises:
        SettingsError: no such file, no plan, or something in it that cannot be used; names file and key.
    """
    file = _plan_file(path)
    content = _read(file)
    unknown = [name for name in overrides if name not in {*PLAN_NAMES, *Settings.model_fields}]
    if unknown:
        raise SettingsError("\n".join(f"unknown parameter '{n}'{closest(n, Settings.model_fields)}" for n in unknown))
    own = {name: value for name, value in overrides.items() if name in PLAN_NAMES}
    parameters = {name: value for name, value in overrides.items() if name not in PLAN_NAMES}
    written = content.get("parameters", {})
    if parameters and isinstance(written, dict):  # what is none, `Plan` complains about
        own["parameters"] = written | parameters
    try:
        return Plan(**content | own)
    except SettingsError as error:
        raise SettingsError("\n".join(f"{file}: {line}" for line in str(error).split("\n"))) from None


def variant_of(row: str, strategy: str) -> str:
    """A row's name as part of a folder's: ``S4, no warm-up`` of S4 is ``no-warm-up``, ``S4`` itself is empty."""
    rest = row[len(strategy) :] if row.lower().startswith(strategy.lower()) else row
    return re.sub(r"[^\w.]+", "-", rest.lower()).strip("-.")


def _plan_file(path: str | Path) -> Path:
    folder = repository_root() / "params" / "studies"
    for file in (Path(path), repository_root() / path, folder / f"{path}.yaml"):
        if file.is_file():
            return file
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    raise SettingsError(f"{path}: no such plan; a file, or one of {_listed(known)}{closest(str(path), known)}")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=OneOfEachName)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not a YAML file: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsError(f"{file}: expected 'name: value' lines, got {type(content).__name__}")
    return content


def _check_steps(steps: Sequence[tuple[str, str]], rows: Mapping[str, Any]) -> None:
    for step in steps:
        for name in step:
            if name not in rows:
                raise ValueError(f"steps: {_no_row(name, rows)}")
        if step[0] == step[1]:
            raise ValueError(f"steps: {step[0]!r} is compared with itself")
    if len(set(steps)) < len(steps):
        raise ValueError("steps: a pair is given twice")


def _check_data(row: str, settings: Settings, data: dict[Path, tuple[str, dict[str, Any]]]) -> None:
    """Synthetic data of one folder must be asked for with the same parameters by every row."""
    if settings.dataset_type != "synthetic":
        return
    values = {name: getattr(settings, name) for name in DATA_PARAMETERS}
    first, before = data.setdefault(settings.data_root, (row, values))
    if differing := [name for name in values if values[name] != before[name]]:
        raise ValueError(
            f"rows {first!r} and {row!r} differ in {_listed(differing)} but share data_root {settings.data_root}; "
            "give each its own"
        )


def _check_pictures(steps: Sequence[tuple[str, str]], pictures: Mapping[str, str]) -> None:
    """Rows of a step are compared picture by picture; pictures are known by their dataset's folder and their names."""
    for before, after in steps:
        if pictures[before] != pictures[after]:
            raise ValueError(
                f"steps: {before!r} and {after!r} are judged on different pictures, of {pictures[before]} and "
                f"{pictures[after]}; give both the same data_root, or leave the step out"
            )


def _no_row(name: str, rows: Iterable[str]) -> str:
    return f"{name!r} is no row of the plan{closest(name, rows)}; rows: {'; '.join(rows)}"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


# --- Several trainings one after the other


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


# --- The runs of a plan


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
