"""The known limits of a run, stated from its own data: each a condition and, below it, its sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gainmtl_lib.audit.numbers import Audit, verdicts_in_words
from gainmtl_lib.metrics import FALSE_ALARMS
from gainmtl_lib.readers import NORMAL
from gainmtl_lib.stats import difference, share_parts, wilson
from gainmtl_lib.studies.faithfulness import DEPENDS_ON_WEIGHTS as DEPENDS
from gainmtl_lib.studies.faithfulness import FAITHFUL, NOT_DISTINGUISHABLE, WORSE
from gainmtl_lib.wording import METRICS, SPLIT_NAMES, interval, join_words, number, of_count, percent, plural

WIDE_INTERVAL = 0.1
FEW_OF_A_TYPE = 10
COARSE_GRID_IOU = 0.6
HIGH_WRONG_REASON = 0.1
LINE_DEFECT_SHARE = 0.1
"""With a larger share of defects than this a test set is far from any line."""


class Limit(NamedTuple):
    """A known limit: a few words, what it means here, and whether results must not be taken at face value for it."""

    title: str
    text: str
    serious: bool = False


def known_limits(audit: Audit) -> list[Limit]:
    """Every limit that applies, serious ones first."""
    limits = [*_of_the_model(audit), *_of_the_map(audit), *_of_efficientad(audit), *_of_the_data(audit)]
    return sorted(limits, key=lambda limit: not limit.serious)


def marks(audit: Audit) -> list[str]:
    """What must stand beside every result: words for a label."""
    found = {
        "oracle masks: no results": audit.metrics.get("label_leaks"),
        "masks of a random teacher": str(audit.metrics.get("teacher", "")).startswith("random"),
        "random weights": audit.random_weights,
    }
    return [mark for mark, applies in found.items() if applies]


def _of_the_model(audit: Audit) -> Iterator[Limit]:
    settings, main = audit.settings, audit.main
    if audit.metrics.get("label_leaks"):
        text = (
            "The model was handed the annotated masks at test time (mask_source: oracle), and they tell it the label. "
            "These numbers are an upper bound of what better masks could do, and no results."
        )
        yield Limit("Oracle masks", text, serious=True)
    if audit.manifest.get("pretrained") is None:
        text = "The run does not record which weights its backbone started from."
        yield Limit("Origin of the weights unknown", text)
    if audit.random_weights:
        fallback = "auto" in audit.manifest["pretrained"]
        why = (
            "Pretrained weights were asked for if they could be had, and they could not" if fallback else "As asked for"
        )
        text = f"{why}: the backbone started from random weights. Every result here is that of such a model."
        yield Limit("Random weights", text, serious=fallback)
    called = audit.rows(main)["predicted"]
    if called.nunique() == 1:
        answer = "defective" if called.iloc[0] else "normal"
        text = f"At its threshold the model calls all {len(called)} pictures of {main} {answer}."
        yield Limit("One answer for every picture", text, serious=True)
    aurocs = {split: audit.score("auroc", split) for split in audit.tests}
    chance = [
        f"on {split} normal pictures score higher than defective ones (AUROC {interval(auroc)})"
        if auroc.high < 0.5
        else f"on {split} the AUROC {interval(auroc)} cannot be told from a coin's 0.5"
        for split, auroc in aurocs.items()
        if auroc.has_interval and auroc.low <= 0.5
    ]
    if chance:
        yield Limit("Not shown to be above chance", f"{_capital(join_words(chance))}.", serious=True)
    drops = {name: audit.drops[name] for name in ("accuracy", "recall", "auroc") if name in audit.drops}
    fallen = [f"{METRICS[name]} by {interval(drop)}" for name, drop in drops.items() if drop.low > 0]
    if fallen:
        text = (
            f"From test to test_shift these fall: {join_words(fallen)}. Part of what the model relies on does not hold "
            "there."
        )
        yield Limit("Worse on the shifted split", text, serious=True)
    rates = {split: audit.score("wrong_reason_rate", split) for split in audit.tests}
    wrong = [
        f"{of_count(rate)} found defects of {split} ({percent(rate.value)})"
        for split, rate in rates.items()
        if rate.value > HIGH_WRONG_REASON
    ]
    if wrong:
        text = (
            f"In {join_words(wrong)} the deciding CAM lies off the defect: the verdict is right, but the map does not "
            "point at the defect."
        )
        yield Limit("Right for the wrong reason", text, serious=True)
    flip, control, excess = (audit.score(name) for name in ("cf_flip_rate", "cf_control_flip_rate", "cf_excess"))
    if excess.value == excess.value and not excess.low > 0:
        text = (
            f"Suppressing the defect flips {of_count(flip)} verdicts, suppressing the same area off it "
            f"{of_count(control)}. Where both were asked, flip minus control is {interval(excess)}: that the decision "
            "rests on the defect is not shown by it."
        )
        yield Limit("Not shown to flip more often than the control", text, serious=True)
    flat = [name for name, scale in audit.scales.items() if not scale.separates]
    if flat:
        text = (
            f"On validation the median defective picture peaks no higher than normal ones do ({join_words(flat)}). On "
            "the absolute scale such a map shows only which cells exceed what normal parts reach."
        )
        yield Limit("Maps that do not separate", text, serious=True)
    if no_calmer := [_calm(audit, split) for split in audit.tests if _is_no_calmer(audit, split)]:
        text = (
            f"On the absolute scale the CAM finds nothing {join_words(no_calmer)}: that it tells them apart is not "
            "shown, because the interval of the difference includes 0 or lies below it."
        )
        yield Limit("CAM not shown to be calmer on normal parts", text, serious=True)
    if not audit.has_counterfactual:
        text = (
            f"Strategy {settings.strategy} as trained has no counterfactual. That a map lies on the defect does not "
            "show that the decision would change without it."
        )
        yield Limit("No counterfactual", text)
    elif settings.counterfactual_mode == "learned":
        text = (
            "The suppression was trained to turn the verdict, and it is done in features, not in the picture. Flips "
            "are evidence only as far as the control does not flip."
        )
        yield Limit("Learned counterfactual", text)
    text = (
        f"This is one training (seed {settings.seed}). The intervals say how numbers would vary with other test "
        "pictures, not with another training."
    )
    yield Limit("One seed", text)


def _is_no_calmer(audit: Audit, split: str) -> bool:
    rows = audit.rows(split)
    apart = not share_parts(*(rows[rows["label"] == label] for label in (0, 1)))
    return difference(audit.calm(split, 0), audit.calm(split, 1), independent=apart).low <= 0


def _calm(audit: Audit, split: str) -> str:
    normal, defective = of_count(audit.calm(split, 0)), of_count(audit.calm(split, 1))
    return f"on {split} on {defective} defective and {normal} normal pictures"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _of_the_map(audit: Audit) -> Iterator[Limit]:
    """As an explanation of the decision, whether or not it lies on the defects."""
    measured = audit.faithfulness
    if measured is None:
        stale = "faithfulness" in audit.stale
        why = "it was measured for other predictions" if stale else "it takes the model and minutes"
        text = (
            "That the map lies on a defect does not show that the decision rests on what it marks. Faithfulness of the "
            f"map was not measured ({why}); gainmtl report RUN --faithfulness does."
        )
        yield Limit("Faithfulness of the map not measured", text)
        return
    if short := verdicts_in_words(measured, but=FAITHFUL):
        text = (
            f"On {plural(len(measured['pictures']), 'found defect')} of {measured['split']}, {short}. "
            "That the decision rests on what the map marks is not shown there."
        )
        yield Limit("Map not shown to be faithful", text, serious=NOT_DISTINGUISHABLE in short or WORSE in short)
    check = measured["randomisation"]
    if check["verdict"] != DEPENDS:
        text = (
            f"With all weights shuffled: {check['verdict']} (rank correlation with the trained model's map "
            f"{number(check['similarity'])}, the same from {check['level']:g})."
        )
        yield Limit("Map not shown to depend on the weights", text, serious=True)


def _of_efficientad(audit: Audit) -> Iterator[Limit]:
    parts = {"makes the masks of the attention": str(audit.metrics.get("teacher", ""))}
    if audit.novelty is not None:
        parts["flags novel pictures"] = audit.novelty.teacher
    random = [part for part, teacher in parts.items() if teacher.startswith("random")]
    if random:
        text = (
            f"The EfficientAD run that {join_words(random)} had a random, untrained teacher. That is not the paper's "
            "method: what it finds and misses says little about EfficientAD."
        )
        yield Limit("Random teacher", text)
    kinds = [] if audit.novelty is None else audit.novelty.kinds.itertuples()
    flagged = [
        f"{kind.anomalous} of {kind.count} normal pictures of {kind.Index[0]} ({percent(kind.anomalous / kind.count)})"
        for kind in kinds
        if kind.Index[1] == NORMAL and wilson(kind.anomalous, kind.count)[0] > FALSE_ALARMS  # more than by chance
    ]
    if flagged:
        text = (
            f"{join_words(flagged)} lie above the novelty threshold, which validation would let "
            f"{percent(FALSE_ALARMS)} exceed: it had few pictures, or these parts are unlike its own. There the flag "
            "says little."
        )
        yield Limit("Good parts flagged as anomalous", text)


def _of_the_data(audit: Audit) -> Iterator[Limit]:
    """That the run was trained, chosen and tested on."""
    settings, main, choice = audit.settings, audit.main, audit.choice
    if settings.dataset_type == "synthetic":
        text = "Pictures and defects are drawn by a program. Nothing here is about real parts."
        yield Limit("Synthetic data", text, serious=True)
    if "val" not in audit.scores:
        text = (
            f"The threshold {number(audit.metrics['threshold'])} was not chosen on validation. A threshold for a "
            "required recall and an absolute scale of the maps cannot be given: neither is ever chosen on test."
        )
        yield Limit("No validation split", text, serious=True)
    defects = audit.table[(audit.table["label"] == 1) & (audit.table["split"] != "val")]
    bare = int(defects["cam_iou"].isna().sum())
    if bare and bare == len(defects):
        text = "No test defect has a mask: whether the model looks at the defects was not measured."
        yield Limit("No masks", text, serious=True)
    elif bare:
        text = f"{bare} of {len(defects)} test defects have no mask; scores of the maps leave them out."
        yield Limit("Defects without masks", text)
    labels = {split: audit.rows(split)["label"] for split in audit.tests}
    absent = [
        f"{split} holds no {'normal' if found.iloc[0] else 'defective'} picture"
        for split, found in labels.items()
        if found.nunique() == 1
    ]
    if absent:
        text = f"{_capital(join_words(absent))}; its ranking cannot be judged."
        yield Limit("A class is missing", text, serious=True)
    if not choice.enough and "val" in audit.scores:
        text = "That no defect is ever missed cannot be shown by any number of pictures"
        if choice.needed is not None:
            text = f"A recall of {percent(choice.required)} allows one miss in {choice.needed} defects"
        text += f"; validation holds {choice.defects}. What recall the threshold for it has is not known beforehand."
        yield Limit("Too few validation defects for the required recall", text)
    recalls = {split: audit.score("recall", split) for split in audit.tests}
    wide = [
        f"{interval(recall)} on {split} ({recall.count} defects)"
        for split, recall in recalls.items()
        if recall.high - recall.low > WIDE_INTERVAL
    ]
    if wide:
        yield Limit("Few test defects", f"Recall is known only roughly: {join_words(wide)}.")
    few = [f"{row.name} ({row.recall.count})" for row in audit.types[main] if row.recall.count < FEW_OF_A_TYPE]
    if few:
        yield Limit("Rare defect types", f"Fewer than {FEW_OF_A_TYPE} pictures of {main} show {join_words(few)}.")
    if "test_shift" not in audit.scores:
        text = (
            "All test pictures come from where the training pictures come from. Whether the model follows a shortcut "
            "that goes with the label only there (lighting, a fixture, a mark) was not tested."
        )
        yield Limit("No shifted split", text)
    share = float(labels[main].mean())
    if LINE_DEFECT_SHARE < share < 1:
        text = (
            f"{percent(share)} of the test pictures are defective. Accuracy, precision, F1 and AP depend on that share "
            "and will differ where defects are rarer; escapes, overkill and AUROC do not depend on it."
        )
        yield Limit("More defects than on a line", text)
    annotated, trained = (audit.manifest.get(name) for name in ("train_annotated", "train_defective"))
    if annotated is not None and trained is not None and annotated < trained and settings.strategy != "S1":
        text = f"{annotated} of {trained} defective training pictures have a mask; only they guided the maps."
        yield Limit("Training masks are incomplete", text)
    grid = audit.score("grid_iou").value
    if grid < COARSE_GRID_IOU:
        text = (
            f"On the CAM's grid (stride {settings.map_stride}) the masks themselves reach an IoU of {number(grid)}; "
            "CAM-IoU can hardly be higher, however well the model looks."
        )
        yield Limit("Coarse maps", text)
    perfect = [SPLIT_NAMES[split] for split in audit.splits if audit.score("auroc", split).value == 1]
    if perfect:
        text = (
            f"The AUROC on {join_words(perfect)} is 1 in every resample: it has no interval, and that it is 1 is not "
            "known."
        )
        yield Limit("Perfect scores have no interval", text)
    if not audit.groups_known:
        text = (
            "Each picture counts as a part of its own. Where several show one part, they may lie in both training and "
            "test, and the intervals are too narrow; the parameter group_pattern tells parts by file name."
        )
        yield Limit("Parts unknown", text)
    if audit.missing_pictures:
        text = (
            f"{audit.missing_pictures} of the pictures to be shown could not be read below {audit.data_root}; their "
            "maps stand alone. The numbers are those stored with the run. If the pictures moved, write the report "
            "again with --data-root and the folder that they are in now."
        )
        yield Limit("Pictures not at hand", text)
