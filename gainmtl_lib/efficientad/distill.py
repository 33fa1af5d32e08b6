"""Make a teacher: a patch description network learns a backbone's description of many pictures (arXiv 2303.14535).

B images, H x W pixels of the network's pictures, of which the backbone sees 2H x 2W; C channels, h x w cells.
"""

import json
import logging
import math
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, field_validator, model_validator
from safetensors.torch import save_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import normalize

from gainmtl_lib.backbone import TIMM_NAMES, Backbone, ModelError, fetch_weights, fill_backbone, get_backbone
from gainmtl_lib.devices import checked_device
from gainmtl_lib.efficientad import model as networks
from gainmtl_lib.efficientad.data import as_grey, shuffled
from gainmtl_lib.findings import DataError
from gainmtl_lib.labels import resize_image
from gainmtl_lib.pictures import image_files, read_image
from gainmtl_lib.progress import counted
from gainmtl_lib.runs import atomic_path
from gainmtl_lib.settings import AnyPath, Count, ParameterRecord, Weight, as_path
from gainmtl_lib.train import TrainingDivergedError

logger = logging.getLogger(__name__)


class Distillation(ParameterRecord):
    """Parameters of one distillation; defaults are the paper's. Strict: what cannot be used raises `SettingsError`."""

    images: AnyPath  # a folder of pictures, at any depth
    output: AnyPath  # a .safetensors file
    backbone: str = "wide_resnet101_2"  # lite0 to lite2, any timm name with strides 8 and 16; sees twice `image_size`
    backbone_weights: Annotated[bool | Path, BeforeValidator(as_path)] = True  # by name, a file, or random ones
    model_size: networks.ModelSize = "S"
    out_channels: Count = 384
    image_size: Annotated[int, Field(ge=networks.SMALLEST_IMAGE)] = 256
    crop_size: Annotated[int, Field(ge=networks.SMALLEST_IMAGE, multiple_of=4)] | None = None  # learned of a picture
    steps: Count = 60_000
    batch_size: Count = 16
    learning_rate: Annotated[float, Field(gt=0)] = 1.0e-4
    schedule: Literal["constant", "cosine"] = "constant"  # cosine: down to 0, for few steps
    weight_decay: Weight = 1.0e-5
    statistics_images: Count = 10_000  # that give the targets' mean and deviation
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

    @model_validator(mode="after")
    def _crops_fit(self) -> Self:
        if self.crop_size is not None and self.crop_size > self.image_size:
            raise ValueError(f"crop_size must be at most image_size, {self.image_size}, got {self.crop_size}")
        return self

    def record(self, pictures: int) -> dict[str, Any]:
        """What decides the teacher, for its file: plain values, no paths."""
        weights: Any = self.backbone_weights
        named = {True: "pretrained", False: "random weights"}[weights] if isinstance(weights, bool) else weights.name
        left_out = {"output", "backbone_weights", "save_every_n_steps", "device", "num_workers"}
        values = {name: value for name, value in self.plain().items() if name not in left_out}
        values |= {"images": self.images.name, "pictures": pictures, "weights": named}
        return values | {"padding": self.crop_size is None}


class PicturePairs(Dataset[tuple[Tensor, Tensor]]):
    """``pairs[n]`` for any n from 0: uint8 (3, 2H, 2W) and (3, H, W) of one picture, one in ten of them grey.

    Each round shows every picture once. Order and grey follow from (seed, n), so that work that stopped can go on.
    """

    def __init__(self, folder: Path, *, side: int, seed: int) -> None:
        self.files = image_files(folder)
        if not self.files:
            what = "holds no pictures" if folder.is_dir() else "is no folder"
            raise DataError(f"{folder}: {what}; distillation needs a folder of many pictures, at any depth")
        self.side, self.seed = side, seed

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        turn, place = divmod(number, len(self.files))
        picture = read_image(self.files[shuffled(len(self.files), self.seed, 0, turn)[place]])
        if np.random.default_rng([self.seed, 1, number]).random() < 0.1:
            picture = as_grey(picture)
        sides = (2 * self.side, self.side)
        large, small = (torch.from_numpy(resize_image(picture, (side, side), "squash")) for side in sides)
        return large.permute(2, 0, 1), small.permute(2, 0, 1)


class BackboneTargets(nn.Module):
    """Describes patches by two levels of a frozen backbone, as PatchCore does (arXiv 2106.08265).

    Around each cell of a level, the values of the 3 x 3 neighbourhood, channel by channel, are averaged in 1024 even
    shares, and resized to the network's grid; then the values of both levels are averaged in C even shares. All of it
    is linear, the same for every cell, and resizing takes channels one by one: a 3 x 3 convolution of each level does
    both averages at once, and only C values are resized.
    """

    average0: Tensor
    average1: Tensor

    def __init__(self, backbone: Backbone, *, out_channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.out_channels, self.grid = out_channels, grid
        self.rows: list[slice] = []  # the channels that a level has a share in
        for level, channels in enumerate(backbone.channels[:2]):
            shares = torch.zeros(9 * channels, 2, 1024)
            shares[:, level] = F.adaptive_avg_pool1d(torch.eye(9 * channels), 1024)
            weight = F.adaptive_avg_pool1d(shares.flatten(1), out_channels).T.unflatten(1, (channels, 3, 3))
            held = weight.flatten(1).any(dim=1).nonzero().flatten().tolist()
            self.rows.append(slice(held[0], held[-1] + 1))
            self.register_buffer(f"average{level}", weight[self.rows[-1]].contiguous(), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Shape: (B, 3, 2H, 2W) in [0, 1] -> (B, C, h, w), unbounded."""
        pixels = normalize(images, list(self.backbone.mean), list(self.backbone.std))
        net, indices = self.backbone.net, self.backbone.indices
        levels = net.forward_intermediates(
            pixels.contiguous(memory_format=torch.channels_last),
            indices=indices, intermediates_only=True, stop_early=True,
        )  # fmt: skip
        described = images.new_zeros(len(images), self.out_channels, *self.grid)
        for level, rows, average in zip(levels, self.rows, (self.average0, self.average1), strict=True):
            averaged = F.conv2d(level, average, padding=1)
            described[:, rows] += F.interpolate(averaged, size=self.grid, mode="bilinear")
        return described


class TeacherTraining:
    """Network, optimiser and standardised targets, and how many steps were made; images are uint8."""

    def __init__(self, settings: Distillation) -> None:
        self.settings, self.device = settings, checked_device(settings.device)
        side, crop, channels = settings.image_size, settings.crop_size, settings.out_channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = networks.PatchDescriptionNetwork(
                model_size=settings.model_size, out_channels=channels, padding=crop is None
            )
            backbone = pretrained_backbone(settings.backbone, settings.backbone_weights)
        missing = 0 if crop is None else 2 * networks.BORDER  # without padding the network leaves out the border
        height, width = self.network.grid((side, side))
        self.targets = BackboneTargets(backbone, out_channels=channels, grid=(height + missing, width + missing))
        for part in (self.network, self.targets):
            part.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rate, decay, fused = settings.learning_rate, settings.weight_decay, self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=rate, weight_decay=decay, fused=fused)
        self.mean, self.std = torch.zeros(()), torch.ones(())
        self.steps = 0

    def standardise(self, batches: Iterable[Tensor]) -> None:
        """Take the targets' mean and standard deviation over pictures (B, 3, 2H, 2W)."""
        described = (self.targets(self._pixels(large)) for large in batches)
        moments = networks.channel_moments(described, whose="the backbone's")
        self.mean, self.std = (each.view(1, -1, 1, 1).to(self.device) for each in moments)

    def step(self, large: Tensor, small: Tensor) -> Tensor:
        """One step of the optimiser; the loss before it, a scalar: mean squared difference to the targets."""
        wanted = (self.targets(self._pixels(large)) - self.mean) / self.std
        pixels = normalize(self._pixels(small), list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD))
        if self.settings.crop_size is not None:
            pixels, wanted = self._cropped(pixels, wanted, self.settings.crop_size)
        if self.settings.schedule == "cosine":
            share = (1 + math.cos(math.pi * self.steps / self.settings.steps)) / 2
            self.optimizer.param_groups[0]["lr"] = self.settings.learning_rate * share
        loss = F.mse_loss(self.network(pixels.contiguous(memory_format=torch.channels_last)), wanted)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return loss.detach()

    def _cropped(self, pixels: Tensor, wanted: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Of each picture a random square, as follows from (seed, step), and the targets of the cells inside.

        A cell is 4 pixels, and without padding the network describes these cells as it does in the whole picture.
        """
        places, cells = (pixels.shape[-1] - side) // 4 + 1, self.network.grid((side, side))[0]
        drawn = np.random.default_rng([self.settings.seed, 2, self.steps]).integers(places, size=(len(pixels), 2))
        corners = drawn.tolist()
        parts = [one[:, 4 * y : 4 * y + side, 4 * x : 4 * x + side] for one, (y, x) in zip(pixels, corners)]
        first = [(y + networks.BORDER, x + networks.BORDER) for y, x in corners]
        inside = [one[:, y : y + cells, x : x + cells] for one, (y, x) in zip(wanted, first)]
        return torch.stack(parts), torch.stack(inside)

    def keep(self, path: Path, record: dict[str, Any]) -> None:
        """Write what `restore` goes on from."""
        kept = {"record": record, "steps": self.steps, "mean": self.mean, "std": self.std}
        kept |= {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(kept, content := BytesIO())  # on a full disk PyTorch's own writer ends the process
        with atomic_path(path) as temporary:
            temporary.write_bytes(content.getbuffer())

    def restore(self, path: Path, record: dict[str, Any]) -> None:
        """Go on from what `keep` wrote."""
        try:
            kept = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # whatever a foreign file makes the unpickler raise
            told = str(error).partition("\n")[0] or type(error).__name__
            hint = "nothing in it was run; delete it, or start anew with --force"
            raise ModelError(f"{path}: not unfinished work that can be read ({told}); {hint}") from None
        # Broken pictures may have been taken out meanwhile.
        _check_same(record, kept["record"] | {"pictures": record["pictures"]}, path)
        self.steps, self.mean, self.std = kept["steps"], kept["mean"], kept["std"]
        self.network.load_state_dict(kept["network"])
        self.optimizer.load_state_dict(kept["optimizer"])

    def _pixels(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True).float().div_(255)


def pretrained_backbone(arch: str, weights: bool | Path) -> Backbone:
    """The backbone to learn from with ImageNet's weights by name (True), those of a file, or random ones (False)."""
    backbone = get_backbone(arch, False if weights is True else weights, (2, 3), use_mmpretrain=False)
    if weights is True:  # here, because an error of `get_backbone` would hint at parameters of GAIN-MTL
        try:
            state = fetch_weights(arch, TIMM_NAMES.get(arch, arch), "timm")
        except ModelError as error:
            other = "give backbone_weights the path of a weights file, or false for random weights"
            raise ModelError(f"{error}. Otherwise {other}") from None
        fill_backbone(backbone, arch, state, source=arch)
    return backbone


def distill(images: str | Path, output: str | Path, *, force: bool = False, **values: Any) -> Path:
    """Teach a network on a folder of pictures, or return the finished teacher, the path of `output`.

    Interrupted work goes on with the same call, from ``<output>.part``. The output's metadata tell how it was made.

    Args:
        images, output, values: fields of `Distillation`.
        force: start anew, dropping output and unfinished work.

    `SettingsError`: a value that cannot be used. `ModelError`: an unknown backbone, weights that do not fit, or a file
    in the output's place made otherwise. `DataError`: the folder holds no pictures, or one that cannot be read.
    `TrainingDivergedError`: the loss became NaN or infinite.
    """
    settings = Distillation(images=as_path(images), output=as_path(output), **values)
    pairs = PicturePairs(settings.images, side=settings.image_size, seed=settings.seed)
    record = settings.record(len(pairs.files))
    unfinished = settings.output.with_name(f"{settings.output.name}.part")
    if settings.output.exists() and not force:
        _check_same(record, networks.teacher_record(settings.output) or {}, settings.output)
        logger.info("%s: distilled already", settings.output)
        return settings.output
    training = TeacherTraining(settings)
    for path in (settings.output, unfinished) if force else ():  # only once it is known that the work can begin
        path.unlink(missing_ok=True)
    if unfinished.exists():
        training.restore(unfinished, record)
        logger.info("%s: going on after step %d of %d", unfinished, training.steps, settings.steps)
    else:
        measured = _batches(settings, pairs, range(min(settings.statistics_images, len(pairs.files))), "measuring")
        training.standardise(large for large, _ in measured)
        training.keep(unfinished, record)
    size, done = settings.batch_size, training.steps
    for large, small in _batches(settings, pairs, range(done * size, settings.steps * size), "distilling"):
        loss = training.step(large, small)
        if training.steps % settings.save_every_n_steps and training.steps < settings.steps:
            continue
        if not loss.isfinite():
            where = f"{settings.output}: the loss is {loss} at step {training.steps}"
            raise TrainingDivergedError(f"{where}; lower learning_rate and start anew with force=True (--force)")
        logger.info("step %d of %d: loss %.4f", training.steps, settings.steps, loss)
        training.keep(unfinished, record)
    with atomic_path(settings.output) as temporary:
        state = {name: tensor.cpu().contiguous() for name, tensor in training.network.state_dict().items()}
        save_file(state, temporary, metadata={networks.RECORD: json.dumps(record)})
    unfinished.unlink(missing_ok=True)  # a second process may have made the same teacher
    return settings.output


def _batches(settings: Distillation, pairs: PicturePairs, numbers: range, what: str) -> Iterator[tuple[Tensor, Tensor]]:
    size, workers = settings.batch_size, settings.num_workers
    loader = DataLoader(pairs, size, sampler=numbers, num_workers=workers, generator=torch.Generator())
    return counted(loader, len(loader), f"{what}, batch", log=logger, seconds=15)


def _check_same(asked: dict[str, Any], stored: dict[str, Any], path: Path) -> None:
    if differing := [name for name in asked if stored.get(name) != asked[name]]:
        lines = "".join(f"\n  {name}: {stored.get(name)!r} and {asked[name]!r}" for name in differing)
        hint = "choose another output, or start anew with force=True (--force)"
        raise ModelError(f"{path}: made otherwise (there, and asked for):{lines}\n{hint}")
