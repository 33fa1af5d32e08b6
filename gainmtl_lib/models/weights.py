"""Backbone weights: read from a file without running it, fetched by name, translated between naming schemes.

timm and mmpretrain name the layers of the same EfficientNetV2 differently (``blocks.0.1.conv_pw`` and
``layers.1.1.expand_conv.conv``). Both follow Google's TensorFlow release, "same" padding and a batch-norm
epsilon of 1e-3 included, so that translating the names is all there is to do.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub.constants
import safetensors.torch
import timm
import torch
from torch import Tensor

StateDict = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "backbone.", "net.")
_CLASSIFIER = ("classifier.", "fc.", "head.", "head_fc.", "last_linear.")

# The three kinds of block: mmpretrain's layer names, and timm's.
_BLOCKS = (
    {"conv": "conv", "bn": "bn1"},
    {"conv1.conv": "conv_exp", "conv1.bn": "bn1", "conv2.conv": "conv_pwl", "conv2.bn": "bn2"},
    {
        "expand_conv.conv": "conv_pw",
        "expand_conv.bn": "bn1",
        "depthwise_conv.conv": "conv_dw",
        "depthwise_conv.bn": "bn2",
        "se.conv1.conv": "se.conv_reduce",
        "se.conv2.conv": "se.conv_expand",
        "linear_conv.conv": "conv_pwl",
        "linear_conv.bn": "bn3",
    },
)


class ModelError(ValueError):
    """A model that cannot be built or used as asked: names the cause and what to do."""


def read_checkpoint(path: str | Path) -> StateDict:
    """The backbone's tensors in a file, without wrapper, prefix and classifier.

    Args:
        path: ``.safetensors``, or what ``torch.save`` wrote; bare, under ``state_dict``, or a whole model whose
            backbone sits under ``backbone.``. Names stay those of the file.

    Raises:
        ModelError: there is no such file, or it is not a checkpoint of tensors. It is never executed.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes the readers raise
        raise ModelError(
            f"{path}: not a checkpoint of tensors ({_first_line(error)}); nothing in it was run. "
            "Give a .safetensors file or a state dict saved by torch.save"
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise ModelError(f"{path}: holds no tensors by name; give a state dict")
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_CLASSIFIER)}


def naming(names: StateDict | set[str]) -> str:
    """``"mmpretrain"`` or ``"timm"``: the EfficientNetV2 naming these parameter names follow, else ``"other"``."""
    if any(name.startswith("layers.0.conv.") for name in names):
        return "mmpretrain"
    return "timm" if any(name.startswith("conv_stem.") for name in names) else "other"


def renamed(state: StateDict, provider: str) -> StateDict:
    """The same tensors under the names of `provider`; those of no EfficientNetV2 are returned as they are."""
    scheme = naming(state)
    if scheme in (provider, "other"):
        return dict(state)
    to_other = _to_timm(state) if scheme == "mmpretrain" else _to_mmpretrain(state)
    translated = {}
    for name, tensor in state.items():
        layer, _, parameter = name.rpartition(".")
        translated[f"{to_other.get(layer, layer)}.{parameter}"] = tensor
    return translated


def load_weights(network: torch.nn.Module, state: StateDict, *, provider: str, source: str) -> None:
    """Fill `network` in place, whichever naming `state` has.

    Raises:
        ModelError: the tensors are not exactly those of this network; `source` says where they are from.
    """
    expected = network.state_dict()
    state = renamed(state, provider)
    # Files from before torch 0.4.1 lack this counter, which nothing here reads.
    state = {k: v for k, v in expected.items() if k.endswith("num_batches_tracked")} | state
    problems = []
    if missing := [name for name in expected if name not in state]:
        problems.append(f"{len(missing)} missing (first {missing[0]})")
    if unknown := [name for name in state if name not in expected]:
        problems.append(f"{len(unknown)} unknown (first {unknown[0]})")
    wrong = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if wrong:
        found, needed = tuple(state[wrong[0]].shape), tuple(expected[wrong[0]].shape)
        problems.append(f"{len(wrong)} of another shape (first {wrong[0]}: {found}, not {needed})")
    if problems:
        raise ModelError(
            f"{source}: weights of another backbone, {', '.join(problems)}; set backbone_arch to that of the weights"
        )
    network.load_state_dict(state)


def fetch_weights(arch: str, timm_name: str, provider: str) -> StateDict:
    """ImageNet weights by name, from the provider's own host or, failing that, from timm's.

    mmpretrain's files are conversions of timm's, so either source gives the same numbers.

    Args:
        arch: ``b0`` … ``xl`` or a timm name.
        timm_name: timm's name of the weights, tag included.
        provider: whose network is to be filled.

    Raises:
        ModelError: no source could be reached; the message says why, for each.
    """
    failures = []
    sources = [("mmpretrain", _from_mmpretrain, arch)] if provider == "mmpretrain" else []
    for host, fetch, name in [*sources, ("timm", _from_timm, timm_name)]:
        try:
            return fetch(name)
        except Exception as error:  # network, host and library errors of every kind
            failures.append(f"{host}: {_first_line(error)}")
    raise ModelError(f"pretrained weights {timm_name} cannot be had ({'; '.join(failures)})")


def _from_timm(name: str) -> StateDict:
    config = timm.get_pretrained_cfg(name)
    endpoint = huggingface_hub.constants.ENDPOINT
    if config is not None and config.hf_hub_id and not _reachable(endpoint):
        # The hub's client would go on trying for most of a minute; only its cache can help now.
        file = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
        if not isinstance(file, str):
            raise ConnectionError(f"{endpoint} does not answer, and the local cache has no copy")
        state = safetensors.torch.load_file(file)
    else:
        state = timm.create_model(name, pretrained=True).state_dict()
    return {key: tensor for key, tensor in state.items() if not key.startswith(_CLASSIFIER)}


def _reachable(address: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError:
        return False
    return True


def _from_mmpretrain(arch: str) -> StateDict:
    from mmpretrain.apis.model import ModelHub

    name = f"efficientnetv2-{arch}_3rdparty_in1k" if arch != "xl" else "efficientnetv2-xl_in21k-pre_3rdparty_in1k"
    url = ModelHub.get(name).weights
    content = torch.hub.load_state_dict_from_url(
        url, map_location="cpu", weights_only=True, check_hash=True, progress=False
    )
    state = content.get("state_dict", content)
    return {key.removeprefix("backbone."): v for key, v in state.items() if key.startswith("backbone.")}


def _to_timm(state: StateDict) -> dict[str, str]:
    """Layer names, mmpretrain's to timm's; a layer that fits no pattern is left out."""
    layers = {name.rpartition(".")[0] for name in state}
    last = max(int(layer.split(".")[1]) for layer in layers if re.match(r"layers\.\d+\.", layer))
    table = _ends(last)
    inner = {theirs: ours for kind in _BLOCKS for theirs, ours in kind.items()}
    for layer in layers - set(table):
        if (match := re.fullmatch(r"layers\.(\d+)\.(\d+)\.(.+)", layer)) and match[3] in inner:
            table[layer] = f"blocks.{int(match[1]) - 1}.{match[2]}.{inner[match[3]]}"
    return table


def _to_mmpretrain(state: StateDict) -> dict[str, str]:
    """Layer names, timm's to mmpretrain's; the same layer name means different things in different kinds of block."""
    blocks: dict[tuple[int, str], set[str]] = {}
    for name in state:
        if match := re.match(r"blocks\.(\d+)\.(\d+)\.(.+)\.", name):
            blocks.setdefault((int(match[1]), match[2]), set()).add(match[3])
    table = {ours: theirs for theirs, ours in _ends(2 + max((stage for stage, _ in blocks), default=0)).items()}
    for (stage, block), layers in blocks.items():
        for kind in _BLOCKS:
            if layers == set(kind.values()):
                for theirs, ours in kind.items():
                    table[f"blocks.{stage}.{block}.{ours}"] = f"layers.{stage + 1}.{block}.{theirs}"
    return table


def _ends(last: int) -> dict[str, str]:
    """The stem and the head, mmpretrain's names to timm's."""
    return {
        "layers.0.conv": "conv_stem",
        "layers.0.bn": "bn1",
        f"layers.{last}.conv": "conv_head",
        f"layers.{last}.bn": "bn2",
    }


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
