"""Weights of EfficientAD from files: a teacher, or a whole model, in three ways of naming the same layers.

Ours, the Sequential places of nelson1425/EfficientAD (``0.weight``, ``3.weight`` …) and anomalib's (``conv1.weight``,
``ae.encoder.enconv1.weight`` …) agree on the order of the convolutions, which is all that is read off a name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gainmtl_lib.efficientad.model import EfficientADModel
from gainmtl_lib.efficientad.networks import ModelSize, PatchDescriptionNetwork
from gainmtl_lib.efficientad.settings import RANDOM, EfficientADSettings
from gainmtl_lib.efficientad.weight_files import digest, read_weights, teacher_record
from gainmtl_lib.models.weights import ModelError, StateDict

_LAYER = re.compile(r"(encoder\.|decoder\.)?(?:convolutions\.|conv|enconv|deconv)?(\d+)\.(weight|bias)")
_KINDS = {
    4: "a patch description network of size S",
    6: "a patch description network of size M",
    14: "an autoencoder",
}


def teacher_of(settings: EfficientADSettings) -> tuple[StateDict, dict[str, Any]]:
    """The teacher that the settings ask for: its tensors under our names, and what a manifest says of it.

    The description has ``kind`` (``random`` or ``file``) and ``text``; of a file also ``file``, its ``digest``
    (SHA-256) and, when `distill` made it, ``distilled``: how.

    Raises:
        ModelError: see `read_weights`; the teacher has another size or other channels than the settings.
    """
    if settings.teacher == RANDOM:
        state = random_teacher(settings.model_size, settings.out_channels, seed=settings.seed)
        return state, {
            "kind": "random",
            "text": "random (untrained teacher: not the paper's method)",
            "seed": settings.seed,
        }
    path = Path(settings.teacher)
    network = PatchDescriptionNetwork(model_size=settings.model_size, out_channels=settings.out_channels)
    _fill(network, _teacher_in(read_weights(path)), source=str(path))
    description = {
        "kind": "file",
        "text": f"weights file {path.name}",
        "file": settings.plain()["teacher"],
        "digest": digest(path),
    }
    if record := teacher_record(path):
        text = f"distilled from {record['backbone']} ({record['weights']}) on {record['images']}"
        description |= {"text": text, "distilled": record}
    return network.state_dict(), description


def random_teacher(model_size: ModelSize, out_channels: int, *, seed: int) -> StateDict:
    """An untrained teacher that follows from the seed alone; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchDescriptionNetwork(model_size=model_size, out_channels=out_channels).state_dict()


def load_teacher(model: EfficientADModel, state: StateDict, *, source: str = "the teacher's weights") -> None:
    """Fill the model's teacher in place, from a teacher's tensors or those of a whole model, in any naming.

    Args:
        model: its channel statistics stay as they are.
        state: of the teacher.
        source: begins the error's message.

    Raises:
        ModelError: a teacher of another size or with other channels.
    """
    _fill(model.teacher, _teacher_in(state), source=source)


def load_state(model: EfficientADModel, state: StateDict, *, source: str = "the weights") -> None:
    """Fill teacher, student, autoencoder and their statistics in place, in any naming.

    Statistics that anomalib has not set yet, all zero, leave descriptions and maps unchanged, there and here.

    Raises:
        ModelError: a model of another size or with other channels, or a part that is missing.
    """
    state = _without_wrapper(state)
    for name, network in _networks(model).items():
        _fill(network, _part(state, name), source=f"{source}: {name}")
    statistics = _statistics(state)
    buffers = {name: getattr(model, name) for name in ("teacher_mean", "teacher_std", "quantiles")}
    missing = [n for n, buffer in buffers.items() if n not in statistics or statistics[n].numel() != buffer.numel()]
    if missing:
        raise ModelError(f"{source}: no fitting {', '.join(missing)}; give a whole model, saved with its statistics")
    for name, buffer in buffers.items():
        buffer.copy_(statistics[name].reshape(buffer.shape))


def load_model(path: str | Path, *, padding: bool = False) -> EfficientADModel:
    """A whole model from a file, on the CPU, in evaluation mode; the tensors say its size and channels.

    Args:
        path: see `read_weights`.
        padding: of the networks, which weights do not tell.

    Raises:
        ModelError: see `read_weights` and `load_state`.
    """
    state = read_weights(path)
    layers = _in_order(_teacher_in(state), source=f"{path}: teacher")
    sizes: dict[int, ModelSize] = {8: "S", 12: "M"}  # tensors, two to a convolution
    if len(layers) not in sizes:
        raise ModelError(f"{path}: no model of EfficientAD; its teacher is {_words(layers)}, expected size S or M")
    model = EfficientADModel(sizes[len(layers)], len(layers[-1]), padding=padding)
    load_state(model, state, source=str(path))
    return model.eval()


def _networks(model: EfficientADModel) -> dict[str, nn.Module]:
    return {"teacher": model.teacher, "student": model.student, "autoencoder": model.autoencoder}


def _without_wrapper(state: StateDict) -> StateDict:
    """Without the prefix under which a Lightning module has its model."""
    prefix = "model."
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return inside or state


def _part(state: StateDict, network: str) -> StateDict:
    """One network's tensors; anomalib's name of the autoencoder is ``ae``."""
    prefixes = ("autoencoder.", "ae.") if network == "autoencoder" else (f"{network}.",)
    for prefix in prefixes:
        if part := {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}:
            return part
    return {}


def _teacher_in(state: StateDict) -> StateDict:
    """The teacher's tensors, in a file of its own or of a whole model."""
    state = _without_wrapper(state)
    return _part(state, "teacher") or state


def _statistics(state: StateDict) -> StateDict:
    """Channel statistics and quantiles under our names."""
    found = {name.replace("mean_std.", "teacher_"): tensor for name, tensor in state.items()}
    if "mean_std.std" in state and not state["mean_std.std"].any():
        found["teacher_std"] = torch.ones_like(found["teacher_std"])
    ends = ("qa_st", "qb_st", "qa_ae", "qb_ae")
    if all(f"quantiles.{end}" in state for end in ends):
        quantiles = torch.stack([state[f"quantiles.{end}"].float() for end in ends]).view(2, 2)
        found["quantiles"] = quantiles if quantiles.any() else torch.tensor([[0.0, 0.1], [0.0, 0.1]])
    return found


def _fill(network: nn.Module, state: StateDict, *, source: str) -> None:
    expected = network.state_dict()
    given = _in_order(state, source=source)
    found, wanted = [[tuple(t.shape) for t in tensors] for tensors in (given, expected.values())]
    if found != wanted:
        theirs, ours = _words(given), _words(list(expected.values()))
        if theirs == ours:
            ours = f"its tensors to be {wanted}, got {found}"
        raise ModelError(
            f"{source}: {theirs}, expected {ours}; set model_size and out_channels to those of the weights"
        )
    network.load_state_dict(dict(zip(expected, given, strict=True)))


def _in_order(state: StateDict, *, source: str) -> list[Tensor]:
    """The tensors of a network from its input to its output, each convolution's weight before its bias."""
    places = {}
    for name in state:
        layer = _LAYER.fullmatch(name)
        if layer is None:
            raise ModelError(f"{source}: no network of EfficientAD, '{name}' is none of its layers")
        places[name] = (layer[1] == "decoder.", int(layer[2]), layer[3] == "bias")
    if not places:
        raise ModelError(f"{source}: no weights of it in the file; give a whole model")
    return [state[name] for name in sorted(places, key=places.__getitem__)]


def _words(tensors: list[Tensor]) -> str:
    kind = _KINDS.get(len(tensors) // 2, f"a network of {len(tensors) / 2:g} convolutions")
    return f"{kind} with {len(tensors[-1])} channels"
