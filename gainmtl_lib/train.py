"""Where to compute and in which precision: names that a user writes, checked, in the words of Lightning and PyTorch."""

from __future__ import annotations

import logging
import math
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torchmetrics.classification import BinaryAccuracy, BinaryAveragePrecision

from gainmtl_lib.dataset import Batch, GainDataModule, build_data
from gainmtl_lib.losses import GainLoss, Schedule, focal_alpha, mask_blend_alpha
from gainmtl_lib.metrics import CamIoU
from gainmtl_lib.model import GAINMTLModel, GainOutput, build_model
from gainmtl_lib.runs import (
    Run,
    RunError,
    atomic_path,
    claim,
    load_checkpoint_model,
    read_checkpoint,
    read_json,
    run_status,
    save_weights,
    write_json,
)
from gainmtl_lib.settings import TERMS, Precision, RunSettings, Settings, repository_root


class DeviceError(ValueError):
    """A device or a precision that this machine does not have."""


def checked_device(name: str) -> torch.device:
    """The device of ``auto`` (CUDA, else MPS, else the CPU), ``cpu``, ``mps``, ``cuda`` or ``cuda:<k>``.

    Raises:
        DeviceError: another name, or it is not there.
    """
    if not re.fullmatch(r"auto|cpu|mps(:0)?|cuda(:\d+)?", name):
        raise DeviceError(f"device is '{name}'; expected auto, cpu, mps, cuda or cuda:<k>")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device is '{name}', but {torch.cuda.device_count()} CUDA devices are available; use 'auto'")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device is 'mps', but this machine has none; use 'auto'")
    return device


def check_count(device: torch.device, count: int) -> None:
    """Raises `DeviceError`: this machine has fewer devices of that kind. On the CPU each is a process."""
    available = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type, count)
    if count > available:
        raise DeviceError(
            f"devices is {count}, but {available} of kind '{device.type}' {'is' if available == 1 else 'are'} available"
        )


def lightning_precision(name: str, device: torch.device) -> str:
    """Lightning's name of ``auto`` (fp16 AMP on CUDA, bf16 AMP on the CPU, else single), ``32``, ``bf16`` or ``16``.

    Raises:
        DeviceError: fp16 on the CPU, which has no gradient scaling.
    """
    if name == "auto":
        name = {"cuda": "16", "cpu": "bf16"}.get(device.type, "32")
    if name == "16" and device.type == "cpu":
        raise DeviceError("precision '16' needs a GPU; on the CPU use 'bf16' or '32'")
    return {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true"}[name]


def inference_autocast(name: str, device: torch.device) -> torch.autocast:
    """The precision of `lightning_precision` for computing without training; fp16 becomes bf16 on the CPU.

    Args:
        name: ``auto``, ``32``, ``bf16`` or ``16``, of the training.
        device: where it is computed now, which may be another one.
    """
    if name == "16" and device.type == "cpu":
        name = "bf16"
    half = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(lightning_precision(name, device))
    return torch.autocast(device.type, half or torch.float32, enabled=half is not None)


# --- Which defect mask gates attention in S6's training


class MaskMixer:
    """Draws attention masks for training batches from a bank of the training set's defect masks.

    Defects with an annotation get their own mask with `own_prob`, another sample's with `other_prob`, none
    otherwise. All other images get another sample's with `own_prob + other_prob`, none otherwise. An annotated
    defect that is the only one in the bank has no other: it gets its own instead, so that masks stay as frequent
    there as elsewhere. With an empty bank nobody gets a mask.

    Args:
        masks: (index of the sample, its mask (1, H, W) in [0, 1]) of each annotated training defect, resized to
            the network's input but not augmented; with index None masks that no sample has as it is stored, such
            as those of pasted defects. Read once.
        grid: (h, w) of the attention.
        own_prob, other_prob: as above.
        hflip_prob, vflip_prob, rotate90_prob: the training augmentation's, applied to masks from the bank as
            the images' own masks have gone through it: an oblong grid is turned by 180° only.
    """

    def __init__(
        self,
        masks: Iterable[tuple[int | None, Tensor]],
        *,
        grid: tuple[int, int],
        own_prob: float,
        other_prob: float,
        hflip_prob: float = 0.0,
        vflip_prob: float = 0.0,
        rotate90_prob: float = 0.0,
    ) -> None:
        if min(own_prob, other_prob) < 0 or own_prob + other_prob > 1:
            raise ValueError(
                f"own_prob and other_prob must be probabilities whose sum is at most 1, got {own_prob} and {other_prob}"
            )
        pairs = [(index, F.adaptive_avg_pool2d(mask.float(), grid)) for index, mask in masks]
        self.grid = grid
        self.own_prob = own_prob
        self.other_prob = other_prob
        self.flip_probs = (hflip_prob, vflip_prob, rotate90_prob)
        self.bank = torch.stack([mask for _, mask in pairs]) if pairs else torch.zeros(0, 1, *grid)  # (N, 1, h, w)
        owned = [(int(index), row) for row, (index, _) in enumerate(pairs) if index is not None]
        self.place = dict(owned)
        if len(self.place) < len(owned):
            raise ValueError(f"each sample may bring one mask, got {len(owned)} masks of {len(self.place)} samples")

    def draw(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """One mask or none for each image of a training batch.

        Args:
            batch: its masks are the images' own, already augmented.
            generator: a CPU generator; the global one when None.

        Returns:
            Masks (B, 1, h, w) in [0, 1], zero where there is none, and which images have one, bool (B,).
        """
        size = len(batch.labels)
        chance, pick = torch.rand(2, size, generator=generator)
        turned = self._augmented(self._others(batch.index.tolist(), pick), generator)

        annotated = (batch.has_mask & (batch.labels == 1)).cpu()
        known = torch.tensor([int(index) in self.place for index in batch.index.tolist()], dtype=torch.bool)
        others_exist = len(self.bank) - known.long() > 0  # (B,)
        wanted = chance < self.own_prob + self.other_prob
        own = wanted & annotated & ((chance < self.own_prob) | ~others_exist)
        other = wanted & ~own & others_exist
        if not len(self.bank):
            own = torch.zeros_like(own)

        device = batch.masks.device
        own, other = own.to(device), other.to(device)
        masks = F.adaptive_avg_pool2d(batch.masks.float(), self.grid) * own[:, None, None, None]
        return masks + turned.to(device) * other[:, None, None, None], own | other

    def _others(self, indices: list[int], pick: Tensor) -> Tensor:
        """For each sample a mask of the bank that is not its own, by pick in [0, 1); zeros where there is none."""
        chosen = torch.zeros(len(indices), 1, *self.grid)
        for row, index in enumerate(indices):
            own = self.place.get(index)
            candidates = len(self.bank) - (own is not None)
            if candidates:
                place = min(int(pick[row] * candidates), candidates - 1)
                chosen[row] = self.bank[place + (own is not None and place >= own)]  # step over the own one
        return chosen

    def _augmented(self, masks: Tensor, generator: torch.Generator | None) -> Tensor:
        """Each mask mirrored and turned on its own draw, as the images' augmentation does."""
        hflip, vflip, rotate = torch.rand(3, len(masks), generator=generator) < torch.tensor(self.flip_probs)[:, None]
        square = self.grid[0] == self.grid[1]  # RandomRotate90: 0 to 3 quarter turns
        turns = rotate * (torch.randint(4, (len(masks),), generator=generator) if square else 2)
        masks = torch.where(hflip[:, None, None, None], masks.flip(3), masks)
        masks = torch.where(vflip[:, None, None, None], masks.flip(2), masks)
        if not rotate.any():
            return masks
        return torch.stack([mask.rot90(int(k), dims=(1, 2)) for mask, k in zip(masks, turns, strict=True)])


# --- The training step as Lightning runs it


class TrainingDivergedError(RuntimeError):
    """A loss became NaN or infinite; names the term, the step and what to try."""


class GainTraining(L.LightningModule):
    """One optimisation of a `GAINMTLModel`.

    Everything random in an epoch (dropout, mask mixing) follows from (seed, epoch), so that a resumed
    run repeats what an uninterrupted one does.

    Args:
        model: what is trained.
        loss: the seven terms.
        schedule: which weights are in force at which fraction of the training.
        mixer: draws S6's attention masks; None for other strategies.
        learning_rate: Adam's, decayed to zero along a cosine.
        seed: of the run.
        stored_settings: plain settings that every checkpoint carries, to be checked when it is loaded.
    """

    def __init__(
        self,
        *,
        model: GAINMTLModel,
        loss: GainLoss,
        schedule: Schedule,
        mixer: MaskMixer | None,
        learning_rate: float,
        seed: int,
        stored_settings: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.schedule = schedule
        self.mixer = mixer
        self.learning_rate = learning_rate
        self.seed = seed
        self.stored_settings = stored_settings
        self.accuracy = BinaryAccuracy()
        self.average_precision = BinaryAveragePrecision()
        self.cam_iou = CamIoU()

    @property
    def progress(self) -> float:
        """Fraction of all optimiser steps that are done, in [0, 1]."""
        return self.global_step / max(int(self.trainer.estimated_stepping_batches), 1)

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.seed * 1_000_003 + self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        weights = self.schedule.weights(self.progress)
        losses = self.loss(self._forward_training(batch, weights), batch, weights)
        self._stop_unless_finite(losses)
        self._log_losses(losses)
        return losses["total"]

    def _forward_training(self, batch: Batch, weights: dict[str, float]) -> GainOutput:
        images = batch.images.contiguous(memory_format=torch.channels_last)
        masks = batch.masks if weights["cf"] > 0 else None
        if self.mixer is None:
            return self.model(images, masks)
        attention_masks, has_attention_mask = self.mixer.draw(batch)
        return self.model(
            images,
            masks,
            attention_masks=attention_masks,
            has_attention_mask=has_attention_mask,
            attention_alpha=mask_blend_alpha(self.progress),
        )

    def _stop_unless_finite(self, losses: dict[str, Tensor]) -> None:
        if torch.isfinite(losses["total"]):
            return
        broken = [name for name, value in losses.items() if name != "total" and not torch.isfinite(value)]
        raise TrainingDivergedError(
            f"the loss became {losses['total'].item()} in {', '.join(broken) or 'the sum'} at epoch "
            f"{self.current_epoch + 1}, step {self.global_step}; the last checkpoint holds the epoch before. "
            "Try a lower learning_rate, or precision '32'"
        )

    def _log_losses(self, losses: dict[str, Tensor]) -> None:
        tags = {f"train/loss_{name}": value.detach() for name, value in losses.items()}
        tags["train/learning_rate"] = torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"])
        tags["train/stage"] = torch.tensor(float(self.schedule.stage(self.progress)))
        self.log_dict(tags, on_step=True, on_epoch=False, batch_size=1)
        self.log("compare/total_train", losses["total"].detach(), on_step=False, on_epoch=True, batch_size=1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        weights = self.schedule.weights(min(self.progress, 1 - 1e-9))
        output = self.model(
            batch.images.contiguous(memory_format=torch.channels_last), batch.masks if weights["cf"] > 0 else None
        )
        losses = self.loss(output, batch, weights)
        prob = output.logits.float().softmax(dim=1)[:, 1]
        self.accuracy.update(prob, batch.labels)
        self.average_precision.update(prob, batch.labels)
        self.cam_iou.update(output.cam.float(), batch.masks * batch.has_mask[:, None, None, None])
        size = len(batch.labels)
        self.log("val/val_total", losses["total"], on_epoch=True, batch_size=size)
        self.log("val/val_cls", losses["cls"] if "cls" in losses else losses["total"], on_epoch=True, batch_size=size)
        self.log("compare/total_val", losses["total"], on_epoch=True, batch_size=size)

    def on_validation_epoch_end(self) -> None:
        self.log("val/accuracy", self.accuracy.compute())
        self.log("val/average_precision", self.average_precision.compute())
        self.log("val/cam_iou", self.cam_iou.compute())
        for metric in (self.accuracy, self.average_precision, self.cam_iou):
            metric.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gainmtl_settings"] = self.stored_settings

    def configure_optimizers(self) -> Any:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        fused = self.device.type in {"cpu", "cuda"}  # one pass over the weights instead of a dozen
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate, fused=fused)
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


# --- Which checkpoints a run keeps (last, periodic, best), and that none is ever half-written.


logger = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that an interruption leaves the checkpoint before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with atomic_path(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


class RunCheckpoints(Checkpoint):
    """``last.ckpt`` after every epoch, ``epoch_<n>.ckpt`` every few, ``best.ckpt`` within the final stage.

    Best is the highest validation average precision, ties by CAM-IoU. It is looked for in the final stage
    only, the same window for every strategy: before stage 2 the deciding head of S3-S7 is untrained.

    Args:
        folder: where they go.
        every_n_epochs: distance of the periodic ones.
        window_start: fraction of the training after which an epoch's end can be the best.
    """

    def __init__(self, folder: Path, *, every_n_epochs: int, window_start: float) -> None:
        self.folder = folder
        self.every_n_epochs = every_n_epochs
        self.window_start = window_start
        self.best_score = (-math.inf, -math.inf)
        self.best_epoch: int | None = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        score = self._score(trainer)
        # The last epoch always counts: with a short final stage no epoch may end inside it otherwise.
        is_best = (epoch == epochs or epoch / epochs > self.window_start + 1e-9) and score > self.best_score
        if is_best:
            self.best_score, self.best_epoch = score, epoch
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=True)
        if epoch % self.every_n_epochs == 0:
            trainer.save_checkpoint(self.folder / f"epoch_{epoch}.ckpt", weights_only=False)
        trainer.save_checkpoint(self.folder / "last.ckpt", weights_only=False)

    def _score(self, trainer: L.Trainer) -> tuple[float, float]:
        values = (trainer.callback_metrics.get(tag) for tag in ("val/average_precision", "val/cam_iou"))
        ap, iou = (-math.inf if value is None or not math.isfinite(value) else float(value) for value in values)
        return round(ap, 6), iou

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": list(self.best_score), "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A score whose file stayed elsewhere is left there: it would let no later epoch be the best."""
        if not (self.folder / "best.ckpt").is_file():
            return
        self.best_score = tuple(state_dict["best_score"])
        self.best_epoch = state_dict["best_epoch"]


class EpochLog(Callback):
    """One line per epoch, and one every `interval` seconds inside a long one."""

    def __init__(self, interval: float = 15.0) -> None:
        self.interval = interval
        self._epoch_started = self._said = self._fit_started = 0.0
        self._first_epoch = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fit_started = time.monotonic()
        self._first_epoch = trainer.current_epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_started = self._said = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if time.monotonic() - self._said > self.interval:
            self._said = time.monotonic()
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            logger.info("epoch %d: step %d of %s", trainer.current_epoch + 1, done, trainer.num_training_batches)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics, epoch = trainer.callback_metrics, trainer.current_epoch + 1
        now = time.monotonic()
        remaining = (now - self._fit_started) / (epoch - self._first_epoch) * ((trainer.max_epochs or 1) - epoch)
        logger.info(
            "epoch %d of %s: stage %d, loss %.3f, validation AP %.3f, CAM-IoU %.3f; %.0f s, about %.0f s left",
            epoch,
            trainer.max_epochs,
            int(metrics.get("train/stage", 0)),
            float(metrics.get("compare/total_train", math.nan)),
            float(metrics.get("val/average_precision", math.nan)),
            float(metrics.get("val/cam_iou", math.nan)),
            now - self._epoch_started,
            remaining,
        )


# --- Whether a training may go on from a checkpoint


@dataclass(frozen=True)
class Continuity:
    """What a training has in common with the checkpoint that it goes on from.

    Attributes:
        architecture: settings that decide which weights a model has.
        plan: settings that decide how each step is made, as part of the whole training.
        follows: what of a step follows the whole training, for the error.
        periodic: name of the checkpoints beside ``last.ckpt`` that can be gone on from, for the error.
        done: what a checkpoint's training has behind it, in words.
        complete: whether nothing is left to train.
    """

    architecture: tuple[str, ...]
    plan: tuple[str, ...]
    follows: str
    periodic: str
    done: Callable[[Mapping[str, Any]], str]
    complete: Callable[[Mapping[str, Any]], bool]


def checkpoint_to_resume(folder: Path, settings: Settings, resume: str | Path | None) -> Path | None:
    """`resumed_checkpoint` for the training of a strategy."""
    return resumed_checkpoint(folder, settings, resume, _gain_mtl(settings))


def _gain_mtl(settings: Settings) -> Continuity:
    return Continuity(
        architecture=(
            "strategy", "backbone_arch", "out_indices", "fpn_channels", "attention_channels", "head_channels",
            "map_stride", "map_channels", "use_counterfactual", "counterfactual_mode",
        ),
        plan=(
            "num_epochs", "batch_size", "learning_rate", "stage1_ratio", "stage2_ratio", "stage3_ratio",
            "stage4_ratio", "loc_warmup_ratio", *(f"lambda_{term}" for term in TERMS),
        ),
        follows="the learning rate and the stages follow",
        periodic="epoch_<n>.ckpt",
        done=lambda checkpoint: f"{checkpoint['epoch'] + 1} epochs",
        complete=lambda checkpoint: checkpoint["epoch"] + 1 >= settings.num_epochs,
    )  # fmt: skip


def resumed_checkpoint(
    folder: Path, settings: RunSettings, resume: str | Path | None, continuity: Continuity
) -> Path | None:
    """The checkpoint that a training goes on from; None when it starts at the beginning.

    Args:
        folder: of the run.
        settings: of the run.
        resume: checkpoint asked for, in place of the folder's own last one.
        continuity: what the two must have in common.

    Raises:
        RunError: it is no checkpoint, holds no optimiser state, belongs to another model or to a training with
            another plan, or nothing is left to train.
    """
    own = folder / "checkpoints"
    path = own / "last.ckpt" if resume is None else Path(resume)
    if resume is None and not path.is_file():
        return None
    checkpoint = read_checkpoint(path)
    _check_model_and_plan(path, checkpoint["gainmtl_settings"], settings.plain(), continuity)
    if "optimizer_states" not in checkpoint:
        raise RunError(f"{path}: holds weights but no optimiser state; resume from last.ckpt or {continuity.periodic}")
    done = continuity.done(checkpoint)
    best = own / "best.ckpt"
    if continuity.complete(checkpoint) and (_is_foreign(path, folder) or not best.is_file()):
        raise RunError(f"{path}: all {done} are done, and {best} is not theirs; resume from an earlier checkpoint")
    logger.info("going on from %s, after %s", path, done)
    return path


def forget_foreign_best(folder: Path, checkpoint: Path | None) -> None:
    """Remove the run's best checkpoint where another training than its own goes on, once that begins."""
    if checkpoint is not None and _is_foreign(checkpoint, folder):
        (folder / "checkpoints" / "best.ckpt").unlink(missing_ok=True)


def _is_foreign(checkpoint: Path, folder: Path) -> bool:
    return checkpoint.resolve().parent != (folder / "checkpoints").resolve()


def _check_model_and_plan(
    path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any], continuity: Continuity
) -> None:
    if differing := _differing(continuity.architecture, stored, asked):
        raise RunError(f"{path}: a checkpoint of another model (stored and asked for):\n  {differing}")
    if differing := _differing(continuity.plan, stored, asked):
        raise RunError(
            f"{path}: a checkpoint of a training with another plan (stored and asked for):\n  {differing}\n"
            f"{continuity.follows} the whole training, of which a checkpoint is a part; keep these "
            "values, or start a new run without --resume"
        )


def _differing(names: Iterable[str], stored: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    pairs = ((name, stored.get(name), asked[name]) for name in names)
    return "\n  ".join(f"{name}: {before!r} and {now!r}" for name, before, now in pairs if before != now)


# --- One training in a run's folder, of either system


RECORDED_PACKAGES = (
    "gainmtl", "torch", "torchvision", "timm", "mmpretrain", "mmcv-lite", "lightning", "torchmetrics",
    "albumentations", "opencv-python-headless", "numpy", "pandas",
)  # fmt: skip


def check_intent(folder: Path, *, resume: str | Path | None, force: bool) -> None:
    """Raises `RunError`: a checkpoint to go on from and a new start were both asked for."""
    if force and resume is not None:
        raise RunError(
            f"{folder}: --resume goes on from a checkpoint, --force drops what is there and starts anew; "
            "give one of them (resume=…, force=True)"
        )


def is_finished(folder: Path, *, resume: str | Path | None) -> bool:
    """Whether the run is complete.

    Raises:
        RunError: it is, and a checkpoint to go on from was asked for.
    """
    finished = run_status(folder) == "complete"
    if finished and resume is not None:
        raise RunError(f"{folder}: the run is finished; there is nothing to resume (--force starts anew)")
    return finished


def previous_manifest(folder: Path, *, digest: str) -> dict[str, Any]:
    """What an earlier start of the run recorded, empty for the first.

    Raises:
        RunError: the data is no longer what that start read.
    """
    if run_status(folder) == "new":
        return {}
    manifest = read_json(folder / "manifest.json")
    check_unchanged(folder, "the data", manifest["data_digest"], digest)
    return manifest


def check_unchanged(folder: Path, what: str, before: str, now: str) -> None:
    """Raises `RunError`: files that a run reads have another digest than when it was started."""
    if before != now:
        raise RunError(
            f"{folder}: {what} changed since this run was started (digest {before[:12]} then, "
            f"{now[:12]} now); change 'experiment', or start anew with --force (force=True)"
        )


@contextmanager
def recorded(folder: Path, manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Keep the manifest beside a training: running meanwhile, complete once the block ends without an error.

    Args:
        folder: of the run.
        manifest: what is known at the start, `duration_s` of earlier starts included; what the block adds is written.
    """
    started, before = time.monotonic(), manifest["duration_s"]
    path = folder / "manifest.json"
    write_json(path, manifest | {"status": "running"})
    status = "running"
    try:
        yield manifest
        status = "complete"
    finally:
        manifest["duration_s"] = round(before + time.monotonic() - started, 1)
        write_json(path, manifest | {"status": status})


def circumstances(*, device: torch.device, precision: Precision) -> dict[str, Any]:
    """Manifest entries that tell when, on what and with which packages a training runs."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": lightning_precision(precision, device),
        "versions": {name: _version(name) for name in RECORDED_PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def event_loggers(settings: RunSettings) -> list[Logger]:
    """TensorBoard's, unless the settings switch it off."""
    if not settings.use_tensorboard:
        return []
    where = settings.tensorboard_folder
    return [TensorBoardLogger(where.parent, name=where.name, version="", default_hp_metric=False)]


def fit_interruptibly(
    trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule, checkpoint: Path | None
) -> None:
    """Lightning answers Ctrl-C by leaving the process with the signal ignored; a notebook must survive it."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        signal.signal(signal.SIGINT, handler)
        logger.info("interrupted; the same call goes on from the last checkpoint")
        raise KeyboardInterrupt from None


# --- From settings to a finished run


EVALUATED = ("image_size", "resize", "skip_unreadable")
"""Settings by which data shows validation and test pictures in another way."""
TRAINED = (
    *EVALUATED,
    "batch_size", "seed", "seed_of_split", "image_counterfactual", "mask_share", "mask_quality",
    "hflip_prob", "vflip_prob", "rotate90_prob", "color_jitter_prob", "gaussian_noise_prob",
)  # fmt: skip
"""Those that training pictures depend on."""


def data_differences(data: GainDataModule, settings: Settings, names: tuple[str, ...]) -> list[str]:
    """One line for each of the named settings that `data` was built with another value of."""
    pairs = ((name, getattr(data.settings, name), getattr(settings, name)) for name in names)
    return [f"{name}: {own!r} and {asked!r}" for name, own, asked in pairs if own != asked]


def fit(
    settings: Settings,
    *,
    data: GainDataModule | None = None,
    resume: str | Path | None = None,
    force: bool = False,
) -> Run:
    """Train one strategy, or return its finished run.

    A finished run with equal settings on equal data is returned as it is. An unfinished one goes on from
    its last checkpoint.

    Args:
        settings: of the run; they decide its folder.
        data: what `build_data(settings)` gave, where the caller has it already.
        resume: checkpoint to go on from, in place of the folder's own last one.
        force: start anew, dropping what the folder holds.

    Raises:
        RunError: the folder is in use or holds a run with other settings or data; `data` was built with other
            settings; the run is finished already;
            the checkpoint is none or of another training (see `checkpoint_to_resume`), or both `resume` and
            `force` were asked for.
        TrainingDivergedError: a loss became NaN or infinite.
    """
    check_intent(settings.run_dir, resume=resume, force=force)
    with claim(settings, force=force) as folder:
        finished = is_finished(folder, resume=resume)
        if data is None:
            data = build_data(settings)
        elif differing := data_differences(data, settings, TRAINED):
            raise RunError("the data was built with other settings (data's and run's): " + "; ".join(differing))
        digest = data.digest
        previous = previous_manifest(folder, digest=digest)
        if finished:
            logger.info("reusing the finished run in %s", folder)
            return Run(folder)
        checkpoint = checkpoint_to_resume(folder, settings, resume)
        _train(settings, data, folder, checkpoint, {"data_digest": digest, "duration_s": previous.get("duration_s", 0)})
    return Run(folder)


def _train(
    settings: Settings, data: GainDataModule, folder: Path, checkpoint: Path | None, manifest: dict[str, Any]
) -> None:
    L.seed_everything(settings.seed, verbose=False)
    data.setup("fit")
    # Validation during training always uses the model's own localization: an external mask is evaluate's affair.
    model = build_model(settings.changed(mask_source="localization", external_mask_dir=None))
    module = _module(settings, data, model)
    checkpoints = RunCheckpoints(
        folder / "checkpoints",
        every_n_epochs=settings.save_every_n_epochs,
        window_start=module.schedule.final_stage_start,
    )
    with recorded(folder, manifest | _describe(settings, data, model)) as manifest:
        trainer = _trainer(settings, folder, checkpoints)
        forget_foreign_best(folder, checkpoint)
        try:
            fit_interruptibly(trainer, module, data, checkpoint)
        finally:
            _finish(trainer.loggers)
        best, _ = load_checkpoint_model(folder / "checkpoints" / "best.ckpt")
        save_weights(best, folder / "model.safetensors")
        manifest |= {"best_epoch": checkpoints.best_epoch, "best_val_ap": checkpoints.best_score[0]}


def _module(settings: Settings, data: GainDataModule, model: GAINMTLModel) -> GainTraining:
    normals, defectives = data.class_counts
    loss = GainLoss(
        focal_gamma=settings.focal_gamma,
        focal_alpha=settings.focal_alpha if settings.focal_alpha is not None else focal_alpha(normals, defectives),
        cam_guide_target=settings.cam_guide_target,
        normal_attention=settings.normal_attention,
    )
    schedule = Schedule(
        lambdas=settings.weights,
        ratios=(settings.stage1_ratio, settings.stage2_ratio, settings.stage3_ratio, settings.stage4_ratio),
        loc_warmup_ratio=settings.loc_warmup_ratio,
    )
    return GainTraining(
        model=model.to(memory_format=torch.channels_last),
        loss=loss,
        schedule=schedule,
        mixer=_mixer(settings, data) if settings.strategy == "S6" else None,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        stored_settings=settings.plain(),
    )


def _mixer(settings: Settings, data: GainDataModule) -> MaskMixer:
    height, width = settings.image_size
    pasted = ((None, mask) for mask in data.pasted_masks())
    return MaskMixer(
        chain(data.training_masks(), pasted),
        grid=(height // settings.map_stride, width // settings.map_stride),
        own_prob=settings.own_mask_prob,
        other_prob=settings.other_mask_prob,
        hflip_prob=settings.hflip_prob,
        vflip_prob=settings.vflip_prob,
        rotate90_prob=settings.rotate90_prob,
    )


def _trainer(settings: Settings, folder: Path, checkpoints: RunCheckpoints) -> L.Trainer:
    device = checked_device(settings.device)
    return L.Trainer(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        precision=lightning_precision(settings.precision, device),  # type: ignore[arg-type]
        max_epochs=settings.num_epochs,
        logger=_loggers(settings, folder),
        callbacks=[checkpoints, EpochLog()],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=5,
        default_root_dir=folder,
    )


def _loggers(settings: Settings, folder: Path) -> list[Logger]:
    loggers = event_loggers(settings)
    if settings.use_wandb:
        try:
            name = f"{settings.experiment}-{settings.run_name}-seed{settings.seed}"
            loggers.append(
                WandbLogger(name=name, project=settings.wandb_project, save_dir=folder, config=settings.plain())
            )
        except ModuleNotFoundError:
            raise RunError("use_wandb is true but the package wandb is missing; pip install wandb") from None
    return loggers


def _finish(loggers: list[Logger]) -> None:
    """Lightning leaves W&B's run open, and the next training of the same process would write into it."""
    for each in loggers:
        if isinstance(each, WandbLogger):
            each.experiment.finish()


def _describe(settings: Settings, data: GainDataModule, model: GAINMTLModel) -> dict[str, Any]:
    samples, edits = data.samples, data.counterfactuals
    normals, defectives = data.class_counts
    return circumstances(device=checked_device(settings.device), precision=settings.precision) | {
        "strategy": settings.strategy,
        "seed": settings.seed,
        "provider": model.backbone.provider,
        "pretrained": model.backbone.weights.replace(f"{repository_root()}/", ""),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "split_sizes": {str(split): int(size) for split, size in samples["split"].value_counts(sort=False).items()},
        "train_normal": normals,
        "train_defective": defectives,
        "train_annotated": int((samples["mask"].notna() & (samples["split"] == "train")).sum()),
        "edits_per_epoch": {} if edits is None else {kind: round(n, 2) for kind, n in edits.expected.items()},
    }
