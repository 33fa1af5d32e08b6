from __future__ import annotations

import pytest
import torch
from efficientad_reference import autoencoder, description_network, lively, sequential_names

from gainmtl_lib.efficientad.model import RECEPTIVE_FIELD, SMALLEST_IMAGE, AutoEncoder, PatchDescriptionNetwork

SIZES = ("S", "M")
CHANNELS = 8


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(model_size: str = "S", *, padding: bool = False, out_channels: int = CHANNELS) -> PatchDescriptionNetwork:
    torch.manual_seed(0)
    return PatchDescriptionNetwork(model_size=model_size, out_channels=out_channels, padding=padding)


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("model_size", SIZES)
@torch.inference_mode()
def test_description_is_that_of_the_published_layers(model_size, padding):
    ours, reference = network(model_size, padding=padding), description_network(model_size, CHANNELS, padding=padding)
    reference.load_state_dict(sequential_names(lively(ours), reference))
    images = torch.randn(2, 3, 64, 75, generator=seeded())
    expected = reference(images)
    torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5 * float(expected.std()))


@pytest.mark.parametrize(("padding", "cells"), [(False, 56), (True, 64)])
@torch.inference_mode()
def test_autoencoder_is_that_of_the_published_layers(padding, cells):
    torch.manual_seed(0)
    ours, reference = AutoEncoder(out_channels=CHANNELS).eval(), autoencoder(CHANNELS, cells=cells)
    reference.load_state_dict(sequential_names(lively(ours), reference))
    images = torch.randn(1, 3, 256, 256, generator=seeded())
    assert network(padding=padding).grid((256, 256)) == (cells, cells)
    torch.testing.assert_close(ours(images, (cells, cells)), reference(images))


@pytest.mark.parametrize(("model_size", "parameters"), [("S", 2_694_144), ("M", 8_026_624)])
def test_parameters_are_as_many_as_published(model_size, parameters):
    with torch.device("meta"):
        teacher = network(model_size, out_channels=384)
    assert sum(parameter.numel() for parameter in teacher.parameters()) == parameters


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("model_size", SIZES)
def test_a_cell_sees_33_pixels_around_its_place(model_size, padding):
    images = torch.randn(1, 3, 96, 96, generator=seeded(), requires_grad=True)
    row, column = 9, 7
    network(model_size, padding=padding)(images)[0, :, row, column].sum().backward()
    assert images.grad is not None
    seen = images.grad[0].abs().sum(dim=0)
    rows, columns = seen.sum(dim=1).nonzero().flatten(), seen.sum(dim=0).nonzero().flatten()
    ends = [(int(found[0]), int(found[-1])) for found in (rows, columns)]
    first = -(RECEPTIVE_FIELD // 2) if padding else 0
    assert ends == [(max(0, 4 * cell + first), 4 * cell + first + RECEPTIVE_FIELD - 1) for cell in (row, column)]


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("model_size", SIZES)
def test_grid_is_foretold(model_size, padding):
    with torch.device("meta"):
        pdn = network(model_size, padding=padding)
        for height in [*range(SMALLEST_IMAGE, 100), 127, 250, 255, 257, 512, 1001]:
            images = torch.empty(1, 3, height, 400 - height // 4)
            assert pdn(images).shape == (1, CHANNELS, *pdn.grid((height, images.shape[3])))


def test_autoencoder_answers_on_any_grid_for_any_size():
    with torch.device("meta"):
        autoencoding = AutoEncoder(out_channels=CHANNELS)
        for height, width in [(64, 64), (64, 300), (127, 65), (255, 256), (289, 700)]:
            grid = (height // 4 - 7, width // 4)
            assert autoencoding(torch.empty(2, 3, height, width), grid).shape == (2, CHANNELS, *grid)


@pytest.mark.parametrize("model_size", SIZES)
@torch.inference_mode()
def test_parts_are_the_channels_of_the_whole(model_size):
    student = network(model_size)
    images = torch.randn(2, 3, 64, 64, generator=seeded())
    hidden = student.hidden(images)
    halves = [student.part(hidden, channels) for channels in (slice(0, 3), slice(3, None))]
    torch.testing.assert_close(torch.cat(halves, dim=1), student(images))


@torch.inference_mode()
def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    autoencoding = AutoEncoder(out_channels=CHANNELS)
    images = torch.randn(1, 3, 64, 64, generator=seeded())
    assert not torch.equal(autoencoding(images, (8, 8)), autoencoding(images, (8, 8)))
    autoencoding.eval()
    assert torch.equal(autoencoding(images, (8, 8)), autoencoding(images, (8, 8)))


@pytest.mark.parametrize("side", [64, 100, 255])
@torch.inference_mode()
def test_bottleneck_keeps_the_arrangement_out_of_small_images_too(side):
    """Everything passes through one column of 64 values where the bottleneck's kernel covers the encoder's grid."""
    autoencoding = AutoEncoder(out_channels=CHANNELS).eval()
    shapes = []
    autoencoding.encoder[-1].register_forward_hook(lambda module, given, result: shapes.append(tuple(result.shape)))
    assert autoencoding(torch.rand(1, 3, side, side), (8, 8)).isfinite().all()
    assert shapes == [(1, 64, 1, 1)]
