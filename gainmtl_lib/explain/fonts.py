"""Which texts the installed fonts can draw: class names in Hangul need a font that has it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import matplotlib as mpl
from matplotlib import font_manager

from gainmtl_lib.explain.suppression import CLASS_NAMES

logger = logging.getLogger(__name__)

PREFERRED = ("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo")
"""Taken before any other font that has the characters."""

PLACEHOLDERS = ("LastResort", "AdobeBlank")
"""Fonts that claim every character and draw boxes."""


def drawable_names(names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Class names as a figure can show them, and the font families to draw them with.

    Where no installed font has their characters the names are English, with a warning.
    """
    families = fonts_for("".join(names))
    if families is not None:
        return tuple(names), families
    logger.warning(
        "no installed font can draw %s; figures say %s instead (install one, such as fonts-nanum)",
        " and ".join(f"'{name}'" for name in names),
        " and ".join(f"'{name}'" for name in CLASS_NAMES),
    )
    return CLASS_NAMES, list(mpl.rcParams["font.family"])


def drawable(text: str) -> str:
    """The text with a question mark for each character that no installed font can draw."""
    return text if fonts_for(text) is not None else "".join(c if fonts_for(c) is not None else "?" for c in text)


def fonts_for(text: str) -> list[str] | None:
    """Families that draw a text together, the default ones first; None where the installed fonts lack a character."""
    default = list(mpl.rcParams["font.family"])
    missing = frozenset(text) - _characters(font_manager.findfont(font_manager.FontProperties(family=default)))
    if not missing:
        return default
    found = _family_with(missing)
    return None if found is None else [*default, found]


@cache
def _characters(path: str) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))


@cache
def _family_with(characters: frozenset[str]) -> str | None:
    """An installed family that has all of these characters. Looking through all fonts takes a moment: once each."""
    for entry in sorted(font_manager.fontManager.ttflist, key=_preference):
        if entry.name.replace(" ", "").lstrip(".").startswith(PLACEHOLDERS):
            continue
        try:
            if characters <= _characters(entry.fname):
                return entry.name
        except (OSError, RuntimeError):  # a font that is gone or broken
            continue
    return None


def _preference(entry: font_manager.FontEntry) -> tuple[int, str]:
    return PREFERRED.index(entry.name) if entry.name in PREFERRED else len(PREFERRED), entry.name
