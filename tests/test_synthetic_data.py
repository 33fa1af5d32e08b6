"""Synthetic data and planted photographs: what is written, and that a dataset is made once, whole or not at all."""

import re
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from drawn_data import truncate_file, write_generic, write_mask, write_picture

from gainmtl_lib import readers
from gainmtl_lib.annotations import read_mask
from gainmtl_lib.cli import main
from gainmtl_lib.data_check import check_data_of
from gainmtl_lib.findings import DataError
from gainmtl_lib.pictures import read_grey, read_image
from gainmtl_lib.settings import Cue, Settings
from gainmtl_lib.synthetic import data as synthetic
from gainmtl_lib.synthetic import drawing
from gainmtl_lib.synthetic.data import GROUP_PATTERN, planted_counts
from gainmtl_lib.synthetic.drawing import read_cue


def make(root: Path, **changes):
    options = dict(num_samples=40, image_size=(32, 48), seed=3, shortcut="mark", shortcut_correlation=0.75)
    return synthetic.make_synthetic(root, **{**options, **changes})


def test_written_in_the_generic_layout_and_read_with_defect_types(tmp_path):
    root = make(tmp_path / "data")
    samples = readers.read_samples(root, dataset_type="synthetic")
    assert samples.groupby(["split", "label"]).size().to_dict() == {
        ("train", 0): 12, ("train", 1): 12, ("val", 0): 2, ("val", 1): 2,
        ("test", 0): 3, ("test", 1): 3, ("test_shift", 0): 3, ("test_shift", 1): 3,
    }  # fmt: skip
    defective = samples[samples.label == 1]
    assert set(defective["defect_type"]) <= set(drawing.DEFECTS) and defective["mask"].notna().all()
    assert read_image(defective["image"].iloc[0]).shape == (32, 48, 3) and read_mask(defective["mask"].iloc[0]).any()
    assert len(readers.read_samples(root, dataset_type="generic")) == 40
    assert yaml.safe_load((root / "synthetic.yaml").read_text())["image_size"] == [32, 48]


@pytest.mark.parametrize("shortcut", get_args(Cue))
def test_cues_are_written_for_the_pictures_that_carry_them_and_none_without_a_shortcut(tmp_path, shortcut):
    root = make(tmp_path / "data", shortcut=shortcut)
    table = pd.read_csv(root / "samples.csv")
    carried = {image.replace("images/", "cues/") for image in table.loc[table.has_shortcut == 1, "image"]}
    assert {path.relative_to(root).as_posix() for path in (root / "cues").rglob("*.png")} == carried != set()
    for place in carried:
        cue = read_grey(root / place)
        assert cue.shape == (32, 48) and set(np.unique(cue)) <= {0, 255} and cue.any()
        mask = root / place.replace("cues/", "masks/")
        assert not mask.is_file() or not (read_mask(mask) & (cue > 0)).any()
    plain = make(tmp_path / "plain", shortcut="none")
    assert not (plain / "cues").exists() and not pd.read_csv(plain / "samples.csv")["has_shortcut"].any()
    assert set(readers.read_samples(plain, dataset_type="synthetic")["split"]) == {"train", "val", "test"}


def test_same_parameters_same_bytes_and_nothing_is_written_twice(tmp_path):
    first, second, other = make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "c", seed=4)
    digests = [
        readers.data_digest(readers.read_samples(root, dataset_type="synthetic")) for root in (first, second, other)
    ]
    assert digests[0] == digests[1] != digests[2]
    before = [(path, path.stat().st_mtime_ns) for path in sorted(first.rglob("*"))]
    make(first)
    assert [(path, path.stat().st_mtime_ns) for path in sorted(first.rglob("*"))] == before


def test_only_an_empty_folder_or_the_same_data_and_possible_parameters_are_accepted(tmp_path):
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    other = "num_samples is 40 there and 50 here; seed is 3 there and 4 here; choose another"
    with pytest.raises(DataError, match=other):
        make(tmp_path / "data", num_samples=50, seed=4)
    with pytest.raises(DataError, match=r"holds files but no synthetic.yaml; choose an empty folder"):
        make(tmp_path)
    with pytest.raises(DataError, match=r"num_samples must be at least 10 \(each split needs both classes\), got 9"):
        make(tmp_path / "other", num_samples=9)
    with pytest.raises(DataError, match=r"shortcut_correlation must lie in \[0, 1\], got 1.5"):
        make(tmp_path / "other", shortcut_correlation=1.5)
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


def test_the_shortcut_goes_with_the_class_and_against_it_in_test_shift():
    plan = synthetic.plan_samples(800, seed=0, shortcut="mark", correlation=0.9)
    table = plan.groupby(["split", "defective"])["has_shortcut"].agg(["sum", "size"])
    assert table["sum"].to_dict() == {
        ("train", False): 24, ("train", True): 216, ("val", False): 4, ("val", True): 36,
        ("test", False): 6, ("test", True): 54, ("test_shift", False): 54, ("test_shift", True): 6,
    }  # fmt: skip
    assert table["size"].sum() == 800
    for count in (10, 11, 25):
        plan = synthetic.plan_samples(count, seed=0, shortcut="mark", correlation=0.5)
        assert len(plan) == count and len(plan[["split", "defective"]].drop_duplicates()) == 8


# --- Cues planted into photographs


SIZE = (40, 60)
MIDDLE = (slice(15, 25), slice(20, 40))


def generic(root: Path, *, per_class: int = 10) -> Path:
    """Three splits, defects in the middle; the stems are equal in all splits."""
    for part, split in enumerate(("train", "val", "test")):
        for number in range(per_class):
            write_picture(root / f"images/{split}/normal/{number}.png", size=SIZE, seed=2 * part)
            write_picture(root / f"images/{split}/defective/dent/{number}.png", size=SIZE, seed=2 * part + 1)
            write_mask(root / f"masks/{split}/defective/dent/{number}.png", size=SIZE, box=MIDDLE)
    return root


def read(root: Path, **options) -> pd.DataFrame:
    return readers.read_samples(root, **{"dataset_type": "generic", **options})


def plant(samples: pd.DataFrame, out: Path, **changes) -> Path:
    options = dict(cue="mark", correlation=0.8, seed=0, origin={"dataset_type": "generic"}, skip_unreadable=False)
    synthetic.plant_cue(samples, out, **{**options, **changes})
    return out


def test_the_quota_is_exact_in_every_split_and_class_and_turned_round_in_test_shift(tmp_path):
    out = plant(read(generic(tmp_path / "in")), tmp_path / "out")
    report = check_data_of(Settings(data_root=out, group_pattern=GROUP_PATTERN, image_size=64))
    warnings = [finding.message for finding in report.findings if finding.level == "warning"]
    assert report.usable and [one.split(":")[0] for one in warnings] == ["the masks mark nothing particular"]  # noise
    counts = planted_counts(out)
    assert counts["pictures"].tolist() == [10] * 8
    assert counts["with the cue"].to_dict() == {
        "train, defective": 8, "train, normal": 2, "val, defective": 8, "val, normal": 2,
        "test, defective": 8, "test, normal": 2, "test_shift, defective": 2, "test_shift, normal": 8,
    }  # fmt: skip
    samples = read(out, group_pattern=GROUP_PATTERN)
    assert set(samples.loc[samples.label == 1, "defect_type"]) == {"dent"}
    assert samples.loc[samples.label == 1, "mask"].notna().all()
    assert readers.split_samples(samples, val_ratio=0, test_ratio=0.2, seed=0)["split"].equals(samples["split"])


@pytest.mark.parametrize("cue", ["mark", "lighting", "border"])
def test_a_picture_differs_from_its_source_and_its_twin_in_the_cue_alone(tmp_path, cue):
    out = plant(read(generic(tmp_path / "in")), tmp_path / "out", cue=cue)
    table = pd.read_csv(out / "samples.csv", dtype={"place": str})
    for row in table.to_dict("records"):
        image, source = (
            read_image(out / row["image"]),
            read_image(tmp_path / "in" / "images" / row["source"]),
        )
        changed = (image != source).any(axis=-1)
        pixels = read_cue(out / row["image"], root=out, image_size=SIZE, resize="squash")
        assert (pixels is not None) == bool(row["has_cue"]) == bool(changed.any())
        assert isinstance(row["place"], str) == (bool(row["has_cue"]) and cue != "lighting")
        if pixels is not None and row["defect_type"] == "dent":
            assert not pixels[MIDDLE].any()
        if pixels is not None:
            allowed = np.zeros(SIZE, dtype=bool)
            allowed[MIDDLE] = cue == "lighting" and row["defect_type"] == "dent"  # dims the defect, too
            assert not (changed & ~pixels & ~allowed).any()
            assert changed[pixels].mean() > 0.8
    tests = table[table["image"].str.startswith("images/test/")]
    names = tests["image"].str.replace("/test/", "/test_shift/").str.replace(r"/([^/]+)$", r"/shift-\1", regex=True)
    twins = table.set_index("image").loc[names]
    assert len(tests) == 20 and (twins["has_cue"].to_numpy() == 1 - tests["has_cue"]).all()
    assert twins["source"].tolist() == tests["source"].tolist()


def test_names_read_back_as_many_groups_as_there_were():
    groups = ["a__b", "a_b", "A_b", "_a", "shift-x", "shift-shift-x", "x", "train/good/000.png"]
    groups += ["test/good/000.png", "부품 1", "__", "x"]
    names = synthetic.planted_names(groups, ["000"] * len(groups))
    found = [re.search(GROUP_PATTERN, name)[1] for name in names]
    both = {group: name for group, name in zip(groups, found, strict=True)}
    assert len(set(found)) == len(set(groups)) == len({name.casefold() for name in found})
    assert both["train/good/000.png"] == "train-good-000"
    assert len(set(names)) == len(names)  # two pictures of the group x have the same stem
    twins = [re.search(GROUP_PATTERN, "shift-" + name)[1] for name in names]
    assert not {name.casefold() for name in twins} & {name.casefold() for name in found}
    for letter in ("a", "가"):  # whose names stay within what file systems take
        stems = [letter * (246 // len(letter.encode())) + end for end in ("1", "2")]
        names = synthetic.planted_names([f"images/train/defective/{stem}.png" for stem in stems], stems)
        assert len(set(names)) == len({re.search(GROUP_PATTERN, name)[1] for name in names}) == 2
        assert max(len(f"shift-{name}.png".encode()) for name in names) <= 255


def test_magnetic_tiles_stay_grey_and_keep_their_tile_and_the_twins_are_groups_of_their_own(tmp_path):
    root = tmp_path / "in"
    for number in range(30):
        stem = f"exp{1 + number % 3}_num_{1000 * (number // 3) + number % 3}"
        write_picture(root / f"MT_Free/Imgs/{stem}.jpg", size=SIZE, value=90 + number)
        other = f"exp{1 + number % 3}_num_{100000 + 1000 * (number // 3) + number % 3}"
        write_picture(root / f"MT_Crack/Imgs/{other}.jpg", size=SIZE, value=120)
        write_mask(root / f"MT_Crack/Imgs/{other}.png", size=SIZE, box=MIDDLE)
    samples = readers.split_samples(read(root, dataset_type="magnetic_tile"), val_ratio=0.2, test_ratio=0.3, seed=0)
    assert samples["group"].nunique() == 20
    out = plant(samples, tmp_path / "out")
    table = read(out, group_pattern=GROUP_PATTERN)
    assert set(table.loc[table.split != "test_shift", "group"]) == set(samples["group"])
    tests, twins = (set(table.loc[table.split == split, "group"]) for split in ("test", "test_shift"))
    assert twins == {f"shift-{group}" for group in tests}
    record = yaml.safe_load((out / "planted.yaml").read_text())
    assert record["read_with"] == {"dataset_type": "generic", "val_ratio": 0.0, "group_pattern": GROUP_PATTERN}
    for image in table["image"]:
        assert cv2.imdecode(np.fromfile(image, np.uint8), cv2.IMREAD_UNCHANGED).ndim == 2  # one channel
    assert Path(table["image"].iloc[0]).suffix == ".png"


def test_pictures_without_a_free_corner_or_without_a_mask_carry_no_mark_and_are_named(tmp_path, caplog):
    root = generic(tmp_path / "in", per_class=5)
    write_mask(root / "masks/test/defective/dent/0.png", size=SIZE, box=(slice(0, 40), slice(0, 60)))
    write_mask(root / "masks/test/defective/dent/1.png", size=SIZE, box=(slice(0, 0), slice(0, 0)))
    (root / "masks/train/defective/dent/2.png").unlink()
    out = plant(read(root), tmp_path / "out", correlation=0.8)
    assert yaml.safe_load((out / "planted.yaml").read_text())["carry_none"] == {
        synthetic.NO_PLACE: ["test/defective/dent/0.png"],
        synthetic.NO_MASK: ["test/defective/dent/1.png", "train/defective/dent/2.png"],
    }
    assert f"1 pictures carry no cue ({synthetic.NO_PLACE}): test/defective/dent/0.png" in caplog.text
    counts = planted_counts(out)["with the cue"]
    # four of five were wanted: in test only three can, in train four of four can
    assert counts["test, defective"] == 3 and counts["train, defective"] == 4
    # and the two that cannot carry none in test_shift either
    assert counts["test_shift, defective"] == 0 and counts["test_shift, normal"] == 4


def test_a_mask_of_another_size_is_fitted_and_one_of_another_aspect_ratio_is_an_error(tmp_path):
    root = generic(tmp_path / "in", per_class=3)
    write_mask(root / "masks/train/defective/dent/0.png", size=(20, 30), box=(slice(0, 20), slice(0, 30)))
    out = plant(read(root), tmp_path / "out")
    assert synthetic.NO_PLACE in yaml.safe_load((out / "planted.yaml").read_text())["carry_none"]
    write_mask(root / "masks/train/defective/dent/0.png", size=(20, 20))
    with pytest.raises(DataError, match=r"mask is 20x20 \(height x width\), its image .* 40x60; expected the same"):
        plant(read(root), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_second_call_does_nothing_an_equal_one_the_same_and_one_with_other_parameters_is_an_error(tmp_path):
    samples = read(generic(tmp_path / "in", per_class=3))
    out = plant(samples, tmp_path / "out")
    before = [(path, path.stat().st_mtime_ns) for path in sorted(out.rglob("*"))]
    plant(samples, out)
    assert [(path, path.stat().st_mtime_ns) for path in sorted(out.rglob("*"))] == before
    outs = [out, *(plant(samples, tmp_path / f"seed {seed}", seed=seed) for seed in (0, 1))]
    first, same, other = ([path.read_bytes() for path in sorted(each.rglob("*.png"))] for each in outs)
    assert first == same != other
    with pytest.raises(DataError, match=r"cue is mark there and border here; correlation is 0.8 there and 0.9 here"):
        plant(samples, out, cue="border", correlation=0.9)
    write_picture(tmp_path / "in/images/train/normal/0.png", size=SIZE, seed=5)
    with pytest.raises(DataError, match="source_digest is"):
        plant(samples, out)


def test_what_cannot_be_planted_is_an_error_that_says_why(tmp_path):
    samples = read(generic(tmp_path / "in", per_class=2))
    with pytest.raises(DataError, match=r"'texture' cannot be planted .*surface is what it shows.*mark, lighting, bo"):
        plant(samples, tmp_path / "out", cue="texture")
    with pytest.raises(DataError, match=r"correlation must lie in \[0, 1\], got 1.5"):
        plant(samples, tmp_path / "out", correlation=1.5)
    write_generic(tmp_path / "shift", splits=("train", "val", "test", "test_shift"))
    with pytest.raises(DataError, match="the source has a test_shift of its own"):
        plant(read(tmp_path / "shift"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unreadable_pictures_are_all_named_or_left_out(tmp_path, caplog):
    root = generic(tmp_path / "in", per_class=3)
    for name in ("0", "1"):
        truncate_file(root / f"images/train/normal/{name}.png")
    with pytest.raises(DataError, match=r"(?s)normal/0\.png.*skip_unreadable: true.*normal/1\.png"):
        plant(read(root), tmp_path / "out")
    out = plant(read(root), tmp_path / "out", skip_unreadable=True)
    assert planted_counts(out).loc["train, normal", "pictures"] == 1
    assert caplog.text.count("left out: ") == 2


def test_the_command_plants_and_says_how_to_read_it(tmp_path):
    generic(tmp_path / "in")
    words = ["data", "plant", str(tmp_path / "in"), str(tmp_path / "out"), "--cue", "border", "--correlation", "0.9"]
    result = CliRunner().invoke(main, [*words, "--dataset-type", "generic"])
    assert result.exit_code == 0, result.output
    assert "border planted" in result.output and "written" in result.output
    assert re.search(r"train, defective\D+10\D+9\D", result.output)
    assert f'-p dataset_type "generic" -p val_ratio 0.0 -p group_pattern "{GROUP_PATTERN}"' in result.output
    assert "was there already" in CliRunner().invoke(main, [*words, "--dataset-type", "generic"]).output
    record = yaml.safe_load((tmp_path / "out" / "planted.yaml").read_text())
    assert (record["cue"], record["correlation"], record["seed"]) == ("border", 0.9, 0)
    words = ["data", "plant", str(tmp_path / "in"), str(tmp_path / "x"), "-p", "dataset_type", "synthetic"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1 and "takes photographs" in result.output and not (tmp_path / "x").exists()


def test_the_parameter_file_is_that_of_the_tiles_but_for_the_data():
    tiles, marked = (Settings.from_yaml(f"params/{name}.yaml") for name in ("magnetic_tile", "magnetic_tile_planted"))
    differing = {name for name, value in tiles.model_dump().items() if value != getattr(marked, name)}
    assert differing == {"experiment", "data_root", "dataset_type", "group_pattern", "val_ratio"}
    assert marked.group_pattern == GROUP_PATTERN
