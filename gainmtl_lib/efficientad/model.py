"""EfficientAD (arXiv 2303.14535): its parameters, its networks, its losses, and weights from files in any naming.

Sizes: B images, H x W pixels, C channels of a description, h x w its cells.
"""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from gainmtl_lib import processes
from gainmtl_lib.backbone import ModelError, StateDict, read_checkpoint
from gainmtl_lib.evaluation import file_digest
from gainmtl_lib.layouts import LAYOUTS
from gainmtl_lib.runs import EFFICIENTAD
from gainmtl_lib.settings import AnyPath, Count, ImageSize, Precision, Probability, RunSettings, Weight, as_path

ModelSize = Literal["S", "M"]

SMALLEST_IMAGE = 64  # pixels a side: a description without padding has 8 cells of it, the encoder's last grid 2

MVTEC_CATEGORIES = (  # five textures, ten objects
    "carpet", "grid", "leather", "tile", "wood",
    "bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor", "zipper",
)  # fmt: skip


class EfficientADSettings(RunSettings):
    """Parameters of one EfficientAD run. Strict: unknown names and wrong types raise `SettingsError`.

    `teacher` has no default: without pretrained features the method is another one, so `random` must be asked for.
    """

    # model
    model_size: ModelSize = "S"
    out_channels: Count = 384
    padding: bool = False
    teacher: Annotated[
        Literal["random"] | Path,
        BeforeValidator(lambda value: value if value == "random" else as_path(value)),
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
    max_steps: Count = 70_000
    max_epochs: Count | None = None
    train_batch_size: Count = 1
    eval_batch_size: Count = 32
    learning_rate: Annotated[float, Field(gt=0)] = 1.0e-4
    weight_decay: Weight = 1.0e-5
    val_every_n_steps: Count = 1000
    early_stopping: bool = True
    patience: Count = 10
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Precision = "32"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if min(self.image_size) < SMALLEST_IMAGE:
            raise ValueError(f"image_size must be at least {SMALLEST_IMAGE} pixels a side, got {list(self.image_size)}")
        if self.category is not None and LAYOUTS[self.dataset_type].category is None:
            having = ", ".join(kind for kind, layout in LAYOUTS.items() if layout.category)
            raise ValueError(f"category is for dataset_type {having}, got {self.dataset_type} and {self.category!r}")
        if uneven := self.uneven("train_batch_size"):
            raise ValueError(uneven)
        return self

    @property
    def run_name(self) -> str:
        """``efficientad``, below it the category where there is one."""
        return EFFICIENTAD if self.category is None else f"{EFFICIENTAD}/{self.category}"

    @property
    def dataset_folder(self) -> Path:
        """`data_root`, or in it the folder of the category."""
        return self.data_root if self.category is None else self.data_root / self.category


# --- The networks (appendix A.1)


# Of each convolution: channels, kernel, padding in a padded network, whether average pooling follows.
_HIDDEN = {
    "S": ((128, 4, 3, True), (256, 4, 3, True), (256, 3, 1, False)),
    "M": ((256, 4, 3, True), (512, 4, 3, True), (512, 1, 0, False), (512, 3, 1, False)),
}


class PatchDescriptionNetwork(nn.Module):
    """Describes every patch of 33 pixels a side in one pass (PDN): S has four convolutions, M six; with `padding` the
    description covers the whole image, otherwise it ends four cells before each border.
    """

    def __init__(self, *, model_size: ModelSize, out_channels: int, padding: bool = False) -> None:
        super().__init__()
        last = ((out_channels, 4, 0, False), (out_channels, 1, 0, False))[: 2 if model_size == "M" else 1]
        self.padding = padding
        self._layers = (*_HIDDEN[model_size], *last)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel, padding=pad if padding else 0)
            for (before, *_), (after, kernel, pad, _) in pairwise([(3, 0, 0, False), *self._layers])
        )

    def forward(self, images: Tensor) -> Tensor:
        """Shape: normalised (B, 3, H, W) -> (B, C, h, w)."""
        return self.convolutions[-1](self.hidden(images))

    def hidden(self, images: Tensor) -> Tensor:
        """What the last convolution reads, (B, C', h', w'), for `part`."""
        features = images
        for (*_, pooled), convolution in zip(self._layers[:-1], self.convolutions):
            features = F.relu(convolution(features), inplace=True)
            if pooled:
                features = F.avg_pool2d(features, 2, padding=1 if self.padding else 0)
        return features

    def part(self, hidden: Tensor, channels: slice) -> Tensor:
        """Some channels of the description alone, at their share of the last convolution's cost."""
        last: Any = self.convolutions[-1]
        return F.conv2d(hidden, last.weight[channels], last.bias[channels])

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Cells (h, w) of the description of an image (H, W)."""
        cells, padded = torch.tensor(image_size), int(self.padding)
        for _, kernel, pad, pooled in self._layers:
            cells = cells + 2 * pad * padded - kernel + 1
            if pooled:
                cells = (cells + 2 * padded) // 2
        return int(cells[0]), int(cells[1])


class AutoEncoder(nn.Module):
    """Reproduces the teacher's description through a bottleneck, so that it keeps to the global structure.

    The decoder's grids are shares of the image, 3, 8, 15, 32, 63 and 127 cells at 256 pixels; below that the encoder's
    grid is padded with zeros to the bottleneck's kernel, so that one set of weights serves every size.
    """

    def __init__(self, *, out_channels: int) -> None:
        super().__init__()
        self.dropout = 0.2
        strided = [nn.Conv2d(*pair, 4, stride=2, padding=1) for pair in pairwise((3, 32, 32, 64, 64, 64))]
        self.encoder = nn.ModuleList([*strided, nn.Conv2d(64, 64, 8)])
        mixing = [nn.Conv2d(64, 64, 4, padding=2) for _ in range(6)]
        last = (nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, out_channels, 3, padding=1))
        self.decoder = nn.ModuleList([*mixing, *last])

    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Shape: normalised (B, 3, H, W) -> (B, C, h, w) on the teacher's grid."""
        features = images
        *strided, bottleneck = self.encoder
        for convolution in strided:
            features = F.relu(convolution(features), inplace=True)
        down, across = (max(0, 8 - cells) for cells in features.shape[-2:])
        features = bottleneck(F.pad(features, (across // 2, across - across // 2, down // 2, down - down // 2)))
        *mixing, joining, last = self.decoder
        steps = ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1))
        for convolution, (part, less) in zip(mixing, steps, strict=True):
            size = tuple(max(1, side // part - less) for side in images.shape[-2:])
            features = F.relu(convolution(F.interpolate(features, size, mode="bilinear")), inplace=True)
            features = F.dropout(features, self.dropout, self.training)
        return last(F.relu(joining(F.interpolate(features, grid, mode="bilinear")), inplace=True))


# --- The model

BORDER = 4  # cells before each border that a description without padding leaves out
QUANTILES = (0.9, 0.995)  # of the normal validation maps: 0 and 0.1 on the anomaly map's scale


class LocalMaps(NamedTuple):
    """The two maps on the description's grid, (B, 1, h, w), at least 0, not yet on a common scale."""

    student_teacher: Tensor
    student_autoencoder: Tensor


class AnomalyOutput(NamedTuple):
    """What the model says, float32: the mean of the two maps, each 0 at the 90 % quantile of normal parts and 0.1 at
    the 99.5 % quantile, negative where calmer, and 0 on the border that a network without padding leaves out.
    """

    anomaly_map: Tensor  # (B, 1, H, W)
    score: Tensor  # (B,), the map's maximum before it is enlarged
    cells: Tensor  # (B, 1, h', w'), the map before it is enlarged, its border included


class EfficientADModel(nn.Module):
    """Teacher, student and autoencoder, with the statistics that make their maps comparable as buffers.

    Args:
        model_size: S or M, of teacher and student.
        out_channels: C of the teacher and of the autoencoder; the student has twice that, one half for each.
        padding: see `PatchDescriptionNetwork`.

    `ModelError`: another size; in `forward`, images below `SMALLEST_IMAGE`.
    """

    teacher_mean: Tensor
    teacher_std: Tensor
    quantiles: Tensor
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, model_size: ModelSize = "S", out_channels: int = 384, *, padding: bool = False) -> None:
        super().__init__()
        if model_size not in ("S", "M"):
            raise ModelError(f"model_size must be S or M, got {model_size!r}")
        self.model_size, self.out_channels, self.padding = model_size, out_channels, padding
        self.teacher = PatchDescriptionNetwork(model_size=model_size, out_channels=out_channels, padding=padding)
        self.student = PatchDescriptionNetwork(model_size=model_size, out_channels=2 * out_channels, padding=padding)
        self.autoencoder = AutoEncoder(out_channels=out_channels)
        self.teacher.requires_grad_(False)
        self.register_buffer("teacher_mean", torch.zeros(1, out_channels, 1, 1))
        self.register_buffer("teacher_std", torch.ones(1, out_channels, 1, 1))
        self.register_buffer("quantiles", torch.tensor([[0.0, 0.1], [0.0, 0.1]]))  # (map, lower and upper)
        # ImageNet's, which the published teachers were made with.
        self.register_buffer("image_mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> AnomalyOutput:
        """Shape: (B, 3, H, W) in [0, 1] -> see `AnomalyOutput`."""
        return self.finish(self.local_maps(images), (images.shape[-2], images.shape[-1]))

    def local_maps(self, images: Tensor) -> LocalMaps:
        """Shape: (B, 3, H, W) in [0, 1] -> see `LocalMaps`."""
        pixels = self.normalized(images)
        described = self.describe(pixels).float()
        local, whole = self.student(pixels).float().split(self.out_channels, dim=1)
        predicted = self.autoencoder(pixels, (described.shape[-2], described.shape[-1])).float()
        away = (described - local, predicted - whole)
        return LocalMaps(*(one.square().mean(dim=1, keepdim=True) for one in away))

    def normalized(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] as the networks want them."""
        check_size(images.shape[-2], images.shape[-1])
        return (images - self.image_mean) / self.image_std

    @torch.no_grad()
    def describe(self, pixels: Tensor) -> Tensor:
        """The teacher's description of normalised images, each channel standardised, (B, C, h, w)."""
        return (self.teacher(pixels) - self.teacher_mean) / self.teacher_std

    def finish(self, maps: LocalMaps, image_size: tuple[int, int]) -> AnomalyOutput:
        """Put the maps on their common scale, join them, and enlarge the result to the image."""
        lower, upper = self.quantiles.float().unbind(dim=1)
        scaled = [0.1 * (one.float() - a) / (b - a) for one, a, b in zip(maps, lower, upper, strict=True)]
        joined = (scaled[0] + scaled[1]) / 2
        framed = joined if self.padding else F.pad(joined, (BORDER,) * 4)
        enlarged = F.interpolate(framed, size=image_size, mode="bilinear", align_corners=False)
        return AnomalyOutput(enlarged, joined.amax(dim=(1, 2, 3)), framed)

    @torch.no_grad()
    def measure_teacher(self, batches: Iterable[Tensor]) -> None:
        """Standardise the teacher's channels by their mean and deviation over one pass of images in [0, 1]."""
        pixels = (self.normalized(batch.to(self.teacher_mean.device)) for batch in batches)
        described = (self.teacher(each.contiguous(memory_format=torch.channels_last)) for each in pixels)
        mean, std = channel_moments(described, whose="the teacher's")
        self.teacher_mean.copy_(mean.view(1, -1, 1, 1))
        self.teacher_std.copy_(std.view(1, -1, 1, 1))

    def set_quantiles(self, quantiles: Tensor, *, images: int) -> None:
        """Where the scale of each map begins and ends, (2, 2): of each map of `LocalMaps` its `QUANTILES`."""
        if not (quantiles.isfinite().all() and (quantiles[:, 1] > quantiles[:, 0]).all()):
            values = ", ".join(f"{value:.4g}" for value in quantiles.flatten().tolist())
            what = f"the quantiles of the normal validation maps ({images}) give no scale ({values}), finite and rising"
            raise ModelError(f"{what}: validate on more normal images (val_ratio), and see that the loss is finite")
        self.quantiles.copy_(quantiles)


def build_model(settings: EfficientADSettings) -> EfficientADModel:
    """An untrained model of the settings' architecture, random teacher included."""
    return EfficientADModel(settings.model_size, settings.out_channels, padding=settings.padding)


def check_size(height: int, width: int) -> None:
    """Raises `ModelError`: images of that size are below `SMALLEST_IMAGE`."""
    if min(height, width) < SMALLEST_IMAGE:
        what = f"{SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels, got {height}x{width} (height x width)"
        raise ModelError(f"EfficientAD needs images of at least {what}")


def channel_moments(descriptions: Iterable[Tensor], *, whose: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over all cells of descriptions (B, C, h, w), float32 (C,) each."""
    count, mean, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for described in descriptions:  # joined as Chan, Golub, LeVeque (1979) do: a mean far off costs no precision
        moments = torch.var_mean(described.float(), dim=(0, 2, 3), correction=0)
        variance, own = (each.cpu().double() for each in moments)
        cells = described.numel() // described.shape[1]
        away, total = own - mean, count + cells
        mean = mean + away * (cells / total)
        squares = squares + variance * cells + away.square() * (count * cells / total)
        count = total
    mean, std = mean.float(), (squares / count).sqrt().float()
    if useless := int((~(mean.isfinite() & std.isfinite() & (std > 0))).sum()):
        what = f"{useless} of {whose} {len(std)} channels never change on these images, or are not finite"
        raise ModelError(f"{what}; the images are all the same, or the network's weights are damaged")
    return mean, std


# --- The four terms of training (sections 3.2 and 3.3; algorithm 1)

TERMS = ("st", "penalty", "ae", "stae")  # student-teacher, penalty, teacher-autoencoder, student-autoencoder


def hard_feature_loss(student: Tensor, teacher: Tensor, quantile: float = 0.999, *, weight: float = 1.0) -> Tensor:
    """Mean of the largest squared differences d over all of (B, C, h, w), ``mean(d | d >= q-quantile of d)``.

    Of a part of a batch, of this `weight`, what it adds to the processes' mean; the quantile is of the whole batch.
    """
    difference, count = (teacher.float() - student.float()).square(), processes.count()
    total = round(difference.numel() * count / weight)
    chosen = difference >= processes.hardest(difference.detach(), quantile, total=total)
    return (difference * chosen).sum() / (processes.summed(chosen.sum()) / count)


def pretraining_penalty(student: Tensor) -> Tensor:
    """Keep the student's teacher half from imitating beyond good parts: mean square on pictures of something else."""
    return student.float().square().mean()


def distance_loss(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference; of teacher and autoencoder, and of student and autoencoder."""
    return (first.float() - second.float()).square().mean()


def total_loss(terms: dict[str, Tensor], settings: EfficientADSettings) -> Tensor:
    """The weighted sum; `ae_weight` scales both terms of the autoencoder."""
    weights = (settings.st_weight, settings.penalty_weight, settings.ae_weight, settings.ae_weight)
    return torch.stack([weight * terms[name] for name, weight in zip(TERMS, weights, strict=True)]).sum()


# --- Weights from files: ours, the published ones' (nelson1425/EfficientAD) and anomalib's

RECORD = "gainmtl_teacher"  # key of a teacher file's metadata under which `distill` tells, as JSON, how it was made


def teacher_of(settings: EfficientADSettings) -> tuple[StateDict, dict[str, Any]]:
    """The teacher that the settings ask for, under our names, and what a manifest says of it, ``text`` in a line."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = PatchDescriptionNetwork(model_size=settings.model_size, out_channels=settings.out_channels)
    if settings.teacher == "random":
        text = "random (untrained teacher: not the paper's method)"
        return network.state_dict(), {"kind": "random", "text": text, "seed": settings.seed}
    path = Path(settings.teacher)
    fill_teacher(network, read_weights(path), source=str(path))
    told = {"kind": "file", "text": f"weights file {path.name}", "file": settings.plain()["teacher"]}
    told |= {"digest": file_digest(path)}
    if record := teacher_record(path):
        text = f"distilled from {record['backbone']} ({record['weights']}) on {record['images']}"
        told |= {"text": text, "distilled": record}
    return network.state_dict(), told


def teacher_record(path: Path) -> dict[str, Any] | None:
    """How `distill` made a teacher file; None for a file from elsewhere."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get(RECORD, "null"))
    except (SafetensorError, OSError):
        return None


def read_weights(path: str | Path) -> StateDict:
    """The tensors in a ``.safetensors`` file, or what ``torch.save`` or Lightning wrote; nothing in it is run."""
    path, unknown = Path(path), []
    if path.suffix != ".safetensors":
        with suppress(Exception):  # whatever a foreign file raises, `read_checkpoint` words it
            unknown = get_unsafe_globals_in_checkpoint(path)
    if any(name.startswith("torch.nn.modules.") for name in unknown):
        instead = "where it was made, save its tensors instead: torch.save(network.state_dict(), 'weights.pth')"
        raise ModelError(f"{path}: a network pickled as a whole, which cannot be read without running code; {instead}")
    # anomalib's checkpoints name the class of their model_size among the hyperparameters.
    with safe_globals([(_Placeholder, name) for name in unknown]):
        return read_checkpoint(path)


class _Placeholder:
    """Stands where a checkpoint names a class beside its tensors."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def fill_teacher(network: nn.Module, state: StateDict, *, source: str = "the teacher's weights") -> None:
    """Fill a teacher in place, from its tensors or those of a whole model, in any naming; `source` begins the error."""
    bare = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    given = {k.removeprefix("teacher."): v for k, v in bare.items() if k.startswith("teacher.")} or bare
    places = {}
    for name in given:  # ours, the published files' and anomalib's
        if (layer := re.fullmatch(r"(?:convolutions\.|conv)?(\d+)\.(weight|bias)", name)) is None:
            raise ModelError(f"{source}: no network of EfficientAD, '{name}' is none of its layers")
        places[name] = (int(layer[1]), layer[2] == "bias")
    # From the input to the output, each convolution's weight before its bias.
    tensors, expected = [given[name] for name in sorted(places, key=places.__getitem__)], network.state_dict()
    found, wanted = [[tuple(t.shape) for t in each] for each in (tensors, expected.values())]
    if found != wanted:
        kinds = {8: "a patch description network of size S", 12: "a patch description network of size M"}
        theirs, ours = (f"{kinds.get(len(each), 'a network')} with {each[-1][0]} channels" for each in (found, wanted))
        if theirs == ours:
            ours = f"its tensors to be {wanted}, got {found}"
        raise ModelError(f"{source}: {theirs}, expected {ours}; set model_size and out_channels to fit")
    network.load_state_dict(dict(zip(expected, tensors)))
