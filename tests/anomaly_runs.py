"""Runs of EfficientAD as a training would leave them, from an untrained model of a few channels."""

from pathlib import Path
from typing import Any

import torch
import yaml

from gainmtl_lib.efficientad.data import SplitProvider
from gainmtl_lib.efficientad.model import EfficientADModel, EfficientADSettings, build_model
from gainmtl_lib.efficientad.train import EfficientADRun
from gainmtl_lib.runs import save_weights, write_json

TEACHER = {"kind": "random", "text": "random (untrained teacher: not the paper's method)", "seed": 42}


def tiny_anomaly_settings(folder: Path, **values: Any) -> EfficientADSettings:
    """40 synthetic pictures of 64 px, all outputs and data below `folder`."""
    tiny = dict(experiment="tiny", outputs_dir=folder / "outputs", data_root=folder / "data", dataset_type="synthetic")
    tiny |= dict(num_samples=40, image_size=64, val_ratio=0.0, out_channels=8, teacher="random", max_steps=4)
    return EfficientADSettings(**tiny | {"eval_batch_size": 5, "accelerator": "cpu"} | values)


def set_statistics(model: EfficientADModel, mean: torch.Tensor, std: torch.Tensor) -> None:
    model.teacher_mean.copy_(mean.view(1, -1, 1, 1))
    model.teacher_std.copy_(std.view(1, -1, 1, 1))


def untrained(settings: EfficientADSettings) -> EfficientADModel:
    """A model of random weights whose maps are of a sensible size."""
    torch.manual_seed(3)
    model = build_model(settings)
    model.set_quantiles(torch.tensor([[0.0, 1e-3], [0.0, 1e-3]]), images=4)
    return model.eval()


def write_anomaly_run(settings: EfficientADSettings, **manifest: Any) -> EfficientADRun:
    """A finished run in the settings' folder, on their data, which is made where it is missing."""
    folder = settings.run_dir
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings.plain()))
    model = untrained(settings)
    save_weights(model, folder / "model.safetensors")
    described = {"strategy": "efficientad", "status": "complete", "seed": settings.seed, "teacher": TEACHER}
    described |= {"penalty": "textures", "data_digest": SplitProvider(settings).digest}
    write_json(folder / "manifest.json", described | manifest)
    write_checkpoint(model, settings, folder / "checkpoints" / "best.ckpt")
    return EfficientADRun(folder)


def write_checkpoint(model: EfficientADModel, settings: EfficientADSettings, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": weights, "gainmtl_settings": settings.plain(), "teacher": TEACHER}, path)
    return path
