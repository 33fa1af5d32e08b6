"""Masks at the network's size; boxes to masks: what each format means, which picture, and what is refused or left out."""

import json
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from anomaly_runs import tiny_anomaly_settings
from drawn_data import write_generic, write_mask, write_picture
from PIL import Image

from gainmtl_lib import annotations, labels
from gainmtl_lib.data_check import check_data_of
from gainmtl_lib.dataset import build_samples
from gainmtl_lib.efficientad.data import samples_in_use
from gainmtl_lib.findings import DataError, UnreadableError
from gainmtl_lib.labels import Label, Shape, resize_image, resize_mask, with_labels
from gainmtl_lib.pictures import picture_size, read_image
from gainmtl_lib.pictures import read_grey as stored
from gainmtl_lib.readers import data_digest, read_samples
from gainmtl_lib.settings import Settings


def test_shrinking_averages_by_area_and_a_letterbox_is_centred_and_filled_with_the_mean_colour():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2, :2] = 200
    image[0, 2] = 100
    assert resize_image(image, (2, 2), "squash")[..., 0].tolist() == [[200, 25], [0, 0]]
    rows = np.zeros((8, 2, 3), np.uint8)
    rows[::2] = 100  # rows alternate: area gives 50 everywhere, picking single rows would not
    assert np.unique(resize_image(rows, (2, 4), "squash")).tolist() == [50]
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 4:] = [200, 100, 50]
    boxed = resize_image(image, (8, 8), "letterbox")
    assert boxed[0, 0].tolist() == boxed[7, 7].tolist() == [100, 50, 25] and np.array_equal(boxed[2:6], image)
    mask = resize_mask(image[..., 0] == 0, (8, 8), "letterbox")
    assert np.argwhere(mask).min(0).tolist() == [2, 0] and np.argwhere(mask).max(0).tolist() == [5, 3]


def test_mask_is_cut_at_half_a_pixel_unless_that_would_empty_it_and_fitted_to_its_image():
    mask = np.zeros((4, 4), bool)
    mask[0, :2] = mask[:2, 3] = mask[3, 3] = True  # the cells hold 2, 2, 0 and 1 of four pixels
    line = np.arange(64).reshape(8, 8) // 8 == 3  # one quarter of each upper cell
    for each in (mask, line):
        assert resize_mask(each, (2, 2), "squash").tolist() == [[True, True], [False, False]]
    assert not resize_mask(np.zeros((8, 8), bool), (2, 2), "squash").any()
    fitted = resize_mask(mask[:2], (8, 8), "letterbox", image_size=(4, 8))
    assert fitted[2:6].any() and not fitted[:2].any() and not fitted[6:].any()
    same = {size: labels.same_aspect(size, (100, 200)) for size in ((100, 200), (33, 67), (200, 100), (90, 200))}
    assert list(same.values()) == [True, True, False, False], "rounding is allowed for"


SIZE = (12, 16)  # height and width of every picture
PIXELS = {  # boxes by stem: first column and row, and the column and row after the last, counted from 0
    "train_d0": [(2, 1, 5, 4)],
    "train_d1": [(0, 0, 4, 2), (14, 9, 16, 12)],
    "val_d0": [(3, 2, 9, 8), (6, 5, 12, 10)],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The generic layout without a mask; three of nine defective pictures are to get boxes."""
    shutil.rmtree(write_generic(tmp_path / "data") / "masks")
    return tmp_path / "data"


def drawn(stem: str) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    for x0, y0, x1, y1 in PIXELS[stem]:
        mask[y0:y1, x0:x1] = 255
    return mask


def box(*bbox: float, **values) -> dict:
    """A COCO annotation of train_d0."""
    return {"id": 7, "image_id": 0, "category_id": 1, "bbox": list(bbox)} | values


WELL = box(2, 1, 3, 3, id=1)  # that of `PIXELS`


def coco(boxes: Sequence[dict] = (), **parts) -> dict:
    """A COCO file of the pictures of `PIXELS`, or with its parts replaced."""
    images, own = [], []
    for number, (name, pixels) in enumerate(PIXELS.items()):
        place = f"{name.split('_')[0]}/defective/{name}.png"
        images.append({"id": number, "file_name": place, "width": SIZE[1], "height": SIZE[0]})
        own += [box(x0, y0, x1 - x0, y1 - y0, image_id=number) for x0, y0, x1, y1 in pixels]
    return {"images": images, "annotations": list(boxes) or own, "categories": [{"id": 1, "name": "crack"}]} | parts


def write_label(root: Path, name: str, text: str | bytes) -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def write_coco(root: Path, content: dict | None = None, name: str = "annotations/boxes.json") -> Path:
    return write_label(root, name, json.dumps(coco() if content is None else content))


def write_yolo(root: Path) -> None:
    for name, boxes in PIXELS.items():
        shares = [((x0 + x1) / 32, (y0 + y1) / 24, (x1 - x0) / 16, (y1 - y0) / 12) for x0, y0, x1, y1 in boxes]
        lines = ["0 {:.6f} {:.6f} {:.6f} {:.6f}\n".format(*each) for each in shares]
        write_label(root, f"labels/{name.split('_')[0]}/{name}.txt", "".join(lines))


def voc(boxes: Sequence[Sequence[float]], *, size: tuple[int, int] | None = SIZE, name: str = "crack") -> str:
    """A VOC file; boxes as written in it: xmin, ymin, xmax, ymax."""
    tags = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    objects = [f"<object><name>{name}</name><bndbox>{tags.format(*one)}</bndbox></object>" for one in boxes]
    told = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation><folder>x</folder>{told}{''.join(objects)}</annotation>"


def write_voc(root: Path) -> None:
    for name, boxes in PIXELS.items():  # counted from 1, the last pixel included
        write_label(root, f"Annotations/{name}.xml", voc([(x0 + 1, y0 + 1, x1, y1) for x0, y0, x1, y1 in boxes]))


def settings_of(root: Path, **values) -> Settings:
    own = {"data_root": root, "outputs_dir": root.parent / "outputs", "label_kind": "box", "image_size": 64}
    return Settings(**own | values)


def read(root: Path, file: Path | None = None, found: list | None = None, dataset_type: str = "generic"):
    return with_labels(read_samples(root, dataset_type=dataset_type), settings_of(root, box_labels=file), found)


def scan(root: Path, file: Path | None = None):
    return read(root, file, found := []), found


def masks(samples) -> dict[str, str]:
    return {Path(row.image).stem: row.mask for row in samples.itertuples() if row.mask is not None}


@pytest.mark.parametrize("write", [write_coco, write_yolo, write_voc])
def test_each_format_gives_the_same_masks(root, tmp_path, write):
    write(root)
    found = masks(build_samples(settings_of(root)))
    assert sorted(found) == sorted(PIXELS)
    for stem, mask in found.items():
        np.testing.assert_array_equal(stored(mask), drawn(stem))
        assert Path(mask).is_relative_to(tmp_path / "outputs/data/label_masks")
        assert Path(mask).parts[-4:-1] == ("images", stem.split("_")[0], "defective")


def test_stored_masks_are_used_again_completed_and_told_apart_and_mask_files_are_ignored(root, tmp_path, caplog):
    caplog.set_level("INFO")
    write_mask(root / "masks/train/defective/train_d2.png")
    write_coco(root)
    before = read_samples(root, dataset_type="generic")
    after = with_labels(before.iloc[::-1], settings_of(root))
    assert "label_kind box: 1 mask files of the dataset are ignored" in caplog.text
    assert "drew the labels of 3 pictures as masks into" in caplog.text
    assert after.iloc[::-1].drop(columns="mask").equals(before.drop(columns="mask"))
    first = masks(after)
    Path(first["val_d0"]).unlink()
    times = {name: Path(first[name]).stat().st_mtime_ns for name in ("train_d0", "train_d1")}
    assert masks(read(root)) == first and "drew the labels of 1 pictures" in caplog.text
    assert {name: Path(first[name]).stat().st_mtime_ns for name in times} == times
    assert list(masks(with_labels(before, settings_of(root, label_kind="mask")))) == ["train_d2"]
    digest = data_digest(after)
    moved = shutil.copytree(root, tmp_path / "a/b/data")
    assert data_digest(with_labels(read_samples(moved, dataset_type="generic"), settings_of(moved))) == digest
    write_coco(root, coco([box(6, 1, 3, 3)]))
    assert data_digest(read(root)) != digest


def test_a_pixel_belongs_to_a_box_when_its_centre_does():
    spans = {
        (1.4, 2.6): ".##...",  # centres 1.5 and 2.5
        (1.5, 2.5): ".#....",  # the edge at 1.5 counts, that at 2.5 does not
        (2.6, 3.4): "...#..",  # no centre: the pixel of the middle, 3.0
        (5.9, 6.0): ".....#",
        ((0.1 + 0.2) * 5, 2): ".#....",  # 0.1 + 0.2 is a little above 0.3, and must take the centre at 1.5
    }
    for (start, end), expected in spans.items():
        first, last = labels._cells(start, end)
        assert "." * first + "#" * (last - first) + "." * (6 - last) == expected


def test_a_picture_has_the_size_of_its_decoded_self(root):
    path, tag = root / "images/train/defective/turned.jpg", Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(np.zeros((16, 12, 3), np.uint8)).save(path, exif=tag)
    assert picture_size(str(path)) == read_image(path).shape[:2] == (12, 16)
    write_label(root, "Annotations/turned.xml", voc([(3, 2, 5, 4)]))
    np.testing.assert_array_equal(stored(masks(read(root))["turned"]), drawn("train_d0"))
    path.write_bytes(b"junk")
    with pytest.raises(UnreadableError):
        picture_size(str(path))


def meant(name: str, images: list[str]) -> list[int]:
    """Rows of the pictures below /data that a label means; a name without suffix is that of a label file."""
    label = Label(Path("x"), name, SIZE, [Shape("", [])], named="." in name[-4:])
    return next((rows for _, rows in labels._with_rows([label], images, Path("/data"), [])), [])


def test_which_pictures_a_label_can_mean():
    images = ["images/train/defective/a.png", "images/train/normal/a.png", "images/val/defective/crack/b.png"]
    names = {
        "train/defective/a": [0], "defective/a": [0], "train/a": [0, 1], "a": [0, 1], "val/a": [], "val/b": [2],
        "crack/val/b": [2], "b": [2], "b.png": [2], "./train/normal/a.png": [1], "../../etc/a.png": [0, 1], "": [],
        "/elsewhere/set/images/train/defective/a.png": [0], r"C:\set\images\train\defective\a.png": [0],
        "b.jpg": [2], "B.PNG": [2], r"C:\parts\b.png": [2], r"D:parts\B.tif": [2], r"train\b.png": [], "normal/b.png": [],
    }  # fmt: skip
    assert {name: meant(name, [f"/data/{image}" for image in images]) for name in names} == names
    images = ["/data/images/train/defective/a.png", "/data/images/train/defective/crack/a.png"]
    names = {"images/train/defective/a": [0], "crack/a": [1], "train/crack/a": [1], "train/a": [0, 1], "a": [0, 1]}
    for name, expected in names.items():
        assert meant(name, images) == meant(f"{name}.png", images) == expected
    image = unicodedata.normalize("NFD", "/data/images/불량/균열.png")
    assert meant("불량/균열.png", [image]) == meant("균열", [image]) == [0]


def test_places_are_read_alike_and_empty_labels_class_names_and_parts_do_not_count(root):
    file, content = write_coco(root), coco()
    usual = masks(read(root))
    assert masks(read(root, file)) == masks(read(root, file.parent)) == usual
    for number in range(3):  # a folder may hold several files
        boxes = [one for one in content["annotations"] if one["image_id"] == number]
        write_coco(root, coco(boxes, images=content["images"][number : number + 1]), f"parts/{number}.json")
    assert masks(read(root, root / "parts")) == usual
    shutil.rmtree(root / "annotations")
    write_yolo(root)
    for name, text in (("train/train_n0", ""), ("train/train_d2", "\n \n"), ("classes", "crack\n")):
        write_label(root, f"labels/{name}.txt", text)
    samples, found = scan(root)
    assert found == [] and masks(samples) == usual
    plain = [one | {"segmentation": [], "iscrowd": 0} for one in coco()["annotations"]]
    part = "<part><name>x</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>16</xmax><ymax>12</ymax></bndbox></part>"
    content = voc([(3, 2, 5, 4)]).replace("<name>", f"{part}<name>")
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # byte order marks are understood
        file = write_label(root, "coco/x.json", json.dumps(coco(plain)).encode(encoding))
        assert masks(read(root, file)) == usual
        write_label(root, "voc/train_d0.xml", content.encode(encoding))
        np.testing.assert_array_equal(stored(masks(read(root, root / "voc"))["train_d0"]), drawn("train_d0"))


def test_pictures_of_one_stem_have_masks_of_their_own_in_any_layout(tmp_path):
    write_picture(tmp_path / "MT_Free/Imgs/exp1_num_1.jpg")
    names = ["exp1_num_900.jpg", "exp1_num_900.bmp"]
    for name in names:
        write_picture(tmp_path / f"MT_Crack/Imgs/{name}")
    images = [{"id": k, "file_name": name} for k, name in enumerate(names)]
    file = write_coco(tmp_path, coco([box(k, 0, 2, 2, image_id=k) for k in (0, 1)], images=images))
    samples = read(tmp_path, file, dataset_type="magnetic_tile")
    rows = {tuple(stored(mask)[0, :4].tolist()) for mask in samples["mask"].dropna()}
    assert rows == {(255, 255, 0, 0), (0, 255, 255, 0)}


def test_other_data_has_labels_of_its_own_never_from_outside_and_efficientad_scores_against_boxes(root, tmp_path):
    inside = settings_of(root, box_labels=tmp_path / "other" / ".." / "data" / "boxes" / "own.json")
    assert labels.box_labels_of(inside, tmp_path / "b") == tmp_path / "b/boxes/own.json"
    for outside in (settings_of(root, box_labels=tmp_path / "own.json"), settings_of(root)):
        assert labels.box_labels_of(outside, tmp_path / "b") is None
    file = write_coco(root, coco([WELL], images=[{"id": 0, "file_name": "test_d0.png"}]))
    values = {"data_root": root, "dataset_type": "generic", "label_kind": "box", "box_labels": file}
    assert list(masks(samples_in_use(tiny_anomaly_settings(tmp_path, **values)))) == ["test_d0"]


def test_boxes_that_are_left_out_and_a_run_logs_each_kind_once_with_its_count(root, caplog):
    nan, inf, nothing = float("nan"), float("inf"), "cover nothing of the picture of 12x16 (height x width); left out"
    cases = [
        (box(16, 0, 3, 3), "that cover nothing", f"left, top, right, bottom 16, 0, 19, 3 {nothing}"),
        (box(2, 1, 0, 3), "that cover nothing", f"left, top, right, bottom 2, 1, 2, 4 {nothing}"),
        (box(nan, 1, 3, 3), "that cover nothing", f"left, top, right, bottom nan, 1, nan, 4 {nothing}"),
        (box(2, 1, inf, 3), "that cover nothing", f"left, top, right, bottom 2, 1, inf, 4 {nothing}"),
        (box(9, 9, 2, 2, iscrowd=1), "of crowds", "a crowd, not one object; left out"),
        (box(9, 9, 2, 2, image_id=99), "of an unknown image", "image_id 99 is not among the file's images; left out"),
    ]
    for bad, kind, message in cases:
        file = write_coco(root, coco([WELL, bad, WELL]))
        samples, (one,) = scan(root)
        assert (one.level, one.kind, str(one)) == ("warning", f"labels {kind}", f"{file}: annotation 7: {message}")
        (mask,) = samples["mask"].dropna()
        np.testing.assert_array_equal(stored(mask), drawn("train_d0"))
    write_coco(root, coco([WELL, *(bad for bad, *_ in cases)]))
    read(root)
    assert sum(record.levelname == "WARNING" for record in caplog.records) == 3
    assert "labels that cover nothing: 4, such as" in caplog.text and "unknown image: 1, such as" in caplog.text


def test_a_box_partly_outside_is_clipped_and_one_of_another_picture_size_scaled(root):
    file = write_coco(root, coco([box(-2, -3.5, 6, 5.5), box(12, 10, 4.4, 2.5, image_id=1)]))
    samples, found = scan(root)
    beyond = "reaches 3.5 pixels beyond the picture of 12x16 (height x width); clipped"
    assert list(map(str, found)) == [f"{file}: annotation 7: {beyond}"]
    first, second = (stored(mask) > 0 for mask in samples["mask"].dropna())
    assert first[:2, :4].all() and first.sum() == 8 and second[10:, 12:].all() and second.sum() == 8
    for height, warned in ((11.4, True), (11, False)):
        write_coco(root, coco([box(0, 0, 16, height)]))
        warnings = [one.message for one in scan(root)[1]]
        assert ["95% of the picture, and hardly says where" in text for text in warnings] == [True] * warned
    content = coco([box(4, 2, 6, 6)])
    content["images"][0] |= {"width": 32, "height": 24}
    file = write_coco(root, content)
    samples, found = scan(root)
    sizes = "the picture is 24x32 (height x width) there, and 12x16 on disk"
    assert list(map(str, found)) == [f"{file}: {sizes}; its shapes are scaled"]
    np.testing.assert_array_equal(stored(samples["mask"].dropna().iloc[0]), drawn("train_d0"))
    content["images"][0] |= {"height": 32}
    write_coco(root, content)
    assert "32x32 (height x width) there, and 12x16 on disk; expected the same aspect ratio" in errors(root)
    for untold in (None, 0, -1):  # is not compared
        write_coco(root, coco(images=[image | {"width": untold} for image in coco()["images"]]))
        file = write_label(root, "voc/train_d0.xml", voc([(3, 2, 5, 4)], size=untold and (untold, untold)))
        assert scan(root)[1] == scan(root, file.parent)[1] == []


def errors(root: Path, file: Path | None = None) -> str:
    """The one error of the labels, from a run; the check says the same."""
    with pytest.raises(DataError) as caught:
        read(root, file)
    assert "\n".join(str(one) for one in scan(root, file)[1] if one.level == "error") == str(caught.value)
    return str(caught.value)


def test_labels_without_a_picture_without_a_box_that_can_be_drawn_or_of_a_normal_picture(root):
    file = write_coco(root, coco(images=[{"id": number, "file_name": f"{number}.png"} for number in range(3)]))
    told = f"{file}: none of the 3 labels means a picture below {root}, such as '0.png'"
    assert errors(root) == f"{told}; a picture there is 'images/test/defective/test_d0.png'"
    none = "hold no box that can be drawn"
    advice = "expected boxes for some defective pictures; without any, set label_kind: mask"
    write_coco(root, {"images": [], "annotations": [], "categories": []})
    assert errors(root, file) == f"{file}: the labels of 0 pictures {none}; {advice}"
    write_coco(root, coco([box(1, 1, 2, 2, image_id="x"), box(2, 1, 0, 3)]))
    lost = "1 labels of an unknown image; 1 labels that cover nothing"
    assert errors(root) == f"{root}: the labels of 3 pictures {none}; {lost}; {advice}"
    content = coco()
    content["images"][0]["file_name"] = "train_n0.png"
    file, normal = write_coco(root, content), root / "images/train/normal/train_n0.png"
    advice = "which is labelled normal; move the picture, or remove the boxes"
    assert errors(root) == f"{file}: has boxes for {normal}, {advice}"
    write_coco(root, content | {"annotations": [box(2, 1, 0, 3), box(1, 1, 2, 2, image_id=1)]})
    assert [finding.level for finding in scan(root)[1]] == ["warning"]
    content["images"][0]["file_name"] = "gone.png"
    write_coco(root, content)
    (root / "images/train/defective/train_d1.png").write_bytes(b"junk")  # is the loader's affair
    samples, found = scan(root)
    assert list(map(str, found)) == [f"{file}: there is no picture 'gone.png' in the dataset; its label is left out"]
    assert list(masks(samples)) == ["val_d0"]


def test_a_stem_of_several_pictures_and_a_picture_with_labels_in_two_places(root):
    file = write_label(root, "labels/train_d0.txt", "0 0.5 0.5 0.1 0.1")
    other = write_label(root, "labels/train/train_d0.txt", "0 0.4 0.5 0.1 0.1")
    picture = root / "images/train/defective/train_d0.png"
    assert errors(root).endswith(f"'train_d0' is {picture}, which has boxes in {other}, too; keep one")
    twin = write_picture(root / "images/val/defective/train_d0.png")
    several = f"'train_d0' can mean 2 pictures, such as {picture} and {twin}; name the picture's folders, too"
    assert errors(root) == f"{file}: {several}"
    twin.unlink()
    content = coco([WELL, box(1, 1, 2, 2, image_id=1)])
    content["images"][1]["file_name"] = "train_d0.png"
    file = write_coco(root, content)
    assert f"which has boxes in {file} ('train/defective/train_d0.png'), too; keep one" in errors(root, file)


def entries(**parts) -> str:
    return json.dumps({"images": [], "annotations": [], "categories": []} | parts)


ONE = {"id": 1, "file_name": "a"}
ENTITIES = '<!DOCTYPE a [<!ENTITY x "1"><!ENTITY y SYSTEM "file:///etc/passwd">]>'
LEVELS = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 10}">' for k in range(1, 30))
BOMB = f'<!DOCTYPE a [<!ENTITY e0 "x">{LEVELS}]>{voc([(3, 2, 5, 4)], name="&e29;")}'


@pytest.mark.parametrize(("name", "text", "message"), [
    (".json", "{", "not a JSON file: "),
    (".json", b'{"images": "\xe9"}', "is not encoded in UTF-8 (byte 12); save it as UTF-8"),
    (".json", "[1, 2]", "not a COCO file; expected images, annotations and categories, found a list"),
    (".json", entries(images=[1]), "not a COCO file: entry 0 of images has no id, file_name"),
    (".json", entries(annotations=[{"image_id": 1}]), "annotation 0: has neither bbox nor segmentation"),
    (".json", entries(annotations=[{"image_id": 1, "bbox": [1]}]), "annotation 0: bbox must be four numbers, found [1]"),
    (".json", entries(images=[ONE | {"height": "x"}]), "image 1: height and width must be two numbers, found"),
    (".json", entries(images=[ONE, ONE]), "images have the id 1 more than once; ids must tell them apart"),
    (".txt", "0 0.5 0.5 0.1", "line 1 has 4 columns; expected five: class, centre x, centre y, width, height"),
    (".txt", "0 .5 .5 .1 .1\n0 .5 .5 .1 .1 .9", "line 2 has 6 columns, as predictions with a confidence have; expected five"),
    (".txt", "0 .1 .1 .2 .1 .2 .2 .3", "line 1 has 8 columns; expected five: class, centre x, centre y, width, height; or a"),
    (".txt", "crack .5 .5 .1 .1", "line 1 reads 'crack .5 .5 .1 .1'; expected a class number and numbers"),
    (".txt", "0 120 80 30 20", "line 1 holds the value 120; expected shares of the picture from 0 to 1, not pixels"),
    (".txt", "0 .5 .5 .1 .1".encode("utf-16"), "is not encoded in UTF-8 (byte 0); save it as UTF-8"),
    (".xml", "", "not a readable XML file: no element found"),
    (".xml", "<html></html>", "not a VOC file; expected the element <annotation>, found <html>"),
    (".xml", ENTITIES + voc([(3, 2, 5, 4)]).replace("crack", "&y;"), "not a readable XML file: undefined entity &y;"),
    (".xml", BOMB, "file: limit on input amplification factor (from DTD and entities) breached"),
    (".xml", '<?xml version="1.0" encoding="nonsense"?><annotation/>', "unknown encoding: nonsense"),
    (".xml", voc([(3, 2, 5, "")]), "object 1 has no complete <bndbox>; expected xmin, ymin, xmax and ymax, found ['3'"),
    (".xml", voc([(3, 2, 5, 4)]).replace("<width>16", "<width>w"), "<size> must be two numbers, found ['12', 'w']"),
])  # fmt: skip
def test_broken_files(root, name, text, message):
    file = write_label(root, f"other/train_d0{name}", text)
    found = errors(root, file.parent)
    assert found.startswith(f"{file}: ") and message in found


def test_places_without_labels_or_with_too_many(root):
    assert errors(root).startswith(
        f"{root}: no label files; expected one of annotations/*.json, annotations/*.csv, lab"
    )
    expected = f"expected {annotations.EXPECTED}"
    assert errors(root, root / "nowhere") == f"{root}/nowhere: box_labels does not exist; {expected}"
    file = write_label(root, "boxes.doc", "")
    assert errors(root, file) == f"{file}: box_labels is a file; {expected}"
    for name in ("classes.txt", ".hidden.txt"):
        write_label(root, f"other/{name}", "")
    assert errors(root, root / "other") == f"{root}/other: holds no label files; {expected}, found classes.txt"
    for write in (write_coco, write_yolo, write_voc):
        write(root)
    names = "annotations/boxes.json, labels, Annotations"
    assert (
        errors(root) == f"{root}: label files lie in 3 places ({names}); choose by box_labels: {annotations.EXPECTED}"
    )
    place = write_label(root, "Annotations/a.txt", "").parent
    formats = "1 of YOLO (.txt), 3 of VOC (.xml)"
    assert errors(root, place) == f"{place}: holds label files of several formats: {formats}; keep one of them there"


def test_the_data_check_counts_what_is_wrong_with_labels_and_goes_on_after_errors(root):
    lost, crowd = box(2, 1, 0, 3), box(2, 1, 3, 3, image_id=1, iscrowd=1)
    write_coco(root, coco([*coco()["annotations"], lost, crowd]))
    report = check_data_of(settings_of(root))
    counted = report.masks["masks"].to_dict()
    assert report.usable and counted["ok"] == 3 and counted["missing"] == 6
    assert counted["labels that cover nothing"] == counted["labels of crowds"] == 1
    # The pictures' own share: 9, 14 and 36 + 30 - 9 of 192 pixels.
    assert report.defect_area.loc["defective", ["0%", "100%"]].tolist() == pytest.approx([9 / 192, 57 / 192])
    lack = "6 of 9 defective images have no box; they train the classification terms only"
    assert lack in map(str, report.findings)
    (root / "annotations/boxes.json").unlink()
    write_yolo(root)
    write_label(root, "labels/train/train_n0.txt", "0 .5 .5 .1 .1")
    write_label(root, "labels/train/train_d0.txt", "0 .5")
    report = check_data_of(settings_of(root))
    assert not report.usable and report.masks["masks"]["ok"] == 2
    for problem in ("which is labelled normal", "train_d0.txt: line 1 has 2 columns"):
        assert any(finding.level == "error" and problem in str(finding) for finding in report.findings)
