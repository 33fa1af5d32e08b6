"""Where the mask of S6's attention comes from when pictures are evaluated or drawn.

Sizes: B pictures of a batch, N of a split, H x W network input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from gainmtl_lib.data.datamodule import GainDataModule
from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.records import Batch
from gainmtl_lib.runs import RunError
from gainmtl_lib.settings import Settings


class MaskSource:
    """What the attention of one model is given.

    Args:
        name: localization, external, none or oracle; None where the strategy's attention takes no mask.
        folder: of `external`, one mask per image.
    """

    def __init__(self, name: str | None, folder: Path | None = None) -> None:
        self.name, self.folder = name, folder
        self._loaded: tuple[GainDataModule, str, dict[int, Tensor]] | None = None

    @classmethod
    def of(
        cls, model_or_settings: GAINMTLModel | Settings, name: str | None = None, folder: Path | None = None
    ) -> MaskSource:
        """The source of a model, or of a run's settings, which know their folder of masks.

        Args:
            model_or_settings: say the strategy, and the source where none is asked for.
            name: in place of their own.
            folder: in place of the settings' own.

        Raises:
            RunError: a source for another strategy than S6, `external` without a folder, or a folder without it.
        """
        strategy, own = model_or_settings.strategy, model_or_settings.mask_source
        if name is not None and strategy != "S6":
            raise RunError(f"mask_source is for strategy S6; this model is {strategy}, whose attention takes no mask")
        source = (name or own) if strategy == "S6" else None
        if folder is not None and source != "external":
            got = "whose attention takes no mask" if source is None else f"and mask_source is '{source}'"
            raise RunError(
                f"external_mask_dir is for mask_source 'external'; this model is {strategy}, {got}: "
                "give mask_source 'external' too, or leave the folder out"
            )
        if source == "external" and folder is None:
            folder = getattr(model_or_settings, "external_mask_dir", None)
            if folder is None:
                raise RunError("mask_source 'external' needs external_mask_dir, the folder with one mask per image")
        return cls(source, folder if source == "external" else None)

    @property
    def leaks(self) -> bool:
        """Whether the model is told the ground truth."""
        return self.name == "oracle"

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
            DataError: masks from outside that are missing or do not fit.
        """
        if self.name == "oracle":
            return batch.masks
        if self.name != "external":
            return None
        return torch.stack([self._external(data, row) for row in batch.index.tolist()]).to(batch.masks)

    def _external(self, data: GainDataModule, row: int) -> Tensor:
        """Of one split at a time, because which file belongs to a picture shows among the whole split only."""
        assert self.folder is not None  # `of` saw to it
        split = str(data.samples.loc[row, "split"])
        if self._loaded is None or self._loaded[0] is not data or self._loaded[1] != split:
            self._loaded = None  # two splits of masks need not fit into memory
            masks = data.external_masks(split, self.folder)  # (N, 1, H, W)
            self._loaded = data, split, dict(zip(data.rows(split), masks, strict=True))
        return self._loaded[2][row]
