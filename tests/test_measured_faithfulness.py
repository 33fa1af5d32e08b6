"""Faithfulness of a run on its own found defects: measured, stored, shown in the report, and stale after a change."""

import json
import math

import pandas as pd
import pytest
import torch
from audited import row, write_audited
from click.testing import CliRunner
from drawn_data import write_picture
from narrow_models import NARROW, built

from gainmtl_lib.audit.report import write_report
from gainmtl_lib.cli import main
from gainmtl_lib.readers import DataError, read_image
from gainmtl_lib.runs import RunError, load_run, save_weights
from gainmtl_lib.studies.faithfulness import FILE, is_stale, measure_faithfulness, stored_faithfulness

QUICK = {"steps": 2, "road_fractions": (0.5,), "draws": 1}
DEFECTS = [f"images/test/defective/{number}.png" for number in range(5)]


def probability(picture):
    pixels = torch.from_numpy(read_image(str(picture))).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        return float(built("S1")(pixels).logits.softmax(1)[0, 1])


def write_run(folder, *, found=DEFECTS, **values):
    """A run of an untrained narrow model that called its defects defective: the threshold is low enough."""
    pictures = [write_picture(folder / "data" / name, size=(64, 64)) for name in DEFECTS]
    rows = [row("test", 1, probability(picture), image=name) for picture, name in zip(pictures, DEFECTS)]
    threshold = min(entry["probability"] for entry in rows) - 0.01
    rows = [entry for entry in rows if entry["image"] in found] + [row("test", 0, 0.0), row("val", 1, 0.9)]
    settings = NARROW | {"out_indices": [3, 4], "strategy": "S1", "device": "cpu"}
    run = write_audited(folder, rows, threshold=threshold, pictures=True, **settings, **values)
    save_weights(built("S1"), run / "model.safetensors")
    return load_run(run)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("measured"))


@pytest.fixture(scope="module")
def measured(run):
    return measure_faithfulness(run, **QUICK)


def test_what_is_measured_is_stored_with_how_it_was(run, measured):
    assert measured == json.loads((run.folder / FILE).read_text()) == stored_faithfulness(run)
    assert (measured["split"], measured["found"], measured["pictures"]) == ("test", 5, DEFECTS)
    assert measured["settings"] == {"limit": 24, "steps": 2, "road_fractions": [0.5], "draws": 1, "seed": 0}
    assert measured["map"]["pictures"] == 5 and measured["map"]["deletion"]["low"] is None  # too few for an interval
    assert -1 <= measured["map"]["road"]["gain"] <= 1
    assert list(measured["randomisation"]["parts"]) == ["deciding head", "projection", "backbone"]
    assert not is_stale(run) and not list(run.folder.glob(".*json"))


def test_of_many_found_defects_some_are_drawn(tmp_path):
    run = write_run(tmp_path)
    first = measure_faithfulness(run, limit=2, **QUICK)
    assert first["found"] == 5 and len(first["pictures"]) == 2 and first["pictures"] == sorted(first["pictures"])
    assert measure_faithfulness(run, limit=2, reuse=False, **QUICK) == first
    drawn = {tuple(measure_faithfulness(run, limit=2, seed=seed, **QUICK)["pictures"]) for seed in range(4)}
    assert len(drawn) > 1


def test_the_same_question_is_not_asked_twice(run, measured, monkeypatch):
    monkeypatch.setattr("gainmtl_lib.studies.faithfulness.faithfulness", None)
    assert measure_faithfulness(run, **QUICK) == measured


def test_other_predictions_make_it_stale(tmp_path):
    run = write_run(tmp_path)
    measure_faithfulness(run, **QUICK)
    text = write_report(run).read_text("utf-8")
    assert "The same map with shuffled weights" in text and "Faithfulness of the map not measured" not in text
    table = pd.read_csv(run.folder / "predictions.csv")
    table.assign(cam_iou=table["cam_iou"] / 2).to_csv(run.folder / "predictions.csv", index=False)
    assert is_stale(run) and stored_faithfulness(run) is None
    text = write_report(run).read_text("utf-8")
    assert "it was measured for other predictions" in text and "The same map with shuffled weights" not in text
    assert stored_faithfulness(run) != measure_faithfulness(run, **QUICK) and not is_stale(run)


def test_without_it_the_report_says_so(tmp_path):
    text = write_report(write_run(tmp_path)).read_text("utf-8")
    assert "Faithfulness of the map not measured" in text and "gainmtl report RUN --faithfulness does" in text


def test_moved_pictures_are_named(tmp_path):
    run = write_run(tmp_path)
    (tmp_path / "data").rename(tmp_path / "now")
    with pytest.raises(DataError, match=r"5 of 5 pictures .* are not there, such as .*0\.png; if .* --data-root"):
        measure_faithfulness(run, **QUICK)
    assert measure_faithfulness(run, data_root=tmp_path / "now", **QUICK)["pictures"] == DEFECTS


def test_other_pictures_are_not_measured(tmp_path):
    run = write_run(tmp_path)
    table = pd.read_csv(run.folder / "predictions.csv")
    table.loc[1, "probability"] += 0.05
    table.to_csv(run.folder / "predictions.csv", index=False)
    with pytest.raises(RunError, match=r"1\.png: p\(defect\) is .* when the run was evaluated: the picture or"):
        measure_faithfulness(run, **QUICK)
    assert not (run.folder / FILE).exists()


def test_no_found_defect(tmp_path):
    with pytest.raises(RunError, match="no defect of 'test' was found"):
        measure_faithfulness(write_run(tmp_path, found=[]), **QUICK)


def test_masks_from_outside_have_no_place_in_it(tmp_path):
    with pytest.raises(RunError, match=r"takes masks from outside \(oracle\)"):
        measure_faithfulness(write_run(tmp_path, metrics={"mask_source": "oracle"}), **QUICK)


def test_a_damaged_file_stops_the_report_and_is_measured_anew(tmp_path):
    run = write_run(tmp_path)
    for text, told in (("{", "cannot be read"), ("{}", "not what gainmtl report .* writes; remove it")):
        (run.folder / FILE).write_text(text)
        with pytest.raises(RunError, match=told):
            write_report(run)
    measure_faithfulness(run, **QUICK)
    assert write_report(run).is_file()


def test_the_command_measures_once(tmp_path):
    run = write_run(tmp_path)
    result = CliRunner().invoke(main, ["report", str(run.folder)], catch_exceptions=False)
    assert result.exit_code == 0 and not (run.folder / FILE).exists()
    (tmp_path / "data").rename(tmp_path / "now")
    result = CliRunner().invoke(
        main,
        ["report", str(run.folder), "--faithfulness", "--data_root", str(tmp_path / "now")],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    stored = stored_faithfulness(run)
    assert stored is not None and stored["settings"]["steps"] == 16
    assert math.isfinite(stored["map"]["insertion"]["gain"])
