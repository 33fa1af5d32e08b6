from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from narrow_models import NARROW
from scipy import stats
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from gainmtl_lib.dataset import Augmentation, Batch
from gainmtl_lib.losses import GainLoss, Schedule
from gainmtl_lib.model import GAINMTLModel
from gainmtl_lib.settings import Settings
from gainmtl_lib.train import GainTraining, MaskMixer

GRID = (4, 4)


def dot(cell: int, value: float = 1.0) -> Tensor:
    """A mask (1, 8, 8) that fills one cell of the 4 x 4 grid."""
    mask = torch.zeros(1, 8, 8)
    row, column = divmod(cell, 4)
    mask[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = value
    return mask


def mixer(masks, **changes) -> MaskMixer:
    return MaskMixer(masks, **{"grid": GRID, "own_prob": 0.6, "other_prob": 0.2} | changes)


def make_batch(rows: list[tuple[int, int, Tensor | None]]) -> Batch:
    """Rows of (index, label, mask or None)."""
    return Batch(
        images=torch.zeros(len(rows), 3, 8, 8),
        labels=torch.tensor([label for _, label, _ in rows]),
        masks=torch.stack([torch.zeros(1, 8, 8) if mask is None else mask for _, _, mask in rows]),
        has_mask=torch.tensor([mask is not None for *_, mask in rows]),
        index=torch.tensor([index for index, *_ in rows]),
    )


def cells(masks: Tensor) -> list[int | None]:
    return [int(mask.argmax()) if mask.any() else None for mask in masks.flatten(1)]


def draws(mix: MaskMixer, batch: Batch, count: int) -> tuple[Tensor, Tensor]:
    """As many draws of the batch, side by side in one: (count, B, 1, h, w) and (count, B)."""
    side_by_side = Batch(*(values.repeat(count, *[1] * (values.ndim - 1)) for values in batch))
    masks, present = mix.draw(side_by_side, torch.Generator().manual_seed(0))
    return masks.unflatten(0, (count, -1)), present.unflatten(0, (count, -1))


# samples 10, 20, 30 are annotated defects (cells 0, 5, 10); 40 a defect without a mask, 50 normal
BANK = [(10, dot(0)), (20, dot(5)), (30, dot(10))]
BATCH = make_batch([(10, 1, dot(0)), (20, 1, dot(5)), (40, 1, None), (50, 0, None)])


def test_shapes_and_masks_pooled_by_area():
    half = torch.zeros(1, 8, 8)
    half[:, 0, 0:2] = 1  # half of cell 0
    masks, present = mixer([(1, half), (2, dot(3))], own_prob=1.0, other_prob=0.0).draw(make_batch([(1, 1, half)]))
    assert masks.shape == (1, 1, 4, 4)
    assert present.tolist() == [True]
    assert masks[0, 0, 0, 0] == 0.5
    assert masks.sum() == 0.5


def test_own_masks_are_the_batchs_augmented_ones():
    masks, _ = mixer(BANK, own_prob=1.0, other_prob=0.0).draw(make_batch([(10, 1, dot(3))]))
    assert cells(masks) == [3]


def test_other_masks_are_never_the_samples_own():
    masks, present = draws(mixer(BANK, own_prob=0.0, other_prob=1.0), BATCH, 300)
    assert present.all()
    found = [set(cells(masks[:, row])) for row in range(4)]
    assert found == [{5, 10}, {0, 10}, {0, 5, 10}, {0, 5, 10}]


def test_masks_are_zero_where_there_is_none():
    masks, present = draws(mixer(BANK), BATCH, 200)
    assert torch.equal(masks.flatten(2).any(dim=2), present)
    assert 0 < present.float().mean() < 1


def test_shares_of_own_other_and_none():
    masks, _ = draws(mixer(BANK), BATCH, 3000)
    drawn = cells(masks[:, 0])
    shares = [sum(cell in group for cell in drawn) / 3000 for group in ([0], [5, 10], [None])]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.03)


def test_presence_is_independent_of_the_class():
    _, present = draws(mixer(BANK), BATCH, 3000)
    table = [[int(column.sum()), int((~column).sum())] for column in present.T]
    assert stats.chi2_contingency(table).pvalue > 0.01
    assert present.float().mean().item() == pytest.approx(0.8, abs=0.02)


def test_the_look_of_masks_is_independent_of_the_class():
    bank = [(k, dot(k, value)) for k, value in enumerate((0.25, 0.5, 0.75, 1.0))]
    rows = [(k, 1, mask) for k, mask in bank] + [(10 + k, 0, None) for k in range(4)]
    masks, present = draws(mixer(bank), make_batch(rows), 2000)
    heights = masks.flatten(2).amax(dim=2)
    counts = [
        [int((heights[:, rows][present[:, rows]] == value).sum()) for value in (0.25, 0.5, 0.75, 1.0)]
        for rows in (slice(0, 4), slice(4, 8))
    ]
    assert stats.chi2_contingency(counts).pvalue > 0.01


@pytest.mark.parametrize("fusion_norm", ["sigmoid", "product"])
def test_what_gates_the_features_in_training_says_nothing_about_the_class(monkeypatch, fusion_norm):
    """Features that are the same for every picture: whatever still tells the classes apart came in with the masks.

    2500 draws of each class: chance alone moves the AUROC by 0.008. If one class got a mask with probability 0.7
    in place of 0.8, it would be off by 0.05.
    """
    bank = [(k, dot(k, value)) for k, value in enumerate((0.25, 0.5, 0.75, 1.0))]
    bank[3][1][:, :, 4:] = 1.0  # the masks differ in size too
    rows = [*((k, 1, mask) for k, mask in bank), (4, 1, None), *((5 + k, 0, None) for k in range(5))]
    batch = Batch(*(values.repeat(500, *[1] * (values.ndim - 1)) for values in make_batch(rows)))
    torch.manual_seed(0)
    model = GAINMTLModel(**NARROW, strategy="S6", map_stride=16, fusion_norm=fusion_norm)
    model.localization = None
    model.features = lambda images: (torch.zeros(len(images), NARROW["map_channels"], *GRID), [])
    training = GainTraining(
        model=model,
        loss=GainLoss(focal_gamma=2.0, focal_alpha=0.5),
        schedule=Schedule({"cls": 1.0}),
        mixer=mixer(bank, hflip_prob=0.5, vflip_prob=0.5, rotate90_prob=0.5),
        learning_rate=1e-3,
        seed=0,
        stored_settings={},
    )
    monkeypatch.setattr(GainTraining, "progress", 0.5)  # half of the mask gates as it is
    gate = training._forward_training(batch, {"cf": 0.0}).effective_attention.detach().flatten(1)  # (N, h w)
    for score in (gate.mean(1), gate.amax(1)):
        assert len(score.unique()) >= 3, "masks take part"
        auroc = binary_auroc(score.clamp(0, 1), batch.labels).item()
        assert auroc == pytest.approx(0.5, abs=0.025)


def test_bank_masks_are_augmented_as_images_are():
    batch = make_batch([(50, 0, None)])
    always = {"own_prob": 0.0, "other_prob": 1.0}
    assert cells(mixer([(10, dot(1))], hflip_prob=1.0, **always).draw(batch)[0]) == [2]
    assert cells(mixer([(10, dot(1))], vflip_prob=1.0, **always).draw(batch)[0]) == [13]
    masks, _ = draws(mixer([(10, dot(1))], rotate90_prob=1.0, **always), batch, 200)
    assert set(cells(masks[:, 0])) == {1, 7, 14, 8}


def test_an_oblong_grid_is_turned_by_half():
    corner = torch.zeros(1, 4, 8)
    corner[:, :2, :2] = 1
    batch = make_batch([(50, 0, None)])._replace(masks=torch.zeros(1, 1, 4, 8))
    always = {"grid": (2, 4), "own_prob": 0.0, "other_prob": 1.0}
    masks, present = mixer([(10, corner)], rotate90_prob=1.0, **always).draw(batch)
    assert masks.shape == (1, 1, 2, 4)
    assert present.all()
    assert cells(masks) == [7]
    sometimes, _ = draws(mixer([(10, corner)], rotate90_prob=0.5, **always), batch, 2000)
    drawn = cells(sometimes[:, 0])
    assert set(drawn) == {0, 7} and drawn.count(7) / 2000 == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("size", [(8, 8), (4, 8)])
def test_bank_masks_are_turned_as_the_images_own_are(size):
    """A mask's place must not tell whose it is: the mixer's cells are those of the images' augmentation, as often."""
    probabilities = {"hflip_prob": 0.0, "vflip_prob": 0.0, "rotate90_prob": 0.5}
    still = {"image_size": size, "seed": 0, "color_jitter_prob": 0.0, "gaussian_noise_prob": 0.0}
    augmentation = Augmentation(Settings().model_copy(update=still | probabilities))
    mask = np.zeros(size, np.uint8)
    mask[:2, :2] = 1
    image = np.zeros((*size, 3), np.uint8)
    turned = [augmentation(image, mask, epoch=0, index=index)[1] for index in range(2000)]
    grid = (size[0] // 2, size[1] // 2)
    own = cells(torch.nn.functional.avg_pool2d(torch.from_numpy(np.stack(turned))[:, None].float(), 2))
    bank = [(10, torch.from_numpy(mask)[None].float())]
    mix = mixer(bank, grid=grid, own_prob=0.0, other_prob=1.0, **probabilities)
    batch = make_batch([(50, 0, None)])._replace(masks=torch.zeros(1, 1, *size))
    others = cells(draws(mix, batch, 2000)[0][:, 0])
    assert set(own) == set(others)
    for cell in set(own):
        assert others.count(cell) / 2000 == pytest.approx(own.count(cell) / 2000, abs=0.04)


def test_the_only_mask_goes_to_its_own_sample_as_often_as_to_others():
    masks, present = draws(mixer(BANK[:1]), make_batch([(10, 1, dot(0)), (50, 0, None)]), 3000)
    assert present.float().mean(dim=0).tolist() == pytest.approx([0.8, 0.8], abs=0.03)
    assert set(cells(masks[:, 0])) == {0, None}


def test_an_empty_bank_gives_nobody_a_mask():
    masks, present = draws(mixer([]), BATCH, 50)
    assert not present.any()
    assert not masks.any()


def test_a_normal_image_never_brings_a_mask_of_its_own():
    masks, _ = draws(mixer(BANK), make_batch([(50, 0, dot(15))]), 200)
    assert 15 not in cells(masks[:, 0])


def test_a_healed_picture_never_gets_the_mask_of_the_defect_it_had():
    masks, present = draws(mixer(BANK), make_batch([(10, 0, None)]), 3000)
    assert set(cells(masks[:, 0])) == {5, 10, None}
    assert present.float().mean().item() == pytest.approx(0.8, abs=0.03)


def test_a_pasted_defect_has_a_mask_of_its_own():
    masks, _ = draws(mixer(BANK), make_batch([(50, 1, dot(7))]), 3000)
    drawn = cells(masks[:, 0])
    shares = [sum(cell in group for cell in drawn) / 3000 for group in ([7], [0, 5, 10], [None])]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.03)


def test_masks_of_pasted_defects_belong_to_no_sample():
    pasted = [(None, dot(12)), (None, dot(13))]
    mix = mixer([*BANK[:1], *pasted], own_prob=0.0, other_prob=1.0)
    assert mix.place == {10: 0}
    masks, _ = draws(mix, make_batch([(10, 1, dot(0)), (0, 0, None)]), 300)
    assert [set(cells(masks[:, row])) for row in range(2)] == [{12, 13}, {0, 12, 13}]


def test_with_pasted_masks_in_the_bank_their_place_says_nothing_about_the_class():
    """Four defects as they are stored and one pasted elsewhere: its place would otherwise be a defect's alone."""
    stored = [(k, dot(k)) for k in range(4)]
    rows = [*((k, 1, mask) for k, mask in stored), (20, 1, dot(12)), *((30 + k, 0, None) for k in range(5))]
    masks, present = draws(mixer([*stored, (None, dot(12))], own_prob=0.8, other_prob=0.0), make_batch(rows), 1000)
    found = [Counter(cells(masks[:, group].flatten(0, 1))) for group in (slice(0, 5), slice(5, 10))]
    assert present.any() and found[1][12] > 0
    assert stats.chi2_contingency([[each[cell] for cell in (0, 1, 2, 3, 12)] for each in found]).pvalue > 0.01


def test_same_generator_same_draw():
    first, second = (mixer(BANK, hflip_prob=0.5).draw(BATCH, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_errors():
    with pytest.raises(ValueError, match=r"probabilities whose sum is at most 1, got 0.8 and 0.4"):
        mixer(BANK, own_prob=0.8, other_prob=0.4)
    with pytest.raises(ValueError, match="each sample may bring one mask, got 2 masks of 1 samples"):
        mixer([(10, dot(0)), (10, dot(1))])
