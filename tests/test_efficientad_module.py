"""One training step, the learning rate, what stops a training, and which checkpoints are kept."""

import math
import re
import traceback
from types import SimpleNamespace

import pytest
import torch
from anomaly_runs import tiny_anomaly_settings
from torch.multiprocessing.spawn import ProcessRaisedException

from gainmtl_lib.dataset import Batch
from gainmtl_lib.efficientad.data import TrainBatch, as_raised
from gainmtl_lib.efficientad.model import (
    QUANTILES,
    TERMS,
    EfficientADModel,
    distance_loss,
    hard_feature_loss,
    pretraining_penalty,
    total_loss,
)
from gainmtl_lib.efficientad.train import (
    EfficientADTraining,
    History,
    StepCheckpoints,
    StepLog,
    history_of,
    stops_early,
    total_steps,
)
from gainmtl_lib.readers import DataError
from gainmtl_lib.train import TrainingDivergedError


@pytest.fixture
def training():
    torch.manual_seed(0)
    return EfficientADTraining(model=EfficientADModel(out_channels=8), total_steps=20, seed=3)


@pytest.mark.parametrize("padding", [False, True])
def test_one_pass_gives_the_losses_of_separate_passes(padding):
    torch.manual_seed(0)
    model = EfficientADModel(out_channels=8, padding=padding)
    model.set_teacher_statistics(torch.randn(8), torch.rand(8) + 0.5)
    images, augmented, penalty = torch.rand(2, 3, 64, 72), torch.rand(2, 3, 64, 72), torch.rand(3, 3, 64, 72)
    training = EfficientADTraining(model=model, total_steps=20).eval()
    terms = training.losses(images, augmented, penalty)
    one, other, third = (model.normalized(part) for part in (images, augmented, penalty))
    grid = model.teacher.grid((64, 72))
    expected = {
        "st": hard_feature_loss(model.student(one)[:, :8], model.describe(one)),
        "penalty": pretraining_penalty(model.student(third)[:, :8]),
        "ae": distance_loss(model.describe(other), model.autoencoder(other, grid)),
        "stae": distance_loss(model.student(other)[:, 8:], model.autoencoder(other, grid)),
    }
    assert tuple(terms) == TERMS
    torch.testing.assert_close(terms, expected, rtol=1e-4, atol=1e-6)


def test_the_student_and_the_autoencoder_learn_and_the_teacher_does_not(training):
    terms = training.losses(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))
    total_loss(terms, **training.weights).backward()
    with_gradient = {name.split(".")[1] for name, p in training.named_parameters() if p.grad is not None}
    assert with_gradient == {"student", "autoencoder"}
    assert all(p.grad is not None for name, p in training.named_parameters() if ".teacher." not in name)
    optimised = {id(p) for group in training.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in training.parameters() if p.grad is not None}


@pytest.mark.parametrize(("total", "decay_from"), [(1, None), (2, 1), (20, 19), (70_000, 66_500)])
def test_the_learning_rate_falls_to_a_tenth_at_95_percent_of_the_steps(total, decay_from):
    training = EfficientADTraining(model=EfficientADModel(out_channels=8), total_steps=total, learning_rate=0.5)
    configured = training.configure_optimizers()
    assert configured["lr_scheduler"]["interval"] == "step"
    rate = configured["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert [step for step in range(total) if rate(step) == 1] == list(range(decay_from or total))
    assert {rate(step) for step in range(decay_from or total, total)} <= {0.1}


def test_adam_is_the_papers():
    training = EfficientADTraining(model=EfficientADModel(out_channels=8), total_steps=20)
    optimizer = training.configure_optimizers()["optimizer"]
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == 1e-4 and optimizer.defaults["weight_decay"] == 1e-5


def test_the_scale_comes_from_maps_without_their_border_and_before_they_are_enlarged(training):
    training.eval()
    images = torch.rand(3, 3, 96, 80, generator=torch.Generator().manual_seed(1))
    labels, masks = torch.tensor([0, 0, 1]), torch.zeros(3, 1, 96, 80)
    masks[2, :, 20:40, 20:40] = 1
    training.on_validation_epoch_start()
    with torch.inference_mode():
        training.validation_step(Batch(images, labels, masks, labels == 1, torch.arange(3)), 0)
        maps = [one[:2] for one in training.model.local_maps(images)]
    training.log_dict = lambda *args, **kwargs: None
    training.on_validation_epoch_end()
    assert maps[0].shape[-2:] == training.model.teacher.grid((96, 80)) == (16, 12)
    expected = [[torch.quantile(one, q) for q in QUANTILES] for one in maps]
    torch.testing.assert_close(training.model.quantiles, torch.tensor(expected))


def step(training, number, *, last=False):
    """One training step as Lightning would ask for it, on pictures of this number."""
    optimizer = SimpleNamespace(param_groups=[{"lr": 1.0}])
    training._trainer = SimpleNamespace(is_last_batch=last, optimizers=[optimizer], global_step=number)
    training.log_dict = lambda *args, **kwargs: None
    pictures = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(number))
    return training.training_step(TrainBatch(number, pictures, pictures.flip(0)), 0)


def test_a_step_follows_from_seed_and_number_alone(training):
    training.train()
    first = step(training, 7)
    torch.rand(5)
    assert torch.equal(step(training, 7), first)
    training.seed = 4
    assert not torch.equal(step(training, 7), first)  # other dropout, other colours


@pytest.mark.parametrize("last", [False, True])
def test_a_loss_that_is_not_finite_names_its_term_and_step(training, monkeypatch, last):
    training.eval()
    monkeypatch.setattr(
        "gainmtl_lib.efficientad.train.pretraining_penalty",
        lambda student: student.square().mean() * (math.inf if training.trainer.global_step == 3 else 1),
    )
    with pytest.raises(TrainingDivergedError, match=r"became inf in penalty at step 4; .*learning_rate"):
        for number in range(10):
            step(training, number, last=last and number == 5)
    assert training.trainer.global_step == (5 if last else 9)


def test_the_sum_alone_can_overflow(training, monkeypatch):
    monkeypatch.setattr("gainmtl_lib.efficientad.train.total_loss", lambda terms, **weights: terms["st"] * math.nan)
    with pytest.raises(TrainingDivergedError, match="became nan in the sum at step 1"):
        step(training, 0, last=True)


def history(*scores):
    noted = History()
    for place, (image, pixel) in enumerate(scores, start=1):
        noted.add(10 * place, image, pixel)
    return noted


def test_the_best_has_the_highest_image_auroc_then_pixel_auroc_then_came_first():
    noted = history((0.7, 0.9), (0.8, 0.5), (0.8, 0.6), (0.8, 0.6), (0.75, 1.0), (math.nan, 1.0), (0.9, math.nan))
    assert [one.step for one in noted.ranked] == [70, 30, 40, 20, 50, 10, 60]


def test_patience_counts_the_validations_after_the_best():
    assert history().without_improvement == 0
    assert history((0.7, 0.9), (0.8, 0.5), (0.8, 0.5), (0.8, 0.4)).without_improvement == 2
    assert stops_early(history((0.8, 0.5), (0.8, 0.5)), 1)
    assert not stops_early(history((0.8, 0.5), (0.8, 0.5)), 2)
    assert not stops_early(history((0.8, 0.5), (0.8, 0.5)), None)


def test_a_history_survives_its_checkpoint():
    callback = StepCheckpoints(None, patience=2)
    callback.history = history((0.7, 0.9), (0.8, math.nan))
    assert history_of(callback.state_dict()).validated == callback.history.validated


def test_a_history_stays_with_its_best_checkpoint(tmp_path):
    state = {"validated": [[10, 0.8, 0.5], [20, 0.7, 0.5]]}
    callback = StepCheckpoints(tmp_path, patience=2)
    callback.load_state_dict(state)
    assert not callback.history.validated
    (tmp_path / "best.ckpt").touch()
    callback.load_state_dict(state)
    assert len(callback.history.validated) == 2


def test_a_long_interval_says_how_fast_it_is_and_what_is_left(caplog):
    caplog.set_level("INFO", logger="gainmtl_lib")
    metrics = {"val/image_auroc": 0.5, "val/pixel_auroc": 0.75}
    trainer = SimpleNamespace(global_step=100, callback_metrics=metrics, is_global_zero=True)
    log = StepLog(70_000, interval=3600.0)
    log.on_train_start(trainer, None)
    log.on_train_batch_end(trainer, None, {"loss": torch.tensor(1.0)}, None, 0)
    log._started -= 20.0
    log._said -= 3601.0
    trainer.global_step = 140
    log.on_train_batch_end(trainer, None, {"loss": torch.tensor(1.5)}, None, 1)
    log.on_train_epoch_end(trainer, None)
    log.on_train_batch_end(trainer, None, {"loss": torch.tensor(7.0)}, None, 2)
    log.on_train_epoch_end(trainer, None)
    trainer.is_global_zero = False
    log.on_train_epoch_end(trainer, None)
    rate = r"(2\.00|1\.99) steps/s, about 9\.[78] h left"
    scores = r"validation image AUROC 0\.500, pixel AUROC 0\.750; "
    expected = [rf"1\.250; {rate}", rf"1\.250; {scores}{rate}", rf"7\.000; {scores}{rate}"]
    assert len(caplog.messages) == 3
    for pattern, message in zip(expected, caplog.messages, strict=True):
        assert re.fullmatch(rf"step 140 of 70000: loss {pattern}", message)


def test_epochs_and_steps_both_bound_a_training(tmp_path):
    def total(**values):
        return total_steps(tiny_anomaly_settings(tmp_path, **{"max_steps": 100} | values), batches=7)

    assert total() == 100
    assert total(max_epochs=3) == 21
    assert total(max_epochs=30) == 100
    assert total(max_epochs=3, devices=2) == 12  # each device takes a batch a step


def raised_in_a_process(error):
    try:
        try:
            raise OSError("an earlier one\ngainmtl_lib.runs.RunError: of another text")
        except OSError:
            raise error from None
    except BaseException:
        return ProcessRaisedException(f"\n\n-- Process 0 terminated:\n{traceback.format_exc()}", 0, 1)


@pytest.mark.parametrize("error", [TrainingDivergedError("nan at step 3"), DataError("two files\n  a.png\n  b.png")])
def test_an_error_of_this_project_leaves_its_process_as_it_was_raised(error):
    arrived = as_raised(raised_in_a_process(error))
    assert type(arrived) is type(error) and str(arrived) == str(error)


def test_other_errors_of_a_process_arrive_with_its_traceback():
    assert isinstance(as_raised(raised_in_a_process(KeyboardInterrupt())), KeyboardInterrupt)
    foreign = raised_in_a_process(ZeroDivisionError("x"))
    assert as_raised(foreign) is foreign
