"""A study: rows of settings, each trained with several seeds. What its runs are asked for, and how they are made.

A plan is a YAML file, ``params/studies/<name>.yaml``::

    experiment: ablation                 # outputs/<experiment>/…
    base: [params/small.yaml]            # parameter files of every run, later ones win
    seeds: [0, 1, 2, 3, 4]
    data_per_seed: true                  # every seed its own synthetic data, so that the pairs are independent
    rows:                                # name -> strategy and what departs from it
      S1: {strategy: S1}
      S4: {strategy: S4}
      S4, no warm-up: {strategy: S4, loc_warmup_ratio: 0.0}
      noise: {strategy: S1, method: outside_noise}       # one of `baselines.METHODS` in the strategy's place
    steps: [[S1, S4], [S4, "S4, no warm-up"]]    # paired comparisons: before, after
"""

import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import combinations
from math import nan
from pathlib import Path
from traceback import format_exception_only
from typing import Annotated, Any, Self

import pandas as pd
import torch
from pydantic import Field, model_validator
from torch.multiprocessing.spawn import ProcessException

from gainmtl_lib import settings as given
from gainmtl_lib.evaluation import evaluate
from gainmtl_lib.runs import HeldError, Run, run_status
from gainmtl_lib.settings import AnyPath, FolderName, ParameterRecord, Pattern, Settings, SettingsError, Several
from gainmtl_lib.studies.baselines import check_method, fit_method
from gainmtl_lib.studies.cluster import run_jobs
from gainmtl_lib.studies.reasons import measure_indicators, stored_indicators
from gainmtl_lib.train import fit

logger = logging.getLogger(__name__)

WITHIN = "test_within"
# What synthetic data is made from: one folder holds one choice of them.
DATA_PARAMETERS = ("num_samples", "image_size", "shortcut", "shortcut_correlation", "synthetic_seed")
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Step = Annotated[Several[str], Field(min_length=2, max_length=2)]


@dataclass(frozen=True)
class Cell:
    """One run of a study; `cue` and its `correlation` with the class are the shortcut study's, `method` a baseline."""

    row: str
    seed: int
    settings: Settings
    cue: str = ""
    correlation: float = nan
    within: str | None = None
    method: str = ""

    @property
    def name(self) -> str:
        """``S5, seed 1`` or ``lighting 0.95, S5, seed 1``."""
        cell = f"{self.cue} {self.correlation:g}, " if self.cue else ""
        return f"{cell}{self.row}, seed {self.seed}"

    @cached_property
    def run(self) -> Run:
        """Its folder."""
        return Run(self.settings.run_dir)

    def predictions(self, split: str) -> pd.DataFrame:
        """Of one split, or of ``test_within``, the test pictures whose file name matches `within`.

        Names are led by their dataset's folder: those of two synthetic datasets are the same.
        """
        table, lead = self.run.predictions, f"{self.settings.dataset_folder.name}/"
        of_split = table["split"] == ("test" if split == WITHIN else split)
        if split == WITHIN:
            of_split &= self.within is not None and table["image"].str.rpartition("/")[2].str.contains(self.within)
        table = table[of_split].reset_index(drop=True)
        return table.assign(**{name: lead + table[name].astype("string") for name in ("image", "group")})


class Plan(ParameterRecord):
    """Rows × seeds of a study, see the module. Every row's parameters are checked when the plan is made.

    `within` is a regular expression on the file name: scores of the test pictures that match are reported besides, as
    ``test_within``. With `data_per_seed` a run's ``synthetic_seed`` is the seed, its data's folder
    ``<data_root>-<seed>``. `parameters` win over `base` and lose against a row.
    """

    experiment: FolderName
    base: Several[AnyPath] = ()
    seeds: Annotated[Several[Seed], Field(min_length=1)]
    data_per_seed: bool = False
    within: Pattern | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    rows: Annotated[dict[str, Any], Field(min_length=1, description="names, each with a mapping of parameters")]
    steps: Annotated[Several[Step], Field(description="pairs of row names, [before, after]")] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        for base in self.base:
            if "strategy" in given.read_parameters(base):
                raise ValueError(f"base file {base} chooses a strategy, which the rows do; leave it out")
        self._leave_out("parameters", self.parameters, "strategy", "method")
        checked = {row: self._checked(row) for row in self.rows}
        for (first, one), (second, other) in combinations(checked.items(), 2):
            if one.run_name == other.run_name:
                raise ValueError(f"rows {first!r} and {second!r} would share the folder {one.run_name}; rename one")
            synthetic = one.dataset_type == other.dataset_type == "synthetic"
            differing = [name for name in DATA_PARAMETERS if getattr(one, name) != getattr(other, name)]
            if synthetic and one.data_root == other.data_root and differing:
                raise ValueError(
                    f"rows {first!r} and {second!r} differ in {', '.join(differing)} but share data_root "
                    f"{one.data_root}; give each its own"
                )
        for before, after in self.steps:
            if strange := [name for name in (before, after) if name not in self.rows]:
                raise ValueError(f"steps: {_no_row(strange[0], self.rows)}")
            if before == after:
                raise ValueError(f"steps: {before!r} is compared with itself")
            if self.steps.count((before, after)) > 1:
                raise ValueError("steps: a pair is given twice")
            # Rows are compared picture by picture, which are known by folder and name.
            first, second = (checked[row].dataset_folder.name for row in (before, after))
            if first != second:
                raise ValueError(
                    f"steps: {before!r} and {after!r} are judged on different pictures, of {first} and {second}; give "
                    "both the same data_root, or leave the step out"
                )
        return self

    def _leave_out(self, where: str, values: Iterable[str], *besides: str) -> None:
        own = {"seed", "variant", "experiment", *besides} | ({"synthetic_seed"} if self.data_per_seed else set())
        if reserved := own & set(values):
            raise ValueError(f"{where}: {', '.join(sorted(reserved))} comes from the plan itself; leave it out")

    def _checked(self, row: str) -> Settings:
        values = self.rows[row]
        if not isinstance(values, dict):
            raise ValueError(f"row {row!r} must be a mapping of parameters, got {values!r}")
        if (strategy := values.get("strategy")) is None:
            raise ValueError(f"row {row!r} has no strategy; give one of {', '.join(given.STRATEGY_WEIGHTS)}")
        if row in given.STRATEGY_WEIGHTS and strategy != row:
            raise ValueError(f"row {row!r} has strategy {strategy!r}; name it otherwise")
        self._leave_out(f"row {row!r}", values)
        try:
            run = self.settings(row, self.seeds[0])
            if (method := values.get("method")) is not None:
                check_method(method, run)
        except SettingsError as error:
            raise _led_by(f"row {row!r}", error) from None
        if method is not None and not run.variant:
            raise ValueError(f"row {row!r} has the method {method!r}; name it otherwise than the strategy")
        if not run.variant and row != strategy:
            raise ValueError(f"row {row!r} needs a letter or digit beside its strategy, to name its folder")
        if self.data_per_seed and run.dataset_type != "synthetic":
            raise ValueError(f"row {row!r}: data_per_seed needs dataset_type 'synthetic', got {run.dataset_type!r}")
        return run

    def settings(self, row: str, seed: int) -> Settings:
        """The parameters of one run; its ``variant`` is the row's name where that is not the bare strategy."""
        values = self.parameters | {name: value for name, value in self.rows[row].items() if name != "method"}
        own = {"experiment": self.experiment, "seed": seed, "variant": variant_of(row, str(values.get("strategy")))}
        settings = Settings.from_yaml(*self.base, **values | own)
        if not self.data_per_seed:
            return settings
        root = settings.data_root
        return settings.changed(synthetic_seed=seed, data_root=root.with_name(f"{root.name}-{seed}"))

    def cells(self) -> list[Cell]:
        """Every run, all rows of a seed before the next seed: stopped early, rows stay comparable."""
        return [
            Cell(row, seed, self.settings(row, seed), within=self.within, method=values.get("method", ""))
            for seed in self.seeds
            for row, values in self.rows.items()
        ]

    def only(self, *, rows: Iterable[str] | None = None, seeds: Iterable[int] | None = None) -> Self:
        """The part of the plan with these rows and seeds, and the steps between the rows that are left.

        `SettingsError` names a row or seed that the plan does not have.
        """
        kept, chosen = list(self.rows if rows is None else rows), tuple(self.seeds if seeds is None else seeds)
        if strange := [row for row in kept if row not in self.rows]:
            raise SettingsError(_no_row(strange[0], self.rows))
        if strange := sorted(set(chosen) - set(self.seeds)):
            raise SettingsError(f"seed {strange[0]} is not in the plan, which has {', '.join(map(str, self.seeds))}")
        steps = tuple(step for step in self.steps if set(step) <= set(kept))
        return self.changed(rows={row: self.rows[row] for row in kept}, seeds=chosen, steps=steps)


def _no_row(name: str, rows: Iterable[str]) -> str:
    return f"{name!r} is no row of the plan{given.closest(name, rows)}; rows: {'; '.join(rows)}"


def _led_by(owner: Any, error: SettingsError) -> SettingsError:
    return SettingsError("\n".join(f"{owner}: {line}" for line in str(error).split("\n")))


def load_plan(path: str | Path, **overrides: Any) -> Plan:
    """Read and check a plan: a file, or the name of one in ``params/studies``.

    Overrides are the plan's ``experiment``, ``seeds`` and ``data_per_seed``, and parameters of the runs, which win over
    the base files and lose against a row. `SettingsError` names file and key of what cannot be used.
    """
    folder = given.repository_root() / "params" / "studies"
    file = next(filter(Path.is_file, (Path(path), given.repository_root() / path, folder / f"{path}.yaml")), None)
    if file is None:
        given.in_checkout("params", "studies")
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        near = given.closest(str(path), known)
        raise SettingsError(f"{path}: no such plan; a file, or one of {', '.join(known)}{near}")
    content = given.read_parameters(file, nested=True)
    own = {name: overrides.pop(name) for name in ("experiment", "seeds", "data_per_seed") if name in overrides}
    written = content.get("parameters", {})
    if overrides and isinstance(written, dict):  # what is none, `Plan` complains about
        own["parameters"] = written | overrides
    try:
        return Plan(**content | own)
    except SettingsError as error:
        raise _led_by(file, error) from None


def variant_of(row: str, strategy: str) -> str:
    """A row's name as part of a folder's: ``S4, no warm-up`` of S4 is ``no-warm-up``, ``S4`` itself is empty."""
    rest = row[len(strategy) :] if row.lower().startswith(strategy.lower()) else row
    return re.sub(r"[^\w.]+", "-", rest.lower()).strip("-.")


# --- The runs


@dataclass
class Study:
    """What a study has so far: finished runs in the plan's order, reasons of those that failed, names of the rest."""

    runs: list[Cell] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """How many runs there are, and the name and reason of each that failed."""
        state = f"{len(self.runs)} of {len(self.runs) + len(self.failed) + len(self.missing)} runs"
        for names, what in ((self.missing, "not made yet"), (self.failed, "failed")):
            state += f", {len(names)} {what}" if names else ""
        return "; ".join([state, *(f"{name}: {reason}" for name, reason in self.failed.items())])


def run_study(
    cells: Sequence[Cell],
    *,
    reasons: bool = False,
    only_report: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
) -> Study:
    """Train and evaluate what is missing. A run that fails is named and the others go on; a second call goes on where
    the first was interrupted, and what another plan has trained with equal settings is taken as it is. With `reasons`
    each run is asked for its reasons besides (`measure_indicators`); `only_report` trains and measures nothing.

    One run after the other, or on a cluster: `workers` processes of this machine, or the workers of a Dask `scheduler`,
    see `run_jobs`.
    """
    study, ahead = Study(), [cell for cell in cells if not _is_done(cell, reasons)]
    made: dict[str, str | None] = {}
    if ahead and not only_report:
        spread = workers is not None or scheduler is not None
        make = partial(_on_cluster, workers=workers, scheduler=scheduler) if spread else _one_by_one
        made = dict(make(cells, ahead, reasons))
    for cell in cells:
        if cell in ahead and cell.name not in made:
            study.missing.append(cell.name)
        elif (failure := made.get(cell.name)) is not None:
            study.failed[cell.name] = failure
        elif cell not in ahead and (differing := "; ".join(_differences(cell))):
            told = f"{cell.run.folder} holds a run with other settings (stored and planned): {differing}"
            study.failed[cell.name] = told
        else:
            study.runs.append(cell)
    return study


def _one_by_one(cells: Sequence[Cell], ahead: Sequence[Cell], reasons: bool) -> Iterator[tuple[str, str | None]]:
    """Make the runs ahead in this process: the name of each, and why it failed, if it did."""
    spent = [float(cell.run.manifest.get("duration_s", 0)) for cell in cells if cell not in ahead]
    for done, cell in enumerate(ahead):
        minutes = (len(ahead) - done) * sum(spent) / max(len(spent), 1) / 60
        left = f", about {max(minutes, 1):.0f} min left" if spent else ""
        number = cells.index(cell) + 1
        logger.info("run %d of %d: %s%s", number, len(cells), cell.name, left)
        started = time.monotonic()
        try:
            failure = make_run(cell, reasons)
        except HeldError as error:
            failure = str(error)
        if failure is None:
            spent.append(time.monotonic() - started)
        else:
            logger.warning("run %d of %d failed: %s: %s", number, len(cells), cell.name, failure)
        yield cell.name, failure


def _on_cluster(
    cells: Sequence[Cell], ahead: Sequence[Cell], reasons: bool, **place: Any
) -> Iterator[tuple[str, str | None]]:
    """The same side by side, in the order in which they come to their end."""
    waiting, before, started = list(ahead), len(cells) - len(ahead), time.monotonic()
    folders = {"writes": {cell.settings.outputs_dir for cell in ahead}}
    folders["reads"] = {cell.settings.data_root for cell in ahead}
    jobs = run_jobs(
        partial(make_run, reasons=reasons), lambda: waiting.pop(0) if waiting else None, again=(HeldError,),
        **folders, **place,
    )  # fmt: skip
    with closing(jobs):
        for number, done in enumerate(jobs, start=1):
            left = len(ahead) - number
            minutes = left * (time.monotonic() - started) / number / 60
            told = f"; {left} left, about {max(minutes, 1):.0f} min" if left else ""
            where = f" on {done.worker}" if done.worker else ""
            if done.failure is None:
                told = f"{done.job.name}, {done.seconds:.0f} s{where}{told}"
                logger.info("run %d of %d: %s", before + number, len(cells), told)
            else:
                told = f"{done.job.name}{where}: {done.failure}{told}"
                logger.warning("run %d of %d failed: %s", before + number, len(cells), told)
            yield done.job.name, done.failure


def make_run(cell: Cell, reasons: bool) -> str | None:
    """Train and evaluate what is missing of one run; why it failed, or None. `HeldError` where another process does."""
    try:
        run = fit_method(cell.settings, cell.method) if cell.method else fit(cell.settings)
        evaluate(run)
        if reasons:
            measure_indicators(run)
    except HeldError:
        raise
    except (given.UserError, torch.OutOfMemoryError) as error:
        return str(error)
    except (RuntimeError, MemoryError, OSError, ProcessException) as error:  # of the device, a loader, a file server
        logger.exception("%s stopped", cell.name)
        told = "".join(format_exception_only(error))
        # Its first line; of one of several processes, which sends a traceback, that of the last error in it.
        return (re.findall(r"^[\w.]+: .+", told, re.MULTILINE) or [told.strip()])[-1]
    return None


def _is_done(cell: Cell, reasons: bool) -> bool:
    evaluated = run_status(cell.settings.run_dir) == "complete" and cell.run.is_evaluated
    return evaluated and (not reasons or stored_indicators(cell.run) is not None)


def _differences(cell: Cell) -> list[str]:
    lines, stored = cell.run.settings.differences(cell.settings), cell.run.manifest.get("method", "")
    return lines + ([] if stored == cell.method else [f"method: {stored!r} and {cell.method!r}"])
