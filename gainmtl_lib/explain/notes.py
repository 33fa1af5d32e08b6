"""Notes of people on single pictures, in a CSV beside the run that anyone can open.

Saving adds a line and changes none: an earlier note is never lost. The last line of a picture counts. The file begins
with a byte order mark, without which Excel takes Korean for another encoding.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from gainmtl_lib.files import FileError, atomic_path

COLUMNS = ("image", "check_label", "note", "time")
YES = "yes"
WAIT_SECONDS = 5.0


class NotesError(ValueError):
    """A notes file that cannot be read; it is left as it is."""


@dataclass(frozen=True)
class Note:
    """What was last said of a picture.

    Attributes:
        check_label: whether somebody should look at its label again.
        text: free words.
        time: when it was saved, ISO 8601 with the offset; empty for a picture that nobody spoke of.
    """

    check_label: bool = False
    text: str = ""
    time: str = ""


NOTHING_SAID = Note()


class Notes:
    """The notes of one run.

    Args:
        path: the CSV; it appears with the first note.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_at: tuple[int, int] | None = None
        self._last: dict[str, Note] = {}

    def of(self, image: str) -> Note:
        """The last note on a picture.

        Raises:
            NotesError: the file cannot be read.
        """
        return self._latest().get(image, NOTHING_SAID)

    @property
    def problem(self) -> str:
        """Why the file cannot be read; empty where it can."""
        try:
            self._latest()
        except NotesError as error:
            return str(error)
        return ""

    def marked(self) -> set[str]:
        """Pictures whose label somebody wants checked."""
        return {image for image, note in self._latest().items() if note.check_label}

    def save(self, image: str, *, check_label: bool | None = None, text: str | None = None) -> Note:
        """Add a line, after reading again what others added meanwhile.

        Args:
            image: path of the picture.
            check_label: None keeps what was last said, by whomever.
            text: likewise.

        Raises:
            NotesError: what is there cannot be read, so nothing is written over it.
            FileError: the file cannot be written.
        """
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            raise FileError(f"{self.path}: another program is writing notes here; try again") from None
        except OSError as error:
            raise FileError(f"{self.path}: could not be written: {error.strerror}") from None
        try:
            last = self.of(image)
            note = Note(
                last.check_label if check_label is None else check_label,
                last.text if text is None else text.strip(),
                datetime.now().astimezone().isoformat(timespec="seconds"),
            )
            self._append(image, note)
        finally:
            lock.release()
        return note

    def _append(self, image: str, note: Note) -> None:
        written, names = self._read()
        added = io.StringIO()
        writer = csv.DictWriter(added, names, lineterminator="\n")
        if not written:
            writer.writeheader()
        elif not written.endswith("\n"):
            added.write("\n")
        mark = YES if note.check_label else ""
        writer.writerow({"image": image, "check_label": mark, "note": note.text, "time": note.time})
        with atomic_path(self.path) as temporary:
            temporary.write_text(written + added.getvalue(), encoding="utf-8-sig", newline="")

    def _latest(self) -> dict[str, Note]:
        """Last note by picture; the file is read again only when it changed."""
        try:
            state = self.path.stat()
        except OSError:
            return {}
        if self._read_at != (state.st_mtime_ns, state.st_size):
            text, names = self._read()
            rows = csv.DictReader(io.StringIO(text, newline=""), names)
            next(rows, None)
            self._last = {row["image"]: _note(row) for row in rows}
            self._read_at = state.st_mtime_ns, state.st_size
        return self._last

    def _read(self) -> tuple[str, list[str]]:
        """The text as it stands, without a byte order mark, and its columns, others' own among them."""
        if not self.path.exists():
            return "", list(COLUMNS)
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise NotesError(f"{self.path}: cannot be read as UTF-8 text: {error}") from None
        names = next(csv.reader(io.StringIO(text, newline="")), [])
        if text and not set(COLUMNS) <= set(names):
            raise NotesError(
                f"{self.path}: expected the columns {', '.join(COLUMNS)} separated by commas, got {names}; "
                "mend or rename the file: nothing is written over it"
            )
        return text, names or list(COLUMNS)


def _note(row: dict[str, str | None]) -> Note:
    marked = (row["check_label"] or "").strip().lower() in {YES, "true", "1"}
    return Note(marked, row["note"] or "", row["time"] or "")
