"""The audit report as one file: complete, self-contained, the same each time."""

import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from audited import measured, row, write_audited
from browsed import TEACHER, write_novelty
from click.testing import CliRunner

from gainmtl_lib.audit.report import write_report
from gainmtl_lib.cli import main
from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import FileError, RunError, load_run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few resamples and no figures; the report that is looked at, `written`, has them."""
    monkeypatch.setattr("gainmtl_lib.stats.RESAMPLES", 50)
    drawn = {"classification": "data:image/svg+xml;base64,", "trade_off": "data:image/svg+xml;base64,"}
    monkeypatch.setattr("gainmtl_lib.audit.report.report_figures", lambda audit: drawn)


def rows():
    flips = {"cf_probability": 0.1, "cf_control_probability": 0.9}
    found = [row("val", 1, 0.9, **flips), row("val", 1, 0.6, **flips), row("val", 0, 0.1)]
    for split in ("test", "test_shift"):
        found += [row(split, 1, 0.9, **flips), row(split, 1, 0.2), row(split, 0, 0.1), row(split, 0, 0.7)]
        found += [row(split, 1, 0.8, cam_iou=0.0, point_game=0.0, defect_area=0.1, defect_type="찍힘")]
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_audited(tmp_path_factory.mktemp("report"), rows(), pictures=True)


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """The report with its figures, twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gainmtl_lib.stats.RESAMPLES", 50)
        folder = tmp_path_factory.mktemp("written")
        return [write_report(run, folder / "1.html"), write_report(load_run(run), folder / "2.html")]


@pytest.fixture(scope="module")
def html(written):
    return written[0].read_text("utf-8")


class Page(HTMLParser):
    """Tags, sources and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.open, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [
            value for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster")
        ]
        if tag not in ("meta", "img", "br", "col", "path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words)).replace("\u00a0", " ")


def test_nothing_is_fetched_from_anywhere(html):
    page = Page(html)
    assert not page.open  # every tag is closed
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert all(source.startswith(("data:image/", "#")) for source in page.sources) and len(page.sources) > 20
    assert not re.search(r"https?://|file://|url\(|@import", html)
    assert html.count("data:image/svg+xml;base64,PD94") == 2  # both figures: <?x…
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html


def test_it_answers_every_question(html):
    text = Page(html).text
    for heading in ("What was trained on what", "Known limits", "Decision", "Escapes and overkill", "By defect type",
                    "Explanation", "Test and shifted test", "Novel defects", "Pictures", "Record"):  # fmt: skip
        assert heading in text
    assert "On test 1 of 3 defects escape" in text and "1 of 2 normal pictures are rejected" in text
    assert "The threshold for a recall of 99 %, chosen on validation, is 0.350" in text
    assert "Validation has too few defects (2) to know." in text
    assert "imagenet:some_weights" in text and "random weights" not in text
    assert "flip minus control" in text and "One seed" in text and "From test to test_shift recall" in text
    assert "찍힘" in text and "mask outlined" in text
    assert text.count("test, right for the wrong reason: 1") == 1


def test_it_prints(html):
    assert "@page" in html and "break-inside: avoid" in html and "counter(page)" in html


def test_the_same_run_gives_the_same_bytes(written):
    first, second = (path.read_bytes() for path in written)
    assert first == second and len(first) < 1_000_000


def test_it_lies_in_the_run_by_default(tmp_path):
    folder = write_audited(tmp_path, rows())
    assert write_report(folder) == folder / "report.html" and (folder / "report.html").is_file()


def test_names_from_outside_are_text(tmp_path):
    named = [*rows(), row("test", 1, 0.1, image="<img src=x onerror=alert(1)>.png", defect_type="<b>R&D</b>")]
    html = write_report(write_audited(tmp_path, named)).read_text("utf-8")
    assert "<img src=x" not in html and "<b>R&D" not in html
    assert "&lt;b&gt;R&amp;D&lt;/b&gt;" in html and "&lt;img src=x onerror" in html


def test_korean_file_names_are_read_and_written(tmp_path):
    named = [*rows(), row("test", 1, 0.1, image="images/test/불량/사진 1.png", mask="masks/test/불량/사진 1.png")]
    page = Page(write_report(write_audited(tmp_path, named, pictures=True)).read_text("utf-8"))
    assert "images/test/불량/사진 1.png" in page.text and "not at hand" not in page.text


def test_random_weights_stand_beside_every_result(tmp_path):
    html = write_report(write_audited(tmp_path, rows(), manifest={"pretrained": "random"})).read_text("utf-8")
    captions = re.findall(r"<caption>(.*?)</caption>", html, re.DOTALL)
    facts = {"Model", "Data", "Training", "Files of the run (SHA-256)"}
    results = [caption for caption in captions if caption not in facts]
    assert len(results) >= 6 and all('<span class="mark">random weights</span>' in caption for caption in results)


def test_moved_pictures_leave_a_report_of_maps(tmp_path):
    text = Page(write_report(write_audited(tmp_path, rows())).read_text("utf-8")).text
    assert "could not be read below" in text and "the maps are shown alone" in text
    assert "Pictures not at hand" in text and "--data-root" in text and "mask outlined" not in text


def test_moved_pictures_are_shown_from_where_they_are(tmp_path):
    folder = write_audited(tmp_path / "then", rows(), pictures=True)
    (tmp_path / "then" / "data").rename(tmp_path / "now")
    text = Page(write_report(folder, data_root=tmp_path / "now").read_text("utf-8")).text
    assert "not at hand" not in text and "mask outlined" in text and f"read from {tmp_path / 'now'} when" in text
    assert str(tmp_path / "then" / "data") in text and "d" * 64 in text  # what the training recorded
    with pytest.raises(DataError, match="gone: no such folder; data_root is the folder that"):
        write_report(folder, data_root=tmp_path / "gone")


def test_the_command_names_the_file_as_it_is_called(tmp_path):
    folder = write_audited(tmp_path, rows(), pictures=True)
    (tmp_path / "data").rename(tmp_path / "now")
    command = ["report", str(folder), "--output", str(tmp_path / "[x].html"), "--data-root", str(tmp_path / "now")]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0 and "[x].html" in result.output
    assert "mask outlined" in (tmp_path / "[x].html").read_text("utf-8")


def test_faithfulness_is_shown_as_it_was_measured(tmp_path):
    folder = write_audited(tmp_path, rows())
    digest = hashlib.sha256((folder / "predictions.csv").read_bytes()).hexdigest()
    (folder / "faithfulness.json").write_text(json.dumps(measured(predictions=digest, road="worse than a random map")))
    text = Page(write_report(folder).read_text("utf-8")).text
    assert "deletion 0.400 0.200 0.200 0.100 to 0.300 faithful" in text
    assert "deciding head 0.600 0.700 0.200 25 %" in text and "10 %, 50 % of them" in text
    assert "Map not shown to be faithful" in text and "of test, ROAD: worse than a random map." in text
    assert "Faithfulness of the map not measured" not in text


def test_novel_defects_are_shown_with_what_the_flag_cannot_say(tmp_path):
    folder = write_audited(tmp_path, rows())
    asked = Page(write_report(folder).read_text("utf-8")).text
    assert "8 Novel defects" in asked and "gainmtl evaluate RUN --efficientad-run FOLDER does." in asked
    write_novelty(load_run(folder), ["test/defective/004", "test/normal/006", "test/defective/007"], unseen=["찍힘"])
    text = Page(write_report(folder).read_text("utf-8")).text
    assert "On test EfficientAD flags 1 of 1 escaped defects as novel, and 0 of 1 normal pictures that pass." in text
    assert f"Its teacher: {TEACHER}. Types that no training picture shows: 찍힘 (1 of 1 anomalous)." in text
    assert "찍힘 not in training 1 1 (100 %) 1 (100 %) 0 (0 %)" in text  # found by the verdict
    assert "normal 2 1 (50 %) 1 (50 %) 0 (0 %)" in text and "scratch 2 1 (50 %) 1 (50 %) 1 (50 %)" in text
    assert "It cannot show that the picture has a defect" in text and "anomaly score above 0.500" in text
    assert text.count("called normal, flagged as novel") == 1  # beside the missed defect
    path = folder / "predictions.csv"
    path.write_text(path.read_text("utf-8").replace("0.2,", "0.21,"), "utf-8")
    assert "Not asked (what is stored is out of date)" in Page(write_report(folder).read_text("utf-8")).text


def test_flags_of_a_random_teacher_are_marked_where_they_are_shown(tmp_path):
    folder = write_audited(tmp_path, rows())
    write_novelty(load_run(folder), ["test/defective/004"])
    assert "random teacher" not in Page(write_report(folder).read_text("utf-8")).text
    path = folder / "novelty.json"
    path.write_text(path.read_text("utf-8").replace(TEACHER, "random (untrained teacher)"), "utf-8")
    text = Page(write_report(folder).read_text("utf-8")).text
    assert "8 Novel defects random teacher" in text and "what EfficientAD flags random teacher" in text
    assert "9 Pictures random teacher" not in text


def test_masks_of_an_efficientad_run_are_told_with_their_teacher(tmp_path):
    metrics = {"mask_source": "efficientad", "efficientad_run": "/outputs/e/efficientad/seed1", "teacher": TEACHER}
    text = Page(write_report(write_audited(tmp_path, rows(), strategy="S6", metrics=metrics)).read_text("utf-8")).text
    assert f"from: efficientad, the run /outputs/e/efficientad/seed1 (teacher: {TEACHER})." in text


def test_a_run_with_the_least_in_it(tmp_path):
    bare = dict.fromkeys(("defect_area", "cam_iou", "grid_iou", "point_game", "energy_inside"), np.nan) | {"mask": None}
    found = [row("test", 1, 0.9, **bare), row("test", 0, 0.1)]
    metrics = {"map_scales": {}, "threshold_from": "default, no validation split"}
    folder = write_audited(tmp_path, found, strategy="S1", metrics=metrics)
    (folder / "manifest.json").write_text('{"status": "complete"}')
    text = Page(write_report(folder, required_recall=1.0).read_text("utf-8")).text
    for said in ("No validation split", "No masks", "No shifted split", "No counterfactual", "no absolute scale",
                 "cannot be chosen without validation defects", "not recorded", "Not measured"):  # fmt: skip
        assert said in text


def test_one_class_on_test(tmp_path):
    text = Page(
        write_report(write_audited(tmp_path, [row("val", 0, 0.1), row("test", 0, 0.1)])).read_text("utf-8")
    ).text
    assert "A class is missing" in text and "On test – defects escape" not in text


@pytest.mark.parametrize("required", [0, 1.5])
def test_a_recall_outside_its_range(run, tmp_path, required):
    with pytest.raises(ValueError, match=r"required_recall must be a share of the defects in \(0, 1\]"):
        write_report(run, tmp_path / "r.html", required_recall=required)
    assert not list(tmp_path.iterdir())


def test_no_run_an_unfinished_one_and_one_that_is_not_evaluated(tmp_path):
    with pytest.raises(RunError, match="no run here"):
        write_report(tmp_path)
    folder = write_audited(tmp_path, rows())
    (folder / "manifest.json").write_text('{"status": "running"}')
    with pytest.raises(RunError, match="the run is not finished"):
        write_report(folder)
    (folder / "manifest.json").write_text('{"status": "complete"}')
    (folder / "predictions.csv").unlink()
    with pytest.raises(RunError, match="not evaluated; first: gainmtl evaluate"):
        write_report(load_run(folder))
    assert not (folder / "report.html").exists()


def test_a_path_that_cannot_be_written(run, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileError, match="taken: could not be written"):
        write_report(run, tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
