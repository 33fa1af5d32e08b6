"""From a trained run to one row per picture and the numbers of each split, kept in the run's folder.

Sizes: B images, N rows, H x W network input, h x w maps.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from gainmtl_lib.dataset import Batch, GainDataModule, build_data, build_samples
from gainmtl_lib.metrics import (
    MEANS,
    OFF_THE_DEFECT_IOU,
    Aupro,
    CamIoU,
    LocalizationIoU,
    cam_iou,
    choose_threshold,
    classification,
    dice,
    energy_inside,
    fit_scale,
    grid_iou,
    mask_iou,
    pixel_accuracy,
    point_game,
    verdicts,
)
from gainmtl_lib.model import GAINMTLModel, GainOutput, control_masks
from gainmtl_lib.readers import DataError, data_digest
from gainmtl_lib.runs import Run, RunError, StoredRun, atomic_path, hold, write_json
from gainmtl_lib.settings import Settings
from gainmtl_lib.train import EVALUATED, checked_device, data_differences

logger = logging.getLogger(__name__)

SPLITS = ("val", "test", "test_shift")
TEST_SPLITS = SPLITS[1:]


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

    The decision threshold is chosen on ``val``. A run evaluated as it was trained keeps its results
    (``predictions.csv``, ``maps/``, ``metrics.json``) and is not evaluated twice; with data other than it was trained
    on, another mask source, place of its masks or threshold the results are returned only.

    Args:
        run_or_model: a finished run, or a model (which needs `data`).
        data: in place of the run's own, or the run's own where the caller has it already.
        mask_source: S6 only, in place of the settings' own. ``oracle`` hands it the ground truth, which
            leaks the label: its results are marked.
        external_mask_dir, efficientad_run: where ``external`` or ``efficientad`` masks are from, in place of the
            settings' own: a folder with one mask per image, found by stem; the folder of a run.
        threshold: fixed beforehand, in place of the one chosen on ``val``.
        device: where to compute, see `checked_device`; None is where the run was trained, ``auto`` for a model.
        reuse: take stored results of the run where they exist.

    Returns:
        One row per image, and the summary: ``threshold``, ``map_scales`` (see `MapScale`), where the masks are from
        (see `MaskSource.summary`), and one dict per split.

    Raises:
        RunError: the data changed since the run was trained, there is no split to evaluate, a mask source was
            given for another strategy than S6 or a place of masks for another source than its own, an
            EfficientAD run learnt from the test pictures, or another process writes to the run.
    """
    run = run_or_model if isinstance(run_or_model, Run) else None
    asker = run_or_model if run is None else run.settings
    if not isinstance(asker, GAINMTLModel | Settings):
        raise TypeError(f"expected a Run or a GAINMTLModel, got {type(run_or_model).__name__}")
    source = MaskSource.of(asker, mask_source, external_mask_dir, efficientad_run)
    as_trained = run is not None and threshold is None and source.is_of(run.settings) and _is_own(run, data)
    if run is not None and as_trained and reuse and run.is_evaluated:
        logger.info("reusing the evaluation in %s", run.folder)
        return run.predictions, run.metrics
    with hold(run.folder) if run is not None and as_trained else nullcontext():
        data = evaluated_data(run, data)
        model = run_or_model.model if isinstance(run_or_model, Run) else run_or_model
        predictions = _predict(model, data, source, device or ("auto" if run is None else run.settings.device))
        table, summary = _summary(predictions, threshold)
        summary |= source.summary
        if run is not None and as_trained:
            _store(run, table, summary, predictions)
            return run.predictions, run.metrics  # as a later call reads them
    return table, summary


# --- The data


def _is_own(run: Run, data: GainDataModule | None) -> bool:
    """Whether the data, where it is given, is what the run was trained on, seen in the same way."""
    if data is None:
        return True
    return not data_differences(data, run.settings, EVALUATED) and data.digest == run.manifest["data_digest"]


def evaluated_data(run: Run | None, data: GainDataModule | None = None) -> GainDataModule:
    """The data to evaluate or to draw, set up: that of the run as it was trained, or what is given.

    Raises:
        RunError: neither is given, the run's data changed since it was trained, or there is no test split.
    """
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


SOURCES = {
    "localization": "the model's own",
    "efficientad": "EfficientAD's anomaly map",
    "external": "from a folder",
    "none": "no mask",
    "other": "another picture's",
    "oracle": "its own annotation",
}
"""Every source, and whose mask a picture is given."""

PLACES = {
    "external": ("external_mask_dir", "the folder with one mask per image"),
    "efficientad": ("efficientad_run", "the folder of a finished EfficientAD run"),
}
"""Sources that come from somewhere: the parameter that says where, and what is there."""


class MaskSource:
    """What the attention of one model is given: the source's name, None where it takes no mask, and its place."""

    def __init__(self, name: str | None, place: Path | None = None) -> None:
        self.name, self.place = name, place
        self._outside: Any = None
        if place is not None and name == "external":
            self._outside = _FolderMasks(place)
        elif place is not None:
            from gainmtl_lib.efficientad.evaluate import AnomalyMasks  # a kit, loaded only where it is asked for

            self._outside = AnomalyMasks(place)

    @classmethod
    def of(
        cls,
        model_or_settings: GAINMTLModel | Settings,
        name: str | None = None,
        folder: Path | None = None,
        efficientad_run: Path | None = None,
    ) -> MaskSource:
        """The source of a model, or of a run's settings, which know its place; what is given goes before their own.

        Raises:
            RunError: a source for another strategy than S6, one without its place, or a place without its source.
        """
        strategy, own = model_or_settings.strategy, model_or_settings.mask_source
        if name is not None and strategy != "S6":
            raise RunError(f"mask_source is for strategy S6; this model is {strategy}, whose attention takes no mask")
        source = (name or own) if strategy == "S6" else None
        if source is not None and source not in SOURCES:
            raise RunError(f"mask_source must be one of {', '.join(SOURCES)}, got '{source}'")
        given = {"external": folder, "efficientad": efficientad_run}
        for other, place in given.items():
            if place is not None and other != source:
                got = "whose attention takes no mask" if source is None else f"and mask_source is '{source}'"
                raise RunError(
                    f"{PLACES[other][0]} is for mask_source '{other}'; this model is {strategy}, {got}: "
                    f"give mask_source '{other}' too, or leave the folder out"
                )
        if source not in PLACES:
            return cls(source)
        parameter, what = PLACES[source]
        place = given[source] or getattr(model_or_settings, parameter, None)
        if place is None:
            raise RunError(f"mask_source '{source}' needs {parameter}, {what}")
        return cls(source, place)

    def is_of(self, settings: Settings) -> bool:
        """Whether it is what a run of these settings has."""
        own = MaskSource.of(settings)
        return (self.name, self.place) == (own.name, own.place)

    @property
    def leaks(self) -> bool:
        """Whether the model is told the ground truth."""
        return self.name == "oracle"

    @property
    def summary(self) -> dict[str, Any]:
        """What must stand beside every result: ``mask_source``, ``label_leaks``, and of `efficientad` the run that the
        masks are from and its ``teacher``."""
        told = {"mask_source": self.name, "label_leaks": self.leaks}
        if self.name == "efficientad":
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
        """What to give as ``attention_masks``, (B, 1, H, W) in [0, 1]; None where the model finds its own or none.

        Raises:
            DataError: masks or pictures that are missing, cannot be read or do not fit.
            RunError: an EfficientAD run that cannot be used here.
        """
        if self.leaks:
            return batch.masks
        if self.name == "other":
            return other_masks(data, batch)
        return None if self._outside is None else self._outside.masks(data, batch)


class _FolderMasks:
    """Masks from a folder, one file per image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: tuple[GainDataModule, str, dict[int, Tensor]] | None = None

    def masks(self, data: GainDataModule, batch: Batch) -> Tensor:
        return torch.stack([self._mask(data, row) for row in batch.index.tolist()]).to(batch.masks)

    def _mask(self, data: GainDataModule, row: int) -> Tensor:
        """Of one split at a time, because which file belongs to a picture shows among the whole split only."""
        split = str(data.samples.loc[row, "split"])
        if self._loaded is None or self._loaded[0] is not data or self._loaded[1] != split:
            self._loaded = None  # two splits of masks need not fit into memory
            masks = data.external_masks(split, self.folder)  # (N, 1, H, W)
            self._loaded = data, split, dict(zip(data.rows(split), masks, strict=True))
        return self._loaded[2][row]


def other_masks(data: GainDataModule, batch: Batch, *, seed: int = 0) -> Tensor:
    """For each picture, normal or defective, the mask of an annotated defect of another part, of the same split.

    Which one is drawn from (seed, row), whatever stands beside the picture in a batch: presence and look of a mask
    tell nothing of the label then, and runs of all seeds are given the same. -> (B, 1, H, W), 0 or 1.

    Raises:
        DataError: a split has no annotated defect of another part.
    """
    samples, masks = data.samples, []
    for row in batch.index.tolist():
        split = samples.loc[row, "split"]
        annotated = (samples["split"] == split) & (samples["label"] == 1) & data.dataset.has_mask.numpy()
        others = np.flatnonzero(annotated & (samples["group"] != samples.loc[row, "group"]))
        if not len(others):
            raise DataError(
                f"mask_source 'other': split '{split}' has no annotated defect of another part than "
                f"{samples.loc[row, 'image']}; annotate more of its defects, or take another mask source"
            )
        drawn = int(np.random.default_rng([seed, row]).choice(others))
        masks.append(torch.from_numpy(np.asarray(data.dataset.stored(drawn).mask)))
    return torch.stack(masks)[:, None].to(batch.masks)


def mask_source_table(
    run: Run, sources: Sequence[str], *, data: GainDataModule | None = None, **options: Any
) -> pd.DataFrame:
    """Test results of a run of S6 by source of its masks; the threshold is chosen with the masks of the same source.

    Args:
        run: a finished run of S6.
        sources: names of `SOURCES`.
        data: the run's own, where it is loaded already.
        options: of `evaluate`; the places of masks are given to the source that they are of.

    Returns:
        One row per source and test split: ``source``, ``mask`` (see `SOURCES`), ``split``, ``threshold``, the scores,
        ``label_leaks`` and ``teacher`` (of `efficientad`, else None).
    """
    places = {name: options.pop(parameter, None) for name, (parameter, _) in PLACES.items()}
    data, rows = data or evaluated_data(run), []
    for name in sources:
        place = {PLACES[name][0]: places[name]} if name in PLACES else {}
        _, summary = evaluate(run, data=data, mask_source=name, **place, **options)
        for split in (split for split in TEST_SPLITS if split in summary):
            scores = {
                score: summary[split].get(score) for score in ("accuracy", "recall", "auroc", "cam_iou", "grid_iou")
            }
            told = {"label_leaks": summary["label_leaks"], "teacher": summary.get("teacher")}
            of = {"source": name, "mask": SOURCES[name], "split": split, "threshold": summary["threshold"]}
            rows.append(of | scores | told)
    return pd.DataFrame(rows)


# --- One row per picture


class SplitPredictions(NamedTuple):
    """What the model says of one split.

    Attributes:
        table: one row per image.
        maps: float16 arrays in the rows' order: ``cam`` (N, h, w), from S3 on ``attention`` (N, h, w), from
            S4 on ``localization`` (N, H / 4, W / 4).
        pooled: scores of all pictures taken as one, where large defects weigh more, and ``loc_aupro``.
    """

    table: pd.DataFrame
    maps: dict[str, np.ndarray]
    pooled: dict[str, float]


def _predict(model: GAINMTLModel, data: GainDataModule, source: MaskSource, device: str) -> dict[str, SplitPredictions]:
    """Every split that is there; the model comes back on the device that it had."""
    own_device = next(model.parameters()).device
    try:
        model.to(checked_device(device))
        present = [split for split in SPLITS if (data.samples["split"] == split).any()]
        return {split: predict_split(model, data, split, source=source) for split in present}
    finally:
        model.to(own_device)


@torch.inference_mode()
def predict_split(model: GAINMTLModel, data: GainDataModule, split: str, *, source: MaskSource) -> SplitPredictions:
    """Run the model, where it is, over one split in its order, in single precision; pictures are not kept."""
    device = next(model.parameters()).device
    model.eval()
    rows, maps = [], []
    cam_score, loc_score, aupro = CamIoU().to(device), LocalizationIoU().to(device), Aupro()
    with source.applied(model):
        for batch in data.loader(split):
            batch = Batch(*(part.to(device) for part in batch))
            given = source.masks(data, batch)
            output = model(batch.images, batch.masks, attention_masks=given)
            rows.append(_scores(batch, output))
            if output.cf_logits is not None:
                # Two cells clear of the defect, because suppression reaches one cell beyond its mask.
                moved, placed = control_masks(batch.masks, margin=2 * model.map_stride, inside=_places(data, batch))
                control = model(batch.images, moved, attention_masks=given).cf_logits
                asked = {"cf": (output.cf_logits, batch.has_mask), "cf_control": (control, batch.has_mask & placed)}
                for name, (logits, has_answer) in asked.items():
                    rows[-1][f"{name}_probability"] = defect_probability(logits).where(has_answer, torch.nan)
            maps.append(output_maps(output))
            annotated = batch.has_mask
            cam_score.update(output.cam[annotated], batch.masks[annotated])
            if output.localization_map is not None:
                loc_score.update(output.localization_map[annotated], batch.masks[annotated])
                # A defective image without an annotation has no known normal pixels, so AUPRO leaves it out.
                known = annotated | (batch.labels == 0)
                aupro.update(output.localization_map[known], batch.masks[known])
    pooled = {"cam_iou_pooled": float(cam_score.pooled())}
    if "localization" in maps[0]:
        pooled |= {"loc_iou_pooled": float(loc_score.pooled()), "loc_aupro": float(aupro.compute())}
    frames = [pd.DataFrame({k: values.float().cpu().numpy() for k, values in columns.items()}) for columns in rows]
    table = pd.concat(frames, ignore_index=True)
    samples = data.samples.loc[
        table.pop("index").astype(int), ["image", "mask", "split", "label", "defect_type", "group"]
    ]
    return SplitPredictions(
        table=pd.concat([samples.reset_index(drop=True), table], axis=1),
        maps={name: np.concatenate([part[name] for part in maps]) for name in maps[0]},
        pooled=pooled,
    )


def _scores(batch: Batch, output: GainOutput) -> dict[str, Tensor]:
    """Columns of the table, (B,) each."""
    masks = batch.masks * batch.has_mask[:, None, None, None]
    columns = {
        "index": batch.index,
        "probability": defect_probability(output.logits),
        "defect_area": masks.mean(dim=(1, 2, 3)).where(batch.has_mask, torch.nan),
        "cam_iou": cam_iou(output.cam, masks),
        "grid_iou": grid_iou(masks, (output.cam.shape[-2], output.cam.shape[-1])),
        "point_game": point_game(output.cam, masks),
        "energy_inside": energy_inside(output.cam, masks),
    }
    if output.attention_map is not None:
        columns |= {
            "attention_iou": cam_iou(output.attention_map, masks),
            "attention_point_game": point_game(output.attention_map, masks),
            "attention_energy_inside": energy_inside(output.attention_map, masks),
        }
    if output.localization_map is not None:
        columns |= {
            "loc_iou": mask_iou(output.localization_map, masks),
            "loc_dice": dice(output.localization_map, masks),
            "loc_pixel_accuracy": pixel_accuracy(output.localization_map, masks),
        }
    return columns


def _places(data: GainDataModule, batch: Batch) -> Tensor | None:
    """Where the annotated pictures of a batch lie in the input, bool (B, 1, H, W); None where they fill it."""
    if data.settings.resize == "squash":
        return None
    places = torch.ones_like(batch.masks, dtype=torch.bool)
    for place, row in zip(places[:, 0], batch.index.tolist(), strict=True):
        if data.dataset.has_mask[row]:
            place.fill_(False)
            place[data.dataset.places[row]] = True
    return places


def defect_probability(logits: Tensor) -> Tensor:
    """Of logits (B, 2), in [0, 1], (B,)."""
    return logits.float().softmax(dim=1)[:, 1]


def output_maps(output: GainOutput) -> dict[str, np.ndarray]:
    """The maps as a run keeps them, see `SplitPredictions.maps`; those that the strategy has."""
    maps = {"cam": output.cam, "attention": output.effective_attention}
    if output.localization_map is not None:
        maps["localization"] = torch.nn.functional.avg_pool2d(output.localization_map, 4)
    return {name: value[:, 0].to(torch.float16).cpu().numpy() for name, value in maps.items() if value is not None}


# --- The numbers of a split


def _summary(predictions: dict[str, SplitPredictions], threshold: float | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    origin, scales = "given", {}
    if threshold is None:
        threshold, origin = 0.5, "default, no validation split"
        if "val" in predictions:
            labels, scores = (predictions["val"].table[name].to_numpy() for name in ("label", "probability"))
            threshold, origin = choose_threshold(labels, scores), "validation, highest F1"
    if "val" in predictions:
        labels = predictions["val"].table["label"].to_numpy()
        scales = {name: fit_scale(maps, labels) for name, maps in predictions["val"].maps.items()}
    tables = {split: add_verdicts(part.table, threshold) for split, part in predictions.items()}
    summary: dict[str, Any] = {"threshold": threshold, "threshold_from": origin}
    summary["map_scales"] = {name: asdict(scale) for name, scale in scales.items() if scale is not None}
    summary |= {split: summarise(tables[split]) | part.pooled for split, part in predictions.items()}
    return pd.concat(tables.values(), ignore_index=True), summary


def add_verdicts(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Columns that depend on the threshold: ``predicted``, ``verdict``, flips, and ``wrong_reason``.

    ``wrong_reason``: a defect that was found although the CAM lies off it. Flips are asked of defects that
    were found (NaN elsewhere): does suppressing the defect, or the same mask off it, turn the verdict?
    """
    table = table.copy()
    table["predicted"] = (table["probability"] >= threshold).astype(int)
    table["verdict"] = verdicts(table["label"].to_numpy(), table["predicted"].to_numpy())
    found = (table["verdict"] == "TP") & table["cam_iou"].notna()
    table["wrong_reason"] = found & (table["cam_iou"] < OFF_THE_DEFECT_IOU) & (table["point_game"] < 0.5)
    for name in ("cf", "cf_control"):
        if f"{name}_probability" in table:
            score = table[f"{name}_probability"]
            table[f"{name}_flip"] = (score < threshold).astype(float).where(found & score.notna())
    return table


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """The numbers of one split's rows with verdicts; what strategy or data lack is absent, what has no answer NaN.

    Defective images without a mask have no answer: ``skipped``.
    """
    counts = table["verdict"].value_counts()
    found = (table["verdict"] == "TP") & table["cam_iou"].notna()
    summary: dict[str, Any] = {
        "images": len(table),
        "normal": int((table["label"] == 0).sum()),
        "defective": int((table["label"] == 1).sum()),
        "annotated": int(table["cam_iou"].notna().sum()),
        "skipped": int(((table["label"] == 1) & table["cam_iou"].isna()).sum()),
        **{name: int(counts.get(name, 0)) for name in ("TP", "FP", "FN", "TN")},
        **classification(*(table[name].to_numpy() for name in ("label", "predicted", "probability"))),
        **{name: float(table[name].mean()) for name in MEANS if name in table},
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

    Missed defects come first (lowest probability first: the surest mistakes), then the right verdicts whose
    CAM is off the defect (lowest energy inside first), then false alarms (highest probability first).
    """
    rows = predictions[predictions["split"] == split]
    parts = {
        "missed": rows[rows["verdict"] == "FN"].sort_values("probability"),
        "wrong reason": rows[rows["wrong_reason"]].sort_values("energy_inside"),
        "false alarm": rows[rows["verdict"] == "FP"].sort_values("probability", ascending=False),
    }
    found = [part.assign(kind=kind) for kind, part in parts.items() if len(part)]
    table = pd.concat(found, ignore_index=True) if found else rows.iloc[:0].assign(kind=pd.Series(dtype=str))
    return table[["kind", *(column for column in table.columns if column != "kind")]]


# --- What is left in the run's folder, and read back


AnyRun = StoredRun[Any]

NEEDED = (
    "image", "mask", "split", "label", "defect_type", "group", "predicted", "verdict", "wrong_reason", "defect_area",
    "grid_iou",
)  # fmt: skip
"""Columns of predictions.csv without which there is no audit, and none to browse."""
NEEDED_OF = {
    "cam": ("probability", "cam_iou", "point_game", "energy_inside"),
    "anomaly": ("anomaly_score", "anomaly_iou", "anomaly_point_game", "anomaly_energy_inside"),
}
"""Those of one system beside them, by the name of its main map."""


def _store(run: Run, table: pd.DataFrame, summary: dict[str, Any], predictions: dict[str, SplitPredictions]) -> None:
    # Written last and removed first: an interruption leaves a run that is not evaluated, never a mixture of two.
    (run.folder / "metrics.json").unlink(missing_ok=True)
    root = run.settings.data_root

    def place(path: str | None) -> str | None:
        return Path(path).relative_to(root).as_posix() if path and Path(path).is_relative_to(root) else path

    with atomic_path(run.folder / "predictions.csv") as path:
        places = {column: table[column].map(place) for column in ("image", "mask")}
        table.assign(**places).to_csv(path, index=False, float_format="%.6g")
    parts = [part.maps for part in predictions.values()]
    for name in parts[0]:
        with atomic_path(run.folder / "maps" / f"{name}.npy") as path:
            np.save(path, np.concatenate([part[name] for part in parts]))
    write_json(run.folder / "metrics.json", summary)


def stored_tables(run: AnyRun, *, need_test: bool = True) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The predictions and summary of a finished run of either system, with a test split where one is needed.

    Raises:
        RunError: the run is not evaluated, or its files are damaged or do not belong together.
    """
    if not run.is_evaluated:
        raise RunError(f"{run.folder}: the run is trained but not evaluated; first: gainmtl evaluate {run.folder}")
    again, path = _again(run), run.folder / "predictions.csv"
    try:
        table, metrics = run.predictions, run.metrics
    except ValueError as error:  # what pandas raises for a damaged file
        raise RunError(f"{path}: cannot be read: {' '.join(str(error).split())}; {again}") from None
    missing = [name for name in (*NEEDED, *NEEDED_OF[run.main_map]) if name not in table]
    if missing:
        raise RunError(f"{path}: lacks {', '.join(missing)}; {again}")
    if need_test and not table["split"].isin(TEST_SPLITS).any():
        raise RunError(f"{path}: holds no test picture; {again}")
    for split in SPLITS:
        counts = table.loc[table["split"] == split, "verdict"].value_counts()
        for name in ("TP", "FP", "FN", "TN"):
            if (run.main_map, split) == ("anomaly", "val") and name in ("TP", "FN"):
                continue  # EfficientAD's validation defects are synthesised: counted, and on no disk
            counted, stored = int(counts.get(name, 0)), metrics.get(split, {}).get(name, 0)
            if counted != stored:
                raise RunError(
                    f"{run.folder}: predictions.csv and metrics.json do not belong together "
                    f"({split}: {counted} {name} and {stored}); {again}"
                )
    return table, metrics


def stored_maps(run: AnyRun, count: int) -> dict[str, NDArray]:
    """All maps of an evaluated run by name, (N, h, w) each, opened and not read.

    Raises:
        RunError: some are damaged, or are not those of `count` predictions.
    """
    again = _again(run)
    try:
        maps = run.maps
    except (ValueError, EOFError, OSError) as error:
        raise RunError(f"{run.folder / 'maps'}: cannot be read: {error}; {again}") from None
    for name, values in maps.items():
        if values.ndim != 3 or len(values) != count:
            shape = " x ".join(map(str, values.shape))
            raise RunError(f"{run.folder / 'maps'}: {name}.npy is {shape} for {count} predictions; {again}")
    return maps


def _again(run: AnyRun) -> str:
    return f"evaluate again: gainmtl evaluate {run.folder} --force"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, by which what was measured of it tells what it belongs to; empty where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rows_of(predictions: pd.DataFrame, data: GainDataModule) -> NDArray[np.int64]:
    """The row of ``data.samples`` of each row of predictions: both hold the pictures of a split in the same order.

    Raises:
        ValueError: the pictures are not the same.
    """
    rows = np.empty(len(predictions), dtype=np.int64)
    for split in predictions["split"].unique():
        predicted = (predictions["split"] == split).to_numpy()
        there = np.flatnonzero(data.samples["split"] == split)
        tables = (predictions.loc[predicted, "image"], data.samples.loc[there, "image"])
        own, others = ([PurePath(str(path)).name for path in table] for table in tables)
        if own != others:
            raise ValueError(
                f"the predictions hold {len(own)} pictures of '{split}', the data {len(others)}, "
                "and they are not the same; give the data of the run that was evaluated: build_data(run.settings)"
            )
        rows[predicted] = there
    return rows
