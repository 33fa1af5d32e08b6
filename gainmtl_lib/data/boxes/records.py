"""What the readers of box labels return, and what they report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gainmtl_lib.data.findings import DataError, Finding

OUTSIDE = "outside the picture"
CLIPPED = "beyond the picture's edge"
NO_AREA = "without area"
NOT_FINITE = "not finite"
CROWD = "crowd"
UNKNOWN_IMAGE = "of an unknown image"
UNKNOWN_CLASS = "of an unknown class"
REPEATED = "repeated"
WHOLE = "nearly the whole picture"
TINY = "below a pixel"
NO_PICTURE = "label without a picture"
SCALED = "picture of another size"
UNREADABLE = "picture unreadable"

KINDS = (
    *(OUTSIDE, NO_AREA, NOT_FINITE, CROWD, UNKNOWN_IMAGE, UNKNOWN_CLASS, NO_PICTURE, UNREADABLE),
    *(CLIPPED, REPEATED, WHOLE, TINY, SCALED),
)
"""What is counted: first what is left out, then what is drawn all the same."""


@dataclass(frozen=True)
class BoxFinding(Finding):
    """A finding about boxes; `kind` is what it is counted under, empty for errors."""

    kind: str = ""


@dataclass(frozen=True)
class Box:
    """One box, edges measured from the picture's top left corner, where pixel column c spans [c, c + 1).

    Attributes:
        left: edge, in the unit of its `Annotation`; as are `top`, `right` and `bottom`.
        top: see `left`.
        right: see `left`.
        bottom: see `left`.
        name: its class.
        place: where it stands in its file, for messages.
    """

    left: float
    top: float
    right: float
    bottom: float
    name: str
    place: str


@dataclass(frozen=True)
class Annotation:
    """The boxes of one picture.

    Attributes:
        boxes: in the file's order.
        size: (height, width) of the picture according to the file, None where it does not say.
        shares: whether edges are shares of the picture's sides; pixels otherwise.
    """

    boxes: list[Box]
    size: tuple[int, int] | None = None
    shares: bool = False


@dataclass
class Report:
    """Findings so far. A reader never stops at a box that can be left out."""

    findings: list[BoxFinding] = field(default_factory=list)

    def warn(self, kind: str, file: Path | str, message: str) -> None:
        """Count something under `kind`."""
        self.findings.append(BoxFinding("warning", str(file), message, kind))

    def error(self, error: DataError, file: Path | str) -> None:
        """Something that stops a run."""
        self.findings.append(BoxFinding("error", str(file), str(error).removeprefix(f"{file}: ")))


@dataclass(frozen=True)
class Entry:
    """A picture that labels exist for.

    Attributes:
        file: the label file.
        picture: the picture's path, as the labels name it; without suffix where `by_stem`.
        read: parses the boxes, adding what is left out to a report; raises `DataError` for a broken file.
        by_stem: whether the label file's own stem names the picture.
    """

    file: Path
    picture: str
    read: Callable[[Report], Annotation]
    by_stem: bool
