"""Independent jobs on the workers of a Dask cluster: one of this machine's own processes, or one that is there.

A worker has one job at a time, and is this project in the same versions, on the same files. What kills a worker, memory
or a node, does not end its job: Dask hands it to another, and the job goes on from what it has saved. Dask is loaded
where it is asked for; this module loads in a worker without PyTorch.
"""

import logging
import multiprocessing
import os
import re
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, Protocol, TypeVar
from uuid import uuid4

from gainmtl_lib.launch import SIDE_BY_SIDE
from gainmtl_lib.progress import every, show_progress
from gainmtl_lib.settings import UserError, repository_root

logger = logging.getLogger(__name__)

HELD_S = 180.0
"""For how long a job whose folder another process holds is tried again once no other runs. A worker that lost its
scheduler ends within half a minute; a file server keeps the lock of a machine that is gone for one and a half."""
RETRY_S = 10.0
LOOK_S = 2.0  # how often workers are counted while nothing finishes
DEATHS = 3  # of workers with the same job, before it is given up; Dask's own default


class ClusterError(UserError, RuntimeError):
    """A cluster that cannot be used: no scheduler, or workers that are another project's."""


class Named(Protocol):
    """What a job needs: a name for log lines."""

    @property
    def name(self) -> str:
        """Told in every line about the job."""
        ...


Job = TypeVar("Job", bound=Named)


class Done(NamedTuple, Generic[Job]):
    """A job that came to its end."""

    job: Job
    failure: str | None  # in words
    worker: str  # its machine and address; empty where none lived to tell
    seconds: float


class Fitness(NamedTuple):
    """What a worker must have in common with the client."""

    versions: Mapping[str, str | None]
    root: Path  # of the repository, where relative paths start
    paths: tuple[Path, ...]  # must be there

    def lacks(self, worker: Any) -> str:
        """What is otherwise in the process of a Dask worker, in words; empty where nothing is."""
        faults = [
            f"has {name} {there}, here it is {here}"
            for name, here in self.versions.items()
            if (there := _version(name)) != here
        ]
        if (root := repository_root()) != self.root:
            faults.append(f"starts relative paths at {root}, here they start at {self.root}")
        faults += [f"does not see {path}" for path in self.paths if not path.exists()]
        if (threads := worker.state.nthreads) > 1:
            advice = f"start it with --nthreads 1, and with OMP_NUM_THREADS={threads} for a run of {threads} threads"
            faults.append(f"would make {threads} runs at once in one process; {advice}")
        return "; ".join(faults)


def _version(name: str) -> str | None:
    return next((one.version for one in distributions(name=name)), None)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    function: Callable[[Job], str | None],
    next_job: Callable[[], Job | None],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    writes: Iterable[Path] = (),
    reads: Iterable[Path] = (),
    again: tuple[type[Exception], ...] = (),
) -> Generator[Done[Job]]:
    """Have every job done by a worker, and tell of each when it has come to its end.

    Left early, by an error or Ctrl-C, it ends the jobs that are running.

    Args:
        function: of the library, called with a job in a worker; returns what failed, in words, or None.
        next_job: the next one to begin, asked whenever a worker is free; None while there is none.
        workers: of a local cluster, each a process with its share of the cores.
        scheduler: in its place, the address or the scheduler file of a cluster that is there.
        writes, reads: folders that a worker must see, to write and to read; those to write are made.
        again: errors of `function` after which a job is tried again later, because another process has its folder.

    Raises:
        ClusterError: Dask is missing, no scheduler answers, or a worker does not fit.
    """
    with _connected(workers, scheduler) as client, _fitness(writes, reads) as fitness:
        _refuse_unfit(client, fitness)
        desk = _Desk(client, partial(_in_worker, function, fitness, again))
        try:
            yield from desk.work(next_job)
        finally:
            desk.end()


class _Desk(Generic[Job]):
    """Hands out jobs, no more than there are workers: what Dask keeps in a worker's queue counts as died with it."""

    def __init__(self, client: Any, work: Callable[[Job], Any]) -> None:
        self.client, self.do = client, work
        self.finished: SimpleQueue[Any] = SimpleQueue()
        self.running: dict[Any, Job] = {}
        self.held: list[tuple[float, Job]] = []  # could not begin when it was tried
        self.told: set[str | None] = set()
        self.crew: dict[str, list[Job]] = {}  # by address, what each worker has of ours
        self.alone = every(30.0)

    def work(self, next_job: Callable[[], Job | None]) -> Iterator[Done[Job]]:
        """Until there is no job left."""
        last = time.monotonic()
        while True:
            self._look()
            self._begin(next_job)
            if not self.running and not self.held:
                return
            try:
                future = self.finished.get(timeout=LOOK_S)
            except Empty:
                continue
            job = self.running.pop(future)
            failure, is_held, worker, seconds = _answer(future)
            future.release()  # else Dask would do it again, should this worker die with the next one
            if is_held and (self.running or time.monotonic() - last < HELD_S):
                self.held.append((time.monotonic(), job))
                if failure not in self.told:
                    logger.warning("%s cannot begin yet, and is tried again: %s", job.name, failure)
                    self.told.add(failure)
                continue
            last = last if is_held else time.monotonic()
            yield Done(job, failure, worker, seconds)

    def _look(self) -> None:
        """Which workers are there; tells of those that are gone with a job."""
        try:
            now = self.client.processing()
        except (OSError, RuntimeError) as error:  # of a client that closed itself the latter
            raise _gone(error) from None
        own, before = {future.key: job for future, job in self.running.items()}, self.crew
        self.crew = {address: [own[key] for key in keys if key in own] for address, keys in now.items()}
        for address in before.keys() - now.keys():
            for job in before[address]:
                if job in own.values():
                    logger.warning("%s: its worker %s is gone; another goes on with it", job.name, address)
        if not self.crew and self.alone():
            logger.warning("no worker is there; waiting for one")

    def _begin(self, next_job: Callable[[], Job | None]) -> None:
        while len(self.running) < max(1, len(self.crew)):
            job = next_job()
            if job is None and self.held and time.monotonic() - self.held[0][0] > RETRY_S:
                job = self.held.pop(0)[1]
            if job is None:
                return
            future = self.client.submit(self.do, job, key=f"{job.name}-{uuid4().hex[:8]}", pure=False)
            self.running[future] = job
            future.add_done_callback(self.finished.put)

    def end(self) -> None:
        """End what runs. Dask cannot interrupt a job, so that its worker's process is started anew."""
        if not self.running or self.client.cluster is not None:  # its own is about to be closed
            return
        logger.info("ending the runs that are under way")
        keys = {future.key for future in self.running}
        with suppress(OSError, RuntimeError):  # of a scheduler that is gone
            self.client.cancel(list(self.running))
            # Until the scheduler knows, it would give the runs of a worker that is restarted to another.
            while any(keys & {*has} for has in self.client.processing().values()):
                time.sleep(0.05)
            answers = self.client.run(_has_one_of, keys, on_error="ignore")
            try:
                self.client.restart_workers([one for one, busy in answers.items() if busy], raise_for_error=False)
            except ValueError:
                logger.warning("workers without a nanny cannot be interrupted, and finish their run")


def _gone(error: Exception) -> ClusterError:
    return ClusterError(f"the scheduler is gone ({error}); start one, and the same command goes on")


def _answer(future: Any) -> tuple[str | None, bool, str, float]:
    """What `_in_worker` returned; what it raised is no failure of the job, and is raised."""
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        told = f"{error.allowed_failures + 1} workers died with it, the last on {error.last_worker.address}"
        advice = "most likely for want of memory: take fewer workers, a smaller image_size or batch_size"
        return f"{told}, {advice}", False, "", 0.0
    except CancelledError as error:
        raise _gone(error) from None


# --- The cluster


@contextmanager
def _connected(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """A client of Dask's."""
    try:
        from dask import config
        from distributed import Client, LocalCluster
    except ModuleNotFoundError as error:
        told = f"workers need Dask, and the package {error.name} is missing"
        raise ClusterError(f"{told}; install the extra 'cluster', or pip install distributed") from None
    if scheduler is not None:
        place: Any = {"scheduler_file" if Path(scheduler).is_file() else "address": scheduler}
        if "address" in place and not re.fullmatch(r"\S+:\d+", scheduler):
            expected = "an address such as tcp://host:8786, or the scheduler file that dask scheduler has written"
            raise ClusterError(f"{scheduler}: no file, and no address of a scheduler; expected {expected}")
        try:
            client = Client(**place, set_as_default=False)
        except (OSError, RuntimeError) as error:  # the latter where Dask is told to encrypt, and the address is not
            raise ClusterError(f"{scheduler}: no scheduler answers: {error}") from None
        with client:
            yield client
        return
    threads = max(1, cores() // (workers or 1))
    limits = {
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": threads,  # what the user has set wins
        f"distributed.nanny.pre-spawn-environ.{SIDE_BY_SIDE}": workers,
        "distributed.scheduler.allowed-failures": DEATHS,
        "distributed.deploy.lost-worker-timeout": "1 day",  # in 15 s a killed one's successor may not have begun
        "distributed.worker.profile.enabled": False,
    }
    # Ctrl-C is for this process, which ends the others.
    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    crew: Any = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": 0, "preload": [deaf]}
    crew |= {"dashboard_address": None, "silence_logs": logging.ERROR}  # that a worker is lost is told here
    # Dask sets its workers' variables here too, where the next cluster would find them.
    set_here = {*config.get("distributed.nanny.pre-spawn-environ"), "PYTHONHASHSEED", SIDE_BY_SIDE} - {*os.environ}
    try:
        with (
            config.set(limits),
            LocalCluster(**crew) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client
    finally:
        for name in set_here:
            os.environ.pop(name, None)


@contextmanager
def _fitness(writes: Iterable[Path], reads: Iterable[Path]) -> Iterator[Fitness]:
    """What workers are held to; each folder to write has a file that only this machine's own folder has."""
    from gainmtl_lib.train import RECORDED_PACKAGES

    probes = []
    try:
        for folder in sorted(set(writes)):
            folder.mkdir(parents=True, exist_ok=True)
            probes.append(folder / f".cluster-{uuid4().hex[:8]}.txt")
            probes[-1].touch()
        there = [folder for folder in sorted(set(reads)) if folder.exists()]
        yield Fitness({name: _version(name) for name in RECORDED_PACKAGES}, repository_root(), (*probes, *there))
    finally:
        for probe in probes:
            probe.unlink(missing_ok=True)


def _refuse_unfit(client: Any, fitness: Fitness) -> None:
    """`ClusterError` with what workers lack that are there; one that comes later is told of when it gets a job."""
    answers = client.run(_lack_of, fitness, on_error="return")
    if lines := [f"{address}: {answer}" for address, answer in answers.items() if str(answer)]:
        raise ClusterError("\n".join(["workers that cannot make these runs:", *sorted(lines)]))
    logger.info("%d workers of the scheduler %s", len(answers), client.scheduler.address)


def _lack_of(fitness: Fitness, dask_worker: Any) -> str:
    lack = fitness.lacks(dask_worker)
    return lack and f"the worker on {socket.gethostname()} {lack}"


# --- In a worker


def _has_one_of(keys: set[str], dask_worker: Any) -> bool:
    return any(task.key in keys for task in dask_worker.state.executing)


def _in_worker(
    function: Callable[[Any], str | None], fitness: Fitness, again: tuple[type[Exception], ...], job: Any
) -> tuple[str | None, bool, str, float]:
    """What failed, whether that kept the job from beginning (try again, later or elsewhere), where, and the seconds."""
    from distributed import get_worker

    worker = get_worker()
    where, started = f"{socket.gethostname()}, {worker.address}", time.monotonic()
    if lack := _lack_of(fitness, worker):
        return f"{worker.address}: {lack}", True, where, 0.0
    multiprocessing.current_process().daemon = False  # else a run may have no loader workers (num_workers)
    show_progress()
    with _led_by(job.name):
        try:
            failure, is_held = function(job), False
        except again as error:
            failure, is_held = str(error), True
        if failure is not None:
            logger.warning("%s", failure)
    return failure, is_held, where, time.monotonic() - started


@contextmanager
def _led_by(name: str) -> Iterator[None]:
    """Log lines of the library begin with the job's name: several workers may share a terminal."""

    def lead(record: logging.LogRecord) -> bool:
        record.msg, record.args = f"{name}: {record.getMessage()}", ()
        return True

    handlers = logging.getLogger("gainmtl_lib").handlers
    for handler in handlers:
        handler.addFilter(lead)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(lead)
