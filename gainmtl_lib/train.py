"""Training: which masks S6 is shown, the step, the checkpoints, and from settings to a finished run.

Sizes: B images, H x W network input, h x w cells of the attention.
"""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from filelock import FileLock
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torchmetrics.functional.classification import binary_accuracy, binary_average_precision

from gainmtl_lib import processes, runs
from gainmtl_lib.dataset import Batch, GainDataModule, build_data, make_data
from gainmtl_lib.defect_types import fit_types
from gainmtl_lib.devices import checked_device, lightning_precision
from gainmtl_lib.launch import Launch, start_for_each_device
from gainmtl_lib.layouts import CLASS_NAMES
from gainmtl_lib.losses import GainLoss, Schedule, focal_alpha, mask_blend_alpha
from gainmtl_lib.metrics import cam_iou
from gainmtl_lib.model import GAINMTLModel, GainOutput, build_model
from gainmtl_lib.processes import Part, together
from gainmtl_lib.progress import every
from gainmtl_lib.runs import Run, RunError
from gainmtl_lib.settings import TERMS, RunSettings, Settings, UserError, repository_root

logger = logging.getLogger(__name__)


class MaskMixer:
    """Draws the masks that gate attention in S6's training from a bank of the training set's defect masks.

    Defects with an annotation get their own mask with `own_mask_prob`, another's with `other_mask_prob`, none
    otherwise. All other images get another's with the sum of both. Where the bank holds no other, an annotated defect
    gets its own instead, so that masks stay as frequent there as elsewhere. With an empty bank nobody gets one.
    Masks from the bank are mirrored and turned as the images' own have been.

    Args:
        masks: (index of the sample, its mask (1, H, W) in [0, 1]) of each annotated training defect, not augmented;
            with index None masks that no sample has as it is stored, such as those of pasted defects.
        settings: of the run.
    """

    def __init__(self, masks: Iterable[tuple[int | None, Tensor]], settings: Settings) -> None:
        self.own_prob, self.other_prob = settings.own_mask_prob, settings.other_mask_prob
        self.turn_probs = torch.tensor([[settings.hflip_prob], [settings.vflip_prob], [settings.rotate90_prob]])
        height, width = settings.crop_size or settings.image_size
        self.grid = (height // settings.map_stride, width // settings.map_stride)
        pairs = [(index, F.adaptive_avg_pool2d(mask.float(), self.grid)) for index, mask in masks]
        self.place = {index: row for row, (index, _) in enumerate(pairs) if index is not None}
        self.size = len(pairs)
        self.bank = torch.stack([*(mask for _, mask in pairs), torch.zeros(1, *self.grid)])  # the last one is none

    def draw(
        self, batch: Batch, generator: torch.Generator | None = None, *, part: Part | None = None
    ) -> tuple[Tensor, Tensor]:
        """For the images of an augmented batch masks (B, 1, h, w) in [0, 1], and which are given one, bool (B,).

        Of a `part` of a batch those that a single process would draw for it.
        """
        part = part or Part.whole(len(batch.index))
        chance, pick = torch.rand(2, part.size, generator=generator)[:, part.places]
        place = torch.tensor([self.place.get(index, self.size) for index in batch.index.tolist()])
        others = self.size - (place < self.size).long()  # how many masks are not the image's own, (B,)
        row = (pick * others).long().minimum(others - 1)  # -1, which is none, where there is no other
        turned = self.bank[row + (row >= place)]  # steps over the own one
        # As by albumentations: RandomRotate90 makes 0 to 3 quarter turns; an oblong grid is turned by 180° only.
        hflip, vflip, rotate = torch.rand(3, part.size, generator=generator)[:, part.places] < self.turn_probs
        square = self.grid[0] == self.grid[1]
        turns = rotate * (torch.randint(4, (part.size,), generator=generator)[part.places] if square else 2)
        for flip, axis in ((hflip, 3), (vflip, 2)):
            turned = torch.where(flip[:, None, None, None], turned.flip(axis), turned)
        turned = torch.stack([mask.rot90(int(k), dims=(1, 2)) for mask, k in zip(turned, turns, strict=True)])

        annotated = (batch.has_mask & (batch.labels == 1)).cpu()
        wanted = (chance < self.own_prob + self.other_prob) & (self.size > 0)
        own = wanted & annotated & ((chance < self.own_prob) | (others == 0))
        other = wanted & ~own & (others > 0)
        own, other, turned = (values.to(batch.masks.device) for values in (own, other, turned))
        masks = F.adaptive_avg_pool2d(batch.masks.float(), self.grid) * own[:, None, None, None]
        return masks + turned * other[:, None, None, None], own | other


# --- The training step as Lightning runs it


TOTAL = "compare/total_train"


class TrainingDivergedError(UserError, RuntimeError):
    """A loss became NaN or infinite; names the term, the step and what to try."""


class GainTraining(L.LightningModule):
    """One optimisation of a `GAINMTLModel`, with S6's attention masks from a mixer.

    Everything random in an epoch (dropout, mask mixing) follows from (seed, epoch), so that a resumed run repeats what
    an uninterrupted one does, and from an image's place in the whole batch, whatever part of it a process has.
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
        self._validated: list[Tensor] = []  # row, label, probability and CAM-IoU of each image, (B, 4)

    @property
    def progress(self) -> float:
        """Fraction of all optimiser steps that are done, in [0, 1]."""
        return self.global_step / max(int(self.trainer.estimated_stepping_batches), 1)

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.settings.seed * 1_000_003 + self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        weights = self.schedule.weights(self.progress)
        output = self.output(batch, weights, self._part(self.trainer.train_dataloader, batch_idx))
        total, losses = self._losses(output, batch, weights)
        if not torch.isfinite(losses["total"]):
            broken = [name for name, value in losses.items() if name != "total" and not torch.isfinite(value)]
            where = f"{', '.join(broken) or 'the sum'} at epoch {self.current_epoch + 1}, step {self.global_step}"
            advice = "the last checkpoint holds the epoch before. Try a lower learning_rate, or precision '32'"
            raise TrainingDivergedError(f"the loss became {losses['total'].item()} in {where}; {advice}")
        tags: dict[str, Any] = {f"train/loss_{name}": value for name, value in losses.items()}
        tags["train/learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        tags["train/stage"] = float(self.schedule.stage(self.progress))
        self.log_dict(tags, on_step=True, on_epoch=False, batch_size=1)
        self.log(TOTAL, losses["total"], on_step=False, batch_size=1, logger=False, **self._of_epoch)
        return total

    def on_train_epoch_end(self) -> None:
        """Lightning would log the epoch's mean after its checkpoint: who goes on from that would lack it."""
        mean = {TOTAL: float(self.trainer.callback_metrics[TOTAL]), "epoch": self.current_epoch}
        for each in self.trainer.loggers:
            each.log_metrics(mean, step=self.global_step - 1)
            each.save()

    @property
    def _of_epoch(self) -> dict[str, Any]:
        """How Lightning logs a mean over batches, which is the same in every process."""
        return {"on_epoch": True, "sync_dist": processes.count() > 1}

    def _part(self, loader: Any, batch_idx: int) -> Part:
        """Which part of a loader's batch this process has."""
        size = min(loader.batch_size, len(loader.sampler) - batch_idx * loader.batch_size)
        return Part.of(size, processes.rank(), processes.count())

    def _losses(self, output: GainOutput, batch: Batch, weights: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """What this process adds to the total loss, and each loss of the whole batch."""
        losses = self.loss(output, batch, weights)
        return losses["total"], processes.means({name: value.detach() for name, value in losses.items()})

    def output(self, batch: Batch, weights: dict[str, float], part: Part | None = None) -> GainOutput:
        """What the model says, for the losses that weigh something; in training with masks from S6's mixer."""
        images, masks = batch.images.contiguous(memory_format=torch.channels_last), None
        if weights["cf"] > 0 and bool(processes.summed(batch.masks.sum()) > 0):
            masks = batch.masks
        mixed: dict[str, Any] = {}
        if self.training and self.mixer is not None:
            mixed["attention_masks"], mixed["has_attention_mask"] = self.mixer.draw(batch, part=part)
            mixed["attention_alpha"] = mask_blend_alpha(self.progress)
        with processes.whole_batch(part or Part.whole(len(images))):
            return self.model(images, masks, **mixed)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        weights = self.schedule.weights(min(self.progress, 1 - 1e-9))
        part = self._part(self.trainer.val_dataloaders, batch_idx)
        output = self.output(batch, weights, part)
        _, losses = self._losses(output, batch, weights)
        prob = output.logits.float().softmax(dim=1)[:, 1]
        iou = cam_iou(output.cam, batch.masks * batch.has_mask[:, None, None, None])
        columns = (column.cpu().double() for column in (batch.index, batch.labels, prob, iou))
        self._validated.append(torch.stack([*columns], dim=1))
        total = losses["total"]
        tags = {"val/val_total": total, "val/val_cls": losses.get("cls", total), "compare/total_val": total}
        self.log_dict(tags, batch_size=part.size, **self._of_epoch)

    def on_validation_epoch_end(self) -> None:
        """Every process scores the images of all: they decide alike."""
        rows = processes.rows_of_all(torch.cat(self._validated)).float().to(self.device)
        self._validated.clear()
        labels, prob = rows[:, 1].long(), rows[:, 2]
        scores = {"accuracy": binary_accuracy(prob, labels), "cam_iou": rows[:, 3].nanmean()}
        scores["average_precision"] = binary_average_precision(prob, labels)
        self.log_dict({f"val/{name}": score for name, score in scores.items()}, **self._of_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {"gainmtl_settings": self.settings.plain(), "gainmtl_version": version("gainmtl")}
        shown = self.trainer.datamodule.dataset.shown.sum(0)  # type: ignore[attr-defined]
        checkpoint["gainmtl_shown"] = processes.summed(shown.to(self.device)).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What was shown before counts once."""
        shown = self.trainer.datamodule.dataset.shown  # type: ignore[attr-defined]
        shown.zero_()[0] = checkpoint.get("gainmtl_shown", 0) if processes.is_main() else 0

    def configure_optimizers(self) -> Any:
        its, backbone = self.settings, {*self.model.backbone.parameters()}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        heads, own = ([p for p in trained if (p in backbone) == inside] for inside in (False, True))
        rates = {"lr": its.learning_rate}, {"lr": its.learning_rate * its.backbone_lr_scale}
        groups = [{"params": some} | rate for some, rate in zip((heads, own), rates) if some]
        fused = self.device.type in {"cpu", "cuda"}  # one pass over the weights instead of a dozen
        optimizer = torch.optim.AdamW(groups, weight_decay=its.weight_decay, fused=fused)  # Adam where that is 0
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step / steps, warmup_ratio=its.warmup_ratio)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def learning_rate_factor(progress: float, *, warmup_ratio: float) -> float:
    """Share of the learning rate at a progress in [0, 1]: a linear rise from a hundredth, then a cosine to 0."""
    if progress < warmup_ratio:
        return 0.01 + 0.99 * progress / warmup_ratio
    return (1 + math.cos(math.pi * (progress - warmup_ratio) / (1 - warmup_ratio))) / 2


# --- Which checkpoints a run keeps, and a line per epoch

JUDGED = ("val/average_precision", "val/cam_iou")  # the best epoch is by the first, ties by the second


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that an interruption leaves the checkpoint before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with runs.atomic_path(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


class RunCheckpoints(Checkpoint):
    """``last.ckpt`` after every epoch, ``epoch_<n>.ckpt`` every few, ``best.ckpt`` within the final stage."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.every_n_epochs = folder, settings.save_every_n_epochs
        self.window_start = Schedule.of(settings).final_stage_start  # earlier S3-S7's deciding head is untrained
        self.best_score, self.best_epoch = [-math.inf, -math.inf], None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        values = [float(trainer.callback_metrics.get(tag, math.nan)) for tag in JUDGED]
        ap, iou = (value if math.isfinite(value) else -math.inf for value in values)
        score = [round(ap, 6), iou]
        # The last epoch always counts: with a short final stage no epoch may end inside it otherwise.
        if (epoch == epochs or epoch / epochs > self.window_start + 1e-9) and score > self.best_score:
            self.best_score, self.best_epoch = score, epoch
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=True)
        if epoch % self.every_n_epochs == 0:
            trainer.save_checkpoint(self.folder / f"epoch_{epoch}.ckpt", weights_only=False)
        trainer.save_checkpoint(self.folder / "last.ckpt", weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A score whose file stayed elsewhere is left there: it would let no later epoch be the best."""
        if (self.folder / "best.ckpt").is_file():
            self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]


class EpochLog(Callback):
    """One line per epoch, and one every few seconds inside a long one."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began, self._due = time.monotonic(), every(15.0)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self._due():
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            logger.info("epoch %d: step %d of %s", trainer.current_epoch + 1, done, trainer.num_training_batches)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch, epochs, seconds = trainer.current_epoch + 1, trainer.max_epochs or 1, time.monotonic() - self._began
        tags = ("train/stage", TOTAL, *JUDGED)
        scores = (trainer.callback_metrics.get(tag, math.nan) for tag in tags)
        text = "epoch %d of %d: stage %.0f, loss %.3f, validation AP %.3f, CAM-IoU %.3f; %.0f s, about %.0f s left"
        logger.info(text, epoch, epochs, *scores, seconds, seconds * (epochs - epoch))


# --- What the training of either system shares: going on from before, and the record of it

RECORDED_PACKAGES = (
    "gainmtl", "torch", "torchvision", "timm", "mmpretrain", "mmcv-lite", "lightning", "torchmetrics",
    "albumentations", "opencv-python-headless", "numpy", "pandas",
)  # fmt: skip


def previous_manifest(folder: Path, *, digest: str) -> dict[str, Any]:
    """What an earlier start of the run recorded, empty for the first; `RunError` if its data was another."""
    path = folder / "manifest.json"
    manifest = runs.read_json(path) if path.is_file() else {}
    before = manifest.get("data_digest", digest)
    if before != digest:
        changed = f"the data changed since this run was started (digest {before[:12]} then, {digest[:12]} now)"
        raise RunError(f"{folder}: {changed}; change 'experiment', or start anew with --force (force=True)")
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
    """The checkpoint that a training goes on from, the folder's own last one or `resume`; None starts at the beginning.

    `architecture` and `plan` name the settings that decide which weights a model has, and how each step is made,
    `complete` whether a checkpoint leaves nothing to train. `RunError`: none to go on from, of another model or plan.
    """
    own = folder / "checkpoints"
    path = own / "last.ckpt" if resume is None else Path(resume)
    if resume is None and not path.is_file():
        return None
    checkpoint = runs.read_checkpoint(path)
    stored, asked = checkpoint["gainmtl_settings"], settings.plain()
    keep = "\nthe learning rate follows the whole training; keep these values, or start a new run without --resume"
    for names, whose, why in ((architecture, "of another model", ""), (plan, "of a training with another plan", keep)):
        if differing := [f"  {k}: {stored.get(k)!r} and {asked[k]!r}" for k in names if stored.get(k) != asked[k]]:
            raise RunError(f"{path}: a checkpoint {whose} (stored and asked for):\n" + "\n".join(differing) + why)
    if "optimizer_states" not in checkpoint:
        raise RunError(f"{path}: holds weights but no optimiser state; resume from last.ckpt or a periodic checkpoint")
    steps, best = checkpoint["global_step"], own / "best.ckpt"
    if complete(checkpoint) and (path.resolve().parent != own.resolve() or not best.is_file()):
        raise RunError(f"{path}: all {steps} steps are done, and {best} is not theirs; resume from an earlier one")
    logger.info("going on from %s, after %d steps", path, steps)
    return path


def to_be_started(settings: RunSettings, launch: Launch, *, force: bool) -> bool:
    """Whether a run has processes that nobody has started yet: several devices, and something to train."""
    return launch.count < settings.processes and (force or runs.run_status(settings.run_dir) != "complete")


@contextmanager
def claimed(
    settings: RunSettings, launch: Launch, device: str, *, resume: str | Path | None, force: bool
) -> Iterator[Path]:
    """The run's folder, which the main process claims (`runs.claim`) for all; nobody goes on before all are done."""
    if launch.count > 1:
        processes.connect(launch, settings, checked_device(device, settings.devices))
    with ExitStack() as held:
        with together():
            if launch.is_main:
                held.enter_context(runs.claim(settings, resume=resume, force=force))
        yield settings.run_dir
        with together():
            pass


@contextmanager
def recorded(
    folder: Path, manifest: dict[str, Any], settings: RunSettings, launch: Launch, *, device: torch.device,
    precision: str,
) -> Iterator[None]:  # fmt: skip
    """Keep the manifest, with what the block adds to it: complete once the block ends without an error.

    The main process does, for all.
    """
    if not launch.is_main:
        yield
        return
    path, started = folder / "manifest.json", time.monotonic()
    before = runs.read_json(path).get("duration_s", 0) if path.is_file() else 0
    manifest |= {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "devices": settings.devices,
        "num_nodes": settings.num_nodes,
        "launcher": launch.launcher,
        "precision": precision,
        "versions": {name: next((one.version for one in distributions(name=name)), None) for name in RECORDED_PACKAGES},
        "duration_s": before,
        "status": "running",
    }
    runs.write_json(path, manifest)
    try:
        yield
        manifest["status"] = "complete"
    finally:
        manifest["duration_s"] = round(before + time.monotonic() - started, 1)
        runs.write_json(path, manifest)


def event_loggers(settings: RunSettings, *, goes_on: bool) -> list[Logger]:
    """TensorBoard's, W&B's and MLflow's, as far as they are asked for."""
    loggers: list[Logger] = []
    if settings.use_tensorboard:
        where = settings.tensorboard_folder
        loggers.append(TensorBoardLogger(where.parent, name=where.name, version="", default_hp_metric=False))
    if isinstance(settings, Settings) and settings.use_wandb:
        name, project = f"{settings.experiment}-{settings.run_name}-seed{settings.seed}", settings.wandb_project
        try:
            loggers.append(WandbLogger(name, settings.run_dir, project=project, config=settings.plain()))
        except ModuleNotFoundError:
            raise RunError("use_wandb is true but the package wandb is missing; pip install wandb") from None
    if settings.use_mlflow and processes.is_main():
        loggers.append(_mlflow_logger(settings, goes_on=goes_on))
    return loggers


def _mlflow_uri(settings: RunSettings) -> str:
    """``MLFLOW_TRACKING_URI``, else a database beside the experiments."""
    return os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{settings.outputs_dir.absolute() / 'mlflow.db'}")


def _mlflow_logger(settings: RunSettings, *, goes_on: bool) -> MLFlowLogger:
    """A training that `goes_on` does so in the run that was left, by the tag of its folder."""
    from mlflow import MlflowClient

    for noisy in ("mlflow", "lightning.pytorch.loggers.mlflow"):  # that tables and experiments are made
        logging.getLogger(noisy).setLevel(logging.ERROR)
    outputs, tags = settings.outputs_dir.absolute(), {"gainmtl.folder": str(settings.run_dir.absolute())}
    own: dict[str, Any] = {} if "MLFLOW_TRACKING_URI" in os.environ else {"artifact_location": str(outputs / "mlruns")}
    uri, name, left = _mlflow_uri(settings), f"{settings.run_name}-seed{settings.seed}", []
    # Tables and an experiment that are not there yet two runs would both make, and one of them fail.
    with FileLock(outputs / ".mlflow.lock") if own else nullcontext():
        client = MlflowClient(uri)
        if goes_on and (there := client.get_experiment_by_name(settings.experiment)):
            wanted = f"tags.`gainmtl.folder` = '{tags['gainmtl.folder']}'"
            left = [run.info.run_id for run in client.search_runs([there.experiment_id], wanted)]  # the last one first
        logger = MLFlowLogger(settings.experiment, name, uri, tags, run_id=left[0] if left else None, **own)
        logger.log_hyperparams(settings.plain())
    return logger


@contextmanager
def _told_by_mlflow(settings: RunSettings) -> Iterator[None]:
    """What MLflow cannot do, at the start or later, is a `RunError`."""
    if not settings.use_mlflow:
        yield
        return
    try:
        from mlflow import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ModuleNotFoundError:
        raise RunError("use_mlflow is true but the package mlflow is missing; pip install mlflow") from None
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        reason = " ".join(str(error).partition("\n")[0].split())[:200]
        raise RunError(f"use_mlflow is true, but {_mlflow_uri(settings)} cannot be used: {reason}") from None


class EndedBySignal(Callback):
    """Lets SIGTERM end one of several processes at once: within Lightning's handler each would wait for the others."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def fit_interruptibly(
    settings: RunSettings, launch: Launch, device: torch.device, module: L.LightningModule,
    data: L.LightningDataModule, *, precision: str, checkpoint: Path | None, callbacks: list[Callback],
    every_weight_learns: bool = True, **options: Any,
) -> None:  # fmt: skip
    """Train; a best checkpoint of the folder's own is dropped where another goes on. `options` are Lightning's, as is
    the name of the precision. `every_weight_learns` in each step."""
    own = settings.run_dir / "checkpoints"
    if launch.is_main and checkpoint is not None and checkpoint.resolve().parent != own.resolve():
        (own / "best.ckpt").unlink(missing_ok=True)
    quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    with together(), _told_by_mlflow(settings):
        loggers = event_loggers(settings, goes_on=checkpoint is not None)
    several = DDPStrategy(find_unused_parameters=not every_weight_learns) if launch.count > 1 else None
    trainer = L.Trainer(
        accelerator=device.type,
        devices=settings.devices if device.index is None else [device.index],
        num_nodes=settings.num_nodes,
        strategy=several or "auto",
        precision=precision,  # type: ignore[arg-type]
        logger=loggers,
        plugins=[AtomicCheckpointIO(), processes.environment(launch)],
        callbacks=[*callbacks, EndedBySignal()],
        use_distributed_sampler=False,  # each process knows its part
        default_root_dir=settings.run_dir,
        **quiet | options,
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        with _written_logs(settings), _told_by_mlflow(settings):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        # Lightning answers Ctrl-C by leaving the process with the signal ignored; a notebook must survive it.
        signal.signal(signal.SIGINT, handler)
        logger.info("interrupted; the same call goes on from the last checkpoint")
        raise KeyboardInterrupt from None
    except TrainingDivergedError:  # in all processes alike
        if not launch.is_main:
            raise SystemExit(0) from None
        raise
    finally:
        for each in trainer.loggers:  # Lightning leaves W&B's run open, for the next training to write into
            if isinstance(each, WandbLogger):
                each.experiment.finish()


@contextmanager
def _written_logs(settings: RunSettings) -> Iterator[None]:
    """What TensorBoard cannot write is a `FileError`: it says in a thread what is wrong, to the next call not where."""
    before = threading.excepthook

    def told(args: Any) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            before(args)

    threading.excepthook = told
    try:
        yield
    except OSError as error:
        if isinstance(error, UserError) or error.filename or not settings.use_tensorboard:
            raise
        with runs.written(settings.tensorboard_folder / "events.out.tfevents"):
            raise
    finally:
        threading.excepthook = before


# --- From settings to a finished run

# Settings that the data's validation and test pictures depend on, then those that its training pictures depend on.
EVALUATED = ("image_size", "resize", "skip_unreadable", "mask_marks")
TRAINED = (
    *EVALUATED,
    "batch_size", "seed", "seed_of_split", "crop_size", "image_counterfactual", "mask_share", "mask_quality",
    "hflip_prob", "vflip_prob", "rotate90_prob", "color_jitter_prob", "gaussian_noise_prob",
)  # fmt: skip
ARCHITECTURE = (
    "strategy", "backbone_arch", "out_indices", "fpn_channels", "attention_channels", "head_channels",
    "map_stride", "map_channels", "use_counterfactual", "counterfactual_mode", "evidence_share",
)  # fmt: skip
PLAN = (
    "num_epochs", "batch_size", "learning_rate", "backbone_lr_scale", "warmup_ratio", "weight_decay",
    "freeze_backbone_stages", "stage1_ratio", "stage2_ratio", "stage3_ratio",
    "stage4_ratio", "loc_warmup_ratio", *(f"lambda_{term}" for term in TERMS),
)  # fmt: skip


def data_differences(data: GainDataModule, settings: Settings, names: tuple[str, ...]) -> list[str]:
    """One line for each of the named settings that `data` was built with another value of."""
    pairs = ((name, getattr(data.settings, name), getattr(settings, name)) for name in names)
    return [f"{name}: {own!r} and {asked!r}" for name, own, asked in pairs if own != asked]


def build_training(settings: Settings, data: GainDataModule) -> GainTraining:
    """A strategy's model, and how it is trained."""
    # Validation during training always uses the model's own localization: an external mask is evaluate's affair.
    model = build_model(settings.changed(mask_source="localization", external_mask_dir=None))
    mixer = None
    if settings.strategy == "S6":
        mixer = MaskMixer([*data.training_masks(), *((None, mask) for mask in data.pasted_masks())], settings)
    return GainTraining(settings, model, class_counts=data.class_counts, mixer=mixer)


def fit(
    settings: Settings, *, data: GainDataModule | None = None, resume: str | Path | None = None, force: bool = False,
    build: Callable[[Settings, GainDataModule], GainTraining] = build_training, method: str = "",
) -> Run:  # fmt: skip
    """Train one strategy. A finished run with equal settings on equal data is returned, an unfinished one goes on.

    Args:
        settings: of the run; they decide its folder.
        data: what `build_data(settings)` gave, where the caller has it already.
        resume: checkpoint to go on from, in place of the folder's own last one.
        force: start anew, dropping what the folder holds.
        build, method: what is trained in place of the strategy, and its name, which the run records.

    Raises:
        RunError: the folder is in use or holds a run with other settings, data or method; `data` was built with other
            settings; the checkpoint is none, finished or of another training; both `resume` and `force` were asked for.
        TrainingDivergedError: a loss became NaN or infinite.
        LaunchError: a launcher has started other processes than the settings ask for.

    With several devices and no launcher this starts a process for each (`start_for_each_device`) and waits for them.
    Where a launcher has started them, each of them calls this, and returns once the run is finished.
    """
    launch, asked = Launch.of(settings), {"data": data, "resume": resume, "force": force}
    if to_be_started(settings, launch, force=force):
        start_for_each_device(fit, settings, **asked, build=build, method=method)
        return Run(settings.run_dir)
    with claimed(settings, launch, settings.device, resume=resume, force=force) as folder:
        with together():
            if data is None and launch.is_main:
                make_data(settings)
        with together():
            if data is None:
                data = build_data(settings)
            elif differing := data_differences(data, settings, TRAINED):
                raise RunError("the data was built with other settings (data's and run's): " + "; ".join(differing))
            before = previous_manifest(folder, digest=data.digest)
            if before and (own := before.get("method", "")) != method:
                told = f"{folder} holds a run of method {own!r}, asked for is {method!r}"
                raise RunError(f"{told}; name the variant otherwise, or start anew with --force (force=True)")
        if before.get("status") == "complete":
            logger.info("reusing the finished run in %s", folder)
        else:
            _train(settings, launch, data, folder, resume, build, method)
    return Run(folder)


def _train(
    settings: Settings, launch: Launch, data: GainDataModule, folder: Path, resume: str | Path | None,
    build: Callable[[Settings, GainDataModule], GainTraining], method: str,
) -> None:  # fmt: skip
    with together():
        checkpoint = checkpoint_to_resume(
            folder, settings, resume, architecture=ARCHITECTURE, plan=PLAN,
            complete=lambda stored: stored["epoch"] + 1 >= settings.num_epochs,
        )  # fmt: skip
        L.seed_everything(settings.seed, verbose=False)
        data.setup("fit")
        data.dataset.count_anew()  # data may be shared with runs before; a checkpoint brings back its own counts
        module = build(settings, data)
        model = module.model.to(memory_format=torch.channels_last)
        device = checked_device(settings.device, settings.devices)
        precision = lightning_precision(settings.precision, device, depthwise=model.backbone.depthwise)
    checkpoints, samples = RunCheckpoints(folder / "checkpoints", settings), data.samples
    manifest = {
        "data_digest": data.digest,
        "strategy": settings.strategy,
        "method": method,
        "seed": settings.seed,
        "provider": model.backbone.provider,
        "pretrained": model.backbone.weights.replace(f"{repository_root()}/", ""),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "split_sizes": {str(split): int(size) for split, size in samples["split"].value_counts(sort=False).items()},
        "train_normal": data.class_counts[0],
        "train_defective": data.class_counts[1],
        "train_annotated": int((samples["mask"].notna() & (samples["split"] == "train")).sum()),
    }
    with recorded(folder, manifest, settings, launch, device=device, precision=precision):
        fit_interruptibly(
            settings, launch, device, module, data, precision=precision, checkpoint=checkpoint,
            every_weight_learns=False,  # those of heads whose terms are not in force yet do not
            max_epochs=settings.num_epochs, callbacks=[checkpoints, EpochLog()], log_every_n_steps=5,
        )  # fmt: skip
        with together():
            if launch.is_main:
                best, _ = runs.load_checkpoint_model(folder / "checkpoints" / "best.ckpt")
                if settings.defect_types == "auto" and not method:
                    _name_types(best, data, device)
                    manifest["defect_types"] = [] if best.types is None else [*best.types.names]
                runs.save_weights(best, folder / "model.safetensors")
        manifest |= {"best_epoch": checkpoints.best_epoch, "best_val_ap": checkpoints.best_score[0]}
        of_all = runs.read_checkpoint(folder / "checkpoints" / "last.ckpt")["gainmtl_shown"]
        shown = [dict(zip(("pictures", "edited"), counts)) for counts in of_all.tolist()]
        manifest["shown"] = dict(zip(CLASS_NAMES, shown))


def _name_types(model: GAINMTLModel, data: GainDataModule, device: torch.device) -> None:
    """As in validation, S6's attention takes the model's own masks."""
    own, model.mask_source = model.mask_source, "localization"
    fit_types(model.to(device), data)
    model.mask_source = own
