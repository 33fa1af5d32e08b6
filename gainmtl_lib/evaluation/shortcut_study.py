"""The shortcut study: trainings under a cue that goes along with the class, then the same question put to each.

Every run is trained, evaluated and asked for its indicators; what is there already is taken as it is, so that an
interrupted study goes on where it stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

import pandas as pd

from gainmtl_lib.evaluation.evaluate import evaluate
from gainmtl_lib.evaluation.indicators import NAMES, measure_indicators, stored_indicators
from gainmtl_lib.evaluation.paired import steps_table
from gainmtl_lib.evaluation.planned import REASONS, is_done
from gainmtl_lib.evaluation.shortcut_settings import NO_SHORTCUT, PlannedCell, ShortcutStudySettings
from gainmtl_lib.files import atomic_path
from gainmtl_lib.runs import Run
from gainmtl_lib.training.fit import fit

logger = logging.getLogger(__name__)

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
    cells, study, spent = settings.cells(), Study(settings), []
    ahead = [cell.strategy for cell in cells if not _is_done(cell)]
    for number, cell in enumerate(cells, start=1):
        done = _is_done(cell)
        logger.info("run %d of %d: %s%s", number, len(cells), cell.name, left_over(spent, ahead))
        started = time.monotonic()
        try:
            run = fit(cell.settings)
            evaluate(run)
            measure_indicators(run)
        except REASONS as error:
            study.failed[cell.name] = str(error)
            logger.warning("%s failed: %s", cell.name, error)
        else:
            study.runs.append((cell, Run(run.folder)))  # anew: this one holds a model
        if not done:
            ahead.remove(cell.strategy)
            spent.append((cell.strategy, time.monotonic() - started))
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

    Args:
        study: with its runs.
        split: ``test`` or ``test_shift``.
    """
    rows: dict[str, dict[int, pd.DataFrame]] = {}
    numbers: dict[tuple[str, float, int], int] = {}
    for cell, run in study.runs:
        if cell.correlation > NO_SHORTCUT:
            table = run.predictions
            table = table[table["split"] == split].reset_index(drop=True)
            number = numbers.setdefault((cell.cue, cell.correlation, cell.seed), len(numbers))
            if len(table):
                # Pictures of two cells have the same names and are not the same pictures.
                names = {name: f"{number}/" + table[name].astype("string") for name in ("image", "group")}
                rows.setdefault(cell.strategy, {})[number] = table.assign(**names)
    strategies = sorted({cell.strategy for cell, _ in study.runs})
    steps = [("S1", other) for other in strategies if other != "S1" and "S1" in strategies]
    steps += [("S5", "S7")] if {"S5", "S7"} <= set(strategies) else []
    return steps_table(rows, steps, "accuracy")


def write_table(study: Study) -> None:
    """Its table as ``study.csv`` in the study's folder, atomically."""
    with atomic_path(study.settings.folder / TABLE_FILE) as path:
        study.table.to_csv(path, index=False, float_format="%.4f")


def left_over(spent: Sequence[tuple[str, float]], ahead: Sequence[str]) -> str:
    """``; about 31 min left``, from what runs took so far; empty before the first.

    Args:
        spent: strategy and seconds of each run made in this call.
        ahead: strategy of each run still to be made; one that has not been timed counts as the mean of all.
    """
    if not spent or not ahead:
        return ""
    overall = mean(seconds for _, seconds in spent)
    by_strategy = {name: mean(s for other, s in spent if other == name) for name, _ in spent}
    minutes = sum(by_strategy.get(name, overall) for name in ahead) / 60
    return f"; about {minutes:.0f} min left" if minutes >= 1 else "; less than a minute left"


def _is_done(cell: PlannedCell) -> bool:
    return is_done(cell.settings) and stored_indicators(Run(cell.settings.run_dir)) is not None
