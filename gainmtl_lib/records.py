"""The records that travel between data, model and training.

Sizes: B images, H x W network input, h x w feature grid (H / map_stride).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

from torch import Tensor


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


@dataclass
class GainOutput:
    """What the model says; readable by attribute and by key. Fields the strategy lacks are None.

    Attributes:
        logits: the strategy's decision, (B, 2): `cls_logits` for S1-S2, `attended_cls_logits` from S3 on.
        cam: class activation map of the deciding head, (B, 1, h, w), unbounded margin.
        cls_logits: path 1, (B, 2).
        cls_cam: CAM of path 1, (B, 1, h, w).
        attended_cls_logits: path 2, (B, 2).
        attention_logits: (B, 1, h, w), mining averaged in.
        attention_map: sigmoid of `attention_logits`.
        effective_attention: what gates the features: `attention_map`, in S6 its fusion with the mask.
        cf_logits: decision with the defect suppressed, (B, 2); needs masks.
        localization_logits: (B, 1, H, W).
        localization_map: sigmoid of `localization_logits`.
    """

    logits: Tensor
    cam: Tensor
    cls_logits: Tensor
    cls_cam: Tensor
    attended_cls_logits: Tensor | None = None
    attention_logits: Tensor | None = None
    attention_map: Tensor | None = None
    effective_attention: Tensor | None = None
    cf_logits: Tensor | None = None
    localization_logits: Tensor | None = None
    localization_map: Tensor | None = None

    def __getitem__(self, key: str) -> Tensor | None:
        if key not in self.keys():
            raise KeyError(f"no output '{key}'; there are {', '.join(self.keys())}")
        return getattr(self, key)

    def keys(self) -> list[str]:
        """Names of all fields, those that are None included."""
        return [field.name for field in fields(self)]
