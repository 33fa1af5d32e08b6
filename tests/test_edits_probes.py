"""Probes of the edits: they find what is there to be found, and nothing where nothing is."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_settings

from gainmtl_lib.dataset import GainDataModule, build_samples
from gainmtl_lib.edits.counterfactuals import HEALING
from gainmtl_lib.edits.probes import border_probe, border_views, draw_pairs, edited_probe
from gainmtl_lib.findings import DataError

SIDE = 48


def surface(rng):
    """Noise whose brightness differs from picture to picture."""
    return np.clip(rng.normal(rng.uniform(80, 170), 14, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def block(height, width, top, left):
    region = np.zeros((SIDE, SIDE), bool)
    region[top : top + height, left : left + width] = True
    return region


def edits_of(counts, *, flat=False):
    """Edits; healing's region is a compact block, pasting's a thin line. They change nothing, or make it `flat`."""
    rng, pairs = np.random.default_rng(1), []
    for number, kind in enumerate(kind for kind, count in counts.items() for _ in range(count)):
        height, width = (10, 10) if kind in HEALING else (3, 26)
        region, before = block(height, width, *rng.integers(4, SIDE - 30, 2)), surface(rng)
        after = before.copy()
        if flat:  # in the place's own mean colour
            after[region] = before[region].mean(0)
        label = int(kind in ("paste", "repaste", "heal_beside"))
        pairs.append((before, after, region, kind, "m", label, number, number % 2 == 1))
    return pd.DataFrame(pairs, columns=["before", "after", "region", "kind", "method", "label", "part", "held_out"])


def test_a_flat_rectangle_is_found_by_the_same_numbers_again_nothing_where_nothing_changed_and_torch_stays():
    pairs = edits_of({"heal_spot": 120}, flat=True)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    table = edited_probe(pairs, epochs=12)
    assert torch.equal(torch.rand(1), expected)
    assert table.loc["heal_spot", "auroc"] > 0.95 and table.loc["heal_spot", "edits"] == 60
    pd.testing.assert_frame_equal(edited_probe(pairs, epochs=12), table)
    assert abs(edited_probe(edits_of({"heal_spot": 60}), epochs=2).loc["clean places", "auroc"] - 0.5) < 0.02


def test_the_border_tells_the_class_without_controls_and_not_with_them():
    """In the controls' proportions of `edit_odds`: 2 heal, 0.5 heal spot, 2.5 paste clean; the same for defects."""
    pairs = edits_of({"heal": 40, "heal_spot": 10, "paste_clean": 50, "paste": 40, "repaste": 10, "heal_beside": 50})
    assert border_probe(pairs, kinds=("heal", "paste"), epochs=10).loc["all", "auroc"] > 0.95
    balanced = border_probe(pairs, epochs=10)
    assert abs(balanced.loc["all", "auroc"] - 0.5) < 0.15
    assert balanced["edits"].to_dict() == {"all": 100, "healing": 50, "pasting": 50}


def test_a_view_shows_the_ring_alone_in_colours_relative_to_its_mean():
    def view(region, after):
        return border_views(pd.DataFrame({"after": [after], "region": [region]}))[0]

    before, region = surface(np.random.default_rng(3)), block(6, 6, 20, 20)
    shown = view(region, before)
    ring = shown[..., 3] > 0
    # A disc of radius 3 around a block of 6: four sides of 6 x 3 and four quarter discs of 5.
    assert ring.sum() == 4 * 18 + 4 * 5 and not (ring & region).any()
    assert (shown[~ring] == 0).all() and np.abs(shown[ring][:, :3].mean(0)).max() < 1e-4
    changed = before.copy()
    changed[region], changed[:5] = 0, 255
    np.testing.assert_array_equal(view(region, changed), shown)
    one, other = (view(region, (before // 2 + more).astype(np.uint8)) for more in (60, 90))
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert 0 < view(block(6, 6, 0, 20), before)[..., 3].sum() < ring.sum() - 12  # beyond the picture there is none
    assert (view(np.ones((SIDE, SIDE), bool), before) == 0).all()


def test_the_halves_share_no_part_hold_training_pictures_only_and_are_seeded(tmp_path):
    settings = tiny_settings(tmp_path, "S1", num_samples=80, shortcut="none", image_size=96, cache_images=True)
    samples = build_samples(settings)
    samples["group"] = [f"part {number // 2}" for number in range(len(samples))]  # two pictures of each
    data = GainDataModule(settings, samples)
    data.setup()
    first, second, few = (draw_pairs(data, rounds=2, pictures=count) for count in (400, 400, 20))
    assert all(np.array_equal(a, b) for a, b in zip(first["after"], second["after"], strict=True))
    assert len(few) <= 2 * 20 < len(first)
    halves = [first[first["held_out"] == half] for half in (False, True)]
    assert not set(halves[0]["part"]) & set(halves[1]["part"])
    assert all(set(half["label"]) == {0, 1} and len(half) > 0.3 * len(first) for half in halves)
    pictures = [data.dataset.stored(row).image for row in data.rows("train")]
    places = [(top, left) for top in range(33) for left in range(33)]
    windows = {picture[top : top + 64, left : left + 64].tobytes() for picture in pictures for top, left in places}
    for one in first.itertuples():
        assert one.before.shape == (64, 64, 3) and one.before.tobytes() in windows and one.region.any()
        assert (one.after == one.before)[~one.region].all()
    with pytest.raises(DataError, match=r"half of the training pictures \(\d+\) are too few to probe edits: .*mask"):
        draw_pairs(GainDataModule(settings, samples.assign(mask=None)))
