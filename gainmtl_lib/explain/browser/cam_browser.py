"""The browser: filters and thumbnails above, the picture large with its maps, controls and notes at the side."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from numpy.typing import NDArray

from gainmtl_lib.explain.browser.controls import MapControls, WhatIf
from gainmtl_lib.explain.browser.filters import FilterBar
from gainmtl_lib.explain.browser.note_form import NoteForm
from gainmtl_lib.explain.browser.style import STYLE
from gainmtl_lib.explain.browser.thumbnails import PAGE, Strip
from gainmtl_lib.explain.browser.touch import ROOT, Touch
from gainmtl_lib.explain.browser.viewer import Viewer, headline, side_of
from gainmtl_lib.explain.browser.what_if import ask
from gainmtl_lib.explain.library import PictureLibrary, Runs
from gainmtl_lib.explain.notes import NOTHING_SAID, Note, NotesError
from gainmtl_lib.explain.opened import Choice, OpenedRun


class CamBrowser(widgets.VBox):
    """Look through what one or several runs decided, picture by picture.

    Opens from the runs' files alone; a model is loaded only when the counterfactual is asked for. The arrow keys
    step; notes and marks go to ``notes.csv`` beside the run at once.

    Args:
        runs: one or several evaluated runs, as `Run` or as folders; the first leads, others can stand beside it.
        data_root: where the pictures lie now, when they moved since the runs were trained.

    Raises:
        RunError: no run was given, or one of them is unfinished, not evaluated, or its files do not fit together.
    """

    def __init__(self, runs: Runs, *, data_root: str | Path | None = None) -> None:
        self.library = PictureLibrary(runs, data_root=data_root)
        self.rows: NDArray[np.intp] = np.empty(0, dtype=np.intp)
        self.place = 0
        self._choice: Choice | None = None
        self._shown: str | None = None
        self.filters = FilterBar(self.library, self._choose)
        kinds = {kind for opened in self.library.runs.values() for kind in opened.maps}
        self.controls = MapControls(kinds, self._draw)
        self.what_if = WhatIf(self._ask)
        self.note = NoteForm(self._save)
        self.viewer = Viewer(self.library)
        self.strip = Strip(self.library, self._turn_page)
        self.touch = Touch(self.step, self.go_to)
        self.headline = widgets.HTML().add_class("gainmtl-headline")
        self.back, self.on = _button("‹ previous", lambda: self.step(-1)), _button("next ›", lambda: self.step(1))
        super().__init__(self._arrange())
        self.add_class(ROOT)
        self._choose()

    def step(self, by: int) -> None:
        """Go on to a neighbour; stays at the ends."""
        self.go_to(self.place + by)

    def go_to(self, place: int) -> None:
        """Show one of the chosen pictures, counted from 0; outside of them the nearest."""
        place = min(max(place, 0), max(len(self.rows) - 1, 0))
        if place != self.place:
            self.place = place
            self._show()

    def close(self) -> None:
        """Take the widgets off the page and stop reading ahead."""
        if "library" in self.__dict__:  # Python closes a widget too when it never came to be
            self.library.pictures.close()
        super().close()

    @property
    def _opened(self) -> OpenedRun:
        return self.library.runs[self.filters.name]

    @property
    def _image(self) -> str:
        return self._opened.image(int(self.rows[self.place]))

    def _arrange(self) -> list[widgets.Widget]:
        notices = "".join(f"<p>{escape(notice)}</p>" for notice in self.library.notices)
        top = widgets.HBox([self.headline, widgets.HBox([self.back, self.on])]).add_class("gainmtl-top")
        left = widgets.VBox([top, self.viewer]).add_class("gainmtl-left")
        right = widgets.VBox([self.controls, self.what_if, self.note]).add_class("gainmtl-right")
        return [
            widgets.HTML(f"<style>{STYLE}</style>", layout={"display": "none"}),
            self.touch,
            self.filters,
            widgets.HTML(notices, layout={"display": None if notices else "none"}).add_class("gainmtl-notices"),
            self.strip,
            widgets.HBox([left, right]).add_class("gainmtl-body"),
        ]

    def _choose(self) -> None:
        """Filter and sort anew, and begin at the first; with another run alone, stay at the picture."""
        choice, image = self.filters.choice, self._shown if self._choice == self.filters.choice else None
        self._choice, self.rows = choice, self._opened.choose(choice)
        row = self._opened.row_of.get(image) if image is not None else None
        found = np.flatnonzero(self.rows == row) if row is not None else []
        self.place = int(found[0]) if len(found) else 0
        self._show()

    def _show(self) -> None:
        """Everything that depends on the current picture."""
        self.what_if.clear()
        self.what_if.button.disabled = not len(self.rows)
        self.back.disabled, self.on.disabled = self.place == 0, self.place >= len(self.rows) - 1
        self.strip.show(self.filters.name, self.rows, self.place)
        self.viewer.layout.display = None if len(self.rows) else "none"
        if not len(self.rows):
            self.headline.value = "<b>No picture fits.</b> Choose fewer filters."
            self.note.show("", "", NOTHING_SAID, self._opened.notes.problem)
            return
        self._shown = self._image
        count = f'<span class="gainmtl-count">{self.place + 1} of {len(self.rows)}</span> '
        self.headline.value = count + headline(self._opened, int(self.rows[self.place]))
        self._draw()
        self._recall()
        self._read_ahead()

    def _read_ahead(self) -> None:
        name = self.filters.name
        if self.place + 1 < len(self.rows):
            self.library.prefetch(name, int(self.rows[self.place + 1]), side_of(self.filters.names))
        next_page = (self.place // PAGE + 1) * PAGE
        self.library.prefetch_thumbnails(name, self.rows[next_page : next_page + PAGE])

    def _draw(self) -> None:
        if len(self.rows):
            self.viewer.show(self.filters.names, int(self.rows[self.place]), self.controls.look)

    def _recall(self) -> None:
        notes = self._opened.notes
        said = NOTHING_SAID if notes.problem else notes.of(self._image)
        self.note.show(self.filters.name, self._image, said, notes.problem)

    def _save(self, name: str, image: str, **changed: Any) -> tuple[Note, str]:
        opened = self.library.runs.get(name)
        if opened is None or image not in opened.row_of:
            raise NotesError(f"{name} has no picture {image!r}")
        note = opened.notes.save(image, **changed)
        return note, f"saved {note.time[11:19]} in {opened.notes.path}"

    def _ask(self) -> list[str]:
        image, lines = self._image, []
        for name in self.filters.names:
            row = self.library.row_beside(name, image)
            lines += ask(self.library.runs[name], row) if row is not None else [f"{name} lacks this picture."]
        return lines

    def _turn_page(self, by: int) -> None:
        self.go_to((self.place // PAGE + by) * PAGE)


def _button(text: str, act: Callable[[], None]) -> widgets.Button:
    button = widgets.Button(description=text, layout={"width": "auto"})
    button.on_click(lambda _: act())
    return button
