from __future__ import annotations

import pytest
import torch
from torch import nn

from gainmtl_lib.model import CBAM, MapProjection, PyramidFusion, fuse_attention


def logit(*probabilities: float) -> torch.Tensor:
    """One image with a 1 x n grid."""
    return torch.tensor(probabilities).logit()[None, None, None]


def test_cbam_follows_its_equations():
    cbam = CBAM(2, kernel_size=1)
    with torch.no_grad():
        for parameter in cbam.parameters():
            parameter.zero_()
        for name in ("mlp.0.weight", "mlp.2.weight"):
            cbam.get_parameter(name)[0, 0] = 1
        cbam.spatial.weight[0, 1] = 1
    features = torch.tensor([[1.0, 3.0], [4.0, 4.0]]).view(1, 2, 1, 2)
    # channel 0: MLP(mean 2) + MLP(max 3) = 5; channel 1: 0. Then the larger channel gates each cell.
    channel = features * torch.tensor([5.0, 0.0]).sigmoid().view(1, 2, 1, 1)
    expected = channel * channel.amax(1, keepdim=True).sigmoid()
    torch.testing.assert_close(cbam(features), expected)


@pytest.mark.parametrize("channels, hidden", [(1280, 80), (64, 8)])
def test_width_of_the_shared_mlp(channels, hidden):
    assert CBAM(channels).mlp[0].out_features == hidden


def test_cbam_keeps_the_memory_format():
    features = torch.randn(2, 32, 5, 4).to(memory_format=torch.channels_last)
    assert CBAM(32)(features).is_contiguous(memory_format=torch.channels_last)


def test_pyramid_sums_on_the_finest_grid():
    fusion = PyramidFusion([3, 5, 7], 4)
    levels = [torch.randn(2, 3, 8, 6), torch.randn(2, 5, 4, 3), torch.randn(2, 7, 2, 2)]
    assert fusion(levels).shape == (2, 4, 8, 6)
    with torch.no_grad():
        for name, parameter in fusion.named_parameters():
            parameter.fill_(float("layer_blocks" in name and name.endswith("bias")))
    torch.testing.assert_close(fusion(levels), torch.full((2, 4, 8, 6), 3.0))


def test_pyramid_of_one_level():
    assert PyramidFusion([3], 4)([torch.randn(1, 3, 5, 5)]).shape == (1, 4, 5, 5)


def test_projection_sees_conv_head_and_level_on_the_levels_grid():
    projection = MapProjection(6, 3, 4)
    head, level = torch.randn(2, 6, 2, 2, requires_grad=True), torch.randn(2, 3, 8, 8, requires_grad=True)
    maps = projection(head, level)
    assert maps.shape == (2, 4, 8, 8)
    (maps * torch.randn_like(maps)).sum().backward()
    assert head.grad is not None and head.grad.abs().sum() > 0
    assert level.grad is not None and level.grad.abs().sum() > 0


def test_without_a_mask_attention_gates():
    torch.testing.assert_close(fuse_attention(logit(0.2, 0.8)), torch.tensor([[[[0.2, 0.8]]]]))


def test_a_mask_confirms_attention_and_alpha_lets_it_through():
    mask = torch.tensor([1.0, 0.0, 0.5]).view(1, 1, 1, 3)
    attention = logit(0.4, 0.4, 0.4)
    torch.testing.assert_close(fuse_attention(attention, mask).flatten(), torch.tensor([0.4, 0.0, 0.2]))
    # 0.5 * mask + 0.5 * mask * 0.4
    torch.testing.assert_close(fuse_attention(attention, mask, alpha=0.5).flatten(), torch.tensor([0.7, 0.0, 0.35]))
    torch.testing.assert_close(fuse_attention(attention, mask, alpha=1.0), mask)


def test_uniformly_low_attention_stays_low_unless_divided_by_its_maximum():
    low, mask = logit(0.01, 0.01), torch.ones(1, 1, 1, 2)
    torch.testing.assert_close(fuse_attention(low, mask).flatten(), torch.tensor([0.01, 0.01]))
    torch.testing.assert_close(fuse_attention(low, mask, norm="product").flatten(), torch.tensor([1.0, 1.0]))


def test_the_literal_form_divides_per_image():
    attention = torch.cat([logit(0.2, 0.4), logit(0.1, 0.1)])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.5]]).view(2, 1, 1, 2)
    fused = fuse_attention(attention, mask, norm="product").view(2, 2)
    torch.testing.assert_close(fused, torch.tensor([[0.5, 1.0], [1.0, 0.5]]))


@pytest.mark.parametrize("norm", ["sigmoid", "product"])
def test_images_without_a_mask_keep_their_attention(norm):
    attention = torch.cat([logit(0.3, 0.6), logit(0.3, 0.6)]).requires_grad_()
    mask = torch.zeros(2, 1, 1, 2)
    fused = fuse_attention(attention, mask, torch.tensor([True, False]), alpha=0.5, norm=norm).view(2, 2)
    torch.testing.assert_close(fused, torch.tensor([[0.0, 0.0], [0.3, 0.6]]))
    fused.sum().backward()
    assert attention.grad is not None and attention.grad.isfinite().all() and attention.grad[1].abs().min() > 0


def test_the_same_mask_and_attention_give_the_same_gate():
    """Nothing but mask and attention decides: not the class, not the company in the batch."""
    attention, mask = torch.randn(1, 1, 3, 3), torch.rand(1, 1, 3, 3)
    alone = fuse_attention(attention, mask, alpha=0.3)
    company = fuse_attention(
        torch.cat([attention, torch.randn(1, 1, 3, 3)]),
        torch.cat([mask, torch.zeros(1, 1, 3, 3)]),
        torch.tensor([True, False]),
        alpha=0.3,
    )
    assert torch.equal(alone[0], company[0])


def test_layers_have_no_idle_parameters():
    cases: list[tuple[nn.Module, tuple]] = [
        (CBAM(8), (torch.randn(2, 8, 4, 4),)),
        (MapProjection(8, 4, 4), (torch.randn(2, 8, 2, 2), torch.randn(2, 4, 4, 4))),
        (PyramidFusion([8, 4], 4), ([torch.randn(2, 8, 4, 4), torch.randn(2, 4, 2, 2)],)),
    ]
    for layer, inputs in cases:
        layer(*inputs).square().sum().backward()
        assert [name for name, p in layer.named_parameters() if p.grad is None] == []
