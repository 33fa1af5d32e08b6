"""The audit of an evaluated run: numbers counted by hand, every limit, and the report as a reader sees it."""

import hashlib
import json
import math
import re
from base64 import b64decode
from copy import copy
from html import unescape

import cv2
import numpy as np
import pandas as pd
import pytest
from audited import MANIFEST, row, spread, table_of, write_audited
from browsed import TEACHER, rewrite, write_novelty
from click.testing import CliRunner

from gainmtl_lib.audit.limits import known_limits, marks
from gainmtl_lib.audit.numbers import NOT_ANNOTATED, Audit, choose_for_recall, defect_rows, explanation_rows
from gainmtl_lib.audit.report import SHOWN, SIDE, galleries, trade_off_figure, write_report
from gainmtl_lib.cli import main
from gainmtl_lib.efficientad.evaluate import Novelty
from gainmtl_lib.figures import OUTLINE
from gainmtl_lib.findings import DataError
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.runs import FileError, RunError, load_run
from gainmtl_lib.stats import Estimate

BARE = dict.fromkeys(("defect_area", "cam_iou", "grid_iou", "point_game", "energy_inside"), np.nan) | {"mask": None}
FLIPS = {"cf_probability": 0.1, "cf_control_probability": 0.9}


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Few resamples, and no figures where the test is not of them."""
    monkeypatch.setattr("gainmtl_lib.stats.RESAMPLES", 50)
    if "one_file" not in request.node.name:
        drawn = dict.fromkeys(("classification", "trade_off"), "data:image/svg+xml;base64,")
        monkeypatch.setattr("gainmtl_lib.audit.report.report_figures", lambda audit: drawn)


def audit_of(folder, rows, *, recall=0.9, **values):
    return Audit(load_run(write_audited(folder, rows, **values)), required_recall=recall)


def measured(**values):
    """What `measure_faithfulness` stores of a faithful map: `predictions`, `randomisation`, or a measure's verdict."""
    found = {"ours": 0.4, "random": 0.2, "reversed": 0.1, "gain": 0.2, "low": 0.1, "high": 0.3}
    told = {name: found | {"verdict": values.get(name, "faithful")} for name in ("deletion", "insertion", "road")}
    head = {"similarity": 0.6, "spearman": 0.5, "ssim": 0.7, "probability_change": 0.2, "verdicts_changed": 0.25}
    check = {"parts": {"deciding head": head}, "similarity": 0.125, "level": 0.5,
             "verdict": "depends on the learnt weights"}  # fmt: skip
    return {
        "predictions": values.get("predictions", ""), "split": "test", "found": 3, "pictures": ["a.png", "b.png"],
        "settings": {"limit": 24, "steps": 16, "road_fractions": [0.1, 0.5], "draws": 3, "seed": 0},
        "map": {"pictures": 2, "parts": 2, "probability": 0.9, "baseline_probability": 0.1, **told},
        "randomisation": check | values.get("randomisation", {}),
    }  # fmt: skip


def plain(text):
    return text.replace("\u00a0", " ")


def counted(*shares):
    return [(share.hits, share.count) for share in shares]


def test_defects_by_type_and_by_size(tmp_path):
    rows = [row("val", 1, 0.9, defect_area=area) for area in (0.01, 0.02, 0.03, 0.04)]
    rows += [row("test", 1, 0.9, defect_type="hole", defect_area=0.01, cam_iou=0.2, grid_iou=0.4)]
    rows += [row("test", 1, 0.1, defect_type="hole", defect_area=0.02, cam_iou=0.4, grid_iou=0.6)]
    rows += [row("test", 1, 0.8, defect_type="긁힘", defect_area=0.2, cam_iou=0.0, point_game=0.0)]
    rows += [row("test", 1, 0.7, defect_type="긁힘", **BARE), row("test", 0, 0.9)]
    found = audit_of(tmp_path, rows)
    assert found.bins[0] == "val" and found.bins[1:] == pytest.approx((0.02, 0.03))
    hole, scratch = found.defects["test"]["by type"]
    assert (hole["name"], *counted(hole["recall"], hole["wrong_reason"])) == ("hole", (1, 2), (0, 1))
    assert (scratch["name"], *counted(scratch["recall"], scratch["wrong_reason"])) == ("긁힘", (2, 2), (1, 1))
    assert hole["cam_iou"].value == pytest.approx(0.3) and hole["grid_iou"] == pytest.approx(0.5)
    small, large, unknown = found.defects["test"]["by size"]  # sizes that do not occur are left out
    [medium] = defect_rows(table_of([row("test", 1, 0.9, defect_area=0.025)]), found.bins)["by size"]
    sizes = ["small (up to 2 %)", "medium (2 to 3 %)", "large (over 3 %)"]
    assert [plain(r["name"]) for r in (small, medium, large)] == sizes
    assert [r["recall"].count for r in (small, large, unknown)] == [2, 1, 1]  # a size belongs to the bin it bounds
    assert unknown["name"] == NOT_ANNOTATED and unknown["wrong_reason"].count == 0
    assert list(audit_of(tmp_path / "few", rows[4:6]).defects["test"]) == ["by type"]  # too few for terciles


def recalled(required, defects=1):
    return choose_for_recall(np.ones(defects, int), np.full(defects, 0.4), required)


def test_the_highest_threshold_that_finds_enough_lies_midway_and_how_many_defects_it_takes():
    labels, scores = np.array([1, 1, 1, 1, 0, 0, 0]), np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.2, 0.1])
    for required, threshold in ((0.25, 0.85), (0.5, 0.75), (0.51, 0.45), (0.75, 0.45), (0.76, 0.25), (1.0, 0.25)):
        choice = choose_for_recall(labels, scores, required)
        assert choice.threshold == pytest.approx(threshold) and choice.defects == 4
    # 0.07 * 100 is 7.000000000000001: the seventh of a hundred, not the eighth
    assert choose_for_recall(np.ones(100, int), np.linspace(0.01, 1, 100), 0.07).threshold == pytest.approx(0.935)
    assert choose_for_recall(np.zeros(3, int), np.arange(3) / 3, 0.9)[:3] == (0.9, None, 0)
    needed = [recalled(recall).needed for recall in (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)]
    assert needed == [2, 10, 20, 100, 1000, None] and recalled(1.0).threshold == pytest.approx(0.2)
    assert recalled(0.9, 10).enough and not recalled(0.9, 9).enough and not recalled(1.0, 10**6).enough
    assert [recalled(recall).to_show for recall in (0.99, 0.9, 1.0)] == [299, 29, None]  # 0.99^299 = 0.0496


def test_the_recall_is_chosen_on_validation_alone_calm_is_on_the_absolute_scale_and_test_shift_loses(tmp_path):
    peaks = [2.0] * 10 + [0.5] * 10 + [2.0, 0.9, 1.1] + [0.5, 3.0] + [0.0] * 2
    rows = spread("val", 1, 0.46, 0.95, 10) + spread("val", 0, 0.05, 0.44, 10)  # ask for 0.45; the run decides at 0.5
    rows += [row("test", label, p) for label, p in ((1, 0.9), (1, 0.48), (1, 0.1), (0, 0.47), (0, 0.2))]
    grouped = [entry | {"group": "tile1"} for entry in rows[:2]] + [dict(entry) for entry in rows[2:]]
    rows += [row("test_shift", 1, 0.9), row("test_shift", 0, 0.9)]
    found = audit_of(tmp_path / "a", rows, peaks=peaks, recall=1.0, metrics={"threshold": 0.3})
    assert (found.splits, found.main) == (["val", "test", "test_shift"], "test") and not found.groups_known
    assert counted(*found.chosen["test"].values()) == [(2, 3), (0, 2)]  # escapes, overkill: the stored verdicts count
    assert found.choice.threshold == pytest.approx(0.45)
    assert counted(*found.at_recall["test"].values()) == [(1, 3), (1, 2)]
    assert counted(found.calm("test", 1), found.calm("test", 0), found.calm("val", 0)) == [(1, 3), (1, 2), (10, 10)]
    assert found.drops["overkill"].value == -1 and found.drops["recall"].value == pytest.approx(1 / 3 - 1)
    other = audit_of(tmp_path / "b", [*grouped, *spread("test", 1, 0.0, 0.3, 20)], recall=1.0)
    assert found.choice == other.choice
    assert other.groups_known and other.scores["val"]["accuracy"].groups == 19


def test_explanations_stand_beside_what_costs_no_insight(tmp_path):
    rows = [row("val", 1, 0.9), row("val", 0, 0.1), row("test", 0, 0.6)]
    rows += [row("test", 1, 0.9, attention_iou=0.6, loc_pixel_accuracy=0.97)]
    metrics = {"test": {"TP": 1, "FP": 1, "FN": 0, "TN": 0, "cam_iou_pooled": 0.25, "loc_aupro": None}}
    found = explanation_rows(audit_of(tmp_path, rows, metrics=metrics))
    assert [label for label, *_ in found["attention"]] == ["attention IoU"]
    shown = {label: more for part in ("deciding CAM", "localization") for label, *more in found[part]}
    pooled = shown.pop("CAM-IoU, pooled")[1]
    assert pooled["test"].value == 0.25 and not pooled["test"].has_interval and math.isnan(pooled["val"].value)
    beside = {"CAM-IoU": 0.7, "PointGame": 0.02, "Energy-Inside": 0.02, "pixel accuracy": 0.98}  # no Dice, no AUPRO
    assert {label: besides["test"] for label, (_, _, besides) in shown.items()} == pytest.approx(beside)


def test_escapes_and_overkill_over_the_threshold(tmp_path):
    rows = [row("test", label, p) for label, p in ((1, 0.8), (1, 0.4), (0, 0.4), (0, 0.2))]
    lines = trade_off_figure(audit_of(tmp_path, rows)).axes[0].lines
    escapes, overkill = (line.get_xydata().tolist() for line in lines[:2])
    assert escapes == [[1, 1], [0.8, 0.5], [0.4, 0], [0.2, 0]]  # drawn to the left of each threshold
    assert overkill == [[1, 0], [0.8, 0], [0.4, 0.5], [0.2, 1]]


# --- Limits


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    rows = []
    for split in ("val", "test", "test_shift"):
        pictures = spread(split, 1, 0.45, 0.95, 20, **FLIPS) + spread(split, 0, 0.05, 0.55, 300)
        rows += [entry | {"group": f"{split}{number // 2}"} for number, entry in enumerate(pictures)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gainmtl_lib.stats.RESAMPLES", 200)
        return changed(audit_of(tmp_path_factory.mktemp("sound"), rows), faithfulness=measured())


def changed(audit, *, table=(), metrics=(), test=(), test_shift=(), without="", settings=(), **values):
    """With other rows, metrics, scores of a split, settings or attributes, or `without` a split."""
    audit = copy(audit)
    vars(audit).update(values)
    if table:
        audit.table, audit.found = table_of(list(table)), None
    audit.metrics, audit.settings = audit.metrics | dict(metrics), audit.settings.changed(**dict(settings))
    others = {"test": dict(test), "test_shift": dict(test_shift)}
    audit.scores = {name: scores | others.get(name, {}) for name, scores in audit.scores.items() if name != without}
    audit.splits, audit.tests = list(audit.scores), [name for name in audit.tests if name != without]
    return audit


def limits(audit):
    """Title to text, in their order; "!" stands before those that are serious."""
    serious, others = known_limits(audit)
    return {f"!{title}": text for title, text in serious.items()} | others


ALWAYS = ["Learned counterfactual", "One seed", "Few test defects"]
RATES = {"cf_flip_rate": Estimate(0.9, count=10, hits=9), "cf_control_flip_rate": Estimate(0.8, count=10, hits=8)}
RANDOM = "random (untrained teacher: not the paper's method)"
AUTO = "random (pretrained: auto, but …)"

UNFAITHFUL = measured(road="worse than a random map")
SAME = measured(randomisation={"verdict": "stays the same", "similarity": None})
LOW = {"test": {"auroc": Estimate(0.55, 0.45, 0.65)}, "test_shift": {"auroc": Estimate(0.2, 0.1, 0.3)}}
FALLS = {"test": {"recall": Estimate(0.9, 0.85, 0.95)}, "test_shift": {"recall": Estimate(0.5, 0.4, 0.6, count=20)}}
NO_FLIPS = {"scores": {split: {"recall": Estimate()} for split in ("val", "test", "test_shift")}}
BY_TEACHER = {"novelty": Novelty(pd.DataFrame(), {"teacher": RANDOM}), "metrics": {"teacher": RANDOM}}
SOME_MASKS = {"table": [row("test", 1, 0.9), row("test", 1, 0.9, **BARE), row("val", 1, 0.9, **BARE)]}
ONE_CLASS = {"table": [row("test", 1, 0.9), row("test_shift", 0, 0.9)]}
LIMITS = [  # title, what the run has, words of its sentence
    ("!Oracle masks", {"metrics": {"label_leaks": True}}, "they tell it the label"),
    ("Random weights", {"random_weights": True, "manifest": {"pretrained": "random"}}, "weights: random."),
    ("!Random weights", {"random_weights": True, "manifest": {"pretrained": AUTO}}, f"weights: {AUTO}. Every"),
    ("!One answer for every picture", {"table": [row("test", label, 0.9) for label in (0, 1, 1)]}, "calls all 3 p"),
    ("!Not shown to be above chance", LOW, "AUROC is 0.550 (0.450 to 0.650) on test (as a coin's 0.5 may be) and 0.200 "
     "(0.100 to 0.300) on test_shift (normal pictures score higher"),
    ("!Worse on the shifted split", FALLS, "these fall: recall by 0.400 ("),
    ("!Right for the wrong reason", {"test": {"wrong_reason_rate": Estimate(0.25, 0.1, 0.4, count=40, hits=10)}},
     "In 10 of 40 found defects of test (25 %) the deciding CAM lies off the defect"),
    ("!Not shown to flip more often than the control", {"test": {"cf_excess": Estimate(0.1, -0.1, 0.3)} | RATES},
     "flips 9 of 10 verdicts, suppressing the same area off it 8 of 10"),
    ("!Maps that do not separate", {"scales": {"cam": MapScale(2.0, 1.0), "attention": MapScale(1.0, 2.0)}}, "(cam)."),
    ("!CAM not shown to be calmer on normal parts", {"found": np.zeros(960, bool)},
     "nothing on test on 20 of 20 defective and 300 of 300 normal pictures and on test_shift on 20"),
    ("No counterfactual", NO_FLIPS, "Strategy S5 as trained has no counterfactual"),
    ("Faithfulness of the map not measured", {"faithfulness": None}, "the model and minutes"),
    ("!Map not shown to be faithful", {"faithfulness": UNFAITHFUL}, "On 2 found defects of test, ROAD: worse than a r"),
    ("Map not shown to be faithful", {"faithfulness": measured(road="too few")}, "ROAD: too few."),
    ("!Map not shown to depend on the weights", {"faithfulness": SAME},
     "shuffled: stays the same (rank correlation with the trained model's map –, the same from 0.5"),
    ("Random teacher", BY_TEACHER, "that makes the masks of the attention and flags novel pictures had a random"),
    ("!Synthetic data", {"settings": {"dataset_type": "synthetic"}}, "drawn by"),
    ("!No validation split", {"without": "val"}, "threshold 0.500 was not chosen on validation"),
    ("!No masks", {"table": [row("test", 1, 0.9, **BARE), row("test", 0, 0.1)]}, "No test defect has a mask"),
    ("Defects without masks", SOME_MASKS, "1 of 2 test defects have no mask"),
    ("!A class is missing", ONE_CLASS, "test holds no normal picture and test_shift holds no defective picture."),
    ("Too few validation defects for the required recall", {"choice": recalled(0.99, 20)},
     "99 % allows one miss in 100 defects; validation holds 20."),
    ("Few test defects", FALLS, "roughly: 0.500 (0.400 to 0.600) on test_shift (20 defects)."),
    ("No shifted split", {"without": "test_shift"}, "was not tested"),
    ("Training masks are incomplete", {"manifest": MANIFEST | {"train_annotated": 12}}, "12 of 20 defective training"),
    ("Coarse maps", {"test": {"grid_iou": Estimate(0.37)}}, "masks themselves reach an IoU of 0.370"),
    ("Parts unknown", {"groups_known": False}, "group_pattern"),
]  # fmt: skip


def test_each_limit_is_stated_where_the_run_has_it_and_what_is_unknown_or_chance_is_none(sound):
    for title, change, words in LIMITS:
        assert words in plain(limits(changed(sound, **change))[title]), title
    assert list(limits(sound)) == ALWAYS and marks(sound) == []
    assert list(limits(changed(sound, settings={"counterfactual_mode": "mean"}))) == ALWAYS[1:]
    for change in (
        {"test": {"auroc": Estimate(0.5)}, "test_shift": {"auroc": Estimate()}}, {"found": None},
        {"test": {"wrong_reason_rate": Estimate(0.1, 0.05, 0.2)}}, {"test": {"wrong_reason_rate": Estimate()}},
        {"test": {"cf_excess": Estimate(0.1, 0.01, 0.3)} | RATES}, {"test": {"cf_excess": Estimate()}},
    ):  # fmt: skip
        assert list(limits(changed(sound, **change))) == ALWAYS, change
    leaking = changed(sound, metrics={"label_leaks": True, "teacher": RANDOM}, random_weights=True)
    assert marks(leaking) == ["oracle masks: no results", "masks of a random teacher", "random weights"]


# --- The report


def report_rows():
    found = [row("val", 1, 0.9, **FLIPS), row("val", 1, 0.6, **FLIPS), row("val", 0, 0.1)]
    for split in ("test", "test_shift"):
        found += [row(split, 1, 0.9, **FLIPS), row(split, 1, 0.2), row(split, 0, 0.1), row(split, 0, 0.7)]
        found += [row(split, 1, 0.8, cam_iou=0.0, point_game=0.0, defect_area=0.1, defect_type="찍힘")]
    return found


def words(html):
    return " ".join(plain(unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL))).split())


def text_of(folder, *said, **options):
    text = words(write_report(folder, **options).read_text("utf-8"))
    assert [one for one in said if one not in text] == []
    return text


def test_one_file_that_fetches_nothing_and_answers_every_question(tmp_path):
    folder = write_audited(tmp_path, report_rows(), pictures=True)
    path = write_report(folder)
    assert path == folder / "report.html" and path.stat().st_size < 1_000_000
    html = path.read_text("utf-8")
    assert not re.search(r"<(script|link|iframe|object|embed|base)|https?://|file://|url\(|@import", html)
    sources = re.findall(r'\b(?:src|href|srcset|data|action|poster)="([^"]*)"', html)
    assert all(source.startswith(("data:image/", "#")) for source in sources) and len(sources) > 20
    figures = [b64decode(found) for found in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)]
    assert len(figures) == 2 and all(b"<svg" in figure for figure in figures)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    text_of(
        folder, "hand / S5 / seed 7, trained 2026-01-02 03:04:05 UTC",
        "Strategy S5 (guided attention, localization and counterfactual), backbone s from imagenet:some_weights, on "
        "generic data (40 pictures), seed 7.",
        "p(defect) = 0.500 upwards (validation, logistic fit). Chosen on 3 validation pictures, 2 of them defective;",
        "On test 1 of 3 defects escape: 33.3 % (6.1 % to 79.2 %), and 1 of 2 normal pictures are rejected: 50 % (9.5",
        "The threshold for a recall of 99 %, chosen on validation, is 0.350. On test it reached 66.7 % (1 of 3 defects",
        "normal pictures rejected. Validation has too few defects (2) to know.",
        "at least 100 validation defects; there are 2. To show that recall on test with 95 % confidence takes 299",
        "In 1 of 2 found defects the deciding CAM lies off the defect: 50 % (9.5 % to 90.5 %). CAM-IoU is 0.333; the",
        "to normal in 1 of 1 found defects (100 %), with the same area off the defect suppressed in 0 of 1 (0 %).",
        "flip minus control is 1.000 (−0.587 to 1.000): that suppressing the defect does more than suppressing any",
        "From test to test_shift recall goes from 0.667 to 0.667 (no clear change), overkill goes",
        "known limits below; serious: Right for the wrong reason; Not shown to flip more often than the control.",
        "training pictures 20 normal, 20 defective (20 with a mask)", "digest (SHA-256) ddd", "map grid 4 x 4 cells",
        "best epoch 3 of 100, by validation AP 0.750", "λ in force cls 0.3, am 1, cam_guide 1,", "precision cpu, 32-true", "duration 1:02:03",
        "model.safetensors not there", "찍힘", "mask outlined", "test, right for the wrong reason: 1",
    )  # fmt: skip


def test_what_other_runs_are_told(tmp_path):
    shifted = [pictures for split, low, high in (("test", 0.6, 0.9), ("test_shift", 0.1, 0.4))
               for pictures in spread(split, 1, low, high, 30) + spread(split, 0, 0.1, 0.4, 30)]  # fmt: skip
    few = {"variant": "few", "mask_share": 0.25, "mask_quality": "box", "dataset_type": "synthetic", "split_seed": 3}
    edited = {
        "manifest": {
            "shown": {kind: {"pictures": 120, "edited": 54} for kind in ("normal", "defective")},
            "pretrained": AUTO,
        }
        | {"device": "NVIDIA H100", "devices": 4, "num_nodes": 2, "precision": "16-mixed"}
    }
    provided = {"mask_source": "efficientad", "efficientad_run": "/seed1", "teacher": TEACHER}
    stay = spread("test", 1, 0.9, 0.9, 51, cf_probability=0.9, cf_control_probability=0.9)
    for number, (rows, values, *said) in enumerate((
        (report_rows(), {"strategy": "S7"} | few | edited,
         "training masks 25 % of the defects keep their masks, box edited training pictures 50 % asked for; shown were "
         "54 of 120 normal ones (45 %), 54 of 120 defective ones (45 %) split", "backbone s from random weights",
         "else seed 3, test ratio 0.2 planted shortcut mark, with the label in 95 % of the pictures",
         "device, precision NVIDIA H100 × 8, 16-mixed started"),
        (spread("test", 1, 0.9, 0.9, 12, **FLIPS), {"strategy": "S6", "metrics": provided},
         "1.000 (0.515 to 1.000): that much is due to suppressing",
         f"Attention took its mask from: efficientad, the run /seed1 (teacher: {TEACHER})."),
        ([row("test", 1, 0.9, **FLIPS), *stay], {}, "0.019 (−0.051 to 0.101): that suppressing the defect does more"),
        ([row("test", 1, 0.9, cf_probability=0.1, cf_control_probability=np.nan)], {}, "Without a control the flips say nothing."),
        ([row("test", 1, 0.1, **FLIPS)], {}, "Not answered: no found defect has a mask."),
        (shifted, {"use_counterfactual": False}, "loc 0.2, guide 0.5, consist 0.2 ",
         "From test to test_shift recall falls from 1.000 to 0.000, overkill goes from"),
    )):  # fmt: skip
        text_of(write_audited(tmp_path / str(number), [*rows, row("test", 0, 0.1)], **values), *said)


def test_of_s8_the_map_is_the_decision(tmp_path):
    said = text_of(
        write_audited(tmp_path, report_rows(), strategy="S8", evidence_share=[0.1, 0.5]),
        "S8: the decision is read from a map, the evidence", "its strongest cells (2 or 8, whichever says more), scaled",
        "in mode mean; where the mask", "The scale begins at 0, from where on evidence speaks for a defect.",
    )  # fmt: skip
    assert "Learned counterfactual" not in said and "by construction" not in said
    assert "λ in force cls" in said and "evidence " in said


def test_a_run_with_the_least_in_it(tmp_path):
    metrics = {"map_scales": {}, "threshold_from": "default, no validation split"}
    rows = [row("test", 1, p, **BARE) for p in [0.9] + [0.3] * (SHOWN + 3)] + [row("test", 0, 0.1)]
    folder = write_audited(tmp_path, rows, strategy="S1", metrics=metrics)
    (folder / "manifest.json").write_text('{"status": "complete", "commit": "abc123"}')
    text_of(
        folder, "no absolute scale", "cannot be chosen without validation defects", "not recorded, commit abc123",
        "No threshold for a recall of 100 % can be given", "A recall of 100 % cannot be shown by any number",
        "upwards (default, no validation split).", "Not measured: no defect of test has a mask.",
        "Not asked: strategy S1 as trained has no counterfactual.", "Not tested: the data has no shifted split.",
        "12 pictures could not be read below", "write the report again with --data-root",
        f"missed defects: {SHOWN + 3} ({SHOWN} shown, 3 not shown)", required_recall=1.0,
    )  # fmt: skip
    shifted = text_of(write_audited(tmp_path / "one", [row("val", 0, 0.1), row("test_shift", 0, 0.1)]))
    assert "A class is missing" in shifted and "On test_shift – defects escape" not in shifted


def test_pictures_that_moved_names_from_outside_and_random_weights_beside_every_result(tmp_path):
    named = {"image": "images/test/불량/사진 <1>.png", "mask": "masks/test/불량/사진.png", "defect_type": "<b>R&D</b>"}
    rows = [*report_rows(), row("test", 1, 0.1, **named)]
    folder = write_audited(tmp_path / "then", rows, pictures=True, manifest={"pretrained": "random"})
    (tmp_path / "then" / "data").rename(tmp_path / "now")
    page = tmp_path / "[x].html"
    command = ["report", str(folder), "--output", str(page), "--data-root", str(tmp_path / "now")]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0 and "[x].html" in result.output
    html = page.read_text("utf-8")
    text = words(html)
    assert "mask outlined" in text and named["image"] in text and "not at hand" not in text
    assert f"read from {tmp_path / 'now'} when" in text and str(tmp_path / "then" / "data") in text
    assert "<b>R&D" not in html and "&lt;b&gt;R&amp;D&lt;/b&gt;" in html
    results = set(re.findall(r"<caption>(.*?)</caption>", html, re.DOTALL))
    results -= {"Model", "Data", "Training", "Files of the run (SHA-256)"}
    assert len(results) >= 6 and all('<span class="mark">random weights</span>' in caption for caption in results)
    with pytest.raises(DataError, match="gone: no such folder; data_root is the folder that"):
        write_report(folder, data_root=tmp_path / "gone")


def test_faithfulness_is_shown_as_measured_and_novel_defects_with_what_the_flag_cannot_say(tmp_path):
    folder = write_audited(tmp_path, report_rows())
    digest = hashlib.sha256((folder / "predictions.csv").read_bytes()).hexdigest()
    found = measured(predictions=digest, road="worse than a random map")
    (folder / "faithfulness.json").write_text(json.dumps(found))
    text = text_of(
        folder, "on 2 of 3 found defects of test: deletion and insertion: faithful; ROAD: worse than a random map.",
        "deletion 0.400 0.200 0.200 0.100 to 0.300 faithful", "deciding head 0.600 0.700 0.200 25 %",
        "gainmtl evaluate RUN --efficientad-run FOLDER does.",
    )  # fmt: skip
    assert "little to measure" not in text and "features, not the decision" not in text
    rewrite(folder / "faithfulness.json", '"baseline_probability": 0.1', '"baseline_probability": 0.85')
    rewrite(folder / "faithfulness.json", '"similarity": 0.6', '"similarity": 1.0')
    text_of(folder, "(probability 0.85 and 0.90)", "little to measure", "it shows features, not the decision.")
    write_novelty(load_run(folder), ["test/defective/004", "test/normal/006", "test/defective/007"], unseen=["찍힘"])
    text = text_of(
        folder, "On test EfficientAD flags 1 of 1 escaped defects as novel, and 0 of 1 normal pictures that pass.",
        f"Its teacher: {TEACHER}. Types that no training picture shows: 찍힘 (1 of 1 anomalous).",
        "찍힘 not in training 1 1 (100 %) 1 (100 %) 0 (0 %)",  # found by the verdict
        "normal 2 1 (50 %) 1 (50 %) 0 (0 %)", "scratch 2 1 (50 %) 1 (50 %) 1 (50 %)",
        "It cannot show that the picture has a defect", "anomaly score above 0.500",
    )  # fmt: skip
    assert text.count("called normal, flagged as novel") == 1 and "8 Novel defects random teacher" not in text
    rewrite(folder / "novelty.json", TEACHER, "random (untrained teacher)")
    assert "9 Pictures random teacher" not in text_of(folder, "8 Novel defects random teacher")
    rewrite(folder / "predictions.csv", "0.2,", "0.21,")
    text_of(folder, "Not asked (what is stored is out of date)")


def test_runs_without_a_report(tmp_path):
    folder = write_audited(tmp_path, report_rows())
    for required in (0, 1.01, math.nan):
        with pytest.raises(ValueError, match=r"required_recall must be a share in \(0, 1\], such as 0\.99; got"):
            write_report(folder, required_recall=required)
    for given, error, message in ((tmp_path, RunError, "no run here"), (folder, FileError, ": could not be written")):
        with pytest.raises(error, match=message):
            write_report(given, tmp_path)
    assert not (folder / "report.html").exists()


def pixels(uri):
    return cv2.imdecode(np.frombuffer(b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR_RGB).astype(int)


def test_failures_in_the_order_of_the_error_analysis_small_and_outlined(tmp_path):
    rows = [row("test", 1, p) for p in (0.4, 0.1, 0.3)] + [row("test", 0, p) for p in (0.6, 0.9, 0.1)]
    rows += [row("test", 1, 0.9, cam_iou=0.0, point_game=0.0, energy_inside=e) for e in (0.2, 0.1)]
    run = load_run(write_audited(tmp_path, rows, peaks=[0.5, *[2.0] * 7], pictures=True))
    missed, wrong, alarms = galleries(run, Audit(run), run.settings.data_root)
    assert missed["meaning"] == "defective, called normal; lowest probability first"
    orders = [0.1, 0.3, 0.4], [0.1, 0.2], [0.9, 0.6]
    for gallery, column, order in zip((missed, wrong, alarms), ("probability", "energy_inside", "probability"), orders):
        assert [case["row"][column] for case in gallery["cases"]] == order
    strong, _, calm = missed["cases"]
    assert strong["row"]["finds"] and not calm["row"]["finds"]
    for uri, low, high in ((calm["absolute"], 0, 2), (strong["absolute"], 10, 255), (calm["per_image"], 20, 255)):
        assert low <= (pixels(uri)[67:72, 67:72] @ [1, 0, -1]).mean() <= high  # red less blue; the stretched map glows
    picture = pixels(strong["picture"])
    assert picture.shape == (SIDE, SIDE, 3)
    # The mask is the box from 8 to 24 of 64 and the thumbnail three times as large; the outline lies beside it.
    edge, inside = (np.abs(picture[row, 26:70] - OUTLINE).mean() for row in (20, 48))
    assert edge < 0.75 * inside
