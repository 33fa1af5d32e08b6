"""What a shortcut study says, in sentences that follow from its numbers alone, whatever they are.

Steps compare two strategies over the same cells and seeds, by the paired test of `paired`. Nothing here is chosen by
the outcome but which strategy is called the best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from gainmtl_lib.evaluation.early_warning import BY_CHANCE, MISLED, TOO_FEW, WARNED
from gainmtl_lib.evaluation.shortcut_settings import NO_SHORTCUT
from gainmtl_lib.evaluation.shortcut_summary import GOAL, MARGIN, best_strategy, by_strategy, followed
from gainmtl_lib.evaluation.verdicts import BETTER, NOT_DISTINGUISHABLE, NOT_TESTED, WORSE

MOVED = 0.05
"""CAM-IoU by which a strategy's map must rise to count as moved onto the defect."""
HARDER = 0.05
"""Drop at the control's correlation from which the reversed test is called harder by itself."""

Kept = dict[str, dict[str, float]]
"""By strategy the columns of `by_strategy`."""

ATTENTION, EDITS, BOTH = ("S1", "S3"), ("S5", "S7"), ("S1", "S7")


def conclusion(table: pd.DataFrame, *, shifted: pd.DataFrame, same: pd.DataFrame, warnings: pd.DataFrame) -> list[str]:
    """The study's answer, a sentence or two per question.

    Args:
        table: of `Study.table`.
        shifted: of `study_steps` on ``test_shift``.
        same: likewise on ``test``.
        warnings: of `warnings_table`.
    """
    kept: Kept = by_strategy(table).to_dict("index")  # type: ignore[assignment]
    if not kept:
        return [
            f"No cell with a cue to follow (a correlation above {NO_SHORTCUT:g}) and a test with it reversed has been "
            "finished by every strategy: nothing can be concluded yet."
        ]
    said = [_keeps(kept), _control(table)]
    said += [_effect("Attention supervision alone", ATTENTION, shifted) + _map_moved(kept, shifted)]
    said += [_effect("Image counterfactuals", EDITS, shifted), _effect("The whole of S7", BOTH, shifted)]
    said += [_price(same), _unclear(shifted), _goal(table), *_warned(warnings)]
    return [sentence for sentence in said if sentence]


def _keeps(kept: Kept) -> str:
    best = max(kept, key=lambda name: kept[name]["accuracy_shift"])
    most, least = (extreme(kept, key=lambda name: kept[name]["drop"]) for extreme in (max, min))
    row = kept[best]
    said = (
        f"With a cue to follow, {best} is the most accurate once the cue is reversed: {row['accuracy_shift']:.2f} on "
        f"average and {row['worst_shift']:.2f} at worst, {row['accuracy']:.2f} as in training "
        f"({_count(int(row['runs']), 'run')})."
    )
    if most != best and kept[most]["drop"] > GOAL:
        said += f" {most} loses most: from {kept[most]['accuracy']:.2f} to {kept[most]['accuracy_shift']:.2f}."
    if least != best:
        said += (
            f" {least} loses least ({kept[least]['drop']:.2f}), but is right in {kept[least]['accuracy_shift']:.2f} "
            "of the pictures only."
        )
    return said


def _control(table: pd.DataFrame) -> str:
    drops = table.loc[table["correlation"] <= NO_SHORTCUT, "drop"].dropna()
    if drops.empty:
        return ""
    mean = float(drops.mean())
    if mean >= HARDER:
        return (
            f"Where the cue says nothing about the class, accuracy falls by {mean:.2f} on average all the same: that "
            "part of a drop is not the cue's."
        )
    return (
        f"Where the cue says nothing about the class, accuracy changes by {_signed(-mean)} on average: reversing it "
        "makes little difference by itself."
    )


def _effect(what: str, step: tuple[str, str], steps: pd.DataFrame) -> str:
    """What one step did to the accuracy with the cue reversed; empty where the study lacks it."""
    row = _row(step, steps)
    if row is None:
        return ""
    verdict = {
        BETTER: "helped",
        WORSE: "did harm",
        NOT_DISTINGUISHABLE: "made no difference that can be told from chance",
        NOT_TESTED: "was not tested",
    }[str(row["verdict"])]
    return f"{what} ({'→'.join(step)}) {verdict}: accuracy with the cue reversed {_number(row)}."


def _map_moved(kept: Kept, steps: pd.DataFrame) -> str:
    """Whether the better picture came with a better reason; empty where the study lacks one of both."""
    row = _row(ATTENTION, steps)
    if row is None or not set(ATTENTION) <= set(kept):
        return ""
    before, after = (kept[name]["cam_iou"] for name in ATTENTION)
    told, helped = f"CAM-IoU {before:.2f} → {after:.2f}", row["verdict"] == BETTER
    if row["verdict"] == NOT_TESTED and after - before >= MOVED:
        return f" The map moved onto the defect ({told})."
    if after - before >= MOVED:
        return (
            f" The map moved onto the defect with it ({told})."
            if helped
            else f" Yet the map moved onto the defect ({told}): a better picture is no proof of a better reason."
        )
    return "" if helped or after != after or before != before else f" Nor did it move the map onto the defect ({told})."


def _price(steps: pd.DataFrame) -> str:
    row = _row(BOTH, steps)
    if row is None:
        return ""
    verdict = {
        BETTER: "S7 is also more accurate",
        WORSE: "S7 pays for it",
        NOT_DISTINGUISHABLE: "S7's accuracy is not distinguishable from S1's",
        NOT_TESTED: "the accuracies of S7 and S1 were not tested",
    }[str(row["verdict"])]
    return f"On the distribution of the training {verdict}: {_number(row)}."


def _unclear(steps: pd.DataFrame) -> str:
    """Steps from S1 that the sentences above do not name, and that so few runs cannot decide."""
    named = {"→".join(step) for step in (ATTENTION, BOTH)}
    names = [
        row["step"].split("→")[1]
        for row in steps.to_dict("records")
        if row["verdict"] == NOT_DISTINGUISHABLE and row["step"].startswith("S1→") and row["step"] not in named
    ]
    return f"Not distinguishable from S1 with the cue reversed, with so few runs: {', '.join(names)}." if names else ""


def _goal(table: pd.DataFrame) -> str:
    best = best_strategy(table)
    rows = followed(table)
    rows = rows[rows["strategy"] == best]
    missed = rows[rows["drop"] > GOAL + MARGIN]
    head = f"The goal, at most {GOAL * 100:.0f} points of accuracy lost by the best strategy ({best}), is "
    if missed.empty:
        return f"{head}met in {len(rows)} of {_count(len(rows), 'run')}."
    several = len(set(rows["seed"])) > 1
    names = [
        f"{row['cue']} {row['correlation']:g}"
        + (f" seed {row['seed']}" if several else "")
        + f" ({row['accuracy']:.2f} to {row['accuracy_shift']:.2f})"
        for row in missed.to_dict("records")
    ]
    return f"{head}missed in {len(missed)} of {_count(len(rows), 'run')}: {', '.join(names)}."


def _warned(warnings: pd.DataFrame) -> Iterator[str]:
    known = [row for row in warnings.to_dict("records") if row["rank_correlation"] == row["rank_correlation"]]
    judged = [row for row in known if row["verdict"] != TOO_FEW]
    if not judged:
        if known:
            yield (
                f"Which indicator warns cannot be said from {_count(max(row['runs'] for row in known), 'run')} in "
                f"{_count(max(row['cells'] for row in known), 'cell')}; the highest rank correlation with the drop is "
                f"{_ranked(known[0])}."
            )
        return
    warned, misled = ([_ranked(row) for row in judged if row["verdict"] == word] for word in (WARNED, MISLED))
    chance = [
        f"{row['indicator']} ({_signed(row['rank_correlation'], 2)})" for row in judged if row["verdict"] == BY_CHANCE
    ]
    if warned:
        others = f"; so would {', '.join(warned[1:])}" if len(warned) > 1 else ""
        yield f"Without a shifted test set, {warned[0]} would have warned best{others}."
    else:
        yield "Without a shifted test set, no indicator can be shown to have warned."
    if misled:
        yield f"Misleading, because runs that look better by it lost more: {', '.join(misled)}."
    if chance:
        yield f"Not distinguishable from chance (rank correlation): {', '.join(chance)}."


def _ranked(row: Mapping[Any, Any]) -> str:
    """``energy on the cue (0.81, 0.60 to 0.93, 16 runs)``."""
    ends = "" if row["low"] != row["low"] else f", {_signed(row['low'], 2)} to {_signed(row['high'], 2)}"
    return f"{row['indicator']} ({_signed(row['rank_correlation'], 2)}{ends}, {_count(int(row['runs']), 'run')})"


def _row(step: tuple[str, str], steps: pd.DataFrame) -> Mapping[Any, Any] | None:
    rows = [row for row in steps.to_dict("records") if row["step"] == "→".join(step)]
    return rows[0] if rows and rows[0]["difference"] == rows[0]["difference"] else None


def _number(row: Mapping[Any, Any]) -> str:
    """Difference, interval and what it rests on."""
    number = _signed(row["difference"])
    if row["low"] == row["low"]:
        low, high = max(row["low"], -1), min(row["high"], 1)  # accuracies differ by no more
        # The interval is of this step alone, the verdict of all steps together: both numbers are told.
        return (
            f"{number} (95 % interval {_signed(low)} to {_signed(high)}; {_count(int(row['seeds']), 'pair')} of runs; "
            f"p {_p(row['p_holm'])} with Holm's correction over the steps)"
        )
    if row["drawn_low"] != row["drawn_low"]:
        return f"{number} (one training each)"
    ends = f"{_signed(row['drawn_low'])} to {_signed(row['drawn_high'])}"
    return f"{number} ({ends} over other pictures; one training each, so that other seeds are unknown)"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _signed(value: float, digits: int = 3) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # no minus zero


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
