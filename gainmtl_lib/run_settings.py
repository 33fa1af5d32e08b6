"""What the runs of both systems share: where they write, which data they read, how it is split and kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from gainmtl_lib.parameters import AnyPath, FolderName, ParameterRecord


def _as_size(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    return tuple(value) if isinstance(value, list) else value


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Side = Annotated[int, Field(ge=32)]
ImageSize = Annotated[tuple[Side, Side], BeforeValidator(_as_size)]
Probability = Annotated[float, Field(ge=0, le=1)]
Precision = Annotated[Literal["auto", "32", "bf16", "16"], BeforeValidator(_as_text)]


class RunSettings(ParameterRecord):
    """The fields, and the places that follow from them."""

    # run
    experiment: FolderName = "gainmtl"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42  # what NumPy's own generator takes
    outputs_dir: AnyPath = Field(default=Path("outputs"), validate_default=True)

    # data
    data_root: AnyPath = Field(default=Path("data"), validate_default=True)
    dataset_type: Literal["generic", "mvtec", "magnetic_tile", "synthetic"] = "generic"
    image_size: ImageSize = (512, 512)
    resize: Literal["squash", "letterbox"] = "squash"
    val_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    test_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    split_seed: Annotated[int, Field(ge=0)] | None = None
    group_pattern: str | None = None
    label_kind: Literal["mask", "box"] = "mask"
    box_labels: AnyPath | None = None
    skip_unreadable: bool = False

    # synthetic data (dataset_type: synthetic)
    num_samples: Annotated[int, Field(ge=10)] = 1000
    synthetic_seed: Annotated[int, Field(ge=0)] = 0
    shortcut: Literal["none", "mark", "lighting", "texture", "border"] = "mark"
    shortcut_correlation: Probability = 0.95

    # work
    num_workers: Annotated[int, Field(ge=0)] = 0
    cache_images: bool = True

    # logging
    use_tensorboard: bool = True
    tensorboard_dir: AnyPath | None = None

    @field_validator("group_pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"group_pattern is not a regular expression: {error}") from None
        return pattern

    @property
    def run_name(self) -> str:
        """The folder between experiment and seed."""
        raise AttributeError(f"{type(self).__name__} names no run")

    @property
    def seed_of_split(self) -> int:
        """`split_seed`, else `seed`."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def dataset_folder(self) -> Path:
        """The dataset's own folder, which the paths in a run's tables are below."""
        return self.data_root

    @property
    def run_dir(self) -> Path:
        """``outputs/<experiment>/<run_name>/seed<k>``."""
        return self.outputs_dir / self.experiment / self.run_name / f"seed{self.seed}"

    @property
    def tensorboard_folder(self) -> Path:
        """Where the run's event files go: its own folder, or the same path below `tensorboard_dir`."""
        if self.tensorboard_dir is None:
            return self.run_dir / "tensorboard"
        return self.tensorboard_dir / self.run_dir.relative_to(self.outputs_dir)
