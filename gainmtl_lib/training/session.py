"""One training in a run's folder, of either system: may it start, what its manifest says, how Ctrl-C ends it."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from gainmtl_lib.devices import lightning_precision
from gainmtl_lib.run_settings import Precision, RunSettings
from gainmtl_lib.runs import RunError, read_json, run_status, write_json

logger = logging.getLogger(__name__)

RECORDED_PACKAGES = (
    "gainmtl", "torch", "torchvision", "timm", "mmpretrain", "mmcv-lite", "lightning", "torchmetrics",
    "albumentations", "opencv-python-headless", "numpy", "pandas",
)  # fmt: skip


def check_intent(folder: Path, *, resume: str | Path | None, force: bool) -> None:
    """Raises `RunError`: a checkpoint to go on from and a new start were both asked for."""
    if force and resume is not None:
        raise RunError(
            f"{folder}: --resume goes on from a checkpoint, --force drops what is there and starts anew; "
            "give one of them (resume=…, force=True)"
        )


def is_finished(folder: Path, *, resume: str | Path | None) -> bool:
    """Whether the run is complete.

    Raises:
        RunError: it is, and a checkpoint to go on from was asked for.
    """
    finished = run_status(folder) == "complete"
    if finished and resume is not None:
        raise RunError(f"{folder}: the run is finished; there is nothing to resume (--force starts anew)")
    return finished


def previous_manifest(folder: Path, *, digest: str) -> dict[str, Any]:
    """What an earlier start of the run recorded, empty for the first.

    Raises:
        RunError: the data is no longer what that start read.
    """
    if run_status(folder) == "new":
        return {}
    manifest = read_json(folder / "manifest.json")
    check_unchanged(folder, "the data", manifest["data_digest"], digest)
    return manifest


def check_unchanged(folder: Path, what: str, before: str, now: str) -> None:
    """Raises `RunError`: files that a run reads have another digest than when it was started."""
    if before != now:
        raise RunError(
            f"{folder}: {what} changed since this run was started (digest {before[:12]} then, "
            f"{now[:12]} now); change 'experiment', or start anew with --force (force=True)"
        )


@contextmanager
def recorded(folder: Path, manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Keep the manifest beside a training: running meanwhile, complete once the block ends without an error.

    Args:
        folder: of the run.
        manifest: what is known at the start, `duration_s` of earlier starts included; what the block adds is written.
    """
    started, before = time.monotonic(), manifest["duration_s"]
    path = folder / "manifest.json"
    write_json(path, manifest | {"status": "running"})
    status = "running"
    try:
        yield manifest
        status = "complete"
    finally:
        manifest["duration_s"] = round(before + time.monotonic() - started, 1)
        write_json(path, manifest | {"status": status})


def circumstances(*, device: torch.device, precision: Precision) -> dict[str, Any]:
    """Manifest entries that tell when, on what and with which packages a training runs."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": lightning_precision(precision, device),
        "versions": {name: _version(name) for name in RECORDED_PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def event_loggers(settings: RunSettings) -> list[Logger]:
    """TensorBoard's, unless the settings switch it off."""
    if not settings.use_tensorboard:
        return []
    where = settings.tensorboard_folder
    return [TensorBoardLogger(where.parent, name=where.name, version="", default_hp_metric=False)]


def fit_interruptibly(
    trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule, checkpoint: Path | None
) -> None:
    """Lightning answers Ctrl-C by leaving the process with the signal ignored; a notebook must survive it."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        signal.signal(signal.SIGINT, handler)
        logger.info("interrupted; the same call goes on from the last checkpoint")
        raise KeyboardInterrupt from None
