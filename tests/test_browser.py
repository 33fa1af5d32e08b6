import re
from concurrent.futures import wait

import numpy as np
import pandas as pd
import pytest
import torch
from browsed import ROWS, peaked_maps, write_browsed_anomalies, write_browsed_run, write_novelty
from ipywidgets import Widget

from gainmtl_lib.browser.app import PAGE, PLACE, ROOT, CamBrowser, ask
from gainmtl_lib.browser.library import PictureLibrary
from gainmtl_lib.model import build_model
from gainmtl_lib.runs import Run, RunError, save_weights


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    return [
        write_browsed_run(folder, "S5"),
        *(write_browsed_run(folder, name, pictures=False) for name in ("S1", "S3")),
    ]


@pytest.fixture
def browser(runs):
    browser = CamBrowser(runs)
    yield browser
    browser.close()


def shown(browser):
    """Names of the visible panels' words, and the bytes of the first map."""
    visible = [k for k, panel in enumerate(browser.viewer.panels) if panel.layout.display != "none"]
    return [browser.viewer.words[k].value for k in visible], browser.viewer.images[1].value


def picture(browser):
    return re.search(r"<b>(\w+)\.png</b>", browser.headline.value)[1]


def say(browser, about=None, **changed):
    """What the page sends when somebody changed the note form while it spoke of a picture."""
    about = about or browser.note.shown
    browser.note._handle_custom_msg({"run": about["run"], "image": about["image"], "id": "7", **changed}, [])


def noted(browser):
    return browser.note.shown["text"], browser.note.shown["check_label"]


def count(browser):
    return re.search(r"(\d+) of (\d+)", browser.headline.value).group()


def test_it_opens_on_the_test_split_at_what_deserves_a_look(browser):
    assert (picture(browser), count(browser)) == ("d1", "1 of 6")
    assert browser.filters.split.value == "test" and browser.filters.order.value == "wrong_reason"
    for words in ("truth: defective (stain)", "TP · defect found", "p(defect) 0.70 ≥ 0.50", "CAM-IoU 0.05 (grid 0.70)",
                  "defect area 30.0%", "right for the wrong reason"):  # fmt: skip
        assert words in browser.headline.value
    assert ROOT in browser._dom_classes


def test_stepping_by_button_by_key_and_by_thumbnail(browser):
    browser.on.click()
    assert picture(browser) == "d3"
    browser.touch._handle_custom_msg({"step": 1}, [])
    assert picture(browser) == "d0"
    browser.touch._handle_custom_msg({"step": -1}, [])
    assert picture(browser) == "d3"
    browser.touch._handle_custom_msg({"place": 5}, [])
    assert picture(browser) == "n1" and browser.on.disabled
    browser.on.click()
    assert picture(browser) == "n1"
    browser.back.click()
    assert picture(browser) == "n0" and not browser.back.disabled


@pytest.mark.parametrize("content", [{}, {"step": 7}, {"place": "3"}, {"place": None}, {"other": 1}])
def test_messages_that_mean_nothing_are_left_alone(browser, content):
    browser.touch._handle_custom_msg(content, [])
    assert count(browser) == "1 of 6"


def test_places_outside_lead_to_the_nearest(browser):
    browser.touch._handle_custom_msg({"place": 99}, [])
    assert count(browser) == "6 of 6"
    browser.go_to(-3)
    assert count(browser) == "1 of 6"


def test_filters_say_how_many_and_begin_at_the_first(browser):
    assert [label for label, _ in browser.filters.verdict.options] == [
        "all (6)", "TP · defect found (3)", "FN · defect missed (1)", "FP · false alarm (1)", "TN · normal passed (1)",
    ]  # fmt: skip
    browser.go_to(4)
    browser.filters.verdict.value = "TP"
    assert (picture(browser), count(browser)) == ("d1", "1 of 3")
    browser.filters.order.value = "sure"
    assert picture(browser) == "d0"
    browser.filters.defect_type.value = "stain"
    assert count(browser) == "1 of 1"
    browser.filters.verdict.value = "FP"
    assert "No picture fits" in browser.headline.value and browser.what_if.button.disabled
    assert browser.viewer.layout.display == "none"
    browser.filters.verdict.value = browser.filters.defect_type.value = ""
    assert count(browser) == "1 of 6" and browser.viewer.layout.display is None


def test_another_run_stays_at_the_picture(browser):
    browser.go_to(2)
    name = picture(browser)
    browser.filters.run.value = "S3"
    assert picture(browser) == name and "<b>S3</b>" in shown(browser)[0][1]
    assert browser.filters.beside["S3"].layout.display == "none"


def test_strategies_stand_side_by_side_on_the_same_picture(browser):
    assert len(shown(browser)[0]) == 2
    browser.filters.beside["S1"].value = browser.filters.beside["S3"].value = True
    words, _ = shown(browser)
    assert [re.search(r"<b>(\w+)</b>", text)[1] for text in words[1:]] == ["S5", "S1", "S3"]
    assert all("p(defect)" in text for text in words[1:])
    browser.controls.kind.value = "attention"
    words, _ = shown(browser)
    assert "S1 has no attention map (from S3 on); it has: deciding CAM" in words[2]
    assert "attention IoU 0.05" in words[1]


def test_a_run_that_lacks_the_picture_says_so(runs, tmp_path):
    few = write_browsed_run(tmp_path, "S3", rows=ROWS.iloc[[0]], pictures=False)
    browser = CamBrowser([runs[0], few])
    browser.filters.beside["S3"].value = True
    assert "S3 was not evaluated on this picture" in shown(browser)[0][2]
    assert browser.viewer.images[2].layout.display == "none"
    assert any("S3 lacks this picture" in line for line in browser._ask())
    assert "S3 has 1 of the 8 pictures" in browser.children[3].value


def test_every_control_changes_the_picture(browser):
    browser.go_to(1)  # d3, whose map is found
    for control, value in (
        (browser.controls.scale, False),
        (browser.controls.strength, 0.2),
        (browser.controls.level, 0.9),
        (browser.controls.contour, False),
        (browser.controls.outline, False),
        (browser.controls.kind, "localization"),
        (browser.controls.kind, "none"),
    ):
        before = shown(browser)[1]
        control.value = value
        assert shown(browser)[1] != before


def test_nothing_found_is_said(browser):
    browser.filters.order.value = "stored"
    assert picture(browser) == "d0" and "Nothing found" in shown(browser)[0][1]
    browser.controls.scale.value = False
    assert "Nothing found" not in shown(browser)[0][1]


def test_only_maps_that_a_run_has_are_offered(tmp_path):
    browser = CamBrowser(write_browsed_run(tmp_path, "S1", pictures=False, data_root=tmp_path))
    assert [value for _, value in browser.controls.kind.options] == ["cam", "none"]
    assert len(browser.filters.children) == 5  # a single run needs no list of runs
    assert "is missing" in shown(browser)[0][0] or "cannot be read" in shown(browser)[0][0]


def test_moved_pictures_leave_the_maps(tmp_path):
    browser = CamBrowser(write_browsed_run(tmp_path, "S1", pictures=False))
    assert "data_root" in browser.children[3].value and browser.children[3].layout.display is None
    assert shown(browser)[1][:2] == b"\xff\xd8"
    with pytest.raises(RunError, match="no run here"):
        CamBrowser(tmp_path)


def test_notes_are_saved_at_once_and_found_by_the_next_browser(tmp_path):
    run = write_browsed_run(tmp_path)
    first = CamBrowser(run)
    say(first, text="is this a stain?")
    say(first, check_label=True)
    assert "saved" in first.note.shown["state"] and "notes.csv" in first.note.shown["state"]
    first.step(1)
    assert noted(first) == ("", False)
    assert len((run.folder / "notes.csv").read_text().splitlines()) == 3  # stepping saved nothing
    second = CamBrowser(run)
    assert noted(second) == ("is this a stain?", True)
    second.filters.marked_only.value = True
    assert count(second) == "1 of 1"
    say(second, text="no, a scratch")
    first.step(-1)
    assert noted(first) == ("no, a scratch", True)


def test_a_note_goes_to_the_picture_that_the_page_showed(tmp_path):
    browser = CamBrowser([write_browsed_run(tmp_path, name, pictures=False) for name in ("S5", "S3")])
    seen = browser.note.shown
    browser.step(1)
    browser.filters.run.value = "S3"
    say(browser, seen, check_label=True)
    assert seen["image"] == "images/d1.png" and browser.note.shown["image"] == "images/d3.png"
    assert browser.library.runs["S5"].notes.marked() == {"images/d1.png"}
    assert browser.library.runs["S3"].notes.marked() == set()
    assert noted(browser) == ("", False) and browser.note.shown["state"].startswith("images/d1.png: saved")
    assert browser.note.shown["answered"] == "7"


def test_a_mark_on_a_stale_page_keeps_what_somebody_else_wrote(tmp_path):
    run = write_browsed_run(tmp_path, pictures=False)
    first, second = CamBrowser(run), CamBrowser(run)
    say(second, text="looks like a stain")
    assert noted(first) == ("", False)
    say(first, check_label=True)
    assert noted(first) == ("looks like a stain", True)
    say(second, text="a scratch after all")
    assert CamBrowser(run).note.shown["check_label"] is True


@pytest.mark.parametrize(
    "content",
    [{}, {"text": "x"}, {"run": "S5", "image": "images/d1.png", "id": "1"},
     {"run": "S5", "image": "images/d1.png", "id": "1", "text": 3, "check_label": "yes"},
     {"run": "S9", "image": "images/d1.png", "id": "1", "text": "x"},
     {"run": "S5", "image": "/etc/passwd", "id": "1", "text": "x"}],
)  # fmt: skip
def test_reports_of_the_note_form_that_mean_nothing_are_left_alone(browser, content):
    browser.note._handle_custom_msg(content, [])
    assert not browser.library.runs["S5"].notes.path.exists() and noted(browser) == ("", False)


def test_notes_that_cannot_be_kept_are_told(tmp_path):
    run = write_browsed_run(tmp_path, pictures=False)
    (run.folder / "notes.csv").write_text("my;own;columns\n")
    browser = CamBrowser(run)
    assert "expected the columns" in browser.note.shown["state"]
    say(browser, text="x")
    assert "not saved" in browser.note.shown["state"]
    assert noted(browser) == ("x", False) and not browser.note.shown["kept"]  # it can be read and saved yet
    assert (run.folder / "notes.csv").read_text() == "my;own;columns\n"
    browser.filters.marked_only.value = True
    assert "No picture fits" in browser.headline.value and "expected the columns" in browser.note.shown["state"]
    assert browser.note.shown["image"] == ""


@pytest.fixture
def answering(tmp_path):
    """A run with weights, though untrained ones."""
    run = write_browsed_run(tmp_path)
    torch.manual_seed(0)
    save_weights(build_model(run.settings), run.folder / "model.safetensors")
    return run


def test_the_counterfactual_is_asked_of_the_model_at_a_click(answering):
    browser = CamBrowser(answering)
    browser.what_if.button.click()
    assert "Computed now, by the run&#x27;s model." in browser.what_if.answer.value
    browser.step(1)
    assert browser.what_if.answer.value == ""


def test_without_an_annotation_the_predicted_region_is_meant(answering):
    opened = PictureLibrary(answering).runs["S5"]
    maps = np.zeros((8, 16, 16), np.float16)
    np.save(answering.folder / "maps" / "localization.npy", maps)
    opened = PictureLibrary(answering).runs["S5"]
    assert "nothing to take away" in ask(opened, 4)[0]
    maps[:, 4:8, 4:8] = 1
    np.save(answering.folder / "maps" / "localization.npy", maps)
    opened = PictureLibrary(answering).runs["S5"]
    assert "Computed now" in ask(opened, 4)[-1]


def test_without_the_model_the_stored_answer_is_read(browser):
    opened = browser.library.runs["S5"]
    for row, words in (
        (0, ["turns to normal (0.90 → 0.20), but not", "(0.90): the decision rests on this region", "From the stored"]),
        (1, ["stays defective (0.70 → 0.60), as", "does not hang on this region alone", "From the stored evaluation"]),
        (2, ["The verdict is normal already (0.30)", "From the stored evaluation"]),
        (3, ["turns to normal (0.80 → 0.10), but so it does", "the flip proves nothing"]),
        (4, ["stored no answer", "model.safetensors"]),
    ):
        said = " ".join(ask(opened, row))
        assert all(word in said for word in words), said
        assert "Not asked of the model" in said
    assert "strategy S1 has no counterfactual path" in ask(browser.library.runs["S1"], 0)[0]


@pytest.mark.parametrize(
    ("without", "control", "words"),
    [
        (0.6, 0.2, "stays defective (0.90 → 0.60), yet turns with an equal area suppressed elsewhere (0.20): the decision "
                   "rests on something else."),
        (0.2, np.nan, "turns to normal (0.90 → 0.20), but the mask has no room to move off it: without a control the flip "
                      "proves little."),
    ],
)  # fmt: skip
def test_a_stored_answer_claims_no_more_than_the_control_allows(tmp_path, without, control, words):
    rows = ROWS.iloc[[0]].assign(cf_probability=without, cf_control_probability=control)
    opened = PictureLibrary(write_browsed_run(tmp_path, rows=rows, pictures=False)).runs["S5"]
    said = ask(opened, 0)
    assert said[:2] == [f"S5: Without the annotated defect the verdict {words}", "From the stored evaluation."]


def test_bars_beside_a_letterboxed_picture_are_no_defect(tmp_path):
    """A picture of 32 x 24 fills rows 8 to 56 of an input of 64; what the model marks lies below them."""
    run = write_browsed_run(tmp_path, rows=ROWS.iloc[[4]], resize="letterbox")
    save_weights(build_model(run.settings), run.folder / "model.safetensors")
    maps = np.zeros((1, 16, 16), np.float16)
    maps[:, 15] = 1
    np.save(run.folder / "maps" / "localization.npy", maps)
    assert "nothing to take away" in ask(PictureLibrary(run).runs["S5"], 0)[0]


def test_a_damaged_model_and_missing_pictures_fall_back_to_what_is_stored(answering, tmp_path):
    (answering.folder / "model.safetensors").write_bytes(b"broken")
    assert "From the stored evaluation" in " ".join(ask(PictureLibrary(Run(answering.folder)).runs["S5"], 0))
    lost = PictureLibrary(answering, data_root=tmp_path / "nowhere").runs["S5"]
    assert "of the pictures is missing" in ask(lost, 0)[-1]


def test_a_run_without_the_path_says_so(tmp_path):
    run = write_browsed_run(tmp_path, pictures=False, use_counterfactual=False)
    assert "use_counterfactual: false" in ask(PictureLibrary(run).runs["S5"], 0)[0]


def test_as_many_widgets_for_a_thousand_rows_as_for_eight(tmp_path):
    def made(run):
        before = set(Widget.widgets)
        browser = CamBrowser(run)
        return browser, len(set(Widget.widgets) - before)

    _, few = made(write_browsed_run(tmp_path / "few", pictures=False))
    rows = pd.concat([ROWS] * 125, ignore_index=True)
    rows["name"] = [f"p{number}" for number in range(len(rows))]
    browser, many = made(write_browsed_run(tmp_path / "many", rows=rows, pictures=False))
    assert many == few and count(browser) == "1 of 750"
    assert browser.strip.pictures.value.count("<img") == PAGE
    browser.strip.on.click()
    assert count(browser) == f"{PAGE + 1} of 750" and f'{PLACE}="{PAGE}"' in browser.strip.pictures.value
    browser.strip.back.click()
    assert count(browser) == "1 of 750" and browser.strip.back.disabled
    read_ahead = browser.library.pictures._ahead
    assert len(read_ahead) == PAGE and len(wait(read_ahead, 30).done) == PAGE  # the page after this one
    before = browser.strip.pictures.value
    browser.step(1)
    assert browser.strip.pictures.value is before and f"='{1}'" in browser.strip.frame.value


def test_names_from_files_never_become_markup(tmp_path):
    rows = ROWS.assign(defect_type=ROWS["defect_type"].replace("stain", "<script>alert(1)</script>"))
    browser = CamBrowser(write_browsed_run(tmp_path, rows=rows, pictures=False))
    assert "<script" not in browser.headline.value and "&lt;script&gt;" in browser.headline.value


def test_hand_made_maps_peak_where_they_should():
    assert peaked_maps([3.0, 5.0]).reshape(2, -1).argmax(axis=1).tolist() == [0, 1]


def test_both_systems_stand_side_by_side(tmp_path):
    browser = CamBrowser([write_browsed_run(tmp_path), write_browsed_anomalies(tmp_path)])
    assert browser.controls.kind.options[0] == ("CAM / anomaly", "cam")
    browser.filters.beside["EfficientAD"].value = True
    words, _ = shown(browser)
    assert "p(defect) 0.70" in words[1] and "CAM-IoU 0.05 (grid 0.70)" in words[1]
    assert "anomaly score 0.070" in words[2] and "anomaly IoU 0.05 (grid 0.70)" in words[2]
    browser.controls.kind.value = "attention"
    assert "EfficientAD has no attention map (GAIN-MTL has one); it has: anomaly" in shown(browser)[0][2]
    browser.what_if.button.click()
    assert "EfficientAD: this system has no counterfactual path" in browser.what_if.answer.value


def test_the_other_system_alone(tmp_path):
    run = write_browsed_run(tmp_path)
    browser = CamBrowser(write_browsed_anomalies(tmp_path))
    assert [value for _, value in browser.controls.kind.options] == ["anomaly", "none"]
    for words in ("anomaly score 0.070 ≥ 0.050", "anomaly IoU 0.05 (grid 0.70)", "right for the wrong reason"):
        assert words in browser.headline.value
    assert "lowest anomaly IoU first" in [label for label, _ in browser.filters.order.options]
    assert "anomaly score 0.070, right for the wrong reason" in browser.strip.pictures.value
    assert "p(defect)" not in browser.headline.value + browser.strip.pictures.value
    before = shown(browser)[1]
    browser.controls.kind.value = "none"
    assert before != shown(browser)[1] and not (run.folder / "notes.csv").exists()


def test_novel_pictures_carry_a_badge_and_can_be_filtered(tmp_path):
    run, other = write_browsed_run(tmp_path), write_browsed_run(tmp_path, "S3", pictures=False)
    write_novelty(run, ["d1", "d2"])
    browser = CamBrowser([run, other])
    assert (
        "anomaly score 0.900 &gt; 0.500" in browser.headline.value and "novel:" not in browser.headline.value
    )  # found
    browser.filters.novel_only.value = True
    assert (picture(browser), count(browser)) == ("d2", "1 of 1")
    assert "novel: called normal, yet unlike the good parts" in browser.headline.value
    assert 'gainmtl-novel">?' in browser.strip.pictures.value
    browser.filters.beside["S3"].value = True
    assert "novel:" in shown(browser)[0][1] and "novel:" not in shown(browser)[0][2]
    browser.filters.run.value = "S3"  # which nobody asked
    assert browser.filters.novel_only.disabled and not browser.filters.novel_only.value
    assert count(browser).endswith("of 6") and "anomaly score" not in browser.headline.value


def test_anomaly_scores_that_differ_look_different(tmp_path):
    """They are of the order of 0.1 by construction: two places would show 0.09 on both sides of a threshold."""
    browser = CamBrowser(write_browsed_anomalies(tmp_path, rows=ROWS.assign(probability=ROWS["probability"] / 10)))
    assert "anomaly score 0.007 &lt; 0.050" in browser.headline.value
    assert "anomaly score 0.009" in browser.strip.pictures.value


def test_a_model_whose_masks_come_from_outside_is_not_asked(tmp_path):
    run = write_browsed_run(tmp_path, "S6", mask_source="oracle")
    said = ask(PictureLibrary(run).runs["S6"], 0)
    assert said[-2:] == [
        "From the stored evaluation.",
        "Not asked of the model: its attention takes masks from outside (oracle), which are not at hand.",
    ]
