"""A run's numbers, from its files."""

import pytest
from audited import row, spread, write_audited

from gainmtl_lib.audit.numbers import audit_run
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.runs import load_run


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("gainmtl_lib.stats.RESAMPLES", 100)


def audit(folder, rows, *, required_recall=0.9, **values):
    return audit_run(load_run(write_audited(folder, rows, **values)), required_recall=required_recall)


def rows():
    """Validation asks for 0.45 to find all of its ten defects, the run decides at 0.5; test loses a defect by that."""
    found = spread("val", 1, 0.46, 0.95, 10) + spread("val", 0, 0.05, 0.44, 10)
    found += [row("test", 1, 0.9), row("test", 1, 0.48), row("test", 1, 0.1)]
    return [*found, row("test", 0, 0.47), row("test", 0, 0.2)]


def test_splits_and_thresholds(tmp_path):
    found = audit(tmp_path, rows(), required_recall=1.0)
    assert (found.splits, found.tests, found.main) == (["val", "test"], ["test"], "test")
    assert found.threshold == 0.5
    assert (found.chosen["test"].escapes.hits, found.chosen["test"].overkill.hits) == (2, 0)
    assert found.choice.threshold == pytest.approx(0.45)
    assert (found.at_recall["test"].escapes.hits, found.at_recall["test"].overkill.hits) == (1, 1)
    assert found.at_recall["val"].escapes.hits == 0


def test_the_required_recall_is_chosen_on_validation_alone(tmp_path):
    first = audit(tmp_path / "a", rows())
    other = audit(tmp_path / "b", [*rows(), *spread("test", 1, 0.0, 0.3, 20)])
    assert first.choice == other.choice
    assert first.choice.threshold == pytest.approx((0.46 + 0.49 / 9 + 0.46) / 2)  # nine of ten defects


def test_without_validation_there_is_no_threshold_and_no_scale(tmp_path):
    found = audit(tmp_path, [row("test", 1, 0.9), row("test", 0, 0.1)], metrics={"map_scales": {}})
    assert found.choice.threshold is None and found.at_recall == {} and found.found is None
    assert found.calm("test", 0).count == 0 and found.scales == {}


def test_only_a_shifted_split_is_the_headline_then(tmp_path):
    found = audit(tmp_path, [row("test_shift", 1, 0.9), row("test_shift", 0, 0.1)])
    assert found.main == "test_shift" and found.drops == {}


def test_drops_from_test_to_test_shift(tmp_path):
    shifted = [*rows(), row("test_shift", 1, 0.9), row("test_shift", 0, 0.9)]
    found = audit(tmp_path, shifted)
    assert found.drops["recall"].value == pytest.approx(1 / 3 - 1)
    assert found.drops["accuracy"].value == pytest.approx(3 / 5 - 1 / 2)


def test_calm_pictures_are_counted_on_the_absolute_scale(tmp_path):
    peaks = [2.0] * 10 + [0.5] * 10 + [2.0, 0.9, 1.1] + [0.5, 3.0]
    found = audit(tmp_path, rows(), peaks=peaks)
    assert found.scales["cam"] == MapScale(1.0, 3.0)
    assert (found.calm("test", 1).hits, found.calm("test", 1).count) == (1, 3)
    assert (found.calm("test", 0).hits, found.calm("test", 0).count) == (1, 2)
    assert found.calm("val", 0).value == 1


def test_parts_are_known_when_a_group_is_not_the_picture_itself(tmp_path):
    assert not audit(tmp_path / "a", rows()).groups_known
    named = [entry | {"group": "tile1"} for entry in rows()[:2]] + rows()[2:]
    found = audit(tmp_path / "b", named)
    assert found.groups_known and found.parts("val") == 19


def test_sizes_and_types_are_of_the_test_splits(tmp_path):
    varied = [entry | {"defect_area": 0.01 * (1 + number)} for number, entry in enumerate(rows()[:10])] + rows()[10:]
    found = audit(tmp_path, varied)
    assert set(found.types) == {"test"} == set(found.sizes)
    assert found.bins.chosen_on == "val"
    assert sum(r.recall.count for r in found.sizes["test"]) == 3
    assert audit(tmp_path / "same", rows()).sizes == {}  # all areas are equal: no bins


def test_a_recall_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="required_recall must be a share"):
        audit(tmp_path, rows(), required_recall=99)
