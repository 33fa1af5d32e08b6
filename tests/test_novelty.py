"""Novel pictures: which are flagged, with whose help, and that nothing stored is touched or mixed."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anomaly_runs import TEACHER, tiny_anomaly_settings, untrained, write_anomaly_run
from audited import row, write_audited
from click.testing import CliRunner
from drawn_data import write_generic
from filelock import FileLock, Timeout
from tiny import tiny_settings

from gainmtl_lib.cli import main
from gainmtl_lib.dataset import build_samples
from gainmtl_lib.efficientad import evaluate as module
from gainmtl_lib.efficientad.evaluate import (
    Kind,
    count_kinds,
    evaluate_efficientad,
    find_novel,
    flag,
    is_stale,
    stored_novelty,
)
from gainmtl_lib.efficientad.train import load_efficientad
from gainmtl_lib.readers import data_digest
from gainmtl_lib.runs import RunError, load_run, save_weights


def table_by_hand():
    return pd.DataFrame(
        [
            # image, split, label, defect_type, predicted
            ("a", "val", 0, "normal", 0),
            ("b", "test", 0, "normal", 0),
            ("c", "test", 0, "normal", 1),
            ("d", "test", 0, "normal", 0),
            ("e", "test", 1, "stain", 1),
            ("f", "test", 1, "stain", 0),
            ("g", "test", 1, "dent", 0),
            ("h", "test_shift", 1, None, 0),
        ],
        columns=["image", "split", "label", "defect_type", "predicted"],
    )


SCORES = [0.9, 0.1, 0.8, 0.7, 0.9, 0.5, 0.6, 0.2]


def test_novel_is_what_passes_although_it_is_unlike_the_good_parts():
    flagged = flag(table_by_hand(), SCORES, 0.5)
    assert flagged.columns.tolist() == ["image", "split", "anomaly_score", "anomalous", "novel"]
    assert "".join(flagged.loc[flagged["anomalous"], "image"]) == "acdeg"  # f lies at the threshold, not above it
    assert "".join(flagged.loc[flagged["novel"], "image"]) == "adg"


def test_every_kind_of_a_test_split_is_counted():
    table = table_by_hand()
    counted = count_kinds(table, flag(table, SCORES, 0.5), {"stain"})
    assert [Kind(**kind) for kind in counted["test"]] == [
        Kind("normal", 3, called_defective=1, anomalous=2, novel=1),
        Kind("dent", 1, called_defective=0, anomalous=1, novel=1, unseen=True),
        Kind("stain", 2, called_defective=1, anomalous=1, novel=0),
    ]
    assert [Kind(**kind) for kind in counted["test_shift"]] == [Kind("unknown", 1, 0, 0, 0, unseen=True)]
    assert set(counted) == {"test", "test_shift"}


def write_run(folder, probability=0.5, **settings):
    """An evaluated run, every second picture called defective, on the data that its settings describe."""
    made = tiny_settings(folder, "S5", **settings)
    samples = build_samples(made)
    rows = [
        row(entry["split"], entry["label"], probability + 0.1 * (number % 2), image=entry["image"],
            mask=entry["mask"], defect_type=entry["defect_type"])
        for number, entry in enumerate(samples[samples["split"] != "train"].to_dict("records"))
    ]  # fmt: skip
    same = {name: getattr(made, name) for name in ("data_root", "dataset_type", "num_samples", *settings)}
    manifest = {"strategy": "S5", "data_digest": data_digest(samples)}
    return load_run(write_audited(folder, rows, threshold=0.55, manifest=manifest, **same))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An evaluated run of each system on the same data."""
    folder = tmp_path_factory.mktemp("novelty")
    run, other = write_run(folder), write_anomaly_run(tiny_anomaly_settings(folder))
    evaluate_efficientad(other)
    return run.folder, other.folder


@pytest.fixture
def run(made, tmp_path):
    return load_run(shutil.copytree(made[0], tmp_path / "run"))


@pytest.fixture
def other(made, tmp_path):
    return load_efficientad(shutil.copytree(made[1], tmp_path / "other"))


def test_scores_are_those_of_the_model_and_the_threshold_that_of_its_evaluation(run, other):
    (other.folder / "metrics.json").unlink()  # evaluated on the way
    before = {path: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    found = find_novel(run, other.folder)
    table, metrics = evaluate_efficientad(other)
    scores = table.set_index("image")["anomaly_score"]
    root = run.settings.data_root
    mine = found.table.assign(image=[str(path).removeprefix(f"{root}/") for path in found.table["image"]])
    joined = mine[mine["image"].isin(scores.index)]
    assert len(joined) == len(table) > 12  # EfficientAD leaves the defects of validation out
    np.testing.assert_allclose(joined["anomaly_score"], scores.loc[joined["image"]], rtol=1e-4)
    assert found.threshold == metrics["novelty_threshold"]
    assert (found.table["anomalous"] == (found.table["anomaly_score"] > found.threshold)).all()
    predicted = run.predictions["predicted"] == 0
    assert (found.table["novel"] == found.table["anomalous"] & predicted).all()
    assert found.teacher == TEACHER["text"] and found.source == str(other.folder)
    assert {path: path.read_bytes() for path in before} == before
    assert not any(kind.unseen for kinds in found.kinds.values() for kind in kinds)  # drawn defects are all in training


def test_what_is_stored_is_read_again_for_the_same_run_only(run, other, monkeypatch):
    found = find_novel(run, other)
    with monkeypatch.context() as patch:
        patch.setattr(module, "scored", None)
        again = find_novel(load_run(run.folder), other)
    pd.testing.assert_frame_equal(again.table, found.table)
    assert again.summary == found.summary == stored_novelty(run).summary
    torch.manual_seed(4)
    model = untrained(other.settings)
    torch.nn.init.normal_(model.student.convolutions[-1].weight)
    save_weights(model, other.folder / "model.safetensors")
    other = type(other)(other.folder)  # trained anew in the same place
    evaluate_efficientad(other, reuse=False)
    assert find_novel(run, other).table["anomaly_score"].tolist() != found.table["anomaly_score"].tolist()


def test_flags_belong_to_one_evaluation(run, other):
    find_novel(run, other)
    assert not is_stale(run)
    path = run.folder / "predictions.csv"
    path.write_text(path.read_text().replace("0.5,", "0.51,"))
    assert stored_novelty(run) is None and is_stale(run)
    find_novel(run, other)
    assert stored_novelty(run) is not None and not is_stale(run)
    (run.folder / "novelty.json").unlink()
    assert stored_novelty(run) is None and not is_stale(run)


def test_flags_of_an_efficientad_run_that_was_trained_anew_are_out_of_date(run, other):
    find_novel(run, other)
    weights = other.folder / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + b"x")
    assert stored_novelty(run) is None and is_stale(run)
    code, output = command("evaluate", run.folder)
    assert code == 0 and "novel pictures: not shown, what is stored is of other predictions or of an" in output
    weights.unlink()  # or is not there any more, and has not changed
    assert stored_novelty(run) is not None and not is_stale(run)


def test_predictions_are_read_while_no_other_process_can_change_them(run, other, monkeypatch):
    """Else flags of those before could be stored as flags of those after."""
    own = module.stored_tables

    def held(run):
        with pytest.raises(Timeout):
            FileLock(run.folder / ".lock", is_singleton=False).acquire(timeout=0)
        return own(run)

    monkeypatch.setattr(module, "stored_tables", held)
    assert find_novel(run, other).kinds["test"]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "novelty.json",
            lambda text: "{}",
            "lacks what belongs there; remove novelty.json, or flag anew: gainmtl eval",
        ),
        ("novelty.json", lambda text: text[:40], "cannot be read"),
        (
            "novelty.csv",
            lambda text: "image,split\n",
            r"cannot be read|expected the columns image, split, anomaly_score",
        ),
        ("novelty.csv", lambda text: text.replace("True", "perhaps").replace("False", "no"), "cannot be read"),
        ("novelty.csv", lambda text: "\n".join(text.splitlines()[:-1]), "not of the pictures in predictions.csv"),
    ],
)
def test_damaged_flags_are_told_and_made_anew(run, other, name, damage, message):
    found = find_novel(run, other)
    path = run.folder / name
    path.write_text(damage(path.read_text()))
    with pytest.raises(RunError, match=rf"{name}.*: ({message})"):
        stored_novelty(run)
    assert find_novel(run, other).summary == found.summary and stored_novelty(run) is not None


def test_an_interruption_leaves_no_flags(run, other, monkeypatch):
    find_novel(run, other)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_json", interrupt)
        find_novel(run, other, reuse=False)
    assert stored_novelty(run) is None and run.is_evaluated


def test_a_run_that_another_process_writes_to_is_left_alone(run, other):
    with FileLock(run.folder / ".lock"), pytest.raises(RunError, match="another process is writing to this run"):
        find_novel(run, other)


def open_split(folder, **values):
    """Data without a split of its own, where each seed draws another."""
    write_generic(folder / "data", splits=("train",), per_class=12)
    same = {"dataset_type": "generic", "val_ratio": 0.25, "test_ratio": 0.25} | values
    return write_run(folder, split_seed=1, **same), tiny_anomaly_settings(folder, split_seed=1, **same)


def test_what_learnt_from_the_test_pictures_is_refused(tmp_path):
    run, settings = open_split(tmp_path)
    leaking = write_anomaly_run(settings.changed(split_seed=2))
    with pytest.raises(
        RunError, match=r"learnt from \d of the 6 test pictures, such as .*train_n\d+\.png; what it says"
    ):
        find_novel(run, leaking)
    assert not (run.folder / "novelty.json").exists() and not leaking.is_evaluated  # told before the work is done
    assert find_novel(run, write_anomaly_run(settings.changed(seed=3))).kinds["test"][0].name == "normal"


def test_the_same_pictures_by_another_path_are_noticed(tmp_path):
    run, settings = open_split(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    leaking = write_anomaly_run(settings.changed(split_seed=2, data_root=tmp_path / "link"))
    with pytest.raises(RunError, match="of the 6 test pictures"):
        find_novel(run, leaking)


def test_a_run_whose_pictures_are_not_known_is_refused(run, other):
    path = other.folder / "manifest.json"
    path.write_text(path.read_text().replace(other.manifest["data_digest"], "provider my.Provider"))
    other = load_efficientad(other.folder)
    with pytest.raises(RunError, match="which pictures it learnt from is not known, because its data changed since or"):
        find_novel(run, other)


def test_what_cannot_be_flagged_is_told(run, other):
    with pytest.raises(RunError, match="a run of strategy S5, not of EfficientAD"):
        find_novel(run, run.folder)
    path = run.folder / "manifest.json"
    path.write_text(path.read_text().replace(run.manifest["data_digest"], "another"))
    with pytest.raises(RunError, match=r"the data changed since .* was trained on it"):
        find_novel(load_run(run.folder), other)
    (run.folder / "metrics.json").unlink()
    with pytest.raises(RunError, match="not evaluated; first: gainmtl evaluate"):
        find_novel(run, other)


def command(*arguments):
    result = CliRunner().invoke(main, [str(part) for part in arguments], catch_exceptions=False)
    return result.exit_code, " ".join(result.output.split())


def test_the_command_flags_prints_and_exports(run, other, tmp_path):
    results = tmp_path / "results.json"
    code, output = command("evaluate", run.folder, "--efficientad-run", other.folder, "--export-results", results)
    assert code == 0, output
    assert "test: novel pictures, anomaly score above" in output and TEACHER["text"] in output
    assert "novel (anomalous, called normal)" in output and str(other.folder) in output
    assert f"score and flag of every picture: {run.folder / 'novelty.csv'}" in output
    assert json.loads(results.read_text())["novelty"]["teacher"] == TEACHER["text"]
    assert "novelty" not in run.metrics
    code, output = command("evaluate", run.folder)  # what is stored is told again
    assert code == 0 and "novel pictures" in output


def test_the_settings_may_name_the_run(run, other):
    path = run.folder / "settings.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"efficientad_run": str(other.folder)}))
    code, output = command("evaluate", run.folder)
    assert code == 0 and "novel pictures" in output and stored_novelty(run) is not None
    shutil.rmtree(other.folder)  # what is stored needs it no more
    code, output = command("evaluate", run.folder)
    assert code == 0 and "novel pictures" in output


@pytest.mark.parametrize("option", [("--data-root", "data"), ("--external-mask-dir", "masks")])
def test_novel_pictures_are_of_the_run_as_it_was_trained(run, other, tmp_path, option):
    given = (option[0], tmp_path / option[1])
    code, output = command("evaluate", run.folder, "--efficientad-run", other.folder, *given)
    assert code == 1 and (
        "flags novel pictures of a run as it was trained" in output or "is for mask_source 'external'" in output
    )


def test_runs_of_efficientad_are_evaluated_by_the_same_command(other, tmp_path):
    results = tmp_path / "results.json"
    code, output = command("evaluate", other.folder, "--export-results", results)
    assert code == 0 and "novelty threshold" in output and TEACHER["text"] in output
    assert json.loads(results.read_text()) == other.metrics
    code, output = command("evaluate", other.folder, "--mask-source", "none", "--error-analysis")
    assert code == 1 and "which knows no --mask-source, --error-analysis; leave that out" in output
