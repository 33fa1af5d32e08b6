"""Do edits leave traces? Small networks, trained in seconds on half of the training pictures, asked of the other half.

Sizes: N pictures, C channels, h x w pixels of a window; a network's cells are `CELL` pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from gainmtl_lib.dataset import GainDataModule
from gainmtl_lib.edits.counterfactuals import HEALING, ImageCounterfactuals
from gainmtl_lib.edits.heal import grown
from gainmtl_lib.readers import DataError
from gainmtl_lib.stats import auroc, group_codes, resampled

WINDOW = 64
"""Pixels a side around an edit that a probe sees."""
RING = 3
"""Pixels of the border around an edit's region. Inside, a pasted defect would be seen."""
BATCH, CELL = 32, 4
STREAM = 11
"""Sets the draw of the halves apart from the edits'."""


def draw_pairs(data: GainDataModule, *, seed: int = 0, pictures: int = 400, rounds: int = 3) -> pd.DataFrame:
    """Windows of training pictures before and after edits as S7 draws them, each picture edited once a round.

    The pictures fall into two halves by part, edited apart, so that donors and sources come from the same half too.

    Returns:
        A row for each edit: ``before``, ``after``, RGB uint8 (h, w, 3), ``region`` (h, w), ``kind``, ``method``,
        ``label`` after the edit, ``part``, ``held_out``.

    Raises:
        DataError: a half lacks a class or annotated defects: the training split is too small.
    """
    dataset, groups = data.dataset, group_codes(data.samples)
    rank = np.random.default_rng([seed, STREAM]).permutation(groups.max() + 1)[groups]
    rows = sorted(data.rows("train"), key=rank.__getitem__)[:pictures]
    pairs = []
    for half in (0, 1):
        chosen = [row for row in rows if rank[row] % 2 == half]
        try:
            edits = ImageCounterfactuals(dataset, chosen, share=1.0, seed=seed)
        except DataError as error:
            few = f"half of the training pictures ({len(chosen)}) are too few to probe edits"
            raise DataError(f"{few}: {error}") from None
        for drawn in (edits.draw(round_, row) for round_ in range(rounds) for row in chosen):
            if drawn is not None and (edit := drawn.edit) is not None:
                window = _window(edit.region)
                shown = dataset.stored(drawn.row).image[window], edit.image[window], edit.region[window]
                pairs.append((*shown, edit.kind, edit.method, edit.label, groups[drawn.row], half == 1))
    return pd.DataFrame(pairs, columns=["before", "after", "region", "kind", "method", "label", "part", "held_out"])


def _window(region: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Up to `WINDOW` pixels a side around a region's border, as far as the picture goes; of a larger one its middle."""
    seen = ring(region) if ring(region).any() else region
    places = np.argwhere(seen)
    middle = (places.min(0) + places.max(0)) // 2
    if np.ptp(places, axis=0).max() >= WINDOW:
        middle = places[((places - middle) ** 2).sum(1).argmin()]
    top, left = np.clip(middle - WINDOW // 2, 0, np.maximum(0, np.array(region.shape) - WINDOW))
    return slice(top, top + WINDOW), slice(left, left + WINDOW)


def ring(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The border around a region."""
    return grown(region, RING) & ~region


def border_probe(
    pairs: pd.DataFrame, *, kinds: Sequence[str] | None = None, seed: int = 0, epochs: int = 14
) -> pd.DataFrame:
    """Does the border around an edit tell the label after it, as the remainder of a healed defect would?

    All else is blank, and the border's colours are relative to their mean. A background that goes along with the class
    (a planted cue of texture, say) shows here too. `kinds` chooses edits: ``("heal", "paste")`` is S7 without controls.

    Returns:
        By row (all, healing, pasting) of the half held out: ``edits``, ``auroc`` (0.5 is guessing), and ``low`` and
        ``high``, its interval by part, NaN where too few are there.
    """
    pairs = pairs if kinds is None else pairs[pairs["kind"].isin(kinds)]
    borders = pairs["region"].map(ring)
    scores = _scores(border_views(pairs), borders, pairs["label"], pairs["held_out"], seed, epochs)
    pairs = pairs.assign(score=scores, edited=1)
    healing = pairs["kind"].isin(HEALING)
    return _table({"all": pairs, "healing": pairs[healing], "pasting": pairs[~healing]}, "label")


def border_views(pairs: pd.DataFrame) -> NDArray[np.float32]:
    """The border's contrast to its own mean in RGB, 1 being a tenth of the range, and the border, (N, h, w, 4)."""
    views = []
    for pixels, seen in zip(pairs["after"] / 255, pairs["region"].map(ring), strict=True):
        shown = (pixels - pixels[seen].mean(0)) / 0.1 if seen.any() else pixels
        views.append(np.dstack([shown, seen]) * seen[..., None])
    return np.stack(views).astype(np.float32)


def edited_probe(pairs: pd.DataFrame, *, seed: int = 0, epochs: int = 6) -> pd.DataFrame:
    """Can places after an edit be told from places before one, with the network told where to look?

    Clean places are compared with clean ones and defects with defects; otherwise the defect would tell. Arguments and
    table as for `border_probe`; its rows are clean places and defects, each kind of edit, and each method (clean ones).
    """
    before = pairs.assign(image=pairs["before"], edited=0, defect=pairs["kind"].isin(["heal", "repaste"]))
    after = pairs.assign(image=pairs["after"], edited=1, defect=pairs["kind"].isin(["paste", "repaste"]))
    both = pd.concat([before, after], ignore_index=True)
    both["score"] = _scores(
        picture_views(both["image"]), both["region"], both["edited"], both["held_out"], seed, epochs
    )
    clean, unedited = both[~both["defect"]], both[both["edited"] == 0]
    rows = {"clean places": clean, "defects": both[both["defect"]]}
    for kind, edits in both[both["edited"] == 1].groupby("kind"):
        rows[str(kind)] = pd.concat([edits, unedited[unedited["defect"] == edits["defect"].iloc[0]]])
    for method, edits in clean[clean["edited"] == 1].groupby("method"):
        rows[str(method)] = pd.concat([edits, clean[clean["edited"] == 0]])
    return _table(rows, "edited")


def picture_views(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Colours less the picture's mean, and less the mean of 3 x 3 pixels, where traces lie, (N, h, w, 6)."""
    shown = np.stack([image / 255 for image in images]).astype(np.float32)
    grain = np.stack([image - cv2.blur(image, (3, 3)) for image in shown])
    return np.concatenate([(shown - shown.mean((1, 2), keepdims=True)) / 0.2, (grain / 0.03).clip(-4, 4)], axis=-1)


def _table(rows: dict[str, pd.DataFrame], asked: str) -> pd.DataFrame:
    return pd.DataFrame({name: _auroc(pairs[pairs["held_out"]], asked) for name, pairs in rows.items()}).T


def _auroc(pairs: pd.DataFrame, asked: str) -> dict[str, float]:
    labels, scores = pairs[asked].to_numpy(), pairs["score"].to_numpy()
    one = resampled(lambda rows: auroc(labels[rows], scores[rows]), pairs["part"].to_numpy())
    return {"edits": pairs["edited"].sum(), "auroc": one.value, "low": one.low, "high": one.high}


def _scores(
    views: NDArray, regions: Iterable[NDArray], targets: pd.Series, held_out: pd.Series, seed: int, epochs: int
) -> NDArray:
    """What a network that learnt the targets of one half says of the views held out, (N,), from their region's cells.

    Each cell sees 17 pixels. A logit is the mean of one map plus the maximum of another over the cells.
    """
    inputs, labels = torch.from_numpy(views).permute(0, 3, 1, 2), torch.tensor(targets.to_numpy()).float()
    cells = F.max_pool2d(torch.from_numpy(np.stack(list(regions)))[:, None].float(), CELL, ceil_mode=True) > 0
    learnt, asked = (torch.from_numpy(np.flatnonzero(held_out == half)) for half in (False, True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(inputs.shape[1], 16, 5, 2, padding=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 2, 1),
        )  # fmt: skip
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-3)
        steps = epochs * -(-len(learnt) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
        for _ in range(epochs):
            for chosen in learnt[torch.randperm(len(learnt))].split(BATCH):
                logits = _logits(network, inputs[chosen], cells[chosen], int(torch.randint(8, ())))
                optimiser.zero_grad()
                F.binary_cross_entropy_with_logits(logits, labels[chosen]).backward()
                optimiser.step()
                schedule.step()
    network.eval()
    with torch.inference_mode():  # every way up: a network is never quite blind to it, and which one it gets is chance
        logits = torch.stack([_logits(network, inputs[asked], cells[asked], turn) for turn in range(8)]).mean(0)
    scores = np.full(len(inputs), np.nan)
    scores[asked] = logits
    return scores


def _logits(network: nn.Module, inputs: Tensor, cells: Tensor, turn: int) -> Tensor:
    """Of views turned by `turn % 4` quarters, mirrored from 4 on, (N,)."""
    inputs, seen = (part.rot90(turn, (2, 3)).flip([3] if turn >= 4 else []) for part in (inputs, cells))
    maps, seen = network(inputs), seen[:, 0]
    mean = (maps[:, 0] * seen).sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)
    return mean + maps[:, 1].masked_fill(~seen, -9).amax((1, 2))
