"""What is wrong with a dataset: one finding per problem, and the error that stops a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "info"]


class DataError(ValueError):
    """Data that cannot be used: names the path, what was found, and what was expected."""


@dataclass(frozen=True)
class Finding:
    """One problem of a dataset.

    Attributes:
        level: `error` stops a run, `warning` changes what it learns or measures, `info` is good to know.
        file: the file or folder concerned, empty for the dataset as a whole.
        message: what was found and what was expected.
    """

    level: Level
    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}" if self.file else self.message


def raise_errors(findings: Iterable[Finding], *, limit: int = 20) -> None:
    """Raise one `DataError` that lists every finding of level `error`, at most `limit` of them in full."""
    errors = [str(finding) for finding in findings if finding.level == "error"]
    if errors:
        more = [f"… and {len(errors) - limit} more"] if len(errors) > limit else []
        raise DataError("\n".join(errors[:limit] + more))
