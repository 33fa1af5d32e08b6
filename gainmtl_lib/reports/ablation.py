"""A study's plan run and reported: rows, steps with their verdicts, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import yaml
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape

from gainmtl_lib.evaluation.annotation_worth import annotation_table
from gainmtl_lib.evaluation.edited_share import edited_share_table
from gainmtl_lib.evaluation.map_stride import map_stride_table, recommended_stride, stride_tables
from gainmtl_lib.evaluation.planned import FailedRun, PlannedRun, finished_runs, run_plan
from gainmtl_lib.evaluation.study_tables import (
    FAMILIES,
    METRIC_NAMES,
    readable_rows,
    readable_steps,
    rows_of_study,
    runs_table,
    steps_of_study,
)
from gainmtl_lib.explain.curves import SPLIT_NAMES
from gainmtl_lib.explain.plots import save_figure
from gainmtl_lib.explain.study_figures import annotation_figure, edited_share_figure, map_stride_figure, steps_figure
from gainmtl_lib.files import atomic_path
from gainmtl_lib.plans import Plan
from gainmtl_lib.reports.tables import frame_table, markdown_table
from gainmtl_lib.runs import RunError

TITLES = {
    "map_stride": "map stride",
    "annotation": "what annotation is worth",
    "edited_share": "share of edited pictures",
}


@dataclass(frozen=True)
class StudyReport:
    """The tables, remarks and figures of a plan's finished runs, each made once.

    Attributes:
        plan: what was asked for.
        runs: finished and evaluated, at least one.
        state: lines that say how many there are and what failed.
    """

    plan: Plan
    runs: Sequence[PlannedRun]
    state: Sequence[str] = ()

    @cached_property
    def rows(self) -> pd.DataFrame:
        """See `rows_of_study`."""
        return rows_of_study(self.runs)

    @cached_property
    def steps(self) -> pd.DataFrame:
        """See `steps_of_study`."""
        return steps_of_study(self.runs, self.plan.steps)

    @cached_property
    def own_table(self) -> pd.DataFrame | None:
        """The table of the plan's `report`; None where that is the steps."""
        makers = {
            "map_stride": map_stride_table,
            "annotation": annotation_table,
            "edited_share": edited_share_table,
        }
        return makers[self.plan.report](self.runs) if self.plan.report in makers else None

    @cached_property
    def recommendation(self) -> tuple[int | None, str]:
        """See `recommended_stride`."""
        return recommended_stride(stride_tables(self.runs))

    def family(self, split: str, metric: str) -> pd.DataFrame:
        """The steps of one family, empty where none has an answer."""
        steps = self.steps
        part = steps[(steps["split"] == split) & (steps["metric"] == metric)] if len(steps) else steps
        return part if len(part) and part["difference"].notna().any() else part.iloc[:0]

    def sections(self) -> dict[str, pd.DataFrame]:
        """Tables of text by title: rows per split, the steps of each metric, and the plan's own."""
        splits = list(map(str, self.rows["split"].unique()))
        sections = {f"rows: {SPLIT_NAMES[split]}": readable_rows(self.rows, split) for split in splits}
        for split, metric in FAMILIES:
            if len(self.family(split, metric)):
                sections[f"steps: {METRIC_NAMES[metric]}, {split}"] = readable_steps(self.steps, split, metric)
        if self.own_table is not None:
            sections[TITLES[self.plan.report]] = self.own_table.round(3)
        return sections

    def remarks(self) -> list[str]:
        """What has to be said beside the tables."""
        weights = ", ".join(sorted({str(planned.run.manifest["pretrained"]) for planned in self.runs}))
        remarks = [f"Backbone weights: {weights}."]
        if self.plan.report == "map_stride":
            remarks.append(self.recommendation[1])
        return [*remarks, *_notes(self.steps), *self.state]

    def figures(self) -> dict[str, Figure]:
        """By file name."""
        figures = {
            f"steps_{split}_{metric}": steps_figure(part, metric=f"{METRIC_NAMES[metric]}, {split}")
            for split, metric in FAMILIES
            if len(part := self.family(split, metric))
        }
        if self.plan.report == "map_stride" and self.own_table is not None:
            figures["map_stride"] = map_stride_figure(self.own_table, self.recommendation[0])
        if self.plan.report == "annotation" and self.own_table is not None:
            figures["annotation"] = annotation_figure(self.own_table)
        if self.plan.report == "edited_share" and self.own_table is not None:
            figures["edited_share"] = edited_share_figure(self.own_table)
        return figures


def _notes(steps: pd.DataFrame) -> list[str]:
    """Each note of the steps once, with the steps it is about, and the scores where it is not about all of them."""
    if not len(steps):
        return []
    # A strategy without the counterfactual has no flips to compare; that needs no word for every step.
    known = steps[(steps["metric"] != "cf_excess") | steps["difference"].notna()]
    score = known["metric"].map(METRIC_NAMES) + ", " + known["split"]
    every = set(score[known["metric"] != "cf_excess"])
    noted: dict[str, list[str]] = {}
    for (note, step), scores in score.groupby([known["note"], known["step"]], sort=False):
        if note:
            of_all = every <= set(scores)
            noted.setdefault(str(note), []).append(str(step) if of_all else f"{step} ({'; '.join(scores)})")
    return [f"{note}: {', '.join(lines)}" for note, lines in noted.items()]


def run_and_report(console: Console, plan: Plan, *, export: Path | None = None, only_report: bool = False) -> int:
    """Run what is missing of a plan, print rows and steps with verdicts, name what failed.

    Args:
        console: takes the tables.
        plan: what to run and to compare.
        export: folder for the same as small files, see `export_study`.
        only_report: train nothing; report what is there.

    Returns:
        How many runs failed.

    Raises:
        RunError: no run is finished, or one that is there was trained with other settings.
    """
    failures: list[FailedRun] = []
    runs = finished_runs(plan) if only_report else run_plan(plan, failures=failures)
    total = len(plan.rows) * len(plan.seeds)
    failed = f", {len(failures)} failed" if failures else ""
    state = [f"{len(runs)} of {total} runs are finished{failed}", *(f"failed: {f}" for f in failures)]
    if not runs:
        raise RunError("\n  ".join([*state, "there is nothing to report"]))
    report = StudyReport(plan, runs, state)
    for title, table in report.sections().items():
        console.print(frame_table(title, table))
    for line in report.remarks():
        console.print(escape(line))
    if export is not None:
        export_study(report, export)
        console.print(f"exported: {escape(str(export))}")
    return len(failures)


def export_study(report: StudyReport, folder: Path) -> None:
    """``table.md``, ``plan.yaml``, ``runs.csv``, ``rows.csv``, ``steps.csv``, the plan's own CSV, and figures.

    Small enough to be committed. ``plan.yaml`` is the plan as it was run, which makes the same again.
    """
    sections = [f"**{title}**\n\n" + "\n".join(markdown_table(table)) for title, table in report.sections().items()]
    remarks = "\n".join(f"- {remark}" for remark in report.remarks())
    plan = yaml.safe_dump(report.plan.plain(), sort_keys=False, allow_unicode=True, width=120)
    for name, text in {"table.md": "\n\n".join([*sections, remarks]) + "\n", "plan.yaml": plan}.items():
        with atomic_path(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    tables = {"runs": runs_table(report.runs), "rows": report.rows, "steps": report.steps}
    if report.own_table is not None:
        tables[report.plan.report] = report.own_table.reset_index()
    for name, table in tables.items():
        with atomic_path(folder / f"{name}.csv") as path:
            table.to_csv(path, index=False, float_format="%.4f")
    for name, figure in report.figures().items():
        save_figure(figure, folder / f"{name}.png")
