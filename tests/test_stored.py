"""An evaluation that is missing, damaged or mixed with another one is refused, never reported."""

import json

import numpy as np
import pytest
from audited import row, write_audited

from gainmtl_lib.evaluation import stored_cams, stored_tables
from gainmtl_lib.runs import RunError, load_run

ROWS = (("val", 1, 0.9), ("val", 0, 0.1), ("test", 1, 0.8), ("test", 0, 0.6))


@pytest.fixture
def folder(tmp_path):
    return write_audited(tmp_path, [row(*entry) for entry in ROWS])


def test_tables_and_maps_are_read(folder):
    table, metrics = stored_tables(load_run(folder))
    assert len(table) == 4 and metrics["threshold"] == 0.5
    assert stored_cams(load_run(folder), 4).shape == (4, 4, 4)


def test_not_evaluated_says_what_to_call(folder):
    (folder / "metrics.json").unlink()
    with pytest.raises(RunError, match=r"trained but not evaluated; first: gainmtl evaluate .*seed7"):
        stored_tables(load_run(folder))


@pytest.mark.parametrize("content", ["", "image,split\n1,2\n1,2,3\n", '"'])
def test_damaged_predictions(folder, content):
    (folder / "predictions.csv").write_text(content)
    with pytest.raises(
        RunError, match=r"predictions\.csv: cannot be read: .*; evaluate again: gainmtl evaluate .* --force"
    ):
        stored_tables(load_run(folder))


def test_predictions_of_an_older_evaluation(folder):
    (folder / "predictions.csv").write_text("image,split,label\na.png,test,1\n")
    with pytest.raises(RunError, match=r"predictions\.csv: lacks mask, defect_type, .*; evaluate again"):
        stored_tables(load_run(folder))


def test_no_test_picture(folder):
    lines = (folder / "predictions.csv").read_text().splitlines()
    (folder / "predictions.csv").write_text("\n".join(lines[:3]))
    with pytest.raises(RunError, match="holds no test picture; evaluate again"):
        stored_tables(load_run(folder))


def test_predictions_and_metrics_of_different_evaluations(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["test"]["FP"] = 5
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(RunError, match=r"do not belong together \(test: 1 FP and 5\)"):
        stored_tables(load_run(folder))


def test_maps_of_another_evaluation(folder):
    np.save(folder / "maps" / "cam.npy", np.zeros((3, 4, 4), np.float16))
    with pytest.raises(RunError, match=r"cam\.npy is 3 x 4 x 4 for 4 predictions; evaluate again"):
        stored_cams(load_run(folder), 4)


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_damaged_maps(folder, content):
    (folder / "maps" / "cam.npy").write_bytes(content)
    with pytest.raises(RunError, match=r"maps: cannot be read: .*; evaluate again"):
        stored_cams(load_run(folder), 4)
