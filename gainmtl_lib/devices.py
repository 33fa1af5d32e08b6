"""Which device and which precision a run computes with."""

import re

import torch

from gainmtl_lib.settings import UserError


class DeviceError(UserError, ValueError):
    """A device or a precision that this machine does not have."""


def checked_device(name: str, count: int = 1) -> torch.device:
    """The device of ``auto`` (CUDA, else MPS, else the CPU), ``cpu``, ``mps``, ``cuda`` or ``cuda:<k>``.

    `DeviceError` where this machine lacks it, or has fewer than `count` of its kind; on the CPU each is a process.
    """
    if not re.fullmatch(r"auto|cpu|mps(:0)?|cuda(:\d+)?", name):
        raise DeviceError(f"device is '{name}'; expected auto, cpu, mps, cuda or cuda:<k>")
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": count}
    device = torch.device(next(kind for kind, number in there.items() if number) if name == "auto" else name)
    kind, number = device.type.upper(), there[device.type]
    if (device.index or 0) >= number:
        raise DeviceError(f"device is '{name}', but {number} {kind} devices are available; use 'auto'")
    if count > number:
        raise DeviceError(f"devices is {count}, but {number} {kind} device{'s are' * (number > 1) or ' is'} available")
    return device


def lightning_precision(name: str, device: torch.device, *, depthwise: bool = False) -> str:
    """Lightning's name of ``auto`` (what trains fastest), ``32``, ``bf16`` or ``16``.

    ``auto`` is fp16 AMP on CUDA; bf16 AMP on a CPU with instructions for products of bf16 matrices (AMX), except for a
    network that is `depthwise` from its first level on, whose convolutions are no such products; single elsewhere.
    """
    if name == "auto":
        matrices = device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)
        name = "16" if device.type == "cuda" else "bf16" if matrices and not depthwise else "32"
    if name == "16" and device.type == "cpu":
        raise DeviceError("precision '16' needs a GPU; on the CPU use 'bf16' or '32'")
    return {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true"}[name]


def inference_autocast(name: str, device: torch.device, *, depthwise: bool = False) -> torch.autocast:
    """The precision of a training, see `lightning_precision`, for computing without; fp16 becomes bf16 on the CPU."""
    name = "bf16" if name == "16" and device.type == "cpu" else name
    chosen = lightning_precision(name, device, depthwise=depthwise)
    half = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(chosen)
    return torch.autocast(device.type, half or torch.float32, enabled=half is not None)
