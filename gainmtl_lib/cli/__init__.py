"""The command ``gainmtl``: thin commands over the library's functions, a file per group.

Options are spelt with hyphens or underscores. Parameters come from files (``-f``, later ones win) and from
``-p NAME VALUE`` pairs, which win over files. (click and not typer: typer has no repeated pairs.)
"""

from __future__ import annotations

import click

from gainmtl_lib.cli.ablation import ablation
from gainmtl_lib.cli.answers import browse, explain, report
from gainmtl_lib.cli.data import data
from gainmtl_lib.cli.efficientad import efficientad
from gainmtl_lib.cli.notebooks import notebooks
from gainmtl_lib.cli.shared import SPELLING, Commands
from gainmtl_lib.cli.shortcut import shortcut
from gainmtl_lib.cli.study import compare_command, evaluate_command, run, train
from gainmtl_lib.progress import show_progress

COMMANDS = (
    run, train, evaluate_command, compare_command, ablation, shortcut, explain, browse, report, efficientad, data,
    notebooks,
)  # fmt: skip


@click.group(cls=Commands, commands=COMMANDS, context_settings=SPELLING)
def main() -> None:
    """Defect classification that is right for the right reason."""
    show_progress()
