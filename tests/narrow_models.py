"""Real models with random weights, as narrow as they can be, on 64 px. Shared: a test must leave them as they are."""

import functools

import torch

from gainmtl_lib.model import GAINMTLModel

NARROW = {
    "backbone_arch": "b0",
    "pretrained": False,
    "map_channels": 8,
    "attention_channels": 8,
    "fpn_channels": 8,
    "out_indices": (3, 4),
    "head_channels": 8,
}


# Whoever asks first may do so in inference mode, whose tensors nobody can differentiate afterwards.
@functools.cache
@torch.inference_mode(False)
def built(strategy: str, map_stride: int = 16) -> GAINMTLModel:
    torch.manual_seed(0)
    return GAINMTLModel(**NARROW, strategy=strategy, map_stride=map_stride).eval()


@functools.cache
@torch.inference_mode(False)
def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))
