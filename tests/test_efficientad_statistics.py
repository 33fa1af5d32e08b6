"""Statistics of the teacher, quantiles of the maps, and the validation that they make possible."""

import math

import pytest
import torch

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.dataset import Batch
from gainmtl_lib.efficientad.model import (
    QUANTILES,
    ChannelMoments,
    EfficientADModel,
    LocalMaps,
    MapQuantiles,
    measure_teacher,
)
from gainmtl_lib.efficientad.train import Validation


def test_moments_of_parts_are_those_of_the_whole():
    parts = [torch.randn(size, 3, 4, 5) * torch.tensor([1.0, 2.0, 0.5]).view(1, 3, 1, 1) + 3 for size in (1, 4, 2)]
    moments = ChannelMoments()
    for part in parts:
        moments.update(part)
    mean, std = moments.compute()
    whole = torch.cat(parts).double()
    torch.testing.assert_close(mean, whole.mean((0, 2, 3)).float())
    torch.testing.assert_close(std, whole.std((0, 2, 3), correction=0).float())
    assert moments.cells == 7 * 20


def test_moments_survive_a_mean_far_above_the_deviation():
    values = 1000 + 0.01 * torch.randn(200, 1, 3, 3)
    moments = ChannelMoments()
    for value in values:
        moments.update(value[None])
    torch.testing.assert_close(
        moments.compute()[1], values.double().std((0, 2, 3), correction=0).float(), rtol=1e-4, atol=0
    )


def test_the_teacher_is_standardised_on_what_it_was_measured_on():
    torch.manual_seed(0)
    model = EfficientADModel(out_channels=8)
    images = torch.rand(5, 3, 64, 64)
    measure_teacher(model, images.split(2))
    described = model.describe(model.normalized(images))
    torch.testing.assert_close(described.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(described.std((0, 2, 3), correction=0), torch.ones(8), atol=1e-4, rtol=0)


def test_a_teacher_that_never_changes_is_refused():
    model = EfficientADModel(out_channels=8)
    torch.nn.init.zeros_(model.teacher.convolutions[-1].weight)
    with pytest.raises(ModelError, match="8 of the teacher's 8 channels never change"):
        measure_teacher(model, [torch.rand(1, 3, 64, 64)])


def maps(first, second):
    return LocalMaps(first, second)


def test_quantiles_of_few_images_are_exact():
    first, second = torch.rand(5, 1, 7, 7), torch.rand(5, 1, 7, 7) * 3
    quantiles = MapQuantiles(seed=0)
    for part in zip(first.split(2), second.split(2), strict=True):
        quantiles.update(maps(*part))
    expected = [[torch.quantile(one, q) for q in QUANTILES] for one in (first, second)]
    torch.testing.assert_close(quantiles.compute(), torch.tensor(expected))
    assert quantiles.images == 5


def test_quantiles_of_many_images_come_from_a_bounded_sample_of_all_of_them():
    values = torch.linspace(0, 1, 40_000).view(40, 1, 25, 40)  # the late images hold the large values
    quantiles = MapQuantiles(seed=0, largest=4000)
    for value in values:
        quantiles.update(maps(value[None], 2 * value[None]))
        assert quantiles._kept.shape[1] <= 4000
    assert quantiles._kept.shape[1] > 1500
    torch.testing.assert_close(
        quantiles.compute(), torch.tensor([QUANTILES, [2 * q for q in QUANTILES]]), atol=0.03, rtol=0
    )
    assert torch.equal(quantiles._kept * torch.tensor([[2.0], [1.0]]), quantiles._kept[1:].expand(2, -1))


def batch(labels, masks, has_mask=None):
    labels = torch.tensor(labels)
    size = len(labels)
    known = labels == 1 if has_mask is None else torch.tensor(has_mask)
    return Batch(torch.zeros(size, 3, 64, 64), labels, masks, known, torch.arange(size))


@pytest.fixture
def seen():
    """Two normal images and two anomalous ones whose maps are high on their masks; all scores are below 0."""
    torch.manual_seed(0)
    model = EfficientADModel(out_channels=8, padding=True)
    values, masks = torch.rand(4, 1, 16, 16), torch.zeros(4, 1, 64, 64)
    masks[2:, :, 16:32, 16:32] = 1
    values[2:, :, 4:8, 4:8] += 5
    return model, values, masks


def test_the_scale_comes_from_normal_images_alone(seen):
    model, values, masks = seen
    validation = Validation(seed=0)
    for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
        validation.update(maps(values[rows], 10 * values[rows]), batch([0, 0, 1, 1][rows], masks[rows]))
    scores = validation.finish(model)
    expected = torch.tensor([torch.quantile(values[:2], q) for q in QUANTILES])
    torch.testing.assert_close(model.quantiles, torch.stack([expected, 10 * expected]))
    assert scores.image_auroc == 1 and scores.pixel_auroc > 0.98


def test_scores_are_compared_as_they_are(seen):
    """A sigmoid in float32 would make the three large scores equal."""
    model, values, masks = seen
    values[1:, 0, 5, 5] = torch.tensor([1000.0, 2000.0, 3000.0])
    validation = Validation(seed=0)
    validation.update(maps(values, values), batch([0, 0, 1, 1], masks))
    assert validation.finish(model).image_auroc == 1


def test_an_anomaly_without_a_mask_counts_for_the_image_and_not_for_its_pixels(seen):
    model, values, masks = seen
    masks[3] = 0
    known, unknown = Validation(seed=0), Validation(seed=0)
    known.update(maps(values[:3], values[:3]), batch([0, 0, 1], masks[:3]))
    unknown.update(maps(values, values), batch([0, 0, 1, 1], masks, [False, False, True, False]))
    assert unknown.finish(model).pixel_auroc == known.finish(model).pixel_auroc
    bare = Validation(seed=0)
    bare.update(maps(values, values), batch([0, 0, 1, 1], masks * 0, [False] * 4))
    scores = bare.finish(model)
    assert scores.image_auroc == 1 and math.isnan(scores.pixel_auroc)


def test_a_broken_map_of_an_anomaly_is_named(seen):
    model, values, masks = seen
    validation = Validation(seed=0)
    values[3, 0, 2, 2] = math.nan
    validation.update(maps(values, values), batch([0, 0, 1, 1], masks))
    with pytest.raises(ModelError, match=r"an anomalous validation image has a map that is not finite; .*'32'"):
        validation.finish(model)


def test_one_broken_image_names_itself(seen):
    model, values, masks = seen
    validation = Validation(seed=0)
    validation.update(maps(values[:1] * math.nan, values[:1]), batch([0], masks[:1]))
    with pytest.raises(ModelError, match=r"give no scale .* from 1 image;.*val_ratio"):
        validation.finish(model)
