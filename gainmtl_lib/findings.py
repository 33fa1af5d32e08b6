"""What is wrong with data: errors that name the file, what was found, what was expected; and findings to be listed."""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gainmtl_lib.settings import UserError

logger = logging.getLogger(__name__)

Level = Literal["error", "warning", "info"]


class DataError(UserError, ValueError):
    """Data that cannot be used: names the path, what was found, and what was expected."""


class UnreadableError(DataError):
    """A file that cannot be decoded: the one error that a run may be asked to step over."""


class Finding(NamedTuple):
    """One problem of a dataset: what was found and what was expected."""

    level: Level  # `error` stops a run, `warning` changes what it learns or measures, `info` is good to know
    file: str  # or folder; empty for the dataset as a whole, or where the message names it
    message: str
    kind: str = ""  # what it is counted under where there can be thousands; empty for single problems

    def __str__(self) -> str:
        return f"{self.file}: {self.message}" if self.file else self.message


def raise_errors(findings: Iterable[Finding]) -> None:
    """Raise one `DataError` that lists every finding of level `error`, the first twenty in full."""
    if errors := [str(finding) for finding in findings if finding.level == "error"]:
        more = [f"… and {len(errors) - 20} more"] if len(errors) > 20 else []
        raise DataError("\n".join(errors[:20] + more))


def settle(found: list[Finding], findings: list[Finding] | None) -> None:
    """Hand what was found to `findings`; without these raise its errors (`raise_errors`) and log the rest.

    Of each kind one line is logged, with an example: thousands of pictures share one mistake.
    """
    if findings is not None:
        findings += found
        return
    raise_errors(found)
    for kind, count in Counter(finding.kind for finding in found if finding.kind).items():
        logger.warning("%s: %d, such as %s", kind, count, next(one for one in found if one.kind == kind))
    for finding in found:
        if not finding.kind:
            logger.log(logging.INFO if finding.level == "info" else logging.WARNING, "%s", finding)


@contextlib.contextmanager
def reported(found: list[Finding], file: str = "") -> Iterator[None]:
    """A `DataError` becomes a finding, so that an error in one file does not hide another."""
    try:
        yield
    except DataError as error:
        found.append(Finding("error", file, str(error)))


def parsed(file: Path, form: str, parse: Callable[[bytes], Any]) -> Any:
    """What `parse` makes of a text file's bytes; `UnreadableError` where it cannot: not of that `form`, or no file."""
    try:
        return parse(file.read_bytes())
    except OSError as error:
        raise UnreadableError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{file}: is not encoded in UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (ValueError, SyntaxError, LookupError, RecursionError) as error:
        raise UnreadableError(f"{file}: not {form}: {error}") from None
