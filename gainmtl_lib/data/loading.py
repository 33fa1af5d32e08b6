"""Every picture decoded once, before training starts: bad files are named at once, the good ones kept.

N samples, H x W network input.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from gainmtl_lib.data.findings import DataError, Finding, raise_errors
from gainmtl_lib.data.images import UnreadableError, read_image, read_mask
from gainmtl_lib.data.transforms import Resize, inner_size, inside, resize_image, resize_mask, same_aspect

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOG_LINES = 5.0

Place = tuple[slice, slice]
WHOLE: Place = (slice(None), slice(None))


@dataclass(frozen=True)
class Picture:
    """One decoded sample at the network's size.

    Attributes:
        image: uint8 (H, W, 3).
        mask: uint8 (H, W) of 0 and 1; None when it is missing or empty.
        place: rows and columns that the picture fills; beside them lie the bars of a letterboxed one.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None
    place: Place = WHOLE

    @property
    def without_bars(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The picture itself (h, w, 3), and its defect pixels (h, w): none without a mask."""
        image = self.image[self.place]
        if self.mask is None:
            return image, np.zeros(image.shape[:2], dtype=np.bool_)
        return image, self.mask[self.place].astype(np.bool_)


@dataclass(frozen=True)
class Loaded:
    """What a pass over all samples found.

    Attributes:
        samples: the rows that can be used, `mask` None where the file holds no defect pixel.
        images: uint8 (N, H, W, 3), or None when they stay on disk.
        masks: uint8 (N', H, W) of 0 and 1, the masks that exist, in the order of rows; or None.
        places: of each sample, see `Picture`.
    """

    samples: pd.DataFrame
    images: Tensor | None
    masks: Tensor | None
    places: list[Place]


def load_picture(image: str, mask: str | None, *, image_size: tuple[int, int], resize: Resize) -> Picture:
    """Decode one sample and bring it to the network's input size.

    Raises:
        UnreadableError: one of its files cannot be decoded.
        DataError: the mask has another aspect ratio than its image.
    """
    pixels = read_image(image)
    resized = resize_image(pixels, image_size, resize)
    height, width = pixels.shape[:2]
    place = inside(inner_size((height, width), image_size, resize), image_size)
    if mask is None:
        return Picture(resized, None, place)
    defect = read_mask(mask)
    if not same_aspect((defect.shape[0], defect.shape[1]), (height, width)):
        raise DataError(
            f"{mask}: mask is {defect.shape[0]}x{defect.shape[1]} (height x width), its image {image} "
            f"{height}x{width}; expected the same aspect ratio"
        )
    if not defect.any():
        return Picture(resized, None, place)
    fitted = resize_mask(defect, image_size, resize, image_size=(height, width))
    return Picture(resized, fitted.astype(np.uint8), place)


def load_samples(
    samples: pd.DataFrame, *, image_size: tuple[int, int], resize: Resize, keep: bool, skip_unreadable: bool
) -> Loaded:
    """Decode every sample once.

    Args:
        samples: table of samples.
        image_size: network input (H, W).
        resize: squash or letterbox.
        keep: keep the pixels in memory, 4 H W bytes a sample with a mask and 3 H W without.
        skip_unreadable: leave out samples that cannot be decoded, with a warning for each.

    Raises:
        DataError: files that cannot be decoded, or masks of another aspect ratio; all are named.
    """
    samples = samples.reset_index(drop=True)
    annotated = samples["mask"].notna().to_numpy()
    image_files, mask_files = samples["image"].tolist(), samples["mask"].tolist()
    slots = np.cumsum(annotated) - 1
    images = torch.empty((len(samples) if keep else 0, *image_size, 3), dtype=torch.uint8)
    masks = torch.zeros((int(annotated.sum()) if keep else 0, *image_size), dtype=torch.uint8)
    image_pixels, mask_pixels = images.numpy(), masks.numpy()
    has_mask = np.zeros(len(samples), dtype=bool)
    places = [WHOLE] * len(samples)
    findings: list[Finding | None] = [None] * len(samples)

    def load(row: int) -> None:
        mask = mask_files[row] if annotated[row] else None
        try:
            picture = load_picture(image_files[row], mask, image_size=image_size, resize=resize)
        except UnreadableError as error:
            advice = "" if skip_unreadable else ", or leave it out with skip_unreadable: true"
            findings[row] = Finding("warning" if skip_unreadable else "error", "", f"{error}{advice}")
            return
        except DataError as error:
            findings[row] = Finding("error", "", str(error))
            return
        has_mask[row], places[row] = picture.mask is not None, picture.place
        if keep:
            image_pixels[row] = picture.image
        if keep and picture.mask is not None:
            mask_pixels[slots[row]] = picture.mask

    _with_progress(load, len(samples))
    raise_errors(finding for finding in findings if finding is not None)
    usable = np.array([finding is None for finding in findings], dtype=bool)
    for finding in findings:
        if finding is not None:
            logger.warning("left out: %s", finding)
    for row in np.flatnonzero(annotated & usable & ~has_mask):
        logger.warning("%s: mask holds no defect pixel; treated as missing", mask_files[row])
    kept, places = torch.from_numpy(has_mask[annotated]), [places[row] for row in np.flatnonzero(usable)]
    found = [file if there else None for file, there in zip(mask_files, has_mask, strict=True)]
    samples = samples.assign(mask=pd.Series(found, dtype=object)).iloc[np.flatnonzero(usable)].reset_index(drop=True)
    if not keep:
        return Loaded(samples, None, None, places)
    return Loaded(samples, _select(images, torch.from_numpy(usable)), _select(masks, kept), places)


def _select(pixels: Tensor, chosen: Tensor) -> Tensor:
    return pixels if bool(chosen.all()) else pixels[chosen]  # no copy of gigabytes for nothing


def _with_progress(load: Callable[[int], None], count: int) -> None:
    """Run `load` for each row on all cores (decoding releases the interpreter lock), with a log line now and then."""
    started = last = time.monotonic()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(load, range(count)), start=1):
            now = time.monotonic()
            if now - last >= SECONDS_BETWEEN_LOG_LINES:
                last = now
                logger.info("decoded %d of %d images (%.0f/s)", done, count, done / (now - started))
    logger.info("decoded %d images in %.1f s", count, time.monotonic() - started)
