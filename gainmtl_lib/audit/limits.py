"""The known limits of a run, stated from its own data: each a condition and, below it, its sentence."""

from gainmtl_lib import stats
from gainmtl_lib.audit.numbers import Audit, verdicts_in_words
from gainmtl_lib.stats import Estimate
from gainmtl_lib.studies import faithfulness
from gainmtl_lib.wording import METRICS, interval, join_words, number, of_count, percent, plural

WIDE_INTERVAL = 0.1
COARSE_GRID_IOU = 0.6
HIGH_WRONG_REASON = 0.1

Limits = dict[str, str]  # by a few words, what each means here


def known_limits(audit: Audit) -> tuple[Limits, Limits]:
    """Serious limits that apply, for which results must not be taken at face value, and the others."""
    serious, others = Limits(), Limits()
    for part in (*OF_THE_MODEL, _of_the_map, _of_the_data):
        part(audit, serious, others)
    return serious, others


def marks(audit: Audit) -> list[str]:
    """What must stand beside every result: words for a label."""
    found = {
        "oracle masks: no results": audit.metrics.get("label_leaks"),
        "masks of a random teacher": str(audit.metrics.get("teacher", "")).startswith("random"),
        "random weights": audit.random_weights,
    }
    return [mark for mark, applies in found.items() if applies]


def _on_tests(audit: Audit, name: str) -> list[tuple[str, Estimate]]:
    return [(split, audit.score(name, split)) for split in audit.tests]


def _floor(audit: Audit) -> str:
    return "at the evidence's own zero" if audit.settings.has("evidence") else "which is where normal ones end"


def _oracle_masks(audit: Audit, serious: Limits, others: Limits) -> None:
    if audit.metrics.get("label_leaks"):
        serious["Oracle masks"] = (
            "The model was handed the annotated masks at test time (mask_source: oracle), and they tell it the label. "
            "These numbers are an upper bound of what better masks could do, and no results."
        )


def _random_weights(audit: Audit, serious: Limits, others: Limits) -> None:
    if audit.random_weights:
        origin = audit.manifest["pretrained"]  # with "auto" pretrained ones were asked for if they could be had
        (serious if "auto" in origin else others)["Random weights"] = (
            f"Origin of the backbone's weights: {origin}. Every result here is that of such a model."
        )


def _one_answer(audit: Audit, serious: Limits, others: Limits) -> None:
    called = audit.rows(audit.main)["predicted"]
    if called.nunique() == 1:
        serious["One answer for every picture"] = (
            f"At its threshold the model calls all {len(called)} pictures of {audit.main} "
            f"{'defective' if called.iloc[0] else 'normal'}."
        )


def _chance(audit: Audit, serious: Limits, others: Limits) -> None:
    if chance := [
        f"{interval(auroc)} on {split} "
        + ("(normal pictures score higher than defective ones)" if auroc.high < 0.5 else "(as a coin's 0.5 may be)")
        for split, auroc in _on_tests(audit, "auroc")
        if auroc.low <= 0.5
    ]:
        serious["Not shown to be above chance"] = f"The AUROC is {join_words(chance)}."


def _worse_when_shifted(audit: Audit, serious: Limits, others: Limits) -> None:
    drops = {name: audit.drops[name] for name in ("accuracy", "recall", "auroc") if name in audit.drops}
    if fallen := [f"{METRICS[name]} by {interval(drop)}" for name, drop in drops.items() if drop.low > 0]:
        serious["Worse on the shifted split"] = (
            f"From test to test_shift these fall: {join_words(fallen)}. Part of what the model relies on does not hold "
            "there."
        )


def _wrong_reason(audit: Audit, serious: Limits, others: Limits) -> None:
    if wrong := [
        f"{of_count(rate)} found defects of {split} ({percent(rate.value)})"
        for split, rate in _on_tests(audit, "wrong_reason_rate")
        if rate.value > HIGH_WRONG_REASON
    ]:
        serious["Right for the wrong reason"] = (
            f"In {join_words(wrong)} the deciding CAM lies off the defect: the verdict is right, but the map does not "
            "point at the defect."
        )


def _flips_like_the_control(audit: Audit, serious: Limits, others: Limits) -> None:
    flip, control, excess = (audit.score(name) for name in ("cf_flip_rate", "cf_control_flip_rate", "cf_excess"))
    if excess.value == excess.value and not excess.low > 0:
        serious["Not shown to flip more often than the control"] = (
            f"Suppressing the defect flips {of_count(flip)} verdicts, suppressing the same area off it "
            f"{of_count(control)}. Where both were asked, flip minus control is {interval(excess)}: that the decision "
            "rests on the defect is not shown by it."
        )


def _maps_that_do_not_separate(audit: Audit, serious: Limits, others: Limits) -> None:
    if flat := [name for name, scale in audit.scales.items() if not scale.separates]:
        serious["Maps that do not separate"] = (
            f"On validation the median defective picture peaks no higher than where the scale begins, "
            f"{_floor(audit)} ({join_words(flat)}). Such a map shows only which cells exceed that."
        )


def _no_calmer_maps(audit: Audit, serious: Limits, others: Limits) -> None:
    no_calmer = []
    for split in audit.tests:
        normal, defective = audit.calm(split, 0), audit.calm(split, 1)
        rows = audit.rows(split)
        apart = not stats.share_parts(rows[rows["label"] == 0], rows[rows["label"] == 1])
        if stats.difference(normal, defective, independent=apart).low <= 0:
            no_calmer.append(f"on {split} on {of_count(defective)} defective and {of_count(normal)} normal pictures")
    if no_calmer:
        serious["CAM not shown to be calmer on normal parts"] = (
            f"On the absolute scale the CAM finds nothing {join_words(no_calmer)}: that it tells them apart is not "
            "shown, because the interval of the difference includes 0 or lies below it."
        )


def _counterfactual(audit: Audit, serious: Limits, others: Limits) -> None:
    if "cf_flip_rate" not in audit.scores[audit.main]:
        others["No counterfactual"] = (
            f"Strategy {audit.settings.strategy} as trained has no counterfactual. That a map lies on the defect does "
            "not show that the decision would change without it."
        )
    elif audit.settings.suppression == "learned":
        others["Learned counterfactual"] = (
            "The suppression was trained to turn the verdict, and it is done in features, not in the picture. Flips "
            "are evidence only as far as the control does not flip."
        )


def _random_teacher(audit: Audit, serious: Limits, others: Limits) -> None:
    parts = {"makes the masks of the attention": str(audit.metrics.get("teacher", ""))}
    if audit.novelty is not None:
        parts["flags novel pictures"] = audit.novelty.teacher
    if random := [part for part, teacher in parts.items() if teacher.startswith("random")]:
        others["Random teacher"] = (
            f"The EfficientAD run that {join_words(random)} had a random, untrained teacher. That is not the paper's "
            "method: what it finds and misses says little about EfficientAD."
        )


def _one_seed(audit: Audit, serious: Limits, others: Limits) -> None:
    others["One seed"] = (
        f"This is one training (seed {audit.settings.seed}). The intervals say how numbers would vary with other test "
        "pictures, not with another training."
    )


OF_THE_MODEL = (
    _oracle_masks, _random_weights, _one_answer, _chance, _worse_when_shifted, _wrong_reason, _flips_like_the_control,
    _maps_that_do_not_separate, _no_calmer_maps, _counterfactual, _random_teacher, _one_seed,
)  # fmt: skip


def _of_the_map(audit: Audit, serious: Limits, others: Limits) -> None:
    """As an explanation of the decision, whether or not it lies on the defects."""
    measured = audit.faithfulness
    if measured is None:
        stale = audit.stale["faithfulness"]
        why = "it was measured for other predictions" if stale else "it takes the model and minutes"
        others["Faithfulness of the map not measured"] = (
            "That the map lies on a defect does not show that the decision rests on what it marks. Faithfulness of the "
            f"map was not measured ({why}); gainmtl report RUN --faithfulness does."
        )
        return
    if short := verdicts_in_words(measured, but=faithfulness.FAITHFUL):
        worse = any(verdict in short for verdict in (faithfulness.NOT_DISTINGUISHABLE, faithfulness.WORSE))
        (serious if worse else others)["Map not shown to be faithful"] = (
            f"On {plural(len(measured['pictures']), 'found defect')} of {measured['split']}, {short}. "
            "That the decision rests on what the map marks is not shown there."
        )
    check = measured["randomisation"]
    if check["verdict"] != faithfulness.DEPENDS_ON_WEIGHTS:
        serious["Map not shown to depend on the weights"] = (
            f"With all weights shuffled: {check['verdict']} (rank correlation with the trained model's map "
            f"{number(check['similarity'])}, the same from {check['level']:g})."
        )


def _of_the_data(audit: Audit, serious: Limits, others: Limits) -> None:
    """That the run was trained, chosen and tested on."""
    choice = audit.choice
    if audit.settings.dataset_type == "synthetic":
        serious["Synthetic data"] = "Pictures and defects are drawn by a program. Nothing here is about real parts."
    if "val" not in audit.scores:
        serious["No validation split"] = (
            f"The threshold {number(audit.metrics['threshold'])} was not chosen on validation. A threshold for a "
            "required recall and an absolute scale of the maps cannot be given: neither is ever chosen on test."
        )
    defects = audit.table[(audit.table["label"] == 1) & (audit.table["split"] != "val")]
    bare = int(defects["cam_iou"].isna().sum())
    if bare and bare == len(defects):
        serious["No masks"] = "No test defect has a mask: whether the model looks at the defects was not measured."
    elif bare:
        others["Defects without masks"] = f"{bare} of {len(defects)} test defects have no mask: no map is scored there."
    labels = {split: audit.rows(split)["label"] for split in audit.tests}
    if absent := [
        f"{split} holds no {'normal' if found.iloc[0] else 'defective'} picture"
        for split, found in labels.items()
        if found.nunique() == 1
    ]:
        serious["A class is missing"] = f"Ranking cannot be judged: {join_words(absent)}."
    if "val" in audit.scores and not choice.enough:
        why = "That no defect is ever missed cannot be shown by any number of pictures"
        if choice.needed is not None:
            why = f"A recall of {percent(choice.required)} allows one miss in {choice.needed} defects"
        others["Too few validation defects for the required recall"] = (
            f"{why}; validation holds {choice.defects}. What recall the threshold for it has is not known beforehand."
        )
    if wide := [
        f"{interval(recall)} on {split} ({recall.count} defects)"
        for split, recall in _on_tests(audit, "recall")
        if recall.high - recall.low > WIDE_INTERVAL
    ]:
        others["Few test defects"] = f"Recall is known only roughly: {join_words(wide)}."
    if "test_shift" not in audit.scores:
        others["No shifted split"] = (
            "All test pictures come from where the training pictures come from. Whether the model follows a shortcut "
            "that goes with the label only there (lighting, a fixture, a mark) was not tested."
        )
    annotated, trained = (audit.manifest.get(name, 0) for name in ("train_annotated", "train_defective"))
    if annotated < trained and audit.settings.strategy != "S1":
        others["Training masks are incomplete"] = (
            f"{annotated} of {trained} defective training pictures have a mask; only they guided the maps."
        )
    if (grid := audit.score("grid_iou").value) < COARSE_GRID_IOU:
        others["Coarse maps"] = (
            f"On the CAM's grid (stride {audit.settings.map_stride}) the masks themselves reach an IoU of "
            f"{number(grid)}; CAM-IoU can hardly be higher, however well the model looks."
        )
    if not audit.groups_known:
        others["Parts unknown"] = (
            "Each picture counts as a part of its own. Where several show one part, they may lie in both training and "
            "test, and the intervals are too narrow; the parameter group_pattern tells parts by file name."
        )
