"""The shortcut study in one figure: what S1 and the best strategy keep, and where each looks on the same pictures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gainmtl_lib.data.cues import read_cue
from gainmtl_lib.data.images import read_image, read_mask
from gainmtl_lib.data.transforms import resize_image, resize_mask
from gainmtl_lib.evaluation.shortcut_study import Study
from gainmtl_lib.evaluation.shortcut_summary import best_strategy, by_strategy, followed
from gainmtl_lib.explain.drawing import compose, enlarged_share
from gainmtl_lib.explain.shortcut_figures import REVERSED, SAME
from gainmtl_lib.map_scale import MapScale
from gainmtl_lib.runs import Run, RunError

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
    axis.imshow(compose(image, heat, level=CONTOUR_AT, mask=mask))
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
