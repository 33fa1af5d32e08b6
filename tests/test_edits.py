"""Healing and pasting, on hand-drawn masks: what changes, what does not, and what is refused."""

import pickle

import numpy as np
import pytest
from drawn_edits import MASKS, SIZE, box, dented, noisy, plain, rng

from gainmtl_lib.data.edits import HEAL_METHODS, NEEDS_NORMAL, PASTE_METHODS, EditError, heal, moved_mask, paste
from gainmtl_lib.data.edits.blending import clone, inner_weights, matched, outer_weights
from gainmtl_lib.data.edits.edit import box_of, grown, rim, widened
from gainmtl_lib.data.edits.healing import filled
from gainmtl_lib.data.edits.pasting import changed, cut, stands_out
from gainmtl_lib.data.edits.placing import drawn_turn, halves, pieces, place, turned
from gainmtl_lib.data.edits.sources import near, patchwork
from gainmtl_lib.data.edits.texture import aligning_turn, direction, grain
from gainmtl_lib.data.surfaces import TEXTURES
from gainmtl_lib.data.synthetic import draw_surface

# ---- heal


@pytest.mark.parametrize("method", HEAL_METHODS)
@pytest.mark.parametrize("name", MASKS)
def test_healing_changes_the_region_only_and_leaves_no_defect(method, name):
    mask = MASKS[name]
    image, normal = dented(mask), noisy(5)
    kept = image.copy(), mask.copy(), normal.copy()
    edit = heal(image, mask, method=method, rng=rng(), normal=normal)
    assert (edit.kind, edit.method, edit.label) == ("heal", method, 0)
    assert not edit.mask.any() and edit.mask.shape == SIZE and edit.mask.dtype == np.bool_
    assert edit.image.dtype == np.uint8 and edit.image.shape == (*SIZE, 3)
    assert (edit.image[~edit.region] == image[~edit.region]).all()
    assert (edit.region == grown(mask, 1)).all()
    assert abs(edit.image[mask].mean() - 120) < 12  # 0 to 10 before
    for before, after in zip(kept, (image, mask, normal), strict=True):
        assert (before == after).all()


@pytest.mark.parametrize("method", HEAL_METHODS)
def test_a_healed_plain_picture_is_plain(method):
    mask = MASKS["inside"]
    image = plain()
    image[mask] = 10
    edit = heal(image, mask, method=method, rng=rng(), normal=plain(150))
    assert np.abs(edit.image.astype(int) - 120).max() <= 1


@pytest.mark.parametrize("method", HEAL_METHODS)
def test_a_healed_place_is_as_grainy_as_its_surroundings(method):
    mask = box((20, 40), (20, 40))
    inside = box((22, 38), (22, 38))
    edit = heal(dented(mask), mask, method=method, rng=rng(), normal=noisy(5))
    assert 0.6 < grain(edit.image, inside) / grain(noisy(0)) < 1.4


def test_a_less_grainy_normal_picture_is_roughened():
    mask = box((20, 40), (20, 40))
    edit = heal(dented(mask), mask, method="patch_normal", rng=rng(), normal=noisy(5, strength=4.0))
    assert 0.8 < grain(edit.image, box((22, 38), (22, 38))) / grain(noisy(0)) < 1.2


@pytest.mark.parametrize("method", ["telea", "patch_same", "clone_normal"])
def test_equal_draws_give_equal_edits(method):
    mask = MASKS["two pieces"]
    first, second = (heal(dented(mask), mask, method=method, rng=rng(3), normal=noisy(5)).image for _ in range(2))
    assert (first == second).all()
    others = [heal(dented(mask), mask, method=method, rng=rng(k), normal=noisy(5)).image for k in range(4, 10)]
    assert any((first != other).any() for other in others)


def test_stripes_are_continued():
    rows = np.arange(64)
    image = np.repeat((120 + 40 * np.sin(rows * 2 * np.pi / 8))[:, None, None], 64, 1).repeat(3, 2).astype(np.uint8)
    mask = box((20, 34), (24, 40))
    broken = image.copy()
    broken[mask] = 0
    edit = heal(broken, mask, method="patch_same", rng=rng())
    assert np.abs(edit.image.astype(int) - image).max() <= 2


def test_a_normal_picture_of_the_other_direction_is_turned():
    columns = np.arange(64)
    striped = (
        np.repeat((120 + 40 * np.sin(columns * 2 * np.pi / 8))[None, :, None], 64, 0).repeat(3, 2).astype(np.uint8)
    )
    mask = box((20, 30), (24, 36))
    broken = striped.copy()
    broken[mask] = 0
    edit = heal(broken, mask, method="patch_normal", rng=rng(), normal=turned(striped, 1))
    assert np.abs(edit.image.astype(int) - striped).max() <= 6


def test_each_piece_has_the_brightness_of_its_own_place():
    image = noisy()
    image[:, 32:] = image[:, 32:] + 60
    mask = box((28, 36), (8, 16)) | box((28, 36), (48, 56))
    image[mask] = 0
    edit = heal(image, mask, method="patch_same", rng=rng())
    assert abs(edit.image[28:36, 8:16].mean() - 120) < 5 and abs(edit.image[28:36, 48:56].mean() - 180) < 5


def test_other_defects_are_no_source():
    mask, other = box((20, 28), (20, 28)), box((0, 64), (32, 64))
    image = noisy()
    image[other] = 250
    healed = filled(image, mask, taken=mask | other, method="patch_same", rng=rng())
    assert healed[mask].max() < 160


def test_a_defect_too_large_for_one_source_is_healed_from_several():
    mask = box((2, 62), (18, 46))
    edit = heal(dented(mask), mask, method="patch_same", rng=rng())
    assert abs(edit.image[mask].mean() - 120) < 10 and 4 < edit.image[mask].std() < 9


def test_half_of_the_picture_is_the_limit():
    with pytest.raises(EditError, match=r"covers the picture: mask takes 52% of it; expected at most 50%") as caught:
        heal(plain(), box((0, 33), (0, 64)), method="telea", rng=rng())
    assert caught.value.reason == "covers the picture"
    with pytest.raises(EditError, match="the region to heal takes 52%"):  # with its rim
        heal(plain(), box((0, 32), (0, 64)), method="telea", rng=rng())


def test_no_source():
    with pytest.raises(EditError, match="no free place: no other") as caught:
        filled(plain(), box((20, 30), (20, 30)), taken=np.ones(SIZE, np.bool_), method="patch_same", rng=rng())
    assert caught.value.reason == "no free place"
    with pytest.raises(EditError, match="no free place"):
        heal(noisy(), MASKS["inside"], method="patch_normal", rng=rng(), normal=plain(size=(4, 4)))


@pytest.mark.parametrize("method", NEEDS_NORMAL)
def test_methods_that_need_a_normal_picture_say_so(method):
    with pytest.raises(EditError, match="no normal picture: this method takes its source from one; pass normal="):
        heal(noisy(), MASKS["inside"], method=method, rng=rng())


def test_needs_normal_names_exactly_those():
    for method in set(HEAL_METHODS) - set(NEEDS_NORMAL):
        heal(noisy(), MASKS["inside"], method=method, rng=rng())


# ---- paste


@pytest.mark.parametrize("method", PASTE_METHODS)
@pytest.mark.parametrize("name", ["inside", "at the corner", "two pieces", "a line across"])
def test_pasting_changes_the_region_only_and_the_mask_is_what_changed(method, name):
    donor_mask = MASKS[name]
    image, donor = noisy(7, 150), dented(donor_mask)
    kept = image.copy(), donor.copy(), donor_mask.copy()
    edit = paste(image, donor, donor_mask, method=method, rng=rng(1))
    assert (edit.kind, edit.method, edit.label) == ("paste", method, 1)
    assert edit.image.dtype == np.uint8 and edit.mask.dtype == np.bool_
    assert (edit.image[~edit.region] == image[~edit.region]).all()
    assert edit.region.sum() == donor_mask.sum()
    assert (edit.mask == (edit.image != image).any(-1)).mean() > 0.99
    assert not (edit.mask & ~edit.region).any()
    assert edit.image[edit.mask].mean() < 150 - 30
    for before, after in zip(kept, (image, donor, donor_mask), strict=True):
        assert (before == after).all()


@pytest.mark.parametrize("method", PASTE_METHODS)
def test_on_plain_pictures_the_mask_is_exactly_what_changed(method):
    donor_mask = box((20, 32), (22, 40))
    donor = plain(100)
    donor[donor_mask] = 30
    image = plain(200)
    edit = paste(image, donor, donor_mask, method=method, rng=rng(2))
    assert (edit.mask == (edit.image != image).any(-1)).all() and edit.mask.sum() == 12 * 18
    core = edit.image[edit.mask & ~grown(~edit.mask, 2)]
    # 30 of 100 is 60 of 200; a clone keeps the difference of the brightness-matched patch, 60 - 200.
    assert np.abs(core.astype(int) - 60).max() <= (16 if method == "clone_mixed" else 6)


@pytest.mark.parametrize("method", PASTE_METHODS)
def test_a_coarse_mask_is_cut_to_what_can_be_seen(method):
    coarse, defect = box((20, 44), (20, 44)), box((28, 36), (28, 36))
    donor = plain(100)
    donor[defect] = 30
    edit = paste(plain(180), donor, coarse, method=method, rng=rng(2))
    assert edit.region.sum() == 24 * 24
    assert 64 <= edit.mask.sum() <= 12 * 12


def test_small_unchanged_gaps_belong_to_the_defect_and_rims_do_not():
    before, after, region = plain(), plain(), box((10, 40), (10, 40))
    after[20:30, 20:30] = 60
    after[24:26, 24:26] = 120
    after[12, 12] = 123  # three levels: cannot be seen
    assert (changed(before, after, region) == box((20, 30), (20, 30))).all()


def test_the_pasted_defect_lies_wholly_inside_and_everywhere():
    donor_mask = box((3, 15), (40, 46))
    donor = dented(donor_mask)
    centres, tall = [], 0
    for seed in range(60):
        edit = paste(noisy(7), donor, donor_mask, method="copy", rng=rng(seed))
        assert edit.region.sum() == 72
        rows, columns = box_of(edit.region)
        tall += rows.stop - rows.start == 12
        centres.append((rows.start, columns.start))
    assert 15 < tall < 45  # upright or lying
    assert min(np.min(centres, axis=0)) < 12 and max(np.max(centres, axis=0)) > 40


def test_equal_draws_give_equal_pastes():
    donor_mask = MASKS["inside"]
    first, second = (paste(noisy(7), dented(donor_mask), donor_mask, method="clone", rng=rng(3)) for _ in range(2))
    assert (first.image == second.image).all() and (first.mask == second.mask).all()


def test_relief_keeps_the_target_s_texture_and_copy_brings_the_donor_s():
    donor_mask = box((16, 40), (16, 40))
    donor = plain(100)
    donor[donor_mask] = 60
    target = noisy(7)
    grains = {}
    for method in ("relief", "copy"):
        edit = paste(target, donor, donor_mask, method=method, rng=rng(1))
        grains[method] = grain(edit.image, edit.region & ~grown(~edit.region, 3))
    assert 0.4 < grains["relief"] / grain(target) < 0.8  # multiplied by about 0.6
    assert grains["copy"] == 0


def test_a_defect_that_cannot_be_seen_is_not_pasted():
    donor_mask = MASKS["inside"]
    donor = plain(100)
    donor[donor_mask] = 98
    for method in PASTE_METHODS:
        with pytest.raises(
            EditError, match="too faint: the pasted defect does not stand out from the texture"
        ) as error:
            paste(noisy(7), donor, donor_mask, method=method, rng=rng())
        assert error.value.reason == "too faint"


def test_what_stands_out_is_measured_against_the_texture():
    region = box((20, 40), (20, 40))
    for strength, visible in ((2.0, True), (20.0, False)):
        before = noisy(3, strength=strength)
        after = before.copy()
        after[region] = np.clip(after[region].astype(int) - 10, 0, 255)
        assert stands_out(before, after, region) is visible
    before, after = plain(), plain()
    after[20:40, 20:30], after[20:40, 30:40] = 100, 140  # bright and dark cancel
    assert stands_out(before, after, region)
    assert not stands_out(before, before, region)


def test_brightness_alone_does_not_stand_out():
    before, other = noisy(3), noisy(4)
    region = box((20, 40), (20, 40))
    after = before.copy()
    after[region] = other[region]
    assert not stands_out(before, after, region)


def test_a_defect_larger_than_the_picture():
    donor_mask = box((2, 42), (10, 20))
    with pytest.raises(
        EditError, match=r"larger than the picture: a shape of 40x10 pixels, a picture of 32x32"
    ) as error:
        paste(noisy(1, size=(32, 32)), dented(donor_mask), donor_mask, method="copy", rng=rng())
    assert error.value.reason == "larger than the picture"
    edit = paste(noisy(1, size=(12, 48)), dented(donor_mask), donor_mask, method="copy", rng=rng())  # it fits lying
    rows, columns = box_of(edit.region)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (10, 40)


def test_a_defect_as_large_as_the_picture_fits():
    donor_mask = box((10, 26), (10, 26))
    edit = paste(noisy(1, size=(16, 16)), dented(donor_mask), donor_mask, method="copy", rng=rng())
    assert edit.region.all()


# ---- bad input


@pytest.mark.parametrize("method", ["bleach", "copy"])
def test_unknown_methods(method):
    with pytest.raises(EditError, match=f"wrong input: method must be one of telea, .*, got '{method}'"):
        heal(noisy(), MASKS["inside"], method=method, rng=rng())
    with pytest.raises(EditError, match="method must be one of copy, clone, clone_mixed, relief, got 'telea'"):
        paste(noisy(), noisy(), MASKS["inside"], method="telea", rng=rng())


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (plain()[..., 0], MASKS["inside"], r"image must be RGB uint8 \(H, W, 3\), got uint8 \(64, 64\)"),
        (
            plain().astype(np.float32),
            MASKS["inside"],
            r"image must be RGB uint8 \(H, W, 3\), got float32 \(64, 64, 3\)",
        ),
        (plain(), MASKS["inside"][:32], r"mask must be bool \(64, 64\) as its picture, got bool \(32, 64\)"),
        (
            plain(),
            MASKS["inside"].astype(np.uint8),
            r"mask must be bool \(64, 64\) as its picture, got uint8 \(64, 64\)",
        ),
        (plain(), np.zeros(SIZE, np.bool_), "empty mask: mask has no defect pixel; expected at least one"),
    ],
)
def test_unusable_pictures_and_masks(image, mask, message):
    with pytest.raises(EditError, match=message):
        heal(image, mask, method="telea", rng=rng())


def test_unusable_donors_and_normals_are_named():
    with pytest.raises(EditError, match="donor_image must be RGB"):
        paste(plain(), plain()[..., 0], MASKS["inside"], method="copy", rng=rng())
    with pytest.raises(EditError, match="donor_mask has no defect pixel"):
        paste(plain(), plain(), np.zeros(SIZE, np.bool_), method="copy", rng=rng())
    with pytest.raises(EditError, match="image must be RGB"):
        paste(plain()[..., 0], plain(), MASKS["inside"], method="copy", rng=rng())
    with pytest.raises(EditError, match="normal must be RGB"):
        heal(plain(), MASKS["inside"], method="patch_normal", rng=rng(), normal=plain()[..., 0])


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(EditError("too faint", "nothing: left")))
    assert (error.reason, str(error)) == ("too faint", "too faint: nothing: left")


# ---- parts


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


@pytest.mark.parametrize("texture", TEXTURES)
def test_a_synthetic_defect_no_longer_stands_out_once_healed(texture):
    index = next(k for k in range(200) if draw(k).texture == texture)
    drawn = draw(index)
    clean = draw_surface(3, index, image_size=(128, 128), defective=False, has_shortcut=False, shortcut="none")
    for method in set(HEAL_METHODS) - set(NEEDS_NORMAL):
        edit = heal(drawn.image, drawn.mask, method=method, rng=rng())
        assert stands_out(clean.image, drawn.image, drawn.mask)
        assert not stands_out(clean.image, edit.image, drawn.mask)


def draw(index):
    return draw_surface(3, index, image_size=(128, 128), defective=True, has_shortcut=False, shortcut="none")
