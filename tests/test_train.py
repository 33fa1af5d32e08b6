"""S6's masks, going on from a checkpoint, and training as a whole on the tiny study."""

import errno
import math
import multiprocessing
import pickle
import shutil
import sys
from collections import Counter
from unittest.mock import DEFAULT, Mock

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from scipy import stats
from sqlalchemy.exc import OperationalError
from tensorboard.summary.writer.record_writer import RecordWriter
from tiny import tiny_settings
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from gainmtl_lib import train as module
from gainmtl_lib.backbone import ModelError
from gainmtl_lib.dataset import Augmentation, Batch
from gainmtl_lib.devices import lightning_precision
from gainmtl_lib.findings import DataError
from gainmtl_lib.losses import GainLoss
from gainmtl_lib.model import build_model
from gainmtl_lib.runs import FileError, RunError, load_checkpoint_model, load_run
from gainmtl_lib.settings import Settings
from gainmtl_lib.train import (
    GainTraining,
    MaskMixer,
    RunCheckpoints,
    fit,
)


def test_the_learning_rate_rises_from_a_hundredth_then_falls_along_a_cosine():
    factors = [module.learning_rate_factor(step / 8, warmup_ratio=0.25) for step in range(9)]
    cosine = [(1 + math.cos(math.pi * k / 6)) / 2 for k in range(7)]
    assert factors == pytest.approx([0.01, 0.505, *cosine]) and factors[5] == pytest.approx(0.5)
    plain = [module.learning_rate_factor(step, warmup_ratio=0.0) for step in (0, 0.5, 1)]
    assert plain == pytest.approx([1, 0.5, 0])


def test_the_backbone_has_a_learning_rate_of_its_own_and_frozen_levels_none(tmp_path):
    own = {"learning_rate": 0.01, "backbone_lr_scale": 0.2, "warmup_ratio": 0.5, "weight_decay": 0.3}

    def groups(**values):
        settings = tiny_settings(tmp_path, "S8", **own | values)
        training = GainTraining(settings, build_model(settings), class_counts=(1, 1))
        training.trainer = Mock(estimated_stepping_batches=10)
        made = training.configure_optimizers()
        scheduler = made["lr_scheduler"]["scheduler"]
        rates = [scheduler.get_last_lr()]
        for _ in range(5):
            made["optimizer"].step()
            scheduler.step()
        return training, made["optimizer"].param_groups, [*rates, scheduler.get_last_lr()]

    training, (heads, backbone), rates = groups(freeze_backbone_stages=3)
    assert rates == [pytest.approx([1e-4, 2e-5]), pytest.approx([0.01, 0.002])]  # a hundredth, then at the top
    assert heads["weight_decay"] == backbone["weight_decay"] == 0.3
    inside = {*training.model.backbone.parameters()}
    assert {*backbone["params"]} == {p for p in inside if p.requires_grad} < inside
    others = {*training.parameters()} - inside
    assert {*heads["params"]} == others and {training.model.evidence.offset, training.loss.cam_offset} < others
    assert len(groups()[1][1]["params"]) == len(inside)


def dot(cell: int, value: float = 1.0) -> Tensor:
    """A mask (1, 8, 8) that fills one cell of the 4 x 4 grid."""
    grid = torch.zeros(16)
    grid[cell] = value
    return grid.view(1, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)


def mixer(masks, own=0.6, other=0.2, **changes) -> MaskMixer:
    values = {"image_size": (8, 8), "map_stride": 2, "own_mask_prob": own, "other_mask_prob": other}
    still = {"hflip_prob": 0.0, "vflip_prob": 0.0, "rotate90_prob": 0.0}
    return MaskMixer(masks, Settings().model_copy(update=values | still | changes))


def make_batch(rows: list[tuple[int, int, Tensor | None]]) -> Batch:
    """Rows of (index, label, mask or None)."""
    index, labels, given = zip(*rows, strict=True)
    masks = torch.stack([torch.zeros(1, 8, 8) if mask is None else mask for mask in given])
    told = {"has_mask": torch.tensor([mask is not None for mask in given]), "index": torch.tensor(index)}
    return Batch(images=torch.zeros(len(rows), 3, 8, 8), labels=torch.tensor(labels), masks=masks, **told)


def cells(masks: Tensor) -> list[int | None]:
    return [int(mask.argmax()) if mask.any() else None for mask in masks.flatten(1)]


def repeated(batch: Batch, count: int) -> Batch:
    return Batch(*(values.repeat(count, *[1] * (values.ndim - 1)) for values in batch))


def draws(mix: MaskMixer, batch: Batch, count: int) -> tuple[Tensor, Tensor]:
    """As many draws of the batch: (count, B, 1, h, w) and (count, B)."""
    masks, present = mix.draw(repeated(batch, count), torch.Generator().manual_seed(0))
    return masks.unflatten(0, (count, -1)), present.unflatten(0, (count, -1))


# samples 10, 20, 30 are annotated defects (cells 0, 5, 10); 40 a defect without a mask, 50 normal, 20 once more healed
BANK = [(10, dot(0)), (20, dot(5)), (30, dot(10))]
BATCH = make_batch([(10, 1, dot(0)), (20, 1, dot(5)), (40, 1, None), (50, 0, None), (20, 0, None)])


def test_other_masks_are_never_the_samples_own_even_if_it_was_healed_and_own_ones_are_pooled_by_area():
    masks, present = draws(mixer(BANK, own=0.0, other=1.0), BATCH, 300)
    found = [set(cells(masks[:, row])) for row in range(5)]
    assert present.all() and found == [{5, 10}, {0, 10}, {0, 5, 10}, {0, 5, 10}, {0, 10}]
    half = torch.zeros(1, 8, 8)
    half[:, 0, 0:2] = 1  # half of cell 0
    masks, present = mixer([(1, half), (2, dot(3))], own=1.0, other=0.0).draw(make_batch([(1, 1, half)]))
    assert masks.shape == (1, 1, 4, 4) and present.all() and masks[0, 0, 0, 0] == masks.sum() == 0.5


def test_masks_of_crops_keep_their_size_on_the_crops_own_grid():
    # Crops of 4 x 4 pixels of a picture of 8 x 8: a grid of 2 x 2 cells, one filled by the mask of either sample.
    one, other = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    one[:, :2, :2] = other[:, 2:, 2:] = 1
    batch = make_batch([(1, 1, one), (5, 0, one * 0)])._replace(has_mask=torch.tensor([True, False]))
    masks, present = draws(mixer([(1, one), (2, other)], own=0.5, other=0.5, crop_size=(4, 4)), batch, 200)
    assert masks.shape[2:] == (1, 2, 2) and present.all() and torch.all(masks.sum((2, 3, 4)) == 1)
    assert {*cells(masks[:, 0])} == {*cells(masks[:, 1])} == {0, 3}


def test_own_other_and_no_mask_as_often_as_asked_for_whatever_the_class():
    masks, present = draws(mixer(BANK), BATCH, 3000)
    drawn = cells(masks[:, 0])
    shares = [sum(cell in group for cell in drawn) / 3000 for group in ([0], [5, 10], [None])]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.03)
    assert present.float().mean(dim=0).tolist() == pytest.approx([0.8] * 5, abs=0.03)
    # the only mask goes to its own sample as often as to others, and without one nobody gets any
    masks, present = draws(mixer(BANK[:1]), make_batch([(10, 1, dot(0)), (50, 0, None)]), 3000)
    assert present.float().mean(dim=0).tolist() == pytest.approx([0.8, 0.8], abs=0.03)
    masks, present = draws(mixer([]), BATCH, 50)
    assert not present.any() and not masks.any()


@pytest.mark.parametrize("fusion_norm", ["sigmoid", "product"])
def test_what_gates_the_features_in_training_says_nothing_about_the_class(monkeypatch, tmp_path, fusion_norm):
    # Features are the same for every picture: whatever still tells the classes apart came in with the masks. With 2500
    # draws of each class chance moves the AUROC by 0.008; a mask with probability 0.7 in place of 0.8 by 0.05.
    bank = [(k, dot(k, value)) for k, value in enumerate((0.25, 0.5, 0.75, 1.0))]
    bank[3][1][:, :, 4:] = 1.0  # the masks differ in size too
    rows = [*((k, 1, mask) for k, mask in bank), (4, 1, None), *((5 + k, 0, None) for k in range(5))]
    batch = repeated(make_batch(rows), 500)
    torch.manual_seed(0)
    model = build_model(tiny_settings(tmp_path, fusion_norm=fusion_norm))
    model.localization = None
    model.features = lambda images: (torch.zeros(len(images), 16, 4, 4), [])
    turned = mixer(bank, hflip_prob=0.5, vflip_prob=0.5, rotate90_prob=0.5)
    training = GainTraining(tiny_settings(tmp_path), model, class_counts=(1, 1), mixer=turned)
    monkeypatch.setattr(GainTraining, "progress", 0.5)  # half of the mask gates as it is
    gate = training.output(batch, {"cf": 0.0}).effective_attention.detach().flatten(1)  # (N, h w)
    for score in (gate.mean(1), gate.amax(1)):
        assert len(score.unique()) >= 3, "masks take part"
        assert binary_auroc(score.clamp(0, 1), batch.labels).item() == pytest.approx(0.5, abs=0.025)


@pytest.mark.parametrize("size", [(8, 8), (4, 8)])
def test_bank_masks_are_turned_as_the_images_own_are(size):
    turned = {"hflip_prob": 0.2, "vflip_prob": 0.3, "rotate90_prob": 0.5}
    still = {"image_size": size, "seed": 0, "color_jitter_prob": 0.0, "gaussian_noise_prob": 0.0}
    augmentation = Augmentation(Settings().model_copy(update=still | turned))
    mask = np.zeros(size, np.uint8)
    mask[:2, 2:4] = 1
    shown = [augmentation(np.zeros((*size, 3), np.uint8), mask, epoch=0, index=index)[1] for index in range(2000)]
    own = cells(torch.nn.functional.avg_pool2d(torch.from_numpy(np.stack(shown))[:, None].float(), 2))
    mix = mixer([(10, torch.from_numpy(mask)[None].float())], own=0.0, other=1.0, image_size=size, **turned)
    batch = make_batch([(50, 0, None)])._replace(masks=torch.zeros(1, 1, *size))
    others = cells(draws(mix, batch, 2000)[0][:, 0])
    assert set(own) == set(others) and len(set(own)) == (8 if size == (8, 8) else 4)
    assert all(abs(others.count(cell) - own.count(cell)) < 80 for cell in set(own))


def test_masks_of_pasted_defects_belong_to_no_sample_and_their_place_says_nothing_about_the_class():
    pasted = mixer([*BANK[:1], (None, dot(12)), (None, dot(13))], own=0.0, other=1.0)
    masks, _ = draws(pasted, make_batch([(10, 1, dot(0)), (0, 0, None)]), 300)
    assert [set(cells(masks[:, row])) for row in range(2)] == [{12, 13}, {0, 12, 13}]
    # four defects as they are stored and one pasted elsewhere: its place would otherwise be a defect's alone
    stored = [(k, dot(k)) for k in range(4)]
    rows = [*((k, 1, mask) for k, mask in stored), (20, 1, dot(12)), *((30 + k, 0, None) for k in range(5))]
    masks, _ = draws(mixer([*stored, (None, dot(12))], own=0.8, other=0.0), make_batch(rows), 1000)
    found = [Counter(cells(masks[:, group].flatten(0, 1))) for group in (slice(0, 5), slice(5, 10))]
    assert found[1][12] > 0
    assert stats.chi2_contingency([[each[cell] for cell in (0, 1, 2, 3, 12)] for each in found]).pvalue > 0.01


def checkpoint(path, settings, *, epochs=2):
    """A checkpoint file after some epochs, as far as the decision to resume reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = {"epoch": epochs - 1, "global_step": 3 * epochs}
    torch.save({"state_dict": {}, "optimizer_states": [], "gainmtl_settings": settings.plain()} | counts, path)
    return path


def test_what_a_training_goes_on_from_and_what_it_refuses(tmp_path):
    def resumed(settings, resume=None):
        plan = {"architecture": module.ARCHITECTURE, "plan": module.PLAN, "complete": lambda at: at["epoch"] == 3}
        return module.checkpoint_to_resume(tmp_path / "run", settings, resume, **plan)

    settings, best = tiny_settings(tmp_path), tmp_path / "run/checkpoints/best.ckpt"
    assert resumed(settings) is None
    last = checkpoint(best.with_name("last.ckpt"), settings)
    assert resumed(settings) == last
    other = {"num_epochs": 9, "batch_size": 4, "backbone_lr_scale": 0.3, "warmup_ratio": 0.1, "weight_decay": 0.01}
    other |= {"freeze_backbone_stages": 1, "stage1_ratio": 0.2, "stage2_ratio": 0.3, "lambda_cf": 0.7}
    with pytest.raises(RunError) as error:
        resumed(settings.changed(**other, save_every_n_epochs=3, num_workers=1))  # which are no part of the plan
    first, *differing, advice = str(error.value).splitlines()
    assert first == f"{last}: a checkpoint of a training with another plan (stored and asked for):"
    before = dict(zip(other, (4, 8, 1.0, 0.0, 0.0, -1, 0.25, 0.25, 0.3), strict=True))
    assert differing == [f"  {name}: {before[name]} and {value}" for name, value in other.items()]
    assert "keep these values, or start a new run without --resume" in advice
    with pytest.raises(RunError, match=r"of another model .*:\n  evidence_share: \[0.1\] and \[0.2\]$"):
        resumed(settings.changed(evidence_share=0.2))
    named = {*module.PLAN, *module.ARCHITECTURE, *module.TRAINED}
    assert named - {"seed_of_split"} <= {*Settings.model_fields} and {"crop_size", "lambda_evidence"} <= named
    # one with nothing left finishes its own run only
    checkpoint(last, settings, epochs=4)
    with pytest.raises(RunError, match=r"last.ckpt: all 12 steps are done, and .*best.ckpt is not theirs"):
        resumed(settings)
    best.write_text("x")
    assert resumed(settings) == last
    with pytest.raises(RunError, match="all 12 steps are done"):
        resumed(settings, checkpoint(tmp_path / "last.ckpt", settings, epochs=4))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("fit")


@pytest.fixture(scope="module")
def finished(shared):
    """Of S6, the strategy with every part and every kind of randomness."""
    return fit(tiny_settings(shared, save_every_n_epochs=2, precision="auto"))


def equal(model, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_run_leaves_what_its_folder_promises_and_logs_the_specifications_tags(finished):
    names = {path.relative_to(finished.folder).as_posix() for path in finished.folder.rglob("*") if path.is_file()}
    logged = {name for name in names if name.startswith("tensorboard/")}
    kept = {f"checkpoints/{name}.ckpt" for name in ("best", "last", "epoch_2", "epoch_4")}
    assert logged and names - logged == {".lock", "settings.yaml", "manifest.json", "model.safetensors"} | kept
    manifest = finished.manifest
    told = {"status": "complete", "pretrained": "random", "seed": 42, "best_epoch": 4}
    told |= {"precision": lightning_precision("auto", torch.device("cpu"))}  # b0 starts with dense convolutions
    told |= {"split_sizes": {"train": 24, "val": 4, "test": 6, "test_shift": 6}}  # only epoch 4 ends within stage 4
    assert told.items() <= manifest.items() and manifest["duration_s"] > 0
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    wanted = {f"train/loss_{term}" for term in ("total", "cls", "am", "cam_guide", "guide", "loc", "consist", "cf")}
    wanted |= {f"val/{name}" for name in ("accuracy", "cam_iou", "val_total", "val_cls")}
    wanted |= {"train/learning_rate", "train/stage", "compare/total_train", "compare/total_val"}
    assert wanted <= set(finished.history["tag"])
    stages = finished.history.query("tag == 'train/stage'")["value"].tolist()
    assert stages == sorted(stages) and set(stages) <= {1, 2, 3, 4}
    # the model's weights are those of the best checkpoint, and an equal run is not trained twice
    best, settings = load_checkpoint_model(finished.folder / "checkpoints/best.ckpt")
    assert settings == finished.settings and equal(load_run(finished.folder).model, best)
    last = finished.folder / "checkpoints/last.ckpt"
    before = last.stat().st_mtime_ns
    assert fit(finished.settings).folder == finished.folder and last.stat().st_mtime_ns == before


def resumed_after(settings, monkeypatch, *, epoch):
    """Interrupted in an epoch's second step, then started again."""
    step = GainTraining.training_step

    def interrupted(self, batch, batch_idx):
        if self.current_epoch == epoch and batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GainTraining, "training_step", interrupted)
        fit(settings)
    with pytest.raises(RunError, match="not finished"):
        load_run(settings.run_dir)
    return fit(settings)


def test_a_resumed_run_equals_an_uninterrupted_one_also_with_edited_pictures(finished, shared, monkeypatch):
    resumed = resumed_after(finished.settings.changed(experiment="interrupted"), monkeypatch, epoch=2)
    losses, expected = (run.history.set_index(["tag", "step"])["value"].sort_index() for run in (resumed, finished))
    pd.testing.assert_series_equal(losses, expected, rtol=1e-5, atol=1e-7)
    assert equal(resumed.model, finished.model)
    assert resumed.manifest["best_epoch"] == finished.manifest["best_epoch"]
    settings = tiny_settings(shared, "S7", experiment="edited", variant="small", mask_share=0.5, num_epochs=2)
    whole = fit(settings)
    assert whole.folder == shared / "outputs/edited/s7-small/seed42"
    shown = whole.manifest["shown"]  # 24 pictures in each of 2 epochs, half of them edited, give or take the draw
    assert sum(of["pictures"] for of in shown.values()) == 48 and 12 <= sum(of["edited"] for of in shown.values()) <= 36
    assert whole.manifest["train_annotated"] == 6 and whole.manifest["train_defective"] == 12
    data = module.build_data(settings)
    for number in (1, 2):  # the second training shares its data with the first
        assert fit(settings.changed(experiment=f"shared{number}"), data=data).manifest["shown"] == shown
    later = resumed_after(settings.changed(experiment="later"), monkeypatch, epoch=1)
    assert equal(later.model, whole.model) and later.manifest["shown"] == shown


@pytest.mark.parametrize("strategy", ["S6", "S8"])
def test_crops_train_every_kind_of_strategy(shared, strategy):
    sizes = {"crop_size": 32, "tile_size": 32, "tile_overlap": 0.0}
    settings = tiny_settings(shared, strategy, experiment="crops", image_counterfactual=0.5, **sizes)
    run = fit(settings.changed(num_epochs=1))
    assert run.manifest["status"] == "complete" and run.model.tile_size == (32, 32)
    losses = run.history[run.history["tag"].isin(["compare/total_train", "compare/total_val"])]["value"]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_a_log_can_lie_elsewhere_and_data_that_is_there_is_taken_if_it_is_the_same(shared, monkeypatch):
    full = fit(tiny_settings(shared, "S1", experiment="full", num_epochs=1, tensorboard_dir=shared / "tb"))
    assert list((shared / "tb/full/s1/seed42").glob("events.out.*")) and len(full.history)
    coarse = {"mask_share": 0.25, "mask_quality": "box"}
    part = fit(full.settings.changed(experiment="part", use_tensorboard=False, tensorboard_dir=None, **coarse))
    assert part.manifest["data_digest"] == full.manifest["data_digest"]
    assert (full.manifest["train_annotated"], part.manifest["train_annotated"]) == (12, 3)
    with pytest.raises(RunError, match="no TensorBoard log of this run; train with use_tensorboard: true"):
        _ = part.history
    settings = full.settings.changed(seed=7)
    data = module.build_data(settings)
    monkeypatch.setattr(module, "build_data", None)
    assert not torch.equal(fit(settings, data=data).model.cls_head.out.weight, full.model.cls_head.out.weight)
    with pytest.raises(RunError, match=r"the data was built with other settings .*: seed: 7 and 42"):
        fit(full.settings, data=data)
    with pytest.raises(RunError, match=r"mask_marks: 'auto' and 'defect'$"):  # which decides what masks are left out
        fit(settings.changed(mask_marks="defect", variant="marks"), data=data)


def test_resume_takes_a_periodic_checkpoint_of_another_run_without_its_best_score(finished, shared):
    checkpoint = torch.load(finished.folder / "checkpoints/epoch_2.ckpt", weights_only=True)
    state = next(value for name, value in checkpoint["callbacks"].items() if "RunCheckpoints" in name)
    state["best_score"], state["best_epoch"] = [2.0, 2.0], 1  # of epoch 1, never to be reached again
    torch.save(checkpoint, shared / "travelled.ckpt")
    run = fit(finished.settings.changed(experiment="travelled"), resume=shared / "travelled.ckpt")
    assert run.manifest["best_epoch"] == 4 and run.manifest["best_val_ap"] <= 1
    assert run.history.query("tag == 'val/accuracy'")["value"].size == 2


def test_a_file_to_resume_from_is_never_executed_and_must_be_a_whole_checkpoint(finished, shared):
    bomb, plain, junk, tensors, touched = (shared / name for name in ("bomb", "plain", "junk", "tensors", "touched"))

    class Bomb:
        def __reduce__(self):
            return open, (str(touched), "w")

    torch.save({"state_dict": Bomb()}, bomb)
    plain.write_bytes(pickle.dumps(Bomb()))
    junk.write_bytes(b"PK\x03\x04junk")
    torch.save({"weight": torch.zeros(1)}, tensors)
    wrong = dict.fromkeys((bomb, plain, junk), r"not a checkpoint that can be read safely: \S")
    wrong |= {tensors: "not a training checkpoint of this project", shared / "missing": "no such checkpoint"}
    wrong |= {finished.folder / "checkpoints/best.ckpt": r"no optimiser state; resume from last\.ckpt"}
    for path, message in wrong.items():
        with pytest.raises(RunError, match=message):
            fit(finished.settings.changed(experiment="bomb"), resume=path)
    assert not touched.exists()


def test_nan_stops_with_the_term_the_step_and_what_to_try(shared, monkeypatch):
    forward = GainLoss.forward

    def broken(self, output, batch, weights):
        losses = forward(self, output, batch, weights)
        return losses | {name: losses[name] * float("nan") for name in ("am", "total") if weights["am"] > 0}

    monkeypatch.setattr(GainLoss, "forward", broken)
    settings = tiny_settings(shared, "S3", experiment="nan")
    with pytest.raises(module.TrainingDivergedError, match=r"nan in am at epoch 2, step 3; .* Try a lower"):
        fit(settings)
    assert (settings.run_dir / "checkpoints/last.ckpt").is_file()


def test_one_device_is_trained_whatever_a_slurm_session_around_it_says(shared, monkeypatch):
    tasks = {"NTASKS": "4", "STEP_NUM_TASKS": "4", "JOB_ID": "7", "JOB_NAME": "x", "PROCID": "3", "LOCALID": "3"}
    for name, value in {**tasks, "NODEID": "0", "NNODES": "1", "NODELIST": "n1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    settings = tiny_settings(shared, "S1", experiment="slurm", num_epochs=1)
    ran_on = {"status": "complete", "device": "cpu", "devices": 1, "num_nodes": 1, "launcher": "none"}
    assert ran_on.items() <= fit(settings).manifest.items()


def test_a_run_folder_that_cannot_be_written_to_is_named(shared, monkeypatch):
    settings = tiny_settings(shared, "S1", experiment="read_only", num_epochs=1)
    denied = Mock(side_effect=PermissionError(errno.EACCES, "Permission denied"))
    monkeypatch.setattr("gainmtl_lib.runs.FileLock", lambda path: Mock(acquire=denied))
    with pytest.raises(
        FileError, match="seed42: cannot be written to: Permission denied; give the right to write there"
    ):
        fit(settings)


def test_a_full_disk_keeps_the_checkpoint_before(shared, monkeypatch):
    settings = tiny_settings(shared, "S1", experiment="full_disk", num_epochs=2)
    full = Mock(wraps=torch.save, side_effect=[DEFAULT, OSError(errno.ENOSPC, "No space left on device")])
    with monkeypatch.context() as patch, pytest.raises(FileError, match="the disk is full"):
        patch.setattr(torch, "save", full)
        fit(settings)
    assert [path.name for path in (settings.run_dir / "checkpoints").iterdir()] == ["last.ckpt"]
    assert fit(settings).manifest["status"] == "complete"


def test_a_log_that_cannot_be_written_is_named_once(shared, monkeypatch, capfd):
    settings = tiny_settings(shared, "S1", experiment="full_log", num_epochs=1)
    with monkeypatch.context() as patch, pytest.raises(FileError, match=r"events\.out\.tfevents: the disk is full"):
        patch.setattr(RecordWriter, "write", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        fit(settings)
    assert "Traceback" not in capfd.readouterr().err
    assert fit(settings).manifest["status"] == "complete"


def test_a_process_that_ends_right_after_a_checkpoint_has_logged_what_led_to_it(shared, monkeypatch):
    settings, save = tiny_settings(shared, "S1", experiment="ended", num_epochs=3), RunCheckpoints.on_train_epoch_end

    def ended(self, trainer, module):
        save(self, trainer, module)
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunCheckpoints, "on_train_epoch_end", ended)
        fit(settings)
    assert fit(settings).history.query("tag == 'compare/total_train'")["step"].tolist() == [2, 5, 8]  # 3 steps each


def test_mlflow_holds_what_tensorboard_holds_and_an_interrupted_run_goes_on_there(shared, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = tiny_settings(shared, "S1", experiment="tracked", num_epochs=3, use_mlflow=True)
    run = resumed_after(settings, monkeypatch, epoch=1)
    client = MlflowClient(f"sqlite:///{shared / 'outputs/mlflow.db'}")
    wanted = [client.get_experiment_by_name("tracked").experiment_id]
    (there,) = client.search_runs(wanted)
    assert (there.info.run_name, there.info.status) == ("s1-seed42", "FINISHED")
    assert there.data.params["learning_rate"] == "0.001" and there.data.params["strategy"] == "S1"
    assert there.info.artifact_uri.startswith(str(shared / "outputs/mlruns"))
    for tag in ("train/loss_total", "val/average_precision", "compare/total_val"):
        logged = {one.step: one.value for one in client.get_metric_history(there.info.run_id, tag)}
        known = run.history.query("tag == @tag").set_index("step")["value"]
        assert pd.Series(logged).sort_index().to_numpy() == pytest.approx(known.sort_index().to_numpy()), tag
    fit(settings.changed(num_epochs=1), force=True)  # another training of the same folder is a run of its own
    assert len(client.search_runs(wanted)) == 2
    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"mlflow.db cannot be used: .* is locked$"):
        locked = OperationalError("insert", {}, Exception("database is locked"))
        patch.setattr(module.MLFlowLogger, "log_metrics", Mock(side_effect=locked))
        fit(settings.changed(variant="locked"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match=r"use_mlflow is true, but http://127.0.0.1:9 cannot be used: API request"):
        fit(settings.changed(variant="unreachable"))
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RunError, match="package mlflow is missing"):
        fit(settings.changed(variant="missing"))


def test_runs_that_begin_at_once_share_a_new_database_and_of_a_runs_processes_one_does(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = tiny_settings(tmp_path, "S1", use_mlflow=True, use_tensorboard=False)
    with monkeypatch.context() as patch:
        patch.setattr(module.processes, "is_main", lambda: False)
        assert module.event_loggers(settings, goes_on=False) == [] and not settings.outputs_dir.exists()
    settings.outputs_dir.mkdir()
    context = multiprocessing.get_context("fork")
    begin = context.Barrier(2)

    def log(seed):
        begin.wait()
        module.event_loggers(settings.changed(seed=seed), goes_on=False)

    runs = [context.Process(target=log, args=(seed,)) for seed in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    client = MlflowClient(f"sqlite:///{tmp_path / 'outputs/mlflow.db'}")
    assert len(client.search_runs([client.get_experiment_by_name("tiny").experiment_id])) == 2


def test_a_start_that_failed_leaves_way_for_the_corrected_one_whose_data_may_not_change(finished, shared, monkeypatch):
    shutil.copytree(shared / "data", shared / "data2")
    own = {"data_root": shared / "data2", "dataset_type": "generic"}
    corrected = tiny_settings(shared, "S1", experiment="corrected", num_epochs=1, **own)
    wrong = {"data_root": shared / "typo"}, {"pretrained": shared / "gone.pth"}, {"use_wandb": True}
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    for mistake, message in zip(wrong, ("typo", "no such weights file", "wandb is missing"), strict=True):
        with pytest.raises((DataError, ModelError, RunError), match=message):
            fit(corrected.changed(**mistake))
        assert [path.name for path in corrected.run_dir.iterdir()] == [".lock"]
    assert fit(corrected).manifest["status"] == "complete"
    next((shared / "data2/images/train/normal").iterdir()).unlink()
    with pytest.raises(RunError, match="the data changed since this run was started"):
        fit(corrected)
