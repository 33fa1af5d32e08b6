"""Training EfficientAD as a whole, on the smallest networks there are; its steps, validations and finished runs."""

import math
from types import SimpleNamespace

import pytest
import torch
from anomaly_runs import set_statistics, tiny_anomaly_settings
from torch.utils.data import DataLoader

from gainmtl_lib import runs
from gainmtl_lib.backbone import ModelError
from gainmtl_lib.dataset import Batch
from gainmtl_lib.devices import DeviceError, inference_autocast
from gainmtl_lib.efficientad import data
from gainmtl_lib.efficientad import model as networks
from gainmtl_lib.efficientad import train as module
from gainmtl_lib.efficientad.data import SplitProvider
from gainmtl_lib.efficientad.model import EfficientADModel, LocalMaps
from gainmtl_lib.efficientad.train import EfficientADTraining, fit_efficientad, load_efficientad
from gainmtl_lib.findings import DataError
from gainmtl_lib.processes import Part
from gainmtl_lib.runs import RunError
from gainmtl_lib.train import TrainingDivergedError


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Nine steps, of which the learning rate falls in the last; five validations, two checkpoints too many."""
    folder = tmp_path_factory.mktemp("efficientad")
    return tiny_anomaly_settings(folder, max_steps=9, val_every_n_steps=2, learning_rate=1e-3)


@pytest.fixture(scope="module")
def finished(settings):
    return fit_efficientad(settings)


def checkpoints(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def last(run):
    return runs.read_checkpoint(run.folder / "checkpoints/last.ckpt")


def scored(monkeypatch, *scores):
    left, own = [*scores], module.calibrate

    def told(model, seen):
        own(model, seen)
        return {"image_auroc": left.pop(0) if len(left) > 1 else left[0], "pixel_auroc": 0.5}

    monkeypatch.setattr(module, "calibrate", told)


def interrupted(monkeypatch, *, at):
    step = EfficientADTraining.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == at:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(EfficientADTraining, "training_step", training_step)


def test_a_run_leaves_what_its_folder_promises_and_its_weights_are_the_best(finished, settings, monkeypatch):
    expected = {"status": "complete", "strategy": "efficientad", "precision": "32-true", "steps": 9, "total_steps": 9}
    assert expected.items() <= finished.manifest.items() and finished.manifest["split_sizes"]["train"] == 12
    assert "untrained" in finished.teacher and finished.penalty == data.PenaltyImages(settings).text
    state, _ = networks.teacher_of(settings)
    assert all(torch.equal(value, finished.model.teacher.state_dict()[name]) for name, value in state.items())
    assert not torch.equal(finished.model.teacher_mean, torch.zeros(1, 8, 1, 1))
    logged = {"train/loss_total", "val/image_auroc", "val/pixel_auroc", *(f"train/{t}_loss" for t in networks.TERMS)}
    assert logged <= set(finished.history["tag"])
    assert last(finished)["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-4)  # fallen from 1e-3
    model, stored, teacher = module.load_checkpoint(finished.folder / "checkpoints/best.ckpt")
    assert stored == settings and teacher == finished.teacher and not finished.model.training
    assert all(torch.equal(value, finished.model.state_dict()[name]) for name, value in model.state_dict().items())
    monkeypatch.setattr(module, "_train", None)
    assert fit_efficientad(settings).folder == finished.folder  # not trained twice


def test_a_resumed_run_equals_an_uninterrupted_one(finished, settings, monkeypatch):
    asked = settings.changed(experiment="interrupted")
    interrupted(monkeypatch, at=5)
    with pytest.raises(KeyboardInterrupt):
        fit_efficientad(asked)
    monkeypatch.undo()
    torch.rand(3)
    resumed = fit_efficientad(asked)
    one, other = (run.history.set_index(["tag", "step"])["value"].sort_index() for run in (resumed, finished))
    assert one.equals(other)
    assert all(torch.equal(v, last(finished)["state_dict"][name]) for name, v in last(resumed)["state_dict"].items())
    assert checkpoints(resumed.folder) == checkpoints(finished.folder)


def test_a_checkpoint_of_another_run_can_be_gone_on_from_or_names_what_differs(finished, settings):
    steps = (finished.folder / "checkpoints").glob("step_*.ckpt")
    first = min(steps, key=lambda path: int(path.stem.split("_")[1]))  # after which something is left to train
    run = fit_efficientad(settings.changed(experiment="further", seed=7, split_seed=42), resume=first)
    assert run.manifest["teacher"]["seed"] == 42  # the checkpoint's, which the student had learned to imitate
    assert all(map(torch.equal, run.model.teacher.parameters(), finished.model.teacher.parameters()))
    plan = {"max_steps": 20, "learning_rate": 0.5, "train_batch_size": 2, "val_every_n_steps": 3}
    asked = settings.changed(experiment="other", **plan)
    with pytest.raises(RunError, match="with another plan") as error:
        fit_efficientad(asked, resume=first)
    assert all(f"{name}: {getattr(settings, name)} and {value}" in str(error.value) for name, value in plan.items())
    with pytest.raises(RunError, match=r"(?s)of another model .*out_channels: 8 and 16.*padding: False and True"):
        fit_efficientad(asked.changed(out_channels=16, padding=True), resume=first)


def test_a_training_that_no_longer_improves_stops_also_across_interruptions(settings, monkeypatch):
    asked = settings.changed(experiment="early", val_every_n_steps=1, patience=2)
    scored(monkeypatch, 0.6, 0.8, 0.7)
    interrupted(monkeypatch, at=3)
    with pytest.raises(KeyboardInterrupt):
        fit_efficientad(asked)
    monkeypatch.undo()
    scored(monkeypatch, 0.7)
    monkeypatch.setattr(runs, "save_weights", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit_efficientad(asked)
    monkeypatch.undo()
    monkeypatch.setattr(module.training, "fit_interruptibly", None)  # it had stopped and is only finished
    run = fit_efficientad(asked)
    assert run.manifest["steps"] == 4 and run.manifest["best_step"] == 2 and run.manifest["best_val_auroc"] == 0.8
    assert checkpoints(run.folder) == ["best.ckpt", "last.ckpt", "step_2.ckpt", "step_3.ckpt", "step_4.ckpt"]
    validated = last(run)["callbacks"]["StepCheckpoints"]["validated"]
    assert not module.exhausted(validated, asked.changed(early_stopping=False))


def test_what_settings_alone_get_wrong_is_said_before_pictures_are_decoded(settings, monkeypatch):
    monkeypatch.setattr(data, "check_validation", None)
    for changes, error, message in (
        ({"teacher": "nowhere.pth"}, ModelError, "nowhere.pth"),
        ({"penalty_images": "nowhere"}, DataError, "nowhere: no such folder; penalty_images"),
        ({"precision": "16"}, DeviceError, "precision '16' needs a GPU"),
    ):
        asked = settings.changed(experiment="mistaken", **changes)
        with pytest.raises(error, match=message):
            fit_efficientad(asked)
        assert [path.name for path in asked.run_dir.iterdir()] == [".lock"]


def test_batches_epochs_precision_and_a_teachers_file(settings, tmp_path):
    teacher = tmp_path / "teacher.safetensors"
    runs.save_weights(networks.build_model(settings).teacher, teacher)
    asked = settings.changed(experiment="batches", train_batch_size=5, max_epochs=1, precision="bf16", teacher=teacher)
    run = fit_efficientad(asked.changed(use_tensorboard=False, padding=True))
    assert run.teacher == "weights file teacher.safetensors" and run.manifest["teacher"]["digest"]
    assert run.manifest["steps"] == 3 and run.manifest["precision"] == "bf16-mixed"  # 12 images: 5, 5 and 2
    model = load_efficientad(run.folder).model.to(memory_format=torch.channels_last)
    with torch.inference_mode(), inference_autocast("bf16", torch.device("cpu")):  # as whatever reads the run
        seen = [(model.local_maps(batch.images), batch) for batch in SplitProvider(asked).get_val_dataloader()]
        seen = [(LocalMaps(*(one.float() for one in maps)), batch) for maps, batch in seen]
    stored = model.quantiles.clone()
    module.calibrate(model, seen)
    torch.testing.assert_close(model.quantiles, stored)


class OwnPictures(SplitProvider):
    digest = "own"

    def get_train_dataloader(self):
        images = torch.cat([batch.images for batch in super().get_train_dataloader()])
        return DataLoader(list(images), batch_size=1, shuffle=True)


def test_a_provider_of_ones_own_is_trained_on_and_needs_anomalies_to_validate(settings):
    asked = settings.changed(experiment="own", max_steps=3)
    own = OwnPictures(asked)
    run = fit_efficientad(asked, provider=own)
    assert run.manifest["data_digest"] == "own" and run.manifest["steps"] == 3
    own.get_val_dataloader = own.get_train_dataloader
    with pytest.raises(DataError, match="OwnPictures: the validation images are 12 normal and 0 anomalous ones"):
        fit_efficientad(asked.changed(experiment="normal_only"), provider=own)


@pytest.fixture
def training(tmp_path):
    torch.manual_seed(0)
    settings, model = tiny_anomaly_settings(tmp_path, seed=3), EfficientADModel(out_channels=8)
    return EfficientADTraining(model, settings, total_steps=20)


def test_one_pass_gives_the_losses_of_separate_passes_and_moves_all_but_the_teacher(training):
    model = training.eval().model
    set_statistics(model, torch.randn(8), torch.rand(8) + 0.5)
    images, augmented, penalty = torch.rand(2, 3, 64, 72), torch.rand(2, 3, 64, 72), torch.rand(3, 3, 64, 72)
    terms = training.losses(images, augmented, penalty)
    one, other, third = (model.normalized(part) for part in (images, augmented, penalty))
    grid = model.teacher.grid((64, 72))
    expected = {
        "st": networks.hard_feature_loss(model.student(one)[:, :8], model.describe(one)),
        "penalty": networks.pretraining_penalty(model.student(third)[:, :8]),
        "ae": networks.distance_loss(model.describe(other), model.autoencoder(other, grid)),
        "stae": networks.distance_loss(model.student(other)[:, 8:], model.autoencoder(other, grid)),
    }
    torch.testing.assert_close(terms, expected, rtol=1e-4, atol=1e-6)
    networks_of = {"st": "student", "penalty": "student", "ae": "autoencoder", "stae": "student autoencoder"}
    for term, loss in terms.items():
        training.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == set(networks_of[term].split())
    optimised = training.configure_optimizers()["optimizer"].param_groups[0]["params"]
    expected = [p for name, p in training.named_parameters() if ".teacher." not in name]
    assert {id(p) for p in optimised} == {id(p) for p in expected}


def test_adams_rate_falls_to_a_tenth_at_95_percent_of_the_steps(training):
    for total, decay_from in ((1, 1), (2, 1), (20, 19), (70_000, 66_500)):
        training.total_steps = total
        configured = training.configure_optimizers()
        optimizer, rate = configured["optimizer"], configured["lr_scheduler"]["scheduler"].lr_lambdas[0]
        assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (1e-4, 1e-5)
        assert [rate(step) for step in range(total)] == [1] * decay_from + [0.1] * (total - decay_from)


def step(training, number):
    optimizer = SimpleNamespace(param_groups=[{"lr": 1.0}])
    training._trainer = SimpleNamespace(is_last_batch=False, optimizers=[optimizer], global_step=number, world_size=1)
    training.log_dict = lambda *args, **kwargs: None
    training.on_train_start()
    pictures = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(number))
    return training.training_step((number, Part.whole(1), pictures, pictures.flip(0)), 0)


def test_a_step_follows_from_seed_and_number_and_a_broken_loss_is_named_once_ten_are_looked_at(training, monkeypatch):
    first = step(training.train(), 7)
    torch.rand(5)
    assert torch.equal(step(training, 7), first)
    training.settings = training.settings.changed(seed=4)
    assert not torch.equal(step(training, 7), first)  # other dropout, other colours
    training._losses.clear()
    own, factor = networks.pretraining_penalty, [1, 1, 1, math.inf, *[1] * 6]
    monkeypatch.setattr(networks, "pretraining_penalty", lambda student: own(student) * factor.pop(0))
    with pytest.raises(TrainingDivergedError, match=r"became inf in penalty at step 4; .*learning_rate"):
        for number in range(10):
            step(training, number)
    assert training.trainer.global_step == 9  # each look waits for the device


def test_the_best_has_the_highest_image_auroc_then_pixel_auroc_then_came_first(tmp_path):
    callback = module.StepCheckpoints(tmp_path, tiny_anomaly_settings(tmp_path, patience=4))
    trainer = SimpleNamespace(is_global_zero=True, should_stop=False)
    trainer.save_checkpoint = lambda path, weights_only: path.write_text(str(trainer.global_step))
    pairs = [(0.7, 0.9), (0.8, 0.5), (0.8, 0.6), (0.8, 0.6), (0.75, 1.0), (math.nan, 1.0), (0.7, math.nan)]
    for number, (image, pixel) in enumerate(pairs, start=1):
        trainer.global_step = 10 * number
        trainer.callback_metrics = {"val/image_auroc": image, "val/pixel_auroc": pixel}
        callback.on_train_epoch_end(trainer, None)
        assert trainer.should_stop == (number == 7)  # the fourth after the best
    written = {path.stem: int(path.read_text()) for path in tmp_path.glob("*.ckpt")}
    assert written == {"best": 30, "last": 70, "step_20": 20, "step_30": 30, "step_40": 40}
    other = module.StepCheckpoints(tmp_path / "elsewhere", callback.settings)
    other.load_state_dict(callback.state_dict())
    assert not other.validated  # whose best checkpoint is not there


def calibrated(*, broken=None, masked=True):
    """Two normal images and two anomalous ones whose maps are high on their masks, in three batches."""
    torch.manual_seed(0)
    values, masks, labels = torch.rand(4, 1, 16, 16), torch.zeros(4, 1, 64, 64), torch.tensor([0, 0, 1, 1])
    values[2:, :, 4:8, 4:8] += 5
    masks[2:, :, 16:32, 16:32] = float(masked)
    if broken is not None:
        values[broken, 0, 2, 2] = math.nan
    whole = Batch(torch.zeros(4, 3, 0, 0), labels, masks, (labels == 1) & masked, torch.arange(4))
    parts, model = (slice(0, 1), slice(1, 3), slice(3, 4)), EfficientADModel(out_channels=8, padding=True)
    seen = [(LocalMaps(values[p], 10 * values[p]), Batch(*(each[p] for each in whole))) for p in parts]
    return values, model, module.calibrate(model, seen)


def test_the_scale_comes_from_normal_images_alone():
    values, model, scores = calibrated()
    expected = torch.tensor([torch.quantile(values[:2], q) for q in networks.QUANTILES])
    torch.testing.assert_close(model.quantiles, torch.stack([expected, 10 * expected]))
    assert scores["image_auroc"] == 1 and scores["pixel_auroc"] > 0.98
    _, _, scores = calibrated(masked=False)
    assert scores["image_auroc"] == 1 and math.isnan(scores["pixel_auroc"])
    with pytest.raises(ModelError, match=r"an anomalous validation image has a map that is not finite; .*'32'"):
        calibrated(broken=3)
    with pytest.raises(ModelError, match=r"validation maps \(2\) give no scale .*val_ratio"):
        calibrated(broken=0)


def test_runs_and_checkpoints_of_both_systems_are_told_apart(finished, tmp_path):
    assert type(module.open_run(str(finished.folder))) is module.EfficientADRun
    runs.write_json(tmp_path / "manifest.json", {"strategy": "S5", "status": "complete"})
    assert type(module.open_run(tmp_path)) is runs.Run
    with pytest.raises(RunError, match="a run of EfficientAD, not of a GAIN-MTL strategy; see gainmtl efficientad"):
        runs.load_run(finished.folder)
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}, "gainmtl_settings": {"strategy": "S5"}}, path)
    with pytest.raises(RunError, match=r"other\.ckpt: a checkpoint of a GAIN-MTL strategy, not of EfficientAD"):
        module.load_checkpoint(path)
    with pytest.raises(RunError, match=r"best\.ckpt: a checkpoint of EfficientAD, not of a GAIN-MTL strategy"):
        runs.load_checkpoint_model(finished.folder / "checkpoints/best.ckpt")
