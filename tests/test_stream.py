from __future__ import annotations

import multiprocessing
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler

from gainmtl_lib.efficientad.data import DatasetProvider, DrawnImages, FolderImages, TrainStream
from gainmtl_lib.readers import DataError, UnreadableError

SIZE = (32, 32)
COUNT = 7


class Numbered(Dataset):
    """Image k is plain, of value k / 100."""

    def __len__(self):
        return COUNT

    def __getitem__(self, place):
        return torch.full((3, *SIZE), place / 100)


class Own(DatasetProvider):
    def __init__(self, loader):
        self.train = loader

    def get_train_dataloader(self):
        return self.train

    def get_val_dataloader(self):
        return self.train


def shuffled(**options) -> DataLoader:
    return DataLoader(Numbered(), **{**dict(batch_size=2, shuffle=True), **options})


def stream(loader: DataLoader | None = None, *, seed: int = 0, **options) -> TrainStream:
    penalty = DrawnImages(image_size=SIZE, seed=seed)
    return TrainStream(Own(shuffled() if loader is None else loader), penalty, batch_size=2, seed=seed, **options)


def seen(batches) -> list[tuple[int, list[int], float]]:
    return [
        (batch.number, (batch.images[:, 0, 0, 0] * 100).round().int().tolist(), float(batch.penalty.sum()))
        for batch in batches
    ]


def test_passes_follow_one_another_each_with_every_image_once():
    one = stream()
    assert one.steps_per_pass == 4
    batches = seen(one.interval(0, 12))
    assert [number for number, _, _ in batches] == list(range(12))
    for begun in (0, 4, 8):
        order = [image for _, images, _ in batches[begun : begun + 4] for image in images]
        assert sorted(order) == list(range(COUNT))
    assert len({str(batches[begun : begun + 4][0][1]) for begun in range(0, 12, 4)}) > 1
    assert len({penalty for _, _, penalty in batches}) == 12


@pytest.mark.parametrize(
    "make",
    [
        shuffled,
        lambda: shuffled(generator=torch.Generator().manual_seed(9)),
        lambda: shuffled(num_workers=1, persistent_workers=True),
        lambda: shuffled(num_workers=1, persistent_workers=True, generator=torch.Generator()),
        lambda: DataLoader(Numbered(), batch_sampler=BatchSampler(RandomSampler(Numbered()), 2, drop_last=False)),
    ],
    ids=["global", "own generator", "worker", "worker and generator", "batch sampler"],
)
def test_a_stream_that_begins_later_goes_on_as_the_whole_one(make):
    whole = seen(stream(make()).interval(0, 11))
    torch.manual_seed(123)
    assert seen(stream(make()).interval(6, 11)) == whole[6:]


def test_intervals_continue_and_can_be_read_again():
    whole = seen(stream().interval(0, 9))
    one = stream()
    first, second = one.interval(0, 5), one.interval(5, 9)
    assert (len(first), len(second)) == (5, 4)
    assert seen(first) + seen(second) == whole
    assert seen(second) == whole[5:]
    assert seen(islice(iter(first), 2)) == whole[:2]


def test_the_seed_decides():
    assert seen(stream().interval(0, 8)) == seen(stream().interval(0, 8))
    assert seen(stream(seed=1).interval(0, 8)) != seen(stream().interval(0, 8))


def test_devices_share_the_batches_of_the_stream():
    whole = seen(stream().interval(0, 12))
    parts = [seen(stream(rank=rank, world=3).interval(0, 4)) for rank in range(3)]
    assert [batch for step in zip(*parts, strict=True) for batch in step] == whole
    assert seen(stream(rank=1, world=3).interval(2, 4)) == parts[1][2:]


def test_global_random_numbers_are_left_alone():
    one = stream()
    state, own = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(one.interval(0, 9))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], own)  # noqa: NPY002


def test_workers_of_the_penalty_change_nothing():
    assert seen(stream(num_workers=2).interval(3, 8)) == seen(stream().interval(3, 8))


def test_sizes_of_images_and_penalty():
    batches = list(stream().interval(0, 4))
    assert [len(batch.images) for batch in batches] == [2, 2, 2, 1]
    assert [len(batch.penalty) for batch in batches] == [2, 2, 2, 2]


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(3, *SIZE)


class Short(IterableDataset):
    def __len__(self):
        return 5

    def __iter__(self):
        return iter([torch.zeros(3, *SIZE)] * 3)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Endless()), "the train loader has no length"),
        (DataLoader(torch.zeros(0, 3, 4, 4)), "the train loader is empty; expected normal images"),
        ([torch.zeros(1, 3, 4, 4)], "get_train_dataloader returned list; expected a torch.utils.data.DataLoader"),
    ],
)
def test_loaders_that_cannot_be_used(loader, message):
    with pytest.raises(DataError, match=message):
        stream(loader)


def test_images_of_another_size_than_the_settings_say():
    loader = DataLoader(torch.zeros(3, 3, 40, 32))  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match=r"images of \(40, 32\) pixels, image_size is \(32, 32\); set image_size"):
        stream(loader).batch(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_has_no_traceback_in_its_text(tmp_path, workers):
    (tmp_path / "a.png").write_bytes(b"junk")
    penalty = FolderImages(tmp_path, image_size=SIZE, seed=0, skip_unreadable=False)
    one = TrainStream(Own(shuffled()), penalty, batch_size=2, seed=0, num_workers=workers)
    with pytest.raises(UnreadableError, match=rf"^{tmp_path}/a\.png: [^\n]*skip_unreadable: true$"):
        one.batch(0)


def test_a_pass_of_another_length_than_promised():
    with pytest.raises(DataError, match="has length 5, but a pass over it gave 3 batches"):
        list(stream(DataLoader(Short())).interval(0, 6))


def test_processes_end_with_the_stream():
    others = set(multiprocessing.active_children())
    one = stream(shuffled(num_workers=1), num_workers=1)
    first = seen(one.interval(0, 2))
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    one.close()
    assert not any(worker.is_alive() for worker in workers)
    assert seen(one.interval(0, 2)) == first
