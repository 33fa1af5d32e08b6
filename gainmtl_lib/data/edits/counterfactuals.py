"""Image counterfactuals in training: which pictures are edited, how, and that the edit itself tells nothing.

A network shown healed pictures as normal and pasted ones as defective could learn the traces of healing and of
pasting in place of the defect. So every edit also occurs with the label unchanged, as often in either class.

A cue that stays in the picture must not tell the label either. Of N training pictures a share w is defective. An epoch
with a share p of edits holds

    m = 0.8 p w (1 - w) N   healed defects, shown as normal, and as many pasted ones, shown as defective

so that the classes stay as large as they are, and so that the covariance between the label that is shown and whatever
else the picture shows is 1 - 0.8 p of what it was, whatever the class sizes. Heal, heal a spot and heal beside leave
one kind of traces; paste, paste clean and repaste leave the other. Among the pictures *shown* with either label a share
p is edited, w of them by healing and 1 - w by pasting:

    shown as            normal ((1 - w) N of them)          defective (w N of them)
    healed somewhere    heal m + heal spot   = p w (1-w) N  heal beside        = p w w N
    pasted somewhere    paste clean      = p (1-w) (1-w) N  paste m + repaste  = p (1-w) w N

Divided by the size of the class whose picture is taken, these are the odds of a training position (`edit_odds`). With
1 in place of 0.8 the label of an edited picture would say nothing about the picture that was taken, but no spot would
be healed and no defect pasted back. With classes of equal size the controls are 60 % of the edits; of a defective's
controls 5/6 heal, of a normal's 1/6. Methods are drawn evenly, with the same odds in both classes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.data.edits.controls import heal_beside, heal_spot, paste_clean, repaste
from gainmtl_lib.data.edits.edit import Edit, EditError
from gainmtl_lib.data.edits.framing import framed
from gainmtl_lib.data.edits.healing import HEAL_METHODS, NEEDS_NORMAL, heal
from gainmtl_lib.data.edits.pasting import PASTE_METHODS, paste
from gainmtl_lib.data.findings import DataError

if TYPE_CHECKING:
    from gainmtl_lib.data.loading import Picture

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
