"""Figures of a study with several seeds: what its steps changed, how fine the map should be, what masks are worth, how
many pictures to edit.

Every function takes a table and returns a figure; none is pyplot's, which a notebook would show a second time.
Verdicts and rows differ in marker and colour (Okabe and Ito's, told apart by colour-blind eyes).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gainmtl_lib.evaluation.study_tables import signed_interval
from gainmtl_lib.evaluation.verdicts import BETTER, NOT_DISTINGUISHABLE, NOT_TESTED, WORSE

VERDICT_STYLES = {
    BETTER: {"color": "#0072B2", "marker": ">"},
    WORSE: {"color": "#D55E00", "marker": "<"},
    NOT_DISTINGUISHABLE: {"color": "#6b6b6b", "marker": "o"},
    NOT_TESTED: {"color": "#a0a0a0", "marker": "x"},
}
STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")]
"""Colour and marker of the first, second … line."""
WIDTH = 6.9
"""Inches; 900 pixels as `save_figure` writes them."""


def steps_figure(steps: pd.DataFrame, *, metric: str) -> Figure:
    """One line per step: difference with its interval, and beside it the numbers and the verdict in words.

    Args:
        steps: columns ``step``, ``difference``, ``low``, ``high``, ``verdict``; NaN is drawn as no answer.
        metric: what the difference is of, for the axis.
    """
    figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * max(len(steps), 1)), layout="constrained")
    axis, words = figure.subplots(1, 2, width_ratios=[1, 1.3], sharey=True)
    for place, (verdict, *ends) in enumerate(steps[["verdict", "difference", "low", "high"]].to_numpy()):
        style = VERDICT_STYLES[verdict]
        axis.plot(ends[1:], [place, place], color=style["color"], lw=2, solid_capstyle="butt")
        axis.plot(ends[0], place, ms=7, ls="", **style)
        note = {"va": "center", "fontsize": 8, "color": style["color"]}
        words.text(0, place, signed_interval(*ends), **note)
        words.text(1, place, verdict, ha="right", **note)
    words.set_axis_off()
    axis.axvline(0, color="k", lw=0.8)
    axis.set_yticks(range(len(steps)), [textwrap.shorten(str(step), 46, placeholder=" …") for step in steps["step"]])
    axis.set_ylim(len(steps) - 0.4, -0.6)
    axis.set_xlabel(f"change of {metric},\nmean over seeds, 95 % interval\n(verdicts are Holm-corrected)", fontsize=8)
    axis.margins(x=0.08)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    return figure


def map_stride_figure(table: pd.DataFrame, recommended: int | None) -> Figure:
    """What a finer map brings beside what it costs.

    Args:
        table: of `map_stride_table`: index stride, coarse to fine; see there for its columns.
        recommended: the stride to mark; None marks none.
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    gain, cost = figure.subplots(1, 2, width_ratios=[1.25, 1])
    places = np.arange(len(table))
    shown = [("accuracy", "accuracy"), ("cam_iou", "CAM-IoU (deciding)"), ("attention_iou", "attention IoU")]
    for (name, label), (colour, marker) in zip(shown, STYLES):
        if name in table and table[name].notna().any():
            _with_intervals(gain, places, table, name, color=colour, marker=marker, label=label)
    gain.plot(places, table["grid_iou"], color="k", lw=1, ls="--", label="grid IoU (the mask itself)")
    gain.set(ylim=(0, 1.03))
    gain.set_title("test, mean over seeds, 95 % interval over pictures", fontsize=9)
    for (name, label), (colour, marker) in zip([("time_ratio", "time"), ("memory_ratio", "activation memory")], STYLES):
        cost.plot(places, table[name], color=colour, marker=marker, label=label)
        above = table[name].to_numpy() >= table[["time_ratio", "memory_ratio"]].max(axis=1).to_numpy()
        for place, value, up in zip(places, table[name], above):
            note = {"textcoords": "offset points", "ha": "center", "fontsize": 7, "color": colour}
            cost.annotate(f"{value:.1f}", (place, value), xytext=(0, 6 if up else -13), **note)
    cost.margins(y=0.15)
    cost.set_ylim(bottom=0)
    cost.set_title("cost of training, coarsest stride = 1", fontsize=9)
    for axis in (gain, cost):
        axis.set_xticks(places, list(map(str, table.index)))
        axis.set_xlabel("map stride in pixels, finer to the right", fontsize=8)
        if recommended in table.index:
            place = list(table.index).index(recommended)
            axis.axvspan(place - 0.3, place + 0.3, color="#F0E442", alpha=0.35, lw=0, label="recommended")
        _tidy(axis)
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    return figure


def annotation_figure(table: pd.DataFrame) -> Figure:
    """Accuracy and agreement with the mask by kind of annotation, a marker per strategy.

    The accuracy is that under changed conditions where the data has such a split.

    Args:
        table: of `annotation_table`: columns ``kind``, ``strategy`` and, of each metric, ``<metric>``,
            ``<metric>_low`` and ``<metric>_high``; kinds in the order in which they are drawn.
    """
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    kinds = list(dict.fromkeys(table["kind"]))
    strategies = list(dict.fromkeys(table["strategy"]))
    shifted = {"accuracy_shift": "accuracy, changed conditions"}
    panels = (shifted if "accuracy_shift" in table else {"accuracy": "accuracy, test"}) | {
        "cam_iou": "CAM-IoU (deciding), test"
    }
    for axis, (name, label) in zip(axes, panels.items()):
        for number, strategy in enumerate(strategies):
            rows = table[table["strategy"] == strategy].set_index("kind")
            places = np.array([kinds.index(kind) for kind in rows.index]) + 0.16 * (number - (len(strategies) - 1) / 2)
            colour, marker = STYLES[number % len(STYLES)]
            _with_intervals(axis, places, rows, name, color=colour, marker=marker, label=strategy, ls="")
        axis.set_ylabel(label, fontsize=8)
        _separate(axis, kinds)
        _tidy(axis)
    axes[0].axhline(0.5, color="k", lw=0.7, ls=":")
    axes[0].set(ylim=(0, 1.03))
    axes[1].set(ylim=(0, None), xlim=(-0.5, len(kinds) - 0.5))
    axes[1].set_xticks(range(len(kinds)), [textwrap.fill(kind, 12) for kind in kinds])
    axes[0].legend(fontsize=8, loc="lower right", ncols=len(strategies))
    axes[0].set_title("mean over seeds, 95 % interval over pictures (dotted: a coin)", fontsize=9)
    return figure


def edited_share_figure(table: pd.DataFrame) -> Figure:
    """Accuracy by share of edited training pictures, on the distribution of the training and under changed conditions.

    Args:
        table: of `edited_share_table`: index share; columns ``cue_left`` and, of each metric, ``<metric>``,
            ``<metric>_low`` and ``<metric>_high``.
    """
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axis = figure.subplots()
    shares = table.index.to_numpy(dtype=float)
    lines = {"accuracy": "accuracy, test", "accuracy_shift": "accuracy, changed conditions"}
    for (name, label), (colour, marker) in zip(lines.items(), STYLES):
        if name in table:
            _with_intervals(axis, shares, table, name, color=colour, marker=marker, label=label)
    axis.axhline(0.5, color="k", lw=0.7, ls=":")
    axis.set(ylim=(0, 1.03))
    ticks = [f"{100 * share:g} %\n{left:.2f}" for share, left in zip(shares, table["cue_left"])]
    axis.set_xticks(shares, ticks)
    axis.set_xlabel("training pictures edited; below, what is left of a cue's covariance with the label", fontsize=8)
    axis.set_title("mean over seeds, 95 % interval over pictures (dotted: a coin)", fontsize=9)
    _tidy(axis)
    axis.legend(fontsize=8, loc="lower right")
    return figure


def _with_intervals(axis: Axes, places: np.ndarray, table: pd.DataFrame, name: str, **style: object) -> None:
    """Means joined by a line, with intervals where there are some."""
    values = table[name].to_numpy(dtype=float)
    low, high = (table.get(f"{name}_{end}", table[name]).to_numpy(dtype=float) for end in ("low", "high"))
    reach = np.nan_to_num(np.stack([values - low, high - values])).clip(0)
    axis.errorbar(places, values, yerr=reach, capsize=3, ms=6, **style)  # type: ignore[arg-type]


def _separate(axis: Axes, kinds: Sequence[str]) -> None:
    """Light bands, so that markers are read with their kind."""
    for place in range(0, len(kinds), 2):
        axis.axvspan(place - 0.5, place + 0.5, color="0.95", lw=0, zorder=0)


def _tidy(axis: Axes) -> None:
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", color="0.88")
    axis.set_axisbelow(True)
