"""Synthetic surfaces and cues: what is drawn, and how a dataset's cue is read."""

import cv2
import numpy as np
import pytest
from drawn_data import truncate_file, write_generic, write_mask

from gainmtl_lib.cli import plant
from gainmtl_lib.findings import DataError
from gainmtl_lib.synthetic import data, drawing
from gainmtl_lib.synthetic.data import PLANTERS, draw_surface, visible_defect
from gainmtl_lib.synthetic.drawing import read_cue


def draw(index: int, **changes):
    options = dict(image_size=(64, 64), defective=True, has_shortcut=False, shortcut="mark")
    return draw_surface(0, index, **{**options, **changes})


def test_defects_of_all_kinds_are_visible_and_the_mask_is_exactly_what_one_changed():
    flaws = [draw(index) for index in range(60)]
    assert {one.texture for one in flaws} == set(drawing.TEXTURES)
    assert {one.defect_type for one in flaws} == set(drawing.DEFECTS)
    areas = [float(one.mask.mean()) for one in flaws]
    assert min(areas) >= 0.0015 and max(areas) < 0.25
    for kind in drawing.DEFECTS:  # in elongated pictures, too
        assert (visible_defect(np.random.default_rng(0), (64, 2048), kind)[0] > 0).sum() >= 8
    for index, flawed in enumerate(flaws[:12]):
        sound = draw(index, defective=False)
        # the surface is drawn first, so the same index without a defect is the same surface
        changed = (flawed.image != sound.image).any(axis=-1)
        assert not (changed & ~flawed.mask).any() and changed[flawed.mask].mean() > 0.95
        assert sound.defect_type == "normal" and not sound.mask.any()


def test_the_mark_never_touches_the_defect_and_changes_its_corner_only():
    corners = set()
    for index in range(40):
        marked, plain = draw(index, has_shortcut=True), draw(index)
        assert np.array_equal(marked.mask, plain.mask) and plain.place == "" and not plain.cue.any()
        changed = (marked.image != plain.image).any(axis=-1)
        region = drawing.mark_region((64, 64), marked.place)
        assert changed[region].mean() > 0.5 and not marked.mask[region].any()
        assert marked.cue[region].mean() == pytest.approx(np.pi / 4, abs=0.12)  # a disc
        assert marked.cue.sum() == marked.cue[region].sum()
        changed[region] = False
        assert not changed.any()
        corners.add(marked.place)
    assert corners == set(drawing.CORNERS)


def test_the_border_lies_along_one_free_side_and_changes_nothing_else():
    sides = set()
    for index in range(40):
        cropped, inside = (draw(index, shortcut="border", has_shortcut=has) for has in (True, False))
        assert np.array_equal(cropped.mask, inside.mask) and inside.place == "" and not inside.cue.any()
        changed = (cropped.image != inside.image).any(axis=-1)
        assert not (changed & ~cropped.cue).any() and changed[cropped.cue].mean() > 0.8
        assert not (cropped.cue & cropped.mask).any()
        turns = {"left": 0, "top": 1, "right": 2, "bottom": 3}
        strip = np.rot90(cropped.cue, turns[cropped.place])  # along the left side
        depths = strip.sum(axis=1)
        # 5 to 9 % of 64 pixels are 3.2 to 5.8; a pixel that the slanted edge only grazes counts
        assert depths.min() >= 3 and depths.max() <= 7
        assert all(row[:depth].all() for row, depth in zip(strip, depths, strict=True))
        sides.add(cropped.place)
    assert sides == set(drawing.SIDES)


def test_lighting_is_a_strong_gradient_when_present():
    def range_of(has_shortcut: bool) -> float:
        image = draw(1, defective=False, shortcut="lighting", has_shortcut=has_shortcut, image_size=(64, 96)).image
        blocks = image.mean(axis=-1).reshape(8, 8, 8, 12).mean(axis=(1, 3))
        return float(blocks.max() - blocks.min())

    assert range_of(True) > 2 * range_of(False)


def test_the_texture_cue_is_the_family_of_textures_and_leaves_the_defect_alone():
    with_cue = [draw(index, shortcut="texture", has_shortcut=True) for index in range(30)]
    without = [draw(index, shortcut="texture") for index in range(30)]
    assert {one.texture for one in with_cue} == set(drawing.MACHINED)
    assert {one.texture for one in without} == set(drawing.CAST)
    for one, other in zip(with_cue, without, strict=True):
        assert np.array_equal(one.mask, other.mask) and one.defect_type == other.defect_type
        assert np.array_equal(one.cue, ~one.mask) and not other.cue.any()


def contrast(drawn) -> float:
    """Between a defect and its surroundings, in standard deviations of these."""
    grey = cv2.GaussianBlur(drawn.image.mean(axis=-1), (0, 0), 1.0)
    around = (cv2.dilate(drawn.mask.astype(np.uint8), np.ones((9, 9))) > 0) & ~drawn.mask
    return float(abs(grey[drawn.mask].mean() - grey[around].mean()) / grey[around].std())


def test_defects_stand_out_about_as_much_on_both_families_of_textures():
    medians = [
        np.median([contrast(draw(index, shortcut="texture", has_shortcut=family)) for index in range(120)])
        for family in (True, False)
    ]
    assert 0.8 < medians[0] / medians[1] < 1.25


@pytest.mark.parametrize(("shortcut", "index", "defective", "quarters", "pixels"), [
    ("none", 0, True, [111.57, 118.3, 126.1, 117.1], [305, 302, 348, 325, 376, 357, 341, 336]),
    ("mark", 1, True, [128.57, 129.74, 132.46, 130.73], [415, 418, 415, 371, 433, 432, 418, 444]),
    ("mark", 2, False, [121.6, 119.57, 121.73, 120.76], [361, 364, 413, 366, 339, 396, 311, 341]),
    ("lighting", 3, True, [116.14, 164.25, 120.77, 165.54], [255, 354, 501, 507, 291, 372, 525, 630]),
])  # fmt: skip
def test_generator_2_draws_the_same_pictures_as_ever(shortcut, index, defective, quarters, pixels):
    """Mean grey of the four quarters and single pixels: a digest would also tell one CPU's rounding from another's."""
    assert data.GENERATOR == 2
    image = draw(index, shortcut=shortcut, defective=defective, has_shortcut=shortcut != "none").image
    assert image.mean(axis=-1).reshape(2, 32, 2, 32).mean(axis=(1, 3)).ravel() == pytest.approx(quarters, abs=0.05)
    # red, green and blue together
    assert image[::21, ::21].sum(axis=-1).ravel()[:8] == pytest.approx(pixels, abs=3)


# --- Cues on photographs, and as a dataset records them


def test_a_planted_mark_is_grey_follows_the_light_and_keeps_to_its_disc():
    grain = np.random.default_rng(0).normal(0, 0.02, (80, 80, 1)).astype(np.float32)
    levels = []
    for brightness in (0.25, 0.5):
        photograph = np.repeat(brightness + grain, 3, axis=2)
        picture = photograph.copy()
        disc = drawing.plant_mark(picture, "01", np.random.default_rng(30))
        assert (picture == picture[..., :1]).all() and np.array_equal(picture[~disc], photograph[~disc])
        assert (picture != photograph).any(axis=-1)[disc].mean() > 0.9
        levels.append((float(picture[disc].min()), float(picture[disc].max())))
    (dark, bright), (dark_in_light, bright_in_light) = levels
    assert bright_in_light / bright == pytest.approx(2, rel=0.25) and dark < dark_in_light < 0.2


def test_a_planted_mark_has_the_grain_of_its_surroundings():
    rng = np.random.default_rng(1)

    def roughness(sigma):
        picture = np.full((400, 400, 3), 0.5, np.float32) + rng.normal(0, sigma, (400, 400, 1)).astype(np.float32)
        drawing.plant_mark(picture, "00", rng)
        grey = picture[drawing.mark_region((400, 400), "00")].mean(axis=-1)
        return float(np.median(np.abs(grey - cv2.medianBlur(grey, 3))))

    assert roughness(0.03) > 4 * roughness(0.003)


def with_cue(root, box=None, size=(12, 16)):
    """The generic layout with one picture that carries a cue, below a defect type's folder."""
    write_generic(root)
    write_mask(root / "cues" / "train" / "defective" / "dent" / "a.png", size=size, box=box)
    return root / "images" / "train" / "defective" / "dent" / "a.jpg"


def test_the_command_offers_the_cues_that_can_be_planted():
    option = next(option for option in plant.params if option.name == "cue")
    assert list(option.type.choices) == list(PLANTERS)


@pytest.mark.parametrize(("box", "size", "resize", "place", "count"), [
    ((slice(0, 6), slice(0, 8)), (24, 32), "squash", (slice(0, 12), slice(0, 16)), 12 * 16),
    # 12 x 16 fills the rows 2 to 13 of 16
    ((slice(0, 12), slice(0, 8)), (16, 16), "letterbox", (slice(2, 14), slice(0, 8)), 12 * 8),
    ((slice(0, 1), slice(0, 16)), (3, 4), "squash", (slice(0, 1), slice(0, 4)), 4),  # thin, and kept
])  # fmt: skip
def test_a_cue_is_read_at_the_networks_size_where_its_picture_lies(tmp_path, box, size, resize, place, count):
    cue = read_cue(with_cue(tmp_path, box=box), root=tmp_path, image_size=size, resize=resize)
    assert cue is not None and cue.dtype == np.bool_ and cue.shape == size
    assert cue[place].all() and cue.sum() == count


def test_a_cue_is_found_on_any_way_no_file_an_empty_one_and_one_elsewhere_are_none_and_a_broken_one_is_named(tmp_path):
    def read(picture, root=tmp_path / "data"):
        return read_cue(picture, root=root, image_size=(12, 16), resize="squash")

    image = with_cue(tmp_path / "data")
    (tmp_path / "beside").mkdir()
    roundabout = tmp_path / "beside" / ".." / "data"
    assert read(image, roundabout) is not None and read(roundabout / image.relative_to(tmp_path / "data")) is not None
    with_cue(tmp_path / "data", box=(slice(0, 0), slice(0, 0)))
    for picture in (image, image.with_name("b.jpg"), tmp_path / "elsewhere.png"):
        assert read(picture) is None
    truncate_file(tmp_path / "data/cues/train/defective/dent/a.png")
    with pytest.raises(DataError, match=r"a\.png: mask is truncated or not an image"):
        read(image)
