from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from gainmtl_lib.settings import (
    STRATEGY_WEIGHTS,
    TERMS,
    Settings,
    SettingsError,
    closest,
    read_parameters,
    readable_errors,
    repository_root,
    with_origin,
)

PARAMS = repository_root() / "params"


def message(**values):
    with pytest.raises(SettingsError) as error:
        Settings(**values)
    return str(error.value)


def test_defaults_are_the_method_documents_setting():
    s = Settings()
    assert (s.backbone_arch, s.image_size, s.batch_size, s.num_epochs, s.learning_rate) == (
        "s",
        (512, 512),
        16,
        100,
        1e-4,
    )
    assert (s.hflip_prob, s.vflip_prob, s.rotate90_prob, s.color_jitter_prob, s.gaussian_noise_prob) == (
        0.5,
        0.5,
        0.5,
        0.3,
        0.2,
    )
    assert s.map_stride == 32 and s.pretrained is True


def test_default_yaml_writes_every_default_but_the_strategys_own():
    written = read_parameters(PARAMS / "default.yaml")
    defaults = Settings().plain()
    own = {"strategy", "image_counterfactual", *(f"lambda_{term}" for term in TERMS)}
    assert written == {name: value for name, value in defaults.items() if name not in own}


@pytest.mark.parametrize("strategy", STRATEGY_WEIGHTS)
def test_strategy_files_hold_their_row(strategy):
    written = read_parameters(PARAMS / f"{strategy.lower()}.yaml")
    row = {f"lambda_{term}": weight for term, weight in STRATEGY_WEIGHTS[strategy].items()}
    own = {"image_counterfactual": 0.5} if strategy == "S7" else {}
    assert written == {"strategy": strategy} | row | own


def test_full_yaml_holds_the_readme_specifications_weights():
    weights = Settings.from_yaml(PARAMS / "full.yaml").weights
    assert weights == dict(cls=1.0, am=0.5, cam_guide=0.0, loc=0.3, guide=0.5, cf=0.3, consist=0.2)


def test_every_parameter_file_is_usable():
    for path in PARAMS.glob("*.yaml"):
        if not path.name.startswith("efficientad"):
            Settings.from_yaml(path)


def test_weights_follow_the_strategy_unless_given():
    assert Settings(strategy="S2").weights == STRATEGY_WEIGHTS["S2"]
    assert Settings(strategy="S2", lambda_cam_guide=0.7).lambda_cam_guide == 0.7


def test_use_counterfactual_removes_the_term_and_is_harmless_elsewhere():
    assert Settings(strategy="S5", use_counterfactual=False).weights["cf"] == 0
    assert Settings(strategy="S1", use_counterfactual=False).weights == Settings(strategy="S1").weights


def test_misspelt_parameter_names_the_closest(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("learnig_rate: 0.1\n")
    with pytest.raises(SettingsError) as error:
        Settings.from_yaml(path)
    assert str(error.value) == f"{path}: unknown parameter 'learnig_rate'; did you mean 'learning_rate'?"


def test_text_for_a_number_says_how_yaml_reads_it(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("learning_rate: 1e-4\n")
    with pytest.raises(SettingsError) as error:
        Settings.from_yaml(path)
    assert str(error.value) == (
        f"{path}: learning_rate must be a number, got the text '1e-4'; YAML reads 1e-4 as text, write 1.0e-4"
    )


def test_the_file_that_is_named_is_the_one_that_won(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("batch_size: many\nseed: 1\n")
    second.write_text("batch_size: few\n")
    with pytest.raises(SettingsError) as error:
        Settings.from_yaml(first, second)
    assert str(error.value).startswith(f"{second}: batch_size must be a whole number, got the text 'few'")
    assert Settings.from_yaml(first, second, batch_size=2).seed == 1


def test_several_problems_are_all_named():
    text = message(batch_size="x", num_epochs=0, sed=3)
    assert len(text.splitlines()) == 3
    assert "unknown parameter 'sed'; did you mean 'seed'?" in text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"use_wandb": "true"}, "use_wandb must be true or false, got the text 'true'; with -p write True"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"num_classes": 3}, "num_classes must be 2 (the CAM is a two-class margin), got 3"),
        ({"stage1_ratio": 0.5}, "stage1_ratio … stage4_ratio must sum to 1, got 0.5 + 0.25 + 0.25 + 0.25 = 1.25"),
        (
            {"out_indices": [3, 4, 5]},
            "out_indices must be ascending levels among 1, 2, 3, 4 (strides 4 to 32), got [3, 4, 5]",
        ),
        ({"image_size": 500}, "image_size must be multiples of 32 (the coarsest stride), got [500, 500]"),
        (
            {"strategy": "S3", "lambda_cf": 0.3},
            "lambda_cf is 0.3, but strategy S3 has no counterfactual (S5 adds it); set it to 0",
        ),
        ({"own_mask_prob": 0.9}, "own_mask_prob + other_mask_prob must not exceed 1, got 0.9 + 0.2"),
        (
            {"mask_source": "external"},
            "mask_source 'external' needs external_mask_dir, the folder with one mask per image",
        ),
        ({"group_pattern": "("}, "group_pattern is not a regular expression"),
    ],
)
def test_messages(values, expected):
    assert expected in message(**values)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"strategy": "S9"}, ["strategy", "'S1'", "'S6'", "'S9'"]),
        ({"device": "gpu"}, ["device", "'gpu'"]),
        ({"val_ratio": 1.0}, ["val_ratio", "less than 1", "1.0"]),
        ({"experiment": "a/b"}, ["experiment", "'a/b'"]),
        ({"experiment": ".."}, ["experiment", "'..'"]),
        ({"data_root": 3}, ["data_root", "3"]),
        ({"pretrained": 3}, ["pretrained must be true, false, auto or the path", "3"]),
        ({"map_stride": 7}, ["map_stride", "4, 8, 16 or 32", "7"]),
    ],
)
def test_messages_name_the_key_and_what_was_found(values, parts):
    text = message(**values)
    assert all(part in text for part in parts), text
    assert len(text.splitlines()) == 1


def test_namespace_takes_plain_values_only():
    import math

    namespace = {"seed": 7, "math": math, "In": [], "Out": {}, "_": 3, "exit": print, "show": lambda: None}
    assert Settings.from_namespace(namespace).seed == 7


def test_namespace_rejects_a_stray_value():
    with pytest.raises(SettingsError, match="unknown parameter 'num_epoch'; did you mean 'num_epochs'"):
        Settings.from_namespace({"num_epoch": 4})


def test_a_notebook_runs_twice_in_one_kernel_and_still_rejects_a_stray_parameter():
    cells = [
        "",
        "# quick\nseed = 7",
        "settings = Settings.from_namespace(globals())",
        "rows = [x for x in ()]\nrows",
        "%time 1",
    ]
    namespace = {"In": cells, "seed": 7, "rows": [], "num_epochs": 3}
    assert Settings.from_namespace(namespace).seed == 7
    assert Settings.from_namespace(namespace).num_epochs == 3  # a field counts however it was set
    with pytest.raises(SettingsError, match="unknown parameter 'sead'; did you mean 'seed'"):
        Settings.from_namespace(namespace | {"In": [*cells, "sead = 8"], "sead": 8})


def test_relative_paths_start_at_the_repository_whatever_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    s = Settings(data_root="outputs/data/x", outputs_dir=str(tmp_path))
    assert s.data_root == repository_root() / "outputs/data/x"
    assert s.run_dir == tmp_path / "gainmtl/s5/seed42"
    assert s.plain()["data_root"] == "outputs/data/x"


def test_plain_values_survive_yaml_and_give_equal_settings():
    s = Settings(strategy="S3", image_size=128, pretrained="weights/b0.pth", out_indices=[2, 3, 4])
    again = Settings(**yaml.safe_load(yaml.safe_dump(s.plain())))
    assert again == s
    assert again.pretrained == repository_root() / "weights/b0.pth"


def test_differences_name_both_values():
    a = Settings()
    assert a.differences(a.changed(seed=7)) == ["seed: 42 and 7"]


def test_precision_takes_numbers_as_yaml_reads_them():
    assert Settings(precision=32).precision == "32"
    assert "precision must be 'auto', '32', 'bf16' or '16', got 64" in message(precision=64).replace(
        "the text '64'", "64"
    )


def test_pretrained_takes_a_flag_auto_or_a_path():
    assert Settings(pretrained=False).pretrained is False
    assert Settings(pretrained="auto").pretrained == "auto"
    assert Settings(pretrained="/w.pth").pretrained == Path("/w.pth")


class Record(BaseModel):
    """Two fields are enough."""

    model_config = ConfigDict(strict=True, extra="forbid")
    rate: float = 1.0
    flag: bool = False


def sentences(**values):
    with pytest.raises(ValidationError) as error:
        Record(**values)
    return list(readable_errors(error.value, Record.model_fields))


def test_one_sentence_per_parameter_in_the_order_they_stand():
    assert sentences(rate="x", flag=3, rat=1) == [
        "rate must be a number, got the text 'x'",
        "flag must be true or false, got 3",
        "unknown parameter 'rat'; did you mean 'rate'?",
    ]


def test_hints_say_how_to_write_it():
    assert sentences(rate="1e-4") == [
        "rate must be a number, got the text '1e-4'; YAML reads 1e-4 as text, write 1.0e-4"
    ]
    assert sentences(flag="false") == ["flag must be true or false, got the text 'false'; with -p write False"]


def test_nothing_near_nothing_suggested():
    assert closest("zzz", ["rate", "flag"]) == ""


def test_the_file_of_the_first_parameter_named_leads_the_sentence():
    assert with_origin("rate must be a number", {"rate": "my.yaml"}) == "my.yaml: rate must be a number"
    assert with_origin("rate must be a number", {"rate": ""}) == "rate must be a number"
