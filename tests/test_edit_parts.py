"""What healing and pasting are made of: cutting, turning, placing, blending."""

import numpy as np
import pytest
from drawn_edits import MASKS, SIZE, box, dented, noisy, plain, rng

from gainmtl_lib.edits.heal import (
    EditError,
    aligning_turn,
    box_of,
    clone,
    direction,
    drawn_turn,
    grain,
    grown,
    halves,
    inner_weights,
    matched,
    moved_mask,
    near,
    outer_weights,
    patchwork,
    pieces,
    place,
    rim,
    turned,
    widened,
)
from gainmtl_lib.edits.paste import cut


@pytest.mark.parametrize("rows", [(0, 9), (0, 10), (7, 20), (8, 20), (30, 41), (31, 41)])
@pytest.mark.parametrize("columns", [(0, 12), (0, 13), (11, 30), (40, 52), (0, 52)])
@pytest.mark.parametrize("mixed", [False, True])
def test_cloning_keeps_every_pixel_at_its_place(rows, columns, mixed):
    size = (41, 52)
    region = box(rows, columns, size)
    target, patch = plain(100, size), plain(100, size)
    spot = (rows[0] + rows[1]) // 2, (columns[0] + columns[1]) // 2
    patch[spot] = 200
    result = clone(patch, target, region, mixed=mixed).astype(int)
    assert np.unravel_index(result[..., 0].argmax(), size) == spot
    assert result[spot].min() > (140 if mixed else 180)
    result[spot] = 100
    assert np.abs(result - 100).max() <= (25 if mixed else 4)


def test_cloning_a_picture_into_itself_changes_nothing():
    image = noisy(2)
    for mask in MASKS.values():
        assert np.abs(clone(image, image, mask).astype(int) - image).max() <= 2


def test_weights_rise_inside_only():
    region = box((4, 12), (4, 12), (16, 16))
    soft, inner = outer_weights(region, 2)[..., 0], inner_weights(region)[..., 0]
    assert not soft[~region].any() and not inner[~region].any()
    assert soft[8, 4] == pytest.approx(1 / 5**0.5, abs=0.001) and soft[8, 6] == 1
    assert inner[8, 4] == pytest.approx(0.75, abs=0.03) and inner[8, 6] == 1


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_grown_masks_are_replaced_in_full(width):
    for mask in (box((8, 9), (8, 9), (20, 20)), box((6, 12), (0, 1), (20, 20)), np.eye(20, dtype=np.bool_)):
        weights = outer_weights(grown(mask, width), width)[..., 0]
        assert (weights[mask] == 1).all() and weights[grown(mask, width) & ~mask].min() < 1


def test_brightness_is_matched_on_the_rings():
    ring = box((0, 2), (0, 4), (4, 4))
    patch, target = plain(100, (4, 4)), plain(150, (4, 4))
    patch[3, 3] = 40
    result = matched(patch, target, ring, ring)
    assert result[0, 0] == pytest.approx(150) and result[3, 3] == pytest.approx(60, abs=0.5)
    assert matched(patch, target, ring, ring, contrast=1.0)[3, 3] == pytest.approx(90)
    dark = matched(plain(10, (4, 4)), target, ring, ring)
    assert dark[0, 0] == pytest.approx(150)
    assert (matched(patch, target, ~ring & ring, ring) == patch).all()


def test_grain_is_the_step_between_neighbours():
    image = plain(100, (2, 4))
    image[:, ::2] = 104
    assert grain(image) == pytest.approx(np.sqrt(3 * 16 / 6))  # three steps of 4 across, three of 0 down
    assert grain(image, np.zeros((2, 4), np.bool_)) == 0
    image[:, 3] = 0
    assert grain(image, box((0, 2), (0, 3), (2, 4))) == pytest.approx(np.sqrt(2 * 16 / 4))


def stripes(angle):
    rows, columns = np.mgrid[:64, :64]
    grey = 120 + 40 * np.sin((columns * np.cos(angle) + rows * np.sin(angle)) / 4)
    return np.repeat(grey[..., None], 3, 2).astype(np.uint8)


@pytest.mark.parametrize(("degrees", "expected"), [(0, (1, 0)), (90, (-1, 0)), (45, (0, 1)), (135, (0, -1))])
def test_direction_of_stripes(degrees, expected):
    assert direction(stripes(np.deg2rad(degrees))) == pytest.approx(expected, abs=0.06)


def test_noise_has_no_direction():
    assert np.hypot(*direction(noisy())) < 0.6  # right and down share a pixel, which counts as a little of a diagonal
    assert (direction(plain()) == 0).all()


@pytest.mark.parametrize("turn", range(8))
def test_a_turned_texture_is_turned_back(turn):
    image = stripes(0.35)
    shown = turned(image, turn)
    found = aligning_turn(direction(image), direction(shown))
    assert direction(turned(shown, found)) == pytest.approx(direction(image), abs=0.1)


def test_a_texture_without_direction_stays_upright():
    assert aligning_turn(direction(noisy(0)), direction(noisy(1))) == 0
    assert aligning_turn(direction(stripes(0.0)), direction(stripes(0.1))) == 0


def test_rim_grows_with_the_picture():
    assert [rim((side, 999)) for side in (16, 64, 128, 512)] == [1, 1, 2, 3]


def test_boxes():
    mask = box((3, 8), (60, 64))
    assert box_of(mask) == (slice(3, 8), slice(60, 64))
    assert widened(box_of(mask), 5, SIZE) == (slice(0, 13), slice(55, 64))
    assert (grown(mask, 0) == mask).all() and grown(box((5, 6), (5, 6)), 2).sum() == 13 + 4
    assert near((slice(0, 20), slice(50, 64)), (16, 60)) == (slice(0, 16), slice(46, 60))


def test_near_pieces_are_one_and_far_ones_are_not():
    mask = box((10, 14), (10, 14)) | box((10, 14), (18, 22)) | box((40, 44), (40, 44))
    found = [int(piece.sum()) for piece in pieces(mask)]
    assert sorted(found) == [16, 32]


def test_halves_cut_the_longer_side():
    first, second = halves(box((10, 14), (10, 30)))
    assert (box_of(first)[1], box_of(second)[1]) == (slice(10, 20), slice(20, 30))
    first, second = halves(box((10, 30), (10, 14)))
    assert (box_of(first)[0], box_of(second)[0]) == (slice(10, 20), slice(20, 30))


def test_all_eight_turns():
    shape = np.array([[1, 2], [3, 4]])
    assert len({turned(shape, turn).tobytes() for turn in range(8)}) == 8
    assert turned(shape, 1).tolist() == [[2, 4], [1, 3]]
    wide = np.ones((2, 9), np.bool_)
    assert {drawn_turn(wide, (5, 20), rng(k)) for k in range(60)} == {0, 2, 4, 6}
    assert {drawn_turn(wide, (20, 20), rng(k)) for k in range(60)} == set(range(8))


def test_every_free_place_is_as_likely():
    shape, avoid = np.ones((2, 2), np.bool_), np.zeros((2, 6), np.bool_)
    avoid[:, 2] = True
    places = [place(shape, (2, 6), rng(k), avoid=avoid)[1].start for k in range(300)]
    counts = np.bincount(places, minlength=5)
    assert counts[[1, 2]].sum() == 0 and counts[[0, 3, 4]].min() > 70


def test_the_one_free_place_is_found():
    avoid = np.ones((90, 90), np.bool_)
    avoid[57:60, 71:75] = False
    assert place(np.ones((3, 4), np.bool_), (90, 90), rng(), avoid=avoid) == (slice(57, 60), slice(71, 75))


def test_a_moved_mask_is_the_same_shape_elsewhere():
    mask = box((10, 20), (10, 14)) | box((10, 12), (10, 30))
    for seed in range(20):
        moved = moved_mask(mask, rng(seed), avoid=grown(mask, 3))
        assert not (moved & grown(mask, 3)).any()
        assert (moved[box_of(moved)] == mask[box_of(mask)]).all()
    with pytest.raises(EditError, match="no free place: a shape of 40x40 pixels fits nowhere off what it must avoid"):
        moved_mask(box((0, 40), (0, 40)), rng(), avoid=box((20, 40), (20, 40)))


def test_a_patch_at_the_corner_knows_what_it_does_not_know():
    mask = box((0, 4), (0, 6))
    patch = cut(dented(mask), mask)
    assert patch.image.shape == (20, 22, 3) and (patch.inner == mask[:4, :6]).all()
    assert not patch.known[:8].any() and not patch.known[:, :8].any()  # mirrored pixels
    assert not patch.known[patch.shape].any() and patch.known[12:, 8:].all()
    assert abs(patch.image[:8].mean() - 120) < 10 and patch.image[8:12, 8:14].max() < 60  # no defect beyond the border


def test_patchwork_leaves_the_rest_as_it_is():
    hole = box((20, 50), (20, 50))
    image = dented(hole)
    result = patchwork(image, hole, hole, image, hole, longest=16, rng=rng())
    away = ~grown(hole, 4)
    assert (result[away] == image[away]).all() and result[hole].min() > 60
