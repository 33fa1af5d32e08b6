"""Evaluation of EfficientAD's runs: scores, decisions, what is stored, and on which data."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anomaly_runs import TEACHER, tiny_anomaly_settings, write_anomaly_run
from filelock import FileLock
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.utils.data import DataLoader

from gainmtl_lib.dataset import Batch
from gainmtl_lib.efficientad import evaluate as module
from gainmtl_lib.efficientad.data import DatasetProvider, build_provider
from gainmtl_lib.efficientad.evaluate import (
    SplitPredictions,
    add_verdicts,
    category_table,
    decided_on,
    evaluate_efficientad,
    predict_split,
    summarise,
)
from gainmtl_lib.efficientad.model import AnomalyOutput
from gainmtl_lib.efficientad.train import EfficientADRun, load_efficientad
from gainmtl_lib.metrics import Aupro, PixelAuroc, choose_threshold, novelty_threshold
from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import RunError

COLUMNS = [
    "image", "mask", "split", "label", "defect_type", "group", "anomaly_score", "predicted", "verdict", "wrong_reason",
    "defect_area", "anomaly_iou", "grid_iou", "anomaly_point_game", "anomaly_energy_inside",
]  # fmt: skip
NUMBERS = [
    "images", "normal", "defective", "annotated", "skipped", "TP", "FP", "FN", "TN", "accuracy", "precision", "recall",
    "f1", "auroc", "average_precision", "pixel_auroc", "aupro", "anomaly_iou", "grid_iou", "anomaly_point_game",
    "anomaly_energy_inside", "wrong_reason", "wrong_reason_rate",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_anomaly_run(tiny_anomaly_settings(tmp_path_factory.mktemp("evaluate")))


@pytest.fixture(scope="module")
def evaluated(run):
    return evaluate_efficientad(run)


class Given(DatasetProvider):
    """Some batches as val and as test; the files have no names."""

    def __init__(self, *batches):
        self.batches = list(batches)

    def get_train_dataloader(self):
        return self.get_val_dataloader()

    def get_val_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    def get_test_dataloader(self):
        return self.get_val_dataloader()


class Spoken(torch.nn.Module):
    """Says what the red channel holds."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        maps = images[:, :1]
        return AnomalyOutput(maps, maps.amax(dim=(1, 2, 3)), torch.nn.functional.avg_pool2d(maps, 4))


def batch(maps, labels, masks, has_mask):
    images = maps.expand(-1, 3, -1, -1)
    return Batch(images, torch.tensor(labels), masks, torch.tensor(has_mask), torch.arange(len(labels)))


def test_one_row_per_file_and_the_numbers_of_every_split(run, evaluated):
    table, summary = evaluated
    assert list(table.columns) == COLUMNS and not table["image"].duplicated().any()
    provider = build_provider(run.settings)
    assert table["split"].value_counts().to_dict() == {s: n for s, n in provider.split_sizes.items() if s != "train"}
    assert (table.query("split == 'val'")["label"] == 0).all()  # the anomalies on copies are no files
    assert table["image"].str.startswith("images/").all() and table["mask"].dropna().str.startswith("masks/").all()
    assert set(summary) == {
        "threshold", "threshold_from", "novelty_threshold", "map_scales", "teacher", "penalty", "data_digest", "val",
        "test", "test_shift",
    }  # fmt: skip
    assert summary["teacher"] == TEACHER["text"] and summary["penalty"] == "textures"
    assert summary["data_digest"] == run.manifest["data_digest"]
    for split in ("val", "test", "test_shift"):
        assert list(summary[split]) == NUMBERS
    val = summary["val"]
    assert val["normal"] == val["defective"] == val["annotated"] == provider.split_sizes["val"]


def test_scores_and_thresholds_follow_from_the_rows(evaluated):
    table, summary = evaluated
    test = table.query("split == 'test'")
    assert summary["test"]["auroc"] == pytest.approx(roc_auc_score(test["label"], test["anomaly_score"]))
    ap = average_precision_score(test["label"], test["anomaly_score"])
    assert summary["test"]["average_precision"] == pytest.approx(ap)
    normal = table.query("split == 'val'")["anomaly_score"].to_numpy()
    assert summary["novelty_threshold"] == novelty_threshold(normal)  # to the last digit, or it would call itself novel
    assert (table["predicted"] == (table["anomaly_score"] >= summary["threshold"])).all()


def test_maps_are_stored_in_the_order_of_the_rows_on_the_networks_grid(run, evaluated):
    maps = run.maps["anomaly"]
    assert maps.shape == (len(evaluated[0]), 16, 16) and maps.dtype == np.float16
    peaks = maps.max(axis=(1, 2)).astype(np.float32)  # the border is 0
    assert peaks == pytest.approx(evaluated[0]["anomaly_score"].clip(lower=0), rel=1e-3, abs=1e-6)


def test_a_second_call_reads_what_the_first_stored(run, evaluated, monkeypatch):
    monkeypatch.setattr("gainmtl_lib.efficientad.evaluate.predict_split", None)
    table, summary = evaluate_efficientad(load_efficientad(run.folder))
    pd.testing.assert_frame_equal(table, evaluated[0])
    assert summary == evaluated[1]


def test_evaluating_anew_gives_the_same(run, evaluated):
    table, summary = evaluate_efficientad(run, reuse=False, provider=build_provider(run.settings))
    pd.testing.assert_frame_equal(table, evaluated[0])
    assert summary == evaluated[1]


def test_batches_of_any_size_give_the_same(run, evaluated):
    provider = build_provider(run.settings.changed(eval_batch_size=1))
    with module.computing_on(run.model, "cpu"):
        parts = predict_split(run.model, provider, "test")
    test = evaluated[0].query("split == 'test'")
    assert parts.table["anomaly_score"].to_numpy() == pytest.approx(test["anomaly_score"].to_numpy(), rel=1e-4)
    assert parts.pixel_auroc == pytest.approx(evaluated[1]["test"]["pixel_auroc"], abs=1e-3)


def test_a_run_is_refused_when_its_data_changed(run, evaluated, tmp_path):
    other = tiny_anomaly_settings(tmp_path)
    changed = write_anomaly_run(other, data_digest="0123")
    with pytest.raises(
        RunError, match=r"data: not the data that .*seed42 was trained on \(0123 then, [0-9a-f]{64} here"
    ):
        evaluate_efficientad(changed)
    assert not (changed.folder / "predictions.csv").exists()


def test_other_data_moves_no_threshold_and_is_not_stored(run, evaluated, tmp_path):
    stored = (run.folder / "metrics.json").read_bytes()
    other = build_provider(tiny_anomaly_settings(tmp_path, synthetic_seed=9))
    table, summary = evaluate_efficientad(run, provider=other)
    assert (run.folder / "metrics.json").read_bytes() == stored
    assert summary["threshold_from"] == "the run's own evaluation" and summary["data_digest"] == other.digest
    for name in ("threshold", "novelty_threshold", "map_scales"):
        assert summary[name] == evaluated[1][name]
    assert not table["image"].isin(evaluated[0]["image"]).all()


def test_other_data_asks_for_the_runs_own_evaluation(tmp_path):
    run = write_anomaly_run(tiny_anomaly_settings(tmp_path))
    with pytest.raises(RunError, match="trained but not evaluated"):
        evaluate_efficientad(run, provider=Given())


def test_a_run_of_a_provider_of_ones_own_is_evaluated_with_it(tmp_path):
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(4, 1, 64, 64)
    masks[2:, :, 20:30, 20:30] = 1
    has_mask = torch.tensor([False, False, True, True])
    provider = Given(Batch(images, torch.tensor([0, 0, 1, 1]), masks, has_mask, torch.arange(4)))
    run = write_anomaly_run(tiny_anomaly_settings(tmp_path), data_digest=provider.digest)
    table, summary = evaluate_efficientad(run, provider=provider)
    assert table["image"].tolist() == [f"{split} {number}" for split in ("val", "test") for number in range(4)]
    assert table["label"].tolist() == [0, 0, 1, 1] * 2 and summary["val"]["defective"] == 2
    assert run.is_evaluated
    with pytest.raises(RunError, match=r"was trained on .*provider test_efficientad_evaluate\.Given then"):
        evaluate_efficientad(run, reuse=False)


def test_another_process_keeps_its_folder(run, evaluated):
    with FileLock(run.folder / ".lock"), pytest.raises(RunError, match="another process is writing to this run"):
        evaluate_efficientad(run, reuse=False)


def test_an_interrupted_evaluation_leaves_a_run_that_is_not_evaluated(tmp_path, monkeypatch):
    run = write_anomaly_run(tiny_anomaly_settings(tmp_path))
    evaluate_efficientad(run)

    def full_disk(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gainmtl_lib.efficientad.evaluate.np.save", full_disk)
    with pytest.raises(KeyboardInterrupt):
        evaluate_efficientad(run, reuse=False)
    assert not run.is_evaluated and not list(run.folder.rglob(".*-????????.*"))


def test_the_model_comes_back_on_its_device_in_evaluation_mode(run):
    run.model.train()
    with module.computing_on(run.model, "cpu") as where:
        assert where.type == "cpu" and not run.model.training
    assert next(run.model.parameters()).device.type == "cpu"


def test_pixels_count_where_their_truth_is_known():
    generator = torch.Generator().manual_seed(2)
    maps, masks = torch.rand(4, 1, 64, 64, generator=generator), torch.zeros(4, 1, 64, 64)
    masks[1:3, :, 10:20, 10:20] = 1
    labels, has_mask = [0, 1, 1, 1], [False, True, True, False]  # the last has a defect that nobody marked
    parts = [batch(maps[i : i + 2], labels[i : i + 2], masks[i : i + 2], has_mask[i : i + 2]) for i in (0, 2)]
    said = predict_split(Spoken(), Given(*parts), "test")  # type: ignore[arg-type]
    for metric, value in ((PixelAuroc(), said.pixel_auroc), (Aupro(), said.aupro)):
        metric.update(maps[:3], masks[:3])
        assert value == pytest.approx(float(metric.compute()))
    table = said.table
    assert table["anomaly_iou"].isna().tolist() == [True, False, False, True]
    assert table["defect_area"].iloc[1] == pytest.approx(100 / 64**2)
    summary = summarise(add_verdicts(table, 0.5), said)
    assert (summary["annotated"], summary["skipped"], summary["defective"]) == (2, 1, 3)


def test_a_batch_without_known_pixels_is_no_obstacle():
    maps, masks = torch.rand(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    said = predict_split(Spoken(), Given(batch(maps, [1], masks, [False])), "test")  # type: ignore[arg-type]
    assert np.isnan(said.pixel_auroc) and np.isnan(said.aupro) and len(said.table) == 1


def test_a_loader_without_images_is_an_error():
    with pytest.raises(DataError, match="the loader of split 'test' yields no image; expected at least one"):
        predict_split(Spoken(), Given(), "test")  # type: ignore[arg-type]


def test_images_of_several_sizes_are_an_error():
    parts = [batch(torch.rand(1, 1, side, 64), [0], torch.zeros(1, 1, side, 64), [False]) for side in (64, 96)]
    with pytest.raises(DataError, match=r"split 'test' yields images of several sizes \(maps of 16x16 and 24x16\)"):
        predict_split(Spoken(), Given(*parts), "test")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": [0, 1]}, "has other labels than its loader's images, first in row 1"),
        ({"group": None}, "the table of split 'test' has no column group; see DatasetProvider.table"),
    ],
)
def test_a_table_that_does_not_fit_its_loader_is_an_error(change, message):
    class Described(Given):
        def table(self, split):
            rows = {"image": ["a", "b"], "mask": None, "label": [0, 0], "defect_type": "", "group": ["a", "b"]}
            return pd.DataFrame({name: value for name, value in (rows | change).items() if name != "group" or value})

    images = batch(torch.rand(2, 1, 64, 64), [0, 0], torch.zeros(2, 1, 64, 64), [False, False])
    with pytest.raises(DataError, match=message):
        predict_split(Spoken(), Described(images), "test")  # type: ignore[arg-type]


def test_long_work_shows_that_it_is_alive(monkeypatch, caplog):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOG_LINES", -1.0)
    one = batch(torch.rand(1, 1, 64, 64), [0], torch.zeros(1, 1, 64, 64), [False])
    with caplog.at_level(logging.INFO, logger="gainmtl_lib"):
        predict_split(Spoken(), Given(one, one), "test")  # type: ignore[arg-type]
    assert any("test: 1 images scored (" in line for line in caplog.messages)


def table_of(scores, labels, iou=0.5, hit=1.0):
    nothing = [np.nan if label == 0 else 0.0 for label in labels]
    return pd.DataFrame({
        "image": [str(n) for n in range(len(scores))], "label": labels, "anomaly_score": scores,
        "anomaly_iou": np.array(nothing) + iou, "grid_iou": nothing, "anomaly_point_game": np.array(nothing) + hit,
        "anomaly_energy_inside": nothing,
    })  # fmt: skip


def test_a_score_is_what_is_read_back_of_it(tmp_path):
    maps = torch.rand(200, 1, 64, 64, generator=torch.Generator().manual_seed(8)) / 3
    given = Given(batch(maps, [0] * 200, torch.zeros_like(maps), [False] * 200))
    said = predict_split(Spoken(), given, "val")  # type: ignore[arg-type]
    scores = said.table["anomaly_score"]
    assert scores.astype(np.float32).tolist() == maps.amax(dim=(1, 2, 3)).tolist()
    said.table.to_csv(tmp_path / "a.csv", float_format=module.FLOATS)
    assert pd.read_csv(tmp_path / "a.csv")["anomaly_score"].tolist() == scores.tolist()


def test_decisions_are_those_of_validation():
    scores, labels = np.array([-2.0, -1.0, 0.5, 3.0, 4.0]), np.array([0, 0, 0, 1, 1])
    maps = np.broadcast_to(scores[:, None, None], (5, 2, 2)).astype(np.float16)
    decided = decided_on(SplitPredictions(table_of(scores, labels), maps, 0.0, 0.0))
    assert decided["threshold"] == choose_threshold(labels, scores, near=None) == 1.75
    assert decided["novelty_threshold"] == 0.5
    assert decided["map_scales"] == {"anomaly": {"floor": 0.5, "ceiling": 3.5}}


def test_a_defect_found_by_a_map_off_it_is_right_for_the_wrong_reason():
    table = add_verdicts(table_of([5.0, 5.0, 0.0], [1, 0, 1], iou=0.05, hit=0.0), 1.0)
    assert table["verdict"].tolist() == ["TP", "FP", "FN"]
    assert table["wrong_reason"].tolist() == [True, False, False]
    on_it = add_verdicts(table_of([5.0], [1], iou=0.05, hit=1.0), 1.0)
    assert not on_it["wrong_reason"].any()


def test_scores_far_outside_the_unit_range_are_ranked_without_ties():
    scores, labels = [50.0, 51.0, 52.0, 53.0], [0, 1, 0, 1]
    table = add_verdicts(table_of(scores, labels), 52.5)
    summary = summarise(table, SplitPredictions(table, np.zeros((4, 2, 2), np.float16), 0.0, 0.0))
    assert summary["auroc"] == 0.75


def test_the_table_of_categories_has_a_mean(tmp_path):
    runs = []
    for category, auroc in (("bottle", 0.5), ("wood", 1.0)):
        settings = tiny_anomaly_settings(tmp_path, dataset_type="mvtec", category=category)
        settings.run_dir.mkdir(parents=True)
        (settings.run_dir / "settings.yaml").write_text(yaml.safe_dump(settings.plain()))
        test = {"auroc": auroc, "average_precision": 0.25, "pixel_auroc": None, "aupro": auroc / 2, "f1": 1}
        for name, content in (("metrics.json", json.dumps({"test": test})), ("predictions.csv", "")):
            (settings.run_dir / name).write_text(content)
        runs.append(EfficientADRun(settings.run_dir))
    table = category_table(runs)
    assert list(table.index) == ["bottle", "wood", "mean"]
    assert list(table.columns) == ["image AUROC", "AP", "pixel AUROC", "AUPRO", "F1"]
    assert table.loc["mean", "image AUROC"] == 0.75 and table.loc["mean", "AUPRO"] == 0.375
    assert table["pixel AUROC"].isna().all()
