"""Limits of what EfficientAD contributes to a strategy's results: a rule each."""

from __future__ import annotations

from gainmtl_lib.decisions import FALSE_ALARMS
from gainmtl_lib.evaluation.intervals import wilson
from gainmtl_lib.evaluation.novelty import NORMAL
from gainmtl_lib.explain.audit_report.evidence import Evidence, Limit, Rule
from gainmtl_lib.explain.audit_report.wording import join_words, percent


def random_teacher(evidence: Evidence) -> Limit | None:
    """EfficientAD took part without pretrained features."""
    parts = [part for part, teacher in evidence.teachers.items() if teacher.startswith("random")]
    if not parts:
        return None
    text = (
        f"The EfficientAD run that {join_words(parts)} had a random, untrained teacher. That is not the paper's "
        "method: what it finds and misses says little about EfficientAD."
    )
    return Limit("Random teacher", text)


def flags_good_parts(evidence: Evidence) -> Limit | None:
    """More normal test pictures lie above the novelty threshold than it allows, by more than chance explains."""
    if evidence.novelty is None:
        return None
    found = [
        f"{normal.anomalous} of {normal.count} normal pictures of {split} ({percent(normal.anomalous / normal.count)})"
        for split, kinds in evidence.novelty.kinds.items()
        for normal in kinds
        if normal.name == NORMAL and wilson(normal.anomalous, normal.count)[0] > FALSE_ALARMS
    ]
    if not found:
        return None
    text = (
        f"{join_words(found)} lie above the novelty threshold, which validation would let {percent(FALSE_ALARMS)} "
        "exceed: it had few pictures, or these parts are unlike its own. There the flag says little."
    )
    return Limit("Good parts flagged as anomalous", text)


RULES: tuple[Rule, ...] = (random_teacher, flags_good_parts)
