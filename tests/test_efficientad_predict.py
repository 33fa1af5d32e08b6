"""Pictures from anywhere through a run or a checkpoint: scores, drawings, ground truth, and what goes wrong."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from anomaly_runs import TEACHER, tiny_anomaly_settings, untrained, write_anomaly_run, write_checkpoint
from click.testing import CliRunner
from drawn_data import truncate_file, write_picture

from gainmtl_lib import figures as drawing
from gainmtl_lib.backbone import ModelError
from gainmtl_lib.cli import main
from gainmtl_lib.efficientad.evaluate import (
    QUANTILE_NAME,
    QUANTILE_SCALE,
    Detector,
    evaluate_efficientad,
    picture_paths,
    score_pictures,
)
from gainmtl_lib.efficientad.figures import NARROWEST, SIDE, drawn
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.readers import DataError, masks_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    finished = write_anomaly_run(tiny_anomaly_settings(tmp_path_factory.mktemp("predict")))
    evaluate_efficientad(finished)
    return finished


@pytest.fixture(scope="module")
def defective(run):
    return sorted((run.settings.data_root / "images/test/defective").rglob("*.png"))


def predict(*arguments):
    return CliRunner().invoke(main, ("efficientad", "predict", *map(str, arguments)), catch_exceptions=False)


def scores_of(path):
    return pd.read_csv(path)


def test_scores_are_those_of_the_evaluation(run):
    table = run.predictions.query("split == 'test'")
    paths = [run.settings.data_root / name for name in table["image"]]
    scored = list(score_pictures(run.model, paths, image_size=(64, 64), batch_size=4, device="cpu"))
    assert [one.path for one in scored] == paths
    assert [one.score for one in scored] == pytest.approx(table["anomaly_score"].tolist(), rel=1e-4)
    assert scored[0].anomaly_map.shape == (64, 64) and scored[0].size == (64, 64)


def test_pictures_of_any_size_at_any_input_size(run, tmp_path):
    paths = [write_picture(tmp_path / f"{n}.png", size=size) for n, size in enumerate([(90, 50), (64, 128), (70, 70)])]
    for image_size in ((64, 96), (128, 128)):
        scored = list(score_pictures(run.model, paths, image_size=image_size, resize="letterbox", device="cpu"))
        assert [one.size for one in scored] == [(90, 50), (64, 128), (70, 70)]
        assert {one.anomaly_map.shape for one in scored} == {image_size}
        assert all(np.isfinite(one.anomaly_map).all() for one in scored)


def test_a_bad_picture_gives_its_error_and_the_others_go_on(run, tmp_path):
    good = [write_picture(tmp_path / f"{n}.png", size=(64, 64)) for n in range(3)]
    truncate_file(good[1])
    first, second, third = score_pictures(run.model, good, image_size=(64, 64), batch_size=1, device="cpu")
    assert isinstance(second, DataError) and "1.png" in str(second)
    assert (first.path, third.path) == (good[0], good[2])


def test_a_size_below_the_smallest_is_an_error(run, defective):
    with pytest.raises(ModelError, match="at least 64x64 pixels, got 32x64"):
        list(score_pictures(run.model, defective, image_size=(32, 64), device="cpu"))


@pytest.mark.parametrize("image_size", [(0, 0), (-64, 64)])
def test_a_size_that_is_none_is_the_same_error(run, defective, image_size):
    with pytest.raises(ModelError, match=f"at least 64x64 pixels, got {image_size[0]}x{image_size[1]}"):
        list(score_pictures(run.model, defective, image_size=image_size, device="cpu"))


def test_the_precision_is_that_of_the_networks_alone(run, defective):
    single = list(score_pictures(run.model, defective[:2], image_size=(64, 64), device="cpu"))
    pictures = score_pictures(
        run.model, defective[:2], image_size=(64, 64), batch_size=1, device="cpu", precision="bf16"
    )
    first = next(pictures)
    assert not torch.is_autocast_enabled("cpu")  # the caller's own work is not the model's
    assert [one.score for one in (first, *pictures)] == pytest.approx([one.score for one in single], rel=0.1)
    assert first.score != single[0].score


def test_the_batch_follows_from_the_size(run, defective, monkeypatch):
    sizes = []
    own = run.model.forward
    monkeypatch.setattr(run.model, "forward", lambda images: sizes.append(len(images)) or own(images))
    monkeypatch.setattr("gainmtl_lib.efficientad.evaluate.PIXELS_AT_ONCE", 2 * 64 * 64)
    list(score_pictures(run.model, defective[:3], image_size=(64, 64), device="cpu"))
    list(score_pictures(run.model, defective[:2], image_size=(128, 128), device="cpu"))
    assert sizes == [2, 1, 1, 1]


def test_folders_give_their_pictures_at_any_depth(tmp_path):
    inner, outer = (write_picture(tmp_path / name, size=(64, 64)) for name in ("a/b/c.png", "d.png"))
    assert picture_paths([tmp_path]) == [inner, outer] and picture_paths([outer]) == [outer]
    (tmp_path / "empty").mkdir()
    for place, message in (("empty", "no pictures in this folder"), ("gone.png", "no such picture or folder")):
        with pytest.raises(DataError, match=message):
            picture_paths([tmp_path / place])


def test_the_best_checkpoint_of_a_run_is_the_run_and_others_stand_alone(run, tmp_path):
    by_run, best = Detector.open(run.folder), Detector.open(run.folder / "checkpoints/best.ckpt")
    assert by_run.threshold == best.threshold == run.metrics["threshold"]
    assert by_run.scale == best.scale == run.scale and by_run.scale_name == "absolute scale"
    alone = Detector.open(write_checkpoint(untrained(run.settings), run.settings, tmp_path / "last.ckpt"))
    assert alone.threshold is None and alone.novelty_threshold is None and alone.teacher == TEACHER["text"]
    assert alone.scale == QUANTILE_SCALE and "90 % to 99.5 %" in alone.scale_name


def test_a_run_before_its_evaluation_has_no_threshold(tmp_path):
    detector = Detector.open(write_anomaly_run(tiny_anomaly_settings(tmp_path)).folder)
    assert detector.threshold is None and detector.scale == QUANTILE_SCALE


def test_masks_are_found_where_a_training_finds_them(run, defective, tmp_path):
    table = run.predictions.query("split == 'test' and label == 1").set_index("image")["mask"]
    root = run.settings.data_root
    assert masks_of(defective) == {root / image: root / mask for image, mask in table.items()}
    mvtec = write_picture(tmp_path / "bottle/test/crack/000.png", size=(8, 8))
    mask = write_picture(tmp_path / "bottle/ground_truth/crack/000_mask.png", size=(8, 8))
    good = write_picture(tmp_path / "bottle/test/good/000.png", size=(8, 8))
    tile = write_picture(tmp_path / "tiles/MT_Crack/Imgs/exp1_num_7.jpg", size=(8, 8))
    tile_mask = write_picture(tile.with_suffix(".png"), size=(8, 8))
    elsewhere = write_picture(tmp_path / "elsewhere/000.png", size=(8, 8))
    assert masks_of([mvtec, good, tile, elsewhere]) == {mvtec: mask, tile: tile_mask}


def test_the_heat_map_is_on_the_absolute_scale(run, defective):
    detector = replace(Detector.of_run(run), scale=MapScale(0.1, 0.5))
    colours = []
    for value in (0.1, 0.3, 0.5):
        heat = drawn(detector, scored_with(run, defective[0], value))[:SIDE, SIDE + 6 :].astype(int)
        colours.append(float((heat.max(axis=2) - heat.min(axis=2)).mean()))
    assert colours[0] == 0  # grey: at the floor nothing is found, although the map is constant
    assert colours[1] > 20 and colours[2] > 20


@pytest.mark.parametrize("size", [(400, 20), (20, 400)])
def test_the_words_below_a_narrow_picture_stay_readable(run, tmp_path, size):
    picture = write_picture(tmp_path / "long.png", size=size)
    scored = next(iter(score_pictures(run.model, [picture], image_size=(64, 64), device="cpu")))
    pixels = drawn(Detector.of_run(run), scored)
    assert pixels.shape[1] == 2 * max(NARROWEST, round(SIDE * size[1] / max(size))) + 6
    shown = (pixels[:10, : pixels.shape[1] // 2 - 3] < 255).any(axis=(0, 2))
    assert shown.sum() >= round(SIDE * size[1] / max(size)) - 1


@pytest.mark.parametrize("scale_name", [QUANTILE_NAME, "absolute scale"])
def test_the_scale_below_a_square_picture_is_named_whole(run, defective, monkeypatch, scale_name):
    lines = []
    own = drawing._fitting
    monkeypatch.setattr(drawing, "_fitting", lambda text, width: lines.append(own(text, width)[0]) or own(text, width))
    drawn(replace(Detector.of_run(run), scale_name=scale_name), scored_with(run, defective[0], 0.1))
    assert f"anomaly map · {scale_name}" in lines and any(TEACHER["text"] in line for line in lines)


def scored_with(run, path, value):
    scored = next(iter(score_pictures(run.model, [path], image_size=(64, 64), device="cpu")))
    scored.anomaly_map[:] = value
    return scored


def test_a_folder_is_scored_and_drawn(run, defective, tmp_path):
    folder = run.settings.data_root / "images/test"
    result = predict(run.folder, folder, "--output", tmp_path / "[x]")
    assert result.exit_code == 0, result.output
    assert TEACHER["text"] in result.output and str(tmp_path / "[x]") in result.output
    table = scores_of(tmp_path / "[x]/scores.csv")
    assert list(table.columns) == ["image", "anomaly_score", "threshold", "verdict", "anomalous"]
    known = run.predictions.query("split == 'test'").assign(
        image=lambda t: [str(run.settings.data_root / i) for i in t.image]
    )
    joined = table.merge(known, on="image", suffixes=("", "_known"))
    assert len(joined) == len(table) == 6
    assert (joined["verdict"] == joined["predicted"].map({0: "normal", 1: "defective"})).all()
    assert table["threshold"].to_numpy() == pytest.approx(run.metrics["threshold"], rel=1e-6)
    assert (table["anomalous"] == (table["anomaly_score"] > run.metrics["novelty_threshold"])).all()
    pictures = {path.relative_to(tmp_path / "[x]").with_suffix("") for path in (tmp_path / "[x]").rglob("*.png")}
    assert pictures == {path.relative_to(folder).with_suffix("") for path in folder.rglob("*.png")}
    widths = {path.parent.name: cv2.imread(str(path)).shape[1] for path in (tmp_path / "[x]").rglob("*.png")}
    assert widths == {"normal": 2 * SIDE + 6, "defective": 3 * SIDE + 12}  # the last shows the ground truth


def test_the_specifications_spelling(run, defective, tmp_path):
    best = run.folder / "checkpoints/best.ckpt"
    target = tmp_path / "results" / "output.png"
    result = predict(
        "--model_path", best, "--image_path", defective[0], "--output_path", target, "--image_size", 96, 80
    )
    assert result.exit_code == 0, result.output
    assert cv2.imread(str(target)).shape[1] == 3 * SIDE + 12
    assert scores_of(target.with_suffix(".csv"))["image"].tolist() == [str(defective[0])]
    assert "computed at 96x80; thresholds and scale are those of 64x64" in result.output
    synthetic = predict("--model_path", best, "--is_synthetic", "True", "--output_path", tmp_path / "one.png")
    assert synthetic.exit_code == 0, synthetic.output
    assert scores_of(tmp_path / "one.csv")["image"].tolist() == [str(defective[0])]
    every = predict("--model_path", best, "--is_synthetic", "True", "--output_path", tmp_path / "all")
    assert every.exit_code == 0 and len(scores_of(tmp_path / "all/scores.csv")) == 6


def test_a_checkpoint_without_its_run_gives_scores_alone(run, defective, tmp_path):
    path = write_checkpoint(untrained(run.settings), run.settings, tmp_path / "moved.ckpt")
    result = predict(path, defective[0], "--output", tmp_path / "out")
    assert result.exit_code == 0 and "no threshold: the run is not evaluated" in result.output
    row = scores_of(tmp_path / "out/scores.csv").iloc[0]
    assert np.isfinite(row["anomaly_score"]) and row[["threshold", "verdict", "anomalous"]].isna().all()


def test_a_given_mask_is_drawn(run, tmp_path):
    picture = write_picture(tmp_path / "part.png", size=(64, 64))
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    cv2.imwrite(str(tmp_path / "where.png"), mask)
    result = predict(run.folder, picture, "--mask", tmp_path / "where.png", "--output", tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    truth = cv2.imread(str(tmp_path / "out.png"))[:SIDE, 2 * SIDE + 12 :]
    assert (truth > 127).mean() == pytest.approx(0.25, abs=0.02)


def test_what_cannot_be_used_is_named_and_the_rest_is_scored(run, defective, tmp_path):
    folder = tmp_path / "pictures"
    good, broken = (write_picture(folder / name, size=(64, 64)) for name in ("good.png", "broken.png"))
    truncate_file(broken)
    odd = write_picture(tmp_path / "odd.png", size=(64, 32))
    result = predict(run.folder, folder, "--output", tmp_path / "out")
    assert result.exit_code == 1 and "not scored:" in result.output and "broken.png" in result.output
    assert scores_of(tmp_path / "out/scores.csv")["image"].tolist() == [str(good)]
    result = predict(run.folder, good, "--mask", odd, "--output", tmp_path / "out")
    assert result.exit_code == 1 and "expected the same aspect ratio" in result.output


def test_what_does_not_fit_is_said(run, defective, tmp_path):
    twin = shutil.copy(defective[0], tmp_path / "a.png")
    jpeg = write_picture(tmp_path / "a.jpg", size=(64, 64))
    cases = {
        (): "Missing option '--output'",
        ("--output", tmp_path / "o"): "give the folder of a run or a checkpoint file",
        (run.folder, "--output", tmp_path / "o"): "give either pictures or --is-synthetic True",
        (run.folder, twin, "--is-synthetic", "True", "--output", tmp_path / "o"): "give either pictures or",
        (run.folder, twin, jpeg, "--output", tmp_path / "o"): "would be drawn to the same file",
        (run.folder, twin, jpeg, "--output", tmp_path / "o.png"): "is the file of one picture, got 2; give a folder",
        (run.folder, twin, "--mask", twin, "--mask", twin, "--output", tmp_path / "o"): "1 pictures but 2 masks",
        (run.folder, tmp_path / "gone.png", "--output", tmp_path / "o"): "no such picture or folder",
        (run.folder, twin, "--image-size", "32", "32", "--output", tmp_path / "o"): "at least 64x64 pixels",
        (tmp_path, twin, "--output", tmp_path / "o"): "no run here",
        (twin, twin, "--output", tmp_path / "o"): "not a checkpoint that can be read safely",
        (run.folder, twin, "--device", "cuda:9", "--output", tmp_path / "o"): "CUDA devices are available",
    }
    for arguments, expected in cases.items():
        result = predict(*arguments)
        assert result.exit_code in (1, 2) and expected in " ".join(result.output.split()), (arguments, result.output)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("output", ["pictures", "pictures/part.png", "pictures/../pictures"])
def test_pictures_are_never_overwritten(run, tmp_path, output):
    picture = write_picture(tmp_path / "pictures/part.png", size=(64, 64))
    before = picture.read_bytes()
    result = predict(run.folder, picture, "--output", tmp_path / output)
    assert result.exit_code == 1 and "would overwrite" in result.output
    inside = predict(run.folder, picture.parent, "--output", picture.parent / "drawn")
    assert inside.exit_code == 1 and "whose pictures are to be scored; choose another folder" in inside.output
    assert picture.read_bytes() == before and list(picture.parent.iterdir()) == [picture]


def test_own_pictures_are_those_of_synthetic_data_only(tmp_path):
    settings = tiny_anomaly_settings(tmp_path, dataset_type="generic")
    path = write_checkpoint(untrained(settings), settings, tmp_path / "a.ckpt")
    result = predict(path, "--is-synthetic", "True", "--output", tmp_path / "o")
    assert result.exit_code == 1 and "the run's data is of type generic, not synthetic" in result.output


def test_an_interruption_leaves_no_half_written_file(run, defective, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gainmtl_lib.efficientad.figures.cv2.imencode", interrupted)
    result = predict(run.folder, defective[0], "--output", tmp_path / "o")
    assert result.exit_code == 1 and "interrupted" in result.output
    assert not list(tmp_path.rglob("*.*"))


def test_scoring_leaves_the_model_where_it_was(run, defective):
    run.model.train()
    list(score_pictures(run.model, defective[:1], image_size=(64, 64), device="cpu"))
    assert not run.model.training and next(run.model.parameters()).device == torch.device("cpu")
