"""Which picture of a dataset a label means, and its size on disk."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from gainmtl_lib.data.images import UnreadableError, read_image

ORIENTATION = 0x0112
"""The EXIF tag; 1 is upright."""


class Pictures:
    """Pictures by name.

    A label means the pictures of its name (or stem) whose folders fit: the label's folders occur in this order
    among the picture's below the dataset's folder, or the other way round. So ``train/a``, ``defective/a`` and
    ``/elsewhere/images/train/defective/a`` all mean ``images/train/defective/a.png``; ``val/a`` does not. Of several,
    those are meant whose folders end in the label's, or the other way round: beside ``images/train/defective/a.png``,
    ``defective/a`` does not mean ``images/train/defective/crack/a.png``.

    Args:
        images: paths of the pictures.
        root: the dataset's folder.
    """

    def __init__(self, images: Sequence[str], root: Path) -> None:
        self._folders = [_parts(Path(image).parent.relative_to(root).as_posix()) for image in images]
        self._names: dict[str, list[int]] = {}
        self._stems: dict[str, list[int]] = {}
        for row, image in enumerate(images):
            self._names.setdefault(_composed(Path(image).name), []).append(row)
            self._stems.setdefault(_composed(Path(image).stem), []).append(row)

    def find(self, picture: str, *, by_stem: bool) -> list[int]:
        """Rows that `picture` can mean; several where it does not tell them apart."""
        *folders, name = _parts(picture) or [""]
        rows = (self._stems if by_stem else self._names).get(name, [])
        fitting = [row for row in rows if _within(folders, self._folders[row]) or _within(self._folders[row], folders)]
        return [row for row in fitting if _same_end(folders, self._folders[row])] or fitting


def picture_size(path: str) -> tuple[int, int] | None:
    """(height, width) as `read_image` decodes it, mostly from the file's head alone; None if it cannot be decoded."""
    try:
        with Image.open(path) as picture:
            upright = picture.getexif().get(ORIENTATION, 1) == 1
            size = (picture.height, picture.width)
    except Exception:  # whatever a broken file makes Pillow raise; what decodes the pictures has the last word
        upright, size = False, (0, 0)
    if upright:
        return size
    try:
        pixels = read_image(path)
    except UnreadableError:
        return None
    return pixels.shape[0], pixels.shape[1]


def _parts(path: str) -> list[str]:
    """Parts of a path of any system, without root and drive."""
    parts = PurePosixPath(_composed(path).replace("\\", "/")).parts
    return [part for part in parts if part not in ("/", "//", ".")]


def _composed(text: str) -> str:
    """Hangul and accents in one form: macOS stores file names decomposed, label files hold them composed."""
    return unicodedata.normalize("NFC", text)


def _same_end(some: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the longer of the two ends in the shorter."""
    return all(one == other for one, other in zip(reversed(some), reversed(parts), strict=False))


def _within(some: Iterable[str], parts: Iterable[str]) -> bool:
    """Whether `some` occur in this order among `parts`."""
    left = iter(parts)
    return all(part in left for part in some)
