"""Which defect: a head beside the verdict, that never moves it, and how well it names types."""

import numpy as np
import pandas as pd
import pytest
import torch
from drawn_data import write_picture
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_commands import done
from tiny import tiny_settings

from gainmtl_lib import defect_types as module
from gainmtl_lib.audit.report import write_report
from gainmtl_lib.dataset import build_data
from gainmtl_lib.defect_types import fit_types
from gainmtl_lib.evaluation import evaluate
from gainmtl_lib.explain import DefectExplainer
from gainmtl_lib.export import export_run, open_judge
from gainmtl_lib.figures import classification_figure
from gainmtl_lib.metrics import confusion, macro_f1, type_answers
from gainmtl_lib.model import TypeHead, build_model, deciding_features
from gainmtl_lib.predict import Predictor
from gainmtl_lib.runs import load_run
from gainmtl_lib.settings import Settings, SettingsError
from gainmtl_lib.train import fit

SMALL = {"backbone_arch": "test_resnet", "num_epochs": 1, "num_samples": 96}
TYPES = ["scratch", "stain", "wrong_object"]


@pytest.fixture(scope="module", params=["S5", "S8"])
def trained(request, tmp_path_factory):
    run = fit(tiny_settings(tmp_path_factory.mktemp("types"), request.param, **SMALL))
    evaluate(run)
    return load_run(run.folder)


def test_a_run_names_the_types_of_its_data_and_decides_as_without_it(trained):
    assert trained.manifest["defect_types"] == TYPES and trained.model.types.names == tuple(TYPES)
    off = fit(trained.settings.changed(defect_types="off", variant="off"))
    assert off.model.types is None and "defect_types" not in off.manifest
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        told, without = trained.model(images), off.model(images)
    assert told.type_logits.shape == (2, 3) and without.type_logits is None
    for name in ("logits", "cam", "localization_map"):
        assert torch.equal(told[name], without[name]), name
    assert not any(parameter.requires_grad for parameter in trained.model.types.parameters())


def test_the_head_is_a_balanced_regression_on_the_features_that_decide(trained):
    data, model = build_data(trained.settings), trained.model
    data.setup("fit")
    features, types = [], []
    for batch in data.loader("train"):
        with torch.inference_mode():
            output = model(batch.images)
        features.append(output.deciding_features[batch.labels == 1])
        types += data.samples["defect_type"][batch.index[batch.labels == 1].tolist()].tolist()
    features = torch.cat(features)
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=module.STRENGTH, class_weight="balanced"))
    expected = fitted.fit(features.numpy(), types).predict_proba(features.numpy())
    assert model.types(features).softmax(dim=1).numpy() == pytest.approx(expected, abs=5e-3)


def test_the_features_that_decide_are_those_of_the_strongest_cells():
    features, cam = torch.arange(320.0).view(1, 2, 10, 16), torch.zeros(1, 1, 10, 16)
    cam.view(-1)[:8] = torch.arange(1.0, 9.0)  # a twentieth of 160 cells; the strongest first: 7, 6, …
    expected = [7, 167, 6.5, 166.5, 3.5, 163.5]
    assert deciding_features(features, cam).tolist() == [expected]


def test_types_that_are_few_or_nobody_named_teach_nothing(tmp_path, caplog):
    settings = tiny_settings(tmp_path, "S1", **SMALL)
    data = build_data(settings)
    data.setup("fit")
    samples, model = data.samples, build_model(settings)
    defects = samples.index[(samples["split"] == "train") & (samples["label"] == 1)]
    kinds = pd.Series(np.resize(["pit", "rust"], len(defects)), index=defects)
    for change, names in (
        ({}, ("pit", "rust")),
        ({defects[0]: "hole"}, ("pit", "rust")),
        (dict.fromkeys(defects[4:], "rust") | dict.fromkeys(defects[:4], "pit"), None),
        (dict.fromkeys(defects, "defective"), None),
        (dict.fromkeys(defects, np.nan), None),
    ):
        model.types = None
        samples["defect_type"] = kinds.copy()
        samples.loc[list(change), "defect_type"] = list(change.values())
        with caplog.at_level("INFO", logger="gainmtl_lib"):
            fit_types(model, data)
        assert names == (None if model.types is None else model.types.names), change
    assert "fewer than 5 training pictures: hole" in caplog.text
    assert TypeHead(2, ["pit", "rust"])(torch.zeros(1, 6)).shape == (1, 2)


def test_two_types_are_as_likely_as_the_regression_says(tmp_path):
    settings = tiny_settings(tmp_path, "S1", **SMALL)
    data = build_data(settings)
    data.setup("fit")
    train = (data.samples["split"] == "train") & (data.samples["label"] == 1)
    bright = [float(data.dataset.stored(row).image.mean()) for row in data.samples.index[train]]
    data.samples.loc[train, "defect_type"] = np.where(bright > np.median(bright), "pale", "dark")
    model = build_model(settings)
    fit_types(model, data)
    rows, features = module._features(model, data, {*data.samples.index[train]})
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=module.STRENGTH, class_weight="balanced"))
    expected = fitted.fit(features, data.samples["defect_type"][rows]).predict_proba(features)
    assert model.types(torch.from_numpy(features)).softmax(dim=1).numpy() == pytest.approx(expected, abs=5e-3)


def test_off_is_understood_as_yaml_reads_it(tmp_path):
    (tmp_path / "a.yaml").write_text("defect_types: off\n")
    assert Settings.from_yaml(tmp_path / "a.yaml").defect_types == "off"
    with pytest.raises(SettingsError, match="defect_types"):
        Settings(defect_types="on")


# --- How well


def test_scores_count_missed_defects_and_false_alarms():
    rows = pd.DataFrame(
        [
            (0, "normal", None), (0, "normal", "pit"), (1, "pit", "pit"), (1, "pit", None), (1, "rust", "pit"),
            (1, "rust", "rust"), (1, "NA", "rust"), (1, "defective", "pit"), (1, None, "rust"),
        ],
        columns=["label", "defect_type", "named_type"],
    )  # fmt: skip
    answers = type_answers(rows)
    assert len(answers) == 7  # without those that nobody named
    truth, called = answers["truth"].to_numpy(), answers["called"].to_numpy()
    expected = f1_score(truth, called, labels=["NA", "pit", "rust"], average="macro", zero_division=0)
    assert macro_f1(truth, called) == pytest.approx(expected)
    assert np.isnan(macro_f1(np.array(["normal"]), np.array(["normal"])))
    counts = confusion(answers, ["pit", "rust", "wear"])
    assert [*counts.index] == ["normal", "pit", "rust", "wear", "NA"]
    assert [*counts.columns] == ["normal", "pit", "rust", "wear"]
    assert counts.to_numpy().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_an_evaluation_names_what_is_called_defective_and_counts_it(trained):
    table, summary = trained.predictions, trained.metrics
    assert (table["named_type"].notna() == (table["predicted"] == 1)).all()
    for split in ("val", "test", "test_shift"):
        rows, counts = table[table["split"] == split], pd.DataFrame(summary["defect_types"][split]).T
        assert counts.to_numpy().sum() == len(rows) and [*counts] == ["normal", *TYPES]
        assert counts.loc["normal", "normal"] == summary[split]["TN"]
        assert counts.loc[TYPES, "normal"].sum() == summary[split]["FN"]
        truth, called = (type_answers(rows)[name].to_numpy() for name in ("truth", "called"))
        assert summary[split]["type_macro_f1"] == pytest.approx(macro_f1(truth, called))
    assert len(classification_figure(table, summary["threshold"]).axes) == 5
    printed = done("evaluate", trained.folder)
    assert "how many of which defect are called what" in printed and "type_macro_f1" in printed
    text = write_report(trained).read_text()
    assert "type, macro F1" in text and "type named right" in text


def test_the_line_names_them_too_from_an_export_and_in_tiles(trained, tmp_path):
    known = trained.predictions.query("split == 'test'")
    paths = [trained.settings.data_root / name for name in known["image"]]
    exported, agreement = export_run(trained, tmp_path / "m.onnx")
    assert agreement.changed == 0
    judge = open_judge(exported)
    assert judge.card.defect_types == tuple(TYPES) and [out.name for out in judge.session.get_outputs()][-1] == "types"
    for said in (Predictor(trained, threshold=0.0), Predictor(judge, threshold=0.0)):
        found = list(said(paths))
        assert all(one.defect_type in TYPES and 1 / 3 <= one.type_probability <= 1 for one in found)
        named = dict(zip(known.loc[known["predicted"] == 1, "image"], known["named_type"].dropna(), strict=True))
        told = {name: one.defect_type for name, one in zip(known["image"], found, strict=True) if name in named}
        assert told == named
    assert all(
        one.defect_type == "" and one.type_probability is None for one in Predictor(trained, threshold=1.0)(paths[:2])
    )
    tiled = Predictor(trained, tile_size=(64, 64), threshold=0.0)
    assert next(iter(tiled([write_picture(tmp_path / "l.png", size=(128, 160))]))).defect_type in TYPES
    explained = DefectExplainer.from_run(trained)
    explained.threshold = 0.0
    assert explained.explain(paths[0])["defect_type"] == found[0].defect_type
    explained.threshold = 1.0
    with pytest.raises(KeyError, match="the verdict is normal, or the run names no defect types"):
        explained.explain(paths[0])["defect_type"]
