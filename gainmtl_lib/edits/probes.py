"""Do edits leave traces? Small networks, trained in seconds on half of the training pictures, asked of the others."""

from collections.abc import Sequence

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from gainmtl_lib.dataset import GainDataModule
from gainmtl_lib.edits.counterfactuals import HEALING, ImageCounterfactuals
from gainmtl_lib.edits.editing import grown
from gainmtl_lib.findings import DataError
from gainmtl_lib.metrics import auroc
from gainmtl_lib.stats import group_codes, resampled

WINDOW = 64  # pixels a side around an edit that a probe sees
STREAM = 11  # sets the draw of the halves apart from the edits'


def draw_pairs(data: GainDataModule, *, seed: int = 0, pictures: int = 400, rounds: int = 3) -> pd.DataFrame:
    """Windows of training pictures before and after edits as S7 draws them, each picture edited once a round.

    The pictures fall into two halves by part, edited apart, so that donors and sources come from the same half too; a
    `DataError` where a half is too small for edits.

    Returns:
        A row for each edit: ``before``, ``after``, RGB uint8 (h, w, 3), ``region`` (h, w), ``kind``, ``method``,
        ``label`` after the edit, ``part``, ``held_out``.
    """
    dataset, groups = data.dataset, group_codes(data.samples)
    rank = np.random.default_rng([seed, STREAM]).permutation(groups.max() + 1)[groups]
    rows, pairs = sorted(data.rows("train"), key=rank.__getitem__)[:pictures], []
    for half in (0, 1):
        chosen = [row for row in rows if rank[row] % 2 == half]
        try:
            edits = ImageCounterfactuals(dataset, chosen, share=1.0, seed=seed)
        except DataError as error:
            few = f"half of the training pictures ({len(chosen)}) are too few to probe edits"
            raise DataError(f"{few}: {error}") from None
        for drawn in (edits.draw(round_, row) for round_ in range(rounds) for row in chosen):
            if drawn is not None and (edit := drawn.edit) is not None:
                places = np.argwhere(ring(edit.region) if ring(edit.region).any() else edit.region)
                middle = (places.min(0) + places.max(0)) // 2
                if np.ptp(places, axis=0).max() >= WINDOW:  # of a larger one the middle of its border
                    middle = places[((places - middle) ** 2).sum(1).argmin()]
                top, left = np.clip(middle - WINDOW // 2, 0, np.maximum(0, np.array(edit.region.shape) - WINDOW))
                window = slice(top, top + WINDOW), slice(left, left + WINDOW)
                shown = dataset.stored(drawn.row).image[window], edit.image[window], edit.region[window]
                pairs.append((*shown, edit.kind, edit.method, edit.label, groups[drawn.row], half == 1))
    return pd.DataFrame(pairs, columns=["before", "after", "region", "kind", "method", "label", "part", "held_out"])


def ring(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The border of 3 pixels around a region; inside, a pasted defect would be seen."""
    return grown(region, 3) & ~region


def border_probe(
    pairs: pd.DataFrame, *, kinds: Sequence[str] | None = None, seed: int = 0, epochs: int = 14
) -> pd.DataFrame:
    """Does the border around an edit tell the label after it, as the remainder of a healed defect would?

    A background that goes along with the class (a planted cue of texture, say) shows here too. `kinds` chooses edits:
    ``("heal", "paste")`` is S7 without controls.

    Returns:
        By row (all, healing, pasting) of the half held out: ``edits``, ``auroc`` (0.5 is guessing), and ``low`` and
        ``high``, its interval by part, NaN where too few are there.
    """
    pairs = pairs if kinds is None else pairs[pairs["kind"].isin(kinds)]
    borders, healing = pairs["region"].map(ring), pairs["kind"].isin(HEALING)
    pairs = pairs.assign(edited=1, score=_scores(border_views(pairs), borders, pairs, "label", seed, epochs))
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
    # Colours less the picture's mean, and less the mean of 3 x 3 pixels, where traces lie.
    shown = np.stack([image / 255 for image in both["image"]]).astype(np.float32)
    grain = np.stack([image - cv2.blur(image, (3, 3)) for image in shown])
    views = np.concatenate([(shown - shown.mean((1, 2), keepdims=True)) / 0.2, (grain / 0.03).clip(-4, 4)], axis=-1)
    both["score"] = _scores(views, both["region"], both, "edited", seed, epochs)
    places = {False: both[~both["defect"]], True: both[both["defect"]]}
    rows = {"clean places": places[False], "defects": places[True]}
    for column in ("kind", "method"):
        for (name, defect), edits in both[both["edited"] == 1].groupby([column, "defect"]):
            if column == "kind" or not defect:
                rows[str(name)] = pd.concat([edits, places[bool(defect)].query("edited == 0")])
    return _table(rows, "edited")


def _table(rows: dict[str, pd.DataFrame], asked: str) -> pd.DataFrame:
    table = {}
    for name, pairs in rows.items():
        held = pairs[pairs["held_out"]]
        labels, scores = held[asked].to_numpy(), held["score"].to_numpy()
        one = resampled(lambda drawn, y=labels, s=scores: auroc(y[drawn], s[drawn]), held["part"].to_numpy())
        table[name] = {"edits": held["edited"].sum(), "auroc": one.value, "low": one.low, "high": one.high}
    return pd.DataFrame.from_dict(table, orient="index")


def _scores(views: NDArray, regions: pd.Series, pairs: pd.DataFrame, asked: str, seed: int, epochs: int) -> NDArray:
    """What a network that learnt what is asked of one half says of the views held out, (N,), from their regions.

    A cell is 4 pixels a side and sees 17. A logit is the mean of one map over the cells plus the maximum of another.
    """
    inputs, labels = torch.from_numpy(views).permute(0, 3, 1, 2), torch.tensor(pairs[asked].to_numpy()).float()
    cells = F.max_pool2d(torch.from_numpy(np.stack(list(regions)))[:, None].float(), 4, ceil_mode=True)
    learnt, held = (torch.from_numpy(np.flatnonzero(pairs["held_out"] == half)) for half in (False, True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after, size, stride in ((inputs.shape[1], 16, 5, 2), (16, 32, 3, 2), (32, 32, 3, 1)):
            layers += [nn.Conv2d(before, after, size, stride, size // 2), nn.BatchNorm2d(after), nn.ReLU()]
        network = nn.Sequential(*layers, nn.Conv2d(32, 2, 1))

        def logits(chosen: torch.Tensor, turn: int) -> torch.Tensor:
            """Of views turned by `turn % 4` quarters, mirrored from 4 on, (N,)."""
            shown, seen = (part[chosen].rot90(turn, (2, 3)).flip([3] * (turn >= 4)) for part in (inputs, cells))
            maps, seen = network(shown), seen[:, 0]
            mean = (maps[:, 0] * seen).sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)
            return mean + maps[:, 1].masked_fill(seen == 0, -9).amax((1, 2))

        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-3)
        steps = epochs * -(-len(learnt) // 32)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
        for _ in range(epochs):
            for chosen in learnt[torch.randperm(len(learnt))].split(32):
                optimiser.zero_grad()
                loss = F.binary_cross_entropy_with_logits(logits(chosen, int(torch.randint(8, ()))), labels[chosen])
                loss.backward()
                optimiser.step()
                schedule.step()
    network.eval()
    scores = np.full(len(inputs), np.nan)
    with torch.inference_mode():  # every way up: a network is never quite blind to it, and which one it gets is chance
        scores[held] = torch.stack([logits(held, turn) for turn in range(8)]).mean(0)
    return scores
