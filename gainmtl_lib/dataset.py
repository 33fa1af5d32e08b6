"""The records that travel between data, model and training.

Sizes: B images, H x W network input, h x w feature grid (H / map_stride).
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gainmtl_lib.labels import Resize, inner_size, inside, resize_image, resize_mask, same_aspect
from gainmtl_lib.readers import DataError, Finding, UnreadableError, raise_errors, read_image, read_mask

if TYPE_CHECKING:
    from gainmtl_lib.edits.counterfactuals import ImageCounterfactuals
import multiprocessing
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import lightning as L
from torch.utils.data import DataLoader

from gainmtl_lib.labels import BoxSource, load_external_masks, read_boxes
from gainmtl_lib.readers import data_digest, read_samples, split_samples
from gainmtl_lib.settings import RunSettings, Settings


class Batch(NamedTuple):
    """What the data loaders yield.

    Attributes:
        images: float32 (B, 3, H, W) in [0, 1]; the model normalises.
        labels: int64 (B,), 0 normal, 1 defective.
        masks: float32 (B, 1, H, W) in {0, 1}; all zero where there is none.
        has_mask: bool (B,), which images carry a defect annotation. Not "mask is empty": a defective
            image without an annotation has none, a normal image needs none.
        index: int64 (B,), row of the image in the table of samples.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    has_mask: Tensor
    index: Tensor


# --- The augmentations of the method document (§7.2).


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

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The augmentation that settings ask for."""
        return cls(
            image_size=settings.image_size,
            hflip_prob=settings.hflip_prob,
            vflip_prob=settings.vflip_prob,
            rotate90_prob=settings.rotate90_prob,
            color_jitter_prob=settings.color_jitter_prob,
            gaussian_noise_prob=settings.gaussian_noise_prob,
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


# --- Every picture decoded once, before training starts


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


# --- Fewer and coarser training masks, to learn what annotation is worth


Mask = NDArray[np.bool_]
MaskQuality = Literal["exact", "box", "dilated", "shifted"]

STREAM = 11
"""Sets these draws apart from others of the same seed. Not 0: NumPy takes the seeds [7] and [7, 0] for one."""


def annotated_defects(samples: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows are training defects with a mask, (N,)."""
    return ((samples["split"] == "train") & (samples["label"] == 1) & samples["mask"].notna()).to_numpy(dtype=bool)


def with_mask_share(samples: pd.DataFrame, share: float, *, seed: int) -> pd.DataFrame:
    """The table in which only a share of the training defects keeps its masks; the others have none.

    The order in which masks are given up follows from the seed alone, so that shares are nested: the masks of 5 %
    are among those of 25 %. Each defect type gives up about the same share. At least one mask stays, unless
    `share` is 0.

    Args:
        samples: with their splits.
        share: of the annotated training defects, in [0, 1].
        seed: of the order.
    """
    rows = np.flatnonzero(annotated_defects(samples))
    count = max(int(share > 0), round(share * len(rows)))
    order = rows[stratified_order(samples["defect_type"].to_numpy()[rows], np.random.default_rng([seed, STREAM]))]
    masks = samples["mask"].to_numpy(dtype=object, copy=True)
    masks[order[count:]] = None
    return samples.assign(mask=pd.Series(masks, index=samples.index, dtype=object))


def stratified_order(types: NDArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """Places of the items, such that every beginning of the list holds about the same share of each type."""
    mixed = rng.permutation(len(types))
    passed = np.empty(len(types))  # share of its type that comes before an item
    for name in sorted(set(types)):
        of_type = mixed[types[mixed] == name]
        passed[of_type] = (np.arange(len(of_type)) + 0.5) / len(of_type)
    return mixed[np.argsort(passed[mixed], kind="stable")]


def coarser_mask(mask: Mask, quality: MaskQuality, rng: np.random.Generator) -> Mask:
    """A mask as a hastier annotator would have drawn it, (H, W); never empty where `mask` is not.

    ``box``: the filled bounding box of each connected piece; boxes that overlap or touch are merged into one.
    ``dilated``: each piece grown by half its own size on all sides, size being the side of a square of its area.
    Small and large defects are then drawn equally generously (a square becomes four times as large); a margin that
    is a share of the picture would bury the small ones and leave the large ones as they are.
    ``shifted``: the whole mask moved by the size of its largest piece in a random direction, so that the mask of a
    compact defect lies beside it; by half of that, a quarter, … where most of the mask would leave the picture.

    Args:
        mask: defect pixels.
        quality: which of these; ``exact`` changes nothing.
        rng: draws the direction.
    """
    if quality not in get_args(MaskQuality):
        raise ValueError(f"mask quality must be one of {', '.join(get_args(MaskQuality))}, got {quality!r}")
    if quality == "exact" or not mask.any():
        return mask
    if quality == "box":
        return _boxed(mask)
    return _dilated(mask) if quality == "dilated" else _shifted(mask, rng)


def _pieces(mask: Mask) -> list[tuple[int, int, int, int, int]]:
    """Left, top, width, height and area of each connected piece; pieces that touch at a corner are one."""
    stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2]
    return [tuple(int(value) for value in row) for row in stats[1:]]  # type: ignore[misc]


def _boxed(mask: Mask) -> Mask:
    boxes = mask.copy()
    for left, top, width, height, _ in _pieces(mask):
        boxes[top : top + height, left : left + width] = True
    return boxes if np.array_equal(boxes, mask) else _boxed(boxes)  # boxes that meet are boxed once more


def _dilated(mask: Mask) -> Mask:
    grown = mask.copy()
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    for piece in range(1, count):
        apart = cv2.distanceTransform((labels != piece).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        grown |= apart <= max(1.0, np.sqrt((labels == piece).sum()) / 2)
    return grown


def _shifted(mask: Mask, rng: np.random.Generator) -> Mask:
    distance, area = np.sqrt(max(piece[4] for piece in _pieces(mask))), mask.sum()
    while True:
        for angle in rng.uniform(0, 2 * np.pi, size=8):
            down, right = round(distance * np.sin(angle)), round(distance * np.cos(angle))
            moved = _moved(mask, down, right)
            if moved.sum() >= area / 2:
                return moved
        distance /= 2


def _moved(mask: Mask, down: int, right: int) -> Mask:
    """The mask moved by whole pixels; what leaves the picture is lost."""
    rows, columns = mask.nonzero()
    rows, columns = rows + down, columns + right
    inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
    moved = np.zeros_like(mask)
    moved[rows[inside], columns[inside]] = True
    return moved


# --- Samples as batches by row


Key = int | tuple[int, int]
"""A row, or (epoch, row) for the row as that epoch edits and augments it."""


class Shown(NamedTuple):
    """What one place of a batch shows: pixels and mask as in `Picture`, the label there, and the row of the picture."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None
    label: int
    row: int


class SampleDataset(Dataset[Batch]):
    """Samples by row. Whole batches are made at once, so that the step to float happens once a batch.

    Args:
        loaded: the samples that can be used, their pixels unless they stay on disk.
        image_size: network input (H, W).
        resize: squash or letterbox.
        augmentation: applied to keys that name an epoch.
        seed: of the augmentation.
        mask_quality: what training masks are made into, see `coarser_mask`.
        mask_seed: of shifted masks.

    Attributes:
        counterfactuals: edit pictures whose keys name an epoch, before augmentation; None edits none.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        image_size: tuple[int, int],
        resize: Resize,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        mask_quality: MaskQuality = "exact",
        mask_seed: int = 0,
    ) -> None:
        self.images, self.masks, self.places = loaded.images, loaded.masks, loaded.places
        self.image_size = image_size
        self.resize: Resize = resize
        self.augmentation, self.seed = augmentation, seed
        self.mask_quality: MaskQuality = mask_quality
        self.mask_seed = mask_seed
        self.counterfactuals: ImageCounterfactuals | None = None
        self.in_training = (loaded.samples["split"] == "train").to_numpy(dtype=bool)
        self.paths = [str(path) for path in loaded.samples["image"]]
        self.mask_paths = [path if isinstance(path, str) else None for path in loaded.samples["mask"]]
        self.labels = torch.tensor(loaded.samples["label"].to_numpy(dtype=np.int64))
        self.has_mask = torch.tensor([path is not None for path in self.mask_paths], dtype=torch.bool)
        self.mask_slots = self.has_mask.cumsum(0) - 1

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> Batch:
        """A batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these keys; PyTorch's loaders call this instead of collecting single items."""
        shown = [self._shown(key) for key in keys]
        images = torch.from_numpy(np.stack([each.image for each in shown]))
        masks = torch.zeros((len(keys), 1, *self.image_size))
        for mask, each in zip(masks, shown, strict=True):
            if each.mask is not None:
                mask[0] = torch.from_numpy(each.mask)
        # (B, H, W, 3) -> (B, 3, H, W) as a view: the memory stays channels-last, which convolutions like best.
        images = images.permute(0, 3, 1, 2).to(torch.float32).div_(255)
        labels = torch.tensor([each.label for each in shown])
        has_mask = torch.tensor([each.mask is not None for each in shown])
        return Batch(images, labels, masks, has_mask, torch.tensor([each.row for each in shown]))

    def _shown(self, key: Key) -> Shown:
        if isinstance(key, int):
            return self._unedited(key)
        epoch, row = key
        return self._augmented(self._edited(epoch, row), epoch, row)

    def _unedited(self, row: int) -> Shown:
        picture = self.stored(row)
        return Shown(picture.image, picture.mask, int(self.labels[row]), row)

    def _edited(self, epoch: int, row: int) -> Shown:
        drawn = self.counterfactuals.draw(epoch, row) if self.counterfactuals is not None else None
        if drawn is None or drawn.edit is None:
            return self._unedited(row)
        mask = drawn.edit.mask.astype(np.uint8) if drawn.edit.mask.any() else None
        return Shown(drawn.edit.image, mask, drawn.edit.label, drawn.row)

    def _augmented(self, shown: Shown, epoch: int, position: int) -> Shown:
        """By the position's row: a picture that takes the turn of several is augmented differently each time."""
        if self.augmentation is None:
            return shown
        mask = np.zeros(self.image_size, dtype=np.uint8) if shown.mask is None else shown.mask
        image, mask = self.augmentation(shown.image, mask, seed=self.seed, epoch=epoch, index=position)
        return shown._replace(image=image, mask=None if shown.mask is None else mask)

    def stored(self, row: int) -> Picture:
        """The picture of a row, neither edited nor augmented, with the mask that training uses, off the bars."""
        picture = self._loaded(row)
        if picture.mask is None or self.mask_quality == "exact" or not self.in_training[row]:
            return picture
        rng = np.random.default_rng([self.mask_seed, row, STREAM])
        mask = np.zeros_like(picture.mask)
        mask[picture.place] = coarser_mask(picture.without_bars[1], self.mask_quality, rng)
        return replace(picture, mask=mask)

    def _loaded(self, row: int) -> Picture:
        if self.images is None or self.masks is None:
            return load_picture(self.paths[row], self.mask_paths[row], image_size=self.image_size, resize=self.resize)
        mask = self.masks[self.mask_slots[row]].numpy() if self.has_mask[row] else None
        return Picture(self.images[row].numpy(), mask, self.places[row])


class EpochSampler(Sampler[tuple[int, int]]):
    """Rows in an order drawn from (seed, epoch), each with the epoch, so that workers know it too.

    Args:
        rows: the rows to draw from.
        seed: of the order.
    """

    def __init__(self, rows: Sequence[int], *, seed: int) -> None:
        self.rows, self.seed, self.epoch = list(rows), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for position in np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows)):
            yield self.epoch, self.rows[position]


# --- From the table of samples to the loaders of all splits, decoded once.


class GainDataModule(L.LightningDataModule):
    """Loaders of all splits over one table of samples, every file decoded once.

    Args:
        settings: of the run: input size, batches, augmentation, edits, masks and workers.
        samples: table with its split filled (`split_samples`); None: read as the settings say.

    Raises:
        DataError: no samples are given, and those of the settings cannot be read.
    """

    def __init__(self, settings: Settings, samples: pd.DataFrame | None = None) -> None:
        super().__init__()
        self.settings = settings
        self._given = build_samples(settings) if samples is None else samples.reset_index(drop=True)
        self._samples = self._given
        self._dataset: SampleDataset | None = None
        self._edits_checked = False

    @cached_property
    def digest(self) -> str:
        """`data_digest` of the table that the module was made of: by it a run knows its data again."""
        return data_digest(self._given)

    @property
    def samples(self) -> pd.DataFrame:
        """The table that `Batch.index` points into; after `setup` without unreadable rows, and without the masks that
        are empty or that `mask_share` leaves out."""
        return self._samples

    @property
    def class_counts(self) -> tuple[int, int]:
        """Normal and defective images of the training split."""
        labels = self._samples.loc[self._samples["split"] == "train", "label"]
        return int((labels == 0).sum()), int((labels == 1).sum())

    @property
    def dataset(self) -> SampleDataset:
        """All samples by row; loads them at first use."""
        return self._load()

    def setup(self, stage: str | None = None) -> None:
        """Decode every file once; a second call does nothing.

        Raises:
            DataError: files that cannot be decoded, a training split that lacks a class, or one whose pictures cannot
                be edited although `image_counterfactual` asks for it.
        """
        self._load()
        if stage == "fit" and self.counterfactuals is not None and not self._edits_checked:
            self.counterfactuals.check()
            self._edits_checked = True
        normals, defectives = self.class_counts
        if stage == "fit" and 0 in (normals, defectives):
            raise DataError(f"the training split has {normals} normal and {defectives} defective images; needs both")

    @property
    def counterfactuals(self) -> ImageCounterfactuals | None:
        """The edits of training pictures; None where `image_counterfactual` is 0.

        Raises:
            DataError: the training split lacks a class or has no mask.
        """
        dataset = self._load()
        if dataset.counterfactuals is None and self.settings.image_counterfactual > 0:
            from gainmtl_lib.edits.counterfactuals import ImageCounterfactuals  # a kit, for S7

            dataset.counterfactuals = ImageCounterfactuals(
                labels=dataset.labels.numpy(),
                annotated=dataset.has_mask.numpy(),
                rows=np.flatnonzero(dataset.in_training).tolist(),
                picture=dataset.stored,
                share=self.settings.image_counterfactual,
                seed=self.settings.seed,
            )
        return dataset.counterfactuals

    def rows(self, split: str) -> list[int]:
        """Rows of one split, ascending.

        Raises:
            DataError: no image is in that split.
        """
        self.setup()
        rows = np.flatnonzero(self._samples["split"] == split).tolist()
        if not rows:
            found = ", ".join(str(name) for name in self._samples["split"].unique())
            raise DataError(f"no image is in split '{split}'; the data has {found}")
        return rows

    def training_masks(self) -> Iterator[tuple[int, Tensor]]:
        """Row and mask, float32 (1, H, W) of 0 and 1, of each annotated training image, not augmented."""
        dataset = self.dataset
        for row in self.rows("train"):
            if dataset.has_mask[row]:
                yield row, dataset[row].masks[0]

    def pasted_masks(self) -> Iterator[Tensor]:
        """Masks of defects pasted in training, float32 (1, H, W), as many as `ImageCounterfactuals` finds apt."""
        if self.counterfactuals is not None:
            for mask in self.counterfactuals.pasted_masks():
                yield torch.from_numpy(mask)[None].float()

    def external_masks(self, split: str, folder: Path) -> Tensor:
        """Masks in [0, 1] from another folder, float32 (N, 1, H, W), in the order of `loader(split)`.

        Raises:
            DataError: a mask is missing or does not fit, see `load_external_masks`.
        """
        images = [self.dataset.paths[row] for row in self.rows(split)]
        return load_external_masks(images, folder, image_size=self.settings.image_size, resize=self.settings.resize)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, edited, augmented. A last batch of a single image is dropped: batch norm needs two."""
        _ = self.counterfactuals  # in place before workers copy the dataset
        sampler = EpochSampler(self.rows("train"), seed=self.settings.seed)
        single = self.settings.batch_size > 1 and len(sampler) % self.settings.batch_size == 1
        return self._loader(sampler, drop_last=single)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split in order, as it is."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test split in order, as it is."""
        return self.loader("test")

    def loader(self, split: str) -> DataLoader[Batch]:
        """Any split in the order of rows, without augmentation.

        Raises:
            DataError: no image is in that split.
        """
        return self._loader(self.rows(split), drop_last=False)

    def _load(self) -> SampleDataset:
        if self._dataset is None:
            loaded = load_samples(
                self._samples,
                image_size=self.settings.image_size,
                resize=self.settings.resize,
                keep=self.settings.cache_images,
                skip_unreadable=self.settings.skip_unreadable,
            )
            loaded = _with_fewer_masks(loaded, self.settings.mask_share, seed=self.settings.seed_of_split)
            self._samples = loaded.samples
            if self.settings.num_workers > 0:
                share_with_workers(loaded)
            self._dataset = SampleDataset(
                loaded,
                image_size=self.settings.image_size,
                resize=self.settings.resize,
                augmentation=Augmentation.of(self.settings),
                seed=self.settings.seed,
                mask_quality=self.settings.mask_quality,
                mask_seed=self.settings.seed_of_split,
            )
        return self._dataset

    def _loader(self, sampler: Sampler | Sequence[int], *, drop_last: bool) -> DataLoader[Batch]:
        return whole_batches(
            self.dataset,
            sampler,
            batch_size=self.settings.batch_size,
            drop_last=drop_last,
            num_workers=self.settings.num_workers,
            seed=self.settings.seed,
        )


def _with_fewer_masks(loaded: Loaded, share: float, *, seed: int) -> Loaded:
    samples = with_mask_share(loaded.samples, share, seed=seed)
    if loaded.masks is None:
        return replace(loaded, samples=samples)
    kept = samples["mask"].notna()[loaded.samples["mask"].notna()].to_numpy(dtype=bool)
    return replace(loaded, samples=samples, masks=loaded.masks if kept.all() else loaded.masks[torch.tensor(kept)])


def share_with_workers(loaded: Loaded) -> None:
    """Put the pixels where loader processes see them without a copy."""
    if multiprocessing.get_start_method() == "fork":
        return  # forked workers see the same memory anyway, and /dev/shm is often too small for a dataset
    for pixels in (loaded.images, loaded.masks):
        if pixels is not None:
            pixels.share_memory_()


def whole_batches(
    dataset: Dataset[Any],
    sampler: Iterable[Any],
    *,
    batch_size: int,
    num_workers: int,
    seed: int,
    drop_last: bool = False,
) -> DataLoader[Any]:
    """A loader over a dataset that makes each batch at once (``__getitems__``), keys in the order of `sampler`."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_one_thread,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own, so that making an iterator draws nothing from the model's random numbers.
        generator=torch.Generator().manual_seed(seed),
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)


# --- The one place where settings become parts


def make_data(settings: RunSettings) -> None:
    """Make synthetic data where it is missing; data of any other type is left to its owner."""
    if settings.dataset_type == "synthetic":
        from gainmtl_lib.synthetic.data import make_synthetic  # a kit, loaded only where it is asked for

        make_synthetic(
            settings.data_root,
            num_samples=settings.num_samples,
            image_size=settings.image_size,
            seed=settings.synthetic_seed,
            shortcut=settings.shortcut,
            shortcut_correlation=settings.shortcut_correlation,
        )


def build_samples(settings: RunSettings) -> pd.DataFrame:
    """The table of samples with its split; synthetic data is made first where it is missing."""
    make_data(settings)
    samples = read_samples(settings.data_root, dataset_type=settings.dataset_type, group_pattern=settings.group_pattern)
    return split_samples(
        with_boxes(samples, settings),
        val_ratio=settings.val_ratio,
        test_ratio=settings.test_ratio,
        seed=settings.seed_of_split,
    )


def with_boxes(samples: pd.DataFrame, settings: RunSettings) -> pd.DataFrame:
    """The table of samples as it is, or with masks drawn from boxes where these are the labels.

    Raises:
        DataError: see `read_boxes` and `box_source`.
    """
    source = box_source(settings)
    return samples if source is None else read_boxes(samples, settings.dataset_folder, source)


def box_source(settings: RunSettings) -> BoxSource | None:
    """Where the boxes come from; None where masks are the labels.

    Raises:
        DataError: a place of boxes is given, but masks are the labels.
    """
    if settings.label_kind == "box":
        return BoxSource(settings.box_labels, settings.outputs_dir / "data", settings.image_size, settings.resize)
    if settings.box_labels is not None:
        raise DataError("box_labels is given, but label_kind is 'mask'; set label_kind: box, or leave box_labels out")
    return None


def box_labels_of(settings: RunSettings, data_root: Path) -> Path | None:
    """Box labels of other data than the settings' own: at the same place below its folder, else at the usual places.

    Labels from outside the dataset's folder describe its own pictures, and are never taken for others.
    """
    labels = settings.box_labels
    if labels is None:
        return None
    place, own = Path(os.path.abspath(labels)), Path(os.path.abspath(settings.data_root))
    return data_root / place.relative_to(own) if place.is_relative_to(own) else None


def build_data(settings: Settings, samples: pd.DataFrame | None = None) -> GainDataModule:
    """Loaders over the samples, at the network's input size."""
    return GainDataModule(settings, samples)
