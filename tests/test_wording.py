"""Names, numbers and tables as they are written."""

import math
from types import SimpleNamespace

import pandas as pd
from rich.console import Console

from gainmtl_lib import wording
from gainmtl_lib.wording import interval, of_count, percent, plural, signed


def flat(text):
    return text.replace("\u00a0", " ").replace("\u2212", "-")


def test_numbers_intervals_counts_and_words():
    for write, expected in (
        (wording.number, {0.12345: "0.123", -0.5: "-0.500", -0.0001: "0.000", 3: "3", None: "–", math.nan: "–"}),
        (signed, {0.0214: "+0.021", -0.0214: "-0.021", -0.0002: "0.000", math.nan: "–"}),
        (percent, {0.5: "50 %", 0.0576: "5.8 %", 1.0: "100 %", None: "–"}),
        (wording.probability, {0.0421: "0.042", 0.0004: "< 0.001", math.nan: "–"}),
        (wording.join_words, {(): "", ("a",): "a", ("a", "b"): "a and b", ("a", "b", "c"): "a, b and c"}),
        (lambda count: plural(count, "picture"), {1: "1 picture", 2: "2 pictures"}),
    ):
        assert {value: flat(write(value)) for value in expected} == expected
    sure = SimpleNamespace(value=0.94236, low=0.844, high=0.98, hits=49, count=52)
    unsure = SimpleNamespace(value=0.5, low=math.nan, high=math.nan, hits=None, count=52)
    assert interval(sure) == "0.942 (0.844 to 0.980)" and interval(unsure) == "0.500"
    assert flat(interval(sure, percent)) == "94.2 % (84.4 % to 98 %)"
    assert of_count(sure) == "49 of 52" and of_count(unsure) == "–"


def test_a_summary_has_a_column_for_each_split_and_whole_numbers_stay_whole():
    splits = {"test": {"images": 9, "accuracy": 0.5, "recall": math.nan}, "val": {"images": 4, "accuracy": 1.0}}
    table = wording.summary_table({"threshold": 0.5, **splits})
    assert list(table) == ["val", "test"] and table["test"].tolist() == ["9", "0.500"]
    assert wording.summary_table({"test": splits["test"]})["test"].tolist() == ["9", "0.500", "–"]


def test_tables_hold_the_frame_and_show_names_as_they_are():
    rows = pd.DataFrame({"count": [3, 4], "share": [0.123456, math.nan]}, index=pd.Index(["[red]a", "b"], name="kind"))
    lines = ["| kind | count | share |", "| --- | --- | --- |", "| [red]a | 3 | 0.1235 |", "| b | 4 | – |"]
    assert wording.markdown_table(rows) == lines
    console = Console(width=60, record=True)
    console.print(wording.frame_table("title", rows))
    assert all(text in console.export_text(clear=False) for text in ("title", "kind", "[red]a", "0.1235", "–"))
