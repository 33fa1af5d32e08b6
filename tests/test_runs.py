import json

import numpy as np
import pytest

from gainmtl_lib.runs import RunError, read_checkpoint, read_json, run_status, write_json


def test_json_has_no_nan_and_keeps_types(tmp_path):
    path = tmp_path / "a.json"
    write_json(
        path, {"nan": float("nan"), "f": np.float32(0.5), "i": np.int64(3), "list": [float("inf"), True], "t": "ü"}
    )
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "nan": None,
        "f": 0.5,
        "i": 3,
        "list": [None, True],
        "t": "ü",
    }


def test_damaged_json_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{")
    with pytest.raises(RunError, match=r"a\.json: cannot be read"):
        read_json(path)


def test_status_of_a_folder(tmp_path):
    assert run_status(tmp_path) == "new"
    write_json(tmp_path / "manifest.json", {"status": "running"})
    assert run_status(tmp_path) == "running"
    write_json(tmp_path / "manifest.json", {"status": "complete"})
    assert run_status(tmp_path) == "complete"


@pytest.mark.parametrize("content", [b"this is no checkpoint", b"", b"PK\x03\x04junk", b"\x80\x02.", bytes(range(256))])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"a\.ckpt: not a checkpoint that can be read safely: \S"):
        read_checkpoint(path)
