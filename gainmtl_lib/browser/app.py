"""The CAM browser: what one or several runs decided, picture by picture, as widgets of a notebook."""

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

from gainmtl_lib.browser import library
from gainmtl_lib.browser.library import IOU_COLUMNS, MAPS, VERDICTS, Look, Note, OpenedRun, PictureFiles
from gainmtl_lib.metrics import NAMED
from gainmtl_lib.runs import RunError
from gainmtl_lib.settings import UserError
from gainmtl_lib.wording import METRICS, SPLIT_NAMES

PLACE = "data-gainmtl-place"  # attribute of a thumbnail: its place among the chosen pictures
PAGE = 14  # thumbnails at a time
VERDICT_NAMES = {verdict: f"{verdict} · {text}" for verdict, text in VERDICTS.items()}
BADGES = {name: f'<span class="gainmtl-verdict gainmtl-{name}">{text}</span>' for name, text in VERDICT_NAMES.items()}


class Touch(anywidget.AnyWidget):
    """Arrow keys and clicks on thumbnails, heard in the page and told to the kernel. Takes no room."""

    _esm = Path(__file__).with_name("touch.js")
    _css = Path(__file__).with_name("browser.css")


# --- Which pictures, of which run, in which order


class FilterBar(widgets.HBox):
    """Lists for run, split, verdict, defect type and order; behind each value, how many pictures it would leave."""

    def __init__(self, opened: dict[str, OpenedRun], on_change: Callable[[], None]) -> None:
        self._opened, self._on_change = opened, on_change
        self._filling = False
        names = list(opened)
        self.run, self.split, self.verdict, self.defect_type, self.order = (
            widgets.Dropdown(description=label, layout={"width": "auto"}).add_class("gainmtl-field")
            for label in ("Run", "Split", "Verdict", "Defect type", "Order")
        )
        self.run.options, self.run.value = names, names[0]
        self.order.options = [(words, order) for order, (words, _) in library.ORDERS.items()]
        self.order.value = next(iter(library.ORDERS))
        if (opened[names[0]].table["split"] == "test").any():
            self.split.options, self.split.value = ["test"], "test"
        self.beside = {name: widgets.ToggleButton(description=name, layout={"width": "auto"}) for name in names}
        self.marked_only, self.novel_only = _box("marked only"), _box("novel only")
        self._fill()
        label = widgets.HTML("Beside it").add_class("gainmtl-label")
        chips = widgets.VBox([label, widgets.HBox([*self.beside.values()]).add_class("gainmtl-chips")])
        several = [self.run, chips] * (len(names) > 1)
        boxes = [self.marked_only] + [self.novel_only] * any(one.novelty for one in opened.values())
        super().__init__([*several, self.split, self.verdict, self.defect_type, self.order, *boxes])
        self.add_class("gainmtl-filters")
        lists = self.run, self.split, self.verdict, self.defect_type, self.order
        for widget in (*lists, self.marked_only, self.novel_only, *self.beside.values()):
            widget.observe(self._changed, "value")

    @property
    def names(self) -> list[str]:
        """The first, then those beside it."""
        first = str(self.run.value)
        return [first, *(name for name, chip in self.beside.items() if chip.value and name != first)]

    @property
    def choice(self) -> dict[str, Any]:
        """What is chosen, as `OpenedRun.choose` takes it."""
        names = "split", "verdict", "defect_type", "marked_only", "novel_only", "order"
        return {name: getattr(self, name).value for name in names}

    def _changed(self, _: Any) -> None:
        if not self._filling:
            self._fill()
            self._on_change()

    def _fill(self) -> None:
        self._filling = True
        first, opened = self.run.value, self._opened[str(self.run.value)]
        for name, chip in self.beside.items():
            chip.layout.display = "none" if name == first else None
        self.novel_only.disabled = opened.novelty is None
        self.novel_only.value = self.novel_only.value and opened.novelty is not None
        choice, there = self.choice, opened.table
        for field, column, words in (
            (self.split, "split", {split: name for split, name in SPLIT_NAMES.items() if split in set(there["split"])}),
            (self.verdict, "verdict", VERDICT_NAMES),
            (self.defect_type, "defect_type", {name: name for name in sorted(there["defect_type"].dropna().unique())}),
        ):
            counts, kept = opened.counts(column, **choice), field.value
            offered = [(f"{text} ({counts.get(value, 0)})", value) for value, text in words.items()]
            field.options = [(f"all ({sum(counts.values())})", ""), *offered]
            field.value = kept if kept in words else ""
        self._filling = False


def _box(label: str, value: bool = False) -> widgets.Checkbox:
    return widgets.Checkbox(value=value, description=label, indent=False, layout={"width": "auto"})


def _button(text: str, act: Callable[[], None]) -> widgets.Button:
    button = widgets.Button(description=text, layout={"width": "auto"})
    button.on_click(lambda _: act())
    return button


# --- A strip of small pictures, a page at a time


FLAGS = {  # by the column that says where they stand: the mark on a thumbnail, and what it means
    "wrong_reason": ("!", "right for the wrong reason"),
    "novel": ("?", "novel: called normal, yet unlike the good parts"),
}


class Strip(widgets.HBox):
    """One page of the chosen rows, the current one framed."""

    def __init__(self, pictures: PictureFiles, on_page: Callable[[int], None]) -> None:
        self._files = pictures
        self.back = _button("‹", lambda: on_page(-1)).add_class("gainmtl-arrow")
        self.on = _button("›", lambda: on_page(1)).add_class("gainmtl-arrow")
        self.pictures = widgets.HTML().add_class("gainmtl-thumbnails")
        # A rule of its own moves the frame: stepping to the neighbour need not send a page of pictures again.
        self.frame = widgets.HTML(layout={"display": "none"})
        self._scope = f"gainmtl-{uuid4().hex[:8]}"
        super().__init__([self.back, self.pictures, self.on, self.frame])
        self.add_class("gainmtl-strip").add_class(self._scope)

    def show(self, opened: OpenedRun, rows: NDArray[np.intp], place: int) -> None:
        """Show the page that holds a place among the chosen rows of a run."""
        start, cells = place // PAGE * PAGE, []
        page = rows[start : start + PAGE]
        jpegs = self._files.readers.map(self._files.thumbnail, [opened.files(row)[0] for row in page])
        for at, (row, jpeg) in enumerate(zip(page, jpegs), start):
            record = opened.table.iloc[row]
            verdict, score = record["verdict"], library.SCORES[opened.run.main_map].format(record["score"])
            found = [column for column in FLAGS if record[column]]
            told = ", ".join([VERDICTS[verdict], score, *(FLAGS[column][1] for column in found)])
            words = escape(f"{record['image']}: {told}")
            marks = "".join(f'<span class="gainmtl-{column}">{FLAGS[column][0]}</span>' for column in found)
            cells.append(
                f'<button type="button" {PLACE}="{at}" title="{words}">'
                f'<img alt="{words}" src="data:image/jpeg;base64,{b64encode(jpeg).decode()}">'
                f'<span class="gainmtl-{verdict}">{verdict}</span>{marks} {score.split()[-1]}</button>'
            )
        self.pictures.value = "".join(cells)
        self.frame.value = f"<style>.{self._scope} [{PLACE}='{place}'] {{ outline: 3px solid #1a73e8; }}</style>"
        self.back.disabled, self.on.disabled = start == 0, start + PAGE >= len(rows)


# --- The current picture, large


class Viewer(widgets.Box):
    """Panels in a row that wraps: the picture, then one panel per run."""

    def __init__(self, pictures: PictureFiles, runs: int) -> None:
        self._files = pictures
        self.images = [widgets.Image(format="jpeg", value=b"") for _ in range(1 + runs)]
        self.words = [widgets.HTML() for _ in self.images]
        self.panels = [widgets.VBox(pair).add_class("gainmtl-panel") for pair in zip(self.images, self.words)]
        super().__init__(self.panels)
        self.add_class("gainmtl-stage")

    def show(self, opened: Sequence[OpenedRun], row: int, look: Look) -> None:
        """Draw a row of the first run, and the same picture in the others."""
        first, several = opened[0], len(opened) > 1
        shown = self._files.load(*first.files(row), _side(opened), first.run.settings.image_size)
        drawn = [("", *library.plain_panel(shown, outline=look.outline))]
        for one in opened:
            place = one.row_of.get(first.image(row))
            if place is None:
                absent = [f"{one.name} was not evaluated on this picture."]
                drawn.append((f"<b>{escape(one.name)}</b>", b"", absent))
            else:
                caption = _caption(one, place, look, several=several)
                drawn.append((caption, *library.map_panel(one, place, shown, look)))
        for number, panel in enumerate(self.panels):
            panel.layout.display = None if number < len(drawn) else "none"
        for image, words, (caption, jpeg, lines) in zip(self.images, self.words, drawn):
            image.layout.display = None if jpeg else "none"
            image.value = jpeg
            words.value = f"<div>{caption}</div>" + _paragraphs(lines)


def _side(opened: Sequence[OpenedRun]) -> int:
    """The longer side of the drawings when these runs are shown."""
    return {1: 560, 2: 400}.get(len(opened), 320)


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _headline(opened: OpenedRun, row: int) -> str:
    record, main = opened.table.iloc[row], opened.run.main_map
    score, threshold = (library.SCORES[main].format(value) for value in (record["score"], opened.threshold))
    sign = "≥" if record["score"] >= opened.threshold else "&lt;"
    truth, kind = ("normal" if record["label"] == 0 else "defective"), record["defect_type"]
    if truth == "defective" and isinstance(kind, str):
        truth += f" ({kind})"
    parts = [
        f"<b>{escape(str(record['image']).rsplit('/', 1)[-1])}</b>",
        escape(str(record["split"])),
        f"truth: {escape(truth)}",
        BADGES[record["verdict"]],
        *([f"named: {escape(named)}"] if isinstance(named := record.get(NAMED), str) else []),
        f"{score} {sign} {threshold.split()[-1]}",
        *_iou(opened, record, main),
    ]
    if not pd.isna(record["defect_area"]):
        parts.append(f"defect area {record['defect_area']:.1%}")
    if opened.novelty is not None:  # what the other system says of the picture
        sign = "&gt;" if record["anomalous"] else "≤"
        parts.append(f"anomaly score {record['anomaly_score']:.3f} {sign} {opened.novelty.threshold:.3f}")
    return " <i>·</i> ".join(parts) + _flags(record)


def _caption(opened: OpenedRun, row: int, look: Look, *, several: bool) -> str:
    """What tells the runs apart; of a single run the headline has said it."""
    record, kind = opened.table.iloc[row], opened.own_kind(look.kind)
    parts = [f"<b>{escape(opened.name)}</b>"]
    if several:
        parts += [BADGES[record["verdict"]], library.SCORES[opened.run.main_map].format(record["score"])]
    if kind in opened.maps and (several or kind != opened.run.main_map):
        parts += _iou(opened, record, kind)
    return " <i>·</i> ".join(parts) + _flags(record) * several


def _flags(record: pd.Series) -> str:
    found = {column: words for column, (_, words) in FLAGS.items() if record[column]}
    return "".join(f' <span class="gainmtl-flag gainmtl-{column}">{words}</span>' for column, words in found.items())


def _iou(opened: OpenedRun, record: pd.Series, kind: str) -> list[str]:
    """The map's IoU with the mask; the main map's beside what the mask itself reaches on the map's grid."""
    value = record.get(IOU_COLUMNS[kind])
    if pd.isna(value):
        return []
    grid = f" (grid {record['grid_iou']:.2f})" if kind == opened.run.main_map else ""
    return [f"{METRICS[IOU_COLUMNS[kind]]} {value:.2f}{grid}"]


# --- Beside the pictures


class MapControls(widgets.VBox):
    """How maps are shown; the main maps of two systems are one choice."""

    def __init__(self, kinds: Collection[str], on_change: Callable[[], None]) -> None:
        look = Look()
        main = [kind for kind in library.SCORES if kind in kinds]
        others = [(MAPS[kind], kind) for kind in MAPS if kind in kinds and kind not in main]
        maps = [(" / ".join(MAPS[kind] for kind in main), main[0]), *others, ("none", "")]
        self.kind = _toggle("Map", maps)
        self.scale = _toggle("Scale", [("absolute", True), ("per image", False)])
        self.scale.tooltips = ["fixed on validation: maps of normal parts are calm", "makes any picture glow"]
        self.strength, self.level = _slider("Overlay", look.strength), _slider("Threshold", look.level)
        self.outline = _box("outline of the annotated defect", look.outline)
        super().__init__([self.kind, self.scale, self.strength, self.level, self.outline])
        self.add_class("gainmtl-group")
        for widget in self.children:
            widget.observe(lambda _: on_change(), "value")

    @property
    def look(self) -> Look:
        """What is set."""
        return Look(*(widget.value for widget in self.children))


def _toggle(label: str, options: list[tuple[str, Any]]) -> widgets.ToggleButtons:
    buttons = widgets.ToggleButtons(options=options, description=label, style={"button_width": "auto"})
    return buttons.add_class("gainmtl-field")


def _slider(label: str, value: float) -> widgets.FloatSlider:
    slider = widgets.FloatSlider(value, min=0, max=1, step=0.05, description=label, layout={"width": "auto"})
    return slider.add_class("gainmtl-slider")


class NoteForm(widgets.VBox):
    """A mark and a note on the current picture, saved as soon as they are left."""

    def __init__(self, on_save: Callable[[bool, str], str]) -> None:
        self.mark = _box("check this label")
        words = "note on this picture, saved when you leave this field"
        self.text = widgets.Textarea(placeholder=words, continuous_update=False, rows=3)
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

    def __init__(self, runs: library.Runs, *, data_root: str | Path | None = None) -> None:
        self.opened = library.open_runs(runs, data_root=data_root)
        self.pictures = PictureFiles()
        self.rows: NDArray[np.intp] = np.empty(0, dtype=np.intp)
        self.place, self._image = 0, ""
        self._choice: dict[str, Any] = {}
        self.touch = Touch()
        self.touch.on_msg(self._hear)
        self.filters = FilterBar(self.opened, self._choose)
        self.strip = Strip(self.pictures, lambda by: self.go_to((self.place // PAGE + by) * PAGE))
        self.headline = widgets.HTML().add_class("gainmtl-headline")
        self.back, self.on = _button("‹ previous", lambda: self.step(-1)), _button("next ›", lambda: self.step(1))
        self.viewer = Viewer(self.pictures, len(self.opened))
        self.controls = MapControls({kind for one in self.opened.values() for kind in one.maps}, self._draw)
        self.what_if, self.answer = _button("What if the defect were not there?", self._ask), widgets.HTML()
        self.note = NoteForm(self._save)
        lines = list(library.notices(list(self.opened.values())))
        self.notices = widgets.HTML(_paragraphs(lines), layout={"display": None if lines else "none"})
        self.notices.add_class("gainmtl-notices")
        top = widgets.HBox([self.headline, widgets.HBox([self.back, self.on])]).add_class("gainmtl-top")
        left = widgets.VBox([top, self.viewer]).add_class("gainmtl-left")
        asked = widgets.VBox([self.what_if, self.answer]).add_class("gainmtl-group")
        right = widgets.VBox([self.controls, asked, self.note]).add_class("gainmtl-right")
        body = widgets.HBox([left, right]).add_class("gainmtl-body")
        super().__init__([self.touch, self.filters, self.notices, self.strip, body])
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

    def _hear(self, _: Any, content: dict[str, Any], __: Any) -> None:
        if "step" in content:
            self.step(content["step"])
            self.touch.send({"done": True})
        else:
            self.go_to(content["place"])

    @property
    def _beside(self) -> list[OpenedRun]:
        return [self.opened[name] for name in self.filters.names]

    def _choose(self) -> None:
        """Filter and sort anew, and begin at the first; where only the run is another, stay at the picture."""
        choice, first = self.filters.choice, self._beside[0]
        stay = first.row_of.get(self._image, -1) if choice == self._choice else -1
        self._choice, self.rows = choice, first.choose(**choice)
        self.place = int(np.argmax(self.rows == stay)) if len(self.rows) else 0  # 0 where it is not among them
        self._show()

    def _show(self) -> None:
        first, some = self._beside[0], len(self.rows) > 0
        self.answer.value = ""
        self.what_if.disabled = not some
        self.back.disabled, self.on.disabled = self.place == 0, self.place >= len(self.rows) - 1
        self.strip.show(first, self.rows, self.place)
        self.viewer.layout.display = None if some else "none"
        if not some:
            self.headline.value = "<b>No picture fits.</b> Choose fewer filters."
            self.note.show(None)
            return
        row = int(self.rows[self.place])
        self._image = first.image(row)
        count = f'<span class="gainmtl-count">{self.place + 1} of {len(self.rows)}</span> '
        self.headline.value = count + _headline(first, row)
        self._draw()
        try:
            self.note.show(first.notes.last().get(self._image, Note()))
        except RunError as error:
            self.note.show(None, str(error))
        for row in self.rows[self.place + 1 : self.place + 2]:  # read ahead
            wanted = (*first.files(row), _side(self._beside), first.run.settings.image_size)
            self.pictures.readers.submit(self.pictures.load, *wanted)

    def _draw(self) -> None:
        if len(self.rows):
            self.viewer.show(self._beside, int(self.rows[self.place]), self.controls.look)

    def _save(self, check_label: bool, text: str) -> str:
        notes = self._beside[0].notes
        try:
            note = notes.save(self._image, check_label=check_label, text=text)
        except UserError as error:
            return f"not saved: {error}"
        return f"saved {note.time[11:19]} in {notes.path}"

    def _ask(self) -> None:
        self.answer.value = '<p class="gainmtl-quiet">asking the model …</p>'
        lines = []
        for one in self._beside:
            row = one.row_of.get(self._image)
            lines += [f"{one.name} lacks this picture."] if row is None else library.ask(one, row)
        self.answer.value = _paragraphs(lines)
