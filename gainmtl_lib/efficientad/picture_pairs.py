"""The pictures of a distillation: a folder's, endlessly, each at the network's size and at twice that."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.data.images import read_image
from gainmtl_lib.data.layouts import image_files
from gainmtl_lib.data.transforms import resize_image

GREY_PROBABILITY = 0.1


class PicturePairs(Dataset[tuple[Tensor, Tensor]]):
    """``pairs[n]`` for any n from 0: uint8 (3, 2 side, 2 side) and (3, side, side) of one picture, sometimes grey.

    Each round shows every picture once. Order and grey follow from (seed, n), so that work that stopped can go on.

    Args:
        folder: pictures at any depth.
        side: pixels a side; pictures of another shape are squashed.
        seed: of the order.

    Raises:
        DataError: the folder is missing or holds no picture; later, a picture that cannot be read.
    """

    def __init__(self, folder: Path, *, side: int, seed: int) -> None:
        self.files = image_files(folder)
        if not self.files:
            what = "holds no pictures" if folder.is_dir() else "is no folder"
            raise DataError(f"{folder}: {what}; distillation needs a folder of many pictures, at any depth")
        self.side, self.seed = side, seed

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        turn, place = divmod(number, len(self.files))
        picture = read_image(self.files[_order(self.seed, turn, len(self.files))[place]])
        if np.random.default_rng([self.seed, 1, number]).random() < GREY_PROBABILITY:
            picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        large, small = (
            torch.from_numpy(resize_image(np.asarray(picture, np.uint8), (side, side), "squash")).permute(2, 0, 1)
            for side in (2 * self.side, self.side)
        )
        return large, small


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 0, turn]).permutation(count)
