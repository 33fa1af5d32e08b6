"""Every parameter of an EfficientAD run, in one frozen flat record. Defaults are the paper's (arXiv 2303.14535)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from gainmtl_lib.efficientad.networks import SMALLEST_IMAGE, ModelSize
from gainmtl_lib.parameters import AnyPath, as_path
from gainmtl_lib.run_settings import ImageSize, Precision, Probability, RunSettings
from gainmtl_lib.runs import EFFICIENTAD

RANDOM = "random"

MVTEC_CATEGORIES = (
    "carpet", "grid", "leather", "tile", "wood",
    "bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor", "zipper",
)  # fmt: skip
"""Categories of MVTec AD: five textures, ten objects."""


def _as_teacher(value: Any) -> Any:
    return value if value == RANDOM else as_path(value)


Weight = Annotated[float, Field(ge=0)]


class EfficientADSettings(RunSettings):
    """Parameters of one EfficientAD run. Strict: unknown names and wrong types raise `SettingsError`.

    `teacher` has no default: without pretrained features the method is another one, so that `random` must be asked
    for.
    """

    # model
    model_size: ModelSize = "S"
    out_channels: Annotated[int, Field(gt=0)] = 384
    padding: bool = False
    teacher: Annotated[
        Literal["random"] | Path,
        BeforeValidator(_as_teacher),
        Field(description="the path of a weights file, or random"),
    ]

    # data
    image_size: ImageSize = (256, 256)
    val_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    category: str | None = None
    penalty_images: AnyPath | None = None

    # loss
    st_weight: Weight = 1.0
    penalty_weight: Weight = 1.0
    ae_weight: Weight = 1.0
    hard_quantile: Probability = 0.999

    # training
    max_steps: Annotated[int, Field(gt=0)] = 70_000
    max_epochs: Annotated[int, Field(gt=0)] | None = None
    train_batch_size: Annotated[int, Field(gt=0)] = 1
    eval_batch_size: Annotated[int, Field(gt=0)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 1.0e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1.0e-5
    val_every_n_steps: Annotated[int, Field(gt=0)] = 1000
    early_stopping: bool = True
    patience: Annotated[int, Field(gt=0)] = 10
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Annotated[int, Field(gt=0)] = 1
    precision: Precision = "32"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if min(self.image_size) < SMALLEST_IMAGE:
            raise ValueError(
                f"image_size must be at least {SMALLEST_IMAGE} pixels a side (the networks' strides), "
                f"got {list(self.image_size)}"
            )
        if self.category is not None and self.dataset_type != "mvtec":
            raise ValueError(f"category is for dataset_type mvtec, got {self.dataset_type} and {self.category!r}")
        return self

    @property
    def run_name(self) -> str:
        """``efficientad``, below it the category where there is one."""
        return EFFICIENTAD if self.category is None else f"{EFFICIENTAD}/{self.category}"

    @property
    def dataset_folder(self) -> Path:
        """`data_root`, of MVTec AD its category's folder."""
        return self.data_root if self.category is None else self.data_root / self.category
