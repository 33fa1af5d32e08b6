"""Every parameter of a distillation, in one frozen flat record. Defaults are the paper's (arXiv 2303.14535)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from gainmtl_lib.efficientad.networks import SMALLEST_IMAGE, ModelSize
from gainmtl_lib.parameters import AnyPath, ParameterRecord, as_path

Count = Annotated[int, Field(gt=0)]


class Distillation(ParameterRecord):
    """Parameters of one distillation. Strict: unknown names and wrong types raise `SettingsError`.

    Attributes:
        images: folder of pictures, at any depth.
        output: ``.safetensors`` file for the teacher.
        backbone: any timm name with features at strides 8 and 16; it sees pictures of twice `image_size`.
        backbone_weights: True for those that go by its name, a file, or False for random ones.
        model_size, out_channels: of the teacher.
        image_size: pixels a side of the teacher's pictures.
        steps, batch_size, learning_rate, weight_decay: of the optimiser.
        statistics_images: pictures, at most, that give the targets' mean and standard deviation; each counts once.
        seed: of the first weights and of the pictures' order.
        save_every_n_steps: how often the work so far is kept.
        device: see `checked_device`.
        num_workers: processes that read pictures.
    """

    images: AnyPath
    output: AnyPath
    backbone: str = "wide_resnet101_2"
    backbone_weights: Annotated[bool | Path, BeforeValidator(as_path)] = True
    model_size: ModelSize = "S"
    out_channels: Count = 384
    image_size: Annotated[int, Field(ge=SMALLEST_IMAGE)] = 256
    steps: Count = 60_000
    batch_size: Count = 16
    learning_rate: Annotated[float, Field(gt=0)] = 1.0e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1.0e-5
    statistics_images: Count = 10_000
    seed: Annotated[int, Field(ge=0)] = 42
    save_every_n_steps: Count = 1000
    device: str = "auto"
    num_workers: Annotated[int, Field(ge=0)] = 0

    @field_validator("output")
    @classmethod
    def _holds_a_record(cls, output: Path) -> Path:
        if output.suffix != ".safetensors":
            raise ValueError(f"output must be a .safetensors file, got {output.name}")
        return output

    def record(self, pictures: int) -> dict[str, Any]:
        """What decides the teacher, for its file: plain values, no paths."""
        weights, words = self.backbone_weights, {True: "pretrained", False: "random weights"}
        left_out = {"output", "backbone_weights", "save_every_n_steps", "device", "num_workers"}
        return {name: value for name, value in self.plain().items() if name not in left_out} | {
            "images": self.images.name,
            "pictures": pictures,
            "weights": words[weights] if isinstance(weights, bool) else weights.name,
            "padding": True,
        }
