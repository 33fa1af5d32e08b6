"""Limits of the map as an explanation of the decision, whether or not it lies on the defects: a rule each."""

from __future__ import annotations

from gainmtl_lib.explain.audit_report.evidence import Evidence, Limit, Rule
from gainmtl_lib.explain.audit_report.tables import faithfulness_rows, verdicts_in_words
from gainmtl_lib.explain.audit_report.wording import plural, rounded
from gainmtl_lib.explain.faithfulness_summary import FAITHFUL, NOT_DISTINGUISHABLE, WORSE
from gainmtl_lib.explain.randomisation import DEPENDS


def not_measured(evidence: Evidence) -> Limit | None:
    """Nothing tells whether the decision follows the map."""
    if evidence.faithfulness is not None:
        return None
    why = "it was measured for other predictions" if evidence.stale_faithfulness else "it takes the model and minutes"
    text = (
        "That the map lies on a defect does not show that the decision rests on what it marks. Faithfulness of the map "
        f"was not measured ({why}); gainmtl report RUN --faithfulness does."
    )
    return Limit("Faithfulness of the map not measured", text)


def not_faithful(evidence: Evidence) -> Limit | None:
    """Some measure does not show the map to be better than one that was moved to a random place."""
    short = [row for row in faithfulness_rows(evidence.faithfulness) if row.verdict != FAITHFUL]
    if evidence.faithfulness is None or not short:
        return None
    text = (
        f"On {plural(len(evidence.faithfulness['pictures']), 'found defect')} of {evidence.faithfulness['split']}, "
        f"{verdicts_in_words(short)}. That the decision rests on what the map marks is not shown there."
    )
    serious = any(row.verdict in (NOT_DISTINGUISHABLE, WORSE) for row in short)
    return Limit("Map not shown to be faithful", text, serious=serious)


def independent_of_weights(evidence: Evidence) -> Limit | None:
    """The map is the same whatever the model learnt, or cannot be checked."""
    if evidence.faithfulness is None or evidence.faithfulness["randomisation"]["verdict"] == DEPENDS:
        return None
    check = evidence.faithfulness["randomisation"]
    text = (
        f"With all weights shuffled: {check['verdict']} (rank correlation with the trained model's map "
        f"{rounded(check['similarity'])}, the same from {check['level']:g})."
    )
    return Limit("Map not shown to depend on the weights", text, serious=True)


RULES: tuple[Rule, ...] = (not_measured, not_faithful, independent_of_weights)
