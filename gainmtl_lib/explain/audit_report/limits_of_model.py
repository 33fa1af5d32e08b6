"""Limits that lie in the model and its results: a rule each."""

from __future__ import annotations

from gainmtl_lib.evaluation.intervals import difference, share_parts
from gainmtl_lib.explain.audit_report.evidence import Evidence, Limit, Rule
from gainmtl_lib.explain.audit_report.wording import interval, join_words, of_count, percent, sentence

HIGH_WRONG_REASON = 0.1


def oracle_masks(evidence: Evidence) -> Limit | None:
    """The ground truth was given to the model."""
    if not evidence.audit.metrics.get("label_leaks"):
        return None
    text = (
        "The model was handed the annotated masks at test time (mask_source: oracle), and they tell it the label. "
        "These numbers are an upper bound of what better masks could do, and no results."
    )
    return Limit("Oracle masks", text, serious=True)


def random_weights(evidence: Evidence) -> Limit | None:
    """The backbone did not start from pretrained weights, or from unknown ones."""
    weights = evidence.manifest.get("pretrained")
    if weights is None:
        return Limit(
            "Origin of the weights unknown", "The run does not record which weights its backbone started from."
        )
    if not evidence.random_weights:
        return None
    fallback = "auto" in str(weights)
    why = "Pretrained weights were asked for if they could be had, and they could not" if fallback else "As asked for"
    text = f"{why}: the backbone started from random weights. Every result here is that of such a model."
    return Limit("Random weights", text, serious=fallback)


def one_answer(evidence: Evidence) -> Limit | None:
    """Every test picture got the same verdict."""
    called = evidence.audit.rows(evidence.audit.main)["predicted"]
    if called.nunique() != 1:
        return None
    answer = "defective" if called.iloc[0] else "normal"
    text = f"At its threshold the model calls all {len(called)} pictures of {evidence.audit.main} {answer}."
    return Limit("One answer for every picture", text, serious=True)


def near_chance(evidence: Evidence) -> Limit | None:
    """The ranking cannot be told from a coin's, or is worse."""
    found = []
    for split in evidence.audit.tests:
        auroc = evidence.score("auroc", split)
        if auroc.has_interval and auroc.high < 0.5:
            found.append(f"on {split} normal pictures score higher than defective ones (AUROC {interval(auroc)})")
        elif auroc.has_interval and auroc.low <= 0.5:
            found.append(f"on {split} the AUROC {interval(auroc)} cannot be told from a coin's 0.5")
    return Limit("Not shown to be above chance", f"{sentence(join_words(found))}.", serious=True) if found else None


def drops_under_shift(evidence: Evidence) -> Limit | None:
    """Scores fall on the shifted split, by more than chance explains."""
    drops = evidence.audit.drops
    names = {"accuracy": "accuracy", "recall": "recall", "auroc": "AUROC"}
    fallen = [
        f"{text} by {interval(drops[name])}" for name, text in names.items() if name in drops if drops[name].low > 0
    ]
    if not fallen:
        return None
    text = (
        f"From test to test_shift these fall: {join_words(fallen)}. "
        "Part of what the model relies on does not hold there."
    )
    return Limit("Worse on the shifted split", text, serious=True)


def wrong_reason(evidence: Evidence) -> Limit | None:
    """Many defects are found while the CAM lies elsewhere."""
    found = [
        f"{of_count(rate)} found defects of {split} ({percent(rate.value)})"
        for split in evidence.audit.tests
        if (rate := evidence.score("wrong_reason_rate", split)).value > HIGH_WRONG_REASON
    ]
    if not found:
        return None
    text = (
        f"In {join_words(found)} the deciding CAM lies off the defect: "
        "the verdict is right, but the map does not point at the defect."
    )
    return Limit("Right for the wrong reason", text, serious=True)


def control_flips(evidence: Evidence) -> Limit | None:
    """That suppressing the defect flips more verdicts than suppressing the same area elsewhere is not shown."""
    excess = evidence.score("cf_excess")
    if excess.value != excess.value or excess.low > 0:
        return None
    flip, control = evidence.score("cf_flip_rate"), evidence.score("cf_control_flip_rate")
    text = (
        f"Suppressing the defect flips {of_count(flip)} verdicts, suppressing the same area off it "
        f"{of_count(control)}. Where both were asked, flip minus control is {interval(excess)}: that the decision "
        "rests on the defect is not shown by it."
    )
    return Limit("Not shown to flip more often than the control", text, serious=True)


def scale_does_not_separate(evidence: Evidence) -> Limit | None:
    """A map peaks no higher on defects than on normal parts."""
    flat = [name for name, scale in evidence.audit.scales.items() if not scale.separates]
    if not flat:
        return None
    text = (
        f"On validation the median defective picture peaks no higher than normal ones do ({join_words(flat)}). On the "
        "absolute scale such a map shows only which cells exceed what normal parts reach."
    )
    return Limit("Maps that do not separate", text, serious=True)


def calm_on_defects(evidence: Evidence) -> Limit | None:
    """That the CAM finds nothing more often on normal parts than on defects is not shown."""
    found = []
    for split in evidence.audit.tests:
        normal, defective = evidence.audit.calm(split, 0), evidence.audit.calm(split, 1)
        pictures = evidence.audit.rows(split)
        apart = not share_parts(*(pictures[pictures["label"] == label] for label in (0, 1)))
        if difference(normal, defective, independent=apart).low <= 0:
            found.append(f"on {split} on {of_count(defective)} defective and {of_count(normal)} normal pictures")
    if not found:
        return None
    text = (
        f"On the absolute scale the CAM finds nothing {join_words(found)}: that it tells them apart is not shown, "
        "because the interval of the difference includes 0 or lies below it."
    )
    return Limit("CAM not shown to be calmer on normal parts", text, serious=True)


def no_counterfactual(evidence: Evidence) -> Limit | None:
    """The strategy does not ask whether the decision needs the defect."""
    if evidence.has_counterfactual:
        return None
    text = (
        f"Strategy {evidence.settings.strategy} as trained has no counterfactual. That a map lies on the defect does "
        "not show that the decision would change without it."
    )
    return Limit("No counterfactual", text)


def learned_counterfactual(evidence: Evidence) -> Limit | None:
    """The suppression was trained to turn the verdict."""
    if not evidence.has_counterfactual or evidence.settings.counterfactual_mode != "learned":
        return None
    text = (
        "The suppression was trained to turn the verdict, and it is done in features, not in the picture. Flips are "
        "evidence only as far as the control does not flip."
    )
    return Limit("Learned counterfactual", text)


def one_seed(evidence: Evidence) -> Limit | None:
    """One training is one draw."""
    text = (
        f"This is one training (seed {evidence.settings.seed}). The intervals say how numbers would vary with other "
        "test pictures, not with another training."
    )
    return Limit("One seed", text)


RULES: tuple[Rule, ...] = (
    oracle_masks,
    random_weights,
    one_answer,
    near_chance,
    drops_under_shift,
    wrong_reason,
    control_flips,
    scale_does_not_separate,
    calm_on_defects,
    no_counterfactual,
    learned_counterfactual,
    one_seed,
)
