"""Scores of all pictures of a split taken as one, where large defects weigh more, and AUPRO: batch by batch.

PointGame and pixel accuracy are left out: pooled they are their mean.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gainmtl_lib.metrics import CamIoU, Dice, EnergyInside, GridIoU, LocalizationIoU, PerImageMean
from gainmtl_lib.pixel_metrics import Aupro
from gainmtl_lib.records import Batch, GainOutput


class PooledScores:
    """Of one split. Nothing of a picture is kept, so that a split of any size fits into memory."""

    def __init__(self) -> None:
        self._ratios: dict[str, PerImageMean] = {}
        self._aupro: Aupro | None = None

    def update(self, batch: Batch, output: GainOutput) -> None:
        """Take one batch. The attention is scored as the heads say it, without S6's mask."""
        self._add(CamIoU, "cam_iou", output.cam, batch)
        self._add(GridIoU, "grid_iou", output.cam, batch)
        self._add(EnergyInside, "energy_inside", output.cam, batch)
        self._add(CamIoU, "attention_iou", output.attention_map, batch)
        self._add(EnergyInside, "attention_energy_inside", output.attention_map, batch)
        self._add(LocalizationIoU, "loc_iou", output.localization_map, batch)
        self._add(Dice, "loc_dice", output.localization_map, batch)
        if output.localization_map is not None:
            # A defective image without an annotation has no known normal pixels, so AUPRO leaves it out.
            known = batch.has_mask | (batch.labels == 0)
            self._aupro = self._aupro or Aupro()
            self._aupro.update(output.localization_map[known], batch.masks[known])

    def compute(self) -> dict[str, float]:
        """``<score>_pooled`` of every score that the strategy has, and ``loc_aupro``; NaN without an answer."""
        scores = {f"{name}_pooled": float(metric.pooled()) for name, metric in self._ratios.items()}
        return scores if self._aupro is None else scores | {"loc_aupro": float(self._aupro.compute())}

    def _add(self, kind: Callable[[], PerImageMean], name: str, maps: Tensor | None, batch: Batch) -> None:
        if maps is None:
            return
        if name not in self._ratios:
            self._ratios[name] = kind().to(maps.device)
        self._ratios[name].update(maps[batch.has_mask], batch.masks[batch.has_mask])  # others have no answer
