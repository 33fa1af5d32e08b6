"""Who started the processes, what is refused, and a training that torchrun started."""

import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from stand_ins import hears_ctrl_c_and_is_killed
from tiny import tiny_settings

from gainmtl_lib import cli
from gainmtl_lib import train as training
from gainmtl_lib.cli import main
from gainmtl_lib.launch import Launch, LaunchError, ProcessError, start_for_each_device
from gainmtl_lib.runs import load_run
from gainmtl_lib.settings import Settings, repository_root
from gainmtl_lib.train import fit, to_be_started

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": 5, "LOCAL_RANK": 1, "WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": 4}
SRUN = {"STEP_NUM_TASKS": 8, "STEP_NUM_NODES": 2, "PROCID": 5, "LOCALID": 1, "NTASKS_PER_NODE": 4}
SLURM = {f"SLURM_{name}": value for name, value in SRUN.items()}


@pytest.fixture
def launched(monkeypatch):
    """Puts variables into an environment that no launcher has touched."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_", "GAINMTL_"))]:
        monkeypatch.delenv(name)

    def put(variables, **others):
        for name, value in (variables | others).items():
            monkeypatch.setenv(name, str(value))

    return put


def asked(devices, nodes=1):
    return Settings(devices=devices, num_nodes=nodes)


def test_processes_are_found_by_what_a_launcher_says(launched):
    assert Launch.found() == Launch() == Launch.of(asked(4)) and Launch().is_main
    launched({"SLURM_NTASKS": 8, "SLURM_PROCID": 0})  # in a job's script, without srun
    assert Launch.of(asked(4)) == Launch()
    launched(SLURM, SLURM_JOB_NAME="bash")  # srun --pty bash, of whose tasks one stays
    assert Launch.of(asked(4)) == Launch()
    launched(SLURM, SLURM_JOB_NAME="interactive", SLURM_STEP_NUM_TASKS=1)  # salloc's shell
    assert Launch.of(asked(4)) == Launch()
    for name in ("interactive", "x"):  # srun in that shell, or in a script
        launched(SLURM, SLURM_JOB_NAME=name)
        assert Launch.of(asked(4, 2)) == Launch("slurm", rank=5, local_rank=1, count=8, on_node=4)
    assert Launch.of(asked(1)) == Launch()  # each task is a run of its own
    launched(TORCHRUN)  # which srun may have started on each node
    assert Launch.of(asked(4, 2)) == Launch("torchrun", rank=5, local_rank=1, count=8, on_node=4)
    assert not Launch.found().is_main
    launched({"GAINMTL_PROCESSES": 2, "LOCAL_RANK": 1})
    assert Launch.of(asked(2)) == Launch("gainmtl", rank=1, local_rank=1, count=2, on_node=2)


@pytest.mark.parametrize(("variables", "devices", "nodes", "message"), [
    ({}, 2, 2, r"is 2 × 2 = 4, but no launcher started the processes; start it on every node by torchrun or srun"),
    (TORCHRUN, 1, 1, r"devices × num_nodes is 1 × 1 = 1, but torchrun started 8 processes, 4 on this node; let them"),
    (TORCHRUN, 2, 4, r"is 2 × 4 = 8, but torchrun started 8 processes, 4 on this node"),
    (TORCHRUN | {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}, 2, 1, r"= 2, but torchrun started 1 processes"),
    (SLURM, 2, 1, r"devices × num_nodes is 2 × 1 = 2, but slurm started 8 processes, 4 on this node"),
])  # fmt: skip
def test_other_processes_than_asked_for_are_named_once_on_each_node(launched, variables, devices, nodes, message):
    launched(variables, LOCAL_RANK=0, SLURM_LOCALID=0)
    with pytest.raises(LaunchError, match=message):
        Launch.of(asked(devices, nodes))
    if variables:
        launched(variables, LOCAL_RANK=1, SLURM_LOCALID=1)
        with pytest.raises(SystemExit, match="1"):
            Launch.of(asked(devices, nodes))


def test_slurm_must_know_the_tasks_of_a_node(launched, monkeypatch):
    launched(SLURM, SLURM_LOCALID=0)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(LaunchError, match="give --ntasks-per-node=4 to sbatch or srun, in place of --ntasks"):
        Launch.of(asked(4, 2))
    launched(SLURM, SLURM_LOCALID=1)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(SystemExit, match="1"):
        Launch.of(asked(4, 2))


def test_processes_are_started_where_nobody_has_and_something_is_left_to_train(launched, tmp_path, monkeypatch):
    settings, started = tiny_settings(tmp_path, "S1", devices=2), []
    monkeypatch.setattr(training, "start_for_each_device", lambda *given, **options: started.append((given, options)))
    assert fit(settings, force=True).folder == settings.run_dir
    ((function, what), options), *others = started
    assert (function, what, others) == (fit, settings, []) and options["force"] and options["data"] is None
    assert not to_be_started(settings, Launch("gainmtl", count=2, on_node=2), force=False)
    assert not to_be_started(settings.changed(devices=1), Launch(), force=False)
    monkeypatch.setattr("gainmtl_lib.runs.run_status", lambda folder: "complete")
    assert to_be_started(settings, Launch(), force=True) and not to_be_started(settings, Launch(), force=False)


def test_each_process_hears_ctrl_c_though_its_parent_ignores_it_and_one_that_is_killed_is_told():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    told = r"^process 0 was killed \(SIGKILL\), most likely for want of memory; take a smaller image_size or batch_size"
    try:
        with pytest.raises(ProcessError, match=told):
            start_for_each_device(hears_ctrl_c_and_is_killed, asked(1))
    finally:
        signal.signal(signal.SIGINT, before)


def test_of_several_processes_one_speaks_and_other_commands_are_for_one(launched, monkeypatch, tmp_path, capsys):
    def told(*words, **others):
        launched(TORCHRUN, **others)
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        assert left.value.code == 1
        return " ".join(capsys.readouterr().err.split())

    monkeypatch.setattr(cli, "show_progress", lambda: None)  # whose handler would keep a stream of this test
    wrong = ("train", "-p", "devics", 2)
    assert "did you mean 'devices'?" in told(*wrong, LOCAL_RANK=0) and told(*wrong, LOCAL_RANK=1) == ""
    why = "Error: gainmtl compare is for one process, and torchrun started 8"
    assert why in told("compare", tmp_path, LOCAL_RANK=0)
    for others in (("distill", tmp_path, tmp_path / "x.safetensors"), ("predict", tmp_path, tmp_path)):
        assert f"gainmtl efficientad {others[0]} is for one process" in told("efficientad", *others, LOCAL_RANK=0)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert "did you mean" in told(*wrong, LOCAL_RANK=1)  # what goes wrong later is another matter in each

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "read_parameters", interrupted)
    assert told("train", "-f", "x.yaml", RANK=5) == ""
    assert "interrupted; the same command goes on" in told("train", "-f", "x.yaml", RANK=0, LOCAL_RANK=0)


def test_torchrun_leaves_one_finished_run_that_is_that_of_one_process(tmp_path, launched):
    own = {"learning_rate": 1e-5, "num_epochs": 2, "backbone_arch": "test_efficientnet"}
    one = fit(tiny_settings(tmp_path, "S1", experiment="one", **own))
    settings = tiny_settings(tmp_path, "S1", experiment="two", devices=2, **own)
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(settings.plain()))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "gainmtl_lib.cli", "train", "-f", tmp_path / "two.yaml"]
    done = subprocess.run(command, cwd=repository_root(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["run:", str(settings.run_dir)]
    assert done.stderr.count("epoch 2 of 2") == 1
    two = load_run(settings.run_dir)
    assert {"devices": 2, "launcher": "torchrun", "status": "complete"}.items() <= two.manifest.items()
    losses, expected = (run.history.set_index(["tag", "step"])["value"].sort_index() for run in (two, one))
    pd.testing.assert_series_equal(losses, expected, rtol=1e-4, atol=1e-6)
    assert two.manifest["shown"] == one.manifest["shown"]
