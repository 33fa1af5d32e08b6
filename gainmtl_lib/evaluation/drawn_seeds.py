"""A score, or the difference of two, of several seeds: its values, and what it would be on other pictures.

Sizes: N pictures, K seeds, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.evaluation.intervals import FEWEST_GROUPS
from gainmtl_lib.evaluation.weighted_scores import PartDraws, Scorer, scorer

ROUNDING = 1e-12
"""A smaller difference comes from the order of summation."""
NEEDED = ("image", "label")


@dataclass(frozen=True)
class Contrast:
    """The score of one table, or the second's minus the first's of two tables of the same pictures.

    Attributes:
        table: of the pictures.
        scorers: one or two.
        value: not NaN.
    """

    table: pd.DataFrame
    scorers: tuple[Scorer, ...]
    value: float

    @property
    def used(self) -> NDArray[np.bool_]:
        """Which pictures it rests on, (N,)."""
        return np.logical_or.reduce([found.used for found in self.scorers])

    def in_resamples(self, draws: PartDraws, place: int) -> NDArray:
        """Its values where this table is the one at `place` of the draws, (R,)."""
        return _last_minus_first([draws.scores(place, found) for found in self.scorers])


def contrast(tables: Sequence[pd.DataFrame], metric: str) -> Contrast | None:
    """The score of one table or the difference of two; None where one lacks the metric or holds no answer."""
    scorers = [found for table in tables if (found := scorer(table, metric)) is not None]
    if len(scorers) < len(tables):
        return None
    once = np.ones((1, len(tables[0])))
    value = float(_last_minus_first([found(once) for found in scorers])[0])
    return None if isnan(value) else Contrast(tables[0], tuple(scorers), 0.0 if abs(value) < ROUNDING else value)


def _last_minus_first(scores: Sequence[NDArray]) -> NDArray:
    return scores[0] if len(scores) == 1 else scores[1] - scores[0]


@dataclass(frozen=True)
class DrawnSeeds:
    """Contrasts of several seeds and their bootstrap over parts.

    Attributes:
        seeds: K seeds, in order.
        observed: the contrasts, (K,).
        pictures: that each rests on.
        drawn: the contrasts in each resample, (R, K), without NaN; none, (0, K), where there are too few parts.
        shared: whether two seeds were judged on the same parts.
        parts: of the seed and score with the fewest.
        why_not: why nothing was drawn; empty where it was.
    """

    seeds: tuple[int, ...]
    observed: NDArray
    pictures: tuple[int, ...]
    drawn: NDArray
    shared: bool
    parts: int
    why_not: str = ""


def draw_seeds(contrasts: Mapping[int, Contrast]) -> DrawnSeeds:
    """Resample the parts that the seeds' pictures show; at least one seed."""
    found = list(contrasts.values())
    draws = PartDraws([each.table for each in found])
    parts = min(draws.parts(place, one.used) for place, each in enumerate(found) for one in each.scorers)
    why_not = ""
    if parts < FEWEST_GROUPS:
        why_not = f"too few parts: {parts}, needed are {FEWEST_GROUPS}"
    elif not all(draws.vary(place, each.used) for place, each in enumerate(found)):
        why_not = "too few parts: one alone of its class"
    drawn = np.empty((0, len(found)))
    if not why_not:
        drawn = np.stack([each.in_resamples(draws, place) for place, each in enumerate(found)], axis=1)
    return DrawnSeeds(
        seeds=tuple(contrasts),
        observed=np.array([each.value for each in found]),
        pictures=tuple(int(each.used.sum()) for each in found),
        drawn=drawn[~np.isnan(drawn).any(axis=1)],
        shared=draws.shared,
        parts=parts,
        why_not=why_not,
    )


def checked(table: pd.DataFrame, owner: str) -> pd.DataFrame:
    """The rows in the order of their pictures' names.

    Args:
        table: rows of one split of `Run.predictions`.
        owner: that an error names.

    Raises:
        ValueError: a column is missing, there are rows of several splits, or a picture stands there twice.
    """
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise ValueError(f"{owner}: the predictions lack {' and '.join(missing)}; give rows of Run.predictions")
    splits = sorted(table["split"].unique()) if "split" in table else []
    if len(splits) > 1:
        raise ValueError(f"{owner}: the predictions hold the splits {', '.join(splits)}; give the rows of one of them")
    twice = table.loc[table["image"].duplicated(), "image"]
    if len(twice):
        raise ValueError(f"{owner}: {twice.iloc[0]} stands in the predictions twice; give one row per picture")
    return table.sort_values("image", ignore_index=True)


def check_pair(first: pd.DataFrame, second: pd.DataFrame, owner: str) -> None:
    """DataError where two tables, both `checked`, do not hold the same pictures with the same labels."""
    common = set(first["image"]) & set(second["image"])
    if len(common) < max(len(first), len(second)):
        raise DataError(
            f"{owner}: the two runs were evaluated on different pictures ({len(first)} and {len(second)}, "
            f"{len(common)} of them in both); compare runs of the same data and split"
        )
    differ = (first["label"] != second["label"]).to_numpy()
    if differ.any():
        raise DataError(
            f"{owner}: {differ.sum()} pictures have another label in the second run, the first is "
            f"{first['image'][differ.argmax()]}; compare runs of the same data"
        )
