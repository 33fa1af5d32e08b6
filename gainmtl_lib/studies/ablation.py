"""A study's finished runs as tables, figures and files: its rows, and what each step between them changed."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape

from gainmtl_lib.edits.counterfactuals import cue_left
from gainmtl_lib.figures import save_figure
from gainmtl_lib.runs import RunError, atomic_path
from gainmtl_lib.settings import Settings
from gainmtl_lib.stats import BETTER, NOT_DISTINGUISHABLE, NOT_TESTED, WORSE, rows_table, steps_table
from gainmtl_lib.studies.plans import Cell, Plan, run_study
from gainmtl_lib.wording import COMPARED, METRICS, frame_table, interval, markdown_table, probability, signed

SPLITS = {
    "test": ("accuracy", "auroc", "cam_iou", "grid_iou", "cf_flip_rate", "cf_control_flip_rate"),
    "test_shift": ("accuracy", "auroc"),
}
"""What the rows of a plan are shown with, by split."""
FAMILIES = (
    ("test", "accuracy"),
    ("test", "auroc"),
    ("test", "cam_iou"),
    ("test", "cf_excess"),
    ("test_shift", "accuracy"),
    ("test_shift", "auroc"),
)
"""Split and metric of each family of steps; the correction is for the number of steps within one."""


# --- Tables


def split_tables(runs: Sequence[Cell], split: str) -> dict[str, dict[int, pd.DataFrame]]:
    """The predictions of one split by row and seed; runs whose data lacks the split are left out."""
    tables: dict[str, dict[int, pd.DataFrame]] = {}
    for cell in runs:
        table = cell.predictions(split)
        if len(table):
            tables.setdefault(cell.row, {})[cell.seed] = table
    return tables


def runs_table(runs: Sequence[Cell]) -> pd.DataFrame:
    """One row per run and test split: ``row``, ``strategy``, ``seed``, ``split`` and the metrics of `COMPARED`."""
    lines = []
    for cell in runs:
        place = {"row": cell.row, "strategy": cell.settings.strategy, "seed": cell.seed}
        for split in (split for split in SPLITS if split in cell.run.metrics):
            values = {name: cell.run.metrics[split].get(name) for name in COMPARED}
            lines.append(place | {"split": split} | values)
    return pd.DataFrame(lines, columns=["row", "strategy", "seed", "split", *COMPARED])


def rows_of_study(runs: Sequence[Cell]) -> pd.DataFrame:
    """`rows_table` of every split and metric of `SPLITS`, which stand in columns ``split`` and ``metric``."""
    tables = {split: split_tables(runs, split) for split in SPLITS}
    return _joined(
        rows_table(tables[split], metric).assign(split=split, metric=metric)
        for split, metrics in SPLITS.items()
        for metric in (metrics if tables[split] else ())
    )


def steps_of_study(runs: Sequence[Cell], steps: Sequence[Sequence[str]]) -> pd.DataFrame:
    """`steps_table` of every family, with columns ``split`` and ``metric``."""
    tables = {split: split_tables(runs, split) for split in SPLITS}
    return _joined(
        steps_table(tables[split], steps, metric).assign(split=split, metric=metric)
        for split, metric in FAMILIES
        if tables[split] and steps
    )


def _joined(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    tables = list(parts)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["split", "metric"])


def readable_rows(rows: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split as text: ``0.912 (0.874 to 0.943)`` with an interval, a dash for no answer.

    Args:
        rows: of `rows_of_study`.
        split: ``test`` or ``test_shift``.
    """
    part = rows[rows["split"] == split].rename(columns={"mean": "value"})
    part = part.assign(text=[interval(row) for row in part.itertuples()])
    columns = {METRICS[metric]: lines.set_index("row")["text"] for metric, lines in part.groupby("metric", sort=False)}
    return pd.DataFrame(columns | {"seeds": part.groupby("row", sort=False)["seeds"].max()}).rename_axis("row")


def readable_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Steps of one split and metric as text.

    Args:
        steps: of `steps_table`, or one family of `steps_of_study`.
    """
    changes = [interval(row, signed) for row in steps.rename(columns={"difference": "value"}).itertuples()]
    columns = {
        "change": changes,
        "p, Holm": steps["p_holm"].map(probability).to_list(),
        "verdict": steps["verdict"].to_list(),
        "seeds": steps["seeds"].to_list(),
    }
    return pd.DataFrame(columns, index=pd.Index(steps["step"], name="step"))


# --- Plans that turn one knob: what each of its settings reaches


QUALITY_NAMES = {"exact": "masks", "box": "boxes", "dilated": "dilated masks", "shifted": "shifted masks"}


def kind_of(settings: Settings) -> str:
    """A run's annotation in words: ``no masks``, ``5 % of the masks``, ``all masks``, ``boxes``, …"""
    share, name = settings.mask_share, QUALITY_NAMES[settings.mask_quality]
    if share == 0:
        return "no masks"
    return f"{100 * share:g} % of the {name}" if share < 1 else "all masks" if name == "masks" else name


def _place_of_kind(settings: Settings) -> tuple[int, float]:
    quality = list(QUALITY_NAMES).index(settings.mask_quality) if settings.mask_share else 0
    return quality, settings.mask_share


@dataclass(frozen=True)
class Knob:
    """What a plan turns: its name in tables, a setting's value, and the order of the values."""

    name: str
    value: Callable[[Settings], Any]
    order: Callable[[Settings], Any]


KNOBS = {
    "map_stride": Knob("stride", lambda settings: settings.map_stride, lambda settings: -settings.map_stride),
    "annotation": Knob("kind", kind_of, _place_of_kind),
    "edited_share": Knob(
        "share", lambda settings: settings.image_counterfactual, lambda settings: settings.image_counterfactual
    ),
}
"""By a plan's `report`."""
SCORES = {
    "accuracy": ("accuracy", "test"),
    "accuracy_shift": ("accuracy", "test_shift"),
    "cam_iou": ("cam_iou", "test"),
    "attention_iou": ("attention_iou", "test"),
    "grid_iou": ("grid_iou", "test"),
}
"""Column to metric and split."""


def knob_table(runs: Sequence[Cell], report: str) -> pd.DataFrame:
    """What each setting of a plan's knob reaches, one row per value and strategy in the order of the values.

    Returns:
        The knob's column, ``strategy``, of each of `SCORES` that some run has its mean over seeds and the interval
        ``<name>_low``, ``<name>_high``, ``seconds`` of training, ``seeds``; for shares of edited pictures ``cue_left``.
    """
    knob, settings = KNOBS[report], {cell.row: cell.settings for cell in runs}
    order = sorted(settings, key=lambda row: (knob.order(settings[row]), settings[row].strategy))
    table = pd.DataFrame(index=pd.Index(order, name="row"))
    table[knob.name] = [knob.value(settings[row]) for row in order]
    table["strategy"] = [settings[row].strategy for row in order]
    for name, (metric, split) in SCORES.items():
        scores = rows_table(split_tables(runs, split), metric).set_index("row")
        if scores["mean"].notna().any():
            table[name], table[f"{name}_low"], table[f"{name}_high"] = scores["mean"], scores["low"], scores["high"]
    of_runs = pd.DataFrame([{"row": cell.row, "seconds": cell.run.manifest["duration_s"]} for cell in runs])
    table["seconds"], table["seeds"] = of_runs.groupby("row")["seconds"].mean(), of_runs.groupby("row").size()
    return table.assign(cue_left=table["share"].map(cue_left)) if report == "edited_share" else table


# --- Figures


VERDICT_STYLES = {
    BETTER: {"color": "#0072B2", "marker": ">"},
    WORSE: {"color": "#D55E00", "marker": "<"},
    NOT_DISTINGUISHABLE: {"color": "#6b6b6b", "marker": "o"},
    NOT_TESTED: {"color": "#a0a0a0", "marker": "x"},
}
STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")]
"""Colour and marker of the first, second … strategy."""
WIDTH = 6.9
"""Inches; 900 pixels as `save_figure` writes them."""


def steps_figure(steps: pd.DataFrame, *, metric: str) -> Figure:
    """One line per step: difference with its interval, and beside it the numbers and the verdict in words.

    Args:
        steps: of one split and metric, see `steps_table`; NaN is drawn as no answer.
        metric: what the difference is of, for the axis.
    """
    figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * max(len(steps), 1)), layout="constrained")
    axis, words = figure.subplots(1, 2, width_ratios=[1, 1.3], sharey=True)
    for place, row in enumerate(steps.rename(columns={"difference": "value"}).itertuples()):
        style = VERDICT_STYLES[row.verdict]
        axis.plot([row.low, row.high], [place, place], color=style["color"], lw=2, solid_capstyle="butt")
        axis.plot(row.value, place, ms=7, ls="", **style)
        note = {"va": "center", "fontsize": 8, "color": style["color"]}
        words.text(0, place, interval(row, signed), **note)
        words.text(1, place, row.verdict, ha="right", **note)
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


def knob_figure(table: pd.DataFrame) -> Figure:
    """Accuracy, as in training and under changed conditions, and CAM-IoU by the knob's values, a marker per strategy.

    Args:
        table: of `knob_table`.
    """
    shown = [name for name in ("accuracy", "accuracy_shift", "cam_iou") if name in table]
    figure = Figure(figsize=(WIDTH, 1.7 * len(shown) + 0.6), layout="constrained")
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    values, strategies = list(dict.fromkeys(table.iloc[:, 0])), list(dict.fromkeys(table["strategy"]))
    for axis, name in zip(axes, shown):
        for number, strategy in enumerate(strategies):
            rows = table[table["strategy"] == strategy]
            places = [values.index(at) + 0.16 * (number - (len(strategies) - 1) / 2) for at in rows.iloc[:, 0]]
            mean, low, high = (rows[f"{name}{end}"].to_numpy(dtype=float) for end in ("", "_low", "_high"))
            reach = np.nan_to_num(np.stack([mean - low, high - mean]))
            colour, marker = STYLES[number % len(STYLES)]
            axis.errorbar(places, mean, yerr=reach, capsize=3, ms=6, ls="", color=colour, marker=marker, label=strategy)
        if name == "cam_iou" and "grid_iou" in table:
            best = table.groupby(table.columns[0], sort=False)["grid_iou"].mean()
            axis.plot(range(len(values)), best, color="k", lw=1, ls="--", label="grid IoU (the mask itself)")
        axis.set_ylabel(METRICS[name], fontsize=8)
        axis.set_ylim(0, 1.03)
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", color="0.88")
    axes[-1].set_xticks(range(len(values)), [textwrap.fill(str(value), 12) for value in values])
    axes[-1].set_xlabel(table.columns[0], fontsize=8)
    axes[-1].legend(
        fontsize=8, ncols=len(strategies) + 1, loc="upper center", bbox_to_anchor=(0.5, -0.3), frameon=False
    )
    axes[0].set_title("mean over seeds, 95 % interval", fontsize=9)
    return figure


# --- The report of any study


@dataclass(frozen=True)
class Report:
    """What is shown of a study's finished runs.

    Attributes:
        sections: tables of text by title.
        tables: numbers by file name.
        figures: makes them, by file name.
        remarks: what has to be said beside the tables.
    """

    sections: dict[str, pd.DataFrame]
    tables: dict[str, pd.DataFrame]
    figures: Callable[[], dict[str, Figure]]
    remarks: tuple[str, ...] = ()


def plan_report(plan: Plan, runs: Sequence[Cell]) -> Report:
    """Rows per split, the steps of each family that has an answer, and what the plan's knob does."""
    rows, steps = rows_of_study(runs), steps_of_study(runs, plan.steps)
    sections = {f"rows: {split}": readable_rows(rows, split) for split in rows["split"].unique()}
    families = {family: part for family, part in steps.groupby(["split", "metric"], sort=False)} if len(steps) else {}
    families = {family: part for family, part in families.items() if part["difference"].notna().any()}
    sections |= {f"steps: {METRICS[m]}, {split}": readable_steps(part) for (split, m), part in families.items()}
    tables = {"runs": runs_table(runs), "rows": rows, "steps": steps}
    if plan.report in KNOBS:
        tables[plan.report] = knob_table(runs, plan.report)
        sections[plan.report.replace("_", " ")] = tables[plan.report].round(3)

    def figures() -> dict[str, Figure]:
        made = {
            f"steps_{split}_{metric}": steps_figure(part, metric=f"{METRICS[metric]}, {split}")
            for (split, metric), part in families.items()
        }
        return made | ({plan.report: knob_figure(tables[plan.report])} if plan.report in KNOBS else {})

    return Report(sections, tables, figures)


def run_and_report(
    console: Console,
    plan: Any,
    report_of: Callable[[Any, Sequence[Cell]], Report] = plan_report,
    *,
    reasons: bool = False,
    export: Path | None = None,
    only_report: bool = False,
) -> int:
    """Run what is missing of a plan, print its tables, name what failed.

    Args:
        console: takes the tables.
        plan: a `Plan`, or another record with ``cells()`` and ``plain()``.
        report_of: makes the report of the plan's finished runs.
        reasons: see `run_study`.
        export: folder for the same as files, small enough to be committed: ``table.md``, ``plan.yaml`` (the plan as it
            was run), a CSV file per table, and figures.
        only_report: train nothing; report what is there.

    Returns:
        How many runs failed.

    Raises:
        RunError: no run is finished.
    """
    study = run_study(plan.cells(), reasons=reasons, only_report=only_report)
    if not study.runs:
        raise RunError(f"{plan.experiment}: no finished run of the study ({study.state})")
    report = report_of(plan, study.runs)
    weights = sorted({str(cell.run.manifest["pretrained"]) for cell in study.runs})
    remarks = [*report.remarks, f"Backbone weights: {', '.join(weights)}.", study.state]
    for title, table in report.sections.items():
        console.print(frame_table(title, table))
    for line in remarks:
        console.print(escape(line))
    if export is not None:
        _export(report, plan, remarks, export)
        console.print(f"exported: {escape(str(export))}")
    return len(study.failed)


def _export(report: Report, plan: Any, remarks: Sequence[str], folder: Path) -> None:
    sections = [f"**{title}**\n\n" + "\n".join(markdown_table(table)) for title, table in report.sections.items()]
    texts = {
        "table.md": "\n\n".join([*sections, "\n".join(f"- {remark}" for remark in remarks)]) + "\n",
        "plan.yaml": yaml.safe_dump(plan.plain(), sort_keys=False, allow_unicode=True, width=120),
    }
    texts |= {f"{name}.csv": table.to_csv(index=False, float_format="%.4f") for name, table in report.tables.items()}
    for name, text in texts.items():
        with atomic_path(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    for name, figure in report.figures().items():
        save_figure(figure, folder / f"{name}.png")
