"""S7's training pictures: a share p of them edited, so that a cue no longer goes with the label and no edit tells it.

With r the share of defective training pictures: among the pictures shown with either label the same share p is edited,
a part r of them by healing and 1 - r by pasting. Healed and pasted defects change the label; heal_spot, heal_beside,
paste_clean and repaste are the same operations with the label unchanged.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice, product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.random import Generator
from numpy.typing import NDArray

from gainmtl_lib.edits import editing
from gainmtl_lib.edits.editing import HEAL_METHODS, MOST, PASTE_METHODS, Edit, EditError
from gainmtl_lib.figures import contact_sheet
from gainmtl_lib.findings import DataError

if TYPE_CHECKING:
    from gainmtl_lib.dataset import SampleDataset

logger = logging.getLogger(__name__)

BALANCED = 0.05  # least difference of the shares of either label that are healed, or pasted, at which odds are lowered
LEAST_DONE = 0.2  # of the asked share: a training whose edits fail more often is refused
LABEL_CHANGES = 0.8  # label-changing edits, relative to as many as would make the label independent of the picture
TRIES = 4  # methods and donors tried before a picture is left as it is
TRIED = 40  # edits of each kind that are tried before training starts
MOST_EPOCHS = 10  # gone through for pasted masks: two hold enough if no edit fails, five if defects are rare
STREAM = 7  # sets these draws apart from the augmentation's; not 0: to NumPy the seeds [1, 2] and [1, 2, 0] are one

HEALING = ("heal", "heal_spot", "heal_beside")
KINDS = {0: ("paste", "heal_spot", "paste_clean"), 1: ("heal", "heal_beside", "repaste")}  # by the label before


def edit_odds(normals: int, defectives: int, share: float) -> dict[int, dict[str, float]]:
    """How likely each edit is for a training picture of either class, see above; together `share`."""
    rare = defectives / (normals + defectives)
    heals, pastes = share * rare, share * (1 - rare)
    return {
        0: {"paste": LABEL_CHANGES * heals, "heal_spot": (1 - LABEL_CHANGES) * heals, "paste_clean": pastes},
        1: {"heal": LABEL_CHANGES * pastes, "heal_beside": heals, "repaste": (1 - LABEL_CHANGES) * pastes},
    }


FAMILIES = {
    "healed": {0: ("heal", "heal_spot"), 1: ("heal_beside",)},
    "pasted": {0: ("paste_clean",), 1: ("paste", "repaste")},
}
"""Edits that leave the same traces, by the label that they are shown with."""


def shown_shares(
    expected: Mapping[str, float], rates: Mapping[str, float], normals: int, defectives: int
) -> dict[str, tuple[float, float]]:
    """Shares of the pictures shown as normal and as defective that are healed, and that are pasted.

    `expected` are edits of each kind in an epoch, `rates` how often each works (1 where it is not known).
    """
    done = {kind: count * rates.get(kind, 1.0) for kind, count in expected.items()}
    moved = done["paste"] - done["heal"]  # from normal to defective
    shown = {0: normals - moved, 1: defectives + moved}
    shares = {}
    for family, of_label in FAMILIES.items():
        normal, defective = (sum(done[kind] for kind in of_label[label]) / shown[label] for label in (0, 1))
        shares[family] = normal, defective
    return shares


def balanced(
    odds: dict[int, dict[str, float]], rates: Mapping[str, float], normals: int, defectives: int
) -> dict[int, dict[str, float]]:
    """Odds lowered so that of either label the same share is healed, and the same share pasted, at these rates."""
    sizes = {0: normals, 1: defectives}
    for _ in range(20):  # each lowering moves pictures from one label to the other, a little less each time
        expected = {kind: chance * sizes[label] for label, kinds in odds.items() for kind, chance in kinds.items()}
        factors: dict[str, float] = {}
        for family, shares in shown_shares(expected, rates, normals, defectives).items():
            for kinds, share in zip(FAMILIES[family].values(), shares):
                factors |= dict.fromkeys(kinds, min(shares) / share if share > 0 else 0.0)
        odds = {label: {kind: own * factors[kind] for kind, own in kinds.items()} for label, kinds in odds.items()}
    return odds


def cue_left(share: float) -> float:
    """Covariance of the shown label with whatever else a picture shows, relative to that without edits."""
    return 1 - LABEL_CHANGES * share


class Drawn(NamedTuple):
    """What was drawn for one training position: a kind of edit for the picture of a row."""

    kind: str
    row: int
    edit: Edit | None  # None when every try failed; the position then shows its own picture
    failures: list[str]  # reasons of the tries that failed


class ImageCounterfactuals:
    """Edits of training pictures, each a function of (seed, epoch, row).

    Annotated defects are edited themselves. A defect without a mask, or with one that leaves too little of the picture,
    cannot be: another one drawn at random takes its turn, so that few masks still give as many counterfactuals; with a
    `share` of 1, of (0, 1], it is never shown. A `DataError` where the training `rows` lack a class, or no defect among
    them has a mask that can be edited.
    """

    def __init__(self, dataset: SampleDataset, rows: Sequence[int], *, share: float, seed: int) -> None:
        self.dataset, self.rows, self.share, self.seed = dataset, list(rows), share, seed
        self.normals = [row for row in self.rows if not dataset.labels[row]]
        self.defectives = [row for row in self.rows if dataset.labels[row]]
        annotated = [row for row in self.defectives if dataset.has_mask[row]]
        self.annotated = [row for row in annotated if dataset.stored(row).without_bars[1].mean() <= MOST]
        asked = f"image_counterfactual is {share:g}"
        if not self.normals or not self.defectives:
            raise DataError(
                f"{asked}, but the training split has {len(self.normals)} normal and {len(self.defectives)} defective "
                "images; edits need both: add images, or set image_counterfactual to 0"
            )
        if annotated and not self.annotated:
            raise DataError(
                f"{asked}, but all {len(annotated)} masks of the training split mark more than half of their picture, "
                "which leaves nothing to heal or paste with; check the masks, or set image_counterfactual to 0"
            )
        if not self.annotated:
            raise DataError(
                f"{asked}, but none of the {len(self.defectives)} defective training images has a mask in use, which "
                "says what to take away or to transplant; add masks (or raise mask_share), or set "
                "image_counterfactual to 0"
            )
        self._own = {*self.annotated}
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
        if place == len(odds):
            return None
        return self._drawn(list(odds)[place], row, rng)

    def _drawn(self, kind: str, row: int, rng: Generator) -> Drawn:
        """An edit of a kind for a training position, after some tries."""
        shown = row
        methods = sorted(HEAL_METHODS if kind in HEALING else PASTE_METHODS)
        failures: list[str] = []
        for attempt in range(TRIES):
            # A defect that two methods cannot edit gives its turn away too.
            if self.dataset.labels[row] and (row not in self._own or attempt >= TRIES // 2):
                shown = int(rng.choice(self.annotated))
            try:
                return Drawn(kind, shown, self._edit(kind, shown, str(rng.choice(methods)), rng), failures)
            except EditError as error:
                failures.append(error.reason)
        return Drawn(kind, shown, None, failures)

    def epoch_table(self, epoch: int) -> pd.DataFrame:
        """The edits of an epoch, a row each: ``kind``, ``method`` (None if none worked), ``label``, ``failures``."""
        return self._table((row, self.draw(epoch, row)) for row in self.rows)

    def _table(self, drawn: Iterable[tuple[int, Drawn | None]]) -> pd.DataFrame:
        table = [
            (each.kind, each.edit and each.edit.method, each.edit.label if each.edit else label, each.failures)
            for label, each in ((int(self.dataset.labels[row]), each) for row, each in drawn)
            if each is not None
        ]
        return pd.DataFrame(table, columns=["kind", "method", "label", "failures"])

    def check(self) -> None:
        """Try `TRIED` edits of each kind, and lower the odds where what fails would tell the class.

        An edit that fails leaves its picture as it is: where this happens more with one label, "edited" comes to mean
        the other. So a kind is healed, or pasted, as often with either label; a `DataError` where too few edits are
        left.
        """
        of_label = {0: self.normals, 1: self.defectives}
        tries = [(kind, of_label[label]) for label, kinds in KINDS.items() for kind in kinds]
        table = self._table(
            (row, self._drawn(kind, row, np.random.default_rng([self.seed, number, place, STREAM, 1])))
            for place, (kind, rows) in enumerate(tries)
            for number in range(TRIED)
            for row in [rows[number * len(rows) // TRIED if len(rows) > TRIED else number % len(rows)]]
        )
        impossible = table[table["method"].isna()]
        if impossible.empty:
            return
        reasons = Counter(reason for failures in impossible["failures"] for reason in failures)
        told = ", ".join(f"{reason} ({number})" for reason, number in reasons.most_common())
        text = f"{len(impossible)} of {len(table)} edits tried are impossible; reasons by number of tries: {told}"
        of_kind = table["method"].notna().groupby(table["kind"]).mean()
        rates = {str(kind): float(rate) for kind, rate in of_kind.items()}
        before = shown_shares(self.expected, rates, len(self.normals), len(self.defectives))
        if max(abs(normal - defective) for normal, defective in before.values()) > BALANCED:
            self.odds = balanced(self.odds, rates, len(self.normals), len(self.defectives))
        after = shown_shares(self.expected, rates, len(self.normals), len(self.defectives))
        done = sum(min(shares) for shares in after.values())
        if done < LEAST_DONE * self.share:
            left = f"so that {100 * done:.0f} % of the pictures of either class can be edited alike"
            raise DataError(f"image_counterfactual is {self.share:g}, but {text}, {left}; check the masks, or lower it")
        logger.warning("image counterfactuals: %s; these pictures stay as they are", text)
        if after != before:
            logger.warning(
                "image counterfactuals: %.0f %% of either class are edited, in place of the asked", 100 * done
            )

    def pasted_masks(self) -> Iterator[NDArray[np.bool_]]:
        """Masks of pasted defects, as many to the annotated ones as a training shows of either.

        Strategy S6 draws other samples' masks from a bank; without these, a mask at a place where only pasted defects
        lie would tell the class.
        """
        pasted = self.expected["paste"]
        own = len(self.annotated) * (1 - self.share) + len(self.defectives) * self.share - self.expected["heal"]
        drawn = (self.draw(epoch, row) for epoch, row in product(range(MOST_EPOCHS), self.normals))
        masks = (each.edit.mask for each in drawn if each is not None and each.kind == "paste" and each.edit)
        return islice(masks, round(len(self.annotated) * pasted / own))

    def _edit(self, kind: str, row: int, method: str, rng: Generator) -> Edit:
        """An edit without the picture's bars, which may be of another size than its donors and sources."""
        picture = self.dataset.stored(row)
        image, mask = picture.without_bars
        make = getattr(editing, kind)
        if kind in KINDS[1]:
            edit = make(image, mask, method=method, rng=rng)
        else:
            donor_image, donor_mask = self.dataset.stored(int(rng.choice(self.annotated))).without_bars
            shown = [donor_image] if kind == "paste" else []
            if kind == "paste_clean":
                others = [normal for normal in self.normals if normal != row]
                if not others:
                    raise EditError("no other normal picture", "the training split holds one only")
                shown = [self.dataset.stored(int(rng.choice(others))).without_bars[0]]
            edit = make(image, *shown, donor_mask, method=method, rng=rng)
        return editing.framed(edit, picture.image.shape[:2], picture.place)


def edits_figure(edits: ImageCounterfactuals, kind: str | None = None) -> Figure:
    """Edits magnified, a column each: before, after, and four times the change; defect, and region, outlined.

    With a `kind`, one edit by each of its methods; else one of each kind. What is impossible is left out and logged.
    """
    wanted = (*KINDS[1], *KINDS[0]) if kind is None else HEAL_METHODS if kind in HEALING else PASTE_METHODS
    found: dict[str, tuple[int, Edit]] = {}
    draws = (edits.draw(epoch, row) for epoch in count() for row in edits.rows)
    for drawn in islice(draws, 1000):
        if drawn is not None and drawn.edit is not None and kind in (None, drawn.kind):
            found.setdefault(drawn.kind if kind is None else drawn.edit.method, (drawn.row, drawn.edit))
        if len(found) == len(wanted):
            break
    if len(found) < len(wanted):
        logger.warning("not drawn: %s", ", ".join(name for name in wanted if name not in found))
    panels: list[tuple] = []
    for name in filter(found.__contains__, wanted):
        row, edit = found[name]
        before = edits.dataset.stored(row)
        part = editing.widened(editing.box_of(edit.region), 16, edit.mask.shape)
        change = np.abs(edit.image.astype(np.int16) - before.image).max(-1, keepdims=True)[part]
        mask = None if before.mask is None else before.mask[part]
        panels.append((before.image[part], mask, f"{edit.kind}, {edit.method}"))
        panels.append((edit.image[part], None, "defective" if edit.label else "normal"))
        panels.append((np.clip(4 * change, 0, 255).astype(np.uint8).repeat(3, -1), edit.region[part], "change"))
    images, masks, titles = zip(*(panel for row in range(3) for panel in panels[row::3]))
    return contact_sheet(images, masks, titles, columns=len(found))
