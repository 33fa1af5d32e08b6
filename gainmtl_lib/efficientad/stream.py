"""Training batches by step: pass after pass over the normal images, pictures for the penalty beside them.

A step's batch follows from (seed, step) alone, so that a resumed run reads what an uninterrupted one reads.

B images, H x W pixels. Devices take turns: the batch of a step on a device has the number step x world + rank.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from gainmtl_lib.data.datamodule import whole_batches
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.efficientad.penalty import PenaltyImages
from gainmtl_lib.efficientad.processes import as_raised
from gainmtl_lib.efficientad.provider import DatasetProvider, as_batch

SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_STREAM = 10
"""Keeps these random numbers apart from others of the same seed and pass."""


class TrainBatch(NamedTuple):
    """What one optimiser step reads on one device.

    Attributes:
        number: of the batch; with the seed it decides everything random in the step.
        images: normal, float32 (B, 3, H, W) in [0, 1]; B is smaller where a pass ends.
        penalty: something else, float32 (B', 3, H, W) in [0, 1].
    """

    number: int
    images: Tensor
    penalty: Tensor


class TrainStream:
    """The endless stream. Neighbouring intervals go on where the last one ended; any other start is found by skipping.

    It holds iterators and so belongs to the process that trains.

    Args:
        provider: gives the training loader.
        penalty: pictures by number.
        batch_size: B', pictures for the penalty in each batch.
        seed: of the run.
        num_workers: processes that make the pictures for the penalty.
        rank: of this device.
        world: number of devices.

    Attributes:
        steps_per_pass: batches in one pass, of all devices together.

    Raises:
        DataError: the training loader is empty or has no length.
    """

    def __init__(
        self,
        provider: DatasetProvider,
        penalty: PenaltyImages,
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        loader = provider.get_train_dataloader()
        self.steps_per_pass = _length(loader)
        self._source = _Source(loader, penalty, self.steps_per_pass, batch_size, seed, num_workers, rank, world)
        self._next = 0
        self._batches = self._source.batches(0)

    def interval(self, first: int, stop: int) -> Interval:
        """The batches of steps `first` to `stop` - 1."""
        return Interval(self, first, stop)

    def batch(self, step: int) -> TrainBatch:
        """The batch of a step; steps in order cost no skipping.

        Raises:
            DataError: the loader yields something that is no batch of normal images, or images of another size.
        """
        if step != self._next:
            self.close()
            self._batches = self._source.batches(step)
        self._next = step + 1
        try:
            return next(self._batches)
        except DataError as error:  # of a loader's process it has the whole traceback as its text
            raise as_raised(error) from None

    def close(self) -> None:
        """End the loaders' processes. The next batch starts others."""
        self._batches.close()
        self._next = -1


@dataclass(frozen=True)
class _Source:
    """What a stream reads. Apart from it, because workers end at once only if no cycle of references holds them."""

    loader: DataLoader[Any]
    penalty: PenaltyImages
    steps_per_pass: int
    batch_size: int
    seed: int
    num_workers: int
    rank: int
    world: int

    def batches(self, step: int) -> Generator[TrainBatch, None, None]:
        first = step * self.world + self.rank
        penalty = whole_batches(
            self.penalty,
            self._penalty_numbers(first),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
        )
        normal = islice(self._normal(first), 0, None, self.world)
        for number, item, others in zip(count(first, self.world), normal, penalty):
            images = as_batch(item, split="train").images
            if images.shape[2:] != others.shape[2:]:
                raise DataError(
                    f"the train loader yields images of {tuple(images.shape[2:])} pixels, image_size is "
                    f"{tuple(others.shape[2:])}; set image_size to what the loader yields (height, width)"
                )
            yield TrainBatch(number, images, others)

    def _penalty_numbers(self, first: int) -> Iterator[int]:
        for number in count(first, self.world):
            yield from range(number * self.batch_size, (number + 1) * self.batch_size)

    def _normal(self, first: int) -> Iterator[Any]:
        """What the training loader yields from batch `first` on, over all devices."""
        begun, skipped = divmod(first, self.steps_per_pass)
        for number in count(begun):
            passed = 0
            for passed, item in enumerate(_pass(self.loader, self.seed, number), start=1):
                if number > begun or passed > skipped:
                    yield item
            if passed != self.steps_per_pass:
                raise DataError(
                    f"the train loader has length {self.steps_per_pass}, but a pass over it gave {passed} batches; "
                    "expected the same in each pass"
                )


@dataclass(frozen=True)
class Interval:
    """Neighbouring steps of a stream, with a length."""

    stream: TrainStream
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first

    def __iter__(self) -> Iterator[TrainBatch]:
        return map(self.stream.batch, range(self.first, self.stop))


def _pass(loader: DataLoader[Any], seed: int, number: int) -> Iterator[Any]:
    """One pass in an order that follows from (seed, number), whoever made the loader."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    for part in (sampler, loader.batch_sampler):
        if (set_epoch := getattr(part, "set_epoch", None)) is not None:
            set_epoch(number)
    drawn = int(np.random.default_rng([seed, number, _STREAM]).integers(2**63))
    if isinstance(sampler, SHUFFLING):
        sampler.generator = torch.Generator().manual_seed(drawn)
    if loader.generator is not None:
        loader.generator.manual_seed(drawn)
    # An iterator draws the seed of its workers from the global random numbers where the loader has none of its own.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(drawn)
        batches = iter(loader)
    yield from batches


def _length(loader: DataLoader[Any]) -> int:
    if not isinstance(loader, DataLoader):
        raise DataError(
            f"get_train_dataloader returned {type(loader).__name__}; expected a torch.utils.data.DataLoader"
        )
    try:
        length = len(loader)
    except TypeError:
        raise DataError(
            "the train loader has no length; a training counts its passes, so that its dataset needs __len__"
        ) from None
    if not length:
        raise DataError("the train loader is empty; expected normal images")
    return length
