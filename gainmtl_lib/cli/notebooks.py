"""The command that refreshes the notebooks."""

from __future__ import annotations

from collections.abc import Sequence

import click

from gainmtl_lib.parameters import repository_root


@click.command()
@click.argument("names", nargs=-1)
def notebooks(names: Sequence[str]) -> None:
    """Execute the committed notebooks in place with their own parameters, and clean them."""
    from gainmtl_lib.notebooks import refresh

    folder = repository_root() / "notebooks"
    for path in sorted(folder.glob("*.ipynb")):
        if not names or path.stem in names or path.stem[:2] in names:
            refresh(path)
