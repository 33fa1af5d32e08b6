"""The shortcut study: strategies trained under cues that go along with the class, and tested with the cue reversed.

A cell of its grid is a cue and its correlation with the class. Without data of its own the study draws synthetic data
per cell and seed: equal surfaces and defects in every cell, so that cells differ by their cue alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from pydantic import Field, model_validator

from gainmtl_lib import settings
from gainmtl_lib.dataset import GainDataModule, build_data
from gainmtl_lib.figures import look, map_grid, pick_rows
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.model import defect_probability
from gainmtl_lib.studies.ablation import Report, plan_report
from gainmtl_lib.studies.plans import Cell, Seed
from gainmtl_lib.studies.reasons import NAMES, SIGNS, stored_indicators, warnings_figure, warnings_table
from gainmtl_lib.synthetic.data import PLANTED, SHIFT
from gainmtl_lib.synthetic.drawing import read_cue
from gainmtl_lib.wording import METRICS, number

NO_SHORTCUT = 0.5  # correlation at which the cue says nothing about the class: the control of every cue


class ShortcutStudySettings(settings.ParameterRecord):
    """Parameters of the study. Strict: unknown names and wrong types raise `SettingsError`.

    Those of the training are in the files that `base` names, of which later ones win; what is given here besides wins
    over them (None leaves it). `image_counterfactual` is for S7 and S8 alone; the others edit nothing.
    """

    experiment: settings.FolderName = "shortcut"
    base: settings.OneOrMore[settings.AnyPath] = (Path("params/small.yaml"), Path("params/few_pictures.yaml"))
    cues: settings.OneOrMore[settings.Cue] = ("mark", "border")
    correlations: settings.OneOrMore[settings.Probability] = (0.95,)
    strategies: settings.OneOrMore[settings.Strategy] = ("S1", "S7", "S8")
    image_counterfactual: settings.Share | None = None
    seeds: settings.OneOrMore[Seed] = (0,)
    outputs_dir: settings.AnyPath = Field(default=Path("outputs"), validate_default=True)
    data_root: settings.AnyPath | None = None
    num_samples: Annotated[int, Field(ge=10)] | None = None
    image_size: settings.ImageSize | None = None
    backbone_arch: str | None = None
    map_stride: Literal[4, 8, 16, 32] | None = None
    num_epochs: settings.Count | None = None
    batch_size: settings.Count | None = None
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
                f"{min(self.correlations):g}; below, it goes along with the normal class, which means the same"
            )
        if self.data_root is not None and len(self.cues) * len(self.correlations) > 1:
            raise ValueError(
                f"data_root holds one cue at one correlation, but cues are {', '.join(self.cues)} and correlations "
                f"{', '.join(map(str, self.correlations))}; give one of each, or leave it out to draw synthetic data"
            )
        return self

    @property
    def steps(self) -> list[tuple[str, str]]:
        """Pairs of strategies that are compared: every one with S1, S7 with S5 and S8 with S7."""
        steps = [("S1", other) for other in self.strategies if other != "S1"] + [("S5", "S7"), ("S7", "S8")]
        return [step for step in steps if set(step) <= set(self.strategies)]

    @property
    def folder(self) -> Path:
        """``outputs/<experiment>``, above the runs and the study's figures."""
        return self.outputs_dir / self.experiment

    def cells(self) -> list[Cell]:
        """Every run of the grid, in the order in which they are trained: all strategies of a cue and correlation."""
        grid = product(self.seeds, self.cues, self.correlations, self.strategies)
        return [
            Cell(strategy, seed, self._run(cue, correlation, strategy, seed), cue, correlation)
            for seed, cue, correlation, strategy in grid
        ]

    def _run(self, cue: str, correlation: float, strategy: str, seed: int) -> settings.Settings:
        cell = f"{cue}-{correlation:g}"
        if self.data_root is not None:
            data = _planted(self.data_root, cue=cue, correlation=correlation) | {"data_root": self.data_root}
        else:
            root = self.outputs_dir / "data" / self.experiment / f"{cell}-{seed}"
            data = {"dataset_type": "synthetic", "data_root": root, "synthetic_seed": seed}
            data |= {"shortcut": cue, "shortcut_correlation": correlation}
        own = {"strategy": strategy, "seed": seed, "experiment": cell, "outputs_dir": self.folder}
        given = {name: value for name, value in self if name in settings.Settings.model_fields and value is not None}
        if strategy not in settings.EDITED:
            given.pop("image_counterfactual", None)
        return settings.Settings.from_yaml(*self.base, **given | data | own)


def _planted(root: Path, *, cue: str, correlation: float) -> dict[str, Any]:
    """How the planted data is to be read, as its record says; a base made for other data would read it otherwise."""
    path = root / PLANTED
    if not path.is_file():
        raise settings.SettingsError(
            f"data_root {root}: holds no {PLANTED}, so that its cue is unknown; plant one first: "
            f"gainmtl data plant SOURCE {root} --cue {cue} --correlation {correlation:g}"
        )
    stored = settings.read_parameters(path, nested=True)
    found = stored.get("cue"), stored.get("correlation")
    if found != (cue, correlation):
        raise settings.SettingsError(
            f"{path}: the cue is {found[0]} at correlation {found[1]}, but cues is {cue} and correlations "
            f"{correlation:g}; write what the data holds"
        )
    return {"dataset_type": "generic"} | (stored.get("read_with") or {})


# --- Report

RUN_COLUMNS = (
    "accuracy", "accuracy_shift", "auroc", "auroc_shift", "cam_iou", "grid_iou", "cue_energy", "cue_area", "cf_excess",
    "image_flip_excess", "paste_flip_excess", "counterfactual_accuracy",
)  # fmt: skip


def study_table(runs: Sequence[Cell]) -> pd.DataFrame:
    """One row per run: ``cue``, ``correlation``, ``seed``, ``strategy`` and every indicator, NaN where it is absent."""
    rows = []
    for cell in runs:
        found = (stored_indicators(cell.run) or {}).get("indicators", {})
        rows.append([cell.cue, cell.correlation, cell.seed, cell.row, *(found.get(n, {}).get("value") for n in NAMES)])
    table = pd.DataFrame(rows, columns=["cue", "correlation", "seed", "strategy", *NAMES])
    return table.astype(dict.fromkeys(NAMES, float))


def followed(runs: Sequence[Cell]) -> list[Cell]:
    """The runs with a cue to follow, as rows and seeds of a plan: rows are strategies, numbers of cells the seeds.

    Of the cells and seeds that every strategy has: means over different cells could not be compared.
    """
    of_cell: dict[tuple[str, float, int], list[Cell]] = {}
    for cell in runs:
        if cell.correlation > NO_SHORTCUT:
            of_cell.setdefault((cell.cue, cell.correlation, cell.seed), []).append(cell)
    whole = max(map(len, of_cell.values()), default=0)
    full = [cells for cells in of_cell.values() if len(cells) == whole]
    return [replace(cell, seed=number) for number, cells in enumerate(full) for cell in cells]


def readable_runs(table: pd.DataFrame) -> pd.DataFrame:
    """One line per run of `study_table`, as text."""
    names = [f"{row.cue} {row.correlation:g}, {row.strategy}, seed {row.seed}" for row in table.itertuples()]
    known = table[[*RUN_COLUMNS]].dropna(axis=1, how="all").set_axis(pd.Index(names, name="run"))
    return known.map(lambda value: number(value, 2)).rename(columns=METRICS)


def readable_warnings(warnings: pd.DataFrame) -> pd.DataFrame:
    """`warnings_table` as text, and why each indicator should warn."""
    reasons = [SIGNS[name][1] for name in warnings.index]
    shown = warnings.assign(value=warnings["value"].map(number), because=reasons).set_index("indicator")
    return shown.rename(columns={"warns": "warns when", "value": "rank correlation"})


def shortcut_report(plan: ShortcutStudySettings, runs: Sequence[Cell]) -> Report:
    """Run by run, strategies over the runs with a cue to follow as rows of a plan, and what would have warned."""
    table = study_table(runs)
    warnings, strategies = warnings_table(table), plan_report(plan, followed(runs))
    figures = dict(strategies.figures)
    if table["accuracy_shift"].notna().any():
        figures["reversed"] = reversed_heatmap(table)
        if (pictures := turned_pictures(runs)) is not None:
            figures["pictures.jpg"] = pictures
    if warnings["value"].notna().any():
        figures["warnings"] = warnings_figure(warnings)
    sections = {"runs": readable_runs(table)} | strategies.sections
    sections["what would have warned"] = readable_warnings(warnings)
    return Report(sections, strategies.tables | {"study": table, "warnings": warnings}, figures)


def turned_pictures(runs: Sequence[Cell]) -> Figure | None:
    """A defective and a normal photograph, each with the cue as in training and reversed, and every strategy's map.

    Of the first cue, correlation and seed, maps on their absolute scales; None where `_turned_pairs` finds none.
    """
    cue, correlation, seed = runs[0].cue, runs[0].correlation, runs[0].seed
    first = [cell for cell in runs if (cell.cue, cell.correlation, cell.seed) == (cue, correlation, seed)]
    data = build_data(first[0].settings)
    if (paths := _turned_pairs(data)) is None:
        return None
    data.setup("test")
    rows = [data.dataset.paths.index(path) for path in paths]
    maps, notes, scales = {}, {}, {}
    for cell in first:
        batch, output = look(cell.run, data, rows)
        maps[cell.row] = output.cam[:, 0].float().numpy()
        probabilities = defect_probability(output.logits, cell.run.calibration)
        notes[cell.row] = [f"p(defect) {number(p, 2)}" for p in probabilities.tolist()]
        if (scale := cell.run.metrics["map_scales"].get("cam")) is not None:
            scales[cell.row] = MapScale(**scale)
    titles = [f"{name}\n{how}" for name in ("defective", "normal") for how in ("as in training", "reversed")]
    pixels = batch.images.permute(0, 2, 3, 1).numpy()
    return map_grid(pixels, batch.masks[:, 0].numpy(), maps, titles, notes=notes, scales=scales)


def _turned_pairs(data: GainDataModule) -> list[str] | None:
    """Paths of a defective photograph of ``test`` and the same of ``test_shift``, then of a normal one.

    Of either class the first whose cue is there in the one split alone; None where the splits lack such a picture.
    """
    its = data.settings
    place = {"root": its.data_root, "image_size": its.image_size, "resize": its.resize}
    named = data.samples.assign(name=data.samples["image"].str.rpartition("/")[2].str.removeprefix(SHIFT))
    test, turned = (named[named["split"] == split].set_index("name")["image"] for split in ("test", "test_shift"))
    order = named.loc[pick_rows(named, "test", defective=len(named), normal=len(named))]
    found: dict[int, list[str]] = {}
    for name, label in order.loc[order["name"].isin(turned.index), ["name", "label"]].itertuples(index=False):
        pair = [test[name], turned[name]]
        if label not in found and [read_cue(path, **place) is not None for path in pair] == [label == 1, label == 0]:
            found[label] = pair
            if len(found) == 2:
                return found[1] + found[0]
    return None


def reversed_heatmap(table: pd.DataFrame) -> Figure:
    """Accuracy with the cue reversed, of `study_table`, mean over seeds; white is a coin's."""
    grid = table.pivot_table(index="strategy", columns=["cue", "correlation"], values="accuracy_shift")
    figure = Figure(figsize=(max(0.6 * grid.shape[1] + 2.2, 3.4), 0.46 * len(grid) + 1.5), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(grid, cmap="RdBu", norm=TwoSlopeNorm(0.5, 0, 1), aspect="auto")
    for (row, column), value in np.ndenumerate(grid.to_numpy()):
        color = "white" if abs(value - 0.5) > 0.29 else "black"
        axis.text(column, row, number(value, 2), ha="center", va="center", fontsize=9, color=color)
    axis.set_yticks(range(len(grid)), list(map(str, grid.index)))
    axis.set_xticks(range(grid.shape[1]), [f"{cue}\n{correlation:g}" for cue, correlation in grid.columns], fontsize=9)
    axis.set_xlabel(f"cue and its correlation with the class\n({NO_SHORTCUT:g}: nothing to follow)")
    figure.colorbar(image, ax=axis, label="accuracy, cue reversed", ticks=[0, 0.5, 1], pad=0.02)
    return figure
