"""File names of a planted dataset: ``<group>__<stem>.png``, so that a pattern on the name reads the group back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from gainmtl_lib.data.layouts import IMAGE_SUFFIXES

GROUP_PATTERN = "^(.+?)__"
SHIFT = "shift-"
LONGEST, LONGEST_NAME = 100, 230
"""Bytes of a group's name, and of a whole name; file systems take 255, the twin's prefix and the suffix included."""


def planted_names(groups: Sequence[str], stems: Sequence[str]) -> list[str]:
    """Names, without suffix, from which `GROUP_PATTERN` reads as many groups as there were; all are distinct.

    Args:
        groups: of each picture. A picture that is its own group has its path below the dataset's folder there.
        stems: of each picture's file.
    """
    shown = _group_names(groups)
    used: set[str] = set()
    names = (_cut(f"{shown[group]}__{stem}", LONGEST_NAME) for group, stem in zip(groups, stems, strict=True))
    return [_unused(name, used) for name in names]


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
        plain = _cut(re.sub(r"__+", "_", re.sub(r"[^\w.-]+", "-", plain)), LONGEST).strip("_.-")
        names[group] = _unused(re.sub(f"^({SHIFT})+", "", plain) or "group", used)
    return names


def _cut(text: str, longest: int) -> str:
    """The beginning of a text that takes at most `longest` bytes."""
    return os.fsencode(text)[:longest].decode(errors="ignore")


def _unused(name: str, used: set[str]) -> str:
    """The name, with a number behind it where it is taken; some file systems do not tell a from A."""
    candidate, number = name, 1
    while candidate.casefold() in used:
        number += 1
        candidate = f"{name}-{number}"
    used.add(candidate.casefold())
    return candidate
