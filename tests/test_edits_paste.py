"""Pasting and its controls, on hand-drawn masks: what changes, what does not, and what is refused."""

import numpy as np
import pytest
from drawn_edits import MASKS, SIZE, box, dented, noisy, plain, rng, roughness

from gainmtl_lib.edits.heal import EditError, box_of, grown
from gainmtl_lib.edits.paste import PASTE_METHODS, paste, paste_clean, repaste, stands_out


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
