"""Every parameter of the shortcut study, in one frozen flat record, and the run of each cell of its grid.

A cell is a cue and its correlation with the class. Without data of its own the study draws synthetic data per cell and
seed: equal surfaces and defects in every cell, so that cells differ by their cue alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator

from gainmtl_lib.data.cues import Cue
from gainmtl_lib.data.planting import PARAMETERS_FILE as PLANTED_FILE
from gainmtl_lib.parameters import AnyPath, FolderName, ParameterRecord, SettingsError
from gainmtl_lib.run_settings import ImageSize, Probability
from gainmtl_lib.settings import Settings, Strategy

NO_SHORTCUT = 0.5
"""Correlation at which the cue says nothing about the class: the control of every cue."""


def _as_tuple(value: Any) -> Any:
    """A list, or a single value, which needs no brackets on the command line."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Several = BeforeValidator(_as_tuple)
AtLeastOne = Field(min_length=1)


@dataclass(frozen=True)
class PlannedCell:
    """One run of the study.

    Attributes:
        cue: that goes along with the class.
        correlation: share of defective pictures with the cue, and of normal ones without.
        strategy: S1 … S7.
        seed: of training, and of synthetic data.
        settings: of the run.
    """

    cue: str
    correlation: float
    strategy: str
    seed: int
    settings: Settings

    @property
    def name(self) -> str:
        """As in ``lighting 0.95, S5, seed 1``."""
        return f"{self.cue} {self.correlation:g}, {self.strategy}, seed {self.seed}"


class ShortcutStudySettings(ParameterRecord):
    """Parameters of the study. Strict: unknown names and wrong types raise `SettingsError`.

    Those of the training are in the file that `base` names, or the files, of which later ones win; what is given here
    besides wins over them (None leaves it). `image_counterfactual` is for S7 alone; the others edit nothing.
    """

    # study
    experiment: FolderName = "shortcut"
    base: Annotated[tuple[AnyPath, ...], Several, Field(min_length=1, validate_default=True)] = (
        Path("params/small.yaml"),
        Path("params/few_pictures.yaml"),
    )
    cues: Annotated[tuple[Cue, ...], Several, AtLeastOne] = ("mark", "lighting", "border")
    correlations: Annotated[tuple[Probability, ...], Several, AtLeastOne] = (0.95,)
    strategies: Annotated[tuple[Strategy, ...], Several, AtLeastOne] = ("S1", "S3", "S7")
    image_counterfactual: Annotated[float, Field(gt=0, le=1)] | None = None
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Several, AtLeastOne] = (0,)
    outputs_dir: AnyPath = Field(default=Path("outputs"), validate_default=True)
    data_root: AnyPath | None = None

    # in place of the base's
    num_samples: Annotated[int, Field(ge=10)] | None = None
    image_size: ImageSize | None = None
    backbone_arch: str | None = None
    map_stride: Literal[4, 8, 16, 32] | None = None
    num_epochs: Annotated[int, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(gt=0)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    device: str | None = None
    num_workers: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("cues", "correlations", "strategies", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a value twice: {', '.join(map(str, values))}")
        if min(self.correlations) < NO_SHORTCUT:
            raise ValueError(
                f"correlations must be at least {NO_SHORTCUT:g}, at which the cue says nothing about the class, got "
                f"{min(self.correlations):g}; below, the cue goes along with the normal class and means the same the "
                "other way round"
            )
        if self.data_root is not None and len(self.cues) * len(self.correlations) > 1:
            raise ValueError(
                "data_root holds one cue at one correlation, "
                f"but cues are {', '.join(self.cues)} and correlations {', '.join(map(str, self.correlations))}; "
                "give one of each, or leave data_root out to draw synthetic data"
            )
        return self

    @property
    def folder(self) -> Path:
        """``outputs/<experiment>``, above the runs and the study's table."""
        return self.outputs_dir / self.experiment

    def cells(self) -> list[PlannedCell]:
        """Every run of the grid, in the order in which they are trained: cell by cell, all strategies of each.

        Raises:
            SettingsError: the base cannot be used, or `data_root` holds another cue than asked for, or none.
        """
        return [
            PlannedCell(cue, correlation, strategy, seed, self._run(cue, correlation, strategy, seed))
            for seed in self.seeds
            for cue in self.cues
            for correlation in self.correlations
            for strategy in self.strategies
        ]

    def _run(self, cue: str, correlation: float, strategy: str, seed: int) -> Settings:
        cell = f"{cue}-{correlation:g}"
        if self.data_root is not None:
            data = _planted(self.data_root, cue=cue, correlation=correlation) | {"data_root": self.data_root}
        else:
            data = {
                "dataset_type": "synthetic",
                "data_root": self.outputs_dir / "data" / self.experiment / f"{cell}-{seed}",
                "synthetic_seed": seed,
                "shortcut": cue,
                "shortcut_correlation": correlation,
            }
        own = {"strategy": strategy, "seed": seed, "experiment": cell, "outputs_dir": self.folder}
        if strategy == "S7" and self.image_counterfactual is not None:
            own["image_counterfactual"] = self.image_counterfactual
        return Settings.from_yaml(*self.base, **self._departures(), **data, **own)

    def _departures(self) -> dict[str, Any]:
        named = ("experiment", "outputs_dir", "data_root", "image_counterfactual")
        given = {name: getattr(self, name) for name in type(self).model_fields if name in Settings.model_fields}
        return {name: value for name, value in given.items() if value is not None and name not in named}


def _planted(root: Path, *, cue: str, correlation: float) -> dict[str, Any]:
    """How the planted data is to be read, as its record says; a base made for other data would read it otherwise.

    Raises:
        SettingsError: there is no record, it cannot be read, or it is of another cue or correlation.
    """
    path = root / PLANTED_FILE
    if not path.is_file():
        raise SettingsError(
            f"data_root {root}: holds no {PLANTED_FILE}, so that its cue is unknown; plant one first: "
            f"gainmtl data plant SOURCE {root} --cue {cue} --correlation {correlation:g}"
        )
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        stored = None
    if not isinstance(stored, dict):
        raise SettingsError(f"{path}: is damaged, expected 'name: value' lines; plant the data again")
    found = stored.get("cue"), stored.get("correlation")
    if found != (cue, correlation):
        raise SettingsError(
            f"{path}: the cue is {found[0]} at correlation {found[1]}, but cues is {cue} and correlations "
            f"{correlation:g}; write what the data holds"
        )
    return {"dataset_type": "generic"} | (stored.get("read_with") or {})
