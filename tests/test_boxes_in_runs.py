"""Boxes as labels of whole runs: the table of samples, the data check, other data, and EfficientAD."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from anomaly_runs import tiny_anomaly_settings
from box_files import PIXELS, boxed_data, coco, voc, write_coco, write_label, write_voc, write_yolo
from drawn_data import write_mask

from gainmtl_lib.console import _elsewhere
from gainmtl_lib.data_check import check_data_of
from gainmtl_lib.dataset import box_labels_of, build_data, build_samples
from gainmtl_lib.efficientad.data import samples_in_use
from gainmtl_lib.readers import DataError, data_digest, name_in_store
from gainmtl_lib.settings import Settings


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return boxed_data(tmp_path / "data")


def settings_of(root: Path, **values) -> Settings:
    own = {"data_root": root, "outputs_dir": root.parent / "outputs", "label_kind": "box", "image_size": 64}
    return Settings(**own | values)


def test_the_samples_of_a_run_have_masks_below_its_outputs(root, tmp_path):
    write_voc(root)
    masks = build_samples(settings_of(root))["mask"].dropna()
    assert sorted(Path(mask).stem for mask in masks) == [f"{stem}.png" for stem in sorted(PIXELS)]
    assert all(Path(mask).is_relative_to(tmp_path / "outputs/data/box_masks") for mask in masks)


def test_a_box_reaches_the_network_at_its_place(root):
    write_coco(root)
    data = build_data(settings_of(root))
    data.setup("fit")
    row = next(row for row, image in enumerate(data.samples["image"]) if image.endswith("train_d0.png"))
    mask = data.dataset.__getitems__([row]).masks[0, 0]
    # Rows 1 to 3 of 12 and columns 2 to 4 of 16 are rows 5.3 to 21.3 and columns 8 to 20 of 64.
    assert mask[7:20, 9:19].all()  # growing rounds the corners
    assert mask.sum() == pytest.approx(16 * 12, abs=12)


def test_mask_files_are_the_labels_unless_boxes_are_asked_for(root):
    write_coco(root)
    write_mask(root / "masks/train/defective/train_d2.png")
    masks = build_samples(settings_of(root, label_kind="mask"))["mask"].dropna()
    assert [Path(mask).name for mask in masks] == ["train_d2.png"]


def test_a_place_of_boxes_without_asking_for_boxes_is_an_error(root):
    settings = settings_of(root, label_kind="mask", box_labels=write_coco(root))
    message = "box_labels is given, but label_kind is 'mask'; set label_kind: box, or leave box_labels out"
    with pytest.raises(DataError, match=message):
        build_samples(settings)
    with pytest.raises(DataError, match=message):
        check_data_of(settings)


def test_the_digest_tells_boxes_apart_and_not_where_the_data_lies(root, tmp_path):
    write_coco(root)
    digest = data_digest(build_samples(settings_of(root)))
    moved = tmp_path / "a/b/data"
    shutil.copytree(root, moved)
    outputs = tmp_path / "far/away"
    assert data_digest(build_samples(settings_of(moved, outputs_dir=outputs))) == digest
    content = coco()
    content["annotations"][0]["bbox"][0] = 6
    write_coco(root, content)
    assert data_digest(build_samples(settings_of(root))) != digest


@pytest.mark.parametrize(
    ("mask", "name"),
    [
        ("/o/data/box_masks/tiles-12ab/images/a.png", "images/a.png"),
        ("/box_masks/o/box_masks/tiles-12ab/a.png", "a.png"),
        ("/o/data/box_masks/a.png", None),
        ("/o/data/masks/a.png", None),
    ],
)
def test_the_name_of_a_stored_mask(mask, name):
    assert name_in_store(mask) == (None if name is None else Path(name))


def test_synthetic_data_takes_boxes(tmp_path):
    made = {"dataset_type": "synthetic", "num_samples": 10, "shortcut": "none"}
    root = tmp_path / "data"
    samples = build_samples(settings_of(root, label_kind="mask", **made))
    stem = Path(samples.loc[samples["label"] == 1, "image"].iloc[0]).stem
    write_label(tmp_path, f"boxes/{stem}.xml", voc([(3, 2, 20, 30)], size=(64, 64)))
    boxed = build_samples(settings_of(root, box_labels=tmp_path / "boxes", **made))
    assert boxed["mask"].notna().sum() == 1
    assert samples["mask"].notna().sum() > 1


def test_the_data_check_lists_and_counts_what_is_wrong_with_boxes(root):
    lost = {"id": 7, "image_id": 0, "category_id": 1, "bbox": [2, 1, 0, 3]}
    crowd = {"id": 8, "image_id": 1, "category_id": 1, "bbox": [2, 1, 3, 3], "iscrowd": 1}
    write_coco(root, coco([*coco()["annotations"], lost, crowd]))
    report = check_data_of(settings_of(root))
    assert report.usable
    assert report.masks["masks"]["ok"] == 3 and report.masks["masks"]["missing"] == 6
    counted = {name: count for name, count in report.masks["masks"].items() if count and "boxes" in str(name)}
    assert counted == {"boxes: without area": 1, "boxes: crowd": 1}
    assert report.boxes["boxes"].to_dict() == {"crack": 5}
    assert report.boxes["images"].to_dict() == {"crack": 3}
    # The pictures' own share: 9, 14 and 36 + 30 - 9 of 192 pixels.
    assert report.defect_area.loc["defective", ["0%", "100%"]].tolist() == pytest.approx([9 / 192, 57 / 192])
    assert report.size_auroc == 0.5
    found = "\n".join(map(str, report.findings))
    assert "annotation 7: is 0 wide and 3 high; left out" in found
    assert "6 of 9 defective images have no box; they train the classification terms only" in found


def test_the_data_check_goes_on_after_errors(root):
    write_yolo(root)
    write_label(root, "labels/train/train_n0.txt", "0 .5 .5 .1 .1")
    write_label(root, "labels/train/train_d0.txt", "0 .5")
    (root / "images/test/normal/test_n0.png").write_bytes(b"junk")
    report = check_data_of(settings_of(root))
    errors = "\n".join(str(finding) for finding in report.findings if finding.level == "error")
    assert not report.usable
    assert "which is labelled normal" in errors
    assert "train_d0.txt: line 1 has 2 columns" in errors
    assert "test_n0.png: image is truncated or not an image" in errors
    assert report.masks["masks"]["ok"] == 2


def test_the_data_check_of_masks_has_no_rows_about_boxes(generic):
    report = check_data_of(settings_of(generic, label_kind="mask"))
    assert len(report.boxes) == 0
    assert not [name for name in report.masks.index if "boxes" in name]


def test_a_check_without_labels_says_where_they_belong(root):
    report = check_data_of(settings_of(root))
    (error,) = (str(finding) for finding in report.findings if finding.level == "error")
    assert error.startswith(f"{root}: no box labels; expected annotations/*.json")


def test_other_data_is_read_with_labels_of_its_own(root, tmp_path):
    other = boxed_data(tmp_path / "other")
    labels = write_coco(root, name="boxes/own.json")
    write_coco(other, coco(coco()["annotations"][:1]), name="boxes/own.json")
    settings = settings_of(root, box_labels=labels)
    assert build_samples(settings)["mask"].notna().sum() == 3
    elsewhere = _elsewhere(settings, other)
    assert elsewhere.box_labels == other / "boxes/own.json"
    assert build_samples(elsewhere)["mask"].notna().sum() == 1
    (other / "boxes/own.json").unlink()
    with pytest.raises(DataError, match=r"own\.json: box_labels does not exist; expected a COCO file"):
        build_samples(elsewhere)


def test_labels_from_outside_are_not_taken_for_other_data(root, tmp_path):
    other = boxed_data(tmp_path / "other")
    settings = settings_of(root, box_labels=write_coco(tmp_path, name="boxes/own.json"))
    assert build_samples(settings)["mask"].notna().sum() == 3
    assert box_labels_of(settings, other) is None
    with pytest.raises(DataError, match=f"{other}: no box labels; expected"):
        build_samples(_elsewhere(settings, other))
    write_voc(other)
    assert build_samples(_elsewhere(settings, other))["mask"].notna().sum() == 3


def test_a_place_below_the_data_is_so_however_it_is_written(root, tmp_path):
    settings = settings_of(root, box_labels=tmp_path / "other" / ".." / "data" / "boxes")
    assert box_labels_of(settings, tmp_path / "b") == tmp_path / "b" / "boxes"


def test_efficientad_scores_its_maps_against_boxes(root, tmp_path):
    write_coco(root)
    labels = write_coco(tmp_path, coco([dict(coco()["annotations"][0])], images=[
        {"id": 0, "file_name": "test_d0.png", "width": 16, "height": 12}
    ]), name="boxes.json")  # fmt: skip
    settings = tiny_anomaly_settings(
        tmp_path, data_root=root, dataset_type="generic", label_kind="box", box_labels=labels
    )
    samples = samples_in_use(settings)
    assert set(samples.loc[samples["mask"].notna(), "image"]) == {str(root / "images/test/defective/test_d0.png")}
    assert Path(samples["mask"].dropna().iloc[0]).is_relative_to(settings.outputs_dir / "data/box_masks")
