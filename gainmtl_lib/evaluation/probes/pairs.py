"""Pictures before and after their edits, in two halves that share no picture.

H x W picture, h x w window of at most `WINDOW` pixels a side around the edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.data.edits.counterfactuals import ImageCounterfactuals
from gainmtl_lib.data.edits.edit import Edit, box_of
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.evaluation.intervals import group_codes

WINDOW = 128
PICTURES = 400
ROUNDS = 3
STREAM = 11
"""Sets the draw of the halves apart from the edits'."""


@dataclass(frozen=True)
class EditPair:
    """One place of one picture, before and after an edit.

    Attributes:
        before: RGB uint8 (h, w, 3).
        after: RGB uint8 (h, w, 3).
        region: pixels that the edit may have changed, (h, w).
        label_before: 0 normal, 1 defective.
        label: after the edit.
        kind: see `Edit`.
        method: see `Edit`.
        group: code of the part that the picture shows.
        held_out: whether the pair belongs to the half that a probe is judged on.
    """

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    region: NDArray[np.bool_]
    label_before: int
    label: int
    kind: str
    method: str
    group: int
    held_out: bool

    @property
    def clean_before(self) -> bool:
        """Whether the region showed no defect before the edit."""
        return self.kind not in ("heal", "repaste")

    @property
    def clean(self) -> bool:
        """Whether the region shows no defect after the edit."""
        return self.kind not in ("paste", "repaste")


def edit_pair(before: NDArray[np.uint8], edit: Edit, *, label_before: int, group: int, held_out: bool) -> EditPair:
    """The window around the edit's region, from the picture before (H, W, 3) and after."""
    window = _window(edit.region)
    return EditPair(
        before[window].copy(),
        edit.image[window].copy(),
        edit.region[window].copy(),
        label_before,
        edit.label,
        edit.kind,
        edit.method,
        group,
        held_out,
    )


def draw_pairs(
    data: GainDataModule, *, seed: int = 0, pictures: int = PICTURES, rounds: int = ROUNDS
) -> list[EditPair]:
    """Edits of training pictures as S7 draws them, every picture edited once a round; no test picture is touched.

    The pictures fall into two halves by part. Each half is edited by itself, so that donors and sources of patches come
    from the same half too.

    Args:
        data: set up; `image_counterfactual` of its own is not needed.
        seed: of the halves and of the edits.
        pictures: at most as many are taken, with the classes in proportion.
        rounds: edits of each picture.

    Raises:
        DataError: a half lacks a class or annotated defects: the training split is too small.
    """
    dataset = data.dataset
    labels, annotated = dataset.labels.numpy(), dataset.has_mask.numpy()
    groups = group_codes(data.samples)
    pairs = []
    for held_out, rows in enumerate(_halves(data.rows("train"), labels, groups, pictures=pictures, seed=seed)):
        try:
            edits = ImageCounterfactuals(
                labels=labels, annotated=annotated, rows=rows, picture=dataset.stored, share=1.0, seed=seed
            )
        except DataError as error:
            few = f"half of the training pictures ({len(rows)}) are too few to probe edits"
            raise DataError(f"{few}: {error}") from None
        for drawn in (edits.draw(round_, row) for round_ in range(rounds) for row in rows):
            if drawn is not None and drawn.edit is not None:
                before = dataset.stored(drawn.row).image
                told = {"label_before": int(labels[drawn.row]), "group": int(groups[drawn.row])}
                pairs.append(edit_pair(before, drawn.edit, held_out=bool(held_out), **told))
    return pairs


def halves(pairs: Sequence[EditPair], *, both_labels: bool = False) -> tuple[list[EditPair], list[EditPair]]:
    """Pairs to train on, and those held out.

    Args:
        pairs: of both halves.
        both_labels: whether either half must hold both labels after the edits.

    Raises:
        DataError: a half is empty, or lacks a label.
    """
    train, test = ([pair for pair in pairs if pair.held_out == held_out] for held_out in (False, True))
    if not train or not test:
        raise DataError(f"a probe needs edits in both halves, got {len(train)} to train on and {len(test)} held out")
    for name, half in (("to train on", train), ("held out", test)):
        if both_labels and len({pair.label for pair in half}) < 2:
            raise DataError(f"all {len(half)} edits {name} have label {half[0].label}; the probe needs both labels")
    return train, test


def _halves(
    rows: Sequence[int], labels: NDArray, groups: NDArray, *, pictures: int, seed: int
) -> tuple[list[int], list[int]]:
    """Rows of either half; parts are dealt out in turn, those with a defect and those without apart."""
    rng = np.random.default_rng([seed, STREAM])
    share = min(1.0, pictures / max(1, len(rows)))
    halves: tuple[list[int], list[int]] = ([], [])
    defective = {int(groups[row]) for row in rows if labels[row] == 1}
    for wanted in (True, False):
        parts = [part for part in dict.fromkeys(groups[list(rows)].tolist()) if (part in defective) == wanted]
        order = rng.permutation(len(parts))[: round(share * len(parts))]
        side = {parts[place]: number % 2 for number, place in enumerate(order)}
        for row in rows:
            if (half := side.get(int(groups[row]))) is not None:
                halves[half].append(row)
    return halves


def _window(region: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Up to `WINDOW` pixels a side around the middle of the region's box, as far as the picture allows.

    Around the region's pixel nearest to it where the box is larger: a region may be hollow or in pieces.
    """
    box = box_of(region)
    middle = np.array([(side.start + side.stop) // 2 for side in box])
    if max(side.stop - side.start for side in box) > WINDOW:
        places = np.argwhere(region)
        middle = places[((places - middle) ** 2).sum(1).argmin()]
    sizes = [min(length, WINDOW) for length in region.shape]
    starts = np.clip(middle - np.array(sizes) // 2, 0, np.array(region.shape) - sizes)
    rows, columns = (slice(int(start), int(start) + size) for start, size in zip(starts, sizes, strict=True))
    return rows, columns
