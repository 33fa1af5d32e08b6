"""The shortcut study run on the smallest grid: resumed, reported, exported."""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from tiny import tiny_settings

from gainmtl_lib.cli import main
from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import RunError
from gainmtl_lib.settings import SettingsError
from gainmtl_lib.studies import shortcut as module
from gainmtl_lib.studies.reasons import FILE, NAMES
from gainmtl_lib.studies.shortcut import (
    ShortcutReport,
    ShortcutStudySettings,
    opening_figure,
    opening_runs,
    read_study,
    run_study,
    shown_row,
    study_steps,
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shortcut")
    values = tiny_settings(folder, num_epochs=1, num_samples=80, use_tensorboard=False).plain()
    left_out = ("strategy", "lambda_", "image_counterfactual", "experiment", "outputs_dir", "data_root")
    values = {name: value for name, value in values.items() if not name.startswith(left_out)}
    (folder / "base.yaml").write_text(yaml.safe_dump(values))
    return ShortcutStudySettings(
        base=folder / "base.yaml",
        outputs_dir=folder / "outputs",
        cues="mark",
        correlations=0.8,
        strategies=["S1", "S3"],
    )


@pytest.fixture(scope="module")
def study(settings):
    return run_study(settings)


@pytest.fixture
def s1_fails(monkeypatch):
    """S1 cannot be trained; the others can."""
    real = module.fit

    def fails(asked):
        if asked.strategy == "S1":
            raise DataError("no picture")
        return real(asked)

    monkeypatch.setattr(module, "fit", fails)


def command(settings, *arguments):
    pairs = {"base": settings.base[0], "outputs_dir": settings.outputs_dir, "cues": "mark", "correlations": 0.8}
    words = [word for name, value in pairs.items() for word in ("-p", name, str(value))]
    return CliRunner().invoke(main, ["shortcut", *words, "-p", "strategies", "[S1, S3]", *arguments])


def test_nothing_is_there_before(tmp_path):
    grid = {"cues": ["mark", "border"], "correlations": 0.8, "strategies": ["S1", "S3"], "seeds": [0, 1]}
    study = read_study(ShortcutStudySettings(outputs_dir=tmp_path, **grid))
    assert len(study.missing) == 8 and study.state == "0 of 8 runs, 8 not made yet"
    assert study.table.empty and list(study.table)[:4] == ["cue", "correlation", "seed", "strategy"]


def test_one_row_per_run_with_every_indicator(study, settings):
    table = study.table
    assert table[["cue", "correlation", "seed", "strategy"]].to_numpy().tolist() == [
        ["mark", 0.8, 0, "S1"], ["mark", 0.8, 0, "S3"],
    ]  # fmt: skip
    assert list(table)[4:] == list(NAMES)
    assert np.allclose(table["drop"], table["accuracy"] - table["accuracy_shift"])
    assert table["attention_iou"].isna().tolist() == [True, False]
    assert study.state == "2 of 2 runs"
    stored = pd.read_csv(settings.folder / "study.csv")
    pd.testing.assert_frame_equal(stored, table, atol=1e-4, check_dtype=False)


def test_runs_lie_below_their_cell(study, settings):
    run = study.runs[1][1]
    assert run.folder == settings.folder / "mark-0.8" / "s3" / "seed0"
    assert run.settings.data_root == settings.outputs_dir / "data" / "shortcut" / "mark-0.8-0"


def test_a_second_call_trains_nothing(study, settings, caplog, monkeypatch):
    monkeypatch.setattr("gainmtl_lib.train._train", None)
    with caplog.at_level(logging.INFO, logger="gainmtl_lib"):
        again = run_study(settings)
    pd.testing.assert_frame_equal(again.table, study.table)
    assert not [line for line in caplog.messages if line.startswith("run ")]
    assert len([line for line in caplog.messages if line.startswith("reusing the finished run")]) == 2


def test_reading_back_is_the_same(study, settings):
    pd.testing.assert_frame_equal(read_study(settings).table, study.table)


def test_a_run_that_was_not_asked_is_missing(study, settings):
    path = study.runs[0][1].folder / FILE
    content = path.read_bytes()
    path.unlink()
    try:
        assert read_study(settings).missing == ["mark 0.8, S1, seed 0"]
    finally:
        path.write_bytes(content)


def test_runs_with_other_settings_are_named(study, settings):
    other = read_study(settings.changed(num_epochs=2))
    assert not other.runs and "num_epochs: 1 and 2" in other.failed["mark 0.8, S1, seed 0"]
    assert other.state.startswith("0 of 2 runs, 2 failed; mark 0.8, S1, seed 0: ")


def test_a_failure_is_counted_and_the_others_go_on(study, settings, s1_fails):
    found = run_study(settings)
    assert found.failed == {"mark 0.8, S1, seed 0": "no picture"} and len(found.runs) == 1
    assert found.state == "1 of 2 runs, 1 failed; mark 0.8, S1, seed 0: no picture"


def test_an_interruption_ends_the_study(settings, monkeypatch):
    def interrupted(asked):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(settings)


def test_settings_are_checked_before_anything_is_trained(settings, monkeypatch):
    monkeypatch.setattr(module, "fit", None)
    with pytest.raises(SettingsError, match="image_size must be multiples of 32"):
        run_study(settings.changed(image_size=(65, 65)))


def test_steps_pair_the_runs_of_a_cell(study):
    steps = study_steps(study, "test_shift")
    assert steps["step"].tolist() == ["S1→S3"] and steps["seeds"].tolist() == [1]
    table = study.table
    assert steps["difference"][0] == pytest.approx(table["accuracy_shift"][1] - table["accuracy_shift"][0])
    assert steps["verdict"][0] == "not tested"
    same = study_steps(study, "test")
    assert same["difference"][0] == pytest.approx(table["accuracy"][1] - table["accuracy"][0])


def test_cells_of_one_seed_show_the_same_parts_and_other_seeds_do_not(study, monkeypatch):
    handed = {}
    monkeypatch.setattr(module, "steps_table", lambda rows, steps, metric: handed.update(rows))
    (cell, run), *_ = study.runs
    again = [(replace(cell, cue="border"), run), (replace(cell, seed=1), run)]
    study_steps(replace(study, runs=[(cell, run), *again]), "test")
    first, other_cue, other_seed = (set(table["image"]) for table in handed[cell.strategy].values())
    assert first == other_cue and not first & other_seed


def test_report_in_words(study):
    report = ShortcutReport(study)
    assert report.runs.index.tolist() == ["mark 0.8, S1, seed 0", "mark 0.8, S3, seed 0"]
    assert report.strategies.index.tolist() == ["S1", "S3"]
    assert "features" not in report.runs  # neither strategy has a counterfactual path
    assert report.warning_lines.loc["accuracy", "verdict"] == "too few runs"
    assert any(
        sentence.startswith("Attention supervision alone (S1→S3) was not tested") for sentence in report.sentences
    )
    assert report.sentences == ShortcutReport(study).sentences


def test_opening_shows_the_same_pictures_of_both(study):
    table = study.table.assign(accuracy_shift=[0.2, 0.8])
    known = type("Known", (), {"table": table, "runs": study.runs})()
    runs = opening_runs(known, cue="mark")
    assert list(runs) == ["S1", "S3"]
    for split, label in (("test", 1), ("test_shift", 0)):
        rows = [run.predictions.iloc[shown_row(run, split)] for run in runs.values()]
        assert rows[0]["image"] == rows[1]["image"] and rows[0]["label"] == label and rows[0]["split"] == split
    figure = opening_figure(known)
    assert sum(len(part.axes) for part in figure.subfigs) == 5
    titles = [axis.get_title() for axis in figure.subfigs[1].axes]
    assert all(title.startswith(("S1 says", "S3 says")) and title[-1] in "✓✗" for title in titles)


def test_opening_needs_a_strategy_that_is_better_than_s1(study):
    known = type("Known", (), {"table": study.table.assign(accuracy_shift=[0.8, 0.2]), "runs": study.runs})()
    with pytest.raises(RunError, match="shows S1 beside a better strategy, and the study has none"):
        opening_figure(known)


def test_command_reports_and_exports(study, settings, tmp_path):
    (settings.folder / "study.csv").unlink()  # as an interrupted study leaves it
    (tmp_path / "opening.jpg").write_text("of an earlier export")
    result = command(settings, "--only-report", "--export", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert len(pd.read_csv(settings.folder / "study.csv")) == 2
    picture = tmp_path / "opening.jpg"
    assert not picture.exists() or picture.read_bytes()[:2] == b"\xff\xd8"
    for text in ("mark 0.8, S3, seed 0", "what would have warned", "was not tested", "2 of 2 runs", "exported:"):
        assert text in result.output
    files = {path.name for path in tmp_path.iterdir()} - {"opening.jpg", "warnings.png"}
    assert files == {"study.csv", "table.md", "warnings.md", "kept.png", "reversed.png"}
    assert "| S1 | 1 |" in (tmp_path / "table.md").read_text()
    assert "- CAM-IoU, low: the deciding map does not cover the defect." in (tmp_path / "warnings.md").read_text()


def test_command_says_that_nothing_is_there(settings):
    result = command(settings, "--only-report", "-p", "experiment", "nothing")
    assert result.exit_code == 1
    assert "no finished run of the study (0 of 2 runs, 2 not made yet)" in result.output


def test_command_fails_when_a_run_failed(study, settings, s1_fails):
    result = command(settings)
    assert result.exit_code == 1 and "1 of 2 runs, 1 failed; mark 0.8, S1, seed 0: no picture" in result.output


def test_command_names_a_misspelt_parameter(settings):
    result = command(settings, "-p", "cue", "mark")
    assert result.exit_code == 1 and "unknown parameter 'cue'; did you mean 'cues'?" in result.output
