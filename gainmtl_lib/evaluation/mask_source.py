"""Where the mask of S6's attention comes from when pictures are evaluated or drawn.

Sizes: B pictures of a batch, N of a split, H x W network input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.evaluation.anomalies import AnomalyMasks
from gainmtl_lib.evaluation.other_masks import OtherMasks
from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.records import Batch
from gainmtl_lib.runs import RunError
from gainmtl_lib.settings import Settings

PLACES = {
    "external": ("external_mask_dir", "the folder with one mask per image"),
    "efficientad": ("efficientad_run", "the folder of a finished EfficientAD run"),
}
"""Sources that come from somewhere: the parameter that says where, and what is there."""


class MaskSource:
    """What the attention of one model is given.

    Args:
        name: localization, efficientad, external, none, other or oracle; None where the strategy's attention takes no
            mask.
        place: of `external` the folder with one mask per image, of `efficientad` that of the run.
    """

    def __init__(self, name: str | None, place: Path | None = None) -> None:
        self.name, self.place = name, place
        self._outside: FolderMasks | AnomalyMasks | OtherMasks | None = OtherMasks() if name == "other" else None
        if name in PLACES:
            assert place is not None  # `of` saw to it
            self._outside = FolderMasks(place) if name == "external" else AnomalyMasks(place)

    @classmethod
    def of(
        cls,
        model_or_settings: GAINMTLModel | Settings,
        name: str | None = None,
        folder: Path | None = None,
        efficientad_run: Path | None = None,
    ) -> MaskSource:
        """The source of a model, or of a run's settings, which know their places.

        Args:
            model_or_settings: say the strategy, and the source where none is asked for.
            name: in place of their own.
            folder: of `external`, in place of the settings' own.
            efficientad_run: of `efficientad`, in place of the settings' own.

        Raises:
            RunError: a source for another strategy than S6, one without its place, or a place without its source.
        """
        strategy, own = model_or_settings.strategy, model_or_settings.mask_source
        if name is not None and strategy != "S6":
            raise RunError(f"mask_source is for strategy S6; this model is {strategy}, whose attention takes no mask")
        source = (name or own) if strategy == "S6" else None
        given = {"external": folder, "efficientad": efficientad_run}
        for other, place in given.items():
            if place is not None and other != source:
                got = "whose attention takes no mask" if source is None else f"and mask_source is '{source}'"
                raise RunError(
                    f"{PLACES[other][0]} is for mask_source '{other}'; this model is {strategy}, {got}: "
                    f"give mask_source '{other}' too, or leave the folder out"
                )
        if source not in PLACES:
            return cls(source)
        parameter, what = PLACES[source]
        place = given[source] or getattr(model_or_settings, parameter, None)
        if place is None:
            raise RunError(f"mask_source '{source}' needs {parameter}, {what}")
        return cls(source, place)

    @property
    def leaks(self) -> bool:
        """Whether the model is told the ground truth."""
        return self.name == "oracle"

    @property
    def summary(self) -> dict[str, Any]:
        """What must stand beside every result: ``mask_source``, ``label_leaks``, and of `efficientad` the run that the
        masks are from and its ``teacher``.
        """
        told = {"mask_source": self.name, "label_leaks": self.leaks}
        if isinstance(self._outside, AnomalyMasks):
            told |= {"efficientad_run": str(self.place), "teacher": self._outside.run.teacher}
        return told

    @contextmanager
    def applied(self, model: GAINMTLModel) -> Iterator[None]:
        """Lets the model use this source; it comes back with its own."""
        own = model.mask_source
        model.mask_source = self.name or own
        try:
            yield
        finally:
            model.mask_source = own

    def masks(self, data: GainDataModule, batch: Batch) -> Tensor | None:
        """What to give as ``attention_masks``, (B, 1, H, W) in [0, 1]; None where the model finds its own or none.

        Raises:
            DataError: masks from outside or of other pictures that are missing or do not fit, or pictures that cannot
                be read.
            RunError: an EfficientAD run that cannot be used here.
        """
        if self.leaks:
            return batch.masks
        return None if self._outside is None else self._outside.masks(data, batch)


class FolderMasks:
    """Masks from a folder, one file per image.

    Args:
        folder: see `load_external_masks`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: tuple[GainDataModule, str, dict[int, Tensor]] | None = None

    def masks(self, data: GainDataModule, batch: Batch) -> Tensor:
        """Masks of a batch's pictures, (B, 1, H, W) in [0, 1]."""
        return torch.stack([self._mask(data, row) for row in batch.index.tolist()]).to(batch.masks)

    def _mask(self, data: GainDataModule, row: int) -> Tensor:
        """Of one split at a time, because which file belongs to a picture shows among the whole split only."""
        split = str(data.samples.loc[row, "split"])
        if self._loaded is None or self._loaded[0] is not data or self._loaded[1] != split:
            self._loaded = None  # two splits of masks need not fit into memory
            masks = data.external_masks(split, self.folder)  # (N, 1, H, W)
            self._loaded = data, split, dict(zip(data.rows(split), masks, strict=True))
        return self._loaded[2][row]
