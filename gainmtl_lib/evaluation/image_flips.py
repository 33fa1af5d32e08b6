"""Does the verdict follow the defect? Test pictures with their defect taken away, or with one added, asked again.

Each edit has its control, the same operation without the change of class: the defect's shape healed beside the defect,
a clean patch in a defect's shape pasted. Cue and everything else of the picture stay.

Sizes: N pictures of the test split, B of a batch, H x W network input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import nan

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.data.edits import Edit, EditError, heal, heal_beside, paste, paste_clean
from gainmtl_lib.data.edits.framing import framed
from gainmtl_lib.data.loading import Picture
from gainmtl_lib.devices import checked_device
from gainmtl_lib.evaluation.intervals import Estimate, group_codes, mean_score, paired_difference
from gainmtl_lib.evaluation.mask_source import MaskSource
from gainmtl_lib.evaluation.pairing import rows_of
from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.records import Batch
from gainmtl_lib.runs import Run

KINDS = ("heal", "heal_beside", "paste", "paste_clean")
HEALS = ("telea", "patch_same")
PASTES = ("copy", "clone")
"""Methods that the pictures are edited with in turn; a picture and its control with the same."""
TRIES = 8
"""Donors that are tried before a picture counts as impossible to edit."""
SEED = 0
FLIP_SETTINGS = {"heals": list(HEALS), "pastes": list(PASTES), "seed": SEED}

FIXED_MASKS = ("efficientad", "external")
"""Sources of S6's masks that know the picture on disk only: what they would say of an edited one is unknown."""


def image_flips(
    run: Run, data: GainDataModule, rows: pd.DataFrame, *, device: str | None = None
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Defect probabilities of the edited test pictures.

    Healed are all annotated defects, pasted upon all normal pictures, with defects of other test pictures. Controls
    are made of those that the run calls rightly, which alone are asked for flips.

    Args:
        run: finished.
        data: the run's own, set up.
        rows: predictions of its ``test`` split, N rows.
        device: see `checked_device`; None is where the run was trained.

    Returns:
        One row per row of `rows` with a column for each of `KINDS`, NaN where it was not asked or not possible; and
        by kind and reason how many were impossible. All NaN for S6 with masks of `FIXED_MASKS`.
    """
    table = pd.DataFrame(nan, index=rows.index, columns=list(KINDS))
    source = MaskSource.of(run.settings)
    if source.name in FIXED_MASKS:
        return table, {}
    editor = Editor(data, rows_of(rows, data), rows)
    own_device = next(run.model.parameters()).device
    try:
        model = run.model.to(checked_device(device or run.settings.device)).eval()
        with torch.inference_mode(), source.applied(model):
            edits = editor.edits()
            while batch := list(islice(edits, run.settings.batch_size)):
                prob = _probabilities(model, data, source, batch)
                for asked, value in zip(batch, prob, strict=True):
                    table.iloc[asked.position, KINDS.index(asked.kind)] = value
    finally:
        run.model.to(own_device)
    return table, dict(sorted(editor.impossible.items()))


@dataclass(frozen=True)
class Asked:
    """One edited picture.

    Attributes:
        position: of the picture among the test rows.
        row: of it in the data's table.
        kind: one of `KINDS`.
        image: RGB, (H, W, 3).
        mask: defect pixels after the edit, (H, W).
        label: after the edit.
    """

    position: int
    row: int
    kind: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    label: int


@dataclass
class Editor:
    """Makes the edits of a test split, each from random numbers of its own: equal for every run on equal data.

    Attributes:
        data: set up.
        places: the data's row of each test row, (N,).
        table: predictions of the test rows.
        impossible: counts by kind and reason.
    """

    data: GainDataModule
    places: NDArray[np.int64]
    table: pd.DataFrame
    impossible: Counter[str] = field(default_factory=Counter)

    def edits(self) -> Iterator[Asked]:
        """All edits that are possible, picture by picture."""
        labels, right = self.table["label"].to_numpy(), (self.table["label"] == self.table["predicted"]).to_numpy()
        turns = {0: 0, 1: 0}
        for position, (row, label) in enumerate(zip(self.places, labels, strict=True)):
            if label == 1 and not self.data.dataset.has_mask[row]:
                continue
            turn = turns[label]
            turns[label] += 1
            kinds = ("heal", "heal_beside") if label == 1 else ("paste", "paste_clean")
            for kind in kinds if right[position] else kinds[:1]:
                asked = self._asked(position, int(row), kind, turn)
                if asked is not None:
                    yield asked

    def _asked(self, position: int, row: int, kind: str, turn: int) -> Asked | None:
        picture = self._picture(row)
        rng = np.random.default_rng([SEED, position, KINDS.index(kind) // 2])
        try:
            edit = self._edit(row, *picture.without_bars, kind, turn, rng)
            edit = framed(edit, picture.image.shape[:2], picture.place)
        except EditError as error:
            self.impossible[f"{kind}: {error.reason}"] += 1
            return None
        return Asked(position, row, kind, edit.image, edit.mask, edit.label)

    def _edit(
        self,
        row: int,
        image: NDArray[np.uint8],
        mask: NDArray[np.bool_],
        kind: str,
        turn: int,
        rng: np.random.Generator,
    ) -> Edit:
        if kind == "heal":
            return heal(image, mask, method=HEALS[turn % len(HEALS)], rng=rng)
        if kind == "heal_beside":
            return heal_beside(image, mask, method=HEALS[turn % len(HEALS)], rng=rng)
        return self._pasted(row, image, kind, PASTES[turn % len(PASTES)], rng)

    def _pasted(self, row: int, image: NDArray[np.uint8], kind: str, method: str, rng: np.random.Generator) -> Edit:
        """With the first donor, in random order, whose defect can be pasted here."""
        donors = self._others(row, label=1)
        reason: EditError | None = None
        for donor in rng.permutation(donors)[:TRIES]:
            shown, shape = self._picture(int(donor)).without_bars
            try:
                if kind == "paste":
                    return paste(image, shown, shape, method=method, rng=rng)
                clean, _ = self._picture(int(rng.choice(self._others(row, label=0)))).without_bars
                return paste_clean(image, clean, shape, method=method, rng=rng)
            except EditError as error:
                reason = error
        assert reason is not None  # there is at least one donor
        raise reason

    def _others(self, row: int, *, label: int) -> NDArray[np.int64]:
        """Rows of the test split that show another part: normal ones, or annotated defects."""
        samples = self.data.samples.loc[self.places]
        usable = (samples["label"] == label) & (samples["group"] != self.data.samples.loc[row, "group"])
        if label == 1:
            usable &= self.data.dataset.has_mask.numpy()[self.places]
        found = self.places[usable.to_numpy()]
        if not len(found):
            what = "annotated defect" if label else "normal picture"
            raise EditError(f"no other {what}", "the test split holds none of another part")
        return found

    def _picture(self, row: int) -> Picture:
        return self.data.dataset.stored(row)


def _probabilities(
    model: GAINMTLModel, data: GainDataModule, source: MaskSource, asked: list[Asked]
) -> NDArray[np.float32]:
    """Defect probabilities of some edited pictures, (B,)."""
    device = next(model.parameters()).device
    pixels = torch.from_numpy(np.stack([one.image for one in asked])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([one.mask for one in asked]))[:, None].float()
    labels = torch.tensor([one.label for one in asked])
    batch = Batch(pixels.float().div(255), labels, masks, labels == 1, torch.tensor([one.row for one in asked]))
    batch = Batch(*(part.to(device) for part in batch))
    logits = model(batch.images, attention_masks=source.masks(data, batch)).logits
    return logits.float().softmax(dim=1)[:, 1].cpu().numpy()


def flip_indicators(rows: pd.DataFrame, flips: pd.DataFrame, threshold: float) -> dict[str, Estimate]:
    """What the edits did to the verdicts.

    ``image_flip``: of the found annotated defects that could be healed, the share whose verdict turns to normal;
    ``image_flip_control``: with the same shape healed beside the defect; ``image_flip_excess``: their difference over
    the pictures that were asked both, with Tango's interval. ``paste_flip`` and so on likewise: of normal pictures
    called normal, those that turn defective with a pasted defect, or with a clean patch.
    ``counterfactual_accuracy``: balanced accuracy on all healed defects (normal then) and all pasted ones (defective),
    found or not.

    Args:
        rows: predictions, N rows.
        flips: of `image_flips`.
        threshold: probability from which a picture is called defective.
    """
    groups = group_codes(rows)
    called, label = rows["predicted"].to_numpy() == 1, rows["label"].to_numpy()
    found: dict[str, Estimate] = {}
    for name, kind, control, asked, turned in (
        ("image", "heal", "heal_beside", called & (label == 1), np.less),
        ("paste", "paste", "paste_clean", ~called & (label == 0), np.greater_equal),
    ):
        flip = _turned(flips[kind].to_numpy(), asked, threshold, turned)
        beside = _turned(flips[control].to_numpy(), asked, threshold, turned)
        both = ~np.isnan(flip) & ~np.isnan(beside)
        found[f"{name}_flip"] = mean_score(flip, groups)
        found[f"{name}_flip_control"] = mean_score(beside, groups)
        found[f"{name}_flip_excess"] = paired_difference(flip[both], beside[both], groups[both])
    normal = _turned(flips["heal"].to_numpy(), label == 1, threshold, np.less)
    defective = _turned(flips["paste"].to_numpy(), label == 0, threshold, np.greater_equal)
    parts = [values[~np.isnan(values)] for values in (normal, defective)]
    if all(map(len, parts)):
        value = float(np.mean([values.mean() for values in parts]))
        found["counterfactual_accuracy"] = Estimate(value, count=sum(map(len, parts)))
    return {name: estimate for name, estimate in found.items() if estimate.count}


def _turned(
    prob: NDArray, asked: NDArray[np.bool_], threshold: float, turned: Callable[[NDArray, float], NDArray]
) -> NDArray[np.float64]:
    """1 where the verdict is the other class after the edit, 0 where not, NaN where it was not asked."""
    return np.where(asked & ~np.isnan(prob), turned(prob, threshold).astype(float), nan)
