"""Does the border of an edit tell the class?

N edits, rings on views of `VIEW` pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gainmtl_lib.data.edits.counterfactuals import HEALING
from gainmtl_lib.data.edits.edit import grown
from gainmtl_lib.evaluation.probes.network import PictureNetwork, answers, seeded, train_probe, turned
from gainmtl_lib.evaluation.probes.pairs import EditPair, halves
from gainmtl_lib.evaluation.probes.result import ProbeResult, auroc_by_part, score_table

VIEW = 64
OUTSIDE = 3
"""Pixels of the ring outside the region."""
INSIDE = 0
"""Pixels of the ring inside the region. A pasted defect fills its region up to the rim: inside, it would be seen."""
EPOCHS = 14
CONTRAST = 0.1


def border_probe(
    pairs: Sequence[EditPair],
    *,
    kinds: Sequence[str] | None = None,
    inside: int = INSIDE,
    seed: int = 0,
    epochs: int = EPOCHS,
) -> ProbeResult:
    """Train a network to tell the label after an edit from a ring around it, and ask it about the other half.

    Everything but the ring is blank, brightness and colour are taken relative to the ring's mean, views are turned and
    mirrored at random, held-out ones every way. What is left is the shape of the region and what lies right beside it,
    such as the remainder of a healed defect. A background that goes along with the class (a planted cue of texture,
    say) shows here too. The table asks within healing and within pasting besides, whose regions differ in width.

    Args:
        pairs: of both halves.
        kinds: of edits; None takes all. ``("heal", "paste")`` is what S7 would be without its controls.
        inside: pixels of the ring that lie within the region.
        seed: of the network.
        epochs: passes over the training half.

    Raises:
        DataError: a half without such edits, or with one label only.
    """
    train, test = halves([pair for pair in pairs if kinds is None or pair.kind in kinds], both_labels=True)
    views, labels = ring_views(train, inside=inside, seed=seed), torch.tensor([float(pair.label) for pair in train])
    with seeded(seed):
        network = PictureNetwork(views.shape[1])

        def loss_of(chosen: Tensor, turn: int) -> Tensor:
            return F.binary_cross_entropy_with_logits(network(turned(views[chosen], turn)), labels[chosen])

        train_probe(network, len(views), loss_of, epochs=epochs)
    held_out = ring_views(test, inside=inside, seed=seed + 1)
    # Every way up, because a network is never quite blind to it, and which one a view has is chance.
    scores = torch.stack([answers(network, turned(held_out, turn)) for turn in range(8)]).mean(0)
    return _result(scores.numpy(), test, len(train))


def _result(scores: NDArray, pairs: Sequence[EditPair], trained_on: int) -> ProbeResult:
    labels, groups, kinds = (np.array([getattr(pair, name) for pair in pairs]) for name in ("label", "group", "kind"))
    healed = np.isin(kinds, HEALING)
    rows = []
    for of, name, chosen in (
        ("all", "all", np.ones(len(pairs), bool)),
        ("family", "healing", healed),
        ("family", "pasting", ~healed),
    ):
        if chosen.any():
            estimate = auroc_by_part(labels[chosen], scores[chosen], groups[chosen])
            rows.append((of, name, int(chosen.sum()), estimate))
    return ProbeResult(rows[0][-1], score_table(rows), trained_on, "class from the border")


def ring_views(pairs: Sequence[EditPair], *, inside: int = INSIDE, seed: int = 0) -> Tensor:
    """Rings and what they show: contrast to the ring's mean in RGB, and the ring itself, float32 (N, 4, 64, 64).

    Args:
        pairs: edits.
        inside: pixels of the ring that lie within the region.
        seed: of the places on the border of regions that are larger than a view.
    """
    rng = np.random.default_rng(seed)
    views = np.stack([_view(pair, inside, rng) for pair in pairs])
    return torch.from_numpy(views).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _view(pair: EditPair, inside: int, rng: np.random.Generator) -> NDArray[np.float32]:
    pad = VIEW // 2
    region = np.pad(pair.region, pad)
    present = np.pad(np.ones_like(pair.region), pad)
    ring = grown(region, OUTSIDE) & ~_shrunk(region, inside) & present  # a border of the picture is no ring
    row, column = _middle(pair.region, rng)
    window = slice(row, row + VIEW), slice(column, column + VIEW)
    ring = ring[window]
    pixels = np.pad(pair.after, ((pad, pad), (pad, pad), (0, 0)))[window].astype(np.float32) / 255
    shown = (pixels - pixels[ring].mean(0)) / CONTRAST if ring.any() else np.zeros_like(pixels)
    return np.dstack([shown, np.ones_like(shown[..., :1])]).astype(np.float32) * ring[..., None]


def _shrunk(region: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    if by < 1:
        return region
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * by + 1, 2 * by + 1))
    return cv2.erode(region.astype(np.uint8), disc).astype(np.bool_)


def _middle(region: NDArray[np.bool_], rng: np.random.Generator) -> tuple[int, int]:
    """The middle of the region's box; where the box is larger than a view, some pixel of the region's border."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if max(np.ptp(rows), np.ptp(columns)) + 2 * OUTSIDE < VIEW:
        return (int(rows[0]) + int(rows[-1])) // 2, (int(columns[0]) + int(columns[-1])) // 2
    border = np.argwhere(region & ~_shrunk(region, 1))
    row, column = border[int(rng.integers(len(border)))]
    return int(row), int(column)
