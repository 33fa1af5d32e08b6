"""Outlines and run lengths of every format, drawn as masks; boxes are in test_labels.py."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from drawn_data import write_generic, write_labelme

from gainmtl_lib.annotations import drawn, read_mask
from gainmtl_lib.findings import DataError
from gainmtl_lib.labels import with_labels
from gainmtl_lib.readers import read_samples
from gainmtl_lib.settings import Settings

SIZE = (12, 16)
TRIANGLE = [(2.0, 1.0), (8.0, 1.0), (2.0, 7.0)]
FLAT = [value for point in TRIANGLE for value in point]
SQUARE = [10, 8, 13, 8, 13, 11, 10, 11]
EXPECTED = np.zeros(SIZE, np.bool_)
for row in range(1, 7):
    EXPECTED[row, 2 : 2 + max(0, 7 - row)] = True
# A pixel belongs to the triangle when its centre does: of row r those left of the edge x + y = 9.
EXPECTED[:] = [[2 <= x < 8 and 1 <= y < 7 and x + y + 1 < 9 for x in range(16)] for y in range(12)]
BOTH = EXPECTED.copy()
BOTH[8:11, 10:13] = True


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_generic(tmp_path / "data", split_masks=False)


def masks(root: Path, file: Path | None = None, found: list | None = None) -> dict[str, np.ndarray]:
    its = {"data_root": root, "outputs_dir": root.parent / "outputs", "label_kind": "box", "box_labels": file}
    samples = with_labels(read_samples(root, dataset_type="generic"), Settings(**its, image_size=64), found)
    drawn_ones = samples.dropna(subset=["mask"])
    return {Path(row.image).stem: read_mask(row.mask) for row in drawn_ones.itertuples()}


def coco(root: Path, *annotations: dict, size: tuple[int, int] = SIZE, name: str = "train_d0.png") -> Path:
    images = [{"id": 1, "file_name": name, "height": size[0], "width": size[1]}]
    own = [{"id": k, "image_id": 1, "category_id": 1} | one for k, one in enumerate(annotations)]
    file = root / "annotations/i.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": own, "categories": []}))
    return file


def runs_of(mask: np.ndarray) -> list[int]:
    """COCO's run lengths, down the columns, the first one of background."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat.astype(np.int8), prepend=0, append=0))
    starts = [0, *ends] if len(flat) == ends[-1] else [0, *ends, len(flat)]
    return np.diff(starts).tolist()


def compressed(runs: list[int]) -> str:
    """As the COCO API writes run lengths: six bits a character, the highest says that more follow."""
    text = ""
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        while True:
            bits, value = value & 0x1F, value >> 5
            more = value != -1 if bits & 0x10 else value != 0
            text += chr((bits | 0x20 * more) + 48)
            if not more:
                break
    return text


BOX = {"bbox": [2, 1, 6, 6]}


@pytest.mark.parametrize("annotations", [
    [{"segmentation": [FLAT]}],
    [BOX | {"segmentation": [FLAT]}],  # the outline says more than its box
    [{"segmentation": FLAT}],
    [BOX | {"segmentation": {"size": SIZE, "counts": runs_of(EXPECTED)}}],
    [{"segmentation": {"size": SIZE, "counts": compressed(runs_of(EXPECTED))}}],
])  # fmt: skip
def test_coco_outlines_and_run_lengths_compressed_and_not(root, annotations):
    coco(root, *annotations)
    np.testing.assert_array_equal(masks(root)["train_d0"], EXPECTED)
    coco(root, *annotations, {"segmentation": [SQUARE]})  # several in a picture are joined
    np.testing.assert_array_equal(masks(root)["train_d0"], BOTH)
    coco(root, {"segmentation": [FLAT, SQUARE]})
    np.testing.assert_array_equal(masks(root)["train_d0"], BOTH)


def test_compression_is_that_of_the_coco_api():
    """A string of its documentation's scheme, worked out by hand: 6, then 1, then 1 - 0, then 40 - 1 = 39."""
    assert compressed([6, 1, 40, 40]) == "61X1W1"


def test_yolo_outlines_labelme_and_run_lengths_in_a_csv(root, tmp_path):
    shares = " ".join(f"{x / 16} {y / 12}" for x, y in TRIANGLE)
    yolo = tmp_path / "yolo"
    (yolo).mkdir()
    (yolo / "train_d0.txt").write_text(f"0 {shares}\n1 {11.5 / 16} {9.5 / 12} {3 / 16} {3 / 12}\n")
    labelme = write_labelme(tmp_path / "labelme/train_d0.json", TRIANGLE, [*zip(SQUARE[::2], SQUARE[1::2])]).parent
    write_labelme(labelme / "train_n0.json")  # no shape: nothing is said
    runs = np.cumsum(runs_of(EXPECTED))
    kaggle = " ".join(f"{start + 1} {end - start}" for start, end in zip(runs[::2], runs[1::2]))
    square = "129 3 141 3 153 3"  # columns 10 to 12, rows 8 to 10: 10 * 12 + 8 + 1 = 129
    table = tmp_path / "train.csv"
    table.write_text(
        f"ImageId,ClassId,EncodedPixels\ntrain_d0.png,1,{kaggle}\ntrain_d0.png,2,{square}\nval_d0.png,1,\n"
    )
    old = tmp_path / "old.csv"
    old.write_text(f"ImageId_ClassId,EncodedPixels\ntrain_d0.png_1,{kaggle}\ntrain_d0.png_2,{square}\n")
    for place in (yolo, labelme, table, old):
        told: list = []
        found = masks(root, place, told)
        classes = [one.message for one in told if "classes" in one.message]
        assert classes == [] if place == labelme else "2 classes, which all count as defect: " in classes[0]
        assert [*found] == ["train_d0"], place
        np.testing.assert_array_equal(found["train_d0"], BOTH)


def test_outlines_are_scaled_clipped_and_left_out_where_they_cover_nothing(root):
    coco(root, {"segmentation": [[2 * value for value in FLAT]]}, size=(24, 32))
    found: list = []
    np.testing.assert_array_equal(masks(root, found=found)["train_d0"], EXPECTED)
    assert "the picture is 24x32 (height x width) there, and 12x16 on disk; its shapes are scaled" in str(found[0])
    beyond = [[-3, -2, 4, -2, 4, 3, -3, 3]]
    coco(root, {"segmentation": beyond}, {"segmentation": [[20, 1, 22, 1, 22, 4]]})
    found = []
    assert masks(root, found=found)["train_d0"].sum() == 4 * 3
    assert [one.kind for one in found] == ["labels beyond the picture's edge", "labels that cover nothing"]


def test_names_of_another_system_or_suffix_are_matched_and_said(root):
    for name in (r"C:\parts\train_d0.png", "/mnt/x/train_d0.png", "TRAIN_D0.PNG", "train_d0.jpg"):
        coco(root, {"segmentation": [FLAT]}, name=name)
        found: list = []
        assert [*masks(root, found=found)] == ["train_d0"]
        told = f"1 labels name other folders or another suffix, such as '{name}'; they were matched by that name"
        assert name == "/mnt/x/train_d0.png" or told in map(lambda one: one.message, found)


@pytest.mark.parametrize(("annotation", "message"), [
    ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "segmentation must be x and y of three or more corners, finite numbers, f"),
    ({"segmentation": [["a"] * 6]}, "segmentation must be x and y of three or more corners"),
    ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "segmentation must be x and y of three or more corners"),
    ({"segmentation": [[1, 2, 3, 4, 5, 10**400]]}, "segmentation must be x and y of three or more corners"),
    ({"bbox": [1, 2, 3, 10**400]}, "bbox must be four numbers"),
    ({"segmentation": {"size": [12, float("nan")], "counts": [1]}}, "size of the run lengths must be height and width"),
    ({"segmentation": {"size": SIZE, "counts": "\ud800"}}, "counts must be run lengths of the picture's 192 pixels"),
    ({"segmentation": {"size": SIZE, "counts": [1, 2]}}, "counts must be run lengths of the picture's 192 pixels, found 3"),
    ({"segmentation": {"size": SIZE, "counts": "~~"}}, "counts must be run lengths of the picture's 192 pixels"),
    ({"segmentation": {"size": SIZE, "counts": [-1, 193]}}, "counts must be run lengths of the picture's 192 pixels"),
    ({"segmentation": {"size": [6, 8], "counts": [48]}}, "run lengths of a picture of 6x8 (height x width), in one of 12x16"),
])  # fmt: skip
def test_broken_outlines_and_runs(root, annotation, message):
    file = coco(root, annotation)
    with pytest.raises(DataError) as caught:
        masks(root)
    assert str(caught.value).startswith(f"{file}: annotation 0: ") and message in str(caught.value)


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [7, {"id": 1, "image_id": 1, "file_name": "a.png"}])
def test_parts_of_coco_that_are_no_lists_are_named(root, part, value):
    file = coco(root, {"segmentation": [FLAT]})
    file.write_text(json.dumps(json.loads(file.read_text()) | {part: value}))
    with pytest.raises(DataError, match=f"not a COCO file; expected a list of {part}, found {re.escape(repr(value))}"):
        masks(root)


def test_a_size_that_is_no_number_is_not_known(root):
    file = coco(root, {"segmentation": [FLAT]})
    content = json.loads(file.read_text())
    content["images"][0] |= {"height": 12, "width": float("nan")}
    file.write_text(json.dumps(content))
    np.testing.assert_array_equal(masks(root)["train_d0"], EXPECTED)


def test_what_has_no_outline_is_a_box_or_left_out_and_counted(root):
    found: list = []
    coco(
        root,
        {"segmentation": [[1, 2, 3, 4]], "bbox": [10, 8, 3, 3]},
        {"segmentation": [], "bbox": []},
        {"segmentation": [FLAT]},
    )
    np.testing.assert_array_equal(masks(root, found=found)["train_d0"], BOTH)
    told = "annotation 1: no outline of three or more corners and no box; left out"
    assert [one.message for one in found if one.kind == "labels that cover nothing"] == [told]


def test_coordinates_in_shares_and_key_points_are_refused(root):
    file = coco(root, {"bbox": [0.1, 0.2, 0.5, 0.5]})
    with pytest.raises(DataError, match="no coordinate is above 1; expected pixels, not shares"):
        masks(root)
    file.unlink()
    (root / "labels").mkdir()
    (root / "labels/train_d0.txt").write_text("0 0.5 0.5 0.4 0.4 0.4 0.4 2 0.5 0.5 1 0.6 0.5 0 0.5 0.6 2\n")
    with pytest.raises(DataError, match="line 1 has a box and 4 key points; expected a box alone, or an outline"):
        masks(root)


@pytest.mark.parametrize("name", [
    "train_d0_png.rf.0a1b2c3d4e5f.jpg", "a1b2c3d4-train_d0.png", "train%5Fd0.png", "../upload/1/a1b2c3d4-train_d0.png",
])  # fmt: skip
def test_names_as_labelling_tools_write_them_are_matched(root, name):
    coco(root, {"segmentation": [FLAT]}, name=name)
    assert [*masks(root, found=[])] == ["train_d0"]


def test_files_that_tools_write_beside_yolos_labels_are_no_labels(root):
    folder = root / "labels"
    folder.mkdir()
    for name in ("Classes.txt", "predefined_classes.txt", "README.roboflow.txt", "notes.json", "train.txt"):
        (folder / name).write_text("scratch\n")
    (folder / "train_d0.txt").write_text("0.0 0.5 0.5 0.25 0.25\n")
    assert [*masks(root)] == ["train_d0"]


def test_labelmes_own_classes_are_left_out_and_another_pictures_name_is_said(root):
    for stem in ("train_d0", "train_d1"):
        write_labelme(root / f"labels/{stem}.json", TRIANGLE)
    path = root / "labels/train_d0.json"
    content = json.loads(path.read_text())
    content["shapes"].append(
        content["shapes"][0] | {"label": "__ignore__", "points": [[0, 0], [16, 0], [16, 12], [0, 12]]}
    )
    path.write_text(json.dumps(content | {"imagePath": "..\\images\\other.png"}))
    found: list = []
    np.testing.assert_array_equal(masks(root, found=found)["train_d0"], EXPECTED)
    kinds = {one.kind: one.message for one in found if one.kind}
    assert kinds["labels of no class"] == "1 shapes of the classes __ignore__ or _background_; left out"
    assert kinds["labels whose imagePath names another picture"].startswith("imagePath names other; taken for")


@pytest.mark.parametrize(("text", "message"), [
    ("ImageId,Pixels\n", "expected the columns EncodedPixels and ImageId or ImageId_ClassId, found ImageId, Pixels"),
    ("ImageId; EncodedPixels\ntrain_d0.png;1 2 3\n", "line 2: EncodedPixels must be pairs of a start, from 1, and a length"),
    ("ImageId,EncodedPixels\ntrain_d0.png,0 2\n", "line 2: EncodedPixels must be pairs of a start, from 1"),
    ("ImageId,EncodedPixels\ntrain_d0.png,5 9 7 2\n", "line 2: EncodedPixels must be pairs of a start, from 1"),
    ("ImageId,EncodedPixels\ntrain_d0.png,a b\n", "line 2: EncodedPixels must be pairs of a start, from 1"),
    ("ImageId,EncodedPixels\ntrain_d0.png,² 9\n", "line 2: EncodedPixels must be pairs of a start, from 1"),
    (f"ImageId,EncodedPixels\ntrain_d0.png,1 {'9' * 5000}\n", "line 2: EncodedPixels must be pairs of a start, from 1"),
    ("ImageId,EncodedPixels\ntrain_d0.png,190 9\n", "line 2: runs end at pixel 198 of 192"),
    ("", "not a CSV file: No columns to parse from file"),
])  # fmt: skip
def test_broken_tables_of_run_lengths(root, tmp_path, text, message):
    file = tmp_path / "runs.csv"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        masks(root, file)
    assert str(caught.value).startswith(f"{file}: ") and message in str(caught.value)


def test_a_folder_of_masks_is_one_mask(tmp_path):
    folder = tmp_path / "000"
    write_labelme(folder / "000.json", TRIANGLE)
    write_labelme(folder / "001.json", [*zip(SQUARE[::2], SQUARE[1::2])])
    np.testing.assert_array_equal(read_mask(folder), BOTH)
    write_labelme(folder / "002.json", TRIANGLE, size=(6, 8))
    with pytest.raises(
        DataError, match=r"000: masks of one picture, of 000\.json 12x16, 001\.json 12x16, 002\.json 6x8 size"
    ):
        read_mask(folder)


def test_a_polygon_far_outside_or_larger_than_the_picture():
    everything = np.array([[-1e6, -1e6], [1e6, -1e6], [1e6, 1e6], [-1e6, 1e6]])
    assert drawn([everything], [], SIZE).all() and not drawn([everything + 3e6], [], SIZE).any()
