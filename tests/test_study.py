"""The collection run headless, without kernels: what is kept, and what a forced start drops."""

import pytest

from gainmtl_lib import notebooks as study
from gainmtl_lib.notebooks import ANOMALIES, SHORTCUTS, STRATEGY_NOTEBOOKS
from gainmtl_lib.studies.shortcut import ShortcutStudySettings


@pytest.fixture()
def executed(monkeypatch):
    names = []
    monkeypatch.setattr(study, "execute", lambda name, path, parameters: names.append(name) or path)
    return names


def earlier_files(outputs):
    """One in every run's folder that `run_all` would make."""
    given = {"outputs_dir": outputs}
    runs = [study.notebook_settings(strategy, [], given).run_dir for strategy in STRATEGY_NOTEBOOKS]
    runs += [study.anomaly_settings(given).run_dir]
    runs += [cell.settings.run_dir for cell in ShortcutStudySettings(outputs_dir=outputs).cells()]
    for folder in runs:
        folder.mkdir(parents=True)
        (folder / "predictions.csv").touch()
    return [folder / "predictions.csv" for folder in runs]


@pytest.mark.parametrize("force", [False, True])
def test_all_keeps_earlier_runs_unless_forced(tmp_path, executed, force):
    files = earlier_files(tmp_path)
    assert study.run_all([], {"outputs_dir": tmp_path}, force=force) == tmp_path / "quick"
    assert {file.exists() for file in files} == {not force}
    assert executed[-2:] == [ANOMALIES, SHORTCUTS] and len(executed) == len(STRATEGY_NOTEBOOKS) + 5


def test_all_leaves_the_shortcut_study_to_synthetic_data(tmp_path, executed):
    files = earlier_files(tmp_path)
    study.run_all([], {"outputs_dir": tmp_path, "dataset_type": "generic"}, force=True)
    assert SHORTCUTS not in executed
    assert [file.exists() for file in files] == [False] * 8 + [True] * 9
