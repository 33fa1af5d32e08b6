"""Synthetic surfaces: what is drawn, what is written, and that a dataset is made once, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from gainmtl_lib.readers import DataError, data_digest, read_image, read_mask, read_mask_values, read_samples
from gainmtl_lib.synthetic import data as synthetic
from gainmtl_lib.synthetic import drawing
from gainmtl_lib.synthetic.data import draw_surface, make_synthetic, plan_samples, visible_defect


def make(root: Path, **changes):
    options = dict(num_samples=40, image_size=(32, 48), seed=3, shortcut="mark", shortcut_correlation=0.75)
    return make_synthetic(root, **{**options, **changes})


def draw(index: int, **changes):
    options = dict(image_size=(64, 64), defective=True, has_shortcut=False, shortcut="mark")
    return draw_surface(0, index, **{**options, **changes})


def test_written_in_the_generic_layout_and_read_with_defect_types(tmp_path):
    root = make(tmp_path / "data")
    samples = read_samples(root, dataset_type="synthetic")
    assert samples.groupby(["split", "label"]).size().to_dict() == {
        ("train", 0): 12, ("train", 1): 12, ("val", 0): 2, ("val", 1): 2,
        ("test", 0): 3, ("test", 1): 3, ("test_shift", 0): 3, ("test_shift", 1): 3,
    }  # fmt: skip
    defective = samples[samples.label == 1]
    assert set(defective["defect_type"]) <= set(drawing.DEFECTS) and defective["mask"].notna().all()
    assert read_image(defective["image"].iloc[0]).shape == (32, 48, 3) and read_mask(defective["mask"].iloc[0]).any()
    assert len(read_samples(root, dataset_type="generic")) == 40
    assert yaml.safe_load((root / "synthetic.yaml").read_text())["image_size"] == [32, 48]


@pytest.mark.parametrize("shortcut", drawing.CUE_KINDS)
def test_cues_are_written_for_the_pictures_that_carry_them(tmp_path, shortcut):
    root = make(tmp_path / "data", shortcut=shortcut)
    table = pd.read_csv(root / "samples.csv")
    carried = {image.replace("images/", "cues/") for image in table.loc[table.has_shortcut == 1, "image"]}
    assert {path.relative_to(root).as_posix() for path in (root / "cues").rglob("*.png")} == carried != set()
    for place in carried:
        cue = read_mask_values(root / place)
        assert cue.shape == (32, 48) and set(np.unique(cue)) <= {0, 255} and cue.any()
        mask = root / place.replace("cues/", "masks/")
        assert not mask.is_file() or not (read_mask(mask) & (cue > 0)).any()


def test_without_a_shortcut_there_are_no_cues_and_no_test_shift(tmp_path):
    root = make(tmp_path / "data", shortcut="none")
    assert not (root / "cues").exists()
    assert set(read_samples(root, dataset_type="synthetic")["split"]) == {"train", "val", "test"}
    assert not pd.read_csv(root / "samples.csv")["has_shortcut"].any()


def test_same_parameters_same_bytes_and_nothing_is_written_twice(tmp_path):
    first, second, other = make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "c", seed=4)
    digests = [data_digest(read_samples(root, dataset_type="synthetic")) for root in (first, second, other)]
    assert digests[0] == digests[1] != digests[2]
    before = [(path, path.stat().st_mtime_ns) for path in sorted(first.rglob("*"))]
    make(first)
    assert [(path, path.stat().st_mtime_ns) for path in sorted(first.rglob("*"))] == before


def test_only_an_empty_folder_or_the_same_data_is_accepted(tmp_path):
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    other = "num_samples is 40 there and 50 here; seed is 3 there and 4 here; choose another"
    with pytest.raises(DataError, match=other):
        make(tmp_path / "data", num_samples=50, seed=4)
    with pytest.raises(DataError, match=r"holds files but no synthetic.yaml; choose an empty folder"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_leaves_nothing(tmp_path, monkeypatch, error):
    calls = []
    write = synthetic.write_png

    def fails(path, pixels):
        calls.append(path)
        if len(calls) == 20:
            raise error
        write(path, pixels)

    monkeypatch.setattr(synthetic, "write_png", fails)
    expected = (KeyboardInterrupt, None) if error is KeyboardInterrupt else (DataError, "written: No space left")
    with pytest.raises(expected[0], match=expected[1]):
        make(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_too_few_samples_and_impossible_correlation(tmp_path):
    with pytest.raises(DataError, match=r"num_samples must be at least 10 \(each split needs both classes\), got 9"):
        make(tmp_path / "data", num_samples=9)
    with pytest.raises(DataError, match=r"shortcut_correlation must lie in \[0, 1\], got 1.5"):
        make(tmp_path / "data", shortcut_correlation=1.5)
    assert not (tmp_path / "data").exists()


def test_the_shortcut_goes_with_the_class_and_against_it_in_test_shift():
    plan = plan_samples(800, seed=0, shortcut="mark", correlation=0.9)
    table = plan.groupby(["split", "defective"])["has_shortcut"].agg(["sum", "size"])
    assert table["sum"].to_dict() == {
        ("train", False): 24, ("train", True): 216, ("val", False): 4, ("val", True): 36,
        ("test", False): 6, ("test", True): 54, ("test_shift", False): 54, ("test_shift", True): 6,
    }  # fmt: skip
    assert table["size"].sum() == 800


@pytest.mark.parametrize("count", [10, 11, 25])
def test_every_split_has_both_classes(count):
    plan = plan_samples(count, seed=0, shortcut="mark", correlation=0.5)
    assert len(plan) == count and len(plan[["split", "defective"]].drop_duplicates()) == 8


def test_the_mask_is_exactly_what_the_defect_changed():
    for index in range(12):
        flawed, sound = draw(index), draw(index, defective=False)
        # the surface is drawn first, so the same index without a defect is the same surface
        changed = (flawed.image != sound.image).any(axis=-1)
        assert not (changed & ~flawed.mask).any() and changed[flawed.mask].mean() > 0.95
        assert sound.defect_type == "normal" and not sound.mask.any()


def test_all_textures_and_defects_occur_and_masks_are_neither_tiny_nor_huge():
    drawn = [draw(index) for index in range(60)]
    assert {one.texture for one in drawn} == set(drawing.TEXTURES)
    assert {one.defect_type for one in drawn} == set(drawing.DEFECTS)
    areas = [float(one.mask.mean()) for one in drawn]
    assert min(areas) >= 0.0015 and max(areas) < 0.25


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


@pytest.mark.parametrize("kind", list(drawing.DEFECTS))
def test_elongated_pictures_have_visible_defects_too(kind):
    opacity, _ = visible_defect(np.random.default_rng(0), (64, 2048), kind)
    assert (opacity > 0).sum() >= 8


@pytest.mark.parametrize(
    ("shortcut", "index", "defective", "quarters", "pixels"),
    [
        ("none", 0, True, [111.57, 118.3, 126.1, 117.1], [305, 302, 348, 325, 376, 357, 341, 336]),
        ("mark", 1, True, [128.57, 129.74, 132.46, 130.73], [415, 418, 415, 371, 433, 432, 418, 444]),
        ("mark", 2, False, [121.6, 119.57, 121.73, 120.76], [361, 364, 413, 366, 339, 396, 311, 341]),
        ("lighting", 3, True, [116.14, 164.25, 120.77, 165.54], [255, 354, 501, 507, 291, 372, 525, 630]),
    ],
)
def test_generator_2_draws_the_same_pictures_as_ever(shortcut, index, defective, quarters, pixels):
    """Mean grey of the four quarters and single pixels: a digest would also tell one CPU's rounding from another's."""
    assert synthetic.GENERATOR == 2
    image = draw(index, shortcut=shortcut, defective=defective, has_shortcut=shortcut != "none").image
    assert image.mean(axis=-1).reshape(2, 32, 2, 32).mean(axis=(1, 3)).ravel() == pytest.approx(quarters, abs=0.05)
    # red, green and blue together
    assert image[::21, ::21].sum(axis=-1).ravel()[:8] == pytest.approx(pixels, abs=3)
