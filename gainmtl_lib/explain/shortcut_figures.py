"""Figures of the shortcut study: what each strategy keeps when the cue is reversed, and what would have warned.

Every function returns a figure and shows nothing; none is pyplot's. Colours are told apart by people with any colour
vision: blue as in training, orange with the cue reversed (Okabe and Ito).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from gainmtl_lib.evaluation.early_warning import BY_CHANCE, MISLED, TOO_FEW, WARNED
from gainmtl_lib.evaluation.shortcut_settings import NO_SHORTCUT
from gainmtl_lib.evaluation.shortcut_summary import by_strategy, followed

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
