"""From settings to a finished run: claim the folder, train or go on, leave weights and a manifest."""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, WandbLogger

from gainmtl_lib.build import build_data, build_model
from gainmtl_lib.claims import claim
from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.data.samples import data_digest
from gainmtl_lib.devices import checked_device, lightning_precision
from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.parameters import repository_root
from gainmtl_lib.runs import Run, RunError, load_checkpoint_model, save_weights
from gainmtl_lib.settings import Settings
from gainmtl_lib.training.checkpoints import AtomicCheckpointIO, EpochLog, RunCheckpoints
from gainmtl_lib.training.losses import GainLoss, focal_alpha
from gainmtl_lib.training.mask_mixing import MaskMixer
from gainmtl_lib.training.module import GainTraining
from gainmtl_lib.training.resume import checkpoint_to_resume, forget_foreign_best
from gainmtl_lib.training.schedule import Schedule
from gainmtl_lib.training.session import (
    check_intent,
    circumstances,
    event_loggers,
    fit_interruptibly,
    is_finished,
    previous_manifest,
    recorded,
)

logger = logging.getLogger(__name__)


def fit(settings: Settings, *, resume: str | Path | None = None, force: bool = False) -> Run:
    """Train one strategy, or return its finished run.

    A finished run with equal settings on equal data is returned as it is. An unfinished one goes on from
    its last checkpoint.

    Args:
        settings: of the run; they decide its folder.
        resume: checkpoint to go on from, in place of the folder's own last one.
        force: start anew, dropping what the folder holds.

    Raises:
        RunError: the folder is in use or holds a run with other settings or data; the run is finished already;
            the checkpoint is none or of another training (see `checkpoint_to_resume`), or both `resume` and
            `force` were asked for.
        TrainingDivergedError: a loss became NaN or infinite.
    """
    check_intent(settings.run_dir, resume=resume, force=force)
    with claim(settings, force=force) as folder:
        finished = is_finished(folder, resume=resume)
        data = build_data(settings)
        digest = data_digest(data.samples)
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
