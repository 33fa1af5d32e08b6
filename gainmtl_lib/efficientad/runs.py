"""Finished runs of EfficientAD and its checkpoints, read back. Nothing in them is executed, nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from gainmtl_lib.efficientad.model import EfficientADModel
from gainmtl_lib.efficientad.settings import EfficientADSettings
from gainmtl_lib.map_scale import MapScale
from gainmtl_lib.runs import (
    EFFICIENTAD,
    Run,
    RunError,
    StoredRun,
    finished_folder,
    load_run,
    read_checkpoint,
    system_of,
)

MAP = "anomaly"
"""Name of the map's file and of its scale."""


@dataclass(frozen=True)
class EfficientADRun(StoredRun[EfficientADSettings]):
    """A finished run of EfficientAD."""

    settings_type = EfficientADSettings
    main_map = MAP

    @cached_property
    def model(self) -> EfficientADModel:
        """The best model, in evaluation mode, on the CPU."""
        model = build_model(self.settings)
        model.load_state_dict(load_file(self.folder / "model.safetensors"))
        return model.eval()

    @property
    def teacher(self) -> str:
        """Where the teacher came from; stands wherever a result of the run is shown."""
        return self.manifest["teacher"]["text"]

    @property
    def penalty(self) -> str:
        """Which images kept the student from imitating the teacher beyond good parts."""
        return self.manifest["penalty"]

    @property
    def scale(self) -> MapScale | None:
        """The absolute scale of the anomaly map, once the run is evaluated; None where validation gave none."""
        return stored_scale(self.metrics)


def build_model(settings: EfficientADSettings) -> EfficientADModel:
    """An untrained model of the settings' architecture, random teacher included."""
    return EfficientADModel(settings.model_size, settings.out_channels, padding=settings.padding)


def stored_scale(summary: dict[str, Any]) -> MapScale | None:
    """The scale that an evaluation's summary holds, if any."""
    values = summary["map_scales"].get(MAP)
    return None if values is None else MapScale(**values)


def load_efficientad(folder: str | Path) -> EfficientADRun:
    """Read a finished run of EfficientAD.

    Raises:
        RunError: there is no run in the folder, it is not finished, or it is one of a GAIN-MTL strategy.
    """
    run = open_run(folder)
    if isinstance(run, EfficientADRun):
        return run
    strategy = run.manifest["strategy"]
    raise RunError(f"{run.folder}: a run of strategy {strategy}, not of EfficientAD; see gainmtl evaluate --help")


def open_run(folder: str | Path) -> Run | EfficientADRun:
    """Read a finished run of either system.

    Raises:
        RunError: there is no run in the folder, or it is not finished.
    """
    folder = finished_folder(folder)
    return EfficientADRun(folder) if system_of(folder) == EFFICIENTAD else load_run(folder)


class CheckpointModel(NamedTuple):
    """What a checkpoint file holds for prediction.

    Attributes:
        model: in evaluation mode, on the CPU.
        settings: those it was trained with.
        teacher: as `EfficientADRun.teacher`.
    """

    model: EfficientADModel
    settings: EfficientADSettings
    teacher: str


def load_checkpoint(path: str | Path) -> CheckpointModel:
    """The model of a checkpoint file.

    Raises:
        RunError: no checkpoint that can be read safely, or one of GAIN-MTL.
    """
    checkpoint = read_checkpoint(path)
    if "teacher" not in checkpoint:
        raise RunError(f"{path}: a checkpoint of a GAIN-MTL strategy, not of EfficientAD; see gainmtl evaluate --help")
    settings = EfficientADSettings(**checkpoint["gainmtl_settings"])
    model = build_model(settings)
    prefix = "model."
    weights = checkpoint["state_dict"]
    model.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    return CheckpointModel(model.eval(), settings, checkpoint["teacher"]["text"])
