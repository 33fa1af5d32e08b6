"""The shortcut study's parameters, and the runs of its grid."""

from itertools import product
from pathlib import Path

import pytest
import yaml

from gainmtl_lib.settings import SettingsError, read_parameters, repository_root
from gainmtl_lib.studies.shortcut import ShortcutStudySettings

STUDIES = repository_root() / "params" / "studies"


def base_file(folder: Path, **values) -> Path:
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump({"backbone_arch": "b0", "pretrained": False, "image_size": 64} | values))
    return path


def planted(folder: Path, **values) -> Path:
    folder.mkdir()
    (folder / "planted.yaml").write_text(yaml.safe_dump({"cue": "mark", "correlation": 0.95} | values))
    return folder


def test_small_grid_is_the_default():
    assert ShortcutStudySettings.from_yaml(STUDIES / "shortcut.yaml") == ShortcutStudySettings()
    assert len(ShortcutStudySettings().cells()) == 9


def test_whole_grid_has_112_runs():
    settings = ShortcutStudySettings.from_yaml(STUDIES / "shortcut_full.yaml")
    runs = {(cell.cue, cell.correlation, cell.strategy) for cell in settings.cells()}
    strategies = [f"S{k}" for k in range(1, 8)]
    assert runs == set(product(("mark", "lighting", "texture", "border"), (0.5, 0.8, 0.95, 1.0), strategies))
    assert len(settings.cells()) == 112


def test_tiles_are_one_cell_of_every_strategy():
    settings = ShortcutStudySettings.from_yaml(STUDIES / "shortcut_tiles.yaml")
    assert (settings.cues, settings.correlations, len(settings.strategies)) == (("mark",), (0.95,), 7)
    assert [path.name for path in settings.base] == ["magnetic_tile_planted.yaml", "synthetic_start.yaml"]
    assert settings.data_root == repository_root() / "outputs/data/magnetic_tile_planted"


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


def test_the_share_of_edited_pictures_is_for_s7_alone(tmp_path):
    settings = ShortcutStudySettings(base=base_file(tmp_path), image_counterfactual=1.0, strategies=["S1", "S6", "S7"])
    assert [cell.settings.image_counterfactual for cell in settings.cells()[:3]] == [0, 0, 1]
    with pytest.raises(SettingsError, match="image_counterfactual must be greater than 0, got 0"):
        ShortcutStudySettings(base=base_file(tmp_path), image_counterfactual=0.0)


def test_what_is_given_wins_over_the_base(tmp_path):
    base = base_file(tmp_path, num_epochs=9, batch_size=4)
    settings = ShortcutStudySettings(base=base, num_epochs=2, image_size=96, strategies="S1")
    run = settings.cells()[0].settings
    assert (run.num_epochs, run.image_size, run.batch_size) == (2, (96, 96), 4)


def test_later_base_files_win(tmp_path):
    first, second = base_file(tmp_path, num_epochs=9, batch_size=4), tmp_path / "second.yaml"
    second.write_text("num_epochs: 3\n")
    run = ShortcutStudySettings(base=[first, second], strategies="S1").cells()[0].settings
    assert (run.num_epochs, run.batch_size) == (3, 4)


def test_strategies_of_a_cell_follow_each_other():
    settings = ShortcutStudySettings(
        seeds=[0, 1], strategies=["S1", "S7"], cues=["mark", "border"], correlations=[0.5, 0.95]
    )
    names = [cell.name for cell in settings.cells()]
    assert names[:3] == ["mark 0.5, S1, seed 0", "mark 0.5, S7, seed 0", "mark 0.95, S1, seed 0"]
    assert [name[-1] for name in names] == ["0"] * 8 + ["1"] * 8


def test_planted_data_is_read_as_it_lies_there(tmp_path):
    root = planted(tmp_path / "tiles")
    settings = ShortcutStudySettings(
        base=base_file(tmp_path), data_root=root, cues="mark", correlations=0.95, strategies=["S1"]
    )
    run = settings.cells()[0].settings
    assert (run.dataset_type, run.data_root, run.experiment) == ("generic", root, "mark-0.95")


def test_planted_data_of_another_cue_is_refused(tmp_path):
    root = planted(tmp_path / "tiles", correlation=0.8)
    settings = ShortcutStudySettings(base=base_file(tmp_path), data_root=root, cues="mark", correlations=0.95)
    with pytest.raises(
        SettingsError, match=r"the cue is mark at correlation 0\.8, but cues is mark and correlations 0\.95"
    ):
        settings.cells()


def test_data_without_a_planted_cue_is_refused(tmp_path):
    settings = ShortcutStudySettings(base=base_file(tmp_path), data_root=tmp_path, cues="mark", correlations=0.95)
    with pytest.raises(SettingsError, match=r"holds no planted\.yaml.*gainmtl data plant SOURCE .* --cue mark"):
        settings.cells()


def test_planted_data_is_read_as_its_record_says(tmp_path):
    read_with = {"dataset_type": "generic", "val_ratio": 0.0, "group_pattern": "^(.+?)__"}
    root = planted(tmp_path / "tiles", read_with=read_with)
    base = base_file(tmp_path, val_ratio=0.2)
    settings = ShortcutStudySettings(base=base, data_root=root, cues="mark", correlations=0.95, strategies="S1")
    run = settings.cells()[0].settings
    assert (run.val_ratio, run.group_pattern, run.data_root) == (0.0, "^(.+?)__", root)


@pytest.mark.parametrize("content", ["cue: [", "- mark", ""])
def test_a_damaged_record_of_planted_data_is_named(tmp_path, content):
    (tmp_path / "planted.yaml").write_text(content)
    settings = ShortcutStudySettings(base=base_file(tmp_path), data_root=tmp_path, cues="mark", correlations=0.95)
    with pytest.raises(SettingsError, match=r"planted\.yaml: is damaged, .*; plant the data again"):
        settings.cells()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cues": ["marks"]}, "cues must be 'mark', 'lighting', 'texture' or 'border', got the text 'marks'"),
        ({"strategies": ["S8"]}, "strategies must be"),
        ({"correlations": [1.5]}, "correlations must be less than or equal to 1, got 1.5"),
        ({"correlations": [0.95, 0.2]}, "correlations must be at least 0.5, at which the cue says nothing"),
        ({"seeds": []}, "seeds must"),
        ({"seeds": [0, 0]}, "seeds names a value twice: 0, 0"),
        ({"num_epoch": 3}, "unknown parameter 'num_epoch'; did you mean 'num_epochs'?"),
        ({"data_root": "here"}, "data_root holds one cue at one correlation, but cues are mark, lighting, border and"),
    ],
)
def test_what_cannot_be_used(values, message):
    with pytest.raises(SettingsError) as error:
        ShortcutStudySettings(**values)
    assert message in str(error.value)


def test_a_base_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.yaml: no such parameter file"):
        ShortcutStudySettings(base=tmp_path / "none.yaml").cells()


def test_notebook_names_make_settings():
    namespace = {"cues": ["mark"], "correlations": [0.95], "num_epochs": None, "Path": Path}
    assert ShortcutStudySettings.from_namespace(namespace).cues == ("mark",)


def test_overrides_are_parameters_of_the_runs():
    study = {"base", "cues", "correlations", "strategies", "seeds"}
    from gainmtl_lib.settings import Settings

    assert set(ShortcutStudySettings.model_fields) - study <= set(Settings.model_fields)
    for name in ("shortcut", "shortcut_full", "shortcut_tiles"):
        assert "experiment" in read_parameters(STUDIES / f"{name}.yaml")
