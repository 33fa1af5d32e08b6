"""Novel pictures on the console: what the verdict finds, what EfficientAD finds, what only EfficientAD finds."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gainmtl_lib.evaluation.novelty import Novelty


def print_novelty(console: Console, novelty: Novelty) -> None:
    """One table for each test split, and where the flag comes from."""
    for split, kinds in novelty.kinds.items():
        title = f"{split}: novel pictures, anomaly score above {novelty.threshold:.3f}"
        table = Table(title=title, title_justify="left")
        table.add_column("pictures")
        for heading in ("count", "called defective", "anomalous", "novel (anomalous, called normal)"):
            table.add_column(heading, justify="right")
        for kind in kinds:
            name = escape(kind.name) + (" (no training picture)" if kind.unseen else "")
            counts = kind.count, kind.called_defective, kind.anomalous, kind.novel
            table.add_row(name, *map(str, counts))
        console.print(table)
    console.print(f"threshold: {escape(novelty.summary['threshold_from'])}")
    console.print(f"EfficientAD run: {escape(novelty.source)}; teacher: {escape(novelty.teacher)}")
