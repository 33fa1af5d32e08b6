"""Every parameter of the shortcut study, in one frozen flat record, and the run of each cell of its grid.

A cell is a cue and its correlation with the class. Without data of its own the study draws synthetic data per cell and
seed: equal surfaces and defects in every cell, so that cells differ by their cue alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator
from rich.console import Console
from rich.markup import escape

from gainmtl_lib.evaluation import evaluate
from gainmtl_lib.figures import enlarged_share, overlay, save_figure
from gainmtl_lib.labels import resize_image, resize_mask
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.readers import read_image, read_mask
from gainmtl_lib.runs import Run, RunError, atomic_path
from gainmtl_lib.settings import (
    AnyPath,
    FolderName,
    ImageSize,
    ParameterRecord,
    Probability,
    Settings,
    SettingsError,
    Strategy,
)
from gainmtl_lib.stats import BETTER, NOT_DISTINGUISHABLE, NOT_TESTED, WORSE, steps_table
from gainmtl_lib.studies.plans import Job, is_done, run_jobs, split_table
from gainmtl_lib.studies.reasons import (
    BY_CHANCE,
    LARGE_DROP,
    MISLED,
    NAMES,
    SIGNS,
    TOO_FEW,
    WARNED,
    measure_indicators,
    stored_indicators,
    warnings_table,
)
from gainmtl_lib.synthetic.cues import Cue, read_cue
from gainmtl_lib.synthetic.planting import RECORD as PLANTED_FILE
from gainmtl_lib.train import fit
from gainmtl_lib.wording import frame_table, markdown_table

NO_SHORTCUT = 0.5
"""Correlation at which the cue says nothing about the class: the control of every cue."""


def _as_tuple(value: Any) -> Any:
    """A list, or a single value, which needs no brackets on the command line."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Several = BeforeValidator(_as_tuple)
AtLeastOne = Field(min_length=1)


@dataclass(frozen=True)
class PlannedCell:
    """One run of the study.

    Attributes:
        cue: that goes along with the class.
        correlation: share of defective pictures with the cue, and of normal ones without.
        strategy: S1 … S7.
        seed: of training, and of synthetic data.
        settings: of the run.
    """

    cue: str
    correlation: float
    strategy: str
    seed: int
    settings: Settings

    @property
    def name(self) -> str:
        """As in ``lighting 0.95, S5, seed 1``."""
        return f"{self.cue} {self.correlation:g}, {self.strategy}, seed {self.seed}"


class ShortcutStudySettings(ParameterRecord):
    """Parameters of the study. Strict: unknown names and wrong types raise `SettingsError`.

    Those of the training are in the file that `base` names, or the files, of which later ones win; what is given here
    besides wins over them (None leaves it). `image_counterfactual` is for S7 alone; the others edit nothing.
    """

    # study
    experiment: FolderName = "shortcut"
    base: Annotated[tuple[AnyPath, ...], Several, Field(min_length=1, validate_default=True)] = (
        Path("params/small.yaml"),
        Path("params/few_pictures.yaml"),
    )
    cues: Annotated[tuple[Cue, ...], Several, AtLeastOne] = ("mark", "lighting", "border")
    correlations: Annotated[tuple[Probability, ...], Several, AtLeastOne] = (0.95,)
    strategies: Annotated[tuple[Strategy, ...], Several, AtLeastOne] = ("S1", "S3", "S7")
    image_counterfactual: Annotated[float, Field(gt=0, le=1)] | None = None
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Several, AtLeastOne] = (0,)
    outputs_dir: AnyPath = Field(default=Path("outputs"), validate_default=True)
    data_root: AnyPath | None = None

    # in place of the base's
    num_samples: Annotated[int, Field(ge=10)] | None = None
    image_size: ImageSize | None = None
    backbone_arch: str | None = None
    map_stride: Literal[4, 8, 16, 32] | None = None
    num_epochs: Annotated[int, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(gt=0)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    device: str | None = None
    num_workers: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("cues", "correlations", "strategies", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a value twice: {', '.join(map(str, values))}")
        if min(self.correlations) < NO_SHORTCUT:
            raise ValueError(
                f"correlations must be at least {NO_SHORTCUT:g}, at which the cue says nothing about the class, got "
                f"{min(self.correlations):g}; below, the cue goes along with the normal class and means the same the "
                "other way round"
            )
        if self.data_root is not None and len(self.cues) * len(self.correlations) > 1:
            raise ValueError(
                "data_root holds one cue at one correlation, "
                f"but cues are {', '.join(self.cues)} and correlations {', '.join(map(str, self.correlations))}; "
                "give one of each, or leave data_root out to draw synthetic data"
            )
        return self

    @property
    def folder(self) -> Path:
        """``outputs/<experiment>``, above the runs and the study's table."""
        return self.outputs_dir / self.experiment

    def cells(self) -> list[PlannedCell]:
        """Every run of the grid, in the order in which they are trained: cell by cell, all strategies of each.

        Raises:
            SettingsError: the base cannot be used, or `data_root` holds another cue than asked for, or none.
        """
        return [
            PlannedCell(cue, correlation, strategy, seed, self._run(cue, correlation, strategy, seed))
            for seed in self.seeds
            for cue in self.cues
            for correlation in self.correlations
            for strategy in self.strategies
        ]

    def _run(self, cue: str, correlation: float, strategy: str, seed: int) -> Settings:
        cell = f"{cue}-{correlation:g}"
        if self.data_root is not None:
            data = _planted(self.data_root, cue=cue, correlation=correlation) | {"data_root": self.data_root}
        else:
            data = {
                "dataset_type": "synthetic",
                "data_root": self.outputs_dir / "data" / self.experiment / f"{cell}-{seed}",
                "synthetic_seed": seed,
                "shortcut": cue,
                "shortcut_correlation": correlation,
            }
        own = {"strategy": strategy, "seed": seed, "experiment": cell, "outputs_dir": self.folder}
        if strategy == "S7" and self.image_counterfactual is not None:
            own["image_counterfactual"] = self.image_counterfactual
        return Settings.from_yaml(*self.base, **self._departures(), **data, **own)

    def _departures(self) -> dict[str, Any]:
        named = ("experiment", "outputs_dir", "data_root", "image_counterfactual")
        given = {name: getattr(self, name) for name in type(self).model_fields if name in Settings.model_fields}
        return {name: value for name, value in given.items() if value is not None and name not in named}


def _planted(root: Path, *, cue: str, correlation: float) -> dict[str, Any]:
    """How the planted data is to be read, as its record says; a base made for other data would read it otherwise.

    Raises:
        SettingsError: there is no record, it cannot be read, or it is of another cue or correlation.
    """
    path = root / PLANTED_FILE
    if not path.is_file():
        raise SettingsError(
            f"data_root {root}: holds no {PLANTED_FILE}, so that its cue is unknown; plant one first: "
            f"gainmtl data plant SOURCE {root} --cue {cue} --correlation {correlation:g}"
        )
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        stored = None
    if not isinstance(stored, dict):
        raise SettingsError(f"{path}: is damaged, expected 'name: value' lines; plant the data again")
    found = stored.get("cue"), stored.get("correlation")
    if found != (cue, correlation):
        raise SettingsError(
            f"{path}: the cue is {found[0]} at correlation {found[1]}, but cues is {cue} and correlations "
            f"{correlation:g}; write what the data holds"
        )
    return {"dataset_type": "generic"} | (stored.get("read_with") or {})


# --- The shortcut study


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


# --- What each strategy keeps of its accuracy when the cue is reversed.


GOAL = 0.02
"""Accuracy that the best strategy may lose when the cue is reversed."""
MARGIN = 1e-9
"""For rounding: 0.86 − 0.84 is more than 0.02."""


def followed(table: pd.DataFrame) -> pd.DataFrame:
    """The runs whose cue goes along with the class, and that were tested with it reversed.

    Of the cells and seeds that every strategy has: means over different cells could not be compared.
    """
    rows = table[(table["correlation"] > NO_SHORTCUT) & table["drop"].notna()]
    asked = rows["strategy"].drop_duplicates()
    of_cell = rows.groupby(["cue", "correlation", "seed"])["strategy"].transform("size")
    return rows[of_cell == len(asked)]


def by_strategy(table: pd.DataFrame) -> pd.DataFrame:
    """What each strategy keeps, over the runs with a cue to follow.

    Returns:
        Index ``strategy``; ``runs``; mean ``accuracy`` as in training, ``accuracy_shift`` with the cue reversed and its
        ``worst_shift``; mean ``drop`` and ``worst_drop``; mean ``cam_iou``; ``met``, in how many runs the drop is at
        most `GOAL`.
    """
    rows = followed(table)
    return (
        rows.assign(met=rows["drop"] <= GOAL + MARGIN)
        .groupby("strategy")
        .agg(
            runs=("drop", "size"),
            accuracy=("accuracy", "mean"),
            accuracy_shift=("accuracy_shift", "mean"),
            worst_shift=("accuracy_shift", "min"),
            drop=("drop", "mean"),
            worst_drop=("drop", "max"),
            cam_iou=("cam_iou", "mean"),
            met=("met", "sum"),
        )
    )


def best_strategy(table: pd.DataFrame) -> str | None:
    """The one that is most accurate with the cue reversed, over the runs with a cue to follow; the simplest of ties."""
    means = by_strategy(table)["accuracy_shift"]
    return None if means.empty else str(means.idxmax())


# --- What a shortcut study says, in sentences that follow from its numbers alone, whatever they are.


MOVED = 0.05
"""CAM-IoU by which a strategy's map must rise to count as moved onto the defect."""
HARDER = 0.05
"""Drop at the control's correlation from which the reversed test is called harder by itself."""

Kept = dict[str, dict[str, float]]
"""By strategy the columns of `by_strategy`."""

ATTENTION, EDITS, BOTH = ("S1", "S3"), ("S5", "S7"), ("S1", "S7")


def conclusion(table: pd.DataFrame, *, shifted: pd.DataFrame, same: pd.DataFrame, warnings: pd.DataFrame) -> list[str]:
    """The study's answer, a sentence or two per question.

    Args:
        table: of `Study.table`.
        shifted: of `study_steps` on ``test_shift``.
        same: likewise on ``test``.
        warnings: of `warnings_table`.
    """
    kept: Kept = by_strategy(table).to_dict("index")  # type: ignore[assignment]
    if not kept:
        return [
            f"No cell with a cue to follow (a correlation above {NO_SHORTCUT:g}) and a test with it reversed has been "
            "finished by every strategy: nothing can be concluded yet."
        ]
    said = [_keeps(kept), _control(table)]
    said += [_effect("Attention supervision alone", ATTENTION, shifted) + _map_moved(kept, shifted)]
    said += [_effect("Image counterfactuals", EDITS, shifted), _effect("The whole of S7", BOTH, shifted)]
    said += [_price(same), _unclear(shifted), _goal(table), *_warned(warnings)]
    return [sentence for sentence in said if sentence]


def _keeps(kept: Kept) -> str:
    best = max(kept, key=lambda name: kept[name]["accuracy_shift"])
    most, least = (extreme(kept, key=lambda name: kept[name]["drop"]) for extreme in (max, min))
    row = kept[best]
    said = (
        f"With a cue to follow, {best} is the most accurate once the cue is reversed: {row['accuracy_shift']:.2f} on "
        f"average and {row['worst_shift']:.2f} at worst, {row['accuracy']:.2f} as in training "
        f"({_count(int(row['runs']), 'run')})."
    )
    if most != best and kept[most]["drop"] > GOAL:
        said += f" {most} loses most: from {kept[most]['accuracy']:.2f} to {kept[most]['accuracy_shift']:.2f}."
    if least != best:
        said += (
            f" {least} loses least ({kept[least]['drop']:.2f}), but is right in {kept[least]['accuracy_shift']:.2f} "
            "of the pictures only."
        )
    return said


def _control(table: pd.DataFrame) -> str:
    drops = table.loc[table["correlation"] <= NO_SHORTCUT, "drop"].dropna()
    if drops.empty:
        return ""
    mean = float(drops.mean())
    if mean >= HARDER:
        return (
            f"Where the cue says nothing about the class, accuracy falls by {mean:.2f} on average all the same: that "
            "part of a drop is not the cue's."
        )
    return (
        f"Where the cue says nothing about the class, accuracy changes by {_signed(-mean)} on average: reversing it "
        "makes little difference by itself."
    )


def _effect(what: str, step: tuple[str, str], steps: pd.DataFrame) -> str:
    """What one step did to the accuracy with the cue reversed; empty where the study lacks it."""
    row = _row(step, steps)
    if row is None:
        return ""
    verdict = {
        BETTER: "helped",
        WORSE: "did harm",
        NOT_DISTINGUISHABLE: "made no difference that can be told from chance",
        NOT_TESTED: "was not tested",
    }[str(row["verdict"])]
    return f"{what} ({'→'.join(step)}) {verdict}: accuracy with the cue reversed {_number(row)}."


def _map_moved(kept: Kept, steps: pd.DataFrame) -> str:
    """Whether the better picture came with a better reason; empty where the study lacks one of both."""
    row = _row(ATTENTION, steps)
    if row is None or not set(ATTENTION) <= set(kept):
        return ""
    before, after = (kept[name]["cam_iou"] for name in ATTENTION)
    told, helped = f"CAM-IoU {before:.2f} → {after:.2f}", row["verdict"] == BETTER
    if row["verdict"] == NOT_TESTED and after - before >= MOVED:
        return f" The map moved onto the defect ({told})."
    if after - before >= MOVED:
        return (
            f" The map moved onto the defect with it ({told})."
            if helped
            else f" Yet the map moved onto the defect ({told}): a better picture is no proof of a better reason."
        )
    return "" if helped or after != after or before != before else f" Nor did it move the map onto the defect ({told})."


def _price(steps: pd.DataFrame) -> str:
    row = _row(BOTH, steps)
    if row is None:
        return ""
    verdict = {
        BETTER: "S7 is also more accurate",
        WORSE: "S7 pays for it",
        NOT_DISTINGUISHABLE: "S7's accuracy is not distinguishable from S1's",
        NOT_TESTED: "the accuracies of S7 and S1 were not tested",
    }[str(row["verdict"])]
    return f"On the distribution of the training {verdict}: {_number(row)}."


def _unclear(steps: pd.DataFrame) -> str:
    """Steps from S1 that the sentences above do not name, and that so few runs cannot decide."""
    named = {"→".join(step) for step in (ATTENTION, BOTH)}
    names = [
        row["step"].split("→")[1]
        for row in steps.to_dict("records")
        if row["verdict"] == NOT_DISTINGUISHABLE and row["step"].startswith("S1→") and row["step"] not in named
    ]
    return f"Not distinguishable from S1 with the cue reversed, with so few runs: {', '.join(names)}." if names else ""


def _goal(table: pd.DataFrame) -> str:
    best = best_strategy(table)
    rows = followed(table)
    rows = rows[rows["strategy"] == best]
    missed = rows[rows["drop"] > GOAL + MARGIN]
    head = f"The goal, at most {GOAL * 100:.0f} points of accuracy lost by the best strategy ({best}), is "
    if missed.empty:
        return f"{head}met in {len(rows)} of {_count(len(rows), 'run')}."
    several = len(set(rows["seed"])) > 1
    names = [
        f"{row['cue']} {row['correlation']:g}"
        + (f" seed {row['seed']}" if several else "")
        + f" ({row['accuracy']:.2f} to {row['accuracy_shift']:.2f})"
        for row in missed.to_dict("records")
    ]
    return f"{head}missed in {len(missed)} of {_count(len(rows), 'run')}: {', '.join(names)}."


def _warned(warnings: pd.DataFrame) -> Iterator[str]:
    known = [row for row in warnings.to_dict("records") if row["rank_correlation"] == row["rank_correlation"]]
    judged = [row for row in known if row["verdict"] != TOO_FEW]
    if not judged:
        if known:
            yield (
                f"Which indicator warns cannot be said from {_count(max(row['runs'] for row in known), 'run')} in "
                f"{_count(max(row['cells'] for row in known), 'cell')}; the highest rank correlation with the drop is "
                f"{_ranked(known[0])}."
            )
        return
    warned, misled = ([_ranked(row) for row in judged if row["verdict"] == word] for word in (WARNED, MISLED))
    chance = [
        f"{row['indicator']} ({_signed(row['rank_correlation'], 2)})" for row in judged if row["verdict"] == BY_CHANCE
    ]
    if warned:
        others = f"; so would {', '.join(warned[1:])}" if len(warned) > 1 else ""
        yield f"Without a shifted test set, {warned[0]} would have warned best{others}."
    else:
        yield "Without a shifted test set, no indicator can be shown to have warned."
    if misled:
        yield f"Misleading, because runs that look better by it lost more: {', '.join(misled)}."
    if chance:
        yield f"Not distinguishable from chance (rank correlation): {', '.join(chance)}."


def _ranked(row: Mapping[Any, Any]) -> str:
    """``energy on the cue (0.81, 0.60 to 0.93, 16 runs)``."""
    ends = "" if row["low"] != row["low"] else f", {_signed(row['low'], 2)} to {_signed(row['high'], 2)}"
    return f"{row['indicator']} ({_signed(row['rank_correlation'], 2)}{ends}, {_count(int(row['runs']), 'run')})"


def _row(step: tuple[str, str], steps: pd.DataFrame) -> Mapping[Any, Any] | None:
    rows = [row for row in steps.to_dict("records") if row["step"] == "→".join(step)]
    return rows[0] if rows and rows[0]["difference"] == rows[0]["difference"] else None


def _number(row: Mapping[Any, Any]) -> str:
    """Difference, interval and what it rests on."""
    number = _signed(row["difference"])
    if row["low"] == row["low"]:
        low, high = max(row["low"], -1), min(row["high"], 1)  # accuracies differ by no more
        # The interval is of this step alone, the verdict of all steps together: both numbers are told.
        return (
            f"{number} (95 % interval {_signed(low)} to {_signed(high)}; {_count(int(row['seeds']), 'pair')} of runs; "
            f"p {_p(row['p_holm'])} with Holm's correction over the steps)"
        )
    if row["drawn_low"] != row["drawn_low"]:
        return f"{number} (one training each)"
    ends = f"{_signed(row['drawn_low'])} to {_signed(row['drawn_high'])}"
    return f"{number} ({ends} over other pictures; one training each, so that other seeds are unknown)"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _signed(value: float, digits: int = 3) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # no minus zero


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# --- Figures of the shortcut study


SAME, REVERSED = "#0072b2", "#d55e00"
VERDICT_COLORS = {WARNED: "#0072b2", MISLED: "#d55e00", BY_CHANCE: "#9a9a9a", TOO_FEW: "#d4d4d4"}
CHANCE = 0.5


def kept_figure(table: pd.DataFrame) -> Figure:
    """Accuracy of each strategy as in training and with the cue reversed, joined by a line; small dots are single runs.

    Args:
        table: of `Study.table`; shown are the runs with a cue to follow.
    """
    rows, means = followed(table), by_strategy(table)
    figure = Figure(figsize=(7.2, 0.6 * len(means) + 1.4), layout="constrained")
    axis = figure.subplots()
    axis.axvline(CHANCE, color="k", lw=0.8, ls=":")
    for place, (name, mean) in enumerate(means.iterrows()):
        runs = rows[rows["strategy"] == name]
        axis.plot([mean["accuracy_shift"], mean["accuracy"]], [place] * 2, color="#bbbbbb", lw=3, zorder=1)
        for column, color in (("accuracy", SAME), ("accuracy_shift", REVERSED)):
            axis.scatter(runs[column], [place] * len(runs), s=14, color=color, alpha=0.45, lw=0, zorder=2)
            axis.scatter(mean[column], place, s=95, color=color, edgecolor="white", zorder=3)
        _end_labels(axis, place, mean["accuracy"], mean["accuracy_shift"])
    axis.scatter([], [], s=60, color=SAME, label="as in training")
    axis.scatter([], [], s=60, color=REVERSED, label="cue reversed")
    axis.set_yticks(range(len(means)), [str(name) for name in means.index])
    axis.set(xlim=(-0.06, 1.08), ylim=(len(means) - 0.5, -0.7), xlabel="accuracy (dotted: a coin)")
    axis.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    return figure


def _end_labels(axis: Axes, place: int, same: float, shift: float) -> None:
    """The two means as numbers above their dots, drawn apart where these are close."""
    right = same >= shift
    for value, color, outwards in ((same, SAME, right), (shift, REVERSED, not right)):
        offset, side = (2, "left") if outwards else (-2, "right")
        axis.annotate(
            f"{value:.2f}", (value, place), (offset, 7), textcoords="offset points", ha=side, fontsize=10, color=color,
            fontweight="bold",
        )  # fmt: skip


def reversed_heatmap(table: pd.DataFrame) -> Figure:
    """Accuracy with the cue reversed, strategy by cue and correlation, mean over seeds; white is a coin's.

    Args:
        table: of `Study.table`.
    """
    cells = table.dropna(subset="accuracy_shift").groupby("cue", sort=False)["correlation"].unique()
    order = [(str(cue), float(correlation)) for cue, found in cells.items() for correlation in sorted(found)]
    grid = table.pivot_table(index="strategy", columns=["cue", "correlation"], values="accuracy_shift")[order]
    figure = Figure(figsize=(max(0.6 * grid.shape[1] + 2.2, 3.4), 0.46 * len(grid) + 1.5), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(grid, cmap="RdBu", norm=TwoSlopeNorm(CHANCE, 0, 1), aspect="auto")
    for (row, column), value in np.ndenumerate(grid.to_numpy()):
        dark = abs(value - CHANCE) > 0.29
        text = "–" if np.isnan(value) else f"{value:.2f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axis.set_yticks(range(len(grid)), [str(name) for name in grid.index])
    _cell_labels(axis, order)
    figure.colorbar(image, ax=axis, label="accuracy, cue reversed", ticks=[0, 0.5, 1], pad=0.02)
    return figure


def _cell_labels(axis: Axes, order: Sequence[tuple[str, float]]) -> None:
    """Correlations below, the cue once above its columns, a line between two cues."""
    axis.set_xticks(range(len(order)), [f"{correlation:g}" for _, correlation in order])
    axis.set_xlabel(f"correlation of the cue with the class\n({NO_SHORTCUT:g}: nothing to follow)")
    axis.tick_params(length=0)
    for cue in dict.fromkeys(cue for cue, _ in order):
        columns = [place for place, (other, _) in enumerate(order) if other == cue]
        axis.text(float(np.mean(columns)), -0.62, cue, ha="center", va="bottom", fontsize=10, fontweight="bold")
        if columns[0]:
            axis.axvline(columns[0] - 0.5, color="white", lw=4)


def warnings_figure(warnings: pd.DataFrame) -> Figure:
    """Each indicator's rank correlation with the drop, and its interval: right of the line it warns.

    Args:
        warnings: of `warnings_table`.
    """
    rows = warnings[warnings["rank_correlation"].notna()]
    figure = Figure(figsize=(7.6, 0.36 * len(rows) + 1.5), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="k", lw=0.8)
    for place, row in enumerate(rows.to_dict("records")):
        color = VERDICT_COLORS[row["verdict"]]
        axis.barh(place, row["rank_correlation"], color=color, alpha=0.75, height=0.62)
        if row["low"] == row["low"]:
            axis.plot([row["low"], row["high"]], [place] * 2, color="k", lw=1.2)
    axis.set_yticks(range(len(rows)), [_warning_label(row) for row in rows.to_dict("records")], fontsize=9)
    axis.set(xlim=(-1.03, 1.03), ylim=(len(rows) - 0.4, -0.6))
    axis.set_xlabel("rank correlation with the accuracy lost when the cue is reversed")
    for place, side, text in ((-0.03, "right", "← misleads"), (0.03, "left", "warns →")):
        axis.text(place, 1.01, text, ha=side, fontsize=9, transform=axis.get_xaxis_transform())
    for word in dict.fromkeys(rows["verdict"]):
        axis.barh([np.nan], [np.nan], color=VERDICT_COLORS[word], alpha=0.75, label=word)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)
    return figure


def _warning_label(row: dict) -> str:
    return f"{row['indicator']} ({row['warns']}; {row['runs']} runs)"


# --- The shortcut study in one figure


FIRST = "S1"
SIDE = 320
"""Pixels of a drawn picture."""
SHOWN = {
    "test": (1, "as in training: a defect, and the cue"),
    "test_shift": (0, "cue reversed: no defect, but the cue"),
}
"""By split the label of the picture to show, and what it shows."""
SPLIT_COLORS = {"test": SAME, "test_shift": REVERSED}
CONTOUR_AT = 0.5


def opening_figure(study: Study, *, cue: str = "mark") -> Figure:
    """Accuracies of S1 and of the most accurate strategy with the cue reversed; beside them two test pictures with the
    cue, each with both models' deciding CAM and verdict.

    The pictures are picked by the data alone: the defective one with the largest annotated defect, then the first
    normal one of the reversed test. The map is on its absolute scale; its contour runs at half of it, and the defect
    is outlined.

    Args:
        study: with runs of S1 and another strategy in one cell with a cue to follow.
        cue: whose cell the pictures are of, where it was studied; otherwise the first.

    Raises:
        RunError: there is no such cell, or no picture with the cue in it.
    """
    runs = opening_runs(study, cue=cue)
    means = by_strategy(study.table).loc[list(runs)]
    figure = Figure(figsize=(10.4, 5.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.45])  # type: ignore[misc]
    _bars(left.subplots(), means)
    axes = right.subplots(len(SHOWN), len(runs))
    for column, (name, run) in enumerate(runs.items()):
        for row, split in enumerate(SHOWN):
            _picture(axes[row, column], run, split)
            axes[row, column].set_title(f"{name} {_verdict(run, split)}", fontsize=11, fontweight="bold")
    for row, (_, what) in enumerate(SHOWN.values()):
        axes[row, 0].set_ylabel(what.replace(": ", ":\n"), fontsize=10)
    right.supxlabel("colours and white line: the map that decides; cyan: the defect", fontsize=9)
    return figure


def opening_runs(study: Study, *, cue: str) -> dict[str, Run]:
    """S1 and the best strategy, in the cell of the cue with the strongest correlation that still has exceptions.

    Raises:
        RunError: the study holds no such pair.
    """
    best = best_strategy(study.table)
    rows = followed(study.table)
    if best in (None, FIRST) or FIRST not in set(rows["strategy"]):
        raise RunError(f"the figure shows {FIRST} beside a better strategy, and the study has none; it is left out")
    rows = rows[rows["cue"] == cue] if cue in set(rows["cue"]) else rows[rows["cue"] == rows["cue"].iloc[0]]
    inexact = rows[rows["correlation"] < 1]
    rows = (inexact if len(inexact) else rows).sort_values(["correlation", "seed"], ascending=[False, True])
    chosen = tuple(rows.iloc[0][["cue", "correlation", "seed"]])
    of_cell = {cell.strategy: run for cell, run in study.runs if (cell.cue, cell.correlation, cell.seed) == chosen}
    return {name: of_cell[name] for name in (FIRST, str(best))}


def _bars(axis: Axes, means: pd.DataFrame) -> None:
    for offset, column, color, label in (
        (-0.2, "accuracy", SAME, "as in training"),
        (0.2, "accuracy_shift", REVERSED, "cue reversed"),
    ):
        bars = axis.bar(np.arange(len(means)) + offset, means[column], 0.38, color=color, label=label)
        axis.bar_label(bars, fmt="%.2f", fontsize=13, fontweight="bold", padding=2)
    axis.axhline(0.5, color="k", lw=0.8, ls=":")
    axis.set_xticks(range(len(means)), [str(name) for name in means.index], fontsize=13, fontweight="bold")
    axis.set(ylim=(0, 1.12), ylabel="accuracy (dotted: a coin)")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.1), ncols=2, frameon=False, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="x", length=0)


def _picture(axis: Axes, run: Run, split: str) -> None:
    position = shown_row(run, split)
    row, settings = run.predictions.iloc[position], run.settings
    image = resize_image(read_image(settings.data_root / row["image"]), (SIDE, SIDE), settings.resize)
    mask = None
    if isinstance(row["mask"], str):
        mask = resize_mask(read_mask(settings.data_root / row["mask"]), (SIDE, SIDE), settings.resize)
    scale = run.metrics.get("map_scales", {}).get("cam")
    heat = enlarged_share(run.maps["cam"][position], MapScale(**scale) if scale else None, (SIDE, SIDE))
    axis.imshow(overlay(image, heat, level=CONTOUR_AT, mask=mask))
    axis.set(xticks=[], yticks=[])
    if row["wrong_reason"]:
        axis.set_xlabel("but the map that decides is off the defect", fontsize=9)
    for spine in axis.spines.values():
        spine.set(color=SPLIT_COLORS[split], linewidth=4)


def _verdict(run: Run, split: str) -> str:
    row = run.predictions.iloc[shown_row(run, split)]
    right = row["predicted"] == row["label"]
    return f"says {('normal', 'defective')[int(row['predicted'])]}: {'right ✓' if right else 'wrong ✗'}"


def shown_row(run: Run, split: str) -> int:
    """Position in the predictions of the picture that a split is shown by; equal for runs on equal data.

    Raises:
        RunError: the split has no picture of its label with the cue.
    """
    table, settings = run.predictions, run.settings
    label, what = SHOWN[split]
    rows = table[(table["split"] == split) & (table["label"] == label)]
    if label == 1:
        rows = rows.dropna(subset="defect_area").sort_values("defect_area", ascending=False, kind="stable")
    for position, image in rows["image"].items():
        if _cue(run, str(image)) is not None:
            return int(str(position))
    raise RunError(f"{run.folder}: no picture of '{split}' shows '{what}' in {settings.data_root}")


def _cue(run: Run, image: str) -> NDArray[np.bool_] | None:
    settings = run.settings
    return read_cue(
        settings.data_root / image, root=settings.data_root, image_size=settings.image_size, resize=settings.resize
    )


# --- The shortcut study reported


logger = logging.getLogger(__name__)

RUN_COLUMNS = {
    "accuracy": "accuracy",
    "accuracy_shift": "reversed",
    "auroc": "AUROC",
    "auroc_shift": "reversed ",
    "cam_iou": "CAM-IoU",
    "grid_iou": "grid IoU",
    "cue_energy": "on the cue",
    "cue_area": "its area",
    "cf_excess": "features",
    "image_flip_excess": "healed",
    "paste_flip_excess": "pasted",
    "counterfactual_accuracy": "edited",
}
"""Columns of the table of runs, and how they are headed; `ABOUT_RUNS` says what they are."""
ABOUT_RUNS = (
    "reversed: with the cue the other way round; on the cue: share of the deciding CAM's energy, beside the cue's own "
    "area; features, healed, pasted: share of verdicts that turn when the defect's features are suppressed, the defect "
    "is healed in the picture, or one is pasted, less that in the control; edited: balanced accuracy on these pictures."
)
STRATEGY_COLUMNS = {
    "runs": "runs",
    "accuracy": "accuracy",
    "accuracy_shift": "reversed",
    "worst_shift": "at worst",
    "drop": "drop",
    "worst_drop": "at worst ",
    "cam_iou": "CAM-IoU",
    "met": f"drop ≤ {GOAL:g}",
}
ABOUT_WARNINGS = (
    "Rank correlation (Spearman) of what is measured on the distribution of the training with the accuracy lost when "
    "the cue is reversed, positive where it warns in the direction stated beforehand; 95 % interval by bootstrap over "
    f"cells and runs. AUROC: telling the runs that lose {LARGE_DROP:.2f} or more from the others. "
    "About other strategies than the study's it says nothing."
)

FIGURES = ("kept.png", "reversed.png", "warnings.png", "opening.jpg")


@dataclass(frozen=True)
class ShortcutReport:
    """The tables, the conclusion and the figures of a study, each made once."""

    study: Study

    @cached_property
    def table(self) -> pd.DataFrame:
        """See `Study.table`."""
        return self.study.table

    @cached_property
    def warnings(self) -> pd.DataFrame:
        """See `warnings_table`."""
        return warnings_table(self.table)

    @cached_property
    def sentences(self) -> list[str]:
        """See `conclusion`."""
        shifted, same = (study_steps(self.study, split) for split in ("test_shift", "test"))
        return conclusion(self.table, shifted=shifted, same=same, warnings=self.warnings)

    @property
    def runs(self) -> pd.DataFrame:
        """One line per run, as text."""
        names = [
            f"{row['cue']} {row['correlation']:g}, {row['strategy']}, seed {row['seed']}"
            for row in self.table.to_dict("records")
        ]
        return _readable(self.table, RUN_COLUMNS, names, "run")

    @property
    def strategies(self) -> pd.DataFrame:
        """One line per strategy over the runs with a cue to follow, as text."""
        kept = by_strategy(self.table)
        return _readable(kept, STRATEGY_COLUMNS, [str(name) for name in kept.index], "strategy")

    @property
    def warning_lines(self) -> pd.DataFrame:
        """One line per indicator, as text."""
        rows = self.warnings.to_dict("records")
        lines = {
            "warns when": [row["warns"] for row in rows],
            "rank correlation": [_interval(row) for row in rows],
            "AUROC": [_number_shortcut(row["auroc"]) for row in rows],
            "runs": [str(row["runs"]) for row in rows],
            "verdict": [row["verdict"] for row in rows],
        }
        return pd.DataFrame(lines, index=pd.Index([row["indicator"] for row in rows], name="indicator"))


def study_and_report(
    console: Console, settings: ShortcutStudySettings, *, export: Path | None = None, only_report: bool = False
) -> bool:
    """Run what is missing, and print the report.

    Args:
        console: takes it.
        settings: of the study.
        export: folder for the same as files, see `export_report`.
        only_report: train nothing.

    Returns:
        Whether no run failed.

    Raises:
        RunError: no run is finished.
    """
    study = read_study(settings) if only_report else run_study(settings)
    if not study.runs:
        raise RunError(f"{settings.folder}: no finished run of the study ({study.state})")
    if only_report:  # an interrupted study has written none, or one of fewer runs
        write_table(study)
    report = ShortcutReport(study)
    console.print(frame_table("runs", report.runs))
    console.print(escape(ABOUT_RUNS))
    console.print(frame_table("strategies, over the runs with a cue to follow", report.strategies))
    console.print(frame_table("what would have warned", report.warning_lines))
    console.print(escape(ABOUT_WARNINGS))
    for sentence in report.sentences:
        console.print(escape(f"- {sentence}"))
    console.print(escape(study.state))
    console.print(escape(f"table: {settings.folder / TABLE_FILE}"))
    if export is not None:
        export_report(report, export)
        console.print(f"exported: {escape(str(export))}")
    return not study.failed


def export_report(report: ShortcutReport, folder: Path) -> None:
    """``study.csv``, ``table.md`` (with the conclusion), ``warnings.md``, ``kept.png``, ``reversed.png``,
    ``warnings.png`` and, where there are runs to show, ``opening.jpg``; small enough to be committed.

    Figures of an earlier export that have nothing to show are taken away.
    """
    for name in FIGURES:
        (folder / name).unlink(missing_ok=True)
    with atomic_path(folder / TABLE_FILE) as path:
        report.table.to_csv(path, index=False, float_format="%.4f")
    head = [f"{report.study.state}.", "", *(f"- {sentence}" for sentence in report.sentences), ""]
    _write(
        folder / "table.md",
        [*head, *markdown_table(report.strategies), "", *markdown_table(report.runs), "", ABOUT_RUNS],
    )
    expected = [f"- {sign.heading}, {sign.warns}: {sign.why}." for sign in SIGNS.values()]
    _write(
        folder / "warnings.md",
        [ABOUT_WARNINGS, "", *markdown_table(report.warning_lines), "", "Expected:", "", *expected],
    )
    if len(by_strategy(report.table)):
        save_figure(kept_figure(report.table), folder / "kept.png")
    if report.table["accuracy_shift"].notna().any():
        save_figure(reversed_heatmap(report.table), folder / "reversed.png")
    if len(report.warnings) and report.warnings["rank_correlation"].notna().any():
        save_figure(warnings_figure(report.warnings), folder / "warnings.png")
    try:
        save_figure(opening_figure(report.study), folder / "opening.jpg")
    except RunError as error:
        logger.warning("opening.jpg: %s", error)


def _write(path: Path, lines: Sequence[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _readable(table: pd.DataFrame, columns: dict[str, str], names: Sequence[str], index: str) -> pd.DataFrame:
    """Columns that hold any number, as text."""
    known = {name: heading for name, heading in columns.items() if table[name].notna().any()}
    lines = {heading: [_number_shortcut(value) for value in table[name]] for name, heading in known.items()}
    return pd.DataFrame(lines, index=pd.Index(list(names), name=index))


def _interval(row: dict) -> str:
    value = _number_shortcut(row["rank_correlation"])
    return (
        value
        if row["low"] != row["low"]
        else f"{value} ({_number_shortcut(row['low'])} to {_number_shortcut(row['high'])})"
    )


def _number_shortcut(value: float) -> str:
    if value != value:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.2f}"
