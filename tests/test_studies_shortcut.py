"""The shortcut study: its parameters, the runs of its grid, what is kept of accuracy, and its report."""

import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from drawn_data import write_mask, write_picture
from tiny import tiny_settings

from gainmtl_lib import stats
from gainmtl_lib.cli import main
from gainmtl_lib.findings import DataError
from gainmtl_lib.readers import read_samples
from gainmtl_lib.settings import Settings, SettingsError, repository_root
from gainmtl_lib.studies import plans, shortcut
from gainmtl_lib.studies.plans import Cell, run_study
from gainmtl_lib.studies.reasons import NAMES
from gainmtl_lib.studies.shortcut import ShortcutStudySettings, followed, readable_runs, reversed_heatmap, study_table
from gainmtl_lib.synthetic.data import plant_cue

STUDIES = repository_root() / "params" / "studies"


def on_base(folder, own=None, **values):
    """A study of one cue at one correlation on a base file with `own` beside."""
    path = folder / "base.yaml"
    path.write_text(
        yaml.safe_dump(
            {"backbone_arch": "b0", "pretrained": False, "image_size": 64, "evidence_share": 0.25} | (own or {})
        )
    )
    return ShortcutStudySettings(**{"base": path, "cues": "mark", "correlations": 0.95} | values)


def test_grids_of_the_parameter_files():
    assert ShortcutStudySettings.from_yaml(STUDIES / "shortcut.yaml") == ShortcutStudySettings()
    cells = ShortcutStudySettings.from_yaml(STUDIES / "shortcut_cues.yaml").cells()
    grid = product((0, 1, 2), ("mark", "lighting", "texture", "border"), (0.95,), ("S1", "S3", "S5", "S7", "S8"))
    assert [(cell.seed, cell.cue, cell.correlation, cell.row) for cell in cells] == list(grid)
    study = {"base", "cues", "correlations", "strategies", "seeds"}
    assert set(ShortcutStudySettings.model_fields) - study <= set(Settings.model_fields)


def test_photographs_are_shown_with_the_cue_as_in_training_and_reversed(tmp_path, monkeypatch):
    root = tmp_path / "plain"
    for split, label in product(("train", "val", "test"), ("normal", "defective")):
        for number in range(4):
            write_picture(root / f"images/{split}/{label}/{number}.png", size=(64, 64), seed=number)
            if label == "defective":
                write_mask(root / f"masks/{split}/defective/{number}.png", size=(64, 64), box=np.s_[24:40, 24:40])
    samples = read_samples(root, dataset_type="generic")
    plant_cue(samples, tmp_path / "planted", cue="mark", correlation=0.95, seed=0, origin={}, skip_unreadable=False)
    study = on_base(tmp_path, strategies=["S1", "S8"], data_root=tmp_path / "planted", outputs_dir=tmp_path)
    cells, shown = study.cells(), []
    for cell in cells:
        cell.settings.run_dir.mkdir(parents=True)
        scales = {"map_scales": {} if cell.row == "S1" else {"cam": {"floor": 0.0, "ceiling": 2.0}}}
        (cell.settings.run_dir / "metrics.json").write_text(json.dumps(scales))

    def look(run, data, rows):
        shown.append([data.dataset.paths[row] for row in rows])
        logits = torch.tensor([[0.0, 0.0]] * 4)
        return data.dataset.__getitems__(rows), SimpleNamespace(cam=torch.randn(4, 1, 2, 2), logits=logits)

    monkeypatch.setattr(shortcut, "look", look)
    figure = shortcut.turned_pictures(cells)
    assert shown[0] == shown[1]
    splits = [Path(path).relative_to(tmp_path / "planted/images").parts[:2] for path in shown[0]]
    assert splits == [(split, label) for label in ("defective", "normal") for split in ("test", "test_shift")]
    for as_trained, reversed_ in (shown[0][:2], shown[0][2:]):
        assert Path(reversed_).name == f"shift-{Path(as_trained).name}"
    marked = [(tmp_path / "planted/cues").joinpath(*Path(path).parts[-3:]).is_file() for path in shown[0]]
    assert marked == [True, False, False, True]
    assert [axis.get_title() for axis in figure.axes[1:3]] == ["S1\n(per image)", "S8\n(absolute)"]
    assert figure.axes[1].get_xlabel() == "p(defect) 0.50"
    for path in (tmp_path / "planted/images/test_shift").rglob("*.png"):  # as in synthetic data, whose splits differ
        path.rename(path.with_name(f"other{path.name}"))
    assert shortcut.turned_pictures(cells) is None


def test_planted_data_is_read_as_its_record_says_and_refused_where_it_does_not_fit(tmp_path):
    record, planted = tmp_path / "planted.yaml", {"cue": "mark", "correlation": 0.95}
    with pytest.raises(SettingsError, match=r"holds no planted\.yaml.*gainmtl data plant SOURCE .* --cue mark"):
        on_base(tmp_path, data_root=tmp_path).cells()
    record.write_text("{cue: mark, correlation: 0.8}")
    with pytest.raises(
        SettingsError, match=r"the cue is mark at correlation 0\.8, but cues is mark and correlations 0\.95"
    ):
        on_base(tmp_path, data_root=tmp_path).cells()
    record.write_text("- mark")
    with pytest.raises(SettingsError, match=r"planted\.yaml: expected 'name: value' lines"):
        on_base(tmp_path, data_root=tmp_path).cells()
    planted["read_with"] = {"dataset_type": "generic", "val_ratio": 0.0, "group_pattern": "^(.+?)__"}
    record.write_text(yaml.safe_dump(planted))
    run = on_base(tmp_path, {"val_ratio": 0.2}, data_root=tmp_path).cells()[0].settings
    assert (run.val_ratio, run.group_pattern, run.data_root) == (0.0, "^(.+?)__", tmp_path)


def test_a_run_draws_the_data_of_its_cell_and_seed(tmp_path):
    place = {"outputs_dir": tmp_path, "experiment": "e", "seeds": [3], "num_epochs": 2}  # wins over the base
    study = on_base(tmp_path, {"num_epochs": 9, "batch_size": 4}, cues="border", correlations=0.8, **place)
    cell = study.cells()[1]
    run = cell.settings
    assert (cell.name, run.strategy, run.seed) == ("border 0.8, S7, seed 3", "S7", 3)
    assert run.run_dir == tmp_path / "e" / "border-0.8" / "s7" / "seed3"
    assert run.data_root == tmp_path / "data" / "e" / "border-0.8-3" and run.dataset_type == "synthetic"
    assert (run.shortcut, run.shortcut_correlation, run.synthetic_seed) == ("border", 0.8, 3)
    assert (run.num_epochs, run.batch_size, run.image_counterfactual) == (2, 4, 0.5)
    wide = study.changed(image_counterfactual=1.0, seeds=[0, 1], cues=["mark", "border"], correlations=[0.5, 0.95])
    cells = wide.cells()
    names = [cell.name for cell in cells]  # strategies of a cell follow each other
    assert names[:4] == [f"mark 0.5, {s}, seed 0" for s in ("S1", "S7", "S8")] + ["mark 0.95, S1, seed 0"]
    assert [name[-1] for name in names] == ["0"] * 12 + ["1"] * 12
    assert [cell.settings.image_counterfactual for cell in cells[:3]] == [0, 1, 1]
    wide = wide.changed(strategies=["S5", "S7", "S8", "S1"], map_stride=4)
    assert [cell.settings.image_counterfactual for cell in wide.cells()[:4]] == [0, 1, 1, 0]  # of S7 and S8 alone
    assert wide.steps == [*(("S1", other) for other in ("S5", "S7", "S8")), ("S5", "S7"), ("S7", "S8")]
    assert wide.changed(strategies=["S8", "S7"]).steps == [("S7", "S8")]


def test_what_cannot_be_used():
    for values, message in [
        ({"cues": ["marks"]}, "cues must be 'mark', 'lighting', 'texture' or 'border', got the text 'marks'"),
        ({"correlations": [0.95, 0.2]}, "correlations must be at least 0.5, at which the cue says nothing"),
        ({"seeds": []}, "seeds must"),
        ({"seeds": [0, 0]}, "seeds names a value twice: 0, 0"),
        ({"data_root": "here"}, "data_root holds one cue at one correlation, but cues are mark, border and"),
    ]:
        with pytest.raises(SettingsError) as error:
            ShortcutStudySettings(**values)
        assert message in str(error.value)


def test_cells_with_a_cue_that_every_strategy_has_are_rows_and_seeds_of_a_plan():
    grid = product(("S1", "S7"), (0, 1), (("mark", 0.5), ("mark", 0.95), ("border", 0.95)))
    cells = [Cell(row, seed, None, cue, correlation) for row, seed, (cue, correlation) in grid]
    found = followed(cells[:-1])  # the last cell lacks S7
    assert [(cell.row, cell.seed) for cell in found] == [(row, pair) for pair in range(3) for row in ("S1", "S7")]
    assert {cell.correlation for cell in found} == {0.95} and followed([]) == []


def test_the_heatmap_has_means_over_seeds_and_a_dash_for_what_is_missing():
    places = product(("mark",), (0, 1), ("S1", "S7"), (0.5, 0.95))
    table = pd.DataFrame(places, columns=["cue", "seed", "strategy", "correlation"])
    table["accuracy_shift"] = [0.5, 0.1, 0.9, np.nan, 0.7, 0.3, 0.7, np.nan]
    axis = reversed_heatmap(table).axes[0]
    assert [text.get_text() for text in axis.texts] == ["0.60", "0.20", "0.80", "–"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["mark\n0.5", "mark\n0.95"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shortcut")
    values = tiny_settings(folder, num_epochs=1, use_tensorboard=False).plain()
    left_out = ("strategy", "lambda_", "image_counterfactual", "experiment", "outputs_dir", "data_root")
    own = {name: value for name, value in values.items() if not name.startswith(left_out)}
    return on_base(folder, own, outputs_dir=folder / "outputs", correlations=0.8, strategies=["S1", "S3"])


@pytest.fixture(scope="module")
def study(settings):
    return run_study(settings.cells(), reasons=True)


def command(settings, *arguments):
    pairs = {"base": settings.base[0], "outputs_dir": settings.outputs_dir, "cues": "mark", "correlations": 0.8}
    words = [word for name, value in pairs.items() for word in ("-p", name, str(value))]
    return CliRunner().invoke(main, ["shortcut", *words, "-p", "strategies", "[S1, S3]", *arguments])


def test_one_row_per_run_with_every_indicator_and_a_second_call_trains_nothing(study, settings, monkeypatch):
    found, place = study_table(study.runs), ["cue", "correlation", "seed", "strategy"]
    assert found[place].to_numpy().tolist() == [["mark", 0.8, 0, "S1"], ["mark", 0.8, 0, "S3"]]
    assert list(found) == [*place, *NAMES] and found["attention_iou"].isna().tolist() == [True, False]
    assert np.allclose(found["drop"], found["accuracy"] - found["accuracy_shift"])
    assert readable_runs(found).index.tolist() == [cell.name for cell in study.runs]
    assert "flip − control flip" not in readable_runs(found)  # neither strategy has a counterfactual path
    assert study.runs[1].run.folder == settings.folder / "mark-0.8" / "s3" / "seed0"
    monkeypatch.setattr(plans, "fit", None)
    assert run_study(settings.cells(), reasons=True).runs == study.runs
    monkeypatch.setattr(plans, "stored_indicators", lambda run: None)  # not asked for its reasons: missing
    missing = run_study(settings.cells(), reasons=True, only_report=True).missing
    assert missing == [cell.name for cell in study.runs]


def test_command_reports_and_exports_and_names_what_failed(study, settings, tmp_path, monkeypatch):
    def fails(asked):
        raise DataError("no picture")

    monkeypatch.setattr(stats, "RESAMPLES", 100)
    monkeypatch.setattr(plans, "fit", fails)
    result = command(settings, "--only-report", "--export", str(tmp_path))
    assert result.exit_code == 0, result.output
    for text in ("mark 0.8,", "what would have warned", "steps: accuracy, test_shift", "2 of 2 runs"):
        assert text in result.output
    files = {path.name for path in tmp_path.iterdir()}
    assert {"study.csv", "table.md", "warnings.csv", "plan.yaml", "rows.csv", "rows.png", "reversed.png"} <= files
    found, steps = study_table(study.runs), pd.read_csv(tmp_path / "steps.csv").set_index(["split", "metric"])
    for split, name in (("test_shift", "accuracy_shift"), ("test", "accuracy")):
        step = steps.loc[(split, "accuracy")]
        assert step["step"] == "S1→S3" and step["difference"] == pytest.approx(found[name].diff()[1], abs=1e-4)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "study.csv"), found, atol=1e-4, check_dtype=False)
    text = (tmp_path / "table.md").read_text()
    assert "| S1 | 0." in text and "the deciding map does not cover the defect" in text
    assert ShortcutStudySettings.from_yaml(tmp_path / "plan.yaml").changed(base=settings.base) == settings
    result = command(settings, "-p", "experiment", "other", "-p", "strategies", "S1")
    assert result.exit_code == 1 and "0 of 1 runs, 1 failed; mark 0.8, S1, seed 0: no picture" in result.output
