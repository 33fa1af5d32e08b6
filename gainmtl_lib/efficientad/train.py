"""EfficientAD's validation: the scale of its maps from normal images, then how well they tell anomalies.

B images, H x W pixels, h x w cells.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import Tensor

from gainmtl_lib.backbone import ModelError, StateDict
from gainmtl_lib.dataset import Batch
from gainmtl_lib.efficientad.data import (
    DatasetProvider,
    FreshProcesses,
    PenaltyImages,
    TrainBatch,
    TrainingFeed,
    TrainStream,
    as_batch,
    build_penalty,
    build_provider,
    check_validation,
    recoloured,
)
from gainmtl_lib.efficientad.model import (
    TERMS,
    EfficientADModel,
    EfficientADSettings,
    LocalMaps,
    MapQuantiles,
    distance_loss,
    hard_feature_loss,
    load_teacher,
    measure_teacher,
    pretraining_penalty,
    teacher_of,
    total_loss,
)
from gainmtl_lib.metrics import MapScale, PixelAuroc
from gainmtl_lib.runs import (
    EFFICIENTAD,
    Run,
    RunError,
    StoredRun,
    claim,
    finished_folder,
    load_run,
    read_checkpoint,
    save_weights,
    system_of,
)
from gainmtl_lib.train import (
    AtomicCheckpointIO,
    Continuity,
    TrainingDivergedError,
    check_count,
    check_intent,
    check_unchanged,
    checked_device,
    circumstances,
    event_loggers,
    fit_interruptibly,
    forget_foreign_best,
    inference_autocast,
    is_finished,
    lightning_precision,
    previous_manifest,
    recorded,
    resumed_checkpoint,
)


class Scores(NamedTuple):
    """What decides which checkpoint is the best, in this order.

    Attributes:
        image_auroc: of the anomaly scores.
        pixel_auroc: of the anomaly maps; NaN without an annotated anomaly.
    """

    image_auroc: float
    pixel_auroc: float


class _Seen(NamedTuple):
    maps: LocalMaps  # (B, 1, h, w) each, float32 on the CPU
    labels: Tensor  # (B,)
    masks: Tensor  # bool (B, 1, H, W)
    answered: Tensor  # bool (B,): normal, or with a mask


class Validation:
    """One pass over the validation images.

    Their maps are held until the last is seen, because the scale of all of them comes from the normal ones: h x w
    values twice and H x W bytes an image.

    Args:
        seed: of the sample that quantiles are taken from.
    """

    def __init__(self, *, seed: int) -> None:
        self._seen: list[_Seen] = []
        self._quantiles = MapQuantiles(seed=seed)

    def update(self, maps: LocalMaps, batch: Batch) -> None:
        """Note a batch's maps, (B, 1, h, w) each, on any device."""
        held = LocalMaps(*(one.float().cpu() for one in maps))
        labels = batch.labels.cpu()
        self._seen.append(_Seen(held, labels, batch.masks.cpu() > 0.5, (labels == 0) | batch.has_mask.cpu()))
        normal = labels == 0
        if normal.any():
            self._quantiles.update(LocalMaps(*(one[normal] for one in held)))

    def finish(self, model: EfficientADModel) -> Scores:
        """Set the model's quantiles, and score the anomaly maps that follow from them.

        Raises:
            ModelError: see `EfficientADModel.set_quantiles`; or a map of an anomalous image is not finite.
        """
        model.set_quantiles(self._quantiles.compute(), images=self._quantiles.images)
        pixels, scores = PixelAuroc(sync_on_compute=False), []
        for seen in self._seen:
            height, width = seen.masks.shape[-2:]
            device = model.quantiles.device
            output = model.finish(LocalMaps(*(one.to(device) for one in seen.maps)), (height, width))
            if not bool(torch.isfinite(output.score).all()):
                raise ModelError("an anomalous validation image has a map that is not finite; try precision '32'")
            pixels.update(output.anomaly_map[seen.answered.to(device)].cpu(), seen.masks[seen.answered].float())
            scores.append(output.score.cpu())
        labels = torch.cat([seen.labels for seen in self._seen]).numpy()
        image_auroc = float(roc_auc_score(labels, torch.cat(scores).double().numpy()))
        return Scores(image_auroc, float(pixels.compute()))


# --- EfficientAD's training step as Lightning runs it, and its validation.


STEPS_BETWEEN_CHECKS = 10
"""Whether losses are finite is asked for several steps at once: each answer waits for the device."""


class EfficientADTraining(L.LightningModule):
    """One optimisation of an `EfficientADModel` (algorithm 1 of the paper).

    Everything random in a step (dropout, colours) follows from (seed, step, rank), so that a resumed run repeats what
    an uninterrupted one does.

    Args:
        model: what is trained; its teacher and the teacher's statistics are set.
        total_steps: optimiser steps of the whole training; the learning rate falls to a tenth at 95 % of them.
        learning_rate: Adam's.
        weight_decay: Adam's.
        st_weight: of the hard feature loss.
        penalty_weight: of the pretraining penalty.
        ae_weight: of both terms of the autoencoder.
        hard_quantile: see `hard_feature_loss`.
        seed: of the run.
        stored: plain entries that every checkpoint carries, to be checked when it is loaded.
    """

    _validation: Validation

    def __init__(
        self,
        *,
        model: EfficientADModel,
        total_steps: int,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-5,
        st_weight: float = 1.0,
        penalty_weight: float = 1.0,
        ae_weight: float = 1.0,
        hard_quantile: float = 0.999,
        seed: int = 42,
        stored: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.total_steps = total_steps
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.weights = {"st_weight": st_weight, "penalty_weight": penalty_weight, "ae_weight": ae_weight}
        self.hard_quantile = hard_quantile
        self.seed = seed
        self.stored = stored or {}
        self._unchecked: list[Tensor] = []
        self._scores: Scores | None = None

    def losses(self, images: Tensor, augmented: Tensor, penalty: Tensor) -> dict[str, Tensor]:
        """The four `TERMS`, with one pass of the student and one of the teacher.

        Args:
            images: normal, (B, 3, H, W) in [0, 1].
            augmented: the same with other colours.
            penalty: pictures of something else, (P, 3, H, W).
        """
        model, (p, b), c = self.model, (len(penalty), len(images)), self.model.out_channels
        pixels = model.normalized(torch.cat([penalty, images, augmented]))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        described = model.describe(pixels[p:])
        hidden = model.student.hidden(pixels)
        # Each picture needs one half of the student's description only.
        penalised, local = model.student.part(hidden[: p + b], slice(0, c)).split([p, b])
        whole = model.student.part(hidden[p + b :], slice(c, 2 * c))
        predicted = model.autoencoder(pixels[p + b :], (described.shape[-2], described.shape[-1]))
        return {
            "st": hard_feature_loss(local, described[:b], self.hard_quantile),
            "penalty": pretraining_penalty(penalised),
            "ae": distance_loss(predicted, described[b:]),
            "stae": distance_loss(whole, predicted),
        }

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        torch.manual_seed(self.seed * 1_000_003 + batch.number)
        augmented = recoloured(batch.images, seed=self.seed, number=batch.number)
        terms = self.losses(batch.images, augmented, batch.penalty)
        total = total_loss(terms, **self.weights)
        self._stop_unless_finite(terms, total)
        tags = {f"train/{name}_loss": value.detach() for name, value in terms.items()}
        tags |= {
            "train/loss_total": total.detach(),
            "train/learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
        }
        self.log_dict(tags, batch_size=1)
        return total

    def _stop_unless_finite(self, terms: dict[str, Tensor], total: Tensor) -> None:
        self._unchecked.append(torch.stack([*(terms[name].detach() for name in TERMS), total.detach()]))
        if len(self._unchecked) < STEPS_BETWEEN_CHECKS and not self.trainer.is_last_batch:
            return
        values = torch.stack(self._unchecked).cpu()  # (steps, terms and their sum)
        self._unchecked.clear()
        broken = ~torch.isfinite(values)
        if not broken.any():
            return
        row = int(broken.any(dim=1).nonzero()[0])
        names = [name for name, wrong in zip(TERMS, broken[row, :-1].tolist(), strict=True) if wrong]
        step = self.global_step + 1 - (len(values) - 1 - row)  # the last row is of the step that is under way
        raise TrainingDivergedError(
            f"the loss became {values[row, -1].item()} in {', '.join(names) or 'the sum'} at step {step}; "
            "the last checkpoint holds the validation before. Try a lower learning_rate, or precision '32'"
        )

    def on_validation_epoch_start(self) -> None:
        self._validation = Validation(seed=self.seed)

    def validation_step(self, item: Any, batch_idx: int) -> None:
        batch = as_batch(item, split="val")
        # In the training's precision, as the finished model is evaluated: the scale of its maps must be that one.
        images = batch.images.contiguous(memory_format=torch.channels_last)
        self._validation.update(self.model.local_maps(images), batch)

    def on_validation_epoch_end(self) -> None:
        """Every process validates on all images: nothing has to be gathered, and all decide alike."""
        self._scores = self._validation.finish(self.model)
        self.log_dict({f"val/{name}": score for name, score in self._scores._asdict().items()}, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= self.stored | {"scores": {} if self._scores is None else self._scores._asdict()}

    def configure_optimizers(self) -> Any:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        fused = self.device.type in {"cpu", "cuda"}  # one pass over the weights instead of a dozen
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused)
        decay_from = int(0.95 * self.total_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 if step >= decay_from > 0 else 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


# --- Finished runs of EfficientAD and its checkpoints, read back


MAP = "anomaly"
"""Name of the map's file and of its scale."""


@dataclass(frozen=True)
class EfficientADRun(StoredRun[EfficientADSettings]):
    """A finished run of EfficientAD."""

    settings_type = EfficientADSettings
    main_map = MAP

    @cached_property
    def model(self) -> EfficientADModel:
        """The best model, in evaluation mode, on the CPU."""
        model = build_model(self.settings)
        model.load_state_dict(load_file(self.folder / "model.safetensors"))
        return model.eval()

    @property
    def teacher(self) -> str:
        """Where the teacher came from; stands wherever a result of the run is shown."""
        return self.manifest["teacher"]["text"]

    @property
    def penalty(self) -> str:
        """Which images kept the student from imitating the teacher beyond good parts."""
        return self.manifest["penalty"]

    @property
    def scale(self) -> MapScale | None:
        """The absolute scale of the anomaly map, once the run is evaluated; None where validation gave none."""
        return stored_scale(self.metrics)


def build_model(settings: EfficientADSettings) -> EfficientADModel:
    """An untrained model of the settings' architecture, random teacher included."""
    return EfficientADModel(settings.model_size, settings.out_channels, padding=settings.padding)


def stored_scale(summary: dict[str, Any]) -> MapScale | None:
    """The scale that an evaluation's summary holds, if any."""
    values = summary["map_scales"].get(MAP)
    return None if values is None else MapScale(**values)


def load_efficientad(folder: str | Path) -> EfficientADRun:
    """Read a finished run of EfficientAD.

    Raises:
        RunError: there is no run in the folder, it is not finished, or it is one of a GAIN-MTL strategy.
    """
    run = open_run(folder)
    if isinstance(run, EfficientADRun):
        return run
    strategy = run.manifest["strategy"]
    raise RunError(f"{run.folder}: a run of strategy {strategy}, not of EfficientAD; see gainmtl evaluate --help")


def open_run(folder: str | Path) -> Run | EfficientADRun:
    """Read a finished run of either system.

    Raises:
        RunError: there is no run in the folder, or it is not finished.
    """
    folder = finished_folder(folder)
    return EfficientADRun(folder) if system_of(folder) == EFFICIENTAD else load_run(folder)


class CheckpointModel(NamedTuple):
    """What a checkpoint file holds for prediction.

    Attributes:
        model: in evaluation mode, on the CPU.
        settings: those it was trained with.
        teacher: as `EfficientADRun.teacher`.
    """

    model: EfficientADModel
    settings: EfficientADSettings
    teacher: str


def load_checkpoint(path: str | Path) -> CheckpointModel:
    """The model of a checkpoint file.

    Raises:
        RunError: no checkpoint that can be read safely, or one of GAIN-MTL.
    """
    checkpoint = read_checkpoint(path)
    if "teacher" not in checkpoint:
        raise RunError(f"{path}: a checkpoint of a GAIN-MTL strategy, not of EfficientAD; see gainmtl evaluate --help")
    settings = EfficientADSettings(**checkpoint["gainmtl_settings"])
    model = build_model(settings)
    prefix = "model."
    weights = checkpoint["state_dict"]
    model.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    return CheckpointModel(model.eval(), settings, checkpoint["teacher"]["text"])


# --- Which of EfficientAD's checkpoints are kept, when a training stops early, and how it shows that it i


logger = logging.getLogger(__name__)

KEPT = 3
"""How many of the best validations keep a checkpoint of their own."""


class Validated(NamedTuple):
    """One validation: how many steps were done, and its scores, rounded; NaN counts as lowest."""

    step: int
    image_auroc: float
    pixel_auroc: float


class History:
    """All validations of a training so far, in order.

    Args:
        validated: those that are known.
    """

    def __init__(self, validated: list[Validated] | None = None) -> None:
        self.validated = validated or []

    def add(self, step: int, image_auroc: float, pixel_auroc: float) -> None:
        """Note the next one."""
        image, pixel = (-math.inf if math.isnan(score) else round(score, 6) for score in (image_auroc, pixel_auroc))
        self.validated.append(Validated(step, image, pixel))

    @property
    def ranked(self) -> list[Validated]:
        """From the best on: by image AUROC, then pixel AUROC, then the earlier."""
        return sorted(self.validated, key=lambda one: (-one.image_auroc, -one.pixel_auroc, one.step))

    @property
    def without_improvement(self) -> int:
        """How many validations came after the best one."""
        return sum(one.step > self.ranked[0].step for one in self.validated) if self.validated else 0


class StepCheckpoints(Checkpoint):
    """``last.ckpt`` at every validation, ``best.ckpt``, and ``step_<n>.ckpt`` of the `KEPT` best validations.

    Stops the training once `patience` validations brought no better one.

    Args:
        folder: where they go.
        patience: None trains to the end.
    """

    def __init__(self, folder: Path, *, patience: int | None) -> None:
        self.folder = folder
        self.patience = patience
        self.history = History()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics, step = trainer.callback_metrics, trainer.global_step
        self.history.add(step, float(metrics["val/image_auroc"]), float(metrics["val/pixel_auroc"]))
        kept = [one.step for one in self.history.ranked[:KEPT]]
        if kept[0] == step:
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=True)
        if step in kept:
            trainer.save_checkpoint(self._path(step), weights_only=False)
        # The last one written: killed before it, the training repeats the interval and with it the others.
        trainer.save_checkpoint(self.folder / "last.ckpt", weights_only=False)
        if trainer.is_global_zero:
            self._prune(kept)
        if stops_early(self.history, self.patience):
            trainer.should_stop = True
            if trainer.is_global_zero:
                logger.info("stops at step %d: no better validation since step %d", step, kept[0])

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step}.ckpt"

    def _prune(self, kept: list[int]) -> None:
        for path in set(self.folder.glob("step_*.ckpt")) - {self._path(step) for step in kept}:
            path.unlink()

    def state_dict(self) -> dict[str, Any]:
        return {"validated": [list(one) for one in self.history.validated]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Scores whose files stayed elsewhere are left there: they would let no later one be the best."""
        if (self.folder / "best.ckpt").is_file():
            self.history = history_of(state_dict)


def history_of(state: dict[str, Any]) -> History:
    """From what `StepCheckpoints` left in a checkpoint."""
    return History([Validated(int(step), image, pixel) for step, image, pixel in state["validated"]])


def stops_early(history: History, patience: int | None) -> bool:
    """Whether `patience` validations brought no better one."""
    return patience is not None and history.without_improvement >= patience


class StepLog(Callback):
    """One line per validation, and one every `interval` seconds in between. The loss is the mean since a validation.

    Args:
        total: optimiser steps of the whole training.
        interval: in seconds.
    """

    def __init__(self, total: int, *, interval: float = 15.0) -> None:
        self.total = total
        self.interval = interval
        self._losses: list[Tensor] = []
        self._started = self._said = 0.0
        self._first = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = self._said = time.monotonic()
        self._first = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(outputs["loss"].detach())
        if time.monotonic() - self._said > self.interval:
            self._say(trainer, "")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scores = (float(trainer.callback_metrics[f"val/{name}_auroc"]) for name in ("image", "pixel"))
        self._say(trainer, "validation image AUROC {:.3f}, pixel AUROC {:.3f}; ".format(*scores))
        self._losses.clear()

    def _say(self, trainer: L.Trainer, validation: str) -> None:
        if not trainer.is_global_zero:
            return
        self._said = time.monotonic()
        step = trainer.global_step
        speed = (step - self._first) / max(self._said - self._started, 1e-9)
        logger.info(
            "step %d of %d: loss %.3f; %s%.2f steps/s, about %s left",
            step,
            self.total,
            torch.stack(self._losses).mean().item(),
            validation,
            speed,
            _duration((self.total - step) / max(speed, 1e-9)),
        )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# --- From settings to a finished run of EfficientAD


LOGGED_EVERY = 10
"""Steps between two points of a curve."""


def fit_efficientad(
    settings: EfficientADSettings,
    *,
    provider: DatasetProvider | None = None,
    resume: str | Path | None = None,
    force: bool = False,
) -> EfficientADRun:
    """Train EfficientAD, or return its finished run.

    A finished run with equal settings on equal data is returned as it is. An unfinished one goes on from its last
    validation.

    Args:
        settings: of the run; they decide its folder.
        provider: of the pictures, in place of the one that the settings describe. On several devices it is sent to
            other processes, so that its class must lie in a module.
        resume: checkpoint to go on from, in place of the folder's own last one.
        force: start anew, dropping what the folder holds.

    Raises:
        RunError: the folder is in use or holds a run with other settings or data; the run is finished already;
            the checkpoint is none or of another training (see `resumed_checkpoint`), or both `resume` and `force` were
            asked for.
        DataError: the data cannot be used.
        ModelError: the teacher cannot be used, or the validation maps give no scale.
        DeviceError: the machine lacks what the settings ask for.
        TrainingDivergedError: a loss became NaN or infinite.
    """
    check_intent(settings.run_dir, resume=resume, force=force)
    with claim(settings, force=force) as folder:
        finished = is_finished(folder, resume=resume)
        data = build_provider(settings) if provider is None else provider
        previous = previous_manifest(folder, digest=data.digest)
        if finished:
            logger.info("reusing the finished run in %s", folder)
        else:
            _train(settings, data, folder, resume, previous)
    return EfficientADRun(folder)


def _train(
    settings: EfficientADSettings,
    provider: DatasetProvider,
    folder: Path,
    resume: str | Path | None,
    previous: Mapping[str, Any],
) -> None:
    L.seed_everything(settings.seed, verbose=False)
    # What settings alone can get wrong comes before pictures are decoded.
    device = _device(settings)
    state, teacher = teacher_of(settings)
    penalty = build_penalty(settings)
    digest = penalty.digest
    check_unchanged(folder, "the folder penalty_images", previous.get("penalty_digest", digest), digest)
    feed = _feed(settings, provider, penalty)
    continuity = _continuity(settings, feed.total_steps)
    checkpoint = resumed_checkpoint(folder, settings, resume, continuity)
    if checkpoint is not None:
        _check_teacher(checkpoint, teacher)
    model = build_model(settings)
    if checkpoint is None:
        _set_teacher(model, state, settings, provider, device)
    manifest = _describe(settings, feed, model, device) | {"teacher": teacher, "data_digest": provider.digest}
    with recorded(folder, manifest | {"duration_s": previous.get("duration_s", 0)}) as manifest:
        if checkpoint is None or not continuity.complete(read_checkpoint(checkpoint)):
            module = _module(settings, model, feed.total_steps, teacher)
            forget_foreign_best(folder, checkpoint)
            logger.info("teacher: %s; penalty images: %s", teacher["text"], penalty.text)
            fit_interruptibly(_trainer(settings, device, folder, feed), module, feed, checkpoint)
        manifest |= _leave_best(folder)


def _device(settings: EfficientADSettings) -> torch.device:
    device = checked_device(settings.accelerator)
    check_count(device, settings.devices)
    lightning_precision(settings.precision, device)
    return device


def _feed(settings: EfficientADSettings, provider: DatasetProvider, penalty: PenaltyImages) -> TrainingFeed:
    check_validation(provider)
    batch_size, seed, workers = settings.train_batch_size, settings.seed, settings.num_workers
    stream = TrainStream(provider, penalty, batch_size=batch_size, seed=seed)
    return TrainingFeed(
        provider,
        penalty,
        total_steps=total_steps(settings, batches=stream.steps_per_pass),
        every=settings.val_every_n_steps,
        batch_size=batch_size,
        seed=seed,
        num_workers=workers,
    )


def total_steps(settings: EfficientADSettings, *, batches: int) -> int:
    """Optimiser steps of the whole training: `max_steps`, or those of `max_epochs` where they are fewer.

    Args:
        settings: of the run.
        batches: of one pass over the training images; each device takes one a step.
    """
    if settings.max_epochs is None:
        return settings.max_steps
    return min(settings.max_steps, settings.max_epochs * math.ceil(batches / settings.devices))


def _continuity(settings: EfficientADSettings, total: int) -> Continuity:
    patience = _patience(settings)

    def complete(checkpoint: Mapping[str, Any]) -> bool:
        history = history_of(checkpoint["callbacks"][StepCheckpoints.__qualname__])
        return checkpoint["global_step"] >= total or stops_early(history, patience)

    return Continuity(
        architecture=("model_size", "out_channels", "padding"),
        plan=(
            "max_steps", "max_epochs", "train_batch_size", "devices", "val_every_n_steps", "learning_rate",
            "weight_decay", "st_weight", "penalty_weight", "ae_weight", "hard_quantile",
        ),
        follows="the learning rate follows",
        periodic="step_<n>.ckpt",
        done=lambda checkpoint: f"{checkpoint['global_step']} steps",
        complete=complete,
    )  # fmt: skip


def _patience(settings: EfficientADSettings) -> int | None:
    return settings.patience if settings.early_stopping else None


def _set_teacher(
    model: EfficientADModel,
    state: StateDict,
    settings: EfficientADSettings,
    provider: DatasetProvider,
    device: torch.device,
) -> None:
    """Fill the model's teacher and measure its channels over the training images, on the device."""
    load_teacher(model, state)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with inference_autocast(settings.precision, device):
        measure_teacher(model, (as_batch(item, split="train").images for item in provider.get_train_dataloader()))
    model.cpu()


def _check_teacher(path: Path, teacher: Mapping[str, Any]) -> None:
    stored = read_checkpoint(path)["teacher"]
    if any(stored.get(key) != teacher.get(key) for key in ("kind", "digest", "seed")):
        raise RunError(
            f"{path}: a checkpoint with another teacher (stored and asked for): {stored['text']} and "
            f"{teacher['text']}; the student has learned to imitate the first: set 'teacher' (random: 'seed') to it, "
            "or start anew"
        )


def _module(
    settings: EfficientADSettings, model: EfficientADModel, total: int, teacher: dict[str, Any]
) -> EfficientADTraining:
    return EfficientADTraining(
        model=model,
        total_steps=total,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        st_weight=settings.st_weight,
        penalty_weight=settings.penalty_weight,
        ae_weight=settings.ae_weight,
        hard_quantile=settings.hard_quantile,
        seed=settings.seed,
        stored={"gainmtl_settings": settings.plain(), "teacher": teacher},
    )


def _trainer(settings: EfficientADSettings, device: torch.device, folder: Path, feed: TrainingFeed) -> L.Trainer:
    return L.Trainer(
        accelerator=device.type,
        devices=settings.devices,
        strategy=FreshProcesses() if settings.devices > 1 else "auto",
        precision=lightning_precision(settings.precision, device),  # type: ignore[arg-type]
        max_epochs=feed.intervals,
        reload_dataloaders_every_n_epochs=1,  # the next interval of steps
        use_distributed_sampler=False,  # each process knows its share
        benchmark=device.type == "cuda",
        logger=event_loggers(settings),
        callbacks=[
            StepCheckpoints(folder / "checkpoints", patience=_patience(settings)),
            StepLog(feed.total_steps),
        ],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=min(LOGGED_EVERY, feed.every, feed.total_steps),
        default_root_dir=folder,
    )


def _describe(
    settings: EfficientADSettings, feed: TrainingFeed, model: EfficientADModel, device: torch.device
) -> dict[str, Any]:
    return circumstances(device=device, precision=settings.precision) | {
        "strategy": EFFICIENTAD,
        "seed": settings.seed,
        "devices": settings.devices,
        "penalty": feed.penalty.text,
        "penalty_digest": feed.penalty.digest,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "split_sizes": feed.provider.split_sizes,
        "total_steps": feed.total_steps,
    }


def _leave_best(folder: Path) -> dict[str, Any]:
    """Write the best weights; tell where they come from. Read from files: other processes may have trained."""
    best = folder / "checkpoints" / "best.ckpt"
    save_weights(load_checkpoint(best).model, folder / "model.safetensors")
    checkpoint = read_checkpoint(best)
    scores = checkpoint["scores"]
    return {
        "steps": read_checkpoint(best.with_name("last.ckpt"))["global_step"],
        "best_step": checkpoint["global_step"],
        "best_val_auroc": scores["image_auroc"],
        "best_val_pixel_auroc": scores["pixel_auroc"],
    }
