"""Healing, on hand-drawn masks: what changes, what does not, and what is refused."""

import numpy as np
import pytest
from drawn_edits import MASKS, SIZE, box, dented, noisy, plain, rng

from gainmtl_lib.edits.heal import HEAL_METHODS, NEEDS_NORMAL, EditError, filled, grain, grown, heal, turned
from gainmtl_lib.edits.paste import stands_out
from gainmtl_lib.synthetic.data import draw_surface
from gainmtl_lib.synthetic.surfaces import TEXTURES


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
