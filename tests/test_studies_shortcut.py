"""The shortcut study: its parameters, the runs of its grid, what is kept of accuracy, and its report."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from tiny import tiny_settings

from gainmtl_lib.cli import main
from gainmtl_lib.readers import DataError
from gainmtl_lib.settings import Settings, SettingsError, repository_root
from gainmtl_lib.studies import plans
from gainmtl_lib.studies.plans import Cell, run_study
from gainmtl_lib.studies.reasons import FILE, NAMES
from gainmtl_lib.studies.shortcut import (
    ShortcutStudySettings,
    followed,
    readable_runs,
    reversed_heatmap,
    study_table,
)

STUDIES = repository_root() / "params" / "studies"


def base_file(folder: Path, **values) -> Path:
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump({"backbone_arch": "b0", "pretrained": False, "image_size": 64} | values))
    return path


def planted(folder: Path, **values) -> Path:
    folder.mkdir()
    (folder / "planted.yaml").write_text(yaml.safe_dump({"cue": "mark", "correlation": 0.95} | values))
    return folder


def test_grids_of_the_parameter_files():
    assert ShortcutStudySettings.from_yaml(STUDIES / "shortcut.yaml") == ShortcutStudySettings()
    assert len(ShortcutStudySettings().cells()) == 6
    cells = ShortcutStudySettings.from_yaml(STUDIES / "shortcut_full.yaml").cells()
    grid = product(("mark", "lighting", "texture", "border"), (0.5, 0.8, 0.95, 1.0), [f"S{k}" for k in range(1, 8)])
    assert {(cell.cue, cell.correlation, cell.row) for cell in cells} == set(grid) and len(cells) == 112
    tiles = ShortcutStudySettings.from_yaml(STUDIES / "shortcut_tiles.yaml")
    assert (tiles.cues, tiles.correlations, len(tiles.strategies)) == (("mark",), (0.95,), 7)
    study = {"base", "cues", "correlations", "strategies", "seeds"}
    assert set(ShortcutStudySettings.model_fields) - study <= set(Settings.model_fields)
    namespace = {"cues": ["mark"], "correlations": [0.95], "num_epochs": None, "Path": Path}
    assert ShortcutStudySettings.from_namespace(namespace).cues == ("mark",)


def test_what_is_given_wins_over_the_base_and_later_base_files_over_earlier_ones(tmp_path):
    first, second = base_file(tmp_path, num_epochs=9, batch_size=4, learning_rate=0.1), tmp_path / "second.yaml"
    second.write_text("num_epochs: 3\nlearning_rate: 0.2\n")
    settings = ShortcutStudySettings(base=[first, second], num_epochs=2, image_size=96, strategies="S1")
    run = settings.cells()[0].settings
    assert (run.num_epochs, run.image_size, run.batch_size, run.learning_rate) == (2, (96, 96), 4, 0.2)
    with pytest.raises(SettingsError, match=r"none\.yaml: no such parameter file"):
        ShortcutStudySettings(base=tmp_path / "none.yaml").cells()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            "{cue: mark, correlation: 0.8}",
            r"the cue is mark at correlation 0\.8, but cues is mark and correlations 0\.95",
        ),
        (None, r"holds no planted\.yaml.*gainmtl data plant SOURCE .* --cue mark"),
        ("cue: [", r"planted\.yaml: is damaged, .*; plant the data again"),
        ("- mark", r"planted\.yaml: is damaged, .*; plant the data again"),
    ],
)
def test_planted_data_that_does_not_fit_is_refused(tmp_path, record, said):
    if record:
        (tmp_path / "planted.yaml").write_text(record)
    settings = ShortcutStudySettings(base=base_file(tmp_path), data_root=tmp_path, cues="mark", correlations=0.95)
    with pytest.raises(SettingsError, match=said):
        settings.cells()


def test_a_run_draws_the_data_of_its_cell_and_seed(tmp_path):
    settings = ShortcutStudySettings(
        base=base_file(tmp_path), outputs_dir=tmp_path, experiment="e", cues="border", correlations=0.8, seeds=[3]
    )
    cell = settings.cells()[-1]
    run = cell.settings
    assert (cell.name, run.strategy, run.seed) == ("border 0.8, S7, seed 3", "S7", 3)
    assert run.run_dir == tmp_path / "e" / "border-0.8" / "s7" / "seed3"
    assert run.data_root == tmp_path / "data" / "e" / "border-0.8-3"
    assert (run.dataset_type, run.shortcut, run.shortcut_correlation, run.synthetic_seed) == (
        "synthetic", "border", 0.8, 3,
    )  # fmt: skip
    assert run.image_counterfactual == 0.5 and settings.cells()[0].settings.image_counterfactual == 0
    wide = settings.changed(image_counterfactual=1.0, seeds=[0, 1], cues=["mark", "border"], correlations=[0.5, 0.95])
    cells = wide.cells()
    names = [cell.name for cell in cells]  # strategies of a cell follow each other
    assert names[:4] == [f"mark 0.5, {s}, seed 0" for s in ("S1", "S3", "S7")] + ["mark 0.95, S1, seed 0"]
    assert [name[-1] for name in names] == ["0"] * 12 + ["1"] * 12
    assert [cell.settings.image_counterfactual for cell in cells[:3]] == [0, 0, 1]  # for S7 alone


def test_planted_data_is_read_as_its_record_says(tmp_path):
    read_with = {"dataset_type": "generic", "val_ratio": 0.0, "group_pattern": "^(.+?)__"}
    root = planted(tmp_path / "tiles", read_with=read_with)
    base = base_file(tmp_path, val_ratio=0.2)
    settings = ShortcutStudySettings(base=base, data_root=root, cues="mark", correlations=0.95, strategies="S1")
    run = settings.cells()[0].settings
    assert (run.val_ratio, run.group_pattern, run.data_root) == (0.0, "^(.+?)__", root)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cues": ["marks"]}, "cues must be 'mark', 'lighting', 'texture' or 'border', got the text 'marks'"),
        ({"strategies": ["S8"]}, "strategies must be"),
        ({"correlations": [1.5]}, "correlations must be less than or equal to 1, got 1.5"),
        ({"correlations": [0.95, 0.2]}, "correlations must be at least 0.5, at which the cue says nothing"),
        ({"seeds": []}, "seeds must"),
        ({"seeds": [0, 0]}, "seeds names a value twice: 0, 0"),
        ({"image_counterfactual": 0.0}, "image_counterfactual must be greater than 0, got 0"),
        ({"num_epoch": 3}, "unknown parameter 'num_epoch'; did you mean 'num_epochs'?"),
        ({"data_root": "here"}, "data_root holds one cue at one correlation, but cues are mark, border and"),
    ],
)
def test_what_cannot_be_used(values, message):
    with pytest.raises(SettingsError) as error:
        ShortcutStudySettings(**values)
    assert message in str(error.value)


# --- What is kept of accuracy


def table(runs):
    """Rows of (strategy, accuracy, accuracy reversed) in two cues at 0.95, and in a control that loses nothing."""
    rows = []
    for strategy, same, shift in runs:
        for cue, (correlation, shifted) in product(("mark", "border"), ((0.5, same), (0.95, shift))):
            place = {"cue": cue, "correlation": correlation, "seed": 0, "strategy": strategy, "cam_iou": 0.1}
            rows.append(place | {"accuracy": same, "accuracy_shift": shifted, "drop": same - shifted})
    return pd.DataFrame(rows)


FOOLED = [("S1", 0.96, 0.11), ("S7", 0.86, 0.84)]


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_cells_with_a_cue_that_every_strategy_has_are_rows_and_seeds_of_a_plan():
    grid = product(("S1", "S7"), (0, 1), (("mark", 0.5), ("mark", 0.95), ("border", 0.95)))
    cells = [Cell(row, seed, None, cue, correlation) for row, seed, (cue, correlation) in grid]
    found = followed(cells[:-1])  # the last cell lacks S7
    assert [(cell.row, cell.seed) for cell in found] == [(row, pair) for pair in range(3) for row in ("S1", "S7")]
    assert {cell.correlation for cell in found} == {0.95} and followed([]) == []


def test_cells_of_a_cue_stand_together_in_the_heatmap_and_what_is_missing_is_a_dash():
    first = table(FOOLED)
    first = first[(first["cue"] != "mark") | (first["correlation"] != 0.95)]  # failed with the first seed
    axis = reversed_heatmap(pd.concat([first, table(FOOLED).assign(seed=1)])).axes[0]
    assert texts(axis) == ["0.96", "0.11", "0.96", "0.11", "0.86", "0.84", "0.86", "0.84", "mark", "border"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.5", "0.95", "0.5", "0.95"]
    assert [text.get_position()[0] for text in axis.texts[-2:]] == [0.5, 2.5]
    assert np.allclose(axis.images[0].to_rgba(np.array([0.5]))[0, :3], 0.97, atol=0.02)  # white is a coin's
    assert "–" in texts(reversed_heatmap(table(FOOLED).drop(index=1)).axes[0])


# --- The smallest grid, trained once


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shortcut")
    values = tiny_settings(folder, num_epochs=1, num_samples=80, use_tensorboard=False).plain()
    left_out = ("strategy", "lambda_", "image_counterfactual", "experiment", "outputs_dir", "data_root")
    values = {name: value for name, value in values.items() if not name.startswith(left_out)}
    (folder / "base.yaml").write_text(yaml.safe_dump(values))
    return ShortcutStudySettings(
        base=folder / "base.yaml", outputs_dir=folder / "outputs", cues="mark", correlations=0.8,
        strategies=["S1", "S3"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(settings):
    return run_study(settings.cells(), reasons=True)


@pytest.fixture
def s1_fails(monkeypatch):
    """S1 cannot be trained; the others can."""
    real = plans.fit

    def fails(asked):
        if asked.strategy == "S1":
            raise DataError("no picture")
        return real(asked)

    monkeypatch.setattr(plans, "fit", fails)


def command(settings, *arguments):
    pairs = {"base": settings.base[0], "outputs_dir": settings.outputs_dir, "cues": "mark", "correlations": 0.8}
    words = [word for name, value in pairs.items() for word in ("-p", name, str(value))]
    return CliRunner().invoke(main, ["shortcut", *words, "-p", "strategies", "[S1, S3]", *arguments])


def test_one_row_per_run_with_every_indicator(study, settings):
    found = study_table(study.runs)
    place = ["cue", "correlation", "seed", "strategy"]
    assert found[place].to_numpy().tolist() == [["mark", 0.8, 0, "S1"], ["mark", 0.8, 0, "S3"]]
    assert list(found) == [*place, *NAMES]
    assert np.allclose(found["drop"], found["accuracy"] - found["accuracy_shift"])
    assert found["attention_iou"].isna().tolist() == [True, False]
    assert readable_runs(found).index.tolist() == [cell.name for cell in study.runs]
    assert "flip − control flip" not in readable_runs(found)  # neither strategy has a counterfactual path
    run = study.runs[1].run
    assert run.folder == settings.folder / "mark-0.8" / "s3" / "seed0"
    assert run.settings.data_root == settings.outputs_dir / "data" / "shortcut" / "mark-0.8-0"


def test_a_second_call_trains_nothing(study, settings, monkeypatch):
    monkeypatch.setattr(plans, "fit", None)
    again = run_study(settings.cells(), reasons=True)
    pd.testing.assert_frame_equal(study_table(again.runs), study_table(study.runs))
    path = study.runs[0].run.folder / FILE
    content = path.read_bytes()
    path.unlink()  # not asked for its reasons: missing
    try:
        assert run_study(settings.cells(), reasons=True, only_report=True).missing == ["mark 0.8, S1, seed 0"]
    finally:
        path.write_bytes(content)


def test_command_reports_and_exports(study, settings, tmp_path):
    result = command(settings, "--only-report", "--export", str(tmp_path))
    assert result.exit_code == 0, result.output
    for text in ("mark 0.8,", "what would have warned", "steps: accuracy, test_shift", "2 of 2 runs"):
        assert text in result.output
    files = {path.name for path in tmp_path.iterdir()}
    assert {"study.csv", "table.md", "warnings.csv", "plan.yaml", "rows.csv", "rows.png", "reversed.png"} <= files
    found, steps = study_table(study.runs), pd.read_csv(tmp_path / "steps.csv").set_index(["split", "metric"])
    for split, name in (("test_shift", "accuracy_shift"), ("test", "accuracy")):
        step = steps.loc[(split, "accuracy")]
        assert step["step"] == "S1→S3" and step["seeds"] == 1
        assert step["difference"] == pytest.approx(found[name][1] - found[name][0], abs=1e-4)
    stored = pd.read_csv(tmp_path / "study.csv")
    pd.testing.assert_frame_equal(stored, found, atol=1e-4, check_dtype=False)
    text = (tmp_path / "table.md").read_text()
    assert "| S1 | 0." in text and "the deciding map does not cover the defect" in text
    assert ShortcutStudySettings.from_yaml(tmp_path / "plan.yaml").changed(base=settings.base) == settings


def test_command_names_what_failed_what_is_missing_and_what_is_misspelt(study, settings, s1_fails):
    result = command(settings, "--only-report", "-p", "experiment", "nothing")
    assert result.exit_code == 1 and "no finished run of the study (0 of 2 runs, 2 not made yet)" in result.output
    result = command(settings, "-p", "num_epochs", "2", "-p", "strategies", "S1", "-p", "experiment", "other")
    assert result.exit_code == 1 and "0 of 1 runs, 1 failed; mark 0.8, S1, seed 0: no picture" in result.output
    result = command(settings, "-p", "num_epochs", "2", "--only-report")
    assert result.exit_code == 1 and "num_epochs: 1 and 2" in result.output
    result = command(settings, "-p", "cue", "mark")
    assert result.exit_code == 1 and "unknown parameter 'cue'; did you mean 'cues'?" in result.output
