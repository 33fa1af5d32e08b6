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
from filelock import FileLock
from rich.console import Console
from sklearn.metrics import roc_auc_score
from tiny import tiny_settings
from torch.utils.data import DataLoader

from gainmtl_lib.cli import main
from gainmtl_lib.console import print_comparison
from gainmtl_lib.dataset import Batch, build_samples
from gainmtl_lib.efficientad import evaluate as module
from gainmtl_lib.efficientad import figures
from gainmtl_lib.efficientad.data import DatasetProvider, SplitProvider
from gainmtl_lib.efficientad.evaluate import Detector, evaluate_efficientad, find_novel, score_pictures, stored_novelty
from gainmtl_lib.efficientad.model import AnomalyOutput, EfficientADModel
from gainmtl_lib.efficientad.train import load_efficientad
from gainmtl_lib.metrics import MapScale, PixelScores, choose_threshold, novelty_threshold
from gainmtl_lib.readers import DataError, data_digest
from gainmtl_lib.runs import RunError, load_run, save_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An evaluated run; its tests change nothing in it."""
    made = write_anomaly_run(tiny_anomaly_settings(tmp_path_factory.mktemp("evaluate")))
    evaluate_efficientad(made)
    return made


def interrupt(*_, **__):
    raise KeyboardInterrupt


def command(*arguments):
    result = CliRunner().invoke(main, [str(part) for part in arguments], catch_exceptions=False)
    return result.exit_code, " ".join(result.output.split())


# --- A run's own splits


class Given(DatasetProvider):
    """Some batches as every split; without a table the files have no names."""

    def __init__(self, *batches, table=None):
        self.batches, self.known = list(batches), table

    def get_train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    get_val_dataloader = get_test_dataloader = get_train_dataloader

    def table(self, split):
        return self.known


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


def test_one_row_per_file_and_the_numbers_of_every_split(run):
    table, summary = run.predictions, run.metrics
    sizes = SplitProvider(run.settings).split_sizes
    assert not table["image"].duplicated().any()
    assert table["split"].value_counts().to_dict() == {s: n for s, n in sizes.items() if s != "train"}
    assert (table.query("split == 'val'")["label"] == 0).all()  # the anomalies on copies are no files
    assert table["image"].str.startswith("images/").all() and table["mask"].dropna().str.startswith("masks/").all()
    assert summary["teacher"] == TEACHER["text"] and summary["penalty"] == "textures"
    assert summary["val"]["normal"] == summary["val"]["defective"] == summary["val"]["annotated"] == sizes["val"]
    assert {"auroc", "aupro", "pixel_auroc", "f1", "anomaly_iou", "wrong_reason_rate"} <= summary["test"].keys()
    auroc = roc_auc_score(*(table.loc[table["split"] == "test", name] for name in ("label", "anomaly_score")))
    assert summary["test"]["auroc"] == pytest.approx(auroc) and summary["test"].keys() == summary["test_shift"].keys()
    normal = table.query("split == 'val'")["anomaly_score"].to_numpy()
    assert summary["novelty_threshold"] == novelty_threshold(normal)  # to the last digit, or it would call itself novel
    assert (table["predicted"] == (table["anomaly_score"] >= summary["threshold"])).all()
    maps = run.maps["anomaly"]
    assert maps.shape == (len(table), 16, 16) and maps.dtype == np.float16
    peaks = maps.max(axis=(1, 2)).astype(np.float32)  # the border is 0
    assert peaks == pytest.approx(table["anomaly_score"].clip(lower=0), rel=1e-3, abs=1e-6)


def test_results_are_reused_and_made_anew_alike_and_an_interruption_leaves_none(other, monkeypatch):
    table, summary = other.predictions, other.metrics
    again = evaluate_efficientad(other, reuse=False, provider=SplitProvider(other.settings.changed(eval_batch_size=5)))
    with monkeypatch.context() as patch:
        patch.setattr(module, "predict_split", None)
        for told in (again, evaluate_efficientad(load_efficientad(other.folder))):
            pd.testing.assert_frame_equal(told[0], table)
            assert told[1] == summary
    with FileLock(other.folder / ".lock"), pytest.raises(RunError, match="another process is writing to this run"):
        evaluate_efficientad(other, reuse=False)
    monkeypatch.setattr(module.np, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate_efficientad(other, reuse=False)
    assert not other.is_evaluated and not list(other.folder.rglob(".*-????????.*"))
    assert Detector.open(other.folder).threshold is None and Detector.open(other.folder).scale == module.QUANTILE_SCALE


def test_a_run_is_evaluated_on_the_data_that_it_was_trained_on_be_it_ones_own(run, tmp_path):
    maps, masks = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(1)), torch.zeros(4, 1, 64, 64)
    masks[2:, :, 20:30, 20:30] = 1
    provider = Given(batch(maps, [0, 0, 1, 1], masks, [False, False, True, True]))
    own = write_anomaly_run(run.settings.changed(outputs_dir=tmp_path), data_digest=provider.digest)
    table, _ = evaluate_efficientad(own, provider=provider)
    assert table["image"].tolist() == [f"{split} {number}" for split in ("val", "test") for number in range(4)]
    assert table["label"].tolist() == [0, 0, 1, 1] * 2 and own.is_evaluated
    with pytest.raises(
        RunError, match=r"not the data that .*seed42 was trained on \(.*\.Given then, [0-9a-f]{64} here"
    ):
        evaluate_efficientad(own, reuse=False)
    with pytest.raises(RunError, match=r"was trained on \([0-9a-f]{64} then, provider .*Given here"):
        evaluate_efficientad(run, provider=provider)


def test_pixels_count_where_their_truth_is_known():
    maps, masks = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(2)), torch.zeros(4, 1, 64, 64)
    masks[1:3, :, 10:20, 10:20] = 1
    labels, has_mask = [0, 1, 1, 1], [False, True, True, False]  # the last has a defect that nobody marked
    parts = [batch(maps[i : i + 2], labels[i : i + 2], masks[i : i + 2], has_mask[i : i + 2]) for i in (0, 2)]
    table, _, told = module.predict_split(Spoken(), Given(*parts), "test")
    pixels = PixelScores()
    pixels.update(maps[:3], masks[:3])
    assert told == pytest.approx({"pixel_auroc": pixels.auroc(), "aupro": pixels.aupro()})
    assert table["anomaly_iou"].isna().tolist() == [True, False, False, True]
    assert table["defect_area"].iloc[1] == pytest.approx(100 / 64**2)
    assert table["anomaly_score"].astype(np.float32).tolist() == maps.amax(dim=(1, 2, 3)).tolist()
    _, numbers = module.decide(table, 0.5)
    assert (numbers["annotated"], numbers["skipped"], numbers["defective"]) == (2, 1, 3)
    unknown = Given(batch(maps[:1], [1], masks[:1], [False]))
    assert np.isnan([*module.predict_split(Spoken(), unknown, "test")[2].values()]).all()


def test_loaders_and_tables_that_do_not_fit_are_an_error():
    nothing = [torch.zeros(2, 1, side, 64) for side in (64, 96)]
    black, tall = (batch(each, [0, 0], each, [False, False]) for each in nothing)
    table = pd.DataFrame({"image": ["a", "b"], "mask": None, "label": [0, 1], "defect_type": "", "group": "g"})
    for provider, message in (
        (Given(), "the loader of split 'test' yields no image; expected at least one"),
        (Given(black, tall), r"split 'test' yields images of several sizes \(maps of 16x16 and 24x16\)"),
        (Given(black, table=table), "the table of split 'test' has 2 rows or other labels than its loader's 2 images"),
        (Given(black, table=table.drop(columns="group")), "table of split 'test' has no column group; see DatasetProv"),
    ):
        with pytest.raises(DataError, match=message):
            module.predict_split(Spoken(), provider, "test")


def test_decisions_are_those_of_validation_and_a_map_off_the_defect_is_a_wrong_reason():
    scores, labels = np.array([-2.0, -1.0, 0.5, 3.0, 4.0]), np.array([0, 0, 0, 1, 1])
    maps = np.broadcast_to(scores[:, None, None], (5, 2, 2)).astype(np.float16)
    decided = module.decided_on(pd.DataFrame({"label": labels, "anomaly_score": scores}), maps)
    assert decided["threshold"] == choose_threshold(labels, scores, near=None) == 1.75
    assert decided["novelty_threshold"] == 0.5
    assert decided["map_scales"] == {"anomaly": {"floor": 0.5, "ceiling": 3.5}}
    table = pd.DataFrame({"label": [1, 0, 1, 1, 1], "anomaly_score": [5.0, 6.0, 0.0, 7.0, 8.0]})
    table["anomaly_iou"] = table["anomaly_energy_inside"] = table["grid_iou"] = [0.05, np.nan, 0.05, 0.05, 0.5]
    table["anomaly_point_game"] = [0.0, np.nan, 0.0, 1.0, 0.0]
    table, numbers = module.decide(table, 1.0)
    assert table["verdict"].tolist() == ["TP", "FP", "FN", "TP", "TP"]
    assert table["wrong_reason"].tolist() == [True, False, False, False, False]
    assert numbers["wrong_reason_rate"] == pytest.approx(1 / 3) and numbers["auroc"] == 0.5


# --- Pictures from anywhere


def predict(*arguments):
    return command("efficientad", "predict", *arguments)


def test_scores_are_those_of_the_evaluation_at_any_size_and_a_bad_picture_gives_its_error(run, tmp_path, monkeypatch):
    table = run.predictions.query("split == 'test'")
    paths = [run.settings.data_root / name for name in table["image"]]
    truncate_file(broken := write_picture(tmp_path / "broken.png", size=(64, 64)))
    scored = list(score_pictures(run, [broken, *paths], failed=(failed := [])))
    assert [one.path for one in scored] == paths and scored[0].size == (64, 64)
    assert [one.score for one in scored] == pytest.approx(table["anomaly_score"].tolist(), rel=1e-4)
    with pytest.raises(DataError, match=rf"{broken}.*"):
        list(score_pictures(run, [broken]))
    assert len(failed) == 1 and "broken.png" in failed[0]
    sizes, own = [], run.model.forward
    monkeypatch.setattr(run.model, "forward", lambda images: sizes.append(len(images)) or own(images))
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 2 * 64 * 64)
    pictures = score_pictures(Detector(run.model, run.settings.changed(precision="bf16"), ""), paths[:3])
    again = [next(pictures).score]
    assert not torch.is_autocast_enabled("cpu")  # the caller's own work is not the model's
    again += [one.score for one in pictures]
    assert again == pytest.approx([one.score for one in scored[:3]], rel=0.1) and again[0] != scored[0].score
    assert sizes == [2, 1]
    paths = [write_picture(tmp_path / f"{n}.png", size=size) for n, size in enumerate([(90, 50), (64, 128)])]
    letterbox = replace(Detector.open(run.folder), settings=run.settings.changed(resize="letterbox"))
    scored = list(score_pictures(letterbox, paths, image_size=(64, 96)))
    assert [(one.size, one.anomaly_map.shape) for one in scored] == [((90, 50), (64, 96)), ((64, 128), (64, 96))]


def test_the_best_checkpoint_of_a_run_is_the_run_and_others_stand_alone(run, tmp_path):
    by_run, best = Detector.open(run.folder), Detector.open(run.folder / "checkpoints/best.ckpt")
    assert by_run.threshold == best.threshold == run.metrics["threshold"] and by_run.scale == best.scale == run.scale
    path = write_checkpoint(untrained(run.settings), run.settings, tmp_path / "last.ckpt")
    alone = Detector.open(path)
    assert alone.threshold is None and alone.scale is module.QUANTILE_SCALE and alone.teacher == TEACHER["text"]
    picture = write_picture(tmp_path / "part.png", size=(64, 64))
    code, output = predict(path, picture, "--output", tmp_path / "out")
    assert code == 0 and "no threshold: the run is not evaluated" in output
    scores = pd.read_csv(tmp_path / "out/scores.csv").iloc[0]
    assert np.isfinite(scores["anomaly_score"]) and scores[["threshold", "verdict", "anomalous"]].isna().all()


@pytest.mark.parametrize("size", [(400, 20), (64, 96)])
def test_the_heat_map_is_on_the_absolute_scale_and_narrow_pictures_keep_room_for_words(run, tmp_path, size):
    (scored,) = score_pictures(run, [write_picture(tmp_path / "part.png", size=size)])
    detector = replace(Detector.open(run.folder), scale=MapScale(0.1, 0.5))
    width, colours = max(figures.NARROWEST, round(figures.SIDE * size[1] / max(size))) + 6, []
    for value in (0.1, 0.3):
        scored.anomaly_map[:] = value
        pixels = figures.drawn(detector, scored)
        assert pixels.shape[1] == 2 * width
        heat = pixels[: round(figures.SIDE * size[0] / max(size)), width:].astype(int)
        colours.append(float((heat.max(axis=2) - heat.min(axis=2)).mean()))
    assert colours[0] == 0 and colours[1] > 1  # grey: at the floor nothing is found


def test_a_folder_is_scored_and_drawn(run, tmp_path):
    folder, out = run.settings.data_root / "images/test", tmp_path / "[x]"
    code, output = predict(run.folder, folder, "--output", out)
    assert code == 0 and TEACHER["text"] in output and "[x]" in output
    table = pd.read_csv(out / "scores.csv")
    names = [str(run.settings.data_root / image) for image in run.predictions["image"]]
    joined = table.merge(run.predictions.assign(image=names), on="image", suffixes=("", "_known"))
    assert len(joined) == len(table) == 6
    assert (joined["verdict"] == joined["predicted"].map({0: "normal", 1: "defective"})).all()
    assert (table["anomalous"] == (table["anomaly_score"] > run.metrics["novelty_threshold"])).all()
    widths = {path.relative_to(out): cv2.imread(str(path)).shape[1] for path in out.rglob("*.png")}
    assert set(widths) == {path.relative_to(folder) for path in folder.rglob("*.png")}
    for path, width in widths.items():  # the last panel shows the ground truth
        assert width == (3 if path.parent.name == "defective" else 2) * (figures.SIDE + 6)


def test_the_specifications_spelling(run, tmp_path):
    best, target = run.folder / "checkpoints/best.ckpt", tmp_path / "results" / "output.png"
    first = min((run.settings.data_root / "images/test/defective").rglob("*.png"))
    options = ("--model_path", best, "--image_path", first, "--output_path", target, "--image_size", 96, 80)
    code, output = predict(*options)
    assert code == 0 and "computed at 96x80; thresholds and scale are those of 64x64" in output
    assert cv2.imread(str(target)).shape[1] == 3 * (figures.SIDE + 6)
    assert pd.read_csv(target.with_suffix(".csv"))["image"].tolist() == [str(first)]
    for place, expected in (("one.png", 1), ("all", 6)):  # one is the first defective one
        code, _ = predict("--model_path", best, "--is_synthetic", "True", "--output_path", tmp_path / place)
        scores = pd.read_csv(tmp_path / ("one.csv" if expected == 1 else "all/scores.csv"))
        assert code == 0 and len(scores) == expected and str(first) in scores["image"].tolist()


def test_a_given_mask_is_drawn_and_what_cannot_be_used_is_named(run, tmp_path, monkeypatch):
    folder, mask = tmp_path / "pictures", np.zeros((64, 64), np.uint8)
    good, broken = (write_picture(folder / name, size=(64, 64)) for name in ("good.png", "broken.png"))
    mask[16:48, 16:48] = 255
    cv2.imwrite(str(tmp_path / "where.png"), mask)
    assert predict(run.folder, good, "--mask", tmp_path / "where.png", "--output", tmp_path / "out.png")[0] == 0
    truth = cv2.imread(str(tmp_path / "out.png"))[: figures.SIDE, 2 * (figures.SIDE + 6) : -6]
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
        to: "give the folder of a run or a checkpoint file",
        (run.folder, *to): "give either pictures or --is-synthetic True",
        (run.folder, twin, jpeg, *to): "would be drawn to the same file",
        (run.folder, twin, jpeg, "--output", tmp_path / "o.png"): "is the file of one picture, got 2; give a folder",
        (run.folder, twin, "--mask", twin, "--mask", twin, *to): "1 pictures but 2 masks",
        (run.folder, tmp_path / "gone.png", *to): "no such picture",
        (run.folder, tmp_path / "empty", *to): "no folder of png, jpg,",
        (run.folder, twin, "--image-size", "0", "0", *to): "at least 64x64 pixels, got 0x0",
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
    """A strategy's evaluated run on the same data, before and after it was flagged."""
    plain = write_run(tmp_path_factory.mktemp("novelty"), data_root=run.settings.data_root).folder
    flagged = shutil.copytree(plain, tmp_path_factory.mktemp("flagged") / "run")
    find_novel(load_run(flagged), run)
    return plain, flagged


@pytest.fixture
def strategy(made, tmp_path):
    return load_run(shutil.copytree(made[0], tmp_path / "run"))


@pytest.fixture
def other(run, tmp_path):
    return load_efficientad(shutil.copytree(run.folder, tmp_path / "other"))


def edit(path, old, new):
    path.write_text(path.read_text().replace(old, new))


def test_scores_are_those_of_the_model_and_the_threshold_that_of_its_evaluation(strategy, other):
    (other.folder / "metrics.json").unlink()  # evaluated on the way
    before = {path: path.read_bytes() for path in strategy.folder.iterdir() if path.is_file()}
    found = find_novel(strategy, other.folder)
    scores = other.predictions.set_index("image")["anomaly_score"]
    root = strategy.settings.data_root
    mine = found.table.assign(image=[str(path).removeprefix(f"{root}/") for path in found.table["image"]])
    joined = mine[mine["image"].isin(scores.index)]
    assert len(joined) == len(scores) > 12  # EfficientAD leaves the defects of validation out
    np.testing.assert_allclose(joined["anomaly_score"], scores.loc[joined["image"]], rtol=1e-4)
    assert found.threshold == other.metrics["novelty_threshold"]
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
    edit(strategy.folder / "predictions.csv", "0.5,", "0.51,")
    assert stored_novelty(strategy) is None and module.out_of_date(strategy)
    find_novel(strategy, other)
    model = untrained(other.settings)
    torch.nn.init.normal_(model.student.convolutions[-1].weight, generator=torch.Generator().manual_seed(4))
    save_weights(model, other.folder / "model.safetensors")
    assert stored_novelty(strategy) is None and module.out_of_date(strategy)
    code, output = command("evaluate", strategy.folder)
    assert code == 0 and "novel pictures: not shown, what is stored is of other predictions or of an" in output
    other = type(other)(other.folder)  # trained anew in the same place
    evaluate_efficientad(other, reuse=False)
    assert find_novel(strategy, other).table["anomaly_score"].tolist() != found.table["anomaly_score"].tolist()
    shutil.rmtree(other.folder)  # or is not there any more, and has not changed
    assert stored_novelty(strategy) is not None and not module.out_of_date(strategy)


def test_damaged_flags_are_told_and_made_anew(made, run, tmp_path):
    flagged = load_run(shutil.copytree(made[1], tmp_path / "run"))
    for name, damage, message in (
        ("novelty.json", lambda text: "{}", "cannot be used: 'efficientad_run'; remove it, or flag anew: gainmtl eval"),
        ("novelty.json", lambda text: text[:40], "cannot be read"),
        ("novelty.csv", lambda text: "image,split\n", "cannot be used"),
        ("novelty.csv", lambda text: text.replace("True", "perhaps").replace("False", "no"), "cannot be used"),
        ("novelty.csv", lambda text: "\n".join(text.splitlines()[:-1]), "not of the pictures in predictions.csv"),
    ):
        path = flagged.folder / name
        whole = path.read_text()
        path.write_text(damage(whole))
        with pytest.raises(RunError, match=rf"{name}.*{message}"):
            stored_novelty(flagged)
        path.write_text(whole)
    path.write_text("image\n")
    assert find_novel(flagged, run).summary == stored_novelty(flagged).summary


def test_what_learnt_from_the_test_pictures_is_refused_also_by_another_path(tmp_path):
    write_generic(tmp_path / "data", splits=("train",), per_class=12)
    same = {"dataset_type": "generic", "val_ratio": 0.25, "test_ratio": 0.25}
    run, settings = write_run(tmp_path, split_seed=1, **same), tiny_anomaly_settings(tmp_path, split_seed=1, **same)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    leaking = write_anomaly_run(settings.changed(seed=6, split_seed=2, data_root=tmp_path / "link"))
    with pytest.raises(RunError, match=r"learnt from \d of the 6 test pictures, such as .*\.png; what it says"):
        find_novel(run, leaking)
    assert not leaking.is_evaluated  # told before the work is done
    assert find_novel(run, write_anomaly_run(settings.changed(seed=3))).kinds.index[0] == ("test", "normal")


def test_what_cannot_be_flagged_is_told(strategy, other):
    with pytest.raises(RunError, match="a run of strategy S5, not of EfficientAD"):
        find_novel(strategy, strategy.folder)
    edit(other.folder / "manifest.json", other.manifest["data_digest"], "provider my.Provider")
    with pytest.raises(RunError, match="which pictures it learnt from is not known, because its data changed since or"):
        find_novel(strategy, load_efficientad(other.folder))
    edit(strategy.folder / "manifest.json", strategy.manifest["data_digest"], "another")
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
    (strategy.folder / "novelty.json").unlink()
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


def test_one_row_per_picture_with_its_score_and_a_border_at_each_maps_lowest_value(monkeypatch):
    model, masks, shown = EfficientADModel("S", 4).eval(), torch.zeros(2, 1, 64, 64), {}
    grid, own = figures.map_grid, (torch.rand(2, 1, 64, 64), [1, 0], masks, [True, False])
    monkeypatch.setattr(figures, "map_grid", lambda *given, **how: shown.update(given[2]) or grid(*given, **how))
    figure = figures.anomaly_maps_figure(model, batch(*own), ["defective", "normal"], scale=MapScale(1e6, 2e6))
    headings = [axis.get_title() for axis in figure.axes[:4]]
    assert headings[1].startswith("student–teacher") and headings[3] == "anomaly map\n(absolute)"
    assert figure.axes[3].get_xlabel().startswith("score ") and figure.axes[4].get_ylabel() == "normal"
    for name in ("student–teacher", "student–autoencoder"):
        assert shown[name].shape == (2, 16, 16) and (shown[name][:, 0] == 0).all()
        assert (shown[name][:, 4:-4, 4:-4].min(axis=(1, 2)) == 0).all() and (shown[name].max(axis=(1, 2)) > 0).all()
