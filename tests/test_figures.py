"""The overlay, pixel by pixel, and what figures say and show."""

import io
from pathlib import Path
from types import SimpleNamespace

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from drawn_data import write_mask
from PIL import Image
from tiny import tiny_settings

from gainmtl_lib import figures
from gainmtl_lib.browser.library import THUMBNAIL, PictureFiles, thumbnail
from gainmtl_lib.dataset import build_data
from gainmtl_lib.evaluation import MaskSource
from gainmtl_lib.figures import INFERNO, enlarged_share, explanation_figure, look, overlay, same_pictures_figure
from gainmtl_lib.metrics import MapScale, normalize_maps, resize_maps
from gainmtl_lib.model import build_model

# --- A map over a picture

PICTURE = np.random.default_rng(0).integers(40, 200, (60, 80, 3)).astype(np.uint8)
GREY = cv2.cvtColor(cv2.cvtColor(PICTURE, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def test_colours_follow_the_value_and_the_strength_and_a_calm_map_leaves_the_picture_grey():
    assert np.array_equal(overlay(PICTURE), PICTURE)
    assert np.array_equal(overlay(PICTURE, np.zeros((6, 8), np.float32), level=0.5), GREY)
    full = np.ones((60, 80), np.float32)
    assert np.array_equal(overlay(PICTURE, full, strength=1.0), np.broadcast_to(INFERNO[255], PICTURE.shape))
    half = overlay(PICTURE, full, strength=0.5).astype(int)
    assert np.abs(half - (GREY.astype(int) + INFERNO[255]) / 2).max() <= 2


def test_the_contour_runs_where_the_map_reaches_the_level_and_the_outline_beside_the_defect():
    heat, mask = np.zeros((60, 80), np.float32), np.zeros((60, 80), bool)
    heat[20:40, 30:60] = 0.6
    lit = np.abs(overlay(PICTURE, heat, strength=0, level=0.5).astype(int) - figures.CONTOUR).sum(axis=2) < 150
    assert lit[20, 35:55].all() and lit[39, 35:55].all() and not lit[25:35, 35:55].any() and not lit[:15].any()
    assert np.array_equal(overlay(PICTURE, heat, strength=0, level=0.7), GREY)
    mask[30:32, 10:70] = True  # a scratch of two pixels, which stays visible
    drawn = overlay(PICTURE, mask=mask)
    assert np.array_equal(drawn[30:32, 12:68], PICTURE[30:32, 12:68]) and np.array_equal(drawn[:22], PICTURE[:22])
    cyan = np.abs(drawn.astype(int) - figures.OUTLINE).sum(axis=2) < 250
    assert cyan[25:29, 30:50].all(axis=1).any() and cyan[33:37, 30:50].all(axis=1).any()


def test_shares_agree_with_the_metrics_and_a_high_cell_spreads_as_far_as_it_is_high():
    values = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    wanted = resize_maps(torch.from_numpy(values)[None, None], torch.zeros(1, 1, 32, 48))
    stretched = enlarged_share(values, None, (32, 48))
    assert np.abs(stretched - normalize_maps(wanted)[0, 0].numpy()).max() < 1e-4
    scale = MapScale(-0.5, 1.5)
    expected = scale.apply(wanted[0, 0].numpy())
    assert np.abs(enlarged_share(values.astype(np.float16), scale, (32, 48)) - expected).max() < 1e-3
    for silent in (7, np.nan):
        assert (enlarged_share(np.full((2, 2), silent, np.float32), None, (4, 4)) == 0).all()
    # Between cells of 0 and 10 whose centres are 8 pixels apart, half the ceiling of 1 is reached at the fifth.
    shown = enlarged_share(np.array([[0.0, 10.0]], np.float32), MapScale(0.0, 1.0), (1, 16))[0]
    assert np.flatnonzero(shown >= 0.5).tolist() == list(range(4, 16))
    assert shown[4] == pytest.approx(10 * 0.5 / 8)


def test_a_thin_region_survives_shrinking_whatever_stands_beside_it():
    mask = np.zeros((64, 64), bool)
    assert figures.resized_mask(mask, (16, 16)) is None
    mask[17, 4:60] = True  # a quarter of a cell once four pixels make one
    for stain in (0, 16):
        mask[40 : 40 + stain, 40:56] = True
        small = figures.resized_mask(mask, (16, 16))
        assert np.array_equal(small[4], np.arange(16) % 15 > 0) and small.sum() == 14 + stain


def test_pictures_are_decoded_once_and_missing_ones_are_grey_and_told(tmp_path):
    mask = write_mask(tmp_path / "m.png", size=(400, 800))
    for path, files in ((tmp_path / "a.jpg", PictureFiles()), (tmp_path / "a.png", PictureFiles())):
        Image.fromarray(np.full((400, 800, 3), 200, np.uint8)).save(path)
        small = Image.open(io.BytesIO(files.thumbnail(path)))
        assert small.size == (THUMBNAIL, THUMBNAIL // 2) and np.abs(np.asarray(small).astype(int) - 200).max() < 4
        assert [part[1:3] for part in small.layer] == [(1, 1)] * 3  # colours at full resolution
        shown = files.load(path, mask, 100, (1, 1))
        assert shown.pixels.shape == (50, 100, 3) and shown.mask.shape == (50, 100) and shown.size == (400, 800)
        assert files.load(path, mask, 100, (1, 1)) is shown and not shown.problem
        path.write_bytes(b"")
        assert thumbnail(path) == thumbnail(None) == thumbnail(tmp_path / "gone.jpg")
        gone = PictureFiles().load(path, tmp_path / "gone.png", 100, (10, 20))
        assert gone.pixels.shape == (50, 100, 3) and path.name in gone.problem and "gone.png" in gone.problem


# --- Figures


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = build_data(tiny_settings(tmp_path_factory.mktemp("plots")))
    data.setup("test")
    return data


@pytest.fixture(scope="module")
def models():
    return {strategy: build_model(tiny_settings(Path(), strategy)) for strategy in ("S1", "S5", "S6")}


def run_of(data, models, strategy, **values):
    """As much of a run as the figures read."""
    folder = data.settings.data_root.parent
    model = models[strategy]
    return SimpleNamespace(
        settings=tiny_settings(folder, strategy, **values), model=model, calibration=model.calibration
    )


def texts(figure):
    return " | ".join(axis.get_title() for axis in figure.axes)


def colourful(axis):
    """How far from grey the picture on an axis is."""
    return np.ptp(axis.images[0].get_array().astype(int), axis=2)


def test_contact_sheet_outlines_masks_only_where_there_are_some_and_a_saved_figure_is_handed_back(tmp_path):
    image, mask = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8))
    mask[2:5, 2:5] = 1
    sheet = figures.contact_sheet([image] * 3, [mask, None, mask], ["a", "b", "c"])
    assert [bool(colourful(axis).max()) for axis in sheet.axes[:3]] == [True, False, True]
    for figure, name, magic in ((sheet, "new/a.png", b"\x89PNG"), (plt.figure(), "new/a.jpg", b"\xff\xd8\xff\xe0")):
        assert figures.save_figure(figure, tmp_path / name) is figure
        assert (tmp_path / name).read_bytes()[:4] == magic


def test_map_grid_says_how_each_map_is_scaled_and_an_absolute_one_is_calm():
    images, masks, values = np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8)), np.stack([np.eye(2), np.eye(2) + 8])
    maps = {"cam": values, "stretched": values, "attention": np.zeros((2, 4, 4))}
    more = {"unit_maps": ["attention"], "notes": {"stretched": ["n1", "n2"]}, "scales": {"cam": MapScale(2.0, 4.0)}}
    figure = figures.map_grid(images, masks, maps, ["calm", "loud"], **more)
    assert texts(figure).split(" | ")[1:4] == ["cam\n(absolute)", "stretched\n(per image)", "attention\n(0 to 1)"]
    shown = [colourful(axis).any() for axis in figure.axes if axis not in figure.axes[::4]]
    assert shown == [False, True, False, True, True, False]
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "nothing found", "n1", "", "", "", "n2", ""]


def test_looking_is_evaluation_through_the_source_that_is_asked_for(data, models):
    model = models["S6"]
    rows = data.samples.index[data.samples["mask"].notna()][:2].tolist()
    batch = data.dataset.__getitems__(rows)
    _, output = look(model, data, rows, MaskSource.of(model, "oracle"))
    assert not model.training and not output.logits.requires_grad and model.mask_source == "localization"
    with torch.inference_mode():
        told = model(batch.images, attention_masks=batch.masks).effective_attention
        own = model(batch.images).effective_attention
    assert torch.equal(output.effective_attention, told)
    assert torch.equal(look(model, data, rows)[1].effective_attention, own) and not torch.equal(told, own)


def test_explanations_show_what_the_strategy_has_of_picked_rows_or_of_all_misses_first(data, models):
    told = {"split": [*["test"] * 5, "val"], "label": [0, *[1] * 5], "defect_type": ["normal", *"aaabc"], "mask": "m"}
    samples = pd.DataFrame(told | {"group": ["p", "q", "q", "r", "q", "s"]})
    assert figures.pick_rows(samples, "test", defective=3, normal=2) == [1, 4, 3, 0]  # not part q's kind a again
    assert figures.pick_rows(samples.assign(group=None), "test", defective=3, normal=2) == [1, 4, 2, 0]
    rows = figures.pick_rows(data.samples, "test", defective=3, normal=2)
    figure = explanation_figure(models["S5"], data, rows, threshold=0.0, scale=MapScale(0.0, 1.0))
    assert len(figure.axes) == 5 * 5 and "called defective" in figure.axes[0].get_ylabel()
    assert all(name in texts(figure) for name in ("deciding CAM", "localization", "the same\n(absolute)"))
    names = [path.split("/")[-1] for path in data.samples.query("split == 'test'")["image"]]
    table = pd.DataFrame({"image": names, "split": "test", "verdict": ["TP", "FN", "TN", "TN", "FP", "TP"]})
    pages = dict(figures.explanation_pictures(models["S1"], data, table, threshold=0.5))
    assert list(pages) == ["test_FN_01", "test_FP_01", "test_TP_01", "test_TN_01"]
    assert [len(page.axes) for page in pages.values()] == [2, 2, 4, 4]
    with pytest.raises(ValueError, match="the predictions hold 5 pictures of 'test', the data 6"):
        next(figures.explanation_pictures(models["S1"], data, table.iloc[1:], threshold=0.5))


def test_the_oracle_is_named_on_every_figure_and_so_is_a_teacher(data, models, tmp_path, monkeypatch):
    def told(source):
        return explanation_figure(models["S6"], data, [0], threshold=0.5, source=source).get_supxlabel()

    assert told(MaskSource("oracle")).startswith("mask_source oracle: the model is told") and told(None) == ""
    figure = same_pictures_figure([run_of(data, models, "S6", mask_source="oracle")])
    assert "S6\n(oracle: leaks the label)" in texts(figure)
    source = MaskSource("efficientad", tmp_path)
    source._outside.run = SimpleNamespace(teacher="random (untrained)")
    monkeypatch.setattr(source._outside, "masks", lambda _, batch: batch.masks)
    assert told(source) == "masks from EfficientAD; its teacher: random (untrained)"


def test_strategies_side_by_side_without_those_whose_masks_cannot_be_had(data, models, tmp_path, caplog):
    s5 = [run_of(data, models, "S5", seed=seed) for seed in (1, 2)]
    outside = run_of(data, models, "S6", mask_source="external", external_mask_dir=tmp_path / "masks")
    gone = run_of(data, models, "S6", mask_source="efficientad", efficientad_run=tmp_path / "gone")
    for absent, told in ((outside, "masks: no such folder"), (gone, "no run here")):
        figure = same_pictures_figure([s5[0], absent], defective=1)
        assert "S5\n(per image)" in texts(figure) and "S6" not in texts(figure)
        assert figure.get_supxlabel().replace("\n", " ") == "S6 is left out: its masks from outside cannot be had."
        assert "S6 seed 42 is left out of the figure" in caplog.text and told in caplog.text
    for path in data.samples["image"]:
        write_mask(tmp_path / "masks" / path.split("/")[-1], size=(64, 64))
    figure = same_pictures_figure([*s5, outside], defective=2)
    assert len(figure.axes) == 3 * 3  # the picture and two strategies: a second seed is not shown again
    assert "S5\n(per image) | S6\n(per image)" in texts(figure) and figure.get_supxlabel() == ""
    assert all(axis.get_xlabel().startswith("p(defect)") for axis in figure.axes[1:3])


def test_confusion_counts_and_curves_training_and_strategies():
    rows = [("test", 0, 0.1), ("test", 0, 0.7), ("test", 1, 0.8), ("test", 1, 0.9), ("test_shift", 1, 0.2)]
    table = pd.DataFrame(rows, columns=["split", "label", "probability"]).assign(image=list("abcde"), group=None)
    figure = figures.classification_figure(table.assign(predicted=(table["probability"] >= 0.5).astype(int)), 0.5)
    assert [text.get_text() for axis in figure.axes[:2] for text in axis.texts] == [*"1102", *"0010"]
    dots = [tuple(line.get_xydata()[0]) for line in figure.axes[2].lines if line.get_marker() == "o"]
    assert dots == [(0.5, 1.0)]  # one class alone has no curve
    bins = [tuple(points.get_offsets()[0].round(2)) for points in figure.axes[4].collections[1::2]]
    assert bins == [(0.1, 0.0), (0.7, 0.0), (0.8, 1.0), (0.9, 1.0), (0.2, 1.0)]  # probability, share of defects

    tags = ("train/loss_cls", "train/stage", "val/average_precision")
    logged = pd.DataFrame([(tag, step, 1 + step // 4) for tag in tags for step in range(8)])
    losses, scores = figures.training_figure(logged.set_axis(["tag", "step", "value"], axis=1)).axes
    assert [axis.lines[0].get_label() for axis in (losses, scores)] == ["cls", "AP"]
    assert [text.get_text() for text in losses.texts] == ["stage 1", "stage 2"]

    compared = pd.DataFrame({"strategy": ["S1", "S2"] * 2, "split": ["test"] * 2 + ["test_shift"] * 2})
    compared = compared.assign(accuracy=[0.9, 0.8, 0.2, 0.4], cam_iou=0.1, attention_iou=np.nan, loc_iou=np.nan)
    left, right = figures.strategies_figure(compared.assign(grid_iou=0.7)).axes
    drawn = {line.get_label(): list(line.get_ydata()) for axis in (left, right) for line in axis.lines}
    assert drawn["test"] == [0.9, 0.8] and drawn["test_shift"] == [0.2, 0.4] and drawn["grid IoU (the mask)"][0] == 0.7
    assert not plt.get_fignums()  # a notebook would show an open one twice
