"""A decision whose reason is known: the brightness of the upper left corner. Pictures of 32 px, maps of 8 x 8 cells."""

from types import SimpleNamespace

import pandas as pd
import torch
from torch import nn

from gainmtl_lib.dataset import Batch
from gainmtl_lib.model import GainOutput


def patch_map(cells: slice) -> torch.Tensor:
    """A map (8, 8) that marks one square of cells."""
    values = torch.zeros(8, 8)
    values[cells, cells] = 1
    return values


CORNER = patch_map(slice(0, 2))
"""Where the decision looks: 8 x 8 pixels, a sixteenth of the picture."""
DEFECT = patch_map(slice(5, 7))
"""Where the defect is, at which the decision does not look."""


class LooksAtCorner(nn.Module):
    """Defective when the corner is bright. Its map is `shown`, whatever that is.

    Dropout of the picture tells whether it was asked as at inference.
    """

    def __init__(self, shown: torch.Tensor = CORNER, gain: float = 40.0) -> None:
        super().__init__()
        self.shown, self.gain, self.dropout = shown, gain, nn.Dropout(0.5)
        self.batches: list[int] = []

    def forward(self, images: torch.Tensor) -> GainOutput:
        self.batches.append(len(images))
        margin = self.gain * (self.dropout(images)[:, :, :8, :8].mean((1, 2, 3)) - 0.85)
        logits = torch.stack([torch.zeros_like(margin), margin], 1)
        cam = self.shown.expand(len(images), 1, 8, 8)
        return GainOutput(logits=logits, cam=cam, cls_logits=logits, cls_cam=cam)


def picture(seed: int = 0) -> torch.Tensor:
    """A dark noisy picture (3, 32, 32) with a bright corner and a bright defect."""
    image = 0.2 + 0.1 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed))
    image[:, :8, :8] = 1.0
    image[:, 20:28, 20:28] = 0.9
    return image


class Pictures:
    """What the functions ask of a data module: a table, and pictures by row."""

    def __init__(self, count: int, *, size: int | None = None) -> None:
        self.dataset = SimpleNamespace(__getitems__=self.batch)
        self.size = size
        self.samples = pd.DataFrame(
            {"image": [f"/data/{row}.png" for row in range(count)], "group": None, "split": "test", "label": 1},
            index=range(count),
        )

    def batch(self, rows: list[int]) -> Batch:
        images = torch.stack([picture(row) for row in rows])
        masks = torch.zeros(len(rows), 1, 32, 32)
        masks[:, :, 20:28, 20:28] = 1
        if self.size is not None:
            images, masks = (nn.functional.interpolate(part, size=self.size) for part in (images, masks))
        everywhere = torch.ones(len(rows), dtype=torch.bool)
        return Batch(images, everywhere.long(), masks, everywhere, torch.tensor(rows))
