"""Jobs on a Dask cluster: side by side, killed, held, refused, interrupted. Workers are processes of the test's own."""

import json
import logging
import os
import signal
import sys
import time
from concurrent.futures import CancelledError
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from unittest.mock import Mock

import distributed
import psutil
import pytest
from click.testing import CliRunner
from dask import config
from distributed import KilledWorker, LocalCluster
from stand_ins import HeldElsewhere, StandIn, stand_in, steps
from tiny import tiny_settings

from gainmtl_lib.cli import main
from gainmtl_lib.settings import repository_root
from gainmtl_lib.studies import cluster
from gainmtl_lib.studies.cluster import ClusterError, Fitness, run_jobs
from gainmtl_lib.studies.plans import Cell, run_study
from gainmtl_lib.train import RECORDED_PACKAGES


def handing_out(*names, folder, **place):
    """`run_jobs` of stand-ins."""
    waiting = [StandIn(name, folder) for name in names]
    return run_jobs(stand_in, lambda: waiting.pop(0) if waiting else None, again=(HeldElsewhere,), **place)


@pytest.fixture(scope="module")
def there():
    """A cluster that is there: one worker, a thread of this process, which no nanny can start anew."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0", protocol="tcp"
    ) as own:
        yield own.scheduler_address


@pytest.fixture()
def impatient(monkeypatch):
    monkeypatch.setattr(cluster, "RETRY_S", 0.0)
    monkeypatch.setattr(cluster, "LOOK_S", 0.1)


def is_gone(pid):
    """Whether a process has ended, or does within ten seconds."""
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(timeout=10)
    return not psutil.pid_exists(pid)


def said(caplog):
    """The library's own lines."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("gainmtl_lib")]


# --- Workers of this machine


def test_workers_share_the_cores_and_a_job_goes_on_where_its_killed_worker_left_it(
    tmp_path, impatient, monkeypatch, caplog
):
    monkeypatch.setattr(cluster, "cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = ["works", "dies once", "fails", "held once", "works too"]
    with caplog.at_level(logging.INFO, logger="gainmtl_lib"):
        done = {one.job.name: one for one in handing_out(*names, folder=tmp_path, workers=2, writes=[tmp_path / "out"])}
    assert {name: one.failure for name, one in done.items()} == dict.fromkeys(names) | {"fails": "the loss became nan"}
    written = {name: steps(StandIn(name, tmp_path)) for name in names}
    began = {name: [line for line in lines if line.isdigit()] for name, lines in written.items()}
    assert {name: len(lines) for name, lines in began.items()} == {
        "works": 1, "dies once": 2, "fails": 1, "held once": 2, "works too": 1
    }  # fmt: skip
    assert began["dies once"][0] not in began["dies once"][1:]
    assert {lines[-1] for name, lines in written.items() if name != "fails"} == {"3 threads, daemon False, 2 at once"}
    assert all(one.worker.partition(", ")[2].startswith("tcp://127.0.0.1:") for one in done.values())
    assert said(caplog)[0].startswith("2 workers of the scheduler tcp://127.0.0.1:")
    told = "held once cannot begin yet, and is tried again: another process (7 on far) is writing to this run"
    assert said(caplog).count(told) == 1
    assert list((tmp_path / "out").iterdir()) == [] and not {"OMP_NUM_THREADS", "GAINMTL_SIDE_BY_SIDE"} & {*os.environ}


def test_a_run_whose_worker_is_killed_ends_like_one_made_here(tmp_path):
    """A real process, killed after an epoch; another resumes the run from its last checkpoint."""
    own, there = (
        [Cell("S1", 0, tiny_settings(tmp_path / place, "S1", seed=0, data_root=tmp_path / "data"))]
        for place in ("own", "there")
    )
    folder = there[0].settings.run_dir
    assert run_study(own).state == "1 of 1 runs"

    def kill():
        while not (folder / "checkpoints" / "last.ckpt").is_file():
            time.sleep(0.01)
        os.kill(int((folder / ".holder.txt").read_text().split()[0]), signal.SIGKILL)
        killed.append(json.loads((folder / "manifest.json").read_text())["status"])

    killed: list[str] = []
    killer = Thread(target=kill, daemon=True)
    killer.start()
    with config.set({"distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": 1}):
        assert run_study(there, workers=1).state == "1 of 1 runs"
    killer.join()
    assert killed == ["running"] and there[0].run.metrics == own[0].run.metrics
    assert run_study(there, workers=1).state == "1 of 1 runs"  # nothing is missing: no worker is started


# --- A cluster that is there


def test_what_stays_held_fails_once_no_other_runs(tmp_path, there, impatient, monkeypatch):
    monkeypatch.setattr(cluster, "HELD_S", 0.3)
    done = list(handing_out("held", "works", folder=tmp_path, scheduler=there))
    failure = "another process (7 on far) is writing to this run"
    assert [(one.job.name, one.failure) for one in done] == [("works", None), ("held", failure)]
    assert len(steps(StandIn("held", tmp_path))) > 1


def test_a_mistake_is_passed_on_and_ends_what_runs_as_ctrl_c_does_and_the_cluster_stays(tmp_path):
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as own:
        place = {"folder": tmp_path, "scheduler": own.scheduler_address}
        with (
            pytest.raises(ZeroDivisionError, match="a mistake"),
            closing(handing_out("lasts", "broken", **place)) as jobs,
        ):
            list(jobs)
        assert is_gone(int(steps(StandIn("lasts", tmp_path))[0]))
        assert [one.failure for one in handing_out("works", **place)] == [None]


def test_a_worker_without_a_nanny_finishes_its_run(caplog):
    """Dask refuses to restart it. Others are left alone, and none is restarted before the scheduler has cancelled."""
    calls = []

    def restart_workers(workers, **_):
        calls.append(workers)
        raise ValueError("Restarting workers requires a nanny to be used")

    tasks = [{"tcp://a:1": ["job-1"], "tcp://b:1": ["another's"]}, {"tcp://a:1": [], "tcp://b:1": ["another's"]}]
    client = SimpleNamespace(
        cluster=None, cancel=calls.append, processing=lambda: tasks.pop(0), restart_workers=restart_workers,
        run=lambda *_, **__: {"tcp://a:1": True, "tcp://b:1": False},
    )  # fmt: skip
    desk, future = cluster._Desk(client, stand_in), Mock(key="job-1")
    desk.running[future] = StandIn("lasts", Path())
    with caplog.at_level(logging.INFO, logger="gainmtl_lib"):
        desk.end()
    assert calls == [[future], ["tcp://a:1"]] and not tasks and said(caplog) == [
        "ending the runs that are under way", "workers without a nanny cannot be interrupted, and finish their run"
    ]  # fmt: skip


# --- Who may be a worker


def test_a_worker_is_held_to_versions_paths_and_one_run_at_a_time(tmp_path):
    one, many = (SimpleNamespace(state=SimpleNamespace(nthreads=number)) for number in (1, 4))
    torch = cluster._version("torch")
    assert Fitness({"torch": torch, "mmcv": None}, repository_root(), (tmp_path,)).lacks(one) == ""
    faults = Fitness({"torch": "1.0", "mmcv": "2.1"}, Path("/here"), (tmp_path / "gone",)).lacks(many).split("; ")
    assert faults == [
        f"has torch {torch}, here it is 1.0", "has mmcv None, here it is 2.1",
        f"starts relative paths at {repository_root()}, here they start at /here", f"does not see {tmp_path / 'gone'}",
        "would make 4 runs at once in one process", "start it with --nthreads 1, and with OMP_NUM_THREADS=4 for a run of 4 threads",
    ]  # fmt: skip


def test_an_unfit_worker_is_refused_by_name_before_a_run_begins(tmp_path):
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0", protocol="tcp"
    ) as own:
        (address,) = [worker.address for worker in own.workers.values()]
        told = rf"workers that cannot make these runs:\n{address}: the worker on \S+ would make 2 runs at once"
        with pytest.raises(ClusterError, match=told):
            list(handing_out("works", folder=tmp_path, scheduler=own.scheduler_address, reads=[tmp_path]))
    assert steps(StandIn("works", tmp_path)) == []


def test_a_worker_that_came_later_gives_back_what_it_cannot_do(tmp_path, monkeypatch):
    late = SimpleNamespace(address="tcp://10.0.0.3:4000", state=SimpleNamespace(nthreads=1))
    monkeypatch.setattr(distributed, "get_worker", lambda: late)
    fitness = Fitness({name: cluster._version(name) for name in RECORDED_PACKAGES}, Path("/here"), ())
    failure, is_held, worker, _ = cluster._in_worker(stand_in, fitness, (), StandIn("works", tmp_path))
    assert is_held and str(failure).startswith("tcp://10.0.0.3:4000: the worker on ")
    assert "starts relative paths at" in str(failure) and worker.endswith(", tcp://10.0.0.3:4000")
    assert steps(StandIn("works", tmp_path)) == []


# --- What goes wrong


def test_a_scheduler_that_is_none_and_a_missing_package_are_told(tmp_path, monkeypatch):
    for place, told in (
        (
            "nowhere.json",
            "nowhere.json: no file, and no address of a scheduler; expected an address such as tcp://host",
        ),
        ("tcp://127.0.0.1:1", "tcp://127.0.0.1:1: no scheduler answers: "),
    ):
        with config.set({"distributed.comm.timeouts.connect": "100ms"}), pytest.raises(ClusterError, match=told):
            list(handing_out("works", folder=tmp_path, scheduler=place))
    monkeypatch.setitem(sys.modules, "distributed", None)
    told = "workers need Dask, and the package distributed is missing; install the extra 'cluster'"
    with pytest.raises(ClusterError, match=told):
        list(handing_out("works", folder=tmp_path, workers=1))


def test_a_scheduler_that_is_gone_is_told(tmp_path):
    def gone():
        raise OSError("connection lost")

    told = r"the scheduler is gone \({}\); start one, and the same command goes on"
    with pytest.raises(ClusterError, match=told.format("connection lost")):
        next(cluster._Desk(SimpleNamespace(processing=gone), stand_in).work(lambda: None))
    with pytest.raises(ClusterError, match=told.format("cancelled")):
        cluster._answer(SimpleNamespace(result=lambda: (_ for _ in ()).throw(CancelledError("cancelled"))))


def test_a_job_that_takes_its_workers_along_is_given_up():
    def killed():
        raise KilledWorker("job", SimpleNamespace(address="tcp://10.0.0.3:4000"), 3)

    failure, is_held, *_ = cluster._answer(SimpleNamespace(result=killed))
    assert not is_held and failure == (
        "4 workers died with it, the last on tcp://10.0.0.3:4000, most likely for want of memory: take fewer workers, a "
        "smaller image_size or batch_size"
    )


def test_a_worker_that_is_gone_is_told_with_what_it_had_and_so_is_the_last(monkeypatch, caplog):
    monkeypatch.setattr(cluster, "every", lambda seconds: lambda: True)
    there = [{"tcp://a:1": ["job-1"], "tcp://b:1": ["job-2", "another's"]}, {"tcp://a:1": ["job-1"]}, {}]
    desk = cluster._Desk(SimpleNamespace(processing=lambda: there.pop(0)), stand_in)
    desk.running = {Mock(key=f"job-{number}"): StandIn(f"S{number}", Path()) for number in (1, 2)}
    desk._look()
    desk._look()
    desk.running.popitem()  # S2 came to its end
    desk._look()
    assert said(caplog) == [
        "S2: its worker tcp://b:1 is gone; another goes on with it",
        "S1: its worker tcp://a:1 is gone; another goes on with it", "no worker is there; waiting for one",
    ]  # fmt: skip


# --- The command line


def test_the_place_is_handed_on_and_given_once(monkeypatch):
    asked = []
    monkeypatch.setattr("gainmtl_lib.studies.ablation.run_and_report", lambda *a, **k: asked.append(k) or 0)
    monkeypatch.setattr("gainmtl_lib.notebooks.run_all", lambda *a, **k: asked.append(k))
    monkeypatch.setattr("gainmtl_lib.console.print_comparison", lambda *_: None)
    for command in (["ablation"], ["shortcut"], ["run", "all"]):
        for place in (["--workers", "3"], ["--scheduler", "tcp://10.0.0.1:8786"]):
            assert CliRunner().invoke(main, [*command, *place]).exit_code == 0
        assert [(one["workers"], one["scheduler"]) for one in asked] == [(3, None), (None, "tcp://10.0.0.1:8786")]
        asked.clear()
        for both in (["--workers", "3", "--scheduler", "a:1"], ["--scheduler", "a:1", "--workers", "3"]):
            refused = CliRunner().invoke(main, [*command, *both])
            assert (
                refused.exit_code == 2 and "--workers runs on this machine, --scheduler on a cluster" in refused.output
            )
    for option in (["--workers", "3"], ["--scheduler", "a:1"]):
        refused = CliRunner().invoke(main, ["run", "s1", *option])
        assert refused.exit_code == 2 and f"{option[0]} is for 'all': one strategy is one notebook" in refused.output
