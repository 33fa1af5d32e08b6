from __future__ import annotations

import pytest
import torch

from gainmtl_lib.model import ClassificationHead, class_activation_map


def head(channels: int = 5, hidden: int = 16) -> ClassificationHead:
    torch.manual_seed(0)
    return ClassificationHead(channels, hidden=hidden, dropout=0.5)


def test_mean_and_bias_are_the_margin():
    decider, features = head().eval(), torch.randn(4, 5, 3, 7)
    cam, bias = class_activation_map(features, decider)
    logits = decider(features)
    assert cam.shape == (4, 1, 3, 7) and bias.shape == (4,)
    torch.testing.assert_close(cam.mean((1, 2, 3)) + bias, logits[:, 1] - logits[:, 0])


def test_by_hand():
    decider = ClassificationHead(2, hidden=2, dropout=0.5).eval()
    with torch.no_grad():
        decider.hidden.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        decider.hidden.bias.copy_(torch.tensor([1.0, 1.0]))
        decider.out.weight.copy_(torch.tensor([[1.0, 1.0], [3.0, 9.0]]))
        decider.out.bias.copy_(torch.tensor([0.5, 0.0]))
    features = torch.tensor([[1.0, 3.0], [4.0, 4.0]]).view(1, 2, 1, 2)
    # The second hidden unit is off (-4 + 1), so the weight is (3 - 1) * (1, 2): 2 * F0 + 4 * F1.
    cam, bias = class_activation_map(features, decider)
    torch.testing.assert_close(cam.flatten(), torch.tensor([18.0, 22.0]))
    torch.testing.assert_close(bias, torch.tensor([1.5]))  # 2 * 1 + 0 - 0.5


def test_what_both_classes_share_changes_nothing():
    decider, features = head().eval(), torch.randn(2, 5, 3, 3)
    before, _ = class_activation_map(features, decider)
    with torch.no_grad():
        decider.out.weight += torch.randn(16)
    torch.testing.assert_close(class_activation_map(features, decider)[0], before)


def test_dropout_plays_no_part():
    decider, features = head(), torch.randn(2, 5, 3, 3)
    decider.train()
    training, _ = class_activation_map(features, decider)
    decider.eval()
    assert torch.equal(training, class_activation_map(features, decider)[0])


def test_the_gradient_reaches_features_and_weights_and_is_right():
    decider = head(channels=3, hidden=4).double()
    features = torch.randn(2, 3, 2, 2, dtype=torch.double, requires_grad=True)

    def margin(features):
        logits = decider.eval()(features)
        return (logits[:, 1] - logits[:, 0]).sum()

    cam, bias = class_activation_map(features, decider.float())
    (cam.mean((1, 2, 3)) + bias).sum().backward()
    by_map = features.grad.clone()  # type: ignore[union-attr]
    by_margin = torch.autograd.grad(margin(features.float()), features)[0]
    torch.testing.assert_close(by_map, by_margin, rtol=1e-5, atol=1e-6)
    for name in ("hidden.weight", "out.weight"):
        assert decider.get_parameter(name).grad.abs().sum() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_does_not_matter(memory_format):
    decider, features = head().eval(), torch.randn(2, 5, 3, 4)
    expected, _ = class_activation_map(features, decider)
    cam, _ = class_activation_map(features.to(memory_format=memory_format), decider)
    torch.testing.assert_close(cam, expected)


def test_float32_under_autocast():
    decider, features = head().eval(), torch.randn(2, 5, 3, 4)
    expected, _ = class_activation_map(features, decider)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cam, bias = class_activation_map(features, decider)
    assert cam.dtype == bias.dtype == torch.float32
    assert torch.equal(cam, expected)
