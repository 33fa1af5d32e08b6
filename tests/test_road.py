import numpy as np
import pytest
import torch
from looks_at_corner import CORNER, DEFECT, LooksAtCorner, picture
from pytorch_grad_cam.metrics.road import NoisyLinearImputer

from gainmtl_lib.studies.faithfulness import impute, road


def filled(image, removed, noise=0.0):
    return impute(image, removed, np.random.default_rng(0), noise=noise)


def hole(height=16, width=20):
    removed = torch.zeros(height, width, dtype=torch.bool)
    removed[5:9, 6:12] = True
    return removed


def test_a_ramp_and_a_plain_picture_are_restored():
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 20), indexing="ij")
    ramp = torch.stack([rows, columns, (rows + columns) / 2])
    torch.testing.assert_close(filled(ramp, hole()), ramp)
    at_the_edge = torch.zeros(16, 20, dtype=torch.bool)
    at_the_edge[:4, :4] = True
    plain = torch.full((3, 16, 20), 0.3)
    torch.testing.assert_close(filled(plain, at_the_edge), plain)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_filled_in_as_the_package_does(share):
    generator = torch.Generator().manual_seed(0)
    image, removed = torch.rand(3, 24, 17, generator=generator), torch.rand(24, 17, generator=generator) < share
    expected = NoisyLinearImputer(noise=0)(image, (~removed).float())
    torch.testing.assert_close(filled(image, removed), expected)


def test_noise_is_on_replaced_pixels_only_and_drawn_by_the_seed():
    image = torch.full((3, 16, 20), 0.5)
    noisy = filled(image, hole(), noise=0.01)
    assert torch.equal(noisy[:, ~hole()], image[:, ~hole()])
    assert noisy[:, hole()].std() == pytest.approx(0.01, rel=0.3)
    assert torch.equal(noisy, filled(image, hole(), noise=0.01))


def test_nothing_removed_is_the_picture_and_everything_an_error():
    image = torch.rand(3, 4, 4)
    assert torch.equal(filled(image, torch.zeros(4, 4, dtype=torch.bool)), image)
    with pytest.raises(ValueError, match="every pixel is removed"):
        filled(image, torch.ones(4, 4, dtype=torch.bool))


def test_replacing_what_the_decision_looks_at_drops_it():
    curves = road(LooksAtCorner().train(), picture(), CORNER, fractions=(0.1, 0.5, 0.9))
    assert (curves.most_first < 0.05).all() and (curves.least_first > 0.99).all()
    assert curves.score == pytest.approx(1, abs=0.06)


def test_the_reversed_map_has_the_negative_score():
    model, values = LooksAtCorner(), torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    assert road(model, picture(), -values).score == pytest.approx(-road(model, picture(), values).score, abs=0.02)


def test_a_map_of_something_else_and_a_flat_one_score_nothing():
    flat = [road(LooksAtCorner(), picture(), torch.zeros(8, 8), seed=k).score for k in range(6)]
    assert abs(sum(flat) / 6) < 0.35
    assert road(LooksAtCorner(), picture(), DEFECT).score < 0.35
    # A decision that looks at nothing does not move at all.
    assert road(LooksAtCorner(gain=0.0), picture(), DEFECT).score == 0


def test_as_many_pixels_are_replaced_as_asked_also_of_a_flat_map():
    changed = []

    class Counts(LooksAtCorner):
        def forward(self, images):
            changed.extend((images != picture()).any(1).flatten(1).sum(1).tolist())
            return super().forward(images)

    for values in (torch.zeros(8, 8), CORNER):
        road(Counts(), picture(), values, fractions=(0.25, 0.5), batch_size=3)
    assert changed == [256, 512, 256, 512] * 2


@pytest.mark.parametrize("fractions", [(), (0.0, 0.5), (1.0,)])
def test_fractions_must_leave_something(fractions):
    with pytest.raises(ValueError, match=r"fractions must lie in \(0, 1\)"):
        road(LooksAtCorner(), picture(), CORNER, fractions=fractions)
