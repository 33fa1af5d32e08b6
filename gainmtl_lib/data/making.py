"""Datasets that are made here: written to a temporary neighbour first, recorded with their parameters, made once."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import cv2
import yaml
from numpy.typing import NDArray

from gainmtl_lib.data.findings import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS_BETWEEN_LOG_LINES = 5.0


def make_once(
    root: Path,
    parameters: Mapping[str, Any],
    write: Callable[[Path], Mapping[str, Any] | None],
    *,
    record: str,
    what: str,
) -> bool:
    """Fill a folder, unless it holds the same data already. An interrupted call leaves nothing at `root`.

    Args:
        root: folder to make.
        parameters: that the data follows from; plain values.
        write: fills the folder that it is given. What it returns is recorded besides, and not compared.
        record: file name for the parameters, YAML.
        what: the data in words, for messages.

    Returns:
        Whether it was made by this call.

    Raises:
        DataError: the folder holds something else, was made with other parameters, or cannot be written.
    """
    if is_made(root, parameters, record=record, what=what):
        return False
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise DataError(f"{root}: {what} could not be written: {error.strerror or error}") from error
    try:
        content = dict(parameters) | dict(write(temporary) or {})
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (temporary / record).write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            root.rmdir()  # only if it is empty: Windows renames to no existing folder
        temporary.rename(root)
    except OSError as error:
        if not is_made(root, parameters, record=record, what=what):  # else another process was faster, same result
            raise DataError(f"{root}: {what} could not be written: {error.strerror or error}") from error
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def is_made(root: Path, parameters: Mapping[str, Any], *, record: str, what: str) -> bool:
    """Whether `root` already holds this very dataset; False where nothing is there yet.

    Raises:
        DataError: it holds something else, or the same made with other parameters.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / record).is_file():
        raise DataError(f"{root}: holds files but no {record}; choose an empty folder for {what}")
    stored = yaml.safe_load((root / record).read_text(encoding="utf-8")) or {}
    differing = [
        f"{name} is {stored.get(name)} there and {value} here"
        for name, value in parameters.items()
        if stored.get(name) != value
    ]
    if differing:
        raise DataError(
            f"{root}: was made with other parameters: {'; '.join(differing)}; choose another folder (data_root), "
            "or delete this one"
        )
    return True


def write_png(path: Path, pixels: NDArray) -> None:
    """Write uint8 pixels, (H, W) grey or (H, W, 3) BGR, little compressed.

    Raises:
        OSError: with its reason, which OpenCV's own writer would reduce to False.
    """
    path.write_bytes(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


def counted(made: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The same things, with a log line now and then and one at the end: made 120 of 700 `what`."""
    started = last = time.monotonic()
    for done, one in enumerate(made, start=1):
        yield one
        if time.monotonic() - last >= SECONDS_BETWEEN_LOG_LINES:
            last = time.monotonic()
            logger.info("made %d of %d %s", done, total, what)
    logger.info("made %d %s in %.1f s", total, what, time.monotonic() - started)
