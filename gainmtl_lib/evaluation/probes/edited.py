"""Can edited pictures be told from unedited ones?

N pairs of pictures before and after an edit, h x w pixels of a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from gainmtl_lib.evaluation.intervals import Estimate
from gainmtl_lib.evaluation.probes.network import PlaceNetwork, answers, cells_of, largest, seeded, train_probe, turned
from gainmtl_lib.evaluation.probes.pairs import EditPair, halves
from gainmtl_lib.evaluation.probes.result import ProbeResult, auroc_by_part, score_table

EPOCHS = 6
GRAIN = 0.03
"""Deviation from the neighbourhood's mean that the network sees as 1; brightness is in [0, 1]."""


def edited_probe(pairs: Sequence[EditPair], *, seed: int = 0, epochs: int = EPOCHS) -> ProbeResult:
    """Train a network to tell places after an edit from the same places before, and ask it about the other half.

    It is told where to look, before and after: an edit that it does not find so, it would not find in a whole picture
    either. A kind is compared with unedited places of the same sort, clean ones or defects; otherwise the defect would
    tell. The row `picture` of the table asks about whole pictures, of the edits that leave the label as it is: there
    the picture before and after shows the same defects and the same background.

    Args:
        pairs: of both halves.
        seed: of the network.
        epochs: passes over the training half.

    Raises:
        DataError: a half without pairs.
    """
    train, test = halves(pairs)
    images, regions = network_input(train), _regions(train)
    edited = (torch.arange(len(images)) >= len(train)).float()

    with seeded(seed):
        network = PlaceNetwork(images.shape[1])

        def loss_of(chosen: Tensor, turn: int) -> Tensor:
            cells = network(turned(images[chosen], turn))
            where = cells_of(turned(regions[chosen % len(train)], turn))
            target = edited[chosen]
            found = F.binary_cross_entropy_with_logits(largest(cells, where), target)
            return found + _cell_loss(cells, where * target[:, None, None, None])

        train_probe(network, len(images), loss_of, epochs=epochs)
    return _result(network, test, trained_on=len(images))


def _cell_loss(cells: Tensor, targets: Tensor) -> Tensor:
    """BCE of the cells in which both kinds weigh the same: an edit takes a few of a thousand cells."""
    share = targets.mean().clamp(1e-4, 1 - 1e-4)
    weights = torch.where(targets > 0, 0.5 / share, 0.5 / (1 - share))
    return F.binary_cross_entropy_with_logits(cells, targets, weights)


def network_input(pairs: Sequence[EditPair]) -> Tensor:
    """Pictures before, then after: colours without the picture's own mean, and the grain, (2 N, 6, h, w).

    The grain is what differs from the mean of 3 x 3 pixels: traces of blending and copying lie there.
    """
    pictures = [pair.before for pair in pairs] + [pair.after for pair in pairs]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    grain = images - F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)
    colours = (images - images.mean((2, 3), keepdim=True)) / 0.2
    joined = torch.cat([colours, (grain / GRAIN).clamp(-4, 4)], dim=1)
    return joined.contiguous(memory_format=torch.channels_last)


def _regions(pairs: Sequence[EditPair]) -> Tensor:
    return torch.from_numpy(np.stack([pair.region for pair in pairs])).float()[:, None]


def _result(network: nn.Module, pairs: Sequence[EditPair], *, trained_on: int) -> ProbeResult:
    cells, where = answers(network, network_input(pairs)), cells_of(_regions(pairs))
    places = largest(cells, torch.cat([where, where])).numpy()
    pictures = cells.amax((1, 2, 3)).numpy()
    kinds, methods = (np.array([getattr(pair, name) for pair in pairs]) for name in ("kind", "method"))
    same_label = np.array([pair.label == pair.label_before for pair in pairs])
    rows = [("all", "all", len(pairs), _estimate(places, pairs, np.ones(len(pairs), bool)))]
    if same_label.any():
        estimate = _estimate(pictures, pairs, same_label, unedited=same_label)
        rows.append(("picture", "same label", int(same_label.sum()), estimate))
    for of, names in (("kind", kinds), ("method", methods)):
        for name in np.unique(names):
            rows.append((of, str(name), int((names == name).sum()), _estimate(places, pairs, names == name)))
    return ProbeResult(rows[0][-1], score_table(rows), trained_on, "edited")


def _estimate(
    scores: NDArray, pairs: Sequence[EditPair], edited: NDArray[np.bool_], *, unedited: NDArray[np.bool_] | None = None
) -> Estimate:
    """AUROC of some pairs' scores after the edit against others' before, clean places and defects apart.

    Args:
        scores: before, then after, (2 N,).
        pairs: N of them.
        edited: which pairs' pictures after count, (N,).
        unedited: which pairs' pictures before; all when None.
    """
    chosen = np.concatenate([np.ones(len(pairs), bool) if unedited is None else unedited, edited])
    groups = np.tile([pair.group for pair in pairs], 2)[chosen]
    clean = np.array([pair.clean_before for pair in pairs] + [pair.clean for pair in pairs])[chosen]
    after = np.repeat([0, 1], len(pairs))[chosen]
    return auroc_by_part(after, scores[chosen], groups, apart=clean)
