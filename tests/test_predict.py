"""New pictures: what is said of each, in a table that grows; tiles; a folder that is being filled."""

import csv
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from anomaly_runs import tiny_anomaly_settings, write_anomaly_run
from drawn_data import spoil_tiff, truncate_file, write_picture
from test_commands import done, refused, run
from tiny import tiny_settings

from gainmtl_lib import predict as module
from gainmtl_lib.efficientad.evaluate import evaluate_efficientad
from gainmtl_lib.evaluation import evaluate
from gainmtl_lib.explain import DefectExplainer, read_picture
from gainmtl_lib.export import Card, Evidence, Judge, export_run
from gainmtl_lib.findings import DataError
from gainmtl_lib.predict import Arrivals, Prediction, Predictor, VerdictFile, drawn, pictures_in
from gainmtl_lib.runs import FileError
from gainmtl_lib.train import fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = fit(tiny_settings(tmp_path_factory.mktemp("predicted"), "S4", num_epochs=1))
    evaluate(run)
    return run


@pytest.fixture(scope="module")
def anomalies(trained, tmp_path_factory):
    data = {name: getattr(trained.settings, name) for name in ("data_root", "num_samples", "image_size")}
    run = write_anomaly_run(tiny_anomaly_settings(tmp_path_factory.mktemp("novel"), **data))
    evaluate_efficientad(run)
    return run


def table(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_is_said_is_what_the_evaluation_and_the_explanation_say(trained, anomalies):
    known = trained.predictions.query("split == 'test'")
    paths = [trained.settings.data_root / name for name in known["image"]]
    explained = DefectExplainer.from_run(trained).explain(paths)
    novelty = anomalies.predictions.set_index("image")["anomaly_score"]
    found = list(Predictor(trained, novelty=anomalies)(paths))
    for row, one, said in zip(known.to_dict("records"), explained, found, strict=True):
        assert said.probability == pytest.approx(row["probability"], abs=1e-3) and said.image.endswith(row["image"])
        assert (
            said.verdict == ("normal", "defective")[row["predicted"]] and said.threshold == trained.metrics["threshold"]
        )
        assert said.score == pytest.approx(row["margin"], abs=1e-4) and (said.height, said.width) == (64, 64)
        assert list(said.boxes) == one["boxes"] and said.area == pytest.approx(one["area"], abs=1e-6)
        assert said.anomaly_score == pytest.approx(novelty[row["image"]], rel=1e-3)
        assert said.novel == (not row["predicted"] and said.anomaly_score > anomalies.metrics["novelty_threshold"])
    alone = list(Predictor(anomalies)(paths))
    assert [one.score for one in alone] == pytest.approx([one.anomaly_score for one in found], rel=1e-3)
    own = anomalies.predictions.set_index("image").loc[known["image"]]
    assert [one.probability for one in alone] == pytest.approx(own["probability"].tolist(), abs=1e-4)
    assert [one.verdict == "defective" for one in alone] == own["predicted"].astype(bool).tolist()


def test_pixels_are_judged_too_and_a_bad_picture_stops_no_other(trained, tmp_path):
    good, bad = write_picture(tmp_path / "a.png", size=(70, 90)), write_picture(tmp_path / "b.png")
    truncate_file(bad)
    found = list(
        Predictor(trained.folder, class_names=("gut", "schlecht"))([good, bad, read_picture(good), tmp_path / "no.png"])
    )
    assert [one.error == "" for one in found] == [True, False, True, False]
    assert found[0].probability == found[2].probability and found[0].verdict in ("gut", "schlecht")
    assert "b.png: image is truncated or not an image" in found[1].error and found[1].verdict == ""
    assert found[2].image == "[2]" and "no.png" in found[3].error
    spoilt = write_picture(tmp_path / "c.tif")
    spoil_tiff(spoilt)
    assert [one.error for one in Predictor(trained.folder)([spoilt, good])] == ["", ""]


def test_a_device_is_of_the_run_and_not_of_an_exported_efficientad(monkeypatch):
    judge = Bright()
    judge.card = judge.card.model_copy(update={"novelty_threshold": 1.0})
    monkeypatch.setattr(module, "open_judge", opened := Mock(return_value=judge))
    for novelty, own in (("m.onnx", {"threads": 2}), ("run", {"threads": 2, "device": "cuda"})):
        opened.reset_mock()
        Predictor("r", novelty=novelty, device="cuda", threads=2)
        assert [call.kwargs for call in opened.call_args_list] == [{"threads": 2, "device": "cuda"}, own]


def test_the_threshold_is_given_or_chosen_for_a_recall_on_the_runs_validation(trained, anomalies):
    val = trained.predictions.query("split == 'val' and label == 1")["probability"]
    asked = Predictor(trained.folder, required_recall=1.0)
    assert asked.threshold <= val.min() and asked.threshold_from == f"validation, recall 1 of {len(val)} defects"
    assert Predictor(trained.folder, threshold=0.7).threshold_from == "given"
    for options, message in (
        ({"threshold": 1.5}, r"threshold must lie in \[0, 1\], got 1.5"),
        ({"threshold": 0.5, "required_recall": 0.9}, "both a threshold and a required recall are given"),
        ({"tile_size": (60, 64)}, r"tile_size must be multiples of 32 \(the coarsest stride\), got \[60, 64\]"),
        ({"tile_size": (64, 32)}, r"tile_size must be at least 64 a side, or neighbours share no cell, got \[64, 32\]"),
        ({"required_recall": 0.0}, r"required_recall must lie in \(0, 1\], got 0"),
        ({"tile_size": (64, 64), "tile_overlap": 0.7}, r"tile_overlap must lie in \[0, 0.5\], got 0.7"),
        ({"novelty": trained.folder}, "of GAIN-MTL, which knows nothing new; give an EfficientAD run"),
    ):
        with pytest.raises(DataError, match=message):
            Predictor(trained.folder, **options)
    with pytest.raises(DataError, match="chosen on validation defects, of which this EfficientAD model has none"):
        Predictor(anomalies.folder, required_recall=0.9)
    told = "tiles of 64 pixels share 16, and the network leaves out 16 at each edge; choose a larger tile_size"
    with pytest.raises(DataError, match=told):
        Predictor(anomalies, tile_size=(64, 64), tile_overlap=0.25)


# --- Large pictures


class Bright(Judge):
    """Its map is the brightness of blocks of 4 pixels, and its score the brightest, or what the evidence says."""

    def __init__(self, evidence=None):
        known = dict(
            strategy="S8", run="r", weights="0" * 64, version="0", origin="none", resize="squash", tile_overlap=0.25
        )
        known |= dict(threshold=0.5, threshold_from="", calibration=(1.0, 0.0), map_scale=(0.0, 1.0), validation={})
        sizes = dict(image_size=(64, 64), input_size=(64, 64), localization_floor=0.5, novelty_threshold=None)
        self.card, self.any_size, self.seen = Card(system="GAIN-MTL", evidence=evidence, **known, **sizes), True, []

    def outputs(self, pictures):
        self.seen.append(pictures.shape)
        maps = pictures[..., 0].reshape(len(pictures), 16, 4, 16, 4).mean((2, 4)) / 255
        return [None, None, maps.max((1, 2)), maps, np.kron(maps, np.ones((4, 4)))]


def test_few_pictures_are_held_however_small_the_input_and_each_network_takes_its_own_number_of_them():
    coming = (np.zeros((90, 80, 3), np.uint8) for _ in range(200))
    predictor, novelty = Predictor(Bright()), Bright()
    novelty.card = novelty.card.model_copy(update={"input_size": (1024, 1024), "novelty_threshold": 0.5})
    predictor.novelty = novelty
    found = predictor(coming)
    assert next(found).picture is None
    assert 200 - len(list(coming)) == module.MOST_AT_ONCE + module.AHEAD  # drawn from before the first answer
    assert len(list(found)) == module.MOST_AT_ONCE + module.AHEAD - 1
    assert max(shape[0] for shape in predictor.judge.seen) == 32 and max(shape[0] for shape in novelty.seen) == 2
    kept = next(Predictor(Bright(), keep_pictures=True)([np.zeros((90, 4096, 3), np.uint8)]))
    assert kept.picture.shape == (45, 2048, 3)


@pytest.mark.parametrize("size", [(64, 64), (64, 160), (200, 170), (30, 100)])
def test_tiles_of_a_large_picture_join_to_the_map_of_the_whole_and_bound_what_is_judged_at_once(size):
    pixels, judge = np.random.default_rng(0).integers(0, 256, (*size, 1), dtype=np.uint8).repeat(3, 2), Bright()
    judged = judge.judge_in_tiles(pixels, at_once=2)
    assert max(shape[0] for shape in judge.seen) <= 2 and {shape[1:] for shape in judge.seen} == {(64, 64, 3)}
    height, width = (-(-side // 4) for side in size)
    whole = np.pad(pixels[..., 0], [(0, 4 * height - size[0]), (0, 4 * width - size[1])], mode="symmetric")
    blocks = whole.reshape(height, 4, width, 4).mean((1, 3)) / 255
    assert judged.map.shape == judged.localization.shape == (height, width)
    assert judged.map == pytest.approx(blocks, abs=1e-5) and judged.score >= blocks.max() - 1e-5


class Framed(Bright):
    """An EfficientAD of which nothing is seen at a tile's edges, its map negative where a picture is dark."""

    def __init__(self):
        super().__init__()
        of_anomalies = {"system": "EfficientAD", "border": 4, "tile_overlap": 0.5}
        self.card = self.card.model_copy(update=of_anomalies)

    def outputs(self, pictures):
        seen = super().outputs(pictures)[3][:, 4:-4, 4:-4] - 0.5
        maps = np.pad(seen, [(0, 0), (4, 4), (4, 4)])
        return [None, None, seen.max((1, 2)), maps, np.kron(self.card.located(maps), np.ones((4, 4)))]


@pytest.mark.parametrize("level", [64, 204])
@pytest.mark.parametrize("size", [(64, 160), (70, 150), (12, 100)])
def test_the_edges_of_tiles_that_an_efficientad_leaves_out_count_for_nothing(level, size):
    judge, expected = Framed(), level / 255 - 0.5
    judged = judge.judge_in_tiles(np.full((*size, 3), level, np.uint8), at_once=2)
    assert judged.score == pytest.approx(expected, abs=1e-5)
    for found, wanted in ((judged.map, expected), (judged.localization, 0.5 + 0.5 * expected)):
        assert found.shape == tuple(-(-side // 4) for side in size)
        assert found[4:-4, 4:-4] == pytest.approx(np.full_like(found[4:-4, 4:-4], wanted), abs=1e-5)  # no seam


def test_the_score_in_tiles_of_an_evidence_is_that_of_the_joined_map_wherever_its_cells_lie():
    pixels = np.zeros((64, 160, 3), np.uint8)
    pixels[:4, :4], pixels[:4, 156:] = 255, 204  # one cell at each end, in two tiles
    evidence = Evidence(cells=(2, 8), scale=(2.0, 1.0), offset=(-1.0, 0.0))
    judged = Bright(evidence).judge_in_tiles(pixels, at_once=8)
    assert judged.score == pytest.approx(max(2 * (1.0 + 0.8) / 2 - 1, 1.8 / 8), abs=1e-5)


def test_a_run_with_tiles_and_its_export_say_the_same_as_its_evaluation(trained, tmp_path):
    settings = trained.settings.changed(strategy="S8", variant="tiled", image_size=(64, 128), tile_size=(64, 64),
                                        **{f"lambda_{t}": w for t, w in (("cls", 1.0), ("evidence", 1.0))},
                                        **{f"lambda_{t}": 0.0 for t in ("am", "cam_guide", "loc", "guide", "cf", "consist")},
                                        image_counterfactual=0.0, num_epochs=1, num_samples=40,
                                        data_root=trained.settings.outputs_dir.parent / "wide")  # fmt: skip
    run = fit(settings)
    evaluate(run)
    known = run.predictions.query("split == 'test'")
    predictor = Predictor(run.folder)
    assert predictor.in_tiles and "in tiles of 64x64, 0.25 shared" in predictor.model
    found = list(predictor(settings.data_root / name for name in known["image"]))
    assert [one.score for one in found] == pytest.approx(known["margin"].tolist(), abs=1e-3)
    path, agreement = export_run(run, tmp_path / "m.onnx")  # beside the whole pictures, from all of their tiles
    assert agreement.changed == 0 and agreement.largest < 1e-4
    exported = list(Predictor(path)(settings.data_root / name for name in known["image"]))
    assert [one.score for one in exported] == pytest.approx([one.score for one in found], abs=1e-4)
    native = list(Predictor(run.folder, tile_size=(64, 96))([np.zeros((70, 100, 3), np.uint8)]))
    assert native[0].error == "" and native[0].share.shape == (70, 100)


# --- The table


def test_the_table_goes_on_where_it_was_left_and_tries_unreadable_pictures_again(trained, tmp_path):
    for name in ("a\u2028", "b", "c"):  # one with a line separator of Unicode
        write_picture(tmp_path / f"in/{name}.png", size=(64, 64), seed=ord(name[0]))
    truncate_file(tmp_path / "in/b.png")
    out = tmp_path / "v.csv"
    result = run("predict", trained.folder, tmp_path / "in", "--output", out)
    assert result.exit_code == 1 and "2 judged" in result.output
    assert "1 could not be read" in result.output and "not judged:" in result.output
    assert [bool(row["error"]) for row in table(out)] == [False, True, False]
    whole = out.read_text()
    out.write_text(whole + '"half of a li')  # as a killed process leaves it
    write_picture(tmp_path / "in/b.png", size=(64, 64), seed=9)
    printed = done("predict", trained.folder, f"{tmp_path}/in/*.png", "--output", out)
    assert "1 judged" in printed and "2 were judged before" in printed
    assert sorted(Path(row["image"]).name for row in table(out)) == ["a\u2028.png", "b.png", "c.png"]
    assert not any(row["error"] for row in table(out))


def test_a_name_that_is_not_utf_8_is_written_escaped_and_found_again(trained, tmp_path):
    picture = write_picture(tmp_path / "in/a.png", size=(64, 64))
    try:
        good, bad = (tmp_path / "in" / os.fsdecode(name) for name in (b"caf\xe9.png", b"\xe9.png"))
        shutil.copy(picture, good)
        bad.write_bytes(b"")
    except (OSError, UnicodeError):
        pytest.skip("file names are UTF-8 here")
    call, out = ("predict", trained.folder, tmp_path / "in", "--output", tmp_path / "v.csv"), tmp_path / "v.csv"
    result = run(*call, "--visualize")
    assert "2 judged" in result.output and r"\xe9.png: image is empty" in result.output and result.exit_code == 1
    written = {Path(row["image"]).name: row["error"] for row in table(out)}
    assert [*written] == ["a.png", r"caf\xe9.png", r"\xe9.png"]
    assert r"in/\xe9.png: image is empty" in written[r"\xe9.png"] and (tmp_path / r"v/caf\xe9.png.jpg").is_file()
    bad.unlink()
    assert "0 judged" in done(*call) and len(table(out)) == 2
    arrivals = Arrivals([tmp_path / "in"], {row["image"] for row in table(out)})
    assert arrivals.ready() == [] and not arrivals._seen


def test_what_was_judged_is_drawn_when_that_is_asked_for_and_a_row_waits_for_its_drawing(trained, tmp_path):
    pictures = [write_picture(tmp_path / f"in/{name}.png", size=(64, 64)) for name in "ab"]
    out, folder = tmp_path / "v.csv", tmp_path / "v"
    done("predict", trained.folder, tmp_path / "in", "--output", out)
    before = out.read_text()
    call = ("predict", trained.folder, tmp_path / "in", "--output", out, "--visualize")
    assert "2 judged" in done(*call) and out.read_text() == before and len([*folder.iterdir()]) == 2
    (folder / "a.png.jpg").unlink()  # as a process killed before it was drawn left it
    printed = done(*call)
    assert "1 judged" in printed and "1 were judged before" in printed and (folder / "a.png.jpg").is_file()
    assert "2 were judged before" in done(*call) and out.read_text() == before
    other = (*call[:2], pictures[0], "--output", tmp_path / "w.csv", "--vis-dir", out)
    assert "could not be written" in refused(*other) and table(tmp_path / "w.csv") == []
    suffix = "would be both the table and the folder of the pictures drawn; give --output a suffix"
    assert suffix in refused(*call[:3], "--output", tmp_path / "verdicts", "--visualize")


def test_a_table_of_another_model_threshold_or_kind_is_left_alone(trained, anomalies, tmp_path):
    picture, out = write_picture(tmp_path / "a.png", size=(64, 64)), tmp_path / "v.csv"
    done("predict", trained.folder, picture, "--output", out)
    before = out.read_text()
    said = refused("predict", trained.folder, picture, "--output", out, "--threshold", "0.9")
    assert "holds verdicts of threshold" in said and "or start anew with --force" in said and out.read_text() == before
    said = refused("predict", trained.folder, picture, "--output", out, "--efficientad-run", anomalies.folder)
    assert "holds verdicts of model" in said and ", novelty by " in said and out.read_text() == before
    called = table(out)[0]["verdict"]
    said = refused("predict", trained.folder, picture, "--output", out, "--class-names", "gut", "schlecht")
    assert f"calls pictures {called}, asked for are gut and schlecht; choose another" in said
    done("predict", trained.folder, picture, "--output", out, "--threshold", "0.9", "--force")
    assert table(out)[0]["threshold"] == "0.9"
    other = tmp_path / "other.csv"
    other.write_text("name,value\na,1\n")
    assert "its columns are not those of verdicts (name, value)" in refused(
        "predict", trained.folder, picture, "--output", other
    )
    assert other.read_text() == "name,value\na,1\n"
    for _ in range(2):  # the lock of one that is refused is free again
        with pytest.raises(DataError, match="its columns are not those of verdicts"):
            VerdictFile(other, Predictor(trained.folder))
    with VerdictFile(tmp_path / "w.csv", Predictor(trained.folder)), pytest.raises(FileError, match="another process"):
        VerdictFile(tmp_path / "w.csv", Predictor(trained.folder))
    full, file = (
        Mock(side_effect=OSError(errno.ENOSPC, "full")),
        VerdictFile(tmp_path / "w.csv", Predictor(trained.folder)),
    )
    with pytest.raises(FileError, match=r"w\.csv: the disk is full"), file:
        file._file = Mock(flush=full, close=full)
        file.add(Prediction("a.png", error="unreadable"))
    VerdictFile(tmp_path / "w.csv", Predictor(trained.folder)).__exit__()  # the lock is free again
    assert "nowhere.png: no such picture" in refused("predict", trained.folder, "nowhere.png")


def test_a_prediction_is_let_go_of_once_its_row_is_written(trained, tmp_path, monkeypatch):
    for number in range(4):
        write_picture(tmp_path / f"in/{number}.png", size=(64, 64))
    told, alive, add = [], [], VerdictFile.add
    monkeypatch.setattr(VerdictFile, "add", lambda file, said: told.append(weakref.ref(said)) or add(file, said))
    monkeypatch.setattr(
        "gainmtl_lib.console._verdict_row", lambda _: alive.append(sum(one() is not None for one in told)) or {}
    )
    done("predict", trained.folder, tmp_path / "in", "--output", tmp_path / "v.csv")
    assert len(alive) == 4 and max(alive) <= 2


def test_places_are_files_folders_and_patterns_and_each_picture_comes_once(tmp_path):
    names = ("x/1.png", "x/y/2.jpg", "3.png")
    for name in names:
        write_picture(tmp_path / name)
    (tmp_path / "x/readme.txt").write_text("no picture")
    found = pictures_in([tmp_path / "x", f"{tmp_path}/*.png", tmp_path / "x/1.png"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == list(names)
    assert pictures_in([f"{tmp_path}/**/*.jpg"]) == [tmp_path / "x/y/2.jpg"]


def test_pictures_of_verdicts_lie_as_the_pictures_do_and_box_what_is_localized(trained, tmp_path):
    write_picture(tmp_path / "in/a/1.png", size=(64, 64))
    write_picture(tmp_path / "in/b/1.png", size=(64, 200))
    inside = ("predict", trained.folder, tmp_path / "in", "--output", tmp_path / "in/v.csv", "--visualize")
    assert "and what is drawn there would be judged as well; choose another place" in refused(*inside)
    done("predict", trained.folder, tmp_path / "in", "--output", tmp_path / "v.csv", "--visualize")
    assert sorted(path.relative_to(tmp_path / "v").as_posix() for path in (tmp_path / "v").rglob("*.jpg")) == [
        "a/1.png.jpg", "b/1.png.jpg",
    ]  # fmt: skip
    write_picture(tmp_path / "other/1.png", size=(64, 64))
    places = ("in", "in/../other")
    done("predict", trained.folder, *(tmp_path / one for one in places), "--output", tmp_path / "w.csv", "--visualize")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("w/**/*.jpg")) == [
        "w/in/a/1.png.jpg", "w/in/b/1.png.jpg", "w/other/1.png.jpg",
    ]  # fmt: skip
    share = np.zeros((64, 64), np.float32)
    said = module.Prediction(
        "a",
        64,
        64,
        "defective",
        0.9,
        0.5,
        boxes=((8, 16, 24, 40),),
        share=share,
        picture=np.zeros((64, 64, 3), np.uint8),
    )
    pixels = drawn(said, absolute=True)
    left = pixels[: module.SIDE, : module.SIDE].astype(int)
    box = np.argwhere(np.abs(left - module.BOX).max(-1) < 30)
    scale = module.SIDE / 64
    assert box.min(0) == pytest.approx([16 * scale - 4, 8 * scale - 4], abs=2)
    assert box.max(0) == pytest.approx([40 * scale + 3, 24 * scale + 3], abs=2)


# --- A folder that is being filled


def test_arrivals_are_given_out_once_they_are_whole_and_tried_again_while_they_may_still_grow(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    known, arrivals = write_picture(tmp_path / "old.png"), Arrivals([tmp_path], [str(tmp_path / "old.png")])
    assert known and arrivals.ready() == []
    new = write_picture(tmp_path / "new.png")
    whole = new.read_bytes()
    new.write_bytes(whole[:50])
    assert arrivals.ready() == []
    clock[0] = 1.0
    new.write_bytes(whole[:80])  # it grows: the second begins anew
    assert arrivals.ready() == []
    clock[0] = 1.5
    assert arrivals.ready() == []
    clock[0] = 2.0
    assert arrivals.ready() == [new] and arrivals.ready() == []
    assert arrivals.try_again(new)  # it could not be read: perhaps the camera pauses
    clock[0] = 3.0
    assert arrivals.ready() == [new]
    clock[0] = 20.0  # many others were judged meanwhile
    new.write_bytes(whole)
    assert arrivals.try_again(new) and arrivals.ready() == []
    clock[0] = 21.0
    assert arrivals.ready() == [new]
    clock[0] = 30.0
    assert not arrivals.try_again(new) and arrivals.ready() == []
    second = write_picture(tmp_path / "second.png")
    arrivals.ready()
    clock[0] = 31.0
    assert arrivals.ready() == [second]
    second.unlink()
    assert not arrivals.try_again(second)
    with pytest.raises(DataError, match="nowhere: no such folder; --watch takes folders that are filled"):
        Arrivals([tmp_path / "nowhere"], [])


def test_a_watched_folder_is_judged_as_it_fills_until_it_is_interrupted(trained, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "v.csv"
    folder.mkdir()
    # A test that runs in the background of a shell has SIGINT ignored, and so has what it starts.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import gainmtl_lib.cli as c; c.main()"
    )
    words = ["-c", code, "predict", trained.folder, folder, "--watch", "--output", out]
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        write_picture(tmp_path / "a.png", size=(64, 64))
        data = (tmp_path / "a.png").read_bytes()
        (folder / "a.png").write_bytes(data[:100])  # half-written, until the camera goes on
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (out.is_file() and out.stat().st_size):
            time.sleep(0.1)
        time.sleep(2)
        assert table(out) == []
        (folder / "a.png").write_bytes(data)
        while time.monotonic() < deadline and not table(out):
            time.sleep(0.1)
        assert [row["error"] for row in table(out)] == [""]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            printed, told = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0 and "1 judged" in printed, told
    shutil.rmtree(folder)
