"""What `gainmtl ablation` prints, draws and writes, of runs whose predictions are written by hand."""

import re
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from click.testing import CliRunner
from written_runs import write_planned, written_plan

from gainmtl_lib import stats
from gainmtl_lib.cli import main
from gainmtl_lib.runs import RunError, write_json
from gainmtl_lib.settings import SettingsError
from gainmtl_lib.studies import ablation, plans

SEEDS = [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """S5 finds about 9 of 20 more of each class under changed conditions, and the same on the unchanged ones."""
    folder = tmp_path_factory.mktemp("study")
    plan = written_plan(folder, seeds=SEEDS)
    runs = [write_planned(plan, "S1", seed, right_shift=5) for seed in SEEDS]
    runs += [write_planned(plan, "S5", seed, right_shift=5 + gain) for seed, gain in zip(SEEDS, [9, 10, 9, 8, 9])]
    return folder, plan, runs


@pytest.fixture(scope="module")
def report(study):
    return ablation.plan_report(*study[1:])


def run(*arguments):
    return CliRunner().invoke(main, ["ablation", *map(str, arguments)], catch_exceptions=False)


def test_rows_have_scores_with_intervals_and_what_judges_the_cam(report, study):
    test, shifted = (report.sections[f"rows: {split}"] for split in ("test", "test_shift"))
    assert test.columns.tolist() == ["accuracy", "AUROC", "CAM-IoU", "grid IoU", "flip", "control flip", "seeds"]
    assert test.loc["S5", ["grid IoU", "flip", "control flip"]].tolist() == ["0.800", "1.000", "0.467"]
    assert test.loc["S1", ["flip", "control flip"]].tolist() == ["–", "–"] and test["seeds"].tolist() == [5, 5]
    assert shifted.columns.tolist() == ["accuracy", "AUROC", "seeds"]
    assert re.fullmatch(r"0\.700 \(0\.\d{3} to 0\.\d{3}\)", shifted.loc["S5", "accuracy"])
    # Two seeds give no interval: Student's would be 25 standard errors wide.
    rows = ablation.rows_of_study([cell for cell in study[2] if cell.seed < 2]).set_index(["row", "split", "metric"])
    assert rows.loc[("S5", "test_shift", "accuracy"), ["mean", "seeds"]].tolist() == [pytest.approx(14.5 / 20), 2]
    assert rows[["low", "high"]].isna().all(axis=None)
    left, right = report.figures["rows"].axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["S1", "S5"]
    drawn = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in left.containers}
    assert drawn["test"] == [[0.75, 0], [0.75, 1]] and drawn["test_shift"][0] == [0.25, 0]
    assert len(right.containers[0].lines[0].get_xydata()) == 2 and not plt.get_fignums()


def test_steps_have_a_verdict_in_each_family(report, study):
    steps, table = report.tables["steps"], report.tables["runs"]
    found = {family: part["verdict"].tolist() for family, part in steps.groupby(["split", "metric"])}
    assert found == {("test", name): ["not distinguishable"] for name in ("accuracy", "auroc", "cam_iou")} | {
        ("test", "cf_excess"): ["not tested"], ("test_shift", "accuracy"): ["better"], ("test_shift", "auroc"): ["better"],
    }  # fmt: skip
    shown = report.sections["steps: accuracy, test_shift"].loc["S1→S5"]
    assert shown["change"].startswith("+0.450 (+0.") and shown["verdict"] == "better" and shown["seeds"] == 5
    assert not [title for title in report.sections if "flip" in title]  # S1 has none: nothing to compare
    assert len(table) == 20
    assert table.loc[0, ["row", "strategy", "seed", "split", "accuracy"]].tolist() == ["S1", "S1", 0, "test", 0.75]
    axis, words = report.figures["steps_test_shift_accuracy"].axes
    assert [text.get_text() for text in words.texts] == [shown["change"], "better"]
    assert "change of accuracy, test_shift" in axis.get_xlabel()
    without = ablation.plan_report(study[1].changed(steps=()), study[2])
    assert without.tables["steps"].empty and list(without.figures) == ["rows"]
    assert list(without.sections) == [
        f"{of}: {split}" for of in ("range over seeds", "rows") for split in ("test", "test_shift")
    ]


def test_ranges_are_of_the_seeds_and_a_part_of_the_test_pictures_is_reported_besides(study):
    ranges = ablation.readable_ranges(ablation.runs_table(study[2]), "test_shift")
    # S5's five seeds are right on 13, 14, 14, 14 and 15 of 20.
    assert ranges.loc["S5", "accuracy"] == "0.700 (0.650 to 0.750)" and ranges["seeds"].tolist() == [5, 5]
    first = study[2][0]
    name = first.predictions("test")["image"].str.rpartition("/")[2].iloc[3]
    part = replace(first, within=f"^{re.escape(name)}$")
    assert part.predictions(plans.WITHIN)["image"].tolist() == first.predictions("test")["image"].tolist()[3:4]
    assert first.predictions(plans.WITHIN).empty
    table = ablation.runs_table([part])
    assert table["split"].tolist() == ["test", "test_shift", plans.WITHIN]
    assert table["accuracy"].iloc[2] == float(part.predictions("test")["verdict"].iloc[3] in ("TP", "TN"))
    with pytest.raises(SettingsError, match=r"^within is not a regular expression: "):
        study[1].changed(within="(")


def test_ranges_tell_how_well_types_are_named_where_the_runs_name_them(tmp_path):
    plan = written_plan(tmp_path, seeds=(0, 1))
    runs = [write_planned(plan, "S1", seed) for seed in plan.seeds]
    for cell, score in zip(runs, (0.5, 0.7)):
        summary = cell.run.metrics
        summary["test"]["type_macro_f1"] = score
        write_json(cell.run.folder / "metrics.json", summary)
    table = ablation.runs_table(runs)
    assert ablation.readable_ranges(table, "test").loc["S1", "type, macro F1"] == "0.600 (0.500 to 0.700)"
    assert "type, macro F1" not in ablation.readable_ranges(table, "test_shift")


def test_the_command_prints_and_exports_what_can_be_run_again(study, tmp_path):
    (folder, plan, _), export = study, tmp_path / "export"
    result = run(folder / "plan.yaml", "--only-report", "--export", export)
    assert result.exit_code == 0, result.output
    for said in ("rows: test", "steps: accuracy, test_shift", "weights: random.", "10 of 10 runs", "exported: "):
        assert said in result.output
    figures = ("rows", "steps_test_accuracy", "steps_test_auroc", "steps_test_cam_iou", "steps_test_shift_accuracy")
    named = {f"{name}.png" for name in (*figures, "steps_test_shift_auroc")}
    tables = {"plan.yaml", "rows.csv", "runs.csv", "steps.csv", "table.md"}
    assert {path.name for path in export.iterdir()} == named | tables
    assert plans.load_plan(export / "plan.yaml") == plan
    lines = pd.read_csv(export / "steps.csv").set_index(["split", "metric"])
    assert lines.loc[("test_shift", "accuracy"), "difference"] == 0.45
    text = (export / "table.md").read_text()
    assert "| step | change | p, Holm | verdict | seeds |" in text and text.endswith("- 10 of 10 runs\n")


def test_a_failed_run_is_named_and_parts_of_a_plan_and_parameters_reach_the_runs(tmp_path, monkeypatch):
    def fit(settings):
        raise RunError("the disk is full")

    plan = written_plan(tmp_path)
    for cell in plan.cells()[:3]:
        write_planned(plan, cell.row, cell.seed)
    monkeypatch.setattr(plans, "fit", fit)
    monkeypatch.setattr(stats, "RESAMPLES", 20)  # of the step that one seed is left of
    result = run(tmp_path / "plan.yaml")
    assert result.exit_code == 1 and "3 of 4 runs, 1 failed; S5, seed 1: the disk is full" in result.output
    assert "steps: accuracy, test_shift" in result.output
    for code, said, *arguments in [
        (0, "1 of 1 runs", "--seeds", "0", "--rows", "S5"),
        (1, "(stored and planned): num_epochs: ", "--only-report", "-p", "num_epochs", "3"),
        (1, "no finished run of the study (0 of 4 runs, 4 not made yet)", "--only-report", "-p", "experiment", "other"),
        (1, "--seeds must be whole numbers with commas between, got '0,x'", "--seeds", "0,x"),
        (1, "seed 9 is not in the plan, which has 0, 1", "--seeds", "9"),
    ]:
        result = run(tmp_path / "plan.yaml", *arguments)
        assert result.exit_code == code and said in result.output
