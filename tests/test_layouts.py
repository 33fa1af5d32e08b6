"""Published folder layouts in miniature, and names of masks as people give them."""

import shutil
import unicodedata
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from drawn_data import write_generic, write_mask, write_picture

from gainmtl_lib.annotations import read_mask
from gainmtl_lib.data_check import check_data_of
from gainmtl_lib.efficientad.data import samples_in_use
from gainmtl_lib.efficientad.model import EfficientADSettings
from gainmtl_lib.findings import DataError
from gainmtl_lib.labels import with_labels
from gainmtl_lib.layouts import LAYOUTS
from gainmtl_lib.readers import data_digest, read_samples
from gainmtl_lib.settings import Settings

SIZE = (12, 16)


def table(root: Path, kind: str, findings: list | None = None, **options):
    samples = read_samples(root, dataset_type=kind, findings=findings, **options)
    names = {column: [Path(path).relative_to(root).as_posix() for path in samples["image"]] for column in ("image",)}
    return samples.assign(image=names["image"]).set_index("image")


def as_files(root: Path, outputs: Path, findings: list | None = None, kind: str = "generic"):
    its = Settings(data_root=root, dataset_type=kind, val_ratio=0.2, outputs_dir=outputs / "outputs")
    return with_labels(read_samples(root, dataset_type=kind, findings=findings), its)


def write_csv(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_layout_can_be_asked_for():
    assert {*get_args(Settings.model_fields["dataset_type"].annotation)} == {*LAYOUTS}


# --- Published data sets


def test_mvtec_loco_joins_the_masks_of_a_picture(tmp_path):
    for name in ("train/good/000.png", "validation/good/000.png", "test/good/000.png"):
        write_picture(tmp_path / name)
    for kind in ("logical_anomalies", "structural_anomalies"):
        write_picture(tmp_path / f"test/{kind}/000.png")
        write_mask(tmp_path / f"ground_truth/{kind}/000/000.png", box=(slice(0, 2), slice(0, 2)))
        write_mask(tmp_path / f"ground_truth/{kind}/000/001.png", box=(slice(5, 7), slice(5, 7)))
    write_picture(tmp_path / "test/logical_anomalies/001.png")
    found: list = []
    samples = table(tmp_path, "mvtec_loco", found)
    assert samples["split"].tolist() == ["test", None, None, None, "train", "train"]
    assert read_mask(samples.loc["test/logical_anomalies/000.png", "mask"]).sum() == 8
    assert [str(one).partition("; expected ")[0] for one in found] == [
        f"{tmp_path}/test/logical_anomalies/001.png: has no folder of masks"
    ]
    before = as_files(tmp_path, tmp_path, kind="mvtec_loco")
    write_mask(tmp_path / "ground_truth/logical_anomalies/000/001.png", box=(slice(5, 8), slice(5, 7)))
    after = as_files(tmp_path, tmp_path, kind="mvtec_loco")
    assert [read_mask(mask).sum() for mask in (before["mask"][1], after["mask"][1])] == [8, 10]
    assert data_digest(before) != data_digest(after)


def test_mvtec_ad2_keeps_the_lights_of_an_object_together_and_leaves_the_private_tests_out(tmp_path):
    names = ("train/good/000_regular", "train/good/000_overexposed", "validation/good/001_regular",
             "test_public/good/000_regular", "test_public/bad/000_regular", "test_public/bad/000_shift_1",
             "test_private/000_regular", "test_private_mixed/000_mixed")  # fmt: skip
    for name in names:
        write_picture(tmp_path / f"{name}.png")
    for light in ("regular", "shift_1"):
        write_mask(tmp_path / f"test_public/ground_truth/bad/000_{light}_mask.png")
    found: list = []
    samples = table(tmp_path, "mvtec_ad2", found)
    assert len(samples) == 6 and samples["mask"].notna().sum() == samples["label"].sum() == 2
    assert samples.loc["train/good/000_regular.png", "group"] == samples.loc["train/good/000_overexposed.png", "group"]
    assert samples["group"].nunique() == 4 and set(samples["split"]) == {"train", "test", None}
    assert "2 pictures of the private tests are left out" in str(found[0])


def test_visa_takes_its_split_and_types_from_its_tables_and_numbered_masks(tmp_path):
    root, rows = tmp_path / "candle", ["object,split,label,image,mask"]
    for number, split in enumerate(("train", "train", "test")):
        write_picture(root / f"Data/Images/Normal/{number:03d}.JPG")
        rows.append(f"candle,{split},normal,candle/Data/Images/Normal/{number:03d}.JPG,")
    write_picture(root / "Data/Images/Anomaly/000.JPG")
    (root / "Data/Masks/Anomaly").mkdir(parents=True)
    cv2.imwrite(str(root / "Data/Masks/Anomaly/000.png"), np.eye(*SIZE, dtype=np.uint8) * 3)
    where = "candle/Data/Images/Anomaly/000.JPG"
    rows.append(f"candle,test,anomaly,{where},candle/Data/Masks/Anomaly/000.png")
    write_csv(tmp_path / "split_csv/1cls.csv", *rows)
    write_csv(root / "image_anno.csv", "image,label,mask", f'{where},"chunk of wax missing",x.png')
    samples = table(root, "visa")
    assert samples["split"].tolist() == [None, "train", "train", "test"]
    defect = samples.loc["Data/Images/Anomaly/000.JPG"]
    assert defect["defect_type"] == "chunk of wax missing" and read_mask(defect["mask"]).sum() == 12
    write_csv(tmp_path / "split_csv/1cls.csv", *rows[:2])
    with pytest.raises(DataError, match=r"Normal/001\.JPG: is not in .*1cls\.csv, which says its split"):
        read_samples(root, dataset_type="visa")
    with pytest.raises(DataError, match="data_root is one category's folder, choose among candle"):
        read_samples(tmp_path, dataset_type="visa")
    write_csv(tmp_path / "split_csv/1cls.csv", "a,b")
    with pytest.raises(DataError, match=r"1cls\.csv: expected the columns image and split, found a, b"):
        read_samples(root, dataset_type="visa")


def test_dagm_reads_one_class_or_all_and_takes_labelled_pictures_for_defective(tmp_path):
    for k, split, number in ((k, split, n) for k in (1, 2) for split in ("Train", "Test") for n in range(3)):
        write_picture(tmp_path / f"Class{k}/{split}/{number:04d}.PNG")
        if number == 1:
            write_mask(tmp_path / f"Class{k}/{split}/Label/0001_label.PNG")
    samples = table(tmp_path, "dagm")
    assert len(samples) == 12 and samples["label"].sum() == samples["mask"].notna().sum() == 4
    assert set(samples["defect_type"]) == {"normal", "class1", "class2"} and set(samples["split"]) == {"train", "test"}
    assert len(table(tmp_path / "Class2", "dagm")) == 6
    labels = tmp_path / "Class1/Train/Label"
    (labels / "Labels.txt").write_text("1\n1 1 0001.PNG 1 0001_label.PNG\n2 0 0002.PNG 0 0\n")
    assert len(table(tmp_path, "dagm")) == 12
    (labels / "0001_label.PNG").rename(labels / "0002_label.PNG")
    with pytest.raises(DataError) as caught:
        read_samples(tmp_path, dataset_type="dagm")
    told = ["has no label of 0001, and Labels.txt lists one", "has a label of 0002, and Labels.txt does not"]
    assert str(caught.value).splitlines() == [f"{labels}: {one}" for one in told]


def test_kolektor2_takes_the_class_from_the_mask_beside_the_picture(tmp_path):
    for split, number, defective in (("train", 10000, 1), ("train", 10001, 0), ("test", 20000, 1), ("test", 20001, 0)):
        write_picture(tmp_path / f"{split}/{number}.png")
        write_mask(tmp_path / f"{split}/{number}_GT.png", box=(slice(0, 5 * defective), slice(0, 5)))
    samples = table(tmp_path, "kolektor2")
    assert samples["label"].tolist() == [1, 0, 1, 0] and samples["mask"].notna().tolist() == [True, False, True, False]
    (tmp_path / "train/10000_GT.png").rename(tmp_path / "train/10000_gt.png")
    found: list = []
    assert table(tmp_path, "kolektor2", found)["label"].tolist() == [1, 0, 1, 0] and found == []
    (tmp_path / "test/20000_GT.png").write_bytes(b"")
    assert len(table(tmp_path, "kolektor2", found)) == 3 and "20000_GT.png: mask is empty" in str(found[0])
    write_mask(tmp_path / "test/20000_GT.png")
    (tmp_path / "test/20001_GT.png").unlink()
    with pytest.raises(DataError, match=r"20001\.png: has no 20001_GT\.png beside it"):
        read_samples(tmp_path, dataset_type="kolektor2")


@pytest.mark.parametrize("head", ["ImageId,ClassId,EncodedPixels", "ImageId_ClassId,EncodedPixels"])
def test_severstal_draws_its_run_lengths(tmp_path, head):
    root = tmp_path / "steel"
    for name in ("a", "b", "c"):
        write_picture(root / f"train_images/{name}.jpg")
    join = "_" if "_" in head else ","
    write_csv(root / "train.csv", head, f"a.jpg{join}3,1 4 13 4", f"a.jpg{join}1,170 2", f"b.jpg{join}4,5 1")
    if join == "_":
        write_csv(
            root / "train.csv", head, "a.jpg_3,1 4 13 4", "a.jpg_1,170 2", "b.jpg_4,5 1", "c.jpg_1,", "c.jpg_2,-1"
        )
    (root / "train_images/b.jpg").rename(root / "train_images/b.JPG")
    samples = read_samples(root, dataset_type="severstal")
    assert samples["defect_type"].tolist() == ["class 3", "class 4", "normal"]
    its = Settings(data_root=root, dataset_type="severstal", outputs_dir=tmp_path / "outputs", image_size=64)
    masks = [mask and read_mask(mask) for mask in with_labels(samples, its)["mask"]]
    assert masks[2] is None and masks[1].sum() == 1 and masks[1][4, 0]
    assert masks[0].sum() == 10 and masks[0][:4, :2].all() and masks[0][1:3, 14].all()


def test_efficientad_tests_on_all_defects_of_data_that_has_them_in_its_test_alone(tmp_path):
    root = tmp_path / "set"
    for number in range(6):
        write_picture(root / f"breakfast_box/train/good/{number}.png", size=(64, 64))
    write_picture(root / "breakfast_box/test/good/0.png", size=(64, 64))
    write_picture(root / "breakfast_box/test/logical_anomalies/0.png", size=(64, 64))
    its = {"teacher": "random", "image_size": 64, "val_ratio": 0.3, "data_root": root, "category": "breakfast_box"}
    samples = samples_in_use(EfficientADSettings(**its, dataset_type="mvtec_loco"))
    assert samples["split"].value_counts().to_dict() == {"train": 4, "val": 2, "test": 2}
    write_mask(root / "breakfast_box/ground_truth/logical_anomalies/0_zz.png", size=(64, 64))
    samples = samples_in_use(EfficientADSettings(**its, dataset_type="mvtec", mask_suffix="_zz"))
    assert samples["mask"].notna().sum() == 1


# --- Names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_generic(tmp_path / "data", splits=("train",), split_masks=False)


def renamed(root: Path, name: str) -> None:
    for path in sorted((root / "masks/defective").iterdir()):
        path.rename(path.with_name(name.format(path.stem)))


@pytest.mark.parametrize("name", [
    "{}_mask.png", "{}_GT.png", "{}_label.png", "{}.png.png", "{}.png_mask.png", "{}-mask.png", "{}_Segmentation.PNG",
])  # fmt: skip
def test_usual_names_of_masks_are_matched(root, name):
    renamed(root, name)
    found: list = []
    assert table(root, "generic", found)["mask"].notna().sum() == 3 and found == []


@pytest.mark.parametrize(("first", "second"), [("{}_1", "{}_2"), ("{}_mask_01", "{}_mask_02"), ("{}", "{}_2"), (
    "{}_mask1", "{}_mask2"), ("{} (1)", "{} (2)"), ("{}_1_mask", "{}_2_mask"), ("{}_mask", "{}_mask-2")])  # fmt: skip
def test_numbered_masks_of_a_picture_are_joined_in_their_folder_and_beside_it(root, first, second, tmp_path):
    folder = root / "masks/defective"
    for stem in ("train_d0", "train_d1", "train_d2"):
        for name, box in ((first, (slice(0, 2), slice(0, 2))), (second, (slice(5, 8), slice(5, 7)))):
            write_mask(folder.parent / "new" / f"{name.format(stem)}.png", box=box)
    shutil.rmtree(folder)
    (folder.parent / "new").rename(folder)
    places = [folder] if "{}" in (first, second) or "_mask" not in first else [folder, root / "images/train/defective"]
    for place in places:
        if place != folder:
            for path in folder.iterdir():
                path.rename(place / path.name)
        found: list = []
        samples = as_files(root, tmp_path, found)
        masks = samples["mask"].dropna()
        assert len(samples) == 6 and [read_mask(mask).sum() for mask in masks] == [10, 10, 10]
        (told,) = found
        assert ("3 pictures have numbered masks" if place == folder else "6 files, such as") in told.message


def test_a_number_behind_a_name_is_the_pictures_own_where_there_is_such_a_picture(root):
    for place in ("images/train/defective", "masks/defective"):
        (root / place / "train_d1.png").rename(root / place / "train_d0_1.png")
        (root / place / "train_d2.png").rename(root / place / "train_d0_2.png")
    samples = table(root, "generic")
    assert [Path(mask).stem for mask in samples["mask"].dropna()] == ["train_d0", "train_d0_1", "train_d0_2"]
    (root / "masks/defective/train_d0_3.png").write_bytes((root / "masks/defective/train_d0.png").read_bytes())
    assert isinstance(table(root, "generic")["mask"].iloc[0], tuple)


def test_numbered_masks_of_several_sizes_are_named(root, tmp_path):
    write_mask(root / "masks/defective/train_d0_2.png", size=(5, 4))
    with pytest.raises(DataError, match=r"masks of one picture, of train_d0.png \d+x\d+, train_d0_2.png 5x4 size"):
        as_files(root, tmp_path)


def test_case_and_unicode_do_not_part_a_mask_from_its_picture(root):
    for place, form in (("images/train/defective", "NFC"), ("masks/defective", "NFD")):
        path = root / place / "train_d0.png"
        path.rename(path.with_name(unicodedata.normalize(form, "불량_é.png")))
    (root / "masks/defective/train_d1.png").rename(root / "masks/defective/TRAIN_D1.png")
    found: list = []
    assert table(root, "generic", found)["mask"].notna().sum() == 3 and found == []


def test_a_pattern_of_other_names_is_said_once_and_can_be_given(root):
    renamed(root, "{}_anno.png")
    found: list = []
    assert table(root, "generic", found)["mask"].isna().all()
    told = "3 of 3 masks without an image, such as train_d0_anno.png, have a picture's name with '_anno' behind it"
    assert f"{told}; set mask_suffix: '_anno'" in [one.message for one in found]
    assert table(root, "generic", mask_suffix="_Anno")["mask"].notna().sum() == 3
    renamed(root, "m_{}.png")
    found = []
    table(root, "generic", found)
    assert "have a picture's name with 'm_' before and '_anno' behind it; rename them" in found[0].message


def test_masks_beside_their_pictures_are_no_pictures_and_go_after_those_of_the_masks_folder(root):
    images, masks = root / "images/train/defective", root / "masks/defective"
    for path in masks.iterdir():
        shutil.copy(path, images / f"{path.stem}_mask.png")
    write_mask(root / "images/train/normal/train_n0_mask.png", box=(slice(0, 0), slice(0, 0)))
    found: list = []
    samples = table(root, "generic", found)
    assert len(samples) == 6 and {Path(mask).parent for mask in samples["mask"].dropna()} == {masks}
    assert "3 files, such as train_d0_mask.png, are masks of the pictures beside them" in [one.message for one in found]
    shutil.rmtree(root / "masks")
    samples = table(root, "generic")
    assert [Path(mask).name for mask in samples["mask"].dropna()] == [f"train_d{k}_mask.png" for k in range(3)]


@pytest.mark.parametrize("name", ["{}_MASK.png", "mask_{}.png", "masks/{}.png", "GT/{}_2.png"])
def test_masks_amid_pictures_are_told_in_any_case_by_prefix_and_by_folder(root, name):
    images = root / "images/train/defective"
    for path in (root / "masks/defective").iterdir():
        target = images / name.format(path.stem)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    found: list = []
    samples = table(root, "generic", found)
    assert (
        len(samples) == 6
        and samples["mask"].notna().sum() == 3
        and {*samples["defect_type"]} == {"normal", "defective"}
    )
    assert [one.message for one in found] == [
        f"3 files, such as {target.name}, are masks of the pictures beside them"
    ] or ("3 files, such as" in found[0].message)


@pytest.mark.parametrize("place", ["masks", "masks/train", "mask/defective", "ground_truth/defective", "GT"])
def test_masks_lie_in_folders_of_other_usual_names_and_without_one_for_the_class(root, place):
    (root / "masks/defective").rename(root / "kept")
    (root / "masks").rmdir()
    (root / place).parent.mkdir(exist_ok=True)
    (root / "kept").rename(root / place)
    found: list = []
    assert table(root, "generic", found)["mask"].notna().sum() == 3 and found == []


def test_a_mask_without_its_pictures_folder_is_matched_where_its_name_is_the_only_one(root):
    for number, kind in ((0, "dent"), (1, "dent"), (2, "scratch")):
        target = root / f"images/train/defective/{kind}/train_d{number}.png"
        target.parent.mkdir(exist_ok=True)
        (root / f"images/train/defective/train_d{number}.png").rename(target)
    assert table(root, "generic")["mask"].notna().sum() == 3
    target.rename(target.with_name("train_d1.png"))
    assert table(root, "generic")["mask"].notna().sum() == 1


def test_files_that_are_likely_masks_are_said(root):
    for path in (root / "masks/defective").iterdir():
        path.rename(root / "images/train/defective" / f"{path.stem}_zz.png")
    found: list = []
    assert len(table(root, "generic", found)) == 9
    assert "3 of 6 pictures have another's name with '_zz' behind it; if they are masks" in found[0].message
    assert len(table(root, "generic", mask_suffix="_zz")) == 6


def test_a_folder_of_masks_for_each_picture_and_folders_in_another_case_or_form(root, tmp_path):
    for path in sorted((root / "masks/defective").iterdir()):
        folder = root / "masks/defective" / path.stem
        folder.mkdir()
        path.rename(folder / "0.png")
    (root / "masks/defective").rename(root / "masks/Defective")
    (root / "images/train").rename(root / "images/Train")
    found: list = []
    assert as_files(root, tmp_path, found)["mask"].notna().sum() == 3 and len(found) == 1
    for place, form in (("test", "NFC"), ("ground_truth", "NFD")):
        write_picture(tmp_path / "mv" / place / unicodedata.normalize(form, "é논리") / "0.png")
    write_picture(tmp_path / "mv/train/Good/0.png")
    samples = table(tmp_path / "mv", "mvtec")
    assert samples["label"].tolist() == [1, 0] and samples["mask"].notna().tolist() == [True, False]


def test_several_patterns_of_lost_masks_are_said_each_and_the_rest_counted(root):
    folder = root / "masks/defective"
    for stem in ("train_d0", "train_d1"):
        for name in (f"{stem}_anno", f"m_{stem}", f"x{stem[1:]}", f"y{stem[1:]}"):
            shutil.copy(folder / "train_d0.png", folder / f"{name}.png")
    found: list = []
    table(root, "generic", found)
    told = [one.message for one in found]
    assert any("2 of 8 masks without an image" in one and "'_anno' behind it" in one for one in told)
    assert any("2 of 8 masks without an image" in one and "'m_' before it; rename" in one for one in told)
    assert any(
        one.startswith("4 masks without an image, such as x") and "a picture is named train_d0" in one for one in told
    )


def test_what_is_not_read_is_counted_and_junk_is_not_even_that(root):
    for name in ("images/train/defective/@eaDir/x.jpg", "images/train/normal/.ipynb_checkpoints/n0-checkpoint.png"):
        write_picture(root / name)
    write_picture(root / "drafts/a.png")
    found: list = []
    assert len(table(root, "generic", found)) == 6
    (one,) = found
    assert one.level == "info" and one.message.endswith("and are not read: 1 in drafts")


@pytest.mark.parametrize("name", ["total", "2024-05-01", "nan", "None", "007", "a, b"])
def test_defect_types_of_any_name(root, name):
    for place in ("images/train/defective", "masks/defective"):
        (root / place / name).mkdir()
        (root / place / "train_d0.png").rename(root / place / name / "train_d0.png")
    counts = check_data_of(Settings(data_root=root, image_size=64)).counts
    assert counts[name].tolist()[-1] == 1 and counts["defective"].tolist()[-1] == 2 and counts.iloc[-1].sum() in (6, 12)


def test_a_defect_type_named_normal_is_refused_with_a_sentence(root):
    (root / "images/train/defective/normal").mkdir()
    path = root / "images/train/defective/train_d0.png"
    moved = path.rename(path.parent / "normal" / path.name)
    with pytest.raises(DataError) as caught:
        read_samples(root, dataset_type="generic")
    told = "is defective, and its folder says that its defect type is 'normal'; rename that folder"
    assert str(caught.value) == f"{moved}: {told}"
