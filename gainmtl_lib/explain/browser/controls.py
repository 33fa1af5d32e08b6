"""The panel beside the pictures: how the map is shown, and the counterfactual at a click."""

from __future__ import annotations

from collections.abc import Callable, Collection
from html import escape
from typing import Any

import ipywidgets as widgets

from gainmtl_lib.explain.panels import Look
from gainmtl_lib.explain.systems import MAIN_MAPS, MAPS

NO_MAP = "none"


class MapControls(widgets.VBox):
    """Which map, on which scale, how strong, from which level on.

    Args:
        kinds: maps that any of the runs has; the main ones of two systems are one choice.
        on_change: called after any of it was changed.
    """

    def __init__(self, kinds: Collection[str], on_change: Callable[[], None]) -> None:
        look = Look()
        self.kind = _choice("Map", [*_offered(kinds), ("none", NO_MAP)])
        self.scale = _choice("Scale", [("absolute", True), ("per image", False)])
        self.scale.tooltips = [
            "fixed on validation: what stays below the maps of normal parts is calm",
            "stretched to each picture's own range: makes any picture glow",
        ]
        self.strength = _slider("Overlay", look.strength)
        self.level = _slider("Threshold", look.level or 0.5)
        self.contour = _box("white line at the threshold", True)
        self.outline = _box("outline of the annotated defect", look.outline)
        for widget in (self.kind, self.scale, self.strength, self.level, self.contour, self.outline):
            widget.observe(lambda _: on_change(), "value")
        super().__init__([self.kind, self.scale, self.strength, self.level, self.contour, self.outline])
        self.add_class("gainmtl-group")

    @property
    def look(self) -> Look:
        """What is set."""
        return Look(
            kind=None if self.kind.value == NO_MAP else str(self.kind.value),
            absolute=bool(self.scale.value),
            strength=float(self.strength.value),
            level=float(self.level.value) if self.contour.value else None,
            outline=bool(self.outline.value),
        )


class WhatIf(widgets.VBox):
    """A button that asks whether the verdict would stand without the defect.

    Args:
        on_ask: called at a click; gives the answer as lines.
    """

    def __init__(self, on_ask: Callable[[], list[str]]) -> None:
        self.button = widgets.Button(description="What if the defect were not there?", layout={"width": "auto"})
        self.answer = widgets.HTML()
        self.button.on_click(lambda _: self._ask(on_ask))
        super().__init__([self.button, self.answer])
        self.add_class("gainmtl-group")

    def clear(self) -> None:
        """Forget the answer: it was of another picture."""
        self.answer.value = ""

    def _ask(self, on_ask: Callable[[], list[str]]) -> None:
        self.button.disabled = True
        self.answer.value = '<p class="gainmtl-quiet">asking the model …</p>'
        try:
            self.answer.value = "".join(f"<p>{escape(line)}</p>" for line in on_ask())
        finally:
            self.button.disabled = False


def _offered(kinds: Collection[str]) -> list[tuple[str, str]]:
    main = [kind for kind in MAIN_MAPS if kind in kinds]
    others = [(MAPS[kind].short, kind) for kind in MAPS if kind in kinds and kind not in main]
    return [(" / ".join(MAPS[kind].short for kind in main), main[0]), *others]


def _choice(label: str, options: list[tuple[str, Any]]) -> widgets.ToggleButtons:
    buttons = widgets.ToggleButtons(options=options, description=label, style={"button_width": "auto"})
    return buttons.add_class("gainmtl-field")


def _slider(label: str, value: float) -> widgets.FloatSlider:
    slider = widgets.FloatSlider(
        value=value, min=0, max=1, step=0.05, description=label, readout_format=".2f", layout={"width": "auto"}
    )
    return slider.add_class("gainmtl-slider")


def _box(label: str, value: bool) -> widgets.Checkbox:
    return widgets.Checkbox(value=value, description=label, indent=False, layout={"width": "auto"})
