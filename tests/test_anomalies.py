from __future__ import annotations

import numpy as np
import pytest
import torch

from gainmtl_lib.efficientad.data import CUT_PASTE, KINDS, LEAST_CHANGE, NormalsAndAnomalies, kind_of, synthesise

SIZE = (64, 80)


def photograph(seed: int = 0, *, size=SIZE, low: int = 90, high: int = 150) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (*size, 3), dtype=np.uint8)


def plain(value: int) -> np.ndarray:
    return np.full((*SIZE, 3), value, np.uint8)


def made(image: np.ndarray, index: int, *, seed: int = 0, other: np.ndarray | None = None, **options):
    return synthesise(
        image, other=lambda: photograph(99) if other is None else other, seed=seed, index=index, **options
    )


def numbered(kind: str, *, seed: int = 0) -> int:
    """The first anomaly of a kind."""
    return next(index for index in range(4) if kind_of(index, seed=seed) == kind)


def test_kinds_take_turns_in_changing_order():
    rounds = [[kind_of(4 * k + turn, seed=0) for turn in range(4)] for k in range(6)]
    assert all(sorted(kinds) == sorted(KINDS) for kinds in rounds)
    assert len({tuple(kinds) for kinds in rounds}) > 2
    assert rounds != [[kind_of(4 * k + turn, seed=1) for turn in range(4)] for k in range(6)]


@pytest.mark.parametrize("index", range(8))
def test_the_mask_is_exact_and_the_anomaly_visible(index):
    image = photograph()
    before = image.copy()
    anomaly = made(image, index)
    assert anomaly.kind == kind_of(index, seed=0)
    assert (anomaly.image.shape, anomaly.image.dtype) == ((*SIZE, 3), np.uint8)
    assert (anomaly.mask.shape, anomaly.mask.dtype) == (SIZE, np.bool_)
    assert np.array_equal(anomaly.image[~anomaly.mask], image[~anomaly.mask])
    assert anomaly.mask.sum() >= max(8, 0.0015 * 64 * 80)
    change = np.abs(anomaly.image.astype(int) - image).max(axis=2)[anomaly.mask]
    assert np.median(change) >= LEAST_CHANGE
    assert np.array_equal(image, before)


@pytest.mark.parametrize("value", [0, 20, 128, 255])
@pytest.mark.parametrize("index", range(4))
def test_anomalies_are_seen_on_black_grey_and_white(value, index):
    anomaly = made(plain(value), index, other=plain(value))
    change = np.abs(anomaly.image.astype(int) - value).max(axis=2)
    assert np.median(change[anomaly.mask]) >= LEAST_CHANGE


def test_defects_of_grey_photographs_are_grey():
    for index in range(12):
        image = made(plain(100), index, other=plain(60)).image
        assert (image == image[..., :1]).all()
    coloured = plain(100)
    coloured[..., 0] = 140
    image = made(coloured, numbered("wrong_object")).image.astype(int)
    assert len(np.unique(image[..., 0] - image[..., 1])) > 1


def test_seed_and_index_decide():
    image = photograph()
    first = made(image, 5)
    assert np.array_equal(first.image, made(image, 5).image)
    assert not any(np.array_equal(first.mask, made(image, index).mask) for index in (0, 1, 2, 3, 4, 6, 7, 8, 9))
    assert not np.array_equal(first.mask, made(image, 5, seed=1).mask)


def test_a_pasted_piece_is_of_the_other_picture_in_another_light():
    low, high = photograph(1, low=40, high=44), photograph(2, low=180, high=184)
    anomaly = made(low, numbered(CUT_PASTE), other=high)
    rows, columns = np.nonzero(anomaly.mask)
    assert anomaly.mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
    piece = anomaly.image[anomaly.mask].astype(int)
    assert abs(np.median(piece) - 182) <= 0.15 * 255 + 3
    assert np.ptp(piece) <= 4


def test_other_pictures_may_be_smaller_and_are_asked_for_only_when_pasted():
    def never():
        raise AssertionError

    for kind in KINDS:
        index = numbered(kind)
        if kind == CUT_PASTE:
            made(photograph(), index, other=photograph(1, size=(9, 70)))
        else:
            synthesise(photograph(), other=never, seed=0, index=index)


@pytest.mark.parametrize("rows", [slice(24, 40), slice(30, 34)])
def test_anomalies_stay_in_the_region(rows):
    region = (rows, slice(0, 80))
    outside = np.ones(SIZE, bool)
    outside[region] = False
    for index in range(8):
        anomaly = made(photograph(), index, region=region)
        assert anomaly.mask.sum() >= 8
        assert not anomaly.mask[outside].any()


def test_the_set_holds_the_normals_and_then_their_copies():
    pictures = [photograph(number) for number in range(5)]
    both = NormalsAndAnomalies(pictures, seed=3, rows=[7, 8, 9, 11, 12])
    batch = both.__getitems__(list(range(len(both))))
    assert batch.images.shape == (10, 3, *SIZE)
    assert (batch.images.dtype, batch.masks.dtype, batch.labels.dtype) == (torch.float32, torch.float32, torch.int64)
    assert batch.labels.tolist() == [0] * 5 + [1] * 5
    assert batch.has_mask.tolist() == [False] * 5 + [True] * 5
    assert batch.index.tolist() == [7, 8, 9, 11, 12] * 2
    assert not batch.masks[:5].any()
    for place in range(5):
        normal, copy, mask = batch.images[place], batch.images[place + 5], batch.masks[place + 5, 0].bool()
        assert torch.equal(normal, torch.from_numpy(pictures[place]).permute(2, 0, 1) / 255)
        assert torch.equal(copy[:, ~mask], normal[:, ~mask])
        assert not torch.equal(copy, normal)


def test_single_items_are_those_of_the_batch_and_the_seed_counts():
    pictures = [photograph(number) for number in range(4)]
    both = NormalsAndAnomalies(pictures, seed=3)
    batch = both.__getitems__([5, 2])
    assert torch.equal(both[5].images[0], batch.images[0])
    assert both[2].index.tolist() == [2]
    assert not torch.equal(NormalsAndAnomalies(pictures, seed=4)[5].images, both[5].images)


class Watched(list):
    """Pictures that remember which of them were asked for."""

    def __init__(self, pictures):
        super().__init__(pictures)
        self.asked: list[int] = []

    def __getitem__(self, place):
        self.asked.append(place)
        return super().__getitem__(place)


@pytest.mark.parametrize("count", [4, 6])
def test_pieces_come_from_another_picture(count):
    for seed in range(8):
        place = numbered(CUT_PASTE, seed=seed)
        pictures = Watched([photograph(number) for number in range(count)])
        NormalsAndAnomalies(pictures, seed=seed)[count + place]
        assert pictures.asked[0] == place
        assert len(set(pictures.asked) - {place}) == 1


def test_of_a_single_picture_pieces_come_from_itself():
    seed = next(seed for seed in range(99) if kind_of(0, seed=seed) == CUT_PASTE)
    pictures = Watched([photograph()])
    assert NormalsAndAnomalies(pictures, seed=seed)[1].has_mask.tolist() == [True]
    assert pictures.asked == [0, 0]


@pytest.mark.parametrize("index", range(4))
def test_elongated_pictures_get_anomalies_too(index):
    image = np.full((64, 2048, 3), 128, np.uint8)
    made = synthesise(image, other=lambda: image, seed=0, index=index)
    assert made.mask.sum() >= 8
