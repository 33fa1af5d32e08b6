"""Devices and precisions that are there and that are not."""

import pytest
import torch

from gainmtl_lib.devices import DeviceError, checked_device, inference_autocast, lightning_precision


def test_devices_and_precisions_that_are_there_and_that_are_not(monkeypatch):
    cuda, cpu, mps = (torch.device(name) for name in ("cuda", "cpu", "mps"))
    assert checked_device("cpu", 64) == cpu  # processes
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert checked_device("auto") == cuda and checked_device("cuda:2").index == 2 and checked_device("mps") == mps
    for name, count, message in (
        ("cuda:3", 1, "device is 'cuda:3', but 3 CUDA devices are available; use 'auto'"),
        ("cuda", 4, "devices is 4, but 3 CUDA devices are available"),
        ("meta", 1, "device is 'meta'; expected auto, cpu, mps, cuda or cuda:<k>"),
    ):
        with pytest.raises(DeviceError, match=message):
            checked_device(name, count)
    for matrices, fastest in ((True, "bf16-mixed"), (False, "32-true")):  # of bf16, in hardware
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda there=matrices: {"amx_bf16": there})
        assert [lightning_precision("auto", device) for device in (cuda, cpu, mps)] == ["16-mixed", fastest, "32-true"]
        depthwise = [lightning_precision("auto", device, depthwise=True) for device in (cuda, cpu, mps)]
        assert depthwise == ["16-mixed", "32-true", "32-true"]
        asked = [lightning_precision(name, cpu, depthwise=True) for name in ("32", "bf16")]
        assert asked == ["32-true", "bf16-mixed"]  # as asked for
        for of_net in (False, True):
            with inference_autocast("auto", cpu, depthwise=of_net):
                assert torch.is_autocast_enabled("cpu") == (matrices and not of_net)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64"})
    assert lightning_precision("auto", cpu) == "32-true"
    with pytest.raises(DeviceError, match="precision '16' needs a GPU; on the CPU use 'bf16' or '32'"):
        lightning_precision("16", cpu)
    with inference_autocast("16", cpu):  # without training what the device has is taken
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
