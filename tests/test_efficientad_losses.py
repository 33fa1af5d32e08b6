from __future__ import annotations

import math

import pytest
import torch

from gainmtl_lib.efficientad.model import TERMS, distance_loss, hard_feature_loss, pretraining_penalty, total_loss


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_hard_loss_by_hand():
    """Of the squares of 0 to 1000, the 0.999-quantile is 999 squared: two values are not below it."""
    teacher = torch.arange(1001.0).view(1, 7, 11, 13)
    assert hard_feature_loss(torch.zeros_like(teacher), teacher, 0.999).item() == (999**2 + 1000**2) / 2


def test_a_quantile_between_two_values_leaves_the_lower_out():
    teacher = torch.tensor([0.0, 1, 2, 3]).view(1, 1, 2, 2)
    zeros = torch.zeros_like(teacher)
    assert hard_feature_loss(zeros, teacher, 0.5).item() == (4 + 9) / 2
    assert hard_feature_loss(zeros, teacher, 0.0).item() == (0 + 1 + 4 + 9) / 4
    assert hard_feature_loss(zeros, teacher, 1.0).item() == 9


def test_equal_differences_are_all_hardest():
    assert hard_feature_loss(torch.zeros(1, 2, 3, 3), torch.full((1, 2, 3, 3), 2.0)).item() == 4
    assert hard_feature_loss(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).item() == 1


@pytest.mark.parametrize("quantile", [0.1, 0.9, 0.99, 0.999])
def test_hard_loss_is_the_mean_not_below_the_interpolated_quantile(quantile):
    student, teacher = seeded(2, 8, 13, 11), seeded(2, 8, 13, 11, seed=1)
    difference = (teacher - student).square()
    expected = difference[difference >= torch.quantile(difference, quantile)].mean()
    torch.testing.assert_close(hard_feature_loss(student, teacher, quantile), expected)


def test_hard_loss_takes_more_values_than_a_float_counts():
    student = torch.zeros(1, 1, 2**12, 2**12 + 1)
    student[0, 0, 0, :20] = 3
    assert hard_feature_loss(student, torch.zeros(()).expand_as(student), 1 - 15 / student.numel()).item() == 9


def test_hard_loss_pulls_the_student_where_it_is_worst_and_nowhere_else():
    student = torch.zeros(1, 1, 2, 2, requires_grad=True)
    hard_feature_loss(student, torch.tensor([1.0, -2, 3, -4]).view(1, 1, 2, 2), 0.6).backward()
    assert student.grad is not None
    assert student.grad.flatten().tolist() == [0, 0, -3, 4]  # the gradient points away from the teacher


def test_penalty_by_hand_pulls_towards_zero():
    student = torch.tensor([1.0, -3.0]).view(1, 2, 1, 1).requires_grad_()
    loss = pretraining_penalty(student)
    loss.backward()
    assert loss.item() == 5
    assert student.grad is not None
    assert student.grad.flatten().tolist() == [1, -3]


def test_distance_by_hand_pulls_both_together():
    first = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).requires_grad_()
    second = torch.tensor([4.0, 1.0]).view(1, 2, 1, 1).requires_grad_()
    loss = distance_loss(first, second)
    loss.backward()
    assert loss.item() == 5
    assert first.grad is not None and second.grad is not None
    assert first.grad.flatten().tolist() == [-3, 1]
    assert second.grad.flatten().tolist() == [3, -1]


def test_half_precision_is_summed_in_single():
    student, teacher = seeded(1, 4, 32, 32).bfloat16(), seeded(1, 4, 32, 32, seed=1).bfloat16()
    for loss in (hard_feature_loss(student, teacher), pretraining_penalty(student), distance_loss(student, teacher)):
        assert loss.dtype == torch.float32
    assert math.isfinite(pretraining_penalty(torch.full((1, 1, 2, 2), 300.0, dtype=torch.float16)).item())


def test_the_autoencoder_weight_scales_both_of_its_terms():
    terms = {name: torch.tensor(value) for name, value in zip(TERMS, (1.0, 10.0, 100.0, 1000.0), strict=True)}
    assert total_loss(terms, st_weight=1, penalty_weight=1, ae_weight=1).item() == 1111
    assert total_loss(terms, st_weight=2, penalty_weight=3, ae_weight=4).item() == 2 + 30 + 400 + 4000
