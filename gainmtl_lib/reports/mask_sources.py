"""``gainmtl evaluate RUN --mask-source all``: a run of S6 with the masks of every source that is at hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.evaluation.ablation import COLUMNS
from gainmtl_lib.evaluation.evaluate import evaluated_data
from gainmtl_lib.evaluation.mask_sources import METRICS, known_sources, mask_source_table
from gainmtl_lib.reports.tables import number
from gainmtl_lib.runs import Run, write_json

ALL = "all"
LEAK_MARKS = {True: "[bold]yes: no result[/bold]", False: "no"}
LEAKS = "[bold]mask_source oracle: the ground truth was given to the model; these are no results[/bold]"


def compare_mask_sources(
    console: Console,
    run: Run,
    *,
    efficientad_run: Path | None = None,
    external_mask_dir: Path | None = None,
    device: str | None = None,
    export: Path | None = None,
    force: bool = False,
) -> None:
    """Evaluate a run with each source of masks, print one table per test split, and name what is left out.

    Args:
        console: takes the tables.
        run: a finished run of S6.
        efficientad_run: see `mask_source_table`.
        external_mask_dir: likewise.
        device: likewise.
        export: JSON file for the rows and for what is left out.
        force: evaluate the run's own source anew.

    Raises:
        RunError: another strategy, or what `evaluate` refuses.
        DataError: pictures that cannot be read.
    """
    places = {"efficientad_run": efficientad_run, "external_mask_dir": external_mask_dir}
    known, left_out = known_sources(run, **places)
    data = evaluated_data(run)
    parts = []
    for name in known:
        try:
            parts.append(mask_source_table(run, [name], data=data, device=device, reuse=not force, **places))
        except DataError as error:  # masks that some pictures lack are no reason to withhold the other sources
            left_out[name] = str(error)
    table = pd.concat(parts, ignore_index=True)
    _print(console, table, left_out)
    if export is not None:
        write_json(export, {"sources": table.to_dict("records"), "left_out": left_out})
        console.print(f"results: {escape(str(export))}")


def _print(console: Console, table: pd.DataFrame, left_out: dict[str, str]) -> None:
    for split, rows in table.groupby("split", sort=False):
        console.print(_split_table(f"S6 by mask source, {split}", rows))
    for _, row in table[table["teacher"].notna()].drop_duplicates("source").iterrows():
        console.print(f"{row['source']}: its teacher: {escape(row['teacher'])}")
    if table["label_leaks"].any():
        console.print(LEAKS)
    for name, reason in left_out.items():
        console.print(f"left out: {name}, because {escape(reason)}")


def _split_table(title: str, rows: pd.DataFrame) -> Table:
    shown = Table(title=title, title_justify="left")
    for heading in ("source", "mask"):
        shown.add_column(heading)
    for name in METRICS:
        shown.add_column(COLUMNS[name], justify="right")
    shown.add_column("leaks the label")
    for row in rows.to_dict("records"):
        shown.add_row(
            row["source"], row["mask"], *(number(row[name]) for name in METRICS), LEAK_MARKS[row["label_leaks"]]
        )
    return shown
