"""Who starts the processes of a run, which of them this one is, and starting them where nobody else does."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from gainmtl_lib.progress import show_progress
from gainmtl_lib.settings import RunSettings, UserError

OWN = "GAINMTL_PROCESSES"  # how many there are, in the environment of those that `start_for_each_device` started
SIDE_BY_SIDE = "GAINMTL_SIDE_BY_SIDE"  # how many runs a study makes at once here, in the environment of its workers


class LaunchError(UserError, RuntimeError):
    """Other processes were started than `devices` and `num_nodes` ask for."""


class ProcessError(UserError, RuntimeError):
    """A process of a run that was killed; names the signal."""


@dataclass(frozen=True)
class Launch:
    """The processes that share a run, and which of them this one is."""

    launcher: str = "none"  # for one process; gainmtl (see `start_for_each_device`), torchrun or slurm for several
    rank: int = 0  # among all
    local_rank: int = 0  # on this node
    count: int = 1
    on_node: int = 1

    @classmethod
    def found(cls) -> Self:
        """By what launchers leave in the environment."""
        env = os.environ
        if OWN in env:
            rank, count = int(env["LOCAL_RANK"]), int(env[OWN])
            return cls("gainmtl", rank, rank, count, count)
        if "TORCHELASTIC_RUN_ID" in env:
            places = [int(env[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")]
            return cls("torchrun", *places)
        # Of srun: SLURM_NTASKS stands in a job's script, too, which is one process. So is salloc's shell, whose name
        # the tasks of an srun in it inherit. Of several tasks of 'srun --pty bash' all but the first end at once.
        tasks, is_shell = int(env.get("SLURM_STEP_NUM_TASKS", 1)), env.get("SLURM_JOB_NAME") == "bash"
        if tasks > 1 and not is_shell:
            nodes = int(env.get("SLURM_STEP_NUM_NODES", 1))
            return cls("slurm", int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]), tasks, tasks // nodes)
        return cls()

    @classmethod
    def of(cls, settings: RunSettings) -> Self:
        """The processes of a run. `LaunchError` where a launcher has started other ones than the settings ask for.

        One alone means that there is nothing to share, or that the others are to be started. Tasks of SLURM are runs of
        their own where each is to have one process.
        """
        found, asked = cls.found(), (settings.processes, settings.devices)
        if found.launcher == "slurm" and settings.processes == 1:
            return cls()
        sides = f"{settings.devices} × {settings.num_nodes} = {settings.processes}"
        if found.launcher == "none" and settings.num_nodes > 1:
            advice = "start it on every node by torchrun or srun, see docs/devices.md"
            raise LaunchError(f"devices × num_nodes is {sides}, but no launcher started the processes; {advice}")
        if found.launcher != "none" and (found.count, found.on_node) != asked:
            if found.local_rank:  # the first one of the node says it
                sys.exit(1)
            started = f"{found.launcher} started {found.count} processes, {found.on_node} on this node"
            raise LaunchError(f"devices × num_nodes is {sides}, but {started}; let them agree")
        if found.launcher == "slurm" and "SLURM_NTASKS_PER_NODE" not in os.environ:
            if found.local_rank:
                sys.exit(1)
            raise LaunchError(f"give --ntasks-per-node={settings.devices} to sbatch or srun, in place of --ntasks")
        return found

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0


def start_for_each_device(function: Callable[..., Any], settings: RunSettings, **options: Any) -> None:
    """Run ``function(settings, **options)`` in one process for each of the settings' devices, and wait for them.

    Each finds itself by `Launch.found`. They are spawned: from a notebook Lightning would fork, and a fork can neither
    use a GPU that the notebook has used nor the threads of OpenMP; nor can a notebook, or a test, be run once more for
    each process, as Lightning does with a script. So what is given must be of modules, and pickled.

    What the function raises as `UserError`, or for want of memory, is raised here. `ProcessError`: one was killed.
    """
    from torch.multiprocessing import get_context  # a command's --help does not wait for PyTorch
    from torch.multiprocessing.spawn import ProcessException, start_processes

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, errors = logging.getLogger("gainmtl_lib"), get_context("spawn").SimpleQueue()
    given = settings.devices, port, log.level if log.handlers else None, errors, function, settings, options
    context: Any = start_processes(_run, given, nprocs=settings.devices, join=False, start_method="spawn")
    try:
        while not context.join(grace_period=10):
            pass
    except ProcessException as error:
        if killed := getattr(error, "signal_name", None):
            advice = "take a smaller image_size or batch_size, or cache_images: false"
            why = f", most likely for want of memory; {advice}" if killed == "SIGKILL" else ""
            raise ProcessError(f"process {error.error_index} was killed ({killed}){why}") from None
        if errors.empty():
            raise
        raise errors.get() from None
    except KeyboardInterrupt:  # which they get, too; one that waits for another has nothing to write any more
        for process in context.processes:
            process.join(5)
            process.kill()
        raise


def _run(
    rank: int, count: int, port: int, level: int | None, errors: Any, function: Callable[..., Any],
    settings: RunSettings, options: dict[str, Any],
) -> None:  # fmt: skip
    # A worker of a study ignores it, which is inherited; and it is what tells that the parent is gone.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {OWN: str(count), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if level is not None:
        show_progress(level)
    import torch

    try:
        function(settings, **options)
    except (UserError, torch.OutOfMemoryError) as error:
        errors.put(error)
        sys.exit(1)
