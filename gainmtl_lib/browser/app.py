"""How the browser looks: quiet greys, one accent, colours that any colour vision tells apart.

The thumbnails stand in 14 columns, one for each of a page (`thumbnails.PAGE`), in fewer where there is no room.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import anywidget
import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
import traitlets
from numpy.typing import NDArray
from safetensors import SafetensorError

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.browser.library import (
    EFFICIENTAD,
    MAIN_MAPS,
    MAPS,
    NOTHING_SAID,
    VERDICTS,
    Choice,
    Note,
    NotesError,
    OpenedRun,
    PictureLibrary,
    Runs,
)
from gainmtl_lib.browser.panels import Look, Panel, map_panel, plain_panel
from gainmtl_lib.dataset import load_picture
from gainmtl_lib.evaluation import SPLITS
from gainmtl_lib.explain import Frame, answer, ask_counterfactual, marked
from gainmtl_lib.figures import fitted
from gainmtl_lib.model import OUTSIDE_SOURCES
from gainmtl_lib.readers import DataError, read_image
from gainmtl_lib.runs import FileError, Run

STYLE = """
.gainmtl-browser { font-size: 13px; line-height: 1.4; color: #1f2933; gap: 8px; padding: 4px 2px; overflow: visible;
  --line: #d5dbe1; --quiet: #5c6873; }
.gainmtl-browser:focus { outline: none; }
.gainmtl-browser:focus-visible { outline: 2px solid #a8c7fa; }
.gainmtl-browser * { overflow-wrap: anywhere; }
.gainmtl-browser p { margin: 2px 0; }
.gainmtl-browser .widget-html-content { line-height: 1.45; }
.gainmtl-browser .mod-active { background: #1f4e79; color: #fff; }
.gainmtl-browser .widget-checkbox label { display: flex; align-items: center; gap: 6px; }
.gainmtl-browser .widget-checkbox input { margin: 0; }
.gainmtl-filters { flex-wrap: wrap; gap: 6px 12px; align-items: flex-end; padding-bottom: 8px;
  border-bottom: 1px solid var(--line); overflow: visible; }
.gainmtl-browser .gainmtl-field { flex-direction: column; align-items: stretch; height: auto; margin: 0; }
.gainmtl-browser .gainmtl-field > label, .gainmtl-label { width: auto; text-align: left; font-size: 12px; height: 18px;
  line-height: 18px; color: var(--quiet); margin: 0; }
.gainmtl-browser .gainmtl-field > select { flex: none; height: 28px; margin: 0; width: auto; min-width: 84px;
  max-width: 240px; }
.gainmtl-browser .gainmtl-field button { padding: 0 9px; }
.gainmtl-note { display: flex; flex-direction: column; padding-inline: 2px; }
.gainmtl-note label { display: flex; align-items: center; gap: 6px; height: 28px; }
.gainmtl-note input { margin: 0; }
.gainmtl-note textarea { font: inherit; color: inherit; background: #fff; box-sizing: border-box; width: 100%;
  height: 58px; padding: 4px 8px; border: 1px solid #9e9e9e; border-radius: 0; resize: vertical; }
.gainmtl-note textarea:focus { border-color: #64b5f6; outline: none; }
.gainmtl-chips button { margin: 0 4px 0 0; }
.gainmtl-notices { background: #fff6e0; border-left: 3px solid #e69f00; padding: 4px 10px; margin: 0; }
.gainmtl-notices:empty { display: none; }
.gainmtl-body { flex-wrap: wrap; gap: 10px 18px; align-items: flex-start; overflow: visible; }
.gainmtl-left { flex: 1 1 420px; min-width: 0; gap: 8px; overflow: visible; }
.gainmtl-right { flex: 0 1 272px; min-width: 240px; gap: 10px; overflow: visible; }
.gainmtl-group { gap: 4px; padding-bottom: 10px; border-bottom: 1px solid var(--line); overflow: visible; }
.gainmtl-group:last-child { border-bottom: none; }
.gainmtl-top { justify-content: space-between; align-items: flex-start; gap: 8px; flex-wrap: wrap; overflow: visible; }
.gainmtl-headline { flex: 1 1 300px; margin: 0; min-height: 38px; }
.gainmtl-browser i { color: #9aa5b1; font-style: normal; }
.gainmtl-count { color: var(--quiet); margin-right: 8px; }
.gainmtl-browser .gainmtl-stage { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 10px;
  align-items: start; overflow: visible; }
.gainmtl-panel { min-width: 0; max-width: 640px; overflow: visible; }
.gainmtl-panel img { width: 100%; height: auto; max-height: max(220px, calc(100vh - 340px));
  object-fit: contain; object-position: left top;
  margin: 0; border-radius: 3px; }
.jp-NotebookPanel .gainmtl-panel img { max-height: max(220px, calc(100vh - 470px)); }
.gainmtl-verdict { color: #fff; border-radius: 3px; padding: 0 6px; white-space: nowrap; }
.gainmtl-TP { background: #0072b2; } .gainmtl-FN { background: #b34700; }
.gainmtl-FP { background: #8f6400; } .gainmtl-TN { background: #5c6873; }
.gainmtl-flag { color: #7a1f5c; border: 1px solid #cc79a7; background: #fbeff6; border-radius: 3px; padding: 0 6px;
  white-space: nowrap; }
.gainmtl-flag.gainmtl-novelty { color: #00563d; border-color: #009e73; background: #ecf8f4; }
.gainmtl-strip { align-items: center; gap: 4px; overflow: visible; }
.gainmtl-strip .gainmtl-arrow { width: 28px; padding: 0; flex: none; }
.gainmtl-thumbnails { flex: 1 1 auto; margin: 0; min-width: 0; }
.gainmtl-thumbnails .widget-html-content { display: grid; gap: 6px; padding: 3px;
  grid-template-columns: repeat(auto-fill, minmax(max(56px, (100% - 78px) / 14), 1fr)); }
.gainmtl-thumbnails button { border: none; background: none; padding: 0; font: inherit; font-size: 11px; color: inherit;
  cursor: pointer; border-radius: 3px; max-width: 84px; }
.gainmtl-thumbnails img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #eef1f4;
  border-radius: 3px; }
.gainmtl-thumbnails span { color: #fff; border-radius: 2px; padding: 0 3px; }
.gainmtl-thumbnails .gainmtl-wrong { background: #7a1f5c; }
.gainmtl-thumbnails .gainmtl-novel { background: #00563d; }
.gainmtl-quiet { color: var(--quiet); font-size: 12px; }
.gainmtl-browser .gainmtl-slider > label { width: 66px; text-align: left; }
.gainmtl-browser .gainmtl-slider .widget-readout { min-width: 40px; text-align: right; }
"""


# --- Arrow keys and clicks on thumbnails, heard in the page and told to the kernel.


ROOT = "gainmtl-browser"
PLACE = "data-gainmtl-place"


class Touch(anywidget.AnyWidget):
    """Takes no room; belongs inside an element of class `ROOT`.

    Args:
        on_step: called with -1 or 1 for the left and right arrow.
        on_pick: called with the number of a clicked thumbnail, an element with the attribute `PLACE`.
    """

    _esm = """
    const TYPED_INTO = "textarea, select, [contenteditable]:not([contenteditable='false']), [role='slider'], "
      + "[role='textbox'], input:not([type='checkbox']):not([type='radio']):not([type='button'])";

    function render({ model, el }) {
      const stop = new AbortController();
      const listen = (type, act) => window.addEventListener(type, act, { capture: true, signal: stop.signal });
      const root = () => el.closest(".ROOT");
      const browserOf = (node) => (node instanceof Element ? node.closest(".ROOT") : null);
      const inside = (node) => browserOf(node) !== null && browserOf(node) === root();
      let waiting = false, byMouse = false;

      // A key pressed in a browser is that one's. Only one pressed in none is for the browser under the mouse, or for
      // the only one there is.
      const meant = ({ target }) => browserOf(target) ? inside(target)
        : root()?.matches(":hover") || (target === document.body && document.querySelectorAll(".ROOT").length === 1);

      listen("keydown", (event) => {
        byMouse = false;
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!step || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
        if (event.target.closest?.(TYPED_INTO) || !meant(event)) return;
        event.preventDefault();
        event.stopImmediatePropagation();  // every browser of the page listens, also a second view of this one
        if (event.repeat && waiting) return;  // a held key goes on as fast as pictures come, and stops with the key
        waiting = true;
        model.send({ step });
      });
      model.on("msg:custom", () => { waiting = false; });

      listen("click", (event) => {
        const thumbnail = inside(event.target) && event.target.closest("[PLACE]");
        if (thumbnail) model.send({ place: Number(thumbnail.getAttribute("PLACE")) });
      });

      // After a list or a slider was used with the mouse the arrows are for pictures again; Tab reaches it as ever.
      const handBack = () => root()?.focus({ preventScroll: true });
      listen("pointerdown", () => { byMouse = true; });
      listen("change", ({ target }) => { if (byMouse && inside(target) && target.matches("select")) handBack(); });
      listen("pointerup", () => setTimeout(() => {
        const active = document.activeElement;
        if (inside(active) && active.matches("[role='slider']")) handBack();
      }));
      // Boxes take no focus of their own accord, and this one is put on the page only after its contents.
      const placed = setInterval(() => {
        if (!root()) return;
        root().tabIndex = 0;
        clearInterval(placed);
      }, 50);
      return () => { stop.abort(); clearInterval(placed); };
    }
    export default { render };
    """.replace("ROOT", ROOT).replace("PLACE", PLACE)

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


# --- A mark and a note on a picture, saved as soon as they are left, to the picture that stood there.


class NoteForm(anywidget.AnyWidget):
    """The form, which only reports what was changed in it.

    Args:
        on_save: called with run, picture and what was changed, ``check_label`` or ``text``; gives the note that then
            counts and a line on where it lies. What keeps it from being saved is raised and told in the form.

    Attributes:
        shown: of which run and picture the form speaks, what was last said of it, and a line on its state.
    """

    _esm = """
    const HTML = `
      <label><input type="checkbox"> check this label</label>
      <textarea rows="3" aria-label="note on this picture" data-lm-suppress-shortcuts="true"
        placeholder="note on this picture, saved when you leave this field"></textarea>
      <p class="gainmtl-quiet" role="status"></p>`;

    function render({ model, el }) {
      el.innerHTML = HTML;
      const [mark, text, state] = ["input", "textarea", "p"].map((name) => el.querySelector(name));
      const unanswered = new Set();
      let about = { run: "", image: "", text: "" };  // what the form speaks of, which is what a change is saved to

      const save = (changed) => {
        const id = Math.random().toString(36);
        unanswered.add(id);
        model.send({ run: about.run, image: about.image, id, ...changed });
      };
      const saveText = () => {
        if (text.value === about.text) return;
        about.text = text.value;
        save({ text: text.value });
      };
      const show = () => {
        const next = model.get("shown");
        unanswered.delete(next.answered);
        const same = next.run === about.run && next.image === about.image;
        const typing = document.activeElement === text && text.value !== about.text;
        if (!same && typing) {
          state.textContent = `This note is on ${about.image}. Leave the field to save it and to go on.`;
          return;
        }
        state.textContent = next.state;
        if (same && unanswered.size) return;  // the answer to an earlier change knows nothing of the last one
        if (!same) saveText();
        about = { ...next, text: next.kept ? next.text : null };  // one that was not kept is saved anew when it is left
        mark.checked = next.check_label;
        if (!typing) text.value = next.text;
        mark.disabled = text.disabled = !next.image;
      };

      mark.addEventListener("change", () => save({ check_label: mark.checked }));
      text.addEventListener("keydown", (event) => event.stopPropagation());
      text.addEventListener("blur", () => { saveText(); show(); });
      model.on("change:shown", show);
      show();
      return () => { saveText(); model.off("change:shown", show); };
    }
    export default { render };
    """

    shown = traitlets.Dict().tag(sync=True)

    def __init__(self, on_save: Callable[..., tuple[Note, str]]) -> None:
        super().__init__()
        self._on_save = on_save
        self.on_msg(self._hear)
        self.show("", "", NOTHING_SAID)
        self.add_class("gainmtl-group").add_class("gainmtl-note")

    def show(self, run: str, image: str, note: Note, state: str = "") -> None:
        """Put in what was last said of a picture; no picture locks the form."""
        state = state or (f"saved {note.time.replace('T', ' ')[:16]}" if note.time else "")
        self._put(run, image, note, state)

    def _put(self, run: str, image: str, note: Note, state: str, *, answered: str = "", kept: bool = True) -> None:
        self.shown = {"run": run, "image": image, "check_label": note.check_label, "text": note.text, "state": state,
                      "answered": answered, "kept": kept}  # fmt: skip

    def _hear(self, _: Any, content: dict[str, Any], __: Any) -> None:
        run, image, answered = (content.get(key) for key in ("run", "image", "id"))
        changed = {name: content[name] for name, kind in SAID.items() if isinstance(content.get(name), kind)}
        if not (isinstance(run, str) and isinstance(image, str) and isinstance(answered, str) and changed):
            return
        kept = True
        try:
            note, state = self._on_save(run, image, **changed)
        except (FileError, NotesError) as error:
            kept, state = "text" not in changed, f"not saved: {error}"
            typed = self.shown | changed
            note = Note(bool(typed["check_label"]), str(typed["text"]))
        if (run, image) == (self.shown["run"], self.shown["image"]):
            self._put(run, image, note, state, answered=answered, kept=kept)
        else:
            self.shown = self.shown | {"state": f"{image}: {state}", "answered": answered}


SAID = {"check_label": bool, "text": str}
"""What the page may report as changed."""


# --- The panel beside the pictures


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


# --- The bar that says which pictures, of which run, in which order.


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
        self.marked_only, self.novel_only = _box_filters("marked only"), _box_filters("novel only")
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


def _box_filters(label: str) -> widgets.Checkbox:
    return widgets.Checkbox(description=label, indent=False, layout={"width": "auto"})


def _words(text: str) -> widgets.HTML:
    return widgets.HTML(text).add_class("gainmtl-label")


# --- A strip of small pictures, a page at a time


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


# --- The current picture, large


SIDES = {2: 560, 3: 400}
"""Longer side of the drawings by number of panels; 320 for more."""
FLAGS = {
    "wrong_reason": '<span class="gainmtl-flag">right for the wrong reason</span>',
    "novel": '<span class="gainmtl-flag gainmtl-novelty">novel: called normal, yet unlike the good parts</span>',
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
        self.panels = [
            widgets.VBox([image, words]).add_class("gainmtl-panel") for image, words in zip(self.images, self.words)
        ]
        super().__init__(self.panels)
        self.add_class("gainmtl-stage")

    def show(self, names: Sequence[str], row: int, look: Look) -> None:
        """Draw a row of the first run, and the same picture in the others."""
        opened = self.library.runs[names[0]]
        image = opened.image(row)
        shown = self.library.shown(names[0], row, side_of(names))
        drawn: list[tuple[Panel, str]] = [(plain_panel(shown, outline=look.outline), "")]
        for name in names:
            other = self.library.runs[name]
            place = row if name == names[0] else self.library.row_beside(name, image)
            if place is None:
                absent = (f"{name} was not evaluated on this picture.",)
                drawn.append((Panel(b"", absent), f"<b>{escape(name)}</b>"))
            else:
                caption = _caption(other, place, look, with_verdict=len(names) > 1)
                drawn.append((map_panel(other, place, shown, look), caption))
        for number, panel in enumerate(self.panels):
            panel.layout.display = None if number < len(drawn) else "none"
        for image_widget, words, (panel, caption) in zip(self.images, self.words, drawn):
            image_widget.layout.display = None if panel.jpeg else "none"
            image_widget.value = panel.jpeg
            words.value = f"<div>{caption}</div>" + "".join(f"<p>{escape(line)}</p>" for line in panel.words)


def side_of(names: Sequence[str]) -> int:
    """How large the drawings are when these runs are shown."""
    return SIDES.get(1 + len(names), 320)


def headline(opened: OpenedRun, row: int) -> str:
    """What is known and decided of a picture, in one line of HTML."""
    record = opened.table.iloc[row]
    truth = "normal" if record["label"] == 0 else "defective"
    kind = record["defect_type"]
    if truth == "defective" and isinstance(kind, str):
        truth += f" ({kind})"
    sign, rounded = "≥" if record["score"] >= opened.threshold else "&lt;", opened.system.rounded
    parts = [
        f"<b>{escape(str(record['image']).rsplit('/', 1)[-1])}</b>",
        escape(str(record["split"])),
        f"truth: {escape(truth)}",
        badge(str(record["verdict"])),
        f"{opened.system.score_name} {rounded(record['score'])} {sign} {rounded(opened.threshold)}",
        *_iou(opened, record, opened.system.main),
        *_area(record),
        *_anomaly(opened, record),
    ]
    return " <i>·</i> ".join(parts) + _flags(record)


def badge(verdict: str) -> str:
    """A verdict in words and in a colour that people with any colour vision tell apart."""
    return f'<span class="gainmtl-verdict gainmtl-{verdict}">{verdict} · {VERDICTS[verdict]}</span>'


def _caption(opened: OpenedRun, row: int, look: Look, *, with_verdict: bool) -> str:
    """What tells the runs apart; of a single run the headline has said it."""
    record = opened.table.iloc[row]
    parts = [f"<b>{escape(opened.name)}</b>"]
    if with_verdict:
        score = f"{opened.system.score_name} {opened.system.rounded(record['score'])}"
        parts += [badge(str(record["verdict"])), score]
    kind = None if look.kind is None else opened.own_kind(look.kind)
    if kind in opened.maps and (with_verdict or kind != opened.system.main):
        parts += _iou(opened, record, str(kind))
    return " <i>·</i> ".join(parts) + (_flags(record) if with_verdict else "")


def _flags(record: pd.Series) -> str:
    return "".join(f" {flag}" for column, flag in FLAGS.items() if record.get(column, False))


def _iou(opened: OpenedRun, record: pd.Series, kind: str) -> list[str]:
    """The map's IoU with the mask; the main map's beside what the mask itself reaches on the map's grid."""
    value = record.get(MAPS[kind].column)
    if value is None or pd.isna(value):
        return []
    grid = f" (grid {record['grid_iou']:.2f})" if kind == opened.system.main else ""
    return [f"{MAPS[kind].iou} {value:.2f}{grid}"]


def _anomaly(opened: OpenedRun, record: pd.Series) -> list[str]:
    """What the other system says of the picture, where it was asked."""
    if opened.novelty is None:
        return []
    sign, rounded = "&gt;" if record["anomalous"] else "≤", EFFICIENTAD.rounded
    score, threshold = rounded(record["anomaly_score"]), rounded(opened.novelty.threshold)
    return [f"{EFFICIENTAD.score_name} {score} {sign} {threshold}"]


def _area(record: pd.Series) -> list[str]:
    area = record["defect_area"]
    return [] if pd.isna(area) else [f"defect area {area:.1%}"]


# --- Would the verdict stand without the defect? Asked of the run's model where it is at hand, else of th


def ask(opened: OpenedRun, row: int) -> list[str]:
    """The answer in sentences, the last of which says where it comes from."""
    if not isinstance(opened.run, Run):
        return [f"{opened.name}: this system has no counterfactual path; S5 to S7 of GAIN-MTL have one."]
    settings = opened.run.settings
    if settings.strategy < "S5":
        return [f"{opened.name}: strategy {settings.strategy} has no counterfactual path; S5 to S7 have one."]
    if not settings.use_counterfactual:
        return [f"{opened.name}: trained without a counterfactual path (use_counterfactual: false)."]
    try:
        return _ask_model(opened, opened.run, row)
    except (DataError, ModelError, OSError, RuntimeError, SafetensorError) as error:
        return [*_read_stored(opened, row), f"Not asked of the model: {error}."]


def _ask_model(opened: OpenedRun, run: Run, row: int) -> list[str]:
    if run.settings.strategy == "S6" and run.settings.mask_source in OUTSIDE_SOURCES:
        raise ModelError(f"its attention takes masks from outside ({run.settings.mask_source}), which are not at hand")
    if not (run.folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{run.folder} holds no model.safetensors")
    image, mask = opened.files(row)
    if image is None:
        raise FileNotFoundError(f"the folder {opened.root} of the pictures is missing")
    settings = run.settings
    picture = load_picture(
        str(image), None if mask is None else str(mask), image_size=settings.image_size, resize=settings.resize
    )
    mask_from = "annotation" if picture.mask is not None else "localization"
    region = picture.mask if picture.mask is not None else _localized(opened, row, image)
    if not region.any():
        return [f"{opened.name}: no defect is annotated or localized here, so there is nothing to take away."]
    asked = ask_counterfactual(
        run.model,
        torch.from_numpy(picture.image).permute(2, 0, 1)[None].float() / 255,
        torch.from_numpy(region)[None, None].float(),
        opened.threshold,
        mask_from=mask_from,
        inside=torch.from_numpy(_frame(opened, image).plane(settings.image_size))[None, None],
    )
    return [f"{opened.name}: {asked.message}", "Computed now, by the run's model."]


def _localized(opened: OpenedRun, row: int, image: Path) -> NDArray[np.bool_]:
    """Where the model itself sees a defect, for a picture without an annotation: bool (H, W), may be empty."""
    settings = opened.run.settings
    if "localization" not in opened.maps:
        return np.zeros(settings.image_size, dtype=np.bool_)
    values = np.asarray(opened.maps["localization"][row], dtype=np.float32)
    return marked(fitted(values, settings.image_size), _frame(opened, image))


def _frame(opened: OpenedRun, image: Path) -> Frame:
    h, w = read_image(image).shape[:2]
    return Frame.of((h, w), opened.run.settings.image_size, opened.run.settings.resize)


def _read_stored(opened: OpenedRun, row: int) -> list[str]:
    record = opened.table.iloc[row]
    without, control = record.get("cf_probability"), record.get("cf_control_probability")
    if without is None or pd.isna(without):
        return [f"{opened.name}: the evaluation stored no answer for this picture (it has no annotated defect)."]
    moved = None if control is None or pd.isna(control) else float(control)
    stored = answer(float(record["probability"]), float(without), moved, opened.threshold)
    return [f"{opened.name}: {stored.message}", "From the stored evaluation."]


# --- The browser


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
        self.back, self.on = (
            _button_cam_browser("‹ previous", lambda: self.step(-1)),
            _button_cam_browser("next ›", lambda: self.step(1)),
        )
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


def _button_cam_browser(text: str, act: Callable[[], None]) -> widgets.Button:
    button = widgets.Button(description=text, layout={"width": "auto"})
    button.on_click(lambda _: act())
    return button
