"""Comparison of runs whose numbers are written by hand."""

import json
import math

import pytest

from gainmtl_lib.runs import RunError, by_strategy, collect_runs, compare, load_run, readable, row_name, step_deltas
from gainmtl_lib.settings import Settings


def write_run(
    folder, strategy, seed, *, variant="", accuracy, shifted, cam_iou=0.5, digest="d", status="complete", evaluated=True
):
    settings = Settings(
        strategy=strategy, variant=variant, seed=seed, outputs_dir=folder, experiment="hand", pretrained=False
    )
    run = settings.run_dir
    run.mkdir(parents=True)
    (run / "settings.yaml").write_text(json.dumps(settings.plain()))
    (run / "manifest.json").write_text(json.dumps({"status": status, "data_digest": digest, "pretrained": "random"}))
    if evaluated:
        test = {"accuracy": accuracy, "recall": accuracy, "auroc": accuracy, "cam_iou": cam_iou, "grid_iou": 0.7}
        metrics = {"threshold": 0.5, "test": test, "test_shift": test | {"accuracy": shifted}}
        (run / "metrics.json").write_text(json.dumps(metrics))
        (run / "predictions.csv").write_text("image\n")
        (run / "maps").mkdir()
        (run / "maps" / "cam.npy").write_bytes(b"")
    return run


def test_one_row_per_run_and_split(tmp_path):
    write_run(tmp_path, "S2", 1, accuracy=0.9, shifted=0.4)
    write_run(tmp_path, "S1", 1, accuracy=0.8, shifted=0.2)
    table = compare(collect_runs(tmp_path / "hand"))
    assert table[["strategy", "split", "accuracy"]].values.tolist() == [
        ["S1", "test", 0.8], ["S1", "test_shift", 0.2], ["S2", "test", 0.9], ["S2", "test_shift", 0.4]
    ]  # fmt: skip
    assert table["loc_iou"].isna().all()


def test_one_seed_has_no_interval_and_several_have_a_t_interval(tmp_path):
    for seed, accuracy in enumerate((0.8, 0.9, 1.0)):
        write_run(tmp_path, "S1", seed, accuracy=accuracy, shifted=0.2)
    write_run(tmp_path, "S2", 0, accuracy=0.7, shifted=0.1)
    table = by_strategy(compare(collect_runs(tmp_path / "hand")))
    row = table.loc[("test", "S1")]
    assert row[("accuracy", "mean")] == pytest.approx(0.9)
    # t(0.975, 2 degrees) = 4.302653; standard error 0.1 / sqrt(3)
    assert row[("accuracy", "half_width")] == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert row[("seeds", "count")] == 3
    assert math.isnan(table.loc[("test", "S2"), ("accuracy", "half_width")])
    text = readable(table, "test")
    assert text.loc["S1", "accuracy"] == "0.900 ± 0.248"
    assert text.loc["S2", "accuracy"] == "0.700"
    assert text.loc["S1", "Loc-IoU"] == "–"


def test_a_run_that_was_given_the_ground_truth_is_marked(tmp_path):
    write_run(tmp_path, "S5", 0, accuracy=0.8, shifted=0.2)
    run = write_run(tmp_path, "S6", 0, accuracy=1.0, shifted=1.0)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"label_leaks": True}))
    table = by_strategy(compare(collect_runs(tmp_path / "hand")))
    assert readable(table, "test").index.tolist() == ["S5", "S6 (oracle: leaks the label)"]


def test_masks_of_a_random_teacher_are_marked(tmp_path):
    for seed, teacher in ((0, "random (untrained teacher: not the paper's method)"), (1, "weights file t.pth")):
        run = write_run(tmp_path, "S6", seed, accuracy=0.8, shifted=0.2)
        path = run / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_source": "efficientad", "teacher": teacher}))
    assert compare(collect_runs(tmp_path / "hand"))["strategy"].drop_duplicates().tolist() == [
        "S6 (masks of a random teacher)", "S6"
    ]  # fmt: skip


def test_deltas_pair_the_seeds_that_both_have(tmp_path):
    write_run(tmp_path, "S1", 0, accuracy=0.8, shifted=0.2)
    write_run(tmp_path, "S1", 1, accuracy=0.6, shifted=0.2)
    write_run(tmp_path, "S2", 0, accuracy=0.9, shifted=0.5)
    write_run(tmp_path, "S4", 0, accuracy=0.7, shifted=0.5)
    deltas = step_deltas(compare(collect_runs(tmp_path / "hand")))
    assert deltas.loc[("test", "S1→S2"), "accuracy"] == pytest.approx(0.1)
    assert deltas.loc[("test_shift", "S1→S2"), "accuracy"] == pytest.approx(0.3)
    assert deltas.loc[("test", "S2→S4"), "accuracy"] == pytest.approx(-0.2)


def test_variants_are_rows_of_their_own_after_their_strategy(tmp_path):
    for strategy, variant in (("S6", ""), ("S5", "zero"), ("S4", "nowarmup"), ("S5", ""), ("S5", "mean"), ("S7", "")):
        for seed in (1, 0):
            run = write_run(tmp_path, strategy, seed, variant=variant, accuracy=0.5 + 0.1 * len(variant), shifted=0.2)
    assert run.parent.name == "s7" and (tmp_path / "hand/s5-zero/seed0").is_dir()
    runs = collect_runs(tmp_path / "hand")
    rows = ["S4-nowarmup", "S5", "S5-mean", "S5-zero", "S6", "S7"]
    assert [(row_name(run.settings), run.settings.seed) for run in runs] == [
        (row, seed) for row in rows for seed in (0, 1)
    ]
    comparison = compare(runs)
    assert readable(by_strategy(comparison), "test").index.tolist() == rows
    deltas = step_deltas(comparison)
    steps = ["S5→S5-mean", "S5→S5-zero", "S5→S6", "S5→S7"]
    assert deltas.loc["test"].index.tolist() == steps, "S7 is built on S5; there is no S4 to compare its variant with"
    assert deltas.loc[("test", "S5→S5-mean"), "accuracy"] == pytest.approx(0.4)


def test_s7_follows_what_there_is_where_s5_has_no_run(tmp_path):
    for strategy in ("S3", "S7"):
        write_run(tmp_path, strategy, 0, accuracy=0.8, shifted=0.2)
    assert step_deltas(compare(collect_runs(tmp_path / "hand"))).loc["test"].index.tolist() == ["S3→S7"]


def test_runs_on_different_data_are_not_compared(tmp_path):
    write_run(tmp_path, "S1", 0, accuracy=0.8, shifted=0.2)
    write_run(tmp_path, "S2", 0, accuracy=0.8, shifted=0.2, digest="other")
    with pytest.raises(RunError, match="the runs of seed 0 were trained on 2 different datasets"):
        compare(collect_runs(tmp_path / "hand"))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(RunError, match=r"no evaluated run \(0 started, 0 finished\)"):
        collect_runs(tmp_path)
    unfinished = write_run(tmp_path, "S1", 0, accuracy=0.8, shifted=0.2, status="running")
    write_run(tmp_path, "S2", 0, accuracy=0.8, shifted=0.2, evaluated=False)
    with pytest.raises(RunError, match=r"no evaluated run \(2 started, 1 finished\)"):
        collect_runs(tmp_path / "hand")
    with pytest.raises(RunError, match="the run is not finished"):
        load_run(unfinished)
    with pytest.raises(RunError, match=r"no run here \(no manifest\.json\); runs below it: .*seed0"):
        load_run(tmp_path / "hand")
    run = load_run(tmp_path / "hand/s2/seed0")
    with pytest.raises(RunError, match="the run is trained but not evaluated"):
        _ = run.metrics


def test_runs_of_the_other_system_are_left_out(tmp_path):
    write_run(tmp_path, "S1", 1, accuracy=0.8, shifted=0.2)
    other = tmp_path / "hand" / "efficientad" / "seed1"
    other.mkdir(parents=True)
    (other / "manifest.json").write_text('{"strategy": "efficientad", "status": "complete"}')
    assert [run.settings.strategy for run in collect_runs(tmp_path / "hand")] == ["S1"]
