"""Figures of edits: a column for each kind or method, magnified around what may differ."""

import numpy as np
import pytest
from tiny import tiny_data, tiny_settings

from gainmtl_lib.dataset import build_samples
from gainmtl_lib.edits.counterfactuals import (
    LEVELS,
    PARTS,
    WHOLE,
    edit_kinds_figure,
    edit_methods_figure,
    magnified_part,
)
from gainmtl_lib.edits.heal import HEAL_METHODS
from gainmtl_lib.edits.paste import PASTE_METHODS
from gainmtl_lib.readers import DataError


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
    samples = build_samples(tiny_settings(tmp_path_factory.mktemp("edits"), "S1"))
    data = tiny_data(samples, image_size=(64, 64), image_counterfactual=0.5)
    data.setup()
    return data.counterfactuals


def shown(figure, row, column, columns):
    return np.asarray(figure.axes[row * columns + column].get_images()[0].get_array())


def test_one_column_for_each_kind(edits):
    figure = edit_kinds_figure(edits)
    assert len(figure.axes) == (1 + len(PARTS)) * 6
    titles = [axis.get_title() for axis in figure.axes[:6]]
    assert [title.split(",")[0] for title in titles] == [
        "heal", "heal_beside", "repaste", "paste", "heal_spot", "paste_clean"
    ]  # fmt: skip
    assert [title.split("\n")[1] for title in titles] == [
        "defective → normal", "defective → defective", "defective → defective",
        "normal → defective", "normal → normal", "normal → normal",
    ]  # fmt: skip
    assert [axis.get_ylabel() for axis in figure.axes[::6]] == [WHOLE, *PARTS]
    assert "cyan: defect mask" in figure.get_supxlabel()


def test_before_after_and_change_belong_together(edits):
    figure = edit_kinds_figure(edits, ["heal", "paste"], number=3)
    for column, kind in enumerate(("heal", "paste")):
        example = edits.example(kind, number=3)
        part = magnified_part(example.edit.region)
        np.testing.assert_array_equal(shown(figure, 0, column, 2), example.edit.image)
        np.testing.assert_array_equal(shown(figure, 1, column, 2), example.before[part])
        np.testing.assert_array_equal(shown(figure, 2, column, 2), example.edit.image[part])
        change = shown(figure, 3, column, 2)
        expected = np.abs(example.edit.image[part].astype(int) - example.before[part]).max(-1)
        np.testing.assert_array_equal(change, expected)
        assert (change[~example.edit.region[part]] == 0).all() and change.any()
        assert figure.axes[6 + column].get_images()[0].get_clim() == (0, LEVELS)


def test_one_column_for_each_method_of_the_kind(edits):
    healing, pasting = edit_methods_figure(edits, "heal"), edit_methods_figure(edits, "paste")
    assert [axis.get_title().split("\n")[0] for axis in healing.axes[: len(HEAL_METHODS)]] == list(HEAL_METHODS)
    assert [axis.get_title().split("\n")[0] for axis in pasting.axes[: len(PASTE_METHODS)]] == list(PASTE_METHODS)
    assert [axis.get_ylabel() for axis in pasting.axes[:: len(PASTE_METHODS)]] == list(PARTS)
    before = [shown(pasting, 0, column, len(PASTE_METHODS)) for column in range(len(PASTE_METHODS))]
    assert all(np.array_equal(part, before[0]) for part in before)
    with pytest.raises(ValueError, match=r"kind must be one of heal, heal_beside, repaste, paste, .*, got 'cut'"):
        edit_methods_figure(edits, "cut")


def test_an_impossible_edit_says_so(edits, caplog):
    class Impossible:
        def example(self, kind, method, *, number):
            if method == "clone":
                raise DataError("no training picture could be edited by paste (clone): no free place")
            return edits.example(kind, method, number=number)

    figure = edit_methods_figure(Impossible(), "paste")
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes[: len(PASTE_METHODS)]]
    assert texts == [["not possible here"] if name == "clone" else [] for name in PASTE_METHODS]
    assert "no free place" in caplog.text


def test_the_part_is_square_and_inside_the_picture():
    region = np.zeros((128, 96), bool)
    region[120:128, 3:7] = True
    assert magnified_part(region) == (slice(88, 128), slice(0, 40))
    region[:] = False
    region[30:80, 40:50] = True  # 50 pixels and 10 on each side
    assert magnified_part(region) == (slice(20, 90), slice(10, 80))
    region[:] = True
    assert magnified_part(region) == (slice(0, 128), slice(0, 96))
