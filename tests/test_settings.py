"""Parameters: defaults and files, what is refused in which words, and what goes to disk and back."""

import re
from datetime import date
from pathlib import Path
from typing import Annotated, get_args

import pytest
import yaml
from pydantic import Field

from gainmtl_lib import settings as module
from gainmtl_lib.cli import value_of
from gainmtl_lib.efficientad.distill import Distillation
from gainmtl_lib.efficientad.model import EfficientADSettings
from gainmtl_lib.settings import (
    STRATEGY_WEIGHTS,
    TERMS,
    TEXTS,
    Settings,
    SettingsError,
    UserError,
    in_checkout,
    read_parameters,
    repository_root,
)  # fmt: skip
from gainmtl_lib.studies.plans import Plan
from gainmtl_lib.studies.shortcut import ShortcutStudySettings

PARAMS = repository_root() / "params"


class Small(module.ParameterRecord):
    seed: int = 42
    rate: Annotated[float, Field(gt=0)] = 0.1
    folder: module.AnyPath = Field(default=Path("outputs"), validate_default=True)


def test_files_hold_the_defaults_each_strategys_row_and_the_readmes_specification():
    own = {"strategy", "image_counterfactual", *(f"lambda_{term}" for term in TERMS)}
    defaults = {name: value for name, value in Settings().plain().items() if name not in own}
    assert read_parameters(PARAMS / "default.yaml") == defaults
    for strategy, row in STRATEGY_WEIGHTS.items():
        # The method document's seven terms; the eighth is S8's alone, and 0 for whom its file does not name it.
        listed = {term: weight for term, weight in row.items() if term != "evidence" or strategy == "S8"}
        written = {"strategy": strategy} | {f"lambda_{term}": weight for term, weight in listed.items()}
        written |= {"image_counterfactual": 0.5} if strategy in ("S7", "S8") else {}
        found = read_parameters(PARAMS / f"{strategy.lower()}.yaml")
        assert written.items() <= found.items() and (strategy == "S8" or found == written)
        settings = Settings(strategy=strategy)
        assert settings.weights == row and settings.image_counterfactual == written.get("image_counterfactual", 0.0)
    files = [path for path in PARAMS.glob("*.yaml") if not path.name.startswith("efficientad")]
    weights = {path.stem: Settings.from_yaml(path).weights for path in files}
    assert weights["full"] == STRATEGY_WEIGHTS["S5"] | dict(cls=1.0, am=0.5, cam_guide=0.0, loc=0.3)
    assert Settings(strategy="S2", lambda_cam_guide=0.7).weights == STRATEGY_WEIGHTS["S2"] | {"cam_guide": 0.7}
    assert Settings(strategy="S5", use_counterfactual=False).weights == STRATEGY_WEIGHTS["S5"] | {"cf": 0.0}


@pytest.mark.parametrize(("text", "expected"), [
    ("learning_rate: 1e-4", "learning_rate must be a number, got the text '1e-4'; YAML reads 1e-4 as text, write 1.0e-4"),
    ("- 1", "expected 'name: value' lines, got list"),
    ("model:\n  rate: 1", "model holds a nested mapping; parameters are flat, write them at the top level"),
    ("a: [1\n", "not a YAML file: "),
    ("seed: 1\nseed: 2\n", "not a YAML file: 'seed' is given twice"),
])  # fmt: skip
def test_messages_lead_with_the_file(tmp_path, text, expected):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match="^" + re.escape(f"{path}: {expected}")):
        Settings.from_yaml(path)


def test_later_files_win_over_earlier_ones_and_keywords_over_files(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("rate: x\nseed: 1")
    second.write_text("rate: y\nseed: 2")
    record = Small.from_yaml(first, second, rate=0.7)
    assert (record.seed, record.rate) == (2, 0.7)
    with pytest.raises(SettingsError, match=rf"^{second}: rate must be a number, got the text 'y'$"):
        Small.from_yaml(first, second)
    with pytest.raises(SettingsError, match=r"^rate must be a number, got the text 'z'$"):
        Small.from_yaml(first, second, rate="z")


@pytest.mark.parametrize(("written", "name"), [
    ("2024", "2024"), ("2024-05-01", "2024-05-01"), ("2024-13-01", "2024-13-01"), ("'7'", "7"), ("007", "007"),
    ("2024_05_01", "2024_05_01"), ("0x10", "0x10"), ("1.5", "1.5"), ("1e3", "1e3"), ("true", "true"), ("null", "null"),
])  # fmt: skip
def test_an_experiment_is_text_as_it_is_written_whatever_yaml_makes_of_it(tmp_path, written, name):
    (tmp_path / "my.yaml").write_text(f"experiment: {written}\nvariant: 5\ndata_root: 2024\nbox_labels: null\n")
    its = Settings.from_yaml(tmp_path / "my.yaml", label_kind="box")
    assert (its.experiment, its.variant, its.data_root.name, its.box_labels) == (name, "5", "2024", None)
    if written != "'7'":  # a shell takes the quotes away
        assert value_of("experiment", written) == written
    assert Settings(experiment=date(2024, 5, 1)).experiment == "2024-05-01"  # as papermill passes it
    with pytest.raises(
        SettingsError, match=r"experiment must be the name of one folder: letters, .* got the text 'a b'"
    ):
        Settings(experiment="a b")


def test_what_is_text_or_a_path_is_read_as_written():
    records = (Settings, EfficientADSettings, Distillation, ShortcutStudySettings, Plan)
    fields = {name: field.annotation for record in records for name, field in record.model_fields.items()}
    kinds = {
        name: {getattr(one, "__origin__", one) for one in get_args(kind) or [kind]} for name, kind in fields.items()
    }
    plain = {name for name, of in kinds.items() if of - {type(None)} in ({str}, {Path})}
    assert plain <= TEXTS and TEXTS - plain <= {"teacher"}


def test_outside_a_checkout_what_comes_with_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("gainmtl_lib.settings.repository_root", lambda: tmp_path)
    advice = "notebooks and parameter files come with a checkout of the repository; call gainmtl in its folder"
    with pytest.raises(UserError) as error:
        in_checkout("notebooks")
    assert str(error.value) == f"{tmp_path}/notebooks: not there; {advice}"


def test_several_problems_are_all_named_in_their_order():
    with pytest.raises(SettingsError) as error:
        Settings(batch_size="x", num_epochs=0, sed=3, zzz=1)
    numbers = "num_epochs must be greater than 0, got 0", "batch_size must be a whole number, got the text 'x'"
    names = "unknown parameter 'sed'; did you mean 'seed'?", "unknown parameter 'zzz'"
    assert str(error.value).splitlines() == [*numbers, *names]


@pytest.mark.parametrize(("values", "expected"), [
    (dict(use_wandb="true"), "use_wandb must be true or false, got the text 'true'; with -p write True"),
    (dict(num_classes=3), "num_classes must be 2 (the CAM is a two-class margin), got 3"),
    (dict(stage1_ratio=0.5), "stage1_ratio … stage4_ratio must sum to 1, got 0.5 + 0.25 + 0.25 + 0.25 = 1.25"),
    (dict(out_indices=[3, 5]), "out_indices must be ascending levels among 1, 2, 3, 4 (strides 4 to 32), got [3, 5]"),
    (dict(out_indices=[]), "out_indices must be ascending levels among 1, 2, 3, 4 (strides 4 to 32), got []"),
    (dict(image_size=500), "image_size must be multiples of 32 (the coarsest stride), got [500, 500]"),
    (dict(strategy="S3", lambda_cf=0.3), "lambda_cf is 0.3, but strategy S3 has no counterfactual (S5 adds it); set it"),
    (dict(strategy="S2", lambda_guide=1), "lambda_guide is 1, but strategy S2 has no attention (S3 adds it); set it to 0"),
    (dict(strategy="S8", lambda_loc=0.2), "strategy S8 has no localization (S4 adds it); set it to 0"),
    (dict(lambda_evidence=1.0), "lambda_evidence is 1, but strategy S5 has no evidence (S8 adds it); set it to 0"),
    (dict(strategy="S8", evidence_share=[0.05, 0.001]), "evidence_share 0.001 of the map's 16 x 16 cells selects no cell; raise it,"),
    (dict(evidence_share=0.0), "evidence_share must be greater than 0, got 0.0"),
    (dict(crop_size=[256, 544]), "crop_size must lie within the picture (image_size [512, 512]), got [256, 544]"),
    (dict(crop_size=100), "crop_size must be multiples of 32 (the coarsest stride), got [100, 100]"),
    (dict(tile_size=[64, 65]), "tile_size must be multiples of 32 (the coarsest stride), got [64, 65]"),
    (dict(tile_size=[64, 32]), "tile_size must be at least 64 a side, or neighbours share no cell, got [64, 32]"),
    (dict(devices=3), "batch_size must be a multiple of devices × num_nodes, 3 × 1 = 3: each takes a part of it; got 16"),
    (dict(devices=2, num_nodes=2, device="cuda:1"), "device 'cuda:1' is a single one, but devices × num_nodes is 4; set device: cuda"),
    (dict(own_mask_prob=0.9), "own_mask_prob + other_mask_prob must not exceed 1, got 0.9 + 0.2"),
    (dict(mask_source="external"), "'external' needs external_mask_dir, the folder with one mask per image"),
    (dict(mask_source="efficientad"), "needs efficientad_run, the folder of a finished EfficientAD run"),
    (dict(group_pattern="("), "group_pattern is not a regular expression: missing )"),
    (dict(box_labels="b"), "box_labels is given, but label_kind is 'mask'; set label_kind: box, or leave box_labels out"),
    (dict(strategy="S9"), "strategy must be 'S1', 'S2', 'S3', 'S4', 'S5', 'S6', 'S7' or 'S8', got the text 'S9'"),
    (dict(experiment=".."), "got the text '..'"),
    (dict(experiment=True), "got True"),
    (dict(pretrained=3), "pretrained must be true, false, auto or the path of a weights file, got 3"),
])  # fmt: skip
def test_messages(values, expected):
    with pytest.raises(SettingsError, match=rf"\A.*{re.escape(expected)}.*\Z"):  # one line
        Settings(**values)


def test_each_part_has_its_first_strategy_and_what_a_strategy_lacks_weighs_nothing():
    parts = ("attention", "localization", "counterfactual", "evidence")
    assert [module.first_with(part) for part in parts] == ["S3", "S4", "S5", "S8"]
    assert {*module.PART_OF_TERM.values()} == {*parts} and {*module.PART_OF_TERM} == {*TERMS} - {"cls", "cam_guide"}
    assert [module.strategies_with(part) for part in parts] == ["S3 to S7", "S4 to S7", "S5 to S8", "S8 to S8"]
    assert module.strategies_with("localization", "evidence") == "S4 to S8"
    for strategy, row in STRATEGY_WEIGHTS.items():
        asked = {module.PART_OF_TERM[term] for term, weight in row.items() if weight and term in module.PART_OF_TERM}
        # S8's path 3 asks, and learns nothing.
        assert asked == {*module.PARTS[strategy]} - ({"counterfactual"} if strategy == "S8" else set())
    assert [Settings(strategy=name).suppression for name in ("S5", "S8")] == ["learned", "mean"]
    # Of 16 x 16 cells one and three; of crops the share is another matter, and tiles may be larger than pictures.
    asked = Settings(strategy="S8", evidence_share=[1 / 256, 0.01], crop_size=32, tile_size=1024)
    assert asked.evidence_cells == (1, 3)
    # Nothing needs to be shared where a tile is as high as the picture, or where that is asked for.
    for allowed in ({"image_size": [32, 256], "tile_size": [32, 64]}, {"tile_size": 32, "tile_overlap": 0.0}):
        assert Settings(**allowed).tile_size is not None
    assert Settings(strategy="S5", evidence_share=1e-6).evidence_share == (1e-6,)  # which does not read it


def test_a_namespace_counts_with_its_plain_values_only_and_a_notebook_runs_twice_in_one_kernel():
    namespace = {"seed": 7, "math": re, "In": [], "Out": {}, "_": 3, "exit": print, "show": lambda: None}
    assert Settings.from_namespace(namespace).seed == 7
    with pytest.raises(SettingsError, match="unknown parameter 'num_epoch'; did you mean 'num_epochs'"):
        Settings.from_namespace({"num_epoch": 4})
    cells = ["", "# quick\nseed = 7", "s = Settings.from_namespace(globals())", "rows = [x for x in ()]", "%time 1"]
    namespace = {"In": cells, "seed": 7, "rows": [], "num_epochs": 3}  # a field counts however it was set
    settings = Settings.from_namespace(namespace)
    assert (settings.seed, settings.num_epochs) == (7, 3)
    with pytest.raises(SettingsError, match="unknown parameter 'sead'; did you mean 'seed'"):
        Settings.from_namespace(namespace | {"In": [*cells, "sead = 8"], "sead": 8})


def test_a_record_is_copied_its_paths_start_at_the_repository_and_it_survives_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = Small()
    with pytest.raises(SettingsError, match="rate must be greater than 0, got -1"):
        record.changed(rate=-1.0)
    assert record.differences(record.changed(seed=7)) == ["seed: 42 and 7"]
    s = Settings(data_root="outputs/data/x", outputs_dir=str(tmp_path))
    assert s.data_root == repository_root() / "outputs/data/x" and s.run_dir == tmp_path / "gainmtl/s5/seed42"
    assert s.plain()["data_root"] == "outputs/data/x" and s.plain()["outputs_dir"] == tmp_path.as_posix()
    s = Settings(strategy="S3", image_size=128, pretrained="weights/b0.pth", out_indices=[2, 3, 4], precision=32)
    again = Settings(**yaml.safe_load(yaml.safe_dump(s.plain())))
    assert again == s and again.image_size == (128, 128) and again.precision == "32"
    assert again.pretrained == repository_root() / "weights/b0.pth"
