import errno

import pytest

from gainmtl_lib.runs import FileError, atomic_path, remove_temporaries


def test_writes_whole_files_and_leaves_no_temporary(tmp_path):
    with atomic_path(tmp_path / "new" / "a.txt") as path:
        path.write_text("one")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text() == "one"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_an_interruption_keeps_what_was_there(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as path:
        path.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_named_and_keeps_what_was_there(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("before")
    with pytest.raises(FileError) as error, atomic_path(target) as path:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(error.value).startswith(f"{target}: the disk is full (")
    assert "start again, the run goes on" in str(error.value)
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_libraries_hide_a_failed_write_in_errors_of_their_own(tmp_path):
    texts = ("PytorchStreamWriter failed writing file data/0", "I/O error: No space left on device (os error 28)")
    for text in texts:
        with pytest.raises(FileError, match=r"a\.ckpt: could not be written"), atomic_path(tmp_path / "a.ckpt"):
            raise RuntimeError(text)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    target = tmp_path / "file" / "below" / "a.txt"
    with pytest.raises(FileError, match="could not be written: Not a directory") as error, atomic_path(target):
        pass
    assert str(error.value).startswith(str(target))


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(RuntimeError, match="shapes differ"), atomic_path(tmp_path / "a.ckpt"):
        raise RuntimeError("shapes differ")
    with pytest.raises(FileError, match=r"could not be written: Permission denied"), atomic_path(tmp_path / "b"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_temporaries_of_a_killed_writer_are_removed_and_nothing_else(tmp_path):
    with atomic_path(tmp_path / "last.ckpt") as temporary:
        temporary.write_text("x")
        killed = temporary.read_text()
    temporary.write_text(killed)
    kept = ["last.ckpt", ".last-notes.ckpt", ".last-ab12_9zz.txt", ".best-ab12_9zz.ckpt", "last-ab12_9zz.ckpt"]
    for name in kept:
        (tmp_path / name).write_text("x")
    remove_temporaries(tmp_path / "last.ckpt", tmp_path / "nowhere" / "a.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    remove_temporaries(tmp_path / "*.ckpt")
    assert ".best-ab12_9zz.ckpt" not in {path.name for path in tmp_path.iterdir()}
