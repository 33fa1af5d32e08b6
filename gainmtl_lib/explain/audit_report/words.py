"""The report's sentences: what its numbers mean, in words."""

from __future__ import annotations

from collections.abc import Sequence

from gainmtl_lib.evaluation.audit import Audit
from gainmtl_lib.evaluation.intervals import CONFIDENCE
from gainmtl_lib.evaluation.novelty import NORMAL, Kind
from gainmtl_lib.evaluation.operating_point import defects_to_show
from gainmtl_lib.explain.audit_report.evidence import Evidence, Limit
from gainmtl_lib.explain.audit_report.head import STRATEGIES
from gainmtl_lib.explain.audit_report.tables import FLIPS, ShiftRow, faithfulness_rows, shift_rows, verdicts_in_words
from gainmtl_lib.explain.audit_report.wording import (
    interval,
    join_words,
    of_count,
    percent,
    percent_interval,
    plural,
    rounded,
)


def in_short(evidence: Evidence, limits: Sequence[Limit]) -> list[tuple[str, str]]:
    """The report in one sentence for each of its questions."""
    audit = evidence.audit
    lines = [
        ("Trained", _trained(evidence)),
        ("Decision", threshold_sentence(audit)),
        ("Escapes and overkill", escapes_sentence(audit)),
        ("At the required recall", recall_sentence(audit)),
        ("Reason", reason_sentence(evidence)),
        ("Faithfulness", faithfulness_sentence(evidence)),
        ("Counterfactual", flip_sentence(evidence)),
        ("Shift", shift_sentence(audit)),
        ("Novel defects", novelty_sentence(evidence)),
    ]
    serious = [limit.title for limit in limits if limit.serious]
    count = f"{plural(len(limits), 'known limit')} below"
    lines.append(
        ("Limits", f"{count}; serious: {'; '.join(serious)}." if serious else f"{count}, none marked serious.")
    )
    return lines


def threshold_sentence(audit: Audit) -> str:
    """Where the threshold came from."""
    origin = audit.metrics.get("threshold_from", "origin not recorded")
    text = f"A picture is called defective from p(defect) = {rounded(audit.threshold)} upwards ({origin})."
    if origin.startswith("validation") and "val" in audit.scores:
        labels = audit.rows("val")["label"]
        text += f" Chosen on {len(labels)} validation pictures, {labels.sum()} of them defective; never on test."
    source, teacher = audit.metrics.get("mask_source"), audit.metrics.get("teacher")
    if teacher:
        source = f"{source}, the run {audit.metrics['efficientad_run']} (teacher: {teacher})"
    return text + (f" Attention took its mask from: {source}." if source else "")


def escapes_sentence(audit: Audit) -> str:
    """What the run's own threshold lets through and throws away, on the headline split."""
    point = audit.chosen[audit.main]
    return (
        f"On {audit.main} {of_count(point.escapes)} defects escape ({percent_interval(point.escapes)}), and "
        f"{of_count(point.overkill)} normal pictures are rejected ({percent_interval(point.overkill)})."
    )


def recall_sentence(audit: Audit) -> str:
    """What the threshold for the required recall does on the headline split, and whether it means something."""
    choice, required = audit.choice, percent(audit.choice.required)
    if choice.threshold is None:
        return f"No threshold for a recall of {required} can be given: there are no validation defects to choose it on."
    point, recall = audit.at_recall[audit.main], 1 - audit.at_recall[audit.main].escapes.value
    text = (
        f"The threshold for a recall of {required}, chosen on validation, is {rounded(choice.threshold)}. "
        f"On {audit.main} it reached {percent(recall)} ({of_count(point.escapes)} defects escape), "
        f"with {of_count(point.overkill)} normal pictures rejected."
    )
    if not choice.enough:
        text += f" Validation has too few defects ({choice.defects}) to know."
    return text


def evidence_sentence(audit: Audit) -> str:
    """How many defects it takes to choose, and to show, the required recall."""
    choice, show, required = audit.choice, defects_to_show(audit.choice.required), percent(audit.choice.required)
    if choice.needed is None or show is None:
        return f"A recall of {required} cannot be shown by any number of pictures."
    return (
        f"To choose a threshold for a recall of {required} takes at least {choice.needed} validation defects; there "
        f"are {choice.defects}. To show that recall on test with {percent(CONFIDENCE)} confidence takes {show} defects "
        "without a miss."
    )


def reason_sentence(evidence: Evidence) -> str:
    """Whether found defects are found for the right reason, on the headline split."""
    rate, cam, grid = (evidence.score(name) for name in ("wrong_reason_rate", "cam_iou", "grid_iou"))
    if not cam.count:
        return f"Not measured: no defect of {evidence.audit.main} has a mask."
    return (
        f"In {of_count(rate)} found defects the deciding CAM lies off the defect ({percent_interval(rate)}). "
        f"CAM-IoU is {interval(cam)}; the masks themselves reach {rounded(grid.value)} on the map's grid."
    )


def flip_sentence(evidence: Evidence) -> str:
    """What the flips mean: only what exceeds the control counts."""
    flip, control, excess = (evidence.score(name) for name in FLIPS)
    if not evidence.has_counterfactual:
        return f"Not asked: strategy {evidence.settings.strategy} as trained has no counterfactual."
    if not flip.count:
        return "Not answered: no found defect has a mask."
    text = (
        f"With the defect's features suppressed the verdict turns to normal in {of_count(flip)} found defects "
        f"({percent(flip.value)}), with the same area off the defect suppressed in {of_count(control)} "
        f"({percent(control.value)})."
    )
    if excess.value != excess.value:
        return text + " Without a control the flips say nothing."
    text += f" Where both were asked, flip minus control is {interval(excess)}: "
    if excess.low > 0:
        return text + "that much is due to suppressing the defect itself."
    return text + "that suppressing the defect does more than suppressing any other area is not shown."


def faithfulness_sentence(evidence: Evidence) -> str:
    """Whether the decision rests on what the map marks, and whether the map depends on what the model learnt."""
    measured = evidence.faithfulness
    if measured is None:
        return "Not measured: gainmtl report RUN --faithfulness does."
    check = measured["randomisation"]
    return (
        f"The deciding CAM against the same map moved to a random place, on {len(measured['pictures'])} of "
        f"{plural(measured['found'], 'found defect')} of {measured['split']}: "
        f"{verdicts_in_words(faithfulness_rows(measured))}. "
        f"With all weights shuffled: {check['verdict']} (rank correlation {rounded(check['similarity'])})."
    )


def shift_sentence(audit: Audit) -> str:
    """The drop, in words."""
    rows = {row.label: row for row in shift_rows(audit)}
    if not rows:
        return "Not tested: the data has no shifted split."
    told = [_change(rows[label]) for label in ("recall", "overkill", "accuracy", "AUROC") if label in rows]
    return f"From test to test_shift {join_words(told)}."


def novelty_sentence(evidence: Evidence) -> str:
    """What EfficientAD flags of what the verdict lets pass, on the headline split."""
    split, novelty = evidence.audit.main, evidence.novelty
    if novelty is None:
        why = "what is stored is out of date" if evidence.stale_novelty else "it takes an EfficientAD run"
        return f"Not asked ({why}): gainmtl evaluate RUN --efficientad-run FOLDER does."
    kinds = novelty.kinds.get(split, [])
    defects = [kind for kind in kinds if kind.name != NORMAL]
    normals = [kind for kind in kinds if kind.name == NORMAL]
    text = (
        f"On {split} EfficientAD flags {_flagged(defects)} escaped defects as novel, and {_flagged(normals)} normal "
        f"pictures that pass. Its teacher: {novelty.teacher}."
    )
    unseen = [f"{kind.name} ({kind.anomalous} of {kind.count} anomalous)" for kind in defects if kind.unseen]
    return text + (f" Types that no training picture shows: {join_words(unseen)}." if unseen else "")


def _flagged(kinds: Sequence[Kind]) -> str:
    """``3 of 5``: novel ones of those called normal."""
    return f"{sum(kind.novel for kind in kinds)} of {sum(kind.count - kind.called_defective for kind in kinds)}"


def _change(row: ShiftRow) -> str:
    span = f"from {rounded(row.test.value)} to {rounded(row.shift.value)}"
    verb = {"lower": "falls", "higher": "rises"}.get(row.words)
    return f"{row.label} {verb} {span}" if verb else f"{row.label} goes {span} ({row.words})"


def _trained(evidence: Evidence) -> str:
    settings, manifest = evidence.settings, evidence.manifest
    count = manifest.get("split_sizes", {}).get("train")
    pictures = f"{settings.dataset_type} data" + (f" ({plural(count, 'picture')})" if count else "")
    weights = "random weights" if evidence.random_weights else str(manifest.get("pretrained", "weights not recorded"))
    return (
        f"Strategy {settings.strategy} ({STRATEGIES[settings.strategy]}), backbone {settings.backbone_arch} "
        f"from {weights}, on {pictures}, seed {settings.seed}."
    )
