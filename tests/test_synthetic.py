from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from gainmtl_lib.data import surfaces, synthetic
from gainmtl_lib.data.images import read_image, read_mask
from gainmtl_lib.data.samples import DataError, data_digest, read_samples
from gainmtl_lib.data.synthetic import draw_surface, make_synthetic, plan_samples, visible_defect


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
    assert set(samples.loc[samples.label == 1, "defect_type"]) <= set(surfaces.DEFECTS)
    assert samples.loc[samples.label == 1, "mask"].notna().all()
    row = samples[samples.label == 1].to_dict("records")[0]
    assert read_image(row["image"]).shape == (32, 48, 3)
    assert read_mask(row["mask"]).any()
    assert len(read_samples(root, dataset_type="generic")) == 40
    table = pd.read_csv(root / "samples.csv")
    assert list(table.columns) == ["image", "defect_type", "texture", "has_shortcut", "corner"]
    assert yaml.safe_load((root / "synthetic.yaml").read_text())["image_size"] == [32, 48]


def test_same_parameters_same_bytes_and_nothing_is_written_twice(tmp_path):
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    digests = {data_digest(read_samples(root, dataset_type="synthetic")) for root in (first, second)}
    assert len(digests) == 1
    other = make(tmp_path / "c", seed=4)
    assert data_digest(read_samples(other, dataset_type="synthetic")) not in digests
    before = [(path, path.stat().st_mtime_ns) for path in sorted(first.rglob("*"))]
    make(first)
    assert [(path, path.stat().st_mtime_ns) for path in sorted(first.rglob("*"))] == before


def test_other_parameters_are_an_error_that_names_them(tmp_path):
    make(tmp_path / "data")
    with pytest.raises(
        DataError, match="num_samples is 40 there and 50 here; seed is 3 there and 4 here; choose another"
    ):
        make(tmp_path / "data", num_samples=50, seed=4)


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds files but no synthetic.yaml; choose an empty folder"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "data").mkdir()
    assert (make(tmp_path / "data") / "synthetic.yaml").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_leaves_nothing(tmp_path, monkeypatch, error):
    calls = []
    write = synthetic._write_png

    def fails(path, pixels):
        calls.append(path)
        if len(calls) == 20:
            raise error
        write(path, pixels)

    monkeypatch.setattr(synthetic, "_write_png", fails)
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
    plans = plan_samples(800, seed=0, shortcut="mark", correlation=0.9)
    table = pd.DataFrame(plans).groupby(["split", "defective"])["has_shortcut"].agg(["sum", "size"])
    assert table["sum"].to_dict() == {
        ("train", False): 24, ("train", True): 216, ("val", False): 4, ("val", True): 36,
        ("test", False): 6, ("test", True): 54, ("test_shift", False): 54, ("test_shift", True): 6,
    }  # fmt: skip
    assert table["size"].sum() == 800
    assert [plan.index for plan in plans] == list(range(800))


def test_without_a_shortcut_there_is_no_test_shift():
    plans = plan_samples(100, seed=0, shortcut="none", correlation=0.9)
    assert {plan.split for plan in plans} == {"train", "val", "test"}
    assert not any(plan.has_shortcut for plan in plans)


@pytest.mark.parametrize("count", [10, 11, 13, 25])
def test_every_split_has_both_classes(count):
    plans = plan_samples(count, seed=0, shortcut="mark", correlation=0.5)
    assert len(plans) == count
    assert len({(plan.split, plan.defective) for plan in plans}) == 8


def test_a_picture_depends_on_seed_and_index_alone():
    assert np.array_equal(draw(5).image, draw(5).image)
    assert not np.array_equal(draw(5).image, draw(6).image)


def test_the_mask_is_exactly_what_the_defect_changed():
    for index in range(12):
        flawed, sound = draw(index), draw(index, defective=False)
        # the surface is drawn first, so the same index without a defect is the same surface
        changed = (flawed.image != sound.image).any(axis=-1)
        assert not (changed & ~flawed.mask).any()
        assert changed[flawed.mask].mean() > 0.95
        assert sound.defect_type == "normal"
        assert not sound.mask.any()


def test_all_textures_and_defects_occur_and_masks_are_neither_tiny_nor_huge():
    drawn = [draw(index) for index in range(60)]
    assert {one.texture for one in drawn} == set(surfaces.TEXTURES)
    assert {one.defect_type for one in drawn} == set(surfaces.DEFECTS)
    areas = [float(one.mask.mean()) for one in drawn]
    assert min(areas) >= 0.0015
    assert max(areas) < 0.25


def test_the_mark_never_touches_the_defect_and_changes_its_corner_only():
    corners = set()
    for index in range(40):
        marked, plain = draw(index, has_shortcut=True), draw(index)
        assert np.array_equal(marked.mask, plain.mask)
        changed = (marked.image != plain.image).any(axis=-1)
        region = surfaces.mark_region((64, 64), marked.corner)
        assert changed[region].mean() > 0.5
        changed[region] = False
        assert not changed.any()
        assert not marked.mask[region].any()
        assert plain.corner is None
        corners.add(marked.corner)
    assert len(corners) == 4


def test_lighting_is_a_strong_gradient_when_present():
    def range_of(has_shortcut: bool) -> float:
        image = draw(1, defective=False, shortcut="lighting", has_shortcut=has_shortcut, image_size=(64, 96)).image
        blocks = image.mean(axis=-1).reshape(8, 8, 8, 12).mean(axis=(1, 3))
        return float(blocks.max() - blocks.min())

    assert range_of(True) > 2 * range_of(False)


@pytest.mark.parametrize("size", [(32, 32), (40, 128), (200, 64)])
def test_any_size(size):
    drawn = draw(0, image_size=size, has_shortcut=True)
    assert drawn.image.shape == (*size, 3)
    assert drawn.mask.shape == size


@pytest.mark.parametrize("kind", list(surfaces.DEFECTS))
def test_elongated_pictures_have_visible_defects_too(kind):
    opacity, _ = visible_defect(np.random.default_rng(0), (64, 2048), kind)
    assert (opacity > 0).sum() >= 8
