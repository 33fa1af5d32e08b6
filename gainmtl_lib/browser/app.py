"""The CAM browser: what one or several runs decided, picture by picture, as widgets of a notebook."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Collection, Sequence
from html import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import anywidget
import ipywidgets as widgets
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.browser.library import (
    EFFICIENTAD,
    MAIN_MAPS,
    MAPS,
    VERDICTS,
    Choice,
    Note,
    NotesError,
    OpenedRun,
    PictureLibrary,
    Runs,
)
from gainmtl_lib.browser.panels import Look, Panel, ask, map_panel, plain_panel
from gainmtl_lib.evaluation import SPLITS
from gainmtl_lib.runs import FileError

PLACE = "data-gainmtl-place"
"""Attribute of a thumbnail: its place among the chosen pictures."""
PAGE = 14
"""Thumbnails at a time."""
MOST_RUNS = 6
"""Side by side; more would be too small to see anything."""
SIDES = {2: 560, 3: 400}
"""Longer side of the drawings by number of panels; 320 for more."""
SPLIT_NAMES = {"val": "validation (val)", "test": "test", "test_shift": "shifted test (test_shift)"}
VERDICT_NAMES = {verdict: f"{verdict} · {text}" for verdict, text in VERDICTS.items()}


class Touch(anywidget.AnyWidget):
    """Arrow keys and clicks on thumbnails, heard in the page and told to the kernel. Takes no room.

    Args:
        on_step: called with -1 or 1 for the left and right arrow.
        on_pick: called with the place of a clicked thumbnail.
    """

    _esm = Path(__file__).with_name("touch.js")
    _css = Path(__file__).with_name("browser.css")

    def __init__(self, on_step: Callable[[int], None], on_pick: Callable[[int], None]) -> None:
        super().__init__()
        self._on_step, self._on_pick = on_step, on_pick
        self.on_msg(self._hear)

    def _hear(self, _: Any, content: dict[str, Any], __: Any) -> None:
        if content.get("step") in (-1, 1):
            self._on_step(content["step"])
            self.send({"done": True})
        elif isinstance(content.get("place"), int):
            self._on_pick(content["place"])


# --- Which pictures, of which run, in which order


class FilterBar(widgets.HBox):
    """Lists for run, split, verdict, defect type and order; behind each value, how many pictures it would leave.

    Args:
        library: what is looked through.
        on_change: called after anything was chosen.
    """

    def __init__(self, library: PictureLibrary, on_change: Callable[[], None]) -> None:
        self.library, self._on_change = library, on_change
        self._filling = False
        names = list(library.runs)
        self.run, self.split, self.verdict, self.defect_type, self.order = (
            widgets.Dropdown(description=label, layout={"width": "auto"}).add_class("gainmtl-field")
            for label in ("Run", "Split", "Verdict", "Defect type", "Order")
        )
        self.run.options = names
        self.run.value = names[0]
        self.beside = {
            name: widgets.ToggleButton(description=name, tooltip=f"show {name} beside it", layout={"width": "auto"})
            for name in names
        }
        self.marked_only, self.novel_only = _box("marked only"), _box("novel only")
        self._fill(first=True)
        chips = [
            widgets.HTML("Beside it").add_class("gainmtl-label"),
            widgets.HBox([*self.beside.values()]).add_class("gainmtl-chips"),
        ]
        several = [self.run, widgets.VBox(chips)] * (len(names) > 1)
        boxes = [self.marked_only] + [self.novel_only] * any(opened.novelty for opened in library.runs.values())
        super().__init__([*several, self.split, self.verdict, self.defect_type, self.order, *boxes])
        self.add_class("gainmtl-filters")
        lists = self.run, self.split, self.verdict, self.defect_type, self.order
        for widget in (*lists, self.marked_only, self.novel_only, *self.beside.values()):
            widget.observe(self._changed, "value")

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

    def _changed(self, _: Any) -> None:
        if not self._filling:
            self._fill()
            self._on_change()

    def _fill(self, *, first: bool = False) -> None:
        """Offer what the run has; a value that it has too stays chosen."""
        self._filling = True
        opened = self.library.runs[self.name]
        for name, chip in self.beside.items():
            chip.layout.display = "none" if name == self.name else None
            chip.disabled = not chip.value and len(self.names) >= MOST_RUNS
        self.novel_only.disabled = opened.novelty is None
        self.novel_only.value = self.novel_only.value and opened.novelty is not None
        _offer(self.order, opened.orders)
        if first and (opened.table["split"] == "test").any():
            _offer(self.split, {"": "test"})
        choice, types = self.choice, sorted(opened.table["defect_type"].dropna().unique())
        splits = {split: SPLIT_NAMES[split] for split in SPLITS if (opened.table["split"] == split).any()}
        for field, column, words in (
            (self.split, "split", splits),
            (self.verdict, "verdict", VERDICT_NAMES),
            (self.defect_type, "defect_type", {name: name for name in types}),
        ):
            counts = opened.counts(choice, column)
            offered = {f"{text} ({counts.get(value, 0)})": value for value, text in words.items()}
            _offer(field, {f"all ({sum(counts.values())})": ""} | offered)
        self._filling = False


def _offer(field: widgets.Dropdown, options: dict[str, str]) -> None:
    if tuple(options.items()) != field.options:
        kept = field.value
        field.options = tuple(options.items())
        field.value = kept if kept in options.values() else next(iter(options.values()))


def _box(label: str, value: bool = False) -> widgets.Checkbox:
    return widgets.Checkbox(value=value, description=label, indent=False, layout={"width": "auto"})


def _button(text: str, act: Callable[[], None], tooltip: str = "") -> widgets.Button:
    button = widgets.Button(description=text, tooltip=tooltip, layout={"width": "auto"})
    button.on_click(lambda _: act())
    return button


# --- A strip of small pictures, a page at a time


MARKS = {
    "wrong_reason": ('<span class="gainmtl-wrong">!</span>', "right for the wrong reason"),
    "novel": ('<span class="gainmtl-novel">?</span>', "novel"),
}
"""By column, what stands behind the verdict where it is true, and what that means."""


class Strip(widgets.HBox):
    """One page of the chosen rows, the current one framed.

    Args:
        library: what is looked through.
        on_page: called with -1 or 1 by the buttons at its ends.
    """

    def __init__(self, library: PictureLibrary, on_page: Callable[[int], None]) -> None:
        self.library = library
        self.back = _button("‹", lambda: on_page(-1), "the thumbnails before these").add_class("gainmtl-arrow")
        self.on = _button("›", lambda: on_page(1), "the thumbnails after these").add_class("gainmtl-arrow")
        self.pictures = widgets.HTML().add_class("gainmtl-thumbnails")
        # A rule of its own moves the frame: stepping to the neighbour need not send a page of pictures again.
        self.frame = widgets.HTML(layout={"display": "none"})
        self._scope = f"gainmtl-{uuid4().hex[:8]}"
        self._page: tuple[str, bytes] | None = None
        super().__init__([self.back, self.pictures, self.on, self.frame])
        self.add_class("gainmtl-strip").add_class(self._scope)

    def show(self, name: str, rows: NDArray[np.intp], place: int) -> None:
        """Show the page that holds a place among the chosen rows of a run."""
        start = place // PAGE * PAGE
        on_page = rows[start : start + PAGE]
        if self._page != (name, on_page.tobytes()):
            self.pictures.value = self._html(name, on_page, start)
            self._page = name, on_page.tobytes()
        self.frame.value = f"<style>.{self._scope} [{PLACE}='{place}'] {{ outline: 3px solid #1a73e8; }}</style>"
        self.back.disabled, self.on.disabled = start == 0, start + PAGE >= len(rows)

    def _html(self, name: str, rows: NDArray[np.intp], start: int) -> str:
        opened = self.library.runs[name]
        cells = []
        for place, (row, jpeg) in enumerate(zip(rows, self.library.thumbnails(name, rows)), start=start):
            record = opened.table.iloc[row]
            verdict, score = record["verdict"], opened.system.rounded(record["score"])
            found = [MARKS[column] for column in MARKS if record.get(column, False)]
            known = [VERDICTS[verdict], f"{opened.system.score_name} {score}", *(meaning for _, meaning in found)]
            words = escape(f"{record['image']}: {', '.join(known)}")
            cells.append(
                f'<button type="button" {PLACE}="{place}" title="{words}">'
                f'<img alt="{words}" src="data:image/jpeg;base64,{b64encode(jpeg).decode()}">'
                f'<span class="gainmtl-{verdict}">{verdict}</span>{"".join(mark for mark, _ in found)} {score}</button>'
            )
        return "".join(cells)


# --- The current picture, large


FLAGS = {
    "wrong_reason": ' <span class="gainmtl-flag">right for the wrong reason</span>',
    "novel": ' <span class="gainmtl-flag gainmtl-novelty">novel: called normal, yet unlike the good parts</span>',
}
"""By the column that says where they stand."""


class Viewer(widgets.Box):
    """Panels in a row that wraps: the picture, then one panel per run.

    Args:
        library: what is looked at.
    """

    def __init__(self, library: PictureLibrary) -> None:
        self.library = library
        self.images = [widgets.Image(format="jpeg", value=b"") for _ in range(1 + MOST_RUNS)]
        self.words = [widgets.HTML() for _ in self.images]
        self.panels = [widgets.VBox(pair).add_class("gainmtl-panel") for pair in zip(self.images, self.words)]
        super().__init__(self.panels)
        self.add_class("gainmtl-stage")

    def show(self, names: Sequence[str], row: int, look: Look) -> None:
        """Draw a row of the first run, and the same picture in the others."""
        image = self.library.runs[names[0]].image(row)
        shown = self.library.shown(names[0], row, side_of(names))
        drawn: list[tuple[Panel, str]] = [(plain_panel(shown, outline=look.outline), "")]
        for name in names:
            opened = self.library.runs[name]
            place = row if name == names[0] else self.library.row_beside(name, image)
            if place is None:
                absent = (f"{name} was not evaluated on this picture.",)
                drawn.append((Panel(b"", absent), f"<b>{escape(name)}</b>"))
            else:
                caption = _caption(opened, place, look, with_verdict=len(names) > 1)
                drawn.append((map_panel(opened, place, shown, look), caption))
        for number, panel in enumerate(self.panels):
            panel.layout.display = None if number < len(drawn) else "none"
        for image_widget, words, (panel, caption) in zip(self.images, self.words, drawn):
            image_widget.layout.display = None if panel.jpeg else "none"
            image_widget.value = panel.jpeg
            words.value = f"<div>{caption}</div>" + _paragraphs(panel.words)


def side_of(names: Sequence[str]) -> int:
    """How large the drawings are when these runs are shown."""
    return SIDES.get(1 + len(names), 320)


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _headline(opened: OpenedRun, row: int) -> str:
    """What is known and decided of a picture, in one line of HTML."""
    record, system = opened.table.iloc[row], opened.system
    truth, kind = ("normal" if record["label"] == 0 else "defective"), record["defect_type"]
    if truth == "defective" and isinstance(kind, str):
        truth += f" ({kind})"
    sign = "≥" if record["score"] >= opened.threshold else "&lt;"
    parts = [
        f"<b>{escape(str(record['image']).rsplit('/', 1)[-1])}</b>",
        escape(str(record["split"])),
        f"truth: {escape(truth)}",
        _badge(record),
        f"{system.score_name} {system.rounded(record['score'])} {sign} {system.rounded(opened.threshold)}",
        *_iou(opened, record, system.main),
    ]
    if not pd.isna(record["defect_area"]):
        parts.append(f"defect area {record['defect_area']:.1%}")
    if opened.novelty is not None:  # what the other system says of the picture
        sign, rounded = "&gt;" if record["anomalous"] else "≤", EFFICIENTAD.rounded
        score, threshold = rounded(record["anomaly_score"]), rounded(opened.novelty.threshold)
        parts.append(f"{EFFICIENTAD.score_name} {score} {sign} {threshold}")
    return " <i>·</i> ".join(parts) + _flags(record)


def _caption(opened: OpenedRun, row: int, look: Look, *, with_verdict: bool) -> str:
    """What tells the runs apart; of a single run the headline has said it."""
    record = opened.table.iloc[row]
    parts = [f"<b>{escape(opened.name)}</b>"]
    if with_verdict:
        parts += [_badge(record), f"{opened.system.score_name} {opened.system.rounded(record['score'])}"]
    kind = None if look.kind is None else opened.own_kind(look.kind)
    if kind in opened.maps and (with_verdict or kind != opened.system.main):
        parts += _iou(opened, record, str(kind))
    return " <i>·</i> ".join(parts) + (_flags(record) if with_verdict else "")


def _badge(record: pd.Series) -> str:
    verdict = record["verdict"]
    return f'<span class="gainmtl-verdict gainmtl-{verdict}">{VERDICT_NAMES[verdict]}</span>'


def _flags(record: pd.Series) -> str:
    return "".join(flag for column, flag in FLAGS.items() if record.get(column, False))


def _iou(opened: OpenedRun, record: pd.Series, kind: str) -> list[str]:
    """The map's IoU with the mask; the main map's beside what the mask itself reaches on the map's grid."""
    value = record.get(MAPS[kind].column)
    if pd.isna(value):
        return []
    grid = f" (grid {record['grid_iou']:.2f})" if kind == opened.system.main else ""
    return [f"{MAPS[kind].iou} {value:.2f}{grid}"]


# --- Beside the pictures


NO_MAP = "none"


class MapControls(widgets.VBox):
    """Which map, on which scale, how strong, from which level on.

    Args:
        kinds: maps that any of the runs has; the main ones of two systems are one choice.
        on_change: called after any of it was changed.
    """

    def __init__(self, kinds: Collection[str], on_change: Callable[[], None]) -> None:
        look = Look()
        main = [kind for kind in MAIN_MAPS if kind in kinds]
        others = [(MAPS[kind].short, kind) for kind in MAPS if kind in kinds and kind not in main]
        maps = [(" / ".join(MAPS[kind].short for kind in main), main[0]), *others, ("none", NO_MAP)]
        self.kind = _toggle("Map", maps)
        self.scale = _toggle("Scale", [("absolute", True), ("per image", False)])
        self.scale.tooltips = [
            "fixed on validation: what stays below the maps of normal parts is calm",
            "stretched to each picture's own range: makes any picture glow",
        ]
        self.strength, self.level = _slider("Overlay", look.strength), _slider("Threshold", look.level or 0.5)
        self.contour = _box("white line at the threshold", True)
        self.outline = _box("outline of the annotated defect", look.outline)
        super().__init__([self.kind, self.scale, self.strength, self.level, self.contour, self.outline])
        self.add_class("gainmtl-group")
        for widget in self.children:
            widget.observe(lambda _: on_change(), "value")

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


def _toggle(label: str, options: list[tuple[str, Any]]) -> widgets.ToggleButtons:
    buttons = widgets.ToggleButtons(options=options, description=label, style={"button_width": "auto"})
    return buttons.add_class("gainmtl-field")


def _slider(label: str, value: float) -> widgets.FloatSlider:
    slider = widgets.FloatSlider(
        value=value, min=0, max=1, step=0.05, description=label, readout_format=".2f", layout={"width": "auto"}
    )
    return slider.add_class("gainmtl-slider")


class NoteForm(widgets.VBox):
    """A mark and a note on the current picture, saved as soon as they are left.

    Args:
        on_save: called with the mark and the words; gives a line on where they lie.
    """

    def __init__(self, on_save: Callable[[bool, str], str]) -> None:
        self.mark = _box("check this label")
        self.text = widgets.Textarea(
            placeholder="note on this picture, saved when you leave this field", continuous_update=False, rows=3
        )
        self.state = widgets.HTML().add_class("gainmtl-quiet")
        self._on_save, self._filling = on_save, False
        super().__init__([self.mark, self.text, self.state])
        self.add_class("gainmtl-group").add_class("gainmtl-note")
        for widget in (self.mark, self.text):
            widget.observe(self._changed, "value")

    def show(self, note: Note | None, state: str = "") -> None:
        """Put in what was last said of a picture; None locks the form."""
        self._filling = True
        self.mark.disabled = self.text.disabled = note is None
        self.mark.value, self.text.value, time = note or Note()
        self._filling = False
        self.state.value = escape(state or (f"saved {time.replace('T', ' ')[:16]}" if time else ""))

    def _changed(self, _: Any) -> None:
        if not self._filling:
            self.state.value = escape(self._on_save(self.mark.value, self.text.value))


# --- All of it


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
        self.touch = Touch(self.step, self.go_to)
        self.filters = FilterBar(self.library, self._choose)
        self.strip = Strip(self.library, lambda by: self.go_to((self.place // PAGE + by) * PAGE))
        self.headline = widgets.HTML().add_class("gainmtl-headline")
        self.back, self.on = _button("‹ previous", lambda: self.step(-1)), _button("next ›", lambda: self.step(1))
        self.viewer = Viewer(self.library)
        kinds = {kind for opened in self.library.runs.values() for kind in opened.maps}
        self.controls = MapControls(kinds, self._draw)
        self.what_if, self.answer = _button("What if the defect were not there?", self._ask), widgets.HTML()
        self.note = NoteForm(self._save)
        super().__init__(self._arrange())
        self.add_class("gainmtl-browser")
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

    def _arrange(self) -> list[widgets.Widget]:
        notices = widgets.HTML(_paragraphs(self.library.notices)).add_class("gainmtl-notices")
        notices.layout.display = None if self.library.notices else "none"
        top = widgets.HBox([self.headline, widgets.HBox([self.back, self.on])]).add_class("gainmtl-top")
        left = widgets.VBox([top, self.viewer]).add_class("gainmtl-left")
        asked = widgets.VBox([self.what_if, self.answer]).add_class("gainmtl-group")
        right = widgets.VBox([self.controls, asked, self.note]).add_class("gainmtl-right")
        body = widgets.HBox([left, right]).add_class("gainmtl-body")
        return [self.touch, self.filters, notices, self.strip, body]

    def _choose(self) -> None:
        """Filter and sort anew, and begin at the first; with another run alone, stay at the picture."""
        choice, image = self.filters.choice, self._shown if self._choice == self.filters.choice else None
        self._choice, self.rows = choice, self._opened.choose(choice)
        found = np.flatnonzero(self.rows == self._opened.row_of.get(image, -1)) if image else []
        self.place = int(found[0]) if len(found) else 0
        self._show()

    def _show(self) -> None:
        """Everything that depends on the current picture."""
        self.answer.value = ""
        self.what_if.disabled = not len(self.rows)
        self.back.disabled, self.on.disabled = self.place == 0, self.place >= len(self.rows) - 1
        self.strip.show(self.filters.name, self.rows, self.place)
        self.viewer.layout.display = None if len(self.rows) else "none"
        if not len(self.rows):
            self.headline.value = "<b>No picture fits.</b> Choose fewer filters."
            self.note.show(None)
            return
        row = int(self.rows[self.place])
        self._shown = self._opened.image(row)
        count = f'<span class="gainmtl-count">{self.place + 1} of {len(self.rows)}</span> '
        self.headline.value = count + _headline(self._opened, row)
        self._draw()
        try:
            self.note.show(self._opened.notes.last().get(self._shown, Note()))
        except NotesError as error:
            self.note.show(None, str(error))
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

    def _save(self, check_label: bool, text: str) -> str:
        notes = self._opened.notes
        try:
            note = notes.save(str(self._shown), check_label=check_label, text=text)
        except (FileError, NotesError) as error:
            return f"not saved: {error}"
        return f"saved {note.time[11:19]} in {notes.path}"

    def _ask(self) -> None:
        self.what_if.disabled = True
        self.answer.value = '<p class="gainmtl-quiet">asking the model …</p>'
        try:
            lines = []
            for name in self.filters.names:
                row = self.library.row_beside(name, str(self._shown))
                lines += ask(self.library.runs[name], row) if row is not None else [f"{name} lacks this picture."]
            self.answer.value = _paragraphs(lines)
        finally:
            self.what_if.disabled = False
