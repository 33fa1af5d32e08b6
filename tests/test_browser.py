"""The CAM browser: runs opened, notes, panels, and what its widgets show."""

import re

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from browsed import ROWS, TEACHER, rewrite, write_browsed_anomalies, write_browsed_run, write_novelty
from drawn_data import truncate_file
from ipywidgets import Widget
from tiny import tiny_settings

from gainmtl_lib.browser import library
from gainmtl_lib.browser.app import PAGE, PLACE, CamBrowser
from gainmtl_lib.browser.library import ORDERS, Look, Notes, PictureFiles, ask, open_runs
from gainmtl_lib.model import build_model
from gainmtl_lib.runs import Run, RunError, save_weights


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    return {name: write_browsed_run(folder, name, pictures=name == "S5") for name in ("S5", "S1", "S3")}


@pytest.fixture(scope="module")
def both(runs, tmp_path_factory):
    data = runs["S5"].settings.data_root
    return [runs["S5"], write_browsed_anomalies(tmp_path_factory.mktemp("both"), data_root=data)]


@pytest.fixture
def browser(runs):
    return CamBrowser(list(runs.values()))


def opened(run, **where):
    return next(iter(open_runs(run, **where).values()))


def told(runs, **where):
    return " ".join(library.notices(list(open_runs(runs, **where).values())))


def names(one, **choice):
    return " ".join(one.image(row)[7:9] for row in one.choose(**choice))


def shown(browser):
    """Words of the visible panels, and the bytes of the first map."""
    visible = [k for k, panel in enumerate(browser.viewer.panels) if panel.layout.display != "none"]
    return [browser.viewer.words[k].value for k in visible], browser.viewer.images[1].value


def at(browser):
    """The picture that is shown, and its place: ``d1, 1 of 6``."""
    place, name = re.search(r"(\d+ of \d+).*<b>(\w+)\.png", browser.headline.value).groups()
    return f"{name}, {place}"


def test_orders_with_what_has_no_answer_last_and_filters(both):
    orders = {
        "wrong_reason": "d1 d3 d0 d2 n0 n1", "unsure": "n1 d1 d2 d3 d0 n0", "sure": "d0 n0 d3 d2 d1 n1",
        "low_iou": "d3 d1 d2 d0 n0 n1", "high_iou": "d0 d2 d1 d3 n0 n1", "large": "d1 d3 d0 d2 n0 n1",
        "small": "d2 d0 d3 d1 n0 n1", "stored": "d0 d1 d2 d3 n0 n1",
    }  # fmt: skip
    ours, other = map(opened, both)
    assert {order: names(ours, split="test", order=order) for order in ORDERS} == orders
    del orders["sure"]  # tenths of the other's scores do not tie
    assert {order: names(other, split="test", order=order) for order in orders} == orders
    assert names(ours, verdict="TP", defect_type="stain") == "d1 v0" and names(ours, verdict="FP", split="val") == ""
    assert ours.counts("split", split="test", verdict="TP", order="large") == {"test": 3, "val": 1}


def test_names_are_as_long_as_it_takes_and_what_cannot_be_browsed_is_told(tmp_path, runs):
    seeds = [write_browsed_run(tmp_path, seed=seed, pictures=False) for seed in (1, 2)]
    assert list(open_runs([*seeds, runs["S3"]])) == ["S5 seed 1", "S5 seed 2", "S3"]
    again = write_browsed_run(tmp_path, seed=1, experiment="again", pictures=False)
    assert list(open_runs([seeds[0], again])) == ["S5 seed 1 hand", "S5 seed 1 again"]
    others = [write_browsed_anomalies(tmp_path, seed=seed) for seed in (1, 2)]
    assert list(open_runs(others)) == ["EfficientAD seed 1", "EfficientAD seed 2"]
    truncate_file(again.folder / "metrics.json")
    for given, message in (([], "no run was given"), (tmp_path, "no run here"), (again.folder, "metrics.json: cannot"),
                           ([seeds[0], seeds[0].folder], "given twice")):  # fmt: skip
        with pytest.raises(RunError, match=message):
            CamBrowser(given)


def test_what_does_not_fit_or_is_lacking_results_that_are_none_and_teachers_are_told(tmp_path, runs, both):
    half = write_browsed_run(tmp_path, "S3", rows=ROWS.iloc[[3, 1]])
    browser = CamBrowser([runs["S5"], half])
    assert "S3 has 2 of the 8 pictures of S5" in browser.notices.value
    browser.filters.beside["S3"].value = True
    assert "S3 was not evaluated" not in shown(browser)[0][2]
    browser.go_to(2)
    assert "S3 was not evaluated on this picture" in shown(browser)[0][2]
    browser.what_if.click()
    assert "S3 lacks this picture" in browser.answer.value
    renamed = write_browsed_run(tmp_path, "S4", rows=ROWS.assign(name="x" + ROWS["name"]), digest="other")
    said = told([runs["S5"], renamed])
    assert "S5 and S4 have no picture in common; each can be browsed by itself" in said and "different data" not in said
    changed = write_browsed_run(tmp_path, "S1", digest="other", pictures=False)
    assert "S5 and S1 are of different data: pictures are matched by path alone" in told([runs["S5"], changed])
    assert "different data" not in told(both)  # EfficientAD leaves defects out: that its digest is another says nothing
    assert f"EfficientAD: teacher {TEACHER}." in told(both)
    assert "no defect is annotated" in told(write_browsed_run(tmp_path / "bare", masks=False, pictures=False))
    run = write_browsed_run(tmp_path, "S6")
    rewrite(run.folder / "metrics.json", '"label_leaks": false', f'"label_leaks": true, "teacher": "{TEACHER}"')
    assert "S6 (oracle): was given the ground truth as its mask; what it shows is no result" in told(run)
    assert f"takes masks from EfficientAD; teacher {TEACHER}." in told(run)


def test_pictures_that_moved_are_told_and_found_again(tmp_path):
    run = write_browsed_run(tmp_path / "then")
    there = tmp_path / "then" / "data"
    here = there.rename(tmp_path / "now")
    browser = CamBrowser(run)
    assert str(there) in browser.notices.value and "data_root" in browser.notices.value
    assert opened(run).files(0) == (None, None) and shown(browser)[1][:2] == b"\xff\xd8"  # on a grey ground
    assert told(run, data_root=here) == "" and opened(run, data_root=here).files(0)[1].is_file()
    # Categories are found in the folder that they are all in.
    others = [write_browsed_anomalies(tmp_path, dataset_type="mvtec", category=name) for name in ("bottle", "cable")]
    for name in ("bottle", "cable"):
        (here / name).mkdir()
    found = {name: one.root.name for name, one in open_runs(others, data_root=here).items()}
    assert found == {"EfficientAD bottle": "bottle", "EfficientAD cable": "cable"}
    assert opened(others[0], data_root=here / "bottle").root == here / "bottle"
    ours = write_browsed_run(tmp_path, data_root=tmp_path / "data" / "bottle")
    assert "S5 and EfficientAD cable are of different data" in told([ours, others[1]])  # though named alike


def test_what_is_said_is_read_back_and_no_earlier_line_is_lost(tmp_path):
    notes = Notes(tmp_path / "notes.csv")
    assert notes.last() == {} and notes.marked() == [] and not notes.path.exists()
    said = notes.save("a.png", check_label=True, text='  긁힘, or "stain"?\nask again  ')
    assert said.text == '긁힘, or "stain"?\nask again' and "T" in said.time
    assert Notes(notes.path).last() == {"a.png": said} and notes.marked() == ["a.png"]
    notes.save("a.png", check_label=False, text="NA")
    lines = pd.read_csv(notes.path, keep_default_na=False)[["image", "check_label", "note"]].to_numpy().tolist()
    assert lines == [["a.png", "yes", said.text], ["a.png", "", "NA"]]
    assert notes.last()["a.png"].text == "NA" and notes.marked() == []
    assert notes.path.read_bytes().count(b"\xef\xbb\xbf") == 1  # by which Excel knows the encoding
    notes.path.write_text("image,note,reviewer,time,check_label\nx.png,odd,Kim,2026-01-01,TRUE", encoding="utf-8")
    notes.save("a.png", check_label=True, text="new")
    lines = pd.read_csv(notes.path, keep_default_na=False).to_numpy().tolist()  # columns of others are kept
    assert lines[0] == ["x.png", "odd", "Kim", "2026-01-01", "TRUE"] and notes.marked() == ["x.png", "a.png"]
    for content in (b"image;note\na;b\n", b"\xff\xfe\x00x", b"", b'image,note\n"'):  # unreadable: never written over
        notes.path.write_bytes(content)
        with pytest.raises(RunError, match=r"notes\.csv: .* mend or rename"):
            notes.save("a.png", check_label=False, text="x")
        assert notes.path.read_bytes() == content and notes.marked() == []


def panel(run, row, look):
    one = opened(run)
    return library.map_panel(one, row, PictureFiles().load(*one.files(row), 200, one.run.settings.image_size), look)


def colours(jpeg):
    """How far from grey each pixel of the picture is, without the band below it."""
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return np.ptp(pixels[:150].astype(int), axis=2)


def test_what_a_map_does_not_show_is_said_and_a_calm_picture_stays_calm(runs, tmp_path):
    calm, words = panel(runs["S5"], 0, Look(outline=False))  # its peak of 1 is below the floor of 2
    assert "Nothing found" in words[0] and "2.00" in words[0] and colours(calm).mean() < 4
    glowing, words = panel(runs["S5"], 0, Look(outline=False, absolute=False))
    assert words == [] and colours(glowing).mean() > 6
    assert panel(runs["S5"], 3, Look())[1] == []  # its peak is the ceiling
    assert panel(runs["S1"], 0, Look(kind="attention"))[1] == ["S1 has no attention map; it has: CAM"]
    assert "No absolute scale" in panel(runs["S5"], 0, Look(kind="attention"))[1][0]
    flat = write_browsed_run(tmp_path, "S1", scales={"cam": {"floor": 3.0, "ceiling": 3.0}})
    assert "On defects this map rarely peaks above the floor" in panel(flat, 5, Look())[1][0]


@pytest.mark.parametrize(("resize", "height"), [("squash", 24 / 64), ("letterbox", (24 - 8) / 48)])
def test_a_map_lies_where_the_network_saw_it(tmp_path, resize, height):
    """A picture of 32 x 24 fills rows 8 to 56 of a letterboxed input of 64; the map glows around row 24."""
    run = write_browsed_run(tmp_path, "S1", resize=resize)
    maps = np.zeros((8, 4, 4), np.float16)
    maps[:, 1] = 9
    np.save(run.folder / "maps" / "cam.npy", maps)
    drawn, _ = panel(run, 0, Look(outline=False, level=1.0, strength=1.0))
    assert np.average(np.arange(150), weights=(colours(drawn) > 30).sum(axis=1)) == pytest.approx(150 * height, abs=2)


def test_the_counterfactual_is_asked_of_the_model_while_it_is_there_else_the_stored_answer_is_read(
    runs, both, tmp_path
):
    small = ("backbone_arch", "out_indices", "fpn_channels", "attention_channels", "head_channels", "map_channels")
    sizes = {name: getattr(tiny_settings(tmp_path), name) for name in small}
    run = write_browsed_run(tmp_path, threshold=0.0, **sizes)  # calls everything defective
    torch.manual_seed(0)
    save_weights(build_model(run.settings), run.folder / "model.safetensors")
    browser = CamBrowser(run)
    browser.what_if.click()
    assert "Without the annotated defect" in browser.answer.value
    assert "Computed now, by the run&#x27;s model." in browser.answer.value
    browser.step(1)
    assert browser.answer.value == ""
    assert "folder" in ask(opened(run, data_root=tmp_path / "nowhere"), 0)[-1]
    (run.folder / "model.safetensors").write_bytes(b"broken")
    assert "From the stored evaluation." in ask(opened(Run(run.folder)), 0)
    flips, _, _, proves_nothing, normal = (" ".join(ask(opened(runs["S5"]), row)) for row in range(5))
    assert "turns to normal (0.90 → 0.20), but not" in flips and "(0.90): the decision rests on this region" in flips
    assert "turns to normal (0.80 → 0.10), but so it does" in proves_nothing and "Not asked of the model" in flips
    assert "stored no answer" in normal and "model.safetensors" in normal
    plain = write_browsed_run(tmp_path / "plain", pictures=False, use_counterfactual=False)
    for run, name in ((runs["S1"], "S1"), (both[1], "EfficientAD"), (plain, "S5")):
        [said] = ask(opened(run), 0)
        told = f"{name} has no counterfactual path; S5 to S8 have one unless use_counterfactual is false."
        assert said == told
    evidence = opened(write_browsed_run(tmp_path / "s8", "S8", map_stride=4, evidence_share=0.1))
    assert ask(evidence, 0)[0] == flips.replace("S5: ", "S8: ").split(" From the stored")[0]
    [calm] = panel(evidence.run, 0, Look(outline=False))[1]
    assert calm.endswith("the map stays below 2.00, from where on evidence speaks for a defect.")
    assert panel(evidence.run, 0, Look(kind="attention"))[1] == [
        "S8 has no attention map; it has: CAM and localization"
    ]


def test_it_opens_at_what_deserves_a_look_and_steps_by_button_by_key_and_by_thumbnail(runs, monkeypatch):
    monkeypatch.setattr(Run, "model", property(lambda _: pytest.fail("a model was asked for")))
    browser = CamBrowser(runs["S5"].folder)
    [one] = browser.opened.values()
    assert isinstance(one.maps["cam"], np.memmap) and told(runs["S5"]) == ""
    assert at(browser) == "d1, 1 of 6"
    for words in ("truth: defective (stain)", "TP · defect found", "p(defect) 0.70 ≥ 0.50", "CAM-IoU 0.05 (grid 0.70)",
                  "defect area 30.0%", "right for the wrong reason"):  # fmt: skip
        assert words in browser.headline.value
    for told_by_page, expected in (
        ({"step": 1}, "d3, 2 of 6"), ({"place": 2}, "d0, 3 of 6"), ({"step": -1}, "d3, 2 of 6"),
        ({"place": 99}, "n1, 6 of 6"), ({"place": -3}, "d1, 1 of 6"),
    ):  # fmt: skip
        browser.touch._handle_custom_msg(told_by_page, [])
        assert at(browser) == expected and browser.on.disabled == (expected == "n1, 6 of 6")
    for button, expected in ((browser.on, "d3, 2 of 6"), (browser.back, "d1, 1 of 6")):
        button.click()
        assert at(browser) == expected


def test_filters_say_how_many_and_begin_at_the_first(browser):
    assert [label for label, _ in browser.filters.verdict.options] == [
        "all (6)", "TP · defect found (3)", "FN · defect missed (1)", "FP · false alarm (1)", "TN · normal passed (1)",
    ]  # fmt: skip
    browser.go_to(4)
    browser.filters.verdict.value = "TP"
    assert at(browser) == "d1, 1 of 3"
    browser.filters.order.value = "sure"
    assert at(browser) == "d0, 1 of 3"
    browser.filters.defect_type.value = "stain"
    assert at(browser) == "d1, 1 of 1"
    browser.filters.verdict.value = "FP"
    assert "No picture fits" in browser.headline.value and browser.what_if.disabled and browser.note.text.disabled
    browser.filters.verdict.value = browser.filters.defect_type.value = ""
    assert at(browser) == "d0, 1 of 6" and not browser.note.text.disabled


def test_runs_stand_side_by_side_on_the_same_picture_and_every_control_changes_it(browser):
    browser.filters.beside["S1"].value = browser.filters.beside["S3"].value = True
    words, _ = shown(browser)
    assert [re.search(r"<b>(\w+)</b>.*p\(defect\)", text)[1] for text in words[1:]] == ["S5", "S1", "S3"]
    browser.controls.kind.value = "attention"
    words, _ = shown(browser)
    assert "S1 has no attention map" in words[2] and "attention IoU 0.05" in words[1]
    browser.go_to(2)
    browser.filters.run.value = "S3"
    assert at(browser) == "d0, 3 of 6" and "<b>S3</b>" in shown(browser)[0][1] and len(shown(browser)[0]) == 3
    browser.go_to(1)  # d3, whose map is found
    controls = browser.controls
    for control, value in (
        (controls.kind, "localization"), (controls.kind, "cam"), (controls.scale, False), (controls.strength, 0.2),
        (controls.level, 0.9), (controls.outline, False), (controls.kind, ""),
    ):  # fmt: skip
        before = shown(browser)[1]
        control.value = value
        assert shown(browser)[1] != before


def test_notes_are_saved_at_once_and_found_by_the_next_browser(tmp_path):
    run = write_browsed_run(tmp_path, pictures=False)
    path, first = run.folder / "notes.csv", CamBrowser(run)
    first.note.text.value = "is this a stain?"
    first.note.mark.value = True
    assert "saved" in first.note.state.value and "notes.csv" in first.note.state.value
    first.step(1)
    assert first.note.text.value == "" and len(path.read_text().splitlines()) == 3  # stepping saved nothing
    second = CamBrowser(run)
    second.filters.marked_only.value = True
    assert at(second) == "d1, 1 of 1" and second.note.text.value == "is this a stain?"
    path.write_text("my;own;columns\n")
    first.note.text.value = "x"
    assert "not saved" in first.note.state.value and path.read_text() == "my;own;columns\n"
    first.step(1)
    assert "expected the columns" in first.note.state.value and first.note.text.disabled


def test_as_many_widgets_for_a_thousand_rows_as_for_eight_and_no_name_becomes_markup(tmp_path, runs):
    def made(run):
        before = set(Widget.widgets)
        browser = CamBrowser(run)
        return browser, len(set(Widget.widgets) - before)

    rows = pd.concat([ROWS.replace("stain", "<script>alert(1)</script>")] * 125, ignore_index=True)
    rows["name"] = [f"p{number}" for number in range(len(rows))]
    browser, many = made(write_browsed_run(tmp_path, rows=rows, pictures=False))
    assert many == made(runs["S5"])[1] and at(browser) == "p1, 1 of 750"
    assert "<script" not in browser.headline.value and "&lt;script&gt;" in browser.headline.value
    first_page = browser.strip.pictures.value
    browser.strip.on.click()
    assert f", {PAGE + 1} of 750" in at(browser) and f'{PLACE}="{PAGE}"' in browser.strip.pictures.value
    browser.strip.back.click()
    assert at(browser) == "p1, 1 of 750" and browser.strip.back.disabled
    browser.step(1)
    assert browser.strip.pictures.value == first_page and "='1'" in browser.strip.frame.value  # only the frame moves


def test_both_systems_side_by_side_and_the_other_alone_in_its_own_words(both, tmp_path):
    browser = CamBrowser(both)
    assert browser.controls.kind.options[0] == ("CAM / anomaly", "cam")
    browser.filters.beside["EfficientAD"].value = True
    (_, ours, other), _ = shown(browser)
    assert "p(defect) 0.70" in ours and "CAM-IoU 0.05 (grid 0.70)" in ours
    assert "anomaly score 0.070" in other and "map IoU 0.05 (grid 0.70)" in other
    # Scores are of the order of 0.1 by construction: two places would show the same on both sides of a threshold.
    browser = CamBrowser(write_browsed_anomalies(tmp_path, rows=ROWS.assign(probability=ROWS["probability"] / 10)))
    assert [value for _, value in browser.controls.kind.options] == ["anomaly", ""]
    for words in ("anomaly score 0.007 &lt; 0.050", "map IoU 0.05 (grid 0.70)"):
        assert words in browser.headline.value
    assert "anomaly score 0.007" in browser.strip.pictures.value
    assert "p(defect)" not in browser.headline.value + browser.strip.pictures.value


def test_novel_pictures_carry_a_badge_and_can_be_filtered_while_they_are_up_to_date(tmp_path):
    run, other = write_browsed_run(tmp_path), write_browsed_run(tmp_path, "S3", pictures=False)
    write_novelty(run, ["d1", "d2"])
    assert "/outputs/hand/efficientad/seed7" in told(run) and TEACHER in told(run)
    browser = CamBrowser([run, other])
    assert "anomaly score 0.900 &gt; 0.500" in browser.headline.value and "novel:" not in browser.headline.value
    browser.filters.novel_only.value = browser.filters.beside["S3"].value = True
    assert at(browser) == "d2, 1 of 1"  # d1 was found
    assert "novel: called normal, yet unlike the good parts" in browser.headline.value
    assert 'gainmtl-novel">?' in browser.strip.pictures.value
    assert "novel:" in shown(browser)[0][1] and "novel:" not in shown(browser)[0][2]
    browser.filters.run.value = "S3"  # which nobody asked
    assert browser.filters.novel_only.disabled and at(browser).endswith("of 6")
    assert "anomaly score" not in browser.headline.value
    rewrite(run.folder / "predictions.csv", "0.9,", "0.95,")
    assert opened(run).novelty is None and names(opened(run), novel_only=True) == ""
    assert told(run).startswith("S5: novel pictures are not marked: what is stored is of other predictions")
