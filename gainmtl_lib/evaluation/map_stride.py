"""How fine the map should be: what a stride brings, what it costs, and which one a stated rule recommends.

Rows of such a study differ in ``map_stride`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from gainmtl_lib.build import build_model
from gainmtl_lib.devices import inference_autocast
from gainmtl_lib.evaluation.paired import rows_table, steps_table
from gainmtl_lib.evaluation.planned import PlannedRun, split_tables
from gainmtl_lib.evaluation.verdicts import NOT_TESTED, WORSE
from gainmtl_lib.parameters import SettingsError
from gainmtl_lib.records import Batch
from gainmtl_lib.settings import Settings
from gainmtl_lib.training.losses import GainLoss

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
