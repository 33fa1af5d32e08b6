"""One contract for both providers, the same features from the same weights, and weights of either naming."""

import logging
import pickle
import sys
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from gainmtl_lib import backbone as module
from gainmtl_lib.backbone import ModelError, get_backbone, load_weights, read_checkpoint, renamed

PROVIDERS = ("mmpretrain", "timm")


def build(provider: str, arch: str = "b0", **options):
    if provider == "mmpretrain":
        pytest.importorskip("mmpretrain")
    built = get_backbone(arch, use_mmpretrain=provider == "mmpretrain", **options)
    assert built.provider == provider
    return built


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    expected = other.net.state_dict()
    found = renamed(one.net.state_dict(), expected)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def randomise(network: nn.Module) -> None:
    """Numbers everywhere, batch norms too, at a scale that keeps activations near one."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.0)
            nn.init.normal_(part.bias, std=0.2)
            nn.init.normal_(part.get_buffer("running_mean"), std=0.2)
            nn.init.uniform_(part.get_buffer("running_var"), 0.5, 2.0)


@pytest.mark.parametrize("levels", [(1, 2, 3, 4), (2, 4)])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_channels_and_strides_are_those_of_the_features_asked_for(provider, levels):
    backbone = build(provider, out_indices=levels)
    assert backbone.strides == [2 ** (level + 1) for level in levels] + [32]
    assert backbone.channels == [[32, 48, 112, 192][level - 1] for level in levels] + [1280]
    shapes = [(c, 64 // s, 96 // s) for c, s in zip(backbone.channels, backbone.strides)]
    assert [tuple(f.shape[1:]) for f in backbone(torch.zeros(1, 3, 64, 96))] == shapes


@pytest.mark.parametrize("arch, channels, millions", [("b3", 1536, 14.4), ("s", 1280, 21.5), ("m", 1280, 54.1),
                         ("l", 1280, 118.5), ("xl", 1280, 208.1)])  # fmt: skip
@pytest.mark.parametrize("provider", PROVIDERS)
def test_head_channels_and_parameters_match_the_table(provider, arch, channels, millions, monkeypatch):
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))  # mmpretrain reads its values
    with torch.device("meta"):
        backbone = build(provider, arch)
    assert backbone.channels[-1] == channels and backbone.strides == [4, 8, 16, 32, 32]
    # The published table counts the ImageNet classifier, which the backbone does not have.
    count = sum(p.numel() for p in backbone.parameters()) + channels * 1000 + 1000
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize("arch, size", [("b0", (64, 96)), ("b0", (61, 75)), ("s", (64, 64))])
def test_providers_agree_with_the_same_weights(arch, size):
    ours, theirs = build("mmpretrain", arch).eval(), build("timm", arch).eval()
    randomise(ours)
    load_weights(theirs.net, ours.net.state_dict(), source="test")
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        for mine, other in zip(ours(images), theirs(images), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * float(mine.abs().max()))
    assert same_weights(theirs, ours)


@pytest.mark.parametrize("arch", ["b0", "s"])
@pytest.mark.parametrize("saved_by, provider, wrapper, prefix, sibling", [
    ("mmpretrain", "timm", "state_dict", "backbone.", "head."),
    ("timm", "mmpretrain", "model_state_dict", "module.backbone.", "module.head."),
    ("timm", "timm", "model", "backbone.net.", "head."),
    ("timm", "timm", None, "", "classifier."),
])  # fmt: skip
def test_weights_of_either_naming_load_into_either(tmp_path, arch, saved_by, provider, wrapper, prefix, sibling):
    source, path = build(saved_by, arch), tmp_path / ("weights.pth" if wrapper else "weights.safetensors")
    randomise(source)
    state = {f"{prefix}{name}": tensor for name, tensor in source.net.state_dict().items()}
    state |= {f"{prefix}classifier.weight": torch.ones(2), f"{sibling}fc.bias": torch.zeros(1000)}
    torch.save({wrapper: state, "meta": {"epoch": 3}}, path) if wrapper else save_file(state, path)
    loaded, fresh = build(provider, arch, pretrained=path), build(provider, arch)
    assert loaded.weights == f"{path} (mean and std of tf_efficientnetv2_{arch}.in1k)"
    nn.ModuleDict({"backbone": fresh}).load_state_dict(nn.ModuleDict({"backbone": source}).state_dict())
    assert same_weights(source, loaded) and same_weights(source, fresh)


@pytest.mark.parametrize("arch, provider, stem, behind_it", [
    ("b0", "mmpretrain", ("layers.0.",), ("layers.1.", "layers.2.", "layers.3.")),
    ("b0", "timm", ("conv_stem.", "bn1."), ("blocks.0.", "blocks.1.", "blocks.2.")),
    ("resnet18", "timm", ("conv1.", "bn1."), ("layer1.", "layer2.")),
])  # fmt: skip
def test_freezing_goes_through_the_level(arch, provider, stem, behind_it):
    for frozen_stages, expected in ((-1, ("?",)), (0, stem), (2, stem + behind_it)):
        backbone = build(provider, arch, frozen_stages=frozen_stages)
        for name, parameter in backbone.net.named_parameters():
            assert parameter.requires_grad == (not name.startswith(expected)), name
        for name, part in backbone.train().net.named_modules():  # frozen batch norms stay in evaluation
            if isinstance(part, nn.BatchNorm2d):
                assert part.training == (not f"{name}.".startswith(expected)), name


def test_depthwise_are_the_networks_whose_first_level_is():
    with torch.device("meta"):
        assert [build("timm", arch).depthwise for arch in ("lite0", "b0", "s", "resnet18")] == [
            True,
            False,
            False,
            False,
        ]
    assert not build("mmpretrain").depthwise  # later levels of both are; there are few pixels left by then


def test_random_weights_keep_their_scale():
    # A depthwise kernel reads one channel; started as if it read all, its output would nearly vanish.
    for provider, name in (("timm", "blocks.5.0.conv_dw"), ("mmpretrain", "layers.6.0.depthwise_conv.conv")):
        kernel = build(provider).net.get_parameter(f"{name}.weight")
        assert kernel.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)


def test_any_timm_model_with_a_pyramid_goes_by_name_and_normalises_as_its_weights_ask(tmp_path):
    backbone = get_backbone("resnet18", out_indices=(1, 3))
    assert backbone.provider == "timm" and backbone.channels == [64, 256, 512] and backbone.strides == [4, 16, 32]
    shapes = [tuple(f.shape) for f in backbone(torch.zeros(1, 3, 64, 64))]
    assert shapes == [(1, 64, 16, 16), (1, 256, 4, 4), (1, 512, 2, 2)]
    last, head = get_backbone("resnet18", out_indices=(4,))(torch.zeros(1, 3, 64, 64))
    assert torch.equal(last, head)
    with torch.device("meta"):
        assert [get_backbone(arch, use_mmpretrain=False).mean[0] for arch in ("b0", "s")] == [0.485, 0.5]
    # Without a classifier no parameter is idle, though pretrained weights hold it.
    full = timm.create_model("convnext_atto").state_dict()
    torch.save(full, tmp_path / "weights.pth")
    backbone = get_backbone("convnext_atto", tmp_path / "weights.pth", (4,))
    assert torch.equal(backbone.net.state_dict()["stem.0.weight"], full["stem.0.weight"])
    backbone(torch.zeros(1, 3, 64, 64))[-1].square().sum().backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("options, message", [
    ({"arch": "efficientnet_z9"}, "unknown backbone 'efficientnet_z9'; did you mean"),
    ({"arch": "qqqqqqqq"}, "unknown backbone 'qqqqqqqq'. There are b0, b1, b2, b3, s, m, l, xl, lite0, lite1, lite2, and timm's"),
    ({"out_indices": (2, 1)}, r"out_indices must be .*, got \[2, 1\]"),
    ({"arch": "vit_tiny_patch16_224"}, r"vit_tiny_patch16_224: this backbone has no features at stride 4, only at"),
    ({"frozen_stages": 5}, r"freeze_backbone_stages must be -1 \(none\), 0 \(stem\) or a level 1 to 4, got 5"),
    ({"pretrained": "/nowhere/b0.pth"}, r"/nowhere/b0\.pth: no such weights file"),
])  # fmt: skip
def test_what_cannot_be_built_is_named(options, message):
    with pytest.raises(ModelError, match=message):
        get_backbone(**{"arch": "b0", "use_mmpretrain": False} | options)


def unreachable(name, *others, **options):
    raise ModelError(f"no way to {name}")


def test_timm_stands_in_for_mmpretrain_and_random_weights_for_missing_ones_where_asked_for(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "mmpretrain.models.backbones.efficientnet_v2", None)
    monkeypatch.setattr(module, "fetch_weights", unreachable)
    with pytest.raises(ModelError, match=r"no way to b0\. Set pretrained: auto to go on with random weights then"):
        get_backbone("b0", pretrained=True)
    with caplog.at_level(logging.INFO):
        backbone = get_backbone("b0", pretrained="auto")
    assert backbone.provider == "timm" and "mmpretrain cannot be imported" in caplog.text
    assert backbone.weights == "random (pretrained: auto, but no way to b0)"
    assert [r.levelname for r in caplog.records if backbone.weights in r.getMessage()] == ["WARNING"]


def test_sources_are_tried_in_turn_and_every_cause_is_told(monkeypatch):
    monkeypatch.setattr(module, "_from_mmpretrain", unreachable)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: nn.Linear(1, 1))
    assert set(module.fetch_weights("b0", "timm_b0", "mmpretrain")) == {"weight", "bias"}
    monkeypatch.setattr(timm, "create_model", unreachable)
    both = r"^pretrained weights timm_b0 cannot be had \(mmpretrain: no way to b0; timm: no way to timm_b0\)$"
    for provider, message in (("mmpretrain", both), ("timm", r"cannot be had \(timm: no way to timm_b0\)")):
        with pytest.raises(ModelError, match=message):
            module.fetch_weights("b0", "timm_b0", provider)


def test_mmpretrains_own_file_loads(monkeypatch):
    source, asked = build("mmpretrain"), []
    published = {f"backbone.{k}": v for k, v in source.net.state_dict().items()} | {"head.fc.weight": torch.ones(1)}

    def download(url, **options):
        asked.append((url.rpartition("/")[2][:32], options["weights_only"]))
        return {"meta": {}, "state_dict": published}

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    backbone = get_backbone("b0", pretrained=True)
    assert asked == [("efficientnetv2-b0_3rdparty_in1k_", True)]
    assert backbone.weights == "imagenet:tf_efficientnetv2_b0.in1k" and same_weights(source, backbone)


def test_lite_takes_the_weights_of_its_package_by_their_order_or_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="lite9 come with the package efficientnet-lite9-pytorch-model, which is miss"):
        module._packaged("lite9")
    network, path = timm.create_model("tf_efficientnet_lite0").eval(), tmp_path / "lite0.pth"
    randomise(network)
    # The package names layers its own way, in timm's order.
    torch.save({f"_layer{n}.{k}": t for n, (k, t) in enumerate(network.state_dict().items()) if "classifier" not in k}
               | {"_fc.weight": torch.ones(2)}, path)  # fmt: skip
    monkeypatch.setattr(module, "_packaged", lambda arch: path)
    backbone, images = get_backbone("lite0", pretrained=True).eval(), torch.rand(1, 3, 64, 96)
    assert backbone.weights == "imagenet:tf_efficientnet_lite0.in1k" and backbone.provider == "timm"
    assert backbone.channels == [24, 40, 112, 320, 1280] and backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[-1], network.forward_features(images))
    fresh = get_backbone("lite0", pretrained=path)
    assert same_weights(backbone, fresh)
    with pytest.raises(ModelError, match=rf"{path}: weights of another backbone, .*; set backbone_arch"):
        get_backbone("lite1", pretrained=path)


class Trap(str):
    """A path at which a file appears when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path(self),)


def test_a_pickle_is_not_executed_and_what_holds_no_tensors_is_named(tmp_path):
    mark = tmp_path / "executed"
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(Trap(mark), protocol=2))
    torch.save({"state_dict": Trap(mark)}, tmp_path / "saved.pth")
    (tmp_path / "garbage.safetensors").write_bytes(b"this is no checkpoint")
    for path in tmp_path.iterdir():
        with pytest.raises(ModelError, match=f"{path.name}: not a checkpoint of tensors .*nothing in it was run"):
            read_checkpoint(path)
    assert not mark.exists()
    pickle.loads((tmp_path / "bare.pkl").read_bytes())
    assert mark.exists()  # the trap works
    for content in ({"epoch": 3}, [1, 2]):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ModelError, match=r"weights\.pth: holds no tensors by name"):
            read_checkpoint(tmp_path / "weights.pth")


def test_weights_of_another_backbone_are_named():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = network.state_dict() | {"0.weight": torch.zeros(3, 4)}
    state["2.weight"] = state.pop("0.bias")
    with pytest.raises(ModelError) as caught:
        load_weights(network, state, source="x.pth")
    assert str(caught.value) == (
        "x.pth: weights of another backbone, 1 missing (first 0.bias), 1 unknown (first 2.weight), "
        "1 of another shape (first 0.weight: (3, 4), not (3, 2)); set backbone_arch to that of the weights"
    )
