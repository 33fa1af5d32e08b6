"""Which of EfficientAD's checkpoints are kept, when a training stops early, and how it shows that it is alive.

A validation stands at the end of each of Lightning's epochs, which here are intervals of optimiser steps.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor

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
