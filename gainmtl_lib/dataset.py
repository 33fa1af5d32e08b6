"""From the table of samples to batches of B images (H x W): files decoded once, then edited and augmented by row."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import albumentations as A
import cv2
import lightning as L
import numpy as np
import pandas as pd
import psutil
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_convert, get_worker_info

from gainmtl_lib import labels, processes
from gainmtl_lib.annotations import told_unused
from gainmtl_lib.findings import DataError, Finding, UnreadableError, raise_errors, settle
from gainmtl_lib.labels import COVERS_MOST, Place, Resize
from gainmtl_lib.launch import SIDE_BY_SIDE, Launch
from gainmtl_lib.layouts import TEST_SPLITS, Scan, key_of
from gainmtl_lib.pictures import Mask, read_image, read_soft_mask
from gainmtl_lib.progress import counted
from gainmtl_lib.readers import data_digest, read_samples, split_samples
from gainmtl_lib.settings import RunSettings, Settings

if TYPE_CHECKING:
    from gainmtl_lib.edits.counterfactuals import ImageCounterfactuals

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What the data loaders yield."""

    images: Tensor  # float32 (B, 3, H, W) in [0, 1]; the model normalises. In training with `crop_size` H x W is that
    labels: Tensor  # int64 (B,), 0 normal, 1 defective
    masks: Tensor  # float32 (B, 1, H, W) in {0, 1}; all zero where there is none
    has_mask: Tensor  # bool (B,), which images carry a defect annotation; a normal image needs none
    index: Tensor  # int64 (B,), row of the image in the table of samples


# --- The one place where settings become data


def make_data(settings: RunSettings) -> None:
    """Make synthetic data where it is missing; data of any other type is left to its owner."""
    if settings.dataset_type == "synthetic":
        from gainmtl_lib.synthetic.data import make_synthetic  # a kit, loaded only where it is asked for

        asked = settings.model_dump(include={"num_samples", "image_size", "shortcut", "shortcut_correlation"})
        make_synthetic(settings.data_root, seed=settings.synthetic_seed, **asked)


def build_samples(settings: RunSettings) -> pd.DataFrame:
    """The table of samples with its split; synthetic data is made first where it is missing."""
    make_data(settings)
    return _split(labels.with_labels(read_samples(settings.data_root, **settings.reading), settings), settings)


def build_test_samples(settings: RunSettings, *, digest: str = "") -> pd.DataFrame:
    """The table of samples to be judged alone: nothing is split, and one class is enough.

    Where the layout names splits, those of a test; otherwise all. A copy of the data that a run was trained on, told by
    its `data_digest`, is split as it was. `DataError`: the layout names other splits only.
    """
    samples = labels.with_labels(read_samples(settings.data_root, **settings.reading, both_classes=False), settings)
    if digest:
        with contextlib.suppress(DataError):  # what cannot be split is no copy
            as_trained = _split(samples, settings)
            if data_digest(as_trained) == digest:
                return as_trained
    tests = samples["split"].isna() | samples["split"].isin(TEST_SPLITS)
    if not tests.any():
        there = ", ".join(f"{count} in {name}" for name, count in samples["split"].value_counts().items())
        advice = "put the pictures to be judged into images/test, or leave the folders of splits out"
        raise DataError(f"{settings.data_root}: no picture is in a test split ({there}); {advice}")
    return samples[tests].assign(split=samples["split"].fillna("test")).reset_index(drop=True)


def _split(samples: pd.DataFrame, settings: RunSettings) -> pd.DataFrame:
    val_ratio, test_ratio, seed = settings.val_ratio, settings.test_ratio, settings.seed_of_split
    return split_samples(samples, val_ratio=val_ratio, test_ratio=test_ratio, seed=seed)


class GainDataModule(L.LightningDataModule):
    """Loaders of all splits over one table of samples, read as the settings say where none is given."""

    def __init__(self, settings: Settings, samples: pd.DataFrame | None = None) -> None:
        super().__init__()
        self.settings = settings
        self._given = build_samples(settings) if samples is None else samples.reset_index(drop=True)

    @cached_property
    def digest(self) -> str:
        """`data_digest` of the table that the module was made of: by it a run knows its data again."""
        return data_digest(self._given)

    @cached_property
    def dataset(self) -> SampleDataset:
        """All samples by row; decodes them at first use."""
        return SampleDataset(self._given, self.settings)

    @property
    def samples(self) -> pd.DataFrame:
        """The table of `Batch.index`; after `setup` without unreadable rows, and masks empty or beyond `mask_share`."""
        return self.dataset.samples if "dataset" in self.__dict__ else self._given

    @property
    def class_counts(self) -> tuple[int, int]:
        """Normal and defective images that training shows."""
        labels = self.dataset.labels[self.shown_rows]
        return int((labels == 0).sum()), int((labels == 1).sum())

    def setup(self, stage: str | None = None) -> None:
        """Decode every file once. `DataError` for bad files, a class too few, or pictures that cannot be edited."""
        if stage != "fit":
            _ = self.dataset
        elif 0 in (counts := self.class_counts):
            having = "defective images" + " with a mask, which crop_size asks for" * bool(self.settings.crop_size)
            raise DataError(f"the training split has {counts[0]} normal and {counts[1]} {having}; needs both")
        else:
            self._check_masks()
            _ = self.counterfactuals

    def _check_masks(self) -> None:
        """`DataError` where the strategy learns from masks and none is in use, unless that was asked for."""
        its, samples = self.settings, self.samples
        # That of normal attention asks normal pictures alone.
        weights = {term: weight for term, weight in its.weights.items() if term not in ("cls", "am") and weight > 0}
        train = samples["split"] == "train"
        if not weights or its.allow_no_masks or its.mask_share == 0 or samples.loc[train, "mask"].notna().any():
            return
        given = self._given[(self._given["split"] == "train") & (self._given["label"] == 1)]
        files, defects = int(given["mask"].notna().sum()), len(given)
        why = f"{defects - files} have no mask file, and {files} masks hold no defect pixel"
        told = f"strategy {its.strategy} learns from defect masks ({', '.join(weights)}), and none is in use"
        asked = "allow_no_masks: true" + " and image_counterfactual: 0" * (its.image_counterfactual > 0)
        advice = f"see gainmtl data check {its.data_root}; {asked} trains the classification alone"
        advice += told_unused(Path(its.dataset_folder)) if its.label_kind == "mask" else ""
        raise DataError(f"{told}: of {defects} defective training images {why}; {advice}")

    @cached_property
    def counterfactuals(self) -> ImageCounterfactuals | None:
        """The edits of training pictures, tried on some of them; None where `image_counterfactual` is 0."""
        dataset, share = self.dataset, self.settings.image_counterfactual
        if share > 0:
            from gainmtl_lib.edits.counterfactuals import ImageCounterfactuals  # a kit, for S7 and S8

            seed = self.settings.seed
            dataset.counterfactuals = ImageCounterfactuals(dataset, self.shown_rows, share=share, seed=seed)
            dataset.counterfactuals.check()
        return dataset.counterfactuals

    def rows(self, split: str) -> list[int]:
        """Rows of one split, ascending; `DataError` if there are none."""
        splits = self.dataset.samples["split"]
        if not (splits == split).any():
            raise DataError(f"no image is in split '{split}'; the data has {', '.join(splits.unique())}")
        return np.flatnonzero(splits == split).tolist()

    @property
    def shown_rows(self) -> list[int]:
        """Training rows; with `crop_size` without defects that have no mask, of which no crop's label is known."""
        rows, dataset = self.rows("train"), self.dataset
        if self.settings.crop_size is None:
            return rows
        return [row for row in rows if dataset.has_mask[row] or not dataset.labels[row]]

    def training_masks(self) -> Iterator[tuple[int, Tensor]]:
        """Row and mask, float32 (1, H, W) of 0 and 1, of each annotated training image, not augmented.

        With `crop_size` these and the pasted ones are of one crop each, drawn as in training.
        """
        for row in self.rows("train"):
            if self.dataset.has_mask[row] and (whole := self.dataset.stored(row).mask) is not None:
                yield from ((row, mask) for mask in self._as_cropped(whole, row))

    def pasted_masks(self) -> Iterator[Tensor]:
        """Masks of defects pasted in training, float32 (1, H, W), as many as `ImageCounterfactuals` finds apt."""
        pasted = () if self.counterfactuals is None else self.counterfactuals.pasted_masks()
        for number, mask in enumerate(pasted, start=len(self.dataset)):
            yield from self._as_cropped(mask, number)

    def _as_cropped(self, mask: NDArray[Any], number: int) -> Iterator[Tensor]:
        """The mask itself, or what the first crop that shows the defect shows of it; nothing where none of 20 does."""
        if (size := self.settings.crop_size) is not None:
            rng = np.random.default_rng([self.settings.seed, number, STREAM])
            tries = (cropped(size, mask.shape, mask, rng)[1] for _ in range(20))
            mask = next((part for part in tries if part is not None), mask[:0])
        if mask.size:
            yield torch.from_numpy(mask)[None].float()

    def external_masks(self, split: str, folder: Path) -> Tensor:
        """Masks in [0, 1] from another folder, not binarised: (N, 1, H, W), in the order of `loader(split)`.

        A mask has the path of its image below the images' common folder, or only its name, as `Scan.matched` finds
        it. `DataError` where one is missing, ambiguous, or of another aspect ratio than its image.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; external_mask_dir holds one mask per image")
        images, size = [Path(self.dataset.paths[row]) for row in self.rows(split)], self.settings.image_size
        base = Path(os.path.commonpath([image.parent for image in images]))
        below, stems = [key_of(image, base) for image in images], [key_of(image, image.parent) for image in images]
        scan = Scan(folder, self.settings.mask_suffix)
        by_path, by_name = (scan.matched(dict(zip(keys, images)), folder)[0] for keys in (below, stems))
        raise_errors(scan.findings)
        masks, count = torch.zeros((len(images), 1, *size)), Counter(stems)
        for mask, image, path, name in zip(masks, images, below, stems):
            file = by_path.get(path) or by_name.get(name)
            if file is None:
                raise DataError(f"{folder}: has no mask for {image}; expected {path}.png or {name}.png")
            if path not in by_path and count[name] > 1:
                advice = f"put their masks in subfolders, as {path}.png"
                raise DataError(f"{file}: several images have the stem {name}; {advice}")
            values, (height, width, _) = read_soft_mask(file), read_image(image).shape
            labels.check_aspect(file, values.shape, image, shape := (height, width))
            mask[0] = torch.from_numpy(labels.resize_values(values, size, self.settings.resize, image_size=shape))
        return masks

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, edited, augmented. A last batch of a single image is dropped: batch norm needs two.

        Of several processes each loads its part of every batch, as from `val_dataloader`.
        """
        _ = self.counterfactuals  # in place before workers copy the dataset
        sampler, batch_size = EpochSampler(self.shown_rows, seed=self.settings.seed), self.settings.batch_size
        drop_last = batch_size > 1 and len(sampler) % batch_size == 1
        return self._loader(sampler, batch_size=batch_size, drop_last=drop_last, shared=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split in order, as it is."""
        return self._loader(self.rows("val"), batch_size=self._judged_at_once, shared=True)

    def loader(self, split: str) -> DataLoader[Batch]:
        """Any split in the order of rows, without augmentation; `DataError` if it is empty."""
        return self._loader(self.rows(split), batch_size=self._judged_at_once)

    @property
    def _judged_at_once(self) -> int:
        """Whole pictures at once outside training: with tiles no more pixels than a batch of those has."""
        its = self.settings
        tile, whole = math.prod(its.tile_size or its.image_size), math.prod(its.image_size)
        return max(1, its.batch_size * min(tile, whole) // whole)

    def _loader(
        self, sampler: Sampler | Sequence[int], *, batch_size: int, drop_last: bool = False, shared: bool = False
    ) -> DataLoader[Batch]:
        its, several = self.settings, shared and processes.count() > 1
        dataset = processes.Shared(self.dataset) if several else self.dataset
        return whole_batches(dataset, sampler, batch_size, its.num_workers, its.seed, drop_last=drop_last)


build_data = GainDataModule


class EpochSampler(Sampler[tuple[int, int]]):
    """Rows in an order drawn from (seed, epoch), each with the epoch, so that workers know it too."""

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


def whole_batches(
    dataset: Dataset[Any], sampler: Iterable[Any], batch_size: int, num_workers: int, seed: int, drop_last: bool = False
) -> DataLoader[Any]:
    """A loader over a dataset that makes each batch at once (``__getitems__``), keys in the order of `sampler`."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=num_workers,
        collate_fn=default_convert,  # leaves tensors as they are
        worker_init_fn=_one_thread,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own, so that making an iterator draws nothing from the model's random numbers.
        generator=torch.Generator().manual_seed(seed),
    )


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)


# --- Samples by row

Key = int | tuple[int, int]  # a row, or (epoch, row) for the row as that epoch edits and augments it


class Picture(NamedTuple):
    """One decoded sample at the network's size."""

    image: NDArray[np.uint8]  # (H, W, 3)
    mask: NDArray[np.uint8] | None  # (H, W) of 0 and 1; None when it is missing or empty
    place: Place = (slice(None), slice(None))  # rows and columns between the bars of a letterboxed picture

    @property
    def without_bars(self) -> tuple[NDArray[np.uint8], Mask]:
        """The picture itself (h, w, 3), and its defect pixels (h, w): none without a mask."""
        mask = np.zeros(self.image.shape[:2]) if self.mask is None else self.mask
        return self.image[self.place], mask[self.place].astype(np.bool_)


def load_picture(image: str, mask: str | None, *, image_size: tuple[int, int], resize: Resize) -> Picture:
    """Decode one sample and bring it to the network's input size.

    `UnreadableError` where a file cannot be decoded, `DataError` where the mask has another aspect ratio.
    """
    pixels, plane = read_image(image), None
    size = (pixels.shape[0], pixels.shape[1])
    if mask is not None:
        defect = labels.mask_of(image, mask, size)
        if defect.any():
            plane = labels.resize_mask(defect, image_size, resize, image_size=size).astype(np.uint8)
    return Picture(labels.resize_image(pixels, image_size, resize), plane, labels.inside(size, image_size, resize))


def _fits_memory(samples: pd.DataFrame, image_size: tuple[int, int]) -> bool:
    """Whether half of the free memory holds all pictures decoded; a line where it does not."""
    needed = image_size[0] * image_size[1] * (3 * len(samples) + int(samples["mask"].notna().sum()))
    needed *= Launch.found().on_node * int(os.environ.get(SIDE_BY_SIDE, 1))  # each process keeps its own
    free = min(psutil.virtual_memory().available, _left_to_the_group())
    if needed > free / 2:
        told = "%.0f MB of decoded pictures are more than half of the %.0f MB that are free: they are decoded each time"
        logger.warning(told, needed / 2**20, free / 2**20)
    return needed <= free / 2


def _left_to_the_group(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that a container, or a job of SLURM, may take besides those that it has; infinite without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            return int((folder / limit).read_text()) - int((folder / used).read_text())
    return math.inf


class SampleDataset(Dataset[Batch]):
    """Samples by row, decoded once. Whole batches are made at once, so that the step to float happens once a batch.

    `samples` are the rows that can be used, `mask` None where it is given up (`with_mask_share`) or holds no defect
    pixel. Keys that name an epoch are edited by `counterfactuals` if there are any, then augmented. Cached pixels take
    4 H W bytes a sample with a mask, 3 H W without; where the memory cannot hold them, they are decoded anew each time.
    `DataError` names all files that cannot be decoded or do not fit.
    """

    def __init__(self, samples: pd.DataFrame, settings: RunSettings) -> None:
        self.settings = settings
        self._load = partial(load_picture, image_size=settings.image_size, resize=settings.resize)
        training = settings if isinstance(settings, Settings) else None  # EfficientAD shows every picture as it is
        self.augmentation = Augmentation(training) if training else None
        self.mask_quality = training.mask_quality if training else "exact"
        self.counterfactuals: ImageCounterfactuals | None = None
        self.counting = True  # in training; of pictures that several processes show all but one do not
        self.count_anew()
        self._cache = settings.cache_images and _fits_memory(samples, settings.image_size)
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # decoding releases the interpreter lock
            results = pool.map(self._decode, samples["image"], samples["mask"])
            decoded = list(counted(results, len(samples), "decoded images", log=logger))
        settle([finding for *_, finding in decoded if finding is not None], None)
        kept = [row for row, (place, *_) in enumerate(decoded) if place is not None]
        self.places, self.cached, areas, empty = zip(*(decoded[row] for row in kept)) if kept else ((), (), (), ())
        self._check_areas(areas, samples["mask"].iloc[kept].tolist())
        samples = samples.iloc[kept].reset_index(drop=True)
        most = COVERS_MOST if settings.mask_marks == "auto" else 1.0
        masks = [None if gone or area > most else mask for mask, gone, area in zip(samples["mask"], empty, areas)]
        samples, share = samples.assign(mask=pd.Series(masks, dtype=object)), training.mask_share if training else 1.0
        self.samples = with_mask_share(samples, share, seed=settings.seed_of_split)
        self.in_training = (self.samples["split"] == "train").to_numpy(dtype=bool)
        self.paths, self.labels = self.samples["image"].tolist(), torch.tensor(self.samples["label"].to_numpy())
        self.has_mask = torch.tensor(self.samples["mask"].notna().to_numpy(dtype=bool))

    def count_anew(self) -> None:
        """Forget which pictures were shown in training."""
        # By label, and of these the edited ones; a row for each process that makes batches.
        self.shown = torch.zeros((self.settings.num_workers + 1, 2, 2), dtype=torch.int64).share_memory_()

    def _check_areas(self, areas: Sequence[float], masks: Sequence[str | None]) -> None:
        """`DataError` where most masks mark most of their picture, as inverted ones do; a line where some do."""
        marked = [area for area in areas if area > 0]
        covering = [mask for area, mask in zip(areas, masks) if area > COVERS_MOST]
        if not covering:
            return
        told = f"{len(covering)} of {len(marked)} masks mark more than half of their picture, such as {covering[0]}"
        if len(covering) > len(marked) / 2 and self.settings.mask_marks == "auto":
            advice = "set mask_marks: background if they mark the good surface, mask_marks: defect if they are right"
            raise DataError(f"{told}; {advice}")
        unused = (
            "they are left out of training and of the scores of agreement; mask_marks: defect takes them as they are"
        )
        kept = "they are left out of the scores of agreement"
        logger.warning("%s; %s", told, unused if self.settings.mask_marks == "auto" else kept)

    def _decode(self, image: str, mask: str | None) -> tuple[Place | None, Picture | None, float, Finding | None]:
        """Place of a sample, None where it is left out; the picture, where pixels are kept; its mask's share of it;
        what is wrong with it."""
        try:
            picture = self._load(image, mask)
        except UnreadableError as error:
            if self.settings.skip_unreadable:
                return None, None, 0.0, Finding("warning", "", f"left out: {error}")
            return None, None, 0.0, Finding("error", "", f"{error}, or leave it out with skip_unreadable: true")
        except DataError as error:
            return None, None, 0.0, Finding("error", "", str(error))
        area = float(picture.without_bars[1].mean())
        if area > COVERS_MOST and self.settings.mask_marks == "auto":  # perhaps inverted: says nothing of where
            return picture.place, picture._replace(mask=None) if self._cache else None, area, None
        empty = Finding("warning", mask or "", "mask holds no defect pixel; treated as missing", "empty masks")
        lost = mask is not None and picture.mask is None
        return picture.place, picture if self._cache else None, area, empty if lost else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """PyTorch's loaders call this instead of collecting single items."""
        images, masks, classes, rows = zip(*map(self._shown, keys))
        planes = torch.zeros((len(keys), 1, *images[0].shape[:2]))
        for plane, mask in zip(planes, masks):
            if mask is not None:
                plane[0] = torch.from_numpy(mask)
        # (B, H, W, 3) -> (B, 3, H, W) as a view: the memory stays channels-last, which convolutions like best.
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(torch.float32).div_(255)
        has_mask = torch.tensor([mask is not None for mask in masks])
        return Batch(pixels, torch.tensor(classes), planes, has_mask, torch.tensor(rows))

    def _shown(self, key: Key) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, int, int]:
        """Pixels and mask as in `Picture`, the label there, and the row of the picture that is shown."""
        epoch, row = (None, key) if isinstance(key, int) else key
        drawn = None if epoch is None or self.counterfactuals is None else self.counterfactuals.draw(epoch, row)
        if drawn is None or drawn.edit is None:
            (image, mask, _), label, shown = self.stored(row), int(self.labels[row]), row
        else:
            image, label, shown = drawn.edit.image, drawn.edit.label, drawn.row
            mask = drawn.edit.mask.astype(np.uint8) if drawn.edit.mask.any() else None
        if epoch is not None and self.augmentation is not None:
            # By the position's row: a picture that takes the turn of several is augmented differently each time.
            plane = np.zeros(self.settings.image_size, dtype=np.uint8) if mask is None else mask
            image, plane = self.augmentation(image, plane, epoch=epoch, index=row)
            mask = None if mask is None else plane
            if (size := self.augmentation.crop_size) is not None:
                rng = np.random.default_rng([self.augmentation.seed, epoch, row, STREAM])
                window, mask = cropped(size, image.shape[:2], mask, rng)
                image, label = image[window], int(mask is not None)
        if epoch is not None and self.counting:
            worker = get_worker_info()
            edited = drawn is not None and drawn.edit is not None
            self.shown[0 if worker is None else worker.id + 1, label] += torch.tensor([1, int(edited)])
        return image, mask, label, shown

    def stored(self, row: int) -> Picture:
        """The picture of a row, neither edited nor augmented, with the mask that training uses, off the bars."""
        picture = self.cached[row] or self._load(self.paths[row], self.samples["mask"].iloc[row])
        if not self.has_mask[row]:
            picture = picture._replace(mask=None)
        if picture.mask is None or self.mask_quality == "exact" or not self.in_training[row]:
            return picture
        rng = np.random.default_rng([self.settings.seed_of_split, row, STREAM])
        mask = np.zeros_like(picture.mask)
        mask[picture.place] = coarser_mask(picture.without_bars[1], self.mask_quality, rng)
        return picture._replace(mask=mask)


class Augmentation:
    """The method document's flips, quarter turns, colour jitter and noise (§7.2), the same for image and mask.

    Each sample draws from a generator of its own (seed, epoch, index): which worker makes it, and what was made before,
    changes nothing. Inputs that are not square keep their shape: they are turned by 180° instead.
    """

    def __init__(self, settings: Settings) -> None:
        self.seed, self.crop_size, turned = settings.seed, settings.crop_size, settings.rotate90_prob
        half_turn = A.Sequential([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=turned)
        steps = [
            A.HorizontalFlip(p=settings.hflip_prob),
            A.VerticalFlip(p=settings.vflip_prob),
            A.RandomRotate90(p=turned) if len(set(settings.image_size)) == 1 else half_turn,
            A.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (-0.05, 0.05), p=settings.color_jitter_prob),
            A.GaussNoise(std_range=(0.01, 0.05), p=settings.gaussian_noise_prob),
        ]
        self.transform = A.Compose(steps)

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], *, epoch: int, index: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Shape: (H, W, 3), (H, W) -> the same."""
        rng = np.random.default_rng([self.seed, epoch, index])
        # Not set_random_seed, which builds two generators for every transform of the list: four times as slow.
        self.transform.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        result = self.transform(image=image, mask=mask)
        return result["image"], result["mask"]


VISIBLE = 4  # pixels of a defect, at the network's size, that make a crop of it defective


def cropped(
    size: tuple[int, int], picture: tuple[int, int], mask: NDArray[np.uint8] | None, rng: np.random.Generator
) -> tuple[Place, NDArray[np.uint8] | None]:
    """A random window of a picture (h, w), and its part of the mask: None, a normal crop, for less than `VISIBLE`.

    Half of a defective's windows hold one of its defect's pixels, drawn at random, the others lie anywhere.
    """
    height, width = (whole - own for own, whole in zip(size, picture))  # the last place of a window
    top, left = int(rng.integers(height + 1)), int(rng.integers(width + 1))
    if mask is not None and rng.random() < 0.5:
        y, x = rng.choice(np.argwhere(mask)) - rng.integers(size)
        top, left = int(np.clip(y, 0, height)), int(np.clip(x, 0, width))
    window = slice(top, top + size[0]), slice(left, left + size[1])
    if mask is None or mask[window].sum() < min(VISIBLE, mask.sum()):
        return window, None
    return window, mask[window]


# --- Fewer and coarser training masks, to learn what annotation is worth

STREAM = 11  # sets these draws apart from others of the same seed; not 0: NumPy takes the seeds [7] and [7, 0] for one


def with_mask_share(samples: pd.DataFrame, share: float, *, seed: int) -> pd.DataFrame:
    """The table in which only a share of the training defects keeps its masks; the others have none.

    Shares of one seed are nested, and about the same in each defect type. At least one stays, unless `share` is 0.
    """
    annotated = samples[(samples["split"] == "train") & (samples["label"] == 1) & samples["mask"].notna()]
    mixed = annotated.iloc[np.random.default_rng([seed, STREAM]).permutation(len(annotated))]
    of_type = mixed.groupby("defect_type")["label"]
    passed = (of_type.cumcount() + 0.5) / of_type.transform("size")  # share of its type that comes before an item
    given_up = passed.sort_values(kind="stable").index[max(int(share > 0), round(share * len(mixed))) :]
    return samples.assign(mask=samples["mask"].where(~samples.index.isin(given_up), None))


def coarser_mask(mask: Mask, quality: str, rng: np.random.Generator) -> Mask:
    """A mask as a hastier annotator would have drawn it, (h, w); never empty where `mask` is not.

    ``box``: the filled bounding box of each connected piece; boxes that overlap or touch are merged into one.
    ``dilated``: each piece grown by half its own size (the side of a square of its area): a square becomes four times
    as large. ``shifted``: the whole mask moved by the size of its largest piece in a random direction, so that the mask
    of a compact defect lies beside it; by half of that, a quarter, … where most of it would leave the picture.
    """
    if quality == "exact" or not mask.any():
        return mask
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    result = mask.copy()
    if quality == "box":
        for left, top, width, height, _ in stats[1:]:
            result[top : top + height, left : left + width] = True
        return result if np.array_equal(result, mask) else coarser_mask(result, quality, rng)  # boxes that meet
    if quality == "dilated":
        for piece in range(1, count):
            apart = cv2.distanceTransform((pieces != piece).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            result |= apart <= max(1.0, np.sqrt((pieces == piece).sum()) / 2)
        return result
    distance = np.sqrt(stats[1:, cv2.CC_STAT_AREA].max())
    while True:
        for angle in rng.uniform(0, 2 * np.pi, size=8):
            offset = round(distance * np.sin(angle)), round(distance * np.cos(angle))
            moved = ndimage.shift(mask, offset, order=0)  # what leaves the picture is lost
            if moved.sum() >= mask.sum() / 2:
                return moved.astype(np.bool_)
        distance /= 2
