"""Whether a training may go on from a checkpoint: the same model, the same plan, and something left to train."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gainmtl_lib.runs import RunError, read_checkpoint
from gainmtl_lib.settings import TERMS, Settings

logger = logging.getLogger(__name__)

ARCHITECTURE = (
    "strategy", "backbone_arch", "out_indices", "fpn_channels", "attention_channels", "head_channels", "map_stride",
    "map_channels", "use_counterfactual", "counterfactual_mode",
)  # fmt: skip
"""Settings that decide which weights a model has."""

PLAN = (
    "num_epochs", "batch_size", "learning_rate", "stage1_ratio", "stage2_ratio", "stage3_ratio", "stage4_ratio",
    "loc_warmup_ratio", *(f"lambda_{term}" for term in TERMS),
)  # fmt: skip
"""Settings that decide the learning rate and the loss weights of each step, as fractions of the whole training."""


def checkpoint_to_resume(folder: Path, settings: Settings, resume: str | Path | None) -> Path | None:
    """The checkpoint that a training goes on from; None when it starts at the beginning.

    Args:
        folder: of the run.
        settings: of the run.
        resume: checkpoint asked for, in place of the folder's own last one.

    Raises:
        RunError: it is no checkpoint, holds no optimiser state, belongs to another model or to a training with
            another plan, or nothing is left to train.
    """
    own = folder / "checkpoints"
    path = own / "last.ckpt" if resume is None else Path(resume)
    if resume is None and not path.is_file():
        return None
    checkpoint = read_checkpoint(path)
    _check_model_and_plan(path, checkpoint["gainmtl_settings"], settings.plain())
    if "optimizer_states" not in checkpoint:
        raise RunError(f"{path}: holds weights but no optimiser state; resume from last.ckpt or epoch_<n>.ckpt")
    epoch = checkpoint["epoch"] + 1
    best = own / "best.ckpt"
    from_elsewhere = path.resolve().parent != own.resolve()
    if epoch >= settings.num_epochs and (from_elsewhere or not best.is_file()):
        raise RunError(
            f"{path}: all {epoch} epochs are done, and {best} is not theirs; resume from an earlier checkpoint"
        )
    if from_elsewhere:
        best.unlink(missing_ok=True)  # of another training than the one that goes on
    logger.info("going on from %s, after epoch %d", path, epoch)
    return path


def _check_model_and_plan(path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if differing := _differing(ARCHITECTURE, stored, asked):
        raise RunError(f"{path}: a checkpoint of another model (stored and asked for):\n  {differing}")
    if differing := _differing(PLAN, stored, asked):
        raise RunError(
            f"{path}: a checkpoint of a training with another plan (stored and asked for):\n  {differing}\n"
            "the learning rate and the stages follow the whole training, of which a checkpoint is a part; keep these "
            "values, or start a new run without --resume"
        )


def _differing(names: Iterable[str], stored: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    pairs = ((name, stored.get(name), asked[name]) for name in names)
    return "\n  ".join(f"{name}: {before!r} and {now!r}" for name, before, now in pairs if before != now)
