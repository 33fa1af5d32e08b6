"""From a trained run to one row per picture and the numbers of each split, kept in the run's folder.

Sizes: B images, N rows, H x W network input, h x w maps.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from torch import Tensor

from gainmtl_lib import metrics
from gainmtl_lib.dataset import Batch, GainDataModule, build_data, build_samples
from gainmtl_lib.devices import checked_device
from gainmtl_lib.findings import DataError
from gainmtl_lib.layouts import TEST_SPLITS
from gainmtl_lib.model import GAINMTLModel, GainOutput, control_masks, margin_of
from gainmtl_lib.readers import data_digest
from gainmtl_lib.runs import Run, RunError, StoredRun, atomic_path, hold, write_json
from gainmtl_lib.settings import PARTS, PLACES, Settings
from gainmtl_lib.train import EVALUATED, data_differences

logger = logging.getLogger(__name__)

SPLITS = ("val", *TEST_SPLITS)


def evaluate(
    run_or_model: Run | GAINMTLModel,
    *,
    data: GainDataModule | None = None,
    mask_source: str | None = None,
    external_mask_dir: Path | None = None,
    efficientad_run: Path | None = None,
    threshold: float | None = None,
    device: str | None = None,
    reuse: bool = True,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Decide, score and summarise every image of ``val``, ``test`` and, where present, ``test_shift``.

    A run evaluated as it was trained keeps its results (``predictions.csv``, ``maps/``, ``metrics.json``) and is not
    evaluated twice; with other data, masks or threshold the results are returned only.

    Args:
        run_or_model: a finished run, or a model (which needs `data`).
        data: in place of the run's own, or the run's own where the caller has it already.
        mask_source: S6 only, see `SOURCES`; in place of the settings' own. Results of ``oracle``, which leaks the
            label, are marked.
        external_mask_dir, efficientad_run: a folder with one mask per image, found by stem, or of a run: where
            ``external`` or ``efficientad`` masks are from, in place of the settings' own.
        threshold: of the decision, in place of the one chosen on ``val``, or, of data without, by the run.
        device: where to compute, see `checked_device`; None is where the run was trained, ``auto`` for a model.
        reuse: take stored results of the run where they exist.

    Returns:
        One row per image, and the summary: ``threshold``, ``calibration`` (see `metrics.fit_calibration`),
        ``map_scales`` (see `MapScale`), `MaskSource.summary`, and one dict per split.

    Raises:
        RunError: data that changed or has no test split, a mask source or place that does not fit, an EfficientAD
            run that learnt from the test pictures, or another process that writes to the run.
    """
    run = run_or_model if isinstance(run_or_model, Run) else None
    places = {"external_mask_dir": external_mask_dir, "efficientad_run": efficientad_run}
    source = MaskSource.of(run_or_model, mask_source, **places)
    kept = run if run is not None and threshold is None and _as_trained(run, source, data) else None
    if kept is not None and reuse and kept.is_evaluated:
        logger.info("reusing the evaluation in %s", kept.folder)
        return kept.predictions, kept.metrics
    with nullcontext() if kept is None else hold(kept.folder):
        data = evaluated_data(run, data)
        own = run if kept is None else None  # whose threshold and scales judge data without validation
        if own is not None and threshold is None and not own.is_evaluated and "val" not in set(data.samples["split"]):
            evaluate(own, device=device)
        model = run_or_model.model if isinstance(run_or_model, Run) else run_or_model
        own_device = next(model.parameters()).device
        try:
            model.to(checked_device(device or ("auto" if run is None else run.settings.device)))
            present = [split for split in SPLITS if (data.samples["split"] == split).any()]
            parts = {split: predict_split(model, data, split, source=source) for split in present}
        finally:
            model.to(own_device)
        measured = own.metrics if own is not None and own.is_evaluated else {}
        zeros = EVIDENCE_ZEROS if "evidence" in PARTS[model.strategy] else {}
        table, summary = _summary(parts, threshold, measured, calibration=model.calibration, zeros=zeros)
        if model.types is not None:
            _add_types(table, summary, model.types.names)
        summary |= source.summary
        if kept is not None:
            of_splits = [maps for _, maps, _ in parts.values()]
            joined = ((name, np.concatenate([maps[name] for maps in of_splits])) for name in of_splits[0])
            store_results(kept, table, joined, summary, root=kept.settings.data_root)
            model.calibration = tuple(summary["calibration"])
            return kept.predictions, kept.metrics  # as a later call reads them
    return table, summary


def evaluated_data(run: Run | None, data: GainDataModule | None = None) -> GainDataModule:
    """The data to evaluate or to draw, set up: what is given, or the run's own; RunError without a test split."""
    if data is None:
        if run is None:
            raise RunError("evaluating a model needs data; give data=build_data(settings), or a run")
        data = build_data(run.settings, samples_as_trained(run))
    data.setup("test")
    if not set(data.samples["split"]) & set(TEST_SPLITS):
        raise RunError("the data has no test split; there is nothing to evaluate")
    return data


def samples_as_trained(run: Run) -> pd.DataFrame:
    """The table of samples that a run was trained on; RunError where the data changed since."""
    samples = build_samples(run.settings)
    if data_digest(samples) != run.manifest["data_digest"]:
        raise RunError(f"{run.settings.data_root}: the data changed since {run.folder} was trained on it")
    return samples


# --- Where the mask of S6's attention comes from

# Every source, and whose mask a picture is given; for those from somewhere see `PLACES`.
SOURCES = {
    "localization": "the model's own",
    "efficientad": "EfficientAD's anomaly map",
    "external": "from a folder",
    "none": "no mask",
    "other": "another picture's",
    "oracle": "its own annotation",
}


class MaskSource:
    """What the attention of one model is given: the source's name, None where it takes no mask, and its place."""

    def __init__(self, name: str | None, place: Path | None = None) -> None:
        self.name, self.place = name, place
        self.leaks = name == "oracle"  # the model is told the ground truth
        self._of_split = lru_cache(1)(self._folder_masks)  # which file is a picture's shows among a whole split only
        self._outside: Any = None
        if name == "efficientad" and place is not None:
            from gainmtl_lib.efficientad.evaluate import AnomalyMasks  # a kit, loaded only where it is asked for

            self._outside = AnomalyMasks(place)

    @classmethod
    def of(cls, asker: Run | Settings | GAINMTLModel, name: str | None = None, **places: Path | None) -> Self:
        """The source of a model, or of a run, whose settings know its place; what is given goes before their own.

        `RunError`: an unknown name, one for another strategy than S6, or a place that is missing or for another source.
        """
        owner = asker.settings if isinstance(asker, Run) else asker
        strategy, own = owner.strategy, owner.mask_source
        if name is not None and strategy != "S6":
            raise RunError(f"mask_source is for strategy S6; this model is {strategy}, whose attention takes no mask")
        source = (name or own) if strategy == "S6" else None
        if source is not None and source not in SOURCES:
            raise RunError(f"mask_source must be one of {', '.join(SOURCES)}, got '{source}'")
        for other, (parameter, _) in PLACES.items():
            if places.get(parameter) is not None and other != source:
                got = "whose attention takes no mask" if source is None else f"and mask_source is '{source}'"
                told = f"{parameter} is for mask_source '{other}'; this model is {strategy}, {got}"
                raise RunError(f"{told}: give mask_source '{other}' too, or leave the folder out")
        if source not in PLACES:
            return cls(source)
        parameter, what = PLACES[source]
        place = places.get(parameter) or getattr(owner, parameter, None)
        if place is None:
            raise RunError(f"mask_source '{source}' needs {parameter}, {what}")
        return cls(source, place)

    @property
    def summary(self) -> dict[str, Any]:
        """What must stand beside every result; of `efficientad` also the run of the masks, and its teacher."""
        told = {"mask_source": self.name, "label_leaks": self.leaks}
        if self._outside is not None:
            told |= {"efficientad_run": str(self.place), "teacher": self._outside.run.teacher}
        return told

    @contextmanager
    def applied(self, model: GAINMTLModel) -> Iterator[None]:
        """Lets the model use this source; it comes back with its own."""
        own = model.mask_source
        model.mask_source = self.name or own
        try:
            yield
        finally:
            model.mask_source = own

    def masks(self, data: GainDataModule, batch: Batch) -> Tensor | None:
        """The model's ``attention_masks``, (B, 1, H, W) in [0, 1]; None where it finds its own or none."""
        if self.leaks:
            return batch.masks
        if self.name == "other":
            return other_masks(data, batch)
        if self.name == "external":
            splits = data.samples["split"]
            return torch.stack([self._of_split(data, splits[row])[row] for row in batch.index.tolist()]).to(batch.masks)
        return None if self._outside is None else self._outside.masks(data, batch)

    def _folder_masks(self, data: GainDataModule, split: str) -> dict[int, Tensor]:
        return dict(zip(data.rows(split), data.external_masks(split, self.place or Path()), strict=True))


def _as_trained(run: Run, source: MaskSource, data: GainDataModule | None) -> bool:
    asked, own = ((each.name, each.place) for each in (source, MaskSource.of(run)))
    if asked != own or data is None:
        return asked == own
    return data.digest == run.manifest["data_digest"] and not data_differences(data, run.settings, EVALUATED)


def other_masks(data: GainDataModule, batch: Batch) -> Tensor:
    """For each picture the mask of an annotated defect of another part of its split.

    It is drawn from the row alone, so that it tells nothing of the label and is the same for runs of all seeds.
    """
    samples, masks = data.samples, []
    for row in batch.index.tolist():
        split = samples.loc[row, "split"]
        annotated = (samples["split"] == split) & (samples["label"] == 1) & data.dataset.has_mask.numpy()
        others = np.flatnonzero(annotated & (samples["group"] != samples.loc[row, "group"]))
        if not len(others):
            lack = f"split '{split}' has no annotated defect of another part than {samples.loc[row, 'image']}"
            raise DataError(f"mask_source 'other': {lack}; annotate more of its defects, or take another mask source")
        drawn = int(np.random.default_rng([0, row]).choice(others))
        masks.append(torch.from_numpy(np.asarray(data.dataset.stored(drawn).mask)))
    return torch.stack(masks)[:, None].to(batch.masks)


def mask_source_table(
    run: Run, sources: Sequence[str], *, data: GainDataModule | None = None, **options: Any
) -> pd.DataFrame:
    """Test results of a run of S6 by source of its masks (see `SOURCES`), whose masks also choose the threshold.

    Args:
        run, sources, data: a finished run of S6, names of sources, and the run's own data where it is loaded already.
        options: of `evaluate`; the places of masks are given to the source that they are of.

    Returns:
        One row per source and test split: ``source``, ``mask``, ``split``, ``threshold``, the scores, ``label_leaks``
        and ``teacher`` (of `efficientad`, else None).
    """
    data, rows = data or evaluated_data(run), []
    for name in sources:
        of_others: dict[str, Any] = {place: None for other, (place, _) in PLACES.items() if other != name}
        _, summary = evaluate(run, data=data, mask_source=name, **options | of_others)
        for split in (split for split in TEST_SPLITS if split in summary):
            row = {"source": name, "mask": SOURCES[name], "split": split, "threshold": summary["threshold"]}
            row |= {score: summary[split][score] for score in ("accuracy", "recall", "auroc", "cam_iou", "grid_iou")}
            rows.append(row | {"label_leaks": summary["label_leaks"], "teacher": summary.get("teacher")})
    return pd.DataFrame(rows)


# --- One row per picture

SCORES = {
    "cam_iou": (metrics.cam_iou, "cam"),
    "point_game": (metrics.point_game, "cam"),
    "energy_inside": (metrics.energy_inside, "cam"),
    "attention_iou": (metrics.cam_iou, "attention_map"),
    "attention_point_game": (metrics.point_game, "attention_map"),
    "attention_energy_inside": (metrics.energy_inside, "attention_map"),
    "loc_iou": (metrics.mask_iou, "localization_map"),
    "loc_dice": (metrics.dice, "localization_map"),
    "loc_pixel_accuracy": (metrics.pixel_accuracy, "localization_map"),
}
"""Columns of annotated pictures: how a map of the output is scored against the mask."""


@torch.inference_mode()
def predict_split(
    model: GAINMTLModel, data: GainDataModule, split: str, *, source: MaskSource
) -> tuple[pd.DataFrame, dict[str, np.ndarray], dict[str, float]]:
    """Run the model, where it is, over one split in its order, in single precision; pictures are not kept.

    Returns:
        One row per image, with margins in place of probabilities; `output_maps` in the rows' order; scores of all
        pictures taken as one, where large defects weigh more, and ``loc_aupro``.
    """
    device = next(model.parameters()).device
    model.eval()
    rows, maps = [], []
    (cam_pooled, loc_pooled), loc_pixels = torch.zeros(2, 2, device=device), metrics.PixelScores()
    with source.applied(model):
        for batch in data.loader(split):
            batch = Batch(*(part.to(device) for part in batch))
            given = source.masks(data, batch)
            output = model(batch.images, batch.masks, attention_masks=given)
            annotated = batch.has_mask
            masks = batch.masks * annotated[:, None, None, None]
            columns = {
                "index": batch.index,
                "margin": margin_of(output.logits),
                "defect_area": masks.mean(dim=(1, 2, 3)).where(annotated, torch.nan),
                "grid_iou": metrics.grid_iou(masks, (output.cam.shape[-2], output.cam.shape[-1])),
            }
            for name, (score, key) in SCORES.items():
                if (scored := output[key]) is not None:
                    columns[name] = score(scored, masks)
            if output.type_logits is not None:
                columns["type"] = output.type_logits.argmax(dim=1)
            if output.cf_logits is not None:
                inside = torch.zeros_like(batch.masks, dtype=torch.bool)  # where the pictures lie, without their bars
                for place, row in zip(inside[:, 0], batch.index.tolist(), strict=True):
                    place[data.dataset.places[row]] = True
                # Two cells clear of the defect, because suppression reaches one cell beyond its mask.
                moved, placed = control_masks(batch.masks, margin=2 * model.map_stride, inside=inside)
                control = model(batch.images, moved, attention_masks=given).cf_logits
                columns["cf_margin"] = margin_of(output.cf_logits).where(annotated, torch.nan)
                columns["cf_control_margin"] = margin_of(control).where(annotated & placed, torch.nan)
            rows.append(pd.DataFrame({name: values.float().cpu().numpy() for name, values in columns.items()}))
            maps.append(output_maps(output))
            found = metrics.normalize_maps(metrics.resize_maps(output.cam, masks)) >= 0.5
            cam_pooled += metrics.pooled_overlap(found, masks)
            if output.localization_map is not None:
                loc_pooled += metrics.pooled_overlap(output.localization_map >= 0.5, masks)
                # A defective image without an annotation has no known normal pixels, so AUPRO leaves it out.
                known = annotated | (batch.labels == 0)
                loc_pixels.update(output.localization_map[known], batch.masks[known])
    pooled = {"cam_iou_pooled": float(cam_pooled[0] / cam_pooled[1])}
    if "localization" in maps[0]:
        pooled |= {"loc_iou_pooled": float(loc_pooled[0] / loc_pooled[1]), "loc_aupro": loc_pixels.aupro()}
    table = pd.concat(rows, ignore_index=True)
    if model.types is not None:
        table[metrics.NAMED] = np.array(model.types.names, dtype=object)[table.pop("type").astype(int)]
    samples = data.samples.loc[table.pop("index").astype(int), list(OF_THE_SAMPLE)]
    table = pd.concat([samples.reset_index(drop=True), table], axis=1)
    return table, {name: np.concatenate([part[name] for part in maps]) for name in maps[0]}, pooled


def output_maps(output: GainOutput) -> dict[str, np.ndarray]:
    """What a run keeps, float16: ``cam`` and ``attention`` (B, h, w), ``localization`` (B, H / 4, W / 4)."""
    maps = {"cam": output.cam, "attention": output.effective_attention}
    if output.localization_map is not None:
        maps["localization"] = torch.nn.functional.avg_pool2d(output.localization_map, 4)
    return {name: value[:, 0].to(torch.float16).cpu().numpy() for name, value in maps.items() if value is not None}


EVIDENCE_ZEROS = {"cam": 0.0, "localization": 0.5}
"""Where S8's maps, the evidence and its sigmoid, begin to speak for a defect, whatever the pictures."""


def _summary(
    parts: dict[str, tuple[Any, Any, Any]], threshold: float | None, measured: Mapping[str, Any], *,
    calibration: tuple[float, float], zeros: dict[str, float],
) -> tuple[pd.DataFrame, dict[str, Any]]:  # fmt: skip
    """Of what `predict_split` gave for each split; `zeros` are of the maps that have one of their own.

    Threshold, calibration and scales are fitted on ``val``; without it they are those of the run's own evaluation,
    `measured`. A `threshold` that is given is of the model's calibration.
    """
    origin, scales = "given", measured.get("map_scales", {})
    if threshold is None:
        origin = "validation of the run" if measured else "default, no validation split"
    if "val" in parts:
        table, maps, _ = parts["val"]
        labels = table["label"].to_numpy()
        fitted = {name: metrics.fit_scale(values, labels, zero=zeros.get(name)) for name, values in maps.items()}
        scales = {name: asdict(scale) for name, scale in fitted.items() if scale is not None}
        if threshold is None:
            origin, margins = "validation, logistic fit", table["margin"].to_numpy(dtype=np.float64)
            chosen = metrics.choose_threshold(labels, margins)
            calibration = metrics.fit_calibration(labels, margins, chosen)
            threshold = float(calibrated(chosen, calibration))  # one half, unless there was nothing to fit
    threshold = float(measured.get("threshold", 0.5)) if threshold is None else threshold
    tables = {
        split: add_verdicts(_with_probabilities(table, calibration), threshold)
        for split, (table, _, _) in parts.items()
    }
    summary: dict[str, Any] = {"threshold": threshold, "threshold_from": origin, "calibration": calibration}
    summary["map_scales"] = scales
    for split, (_, _, pooled) in parts.items():
        labels, prob = (tables[split][name].to_numpy() for name in ("label", "probability"))
        summary[split] = summarise(tables[split]) | {"ece": metrics.calibration_error(labels, prob)} | pooled
    return pd.concat(tables.values(), ignore_index=True), summary


def _add_types(table: pd.DataFrame, summary: dict[str, Any], names: Sequence[str]) -> None:
    """What a model that names defect types says of them: scores of each split, and under ``defect_types`` who is called
    what, see `metrics.confusion`."""
    summary["defect_types"] = {}
    for split in table["split"].unique():
        answers = metrics.type_answers(table[table["split"] == split])
        summary[split]["type_macro_f1"] = metrics.macro_f1(*(answers[name].to_numpy() for name in answers))
        summary[split]["type_accuracy"] = float(metrics.named_right(answers).mean())
        summary["defect_types"][split] = metrics.confusion(answers, names).to_dict(orient="index")


def calibrated(margins: ArrayLike, calibration: Sequence[float]) -> NDArray[np.float64]:
    """Probabilities of margins, or of anomaly scores, by the slope and offset of `metrics.fit_calibration`."""
    return expit(calibration[0] * np.asarray(margins, dtype=np.float64) + calibration[1])


def _with_probabilities(table: pd.DataFrame, calibration: tuple[float, float]) -> pd.DataFrame:
    """For each margin the probability, in its place; that of the verdict stays beside it."""
    table = table.rename(columns={f"{name}_margin": f"{name}_probability" for name in ("cf", "cf_control")})
    flips = [name for name in ("cf_probability", "cf_control_probability") if name in table]
    table[flips] = calibrated(table[flips], calibration)
    probability = calibrated(table["margin"], calibration)
    table.insert(table.columns.get_loc("margin"), "probability", probability)  # type: ignore[arg-type]
    return table


def add_verdicts(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Columns that depend on the threshold: ``predicted``, ``verdict``, flips, ``wrong_reason``, ``named_type``.

    ``wrong_reason``: a defect that was found although the CAM lies off it. Flips are asked of defects that
    were found (NaN elsewhere): does suppressing the defect, or the same mask off it, turn the verdict?
    """
    table = table.assign(predicted=(table["probability"] >= threshold).astype(int))
    table["verdict"] = metrics.verdicts(table["label"].to_numpy(), table["predicted"].to_numpy())
    if metrics.NAMED in table:
        table[metrics.NAMED] = table[metrics.NAMED].where(table["predicted"] == 1)
    found = (table["verdict"] == "TP") & table["cam_iou"].notna()
    table["wrong_reason"] = found & (table["cam_iou"] < metrics.OFF_THE_DEFECT_IOU) & (table["point_game"] < 0.5)
    for name in ("cf", "cf_control"):
        if f"{name}_probability" in table:
            score = table[f"{name}_probability"]
            table[f"{name}_flip"] = (score < threshold).astype(float).where(found & score.notna())
    return table


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """The numbers of one split's rows with verdicts; what strategy or data lack is absent, what has no answer NaN."""
    found = (table["verdict"] == "TP") & table["cam_iou"].notna()
    summary: dict[str, Any] = {
        "images": len(table),
        "normal": int((table["label"] == 0).sum()),
        "defective": int((table["label"] == 1).sum()),
        "annotated": int(table["cam_iou"].notna().sum()),
        "skipped": int(((table["label"] == 1) & table["cam_iou"].isna()).sum()),  # defects without a mask
        **{name: int((table["verdict"] == name).sum()) for name in ("TP", "FP", "FN", "TN")},
        **metrics.classification(*(table[name].to_numpy() for name in ("label", "predicted", "probability"))),
        **{name: float(table[name].mean()) for name in metrics.MEANS if name in table},
        "wrong_reason": int(table["wrong_reason"].sum()),
        "wrong_reason_rate": float(table.loc[found, "wrong_reason"].mean()),
    }
    for name in ("cf_flip", "cf_control_flip"):
        if name in table:
            summary[f"{name}_rate"] = float(table[name].mean())
            summary[f"{name}_asked"] = int(table[name].notna().sum())
    return summary


KINDS = {
    "missed": "defective, called normal",
    "wrong reason": "found, but the CAM lies off the defect",
    "false alarm": "normal, called defective",
}


def error_analysis(predictions: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """The rows of `evaluate`'s table that need a look, most urgent first, with a first column ``kind`` (see `KINDS`).

    Missed defects come first (lowest probability first: the surest mistakes), then the right verdicts whose CAM is off
    the defect (lowest energy inside first), then false alarms (highest probability first).
    """
    rows = predictions[predictions["split"] == split]
    parts = (
        rows[rows["verdict"] == "FN"].sort_values("probability").assign(kind="missed"),
        rows[rows["wrong_reason"]].sort_values("energy_inside").assign(kind="wrong reason"),
        rows[rows["verdict"] == "FP"].sort_values("probability", ascending=False).assign(kind="false alarm"),
    )
    return pd.concat(parts, ignore_index=True)[["kind", *rows.columns]]


# --- What is left in the run's folder, and read back

AnyRun = StoredRun[Any]

OF_THE_SAMPLE = ("image", "mask", "split", "label", "defect_type", "group")
"""Columns of predictions.csv that tell the picture; without those of `NEEDED` there is no audit, and none to browse."""
NEEDED = (*OF_THE_SAMPLE, "predicted", "verdict", "wrong_reason", "defect_area", "grid_iou")
NEEDED_OF = {
    "cam": ("probability", "cam_iou", "point_game", "energy_inside"),
    "anomaly": ("anomaly_score", "anomaly_iou", "anomaly_point_game", "anomaly_energy_inside"),
}
"""Those of one system beside them, by the name of its main map."""
AGAIN = "evaluate again: gainmtl evaluate {} --force"


FLOATS = "%.9g"  # how numbers are stored: enough to tell any two scores apart


def store_results(
    run: AnyRun, table: pd.DataFrame, maps: Iterable[tuple[str, NDArray]], summary: dict[str, Any], *, root: Path
) -> None:
    """Leave an evaluation in the folder of a run of either system.

    Args:
        table: one row per picture; the paths below `root` are stored relative to it.
        maps: by name, (N, h, w) in the table's order, taken one at a time.
    """
    # Written last and removed first: an interruption leaves a run that is not evaluated, never a mixture of two.
    (run.folder / "metrics.json").unlink(missing_ok=True)
    places = {column: table[column].str.removeprefix(f"{root.as_posix()}/") for column in ("image", "mask")}
    with atomic_path(run.folder / "predictions.csv") as path:
        table.assign(**places).to_csv(path, index=False, float_format=FLOATS)
    for name, values in maps:
        with atomic_path(run.folder / "maps" / f"{name}.npy") as path:
            np.save(path, values)
    write_json(run.folder / "metrics.json", summary)


def stored_tables(run: AnyRun, *, need_test: bool = True) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The predictions and summary of a run of either system; `RunError`: not evaluated, damaged, or without a test."""
    if not run.is_evaluated:
        raise RunError(f"{run.folder}: the run is trained but not evaluated; first: gainmtl evaluate {run.folder}")
    again, path = AGAIN.format(run.folder), run.folder / "predictions.csv"
    try:
        table, summary = run.predictions, run.metrics
    except ValueError as error:  # what pandas raises for a damaged file
        raise RunError(f"{path}: cannot be read: {' '.join(str(error).split())}; {again}") from None
    if missing := [name for name in (*NEEDED, *NEEDED_OF[run.main_map]) if name not in table]:
        raise RunError(f"{path}: lacks {', '.join(missing)}; {again}")
    if need_test and not table["split"].isin(TEST_SPLITS).any():
        raise RunError(f"{path}: holds no test picture; {again}")
    return table, summary


def stored_maps(run: AnyRun, count: int) -> dict[str, NDArray]:
    """All maps of an evaluated run by name, opened and not read; `RunError` unless they are (`count`, h, w)."""
    again = AGAIN.format(run.folder)
    try:
        maps = run.maps
    except (ValueError, EOFError, OSError) as error:
        raise RunError(f"{run.folder / 'maps'}: cannot be read: {error}; {again}") from None
    for name, values in maps.items():
        if values.ndim != 3 or len(values) != count:
            shape = " x ".join(map(str, values.shape))
            raise RunError(f"{run.folder / 'maps'}: {name}.npy is {shape} for {count} predictions; {again}")
    return maps


def file_digest(path: Path) -> str:
    """SHA-256 of a file, by which what was measured tells what of; empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def rows_of(predictions: pd.DataFrame, data: GainDataModule) -> NDArray[np.int64]:
    """The row of ``data.samples`` of each row of predictions, whose splits have the same order; ValueError if not."""
    rows = np.empty(len(predictions), dtype=np.int64)
    for split, predicted in predictions.groupby("split").indices.items():
        there = np.flatnonzero(data.samples["split"] == split)
        tables = (predictions["image"].iloc[predicted], data.samples["image"].iloc[there])
        own, others = ([PurePath(str(path)).name for path in table] for table in tables)
        if own != others:
            apart = f"the predictions hold {len(own)} pictures of '{split}', the data {len(others)}"
            advice = "give the data of the run that was evaluated: build_data(run.settings)"
            raise ValueError(f"{apart}, and they are not the same; {advice}")
        rows[predicted] = there
    return rows
