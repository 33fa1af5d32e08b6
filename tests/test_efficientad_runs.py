"""Runs and checkpoints of EfficientAD, read back."""

import pytest
import torch
from anomaly_runs import TEACHER, tiny_anomaly_settings, untrained, write_anomaly_run, write_checkpoint

from gainmtl_lib.efficientad.train import EfficientADRun, load_checkpoint, load_efficientad, open_run
from gainmtl_lib.runs import Run, RunError, load_checkpoint_model, load_run, write_json


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_anomaly_run(tiny_anomaly_settings(tmp_path_factory.mktemp("runs")))


def test_a_run_gives_back_what_was_written(run):
    loaded = load_efficientad(str(run.folder))
    assert isinstance(loaded, EfficientADRun) and loaded.settings == run.settings
    assert loaded.teacher == TEACHER["text"] and loaded.penalty == "textures"
    expected = untrained(run.settings).state_dict()
    stored = loaded.model.state_dict()
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())
    assert not loaded.model.training


def test_a_run_that_is_not_evaluated_says_so(run):
    assert not run.is_evaluated
    with pytest.raises(RunError, match=r"metrics\.json does not exist: the run is trained but not evaluated"):
        _ = run.scale


def test_runs_of_both_systems_are_opened_as_what_they_are(run, tmp_path):
    write_json(tmp_path / "manifest.json", {"strategy": "S5", "status": "complete"})
    assert isinstance(open_run(run.folder), EfficientADRun)
    assert type(open_run(tmp_path)) is Run
    with pytest.raises(RunError, match="a run of strategy S5, not of EfficientAD; see gainmtl evaluate --help"):
        load_efficientad(tmp_path)
    with pytest.raises(RunError, match="a run of EfficientAD, not of a GAIN-MTL strategy; see gainmtl efficientad"):
        load_run(run.folder)


@pytest.mark.parametrize("opened", [open_run, load_efficientad])
def test_a_folder_without_a_finished_run_is_an_error(opened, tmp_path):
    with pytest.raises(RunError, match=r"no run here \(no manifest\.json\)"):
        opened(tmp_path)
    write_json(tmp_path / "manifest.json", {"strategy": "efficientad", "status": "running"})
    with pytest.raises(RunError, match=r"the run is not finished \(status 'running'\)"):
        opened(tmp_path)


def test_a_checkpoint_gives_model_settings_and_teacher(run):
    model, settings, teacher = load_checkpoint(run.folder / "checkpoints/best.ckpt")
    assert settings == run.settings and teacher == TEACHER["text"] and not model.training
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(images).anomaly_map, run.model(images).anomaly_map)


def test_a_checkpoint_of_the_other_system_is_refused(tmp_path):
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": {}, "gainmtl_settings": {"strategy": "S5"}}, path)
    with pytest.raises(RunError, match=r"best\.ckpt: a checkpoint of a GAIN-MTL strategy, not of EfficientAD"):
        load_checkpoint(path)


def test_the_other_system_refuses_this_ones(run):
    with pytest.raises(RunError, match=r"best\.ckpt: a checkpoint of EfficientAD, not of a GAIN-MTL strategy"):
        load_checkpoint_model(run.folder / "checkpoints/best.ckpt")


def test_a_checkpoint_outside_its_run_is_enough(run, tmp_path):
    path = write_checkpoint(untrained(run.settings), run.settings, tmp_path / "moved.ckpt")
    assert load_checkpoint(path).teacher == TEACHER["text"]
