"""The current picture, large: by itself, then with the map of every chosen run."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import ipywidgets as widgets
import pandas as pd

from gainmtl_lib.explain.browser.filters import MOST_RUNS
from gainmtl_lib.explain.library import PictureLibrary
from gainmtl_lib.explain.opened import VERDICTS, OpenedRun
from gainmtl_lib.explain.panels import Look, Panel, map_panel, plain_panel
from gainmtl_lib.explain.systems import EFFICIENTAD, MAPS

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
