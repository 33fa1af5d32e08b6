"""What handing out costs: many short jobs on a local cluster whose workers are killed, against their bare duration.

    nice python benchmarks/cluster.py [--jobs 1000] [--seconds 1] [--workers 8] [--killed 0.1] [--export FILE]

A job is a stand-in for a run: it holds its folder's lock, sleeps in ten parts and writes a checkpoint after each as a
run does, goes on from the last one when it is begun again, and at its end writes that it is complete. Sleeping takes no
core, so that what is measured is the handing out: `run_jobs`, Dask, processes that start anew. The share `--killed` of
the jobs kill their worker's process (SIGKILL) once, after a seeded part. What such a job had saved is not done again.

overhead_per_run_ms  (wall - jobs * seconds / workers) / jobs, and as a ratio to a job's own time on that share of the
                     workers; wall is without the workers' first start, which `starting_s` tells.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from gainmtl_lib.progress import show_progress
from gainmtl_lib.studies.cluster import run_jobs

PARTS = 10


class StandIn(NamedTuple):
    """A job: where it writes, how long it takes, and after which part its worker dies the first time."""

    name: str
    folder: Path
    seconds: float
    dies_after: int | None


def stand_in(job: StandIn) -> None:
    """Take its time, go on from what is there, and die where it shall."""
    job.folder.mkdir(parents=True, exist_ok=True)
    checkpoint, complete = job.folder / "checkpoint.json", job.folder / "complete.txt"
    with FileLock(job.folder / ".lock").acquire(timeout=0):
        begun = [*_lines(job.folder / "begun.txt"), f"{os.getpid()}"]
        (job.folder / "begun.txt").write_text("\n".join(begun), encoding="utf-8")
        done = json.loads(checkpoint.read_text(encoding="utf-8"))["done"] if checkpoint.is_file() else 0
        for part in range(done, PARTS):
            time.sleep(job.seconds / PARTS)
            beside = checkpoint.with_suffix(".tmp")
            beside.write_text(json.dumps({"done": part + 1, "by": os.getpid()}), encoding="utf-8")
            beside.replace(checkpoint)
            if part == job.dies_after and len(begun) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        with complete.open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def measure(root: Path, *, jobs: int, seconds: float, workers: int, killed: float) -> dict[str, Any]:
    """Have all jobs done, and count."""
    import gainmtl_lib.train  # noqa: F401  # what a study has loaded already

    rng = random.Random(0)
    dying = {number: rng.randrange(PARTS) for number in rng.sample(range(jobs), round(killed * jobs))}
    every = [StandIn(f"job {n}", root / f"{n:05d}", seconds, dying.get(n)) for n in range(jobs)]
    waiting, called, began = list(every), time.perf_counter(), []

    def next_job() -> StandIn | None:
        began.append(time.perf_counter())
        return waiting.pop(0) if waiting else None

    done = list(run_jobs(stand_in, next_job, workers=workers, writes=[root], again=(Timeout,)))
    wall, ideal = time.perf_counter() - began[0], jobs * seconds / workers
    completed = [len(_lines(job.folder / "complete.txt")) for job in every]
    begun = [len(_lines(job.folder / "begun.txt")) for job in every]
    return {
        "jobs": jobs,
        "seconds": seconds,
        "workers": workers,
        "workers_killed": sum(begun) - jobs,
        "complete": sum(count > 0 for count in completed),
        "complete_once": sum(count == 1 for count in completed),
        "failed": sum(one.failure is not None for one in done),
        "starting_s": round(began[0] - called, 1),
        "wall_s": round(wall, 1),
        "ideal_s": round(ideal, 1),
        "overhead_per_run_ms": round(1000 * (wall - ideal) / jobs, 1),
        "overhead_to_ideal": round((wall - ideal) / ideal, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--killed", type=float, default=0.1)
    parser.add_argument("--export", type=Path)
    asked = vars(parser.parse_args())
    export = asked.pop("export")
    show_progress(level=40)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), **asked)
    print(json.dumps(found, indent=1))
    if export is not None:
        export.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
