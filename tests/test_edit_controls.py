"""The controls: the operations of healing and pasting with the label, and the defect, unchanged."""

import numpy as np
import pytest
from drawn_edits import MASKS, SIZE, box, dented, noisy, plain, rng

from gainmtl_lib.edits.counterfactuals import heal_beside, heal_spot, paste_clean, repaste
from gainmtl_lib.edits.heal import HEAL_METHODS, EditError, box_of, grown
from gainmtl_lib.edits.paste import PASTE_METHODS


@pytest.mark.parametrize("method", HEAL_METHODS)
def test_heal_spot_heals_a_defect_s_shape_in_a_normal_picture(method):
    image, shape = noisy(3), box((2, 10), (30, 35))
    kept = image.copy(), shape.copy()
    edit = heal_spot(image, shape, method=method, rng=rng(1), normal=noisy(4))
    assert (edit.kind, edit.method, edit.label) == ("heal_spot", method, 0)
    assert not edit.mask.any() and edit.mask.shape == SIZE
    assert (edit.image[~edit.region] == image[~edit.region]).all()
    assert (edit.image != image).any()
    assert abs(edit.image[edit.region].mean() - 120) < 8
    sides = sorted(side.stop - side.start for side in box_of(edit.region))
    assert sides[0] <= 7 and sides[1] <= 10  # 5 x 8 and its rim
    assert (image == kept[0]).all() and (shape == kept[1]).all()


@pytest.mark.parametrize("method", HEAL_METHODS)
@pytest.mark.parametrize("name", ["inside", "at the corner", "two pieces", "one pixel"])
def test_heal_beside_leaves_the_defect_bit_equal(method, name):
    mask = MASKS[name]
    image = dented(mask)
    for seed in range(4):
        edit = heal_beside(image, mask, method=method, rng=rng(seed), normal=noisy(4))
        assert (edit.kind, edit.method, edit.label) == ("heal_beside", method, 1)
        assert (edit.mask == mask).all() and edit.mask is not mask
        assert not (edit.region & grown(mask, 2)).any()
        assert (edit.image[~edit.region] == image[~edit.region]).all()
        assert (edit.image[mask] == image[mask]).all()
        assert edit.image[edit.region].min() > 80  # nothing of the dark defect was taken as a source


def test_heal_beside_without_a_free_place():
    mask = box((12, 52), (16, 48))
    with pytest.raises(EditError, match="no free place") as error:
        heal_beside(dented(mask), mask, method="telea", rng=rng())
    assert error.value.reason == "no free place"


@pytest.mark.parametrize("method", PASTE_METHODS)
def test_paste_clean_sets_a_clean_patch_into_a_normal_picture(method):
    image, clean, shape = noisy(3), noisy(4, 150), MASKS["inside"]
    kept = image.copy(), clean.copy(), shape.copy()
    edit = paste_clean(image, clean, shape, method=method, rng=rng(1))
    assert (edit.kind, edit.method, edit.label) == ("paste_clean", method, 0)
    assert not edit.mask.any() and edit.mask.shape == SIZE
    assert edit.region.sum() == shape.sum()
    assert (edit.image[~edit.region] == image[~edit.region]).all() and (edit.image != image).any()
    assert abs(edit.image[edit.region].mean() - 120) < 4  # in the target's light
    for before, after in zip(kept, (image, clean, shape), strict=True):
        assert (before == after).all()


def test_copied_clean_patches_come_from_the_other_picture():
    clean = plain(150)
    edit = paste_clean(noisy(3), clean, MASKS["inside"], method="copy", rng=rng(1))
    core = edit.image[edit.region & ~grown(~edit.region, 2)]
    assert core.std() == 0


def test_a_clean_patch_that_stands_out_is_refused():
    clean = plain(150)
    clean[::2] = 30
    with pytest.raises(EditError, match=r"stands out: the clean patch differs .* as much as a defect would") as error:
        paste_clean(plain(120), clean, MASKS["inside"], method="copy", rng=rng())
    assert error.value.reason == "stands out"


@pytest.mark.parametrize("method", PASTE_METHODS)
@pytest.mark.parametrize("name", ["inside", "at the corner", "two pieces", "a line across"])
def test_repaste_gives_the_defect_back_at_its_place(method, name):
    mask = MASKS[name]
    image = dented(mask)
    kept = image.copy()
    edit = repaste(image, mask, method=method, rng=rng(1))
    assert (edit.kind, edit.method, edit.label) == ("repaste", method, 1)
    assert (edit.mask == mask).all() and (edit.region == mask).all()
    assert (edit.image[~mask] == image[~mask]).all()
    assert edit.image[mask].mean() < 75  # 40 before, 120 when healed
    assert (image == kept).all()


def test_repaste_leaves_traces():
    mask = MASKS["inside"]
    for method in PASTE_METHODS:
        edit = repaste(dented(mask), mask, method=method, rng=rng(1))
        assert (edit.image != dented(mask)).any()


def test_repaste_that_loses_the_defect_is_refused():
    mask = box((20, 44), (20, 44))
    image = noisy(3, strength=20.0)
    image[mask] = 117  # smoother than its surroundings: their gradients are the stronger ones
    with pytest.raises(EditError, match="too faint: the defect pasted back resembles the healed place") as error:
        repaste(image, mask, method="clone_mixed", rng=rng())
    assert error.value.reason == "too faint"


def test_shapes_come_from_pictures_of_any_size():
    shape = box((10, 20), (30, 50), (40, 200))
    assert heal_spot(noisy(3), shape, method="telea", rng=rng()).mask.shape == SIZE
    assert paste_clean(noisy(3), noisy(4, size=(50, 30)), shape, method="clone", rng=rng()).region.sum() == 200


def test_shapes_too_large_or_empty():
    large, empty = box((0, 10), (0, 100), (20, 120)), np.zeros(SIZE, np.bool_)
    calls = [
        lambda shape: heal_spot(noisy(), shape, method="telea", rng=rng()),
        lambda shape: paste_clean(noisy(), noisy(1), shape, method="copy", rng=rng()),
    ]
    for call in calls:
        with pytest.raises(EditError, match="larger than the picture: a shape of 10x100 pixels, a picture of 64x64"):
            call(large)
        with pytest.raises(EditError, match="empty mask: shape has no defect pixel"):
            call(empty)
    with pytest.raises(EditError, match="covers the picture"):
        heal_spot(noisy(), np.ones((60, 60), np.bool_), method="telea", rng=rng())


def test_unknown_methods_and_pictures_are_named():
    for edit, methods in ((heal_spot, "telea"), (heal_beside, "telea"), (repaste, "copy")):
        with pytest.raises(EditError, match=f"method must be one of {methods}, .*, got 'bleach'"):
            edit(noisy(), MASKS["inside"], method="bleach", rng=rng())
        with pytest.raises(EditError, match=r"image must be RGB uint8 \(H, W, 3\)"):
            edit(noisy()[..., 0], MASKS["inside"], method=methods, rng=rng())
    with pytest.raises(EditError, match="clean must be RGB"):
        paste_clean(noisy(), noisy()[..., 0], MASKS["inside"], method="copy", rng=rng())
    with pytest.raises(EditError, match="method must be one of copy"):
        paste_clean(noisy(), noisy(1), MASKS["inside"], method="telea", rng=rng())


@pytest.mark.parametrize("edit", [heal_spot, heal_beside, repaste])
def test_equal_draws_give_equal_controls(edit):
    mask = MASKS["inside"]
    method = "copy" if edit is repaste else "patch_same"
    first, second = (edit(dented(mask), mask, method=method, rng=rng(3)) for _ in range(2))
    assert (first.image == second.image).all() and (first.region == second.region).all()
