"""Numbers as words: one way to round them in tables, sentences and limits."""

from __future__ import annotations

from collections.abc import Sequence

from gainmtl_lib.evaluation.intervals import Estimate

NOTHING = "–"
MINUS = "\u2212"
PERCENT = "\u00a0%"
"""With a space that does not break."""

SPLITS = {"val": "validation", "test": "test", "test_shift": "test_shift"}


def rounded(value: float | None) -> str:
    """Three decimals; a dash for no answer."""
    if value is None or value != value:
        return NOTHING
    return f"{round(value, 3) + 0.0:.3f}".replace("-", MINUS)  # adding 0 leaves no sign on what rounds to 0


def percent(value: float | None) -> str:
    """A share in per cent, one decimal where it is not whole; a dash for no answer."""
    if value is None or value != value:
        return NOTHING
    return f"{100 * value:.1f}".removesuffix(".0") + PERCENT


def interval(estimate: Estimate) -> str:
    """``0.942 (0.844 to 0.980)``; the number alone where no interval can be given."""
    if not estimate.has_interval:
        return rounded(estimate.value)
    return f"{rounded(estimate.value)} ({rounded(estimate.low)} to {rounded(estimate.high)})"


def percent_interval(estimate: Estimate) -> str:
    """``5.8 %, interval 2 % to 15.6 %``; likewise."""
    if not estimate.has_interval:
        return percent(estimate.value)
    return f"{percent(estimate.value)}, interval {percent(estimate.low)} to {percent(estimate.high)}"


def of_count(estimate: Estimate) -> str:
    """``3 of 52``, for a share."""
    return NOTHING if estimate.hits is None else f"{estimate.hits} of {estimate.count}"


def join_words(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def plural(count: int, noun: str) -> str:
    """``1 picture``, ``2 pictures``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def sentence(text: str) -> str:
    """With a capital letter."""
    return text[:1].upper() + text[1:]
