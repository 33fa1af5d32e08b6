from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gainmtl_lib import backbone as weights
from gainmtl_lib.backbone import ModelError, fetch_weights, get_backbone, load_weights, naming, read_checkpoint, renamed

TIMM = {
    "conv_stem.weight": 0,
    "bn1.bias": 1,
    "blocks.0.0.conv.weight": 2,
    "blocks.0.0.bn1.weight": 3,
    "blocks.1.2.conv_exp.weight": 4,
    "blocks.1.2.bn1.bias": 5,
    "blocks.1.2.conv_pwl.weight": 6,
    "blocks.1.2.bn2.running_var": 7,
    "blocks.3.10.conv_pw.weight": 8,
    "blocks.3.10.bn1.bias": 9,
    "blocks.3.10.conv_dw.weight": 10,
    "blocks.3.10.bn2.bias": 11,
    "blocks.3.10.se.conv_reduce.bias": 12,
    "blocks.3.10.se.conv_expand.bias": 13,
    "blocks.3.10.conv_pwl.weight": 14,
    "blocks.3.10.bn3.bias": 15,
    "conv_head.weight": 16,
    "bn2.weight": 17,
}
MMPRETRAIN = {
    "layers.0.conv.weight": 0,
    "layers.0.bn.bias": 1,
    "layers.1.0.conv.weight": 2,
    "layers.1.0.bn.weight": 3,
    "layers.2.2.conv1.conv.weight": 4,
    "layers.2.2.conv1.bn.bias": 5,
    "layers.2.2.conv2.conv.weight": 6,
    "layers.2.2.conv2.bn.running_var": 7,
    "layers.4.10.expand_conv.conv.weight": 8,
    "layers.4.10.expand_conv.bn.bias": 9,
    "layers.4.10.depthwise_conv.conv.weight": 10,
    "layers.4.10.depthwise_conv.bn.bias": 11,
    "layers.4.10.se.conv1.conv.bias": 12,
    "layers.4.10.se.conv2.conv.bias": 13,
    "layers.4.10.linear_conv.conv.weight": 14,
    "layers.4.10.linear_conv.bn.bias": 15,
    "layers.5.conv.weight": 16,
    "layers.5.bn.weight": 17,
}


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def tensors(names: dict[str, int]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in names.items()}


def test_names_translate_both_ways():
    assert renamed(tensors(TIMM), "mmpretrain") == tensors(MMPRETRAIN)
    assert renamed(tensors(MMPRETRAIN), "timm") == tensors(TIMM)
    assert renamed(tensors(TIMM), "timm") == tensors(TIMM)
    assert renamed(tensors({"layer1.0.conv1.weight": 1}), "mmpretrain") == tensors({"layer1.0.conv1.weight": 1})


def test_naming_is_recognised():
    assert naming(tensors(TIMM)) == "timm"
    assert naming(tensors(MMPRETRAIN)) == "mmpretrain"
    assert naming(tensors({"layer1.0.conv1.weight": 1})) == "other"


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "backbone.net."])
def test_wrapper_prefix_and_classifier_are_removed(tmp_path, wrapper, prefix):
    state = {f"{prefix}conv_stem.weight": torch.ones(1), f"{prefix}classifier.weight": torch.ones(2)}
    if prefix:
        state[f"{prefix.replace('backbone.', 'head.')}fc.weight"] = torch.ones(3)
    torch.save({wrapper: state, "meta": {"epoch": 3}} if wrapper else state, tmp_path / "weights.pth")
    assert read_checkpoint(tmp_path / "weights.pth") == {"conv_stem.weight": torch.ones(1)}


def test_safetensors_are_read(tmp_path):
    save_file({"conv_stem.weight": torch.ones(1)}, tmp_path / "weights.safetensors")
    assert read_checkpoint(tmp_path / "weights.safetensors") == {"conv_stem.weight": torch.ones(1)}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.pth: no such weights file"):
        read_checkpoint(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_garbage_is_not_a_checkpoint(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is no checkpoint")
    with pytest.raises(ModelError, match=f"{name}: not a checkpoint of tensors .*nothing in it was run"):
        read_checkpoint(tmp_path / name)


def test_a_pickle_is_not_executed(tmp_path):
    mark = tmp_path / "executed"
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(Trap(mark), protocol=2))
    torch.save({"state_dict": Trap(mark)}, tmp_path / "saved.pth")
    for name in ("bare.pkl", "saved.pth"):
        with pytest.raises(ModelError, match="nothing in it was run"):
            read_checkpoint(tmp_path / name)
    assert not mark.exists()
    pickle.loads((tmp_path / "bare.pkl").read_bytes())
    assert mark.exists()  # the trap works


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {}])
def test_a_file_without_tensors_is_named(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"weights\.pth: holds no tensors by name"):
        read_checkpoint(tmp_path / "weights.pth")


def test_weights_of_another_backbone_are_named():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state = network.state_dict()
    state["0.weight"] = torch.zeros(3, 4)
    state["2.weight"] = state.pop("0.bias")
    with pytest.raises(ModelError) as caught:
        load_weights(network, state, provider="timm", source="x.pth")
    assert str(caught.value) == (
        "x.pth: weights of another backbone, 1 missing (first 0.bias), 1 unknown (first 2.weight), "
        "1 of another shape (first 0.weight: (3, 4), not (3, 2)); set backbone_arch to that of the weights"
    )


def test_batch_counters_may_be_missing():
    network = torch.nn.BatchNorm1d(3)
    state = {name: tensor + 1 for name, tensor in network.state_dict().items() if name != "num_batches_tracked"}
    load_weights(network, state, provider="timm", source="x.pth")
    assert network.weight.tolist() == [2, 2, 2]


def test_sources_are_tried_in_turn_and_every_cause_is_told(monkeypatch):
    def unreachable(name):
        raise ConnectionError(f"no way to {name}\nand more lines")

    monkeypatch.setattr(weights, "_from_mmpretrain", unreachable)
    monkeypatch.setattr(weights, "_from_timm", lambda name: {name: torch.ones(1)})
    assert set(fetch_weights("b0", "timm_b0", "mmpretrain")) == {"timm_b0"}
    monkeypatch.setattr(weights, "_from_timm", unreachable)
    with pytest.raises(ModelError) as caught:
        fetch_weights("b0", "timm_b0", "mmpretrain")
    assert str(caught.value) == (
        "pretrained weights timm_b0 cannot be had (mmpretrain: no way to b0; timm: no way to timm_b0)"
    )
    with pytest.raises(ModelError, match=r"cannot be had \(timm: no way to timm_b0\)"):
        fetch_weights("b0", "timm_b0", "timm")


def test_offline_the_hub_is_not_asked_for_long(monkeypatch):
    monkeypatch.setattr(weights, "_reachable", lambda address: False)
    monkeypatch.setattr(weights.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(ModelError, match="does not answer, and the local cache has no copy"):
        fetch_weights("resnet18", "resnet18", "timm")


def test_offline_the_hubs_cache_is_used(monkeypatch, tmp_path):
    save_file({"conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(weights, "_reachable", lambda address: False)
    monkeypatch.setattr(
        weights.huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "model.safetensors")
    )
    assert set(fetch_weights("resnet18", "resnet18", "timm")) == {"conv1.weight"}


def test_an_address_nobody_serves_is_unreachable():
    assert not weights._reachable("http://127.0.0.1:1")


def test_mmpretrains_own_file_loads(monkeypatch):
    pytest.importorskip("mmpretrain")
    source = get_backbone("b0")
    published = {f"backbone.{k}": v for k, v in source.net.state_dict().items()} | {"head.fc.weight": torch.ones(1)}
    asked = []

    def download(url, **options):
        asked.append((url, options["weights_only"]))
        return {"meta": {}, "state_dict": published}

    monkeypatch.setattr(weights.torch.hub, "load_state_dict_from_url", download)
    backbone = get_backbone("b0", pretrained=True)
    (url, weights_only), *_ = asked
    assert "efficientnetv2-b0_3rdparty_in1k" in url and weights_only
    assert backbone.weights == "imagenet:tf_efficientnetv2_b0.in1k"
    assert all(torch.equal(a, b) for a, b in zip(backbone.state_dict().values(), source.state_dict().values()))
