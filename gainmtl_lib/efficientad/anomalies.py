"""Anomalies synthesised on copies of normal pictures: a validation set with both classes and without a real defect.

H x W network input. A region is the part of it that a picture fills: all but a letterbox's bars.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch.utils.data import Dataset

from gainmtl_lib.data import surfaces
from gainmtl_lib.data.synthetic import visible_defect
from gainmtl_lib.records import Batch

Image = NDArray[np.uint8]
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
_STREAM = 40
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
    return KINDS[np.random.default_rng([seed, round_, _STREAM + 2]).permutation(len(KINDS))[turn]]


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
    rng, kind = np.random.default_rng([seed, index, _STREAM]), kind_of(index, seed=seed)
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
        steps = np.random.default_rng([self.seed, place, _STREAM + 1]).integers(1, max(2, len(self.pictures)))
        chosen = (place + int(steps)) % len(self.pictures)
        picture = self.pictures[chosen]
        return picture if self.regions is None else picture[self.regions[chosen]]
