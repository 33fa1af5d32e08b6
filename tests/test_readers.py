"""A data set on disk: the layouts, what is wrong with them, the digest, the splits, and decoded files."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from drawn_data import write_generic, write_mask, write_picture

from gainmtl_lib.readers import (
    COLUMNS,
    DataError,
    UnreadableError,
    _name_in_store,
    data_digest,
    masks_of,
    read_image,
    read_mask,
    read_samples,
    split_samples,
    to_8_bit,
)


def read(root: Path, dataset_type: str = "generic", **options):
    return read_samples(root, dataset_type=dataset_type, **options)


def by_name(samples):
    return {Path(row["image"]).name: row for row in samples.to_dict("records")}


# layouts


@pytest.mark.parametrize("split_masks", [True, False])
def test_generic_reads_both_mask_folders(tmp_path, split_masks):
    samples = read(write_generic(tmp_path, split_masks=split_masks))
    assert tuple(samples.columns) == COLUMNS
    assert samples.groupby(["split", "label"]).size().tolist() == [3] * 6
    defective = samples[samples.label == 1]
    assert all(Path(row.mask).stem == Path(row.image).stem for row in defective.itertuples())
    assert samples.loc[samples.label == 0, "mask"].tolist() == [None] * 9
    assert set(defective["defect_type"]) == {"defective"} and samples["group"].is_unique


def test_masks_match_on_the_stem_also_with_suffix_and_another_format_and_subfolders_are_types(tmp_path):
    write_generic(tmp_path, splits=("train",))
    images, masks = tmp_path / "images/train/defective", tmp_path / "masks/train/defective"
    for image, mask in (("a.jpg", "a.png"), ("b.png", "b_mask.png"), ("crack/x.png", "crack/x.png")):
        write_picture(images / image)
        write_mask(masks / mask)
    write_picture(images / "c.png")
    rows = by_name(read(tmp_path))
    assert rows["a.jpg"]["mask"].endswith("a.png") and rows["b.png"]["mask"].endswith("b_mask.png")
    assert rows["c.png"]["mask"] is None and rows["c.png"]["defect_type"] == "defective"
    assert rows["x.png"]["mask"].endswith("crack/x.png") and rows["x.png"]["defect_type"] == "crack"
    found = masks_of([images / "a.jpg", images / "c.png", Path("/elsewhere.png")])
    assert found == {images / "a.jpg": masks / "a.png"}


def test_what_is_not_read_is_reported(tmp_path, caplog):
    write_generic(tmp_path, splits=("train", "test_shift"))
    write_picture(tmp_path / "images/validation/normal/a.png")
    write_mask(tmp_path / "masks/train/defective/stray.png")
    (tmp_path / "images/train/normal/.hidden.png").write_bytes(b"")
    (tmp_path / "images/train/normal/notes.txt").write_text("no picture")
    samples = read(tmp_path)
    assert set(samples["split"]) == {"train", "test_shift"} and len(samples) == 12
    assert "folder is not read; expected one of train, val, test, test_shift" in caplog.text
    assert "stray.png: mask without an image; it is not used" in caplog.text


@pytest.mark.parametrize(
    ("dataset_type", "expected"),
    [
        ("generic", "no images; expected images/{train,val,test,test_shift}/{normal,defective}; found junk"),
        ("mvtec", "no images; expected train/good, test/<defect> and ground_truth/<defect>; found junk"),
        ("magnetic_tile", "no images; expected MT_<class>/Imgs/exp<k>_num_<n>.jpg; found junk"),
    ],
)
def test_folders_that_hold_no_data(tmp_path, dataset_type, expected):
    root = tmp_path / "data"
    with pytest.raises(DataError, match="data: data_root does not exist; expected the dataset's folder"):
        read(root)
    (root / "junk").mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        read(root, dataset_type)
    assert expected in str(caught.value)
    (root / "junk").rmdir()
    with pytest.raises(DataError, match=r"no images; .* the folder is empty"):
        read(root)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: data_root is a file"):
        read(tmp_path / "file")


def test_stem_clashes_name_both_files_and_the_way_out(tmp_path):
    first = write_generic(tmp_path / "first")
    write_picture(first / "images/train/defective/train_d0.jpg")
    with pytest.raises(DataError, match=r"train_d0.png: has the same stem as .*train_d0.jpg"):
        read(first)
    second = write_generic(tmp_path / "second", split_masks=False)
    write_picture(second / "images/test/defective/train_d0.png")
    message = r"test/defective/train_d0.png: has the same stem as .*train/defective.* use masks/<split>/defective/"
    with pytest.raises(DataError, match=message):
        read(second)
    third = write_generic(tmp_path / "third")
    write_picture(third / "images/test/defective/train_d0.png")
    write_mask(third / "masks/test/defective/train_d0.png")
    assert len(read(third)) == 19
    write_mask(third / "masks/train/defective/train_d0_mask.png")
    with pytest.raises(DataError, match=r"train_d0.png: is a second mask of .* besides .*train_d0_mask.png"):
        read(third)


def test_group_pattern_takes_the_group_or_the_whole_match_and_names_what_does_not_fit(tmp_path, generic):
    for name in ("p1_a", "p1_b", "p2_a"):
        write_picture(tmp_path / f"one/images/train/normal/{name}.png")
    groups = {p: set(read(tmp_path / "one", group_pattern=p, both_classes=False)["group"]) for p in (r"p(\d)", r"^p\d")}
    assert list(groups.values()) == [{"1", "2"}, {"p1", "p2"}]
    with pytest.raises(DataError, match="all 3 images are normal; expected normal and defective ones"):
        read(tmp_path / "one")
    with pytest.raises(DataError, match=r"train_n0.png: group_pattern 'd\(\\\\d\)' does not match the file name"):
        read(generic, group_pattern=r"d(\d)")
    with pytest.raises(DataError, match=r"n0: group lies in 3 splits: .*test_n0.png \(test\) and .*train_n0.png"):
        read(generic, group_pattern=r"[nd]\d")
    write_picture(generic / "images/train/defective/train_d0.jpg")
    findings = []
    assert len(read(generic, group_pattern=r"[nd]\d", findings=findings)) == 18, "a scan does not raise"
    assert sum("same stem" in finding.message for finding in findings) == 1
    assert sum("group lies in" in finding.message for finding in findings) == 6


def test_mvtec_leaves_the_split_of_defects_open(tmp_path):
    root = tmp_path / "bottle"
    for name in ("train/good", "test/good", "test/hole", "test/crack"):
        write_picture(root / name / "000.png")
    write_mask(root / "ground_truth/hole/000_mask.png")
    rows = read(root, "mvtec").set_index("defect_type")
    assert rows.loc["normal", "split"].tolist() == ["test", "train"]
    assert rows.loc[["crack", "hole"], "split"].tolist() == [None, None]
    assert rows.loc["hole", "mask"].endswith("000_mask.png") and rows.loc["crack", "mask"] is None
    with pytest.raises(DataError, match="data_root is one category's folder, choose among bottle"):
        read(tmp_path, "mvtec")


def test_magnetic_tiles_are_grouped_by_series(tmp_path):
    shots = [
        ("MT_Free", "exp1_num_1000"),
        ("MT_Free", "exp2_num_1010"),  # first tile, two exposures
        ("MT_Crack", "exp3_num_1020"),  # of the same tile: k goes on rising
        ("MT_Crack", "exp1_num_1090"),  # k starts again, but within 150 steps: the same tile once more
        ("MT_Free", "exp1_num_1300"),  # k does not rise, 210 steps on: second tile
        ("MT_Free", "exp2_num_1800"),  # k rises, but after more than 400 steps: third tile
    ]
    for folder, name in shots:
        write_picture(tmp_path / folder / "Imgs" / f"{name}.jpg")
        write_mask(tmp_path / folder / "Imgs" / f"{name}.png")
    samples = read(tmp_path, "magnetic_tile")
    assert samples.groupby("group").size().tolist() == [4, 1, 1]
    assert samples.groupby("defect_type").size().to_dict() == {"crack": 2, "normal": 4}
    assert samples["mask"].notna().tolist() == (samples["label"] == 1).tolist() and samples["split"].isna().all()
    write_picture(tmp_path / "MT_Free/Imgs/photo.jpg")
    with pytest.raises(DataError, match=r"photo.jpg: the name tells no tile; expected exp<k>_num_<n>.jpg"):
        read(tmp_path, "magnetic_tile")


def test_digest_ignores_place_and_order_but_no_content(generic, tmp_path):
    samples = read(generic)
    digest = data_digest(samples)
    moved = shutil.copytree(generic, tmp_path / "elsewhere" / "copy")
    assert data_digest(read(moved)) == data_digest(samples.iloc[::-1]) == digest
    assert data_digest(samples.assign(split="train")) != digest
    assert data_digest(samples.assign(label=1 - samples.label)) != digest
    write_mask(generic / "masks/train/defective/train_d0.png", box=(slice(0, 1), slice(0, 1)))
    assert data_digest(samples) != digest
    (generic / "images/train/normal/train_n0.png").unlink()
    with pytest.raises(DataError, match=r"train_n0.png: cannot be read: No such file"):
        data_digest(samples)


def test_the_name_of_a_stored_mask():
    assert _name_in_store("/o/data/box_masks/tiles-12ab/images/a.png") == "images/a.png"
    assert _name_in_store("/box_masks/o/box_masks/tiles-12ab/a.png") == "a.png"
    assert _name_in_store("/o/data/box_masks/a.png") == _name_in_store("/o/data/masks/a.png") == ""


# splits


def table(rows: list[tuple[str, str, str | None]]) -> pd.DataFrame:
    """Samples from (defect type, group, split)."""
    lines = [
        (f"/data/{number:05d}.png", int(kind != "normal"), None, kind, group, split)
        for number, (kind, group, split) in enumerate(rows)
    ]
    return pd.DataFrame(lines, columns=list(COLUMNS), dtype=object).astype({"label": "int64"})


def singles(split: str | None = None, **counts: int) -> list[tuple[str, str, str | None]]:
    return [(kind, f"{kind}{split}{k}", split) for kind, count in counts.items() for k in range(count)]


def split(rows, *, val_ratio: float = 0.2, test_ratio: float = 0.2, seed: int = 0) -> pd.DataFrame:
    return split_samples(table(rows), val_ratio=val_ratio, test_ratio=test_ratio, seed=seed)


def sizes(samples: pd.DataFrame, kind: str) -> dict[str, int]:
    return samples[samples.defect_type == kind]["split"].value_counts().to_dict()


def groups_are_whole(samples: pd.DataFrame) -> bool:
    return not samples.drop_duplicates(["group", "split"])["group"].duplicated().any()


def test_strata_keep_their_share_and_the_same_seed_gives_the_same_split():
    result = split(singles(normal=100, crack=50, hole=25))
    assert sizes(result, "normal") == {"train": 64, "val": 16, "test": 20}
    assert sizes(result, "crack") == {"train": 32, "val": 8, "test": 10}
    assert sizes(result, "hole") == {"train": 16, "val": 4, "test": 5}
    rows = singles(normal=60, crack=30)
    first, again, other = (split(rows, seed=seed)["split"].tolist() for seed in (0, 0, 1))
    assert first == again != other
    # One stored split, so that no change of the search moves runs of before.
    assert "".join(name[1] for name in first[60:80]) == "rarererrrrererrarrre"


def test_many_rare_types_do_not_all_round_one_way():
    result = split(singles(normal=50, **{f"type{k}": 2 for k in range(10)}))
    assert result[result.label == 1]["split"].value_counts().to_dict() == {"train": 13, "val": 3, "test": 4}


def test_groups_stay_whole_and_shares_stay_close():
    """The shape of the magnetic tiles: series of six, some of which span two classes."""
    rng = np.random.default_rng(0)
    rows: list[tuple[str, str, str | None]] = []
    for tile in range(255):
        kind = str(rng.choice(["normal", "blowhole", "break", "crack", "uneven"], p=[0.7, 0.1, 0.07, 0.05, 0.08]))
        shots = 6 if tile < 197 else int(rng.integers(1, 6))
        rows += [("normal" if tile < 20 and shot < 3 else kind, f"tile{tile}", None) for shot in range(shots)]
    for seed in range(3):
        result = split(rows, seed=seed)
        assert groups_are_whole(result)
        for kind, members in result.groupby("defect_type"):
            shares = members["split"].value_counts(normalize=True)
            tolerance = max(0.02, 2 / len(members))
            assert shares["test"] == pytest.approx(0.2, abs=tolerance), kind
            assert shares["val"] == pytest.approx(0.16, abs=tolerance), kind


def test_what_folders_say_stays_and_the_rest_is_drawn():
    given = singles("train", normal=20, crack=10) + singles("test", normal=3, crack=3) + [("crack", "s", "test_shift")]
    result = split(given)
    assert result["split"].value_counts().to_dict() == {"train": 24, "val": 6, "test": 6, "test_shift": 1}
    assert result["split"].iloc[30:].tolist() == ["test"] * 6 + ["test_shift"]
    no_test = split(singles("train", normal=50, crack=50))
    assert no_test["split"].value_counts().to_dict() == {"train": 64, "val": 16, "test": 20}
    as_mvtec = split(singles("train", normal=40) + singles("test", normal=10) + singles(hole=25))
    assert sizes(as_mvtec, "normal") == {"train": 32, "val": 8, "test": 10}
    assert sizes(as_mvtec, "hole") == {"train": 16, "val": 4, "test": 5}
    assert split(GIVEN, val_ratio=0)["split"].tolist() == [name for _, _, name in GIVEN]


def test_open_rows_follow_their_group():
    given = singles("train", normal=20) + singles("test", normal=5)
    given += [
        ("hole", f"normal{where}{k}", None) for where, count in (("train", 10), ("test", 5)) for k in range(count)
    ]
    result = split(given)
    assert groups_are_whole(result) and sizes(result, "hole")["test"] == 5


GIVEN = [row for name in ("train", "val", "test") for row in singles(name, normal=1, crack=1)]
CROSSING = [("normal", "a", "train"), ("crack", "a", "test")]


@pytest.mark.parametrize(
    ("rows", "val_ratio", "message"),
    [
        (
            singles(normal=20, crack=20),
            0.0,
            r"val_ratio is 0, but the data has no validation folder \(images/val\); set",
        ),
        (GIVEN, 0.2, r"val_ratio is 0.2, but the data has a validation folder of its own \(2 images"),
        (CROSSING, 0.2, r"a: group lies in 2 splits: /data/00000.png \(train\) and /data/00001"),
        (singles(normal=100, crack=1), 0.2, "split 'val' has no defective image among 16; expected both classes"),
    ],
)
def test_splits_that_cannot_be(rows, val_ratio, message):
    with pytest.raises(DataError, match=message):
        split(rows, val_ratio=val_ratio)


# decoded files


def write(path, pixels):
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
    return path


def test_images_of_other_kinds_become_8_bit_rgb(tmp_path):
    colour = np.zeros((4, 5, 3), np.uint8)
    colour[...] = [10, 20, 30]  # OpenCV writes blue first
    assert read_image(write(tmp_path / "colour.png", colour))[0, 0].tolist() == [30, 20, 10]
    rgba = np.dstack([colour, np.full((4, 5), 7, np.uint8)])
    assert read_image(write(tmp_path / "rgba.png", rgba))[0, 0].tolist() == [30, 20, 10]
    assert read_image(write(tmp_path / "grey.png", colour[..., 0]))[0, 0].tolist() == [10, 10, 10]
    deep = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert read_image(write(tmp_path / "deep.png", deep))[0, :, 0].tolist() == [0, 100, 255]
    assert read_image(write(tmp_path / "deep.tif", np.dstack([deep] * 3)))[0, :, 2].tolist() == [0, 100, 255]


def test_sixteen_bits_are_scaled_alike_whatever_the_image_holds():
    every = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(to_8_bit(every).ravel(), np.rint(every / 257))
    for peak, brightness in ((255, 1), (4095, 16), (4096, 16)):
        assert to_8_bit(np.array([0, peak], np.uint16)).ravel().tolist() == [0, brightness]
    with pytest.raises(UnreadableError, match=r"x.tif: pixels are float32; expected 8- or 16-bit integers"):
        to_8_bit(np.zeros((2, 2), np.float32), "x.tif")


def test_mask_values_above_127_are_defect(tmp_path):
    for values in ([0, 127, 128, 255], [0, 127 * 257, 128 * 257, 65535]):
        for kind in (np.uint8, np.uint16) if max(values) < 256 else (np.uint16,):
            mask = read_mask(write(tmp_path / "mask.png", np.array([values], kind)))
            assert mask.tolist() == [[False, False, True, True]]


def test_files_that_cannot_be_decoded_are_named(tmp_path):
    for suffix in (".png", ".jpg", ".bmp"):
        path = write_picture(tmp_path / f"cut{suffix}", size=(50, 60))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UnreadableError, match=f"cut{suffix}: image is truncated or not an image; replace the file"):
            read_image(path)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(UnreadableError, match=r"empty.png: image is empty; replace the file$"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(UnreadableError, match=r"gone.png: mask cannot be read: No such file"):
        read_mask(tmp_path / "gone.png")
