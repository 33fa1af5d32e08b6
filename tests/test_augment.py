from __future__ import annotations

import torch

from gainmtl_lib.efficientad.data import recoloured

GREY_WEIGHTS = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)


def pictures(count: int = 1, **options) -> torch.Tensor:
    return torch.rand((count, 3, 8, 10), generator=torch.Generator().manual_seed(0), **options) * 0.5 + 0.2


def brightness(image, changed) -> float | None:
    """The factor if the change is one of brightness."""
    factor = float(changed.mean() / image.mean())
    return factor if torch.allclose(changed, image * factor, atol=1e-5) else None


def blended(image, changed, towards) -> float | None:
    """The factor if the change is a blend with `towards`."""
    factor = float(((changed - towards) * (image - towards)).sum() / (image - towards).square().sum())
    return factor if torch.allclose(changed, towards + factor * (image - towards), atol=1e-3) else None


def test_each_change_is_one_of_three_by_a_factor_near_one():
    image = pictures()[0]
    grey = (image * GREY_WEIGHTS).sum(0, keepdim=True)
    found = {"brightness": [], "contrast": [], "saturation": []}
    for number in range(60):
        changed = recoloured(image[None], seed=1, number=number)[0]
        factors = {
            "brightness": brightness(image, changed),
            "contrast": blended(image, changed, grey.mean()),
            "saturation": blended(image, changed, grey.expand_as(image)),
        }
        name = next(name for name, factor in factors.items() if factor is not None)
        found[name].append(factors[name])
    assert all(len(factors) > 10 for factors in found.values())
    every = [factor for factors in found.values() for factor in factors]
    assert 0.8 - 1e-3 <= min(every) < 0.85
    assert 1.15 < max(every) <= 1.2 + 1e-3


def test_seed_and_number_decide_and_the_images_stay():
    images = pictures(3)
    before = images.clone()
    first = recoloured(images, seed=1, number=5)
    assert torch.equal(first, recoloured(images, seed=1, number=5))
    assert not torch.equal(first, recoloured(images, seed=1, number=6))
    assert not torch.equal(first, recoloured(images, seed=2, number=5))
    assert torch.equal(images, before)


def test_images_of_a_batch_change_each_in_its_own_way():
    same = pictures().repeat(4, 1, 1, 1)
    changed = recoloured(same, seed=0, number=0)
    assert len({float(image.sum()) for image in changed}) == 4


def test_global_random_numbers_do_not_matter():
    torch.manual_seed(0)
    first = recoloured(pictures(), seed=1, number=1)
    state = torch.get_rng_state()
    assert torch.equal(first, recoloured(pictures(), seed=1, number=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_results_stay_in_range_and_memory_keeps_its_order():
    white = torch.ones(8, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    changed = recoloured(white, seed=0, number=0)
    assert float(changed.max()) <= 1
    assert changed.is_contiguous(memory_format=torch.channels_last)
    assert recoloured(torch.ones(2, 3, 6, 6), seed=0, number=0).is_contiguous()
