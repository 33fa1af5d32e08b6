"""Every parameter of a GAIN-MTL run, in one frozen flat record, and the table of strategies.

Flat, because papermill merges parameter files by top-level key only. Defaults are the setting of the
method document (EfficientNetV2-S, 512 px, batch 16, 100 epochs, Adam 1e-4); the quick study's values
live in ``params/quick.yaml``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from gainmtl_lib.parameters import AnyPath, as_path
from gainmtl_lib.run_settings import Precision, Probability, RunSettings

Strategy = Literal["S1", "S2", "S3", "S4", "S5", "S6", "S7"]

TERMS = ("cls", "am", "cam_guide", "loc", "guide", "cf", "consist")
"""The seven loss terms; each names its weight ``lambda_<term>``, its log tag and its table column."""

STRATEGY_WEIGHTS: dict[str, dict[str, float]] = {
    "S1": dict(cls=1.0, am=0.0, cam_guide=0.0, loc=0.0, guide=0.0, cf=0.0, consist=0.0),
    "S2": dict(cls=1.0, am=0.0, cam_guide=0.3, loc=0.0, guide=0.0, cf=0.0, consist=0.0),
    "S3": dict(cls=0.3, am=1.0, cam_guide=1.0, loc=0.0, guide=0.5, cf=0.0, consist=0.0),
    "S4": dict(cls=0.3, am=1.0, cam_guide=1.0, loc=0.2, guide=0.5, cf=0.0, consist=0.2),
    "S5": dict(cls=0.3, am=1.0, cam_guide=1.0, loc=0.2, guide=0.5, cf=0.3, consist=0.2),
    "S6": dict(cls=0.3, am=1.0, cam_guide=1.0, loc=0.2, guide=0.5, cf=0.3, consist=0.2),
    "S7": dict(cls=0.3, am=1.0, cam_guide=1.0, loc=0.2, guide=0.5, cf=0.3, consist=0.2),
}
"""λ per strategy: the method document §3.3; S6 and S7 take S5's row."""

IMAGE_COUNTERFACTUAL = 0.5
"""S7's share of edited training samples, see `image_counterfactual`; the other strategies edit none unless asked to."""

PART_OF_TERM = {
    "am": ("attention", "S3"),
    "guide": ("attention", "S3"),
    "loc": ("localization", "S4"),
    "consist": ("localization", "S4"),
    "cf": ("counterfactual", "S5"),
}
"""Which part of the model a loss term needs, and the first strategy that has it."""


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_pretrained(value: Any) -> Any:
    return value if value == "auto" else as_path(value)


Weight = Annotated[float, Field(ge=0)]


class Settings(RunSettings):
    """Parameters of one GAIN-MTL run. Strict: unknown names and wrong types raise `SettingsError`.

    The λ that are not given come from the strategy's row of `STRATEGY_WEIGHTS`, and `image_counterfactual` is
    S7's alone unless given.
    """

    # run
    strategy: Strategy = "S5"
    variant: Annotated[str, Field(pattern=r"^[\w.-]*$")] = ""

    # model
    backbone_arch: str = "s"
    use_mmpretrain: bool = True
    out_indices: Annotated[tuple[int, ...], BeforeValidator(_as_tuple)] = (1, 2, 3, 4)
    num_classes: int = 2
    pretrained: Annotated[
        bool | Literal["auto"] | Path,
        BeforeValidator(_as_pretrained),
        Field(description="true, false, auto or the path of a weights file"),
    ] = True
    freeze_backbone_stages: Annotated[int, Field(ge=-1, le=4)] = -1
    fpn_channels: Annotated[int, Field(gt=0)] = 256
    attention_channels: Annotated[int, Field(gt=0)] = 512
    head_channels: Annotated[int, Field(gt=0)] = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    map_stride: Literal[4, 8, 16, 32] = 32
    map_channels: Annotated[int, Field(gt=0)] = 256
    use_counterfactual: bool = True
    counterfactual_mode: Literal["learned", "mean", "zero"] = "learned"
    fusion_norm: Literal["sigmoid", "product"] = "sigmoid"
    mask_source: Literal["localization", "efficientad", "external", "none", "other", "oracle"] = "localization"
    external_mask_dir: AnyPath | None = None
    efficientad_run: AnyPath | None = None

    # data
    hflip_prob: Probability = 0.5
    vflip_prob: Probability = 0.5
    rotate90_prob: Probability = 0.5
    color_jitter_prob: Probability = 0.3
    gaussian_noise_prob: Probability = 0.2
    image_counterfactual: Probability
    mask_share: Probability = 1.0
    mask_quality: Literal["exact", "box", "dilated", "shifted"] = "exact"

    # loss
    lambda_cls: Weight
    lambda_am: Weight
    lambda_cam_guide: Weight
    lambda_loc: Weight
    lambda_guide: Weight
    lambda_cf: Weight
    lambda_consist: Weight
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    focal_alpha: Annotated[float, Field(gt=0, lt=1)] | None = None
    cam_guide_target: Literal["cls", "deciding", "both"] = "both"
    normal_attention: Literal["entropy", "zero"] = "entropy"

    # training
    num_epochs: Annotated[int, Field(gt=0)] = 100
    batch_size: Annotated[int, Field(gt=0)] = 16
    learning_rate: Annotated[float, Field(gt=0)] = 1.0e-4
    stage1_ratio: Probability = 0.25
    stage2_ratio: Probability = 0.25
    stage3_ratio: Probability = 0.25
    stage4_ratio: Probability = 0.25
    loc_warmup_ratio: Probability = 0.5
    own_mask_prob: Probability = 0.6
    other_mask_prob: Probability = 0.2
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    precision: Precision = "auto"
    save_every_n_epochs: Annotated[int, Field(gt=0)] = 10

    # logging
    use_wandb: bool = False
    wandb_project: str = "gain-mtl"

    @model_validator(mode="before")
    @classmethod
    def _of_the_strategy(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        strategy = str(values.get("strategy"))
        row = STRATEGY_WEIGHTS.get(strategy, STRATEGY_WEIGHTS["S5"])
        own = {f"lambda_{term}": weight for term, weight in row.items()}
        own["image_counterfactual"] = IMAGE_COUNTERFACTUAL if strategy == "S7" else 0.0
        return own | values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_classes != 2:
            raise ValueError(f"num_classes must be 2 (the CAM is a two-class margin), got {self.num_classes}")
        ratios = [getattr(self, f"stage{k}_ratio") for k in (1, 2, 3, 4)]
        if abs(sum(ratios) - 1) > 1e-6:
            raise ValueError(
                f"stage1_ratio … stage4_ratio must sum to 1, got {' + '.join(map(str, ratios))} = {sum(ratios):g}"
            )
        if not set(self.out_indices) <= {1, 2, 3, 4} or sorted(set(self.out_indices)) != list(self.out_indices):
            raise ValueError(
                f"out_indices must be ascending levels among 1, 2, 3, 4 (strides 4 to 32), got {list(self.out_indices)}"
            )
        if any(side % 32 for side in self.image_size):
            raise ValueError(f"image_size must be multiples of 32 (the coarsest stride), got {list(self.image_size)}")
        if self.own_mask_prob + self.other_mask_prob > 1:
            raise ValueError(
                "own_mask_prob + other_mask_prob must not exceed 1, got "
                f"{self.own_mask_prob:g} + {self.other_mask_prob:g}"
            )
        if self.mask_source == "external" and self.external_mask_dir is None:
            raise ValueError("mask_source 'external' needs external_mask_dir, the folder with one mask per image")
        if self.mask_source == "efficientad" and self.efficientad_run is None:
            raise ValueError(
                "mask_source 'efficientad' needs efficientad_run, the folder of a finished EfficientAD run"
            )
        for term, (part, first) in PART_OF_TERM.items():
            if getattr(self, f"lambda_{term}") > 0 and self.strategy < first:
                raise ValueError(
                    f"lambda_{term} is {getattr(self, f'lambda_{term}'):g}, but strategy {self.strategy} has no "
                    f"{part} ({first} adds it); set it to 0"
                )
        return self

    @property
    def run_name(self) -> str:
        """The strategy, and the name of what departs from it."""
        return self.strategy.lower() + (f"-{self.variant}" if self.variant else "")

    @property
    def weights(self) -> dict[str, float]:
        """λ by term; ``use_counterfactual=False`` removes the counterfactual one."""
        weights = {term: getattr(self, f"lambda_{term}") for term in TERMS}
        return weights if self.use_counterfactual else weights | {"cf": 0.0}
