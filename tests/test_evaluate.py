"""Evaluation as a whole, and its parts on tables drawn by hand."""

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anomaly_runs import tiny_anomaly_settings, write_anomaly_run
from click.testing import CliRunner
from drawn_data import write_generic
from filelock import FileLock
from PIL import Image
from tiny import tiny_data, tiny_settings

from gainmtl_lib import evaluation as module
from gainmtl_lib import evaluation as predict
from gainmtl_lib.cli import main
from gainmtl_lib.dataset import build_data
from gainmtl_lib.evaluation import MaskSource, add_verdicts, error_analysis, evaluate
from gainmtl_lib.model import build_model
from gainmtl_lib.readers import read_samples
from gainmtl_lib.runs import Run, RunError, load_run
from gainmtl_lib.train import fit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tiny_settings(tmp_path_factory.mktemp("evaluate"), num_epochs=2))


@pytest.fixture(scope="module")
def evaluated(run):
    return evaluate(run)


def test_one_row_per_image_of_every_split(run, evaluated):
    table, summary = evaluated
    assert table["split"].value_counts().to_dict() == {"val": 4, "test": 6, "test_shift": 6}
    assert not table["image"].duplicated().any()
    splits = {"val", "test", "test_shift"}
    assert set(summary) == splits | {"threshold", "threshold_from", "map_scales", "mask_source", "label_leaks"}
    assert set(summary["map_scales"]) == {"cam", "attention", "localization"}
    assert summary["mask_source"] == "localization" and summary["label_leaks"] is False
    maps = run.maps
    assert maps["cam"].shape == (16, 4, 4) and maps["attention"].shape == (16, 4, 4)
    assert maps["localization"].shape == (16, 16, 16)


def test_scores_exist_for_annotated_defects_only(evaluated):
    table, summary = evaluated
    columns = ["cam_iou", "grid_iou", "point_game", "energy_inside", "attention_iou", "loc_iou", "cf_probability"]
    assert table.loc[table["label"] == 1, columns].notna().all().all()
    assert table.loc[table["label"] == 0, columns].isna().all().all()
    assert summary["test"]["cam_iou"] == pytest.approx(table.query("split == 'test'")["cam_iou"].mean(), abs=1e-4)
    assert summary["test"]["annotated"] == 3


def test_a_second_call_reads_what_the_first_stored(run, evaluated):
    table, summary = evaluate(load_run(run.folder))
    pd.testing.assert_frame_equal(table, evaluated[0])
    assert summary == evaluated[1]


def test_evaluating_anew_gives_the_same_numbers(run, evaluated):
    table, summary = evaluate(run, reuse=False)
    pd.testing.assert_frame_equal(table, evaluated[0])
    assert summary == evaluated[1]


def test_the_runs_own_data_counts_as_the_data_it_was_trained_on(run, evaluated):
    own = build_data(run.settings)
    assert evaluate(run, data=own)[1] == evaluated[1] == evaluate(run, data=own, reuse=False)[1] == run.metrics
    samples = own.samples.drop(index=own.samples.index[own.samples["split"] == "test"][:1])
    _, other = evaluate(run, data=build_data(run.settings, samples))
    assert other["test"]["images"] == 5 and run.metrics == evaluated[1]


def test_a_model_is_evaluated_on_the_data_it_is_given(run, evaluated):
    table, summary = evaluate(run.model, data=build_data(run.settings))
    assert summary["test"]["auroc"] == pytest.approx(evaluated[1]["test"]["auroc"])
    with pytest.raises(RunError, match="evaluating a model needs data"):
        evaluate(run.model)


def test_a_given_threshold_is_not_chosen_and_not_stored(run, evaluated):
    table, summary = evaluate(run, threshold=0.0)
    assert (table["predicted"] == 1).all() and summary["threshold_from"] == "given"
    assert run.metrics["threshold"] == evaluated[1]["threshold"]


def test_oracle_is_marked_and_not_stored(run, evaluated):
    _, summary = evaluate(run, mask_source="oracle")
    assert summary["label_leaks"] is True and summary["mask_source"] == "oracle"
    assert run.metrics["mask_source"] == "localization"


def test_a_mask_source_is_for_s6(tmp_path):
    settings = tiny_settings(tmp_path, "S3")
    with pytest.raises(RunError, match="mask_source is for strategy S6; this model is S3"):
        evaluate(build_model(settings), data=build_data(settings), mask_source="none")


def test_external_masks_come_from_a_folder(run, tmp_path):
    with pytest.raises(RunError, match="needs external_mask_dir"):
        evaluate(run, mask_source="external")
    for path in build_data(run.settings).samples["image"]:
        cv2.imwrite(str(tmp_path / path.split("/")[-1]), np.full((64, 64), 255, np.uint8))
    _, full = evaluate(run, mask_source="external", external_mask_dir=tmp_path)
    _, none = evaluate(run, mask_source="none")
    # A mask of ones lets attention through as it is, which is what no mask does.
    assert full["test"]["cam_iou"] == pytest.approx(none["test"]["cam_iou"], abs=1e-6)
    assert full["mask_source"] == "external"


def table_by_hand():
    nan = float("nan")
    return pd.DataFrame(
        [
            # image, label, probability, cam_iou, point_game, energy, cf, control
            ("found", 1, 0.9, 0.6, 1.0, 0.8, 0.1, 0.8),
            ("lucky", 1, 0.8, 0.05, 0.0, 0.1, 0.7, 0.9),
            ("missed", 1, 0.2, 0.4, 1.0, 0.5, 0.1, 0.2),
            ("no_mask", 1, 0.7, nan, nan, nan, nan, nan),
            ("alarm", 0, 0.6, nan, nan, nan, nan, nan),
            ("calm", 0, 0.1, nan, nan, nan, nan, nan),
        ],
        columns=["image", "label", "probability", "cam_iou", "point_game", "energy_inside", "cf_probability",
                 "cf_control_probability"],
    ).assign(split="test")  # fmt: skip


def test_verdicts_flips_and_wrong_reasons_by_hand():
    table = add_verdicts(table_by_hand(), 0.5).set_index("image")
    assert table["verdict"].to_dict() == {
        "found": "TP", "lucky": "TP", "missed": "FN", "no_mask": "TP", "alarm": "FP", "calm": "TN"
    }  # fmt: skip
    assert table.index[table["wrong_reason"]].tolist() == ["lucky"]
    assert table["cf_flip"].dropna().to_dict() == {"found": 1.0, "lucky": 0.0}
    assert table["cf_control_flip"].dropna().to_dict() == {"found": 0.0, "lucky": 0.0}


def test_errors_list_the_missed_first_then_the_wrong_reason():
    table = add_verdicts(table_by_hand(), 0.5)
    worse = table.query("image == 'missed'").assign(image="surely missed", probability=0.01)
    errors = error_analysis(pd.concat([table, worse], ignore_index=True))
    assert errors["image"].tolist() == ["surely missed", "missed", "lucky", "alarm"]
    assert errors["kind"].tolist() == ["missed", "missed", "wrong reason", "false alarm"]
    assert len(error_analysis(table, "val")) == 0


def test_flips_are_asked_with_the_mask_off_the_defect_too(run, evaluated):
    table, _ = evaluated
    rows = table[table["label"] == 1]
    assert rows["cf_probability"].between(0, 1).all()
    placed = rows["cf_control_probability"].dropna()
    assert placed.between(0, 1).all()
    assert not torch.allclose(
        torch.tensor(rows.loc[placed.index, "cf_probability"].to_numpy()), torch.tensor(placed.to_numpy())
    )


def test_pooled_scores_stand_beside_their_means(evaluated):
    _, summary = evaluated
    pooled = [name for name in summary["test"] if name.endswith("_pooled")]
    assert pooled == [
        "cam_iou_pooled", "grid_iou_pooled", "energy_inside_pooled", "attention_iou_pooled",
        "attention_energy_inside_pooled", "loc_iou_pooled", "loc_dice_pooled",
    ]  # fmt: skip
    assert all(0 <= summary["test"][name] <= 1 for name in [*pooled, "loc_aupro"])


def test_no_picture_is_kept_at_full_size(run):
    data = build_data(run.settings)
    data.setup("test")
    split = predict.predict_split(run.model, data, "test", source=MaskSource.of(run.settings))
    assert set(vars(split)) == {"table", "maps", "pooled"}
    assert sum(maps.nbytes for maps in split.maps.values()) / len(split.table) < 64 * 64


def test_controls_stay_inside_letterboxed_pictures(tmp_path, monkeypatch):
    """The pictures are 12 x 16, so that they take the rows 8 to 55 of 64."""
    given = []
    own = predict.control_masks
    monkeypatch.setattr(predict, "control_masks", lambda *a, **k: given.append(k["inside"]) or own(*a, **k))
    samples = read_samples(write_generic(tmp_path), dataset_type="generic")
    model = build_model(tiny_settings(tmp_path, "S5"))
    for resize in ("letterbox", "squash"):
        data = tiny_data(samples, image_size=(64, 64), resize=resize, batch_size=8)
        predict.predict_split(model, data, "test", source=MaskSource.of(model))
    letterboxed, squashed = given
    assert squashed is None
    for place, row in zip(letterboxed[:, 0], data.rows("test"), strict=True):
        if data.dataset.has_mask[row]:
            assert place[8:56].all() and not place[:8].any() and not place[56:].any()
        else:
            assert place.all()  # nothing is asked of it


@pytest.fixture
def with_masks(run, tmp_path):
    """The run as if trained for masks from a folder, here all ones; its model is the same."""
    ones, zeros = (tmp_path / name for name in ("ones", "zeros"))
    for path in build_data(run.settings).samples["image"]:
        for folder, value in ((ones, 255), (zeros, 0)):
            folder.mkdir(exist_ok=True)
            cv2.imwrite(str(folder / path.split("/")[-1]), np.full((64, 64), value, np.uint8))
    settings = run.settings.changed(mask_source="external", external_mask_dir=ones, outputs_dir=tmp_path / "outputs")
    settings.run_dir.mkdir(parents=True)
    for name in ("manifest.json", "model.safetensors"):
        shutil.copy(run.folder / name, settings.run_dir)
    (settings.run_dir / "settings.yaml").write_text(yaml.safe_dump(settings.plain()))
    return Run(settings.run_dir)


def test_masks_from_another_folder_are_neither_taken_from_the_store_nor_stored(with_masks, tmp_path):
    _, own = evaluate(with_masks)
    assert own["mask_source"] == "external"
    for reuse in (True, False):
        _, other = evaluate(with_masks, external_mask_dir=tmp_path / "zeros", reuse=reuse)
        assert other["test"]["cam_iou"] != own["test"]["cam_iou"]
        assert with_masks.metrics == own


def test_a_folder_of_masks_needs_the_source_that_reads_it(run, evaluated, tmp_path):
    with pytest.raises(RunError, match="external_mask_dir is for mask_source 'external'"):
        evaluate(run, external_mask_dir=tmp_path)
    with pytest.raises(RunError, match="external_mask_dir is for mask_source 'external'"):
        evaluate(run, mask_source="none", external_mask_dir=tmp_path)


def test_masks_of_an_efficientad_run_by_option_or_as_the_runs_own(run, evaluated, tmp_path):
    made = run.settings
    data = {name: getattr(made, name) for name in ("data_root", "num_samples", "image_size")}
    other = write_anomaly_run(tiny_anomaly_settings(tmp_path, **data))
    code, output = command("evaluate", run.folder, "--mask-source", "efficientad", "--efficientad-run", other.folder)
    assert code == 0 and f"masks from {other.folder}; its teacher: {other.teacher}" in output, output
    assert "novel pictures" not in output and run.metrics == evaluated[1]  # its own evaluation is another
    settings = made.changed(
        mask_source="efficientad", efficientad_run=other.folder, outputs_dir=tmp_path / "outputs", experiment="own"
    )
    shutil.copytree(run.folder, settings.run_dir)
    (settings.run_dir / "settings.yaml").write_text(yaml.safe_dump(settings.plain()))
    for options in (("--force",), ("--efficientad-run", other.folder)):  # which is its own: nothing else is asked
        code, output = command("evaluate", settings.run_dir, *options)
        assert code == 0 and f"masks from {other.folder}" in output and "novel pictures" in output, output
    assert load_run(settings.run_dir).metrics["teacher"] == other.teacher


def test_a_run_is_evaluated_where_it_was_trained(run, evaluated, monkeypatch):
    asked = []
    own = module.checked_device
    monkeypatch.setattr(module, "checked_device", lambda name: asked.append(name) or own("cpu"))
    evaluate(run, threshold=0.5)
    evaluate(run, threshold=0.5, device="cuda:1")
    evaluate(run.model, data=build_data(run.settings))
    assert asked == ["cpu", "cuda:1", "auto"]


def test_an_interruption_leaves_no_mixture_of_two_evaluations(run, evaluated, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.np, "save", interrupt)
        evaluate(run, reuse=False)
    assert (run.folder / "predictions.csv").is_file() and not run.is_evaluated
    _, summary = evaluate(run)
    assert summary == evaluated[1] and run.is_evaluated


def test_a_run_that_another_process_writes_to_is_not_evaluated_but_read(run, evaluated):
    with FileLock(run.folder / ".lock"):
        with pytest.raises(RunError, match="another process is writing to this run"):
            evaluate(run, reuse=False)
        assert evaluate(run)[1] == evaluated[1]
    evaluate(run, reuse=False)


def command(*arguments):
    result = CliRunner().invoke(main, [str(part) for part in arguments], catch_exceptions=False)
    return result.exit_code, " ".join(result.output.split())


def drawn(monkeypatch):
    """What the pages say of the pictures: file name to the titles of its rows."""
    pages = {}

    def keep(figure, path):
        pages[path.stem] = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
        return figure

    monkeypatch.setattr("gainmtl_lib.console.save_figure", keep)
    return pages


@pytest.mark.parametrize("source", ["none", "oracle"])
def test_the_pages_show_what_was_evaluated(run, evaluated, monkeypatch, tmp_path, source):
    table, _ = evaluate(run, mask_source=source)
    pages = drawn(monkeypatch)
    code, _ = command("evaluate", run.folder, "--mask-source", source, "--visualize", "--vis-dir", tmp_path)
    assert code == 0
    for (split, verdict), rows in table[table["split"] != "val"].groupby(["split", "verdict"]):
        titles = pages[f"{split}_{verdict}_01"]
        called = "defective" if verdict in ("TP", "FP") else "normal"
        assert all(f"called {called}" in title for title in titles)
        assert [title.split()[-1] for title in titles] == [f"{p:.2f}" for p in rows["probability"]]


def test_pages_of_a_run_whose_masks_come_from_a_folder(with_masks, monkeypatch, tmp_path):
    pages = drawn(monkeypatch)
    code, output = command("evaluate", with_masks.folder, "--visualize", "--vis-dir", tmp_path)
    assert code == 0, output
    assert len([title for titles in pages.values() for title in titles if "p(defect)" in title]) == 12
    best = ("evaluate", with_masks.folder, "--mask-source", "none", "--external-mask-dir", tmp_path)
    assert "external_mask_dir is for mask_source 'external'" in command(*best)[1]


def test_pages_are_not_drawn_of_pictures_that_changed(run, evaluated, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(run.settings.data_root, folder)
    settings = run.settings.changed(data_root=folder, outputs_dir=tmp_path / "outputs")
    shutil.copytree(run.folder, settings.run_dir)
    (settings.run_dir / "settings.yaml").write_text(yaml.safe_dump(settings.plain()))
    picture = next((folder / "images/test").rglob("*.png"))
    Image.open(picture).rotate(90).save(picture)
    code, output = command("evaluate", settings.run_dir, "--visualize", "--vis-dir", tmp_path / "vis")
    assert code == 1 and "the data changed since" in output and not (tmp_path / "vis").exists()


def test_brackets_in_paths_are_printed(run, evaluated, monkeypatch, tmp_path):
    drawn(monkeypatch)
    monkeypatch.setattr("gainmtl_lib.console.explanation_pictures", lambda *_, **__: ())
    folder, results = tmp_path / "[x]", tmp_path / "[y].json"
    words = ("--visualize", "--vis-dir", folder, "--export-results", results)
    code, output = command("evaluate", run.folder, *words)
    assert code == 0 and str(folder) in output and str(results) in output
    assert json.loads(results.read_text())["test"]["images"] == 6
