"""Training: on which device, which masks S6 is shown, the step, the checkpoints, and from settings to a finished run.

Sizes: B images, H x W network input, h x w cells of the attention.
"""

from __future__ import annotations

import logging
import math
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import distributions
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
from gainmtl_lib.progress import every
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
from gainmtl_lib.settings import TERMS, Precision, RunSettings, Settings, UserError, repository_root

logger = logging.getLogger(__name__)


# --- Where to compute and in which precision, by the names that a user writes


class DeviceError(UserError, ValueError):
    """A device or a precision that this machine does not have."""


def checked_device(name: str) -> torch.device:
    """The device of ``auto`` (CUDA, else MPS, else the CPU), ``cpu``, ``mps``, ``cuda`` or ``cuda:<k>``."""
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
    """Lightning's name of ``auto`` (fp16 AMP on CUDA, bf16 AMP on the CPU, else single), ``32``, ``bf16`` or ``16``."""
    if name == "auto":
        name = {"cuda": "16", "cpu": "bf16"}.get(device.type, "32")
    if name == "16" and device.type == "cpu":
        raise DeviceError("precision '16' needs a GPU; on the CPU use 'bf16' or '32'")
    return {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true"}[name]


def inference_autocast(name: str, device: torch.device) -> torch.autocast:
    """The precision of a training, see `lightning_precision`, for computing without; fp16 becomes bf16 on the CPU."""
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
        masks: (index of the sample, its mask (1, H, W) in [0, 1]) of each annotated training defect, not augmented;
            with index None masks that no sample has as it is stored, such as those of pasted defects.
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
        pairs = [(index, F.adaptive_avg_pool2d(mask.float(), grid)) for index, mask in masks]
        self.grid, self.own_prob, self.other_prob = grid, own_prob, other_prob
        self.flip_probs = (hflip_prob, vflip_prob, rotate90_prob)
        self.bank = torch.stack([mask for _, mask in pairs]) if pairs else torch.zeros(0, 1, *grid)  # (N, 1, h, w)
        self.place = {index: row for row, (index, _) in enumerate(pairs) if index is not None}

    def draw(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """One mask or none for each image of a training batch.

        Args:
            batch: its masks are the images' own, already augmented.
            generator: a CPU generator; the global one when None.

        Returns:
            Masks (B, 1, h, w) in [0, 1], zero where there is none, and which images have one, bool (B,).
        """
        indices = batch.index.tolist()
        chance, pick = torch.rand(2, len(indices), generator=generator)
        turned = self._augmented(self._others(indices, pick), generator)

        annotated = (batch.has_mask & (batch.labels == 1)).cpu()
        known = torch.tensor([index in self.place for index in indices], dtype=torch.bool)
        others_exist = len(self.bank) - known.long() > 0  # (B,)
        wanted = (chance < self.own_prob + self.other_prob) & (len(self.bank) > 0)
        own = wanted & annotated & ((chance < self.own_prob) | ~others_exist)
        other = wanted & ~own & others_exist

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


class TrainingDivergedError(UserError, RuntimeError):
    """A loss became NaN or infinite; names the term, the step and what to try."""


class GainTraining(L.LightningModule):
    """One optimisation of a `GAINMTLModel`.

    Everything random in an epoch (dropout, mask mixing) follows from (seed, epoch), so that a resumed
    run repeats what an uninterrupted one does.

    Args:
        settings: of the run; every checkpoint carries them, to be checked when it is loaded.
        model: what is trained.
        class_counts: normal and defective training images, for the focal loss.
        mixer: draws S6's attention masks; None for other strategies.
    """

    def __init__(
        self, settings: Settings, model: GAINMTLModel, *, class_counts: tuple[int, int], mixer: MaskMixer | None = None
    ) -> None:
        super().__init__()
        self.settings, self.model, self.mixer = settings, model, mixer
        self.schedule = Schedule.of(settings)
        self.loss = GainLoss(
            focal_gamma=settings.focal_gamma,
            focal_alpha=settings.focal_alpha or focal_alpha(*class_counts),
            cam_guide_target=settings.cam_guide_target,
            normal_attention=settings.normal_attention,
        )
        self.accuracy = BinaryAccuracy()
        self.average_precision = BinaryAveragePrecision()
        self.cam_iou = CamIoU()

    @property
    def progress(self) -> float:
        """Fraction of all optimiser steps that are done, in [0, 1]."""
        return self.global_step / max(int(self.trainer.estimated_stepping_batches), 1)

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.settings.seed * 1_000_003 + self.current_epoch)

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
        for name in ("accuracy", "average_precision", "cam_iou"):
            self.log(f"val/{name}", getattr(self, name), on_epoch=True)
        size = len(batch.labels)
        self.log("val/val_total", losses["total"], on_epoch=True, batch_size=size)
        self.log("val/val_cls", losses["cls"] if "cls" in losses else losses["total"], on_epoch=True, batch_size=size)
        self.log("compare/total_val", losses["total"], on_epoch=True, batch_size=size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gainmtl_settings"] = self.settings.plain()

    def configure_optimizers(self) -> Any:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        fused = self.device.type in {"cpu", "cuda"}  # one pass over the weights instead of a dozen
        optimizer = torch.optim.Adam(parameters, lr=self.settings.learning_rate, fused=fused)
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


# --- Which checkpoints a run keeps, and a line per epoch


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that an interruption leaves the checkpoint before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with atomic_path(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


class RunCheckpoints(Checkpoint):
    """``last.ckpt`` after every epoch, ``epoch_<n>.ckpt`` every few, ``best.ckpt`` within the final stage.

    Best is the highest validation average precision, ties by CAM-IoU. It is looked for in the final stage
    only, the same window for every strategy: before stage 2 the deciding head of S3-S7 is untrained.
    """

    def __init__(self, folder: Path, *, every_n_epochs: int, window_start: float) -> None:
        self.folder, self.every_n_epochs, self.window_start = folder, every_n_epochs, window_start
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
        if (self.folder / "best.ckpt").is_file():
            self.best_score, self.best_epoch = tuple(state_dict["best_score"]), state_dict["best_epoch"]


class EpochLog(Callback):
    """One line per epoch, and one every few seconds inside a long one."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fit_started, self._first_epoch = time.monotonic(), trainer.current_epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_started, self._due = time.monotonic(), every(15.0)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self._due():
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            logger.info("epoch %d: step %d of %s", trainer.current_epoch + 1, done, trainer.num_training_batches)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics, epoch, now = trainer.callback_metrics, trainer.current_epoch + 1, time.monotonic()
        remaining = (now - self._fit_started) / (epoch - self._first_epoch) * ((trainer.max_epochs or 1) - epoch)
        logger.info(
            "epoch %d of %s: stage %d, loss %.3f, validation AP %.3f, CAM-IoU %.3f; %.0f s, about %.0f s left",
            epoch,
            trainer.max_epochs,
            int(metrics.get("train/stage", 0)),
            *(
                float(metrics.get(tag, math.nan))
                for tag in ("compare/total_train", "val/average_precision", "val/cam_iou")
            ),
            now - self._epoch_started,
            remaining,
        )


# --- What the training of either system shares: going on from before, and the record of it


RECORDED_PACKAGES = (
    "gainmtl", "torch", "torchvision", "timm", "mmpretrain", "mmcv-lite", "lightning", "torchmetrics",
    "albumentations", "opencv-python-headless", "numpy", "pandas",
)  # fmt: skip


def previous_manifest(folder: Path, *, digest: str) -> dict[str, Any]:
    """What an earlier start of the run recorded, empty for the first; RunError if its data was another."""
    if run_status(folder) == "new":
        return {}
    manifest = read_json(folder / "manifest.json")
    before = manifest["data_digest"]
    if before != digest:
        raise RunError(
            f"{folder}: the data changed since this run was started (digest {before[:12]} then, "
            f"{digest[:12]} now); change 'experiment', or start anew with --force (force=True)"
        )
    return manifest


def checkpoint_to_resume(
    folder: Path,
    settings: RunSettings,
    resume: str | Path | None,
    *,
    architecture: tuple[str, ...],
    plan: tuple[str, ...],
    complete: Callable[[Mapping[str, Any]], bool],
) -> Path | None:
    """The checkpoint that a training goes on from; None when it starts at the beginning.

    Args:
        folder: of the run, as are the settings.
        resume: checkpoint asked for, in place of the folder's own last one.
        architecture: names of settings that decide which weights a model has.
        plan: of those that decide how each step is made, as part of the whole training.
        complete: whether a checkpoint leaves nothing to train.

    Raises:
        RunError: it is no checkpoint, holds no optimiser state, belongs to another model or to a training with
            another plan, or nothing is left to train.
    """
    own = folder / "checkpoints"
    path = own / "last.ckpt" if resume is None else Path(resume)
    if resume is None and not path.is_file():
        return None
    checkpoint = read_checkpoint(path)
    stored, asked = checkpoint["gainmtl_settings"], settings.plain()
    keep = (
        "\nthe learning rate follows the whole training, of which a checkpoint is a part; keep these values, "
        "or start a new run without --resume"
    )
    other_model, other_plan = (architecture, "of another model", ""), (plan, "of a training with another plan", keep)
    for names, whose, why in (other_model, other_plan):
        if differing := [f"  {k}: {stored.get(k)!r} and {asked[k]!r}" for k in names if stored.get(k) != asked[k]]:
            raise RunError(f"{path}: a checkpoint {whose} (stored and asked for):\n" + "\n".join(differing) + why)
    if "optimizer_states" not in checkpoint:
        raise RunError(f"{path}: holds weights but no optimiser state; resume from last.ckpt or a periodic checkpoint")
    steps, best = checkpoint["global_step"], own / "best.ckpt"
    if complete(checkpoint) and (path.resolve().parent != own.resolve() or not best.is_file()):
        raise RunError(f"{path}: all {steps} steps are done, and {best} is not theirs; resume from an earlier one")
    logger.info("going on from %s, after %d steps", path, steps)
    return path


@contextmanager
def recorded(
    folder: Path, manifest: dict[str, Any], *, device: torch.device, precision: Precision
) -> Iterator[dict[str, Any]]:
    """Keep the manifest beside a training: running meanwhile, complete once the block ends without an error.

    To what is known at the start come device, precision, packages and the time, which earlier starts add to; what the
    block adds is written.
    """
    path, started = folder / "manifest.json", time.monotonic()
    before = read_json(path).get("duration_s", 0) if path.is_file() else 0
    manifest |= {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": lightning_precision(precision, device),
        "versions": {name: next((one.version for one in distributions(name=name)), None) for name in RECORDED_PACKAGES},
        "duration_s": before,
    }
    write_json(path, manifest | {"status": "running"})
    status = "running"
    try:
        yield manifest
        status = "complete"
    finally:
        manifest["duration_s"] = round(before + time.monotonic() - started, 1)
        write_json(path, manifest | {"status": status})


def event_loggers(settings: RunSettings) -> list[Logger]:
    """TensorBoard's and W&B's, as far as the settings ask for them."""
    loggers: list[Logger] = []
    if settings.use_tensorboard:
        where = settings.tensorboard_folder
        loggers.append(TensorBoardLogger(where.parent, name=where.name, version="", default_hp_metric=False))
    if isinstance(settings, Settings) and settings.use_wandb:
        name = f"{settings.experiment}-{settings.run_name}-seed{settings.seed}"
        try:
            folder, project = settings.run_dir, settings.wandb_project
            loggers.append(WandbLogger(name=name, project=project, save_dir=folder, config=settings.plain()))
        except ModuleNotFoundError:
            raise RunError("use_wandb is true but the package wandb is missing; pip install wandb") from None
    return loggers


def fit_interruptibly(
    trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule, checkpoint: Path | None
) -> None:
    """Train; a best checkpoint of the folder's own is dropped where another training goes on."""
    own = Path(trainer.default_root_dir) / "checkpoints"
    if checkpoint is not None and checkpoint.resolve().parent != own.resolve():
        (own / "best.ckpt").unlink(missing_ok=True)
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        # Lightning answers Ctrl-C by leaving the process with the signal ignored; a notebook must survive it.
        signal.signal(signal.SIGINT, handler)
        logger.info("interrupted; the same call goes on from the last checkpoint")
        raise KeyboardInterrupt from None
    finally:
        for each in trainer.loggers:  # Lightning leaves W&B's run open, for the next training to write into
            if isinstance(each, WandbLogger):
                each.experiment.finish()


# --- From settings to a finished run


EVALUATED = ("image_size", "resize", "skip_unreadable")
"""Settings by which data shows validation and test pictures in another way."""
TRAINED = (
    *EVALUATED,
    "batch_size", "seed", "seed_of_split", "image_counterfactual", "mask_share", "mask_quality",
    "hflip_prob", "vflip_prob", "rotate90_prob", "color_jitter_prob", "gaussian_noise_prob",
)  # fmt: skip
"""Those that training pictures depend on."""
ARCHITECTURE = (
    "strategy", "backbone_arch", "out_indices", "fpn_channels", "attention_channels", "head_channels",
    "map_stride", "map_channels", "use_counterfactual", "counterfactual_mode",
)  # fmt: skip
PLAN = (
    "num_epochs", "batch_size", "learning_rate", "stage1_ratio", "stage2_ratio", "stage3_ratio",
    "stage4_ratio", "loc_warmup_ratio", *(f"lambda_{term}" for term in TERMS),
)  # fmt: skip


def data_differences(data: GainDataModule, settings: Settings, names: tuple[str, ...]) -> list[str]:
    """One line for each of the named settings that `data` was built with another value of."""
    pairs = ((name, getattr(data.settings, name), getattr(settings, name)) for name in names)
    return [f"{name}: {own!r} and {asked!r}" for name, own, asked in pairs if own != asked]


def fit(
    settings: Settings, *, data: GainDataModule | None = None, resume: str | Path | None = None, force: bool = False
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
            settings; the run is finished already; the checkpoint is none or of another training (see
            `checkpoint_to_resume`), or both `resume` and `force` were asked for.
        TrainingDivergedError: a loss became NaN or infinite.
    """
    with claim(settings, resume=resume, force=force) as folder:
        if data is None:
            data = build_data(settings)
        elif differing := data_differences(data, settings, TRAINED):
            raise RunError("the data was built with other settings (data's and run's): " + "; ".join(differing))
        if previous_manifest(folder, digest=data.digest).get("status") == "complete":
            logger.info("reusing the finished run in %s", folder)
        else:
            _train(settings, data, folder, resume)
    return Run(folder)


def _train(settings: Settings, data: GainDataModule, folder: Path, resume: str | Path | None) -> None:
    checkpoint = checkpoint_to_resume(
        folder,
        settings,
        resume,
        architecture=ARCHITECTURE,
        plan=PLAN,
        complete=lambda checkpoint: checkpoint["epoch"] + 1 >= settings.num_epochs,
    )
    L.seed_everything(settings.seed, verbose=False)
    data.setup("fit")
    # Validation during training always uses the model's own localization: an external mask is evaluate's affair.
    model = build_model(settings.changed(mask_source="localization", external_mask_dir=None))
    mixer = _mixer(settings, data) if settings.strategy == "S6" else None
    model.to(memory_format=torch.channels_last)
    module = GainTraining(settings, model, class_counts=data.class_counts, mixer=mixer)
    checkpoints = RunCheckpoints(
        folder / "checkpoints",
        every_n_epochs=settings.save_every_n_epochs,
        window_start=module.schedule.final_stage_start,
    )
    device = checked_device(settings.device)
    manifest = _described(settings, data, model)
    with recorded(folder, manifest, device=device, precision=settings.precision) as manifest:
        trainer = L.Trainer(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            precision=lightning_precision(settings.precision, device),  # type: ignore[arg-type]
            max_epochs=settings.num_epochs,
            logger=event_loggers(settings),
            callbacks=[checkpoints, EpochLog()],
            plugins=[AtomicCheckpointIO()],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=5,
            default_root_dir=folder,
        )
        fit_interruptibly(trainer, module, data, checkpoint)
        best, _ = load_checkpoint_model(folder / "checkpoints" / "best.ckpt")
        save_weights(best, folder / "model.safetensors")
        manifest |= {"best_epoch": checkpoints.best_epoch, "best_val_ap": checkpoints.best_score[0]}


def _mixer(settings: Settings, data: GainDataModule) -> MaskMixer:
    height, width = settings.image_size
    return MaskMixer(
        chain(data.training_masks(), ((None, mask) for mask in data.pasted_masks())),
        grid=(height // settings.map_stride, width // settings.map_stride),
        own_prob=settings.own_mask_prob,
        other_prob=settings.other_mask_prob,
        hflip_prob=settings.hflip_prob,
        vflip_prob=settings.vflip_prob,
        rotate90_prob=settings.rotate90_prob,
    )


def _described(settings: Settings, data: GainDataModule, model: GAINMTLModel) -> dict[str, Any]:
    samples, edits = data.samples, data.counterfactuals
    normals, defectives = data.class_counts
    return {
        "data_digest": data.digest,
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
