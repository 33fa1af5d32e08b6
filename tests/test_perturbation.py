import pytest
import torch
from looks_at_corner import CORNER, DEFECT, LooksAtCorner, picture

from gainmtl_lib.studies.faithfulness import blur, defect_probability, deletion_insertion, moved_map, relevance_places


def test_deleting_what_the_decision_looks_at_drops_it_at_once():
    model = LooksAtCorner().train()
    curves = deletion_insertion(model, picture(), CORNER, steps=16)
    assert curves.deletion[0] > 0.99 and curves.deletion[1] < 0.05  # the corner is a sixteenth of the picture
    assert curves.insertion[0] < 0.05 and curves.insertion[1] > 0.99
    # A sixteenth of the way down in a straight line, then next to nothing.
    assert curves.deletion_auc == pytest.approx(1 / 32, abs=0.02)
    assert curves.insertion_auc == pytest.approx(1 - 1 / 32, abs=0.02)
    assert model.training and model.dropout.training


def test_the_reversed_map_does_not():
    curves = deletion_insertion(LooksAtCorner(), picture(), -CORNER, steps=16)
    assert curves.deletion[14] > 0.99 and curves.insertion[14] < 0.05


def test_deletion_by_the_reversed_map_is_insertion_read_backwards():
    values = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    model, image = LooksAtCorner(), torch.rand(3, 32, 32)
    there = deletion_insertion(model, image, values, steps=8)
    back = deletion_insertion(model, image, -values, steps=8)
    torch.testing.assert_close(back.deletion, there.insertion.flip(0), atol=1e-3, rtol=0)
    assert back.deletion_auc == pytest.approx(there.insertion_auc, abs=1e-3)


def test_both_curves_have_the_picture_and_the_blurred_one_at_their_ends():
    model, image = LooksAtCorner(), picture()
    curves = deletion_insertion(model, image, DEFECT, steps=4)
    ends = defect_probability(model, torch.stack([image, blur(image)])).double()
    torch.testing.assert_close(curves.deletion[[0, -1]], ends)
    torch.testing.assert_close(curves.insertion[[-1, 0]], ends)
    assert curves.fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_batches_are_as_asked_and_change_nothing():
    model = LooksAtCorner()
    curves = deletion_insertion(model, picture(), CORNER, steps=4, batch_size=2)
    assert model.batches == [2, 2, 1] * 2
    torch.testing.assert_close(deletion_insertion(model, picture(), CORNER, steps=4).deletion, curves.deletion)


def test_equal_values_stand_in_random_order_not_in_that_of_rows():
    image = picture()
    flat = relevance_places(torch.full((8, 8), 0.3), image)
    assert sorted(flat.flatten().tolist()) == list(range(32 * 32))
    assert abs(flat[:16].double().mean() - flat[16:].double().mean()) < 150  # in the order of rows: 512
    assert torch.equal(flat, relevance_places(torch.full((8, 8), -7.0), image))
    assert not torch.equal(flat, relevance_places(torch.full((8, 8), 0.3), image, seed=1))
    # Of a map with many zeros, only the zeros are drawn.
    places = [relevance_places(CORNER, image, seed)[:8, :8] for seed in (0, 1)]
    assert all(place.max() == 63 for place in places)


def test_a_flat_map_neither_drops_at_once_nor_never():
    areas = [deletion_insertion(LooksAtCorner(), picture(), torch.zeros(8, 8), seed=k).deletion_auc for k in range(8)]
    assert 0.2 < sum(areas) / 8 < 0.7


def test_a_map_that_is_not_finite_says_nothing_where_it_is_not():
    values = CORNER.clone()
    values[4, 4] = torch.nan
    assert relevance_places(values, picture())[:8, :8].max() == 63


def test_a_moved_map_has_the_same_values_elsewhere():
    values = torch.arange(12.0).view(3, 4)
    moved = [moved_map(values, seed) for seed in range(6)]
    assert all(sorted(one.flatten().tolist()) == list(range(12)) for one in moved)
    assert len({tuple(one.flatten().tolist()) for one in moved}) > 3
    assert torch.equal(moved_map(values, 3), moved[3])


def test_the_blurred_picture_keeps_brightness_and_loses_detail():
    image = torch.rand(3, 64, 48, generator=torch.Generator().manual_seed(0))
    blurred = blur(image)
    torch.testing.assert_close(blurred.mean(), image.mean(), atol=0.02, rtol=0)
    assert blurred.std() < 0.1 * image.std()
    torch.testing.assert_close(blur(torch.full((3, 16, 16), 0.4)), torch.full((3, 16, 16), 0.4))


def test_wrong_shapes_and_steps_are_named():
    model = LooksAtCorner()
    with pytest.raises(ValueError, match=r"one image \(3, H, W\) and one map \(h, w\), got \(1, 3, 32, 32\)"):
        deletion_insertion(model, picture()[None], CORNER)
    with pytest.raises(ValueError, match=r"got \(3, 32, 32\) and \(1, 8, 8\)"):
        deletion_insertion(model, picture(), CORNER[None])
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        deletion_insertion(model, picture(), CORNER, steps=0)
