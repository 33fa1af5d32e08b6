"""A run's folder: what is written there, and how it is read back.

``outputs/<experiment>/<strategy>/seed<k>/`` holds ``settings.yaml``, ``manifest.json``, ``checkpoints/``,
``model.safetensors``, ``tensorboard/``; evaluation adds ``predictions.csv``, ``maps/``, ``metrics.json``
and ``figures/``. Nothing is executed when a run is read: settings are YAML, weights are safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gainmtl_lib.build import build_model
from gainmtl_lib.files import atomic_path
from gainmtl_lib.models.gain_mtl import GAINMTLModel
from gainmtl_lib.run_settings import RunSettings
from gainmtl_lib.settings import Settings

EFFICIENTAD = "efficientad"
"""Stands in a manifest where runs of GAIN-MTL have their strategy."""

AnySettings = TypeVar("AnySettings", bound=RunSettings)


class RunError(RuntimeError):
    """A run's folder or checkpoint that cannot be used; names it and what to do."""


@dataclass(frozen=True)
class StoredRun(Generic[AnySettings]):
    """What the finished runs of both systems leave alike, read from the folder on demand.

    Attributes:
        folder: where it lies.
    """

    folder: Path
    settings_type: ClassVar[type[RunSettings]]
    main_map: ClassVar[str]

    @cached_property
    def settings(self) -> AnySettings:
        """What the run was asked for."""
        return cast("AnySettings", self.settings_type.from_yaml(self.folder / "settings.yaml"))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Versions, device, data digest, split sizes, provider, pretrained weights, duration, status."""
        return read_json(self.folder / "manifest.json")

    @property
    def metrics(self) -> dict[str, Any]:
        """Summary of the evaluation, by split."""
        return read_json(self._evaluated("metrics.json"))

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per image of the evaluated splits."""
        return pd.read_csv(
            self._evaluated("predictions.csv"),
            dtype={"defect_type": str, "group": str},
            keep_default_na=False,  # a defect type may be named NA
            na_values=[""],
        )

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """Maps in the order of `predictions`, (N, h, w) each: of GAIN-MTL ``cam``, ``attention``, ``localization``, as
        far as there are; of EfficientAD ``anomaly``.

        Opened, not read: of ten thousand pictures only those that are looked at reach memory.
        """
        folder = self._evaluated("maps")
        return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}

    @cached_property
    def history(self) -> pd.DataFrame:
        """What training logged: columns ``tag``, ``step``, ``value``. Steps that a resume repeated appear once.

        Raises:
            RunError: the run kept no TensorBoard log.
        """
        elsewhere = self.settings.tensorboard_dir is not None
        folder = self.settings.tensorboard_folder if elsewhere else self.folder / "tensorboard"
        if not self.settings.use_tensorboard or not any(folder.glob("events.out.*")):
            raise RunError(f"{folder}: no TensorBoard log of this run; train with use_tensorboard: true")
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        rows = [(tag, e.step, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
        return pd.DataFrame(rows, columns=["tag", "step", "value"]).drop_duplicates(["tag", "step"], keep="last")

    @property
    def is_evaluated(self) -> bool:
        """Whether `evaluate` has left its results here."""
        needed = ("predictions.csv", f"maps/{self.main_map}.npy", "metrics.json")
        return all((self.folder / name).is_file() for name in needed)

    @property
    def figures_dir(self) -> Path:
        """Where figures of this run go; made when asked for."""
        folder = self.folder / "figures"
        folder.mkdir(exist_ok=True)
        return folder

    def _evaluated(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            raise RunError(f"{path} does not exist: the run is trained but not evaluated; call evaluate(run)")
        return path


@dataclass(frozen=True)
class Run(StoredRun[Settings]):
    """A finished run of a GAIN-MTL strategy."""

    settings_type = Settings
    main_map = "cam"

    @cached_property
    def model(self) -> GAINMTLModel:
        """The best model, in evaluation mode, on the CPU. Never downloads."""
        model = build_model(self.settings, pretrained=False)
        model.load_state_dict(load_file(self.folder / "model.safetensors"))
        return model.eval()


def load_run(folder: str | Path) -> Run:
    """Read a finished run of a strategy.

    Raises:
        RunError: there is no run in the folder, it is not finished, or it is one of EfficientAD.
    """
    folder = finished_folder(folder)
    if system_of(folder) == EFFICIENTAD:
        raise RunError(f"{folder}: a run of EfficientAD, not of a GAIN-MTL strategy; see gainmtl efficientad --help")
    return Run(folder)


def system_of(folder: Path) -> str:
    """``efficientad``, or the strategy, of the run in a folder."""
    return str(read_json(folder / "manifest.json").get("strategy", ""))


def finished_folder(folder: str | Path) -> Path:
    """The folder of a finished run of any system.

    Raises:
        RunError: there is no run in it, or it is not finished.
    """
    folder = Path(folder)
    status = run_status(folder)
    if status == "new":
        near = sorted(path.parent for path in folder.glob("**/manifest.json"))
        hint = f"; runs below it: {', '.join(map(str, near[:5]))}" if near else ""
        raise RunError(f"{folder}: no run here (no manifest.json){hint}")
    if status != "complete":
        raise RunError(f"{folder}: the run is not finished (status '{status}'); start the same run again to go on")
    return folder


def run_status(folder: Path) -> str:
    """``new`` (nothing here), ``running`` (started, perhaps interrupted) or ``complete``."""
    path = folder / "manifest.json"
    return str(read_json(path).get("status", "running")) if path.is_file() else "new"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write atomically; NaN, which JSON lacks, becomes null."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Raises `RunError` naming the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Weights as safetensors, atomically."""
    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, temporary)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A training checkpoint as plain data; nothing in it is executed.

    Raises:
        RunError: no file, no checkpoint, or one that this project did not write.
    """
    path = Path(path)
    if not path.is_file():
        raise RunError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes the unpickler raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RunError(f"{path}: not a checkpoint that can be read safely: {reason}") from None
    if not isinstance(checkpoint, dict) or not {"state_dict", "gainmtl_settings"} <= checkpoint.keys():
        raise RunError(
            f"{path}: a file of tensors, but not a training checkpoint of this project; "
            "weights of a backbone are given by 'pretrained'"
        )
    return checkpoint


def load_checkpoint_model(path: str | Path) -> tuple[GAINMTLModel, Settings]:
    """The model of a checkpoint file in evaluation mode, and the settings it was trained with.

    Raises:
        RunError: no checkpoint that can be read safely, or one of EfficientAD.
    """
    checkpoint = read_checkpoint(path)
    if "teacher" in checkpoint:
        raise RunError(
            f"{path}: a checkpoint of EfficientAD, not of a GAIN-MTL strategy; see gainmtl efficientad --help"
        )
    settings = Settings(**checkpoint["gainmtl_settings"])
    model = build_model(settings, pretrained=False)
    prefix = "model."
    weights = checkpoint["state_dict"]
    model.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    return model.eval(), settings
