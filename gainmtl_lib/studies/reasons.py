"""What a run's verdicts rest on, asked of its own test pictures: edited ones, maps, and where a cue is known, the cue.

Pictures with their defect taken away, or with one added, are asked again. Each edit has its control, the same operation
without the change of class: the defect's shape healed beside the defect, a clean patch in a defect's shape pasted. Cue
and everything else of the picture stay.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from math import nan
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gainmtl_lib import evaluation, stats
from gainmtl_lib.dataset import Batch, GainDataModule
from gainmtl_lib.devices import checked_device
from gainmtl_lib.edits.editing import Edit, EditError, framed, heal, heal_beside, paste, paste_clean
from gainmtl_lib.metrics import energy_inside
from gainmtl_lib.model import defect_probability
from gainmtl_lib.runs import Run, RunError, read_json, write_json
from gainmtl_lib.synthetic.drawing import read_cue
from gainmtl_lib.wording import METRICS

# --- Edited test pictures

KINDS = ("heal", "heal_beside", "paste", "paste_clean")
HEALS, PASTES = ("telea", "patch_same"), ("copy", "clone")  # in turn; a picture and its control are edited alike
TRIES = 8  # donors, before a picture counts as impossible to edit
FIXED_MASKS = ("efficientad", "external")  # know the picture on disk: what they say of an edited one is unknown


def image_flips(
    run: Run, data: GainDataModule, rows: pd.DataFrame, *, device: str | None = None, controls: bool = True
) -> pd.DataFrame:
    """Defect probabilities of the edited pictures of one split, N x `KINDS`.

    Healed are all annotated defects, pasted upon all normal pictures, with defects of others of the split. `controls`
    are made of those that the run calls rightly, which alone are asked for flips. NaN is what was not asked or not
    possible, for S6 with masks of `FIXED_MASKS` everything.
    """
    answers, source = np.full((len(rows), len(KINDS)), nan), evaluation.MaskSource.of(run.settings)
    edits = edited_pictures(data, rows, controls=controls) if source.name not in FIXED_MASKS else iter(())
    places, own_device = evaluation.rows_of(rows, data), next(run.model.parameters()).device
    target = checked_device(device or run.settings.device)
    model = run.model.to(target).eval()
    try:
        with torch.inference_mode(), source.applied(model):
            while asked := list(islice(edits, run.settings.batch_size)):
                positions, kinds, made = map(list, zip(*asked))
                pixels = torch.from_numpy(np.stack([edit.image for edit in made])).permute(0, 3, 1, 2).float() / 255
                masks = torch.from_numpy(np.stack([edit.mask for edit in made]))[:, None].float()
                labels, index = torch.tensor([edit.label for edit in made]), torch.from_numpy(places[positions])
                batch = Batch(*(part.to(target) for part in (pixels, labels, masks, labels == 1, index)))
                logits = model(batch.images, attention_masks=source.masks(data, batch)).logits
                answers[positions, list(map(KINDS.index, kinds))] = defect_probability(logits, model.calibration).cpu()
    finally:
        run.model.to(own_device)
    return pd.DataFrame(answers, index=rows.index, columns=list(KINDS))


def edited_pictures(
    data: GainDataModule, table: pd.DataFrame, *, controls: bool = True
) -> Iterator[tuple[int, str, Edit]]:
    """All possible edits of a split's rows, by position and kind, each from random numbers of its own: equal for every
    run on equal data."""
    right, turns = (table["label"] == table["predicted"]).to_numpy(), {0: 0, 1: 0}
    places = evaluation.rows_of(table, data)
    for position, (row, label) in enumerate(zip(places.tolist(), table["label"].tolist(), strict=True)):
        if label == 1 and not data.dataset.has_mask[row]:
            continue
        turn, turns[label] = turns[label], turns[label] + 1
        kinds = KINDS[:2] if label == 1 else KINDS[2:]
        for kind in kinds if controls and right[position] else kinds[:1]:
            rng = np.random.default_rng([0, position, KINDS.index(kind) // 2])
            with suppress(EditError):
                yield position, kind, _edit(data, places, row, kind, turn, rng)


def _edit(data: GainDataModule, places: NDArray, row: int, kind: str, turn: int, rng: np.random.Generator) -> Edit:
    """Pasted is the first donor, in random order, whose defect can be pasted here."""
    picture = data.dataset.stored(row)
    image, mask = picture.without_bars
    frame = picture.image.shape[:2], picture.place
    if kind in KINDS[:2]:
        make = heal if kind == "heal" else heal_beside
        return framed(make(image, mask, method=HEALS[turn % len(HEALS)], rng=rng), *frame)
    samples, method = data.samples.loc[places], PASTES[turn % len(PASTES)]
    elsewhere = samples["group"] != data.samples.loc[row, "group"]
    normals = places[((samples["label"] == 0) & elsewhere).to_numpy()]
    defects = places[((samples["label"] == 1) & elsewhere & data.dataset.has_mask.numpy()[places]).to_numpy()]
    for donor in rng.permutation(defects)[:TRIES] if kind == "paste" or len(normals) else ():
        shown, shape = data.dataset.stored(int(donor)).without_bars
        with suppress(EditError):
            if kind == "paste":
                return framed(paste(image, shown, shape, method=method, rng=rng), *frame)
            clean, _ = data.dataset.stored(int(rng.choice(normals))).without_bars
            return framed(paste_clean(image, clean, shape, method=method, rng=rng), *frame)
    raise EditError("nothing fits", "no picture of another part of the split can be pasted here")


def flip_indicators(rows: pd.DataFrame, flips: pd.DataFrame, threshold: float) -> dict[str, stats.Estimate]:
    """What the edits, `flips` of `image_flips`, did to the verdicts of `rows`, called defective from `threshold` on.

    ``image_flip``: of the found annotated defects that could be healed, the share whose verdict turns to normal;
    ``image_flip_control``: with the same shape healed beside the defect; ``image_flip_excess``: their difference over
    the pictures that were asked both. ``paste_flip`` and so on likewise: of normal pictures called normal, those that
    turn defective with a pasted defect, or with a clean patch. ``counterfactual_accuracy``: balanced accuracy on all
    healed defects (normal then) and all pasted ones (defective), found or not.
    """
    groups, label = stats.group_codes(rows), rows["label"].to_numpy()
    right, followed = (rows["predicted"] == rows["label"]).to_numpy(), []
    found: dict[str, stats.Estimate] = {}
    for name, kind, control, before in (("image", "heal", "heal_beside", 1), ("paste", "paste", "paste_clean", 0)):
        turned = ((flips >= threshold) != before).where(flips.notna()).astype(float)
        asked = turned[right & (label == before)].reindex(flips.index)
        flip, beside = asked[kind].to_numpy(), asked[control].to_numpy()
        both = ~np.isnan(flip) & ~np.isnan(beside)
        found[f"{name}_flip"] = stats.mean_score(flip, groups)
        found[f"{name}_flip_control"] = stats.mean_score(beside, groups)
        found[f"{name}_flip_excess"] = stats.paired_difference(flip[both], beside[both], groups[both])
        followed.append(turned[kind][label == before].dropna())
    if all(map(len, followed)):
        value = float(np.mean([values.mean() for values in followed]))
        found["counterfactual_accuracy"] = stats.Estimate(value, count=sum(map(len, followed)))
    return {name: estimate for name, estimate in found.items() if estimate.count}


# --- All indicators of a run, stored beside its evaluation

FILE = "indicators.json"
# The number is raised when the same run would be measured otherwise.
MEASURED = {"measured": 3, "heals": list(HEALS), "pastes": list(PASTES), "seed": 0}
NAMES = (
    "accuracy", "accuracy_shift", "drop", "auroc", "auroc_shift", "auroc_drop", "cam_iou", "grid_iou", "energy_inside",
    "point_game", "attention_iou", "loc_iou", "wrong_reason_rate", "cf_flip_rate", "cf_control_flip_rate", "cf_excess",
    "image_flip", "image_flip_control", "image_flip_excess", "paste_flip", "paste_flip_control", "paste_flip_excess",
    "counterfactual_accuracy", "counterfactual_accuracy_val", "cue_energy", "cue_area", "cue_excess",
)  # fmt: skip
"""Every indicator, in the order of the study's table."""


def measure_indicators(run: Run, *, device: str | None = None, reuse: bool = True) -> dict[str, Any]:
    """Ask an evaluated run for its reasons, and store the answers as ``indicators.json``.

    At the run's own threshold: scores of the test splits, `flip_indicators`, of validation the accuracy on edited
    pictures, by which a setting may be chosen, and where the data records a cue, `cue_indicators`. What the strategy or
    the data lacks is absent; what is stored for these predictions is reused. `RunError` for a run that is not
    evaluated, has no ``test`` split, or whose data changed. Returns ``predictions``, the SHA-256 of the predictions
    that it belongs to; ``settings`` of the measurement; ``indicators``, by name the fields of an `Estimate` (None for
    NaN).
    """
    if reuse and (stored := stored_indicators(run)) is not None:
        return stored
    table, metrics = evaluation.stored_tables(run)
    is_test = (table["split"] == "test").to_numpy()
    rows = table[is_test]
    if rows.empty:
        raise RunError(f"{run.folder}: evaluated without a test split; indicators are measured on it")
    digest = evaluation.file_digest(run.folder / "predictions.csv")  # before the seconds that measuring takes
    data, settings = evaluation.evaluated_data(run), run.settings
    flips = image_flips(run, data, rows, device=device)
    threshold, held = float(metrics["threshold"]), table[table["split"] == "val"]
    found = split_indicators(table) | flip_indicators(rows, flips, threshold)
    if len(held):
        flips = image_flips(run, data, held, device=device, controls=False)
        if (edited := flip_indicators(held, flips, threshold).get("counterfactual_accuracy")) is not None:
            found["counterfactual_accuracy_val"] = edited
    cues = {}
    for position in np.flatnonzero(rows["label"] == 1).tolist():
        path, size = data.dataset.paths[evaluation.rows_of(rows, data)[position]], settings.image_size
        cue = read_cue(path, root=settings.data_root, image_size=size, resize=settings.resize)
        if cue is not None and cue.any():
            cues[position] = cue
    if cues:
        cams = evaluation.stored_maps(run, len(table))["cam"][is_test][list(cues)]
        found |= cue_indicators(cams, np.stack(list(cues.values())), stats.group_codes(rows)[list(cues)])
    indicators = {name: asdict(found[name]) for name in NAMES if name in found}
    write_json(run.folder / FILE, {"predictions": digest, "settings": MEASURED, "indicators": indicators})
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
    of_now = {"predictions": evaluation.file_digest(run.folder / "predictions.csv"), "settings": MEASURED}
    current = isinstance(stored, dict) and stored.keys() >= {*of_now, "indicators"} and stored.items() >= of_now.items()
    return stored if current else None


def split_indicators(table: pd.DataFrame) -> dict[str, stats.Estimate]:
    """Scores of ``test``, accuracy and AUROC on ``test_shift``, and by how much they drop, from all predictions."""
    rows, shifted = (table[table["split"] == split] for split in ("test", "test_shift"))
    found = stats.split_scores(rows)
    if len(shifted):
        apart, scores = not stats.share_parts(rows, shifted), stats.split_scores(shifted)
        for name, drop in (("accuracy", "drop"), ("auroc", "auroc_drop")):
            found[f"{name}_shift"] = scores[name]
            found[drop] = stats.difference(found[name], scores[name], independent=apart)
    return found


def cue_indicators(cams: NDArray, cues: NDArray[np.bool_], groups: NDArray) -> dict[str, stats.Estimate]:
    """How much of the deciding CAM lies on the cue, over the n defective pictures that carry it.

    ``cue_energy``: mean share of its non-negative energy; ``cue_area``: mean share of the picture, which an even map
    would give; ``cue_excess``: their difference. CAMs are (n, h, w), pixels of the cues (n, H, W).
    """
    masks = torch.from_numpy(cues)[:, None].float()
    energy = energy_inside(torch.from_numpy(np.asarray(cams, dtype=np.float32))[:, None], masks).numpy()
    area = cues.mean(axis=(1, 2))
    found = {"cue_energy": stats.mean_score(energy, groups), "cue_area": stats.mean_score(area, groups)}
    return found | {"cue_excess": stats.Estimate(float((energy - area).mean()), count=len(cues))}


# --- Which indicator would have warned of the drop, had there been no shifted test set?

SIGNS = {
    "accuracy": ("low", "the baseline: often all that is looked at"),
    "auroc": ("low", "likewise"),
    "cam_iou": ("low", "the deciding map does not cover the defect"),
    "energy_inside": ("low", "its energy lies elsewhere"),
    "point_game": ("low", "its maximum lies elsewhere"),
    "attention_iou": ("low", "the attention does not cover the defect"),
    "loc_iou": ("low", "the localization does not cover the defect"),
    "wrong_reason_rate": ("high", "defects are found with the map off them"),
    "cf_excess": ("low", "the verdict stands without the defect's features"),
    "image_flip_excess": ("low", "healing the defect does not turn the verdict"),
    "paste_flip_excess": ("low", "pasting a defect does not turn the verdict"),
    "counterfactual_accuracy": ("low", "verdicts do not follow the edited defects"),
    "cue_energy": ("high", "the map lies on the cue; needs to know the cue"),
    "cue_excess": ("high", "likewise, beyond what an even map would give"),
}
"""Every indicator that could warn: which end of it should, and why. `paste_flip` and others are parts of these."""


def warnings_table(table: pd.DataFrame) -> pd.DataFrame:
    """How well each indicator ranks the runs by what they lose; about other strategies than theirs it says nothing.

    Returns one row per indicator of `SIGNS` that some run of `table` with a ``drop`` has, the best first: ``indicator``
    (in words), ``warns`` (low or high), ``value``, Spearman's rank correlation with the drop, positive where it warns
    as expected (NaN for fewer than three runs, or where one side is constant), ``runs``.
    """
    rows = {}
    for name, (warns, _) in SIGNS.items():
        known = table[[name, "drop"]].dropna() if name in table else table.iloc[:0]
        if len(known):
            rank = known.corr("spearman", min_periods=3).to_numpy()[0, 1] * (1 if warns == "high" else -1)
            rows[name] = {"indicator": METRICS[name], "warns": warns, "value": rank, "runs": len(known)}
    ranked = pd.DataFrame.from_dict(rows, orient="index", columns=["indicator", "warns", "value", "runs"])
    return ranked.sort_values("value", ascending=False, kind="stable")


def warnings_figure(warnings: pd.DataFrame) -> Figure:
    """Each indicator's rank correlation with the drop, of `warnings_table`: right of the line it warns."""
    rows = warnings[warnings["value"].notna()]
    figure = Figure(figsize=(7.6, 0.36 * len(rows) + 1.5), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="k", lw=0.8)
    labels = [f"{row.indicator} ({row.warns}; {row.runs} runs)" for row in rows.itertuples()]
    axis.barh(labels, rows["value"], color=np.where(rows["value"] > 0, "#0072b2", "#d55e00"), alpha=0.75, height=0.62)
    axis.set(xlim=(-1.03, 1.03), ylim=(len(rows) - 0.4, -0.6), title="← misleads    warns →")
    axis.set_xlabel("rank correlation with the accuracy lost when the cue is reversed")
    axis.grid(axis="x", alpha=0.25)
    return figure
