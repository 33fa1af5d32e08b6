"""The four terms of EfficientAD's training (arXiv 2303.14535, sections 3.2 and 3.3; algorithm 1).

B images, C channels, h x w cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

TERMS = ("st", "penalty", "ae", "stae")
"""Student-teacher, pretraining penalty, teacher-autoencoder, student-autoencoder; logged as ``<term>_loss``."""


def hard_feature_loss(student: Tensor, teacher: Tensor, quantile: float = 0.999) -> Tensor:
    """Mean of the largest squared differences: ``mean(d | d >= q-quantile of d)``.

    Taken over all images, channels and cells together, so that the student is pulled where it imitates worst and not
    where it imitates well already.

    Args:
        student: its teacher half, (B, C, h, w).
        teacher: standardised description, (B, C, h, w).
        quantile: share of the differences left out, p_hard; 0 takes the mean of all.
    """
    difference = (teacher.float() - student.float()).square()
    hardest = difference.detach().flatten().kthvalue(_rank(difference.numel(), quantile)).values
    chosen = difference >= hardest
    return (difference * chosen).sum() / chosen.sum()


def _rank(count: int, quantile: float) -> int:
    """From 1: the smallest value that is not below the quantile, which lies between two values."""
    return min(count, int(-(-quantile * (count - 1) // 1)) + 1)


def pretraining_penalty(student: Tensor) -> Tensor:
    """Keep the student from imitating the teacher beyond good parts: mean square on natural images.

    Args:
        student: its teacher half on images that show something else, (B, C, h, w).
    """
    return student.float().square().mean()


def distance_loss(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference; of teacher and autoencoder, and of student and autoencoder. (B, C, h, w) twice."""
    return (first.float() - second.float()).square().mean()


def total_loss(terms: dict[str, Tensor], *, st_weight: float, penalty_weight: float, ae_weight: float) -> Tensor:
    """The weighted sum; `ae_weight` scales both terms of the autoencoder."""
    weights = {"st": st_weight, "penalty": penalty_weight, "ae": ae_weight, "stae": ae_weight}
    return torch.stack([weights[name] * terms[name] for name in TERMS]).sum()
