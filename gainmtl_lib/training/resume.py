"""Whether a training may go on from a checkpoint: the same model, the same plan, and something left to train."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gainmtl_lib.run_settings import RunSettings
from gainmtl_lib.runs import RunError, read_checkpoint
from gainmtl_lib.settings import TERMS, Settings

logger = logging.getLogger(__name__)


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
