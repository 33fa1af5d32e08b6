"""Box labels that are broken: each an error that says what to do, or something left out that is named and counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from box_files import SIZE, boxed_data, coco, drawn, stored, voc, write_coco, write_label, write_voc, write_yolo
from drawn_data import write_picture

from gainmtl_lib.labels import EXPECTED, KINDS, Boxed, BoxSource, read_boxes, scan_boxes
from gainmtl_lib.readers import DataError, read_samples


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return boxed_data(tmp_path / "data")


def source(root: Path, labels: Path | None = None, **values) -> BoxSource:
    own = {"labels": labels, "store": root.parent / "store", "image_size": SIZE, "resize": "squash"}
    return BoxSource(**own | values)


def scan(root: Path, labels: Path | None = None, **values) -> Boxed:
    return scan_boxes(read_samples(root, dataset_type="generic"), root, source(root, labels, **values))


def read(root: Path, labels: Path | None = None):
    return read_boxes(read_samples(root, dataset_type="generic"), root, source(root, labels))


def errors(root: Path, labels: Path | None = None) -> str:
    """The one error of the labels, from a run; the check says the same."""
    with pytest.raises(DataError) as caught:
        read(root, labels)
    found = [str(finding) for finding in scan(root, labels).findings if finding.level == "error"]
    assert "\n".join(found) == str(caught.value)
    return str(caught.value)


def box(*bbox: float, **values) -> dict:
    """An annotation of train_d0."""
    return {"id": 7, "image_id": 0, "category_id": 1, "bbox": list(bbox)} | values


WELL = box(2, 1, 3, 3, id=1)
"""The box of train_d0 that is drawn by hand."""


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (
            box(16, 0, 3, 3), "outside the picture",
            "annotation 7: left, top, right, bottom 16, 0, 19, 3 lie outside the picture of 12x16 (height x width); left out",
        ),
        (
            box(2, -5, 3, 5), "outside the picture",
            "annotation 7: left, top, right, bottom 2, -5, 5, 0 lie outside the picture of 12x16 (height x width); left out",
        ),
        (box(2, 1, 0, 3), "without area", "annotation 7: is 0 wide and 3 high; left out"),
        (box(2, 1, 3, -1.5), "without area", "annotation 7: is 3 wide and -1.5 high; left out"),
        (
            box(float("nan"), 1, 3, 3), "not finite",
            "annotation 7: left, top, right, bottom are nan, 1, nan, 4; left out",
        ),
        (
            box(2, 1, float("inf"), 3), "not finite",
            "annotation 7: left, top, right, bottom are 2, 1, inf, 4; left out",
        ),
        (box(9, 9, 2, 2, iscrowd=1), "crowd", "annotation 7: a crowd, not one object's box; left out"),
        (
            box(9, 9, 2, 2, image_id=99), "of an unknown image",
            "annotation 7: image_id 99 is not among the file's images; left out",
        ),
        (
            box(9, 9, 2, 2, category_id=5), "of an unknown class",
            "annotation 7: category_id 5 is not among the file's categories; left out",
        ),
        (box(2, 1, 3, 3), "repeated", "annotation 7: covers the same pixels as another box; drawn once"),
    ],
)  # fmt: skip
def test_boxes_that_are_left_out_of_a_coco_file(root, bad, kind, message):
    file = write_coco(root, coco([WELL, bad]))
    boxed = scan(root)
    assert [(one.level, one.kind, str(one)) for one in boxed.findings] == [("warning", kind, f"{file}: {message}")]
    assert kind in KINDS
    (mask,) = boxed.samples["mask"].dropna()
    np.testing.assert_array_equal(stored(mask), drawn("train_d0"))


def test_a_box_partly_outside_is_clipped_and_half_a_pixel_is_no_matter(root):
    file = write_coco(root, coco([box(-2, -3.5, 6, 5.5), box(12, 10, 4.4, 2.5, image_id=1)]))
    boxed = scan(root)
    assert [(one.kind, str(one)) for one in boxed.findings] == [
        (
            "beyond the picture's edge",
            f"{file}: annotation 7: reaches 3.5 pixels beyond the picture of 12x16 (height x width); clipped",
        )
    ]
    first, second = (stored(mask) > 0 for mask in boxed.samples["mask"].dropna())
    assert first[:2, :4].all() and first.sum() == 8
    assert second[10:, 12:].all() and second.sum() == 8


@pytest.mark.parametrize(("bbox", "whole"), [((0, 0, 16, 12), True), ((0, 0, 16, 11.4), True), ((0, 0, 16, 11), False)])
def test_a_box_over_nearly_the_whole_picture_is_a_warning(root, bbox, whole):
    write_coco(root, coco([box(*bbox)]))
    found = [(one.kind, one.message) for one in scan(root).findings]
    share = bbox[3] / 12
    message = f"annotation 7: covers {share:.0%} of the picture, and hardly says where the defect is"
    assert found == ([("nearly the whole picture", message)] if whole else [])


def test_a_box_that_shrinks_below_a_pixel_is_a_warning(root):
    write_coco(root, coco([box(2, 1, 3, 3)]))
    assert scan(root, image_size=(6, 8)).findings == []
    (tiny,) = scan(root, image_size=(2, 8)).findings
    assert (tiny.kind, tiny.message) == (
        "below a pixel",
        "annotation 7: is 0.5x1.5 pixels (height x width) of the network's input, less than one; "
        "image_size may be too small for it",
    )
    # A letterbox shrinks both sides alike, to 6x8 of 8x8.
    assert scan(root, image_size=(8, 8), resize="letterbox").findings == []
    assert len(scan(root, image_size=(8, 5), resize="letterbox").findings) == 1


def test_pictures_that_are_listed_but_not_there_are_counted(root):
    content = coco()
    content["images"][0]["file_name"] = "gone.png"
    file = write_coco(root, content)
    (finding,) = scan(root).findings
    assert (finding.kind, str(finding)) == (
        "label without a picture",
        f"{file}: there is no picture 'gone.png' in the dataset; its label is left out",
    )
    assert scan(root).samples["mask"].notna().sum() == 2


def test_labels_that_mean_no_picture_at_all_are_an_error(root):
    content = coco()
    for image in content["images"]:
        image["file_name"] = f"other/{image['file_name']}"
    for number, image in enumerate(content["images"]):
        image["file_name"] = f"{number}.png"
    file = write_coco(root, content)
    assert errors(root) == f"{file}: none of the 3 labels means a picture below {root}, such as '0.png'"


NO_BOX = "expected boxes for some defective pictures; without any, set label_kind: mask"


def test_labels_without_a_box_that_can_be_drawn_are_an_error(root):
    file = write_coco(root, coco(annotations=[]))
    assert errors(root) == f"{root}: the labels of 3 pictures hold no box that can be drawn; {NO_BOX}"
    write_coco(root, {"images": [], "annotations": [], "categories": []})
    assert errors(root, file) == f"{file}: the labels of 0 pictures hold no box that can be drawn; {NO_BOX}"
    ids_as_text = [one | {"image_id": str(one["image_id"])} for one in coco()["annotations"]]
    write_coco(root, coco([*ids_as_text, box(2, 1, 0, 3)]))
    lost = "left out: 5 of an unknown image, 1 without area"
    assert errors(root) == f"{root}: the labels of 3 pictures hold no box that can be drawn; {lost}; {NO_BOX}"


def test_a_box_on_a_normal_picture_is_an_error(root):
    content = coco()
    content["images"][0]["file_name"] = "train_n0.png"
    file = write_coco(root, content)
    normal = root / "images/train/normal/train_n0.png"
    assert errors(root) == (
        f"{file}: has boxes for {normal}, which is labelled normal; move the picture, or remove the boxes"
    )


def test_a_normal_picture_whose_boxes_are_all_left_out_is_none(root):
    content = coco([box(2, 1, 0, 3, image_id=3), WELL])
    content["images"].append({"id": 3, "file_name": "train_n0.png"})
    write_coco(root, content)
    assert [finding.level for finding in scan(root).findings] == ["warning"]


def test_another_size_in_the_file(root):
    content = coco()
    content["images"][0] |= {"width": 16, "height": 16}
    file = write_coco(root, content)
    assert errors(root) == (
        f"{file}: the picture is 16x16 (height x width) there, and 12x16 on disk; expected the same aspect ratio"
    )
    content["images"][0] |= {"width": 32, "height": 24}
    content["annotations"][0]["bbox"] = [4, 2, 6, 6]
    write_coco(root, content)
    boxed = scan(root)
    assert [finding.kind for finding in boxed.findings] == ["picture of another size"]
    np.testing.assert_array_equal(stored(boxed.samples["mask"].dropna().iloc[0]), drawn("train_d0"))


@pytest.mark.parametrize(
    "size", [{}, {"width": None, "height": None}, {"width": 0, "height": 0}, {"width": -1, "height": -1}]
)
def test_a_size_that_is_not_told_is_not_compared(root, size):
    content = coco()
    content["images"] = [{"id": image["id"], "file_name": image["file_name"]} | size for image in content["images"]]
    write_coco(root, content)
    assert scan(root).findings == []


def test_a_stem_of_several_pictures_is_an_error(root):
    write_picture(root / "images/val/defective/train_d0.png")
    file = write_label(root, "labels/train_d0.txt", "0 0.5 0.5 0.1 0.1")
    assert errors(root) == (
        f"{file}: 'train_d0' can mean 2 pictures, such as {root}/images/train/defective/train_d0.png and "
        f"{root}/images/val/defective/train_d0.png; name the picture's folders, too"
    )
    file.rename(write_label(root, "labels/train/train_d0.txt", ""))
    assert scan(root).findings == []


def test_a_picture_with_boxes_in_two_places_is_an_error(root):
    write_label(root, "labels/train_d0.txt", "0 0.5 0.5 0.1 0.1")
    write_label(root, "labels/train/train_d0.txt", "0 0.4 0.5 0.1 0.1")
    picture = root / "images/train/defective/train_d0.png"
    assert errors(root) == (
        f"{root}/labels/train_d0.txt: 'train_d0' is {picture}, which has boxes in {root}/labels/train/train_d0.txt, too; "
        "keep one"
    )
    (root / "labels/train/train_d0.txt").write_text("")
    assert scan(root).findings == []
    content = coco([WELL, box(1, 1, 2, 2, image_id=1)])
    content["images"][1]["file_name"] = "train_d0.png"
    file = write_coco(root, content)
    assert errors(root, file) == (
        f"{file}: 'train_d0.png' is {picture}, which has boxes in {file} ('train/defective/train_d0.png'), too; keep one"
    )


def test_a_picture_that_cannot_be_decoded_is_left_to_the_loader(root):
    write_yolo(root)
    (root / "images/train/defective/train_d0.png").write_bytes(b"junk")
    boxed = scan(root)
    assert [(finding.kind, finding.level) for finding in boxed.findings] == [("picture unreadable", "warning")]
    assert "train_d0.png cannot be decoded; its boxes are left out" in boxed.findings[0].message
    assert boxed.samples["mask"].notna().sum() == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a JSON file: "),
        (b"[" * 100_000, "not a JSON file: "),
        (b'{"images": "\xe9"}', "is not encoded in UTF-8 (byte 12); save it as UTF-8"),
        (b"[1, 2]", "not a COCO file; expected images, annotations and categories, found a list"),
        (b'{"images": [], "annotations": []}', "expected images, annotations and categories, found images, annotations"),
        (
            b'{"images": [{"id": 1}], "annotations": [], "categories": []}',
            "not a COCO file of boxes: images.0.file_name: Field required",
        ),
        (
            b'{"images": [], "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3]}], "categories": []}',
            "not a COCO file of boxes: annotations.0.bbox.3: Field required",
        ),
        (
            b'{"images": [1, 2, 3, 4, 5], "annotations": [], "categories": []}',
            "images.2: Input should be a valid dictionary or instance of _Image; and 2 more",
        ),
        (
            b'{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": [], "categories": []}',
            "images have the id 1 more than once; ids must tell them apart",
        ),
        (
            b'{"images": [], "annotations": [], "categories": [{"id": "x", "name": "a"}, {"id": "x", "name": "b"}]}',
            "categories have the id x more than once; ids must tell them apart",
        ),
    ],
)  # fmt: skip
def test_broken_coco_files(root, content, message):
    file = root / "annotations/boxes.json"
    file.parent.mkdir()
    file.write_bytes(content)
    found = errors(root)
    assert found.startswith(f"{file}: ")
    assert message in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.1", "line 1 has 4 columns; expected five: class, centre x, centre y, width, height"),
        ("7", "line 1 has 1 column; expected five"),
        (
            "0 .5 .5 .1 .1\n0 .5 .5 .1 .1 .9",
            "line 2 has 6 columns, as predictions with a confidence have; expected five",
        ),
        ("0 .1 .1 .2 .1 .2 .2", "line 1 has 7 columns, as a polygon of 3 points has; expected five"),
        ("0 .1 .1 .2 .1 .2 .2 .1 .2", "line 1 has 9 columns, as a polygon of 4 points has; expected five"),
        ("crack .5 .5 .1 .1", "line 1 reads 'crack .5 .5 .1 .1'; expected a class number and four numbers"),
        ("0 .5 x .1 .1", "line 1 reads '0 .5 x .1 .1'; expected a class number and four numbers"),
        ("-1 .5 .5 .1 .1", "line 1: class -1; expected 0 or more"),
        ("0 120 80 30 20", "line 1 holds the value 120; expected shares of the picture from 0 to 1, not pixels"),
    ],
)
def test_broken_yolo_files(root, text, message):
    file = write_label(root, "labels/train/train_d0.txt", text)
    found = errors(root)
    assert found.startswith(f"{file}: line")
    assert message in found


def test_a_yolo_file_of_another_encoding(root):
    write_label(root, "labels/train_d0.txt", "").write_bytes("0 .5 .5 .1 .1".encode("utf-16"))
    assert "train_d0.txt: is not encoded in UTF-8 (byte 0); save it as UTF-8" in errors(root)


def test_yolo_boxes_that_are_left_out(root):
    write_label(root, "labels/classes.txt", "crack\n")
    lines = ["0 0.21875 0.208333 0.1875 0.25", "1 .5 .5 .1 .1", "0 nan .5 .1 .1", "0 .5 .5 0 .1", "0 1.5 .5 .2 .2"]
    write_label(root, "labels/train_d0.txt", "\n".join(lines))
    boxed = scan(root)
    assert [(one.kind, one.message.split(":")[0]) for one in boxed.findings] == [
        ("of an unknown class", "line 2"),
        ("not finite", "line 3"),
        ("without area", "line 4"),
        ("outside the picture", "line 5"),
    ]
    assert boxed.findings[0].message == "line 2: class 1 is not among the 1 named ones; left out"
    np.testing.assert_array_equal(stored(boxed.samples["mask"].dropna().iloc[0]), drawn("train_d0"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: 3", "names must be a list, or class numbers with their names; got 3"),
        ("names: {a: b}", "names must be a list, or class numbers with their names; got {'a': 'b'}"),
        ("names: [", "not a YAML file: "),
    ],
)
def test_broken_class_names(root, text, message):
    write_yolo(root)
    file = write_label(root, "data.yaml", text)
    found = errors(root)
    assert found.startswith(f"{file}: ")
    assert message in found


@pytest.mark.parametrize("text", ["nc: 1", "names: {0: crack, 4: dent}", "names: []", "[1, 2]", ""])
def test_class_names_of_other_forms(root, text):
    write_yolo(root)
    write_label(root, "data.yaml", text)
    assert scan(root).findings == []


ENTITIES = '<!DOCTYPE a [<!ENTITY x "1"><!ENTITY y SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not an XML file: no element found"),
        ("<annotation>", "not an XML file: "),
        ("<annotation>&x;</annotation>", "not an XML file: undefined entity"),
        ("<html></html>", "not a VOC file; expected the element <annotation>, found <html>"),
        (
            ENTITIES + voc([(3, 2, 5, 4)]).replace("crack", "&y;"),
            "declares a document type (<!DOCTYPE>), which can define entities and is not read; remove it",
        ),
        (
            '<?xml version="1.0" encoding="nonsense"?><annotation/>',
            "its encoding cannot be read: unknown encoding: nonsense; save it as UTF-8",
        ),
        (
            '<?xml version="1.0" encoding="euc-kr"?><annotation/>',
            "its encoding cannot be read: multi-byte encodings are not supported; save it as UTF-8",
        ),
        (
            "<annotation><object><name>a</name></object></annotation>",
            "object 1 has no complete <bndbox>; expected four numbers, found xmin None, ymin None, xmax None, ymax None",
        ),
        (voc([(3, 2, 5, "")]), "object 1 has no complete <bndbox>; expected four numbers, found xmin '3', ymin '2', xmax '5', ymax ''"),
        (
            voc([(3, 2, 5, 4)]).replace("<width>16", "<width>wide"),
            "<size> must hold whole numbers, found height and width ['12', 'wide']",
        ),
    ],
)  # fmt: skip
def test_broken_voc_files(root, text, message):
    file = write_label(root, "Annotations/train_d0.xml", text)
    found = errors(root)
    assert found.startswith(f"{file}: ")
    assert message in found


def test_entities_that_grow_without_end_are_never_expanded(root):
    levels = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 10}">' for k in range(1, 30))
    bomb = f'<!DOCTYPE a [<!ENTITY e0 "x">{levels}]>{voc([(3, 2, 5, 4)], name="&e29;")}'
    write_label(root, "Annotations/train_d0.xml", bomb)
    assert "declares a document type" in errors(root)


@pytest.mark.parametrize("size", [None, (0, 0)])
def test_a_voc_file_without_a_size(root, size):
    write_label(root, "Annotations/train_d0.xml", voc([(3, 2, 5, 4)], size=size))
    assert scan(root).findings == []


def test_voc_corners(root):
    write_label(
        root, "Annotations/train_d0.xml", voc([(3, 2, 5, 4), (9, 9, 7, 10), ("nan", 1, 2, 2), (0, 6, 2, 7), (16, 12, 16, 12)])
    )  # fmt: skip
    boxed = scan(root)
    assert [(one.kind, one.message.split(":")[0]) for one in boxed.findings] == [
        ("without area", "object 2"),
        ("not finite", "object 3"),
        ("beyond the picture's edge", "object 4"),
    ]
    mask = stored(boxed.samples["mask"].dropna().iloc[0]) > 0
    assert mask[1:4, 2:5].all() and mask[5:7, :2].all() and mask[11, 15]
    assert mask.sum() == 9 + 4 + 1


def test_an_error_in_one_file_does_not_hide_another(root):
    write_yolo(root)
    write_label(root, "labels/train/train_d0.txt", "0 1")
    write_label(root, "labels/train/train_d1.txt", "x x x x x")
    boxed = scan(root)
    assert [finding.level for finding in boxed.findings] == ["error", "error"]
    assert boxed.samples["mask"].notna().sum() == 1


def test_a_refused_dataset_leaves_nothing_in_the_store(root):
    write_yolo(root)
    write_label(root, "labels/train/train_d0.txt", "0 1")
    with pytest.raises(DataError):
        read(root)
    assert not (root.parent / "store").exists()


def test_a_run_logs_each_kind_once_with_its_count(root, caplog):
    lost = [box(2, 1, 0, 3, id=k) for k in range(20)]
    write_coco(root, coco([WELL, *lost, box(9, 9, 2, 2, image_id=99)]))
    read(root)
    assert sum(record.levelname == "WARNING" for record in caplog.records) == 2
    assert "boxes, without area: 20, such as" in caplog.text
    assert "boxes, of an unknown image: 1, such as" in caplog.text


def test_label_files_of_several_formats(root):
    write_voc(root)
    write_label(root, "Annotations/a.txt", "")
    write_label(root, "Annotations/classes.txt", "crack")
    place = root / "Annotations"
    assert errors(root, place) == (
        f"{place}: holds label files of several formats: 1 of YOLO (.txt), 3 of VOC (.xml); keep one of them there"
    )


def test_labels_that_are_no_labels(root):
    expected = "expected a COCO file (.json), or a folder of COCO, YOLO (.txt) or VOC files (.xml)"
    assert errors(root, root / "nowhere") == f"{root}/nowhere: box_labels does not exist; {expected}"
    file = write_label(root, "boxes.csv", "")
    assert errors(root, file) == f"{file}: box_labels is a file; {expected}"
    write_label(root, "other/classes.txt", "")
    write_label(root, "other/.hidden.txt", "")
    assert errors(root, root / "other") == f"{root}/other: holds no label files; {expected}, found classes.txt"
    (root / "empty").mkdir()
    assert errors(root, root / "empty").endswith("found nothing")


def test_box_labels_in_several_places(root):
    write_coco(root)
    write_coco(root, name="annotations/more.json")
    write_yolo(root)
    write_voc(root)
    names = "annotations/boxes.json, annotations/more.json, labels, Annotations"
    assert errors(root) == f"{root}: box labels lie in 4 places ({names}); choose by box_labels: {EXPECTED}"
