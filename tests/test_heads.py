from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gainmtl_lib.model import AttentionHead, ClassificationHead, FeatureAdapter, LocalizationHead, MiningHead


def test_classification_by_hand():
    head = ClassificationHead(2, hidden=2, dropout=0.5).eval()
    with torch.no_grad():
        head.hidden.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        head.hidden.bias.copy_(torch.tensor([1.0, 1.0]))
        head.out.weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 3.0]]))
        head.out.bias.copy_(torch.tensor([0.5, 0.0]))
    features = torch.tensor([[1.0, 3.0], [4.0, 4.0]]).view(1, 2, 1, 2)
    # means 2 and 4; hidden relu(2 + 1), relu(-4 + 1) = 3, 0
    torch.testing.assert_close(head(features), torch.tensor([[3.5, 6.0]]))


def test_dropout_acts_in_training_only():
    head = ClassificationHead(4, hidden=64, dropout=0.5)
    features = torch.randn(1, 4, 2, 2)
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))


def test_temperature_starts_at_one_and_divides():
    head = AttentionHead(4, hidden=3).eval()
    features = torch.randn(2, 4, 5, 6)
    logits = head(features)
    assert logits.shape == (2, 1, 5, 6)
    torch.testing.assert_close(logits, head.body(features))
    with torch.no_grad():
        head.log_temperature.fill_(math.log(4.0))
    torch.testing.assert_close(head(features), logits / 4)


def test_temperature_is_learned():
    head = AttentionHead(4, hidden=3)
    head(torch.randn(2, 4, 5, 6)).square().sum().backward()
    assert head.log_temperature.grad is not None and head.log_temperature.grad != 0


def test_mining_has_no_temperature():
    head = MiningHead(4, hidden=3)
    assert head(torch.randn(2, 4, 5, 6)).shape == (2, 1, 5, 6)
    assert not hasattr(head, "log_temperature")


def test_adapter_keeps_the_shape_and_ends_in_relu():
    adapted = FeatureAdapter(4)(torch.randn(2, 4, 5, 6))
    assert adapted.shape == (2, 4, 5, 6) and adapted.min() == 0


@pytest.mark.parametrize("grid, size", [((16, 12), (64, 48)), ((8, 6), (64, 48)), ((16, 12), (61, 45))])
def test_localization_reaches_the_input_size(grid, size):
    assert LocalizationHead(3)(torch.randn(2, 3, *grid), size).shape == (2, 1, *size)


@pytest.mark.parametrize("head", [AttentionHead(4, hidden=3), MiningHead(4, hidden=3), LocalizationHead(4)])
def test_map_heads_are_two_convolutions_and_a_1x1(head):
    kernels = [module.kernel_size for module in head.modules() if isinstance(module, nn.Conv2d)]
    assert kernels == [(3, 3), (3, 3), (1, 1)]
