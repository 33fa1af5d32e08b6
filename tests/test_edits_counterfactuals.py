"""Which training pictures are edited, and that edits say nothing about the class: counted on small drawn surfaces."""

import logging
from collections import Counter
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from gainmtl_lib.dataset import Picture
from gainmtl_lib.edits import counterfactuals as module
from gainmtl_lib.edits.counterfactuals import HEALING, ImageCounterfactuals, cue_left, edit_odds, edits_figure
from gainmtl_lib.edits.editing import HEAL_METHODS, PASTE_METHODS, EditError
from gainmtl_lib.findings import DataError
from gainmtl_lib.labels import inside

SIDE = 40
PASTING = ("paste", "paste_clean", "repaste")
SHOWN = {0: ("heal", "heal_spot", "paste_clean"), 1: ("heal_beside", "paste", "repaste")}  # by the label after


@cache
def surface(row, defective, covered, size):
    """A grainy surface, beside bright bars where `size` is smaller than the picture.

    Defective ones have a dark square of 7 pixels, or a defect that takes nearly all.
    """
    rng = np.random.default_rng(row)
    place = inside(size, (SIDE, SIDE), "letterbox")
    image, mask = np.full((SIDE, SIDE, 3), 250.0), np.zeros((SIDE, SIDE), np.uint8)
    image[place] = rng.normal(150, 6, (*size, 1))
    if defective:
        top, left = rng.integers(4, SIDE - 12, size=2) if size == (SIDE, SIDE) else (0, size[1] - 7)
        window = (slice(1, None), slice(None)) if covered else (slice(top, top + 7), slice(left, left + 7))
        mask[place][window] = 1
        image[mask > 0] -= 70
    return Picture(image.clip(0, 255).astype(np.uint8), mask if defective else None, place)


def edits(normals=20, defectives=20, *, share=0.5, seed=0, without=0, covered=0, sizes=((SIDE, SIDE),)):
    """Rows: normal ones first, then defective ones: `without` a mask, then `covered` by it, then the others."""
    labels = np.array([0] * normals + [1] * defectives)
    annotated = np.arange(len(labels)) >= normals + without

    def picture(row):
        is_covered = normals + without <= row < normals + without + covered
        full = surface(row, bool(labels[row]), is_covered, sizes[row % len(sizes)])
        return full if annotated[row] else full._replace(mask=None)

    dataset = SimpleNamespace(labels=labels, has_mask=annotated, stored=picture)
    return ImageCounterfactuals(dataset, range(len(labels)), share=share, seed=seed)


def drawn(of, epochs, rows=None):
    found = [of.draw(epoch, row) for epoch in range(epochs) for row in rows or of.rows]
    return [each for each in found if each is not None]


def never(monkeypatch, *kinds):
    def refuse(*args, **options):
        raise EditError("no free place", "none at all")

    for kind in kinds:
        monkeypatch.setattr(module.editing, kind, refuse)


# --- Odds


@pytest.mark.parametrize("normals, defectives", [(50, 50), (72, 28), (28, 72), (1000, 7)])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_by_the_odds_an_edit_says_nothing_about_the_class(normals, defectives, share):
    odds, sizes = edit_odds(normals, defectives, share), {0: normals, 1: defectives}
    counts = {kind: chance * sizes[label] for label, kinds in odds.items() for kind, chance in kinds.items()}
    assert min(counts.values()) > 0
    assert [sum(kinds.values()) for kinds in odds.values()] == pytest.approx([share, share])
    assert counts["heal"] == pytest.approx(counts["paste"]), "the classes stay as large as they are"
    assert odds[0]["heal_spot"] == pytest.approx(odds[0]["paste"] / 4)
    rare = defectives / (normals + defectives)
    for label, shown in SHOWN.items():
        healed = sum(counts[kind] for kind in shown if kind in HEALING)
        pasted = sum(counts[kind] for kind in shown if kind in PASTING)
        assert healed == pytest.approx(share * sizes[label] * rare)
        assert pasted == pytest.approx(share * sizes[label] * (1 - rare))


@pytest.mark.parametrize("normals, defectives", [(50, 50), (72, 28), (1000, 7)])
@pytest.mark.parametrize("share, left", [(0.25, 0.8), (0.5, 0.6), (1.0, 0.2)])
def test_of_a_cue_the_same_part_is_left_whatever_the_class_sizes(normals, defectives, share, left):
    """A cue on 95 % of the defective and 5 % of the normal pictures, which an edit leaves where it is."""
    odds = edit_odds(normals, defectives, share)
    pasted, healed = odds[0]["paste"], odds[1]["heal"]
    in_normals, in_defectives = 0.05 * normals, 0.95 * defectives
    shown_defective = in_defectives * (1 - healed) + in_normals * pasted
    shown_normal = in_normals * (1 - pasted) + in_defectives * healed
    assert shown_defective / defectives - shown_normal / normals == pytest.approx(left * 0.9)
    assert cue_left(share) == pytest.approx(left)


@pytest.mark.parametrize("normals, defectives", [(25, 25), (36, 14)])
def test_what_is_drawn_follows_the_odds_in_both_labels_and_in_all_methods(normals, defectives):
    of, epochs = edits(normals, defectives), 16
    found = drawn(of, epochs)
    assert all(each.edit is not None for each in found)
    counts = Counter(each.kind for each in found)
    shown = Counter((each.edit.label, each.kind in HEALING) for each in found)
    rare = defectives / (normals + defectives)
    for label, size in ((0, normals), (1, defectives)):
        expected = {kind: (counts[kind], odds) for kind, odds in of.odds[label].items()}
        expected |= {(True, label): (shown[label, True], 0.5 * rare)}
        expected |= {(False, label): (shown[label, False], 0.5 * (1 - rare))}
        for kind, (count, odds) in expected.items():
            low, high = stats.binom.interval(0.998, size * epochs, odds)
            assert low <= count <= high, kind
    for methods, family in ((HEAL_METHODS, HEALING), (PASTE_METHODS, PASTING)):
        of_family = Counter((each.edit.label, each.edit.method) for each in found if each.kind in family)
        table = [[of_family[label, method] for method in methods] for label in (0, 1)]
        assert stats.chisquare(np.sum(table, axis=0)).pvalue > 0.01
        assert stats.chi2_contingency(table).pvalue > 0.01


# --- Edits


def test_edits_carry_their_labels_and_masks_and_never_reach_the_bars_which_take_the_edited_part_s_mean():
    """Bars of 250 beside a surface of 150: a spot of a bar, healed or pasted, would be brighter than any grain."""
    sizes = (SIDE, SIDE), (24, SIDE), (SIDE, 18)  # whole, bars above and below, bars on both sides
    of = edits(12, 12, share=1.0, sizes=sizes)
    found = [each for each in drawn(of, 16) if each.edit is not None]
    for each in found:
        before, edit = of.dataset.stored(each.row), each.edit
        bars = np.ones((SIDE, SIDE), bool)
        bars[before.place] = False
        assert each.kind in SHOWN[edit.label] and edit.mask.any() == (edit.label == 1)
        assert (edit.image[bars] == np.rint(edit.image[before.place].mean(axis=(0, 1)))).all()
        assert not (edit.region & bars).any() and not (edit.mask & bars).any()
        assert np.array_equal(edit.image[~edit.region & ~bars], before.image[~edit.region & ~bars])
        assert not np.array_equal(edit.image, before.image) and edit.image[before.place].max() < 200
        if each.kind in ("repaste", "heal_beside"):
            assert np.array_equal(edit.mask, before.mask > 0)
    assert {(each.kind, each.row % 3) for each in found} == {(k, n) for k in (*HEALING, *PASTING) for n in range(3)}


def test_a_draw_follows_from_seed_epoch_and_row_alone():
    def kinds(of, epoch):
        found = [of.draw(epoch, row) for row in of.rows]
        return [(each.kind, each.edit.method, each.edit.image.tobytes()) if each else None for each in found]

    first = edits()
    before = kinds(first, 3)
    kinds(first, 0)
    assert kinds(first, 3) == before == kinds(edits(), 3)
    assert kinds(first, 4) != before != kinds(edits(seed=1), 3)
    assert [each is None for each in before] != [each is None for each in kinds(first, 4)]
    assert len(drawn(edits(share=1.0), 2)) == 80


def test_an_annotated_defect_takes_the_turn_of_one_without_a_mask():
    of = edits(without=17)
    found = [(row, each) for epoch in range(10) for row in range(20, 40) if (each := of.draw(epoch, row))]
    assert len(found) == pytest.approx(100, abs=25), "edited as often as with all masks"
    assert {each.row for _, each in found} == {37, 38, 39}
    assert all(row == each.row for row, each in found if row >= 37)
    assert of.expected == edits().expected


def test_a_defect_that_cannot_be_edited_gives_its_turn_away():
    found = drawn(edits(covered=4), 12, rows=range(20, 24))
    done = [each for each in found if each.edit is not None]
    assert len(found) - 3 < len(done) and len(done) > 15
    assert {each.row for each in done} <= set(range(24, 40))
    assert not [each for each in done if "covers the picture" in each.failures], "it is not even tried"


def test_what_is_impossible_is_counted_and_logged(caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        edits().check()
    assert not caplog.text
    never(monkeypatch, "heal_spot")
    of, table = edits(100, 100), edits(100, 100).epoch_table(0)
    assert table["kind"].tolist() == [each.kind for each in drawn(of, 1)]
    failed = table[table["method"].isna()]
    assert len(failed) and set(failed["kind"]) == {"heal_spot"} and set(failed["label"]) == {0}
    assert all(failures == ["no free place"] * module.TRIES for failures in failed["failures"])
    of.check()
    assert f"{module.TRIED} of {6 * module.TRIED} edits tried are impossible" in caplog.text
    told = f"reasons by number of tries: no free place ({module.TRIES * module.TRIED}); these pictures stay as they are"
    assert told in caplog.text


@pytest.mark.parametrize("normals, defectives", [(100, 100), (140, 60)])
@pytest.mark.parametrize("refused, gone", [
    ({"heal_spot"}, None), ({"repaste"}, None), ({"paste"}, None), ({"paste_clean"}, PASTING), ({"heal_beside"}, HEALING),
])  # fmt: skip
def test_edits_that_fail_for_one_label_are_made_less_often_for_the_other(
    normals, defectives, refused, gone, monkeypatch
):
    """Where pastes of clean patches fail, a pasted picture is a defective one: then nothing is pasted."""
    never(monkeypatch, *refused)
    of = edits(normals, defectives, share=0.9)
    of.check()
    found = [each for each in drawn(of, 8) if each.edit is not None]
    moved = sum(each.kind == "paste" for each in found) - sum(each.kind == "heal" for each in found)
    shown = {0: 8 * normals - moved, 1: 8 * defectives + moved}
    for family in (HEALING, PASTING):
        shares = [sum(each.kind in family and each.edit.label == k for each in found) / shown[k] for k in (0, 1)]
        assert shares[0] == pytest.approx(shares[1], abs=0.05) and (max(shares) == 0) == (family == gone)


def test_a_training_of_which_too_few_pictures_can_be_edited_alike_is_refused(monkeypatch):
    never(monkeypatch, "heal_beside", "paste_clean")
    with pytest.raises(
        DataError, match=r"no free place .*, so that 0 % of the pictures of either class can be edited al"
    ):
        edits().check()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("normals", "defectives"), [(6, 6), (30, 8)])
def test_few_pictures_of_which_some_edits_fail_by_chance_are_balanced_whatever_the_seed(
    normals, defectives, seed, monkeypatch
):
    """As often as large masks find no place: repaste in most tries, healing beside the defect in half of them."""
    for name, share in (("heal_beside", 0.5), ("repaste", 0.85), ("paste_clean", 0.3)):
        made = getattr(module.editing, name)

        def sometimes(*args, made=made, share=share, rng, **options):
            if rng.random() < share:
                raise EditError("no free place", "")
            return made(*args, rng=rng, **options)

        monkeypatch.setattr(module.editing, name, sometimes)
    monkeypatch.setattr(module, "TRIES", 1)
    of = edits(normals, defectives, seed=seed)
    of.check()
    epochs = 1200 // (normals + defectives)
    found = [each for each in drawn(of, epochs) if each.edit is not None]
    moved = sum(each.kind == "paste" for each in found) - sum(each.kind == "heal" for each in found)
    shown = {0: epochs * normals - moved, 1: epochs * defectives + moved}
    for family in (HEALING, PASTING):
        shares = [sum(each.kind in family and each.edit.label == k for each in found) / shown[k] for k in (0, 1)]
        assert shares[0] == pytest.approx(shares[1], abs=0.08)


def test_masks_of_which_every_one_covers_the_picture_are_refused():
    with pytest.raises(
        DataError, match=r"is 0.5, but all 20 masks of the training split mark more than half of their pi"
    ):
        edits(covered=20)


@pytest.mark.parametrize("options, message", [
    ({"without": 20}, "is 0.5, but none of the 20 defective training images has a mask in use"),
    ({"normals": 0}, "image_counterfactual is 0.5, but the training split has 0 normal and 20 defective images"),
    ({"defectives": 0}, "the training split has 20 normal and 0 defective images; edits need both"),
])  # fmt: skip
def test_what_is_missing_is_named(options, message):
    with pytest.raises(DataError, match=message):
        edits(**options)


def test_the_figure_shows_each_kind_or_each_method_and_leaves_out_what_cannot_be_had(caplog, monkeypatch):
    for kind in (*HEALING, *PASTING):
        methods = HEAL_METHODS if kind in HEALING else PASTE_METHODS
        titles = [axis.get_title() for axis in edits_figure(edits(), kind).axes[: len(methods)]]
        assert titles == [f"{kind}, {method}" for method in methods]
    titles = [axis.get_title() for axis in edits_figure(edits()).axes]
    assert [title.split(",")[0] for title in titles[:6]] == [*module.KINDS[1], *module.KINDS[0]]
    assert titles[6:12] == ["normal", "defective", "defective", "defective", "normal", "normal"]
    never(monkeypatch, "heal", "heal_beside", "repaste", "paste", "heal_spot")
    assert len(edits_figure(edits()).axes) == 3 * 1
    assert "not drawn: heal, heal_beside, repaste, paste, heal_spot" in caplog.text


@pytest.mark.parametrize(
    "options, expected",
    [({}, 5), ({"share": 1.0}, 13), ({"without": 16}, 2), ({"normals": 36, "defectives": 14, "share": 1.0}, 19)],
)
def test_as_many_pasted_masks_as_a_training_shows(options, expected, monkeypatch):
    """Of 20 + 20 pictures with p = 0.5 an epoch shows 4 pasted masks and 16 as they are stored: 20 stored ask for 5.

    With p = 1: 8 and 12, so 13.3. With 4 masks: 4 pasted, 4 / 2 unedited and 20 / 2 - 4 edited ones: 4 x 4 / 8 = 2.
    Of 36 + 14 pictures with p = 1: 0.8 x 36 x 14 / 50 = 8.1 pasted and 14 - 8.1 as they are stored, so 14 x 8.1 / 5.9.
    """
    of = edits(**options)
    masks = list(of.pasted_masks())
    assert len(masks) == expected
    pasted = [each.edit.mask for each in drawn(of, 3) if each.kind == "paste"]
    assert all(np.array_equal(one, other) for one, other in zip(masks, pasted))
    never(monkeypatch, "paste")
    assert list(edits(normals=5, defectives=5).pasted_masks()) == []  # and it ends
