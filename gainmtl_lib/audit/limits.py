"""Limits that lie in the data that a run was trained, chosen and tested on: a rule each."""

from __future__ import annotations

from gainmtl_lib.audit.numbers import SPLIT_NAMES as SPLITS
from gainmtl_lib.audit.numbers import (
    Evidence,
    Limit,
    Rule,
    faithfulness_rows,
    interval,
    join_words,
    of_count,
    percent,
    plural,
    rounded,
    sentence,
    verdicts_in_words,
)
from gainmtl_lib.efficientad.evaluate import NORMAL
from gainmtl_lib.metrics import FALSE_ALARMS
from gainmtl_lib.stats import difference, share_parts, wilson
from gainmtl_lib.studies.faithfulness import DEPENDS_ON_WEIGHTS as DEPENDS
from gainmtl_lib.studies.faithfulness import FAITHFUL, NOT_DISTINGUISHABLE, WORSE

WIDE_INTERVAL = 0.1
FEW_OF_A_TYPE = 10
COARSE_GRID_IOU = 0.6
LINE_DEFECT_SHARE = 0.1
"""With a larger share of defects than this a test set is far from any line."""


def synthetic_data(evidence: Evidence) -> Limit | None:
    """Drawn surfaces, not photographs."""
    if evidence.settings.dataset_type != "synthetic":
        return None
    text = "Pictures and defects are drawn by a program. Nothing here is about real parts."
    return Limit("Synthetic data", text, serious=True)


def no_validation(evidence: Evidence) -> Limit | None:
    """There was no split to choose on."""
    if "val" in evidence.audit.scores:
        return None
    text = (
        f"The threshold {rounded(evidence.audit.threshold)} was not chosen on validation. A threshold for a required "
        "recall and an absolute scale of the maps cannot be given: neither is ever chosen on test."
    )
    return Limit("No validation split", text, serious=True)


def no_masks(evidence: Evidence) -> Limit | None:
    """Test defects without masks."""
    table = evidence.audit.table
    defects = table[(table["label"] == 1) & (table["split"] != "val")]
    missing = int(defects["cam_iou"].isna().sum())
    if not missing:
        return None
    if missing == len(defects):
        text = "No test defect has a mask: whether the model looks at the defects was not measured."
        return Limit("No masks", text, serious=True)
    text = f"{missing} of {len(defects)} test defects have no mask; scores of the maps leave them out."
    return Limit("Defects without masks", text)


def a_class_is_missing(evidence: Evidence) -> Limit | None:
    """A test split without defects or without normals."""
    found = []
    for split in evidence.audit.tests:
        labels = evidence.audit.rows(split)["label"]
        if labels.nunique() == 1:
            found.append(f"{split} holds no {'normal' if labels.iloc[0] else 'defective'} picture")
    text = f"{sentence(join_words(found))}; its ranking cannot be judged."
    return Limit("A class is missing", text, serious=True) if found else None


def few_defects_for_recall(evidence: Evidence) -> Limit | None:
    """Validation cannot say which threshold reaches the required recall."""
    choice = evidence.audit.choice
    if choice.enough or "val" not in evidence.audit.scores:
        return None
    if choice.needed is None:
        text = "That no defect is ever missed cannot be shown by any number of pictures"
    else:
        text = f"A recall of {percent(choice.required)} allows one miss in {choice.needed} defects"
    text = f"{text}; validation holds {choice.defects}. What recall the threshold for it has is not known beforehand."
    return Limit("Too few validation defects for the required recall", text)


def small_test_set(evidence: Evidence) -> Limit | None:
    """The recall's interval is wide."""
    wide = [
        f"{interval(recall)} on {split} ({recall.count} defects)"
        for split in evidence.audit.tests
        if (recall := evidence.score("recall", split)).high - recall.low > WIDE_INTERVAL
    ]
    return Limit("Few test defects", f"Recall is known only roughly: {join_words(wide)}.") if wide else None


def few_of_a_type(evidence: Evidence) -> Limit | None:
    """Some defect types are hardly tested."""
    rows = evidence.audit.types[evidence.audit.main]
    few = [f"{row.name} ({row.recall.count})" for row in rows if row.recall.count < FEW_OF_A_TYPE]
    text = f"Fewer than {FEW_OF_A_TYPE} pictures of {evidence.audit.main} show {join_words(few)}."
    return Limit("Rare defect types", text) if few else None


def no_shift_split(evidence: Evidence) -> Limit | None:
    """Nothing tells how the model fares where the surroundings change."""
    if "test_shift" in evidence.audit.scores:
        return None
    text = (
        "All test pictures come from where the training pictures come from. Whether the model follows a shortcut that "
        "goes with the label only there (lighting, a fixture, a mark) was not tested."
    )
    return Limit("No shifted split", text)


def prevalence(evidence: Evidence) -> Limit | None:
    """The test set holds many more defects than a line makes."""
    labels = evidence.audit.rows(evidence.audit.main)["label"]
    if labels.mean() <= LINE_DEFECT_SHARE or labels.nunique() == 1:
        return None
    text = (
        f"{percent(float(labels.mean()))} of the test pictures are defective. Accuracy, precision, F1 and AP depend on "
        "that share and will differ where defects are rarer; escapes, overkill and AUROC do not depend on it."
    )
    return Limit("More defects than on a line", text)


def training_masks(evidence: Evidence) -> Limit | None:
    """The guided terms learned from some of the defects only."""
    annotated, defects = evidence.manifest.get("train_annotated"), evidence.manifest.get("train_defective")
    if annotated is None or defects is None or annotated >= defects or evidence.settings.strategy == "S1":
        return None
    text = f"{annotated} of {defects} defective training pictures have a mask; only they guided the maps."
    return Limit("Training masks are incomplete", text)


def coarse_grid(evidence: Evidence) -> Limit | None:
    """The map's cells are too large for the defects."""
    grid = evidence.score("grid_iou")
    if not grid.value < COARSE_GRID_IOU:
        return None
    text = (
        f"On the CAM's grid (stride {evidence.settings.map_stride}) the masks themselves reach an IoU of "
        f"{rounded(grid.value)}; CAM-IoU can hardly be higher, however well the model looks."
    )
    return Limit("Coarse maps", text)


def no_interval(evidence: Evidence) -> Limit | None:
    """A perfect ranking in every resample leaves no interval."""
    perfect = [split for split in evidence.audit.splits if evidence.score("auroc", split).value == 1]
    if not perfect:
        return None
    where = join_words([SPLITS[split] for split in perfect])
    text = f"The AUROC on {where} is 1 in every resample: it has no interval, and that it is 1 is not known."
    return Limit("Perfect scores have no interval", text)


def groups_unknown(evidence: Evidence) -> Limit | None:
    """Nothing says which pictures show the same part."""
    if evidence.audit.groups_known:
        return None
    text = (
        "Each picture counts as a part of its own. Where several show one part, they may lie in both training and "
        "test, and the intervals are too narrow; the parameter group_pattern tells parts by file name."
    )
    return Limit("Parts unknown", text)


def pictures_missing(evidence: Evidence) -> Limit | None:
    """The report could not show the pictures."""
    if not evidence.missing_pictures:
        return None
    text = (
        f"{evidence.missing_pictures} of the pictures to be shown could not be read below "
        f"{evidence.pictures_below}; their maps stand alone. The numbers are those stored with the run. If the "
        "pictures moved, write the report again with --data-root and the folder that they are in now."
    )
    return Limit("Pictures not at hand", text)


RULES: tuple[Rule, ...] = (
    synthetic_data,
    no_validation,
    no_masks,
    a_class_is_missing,
    few_defects_for_recall,
    small_test_set,
    few_of_a_type,
    no_shift_split,
    prevalence,
    training_masks,
    coarse_grid,
    no_interval,
    groups_unknown,
    pictures_missing,
)


# --- Limits of the map as an explanation of the decision, whether or not it lies on the defects


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


RULES_LIMITS_OF_MAP: tuple[Rule, ...] = (not_measured, not_faithful, independent_of_weights)


# --- Limits that lie in the model and its results


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


RULES_LIMITS_OF_MODEL: tuple[Rule, ...] = (
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


# --- Limits of what EfficientAD contributes to a strategy's results


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


RULES_LIMITS_OF_NOVELTY: tuple[Rule, ...] = (random_teacher, flags_good_parts)


# --- Known limits, stated from the run's own data.


def known_limits(evidence: Evidence) -> list[Limit]:
    """Every limit that applies, serious ones first, then in the order of the rules."""
    rules = (*RULES_LIMITS_OF_MODEL, *RULES_LIMITS_OF_MAP, *RULES_LIMITS_OF_NOVELTY, *RULES)
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
