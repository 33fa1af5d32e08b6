from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from drawn_data import write_mask
from matplotlib.figure import Figure
from tiny import tiny_settings

from gainmtl_lib.dataset import build_data
from gainmtl_lib.evaluation import MaskSource
from gainmtl_lib.figures import (
    classification_figure,
    contact_sheet,
    explanation_figure,
    explanation_pictures,
    look,
    map_grid,
    overlay,
    pick_rows,
    same_pictures_figure,
    save_figure,
    strategies_figure,
    training_figure,
)
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.model import build_model
from gainmtl_lib.runs import RunError


@pytest.fixture(autouse=True)
def no_figure_is_pyplots():
    """A notebook would show it twice: as the cell's value, and as a figure left open."""
    yield
    assert not plt.get_fignums()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = build_data(tiny_settings(tmp_path_factory.mktemp("plots")))
    data.setup("test")
    return data


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_model(tiny_settings(tmp_path_factory.mktemp("model"), "S5"))


def texts(figure):
    return " | ".join(axis.get_title() for axis in figure.axes)


def test_contact_sheet_outlines_masks_only_where_there_are_some():
    image, mask = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8))
    mask[2:5, 2:5] = 1
    figure = contact_sheet([image] * 3, [mask, None, mask], ["a", "b", "c"], columns=2)
    assert len(figure.axes) == 4
    assert [len(axis.collections) for axis in figure.axes] == [1, 0, 1, 0]
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", ""]


def test_map_grid_says_how_each_map_is_scaled():
    images, masks = np.random.default_rng(0).random((2, 8, 8, 3)), np.zeros((2, 8, 8))
    maps = {"cam": np.random.default_rng(1).random((2, 4, 4)), "attention": np.full((2, 4, 4), 0.25)}
    figure = map_grid(images, masks, maps, ["x", "y"], unit_maps=["attention"], notes={"cam": ["n1", "n2"]})
    assert "cam\n(per image)" in texts(figure) and "attention\n(0 to 1)" in texts(figure)
    cam, attention = figure.axes[1].images[-1].get_array(), figure.axes[2].images[-1].get_array()
    assert (cam.min(), cam.max()) == (0, 1)
    assert np.allclose(attention, 0.25)
    assert [axis.get_xlabel() for axis in figure.axes[1::3]] == ["n1", "n2"]


def test_a_map_on_the_absolute_scale_is_calm_and_says_so():
    images, masks = np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8))
    maps = {"cam": np.stack([np.full((2, 2), 1.0), np.full((2, 2), 9.0)])}
    figure = map_grid(images, masks, maps, ["calm", "loud"], scales={"cam": MapScale(floor=2.0, ceiling=4.0)})
    calm, loud = (axis for axis in figure.axes if axis.images and len(axis.images) == 2)
    assert calm.get_title() == "cam\n(absolute)" and calm.get_xlabel() == "nothing found"
    assert calm.images[-1].get_array().max() == 0 and loud.images[-1].get_array().min() == 1
    assert loud.get_xlabel() == ""


def test_overlay_enlarges_as_the_metrics_do():
    axis = Figure().add_subplot()
    overlay(axis, np.zeros((8, 8, 3)), np.array([[0.0, 0.0], [0.0, 1.0]]))
    shown = axis.images[-1].get_array()
    assert shown.shape == (8, 8) and shown[7, 7] == 1 and shown[0, 0] == 0 and 0 < shown[4, 4] < 1


def test_saved_figures_are_handed_back(tmp_path):
    figure = Figure()
    assert save_figure(figure, tmp_path / "new/a.png") is figure
    assert (tmp_path / "new/a.png").read_bytes()[:4] == b"\x89PNG"
    save_figure(plt.figure(), tmp_path / "new/a.jpg")
    assert (tmp_path / "new/a.jpg").read_bytes()[:3] == b"\xff\xd8\xff"


def test_rows_are_picked_by_defect_type_and_the_same_for_every_model(data):
    rows = pick_rows(data.samples, "test", defective=3, normal=2)
    picked = data.samples.loc[rows]
    assert picked["label"].tolist() == [1, 1, 1, 0, 0]
    assert (
        picked["defect_type"].iloc[:3].nunique()
        == data.samples.query("split == 'test' and label == 1")["defect_type"].nunique()
    )
    assert rows == pick_rows(data.samples.copy(), "test", defective=3, normal=2)


def test_looking_is_evaluation_without_gradients(data, model):
    model.train()
    batch, output = look(model, data, [0, 1])
    assert not model.training and not output.logits.requires_grad
    assert len(batch.labels) == 2


def test_explanations_show_what_the_strategy_has(data, model, tmp_path):
    figure = explanation_figure(model, data, [0, 1], threshold=0.0)
    assert len(figure.axes) == 2 * 4
    assert "deciding CAM" in texts(figure) and "localization" in texts(figure)
    assert "called defective" in figure.axes[0].get_ylabel()
    plain = explanation_figure(build_model(tiny_settings(tmp_path, "S1")), data, [0])
    assert len(plain.axes) == 2 and "called" not in plain.axes[0].get_ylabel()


def test_pages_cover_every_picture_once_misses_first(data, model):
    rows = data.samples[data.samples["split"].isin(["test", "test_shift"])]
    verdicts = ["TP", "FN", "TN", "TN", "FP", "TP"] * 2
    table = pd.DataFrame({"image": rows["image"], "split": rows["split"], "verdict": verdicts})
    names = [name for name, _ in explanation_pictures(model, data, table, splits=["test", "absent"], threshold=0.5)]
    assert names == ["test_FN_01", "test_FP_01", "test_TP_01", "test_TN_01"]


def test_pages_pair_pictures_by_their_names(data, model):
    rows = data.samples[data.samples["split"] == "test"]
    table = pd.DataFrame({"image": [path.split("/")[-1] for path in rows["image"]], "split": "test", "verdict": "TP"})
    assert len(list(explanation_pictures(model, data, table, splits=["test"], threshold=0.5))) == 1
    with pytest.raises(ValueError, match="the predictions hold 5 pictures of 'test', the data 6"):
        next(explanation_pictures(model, data, table.iloc[1:], splits=["test"], threshold=0.5))


def test_looking_goes_through_the_source_that_is_asked_for(data, tmp_path):
    model = build_model(tiny_settings(tmp_path, "S6"))
    rows = data.samples.index[data.samples["mask"].notna()][:2].tolist()
    batch = data.dataset.__getitems__(rows)
    _, output = look(model, data, rows, MaskSource.of(model, "oracle"))
    with torch.inference_mode():
        told = model(batch.images, attention_masks=batch.masks).effective_attention
        own = model(batch.images).effective_attention
    assert torch.equal(output.effective_attention, told)
    assert torch.equal(look(model, data, rows)[1].effective_attention, own) and not torch.equal(told, own)
    assert model.mask_source == "localization"


def test_the_oracle_is_named_on_every_figure(data, tmp_path):
    model = build_model(tiny_settings(tmp_path, "S6", mask_source="oracle"))
    assert explanation_figure(model, data, [0]).get_supxlabel().startswith("mask_source oracle: the model is told")
    assert explanation_figure(model, data, [0], source=MaskSource.of(model, "none")).get_supxlabel() == ""
    figure = same_pictures_figure([Trained(tiny_settings(tmp_path, "S6", mask_source="oracle"), model)])
    assert "S6\n(oracle: leaks the label)" in texts(figure)


def test_a_model_alone_does_not_know_its_folder_of_masks(data, tmp_path):
    model = build_model(tiny_settings(tmp_path, "S6", mask_source="external", external_mask_dir=tmp_path))
    with pytest.raises(RunError, match="'external' needs external_mask_dir"):
        look(model, data, [0])


def test_masks_from_outside_side_by_side_or_left_out(tmp_path_factory, model, caplog):
    folder = tmp_path_factory.mktemp("outside")
    s5 = Trained(tiny_settings(folder, "S5"), model)
    settings = tiny_settings(folder, "S6", mask_source="external", external_mask_dir=folder / "masks")
    s6 = Trained(settings, build_model(settings))
    figure = same_pictures_figure([s5, s6], defective=1)
    assert "S5\n(per image)" in texts(figure) and "S6" not in texts(figure)
    assert figure.get_supxlabel().replace("\n", " ") == "S6 is left out: its masks from outside cannot be had."
    assert "S6 seed 42 is left out of the figure" in caplog.text and "masks: no such folder" in caplog.text
    for path in build_data(settings).samples["image"]:
        write_mask(folder / "masks" / path.split("/")[-1], size=(64, 64))
    figure = same_pictures_figure([s5, s6], defective=1)
    assert "S6\n(per image)" in texts(figure) and figure.get_supxlabel() == ""


def test_masks_of_an_efficientad_run_are_told_with_its_teacher(data, tmp_path, monkeypatch):
    model = build_model(tiny_settings(tmp_path, "S6", mask_source="efficientad", efficientad_run=tmp_path))
    source = MaskSource("efficientad", tmp_path)
    source._outside.run = SimpleNamespace(teacher="random (untrained)")
    monkeypatch.setattr(source._outside, "masks", lambda _, batch: batch.masks)
    figure = explanation_figure(model, data, [0], source=source)
    assert figure.get_supxlabel() == "masks from EfficientAD; its teacher: random (untrained)"


def test_masks_of_an_efficientad_run_that_is_not_there_leave_its_strategy_out(tmp_path_factory, model, caplog):
    folder = tmp_path_factory.mktemp("gone")
    settings = tiny_settings(folder, "S6", mask_source="efficientad", efficientad_run=folder / "gone")
    figure = same_pictures_figure([Trained(settings, build_model(settings))], defective=1)
    assert "S6" not in texts(figure) and "S6 is left out" in figure.get_supxlabel().replace("\n", " ")
    assert "no run here" in caplog.text


class Trained:
    """As much of a run as the figure reads."""

    def __init__(self, settings, model):
        self.settings, self.model = settings, model


def test_strategies_side_by_side_on_the_same_pictures(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("side")
    settings = [tiny_settings(folder, strategy, seed=seed) for strategy, seed in (("S1", 1), ("S5", 1), ("S5", 2))]
    figure = same_pictures_figure([Trained(s, build_model(s)) for s in settings], defective=2, normal=1)
    assert len(figure.axes) == 3 * 3  # the picture and two strategies: a second seed is not shown again
    assert "S1\n(per image)" in texts(figure) and "S5\n(per image)" in texts(figure)
    assert all(axis.get_xlabel().startswith("p(defect)") for axis in figure.axes[1:3])
    assert figure.axes[6].get_ylabel() == "test\nnormal"


def predictions():
    rows = [("test", 0, 0.1), ("test", 0, 0.7), ("test", 1, 0.8), ("test", 1, 0.9), ("test_shift", 1, 0.2)]
    table = pd.DataFrame(rows, columns=["split", "label", "probability"])
    return table.assign(predicted=(table["probability"] >= 0.5).astype(int))


def test_confusion_counts_and_curves():
    figure = classification_figure(predictions(), 0.5)
    counts = [text.get_text() for text in figure.axes[0].texts]
    assert counts == ["1", "1", "0", "2"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["0", "0", "1", "0"]
    dots = [tuple(line.get_xydata()[0]) for line in figure.axes[2].lines if line.get_marker() == "o"]
    assert dots == [(0.5, 1.0)]  # one class alone has no curve


def test_training_figure_has_a_line_per_term_and_names_the_stages():
    rows = [(f"train/loss_{name}", step, 1.0) for name in ("cls", "total") for step in range(8)]
    rows += [("train/stage", step, 1 + step // 4) for step in range(8)]
    rows += [("val/average_precision", step, 0.5) for step in (3, 7)]
    figure = training_figure(pd.DataFrame(rows, columns=["tag", "step", "value"]))
    losses, scores = figure.axes
    assert {line.get_label() for line in losses.lines} == {"cls", "total (weighted)"}
    assert [text.get_text() for text in losses.texts] == ["stage 1", "stage 2"]
    assert [line.get_label() for line in scores.lines] == ["AP"]
    assert list(scores.lines[0].get_xdata()) == [1, 2]


def test_strategies_figure_draws_both_splits_and_the_grid_iou():
    columns = ["strategy", "seed", "split", "accuracy", "cam_iou", "attention_iou", "loc_iou", "grid_iou"]
    rows = [
        ["S1", 0, "test", 0.9, 0.1, np.nan, np.nan, 0.7],
        ["S2", 0, "test", 0.8, 0.3, np.nan, np.nan, 0.7],
        ["S1", 0, "test_shift", 0.2, 0.1, np.nan, np.nan, 0.7],
        ["S2", 0, "test_shift", 0.4, 0.1, np.nan, np.nan, 0.7],
    ]
    left, right = strategies_figure(pd.DataFrame(rows, columns=columns)).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert drawn["test (same distribution)"] == [0.9, 0.8] and drawn["test_shift (changed conditions)"] == [0.2, 0.4]
    assert "grid IoU (the mask itself)" in [line.get_label() for line in right.lines]
