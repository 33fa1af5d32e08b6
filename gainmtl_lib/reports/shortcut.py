"""The shortcut study reported: its runs, what each strategy keeps, what would have warned, and the conclusion."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape

from gainmtl_lib.evaluation.early_warning import LARGE_DROP, SIGNS, warnings_table
from gainmtl_lib.evaluation.shortcut_conclusion import conclusion
from gainmtl_lib.evaluation.shortcut_settings import ShortcutStudySettings
from gainmtl_lib.evaluation.shortcut_study import TABLE_FILE, Study, read_study, run_study, study_steps, write_table
from gainmtl_lib.evaluation.shortcut_summary import GOAL, by_strategy
from gainmtl_lib.explain.plots import save_figure
from gainmtl_lib.explain.shortcut_figures import kept_figure, reversed_heatmap, warnings_figure
from gainmtl_lib.explain.shortcut_opening import opening_figure
from gainmtl_lib.files import atomic_path
from gainmtl_lib.reports.tables import frame_table, markdown_table
from gainmtl_lib.runs import RunError

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
            "AUROC": [_number(row["auroc"]) for row in rows],
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
    lines = {heading: [_number(value) for value in table[name]] for name, heading in known.items()}
    return pd.DataFrame(lines, index=pd.Index(list(names), name=index))


def _interval(row: dict) -> str:
    value = _number(row["rank_correlation"])
    return value if row["low"] != row["low"] else f"{value} ({_number(row['low'])} to {_number(row['high'])})"


def _number(value: float) -> str:
    if value != value:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.2f}"
