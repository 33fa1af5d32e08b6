"""Training as a whole, on the tiny study."""

import errno
import json
import pickle
import shutil
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from filelock import FileLock
from lightning.pytorch.loggers import WandbLogger
from tiny import tiny_settings

from gainmtl_lib import train as fit_module
from gainmtl_lib.backbone import ModelError
from gainmtl_lib.losses import GainLoss
from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import FileError, RunError, load_checkpoint_model, load_run
from gainmtl_lib.train import GainTraining, TrainingDivergedError, fit


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("fit")


@pytest.fixture(scope="module")
def finished(shared):
    """A finished S6 run: the strategy with every part and every kind of randomness."""
    return fit(tiny_settings(shared, save_every_n_epochs=2))


def test_a_run_leaves_what_its_folder_promises(finished):
    names = {path.relative_to(finished.folder).as_posix() for path in finished.folder.rglob("*") if path.is_file()}
    wanted = {"settings.yaml", "manifest.json", "model.safetensors"}
    wanted |= {f"checkpoints/{name}.ckpt" for name in ("best", "last", "epoch_2", "epoch_4")}
    assert wanted <= names
    assert not [name for name in names if name.split("/")[-1].startswith(".") and name != ".lock"]
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["pretrained"] == "random" and manifest["provider"] in {"mmpretrain", "timm"}
    assert manifest["split_sizes"] == {"train": 24, "val": 4, "test": 6, "test_shift": 6}
    assert manifest["seed"] == 42 and manifest["precision"] == "bf16-mixed" and manifest["duration_s"] > 0
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    assert manifest["best_epoch"] == 4  # the only epoch that ends after the beginning of stage 4


def test_the_specifications_tags_are_logged(finished):
    tags = set(finished.history["tag"])
    terms = ("total", "cls", "am", "cam_guide", "guide", "loc", "consist", "cf")
    wanted = {f"train/loss_{term}" for term in terms} | {"train/learning_rate", "train/stage"}
    wanted |= {
        "val/accuracy",
        "val/cam_iou",
        "val/val_total",
        "val/val_cls",
        "compare/total_train",
        "compare/total_val",
    }
    assert wanted <= tags
    stages = finished.history.query("tag == 'train/stage'")["value"].tolist()
    assert stages == sorted(stages) and set(stages) <= {1, 2, 3, 4}


def test_model_weights_are_those_of_the_best_checkpoint(finished):
    best, settings = load_checkpoint_model(finished.folder / "checkpoints/best.ckpt")
    assert settings == finished.settings
    for name, value in load_run(finished.folder).model.state_dict().items():
        assert torch.equal(value, best.state_dict()[name]), name


def test_an_equal_run_is_reused_not_trained_twice(finished):
    before = (finished.folder / "checkpoints/last.ckpt").stat().st_mtime_ns
    again = fit(finished.settings)
    assert again.folder == finished.folder
    assert (finished.folder / "checkpoints/last.ckpt").stat().st_mtime_ns == before


def test_other_settings_are_listed(finished):
    other = finished.settings.changed(num_epochs=9, learning_rate=0.5)
    with pytest.raises(RunError) as error:
        fit(other)
    assert "num_epochs: 4 and 9" in str(error.value) and "learning_rate: 0.001 and 0.5" in str(error.value)
    assert "  seed:" not in str(error.value) and "--force" in str(error.value)


def test_a_finished_run_cannot_be_resumed(finished):
    with pytest.raises(RunError, match="the run is finished; there is nothing to resume"):
        fit(finished.settings, resume=finished.folder / "checkpoints/last.ckpt")


def test_a_resumed_run_equals_an_uninterrupted_one(finished, shared, monkeypatch):
    settings = finished.settings.changed(experiment="interrupted")
    step = GainTraining.training_step

    def interrupted(self, batch, batch_idx):
        if self.current_epoch == 2 and batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(GainTraining, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(settings)
    with pytest.raises(RunError, match="not finished"):
        load_run(settings.run_dir)
    monkeypatch.undo()
    resumed = fit(settings)

    def losses(run):
        rows = run.history[run.history["tag"].str.startswith(("train/loss", "val/", "train/learning"))]
        return rows.set_index(["tag", "step"])["value"].sort_index()

    pd.testing.assert_series_equal(losses(resumed), losses(finished), rtol=1e-5, atol=1e-7)
    for name, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, finished.model.state_dict()[name], msg=name)
    assert resumed.manifest["best_epoch"] == finished.manifest["best_epoch"]


def test_a_resumed_run_with_edited_pictures_equals_an_uninterrupted_one(shared, monkeypatch):
    settings = tiny_settings(shared, "S7", experiment="edited", variant="small", mask_share=0.5, num_epochs=2)
    whole = fit(settings)
    assert whole.folder == shared / "outputs/edited/s7-small/seed42"
    assert whole.manifest["edits_per_epoch"] == {  # 12 pictures of either class, half of them edited
        "paste": 2.4, "heal_spot": 0.6, "paste_clean": 3.0, "heal": 2.4, "heal_beside": 3.0, "repaste": 0.6
    }  # fmt: skip
    assert whole.manifest["train_annotated"] == 6 and whole.manifest["train_defective"] == 12
    step = GainTraining.training_step

    def interrupted(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(GainTraining, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(settings.changed(experiment="edited_later"))
    monkeypatch.undo()
    resumed = fit(settings.changed(experiment="edited_later"))
    assert all(torch.equal(v, whole.model.state_dict()[k]) for k, v in resumed.model.state_dict().items())
    assert [each for each in whole.manifest if each not in resumed.manifest] == []


def test_masks_of_pictures_that_are_not_used_leave_the_data_as_it_is(shared):
    full = fit(tiny_settings(shared, "S1", experiment="full", num_epochs=1))
    part = fit(tiny_settings(shared, "S1", experiment="part", num_epochs=1, mask_share=0.25, mask_quality="box"))
    assert part.manifest["data_digest"] == full.manifest["data_digest"]
    assert (full.manifest["train_annotated"], part.manifest["train_annotated"]) == (12, 3)
    assert full.manifest["edits_per_epoch"] == {}


def test_data_that_is_there_is_not_built_again(shared, monkeypatch):
    settings = tiny_settings(shared, "S1", experiment="given", num_epochs=1)
    data = fit_module.build_data(settings)
    monkeypatch.setattr(fit_module, "build_data", None)
    run = fit(settings, data=data)
    assert fit(settings, data=data).folder == run.folder


def test_edits_without_masks_leave_no_half_run(shared):
    settings = tiny_settings(shared, "S7", experiment="no_masks", mask_share=0.0)
    with pytest.raises(DataError, match=r"image_counterfactual is 0\.5, but none of the 12 defective training images"):
        fit(settings)
    assert [path.name for path in settings.run_dir.iterdir()] == [".lock"]


def test_the_same_seed_gives_the_same_model_another_seed_another(finished, shared):
    same = fit(finished.settings.changed(experiment="again"))
    other = fit(finished.settings.changed(seed=7))
    assert all(torch.equal(v, finished.model.state_dict()[k]) for k, v in same.model.state_dict().items())
    assert not torch.equal(other.model.cls_head.out.weight, finished.model.cls_head.out.weight)


def test_resume_takes_a_periodic_checkpoint_of_another_run(finished, shared):
    settings = finished.settings.changed(experiment="from_epoch_2")
    run = fit(settings, resume=finished.folder / "checkpoints/epoch_2.ckpt")
    assert run.history.query("tag == 'val/accuracy'")["value"].size == 2
    torch.testing.assert_close(run.model.cls_head.out.weight, finished.model.cls_head.out.weight)


def test_a_checkpoint_of_another_model_names_what_differs(finished, shared):
    settings = tiny_settings(shared, "S3", experiment="other", head_channels=8)
    with pytest.raises(RunError) as error:
        fit(settings, resume=finished.folder / "checkpoints/last.ckpt")
    assert "a checkpoint of another model" in str(error.value)
    assert "strategy: 'S6' and 'S3'" in str(error.value) and "head_channels: 16 and 8" in str(error.value)


def test_a_best_score_without_its_file_does_not_travel(finished, shared):
    checkpoint = torch.load(finished.folder / "checkpoints/epoch_2.ckpt", weights_only=True)
    state = next(value for name, value in checkpoint["callbacks"].items() if "RunCheckpoints" in name)
    state["best_score"], state["best_epoch"] = [2.0, 2.0], 1  # of epoch 1, never to be reached again
    torch.save(checkpoint, shared / "travelled.ckpt")
    run = fit(finished.settings.changed(experiment="travelled"), resume=shared / "travelled.ckpt")
    assert run.manifest["best_epoch"] == 4 and run.manifest["best_val_ap"] <= 1


def test_resume_and_force_exclude_each_other(finished):
    before = sorted(finished.folder.rglob("*"))
    with pytest.raises(RunError, match="--resume goes on from a checkpoint, --force drops what is there"):
        fit(finished.settings, resume=finished.folder / "checkpoints/epoch_2.ckpt", force=True)
    assert sorted(finished.folder.rglob("*")) == before


def test_best_holds_no_optimiser_and_says_so(finished, shared):
    settings = finished.settings.changed(experiment="from_best")
    with pytest.raises(RunError, match=r"no optimiser state; resume from last\.ckpt"):
        fit(settings, resume=finished.folder / "checkpoints/best.ckpt")


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_file_that_is_no_checkpoint_is_never_executed(shared):
    settings = tiny_settings(shared, experiment="bomb")
    bomb, touched = shared / "bomb.ckpt", shared / "touched"
    torch.save({"state_dict": _Bomb(str(touched))}, bomb)
    plain = shared / "plain.ckpt"
    plain.write_bytes(pickle.dumps(_Bomb(str(touched))))
    for path in (bomb, plain):
        with pytest.raises(RunError, match="not a checkpoint that can be read safely"):
            fit(settings, resume=path)
    assert not touched.exists()
    tensors = shared / "tensors.ckpt"
    torch.save({"weight": torch.zeros(1)}, tensors)
    with pytest.raises(RunError, match="not a training checkpoint of this project"):
        fit(settings, resume=tensors)
    with pytest.raises(RunError, match="no such checkpoint"):
        fit(settings, resume=shared / "missing.ckpt")


def test_a_folder_in_use_is_refused(shared):
    settings = tiny_settings(shared, experiment="locked")
    settings.run_dir.mkdir(parents=True)
    with FileLock(settings.run_dir / ".lock"), pytest.raises(RunError, match="another process is writing to this run"):
        fit(settings)


def test_nan_stops_with_the_term_the_step_and_what_to_try(shared, monkeypatch):
    forward = GainLoss.forward

    def broken(self, output, batch, weights):
        losses = forward(self, output, batch, weights)
        if weights["am"] > 0:
            losses["am"] = losses["am"] * float("nan")
            losses["total"] = losses["total"] + losses["am"]
        return losses

    monkeypatch.setattr(GainLoss, "forward", broken)
    settings = tiny_settings(shared, "S3", experiment="nan")
    with pytest.raises(TrainingDivergedError) as error:
        fit(settings)
    text = str(error.value)
    assert "the loss became nan in am at epoch 2, step 3" in text and "lower learning_rate" in text
    assert (settings.run_dir / "checkpoints/last.ckpt").is_file()


def test_a_full_disk_keeps_the_checkpoint_before(shared, monkeypatch):
    settings = tiny_settings(shared, "S1", experiment="full_disk")
    save = torch.save
    calls = []

    def full(obj, f, *args, **kwargs):
        calls.append(f)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(obj, f, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FileError, match="the disk is full"):
        fit(settings)
    assert calls, "the checkpoint is not written by torch.save"
    monkeypatch.undo()
    names = sorted(path.name for path in (settings.run_dir / "checkpoints").iterdir())
    assert names == ["last.ckpt"]
    run = fit(settings)
    assert run.manifest["status"] == "complete"


def test_data_that_changed_since_is_refused(shared):
    settings = tiny_settings(shared, "S1", experiment="moved", data_root=shared / "data2", dataset_type="generic")
    shutil.copytree(shared / "data", shared / "data2")
    fit(settings)
    next((shared / "data2/images/train/normal").iterdir()).unlink()
    with pytest.raises(RunError, match="the data changed since this run was started"):
        fit(settings)


def test_force_starts_anew(shared):
    settings = tiny_settings(shared, "S1", experiment="forced", num_epochs=1)
    first = fit(settings).manifest["started"]
    run = fit(settings.changed(batch_size=4), force=True)
    assert run.settings.batch_size == 4 and run.manifest["started"] >= first


def test_bad_data_leaves_no_half_run(tmp_path):
    settings = tiny_settings(tmp_path, dataset_type="generic", data_root=tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere"):
        fit(settings)
    assert [path.name for path in settings.run_dir.iterdir()] == [".lock"]


def test_a_start_that_failed_does_not_stand_in_the_way_of_the_corrected_one(shared, monkeypatch):
    corrected = tiny_settings(shared, "S1", experiment="corrected", num_epochs=1)
    wrong = (
        {"data_root": shared / "typo", "dataset_type": "generic"},
        {"pretrained": shared / "gone.pth"},
        {"use_wandb": True},
    )
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    for mistake, message in zip(wrong, ("typo", "no such weights file", "wandb is missing"), strict=True):
        with pytest.raises((DataError, ModelError, RunError), match=message):
            fit(corrected.changed(**mistake))
        assert [path.name for path in corrected.run_dir.iterdir()] == [".lock"]
    assert fit(corrected).manifest["status"] == "complete"


def test_tensorboard_can_be_off_or_elsewhere(shared):
    off = fit(tiny_settings(shared, "S1", experiment="quiet", use_tensorboard=False, num_epochs=1))
    assert not (off.folder / "tensorboard").exists()
    with pytest.raises(RunError, match="no TensorBoard log of this run; train with use_tensorboard: true"):
        _ = off.history
    elsewhere = fit(tiny_settings(shared, "S1", experiment="there", tensorboard_dir=shared / "tb", num_epochs=1))
    assert list((shared / "tb/there/s1/seed42").glob("events.out.*"))
    assert len(elsewhere.history)


def test_a_copied_run_has_its_own_curves(finished, tmp_path):
    copied, bare = tmp_path / "copied", tmp_path / "bare"
    shutil.copytree(finished.folder, copied)
    shutil.copytree(finished.folder, bare, ignore=shutil.ignore_patterns("tensorboard"))
    pd.testing.assert_frame_equal(load_run(copied).history, finished.history)
    with pytest.raises(RunError, match="bare/tensorboard: no TensorBoard log of this run"):
        _ = load_run(bare).history


def test_wandb_is_named_when_it_is_missing(shared, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(RunError, match="use_wandb is true but the package wandb is missing; pip install wandb"):
        fit(tiny_settings(shared, "S1", experiment="wandb", use_wandb=True))


def test_a_wandb_run_is_closed_so_that_the_next_training_opens_its_own():
    class WithoutService(WandbLogger):
        experiment = Mock()

        def __init__(self):
            pass

    fit_module._finish([WithoutService()])
    WithoutService.experiment.finish.assert_called_once_with()


def test_the_mixer_covers_every_annotated_training_image(shared):
    settings = tiny_settings(shared)
    data = fit_module.build_data(settings)
    data.setup("fit")
    mixer = fit_module._mixer(settings, data)
    assert mixer.bank.shape == (12, 1, 4, 4)
    assert set(mixer.place) == set(data.samples.query("split == 'train' and label == 1").index)


def test_the_mixer_knows_masks_of_pasted_defects_too(shared):
    settings = tiny_settings(shared, image_counterfactual=1.0)
    data = fit_module.build_data(settings)
    data.setup("fit")
    mixer = fit_module._mixer(settings, data)
    assert len(mixer.bank) == 12 + 8  # an epoch shows 4.8 of them pasted and 7.2 as they are stored
    assert sorted(mixer.place.values()) == list(range(12))
