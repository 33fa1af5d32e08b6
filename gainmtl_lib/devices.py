"""Where to compute and in which precision: names that a user writes, checked, in the words of Lightning and PyTorch."""

from __future__ import annotations

import re

import torch


class DeviceError(ValueError):
    """A device or a precision that this machine does not have."""


def checked_device(name: str) -> torch.device:
    """The device of ``auto`` (CUDA, else MPS, else the CPU), ``cpu``, ``mps``, ``cuda`` or ``cuda:<k>``.

    Raises:
        DeviceError: another name, or it is not there.
    """
    if not re.fullmatch(r"auto|cpu|mps(:0)?|cuda(:\d+)?", name):
        raise DeviceError(f"device is '{name}'; expected auto, cpu, mps, cuda or cuda:<k>")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device is '{name}', but {torch.cuda.device_count()} CUDA devices are available; use 'auto'")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device is 'mps', but this machine has none; use 'auto'")
    return device


def check_count(device: torch.device, count: int) -> None:
    """Raises `DeviceError`: this machine has fewer devices of that kind. On the CPU each is a process."""
    available = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type, count)
    if count > available:
        raise DeviceError(
            f"devices is {count}, but {available} of kind '{device.type}' {'is' if available == 1 else 'are'} available"
        )


def lightning_precision(name: str, device: torch.device) -> str:
    """Lightning's name of ``auto`` (fp16 AMP on CUDA, bf16 AMP on the CPU, else single), ``32``, ``bf16`` or ``16``.

    Raises:
        DeviceError: fp16 on the CPU, which has no gradient scaling.
    """
    if name == "auto":
        name = {"cuda": "16", "cpu": "bf16"}.get(device.type, "32")
    if name == "16" and device.type == "cpu":
        raise DeviceError("precision '16' needs a GPU; on the CPU use 'bf16' or '32'")
    return {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true"}[name]


def inference_autocast(name: str, device: torch.device) -> torch.autocast:
    """The precision of `lightning_precision` for computing without training; fp16 becomes bf16 on the CPU.

    Args:
        name: ``auto``, ``32``, ``bf16`` or ``16``, of the training.
        device: where it is computed now, which may be another one.
    """
    if name == "16" and device.type == "cpu":
        name = "bf16"
    half = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(lightning_precision(name, device))
    return torch.autocast(device.type, half or torch.float32, enabled=half is not None)
