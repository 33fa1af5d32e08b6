"""What a trained EfficientAD says: of its own splits, of any picture, and for the strategies (S6's masks, novelty).

B images, H x W network input, h x w cells of the stored map.
"""

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from gainmtl_lib import evaluation, metrics
from gainmtl_lib.dataset import Batch, GainDataModule, build_test_samples
from gainmtl_lib.devices import checked_device, inference_autocast
from gainmtl_lib.efficientad.data import DatasetProvider, SplitProvider, as_batch
from gainmtl_lib.efficientad.model import EfficientADModel, EfficientADSettings, check_size
from gainmtl_lib.efficientad.train import MAP, EfficientADRun, load_checkpoint, load_efficientad
from gainmtl_lib.evaluation import file_digest
from gainmtl_lib.findings import DataError
from gainmtl_lib.labels import Resize, inside, resize_image, resize_values
from gainmtl_lib.layouts import DEFECTIVE, NORMAL, TEST_SPLITS
from gainmtl_lib.pictures import read_image
from gainmtl_lib.progress import counted
from gainmtl_lib.runs import Run, RunError, atomic_path, hold, read_json, run_of_best, write_json

logger = logging.getLogger(__name__)

OWN = {  # a strategy's columns, as which these are decided and summarised, and their names here
    "probability": "anomaly_score", "cam_iou": "anomaly_iou", "point_game": "anomaly_point_game",
    "energy_inside": "anomaly_energy_inside",
}  # fmt: skip


# --- A run's own splits


def evaluate_efficientad(
    run: EfficientADRun, *, provider: DatasetProvider | None = None, device: str | None = None, reuse: bool = True
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Score, decide and summarise every image of ``val``, ``test`` and, where present, ``test_shift``.

    Args:
        run: finished; its folder takes ``predictions.csv``, ``maps/anomaly.npy`` and ``metrics.json``.
        provider: of the data that the run was trained on, in place of the one that the settings name; or of other data
            without validation, which is decided on by the run's own, and whose results are returned only.
        device: see `checked_device`; None is the settings' accelerator.
        reuse: take stored results where they exist.

    Returns one row per image, without the anomalies synthesised for validation, which are no files, and the summary:
    thresholds, ``teacher``, ``penalty``, ``map_scales`` and a dict per split, that of ``val`` with its anomalies.
    `RunError`: not the data that the run was trained on, or another process writes to the run.
    """
    trained_on = run.manifest["data_digest"]
    if reuse and run.is_evaluated and (provider is None or provider.digest == trained_on):
        logger.info("reusing the evaluation in %s", run.folder)
        return run.predictions, run.metrics
    provider = provider or SplitProvider(run.settings)
    if (here := provider.digest) != trained_on and "val" in provider.splits:
        what = f"not the data that {run.folder} was trained on ({trained_on} then, {here} here)"
        raise RunError(f"{run.settings.dataset_folder}: {what}; bring that data back, or give it as provider=…")
    if here != trained_on:
        _, own = evaluate_efficientad(run, device=device)
        if missing := [name for name in DECIDED if name not in own]:
            raise RunError(f"{run.folder}: its evaluation lacks {missing[0]}; {evaluation.AGAIN.format(run.folder)}")
        table, _, summary = _measured(run, provider, device, {name: own[name] for name in DECIDED})
        return table, summary
    with hold(run.folder):
        table, maps, summary = _measured(run, provider, device)
        on_disk = ~table.duplicated(["split", "image"]).to_numpy()  # an anomaly has the path of the picture it is on
        root = run.settings.dataset_folder
        evaluation.store_results(run, table[on_disk], [(MAP, maps[on_disk])], summary, root=root)
    return run.predictions, run.metrics  # as a later call reads them


def provider_elsewhere(run: EfficientADRun, settings: EfficientADSettings) -> SplitProvider:
    """Of the data that `settings` read, see `build_test_samples`; a copy of the run's own is split as that was."""
    with suppress(DataError):  # what cannot be split is no copy
        own = SplitProvider(settings)
        if own.digest == run.manifest["data_digest"]:
            return own
    return SplitProvider(settings, build_test_samples(settings))


DECIDED = ("threshold", "threshold_from", "novelty_threshold", "calibration", "map_scales")
"""What `decided_on` decides."""


def _measured(
    run: EfficientADRun, provider: DatasetProvider, device: str | None, decided: dict[str, Any] | None = None
) -> tuple[pd.DataFrame, NDArray[np.float16], dict[str, Any]]:
    """All splits' rows and maps, and the summary; `decided` is given for data without validation."""
    with (
        computing_on(run.model, device or run.settings.accelerator) as where,
        inference_autocast(run.settings.precision, where),
    ):
        parts = {split: predict_split(run.model, provider, split) for split in provider.splits}
    summary = decided or decided_on(*parts["val"][:2])
    summary |= {"teacher": run.teacher, "penalty": run.penalty, "data_digest": provider.digest}
    tables = []
    for split, (table, _, pixels) in parts.items():
        table, numbers = decide(table, summary)
        tables.append(table)
        summary[split] = numbers | pixels
    return pd.concat(tables, ignore_index=True), np.concatenate([maps for _, maps, _ in parts.values()]), summary


@contextmanager
def computing_on(model: EfficientADModel, device: str) -> Iterator[torch.device]:
    """The model in evaluation mode on a device, see `checked_device`; afterwards back on the one that it had."""
    own, where = next(model.parameters()).device, checked_device(device)
    try:
        model.eval().to(where).to(memory_format=torch.channels_last)
        yield where
    finally:
        model.to(own)


@torch.inference_mode()
def predict_split(
    model: EfficientADModel, provider: DatasetProvider, split: str
) -> tuple[pd.DataFrame, NDArray[np.float16], dict[str, float]]:
    """One split, val with its anomalies: a row per image in the loader's order; the anomaly maps on the networks' own
    grid, (N, h, w); ``pixel_auroc`` and ``aupro`` over images whose defect pixels are known, NaN without an answer.
    """
    pixels, rows, maps, device = metrics.PixelScores(), [], [], next(model.parameters()).device
    loader = provider.loader(split)
    for item in counted(loader, len(loader), f"{split}, batch", log=logger):
        batch = Batch(*(part.to(device) for part in as_batch(item, split=split)))
        output = model(batch.images)
        masks = batch.masks * batch.has_mask[:, None, None, None]
        columns = {
            "label": batch.labels,
            "anomaly_score": output.score,
            "defect_area": masks.mean(dim=(1, 2, 3)).where(batch.has_mask, torch.nan),
            "anomaly_iou": metrics.cam_iou(output.anomaly_map, masks),
            "grid_iou": metrics.grid_iou(masks, (output.cells.shape[-2], output.cells.shape[-1])),
            "anomaly_point_game": metrics.point_game(output.anomaly_map, masks),
            "anomaly_energy_inside": metrics.energy_inside(output.anomaly_map, masks),
        }
        rows.append(pd.DataFrame({name: values.float().cpu().numpy() for name, values in columns.items()}))
        maps.append(output.cells[:, 0].clamp(-6e4, 6e4).to(torch.float16).cpu().numpy())
        known = batch.has_mask | (batch.labels == 0)
        pixels.update(output.anomaly_map[known], batch.masks[known])
    if not rows:
        raise DataError(f"the loader of split '{split}' yields no image; expected at least one")
    if len(grids := {part.shape[1:] for part in maps}) > 1:
        shown = " and ".join("x".join(map(str, grid)) for grid in sorted(grids))
        raise DataError(f"the loader of split '{split}' yields images of several sizes (maps of {shown}); resize them")
    table = pd.concat(rows, ignore_index=True)
    # As they are stored, so that a threshold taken from them decides the same on what is read back.
    table["anomaly_score"] = [float(evaluation.FLOATS % score) for score in table["anomaly_score"]]
    table = pd.concat([_described(provider.table(split), split, table.pop("label").astype(int)), table], axis=1)
    return table, np.concatenate(maps), {"pixel_auroc": pixels.auroc(), "aupro": pixels.aupro()}


def _described(known: pd.DataFrame | None, split: str, labels: pd.Series) -> pd.DataFrame:
    # The images of a provider that does not say where they come from go by number.
    if known is None:
        names = [f"{split} {number}" for number in range(len(labels))]
        kinds = np.where(labels, DEFECTIVE, NORMAL)
        known = pd.DataFrame({"image": names, "mask": None, "label": labels, "defect_type": kinds, "group": names})
    elif missing := [name for name in evaluation.OF_THE_SAMPLE if name not in {*known, "split"}]:
        raise DataError(f"the table of split '{split}' has no column {', '.join(missing)}; see DatasetProvider.table")
    elif known["label"].tolist() != labels.tolist():
        what = f"has {len(known)} rows or other labels than its loader's {len(labels)} images"
        raise DataError(f"the table of split '{split}' {what}; whoever replaces a loader replaces its table as well")
    return known.assign(split=split)[[*evaluation.OF_THE_SAMPLE]].reset_index(drop=True)


def decided_on(val: pd.DataFrame, maps: NDArray) -> dict[str, Any]:
    """Thresholds and absolute scale of the map, from validation with its anomalies."""
    labels, scores = (val[name].to_numpy() for name in ("label", "anomaly_score"))
    scale, threshold = metrics.fit_scale(maps, labels), metrics.f1_threshold(labels, scores)
    return {
        "calibration": metrics.fit_calibration(labels, scores, threshold),
        "threshold": threshold,
        "threshold_from": "validation with its anomalies, highest F1",
        "novelty_threshold": metrics.novelty_threshold(scores[labels == 0]),
        "map_scales": {} if scale is None else {MAP: asdict(scale)},
    }


def decide(table: pd.DataFrame, decided_on: dict[str, Any]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One split's rows with `evaluation.add_verdicts`' columns and the ``probability`` of a defect, and its numbers as
    of `evaluation.summarise`, with what `decided_on` gave for validation."""
    threshold = decided_on["threshold"]
    decided = evaluation.add_verdicts(table.rename(columns={own: theirs for theirs, own in OWN.items()}), threshold)
    numbers = {OWN.get(name, name): value for name, value in evaluation.summarise(decided).items()}
    decided = decided.rename(columns=OWN)
    probability = evaluation.calibrated(decided["anomaly_score"], decided_on["calibration"])
    numbers["ece"] = metrics.calibration_error(decided["label"].to_numpy(), probability)
    decided.insert(decided.columns.get_loc("anomaly_score"), "probability", probability)  # type: ignore[arg-type]
    return decided, numbers


# --- Pictures from anywhere


# Where no evaluation fixed one: the anomaly map's own, from the 90 % to the 99.5 % quantile of normal parts.
QUANTILE_SCALE = metrics.MapScale(0.0, 0.1)
PIXELS_AT_ONCE = 8 * 256 * 256  # of one batch: the widest layer takes up to a kilobyte for each


@dataclass(frozen=True)
class Detector:
    """A model in evaluation mode and what its validation decided, thresholds None before the run is evaluated."""

    model: EfficientADModel
    settings: EfficientADSettings
    teacher: str  # where it came from, to be shown with every result
    threshold: float | None = None  # score from which a picture is called defective
    novelty_threshold: float | None = None  # score above which a picture is unlike the normal ones
    scale: metrics.MapScale = QUANTILE_SCALE

    @classmethod
    def open(cls, place: Path) -> Self:
        """Of a run's folder or of a checkpoint file; ``best.ckpt`` of a finished run is that run."""
        if place.is_file():
            if (folder := run_of_best(place)) is None:
                return cls(*load_checkpoint(place))
            place = folder
        run = load_efficientad(place)
        own = (run.model, run.settings, run.teacher)
        if not run.is_evaluated:
            return cls(*own)
        return cls(*own, run.metrics["threshold"], run.metrics["novelty_threshold"], run.scale or QUANTILE_SCALE)

    def decide(self, score: float) -> tuple[str | None, bool | None]:
        """Whether a picture is ``defective`` or ``normal``, and unlike the normal ones; None without thresholds."""
        if self.threshold is None or self.novelty_threshold is None:
            return None, None
        return DEFECTIVE if score >= self.threshold else NORMAL, score > self.novelty_threshold


class ScoredPicture(NamedTuple):
    """What the model says of one picture."""

    path: Path
    size: tuple[int, int]  # (h, w) on disk
    score: float  # how unlike normal parts it is, of any range
    anomaly_map: NDArray[np.float32]  # (H, W), the bars of a letterbox included


def score_pictures(
    by: Detector | EfficientADRun,
    paths: Sequence[Path],
    *,
    failed: list[str] | None = None,
    image_size: tuple[int, int] | None = None,
    device: str | None = None,
) -> Iterator[ScoredPicture]:
    """Score picture files in order, batch by batch, in the training's precision, in which the scale was measured.

    Args:
        failed: takes the message of each that cannot be read; without it that is a `DataError`.
        image_size: network input (H, W); None is the training's.
        device: see `checked_device`; None is the settings' accelerator.
    """
    model, settings = by.model, by.settings
    height, width = size = image_size or settings.image_size
    check_size(height, width)

    def read(path: Path) -> list[tuple[Path, tuple[int, int], NDArray[np.uint8]]]:
        try:
            pixels = read_image(path)
        except DataError as error:
            if failed is None:
                raise
            failed.append(str(error))
            return []
        return [(path, (pixels.shape[0], pixels.shape[1]), resize_image(pixels, size, settings.resize))]

    at_once = max(1, PIXELS_AT_ONCE // (height * width))
    with computing_on(model, device or settings.accelerator) as where, ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), at_once):
            pictures = [one for found in pool.map(read, paths[start : start + at_once]) for one in found]
            if not pictures:
                continue
            pixels = torch.from_numpy(np.stack([resized for *_, resized in pictures])).to(where)
            # Both modes end before the caller has its turn.
            with inference_autocast(settings.precision, where), torch.inference_mode():
                output = model(pixels.permute(0, 3, 1, 2).float().div_(255))
            maps = output.anomaly_map[:, 0].cpu().numpy()
            for (path, own, _), score, values in zip(pictures, output.score.tolist(), maps, strict=True):
                yield ScoredPicture(path, own, score, values)


# --- For the strategies: masks of S6's attention, and what a run may not have learnt from


class AnomalyMasks:
    """Masks for a strategy's attention from the anomaly maps of an EfficientAD run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked: GainDataModule | None = None

    @cached_property
    def run(self) -> EfficientADRun:
        """Read at first use."""
        return load_efficientad(self.folder)

    def masks(self, data: GainDataModule, batch: Batch) -> Tensor:
        """Masks of a batch's pictures, float32 (B, 1, H, W) in [0, 1], see `anomaly_mask`."""
        if self._checked is not data:
            check_unseen(self.run, data.samples)
            self._checked = data
        paths = [Path(data.dataset.paths[row]) for row in batch.index.tolist()]
        scored, own = score_pictures(self.run, paths, device=str(batch.images.device)), self.run.settings.resize
        size, resize = data.settings.image_size, data.settings.resize
        masks = [anomaly_mask(one, own, size=size, resize=resize) for one in scored]
        return torch.from_numpy(np.stack(masks))[:, None].to(batch.masks)


def anomaly_mask(picture: ScoredPicture, own: Resize, *, size: tuple[int, int], resize: Resize) -> NDArray[np.float32]:
    """An anomaly map through its quantiles, on a strategy's input: 0 up to the 90 % quantile of normal parts, 1 from
    the 99.5 % quantile on, and 0 in the bars beside a letterboxed picture.
    """
    plane = (picture.anomaly_map.shape[0], picture.anomaly_map.shape[1])
    rows, columns = inside(picture.size, plane, own)
    share = QUANTILE_SCALE.apply(picture.anomaly_map[rows, columns])
    return resize_values(share, size, resize, image_size=picture.size)


def check_unseen(run: EfficientADRun, samples: pd.DataFrame) -> None:
    """`RunError`: the run learnt from pictures that a strategy is tested on, and would give their labels away.

    Compared by path, a copy elsewhere is not noticed. A run whose data moved is looked up where the strategy's lie.
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
    learnt_from, own = ("train", "val"), provider.samples  # of val are the quantiles and thresholds
    learnt = {os.path.realpath(path) for path in own.loc[own["split"].isin(learnt_from), "image"]}
    tests = samples.loc[~samples["split"].isin(learnt_from), "image"]
    if seen := [path for path in tests if os.path.realpath(path) in learnt]:
        what = f"learnt from {len(seen)} of the {len(tests)} test pictures, such as {seen[0]}; what it says of those"
        hint = "Train it on the same split: data_root, val_ratio, test_ratio and split_seed (or seed)"
        raise RunError(f"{run.folder}: {what} is no result. {hint}")


# --- Defects of kinds that a strategy never saw


TABLE, SUMMARY = "novelty.csv", "novelty.json"
COLUMNS = {"image": str, "split": str, "anomaly_score": float, "anomalous": bool, "novel": bool}
AGAIN = "gainmtl evaluate {} --efficientad-run FOLDER"


class Novelty(NamedTuple):
    """Which pictures of an evaluation are flagged as novel.

    `table` has a row per prediction, in their order: ``image``, ``split``, ``anomaly_score``, ``anomalous`` (above the
    threshold) and ``novel`` (anomalous, although the verdict is normal); `summary` says what it is of and from.
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
        """By test ``split`` and ``name`` of a kind the counts, and ``unseen``: no training picture shows that type."""
        return pd.DataFrame(self.summary["kinds"]).set_index(["split", "name"])


def find_novel(
    run: Run, efficientad: EfficientADRun | str | Path, *, device: str | None = None, reuse: bool = True
) -> Novelty:
    """Flag the pictures of an evaluated run that EfficientAD finds unlike the good parts although they passed.

    The threshold is that of the EfficientAD run, evaluated first where it is not. With `reuse`, flags of the same run
    for the same predictions are not made twice. `RunError`: a run that is not evaluated or whose data changed, no
    finished run of EfficientAD, one that learnt from the test pictures, or another process writes to the run.
    """
    other = efficientad if isinstance(efficientad, EfficientADRun) else load_efficientad(efficientad)
    if reuse and other.is_evaluated:
        with suppress(RunError):  # damaged files are made anew
            stored = stored_novelty(run)
            if stored is not None and stored.summary.items() >= _origin(run, other).items():
                return stored
    with hold(run.folder):
        table, _ = evaluation.stored_tables(run)
        samples = evaluation.samples_as_trained(run)
        check_unseen(other, samples)
        evaluate_efficientad(other, device=device)
        summary = _origin(run, other)
        files = [run.settings.dataset_folder / image for image in table["image"]]
        known = samples.loc[(samples["split"] == "train") & (samples["label"] == 1), "defect_type"]
        scores = [one.score for one in score_pictures(other, files, device=device)]
        flagged, summary["kinds"] = flag(table, scores, summary["threshold"], set(known))
        # Written last and removed first: an interruption leaves no flags, never a mixture of two.
        (run.folder / SUMMARY).unlink(missing_ok=True)
        with atomic_path(run.folder / TABLE) as path:
            flagged.to_csv(path, index=False)  # in full: a rounded score could lie on the other side of the threshold
        write_json(run.folder / SUMMARY, summary)
    return Novelty(flagged, summary)


def _origin(run: Run, other: EfficientADRun) -> dict[str, Any]:
    """What the flags are of and from, `other` evaluated."""
    origin = {"predictions": file_digest(run.folder / "predictions.csv"), "teacher": other.teacher}
    digest = file_digest(other.folder / "model.safetensors")
    origin |= {"efficientad_run": str(other.folder.resolve()), "weights": digest}
    how = f"normal validation pictures of that run, {metrics.FALSE_ALARMS:.0%} false alarms allowed"
    return origin | {"threshold": float(other.metrics["novelty_threshold"]), "threshold_from": how}


def flag(
    table: pd.DataFrame, scores: Collection[float], threshold: float, known: Collection[str]
) -> tuple[pd.DataFrame, list[dict[Any, Any]]]:
    """`Novelty.table` and the records of its kinds; `known` are the types of defects that training pictures show."""
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
    """What `find_novel` left in the run's folder; None where nothing is, or where it is `out_of_date`."""
    if not (run.folder / SUMMARY).is_file():
        return None
    summary = read_json(run.folder / SUMMARY)
    try:
        weights = file_digest(Path(summary["efficientad_run"]) / "model.safetensors")
        trained_anew = weights not in ("", summary["weights"])  # a run that is gone is taken to be as it was
        if trained_anew or summary["predictions"] != file_digest(run.folder / "predictions.csv"):
            return None
        table = pd.read_csv(run.folder / TABLE, dtype=COLUMNS, keep_default_na=False)[list(COLUMNS)]
        if table["image"].tolist() != run.predictions["image"].tolist():
            raise ValueError(f"{TABLE} is not of the pictures in predictions.csv")
    except (OSError, ValueError, KeyError) as error:
        what = f"cannot be used: {' '.join(str(error).split())}; remove it, or flag anew: {AGAIN.format(run.folder)}"
        raise RunError(f"{run.folder / SUMMARY} (with {TABLE}) {what}") from None
    return Novelty(table, summary)


def out_of_date(run: Run) -> str:
    """Why nothing stored can be shown, in words; empty where nothing is stored or it is up to date."""
    if not (run.folder / SUMMARY).is_file() or stored_novelty(run) is not None:
        return ""
    what = "what is stored is of other predictions or of an EfficientAD run that was trained anew"
    return f"{what}; flag anew: {AGAIN.format(run.folder)}"
