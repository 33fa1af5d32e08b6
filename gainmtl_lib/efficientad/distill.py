"""Every parameter of a distillation, in one frozen flat record. Defaults are the paper's (arXiv 2303.14535)."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import cv2
import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, field_validator
from safetensors.torch import save_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gainmtl_lib.backbone import Backbone, ModelError, fetch_weights, get_backbone, load_weights
from gainmtl_lib.efficientad.model import RECORD, SMALLEST_IMAGE, ModelSize, PatchDescriptionNetwork, teacher_record
from gainmtl_lib.labels import resize_image
from gainmtl_lib.readers import DataError, image_files, read_image
from gainmtl_lib.runs import atomic_path
from gainmtl_lib.settings import AnyPath, ParameterRecord, as_path
from gainmtl_lib.train import TrainingDivergedError, checked_device

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


# --- The pictures of a distillation


GREY_PROBABILITY = 0.1


class PicturePairs(Dataset[tuple[Tensor, Tensor]]):
    """``pairs[n]`` for any n from 0: uint8 (3, 2 side, 2 side) and (3, side, side) of one picture, sometimes grey.

    Each round shows every picture once. Order and grey follow from (seed, n), so that work that stopped can go on.

    Args:
        folder: pictures at any depth.
        side: pixels a side; pictures of another shape are squashed.
        seed: of the order.

    Raises:
        DataError: the folder is missing or holds no picture; later, a picture that cannot be read.
    """

    def __init__(self, folder: Path, *, side: int, seed: int) -> None:
        self.files = image_files(folder)
        if not self.files:
            what = "holds no pictures" if folder.is_dir() else "is no folder"
            raise DataError(f"{folder}: {what}; distillation needs a folder of many pictures, at any depth")
        self.side, self.seed = side, seed

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        turn, place = divmod(number, len(self.files))
        picture = read_image(self.files[_order(self.seed, turn, len(self.files))[place]])
        if np.random.default_rng([self.seed, 1, number]).random() < GREY_PROBABILITY:
            picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        large, small = (
            torch.from_numpy(resize_image(np.asarray(picture, np.uint8), (side, side), "squash")).permute(2, 0, 1)
            for side in (2 * self.side, self.side)
        )
        return large, small


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 0, turn]).permutation(count)


# --- What a teacher is taught


LEVELS = (2, 3)
"""Of the backbone: strides 8 and 16."""

LEVEL_VALUES = 1024
"""Values per cell and level on the way to C."""

PATCH = 3
"""Cells a side that are described together."""


class BackboneTargets(nn.Module):
    """Describes patches by two levels of a frozen backbone.

    Around each cell of a level, the values of the 3 x 3 neighbourhood, channel by channel, are averaged in
    `LEVEL_VALUES` even shares; the deeper level is resized to the shallower one's grid; the values of both are averaged
    in C even shares. All of it is linear, so that each level needs one fixed convolution and one resizing.

    Args:
        backbone: whose first two levels are `LEVELS`.
        out_channels: C.
        grid: (h, w), to which both levels are resized. The shallower one has it already when the image is twice that of
            a padded patch description network and the backbone keeps to its strides.
    """

    image_mean: Tensor
    image_std: Tensor
    local: Tensor
    context: Tensor

    def __init__(self, backbone: Backbone, *, out_channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.out_channels, self.grid = out_channels, grid
        shares = even_shares(2 * LEVEL_VALUES, out_channels)
        half = -(-out_channels // 2)  # of an odd C, the middle channel hears both levels
        shallow, deep = backbone.channels[:2]
        self.register_buffer("local", _kernel(shares[:half, :LEVEL_VALUES], shallow))
        self.register_buffer("context", _kernel(shares[-half:, LEVEL_VALUES:], deep))
        self.register_buffer("image_mean", torch.tensor(backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(backbone.std).view(1, 3, 1, 1))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Shape: (B, 3, H, W) in [0, 1] -> (B, C, h, w), unbounded."""
        shallow, deep = self.backbone.net.forward_intermediates(
            (images - self.image_mean) / self.image_std,
            indices=self.backbone.indices,
            intermediates_only=True,
            stop_early=True,
        )
        local, context = self._described(shallow, self.local), self._described(deep, self.context)
        other = self.out_channels - local.shape[1]
        return F.pad(local, (0, 0, 0, 0, 0, other)) + F.pad(context, (0, 0, 0, 0, other, 0))

    def _described(self, level: Tensor, kernel: Tensor) -> Tensor:
        return F.interpolate(F.conv2d(level, kernel, padding=PATCH // 2), size=self.grid, mode="bilinear")


def even_shares(values: int, shares: int) -> Tensor:
    """Adaptive average pooling of a row of values as a matrix, (shares, values); neighbouring shares may overlap."""
    share, value = torch.arange(shares).unsqueeze(1), torch.arange(values)
    inside = (value >= share * values // shares) & (value < ((share + 1) * values).add(shares - 1) // shares)
    return inside / inside.sum(dim=1, keepdim=True)


def _kernel(shares: Tensor, channels: int) -> Tensor:
    """The convolution that averages neighbourhoods in `LEVEL_VALUES` shares, and those in `shares`."""
    neighbourhood = even_shares(channels * PATCH**2, LEVEL_VALUES)
    return (shares @ neighbourhood).view(len(shares), channels, PATCH, PATCH)


# --- The optimisation by which a patch description network learns a backbone's description of the same pi


class TeacherTraining:
    """Network, optimiser and standardised targets, and how many steps were made.

    Images are uint8, (B, 3, 2H, 2W) for the backbone and (B, 3, H, W) for the network.

    Args:
        network: to be taught, padded.
        targets: on the network's grid.
        learning_rate: Adam's.
        weight_decay: Adam's.
        device: of all tensors.
    """

    def __init__(
        self,
        network: PatchDescriptionNetwork,
        targets: BackboneTargets,
        *,
        learning_rate: float,
        weight_decay: float,
        device: torch.device,
    ) -> None:
        self.device = device
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.targets = targets.to(device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=device.type in ("cpu", "cuda")
        )
        channels = (1, targets.out_channels, 1, 1)
        self.target_mean, self.target_std = torch.zeros(channels, device=device), torch.ones(channels, device=device)
        self.image_mean, self.image_std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1)
            for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        self.steps = 0

    def measure(self, large: Tensor) -> tuple[int, Tensor, Tensor]:
        """Images in a batch, mean and variance of each channel of their targets, float64 (C,) on the CPU."""
        variance, mean = torch.var_mean(self.targets(self._pixels(large)), dim=(0, 2, 3), correction=0)
        return len(large), mean.double().cpu(), variance.double().cpu()

    def standardise(self, measured: list[tuple[int, Tensor, Tensor]]) -> None:
        """Take the targets' mean and standard deviation from what `measure` gave.

        Raises:
            ModelError: a channel that never changes.
        """
        counts, means, variances = (list(column) for column in zip(*measured, strict=True))
        share = torch.tensor(counts, dtype=torch.float64).unsqueeze(1) / sum(counts)
        mean = (share * torch.stack(means)).sum(dim=0)
        variance = (share * (torch.stack(variances) + (torch.stack(means) - mean).square())).sum(dim=0)
        if useless := int((~(variance > 0)).sum()):  # NaN included
            raise ModelError(
                f"{useless} of the backbone's {len(variance)} target channels never change on these pictures, or are "
                "not finite; the pictures are all the same, or the backbone's weights are damaged"
            )
        self.target_mean = mean.float().view(1, -1, 1, 1).to(self.device)
        self.target_std = variance.sqrt().float().view(1, -1, 1, 1).to(self.device)

    def step(self, large: Tensor, small: Tensor) -> Tensor:
        """One step of the optimiser; the loss before it, a scalar: mean squared difference to the targets."""
        wanted = (self.targets(self._pixels(large)) - self.target_mean) / self.target_std
        described = self.network((self._pixels(small) - self.image_mean) / self.image_std)
        loss = F.mse_loss(described, wanted)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from."""
        return {
            "steps": self.steps,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "target_mean": self.target_mean,
            "target_std": self.target_std,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.steps = state["steps"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.target_mean, self.target_std = (state[name].to(self.device) for name in ("target_mean", "target_std"))

    def _pixels(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True).float().div_(255)


# --- Make a teacher


logger = logging.getLogger(__name__)

SILENCE = 15.0
"""Seconds after which work says how far it is."""

Item = TypeVar("Item")


def distill(images: str | Path, output: str | Path, *, force: bool = False, **values: Any) -> Path:
    """Teach a network on a folder of pictures, or return the finished teacher.

    Interrupted work goes on with the same call, from ``<output>.part``, and ends as uninterrupted work does.

    Args:
        images: see `Distillation`.
        output: see `Distillation`; its metadata tell how it was made, which `teacher_of` repeats.
        force: start anew, dropping output and unfinished work.
        values: other fields of `Distillation`.

    Returns:
        The output's path.

    Raises:
        SettingsError: a value that cannot be used.
        ModelError: an unknown backbone, weights that cannot be had or do not fit, or a file in the output's place that
            was made otherwise.
        DataError: the folder holds no pictures, or one that cannot be read.
        TrainingDivergedError: the loss became NaN or infinite.
    """
    settings = Distillation(images=as_path(images), output=as_path(output), **values)
    pairs = PicturePairs(settings.images, side=settings.image_size, seed=settings.seed)
    record = settings.record(len(pairs.files))
    unfinished = settings.output.with_name(f"{settings.output.name}.part")
    if settings.output.exists() and not force:
        _check_same(record, teacher_record(settings.output) or {}, settings.output)
        logger.info("%s: distilled already", settings.output)
        return settings.output
    training = _training(settings)
    if force:  # only once it is known that the work can begin
        settings.output.unlink(missing_ok=True)
        unfinished.unlink(missing_ok=True)
    try:
        _prepare(settings, pairs, training, unfinished, record)
        _train(settings, pairs, training, unfinished, record)
    except KeyboardInterrupt:
        logger.info("interrupted after step %d; the same call goes on from the last one kept", training.steps)
        raise
    with atomic_path(settings.output) as temporary:
        state = {name: tensor.cpu().contiguous() for name, tensor in training.network.state_dict().items()}
        save_file(state, temporary, metadata={RECORD: json.dumps(record)})
    unfinished.unlink(missing_ok=True)  # a second process may have made the same teacher
    return settings.output


def _training(settings: Distillation) -> TeacherTraining:
    size, channels, side = settings.model_size, settings.out_channels, settings.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = PatchDescriptionNetwork(model_size=size, out_channels=channels, padding=True)
        backbone = _backbone(settings.backbone, settings.backbone_weights)
    return TeacherTraining(
        network,
        BackboneTargets(backbone, out_channels=channels, grid=network.grid((side, side))),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        device=checked_device(settings.device),
    )


def _backbone(name: str, weights: bool | Path) -> Backbone:
    backbone = get_backbone(name, False if weights is True else weights, LEVELS, use_mmpretrain=False)
    if weights is True:
        config = timm.get_pretrained_cfg(name)
        source = f"{config.architecture}.{config.tag}" if config is not None and config.tag else name
        state = fetch_weights(name, source, "timm")
        state = {key: tensor for key, tensor in state.items() if key not in backbone.unused_names}
        load_weights(backbone.net, state, source=source)
    return backbone


def _prepare(
    settings: Distillation, pairs: PicturePairs, training: TeacherTraining, unfinished: Path, record: dict[str, Any]
) -> None:
    """Go on from unfinished work, or measure the targets."""
    if unfinished.exists():
        kept = _kept(unfinished)
        # Broken pictures may have been taken out meanwhile.
        _check_same(record, kept["record"] | {"pictures": record["pictures"]}, unfinished)
        training.restore(kept["training"])
        logger.info("%s: going on after step %d of %d", unfinished, training.steps, settings.steps)
        return
    batches = _batches(settings, pairs, range(min(settings.statistics_images, len(pairs.files))))
    training.standardise([training.measure(large) for large, _ in _told(batches, "measuring targets, batch")])
    _keep(unfinished, training, record)


def _train(
    settings: Distillation, pairs: PicturePairs, training: TeacherTraining, unfinished: Path, record: dict[str, Any]
) -> None:
    size = settings.batch_size
    batches = _batches(settings, pairs, range(training.steps * size, settings.steps * size))
    for large, small in _told(batches, "distilling, step", before=training.steps):
        loss = training.step(large, small)
        if training.steps % settings.save_every_n_steps and training.steps < settings.steps:
            continue
        if not math.isfinite(value := loss.item()):
            raise TrainingDivergedError(
                f"{settings.output}: the loss is {value} at step {training.steps}; lower learning_rate and start anew "
                "with force=True (--force)"
            )
        logger.info("step %d of %d: loss %.4f", training.steps, settings.steps, value)
        _keep(unfinished, training, record)


def _batches(settings: Distillation, pairs: PicturePairs, numbers: range) -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(
        pairs, settings.batch_size, sampler=numbers, num_workers=settings.num_workers, generator=torch.Generator()
    )


def _keep(unfinished: Path, training: TeacherTraining, record: dict[str, Any]) -> None:
    with atomic_path(unfinished) as temporary:
        torch.save({"record": record, "training": training.state()}, temporary)


def _kept(unfinished: Path) -> dict[str, Any]:
    try:
        content = torch.load(unfinished, map_location="cpu", weights_only=True)
        return {name: content[name] for name in ("record", "training")}
    except Exception as error:  # whatever a foreign file makes the unpickler raise
        raise ModelError(
            f"{unfinished}: no unfinished distillation ({type(error).__name__}); remove it, or start anew with "
            "force=True (--force)"
        ) from None


def _check_same(asked: dict[str, Any], stored: dict[str, Any], path: Path) -> None:
    if differing := [name for name in asked if stored.get(name) != asked[name]]:
        lines = "".join(f"\n  {name}: {stored.get(name)!r} and {asked[name]!r}" for name in differing)
        raise ModelError(
            f"{path}: made otherwise (there, and asked for):{lines}\n"
            "choose another output, or start anew with force=True (--force)"
        )


def _told(batches: DataLoader[Item], what: str, *, before: int = 0) -> Iterator[Item]:
    """The batches; every now and then a line says how far they are."""
    started = said = time.monotonic()
    for done, batch in enumerate(batches, start=1):
        yield batch
        now = time.monotonic()
        if now - said > SILENCE:
            said = now
            left = (now - started) / done * (len(batches) - done)
            logger.info("%s %d of %d; about %.0f s left", what, before + done, before + len(batches), left)
