"""Make a teacher: a patch description network learns a backbone's description of many pictures (arXiv 2303.14535).

B images, H x W pixels of the network's pictures, of which the backbone sees 2H x 2W; C channels, h x w cells.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, field_validator
from safetensors.torch import save_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import normalize

from gainmtl_lib.backbone import Backbone, ModelError, fetch_weights, get_backbone, load_weights
from gainmtl_lib.efficientad import model as networks
from gainmtl_lib.efficientad.data import as_grey, shuffled
from gainmtl_lib.labels import resize_image
from gainmtl_lib.progress import counted
from gainmtl_lib.readers import DataError, image_files, read_image
from gainmtl_lib.runs import atomic_path
from gainmtl_lib.settings import AnyPath, ParameterRecord, as_path
from gainmtl_lib.train import TrainingDivergedError, checked_device

logger = logging.getLogger(__name__)


class Distillation(ParameterRecord):
    """Parameters of one distillation; defaults are the paper's. Strict: what cannot be used raises `SettingsError`."""

    images: AnyPath  # a folder of pictures, at any depth
    output: AnyPath  # a .safetensors file
    backbone: str = "wide_resnet101_2"  # any timm name with features at strides 8 and 16; sees twice `image_size`
    backbone_weights: Annotated[bool | Path, BeforeValidator(as_path)] = True  # by name, a file, or random ones
    model_size: networks.ModelSize = "S"
    out_channels: networks.Count = 384
    image_size: Annotated[int, Field(ge=networks.SMALLEST_IMAGE)] = 256
    steps: networks.Count = 60_000
    batch_size: networks.Count = 16
    learning_rate: Annotated[float, Field(gt=0)] = 1.0e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1.0e-5
    statistics_images: networks.Count = 10_000  # that give the targets' mean and deviation
    seed: Annotated[int, Field(ge=0)] = 42
    save_every_n_steps: networks.Count = 1000
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
        weights: Any = self.backbone_weights
        named = {True: "pretrained", False: "random weights"}[weights] if isinstance(weights, bool) else weights.name
        left_out = {"output", "backbone_weights", "save_every_n_steps", "device", "num_workers"}
        values = {name: value for name, value in self.plain().items() if name not in left_out}
        return values | {"images": self.images.name, "pictures": pictures, "weights": named, "padding": True}


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
    shares, and resized to the network's grid; then the values of both levels are averaged in C even shares.
    """

    def __init__(self, backbone: Backbone, *, out_channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.out_channels, self.grid = out_channels, grid

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Shape: (B, 3, 2H, 2W) in [0, 1] -> (B, C, h, w), unbounded."""
        pixels = normalize(images, list(self.backbone.mean), list(self.backbone.std))
        net, indices = self.backbone.net, self.backbone.indices
        levels = net.forward_intermediates(pixels, indices=indices, intermediates_only=True, stop_early=True)
        described = []
        for level in levels:
            patches = F.unfold(level, 3, padding=1).transpose(1, 2)  # (B, h' w', 9 C')
            # Shares before the resizing, which is linear too: of 9 C' values only 1024 are resized.
            shares = F.adaptive_avg_pool1d(patches, 1024).transpose(1, 2).unflatten(2, level.shape[-2:])
            described.append(F.interpolate(shares, size=self.grid, mode="bilinear"))
        cells = torch.cat(described, dim=1).flatten(2).transpose(1, 2)  # (B, h w, 2048)
        return F.adaptive_avg_pool1d(cells, self.out_channels).transpose(1, 2).unflatten(2, self.grid)


class TeacherTraining:
    """Network, optimiser and standardised targets, and how many steps were made; images are uint8."""

    def __init__(self, settings: Distillation) -> None:
        self.device, side, channels = checked_device(settings.device), settings.image_size, settings.out_channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            size, weights = settings.model_size, settings.backbone_weights
            self.network = networks.PatchDescriptionNetwork(model_size=size, out_channels=channels, padding=True)
            given = False if weights is True else weights
            backbone = get_backbone(settings.backbone, given, (2, 3), use_mmpretrain=False)
        if weights is True:  # here, because an error of `get_backbone` would hint at parameters of GAIN-MTL
            state = fetch_weights(settings.backbone, settings.backbone, "timm")
            state = {name: tensor for name, tensor in state.items() if name not in backbone.unused_names}
            load_weights(backbone.net, state, source=settings.backbone)
        self.targets = BackboneTargets(backbone, out_channels=channels, grid=self.network.grid((side, side)))
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
        loss = F.mse_loss(self.network(pixels), wanted)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return loss.detach()

    def keep(self, path: Path, record: dict[str, Any]) -> None:
        """Write what `restore` goes on from."""
        kept = {"record": record, "steps": self.steps, "mean": self.mean, "std": self.std}
        kept |= {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        with atomic_path(path) as temporary:
            torch.save(kept, temporary)

    def restore(self, path: Path, record: dict[str, Any]) -> None:
        """Go on from what `keep` wrote."""
        kept = torch.load(path, map_location=self.device, weights_only=True)
        # Broken pictures may have been taken out meanwhile.
        _check_same(record, kept["record"] | {"pictures": record["pictures"]}, path)
        self.steps, self.mean, self.std = kept["steps"], kept["mean"], kept["std"]
        self.network.load_state_dict(kept["network"])
        self.optimizer.load_state_dict(kept["optimizer"])

    def _pixels(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True).float().div_(255)


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
