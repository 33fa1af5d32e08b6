"""A strip of small pictures, a page at a time: as many widgets for ten thousand rows as for ten."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from html import escape
from uuid import uuid4

import ipywidgets as widgets
import numpy as np
from numpy.typing import NDArray

from gainmtl_lib.explain.browser.touch import PLACE
from gainmtl_lib.explain.library import PictureLibrary
from gainmtl_lib.explain.opened import VERDICTS

PAGE = 14
MARKS = (
    ("wrong_reason", '<span class="gainmtl-wrong">!</span>', "right for the wrong reason"),
    ("novel", '<span class="gainmtl-novel">?</span>', "novel"),
)
"""Column, what stands behind the verdict where it is true, and what that means."""


class Strip(widgets.HBox):
    """One page of the chosen rows, the current one framed.

    Args:
        library: what is looked through.
        on_page: called with -1 or 1 by the buttons at its ends.
    """

    def __init__(self, library: PictureLibrary, on_page: Callable[[int], None]) -> None:
        self.library = library
        self.back = _button("‹", "the thumbnails before these", lambda: on_page(-1))
        self.on = _button("›", "the thumbnails after these", lambda: on_page(1))
        self.pictures = widgets.HTML().add_class("gainmtl-thumbnails")
        # A rule of its own moves the frame: stepping to the neighbour need not send a page of pictures again.
        self.frame = widgets.HTML(layout={"display": "none"})
        self._scope = f"gainmtl-{uuid4().hex[:8]}"
        self._page: tuple[str, bytes] | None = None
        super().__init__([self.back, self.pictures, self.on, self.frame])
        self.add_class("gainmtl-strip").add_class(self._scope)

    def show(self, name: str, rows: NDArray[np.intp], place: int) -> None:
        """Show the page that holds a place among the rows.

        Args:
            name: of the run.
            rows: chosen, in order; may be none.
            place: of the current row among them.
        """
        start = place // PAGE * PAGE
        on_page = rows[start : start + PAGE]
        page = name, on_page.tobytes()
        if page != self._page:
            self.pictures.value = self._html(name, on_page, start)
            self._page = page
        self.frame.value = f"<style>.{self._scope} [{PLACE}='{place}'] {{ outline: 3px solid #1a73e8; }}</style>"
        self.back.disabled, self.on.disabled = start == 0, start + PAGE >= len(rows)

    def _html(self, name: str, rows: NDArray[np.intp], start: int) -> str:
        opened = self.library.runs[name]
        table = opened.table
        cells = []
        for place, (row, jpeg) in enumerate(zip(rows, self.library.thumbnails(name, rows)), start=start):
            verdict, score = str(table["verdict"].iloc[row]), opened.system.rounded(table["score"].iloc[row])
            words = f"{opened.image(row)}: {VERDICTS[verdict]}, {opened.system.score_name} {score}"
            marks = ""
            for column, mark, meaning in MARKS:
                if column in table and bool(table[column].iloc[row]):
                    marks, words = marks + mark, f"{words}, {meaning}"
            cells.append(
                f'<button type="button" {PLACE}="{place}" title="{escape(words)}">'
                f'<img alt="{escape(words)}" src="data:image/jpeg;base64,{b64encode(jpeg).decode()}">'
                f'<span class="gainmtl-{verdict}">{verdict}</span>{marks} {score}</button>'
            )
        return "".join(cells)


def _button(text: str, title: str, act: Callable[[], None]) -> widgets.Button:
    button = widgets.Button(description=text, tooltip=title).add_class("gainmtl-arrow")
    button.on_click(lambda _: act())
    return button
