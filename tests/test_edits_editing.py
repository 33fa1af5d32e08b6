"""Healing, pasting and their controls, on hand-drawn masks: what changes, what does not, and what is refused."""

import pickle

import numpy as np
import pytest

from gainmtl_lib.edits import editing
from gainmtl_lib.edits.editing import HEAL_METHODS, PASTE_METHODS, EditError, box_of, grown, heal, paste, stands_out
from gainmtl_lib.synthetic.data import draw_surface
from gainmtl_lib.synthetic.drawing import TEXTURES

SIZE = (64, 64)


def rng(seed=0):
    return np.random.default_rng(seed)


def plain(value=120, size=SIZE):
    return np.full((*size, 3), value, np.uint8)


def noisy(seed=0, value=120, size=SIZE, strength=6.0):
    grey = value + strength * rng(seed).standard_normal((*size, 1))
    return np.clip(np.rint(grey + np.zeros(3)), 0, 255).astype(np.uint8)


def box(rows, columns, size=SIZE):
    mask = np.zeros(size, np.bool_)
    mask[rows[0] : rows[1], columns[0] : columns[1]] = True
    return mask


def dented(mask):
    """A noisy picture whose masked pixels are dark."""
    image = noisy()
    image[mask] = image[mask] // 2 - 20
    return image


def roughness(image, known=None):
    """Root mean square of the steps between neighbouring pixels of a row, in grey levels."""
    grey = image.mean(axis=-1)
    steps = (grey[:, 1:] - grey[:, :-1])[slice(None) if known is None else known[:, 1:] & known[:, :-1]]
    return float(np.sqrt((steps**2).mean()))


MASKS = {
    "inside": box((20, 32), (22, 40)),
    "at the corner": box((0, 9), (50, 64)),
    "along the border": box((60, 64), (5, 45)),
    "two pieces": box((8, 16), (8, 16)) | box((44, 50), (40, 58)),
    "one pixel": box((30, 31), (30, 31)),
    "a line across": box((31, 33), (0, 64)),
}
PASTED = ("inside", "at the corner", "two pieces", "a line across")
TALL = box((2, 42), (10, 20))


def edit_of(kind, image, *rest, method, seed=0):
    """An edit, which left what it was given as it was and changed its region only."""
    given = image, *rest
    kept = [array.copy() for array in given]
    edit = getattr(editing, kind)(*given, method=method, rng=rng(seed))
    assert (edit.kind, edit.method) == (kind, method) and edit.label == (kind in ("paste", "heal_beside", "repaste"))
    assert edit.image.dtype == np.uint8 and edit.image.shape == image.shape
    assert edit.mask.dtype == np.bool_ and edit.mask.shape == image.shape[:2] and edit.mask.any() == bool(edit.label)
    assert (edit.image[~edit.region] == image[~edit.region]).all() and (edit.image != image).any()
    assert all((before == after).all() for before, after in zip(kept, given))
    return edit


# --- Healing


@pytest.mark.parametrize("method", HEAL_METHODS)
@pytest.mark.parametrize("name", MASKS)
def test_healing_changes_the_region_only_and_leaves_no_defect(method, name):
    mask = MASKS[name]
    edit = edit_of("heal", dented(mask), mask, method=method)
    assert (edit.region == grown(mask, 1)).all()
    assert abs(edit.image[mask].mean() - 120) < 12  # 0 to 10 before
    again = edit_of("heal", dented(mask), mask, method=method)
    assert (again.image == edit.image).all()
    if name in ("along the border", "a line across"):
        return
    for seed in range(3):
        edit = edit_of("heal_beside", dented(mask), mask, method=method, seed=seed)
        assert (edit.mask == mask).all() and not (edit.region & grown(mask, 2)).any()
        assert edit.image[edit.region].min() > 80  # nothing of the dark defect was taken as a source


@pytest.mark.parametrize("method", HEAL_METHODS)
def test_a_healed_place_is_plain_on_a_plain_picture_and_as_grainy_as_its_surroundings(method):
    mask, image = MASKS["inside"], plain()
    image[mask] = 10
    assert np.abs(heal(image, mask, method=method, rng=rng()).image.astype(int) - 120).max() <= 1
    mask = box((20, 40), (20, 40))
    edit = heal(dented(mask), mask, method=method, rng=rng())
    assert 0.6 < roughness(edit.image, box((22, 38), (22, 38))) / roughness(noisy()) < 1.4
    spot = edit_of("heal_spot", noisy(3), box((2, 10), (30, 35)), method=method, seed=1)
    assert abs(spot.image[spot.region].mean() - 120) < 8
    sides = sorted(side.stop - side.start for side in box_of(spot.region))
    assert sides[0] <= 7 and sides[1] <= 10  # 5 x 8 and its rim


def test_patches_continue_stripes_follow_the_light_of_their_place_and_never_show_a_defect():
    stripes = (
        (120 + 40 * np.sin(np.arange(64) * 2 * np.pi / 8)).astype(np.uint8)[:, None, None].repeat(64, 1).repeat(3, 2)
    )
    mask, broken = box((20, 34), (24, 40)), stripes.copy()
    broken[mask] = 0
    edit = heal(broken, mask, method="patch_same", rng=rng())
    assert np.abs(edit.image.astype(int) - stripes).max() <= 2

    image, mask = noisy(), box((28, 36), (8, 16)) | box((28, 36), (48, 56))
    image[:, 32:] += 60
    image[mask] = 0
    edit = heal(image, mask, method="patch_same", rng=rng())
    assert abs(edit.image[28:36, 8:16].mean() - 120) < 5 and abs(edit.image[28:36, 48:56].mean() - 180) < 5

    mask = box((2, 62), (18, 46))  # too large for one source
    edit = heal(dented(mask), mask, method="patch_same", rng=rng())
    assert abs(edit.image[mask].mean() - 120) < 10 and 4 < edit.image[mask].std() < 9

    image, mask, other = noisy(), box((20, 28), (20, 28)), box((0, 64), (32, 64))
    image[other] = 250
    assert editing.filled(image, mask, taken=mask | other, method="patch_same", rng=rng())[mask].max() < 160
    with pytest.raises(EditError, match="pixels to take from"):
        editing.filled(image, mask, taken=mask | True, method="telea", rng=rng())


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


# --- Pasting


@pytest.mark.parametrize("method", PASTE_METHODS)
@pytest.mark.parametrize("name", PASTED)
def test_pasting_changes_the_region_only_and_the_mask_is_what_changed(method, name):
    mask, image = MASKS[name], noisy(7, 150)
    edit = edit_of("paste", image, dented(mask), mask, method=method, seed=1)
    assert edit.region.sum() == mask.sum() and not (edit.mask & ~edit.region).any()
    assert (edit.mask == (edit.image != image).any(-1)).mean() > 0.99
    assert edit.image[edit.mask].mean() < 150 - 30
    again = edit_of("paste", image, dented(mask), mask, method=method, seed=1)
    assert (again.image == edit.image).all() and (again.mask == edit.mask).all()


@pytest.mark.parametrize("method", PASTE_METHODS)
@pytest.mark.parametrize("name", PASTED)
def test_repaste_gives_the_defect_back_at_its_place_with_traces(method, name):
    mask = MASKS[name]
    edit = edit_of("repaste", dented(mask), mask, method=method, seed=1)
    assert (edit.mask == mask).all() and (edit.region == mask).all()
    assert edit.image[mask].mean() < 75  # 40 before, 120 when healed


@pytest.mark.parametrize("method", PASTE_METHODS)
def test_paste_clean_sets_a_clean_patch_into_a_normal_picture_in_its_light(method):
    shape, elsewhere = MASKS["inside"], box((10, 20), (30, 50), (40, 200))
    edit = edit_of("paste_clean", noisy(3), noisy(4, 150), shape, method=method, seed=1)
    assert edit.region.sum() == shape.sum() and abs(edit.image[edit.region].mean() - 120) < 4
    assert edit_of("paste_clean", noisy(3), noisy(4, size=(50, 30)), elsewhere, method=method).region.sum() == 200


@pytest.mark.parametrize("method", PASTE_METHODS)
def test_on_plain_pictures_the_mask_is_exactly_what_changed(method):
    mask, donor, image = box((20, 32), (22, 40)), plain(100), plain(200)
    donor[mask] = 30
    edit = edit_of("paste", image, donor, mask, method=method, seed=2)
    assert (edit.mask == (edit.image != image).any(-1)).all() and edit.mask.sum() == 12 * 18
    core = edit.image[edit.mask & ~grown(~edit.mask, 2)]
    # 30 of 100 is 60 of 200; a clone keeps the difference of the brightness-matched patch, 60 - 200.
    assert np.abs(core.astype(int) - 60).max() <= (16 if method == "clone_mixed" else 6)

    donor = plain(100)
    donor[box((28, 36), (28, 36))] = 30
    edit = edit_of("paste", plain(180), donor, box((20, 44), (20, 44)), method=method, seed=2)  # of a coarse mask
    assert edit.region.sum() == 24 * 24 and 64 <= edit.mask.sum() <= 12 * 12


def test_the_pasted_defect_lies_wholly_inside_and_everywhere_and_fits_one_way_at_least():
    mask, places, tall = box((3, 15), (40, 46)), [], 0
    for seed in range(60):
        edit = paste(noisy(7), dented(mask), mask, method="copy", rng=rng(seed))
        rows, columns = box_of(edit.region)
        assert edit.region.sum() == 72
        tall += rows.stop - rows.start == 12
        places.append((rows.start, columns.start))
    assert 15 < tall < 45  # upright or lying
    assert min(np.min(places, axis=0)) < 12 and max(np.max(places, axis=0)) > 40
    edit = paste(noisy(1, size=(12, 48)), dented(TALL), TALL, method="copy", rng=rng())
    assert [side.stop - side.start for side in box_of(edit.region)] == [10, 40]


def test_relief_keeps_the_target_s_texture_and_copy_brings_the_donor_s():
    mask, donor, target = box((16, 40), (16, 40)), plain(100), noisy(7)
    donor[mask] = 60
    edits = {method: paste(target, donor, mask, method=method, rng=rng(1)) for method in ("relief", "copy")}
    grains = {name: roughness(edit.image, edit.region & ~grown(~edit.region, 3)) for name, edit in edits.items()}
    assert 0.4 < grains["relief"] / roughness(target) < 0.8 and grains["copy"] == 0  # multiplied by about 0.6


@pytest.mark.parametrize("place", [((0, 9), (0, 12)), ((7, 20), (11, 30)), ((30, 41), (0, 52)), ((7, 20), (0, 52))])
@pytest.mark.parametrize("mixed", [False, True])
def test_cloning_keeps_every_pixel_at_its_place(place, mixed):
    size = (41, 52)
    target, patch = plain(100, size), plain(100, size)
    spot = sum(place[0]) // 2, sum(place[1]) // 2
    patch[spot] = 200
    result = editing.clone(patch, target, box(*place, size), mixed=mixed).astype(int)
    assert np.unravel_index(result[..., 0].argmax(), size) == spot
    assert result[spot].min() > (140 if mixed else 180)
    result[spot] = 100
    assert np.abs(result - 100).max() <= (25 if mixed else 4)


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


# --- What is refused


def striped():
    clean = plain(150)
    clean[::2] = 30
    return clean


def smooth_square():
    image = noisy(3, strength=20.0)
    image[box((20, 44), (20, 44))] = 117  # smoother than its surroundings: their gradients are the stronger ones
    return image


LARGE, INSIDE = box((0, 33), (0, 64)), MASKS["inside"]


@pytest.mark.parametrize(("kind", "given", "method", "reason", "message"), [
    ("heal", (plain(), LARGE), "telea", "covers the picture", "takes 52% of it; .* most 50%"),
    ("heal", (plain(), box((0, 32), (0, 64))), "telea", "covers the picture", "the region to heal takes 52%"),
    ("heal", (plain(), INSIDE & False), "telea", "empty mask", "mask has no defect pixel"),
    ("heal_spot", (plain(), np.ones((60, 60), np.bool_)), "telea", "covers the picture", "takes"),
    ("heal_spot", (plain(), box((0, 9), (0, 100), (9, 120))), "telea", "larger than the picture", "9x100"),
    ("heal_beside", (plain(), box((12, 52), (16, 48))), "telea", "no free place", "fits nowhere"),
    ("paste", (noisy(7), plain(99), INSIDE), "copy", "too faint", "does not stand out"),
    ("paste", (plain(), plain(), INSIDE & False), "copy", "empty mask", "donor_mask has no"),
    ("paste", (noisy(1, size=(32, 32)), noisy(), TALL), "copy", "larger than the picture", "40x10 .* 32x32"),
    ("paste_clean", (plain(), striped(), INSIDE), "copy", "stands out", "as much as a defect"),
    ("repaste", (smooth_square(), box((20, 44), (20, 44))), "clone_mixed", "too faint", "resembles the healed place"),
])  # fmt: skip
def test_what_cannot_be_edited_says_why(kind, given, method, reason, message):
    with pytest.raises(EditError, match=message) as error:
        getattr(editing, kind)(*given, method=method, rng=rng())
    assert error.value.reason == reason
    travelled = pickle.loads(pickle.dumps(error.value))  # between processes
    assert (travelled.reason, str(travelled)) == (reason, str(error.value))
