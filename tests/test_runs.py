"""A run's folder: whole files, claims, what is read back, and the comparison of runs written by hand."""

import errno
import json
import os
import re
import socket
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from tiny import tiny_settings

from gainmtl_lib import runs
from gainmtl_lib.runs import (
    FileError,
    HeldError,
    RunError,
    atomic_path,
    by_strategy,
    claim,
    collect_runs,
    compare,
    write_json,
)
from gainmtl_lib.settings import Settings, SettingsError


def test_a_file_is_written_whole_and_a_failed_write_is_named_and_keeps_what_was_there(tmp_path, monkeypatch):
    target = tmp_path / "new" / "a.txt"
    with atomic_path(target) as path:
        path.write_text("before")
        assert not target.exists() and re.fullmatch(r"\.a-[0-9a-f]{8}\.txt", path.name)
    for raised, expected, message in (
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(errno.ENOSPC, "No space"), FileError, r"a\.txt: the disk is full \(.* MB free\); make room and"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), FileError, r"a\.txt: the disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), FileError, r"a\.txt: could not be written"),
        (RuntimeError("basic_ios::clear: iostream error"), FileError, r"iostream error \(.* MB free\); make room and"),
        (
            PermissionError(errno.EACCES, "Permission denied"),
            FileError,
            "written: Permission denied; give the right to write",
        ),
        (RunError("refused"), RunError, "^refused"),
        (RuntimeError("shapes differ"), RuntimeError, "^shapes differ"),
    ):
        with pytest.raises(expected, match=message), atomic_path(target) as path:
            path.write_text("half")
            raise raised
        assert target.read_text() == "before" and list(target.parent.iterdir()) == [target]
    with monkeypatch.context() as patch:  # on a read-only file system neither can be done
        for name in ("touch", "unlink"):
            patch.setattr(Path, name, Mock(side_effect=OSError(errno.EROFS, "Read-only file system", "other")))
        told = r"a\.txt: could not be written: Read-only file system; give the right to write there, or choose another"
        with pytest.raises(FileError, match=told), atomic_path(target):
            pass
    below = target / "below" / "b.txt"  # of a file
    with pytest.raises(FileError, match=r"b\.txt: could not be written: Not a directory"), atomic_path(below):
        pass


def test_json_has_no_nan_and_damage_is_named(tmp_path):
    path = tmp_path / "a.json"
    written = {"nan": float("nan"), "f": np.float32(0.5), "i": np.int64(3), "list": [float("inf"), True], "t": "ü"}
    write_json(path, written)
    expected = {"nan": None, "f": 0.5, "i": 3, "list": [None, True], "t": "ü"}
    assert json.loads(path.read_text(encoding="utf-8")) == runs.read_json(path) == expected
    path.write_text("{")
    with pytest.raises(RunError, match=r"a\.json: cannot be read"):
        runs.read_json(path)


def begin(settings):
    """A run that reached a checkpoint and was interrupted."""
    with claim(settings) as folder:
        write_json(folder / "manifest.json", {"status": "running"})
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints/last.ckpt").write_text("x")
    return folder


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_claim_writes_settings_once_and_releases_the_folder(tmp_path):
    settings = tiny_settings(tmp_path)
    with claim(settings) as folder:
        assert (folder / "settings.yaml").is_file()
        own = rf"another process \({os.getpid()} on {re.escape(socket.gethostname())}\) is writing to this run; wait"
        with pytest.raises(HeldError, match=own), claim(settings):
            pass
    written = (begin(settings) / "settings.yaml").stat().st_mtime_ns
    with claim(settings):
        assert (folder / "settings.yaml").stat().st_mtime_ns == written
    with pytest.raises(RunError, match="batch_size: 8 and 2"), claim(settings.changed(batch_size=2)):
        pass
    with (folder / "settings.yaml").open("a") as file:  # by another version
        file.write("retired_option: 3\n")
    with pytest.raises(RunError, match="unknown parameter 'retired_option'"), claim(settings):
        pass
    assert names(folder) == [".lock", "checkpoints/last.ckpt", "manifest.json", "settings.yaml"]


def test_a_start_that_reached_no_checkpoint_leaves_nothing_and_binds_nobody(tmp_path):
    settings = tiny_settings(tmp_path)
    with pytest.raises(KeyboardInterrupt), claim(settings) as folder:
        write_json(folder / "manifest.json", {"status": "running"})
        (folder / "tensorboard").mkdir()
        (folder / "tensorboard/events.out.tfevents.1").write_text("x")
        raise KeyboardInterrupt
    assert names(folder) == [".lock"]
    other = begin(settings.changed(seed=7)) / ".manifest-0123abcd.json"
    other.write_text("half")
    with claim(settings) as folder:  # a killed process cleans nothing up
        write_json(folder / "manifest.json", {"status": "running"})
        (folder / "checkpoints").mkdir()
        for name in (".manifest-0123abcd.json", "checkpoints/.last-ab12c9ff.ckpt", ".my-notes.txt"):
            (folder / name).write_text("half")
    with claim(settings.changed(batch_size=2)):
        assert names(folder) == [".holder.txt", ".lock", ".my-notes.txt", "settings.yaml"] and other.is_file()
        assert "batch_size: 2" in (folder / "settings.yaml").read_text()


def test_force_empties_the_folder_and_drops_event_files_elsewhere_and_excludes_resume(tmp_path):
    settings = tiny_settings(tmp_path, tensorboard_dir=tmp_path / "logs")
    others = settings.changed(seed=7)
    for each in (settings, others):
        begin(each)
        each.tensorboard_folder.mkdir(parents=True)
        (each.tensorboard_folder / "events.out.tfevents.1").write_text("x")
    before = names(settings.run_dir)
    both = pytest.raises(RunError, match="--resume goes on from a checkpoint, --force drops what is there")
    with both, claim(settings, resume="last.ckpt", force=True):
        pass
    assert names(settings.run_dir) == before
    with claim(settings.changed(batch_size=2), force=True) as folder:
        assert names(folder) == [".holder.txt", ".lock", "settings.yaml"] and names(settings.tensorboard_folder) == []
        assert names(others.tensorboard_folder) == ["events.out.tfevents.1"]
    write_json(others.run_dir / "manifest.json", {"status": "complete"})
    finished = pytest.raises(RunError, match="the run is finished; there is nothing to resume")
    with finished, claim(others, resume="last.ckpt"):
        pass


def write_run(folder, strategy, seed=0, *, variant="", accuracy=0.8, digest="d", status="complete", evaluated=True):
    settings = Settings(strategy=strategy, variant=variant, seed=seed, outputs_dir=folder, experiment="hand")
    run = settings.run_dir
    write_json(run / "settings.yaml", settings.plain())
    write_json(run / "manifest.json", {"status": status, "data_digest": digest, "pretrained": "random"})
    if evaluated:
        test = {"accuracy": accuracy, "recall": accuracy, "auroc": accuracy, "cam_iou": 0.5, "grid_iou": 0.7}
        write_json(run / "metrics.json", {"threshold": 0.5, "test": test, "test_shift": test | {"accuracy": 0.2}})
        (run / "maps").mkdir()
        for name in ("predictions.csv", "maps/cam.npy"):
            (run / name).touch()
    return run


def test_one_row_per_run_and_split_and_of_several_seeds_a_t_interval(tmp_path):
    write_run(tmp_path, "S2", 1, accuracy=0.9)
    write_run(tmp_path, "S1", 1)
    write_json(tmp_path / "hand/efficientad/seed1/manifest.json", {"strategy": "efficientad", "status": "complete"})
    table = compare(collect_runs(tmp_path / "hand"))
    rows = [["S1", "test", 0.8], ["S1", "test_shift", 0.2], ["S2", "test", 0.9], ["S2", "test_shift", 0.2]]
    assert table[["strategy", "split", "accuracy"]].values.tolist() == rows
    for seed, accuracy in ((2, 0.9), (3, 1.0)):
        write_run(tmp_path, "S1", seed, accuracy=accuracy)
    text = by_strategy(compare(collect_runs(tmp_path / "hand"))).loc["test"]
    # one seed has no interval, three have t(0.975, 2 degrees) = 4.302653 by the standard error 0.1 / sqrt(3)
    assert text["accuracy"].to_dict() == {"S1": "0.900 ± 0.248", "S2": "0.900"} and text.loc["S1", "Loc-IoU"] == "–"
    write_run(tmp_path, "S5", 2, digest="other")
    with pytest.raises(RunError, match="the runs of seed 2 were trained on 2 different datasets"):
        compare(collect_runs(tmp_path / "hand"))


def test_marked_masks_and_variants_are_rows_of_their_own_after_their_strategy(tmp_path):
    random = {"teacher": "random (untrained teacher: not the paper's method)"}
    marks = {"a": {"label_leaks": True}, "b": random, "c": {"teacher": "weights file t.pth"}}
    for variant, added in marks.items():
        path = write_run(tmp_path, "S6", variant=variant) / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | added))
    for strategy, variant in (("S5", "zero"), ("S4", "nowarmup"), ("S5", ""), ("S7", "")):
        for seed in (1, 0):
            write_run(tmp_path, strategy, seed, variant=variant)
    collected, rows = collect_runs(tmp_path / "hand"), ["S4-nowarmup", "S5", "S5-zero", "S6-a", "S6-b", "S6-c", "S7"]
    found = [(runs.row_name(run.settings), run.settings.seed) for run in collected]
    assert found == [(row, seed) for row in rows for seed in ((0,) if "S6" in row else (0, 1))]
    rows[3:5] = ["S6-a (oracle: leaks the label)", "S6-b (masks of a random teacher)"]
    assert by_strategy(compare(collected)).loc["test"].index.tolist() == rows


def test_what_is_missing_is_named(tmp_path):
    write_run(tmp_path, "S1", status="running")
    write_run(tmp_path, "S2", evaluated=False)
    with pytest.raises(RunError, match=r"no evaluated run \(2 started, 1 finished\)"):
        collect_runs(tmp_path / "hand")
    with pytest.raises(RunError, match=r"no run here \(no manifest\.json\); runs below it: .*seed0"):
        runs.load_run(tmp_path / "hand")
    with pytest.raises(RunError, match="the run is trained but not evaluated"):
        _ = runs.load_run(tmp_path / "hand/s2/seed0").metrics
    (weights := tmp_path / "hand/s2/seed0/model.safetensors").write_bytes(b"broken")
    with pytest.raises(RunError, match=r"model\.safetensors: cannot be read: .*; copy it again, or train anew"):
        _ = runs.load_run(weights.parent).model


def test_a_run_that_another_version_wrote_says_both_versions(tmp_path):
    write_run(tmp_path, "S1")
    folder = tmp_path / "hand/s1/seed0"
    stored = yaml.safe_load((folder / "settings.yaml").read_text())
    (folder / "settings.yaml").write_text(yaml.safe_dump(stored | {"warp": 9}))
    manifest = json.loads((folder / "manifest.json").read_text())
    for versions, told in (({"gainmtl": "0.0.1"}, "version 0.0.1"), ({}, "version unknown")):
        (folder / "manifest.json").write_text(json.dumps(manifest | {"versions": versions}))
        with pytest.raises(
            RunError, match=rf"seed0: written by {told}, which this one, .*: unknown parameter 'warp'.*"
        ):
            _ = runs.load_run(folder).settings
        with pytest.raises(RunError, match=rf"written by {told}, which this one, .*: unknown parameter 'warp'"):
            begin(Settings(outputs_dir=tmp_path, experiment="hand", seed=0, strategy="S1"))
        # Of the same settings, with tensors of other names or shapes.
        with (
            pytest.raises(
                RunError, match=rf"weights: written by {told}, .*cannot read: Error\(s\) in loading .*; use that"
            ),
            runs.told_by_version(tmp_path / "weights", versions.get("gainmtl", "unknown")),
        ):
            torch.nn.Linear(2, 2).load_state_dict({"old": torch.zeros(2)})
    (folder / "manifest.json").write_text(json.dumps(manifest | {"versions": {"gainmtl": version("gainmtl")}}))
    with pytest.raises(SettingsError, match="unknown parameter 'warp'"):
        _ = runs.load_run(folder).settings
    with pytest.raises(RunError, match="its weights are not those of its settings"), runs.told_by_version(folder):
        torch.nn.Linear(2, 2).load_state_dict({"old": torch.zeros(2)})
