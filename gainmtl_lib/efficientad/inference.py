"""Pictures from anywhere through a model: a run's folder or a checkpoint file, one picture or a folder of them.

H x W network input, h x w a picture on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.images import read_image
from gainmtl_lib.data.layouts import DEFECTIVE, NORMAL, image_files
from gainmtl_lib.data.transforms import Resize, resize_image
from gainmtl_lib.devices import inference_autocast
from gainmtl_lib.efficientad.model import EfficientADModel, check_size
from gainmtl_lib.efficientad.predictions import computing_on
from gainmtl_lib.efficientad.runs import EfficientADRun, load_checkpoint, load_efficientad
from gainmtl_lib.efficientad.settings import EfficientADSettings
from gainmtl_lib.map_scale import MapScale
from gainmtl_lib.runs import run_status

QUANTILE_SCALE = MapScale(0.0, 0.1)
"""Where no evaluation fixed one: the anomaly map's own, from the 90 % to the 99.5 % quantile of normal parts."""
QUANTILE_NAME = "90 % to 99.5 % of normal parts"

PIXELS_AT_ONCE = 8 * 256 * 256
"""Of one batch: the widest layer takes up to a kilobyte for each."""


@dataclass(frozen=True)
class Detector:
    """A model and what its validation decided.

    Attributes:
        model: in evaluation mode.
        settings: those it was trained with.
        teacher: where its teacher came from; to be shown with every result.
        threshold: score from which a picture is called defective; None before the run is evaluated.
        novelty_threshold: score above which a picture is unlike the normal ones; None likewise.
        scale: absolute scale of its anomaly map.
        scale_name: what that scale is.
    """

    model: EfficientADModel
    settings: EfficientADSettings
    teacher: str
    threshold: float | None = None
    novelty_threshold: float | None = None
    scale: MapScale = QUANTILE_SCALE
    scale_name: str = QUANTILE_NAME

    @classmethod
    def of_run(cls, run: EfficientADRun) -> Detector:
        """With the decisions of the run's evaluation, if there is one."""
        if not run.is_evaluated:
            return cls(run.model, run.settings, run.teacher)
        metrics = run.metrics
        decided = (metrics["threshold"], metrics["novelty_threshold"])
        if run.scale is None:
            return cls(run.model, run.settings, run.teacher, *decided)
        return cls(run.model, run.settings, run.teacher, *decided, run.scale, "absolute scale")

    @classmethod
    def open(cls, place: Path) -> Detector:
        """Of a run's folder or of a checkpoint file; ``best.ckpt`` of a finished run is that run.

        Raises:
            RunError: neither is there, or it is not EfficientAD's.
        """
        if not place.is_file():
            return cls.of_run(load_efficientad(place))
        folder = place.absolute().parent.parent
        if place.name == "best.ckpt" and run_status(folder) == "complete":
            return cls.of_run(load_efficientad(folder))
        return cls(*load_checkpoint(place))

    def verdict(self, score: float) -> str | None:
        """``defective`` or ``normal``; None without a threshold."""
        if self.threshold is None:
            return None
        return DEFECTIVE if score >= self.threshold else NORMAL

    def anomalous(self, score: float) -> bool | None:
        """Whether a picture of that score is unlike the normal ones; None without a threshold."""
        return None if self.novelty_threshold is None else score > self.novelty_threshold


@dataclass(frozen=True)
class ScoredPicture:
    """What the model says of one picture.

    Attributes:
        path: of its file.
        size: (h, w) on disk.
        score: how unlike normal parts it is, of any range.
        anomaly_map: float32 (H, W), the bars of a letterbox included.
    """

    path: Path
    size: tuple[int, int]
    score: float
    anomaly_map: NDArray[np.float32]


def picture_paths(places: Sequence[Path]) -> list[Path]:
    """The pictures at some places: files as they are, of folders those at any depth.

    Raises:
        DataError: a place that is missing, or a folder without pictures.
    """
    paths: list[Path] = []
    for place in places:
        found = image_files(place) if place.is_dir() else [place]
        if not found:
            raise DataError(
                f"{place}: no pictures in this folder or below it; expected png, jpg, bmp, tif or webp files"
            )
        if not place.exists():
            raise DataError(f"{place}: no such picture or folder")
        paths += found
    return paths


def score_pictures(
    model: EfficientADModel,
    paths: Sequence[Path],
    *,
    image_size: tuple[int, int],
    resize: Resize = "squash",
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "32",
) -> Iterator[ScoredPicture | DataError]:
    """Score pictures in order, batch by batch; one that cannot be read gives its error, and the others go on.

    Args:
        model: trained.
        paths: of picture files.
        image_size: network input (H, W), at least `SMALLEST_IMAGE` a side; not only that of the training.
        resize: squash or letterbox.
        batch_size: B; None follows from the image size.
        device: where to compute, see `checked_device`.
        precision: of the networks, best that of the run's settings, which its scale was measured in; maps and scores
            are float32 in any.

    Raises:
        ModelError: an image size below the smallest.
        DeviceError: the device is not there.
    """

    check_size(*image_size)

    def read(path: Path) -> tuple[NDArray[np.uint8], tuple[int, int]] | DataError:
        try:
            pixels = read_image(path)
        except DataError as error:
            return error
        return resize_image(pixels, image_size, resize), (pixels.shape[0], pixels.shape[1])

    size = batch_size or max(1, PIXELS_AT_ONCE // (image_size[0] * image_size[1]))
    with computing_on(model, device) as where, ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), size):
            chunk = paths[start : start + size]
            decoded = list(pool.map(read, chunk))
            inputs = [item[0] for item in decoded if not isinstance(item, DataError)]
            with inference_autocast(precision, where):  # never while the caller has its turn
                outputs = iter(_scores_and_maps(model, inputs, where))
            for path, item in zip(chunk, decoded, strict=True):
                yield item if isinstance(item, DataError) else ScoredPicture(path, item[1], *next(outputs))


@torch.inference_mode()
def _scores_and_maps(
    model: EfficientADModel, pictures: list[NDArray[np.uint8]], device: torch.device
) -> list[tuple[float, NDArray[np.float32]]]:
    if not pictures:
        return []
    images = torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2).float().div_(255)
    output = model(images)
    return list(zip(output.score.tolist(), output.anomaly_map[:, 0].cpu().numpy(), strict=True))
