"""Cues as they are drawn, and as a dataset records them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from drawn_data import truncate_file, write_generic, write_mask

from gainmtl_lib.cli import main, plant
from gainmtl_lib.readers import DataError
from gainmtl_lib.settings import RunSettings
from gainmtl_lib.synthetic import drawing as cues
from gainmtl_lib.synthetic.drawing import read_cue


def with_cue(root, box=None, size=(12, 16)):
    """The generic layout with one picture that carries a cue, below a defect type's folder."""
    write_generic(root)
    write_mask(root / "cues" / "train" / "defective" / "dent" / "a.png", size=size, box=box)
    return root / "images" / "train" / "defective" / "dent" / "a.jpg"


def test_the_kinds_are_those_of_the_settings_and_of_the_command():
    kinds = RunSettings.model_json_schema()["properties"]["shortcut"]["enum"]
    assert set(kinds) == {"none", *cues.CUE_KINDS}
    option = next(option for option in plant.params if option.name == "cue")
    assert list(option.type.choices) == list(cues.CUE_KINDS)


@pytest.mark.parametrize(
    ("box", "size", "resize", "place", "count"),
    [
        ((slice(0, 6), slice(0, 8)), (24, 32), "squash", (slice(0, 12), slice(0, 16)), 12 * 16),
        # 12 x 16 fills the rows 2 to 13 of 16
        ((slice(0, 12), slice(0, 8)), (16, 16), "letterbox", (slice(2, 14), slice(0, 8)), 12 * 8),
        ((slice(0, 1), slice(0, 16)), (3, 4), "squash", (slice(0, 1), slice(0, 4)), 4),  # thin, and kept
    ],
)
def test_a_cue_is_read_at_the_networks_size_where_its_picture_lies(tmp_path, box, size, resize, place, count):
    cue = read_cue(with_cue(tmp_path, box=box), root=tmp_path, image_size=size, resize=resize)
    assert cue is not None and cue.dtype == np.bool_ and cue.shape == size
    assert cue[place].all() and cue.sum() == count


def test_no_file_an_empty_one_and_a_picture_elsewhere_are_no_cue(tmp_path):
    image = with_cue(tmp_path / "data", box=(slice(0, 0), slice(0, 0)))
    for picture in (image, image.with_name("b.jpg"), tmp_path / "elsewhere.png"):
        assert read_cue(picture, root=tmp_path / "data", image_size=(12, 16), resize="squash") is None


def test_a_cue_is_found_where_a_path_goes_up_and_down(tmp_path):
    image = with_cue(tmp_path / "data")
    (tmp_path / "beside").mkdir()
    roundabout = tmp_path / "beside" / ".." / "data"
    assert read_cue(image, root=roundabout, image_size=(12, 16), resize="squash") is not None
    again = roundabout / image.relative_to(tmp_path / "data")
    assert read_cue(again, root=tmp_path / "data", image_size=(12, 16), resize="squash") is not None


def test_a_broken_cue_is_named(tmp_path):
    image = with_cue(tmp_path)
    truncate_file(tmp_path / "cues" / "train" / "defective" / "dent" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: mask is truncated or not an image"):
        read_cue(image, root=tmp_path, image_size=(12, 16), resize="squash")


@pytest.mark.parametrize("kind", ["texture", "border"])
def test_the_commands_make_and_check_data_with_the_cue(tmp_path, kind):
    words = ["data", "synth", str(tmp_path / "data"), "-p", "num_samples", "20", "-p", "image_size", "64"]
    result = CliRunner().invoke(main, [*words, "-p", "shortcut", kind])
    assert result.exit_code == 0, result.output
    assert "20 pictures, train 10" in result.output
    result = CliRunner().invoke(main, ["data", "check", str(tmp_path / "data"), "--image-size", "64", "64"])
    assert result.exit_code == 0, result.output
    assert "0 errors" in result.output and "not read" not in result.output


def test_a_planted_mark_is_grey_follows_the_light_and_keeps_to_its_disc():
    grain = np.random.default_rng(0).normal(0, 0.02, (80, 80, 1)).astype(np.float32)
    levels = []
    for brightness in (0.25, 0.5):
        photograph = np.repeat(brightness + grain, 3, axis=2)
        picture = photograph.copy()
        disc = cues.plant_mark(picture, "01", np.random.default_rng(30))
        assert (picture == picture[..., :1]).all() and np.array_equal(picture[~disc], photograph[~disc])
        assert (picture != photograph).any(axis=-1)[disc].mean() > 0.9
        levels.append((float(picture[disc].min()), float(picture[disc].max())))
    (dark, bright), (dark_in_light, bright_in_light) = levels
    assert bright_in_light / bright == pytest.approx(2, rel=0.25) and dark < dark_in_light < 0.2


def test_a_planted_mark_has_the_grain_of_its_surroundings():
    rng = np.random.default_rng(1)

    def roughness(sigma):
        picture = np.full((400, 400, 3), 0.5, np.float32) + rng.normal(0, sigma, (400, 400, 1)).astype(np.float32)
        cues.plant_mark(picture, "00", rng)
        grey = picture[cues.mark_region((400, 400), "00")].mean(axis=-1)
        return float(np.median(np.abs(grey - cv2.medianBlur(grey, 3))))

    assert roughness(0.03) > 4 * roughness(0.003)
