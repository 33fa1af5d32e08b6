"""Commands that show what a run decided and why: explain, browse, report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from gainmtl_lib.cli.shared import console


@click.command()
@click.argument("run_folder", metavar="RUN", type=Path)
@click.argument("images", metavar="IMAGE…", nargs=-1, required=True, type=Path)
@click.option("--mask", "masks", multiple=True, type=Path, help="Where the defect is; one for each image, in order.")
@click.option("--class-names", nargs=2, default=("normal", "defective"), show_default=True)
@click.option("--mask-source", type=click.Choice(["localization", "none"]), help="S6 only; the run's own by default.")
@click.option("--device", help="auto, cpu, mps, cuda or cuda:<k>; by default where the run was trained.")
@click.option("--output", "folder", type=Path, help="Where the figures go; RUN/explanations by default.")
@click.option("--export-results", type=Path, help="Write the answers to this JSON file.")
def explain(run_folder: Path, images: Sequence[Path], **options: Any) -> None:
    """Explain pictures: verdict, where the model looked, and whether it says so without the defect."""
    from gainmtl_lib.reports.explanations import explain_pictures

    sys.exit(0 if explain_pictures(console, run_folder, images, **options) else 1)


@click.command()
@click.argument("run_folders", metavar="RUN…", nargs=-1, required=True, type=Path)
@click.option("--data-root", type=Path, help="Where the pictures are now, if they moved.")
@click.option("--port", type=int, help="A free one by default.")
@click.option("--no-browser", is_flag=True, help="Print the address only.")
def browse(run_folders: Sequence[Path], data_root: Path | None, port: int | None, no_browser: bool) -> None:
    """Open the CAM browser as a page of its own, on this machine only, behind a token."""
    from gainmtl_lib.serve import serve_browser

    serve_browser(run_folders, port=port, open_browser=not no_browser, data_root=data_root)


@click.command()
@click.argument("run_folder", metavar="RUN", type=Path)
@click.option("--output", type=Path, help="HTML file; RUN/report.html by default.")
@click.option(
    "--required-recall",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.99,
    show_default=True,
    help="Share of defects to be found.",
)
@click.option("--data-root", type=Path, help="Where the pictures are now, if they moved.")
@click.option(
    "--faithfulness/--no-faithfulness",
    default=False,
    show_default=True,
    help="Measure first, unless it is stored, whether the decision follows the map; takes the model and minutes.",
)
def report(
    run_folder: Path, output: Path | None, required_recall: float, data_root: Path | None, faithfulness: bool
) -> None:
    """Write a run's audit report: one HTML file that opens offline and prints."""
    from gainmtl_lib.explain.measured_faithfulness import measure_faithfulness
    from gainmtl_lib.explain.report import write_report
    from gainmtl_lib.runs import load_run

    finished = load_run(run_folder)
    if faithfulness:
        measure_faithfulness(finished, data_root=data_root)
    path = write_report(finished, output, required_recall=required_recall, data_root=data_root)
    console.print(f"report: {escape(str(path))}")
