"""Making teachers: the targets are PatchCore's, work that stopped goes on, files say how they were made."""

import json
import logging
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from drawn_data import truncate_file, write_picture
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gainmtl_lib.backbone import Backbone, ModelError, get_backbone
from gainmtl_lib.efficientad import distill as module
from gainmtl_lib.efficientad.distill import (
    BackboneTargets,
    Distillation,
    PicturePairs,
    TeacherTraining,
    distill,
)
from gainmtl_lib.efficientad.model import EfficientADSettings, teacher_of
from gainmtl_lib.readers import DataError
from gainmtl_lib.settings import SettingsError
from gainmtl_lib.train import TrainingDivergedError

SMALL = {
    "backbone": "test_resnet",
    "backbone_weights": False,
    "out_channels": 8,
    "image_size": 64,
    "steps": 4,
    "batch_size": 2,
    "save_every_n_steps": 2,
    "device": "cpu",
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(5):
        write_picture(tmp_path / "pictures" / f"class{number % 2}" / f"{number}.png", size=(40, 50), seed=number)
    return tmp_path / "pictures"


def backbone(name: str = "test_resnet") -> Backbone:
    torch.manual_seed(0)
    return get_backbone(name, False, (2, 3), use_mmpretrain=False)


def patchcore(levels: list[torch.Tensor], out_channels: int) -> torch.Tensor:
    """The aggregation step by step: unfold, resize each of a neighbourhood's values, pool per cell, stack, pool."""
    height, width = levels[0].shape[-2:]
    pooled = []
    for level in levels:
        values = F.unfold(level, 3, padding=1).unflatten(2, tuple(level.shape[-2:]))  # (B, 9 C', h', w')
        values = F.interpolate(values, size=(height, width), mode="bilinear", align_corners=False)
        pooled.append(F.adaptive_avg_pool1d(values.flatten(2).transpose(1, 2).flatten(0, 1).unsqueeze(1), 1024))
    joined = F.adaptive_avg_pool1d(torch.stack(pooled, dim=2).squeeze(1).flatten(1).unsqueeze(1), out_channels)
    return joined.view(len(levels[0]), height, width, out_channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("out_channels", [8, 7, 1])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnet18"])
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


def test_pairs_follow_from_seed_and_number_and_show_every_picture_once_a_round(pictures):
    first, again, other = (PicturePairs(pictures, side=64, seed=seed) for seed in (0, 0, 1))
    for number in (11, 3, 7):
        assert all(torch.equal(a, b) for a, b in zip(first[number], again[number], strict=True))
    order = [[first[turn * 5 + place][1].float().mean().item() for place in range(5)] for turn in range(3)]
    assert all(len(set(one)) == 5 for one in order)
    assert len({tuple(one) for one in order}) > 1
    assert any(not torch.equal(first[number][1], other[number][1]) for number in range(5))


def test_pairs_are_one_picture_at_two_sizes_sometimes_grey(pictures):
    pairs = PicturePairs(pictures, side=64, seed=0)
    grey = Counter()
    for number in range(300):
        large, small = pairs[number]
        assert large.shape == (3, 128, 128) and small.shape == (3, 64, 64) and large.dtype == torch.uint8
        is_grey = [bool((one[0] == one[1]).all() and (one[1] == one[2]).all()) for one in (large, small)]
        assert is_grey[0] == is_grey[1]
        grey[is_grey[0]] += 1
    halved = F.avg_pool2d(large.float(), 2)
    assert (halved - small.float()).abs().mean() < 12  # noise of 40 x 50 pixels, enlarged
    assert 10 < grey[True] < 60  # 30 expected


def test_files_and_losses_that_cannot_be_used_are_named(tmp_path, pictures, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no pictures; distillation needs a folder of many pictures"):
        distill(tmp_path / "empty", tmp_path / "t.safetensors", **SMALL)
    with pytest.raises(DataError, match="nowhere: is no folder"):
        distill(tmp_path / "nowhere", tmp_path / "t.safetensors", **SMALL)
    (tmp_path / "u.safetensors.part").write_bytes(b"half a download")
    with pytest.raises(ModelError, match=r"u\.safetensors\.part: no unfinished distillation .*; remove it"):
        distill(pictures, tmp_path / "u.safetensors", **SMALL)
    told = {"steps": 2}
    monkeypatch.setattr(TeacherTraining, "step", lambda self, *_: vars(self).update(told) or torch.tensor(math.nan))
    with pytest.raises(TrainingDivergedError, match="the loss is nan at step 2; lower learning_rate"):
        distill(pictures, tmp_path / "v.safetensors", **SMALL)
    truncate_file(pictures / "class0" / "0.png")
    with pytest.raises(DataError, match=r"class0/0\.png: image is truncated or not an image"):
        distill(pictures, tmp_path / "t.safetensors", **SMALL)


def test_a_distilled_teacher_says_how_it_was_made(tmp_path, pictures):
    path = distill(pictures, tmp_path / "t.safetensors", **SMALL)
    assert path == tmp_path / "t.safetensors" and sorted(p.name for p in tmp_path.iterdir()) == ["pictures", path.name]
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["gainmtl_teacher"])
    expected = {"backbone": "test_resnet", "weights": "random weights", "images": "pictures", "pictures": 5}
    expected |= {"model_size": "S", "out_channels": 8, "padding": True, "image_size": 64, "steps": 4, "seed": 42}
    assert expected.items() <= record.items()
    assert str(tmp_path) not in json.dumps(record)
    state, description = teacher_of(EfficientADSettings(teacher=path, out_channels=8))
    assert description["text"] == "distilled from test_resnet (random weights) on pictures"
    assert description["distilled"] == record
    assert all(torch.equal(state[name], tensor) for name, tensor in load_file(path).items())


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
    assert not any(parameter.requires_grad for parameter in training.targets.parameters())


def test_interrupted_work_ends_as_uninterrupted(tmp_path, pictures, monkeypatch, caplog):
    whole = load_file(distill(pictures, tmp_path / "whole.safetensors", **SMALL))
    step = TeacherTraining.step

    def interrupted(self, large, small):
        if self.steps == 3:
            raise KeyboardInterrupt
        return step(self, large, small)

    output = tmp_path / "parts.safetensors"
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):
        patch.setattr(TeacherTraining, "step", interrupted)
        distill(pictures, output, **SMALL)
    assert "interrupted after step 3; the same call goes on" in caplog.text
    assert not output.exists() and (tmp_path / "parts.safetensors.part").exists()
    with pytest.raises(ModelError, match=r"made otherwise .*\n  learning_rate: 0.0001 and 0.1\n.*--force"):
        distill(pictures, output, **SMALL, learning_rate=0.1)
    with caplog.at_level(logging.INFO):
        parts = load_file(distill(pictures, output, **SMALL))
    assert "going on after step 2 of 4" in caplog.text
    assert not (tmp_path / "parts.safetensors.part").exists()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_a_finished_teacher_is_returned_and_another_one_never_overwritten(tmp_path, pictures, monkeypatch):
    output = distill(pictures, tmp_path / "t.safetensors", **SMALL)
    made = output.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, "TeacherTraining", None)
        assert distill(pictures, output, **SMALL, num_workers=1) == output
        with pytest.raises(ModelError, match=r"made otherwise \(there, and asked for\):\n  seed: 42 and 43\n"):
            distill(pictures, output, **SMALL, seed=43)
    with pytest.raises(ModelError, match="unknown backbone"):
        distill(pictures, output, **SMALL | {"backbone": "nothing"}, force=True)
    assert output.read_bytes() == made
    distill(pictures, output, **SMALL, seed=43, force=True)
    assert output.read_bytes() != made
    save_file({"a": torch.ones(1)}, output)
    with pytest.raises(ModelError, match="backbone: None and 'test_resnet'"):
        distill(pictures, output, **SMALL)


def test_pictures_that_are_all_the_same_are_an_error(tmp_path):
    write_picture(tmp_path / "plain" / "0.png", size=(64, 64), value=0)
    name = {"backbone": "resnet18", "image_size": 64}
    dead = {key: torch.zeros_like(t) for key, t in backbone("resnet18").net.state_dict().items()}
    torch.save(dead, tmp_path / "dead.pth")
    with pytest.raises(ModelError, match="8 of the backbone's 8 channels never change"):
        distill(
            tmp_path / "plain", tmp_path / "t.safetensors", **SMALL | name | {"backbone_weights": tmp_path / "dead.pth"}
        )


def test_backbone_weights_come_from_a_file_or_by_name(tmp_path, pictures, monkeypatch):
    given = backbone().net.state_dict()
    save_file({f"backbone.net.{name}": t.contiguous() for name, t in given.items()}, tmp_path / "gain.safetensors")
    values = SMALL | {"backbone_weights": tmp_path / "gain.safetensors"}
    from_file = load_file(distill(pictures, tmp_path / "file.safetensors", **values))
    asked = []
    monkeypatch.setattr(module, "fetch_weights", lambda *names: asked.append(names) or dict(given))
    by_name = distill(pictures, tmp_path / "name.safetensors", **SMALL | {"backbone_weights": True})
    assert asked == [("test_resnet", "test_resnet.r160_in1k", "timm")]
    assert all(torch.equal(from_file[name], tensor) for name, tensor in load_file(by_name).items())
    texts = [
        teacher_of(EfficientADSettings(teacher=tmp_path / f"{name}.safetensors", out_channels=8))[1]["text"]
        for name in ("file", "name")
    ]
    assert texts == [
        "distilled from test_resnet (gain.safetensors) on pictures",
        "distilled from test_resnet (pretrained) on pictures",
    ]


def test_the_global_random_state_is_neither_read_nor_moved(tmp_path, pictures):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        states.append(load_file(distill(pictures, tmp_path / f"{seed}.safetensors", **SMALL)))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"backbone": "test_vit"}, ModelError, "test_vit: this backbone has no features at stride 8"),
        ({"backbone": "resnet1"}, ModelError, "unknown backbone 'resnet1'; did you mean"),
        ({"image_size": 32}, SettingsError, "image_size must be greater than or equal to 64"),
        ({"output": "teacher.pth"}, SettingsError, r"output must be a \.safetensors file, got teacher\.pth"),
        ({"steps": 0}, SettingsError, "steps must be"),
        ({"model_size": "L"}, SettingsError, "model_size must be"),
        ({"bachsize": 3}, SettingsError, "unknown parameter 'bachsize'; did you mean 'batch_size'"),
    ],
)
def test_values_that_cannot_be_used(tmp_path, pictures, values, error, message):
    with pytest.raises(error, match=message):
        distill(**SMALL | {"images": pictures, "output": tmp_path / "t.safetensors"} | values)
