import cv2
import numpy as np
import pytest
import torch
from browsed import ROWS, TEACHER, write_browsed_anomalies, write_browsed_run, write_novelty
from drawn_data import truncate_file, write_mask, write_picture

from gainmtl_lib.browser.library import Choice, PictureLibrary
from gainmtl_lib.evaluation import error_analysis
from gainmtl_lib.figures import GROUND, THUMBNAIL, PictureFiles, load_shown, thumbnail
from gainmtl_lib.runs import Run, RunError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("library")


@pytest.fixture(scope="module")
def run(folder):
    return write_browsed_run(folder)


@pytest.fixture(scope="module")
def opened(run):
    return PictureLibrary(run).runs["S5"]


def names(opened, **choice):
    return [opened.image(row)[7:9] for row in opened.choose(Choice(**choice))]


def test_the_wrong_reasons_stand_in_the_order_of_the_error_analysis(opened):
    errors = error_analysis(opened.table)
    wrong = errors.loc[errors["kind"] == "wrong reason", "image"].tolist()
    assert len(wrong) == 2
    assert [opened.image(row) for row in opened.choose(Choice(split="test", order="wrong_reason"))[:2]] == wrong


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("wrong_reason", ["d1", "d3", "d0", "d2", "n0", "n1"]),
        ("unsure", ["n1", "d1", "d2", "d3", "d0", "n0"]),
        ("sure", ["d0", "n0", "d3", "d1", "d2", "n1"]),
        ("low_iou", ["d3", "d1", "d2", "d0", "n0", "n1"]),
        ("high_iou", ["d0", "d2", "d1", "d3", "n0", "n1"]),
        ("large", ["d1", "d3", "d0", "d2", "n0", "n1"]),
        ("small", ["d2", "d0", "d3", "d1", "n0", "n1"]),
        ("stored", ["d0", "d1", "d2", "d3", "n0", "n1"]),
    ],
)
def test_orders_with_what_has_no_answer_last(opened, order, expected):
    assert names(opened, split="test", order=order) == expected


def test_filters_and_what_each_value_would_leave(opened):
    assert names(opened, split="test", verdict="TP") == ["d0", "d1", "d3"]
    assert names(opened, verdict="TP", defect_type="stain") == ["d1", "v0"]
    assert names(opened, verdict="FP", split="val") == []
    choice = Choice(split="test", verdict="TP")
    assert opened.counts(choice, "verdict") == {"TP": 3, "FN": 1, "TN": 1, "FP": 1}
    assert opened.counts(choice, "split") == {"test": 3, "val": 1}
    assert opened.counts(choice, "defect_type") == {"scratch": 2, "stain": 1}


def test_marked_pictures_can_be_asked_for(tmp_path):
    opened = PictureLibrary(write_browsed_run(tmp_path, pictures=False)).runs["S5"]
    assert names(opened, marked_only=True) == []
    opened.notes.save("images/n1.png", check_label=True, text="")
    assert names(opened, marked_only=True) == ["n1"]
    opened.notes.path.write_text("broken")
    assert names(opened, marked_only=True) == [] and "expected the columns" in opened.notes.problem


def test_opening_reads_no_model_and_no_map(run, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(Run, "model", property(lambda _: pytest.fail("a model was asked for")))
    library = PictureLibrary(run.folder)
    assert isinstance(library.runs["S5"].maps["cam"], np.memmap)
    assert library.notices == []


def test_names_are_as_long_as_it_takes(folder, run):
    seeds = [write_browsed_run(folder, seed=seed, pictures=False) for seed in (1, 2)]
    other = write_browsed_run(folder, "S3", pictures=False)
    assert list(PictureLibrary([run, other]).runs) == ["S5", "S3"]
    assert list(PictureLibrary([*seeds, other]).runs) == ["S5 seed 1", "S5 seed 2", "S3"]
    again = write_browsed_run(folder, seed=1, experiment="again", pictures=False)
    assert list(PictureLibrary([seeds[0], again]).runs) == ["S5 seed 1 tiny", "S5 seed 1 again"]
    with pytest.raises(RunError, match="given twice"):
        PictureLibrary([run, run.folder])


def test_the_same_picture_in_another_run(folder, run, tmp_path):
    half = write_browsed_run(tmp_path, "S3", rows=ROWS.iloc[[3, 1]], pictures=False)
    library = PictureLibrary([run, half])
    assert [library.row_beside("S3", f"images/{name}.png") for name in ("d1", "d3", "d0")] == [1, 0, None]
    assert "S3 has 2 of the 8 pictures of S5" in " ".join(library.notices)


def test_runs_on_other_data_are_told(run, tmp_path):
    renamed = write_browsed_run(tmp_path, "S3", rows=ROWS.assign(name="x" + ROWS["name"]), digest="other")
    notices = " ".join(PictureLibrary([run, renamed]).notices)
    assert "S5 and S3 have no picture in common" in notices and "browsed by itself" in notices
    changed = write_browsed_run(tmp_path, "S1", digest="other", pictures=False)
    assert "trained on different data" in " ".join(PictureLibrary([run, changed]).notices)


def test_pictures_that_moved_are_told_and_found_again(tmp_path):
    run = write_browsed_run(tmp_path / "then")
    there = tmp_path / "then" / "data"
    here = there.rename(tmp_path / "now")
    lost = PictureLibrary(run)
    assert str(there) in lost.notices[0] and "data_root" in lost.notices[0] and "grey ground" in lost.notices[0]
    assert (lost.shown("S5", 0, 32).pixels == GROUND).all() and lost.thumbnails("S5", [0, 1])[0][:2] == b"\xff\xd8"
    found = PictureLibrary(run, data_root=here)
    assert found.notices == [] and found.shown("S5", 0, 32).mask is not None


def test_data_without_masks_or_validation_is_told(tmp_path):
    library = PictureLibrary(
        write_browsed_run(tmp_path, "S1", masks=False, scales={}, pictures=False, data_root=tmp_path)
    )
    assert [word in " ".join(library.notices) for word in ("no defect is annotated", "no absolute scale")] == [True] * 2
    assert library.runs["S1"].orders == ["unsure", "sure", "stored"]


def test_an_oracle_is_marked(tmp_path):
    run = write_browsed_run(tmp_path, "S6", pictures=False, data_root=tmp_path)
    path = run.folder / "metrics.json"
    path.write_text(path.read_text().replace('"label_leaks": false', '"label_leaks": true'))
    library = PictureLibrary(run)
    assert list(library.runs) == ["S6 (oracle)"] and "is no result" in library.notices[0]


def test_runs_that_cannot_be_browsed(tmp_path):
    with pytest.raises(RunError, match="no run was given"):
        PictureLibrary([])
    with pytest.raises(RunError, match="no run here"):
        PictureLibrary(tmp_path)
    run = write_browsed_run(tmp_path, pictures=False)
    np.save(run.folder / "maps" / "attention.npy", np.zeros((3, 4, 4)))
    with pytest.raises(RunError, match=r"attention\.npy is 3 x 4 x 4 for 8 predictions; evaluate again"):
        PictureLibrary(run)
    for name in ("maps/cam.npy", "predictions.csv"):
        (run.folder / name).unlink()
        with pytest.raises(RunError, match=r"not evaluated; first: gainmtl evaluate"):
            PictureLibrary(run)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("predictions.csv", lambda path: path.write_text('"'), r"predictions\.csv: cannot be read"),
        ("predictions.csv", truncate_file, "predictions.csv"),
        ("maps/cam.npy", truncate_file, r"maps: cannot be read"),
        ("metrics.json", truncate_file, r"metrics\.json: cannot be read"),
    ],
)
def test_damaged_files_are_told_before_anything_is_shown(tmp_path, name, damage, message):
    run = write_browsed_run(tmp_path, pictures=False)
    damage(run.folder / name)
    with pytest.raises(RunError, match=message):
        PictureLibrary(run)


@pytest.mark.parametrize("column", ["wrong_reason", "grid_iou"])
def test_an_older_evaluation_is_told(tmp_path, column):
    run = write_browsed_run(tmp_path, pictures=False)
    run.predictions.drop(columns=column).to_csv(run.folder / "predictions.csv", index=False)
    with pytest.raises(RunError, match=rf"predictions\.csv: lacks {column}; evaluate again"):
        PictureLibrary(run)


def test_an_evaluation_of_the_validation_split_alone_can_be_browsed(tmp_path):
    run = write_browsed_run(tmp_path, rows=ROWS[ROWS["split"] == "val"], pictures=False)
    assert names(PictureLibrary(run).runs["S5"]) == ["v0", "v1"]


def test_pictures_come_at_the_size_asked_for(tmp_path):
    image, mask = write_picture(tmp_path / "a.png", size=(24, 32)), write_mask(tmp_path / "m.png", size=(24, 32))
    large = load_shown(image, mask, 64, (1, 1))
    assert large.pixels.shape == (48, 64, 3) and large.size == (24, 32) and large.problem == ""
    assert large.mask[:22, :30].all() and not large.mask[26:].any()  # the upper left quarter
    assert load_shown(image, mask, 8, (1, 1)).pixels.shape == (6, 8, 3)


def test_a_thin_defect_is_still_there_when_the_picture_shrinks(tmp_path):
    image = write_picture(tmp_path / "a.png", size=(200, 200))
    mask = write_mask(tmp_path / "m.png", size=(200, 200), box=(slice(50, 51), slice(20, 180)))
    assert load_shown(image, mask, 20, (1, 1)).mask.sum() >= 15


def test_files_that_are_missing_or_damaged_are_told_in_words(tmp_path):
    image, mask = write_picture(tmp_path / "a.png"), write_mask(tmp_path / "m.png")
    lost = load_shown(tmp_path / "none.png", None, 20, (10, 20))
    assert (lost.pixels.shape, lost.size) == ((10, 20, 3), (10, 20)) and "none.png" in lost.problem
    assert "m.png" in load_shown(image, tmp_path / "gone" / "m.png", 20, (1, 1)).problem
    truncate_file(image)
    truncate_file(mask)
    assert "truncated" in load_shown(image, mask, 20, (1, 1)).problem
    empty = write_mask(tmp_path / "e.png", box=(slice(0, 0), slice(0, 0)))
    assert load_shown(write_picture(tmp_path / "b.png"), empty, 20, (1, 1)).mask is None


def test_decoded_pictures_are_kept_and_read_ahead(tmp_path):
    files = PictureFiles()
    image = write_picture(tmp_path / "a.png", size=(30, 60))
    files.prefetch(image, None, 40, (1, 1))
    files.prefetch_thumbnails([image])
    files._readers.shutdown(wait=True)
    image.unlink()
    assert files.load(image, None, 40, (1, 1)).problem == ""
    assert files.load.cache_info()[:2] == (1, 1)  # one hit, one miss
    assert files.thumbnail(image) != files.thumbnail(None)
    files.close()
    again = PictureFiles()
    assert again.thumbnails([None, tmp_path / "gone.png"])[0][:2] == b"\xff\xd8"
    assert len(set(again.thumbnails([None] * 3))) == 1


@pytest.mark.parametrize("name", ["large.jpg", "small.jpg", "large.png"])
def test_thumbnails_show_the_whole_picture_however_it_is_decoded(tmp_path, name):
    size = (300, 600) if name.startswith("large") else (30, 60)
    path = write_picture(tmp_path / name, size=size, value=200)
    small = cv2.imdecode(np.frombuffer(thumbnail(path), np.uint8), cv2.IMREAD_COLOR)
    assert small.shape == (THUMBNAIL // 2, THUMBNAIL, 3) and np.abs(small.astype(int) - 200).max() < 4


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_thumbnails_of_damaged_files_are_grey(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    assert thumbnail(tmp_path / "a.jpg") == thumbnail(None) == thumbnail(tmp_path / "gone.jpg")


def test_runs_of_both_systems_stand_side_by_side(tmp_path):
    run, other = write_browsed_run(tmp_path), write_browsed_anomalies(tmp_path)
    library = PictureLibrary([run.folder, other.folder])
    assert list(library.runs) == ["S5", "EfficientAD"]
    opened = library.runs["EfficientAD"]
    assert library.row_beside("EfficientAD", "images/d3.png") == 3
    assert library.row_beside("EfficientAD", "images/v0.png") is None  # a defect of validation
    assert list(opened.maps) == ["anomaly"] and opened.scales.keys() == {"anomaly"}
    assert opened.files(0)[0] == library.runs["S5"].files(0)[0]
    assert f"EfficientAD: teacher {TEACHER}." in library.notices
    assert not [notice for notice in library.notices if "different data" in notice]  # it leaves defects out


def test_each_system_is_called_by_its_own_words(tmp_path):
    library = PictureLibrary([write_browsed_run(tmp_path), write_browsed_anomalies(tmp_path)])
    ours, other = library.runs.values()
    assert [one.words_of("low_iou") for one in (ours, other)] == ["lowest CAM-IoU first", "lowest anomaly IoU first"]
    assert [one.own_kind("cam") for one in (ours, other)] == ["cam", "anomaly"]
    assert other.own_kind("attention") == "attention"
    assert other.why_no_map("attention") == "EfficientAD has no attention map (GAIN-MTL has one); it has: anomaly"


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("wrong_reason", ["d1", "d3", "d0", "d2", "n0", "n1"]),
        ("unsure", ["n1", "d1", "d2", "d3", "d0", "n0"]),
        ("low_iou", ["d3", "d1", "d2", "d0", "n0", "n1"]),
    ],
)
def test_orders_of_the_other_system(tmp_path, order, expected):
    opened = PictureLibrary(write_browsed_anomalies(tmp_path)).runs["EfficientAD"]
    assert names(opened, split="test", order=order) == expected
    assert opened.table["confidence"].iloc[0] == pytest.approx(0.04)  # 0.09 against 0.05


def test_a_summary_of_the_other_system_that_does_not_fit_is_told(tmp_path):
    run = write_browsed_anomalies(tmp_path)
    path = run.folder / "metrics.json"
    path.write_text(path.read_text().replace('"FN": 1', '"FN": 2'))
    with pytest.raises(
        RunError, match=r"do not belong together \(test: 1 FN and 2\); evaluate again: gainmtl evaluate"
    ):
        PictureLibrary(run)


def test_several_runs_of_the_other_system_are_told_apart(tmp_path):
    runs = [write_browsed_anomalies(tmp_path, seed=seed) for seed in (1, 2)]
    bottle = write_browsed_anomalies(tmp_path, dataset_type="mvtec", category="bottle")
    library = PictureLibrary([*runs, bottle])
    assert list(library.runs) == ["EfficientAD seed 1", "EfficientAD seed 2", "EfficientAD bottle"]
    assert library.runs["EfficientAD bottle"].root == tmp_path / "data" / "bottle"


def test_novel_pictures_can_be_asked_for(tmp_path):
    run = write_browsed_run(tmp_path)
    assert names(PictureLibrary(run).runs["S5"], novel_only=True) == []
    write_novelty(run, ["d1", "d2", "n0"])
    library = PictureLibrary(run)
    opened = library.runs["S5"]
    assert names(opened, novel_only=True) == ["d2", "n0"]  # d1 was found
    assert names(opened, novel_only=True, verdict="FN") == ["d2"]
    assert opened.table["anomaly_score"].tolist() == [0.1, 0.9, 0.9, 0.1, 0.9, 0.1, 0.1, 0.1]
    (notice,) = library.notices
    assert "/outputs/hand/efficientad/seed7" in notice and TEACHER in notice


def test_flags_of_another_evaluation_are_not_shown(tmp_path):
    run = write_browsed_run(tmp_path)
    write_novelty(run, ["d2"])
    path = run.folder / "predictions.csv"
    path.write_text(path.read_text().replace("0.9,", "0.95,"))
    assert PictureLibrary(run).runs["S5"].novelty is None


def test_flags_that_are_out_of_date_are_told(tmp_path):
    run = write_browsed_run(tmp_path)
    write_novelty(run, ["d2"])
    path = run.folder / "predictions.csv"
    path.write_text(path.read_text().replace("0.9,", "0.95,"))
    (notice,) = PictureLibrary(run).notices
    assert notice.startswith("S5: novel pictures are not marked: what is stored is of other predictions")
    assert f"gainmtl evaluate {run.folder} --efficientad-run FOLDER" in notice


def test_pictures_of_another_category_are_not_taken_for_the_same(tmp_path):
    """Categories name their pictures alike."""
    bottle = write_browsed_run(tmp_path, data_root=tmp_path / "data" / "bottle")
    runs = {
        name: write_browsed_anomalies(tmp_path, dataset_type="mvtec", category=name) for name in ("bottle", "cable")
    }
    alike = "have their pictures in different folders: pictures are matched by path alone and may not be the same"
    assert alike not in " ".join(PictureLibrary([bottle, runs["bottle"]]).notices)
    assert f"S5 and EfficientAD cable {alike}" in " ".join(PictureLibrary([bottle, runs["cable"]]).notices)


def test_categories_that_moved_are_found_in_the_folder_that_they_are_all_in(tmp_path):
    runs = [write_browsed_anomalies(tmp_path, dataset_type="mvtec", category=name) for name in ("bottle", "cable")]
    for name in ("bottle", "cable"):
        (tmp_path / "now" / name).mkdir(parents=True)
    roots = [opened.root for opened in PictureLibrary(runs, data_root=tmp_path / "now").runs.values()]
    assert roots == [tmp_path / "now" / "bottle", tmp_path / "now" / "cable"]
    (opened,) = PictureLibrary(runs[0], data_root=tmp_path / "now" / "bottle").runs.values()
    assert opened.root == tmp_path / "now" / "bottle"


def test_masks_from_the_other_system_are_told_with_its_teacher(tmp_path):
    run = write_browsed_run(tmp_path, "S6")
    path = run.folder / "metrics.json"
    path.write_text(path.read_text().replace('"label_leaks"', f'"teacher": "{TEACHER}", "label_leaks"'))
    assert PictureLibrary(run).notices == [f"S6: its attention takes masks from EfficientAD; teacher {TEACHER}."]
