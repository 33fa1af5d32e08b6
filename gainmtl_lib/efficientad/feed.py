"""What Lightning asks for batches: training in intervals of steps, validation as it is."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.efficientad.penalty import PenaltyImages
from gainmtl_lib.efficientad.provider import DatasetProvider, as_batch
from gainmtl_lib.efficientad.stream import Interval, TrainStream


class TrainingFeed(L.LightningDataModule):
    """The loaders of one training. Made in one process, it can be sent to those that train; each opens its own files.

    Args:
        provider: of the pictures.
        penalty: pictures for the penalty.
        total_steps: optimiser steps of the whole training.
        every: steps of an interval, after which the model is validated; the last is what remains.
        batch_size: pictures of a step on one device.
        seed: of the run.
        num_workers: processes that make the penalty's pictures.
    """

    def __init__(
        self,
        provider: DatasetProvider,
        penalty: PenaltyImages,
        *,
        total_steps: int,
        every: int,
        batch_size: int,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        self.provider, self.penalty = provider, penalty
        self.total_steps, self.every = total_steps, every
        self._stream_options = {"batch_size": batch_size, "seed": seed, "num_workers": num_workers}
        self._stream: TrainStream | None = None
        self._validation: DataLoader[Any] | None = None

    @property
    def intervals(self) -> int:
        """How many there are."""
        return math.ceil(self.total_steps / self.every)

    def train_dataloader(self) -> Interval:
        trainer = self.trainer
        assert trainer is not None
        if self._stream is None:
            ranks = {"rank": trainer.global_rank, "world": trainer.world_size}
            self._stream = TrainStream(self.provider, self.penalty, **self._stream_options, **ranks)
        first = trainer.global_step
        return self._stream.interval(first, min(first + self.every, self.total_steps))

    def val_dataloader(self) -> DataLoader[Any]:
        if self._validation is None:
            self._validation = self.provider.get_val_dataloader()
        return self._validation


def check_validation(provider: DatasetProvider) -> None:
    """Raises `DataError`: the validation images cannot be used, or lack normal or anomalous ones."""
    labels = [int(label) for item in provider.get_val_dataloader() for label in as_batch(item, split="val").labels]
    if len(set(labels)) < 2:
        raise DataError(
            f"{type(provider).__name__}: the validation images are {labels.count(0)} normal and {labels.count(1)} "
            "anomalous ones; needs both: scale and best checkpoint follow from them"
        )
