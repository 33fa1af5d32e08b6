"""Does the verdict follow the defect? Test pictures with their defect taken away, or with one added, asked again.

Each edit has its control, the same operation without the change of class: the defect's shape healed beside the defect,
a clean patch in a defect's shape pasted. Cue and everything else of the picture stay.

Sizes: N pictures of the test split, B of a batch, H x W network input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from math import nan
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats

from gainmtl_lib.dataset import Batch, GainDataModule, Picture
from gainmtl_lib.edits.counterfactuals import heal_beside, paste_clean
from gainmtl_lib.edits.heal import Edit, EditError, framed, heal
from gainmtl_lib.edits.paste import paste
from gainmtl_lib.evaluation import MaskSource, evaluated_data, file_digest, rows_of, stored_tables
from gainmtl_lib.evaluation import stored_maps_stored as stored_maps
from gainmtl_lib.metrics import energy_inside
from gainmtl_lib.model import GAINMTLModel
from gainmtl_lib.runs import Run, RunError, read_json, write_json
from gainmtl_lib.stats import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Estimate,
    auroc,
    difference,
    flip_scores,
    group_codes,
    mean_score,
    paired_difference,
    proportion,
    resampled,
    share_parts,
)
from gainmtl_lib.synthetic.cues import read_cue
from gainmtl_lib.train import checked_device

KINDS = ("heal", "heal_beside", "paste", "paste_clean")
HEALS = ("telea", "patch_same")
PASTES = ("copy", "clone")
"""Methods that the pictures are edited with in turn; a picture and its control with the same."""
TRIES = 8
"""Donors that are tried before a picture counts as impossible to edit."""
FLIP_SEED = 0
FLIP_SETTINGS = {"heals": list(HEALS), "pastes": list(PASTES), "seed": FLIP_SEED}

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
        rng = np.random.default_rng([FLIP_SEED, position, KINDS.index(kind) // 2])
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


# --- What one finished run shows about the reasons of its decisions, on the distribution that it was trai


FILE = "indicators.json"
KEYS = {"predictions", "settings", "indicators", "left_out"}
MEASURED = 2
"""Raised when the same run would be measured otherwise."""

OF_PICTURES = ("cam_iou", "grid_iou", "energy_inside", "point_game", "attention_iou", "loc_iou")
"""Means over annotated defects, of the columns of the same name."""
NAMES = (
    "accuracy", "accuracy_shift", "drop", "auroc", "auroc_shift", "auroc_drop", *OF_PICTURES, "wrong_reason_rate",
    "cf_flip_rate", "cf_control_flip_rate", "cf_excess", "image_flip", "image_flip_control", "image_flip_excess",
    "paste_flip", "paste_flip_control", "paste_flip_excess", "counterfactual_accuracy", "cue_energy", "cue_area",
    "cue_excess",
)  # fmt: skip
"""Every indicator, in the order of the study's table."""


def measure_indicators(run: Run, *, device: str | None = None, reuse: bool = True) -> dict[str, Any]:
    """Ask an evaluated run for its reasons, and store the answers as ``indicators.json``.

    At the run's own threshold, chosen on validation:

    - ``accuracy``, ``auroc`` on ``test``; ``…_shift`` on ``test_shift``; ``drop`` and ``auroc_drop``, the first minus
      the second;
    - ``cam_iou``, ``grid_iou``, ``energy_inside``, ``point_game``, ``attention_iou``, ``loc_iou``,
      ``wrong_reason_rate``, ``cf_flip_rate``, ``cf_control_flip_rate`` and ``cf_excess`` (their difference) as
      the evaluation has them;
    - ``image_flip`` and the others of edited pictures, see `flip_indicators`;
    - ``cue_energy``: mean share of the deciding CAM's non-negative energy on the pixels of the cue, over defective
      pictures with the cue; ``cue_area``: the cue's mean share of these pictures, which an even map would give;
      ``cue_excess``: their difference.

    What the strategy or the data lacks (a counterfactual path, an attention map, ``test_shift``, a cue) is absent.

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
        DeviceError: no such device.
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
    indicators = verdict_indicators(table) | picture_indicators(rows)
    indicators |= flip_indicators(rows, flips, float(metrics["threshold"]))
    indicators |= cue_indicators(*_cams_and_cues(run, data, table), group_codes(rows))
    write_json(
        run.folder / FILE,
        {
            "predictions": digest,
            "settings": _settings(),
            "indicators": {name: asdict(indicators[name]) for name in NAMES if name in indicators},
            "left_out": left_out,
        },
    )
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
    current = isinstance(stored, dict) and stored.keys() >= KEYS and stored["settings"] == _settings()
    return stored if current and stored["predictions"] == _digest(run) else None


def verdict_indicators(table: pd.DataFrame) -> dict[str, Estimate]:
    """Accuracy and AUROC on ``test`` and ``test_shift``, and by how much they drop.

    Args:
        table: predictions of every split.
    """
    found: dict[str, Estimate] = {}
    for split, ending in (("test", ""), ("test_shift", "_shift")):
        rows = table[table["split"] == split]
        if len(rows):
            labels, prob, groups = rows["label"].to_numpy(), rows["probability"].to_numpy(), group_codes(rows)
            found[f"accuracy{ending}"] = proportion(labels == rows["predicted"].to_numpy(), groups)
            found[f"auroc{ending}"] = resampled(_auroc_of(labels, prob), groups, strata=labels)
    if "accuracy_shift" in found:
        independent = not share_parts(table[table["split"] == "test"], table[table["split"] == "test_shift"])
        for drop, score in (("drop", "accuracy"), ("auroc_drop", "auroc")):
            found[drop] = difference(found[score], found[f"{score}_shift"], independent=independent)
    return found


def _auroc_of(labels: NDArray, prob: NDArray) -> Any:
    return lambda chosen: auroc(labels[chosen], prob[chosen])


def picture_indicators(rows: pd.DataFrame) -> dict[str, Estimate]:
    """Agreement of the maps with the mask, and the flips of the model's own counterfactual path, of one split."""
    groups = group_codes(rows)
    scores = {name: mean_score(rows[name].to_numpy(), groups) for name in OF_PICTURES if name in rows}
    found = ((rows["verdict"] == "TP") & rows["cam_iou"].notna()).to_numpy()
    scores["wrong_reason_rate"] = proportion(rows["wrong_reason"].to_numpy()[found], groups[found])
    return scores | flip_scores(rows, groups)


def cue_indicators(
    rows: NDArray[np.intp], cams: NDArray, cues: NDArray[np.bool_], groups: NDArray
) -> dict[str, Estimate]:
    """How much of the deciding CAM lies on the cue, over the pictures that carry it.

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
    shares = {"cue_energy": energy, "cue_area": area}
    found = {name: mean_score(values, groups[rows]) for name, values in shares.items()}
    found["cue_excess"] = Estimate(float((energy - area).mean()), count=len(rows))
    return found


def _cams_and_cues(run: Run, data: GainDataModule, table: pd.DataFrame) -> tuple[NDArray, NDArray, NDArray]:
    """Of the defective test pictures with a cue: position among the test rows, CAM, cue pixels."""
    settings = run.settings
    is_test = (table["split"] == "test").to_numpy()
    cams = stored_maps(run, len(table))["cam"][is_test]
    rows = table[is_test]
    cues = {}
    for position, (row, label) in enumerate(zip(rows_of(rows, data), rows["label"], strict=True)):
        if label == 1:
            path = data.dataset.paths[row]
            cue = read_cue(path, root=settings.data_root, image_size=settings.image_size, resize=settings.resize)
            if cue is not None and cue.any():
                cues[position] = cue
    chosen = np.array(list(cues), dtype=np.intp)
    planes = np.stack(list(cues.values())) if cues else np.zeros((0, *settings.image_size), dtype=np.bool_)
    return chosen, cams[chosen], planes


def _settings() -> dict[str, Any]:
    return {"measured": MEASURED} | FLIP_SETTINGS


def _digest(run: Run) -> str:
    return file_digest(run.folder / "predictions.csv")


# --- Which indicator would have warned of the drop, had there been no shifted test set?


LARGE_DROP = 0.10
"""Accuracy lost from which a run should have been warned of."""
ROUNDING = 1e-9
"""57/60 − 51/60 is a little less than 0.10."""
FEWEST_CELLS, FEWEST_RUNS = 3, 8
"""Below these no interval is given."""
CELL = ["cue", "correlation"]
WARNED, MISLED, BY_CHANCE, TOO_FEW = "warned", "misled", "not distinguishable from chance", "too few runs"


@dataclass(frozen=True)
class Sign:
    """What an indicator should show of a run that follows a cue.

    Attributes:
        heading: the indicator in words.
        warns: which end of it.
        why: what it would mean.
    """

    heading: str
    warns: Literal["low", "high"]
    why: str


SIGNS: dict[str, Sign] = {
    "accuracy": Sign("accuracy", "low", "the baseline: often all that is looked at"),
    "auroc": Sign("AUROC", "low", "likewise"),
    "cam_iou": Sign("CAM-IoU", "low", "the deciding map does not cover the defect"),
    "energy_inside": Sign("energy inside", "low", "its energy lies elsewhere"),
    "point_game": Sign("PointGame", "low", "its maximum lies elsewhere"),
    "attention_iou": Sign("attention IoU", "low", "the attention does not cover the defect"),
    "loc_iou": Sign("Loc-IoU", "low", "the localization does not cover the defect"),
    "wrong_reason_rate": Sign("found with the map elsewhere", "high", "defects are found with the map off them"),
    "cf_excess": Sign("flips, features suppressed", "low", "the verdict stands without the defect's features"),
    "image_flip_excess": Sign("flips, defect healed", "low", "healing the defect does not turn the verdict"),
    "paste_flip_excess": Sign("flips, defect pasted", "low", "pasting a defect does not turn the verdict"),
    "counterfactual_accuracy": Sign("accuracy on edited pictures", "low", "verdicts do not follow the edited defects"),
    "cue_energy": Sign("energy on the cue", "high", "the map lies on the cue; needs to know the cue"),
    "cue_excess": Sign("energy on the cue, less its area", "high", "likewise, beyond what an even map would give"),
}
"""Every indicator that could warn. `paste_flip` and others are parts of these."""


def signs_table() -> pd.DataFrame:
    """What is expected of every indicator, before any run is looked at: ``warns when`` and ``because``, by name."""
    lines = {sign.heading: {"warns when": sign.warns, "because": sign.why} for sign in SIGNS.values()}
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("indicator")


def warnings_table(table: pd.DataFrame) -> pd.DataFrame:
    """How well each indicator ranks the runs by what they lose.

    The interval is a seeded two-stage bootstrap: cells (cue and correlation) are drawn with replacement, then runs
    within each drawn cell. Strategies are those of the study: it says nothing about others.

    Args:
        table: of `Study.table`. An indicator is judged over the runs that have it; runs without a drop are left out.

    Returns:
        One row per indicator of `SIGNS` that some run has, the best first: ``indicator`` (in words), ``warns``
        (low or high), ``rank_correlation`` of Spearman with the drop, positive where it warns as expected, ``low`` and
        ``high``, ``auroc`` of telling the runs that lose `LARGE_DROP` or more from the others, ``runs``, ``cells`` and
        ``verdict``. NaN where there is no answer.
    """
    rows = {}
    for name, sign in SIGNS.items():
        known = table[[*CELL, name, "drop"]].dropna() if name in table else table.iloc[:0]
        if len(known):
            rows[name] = _row(known, name, sign)
    ranked = pd.DataFrame.from_dict(rows, orient="index")
    return ranked if ranked.empty else ranked.sort_values("rank_correlation", ascending=False, kind="stable")


def _row(known: pd.DataFrame, name: str, sign: Sign) -> dict[str, str | float | int]:
    warning = known[name].to_numpy(dtype=float) * (1 if sign.warns == "high" else -1)
    drop, cells = known["drop"].to_numpy(dtype=float), known.groupby(CELL, sort=False).ngroup().to_numpy()
    low, high = _interval(warning, drop, cells)
    return {
        "indicator": sign.heading,
        "warns": sign.warns,
        "rank_correlation": rank_correlation(warning, drop),
        "low": low,
        "high": high,
        "auroc": auroc((drop >= LARGE_DROP - ROUNDING).astype(int), warning),
        "runs": len(known),
        "cells": int(cells.max()) + 1,
        "verdict": verdict(low, high),
    }


def rank_correlation(first: NDArray, second: NDArray) -> float:
    """Spearman's, ties at their mean rank; NaN for fewer than three values, or where one side is constant."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return nan
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])


def verdict(low: float, high: float) -> str:
    """What an interval of the rank correlation says."""
    if np.isnan(low):
        return TOO_FEW
    return WARNED if low > 0 else MISLED if high < 0 else BY_CHANCE


def _interval(warning: NDArray, drop: NDArray, cells: NDArray) -> tuple[float, float]:
    if len(np.unique(cells)) < FEWEST_CELLS or len(drop) < FEWEST_RUNS:
        return nan, nan
    times = drawn_times(cells)
    first, second = drawn_ranks(warning, times), drawn_ranks(drop, times)
    total = times.sum(axis=1, keepdims=True)
    first, second = (ranks - (times * ranks).sum(axis=1, keepdims=True) / total for ranks in (first, second))
    product, own, other = ((times * values).sum(axis=1) for values in (first * second, first**2, second**2))
    known = (own > 0) & (other > 0)  # the others drew equal values only
    if known.sum() < RESAMPLES / 2:
        return nan, nan
    drawn = product[known] / np.sqrt(own[known] * other[known])
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def drawn_times(cells: NDArray) -> NDArray[np.int64]:
    """How often each run is drawn in each resample, (R, n): cells first, then runs within each drawn cell.

    Args:
        cells: which cell each run belongs to, (n,).
    """
    rng, names = np.random.default_rng(SEED), np.unique(cells)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)  # (R, cells)
    times = np.zeros((RESAMPLES, len(cells)), dtype=np.int64)
    for place, name in enumerate(names):
        runs = np.flatnonzero(cells == name)
        times[:, runs] = rng.multinomial(drawn[:, place] * len(runs), np.full(len(runs), 1 / len(runs)))
    return times


def drawn_ranks(values: NDArray, times: NDArray) -> NDArray[np.float64]:
    """The rank of each value within each resample, ties at their mean rank less one half, (R, n).

    Args:
        values: (n,).
        times: how often each was drawn, (R, n).
    """
    below = (values[None] < values[:, None]) + 0.5 * (values[None] == values[:, None])
    return times @ below.T
