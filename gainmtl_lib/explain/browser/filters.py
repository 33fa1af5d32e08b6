"""The bar that says which pictures, of which run, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as widgets

from gainmtl_lib.evaluation.stored import SPLITS
from gainmtl_lib.explain.library import PictureLibrary
from gainmtl_lib.explain.opened import VERDICTS, Choice

EVERY = ""
"""Value of a list that leaves its column free."""
MOST_RUNS = 6
"""Side by side; more would be too small to see anything."""
SPLIT_NAMES = {"val": "validation (val)", "test": "test", "test_shift": "shifted test (test_shift)"}


class FilterBar(widgets.HBox):
    """Lists for run, split, verdict, defect type and order; behind each value, how many pictures it would leave.

    Novel pictures can be asked for where a run knows of some.

    Args:
        library: what is looked through.
        on_change: called after anything was chosen.
    """

    def __init__(self, library: PictureLibrary, on_change: Callable[[], None]) -> None:
        self.library, self._on_change = library, on_change
        self._quiet = False
        names = list(library.runs)
        self.run = _field("Run", [(name, name) for name in names])
        self.beside = {name: _chip(name) for name in names}
        self.split = _field("Split", [])
        self.verdict = _field("Verdict", [])
        self.defect_type = _field("Defect type", [])
        self.order = _field("Order", [])
        self.marked_only, self.novel_only = _box("marked only"), _box("novel only")
        chips = widgets.VBox([_words("Beside it"), widgets.HBox([*self.beside.values()]).add_class("gainmtl-chips")])
        several = [self.run, chips] if len(names) > 1 else []
        boxes = [self.marked_only] + [self.novel_only] * any(opened.novelty for opened in library.runs.values())
        super().__init__([*several, self.split, self.verdict, self.defect_type, self.order, *boxes])
        self.add_class("gainmtl-filters")
        self._fill(first=True)
        for field in (*self._lists(), self.marked_only, self.novel_only, *self.beside.values()):
            field.observe(self._changed, "value")

    @property
    def name(self) -> str:
        """The run whose verdicts are filtered and sorted."""
        return str(self.run.value)

    @property
    def names(self) -> list[str]:
        """That run, then those chosen beside it."""
        return [self.name, *(name for name, chip in self.beside.items() if chip.value and name != self.name)]

    @property
    def choice(self) -> Choice:
        """What is chosen."""
        return Choice(
            split=self.split.value or None,
            verdict=self.verdict.value or None,
            defect_type=self.defect_type.value or None,
            marked_only=self.marked_only.value,
            novel_only=self.novel_only.value,
            order=str(self.order.value),
        )

    def _lists(self) -> tuple[widgets.Dropdown, ...]:
        return self.run, self.split, self.verdict, self.defect_type, self.order

    def _changed(self, _: Any) -> None:
        if not self._quiet:
            self._fill()
            self._on_change()

    def _fill(self, *, first: bool = False) -> None:
        opened = self.library.runs[self.name]
        table = opened.table
        with self._silence():
            for name, chip in self.beside.items():
                chip.layout.display = "none" if name == self.name else None
                chip.disabled = not chip.value and len(self.names) >= MOST_RUNS
            self.novel_only.disabled = opened.novelty is None
            self.novel_only.value = self.novel_only.value and opened.novelty is not None
            _offer(self.order, [(opened.words_of(order), order) for order in opened.orders])
            if first and (table["split"] == "test").any():
                _offer(self.split, [("", "test")])
            choice = self.choice
            for field, column, values in (
                (self.split, "split", SPLITS),
                (self.verdict, "verdict", tuple(VERDICTS)),
                (self.defect_type, "defect_type", tuple(sorted(table["defect_type"].dropna().unique()))),
            ):
                _offer(field, _counted(column, values, opened.counts(choice, column), set(table[column].dropna())))

    @contextmanager
    def _silence(self) -> Iterator[None]:
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False


def _counted(column: str, values: tuple[str, ...], counts: dict[str, int], present: set[str]) -> list[tuple[str, str]]:
    words = {"split": SPLIT_NAMES, "verdict": {key: f"{key} · {text}" for key, text in VERDICTS.items()}}.get(
        column, {}
    )
    offered = [value for value in values if value in present or column == "verdict"]
    everything = f"all ({sum(counts.values())})"
    return [(everything, EVERY), *((f"{words.get(v, v)} ({counts.get(v, 0)})", v) for v in offered)]


def _offer(field: widgets.Dropdown, options: list[tuple[str, str]]) -> None:
    """Other options, the same value where it is among them."""
    if tuple(options) == field.options:
        return
    kept = field.value
    field.options = options
    values = [value for _, value in options]
    field.value = kept if kept in values else values[0]


def _field(label: str, options: list[tuple[str, str]]) -> widgets.Dropdown:
    field = widgets.Dropdown(options=options, description=label, layout={"width": "auto"})
    return field.add_class("gainmtl-field")


def _chip(name: str) -> widgets.ToggleButton:
    return widgets.ToggleButton(description=name, tooltip=f"show {name} beside it", layout={"width": "auto"})


def _box(label: str) -> widgets.Checkbox:
    return widgets.Checkbox(description=label, indent=False, layout={"width": "auto"})


def _words(text: str) -> widgets.HTML:
    return widgets.HTML(text).add_class("gainmtl-label")
