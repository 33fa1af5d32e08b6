"""Which checkpoints a run keeps (last, periodic, best), and that none is ever half-written."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from gainmtl_lib.files import atomic_path

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
