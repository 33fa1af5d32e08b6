"""The second system's parameters: defaults of the paper, files, and what is refused."""

import pytest

from gainmtl_lib.efficientad.model import MVTEC_CATEGORIES, EfficientADSettings
from gainmtl_lib.settings import SettingsError, read_parameters, repository_root

PARAMS = repository_root() / "params"


def test_defaults_are_the_papers():
    s = EfficientADSettings(teacher="random")
    assert (s.model_size, s.out_channels, s.image_size) == ("S", 384, (256, 256))
    assert (s.max_steps, s.train_batch_size, s.learning_rate, s.weight_decay) == (70_000, 1, 1e-4, 1e-5)
    assert (s.hard_quantile, s.st_weight, s.ae_weight, s.penalty_weight) == (0.999, 1, 1, 1)
    assert (s.early_stopping, s.patience, s.precision) == (True, 10, "32")


def test_mvtec_file_writes_every_default_but_what_it_says_of_mvtec():
    written = read_parameters(PARAMS / "efficientad_mvtec.yaml")
    read = EfficientADSettings.from_yaml(PARAMS / "efficientad_mvtec.yaml")
    defaults = EfficientADSettings(teacher="random")
    assert set(written) == set(defaults.plain())
    differing = {line.split(":")[0] for line in read.differences(defaults)}
    assert differing == {"experiment", "teacher", "dataset_type", "data_root", "category"}


@pytest.mark.parametrize("name", ["efficientad_synthetic", "efficientad_mvtec"])
def test_files_cover_the_fields_of_the_specification(name):
    written = read_parameters(PARAMS / f"{name}.yaml")
    assert {
        "model_size", "dataset_type", "data_root", "category", "image_size", "num_samples", "train_batch_size",
        "eval_batch_size", "accelerator", "devices", "max_epochs", "max_steps", "precision", "learning_rate", "st_weight",
        "ae_weight", "penalty_weight", "early_stopping", "patience",
    } <= set(written)  # fmt: skip


def test_the_runs_folder_names_the_category():
    s = EfficientADSettings.from_yaml(PARAMS / "efficientad_mvtec.yaml")
    assert s.run_dir.relative_to(s.outputs_dir).as_posix() == "mvtec/efficientad/bottle/seed42"
    assert s.dataset_folder == repository_root() / "data/mvtec_ad/bottle"
    plain = s.changed(dataset_type="generic", category=None)
    assert plain.run_dir.relative_to(s.outputs_dir).as_posix() == "mvtec/efficientad/seed42"
    assert plain.dataset_folder == repository_root() / "data/mvtec_ad"


def test_mvtec_has_fifteen_categories():
    assert len(set(MVTEC_CATEGORIES)) == 15


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "teacher is missing; expected the path of a weights file, or random"),
        ({"teacher": 3}, "teacher must be the path of a weights file, or random, got 3"),
        ({"teacher": "random", "image_size": 48}, r"image_size must be at least 64 pixels a side .* got \[48, 48\]"),
        ({"teacher": "random", "model_size": "L"}, "model_size must be 'S' or 'M', got the text 'L'"),
        ({"teacher": "random", "category": "bottle"}, "category is for dataset_type mvtec, got generic and 'bottle'"),
        ({"teacher": "random", "max_step": 3}, "unknown parameter 'max_step'; did you mean 'max_steps'?"),
        ({"teacher": "random", "seed": 2**32}, "seed must be less than 4294967296, got 4294967296"),
        ({"teacher": "random", "accelerator": "gpu"}, "accelerator must be .*'cuda'.* got the text 'gpu'"),
    ],
)
def test_what_cannot_be_used_is_named(values, message):
    with pytest.raises(SettingsError, match=message):
        EfficientADSettings(**values)
