"""Who may write to a run's folder, and what has to be there before: one process at a time, with equal settings."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from gainmtl_lib.files import atomic_path, remove_temporaries
from gainmtl_lib.parameters import SettingsError
from gainmtl_lib.run_settings import RunSettings
from gainmtl_lib.runs import RunError, run_status


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a run that is there.

    Raises:
        RunError: another process writes there.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"{folder}: another process is writing to this run; wait for it or change 'experiment'"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claim(settings: RunSettings, *, force: bool = False) -> Iterator[Path]:
    """Hold a run's folder for writing; what is already there must have been asked for with equal settings.

    A start that reached no checkpoint leaves nothing behind, so that a mistake in the settings, the data or
    the surroundings can be corrected: there is nothing to go on from.

    Args:
        settings: decide the folder.
        force: start anew, dropping what is there, and the run's event files where they lie elsewhere.

    Raises:
        RunError: another process writes there, or the stored settings differ (each named).
    """
    folder = settings.run_dir
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / "settings.yaml"
    with hold(folder):
        remove_temporaries(
            stored, folder / "manifest.json", folder / "model.safetensors", folder / "checkpoints/*.ckpt"
        )
        if force:
            _empty(folder)
            _remove_events(settings)
        else:
            _forget_vain_start(settings)  # one that was killed
        if stored.is_file():
            _check_same(stored, settings)
        else:
            with atomic_path(stored) as path:
                path.write_text(yaml.safe_dump(settings.plain(), sort_keys=False, allow_unicode=True), encoding="utf-8")
        try:
            yield folder
        except BaseException:
            _forget_vain_start(settings)
            raise


def _check_same(stored: Path, settings: RunSettings) -> None:
    try:
        differing = type(settings).from_yaml(stored).differences(settings)
    except SettingsError as error:
        differing = [str(error)]
    if differing:
        raise RunError(
            f"{stored.parent} holds a run with other settings (stored and asked for):\n  "
            + "\n  ".join(differing)
            + "\nchange 'experiment' to keep both, or start anew with --force (force=True)"
        )


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _remove_events(settings: RunSettings) -> None:
    for path in settings.tensorboard_folder.glob("events.out.*"):
        path.unlink()


def _forget_vain_start(settings: RunSettings) -> None:
    """Remove what a start wrote that reached no checkpoint."""
    folder = settings.run_dir
    stored = folder / "settings.yaml"
    reached = any((folder / "checkpoints").glob("[!.]*.ckpt"))  # a temporary file begins with a dot
    if reached or not stored.is_file() or run_status(folder) == "complete":
        return
    _remove_events(settings)
    (folder / "manifest.json").unlink(missing_ok=True)
    stored.unlink()
