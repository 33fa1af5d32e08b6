"""What a run's verdicts rest on: edited pictures put to models whose reasons are known, indicators by hand and stored."""

import json
from collections import Counter
from itertools import product
from math import nan
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from audited import row, table_of
from scipy import stats
from tiny import tiny_data, tiny_settings
from torch import nn

from gainmtl_lib import evaluation
from gainmtl_lib.model import GainOutput
from gainmtl_lib.readers import read_samples
from gainmtl_lib.runs import Run, RunError
from gainmtl_lib.studies import reasons
from gainmtl_lib.train import fit
from gainmtl_lib.wording import METRICS

GROUND, MARK, DEFECT = 100, 150, 230
SIZE = 64


class Answers(nn.Module):
    """Defective with a pixel as bright as a defect (`defect`), or with the mark in its corner (`mark`)."""

    calibration = (1.0, 0.0)

    def __init__(self, follows, strategy="S1"):
        super().__init__()
        self.follows, self.strategy, self.mask_source = follows, strategy, "localization"
        self.weight, self.given = nn.Parameter(torch.zeros(())), []

    def forward(self, images, masks=None, attention_masks=None):
        assert not self.training
        self.given.append(attention_masks)
        grey = images.mean(1) * 255
        marked = ((grey[:, :8, :8] - MARK).abs() < 15).float().mean((1, 2)) > 0.8
        bright = (grey > 190).flatten(1).sum(1) > 8
        margin = torch.where(bright if self.follows == "defect" else marked, 3.0, -3.0)
        logits = torch.stack([torch.zeros_like(margin), margin], 1)
        return GainOutput(logits=logits, cam=grey[:, None], cls_logits=logits, cls_cam=grey[:, None])


def data_of(root, *, masks=True, size=(SIZE, SIZE), resize="squash"):
    """Four pictures of each class and split; defects all carry the mark, normal pictures none."""
    for split, kind, number in product(("train", "test"), ("normal", "defective"), range(4)):
        rng, place = np.random.default_rng([number, len(kind)]), f"{split}/{kind}/{number}.png"
        pixels, defect = rng.normal(GROUND, 3, size), np.zeros(size, np.uint8)
        written = {"images": pixels}
        if kind == "defective":
            pixels[:8, :8] = rng.normal(MARK, 1, (8, 8))
            cv2.ellipse(defect, (20 + 5 * (number % 4), 14 + 3 * (number % 3)), (7, 4), 30, 0, 360, 255, -1)
            pixels[defect > 0] = rng.normal(DEFECT, 2, int((defect > 0).sum()))
            written |= {"masks": defect} if masks or split == "train" else {}
        for folder, image in written.items():
            (root / folder / place).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / folder / place), np.clip(image, 0, 255).astype(np.uint8))
    data = tiny_data(read_samples(root, dataset_type="generic"), image_size=(SIZE, SIZE), resize=resize)
    data.setup("test")
    return data


def rows_of(data):
    rows = data.samples[data.samples["split"] == "test"].reset_index(drop=True)
    return rows.assign(predicted=rows["label"])


def asked(tmp_path, follows, strategy="S1", settings=None, **values):
    data = data_of(tmp_path / "data", **values)
    settings = tiny_settings(tmp_path, strategy, **{"batch_size": 3} | (settings or {}))
    run, rows = SimpleNamespace(settings=settings, model=Answers(follows, strategy)), rows_of(data)
    return run, rows, reasons.image_flips(run, data, rows)


def test_a_model_that_follows_the_defect_flips_with_it_and_not_in_the_control(tmp_path):
    _, rows, flips = asked(tmp_path, "defect")
    found = reasons.flip_indicators(rows, flips, 0.5)
    assert {name: estimate.value for name, estimate in found.items()} == {
        "image_flip": 1, "image_flip_control": 0, "image_flip_excess": 1, "paste_flip": 1, "paste_flip_control": 0,
        "paste_flip_excess": 1, "counterfactual_accuracy": 1,
    }  # fmt: skip
    assert found["image_flip_excess"].low > 0 and found["image_flip"].count == 4
    # Of a model that follows the cue, which stays, every healed defect is still called defective.
    _, rows, flips = asked(tmp_path, "mark")
    found = {name: estimate.value for name, estimate in reasons.flip_indicators(rows, flips, 0.5).items()}
    assert found == dict.fromkeys(found, 0) and len(found) == 7


def test_edits_carry_label_and_mask_and_are_the_same_twice(tmp_path):
    data = data_of(tmp_path / "data")
    rows = rows_of(data)
    first, second = (list(reasons.edited_pictures(data, rows)) for _ in range(2))
    assert [one[:2] for one in first] == [one[:2] for one in second]
    assert all(np.array_equal(a.image, b.image) for (*_, a), (*_, b) in zip(first, second))
    labels = {"heal": 0, "heal_beside": 1, "paste": 1, "paste_clean": 0}
    found = {(kind, edit.label, edit.mask.any()) for _, kind, edit in first}
    assert found == {(kind, label, bool(label)) for kind, label in labels.items()}
    kinds = [kind for _, kind, _ in reasons.edited_pictures(data, rows.assign(predicted=0))]
    assert Counter(kinds) == {"heal": 4, "paste": 4, "paste_clean": 4}  # controls of right verdicts only


def test_bars_of_a_letterboxed_picture_are_not_edited(tmp_path):
    data = data_of(tmp_path / "data", size=(32, SIZE), resize="letterbox")
    edits, bars = list(reasons.edited_pictures(data, rows_of(data))), np.r_[:16, 48:SIZE]
    assert len(edits) > 8
    for _, _, edit in edits:
        assert (edit.image[bars] == np.rint(edit.image[16:48].mean(axis=(0, 1)))).all() and not edit.mask[bars].any()


def test_what_cannot_be_asked_is_left_out_and_the_oracle_is_given_the_mask_after_the_edit(tmp_path):
    _, rows, flips = asked(tmp_path / "bare", "defect", masks=False)  # nothing annotated to heal or to paste
    assert flips.isna().all().all() and reasons.flip_indicators(rows, flips, 0.5) == {}
    external = {"mask_source": "external", "external_mask_dir": tmp_path}  # knows the file only, not its edits
    run, _, flips = asked(tmp_path, "defect", "S6", settings=external)
    assert run.settings.mask_source in reasons.FIXED_MASKS and flips.isna().all().all()
    run, _, flips = asked(tmp_path, "defect", "S6", settings={"mask_source": "oracle", "batch_size": 1})
    # Defective pictures first (healed, beside), then normal ones (pasted, clean).
    assert [bool(given.any()) for given in run.model.given] == [False, True] * 4 + [True, False] * 4
    assert flips.notna().sum().to_dict() == dict.fromkeys(reasons.KINDS, 4)


def test_flips_by_hand():
    rows = pd.DataFrame({"label": [1, 1, 1, 1, 0, 0, 0], "predicted": [1, 1, 1, 0, 0, 0, 1]})
    rows = rows.assign(image=[f"{k}.png" for k in range(7)], group=None)
    healed = {"heal": [0.1, 0.2, 0.9, 0.1], "heal_beside": [0.9, nan, 0.1, nan]}
    pasted = {"paste": [0.9, 0.1, 0.9], "paste_clean": [0.1, 0.5, nan]}  # at the threshold is defective
    flips = pd.DataFrame(healed).join(pd.DataFrame(pasted, index=[4, 5, 6]), how="outer")
    found = reasons.flip_indicators(rows, flips, 0.5)
    assert found["image_flip"].value == pytest.approx(2 / 3)  # the missed defect is not asked
    assert found["image_flip_control"].value == 0.5 and found["image_flip_control"].count == 2
    assert found["image_flip_excess"].value == 0 and found["image_flip_excess"].count == 2
    assert found["paste_flip"].value == 0.5 and found["paste_flip_control"].value == 0.5
    # Three of four healed are normal, two of three pasted defective.
    assert found["counterfactual_accuracy"].value == pytest.approx((3 / 4 + 2 / 3) / 2)


def test_drop_is_what_the_reversed_cue_costs():
    rows = [row("test", 1, 0.9), row("test", 1, 0.8), row("test", 0, 0.1), row("test", 0, 0.6)]
    alone = reasons.split_indicators(table_of(rows))
    rows += [row("test_shift", 1, 0.1), row("test_shift", 0, 0.9), row("test_shift", 1, 0.7), row("test_shift", 0, 0.8)]
    found = reasons.split_indicators(table_of(rows))
    assert not {"drop", "accuracy_shift"} & set(alone)
    assert (found["accuracy"].value, found["accuracy_shift"].value, found["drop"].value) == (0.75, 0.25, 0.5)
    assert (found["auroc"].value, found["auroc_shift"].value, found["auroc_drop"].value) == (1, 0, 1)
    # Newcombe's interval is as wide as eight pictures make it.
    assert found["drop"].low < 0 < found["drop"].high and found["accuracy"].count == 4


def test_parts_in_both_splits_widen_the_drop():
    def drop(lead):
        kinds = product(range(6), (("test", ""), ("test_shift", lead)), ((1, 0.9), (0, 0.6)))
        rows = [row(split, label, prob, group=f"{of}{number}") for number, (split, of), (label, prob) in kinds]
        return reasons.split_indicators(table_of(rows))["drop"]

    apart, shared = drop("other "), drop("")
    assert shared.low == pytest.approx(apart.low * 2**0.5) and shared.high == pytest.approx(apart.high * 2**0.5)


def test_energy_on_the_cue_beside_its_area():
    cues = np.zeros((2, 4, 4), bool)
    cues[0, :2, :2] = True  # a quarter of the picture
    cues[1, :, :2] = True  # half of it
    cams = np.zeros((2, 4, 4), np.float16)
    cams[0, 0, 0], cams[0, 3, 3], cams[0, 2, 2] = 3, 1, -7  # three quarters of the non-negative energy
    cams[1] = 1  # even: as much as its area
    found = reasons.cue_indicators(cams, cues, np.array([4, 7]))
    assert found["cue_energy"].value == pytest.approx((0.75 + 0.5) / 2) and found["cue_energy"].count == 2
    assert found["cue_area"].value == pytest.approx((0.25 + 0.5) / 2)
    assert found["cue_excess"].value == pytest.approx(0.25)


def test_every_indicator_of_a_run_with_a_cue_stored_and_nothing_where_damaged_or_out_of_date(tmp_path, monkeypatch):
    run = fit(tiny_settings(tmp_path, "S5", num_epochs=1, use_tensorboard=False))
    with pytest.raises(RunError, match="trained but not evaluated"):
        reasons.measure_indicators(run)
    evaluation.evaluate(run)
    measured, path = reasons.measure_indicators(run), run.folder / reasons.FILE
    names, table = set(measured["indicators"]), reasons.indicator_table(measured)
    assert names <= set(reasons.NAMES) <= set(METRICS)
    assert {
        "accuracy",
        "drop",
        "cam_iou",
        "cf_excess",
        "counterfactual_accuracy_val",
        "cue_energy",
        "cue_area",
    } <= names
    for name in ("accuracy", "auroc", "cam_iou", "grid_iou", "point_game", "attention_iou", "cf_flip_rate"):
        value = run.metrics["test"][name]  # None where nothing was asked: of a defect that is missed no flip
        assert table.loc[name, "value"] == pytest.approx(nan if value is None else value, abs=1e-4, nan_ok=True), name
    # The mark takes about one percent, and all defective pictures of so small a test split carry it.
    assert 0.005 < table.loc["cue_area", "value"] < 0.02 and table.loc["cue_area", "count"] == 3
    assert json.loads(path.read_text()) == measured == reasons.stored_indicators(run)
    assert reasons.measure_indicators(run, reuse=False) == measured
    with monkeypatch.context() as patched:
        patched.setattr(reasons, "image_flips", None)
        assert reasons.measure_indicators(Run(run.folder)) == measured
        patched.setattr(reasons, "MEASURED", reasons.MEASURED | {"measured": 99})
        assert reasons.stored_indicators(run) is None
    for content in (json.dumps(measured | {"predictions": "of another evaluation"}), "{", "[]", '{"predictions": 1}'):
        path.write_text(content)
        assert reasons.stored_indicators(run) is None
    monkeypatch.setattr(reasons, "read_cue", lambda *_, **__: None)
    left_out = {"cue_energy", "cue_area", "cue_excess"}  # without a known cue
    assert measured["indicators"].keys() - reasons.measure_indicators(run)["indicators"].keys() == left_out
    monkeypatch.setattr(evaluation, "stored_tables", lambda run: (pd.DataFrame({"split": ["val"]}), {}))
    with pytest.raises(RunError, match="evaluated without a test split"):
        reasons.measure_indicators(run, reuse=False)


DROPS = np.linspace(0, 0.75, 24)[np.random.default_rng(0).permutation(24)]


def test_low_agreement_and_high_energy_on_the_cue_warn_as_stated_beforehand():
    noise = np.random.default_rng(3).permutation(24).astype(float)
    columns = {"cam_iou": 1 - DROPS, "cue_energy": 1 - DROPS, "accuracy": 0.9, "auroc": noise.round(-1)}
    found = reasons.warnings_table(pd.DataFrame({"drop": DROPS} | columns))
    assert list(found.index) == ["cam_iou", "auroc", "cue_energy", "accuracy"]
    expected = [1, stats.spearmanr(-columns["auroc"], DROPS).statistic, -1, nan]  # with ties; a constant has no rank
    assert found["value"].tolist() == pytest.approx(expected, nan_ok=True)
    (axis,) = reasons.warnings_figure(found).axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels[0] == "CAM-IoU (low; 24 runs)" and len(labels) == 3
    assert axis.patches[0].get_width() == pytest.approx(1)


def test_an_indicator_is_judged_over_the_runs_that_have_it_and_lost_something():
    values, drops = np.where(np.arange(24) % 2, nan, 1 - DROPS), np.where(np.arange(24) < 4, nan, DROPS)
    found = reasons.warnings_table(pd.DataFrame({"drop": drops, "attention_iou": values, "loc_iou": nan}))
    assert list(found.index) == ["attention_iou"] and found.loc["attention_iou", "runs"] == 10
    assert reasons.warnings_table(pd.DataFrame({"drop": DROPS[:2], "cam_iou": DROPS[:2]}))["value"].isna().all()
    assert reasons.warnings_table(pd.DataFrame({"drop": np.full(24, nan), "cam_iou": DROPS})).empty
