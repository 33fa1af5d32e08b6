"""A flat record of parameters, on a small one of its own."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from gainmtl_lib.settings import AnyPath, ParameterRecord, SettingsError, read_parameters, repository_root


class Small(ParameterRecord):
    """A record as a strategy or another system would declare it."""

    seed: int = 42
    rate: Annotated[float, Field(gt=0)] = 0.1
    sizes: tuple[int, ...] = ()
    folder: AnyPath = Field(default=Path("outputs"), validate_default=True)
    weights: Annotated[bool | Path, Field(description="true or the path of a weights file")] = True


def write(path, text):
    path.write_text(text)
    return path


def test_later_files_win_and_keywords_win_over_files(tmp_path):
    first, second = write(tmp_path / "a.yaml", "seed: 1\nrate: 0.5\n"), write(tmp_path / "b.yaml", "seed: 2\n")
    record = Small.from_yaml(first, second, rate=0.7)
    assert (record.seed, record.rate) == (2, 0.7)


def test_an_empty_file_is_no_error(tmp_path):
    assert Small.from_yaml(write(tmp_path / "empty.yaml", "")) == Small()


def test_a_record_cannot_be_changed_but_copied():
    record = Small()
    with pytest.raises(SettingsError, match="rate must be greater than 0, got -1"):
        record.changed(rate=-1.0)
    assert record.changed(seed=7).seed == 7 and record.seed == 42


def test_an_assignment_is_refused():
    with pytest.raises(ValueError, match="frozen"):
        Small().seed = 3


def test_a_description_says_what_is_expected():
    with pytest.raises(SettingsError, match="weights must be true or the path of a weights file, got 3"):
        Small(weights=3)


def test_paths_resolve_against_the_repository_and_are_stored_relative_to_it(tmp_path):
    assert Small().folder == repository_root() / "outputs"
    assert Small().plain()["folder"] == "outputs"
    assert Small(folder=str(tmp_path)).plain()["folder"] == tmp_path.as_posix()


def test_a_namespace_of_another_kind_of_value_is_left_alone():
    assert Small.from_namespace({"seed": 3, "rate": 1.0, "show": print, "_hidden": 1}).seed == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- 1\n", "expected 'name: value' lines, got list"),
        ("a: [1\n", "not a YAML file"),
        ("rate: 1\nrate: 2\n", "'rate' is given twice"),
        ("1: 2\n", "expected 'name: value' lines, got dict"),
        ("model:\n  rate: 1\n", "model holds a nested mapping; parameters are flat"),
    ],
)
def test_files_that_are_no_parameter_files(tmp_path, text, expected):
    path = write(tmp_path / "p.yaml", text)
    with pytest.raises(SettingsError, match=expected) as error:
        read_parameters(path)
    assert str(error.value).startswith(str(path))
