"""S7's training pictures: a share p of them edited, so that a cue no longer goes with the label and no edit tells it.

With r the share of defective training pictures: among the pictures shown with either label the same share p is edited,
a part r of them by healing and 1 - r by pasting. Healed and pasted defects change the label; heal_spot, heal_beside,
paste_clean and repaste are the same operations with the label unchanged.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.edits.heal import (
    HEAL_METHODS,
    Edit,
    EditError,
    box_of,
    framed,
    heal,
    heal_beside,
    heal_spot,
    widened,
)
from gainmtl_lib.edits.paste import PASTE_METHODS, paste, paste_clean, repaste
from gainmtl_lib.figures import contact_sheet
from gainmtl_lib.readers import DataError

if TYPE_CHECKING:
    from gainmtl_lib.dataset import Picture, SampleDataset

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
    """What was drawn for one training position: a kind of edit for the picture of a row.

    Its `edit` is None when every try failed, for the reasons in `failures`; the position then shows its own picture.
    """

    kind: str
    row: int
    edit: Edit | None
    failures: tuple[str, ...]


class ImageCounterfactuals:
    """Edits of training pictures, each a function of (seed, epoch, row).

    Annotated defects are edited themselves. A defect without a mask cannot be: an annotated one drawn at random takes
    its turn, so that few masks still give as many counterfactuals; with a share of 1 it is never shown.

    Args:
        dataset: holds every row's label, whether it has a mask, and its picture as stored. Bars are never edited.
        rows: the training rows.
        share: of edited pictures, in (0, 1].
        seed: of all draws.

    Raises:
        DataError: the training split lacks a class, or no defect of it has a mask.
    """

    def __init__(self, dataset: SampleDataset, rows: Sequence[int], *, share: float, seed: int) -> None:
        self.dataset, self.rows, self.share, self.seed = dataset, list(rows), share, seed
        self.normals = [row for row in self.rows if not dataset.labels[row]]
        self.defectives = [row for row in self.rows if dataset.labels[row]]
        self.annotated = [row for row in self.defectives if dataset.has_mask[row]]
        asked = f"image_counterfactual is {share:g}"
        if not self.normals or not self.defectives:
            raise DataError(
                f"{asked}, but the training split has {len(self.normals)} normal and {len(self.defectives)} defective "
                "images; edits need both: add images, or set image_counterfactual to 0"
            )
        if not self.annotated:
            raise DataError(
                f"{asked}, but none of the {len(self.defectives)} defective training images has a mask in use, which "
                "says what to take away or to transplant; add masks (or raise mask_share), or set "
                "image_counterfactual to 0"
            )
        self.odds = edit_odds(len(self.normals), len(self.defectives), share)

    @property
    def expected(self) -> dict[str, float]:
        """Edits of each kind in an epoch, on average."""
        sizes = {0: len(self.normals), 1: len(self.defectives)}
        return {kind: odds * sizes[label] for label, kinds in self.odds.items() for kind, odds in kinds.items()}

    def draw(self, epoch: int, row: int) -> Drawn | None:
        """The edit that a training position shows in an epoch; None where it shows its picture as it is."""
        rng = np.random.default_rng([self.seed, epoch, row, STREAM])
        odds = self.odds[int(self.dataset.labels[row])]
        place = int(np.searchsorted(np.cumsum(list(odds.values())), rng.random(), side="right"))
        return self._try(list(odds)[place], row, rng) if place < len(odds) else None

    def epoch_table(self, epoch: int, *, limit: int | None = None) -> pd.DataFrame:
        """The edits of an epoch, a row each: ``kind``, ``method`` (None if none worked), ``label``, ``failures``.

        `limit` is of the training positions that are looked at, spread evenly over the split.
        """
        step = 1 if limit is None else max(1, -(-len(self.rows) // limit))
        drawn = [(int(self.dataset.labels[row]), self.draw(epoch, row)) for row in self.rows[::step]]
        table = [
            (each.kind, getattr(each.edit, "method", None), getattr(each.edit, "label", label), each.failures)
            for label, each in drawn
            if each is not None
        ]
        return pd.DataFrame(table, columns=["kind", "method", "label", "failures"])

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
        drawn = (self.draw(epoch, row) for epoch, row in product(range(MOST_EPOCHS), self.normals))
        masks = (each.edit.mask for each in drawn if each is not None and each.kind == "paste" and each.edit)
        yield from islice(masks, wanted)

    def example(self, kind: str, method: str | None = None, *, number: int = 0) -> tuple[Picture, Edit]:
        """One edit of a kind to look at, and the picture before; a method is drawn when none is given.

        Raises:
            DataError: no training picture that was tried can be edited so.
        """
        rng = np.random.default_rng([self.seed, number, STREAM, 1])
        source = self.normals if kind in KINDS[0] else self.annotated
        failures: set[str] = set()
        for _ in range(5 * TRIES):
            drawn = self._try(kind, self._one_of(source, rng), rng, method=method)
            if drawn.edit is not None:
                return self.dataset.stored(drawn.row), drawn.edit
            failures |= set(drawn.failures)
        how = f"{kind} ({method})" if method else kind
        raise DataError(f"no training picture could be edited by {how}: {', '.join(sorted(failures))}")

    def _try(self, kind: str, row: int, rng: Generator, *, method: str | None = None) -> Drawn:
        methods = sorted(HEAL_METHODS if kind in HEALING else PASTE_METHODS)
        failures: list[str] = []
        shown = row
        for attempt in range(TRIES):
            # A defect that two methods cannot edit (too large, as a rule) gives its turn away too.
            if self.dataset.labels[row] and (not self.dataset.has_mask[row] or attempt >= TRIES // 2):
                shown = self._one_of(self.annotated, rng)
            chosen = method or methods[int(rng.integers(len(methods)))]
            try:
                return Drawn(kind, shown, self._edit(kind, shown, chosen, rng), tuple(failures))
            except EditError as error:
                failures.append(error.reason)
        return Drawn(kind, shown, None, tuple(failures))

    def _edit(self, kind: str, row: int, method: str, rng: Generator) -> Edit:
        """An edit without the picture's bars, which may be of another size than its donors and sources."""
        picture = self.dataset.stored(row)
        image, mask = picture.without_bars
        how = {"method": method, "rng": rng}
        if kind in KINDS[1]:
            edit = {"heal": heal, "heal_beside": heal_beside, "repaste": repaste}[kind](image, mask, **how)
        else:
            donor_image, donor_mask = self.dataset.stored(self._one_of(self.annotated, rng)).without_bars
            if kind == "paste":
                edit = paste(image, donor_image, donor_mask, **how)
            elif kind == "heal_spot":
                edit = heal_spot(image, donor_mask, **how)
            else:
                edit = paste_clean(image, self._other_normal(row, rng), donor_mask, **how)
        return framed(edit, picture.image.shape[:2], picture.place)

    def _other_normal(self, row: int, rng: Generator) -> NDArray[np.uint8]:
        others = [normal for normal in self.normals if normal != row]
        if not others:
            raise EditError("no other normal picture", "the training split holds one only; expected two or more")
        return self.dataset.stored(self._one_of(others, rng)).without_bars[0]

    @staticmethod
    def _one_of(rows: Sequence[int], rng: Generator) -> int:
        return rows[int(rng.integers(len(rows)))]


MARGIN = 16
"""Pixels shown around what an edit may change."""


def edits_figure(edits: ImageCounterfactuals, kind: str | None = None, *, number: int = 0) -> Figure:
    """Edits magnified, a column each: before, after, and four times the change; defect, and region, outlined.

    With a `kind`, one edit by each of its methods; else one of each kind. What is impossible is left out and logged.
    """
    columns = [(name, None) for name in (*KINDS[1], *KINDS[0])]
    if kind is not None:
        columns = [(kind, method) for method in (HEAL_METHODS if kind in HEALING else PASTE_METHODS)]
    rows: list[list] = [[], [], []]
    for name, method in columns:
        try:
            before, edit = edits.example(name, method, number=number)
        except DataError as error:
            logger.warning("%s", error)
            continue
        part = widened(box_of(edit.region), MARGIN, edit.mask.shape)
        change = np.abs(edit.image.astype(np.int16) - before.image).max(-1, keepdims=True)[part]
        rows[0].append(
            (before.image[part], None if before.mask is None else before.mask[part], f"{name}, {edit.method}")
        )
        rows[1].append((edit.image[part], None, "defective" if edit.label else "normal"))
        rows[2].append((np.clip(4 * change, 0, 255).astype(np.uint8).repeat(3, -1), edit.region[part], "change"))
    images, masks, titles = zip(*rows[0], *rows[1], *rows[2])
    return contact_sheet(images, masks, titles, columns=len(rows[0]))
