"""Pasting, on hand-drawn masks: what changes, what does not, and what is refused."""

import numpy as np
import pytest
from drawn_edits import MASKS, box, dented, noisy, plain, rng

from gainmtl_lib.edits.heal import EditError, box_of, grain, grown
from gainmtl_lib.edits.paste import PASTE_METHODS, changed, paste, stands_out


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
