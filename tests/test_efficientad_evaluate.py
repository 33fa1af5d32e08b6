"""EfficientAD's evaluation, pictures from anywhere, novel pictures, and its figures and rows beside the strategies."""

import json
import shutil
from dataclasses import replace
from unittest.mock import Mock

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anomaly_runs import TEACHER, tiny_anomaly_settings, untrained, write_anomaly_run, write_checkpoint
from audited import row, write_audited
from click.testing import CliRunner
from drawn_data import truncate_file, write_mask, write_picture
from rich.console import Console
from tiny import tiny_settings
from torch.utils.data import DataLoader

from gainmtl_lib.cli import main
from gainmtl_lib.console import print_comparison
from gainmtl_lib.dataset import Batch, build_samples
from gainmtl_lib.efficientad import evaluate as module
from gainmtl_lib.efficientad import figures
from gainmtl_lib.efficientad.data import DatasetProvider, SplitProvider
from gainmtl_lib.efficientad.evaluate import Detector, evaluate_efficientad, find_novel, score_pictures, stored_novelty
from gainmtl_lib.efficientad.model import AnomalyOutput
from gainmtl_lib.efficientad.train import load_efficientad
from gainmtl_lib.findings import DataError
from gainmtl_lib.metrics import MapScale, PixelScores, calibration_error, novelty_threshold
from gainmtl_lib.readers import data_digest
from gainmtl_lib.runs import RunError, load_run, save_weights, write_json


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = write_anomaly_run(tiny_anomaly_settings(tmp_path_factory.mktemp("evaluate")))
    evaluate_efficientad(made)
    return made


@pytest.fixture
def other(run, tmp_path):
    return load_efficientad(shutil.copytree(run.folder, tmp_path / "other"))


def command(*arguments):
    result = CliRunner().invoke(main, [str(part) for part in arguments], catch_exceptions=False)
    return result.exit_code, " ".join(result.output.split())


class Given(DatasetProvider):
    """Some batches as every split; without a table the files have no names."""

    def __init__(self, *batches, table=None):
        self.batches, self.known = list(batches), table

    def get_train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    get_val_dataloader = get_test_dataloader = get_train_dataloader

    def table(self, split):
        return self.known


class Spoken(torch.nn.Linear):
    """Says what the red channel holds."""

    def forward(self, images):
        maps = images[:, :1]
        return AnomalyOutput(maps, maps.amax(dim=(1, 2, 3)), torch.nn.functional.avg_pool2d(maps, 4))


def spoken(*batches, table=None):
    return module.predict_split(Spoken(1, 1), Given(*batches, table=table), "test")


def batch(maps, masks, labels, has_mask):
    images = maps.expand(-1, 3, -1, -1)
    return Batch(images, torch.tensor(labels), masks, torch.tensor(has_mask), torch.arange(len(labels)))


MAPS, MASKS = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(2)), torch.zeros(4, 1, 64, 64)
MASKS[1:3, :, 10:20, 10:20] = 1
# The last has a defect that nobody marked.
PARTS = (batch(MAPS[:2], MASKS[:2], [0, 1], [False, True]), batch(MAPS[2:], MASKS[2:], [1, 1], [True, False]))


def test_one_row_per_file_and_the_numbers_of_every_split(run):
    table, summary, sizes = run.predictions, run.metrics, SplitProvider(run.settings).split_sizes
    assert table["split"].value_counts().to_dict() == {s: n for s, n in sizes.items() if s != "train"}
    val = table.query("split == 'val'")
    assert table["image"].is_unique and (val["label"] == 0).all()  # the anomalies on copies are no files
    assert table["image"].str.startswith("images/").all() and table["mask"].dropna().str.startswith("masks/").all()
    assert summary["teacher"] == TEACHER["text"] and summary["penalty"] == "textures"
    assert summary["val"]["normal"] == summary["val"]["defective"] == summary["val"]["annotated"] == sizes["val"]
    assert summary["novelty_threshold"] == novelty_threshold(val["anomaly_score"].to_numpy())  # to the last digit
    assert (table["predicted"] == (table["anomaly_score"] >= summary["threshold"])).all()
    peaks = run.maps["anomaly"].max(axis=(1, 2)).astype(np.float32)  # the border is 0
    assert peaks == pytest.approx(table["anomaly_score"].clip(lower=0), rel=1e-3, abs=1e-6)


def test_results_are_reused_and_made_anew_alike_and_an_interruption_leaves_none(other, monkeypatch):
    table, summary = other.predictions, other.metrics
    again = evaluate_efficientad(other, reuse=False, provider=SplitProvider(other.settings.changed(eval_batch_size=5)))
    with monkeypatch.context() as patch:
        patch.setattr(module, "predict_split", None)
        for told in (again, evaluate_efficientad(load_efficientad(other.folder))):
            pd.testing.assert_frame_equal(told[0], table)
            assert told[1] == summary
    monkeypatch.setattr(module.np, "save", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate_efficientad(other, reuse=False)
    assert not other.is_evaluated and not list(other.folder.rglob(".*-????????.*"))
    assert Detector.open(other.folder).threshold is None and Detector.open(other.folder).scale == module.QUANTILE_SCALE


def test_a_run_is_evaluated_on_the_data_that_it_was_trained_on_be_it_ones_own(run, tmp_path):
    provider = Given(*PARTS)
    own = write_anomaly_run(run.settings.changed(outputs_dir=tmp_path), data_digest=provider.digest)
    table, _ = evaluate_efficientad(own, provider=provider)
    assert table["image"].tolist() == [f"{split} {number}" for split in ("val", "test") for number in range(4)]
    assert table["label"].tolist() == [0, 1, 1, 1] * 2 and own.is_evaluated
    with pytest.raises(RunError, match=r"not the data that .*seed42 was trained on \(.*\.Given then, [0-9a-f]{64} h"):
        evaluate_efficientad(own, reuse=False)
    with pytest.raises(RunError, match=r"was trained on \([0-9a-f]{64} then, provider .*Given here"):
        evaluate_efficientad(run, provider=provider)


def test_pixels_count_where_their_truth_is_known_and_what_does_not_fit_is_an_error():
    (table, _, told), pixels = spoken(*PARTS), PixelScores()
    pixels.update(MAPS[:3], MASKS[:3])
    assert told == pytest.approx({"pixel_auroc": pixels.auroc(), "aupro": pixels.aupro()})
    assert table["anomaly_iou"].isna().tolist() == [True, False, False, True]
    assert table["defect_area"].iloc[1] == pytest.approx(100 / 64**2)
    assert table["anomaly_score"].astype(np.float32).tolist() == MAPS.amax(dim=(1, 2, 3)).tolist()
    _, numbers = module.decide(table, {"threshold": 0.5, "calibration": (1.0, 0.0)})
    assert (numbers["annotated"], numbers["skipped"], numbers["defective"]) == (2, 1, 3)
    assert np.isnan([*spoken(batch(MAPS[:1], MASKS[:1], [1], [False]))[2].values()]).all()
    black, tall = (batch(*[torch.zeros(2, 1, side, 64)] * 2, [0, 0], [False, False]) for side in (64, 96))
    table = pd.DataFrame({"image": ["a", "b"], "mask": None, "label": [0, 1], "defect_type": "", "group": "g"})
    for batches, known, message in (
        ((), None, "the loader of split 'test' yields no image; expected at least one"),
        ((black, tall), None, r"split 'test' yields images of several sizes \(maps of 16x16 and 24x16\)"),
        ((black,), table, "the table of split 'test' has 2 rows or other labels than its loader's 2 images"),
        ((black,), table.drop(columns="group"), "table of split 'test' has no column group; see DatasetProv"),
    ):
        with pytest.raises(DataError, match=message):
            spoken(*batches, table=known)


def test_decisions_are_those_of_validation_and_a_map_off_the_defect_is_a_wrong_reason():
    scores, labels = np.array([-2.0, -1.0, 0.5, 3.0, 4.0]), np.array([0, 0, 0, 1, 1])
    maps = np.broadcast_to(scores[:, None, None], (5, 2, 2)).astype(np.float16)
    decided = module.decided_on(pd.DataFrame({"label": labels, "anomaly_score": scores}), maps)
    assert (decided["threshold"], decided["novelty_threshold"]) == (1.75, 0.5)
    assert decided["map_scales"] == {"anomaly": {"floor": 0.5, "ceiling": 3.5}}
    given = {"label": [1, 0, 1, 1, 1], "anomaly_score": [5.0, 6, 0, 7, 8], "anomaly_point_game": [0, np.nan, 0, 1, 0]}
    shares = {name: [0.05, np.nan, 0.05, 0.05, 0.5] for name in ("anomaly_iou", "anomaly_energy_inside", "grid_iou")}
    table, numbers = module.decide(pd.DataFrame(given | shares), {"threshold": 1.0, "calibration": (1.0, -6.0)})
    assert table["probability"].tolist() == pytest.approx((1 / (1 + np.exp(6 - table["anomaly_score"]))).tolist())
    assert numbers["ece"] == pytest.approx(
        calibration_error(table["label"].to_numpy(), table["probability"].to_numpy())
    )
    assert table["verdict"].tolist() == ["TP", "FP", "FN", "TP", "TP"]
    assert table["wrong_reason"].tolist() == [True, False, False, False, False]
    assert numbers["wrong_reason_rate"] == pytest.approx(1 / 3) and numbers["auroc"] == 0.5


def predict(*arguments):
    return command("efficientad", "predict", *arguments)


def test_scores_are_those_of_the_evaluation_at_any_size_and_a_bad_picture_gives_its_error(run, tmp_path, monkeypatch):
    table = run.predictions.query("split == 'test'")
    paths = [run.settings.data_root / name for name in table["image"]]
    truncate_file(broken := write_picture(tmp_path / "broken.png", size=(64, 64)))
    scored = list(score_pictures(run, [broken, *paths], failed=(failed := [])))
    assert [one.path for one in scored] == paths and len(failed) == 1 and "broken.png" in failed[0]
    assert [one.score for one in scored] == pytest.approx(table["anomaly_score"].tolist(), rel=1e-4)
    with pytest.raises(DataError, match=f"{broken}"):
        list(score_pictures(run, [broken]))
    (other,) = score_pictures(run, [write_picture(tmp_path / "other.png", size=(90, 50))], image_size=(64, 96))
    assert (other.size, other.anomaly_map.shape) == ((90, 50), (64, 96))
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 2 * 64 * 64)
    pictures = score_pictures(Detector(run.model, run.settings.changed(precision="bf16"), ""), paths[:3])
    first = next(pictures).score
    assert not torch.is_autocast_enabled("cpu")  # the caller's own work is not the model's
    again = [first, *(one.score for one in pictures)]
    assert again == pytest.approx([one.score for one in scored[:3]], rel=0.1) and first != scored[0].score


def test_the_best_checkpoint_of_a_run_is_the_run_and_others_stand_alone(run, tmp_path):
    by_run, best = Detector.open(run.folder), Detector.open(run.folder / "checkpoints/best.ckpt")
    assert by_run.threshold == best.threshold == run.metrics["threshold"] and by_run.scale == best.scale == run.scale
    path = write_checkpoint(untrained(run.settings), run.settings, tmp_path / "last.ckpt")
    alone, picture = Detector.open(path), write_picture(tmp_path / "a.png", size=(64, 64))
    assert alone.scale is module.QUANTILE_SCALE and alone.decide(3.0) == (None, None)
    assert "no threshold: the run is not evaluated" in predict(path, picture, "--output", tmp_path / "out.png")[1]


def test_a_folder_or_one_picture_is_scored_and_drawn_also_in_the_specifications_spelling(run, tmp_path):
    folder, out, target = run.settings.data_root / "images/test", tmp_path / "[x]", tmp_path / "results/output.png"
    code, output = predict(run.folder, folder, "--output", out)
    assert code == 0 and TEACHER["text"] in output and "[x]" in output
    drawn, asked = ({path.relative_to(place) for path in place.rglob("*.png")} for place in (out, folder))
    table = pd.read_csv(out / "scores.csv")
    names = [str(run.settings.data_root / image) for image in run.predictions["image"]]
    known = run.predictions.set_axis(names).loc[table["image"], "predicted"]
    assert table["verdict"].tolist() == known.map({0: "normal", 1: "defective"}).tolist() and drawn == asked
    best, first = run.folder / "checkpoints/best.ckpt", min((folder / "defective").rglob("*.png"))
    code, output = predict("--model_path", best, "--image_path", first, "--output_path", target, "--image_size", 96, 80)
    assert code == 0 and "computed at 96x80; thresholds and scale are those of 64x64" in output
    assert cv2.imread(str(target)).shape[1] == 3 * (figures.SIDE + 6)  # the last panel shows the ground truth
    for place, listed, expected in (("one.png", "one.csv", 1), ("all", "all/scores.csv", 6)):
        code, _ = predict("--model_path", best, "--is_synthetic", "True", "--output_path", tmp_path / place)
        scores = pd.read_csv(tmp_path / listed)
        assert code == 0 and len(scores) == expected and str(first) in scores["image"].tolist()


def test_heat_is_on_the_absolute_scale_a_given_mask_is_drawn_and_what_cannot_be_used_is_named(run, tmp_path):
    detector = replace(Detector.open(run.folder), scale=MapScale(0.1, 0.5))
    good, broken = (write_picture(tmp_path / "pictures" / name, size=(64, 64)) for name in ("good.png", "broken.png"))
    (scored,) = score_pictures(detector, [good])
    for value, least, most in ((0.1, 0, 0), (0.3, 1, 255)):  # grey: at the floor nothing is found
        scored.anomaly_map[:] = value
        heat = figures.drawn(detector, scored)[: figures.SIDE, figures.SIDE + 6 :]
        assert least <= np.ptp(heat, axis=2).mean() <= most
    mask = write_mask(tmp_path / "where.png", size=(64, 64), box=(slice(16, 48), slice(16, 48)))
    assert predict(run.folder, good, "--mask", mask, "--output", tmp_path / "out.png")[0] == 0
    truth = cv2.imread(str(tmp_path / "out.png"))[: figures.SIDE, 2 * (figures.SIDE + 6) : -6]
    assert (truth > 127).mean() == pytest.approx(0.25, abs=0.02)
    truncate_file(broken)
    code, output = predict(run.folder, good.parent, "--output", tmp_path / "out")
    assert code == 1 and "not scored:" in output and "broken.png" in output
    assert pd.read_csv(tmp_path / "out/scores.csv")["image"].tolist() == [str(good)]


def test_what_does_not_fit_is_said_and_pictures_are_never_overwritten(run, tmp_path):
    twin, jpeg = write_picture(tmp_path / "p/a.png", size=(64, 64)), write_picture(tmp_path / "p/a.jpg", size=(64, 64))
    generic = tiny_anomaly_settings(tmp_path, dataset_type="generic")
    other = write_checkpoint(untrained(generic), generic, tmp_path / "a.ckpt")
    before, to = twin.read_bytes(), ("--output", tmp_path / "o")
    cases = {
        to: "give the folder of a run or a checkpoint file",
        (run.folder, *to): "give either pictures or --is-synthetic True",
        (run.folder, twin, jpeg, *to): "would be drawn to the same file",
        (run.folder, twin, jpeg, "--output", tmp_path / "o.png"): "is the file of one picture, got 2; give a folder",
        (run.folder, twin, "--mask", twin, "--mask", twin, *to): "1 pictures but 2 masks",
        (run.folder, tmp_path / "gone.png", *to): "no such picture, or no folder of png, jpg,",
        (other, "--is-synthetic", "True", *to): "the run's data is of type generic, not synthetic",
        (run.folder, twin, "--output", twin.parent): "would overwrite",
        (run.folder, twin.parent, "--output", twin.parent / "drawn"): "whose pictures are to be scored; choose another",
    }
    for arguments, expected in cases.items():
        code, output = predict(*arguments)
        assert code in (1, 2) and expected in output, (arguments, output)
    assert not (tmp_path / "o").exists() and twin.read_bytes() == before


def test_novel_is_what_passes_although_it_is_unlike_the_good_parts_and_every_kind_is_counted():
    rows = [
        ("a", "val", 0, "normal", 0, 0.9), ("b", "test", 0, "normal", 0, 0.1), ("c", "test", 0, "normal", 1, 0.8),
        ("d", "test", 0, "normal", 0, 0.7), ("e", "test", 1, "stain", 1, 0.9), ("f", "test", 1, "stain", 0, 0.5),
        ("g", "test", 1, "dent", 0, 0.6), ("h", "test_shift", 1, None, 0, 0.2),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["image", "split", "label", "defect_type", "predicted", "score"])
    flagged, kinds = module.flag(table, table["score"], 0.5, {"stain"})
    assert "".join(flagged.loc[flagged["anomalous"], "image"]) == "acdeg"  # f lies at the threshold, not above it
    assert "".join(flagged.loc[flagged["novel"], "image"]) == "adg"
    names = ("split", "name", "count", "called_defective", "anomalous", "novel", "unseen")
    assert [tuple(kind[name] for name in names) for kind in kinds] == [
        ("test", "normal", 3, 1, 2, 1, False), ("test", "dent", 1, 0, 1, 1, True),
        ("test", "stain", 2, 1, 1, 0, False), ("test_shift", "unknown", 1, 0, 0, 0, True),
    ]  # fmt: skip


@pytest.fixture
def strategy(run, tmp_path):
    """A strategy's evaluated run on the same data, every second picture called defective."""
    same = {name: getattr(run.settings, name) for name in ("data_root", "dataset_type", "num_samples")}
    samples = build_samples(tiny_settings(tmp_path, "S5", **same))
    kept = samples.loc[samples["split"] != "train", ["split", "label", "image", "mask", "defect_type"]]
    rows = [row(**entry, probability=0.5 + 0.1 * (n % 2)) for n, entry in enumerate(kept.to_dict("records"))]
    manifest = {"strategy": "S5", "data_digest": data_digest(samples)}
    return load_run(write_audited(tmp_path / "strategy", rows, threshold=0.55, manifest=manifest, **same))


def test_scores_are_those_of_the_model_and_flags_belong_to_one_evaluation_and_one_training(strategy, other):
    (other.folder / "metrics.json").unlink()  # evaluated on the way
    found = find_novel(strategy, other.folder)
    table = found.table.assign(image=found.table["image"].str.removeprefix(f"{strategy.settings.data_root}/"))
    joined = table.merge(other.predictions, on="image")
    assert len(joined) == len(other.predictions) > 12  # EfficientAD leaves the defects of validation out
    np.testing.assert_allclose(joined["anomaly_score_x"], joined["anomaly_score_y"], rtol=1e-4)
    assert found.threshold == other.metrics["novelty_threshold"] and found.teacher == TEACHER["text"]
    assert not found.kinds["unseen"].any()  # drawn defects are all in training
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "score_pictures", None)
        pd.testing.assert_frame_equal(find_novel(load_run(strategy.folder), other).table, found.table)
    assert found.summary == stored_novelty(strategy).summary and not module.out_of_date(strategy)
    path = strategy.folder / "predictions.csv"
    path.write_text(path.read_text().replace("0.5,", "0.51,"))
    assert stored_novelty(strategy) is None and module.out_of_date(strategy)
    find_novel(strategy, other)
    model = untrained(other.settings)
    torch.nn.init.normal_(model.student.convolutions[-1].weight, generator=torch.Generator().manual_seed(4))
    save_weights(model, other.folder / "model.safetensors")
    assert stored_novelty(strategy) is None and module.out_of_date(strategy)
    assert "novel pictures: not shown, what is stored is of other pred" in command("evaluate", strategy.folder)[1]
    other = type(other)(other.folder)  # trained anew in the same place
    evaluate_efficientad(other, reuse=False)
    assert find_novel(strategy, other).table["anomaly_score"].tolist() != found.table["anomaly_score"].tolist()
    shutil.rmtree(other.folder)  # or is not there any more, and has not changed
    assert stored_novelty(strategy) is not None and not module.out_of_date(strategy)


def test_damaged_flags_are_made_anew_and_what_learnt_from_the_test_pictures_is_refused(strategy, other, tmp_path):
    find_novel(strategy, other)
    for name, damage, message in (
        ("novelty.json", lambda text: "{}", "cannot be used: 'efficientad_run'; remove it, or flag anew: gainmtl eval"),
        ("novelty.json", lambda text: text[:40], "cannot be read"),
        ("novelty.csv", lambda text: text.replace("True", "perhaps").replace("False", "no"), "cannot be used"),
        ("novelty.csv", lambda text: "\n".join(text.splitlines()[:-1]), "not of the pictures in predictions.csv"),
    ):
        path = strategy.folder / name
        whole = path.read_text()
        path.write_text(damage(whole))
        with pytest.raises(RunError, match=rf"{name}.*{message}"):
            stored_novelty(strategy)
        path.write_text(whole)
    path.write_text("image\n")
    assert find_novel(strategy, other).summary == stored_novelty(strategy).summary
    write_json(other.folder / "manifest.json", other.manifest | {"data_digest": "provider my.Provider"})
    with pytest.raises(RunError, match="which pictures it learnt from is not known, because its data changed since or"):
        find_novel(strategy, load_efficientad(other.folder), reuse=False)
    root, link = str(strategy.settings.data_root), tmp_path / "link"  # also by another path
    link.symlink_to(root)
    samples = build_samples(strategy.settings)
    leaking = samples.assign(image=samples["image"].str.replace(root, str(link)), split="test")
    with pytest.raises(RunError, match=r"learnt from \d+ of the 40 test pictures, such as .*\.png; what it says"):
        module.check_unseen(other, leaking)


def test_the_command_flags_prints_and_exports(strategy, other, tmp_path):
    results, options = tmp_path / "results.json", ("--efficientad-run", other.folder)
    code, output = command("evaluate", strategy.folder, *options, "--export-results", results)
    assert code == 0 and "test: novel pictures, anomaly score above" in output and TEACHER["text"] in output
    assert json.loads(results.read_text())["novelty"]["teacher"] == TEACHER["text"]
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


def test_evaluated_runs_are_collected_tabled_and_exported(run, tmp_path):
    write_anomaly_run(run.settings.changed(seed=7))  # not evaluated
    write_anomaly_run(run.settings.changed(seed=8), status="running")
    table = figures.anomaly_table(figures.collect_efficientad(run.folder.parents[1]))
    assert table.index.tolist() == ["EfficientAD, seed 42, test", "EfficientAD, seed 42, test_shift"]
    assert table["teacher"].tolist() == [TEACHER["text"]] * 2
    print_comparison(console := Console(record=True, width=200), run.folder.parents[1], export=tmp_path / "export")
    assert "EfficientAD, from good parts alone" in console.export_text()
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["efficientad.jpg", "efficientad.md"]
