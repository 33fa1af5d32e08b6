"""Numbers and tables as the console shows them."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.table import Table


def number(value: Any) -> str:
    """Three decimals; whole numbers as they are; a dash for what has no answer."""
    return "–" if value is None or value != value else str(value) if isinstance(value, int) else f"{value:.3f}"


def frame_table(title: str, rows: pd.DataFrame) -> Table:
    """A data frame with its index as the first column."""
    table = Table(title=title, title_justify="left")
    table.add_column(str(rows.index.name or ""))
    for column in rows.columns:
        table.add_column(str(column), justify="right")
    for name, row in rows.iterrows():
        table.add_row(str(name), *(_short(value) for value in row))
    return table


def markdown_table(rows: pd.DataFrame) -> list[str]:
    """The lines of a Markdown table, the frame's index as the first column."""
    header = [str(rows.index.name or ""), *map(str, rows.columns)]
    body = [[str(name), *map(str, row)] for name, row in zip(rows.index, rows.to_numpy())]
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body)]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
