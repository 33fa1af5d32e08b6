"""What a run's verdicts rest on, as the command prints it."""

from io import StringIO

import pytest
from rich.console import Console

from gainmtl_lib.console import print_reasons, reasons_table


def estimate(value, low=None, high=None, count=20):
    return {"value": value, "low": low, "high": high, "count": count}


@pytest.fixture
def measured():
    indicators = {
        "counterfactual_accuracy": estimate(0.31, count=40),
        "image_flip": estimate(0.5),
        "image_flip_excess": estimate(0.05, -0.1, 0.2),
        "accuracy": estimate(0.95, 0.9, 0.98),
        "drop": estimate(0.7, 0.6, 0.8),
    }
    return {"indicators": indicators, "left_out": {"heal: covers the picture": 2}}


def printed(measured):
    console = Console(width=200, file=StringIO())
    print_reasons(console, measured)
    return " ".join(console.file.getvalue().split())


def test_what_may_warn_is_listed_with_its_direction(measured):
    table = reasons_table(measured)
    assert list(table.index) == ["accuracy", "flips, defect healed", "accuracy on edited pictures"]
    assert table.loc["flips, defect healed"].to_dict() == {
        "value": "0.050",
        "95 % interval": "−0.100 to 0.200",
        "pictures": 20,
        "warns when": "low",
        "because": "healing the defect does not turn the verdict",
    }
    assert table.loc["accuracy on edited pictures", "95 % interval"] == "–"


def test_a_shifted_test_set_is_no_part_of_it(measured):
    assert "0.700" not in printed(measured)


def test_impossible_edits_are_counted(measured):
    assert "edits that were impossible: heal: covers the picture (2)" in printed(measured)
    assert "edits that were impossible" not in printed(measured | {"left_out": {}})


def test_without_any_edit_this_is_said(measured):
    sentence = "No defect of the test split could be healed or pasted"
    assert sentence not in printed(measured)
    del measured["indicators"]["counterfactual_accuracy"]
    assert sentence in printed(measured)
