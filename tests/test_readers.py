"""A data set on disk: the layouts, what is wrong with them, the digest, the splits, and decoded files."""

import json
import logging
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from drawn_data import write_ball_screw, write_generic, write_labelme, write_mask, write_picture

from gainmtl_lib import readers
from gainmtl_lib.annotations import read_mask
from gainmtl_lib.dataset import build_samples
from gainmtl_lib.findings import DataError, UnreadableError
from gainmtl_lib.layouts import masks_of
from gainmtl_lib.pictures import read_image, to_8_bit
from gainmtl_lib.readers import data_digest, read_samples
from gainmtl_lib.settings import Settings


def read(root: Path, dataset_type: str = "generic", **options):
    return read_samples(root, dataset_type=dataset_type, **options)


def refused(call, *arguments, **options) -> str:
    """The message of the error that a call raises."""
    with pytest.raises(DataError) as caught:
        call(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize("split_masks", [True, False])
def test_generic_reads_both_mask_folders(tmp_path, split_masks):
    samples = read(write_generic(tmp_path, split_masks=split_masks))
    assert tuple(samples.columns) == readers.COLUMNS
    assert samples.groupby(["split", "label"]).size().tolist() == [3] * 6
    defective = samples[samples.label == 1]
    assert all(Path(row.mask).stem == Path(row.image).stem for row in defective.itertuples())
    assert samples.loc[samples.label == 0, "mask"].tolist() == [None] * 9
    assert set(defective["defect_type"]) == {"defective"} and samples["group"].is_unique


def test_masks_match_on_the_stem_subfolders_are_types_and_what_is_not_read_is_reported(tmp_path, caplog):
    write_generic(tmp_path, splits=("train", "test_shift"))
    images, masks = tmp_path / "images/train/defective", tmp_path / "masks/train/defective"
    for image, mask in (("a.jpg", "a.png"), ("b.png", "b_mask.png"), ("crack/x.png", "crack/x.png")):
        write_picture(images / image)
        write_mask(masks / mask)
    write_picture(images / "c.png")
    write_picture(tmp_path / "images/validation/normal/a.png")
    write_mask(masks / "stray.png")
    (images / ".hidden.png").write_bytes(b"")
    (images / "notes.txt").write_text("no picture")
    samples = read(tmp_path)
    assert set(samples["split"]) == {"train", "test_shift"} and len(samples) == 16
    rows = {Path(row.image).name: (row.mask, row.defect_type) for row in samples.itertuples()}
    assert rows["a.jpg"] == (str(masks / "a.png"), "defective") and rows["c.png"] == (None, "defective")
    assert rows["b.png"][0] == str(masks / "b_mask.png") and rows["x.png"] == (str(masks / "crack/x.png"), "crack")
    assert "folder is not read; expected one of train, val, test, test_shift" in caplog.text
    assert "stray.png: mask without an image; it is not used" in caplog.text
    found = masks_of([images / "a.jpg", images / "c.png", Path("/elsewhere.png")])
    assert found == {images / "a.jpg": masks / "a.png"}


def test_folders_that_hold_no_data(tmp_path):
    root, file = tmp_path / "data", tmp_path / "file"
    assert refused(read, root) == f"{root}: data_root does not exist; expected the dataset's folder"
    root.mkdir()
    assert refused(read, root).endswith("the folder is empty")
    (root / "junk").mkdir()
    expected = "no images; expected images/{train,val,test,test_shift}/{normal,defective}; found junk"
    assert refused(read, root) == f"{root}: {expected}"
    assert "expected train/good, test/<defect> and ground_truth/<defect>; found" in refused(read, root, "mvtec")
    file.write_text("")
    assert refused(read, file) == f"{file}: data_root is a file; expected the dataset's folder"


def test_stem_clashes_name_both_files_and_the_way_out(tmp_path):
    first = write_generic(tmp_path / "first")
    other = write_picture(first / "images/train/defective/train_d0.jpg")
    assert f"train_d0.png: has the same stem as {other}" in refused(read, first)
    second = write_generic(tmp_path / "second", split_masks=False)
    twin = write_picture(second / "images/test/defective/train_d0.png")
    said = refused(read, second)
    assert f"{twin}: has the same stem as {second}/images/train/" in said and "use masks/<split>/defective/" in said
    third = write_generic(tmp_path / "third")
    write_picture(third / "images/test/defective/train_d0.png")
    write_mask(third / "masks/test/defective/train_d0.png")
    assert len(read(third)) == 19
    mask = write_mask(third / "masks/train/defective/train_d0_mask.png")
    said = refused(read, third)
    assert said.startswith(f"{mask}: is a second mask of ") and said.endswith("masks/train/defective/train_d0.png")


def test_group_pattern_takes_the_group_or_the_whole_match_and_names_what_does_not_fit(tmp_path, generic):
    for name in ("p1_a", "p1_b", "p2_a"):
        write_picture(tmp_path / f"one/images/train/normal/{name}.png")
    groups = {p: set(read(tmp_path / "one", group_pattern=p, both_classes=False)["group"]) for p in (r"p(\d)", r"^p\d")}
    assert list(groups.values()) == [{"1", "2"}, {"p1", "p2"}]
    assert refused(read, tmp_path / "one").endswith("all 3 images are normal; expected normal and defective ones")
    misfit = "train_n0.png: group_pattern 'd([0-9])' does not match the file name"
    assert misfit in refused(read, generic, group_pattern="d([0-9])")
    crossing = r"n0: group lies in 3 splits: .*test_n0.png \(test\) and .*train_n0"
    assert re.search(crossing, refused(read, generic, group_pattern=r"[nd]\d"))


def test_mvtec_leaves_the_split_of_defects_open(tmp_path):
    root = tmp_path / "bottle"
    for name in ("train/good", "test/good", "test/hole", "test/crack"):
        write_picture(root / name / "000.png")
    write_mask(root / "ground_truth/hole/000_mask.png")
    rows = read(root, "mvtec").set_index("defect_type")
    assert rows.loc["normal", "split"].tolist() == ["test", "train"]
    assert rows.loc[["crack", "hole"], "split"].tolist() == [None, None]
    assert rows.loc["hole", "mask"].endswith("000_mask.png") and rows.loc["crack", "mask"] is None
    assert refused(read, tmp_path, "mvtec").endswith("data_root is one category's folder, choose among bottle")


def test_magnetic_tiles_are_grouped_by_series(tmp_path):
    for name in (
        "Free/Imgs/exp1_num_1000",
        "Free/Imgs/exp2_num_1010",  # first tile, two exposures
        "Crack/Imgs/exp3_num_1020",  # of the same tile: k goes on rising
        "Crack/Imgs/exp1_num_1090",  # k starts again, but within 150 steps: the same tile once more
        "Free/Imgs/exp1_num_1300",  # k does not rise, 210 steps on: second tile
        "Free/Imgs/exp2_num_1800",  # k rises, but after more than 400 steps: third tile
    ):
        write_picture(tmp_path / f"MT_{name}.jpg")
        write_mask(tmp_path / f"MT_{name}.png")
    samples = read(tmp_path, "magnetic_tile")
    assert samples.groupby("group").size().tolist() == [4, 1, 1]
    assert samples.groupby("defect_type").size().to_dict() == {"crack": 2, "normal": 4}
    assert samples["mask"].notna().tolist() == (samples["label"] == 1).tolist() and samples["split"].isna().all()
    write_picture(tmp_path / "MT_Free/Imgs/photo.jpg")
    said = refused(read, tmp_path, "magnetic_tile")
    assert said.endswith("photo.jpg: the name tells no tile; expected exp<k>_num_<n>.jpg")


SQUARE = [(2, 1), (5, 1), (5, 4), (2, 4)]


def test_ball_screws_are_grouped_by_position_and_defective_where_labelme_has_shapes(tmp_path, caplog):
    images, labels = tmp_path / "images", tmp_path / "labels"
    stems = [
        "01_200413093519_277500_315_crop_1",
        "01_201016072400_277500_315_crop_2",
        "01_200902000000_560000_000_crop_2",
    ]
    for stem in (*stems, "KGT1-S-060-A02_crop_0"):
        write_picture(images / f"{stem}.jpg")
    mask = write_labelme(labels / f"{stems[1]}.json", SQUARE)
    for stem, polygons in ((stems[2], []), ("KGT1-S-060-A02_crop_0", [SQUARE]), ("gone", [SQUARE])):
        write_labelme(labels / f"{stem}.json", *polygons)
    with caplog.at_level(logging.INFO):
        samples = read(tmp_path, "ball_screw")
    rows = samples[["label", "mask", "defect_type", "group"]].to_numpy().tolist()
    first, last = [0, None, "normal"], [1, str(mask), "pitting"]
    assert rows == [[*first, "277500_315"], [*first, "560000_000"], [*last, "277500_315"]]
    assert samples["split"].isna().all() and Path(samples["image"][2]).stem == stems[1]
    left_out = [line for line in caplog.records if "1 pictures named KGT… are left out: another drive" in line.message]
    assert [line.levelname for line in left_out] == ["INFO"]
    assert f"{labels / 'gone.json'}: mask without an image; it is not used" in caplog.text
    pictures = [images / f"{stem}.jpg" for stem in stems]
    assert masks_of(pictures) == {pictures[1]: mask}
    # Neither the order of rows nor a label file without shapes counts, but a moved corner does.
    digest = data_digest(samples)
    (labels / f"{stems[2]}.json").unlink()
    assert data_digest(read(tmp_path, "ball_screw")) == digest
    write_labelme(mask, SQUARE[:3])
    assert data_digest(read(tmp_path, "ball_screw")) != digest


def test_ball_screws_whose_names_or_labels_tell_nothing(tmp_path):
    root = write_ball_screw(tmp_path, positions=2, moments=3)
    image, label = sorted((root / "images").iterdir())[-1], sorted((root / "labels").iterdir())[-1]
    assert label.stem == image.stem and label.stem.startswith("01_200403")
    photo, text = write_picture(root / "images/photo.jpg"), label.read_text()
    expected = "the name tells no position; expected 01_<yymmddHHMMSS>_<position>_crop_<k>.jpg"
    label.write_text("{")
    both = refused(read, root, "ball_screw")
    assert f"{photo}: {expected}" in both and f"{label}: not a JSON file: Expecting" in both
    assert both.count(str(label)) == 1
    photo.unlink()
    label.rename(root / "labels/other.json").write_text(text)
    said = f"{root}/labels: holds no label file of any of the 6 pictures; expected labels/<stem>.json, of labelme, for"
    assert said in refused(read, root, "ball_screw", both_classes=False)
    shutil.rmtree(root / "labels")
    assert said in refused(read, root, "ball_screw", both_classes=False)
    expected = "expected images/01_<yymmddHHMMSS>_<position>_crop_<k>.jpg and labels/<stem>.json; found nothing.txt"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/nothing.txt").write_text("")
    assert expected in refused(read, tmp_path / "other", "ball_screw")


@pytest.mark.parametrize("seed", range(3))
def test_ball_screws_are_split_by_position_with_both_classes_on_every_side(tmp_path, seed):
    root = write_ball_screw(tmp_path, positions=15, moments=6)
    shares = {"val_ratio": 0.2, "test_ratio": 0.2, "split_seed": seed}
    samples = build_samples(Settings(data_root=root, dataset_type="ball_screw", **shares))
    assert len(samples) == 90 and groups_are_whole(samples)
    assert samples.groupby("split")["group"].nunique().to_dict() == {"test": 3, "train": 10, "val": 2}
    assert samples.groupby("split").size().to_dict() == {"test": 18, "train": 60, "val": 12}
    assert (samples.groupby(["split", "label"]).size() >= 4).all() and samples.groupby("split")[
        "label"
    ].nunique().min() == 2


def test_digest_ignores_place_and_order_but_no_content(generic, tmp_path):
    samples = read(generic)
    digest = data_digest(samples)
    moved = shutil.copytree(generic, tmp_path / "elsewhere" / "copy")
    assert data_digest(read(moved)) == data_digest(samples.iloc[::-1]) == digest
    changed = [samples.assign(split="train"), samples.assign(label=1 - samples.label)]
    write_mask(generic / "masks/train/defective/train_d0.png", box=(slice(0, 1), slice(0, 1)))
    assert len({digest, *map(data_digest, [samples, *changed])}) == 4
    (generic / "images/train/normal/train_n0.png").unlink()
    assert "train_n0.png: cannot be read: No such file" in refused(data_digest, samples)


def singles(split: str | None = None, **counts: int) -> list[tuple]:
    return [(kind, f"{kind}{split}{k}", split) for kind, count in counts.items() for k in range(count)]


def split(rows: list[tuple], *, val_ratio: float = 0.2, seed: int = 0) -> pd.DataFrame:
    """Split rows of (defect type, group, split)."""
    lines = [(f"/data/{k:05d}.png", int(row[0] != "normal"), None, *row) for k, row in enumerate(rows)]
    table = pd.DataFrame(lines, columns=list(readers.COLUMNS), dtype=object).astype({"label": "int64"})
    return readers.split_samples(table, val_ratio=val_ratio, test_ratio=0.2, seed=seed)


def sizes(samples: pd.DataFrame, *kinds: str) -> list[dict[str, int]]:
    return [samples[samples.defect_type == kind]["split"].value_counts().to_dict() for kind in kinds]


def groups_are_whole(samples: pd.DataFrame) -> bool:
    return not samples.drop_duplicates(["group", "split"])["group"].duplicated().any()


def test_strata_keep_their_share_and_the_same_seed_gives_the_same_split():
    result = split(singles(normal=100, crack=50))
    assert sizes(result, "normal") == [{"train": 64, "val": 16, "test": 20}]
    assert sizes(result, "crack") == [{"train": 32, "val": 8, "test": 10}]
    rows = singles(normal=60, crack=30)
    first, again, other = (split(rows, seed=seed)["split"].tolist() for seed in (0, 0, 1))
    assert first == again != other
    # One stored split, so that no change of the search moves runs of before.
    assert "".join(name[1] for name in first[60:80]) == "rarererrrrererrarrre"
    rare = split(singles(normal=50, **{f"type{k}": 2 for k in range(10)}))  # which do not all round one way
    assert rare[rare.label == 1]["split"].value_counts().to_dict() == {"train": 13, "val": 3, "test": 4}


def test_groups_stay_whole_and_shares_stay_close():
    # The shape of the magnetic tiles: series of six, some of which span two classes.
    rng, rows = np.random.default_rng(0), []
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
            assert (shares["test"], shares["val"]) == pytest.approx((0.2, 0.16), abs=tolerance), kind


GIVEN = [row for name in ("train", "val", "test") for row in singles(name, normal=1, crack=1)]


def test_what_folders_say_stays_and_the_rest_is_drawn_or_follows_its_group():
    given = singles("train", normal=20, crack=10) + singles("test", normal=3, crack=3) + [("crack", "s", "test_shift")]
    result = split(given)
    assert result["split"].value_counts().to_dict() == {"train": 24, "val": 6, "test": 6, "test_shift": 1}
    assert result["split"].iloc[30:].tolist() == ["test"] * 6 + ["test_shift"]
    assert split(GIVEN, val_ratio=0)["split"].tolist() == [name for _, _, name in GIVEN]
    no_test = split(singles("train", normal=50, crack=50))
    assert no_test["split"].value_counts().to_dict() == {"train": 64, "val": 16, "test": 20}
    good = singles("train", normal=40) + singles("test", normal=10)
    as_mvtec = sizes(split(good + singles(hole=25)), "normal", "hole")
    assert as_mvtec == [{"train": 32, "val": 8, "test": 10}, {"train": 16, "val": 4, "test": 5}]
    of_groups = split(good + [("hole", group, None) for _, group, _ in good[30:45]])
    assert groups_are_whole(of_groups) and sizes(of_groups, "hole")[0]["test"] == 5


def test_splits_that_cannot_be():
    said = refused(split, singles(normal=9, crack=9), val_ratio=0)
    assert said.startswith("val_ratio is 0, but the data has no validation folder (images/val); set val_ratio to")
    said = refused(split, GIVEN)
    assert said.startswith("val_ratio is 0.2, but the data has a validation folder of its own (2 images")
    crossing = refused(split, [("normal", "a", "train"), ("crack", "a", "test")])
    assert crossing == "a: group lies in 2 splits: /data/00000.png (train) and /data/00001.png (test)"
    rare = "split 'val' has no defective image among 16; expected both classes in each split"
    assert refused(split, singles(normal=100, crack=1)).startswith(rare)
    only_tests = [("normal", "a", "test"), ("crack", "b", "test")]
    assert refused(split, only_tests).startswith("split 'train' has no normal image among 0")


def test_images_of_other_kinds_become_8_bit_rgb_masks_are_cut_at_half_and_broken_files_named(tmp_path):
    def written(name, pixels):
        (tmp_path / name).write_bytes(cv2.imencode(Path(name).suffix, pixels)[1].tobytes())
        return tmp_path / name

    colour = np.full((4, 5, 3), [10, 20, 30], np.uint8)  # OpenCV writes blue first
    with_alpha = np.dstack([colour, np.full((4, 5), 7, np.uint8)])
    for pixels, red_first in ((colour, [30, 20, 10]), (with_alpha, [30, 20, 10]), (colour[..., 0], [10, 10, 10])):
        assert read_image(written("a.png", pixels))[0, 0].tolist() == red_first
    deep = np.array([[0, 257 * 100, 65535]], np.uint16)
    for path in (written("deep.png", deep), written("deep.tif", np.dstack([deep] * 3))):
        assert read_image(path)[0, :, 2].tolist() == [0, 100, 255]
    every = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(to_8_bit(every).ravel(), np.rint(every / 257))
    assert to_8_bit(every[[0, 4095]]).ravel().tolist() == [0, 16], "alike whatever the image holds"
    grey = np.array([[0, 127, 128, 255]])
    for mask in (grey.astype(np.uint8), grey.astype(np.uint16), (grey * 257).astype(np.uint16)):
        assert read_mask(written("mask.png", mask)).tolist() == [[False, False, True, True]]
    with pytest.raises(UnreadableError, match=r"x.tif: pixels are float32; expected 8- or 16-bit integers"):
        to_8_bit(np.zeros((2, 2), np.float32), "x.tif")
    for suffix in (".png", ".jpg", ".bmp"):
        path = write_picture(tmp_path / f"cut{suffix}", size=(50, 60))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert refused(read_image, path) == f"{path}: image is truncated or not an image; replace the file"
    path.write_bytes(b"")
    assert refused(read_image, path) == f"{path}: image is empty; replace the file"
    assert "gone.png: mask cannot be read: No such file" in refused(read_mask, tmp_path / "gone.png")


def shape(kind: str, points, **fields) -> dict:
    return {"label": "Pitting", "shape_type": kind, "points": points} | fields


def cells(rows: range, columns: range) -> set[tuple[int, int]]:
    return {(row, column) for row in rows for column in columns}


@pytest.mark.parametrize(("shapes", "expected"), [
    ([shape("polygon", SQUARE)], cells(range(1, 4), range(2, 5))),
    ([shape("rectangle", [(5, 4), (2, 1)])], cells(range(1, 4), range(2, 5))),
    ([shape("rectangle", SQUARE)], cells(range(1, 4), range(2, 5))),
    ([{"points": SQUARE}], cells(range(1, 4), range(2, 5))),  # as old versions wrote a polygon
    # Edges through centres: the left and the upper one count.
    ([shape("rectangle", [(1.5, 0.5), (3.5, 2.5)])], cells(range(2), range(1, 3))),
    ([shape("polygon", [(0, 0), (4, 0), (0, 4)])], {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)}),
    # An arch: two legs of one column, joined by one row; both ways round.
    ([shape("polygon", [(1, 1), (4, 1), (4, 4), (3, 4), (3, 2), (2, 2), (2, 4), (1, 4)][::way]) for way in (1, -1)],
     {(1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 3)}),
    ([shape("rectangle", [(0, 0), (2, 2)]), shape("rectangle", [(1, 1), (3, 3)])],
     cells(range(2), range(2)) | cells(range(1, 3), range(1, 3))),
    ([shape("rectangle", [(-3, -9), (2, 2)]), shape("rectangle", [(7, 5), (99, 99)])], cells(range(2), range(2)) | {(5, 7)}),
    # Without a centre inside: every pixel that is touched.
    ([shape("polygon", [(2.6, 1.6), (2.9, 1.6), (2.9, 1.9)])], {(1, 2)}),
    ([shape("polygon", [(2.7, 1.2), (3.3, 1.2), (3.0, 1.4)])], {(1, 2), (1, 3)}),
    ([shape("polygon", [(0.6, 0.6), (3.4, 0.6), (2, 0.6)])], cells(range(1), range(4))),
    ([shape("polygon", [(1.2, 0.9), (2.1, 2.2), (1.2, 0.9)])], {(0, 1), (1, 1), (2, 1), (2, 2)}),
    ([shape("polygon", [(5.2, 3.2)] * 3)], {(3, 5)}),
    ([shape("polygon", [(-0.4, 3.1), (0.3, 3.1), (0.3, 3.2)])], {(3, 0)}),
    ([shape("rectangle", [(8.2, 1), (9.9, 3)])], set()),
    ([], set()),
])  # fmt: skip
def test_shapes_of_labelme_cover_the_pixels_whose_centre_they_hold_or_those_that_they_touch(tmp_path, shapes, expected):
    for fields in ({}, {"imageData": None}, {"imageData": "aGVsbG8="}):
        path = write_labelme(tmp_path / "mask.json", size=(6, 8), shapes=shapes, **fields)
        mask = read_mask(path)
        assert mask.dtype == np.bool_ and mask.shape == (6, 8)
        assert set(map(tuple, np.argwhere(mask).tolist())) == expected


POINTS = "points must be pairs of finite numbers, found "


@pytest.mark.parametrize(("content", "message"), [
    ([1], "not a labelme file; expected shapes, imageHeight and imageWidth, found a list"),
    ({"images": [], "annotations": []}, "not a labelme file; expected shapes, imageHeight and imageWidth, found images, an"),
    ({"shapes": 3}, "not a labelme file; expected shapes, imageHeight and imageWidth, found version, shapes"),
    ({"shapes": [3]}, "not a labelme file; "),
    ({"imageWidth": None}, "not a labelme file; "),
    ({"imageWidth": "16"}, "imageHeight and imageWidth must be whole numbers of pixels, found [12, '16']"),
    ({"imageHeight": 0}, "imageHeight and imageWidth must be whole numbers of pixels, found [0, 16]"),
    ({"imageHeight": 10**9}, "imageHeight and imageWidth must be whole numbers of pixels, found [1000000000, 16]"),
    ({"shapes": [shape(kind, SQUARE) for kind in ("circle", "polygon", "line", "circle")]},
     "holds shapes of type circle (2), line (1); expected polygon or rectangle"),
    ({"shapes": [shape("polygon", SQUARE), shape("polygon", SQUARE[:2])]}, "shape 1: a polygon of 2 points; expected three"),
    ({"shapes": [shape("rectangle", SQUARE[:3])]}, "shape 0: a rectangle of 3 points; expected two or four"),
    ({"shapes": [shape("rectangle", SQUARE[:1])]}, "shape 0: a rectangle of 1 points; expected two or four"),
    ({"shapes": [{"label": "Pitting"}]}, f"shape 0: {POINTS}None"),
    ({"shapes": [shape("polygon", [])]}, f"shape 0: {POINTS}[]"),
    ({"shapes": [shape("polygon", [[1, 2, 3]] * 3)]}, f"shape 0: {POINTS}[[1, 2, 3], [1, 2, 3], [1, 2, 3]]"),
    ({"shapes": [shape("polygon", [[1, 2], [3], [4, 5]])]}, f"shape 0: {POINTS}[[1, 2], [3], [4, 5]]"),
    ({"shapes": [shape("polygon", [[1, 2], ["x", 3], [4, 5]])]}, f"shape 0: {POINTS}[[1, 2], ['x', 3], [4, 5]]"),
    ({"shapes": [shape("polygon", [[1, 2], [float("nan"), 3], [4, 5]])]}, f"shape 0: {POINTS}[[1, 2], [nan, 3], [4, 5]]"),
    ({"shapes": [shape("polygon", [[1, 2], [float("inf"), 3], [4, 5]])]}, f"shape 0: {POINTS}[[1, 2], [inf, 3], [4, 5]]"),
])  # fmt: skip
def test_labelme_files_that_cannot_be_drawn(tmp_path, content, message):
    path = tmp_path / "mask.json"
    whole = isinstance(content, list) or "images" in content
    path.write_text(json.dumps(content)) if whole else write_labelme(path, **content)
    said = refused(read_mask, path)
    assert said.startswith(f"{path}: {message}")


def test_a_mask_that_is_no_json_is_unreadable(tmp_path):
    path = tmp_path / "mask.json"
    for text, message in (
        (None, "cannot be read: No such file"),
        (b"", "not a JSON file: "),
        (b'{"\xe9', "is not encoded"),
    ):
        if text is not None:
            path.write_bytes(text)
        with pytest.raises(UnreadableError, match=re.escape(f"{path}: {message}")):
            read_mask(path)
