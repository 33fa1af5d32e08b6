"""File names of a planted dataset: ``<group>__<stem>.png``, so that a pattern on the name reads the group back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from gainmtl_lib.data.layouts import IMAGE_SUFFIXES

GROUP_PATTERN = "^(.+?)__"
SHIFT = "shift-"
LONGEST = 100
"""Characters of a group's name; file systems take 255 bytes for the whole."""


def planted_names(groups: Sequence[str], stems: Sequence[str]) -> list[str]:
    """Names, without suffix, from which `GROUP_PATTERN` reads as many groups as there were; all are distinct.

    Args:
        groups: of each picture. A picture that is its own group has its path below the dataset's folder there.
        stems: of each picture's file.
    """
    shown = _group_names(groups)
    used: set[str] = set()
    return [_unused(f"{shown[group]}__{stem}", used) for group, stem in zip(groups, stems, strict=True)]


def shifted(name: str) -> str:
    """Name of a picture's twin in test_shift, of another group: a group must not lie in two splits."""
    return f"{SHIFT}{name}"


def _group_names(groups: Iterable[str]) -> dict[str, str]:
    used: set[str] = set()
    names: dict[str, str] = {}
    for group in sorted(set(groups)):
        path = PurePosixPath(group)
        plain = str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else group
        # No double underscore inside and none at the ends, so that the first one in a file's name ends the group.
        plain = re.sub(r"__+", "_", re.sub(r"[^\w.-]+", "-", plain))[:LONGEST].strip("_.-")
        names[group] = _unused(plain.removeprefix(SHIFT) or "group", used)
    return names


def _unused(name: str, used: set[str]) -> str:
    """The name, with a number behind it where it is taken; some file systems do not tell a from A."""
    candidate, number = name, 1
    while candidate.casefold() in used:
        number += 1
        candidate = f"{name}-{number}"
    used.add(candidate.casefold())
    return candidate
