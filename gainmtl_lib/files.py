"""Files that are never half-written: a temporary neighbour takes the bytes, then takes the name."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FAILED_WRITE = re.compile(r"No space left|I/O error|StreamWriter|failed writing", re.IGNORECASE)

RANDOM_LETTERS = 8
"""That `tempfile` puts into a name."""


class FileError(OSError):
    """A file that could not be written; names it and why. What was there before is untouched."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends without an error.

    The suffix is kept, for writers that choose a format by it.

    Raises:
        FileError: the disk is full or the folder cannot be written to.
    """
    temporary = _neighbour(path)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise FileError(_reason(path, error)) from error
    except Exception as error:
        # PyTorch and safetensors have errors of their own for a failed write, which tell it in their text only.
        if FAILED_WRITE.search(str(error)):
            raise FileError(f"{path}: could not be written ({_free(path)} free): {error}") from error
        raise
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def remove_temporaries(*paths: Path) -> None:
    """Remove the temporary neighbours of `paths` that killed writers left. Nobody may be writing there.

    Args:
        paths: what was to be written; names may hold wildcards.
    """
    for path in paths:
        for left in path.parent.glob(f".{path.stem}-{'?' * RANDOM_LETTERS}{path.suffix}"):
            left.unlink(missing_ok=True)


def _neighbour(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise FileError(_reason(path, error)) from error
    os.close(handle)
    return Path(name)


def _reason(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: the disk is full ({_free(path)} free); make room and start again, the run goes on"
    return f"{path}: could not be written: {error.strerror or error}"


def _free(path: Path) -> str:
    there = next(folder for folder in path.absolute().parents if folder.exists())
    return f"{shutil.disk_usage(there).free / 2**20:.0f} MB"
