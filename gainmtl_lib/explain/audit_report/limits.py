"""Known limits, stated from the run's own data."""

from __future__ import annotations

from gainmtl_lib.explain.audit_report import limits_of_data, limits_of_map, limits_of_model, limits_of_novelty
from gainmtl_lib.explain.audit_report.evidence import Evidence, Limit


def known_limits(evidence: Evidence) -> list[Limit]:
    """Every limit that applies, serious ones first, then in the order of the rules."""
    rules = (*limits_of_model.RULES, *limits_of_map.RULES, *limits_of_novelty.RULES, *limits_of_data.RULES)
    found = [limit for rule in rules if (limit := rule(evidence)) is not None]
    return sorted(found, key=lambda limit: not limit.serious)


def marks(evidence: Evidence) -> list[str]:
    """What must stand beside every result: words for a label."""
    found = []
    if evidence.audit.metrics.get("label_leaks"):
        found.append("oracle masks: no results")
    if str(evidence.audit.metrics.get("teacher", "")).startswith("random"):
        found.append("masks of a random teacher")
    if evidence.random_weights:
        found.append("random weights")
    return found
