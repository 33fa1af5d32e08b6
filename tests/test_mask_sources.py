"""S6 by mask source: another picture's mask, and the table of all sources."""

import json
import shutil

import pandas as pd
import pytest
import torch
import yaml
from anomaly_runs import TEACHER, tiny_anomaly_settings, write_anomaly_run
from click.testing import CliRunner
from drawn_data import write_generic, write_mask
from tiny import tiny_data, tiny_settings

from gainmtl_lib.cli import main
from gainmtl_lib.evaluation import SOURCES, MaskSource, OtherMasks, evaluate, known_sources, mask_source_table
from gainmtl_lib.model import MASK_SOURCES
from gainmtl_lib.readers import DataError, read_samples
from gainmtl_lib.runs import Run, RunError
from gainmtl_lib.train import fit


@pytest.fixture
def samples(tmp_path):
    """Defect number n of a split has a mask of its n + 1 left columns, of eight at the network's size."""
    root = write_generic(tmp_path / "data", splits=("train", "test"))
    for split in ("train", "test"):
        for number in range(3):
            box = (slice(0, 12), slice(0, 2 * (number + 1) + (8 if split == "train" else 0)))
            write_mask(root / "masks" / split / "defective" / f"{split}_d{number}.png", box=box)
    return read_samples(root, dataset_type="generic")


def columns_given(samples, rows, seed=0):
    """How many columns the mask has that each row is given."""
    data = tiny_data(samples, image_size=(8, 8))
    return data, (OtherMasks(seed).masks(data, data.dataset.__getitems__(rows)).mean((1, 2, 3)) * 8).round().tolist()


def test_every_picture_is_given_another_ones_mask_of_its_split(samples):
    data = tiny_data(samples, image_size=(8, 8))
    rows = data.rows("test")
    seen = set()
    for seed in range(30):
        _, given = columns_given(samples, rows, seed)
        assert set(given) <= {1, 2, 3}  # masks of the training split have five and more
        for row, columns in zip(rows, given, strict=True):
            number = int(data.dataset.paths[row][-5]) if data.dataset.labels[row] else None
            assert number is None or columns != number + 1
            seen.add((row, columns))
    assert len(seen) == 3 * 3 + 3 * 2  # each normal picture gets all three, each defect the two others


def test_the_draw_is_seeded_and_knows_nothing_of_the_batch(samples):
    rows = [7, 9, 11, 6]
    _, given = columns_given(samples, rows)
    assert columns_given(samples, rows)[1] == given
    assert columns_given(samples, rows[::-1])[1] == given[::-1]
    assert [columns_given(samples, [row])[1][0] for row in rows] == given
    assert any(columns_given(samples, rows, seed)[1] != given for seed in range(1, 9))


def test_another_picture_of_the_same_part_is_no_other(samples):
    part = samples.assign(group=[group if "d2" in group else "one part" for group in samples["group"]])
    one = part[part["split"] == "test"].reset_index(drop=True)
    rows = [row for row in range(len(one)) if "d2" not in one.loc[row, "image"]]
    assert columns_given(one, rows)[1] == [3.0] * 5


def test_a_split_without_another_mask_is_named(samples):
    alone = samples[~samples["image"].str.contains("test_d[01]")].reset_index(drop=True)
    row = int(alone.index[alone["image"].str.contains("test_d2")][0])
    with pytest.raises(
        DataError, match=r"split 'test' has no annotated defect of another part than .*test_d2.png; ann"
    ):
        columns_given(alone, [row])
    unannotated = samples.assign(mask=None)
    with pytest.raises(DataError, match="mask_source 'other': split 'test' has no annotated defect"):
        columns_given(unannotated, [int(samples.index[samples["split"] == "test"][0])])


def test_other_needs_no_place_and_leaks_nothing(samples):
    source = MaskSource("other")
    assert source.summary == {"mask_source": "other", "label_leaks": False} and source.place is None
    data = tiny_data(samples, image_size=(8, 8))
    batch = data.dataset.__getitems__([6, 9])
    masks = source.masks(data, batch)
    assert masks.shape == (2, 1, 8, 8) and masks.dtype == torch.float32 and set(masks.unique().tolist()) == {0.0, 1.0}
    told = source.masks(data, batch._replace(labels=1 - batch.labels, masks=1 - batch.masks))
    assert torch.equal(told, masks)


def test_the_table_knows_every_source():
    assert set(SOURCES) == set(MASK_SOURCES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tiny_settings(tmp_path_factory.mktemp("sources"), num_epochs=2))


@pytest.fixture(scope="module")
def anomaly_run(run, tmp_path_factory):
    data = {name: getattr(run.settings, name) for name in ("data_root", "num_samples", "image_size")}
    return write_anomaly_run(tiny_anomaly_settings(tmp_path_factory.mktemp("anomalies"), **data))


def test_one_row_per_source_and_test_split(run, anomaly_run):
    names = ["localization", "efficientad", "none", "other", "oracle"]
    table = mask_source_table(run, names, efficientad_run=anomaly_run.folder)
    assert table[["source", "split"]].to_numpy().tolist() == [
        [name, split] for name in names for split in ("test", "test_shift")
    ]
    assert table.loc[table["label_leaks"], "source"].unique().tolist() == ["oracle"]
    assert set(table.loc[table["source"] == "efficientad", "teacher"]) == {TEACHER["text"]}
    assert table.loc[table["source"] != "efficientad", "teacher"].isna().all()
    for name in ("none", "other", "oracle"):
        _, summary = evaluate(run, mask_source=name)
        for row in table[table["source"] == name].to_dict("records"):
            assert row["threshold"] == summary["threshold"]
            for metric in ("accuracy", "recall", "auroc", "cam_iou"):
                assert row[metric] == summary[row["split"]][metric]


def test_another_mask_and_no_mask_are_not_the_own_annotation(run):
    tables = {
        name: evaluate(run, mask_source=name)[0]["probability"].to_numpy() for name in ("other", "oracle", "none")
    }
    assert all((tables["other"] != tables[name]).any() for name in ("oracle", "none"))


def test_the_runs_own_source_is_stored_and_the_others_are_not(run):
    evaluate(run, reuse=False)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    table = mask_source_table(run, ["localization", "other", "oracle"])
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    own = table[(table["source"] == "localization") & (table["split"] == "test")].iloc[0]
    assert own["cam_iou"] == run.metrics["test"]["cam_iou"]
    (run.folder / "metrics.json").unlink()
    mask_source_table(run, ["other"])
    assert not run.is_evaluated
    mask_source_table(run, ["localization"])
    assert run.is_evaluated and run.metrics["mask_source"] == "localization"


def test_each_source_is_evaluated_once(run, monkeypatch):
    asked = []
    own = evaluate
    monkeypatch.setattr(
        "gainmtl_lib.evaluation.evaluate",
        lambda *a, **k: asked.append(k.get("mask_source")) or own(*a, **k),
    )
    mask_source_table(run, ["none", "localization", "other"])
    assert asked == ["none", None, "other"]


def test_what_cannot_be_compared_is_named_before_anything_is_evaluated(run, tmp_path, monkeypatch):
    monkeypatch.setattr("gainmtl_lib.evaluation.evaluate", None)
    with pytest.raises(RunError, match=r"mask_source must be one of localization, efficientad, .*, got 'guess'"):
        mask_source_table(run, ["none", "guess"])
    with pytest.raises(RunError, match="mask_source 'efficientad' needs efficientad_run"):
        mask_source_table(run, ["none", "efficientad"])
    other = settings_run(tmp_path)
    with pytest.raises(RunError, match="mask_source is for strategy S6; this model is S3"):
        mask_source_table(other, ["none"])
    with pytest.raises(RunError, match="mask_source is for strategy S6; this model is S3"):
        known_sources(other)


def settings_run(folder):
    """A run of which only the settings are asked."""
    made = Run(folder)
    made.__dict__["settings"] = tiny_settings(folder, "S3")
    return made


def test_sources_without_a_place_are_left_out(run, anomaly_run, tmp_path):
    known, left_out = known_sources(run)
    assert known == ["localization", "none", "other", "oracle"]
    assert left_out == {
        "efficientad": "efficientad_run, the folder of a finished EfficientAD run, is not given",
        "external": "external_mask_dir, the folder with one mask per image, is not given",
    }
    known, left_out = known_sources(run, efficientad_run=anomaly_run.folder, external_mask_dir=tmp_path)
    assert known == list(SOURCES) and left_out == {}


def command(*arguments):
    result = CliRunner().invoke(main, [str(part) for part in arguments], catch_exceptions=False)
    return result.exit_code, " ".join(result.output.split())


def test_the_command_prints_and_exports_all_sources(run, anomaly_run, tmp_path):
    exported = tmp_path / "[x].json"
    words = ("--mask-source", "all", "--efficientad-run", anomaly_run.folder, "--export-results", exported)
    code, output = command("evaluate", run.folder, *words)
    assert code == 0, output
    assert "S6 by mask source, test" in output and "S6 by mask source, test_shift" in output
    assert "these are no results" in output and f"efficientad: its teacher: {TEACHER['text']}" in output
    assert "left out: external, because external_mask_dir" in output and "left out: efficientad" not in output
    assert str(exported) in output
    stored = json.loads(exported.read_text())
    assert [row["source"] for row in stored["sources"] if row["split"] == "test"] == [
        "localization", "efficientad", "none", "other", "oracle"
    ]  # fmt: skip
    assert [row["source"] for row in stored["sources"] if row["label_leaks"]] == ["oracle", "oracle"]
    assert set(stored["left_out"]) == {"external"}


def test_without_an_efficientad_run_the_others_are_compared(run):
    code, output = command("evaluate", run.folder, "--mask-source", "all")
    assert code == 0 and "left out: efficientad, because efficientad_run, the folder of a finished Ef" in output, output
    assert output.count("yes: no") == 2


def test_masks_that_cannot_be_had_leave_one_source_out(run, monkeypatch):
    def none_there(*_):
        raise DataError("no annotated defect")

    monkeypatch.setattr(OtherMasks, "masks", none_there)
    code, output = command("evaluate", run.folder, "--mask-source", "all")
    assert code == 0 and "left out: other, because no annotated defect" in output and "oracle" in output, output


def test_one_source_by_command(run):
    code, output = command("evaluate", run.folder, "--mask-source", "other")
    assert code == 0 and "these are no results" not in output and run.metrics["mask_source"] == "localization", output


def test_all_is_for_a_run_on_its_own_data(run, tmp_path):
    code, output = command("evaluate", run.folder, "--mask-source", "all", "--visualize", "--data-root", tmp_path)
    assert code == 1 and "compares results on the run's own data; leave --data-root, --visualize out" in output
    code, output = command("evaluate", "--checkpoint", tmp_path / "x.ckpt", "--mask-source", "all")
    assert code == 1 and "--mask-source all is for a finished run; give its folder in place of --checkpoint" in output


def test_a_run_whose_own_source_is_other_keeps_it(run, tmp_path):
    settings = run.settings.changed(mask_source="other", outputs_dir=tmp_path)
    settings.run_dir.mkdir(parents=True)
    for name in ("manifest.json", "model.safetensors"):
        shutil.copy(run.folder / name, settings.run_dir)
    (settings.run_dir / "settings.yaml").write_text(yaml.safe_dump(settings.plain()))
    own = Run(settings.run_dir)
    given, kept = mask_source_table(run, ["other"]), mask_source_table(own, ["other"])
    pd.testing.assert_frame_equal(given, kept)
    assert own.metrics["mask_source"] == "other" and own.metrics["label_leaks"] is False
