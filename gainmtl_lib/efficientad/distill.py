"""Make a teacher: a patch description network learns a backbone's features (arXiv 2303.14535, appendix A.2).

The pictures should be many and of everything (the paper takes ImageNet's): a teacher has to tell apart what no good
part shows.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from gainmtl_lib.devices import checked_device
from gainmtl_lib.efficientad.distill_settings import Distillation
from gainmtl_lib.efficientad.networks import PatchDescriptionNetwork
from gainmtl_lib.efficientad.picture_pairs import PicturePairs
from gainmtl_lib.efficientad.targets import LEVELS, BackboneTargets
from gainmtl_lib.efficientad.teacher_training import TeacherTraining
from gainmtl_lib.efficientad.weight_files import RECORD, teacher_record
from gainmtl_lib.files import atomic_path
from gainmtl_lib.models.backbone import Backbone, get_backbone
from gainmtl_lib.models.weights import ModelError, fetch_weights, load_weights
from gainmtl_lib.parameters import as_path
from gainmtl_lib.training.module import TrainingDivergedError

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
        load_weights(backbone.net, state, provider="timm", source=source)
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
