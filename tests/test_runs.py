import json

import numpy as np
import pytest
from tiny import tiny_settings

from gainmtl_lib.runs import RunError, claim, read_json, run_status, write_json


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


def test_claim_writes_settings_once_and_releases_the_folder(tmp_path):
    settings = tiny_settings(tmp_path)
    with claim(settings) as folder:
        assert (folder / "settings.yaml").is_file()
        with pytest.raises(RunError, match="another process"), claim(settings):
            pass
    with claim(settings):
        pass
    with pytest.raises(RunError, match="batch_size: 8 and 2"), claim(settings.changed(batch_size=2)):
        pass


def test_force_empties_the_folder(tmp_path):
    settings = tiny_settings(tmp_path)
    with claim(settings) as folder:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints/last.ckpt").write_text("x")
    with claim(settings.changed(batch_size=2), force=True) as folder:
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "settings.yaml"]


def test_settings_written_by_another_version_are_not_reused(tmp_path):
    settings = tiny_settings(tmp_path)
    with claim(settings) as folder:
        pass
    with (folder / "settings.yaml").open("a") as file:
        file.write("retired_option: 3\n")
    with pytest.raises(RunError, match="unknown parameter 'retired_option'"), claim(settings):
        pass
