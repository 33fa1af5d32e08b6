"""Sentences about parameters that cannot be used."""

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from gainmtl_lib.settings import closest, readable_errors, with_origin


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
