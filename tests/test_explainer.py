"""One picture or many, of any kind, explained by models whose answer is known, and by a trained run."""

import logging
import shutil
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hand_made import WHOLE, Looks
from PIL import Image
from tiny import tiny_settings

from gainmtl_lib import explain as module
from gainmtl_lib.backbone import ModelError
from gainmtl_lib.evaluation import evaluate
from gainmtl_lib.explain import DefectExplainer, NotExplained
from gainmtl_lib.model import build_model
from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import Run
from gainmtl_lib.train import fit


def picture(rows=slice(0, 24), columns=slice(0, 24), size=(64, 64), value=255):
    """Faint noise with a bright block."""
    pixels = np.random.default_rng(0).integers(0, 20, (*size, 3)).astype(np.uint8)
    pixels[rows, columns] = value
    return pixels


def block(rows=slice(0, 24), columns=slice(0, 24), size=(64, 64)):
    mask = np.zeros(size, np.bool_)
    mask[rows, columns] = True
    return mask


def explainer_of(model=None, **options):
    return DefectExplainer(model or Looks(), **{"image_size": (64, 64)} | options)


def same(one, other):
    """Equal to float tolerance: a batch of another size may sum in another order."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(value, other[name], atol=1e-5)
        elif isinstance(value, float):
            assert value == pytest.approx(other[name], abs=1e-5)
        elif name == "counterfactual" and value is not None:
            assert {k: v for k, v in value.items() if not isinstance(v, float)} == {
                k: v for k, v in other[name].items() if not isinstance(v, float)
            }
            numbers = ["probability", "without_defect", "control"]
            assert [value[k] for k in numbers] == pytest.approx([other[name][k] for k in numbers], abs=1e-5)
        else:
            assert value == other[name]


def test_a_model_that_looks_at_one_corner():
    explanation = explainer_of().explain(picture(), block())
    assert explanation["prediction"] == 1 and explanation["prediction_name"] == "defective"
    assert explanation["confidence"] == explanation["probability"] > 0.99
    assert explanation["cam"].shape == (16, 16) and explanation["cam"][:6, :6].min() > 1 > explanation["cam"][6:].max()
    assert explanation["cam_iou"] > 0.95 and explanation["point_game"] == 1.0
    assert explanation["attention"][:8, :8].min() == 1 and explanation["attention"].sum() == 64
    assert explanation["box"] == (0, 0, 24, 24) and explanation["area"] == 576 / 4096
    answer = explanation["counterfactual"]
    assert answer["flips"] and answer["control_flips"] is False and answer["mask_from"] == "annotation"
    elsewhere = explainer_of().explain(picture(slice(40, 64), slice(40, 64)))
    assert elsewhere["prediction"] == 0 and elsewhere["counterfactual"] is None


def test_a_decision_that_ignores_the_defect_does_not_flip():
    answer = explainer_of(Looks(without="ignores")).explain(picture(), block())["counterfactual"]
    assert not answer["flips"] and answer["message"].endswith("does not hang on this region alone.")


def test_a_decision_that_anything_turns_is_not_praised():
    answer = explainer_of(Looks(without="fragile")).explain(picture(), block())["counterfactual"]
    assert answer["flips"] and answer["control_flips"] and answer["message"].endswith("the flip proves nothing.")


def test_a_wrong_region_is_not_the_reason():
    """The annotation lies where the model does not look; its own localization does."""
    wrong = explainer_of().explain(picture(), block(slice(40, 60), slice(40, 60)))
    assert not wrong["counterfactual"]["flips"] and wrong["cam_iou"] == 0 and wrong["point_game"] == 0
    own = explainer_of().explain(picture())
    assert own["counterfactual"]["flips"] and own["counterfactual"]["mask_from"] == "localization"
    assert "that the model itself localizes" in own["counterfactual"]["message"]


@pytest.mark.parametrize("strategy", ["S1", "S4"])
def test_a_strategy_without_the_path_says_why_there_is_no_counterfactual(strategy):
    explanation = explainer_of(Looks(strategy=strategy)).explain(picture(), block())
    assert explanation["prediction"] == 1 and explanation["counterfactual"] is None
    assert explanation["counterfactual_missing"].startswith(f"strategy {strategy} has no counterfactual path")
    with pytest.raises(NotExplained, match="strategy S1 has no attention path"):
        explainer_of(Looks(strategy="S1")).explain(picture())["attention"]


def test_nothing_localized_leaves_nothing_to_suppress():
    explanation = explainer_of(Looks(WHOLE, level=0.01)).explain(picture(value=100))
    assert explanation["prediction"] == 1 and explanation["box"] is None
    assert explanation["counterfactual"] is None
    assert explanation["counterfactual_missing"].startswith("the localization marks nothing and no mask was given")
    annotated = explainer_of(Looks(WHOLE, level=0.01)).explain(picture(value=100), block())
    assert annotated["counterfactual"] is not None and "counterfactual_missing" not in annotated


def test_a_normal_verdict_asks_nothing():
    model = Looks()
    explanation = explainer_of(model).explain(picture(value=10), block())
    assert explanation["counterfactual"] is None and "counterfactual_missing" not in explanation
    assert model.batches == [1]


def test_an_empty_mask_is_no_mask():
    explanation = explainer_of().explain(picture(), np.zeros((64, 64)))
    assert "cam_iou" not in explanation and explanation["counterfactual"]["mask_from"] == "localization"
    assert explanation.get("cam_iou", "N/A") == "N/A"
    assert not any(isinstance(value, float) and np.isnan(value) for value in explanation.values())


def test_every_kind_of_input_gives_the_same_answer(tmp_path):
    pixels, mask = picture(), block()
    Image.fromarray(pixels).save(tmp_path / "p.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    kinds = {
        "path": (tmp_path / "p.png", tmp_path / "m.png"),
        "PIL": (Image.fromarray(pixels), Image.fromarray(mask)),
        "array": (pixels, mask),
        "16 bits": (pixels.astype(np.uint16) * 257, mask.astype(np.uint8) * 255),
        "tensor": (tensor, torch.from_numpy(mask)[None].float()),
    }
    explainer = explainer_of()
    explained = [explainer.explain(*given) for given in kinds.values()]
    for other in explained[1:]:
        same(explained[0], other)
    (batched,) = explainer.explain(tensor[None], torch.from_numpy(mask)[None, None])
    same(explained[0], batched)


def test_many_are_explained_in_batches_as_one_by_one():
    pictures = [picture(value=int(value)) for value in np.linspace(0, 255, 7)]
    masks = [block() if number % 2 else None for number in range(7)]
    model = Looks()
    explained = explainer_of(model, batch_size=3).explain(pictures, masks)
    assert model.batches[0] == 3 and max(model.batches) == 3
    assert [one["prediction"] for one in explained] == [0, 0, 0, 1, 1, 1, 1]
    for one, image, mask in zip(explained, pictures, masks):
        same(one, explainer_of().explain(image, mask))
    assert explainer_of().explain([]) == []


def test_a_stream_reads_pictures_only_when_they_are_wanted(tmp_path):
    stream = explainer_of(batch_size=1).stream([picture(), tmp_path / "absent.png"])
    assert next(stream)["prediction"] == 1
    with pytest.raises(DataError, match=r"absent.png: image cannot be read"):
        next(stream)


def test_boxes_are_in_the_pixels_of_a_letterboxed_picture():
    wide = picture(slice(10, 20), slice(20, 40), size=(40, 80))
    explanation = explainer_of(Looks(WHOLE, level=0.08), resize="letterbox").explain(wide)
    assert explanation["image"].shape == (64, 64, 3)
    assert explanation["prediction"] == 1 and explanation["boxes"] == [(20, 10, 40, 20)]
    assert explanation["area"] == 200 / 3200
    squashed = explainer_of(Looks(WHOLE, level=0.08)).explain(wide)
    assert squashed["box"] == (20, 10, 40, 20) and squashed["area"] == 200 / 3200


def test_masks_follow_their_picture_into_the_input():
    wide, mask = (
        picture(slice(10, 20), slice(20, 40), size=(40, 80)),
        block(slice(10, 20), slice(20, 40), size=(40, 80)),
    )
    explanation = explainer_of(Looks(WHOLE, level=0.08), resize="letterbox").explain(wide, mask)
    assert np.array_equal(explanation["mask"], block(slice(24, 32), slice(16, 32)))
    with pytest.raises(DataError, match=r"mask\[1\]: mask is 64x64 .* its picture 40x80"):
        explainer_of().explain([wide, wide], [mask, block()])


def test_the_model_is_left_as_it_was():
    model = Looks().train()
    trained = explainer_of(model).explain(picture())
    assert model.training and model.dropout.training and next(model.parameters()).device.type == "cpu"
    same(trained, explainer_of(model.eval()).explain(picture()))
    assert trained["cam"].base is None  # not a view that keeps a whole batch in memory


def test_class_names_are_a_parameter():
    explanation = explainer_of(class_names=("양품", "불량")).explain(picture())
    assert explanation["prediction_name"] == "불량" and "turns to 양품" in explanation["counterfactual"]["message"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"threshold must be a probability in \[0, 1\], got 1.5"),
        ({"class_names": ("same", "same")}, "class_names must be two different names, normal first"),
        ({"class_names": "ab"}, "class_names must be two different names"),
        ({"resize": "crop"}, "resize must be squash or letterbox, got 'crop'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        explainer_of(**options)


@pytest.mark.parametrize("source", ["efficientad", "external", "other", "oracle"])
def test_masks_from_outside_cannot_be_had_for_single_pictures(source):
    with pytest.raises(ModelError, match=f"mask_source '{source}' needs a mask from outside for every picture"):
        explainer_of(Looks(strategy="S6", mask_source=source)).explain(picture())


@pytest.mark.parametrize("source", ["localization", "none"])
def test_the_mask_source_of_a_real_model_is_respected(tmp_path, source):
    model = build_model(tiny_settings(tmp_path, "S6", mask_source=source))
    image = torch.from_numpy(picture()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = model.eval()(image).effective_attention[0, 0].numpy()
    np.testing.assert_allclose(explainer_of(model).explain(picture())["attention"], expected, atol=1e-6)


def test_a_figure_is_written_and_nothing_stays_open(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "part_3.png")
    figure = explainer_of().visualize(tmp_path / "part_3.png", block(), save_path=tmp_path / "new" / "e.png")
    assert (tmp_path / "new/e.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["e.png"]
    assert figure.texts[0].get_text() == "part_3.png: defective, confidence 99.9%"
    assert explainer_of().visualize(picture()).texts[0].get_text().startswith("defective, confidence")
    assert not plt.get_fignums()


@pytest.mark.parametrize("name", ["e", "e.txt", "e.pdf"])
def test_other_formats_are_refused_before_anything_is_computed(tmp_path, name):
    with pytest.raises(ValueError, match=r"save_path must end in .png, .jpg, .jpeg, got '.*e"):
        explainer_of().visualize("absent.png", save_path=tmp_path / name)


def test_one_figure_shows_one_picture():
    with pytest.raises(DataError, match="visualize draws one picture, got 2; call it for each"):
        explainer_of().visualize([picture(), picture()])
    assert explainer_of().visualize(torch.zeros(1, 3, 64, 64)).axes


def test_figures_fall_back_to_english_names(monkeypatch, caplog):
    monkeypatch.setattr("gainmtl_lib.explain._family_with", lambda characters: None)
    explainer = explainer_of(class_names=("양품", "불량"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing
        figure = explainer.visualize(picture())
        figure.draw_without_rendering()
    heading, lines = (text.get_text() for text in figure.texts)
    assert heading.startswith("defective") and "turns to normal" in lines
    assert "no installed font can draw '양품' and '불량'" in caplog.text
    assert explainer.explain(picture())["prediction_name"] == "불량"


def test_figures_use_a_font_that_has_the_names(monkeypatch):
    monkeypatch.setattr(module, "drawable_names", lambda names: (tuple(names), ["DejaVu Sans", "Some Gothic"]))
    figure = explainer_of(class_names=("양품", "불량")).visualize(picture())
    assert figure.texts[0].get_text().startswith("불량")
    assert figure.texts[0].get_fontfamily() == ["DejaVu Sans", "Some Gothic"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = fit(tiny_settings(tmp_path_factory.mktemp("explainer"), "S5", num_epochs=1))
    evaluate(run)
    return run


def test_a_run_is_explained_as_it_was_evaluated(run):
    explainer = DefectExplainer.from_run(run)
    assert explainer.threshold == run.metrics["threshold"] and set(explainer.scales) == set(run.metrics["map_scales"])
    table, maps = run.predictions, run.maps
    root = run.settings.data_root
    masks = [root / mask if isinstance(mask, str) else None for mask in table["mask"]]
    explained = explainer.explain([root / image for image in table["image"]], masks)
    for number, (row, one) in enumerate(zip(table.to_dict("records"), explained)):
        assert one["probability"] == pytest.approx(row["probability"], abs=1e-5)
        assert one["prediction"] == row["predicted"]
        for name, scale in explainer.scales.items():
            assert one["found"][name] == bool(scale.finds(maps[name][number]))
        scores = ("cam_iou", "grid_iou", "point_game", "energy_inside")
        if row["label"] == 1:
            assert [one[name] for name in scores] == pytest.approx([row[name] for name in scores], abs=1e-3)
        else:
            assert not set(scores) & set(one)


def test_a_run_answers_counterfactuals_as_its_evaluation_did(run):
    explainer = DefectExplainer.from_run(run)
    explainer.threshold = 0.0  # every verdict is questioned
    rows = run.predictions.query("label == 1")
    root = run.settings.data_root
    explained = explainer.explain([root / name for name in rows["image"]], [root / name for name in rows["mask"]])
    answers = [one["counterfactual"] for one in explained]
    assert [answer["without_defect"] for answer in answers] == pytest.approx(rows["cf_probability"].tolist(), abs=1e-4)
    controls = [float("nan") if answer["control"] is None else answer["control"] for answer in answers]
    assert controls == pytest.approx(rows["cf_control_probability"].tolist(), abs=1e-4, nan_ok=True)


def test_a_run_without_evaluation_works_with_less(run, tmp_path, caplog):
    for name in ("settings.yaml", "manifest.json", "model.safetensors"):
        shutil.copy(run.folder / name, tmp_path)
    with caplog.at_level(logging.WARNING):
        explainer = DefectExplainer.from_run(Run(tmp_path))
    assert "is not evaluated: the threshold is 0.5 and no map has an absolute scale" in caplog.text
    assert explainer.threshold == 0.5 and "found" not in explainer.explain(picture())


class Remembers(Looks):
    """Keeps the masks that it was asked to suppress."""

    def __init__(self, **options):
        super().__init__(WHOLE, level=0.01, **options)
        self.masks = []

    def forward(self, images, masks=None):
        if masks is not None:
            self.masks.append(masks)
        return super().forward(images, masks)


def test_the_control_lies_in_the_picture_and_not_in_the_bars_beside_it():
    places = [(slice(4, 14), slice(k, k + 10)) for k in range(0, 72, 6)]
    pictures = [picture(*place, size=(40, 80)) for place in places]
    model = Remembers()
    explainer_of(model, resize="letterbox").explain(pictures, [block(*place, size=(40, 80)) for place in places])
    defects, controls = model.masks
    assert len(controls) == len(places) and controls.flatten(1).any(1).all()
    assert not controls[..., :16, :].any() and not controls[..., 48:, :].any()
    assert not (controls * defects).any()


def test_a_figure_of_an_explanation_asks_the_model_nothing(tmp_path):
    model = Looks()
    explainer = explainer_of(model)
    explanation = explainer.explain(picture(), block())
    asked = len(model.batches)
    figure = explainer.figure_of(explanation, title="part_3.png", save_path=tmp_path / "e.png")
    assert len(model.batches) == asked and (tmp_path / "e.png").is_file()
    heading, lines = (text.get_text() for text in figure.texts)
    assert heading == "part_3.png: defective, confidence 99.9%" and explanation["counterfactual"]["message"] in lines
    with pytest.raises(ValueError, match="save_path must end in"):
        explainer.figure_of(explanation, save_path=tmp_path / "e.txt")


def test_english_figures_leave_the_explanation_in_its_own_words(monkeypatch):
    monkeypatch.setattr("gainmtl_lib.explain._family_with", lambda characters: None)
    explainer = explainer_of(class_names=("양품", "불량"))
    explanation = explainer.explain(picture(), block())
    lines = explainer.figure_of(explanation).texts[1].get_text()
    english = explainer_of().explain(picture(), block())["counterfactual"]["message"]
    assert " ".join(english.split()) in " ".join(lines.split())
    assert explanation["prediction_name"] == "불량" and "양품" in explanation["counterfactual"]["message"]


def test_attempts_go_on_behind_a_picture_that_cannot_be_used(tmp_path):
    model = Looks()
    given = [picture(value=10), tmp_path / "absent.png", picture(value=20), picture(), tmp_path / "gone.png"]
    first, absent, *others, gone = explainer_of(model, batch_size=3).attempts(given)
    assert [one["prediction"] for one in (first, *others)] == [0, 0, 1]
    assert "absent.png: image cannot be read" in str(absent) and "gone.png" in str(gone)
    assert model.batches[:2] == [2, 1]
    assert isinstance(absent, DataError) and isinstance(gone, DataError)


def test_masks_from_outside_name_what_both_kinds_of_users_can_do():
    with pytest.raises(ModelError, match=r"set model\.mask_source, or give gainmtl explain --mask-source"):
        explainer_of(Looks(strategy="S6", mask_source="external")).explain(picture())
