"""Plans of studies: what their runs are asked for, what is refused, and how the runs are made."""

import logging

import pytest
import yaml
from torch.multiprocessing import ProcessRaisedException
from written_runs import write_planned, written_plan

from gainmtl_lib.runs import HeldError
from gainmtl_lib.settings import STRATEGY_WEIGHTS, SettingsError, UserError, repository_root
from gainmtl_lib.studies import plans
from gainmtl_lib.studies.cluster import Done
from gainmtl_lib.studies.plans import load_plan, run_study, variant_of
from gainmtl_lib.train import TrainingDivergedError

ROOT = repository_root()
ROWS = {"S1": {"strategy": "S1"}, "S4, no warm-up": {"strategy": "S4", "loc_warmup_ratio": 0.0}}
SMALL = {"experiment": "hand", "base": ["params/small.yaml"], "seeds": [0, 3], "rows": ROWS, "steps": [[*ROWS]]}


def write_plan(folder, **changed):
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(SMALL | changed, sort_keys=False), encoding="utf-8")
    return path


def message(path, **overrides):
    with pytest.raises(SettingsError) as error:
        load_plan(path, **overrides)
    return str(error.value)


def test_a_runs_settings_are_base_then_parameters_then_row_with_the_rows_name_as_variant(tmp_path):
    plan = load_plan(write_plan(tmp_path))
    one = plan.settings("S4, no warm-up", 3)
    assert (one.strategy, one.loc_warmup_ratio, one.seed, one.image_size) == ("S4", 0.0, 3, (96, 96))
    assert one.run_dir == ROOT / "outputs/hand/s4-no-warm-up/seed3" and one.weights == {**STRATEGY_WEIGHTS["S4"]}
    places = [(cell.row, cell.seed) for cell in plan.cells()]  # seed by seed
    assert places == [("S1", 0), ("S4, no warm-up", 0), ("S1", 3), ("S4, no warm-up", 3)]
    own = {"num_epochs": 3, "loc_warmup_ratio": 0.25, "experiment": "other", "seeds": [7]}
    plan = load_plan(write_plan(tmp_path, parameters={"num_epochs": 5, "dropout": 0.25}), **own)
    one, other = plan.settings("S1", 7), plan.settings("S4, no warm-up", 7)
    assert (one.num_epochs, one.dropout, one.loc_warmup_ratio, other.loc_warmup_ratio) == (3, 0.25, 0.25, 0.0)
    assert (plan.experiment, plan.seeds) == ("other", (7,))


def test_each_seed_has_data_of_its_own_where_asked(tmp_path):
    for own, folder, drawn in ((True, "made-3", 3), (False, "made", 0)):
        plan = load_plan(write_plan(tmp_path, data_per_seed=own), data_root=tmp_path / "made")
        for run in (plan.settings(row, 3) for row in ROWS):
            assert (run.data_root, run.synthetic_seed) == (tmp_path / folder, drawn)


def test_variant_is_the_rows_name_without_its_strategy():
    rows = ["S4", "S4, no warm-up", "s4 no warm-up", "stride 8", "S5, 5 % of the masks", "S5, share 0.05"]
    assert [variant_of(row, "S5" if row.startswith("S5") else "S4") for row in rows] == [
        "", "no-warm-up", "no-warm-up", "stride-8", "5-of-the-masks", "share-0.05"
    ]  # fmt: skip


@pytest.mark.parametrize(("changed", "said"), [
    ({"steps": [["S1", "S8"]]}, "steps: 'S8' is no row of the plan; rows: S1; S4, no warm-up"),
    ({"steps": [["S1", "S4, no warmup"]]}, "no row of the plan; did you mean 'S4, no warm-up'?; rows: S1;"),
    ({"steps": [["S1", "S1"]]}, "steps: 'S1' is compared with itself"),
    ({"steps": [["S1", "S4, no warm-up"]] * 2}, "steps: a pair is given twice"),
    ({"steps": [["S1"]]}, "steps must be pairs of row names, [before, after], got ['S1']"),
    ({"rows": {"S1": None}}, "row 'S1' must be a mapping of parameters, got None"),
    ({"rows": {"plain": {"dropout": 0.1}}}, "row 'plain' has no strategy; give one of S1, S2"),
    ({"rows": {"S4": {"strategy": "S5"}}}, "row 'S4' has strategy 'S5'; name it otherwise"),
    ({"rows": {"S5, a-b": {"strategy": "S5"}, "S5 A b": {"strategy": "S5"}}},
     "rows 'S5, a-b' and 'S5 A b' would share the folder s5-a-b; rename one"),
    ({"rows": {"S5 %": {"strategy": "S5"}}}, "row 'S5 %' needs a letter or digit beside its strategy"),
    ({"rows": {"S1": {"strategy": "S1", "learnig_rate": 1.0}}},
     "row 'S1': unknown parameter 'learnig_rate'; did you mean 'learning_rate'?"),
    ({"rows": {"S1": {"strategy": "S1", "seed": 3}}}, "row 'S1': seed comes from the plan itself; leave it out"),
    ({"parameters": {"strategy": "S1"}}, "parameters: strategy comes from the plan itself"),
    ({"data_per_seed": True, "parameters": {"synthetic_seed": 1}}, "synthetic_seed comes from the plan itself"),
    ({"data_per_seed": True, "base": []}, "row 'S1': data_per_seed needs dataset_type 'synthetic', got 'generic'"),
    ({"rows": ROWS | {"S2": {"strategy": "S2", "shortcut": "none"}}},
     "rows 'S1' and 'S2' differ in shortcut but share data_root"),
    ({"seeds": [1, 1]}, "seeds must differ, got [1, 1]"),
    ({"base": ["params/s3.yaml"], "steps": []}, "chooses a strategy, which the rows do; leave it out"),
    ({"rows": ROWS | {"S1 elsewhere": {"strategy": "S1", "data_root": "made"}}, "steps": [["S1", "S1 elsewhere"]]},
     "steps: 'S1' and 'S1 elsewhere' are judged on different pictures, of small and made; give both the same data"),
    ({"base": ["params/no.yaml"]}, "params/no.yaml: no such parameter file"),
])  # fmt: skip
def test_a_mistake_names_the_file_and_the_key(tmp_path, changed, said):
    path = write_plan(tmp_path, **{"steps": []} | changed)
    told = message(path)
    assert f"{path}: " in told and said in told


def test_files_that_are_no_plans_and_mistakes_on_the_command_line(tmp_path):
    path = write_plan(tmp_path)
    assert "row 'S1': num_epochs must be a whole number, got the text 'x'" in message(path, num_epochs="x")
    assert "unknown parameter 'num_epoch'; did you mean 'num_epochs'?" in message(path, num_epoch=3)
    told = message("ablations")
    assert "no such plan; a file, or one of ablation, annotation," in told and "did you mean 'ablation'?" in told
    path.write_text("experiment: hand\nseeds: [0]\nrows:\n  S5: {strategy: S5}\n  S5: {strategy: S6}\n")
    assert f"{path}: not a YAML file: 'S5' is given twice" in message(path)


def test_part_of_a_plan_keeps_the_steps_between_its_rows_and_a_written_plan_is_the_same(tmp_path):
    whole = load_plan("ablation", num_epochs=2)
    plan = whole.only(rows=["S1", "S2", "S3, no guide"], seeds=[2])
    assert (list(plan.rows), plan.seeds, plan.steps) == (["S1", "S2", "S3, no guide"], (2,), (("S1", "S2"),))
    with pytest.raises(SettingsError, match="'S9' is no row of the plan"):
        plan.only(rows=["S9"])
    with pytest.raises(SettingsError, match="seed 0 is not in the plan, which has 2"):
        plan.only(seeds=[0])
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(whole.plain(), sort_keys=False))
    assert load_plan(path) == whole and yaml.safe_load(path.read_text())["base"] == ["params/small.yaml"]


def test_rows_of_the_plans_depart_from_their_strategy_in_what_they_say():
    plan, departing = load_plan("ablation"), {}
    for row in plan.rows:
        lines = plan.settings(row, 0).differences(plan.settings(row[:2], 0))
        departing[row] = {line.split(":")[0] for line in lines} - {"variant"}
    assert {row: names for row, names in departing.items() if names} == {
        "S2, weights of S3": {"lambda_cam_guide", "lambda_cls"}, "S3, weights of S2": {"lambda_cam_guide", "lambda_cls"},
        "S3, no guide": {"lambda_guide"}, "S4, no warm-up": {"loc_warmup_ratio"}, "S5, mean": {"counterfactual_mode"},
        "S5, zero": {"counterfactual_mode"}, "S5, normal attention zero": {"normal_attention"},
        "S8, no edits": {"image_counterfactual"}, "S1, lite0 from scratch": {"pretrained"},
        "S1, resnet50 from scratch": {"pretrained", "backbone_arch"},
    }  # fmt: skip
    assert [row for row, names in departing.items() if not names] == list(STRATEGY_WEIGHTS)
    assert {after for _, after in plan.steps} == set(plan.rows) - {"S1"}
    assert [cell.settings.map_stride for cell in load_plan("map_stride", seeds=[0]).cells()] == [32, 16, 8, 4]
    shares = [cell.settings.mask_share for cell in load_plan("annotation", seeds=[0]).cells()]
    assert shares == [1, 1, 0, 0.05, 0.25, 1, 1, 1]


BOTH = ["S1, seed 0", "S5, seed 0", "S1, seed 1", "S5, seed 1"]


def names(study):
    return [cell.name for cell in study.runs]


def by_hand(monkeypatch, plan, broken=None):
    """Written runs in place of training and evaluation; what is returned takes the names of those that were trained."""
    cells, trained = {cell.settings.run_dir: cell for cell in plan.cells()}, []

    def fit(settings):
        cell = cells[settings.run_dir]
        if cell.name in (broken or {}):
            raise broken[cell.name]
        trained.append(cell.name)
        return write_planned(plan, cell.row, cell.seed).run

    monkeypatch.setattr(plans, "fit", fit)
    monkeypatch.setattr(plans, "evaluate", lambda run: None)
    return trained


def test_what_is_missing_is_trained_once_and_the_time_left_is_told(tmp_path, monkeypatch, caplog):
    plan = written_plan(tmp_path)
    trained = by_hand(monkeypatch, plan)
    write_planned(plan, "S1", 0, seconds=300.0)
    with caplog.at_level(logging.INFO, logger="gainmtl_lib"):
        assert names(run_study(plan.cells())) == BOTH and trained == BOTH[1:]
    # Three are missing and the one that is known took five minutes; written neighbours take no time.
    assert caplog.messages[:3] == [
        "run 2 of 4: S5, seed 0, about 15 min left",
        "run 3 of 4: S1, seed 1, about 5 min left",
        "run 4 of 4: S5, seed 1, about 2 min left",
    ]
    assert run_study(plan.cells()).state == "4 of 4 runs" and trained == BOTH[1:]


SENT = """

-- Process 1 terminated with the following error:
Traceback (most recent call last):
  File "train.py", line 1, in fit
RuntimeError: CUDA error: unspecified launch failure
Compile with `TORCH_USE_CUDA_DSA`
"""


@pytest.mark.parametrize(("error", "told"), [
    (TrainingDivergedError("the loss became nan in cls"), "the loss became nan in cls"),
    (RuntimeError("DataLoader worker (pid 7) is killed\nby a signal"), "RuntimeError: DataLoader worker (pid 7) is killed"),
    (MemoryError(), "MemoryError"),
    (TimeoutError(110, "timed out"), "TimeoutError: [Errno 110] timed out"),
    (ProcessRaisedException(SENT, 1, 7), "RuntimeError: CUDA error: unspecified launch failure"),
])  # fmt: skip
def test_a_failure_is_named_and_the_others_go_on(tmp_path, monkeypatch, caplog, error, told):
    plan = written_plan(tmp_path)
    by_hand(monkeypatch, plan, {"S5, seed 0": error})
    study = run_study(plan.cells())
    assert names(study) == [BOTH[0], *BOTH[2:]]
    assert study.state == f"3 of 4 runs, 1 failed; S5, seed 0: {told}"
    assert f"run 2 of 4 failed: S5, seed 0: {told}" in caplog.messages
    assert ("Traceback" in caplog.text) != isinstance(error, UserError)


def test_a_run_that_another_process_makes_is_left_to_it(tmp_path, monkeypatch):
    plan = written_plan(tmp_path)
    by_hand(monkeypatch, plan, {"S5, seed 0": HeldError("another process (7 on far) is writing to this run")})
    assert run_study(plan.cells()).failed == {"S5, seed 0": "another process (7 on far) is writing to this run"}


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_mistakes_and_interruptions_are_passed_on_and_the_next_call_goes_on(tmp_path, monkeypatch, error):
    plan = written_plan(tmp_path)
    trained = by_hand(monkeypatch, plan, {"S1, seed 1": error()})
    with pytest.raises(error):
        run_study(plan.cells())
    assert trained == BOTH[:2]
    again = by_hand(monkeypatch, plan)
    assert names(run_study(plan.cells())) == BOTH and again == BOTH[2:]


def test_on_a_cluster_what_is_missing_is_made_and_told_as_it_ends(tmp_path, monkeypatch, caplog):
    plan = written_plan(tmp_path)
    write_planned(plan, "S1", 0)
    asked = {}

    def run_jobs(function, next_job, **options):
        asked.update(options)
        jobs = list(iter(next_job, None))
        assert jobs == plan.cells()[1:] and function.func is plans.make_run and function.keywords == {"reasons": False}
        for job in (jobs[2], jobs[0]):
            write_planned(plan, job.row, job.seed)
            yield Done(job, None, "far, tcp://10.0.0.3:4000", 61.4)
        yield Done(jobs[1], "the loss became nan", "", 0.0)

    monkeypatch.setattr(plans, "run_jobs", run_jobs)
    with caplog.at_level(logging.INFO, logger="gainmtl_lib"):
        study = run_study(plan.cells(), scheduler="tcp://10.0.0.1:8786")
    assert names(study) == [BOTH[0], BOTH[1], BOTH[3]] and study.failed == {BOTH[2]: "the loss became nan"}
    assert caplog.messages == [
        "run 2 of 4: S5, seed 1, 61 s on far, tcp://10.0.0.3:4000; 2 left, about 1 min",
        "run 3 of 4: S5, seed 0, 61 s on far, tcp://10.0.0.3:4000; 1 left, about 1 min",
        "run 4 of 4 failed: S1, seed 1: the loss became nan",
    ]
    assert asked == {
        "workers": None, "scheduler": "tcp://10.0.0.1:8786", "again": (HeldError,), "writes": {tmp_path / "outputs"},
        "reads": {tmp_path / "made-0", tmp_path / "made-1"},
    }  # fmt: skip


def test_a_report_reads_finished_runs_and_trains_none(tmp_path):
    plan = written_plan(tmp_path)
    write_planned(plan, "S5", 1)
    (write_planned(plan, "S1", 0).run.folder / "maps" / "cam.npy").unlink()
    study = run_study(plan.cells(), only_report=True)
    assert names(study) == BOTH[3:] and study.missing == BOTH[:3] and study.state == "1 of 4 runs, 3 not made yet"
    table = study.runs[0].predictions("test_shift")
    assert table["image"].iloc[0] == "made-1/images/test_shift/000.png" and study.runs[0].predictions("val").empty
    assert set(table["split"]) == {"test_shift"} and table["group"].isna().all()
    other = written_plan(tmp_path, rows={"S5": {"strategy": "S5", "dropout": 0.25}}, steps=[], seeds=[1])
    for only_report in (True, False):
        study = run_study(other.cells(), only_report=only_report)
        assert not study.runs and "other settings (stored and planned): dropout: 0.5 and 0.25" in study.state
