"""Limits that lie in the data that a run was trained, chosen and tested on: a rule each."""

from __future__ import annotations

from gainmtl_lib.explain.audit_report.evidence import Evidence, Limit, Rule
from gainmtl_lib.explain.audit_report.wording import SPLITS, interval, join_words, percent, rounded, sentence

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
