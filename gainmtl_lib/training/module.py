"""The training step as Lightning runs it: stage weights in force, loss terms, tags, and validation."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.classification import BinaryAccuracy, BinaryAveragePrecision

from gainmtl_lib.metrics import CamIoU
from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.records import Batch, GainOutput
from gainmtl_lib.training.losses import GainLoss
from gainmtl_lib.training.mask_mixing import MaskMixer
from gainmtl_lib.training.schedule import Schedule, mask_blend_alpha


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
