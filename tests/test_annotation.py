"""Shares and qualities of training masks, on masks drawn by hand."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from gainmtl_lib.dataset import annotated_defects, coarser_mask, with_mask_share


def table(scratches: int = 15, dents: int = 5) -> pd.DataFrame:
    """Training defects of two types with masks, one without, a normal one, and an annotated defect of the test split."""
    rows = [("scratch", 1, f"s{k}", "train") for k in range(scratches)]
    rows += [("dent", 1, f"d{k}", "train") for k in range(dents)]
    rows += [("dent", 1, None, "train"), ("normal", 0, None, "train"), ("dent", 1, "t", "test")]
    return pd.DataFrame(rows, columns=["defect_type", "label", "mask", "split"], dtype=object).astype({"label": int})


def kept(share: float, *, seed: int = 0, samples: pd.DataFrame | None = None) -> set[str]:
    left = with_mask_share(table() if samples is None else samples, share, seed=seed)
    return set(left.loc[annotated_defects(left), "mask"])


def drawn(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (20, 30)) -> np.ndarray:
    """Boxes of (top, left, height, width)."""
    mask = np.zeros(size, dtype=bool)
    for top, left, height, width in boxes:
        mask[top : top + height, left : left + width] = True
    return mask


def coarser(mask: np.ndarray, quality: str, seed: int = 0) -> np.ndarray:
    before = mask.copy()
    result = coarser_mask(mask, quality, np.random.default_rng(seed))
    assert np.array_equal(mask, before) and result.dtype == bool and result.shape == mask.shape
    return result


def test_only_training_defects_with_a_mask_count():
    assert annotated_defects(table()).tolist() == [True] * 20 + [False] * 3


@pytest.mark.parametrize(
    "share, count", [(0.0, 0), (0.001, 1), (0.05, 1), (0.1, 2), (0.25, 5), (0.5, 10), (0.9, 18), (1.0, 20)]
)
def test_the_share_is_kept_at_least_one_unless_none(share, count):
    assert len(kept(share)) == count


def test_shares_are_nested_and_drawn_by_the_seed():
    shares = [kept(share) for share in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)]
    assert all(less < more for less, more in pairwise(shares))
    assert kept(0.25) == kept(0.25)
    assert len({frozenset(kept(0.25, seed=seed)) for seed in range(10)}) > 5


@pytest.mark.parametrize("seed", range(5))
def test_each_type_keeps_the_same_share(seed):
    for share, scratches, dents in ((0.2, 3, 1), (0.4, 6, 2), (0.6, 9, 3)):
        names = kept(share, seed=seed)
        assert (sum(n[0] == "s" for n in names), sum(n[0] == "d" for n in names)) == (scratches, dents)


def test_nothing_else_changes():
    samples = table()
    left = with_mask_share(samples, 0.0, seed=0)
    pd.testing.assert_frame_equal(left.drop(columns="mask"), samples.drop(columns="mask"))
    assert left["mask"].tolist() == [None] * 22 + ["t"] and samples["mask"].notna().sum() == 21
    none = samples.assign(mask=None)
    assert with_mask_share(none, 0.5, seed=0)["mask"].isna().all()


def test_exact_masks_and_empty_ones_stay():
    mask = drawn((3, 4, 5, 6))
    assert np.array_equal(coarser(mask, "exact"), mask)
    for quality in ("box", "dilated", "shifted"):
        assert not coarser(drawn(), quality).any()


def test_boxes_hold_their_pieces():
    ring = drawn((2, 3, 6, 8))
    ring[4:6, 5:9] = False
    assert np.array_equal(coarser(ring, "box"), drawn((2, 3, 6, 8)))
    assert np.array_equal(coarser(drawn((1, 1, 2, 2), (10, 20, 3, 4)), "box"), drawn((1, 1, 2, 2), (10, 20, 3, 4)))


def test_boxes_that_touch_become_one():
    line, dot = drawn((2, 2, 1, 8), (3, 2, 7, 1)), drawn((5, 5, 2, 2))  # an angle whose box holds the dot
    assert np.array_equal(coarser(line | dot, "box"), drawn((2, 2, 8, 8)))
    diagonal = drawn((2, 2, 3, 3), (5, 5, 3, 3))
    assert np.array_equal(coarser(diagonal, "box"), drawn((2, 2, 6, 6)))
    angle = drawn((2, 2, 1, 6), (3, 2, 3, 1))  # its box ends where the other begins
    assert np.array_equal(coarser(angle | drawn((6, 7, 2, 8)), "box"), drawn((2, 2, 6, 13)))


def test_a_dilated_square_grows_by_half_its_side():
    grown = coarser(drawn((8, 10, 4, 4)), "dilated")
    rows, columns = np.flatnonzero(grown.any(1)), np.flatnonzero(grown.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (6, 13, 8, 15)
    assert not grown[6, 8], "grown by a disc: the corners are round"
    assert 48 < grown.sum() <= 64


def test_each_piece_is_dilated_by_its_own_size():
    grown = coarser(drawn((6, 4, 8, 8), (2, 27, 1, 1)), "dilated")
    assert grown[:, :20].sum() > 2 * 64
    assert grown[:, 20:].sum() == 5, "a single pixel grows by one"


@pytest.mark.parametrize("seed", range(8))
def test_a_shifted_mask_lies_beside_a_compact_defect(seed):
    mask = drawn((18, 18, 6, 6), size=(40, 40))
    moved = coarser(mask, "shifted", seed)
    assert moved.sum() == 36
    centre = np.argwhere(moved).mean(axis=0) - np.argwhere(mask).mean(axis=0)
    assert np.hypot(*centre) == pytest.approx(6, abs=0.75)
    assert (moved & mask).sum() <= 9


def test_directions_of_the_shift_differ_and_follow_the_seed():
    mask = drawn((18, 18, 6, 6), size=(40, 40))
    places = {coarser(mask, "shifted", seed).tobytes() for seed in range(20)}
    assert len(places) > 12
    assert np.array_equal(coarser(mask, "shifted", 3), coarser(mask, "shifted", 3))


@pytest.mark.parametrize(
    "mask", [drawn((0, 0, 3, 3)), drawn((0, 0, 20, 30)), drawn((0, 0, 20, 29)), drawn((19, 0, 1, 30))]
)
def test_at_least_half_of_a_shifted_mask_stays_in_the_picture(mask):
    for seed in range(10):
        assert coarser(mask, "shifted", seed).sum() >= mask.sum() / 2


def test_an_unknown_quality_is_named():
    with pytest.raises(ValueError, match="mask quality must be one of exact, box, dilated, shifted, got 'rough'"):
        coarser(drawn((1, 1, 2, 2)), "rough")
