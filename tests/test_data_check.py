from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
from drawn_data import write_generic, write_mask, write_picture

from gainmtl_lib.data_check import DataReport, check_dataset, contact_sheet_samples
from gainmtl_lib.dataset import build_samples
from gainmtl_lib.readers import DataError
from gainmtl_lib.settings import Settings
from gainmtl_lib.synthetic.data import make_synthetic


def check(root, **options) -> DataReport:
    return check_dataset(root, **{**dict(image_size=(64, 64)), **options})


def messages(report: DataReport, level: str) -> str:
    return "\n".join(str(finding) for finding in report.findings if finding.level == level)


def test_a_sound_dataset_has_no_findings(generic):
    report = check(generic)
    assert report.usable
    assert report.findings == []
    assert report.counts.loc["total"].to_dict() == {"normal": 9, "defective": 9, "total": 18}
    assert report.counts.index.tolist() == ["train", "val", "test", "total"]
    assert report.masks["masks"].to_dict() == {
        "ok": 9, "missing": 0, "empty": 0, "misfit": 0, "unreadable": 0, "non-binary": 0, "resized": 0,
    }  # fmt: skip
    assert report.defect_area.loc["defective"].to_dict() == pytest.approx(
        {"0%": 0.25, "25%": 0.25, "50%": 0.25, "75%": 0.25, "100%": 0.25, "images": 9}
    )
    assert report.size_auroc == 0.5
    assert len(report.duplicates) == 0
    assert report.grid_iou.index.tolist() == [32, 16, 8, 4]
    assert report.grid_iou["grid"].tolist() == ["2x2", "4x4", "8x8", "16x16"]
    assert report.grid_iou["mean"].is_monotonic_increasing


def test_every_problem_of_the_files_is_reported_at_once(generic):
    masks = generic / "masks/train/defective"
    (generic / "images/train/normal/train_n0.png").write_bytes(b"junk")
    (masks / "train_d0.png").unlink()
    write_mask(masks / "train_d1.png", box=(slice(0, 0), slice(0, 0)))
    write_mask(masks / "train_d2.png", size=(30, 16))
    write_mask(generic / "masks/val/defective/val_d0.png", size=(24, 32))
    (generic / "masks/val/defective/val_d1.png").write_bytes(b"junk")
    grey = np.zeros((12, 16), np.uint8)
    grey[:4], grey[4:6] = 200, 90
    (generic / "masks/val/defective/val_d2.png").write_bytes(cv2.imencode(".png", grey)[1].tobytes())
    report = check(generic)
    errors, warnings, infos = (messages(report, level) for level in ("error", "warning", "info"))
    assert not report.usable
    assert "train_n0.png: image is truncated or not an image" in errors
    assert "val_d1.png: mask is truncated or not an image" in errors
    assert "train_d2.png: mask is 30x16 (height x width), its image 12x16; expected the same aspect ratio" in errors
    assert (
        "train_d1.png: mask holds no defect pixel (largest value 0, above 127 counts); treated as missing" in warnings
    )
    assert "1 of 9 defective images have no mask" in warnings
    assert "val_d0.png: mask is 24x32 (height x width), its image 12x16; it is fitted" in infos
    assert "1 of 7 masks are not binary; values above 127 count as defect" in infos
    assert report.masks["masks"].to_dict() == {
        "ok": 5, "missing": 1, "empty": 1, "misfit": 1, "unreadable": 1, "non-binary": 1, "resized": 1,
    }  # fmt: skip
    assert [finding.level for finding in report.findings] == sorted(
        (finding.level for finding in report.findings), key=["error", "warning", "info"].index
    )


def test_problems_that_stop_a_run_do_not_stop_the_check(generic):
    write_picture(generic / "images/train/defective/train_d0.jpg")
    (generic / "images/train/normal/train_n0.png").write_bytes(b"junk")
    report = check(generic, group_pattern=r"[nd]\d")
    errors = messages(report, "error")
    assert "has the same stem as" in errors
    assert "group lies in 3 splits" in errors
    assert "train_n0.png: image is truncated" in errors


@pytest.mark.parametrize("exists", [True, False])
def test_a_root_without_data_gives_an_empty_report(tmp_path, exists):
    report = check(tmp_path if exists else tmp_path / "nowhere")
    assert ("no images" if exists else "does not exist") in messages(report, "error")
    assert len(report.samples) == len(report.counts) == len(report.duplicates) == 0
    assert np.isnan(report.size_auroc)


def test_a_split_that_fails_is_an_error_of_the_report(tmp_path):
    write_generic(tmp_path, splits=("train", "test"))
    report = check(tmp_path, val_ratio=0.0)
    assert "val_ratio is 0, but the data has no validation folder" in messages(report, "error")
    assert check(tmp_path, val_ratio=0.3).usable


def test_a_validation_folder_beside_a_ratio_is_refused_as_a_training_refuses_it(generic):
    assert check(generic).usable
    assert "the data has a validation folder of its own" in messages(check(generic, val_ratio=0.2), "error")


def test_the_split_is_that_of_the_settings(tmp_path):
    write_generic(tmp_path, splits=("train",), per_class=12)
    for chosen in ({}, {"test_ratio": 0.4, "split_seed": 3}):
        wanted = build_samples(Settings(data_root=tmp_path, val_ratio=0.2, **chosen))
        assert check(tmp_path, **chosen).samples["split"].tolist() == wanted["split"].tolist()
    first, second = (check(tmp_path, split_seed=seed).samples["split"].tolist() for seed in (42, 3))
    assert first != second


def test_single_class(tmp_path):
    write_picture(tmp_path / "images/train/normal/a.png")
    report = check(tmp_path)
    assert "all 1 images are normal" in messages(report, "error")
    assert np.isnan(report.size_auroc)


def test_unknown_dataset_type(tmp_path):
    with pytest.raises(DataError, match="dataset_type must be one of"):
        check(tmp_path, dataset_type="coco")


def test_duplicates_across_splits(generic):
    shutil.copy(generic / "images/train/normal/train_n0.png", generic / "images/test/normal/copy.png")
    picture = cv2.imread(str(generic / "images/train/normal/train_n1.png"))
    darker = (picture.astype(float) * 0.6 + 20).astype(np.uint8)
    (generic / "images/train/normal/darker.png").write_bytes(cv2.imencode(".png", darker)[1].tobytes())
    report = check(generic)
    found = {(row["kind"], row["crosses"]) for row in report.duplicates.to_dict("records")}
    assert len(report.duplicates) == 2
    assert found == {("exact", "test, train"), ("near", "")}
    assert "train_n0.png: same bytes as" in messages(report, "warning")
    assert "1 pairs of (nearly) equal images within a split" in messages(report, "info")


def test_size_that_tells_the_class_is_found(tmp_path):
    write_generic(tmp_path, per_class=5)
    for split in ("train", "val", "test"):
        for number in range(5):
            write_picture(tmp_path / f"images/{split}/defective/{split}_d{number}.png", size=(24, 32))
    report = check(tmp_path)
    assert report.size_auroc > 0.9
    assert "image size alone predicts the class with AUROC" in messages(report, "warning")


def test_rare_class(generic):
    for number in range(90):
        write_picture(generic / f"images/train/normal/more{number}.png")
    assert "only 9 of 108 images are defective (8.3%)" in messages(check(generic), "warning")


def test_synthetic_pictures_are_no_duplicates_of_each_other(tmp_path):
    root = make_synthetic(tmp_path / "data", num_samples=60, image_size=(64, 64), seed=0, shortcut="lighting")
    report = check(root, dataset_type="synthetic")
    assert report.usable
    assert report.counts.columns.tolist()[0] == "normal"
    assert len(report.duplicates) == 0
    assert report.size_auroc == 0.5


def test_contact_sheet_has_pictures_of_each_type_with_masks(generic):
    (generic / "images/train/normal/train_n0.png").write_bytes(b"junk")
    samples = check(generic).samples
    sheet = contact_sheet_samples(samples, image_size=(30, 40), per_type=20)
    assert [len(part) for part in sheet] == [17, 17, 17], "the broken one is left out"
    assert sheet.titles[0].startswith("normal: ")
    assert sheet.masks[0] is None
    assert sheet.titles[-1].startswith("defective: ")
    assert sheet.images[-1].shape == (30, 40, 3)
    assert sheet.masks[-1].shape == (30, 40)
    assert sheet.masks[-1][:14, :19].all()
    assert sheet.masks[-1].sum() == pytest.approx(300, abs=2)
    assert len(contact_sheet_samples(samples, image_size=(30, 40), per_type=2).titles) == 4
