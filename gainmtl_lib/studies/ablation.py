"""A study's finished runs as tables, figures and files: its rows, and what each step between them changed."""

import textwrap
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape

from gainmtl_lib import stats
from gainmtl_lib.evaluation import summarise
from gainmtl_lib.figures import SPLIT_COLORS, save_figure
from gainmtl_lib.runs import RunError, atomic_path
from gainmtl_lib.studies.plans import WITHIN, Cell, run_study
from gainmtl_lib.studies.reasons import stored_indicators
from gainmtl_lib.wording import COMPARED, METRICS, frame_table, interval, markdown_table, probability, signed

SPLITS = {
    "val": (),
    "test": ("accuracy", "auroc", "cam_iou", "grid_iou", "cf_flip_rate", "cf_control_flip_rate"),
    "test_shift": ("accuracy", "auroc"),
    WITHIN: ("accuracy", "auroc", "cam_iou"),
}
FAMILIES = {
    "test": ("accuracy", "auroc", "cam_iou", "cf_excess"),
    "test_shift": ("accuracy", "auroc"),
    WITHIN: ("accuracy", "auroc"),
}
"""Metrics of each family of steps, by split; the correction is for the number of steps within one."""
RANGED = (*COMPARED, "average_precision", "type_macro_f1", "counterfactual_accuracy")
"""Metrics of a run, whose range over the seeds is shown."""

# --- Tables


def runs_table(runs: Sequence[Cell]) -> pd.DataFrame:
    """One row per run and split, with the metrics of `RANGED` and the ``seconds`` of its training."""
    lines = []
    for cell, split in product(runs, SPLITS):
        if not len(rows := cell.predictions(split)):
            continue
        scores = summarise(rows) | {"seconds": cell.run.manifest["duration_s"]}
        scores["type_macro_f1"] = cell.run.metrics.get(split, {}).get("type_macro_f1")
        name = {"val": "counterfactual_accuracy_val", "test": "counterfactual_accuracy"}.get(split)
        if name and (asked := stored_indicators(cell.run)) is not None:
            scores["counterfactual_accuracy"] = asked["indicators"].get(name, {}).get("value")
        place = {"row": cell.row, "strategy": cell.settings.strategy, "seed": cell.seed, "split": split}
        lines.append(place | {name: scores.get(name) for name in (*RANGED, "seconds")})
    return pd.DataFrame(lines)


def readable_ranges(runs: pd.DataFrame, split: str) -> pd.DataFrame:
    """Metrics of one split of `runs_table` by row, as text: ``0.912 (0.901 to 0.924)``, mean and range over seeds."""
    of_row = runs[runs["split"] == split].groupby("row", sort=False)
    texts = {}
    for name in RANGED:
        values: Any = of_row[name]  # of no answer None
        parts = pd.DataFrame({"value": values.mean(), "low": values.min(), "high": values.max()}).astype(float)
        if parts["value"].notna().any():
            texts[METRICS[name]] = [interval(part) for part in parts.itertuples()]
    return pd.DataFrame(texts, index=pd.Index([*of_row.groups])).assign(seeds=of_row["seed"].nunique())


def rows_of_study(runs: Sequence[Cell]) -> pd.DataFrame:
    """`stats.rows_table` of every split and metric of `SPLITS`, which stand in columns ``split`` and ``metric``."""
    return _of_families(runs, SPLITS, stats.rows_table)


def steps_of_study(runs: Sequence[Cell], steps: Sequence[Sequence[str]]) -> pd.DataFrame:
    """`stats.steps_table` of every family, with columns ``split`` and ``metric``."""
    return _of_families(runs, FAMILIES, lambda tables, metric: stats.steps_table(tables, steps, metric))


def _of_families(runs: Sequence[Cell], families: dict[str, Any], make: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    """What is made of the predictions by row and seed; a split that the data lacks is left out."""
    parts = []
    for split, metrics in families.items():
        tables: dict[str, dict[int, pd.DataFrame]] = {}
        for cell in runs:
            if len(table := cell.predictions(split)):
                tables.setdefault(cell.row, {})[cell.seed] = table
        parts += [make(tables, metric).assign(split=split, metric=metric) for metric in metrics if tables]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["split", "metric"])


def readable_rows(rows: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split, of `rows_of_study`, as text: ``0.912 (0.874 to 0.943)``, a dash for no answer."""
    part = rows[rows["split"] == split].rename(columns={"mean": "value"})
    part = part.assign(text=[interval(row) for row in part.itertuples()])
    texts = part.pivot_table("text", "row", "metric", aggfunc="first", sort=False).rename(columns=METRICS)
    return texts.rename_axis(columns=None).assign(seeds=part.groupby("row", sort=False)["seeds"].max())


def readable_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Steps of one split and metric, a family of `steps_of_study`, as text."""
    changes = [interval(row, signed) for row in steps.rename(columns={"difference": "value"}).itertuples()]
    shown = steps.assign(change=changes, p=steps["p_holm"].map(probability)).rename(columns={"p": "p, Holm"})
    return shown.set_index("step")[["change", "p, Holm", "verdict", "seeds"]]


# --- Figures

VERDICT_STYLES = {
    stats.BETTER: {"color": "#0072B2", "marker": ">"},
    stats.WORSE: {"color": "#D55E00", "marker": "<"},
    stats.NOT_DISTINGUISHABLE: {"color": "#6b6b6b", "marker": "o"},
    stats.NOT_TESTED: {"color": "#a0a0a0", "marker": "x"},
}
WIDTH = 6.9  # inches; 900 pixels as `save_figure` writes them


def steps_figure(steps: pd.DataFrame, *, metric: str) -> Figure:
    """One line per step, of one split and `metric`: difference with its interval, and beside it numbers and verdict."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * max(len(steps), 1)), layout="constrained")
    axis, words = figure.subplots(1, 2, width_ratios=[1, 1.5], sharey=True)
    for place, row in enumerate(steps.rename(columns={"difference": "value"}).itertuples()):
        style = VERDICT_STYLES[str(row.verdict)]
        axis.plot([row.low, row.high], [place, place], color=style["color"], lw=2, solid_capstyle="butt")
        axis.plot(row.value, place, ms=7, ls="", **style)
        note = {"va": "center", "fontsize": 8, "color": style["color"]}
        words.text(0, place, interval(row, signed), **note)
        words.text(1, place, row.verdict, ha="right", **note)
    words.set_axis_off()
    axis.axvline(0, color="k", lw=0.8)
    axis.set_yticks(range(len(steps)), ["\n".join(textwrap.wrap(str(step), 26)) for step in steps["step"]])
    axis.set_ylim(len(steps) - 0.4, -0.6)
    axis.set_xlabel(f"change of {metric},\nmean over runs, 95 % interval\n(verdicts are Holm-corrected)", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", color="0.9")
    return figure


def rows_figure(rows: pd.DataFrame) -> Figure:
    """Accuracy of every row of `rows_of_study`, as in training and under changed conditions, and its CAM-IoU."""
    places = {name: place for place, name in enumerate(rows["row"].unique())}
    figure = Figure(figsize=(WIDTH, 1.2 + 0.3 * len(places)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.5, 1])
    for (axis, metric), (split, color) in product(((left, "accuracy"), (right, "cam_iou")), SPLIT_COLORS.items()):
        part = rows[(rows["split"] == split) & (rows["metric"] == metric)].dropna(subset="mean")
        reach = np.nan_to_num(np.stack([part["mean"] - part["low"], part["high"] - part["mean"]]))
        style = {"ls": "", "marker": "o", "capsize": 3, "color": color, "label": split}
        axis.errorbar(part["mean"], part["row"].map(places), xerr=reach, **style)
    for name, part in rows[rows["metric"] == "accuracy"].groupby("row"):
        left.plot([part["mean"].min(), part["mean"].max()], [places[name]] * 2, color="#bbbbbb", lw=3, zorder=0)
    left.axvline(0.5, color="k", lw=0.8, ls=":")
    left.set_yticks(range(len(places)), [textwrap.shorten(str(name), 40, placeholder=" …") for name in places])
    shown = "mean over runs" + ", 95 % interval" * bool(rows["low"].notna().any())  # two runs have none
    for axis, label in ((left, "accuracy (dotted: a coin)"), (right, "CAM-IoU")):
        axis.set(xlim=(-0.03, 1.03), ylim=(len(places) - 0.4, -0.6))
        axis.set_xlabel(f"{label},\n{shown}", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", color="0.9")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


# --- The report of any study


class Report(NamedTuple):
    """What is shown of a study's finished runs: tables of text by title, of numbers and figures by file name, in which
    photographs say that they are JPEG."""

    sections: dict[str, pd.DataFrame]
    tables: dict[str, pd.DataFrame]
    figures: dict[str, Figure]


def plan_report(plan: Any, runs: Sequence[Cell]) -> Report:
    """Rows per split, and the steps of each family that has an answer."""
    rows, steps = rows_of_study(runs), steps_of_study(runs, plan.steps)
    table = runs_table(runs)
    sections = {f"range over seeds: {split}": readable_ranges(table, split) for split in table["split"].unique()}
    sections |= {f"rows: {split}": readable_rows(rows, split) for split in rows["split"].unique()}
    figures = {"rows": rows_figure(rows)} if len(rows) else {}
    for (split, metric), part in steps.groupby(["split", "metric"], sort=False):
        if part["difference"].notna().any():
            family = f"{METRICS[str(metric)]}, {split}"
            sections[f"steps: {family}"] = readable_steps(part)
            figures[f"steps_{split}_{metric}"] = steps_figure(part, metric=family)
    return Report(sections, {"runs": table, "rows": rows, "steps": steps}, figures)


def run_and_report(
    console: Console, plan: Any, make: Callable[..., Report] = plan_report, *, export: Path | None = None, **how: Any
) -> int:
    """Run what is missing of a plan, print its tables, name what failed; returns how many did.

    `plan` is a `Plan`, or another record with ``cells()`` and ``plain()``, whose finished runs `make` reports. The
    folder `export` gets the same as files: ``table.md``, ``plan.yaml``, a CSV file per table, and figures. `how` is for
    `run_study`. `RunError` when no run is finished.
    """
    study = run_study(plan.cells(), **how)
    if not study.runs:
        raise RunError(f"{plan.experiment}: no finished run of the study ({study.state})")
    report = make(plan, study.runs)
    weights = sorted({str(cell.run.manifest["pretrained"]) for cell in study.runs})
    remarks = [f"Backbone weights: {', '.join(weights)}.", study.state]
    for title, table in report.sections.items():
        console.print(frame_table(title, table))
    console.print(*map(escape, remarks), sep="\n")
    if export is None:
        return len(study.failed)
    sections = [f"**{title}**\n\n" + "\n".join(markdown_table(table)) for title, table in report.sections.items()]
    texts = {
        "table.md": "\n\n".join([*sections, "\n".join(f"- {remark}" for remark in remarks)]) + "\n",
        "plan.yaml": yaml.safe_dump(plan.plain(), sort_keys=False, allow_unicode=True, width=120),
    }
    texts |= {f"{name}.csv": table.to_csv(index=False, float_format="%.4f") for name, table in report.tables.items()}
    for name, text in texts.items():
        with atomic_path(export / name) as path:
            path.write_text(text, encoding="utf-8")
    for name, figure in report.figures.items():
        save_figure(figure, export / (name if "." in name else f"{name}.png"))
    console.print(f"exported: {escape(str(export))}")
    return len(study.failed)
