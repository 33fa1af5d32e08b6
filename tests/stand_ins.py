"""Jobs of a cluster that stand in for runs. A worker loads them without PyTorch and pytest."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple


class HeldElsewhere(Exception):
    """Another process has the folder."""


class StandIn(NamedTuple):
    """`name` says what it does, `folder` where it leaves what it did."""

    name: str
    folder: Path


def stand_in(job: StandIn) -> str | None:
    """Do what the job's name says, from where it was left."""
    before = steps(job)
    write(job, f"{os.getpid()}")
    if job.name == "fails":
        return "the loss became nan"
    if job.name == "dies once" and not before:
        os.kill(os.getpid(), signal.SIGKILL)
    if job.name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.name == "held once" and not before:
        raise HeldElsewhere("another process (7 on far) is writing to this run")
    if job.name == "held":
        raise HeldElsewhere("another process (7 on far) is writing to this run")
    if job.name == "broken":
        while not steps(StandIn("lasts", job.folder)):
            time.sleep(0.02)
        raise ZeroDivisionError("a mistake")
    if job.name == "lasts":
        time.sleep(600)
    daemon, beside = multiprocessing.current_process().daemon, os.environ.get("GAINMTL_SIDE_BY_SIDE")
    write(job, f"{os.environ.get('OMP_NUM_THREADS')} threads, daemon {daemon}, {beside} at once")
    return None


def hears_ctrl_c_and_is_killed(settings: Any) -> None:
    """Of a run's processes one; it returns where it is deaf."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGKILL)


def write(job: StandIn, line: str) -> None:
    with (job.folder / job.name).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def steps(job: StandIn) -> list[str]:
    """Lines that it has written."""
    path = job.folder / job.name
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
