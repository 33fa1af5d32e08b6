"""What all commands share: parameters on the command line, the console, and errors without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console

from gainmtl_lib.parameters import SettingsError

# In a file or a pipe there is no width to fit: tables keep theirs.
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)


TRAINING = ("run", "train", "distill", "ablation", "shortcut")
"""Commands that a second call continues where an interruption left them."""


class Commands(click.Group):
    """Takes underscores for hyphens, and turns the library's errors into one message and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error that is meant for the user becomes a message without a traceback."""
        try:
            return super().invoke(ctx)
        except _known_errors() as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            goes_on = "; the same command goes on from where it was last saved"
            raise click.ClickException(f"interrupted{goes_on if ctx.invoked_subcommand in TRAINING else ''}") from None


def _known_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is meant for the user. Imported late: `gainmtl --help` should not load torch."""
    errors: list[type[Exception]] = [SettingsError]
    for module, name in (
        ("gainmtl_lib.files", "FileError"),
        ("gainmtl_lib.devices", "DeviceError"),
        ("gainmtl_lib.data.findings", "DataError"),
        ("gainmtl_lib.models.weights", "ModelError"),
        ("gainmtl_lib.runs", "RunError"),
        ("gainmtl_lib.training.module", "TrainingDivergedError"),
        ("gainmtl_lib.notebooks", "NotebookError"),
        ("gainmtl_lib.serve", "ServeError"),
    ):
        if module in sys.modules:
            errors.append(getattr(sys.modules[module], name))
    return tuple(errors)


def _hyphens(token: str) -> str:
    return token.replace("_", "-")


SPELLING = {"token_normalize_func": _hyphens, "help_option_names": ["-h", "--help"]}


def parameter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``-f FILE`` and ``-p NAME VALUE``, both repeatable."""
    files = click.option("-f", "--config", "files", multiple=True, type=Path, help="Parameter file; later ones win.")
    pairs = click.option(
        "-p", "pairs", multiple=True, nargs=2, metavar="NAME VALUE", help="One parameter; wins over files."
    )
    return files(pairs(command))


def named_values(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
    """The ``-p`` pairs with their values read."""
    return [(name, value_of(text)) for name, text in pairs]


def value_of(text: str) -> Any:
    """A command line's value as YAML reads it, except that 1e-4 is a number; text that is no YAML is itself."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: what looks like a date, 2024-13-01
        return text
