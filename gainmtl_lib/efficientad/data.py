"""The colour augmentation of the autoencoder's images: a little brightness, contrast or saturation.

B images, H x W pixels.
"""

from __future__ import annotations

import collections.abc
import hashlib
import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import count, islice
from multiprocessing import active_children
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.data import DataLoader, Dataset, RandomSampler, SubsetRandomSampler, WeightedRandomSampler
from torchvision.transforms.v2 import functional as F
from typing_extensions import override

from gainmtl_lib.dataset import (
    Batch,
    EpochSampler,
    SampleDataset,
    load_samples,
    make_data,
    share_with_workers,
    whole_batches,
    with_boxes,
)
from gainmtl_lib.efficientad.model import MVTEC_CATEGORIES, EfficientADSettings
from gainmtl_lib.labels import resize_image
from gainmtl_lib.progress import show_progress
from gainmtl_lib.readers import (
    SPLITS,
    DataError,
    UnreadableError,
    assign_splits,
    data_digest,
    image_files,
    read_image,
    read_samples,
)
from gainmtl_lib.settings import closest
from gainmtl_lib.synthetic import surfaces
from gainmtl_lib.synthetic.data import visible_defect
from gainmtl_lib.synthetic.surfaces import TEXTURES, Plane, Size, smooth_noise

CHANGES = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
RANGE = (0.8, 1.2)
_STREAM = 30
"""Keeps these random numbers apart from others of the same seed and number."""


def recoloured(images: Tensor, *, seed: int, number: int) -> Tensor:
    """Each image with one of brightness, contrast and saturation changed by a factor in `RANGE`.

    Which, and by how much, follows from (seed, number, place in the batch) alone.

    Args:
        images: (B, 3, H, W) in [0, 1], on any device; not changed.
        seed: of the run.
        number: of the batch.
    """
    rng = np.random.default_rng([seed, number, _STREAM])
    changed = [CHANGES[int(rng.integers(len(CHANGES)))](image, float(rng.uniform(*RANGE))) for image in images]
    return torch.stack(changed).contiguous(memory_format=_format(images))


def _format(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


# --- Pictures that are drawn, for want of natural images


LEAVES = (60, 300)
RADIUS = (0.04, 0.6)
"""Of a leaf, shares of the shorter side; drawn with density 1 / radius³, as natural images look alike at all scales."""
ROUND = 24
"""Corners of an ellipse; other leaves have three to five."""
SHEETS = 3
"""Textures in a picture, one of them clouds; leaves share them."""


def draw_leaves(rng: Generator, size: Size) -> NDArray[np.uint8]:
    """One picture, RGB (H, W, 3)."""
    leaves = int(rng.integers(*LEAVES))
    owner = _lie(rng, size, leaves)  # (H, W)
    colour = rng.uniform(0, 1, (leaves + 1, 3)).astype(np.float32)
    contrast = rng.uniform(0, 0.3, leaves + 1).astype(np.float32)
    sheets = np.stack([_clouds(rng, size), *(_texture(rng, size) for _ in range(SHEETS - 1))])
    sheet = rng.integers(0, SHEETS, leaves + 1)[owner]
    grain = np.take_along_axis(sheets, sheet[None], axis=0)[0] * contrast[owner]
    picture = cv2.GaussianBlur(colour[owner] + grain[..., None], (0, 0), rng.uniform(0.3, 1.2))
    return np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)


def _lie(rng: Generator, size: Size, leaves: int) -> NDArray[np.int32]:
    """Which leaf is seen at each pixel, later ones on top; 0 is the ground."""
    owner = np.zeros(size, dtype=np.int32)
    low, high = (share * min(size) for share in RADIUS)
    radius = (low**-2 - rng.random(leaves) * (low**-2 - high**-2)) ** -0.5
    flat, turn = rng.uniform(0.3, 1, leaves), rng.uniform(0, 2 * np.pi, leaves)
    middle = rng.random((leaves, 2)) * (size[1], size[0])
    corners = rng.choice([3, 4, 5, ROUND], leaves)
    uneven = rng.uniform(0, 0.7, (leaves, ROUND)) * (corners < ROUND)[:, None]
    for leaf in range(leaves):
        number = corners[leaf]
        angle = 2 * np.pi * (np.arange(number) + uneven[leaf, :number]) / number
        outline = radius[leaf] * np.exp(1j * turn[leaf]) * (np.cos(angle) + 1j * flat[leaf] * np.sin(angle))
        points = np.stack([outline.real, outline.imag], axis=1) + middle[leaf]
        cv2.fillPoly(owner, [np.rint(points).astype(np.int32)], leaf + 1)
    return owner


def _clouds(rng: Generator, size: Size) -> Plane:
    """Noise of all scales, each as strong as its cells are wide, of unit variance."""
    cells = [cell for cell in (2, 4, 8, 16, 32, 64) if cell < min(size)]
    return _unit(np.sum([cell * smooth_noise(rng, size, cell) for cell in cells], axis=0))


def _texture(rng: Generator, size: Size) -> Plane:
    """One of the synthetic surfaces, of unit variance: far stronger than there."""
    return _unit(TEXTURES[str(rng.choice(list(TEXTURES)))](rng, size))


def _unit(plane: Plane) -> Plane:
    return ((plane - plane.mean()) / max(float(plane.std()), 1e-6)).astype(np.float32)


# --- Pictures for the pretraining penalty


logger = logging.getLogger(__name__)

Image = NDArray[np.uint8]

GREY_SHARE = 0.3
_STREAM_PENALTY = 20
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
        rng = np.random.default_rng([self.seed, number, _STREAM_PENALTY])
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
            self._order = (
                passes,
                np.random.default_rng([self.seed, passes, _STREAM_PENALTY + 1]).permutation(len(self.files)),
            )
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


# --- Anomalies synthesised on copies of normal pictures


Region = tuple[slice, slice]

CUT_PASTE = "cut_paste"
KINDS = (*surfaces.DEFECTS, CUT_PASTE)
"""As many pictures as there are kinds, in order, show all of them."""

LEAST_AREA = 0.0015
"""Share of a square on the region's shorter side, as of a drawn defect's picture."""
LEAST_CHANGE = 12
"""Grey levels that half of an anomaly's pixels must change by to be seen."""
DARKEST = 0.4
"""Brightness that a defect's colour factor is applied to at least: on black a factor changes nothing."""
_STREAM_ANOMALIES = 40
"""Keeps these random numbers apart from others of the same seed and index."""


@dataclass(frozen=True)
class Anomaly:
    """A normal picture with something wrong.

    Attributes:
        image: RGB uint8 (H, W, 3).
        mask: bool (H, W); outside it the picture is the normal one.
        kind: one of `KINDS`.
    """

    image: Image
    mask: NDArray[np.bool_]
    kind: str


def kind_of(index: int, *, seed: int) -> str:
    """The kind of anomaly `index`: each round shows all of them, in an order of its own."""
    round_, turn = divmod(index, len(KINDS))
    return KINDS[np.random.default_rng([seed, round_, _STREAM_ANOMALIES + 2]).permutation(len(KINDS))[turn]]


def synthesise(
    image: Image, *, other: Callable[[], Image], seed: int, index: int, region: Region | None = None
) -> Anomaly:
    """An anomaly of `kind_of` that can be seen, on a copy of a normal picture; equal for equal (seed, index).

    Args:
        image: RGB (H, W, 3), at least 32 pixels a side.
        other: gives another normal picture of any size; asked for where a piece of one is wanted.
        seed: of the anomalies.
        index: of this one.
        region: where it may lie; None is the whole picture.
    """
    rng, kind = np.random.default_rng([seed, index, _STREAM_ANOMALIES]), kind_of(index, seed=seed)
    inside = np.zeros(image.shape[:2], dtype=np.bool_)
    inside[region or (slice(None), slice(None))] = True
    shorter = min(inside.any(axis=1).sum(), inside.any(axis=0).sum())
    least = max(8.0, LEAST_AREA * shorter**2)
    before = image.astype(np.float32) / 255
    source = other().astype(np.float32) / 255 if kind == CUT_PASTE else before
    while True:  # until it is seen: on black nothing dark is, on white nothing bright
        changed, mask = _pasted(rng, before, source) if kind == CUT_PASTE else _drawn(rng, before, kind)
        mask &= inside
        after = np.where(mask[..., None], np.clip(np.rint(changed * 255), 0, 255), image).astype(np.uint8)
        if mask.sum() >= least and _change(image, after, mask) >= LEAST_CHANGE:
            return Anomaly(after, mask, kind)


def _drawn(rng: Generator, image: surfaces.Plane, kind: str) -> tuple[surfaces.Plane, NDArray[np.bool_]]:
    """A drawn defect in the light of its surroundings, the texture showing through."""
    opacity, colour = visible_defect(rng, (image.shape[0], image.shape[1]), kind)
    mask = opacity > 0
    shift = (colour - 1) * max(DARKEST, float(image[mask].mean()))
    if (image == image[..., :1]).all():
        shift = shift.mean(axis=2, keepdims=True)  # on a grey photograph colour alone would give it away
    return image + opacity[..., None] * shift, mask


def _pasted(rng: Generator, image: surfaces.Plane, source: surfaces.Plane) -> tuple[surfaces.Plane, NDArray[np.bool_]]:
    """A rectangle from elsewhere, mirrored perhaps, in another light (after CutPaste, arXiv 2104.04015)."""
    sides = [min(image.shape[axis], source.shape[axis]) for axis in (0, 1)]
    height, width = (max(1, round(side * rng.uniform(0.08, 0.35))) for side in sides)
    patch = source[_place(rng, source, height, width)][:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    light, place = rng.choice([-1, 1]) * rng.uniform(0.06, 0.15), _place(rng, image, height, width)
    changed, mask = image.copy(), np.zeros(image.shape[:2], dtype=np.bool_)
    changed[place] = patch + light
    mask[place] = True
    return changed, mask


def _place(rng: Generator, picture: surfaces.Plane, height: int, width: int) -> Region:
    top, left = (int(rng.integers(0, picture.shape[axis] - side + 1)) for axis, side in ((0, height), (1, width)))
    return slice(top, top + height), slice(left, left + width)


def _change(before: Image, after: Image, mask: NDArray[np.bool_]) -> float:
    """Median over the mask of the largest change of a channel."""
    return float(np.median(np.abs(before[mask].astype(int) - after[mask]).max(axis=1)))


class NormalsAndAnomalies(Dataset[Batch]):
    """N normal pictures and then one anomalous copy of each, as a loader over validation data wants them.

    Args:
        pictures: by place, RGB uint8 (H, W, 3), all of one size.
        seed: of the anomalies.
        rows: by place the picture's row in the table of samples, for `Batch.index`; its place without.
        regions: by place, see `synthesise`.
    """

    def __init__(
        self,
        pictures: Sequence[Image],
        *,
        seed: int,
        rows: Sequence[int] | None = None,
        regions: Sequence[Region] | None = None,
    ) -> None:
        self.pictures, self.seed, self.regions = pictures, seed, regions
        self.rows = list(range(len(pictures)) if rows is None else rows)

    def __len__(self) -> int:
        return 2 * len(self.pictures)

    def __getitem__(self, key: int) -> Batch:
        """A batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[int]) -> Batch:
        """The batch of these keys, 0 to 2N - 1."""
        drawn = [self._picture(key) for key in keys]
        images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)  # (B, 3, H, W)
        masks = torch.from_numpy(np.stack([mask for _, mask in drawn])[:, None])
        labels = torch.tensor([key // len(self.pictures) for key in keys])
        rows = torch.tensor([self.rows[key % len(self.pictures)] for key in keys])
        return Batch(images.to(torch.float32).div_(255), labels, masks.to(torch.float32), labels == 1, rows)

    def _picture(self, key: int) -> tuple[Image, NDArray[np.bool_]]:
        anomalous, place = divmod(key, len(self.pictures))
        image = self.pictures[place]
        if not anomalous:
            return image, np.zeros(image.shape[:2], dtype=np.bool_)
        region = None if self.regions is None else self.regions[place]
        made = synthesise(image, other=lambda: self._other(place), seed=self.seed, index=place, region=region)
        return made.image, made.mask

    def _other(self, place: int) -> Image:
        """What a letterbox's picture fills of another one; of the only picture itself."""
        steps = np.random.default_rng([self.seed, place, _STREAM_ANOMALIES + 1]).integers(1, max(2, len(self.pictures)))
        chosen = (place + int(steps)) % len(self.pictures)
        picture = self.pictures[chosen]
        return picture if self.regions is None else picture[self.regions[chosen]]


# --- Which pictures EfficientAD learns from, validates on and is tested on.


GOOD_PARTS = ("train", "val")
"""Splits of which the normal images alone are used."""


def samples_in_use(settings: EfficientADSettings) -> pd.DataFrame:
    """The table of samples with its split, defects of `GOOD_PARTS` left out; missing synthetic data is made first.

    The split is that of GAIN-MTL with the same ratios and `seed_of_split`, so that both systems are tested on the
    same pictures, except for MVTec AD: there its own protocol holds, everything in ``test`` is tested on.

    Raises:
        DataError: the dataset cannot be read or split, has no such category, or no normal image in `GOOD_PARTS`.
    """
    make_data(settings)
    samples = read_samples(
        _dataset_folder(settings),
        dataset_type=settings.dataset_type,
        group_pattern=settings.group_pattern,
        both_classes=False,
    )
    samples = with_boxes(samples, settings)
    if settings.dataset_type == "mvtec":
        samples["split"] = [split or "test" for split in samples["split"]]
    samples = assign_splits(
        samples, val_ratio=settings.val_ratio, test_ratio=settings.test_ratio, seed=settings.seed_of_split
    )
    check_good_parts(samples, settings.dataset_folder)
    dropped = samples["split"].isin(GOOD_PARTS) & (samples["label"] == 1)
    if dropped.any():
        logger.info("left out: %d defective images of train and val; EfficientAD learns from good parts", dropped.sum())
    return samples[~dropped].reset_index(drop=True)


def check_good_parts(samples: pd.DataFrame, folder: Path) -> None:
    """Raise a `DataError` that names the dataset's folder where a split of `GOOD_PARTS` has no normal image."""
    for split in GOOD_PARTS:
        labels = samples.loc[samples["split"] == split, "label"]
        if not (labels == 0).any():
            raise DataError(
                f"{folder}: split '{split}' has no normal image among {len(labels)}; EfficientAD learns from normal "
                "images: add some, or choose other val_ratio, test_ratio or split_seed"
            )


def found_categories(data_root: Path) -> list[str]:
    """Folders of `data_root` that hold a category of MVTec AD, sorted."""
    if not data_root.is_dir():
        return []
    return sorted(folder.name for folder in data_root.iterdir() if (folder / "train" / "good").is_dir())


def _dataset_folder(settings: EfficientADSettings) -> Path:
    folder = settings.dataset_folder
    if settings.category is None or folder.is_dir() or not settings.data_root.is_dir():
        return folder
    found = found_categories(settings.data_root)
    near = closest(settings.category, [*found, *MVTEC_CATEGORIES])
    there = f"found {', '.join(found)}" if found else "no folder there holds train/good"
    raise DataError(f"{settings.data_root}: has no category '{settings.category}'{near} ({there})")


# --- Training on several devices


_OWN_ERROR = re.compile(r"^(?P<module>gainmtl_lib[\w.]*)\.(?P<name>\w+): (?P<text>.*?)\s*\Z", re.DOTALL)


class FreshProcesses(DDPStrategy):
    """Data-parallel training in spawned processes; their errors arrive as they were raised.

    Lightning's own refuses notebooks for the sake of objects defined in a cell; ours come from modules.
    """

    def __init__(self) -> None:
        super().__init__(start_method="spawn")

    @override
    def _configure_launcher(self) -> None:
        self._launcher = _Launcher(self)


class _Launcher(_MultiProcessingLauncher):
    def __init__(self, strategy: DDPStrategy) -> None:
        super().__init__(strategy, start_method="spawn")
        self._shows_progress = bool(logging.getLogger("gainmtl_lib").handlers)  # which a fresh process lacks

    @property
    @override
    def is_interactive_compatible(self) -> bool:
        return True

    @override
    def launch(self, function: Callable, *args: Any, trainer: L.Trainer | None = None, **kwargs: Any) -> Any:
        others = set(active_children())
        try:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        except ProcessRaisedException as error:
            raise as_raised(error) from error
        finally:
            # An interruption of this process alone would leave them training.
            for process in set(active_children()) - others:
                process.kill()
                process.join()

    @override
    def _wrapping_function(self, process_idx: int, *args: Any, **kwargs: Any) -> None:
        if self._shows_progress:
            show_progress(logging.INFO if process_idx == 0 else logging.WARNING)
        super()._wrapping_function(process_idx, *args, **kwargs)


def as_raised(error: Exception) -> BaseException:
    """The error of a process, of which only the text arrived, as what it was: one of this project, or Ctrl-C."""
    lines = str(error).splitlines()
    for last in reversed(range(len(lines))):
        if lines[last] == KeyboardInterrupt.__name__:
            return KeyboardInterrupt()
        if own := _OWN_ERROR.match("\n".join(lines[last:])):
            return getattr(import_module(own["module"]), own["name"])(own["text"])
    return error


# --- Where EfficientAD's batches come from


class DatasetProvider(ABC):
    """Data to learn from and to be measured on. Subclass it to bring your own.

    Loaders yield `Batch`es, or plain images float32 (B, 3, H, W) in [0, 1], which count as normal; the model
    normalises. Who only wants to replace one loader of the settings' data subclasses `SplitProvider`.
    """

    @abstractmethod
    def get_train_dataloader(self) -> DataLoader[Any]:
        """Normal images, one pass over them, with a length. A training asks for it several times, always for the same.

        PyTorch's shuffling follows from (seed, pass), and a sampler of one's own with ``set_epoch`` is told the pass:
        then a training that goes on reads what an uninterrupted one reads. Items that draw random numbers break that.
        """

    @abstractmethod
    def get_val_dataloader(self) -> DataLoader[Any]:
        """Normal and anomalous images, always in the same order.

        `NormalsAndAnomalies` makes such a set of normal pictures alone.
        """

    def get_test_dataloader(self) -> DataLoader[Any] | None:
        """Labelled images, always in the same order; None where there is nothing to test on."""
        return None

    @property
    def splits(self) -> tuple[str, ...]:
        """What can be measured: val, then the test splits that exist."""
        return ("val",) if self.get_test_dataloader() is None else ("val", "test")

    def loader(self, split: str) -> DataLoader[Any]:
        """One of `splits`.

        Raises:
            DataError: there is no such split.
        """
        loader = {"val": self.get_val_dataloader, "test": self.get_test_dataloader}.get(split, lambda: None)()
        if loader is None:
            raise DataError(f"no images in split '{split}'; the data has {', '.join(self.splits)}")
        return loader

    def table(self, split: str) -> pd.DataFrame | None:
        """One row per image of `loader(split)`, in order, as `data.samples` describes; None where files have no name.

        Raises:
            DataError: there is no such split.
        """
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
    """The data of the settings. Pictures are decoded once, for the first loader.

    A subclass that replaces the loader of a split replaces `table` for it as well.

    Args:
        settings: which data, how it is split, its size and how batches are made.

    Raises:
        DataError: see `samples_in_use`.
    """

    def __init__(self, settings: EfficientADSettings) -> None:
        self.settings = settings
        self._table = self._samples = samples_in_use(settings)
        self._dataset: SampleDataset | None = None

    @property
    def samples(self) -> pd.DataFrame:
        """The table that `Batch.index` points into; after the first loader without unreadable rows."""
        return self._samples

    @property
    def digest(self) -> str:
        """`data_digest` of the samples in use."""
        return self._digest

    @property
    def splits(self) -> tuple[str, ...]:
        """val, and test and test_shift where they exist."""
        return tuple(split for split in self.split_sizes if split != "train")

    @property
    def split_sizes(self) -> dict[str, int]:
        """Images by split, synthesised ones not counted."""
        sizes = self._samples["split"].value_counts(sort=False)
        return {split: int(sizes[split]) for split in SPLITS if split in sizes}

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Normal images in an order that follows from (seed, pass), as they are."""
        sampler = EpochSampler(self._rows("train"), seed=self.settings.seed)
        return self._loader(self._load(), sampler, batch_size=self.settings.train_batch_size)

    def get_val_dataloader(self) -> DataLoader[Batch]:
        """The normal images, then a copy of each with an anomaly; its index is the row of the picture below it."""
        return self._loader(self._validation, range(len(self._validation)))

    def get_test_dataloader(self) -> DataLoader[Batch] | None:
        """The test split, None where it is empty."""
        return self._test_loader("test")

    def loader(self, split: str) -> DataLoader[Any]:
        """One of `splits`.

        Raises:
            DataError: there is no such split.
        """
        shifted = self._test_loader(split) if split == "test_shift" else None
        return super().loader(split) if shifted is None else shifted

    def batch(self, rows: Sequence[int]) -> Batch:
        """Some rows of `samples`, as they are."""
        return self._load().__getitems__(list(rows))

    def table(self, split: str) -> pd.DataFrame:
        """One row per image of `loader(split)`, in order; synthesised ones have their picture's path and no mask file.

        Raises:
            DataError: files that cannot be decoded.
        """
        rows = self._rows(split)
        images = self._samples.iloc[rows]
        if split != "val":
            return images.reset_index(drop=True)
        kinds = [kind_of(place, seed=self.settings.seed_of_split) for place in range(len(rows))]
        return pd.concat([images, images.assign(label=1, defect_type=kinds)], ignore_index=True)

    @cached_property
    def _digest(self) -> str:
        return data_digest(self._table)

    @cached_property
    def _validation(self) -> NormalsAndAnomalies:
        rows = self._rows("val")
        pictures = _Pictures(self._load(), rows)
        return NormalsAndAnomalies(pictures, seed=self.settings.seed_of_split, rows=rows, regions=self._regions(rows))

    def _regions(self, rows: list[int]) -> list[Region] | None:
        """Where each picture lies on its letterbox."""
        return None if self.settings.resize == "squash" else [self._load().places[row] for row in rows]

    def _load(self) -> SampleDataset:
        """All samples by row.

        Raises:
            DataError: files that cannot be decoded; with `skip_unreadable`, too few that can.
        """
        if self._dataset is None:
            settings = self.settings
            loaded = load_samples(
                self._samples,
                image_size=settings.image_size,
                resize=settings.resize,
                keep=settings.cache_images,
                skip_unreadable=settings.skip_unreadable,
            )
            check_good_parts(loaded.samples, settings.dataset_folder)
            if settings.num_workers > 0:
                share_with_workers(loaded)
            self._samples = loaded.samples
            self._dataset = SampleDataset(loaded, image_size=settings.image_size, resize=settings.resize)
        return self._dataset

    def _rows(self, split: str) -> list[int]:
        self._load()  # unreadable files leave the table with it
        return np.flatnonzero(self._samples["split"] == split).tolist()

    def _test_loader(self, split: str) -> DataLoader[Batch] | None:
        rows = self._rows(split)
        return self._loader(self._load(), rows) if rows else None

    def _loader(
        self, dataset: Dataset[Batch], sampler: Iterable[int | tuple[int, int]], *, batch_size: int | None = None
    ) -> DataLoader[Batch]:
        return whole_batches(
            dataset,
            sampler,
            batch_size=batch_size or self.settings.eval_batch_size,
            num_workers=self.settings.num_workers,
            seed=self.settings.seed,
        )


class _Pictures(Sequence[Image]):
    """Some rows of the samples as pictures."""

    def __init__(self, dataset: SampleDataset, rows: list[int]) -> None:
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Image:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.dataset.stored(self.rows[place]).image


def build_provider(settings: EfficientADSettings) -> SplitProvider:
    """The provider of the settings' data; missing synthetic data is made first. Decodes nothing yet.

    Raises:
        DataError: see `samples_in_use`.
    """
    return SplitProvider(settings)


def as_batch(item: Any, *, split: str) -> Batch:
    """What a loader yielded, checked; plain images become a batch of normal ones.

    Raises:
        DataError: neither a `Batch` nor images, images of another shape, type or range, labels other than 0 and 1, or a
            defect in train.
    """
    batch = _all_normal(item) if isinstance(item, Tensor) else item
    if not isinstance(batch, Batch):
        raise DataError(
            f"the {split} loader yields {type(item).__name__}; expected gainmtl_lib.records.Batch, or a tensor of "
            "normal images (B, 3, H, W)"
        )
    images = batch.images
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.float32 or not len(images):
        raise DataError(
            f"the {split} loader yields images {tuple(images.shape)} of {images.dtype}; expected torch.float32 "
            "(B, 3, H, W)"
        )
    masks, labels = tuple(batch.masks.shape), tuple(batch.labels.shape)
    if masks != (len(images), 1, *images.shape[2:]) or labels != (len(images),):
        raise DataError(
            f"the {split} loader yields masks {masks} and labels {labels} beside images {tuple(images.shape)}; "
            "expected (B, 1, H, W) and (B,)"
        )
    if strange := set(batch.labels.unique().tolist()) - {0, 1}:
        raise DataError(f"the {split} loader yields labels {sorted(strange)}; expected 0 (normal) and 1 (anomalous)")
    low, high = (float(value) for value in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"the {split} loader yields images from {low:.4g} to {high:.4g}; expected 0 to 1, not normalised: the "
            "model does that"
        )
    if split == "train" and bool((batch.labels != 0).any()):
        raise DataError("the train loader yields defective images (label 1); EfficientAD learns from normal images")
    return batch


def _all_normal(images: Tensor) -> Batch:
    count = len(images)
    none = torch.zeros(count, dtype=torch.bool)
    return Batch(
        images, torch.zeros(count, dtype=torch.int64), torch.zeros_like(images[:, :1]), none, torch.arange(count)
    )


# --- Training batches by step


SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_STREAM_STREAM = 10
"""Keeps these random numbers apart from others of the same seed and pass."""


class TrainBatch(NamedTuple):
    """What one optimiser step reads on one device.

    Attributes:
        number: of the batch; with the seed it decides everything random in the step.
        images: normal, float32 (B, 3, H, W) in [0, 1]; B is smaller where a pass ends.
        penalty: something else, float32 (B', 3, H, W) in [0, 1].
    """

    number: int
    images: Tensor
    penalty: Tensor


class TrainStream:
    """The endless stream. Neighbouring intervals go on where the last one ended; any other start is found by skipping.

    It holds iterators and so belongs to the process that trains.

    Args:
        provider: gives the training loader.
        penalty: pictures by number.
        batch_size: B', pictures for the penalty in each batch.
        seed: of the run.
        num_workers: processes that make the pictures for the penalty.
        rank: of this device.
        world: number of devices.

    Attributes:
        steps_per_pass: batches in one pass, of all devices together.

    Raises:
        DataError: the training loader is empty or has no length.
    """

    def __init__(
        self,
        provider: DatasetProvider,
        penalty: PenaltyImages,
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        loader = provider.get_train_dataloader()
        self.steps_per_pass = _length(loader)
        self._source = _Source(loader, penalty, self.steps_per_pass, batch_size, seed, num_workers, rank, world)
        self._next = 0
        self._batches = self._source.batches(0)

    def interval(self, first: int, stop: int) -> Interval:
        """The batches of steps `first` to `stop` - 1."""
        return Interval(self, first, stop)

    def batch(self, step: int) -> TrainBatch:
        """The batch of a step; steps in order cost no skipping.

        Raises:
            DataError: the loader yields something that is no batch of normal images, or images of another size.
        """
        if step != self._next:
            self.close()
            self._batches = self._source.batches(step)
        self._next = step + 1
        try:
            return next(self._batches)
        except DataError as error:  # of a loader's process it has the whole traceback as its text
            raise as_raised(error) from None

    def close(self) -> None:
        """End the loaders' processes. The next batch starts others."""
        self._batches.close()
        self._next = -1


@dataclass(frozen=True)
class _Source:
    """What a stream reads. Apart from it, because workers end at once only if no cycle of references holds them."""

    loader: DataLoader[Any]
    penalty: PenaltyImages
    steps_per_pass: int
    batch_size: int
    seed: int
    num_workers: int
    rank: int
    world: int

    def batches(self, step: int) -> collections.abc.Generator[TrainBatch, None, None]:
        first = step * self.world + self.rank
        penalty = whole_batches(
            self.penalty,
            self._penalty_numbers(first),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
        )
        normal = islice(self._normal(first), 0, None, self.world)
        for number, item, others in zip(count(first, self.world), normal, penalty):
            images = as_batch(item, split="train").images
            if images.shape[2:] != others.shape[2:]:
                raise DataError(
                    f"the train loader yields images of {tuple(images.shape[2:])} pixels, image_size is "
                    f"{tuple(others.shape[2:])}; set image_size to what the loader yields (height, width)"
                )
            yield TrainBatch(number, images, others)

    def _penalty_numbers(self, first: int) -> Iterator[int]:
        for number in count(first, self.world):
            yield from range(number * self.batch_size, (number + 1) * self.batch_size)

    def _normal(self, first: int) -> Iterator[Any]:
        """What the training loader yields from batch `first` on, over all devices."""
        begun, skipped = divmod(first, self.steps_per_pass)
        for number in count(begun):
            passed = 0
            for passed, item in enumerate(_pass(self.loader, self.seed, number), start=1):
                if number > begun or passed > skipped:
                    yield item
            if passed != self.steps_per_pass:
                raise DataError(
                    f"the train loader has length {self.steps_per_pass}, but a pass over it gave {passed} batches; "
                    "expected the same in each pass"
                )


@dataclass(frozen=True)
class Interval:
    """Neighbouring steps of a stream, with a length."""

    stream: TrainStream
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first

    def __iter__(self) -> Iterator[TrainBatch]:
        return map(self.stream.batch, range(self.first, self.stop))


def _pass(loader: DataLoader[Any], seed: int, number: int) -> Iterator[Any]:
    """One pass in an order that follows from (seed, number), whoever made the loader."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    for part in (sampler, loader.batch_sampler):
        if (set_epoch := getattr(part, "set_epoch", None)) is not None:
            set_epoch(number)
    drawn = int(np.random.default_rng([seed, number, _STREAM_STREAM]).integers(2**63))
    if isinstance(sampler, SHUFFLING):
        sampler.generator = torch.Generator().manual_seed(drawn)
    if loader.generator is not None:
        loader.generator.manual_seed(drawn)
    # An iterator draws the seed of its workers from the global random numbers where the loader has none of its own.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(drawn)
        batches = iter(loader)
    yield from batches


def _length(loader: DataLoader[Any]) -> int:
    if not isinstance(loader, DataLoader):
        raise DataError(
            f"get_train_dataloader returned {type(loader).__name__}; expected a torch.utils.data.DataLoader"
        )
    try:
        length = len(loader)
    except TypeError:
        raise DataError(
            "the train loader has no length; a training counts its passes, so that its dataset needs __len__"
        ) from None
    if not length:
        raise DataError("the train loader is empty; expected normal images")
    return length


# --- What Lightning asks for batches


class TrainingFeed(L.LightningDataModule):
    """The loaders of one training. Made in one process, it can be sent to those that train; each opens its own files.

    Args:
        provider: of the pictures.
        penalty: pictures for the penalty.
        total_steps: optimiser steps of the whole training.
        every: steps of an interval, after which the model is validated; the last is what remains.
        batch_size: pictures of a step on one device.
        seed: of the run.
        num_workers: processes that make the penalty's pictures.
    """

    def __init__(
        self,
        provider: DatasetProvider,
        penalty: PenaltyImages,
        *,
        total_steps: int,
        every: int,
        batch_size: int,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        self.provider, self.penalty = provider, penalty
        self.total_steps, self.every = total_steps, every
        self._stream_options = {"batch_size": batch_size, "seed": seed, "num_workers": num_workers}
        self._stream: TrainStream | None = None
        self._validation: DataLoader[Any] | None = None

    @property
    def intervals(self) -> int:
        """How many there are."""
        return math.ceil(self.total_steps / self.every)

    def train_dataloader(self) -> Interval:
        trainer = self.trainer
        assert trainer is not None
        if self._stream is None:
            ranks = {"rank": trainer.global_rank, "world": trainer.world_size}
            self._stream = TrainStream(self.provider, self.penalty, **self._stream_options, **ranks)
        first = trainer.global_step
        return self._stream.interval(first, min(first + self.every, self.total_steps))

    def val_dataloader(self) -> DataLoader[Any]:
        if self._validation is None:
            self._validation = self.provider.get_val_dataloader()
        return self._validation


def check_validation(provider: DatasetProvider) -> None:
    """Raises `DataError`: the validation images cannot be used, or lack normal or anomalous ones."""
    labels = [int(label) for item in provider.get_val_dataloader() for label in as_batch(item, split="val").labels]
    if len(set(labels)) < 2:
        raise DataError(
            f"{type(provider).__name__}: the validation images are {labels.count(0)} normal and {labels.count(1)} "
            "anomalous ones; needs both: scale and best checkpoint follow from them"
        )
