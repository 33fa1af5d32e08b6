"""Names, numbers and tables as they are written."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console

from gainmtl_lib.wording import (
    COMPARED,
    METRICS,
    frame_table,
    interval,
    join_words,
    markdown_table,
    number,
    of_count,
    percent,
    plural,
    probability,
    signed,
)


def flat(text):
    return text.replace("\u00a0", " ").replace("\u2212", "-")


@pytest.mark.parametrize(
    ("write", "value", "written"),
    [
        (number, 0.12345, "0.123"),
        (number, -0.5, "-0.500"),
        (number, -0.0001, "0.000"),
        (number, 3, "3"),
        (number, None, "–"),
        (number, math.nan, "–"),
        (signed, 0.0214, "+0.021"),
        (signed, -0.0214, "-0.021"),
        (signed, -0.0002, "0.000"),
        (signed, math.nan, "–"),
        (percent, 0.5, "50 %"),
        (percent, 0.0576, "5.8 %"),
        (percent, 1.0, "100 %"),
        (percent, None, "–"),
        (probability, 0.0421, "0.042"),
        (probability, 0.0004, "< 0.001"),
        (probability, math.nan, "–"),
    ],
)
def test_numbers(write, value, written):
    assert flat(write(value)) == written


def test_intervals_and_counts():
    sure = SimpleNamespace(value=0.94236, low=0.844, high=0.98, hits=49, count=52)
    unsure = SimpleNamespace(value=0.5, low=math.nan, high=math.nan, hits=None, count=52)
    assert interval(sure) == "0.942 (0.844 to 0.980)" and interval(unsure) == "0.500"
    assert interval(sure, signed) == "+0.942 (+0.844 to +0.980)"
    assert flat(interval(sure, percent)) == "94.2 % (84.4 % to 98 %)"
    assert interval(SimpleNamespace(value=math.nan, low=0.1, high=0.2)) == "–"
    assert of_count(sure) == "49 of 52" and of_count(unsure) == "–"


def test_words():
    assert [join_words(list(words)) for words in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert (plural(1, "picture"), plural(2, "picture")) == ("1 picture", "2 pictures")


def test_every_compared_metric_has_a_name():
    assert set(COMPARED) <= METRICS.keys()


def test_tables_hold_the_frame_and_show_names_as_they_are():
    rows = pd.DataFrame({"count": [3, 4], "share": [0.123456, math.nan]}, index=pd.Index(["[red]a", "b"], name="kind"))
    assert markdown_table(rows) == [
        "| kind | count | share |", "| --- | --- | --- |", "| [red]a | 3 | 0.1235 |", "| b | 4 | – |",
    ]  # fmt: skip
    console = Console(width=60, record=True)
    console.print(frame_table("title", rows))
    shown = console.export_text()
    assert all(text in shown for text in ("title", "kind", "[red]a", "0.1235", "–"))
