"""Boxes to masks: the three formats mean the same pixels, and the pictures that they name."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from box_files import (
    PIXELS,
    SIZE,
    boxed_data,
    coco,
    drawn,
    stored,
    voc,
    write_coco,
    write_label,
    write_voc,
    write_yolo,
)
from drawn_data import write_mask, write_picture
from PIL import Image

from gainmtl_lib.labels import (
    Annotation,
    Box,
    BoxSource,
    Pictures,
    Report,
    Target,
    draw,
    picture_size,
    pixel_boxes,
    read_boxes,
    scan_boxes,
)
from gainmtl_lib.readers import DataError, read_image, read_samples

WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}


def source(root: Path, labels: Path | None = None, **values) -> BoxSource:
    own = {"labels": labels, "store": root.parent / "store", "image_size": SIZE, "resize": "squash"}
    return BoxSource(**own | values)


def read(root: Path, labels: Path | None = None, dataset_type: str = "generic"):
    return read_boxes(read_samples(root, dataset_type=dataset_type), root, source(root, labels))


def masks(samples) -> dict[str, str]:
    rows = samples.to_dict("records")
    return {Path(row["image"]).stem: row["mask"] for row in rows if row["mask"] is not None}


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_gives_the_hand_drawn_masks(tmp_path, name):
    root = boxed_data(tmp_path / "data")
    WRITERS[name](root)
    found = masks(read(root))
    assert sorted(found) == sorted(PIXELS)
    for stem, mask in found.items():
        np.testing.assert_array_equal(stored(mask), drawn(stem))
        assert Path(mask).parts[-4:-1] == ("images", stem.split("_")[0], "defective")


@pytest.mark.parametrize("outline", [[[2, 1, 5, 1, 5, 4]], {"counts": "abc", "size": [12, 16]}, []])
def test_an_outline_beside_a_coco_box_changes_nothing(tmp_path, outline):
    root = boxed_data(tmp_path / "data")
    write_coco(root, coco([one | {"segmentation": outline, "iscrowd": 0} for one in coco()["annotations"]]))
    for stem, mask in masks(read(root)).items():
        np.testing.assert_array_equal(stored(mask), drawn(stem))


def test_formats_share_one_stored_folder_and_other_boxes_get_another(tmp_path):
    root = boxed_data(tmp_path / "data")
    folders = set()
    for write in WRITERS.values():
        place = write(root)
        folders.add(next(iter(masks(read(root)).values())).split("/images/")[0])
        shutil.rmtree(place if place.is_dir() else place.parent)
    assert len(folders) == 1
    content = coco()
    content["annotations"][0]["bbox"][2] += 1
    write_coco(root, content)
    changed = next(iter(masks(read(root)).values())).split("/images/")[0]
    assert changed not in folders
    assert Path(changed).parent == tmp_path / "store/box_masks"
    assert Path(changed).name.startswith("data-")


def test_stored_masks_are_used_again_and_completed(tmp_path, caplog):
    caplog.set_level("INFO")
    root = boxed_data(tmp_path / "data")
    write_coco(root)
    first = masks(read(root))
    assert "drew the boxes of 3 pictures as masks into" in caplog.text
    times = {name: Path(mask).stat().st_mtime_ns for name, mask in first.items()}
    Path(first["val_d0"]).unlink()
    caplog.clear()
    assert masks(read(root)) == first
    assert "drew the boxes of 1 pictures" in caplog.text
    assert all(Path(first[name]).stat().st_mtime_ns == times[name] for name in ("train_d0", "train_d1"))
    np.testing.assert_array_equal(stored(first["val_d0"]), drawn("val_d0"))
    caplog.clear()
    read(root)
    assert "drew" not in caplog.text


def test_mask_files_are_ignored_and_the_rest_of_the_table_stays(tmp_path, caplog):
    caplog.set_level("INFO")
    root = boxed_data(tmp_path / "data")
    write_mask(root / "masks/train/defective/train_d0.png")
    write_mask(root / "masks/train/defective/train_d2.png")
    write_coco(root)
    before = read_samples(root, dataset_type="generic")
    after = read_boxes(before, root, source(root))
    assert "label_kind box: 2 mask files of the dataset are ignored" in caplog.text
    assert after.drop(columns="mask").equals(before.drop(columns="mask"))
    assert "train_d2" in masks(before) and "train_d2" not in masks(after)
    assert [mask for mask in after["mask"] if mask is None] == [None] * 15


def test_a_row_order_of_the_table_does_not_matter(tmp_path):
    root = boxed_data(tmp_path / "data")
    write_voc(root)
    samples = read_samples(root, dataset_type="generic")
    turned = read_boxes(samples.iloc[::-1], root, source(root))
    assert masks(turned) == masks(read(root))
    assert turned.index.tolist() == samples.index[::-1].tolist()


def test_classes_are_counted_with_their_areas(tmp_path):
    root = boxed_data(tmp_path / "data")
    content = coco()
    content["categories"].append({"id": 2, "name": "dent"})
    content["annotations"][1]["category_id"] = 2
    write_coco(root, content)
    classes = scan_boxes(read_samples(root, dataset_type="generic"), root, source(root)).classes
    # crack: 9, 6, 36 and 30 pixels of 192, in three pictures; dent: 8 in one.
    assert classes["boxes"].to_dict() == {"crack": 4, "dent": 1}
    assert classes["images"].to_dict() == {"crack": 3, "dent": 1}
    assert classes.loc["crack", ["0%", "50%", "100%"]].tolist() == pytest.approx([6 / 192, 19.5 / 192, 36 / 192])
    assert classes.loc["dent", "50%"] == pytest.approx(8 / 192)


def cells(annotation: Annotation, size: tuple[int, int] = SIZE) -> list[str]:
    """Rows of the drawn mask that hold a box, as text."""
    mask = draw(pixel_boxes(annotation, Target(size, size, "squash"), Path("f"), Report()), size)
    return ["".join("#" if cell else "." for cell in row) for row in mask]


def one(left: float, top: float, right: float, bottom: float) -> Annotation:
    return Annotation([Box(left, top, right, bottom, "crack", "box 1")])


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (1, 3, ".##..."),
        (1.4, 2.6, ".##..."),  # centres 1.5 and 2.5
        (1.5, 2.5, ".#...."),  # the edge at 1.5 counts, that at 2.5 does not
        (1.6, 3.4, "..#..."),
        (2.6, 3.4, "...#.."),  # no centre: the pixel of the middle, 3.0
        (5.9, 6.0, ".....#"),
        (-3, 2, "##...."),
        (-3, 0.3, "#....."),
        (4, 99, "....##"),
    ],
)
def test_a_pixel_belongs_to_a_box_when_its_centre_does(start, end, expected):
    assert cells(one(start, 0, end, 1), (2, 6)) == [expected, "......"]
    assert cells(one(0, start, 1, end), (6, 2)) == [f"{cell}." for cell in expected]


def test_shares_that_miss_a_half_by_the_last_bit_are_rounded():
    # 0.1 + 0.2 is a little above 0.3: the left edge stands on the centre of pixel 1, and must take it.
    assert cells(Annotation([Box((0.1 + 0.2) * 5 / 10, 0, 0.6, 1, "x", "line 1")], shares=True), (1, 10))[0] == (
        ".#####...."
    )


def test_a_size_in_the_file_scales_the_boxes(tmp_path):
    report = Report()
    half = Annotation([Box(1, 0.5, 2.5, 2, "crack", "annotation 0")], size=(6, 8))
    mask = draw(pixel_boxes(half, Target(SIZE, SIZE, "squash"), Path("f.json"), report), SIZE)
    np.testing.assert_array_equal(mask, drawn("train_d0"))
    assert [str(finding) for finding in report.findings] == [
        "f.json: the picture is 6x8 (height x width) there, and 12x16 on disk; its boxes are scaled"
    ]


def test_a_turned_photograph_is_boxed_as_it_is_shown(tmp_path):
    root = boxed_data(tmp_path / "data")
    path = root / "images/train/defective/turned.jpg"
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(np.zeros((16, 12, 3), np.uint8)).save(path, exif=tag)
    assert picture_size(str(path)) == read_image(path).shape[:2] == (12, 16)
    write_label(root, "Annotations/turned.xml", voc([(3, 2, 5, 4)]))
    np.testing.assert_array_equal(stored(masks(read(root))["turned"]), drawn("train_d0"))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_the_size_of_every_kind_of_picture_is_read(tmp_path, suffix):
    assert picture_size(str(write_picture(tmp_path / f"a{suffix}", size=(5, 9)))) == (5, 9)


def test_a_picture_that_is_none_has_no_size(tmp_path):
    (tmp_path / "a.png").write_bytes(b"junk")
    assert picture_size(str(tmp_path / "a.png")) is None
    assert picture_size(str(tmp_path / "nowhere.png")) is None


IMAGES = ["images/train/defective/a.png", "images/train/normal/a.png", "images/val/defective/crack/b.png"]


@pytest.mark.parametrize(
    ("name", "by_stem", "expected"),
    [
        ("train/defective/a", True, [0]),
        ("defective/a", True, [0]),
        ("train/a", True, [0, 1]),
        ("a", True, [0, 1]),
        ("val/a", True, []),
        ("val/b", True, [2]),
        ("crack/val/b", True, []),
        ("b", True, [2]),
        ("c", True, []),
        ("b.png", False, [2]),
        ("b.jpg", False, []),
        ("b", False, []),
        ("/elsewhere/set/images/train/defective/a.png", False, [0]),
        (r"C:\set\images\train\defective\a.png", False, [0]),
        ("./train/normal/a.png", False, [1]),
        ("../../etc/a.png", False, []),
        ("", False, []),
    ],
)
def test_which_pictures_a_label_can_mean(name, by_stem, expected):
    root = Path("/data")
    assert Pictures([str(root / image) for image in IMAGES], root).find(name, by_stem=by_stem) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("images/train/defective/a.png", [0]),
        ("/elsewhere/images/train/defective/crack/a.png", [1]),
        ("train/defective/a.png", [0]),
        ("crack/a.png", [1]),
        ("train/crack/a.png", [1]),
        ("train/a.png", [0, 1]),
        ("a.png", [0, 1]),
    ],
)
def test_the_same_name_above_and_in_a_folder_of_a_defect_type(name, expected):
    images = ["/data/images/train/defective/a.png", "/data/images/train/defective/crack/a.png"]
    assert Pictures(images, Path("/data")).find(name, by_stem=False) == expected
    assert Pictures(images, Path("/data")).find(name.removesuffix(".png"), by_stem=True) == expected


def test_decomposed_file_names_meet_composed_labels():
    root = Path("/data")
    image = unicodedata.normalize("NFD", "/data/images/불량/균열.png")
    assert Pictures([image], root).find("불량/균열.png", by_stem=False) == [0]
    assert Pictures([image], root).find("균열", by_stem=True) == [0]


def test_a_file_a_folder_and_the_usual_place_are_read_alike(tmp_path):
    root = boxed_data(tmp_path / "data")
    file = write_coco(root)
    usual = masks(read(root))
    assert masks(read(root, file)) == masks(read(root, file.parent)) == usual
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(file, elsewhere / "x.JSON")
    assert masks(read(root, elsewhere / "x.JSON")) == usual


def test_a_folder_may_hold_a_coco_file_for_each_split(tmp_path):
    root = boxed_data(tmp_path / "data")
    content = coco()
    for split in ("train", "val"):
        images = [image for image in content["images"] if image["file_name"].startswith(split)]
        ids = {image["id"] for image in images}
        boxes = [box for box in content["annotations"] if box["image_id"] in ids]
        write_coco(root, content | {"images": images, "annotations": boxes}, f"parts/{split}.json")
    assert sorted(masks(read(root, root / "parts"))) == sorted(PIXELS)


@pytest.mark.parametrize("names", [["classes.txt", "cracks\ndents\n"], ["data.yaml", "nc: 2\nnames: [cracks, dents]"]])
@pytest.mark.parametrize("folder", ["labels", "."])
def test_yolo_class_names(tmp_path, names, folder):
    root = boxed_data(tmp_path / "data")
    write_yolo(root)
    write_label(root, f"{folder}/{names[0]}", names[1])
    boxed = scan_boxes(read_samples(root, dataset_type="generic"), root, source(root))
    assert boxed.findings == []
    assert boxed.classes.index.tolist() == ["cracks"]


@pytest.mark.parametrize("lines", ["\n\ncracks\n\n", "dents\n\n cracks \n \n"])
def test_a_blank_line_among_yolo_class_names_is_a_class_without_a_name(tmp_path, lines):
    root = boxed_data(tmp_path / "data")
    write_label(root, "labels/classes.txt", lines)
    write_label(root, "labels/train_d0.txt", "1 .5 .5 .25 .25\n2 .25 .25 .25 .25")
    boxed = scan_boxes(read_samples(root, dataset_type="generic"), root, source(root))
    assert boxed.findings == []
    assert boxed.classes.index.tolist() == ["1", "cracks"]


def test_yolo_without_names_calls_classes_by_number(tmp_path):
    root = boxed_data(tmp_path / "data")
    write_yolo(root)
    assert scan_boxes(read_samples(root, dataset_type="generic"), root, source(root)).classes.index.tolist() == ["0"]


def test_empty_labels_and_labels_of_normal_pictures_without_boxes_are_fine(tmp_path):
    root = boxed_data(tmp_path / "data")
    write_yolo(root)
    write_label(root, "labels/train/train_n0.txt", "")
    write_label(root, "labels/train/train_d2.txt", "\n \n")
    boxed = scan_boxes(read_samples(root, dataset_type="generic"), root, source(root))
    assert boxed.findings == []
    assert sorted(masks(boxed.samples)) == sorted(PIXELS)


def test_voc_parts_have_boxes_of_their_own_that_do_not_count(tmp_path):
    root = boxed_data(tmp_path / "data")
    part = "<part><name>x</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>16</xmax><ymax>12</ymax></bndbox></part>"
    text = voc([(3, 2, 5, 4)]).replace("<name>", f"{part}<name>")
    write_label(root, "Annotations/train_d0.xml", text)
    np.testing.assert_array_equal(stored(masks(read(root))["train_d0"]), drawn("train_d0"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_understood(tmp_path, encoding):
    root = boxed_data(tmp_path / "data")
    write_coco(root).write_bytes(json.dumps(coco()).encode(encoding))
    assert len(masks(read(root))) == 3
    shutil.rmtree(root / "annotations")
    write_label(root, "Annotations/train_d0.xml", "").write_bytes(voc([(3, 2, 5, 4)]).encode(encoding))
    assert len(masks(read(root))) == 1


def test_mvtec_and_magnetic_tile_take_boxes(tmp_path):
    mvtec = tmp_path / "bottle"
    for name in ("train/good/000.png", "test/good/000.png", "test/crack/000.png", "test/dent/000.png"):
        write_picture(mvtec / name)
    write_mask(mvtec / "ground_truth/crack/000_mask.png")
    write_label(mvtec, "labels/dent/000.txt", "0 0.21875 0.208333 0.1875 0.25\n")
    samples = read(mvtec, dataset_type="mvtec")
    assert [(row["defect_type"], row["mask"] is not None) for row in samples.to_dict("records")] == [
        ("crack", False), ("dent", True), ("normal", False), ("normal", False),
    ]  # fmt: skip
    np.testing.assert_array_equal(stored(masks(samples)["000"]), drawn("train_d0"))
    tiles = tmp_path / "tiles"
    write_picture(tiles / "MT_Free/Imgs/exp1_num_1.jpg")
    write_picture(tiles / "MT_Crack/Imgs/exp1_num_900.jpg")
    write_mask(tiles / "MT_Crack/Imgs/exp1_num_900.png")
    write_label(tiles, "Annotations/exp1_num_900.xml", voc([(3, 2, 5, 4)]))
    found = masks(read(tiles, dataset_type="magnetic_tile"))
    np.testing.assert_array_equal(stored(found["exp1_num_900"]), drawn("train_d0"))


def test_two_pictures_that_differ_in_their_suffix_keep_masks_of_their_own(tmp_path):
    tiles = tmp_path / "tiles"
    write_picture(tiles / "MT_Free/Imgs/exp1_num_1.jpg")
    for suffix in (".jpg", ".bmp"):
        write_picture(tiles / f"MT_Crack/Imgs/exp1_num_900{suffix}")
    images = [{"id": k, "file_name": f"exp1_num_900{suffix}"} for k, suffix in enumerate((".jpg", ".bmp"))]
    boxes = [{"image_id": k, "category_id": 1, "bbox": [k, 0, 2, 2]} for k in (0, 1)]
    samples = read(tiles, write_coco(tiles, coco(boxes, images=images)), dataset_type="magnetic_tile")
    first, second = (stored(mask)[0, :4].tolist() for mask in samples["mask"] if mask is not None)
    assert {tuple(first), tuple(second)} == {(255, 255, 0, 0), (0, 255, 255, 0)}


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    root = boxed_data(tmp_path / "data")
    write_coco(root)
    (tmp_path / "store").write_text("a file where a folder is to be")
    with pytest.raises(OSError, match="could not be written"):
        read(root)


def test_nothing_else_lies_in_the_store(tmp_path):
    root = boxed_data(tmp_path / "data")
    write_coco(root)
    read(root)
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(files) == 3
    assert all(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).dtype == np.uint8 for path in files)


def test_no_labels_at_all(tmp_path):
    root = boxed_data(tmp_path / "data")
    expected = r"no box labels; expected annotations/\*.json, labels/\*.txt or Annotations/\*.xml below it"
    with pytest.raises(DataError, match=expected):
        read(root)
