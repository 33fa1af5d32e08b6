"""Healing, pasting and their controls, on hand-drawn masks: what changes, what does not, and what is refused."""

import pickle

import numpy as np
import pytest
from drawn_edits import MASKS, SIZE, box, dented, noisy, plain, rng, roughness

from gainmtl_lib.edits.editing import (
    HEAL_METHODS,
    PASTE_METHODS,
    EditError,
    box_of,
    clone,
    filled,
    grown,
    heal,
    heal_beside,
    heal_spot,
    paste,
    paste_clean,
    repaste,
    stands_out,
)
from gainmtl_lib.synthetic.data import draw_surface
from gainmtl_lib.synthetic.drawing import TEXTURES


@pytest.mark.parametrize("method", HEAL_METHODS)
@pytest.mark.parametrize("name", MASKS)
def test_healing_changes_the_region_only_and_leaves_no_defect(method, name):
    mask = MASKS[name]
    image = dented(mask)
    kept = image.copy(), mask.copy()
    edit = heal(image, mask, method=method, rng=rng())
    assert (edit.kind, edit.method, edit.label) == ("heal", method, 0)
    assert not edit.mask.any() and edit.mask.shape == SIZE and edit.mask.dtype == np.bool_
    assert edit.image.dtype == np.uint8 and edit.image.shape == (*SIZE, 3)
    assert (edit.image[~edit.region] == image[~edit.region]).all() and (edit.region == grown(mask, 1)).all()
    assert abs(edit.image[mask].mean() - 120) < 12  # 0 to 10 before
    assert (image == kept[0]).all() and (mask == kept[1]).all()


@pytest.mark.parametrize("method", HEAL_METHODS)
def test_heal_spot_heals_a_defect_s_shape_in_a_normal_picture(method):
    image, shape = noisy(3), box((2, 10), (30, 35))
    edit = heal_spot(image, shape, method=method, rng=rng(1))
    assert (edit.kind, edit.method, edit.label) == ("heal_spot", method, 0)
    assert not edit.mask.any() and edit.mask.shape == SIZE
    assert (edit.image[~edit.region] == image[~edit.region]).all() and (edit.image != image).any()
    assert abs(edit.image[edit.region].mean() - 120) < 8
    sides = sorted(side.stop - side.start for side in box_of(edit.region))
    assert sides[0] <= 7 and sides[1] <= 10  # 5 x 8 and its rim
    assert heal_spot(image, box((10, 20), (30, 50), (40, 200)), method=method, rng=rng()).mask.shape == SIZE


@pytest.mark.parametrize("method", HEAL_METHODS)
@pytest.mark.parametrize("name", ["inside", "at the corner", "two pieces", "one pixel"])
def test_heal_beside_leaves_the_defect_bit_equal(method, name):
    mask = MASKS[name]
    image = dented(mask)
    for seed in range(4):
        edit = heal_beside(image, mask, method=method, rng=rng(seed))
        assert (edit.kind, edit.method, edit.label) == ("heal_beside", method, 1) and (edit.mask == mask).all()
        assert not (edit.region & grown(mask, 2)).any()
        assert (edit.image[~edit.region] == image[~edit.region]).all()
        assert edit.image[edit.region].min() > 80  # nothing of the dark defect was taken as a source


@pytest.mark.parametrize("method", HEAL_METHODS)
def test_a_healed_place_is_plain_on_a_plain_picture_and_as_grainy_as_its_surroundings(method):
    mask = MASKS["inside"]
    image = plain()
    image[mask] = 10
    assert np.abs(heal(image, mask, method=method, rng=rng()).image.astype(int) - 120).max() <= 1
    mask = box((20, 40), (20, 40))
    edit = heal(dented(mask), mask, method=method, rng=rng())
    assert 0.6 < roughness(edit.image, box((22, 38), (22, 38))) / roughness(noisy(0)) < 1.4


@pytest.mark.parametrize("edit", [heal, heal_spot, heal_beside])
def test_equal_draws_give_equal_edits_and_others_others(edit):
    mask = MASKS["two pieces"]
    first, *others = (edit(dented(mask), mask, method="patch_same", rng=rng(k)).image for k in (3, 3, *range(4, 10)))
    assert (first == others[0]).all() and any((first != other).any() for other in others)


def test_stripes_are_continued():
    rows = np.arange(64)
    image = np.repeat((120 + 40 * np.sin(rows * 2 * np.pi / 8))[:, None, None], 64, 1).repeat(3, 2).astype(np.uint8)
    mask = box((20, 34), (24, 40))
    broken = image.copy()
    broken[mask] = 0
    edit = heal(broken, mask, method="patch_same", rng=rng())
    assert np.abs(edit.image.astype(int) - image).max() <= 2


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
    assert filled(image, mask, taken=mask | other, method="patch_same", rng=rng())[mask].max() < 160


def test_a_defect_too_large_for_one_source_is_healed_from_several():
    mask = box((2, 62), (18, 46))
    edit = heal(dented(mask), mask, method="patch_same", rng=rng())
    assert abs(edit.image[mask].mean() - 120) < 10 and 4 < edit.image[mask].std() < 9


@pytest.mark.parametrize("texture", TEXTURES)
def test_a_synthetic_defect_no_longer_stands_out_once_healed(texture):
    def draw(index, defective=True):
        return draw_surface(3, index, image_size=(128, 128), defective=defective, has_shortcut=False, shortcut="none")

    index = next(k for k in range(200) if draw(k).texture == texture)
    drawn, clean = draw(index), draw(index, defective=False)
    assert stands_out(clean.image, drawn.image, drawn.mask)
    for method in ("telea", "patch_same"):
        edit = heal(drawn.image, drawn.mask, method=method, rng=rng())
        assert not stands_out(clean.image, edit.image, drawn.mask)


@pytest.mark.parametrize(
    ("call", "reason", "message"),
    [
        (lambda how: heal(plain(), box((0, 33), (0, 64)), **how), "covers the picture", "takes 52% of it; .* most 50%"),
        (lambda how: heal(plain(), box((0, 32), (0, 64)), **how), "covers the picture", "the region to heal takes 52%"),
        (lambda how: heal(plain(), np.zeros(SIZE, np.bool_), **how), "empty mask", "mask has no defect pixel"),
        (lambda how: heal_spot(plain(), np.ones((60, 60), np.bool_), **how), "covers the picture", "takes"),
        (lambda how: heal_spot(plain(), box((0, 9), (0, 100), (9, 120)), **how), "larger than the picture", "9x100"),
        (lambda how: heal_beside(plain(), box((12, 52), (16, 48)), **how), "no free place", "fits nowhere"),
        (
            lambda how: filled(plain(), MASKS["inside"], taken=np.ones(SIZE, np.bool_), **how),
            "no free place",
            "no other",
        ),
    ],
)
def test_what_cannot_be_healed_says_why(call, reason, message):
    with pytest.raises(EditError, match=message) as error:
        call({"method": "telea", "rng": rng()})
    assert error.value.reason == reason


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(EditError("too faint", "nothing: left")))
    assert (error.reason, str(error)) == ("too faint", "too faint: nothing: left")


@pytest.mark.parametrize("rows", [(0, 9), (7, 20), (30, 41)])
@pytest.mark.parametrize("columns", [(0, 12), (11, 30), (0, 52)])
@pytest.mark.parametrize("mixed", [False, True])
def test_cloning_keeps_every_pixel_at_its_place(rows, columns, mixed):
    size = (41, 52)
    target, patch = plain(100, size), plain(100, size)
    spot = (rows[0] + rows[1]) // 2, (columns[0] + columns[1]) // 2
    patch[spot] = 200
    result = clone(patch, target, box(rows, columns, size), mixed=mixed).astype(int)
    assert np.unravel_index(result[..., 0].argmax(), size) == spot
    assert result[spot].min() > (140 if mixed else 180)
    result[spot] = 100
    assert np.abs(result - 100).max() <= (25 if mixed else 4)


# --- Pasting


@pytest.mark.parametrize("method", PASTE_METHODS)
@pytest.mark.parametrize("name", ["inside", "at the corner", "two pieces", "a line across"])
def test_pasting_changes_the_region_only_and_the_mask_is_what_changed(method, name):
    donor_mask = MASKS[name]
    image, donor = noisy(7, 150), dented(donor_mask)
    kept = image.copy(), donor.copy(), donor_mask.copy()
    edit = paste(image, donor, donor_mask, method=method, rng=rng(1))
    assert (edit.kind, edit.method, edit.label) == ("paste", method, 1)
    assert (edit.image[~edit.region] == image[~edit.region]).all() and edit.region.sum() == donor_mask.sum()
    assert (edit.mask == (edit.image != image).any(-1)).mean() > 0.99 and not (edit.mask & ~edit.region).any()
    assert edit.image[edit.mask].mean() < 150 - 30
    assert all((before == after).all() for before, after in zip(kept, (image, donor, donor_mask)))
    again = paste(image, donor, donor_mask, method=method, rng=rng(1))
    assert (again.image == edit.image).all() and (again.mask == edit.mask).all()


@pytest.mark.parametrize("method", PASTE_METHODS)
def test_paste_clean_sets_a_clean_patch_into_a_normal_picture(method):
    image, clean, shape = noisy(3), noisy(4, 150), MASKS["inside"]
    edit = paste_clean(image, clean, shape, method=method, rng=rng(1))
    assert (edit.kind, edit.method, edit.label) == ("paste_clean", method, 0)
    assert not edit.mask.any() and edit.mask.shape == SIZE and edit.region.sum() == shape.sum()
    assert (edit.image[~edit.region] == image[~edit.region]).all() and (edit.image != image).any()
    assert abs(edit.image[edit.region].mean() - 120) < 4  # in the target's light
    other_sizes = paste_clean(
        image, noisy(4, size=(50, 30)), box((10, 20), (30, 50), (40, 200)), method=method, rng=rng()
    )
    assert other_sizes.region.sum() == 200


@pytest.mark.parametrize("method", PASTE_METHODS)
@pytest.mark.parametrize("name", ["inside", "at the corner", "two pieces", "a line across"])
def test_repaste_gives_the_defect_back_at_its_place_with_traces(method, name):
    mask = MASKS[name]
    image = dented(mask)
    edit = repaste(image, mask, method=method, rng=rng(1))
    assert (edit.kind, edit.method, edit.label) == ("repaste", method, 1)
    assert (edit.mask == mask).all() and (edit.region == mask).all()
    assert (edit.image[~mask] == image[~mask]).all() and (edit.image != image).any()
    assert edit.image[mask].mean() < 75  # 40 before, 120 when healed


@pytest.mark.parametrize("method", PASTE_METHODS)
def test_on_plain_pictures_the_mask_is_exactly_what_changed(method):
    donor_mask = box((20, 32), (22, 40))
    donor, image = plain(100), plain(200)
    donor[donor_mask] = 30
    edit = paste(image, donor, donor_mask, method=method, rng=rng(2))
    assert (edit.mask == (edit.image != image).any(-1)).all() and edit.mask.sum() == 12 * 18
    core = edit.image[edit.mask & ~grown(~edit.mask, 2)]
    # 30 of 100 is 60 of 200; a clone keeps the difference of the brightness-matched patch, 60 - 200.
    assert np.abs(core.astype(int) - 60).max() <= (16 if method == "clone_mixed" else 6)


@pytest.mark.parametrize("method", PASTE_METHODS)
def test_a_coarse_mask_is_cut_to_what_can_be_seen(method):
    donor = plain(100)
    donor[box((28, 36), (28, 36))] = 30
    edit = paste(plain(180), donor, box((20, 44), (20, 44)), method=method, rng=rng(2))
    assert edit.region.sum() == 24 * 24 and 64 <= edit.mask.sum() <= 12 * 12


def test_the_pasted_defect_lies_wholly_inside_and_everywhere():
    donor_mask = box((3, 15), (40, 46))
    centres, tall = [], 0
    for seed in range(60):
        edit = paste(noisy(7), dented(donor_mask), donor_mask, method="copy", rng=rng(seed))
        assert edit.region.sum() == 72
        rows, columns = box_of(edit.region)
        tall += rows.stop - rows.start == 12
        centres.append((rows.start, columns.start))
    assert 15 < tall < 45  # upright or lying
    assert min(np.min(centres, axis=0)) < 12 and max(np.max(centres, axis=0)) > 40


def test_relief_keeps_the_target_s_texture_and_copy_brings_the_donor_s():
    donor_mask, donor, target = box((16, 40), (16, 40)), plain(100), noisy(7)
    donor[donor_mask] = 60
    edits = {method: paste(target, donor, donor_mask, method=method, rng=rng(1)) for method in ("relief", "copy")}
    grains = {name: roughness(edit.image, edit.region & ~grown(~edit.region, 3)) for name, edit in edits.items()}
    assert 0.4 < grains["relief"] / roughness(target) < 0.8 and grains["copy"] == 0  # multiplied by about 0.6


def test_what_stands_out_is_measured_against_the_texture():
    region = box((20, 40), (20, 40))
    for strength, visible in ((2.0, True), (20.0, False)):
        before = noisy(3, strength=strength)
        after = before.copy()
        after[region] = np.clip(after[region].astype(int) - 10, 0, 255)
        assert stands_out(before, after, region) is visible
    before, after = plain(), plain()
    after[20:40, 20:30], after[20:40, 30:40] = 100, 140  # bright and dark cancel
    assert stands_out(before, after, region) and not stands_out(before, before, region)
    after = noisy(3)
    after[region] = noisy(4)[region]
    assert not stands_out(noisy(3), after, region)


def test_a_defect_that_fits_one_way_is_pasted_that_way():
    donor_mask = box((2, 42), (10, 20))
    edit = paste(noisy(1, size=(12, 48)), dented(donor_mask), donor_mask, method="copy", rng=rng())
    rows, columns = box_of(edit.region)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (10, 40)


def striped():
    clean = plain(150)
    clean[::2] = 30
    return clean


def smooth_square():
    image = noisy(3, strength=20.0)
    image[box((20, 44), (20, 44))] = 117  # smoother than its surroundings: their gradients are the stronger ones
    return image


@pytest.mark.parametrize(
    ("call", "reason", "message"),
    [
        (lambda m, r: paste(noisy(7), plain(99), m, method="copy", rng=r), "too faint", "does not stand out"),
        (lambda m, r: paste(plain(), plain(), m & False, method="copy", rng=r), "empty mask", "donor_mask has no"),
        (
            lambda m, r: paste(noisy(1, size=(32, 32)), noisy(), box((2, 42), (10, 20)), method="copy", rng=r),
            "larger than the picture",
            "a shape of 40x10 pixels, a picture of 32x32",
        ),
        (lambda m, r: paste_clean(plain(120), striped(), m, method="copy", rng=r), "stands out", "as much as a defect"),
        (
            lambda m, r: repaste(smooth_square(), box((20, 44), (20, 44)), method="clone_mixed", rng=r),
            "too faint",
            "the defect pasted back resembles the healed place",
        ),
    ],
)
def test_what_cannot_be_pasted_says_why(call, reason, message):
    with pytest.raises(EditError, match=message) as error:
        call(MASKS["inside"], rng())
    assert error.value.reason == reason
