from __future__ import annotations

import math

import pytest
import torch

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.efficientad.model import (
    BORDER,
    EfficientADModel,
    LocalMaps,
    distance_loss,
    hard_feature_loss,
    mean_square,
    pretraining_penalty,
)

C = 8


def built(model_size: str = "S", *, padding: bool = False) -> EfficientADModel:
    torch.manual_seed(0)
    return EfficientADModel(model_size, C, padding=padding).eval()


def drawn(*size: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (65, 101), (96, 255), (130, 66)])
@torch.inference_mode()
def test_every_size_from_64_pixels_gives_a_map_of_the_image(size, padding):
    output = built(padding=padding)(drawn(*size, count=2))
    assert output.anomaly_map.shape == (2, 1, *size)
    assert output.anomaly_map.dtype == output.score.dtype == torch.float32
    assert output.score.shape == (2,)
    assert output.anomaly_map.isfinite().all()


def test_a_smaller_image_is_an_error():
    with pytest.raises(ModelError, match=r"at least 64x64 pixels, got 63x200 \(height x width\)"):
        built()(drawn(63, 200))


def test_an_unknown_size_is_an_error():
    with pytest.raises(ModelError, match="model_size must be S or M, got 'L'"):
        EfficientADModel("L", C)  # type: ignore[arg-type]


@torch.inference_mode()
def test_pictures_do_not_know_each_other():
    model, images = built("M"), drawn(64, 64, count=3)
    together = model(images)
    for index, image in enumerate(images):
        alone = model(image.unsqueeze(0))
        torch.testing.assert_close(alone.anomaly_map[0], together.anomaly_map[index])
        torch.testing.assert_close(alone.score[0], together.score[index])


def test_images_are_normalised_by_imagenet():
    pixels = built().normalized(torch.full((1, 3, 64, 64), 0.5))
    expected = [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225]
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor(expected))


@torch.inference_mode()
def test_maps_compare_the_standardised_teacher_with_one_half_and_the_autoencoder_with_the_other():
    model, images = built(), drawn(64, 64)
    model.set_teacher_statistics(torch.full((C,), 0.25), torch.full((C,), 2.0))
    pixels = model.normalized(images)
    student = model.student(pixels)
    teacher = (model.teacher(pixels) - 0.25) / 2
    maps = model.local_maps(images)
    torch.testing.assert_close(maps.student_teacher, (teacher - student[:, :C]).square().mean(1, keepdim=True))
    predicted = model.autoencoder(pixels, model.teacher.grid((64, 64)))
    torch.testing.assert_close(maps.student_autoencoder, (predicted - student[:, C:]).square().mean(1, keepdim=True))


def test_mean_square_by_hand():
    first, second = torch.tensor([1.0, 5.0]).view(1, 2, 1, 1), torch.tensor([4.0, 4.0]).view(1, 2, 1, 1)
    assert mean_square(first, second).item() == (9 + 1) / 2


def test_quantiles_become_0_and_a_tenth_and_the_maps_are_averaged():
    model = built(padding=True)
    model.set_quantiles(torch.tensor([[2.0, 4.0], [10.0, 30.0]]), images=5)
    maps = LocalMaps(
        torch.tensor([2.0, 4.0, 2.0, 6.0]).view(4, 1, 1, 1), torch.tensor([10.0, 30, 30, 0]).view(4, 1, 1, 1)
    )
    finished = model.finish(maps, (8, 8))
    torch.testing.assert_close(finished.score, torch.tensor([0, 0.1, 0.05, (0.2 - 0.05) / 2]))
    torch.testing.assert_close(finished.anomaly_map.amax(dim=(1, 2, 3)), finished.score)


@torch.inference_mode()
def test_the_border_of_an_unpadded_network_is_exactly_0():
    model = built()
    model.set_quantiles(torch.tensor([[5.0, 6.0], [5.0, 6.0]]), images=5)  # every value is far below
    image_map = model(drawn(256, 256)).anomaly_map[0, 0]
    outside = torch.ones(256, 256, dtype=torch.bool)
    outside[14:-14, 14:-14] = False  # four cells of four pixels, of which enlarging blurs the inner one and a half
    assert (image_map[outside] == 0).all()
    assert (image_map[18:-18, 18:-18] < -0.3).all()


@torch.inference_mode()
def test_the_score_is_the_maximum_of_what_was_looked_at():
    model = built()
    model.set_quantiles(torch.tensor([[5.0, 6.0], [5.0, 6.0]]), images=5)
    assert (model(drawn(64, 64, count=2)).score < -0.3).all()  # although the border's 0 is larger


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("model_size", ["S", "M"])
@pytest.mark.parametrize("place", [(70, 50), (101, 83), (40, 95)])
@torch.inference_mode()
def test_a_point_lies_on_the_map_where_it_lies_on_the_picture(model_size, padding, place):
    model = built(model_size, padding=padding)
    model.quantiles[1, 1] = 1e6  # the autoencoder sees the whole picture at once
    image = torch.full((1, 3, 144, 144), 0.5)
    pointed = image.clone()
    pointed[..., place[0] : place[0] + 2, place[1] : place[1] + 2] = 1.0
    changed = (model(pointed).anomaly_map - model(image).anomaly_map)[0, 0].abs()
    rows, columns = torch.meshgrid(torch.arange(144.0), torch.arange(144.0), indexing="ij")
    centre = [float((changed * axis).sum() / changed.sum()) for axis in (rows, columns)]
    peak = divmod(int(changed.argmax()), 144)
    assert math.dist(centre, (place[0] + 0.5, place[1] + 0.5)) < 4
    assert math.dist(peak, place) < 12


@torch.inference_mode()
def test_the_border_is_that_of_the_unpadded_grid():
    unpadded, padded = built(), built(padding=True)
    assert unpadded.teacher.grid((256, 256))[0] + 2 * BORDER == padded.teacher.grid((256, 256))[0] == 64


@torch.inference_mode()
def test_statistics_standardise_every_channel():
    model, images = built(), drawn(64, 64, count=4)
    described = model.teacher(model.normalized(images))
    model.set_teacher_statistics(described.mean((0, 2, 3)), described.std((0, 2, 3), correction=0))
    standardised = model.describe(model.normalized(images))
    torch.testing.assert_close(standardised.mean((0, 2, 3)), torch.zeros(C), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardised.std((0, 2, 3), correction=0), torch.ones(C))


def test_a_channel_that_never_changes_is_an_error():
    std = torch.ones(C)
    std[2:4] = 0
    with pytest.raises(ModelError, match=f"2 of the teacher's {C} channels never change on the training images"):
        built().set_teacher_statistics(torch.zeros(C), std)
    with pytest.raises(ModelError, match="channel statistics are not finite"):
        built().set_teacher_statistics(torch.full((C,), math.nan), torch.ones(C))


@pytest.mark.parametrize("row", [[math.nan, 1.0], [1.0, math.inf], [0.3, 0.3], [0.4, 0.3]])
def test_quantiles_that_give_no_scale_are_an_error(row):
    model = built()
    before = model.quantiles.clone()
    with pytest.raises(
        ModelError, match=r"give no scale \(0, 1, .*\) from 1 image; .*more normal images \(val_ratio\)"
    ):
        model.set_quantiles(torch.tensor([[0.0, 1.0], row]), images=1)
    assert torch.equal(model.quantiles, before)


def test_each_term_moves_its_networks_and_none_the_teacher():
    model, pixels = built(), built().normalized(drawn(64, 64))
    described = model.describe(pixels)
    student, predicted = model.student(pixels), model.autoencoder(pixels, model.teacher.grid((64, 64)))
    terms = {
        "st": (hard_feature_loss(student[:, :C], described), {"student"}),
        "penalty": (pretraining_penalty(student[:, :C]), {"student"}),
        "ae": (distance_loss(described, predicted), {"autoencoder"}),
        "stae": (distance_loss(predicted, student[:, C:]), {"student", "autoencoder"}),
    }
    assert not described.requires_grad
    for loss, expected in terms.values():
        model.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == expected


def test_the_teacher_never_moves():
    model = built().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.1, weight_decay=0.1)
    for seed in range(2):
        sum(one.mean() for one in model.local_maps(drawn(64, 64, seed=seed))).backward()  # type: ignore[union-attr]
        optimizer.step()
    for name, tensor in model.state_dict().items():
        moves = name.startswith(("student.", "autoencoder."))
        assert torch.equal(tensor, before[name]) != moves, name


def test_the_state_holds_statistics_and_quantiles():
    model, copy = built(), built()
    model.set_teacher_statistics(torch.arange(1.0, C + 1), torch.full((C,), 3.0))
    model.set_quantiles(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), images=5)
    copy.load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert torch.equal(copy(drawn(64, 64)).anomaly_map, model(drawn(64, 64)).anomaly_map)


def test_nothing_is_clamped_so_that_no_two_scores_tie():
    model = built(padding=True)
    model.set_quantiles(torch.tensor([[0.0, 0.1], [0.0, 0.1]]), images=5)
    values = torch.tensor([-2000.0, -1000, -0.5, 0, 1, 2, 1000, 2000]).view(-1, 1, 1, 1)
    finished = model.finish(LocalMaps(values, values), (8, 8))
    torch.testing.assert_close(finished.score, values.flatten())
    torch.testing.assert_close(finished.anomaly_map, values.expand(-1, 1, 8, 8))
