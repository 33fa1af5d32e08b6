"""Image and mask to the network's input size, and the augmentations of the method document (§7.2).

H x W is the network's input, h x w a picture on disk.
"""

from __future__ import annotations

import random
from typing import Literal

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

Resize = Literal["squash", "letterbox"]


def resize_image(image: NDArray[np.uint8], size: tuple[int, int], resize: Resize) -> NDArray[np.uint8]:
    """Resize (h, w, 3) to (H, W, 3): by area where it shrinks, bilinearly where it grows.

    `letterbox` keeps the aspect ratio, centred, and fills the rest with the image's own mean colour: a fixed
    grey would make an edge whose strength tells how bright the picture is, and mirrored or repeated borders
    would show defects that the mask does not have. The bars still show the aspect ratio; `squash` hides it.
    """
    inner = inner_size((image.shape[0], image.shape[1]), size, resize)
    fitted = _fit(image, inner)
    if inner == size:
        return fitted
    canvas = np.empty((*size, 3), dtype=np.uint8)
    canvas[:] = np.rint(fitted.mean(axis=(0, 1))).astype(np.uint8)
    canvas[inside(inner, size)] = fitted
    return canvas


def resize_mask(
    mask: NDArray[np.bool_], size: tuple[int, int], resize: Resize, *, image_size: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Resize defect pixels (h, w) to (H, W) by area, cut at half a pixel.

    A mask that the cut would empty keeps every pixel it touches, so that thin defects survive. A mask of
    other size than its image is fitted to it.

    Args:
        mask: defect pixels.
        size: network input (H, W).
        resize: as the image's.
        image_size: size on disk of the mask's image, when it is not the mask's.
    """
    share = resize_values(mask, size, resize, image_size=image_size)
    fitted = share >= 0.5
    return fitted if fitted.any() else share > 0


def resize_values(
    values: NDArray, size: tuple[int, int], resize: Resize, *, image_size: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Resize a plane of values (h, w) to (H, W) by area, zero outside a letterboxed image.

    Arguments as for `resize_mask`.
    """
    inner = inner_size(image_size or (values.shape[0], values.shape[1]), size, resize)
    canvas = np.zeros(size, dtype=np.float32)
    canvas[inside(inner, size)] = _fit(values.astype(np.float32), inner)
    return canvas


def same_aspect(mask_size: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Whether one could be a resized copy of the other, sides rounded to whole pixels."""
    (h, w), (height, width) = mask_size, image_size
    return abs(h * width / height - w) <= 1 or abs(w * height / width - h) <= 1


class Augmentation:
    """Flips, quarter turns, colour jitter and noise, the same for image and mask.

    Each sample draws from a generator of its own (seed, epoch, index): which worker makes it, and what was
    made before, changes nothing. Quarter turns would change the shape of inputs that are not square; these
    are turned by 180° instead.

    Args:
        image_size: network input (H, W).
        hflip_prob: probability of a horizontal flip; the others likewise.
        vflip_prob: vertical flip.
        rotate90_prob: rotation by a random multiple of 90°.
        color_jitter_prob: brightness, contrast and saturation by up to ±20 %, hue by up to ±5 %.
        gaussian_noise_prob: noise of 1 to 5 % of the range.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        hflip_prob: float,
        vflip_prob: float,
        rotate90_prob: float,
        color_jitter_prob: float,
        gaussian_noise_prob: float,
    ) -> None:
        square = image_size[0] == image_size[1]
        half_turn = A.Sequential([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=rotate90_prob)
        self.transform = A.Compose(
            [
                A.HorizontalFlip(p=hflip_prob),
                A.VerticalFlip(p=vflip_prob),
                A.RandomRotate90(p=rotate90_prob) if square else half_turn,
                A.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (-0.05, 0.05), p=color_jitter_prob),
                A.GaussNoise(std_range=(0.01, 0.05), p=gaussian_noise_prob),
            ]
        )

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], *, seed: int, epoch: int, index: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Shape: (H, W, 3), (H, W) -> the same."""
        rng = np.random.default_rng([seed, epoch, index])
        # Not set_random_seed, which builds two generators for every transform of the list: four times as slow.
        self.transform.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        result = self.transform(image=image, mask=mask)
        return result["image"], result["mask"]


def inner_size(picture: tuple[int, int], size: tuple[int, int], resize: Resize) -> tuple[int, int]:
    """Size that the picture takes inside the input."""
    if resize == "squash":
        return size
    scale = min(size[0] / picture[0], size[1] / picture[1])
    return max(1, min(size[0], round(picture[0] * scale))), max(1, min(size[1], round(picture[1] * scale)))


def inside(inner: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the input that a picture of size `inner` fills: the middle."""
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    return slice(top, top + inner[0]), slice(left, left + inner[1])


def _fit(picture: NDArray, size: tuple[int, int]) -> NDArray:
    """Area where a side shrinks, then bilinear where it grows; OpenCV's area mode does only both sides at once."""
    height, width = min(picture.shape[0], size[0]), min(picture.shape[1], size[1])
    if (height, width) != picture.shape[:2]:
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    if (height, width) != size:
        picture = cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return picture
