import pytest
from tiny import tiny_settings

from gainmtl_lib.runs import RunError, claim, write_json


def begin(settings):
    """A run that reached a checkpoint and was interrupted."""
    with claim(settings) as folder:
        write_json(folder / "manifest.json", {"status": "running"})
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints/last.ckpt").write_text("x")
    return folder


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_claim_writes_settings_once_and_releases_the_folder(tmp_path):
    settings = tiny_settings(tmp_path)
    with claim(settings) as folder:
        assert (folder / "settings.yaml").is_file()
        with pytest.raises(RunError, match="another process"), claim(settings):
            pass
    written = (begin(settings) / "settings.yaml").stat().st_mtime_ns
    with claim(settings):
        assert (folder / "settings.yaml").stat().st_mtime_ns == written
    with pytest.raises(RunError, match="batch_size: 8 and 2"), claim(settings.changed(batch_size=2)):
        pass
    assert names(folder) == [".lock", "checkpoints/last.ckpt", "manifest.json", "settings.yaml"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_start_that_reached_no_checkpoint_leaves_nothing(tmp_path, error):
    settings = tiny_settings(tmp_path)
    with pytest.raises(error), claim(settings) as folder:
        write_json(folder / "manifest.json", {"status": "running"})
        (folder / "tensorboard").mkdir()
        (folder / "tensorboard/events.out.tfevents.1").write_text("x")
        raise error
    assert names(folder) == [".lock"]


def test_a_run_that_reached_a_checkpoint_outlives_an_error(tmp_path):
    settings = tiny_settings(tmp_path)
    before = names(begin(settings))
    with pytest.raises(RuntimeError), claim(settings) as folder:
        raise RuntimeError
    assert names(folder) == before


def test_a_start_that_was_killed_binds_nobody(tmp_path):
    settings = tiny_settings(tmp_path)
    with claim(settings) as folder:  # a killed process cleans nothing up
        write_json(folder / "manifest.json", {"status": "running"})
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints/.last-ab12_9zz.ckpt").write_text("half")
    with claim(settings.changed(batch_size=2)):
        assert names(folder) == [".lock", "settings.yaml"]
        assert "batch_size: 2" in (folder / "settings.yaml").read_text()


def test_what_a_killed_writer_left_is_swept_in_this_run_alone(tmp_path):
    settings = tiny_settings(tmp_path)
    other = begin(settings.changed(seed=7)) / "checkpoints/.last-ab12_9zz.ckpt"
    folder = begin(settings)
    left = [".manifest-ab12_9zz.json", ".model-ab12_9zz.safetensors", "checkpoints/.epoch_10-ab12_9zz.ckpt"]
    evaluation = folder / ".predictions-ab12_9zz.csv"  # swept by the next evaluation
    for path in (other, evaluation, *(folder / name for name in left)):
        path.write_text("half")
    with claim(settings):
        assert not [name for name in left if (folder / name).exists()]
        assert (folder / "checkpoints/last.ckpt").is_file() and evaluation.is_file() and other.is_file()


def test_force_empties_the_folder(tmp_path):
    settings = tiny_settings(tmp_path)
    begin(settings)
    with claim(settings.changed(batch_size=2), force=True) as folder:
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "settings.yaml"]


def test_force_drops_the_runs_event_files_where_they_lie_elsewhere(tmp_path):
    settings = tiny_settings(tmp_path, tensorboard_dir=tmp_path / "logs")
    others = settings.changed(seed=7)
    for each in (settings, others):
        begin(each)
        each.tensorboard_folder.mkdir(parents=True)
        (each.tensorboard_folder / "events.out.tfevents.1").write_text("x")
    with claim(settings, force=True):
        assert names(settings.tensorboard_folder) == []
        assert names(others.tensorboard_folder) == ["events.out.tfevents.1"]


def test_settings_written_by_another_version_are_not_reused(tmp_path):
    settings = tiny_settings(tmp_path)
    folder = begin(settings)
    with (folder / "settings.yaml").open("a") as file:
        file.write("retired_option: 3\n")
    with pytest.raises(RunError, match="unknown parameter 'retired_option'"), claim(settings):
        pass
