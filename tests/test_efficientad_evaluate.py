"""EfficientAD's evaluation, pictures from anywhere, novel pictures, and its figures and rows beside the strategies."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anomaly_runs import TEACHER, tiny_anomaly_settings, untrained, write_anomaly_run, write_checkpoint
from audited import row, write_audited
from click.testing import CliRunner
from drawn_data import truncate_file, write_generic, write_picture
from filelock import FileLock, Timeout
from rich.console import Console
from sklearn.metrics import average_precision_score, roc_auc_score
from tiny import tiny_settings
from torch.utils.data import DataLoader

from gainmtl_lib.cli import main
from gainmtl_lib.console import print_comparison
from gainmtl_lib.dataset import Batch, build_samples
from gainmtl_lib.efficientad import evaluate as module
from gainmtl_lib.efficientad import figures
from gainmtl_lib.efficientad.data import DatasetProvider, SplitProvider
from gainmtl_lib.efficientad.evaluate import Detector, evaluate_efficientad, find_novel, stored_novelty
from gainmtl_lib.efficientad.model import AnomalyOutput, EfficientADModel
from gainmtl_lib.efficientad.train import EfficientADRun, load_efficientad
from gainmtl_lib.metrics import Aupro, MapScale, PixelAuroc, choose_threshold, novelty_threshold
from gainmtl_lib.readers import DataError, data_digest
from gainmtl_lib.runs import RunError, load_run, save_weights

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
    """An evaluated run; its tests change nothing in it."""
    made = write_anomaly_run(tiny_anomaly_settings(tmp_path_factory.mktemp("evaluate")))
    evaluate_efficientad(made)
    return made


@pytest.fixture(scope="module")
def evaluated(run):
    return evaluate_efficientad(run)


def interrupt(*_, **__):
    raise KeyboardInterrupt


def command(*arguments):
    result = CliRunner().invoke(main, [str(part) for part in arguments], catch_exceptions=False)
    return result.exit_code, " ".join(result.output.split())


# --- A run's own splits


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
    sizes = SplitProvider(run.settings).split_sizes
    assert table["split"].value_counts().to_dict() == {s: n for s, n in sizes.items() if s != "train"}
    assert (table.query("split == 'val'")["label"] == 0).all()  # the anomalies on copies are no files
    assert table["image"].str.startswith("images/").all() and table["mask"].dropna().str.startswith("masks/").all()
    assert summary["teacher"] == TEACHER["text"] and summary["penalty"] == "textures"
    assert all(list(summary[split]) == NUMBERS for split in ("val", "test", "test_shift"))
    assert summary["val"]["normal"] == summary["val"]["defective"] == summary["val"]["annotated"] == sizes["val"]
    test = table.query("split == 'test'")
    assert summary["test"]["auroc"] == pytest.approx(roc_auc_score(test["label"], test["anomaly_score"]))
    precision = average_precision_score(test["label"], test["anomaly_score"])
    assert summary["test"]["average_precision"] == pytest.approx(precision)
    normal = table.query("split == 'val'")["anomaly_score"].to_numpy()
    assert summary["novelty_threshold"] == novelty_threshold(normal)  # to the last digit, or it would call itself novel
    assert (table["predicted"] == (table["anomaly_score"] >= summary["threshold"])).all()
    maps = run.maps["anomaly"]
    assert maps.shape == (len(table), 16, 16) and maps.dtype == np.float16
    peaks = maps.max(axis=(1, 2)).astype(np.float32)  # the border is 0
    assert peaks == pytest.approx(table["anomaly_score"].clip(lower=0), rel=1e-3, abs=1e-6)


def test_results_are_reused_and_made_anew_alike(run, evaluated, monkeypatch):
    again = evaluate_efficientad(run, reuse=False, provider=SplitProvider(run.settings.changed(eval_batch_size=5)))
    monkeypatch.setattr(module, "predict_split", None)
    for table, summary in (again, evaluate_efficientad(load_efficientad(run.folder))):
        pd.testing.assert_frame_equal(table, evaluated[0])
        assert summary == evaluated[1]
    with FileLock(run.folder / ".lock"), pytest.raises(RunError, match="another process is writing to this run"):
        evaluate_efficientad(run, reuse=False)


def test_a_run_is_refused_when_its_data_changed_and_an_interruption_leaves_it_unevaluated(tmp_path, monkeypatch):
    changed = write_anomaly_run(tiny_anomaly_settings(tmp_path), data_digest="0123")
    with pytest.raises(RunError, match=r"not the data that .*seed42 was trained on \(0123 then, [0-9a-f]{64} here"):
        evaluate_efficientad(changed)
    with pytest.raises(RunError, match="trained but not evaluated"):
        evaluate_efficientad(changed, provider=Given())
    other = write_anomaly_run(tiny_anomaly_settings(tmp_path, seed=7))
    assert Detector.open(other.folder).threshold is None and Detector.open(other.folder).scale == module.QUANTILE_SCALE
    evaluate_efficientad(other)
    monkeypatch.setattr(module.np, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate_efficientad(other, reuse=False)
    assert not other.is_evaluated and not list(other.folder.rglob(".*-????????.*"))


def test_other_data_moves_no_threshold_and_is_not_stored(run, evaluated, tmp_path):
    stored = (run.folder / "metrics.json").read_bytes()
    other = SplitProvider(tiny_anomaly_settings(tmp_path, synthetic_seed=9))
    table, summary = evaluate_efficientad(run, provider=other)
    assert (run.folder / "metrics.json").read_bytes() == stored
    assert summary["threshold_from"] == "the run's own evaluation" and summary["data_digest"] == other.digest
    assert all(summary[name] == evaluated[1][name] for name in ("threshold", "novelty_threshold", "map_scales"))
    assert not table["image"].isin(evaluated[0]["image"]).all()


def test_a_run_of_a_provider_of_ones_own_is_evaluated_with_it(tmp_path):
    maps, masks = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(1)), torch.zeros(4, 1, 64, 64)
    masks[2:, :, 20:30, 20:30] = 1
    provider = Given(batch(maps, [0, 0, 1, 1], masks, [False, False, True, True]))
    run = write_anomaly_run(tiny_anomaly_settings(tmp_path), data_digest=provider.digest)
    table, _ = evaluate_efficientad(run, provider=provider)
    assert table["image"].tolist() == [f"{split} {number}" for split in ("val", "test") for number in range(4)]
    assert table["label"].tolist() == [0, 0, 1, 1] * 2 and run.is_evaluated
    with pytest.raises(RunError, match=r"was trained on .*provider test_efficientad_evaluate\.Given then"):
        evaluate_efficientad(run, reuse=False)


def test_pixels_count_where_their_truth_is_known():
    maps, masks = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(2)), torch.zeros(4, 1, 64, 64)
    masks[1:3, :, 10:20, 10:20] = 1
    labels, has_mask = [0, 1, 1, 1], [False, True, True, False]  # the last has a defect that nobody marked
    parts = [batch(maps[i : i + 2], labels[i : i + 2], masks[i : i + 2], has_mask[i : i + 2]) for i in (0, 2)]
    said = module.predict_split(Spoken(), Given(*parts), "test")
    for metric, value in ((PixelAuroc(), said.pixel_auroc), (Aupro(), said.aupro)):
        metric.update(maps[:3], masks[:3])
        assert value == pytest.approx(float(metric.compute()))
    assert said.table["anomaly_iou"].isna().tolist() == [True, False, False, True]
    assert said.table["defect_area"].iloc[1] == pytest.approx(100 / 64**2)
    assert said.table["anomaly_score"].astype(np.float32).tolist() == maps.amax(dim=(1, 2, 3)).tolist()
    summary = module.summarise(module.add_verdicts(said.table, 0.5), said)
    assert (summary["annotated"], summary["skipped"], summary["defective"]) == (2, 1, 3)
    unknown = module.predict_split(Spoken(), Given(batch(maps[:1], [1], masks[:1], [False])), "test")
    assert np.isnan(unknown.pixel_auroc) and np.isnan(unknown.aupro)


class Described(Given):
    def table(self, split):
        return pd.DataFrame({"image": ["a", "b"], "mask": None, "label": [0, 1], "defect_type": "", "group": "g"})


class Undescribed(Described):
    def table(self, split):
        return super().table(split).drop(columns="group")


def black(side=64, count=2):
    return batch(torch.zeros(count, 1, side, 64), [0] * count, torch.zeros(count, 1, side, 64), [False] * count)


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        (Given(), "the loader of split 'test' yields no image; expected at least one"),
        (Given(black(), black(96)), r"split 'test' yields images of several sizes \(maps of 16x16 and 24x16\)"),
        (Described(black()), "the table of split 'test' has 2 rows or other labels than its loader's 2 images"),
        (Undescribed(black()), "the table of split 'test' has no column group; see DatasetProvider.table"),
    ],
)
def test_loaders_and_tables_that_do_not_fit_are_an_error(provider, message):
    with pytest.raises(DataError, match=message):
        module.predict_split(Spoken(), provider, "test")


def table_of(scores, labels, iou=0.5, hit=1.0):
    nothing = np.where(np.array(labels) == 0, np.nan, 0.0)
    columns = {"grid_iou": nothing, "anomaly_energy_inside": nothing, "anomaly_iou": nothing + iou}
    return pd.DataFrame({"label": labels, "anomaly_score": scores, "anomaly_point_game": nothing + hit} | columns)


def test_decisions_are_those_of_validation():
    scores, labels = np.array([-2.0, -1.0, 0.5, 3.0, 4.0]), np.array([0, 0, 0, 1, 1])
    maps = np.broadcast_to(scores[:, None, None], (5, 2, 2)).astype(np.float16)
    decided = module.decided_on(module.SplitPredictions(table_of(scores, labels), maps, 0.0, 0.0))
    assert decided["threshold"] == choose_threshold(labels, scores, near=None) == 1.75
    assert decided["novelty_threshold"] == 0.5
    assert decided["map_scales"] == {"anomaly": {"floor": 0.5, "ceiling": 3.5}}


def test_a_defect_found_by_a_map_off_it_is_right_for_the_wrong_reason():
    table = module.add_verdicts(table_of([5.0, 5.0, 0.0], [1, 0, 1], iou=0.05, hit=0.0), 1.0)
    assert table["verdict"].tolist() == ["TP", "FP", "FN"] and table["wrong_reason"].tolist() == [True, False, False]
    assert not module.add_verdicts(table_of([5.0], [1], iou=0.05, hit=1.0), 1.0)["wrong_reason"].any()
    table = module.add_verdicts(table_of([50.0, 51.0, 52.0, 53.0], [0, 1, 0, 1]), 52.5)  # ranked without ties
    assert (
        module.summarise(table, module.SplitPredictions(table, np.zeros((4, 2, 2), np.float16), 0.0, 0.0))["auroc"]
        == 0.75
    )


def test_the_table_of_categories_has_a_mean(tmp_path):
    runs = []
    for category, auroc in (("bottle", 0.5), ("wood", 1.0)):
        settings = tiny_anomaly_settings(tmp_path, dataset_type="mvtec", category=category)
        settings.run_dir.mkdir(parents=True)
        (settings.run_dir / "settings.yaml").write_text(yaml.safe_dump(settings.plain()))
        test = {"auroc": auroc, "average_precision": 0.25, "pixel_auroc": None, "aupro": auroc / 2, "f1": 1}
        (settings.run_dir / "metrics.json").write_text(json.dumps({"test": test}))
        runs.append(EfficientADRun(settings.run_dir))
    table = figures.category_table(runs)
    assert list(table.index) == ["bottle", "wood", "mean"]
    assert list(table.columns) == ["image AUROC", "AP", "pixel AUROC", "AUPRO", "F1"]
    assert table.loc["mean", "image AUROC"] == 0.75 and table["pixel AUROC"].isna().all()


# --- Pictures from anywhere


@pytest.fixture(scope="module")
def defective(run):
    return sorted((run.settings.data_root / "images/test/defective").rglob("*.png"))


def predict(*arguments):
    return command("efficientad", "predict", *arguments)


def test_scores_are_those_of_the_evaluation_at_any_size_and_a_bad_picture_gives_its_error(run, tmp_path):
    table = run.predictions.query("split == 'test'")
    paths = [run.settings.data_root / name for name in table["image"]]
    truncate_file(broken := write_picture(tmp_path / "broken.png", size=(64, 64)))
    scored = list(module.score_pictures(run.model, run.settings, [broken, *paths]))
    assert isinstance(scored[0], DataError) and "broken.png" in str(scored[0])
    assert [one.path for one in scored[1:]] == paths and scored[1].size == (64, 64)
    assert [one.score for one in scored[1:]] == pytest.approx(table["anomaly_score"].tolist(), rel=1e-4)
    paths = [write_picture(tmp_path / f"{n}.png", size=size) for n, size in enumerate([(90, 50), (64, 128)])]
    scored = list(
        module.score_pictures(run.model, run.settings.changed(resize="letterbox"), paths, image_size=(64, 96))
    )
    assert [one.size for one in scored] == [(90, 50), (64, 128)]
    assert {one.anomaly_map.shape for one in scored} == {(64, 96)}


def test_batches_follow_from_the_size_and_the_precision_is_the_networks_alone(run, defective, monkeypatch):
    sizes, own = [], run.model.forward
    single = [one.score for one in module.score_pictures(run.model, run.settings, defective)]
    monkeypatch.setattr(run.model, "forward", lambda images: sizes.append(len(images)) or own(images))
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 2 * 64 * 64)
    pictures = module.score_pictures(run.model, run.settings.changed(precision="bf16"), defective[:3])
    first = next(pictures)
    assert not torch.is_autocast_enabled("cpu")  # the caller's own work is not the model's
    assert [one.score for one in (first, *pictures)] == pytest.approx(single[:3], rel=0.1)
    assert first.score != single[0] and sizes == [2, 1]


def test_the_best_checkpoint_of_a_run_is_the_run_and_others_stand_alone(run, tmp_path):
    by_run, best = Detector.open(run.folder), Detector.open(run.folder / "checkpoints/best.ckpt")
    assert by_run.threshold == best.threshold == run.metrics["threshold"]
    assert by_run.scale == best.scale == run.scale and by_run.scale_name == "absolute scale"
    path = write_checkpoint(untrained(run.settings), run.settings, tmp_path / "last.ckpt")
    alone = Detector.open(path)
    assert alone.threshold is None and alone.novelty_threshold is None and alone.teacher == TEACHER["text"]
    assert alone.scale == module.QUANTILE_SCALE and "90 % to 99.5 %" in alone.scale_name
    picture = write_picture(tmp_path / "part.png", size=(64, 64))
    code, output = predict(path, picture, "--output", tmp_path / "out")
    assert code == 0 and "no threshold: the run is not evaluated" in output
    scores = pd.read_csv(tmp_path / "out/scores.csv").iloc[0]
    assert np.isfinite(scores["anomaly_score"]) and scores[["threshold", "verdict", "anomalous"]].isna().all()


@pytest.mark.parametrize("size", [(400, 20), (20, 400), (64, 64)])
def test_the_heat_map_is_on_the_absolute_scale_and_narrow_pictures_keep_room_for_words(run, tmp_path, size):
    picture = write_picture(tmp_path / "part.png", size=size)
    scored = next(iter(module.score_pictures(run.model, run.settings, [picture])))
    detector = replace(Detector.open(run.folder), scale=MapScale(0.1, 0.5))
    colours, width = [], max(figures.NARROWEST, round(figures.SIDE * size[1] / max(size)))
    for value in (0.1, 0.3, 0.5):
        scored.anomaly_map[:] = value
        pixels = figures.drawn(detector, scored)
        assert pixels.shape[1] == 2 * width + 6
        heat = pixels[: round(figures.SIDE * size[0] / max(size)), width + 6 :].astype(int)
        colours.append(float((heat.max(axis=2) - heat.min(axis=2)).mean()))
    assert colours[0] == 0 and min(colours[1:]) > 1  # grey: at the floor nothing is found


def test_a_folder_is_scored_and_drawn(run, tmp_path):
    folder = run.settings.data_root / "images/test"
    code, output = predict(run.folder, folder, "--output", tmp_path / "[x]")
    assert code == 0 and TEACHER["text"] in output and "[x]" in output
    table = pd.read_csv(tmp_path / "[x]/scores.csv")
    assert list(table.columns) == ["image", "anomaly_score", "threshold", "verdict", "anomalous"]
    names = [str(run.settings.data_root / image) for image in run.predictions["image"]]
    joined = table.merge(run.predictions.assign(image=names), on="image", suffixes=("", "_known"))
    assert len(joined) == len(table) == 6
    assert (joined["verdict"] == joined["predicted"].map({0: "normal", 1: "defective"})).all()
    assert (table["anomalous"] == (table["anomaly_score"] > run.metrics["novelty_threshold"])).all()
    pictures = {path.relative_to(tmp_path / "[x]"): cv2.imread(str(path)) for path in (tmp_path / "[x]").rglob("*.png")}
    assert set(pictures) == {path.relative_to(folder) for path in folder.rglob("*.png")}
    widths = {path.parent.name: pixels.shape[1] for path, pixels in pictures.items()}
    assert widths == {
        "normal": 2 * figures.SIDE + 6,
        "defective": 3 * figures.SIDE + 12,
    }  # the last shows the ground truth


def test_the_specifications_spelling(run, defective, tmp_path):
    best, target = run.folder / "checkpoints/best.ckpt", tmp_path / "results" / "output.png"
    options = ("--model_path", best, "--image_path", defective[0], "--output_path", target, "--image_size", 96, 80)
    code, output = predict(*options)
    assert code == 0 and "computed at 96x80; thresholds and scale are those of 64x64" in output
    assert cv2.imread(str(target)).shape[1] == 3 * figures.SIDE + 12
    assert pd.read_csv(target.with_suffix(".csv"))["image"].tolist() == [str(defective[0])]
    assert predict("--model_path", best, "--is_synthetic", "True", "--output_path", tmp_path / "one.png")[0] == 0
    assert pd.read_csv(tmp_path / "one.csv")["image"].tolist() == [str(defective[0])]
    assert predict("--model_path", best, "--is_synthetic", "True", "--output_path", tmp_path / "all")[0] == 0
    assert len(pd.read_csv(tmp_path / "all/scores.csv")) == 6


def test_a_given_mask_is_drawn_and_what_cannot_be_used_is_named(run, tmp_path, monkeypatch):
    folder, mask = tmp_path / "pictures", np.zeros((64, 64), np.uint8)
    good, broken = (write_picture(folder / name, size=(64, 64)) for name in ("good.png", "broken.png"))
    mask[16:48, 16:48] = 255
    cv2.imwrite(str(tmp_path / "where.png"), mask)
    assert predict(run.folder, good, "--mask", tmp_path / "where.png", "--output", tmp_path / "out.png")[0] == 0
    truth = cv2.imread(str(tmp_path / "out.png"))[: figures.SIDE, 2 * figures.SIDE + 12 :]
    assert (truth > 127).mean() == pytest.approx(0.25, abs=0.02)
    truncate_file(broken)
    code, output = predict(run.folder, folder, "--output", tmp_path / "out")
    assert code == 1 and "not scored:" in output and "broken.png" in output
    assert pd.read_csv(tmp_path / "out/scores.csv")["image"].tolist() == [str(good)]
    odd = write_picture(tmp_path / "odd.png", size=(64, 32))
    code, output = predict(run.folder, good, "--mask", odd, "--output", tmp_path / "out")
    assert code == 1 and "expected the same aspect ratio" in output
    monkeypatch.setattr("gainmtl_lib.efficientad.figures.cv2.imencode", interrupt)
    code, output = predict(run.folder, good, "--output", tmp_path / "o")
    assert code == 1 and "interrupted" in output and not list((tmp_path / "o").rglob("*.*"))


def test_what_does_not_fit_is_said_and_pictures_are_never_overwritten(run, tmp_path):
    twin, jpeg = write_picture(tmp_path / "p/a.png", size=(64, 64)), write_picture(tmp_path / "p/a.jpg", size=(64, 64))
    (tmp_path / "empty").mkdir()
    generic = tiny_anomaly_settings(tmp_path, dataset_type="generic")
    other = write_checkpoint(untrained(generic), generic, tmp_path / "a.ckpt")
    before, to = twin.read_bytes(), ("--output", tmp_path / "o")
    cases = {
        (): "Missing option '--output'",
        to: "give the folder of a run or a checkpoint file",
        (run.folder, *to): "give either pictures or --is-synthetic True",
        (run.folder, twin, "--is-synthetic", "True", *to): "give either pictures or",
        (run.folder, twin, jpeg, *to): "would be drawn to the same file",
        (run.folder, twin, jpeg, "--output", tmp_path / "o.png"): "is the file of one picture, got 2; give a folder",
        (run.folder, twin, "--mask", twin, "--mask", twin, *to): "1 pictures but 2 masks",
        (run.folder, tmp_path / "gone.png", *to): "no such picture or folder",
        (run.folder, tmp_path / "empty", *to): "no pictures in this folder",
        (run.folder, twin, "--image-size", "32", "32", *to): "at least 64x64 pixels",
        (run.folder, twin, "--image-size", "0", "0", *to): "at least 64x64 pixels, got 0x0",
        (tmp_path, twin, *to): "no run here",
        (twin, twin, *to): "not a checkpoint that can be read safely",
        (run.folder, twin, "--device", "cuda:9", *to): "CUDA devices are available",
        (other, "--is-synthetic", "True", *to): "the run's data is of type generic, not synthetic",
        (run.folder, twin, "--output", twin): "would overwrite",
        (run.folder, twin, "--output", twin.parent): "would overwrite",
        (run.folder, twin.parent, "--output", twin.parent / "drawn"): "whose pictures are to be scored; choose another",
    }
    for arguments, expected in cases.items():
        code, output = predict(*arguments)
        assert code in (1, 2) and expected in output, (arguments, output)
    assert not (tmp_path / "o").exists() and twin.read_bytes() == before


# --- Novel pictures


def test_novel_is_what_passes_although_it_is_unlike_the_good_parts_and_every_kind_is_counted():
    rows = [
        ("a", "val", 0, "normal", 0, 0.9), ("b", "test", 0, "normal", 0, 0.1), ("c", "test", 0, "normal", 1, 0.8),
        ("d", "test", 0, "normal", 0, 0.7), ("e", "test", 1, "stain", 1, 0.9), ("f", "test", 1, "stain", 0, 0.5),
        ("g", "test", 1, "dent", 0, 0.6), ("h", "test_shift", 1, None, 0, 0.2),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["image", "split", "label", "defect_type", "predicted", "score"])
    flagged, kinds = module.flag(table, table["score"], 0.5, {"stain"})
    assert flagged.columns.tolist() == ["image", "split", "anomaly_score", "anomalous", "novel"]
    assert "".join(flagged.loc[flagged["anomalous"], "image"]) == "acdeg"  # f lies at the threshold, not above it
    assert "".join(flagged.loc[flagged["novel"], "image"]) == "adg"
    names = ("split", "name", "count", "called_defective", "anomalous", "novel", "unseen")
    assert [tuple(kind[name] for name in names) for kind in kinds] == [
        ("test", "normal", 3, 1, 2, 1, False),
        ("test", "dent", 1, 0, 1, 1, True),
        ("test", "stain", 2, 1, 1, 0, False),
        ("test_shift", "unknown", 1, 0, 0, 0, True),
    ]


def write_run(folder, **settings):
    """An evaluated run, every second picture called defective, on the data that its settings describe."""
    made = tiny_settings(folder, "S5", **settings)
    samples = build_samples(made)
    rows = [
        row(entry["split"], entry["label"], 0.5 + 0.1 * (number % 2), image=entry["image"],
            mask=entry["mask"], defect_type=entry["defect_type"])
        for number, entry in enumerate(samples[samples["split"] != "train"].to_dict("records"))
    ]  # fmt: skip
    same = {name: getattr(made, name) for name in ("data_root", "dataset_type", "num_samples", *settings)}
    manifest = {"strategy": "S5", "data_digest": data_digest(samples)}
    return load_run(write_audited(folder, rows, threshold=0.55, manifest=manifest, **same))


@pytest.fixture(scope="module")
def made(tmp_path_factory, run):
    """An evaluated run of a strategy on the same data."""
    folder = tmp_path_factory.mktemp("novelty")
    return write_run(folder, data_root=run.settings.data_root).folder


@pytest.fixture
def strategy(made, tmp_path):
    return load_run(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def other(run, tmp_path):
    return load_efficientad(shutil.copytree(run.folder, tmp_path / "other"))


def test_scores_are_those_of_the_model_and_the_threshold_that_of_its_evaluation(strategy, other, monkeypatch):
    (other.folder / "metrics.json").unlink()  # evaluated on the way
    before = {path: path.read_bytes() for path in strategy.folder.iterdir() if path.is_file()}
    own = module.stored_tables

    def held(run):  # else flags of the predictions before could be stored as flags of those after
        with pytest.raises(Timeout):
            FileLock(run.folder / ".lock", is_singleton=False).acquire(timeout=0)
        return own(run)

    monkeypatch.setattr(module, "stored_tables", held)
    found = find_novel(strategy, other.folder)
    table, metrics = evaluate_efficientad(other)
    scores = table.set_index("image")["anomaly_score"]
    root = strategy.settings.data_root
    mine = found.table.assign(image=[str(path).removeprefix(f"{root}/") for path in found.table["image"]])
    joined = mine[mine["image"].isin(scores.index)]
    assert len(joined) == len(table) > 12  # EfficientAD leaves the defects of validation out
    np.testing.assert_allclose(joined["anomaly_score"], scores.loc[joined["image"]], rtol=1e-4)
    assert found.threshold == metrics["novelty_threshold"]
    assert (found.table["novel"] == found.table["anomalous"] & (strategy.predictions["predicted"] == 0)).all()
    assert found.teacher == TEACHER["text"] and found.summary["efficientad_run"] == str(other.folder)
    assert {path: path.read_bytes() for path in before} == before
    assert not found.kinds["unseen"].any()  # drawn defects are all in training
    with FileLock(strategy.folder / ".lock"), pytest.raises(RunError, match="another process is writing to this run"):
        find_novel(strategy, other, reuse=False)


def test_flags_belong_to_one_evaluation_and_one_training(strategy, other, monkeypatch):
    found = find_novel(strategy, other)
    with monkeypatch.context() as patch:
        patch.setattr(module, "score_pictures", None)
        again = find_novel(load_run(strategy.folder), other)
    pd.testing.assert_frame_equal(again.table, found.table)
    assert again.summary == found.summary == stored_novelty(strategy).summary and not module.out_of_date(strategy)
    path = strategy.folder / "predictions.csv"
    path.write_text(path.read_text().replace("0.5,", "0.51,"))
    assert stored_novelty(strategy) is None and module.out_of_date(strategy)
    torch.manual_seed(4)
    model = untrained(other.settings)
    torch.nn.init.normal_(model.student.convolutions[-1].weight)
    find_novel(strategy, other)
    save_weights(model, other.folder / "model.safetensors")
    assert stored_novelty(strategy) is None and module.out_of_date(strategy)
    code, output = command("evaluate", strategy.folder)
    assert code == 0 and "novel pictures: not shown, what is stored is of other predictions or of an" in output
    other = type(other)(other.folder)  # trained anew in the same place
    evaluate_efficientad(other, reuse=False)
    assert find_novel(strategy, other).table["anomaly_score"].tolist() != found.table["anomaly_score"].tolist()
    shutil.rmtree(other.folder)  # or is not there any more, and has not changed
    assert stored_novelty(strategy) is not None and not module.out_of_date(strategy)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "novelty.json",
            lambda text: "{}",
            "lacks what belongs there; remove novelty.json, or flag anew: gainmtl eval",
        ),
        ("novelty.json", lambda text: text[:40], "cannot be read"),
        ("novelty.csv", lambda text: "image,split\n", "cannot be read"),
        ("novelty.csv", lambda text: text.replace("True", "perhaps").replace("False", "no"), "cannot be read"),
        ("novelty.csv", lambda text: "\n".join(text.splitlines()[:-1]), "not of the pictures in predictions.csv"),
    ],
)
def test_damaged_flags_are_told_and_made_anew(strategy, other, name, damage, message):
    found = find_novel(strategy, other)
    path = strategy.folder / name
    path.write_text(damage(path.read_text()))
    with pytest.raises(RunError, match=rf"{name}.*: ({message})"):
        stored_novelty(strategy)
    assert find_novel(strategy, other).summary == found.summary and stored_novelty(strategy) is not None


def test_what_learnt_from_the_test_pictures_is_refused_also_by_another_path(tmp_path):
    write_generic(tmp_path / "data", splits=("train",), per_class=12)
    same = {"dataset_type": "generic", "val_ratio": 0.25, "test_ratio": 0.25}
    run, settings = write_run(tmp_path, split_seed=1, **same), tiny_anomaly_settings(tmp_path, split_seed=1, **same)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for seed, root in ((5, "data"), (6, "link")):
        leaking = write_anomaly_run(settings.changed(seed=seed, split_seed=2, data_root=tmp_path / root))
        with pytest.raises(RunError, match=r"learnt from \d of the 6 test pictures, such as .*\.png; what it says"):
            find_novel(run, leaking)
        assert not leaking.is_evaluated  # told before the work is done
    assert find_novel(run, write_anomaly_run(settings.changed(seed=3))).kinds.index[0] == ("test", "normal")


def test_what_cannot_be_flagged_is_told(strategy, other):
    with pytest.raises(RunError, match="a run of strategy S5, not of EfficientAD"):
        find_novel(strategy, strategy.folder)
    path = other.folder / "manifest.json"
    path.write_text(path.read_text().replace(other.manifest["data_digest"], "provider my.Provider"))
    with pytest.raises(RunError, match="which pictures it learnt from is not known, because its data changed since or"):
        find_novel(strategy, load_efficientad(other.folder))
    path = strategy.folder / "manifest.json"
    path.write_text(path.read_text().replace(strategy.manifest["data_digest"], "another"))
    with pytest.raises(RunError, match=r"the data changed since .* was trained on it"):
        find_novel(load_run(strategy.folder), other)
    (strategy.folder / "metrics.json").unlink()
    with pytest.raises(RunError, match="not evaluated; first: gainmtl evaluate"):
        find_novel(strategy, other)


def test_the_command_flags_prints_and_exports(strategy, other, tmp_path):
    results = tmp_path / "results.json"
    options = ("--efficientad-run", other.folder)
    code, output = command("evaluate", strategy.folder, *options, "--export-results", results)
    assert code == 0 and "test: novel pictures, anomaly score above" in output and TEACHER["text"] in output
    assert f"score and flag of every picture: {strategy.folder / 'novelty.csv'}" in output
    assert json.loads(results.read_text())["novelty"]["teacher"] == TEACHER["text"]
    assert "novelty" not in strategy.metrics
    code, output = command("evaluate", strategy.folder, *options, "--data-root", "data")
    assert code == 1 and "flags novel pictures of a run as it was trained" in output
    for name in ("novelty.json", "novelty.csv"):
        (strategy.folder / name).unlink()
    path = strategy.folder / "settings.yaml"  # which may name the run
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"efficientad_run": str(other.folder)}))
    assert "novel pictures" in command("evaluate", strategy.folder)[1] and stored_novelty(strategy) is not None
    code, output = command("evaluate", other.folder, "--export-results", results)
    assert code == 0 and "novelty threshold" in output and json.loads(results.read_text()) == other.metrics
    code, output = command("evaluate", other.folder, "--mask-source", "none", "--error-analysis")
    assert code == 1 and "which knows no --error-analysis, --mask-source; leave that out" in output


# --- Beside the strategies


def test_evaluated_runs_are_collected_tabled_and_exported(run, tmp_path):
    experiment = run.folder.parents[1]
    write_anomaly_run(run.settings.changed(seed=7))  # not evaluated
    write_anomaly_run(run.settings.changed(seed=8), status="running")
    (collected,) = figures.collect_efficientad(experiment)
    table = figures.anomaly_table([collected])
    assert table.index.tolist() == ["EfficientAD, seed 42, test", "EfficientAD, seed 42, test_shift"]
    assert table["teacher"].tolist() == [TEACHER["text"]] * 2
    assert table.loc["EfficientAD, seed 42, test", "image AUROC"] == f"{run.metrics['test']['auroc']:.3f}"
    console = Console(record=True, width=200)
    print_comparison(console, experiment, export=tmp_path / "export")
    assert "EfficientAD, from good parts alone" in console.export_text()
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["efficientad.jpg", "efficientad.md"]
    with pytest.raises(RunError, match="no evaluated run"):
        print_comparison(Console(record=True), tmp_path)


def test_one_row_per_picture_with_its_score_and_a_border_at_each_maps_lowest_value():
    model, masks = EfficientADModel("S", 4).eval(), torch.zeros(2, 1, 64, 64)
    masks[0, :, 8:20, 8:20] = 1
    pictures = batch(torch.rand(2, 1, 64, 64), [1, 0], masks, [True, False])
    figure = figures.anomaly_maps_figure(model, pictures, ["defective", "normal"], scale=MapScale(1e6, 2e6))
    headings = [axis.get_title() for axis in figure.axes[:4]]
    assert headings[1].startswith("student–teacher") and headings[3] == "anomaly map\n(absolute)"
    assert figure.axes[3].get_xlabel().startswith("score ") and figure.axes[4].get_ylabel() == "normal"
    maps = torch.stack([torch.full((1, 8, 8), 2.0), torch.full((1, 8, 8), 5.0)])
    maps[0, 0, 3, 3] = 1.0
    shown = figures.framed(maps, model)
    assert shown.shape == (2, 16, 16) and shown[0, 0, 0] == 1.0 and shown[0, 4, 4] == 2.0 and shown[1, 0, 0] == 5.0
