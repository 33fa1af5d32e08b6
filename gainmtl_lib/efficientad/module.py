"""EfficientAD's training step as Lightning runs it, and its validation.

B images, P pictures for the penalty, H x W pixels, C channels.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from gainmtl_lib.efficientad.augment import recoloured
from gainmtl_lib.efficientad.losses import (
    TERMS,
    distance_loss,
    hard_feature_loss,
    pretraining_penalty,
    total_loss,
)
from gainmtl_lib.efficientad.model import EfficientADModel
from gainmtl_lib.efficientad.provider import as_batch
from gainmtl_lib.efficientad.stream import TrainBatch
from gainmtl_lib.efficientad.validation import Scores, Validation
from gainmtl_lib.training.module import TrainingDivergedError

STEPS_BETWEEN_CHECKS = 10
"""Whether losses are finite is asked for several steps at once: each answer waits for the device."""


class EfficientADTraining(L.LightningModule):
    """One optimisation of an `EfficientADModel` (algorithm 1 of the paper).

    Everything random in a step (dropout, colours) follows from (seed, step, rank), so that a resumed run repeats what
    an uninterrupted one does.

    Args:
        model: what is trained; its teacher and the teacher's statistics are set.
        total_steps: optimiser steps of the whole training; the learning rate falls to a tenth at 95 % of them.
        learning_rate: Adam's.
        weight_decay: Adam's.
        st_weight: of the hard feature loss.
        penalty_weight: of the pretraining penalty.
        ae_weight: of both terms of the autoencoder.
        hard_quantile: see `hard_feature_loss`.
        seed: of the run.
        stored: plain entries that every checkpoint carries, to be checked when it is loaded.
    """

    _validation: Validation

    def __init__(
        self,
        *,
        model: EfficientADModel,
        total_steps: int,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-5,
        st_weight: float = 1.0,
        penalty_weight: float = 1.0,
        ae_weight: float = 1.0,
        hard_quantile: float = 0.999,
        seed: int = 42,
        stored: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.total_steps = total_steps
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.weights = {"st_weight": st_weight, "penalty_weight": penalty_weight, "ae_weight": ae_weight}
        self.hard_quantile = hard_quantile
        self.seed = seed
        self.stored = stored or {}
        self._unchecked: list[Tensor] = []
        self._scores: Scores | None = None

    def losses(self, images: Tensor, augmented: Tensor, penalty: Tensor) -> dict[str, Tensor]:
        """The four `TERMS`, with one pass of the student and one of the teacher.

        Args:
            images: normal, (B, 3, H, W) in [0, 1].
            augmented: the same with other colours.
            penalty: pictures of something else, (P, 3, H, W).
        """
        model, (p, b), c = self.model, (len(penalty), len(images)), self.model.out_channels
        pixels = model.normalized(torch.cat([penalty, images, augmented]))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        described = model.describe(pixels[p:])
        hidden = model.student.hidden(pixels)
        # Each picture needs one half of the student's description only.
        penalised, local = model.student.part(hidden[: p + b], slice(0, c)).split([p, b])
        whole = model.student.part(hidden[p + b :], slice(c, 2 * c))
        predicted = model.autoencoder(pixels[p + b :], (described.shape[-2], described.shape[-1]))
        return {
            "st": hard_feature_loss(local, described[:b], self.hard_quantile),
            "penalty": pretraining_penalty(penalised),
            "ae": distance_loss(predicted, described[b:]),
            "stae": distance_loss(whole, predicted),
        }

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        torch.manual_seed(self.seed * 1_000_003 + batch.number)
        augmented = recoloured(batch.images, seed=self.seed, number=batch.number)
        terms = self.losses(batch.images, augmented, batch.penalty)
        total = total_loss(terms, **self.weights)
        self._stop_unless_finite(terms, total)
        tags = {f"train/{name}_loss": value.detach() for name, value in terms.items()}
        tags |= {
            "train/loss_total": total.detach(),
            "train/learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
        }
        self.log_dict(tags, batch_size=1)
        return total

    def _stop_unless_finite(self, terms: dict[str, Tensor], total: Tensor) -> None:
        self._unchecked.append(torch.stack([*(terms[name].detach() for name in TERMS), total.detach()]))
        if len(self._unchecked) < STEPS_BETWEEN_CHECKS and not self.trainer.is_last_batch:
            return
        values = torch.stack(self._unchecked).cpu()  # (steps, terms and their sum)
        self._unchecked.clear()
        broken = ~torch.isfinite(values)
        if not broken.any():
            return
        row = int(broken.any(dim=1).nonzero()[0])
        names = [name for name, wrong in zip(TERMS, broken[row, :-1].tolist(), strict=True) if wrong]
        step = self.global_step + 1 - (len(values) - 1 - row)  # the last row is of the step that is under way
        raise TrainingDivergedError(
            f"the loss became {values[row, -1].item()} in {', '.join(names) or 'the sum'} at step {step}; "
            "the last checkpoint holds the validation before. Try a lower learning_rate, or precision '32'"
        )

    def on_validation_epoch_start(self) -> None:
        self._validation = Validation(seed=self.seed)

    def validation_step(self, item: Any, batch_idx: int) -> None:
        batch = as_batch(item, split="val")
        # In the training's precision, as the finished model is evaluated: the scale of its maps must be that one.
        images = batch.images.contiguous(memory_format=torch.channels_last)
        self._validation.update(self.model.local_maps(images), batch)

    def on_validation_epoch_end(self) -> None:
        """Every process validates on all images: nothing has to be gathered, and all decide alike."""
        self._scores = self._validation.finish(self.model)
        self.log_dict({f"val/{name}": score for name, score in self._scores._asdict().items()}, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= self.stored | {"scores": {} if self._scores is None else self._scores._asdict()}

    def configure_optimizers(self) -> Any:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        fused = self.device.type in {"cpu", "cuda"}  # one pass over the weights instead of a dozen
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused)
        decay_from = int(0.95 * self.total_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 if step >= decay_from > 0 else 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
