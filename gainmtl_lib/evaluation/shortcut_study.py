"""The shortcut study: trainings under a cue that goes along with the class, then the same question put to each.

Every run is trained, evaluated and asked for its indicators; what is there already is taken as it is, so that an
interrupted study goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from gainmtl_lib.evaluation.evaluate import evaluate
from gainmtl_lib.evaluation.indicators import NAMES, measure_indicators, stored_indicators
from gainmtl_lib.evaluation.paired import steps_table
from gainmtl_lib.evaluation.planned import is_done, split_table
from gainmtl_lib.evaluation.runner import Job, run_jobs
from gainmtl_lib.evaluation.shortcut_settings import NO_SHORTCUT, PlannedCell, ShortcutStudySettings
from gainmtl_lib.files import atomic_path
from gainmtl_lib.runs import Run
from gainmtl_lib.settings import Settings
from gainmtl_lib.training.fit import fit

KEYS = ("cue", "correlation", "seed", "strategy")
TABLE_FILE = "study.csv"


@dataclass
class Study:
    """What a study has so far.

    Attributes:
        settings: of the study.
        runs: finished, evaluated and asked, in the grid's order.
        failed: by the run's name the reason.
        missing: names of runs that have not been made.
    """

    settings: ShortcutStudySettings
    runs: list[tuple[PlannedCell, Run]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def table(self) -> pd.DataFrame:
        """One row per run: ``cue``, ``correlation``, ``seed``, ``strategy`` and the value of every indicator.

        An indicator that a strategy or the data lacks is NaN; see `indicators.NAMES`.
        """
        rows = []
        for cell, run in self.runs:
            stored: Mapping = stored_indicators(run) or {"indicators": {}}
            values = {name: (stored["indicators"].get(name) or {}).get("value") for name in NAMES}
            rows.append({key: getattr(cell, key) for key in KEYS} | values)
        return pd.DataFrame(rows, columns=[*KEYS, *NAMES]).astype(dict.fromkeys(NAMES, float))

    @property
    def state(self) -> str:
        """How many runs there are, and the name and reason of each that failed."""
        total = len(self.runs) + len(self.failed) + len(self.missing)
        parts = [f"{len(self.runs)} of {total} runs"]
        parts += [f"{len(self.missing)} not made yet"] if self.missing else []
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        return "; ".join([", ".join(parts), *(f"{name}: {reason}" for name, reason in self.failed.items())])


def run_study(settings: ShortcutStudySettings) -> Study:
    """Train, evaluate and ask every run of the grid. A run that fails is named and the others go on.

    Raises:
        SettingsError: settings of some run cannot be used; nothing has been trained then.
    """
    cells, study = {cell.name: cell for cell in settings.cells()}, Study(settings)
    jobs = [Job(name, cell.strategy, cell.settings, _is_done(cell)) for name, cell in cells.items()]
    runs = run_jobs(jobs, _asked, failures=study.failed)
    study.runs += [(cells[name], run) for name, run in runs.items()]
    write_table(study)
    return study


def read_study(settings: ShortcutStudySettings) -> Study:
    """What earlier calls of `run_study` left; nothing is trained or measured.

    Raises:
        SettingsError: settings of some run cannot be used.
    """
    study = Study(settings)
    for cell in settings.cells():
        run = Run(cell.settings.run_dir)
        if not _is_done(cell):
            study.missing.append(cell.name)
        elif differing := run.settings.differences(cell.settings):
            study.failed[cell.name] = f"{run.folder} was trained with other settings: {'; '.join(differing)}"
        else:
            study.runs.append((cell, run))
    return study


def study_steps(study: Study, split: str) -> pd.DataFrame:
    """Strategies compared over the runs with a cue to follow: every one with S1, and S7 with S5.

    A pair are two runs of one cell and seed; pairs take the place that seeds have in `steps_table`. Accuracy alone.
    Cells that show the same parts (those of one synthetic seed, all of given data) are not independent: their pictures
    keep their names, so that they are resampled together.

    Args:
        study: with its runs.
        split: ``test`` or ``test_shift``.
    """
    rows: dict[str, dict[int, pd.DataFrame]] = {}
    numbers: dict[tuple[str, float, int], int] = {}
    for cell, run in study.runs:
        if cell.correlation > NO_SHORTCUT:
            number = numbers.setdefault((cell.cue, cell.correlation, cell.seed), len(numbers))
            drawn = "given" if study.settings.data_root is not None else f"seed {cell.seed}"
            table = split_table(run, split, lead=drawn)
            if len(table):
                rows.setdefault(cell.strategy, {})[number] = table
    strategies = sorted({cell.strategy for cell, _ in study.runs})
    steps = [("S1", other) for other in strategies if other != "S1" and "S1" in strategies]
    steps += [("S5", "S7")] if {"S5", "S7"} <= set(strategies) else []
    return steps_table(rows, steps, "accuracy")


def write_table(study: Study) -> None:
    """Its table as ``study.csv`` in the study's folder, atomically."""
    with atomic_path(study.settings.folder / TABLE_FILE) as path:
        study.table.to_csv(path, index=False, float_format="%.4f")


def _asked(settings: Settings) -> Run:
    run = fit(settings)
    evaluate(run)
    measure_indicators(run)
    return run


def _is_done(cell: PlannedCell) -> bool:
    return is_done(cell.settings) and stored_indicators(Run(cell.settings.run_dir)) is not None
