import pytest
import torch

from gainmtl_lib.train import DeviceError, check_count, checked_device, inference_autocast, lightning_precision


def test_a_device_that_is_there():
    assert checked_device("cpu") == torch.device("cpu")
    assert checked_device("auto").type in {"cpu", "cuda", "mps"}


def test_a_device_that_is_not_there():
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(DeviceError, match=f"device is '{missing}', but {torch.cuda.device_count()} CUDA devices"):
        checked_device(missing)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "meta", ""])
def test_another_name_is_no_device(name):
    with pytest.raises(DeviceError, match=f"device is '{name}'; expected auto, cpu, mps, cuda or cuda:<k>"):
        checked_device(name)


def test_the_name_of_a_tensors_device_is_one(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cpu", "cuda:1", "mps:0"):
        assert str(checked_device(name)) == name


def test_a_mac_without_its_accelerator(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="device is 'mps', but this machine has none"):
        checked_device("mps")


def test_precision_by_device():
    cpu, cuda, mps = (torch.device(name) for name in ("cpu", "cuda", "mps"))
    assert [lightning_precision("auto", device) for device in (cuda, cpu, mps)] == ["16-mixed", "bf16-mixed", "32-true"]
    assert lightning_precision("32", cuda) == "32-true" and lightning_precision("bf16", cuda) == "bf16-mixed"
    with pytest.raises(DeviceError, match="precision '16' needs a GPU; on the CPU use 'bf16' or '32'"):
        lightning_precision("16", cpu)


def test_precision_without_training_takes_what_the_device_has():
    cpu = torch.device("cpu")
    for name, dtype in {
        "auto": torch.bfloat16,
        "16": torch.bfloat16,
        "bf16": torch.bfloat16,
        "32": torch.float32,
    }.items():
        with inference_autocast(name, cpu):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert not inference_autocast("auto", torch.device("mps")).__dict__.get("_enabled")


def test_more_devices_than_there_are(monkeypatch):
    check_count(torch.device("cpu"), 64)  # processes
    check_count(torch.device("mps"), 1)
    with pytest.raises(DeviceError, match="devices is 2, but 1 of kind 'mps' is available"):
        check_count(torch.device("mps"), 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    check_count(torch.device("cuda"), 3)
    with pytest.raises(DeviceError, match="devices is 4, but 3 of kind 'cuda' are available"):
        check_count(torch.device("cuda"), 4)
