"""The command that runs a study's plan and reports it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from gainmtl_lib.cli.shared import console, named_values
from gainmtl_lib.parameters import SettingsError
from gainmtl_lib.plans import load_plan


@click.command("ablation")
@click.argument("plan_file", metavar="[PLAN]", default="ablation")
@click.option("-p", "pairs", multiple=True, nargs=2, metavar="NAME VALUE", help="A parameter of all runs.")
@click.option("--seeds", help="These seeds of the plan only, with commas: 0,1.")
@click.option("--rows", multiple=True, metavar="NAME", help="This row of the plan only; repeatable.")
@click.option("--export", type=Path, help="Write tables (CSV, Markdown) and figures to this folder.")
@click.option("--only-report", is_flag=True, help="Train nothing; report the runs that are there.")
def ablation(
    plan_file: str,
    pairs: Sequence[tuple[str, str]],
    seeds: str | None,
    rows: Sequence[str],
    export: Path | None,
    only_report: bool,
) -> None:
    """Run a study's plan, compare its rows, and say which steps made a difference.

    PLAN is a file, or the name of one in params/studies (ablation, map_stride, annotation, edited_share). Runs that
    are there are reused, and after an interruption the same command goes on. The exit status is 1 when a run failed.
    """
    plan = load_plan(plan_file, **dict(named_values(pairs)))
    plan = plan.only(rows=rows or None, seeds=None if seeds is None else _seeds(seeds))
    from gainmtl_lib.reports.ablation import run_and_report

    failed = run_and_report(console, plan, export=export, only_report=only_report)
    sys.exit(1 if failed else 0)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SettingsError(f"--seeds must be whole numbers with commas between, got {text!r}") from None
