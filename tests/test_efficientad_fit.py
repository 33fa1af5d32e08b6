"""Training EfficientAD as a whole, on the smallest networks there are."""

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from anomaly_runs import tiny_anomaly_settings
from torch.utils.data import DataLoader, TensorDataset

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.efficientad import train as fit_module
from gainmtl_lib.efficientad.data import DatasetProvider, TrainStream, build_penalty, build_provider, recoloured
from gainmtl_lib.efficientad.model import load_teacher, teacher_of
from gainmtl_lib.efficientad.train import (
    EfficientADTraining,
    Scores,
    Validation,
    build_model,
    fit_efficientad,
    load_checkpoint,
    load_efficientad,
)
from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import RunError, hold, load_run, read_checkpoint, save_weights
from gainmtl_lib.train import DeviceError, TrainingDivergedError, inference_autocast


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("efficientad")


@pytest.fixture(scope="module")
def settings(shared):
    """Nine steps, of which the learning rate falls in the last; four validations, one checkpoint too many."""
    return tiny_anomaly_settings(shared, max_steps=9, val_every_n_steps=2, learning_rate=1e-3)


@pytest.fixture(scope="module")
def finished(settings):
    return fit_efficientad(settings)


def checkpoints(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def first_step(run):
    """The earliest of the top three, after which something is left to train."""
    return min((run.folder / "checkpoints").glob("step_*.ckpt"), key=lambda path: int(path.stem.split("_")[1]))


def scored(monkeypatch, *scores):
    """Validations give these image AUROCs in turn, whatever the model says; the last one again and again."""
    left = list(scores)

    def finish(self, model):
        model.set_quantiles(self._quantiles.compute(), images=self._quantiles.images)
        return Scores(left.pop(0) if len(left) > 1 else left[0], 0.5)

    monkeypatch.setattr(Validation, "finish", finish)


def interrupted(monkeypatch, *, at):
    """Ctrl-C once so many steps are done."""
    step = EfficientADTraining.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == at:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(EfficientADTraining, "training_step", training_step)


def test_a_run_leaves_what_its_folder_promises(finished):
    names = {path.relative_to(finished.folder).as_posix() for path in finished.folder.rglob("*") if path.is_file()}
    assert {"settings.yaml", "manifest.json", "model.safetensors", "checkpoints/best.ckpt"} <= names
    assert not [name for name in names if name.split("/")[-1].startswith(".") and name != ".lock"]
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    assert manifest["status"] == "complete" and manifest["strategy"] == "efficientad"
    assert manifest["teacher"]["kind"] == "random" and "untrained" in finished.teacher
    assert finished.penalty == build_penalty(finished.settings).text
    assert manifest["split_sizes"]["train"] == 12 and manifest["split_sizes"]["val"] == 2
    assert manifest["steps"] == manifest["total_steps"] == 9 and manifest["duration_s"] > 0
    assert manifest["precision"] == "32-true" and manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    assert 0 <= manifest["best_val_auroc"] <= 1 and 0 <= manifest["best_val_pixel_auroc"] <= 1
    with pytest.raises(RunError, match="a run of EfficientAD"):
        load_run(finished.folder)


def test_best_last_and_the_top_three_are_kept(finished):
    noted = finished.history.query("tag in ('val/image_auroc', 'val/pixel_auroc')").pivot_table(
        index="step", columns="tag", values="value"
    )
    ranked = noted.sort_values(list(noted), ascending=False, kind="stable").index + 1
    assert checkpoints(finished.folder) == ["best.ckpt", "last.ckpt", *sorted(f"step_{n}.ckpt" for n in ranked[:3])]
    assert finished.manifest["best_step"] == ranked[0]
    assert read_checkpoint(finished.folder / "checkpoints/last.ckpt")["global_step"] == 9


def test_the_four_terms_are_logged_and_the_learning_rate_falls_at_95_percent(finished):
    tags = set(finished.history["tag"])
    terms = {f"train/{term}_loss" for term in ("st", "penalty", "ae", "stae")}
    assert terms | {"train/loss_total", "train/learning_rate", "val/image_auroc", "val/pixel_auroc"} <= tags
    rates = finished.history.query("tag == 'train/learning_rate'").set_index("step")["value"]
    assert rates.index.tolist() == [1, 3, 5, 7]
    assert rates.tolist() == pytest.approx([1e-3] * 4)
    last = read_checkpoint(finished.folder / "checkpoints/last.ckpt")
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-4)


def test_the_weights_are_those_of_the_best_checkpoint_with_a_scale_of_its_own(finished):
    best = load_checkpoint(finished.folder / "checkpoints/best.ckpt")
    assert best.settings == finished.settings and best.teacher == finished.teacher
    stored = load_efficientad(finished.folder).model.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in best.model.state_dict().items())
    scales = set()
    for path in (finished.folder / "checkpoints").glob("step_*.ckpt"):
        scales.add(tuple(load_checkpoint(path).model.quantiles.flatten().tolist()))
    assert len(scales) == 3 and tuple(stored["quantiles"].flatten().tolist()) in scales


def test_the_teacher_stays_as_it_was(finished, settings):
    state, _ = teacher_of(settings)
    assert all(torch.equal(value, finished.model.teacher.state_dict()[name]) for name, value in state.items())
    assert not torch.equal(finished.model.teacher_mean, torch.zeros(1, 8, 1, 1))


def test_an_equal_run_is_reused_not_trained_twice(finished, settings, monkeypatch):
    monkeypatch.setattr(fit_module, "_train", None)
    assert fit_efficientad(settings).folder == finished.folder
    with pytest.raises(RunError, match="out_channels: 8 and 16"):
        fit_efficientad(settings.changed(out_channels=16))
    with pytest.raises(RunError, match="the run is finished; there is nothing to resume"):
        fit_efficientad(settings, resume=finished.folder / "checkpoints/last.ckpt")
    with pytest.raises(RunError, match="--resume goes on from a checkpoint, --force drops what is there"):
        fit_efficientad(settings, resume=finished.folder / "checkpoints/last.ckpt", force=True)


def curves(run):
    return run.history.set_index(["tag", "step"])["value"].sort_index()


def test_a_resumed_run_equals_an_uninterrupted_one(finished, settings, monkeypatch):
    other = settings.changed(experiment="interrupted")
    interrupted(monkeypatch, at=5)
    with pytest.raises(KeyboardInterrupt):
        fit_efficientad(other)
    with pytest.raises(RunError, match="not finished"):
        load_efficientad(other.run_dir)
    monkeypatch.undo()
    torch.rand(3)
    resumed = fit_efficientad(other)
    pd.testing.assert_series_equal(curves(resumed), curves(finished), rtol=0, atol=0)
    for name, value in read_checkpoint(resumed.folder / "checkpoints/last.ckpt")["state_dict"].items():
        assert torch.equal(value, read_checkpoint(finished.folder / "checkpoints/last.ckpt")["state_dict"][name]), name
    assert checkpoints(resumed.folder) == checkpoints(finished.folder)
    for key in ("best_step", "best_val_auroc", "best_val_pixel_auroc", "steps"):
        assert resumed.manifest[key] == finished.manifest[key]


def test_a_checkpoint_of_another_run_can_be_gone_on_from(finished, settings, shared, tmp_path):
    shutil.copy(finished.folder / "checkpoints/last.ckpt", tmp_path)
    with pytest.raises(RunError, match=r"all 9 steps are done, and .* is not theirs"):
        fit_efficientad(settings.changed(experiment="further"), resume=tmp_path / "last.ckpt")
    run = fit_efficientad(settings.changed(experiment="further"), resume=first_step(finished))
    assert torch.equal(
        read_checkpoint(run.folder / "checkpoints/last.ckpt")["state_dict"]["model.student.convolutions.0.weight"],
        read_checkpoint(finished.folder / "checkpoints/last.ckpt")["state_dict"]["model.student.convolutions.0.weight"],
    )


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"out_channels": 16, "padding": True}, ["of another model", "out_channels: 8 and 16", "padding: False and"]),
        (
            {"max_steps": 20, "learning_rate": 0.5, "ae_weight": 0.5, "devices": 2, "val_every_n_steps": 3},
            ["with another plan", "max_steps: 9 and 20", "learning_rate: 0.001 and 0.5", "ae_weight: 1.0 and 0.5",
             "devices: 1 and 2", "val_every_n_steps: 2 and 3", "the learning rate follows the whole training"],
        ),
        ({"seed": 7}, ["a checkpoint with another teacher", "untrained"]),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_training_names_what_differs(finished, settings, changes, messages):
    step = first_step(finished)
    with pytest.raises(RunError) as error:
        fit_efficientad(settings.changed(experiment="other", **changes), resume=step)
    assert all(message in str(error.value) for message in messages)


def test_best_holds_no_optimiser_and_says_so(finished, settings):
    with pytest.raises(RunError, match=r"no optimiser state; resume from last\.ckpt or step_<n>\.ckpt"):
        fit_efficientad(settings.changed(experiment="best"), resume=finished.folder / "checkpoints/best.ckpt")


def test_a_training_that_no_longer_improves_stops(settings, monkeypatch, caplog):
    caplog.set_level("INFO", logger="gainmtl_lib")
    scored(monkeypatch, 0.6, 0.8, 0.7)
    run = fit_efficientad(settings.changed(experiment="early", val_every_n_steps=1, patience=2))
    assert run.manifest["steps"] == 4 and run.manifest["best_step"] == 2 and run.manifest["best_val_auroc"] == 0.8
    assert checkpoints(run.folder) == ["best.ckpt", "last.ckpt", "step_2.ckpt", "step_3.ckpt", "step_4.ckpt"]
    assert "stops at step 4: no better validation since step 2" in caplog.messages
    scored(monkeypatch, 0.6, 0.8, 0.7)
    late = settings.changed(experiment="late", val_every_n_steps=1, patience=2, early_stopping=False, max_steps=5)
    assert fit_efficientad(late).manifest["steps"] == 5


def test_patience_is_counted_across_an_interruption(settings, monkeypatch):
    asked = settings.changed(experiment="patient", val_every_n_steps=1, patience=3)
    scored(monkeypatch, 0.8, 0.7)
    interrupted(monkeypatch, at=3)
    with pytest.raises(KeyboardInterrupt):
        fit_efficientad(asked)
    monkeypatch.undo()
    scored(monkeypatch, 0.7)
    run = fit_efficientad(asked)
    assert run.manifest["steps"] == 4 and run.manifest["best_step"] == 1 and run.manifest["best_val_auroc"] == 0.8


def test_a_training_that_had_stopped_is_only_finished(settings, monkeypatch):
    asked = settings.changed(experiment="stopped", val_every_n_steps=1, patience=1, max_steps=20)
    scored(monkeypatch, 0.8)
    monkeypatch.setattr(fit_module, "_leave_best", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit_efficientad(asked)
    monkeypatch.undo()
    monkeypatch.setattr(fit_module, "fit_interruptibly", None)
    assert fit_efficientad(asked).manifest["steps"] == 2


def test_nan_stops_with_the_term_the_step_and_what_to_try(settings, monkeypatch):
    asked = settings.changed(experiment="nan")
    losses = EfficientADTraining.losses

    def broken(self, *images):
        terms = losses(self, *images)
        return terms | {"ae": terms["ae"] * (float("nan") if self.global_step == 2 else 1)}

    monkeypatch.setattr(EfficientADTraining, "losses", broken)
    with pytest.raises(TrainingDivergedError, match=r"became nan in ae at step 3; .*lower learning_rate"):
        fit_efficientad(asked)
    assert read_checkpoint(asked.run_dir / "checkpoints/last.ckpt")["global_step"] == 2


def test_a_checkpoint_that_is_refused_costs_the_run_nothing(finished, settings, shared, tmp_path, monkeypatch):
    asked = settings.changed(experiment="kept")
    interrupted(monkeypatch, at=3)
    with pytest.raises(KeyboardInterrupt):
        fit_efficientad(asked)
    monkeypatch.undo()
    kept = checkpoints(asked.run_dir)
    other = shutil.copy(first_step(finished), tmp_path)
    stored = read_checkpoint(other)
    torch.save(stored | {"teacher": stored["teacher"] | {"seed": 7}}, other)
    with pytest.raises(RunError, match="a checkpoint with another teacher"):
        fit_efficientad(asked, resume=other)
    assert "best.ckpt" in kept and checkpoints(asked.run_dir) == kept


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"teacher": "nowhere.pth"}, ModelError, "nowhere.pth"),
        ({"penalty_images": "nowhere"}, DataError, "nowhere: no such folder; penalty_images"),
        ({"precision": "16"}, DeviceError, "precision '16' needs a GPU"),
    ],
)
def test_what_settings_alone_get_wrong_is_said_before_pictures_are_decoded(
    settings, monkeypatch, changes, error, message
):
    monkeypatch.setattr(fit_module, "check_validation", lambda provider: 1 / 0)
    with pytest.raises(error, match=message):
        fit_efficientad(settings.changed(experiment="mistaken", **changes))


def test_a_training_says_at_once_what_is_not_the_papers(settings, monkeypatch, caplog):
    caplog.set_level("INFO", logger="gainmtl_lib")
    interrupted(monkeypatch, at=0)
    with pytest.raises(KeyboardInterrupt):
        fit_efficientad(settings.changed(experiment="said"))
    said = next(message for message in caplog.messages if message.startswith("teacher: random (untrained"))
    assert "penalty images: drawn pictures (not natural images" in said


def test_a_training_of_few_steps_has_its_curves_too(settings):
    run = fit_efficientad(settings.changed(experiment="few", max_steps=3, val_every_n_steps=1000))
    assert run.history.query("tag == 'train/st_loss'")["step"].tolist() == [2]
    assert run.manifest["steps"] == run.manifest["best_step"] == 3


def test_batches_epochs_and_precision(settings):
    run = fit_efficientad(
        settings.changed(experiment="batches", train_batch_size=5, max_epochs=1, precision="bf16", padding=True)
    )
    assert run.manifest["steps"] == 3 and run.manifest["precision"] == "bf16-mixed"  # 12 images: 5, 5 and 2
    model, validation = load_efficientad(run.folder).model, Validation(seed=42)
    model.to(memory_format=torch.channels_last)
    with torch.inference_mode(), inference_autocast("bf16", torch.device("cpu")):  # as whatever reads the run
        for batch in build_provider(run.settings).get_val_dataloader():
            validation.update(model.local_maps(batch.images), batch)
    stored = model.quantiles.clone()
    validation.finish(model)
    torch.testing.assert_close(model.quantiles, stored)


class OwnPictures(DatasetProvider):
    """Plain tensors to learn from, as a user may have them."""

    def __init__(self, settings, normal_only=False):
        self.validation = build_provider(settings)
        self.normal_only = normal_only

    def get_train_dataloader(self):
        pictures = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(pictures), batch_size=2, shuffle=True, collate_fn=stacked)

    def get_val_dataloader(self):
        return self.get_train_dataloader() if self.normal_only else self.validation.get_val_dataloader()


def stacked(items):
    return torch.stack([item[0] for item in items])


def test_a_users_own_provider_trains_and_resumes(settings, monkeypatch):
    asked = settings.changed(experiment="own", max_steps=5)
    whole = fit_efficientad(asked, provider=OwnPictures(asked))
    assert "OwnPictures" in whole.manifest["data_digest"] and whole.manifest["steps"] == 5
    other = asked.changed(experiment="own_interrupted")
    interrupted(monkeypatch, at=4)
    with pytest.raises(KeyboardInterrupt):
        fit_efficientad(other, provider=OwnPictures(other))
    monkeypatch.undo()
    resumed = fit_efficientad(other, provider=OwnPictures(other))
    pd.testing.assert_series_equal(curves(resumed), curves(whole), rtol=0, atol=0)


def test_a_validation_without_anomalies_is_refused_before_training(settings):
    asked = settings.changed(experiment="normal_only")
    with pytest.raises(DataError, match="OwnPictures: the validation images are 6 normal and 0 anomalous ones"):
        fit_efficientad(asked, provider=OwnPictures(asked, normal_only=True))
    assert [path.name for path in asked.run_dir.iterdir()] == [".lock"]


def test_a_teachers_file_is_recorded_and_one_that_does_not_fit_is_refused(settings, shared):
    teacher = shared / "teacher.safetensors"
    save_weights(build_model(settings).teacher, teacher)
    run = fit_efficientad(settings.changed(experiment="file", teacher=teacher, max_steps=1))
    assert run.teacher == "weights file teacher.safetensors" and run.manifest["teacher"]["digest"]
    with pytest.raises(ModelError):
        fit_efficientad(settings.changed(experiment="unfit", teacher=teacher, out_channels=16))


def test_penalty_pictures_that_changed_since_are_refused(settings, shared, monkeypatch):
    folder = shared / "natural"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8))
    asked = settings.changed(experiment="penalty", penalty_images=folder)
    interrupted(monkeypatch, at=3)
    with pytest.raises(KeyboardInterrupt):
        fit_efficientad(asked)
    monkeypatch.undo()
    (folder / "b.png").unlink()
    with pytest.raises(RunError, match="the folder penalty_images changed since this run was started"):
        fit_efficientad(asked)


def test_a_machine_without_the_device_says_so_and_leaves_nothing(settings, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    asked = settings.changed(experiment="nowhere", accelerator="mps")
    with pytest.raises(DeviceError, match="'mps', but this machine has none"):
        fit_efficientad(asked)
    assert [path.name for path in asked.run_dir.iterdir()] == [".lock"]


def test_a_folder_in_use_is_refused(settings):
    asked = settings.changed(experiment="locked")
    asked.run_dir.mkdir(parents=True)
    with hold(asked.run_dir), pytest.raises(RunError, match="another process is writing to this run"):
        fit_efficientad(asked)


def test_tensorboard_can_be_off(settings):
    run = fit_efficientad(settings.changed(experiment="quiet", use_tensorboard=False, max_steps=1))
    assert not (run.folder / "tensorboard").exists()


def test_each_of_two_devices_takes_its_own_batch_and_both_learn_from_both(settings):
    """After one step Adam's first moment is a tenth of the gradient, which is the mean of both devices' own."""
    asked = settings.changed(experiment="two", devices=2, max_steps=1)
    run = fit_efficientad(asked)
    assert run.manifest["devices"] == 2 and run.manifest["steps"] == 1
    last = read_checkpoint(run.folder / "checkpoints/last.ckpt")
    torch.manual_seed(asked.seed)
    model = build_model(asked)
    load_teacher(model, teacher_of(asked)[0])
    model.set_teacher_statistics(run.model.teacher_mean.flatten(), run.model.teacher_std.flatten())
    training = EfficientADTraining(model=model, total_steps=1, seed=asked.seed, weight_decay=asked.weight_decay)
    parameters = [parameter for parameter in training.parameters() if parameter.requires_grad]
    stream = TrainStream(build_provider(asked), build_penalty(asked), batch_size=1, seed=asked.seed)
    batches = list(stream.interval(0, 2))
    assert not torch.equal(batches[0].images, batches[1].images)
    for batch in batches:
        (alone(training, batch) / 2).backward()
    moments = last["optimizer_states"][0]["state"]
    for place, parameter in enumerate(parameters):
        expected = 0.1 * (parameter.grad + asked.weight_decay * parameter.detach())
        torch.testing.assert_close(moments[place]["exp_avg"], expected, rtol=1e-3, atol=1e-6)


def alone(training, batch):
    """The loss of one step outside a trainer."""
    torch.manual_seed(training.seed * 1_000_003 + batch.number)
    augmented = recoloured(batch.images, seed=training.seed, number=batch.number)
    return sum(training.losses(batch.images, augmented, batch.penalty).values())
