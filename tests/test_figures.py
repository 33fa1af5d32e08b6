"""The overlay, pixel by pixel, and what figures say and show."""

import io
from types import SimpleNamespace

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from drawn_data import write_mask
from matplotlib.figure import Figure
from PIL import Image
from tiny import tiny_settings

from gainmtl_lib import figures
from gainmtl_lib.browser.library import THUMBNAIL, PictureFiles, thumbnail
from gainmtl_lib.dataset import build_data
from gainmtl_lib.evaluation import MaskSource
from gainmtl_lib.figures import (
    INFERNO,
    enlarged_share,
    explanation_figure,
    look,
    map_grid,
    overlay,
    same_pictures_figure,
)
from gainmtl_lib.metrics import MapScale, normalize_maps, resize_maps
from gainmtl_lib.model import build_model
from gainmtl_lib.runs import RunError

# --- A map over a picture

PICTURE = np.random.default_rng(0).integers(40, 200, (60, 80, 3)).astype(np.uint8)
GREY = cv2.cvtColor(cv2.cvtColor(PICTURE, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def test_colours_follow_the_value_and_the_strength_and_a_calm_map_leaves_the_picture_grey():
    assert np.array_equal(overlay(PICTURE), PICTURE)
    assert np.array_equal(overlay(PICTURE, np.zeros((6, 8), np.float32), level=0.5), GREY)
    full = np.ones((60, 80), np.float32)
    assert np.array_equal(overlay(PICTURE, full, strength=1.0), np.broadcast_to(INFERNO[255], PICTURE.shape))
    assert np.array_equal(overlay(PICTURE, full, strength=0.0), GREY)
    half = overlay(PICTURE, full, strength=0.5).astype(int)
    assert np.abs(half - (GREY.astype(int) + INFERNO[255]) / 2).max() <= 2


def test_the_contour_runs_where_the_map_reaches_the_level():
    heat = np.zeros((60, 80), np.float32)
    heat[20:40, 30:60] = 0.6
    lit = np.abs(overlay(PICTURE, heat, strength=0, level=0.5).astype(int) - figures.CONTOUR).sum(axis=2) < 150
    assert lit[20, 35:55].all() and lit[39, 35:55].all() and not lit[25:35, 35:55].any() and not lit[:15].any()
    assert np.array_equal(overlay(PICTURE, heat, strength=0, level=0.7), GREY)


def test_the_outline_runs_beside_the_defect_and_leaves_it_visible():
    mask = np.zeros((60, 80), bool)
    mask[30:32, 10:70] = True  # a scratch of two pixels
    drawn = overlay(PICTURE, mask=mask)
    assert np.array_equal(drawn[30:32, 12:68], PICTURE[30:32, 12:68])
    cyan = np.abs(drawn.astype(int) - figures.OUTLINE).sum(axis=2) < 250
    assert cyan[25:29, 30:50].all(axis=1).any() and cyan[33:37, 30:50].all(axis=1).any()
    assert np.array_equal(drawn[:22], PICTURE[:22])


def test_shares_agree_with_the_metrics():
    values = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    wanted = resize_maps(torch.from_numpy(values)[None, None], torch.zeros(1, 1, 32, 48))
    stretched = enlarged_share(values, None, (32, 48))
    assert np.abs(stretched - normalize_maps(wanted)[0, 0].numpy()).max() < 1e-4
    scale = MapScale(-0.5, 1.5)
    expected = scale.apply(wanted[0, 0].numpy())
    assert np.abs(enlarged_share(values.astype(np.float16), scale, (32, 48)) - expected).max() < 1e-3
    assert enlarged_share(values, MapScale(100.0, 200.0), (32, 48)).max() == 0
    assert enlarged_share(np.full((3, 3), 7, np.float32), None, (3, 3)).max() == 0
    assert (enlarged_share(np.full((2, 2), np.nan, np.float32), None, (4, 4)) == 0).all()


def test_a_cell_far_above_the_ceiling_spreads_as_far_as_it_is_high():
    """Between cells of 0 and 10 whose centres are 8 pixels apart, half the ceiling of 1 is reached at the fifth."""
    shown = enlarged_share(np.array([[0.0, 10.0]], np.float32), MapScale(0.0, 1.0), (1, 16))[0]
    assert np.flatnonzero(shown >= 0.5).tolist() == list(range(4, 16))
    assert shown[4] == pytest.approx(10 * 0.5 / 8)


def test_a_thin_region_survives_shrinking_whatever_stands_beside_it():
    mask = np.zeros((64, 64), bool)
    assert figures.resized_mask(mask, (16, 16)) is None and figures.resized_mask(None, (16, 16)) is None
    mask[17, 4:60] = True  # a quarter of a cell once four pixels make one
    for stain in (0, 16):
        mask[40 : 40 + stain, 40:56] = True
        small = figures.resized_mask(mask, (16, 16))
        assert np.array_equal(small[4], np.arange(16) % 15 > 0) and small.sum() == 14 + stain


# --- Pictures as a browser shows them


def test_the_band_stands_below_the_picture_and_fits_its_words():
    wide, below = np.full((50, 400, 3), 90, np.uint8), 2 * figures.LETTER
    whole = figures.with_band(wide, "CAM · absolute scale", bar=True)
    assert whole.shape == (50 + below, 400, 3) and np.array_equal(whole[:50], wide)
    assert np.array_equal(whole[-1, -1], figures.BAND) and (whole[50:] == INFERNO[255]).all(axis=2).any()
    narrow = figures.with_band(PICTURE, "words that never fit into eighty pixels, however small", bar=False)
    assert np.array_equal(narrow[60:, -3:], np.broadcast_to(figures.BAND, (below, 3, 3)))  # nothing runs over the edge


def test_bytes_are_a_jpeg_with_colours_at_full_resolution():
    smooth = cv2.GaussianBlur(PICTURE, (0, 0), 4)
    read = Image.open(io.BytesIO(figures.encode(smooth)))
    assert [part[1:3] for part in read.layer] == [(1, 1)] * 3
    assert np.abs(np.asarray(read).astype(int) - smooth).mean() < 3


def test_pictures_are_decoded_once_and_missing_ones_are_grey_and_told(tmp_path):
    for path, files in ((tmp_path / "a.jpg", PictureFiles()), (tmp_path / "a.png", PictureFiles())):
        Image.fromarray(np.full((400, 800, 3), 200, np.uint8)).save(path)
        small = np.asarray(Image.open(io.BytesIO(files.thumbnail(path))))
        assert small.shape == (THUMBNAIL // 2, THUMBNAIL, 3) and np.abs(small.astype(int) - 200).max() < 4
        mask = write_mask(tmp_path / "m.png", size=(400, 800))
        shown = files.load(path, mask, 100, (1, 1))
        assert shown.pixels.shape == (50, 100, 3) and shown.mask.shape == (50, 100) and shown.size == (400, 800)
        assert files.load(path, mask, 100, (1, 1)) is shown and not shown.problem
        path.write_bytes(b"")
        assert thumbnail(path) == thumbnail(None) == thumbnail(tmp_path / "gone.jpg")
        gone = PictureFiles().load(path, tmp_path / "gone.png", 100, (10, 20))
        assert gone.pixels.shape == (50, 100, 3) and path.name in gone.problem and "gone.png" in gone.problem


# --- Figures


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


def trained(settings, model=None):
    """As much of a run as the figure reads."""
    return SimpleNamespace(settings=settings, model=model or build_model(settings))


def texts(figure):
    return " | ".join(axis.get_title() for axis in figure.axes)


def colourful(axis):
    """How far from grey the picture on an axis is."""
    return np.ptp(axis.images[0].get_array().astype(int), axis=2)


def test_contact_sheet_outlines_masks_only_where_there_are_some():
    image, mask = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8))
    mask[2:5, 2:5] = 1
    figure = figures.contact_sheet([image] * 3, [mask, None, mask], ["a", "b", "c"])
    assert [bool(colourful(axis).max()) for axis in figure.axes[:3]] == [True, False, True]
    assert texts(figure) == "a | b | c |  |  | "


def test_map_grid_says_how_each_map_is_scaled_and_an_absolute_one_is_calm():
    images, masks = np.random.default_rng(0).random((2, 8, 8, 3)), np.zeros((2, 8, 8))
    maps = {"cam": np.random.default_rng(1).random((2, 4, 4)), "attention": np.zeros((2, 4, 4))}
    figure = map_grid(images, masks, maps, ["x", "y"], unit_maps=["attention"], notes={"cam": ["n1", "n2"]})
    assert "cam\n(per image)" in texts(figure) and "attention\n(0 to 1)" in texts(figure)
    shown = {axis.get_title().split("\n")[0]: colourful(axis).max() for axis in figure.axes}
    assert shown["cam"] > 100 and shown["attention"] == 0
    assert sorted(axis.get_xlabel() for axis in figure.axes) == [""] * 4 + ["n1", "n2"]
    maps = {"cam": np.stack([np.full((2, 2), 1.0), np.full((2, 2), 9.0)])}
    scales = {"cam": MapScale(floor=2.0, ceiling=4.0)}
    calm, loud = map_grid(images, masks, maps, ["calm", "loud"], scales=scales).axes[1::2]
    assert calm.get_title() == "cam\n(absolute)" and calm.get_xlabel() == "nothing found" and loud.get_xlabel() == ""
    assert colourful(calm).max() == 0 < colourful(loud).min()


def test_saved_figures_are_handed_back(tmp_path):
    for figure, name, magic in ((Figure(), "new/a.png", b"\x89PNG"), (plt.figure(), "new/a.jpg", b"\xff\xd8\xff\xe0")):
        assert figures.save_figure(figure, tmp_path / name) is figure
        assert (tmp_path / name).read_bytes()[:4] == magic


def test_rows_are_picked_by_defect_type_and_the_same_for_every_model(data):
    rows = figures.pick_rows(data.samples, "test", defective=3, normal=2)
    picked = data.samples.loc[rows]
    assert picked["label"].tolist() == [1, 1, 1, 0, 0]
    types = data.samples.query("split == 'test' and label == 1")["defect_type"].nunique()
    assert picked["defect_type"].iloc[:3].nunique() == types
    assert rows == figures.pick_rows(data.samples.copy(), "test", defective=3, normal=2)


def test_looking_is_evaluation_through_the_source_that_is_asked_for(data, tmp_path):
    model = build_model(tiny_settings(tmp_path, "S6"))
    rows = data.samples.index[data.samples["mask"].notna()][:2].tolist()
    batch = data.dataset.__getitems__(rows)
    _, output = look(model, data, rows, MaskSource.of(model, "oracle"))
    assert not model.training and not output.logits.requires_grad
    with torch.inference_mode():
        told = model(batch.images, attention_masks=batch.masks).effective_attention
        own = model(batch.images).effective_attention
    assert torch.equal(output.effective_attention, told)
    assert torch.equal(look(model, data, rows)[1].effective_attention, own) and not torch.equal(told, own)
    assert model.mask_source == "localization"
    outside = build_model(tiny_settings(tmp_path, "S6", mask_source="external", external_mask_dir=tmp_path))
    with pytest.raises(RunError, match="'external' needs external_mask_dir"):
        look(outside, data, [0])


def test_explanations_show_what_the_strategy_has(data, model, tmp_path):
    figure = explanation_figure(model, data, [0, 1], threshold=0.0, scale=MapScale(0.0, 1.0))
    assert len(figure.axes) == 2 * 5
    assert all(name in texts(figure) for name in ("deciding CAM", "localization", "the same\n(absolute)"))
    assert "called defective" in figure.axes[0].get_ylabel()
    assert len(explanation_figure(build_model(tiny_settings(tmp_path, "S1")), data, [0], threshold=0.5).axes) == 2


def test_pages_cover_every_picture_once_misses_first_paired_by_name(data, model):
    rows = data.samples[data.samples["split"].isin(["test", "test_shift"])]
    verdicts = ["TP", "FN", "TN", "TN", "FP", "TP"] * 2
    names = [path.split("/")[-1] for path in rows["image"]]
    table = pd.DataFrame({"image": names, "split": rows["split"], "verdict": verdicts})
    pages = figures.explanation_pictures(model, data, table[table["split"] == "test"], threshold=0.5)
    assert [name for name, _ in pages] == ["test_FN_01", "test_FP_01", "test_TP_01", "test_TN_01"]
    with pytest.raises(ValueError, match="the predictions hold 5 pictures of 'test', the data 6"):
        next(figures.explanation_pictures(model, data, table.iloc[1:], threshold=0.5))


def test_the_oracle_is_named_on_every_figure_and_so_is_a_teacher(data, tmp_path, monkeypatch):
    model = build_model(tiny_settings(tmp_path, "S6", mask_source="oracle"))

    def told(source):
        return explanation_figure(model, data, [0], threshold=0.5, source=source).get_supxlabel()

    assert told(None).startswith("mask_source oracle: the model is told")
    assert told(MaskSource.of(model, "none")) == ""
    figure = same_pictures_figure([trained(tiny_settings(tmp_path, "S6", mask_source="oracle"), model)])
    assert "S6\n(oracle: leaks the label)" in texts(figure)
    source = MaskSource("efficientad", tmp_path)
    source._outside.run = SimpleNamespace(teacher="random (untrained)")
    monkeypatch.setattr(source._outside, "masks", lambda _, batch: batch.masks)
    assert told(source) == "masks from EfficientAD; its teacher: random (untrained)"


def test_strategies_side_by_side_without_those_whose_masks_cannot_be_had(tmp_path, model, caplog):
    s5 = [trained(tiny_settings(tmp_path, "S5", seed=seed), model) for seed in (1, 2)]
    settings = tiny_settings(tmp_path, "S6", mask_source="external", external_mask_dir=tmp_path / "masks")
    s6 = trained(settings)
    gone = trained(
        tiny_settings(tmp_path, "S6", mask_source="efficientad", efficientad_run=tmp_path / "gone"), s6.model
    )
    for absent, told in ((s6, "masks: no such folder"), (gone, "no run here")):
        figure = same_pictures_figure([s5[0], absent], defective=1)
        assert "S5\n(per image)" in texts(figure) and "S6" not in texts(figure)
        assert figure.get_supxlabel().replace("\n", " ") == "S6 is left out: its masks from outside cannot be had."
        assert "S6 seed 42 is left out of the figure" in caplog.text and told in caplog.text
    for path in build_data(settings).samples["image"]:
        write_mask(tmp_path / "masks" / path.split("/")[-1], size=(64, 64))
    figure = same_pictures_figure([*s5, s6], defective=2)
    assert len(figure.axes) == 3 * 3  # the picture and two strategies: a second seed is not shown again
    assert "S5\n(per image) | S6\n(per image)" in texts(figure) and figure.get_supxlabel() == ""
    assert all(axis.get_xlabel().startswith("p(defect)") for axis in figure.axes[1:3])
    assert figure.axes[6].get_ylabel() == "test\nnormal"


def test_confusion_counts_and_curves():
    rows = [("test", 0, 0.1), ("test", 0, 0.7), ("test", 1, 0.8), ("test", 1, 0.9), ("test_shift", 1, 0.2)]
    table = pd.DataFrame(rows, columns=["split", "label", "probability"])
    figure = figures.classification_figure(table.assign(predicted=(table["probability"] >= 0.5).astype(int)), 0.5)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "1", "0", "2"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["0", "0", "1", "0"]
    dots = [tuple(line.get_xydata()[0]) for line in figure.axes[2].lines if line.get_marker() == "o"]
    assert dots == [(0.5, 1.0)]  # one class alone has no curve


def test_training_figure_has_a_line_per_term_and_names_the_stages():
    rows = [(f"train/loss_{name}", step, 1.0) for name in ("cls", "total") for step in range(8)]
    rows += [("train/stage", step, 1 + step // 4) for step in range(8)]
    rows += [("val/average_precision", step, 0.5) for step in (3, 7)]
    losses, scores = figures.training_figure(pd.DataFrame(rows, columns=["tag", "step", "value"])).axes
    assert {line.get_label() for line in losses.lines} == {"cls", "total (weighted)"}
    assert [text.get_text() for text in losses.texts] == ["stage 1", "stage 2"]
    assert [line.get_label() for line in scores.lines] == ["AP"]
    assert list(scores.lines[0].get_xdata()) == [1, 2]


def test_strategies_figure_draws_both_splits_and_the_grid_iou():
    columns = ["strategy", "split", "accuracy", "cam_iou", "attention_iou", "loc_iou", "grid_iou"]
    rows = [
        [strategy, split, accuracy, 0.1, np.nan, np.nan, 0.7]
        for split, accuracies in {"test": (0.9, 0.8), "test_shift": (0.2, 0.4)}.items()
        for strategy, accuracy in zip(("S1", "S2"), accuracies)
    ]
    left, right = figures.strategies_figure(pd.DataFrame(rows, columns=columns)).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert drawn["test"] == [0.9, 0.8] and drawn["test_shift"] == [0.2, 0.4]
    assert "grid IoU (the mask)" in [line.get_label() for line in right.lines]
