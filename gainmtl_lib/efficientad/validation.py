"""EfficientAD's validation: the scale of its maps from normal images, then how well they tell anomalies.

B images, H x W pixels, h x w cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from gainmtl_lib.efficientad.model import EfficientADModel, LocalMaps
from gainmtl_lib.efficientad.statistics import MapQuantiles
from gainmtl_lib.models.weights import ModelError
from gainmtl_lib.pixel_metrics import PixelAuroc
from gainmtl_lib.records import Batch


class Scores(NamedTuple):
    """What decides which checkpoint is the best, in this order.

    Attributes:
        image_auroc: of the anomaly scores.
        pixel_auroc: of the anomaly maps; NaN without an annotated anomaly.
    """

    image_auroc: float
    pixel_auroc: float


class _Seen(NamedTuple):
    maps: LocalMaps  # (B, 1, h, w) each, float32 on the CPU
    labels: Tensor  # (B,)
    masks: Tensor  # bool (B, 1, H, W)
    answered: Tensor  # bool (B,): normal, or with a mask


class Validation:
    """One pass over the validation images.

    Their maps are held until the last is seen, because the scale of all of them comes from the normal ones: h x w
    values twice and H x W bytes an image.

    Args:
        seed: of the sample that quantiles are taken from.
    """

    def __init__(self, *, seed: int) -> None:
        self._seen: list[_Seen] = []
        self._quantiles = MapQuantiles(seed=seed)

    def update(self, maps: LocalMaps, batch: Batch) -> None:
        """Note a batch's maps, (B, 1, h, w) each, on any device."""
        held = LocalMaps(*(one.float().cpu() for one in maps))
        labels = batch.labels.cpu()
        self._seen.append(_Seen(held, labels, batch.masks.cpu() > 0.5, (labels == 0) | batch.has_mask.cpu()))
        normal = labels == 0
        if normal.any():
            self._quantiles.update(LocalMaps(*(one[normal] for one in held)))

    def finish(self, model: EfficientADModel) -> Scores:
        """Set the model's quantiles, and score the anomaly maps that follow from them.

        Raises:
            ModelError: see `EfficientADModel.set_quantiles`; or a map of an anomalous image is not finite.
        """
        model.set_quantiles(self._quantiles.compute(), images=self._quantiles.images)
        pixels, scores = PixelAuroc(sync_on_compute=False), []
        for seen in self._seen:
            height, width = seen.masks.shape[-2:]
            device = model.quantiles.device
            output = model.finish(LocalMaps(*(one.to(device) for one in seen.maps)), (height, width))
            if not bool(torch.isfinite(output.score).all()):
                raise ModelError("an anomalous validation image has a map that is not finite; try precision '32'")
            pixels.update(output.anomaly_map[seen.answered.to(device)].cpu(), seen.masks[seen.answered].float())
            scores.append(output.score.cpu())
        labels = torch.cat([seen.labels for seen in self._seen]).numpy()
        image_auroc = float(roc_auc_score(labels, torch.cat(scores).double().numpy()))
        return Scores(image_auroc, float(pixels.compute()))
