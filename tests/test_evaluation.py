"""Evaluation as a whole, S6's masks from every source, and what a run's folder gives back."""

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import get_args
from unittest.mock import Mock

import audited
import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anomaly_runs import TEACHER, tiny_anomaly_settings, write_anomaly_run
from click.testing import CliRunner
from drawn_data import write_generic, write_mask
from tiny import tiny_data, tiny_settings

from gainmtl_lib import evaluation as module
from gainmtl_lib.cli import main
from gainmtl_lib.dataset import build_data, build_samples
from gainmtl_lib.efficientad.evaluate import ScoredPicture, anomaly_mask
from gainmtl_lib.efficientad.model import AnomalyOutput
from gainmtl_lib.evaluation import MaskSource, add_verdicts, evaluate, mask_source_table, stored_maps, stored_tables
from gainmtl_lib.findings import DataError
from gainmtl_lib.model import build_model
from gainmtl_lib.readers import read_samples
from gainmtl_lib.runs import Run, RunError, hold, load_run
from gainmtl_lib.settings import Settings
from gainmtl_lib.train import fit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tiny_settings(tmp_path_factory.mktemp("evaluate"), num_epochs=2))


@pytest.fixture(scope="module")
def evaluated(run):
    return evaluate(run)


@pytest.fixture(scope="module")
def anomaly_run(run, tmp_path_factory):
    data = {name: getattr(run.settings, name) for name in ("data_root", "num_samples", "image_size")}
    return write_anomaly_run(tiny_anomaly_settings(tmp_path_factory.mktemp("anomalies"), **data))


def test_one_row_per_image_of_every_split_with_scores_for_annotated_defects_only(run, evaluated):
    table, summary = evaluated
    assert table["split"].value_counts().to_dict() == {"val": 4, "test": 6, "test_shift": 6}
    told = {"threshold", "threshold_from", "calibration", "map_scales", "mask_source", "label_leaks"}
    assert set(summary) == {"val", "test", "test_shift"} | told
    assert (summary["mask_source"], summary["label_leaks"]) == ("localization", False) and table["image"].is_unique
    shapes = {name: maps.shape for name, maps in run.maps.items()}
    assert shapes == {"cam": (16, 4, 4), "attention": (16, 4, 4), "localization": (16, 16, 16)}
    assert summary["map_scales"].keys() == shapes.keys()
    columns = ["cam_iou", "grid_iou", "point_game", "energy_inside", "attention_iou", "loc_iou", "cf_probability"]
    rows, scores = table[table["label"] == 1], summary["test"]
    assert rows[columns].notna().all().all() and table.loc[table["label"] == 0, columns].isna().all().all()
    assert scores["cam_iou"] == pytest.approx(table.query("split == 'test'")["cam_iou"].mean(), abs=1e-4)
    pooled = [scores[name] for name in ("cam_iou_pooled", "loc_iou_pooled", "loc_aupro")]
    assert scores["annotated"] == 3 and all(0 <= score <= 1 for score in pooled)
    placed = rows[rows["cf_control_probability"].notna()]  # the mask off the defect says something else
    assert not np.allclose(placed["cf_probability"], placed["cf_control_probability"])


def test_from_the_stored_evidence_of_s8_its_verdicts_can_be_counted_again(tmp_path):
    run = fit(tiny_settings(tmp_path, "S8", num_epochs=1, learning_rate=3e-3))
    table, summary = evaluate(run)
    head, cells = run.model.evidence, run.maps["cam"].reshape(16, 16).astype(float)
    strongest = np.sort(cells, axis=1)[:, -1:].mean(1)  # a tenth of 16 cells: one
    margin = head.log_scale.exp().item() * strongest + head.offset.item()
    assert table["margin"].tolist() == pytest.approx(margin.tolist(), abs=1e-2)
    slope, offset = summary["calibration"]
    assert summary["threshold"] == 0.5
    probability = 1 / (1 + np.exp(-slope * table["margin"] - offset))
    assert table["probability"].tolist() == pytest.approx(probability.tolist(), abs=1e-6)
    floors = {name: scale["floor"] for name, scale in summary["map_scales"].items()}
    assert floors == {"cam": 0.0, "localization": 0.5}  # its own zero, not what this validation split happened to show
    rows = table[table["label"] == 1]
    assert rows[["cam_iou", "loc_iou", "cf_probability"]].notna().all().all() and "attention_iou" not in table
    assert {"cf_flip_rate", "loc_aupro"} <= summary["test"].keys()


def test_a_second_call_reads_what_the_first_stored_and_anew_gives_the_same_with_the_runs_own_data_too(run, evaluated):
    own = build_data(run.settings)
    again = evaluate(load_run(run.folder)), evaluate(run, data=own), evaluate(run, data=own, reuse=False)
    for table, summary in again:
        pd.testing.assert_frame_equal(table, evaluated[0])
        assert summary == evaluated[1]
    samples = own.samples.drop(index=own.samples.index[own.samples["split"] == "test"][:1])
    _, other = evaluate(run, data=build_data(run.settings, samples))
    assert other["test"]["images"] == 5 and run.metrics == evaluated[1]


def test_a_model_is_evaluated_on_the_data_it_is_given_and_a_run_where_it_was_trained(run, evaluated, monkeypatch):
    asked, own = [], module.checked_device
    monkeypatch.setattr(module, "checked_device", lambda name: asked.append(name) or own("cpu"))
    _, summary = evaluate(run.model, data=build_data(run.settings))
    assert summary["test"]["auroc"] == pytest.approx(evaluated[1]["test"]["auroc"])
    with pytest.raises(RunError, match="evaluating a model needs data"):
        evaluate(run.model)
    table, summary = evaluate(run, threshold=0.0)  # neither chosen nor stored
    assert (table["predicted"] == 1).all() and summary["threshold_from"] == "given"
    assert run.metrics["threshold"] == evaluated[1]["threshold"]
    evaluate(run, threshold=0.5, device="cuda:1")
    assert asked == ["auto", "cpu", "cuda:1"]


def test_verdicts_flips_and_wrong_reasons_by_hand_and_errors_list_the_missed_first():
    none = (np.nan,) * 5
    rows = [
        ("found", 1, 0.9, 0.6, 1.0, 0.8, 0.1, 0.8),
        ("lucky", 1, 0.8, 0.05, 0.0, 0.1, 0.7, 0.9),
        ("missed", 1, 0.2, 0.4, 1.0, 0.5, 0.1, 0.2),
        ("surely", 1, 0.01, 0.4, 1.0, 0.5, 0.1, 0.2),
        ("no_mask", 1, 0.7, *none),
        ("alarm", 0, 0.6, *none),
        ("calm", 0, 0.1, *none),
    ]
    scores = ["cam_iou", "point_game", "energy_inside", "cf_probability", "cf_control_probability"]
    given = pd.DataFrame(rows, columns=["image", "label", "probability", *scores])
    table = add_verdicts(given.assign(split="test"), 0.5).set_index("image")
    assert table["verdict"].tolist() == ["TP", "TP", "FN", "FN", "TP", "FP", "TN"]
    assert table.index[table["wrong_reason"]].tolist() == ["lucky"]
    assert table["cf_flip"].dropna().to_dict() == {"found": 1.0, "lucky": 0.0}
    assert table["cf_control_flip"].dropna().to_dict() == {"found": 0.0, "lucky": 0.0}
    errors = module.error_analysis(table.reset_index()).set_index("image")["kind"]
    kinds = {"surely": "missed", "missed": "missed", "lucky": "wrong reason", "alarm": "false alarm"}
    assert list(errors.items()) == list(kinds.items()) and not len(module.error_analysis(table.reset_index(), "val"))


def test_controls_stay_inside_letterboxed_pictures(tmp_path, monkeypatch):
    given, own = [], module.control_masks  # the pictures are 12 x 16, so that they take the rows 8 to 55 of 64
    monkeypatch.setattr(module, "control_masks", lambda *a, **k: given.append(k["inside"]) or own(*a, **k))
    samples = read_samples(write_generic(tmp_path), dataset_type="generic")
    model = build_model(tiny_settings(tmp_path, "S5"))
    data = tiny_data(samples, image_size=(64, 64), resize="letterbox", batch_size=8)
    module.predict_split(model, data, "test", source=MaskSource.of(model))
    (inside,) = given
    assert inside[:, :, 8:56].all() and not inside[:, :, :8].any() and not inside[:, :, 56:].any()


def test_masks_from_another_folder_are_neither_taken_from_the_store_nor_stored(run, tmp_path):
    for name, value in (("ones", 255), ("zeros", 0)):
        (tmp_path / name).mkdir()
        for path in build_data(run.settings).samples["image"]:
            cv2.imwrite(str(tmp_path / name / Path(path).name), np.full((64, 64), value, np.uint8))
    settings = run.settings.changed(mask_source="external", outputs_dir=tmp_path, external_mask_dir=tmp_path / "ones")
    shutil.copytree(run.folder, settings.run_dir)  # as if it had been trained for those masks
    (settings.run_dir / "settings.yaml").write_text(yaml.safe_dump(settings.plain()))
    (settings.run_dir / "metrics.json").unlink(missing_ok=True)
    with_masks = Run(settings.run_dir)
    (_, own), (_, none) = evaluate(with_masks), evaluate(run, mask_source="none")
    # A mask of ones lets attention through as it is, which is what no mask does.
    assert own["mask_source"] == "external"
    assert own["test"]["cam_iou"] == pytest.approx(none["test"]["cam_iou"], abs=1e-6)
    for reuse in (True, False):
        _, other = evaluate(with_masks, external_mask_dir=tmp_path / "zeros", reuse=reuse)
        assert other["test"]["cam_iou"] != own["test"]["cam_iou"] and with_masks.metrics == own


def test_an_interruption_leaves_no_mixture_and_another_process_that_writes_only_reading(run, evaluated, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.np, "save", Mock(side_effect=KeyboardInterrupt))
        evaluate(run, reuse=False)
    assert (run.folder / "predictions.csv").is_file() and not run.is_evaluated
    assert evaluate(run)[1] == evaluated[1] and run.is_evaluated
    with hold(run.folder):
        with pytest.raises(RunError, match=r"another process \(.*\) is writing to this run"):
            evaluate(run, reuse=False)
        assert evaluate(run)[1] == evaluated[1]


@pytest.fixture
def data(tmp_path):
    samples = read_samples(write_generic(tmp_path / "data"), dataset_type="generic")
    data = tiny_data(samples, image_size=(8, 8), batch_size=4)
    data.setup()
    return data


def test_the_models_own_source_or_place_unless_another_that_fits_is_asked_for(tmp_path):
    def model(strategy="S6"):
        return SimpleNamespace(strategy=strategy, mask_source="localization")

    assert MaskSource.of(model()).name == "localization" and not MaskSource.of(model()).leaks
    assert MaskSource.of(model(), "oracle").leaks and MaskSource.of(model("S3")).name is None
    settings = SimpleNamespace(strategy="S6", mask_source="external", external_mask_dir=tmp_path)
    assert MaskSource.of(settings).place == tmp_path and MaskSource.of(settings, "none").place is None
    elsewhere = {"external_mask_dir": tmp_path / "b"}
    assert MaskSource.of(settings, **elsewhere).place == tmp_path / "b"
    assert set(module.SOURCES) == set(get_args(Settings.model_fields["mask_source"].annotation))
    for asker, name, places, message in (
        (model("S3"), "none", {}, "mask_source is for strategy S6; this model is S3"),
        (model(), "guess", {}, r"mask_source must be one of localization, efficientad, .*, got 'guess'"),
        (model(), "external", {}, "'external' needs external_mask_dir"),
        (model(), None, elsewhere, "this model is S6, and mask_source is 'localization': give mask_source 'ext"),
        (model("S3"), None, elsewhere, "this model is S3, whose attention takes no mask"),
    ):
        with pytest.raises(RunError, match=message):
            MaskSource.of(asker, name, **places)


def test_each_picture_gets_its_own_mask_in_any_order_and_from_any_split_or_what_needs_no_file(data, tmp_path):
    folder = tmp_path / "masks"
    for row, image in enumerate(data.dataset.paths):  # twice the picture's size, as wide as the row says
        box = (slice(0, 24), slice(0, 4 * (row % 6)))
        write_mask(folder.joinpath(*image.split("/")[-2:]), size=(24, 32), box=box)
    source, rows = MaskSource("external", folder), [5, 2, 14, 3, 8]
    masks = source.masks(data, data.dataset.__getitems__(rows))
    assert masks.mean((1, 2, 3)).tolist() == pytest.approx([(row % 6) / 8 for row in rows])
    batches = [source.masks(data, batch) for batch in data.loader("test")]
    assert len(batches) == 2 and torch.equal(torch.cat(batches), data.external_masks("test", folder))
    batch = data.dataset.__getitems__(data.rows("test"))
    assert torch.equal(MaskSource("oracle").masks(data, batch), batch.masks)
    assert all(MaskSource(name).masks(data, batch) is None for name in (None, "none", "localization"))
    with pytest.raises(DataError, match="no such folder"):
        MaskSource("external", tmp_path / "gone").masks(data, batch)


class RedIsAnomalous(torch.nn.Linear):
    """An EfficientAD whose anomaly map is the red channel, and which has some weights."""

    def forward(self, images):
        maps = 0.1 * images[:, :1]
        return AnomalyOutput(maps, maps.amax(dim=(1, 2, 3)), maps)


def anomalous(folder, monkeypatch, **settings):
    """Whose run is made up, and has seen no picture."""
    monkeypatch.setattr("gainmtl_lib.efficientad.evaluate.check_unseen", lambda *_: None)
    source = MaskSource("efficientad", folder)
    made = SimpleNamespace(**{"image_size": (64, 64), "resize": "squash", "precision": "32"} | settings)
    source._outside.run = SimpleNamespace(model=RedIsAnomalous(1, 1), settings=made, teacher="random")
    return source


@pytest.mark.parametrize(("own", "resize"), [("squash", "letterbox"), ("letterbox", "squash"), ("letterbox",) * 2])
def test_anomaly_masks_lie_where_the_picture_lies(tmp_path, monkeypatch, own, resize):
    pixels, path = np.zeros((24, 48, 3), np.uint8), tmp_path / "halves.png"
    pixels[:, 24:, 2] = 255  # the right half is red; no bar is
    cv2.imwrite(str(path), pixels)
    row = {"image": str(path), "label": 1, "mask": None, "defect_type": "x", "group": "x", "split": "test"}
    data = tiny_data(pd.DataFrame([row]), image_size=(32, 32), resize=resize)
    source = anomalous(tmp_path, monkeypatch, resize=own, image_size=(128, 64))
    (mask,) = source.masks(data, data.dataset.__getitems__([0]))
    expected = torch.zeros(1, 32, 32)
    expected[:, slice(0, 32) if resize == "squash" else slice(8, 24), 16:] = 1
    beside = [column for column in range(32) if column not in (15, 16)]  # where interpolation mixes the halves
    torch.testing.assert_close(mask[..., beside], expected[..., beside], atol=1e-5, rtol=0)


def test_anomaly_masks_are_the_map_through_its_quantiles_and_come_from_the_picture_alone(data, tmp_path, monkeypatch):
    values = np.array([[-0.3, 0.0, 0.05], [0.1, 0.4, 0.025]], np.float32)
    mask = anomaly_mask(ScoredPicture(Path("a.png"), (2, 3), 0.4, values), "squash", size=(2, 3), resize="squash")
    np.testing.assert_allclose(mask, [[0, 0, 0.5], [1, 1, 0.25]], atol=1e-6)
    source, batch = anomalous(tmp_path, monkeypatch), data.dataset.__getitems__([5, 2])
    told = source.masks(data, batch)
    untold = source.masks(data, batch._replace(masks=torch.zeros_like(batch.masks), labels=1 - batch.labels))
    assert torch.equal(told, untold) and told.min() >= 0 and told.max() <= 1 and not torch.equal(told[0], told[1])
    assert torch.equal(source.masks(data, data.dataset.__getitems__([2])), told[1:])
    origin = {"efficientad_run": str(tmp_path), "teacher": "random"}
    assert source.summary == {"mask_source": "efficientad", "label_leaks": False} | origin


def test_every_picture_is_given_another_ones_mask_of_its_split_whatever_stands_beside_it(tmp_path, monkeypatch):
    # defect number n of the test split has a mask of its n + 1 left columns of eight, those of training five and more
    root = write_generic(tmp_path / "data", splits=("train", "test"))
    for split, number in itertools.product(("train", "test"), range(3)):
        box = (slice(0, 12), slice(0, 2 * (number + 1) + 8 * (split == "train")))
        write_mask(root / "masks" / split / "defective" / f"{split}_d{number}.png", box=box)
    samples = read_samples(root, dataset_type="generic")

    def columns_given(rows, table=samples):
        data = tiny_data(table, image_size=(8, 8), mask_marks="defect")
        return (module.other_masks(data, data.dataset.__getitems__(rows)).mean((1, 2, 3)) * 8).round().tolist()

    seeded, seen, rows = np.random.default_rng, set(), samples.index[samples["split"] == "test"].tolist()
    with monkeypatch.context() as patch:
        for seed in range(30):
            patch.setattr(module.np.random, "default_rng", lambda key=None, k=seed: seeded([k, *key] if key else None))
            given = columns_given(rows)
            seen |= set(zip(rows, given, strict=True))
        assert columns_given(rows[::-1])[::-1] == given == [columns_given([row])[0] for row in rows]
    defects = {row: int(image[-5]) + 1 for row, image in samples["image"].items() if "test_d" in image}
    # each normal picture gets all three, each defect the two others
    assert seen == {(row, columns) for row in rows for columns in (1, 2, 3) if columns != defects.get(row)}
    alone = samples[~samples["image"].str.contains("test_d[01]")].reset_index(drop=True)
    message = r"mask_source 'other': split 'test' has no annotated defect of another part than .*test_d2.png; ann"
    with pytest.raises(DataError, match=message):
        columns_given([int(alone["image"].str.contains("test_d2").idxmax())], alone)


def test_one_row_per_source_and_split_the_runs_own_is_stored_and_masks_that_leak_refused(run, evaluated, anomaly_run):
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    names = ["localization", "efficientad", "none", "other", "oracle"]
    table = mask_source_table(run, names, efficientad_run=anomaly_run.folder)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    both = [[name, split] for name in names for split in ("test", "test_shift")]
    assert table[["source", "split"]].to_numpy().tolist() == both
    assert table.loc[table["label_leaks"], "source"].unique().tolist() == ["oracle"]
    teachers = table.set_index("source")["teacher"].dropna()
    assert set(teachers.items()) == {("efficientad", TEACHER["text"])}
    _, summary = evaluate(run, mask_source="oracle")
    for row in table[table["source"] == "oracle"].to_dict("records"):
        told = {metric: summary[row["split"]][metric] for metric in ("accuracy", "recall", "auroc", "cam_iou")}
        assert (told | {"threshold": summary["threshold"]}).items() <= row.items()
    (run.folder / "metrics.json").unlink()
    mask_source_table(run, ["other"])
    assert not run.is_evaluated
    mask_source_table(run, ["localization"])
    assert run.metrics["mask_source"] == "localization" and run.metrics["test"]["cam_iou"] == table["cam_iou"][0]
    samples, source = build_samples(run.settings), {"mask_source": "efficientad", "efficientad_run": anomaly_run.folder}
    swapped = samples.assign(split=samples["split"].replace({"train": "test", "test": "train"}))
    with pytest.raises(RunError, match=r"learnt from \d+ of the \d+ test pictures"):
        evaluate(run.model, data=tiny_data(swapped, image_size=(64, 64)), **source)


def test_the_command_exports_all_sources_and_leaves_out_what_cannot_be_had(run, anomaly_run, monkeypatch, tmp_path):
    def command(*arguments):
        result = CliRunner().invoke(main, [str(part) for part in arguments], catch_exceptions=False)
        return result.exit_code, " ".join(result.output.split())

    exported = tmp_path / "[x].json"
    words = ("evaluate", run.folder, "--mask-source", "all", "--efficientad-run", anomaly_run.folder)
    monkeypatch.setattr(module, "other_masks", Mock(side_effect=DataError("no annotated defect")))
    code, output = command(*words, "--export-results", exported)
    assert code == 0 and "S6 by mask source, test_shift" in output and str(exported) in output, output
    assert "these are no results" in output and f"efficientad: its teacher: {TEACHER['text']}" in output
    assert "left out: external, because mask_source 'external' needs external_mask_dir" in output
    stored = json.loads(exported.read_text())
    rows = [(row["source"], row["label_leaks"]) for row in stored["sources"] if row["split"] == "test"]
    assert rows == [("localization", False), ("efficientad", False), ("none", False), ("oracle", True)]
    assert stored["left_out"].keys() == {"external", "other"}
    code, output = command(*words, "--visualize", "--data-root", tmp_path)
    assert code == 1 and "on the run's own data; leave --data-root, --visualize out" in output
    code, output = command("evaluate", "--checkpoint", tmp_path / "x.ckpt", "--mask-source", "all")
    assert code == 1 and "is for a finished run; give its folder in place of --checkpoint" in output


def test_stored_tables_and_maps_are_read_and_what_cannot_be_used_is_named(tmp_path):
    rows = (("val", 1, 0.9), ("val", 0, 0.1), ("test", 1, 0.8), ("test", 0, 0.6))
    run = load_run(audited.write_audited(tmp_path, [audited.row(*entry) for entry in rows]))
    table, metrics = stored_tables(run)
    assert len(table) == 4 and metrics["threshold"] == 0.5 and stored_maps(run, 4)["cam"].shape == (4, 4, 4)
    path = run.folder / "predictions.csv"
    for content, message in (
        ("\n".join(path.read_text().splitlines()[:3]), "holds no test picture; evaluate again"),
        ("", r"cannot be read: .*; evaluate again: gainmtl evaluate .* --force"),
        ("image,split,label\na.png,test,1\n", "lacks mask, defect_type, .*; evaluate again"),
    ):
        path.write_text(content)
        with pytest.raises(RunError, match=rf"predictions\.csv: {message}"):
            stored_tables(run)
    path = run.folder / "maps" / "cam.npy"
    np.save(path, np.zeros((3, 4, 4), np.float16))
    with pytest.raises(RunError, match=r"cam\.npy is 3 x 4 x 4 for 4 predictions; evaluate again"):
        stored_maps(run, 4)
    for content in (b"", b"not an array", b"\x93NUMPY\x01\x00"):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"maps: cannot be read: .*; evaluate again"):
            stored_maps(run, 4)
    (run.folder / "metrics.json").unlink()
    with pytest.raises(RunError, match=r"trained but not evaluated; first: gainmtl evaluate .*seed7"):
        stored_tables(run)
