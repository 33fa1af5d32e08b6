"""What `gainmtl ablation` prints and writes, of runs whose predictions are written by hand."""

import csv
import io
import re

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console
from written_runs import write_planned, written_plan

from gainmtl_lib.cli import main
from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import RunError
from gainmtl_lib.studies import plans as planned
from gainmtl_lib.studies.ablation import (
    StudyReport,
    export_study,
    readable_rows,
    readable_steps,
    rows_of_study,
    run_and_report,
    runs_table,
    signed_interval,
    steps_of_study,
)
from gainmtl_lib.studies.plans import load_plan

NAN = float("nan")
SEEDS = [0, 1, 2, 3, 4]
GAINS = [9, 10, 9, 8, 9]


@pytest.fixture
def study(tmp_path):
    """S5 finds 9 of 20 more of each class under changed conditions, and the same on the unchanged ones."""
    plan = written_plan(tmp_path, seeds=SEEDS)
    runs = [write_planned(plan, "S1", seed, right=15, right_shift=5) for seed in SEEDS]
    runs += [write_planned(plan, "S5", seed, right=15, right_shift=5 + gain) for seed, gain in zip(SEEDS, GAINS)]
    return plan, runs


def printed(plan, **options):
    console = Console(width=160, record=True, file=io.StringIO())
    failed = run_and_report(console, plan, **options)
    return failed, console.export_text()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.0214, -0.004, 0.046), "+0.021 [−0.004, +0.046]"),
        ((-0.5, NAN, NAN), "−0.500"),
        ((NAN, NAN, NAN), "–"),
    ],
)
def test_a_change_with_its_interval(values, text):
    assert signed_interval(*values) == text


def test_rows_have_scores_with_intervals_and_what_judges_the_cam(study):
    rows = rows_of_study(study[1])
    test = readable_rows(rows, "test")
    assert test.columns.tolist() == ["accuracy", "AUROC", "CAM-IoU", "grid IoU", "flip", "control flip", "seeds"]
    assert re.fullmatch(r"0\.750 \[0\.\d{3}, 0\.\d{3}\]", test.loc["S1", "accuracy"])
    assert test.loc["S5", ["grid IoU", "flip", "control flip"]].tolist() == ["0.800", "1.000", "0.467"]
    assert test.loc["S1", ["flip", "control flip"]].tolist() == ["–", "–"]
    assert test["seeds"].tolist() == [5, 5]
    shifted = readable_rows(rows, "test_shift")
    assert shifted.columns.tolist() == ["accuracy", "AUROC", "seeds"]
    assert shifted.loc["S5", "accuracy"].startswith("0.700 [")


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
    shown = readable_steps(steps, "test_shift", "accuracy").loc["S1→S5"]
    assert shown["change"].startswith("+0.450 [+0.") and shown["verdict"] == "better" and shown["seeds"] == 5
    assert steps_of_study(runs, []).empty


def test_one_line_per_run_and_split(study):
    table = runs_table(study[1])
    assert len(table) == 20
    assert table.loc[0, ["row", "strategy", "seed", "split", "accuracy"]].tolist() == ["S1", "S1", 0, "test", 0.75]


def test_the_report_prints_rows_steps_and_state(study):
    failed, text = printed(study[0], only_report=True)
    assert failed == 0
    for said in (
        "rows: test (same distribution)", "rows: test_shift (changed conditions)", "steps: accuracy, test_shift",
        "Backbone weights: random.", "10 of 10 runs are finished",
    ):  # fmt: skip
        assert said in text
    assert "flip − control flip" not in text  # S1 has none: nothing to compare


def test_notes_of_steps_are_said_once(tmp_path):
    plan = written_plan(tmp_path, seeds=[0])
    for row in plan.rows:
        write_planned(plan, row, 0)
    text = printed(plan, only_report=True)[1]
    assert text.count("one seed") == 1 and "not tested" in text


def test_a_note_about_one_score_names_it(tmp_path):
    plan = written_plan(tmp_path)
    runs = [write_planned(plan, row, seed, cam_iou=NAN if seed else 0.5) for row in plan.rows for seed in plan.seeds]
    remarks = StudyReport(plan, runs).remarks()
    assert "one seed; left out: seed 1 (without an answer): S1→S5 (CAM-IoU, test)" in remarks
    assert len(remarks) == 2  # and the backbone's weights


def test_rows_on_other_pictures_end_in_a_message(tmp_path):
    rows = {"S1": {"strategy": "S1"}, "S5": {"strategy": "S5"}}
    plan = written_plan(tmp_path, rows=rows)
    elsewhere = written_plan(tmp_path / "other", parameters=plan.parameters | {"data_root": str(tmp_path / "else")})
    runs = [write_planned(plan, "S1", 0), write_planned(elsewhere, "S5", 0)]
    with pytest.raises(DataError, match="S1→S5, seed 0: the two runs were evaluated on different pictures"):
        StudyReport(plan, runs).sections()


def test_the_export_is_small_and_can_be_run_again(study, tmp_path):
    plan, runs = study
    folder = tmp_path / "export"
    export_study(StudyReport(plan, runs, ["10 of 10 runs are finished"]), folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "plan.yaml", "rows.csv", "runs.csv", "steps.csv", "steps_test_accuracy.png", "steps_test_auroc.png",
        "steps_test_cam_iou.png", "steps_test_shift_accuracy.png", "steps_test_shift_auroc.png", "table.md",
    ]  # fmt: skip
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
    assert load_plan(folder / "plan.yaml") == plan
    with (folder / "steps.csv").open() as file:
        lines = {(line["split"], line["metric"]): line for line in csv.DictReader(file)}
    assert lines["test_shift", "accuracy"]["difference"] == "0.4500"
    text = (folder / "table.md").read_text()
    assert "| step | change | p, Holm | verdict | seeds |" in text and text.endswith("runs are finished\n")
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    export_study(StudyReport(plan, runs, ["10 of 10 runs are finished"]), folder)
    assert first == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_map_study_recommends_and_an_annotation_study_draws(tmp_path):
    rows = {f"stride {stride}": {"strategy": "S5", "map_stride": stride} for stride in (32, 8)}
    plan = written_plan(tmp_path / "map", rows=rows, steps=[], report="map_stride")
    runs = [write_planned(plan, row, seed, cam_iou=0.3 + 0.2 * ("8" in row)) for row in rows for seed in (0, 1)]
    export_study(report := StudyReport(plan, runs), tmp_path / "map/export")
    assert {"map_stride.png", "map_stride.csv"} <= {path.name for path in (tmp_path / "map/export").iterdir()}
    assert "map stride" in report.sections() and "map_stride: " in " ".join(report.remarks())
    rows = {"S5": {"strategy": "S5"}, "S5, boxes": {"strategy": "S5", "mask_quality": "box"}}
    plan = written_plan(tmp_path / "masks", rows=rows, steps=[], report="annotation")
    runs = [write_planned(plan, row, seed) for row in rows for seed in (0, 1)]
    export_study(report := StudyReport(plan, runs), tmp_path / "masks/export")
    assert {"annotation.png", "annotation.csv"} <= {path.name for path in (tmp_path / "masks/export").iterdir()}
    assert report.sections()["what annotation is worth"]["kind"].tolist() == ["all masks", "boxes"]


def test_nothing_finished_is_an_error(tmp_path):
    with pytest.raises(RunError, match="0 of 4 runs are finished\n  there is nothing to report"):
        printed(written_plan(tmp_path), only_report=True)


def run(*arguments):
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.fixture
def one_fails(tmp_path, monkeypatch):
    plan = written_plan(tmp_path)
    for place in plan.runs():
        if place != ("S5", 1):
            write_planned(plan, *place)

    def fit(settings):
        if planned.is_done(settings):
            return planned.Run(settings.run_dir)
        raise RunError("the disk is full")

    monkeypatch.setattr(planned, "fit", fit)
    monkeypatch.setattr(planned, "evaluate", lambda run: None)
    return tmp_path / "plan.yaml"


def test_a_failed_run_is_named_and_sets_the_exit_status(one_fails):
    result = run("ablation", str(one_fails))
    assert result.exit_code == 1
    assert "3 of 4 runs are finished, 1 failed" in result.output
    assert "failed: S5, seed 1: the disk is full" in result.output
    assert "steps: accuracy, test_shift" in result.output


def test_part_of_a_plan_by_rows_and_seeds(one_fails):
    result = run("ablation", str(one_fails), "--seeds", "0", "--rows", "S5")
    assert result.exit_code == 0
    assert "1 of 1 runs are finished" in result.output
    assert run("ablation", str(one_fails), "--only-report").exit_code == 0


def test_parameters_and_export_reach_the_runs(one_fails, tmp_path):
    result = run("ablation", str(one_fails), "--only-report", "-p", "num_epochs", "3")
    assert result.exit_code == 1 and "num_epochs: " in result.output and "(stored and planned)" in result.output
    assert run("ablation", str(one_fails), "--only_report", "--export", str(tmp_path / "e")).exit_code == 0
    assert yaml.safe_load((tmp_path / "e/plan.yaml").read_text())["experiment"] == "hand"


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
