"""The runs of a plan: trained once, reused, resumed, and failures that stop nothing else."""

import logging
import shutil

import pytest
from tiny import tiny_settings
from written_runs import write_planned, written_plan

from gainmtl_lib.runs import Run, RunError
from gainmtl_lib.studies import plans as planned
from gainmtl_lib.studies.plans import FailedRun, finished_runs, is_done, run_plan, split_tables
from gainmtl_lib.train import TrainingDivergedError

BOTH = [("S1", 0), ("S5", 0), ("S1", 1), ("S5", 1)]


@pytest.fixture
def by_hand(monkeypatch):
    """Training and evaluation replaced by written runs; what is returned takes the places that were trained."""

    def replace(plan, broken=None):
        places = {plan.settings(*place).run_dir: place for place in plan.runs()}
        trained = []

        def fit(settings):
            place = places[settings.run_dir]
            if is_done(settings):
                return Run(settings.run_dir)
            if place in (broken or {}):
                raise broken[place]
            trained.append(place)
            return write_planned(plan, *place).run

        monkeypatch.setattr(planned, "fit", fit)
        monkeypatch.setattr(planned, "evaluate", lambda run: None)
        return trained

    return replace


def test_every_row_is_trained_with_every_seed_and_only_once(tmp_path, by_hand):
    plan = written_plan(tmp_path)
    trained = by_hand(plan)
    runs = run_plan(plan)
    assert trained == BOTH
    assert [(run.row, run.seed, run.run.settings.variant) for run in runs] == [(*place, "") for place in BOTH]
    assert [(run.row, run.seed) for run in run_plan(plan)] == BOTH
    assert trained == BOTH


def test_what_is_missing_is_trained_and_the_time_left_is_told(tmp_path, by_hand, caplog):
    plan = written_plan(tmp_path)
    trained = by_hand(plan)
    write_planned(plan, "S1", 0, seconds=300.0)
    with caplog.at_level(logging.INFO, logger="gainmtl_lib"):
        run_plan(plan)
    assert trained == BOTH[1:]
    # Three are missing and the one that is known took five minutes; written neighbours take no time.
    assert caplog.messages[0] == "run 2 of 4: S5, seed 0, about 15 min left"
    assert caplog.messages[1] == "run 3 of 4: S1, seed 1, about 5 min left"
    assert caplog.messages[2] == "run 4 of 4: S5, seed 1, less than a minute left"  # as S5 with seed 0


def test_the_first_run_of_all_has_no_time_left(tmp_path, by_hand, caplog):
    plan = written_plan(tmp_path)
    by_hand(plan)
    with caplog.at_level(logging.INFO, logger="gainmtl_lib"):
        run_plan(plan)
    assert caplog.messages[:2] == ["run 1 of 4: S1, seed 0", "run 2 of 4: S5, seed 0, less than a minute left"]


def test_a_failure_is_named_and_the_others_go_on(tmp_path, by_hand, caplog):
    plan = written_plan(tmp_path)
    by_hand(plan, {("S5", 0): TrainingDivergedError("the loss became nan in cls")})
    failures = []
    runs = run_plan(plan, failures=failures)
    assert [(run.row, run.seed) for run in runs] == [place for place in BOTH if place != ("S5", 0)]
    assert failures == [FailedRun("S5", 0, "the loss became nan in cls")]
    assert str(failures[0]) == "S5, seed 0: the loss became nan in cls"
    with pytest.raises(TrainingDivergedError):
        run_plan(plan)


def test_a_mistake_in_the_library_is_no_failure_of_a_run(tmp_path, by_hand):
    plan = written_plan(tmp_path)
    by_hand(plan, {("S1", 0): ZeroDivisionError("oops")})
    with pytest.raises(ZeroDivisionError):
        run_plan(plan, failures=[])


def test_an_interruption_is_passed_on_and_the_next_call_goes_on(tmp_path, by_hand):
    plan = written_plan(tmp_path)
    trained = by_hand(plan, {("S1", 1): KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, failures=[])
    assert trained == BOTH[:2]
    assert by_hand(plan) == [] and len(run_plan(plan)) == 4


def test_finished_runs_are_read_and_others_left_out(tmp_path):
    plan = written_plan(tmp_path)
    write_planned(plan, "S5", 1)
    shutil.rmtree(write_planned(plan, "S1", 0).run.folder / "maps")
    assert [(run.row, run.seed) for run in finished_runs(plan)] == [("S5", 1)]


def test_runs_of_other_settings_are_not_reported(tmp_path):
    write_planned(written_plan(tmp_path), "S5", 1)
    other = written_plan(tmp_path, rows={"S5": {"strategy": "S5", "dropout": 0.25}}, steps=[])
    with pytest.raises(
        RunError, match=r"other settings than the plan's \(stored and planned\):\n  dropout: 0.5 and 0.25"
    ):
        finished_runs(other)


def test_pictures_are_named_after_their_dataset(tmp_path):
    plan = written_plan(tmp_path)
    runs = [write_planned(plan, "S1", seed) for seed in (0, 1)]
    tables = split_tables(runs, "test_shift")
    assert list(tables) == ["S1"] and list(tables["S1"]) == [0, 1]
    assert tables["S1"][1]["image"].iloc[0] == "made-1/images/test_shift/000.png"
    assert set(tables["S1"][0]["split"]) == {"test_shift"}
    assert tables["S1"][0]["group"].isna().all()
    assert split_tables(runs, "val") == {}


def test_a_tiny_plan_trains_evaluates_and_is_reused(tmp_path):
    small = tiny_settings(tmp_path, "S1", num_epochs=1).plain()
    own = ("strategy", "seed", "variant", "experiment", "synthetic_seed", "image_counterfactual")
    parameters = {name: value for name, value in small.items() if name not in own and not name.startswith("lambda")}
    plan = written_plan(
        tmp_path, base=[], seeds=[3], parameters=parameters, rows={"S2, light": {"strategy": "S2", "lambda_cls": 0.5}},
        steps=[],
    )  # fmt: skip
    (run,) = run_plan(plan)
    assert run.run.folder == tmp_path / "outputs/hand/s2-light/seed3"
    assert run.run.settings.data_root == tmp_path / "data-3" and run.run.settings.synthetic_seed == 3
    weights = (run.run.folder / "model.safetensors").stat().st_mtime_ns
    assert len(split_tables(run_plan(plan), "test")["S2, light"][3]) == 6
    assert (run.run.folder / "model.safetensors").stat().st_mtime_ns == weights
