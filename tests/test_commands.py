"""The command line, as a user types it, on the tiny study."""

import errno
import json
import os
import shutil
import subprocess
import sys
from unittest.mock import Mock

import pytest
import yaml
from anomaly_runs import tiny_anomaly_settings, write_anomaly_run
from click.testing import CliRunner
from drawn_data import truncate_file, write_generic, write_mask, write_picture
from tiny import tiny_settings

from gainmtl_lib.cli import main, value_of
from gainmtl_lib.model import GAINMTLModel, build_model
from gainmtl_lib.runs import save_weights
from gainmtl_lib.settings import Settings


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def done(*arguments):
    """What a command printed that went well."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments):
    """What a command said that did not go, in one line."""
    result = run(*arguments)
    assert result.exit_code in (1, 2) and "Traceback" not in result.output, (arguments, result.output)
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with a parameter file of the tiny study; S5 without its own mask of loss weights."""
    folder = tmp_path_factory.mktemp("commands")
    values = tiny_settings(folder, "S5", num_epochs=1, use_tensorboard=True).plain()
    values = {name: value for name, value in values.items() if not name.startswith("lambda_") and name != "strategy"}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.fixture(scope="module")
def trained(study):
    done("train", "--config", study / "tiny.yaml", "--strategy", "S5")
    folder = study / "outputs/tiny/s5/seed42"
    done("evaluate", folder)
    return folder


def test_help_does_not_load_torch():
    code = "import sys, gainmtl_lib.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    commands = "run train evaluate compare explain browse report efficientad data notebooks"
    assert set(commands.split()) <= set(done("--help").split())


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_place_that_cannot_be_written_is_named_with_advice_and_other_errors_are_not_hidden(
    tmp_path, monkeypatch, number
):
    def raised(error):
        monkeypatch.setattr("gainmtl_lib.console.check_data_of", Mock(side_effect=error))

    raised(OSError(number, "reason", str(tmp_path / "figures")))
    told = f"{tmp_path}/figures: cannot be written: reason; give the right to write there, or choose another place"
    assert told in refused("data", "check", tmp_path).replace(" /", "/").replace("/ ", "/")
    raised(OSError(errno.EIO, "reason", "x"))
    with pytest.raises(OSError, match="reason"):
        run("data", "check", tmp_path)


def test_a_value_is_read_as_yaml_and_is_itself_where_it_is_none():
    read = {"1e-4": 1e-4, "3": 3, "true": True, "null": None, "[2, 3]": [2, 3], "s3": "s3"}
    assert {text: value_of("num_epochs", text) for text in read} == read
    for text in (r"[A-Z]+(\d+)", "*_d", "{", "a: b: c", "2024-13-01"):
        assert value_of("num_epochs", text) == text


def test_every_option_of_the_specification_in_both_spellings(study):
    options = {
        "--batch_size": "4", "--epochs": "1", "--device": "cpu", "--seed": "3", "--val_ratio": "0.0", "--backbone": "b0",
        "--data_root": str(study / "data"),
    }  # fmt: skip
    train = ("train", "-f", study / "tiny.yaml", "-p", "strategy", "S1")
    for spelt in (options, {name.replace("_", "-"): value for name, value in options.items()}):
        words = [word for pair in spelt.items() for word in pair]
        done(*train, *words, "--no_tensorboard")
    folder = study / "outputs/tiny/s1/seed3"
    stored = yaml.safe_load((folder / "settings.yaml").read_text())
    assert (stored["batch_size"], stored["num_epochs"], stored["seed"]) == (4, 1, 3)
    assert stored["use_tensorboard"] is False and not (folder / "tensorboard").exists()
    told = refused(*train, *words, "--no-tensorboard", "--resume", folder / "checkpoints/last.ckpt")
    assert "the run is finished; there is nothing to resume" in told


# --- Evaluating


def test_evaluate_writes_and_prints_everything_asked_for(trained, tmp_path):
    printed = done("evaluate", "--checkpoint", trained / "checkpoints/best.ckpt", "--visualize", "--vis_dir",
                   tmp_path / "vis", "--error_analysis", "--export_results", tmp_path / "results.json")  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["test"]["images"] == 6 and "cam_iou" in results["test"]
    assert (tmp_path / "vis/classification.png").is_file()
    assert len(list((tmp_path / "vis").glob("test*_*_01.jpg"))) > 1
    assert "missed (defective, called normal)" in printed and (trained / "predictions.csv").is_file()
    assert (
        "known limits"
        in done("report", trained, "--required-recall", "0.9", "--output", tmp_path / "r.html")
        + (tmp_path / "r.html").read_text(encoding="utf-8").lower()
    )


def test_evaluate_asks_for_the_reasons_of_a_run_as_it_was_trained(trained, tmp_path):
    printed = done("evaluate", trained, "--reasons", "--export-results", tmp_path / "r.json")
    assert "what the verdicts rest on (test)" in printed and "accuracy, edited" in printed
    reasons = json.loads((tmp_path / "r.json").read_text())["reasons"]
    assert reasons == json.loads((trained / "indicators.json").read_text())
    assert reasons["indicators"]["counterfactual_accuracy"]["count"] > 0
    again = "--reasons asks a run as it was trained"
    assert again in refused("evaluate", "--reasons", trained, "--data-root", tmp_path)
    assert again in refused("evaluate", "--reasons", "--checkpoint", trained / "checkpoints/last.ckpt")
    assert "leave --reasons out" in refused("evaluate", "--reasons", trained, "--mask-source", "all")


def test_evaluate_takes_a_run_and_a_folder_of_test_pictures_with_the_runs_threshold(trained, tmp_path):
    own = json.loads((trained / "metrics.json").read_text())
    write_generic(tmp_path / "other", splits=("test",))
    shutil.rmtree(tmp_path / "other" / "masks")
    done("evaluate", "--checkpoint", trained / "checkpoints/best.ckpt", "--data-root", tmp_path / "other",
         "--export-results", tmp_path / "r.json")  # fmt: skip
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["threshold"] == own["threshold"] and results["threshold_from"] == "validation of the run"
    assert results["calibration"] == own["calibration"] and results["map_scales"] == own["map_scales"]
    assert "val" not in results and results["test"]["images"] == 6 and results["test"]["annotated"] == 0
    fresh = shutil.copytree(trained, tmp_path / "fresh")  # trained alone: its threshold is chosen first
    (fresh / "metrics.json").unlink()
    printed = done("evaluate", fresh, "--data-root", tmp_path / "other", "--export-results", tmp_path / "f.json")
    assert json.loads((tmp_path / "f.json").read_text()) == results and "test: calibration error 0." in printed
    assert json.loads((fresh / "metrics.json").read_text())["threshold"] == own["threshold"]


def test_evaluate_efficientad_on_a_folder_of_test_pictures(tmp_path):
    run_ = write_anomaly_run(tiny_anomaly_settings(tmp_path))
    other = write_generic(tmp_path / "other", splits=("test",))
    printed = done("evaluate", run_.folder, "--data-root", other, "--export-results", tmp_path / "r.json")
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["test"]["images"] == 6 and "val" not in results and "validation with its anomalies" in printed
    assert results["threshold"] == run_.metrics["threshold"] and run_.metrics["val"]["images"] > 0


# --- Errors and interruptions


def test_errors_are_one_message_without_a_traceback(trained, tmp_path):
    mvtec = ("-p", "teacher", "random", "-p", "dataset_type", "mvtec", "-p", "data_root", tmp_path)
    train, distill, teacher = ("efficientad", "train"), ("efficientad", "distill"), tmp_path / "t.safetensors"
    (tmp_path / "my.yaml").write_text("batch_size: many\n")
    mine = f"{tmp_path / 'my.yaml'}: batch_size must be a whole number, got the text 'many'"
    for arguments, expected in {
        ("evaluate", tmp_path): "no run here (no manifest.json)",
        ("evaluate",): "give either the folder of a run or --checkpoint FILE",
        ("train", "-p", "learnig_rate", "1"): "unknown parameter 'learnig_rate'; did you mean 'learning_rate'?",
        ("train", "-f", tmp_path / "no.yaml"): "no such parameter file",
        ("train", "-f", "params/s3.yaml", "--strategy", "S5"): "strategy is 'S3', but --strategy is 'S5'; give one",
        ("train", "-f", tmp_path / "my.yaml"): mine,
        ("train", "-p", "data_root", tmp_path / "nowhere", "-p", "pretrained", "false"): "nowhere",
        ("run", "s3", "-f", tmp_path / "my.yaml"): mine,
        ("run", "s9"): "'s9' is no strategy",
        ("run", "s3", "-p", "strategy", "S4"): "strategy is 'S4', but the notebook is S3's",
        ("run", "all", "-p", "strategy", "S4"): "'all' runs every strategy",
        ("run", "s3", "-p", "num_epoch", "1"): "did you mean 'num_epochs'",
        ("compare", tmp_path): "no evaluated run (0 started, 0 finished)",
        ("browse", tmp_path, "--no-browser"): "no run here",
        ("report", tmp_path): "no run here",
        ("report", trained, "--required-recall", "1.5"): "1.5",
        ("explain", trained, "a.png", "b.png", "--mask", "m.png"): "2 pictures but 1 masks; give one --mask for",
        ("explain", trained, "a.png", "--mask-source", "none"): "mask_source is for strategy S6; this model is S5",
        train: "teacher",
        (*train, "-p", "teacher", "random", "-p", "max_stpes", "1"): "did you mean 'max_steps'",
        (*train, *mvtec, "--category", "all"): "no category of mvtec data in it; expected folders with train/good",
        (*train, *mvtec, "--category", "all", "--resume", "a.ckpt"): "--resume is for one run",
        (*distill, tmp_path, teacher, "-p", "stepps", "1"): "did you mean 'steps'",
        (*distill, tmp_path / "gone", teacher): "gone",
        (*distill, "a", "t.safetensors", "-p", "images", "b"): "'images' is no parameter here; IMAGES and",
        (*distill, "a", "t.safetensors", "-p", "force", "true"): "'force' is no parameter here",
    }.items():
        assert expected in refused(*arguments), arguments


def test_errors_of_a_process_that_did_nothing_else_are_messages_too(tmp_path):
    """Within the tests every module is loaded, and with it every error that a command knows."""
    command = [sys.executable, "-m", "gainmtl_lib.cli", "efficientad", "predict", "gone", "a.png", "--output", "o"]
    told = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert told.returncode == 1 and "gone: no run here" in told.stderr and "Traceback" not in told.stderr, told.stderr


@pytest.mark.parametrize(("place", "arguments", "goes_on"), [
    ("console.evaluate_and_report", ("evaluate", "run"), False),
    ("console.explain_pictures", ("explain", "run", "a.png"), False),
    ("train.fit", ("train", "--data-root", "x"), True),
    ("notebooks.run_strategy", ("run", "s1"), True),
    ("efficientad.figures.train_and_report", ("efficientad", "train"), True),
    ("efficientad.distill.distill", ("efficientad", "distill", "pictures", "t.safetensors"), True),
    ("efficientad.figures.predict_and_report", ("efficientad", "predict", "run", "a.png", "--output", "x"), False),
])  # fmt: skip
def test_an_interruption_promises_to_go_on_only_where_it_does(monkeypatch, place, arguments, goes_on):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"gainmtl_lib.{place}", interrupt)
    told = refused(*arguments)
    assert "interrupted" in told
    assert ("the same command goes on from where it was last saved" in told) is goes_on


def test_an_interrupted_command_goes_on(study):
    """A real process, killed in the middle of its training, started again."""
    arguments = [sys.executable, "-m", "gainmtl_lib.cli", "train", "-f", str(study / "tiny.yaml"), "--strategy", "S1",
                 "-p", "experiment", "killed", "--epochs", "16"]  # fmt: skip
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=alone) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 8 of 16" in line:
                process.kill()
                break
    assert (study / "outputs/killed/s1/seed42/checkpoints/last.ckpt").is_file()
    again = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stderr and "epoch 16 of 16" in again.stderr
    assert "epoch 5 of 16" not in again.stderr


# --- Data


def test_data_check_passes_sound_data_and_fails_what_a_training_would_refuse(tmp_path):
    root = write_generic(tmp_path / "[x]", per_class=4)
    check, sheet = ("data", "check", root, "--image-size", "64", "64"), tmp_path / "[y]/sheet.png"
    printed = done(*check, "--contact-sheet", sheet)
    assert "0 errors" in printed and sheet.stat().st_size > 1000
    assert f"contact sheet: {sheet}" in printed  # brackets are no markup
    truncate_file(root / "images/train/normal/train_n0.png")
    assert "train_n0.png" in refused(*check)
    root = write_generic(tmp_path / "split", splits=("train", "test"), per_class=8)
    (tmp_path / "mine.yaml").write_text("val_ratio: 0.0\nimage_size: 64\n")
    check = ("data", "check", root, "-f", tmp_path / "mine.yaml")
    assert "val_ratio is 0, but the data has no validation folder" in refused(*check)
    done(*check, "--val_ratio", "0.25")


def test_synthetic_data_is_not_written_over_other_files(tmp_path):
    small = ("-p", "num_samples", "20", "-p", "image_size", "64")
    assert f"{tmp_path / '[x]'}: 20 pictures, train " in done("data", "synth", tmp_path / "[x]", *small)
    (tmp_path / "mine.txt").write_text("x")
    refused("data", "synth", tmp_path, *small)
    assert (tmp_path / "mine.txt").read_text() == "x"


# --- Notebooks and explanations


def test_a_notebook_runs_headless_and_is_left_in_the_runs_folder(study):
    done("run", "s1", "-f", study / "tiny.yaml", "-p", "experiment", "headless")
    folder = study / "outputs/headless/s1/seed42"
    assert (folder / "notebook.ipynb").is_file() and (folder / "figures/pictures.jpg").is_file()
    assert "S1" in done("compare", study / "outputs/headless", "--export", study / "exported")
    names = {path.name for path in (study / "exported").iterdir()}
    assert names == {"comparison.csv", "table.md", "strategies.png", "same_pictures.jpg"}
    assert "| S1 |" in (study / "exported/table.md").read_text()


def test_explain_shows_and_exports_what_can_be_explained_and_names_what_cannot(trained, study, tmp_path):
    pictures = sorted((study / "data/images/test/defective").rglob("*.png"))[:2]
    masks = [next((study / "data/masks").rglob(picture.name)) for picture in pictures]
    done("explain", trained, *pictures, "--mask", masks[0], "--mask", masks[1], "--class-names", "ok", "broken",
         "--output", tmp_path, "--export-results", tmp_path / "a.json")  # fmt: skip
    answers = json.loads((tmp_path / "a.json").read_text())
    assert list(answers) == [str(picture) for picture in pictures]
    assert all({"probability", "cam_iou", "counterfactual", "boxes"} <= set(answer) for answer in answers.values())
    assert {answer["prediction_name"] for answer in answers.values()} <= {"ok", "broken"}
    told = refused("explain", trained, tmp_path / "gone.png", pictures[0], "--output", tmp_path / "others")
    assert "not explained:" in told and "gone.png: image cannot be read" in told
    assert [path.name for path in (tmp_path / "others").iterdir()] == [f"{pictures[0].stem}.png"]


def test_explain_computes_each_picture_once_and_on_the_device_asked_for(trained, study, tmp_path, monkeypatch):
    asked, sizes = [], []
    own = GAINMTLModel.forward
    monkeypatch.setattr("gainmtl_lib.console.checked_device", lambda name: asked.append(name) or "cpu")
    monkeypatch.setattr(GAINMTLModel, "forward", lambda *a, **k: sizes.append(len(a[1])) or own(*a, **k))
    pictures = sorted((study / "data/images/test").rglob("*.png"))[:4]
    for device in ((), ("--device", "cuda:3")):
        assert str(tmp_path / "[x]") in done("explain", trained, *pictures, "--output", tmp_path / "[x]", *device)
    assert asked == ["cpu", "cuda:3"]  # by default where the run was trained
    assert sum(sizes) <= 2 * 4 * 3  # each picture once, and the two questions of the counterfactual
    assert len(list((tmp_path / "[x]").glob("*.png"))) == 4


def test_pictures_of_one_name_are_told_apart(trained, study, tmp_path):
    first, second = sorted((study / "data/images/test").rglob("*.png"))[:2]
    places = [tmp_path / "a/x.png", tmp_path / "b/x.png", tmp_path / "b/y.png", tmp_path / "c/b/x.png"]
    for place, picture in zip(places, (first, second, first, second)):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, place)
    done("explain", trained, *places, "--output", tmp_path / "out")
    names = {"a_x.png.png", f"{tmp_path.name}_b_x.png.png", "y.png", "c_b_x.png.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_explain_of_a_run_whose_masks_come_from_outside(study, tmp_path):
    settings = Settings(**yaml.safe_load((study / "tiny.yaml").read_text()) | {
        "strategy": "S6", "experiment": "outside", "mask_source": "external", "external_mask_dir": tmp_path,
    })  # fmt: skip
    settings.run_dir.mkdir(parents=True)
    (settings.run_dir / "settings.yaml").write_text(yaml.safe_dump(settings.plain()))
    (settings.run_dir / "manifest.json").write_text('{"status": "complete"}')
    save_weights(build_model(settings), settings.run_dir / "model.safetensors")
    picture = write_picture(tmp_path / "part.png", size=(64, 64))
    assert "give gainmtl explain --mask-source" in refused("explain", settings.run_dir, picture)
    for source in ("none", "localization"):
        done("explain", settings.run_dir, picture, "--mask-source", source)


# --- EfficientAD


def test_efficientad_trains_evaluates_and_reports(tmp_path):
    values = tiny_anomaly_settings(tmp_path, max_steps=2, val_every_n_steps=2).plain()
    (tmp_path / "ad.yaml").write_text(yaml.safe_dump(values))
    train = ("efficientad", "train", "--config", tmp_path / "ad.yaml", "-p", "seed", "3")
    folder = tmp_path / "outputs/tiny/efficientad/seed3"
    for printed in (done(*train), done(*train)):  # trained, then reported
        for word in ("aupro", "pixel_auroc", "test_shift", "novelty threshold", "untrained teacher", str(folder)):
            assert word in printed
    assert json.loads((folder / "metrics.json").read_text())["test"]["images"] == 6
    assert "nothing to resume" in refused(*train, "--resume", folder / "checkpoints/last.ckpt")


def test_efficientad_trains_every_category_of_mvtec(tmp_path):
    mvtec = {"dataset_type": "mvtec", "category": "wood", "val_ratio": 0.4, "max_steps": 1, "val_every_n_steps": 1}
    (tmp_path / "ad.yaml").write_text(yaml.safe_dump(tiny_anomaly_settings(tmp_path, **mvtec).plain()))
    for category in ("bottle", "wood"):
        root = tmp_path / "data" / category
        for name in ("train/good/0", "train/good/1", "train/good/2", "train/good/3", "test/good/0", "test/crack/0"):
            write_picture(root / f"{name}.png", size=(64, 64))
        write_mask(root / "ground_truth/crack/0_mask.png", size=(64, 64))
    assert "test metrics by category" in done("efficientad", "train", "-f", tmp_path / "ad.yaml", "--category", "all")
    table = (tmp_path / "outputs/tiny/efficientad/categories.csv").read_text().splitlines()
    assert table[0] == "category,image AUROC,AP,pixel AUROC,AUPRO,F1"
    assert [line.split(",")[0] for line in table[1:]] == ["bottle", "wood", "mean"]
