"""Edited test pictures put to models whose reasons are known."""

from dataclasses import dataclass
from math import nan

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_data, tiny_settings
from torch import nn

from gainmtl_lib.model import GainOutput
from gainmtl_lib.readers import read_samples
from gainmtl_lib.studies.reasons import FIXED_MASKS, KINDS, Editor, flip_indicators, image_flips

GROUND, MARK, DEFECT = 100, 150, 230
SIZE = 64


class Answers(nn.Module):
    """Defective with a pixel as bright as a defect (`defect`), or with the mark in its corner (`mark`)."""

    def __init__(self, follows, strategy="S1"):
        super().__init__()
        self.follows, self.strategy, self.mask_source = follows, strategy, "localization"
        self.weight = nn.Parameter(torch.zeros(()))
        self.given = []

    def forward(self, images, masks=None, attention_masks=None):
        assert not self.training
        self.given.append(attention_masks)
        grey = images.mean(1) * 255
        corner = grey[:, :8, :8]
        marked = ((corner > MARK - 15) & (corner < MARK + 15)).float().mean((1, 2)) > 0.8
        bright = (grey > 190).flatten(1).sum(1) > 8
        margin = torch.where(bright if self.follows == "defect" else marked, 3.0, -3.0)
        logits = torch.stack([torch.zeros_like(margin), margin], 1)
        return GainOutput(logits=logits, cam=grey[:, None], cls_logits=logits, cls_cam=grey[:, None])


@dataclass
class Answering:
    settings: object
    model: nn.Module


def write(root, split, kind, number, *, marked, mask=True, size=(SIZE, SIZE)):
    rng = np.random.default_rng([number, len(kind)])
    picture = rng.normal(GROUND, 3, size)
    if marked:
        picture[:8, :8] = rng.normal(MARK, 1, (8, 8))
    place = f"{split}/{kind}/{number}.png"
    if kind == "defective":
        defect = np.zeros(size, np.uint8)
        top, left = 14 + 3 * (number % 3), 20 + 5 * (number % 4)
        cv2.ellipse(defect, (left, top), (7, 4), 30, 0, 360, 255, -1)
        picture[defect > 0] = rng.normal(DEFECT, 2, int((defect > 0).sum()))
        if mask:
            (root / "masks" / split / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / "masks" / place), defect)
    (root / "images" / split / kind).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / "images" / place), np.clip(picture, 0, 255).astype(np.uint8))


def data_of(root, *, count=4, masks=True, size=(SIZE, SIZE), resize="squash"):
    """Defects all carry the mark, normal pictures none."""
    for split in ("train", "test"):
        for number in range(count):
            write(root, split, "normal", number, marked=False, size=size)
            write(root, split, "defective", number, marked=True, mask=masks or split == "train", size=size)
    data = tiny_data(read_samples(root, dataset_type="generic"), image_size=(SIZE, SIZE), resize=resize)
    data.setup("test")
    return data


def rows_of(data, called=None):
    rows = data.samples[data.samples["split"] == "test"].reset_index(drop=True)
    return rows.assign(predicted=rows["label"] if called is None else called)


def asked(tmp_path, follows, **values):
    data = data_of(tmp_path / "data", **values)
    run = Answering(tiny_settings(tmp_path, "S1", batch_size=3), Answers(follows))
    rows = rows_of(data)
    return rows, *image_flips(run, data, rows)  # type: ignore[arg-type]


def test_a_model_that_follows_the_defect_flips_with_it_and_not_in_the_control(tmp_path):
    rows, flips, impossible = asked(tmp_path, "defect")
    found = flip_indicators(rows, flips, 0.5)
    assert not impossible
    values = {name: estimate.value for name, estimate in found.items()}
    assert values == {
        "image_flip": 1, "image_flip_control": 0, "image_flip_excess": 1, "paste_flip": 1, "paste_flip_control": 0,
        "paste_flip_excess": 1, "counterfactual_accuracy": 1,
    }  # fmt: skip
    assert found["image_flip_excess"].low > 0 and found["image_flip"].count == 4
    assert found["counterfactual_accuracy"].count == 8


def test_a_model_that_follows_the_cue_does_not_care(tmp_path):
    rows, flips, _ = asked(tmp_path, "mark")
    found = {name: estimate.value for name, estimate in flip_indicators(rows, flips, 0.5).items()}
    # The cue stays: every healed defect is still called defective, every pasted one normal.
    assert found == dict.fromkeys(found, 0) and len(found) == 7


def test_the_same_pictures_twice_give_the_same_answers(tmp_path):
    data = data_of(tmp_path / "data")
    rows = rows_of(data)
    first, second = (list(Editor(data, places(data), rows).edits()) for _ in range(2))
    assert [(a.kind, a.position) for a in first] == [(b.kind, b.position) for b in second]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, second))
    assert {a.kind for a in first} == set(KINDS)


def places(data):
    return np.flatnonzero(data.samples["split"] == "test")


def test_edits_carry_label_and_mask(tmp_path):
    data = data_of(tmp_path / "data")
    for one in Editor(data, places(data), rows_of(data)).edits():
        label = {"heal": 0, "heal_beside": 1, "paste": 1, "paste_clean": 0}[one.kind]
        assert one.label == label and one.mask.any() == bool(label)


def test_controls_are_asked_of_right_verdicts_only(tmp_path):
    data = data_of(tmp_path / "data")
    rows = rows_of(data, called=[0] * 8)
    kinds = pd.Series([one.kind for one in Editor(data, places(data), rows).edits()])
    assert kinds.value_counts().to_dict() == {"heal": 4, "paste": 4, "paste_clean": 4}


def test_bars_of_a_letterboxed_picture_are_not_edited(tmp_path):
    data = data_of(tmp_path / "data", size=(32, SIZE), resize="letterbox")
    bars = np.ones((SIZE, SIZE), bool)
    bars[16:48] = False
    edits = list(Editor(data, places(data), rows_of(data)).edits())
    assert edits
    for one in edits:
        before = data.dataset.stored(one.row).image
        assert (one.image[bars] == np.rint(one.image[16:48].mean(axis=(0, 1)))).all() and not one.mask[bars].any()
        assert not np.array_equal(one.image, before)


def test_unannotated_defects_are_not_asked_and_what_is_impossible_is_counted(tmp_path):
    rows, flips, impossible = asked(tmp_path, "defect", masks=False)
    assert flips.isna().all().all()
    assert impossible == {"paste: no other annotated defect": 4, "paste_clean: no other annotated defect": 4}
    assert flip_indicators(rows, flips, 0.5) == {}


def test_masks_that_know_the_file_only_cannot_be_asked(tmp_path):
    data = data_of(tmp_path / "data")
    settings = tiny_settings(tmp_path, "S6", mask_source="external", external_mask_dir=tmp_path)
    assert settings.mask_source in FIXED_MASKS
    flips, impossible = image_flips(Answering(settings, Answers("defect", "S6")), data, rows_of(data))  # type: ignore[arg-type]
    assert flips.isna().all().all() and impossible == {}


def test_the_oracle_is_given_the_mask_after_the_edit(tmp_path):
    data = data_of(tmp_path / "data")
    model = Answers("defect", "S6")
    settings = tiny_settings(tmp_path, "S6", mask_source="oracle", batch_size=1)
    flips, _ = image_flips(Answering(settings, model), data, rows_of(data))  # type: ignore[arg-type]
    # Defective pictures first (healed, beside), then normal ones (pasted, clean).
    assert [bool(given.any()) for given in model.given] == [False, True] * 4 + [True, False] * 4
    assert flips.notna().sum().to_dict() == dict.fromkeys(KINDS, 4)


def test_flips_by_hand():
    rows = pd.DataFrame({"label": [1, 1, 1, 1, 0, 0, 0], "predicted": [1, 1, 1, 0, 0, 0, 1]})
    rows = rows.assign(image=[f"{k}.png" for k in range(7)], group=None)
    flips = pd.DataFrame(
        {
            "heal": [0.1, 0.2, 0.9, 0.1, nan, nan, nan],
            "heal_beside": [0.9, nan, 0.1, nan, nan, nan, nan],
            "paste": [nan, nan, nan, nan, 0.9, 0.1, 0.9],
            "paste_clean": [nan, nan, nan, nan, 0.1, 0.7, nan],
        }
    )
    found = flip_indicators(rows, flips, 0.5)
    assert found["image_flip"].value == pytest.approx(2 / 3)  # the missed defect is not asked
    assert found["image_flip_control"].value == 0.5 and found["image_flip_control"].count == 2
    assert found["image_flip_excess"].value == 0 and found["image_flip_excess"].count == 2
    assert found["paste_flip"].value == 0.5 and found["paste_flip_control"].value == 0.5
    # Three of four healed are normal, two of three pasted defective.
    assert found["counterfactual_accuracy"].value == pytest.approx((3 / 4 + 2 / 3) / 2)


def test_a_probability_at_the_threshold_is_defective():
    rows = pd.DataFrame({"label": [1], "predicted": [1], "image": ["a"], "group": [None]})
    flips = pd.DataFrame({"heal": [0.5], "heal_beside": [0.5], "paste": [nan], "paste_clean": [nan]})
    found = flip_indicators(rows, flips, 0.5)
    assert found["image_flip"].value == 0 and "paste_flip" not in found and "counterfactual_accuracy" not in found
