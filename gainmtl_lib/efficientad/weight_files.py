"""Files of weights, ours and published ones: their tensors, and how a teacher was made. Nothing in them is run."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from gainmtl_lib.models.weights import ModelError, StateDict, read_checkpoint

RECORD = "gainmtl_teacher"
"""Key of a teacher file's metadata under which `distill` tells, as JSON, how the teacher was made."""


def read_weights(path: str | Path) -> StateDict:
    """The tensors in a file under the file's names; nothing in it is run.

    Args:
        path: ``.safetensors``, or what ``torch.save`` or Lightning wrote.

    Raises:
        ModelError: no such file, no tensors in it, or a network pickled as a whole.
    """
    path = Path(path)
    unknown = [] if path.suffix == ".safetensors" else _unknown_classes(path)
    if any(name.startswith("torch.nn.modules.") for name in unknown):
        raise ModelError(
            f"{path}: a network pickled as a whole, which cannot be read without running code; where it was made, save "
            "its tensors instead: torch.save(network.state_dict(), 'weights.pth')"
        )
    # anomalib's checkpoints name the class of their model_size among the hyperparameters.
    with safe_globals([(_Placeholder, name) for name in unknown]):
        return read_checkpoint(path)


def teacher_record(path: Path) -> dict[str, Any] | None:
    """How `distill` made a teacher file; None for a file from elsewhere."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get(RECORD, "null"))
    except (SafetensorError, OSError):
        return None


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Placeholder:
    """Stands where a checkpoint names a class beside its tensors: takes everything, does nothing."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def _unknown_classes(path: Path) -> list[str]:
    with suppress(Exception):  # whatever a foreign file raises, `read_checkpoint` words it
        return get_unsafe_globals_in_checkpoint(path)
    return []
