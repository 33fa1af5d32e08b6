"""A run's folder: files that are never half-written, what a finished run holds, who may write; runs side by side."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast
from uuid import uuid4

import numpy as np
import pandas as pd
import torch
import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gainmtl_lib.settings import RunSettings, Settings, SettingsError, UserError
from gainmtl_lib.wording import COMPARED, METRICS, number

if TYPE_CHECKING:
    from gainmtl_lib.model import GAINMTLModel


class FileError(UserError, OSError):
    """A file that could not be written; names it and why. What was there before is untouched."""


class RunError(UserError, RuntimeError):
    """A run's folder or checkpoint that cannot be used; names it and what to do."""


class HeldError(RunError):
    """A run's folder that another process is writing to; names that process and its machine."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path of the same suffix beside `path`, renamed to it when the block ends without an error."""
    temporary = path.with_name(f".{path.stem}-{uuid4().hex[:8]}{path.suffix}")
    with written(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            yield temporary
            temporary.replace(path)
        finally:
            with suppress(OSError):  # of a folder that is none, or to which nothing can be written
                temporary.unlink(missing_ok=True)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """A block that writes to `path`, at once or beside it: what fails then is a `FileError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # PyTorch, safetensors and OpenVINO have errors of their own for a failed write, which tell it in their text.
        failed_write = re.search(
            r"No space left|I/O error|iostream error|StreamWriter|failed writing", str(error), re.IGNORECASE
        )
        if not isinstance(error, OSError) and not failed_write:
            raise
        there = next(folder for folder in path.absolute().parents if folder.is_dir())
        free = f"{shutil.disk_usage(there).free / 2**20:.0f} MB free"
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise FileError(f"{path}: the disk is full ({free}); make room and start again, the run goes on") from error
        reason = (isinstance(error, OSError) and error.strerror) or f"{error} ({free}); make room and start again"
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason += "; give the right to write there, or choose another place"
        raise FileError(f"{path}: could not be written: {reason}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write atomically, NumPy's numbers too; NaN and infinity, which JSON lacks, become null."""
    text = json.dumps(content, default=lambda value: value.item() if isinstance(value, np.generic) else dict(value))
    finite = json.loads(text, parse_constant=lambda _: None)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(finite, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Raises `RunError` naming the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """As safetensors, atomically."""
    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, temporary)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A training checkpoint as plain data, nothing in it executed; RunError where this project did not write it."""
    path = Path(path)
    if not path.is_file():
        raise RunError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes the unpickler raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RunError(f"{path}: not a checkpoint that can be read safely: {reason}") from None
    if not isinstance(checkpoint, dict) or not {"state_dict", "gainmtl_settings"} <= checkpoint.keys():
        advice = "weights of a backbone are given by 'pretrained'"
        raise RunError(f"{path}: a file of tensors, but not a training checkpoint of this project; {advice}")
    return checkpoint


# --- What a finished run holds


@contextmanager
def told_by_version(folder: Path, wrote: str = "") -> Iterator[None]:
    """What another version of this project wrote and this one cannot read, settings or tensors, says both versions.

    `wrote` is the version that wrote it; empty for that of the folder's manifest.
    """
    try:
        yield
    except (SettingsError, RuntimeError) as error:  # of torch the latter: other names or shapes
        path, this = folder / "manifest.json", version("gainmtl")
        wrote = wrote or (read_json(path) if path.is_file() else {}).get("versions", {}).get("gainmtl") or "unknown"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if isinstance(error, SettingsError) else " ".join(lines)[:200]
        if wrote != this:
            told = f"written by version {wrote}, which this one, {this}, cannot read: {reason}"
            raise RunError(f"{folder}: {told}; use that version, or train anew") from error
        if isinstance(error, SettingsError):
            raise
        raise RunError(f"{folder}: its weights are not those of its settings: {reason}") from error


EFFICIENTAD = "efficientad"  # stands in a manifest where runs of GAIN-MTL have their strategy
OF_EFFICIENTAD = "of EfficientAD, not of a GAIN-MTL strategy; see gainmtl efficientad --help"

AnySettings = TypeVar("AnySettings", bound=RunSettings)


@dataclass(frozen=True)
class StoredRun(Generic[AnySettings]):
    """What the finished runs of both systems leave alike, read from the folder on demand."""

    folder: Path
    settings_type: ClassVar[type[RunSettings]]
    main_map: ClassVar[str]

    @cached_property
    def settings(self) -> AnySettings:
        """What the run was asked for."""
        with told_by_version(self.folder):
            return cast("AnySettings", self.settings_type.from_yaml(self.folder / "settings.yaml"))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What training recorded: versions, device, data digest, split sizes, duration, status and more."""
        return read_json(self.folder / "manifest.json")

    @property
    def metrics(self) -> dict[str, Any]:
        """Summary of the evaluation, by split."""
        return read_json(self._evaluated("metrics.json"))

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per image of the evaluated splits."""
        path, text = self._evaluated("predictions.csv"), {"defect_type": str, "group": str}
        return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])  # a defect type may be named NA

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """Those there are of cam, attention, localization and anomaly, (N, h, w) as `predictions`, not read yet."""
        folder = self._evaluated("maps")
        return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The best model's tensors by their names; `RunError` where their file cannot be read."""
        path = self.folder / "model.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            told = f"cannot be read: {error}; copy it again, or train anew with --force"
            raise RunError(f"{path}: {told}") from None

    @cached_property
    def history(self) -> pd.DataFrame:
        """What training logged: ``tag``, ``step``, ``value``; `RunError` where it did not.

        Steps that a resume repeated appear once.
        """
        settings = self.settings
        folder = settings.tensorboard_folder if settings.tensorboard_dir else self.folder / "tensorboard"
        if not settings.use_tensorboard or not any(folder.glob("events.out.*")):
            raise RunError(f"{folder}: no TensorBoard log of this run; train with use_tensorboard: true")
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        rows = [(tag, e.step, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
        return pd.DataFrame(rows, columns=["tag", "step", "value"]).drop_duplicates(["tag", "step"], keep="last")

    @property
    def is_evaluated(self) -> bool:
        """Whether `evaluate` has left its results here."""
        files = ("predictions.csv", f"maps/{self.main_map}.npy", "metrics.json")
        return all((self.folder / name).is_file() for name in files)

    @property
    def figures_dir(self) -> Path:
        """Where figures of this run go; made when asked for."""
        folder = self.folder / "figures"
        folder.mkdir(exist_ok=True)
        return folder

    def _evaluated(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            raise RunError(f"{path} does not exist: the run is trained but not evaluated; call evaluate(run)")
        return path


@dataclass(frozen=True)
class Run(StoredRun[Settings]):
    """A finished run of a GAIN-MTL strategy."""

    settings_type = Settings
    main_map = "cam"

    @cached_property
    def model(self) -> GAINMTLModel:
        """The best model, in evaluation mode, on the CPU; calibrated once the run is evaluated. Never downloads."""
        weights, method = self.weights, str(self.manifest.get("method", ""))
        with told_by_version(self.folder):
            types = self.manifest.get("defect_types", ())
            model = _filled(self.settings, weights, method, types)
        model.calibration = self.calibration
        return model

    @property
    def calibration(self) -> tuple[float, float]:
        """Slope and offset of its margins, once the run is evaluated."""
        slope, offset = (self.metrics if self.is_evaluated else {}).get("calibration", (1.0, 0.0))
        return slope, offset


def _filled(
    settings: Settings, weights: Mapping[str, torch.Tensor], method: str, types: Sequence[str] = ()
) -> GAINMTLModel:
    from gainmtl_lib.model import TypeHead, build_model  # results are read without loading a network

    if method:
        from gainmtl_lib.studies.baselines import build_baseline_model  # a kit, for what the literature would do

        model = build_baseline_model(settings, method, pretrained=False)
    else:
        model = build_model(settings, pretrained=False)
    if types:
        model.types = TypeHead(model.width, types)
    model.load_state_dict(weights)
    return model.eval()


def load_run(folder: str | Path) -> Run:
    """Read a finished run of a strategy; RunError where there is none, or one that is not finished or EfficientAD's."""
    folder = finished_folder(folder)
    if system_of(folder) == EFFICIENTAD:
        raise RunError(f"{folder}: a run {OF_EFFICIENTAD}")
    return Run(folder)


def run_of_best(path: Path) -> Path | None:
    """The folder of the finished run whose best checkpoint this file is, or None: any other stands for itself."""
    folder = path.absolute().parent.parent
    return folder if path.name == "best.ckpt" and run_status(folder) == "complete" else None


def load_checkpoint_model(path: str | Path) -> tuple[GAINMTLModel, Settings]:
    """The model of a checkpoint file in evaluation mode, and the settings it was trained with.

    `RunError` for one of EfficientAD, or of a version whose parameters or weights are not this one's.
    """
    checkpoint = read_checkpoint(path)
    if "teacher" in checkpoint:
        raise RunError(f"{path}: a checkpoint {OF_EFFICIENTAD}")
    with told_by_version(Path(path), str(checkpoint.get("gainmtl_version", ""))):
        settings, prefix = Settings(**checkpoint["gainmtl_settings"]), "model."
        weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        return _filled(settings, weights, checkpoint.get("gainmtl_method", "")), settings


def finished_folder(folder: str | Path) -> Path:
    """The folder of a finished run of any system; RunError where there is none, or one that is not finished."""
    folder = Path(folder)
    status = run_status(folder)
    if status == "new":
        near = sorted(path.parent for path in folder.glob("**/manifest.json"))
        hint = f"; runs below it: {', '.join(map(str, near[:5]))}" if near else ""
        raise RunError(f"{folder}: no run here (no manifest.json){hint}")
    if status != "complete":
        raise RunError(f"{folder}: the run is not finished (status '{status}'); start the same run again to go on")
    return folder


def run_status(folder: Path) -> str:
    """``new`` (nothing here), ``running`` (started, perhaps interrupted) or ``complete``."""
    path = folder / "manifest.json"
    return str(read_json(path).get("status", "running")) if path.is_file() else "new"


def system_of(folder: Path) -> str:
    """``efficientad``, or the strategy."""
    return str(read_json(folder / "manifest.json").get("strategy", ""))


LOCK, HOLDER = ".lock", ".holder.txt"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep others from writing to a run that is there; `HeldError` where one does. What killed ones left half goes.

    `FileError` where the folder cannot be written to.
    The lock of a killed process is free at once; on a shared file system that of a machine that is gone, too, once the
    file server has noticed.
    """
    holder = folder / HOLDER
    try:
        held = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        who = f" ({holder.read_text(encoding='utf-8')})" if holder.is_file() else ""
        told = f"another process{who} is writing to this run; wait, end it, or change 'experiment'"
        raise HeldError(f"{folder}: {told}") from None
    except OSError as error:
        advice = "give the right to write there, or change 'experiment' or 'outputs_dir'"
        raise FileError(f"{folder}: cannot be written to: {error.strerror or error}; {advice}") from error
    with held:
        for part in (folder, folder / "checkpoints", folder / "maps"):
            for left in part.glob(f".*-{'[0-9a-f]' * 8}.*"):
                left.unlink()
        with atomic_path(holder) as path:
            path.write_text(f"{os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


@contextmanager
def claim(settings: RunSettings, *, resume: str | Path | None = None, force: bool = False) -> Iterator[Path]:
    """Hold a run's folder for writing; what is already there must have been asked for with equal settings.

    A start that reached no checkpoint leaves nothing behind, so that a mistake can be corrected: there is nothing to go
    on from. With `force` what is there is dropped, and the run's event files where they lie elsewhere. `RunError` for
    other settings, for `resume` with `force` or of a finished run; `HeldError` and `FileError` as `hold`.
    """
    folder = settings.run_dir
    if resume is not None and force:
        both = "--resume goes on from a checkpoint, --force drops what is there and starts anew"
        raise RunError(f"{folder}: {both}; give one of them (resume=…, force=True)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: cannot be made: {error.strerror}; change 'outputs_dir'") from error
    stored = folder / "settings.yaml"
    with hold(folder):
        if force:
            for path in folder.iterdir():
                if path.name not in (LOCK, HOLDER):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            _remove_events(settings)
        _forget_vain_start(settings)  # one that was killed
        if not stored.is_file():
            with atomic_path(stored) as path:
                path.write_text(yaml.safe_dump(settings.plain(), sort_keys=False, allow_unicode=True), encoding="utf-8")
        with told_by_version(folder):
            differing = type(settings).from_yaml(stored).differences(settings)
        if differing:
            lines = "\n  ".join([f"{folder} holds a run with other settings (stored and asked for):", *differing])
            raise RunError(f"{lines}\nchange 'experiment' to keep both, or start anew with --force (force=True)")
        if resume is not None and run_status(folder) == "complete":
            raise RunError(f"{folder}: the run is finished; there is nothing to resume (--force starts anew)")
        try:
            yield folder
        except BaseException:
            _forget_vain_start(settings)
            raise


def _remove_events(settings: RunSettings) -> None:
    for path in settings.tensorboard_folder.glob("events.out.*"):
        path.unlink()


def _forget_vain_start(settings: RunSettings) -> None:
    stored, manifest = (settings.run_dir / name for name in ("settings.yaml", "manifest.json"))
    reached = any((settings.run_dir / "checkpoints").glob("[!.]*.ckpt"))  # a temporary file begins with a dot
    if stored.is_file() and not reached and run_status(settings.run_dir) != "complete":
        _remove_events(settings)
        manifest.unlink(missing_ok=True)
        stored.unlink()


# --- Runs side by side

COLUMNS = {name: METRICS[name] for name in COMPARED}
ORACLE_MARK = " (oracle: leaks the label)"
"""Stands behind a strategy whose attention was given the ground truth at test time, in every table and figure."""


def row_name(settings: Settings) -> str:
    """What a run's row is called: ``S5``, or ``S5-nowarmup`` for a variant."""
    return settings.strategy + (f"-{settings.variant}" if settings.variant else "")


def collect_runs(experiment: str | Path) -> list[Run]:
    """Evaluated runs of the strategies below ``outputs/<experiment>``, by strategy, variant and seed, or `RunError`."""
    started = sorted(path.parent for path in Path(experiment).glob("*/seed*/manifest.json"))
    folders = [folder for folder in started if system_of(folder) != EFFICIENTAD]
    runs = [load_run(folder) for folder in folders if run_status(folder) == "complete"]
    if not (evaluated := [run for run in runs if run.is_evaluated]):
        counts = f"{len(folders)} started, {len(runs)} finished"
        raise RunError(f"{experiment}: no evaluated run ({counts}); run the strategies first: gainmtl run all")
    return sorted(evaluated, key=lambda run: (row_name(run.settings), run.settings.seed))


def compare(runs: list[Run]) -> pd.DataFrame:
    """One row per run and split: ``strategy`` (see `row_name`), ``seed``, ``split`` and the metrics of `COLUMNS`.

    `RunError`: runs of one seed were trained on different data. Between seeds the split may differ, where the data has
    none of its own and `split_seed` is null.
    """
    for seed in sorted({run.settings.seed for run in runs}):
        folders = {str(run.folder): run.manifest["data_digest"] for run in runs if run.settings.seed == seed}
        if (count := len(set(folders.values()))) > 1:
            apart = f"the runs of seed {seed} were trained on {count} different datasets or splits"
            raise RunError(f"{apart} and cannot be compared: {', '.join(folders)}")
    rows = []
    for run in runs:
        metrics, name = run.metrics, row_name(run.settings)
        name += ORACLE_MARK if metrics.get("label_leaks") else ""
        name += " (masks of a random teacher)" if str(metrics.get("teacher", "")).startswith("random") else ""
        for split in [split for split in ("test", "test_shift") if split in metrics]:
            rows.append({"strategy": name, "seed": run.settings.seed, "split": split} | metrics[split])
    return pd.DataFrame(rows, columns=["strategy", "seed", "split", *COLUMNS]).astype(dict.fromkeys(COLUMNS, float))


def by_strategy(comparison: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds as text, by split and strategy: ``0.930``, or ``0.930 ± 0.020`` with its 95 % t interval."""

    def mean_of_seeds(scores: pd.Series) -> str:
        half_width = scores.sem() * stats.t.ppf(0.975, scores.count() - 1)  # NaN for one seed
        return number(scores.mean()) + (f" ± {half_width:.3f}" if half_width == half_width else "")

    return comparison.groupby(["split", "strategy"])[list(COLUMNS)].agg(mean_of_seeds).rename(columns=COLUMNS)
