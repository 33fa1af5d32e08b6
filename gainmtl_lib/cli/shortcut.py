"""The command of the shortcut study."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from gainmtl_lib.cli.shared import console, named_values, parameter_options


@click.command()
@parameter_options
@click.option("--export", type=Path, help="Write table, warnings, conclusion and figures to this folder.")
@click.option("--only-report", is_flag=True, help="Train nothing; report on the runs that are there.")
def shortcut(files: Sequence[Path], pairs: Sequence[tuple[str, str]], export: Path | None, only_report: bool) -> None:
    """Train under cues that go along with the class, and ask which strategy follows them.

    Parameters that are not given are those of params/studies/shortcut.yaml. What is there already is reused; a
    second call goes on where the first was interrupted. The exit status is 1 when a run failed.
    """
    from gainmtl_lib.evaluation.shortcut_settings import ShortcutStudySettings
    from gainmtl_lib.reports.shortcut import study_and_report

    settings = ShortcutStudySettings.from_yaml(*files, **dict(named_values(pairs)))
    sys.exit(0 if study_and_report(console, settings, export=export, only_report=only_report) else 1)
