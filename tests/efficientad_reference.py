"""EfficientAD's networks written a second time, as plain lists of layers after the published tables; for tests alone."""

from __future__ import annotations

import torch
from torch import nn


def description_network(model_size: str, out_channels: int, *, padding: bool) -> nn.Sequential:
    """Convolutions stand at places 0, 3, 6, 8 (S) and 0, 3, 6, 8, 10, 12 (M), as in the published files."""
    p = int(padding)
    if model_size == "S":
        return nn.Sequential(
            nn.Conv2d(3, 128, 4, padding=3 * p), nn.ReLU(), nn.AvgPool2d(2, 2, p),
            nn.Conv2d(128, 256, 4, padding=3 * p), nn.ReLU(), nn.AvgPool2d(2, 2, p),
            nn.Conv2d(256, 256, 3, padding=p), nn.ReLU(),
            nn.Conv2d(256, out_channels, 4),
        )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(3, 256, 4, padding=3 * p), nn.ReLU(), nn.AvgPool2d(2, 2, p),
        nn.Conv2d(256, 512, 4, padding=3 * p), nn.ReLU(), nn.AvgPool2d(2, 2, p),
        nn.Conv2d(512, 512, 1), nn.ReLU(),
        nn.Conv2d(512, 512, 3, padding=p), nn.ReLU(),
        nn.Conv2d(512, out_channels, 4), nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 1),
    )  # fmt: skip


def autoencoder(out_channels: int, *, cells: int = 56) -> nn.Sequential:
    """For 256 pixels, without dropout; convolutions at 0, 2, 4, 6, 8, 10 and 12, 15, 18, 21, 24, 27, 30, 32."""
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 32), (32, 64), (64, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(64, 64, 8)]
    for side in (3, 8, 15, 32, 63, 127):
        layers += [nn.Upsample((side, side), mode="bilinear"), nn.Conv2d(64, 64, 4, padding=2), nn.ReLU()]
    layers += [nn.Upsample((cells, cells), mode="bilinear"), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(64, out_channels, 3, padding=1))


def lively(network: nn.Module) -> nn.Module:
    """With weights that pass the image on; as PyTorch draws them, deep layers answer little but their biases."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
    return network


def sequential_names(network: nn.Module, reference: nn.Sequential) -> dict:
    """A network's tensors under the reference's names."""
    return dict(zip(reference.state_dict(), network.state_dict().values(), strict=True))
