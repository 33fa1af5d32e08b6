"""Where EfficientAD's pictures come from: good parts, anomalies drawn on them, the penalty's pictures, batches by step.

B images, H x W pixels.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import count, islice
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import pandas as pd
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from gainmtl_lib import readers
from gainmtl_lib.dataset import Batch, EpochSampler, SampleDataset, make_data, whole_batches
from gainmtl_lib.efficientad.model import MVTEC_CATEGORIES, EfficientADSettings
from gainmtl_lib.findings import DataError, UnreadableError
from gainmtl_lib.labels import Pixels, Place, resize_image, with_labels
from gainmtl_lib.layouts import LAYOUTS, SPLITS
from gainmtl_lib.pictures import Mask, Size, image_files, read_image
from gainmtl_lib.processes import Part
from gainmtl_lib.settings import closest
from gainmtl_lib.synthetic.data import to_bytes, visible_defect
from gainmtl_lib.synthetic.drawing import DEFECTS, TEXTURES, Plane, smooth_noise

logger = logging.getLogger(__name__)

EVERYWHERE: Place = (slice(None), slice(None))

# Random numbers follow from (seed, number, one of these), so that no two uses share a stream.
_PASS, _PENALTY, _PENALTY_ORDER, _COLOUR, _ANOMALY, _OTHER, _KIND = 10, 20, 21, 30, 40, 41, 42

# --- Good parts and the providers of them


def samples_in_use(settings: EfficientADSettings) -> pd.DataFrame:
    """The table of samples with its split, defects of train and val left out; missing synthetic data is made first.

    The split is that of GAIN-MTL with the same ratios and `seed_of_split`, so that both systems are tested on the
    same pictures, except for layouts with categories: there the dataset's protocol holds, all of ``test`` is tested on.
    """
    make_data(settings)
    kind, folder = settings.dataset_type, settings.dataset_folder
    if settings.category is not None and settings.data_root.is_dir() and not folder.is_dir():
        found = readers.categories_in(settings.data_root, kind)
        near = closest(settings.category, [*found, *MVTEC_CATEGORIES])
        there = f"found {', '.join(found)}" if found else f"no folder there holds {LAYOUTS[kind].category}"
        raise DataError(f"{settings.data_root}: has no category '{settings.category}'{near} ({there})")
    samples = readers.read_samples(folder, **settings.reading, both_classes=False)
    samples = with_labels(samples, settings)
    if LAYOUTS[kind].category:
        samples["split"] = [split or "test" for split in samples["split"]]
    val_ratio, test_ratio, seed = settings.val_ratio, settings.test_ratio, settings.seed_of_split
    samples = readers.split_samples(samples, val_ratio=val_ratio, test_ratio=test_ratio, seed=seed, both_classes=False)
    _check_good_parts(samples, folder)
    dropped = samples["split"].isin(("train", "val")) & (samples["label"] == 1)
    if dropped.any():
        logger.info("left out: %d defective images of train and val; EfficientAD learns from good parts", dropped.sum())
    return samples[~dropped].reset_index(drop=True)


def _check_good_parts(samples: pd.DataFrame, folder: Path) -> None:
    for split in ("train", "val"):
        labels = samples.loc[samples["split"] == split, "label"]
        if not (labels == 0).any():
            what = f"split '{split}' has no normal image among {len(labels)}; EfficientAD learns from normal images"
            raise DataError(f"{folder}: {what}: add some, or choose other val_ratio, test_ratio or split_seed")


class DatasetProvider(ABC):
    """Data to learn from and to be measured on. Subclass it to bring your own.

    Loaders yield `Batch`es, or plain images float32 (B, 3, H, W) in [0, 1], which count as normal; the model
    normalises. To replace one loader of the settings' data, subclass `SplitProvider`.
    """

    @abstractmethod
    def get_train_dataloader(self) -> DataLoader[Any]:
        """Normal images, one pass over them, with a length. A training asks for it several times, always for the same.

        PyTorch's shuffling follows from (seed, pass), and a sampler of one's own with ``set_epoch`` is told the pass:
        then a training that goes on reads what an uninterrupted one reads. Items that draw random numbers break that.
        """

    @abstractmethod
    def get_val_dataloader(self) -> DataLoader[Any]:
        """Normal and anomalous images, always in the same order; `NormalsAndAnomalies` makes a set of normal ones."""

    def get_test_dataloader(self) -> DataLoader[Any] | None:
        """Labelled images, always in the same order; None where there is nothing to test on."""
        return None

    @property
    def splits(self) -> tuple[str, ...]:
        """What can be measured: val, then the test splits that exist."""
        return ("val",) if self.get_test_dataloader() is None else ("val", "test")

    def loader(self, split: str) -> DataLoader[Any]:
        """One of `splits`."""
        if split not in self.splits:
            raise DataError(f"no images in split '{split}'; the data has {', '.join(self.splits)}")
        return self.get_val_dataloader() if split == "val" else self.get_test_dataloader()  # type: ignore[return-value]

    def table(self, split: str) -> pd.DataFrame | None:
        """One row per image of `loader(split)`, in order: ``image``, ``mask``, ``label``, ``defect_type`` and
        ``group`` as the readers give them; None where files have no name."""
        return None

    @property
    def split_sizes(self) -> dict[str, int]:
        """Images by split as far as known, for the record."""
        return {}

    @property
    def digest(self) -> str:
        """Text that changes when the data does. Without more knowledge, the name of the class."""
        return f"provider {type(self).__module__}.{type(self).__qualname__}"


class SplitProvider(DatasetProvider):
    """The data of the settings; missing synthetic data is made first. Pictures are decoded once, for the first loader.

    A subclass that replaces the loader of a split replaces `table` for it as well. `samples` is the table that
    `Batch.index` points into; after the first loader it is without unreadable rows. `DataError`: the data cannot be
    read or split, has no such category, or no normal image in train or val. A table that is given, such as one to be
    tested on alone, is taken as it is.
    """

    def __init__(self, settings: EfficientADSettings, samples: pd.DataFrame | None = None) -> None:
        self.settings = settings
        self._all = self.samples = samples_in_use(settings) if samples is None else samples

    @cached_property
    def digest(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return readers.data_digest(self._all)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in self.split_sizes if split != "train")

    @property
    def split_sizes(self) -> dict[str, int]:
        sizes = self.samples["split"].value_counts(sort=False)
        return {split: int(sizes[split]) for split in SPLITS if split in sizes}

    def get_train_dataloader(self) -> DataLoader[Batch]:
        sampler = EpochSampler(self._rows("train"), seed=self.settings.seed)
        return self._loader(self.dataset, sampler, self.settings.train_batch_size)

    def get_val_dataloader(self) -> DataLoader[Batch]:
        """The normal images, then a copy of each with an anomaly; its index is the row of the picture below it."""
        return self._loader(self._validation, range(len(self._validation)))

    def get_test_dataloader(self) -> DataLoader[Batch] | None:
        rows = self._rows("test")
        return self._loader(self.dataset, rows) if rows else None

    def loader(self, split: str) -> DataLoader[Any]:
        shifted = self._rows("test_shift") if split == "test_shift" else []
        return self._loader(self.dataset, shifted) if shifted else super().loader(split)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Some rows of `samples`, as they are."""
        return self.dataset.__getitems__(list(rows))

    def table(self, split: str) -> pd.DataFrame:
        """One row per image of `loader(split)`; synthesised ones have their picture's path and no mask file."""
        images = self.samples.iloc[self._rows(split)].reset_index(drop=True)
        if split != "val":
            return images
        kinds = [kind_of(place, seed=self.settings.seed_of_split) for place in range(len(images))]
        return pd.concat([images, images.assign(label=1, defect_type=kinds)], ignore_index=True)

    @cached_property
    def dataset(self) -> SampleDataset:
        """All samples by row."""
        dataset = SampleDataset(self.samples, self.settings)
        if "train" in self.split_sizes:
            _check_good_parts(dataset.samples, self.settings.dataset_folder)
        self.samples = dataset.samples
        return dataset

    @cached_property
    def _validation(self) -> "NormalsAndAnomalies":
        rows = self._rows("val")
        images, regions = zip(*((one.image, one.place) for one in map(self.dataset.stored, rows)), strict=True)
        return NormalsAndAnomalies(images, seed=self.settings.seed_of_split, rows=rows, regions=regions)

    def _rows(self, split: str) -> list[int]:
        return np.flatnonzero(self.dataset.samples["split"] == split).tolist()

    def _loader(self, dataset: Dataset[Batch], sampler: Iterable[Any], size: int | None = None) -> DataLoader[Batch]:
        settings, size = self.settings, size or self.settings.eval_batch_size
        return whole_batches(dataset, sampler, batch_size=size, num_workers=settings.num_workers, seed=settings.seed)


def as_batch(item: Any, *, split: str) -> Batch:
    """What a loader yielded, checked; plain images become a batch of normal ones."""
    the = f"the {split} loader yields"
    if isinstance(item, Tensor):
        zeros = torch.zeros(len(item), dtype=torch.int64)
        item = Batch(item, zeros, torch.zeros_like(item[:, :1]), zeros.bool(), torch.arange(len(item)))
    if not isinstance(item, Batch):
        expected = "gainmtl_lib.dataset.Batch, or a tensor of normal images (B, 3, H, W)"
        raise DataError(f"{the} {type(item).__name__}; expected {expected}")
    images, labels = item.images, item.labels
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.float32 or not len(images):
        raise DataError(f"{the} images {tuple(images.shape)} of {images.dtype}; expected torch.float32 (B, 3, H, W)")
    if item.masks.shape != (len(images), 1, *images.shape[2:]) or labels.shape != (len(images),):
        shapes = f"masks {tuple(item.masks.shape)} and labels {tuple(labels.shape)} beside images {tuple(images.shape)}"
        raise DataError(f"{the} {shapes}; expected (B, 1, H, W) and (B,)")
    if strange := set(labels.unique().tolist()) - {0, 1}:
        raise DataError(f"{the} labels {sorted(strange)}; expected 0 (normal) and 1 (anomalous)")
    low, high = (float(value) for value in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise DataError(f"{the} images from {low:.4g} to {high:.4g}; expected 0 to 1: the model normalises")
    if split == "train" and labels.any():
        raise DataError("the train loader yields defective images (label 1); EfficientAD learns from normal images")
    return item


def check_validation(provider: DatasetProvider) -> None:
    """Raises `DataError`: the validation images cannot be used, or lack normal or anomalous ones."""
    labels = [int(label) for item in provider.get_val_dataloader() for label in as_batch(item, split="val").labels]
    if len(set(labels)) < 2:
        what = f"the validation images are {labels.count(0)} normal and {labels.count(1)} anomalous ones"
        raise DataError(f"{type(provider).__name__}: {what}; scale and best checkpoint need both")


# --- Anomalies on copies of normal pictures, to validate without a real defect

CUT_PASTE = "cut_paste"
KINDS = (*DEFECTS, CUT_PASTE)
LEAST_CHANGE = 12  # grey levels that half of an anomaly's pixels must change by to be seen


def kind_of(index: int, *, seed: int) -> str:
    """The kind of anomaly `index`: each round shows all of them, in an order of its own."""
    round_, turn = divmod(index, len(KINDS))
    return KINDS[np.random.default_rng([seed, round_, _KIND]).permutation(len(KINDS))[turn]]


def synthesise(
    image: Pixels, *, other: Pixels, seed: int, index: int, region: Place = EVERYWHERE
) -> tuple[Pixels, Mask]:
    """An anomaly of `kind_of` that can be seen, on a copy of a normal picture; equal for equal (seed, index).

    `image` is RGB (H, W, 3), at least 32 pixels a side, `other` a normal picture of any size, of which a piece may be
    wanted; the anomaly lies in `region`. Returns the copy, and the mask (H, W) outside of which it is the picture.
    """
    rng, kind = np.random.default_rng([seed, index, _ANOMALY]), kind_of(index, seed=seed)
    inside = np.zeros(image.shape[:2], dtype=np.bool_)
    inside[region] = True
    shorter = min(inside.any(axis=1).sum(), inside.any(axis=0).sum())
    before, source = (picture.astype(np.float32) / 255 for picture in (image, other))
    while True:  # until it is seen: on black nothing dark is, on white nothing bright
        changed, mask = _pasted(rng, before, source) if kind == CUT_PASTE else _drawn(rng, before, kind)
        mask &= inside
        after = np.where(mask[..., None], np.clip(np.rint(changed * 255), 0, 255), image).astype(np.uint8)
        if mask.sum() < max(8.0, 0.0015 * shorter**2):  # the share of a square, as of a drawn defect's picture
            continue
        if np.median(np.abs(image[mask].astype(int) - after[mask]).max(axis=1)) >= LEAST_CHANGE:
            return after, mask


def _drawn(rng: Generator, image: Plane, kind: str) -> tuple[Plane, Mask]:
    opacity, colour = visible_defect(rng, (image.shape[0], image.shape[1]), kind)
    mask = opacity > 0
    shift = (colour - 1) * max(0.4, float(image[mask].mean()))  # on black a factor would change nothing
    if (image == image[..., :1]).all():
        shift = shift.mean(axis=2, keepdims=True)  # on a grey photograph colour alone would give it away
    return image + opacity[..., None] * shift, mask


def _pasted(rng: Generator, image: Plane, source: Plane) -> tuple[Plane, Mask]:
    # A rectangle from elsewhere, mirrored perhaps, in another light (after CutPaste, arXiv 2104.04015).
    sides = [min(image.shape[axis], source.shape[axis]) for axis in (0, 1)]
    size = [max(1, round(side * rng.uniform(0.08, 0.35))) for side in sides]

    def place(picture: Plane) -> Place:
        top, left = (int(rng.integers(0, picture.shape[axis] - size[axis] + 1)) for axis in (0, 1))
        return slice(top, top + size[0]), slice(left, left + size[1])

    patch = source[place(source)][:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    light, where = rng.choice([-1, 1]) * rng.uniform(0.06, 0.15), place(image)
    changed, mask = image.copy(), np.zeros(image.shape[:2], dtype=np.bool_)
    changed[where], mask[where] = patch + light, True
    return changed, mask


class NormalsAndAnomalies(Dataset[Batch]):
    """N normal pictures, RGB uint8 (H, W, 3) of one size, and then one anomalous copy of each, for validation.

    `rows` are theirs in the table of samples, for `Batch.index`; their places without. `regions`: see `synthesise`.
    """

    def __init__(
        self, pictures: Sequence[Pixels], *, seed: int, rows: Sequence[int] = (), regions: Sequence[Place] = ()
    ) -> None:
        self.pictures, self.seed = pictures, seed
        self.rows, self.regions = rows or range(len(pictures)), regions or [EVERYWHERE] * len(pictures)

    def __len__(self) -> int:
        return 2 * len(self.pictures)

    def __getitems__(self, keys: Sequence[int]) -> Batch:
        drawn = [self._picture(key) for key in keys]
        images, masks = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
        labels = torch.tensor([key // len(self.pictures) for key in keys])
        rows = torch.tensor([self.rows[key % len(self.pictures)] for key in keys])
        return Batch(images.permute(0, 3, 1, 2).float().div_(255), labels, masks[:, None].float(), labels == 1, rows)

    def _picture(self, key: int) -> tuple[Pixels, Mask]:
        anomalous, place = divmod(key, len(self.pictures))
        image = self.pictures[place]
        if not anomalous:
            return image, np.zeros(image.shape[:2], dtype=np.bool_)
        steps = np.random.default_rng([self.seed, place, _OTHER]).integers(1, max(2, len(self.pictures)))
        chosen = (place + int(steps)) % len(self.pictures)  # the only picture itself
        other = self.pictures[chosen][self.regions[chosen]]  # of a letterbox what the picture fills
        return synthesise(image, other=other, seed=self.seed, index=place, region=self.regions[place])


# --- Pictures of something else, for the pretraining penalty


def as_grey(picture: Pixels) -> Pixels:
    """The same picture without colours, still (H, W, 3)."""
    return np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2).astype(np.uint8)


@lru_cache(maxsize=4)
def shuffled(count: int, *key: int) -> NDArray[np.int64]:
    """The numbers below `count` in an order that follows from the key."""
    return np.random.default_rng(key).permutation(count)


class PenaltyImages(Dataset[Tensor]):
    """Pictures by number, three in ten of them grey: of the folder `penalty_images`, without it drawn ones.

    Of a folder's images, resized to (2H, 2W), the middle (H, W) is taken; each pass over them has an order of its own.
    `text` says where they come from, for the record and wherever a result is shown.
    """

    def __init__(self, settings: EfficientADSettings) -> None:
        self.settings, folder = settings, settings.penalty_images
        self.files = [] if folder is None else image_files(folder)
        drawn = "drawn pictures (not natural images: not the paper's penalty)"
        self.text = drawn if folder is None else f"{len(self.files)} natural images of {folder.name}"
        if folder is not None and not self.files:
            what = "holds no images" if folder.is_dir() else "no such folder"
            hint = "penalty_images names a folder of natural images (at any depth); without it pictures are drawn"
            raise DataError(f"{folder}: {what}; {hint}")

    def __getitems__(self, numbers: Sequence[int]) -> Tensor:
        """Shape: float32 (B, 3, H, W) in [0, 1], one per number."""
        pictures = torch.from_numpy(np.stack([self._picture(number) for number in numbers]))
        return pictures.permute(0, 3, 1, 2).float().div_(255)  # a view: channels-last in memory, as the normal images

    def _picture(self, number: int) -> Pixels:
        rng = np.random.default_rng([self.settings.seed, number, _PENALTY])
        grey = rng.random() < 0.3
        picture = self._middle(number) if self.files else draw_leaves(rng, self.settings.image_size)
        return as_grey(picture) if grey else picture

    def _middle(self, number: int) -> Pixels:
        """Of the image whose turn it is, or of the next that can be decoded."""
        height, width = self.settings.image_size
        for later in range(number, number + len(self.files)):
            passes, place = divmod(later, len(self.files))
            order = shuffled(len(self.files), self.settings.seed, passes, _PENALTY_ORDER)
            try:
                picture = read_image(self.files[order[place]])
            except UnreadableError as error:
                if not self.settings.skip_unreadable:
                    raise UnreadableError(f"{error}, or leave it out with skip_unreadable: true") from None
                logger.warning("left out: %s", error)
                continue
            resized = resize_image(picture, (2 * height, 2 * width), "squash")
            top, left = height // 2, width // 2
            return resized[top : top + height, left : left + width]
        raise DataError(f"{self.settings.penalty_images}: none of its {len(self.files)} images can be decoded")


def draw_leaves(rng: Generator, size: Size) -> Pixels:
    """Textured leaves of all sizes on top of each other, as natural images are made up (dead leaves), RGB (H, W, 3)."""
    leaves = int(rng.integers(60, 300))
    owner = _lie(rng, size, leaves)  # (H, W)
    colour = rng.uniform(0, 1, (leaves + 1, 3)).astype(np.float32)
    contrast = rng.uniform(0, 0.3, leaves + 1).astype(np.float32)
    cells = [cell for cell in (2, 4, 8, 16, 32, 64) if cell < min(size)]
    sheets = [np.sum([cell * smooth_noise(rng, size, cell) for cell in cells], axis=0)]  # clouds of all scales
    sheets += [TEXTURES[str(rng.choice(list(TEXTURES)))](rng, size) for _ in range(2)]
    textures = np.stack([(sheet - sheet.mean()) / max(float(sheet.std()), 1e-6) for sheet in sheets], dtype=np.float32)
    sheet = rng.integers(0, len(sheets), leaves + 1)[owner]
    grain = np.take_along_axis(textures, sheet[None], axis=0)[0] * contrast[owner]
    picture = cv2.GaussianBlur(colour[owner] + grain[..., None], (0, 0), rng.uniform(0.3, 1.2))
    return to_bytes(picture)


def _lie(rng: Generator, size: Size, leaves: int) -> NDArray[np.int32]:
    """Which leaf is seen at each pixel, later ones on top; 0 is the ground."""
    owner = np.zeros(size, dtype=np.int32)
    low, high = (share * min(size) for share in (0.04, 0.6))  # density 1 / radius³: alike at all scales
    radius = (low**-2 - rng.random(leaves) * (low**-2 - high**-2)) ** -0.5
    flat, turn = rng.uniform(0.3, 1, leaves), rng.uniform(0, 2 * np.pi, leaves)
    middle = rng.random((leaves, 2)) * (size[1], size[0])
    corners = rng.choice([3, 4, 5, 24], leaves)  # 24 are an ellipse
    uneven = rng.uniform(0, 0.7, (leaves, 24)) * (corners < 24)[:, None]
    for leaf in range(leaves):
        number = corners[leaf]
        angle = 2 * np.pi * (np.arange(number) + uneven[leaf, :number]) / number
        outline = radius[leaf] * np.exp(1j * turn[leaf]) * (np.cos(angle) + 1j * flat[leaf] * np.sin(angle))
        points = np.stack([outline.real, outline.imag], axis=1) + middle[leaf]
        cv2.fillPoly(owner, [np.rint(points).astype(np.int32)], leaf + 1)
    return owner


# --- Training batches by step


def recoloured(images: Tensor, *, seed: int, number: int, part: Part | None = None) -> Tensor:
    """Each image of a batch, or of a `part` of it, with brightness, contrast or saturation changed by up to a fifth.

    How follows from (seed, number) and the image's place in the whole batch.
    """
    part = part or Part.whole(len(images))
    rng = np.random.default_rng([seed, number, _COLOUR])
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    drawn = [(changes[int(rng.integers(3))], float(rng.uniform(0.8, 1.2))) for _ in range(part.size)]
    changed = [change(image, factor) for image, (change, factor) in zip(images, drawn[part.places], strict=True)]
    return torch.stack(changed).contiguous(memory_format=torch.channels_last)


# What a process reads for a step: the number of the batch, which with the seed decides everything random in the step,
# its part of the batch's normal images, which it is, and they themselves, float32 (B, 3, H, W) in [0, 1] (fewer where a
# pass ends), and its part of the penalty's, (B', 3, H, W).
TrainBatch = tuple[int, Part, Tensor, Tensor]


class Interval:
    """The next batches of an endless row, with the length by which Lightning reads none too early."""

    def __init__(self, batches: Iterator[TrainBatch], steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[TrainBatch]:
        return islice(self.batches, self.steps)


class TrainingData(L.LightningDataModule):
    """What Lightning reads: each of its epochs is the steps up to the next validation."""

    def __init__(self, settings: EfficientADSettings, provider: DatasetProvider, penalty: PenaltyImages) -> None:
        super().__init__()
        self.settings, self.provider, self.penalty = settings, provider, penalty
        loader: Any = provider.get_train_dataloader()
        if not isinstance(loader, DataLoader):
            raise DataError(f"get_train_dataloader returned {type(loader).__name__}; expected a torch DataLoader")
        try:
            self.pass_length = len(loader)
        except TypeError:
            raise DataError("the train loader has no length, by which passes are counted; expected __len__") from None
        if not self.pass_length:
            raise DataError("the train loader is empty; expected normal images")
        self._batches: Iterator[TrainBatch] | None = None  # which go on from one of Lightning's epochs to the next

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training: `max_steps`, or those of `max_epochs` where they are fewer."""
        settings = self.settings
        return min(settings.max_steps, (settings.max_epochs or settings.max_steps) * self.pass_length)

    def train_dataloader(self) -> Interval:
        trainer: Any = self.trainer
        first = trainer.global_step
        if self._batches is None:
            self._batches = self.batches(first, trainer.global_rank, trainer.world_size)
        return Interval(self._batches, min(self.settings.val_every_n_steps, self.total_steps - first))

    def val_dataloader(self) -> DataLoader[Any]:
        return self.provider.get_val_dataloader()

    def batches(self, step: int, rank: int = 0, world: int = 1) -> Iterator[TrainBatch]:
        """What one of `world` processes reads from a step on, without end: its part of each batch."""
        size = self.settings.train_batch_size
        own = Part.of(size, rank, world)
        pictures = (number * size + place for number in count(step) for place in range(size)[own.places])
        workers, seed = self.settings.num_workers, self.settings.seed
        penalty = whole_batches(self.penalty, pictures, batch_size=size // world, num_workers=workers, seed=seed)
        try:
            for number, item, others in zip(count(step), self._normal(step), penalty):
                images = as_batch(item, split="train").images
                if (here := tuple(images.shape[2:])) != self.settings.image_size:
                    what = f"the train loader yields images of {here} pixels, image_size is {self.settings.image_size}"
                    raise DataError(f"{what}; set image_size to what the loader yields (height, width)")
                part = Part.of(len(images), rank, world)
                yield number, part, images[part.places], others
        except DataError as error:  # from a loader's process it comes with the whole traceback as its text
            raise DataError(str(error).rpartition("Error: ")[2] if "Traceback" in str(error) else str(error)) from None

    def _normal(self, first: int) -> Iterator[Any]:
        """What the training loader yields from batch `first` on: its order follows from (seed, pass)."""
        loader, (begun, skipped) = self.provider.get_train_dataloader(), divmod(first, self.pass_length)
        sampler: Any = getattr(loader.batch_sampler, "sampler", loader.sampler)
        for number in count(begun):
            for part in (sampler, loader.batch_sampler):
                if (set_epoch := getattr(part, "set_epoch", None)) is not None:
                    set_epoch(number)
            if hasattr(sampler, "generator"):
                drawn = np.random.default_rng([self.settings.seed, number, _PASS]).integers(2**63)
                sampler.generator = torch.Generator().manual_seed(int(drawn))
            passed = 0
            for passed, item in enumerate(loader, start=1):
                if number > begun or passed > skipped:
                    yield item
            if passed != self.pass_length:
                length = f"the train loader has length {self.pass_length}"
                raise DataError(f"{length}, but a pass over it gave {passed} batches; expected the same in each pass")
