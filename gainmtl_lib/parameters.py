"""A flat record of parameters: composed from YAML files, from a notebook's names, or from keywords.

Flat, because papermill merges parameter files by top-level key only, replaces nested values whole, and ``-p``
reaches top-level names only.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gainmtl_lib.wording import readable_errors, with_origin


class SettingsError(ValueError):
    """A parameter that cannot be used: names it, what was found, and what was expected."""


def repository_root() -> Path:
    """Folder that relative paths resolve against: the checkout, or the working directory outside one."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def as_path(value: Any) -> Any:
    """Text and relative paths to absolute ones; anything else unchanged, for pydantic to judge."""
    if isinstance(value, str) and value:
        value = Path(value).expanduser()
    if isinstance(value, Path) and not value.is_absolute():
        value = repository_root() / value
    return value


AnyPath = Annotated[Path, BeforeValidator(as_path)]
FolderName = Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]
"""Of one folder: neither a path nor ``..`` nor hidden."""


class ParameterRecord(BaseModel):
    """Base of the records of parameters. Frozen and strict: unknown names and wrong types raise `SettingsError`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError("\n".join(readable_errors(error, type(self).model_fields))) from None

    @classmethod
    def from_yaml(cls, *paths: str | Path, **overrides: Any) -> Self:
        """Compose parameter files, later ones win, then overrides.

        Raises:
            SettingsError: a file that is missing or no flat mapping, or a value that cannot be used; the
                message names the file that holds it.
        """
        origin: dict[str, str] = {}
        values: dict[str, Any] = {}
        for path in paths:
            content = read_parameters(path)
            origin |= dict.fromkeys(content, str(path))
            values |= content
        origin |= dict.fromkeys(overrides, "")
        try:
            return cls(**values | overrides)
        except SettingsError as error:
            raise SettingsError("\n".join(with_origin(line, origin) for line in str(error).split("\n"))) from None

    @classmethod
    def from_namespace(cls, namespace: Mapping[str, Any]) -> Self:
        """Settings from a notebook's ``globals()``.

        Every plain value there must be a field, so that a misspelt papermill parameter is an error
        (papermill itself only warns). Under IPython other names count only if a cell of nothing but literal
        assignments set them: variables of the cells below must not stop the notebook from running twice.
        """
        plain = (bool, int, float, str, list, tuple, dict, Path, type(None))
        history = namespace.get("In")
        known = {*cls.model_fields, *_literal_names(history)} if isinstance(history, list) else set(namespace)
        values = {
            name: value
            for name, value in namespace.items()
            if isinstance(value, plain) and name in known and not name.startswith("_") and name not in {"In", "Out"}
        }
        return cls(**values)

    def plain(self) -> dict[str, Any]:
        """The fields as YAML and JSON can hold them; paths inside the repository are relative to it."""
        return {name: _plain(value) for name, value in self.model_dump().items()}

    def changed(self, **values: Any) -> Self:
        """A copy with some fields replaced, validated anew."""
        return type(self)(**self.model_dump() | values)

    def differences(self, other: Self) -> list[str]:
        """One line per field that differs: ``name: own value here, value in other``."""
        mine, theirs = self.plain(), other.plain()
        return [f"{name}: {mine[name]!r} and {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]


class OneOfEachName(yaml.SafeLoader):
    """Refuses a name that stands twice in a mapping: of two values YAML would keep the last, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; YAMLError with the place where a name is repeated."""
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
            names.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def read_parameters(path: str | Path) -> dict[str, Any]:
    """One parameter file as a flat mapping.

    Raises:
        SettingsError: the file is missing, is not YAML, gives a name twice, or is not a mapping at its top level.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"{path}: no such parameter file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=OneOfEachName)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a YAML file: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsError(f"{path}: expected 'name: value' lines, got {type(content).__name__}")
    nested = [key for key, value in content.items() if isinstance(value, dict)]
    if nested:
        raise SettingsError(
            f"{path}: {', '.join(nested)} holds a nested mapping; parameters are flat, write them at the top level"
        )
    return content


def _literal_names(cells: list[str]) -> set[str]:
    """Names set by cells that hold nothing but ``name = literal``: parameters, written or injected."""
    names: set[str] = set()
    for source in cells:
        try:
            statements = ast.parse(source).body
            pairs = [(target.id, ast.literal_eval(s.value)) for s in statements for target in s.targets]  # type: ignore[attr-defined]
        except (SyntaxError, ValueError, AttributeError):  # magics, expressions, anything but a plain assignment
            continue
        names |= {name for name, _ in pairs}
    return names


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        root = repository_root()
        return value.relative_to(root).as_posix() if value.is_relative_to(root) else value.as_posix()
    return list(value) if isinstance(value, tuple) else value
