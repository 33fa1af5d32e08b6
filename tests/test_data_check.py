"""What the data check finds, on data with one thing wrong at a time and with everything wrong at once."""

import shutil

import cv2
import numpy as np
import pytest
from drawn_data import write_ball_screw, write_generic, write_labelme, write_mask, write_picture
from PIL import Image

from gainmtl_lib.data_check import check_data_of, contact_sheet_samples
from gainmtl_lib.dataset import build_samples
from gainmtl_lib.settings import Settings
from gainmtl_lib.synthetic.data import make_synthetic


def check(root, *, val_ratio=None, **values):
    return check_data_of(Settings(data_root=root, image_size=64, **values), val_ratio=val_ratio)


def messages(report, level):
    return "\n".join(str(finding) for finding in report.findings if finding.level == level)


def test_sound_data(generic):
    report = check(generic)
    assert report.usable and report.findings == []
    assert report.counts.loc["total"].to_dict() == {"normal": 9, "defective": 9, "total": 18}
    assert report.counts.index.tolist() == ["train", "val", "test", "total"]
    assert report.masks["masks"].sum() == report.masks.loc["ok", "masks"] == 9
    quantiles = {"0%": 0.25, "25%": 0.25, "50%": 0.25, "75%": 0.25, "100%": 0.25, "images": 9}
    assert report.defect_area.loc["defective"].to_dict() == pytest.approx(quantiles)
    assert report.alone.loc["image size", "auroc"] == 0.5 and len(report.duplicates) == 0
    assert report.grid_iou["grid"].to_dict() == {32: "2x2", 16: "4x4", 8: "8x8", 4: "16x16"}
    assert report.grid_iou["mean"].is_monotonic_increasing


def test_every_problem_of_the_files_is_reported_at_once(generic):
    masks, val = generic / "masks/train/defective", generic / "masks/val/defective"
    (generic / "images/train/normal/train_n0.png").write_bytes(b"junk")
    (masks / "train_d0.png").unlink()
    write_mask(masks / "train_d1.png", box=(slice(0, 0), slice(0, 0)))
    write_mask(masks / "train_d2.png", size=(30, 16))
    write_mask(val / "val_d0.png", size=(24, 32))
    (val / "val_d1.png").write_bytes(b"junk")
    cv2.imwrite(str(val / "val_d2.png"), np.repeat(np.uint8([200, 90, 0]), [4, 2, 6])[:, None].repeat(16, axis=1))
    report = check(generic)
    errors, warnings, infos = (messages(report, level) for level in ("error", "warning", "info"))
    assert not report.usable and list(map(str, report.findings)) == "\n".join([errors, warnings, infos]).split("\n")
    assert "train_n0.png: image is truncated or not an image" in errors
    assert "val_d1.png: mask is truncated or not an image" in errors
    assert "train_d2.png: mask is 30x16 (height x width), its image " in errors
    assert "train_d1.png: mask holds no defect pixel; treated as missing" in warnings
    assert "1 of 9 defective images have no mask; they train the classification terms only" in warnings
    assert "val_d0.png: mask is 24x32 (height x width), its image 12x16; it is fitted" in infos
    single = ("missing", "empty", "misfit", "unreadable", "resized")
    assert report.masks["masks"].to_dict() == {"ok": 5, "turned": 0} | dict.fromkeys(single, 1)
    images, planes, titles = contact_sheet_samples(report.samples)
    assert [title.split(": ")[0] for title in titles] == ["normal"] * 6 + ["defective"] * 6
    assert not {"normal: train_n0.png", "defective: train_d2.png", "defective: val_d1.png"} & set(titles)
    first = titles.index("defective: val_d0.png")
    assert planes[0] is None and images[first].shape == (160, 160, 3)
    assert planes[first][21:78, 1:78].all() and planes[first].sum() == pytest.approx(60 * 80, abs=16)  # of 120 x 160


def test_problems_that_stop_a_run_do_not_stop_the_check_and_the_split_is_that_of_the_settings(generic, tmp_path):
    write_picture(generic / "images/train/defective/train_d0.jpg")
    (generic / "images/train/normal/train_n0.png").write_bytes(b"junk")
    errors = messages(check(generic, group_pattern=r"[nd]\d"), "error")
    for problem in ("has the same stem as", "group lies in 3 splits", "train_n0.png: image is truncated"):
        assert problem in errors
    report = check(tmp_path / "nowhere")
    assert "does not exist" in messages(report, "error") and report.alone.empty
    assert len(report.samples) == len(report.counts) == len(report.duplicates) == 0
    assert "validation folder of its own" in messages(check(write_generic(tmp_path / "own"), val_ratio=0.2), "error")
    root = write_generic(tmp_path / "split", splits=("train",), per_class=12)
    chosen = {"test_ratio": 0.4, "split_seed": 3}
    wanted = build_samples(Settings(data_root=root, val_ratio=0.2, **chosen))
    assert check(root, **chosen).samples["split"].tolist() == wanted["split"].tolist()
    assert "val_ratio is 0, but the data has no validation f" in messages(check(root, val_ratio=0.0), "error")


def test_duplicates_across_splits(generic, tmp_path):
    shutil.copy(generic / "images/train/normal/train_n0.png", generic / "images/test/normal/copy.png")
    picture = cv2.imread(str(generic / "images/train/normal/train_n1.png"))
    cv2.imwrite(str(generic / "images/train/normal/darker.png"), (picture * 0.6 + 20).astype(np.uint8))
    report = check(generic)
    pairs = sorted(zip(report.duplicates["kind"], report.duplicates["crosses"]))
    assert pairs == [("exact", "test, train"), ("near", "")]
    assert "train_n0.png: same bytes as" in messages(report, "warning")
    assert "1 pairs of (nearly) equal images within a split" in messages(report, "info")
    looks = {"num_samples": 60, "image_size": (64, 64), "shortcut": "lighting", "shortcut_correlation": 0.95}
    report = check(make_synthetic(tmp_path / "drawn", seed=0, **looks), dataset_type="synthetic")
    assert report.usable and len(report.duplicates) == 0 and report.alone.loc["image size", "auroc"] == 0.5


def test_pictures_of_one_scene_are_no_duplicates_unless_their_bytes_are_equal(generic):
    scene = np.random.default_rng(0).integers(40, 200, (12, 16, 3))
    for number, path in enumerate(sorted(generic.glob("images/*/*/*.png"))):
        cv2.imwrite(str(path), (scene + number).astype(np.uint8))
    shutil.copy(generic / "images/train/normal/train_n0.png", generic / "images/test/normal/copy.png")
    report = check(generic)
    assert report.duplicates["kind"].tolist() == ["exact"] and report.duplicates["crosses"].tolist() == ["test, train"]
    alike = "100% of all pairs of images are alike: they show one scene, so that only equal files can be told"
    assert alike in messages(report, "info") and messages(report, "warning").count("same bytes") == 1


def test_sizes_that_tell_the_class_and_a_rare_class_are_found(tmp_path):
    for picture in write_generic(tmp_path, per_class=5).glob("images/*/defective/*"):
        write_picture(picture, size=(24, 32))
    report = check(tmp_path)
    assert report.alone.loc["image size", "auroc"] > 0.9
    assert "image size: alone it predicts the class with AUROC" in messages(report, "warning")
    for number in range(140):
        write_picture(tmp_path / f"images/train/normal/more{number}.png")
    assert "only 15 of 170 images are defective (8.8%)" in messages(check(tmp_path), "warning")


def test_inverted_covering_turned_and_misplaced_masks_are_found(tmp_path):
    root, rng = write_generic(tmp_path, per_class=8), np.random.default_rng(0)
    masks = sorted((root / "masks").rglob("*.png"))
    for path in masks:
        write_mask(path, box=(slice(1, 12), slice(1, 16)))
    inverted = f"{masks[0]}: 24 of 24 masks mark more than half of their picture; set mask_marks: background if"
    report = check(root)
    assert inverted in messages(report, "error").replace(str(report.samples["mask"].dropna().iloc[0]), str(masks[0]))
    assert not report.usable and check(root, mask_marks="defect").usable
    for path in masks[1:]:
        write_mask(path, box=(slice(3, 6), slice(3, 6)))
    report = check(root)
    assert (
        "1 of 24 masks mark more than half of their picture; they are left out of training and of the scores"
        in messages(report, "warning")
    )
    # Pictures of noise: their masks mark nothing. Where each covers a dark spot, they do.
    assert "the masks mark nothing particular: what they cover differs from its surroundings no more" in messages(
        report, "warning"
    )
    for path in masks:
        image = root / "images" / path.relative_to(root / "masks")
        pixels, top, left = cv2.imread(str(image)) // 4 + 150, *rng.integers(2, 8, 2)
        pixels[top : top + 3, left : left + 3] = 20
        cv2.imwrite(str(image), pixels)
        write_mask(path, box=(slice(top, top + 3), slice(left, left + 3)))
    report = check(root)
    assert "nothing particular" not in messages(report, "warning")
    for place, tag in ((0, 6), (1, 3)):
        image = root / "images" / masks[place].relative_to(root / "masks")
        picture = Image.open(image)
        exif = picture.getexif()
        exif[0x0112] = tag
        picture.save(image, exif=exif)
    report = check(root)
    assert "1 masks lie in the frame that the camera stored; they are turned" in messages(report, "info")
    # The picture lies in the stored frame, and so does its mask: turned as the tag says it stands out.
    either = "1 masks belong to pictures that an orientation tag turns, and fit them either way; the upright frame is"
    assert either in messages(report, "warning") and "and 1 of them stand out more as the tag turns them" in messages(
        report, "warning"
    )
    assert report.masks["masks"]["turned"] == 1 and report.usable


def test_one_picture_in_both_classes_and_labels_that_lie_unused_are_said(tmp_path):
    root = write_generic(tmp_path)
    defective = root / "images/train/defective/train_d0.png"
    copied = root / "images/train/normal/copied.png"
    copied.write_bytes(defective.read_bytes())
    assert f"{copied}: same bytes as {defective}, which is of the other class; remove one" in messages(
        check(root), "warning"
    )
    shutil.rmtree(root / "masks")
    (root / "annotations").mkdir()
    (root / "annotations/all.json").write_text("{}")
    unused = f"label files lie in {root / 'annotations/all.json'}: label_kind: box draws them as masks"
    assert unused in messages(check(root), "warning")
    copied.unlink()
    copied.symlink_to(defective)
    told = f"{copied}: is the same file as {defective}, which is of the other class"
    assert told in messages(check(root), "error")
    copied.unlink()
    (root / "images/train/defective/again").symlink_to(root / "images/train/defective")
    (root / "images/train/normal/x.heic").touch()
    (root / "images/train/normal/x").touch()
    report = check(root)
    assert len(report.samples) == 18
    linked = root / "images/val/defective/linked.png"  # into another split: no second picture there, but a leak
    linked.symlink_to(defective)
    leak = f"{linked}: same bytes as {defective}, across splits (train, val)"
    assert leak in messages(check(root, val_ratio=0.0), "warning")
    linked.unlink()
    assert "2 files are of types that are not read: 1 without suffix, 1 .heic" in messages(report, "warning")


def test_damaged_jpegs_are_named_and_normal_pictures_alone_are_for_efficientad(tmp_path):
    path = write_picture(tmp_path / "images/train/normal/damaged.jpg", size=(120, 160))
    raw = path.read_bytes()
    for number in range(6):
        write_picture(tmp_path / f"images/train/normal/{number}.jpg", size=(120, 160))
    path.write_bytes(raw[:3000] + raw[3060:])  # a hole in the middle
    report = check(tmp_path, val_ratio=0.3)
    warnings = messages(report, "warning")
    assert f"{path}: is damaged, a part of it may be grey or of another picture (" in warnings and report.usable
    assert "all 7 images are normal: EfficientAD learns from them, GAIN-MTL needs defective ones, too" in warnings
    (tmp_path / "images/train/normal").rename(tmp_path / "images/train/defective")
    assert "all 7 images are defective; expected normal ones" in messages(check(tmp_path, val_ratio=0.3), "error")


def test_labelme_files_are_checked_as_masks_are(tmp_path):
    root = write_ball_screw(tmp_path, positions=15, moments=6)
    write_picture(root / "images/KGT1.jpg")
    chosen = {"dataset_type": "ball_screw", "test_ratio": 0.2, "split_seed": 0}
    report = check(root, val_ratio=0.2, **chosen)
    assert report.usable and "1 pictures named KGT… are left out" in messages(report, "info")
    assert report.counts.loc["total"].to_dict() == {"normal": 50, "pitting": 40, "total": 90}
    assert report.masks["masks"]["ok"] == report.masks["masks"]["told by outlines"] == 40
    assert report.defect_area.loc["pitting", ["0%", "100%"]].tolist() == [12 / 192] * 2
    labels = sorted((root / "labels").iterdir())
    write_labelme(labels[0], [(2, 1), (6, 1), (6, 4)], size=(16, 12))
    write_labelme(labels[1], [(20, 1), (26, 1), (26, 4)])
    report = check(root, val_ratio=0.2, **chosen)
    assert f"{labels[0]}: mask is 16x12 (height x width), its image " in messages(report, "error")
    assert f"{labels[1]}: mask holds no defect pixel" in messages(report, "warning") and not report.usable
