"""One picture or many, of any kind, explained by models whose answer is known, and by a trained run."""

import pickle
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from drawn_data import truncate_file
from PIL import Image
from tiny import tiny_settings
from torch import nn

from gainmtl_lib import explain
from gainmtl_lib.backbone import ModelError
from gainmtl_lib.evaluation import evaluate
from gainmtl_lib.explain import DefectExplainer, answer, defect_boxes, read_defect, read_picture
from gainmtl_lib.findings import DataError, UnreadableError
from gainmtl_lib.layouts import CLASS_NAMES
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.model import GainOutput, build_model
from gainmtl_lib.settings import PARTS
from gainmtl_lib.train import fit

# --- Any kind of picture and mask to pixels

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (12, 16, 3)).astype(np.uint8)
GREY = RNG.integers(0, 256, (12, 16)).astype(np.uint8)
ALPHA = np.dstack([COLOR, RNG.integers(0, 256, (12, 16, 1)).astype(np.uint8)])
MASK = np.zeros((12, 16), np.bool_)
MASK[2:5, 3:9] = True


def tensor(pixels):
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


PICTURES = [
    (COLOR, (COLOR.astype(np.uint16) * 257).astype(">u2")),
    (COLOR, (COLOR / 255 - 0.5) * 1.001 + 0.5),  # overshoots a little
    (COLOR, Image.fromarray(ALPHA)),
    (COLOR, (tensor(COLOR) / 255).half().requires_grad_()),
    (COLOR, tensor(ALPHA)),
    (GREY, GREY[..., None]),
    (GREY, Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA[..., 3])])),
    (GREY, Image.fromarray(GREY.astype(np.uint16) * 257)),
    (GREY, Image.fromarray((GREY / 255).astype(np.float32))),
    (GREY, torch.from_numpy(GREY).to(torch.bfloat16) / 255),
]
MASKS = [MASK, MASK.astype(np.uint16) * 65535, MASK[..., None] * 0.8]
MASKS += [Image.fromarray(mask) for mask in (MASK, np.dstack([MASK] * 3).astype(np.uint8) * 200)]


def test_every_kind_of_picture_and_mask_and_their_files_give_the_same_pixels(caplog, tmp_path):
    for number, (wanted, given) in enumerate(PICTURES):
        pixels = read_picture(given)
        assert pixels.dtype == np.uint8 and np.array_equal(pixels, np.dstack([wanted] * 3)[..., :3]), number
    for number, mask in enumerate(MASKS):
        assert np.array_equal(read_defect(mask, (12, 16)), MASK), number
    assert read_defect(np.zeros((12, 16)), (12, 16)) is None and not caplog.text
    picture = Image.fromarray(COLOR)
    picture.getexif()[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=picture.getexif())
    picture.quantize(16).save(tmp_path / "palette.png")
    for name, shape in (("turned.png", (16, 12, 3)), ("palette.png", (12, 16, 3))):
        pixels = read_picture(str(tmp_path / name))
        assert pixels.shape == shape and np.array_equal(pixels, read_picture(Image.open(tmp_path / name))), name
    Image.fromarray(MASK).save(tmp_path / "m.png")
    assert np.array_equal(read_defect(tmp_path / "m.png", (24, 32)), MASK)


def test_files_that_cannot_be_read_are_named(tmp_path):
    Image.fromarray(COLOR).save(tmp_path / "cut.png")
    truncate_file(tmp_path / "cut.png")
    frames = [Image.fromarray(COLOR[:, ::-1] // part) for part in (1, 2)]
    for kind, read in (("image", read_picture), ("mask", lambda path: read_defect(path, (12, 16)))):
        for name, message in (("absent", "cannot be read: No such file"), ("cut", "is truncated or not an image")):
            with pytest.raises(DataError, match=f"{name}.png: {kind} {message}"):
                read(tmp_path / f"{name}.png")
        for suffix in (".gif", ".png", ".tif", ".webp"):
            Image.fromarray(COLOR).save(tmp_path / f"moving{suffix}", save_all=True, append_images=frames)
            with pytest.raises(UnreadableError, match=r"holds 3 frames \(.*\); expected one picture: save the frame"):
                read(tmp_path / f"moving{suffix}")


@pytest.mark.parametrize(("given", "message"), [
    (3, "image: got a int; expected a path, a PIL picture, an array"),
    (np.zeros((3, 8, 8)), r"image: ndarray has shape \(3, 8, 8\); .* 1, 3 or 4 .* last in an array, \(h, w, C\)"),
    (torch.zeros(8, 8, 3), r"image: Tensor has shape \(8, 8, 3\); .* first in a tensor, \(C, h, w\)"),
    (np.zeros((8, 8), np.int64), "image: pixels are int64; expected uint8, uint16 or float in"),
    (np.full((8, 8), np.nan), "image: 64 values are not finite"),
    (np.full((8, 8), 200.0), "image: float values from 200 to 200; expected .* divide by the full scale"),
    (torch.randn(3, 8, 8), "image: float values from -.* expected .* the model normalises by itself"),
    (Image.fromarray(MASK), "mask: mask is 12x16 .height x width., its picture 12x12; expected the same aspect"),
    (Image.fromarray(COLOR), "mask: cannot tell the mask's background: black covers 0% of it, white 0%; expected background 0"),
    (np.full((12, 12), 100, np.uint8), r"mask: mask has values from 100 to 100, none above half of the scale .127.; expect"),
    (torch.ones(2, 12, 16), r"mask: mask has shape \(2, 12, 16\); expected \(h, w\)"),
])  # fmt: skip
def test_what_is_no_picture_and_no_mask_is_said(given, message):
    with pytest.raises(DataError, match=message):
        read_picture(given) if message.startswith("image") else read_defect(given, (12, 12))


# --- Where the defects lie, and the verdict without them


def block(rows=slice(0, 24), columns=slice(0, 24), size=(64, 64)):
    mask = np.zeros(size, np.bool_)
    mask[rows, columns] = True
    return mask


def test_a_box_is_in_the_pixels_of_the_given_picture_the_largest_region_first():
    assert defect_boxes(block(slice(1, 3), slice(2, 4), (4, 8)), (20, 40)) == [(10, 5, 20, 15)]
    assert defect_boxes(np.ones((64, 64), bool), (7, 5)) == [(0, 0, 5, 7)]
    diagonals_connect = np.zeros((10, 10), bool)
    diagonals_connect[0, 0] = diagonals_connect[5:7, 5:7] = diagonals_connect[7:9, 7:9] = True
    assert defect_boxes(diagonals_connect, (20, 40)) == [(20, 10, 36, 18), (0, 0, 4, 2)]


@pytest.mark.parametrize(("after", "control", "flips", "control_flips", "sentence"), [
    (0.01, 0.99, True, False, "not with an equal area suppressed elsewhere (0.99): the decision rests on this region."),
    (0.98, 0.99, False, False, "the decision does not hang on this region alone."),
    (0.01, 0.02, True, True, "but so it does with an equal area suppressed elsewhere (0.02): the flip proves nothing."),
    (0.98, 0.02, False, True, "stays defective (0.99 → 0.98), yet turns with an equal area"),
    (0.01, None, True, None, "turns to normal (0.99 → 0.01), but the mask has no room to move off it: without a control"),
    (0.98, None, False, None, "does not hang on this region alone; there was no room for a control."),
])  # fmt: skip
def test_a_sentence_for_every_outcome(after, control, flips, control_flips, sentence):
    said = answer(0.99, after, control, 0.5, "annotation", CLASS_NAMES)
    assert sentence in said["message"] and (said["flips"], said["control_flips"]) == (flips, control_flips)
    said = answer(0.02, after, control, 0.5, "annotation", CLASS_NAMES)
    assert not said["flips"] and not said["control_flips"]
    assert said["message"] == "The verdict is normal already (0.02), so there is no defective verdict to question."


# --- Explanations, by models that look at the brightness of one region and at nothing else

CORNER, WHOLE = (slice(0, 32), slice(0, 32)), (slice(0, 64), slice(0, 64))
CELL = 4  # pixels of a map cell; inputs are 64 x 64


class Looks(nn.Module):
    """Defective when its region is brighter than `level`. Marks bright pixels as defect, attends where it looks.

    With a mask suppressed it looks again at the rest (``honest``), answers as before (``ignores``) or says the opposite
    whatever the mask (``fragile``).
    """

    calibration = (1.0, 0.0)

    def __init__(self, region=CORNER, level=0.25, without="honest", strategy="S5"):
        super().__init__()
        self.region, self.level, self.without = region, level, without
        self.strategy, self.map_stride = strategy, CELL
        self.counterfactual = nn.Identity() if "counterfactual" in PARTS[strategy] else None
        self.gain, self.dropout = nn.Parameter(torch.tensor(20.0)), nn.Dropout()
        self.asked = []  # the masks of each call

    def forward(self, images, masks=None):
        self.asked.append(masks)
        brightness = self.dropout(images).mean(1, keepdim=True)  # (B, 1, 64, 64)
        logits, cam = self.decide(brightness)
        output = GainOutput(logits=logits, cam=cam, cls_logits=logits, cls_cam=cam)
        if "attention" in PARTS[self.strategy]:
            looked_at = torch.from_numpy(block(*self.region)).expand_as(brightness).float()
            output.attention_map = output.effective_attention = F.avg_pool2d(looked_at, CELL)
        if {"localization", "evidence"} & {*PARTS[self.strategy]}:
            output.localization_map = brightness
        if masks is not None:
            honest = self.decide(brightness * (1 - masks))[0]
            output.cf_logits = {"honest": honest, "ignores": logits, "fragile": -logits}[self.without]
        return output

    def decide(self, brightness):
        inside = torch.from_numpy(block(*self.region))
        cam = F.avg_pool2d((brightness - self.level) * inside, CELL) * self.gain
        margin = cam.mean((2, 3)) / inside.float().mean()
        return torch.cat([torch.zeros_like(margin), margin], 1), cam


def picture(rows=slice(0, 24), columns=slice(0, 24), size=(64, 64), value=255):
    """Faint noise with a bright block."""
    pixels = np.random.default_rng(0).integers(0, 20, (*size, 3)).astype(np.uint8)
    pixels[rows, columns] = value
    return pixels


def explainer_of(model=None, **options):
    return DefectExplainer(model or Looks(), **{"image_size": (64, 64)} | options)


def test_a_model_that_looks_at_one_corner():
    model = Looks().train()
    explanation = explainer_of(model).explain(picture(), block())
    assert explanation["prediction"] == 1 and explanation["prediction_name"] == "defective"
    assert explanation["confidence"] == explanation["probability"] > 0.99
    assert explanation["cam"].shape == (16, 16) and explanation["cam"][:6, :6].min() > 1 > explanation["cam"][6:].max()
    assert explanation["cam_iou"] > 0.95 and explanation["point_game"] == 1.0 and explanation["grid_iou"] > 0.5
    assert np.array_equal(explanation["mask"], block()) and explanation["counterfactual"]["mask_from"] == "annotation"
    assert explanation["attention"][:8, :8].min() == 1 and explanation["attention"].sum() == 64
    assert explanation["localization"].shape == (64, 64) and explanation["localization"].dtype == np.float32
    assert explanation["box"] == (0, 0, 24, 24) and explanation["area"] == 576 / 4096
    assert model.training and model.dropout.training  # left as it was, and asked as if it were not
    np.testing.assert_equal(explanation, explainer_of(model.eval()).explain(picture(), block()))
    elsewhere = explainer_of().explain(picture(slice(40, 64), slice(40, 64)), block())
    assert elsewhere["prediction"] == 0 and elsewhere["confidence"] == 1 - elsewhere["probability"]
    assert elsewhere["cam_iou"] == elsewhere["point_game"] == 0


def test_a_decision_may_rest_on_the_defect_ignore_it_or_turn_at_anything():
    lower = (slice(32, 64), slice(0, 64))  # the moved mask, and only that, covers what this one looks at
    for model, image, mask, expected in (
        (Looks(), picture(), block(), (True, False)),
        (Looks(), picture(), block(slice(40, 60), slice(40, 60)), (False, False)),  # it does not look there
        (Looks(without="ignores"), picture(), block(), (False, False)),
        (Looks(without="fragile"), picture(), block(), (True, True)),
        (Looks(lower, level=0.9), picture(*lower), block(slice(0, 24), slice(0, 64)), (False, True)),
        (Looks(), picture(), np.ones((64, 64)), (True, None)),  # no room for a control
    ):
        asked = explainer_of(model).explain(image, mask)["counterfactual"]
        assert (asked["flips"], asked["control_flips"]) == expected
    own = explainer_of().explain(picture(), np.zeros((64, 64)))
    assert own["counterfactual"]["flips"] and own["counterfactual"]["mask_from"] == "localization"
    assert "that the model itself localizes" in own["counterfactual"]["message"]
    assert not any(isinstance(value, float) and np.isnan(value) for value in own.values())


def test_no_counterfactual_says_why_and_a_normal_verdict_asks_for_none():
    without_path = Looks()
    without_path.counterfactual = None
    everywhere = Looks(WHOLE, level=0.01)  # calls a picture defective that has no bright pixel
    for model, value, missing in (
        (Looks(strategy="S4"), 255, "strategy S4 has no counterfactual path to ask; S5 to S8 have one"),
        (without_path, 255, "this S5 model has no counterfactual path: it was built with use_counterfactual false"),
        (everywhere, 100, "the localization marks nothing and no mask was given"),
    ):
        told = explainer_of(model).explain(picture(value=value))
        assert told["prediction"] == 1 and told["counterfactual"] is None
        assert told["counterfactual_missing"].startswith(missing)
    assert told["box"] is None and told["boxes"] == [] and told["area"] == 0
    assert explainer_of(everywhere).explain(picture(value=100), block())["counterfactual"] is not None
    normal = explainer_of().explain(picture(value=10), block())
    assert normal["counterfactual"] is None and "counterfactual_missing" not in normal


def test_asking_for_what_is_absent_says_why():
    for strategy, name, reason in (
        ("S1", "attention", "strategy S1 has no attention path; S3 to S7 have one"),
        ("S8", "attention", "strategy S8 has no attention path; S3 to S7 have one"),
        ("S3", "box", "strategy S3 has no localization path; S4 to S8 have one"),
        ("S5", "cam_iou", "no mask was given, or it marks no pixel"),
        ("S5", "found", "no absolute scale is known; DefectExplainer.from_run"),
        ("S5", "counterfactual_missing", "the verdict is normal and asks for none"),
        ("S5", "atention", "there are prediction, prediction_name, confidence"),
    ):
        explanation = pickle.loads(pickle.dumps(explainer_of(Looks(strategy=strategy)).explain(picture())))
        assert explanation.get(name, "N/A") == "N/A"
        with pytest.raises(KeyError, match=f"no '{name}' in this explanation: .*{reason}"):
            explanation[name]


def test_only_what_stands_out_from_normal_parts_is_found_and_boxed_in_a_normal_verdict():
    for level, value, scales, found, box in (
        (0.9, 255, {}, None, None),
        (0.9, 255, {"localization": MapScale(0.6, 0.9)}, {"localization": True}, (0, 0, 24, 24)),
        (0.9, 180, {"localization": MapScale(0.8, 1.0)}, {"localization": False}, None),
        (0.25, 180, {"cam": MapScale(0.0, 1.0), "unknown": MapScale(0, 1)}, {"cam": True}, (0, 0, 24, 24)),
    ):
        said = explainer_of(Looks(level=level), scales=scales).explain(picture(value=value))
        assert said["prediction"] == (level == 0.25) and said["localization"].max() > 0.5
        assert said.get("found") == found and said["box"] == box


def test_s8s_evidence_has_a_zero_of_its_own_for_both_verdicts_and_is_asked_without_the_defect():
    scales = {"localization": MapScale(0.95, 1.0)}  # of validation, which none of these pictures exceeds
    for level, value, box in ((0.9, 180, (0, 0, 24, 24)), (0.9, 120, None), (0.25, 180, (0, 0, 24, 24))):
        for known in ({}, scales):
            said = explainer_of(Looks(level=level, strategy="S8"), scales=known).explain(picture(value=value))
            assert said["prediction"] == (level == 0.25) and said["box"] == box and "attention" not in said
    assert said["counterfactual"]["flips"] and said["counterfactual"]["mask_from"] == "localization"
    figure = explainer_of(Looks(strategy="S8")).visualize(picture())
    assert panel(figure, "evidence, the decision\nno absolute scale") and len(figure.axes) == 5
    assert "Orange box: localization ≥ 0.5, evidence ≥ 0." in figure.get_supxlabel()
    calm = words(Looks(level=2, strategy="S8"), 25)
    assert "The localization marks nothing." in calm and "unknown" not in calm


def test_many_are_explained_as_one_by_one_of_every_kind(tmp_path):
    pictures = [picture(value=int(value)) for value in np.linspace(0, 255, 7)]
    masks = [block() if number % 2 else None for number in range(7)]
    explained = explainer_of().explain(pictures, masks)
    Image.fromarray(pictures[5]).save(tmp_path / "p.png")
    Image.fromarray(block()).save(tmp_path / "m.png")
    np.testing.assert_equal(explained[5], explainer_of().explain(tmp_path / "p.png", tmp_path / "m.png"))
    batch, known = tensor(pictures[5])[None] / 255, torch.from_numpy(block())[None, None]
    np.testing.assert_equal(explained[5:6], explainer_of().explain(batch, known))
    np.testing.assert_equal(explained[6:], explainer_of().explain(pictures[6][None]))
    assert explainer_of().explain([]) == []
    for images, masks, message in (
        ([picture(), picture()], [None, np.ones((64, 32))], r"mask\[1\]: mask is 64x32 .* its picture 64x64"),
        ([picture(), 3], None, r"image\[1\]: got a int"),
        (["a", "b"], ["m"], "mask: got 1 masks for 2 pictures; give one each, None where none is"),
        ("a", ["m"], "mask: got a list for 1 pictures; give a list for a list"),
    ):
        with pytest.raises(DataError, match=message):
            explainer_of().explain(images, masks)


def test_boxes_masks_and_controls_follow_a_letterboxed_picture():
    places = [(slice(10, 20), slice(20, 40)), *((slice(4, 14), slice(k, k + 10)) for k in range(0, 72, 6))]
    pictures, masks = ([draw(*place, size=(40, 80)) for place in places] for draw in (picture, block))
    model = Looks(WHOLE, level=0.04)
    explanation, *_ = explainer_of(model, resize="letterbox").explain(pictures, masks)
    assert explanation["boxes"] == [(20, 10, 40, 20)] and explanation["area"] == 200 / 3200
    assert np.array_equal(explanation["mask"], block(slice(24, 32), slice(16, 32)))
    # A control lies in the picture, not in the bars beside it, and off the defect.
    defects, controls = torch.stack([given for given in model.asked[: 2 * len(places)] if given is not None]).unbind(1)
    assert len(controls) == len(places) and controls.flatten(1).any(1).all() and not (controls * defects).any()
    assert not controls[..., :16, :].any() and not controls[..., 48:, :].any()


def test_wrong_options_and_masks_from_outside_are_named_and_those_of_the_model_respected(tmp_path):
    for options, message in (
        ({"threshold": 1.5}, r"threshold must be a probability in \[0, 1\], got 1.5"),
        ({"class_names": ("same", "same")}, "class_names must be two different names, normal first"),
        ({"resize": "crop"}, "resize must be squash or letterbox, got 'crop'"),
    ):
        with pytest.raises(ValueError, match=message):
            explainer_of(**options)
    model = build_model(tiny_settings(tmp_path, "S6")).eval()
    for model.mask_source in ("efficientad", "external", "other", "oracle"):
        told = f"'{model.mask_source}' needs a mask from outside .* set model.mask_source to .* give gainmtl explain"
        with pytest.raises(ModelError, match=told):
            explainer_of(model).explain(picture())
    for model.mask_source in ("localization", "none"):
        with torch.inference_mode():
            expected = model(tensor(picture())[None] / 255).effective_attention[0, 0].numpy()
        np.testing.assert_allclose(explainer_of(model).explain(picture())["attention"], expected, atol=1e-6)


def test_a_run_is_explained_as_it_was_evaluated_or_else_with_less(tmp_path, caplog):
    run = fit(tiny_settings(tmp_path, "S5", num_epochs=1))
    explainer = DefectExplainer.from_run(run)
    assert "is not evaluated: the threshold is 0.5 and no map has an absolute scale" in caplog.text
    assert explainer.threshold == 0.5 and "found" not in explainer.explain(picture())
    evaluate(run)
    explainer = DefectExplainer.from_run(run)
    assert explainer.threshold == run.metrics["threshold"] and set(explainer.scales) == set(run.metrics["map_scales"])
    table, maps, root = run.predictions, run.maps, run.settings.data_root
    pictures = [root / image for image in table["image"]]
    masks = [root / mask if isinstance(mask, str) else None for mask in table["mask"]]
    scores = ("cam_iou", "grid_iou", "point_game", "energy_inside")
    for number, one in enumerate(explainer.explain(pictures, masks)):
        row = table.iloc[number]
        assert one["probability"] == pytest.approx(row["probability"], abs=1e-3)
        assert one["prediction"] == row["predicted"]
        for name, scale in explainer.scales.items():
            assert one["found"][name] == bool(scale.finds(maps[name][number]))
        assert set(scores) & set(one) == (set(scores) if row["label"] == 1 else set())
        assert [one.get(name, np.nan) for name in scores] == pytest.approx(list(row[[*scores]]), abs=1e-3, nan_ok=True)
    explainer.threshold = 0.0  # every verdict is questioned
    asked = [one["counterfactual"] for one in explainer.explain(pictures, masks) if "mask" in one]
    rows, asked = table[table["label"] == 1], pd.DataFrame(asked).astype({"control": float})
    for ours, stored in {"without_defect": "cf_probability", "control": "cf_control_probability"}.items():
        assert asked[ours].tolist() == pytest.approx(rows[stored].tolist(), abs=1e-4, nan_ok=True)


# --- Figures


def words(model=None, value=255, mask=None, **options):
    return explainer_of(model, **options).visualize(picture(value=value), mask).get_supxlabel().replace("\n", " ")


def panel(figure, title):
    return next(axis for axis in figure.axes if axis.get_title().startswith(title))


def test_every_map_is_drawn_on_both_scales_and_says_which_and_a_calm_one_stays_grey():
    scales = {"localization": MapScale(0.6, 0.9)}
    figure = explainer_of(scales=scales).visualize(picture(value=80))
    calm, loud = panel(figure, "localization\nabsolute, 0.60 to 0.90"), panel(figure, "localization\nper image")
    assert len(figure.axes) == 7 and [text.get_text() for text in (*calm.texts, *loud.texts)] == ["nothing found"]
    assert np.ptp(calm.images[0].get_array(), axis=2).max() == 0 < np.ptp(loud.images[0].get_array(), axis=2).max()
    assert [text.get_text() for text in panel(figure, "deciding CAM\nno absolute scale").texts] == ["unknown"]
    assert panel(figure, "attention\n0 to 1, no absolute scale")
    outlined = explainer_of(scales=scales).visualize(picture(value=80), block(slice(30, 50), slice(30, 50)))
    shown = [[axis.images[0].get_array() for axis in drawn.axes] for drawn in (figure, outlined)]
    assert all((plain != other).any() for plain, other in zip(*shown))


def test_verdict_numbers_marks_and_counterfactual_stand_in_words():
    said = words(mask=block(), class_names=("good", "bad"))
    assert said.startswith("p(defect) 0.999, threshold 0.500 · localized area 14.1% · CAM-IoU ")
    assert "Cyan outline: annotated defect. Orange box: localization ≥ 0.5." in said
    assert "Without the annotated defect the verdict turns to good (1.00 → 0.01)" in said
    assert "absolute scale, which is unknown" in words(value=25)
    scales = {"cam": MapScale(2.0, 1.0), "localization": MapScale(0.6, 0.9)}
    assert "The localization marks nothing beyond what it does on normal parts." in words(value=25, scales=scales)
    assert "Orange box: localization ≥ 0.6." in words(Looks(level=2), 204, scales=scales)
    assert "No counterfactual: strategy S1 has no counterfactual path" in words(Looks(strategy="S1"))
    assert "The deciding CAM peaks as high on normal validation pictures as on defective" in words(scales=scales)


def test_a_figure_of_one_picture_is_written_and_nothing_is_asked_again(tmp_path):
    Image.fromarray(picture(slice(10, 20), slice(20, 40), size=(40, 80))).save(tmp_path / "part_3.png")
    explainer = explainer_of(Looks(WHOLE, level=0.08), resize="letterbox")
    figure = explainer.visualize(tmp_path / "part_3.png", save_path=tmp_path / "new" / "e.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["e.png"] and len(explainer.model.asked) == 2
    assert figure.get_suptitle().startswith("part_3.png: defective, confidence ")
    (box,) = panel(figure, "picture").patches
    assert box.get_bbox().bounds == (15.5, 7.5, 16, 8)  # of 32 rows between two bars
    with pytest.raises(ValueError, match=r"save_path must end in .png, .jpg, .jpeg, got '.*e.pdf"):
        explainer.visualize(picture(), save_path=tmp_path / "e.pdf")
    with pytest.raises(DataError, match="visualize draws one picture, got 2; call it for each"):
        explainer.visualize([picture(), picture()])
    assert explainer.visualize(torch.zeros(1, 3, 64, 64)).axes and not plt.get_fignums()


def test_figures_use_a_font_that_has_the_names_or_say_that_there_is_none(monkeypatch, caplog):
    for fonts in (["NanumGothic", "Latin"], []):
        entries = [SimpleNamespace(name=name) for name in fonts]
        monkeypatch.setattr(explain.font_manager, "fontManager", SimpleNamespace(ttflist=entries))
        figure = explainer_of(class_names=("양품", "불량")).visualize(picture())
        assert figure.get_suptitle().startswith("불량")
        assert ("NanumGothic" in figure._suptitle.get_fontfamily()) == ("NanumGothic" in fonts) == (not caplog.text)
    assert "no font for '양품' and '불량': install one, such as fonts-nanum" in caplog.text
