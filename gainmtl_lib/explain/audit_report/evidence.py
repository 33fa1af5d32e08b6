"""What the known limits of a run are judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gainmtl_lib.evaluation.audit import Audit
from gainmtl_lib.evaluation.intervals import Estimate
from gainmtl_lib.evaluation.novelty import Novelty
from gainmtl_lib.settings import Settings


@dataclass(frozen=True)
class Limit:
    """A known limit.

    Attributes:
        title: a few words.
        text: what it means here, with the numbers.
        serious: whether results must not be taken at face value because of it.
    """

    title: str
    text: str
    serious: bool = False


@dataclass(frozen=True)
class Evidence:
    """What the rules look at.

    Attributes:
        settings: of the run.
        manifest: of the run.
        audit: its numbers.
        missing_pictures: pictures that the report wanted to show and could not read.
        data_root: where the pictures were looked for, when they moved since the training.
        faithfulness: of `stored_faithfulness`; None where it was not measured for these predictions.
        stale_faithfulness: whether it was measured for others.
        novelty: of `stored_novelty`; None where it was not asked.
        stale_novelty: whether it was, and what it found is out of date.
    """

    settings: Settings
    manifest: Mapping[str, Any]
    audit: Audit
    missing_pictures: int = 0
    data_root: Path | None = None
    faithfulness: Mapping[str, Any] | None = None
    stale_faithfulness: bool = False
    novelty: Novelty | None = None
    stale_novelty: bool = False

    def score(self, name: str, split: str | None = None) -> Estimate:
        """A score of a split, by default of the headline one; an empty estimate where there is none."""
        return self.audit.scores[split or self.audit.main].get(name, Estimate())

    @property
    def pictures_below(self) -> str:
        """The folder that the pictures were looked for in."""
        return str(self.settings.plain()["data_root"] if self.data_root is None else self.data_root)

    @property
    def random_weights(self) -> bool:
        """Whether the backbone is known to have started from random weights."""
        return str(self.manifest.get("pretrained", "")).startswith("random")

    @property
    def teachers(self) -> dict[str, str]:
        """What EfficientAD did for these results, to where its teacher came from."""
        masks = self.audit.metrics.get("teacher")
        found = {} if masks is None else {"makes the masks of the attention": str(masks)}
        return found if self.novelty is None else found | {"flags novel pictures": self.novelty.teacher}

    @property
    def has_counterfactual(self) -> bool:
        """Whether flips were asked for."""
        return "cf_flip_rate" in self.audit.scores[self.audit.main]


Rule = Callable[[Evidence], Limit | None]
"""Answers with a limit, or with None where it does not apply."""
