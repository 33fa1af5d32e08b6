"""What `gainmtl ablation` prints, draws and writes, of runs whose predictions are written by hand."""

import math
import re

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from click.testing import CliRunner
from written_runs import write_planned, written_plan

from gainmtl_lib import stats
from gainmtl_lib.cli import main
from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import RunError
from gainmtl_lib.studies import ablation, plans

NAN = math.nan
SEEDS = [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """S5 finds about 9 of 20 more of each class under changed conditions, and the same on the unchanged ones."""
    folder = tmp_path_factory.mktemp("study")
    plan = written_plan(folder, seeds=SEEDS)
    runs = [write_planned(plan, "S1", seed, right=15, right_shift=5) for seed in SEEDS]
    gains = zip(SEEDS, [9, 10, 9, 8, 9])
    runs += [write_planned(plan, "S5", seed, right=15, right_shift=5 + gain) for seed, gain in gains]
    return folder, plan, runs


@pytest.fixture(scope="module")
def report(study):
    return ablation.plan_report(*study[1:])


def run(*arguments):
    return CliRunner().invoke(main, ["ablation", *map(str, arguments)], catch_exceptions=False)


def test_rows_have_scores_with_intervals_and_what_judges_the_cam(report):
    test, shifted = (report.sections[f"rows: {split}"] for split in ("test", "test_shift"))
    assert test.columns.tolist() == ["accuracy", "AUROC", "CAM-IoU", "grid IoU", "flip", "control flip", "seeds"]
    assert test.loc["S5", ["grid IoU", "flip", "control flip"]].tolist() == ["0.800", "1.000", "0.467"]
    assert test.loc["S1", ["flip", "control flip"]].tolist() == ["–", "–"] and test["seeds"].tolist() == [5, 5]
    assert shifted.columns.tolist() == ["accuracy", "AUROC", "seeds"]
    assert re.fullmatch(r"0\.700 \(0\.\d{3} to 0\.\d{3}\)", shifted.loc["S5", "accuracy"])


def test_steps_have_a_verdict_in_each_family(report):
    steps, table = report.tables["steps"], report.tables["runs"]
    assert list(zip(steps["split"], steps["metric"], steps["verdict"])) == [
        ("test", "accuracy", "not distinguishable"),
        ("test", "auroc", "not distinguishable"),
        ("test", "cam_iou", "not distinguishable"),
        ("test", "cf_excess", "not tested"),
        ("test_shift", "accuracy", "better"),
        ("test_shift", "auroc", "better"),
    ]
    shown = report.sections["steps: accuracy, test_shift"].loc["S1→S5"]
    assert shown["change"].startswith("+0.450 (+0.") and shown["verdict"] == "better" and shown["seeds"] == 5
    assert not [title for title in report.sections if "flip" in title]  # S1 has none: nothing to compare
    assert len(table) == 20
    assert table.loc[0, ["row", "strategy", "seed", "split", "accuracy"]].tolist() == ["S1", "S1", 0, "test", 0.75]


def test_without_steps_there_are_rows_alone(study):
    report = ablation.plan_report(study[1].changed(steps=()), study[2])
    assert report.tables["steps"].empty and list(report.sections) == ["rows: test", "rows: test_shift"]
    assert list(report.figures) == ["rows"]


def test_rows_on_other_pictures_end_in_a_message(tmp_path):
    plan = written_plan(tmp_path)
    elsewhere = written_plan(tmp_path / "other", parameters=plan.parameters | {"data_root": str(tmp_path / "else")})
    runs = [write_planned(plan, "S1", 0), write_planned(elsewhere, "S5", 0)]
    with pytest.raises(DataError, match="S1→S5, seed 0: the two runs were evaluated on different pictures"):
        ablation.steps_of_study(runs, plan.steps)


def test_the_command_prints_and_exports_what_can_be_run_again(study, tmp_path):
    (folder, plan, _), export = study, tmp_path / "export"
    result = run(folder / "plan.yaml", "--only-report", "--export", export)
    assert result.exit_code == 0, result.output
    for said in ("rows: test", "steps: accuracy, test_shift", "weights: random.", "10 of 10 runs", "exported: "):
        assert said in result.output
    assert sorted(path.name for path in export.iterdir()) == [
        "plan.yaml", "rows.csv", "rows.png", "runs.csv", "steps.csv", "steps_test_accuracy.png", "steps_test_auroc.png",
        "steps_test_cam_iou.png", "steps_test_shift_accuracy.png", "steps_test_shift_auroc.png", "table.md",
    ]  # fmt: skip
    assert sum(path.stat().st_size for path in export.iterdir()) < 300_000
    assert plans.load_plan(export / "plan.yaml") == plan
    lines = pd.read_csv(export / "steps.csv").set_index(["split", "metric"])
    assert lines.loc[("test_shift", "accuracy"), "difference"] == 0.45
    text = (export / "table.md").read_text()
    assert "| step | change | p, Holm | verdict | seeds |" in text and text.endswith("- 10 of 10 runs\n")


# --- Figures


def test_rows_stand_with_both_accuracies_and_the_map(report):
    left, right = ablation.rows_figure(report.tables["rows"]).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["S1", "S5"]
    drawn = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in left.containers}
    assert drawn["test"] == [[0.75, 0], [0.75, 1]] and drawn["test_shift"][0] == [0.25, 0]
    assert len(right.containers[0].lines[0].get_xydata()) == 2 and not plt.get_fignums()
    assert "mean over runs, 95 % interval" in left.get_xlabel()  # seeds of a plan, cells of the shortcut study


def test_every_step_stands_with_its_numbers_and_verdict():
    lines = [
        ("S1→S2", 0.1, 0.05, 0.15, "better"),
        ("S2→S3", -0.1, -0.15, -0.05, "worse"),
        ("S3→S4", 0.01, -0.1, 0.12, "not distinguishable"),
        ("S4→" + "very long name " * 5, 0.02, NAN, NAN, "not tested"),
        ("S5→S6", NAN, NAN, NAN, "not tested"),
    ]
    steps = pd.DataFrame(lines, columns=["step", "difference", "low", "high", "verdict"])
    axis, words = ablation.steps_figure(steps, metric="accuracy, test_shift").axes
    assert [text.get_text().replace("−", "-") for text in words.texts] == [
        "+0.100 (+0.050 to +0.150)", "better",
        "-0.100 (-0.150 to -0.050)", "worse",
        "+0.010 (-0.100 to +0.120)", "not distinguishable",
        "+0.020", "not tested",
        "–", "not tested",
    ]  # fmt: skip
    assert "change of accuracy, test_shift" in axis.get_xlabel() and axis.get_ylim()[0] > axis.get_ylim()[1]
    assert [point.get_marker() for point in axis.lines[1:10:2]] == [">", "<", "o", "x", "x"]
    assert all(len(label.get_text()) <= 46 for label in axis.get_yticklabels())
    assert not plt.get_fignums()


# --- The command


@pytest.fixture
def one_fails(tmp_path, monkeypatch):
    plan = written_plan(tmp_path)
    for cell in plan.cells():
        if cell.name != "S5, seed 1":
            write_planned(plan, cell.row, cell.seed)

    def fit(settings):
        raise RunError("the disk is full")

    monkeypatch.setattr(plans, "fit", fit)
    monkeypatch.setattr(stats, "RESAMPLES", 20)  # of the step that one seed is left of
    return tmp_path / "plan.yaml"


def test_a_failed_run_is_named_and_parts_of_a_plan_and_parameters_reach_the_runs(one_fails):
    result = run(one_fails)
    assert result.exit_code == 1 and "3 of 4 runs, 1 failed; S5, seed 1: the disk is full" in result.output
    assert "steps: accuracy, test_shift" in result.output
    result = run(one_fails, "--seeds", "0", "--rows", "S5")
    assert result.exit_code == 0 and "1 of 1 runs" in result.output
    result = run(one_fails, "--only-report", "-p", "num_epochs", "3")
    assert result.exit_code == 1 and "(stored and planned): num_epochs: " in result.output
    result = run(one_fails, "--only-report", "-p", "experiment", "other")
    assert result.exit_code == 1 and "no finished run of the study (0 of 4 runs, 4 not made yet)" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no-plan",), "no-plan: no such plan; a file, or one of ablation,"),
        (("ablation", "--seeds", "0,x"), "--seeds must be whole numbers with commas between, got '0,x'"),
        (("ablation", "--seeds", "9"), "seed 9 is not in the plan, which has 0, 1, 2, 3, 4"),
        (("ablation", "--rows", "S9"), "'S9' is no row of the plan"),
        (("ablation", "-p", "num_epoch", "3"), "unknown parameter 'num_epoch'; did you mean 'num_epochs'?"),
    ],
)
def test_mistakes_on_the_command_line(arguments, said):
    result = run(*arguments)
    assert result.exit_code == 1 and said in result.output
