import csv

import pytest
from filelock import FileLock

from gainmtl_lib.browser import library as notes_module
from gainmtl_lib.browser.library import NOTHING_SAID, Notes, NotesError
from gainmtl_lib.runs import FileError


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path / "notes.csv")


def lines(notes):
    with notes.path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def test_nothing_is_written_before_something_is_said(notes):
    assert notes.of("a.png") == NOTHING_SAID and notes.marked() == set() and notes.problem == ""
    assert not notes.path.exists()


def test_what_is_said_is_read_back_by_another_browser(notes):
    said = notes.save("images/a.png", check_label=True, text='  긁힘, or "stain"?\nask again  ')
    again = Notes(notes.path).of("images/a.png")
    assert again == said
    assert (again.check_label, again.text) == (True, '긁힘, or "stain"?\nask again')
    assert again.time.count(":") >= 2 and "T" in again.time
    assert notes.marked() == {"images/a.png"}


def test_the_last_line_counts_and_no_earlier_one_is_lost(notes):
    notes.save("a.png", check_label=True, text="first")
    notes.save("b.png", check_label=False, text="other")
    notes.save("a.png", check_label=False, text="second")
    assert [line[:3] for line in lines(notes)[1:]] == [
        ["a.png", "yes", "first"],
        ["b.png", "", "other"],
        ["a.png", "", "second"],
    ]
    assert notes.of("a.png").text == "second" and notes.marked() == set()


def test_two_browsers_add_to_the_same_file(notes):
    other = Notes(notes.path)
    notes.save("a.png", check_label=False, text="one")
    other.save("b.png", check_label=False, text="two")
    notes.save("c.png", check_label=False, text="three")
    assert [line[0] for line in lines(notes)] == ["image", "a.png", "b.png", "c.png"]
    assert other.of("c.png").text == "three" and notes.of("b.png").text == "two"


def test_what_is_not_named_stays_as_somebody_else_said_it(notes):
    other = Notes(notes.path)
    assert notes.of("a.png") == NOTHING_SAID
    other.save("a.png", text="looks like a stain")
    assert notes.save("a.png", check_label=True).text == "looks like a stain"
    other.save("a.png", text="")
    assert (notes.of("a.png").check_label, notes.of("a.png").text) == (True, "")


def test_excel_is_told_the_encoding_by_one_byte_order_mark(notes):
    for text in ("긁힘", "얼룩"):
        notes.save("a.png", text=text)
        content = notes.path.read_bytes()
        assert content.startswith(b"\xef\xbb\xbfimage,check_label,note,time\n") and content.count(b"\xef\xbb\xbf") == 1
    assert notes.of("a.png").text == "얼룩"


def test_columns_and_endings_of_others_are_kept(notes):
    written = "﻿image,note,reviewer,time,check_label\nx.png,odd,Kim,2026-01-01,TRUE"  # no line end, a byte order mark
    notes.path.write_text(written, encoding="utf-8")
    notes.save("a.png", check_label=True, text="new")
    assert lines(notes)[1] == ["x.png", "odd", "Kim", "2026-01-01", "TRUE"]
    assert lines(notes)[2][:3] == ["a.png", "new", ""]
    assert notes.marked() == {"x.png", "a.png"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image;note\na;b\n", "expected the columns image, check_label, note, time"),
        (b"\xff\xfe\x00x", "as UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_is_never_written_over(notes, content, message):
    notes.path.write_bytes(content)
    assert message in notes.problem and "notes.csv" in notes.problem
    with pytest.raises(NotesError, match=message):
        notes.save("a.png", check_label=False, text="x")
    assert notes.path.read_bytes() == content


def test_a_busy_file_and_a_folder_that_is_none_are_told(notes, monkeypatch):
    monkeypatch.setattr(notes_module, "WAIT_SECONDS", 0.05)
    with (
        FileLock(notes.path.with_name(".notes.csv.lock")),
        pytest.raises(FileError, match="another program is writing"),
    ):
        notes.save("a.png", check_label=False, text="x")
    (notes.path.parent / "file").write_text("")
    with pytest.raises(FileError, match="could not be written"):
        Notes(notes.path.parent / "file" / "notes.csv").save("a.png", check_label=False, text="x")
