"""What an EfficientAD run says of the pictures that a strategy is evaluated on: the same files, at its own input size.

Sizes: N pictures, H x W the strategy's network input, h x w a picture on disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.transforms import Resize, inner_size, inside, resize_values
from gainmtl_lib.efficientad.inference import QUANTILE_SCALE, ScoredPicture, score_pictures
from gainmtl_lib.efficientad.provider import build_provider
from gainmtl_lib.efficientad.runs import EfficientADRun, load_efficientad
from gainmtl_lib.efficientad.settings import EfficientADSettings
from gainmtl_lib.records import Batch
from gainmtl_lib.runs import RunError

LEARNT_FROM = ("train", "val")
"""EfficientAD's student sees the first; quantiles and thresholds are of the second."""


class AnomalyMasks:
    """Masks for a strategy's attention from the anomaly maps of an EfficientAD run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked: GainDataModule | None = None

    @cached_property
    def run(self) -> EfficientADRun:
        """The run, read at first use.

        Raises:
            RunError: no finished run of EfficientAD.
        """
        return load_efficientad(self.folder)

    def masks(self, data: GainDataModule, batch: Batch) -> Tensor:
        """Masks of a batch's pictures, float32 (B, 1, H, W) in [0, 1], see `anomaly_mask`.

        Raises:
            RunError: no finished run, or one that learnt from the data's test pictures.
            DataError: pictures that cannot be read.
        """
        if self._checked is not data:
            check_unseen(self.run, data.samples)
            self._checked = data
        paths = [data.dataset.paths[row] for row in batch.index.tolist()]
        own = self.run.settings.resize
        masks = [
            anomaly_mask(one, own, size=data.image_size, resize=data.resize)
            for one in scored(self.run, paths, device=str(batch.images.device))
        ]
        return torch.from_numpy(np.stack(masks))[:, None].to(batch.masks)


def anomaly_mask(picture: ScoredPicture, own: Resize, *, size: tuple[int, int], resize: Resize) -> NDArray[np.float32]:
    """An anomaly map through its quantiles, on a strategy's input: 0 up to the 90 % quantile of normal parts, 1 from
    the 99.5 % quantile on, and 0 in the bars beside a letterboxed picture.

    Args:
        picture: of EfficientAD.
        own: how EfficientAD put the picture on its input.
        size: of the strategy's input (H, W).
        resize: how the strategy puts the picture there.

    Returns:
        In [0, 1], (H, W).
    """
    plane = (picture.anomaly_map.shape[0], picture.anomaly_map.shape[1])
    rows, columns = inside(inner_size(picture.size, plane, own), plane)
    share = QUANTILE_SCALE.apply(picture.anomaly_map[rows, columns])
    return resize_values(share, size, resize, image_size=picture.size)


def scored(run: EfficientADRun, paths: Sequence[str | Path], *, device: str) -> Iterator[ScoredPicture]:
    """What the run's model says of each picture, in order, at its own input size.

    Raises:
        DataError: a picture that cannot be read.
    """
    files, settings = [Path(path) for path in paths], run.settings
    for one in score_pictures(
        run.model,
        files,
        image_size=settings.image_size,
        resize=settings.resize,
        device=device,
        precision=settings.precision,
    ):
        if isinstance(one, DataError):
            raise one
        yield one


def check_unseen(run: EfficientADRun, samples: pd.DataFrame) -> None:
    """Refuse a run that learnt from pictures which a strategy is tested on: it would give their labels away.

    Pictures are compared by path; a copy elsewhere is not noticed. A run whose data moved is looked up where the
    strategy's lie.

    Args:
        run: of EfficientAD.
        samples: table of the strategy's samples.

    Raises:
        RunError: it did, or its own pictures are not known.
        DataError: its data cannot be read.
    """
    moved = not run.settings.dataset_folder.is_dir()
    provider = build_provider(_elsewhere(run.settings, samples) if moved else run.settings)
    if provider.digest != run.manifest["data_digest"]:
        raise RunError(
            f"{run.folder}: which pictures it learnt from is not known, because its data changed since or came from a "
            "provider of its own; so whether it has seen the test pictures is not known either: train it anew"
        )
    own = provider.samples
    learnt = {os.path.realpath(path) for path in own.loc[own["split"].isin(LEARNT_FROM), "image"]}
    tests = samples.loc[~samples["split"].isin(LEARNT_FROM), "image"]
    seen = [path for path in tests if os.path.realpath(path) in learnt]
    if seen:
        raise RunError(
            f"{run.folder}: learnt from {len(seen)} of the {len(tests)} test pictures, such as {seen[0]}; what it says "
            "of those is no result. Train EfficientAD on the same split: the same data_root, val_ratio, test_ratio and "
            "split_seed (without one, seed)"
        )


def _elsewhere(settings: EfficientADSettings, samples: pd.DataFrame) -> EfficientADSettings:
    """The same reading of the folder that a strategy's samples lie in; synthetic data as it is, not made anew."""
    files = [path for column in ("image", "mask") for path in samples[column] if isinstance(path, str)]
    root = os.path.commonpath([os.path.dirname(path) for path in files])
    layout = "generic" if settings.dataset_type == "synthetic" else settings.dataset_type
    return settings.changed(data_root=Path(root), dataset_type=layout, category=None)
