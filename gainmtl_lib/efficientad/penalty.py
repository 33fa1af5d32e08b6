"""Pictures for the pretraining penalty: natural images of a folder, or drawn ones, any number of them.

The picture with a number follows from (seed, number) alone. H x W network input.
"""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.images import UnreadableError, read_image
from gainmtl_lib.data.layouts import image_files
from gainmtl_lib.data.transforms import resize_image
from gainmtl_lib.efficientad.dead_leaves import draw_leaves
from gainmtl_lib.efficientad.settings import EfficientADSettings

logger = logging.getLogger(__name__)

Image = NDArray[np.uint8]

GREY_SHARE = 0.3
_STREAM = 20
"""Keeps these random numbers apart from others of the same seed and number."""


class PenaltyImages(Dataset[Tensor]):
    """Pictures by number, a share of `GREY_SHARE` of them grey.

    Args:
        image_size: (H, W).
        seed: of the run.

    Attributes:
        text: where they come from, for the record and wherever a result is shown.
        digest: changes when the list of files does; empty without files.
    """

    text: str
    digest: str = ""

    def __init__(self, *, image_size: tuple[int, int], seed: int) -> None:
        self.image_size, self.seed = image_size, seed

    def __getitem__(self, number: int) -> Tensor:
        """Shape: float32 (3, H, W) in [0, 1]."""
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> Tensor:
        """Shape: float32 (B, 3, H, W) in [0, 1], one per number."""
        pictures = torch.from_numpy(np.stack([self._picture(number) for number in numbers]))
        # (B, H, W, 3) -> (B, 3, H, W) as a view: channels-last in memory, as the normal images.
        return pictures.permute(0, 3, 1, 2).to(torch.float32).div_(255)

    def _picture(self, number: int) -> Image:
        rng = np.random.default_rng([self.seed, number, _STREAM])
        grey, picture = rng.random() < GREY_SHARE, self._in_colour(number, rng)
        return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) if grey else picture  # type: ignore[return-value]

    @abstractmethod
    def _in_colour(self, number: int, rng: Generator) -> Image:
        """RGB (H, W, 3); `rng` belongs to this number."""


class FolderImages(PenaltyImages):
    """The middle (H, W) of each image of a folder, resized to (2H, 2W); each pass over them has an order of its own.

    Args:
        folder: holds the images at any depth.
        image_size: (H, W).
        seed: of the run.
        skip_unreadable: take the next image for one that cannot be decoded, with a warning.

    Raises:
        DataError: the folder is missing or holds no image.
    """

    def __init__(self, folder: Path, *, image_size: tuple[int, int], seed: int, skip_unreadable: bool) -> None:
        super().__init__(image_size=image_size, seed=seed)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; penalty_images names a folder of natural images")
        self.folder, self.skip_unreadable = folder, skip_unreadable
        self.files = [path.relative_to(folder).as_posix() for path in image_files(folder)]
        if not self.files:
            raise DataError(
                f"{folder}: holds no images; penalty_images names a folder of natural images (at any depth), or leave "
                "it out to train with drawn pictures"
            )
        self.text = f"{len(self.files)} natural images of {folder.name}"
        self.digest = hashlib.sha256("\n".join(self.files).encode()).hexdigest()
        self._order = (-1, np.arange(0))

    def _in_colour(self, number: int, rng: Generator) -> Image:
        height, width = self.image_size
        top, left = height // 2, width // 2
        resized = resize_image(self._decoded(number), (2 * height, 2 * width), "squash")
        return resized[top : top + height, left : left + width]

    def _decoded(self, number: int) -> Image:
        """The image whose turn it is, or the next that can be decoded.

        Raises:
            UnreadableError: it cannot be decoded, and is not to be skipped.
            DataError: none of the folder's images can be decoded.
        """
        for later in range(len(self.files)):
            path = self.folder / self._turn(number + later)
            try:
                return read_image(path)
            except UnreadableError as error:
                if not self.skip_unreadable:
                    raise UnreadableError(f"{error}, or leave it out with skip_unreadable: true") from None
                logger.warning("left out: %s", error)
        raise DataError(f"{self.folder}: none of its {len(self.files)} images can be decoded")

    def _turn(self, number: int) -> str:
        passes, place = divmod(number, len(self.files))
        if self._order[0] != passes:
            self._order = passes, np.random.default_rng([self.seed, passes, _STREAM + 1]).permutation(len(self.files))
        return self.files[self._order[1][place]]


class DrawnImages(PenaltyImages):
    """Drawn anew for each number, see `dead_leaves`."""

    text = "drawn pictures (not natural images: not the paper's penalty)"

    def _in_colour(self, number: int, rng: Generator) -> Image:
        return draw_leaves(rng, self.image_size)


def build_penalty(settings: EfficientADSettings) -> PenaltyImages:
    """The images of `penalty_images`, without it drawn ones.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    size, seed = settings.image_size, settings.seed
    if settings.penalty_images is None:
        return DrawnImages(image_size=size, seed=seed)
    return FolderImages(settings.penalty_images, image_size=size, seed=seed, skip_unreadable=settings.skip_unreadable)
