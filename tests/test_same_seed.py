"""The same seed gives the same study: data, training, evaluation and comparison, twice from nothing."""

import pandas as pd
import pytest
from tiny import tiny_settings

from gainmtl_lib.evaluation import evaluate
from gainmtl_lib.runs import collect_runs, compare
from gainmtl_lib.train import fit


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """S1 and S6, which has every part and every kind of randomness, in two folders that share nothing."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for folder in folders:
        for strategy in ("S1", "S6"):
            evaluate(fit(tiny_settings(folder, strategy, num_epochs=2)), device="cpu")
    return [collect_runs(folder / "outputs/tiny") for folder in folders]


def test_every_picture_gets_the_same_answer(studies):
    first, second = studies
    assert [run.settings.strategy for run in first] == ["S1", "S6"]
    for one, other in zip(first, second, strict=True):
        assert one.folder != other.folder and len(one.predictions) == 16
        pd.testing.assert_frame_equal(one.predictions, other.predictions, check_exact=True)
    assert not first[0].predictions["probability"].equals(first[1].predictions["probability"])


def test_the_comparison_is_the_same(studies):
    first, second = (compare(runs) for runs in studies)
    assert first[["strategy", "split"]].to_numpy().tolist() == [
        ["S1", "test"], ["S1", "test_shift"], ["S6", "test"], ["S6", "test_shift"]
    ]  # fmt: skip
    pd.testing.assert_frame_equal(first, second, check_exact=True)
