"""The collection run headless: which notebooks there are, how they run side by side, how committed ones stay clean."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import papermill
import psutil
import torch
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from gainmtl_lib.progress import show_progress
from gainmtl_lib.runs import atomic_path, claim
from gainmtl_lib.settings import RunSettings, Settings, SettingsError, UserError, in_checkout, read_parameters
from gainmtl_lib.studies.cluster import Done, cores, run_jobs

if TYPE_CHECKING:
    from gainmtl_lib.efficientad.model import EfficientADSettings

logger = logging.getLogger(__name__)

STRATEGY_NOTEBOOKS = {
    "S1": "01_s1_classification",
    "S2": "02_s2_cam_guidance",
    "S3": "03_s3_attention",
    "S4": "04_s4_localization",
    "S5": "05_s5_counterfactual",
    "S6": "06_s6_mask_attention",
    "S7": "10_s7_image_counterfactual",
    "S8": "12_s8_evidence",
}
INSPECTION = "00_data_inspection"
ABLATION = "07_ablation_comparison"
EXPLANATION = "08_cam_explanation"
ANOMALIES = "09_efficientad"
SHORTCUTS = "11_shortcut_study"

AFTER = {
    STRATEGY_NOTEBOOKS["S8"]: tuple(STRATEGY_NOTEBOOKS[strategy] for strategy in ("S1", "S7")),
    ANOMALIES: tuple(STRATEGY_NOTEBOOKS[strategy] for strategy in ("S1", "S5", "S6")),
    ABLATION: tuple(STRATEGY_NOTEBOOKS.values()),
    EXPLANATION: tuple(STRATEGY_NOTEBOOKS.values()),
}
"""Notebooks that read the runs of others."""

ORDER = (SHORTCUTS, *STRATEGY_NOTEBOOKS.values(), ANOMALIES, EXPLANATION, ABLATION, INSPECTION)
"""In which they begin once they can: the longest, those that others wait for, and the shortest at the end."""

MEMORY_OF_A_NOTEBOOK = 3 * 2**30
"""Bytes that a notebook of the quick study takes at most, rounded up."""


KILLED = (
    "its process was killed, most likely for want of memory; take fewer --workers, a smaller image_size or batch_size, "
    "or cache_images: false"
)


class NotebookError(UserError, RuntimeError):
    """A notebook that stopped: names it, the cell and the error."""


@dataclass(frozen=True)
class Job:
    """One notebook to execute."""

    name: str  # without suffix
    output: Path  # the executed copy, up to the cell that failed if one does
    parameters: Mapping[str, Any]  # injected after its parameters cell


# --- What is run


def notebook_settings(strategy: str | None, files: Sequence[Path], overrides: Mapping[str, Any]) -> Settings:
    """What a notebook's `Settings` will be: its own parameters (quick + strategy), then files, then overrides.

    `strategy` is None for a notebook about all of them.
    """
    asked = _given(files, overrides).get("strategy", strategy)
    if strategy is not None and asked != strategy:
        raise SettingsError(f"strategy is {asked!r}, but the notebook is {strategy}'s; leave it out")
    return Settings.from_yaml(*_own_files(strategy), *files, **overrides)


def anomaly_settings(given: Mapping[str, Any]) -> EfficientADSettings:
    """What notebook 09's settings will be: its own parameters, then those of `given` that both systems share."""
    from gainmtl_lib.efficientad.model import EfficientADSettings  # loads timm, for notebook 09 alone

    return EfficientADSettings.from_yaml(in_checkout("params", "efficientad_synthetic.yaml"), **_shared(given))


def run_strategy(strategy: str, files: Sequence[Path], overrides: Mapping[str, Any], *, force: bool = False) -> Path:
    """Execute one strategy's notebook into its run's folder; the executed notebook."""
    settings = notebook_settings(strategy, files, overrides)
    if force:
        _drop(settings)
    job = _strategy_job(strategy, settings, _given(files, overrides))
    execute([job], workers=1)
    return job.output


def run_all(
    files: Sequence[Path],
    overrides: Mapping[str, Any],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    force: bool = False,
) -> Path:
    """Execute the whole collection: inspection, S1 to S8, comparison, explanation, EfficientAD, shortcuts.

    Finished runs stay, unless `force` drops them. EfficientAD is given what both systems share (`RunSettings`). The
    shortcut study has parameters and synthetic data of its own, so that data that is not synthetic goes without it.

    Args:
        files: parameter files, later ones win.
        overrides: values that win over files.
        workers: notebooks at once, each with its share of the cores; None for `default_workers`.
        scheduler: in their place, address or file of a Dask scheduler, whose workers execute the notebooks.
        force: drop finished runs.

    Returns:
        The experiment's folder.
    """
    from gainmtl_lib.dataset import make_data
    from gainmtl_lib.studies.shortcut import ShortcutStudySettings

    given = _given(files, overrides)
    if "strategy" in given:
        raise SettingsError("'all' runs every strategy; leave 'strategy' out of the parameters")
    strategies = {strategy: notebook_settings(strategy, files, overrides) for strategy in STRATEGY_NOTEBOOKS}
    anomalies, settings = anomaly_settings(given), notebook_settings(None, files, overrides)
    outputs = {name: given[name] for name in ("outputs_dir",) if name in given}
    shortcuts = ShortcutStudySettings.from_yaml(in_checkout("params", "studies", "shortcut.yaml"), **outputs)
    synthetic = settings.dataset_type == "synthetic"
    if force:
        cells = shortcuts.cells() if synthetic else []
        for each in (*strategies.values(), anomalies, *(cell.settings for cell in cells)):
            _drop(each)
    make_data(settings)
    experiment = settings.outputs_dir / settings.experiment

    jobs = [_strategy_job(strategy, own, given) for strategy, own in strategies.items()]
    beside = {ANOMALIES: _shared(given), EXPLANATION: given, ABLATION: given, INSPECTION: given}
    if synthetic:
        beside[SHORTCUTS] = outputs
    jobs += [Job(name, experiment / f"{name}.ipynb", parameters) for name, parameters in beside.items()]
    if scheduler is None:
        execute(jobs, workers=workers or default_workers())
    else:
        execute(jobs, scheduler=scheduler, writes=[settings.outputs_dir], reads=[settings.data_root])
    if not synthetic:
        logger.info("left out: %s, which draws synthetic data; see gainmtl shortcut --help", SHORTCUTS)
    return experiment


def _strategy_job(strategy: str, settings: Settings, given: Mapping[str, Any]) -> Job:
    parameters = read_parameters(_own_files(strategy)[-1]) | dict(given)
    return Job(STRATEGY_NOTEBOOKS[strategy], settings.run_dir / "notebook.ipynb", parameters)


def _drop(settings: RunSettings) -> None:
    with claim(settings, force=True):
        logger.info("dropped what %s held", settings.run_dir)


def _shared(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in RunSettings.model_fields}


def _given(files: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path in files:
        values |= read_parameters(path)
    return values | dict(overrides)


def _own_files(strategy: str | None) -> list[Path]:
    params = in_checkout("params")
    return [params / "quick.yaml", *([params / f"{strategy.lower()}.yaml"] if strategy else [])]


# --- Side by side


def default_workers() -> int:
    """As many notebooks at once as there are cores, as far as the memory reaches; one where a GPU does the work."""
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return 1
    memory = psutil.virtual_memory().total
    return max(1, min(cores(), memory // MEMORY_OF_A_NOTEBOOK))


def execute(jobs: Sequence[Job], *, workers: int = 1, scheduler: str | None = None, **folders: Any) -> None:
    """Run notebooks headless, several at once, each in a process of its own; their log lines appear on stderr.

    Small networks gain little from a second thread, so that cores are divided among the notebooks: of two cores, two
    notebooks with one thread each make more of them than one with two. After one that stopped no other begins.

    They begin in `ORDER`, those of `AFTER` once they can. A `NotebookError` where a cell raised an error. With a Dask
    `scheduler` its workers execute them, and their log lines stay with these; `folders` as of `run_jobs`.
    """
    waiting, failed = sorted(jobs, key=lambda job: ORDER.index(job.name)), []
    missing = {job.name for job in jobs}

    def next_job() -> Job | None:
        ready = (job for job in waiting if not failed and missing.isdisjoint(AFTER.get(job.name, ())))
        if (job := next(ready, None)) is not None:
            waiting.remove(job)
        return job

    if scheduler is None:
        ended = _side_by_side(next_job, min(workers, len(jobs)))
    else:
        ended = run_jobs(_executed, next_job, scheduler=scheduler, **folders)
    with _on(signal.SIGTERM, signal.default_int_handler), closing(ended):
        for job, failure, worker, _ in ended:
            if worker:
                logger.info("notebook %s ended on %s; %d left", job.name, worker, len(missing) - 1)
            if failure is not None:
                logger.error("%s", failure)  # at once: the others may run for minutes
                failed.append(failure)
            missing.remove(job.name)
    if failed:
        raise NotebookError("\n".join(failed))


def _side_by_side(next_job: Callable[[], Job | None], workers: int) -> Generator[Done[Job]]:
    """As `run_jobs` on processes of this machine, without Dask: a notebook that dies is told, and not begun again."""
    running: dict[Any, tuple[BaseProcess, Any, Job]] = {}
    try:
        while True:
            while len(running) < workers and (job := next_job()) is not None:
                process, answer = _started(job, threads=max(1, cores() // workers))
                running[process.sentinel] = process, answer, job
            if not running:
                return
            for sentinel in wait(list(running)):
                process, answer, job = running.pop(sentinel)
                process.join()
                try:
                    failure = answer.recv()
                except EOFError:  # it ended without an answer
                    stopped = f"stopped with exit status {process.exitcode}; what it said stands above"
                    failure = f"{job.name}.ipynb: {KILLED if (process.exitcode or 0) < 0 else stopped}"
                yield Done(job, failure, "", 0.0)
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.join()


@contextmanager
def _on(number: signal.Signals, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _started(job: Job, threads: int) -> tuple[BaseProcess, Any]:
    context = multiprocessing.get_context("spawn")
    answer, told = context.Pipe(duplex=False)
    process = context.Process(target=_execute, args=(job, threads, told))
    with _on(signal.SIGINT, signal.SIG_IGN):  # which it inherits: Ctrl-C is for this process, which ends that one
        process.start()
    told.close()
    return process, answer


def _execute(job: Job, threads: int, told: Connection) -> None:
    """One notebook, in a process of its own; tells None, or the error in words."""
    signal.signal(signal.SIGTERM, _leave)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    show_progress()
    told.send(_executed(job))


def _executed(job: Job) -> str | None:
    """Execute one notebook; the error in words, or None."""
    source = notebook_path(job.name)
    logger.info("notebook %s -> %s", source.name, job.output)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _lines_of(job.name[:2]):
            papermill.execute_notebook(
                source,
                job.output,
                parameters=dict(job.parameters),
                cwd=str(source.parent),
                progress_bar=False,
                log_output=True,
                # Neither the kernel's advice on network encryption nor what it says of sockets when it is ended.
                extra_arguments=["--log-level=CRITICAL"],
            )
    except DeadKernelError:
        return f"{source.name}: {KILLED}\nthe notebook up to there: {job.output}"
    except PapermillExecutionError as error:
        return (
            f"{source.name} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"the notebook up to there: {job.output}"
        )
    return None


def _leave(*_: Any) -> None:
    """Quietly, but not before the kernel is stopped, which papermill sees to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    raise SystemExit(1)


@contextmanager
def _lines_of(number: str) -> Iterator[None]:
    """What a notebook writes, on stderr, each line led by the notebook's number.

    Papermill's own remarks stay out: parameters are checked here, before a kernel starts.
    """

    def led(record: logging.LogRecord) -> str:
        return "\n".join(f"{number}  {line}" for line in record.getMessage().splitlines() if line.strip())

    handler = logging.StreamHandler(sys.stderr)
    handler.format = led
    handler.addFilter(lambda record: record.funcName == "log_output_message" and bool(record.getMessage().strip()))
    papermill_logger = logging.getLogger("papermill")
    papermill_logger.addHandler(handler)
    papermill_logger.propagate = False
    try:
        yield
    finally:
        papermill_logger.removeHandler(handler)


# --- Committed notebooks


def notebook_path(name: str) -> Path:
    """Where a notebook of the collection lies."""
    return in_checkout("notebooks") / f"{name}.ipynb"


def refresh(names: Sequence[str], *, workers: int | None = None) -> None:
    """Execute committed notebooks in place with their own parameters, and clean them. Twice changes nothing."""
    with ExitStack() as stack:
        copies = {name: stack.enter_context(atomic_path(notebook_path(name))) for name in names}
        execute([Job(name, copy, {}) for name, copy in copies.items()], workers=workers or default_workers())
        for copy in copies.values():
            notebook = clean(nbformat.read(copy, as_version=4))
            text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
            copy.write_text(text + os.linesep, "utf-8")


def clean(notebook: NotebookNode) -> NotebookNode:
    """Keep tags, outputs and counts; drop stderr, widget views and metadata that change; number the cell ids."""
    kept = notebook.metadata.keys() & {"kernelspec", "language_info"}
    notebook.metadata = NotebookNode({key: notebook.metadata[key] for key in sorted(kept)})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        tags = cell.metadata.get("tags", [])
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
            if "metadata" in output:
                output.metadata = NotebookNode()
    return notebook
