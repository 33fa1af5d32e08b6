"""What a run's verdicts rest on, asked of its own test pictures: edited ones, maps, and where a cue is known, the cue.

Pictures with their defect taken away, or with one added, are asked again. Each edit has its control, the same operation
without the change of class: the defect's shape healed beside the defect, a clean patch in a defect's shape pasted. Cue
and everything else of the picture stay.

Sizes: N pictures of the test split, B of a batch, H x W network input, R runs of a study.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from math import nan
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from gainmtl_lib.dataset import Batch, GainDataModule
from gainmtl_lib.edits.heal import Edit, EditError, framed, heal, heal_beside
from gainmtl_lib.edits.paste import paste, paste_clean
from gainmtl_lib.evaluation import MaskSource, evaluated_data, file_digest, rows_of, stored_maps, stored_tables
from gainmtl_lib.metrics import energy_inside
from gainmtl_lib.runs import Run, RunError, read_json, write_json
from gainmtl_lib.stats import (
    Estimate,
    difference,
    group_codes,
    mean_score,
    paired_difference,
    resampled,
    share_parts,
    split_scores,
)
from gainmtl_lib.synthetic.cues import read_cue
from gainmtl_lib.train import checked_device
from gainmtl_lib.wording import METRICS

# --- Edited test pictures


KINDS = ("heal", "heal_beside", "paste", "paste_clean")
HEALS = ("telea", "patch_same")
PASTES = ("copy", "clone")
"""Methods that the pictures are edited with in turn; a picture and its control with the same."""
TRIES = 8
"""Donors that are tried before a picture counts as impossible to edit."""
SEED = 0
FIXED_MASKS = ("efficientad", "external")
"""Sources of S6's masks that know the picture on disk only: what they would say of an edited one is unknown."""


class Asked(NamedTuple):
    """One edited picture: its position among the test rows, its row in the data's table, one of `KINDS`, the edit."""

    position: int
    row: int
    kind: str
    edit: Edit


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
    model = run.model.to(checked_device(device or run.settings.device)).eval()
    try:
        with torch.inference_mode(), source.applied(model):
            edits = editor.edits()
            while asked := list(islice(edits, run.settings.batch_size)):
                batch = _batch(asked, next(model.parameters()).device)
                logits = model(batch.images, attention_masks=source.masks(data, batch)).logits
                for one, value in zip(asked, logits.float().softmax(dim=1)[:, 1].tolist(), strict=True):
                    table.iloc[one.position, KINDS.index(one.kind)] = value
    finally:
        run.model.to(own_device)
    return table, dict(sorted(editor.impossible.items()))


def _batch(asked: list[Asked], device: torch.device) -> Batch:
    pixels = torch.from_numpy(np.stack([one.edit.image for one in asked])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([one.edit.mask for one in asked]))[:, None].float()
    labels, rows = (torch.tensor(values) for values in zip(*((one.edit.label, one.row) for one in asked)))
    batch = Batch(pixels.float().div(255), labels, masks, labels == 1, rows)
    return Batch(*(part.to(device) for part in batch))


class Editor:
    """Makes the edits of a test split, each from random numbers of its own: equal for every run on equal data.

    Args:
        data: set up.
        places: the data's row of each test row, (N,).
        table: predictions of the test rows.
    """

    def __init__(self, data: GainDataModule, places: NDArray[np.int64], table: pd.DataFrame) -> None:
        self.data, self.places, self.table = data, places, table
        self.impossible: Counter[str] = Counter()
        """By kind and reason how many."""

    def edits(self) -> Iterator[Asked]:
        """All edits that are possible, picture by picture."""
        labels, right = self.table["label"].to_numpy(), (self.table["label"] == self.table["predicted"]).to_numpy()
        turns = {0: 0, 1: 0}
        for position, (row, label) in enumerate(zip(self.places.tolist(), labels.tolist(), strict=True)):
            if label == 1 and not self.data.dataset.has_mask[row]:
                continue
            turn, turns[label] = turns[label], turns[label] + 1
            kinds = ("heal", "heal_beside") if label == 1 else ("paste", "paste_clean")
            for kind in kinds if right[position] else kinds[:1]:
                rng = np.random.default_rng([SEED, position, KINDS.index(kind) // 2])
                try:
                    yield Asked(position, row, kind, self._edit(row, kind, turn, rng))
                except EditError as error:
                    self.impossible[f"{kind}: {error.reason}"] += 1

    def _edit(self, row: int, kind: str, turn: int, rng: np.random.Generator) -> Edit:
        picture = self.data.dataset.stored(row)
        image, mask = picture.without_bars
        if kind in ("heal", "heal_beside"):
            make = heal if kind == "heal" else heal_beside
            edit = make(image, mask, method=HEALS[turn % len(HEALS)], rng=rng)
        else:
            edit = self._pasted(row, image, kind, PASTES[turn % len(PASTES)], rng)
        return framed(edit, picture.image.shape[:2], picture.place)

    def _pasted(self, row: int, image: NDArray[np.uint8], kind: str, method: str, rng: np.random.Generator) -> Edit:
        """With the first donor, in random order, whose defect can be pasted here."""
        reason = EditError("no other annotated defect", "the test split holds none of another part")
        for donor in rng.permutation(self._others(row, label=1))[:TRIES]:
            shown, shape = self.data.dataset.stored(int(donor)).without_bars
            try:
                if kind == "paste":
                    return paste(image, shown, shape, method=method, rng=rng)
                others = self._others(row, label=0)
                if not len(others):
                    raise EditError("no other normal picture", "the test split holds none of another part")
                clean, _ = self.data.dataset.stored(int(rng.choice(others))).without_bars
                return paste_clean(image, clean, shape, method=method, rng=rng)
            except EditError as error:
                reason = error
        raise reason

    def _others(self, row: int, *, label: int) -> NDArray[np.int64]:
        """Rows of the test split that show another part: normal ones, or annotated defects."""
        samples = self.data.samples.loc[self.places]
        usable = (samples["label"] == label) & (samples["group"] != self.data.samples.loc[row, "group"])
        if label == 1:
            usable &= self.data.dataset.has_mask.numpy()[self.places]
        return self.places[usable.to_numpy()]


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
    groups, label = group_codes(rows), rows["label"].to_numpy()
    right = (rows["predicted"] == rows["label"]).to_numpy()
    found: dict[str, Estimate] = {}
    followed = []
    for name, kind, control, before in (("image", "heal", "heal_beside", 1), ("paste", "paste", "paste_clean", 0)):
        turned = {}
        for edit in (kind, control):
            prob = flips[edit].to_numpy()
            turned[edit] = np.where(np.isnan(prob), nan, (prob >= threshold) != before)
        flip, beside = (np.where(right & (label == before), turned[edit], nan) for edit in (kind, control))
        both = ~np.isnan(flip) & ~np.isnan(beside)
        found[f"{name}_flip"], found[f"{name}_flip_control"] = mean_score(flip, groups), mean_score(beside, groups)
        found[f"{name}_flip_excess"] = paired_difference(flip[both], beside[both], groups[both])
        followed.append(turned[kind][(label == before) & ~np.isnan(turned[kind])])
    if all(map(len, followed)):
        value = float(np.mean([values.mean() for values in followed]))
        found["counterfactual_accuracy"] = Estimate(value, count=sum(map(len, followed)))
    return {name: estimate for name, estimate in found.items() if estimate.count}


# --- All indicators of a run, stored beside its evaluation


FILE = "indicators.json"
MEASURED = {"measured": 2, "heals": list(HEALS), "pastes": list(PASTES), "seed": SEED}
"""How; the number is raised when the same run would be measured otherwise."""
NAMES = (
    "accuracy", "accuracy_shift", "drop", "auroc", "auroc_shift", "auroc_drop", "cam_iou", "grid_iou", "energy_inside",
    "point_game", "attention_iou", "loc_iou", "wrong_reason_rate", "cf_flip_rate", "cf_control_flip_rate", "cf_excess",
    "image_flip", "image_flip_control", "image_flip_excess", "paste_flip", "paste_flip_control", "paste_flip_excess",
    "counterfactual_accuracy", "cue_energy", "cue_area", "cue_excess",
)  # fmt: skip
"""Every indicator, in the order of the study's table."""


def measure_indicators(run: Run, *, device: str | None = None, reuse: bool = True) -> dict[str, Any]:
    """Ask an evaluated run for its reasons, and store the answers as ``indicators.json``.

    At the run's own threshold, chosen on validation: scores of `split_indicators`, flips of `flip_indicators`, and
    where the data records a cue, the energy of the deciding CAM on it, see `cue_indicators`. What the strategy or the
    data lacks (a counterfactual path, an attention map, ``test_shift``, a cue) is absent.

    Args:
        run: finished and evaluated.
        device: where to compute, see `checked_device`; None is where the run was trained.
        reuse: take what is stored where it was measured in this way for these predictions.

    Returns:
        ``predictions``, the SHA-256 of the predictions that it belongs to; ``settings`` of the measurement;
        ``indicators``, by name the fields of an `Estimate` (None for NaN); ``left_out``, edits that were impossible,
        by kind and reason, and how many.

    Raises:
        RunError: the run is not evaluated, has no ``test`` split, or its data changed.
        DataError: pictures that cannot be read.
    """
    if reuse and (stored := stored_indicators(run)) is not None:
        return stored
    table, metrics = stored_tables(run)
    rows = table[table["split"] == "test"]
    if rows.empty:
        raise RunError(f"{run.folder}: evaluated without a test split; indicators are measured on it")
    digest = _digest(run)  # before the seconds that measuring takes
    data = evaluated_data(run)
    flips, left_out = image_flips(run, data, rows, device=device)
    found = split_indicators(table) | flip_indicators(rows, flips, float(metrics["threshold"]))
    found |= cue_indicators(*_cams_and_cues(run, data, table), group_codes(rows))
    indicators = {name: asdict(found[name]) for name in NAMES if name in found}
    content = {"predictions": digest, "settings": MEASURED, "indicators": indicators, "left_out": left_out}
    write_json(run.folder / FILE, content)
    return read_json(run.folder / FILE)  # as a later call reads it


def indicator_table(measured: Mapping[str, Any]) -> pd.DataFrame:
    """What `measure_indicators` returned, a row per indicator: ``value``, ``low``, ``high``, ``count``."""
    table = pd.DataFrame.from_dict(measured["indicators"], orient="index").rename_axis("indicator")
    return table[["value", "low", "high", "count"]].astype({name: float for name in ("value", "low", "high")})


def stored_indicators(run: Run) -> dict[str, Any] | None:
    """What `measure_indicators` left; None where there is nothing, or it is damaged or out of date."""
    try:
        stored = read_json(run.folder / FILE)
    except RunError:
        return None
    keys = {"predictions", "settings", "indicators", "left_out"}
    current = isinstance(stored, dict) and stored.keys() >= keys and stored["settings"] == MEASURED
    return stored if current and stored["predictions"] == _digest(run) else None


def _digest(run: Run) -> str:
    return file_digest(run.folder / "predictions.csv")


def split_indicators(table: pd.DataFrame) -> dict[str, Estimate]:
    """Scores of ``test``, accuracy and AUROC on ``test_shift``, and by how much they drop, from all predictions."""
    rows, shifted = (table[table["split"] == split] for split in ("test", "test_shift"))
    found = split_scores(rows)
    if len(shifted):
        independent, scores = not share_parts(rows, shifted), split_scores(shifted)
        for name, drop in (("accuracy", "drop"), ("auroc", "auroc_drop")):
            found[f"{name}_shift"] = scores[name]
            found[drop] = difference(found[name], scores[name], independent=independent)
    return found


def cue_indicators(
    rows: NDArray[np.intp], cams: NDArray, cues: NDArray[np.bool_], groups: NDArray
) -> dict[str, Estimate]:
    """How much of the deciding CAM lies on the cue, over the defective pictures that carry it.

    ``cue_energy``: mean share of its non-negative energy; ``cue_area``: mean share of the picture, which an even map
    would give; ``cue_excess``: their difference.

    Args:
        rows: their positions in the split, (n,); none gives nothing.
        cams: deciding CAMs, (n, h, w).
        cues: pixels of the cue, (n, H, W).
        groups: codes of the whole split, (N,).
    """
    if not len(rows):
        return {}
    masks = torch.from_numpy(cues)[:, None].float()
    energy = energy_inside(torch.from_numpy(np.asarray(cams, dtype=np.float32))[:, None], masks).numpy()
    area = cues.mean(axis=(1, 2))
    found = {"cue_energy": mean_score(energy, groups[rows]), "cue_area": mean_score(area, groups[rows])}
    return found | {"cue_excess": Estimate(float((energy - area).mean()), count=len(rows))}


def _cams_and_cues(run: Run, data: GainDataModule, table: pd.DataFrame) -> tuple[NDArray, NDArray, NDArray]:
    """Of the defective test pictures with a cue: position among the test rows, CAM, cue pixels."""
    settings, cues = run.settings, {}
    is_test = (table["split"] == "test").to_numpy()
    rows = table[is_test]
    for position, (row, label) in enumerate(zip(rows_of(rows, data), rows["label"], strict=True)):
        if label == 1:
            path = data.dataset.paths[row]
            cue = read_cue(path, root=settings.data_root, image_size=settings.image_size, resize=settings.resize)
            if cue is not None and cue.any():
                cues[position] = cue
    chosen = np.array(list(cues), dtype=np.intp)
    planes = np.stack(list(cues.values())) if cues else np.zeros((0, *settings.image_size), dtype=np.bool_)
    return chosen, stored_maps(run, len(table))["cam"][is_test][chosen], planes


# --- Which indicator would have warned of the drop, had there been no shifted test set?


class Sign(NamedTuple):
    """What an indicator should show of a run that follows a cue: which end of it warns (low, high), and why."""

    warns: str
    why: str


SIGNS: dict[str, Sign] = {
    "accuracy": Sign("low", "the baseline: often all that is looked at"),
    "auroc": Sign("low", "likewise"),
    "cam_iou": Sign("low", "the deciding map does not cover the defect"),
    "energy_inside": Sign("low", "its energy lies elsewhere"),
    "point_game": Sign("low", "its maximum lies elsewhere"),
    "attention_iou": Sign("low", "the attention does not cover the defect"),
    "loc_iou": Sign("low", "the localization does not cover the defect"),
    "wrong_reason_rate": Sign("high", "defects are found with the map off them"),
    "cf_excess": Sign("low", "the verdict stands without the defect's features"),
    "image_flip_excess": Sign("low", "healing the defect does not turn the verdict"),
    "paste_flip_excess": Sign("low", "pasting a defect does not turn the verdict"),
    "counterfactual_accuracy": Sign("low", "verdicts do not follow the edited defects"),
    "cue_energy": Sign("high", "the map lies on the cue; needs to know the cue"),
    "cue_excess": Sign("high", "likewise, beyond what an even map would give"),
}
"""Every indicator that could warn. `paste_flip` and others are parts of these."""


def warnings_table(table: pd.DataFrame) -> pd.DataFrame:
    """How well each indicator ranks the runs by what they lose; about other strategies than theirs it says nothing.

    Args:
        table: one row per run: ``cue``, ``correlation``, ``drop`` and the indicators. Each is judged over the runs
            that have it; runs without a drop are left out.

    Returns:
        One row per indicator of `SIGNS` that some run has, the best first: ``indicator`` (in words), ``warns``
        (low or high), ``value``, Spearman's rank correlation with the drop, positive where it warns as expected,
        ``low`` and ``high`` by resampled cells (cue and correlation), ``runs``, ``cells``.
    """
    rows = {}
    for name, sign in SIGNS.items():
        known = table[["cue", "correlation", name, "drop"]].dropna() if name in table else table.iloc[:0]
        if len(known):
            warning = known[name].to_numpy(dtype=float) * (1 if sign.warns == "high" else -1)
            drop, cells = known["drop"].to_numpy(dtype=float), known.groupby(["cue", "correlation"]).ngroup().to_numpy()
            found = resampled(lambda at, of=warning, by=drop: rank_correlation(of[at], by[at]), cells)
            rows[name] = {"indicator": METRICS[name], "warns": sign.warns, "value": found.value} | {
                "low": found.low, "high": found.high, "runs": len(known), "cells": found.groups,
            }  # fmt: skip
    ranked = pd.DataFrame.from_dict(rows, orient="index")
    return ranked if ranked.empty else ranked.sort_values("value", ascending=False, kind="stable")


def rank_correlation(first: NDArray, second: NDArray) -> float:
    """Spearman's, ties at their mean rank; NaN for fewer than three values, or where one side is constant."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return nan
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])


def warnings_figure(warnings: pd.DataFrame) -> Figure:
    """Each indicator's rank correlation with the drop, and its interval: right of the line it warns.

    Args:
        warnings: of `warnings_table`.
    """
    rows = warnings[warnings["value"].notna()]
    figure = Figure(figsize=(7.6, 0.36 * len(rows) + 1.5), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="k", lw=0.8)
    for place, (value, low, high) in enumerate(rows[["value", "low", "high"]].to_numpy(dtype=float)):
        axis.barh(place, value, color="#0072b2" if value > 0 else "#d55e00", alpha=0.75, height=0.62)
        axis.plot([low, high], [place] * 2, color="k", lw=1.2)
    labels = [f"{row.indicator} ({row.warns}; {row.runs} runs)" for row in rows.itertuples()]
    axis.set_yticks(range(len(rows)), labels, fontsize=9)
    axis.set(xlim=(-1.03, 1.03), ylim=(len(rows) - 0.4, -0.6))
    axis.set_xlabel("rank correlation with the accuracy lost when the cue is reversed")
    for place, side, text in ((-0.03, "right", "← misleads"), (0.03, "left", "warns →")):
        axis.text(place, 1.01, text, ha=side, fontsize=9, transform=axis.get_xaxis_transform())
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)
    return figure
