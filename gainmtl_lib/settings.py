"""Every parameter of a run: flat frozen records, their YAML files, and errors that say what was found and expected."""

import ast
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo


class UserError(Exception):
    """Something that the user can mend; the message says what, where, and what to do. Commands show it alone."""


class SettingsError(UserError, ValueError):
    """A parameter that cannot be used: names it, what was found, and what was expected."""


def repository_root() -> Path:
    """Folder that relative paths resolve against: the checkout, or the working directory outside one."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def in_checkout(*parts: str) -> Path:
    """A file or folder of the checkout, such as a notebook; `UserError` outside one, as with an installed package."""
    path = repository_root().joinpath(*parts)
    if not path.exists():
        advice = "notebooks and parameter files come with a checkout of the repository; call gainmtl in its folder"
        raise UserError(f"{path}: not there; {advice}")
    return path


# --- A flat record of parameters


class ParameterRecord(BaseModel):
    """Base of the records of parameters. Frozen and strict: unknown names and wrong types raise `SettingsError`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            # A value that fits no member of a union is reported once per member: the first line says enough.
            details = {detail["loc"][:1] or number: detail for number, detail in enumerate(reversed(error.errors()))}
            lines = [_sentence(detail, type(self).model_fields) for detail in reversed(details.values())]
            raise SettingsError("\n".join(lines)) from None

    @classmethod
    def from_yaml(cls, *paths: str | Path, **overrides: Any) -> Self:
        """Compose parameter files, later ones win, then overrides. A `SettingsError` names the file it is about."""
        origin, values = {}, {}
        for path in paths:
            content = read_parameters(path)
            origin |= dict.fromkeys(content, f"{path}: ")
            values |= content
        origin |= dict.fromkeys(overrides, "")
        try:
            return cls(**values | overrides)
        except SettingsError as error:  # each line is led by the file that holds the first parameter it names
            found = [(next((n for n in re.findall(r"\w+", s) if n in origin), ""), s) for s in str(error).split("\n")]
            raise SettingsError("\n".join(origin.get(name, "") + sentence for name, sentence in found)) from None

    @classmethod
    def from_namespace(cls, namespace: Mapping[str, Any]) -> Self:
        """Settings from a notebook's ``globals()``.

        Every plain value there must be a field, so that a misspelt papermill parameter is an error. Under IPython other
        names count only if a cell of nothing but literal assignments set them: a notebook must run twice in one kernel.
        """
        plain, history = (bool, int, float, str, list, tuple, dict, Path, type(None)), namespace.get("In")
        known = {*cls.model_fields} if isinstance(history, list) else set(namespace) - {"In", "Out"}
        for source in history if isinstance(history, list) else ():
            try:
                statements: list[Any] = ast.parse(source).body
                known |= dict([(t.id, ast.literal_eval(s.value)) for s in statements for t in s.targets]).keys()
            except (SyntaxError, ValueError, AttributeError):  # magics, expressions, anything but a plain assignment
                continue
        named = {name: value for name, value in namespace.items() if name in known and not name.startswith("_")}
        return cls(**{name: value for name, value in named.items() if isinstance(value, plain)})

    def plain(self) -> dict[str, Any]:
        """The fields as YAML and JSON can hold them; paths inside the repository are relative to it."""
        return {name: _plain(value) for name, value in self.model_dump().items()}

    def changed(self, **values: Any) -> Self:
        """A copy with some fields replaced, validated anew."""
        return type(self)(**self.model_dump() | values)

    def differences(self, other: Self) -> list[str]:
        """One line per field that differs: ``name: own value here, value in other``."""
        mine, theirs = self.plain(), other.plain()
        return [f"{name}: {mine[name]!r} and {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        root = repository_root()
        return value.relative_to(root).as_posix() if value.is_relative_to(root) else value.as_posix()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def as_path(value: Any) -> Any:
    """Text and relative paths to absolute ones; anything else unchanged, for pydantic to judge."""
    if isinstance(value, str) and value:
        value = Path(value).expanduser()
    if isinstance(value, Path) and not value.is_absolute():
        value = repository_root() / value
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _compiling(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return value


AnyPath = Annotated[Path, BeforeValidator(as_path)]
FolderName = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) in (int, date) else value),
    Field(pattern=r"^[\w-][\w.-]*$", description="the name of one folder: letters, digits, '_', '-' and '.'"),
]
"""Of one folder: neither a path nor ".." nor hidden. papermill makes a number of 2024, and a date of 2024-05-01."""
Item = TypeVar("Item")
Several = Annotated[tuple[Item, ...], BeforeValidator(_as_tuple)]
OneOrMore = Annotated[
    Several[Item],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value]),
    Field(min_length=1, validate_default=True),
]
"""A list, or a single value, which needs no brackets on the command line."""
ImageSize = Annotated[
    tuple[Annotated[int, Field(ge=32)], Annotated[int, Field(ge=32)]],
    BeforeValidator(lambda value: (value, value) if type(value) is int else _as_tuple(value)),
]
LEAST_TILE = 64  # pixels of a side: tiles advance by multiples of 32, so that those of 32 have nothing in common
Pattern = Annotated[str, AfterValidator(_compiling)]
Count = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Cue = Literal["mark", "lighting", "texture", "border"]
Precision = Annotated[Literal["auto", "32", "bf16", "16"], BeforeValidator(lambda v: str(v) if type(v) is int else v)]


class RunSettings(ParameterRecord):
    """What the runs of both systems share: the fields, and the places that follow from them."""

    # run
    experiment: FolderName = "gainmtl"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42  # what NumPy's own generator takes
    outputs_dir: AnyPath = Field(default=Path("outputs"), validate_default=True)
    # data
    data_root: AnyPath = Field(default=Path("data"), validate_default=True)
    dataset_type: Literal[
        "generic", "mvtec", "mvtec_loco", "mvtec_ad2", "visa", "dagm", "kolektor2", "severstal", "magnetic_tile",
        "ball_screw", "synthetic",
    ] = "generic"  # fmt: skip
    image_size: ImageSize = (512, 512)
    resize: Literal["squash", "letterbox"] = "squash"
    val_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    test_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    split_seed: Annotated[int, Field(ge=0)] | None = None
    group_pattern: Pattern | None = None
    label_kind: Literal["mask", "box"] = "mask"
    box_labels: AnyPath | None = None
    mask_suffix: str = ""
    mask_marks: Literal["auto", "defect", "background"] = "auto"
    skip_unreadable: bool = False
    # synthetic data (dataset_type: synthetic)
    num_samples: Annotated[int, Field(ge=10)] = 1000
    synthetic_seed: Annotated[int, Field(ge=0)] = 0
    shortcut: Literal["none", Cue] = "mark"
    shortcut_correlation: Probability = 0.95
    # work
    devices: Count = 1
    num_nodes: Count = 1
    num_workers: Annotated[int, Field(ge=0)] = 0
    cache_images: bool = True
    # logging
    use_tensorboard: bool = True
    use_mlflow: bool = False
    tensorboard_dir: AnyPath | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.label_kind == "mask" and self.box_labels is not None:
            given = "box_labels is given, but label_kind is 'mask'"
            raise ValueError(f"{given}; set label_kind: box, or leave box_labels out")
        if self.label_kind == "box" and self.mask_marks == "background":
            raise ValueError("mask_marks is 'background', but with label_kind 'box' masks are drawn; leave it out")
        return self

    @property
    def processes(self) -> int:
        """How many share the work: one for each device of each node."""
        return self.devices * self.num_nodes

    def uneven(self, name: str) -> str:
        """What is wrong with a batch size, by its name, that does not go into equal parts; empty where it does."""
        size, sides = getattr(self, name), f"{self.devices} × {self.num_nodes} = {self.processes}"
        told = f"{name} must be a multiple of devices × num_nodes, {sides}: each takes a part of it; got {size}"
        return told if size % self.processes else ""

    @property
    def reading(self) -> dict[str, Any]:
        """How the data's folder is read: what `read_samples` takes."""
        return {name: getattr(self, name) for name in ("dataset_type", "group_pattern", "mask_suffix")}

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


# --- GAIN-MTL: the strategies and every parameter

Strategy = Literal["S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8"]

TERMS = ("cls", "am", "cam_guide", "loc", "guide", "cf", "consist", "evidence")
"""The loss terms; each names its weight ``lambda_<term>``, its log tag and its table column."""

STRATEGY_WEIGHTS: dict[str, dict[str, float]] = {
    "S1": dict(cls=1.0, am=0.0, cam_guide=0.0, loc=0.0, guide=0.0, cf=0.0, consist=0.0, evidence=0.0),
    "S2": dict(cls=1.0, am=0.0, cam_guide=0.3, loc=0.0, guide=0.0, cf=0.0, consist=0.0, evidence=0.0),
    "S3": dict(cls=0.3, am=1.0, cam_guide=1.0, loc=0.0, guide=0.5, cf=0.0, consist=0.0, evidence=0.0),
    "S4": dict(cls=0.3, am=1.0, cam_guide=1.0, loc=0.2, guide=0.5, cf=0.0, consist=0.2, evidence=0.0),
    "S5": dict(cls=0.3, am=1.0, cam_guide=1.0, loc=0.2, guide=0.5, cf=0.3, consist=0.2, evidence=0.0),
    "S6": dict(cls=0.3, am=1.0, cam_guide=1.0, loc=0.2, guide=0.5, cf=0.3, consist=0.2, evidence=0.0),
    "S7": dict(cls=0.3, am=1.0, cam_guide=1.0, loc=0.2, guide=0.5, cf=0.3, consist=0.2, evidence=0.0),
    "S8": dict(cls=1.0, am=0.0, cam_guide=0.0, loc=0.0, guide=0.0, cf=0.0, consist=0.0, evidence=1.0),
}
"""λ per strategy: the method document §3.3; S6 and S7 take S5's row, S8 has its own."""

_GUIDED = ("attention", "localization", "counterfactual")
PARTS: dict[str, tuple[str, ...]] = {
    "S1": (), "S2": (), "S3": _GUIDED[:1], "S4": _GUIDED[:2], "S5": _GUIDED, "S6": _GUIDED, "S7": _GUIDED,
    "S8": ("evidence", "counterfactual"),
}  # fmt: skip
"""Parts of the model beside the classifier of path 1, in whose place S8 has the evidence."""

PART_OF_TERM = {
    "am": "attention", "guide": "attention", "loc": "localization", "consist": "localization", "cf": "counterfactual",
    "evidence": "evidence",
}  # fmt: skip
"""Which part of the model a loss term needs."""

EDITED = ("S7", "S8")
"""Strategies that train on edited pictures unless told otherwise."""


def first_with(part: str) -> str:
    """The first strategy that has a part of `PARTS`."""
    return next(strategy for strategy, parts in PARTS.items() if part in parts)


def strategies_with(*parts: str) -> str:
    """Which strategies have one of some parts of `PARTS`, which follow each other: ``S4 to S8``."""
    found = [strategy for strategy, own in PARTS.items() if {*parts} & {*own}]
    return f"{found[0]} to {found[-1]}"


PLACES = {
    "external": ("external_mask_dir", "the folder with one mask per image"),
    "efficientad": ("efficientad_run", "the folder of a finished EfficientAD run"),
}
"""For S6's mask sources that come from somewhere the parameter that says where, and what is there."""


class Settings(RunSettings):
    """Parameters of one GAIN-MTL run. Strict: unknown names and wrong types raise `SettingsError`.

    λ that are not given come from the strategy's row; `image_counterfactual`, the share of edited training samples, is
    0.5 for S7 and S8 and 0 for the others.
    """

    # run
    strategy: Strategy = "S5"
    variant: Annotated[str, Field(pattern=r"^[\w.-]*$")] = ""
    # model
    backbone_arch: str = "s"
    use_mmpretrain: bool = True
    out_indices: Several[int] = (1, 2, 3, 4)
    num_classes: int = 2
    pretrained: Annotated[
        bool | Literal["auto"] | Path,
        BeforeValidator(lambda value: value if value == "auto" else as_path(value)),
        Field(description="true, false, auto or the path of a weights file"),
    ] = True
    freeze_backbone_stages: Annotated[int, Field(ge=-1, le=4)] = -1
    fpn_channels: Count = 256
    attention_channels: Count = 512
    head_channels: Count = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    map_stride: Literal[4, 8, 16, 32] = 32
    map_channels: Count = 256
    use_counterfactual: bool = True
    counterfactual_mode: Literal["learned", "mean", "zero"] = "learned"
    fusion_norm: Literal["sigmoid", "product"] = "sigmoid"
    evidence_share: OneOrMore[Share] = (0.003, 0.05)
    defect_types: Annotated[Literal["auto", "off"], BeforeValidator(lambda v: "off" if v is False else v)] = "auto"
    tile_size: ImageSize | None = None
    tile_overlap: Annotated[float, Field(ge=0, le=0.5)] = 0.25
    mask_source: Literal["localization", "efficientad", "external", "none", "other", "oracle"] = "localization"
    external_mask_dir: AnyPath | None = None
    efficientad_run: AnyPath | None = None
    # data
    crop_size: ImageSize | None = None
    hflip_prob: Probability = 0.5
    vflip_prob: Probability = 0.5
    rotate90_prob: Probability = 0.5
    color_jitter_prob: Probability = 0.3
    gaussian_noise_prob: Probability = 0.2
    image_counterfactual: Probability
    mask_share: Probability = 1.0
    mask_quality: Literal["exact", "box", "dilated", "shifted"] = "exact"
    allow_no_masks: bool = False
    # loss
    lambda_cls: Weight
    lambda_am: Weight
    lambda_cam_guide: Weight
    lambda_loc: Weight
    lambda_guide: Weight
    lambda_cf: Weight
    lambda_consist: Weight
    lambda_evidence: Weight
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    focal_alpha: Annotated[float, Field(gt=0, lt=1)] | None = None
    cam_guide_target: Literal["cls", "deciding", "both"] = "both"
    normal_attention: Literal["entropy", "zero"] = "entropy"
    # training
    num_epochs: Count = 100
    batch_size: Count = 16
    learning_rate: Annotated[float, Field(gt=0)] = 1.0e-4
    backbone_lr_scale: Annotated[float, Field(gt=0)] = 1.0
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Weight = 0.0
    stage1_ratio: Probability = 0.25
    stage2_ratio: Probability = 0.25
    stage3_ratio: Probability = 0.25
    stage4_ratio: Probability = 0.25
    loc_warmup_ratio: Probability = 0.5
    own_mask_prob: Probability = 0.6
    other_mask_prob: Probability = 0.2
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    precision: Precision = "auto"
    save_every_n_epochs: Count = 10
    # logging
    use_wandb: bool = False
    wandb_project: str = "gain-mtl"

    @model_validator(mode="before")
    @classmethod
    def _of_the_strategy(cls, values: dict[str, Any]) -> dict[str, Any]:
        strategy = str(values.get("strategy"))
        row = STRATEGY_WEIGHTS.get(strategy, STRATEGY_WEIGHTS["S5"])
        own = {f"lambda_{term}": weight for term, weight in row.items()}
        return own | {"image_counterfactual": 0.5 if strategy in EDITED else 0.0} | values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        levels, masks, size = list(self.out_indices), (self.own_mask_prob, self.other_mask_prob), list(self.image_size)
        ratios = (self.stage1_ratio, self.stage2_ratio, self.stage3_ratio, self.stage4_ratio)
        ratio_sum = f"{' + '.join(map(str, ratios))} = {sum(ratios):g}"
        rising = bool(levels) and levels == sorted(set(levels) & {1, 2, 3, 4})
        checks = {
            f"num_classes must be 2 (the CAM is a two-class margin), got {self.num_classes}": self.num_classes == 2,
            f"stage1_ratio … stage4_ratio must sum to 1, got {ratio_sum}": abs(sum(ratios) - 1) <= 1e-6,
            f"out_indices must be ascending levels among 1, 2, 3, 4 (strides 4 to 32), got {levels}": rising,
            f"image_size must be multiples of 32 (the coarsest stride), got {size}": not any(s % 32 for s in size),
            f"own_mask_prob + other_mask_prob must not exceed 1, got {masks[0]:g} + {masks[1]:g}": sum(masks) <= 1,
        }
        for source, (place, what) in PLACES.items():
            given = self.mask_source != source or getattr(self, place) is not None
            checks[f"mask_source '{source}' needs {place}, {what}"] = given
        for term, part in PART_OF_TERM.items():
            weight, adds = getattr(self, f"lambda_{term}"), f"{first_with(part)} adds it"
            told = f"lambda_{term} is {weight:g}, but strategy {self.strategy} has no {part} ({adds}); set it to 0"
            checks[told] = not weight or self.has(part)
        if uneven := self.uneven("batch_size"):
            checks[uneven] = False
        told = f"device '{self.device}' is a single one, but devices × num_nodes is {self.processes}; set device: cuda"
        checks[told] = ":" not in self.device or self.processes == 1
        for name, window in (("crop_size", self.crop_size), ("tile_size", self.tile_size)):
            sides = list(window or (32, 32))
            whole = not any(side % 32 for side in sides)
            checks[f"{name} must be multiples of 32 (the coarsest stride), got {sides}"] = whole
        crop = list(self.crop_size or size)
        within = all(own <= whole for own, whole in zip(crop, size))
        checks[f"crop_size must lie within the picture (image_size {size}), got {crop}"] = within
        tile = list(self.tile_size or size)
        shares = self.tile_overlap == 0 or all(own >= min(LEAST_TILE, whole) for own, whole in zip(tile, size))
        checks[f"tile_size must be at least {LEAST_TILE} a side, or neighbours share no cell, got {tile}"] = shares
        cells = " x ".join(str(side // self.map_stride) for side in size)
        told = f"evidence_share {min(self.evidence_share):g} of the map's {cells} cells selects no cell"
        checks[f"{told}; raise it, or set a smaller map_stride"] = (
            not self.has("evidence") or min(self.evidence_cells) > 0
        )
        for sentence, holds in checks.items():
            if not holds:
                raise ValueError(sentence)
        return self

    @property
    def run_name(self) -> str:
        """The strategy, and the name of what departs from it."""
        return self.strategy.lower() + (f"-{self.variant}" if self.variant else "")

    @property
    def evidence_cells(self) -> tuple[int, ...]:
        """Of how many cells the evidence's mean may decide: each `evidence_share` of those of a whole picture."""
        cells = math.prod(side // self.map_stride for side in self.image_size)
        return tuple(round(share * cells) for share in self.evidence_share)

    def has(self, part: str) -> bool:
        """Whether the strategy's model has a part of `PARTS`."""
        return part in PARTS[self.strategy]

    @property
    def suppression(self) -> str:
        """How path 3 takes a defect away: `counterfactual_mode`, but of S8 ``mean``, which learns nothing."""
        return "mean" if self.has("evidence") else self.counterfactual_mode

    @property
    def weights(self) -> dict[str, float]:
        """λ by term; ``use_counterfactual=False`` removes the counterfactual one."""
        weights = {term: getattr(self, f"lambda_{term}") for term in TERMS}
        return weights if self.use_counterfactual else weights | {"cf": 0.0}


TEXTS = {
    "experiment", "variant", "category", "mask_suffix", "group_pattern", "within", "wandb_project",
    "backbone_arch", "backbone", "device", "data_root", "outputs_dir", "box_labels", "tensorboard_dir",
    "external_mask_dir", "efficientad_run", "penalty_images", "images", "output", "teacher",
}  # fmt: skip
"""Parameters that are text or a path: 007, 2024_05_01 and 1e3 are meant as they are written. What YAML reads as
nothing (null, ~) stays that, but of `experiment`."""


class _Parameters(yaml.SafeLoader):
    """Takes `TEXTS` as written, and refuses a name that stands twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key, _ in node.value:
            if key.value in names:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
            names.add(str(key.value))
        for key, value in node.value:
            is_null = value.tag == "tag:yaml.org,2002:null" and (key.value != "experiment" or not value.value)
            if key.value in TEXTS and isinstance(value, yaml.ScalarNode) and not is_null:
                value.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep=deep)


def read_parameters(path: str | Path, *, nested: bool = False) -> dict[str, Any]:
    """One parameter file as a flat mapping, or (`nested`) with mappings as values, as in a study's plan."""
    path = Path(path)
    if not path.is_file():
        if path.parts[:1] == ("params",):  # not a file of the user's own
            in_checkout("params")
        raise SettingsError(f"{path}: no such parameter file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Parameters)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a YAML file: {error}") from None
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsError(f"{path}: expected 'name: value' lines, got {type(content).__name__}")
    if not nested and (mappings := ", ".join(key for key, value in content.items() if isinstance(value, dict))):
        advice = "parameters are flat, write them at the top level"
        raise SettingsError(f"{path}: {mappings} holds a nested mapping; {advice}")
    return content


_EXPECTED = {
    "float_type": "a number", "int_type": "a whole number", "int_from_float": "a whole number",
    "bool_type": "true or false", "string_type": "text", "tuple_type": "a list",
}  # fmt: skip


def closest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for a misspelt name, or nothing when no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _sentence(detail: Any, fields: Mapping[str, FieldInfo]) -> str:
    name, value, kind = str(detail["loc"][0] if detail["loc"] else ""), detail["input"], detail["type"]
    if kind == "extra_forbidden":
        return f"unknown parameter '{name}'{closest(name, fields)}"
    if kind == "value_error":
        sentence = str(detail["ctx"]["error"])
        return sentence if sentence.startswith(name) else f"{name} {sentence}"
    described = fields[name].description if name in fields else None
    if kind == "missing":
        return f"{name} is missing; expected {described or 'a value'}"
    expected = described or _EXPECTED.get(kind) or str(detail["msg"]).removeprefix("Input should be ")
    got, hint = f"{'the text ' * isinstance(value, str)}{value!r}", ""
    if isinstance(value, str):
        if kind == "float_type" and re.fullmatch(r"[+-]?\d+e[+-]?\d+", value, re.IGNORECASE):
            hint = f"; YAML reads {value} as text, write {'.0e'.join(re.split('[eE]', value))}"
        if kind == "bool_type" and value.lower() in {"true", "false"}:
            hint = f"; with -p write {value.capitalize()}"
    return f"{name} must be {expected}, got {got}{hint}"
