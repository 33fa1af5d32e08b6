"""EfficientAD's networks against the published layers, its maps, its losses by hand, its settings and weights."""

import enum
import math
import shutil
import sys
import types
from itertools import product

import pytest
import torch
from anomaly_runs import set_statistics
from torch import nn

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.efficientad import model as ad
from gainmtl_lib.efficientad.model import EfficientADModel, EfficientADSettings
from gainmtl_lib.settings import SettingsError, repository_root

C = 8


def built(model_size="S", channels=C, *, padding=False, seed=0):
    torch.manual_seed(seed)
    return EfficientADModel(model_size, channels, padding=padding).eval()


def drawn(*size, count=1):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


def column(*values):
    return torch.tensor(values).view(-1, 1, 1, 1)


def settings(teacher="random", **values):
    return EfficientADSettings(**{"teacher": teacher, "out_channels": C} | values)


# --- Networks, written a second time as plain lists of layers after the published tables


def description_network(model_size, *, padding=False):
    """Convolutions stand at places 0, 3, 6, 8 (S) and 0, 3, 6, 8, 10, 12 (M), as in the published files."""
    p, wide = int(padding), 128 if model_size == "S" else 256
    first = [nn.Conv2d(3, wide, 4, padding=3 * p), nn.ReLU(), nn.AvgPool2d(2, 2, p)]
    first += [nn.Conv2d(wide, 2 * wide, 4, padding=3 * p), nn.ReLU(), nn.AvgPool2d(2, 2, p)]
    if model_size == "S":
        return nn.Sequential(*first, nn.Conv2d(256, 256, 3, padding=p), nn.ReLU(), nn.Conv2d(256, C, 4))
    middle = [nn.Conv2d(512, 512, 1), nn.ReLU(), nn.Conv2d(512, 512, 3, padding=p), nn.ReLU()]
    return nn.Sequential(*first, *middle, nn.Conv2d(512, C, 4), nn.ReLU(), nn.Conv2d(C, C, 1))


def autoencoder(cells):  # for 256 pixels, without dropout
    layers = []
    for before, after in ((3, 32), (32, 32), (32, 64), (64, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(64, 64, 8)]
    for side in (3, 8, 15, 32, 63, 127):
        layers += [nn.Upsample((side, side), mode="bilinear"), nn.Conv2d(64, 64, 4, padding=2), nn.ReLU()]
    layers += [nn.Upsample((cells, cells), mode="bilinear"), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(64, C, 3, padding=1))


def lively(network):
    """With weights that pass the image on; as PyTorch draws them, deep layers answer little but their biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=torch.Generator().manual_seed(0))
    return network


def renamed(network, reference):
    return dict(zip(reference.state_dict(), network.state_dict().values(), strict=True))


@pytest.mark.parametrize(("model_size", "padding"), [*product("SM", (False, True))])
def test_description_is_that_of_the_published_layers_and_a_cell_sees_33_pixels(model_size, padding):
    ours, reference = built(model_size, padding=padding).teacher, description_network(model_size, padding=padding)
    reference.load_state_dict(renamed(lively(ours), reference))
    images = (drawn(72, 75) - 0.5).requires_grad_()
    described, expected = ours(images), reference(images)
    torch.testing.assert_close(described, expected, rtol=1e-4, atol=1e-5 * expected.std().item())
    halves = [ours.part(ours.hidden(images), channels) for channels in (slice(0, 3), slice(3, None))]
    torch.testing.assert_close(torch.cat(halves, dim=1), described)
    described[0, :, 8, 7].sum().backward()
    seen, first = images.grad[0].abs().sum(dim=0), -16 if padding else 0
    for cell, axis in ((8, 1), (7, 0)):
        places = seen.sum(dim=axis).nonzero().flatten()
        assert (int(places[0]), int(places[-1])) == (max(0, 4 * cell + first), 4 * cell + first + 32)
    whole = ad.PatchDescriptionNetwork(model_size=model_size, out_channels=384, padding=padding).to("meta")
    for height in (*range(ad.SMALLEST_IMAGE, 100, 5), 127, 250, 255, 257, 512, 1001):
        size = (height, 400 - height // 4)
        assert whole(torch.empty(1, 3, *size, device="meta")).shape[2:] == whole.grid(size)
    assert sum(each.numel() for each in whole.parameters()) == {"S": 2_694_144, "M": 8_026_624}[model_size]


@pytest.mark.parametrize(("padding", "cells"), [(False, 56), (True, 64)])
@torch.inference_mode()
def test_autoencoder_is_that_of_the_published_layers_answers_on_any_grid_and_drops_out_in_training(padding, cells):
    ours, reference = lively(ad.AutoEncoder(out_channels=C)).eval(), autoencoder(cells)
    reference.load_state_dict(renamed(ours, reference))
    images = drawn(256, 256) - 0.5
    assert built(padding=padding).teacher.grid((256, 256)) == (cells, cells)
    torch.testing.assert_close(ours(images, (cells, cells)), reference(images))
    for side in (64, 100, 255):
        assert ours(drawn(side, side), (8, 9)).shape == (1, C, 8, 9)
    for training in (True, False):
        first, second = (ours.train(training)(images, (8, 8)) for _ in range(2))
        assert torch.equal(first, second) != training


@torch.inference_mode()
def test_every_size_gives_a_map_of_each_image_alone_teacher_with_one_half_and_autoencoder_with_the_other():
    for size, padding in (((64, 65), False), ((101, 66), True)):
        model, images = built(padding=padding), drawn(*size, count=2)
        output = model(images)
        assert output.anomaly_map.shape == (2, 1, *size) and output.score.shape == (2,)
        torch.testing.assert_close(model(images[1:]).anomaly_map[0], output.anomaly_map[1])
    with pytest.raises(ModelError, match=r"at least 64x64 pixels, got 63x200 \(height x width\)"):
        model(drawn(63, 200))
    with pytest.raises(ModelError, match="model_size must be S or M, got 'L'"):
        EfficientADModel("L", C)
    model, images = built(), drawn(64, 64)
    set_statistics(model, torch.full((C,), 0.25), torch.full((C,), 2.0))
    grey = model.normalized(torch.full((1, 3, 64, 64), 0.5))[0, :, 0, 0]
    torch.testing.assert_close(grey, torch.tensor([0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225]))
    pixels, maps = model.normalized(images), model.local_maps(images)
    student, teacher = model.student(pixels), (model.teacher(pixels) - 0.25) / 2
    torch.testing.assert_close(maps.student_teacher, (teacher - student[:, :C]).square().mean(1, keepdim=True))
    predicted = model.autoencoder(pixels, model.teacher.grid((64, 64)))
    torch.testing.assert_close(maps.student_autoencoder, (predicted - student[:, C:]).square().mean(1, keepdim=True))


@torch.inference_mode()
def test_quantiles_become_0_and_a_tenth_maps_are_averaged_never_clamped_and_a_missing_border_is_0():
    model = built(padding=True)
    model.set_quantiles(torch.tensor([[2.0, 4.0], [10.0, 30.0]]), images=5)
    finished = model.finish(ad.LocalMaps(column(2.0, 4, 2, 6), column(10.0, 30, 30, 0)), (8, 8))
    torch.testing.assert_close(finished.score, torch.tensor([0, 0.1, 0.05, (0.2 - 0.05) / 2]))
    torch.testing.assert_close(finished.anomaly_map.amax(dim=(1, 2, 3)), finished.score)
    model.set_quantiles(torch.tensor([[0.0, 0.1], [0.0, 0.1]]), images=5)
    values = column(-2000.0, -0.5, 0, 1, 2000)
    torch.testing.assert_close(model.finish(ad.LocalMaps(values, values), (8, 8)).score, values.flatten())
    for row in ([math.nan, 1.0], [1.0, math.inf], [0.3, 0.3], [0.4, 0.3]):
        with pytest.raises(ModelError, match=r"\(1\) give no scale \(0, 1, .*\).*more normal images \(val_ratio"):
            model.set_quantiles(torch.tensor([[0.0, 1.0], row]), images=1)
    unpadded, outside = built(), torch.ones(96, 96, dtype=torch.bool)
    unpadded.set_quantiles(torch.tensor([[5.0, 6.0], [5.0, 6.0]]), images=5)  # every value is far below
    (image_map,), score, _ = (each[0] for each in unpadded(drawn(96, 96)))
    outside[14:-14, 14:-14] = False  # four cells of four pixels, of which enlarging blurs the inner one and a half
    assert (image_map[outside] == 0).all() and (image_map[18:-18, 18:-18] < -0.3).all() and score < -0.3


def test_the_teacher_is_standardised_on_what_it_was_measured_on():
    parts = [1000 + 0.01 * torch.randn(size, 3, 4, 5) for size in (1, 40, 20)]  # far above the deviation
    (mean, std), whole = ad.channel_moments(parts, whose="the"), torch.cat(parts).double()
    torch.testing.assert_close(mean, whole.mean((0, 2, 3)).float())
    torch.testing.assert_close(std, whole.std((0, 2, 3), correction=0).float(), rtol=1e-4, atol=0)
    model, images = built(), drawn(64, 64, count=5)
    model.measure_teacher(images.split(2))
    described = model.describe(model.normalized(images))
    torch.testing.assert_close(described.mean((0, 2, 3)), torch.zeros(C), atol=1e-4, rtol=0)
    torch.testing.assert_close(described.std((0, 2, 3), correction=0), torch.ones(C), atol=1e-4, rtol=0)
    for weight in (0.0, math.nan):
        nn.init.constant_(model.teacher.convolutions[-1].weight, weight)
        with pytest.raises(ModelError, match=r"8 of the teacher's 8 channels never change on these images, or are not"):
            model.measure_teacher([images])


def test_losses_by_hand_and_one_weight_scales_both_terms_of_the_autoencoder():
    teacher = torch.arange(1001.0).view(1, 7, 11, 13)  # the 0.999-quantile of the squares is 999 squared
    assert ad.hard_feature_loss(torch.zeros_like(teacher), teacher, 0.999).item() == (999**2 + 1000**2) / 2
    teacher = torch.tensor([0.0, 1, 2, 3]).view(1, 1, 2, 2)
    for quantile, expected in ((0.5, (4 + 9) / 2), (0.0, (0 + 1 + 4 + 9) / 4), (1.0, 9)):
        loss = ad.hard_feature_loss(torch.zeros_like(teacher), teacher, quantile)
        assert loss.item() == expected  # between two values the lower is out
    student = torch.zeros(1, 1, 2**12, 2**12 + 1)  # more values than a float counts
    student[0, 0, 0, :20] = 3
    assert ad.hard_feature_loss(student, torch.zeros(()).expand_as(student), 1 - 15 / student.numel()).item() == 9
    student = torch.zeros(1, 1, 2, 2, requires_grad=True)
    ad.hard_feature_loss(student, torch.tensor([1.0, -2, 3, -4]).view(1, 1, 2, 2), 0.6).backward()
    assert student.grad.flatten().tolist() == [0, 0, -3, 4]  # pulled where it is worst, towards the teacher
    assert ad.pretraining_penalty(torch.tensor([1.0, -3.0])).item() == 5
    assert ad.distance_loss(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 1.0])).item() == 5
    half = torch.full((1, 1, 2, 2), 300.0, dtype=torch.float16)  # summed in single precision
    for loss in (ad.hard_feature_loss(half, -half), ad.pretraining_penalty(half), ad.distance_loss(half, -half)):
        assert loss.dtype == torch.float32 and math.isfinite(loss.item())
    terms = {name: torch.tensor(value) for name, value in zip(ad.TERMS, (1.0, 10.0, 100.0, 1000.0), strict=True)}
    assert ad.total_loss(terms, settings(st_weight=2, penalty_weight=3, ae_weight=4)).item() == 2 + 30 + 400 + 4000


def test_a_category_has_a_run_and_a_folder_of_its_own_and_what_cannot_be_used_is_named():
    read = EfficientADSettings.from_yaml(repository_root() / "params" / "efficientad_mvtec.yaml")
    assert read.run_dir.relative_to(read.outputs_dir).as_posix() == "mvtec/efficientad/bottle/seed42"
    assert read.dataset_folder == repository_root() / "data/mvtec_ad/bottle"
    for values, message in (
        ({}, "teacher is missing; expected the path of a weights file, or random"),
        ({"teacher": 3}, "teacher must be the path of a weights file, or random, got 3"),
        ({"teacher": "random", "image_size": 48}, r"image_size must be at least 64 pixels a side, got \[48, 48\]"),
        (
            {"teacher": "random", "category": "bottle"},
            "category is for dataset_type mvtec, mvtec_loco, mvtec_ad2, visa, got generic and 'bottle'",
        ),
    ):
        with pytest.raises(SettingsError, match=message):
            EfficientADSettings(**values)


def anomalib_names(model):
    state = {f"ae.encoder.enconv1.{kind}": t for kind, t in model.autoencoder.encoder[0].state_dict().items()}
    for part in ("teacher", "student"):
        for number, layer in enumerate(getattr(model, part).convolutions, start=1):
            state |= {f"{part}.conv{number}.{kind}": tensor for kind, tensor in layer.state_dict().items()}
    return state | {"mean_std.mean": model.teacher_mean, "quantiles.qa_st": model.quantiles[0, 0]}


def nelson_names(model):
    names = renamed(model.teacher, description_network(model.model_size))
    return {f"teacher.{name}": tensor for name, tensor in names.items()}


@pytest.mark.parametrize("names", [EfficientADModel.state_dict, anomalib_names, nelson_names])
@pytest.mark.parametrize("model_size", ["S", "M"])
def test_a_teacher_loads_from_every_naming_alone_or_out_of_a_whole_model(model_size, names):
    source, model = built(model_size, seed=1), built(model_size, seed=2)
    state = names(source)
    alone = {name.removeprefix("teacher."): t for name, t in state.items() if name.startswith("teacher.")}
    for given in (alone, {f"model.{name}": tensor.half() for name, tensor in state.items()}, state):
        ad.fill_teacher(model.teacher, dict(reversed(given.items())))
        kind = next(iter(given.values())).dtype
        for read, expected in zip(model.teacher.parameters(), source.teacher.parameters(), strict=True):
            assert torch.equal(read, expected.to(kind).float()) and not read.requires_grad


class Trap:
    """Copies a file onto another when it is unpickled."""

    def __reduce__(self):
        return (shutil.copyfile, (__file__, self.path))


def test_a_checkpoint_of_anomalib_is_read_though_it_names_a_class_and_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    module = types.ModuleType("another_package")
    size = module.Size = enum.Enum("Size", {"S": "small"}, module=module.__name__, qualname="Size")
    monkeypatch.setitem(sys.modules, "another_package", module)
    source, path, trap = built(), tmp_path / "model.ckpt", Trap()
    trap.path = tmp_path / "sprung"
    state = {f"model.{name}": tensor for name, tensor in anomalib_names(source).items()}
    torch.save({"state_dict": state, "hyper_parameters": {"model_size": size.S}, "extra": trap}, path)
    monkeypatch.delitem(sys.modules, "another_package")
    torch.testing.assert_close(ad.teacher_of(settings(path))[0], dict(source.teacher.state_dict()), rtol=0, atol=0)
    whole = r"pickled as a whole.*torch\.save\(network\.state_dict\(\)"
    for given, message in ((trap, "holds no tensors by name"), (description_network("S"), whole)):
        torch.save(given, path)
        with pytest.raises(ModelError, match=message):
            ad.read_weights(path)
    assert not trap.path.exists()


def test_a_random_teacher_follows_from_the_seed_alone_and_a_file_is_told_by_digest_or_says_what_does_not_fit(tmp_path):
    own, path, digests = built(), tmp_path / "a.pth", set()
    with pytest.raises(ModelError, match="no such weights file"):
        ad.teacher_of(settings(path))
    for given, message in (
        (built("M").teacher.state_dict(), "of size M with 8 channels, expected .* size S with 8 channels; set"),
        (built("S", 12).teacher.state_dict(), "of size S with 12 channels, expected .* of size S with 8 channels"),
        (own.teacher.state_dict() | {"convolutions.0.weight": torch.zeros(128, 1, 4, 4)},
         r"its tensors to be .*\(128, 3, 4, 4\).* got"),
        (own.autoencoder.state_dict(), r"no network of EfficientAD, 'encoder\.0\.weight' is none of its layers"),
    ):  # fmt: skip
        torch.save(given, path)
        with pytest.raises(ModelError, match=f"a.pth: .*{message}"):
            ad.teacher_of(settings(path))
    state, (first, description) = torch.get_rng_state(), ad.teacher_of(settings(seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert description == {"kind": "random", "text": "random (untrained teacher: not the paper's method)", "seed": 3}
    again, other = (ad.teacher_of(settings(seed=seed))[0] for seed in (3, 4))
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in first)
    for weights in (first, other):
        torch.save(weights, path)
        _, told = ad.teacher_of(settings(path))
        assert (told["kind"], told["text"], told["file"]) == ("file", "weights file a.pth", path.as_posix())
        digests.add(told["digest"])
    assert len(digests) == 2
