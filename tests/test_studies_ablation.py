"""What `gainmtl ablation` prints, draws and writes, of runs whose predictions are written by hand."""

import io
import math
import re

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console
from written_runs import write_planned, written_plan

from gainmtl_lib.cli import main
from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import RunError
from gainmtl_lib.studies import plans
from gainmtl_lib.studies.ablation import (
    plan_report,
    readable_rows,
    readable_steps,
    rows_figure,
    rows_of_study,
    run_and_report,
    runs_table,
    steps_figure,
    steps_of_study,
)
from gainmtl_lib.studies.plans import load_plan

NAN = math.nan
SEEDS = [0, 1, 2, 3, 4]


@pytest.fixture
def study(tmp_path):
    """S5 finds about 9 of 20 more of each class under changed conditions, and the same on the unchanged ones."""
    plan = written_plan(tmp_path, seeds=SEEDS)
    runs = [write_planned(plan, "S1", seed, right=15, right_shift=5) for seed in SEEDS]
    gains = zip(SEEDS, [9, 10, 9, 8, 9])
    runs += [write_planned(plan, "S5", seed, right=15, right_shift=5 + gain) for seed, gain in gains]
    return plan, runs


def printed(plan, **options):
    console = Console(width=160, record=True, file=io.StringIO())
    failed = run_and_report(console, plan, **options)
    return failed, console.export_text()


def test_rows_have_scores_with_intervals_and_what_judges_the_cam(study):
    rows = rows_of_study(study[1])
    test = readable_rows(rows, "test")
    assert test.columns.tolist() == ["accuracy", "AUROC", "CAM-IoU", "grid IoU", "flip", "control flip", "seeds"]
    assert test.loc["S5", ["grid IoU", "flip", "control flip"]].tolist() == ["0.800", "1.000", "0.467"]
    assert test.loc["S1", ["flip", "control flip"]].tolist() == ["–", "–"]
    assert test["seeds"].tolist() == [5, 5]
    shifted = readable_rows(rows, "test_shift")
    assert shifted.columns.tolist() == ["accuracy", "AUROC", "seeds"]
    assert re.fullmatch(r"0\.700 \(0\.\d{3} to 0\.\d{3}\)", shifted.loc["S5", "accuracy"])


def test_steps_have_a_verdict_in_each_family(study):
    plan, runs = study
    steps = steps_of_study(runs, plan.steps)
    assert list(zip(steps["split"], steps["metric"], steps["verdict"])) == [
        ("test", "accuracy", "not distinguishable"),
        ("test", "auroc", "not distinguishable"),
        ("test", "cam_iou", "not distinguishable"),
        ("test", "cf_excess", "not tested"),
        ("test_shift", "accuracy", "better"),
        ("test_shift", "auroc", "better"),
    ]
    shown = readable_steps(steps[(steps["split"] == "test_shift") & (steps["metric"] == "accuracy")]).loc["S1→S5"]
    assert shown["change"].startswith("+0.450 (+0.") and shown["verdict"] == "better" and shown["seeds"] == 5
    assert steps_of_study(runs, []).empty
    table = runs_table(runs)
    assert len(table) == 20
    assert table.loc[0, ["row", "strategy", "seed", "split", "accuracy"]].tolist() == ["S1", "S1", 0, "test", 0.75]


def test_the_report_prints_rows_steps_and_state(study):
    failed, text = printed(study[0], only_report=True)
    assert failed == 0
    for said in ("rows: test", "rows: test_shift", "steps: accuracy, test_shift", "weights: random.", "10 of 10 runs"):
        assert said in text
    assert "flip − control flip" not in text  # S1 has none: nothing to compare


def test_rows_on_other_pictures_end_in_a_message(tmp_path):
    plan = written_plan(tmp_path)
    elsewhere = written_plan(tmp_path / "other", parameters=plan.parameters | {"data_root": str(tmp_path / "else")})
    runs = [write_planned(plan, "S1", 0), write_planned(elsewhere, "S5", 0)]
    with pytest.raises(DataError, match="S1→S5, seed 0: the two runs were evaluated on different pictures"):
        plan_report(plan, runs)


def test_the_export_is_small_and_can_be_run_again(study, tmp_path):
    plan, folder = study[0], tmp_path / "export"
    assert "exported: " in printed(plan, export=folder, only_report=True)[1]
    assert sorted(path.name for path in folder.iterdir()) == [
        "plan.yaml", "rows.csv", "rows.png", "runs.csv", "steps.csv", "steps_test_accuracy.png", "steps_test_auroc.png",
        "steps_test_cam_iou.png", "steps_test_shift_accuracy.png", "steps_test_shift_auroc.png", "table.md",
    ]  # fmt: skip
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
    assert load_plan(folder / "plan.yaml") == plan
    lines = pd.read_csv(folder / "steps.csv").set_index(["split", "metric"])
    assert lines.loc[("test_shift", "accuracy"), "difference"] == 0.45
    text = (folder / "table.md").read_text()
    assert "| step | change | p, Holm | verdict | seeds |" in text and text.endswith("- 10 of 10 runs\n")
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    printed(plan, export=folder, only_report=True)
    assert first == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_finished_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"no finished run of the study \(0 of 4 runs, 4 not made yet\)"):
        printed(written_plan(tmp_path), only_report=True)


# --- Figures


def test_rows_stand_with_both_accuracies_and_the_map(study):
    left, right = rows_figure(rows_of_study(study[1])).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["S1", "S5"]
    drawn = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in left.containers}
    assert drawn["test"] == [[0.75, 0], [0.75, 1]] and drawn["test_shift"][0] == [0.25, 0]
    assert len(right.containers[0].lines[0].get_xydata()) == 2 and not plt.get_fignums()


def test_every_step_stands_with_its_numbers_and_verdict():
    lines = [
        ("S1→S2", 0.1, 0.05, 0.15, "better"),
        ("S2→S3", -0.1, -0.15, -0.05, "worse"),
        ("S3→S4", 0.01, -0.1, 0.12, "not distinguishable"),
        ("S4→" + "very long name " * 5, 0.02, NAN, NAN, "not tested"),
        ("S5→S6", NAN, NAN, NAN, "not tested"),
    ]
    steps = pd.DataFrame(lines, columns=["step", "difference", "low", "high", "verdict"])
    axis, words = steps_figure(steps, metric="accuracy, test_shift").axes
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


def run(*arguments):
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.fixture
def one_fails(tmp_path, monkeypatch):
    plan = written_plan(tmp_path)
    for cell in plan.cells():
        if cell.name != "S5, seed 1":
            write_planned(plan, cell.row, cell.seed)

    def fit(settings):
        raise RunError("the disk is full")

    monkeypatch.setattr(plans, "fit", fit)
    return str(tmp_path / "plan.yaml")


def test_a_failed_run_is_named_and_sets_the_exit_status(one_fails):
    result = run("ablation", one_fails)
    assert result.exit_code == 1 and "3 of 4 runs, 1 failed; S5, seed 1: the disk is full" in result.output
    assert "steps: accuracy, test_shift" in result.output


def test_part_of_a_plan_and_parameters_reach_the_runs(one_fails, tmp_path):
    result = run("ablation", one_fails, "--seeds", "0", "--rows", "S5")
    assert result.exit_code == 0 and "1 of 1 runs" in result.output
    assert run("ablation", one_fails, "--only_report", "--export", str(tmp_path / "e")).exit_code == 0
    assert yaml.safe_load((tmp_path / "e/plan.yaml").read_text())["experiment"] == "hand"
    result = run("ablation", one_fails, "--only-report", "-p", "num_epochs", "3")
    assert result.exit_code == 1 and "(stored and planned): num_epochs: " in result.output


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
    result = run("ablation", *arguments)
    assert result.exit_code == 1 and said in result.output
