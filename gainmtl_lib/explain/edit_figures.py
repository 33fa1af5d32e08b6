"""Edits of training pictures, magnified: before, after, and what changed.

Every function returns a figure and shows nothing; none is pyplot's, which a notebook would show a second time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from gainmtl_lib.data.edits import HEAL_METHODS, PASTE_METHODS
from gainmtl_lib.data.edits.counterfactuals import HEALING, KINDS, Example, ImageCounterfactuals
from gainmtl_lib.data.edits.edit import box_of
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.explain.plots import HEAT, OUTLINE

logger = logging.getLogger(__name__)

REGION = "#ffffff"
MARGIN = 10
"""Pixels shown around what an edit may change."""
SMALLEST = 40
"""Pixels a magnified part has at least, so that the surroundings can be compared."""
LEVELS = 64
"""Change in grey levels of 255 from which the colour is the brightest."""
WHOLE, PARTS = "picture after", ("before", "after", f"change (0 to {LEVELS} levels)")
"""Rows of a figure: the picture, which the comparison of methods goes without, and what is magnified of it."""
CLASSES = ("normal", "defective")


def edit_kinds_figure(edits: ImageCounterfactuals, kinds: Sequence[str] | None = None, *, number: int = 0) -> Figure:
    """One edit of each kind, see `_figure`.

    Args:
        edits: of a training split.
        kinds: to show; all six when None.
        number: which example.
    """
    chosen = kinds or [*KINDS[1], *KINDS[0]]
    return _figure(edits, [(kind, None, kind) for kind in chosen], number, rows=(WHOLE, *PARTS), side=1.75)


def edit_methods_figure(edits: ImageCounterfactuals, kind: str, *, number: int = 0) -> Figure:
    """One edit by each method of a kind, of the same picture where the method allows it, see `_figure`.

    Args:
        edits: of a training split.
        kind: one of the six.
        number: which example.

    Raises:
        ValueError: unknown kind.
    """
    known = [*KINDS[1], *KINDS[0]]
    if kind not in known:
        raise ValueError(f"kind must be one of {', '.join(known)}, got '{kind}'")
    methods = HEAL_METHODS if kind in HEALING else PASTE_METHODS
    return _figure(edits, [(kind, method, method) for method in methods], number, rows=PARTS, side=1.35)


def _figure(
    edits: ImageCounterfactuals,
    columns: Sequence[tuple[str, str | None, str]],
    number: int,
    *,
    rows: Sequence[str],
    side: float,
) -> Figure:
    """A column each: the picture after where `rows` has it, and magnified the part before, after, and what changed.

    Outlined are the defect mask (cyan) and the pixels that may differ (white); nothing on the part after, where a seam
    would lie. An edit that is impossible on these pictures says so, and why in the log.
    """
    figure = Figure(figsize=(side * len(columns) + 0.3, side * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, text in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(text, fontsize=8)
    for column, (kind, method, title) in zip(axes.T, columns, strict=True):
        try:
            _draw(column, edits.example(kind, method, number=number), title)
        except DataError as error:
            column[0].set_title(title, fontsize=8)
            column[0].text(0.5, 0.5, "not possible here", fontsize=7, ha="center", transform=column[0].transAxes)
            logger.warning("%s", error)
    square = "; square: the part that is magnified" if WHOLE in rows else ""
    figure.supxlabel(f"cyan: defect mask; white: the pixels that may differ{square}", fontsize=8)
    return figure


def _draw(column: Sequence[Axes], example: Example, title: str) -> None:
    edit, label = example.edit, int(example.mask_before.any())
    part = magnified_part(edit.region)
    before, after, change = column[-len(PARTS) :]
    shown = title if title == edit.method else f"{title}, {edit.method}"
    column[0].set_title(f"{shown}\n{CLASSES[label]} → {CLASSES[edit.label]}", fontsize=8)
    for whole in column[: -len(PARTS)]:
        whole.imshow(edit.image)
        rows, columns = part
        place = (columns.start - 0.5, rows.start - 0.5)
        frame = Rectangle(place, columns.stop - columns.start, rows.stop - rows.start, fill=False, ec=REGION, lw=1)
        whole.add_patch(frame)
    before.imshow(example.before[part], interpolation="nearest")
    after.imshow(edit.image[part], interpolation="nearest")
    difference = np.abs(edit.image.astype(np.int16) - example.before).max(-1)[part]
    change.imshow(difference, cmap=HEAT, vmin=0, vmax=LEVELS, interpolation="nearest")
    _outline(before, example.mask_before[part], OUTLINE)
    _outline(change, edit.region[part], REGION)
    _outline(change, edit.mask[part], OUTLINE)


def magnified_part(region: NDArray[np.bool_]) -> tuple[slice, slice]:
    """A square around the region with `MARGIN` pixels on each side, at least `SMALLEST`, as far as the picture goes."""
    box = box_of(region)
    side = max(SMALLEST, *(each.stop - each.start + 2 * MARGIN for each in box))
    rows, columns = (_centred(each, min(side, length), length) for each, length in zip(box, region.shape, strict=True))
    return rows, columns


def _centred(taken: slice, side: int, length: int) -> slice:
    start = min(max(0, (taken.start + taken.stop - side) // 2), length - side)
    return slice(start, start + side)


def _outline(axis: Axes, mask: NDArray[np.bool_], colour: str) -> None:
    if mask.any():
        axis.contour(mask, levels=[0.5], colors=[colour], linewidths=0.8)
