"""Probes of the edits: they find what is there to be found, and nothing where nothing is."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_data, tiny_settings

from gainmtl_lib.dataset import build_samples
from gainmtl_lib.edits.heal import Edit
from gainmtl_lib.edits.probes import (
    CELL,
    WINDOW,
    PlaceNetwork,
    ProbeResult,
    auroc_by_part,
    border_probe,
    cells_of,
    draw_pairs,
    edit_pair,
    edited_probe,
    halves,
    largest,
    network_input,
    ring_views,
    score_table,
    told,
    turned,
)
from gainmtl_lib.readers import DataError
from gainmtl_lib.stats import Estimate, group_codes

SIDE = 48


def surface(rng):
    """Noise whose brightness differs from picture to picture."""
    return np.clip(rng.normal(rng.uniform(80, 170), 14, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def block(height, width, top, left):
    region = np.zeros((SIDE, SIDE), bool)
    region[top : top + height, left : left + width] = True
    return region


def pair(number, after, before, region, *, kind="heal_spot", label=0, label_before=0, method="m"):
    edit = Edit(after, region & (label == 1), label, kind, method, region)
    return edit_pair(before, edit, label_before=label_before, group=number, held_out=bool(number % 2))


def with_rectangles(count=120):
    """Pictures into which a flat rectangle of the place's own mean colour is pasted."""
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        before = surface(rng)
        region = block(*rng.integers(7, 13, 2), *rng.integers(2, SIDE - 14, 2))
        after = before.copy()
        after[region] = before[region].mean(0)
        pairs.append(pair(number, after, before, region))
    return pairs


@pytest.fixture(scope="module")
def crude():
    return edited_probe(with_rectangles(), epochs=12)


def test_a_pasted_rectangle_is_found(crude):
    assert crude.auroc.value > 0.95 and crude.finds
    picture = crude.table.set_index("of").loc["picture"]
    assert picture["name"] == "same label" and picture["auroc"] > 0.9 and picture["edits"] == 60
    assert crude.trained_on == 2 * 60  # before and after


def test_the_same_seed_gives_the_same_numbers_and_leaves_torch_as_it_was(crude):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = edited_probe(with_rectangles(), epochs=12)
    assert torch.equal(torch.rand(1), expected)
    pd.testing.assert_frame_equal(again.table, crude.table)
    assert again.auroc == crude.auroc


def test_where_nothing_changed_nothing_is_found():
    pairs = [replace(one, after=one.before) for one in with_rectangles(60)]
    result = edited_probe(pairs, epochs=2)
    assert result.auroc.value == 0.5 and not result.finds
    assert "no better than by guessing, AUROC 0.50" in result.sentence


def shaped(kind, number, rng):
    """An edit that changes nothing; healing's region is a compact block, pasting's a thin line."""
    healing = kind in ("heal", "heal_spot", "heal_beside")
    height, width = (10, 10) if healing else (3, 26)
    region = block(height, width, *rng.integers(4, SIDE - 30, 2))
    label = int(kind in ("paste", "repaste", "heal_beside"))
    before = surface(rng)
    changes = kind in ("heal", "paste")
    return pair(number, before, before, region, kind=kind, label=label, label_before=1 - label if changes else label)


def edits_of(counts):
    rng = np.random.default_rng(1)
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    return [shaped(kind, number, rng) for number, kind in enumerate(kinds)]


def test_the_border_tells_the_class_without_controls_and_not_with_them():
    """In the controls' proportions of `edit_odds`: 2 heal, 0.5 heal spot, 2.5 paste clean; the same for defects."""
    pairs = edits_of({"heal": 40, "heal_spot": 10, "paste_clean": 50, "paste": 40, "repaste": 10, "heal_beside": 50})
    without = border_probe(pairs, kinds=("heal", "paste"), epochs=10)
    assert without.auroc.value > 0.95 and without.finds and without.trained_on == 40
    balanced = border_probe(pairs, epochs=10)
    assert abs(balanced.auroc.value - 0.5) < 0.15 and not balanced.finds
    assert balanced.table[["of", "name", "edits"]].to_numpy().tolist() == [
        ["all", "all", 100], ["family", "healing", 50], ["family", "pasting", 50]
    ]  # fmt: skip
    pd.testing.assert_frame_equal(border_probe(pairs, epochs=10).table, balanced.table)


def test_a_view_shows_the_ring_alone():
    rng = np.random.default_rng(2)
    before = surface(rng)
    one = pair(0, before, before, block(6, 6, 20, 20))
    (view,) = ring_views([one])
    contrast, ring = view[:3], view[3]
    assert view.shape == (4, 64, 64)
    # A disc of radius 3 around a block of 6: four sides of 6 x 3 and four quarter discs.
    disc = 4 * 18 + 4 * (len([1 for y in range(1, 4) for x in range(1, 4) if is_in_disc(y, x)]))
    assert int(ring.sum()) == disc and set(ring.unique().tolist()) == {0.0, 1.0}
    assert (contrast[:, ring == 0] == 0).all() and contrast[:, ring > 0].mean(1).abs().max() < 1e-4
    rows, columns = (torch.nonzero(ring.any(axis))[:, 0] for axis in (1, 0))
    assert rows.min() in (25, 26, 27) and rows.max() - rows.min() == 11 and columns.max() - columns.min() == 11


def is_in_disc(y, x):
    """Whether OpenCV's ellipse of radius 3 holds the offset."""
    widths = {0: 3, 1: 3, 2: 2, 3: 0}
    return x <= widths[y]


def test_inside_and_outside_of_the_ring_and_brightness_have_no_say():
    before = surface(np.random.default_rng(3))
    region = block(8, 9, 12, 21)
    (view,) = ring_views([pair(0, before, before, region)])
    changed = before.copy()
    changed[region] = 0
    changed[:5] = 255
    assert torch.equal(ring_views([pair(0, changed, changed, region)])[0], view)
    brighter = (before // 2 + 60).astype(np.uint8), (before // 2 + 90).astype(np.uint8)
    one, other = (ring_views([pair(0, picture, picture, region)])[0] for picture in brighter)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    (wider,) = ring_views([pair(0, before, before, region)], inside=1)
    assert int(wider[3].sum() - view[3].sum()) == 8 * 9 - 6 * 7


def test_beyond_the_picture_there_is_no_ring():
    before = surface(np.random.default_rng(4))
    (view,) = ring_views([pair(0, before, before, block(6, 6, 0, 20))])
    whole = int(ring_views([pair(0, before, before, block(6, 6, 20, 20))])[0][3].sum())
    assert 0 < int(view[3].sum()) < whole - 12
    (everything,) = ring_views([pair(0, before, before, np.ones((SIDE, SIDE), bool))])
    assert (everything == 0).all()


def test_a_region_larger_than_a_view_is_seen_at_some_place_of_its_border():
    before = np.full((200, 200, 3), 90, np.uint8)
    region = np.zeros((200, 200), bool)
    region[10:190, 10:190] = True
    region[20:180, 20:180] = False
    edit = Edit(before, region, 1, "paste", "copy", region)
    one = edit_pair(before, edit, label_before=0, group=0, held_out=False)
    assert one.before.shape == (WINDOW, WINDOW, 3) and one.region.any()
    assert all(view[3].any() for view in ring_views([one] * 5))


def test_a_window_lies_around_the_edit_within_the_picture():
    before = np.arange(200 * 150 * 3, dtype=np.uint32).reshape(200, 150, 3).astype(np.uint8)
    region = np.zeros((200, 150), bool)
    region[190:198, 3:9] = True
    edit = Edit(before[::-1].copy(), region, 1, "paste", "copy", region)
    one = edit_pair(before, edit, label_before=0, group=4, held_out=True)
    np.testing.assert_array_equal(one.before, before[72:200, :128])
    np.testing.assert_array_equal(one.after, edit.image[72:200, :128])
    assert one.region.sum() == 48 and one.region[118:126, 3:9].all()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    settings = tiny_settings(tmp_path_factory.mktemp("probes"), "S1", num_samples=80, shortcut="none")
    samples = build_samples(settings)
    samples["group"] = [f"part {number // 2}" for number in range(len(samples))]  # two pictures of each
    data = tiny_data(samples, image_size=(64, 64))
    data.setup()
    return data


def test_the_halves_share_no_part_and_hold_training_pictures_only(data):
    pairs = draw_pairs(data, rounds=2)
    groups = group_codes(data.samples)
    train, test = halves(pairs)
    assert not {one.group for one in train} & {one.group for one in test}
    assert {one.group for one in pairs} <= {int(groups[row]) for row in data.rows("train")}
    for half in (train, test):
        assert {one.label for one in half} == {0, 1} and len(half) > 0.3 * len(pairs)
    pictures = [data.dataset.stored(row).image for row in data.rows("train")]
    for one in pairs:
        assert any(np.array_equal(one.before, picture) for picture in pictures)
        assert (one.after == one.before)[~one.region].all()


def test_drawing_is_seeded_and_takes_as_many_pictures_as_asked_for(data):
    first, second, other = (draw_pairs(data, rounds=1, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a.after, b.after) and a.kind == b.kind for a, b in zip(first, second, strict=True))
    assert [one.group for one in first] != [one.group for one in other]
    few = draw_pairs(data, rounds=1, pictures=len(data.rows("train")) // 2)
    assert len(first) * 0.35 < len(few) < len(first) * 0.65


def test_data_that_is_too_small_is_named(data):
    bare = data.samples.assign(mask=None)
    with pytest.raises(DataError, match=r"half of the training pictures \(\d+\) are too few to probe edits: .*mask"):
        draw_pairs(tiny_data(bare, image_size=(64, 64)))
    pairs = with_rectangles(4)
    with pytest.raises(DataError, match="a probe needs edits in both halves, got 2 to train on and 0 held out"):
        edited_probe([one for one in pairs if not one.held_out])
    with pytest.raises(DataError, match="all 2 edits to train on have label 0; the probe needs both labels"):
        border_probe(pairs)


def test_what_a_region_shows_before_and_after():
    kinds = ("heal", "paste", "heal_spot", "paste_clean", "repaste", "heal_beside")
    one = with_rectangles(1)[0]
    shown = {kind: (replace(one, kind=kind).clean_before, replace(one, kind=kind).clean) for kind in kinds}
    assert shown == {
        "heal": (False, True), "paste": (True, False), "heal_spot": (True, True), "paste_clean": (True, True),
        "repaste": (False, False), "heal_beside": (True, True),
    }  # fmt: skip


def test_sorts_are_compared_apart():
    """Sort 0: 3 of 4 pairs in order. Sort 1, whose scores are all higher: 1 of 2. Weighted by two and one of label 1."""
    labels, scores = np.array([0, 0, 1, 1, 0, 0, 1]), np.array([0.1, 0.3, 0.2, 0.4, 7.0, 9.0, 8.0])
    sorts, groups = np.array([0, 0, 0, 0, 1, 1, 1]), np.arange(7)
    assert auroc_by_part(labels, scores, groups, apart=sorts).value == pytest.approx((2 * 0.75 + 0.5) / 3)
    assert auroc_by_part(labels, scores, groups).value == pytest.approx((0 + 1 + 0 + 2 + 2 + 1 + 1 + 0) / 12, abs=0.2)
    assert np.isnan(auroc_by_part(np.array([0, 1]), np.array([1.0, 2.0]), np.arange(2), apart=np.array([0, 1])).value)


def test_one_part_without_a_label_does_not_cost_the_interval():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 2)
    labels = np.tile([0, 1], 20)
    labels[1] = 0  # the first part shows normal pictures only
    estimate = auroc_by_part(labels, labels + rng.normal(size=40), groups)
    assert estimate.has_interval and estimate.low < estimate.value < estimate.high


def result(question, low, high=0.9, groups=50):
    value = Estimate((low + high) / 2, low, high, 100, groups)
    return ProbeResult(value, score_table([("all", "all", 50, value)]), 100, question)


@pytest.mark.parametrize("question", ["edited", "class from the border"])
def test_the_sentence_says_what_came_out(question):
    found, guessed = result(question, 0.7), result(question, 0.4, 0.6)
    assert found.finds and "0.80 (95 % interval 0.70 to 0.90)" in found.sentence and "no better" not in found.sentence
    assert not guessed.finds and "no better than by guessing" in guessed.sentence and "0.50 (95 %" in guessed.sentence
    few = result(question, 0.7, groups=9)
    assert (
        not few.finds and few.sentence.startswith("Too few pictures") and "9 held-out parts, AUROC 0.80" in few.sentence
    )
    nothing = float("nan")
    perfect = ProbeResult(Estimate(1.0, nothing, nothing, 100, 50), few.table, 100, question)
    assert perfect.finds and "AUROC 1.00, where" in perfect.sentence
    assert not ProbeResult(Estimate(0.5, nothing, nothing, 100, 50), few.table, 100, question).finds
    assert told(Estimate(0.8)) == "0.80"


def test_places_and_turns_of_the_network():
    cells = torch.tensor([[[[5.0, 1.0], [2.0, 3.0]]], [[[0.0, 1.0], [2.0, 3.0]]]])
    where = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]], [[[1.0, 0.0], [0.0, 0.0]]]])
    assert largest(cells, where).tolist() == [2.0, 0.0]
    region = torch.zeros(1, 1, 8, 12)
    region[..., 3, 4] = 1
    assert cells_of(region).tolist() == [[[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]] and CELL == 4
    oblong = torch.arange(6.0).view(1, 1, 2, 3)
    assert turned(oblong, 1).flatten().tolist() == [5, 4, 3, 2, 1, 0] and turned(oblong, 1).shape == oblong.shape
    assert turned(oblong, 4).flatten().tolist() == [2, 1, 0, 5, 4, 3]
    square = torch.arange(4.0).view(1, 1, 2, 2)
    assert turned(square, 1).flatten().tolist() == [1, 3, 0, 2]


def test_a_place_is_judged_from_its_own_surroundings():
    torch.manual_seed(0)
    network = PlaceNetwork(6).eval()
    pictures = torch.rand(1, 6, 64, 64)
    changed = pictures.clone()
    changed[..., :32] = 0
    moved = (network(pictures) - network(changed)).abs()[0, 0]
    assert moved[:, 10:].max() == 0 and moved[:, :8].min() > 0


def test_the_grain_is_the_difference_from_the_neighbourhood():
    flat = np.full((SIDE, SIDE, 3), 100, np.uint8)
    dotted = flat.copy()
    dotted[20, 20] = 109
    before, after = network_input([pair(0, dotted, flat, block(6, 6, 18, 18))])
    assert before.abs().max() < 1e-5
    grain = after[3:, 20, 20]
    assert grain.tolist() == pytest.approx([9 * (1 - 1 / 9) / 255 / 0.03] * 3, rel=1e-4)
