"""The same operations with the label unchanged: what they leave behind must not tell the class."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.edits.heal import (
    HEAL_METHODS,
    NEEDS_NORMAL,
    RING,
    Edit,
    EditError,
    Mask,
    Picture,
    box_of,
    checked_mask,
    checked_method,
    checked_picture,
    drawn_turn,
    filled,
    framed,
    grown,
    heal,
    moved_mask,
    place,
    rim,
    turned,
)
from gainmtl_lib.edits.paste import PASTE_METHODS, cut, paste, stands_out, transplanted
from gainmtl_lib.readers import DataError

if TYPE_CHECKING:
    from gainmtl_lib.dataset import Picture
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gainmtl_lib.figures import HEAT
from gainmtl_lib.figures import OUTLINE_PLOTS as OUTLINE


def heal_spot(image: Picture, shape: Mask, *, method: str, rng: Generator, normal: Picture | None = None) -> Edit:
    """Heal a spot of a normal picture, shaped like a defect: label 0.

    Args:
        image: a normal picture, RGB uint8 (H, W, 3).
        shape: mask of some defect, any size; turned, mirrored and moved at random.
        method, rng, normal: as for `heal`.

    Raises:
        EditError: as for `heal`, or a shape larger than the picture.
    """
    checked_picture(image)
    checked_method(method, HEAL_METHODS)
    spot = _spot(image, shape, rng)
    region = grown(spot, rim(spot.shape))
    healed = filled(image, region, taken=region, method=method, rng=rng, normal=normal)
    return Edit(healed, np.zeros_like(spot), 0, "heal_spot", method, region)


def heal_beside(image: Picture, mask: Mask, *, method: str, rng: Generator, normal: Picture | None = None) -> Edit:
    """Heal a spot shaped like the picture's own defect, beside it: label 1, mask and defect as before.

    Raises:
        EditError: as for `heal`, or no free place beside the defect.
    """
    checked_mask(mask, checked_picture(image))
    checked_method(method, HEAL_METHODS)
    width = rim(mask.shape)
    region = grown(moved_mask(mask, rng, avoid=grown(mask, width + RING)), width)
    healed = filled(image, region, taken=region | grown(mask, width), method=method, rng=rng, normal=normal)
    return Edit(healed, mask.copy(), 1, "heal_beside", method, region)


def paste_clean(image: Picture, clean: Picture, shape: Mask, *, method: str, rng: Generator) -> Edit:
    """Paste a defect-shaped patch of another normal picture into a normal picture: label 0.

    Args:
        image: a normal picture, RGB uint8 (H, W, 3).
        clean: another normal picture, any size.
        shape: mask of some defect, any size.
        method, rng: as for `paste`.

    Raises:
        EditError: as for `paste`, a shape larger than either picture, or a patch that stands out as a defect does.
    """
    checked_picture(image)
    checked_picture(clean, "clean")
    checked_method(method, PASTE_METHODS)
    patch = cut(clean, _spot(clean, shape, rng))
    patch = patch.turned(drawn_turn(patch.inner, image.shape, rng))
    after, region = transplanted(image, patch, place(patch.inner, image.shape, rng), method=method)
    if stands_out(image, after, region):
        raise EditError("stands out", "the clean patch differs from its surroundings as much as a defect would")
    return Edit(after, np.zeros_like(region), 0, "paste_clean", method, region)


def repaste(image: Picture, mask: Mask, *, method: str, rng: Generator) -> Edit:
    """Cut a picture's defect out, heal the place, and paste the defect back there: label 1, mask as before.

    Raises:
        EditError: as for `heal` and `paste`.
    """
    checked_mask(mask, checked_picture(image))
    checked_method(method, PASTE_METHODS)
    region = grown(mask, rim(mask.shape))
    background = filled(image, region, taken=region, method="telea", rng=rng)
    background[~mask] = image[~mask]
    after, _ = transplanted(background, cut(image, mask), box_of(mask), method=method)
    if _distance(after, image, mask) > _distance(after, background, mask):
        raise EditError("too faint", "the defect pasted back resembles the healed place more than the defect")
    return Edit(after, mask.copy(), 1, "repaste", method, mask.copy())


def _distance(one: Picture, other: Picture, mask: Mask) -> float:
    """Mean absolute difference in grey levels over the mask."""
    return float(np.abs(one[mask].astype(np.float32) - other[mask]).mean())


def _spot(image: Picture, shape: Mask, rng: Generator) -> Mask:
    """A defect's shape somewhere in the picture, turned and mirrored at random, (H, W)."""
    if shape.ndim != 2 or shape.dtype != np.bool_:
        raise EditError("wrong input", f"shape must be bool (H, W), got {shape.dtype} {shape.shape}")
    if not shape.any():
        raise EditError("empty mask", "shape has no defect pixel; expected at least one")
    shape = shape[box_of(shape)]
    shape = turned(shape, drawn_turn(shape, image.shape, rng))
    spot = np.zeros(image.shape[:2], dtype=np.bool_)
    spot[place(shape, image.shape, rng)] = shape
    return spot


# --- Image counterfactuals in training


logger = logging.getLogger(__name__)

LABEL_CHANGES = 0.8
"""Label-changing edits, relative to as many as would make the label independent of the picture that is edited."""
TRIES = 4
"""Methods and donors tried before a picture is left as it is."""
CHECKED = 200
"""Training positions whose edits are tried before training starts."""
MOST_EPOCHS = 10
"""Epochs gone through for the masks of pasted defects; if no edit fails two hold enough, five with rare defects."""
STREAM = 7
"""Sets these draws apart from the augmentation's. Not 0: NumPy takes the seeds [1, 2, 3] and [1, 2, 3, 0] for one."""

HEALING = ("heal", "heal_spot", "heal_beside")
KINDS = {0: ("paste", "heal_spot", "paste_clean"), 1: ("heal", "heal_beside", "repaste")}
"""What may become of a normal and of a defective picture."""


def edit_odds(normals: int, defectives: int, share: float) -> dict[int, dict[str, float]]:
    """How likely each edit is for a training picture of either class, see above; together `share`."""
    rare = defectives / (normals + defectives)
    heals, pastes = share * rare, share * (1 - rare)
    return {
        0: {"paste": LABEL_CHANGES * heals, "heal_spot": (1 - LABEL_CHANGES) * heals, "paste_clean": pastes},
        1: {"heal": LABEL_CHANGES * pastes, "heal_beside": heals, "repaste": (1 - LABEL_CHANGES) * pastes},
    }


def cue_left(share: float) -> float:
    """Covariance of the shown label with whatever else a picture shows, relative to that without edits."""
    return 1 - LABEL_CHANGES * share


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one training position.

    Attributes:
        kind: of the edit.
        row: of the picture that was edited, or was to be.
        edit: None when every try failed; the position then shows its own picture.
        failures: reasons of the tries that failed.
    """

    kind: str
    row: int
    edit: Edit | None
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """One edit as a pair: the picture and its defect mask before, (H, W, 3) and (H, W), the edit, and the row."""

    before: NDArray[np.uint8]
    mask_before: NDArray[np.bool_]
    edit: Edit
    row: int


class ImageCounterfactuals:
    """Edits of training pictures, each a function of (seed, epoch, row).

    Annotated defects are edited themselves. A defect without a mask cannot be: an annotated one drawn at random takes
    its turn, so that few masks still give as many counterfactuals; with a share of 1 it is never shown.

    Args:
        labels: of all samples by row.
        annotated: which of them have a mask.
        rows: the training rows.
        picture: of a row at the network's size, not augmented. The bars of a letterboxed one are never edited.
        share: p of the module's docstring, in (0, 1].
        seed: of all draws.

    Raises:
        DataError: the training split lacks a class, or no defect of it has a mask.
    """

    def __init__(
        self,
        *,
        labels: NDArray[np.int64],
        annotated: NDArray[np.bool_],
        rows: Sequence[int],
        picture: Callable[[int], Picture],
        share: float,
        seed: int,
    ) -> None:
        self.rows, self.share, self.seed = list(rows), share, seed
        self._labels, self._picture = labels, picture
        self.normals = [row for row in self.rows if labels[row] == 0]
        self.defectives = [row for row in self.rows if labels[row] == 1]
        self.annotated = [row for row in self.defectives if annotated[row]]
        self._has_mask = frozenset(self.annotated)
        _check(share, len(self.normals), len(self.defectives), len(self.annotated))
        self.odds = edit_odds(len(self.normals), len(self.defectives), share)

    @property
    def expected(self) -> dict[str, float]:
        """Edits of each kind in an epoch, on average."""
        sizes = {0: len(self.normals), 1: len(self.defectives)}
        return {kind: odds * sizes[label] for label, kinds in self.odds.items() for kind, odds in kinds.items()}

    def draw(self, epoch: int, row: int) -> Drawn | None:
        """The edit that a training position shows in an epoch; None where it shows its picture as it is."""
        rng = np.random.default_rng([self.seed, epoch, row, STREAM])
        odds = self.odds[int(self._labels[row])]
        place = int(np.searchsorted(np.cumsum(list(odds.values())), rng.random(), side="right"))
        return self._try(list(odds)[place], row, rng) if place < len(odds) else None

    def epoch_table(self, epoch: int, *, limit: int | None = None) -> pd.DataFrame:
        """The edits of an epoch, in the order of rows.

        Args:
            epoch: counted from 0.
            limit: of the training positions that are looked at, spread evenly over the split.

        Returns:
            One row per position to be edited: ``position``, ``row`` (of the picture shown there), ``kind``, ``method``
            (None where no try worked and the picture stays as it is), ``label`` (as shown), ``failures`` (reasons of
            the tries that failed).
        """
        step = 1 if limit is None else max(1, -(-len(self.rows) // limit))
        drawn = [(row, self.draw(epoch, row)) for row in self.rows[::step]]
        table = [
            {
                "position": position,
                "row": each.row if each.edit is not None else position,
                "kind": each.kind,
                "method": each.edit.method if each.edit is not None else None,
                "label": each.edit.label if each.edit is not None else int(self._labels[position]),
                "failures": each.failures,
            }
            for position, each in drawn
            if each is not None
        ]
        return pd.DataFrame(table, columns=["position", "row", "kind", "method", "label", "failures"])

    def example(self, kind: str, method: str | None = None, *, number: int = 0) -> Example:
        """One edit of a kind to look at.

        Args:
            kind: one of the six.
            method: one of the kind's family; drawn when None.
            number: which example.

        Raises:
            DataError: an unknown kind, or no training picture that was tried can be edited so.
        """
        known = [name for kinds in KINDS.values() for name in kinds]
        if kind not in known:
            raise DataError(f"no kind '{kind}'; there are {', '.join(known)}")
        rng = np.random.default_rng([self.seed, number, STREAM, 1])
        source = self.normals if kind in KINDS[0] else self.annotated
        failures: set[str] = set()
        for _ in range(5 * TRIES):
            row = source[int(rng.integers(len(source)))]
            drawn = self._try(kind, row, rng, method=method)
            if drawn.edit is not None:
                before = self._picture(drawn.row)
                mask = np.zeros_like(drawn.edit.mask) if before.mask is None else before.mask.astype(np.bool_)
                return Example(before.image, mask, drawn.edit, drawn.row)
            failures |= set(drawn.failures)
        how = f"{kind} ({method})" if method else kind
        raise DataError(f"no training picture could be edited by {how}: {', '.join(sorted(failures))}")

    def check(self) -> None:
        """Try some of the first epoch's edits, and log what cannot be edited.

        Raises:
            DataError: none of them is possible.
        """
        table = self.epoch_table(0, limit=CHECKED)
        impossible = table[table["method"].isna()]
        if impossible.empty:
            return
        reasons = Counter(reason for failures in impossible["failures"] for reason in failures)
        told = ", ".join(f"{reason} ({number})" for reason, number in reasons.most_common())
        text = f"{len(impossible)} of {len(table)} edits tried are impossible; reasons by number of tries: {told}"
        if len(impossible) == len(table):
            raise DataError(f"image_counterfactual is {self.share:g}, but {text}; set it to 0")
        logger.warning("image counterfactuals: %s; these pictures stay as they are", text)

    def pasted_masks(self) -> Iterator[NDArray[np.bool_]]:
        """Masks of pasted defects, as many to the annotated ones as a training shows of either.

        Strategy S6 draws other samples' masks from a bank; without these, a mask at a place where only pasted defects
        lie would tell the class.
        """
        pasted = self.expected["paste"]
        own = len(self.annotated) * (1 - self.share) + len(self.defectives) * self.share - self.expected["heal"]
        wanted = round(len(self.annotated) * pasted / own)
        positions = product(range(MOST_EPOCHS), self.normals)
        drawn = (self.draw(epoch, row) for epoch, row in positions)
        edits = (each.edit for each in drawn if each is not None and each.kind == "paste")
        yield from islice((edit.mask for edit in edits if edit is not None), wanted)

    def _try(self, kind: str, row: int, rng: np.random.Generator, *, method: str | None = None) -> Drawn:
        methods = sorted(HEAL_METHODS if kind in HEALING else PASTE_METHODS)
        failures: list[str] = []
        shown = row
        for attempt in range(TRIES):
            # A defect that two methods cannot edit (too large, as a rule) gives its turn away too.
            if self._labels[row] == 1 and (row not in self._has_mask or attempt >= TRIES // 2):
                shown = self._one_of(self.annotated, rng)
            chosen = method or methods[int(rng.integers(len(methods)))]
            try:
                return Drawn(kind, shown, self._edit(kind, shown, chosen, rng), tuple(failures))
            except EditError as error:
                failures.append(error.reason)
        return Drawn(kind, shown, None, tuple(failures))

    def _edit(self, kind: str, row: int, method: str, rng: np.random.Generator) -> Edit:
        picture = self._picture(row)
        return framed(self._inner_edit(kind, row, picture, method, rng), picture.image.shape[:2], picture.place)

    def _inner_edit(self, kind: str, row: int, picture: Picture, method: str, rng: np.random.Generator) -> Edit:
        """The edit of the picture without its bars, which may be of another size than its donors and sources."""
        image, mask = picture.without_bars
        if kind == "heal":
            return heal(image, mask, method=method, rng=rng, normal=self._normal(method, row, rng))
        if kind == "heal_beside":
            return heal_beside(image, mask, method=method, rng=rng, normal=self._normal(method, row, rng))
        if kind == "repaste":
            return repaste(image, mask, method=method, rng=rng)
        donor_image, donor_mask = self._picture(self._one_of(self.annotated, rng)).without_bars
        if kind == "paste":
            return paste(image, donor_image, donor_mask, method=method, rng=rng)
        if kind == "heal_spot":
            return heal_spot(image, donor_mask, method=method, rng=rng, normal=self._normal(method, row, rng))
        clean, _ = self._picture(self._other_normal(row, rng)).without_bars
        return paste_clean(image, clean, donor_mask, method=method, rng=rng)

    def _normal(self, method: str, row: int, rng: np.random.Generator) -> NDArray[np.uint8] | None:
        """A normal picture for the methods that take from one; others need not decode it."""
        return self._picture(self._other_normal(row, rng)).without_bars[0] if method in NEEDS_NORMAL else None

    def _other_normal(self, row: int, rng: np.random.Generator) -> int:
        others = len(self.normals) - (self._labels[row] == 0)
        if not others:
            raise EditError("no other normal picture", "the training split holds one only; expected two or more")
        chosen = self._one_of(self.normals[:others], rng)
        return chosen if chosen != row else self.normals[-1]

    @staticmethod
    def _one_of(rows: Sequence[int], rng: np.random.Generator) -> int:
        return rows[int(rng.integers(len(rows)))]


def _check(share: float, normals: int, defectives: int, annotated: int) -> None:
    asked = f"image_counterfactual is {share:g}"
    if not 0 < share <= 1:
        raise DataError(f"{asked}; expected a share in (0, 1]")
    if not normals or not defectives:
        raise DataError(
            f"{asked}, but the training split has {normals} normal and {defectives} defective images; "
            "edits need both: add images, or set image_counterfactual to 0"
        )
    if not annotated:
        raise DataError(
            f"{asked}, but none of the {defectives} defective training images has a mask in use, which says what to "
            "take away or to transplant; add masks (or raise mask_share), or set image_counterfactual to 0"
        )


# --- Edits of training pictures, magnified


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
