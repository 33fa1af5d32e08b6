"""Small networks that tell two sorts of pictures, or of places, apart; trained from scratch within seconds.

Sizes: N pictures, C channels, h x w pixels; h' x w' cells of `CELL` pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 32
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1e-3
CELL = 4
WIDTH = 16


class PlaceNetwork(nn.Module):
    """A logit for each cell, from the 17 pixels around it: what stands elsewhere in the picture has no say.

    Args:
        channels: of the input, C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = _body(channels)
        self.cells = nn.Conv2d(2 * WIDTH, 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Shape: (N, C, h, w) -> (N, 1, h', w')."""
        return self.cells(self.body(pictures))


class PictureNetwork(nn.Module):
    """A logit for the picture, from mean and maximum of the features over it.

    Args:
        channels: of the input, C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = _body(channels)
        self.head = nn.Linear(4 * WIDTH, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Shape: (N, C, h, w) -> (N,)."""
        features = self.body(pictures)
        return self.head(torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1))[:, 0]


def _body(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    sizes = (channels, WIDTH, 5, 2), (WIDTH, 2 * WIDTH, 3, 2), (2 * WIDTH, 2 * WIDTH, 3, 1)
    for before, after, size, stride in sizes:
        convolution = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers from this seed on, and afterwards as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def train_probe(network: nn.Module, count: int, loss_of: Callable[[Tensor, int], Tensor], *, epochs: int) -> nn.Module:
    """Fit a network; call it within `seeded`.

    Args:
        network: fresh.
        count: pictures to train on.
        loss_of: loss of a batch, given its places 0 … count - 1 and how it is turned (see `turned`).
        epochs: passes over the pictures.

    Returns:
        The network, in evaluation mode.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(count).split(BATCH):
            loss = loss_of(chosen, int(torch.randint(8, ())))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def answers(network: nn.Module, pictures: Tensor) -> Tensor:
    """What the network says of each picture."""
    return torch.cat([network(part) for part in pictures.split(2 * BATCH)])


def largest(cells: Tensor, where: Tensor) -> Tensor:
    """The largest logit of each picture among some of its cells, (N,).

    Args:
        cells: (N, 1, h', w').
        where: 0 or 1, same shape; at least one 1 in each.
    """
    return cells.masked_fill(where < 0.5, -torch.inf).amax((1, 2, 3))


def cells_of(regions: Tensor) -> Tensor:
    """The cells that a region (N, 1, h, w) touches, (N, 1, h', w')."""
    return F.max_pool2d(regions, CELL, ceil_mode=True)


def turned(pictures: Tensor, turn: int) -> Tensor:
    """Pictures (N, C, h, w) turned by `turn % 4` quarters, mirrored from 4 on; oblong ones by half turns only."""
    quarters = turn % 4 if pictures.shape[2] == pictures.shape[3] else 2 * (turn % 2)
    pictures = pictures.rot90(quarters, (2, 3))
    return (pictures.flip(3) if turn >= 4 else pictures).contiguous(memory_format=torch.channels_last)
