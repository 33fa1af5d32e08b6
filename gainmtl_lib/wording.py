"""Errors about parameters in plain words: which name, what was found, what was expected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo


def readable_errors(error: ValidationError, fields: Mapping[str, FieldInfo]) -> Iterator[str]:
    """One sentence per parameter that cannot be used.

    Args:
        error: of a record's validation.
        fields: of the record; a field's description says what is expected where pydantic's own words do not.
    """
    # A value that fits no member of a union is reported once per member: the first line says enough.
    details = {detail["loc"][:1] or number: detail for number, detail in enumerate(reversed(error.errors()))}
    return (_readable(detail, fields) for detail in reversed(details.values()))


def closest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for a misspelt name, or nothing when no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _readable(detail: Any, fields: Mapping[str, FieldInfo]) -> str:
    name = str(detail["loc"][0]) if detail["loc"] else ""
    value, kind = detail["input"], detail["type"]
    if kind == "extra_forbidden":
        return f"unknown parameter '{name}'{closest(name, fields)}"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    described = fields[name].description if name in fields else None
    expected = described or _EXPECTED.get(kind) or str(detail["msg"]).removeprefix("Input should be ")
    if kind == "missing":
        return f"{name} is missing; expected {described or 'a value'}"
    got = f"the text {value!r}" if isinstance(value, str) else f"{value!r}"
    return f"{name} must be {expected}, got {got}{_hint(kind, value)}"


_EXPECTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
}


def _hint(kind: str, value: Any) -> str:
    if kind == "float_type" and isinstance(value, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", value, re.IGNORECASE):
        mantissa, exponent = re.split("[eE]", value)
        return f"; YAML reads {value} as text, write {mantissa}.0e{exponent}"
    if kind == "bool_type" and isinstance(value, str) and value.lower() in {"true", "false"}:
        return f"; with -p write {value.capitalize()}"
    return ""


def with_origin(line: str, origin: Mapping[str, str]) -> str:
    """The sentence, led by the file that holds the first parameter it names; values given otherwise have none."""
    for name in re.findall(r"\w+", line):
        if name in origin:
            return f"{origin[name]}: {line}" if origin[name] else line
    return line
