"""The tables of a plan's finished runs: one row per run, per row of the plan, and per step with its verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from gainmtl_lib.dataset import Batch
from gainmtl_lib.edits.counterfactuals import cue_left
from gainmtl_lib.figures import SPLIT_NAMES, save_figure
from gainmtl_lib.losses import GainLoss
from gainmtl_lib.model import build_model
from gainmtl_lib.runs import COLUMNS, RunError, atomic_path
from gainmtl_lib.settings import Settings, SettingsError
from gainmtl_lib.stats import BETTER, NOT_DISTINGUISHABLE, NOT_TESTED, WORSE, rows_table, steps_table
from gainmtl_lib.studies.plans import FailedRun, Plan, PlannedRun, finished_runs, run_plan, split_tables
from gainmtl_lib.train import inference_autocast
from gainmtl_lib.wording import frame_table, markdown_table

SPLITS = ("test", "test_shift")
FAMILIES = (
    ("test", "accuracy"),
    ("test", "auroc"),
    ("test", "cam_iou"),
    ("test", "cf_excess"),
    ("test_shift", "accuracy"),
    ("test_shift", "auroc"),
)
"""Split and metric of each family of steps; the correction is for the number of steps within one."""

METRIC_NAMES = COLUMNS | {"cf_excess": "flip − control flip"}
WITH_INTERVAL = ("accuracy", "auroc", "cam_iou")
CAM_COMPANIONS = ("grid_iou", "cf_flip_rate", "cf_control_flip_rate")
"""Shown beside them on the test split, without intervals."""


def runs_table(runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """One row per run and test split: ``row``, ``strategy``, ``seed``, ``split`` and the metrics of `COLUMNS`."""
    lines = []
    for planned in runs:
        metrics = planned.run.metrics
        place = {"row": planned.row, "strategy": planned.run.settings.strategy, "seed": planned.seed}
        for split in SPLITS:
            if split in metrics:
                values = {name: metrics[split].get(name) for name in COLUMNS}
                lines.append(place | {"split": split} | values)
    return pd.DataFrame(lines, columns=["row", "strategy", "seed", "split", *COLUMNS])


def rows_of_study(runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """`rows_table` of every split and metric that is shown, with columns ``split`` and ``metric`` before its own."""
    parts = []
    for split in SPLITS:
        tables = split_tables(runs, split)
        names = WITH_INTERVAL + CAM_COMPANIONS if split == "test" else ("accuracy", "auroc")
        parts += [rows_table(tables, name).assign(split=split, metric=name) for name in names if tables]
    return _led_by(parts, ["split", "metric"])


def steps_of_study(runs: Sequence[PlannedRun], steps: Iterable[Sequence[str]]) -> pd.DataFrame:
    """`steps_table` of every family, with columns ``split`` and ``metric`` before its own."""
    pairs = list(steps)
    parts = []
    tables = {split: split_tables(runs, split) for split in SPLITS}
    for split, metric in FAMILIES if pairs else ():
        if tables[split]:
            parts.append(steps_table(tables[split], pairs, metric).assign(split=split, metric=metric))
    return _led_by(parts, ["split", "metric"])


SCORES = {
    "accuracy": ("accuracy", "test"),
    "accuracy_shift": ("accuracy", "test_shift"),
    "cam_iou": ("cam_iou", "test"),
}
"""Of a row, in the tables of single studies: column to metric and split."""


def scores_of_rows(runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """What each row reaches, over its seeds.

    Returns:
        Index ``row``, in the order of the runs; of each name of `SCORES` whose split the data has, its mean over seeds
        and the interval ``<name>_low``, ``<name>_high`` over other pictures; ``seeds``, how many there are.
    """
    counts = pd.Series([run.row for run in runs]).value_counts(sort=False)
    table = pd.DataFrame(index=pd.Index(counts.index, name="row"))
    for name, (metric, split) in SCORES.items():
        tables = split_tables(runs, split)
        if tables:
            scores = rows_table(tables, metric).set_index("row")
            table[name], table[f"{name}_low"], table[f"{name}_high"] = scores["mean"], scores["low"], scores["high"]
    return table.assign(seeds=counts)


def readable_rows(rows: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split as text: ``0.912 [0.874, 0.943]`` with an interval, a dash for no answer.

    Args:
        rows: of `rows_of_study`.
        split: ``test`` or ``test_shift``.
    """
    part = rows[rows["split"] == split]
    columns = {}
    for metric, lines in part.groupby("metric", sort=False):
        with_interval = metric in WITH_INTERVAL
        columns[METRIC_NAMES[str(metric)]] = pd.Series(
            [_with_interval(*ends) if with_interval else _three(ends[0]) for ends in _ends(lines, "mean")],
            index=lines["row"],
        )
    table = pd.DataFrame(columns)
    table["seeds"] = part[part["metric"] == "accuracy"].set_index("row")["seeds"]
    return table.rename_axis("row")


def readable_steps(steps: pd.DataFrame, split: str, metric: str) -> pd.DataFrame:
    """One family of steps as text.

    Args:
        steps: of `steps_of_study`.
        split, metric: one of `FAMILIES`.
    """
    part = steps[(steps["split"] == split) & (steps["metric"] == metric)]
    table = pd.DataFrame({"change": [signed_interval(*ends) for ends in _ends(part, "difference")]})
    table["p, Holm"] = ["< 0.001" if p < 0.0005 else _three(p) for p in part["p_holm"]]
    table["verdict"] = part["verdict"].to_list()
    table["seeds"] = part["seeds"].to_list()
    return table.set_axis(pd.Index(part["step"], name="step"))


def signed_interval(value: float, low: float, high: float) -> str:
    """``+0.021 [−0.004, +0.046]``; without an interval (NaN) the number alone, without a number a dash."""
    if np.isnan(value):
        return "–"
    first, *ends = (f"{number:+.3f}".replace("-", "−") for number in (value, low, high))
    return first if np.isnan(low) else f"{first} [{', '.join(ends)}]"


def _led_by(parts: list[pd.DataFrame], first: list[str]) -> pd.DataFrame:
    if not parts:
        return pd.DataFrame(columns=first)
    table = pd.concat(parts, ignore_index=True)
    return table[[*first, *(name for name in table if name not in first)]]


def _ends(lines: pd.DataFrame, value: str) -> list[tuple[float, float, float]]:
    return [tuple(map(float, ends)) for ends in lines[[value, "low", "high"]].to_numpy()]  # type: ignore[misc]


def _three(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _with_interval(value: float, low: float, high: float) -> str:
    return _three(value) if np.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


# --- What masks are worth


QUALITY_NAMES = {"box": "boxes", "dilated": "dilated masks", "shifted": "shifted masks"}


def kind_of(settings: Settings) -> str:
    """A run's annotation in words: ``no masks``, ``5 % of the masks``, ``all masks``, ``boxes``, …"""
    share, quality = settings.mask_share, settings.mask_quality
    if share == 0:
        return "no masks"
    name = "masks" if quality == "exact" else QUALITY_NAMES[quality]
    if share == 1:
        return "all masks" if quality == "exact" else name
    return f"{100 * share:g} % of the {name}"


def annotation_table(runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """One row per kind of annotation and strategy: few masks to all of them, then worse ones.

    Returns:
        Index ``row``; ``kind``, ``strategy``, and the columns of `scores_of_rows`.
    """
    settings = {run.row: run.run.settings for run in runs}
    order = sorted(settings, key=lambda row: _place(settings[row]))
    table = scores_of_rows(runs).loc[order]
    table.insert(0, "kind", [kind_of(settings[row]) for row in order])
    table.insert(1, "strategy", [settings[row].strategy for row in order])
    return table


def _place(settings: Settings) -> tuple[int, float, str]:
    qualities = ["exact", *QUALITY_NAMES]
    return qualities.index(settings.mask_quality) if settings.mask_share else 0, settings.mask_share, settings.strategy


# --- How many pictures to edit


def edited_share_table(runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """One row per share of edited training pictures, from few to many.

    Returns:
        Index ``share``; ``cue_left`` (see there), ``strategy``, and the columns of `scores_of_rows`.

    Raises:
        SettingsError: two rows have the same share.
    """
    rows: dict[float, PlannedRun] = {}
    for run in runs:
        share = run.run.settings.image_counterfactual
        if rows.setdefault(share, run).row != run.row:
            raise SettingsError(
                f"rows {rows[share].row!r} and {run.row!r} both have image_counterfactual {share:g}; keep one"
            )
    shares = sorted(rows)
    table = scores_of_rows(runs).loc[[rows[share].row for share in shares]].set_axis(pd.Index(shares, name="share"))
    table.insert(0, "cue_left", [cue_left(share) for share in shares])
    table.insert(1, "strategy", [rows[share].run.settings.strategy for share in shares])
    return table


# --- How fine the map should be


QUALITY = {"cam_iou": "CAM-IoU", "accuracy": "accuracy"}
"""What a recommended stride must not be worse in."""
RULE = (
    "the coarsest stride whose CAM-IoU is not worse than that of the stride with the highest, and whose accuracy is "
    "not worse than that of the stride with the highest (paired over seeds, Holm-corrected, level 0.05, split test)"
)


def map_stride_table(runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """What each stride brings on the test split and what its training costs, means over seeds.

    Returns:
        Index ``stride``, coarse to fine; ``accuracy``, ``cam_iou`` and ``attention_iou`` with their intervals in
        ``<name>_low`` and ``<name>_high``, ``grid_iou``, ``seconds`` of training, ``megabytes`` of activations
        (`activation_bytes`), ``time_ratio`` and ``memory_ratio`` to the coarsest stride, ``seeds``.
    """
    strides = _strides(runs)
    tables = {stride: split_tables([run for run in runs if run.row == row], "test") for stride, row in strides.items()}
    by_row = {row: seeds for one in tables.values() for row, seeds in one.items()}
    columns: dict[str, pd.Series] = {}
    for name in ("accuracy", "cam_iou", "attention_iou", "grid_iou"):
        scores = rows_table(by_row, name).set_index("row")
        ends = {} if name == "grid_iou" else {f"{name}_low": scores["low"], f"{name}_high": scores["high"]}
        columns |= {name: scores["mean"]} | ends
    table = pd.DataFrame(columns)
    table["seconds"] = pd.Series(_mean_seconds(runs))
    first = {run.row: run.run.settings for run in reversed(runs)}
    table["megabytes"] = pd.Series({row: activation_bytes(settings) / 1e6 for row, settings in first.items()})
    table["seeds"] = pd.Series({row: len(seeds) for row, seeds in by_row.items()})
    table = table.loc[list(strides.values())].set_axis(pd.Index(list(strides), name="stride"))
    table["time_ratio"] = table["seconds"] / table["seconds"].iloc[0]
    table["memory_ratio"] = table["megabytes"] / table["megabytes"].iloc[0]
    return table


def recommended_stride(tables: Mapping[int, Mapping[int, pd.DataFrame]]) -> tuple[int | None, str]:
    """The stride that `RULE` picks, and a sentence that says why.

    Args:
        tables: predictions of the test split by stride and seed, at least one stride.

    Returns:
        None where no stride holds both, or where some have no answer or could not be tested (one seed).
    """
    worse: dict[int, list[str]] = {stride: [] for stride in tables}
    for metric, name in QUALITY.items():
        unknown, verdicts, best = _verdicts_against_best(tables, metric)
        if unknown:
            return None, f"No stride is recommended: {name} {unknown}."
        for stride in (stride for stride, found in verdicts.items() if found == WORSE):
            worse[stride].append(f"its {name} is worse than at stride {best}")
    chosen = max((stride for stride in tables if not worse[stride]), default=None)
    words = f"Recommended map_stride: {chosen}" if chosen else "No stride is recommended"
    ruled_out = "; ".join(f"stride {stride}: {' and '.join(why)}" for stride, why in worse.items() if why)
    return chosen, f"{words} ({RULE})." + (f" Ruled out: {ruled_out}." if ruled_out else "")


def _verdicts_against_best(
    tables: Mapping[int, Mapping[int, pd.DataFrame]], metric: str
) -> tuple[str, dict[int, str], int]:
    """Why there is no answer (empty where there is), the verdict of every other stride against the one with the
    highest mean, and that one."""
    rows = {str(stride): seeds for stride, seeds in tables.items()}
    means = rows_table(rows, metric).set_index("row")["mean"]
    if means.isna().any():
        return f"has no answer at {', '.join(means.index[means.isna()])}", {}, 0
    best = str(means.idxmax())
    found = steps_table(rows, [(best, row) for row in rows if row != best], metric)
    untested = found[found["verdict"] == NOT_TESTED]
    why = [f"{step} ({note or 'no seed in common'})" for step, note in zip(untested["step"], untested["note"])]
    unknown = f"was not tested: {', '.join(why)}" if why else ""
    others = (int(row) for row in rows if row != best)
    return unknown, dict(zip(others, found["verdict"])), int(best)


def stride_tables(runs: Sequence[PlannedRun]) -> dict[int, dict[int, pd.DataFrame]]:
    """Predictions of the test split by stride, coarse to fine, and seed."""
    tables = split_tables(runs, "test")
    return {stride: tables[row] for stride, row in _strides(runs).items() if row in tables}


def activation_bytes(settings: Settings) -> int:
    """What one training step keeps of a batch's pictures for its backward pass, in bytes.

    Twice the batch keeps as much more: what does not grow with it, such as autocast's copies of the weights, drops out
    of the difference. All loss terms are in force, half of the batch is defective and annotated. The peak memory of a
    process would not do: it never falls, and strides trained one after another share it.
    """
    once, twice = (_kept_bytes(settings.changed(batch_size=size * settings.batch_size)) for size in (1, 2))
    return twice - once


def _kept_bytes(settings: Settings) -> int:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(settings.changed(mask_source="localization", external_mask_dir=None), pretrained=False)
        model.train()
        loss = GainLoss(focal_gamma=settings.focal_gamma, focal_alpha=0.5, cam_guide_target=settings.cam_guide_target)
        batch = _random_batch(settings)

        def step() -> Tensor:
            with inference_autocast(settings.precision, torch.device("cpu")):
                given = {"attention_masks": batch.masks} if settings.strategy == "S6" else {}
                output = model(batch.images, batch.masks if settings.weights["cf"] > 0 else None, **given)
                return loss(output, batch, settings.weights)["total"]

        return saved_bytes(step, besides=[*model.parameters(), *model.buffers(), *loss.parameters(), *batch])


def saved_bytes(compute: Callable[[], Tensor], *, besides: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages that autograd saves while `compute` runs.

    Args:
        compute: returns the end of the graph, which keeps the storages alive while they are counted.
        besides: tensors whose storages do not count.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in besides}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is given out twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        end = compute()
    del end
    return sum(storage.nbytes() for storage in kept.values())


def _random_batch(settings: Settings) -> Batch:
    size, (height, width) = settings.batch_size, settings.image_size
    labels = torch.arange(size) % 2
    masks = torch.zeros(size, 1, height, width)
    masks[labels == 1, :, height // 4 : height // 2, width // 4 : width // 2] = 1
    return Batch(torch.rand(size, 3, height, width), labels, masks, labels == 1, torch.arange(size))


def _strides(runs: Sequence[PlannedRun]) -> dict[int, str]:
    """Row of each stride, coarse to fine.

    Raises:
        SettingsError: two rows have the same stride.
    """
    strides: dict[int, str] = {}
    for run in runs:
        stride = run.run.settings.map_stride
        if strides.setdefault(stride, run.row) != run.row:
            raise SettingsError(f"rows {strides[stride]!r} and {run.row!r} both have map_stride {stride}; keep one")
    return dict(sorted(strides.items(), reverse=True))


def _mean_seconds(runs: Sequence[PlannedRun]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {}
    for run in runs:
        seconds.setdefault(run.row, []).append(float(run.run.manifest["duration_s"]))
    return {row: sum(values) / len(values) for row, values in seconds.items()}


# --- Figures of a study with several seeds


VERDICT_STYLES = {
    BETTER: {"color": "#0072B2", "marker": ">"},
    WORSE: {"color": "#D55E00", "marker": "<"},
    NOT_DISTINGUISHABLE: {"color": "#6b6b6b", "marker": "o"},
    NOT_TESTED: {"color": "#a0a0a0", "marker": "x"},
}
STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")]
"""Colour and marker of the first, second … line."""
WIDTH = 6.9
"""Inches; 900 pixels as `save_figure` writes them."""


def steps_figure(steps: pd.DataFrame, *, metric: str) -> Figure:
    """One line per step: difference with its interval, and beside it the numbers and the verdict in words.

    Args:
        steps: columns ``step``, ``difference``, ``low``, ``high``, ``verdict``; NaN is drawn as no answer.
        metric: what the difference is of, for the axis.
    """
    figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * max(len(steps), 1)), layout="constrained")
    axis, words = figure.subplots(1, 2, width_ratios=[1, 1.3], sharey=True)
    for place, (verdict, *ends) in enumerate(steps[["verdict", "difference", "low", "high"]].to_numpy()):
        style = VERDICT_STYLES[verdict]
        axis.plot(ends[1:], [place, place], color=style["color"], lw=2, solid_capstyle="butt")
        axis.plot(ends[0], place, ms=7, ls="", **style)
        note = {"va": "center", "fontsize": 8, "color": style["color"]}
        words.text(0, place, signed_interval(*ends), **note)
        words.text(1, place, verdict, ha="right", **note)
    words.set_axis_off()
    axis.axvline(0, color="k", lw=0.8)
    axis.set_yticks(range(len(steps)), [textwrap.shorten(str(step), 46, placeholder=" …") for step in steps["step"]])
    axis.set_ylim(len(steps) - 0.4, -0.6)
    axis.set_xlabel(f"change of {metric},\nmean over seeds, 95 % interval\n(verdicts are Holm-corrected)", fontsize=8)
    axis.margins(x=0.08)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    return figure


def map_stride_figure(table: pd.DataFrame, recommended: int | None) -> Figure:
    """What a finer map brings beside what it costs.

    Args:
        table: of `map_stride_table`: index stride, coarse to fine; see there for its columns.
        recommended: the stride to mark; None marks none.
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    gain, cost = figure.subplots(1, 2, width_ratios=[1.25, 1])
    places = np.arange(len(table))
    shown = [("accuracy", "accuracy"), ("cam_iou", "CAM-IoU (deciding)"), ("attention_iou", "attention IoU")]
    for (name, label), (colour, marker) in zip(shown, STYLES):
        if name in table and table[name].notna().any():
            _with_intervals(gain, places, table, name, color=colour, marker=marker, label=label)
    gain.plot(places, table["grid_iou"], color="k", lw=1, ls="--", label="grid IoU (the mask itself)")
    gain.set(ylim=(0, 1.03))
    gain.set_title("test, mean over seeds, 95 % interval over pictures", fontsize=9)
    for (name, label), (colour, marker) in zip([("time_ratio", "time"), ("memory_ratio", "activation memory")], STYLES):
        cost.plot(places, table[name], color=colour, marker=marker, label=label)
        above = table[name].to_numpy() >= table[["time_ratio", "memory_ratio"]].max(axis=1).to_numpy()
        for place, value, up in zip(places, table[name], above):
            note = {"textcoords": "offset points", "ha": "center", "fontsize": 7, "color": colour}
            cost.annotate(f"{value:.1f}", (place, value), xytext=(0, 6 if up else -13), **note)
    cost.margins(y=0.15)
    cost.set_ylim(bottom=0)
    cost.set_title("cost of training, coarsest stride = 1", fontsize=9)
    for axis in (gain, cost):
        axis.set_xticks(places, list(map(str, table.index)))
        axis.set_xlabel("map stride in pixels, finer to the right", fontsize=8)
        if recommended in table.index:
            place = list(table.index).index(recommended)
            axis.axvspan(place - 0.3, place + 0.3, color="#F0E442", alpha=0.35, lw=0, label="recommended")
        _tidy(axis)
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    return figure


def annotation_figure(table: pd.DataFrame) -> Figure:
    """Accuracy and agreement with the mask by kind of annotation, a marker per strategy.

    The accuracy is that under changed conditions where the data has such a split.

    Args:
        table: of `annotation_table`: columns ``kind``, ``strategy`` and, of each metric, ``<metric>``,
            ``<metric>_low`` and ``<metric>_high``; kinds in the order in which they are drawn.
    """
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    kinds = list(dict.fromkeys(table["kind"]))
    strategies = list(dict.fromkeys(table["strategy"]))
    shifted = {"accuracy_shift": "accuracy, changed conditions"}
    panels = (shifted if "accuracy_shift" in table else {"accuracy": "accuracy, test"}) | {
        "cam_iou": "CAM-IoU (deciding), test"
    }
    for axis, (name, label) in zip(axes, panels.items()):
        for number, strategy in enumerate(strategies):
            rows = table[table["strategy"] == strategy].set_index("kind")
            places = np.array([kinds.index(kind) for kind in rows.index]) + 0.16 * (number - (len(strategies) - 1) / 2)
            colour, marker = STYLES[number % len(STYLES)]
            _with_intervals(axis, places, rows, name, color=colour, marker=marker, label=strategy, ls="")
        axis.set_ylabel(label, fontsize=8)
        _separate(axis, kinds)
        _tidy(axis)
    axes[0].axhline(0.5, color="k", lw=0.7, ls=":")
    axes[0].set(ylim=(0, 1.03))
    axes[1].set(ylim=(0, None), xlim=(-0.5, len(kinds) - 0.5))
    axes[1].set_xticks(range(len(kinds)), [textwrap.fill(kind, 12) for kind in kinds])
    axes[0].legend(fontsize=8, loc="lower right", ncols=len(strategies))
    axes[0].set_title("mean over seeds, 95 % interval over pictures (dotted: a coin)", fontsize=9)
    return figure


def edited_share_figure(table: pd.DataFrame) -> Figure:
    """Accuracy by share of edited training pictures, on the distribution of the training and under changed conditions.

    Args:
        table: of `edited_share_table`: index share; columns ``cue_left`` and, of each metric, ``<metric>``,
            ``<metric>_low`` and ``<metric>_high``.
    """
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axis = figure.subplots()
    shares = table.index.to_numpy(dtype=float)
    lines = {"accuracy": "accuracy, test", "accuracy_shift": "accuracy, changed conditions"}
    for (name, label), (colour, marker) in zip(lines.items(), STYLES):
        if name in table:
            _with_intervals(axis, shares, table, name, color=colour, marker=marker, label=label)
    axis.axhline(0.5, color="k", lw=0.7, ls=":")
    axis.set(ylim=(0, 1.03))
    ticks = [f"{100 * share:g} %\n{left:.2f}" for share, left in zip(shares, table["cue_left"])]
    axis.set_xticks(shares, ticks)
    axis.set_xlabel("training pictures edited; below, what is left of a cue's covariance with the label", fontsize=8)
    axis.set_title("mean over seeds, 95 % interval over pictures (dotted: a coin)", fontsize=9)
    _tidy(axis)
    axis.legend(fontsize=8, loc="lower right")
    return figure


def _with_intervals(axis: Axes, places: np.ndarray, table: pd.DataFrame, name: str, **style: object) -> None:
    """Means joined by a line, with intervals where there are some."""
    values = table[name].to_numpy(dtype=float)
    low, high = (table.get(f"{name}_{end}", table[name]).to_numpy(dtype=float) for end in ("low", "high"))
    reach = np.nan_to_num(np.stack([values - low, high - values])).clip(0)
    axis.errorbar(places, values, yerr=reach, capsize=3, ms=6, **style)  # type: ignore[arg-type]


def _separate(axis: Axes, kinds: Sequence[str]) -> None:
    """Light bands, so that markers are read with their kind."""
    for place in range(0, len(kinds), 2):
        axis.axvspan(place - 0.5, place + 0.5, color="0.95", lw=0, zorder=0)


def _tidy(axis: Axes) -> None:
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", color="0.88")
    axis.set_axisbelow(True)


# --- A study's plan run and reported


TITLES = {
    "map_stride": "map stride",
    "annotation": "what annotation is worth",
    "edited_share": "share of edited pictures",
}


@dataclass(frozen=True)
class StudyReport:
    """The tables, remarks and figures of a plan's finished runs, each made once.

    Attributes:
        plan: what was asked for.
        runs: finished and evaluated, at least one.
        state: lines that say how many there are and what failed.
    """

    plan: Plan
    runs: Sequence[PlannedRun]
    state: Sequence[str] = ()

    @cached_property
    def rows(self) -> pd.DataFrame:
        """See `rows_of_study`."""
        return rows_of_study(self.runs)

    @cached_property
    def steps(self) -> pd.DataFrame:
        """See `steps_of_study`."""
        return steps_of_study(self.runs, self.plan.steps)

    @cached_property
    def own_table(self) -> pd.DataFrame | None:
        """The table of the plan's `report`; None where that is the steps."""
        makers = {
            "map_stride": map_stride_table,
            "annotation": annotation_table,
            "edited_share": edited_share_table,
        }
        return makers[self.plan.report](self.runs) if self.plan.report in makers else None

    @cached_property
    def recommendation(self) -> tuple[int | None, str]:
        """See `recommended_stride`."""
        return recommended_stride(stride_tables(self.runs))

    def family(self, split: str, metric: str) -> pd.DataFrame:
        """The steps of one family, empty where none has an answer."""
        steps = self.steps
        part = steps[(steps["split"] == split) & (steps["metric"] == metric)] if len(steps) else steps
        return part if len(part) and part["difference"].notna().any() else part.iloc[:0]

    def sections(self) -> dict[str, pd.DataFrame]:
        """Tables of text by title: rows per split, the steps of each metric, and the plan's own."""
        splits = list(map(str, self.rows["split"].unique()))
        sections = {f"rows: {SPLIT_NAMES[split]}": readable_rows(self.rows, split) for split in splits}
        for split, metric in FAMILIES:
            if len(self.family(split, metric)):
                sections[f"steps: {METRIC_NAMES[metric]}, {split}"] = readable_steps(self.steps, split, metric)
        if self.own_table is not None:
            sections[TITLES[self.plan.report]] = self.own_table.round(3)
        return sections

    def remarks(self) -> list[str]:
        """What has to be said beside the tables."""
        weights = ", ".join(sorted({str(planned.run.manifest["pretrained"]) for planned in self.runs}))
        remarks = [f"Backbone weights: {weights}."]
        if self.plan.report == "map_stride":
            remarks.append(self.recommendation[1])
        return [*remarks, *_notes(self.steps), *self.state]

    def figures(self) -> dict[str, Figure]:
        """By file name."""
        figures = {
            f"steps_{split}_{metric}": steps_figure(part, metric=f"{METRIC_NAMES[metric]}, {split}")
            for split, metric in FAMILIES
            if len(part := self.family(split, metric))
        }
        if self.plan.report == "map_stride" and self.own_table is not None:
            figures["map_stride"] = map_stride_figure(self.own_table, self.recommendation[0])
        if self.plan.report == "annotation" and self.own_table is not None:
            figures["annotation"] = annotation_figure(self.own_table)
        if self.plan.report == "edited_share" and self.own_table is not None:
            figures["edited_share"] = edited_share_figure(self.own_table)
        return figures


def _notes(steps: pd.DataFrame) -> list[str]:
    """Each note of the steps once, with the steps it is about, and the scores where it is not about all of them."""
    if not len(steps):
        return []
    # A strategy without the counterfactual has no flips to compare; that needs no word for every step.
    known = steps[(steps["metric"] != "cf_excess") | steps["difference"].notna()]
    score = known["metric"].map(METRIC_NAMES) + ", " + known["split"]
    every = set(score[known["metric"] != "cf_excess"])
    noted: dict[str, list[str]] = {}
    for (note, step), scores in score.groupby([known["note"], known["step"]], sort=False):
        if note:
            of_all = every <= set(scores)
            noted.setdefault(str(note), []).append(str(step) if of_all else f"{step} ({'; '.join(scores)})")
    return [f"{note}: {', '.join(lines)}" for note, lines in noted.items()]


def run_and_report(console: Console, plan: Plan, *, export: Path | None = None, only_report: bool = False) -> int:
    """Run what is missing of a plan, print rows and steps with verdicts, name what failed.

    Args:
        console: takes the tables.
        plan: what to run and to compare.
        export: folder for the same as small files, see `export_study`.
        only_report: train nothing; report what is there.

    Returns:
        How many runs failed.

    Raises:
        RunError: no run is finished, or one that is there was trained with other settings.
    """
    failures: list[FailedRun] = []
    runs = finished_runs(plan) if only_report else run_plan(plan, failures=failures)
    total = len(plan.rows) * len(plan.seeds)
    failed = f", {len(failures)} failed" if failures else ""
    state = [f"{len(runs)} of {total} runs are finished{failed}", *(f"failed: {f}" for f in failures)]
    if not runs:
        raise RunError("\n  ".join([*state, "there is nothing to report"]))
    report = StudyReport(plan, runs, state)
    for title, table in report.sections().items():
        console.print(frame_table(title, table))
    for line in report.remarks():
        console.print(escape(line))
    if export is not None:
        export_study(report, export)
        console.print(f"exported: {escape(str(export))}")
    return len(failures)


def export_study(report: StudyReport, folder: Path) -> None:
    """``table.md``, ``plan.yaml``, ``runs.csv``, ``rows.csv``, ``steps.csv``, the plan's own CSV, and figures.

    Small enough to be committed. ``plan.yaml`` is the plan as it was run, which makes the same again.
    """
    sections = [f"**{title}**\n\n" + "\n".join(markdown_table(table)) for title, table in report.sections().items()]
    remarks = "\n".join(f"- {remark}" for remark in report.remarks())
    plan = yaml.safe_dump(report.plan.plain(), sort_keys=False, allow_unicode=True, width=120)
    for name, text in {"table.md": "\n\n".join([*sections, remarks]) + "\n", "plan.yaml": plan}.items():
        with atomic_path(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    tables = {"runs": runs_table(report.runs), "rows": report.rows, "steps": report.steps}
    if report.own_table is not None:
        tables[report.plan.report] = report.own_table.reset_index()
    for name, table in tables.items():
        with atomic_path(folder / f"{name}.csv") as path:
            table.to_csv(path, index=False, float_format="%.4f")
    for name, figure in report.figures().items():
        save_figure(figure, folder / f"{name}.png")
