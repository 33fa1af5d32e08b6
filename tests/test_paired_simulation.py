"""Simulated studies with fixed seeds: steps without effect are seldom called one, a clear effect is found.

A picture is decided rightly where a latent score is above 0. It sums what all rows share (the class margin and how
hard the picture is), what a row does to a picture in every training, how well a training turned out, and the rest.

Sizes: S studies, K seeds, M rows, N pictures, R resamples.
"""

import numpy as np
import pandas as pd
import pytest

from gainmtl_lib.stats import holm, seeds_t_test, steps_table

SEEDS, PICTURES, RESAMPLES, STUDIES = 5, 104, 300, 800
HIGH, MIDDLE = 1.3, 0.8
"""Class margins: about 94 and 83 % right."""
WIDTHS = {
    "pictures": {"hard": 0.6, "row": 0.6, "training": 0.0, "rest": 0.4},
    "pictures and seeds": {"hard": 0.5, "row": 0.4, "training": 0.15, "rest": 0.5},
    "seeds": {"hard": 0.5, "row": 0.1, "training": 0.4, "rest": 0.5},
}
"""Standard deviations of the parts of the score: what repetitions differ by."""


def right(rng, *, shared, widths, rows=2, margin=HIGH, effect=0.0):
    """Which pictures are decided rightly, (K, M, N); the effect is on the last row's score."""
    pictures = 1 if shared else SEEDS
    score = (
        margin
        + rng.normal(0, widths["hard"], (pictures, 1, PICTURES))
        + rng.normal(0, widths["row"], (pictures, rows, PICTURES))
        + rng.normal(0, widths["training"], (SEEDS, rows, 1))
        + rng.normal(0, widths["rest"], (SEEDS, rows, PICTURES))
    )
    score[:, -1] += effect
    return (score > 0).astype(float)


def draw_weights(rng, *, shared):
    """Weight of each picture in each resample of both classes, (K, R, N)."""
    half = PICTURES // 2
    counts = rng.multinomial(half, np.full(half, 1 / half), size=(1 if shared else SEEDS, RESAMPLES, 2))
    return np.broadcast_to(counts.reshape(-1, RESAMPLES, PICTURES) / PICTURES, (SEEDS, RESAMPLES, PICTURES))


def step_p(before, after, weights, *, shared):
    """p of a step's accuracy, both (K, N)."""
    gain = after - before
    drawn = np.einsum("krn,kn->rk", weights, gain, optimize=True)
    return seeds_t_test(gain.mean(axis=1), drawn, shared=shared, parts=PICTURES).p


def rejected(*, shared, widths, margin=HIGH, effect=0.0, studies=STUDIES, seed=0):
    """Share of studies with p < 0.05."""
    rng = np.random.default_rng(seed)
    weights = draw_weights(rng, shared=shared)
    studied = (right(rng, shared=shared, widths=widths, margin=margin, effect=effect) for _ in range(studies))
    return np.mean([step_p(study[:, 0], study[:, 1], weights, shared=shared) < 0.05 for study in studied])


def above(nominal, studies):
    """The nominal rate and three standard errors of it."""
    return nominal + 3 * np.sqrt(nominal * (1 - nominal) / studies)


@pytest.mark.parametrize("shared", [True, False], ids=["same pictures", "own pictures"])
@pytest.mark.parametrize("what", WIDTHS)
def test_a_step_without_effect_is_not_distinguishable_at_the_nominal_rate(what, shared):
    assert rejected(shared=shared, widths=WIDTHS[what]) <= above(0.05, STUDIES)


@pytest.mark.parametrize("what", WIDTHS)
def test_with_the_same_pictures_the_rate_is_not_far_below_it(what):
    assert rejected(shared=True, widths=WIDTHS[what]) >= 0.01


@pytest.mark.parametrize("shared", [True, False], ids=["same pictures", "own pictures"])
def test_a_clear_effect_is_found(shared):
    """Thirteen points of accuracy, 0.83 to 0.965, with pictures and seeds that vary."""
    studied, rng = {"widths": WIDTHS["pictures and seeds"], "margin": MIDDLE, "effect": 0.7}, np.random.default_rng(1)
    shares = np.mean([right(rng, shared=False, **studied).mean(axis=(0, 2)) for _ in range(100)], axis=0)
    assert shares == pytest.approx([0.83, 0.965], abs=0.01)
    assert rejected(shared=shared, studies=300, **studied) > 0.9


@pytest.mark.parametrize("shared", [True, False], ids=["same pictures", "own pictures"])
def test_six_steps_without_effect_hold_the_level_together(shared):
    """Steps of one study share rows, so that their p-values depend on each other."""
    rng, studies = np.random.default_rng(2), 250
    weights, false_finds = draw_weights(rng, shared=shared), 0
    for _ in range(studies):
        study = right(rng, shared=shared, widths=WIDTHS["pictures and seeds"], rows=7)
        p = [step_p(study[:, row], study[:, row + 1], weights, shared=shared) for row in range(6)]
        false_finds += bool((holm(p) < 0.05).any())
    assert false_finds / studies <= above(0.05, studies)


@pytest.mark.parametrize("shared", [True, False], ids=["same pictures", "own pictures"])
def test_a_whole_study_as_tables(shared):
    """Three rows, the last clearly better, from predictions to verdicts."""
    rng = np.random.default_rng(3)
    study = right(rng, shared=shared, widths=WIDTHS["pictures"], rows=3, margin=MIDDLE, effect=1.5).astype(int)
    label = np.repeat([0, 1], PICTURES // 2)
    areas = rng.random((SEEDS, PICTURES)) * label
    rows = {
        f"S{row + 1}": {seed: as_table(study[seed, row], label, areas[0 if shared else seed]) for seed in range(SEEDS)}
        for row in range(3)
    }
    for metric in ("accuracy", "recall", "auroc"):
        table = steps_table(rows, [["S1", "S2"], ["S2", "S3"], ["S3", "S1"]], metric)
        assert table["verdict"].tolist() == ["not distinguishable", "better", "worse"], metric


def as_table(right, label, area):
    predicted = np.where(right, label, 1 - label)
    images = [f"images/test/{number:03}.png" for number in range(PICTURES)]
    columns = {"image": images, "split": "test", "label": label, "group": images, "defect_area": area}
    return pd.DataFrame(columns | {"predicted": predicted, "probability": 0.2 + 0.6 * predicted})
