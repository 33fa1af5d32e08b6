from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from drawn_data import write_generic, write_mask, write_picture

from gainmtl_lib.readers import COLUMNS, DataError, data_digest, read_samples, scan_samples


def read(root: Path, dataset_type: str = "generic", **options):
    return read_samples(root, dataset_type=dataset_type, **options)


def by_name(samples):
    return {Path(row["image"]).name: row for row in samples.to_dict("records")}


@pytest.mark.parametrize("split_masks", [True, False])
def test_generic_reads_both_mask_folders(tmp_path, split_masks):
    samples = read(write_generic(tmp_path, split_masks=split_masks))
    assert tuple(samples.columns) == COLUMNS
    assert samples.groupby(["split", "label"]).size().tolist() == [3] * 6
    assert all(
        (Path(row["mask"]).stem == Path(row["image"]).stem) for row in samples[samples.label == 1].to_dict("records")
    )
    assert samples.loc[samples.label == 0, "mask"].tolist() == [None] * 9
    assert set(samples.loc[samples.label == 1, "defect_type"]) == {"defective"}
    assert samples["group"].is_unique


def test_masks_match_on_the_stem_also_with_suffix_and_another_format(tmp_path):
    write_generic(tmp_path, splits=("train",))
    write_picture(tmp_path / "images/train/defective/a.jpg")
    write_mask(tmp_path / "masks/train/defective/a.png")
    write_picture(tmp_path / "images/train/defective/b.png")
    write_mask(tmp_path / "masks/train/defective/b_mask.png")
    write_picture(tmp_path / "images/train/defective/c.png")
    rows = by_name(read(tmp_path))
    assert rows["a.jpg"]["mask"].endswith("a.png")
    assert rows["b.png"]["mask"].endswith("b_mask.png")
    assert rows["c.png"]["mask"] is None


def test_subfolders_of_defective_are_defect_types(tmp_path):
    write_generic(tmp_path, splits=("train",))
    write_picture(tmp_path / "images/train/defective/crack/x.png")
    write_mask(tmp_path / "masks/train/defective/crack/x.png")
    row = by_name(read(tmp_path))["x.png"]
    assert row["defect_type"] == "crack"
    assert row["mask"].endswith("crack/x.png")


def test_test_shift_is_a_split_and_strange_folders_are_reported(tmp_path, caplog):
    write_generic(tmp_path, splits=("train", "test_shift"))
    write_picture(tmp_path / "images/validation/normal/a.png")
    assert set(read(tmp_path)["split"]) == {"train", "test_shift"}
    assert "folder is not read; expected one of train, val, test, test_shift" in caplog.text


def test_hidden_and_foreign_files_are_no_images(generic):
    (generic / "images/train/normal/.hidden.png").write_bytes(b"")
    (generic / "images/train/normal/notes.txt").write_text("no picture")
    assert len(read(generic)) == 18


def test_missing_root(tmp_path):
    with pytest.raises(DataError, match="nowhere: data_root does not exist; expected the dataset's folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: data_root is a file"):
        read(tmp_path / "file")


@pytest.mark.parametrize(
    ("dataset_type", "expected"),
    [
        ("generic", r"no images; expected images/{train,val,test,test_shift}/{normal,defective}, found junk"),
        ("mvtec", "no images; expected train/good, test/<defect> and ground_truth/<defect>; found junk"),
        ("magnetic_tile", r"no images; expected MT_<class>/Imgs/exp<k>_num_<n>.jpg, found junk"),
    ],
)
def test_no_images(tmp_path, dataset_type, expected):
    (tmp_path / "junk").mkdir()
    with pytest.raises(DataError, match=expected):
        read(tmp_path, dataset_type)


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"no images; .* the folder is empty"):
        read(tmp_path)


def test_single_class(tmp_path):
    write_picture(tmp_path / "images/train/normal/a.png")
    with pytest.raises(DataError, match="all 1 images are normal; expected normal and defective ones"):
        read(tmp_path)


def test_unknown_dataset_type(tmp_path):
    with pytest.raises(DataError, match=r"dataset_type must be one of generic, mvtec, .*, got 'coco'"):
        read(tmp_path, "coco")


def test_stem_clash_of_two_files_names_both(generic):
    write_picture(generic / "images/train/defective/train_d0.jpg")
    with pytest.raises(DataError, match=r"train_d0.png: has the same stem as .*train_d0.jpg"):
        read(generic)


def test_stem_clash_between_splits_names_both_and_the_way_out(tmp_path):
    write_generic(tmp_path, split_masks=False)
    write_picture(tmp_path / "images/test/defective/train_d0.png")
    with pytest.raises(
        DataError, match=r"test/defective/train_d0.png: has the same stem as .*train/defective"
    ) as caught:
        read(tmp_path)
    assert "use masks/<split>/defective/" in str(caught.value)


def test_the_same_stem_in_two_splits_is_fine_with_masks_by_split(generic):
    write_picture(generic / "images/test/defective/train_d0.png")
    write_mask(generic / "masks/test/defective/train_d0.png")
    assert len(read(generic)) == 19


def test_two_masks_of_one_image(generic):
    write_mask(generic / "masks/train/defective/train_d0_mask.png")
    with pytest.raises(DataError, match=r"train_d0.png: is a second mask of .* besides .*train_d0_mask.png"):
        read(generic)


def test_mask_without_image_is_reported(generic, caplog):
    write_mask(generic / "masks/train/defective/stray.png")
    read(generic)
    assert "stray.png: mask without an image; it is not used" in caplog.text


def test_group_pattern_takes_the_group_or_the_whole_match(tmp_path):
    for name in ("p1_a", "p1_b", "p2_a"):
        write_picture(tmp_path / f"images/train/normal/{name}.png")
        write_picture(tmp_path / f"images/train/defective/{name}.png")
    assert sorted(set(read(tmp_path, group_pattern=r"p(\d)")["group"])) == ["1", "2"]
    assert sorted(set(read(tmp_path, group_pattern=r"^p\d")["group"])) == ["p1", "p2"]


def test_group_pattern_must_match_every_name(generic):
    with pytest.raises(DataError, match=r"train_n0.png: group_pattern 'd\(\\\\d\)' does not match the file name"):
        read(generic, group_pattern=r"d(\d)")


def test_a_group_in_two_given_splits_names_files_of_both(generic):
    with pytest.raises(DataError, match=r"n0: group lies in 3 splits: .*test_n0.png \(test\) and .*train_n0.png"):
        read(generic, group_pattern=r"[nd]\d")


def test_scan_reports_all_problems_and_does_not_raise(generic):
    write_picture(generic / "images/train/defective/train_d0.jpg")
    samples, findings = scan_samples(generic, dataset_type="generic", group_pattern=r"[nd]\d")
    assert len(samples) == 18
    assert sum("same stem" in finding.message for finding in findings) == 1
    assert sum("group lies in" in finding.message for finding in findings) == 6


def make_mvtec(root: Path) -> Path:
    for number in range(4):
        write_picture(root / f"train/good/{number:03d}.png")
        write_picture(root / f"test/good/{number:03d}.png")
        write_picture(root / f"test/hole/{number:03d}.png")
        write_mask(root / f"ground_truth/hole/{number:03d}_mask.png")
        write_picture(root / f"test/crack/{number:03d}.png")
    return root


def test_mvtec_leaves_the_split_of_defects_open(tmp_path):
    samples = read(make_mvtec(tmp_path), "mvtec")
    assert samples.groupby("defect_type").size().to_dict() == {"crack": 4, "hole": 4, "normal": 8}
    assert samples.loc[samples.label == 1, "split"].tolist() == [None] * 8
    assert samples.loc[samples.label == 0, "split"].value_counts().to_dict() == {"test": 4, "train": 4}
    assert samples.loc[samples.defect_type == "hole", "mask"].notna().all()
    assert samples.loc[samples.defect_type == "crack", "mask"].isna().all()


def test_mvtec_root_of_all_categories_names_them(tmp_path):
    make_mvtec(tmp_path / "bottle")
    with pytest.raises(DataError, match="data_root is one category's folder, choose among bottle"):
        read(tmp_path, "mvtec")


def test_magnetic_tiles_are_grouped_by_series(tmp_path):
    def shoot(folder: str, *names: str) -> None:
        for name in names:
            write_picture(tmp_path / folder / "Imgs" / f"{name}.jpg")
            write_mask(tmp_path / folder / "Imgs" / f"{name}.png")

    shoot("MT_Free", "exp1_num_1000", "exp2_num_1010")  # first tile, two exposures
    shoot("MT_Crack", "exp3_num_1020")  # of the same tile: k goes on rising
    shoot("MT_Crack", "exp1_num_1090")  # k starts again, but within 150 steps: the same tile once more
    shoot("MT_Free", "exp1_num_1300")  # k does not rise, 210 steps on: second tile
    shoot("MT_Free", "exp2_num_1800")  # k rises, but after more than 400 steps: third tile
    samples = read(tmp_path, "magnetic_tile")
    assert samples.groupby("group").size().tolist() == [4, 1, 1]
    assert samples.groupby("defect_type").size().to_dict() == {"crack": 2, "normal": 4}
    assert samples["mask"].notna().sum() == 2
    assert samples["split"].isna().all()


def test_magnetic_tile_name_that_tells_no_tile(tmp_path):
    write_picture(tmp_path / "MT_Free/Imgs/photo.jpg")
    with pytest.raises(DataError, match=r"photo.jpg: the name tells no tile; expected exp<k>_num_<n>.jpg"):
        read(tmp_path, "magnetic_tile")


def test_digest_ignores_place_and_order_but_no_content(generic, tmp_path):
    samples = read(generic)
    digest = data_digest(samples)
    moved = shutil.copytree(generic, tmp_path / "elsewhere" / "copy")
    assert data_digest(read(moved)) == digest
    assert data_digest(samples.iloc[::-1]) == digest
    assert data_digest(samples.assign(split="train")) != digest
    assert data_digest(samples.assign(label=1 - samples.label)) != digest
    write_mask(generic / "masks/train/defective/train_d0.png", box=(slice(0, 1), slice(0, 1)))
    assert data_digest(samples) != digest


def test_digest_of_a_missing_file_names_it(generic):
    samples = read(generic)
    (generic / "images/train/normal/train_n0.png").unlink()
    with pytest.raises(DataError, match=r"train_n0.png: cannot be read: No such file"):
        data_digest(samples)
