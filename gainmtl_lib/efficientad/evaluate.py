"""What a trained EfficientAD says: of its own splits, of any picture, and for the strategies (S6's masks, novelty).

B images, H x W network input, h x w cells of the stored map.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from gainmtl_lib import metrics
from gainmtl_lib.dataset import Batch, GainDataModule
from gainmtl_lib.efficientad.data import DatasetProvider, SplitProvider, as_batch
from gainmtl_lib.efficientad.model import AnomalyOutput, EfficientADModel, EfficientADSettings, check_size
from gainmtl_lib.efficientad.train import MAP, EfficientADRun, load_checkpoint, load_efficientad
from gainmtl_lib.evaluation import TEST_SPLITS, file_digest, samples_as_trained, stored_tables
from gainmtl_lib.labels import Resize, inner_size, inside, resize_image, resize_values
from gainmtl_lib.progress import counted
from gainmtl_lib.readers import DEFECTIVE, NORMAL, DataError, read_image
from gainmtl_lib.runs import Run, RunError, atomic_path, hold, read_json, run_status, write_json
from gainmtl_lib.train import checked_device, inference_autocast

logger = logging.getLogger(__name__)

FLOATS = "%.9g"
"""How numbers are stored: enough to tell any two scores apart."""
DESCRIBED = ["image", "mask", "split", "label", "defect_type", "group"]
MEANS = ("anomaly_iou", "grid_iou", "anomaly_point_game", "anomaly_energy_inside")


# --- A run's own splits


def evaluate_efficientad(
    run: EfficientADRun, *, provider: DatasetProvider | None = None, device: str | None = None, reuse: bool = True
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Score, decide and summarise every image of ``val``, ``test`` and, where present, ``test_shift``.

    On the data that the run was trained with, the results stay in its folder (``predictions.csv``,
    ``maps/anomaly.npy``, ``metrics.json``) and are not made twice. On other data they are returned only, and the
    thresholds and the scale are those that the run's own evaluation chose.

    Args:
        run: finished.
        provider: of the data, in place of the one that the settings name.
        device: where to compute, see `checked_device`; None is the settings' accelerator.
        reuse: take stored results of the run where they exist.

    Returns:
        One row per image, without the anomalies synthesised for validation, which are no files; and the summary:
        ``threshold``, ``novelty_threshold``, ``teacher``, ``penalty``, ``data_digest``, ``map_scales`` and one dict
        per split, that of ``val`` with its anomalies.

    Raises:
        RunError: the data changed since the run was trained, other data is given to a run that is not evaluated, or
            another process writes to the run.
        DataError: pictures that cannot be read.
    """
    trained_on = run.manifest["data_digest"]
    as_trained = provider is None or provider.digest == trained_on
    if as_trained and reuse and run.is_evaluated:
        logger.info("reusing the evaluation in %s", run.folder)
        return run.predictions, run.metrics
    if provider is None:
        provider = SplitProvider(run.settings)
        if (here := provider.digest) != trained_on:
            what = f"not the data that {run.folder} was trained on ({trained_on} then, {here} here)"
            hint = "bring that data back, or give the data as provider=…"
            raise RunError(f"{run.settings.dataset_folder}: {what}; {hint}")
    decided: dict[str, Any] = {}
    if not as_trained:  # other data must not move what the run's own evaluation chose
        decided = {name: run.metrics[name] for name in ("threshold", "novelty_threshold", "map_scales")}
        decided["threshold_from"] = "the run's own evaluation"
    with hold(run.folder) if as_trained else nullcontext():
        with (
            computing_on(run.model, device or run.settings.accelerator) as where,
            inference_autocast(run.settings.precision, where),
        ):
            predictions = {split: predict_split(run.model, provider, split) for split in provider.splits}
        decided = decided or decided_on(predictions["val"])
        summary = decided | {"teacher": run.teacher, "penalty": run.penalty, "data_digest": provider.digest}
        tables = {split: add_verdicts(part.table, decided["threshold"]) for split, part in predictions.items()}
        summary |= {split: summarise(tables[split], part) for split, part in predictions.items()}
        table = pd.concat(tables.values(), ignore_index=True)
        on_disk = ~table.duplicated(["split", "image"]).to_numpy()  # an anomaly has the path of the picture it is on
        if as_trained:
            maps = np.concatenate([part.maps for part in predictions.values()])
            _store(run, table[on_disk], maps[on_disk], summary)
            return run.predictions, run.metrics  # as a later call reads them
    return table[on_disk].reset_index(drop=True), summary


@contextmanager
def computing_on(model: EfficientADModel, device: str) -> Iterator[torch.device]:
    """The model in evaluation mode on a device, see `checked_device`; afterwards back on the one that it had."""
    own, where = next(model.parameters()).device, checked_device(device)
    try:
        model.eval().to(where).to(memory_format=torch.channels_last)
        yield where
    finally:
        model.to(own)


class SplitPredictions(NamedTuple):
    """What the model says of one split."""

    table: pd.DataFrame  # one row per image, in the loader's order
    maps: NDArray[np.float16]  # (N, h, w), the anomaly map on the networks' own grid
    pixel_auroc: float  # over images whose defect pixels are known; NaN without an answer
    aupro: float


@torch.inference_mode()
def predict_split(model: EfficientADModel, provider: DatasetProvider, split: str) -> SplitPredictions:
    """Run the model over one split, val with its anomalies, where the model lies."""
    pixel_auroc, aupro = metrics.PixelAuroc(), metrics.Aupro()
    rows, maps, device = [], [], next(model.parameters()).device
    loader = provider.loader(split)
    for item in counted(loader, len(loader), f"{split}, batch", log=logger):
        batch = Batch(*(part.to(device) for part in as_batch(item, split=split)))
        output = model(batch.images)
        rows.append(_score_batch(batch, output))
        maps.append(output.cells[:, 0].clamp(-6e4, 6e4).to(torch.float16).cpu().numpy())
        known = batch.has_mask | (batch.labels == 0)
        for metric in (pixel_auroc, aupro):
            metric.update(output.anomaly_map[known], batch.masks[known])
    if not rows:
        raise DataError(f"the loader of split '{split}' yields no image; expected at least one")
    if len(grids := {part.shape[1:] for part in maps}) > 1:
        shown = " and ".join("x".join(map(str, grid)) for grid in sorted(grids))
        raise DataError(f"the loader of split '{split}' yields images of several sizes (maps of {shown}); resize them")
    table = pd.concat(rows, ignore_index=True)
    table = pd.concat([_described(provider.table(split), split, table.pop("label")), table], axis=1)
    return SplitPredictions(table, np.concatenate(maps), float(pixel_auroc.compute()), float(aupro.compute()))


def _score_batch(batch: Batch, output: AnomalyOutput) -> pd.DataFrame:
    masks = batch.masks * batch.has_mask[:, None, None, None]
    columns = {
        "anomaly_score": output.score,
        "defect_area": masks.mean(dim=(1, 2, 3)).where(batch.has_mask, torch.nan),
        "anomaly_iou": metrics.cam_iou(output.anomaly_map, masks),
        "grid_iou": metrics.grid_iou(masks, (output.cells.shape[-2], output.cells.shape[-1])),
        "anomaly_point_game": metrics.point_game(output.anomaly_map, masks),
        "anomaly_energy_inside": metrics.energy_inside(output.anomaly_map, masks),
    }
    table = pd.DataFrame({name: values.float().cpu().numpy() for name, values in columns.items()})
    # As they are stored, so that a threshold taken from them decides the same on what is read back.
    scores = [float(FLOATS % score) for score in table["anomaly_score"]]
    return table.assign(anomaly_score=scores, label=batch.labels.cpu().numpy())


def _described(known: pd.DataFrame | None, split: str, labels: pd.Series) -> pd.DataFrame:
    # The images of a provider that does not say where they come from go by number.
    if known is None:
        names = [f"{split} {number}" for number in range(len(labels))]
        kinds = np.where(labels, DEFECTIVE, NORMAL)
        known = pd.DataFrame({"image": names, "mask": None, "label": labels, "defect_type": kinds, "group": names})
    elif missing := [name for name in DESCRIBED if name != "split" and name not in known]:
        raise DataError(f"the table of split '{split}' has no column {', '.join(missing)}; see DatasetProvider.table")
    elif known["label"].tolist() != labels.tolist():
        what = f"has {len(known)} rows or other labels than its loader's {len(labels)} images"
        raise DataError(f"the table of split '{split}' {what}; whoever replaces a loader replaces its table as well")
    return known.assign(split=split)[DESCRIBED].reset_index(drop=True)


def decided_on(val: SplitPredictions) -> dict[str, Any]:
    """Thresholds and absolute scale of the map, from validation with its anomalies."""
    labels, scores = (val.table[name].to_numpy() for name in ("label", "anomaly_score"))
    scale = metrics.fit_scale(val.maps, labels)
    return {
        "threshold": metrics.choose_threshold(labels, scores, near=None),
        "threshold_from": "validation with its anomalies, highest F1",
        "novelty_threshold": metrics.novelty_threshold(scores[labels == 0]),
        "map_scales": {} if scale is None else {MAP: asdict(scale)},
    }


def add_verdicts(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Columns ``predicted``, ``verdict`` and ``wrong_reason``: a defect that was found, by a map that lies off it."""
    predicted = (table["anomaly_score"] >= threshold).astype(int)
    told = metrics.verdicts(table["label"].to_numpy(), predicted.to_numpy())
    verdict = pd.Series(told, index=table.index, dtype=object)
    off = (table["anomaly_iou"] < metrics.OFF_THE_DEFECT_IOU) & (table["anomaly_point_game"] < 0.5)
    decided = {"predicted": predicted, "verdict": verdict, "wrong_reason": (verdict == "TP") & off}
    place = list(table.columns).index("anomaly_score") + 1
    return table.assign(**decided)[[*table.columns[:place], *decided, *table.columns[place:]]]


def summarise(table: pd.DataFrame, predictions: SplitPredictions) -> dict[str, Any]:
    """The numbers of one split, from its rows with verdicts; ``skipped`` defects have no mask."""
    verdict, answered = table["verdict"], table["anomaly_iou"].notna()
    return {
        "images": len(table),
        "normal": int((table["label"] == 0).sum()),
        "defective": int((table["label"] == 1).sum()),
        "annotated": int(answered.sum()),
        "skipped": int(((table["label"] == 1) & ~answered).sum()),
        **{name: int((verdict == name).sum()) for name in ("TP", "FP", "FN", "TN")},
        **metrics.classification(*(table[name].to_numpy() for name in ("label", "predicted", "anomaly_score"))),
        "pixel_auroc": predictions.pixel_auroc,
        "aupro": predictions.aupro,
        **{name: float(table[name].mean()) for name in MEANS},
        "wrong_reason": int(table["wrong_reason"].sum()),
        "wrong_reason_rate": float(table.loc[(verdict == "TP") & answered, "wrong_reason"].mean()),
    }


def _store(run: EfficientADRun, table: pd.DataFrame, maps: np.ndarray, summary: dict[str, Any]) -> None:
    root = f"{run.settings.dataset_folder.as_posix()}/"

    # Written last and removed first: an interruption leaves a run that is not evaluated, never a mixture of two.
    stored, arrays, last = (run.folder / name for name in ("predictions.csv", f"maps/{MAP}.npy", "metrics.json"))
    last.unlink(missing_ok=True)
    places = table[["image", "mask"]].map(lambda path: path.removeprefix(root) if isinstance(path, str) else None)
    with atomic_path(stored) as path:
        table.assign(image=places["image"], mask=places["mask"]).to_csv(path, index=False, float_format=FLOATS)
    with atomic_path(arrays) as path:
        np.save(path, maps)
    write_json(last, summary)


# --- Pictures from anywhere


QUANTILE_SCALE = metrics.MapScale(0.0, 0.1)
"""Where no evaluation fixed one: the anomaly map's own, from the 90 % to the 99.5 % quantile of normal parts."""

PIXELS_AT_ONCE = 8 * 256 * 256
"""Of one batch: the widest layer takes up to a kilobyte for each."""


@dataclass(frozen=True)
class Detector:
    """A model in evaluation mode and what its validation decided, thresholds None before the run is evaluated."""

    model: EfficientADModel
    settings: EfficientADSettings
    teacher: str  # where it came from, to be shown with every result
    threshold: float | None = None  # score from which a picture is called defective
    novelty_threshold: float | None = None  # score above which a picture is unlike the normal ones
    scale: metrics.MapScale = QUANTILE_SCALE
    scale_name: str = "90 % to 99.5 % of normal parts"

    @classmethod
    def open(cls, place: Path) -> Detector:
        """Of a run's folder or of a checkpoint file; ``best.ckpt`` of a finished run is that run."""
        if place.is_file():
            folder = place.absolute().parent.parent
            if place.name != "best.ckpt" or run_status(folder) != "complete":
                return cls(*load_checkpoint(place))
            place = folder
        run = load_efficientad(place)
        if not run.is_evaluated:
            return cls(run.model, run.settings, run.teacher)
        scale: Any = () if run.scale is None else (run.scale, "absolute scale")
        decided = (run.metrics["threshold"], run.metrics["novelty_threshold"], *scale)
        return cls(run.model, run.settings, run.teacher, *decided)

    def verdict(self, score: float) -> str | None:
        """``defective`` or ``normal``; None without a threshold."""
        return None if self.threshold is None else DEFECTIVE if score >= self.threshold else NORMAL

    def anomalous(self, score: float) -> bool | None:
        """Whether a picture of that score is unlike the normal ones; None without a threshold."""
        return None if self.novelty_threshold is None else score > self.novelty_threshold


class ScoredPicture(NamedTuple):
    """What the model says of one picture."""

    path: Path
    size: tuple[int, int]  # (h, w) on disk
    score: float  # how unlike normal parts it is, of any range
    anomaly_map: NDArray[np.float32]  # (H, W), the bars of a letterbox included


def score_pictures(
    model: EfficientADModel,
    settings: EfficientADSettings,
    paths: Sequence[Path],
    *,
    image_size: tuple[int, int] | None = None,
    device: str | None = None,
) -> Iterator[ScoredPicture | DataError]:
    """Score pictures in order, batch by batch; one that cannot be read gives its error, and the others go on.

    Args:
        model: trained.
        settings: its own: the precision must be that in which its scale was measured.
        paths: of picture files.
        image_size: network input (H, W); None is the training's.
        device: where to compute, see `checked_device`; None is the settings' accelerator.
    """
    height, width = size = image_size or settings.image_size
    check_size(height, width)

    def read(path: Path) -> tuple[NDArray[np.uint8], tuple[int, int]] | DataError:
        try:
            pixels = read_image(path)
        except DataError as error:
            return error
        return resize_image(pixels, size, settings.resize), (pixels.shape[0], pixels.shape[1])

    at_once = max(1, PIXELS_AT_ONCE // (height * width))
    with computing_on(model, device or settings.accelerator) as where, ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), at_once):
            chunk = paths[start : start + at_once]
            decoded = list(pool.map(read, chunk))
            inputs = [item[0] for item in decoded if not isinstance(item, DataError)]
            said: Iterator[Any] = iter(())
            if inputs:
                pixels = torch.from_numpy(np.stack(inputs)).to(where).permute(0, 3, 1, 2).float().div_(255)
                # Both modes end before the caller has its turn.
                with inference_autocast(settings.precision, where), torch.inference_mode():
                    output = model(pixels)
                said = zip(output.score.tolist(), output.anomaly_map[:, 0].cpu().numpy(), strict=True)
            for path, item in zip(chunk, decoded, strict=True):
                yield item if isinstance(item, DataError) else ScoredPicture(path, item[1], *next(said))


def _scored(run: EfficientADRun, paths: Sequence[str | Path], device: str | None) -> Iterator[ScoredPicture]:
    # One that cannot be read is an error.
    for one in score_pictures(run.model, run.settings, [Path(path) for path in paths], device=device):
        if isinstance(one, DataError):
            raise one
        yield one


# --- For the strategies: masks of S6's attention, and what a run may not have learnt from


class AnomalyMasks:
    """Masks for a strategy's attention from the anomaly maps of an EfficientAD run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked: GainDataModule | None = None

    @cached_property
    def run(self) -> EfficientADRun:
        """The run, read at first use; `RunError` where there is no finished run of EfficientAD."""
        return load_efficientad(self.folder)

    def masks(self, data: GainDataModule, batch: Batch) -> Tensor:
        """Masks of a batch's pictures, float32 (B, 1, H, W) in [0, 1], see `anomaly_mask`."""
        if self._checked is not data:
            check_unseen(self.run, data.samples)
            self._checked = data
        paths = [data.dataset.paths[row] for row in batch.index.tolist()]
        masks = [
            anomaly_mask(one, self.run.settings.resize, size=data.settings.image_size, resize=data.settings.resize)
            for one in _scored(self.run, paths, str(batch.images.device))
        ]
        return torch.from_numpy(np.stack(masks))[:, None].to(batch.masks)


def anomaly_mask(picture: ScoredPicture, own: Resize, *, size: tuple[int, int], resize: Resize) -> NDArray[np.float32]:
    """An anomaly map through its quantiles, on a strategy's input: 0 up to the 90 % quantile of normal parts, 1 from
    the 99.5 % quantile on, and 0 in the bars beside a letterboxed picture.
    """
    plane = (picture.anomaly_map.shape[0], picture.anomaly_map.shape[1])
    rows, columns = inside(inner_size(picture.size, plane, own), plane)
    share = QUANTILE_SCALE.apply(picture.anomaly_map[rows, columns])
    return resize_values(share, size, resize, image_size=picture.size)


def check_unseen(run: EfficientADRun, samples: pd.DataFrame) -> None:
    """`RunError`: the run learnt from pictures that a strategy is tested on, and would give their labels away.

    Pictures of the strategy's samples are compared by path; a copy elsewhere is not noticed. A run whose data moved is
    looked up where the strategy's lie.
    """
    settings = run.settings
    if not settings.dataset_folder.is_dir():  # synthetic data is then read as it is, not made anew
        files = [path for column in ("image", "mask") for path in samples[column] if isinstance(path, str)]
        root = Path(os.path.commonpath([os.path.dirname(path) for path in files]))
        layout = "generic" if settings.dataset_type == "synthetic" else settings.dataset_type
        settings = settings.changed(data_root=root, dataset_type=layout, category=None)
    provider = SplitProvider(settings)
    if provider.digest != run.manifest["data_digest"]:
        why = "because its data changed since or came from a provider of its own"
        raise RunError(f"{run.folder}: which pictures it learnt from is not known, {why}; train it anew")
    # The student sees the first; quantiles and thresholds are of the second.
    learnt_from, own = ("train", "val"), provider.samples
    learnt = {os.path.realpath(path) for path in own.loc[own["split"].isin(learnt_from), "image"]}
    tests = samples.loc[~samples["split"].isin(learnt_from), "image"]
    if seen := [path for path in tests if os.path.realpath(path) in learnt]:
        raise RunError(
            f"{run.folder}: learnt from {len(seen)} of the {len(tests)} test pictures, such as {seen[0]}; what it says "
            "of those is no result. Train it on the same split: data_root, val_ratio, test_ratio and split_seed (or "
            "seed)"
        )


# --- Defects of kinds that a strategy never saw


TABLE, SUMMARY = "novelty.csv", "novelty.json"
COLUMNS = {"image": str, "split": str, "anomaly_score": float, "anomalous": bool, "novel": bool}
KEYS = {"predictions", "efficientad_run", "weights", "teacher", "threshold", "threshold_from", "kinds"}


class Novelty(NamedTuple):
    """Which pictures of an evaluation are flagged as novel.

    Attributes:
        table: one row per prediction, in their order: ``image``, ``split``, ``anomaly_score``, ``anomalous`` (above the
            threshold) and ``novel`` (anomalous, although the verdict is normal).
        summary: ``predictions`` and ``weights``, SHA-256 of what it belongs to; ``efficientad_run``, its ``teacher``,
            ``threshold`` and ``threshold_from``; ``kinds``, see there.
    """

    table: pd.DataFrame
    summary: dict[str, Any]

    @property
    def threshold(self) -> float:
        """Anomaly score above which a picture is unlike the good ones."""
        return self.summary["threshold"]

    @property
    def teacher(self) -> str:
        """Where the EfficientAD run's teacher came from; stands wherever the flag is shown."""
        return self.summary["teacher"]

    @property
    def kinds(self) -> pd.DataFrame:
        """By test ``split`` and ``name``, normal pictures first, then defects by type: ``count``, ``called_defective``,
        ``anomalous``, ``novel``, and ``unseen``: no training picture shows that type.
        """
        return pd.DataFrame(self.summary["kinds"]).set_index(["split", "name"])


def find_novel(
    run: Run, efficientad: EfficientADRun | str | Path, *, device: str | None = None, reuse: bool = True
) -> Novelty:
    """Flag the pictures of an evaluated run that EfficientAD finds unlike the good parts although they passed.

    The threshold is that of the EfficientAD run, from its own normal validation pictures; where that run is not
    evaluated, it is evaluated first. Nothing that the strategy's evaluation stored is touched.

    Args:
        run: finished and evaluated.
        efficientad: a finished run of EfficientAD, or its folder.
        device: where to compute, see `checked_device`; None is where EfficientAD was trained.
        reuse: take what is stored where it was found with this EfficientAD run for these predictions.

    Raises:
        RunError: a run that is not evaluated or whose data changed, no finished run of EfficientAD, one that learnt
            from the test pictures, or another process writes to the run.
    """
    other = efficientad if isinstance(efficientad, EfficientADRun) else load_efficientad(efficientad)
    if reuse and other.is_evaluated:
        with suppress(RunError):  # damaged files are made anew
            stored = stored_novelty(run)
            if stored is not None and stored.summary.items() >= _origin(run, other).items():
                return stored
    with hold(run.folder):
        table, _ = stored_tables(run)
        samples = samples_as_trained(run)
        check_unseen(other, samples)
        evaluate_efficientad(other, device=device)
        origin = _origin(run, other)
        files = [run.settings.dataset_folder / image for image in table["image"]]
        known = samples.loc[(samples["split"] == "train") & (samples["label"] == 1), "defect_type"]
        scores = [one.score for one in _scored(other, files, device)]
        flagged, kinds = flag(table, scores, origin["threshold"], set(known))
        # Written last and removed first: an interruption leaves no flags, never a mixture of two.
        (run.folder / SUMMARY).unlink(missing_ok=True)
        with atomic_path(run.folder / TABLE) as path:
            flagged.to_csv(path, index=False)  # in full: a rounded score could lie on the other side of the threshold
        write_json(run.folder / SUMMARY, origin | {"kinds": kinds})
    stored: Any = stored_novelty(run)  # as a later call reads it
    return stored


def _origin(run: Run, other: EfficientADRun) -> dict[str, Any]:
    """What the flags are of and from, `other` evaluated."""
    return {
        "predictions": file_digest(run.folder / "predictions.csv"),
        "efficientad_run": str(other.folder.resolve()),
        "weights": file_digest(other.folder / "model.safetensors"),
        "teacher": other.teacher,
        "threshold": float(other.metrics["novelty_threshold"]),
        "threshold_from": f"normal validation pictures of that run, {metrics.FALSE_ALARMS:.0%} false alarms allowed",
    }


def flag(
    table: pd.DataFrame, scores: Collection[float], threshold: float, known: Collection[str]
) -> tuple[pd.DataFrame, list[dict[Any, Any]]]:
    """`Novelty.table` and the records of `Novelty.kinds`, from predictions, the anomaly score of each row, and the
    types of defects that training pictures show.
    """
    flagged = table[["image", "split"]].assign(anomaly_score=list(scores))
    flagged["anomalous"] = flagged["anomaly_score"] > threshold
    flagged["novel"] = flagged["anomalous"] & (table["predicted"] == 0)
    rows = table.assign(anomalous=flagged["anomalous"], novel=flagged["novel"], count=1)
    rows["name"] = rows["defect_type"].fillna("unknown").where(rows["label"] == 1, NORMAL)
    kinds = rows[rows["split"].isin(TEST_SPLITS)].groupby(["split", "label", "name"])
    kinds = kinds[["count", "predicted", "anomalous", "novel"]].sum().reset_index()
    kinds["unseen"] = (kinds.pop("label") == 1) & ~kinds["name"].isin(known)
    return flagged, kinds.rename(columns={"predicted": "called_defective"}).to_dict("records")


def stored_novelty(run: Run) -> Novelty | None:
    """What `find_novel` left in the run's folder; None where nothing is, or where it is out of date: of other
    predictions, or of an EfficientAD run that was trained anew since.
    """
    if not (run.folder / SUMMARY).is_file():
        return None
    again = f"remove novelty.json, or flag anew: gainmtl evaluate {run.folder} --efficientad-run FOLDER"
    summary = read_json(run.folder / SUMMARY)
    if not isinstance(summary, dict) or not summary.keys() >= KEYS:
        raise RunError(f"{run.folder / SUMMARY}: lacks what belongs there; {again}")
    try:
        table = pd.read_csv(run.folder / TABLE, dtype=COLUMNS, keep_default_na=False)[list(COLUMNS)]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{run.folder / TABLE}: cannot be read: {' '.join(str(error).split())}; {again}") from None
    weights = file_digest(Path(summary["efficientad_run"]) / "model.safetensors")
    # An EfficientAD run that is not there any more is taken to be as it was.
    trained_anew = weights not in ("", summary["weights"])
    if trained_anew or summary["predictions"] != file_digest(run.folder / "predictions.csv"):
        return None
    if table["image"].tolist() != run.predictions["image"].tolist():
        raise RunError(f"{run.folder / TABLE}: not of the pictures in predictions.csv; {again}")
    return Novelty(table, summary)


def out_of_date(run: Run) -> str:
    """Why nothing stored can be shown, in words; empty where nothing is stored or it is up to date."""
    if not (run.folder / SUMMARY).is_file() or stored_novelty(run) is not None:
        return ""
    return (
        "what is stored is of other predictions or of an EfficientAD run that was trained anew; flag anew: "
        f"gainmtl evaluate {run.folder} --efficientad-run FOLDER"
    )
