"""What a run shows about its reasons: by hand, and stored beside a tiny run's evaluation."""

import json
import shutil
from math import nan

import numpy as np
import pandas as pd
import pytest
from audited import row, table_of
from tiny import tiny_settings

from gainmtl_lib.evaluation import evaluate
from gainmtl_lib.runs import Run, RunError
from gainmtl_lib.studies import reasons as module
from gainmtl_lib.studies.reasons import (
    FILE,
    NAMES,
    cue_indicators,
    indicator_table,
    measure_indicators,
    picture_indicators,
    stored_indicators,
    verdict_indicators,
)
from gainmtl_lib.train import fit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    finished = fit(tiny_settings(tmp_path_factory.mktemp("indicators"), "S5", num_epochs=1, use_tensorboard=False))
    evaluate(finished)
    return finished


@pytest.fixture(scope="module")
def measured(run):
    return measure_indicators(run)


def test_the_table_has_a_row_per_indicator(measured):
    table = indicator_table(measured)
    assert list(table.index) == list(measured["indicators"])
    assert table.loc["accuracy", "value"] == measured["indicators"]["accuracy"]["value"]
    assert set(table.dtypes[["value", "low", "high"]]) == {np.dtype(float)}


def test_drop_is_what_the_reversed_cue_costs():
    rows = [row("test", 1, 0.9), row("test", 1, 0.8), row("test", 0, 0.1), row("test", 0, 0.6)]
    rows += [row("test_shift", 1, 0.1), row("test_shift", 0, 0.9), row("test_shift", 1, 0.7), row("test_shift", 0, 0.8)]
    found = verdict_indicators(table_of(rows))
    assert (found["accuracy"].value, found["accuracy_shift"].value, found["drop"].value) == (0.75, 0.25, 0.5)
    assert (found["auroc"].value, found["auroc_shift"].value, found["auroc_drop"].value) == (1, 0, 1)
    # Newcombe's interval is as wide as eight pictures make it.
    assert found["drop"].low < 0 < found["drop"].high and found["accuracy"].count == 4


def test_parts_in_both_splits_widen_the_drop():
    def drop(prefix):
        rows = [
            row(split, label, prob, group=f"{prefix[split]}tile{number}")
            for split in ("test", "test_shift")
            for number in range(12)
            for label, prob in ((1, 0.9), (0, 0.6))
        ]
        return verdict_indicators(table_of(rows))["drop"]

    apart, shared = drop({"test": "", "test_shift": "other "}), drop({"test": "", "test_shift": ""})
    assert apart.value == shared.value == 0
    assert shared.low == pytest.approx(apart.low * 2**0.5) and shared.high == pytest.approx(apart.high * 2**0.5)


def test_without_a_shifted_split_there_is_no_drop():
    found = verdict_indicators(table_of([row("test", 1, 0.9), row("test", 0, 0.1)]))
    assert set(found) == {"accuracy", "auroc"}


def test_maps_and_feature_flips():
    rows = [
        row("test", 1, 0.9, cam_iou=0.6, attention_iou=0.8, cf_probability=0.1, cf_control_probability=0.9),
        row(
            "test",
            1,
            0.9,
            cam_iou=0.02,
            point_game=0.0,
            attention_iou=0.4,
            cf_probability=0.9,
            cf_control_probability=0.9,
        ),
        row("test", 0, 0.1, attention_iou=nan, cf_probability=nan, cf_control_probability=nan),
    ]
    found = picture_indicators(table_of(rows))
    assert found["cam_iou"].value == pytest.approx(0.31) and found["attention_iou"].value == pytest.approx(0.6)
    assert found["wrong_reason_rate"].value == 0.5
    assert (found["cf_flip_rate"].value, found["cf_control_flip_rate"].value, found["cf_excess"].value) == (0.5, 0, 0.5)
    assert "loc_iou" not in found


def test_energy_on_the_cue_beside_its_area():
    cues = np.zeros((2, 4, 4), bool)
    cues[0, :2, :2] = True  # a quarter of the picture
    cues[1, :, :2] = True  # half of it
    cams = np.zeros((2, 4, 4), np.float16)
    cams[0, 0, 0], cams[0, 3, 3], cams[0, 2, 2] = 3, 1, -7  # three quarters of the non-negative energy
    cams[1] = 1  # even: as much as its area
    found = cue_indicators(np.array([4, 7]), cams, cues, np.arange(10))
    assert found["cue_energy"].value == pytest.approx((0.75 + 0.5) / 2)
    assert found["cue_area"].value == pytest.approx((0.25 + 0.5) / 2)
    assert found["cue_excess"].value == pytest.approx(0.25)
    assert found["cue_energy"].count == 2


def test_no_cue_no_answer():
    empty = np.zeros((0, 4, 4))
    assert cue_indicators(np.array([], dtype=int), empty, empty.astype(bool), np.arange(3)) == {}


def test_every_indicator_of_a_run_with_a_cue(run, measured):
    names = set(measured["indicators"])
    assert names <= set(NAMES)
    assert {"accuracy", "drop", "cam_iou", "grid_iou", "cf_excess", "cue_energy", "cue_area"} <= names
    test = run.metrics["test"]
    for name in ("accuracy", "auroc", "cam_iou", "grid_iou", "point_game", "attention_iou"):
        assert measured["indicators"][name]["value"] == pytest.approx(test[name], abs=1e-4), name
    # The mark takes about one percent, and all defective pictures of so small a test split carry it.
    assert 0.005 < measured["indicators"]["cue_area"]["value"] < 0.02
    assert measured["indicators"]["cue_area"]["count"] == 3
    assert measured["settings"] == {
        "measured": module.MEASURED,
        "heals": ["telea", "patch_same"],
        "pastes": ["copy", "clone"],
        "seed": 0,
    }


def test_stored_and_reused(run, measured, monkeypatch):
    assert json.loads((run.folder / FILE).read_text()) == measured == stored_indicators(run)
    monkeypatch.setattr(module, "image_flips", None)
    assert measure_indicators(Run(run.folder)) == measured


def test_measuring_anew_gives_the_same(run, measured):
    assert measure_indicators(run, reuse=False) == measured


def test_another_evaluation_makes_them_out_of_date(run, measured, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    copy = Run(tmp_path / "run")
    assert stored_indicators(copy) == measured
    path = copy.folder / "predictions.csv"
    path.write_text(path.read_text() + "\n")
    assert stored_indicators(copy) is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"predictions": 1}'])
def test_damaged_files_are_nothing(run, measured, tmp_path, content):
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / FILE).write_text(content)
    assert stored_indicators(Run(tmp_path / "run")) is None


def test_other_methods_make_them_out_of_date(run, measured, monkeypatch):
    monkeypatch.setattr(module, "MEASURED", module.MEASURED + 1)
    assert stored_indicators(run) is None


def test_a_run_without_a_cue_or_shifted_pictures(tmp_path):
    finished = fit(tiny_settings(tmp_path, "S1", num_epochs=1, shortcut="none", use_tensorboard=False))
    with pytest.raises(RunError, match="trained but not evaluated"):
        measure_indicators(finished)
    evaluate(finished)
    names = set(measure_indicators(finished)["indicators"])
    assert not names & {"drop", "accuracy_shift", "cue_energy", "cue_area", "attention_iou", "cf_excess"}
    assert {"accuracy", "cam_iou", "counterfactual_accuracy"} <= names


def test_validation_alone_is_not_enough(run, monkeypatch, tmp_path):
    table = pd.DataFrame({"split": ["val"]})
    monkeypatch.setattr(module, "stored_tables", lambda run: (table, {}))
    with pytest.raises(RunError, match="evaluated without a test split"):
        measure_indicators(run, reuse=False)
