"""Exact, differentiable class activation map of a two-layer head.

With p = mean(features) and h = W1 p + b1, the margin of the head is linear in p once the sign of h is known:
logit1 - logit0 = (W2[1] - W2[0]) diag(h > 0) (W1 p + b1) + b2[1] - b2[0]. Its weight, per image and C wide, takes the
place of the single class weight in CAM (Zhou et al., CVPR 2016). The margin, not W2[1] alone: adding any
vector to both rows of W2 changes no prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gainmtl_lib.models.heads import ClassificationHead


def class_activation_map(features: Tensor, head: ClassificationHead) -> tuple[Tensor, Tensor]:
    """Where the head sees its margin: mean(cam) + bias = logit1 - logit0, exact without dropout.

    Dropout is left out, also in training: the map is of the head as it decides. Computed in float32.

    Args:
        features: what the head classifies, (B, C, h, w).
        head: the head whose decision is explained.

    Returns:
        The map (B, 1, h, w) and the effective bias (B,).
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        w1, b1 = head.hidden.weight.float(), head.hidden.bias.float()
        margin = head.out.weight[1].float() - head.out.weight[0].float()  # (hidden,)
        hidden = features.mean((2, 3)) @ w1.T + b1  # (B, hidden)
        gated = (hidden > 0) * margin
        weight = gated @ w1  # (B, C)
        bias = gated @ b1 + (head.out.bias[1] - head.out.bias[0]).float()
        cam = weight[:, None] @ features.flatten(2)  # (B, 1, h * w)
        return cam.unflatten(2, features.shape[2:]), bias
