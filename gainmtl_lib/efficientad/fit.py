"""From settings to a finished run of EfficientAD: claim the folder, train or go on, leave weights and a manifest."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from gainmtl_lib.claims import claim
from gainmtl_lib.devices import check_count, checked_device, inference_autocast, lightning_precision
from gainmtl_lib.efficientad.checkpoints import StepCheckpoints, StepLog, history_of, stops_early
from gainmtl_lib.efficientad.feed import TrainingFeed, check_validation
from gainmtl_lib.efficientad.model import EfficientADModel
from gainmtl_lib.efficientad.module import EfficientADTraining
from gainmtl_lib.efficientad.penalty import PenaltyImages, build_penalty
from gainmtl_lib.efficientad.processes import FreshProcesses
from gainmtl_lib.efficientad.provider import DatasetProvider, as_batch, build_provider
from gainmtl_lib.efficientad.runs import EfficientADRun, build_model, load_checkpoint
from gainmtl_lib.efficientad.settings import EfficientADSettings
from gainmtl_lib.efficientad.statistics import measure_teacher
from gainmtl_lib.efficientad.stream import TrainStream
from gainmtl_lib.efficientad.weights import load_teacher, teacher_of
from gainmtl_lib.models.weights import StateDict
from gainmtl_lib.runs import EFFICIENTAD, RunError, read_checkpoint, save_weights
from gainmtl_lib.training.checkpoints import AtomicCheckpointIO
from gainmtl_lib.training.resume import Continuity, forget_foreign_best, resumed_checkpoint
from gainmtl_lib.training.session import (
    check_intent,
    check_unchanged,
    circumstances,
    event_loggers,
    fit_interruptibly,
    is_finished,
    previous_manifest,
    recorded,
)

logger = logging.getLogger(__name__)

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
