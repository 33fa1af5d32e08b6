"""Parts of a batch, and what two processes learn: what a single one does, whether they are asked or trained."""

import json
import warnings

import pandas as pd
import pytest
import torch
import two_processes
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from tiny import tiny_settings

from gainmtl_lib import processes
from gainmtl_lib.efficientad.model import hard_feature_loss
from gainmtl_lib.efficientad.train import fit_efficientad
from gainmtl_lib.launch import Launch, start_for_each_device
from gainmtl_lib.processes import Part, Shared
from gainmtl_lib.runs import RunError, read_checkpoint
from gainmtl_lib.train import fit


def test_parts_are_equal_follow_each_other_and_make_up_the_batch():
    parts = [Part.of(7, rank, 3) for rank in range(3)]
    assert [(part.start, part.stop, part.size) for part in parts] == [(0, 2, 7), (2, 4, 7), (4, 7, 7)]
    assert [part.weight for part in parts] == pytest.approx([6 / 7, 6 / 7, 9 / 7])  # their mean is 1
    assert [Part.of(8, rank, 2).places for rank in (0, 1)] == [slice(0, 4), slice(4, 8)]
    assert {Part.of(2, rank, 3) for rank in range(3)} == {Part(0, 2, 2, 1.0)}  # too few for a part each
    assert Part.of(5, 0, 1) == Part.whole(5) == Part(0, 5, 5)


class Whole:
    """Makes of each key itself, and remembers what counts."""

    def __init__(self):
        self.counting, self.counted = True, []

    def __getitems__(self, keys):
        self.counted += keys if self.counting else []
        return list(keys)


def test_each_process_loads_its_part_of_every_batch_and_what_all_load_counts_once():
    datasets = [Shared(Whole()) for _ in range(3)]
    for rank, each in enumerate(datasets):
        each.rank, each.count = rank, 3
    batches = [[each.__getitems__(keys) for each in datasets] for keys in ("abcdefg", "hi", "jkl")]
    assert batches[0] == [["a", "b"], ["c", "d"], ["e", "f", "g"]] and batches[2] == [["j"], ["k"], ["l"]]
    assert batches[1] == [["h", "i"]] * 3
    assert sorted(key for each in datasets for key in each.dataset.counted) == sorted("abcdefghijkl")
    alone = Shared(Whole())  # one process has the whole
    assert (alone.rank, alone.count) == (0, 1) and alone.__getitems__("abc") == ["a", "b", "c"]


def test_lightning_is_told_who_started_the_processes_and_tells_nobody_otherwise(monkeypatch, tmp_path):
    for name, value in {"NTASKS": "2", "NTASKS_PER_NODE": "2", "JOB_NAME": "interactive"}.items():  # srun in salloc
        monkeypatch.setenv(f"SLURM_{name}", value)
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    kinds = {"none": LightningEnvironment, "gainmtl": LightningEnvironment}
    for launcher, kind in (kinds | {"torchrun": TorchElasticEnvironment, "slurm": SLURMEnvironment}).items():
        with warnings.catch_warnings(record=True) as told:
            made = processes.environment(Launch(launcher))
        assert not told
        assert type(made) is kind and not getattr(made, "auto_requeue", False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """After both processes did all that `two_processes` asks of them."""
    folder = tmp_path_factory.mktemp("processes")
    settings = tiny_settings(folder, "S1", devices=2)
    with pytest.raises(RunError, match=r"\Awhat one process alone cannot do\Z"):  # and it is raised here
        start_for_each_device(two_processes.in_each, settings, folder=folder)
    return folder


def of_both(folder, name):
    return [torch.load(folder / f"alone{rank}.pt", weights_only=True)[name] for rank in (0, 1)]


@pytest.mark.parametrize("name", ["shared", "first_has_all", "both"])
def test_batch_norm_and_dropout_are_those_of_the_whole_batch(folder, name):
    one, two = two_processes.layers_of(two_processes.a_batch(7), Part.whole(7)), of_both(folder, name)
    losses = [each.pop("losses") for each in two]
    torch.testing.assert_close(losses[0] if name == "both" else torch.cat(losses), one.pop("losses"))
    for key, expected in one.items():
        if "running" in key or "batches" in key:
            # Twice as many pictures, each twice: the variance of all is corrected by another number of them.
            found, tolerance = two[0][key], 0.01 if name == "both" else 1e-5
            assert torch.equal(found, two[1][key])
        else:
            found, tolerance = sum(each[key] for each in two) / (2 if name == "both" else 1), 1e-5
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-4)


@pytest.mark.parametrize("quantile", [0.0, 0.9, 0.999])
def test_the_hardest_features_are_those_of_the_whole_batch(folder, quantile):
    one = hard_feature_loss(*two_processes.features(6), quantile)
    for two in of_both(folder, f"hard_{quantile}"):
        torch.testing.assert_close(two["loss"], one)


def test_means_are_weighted_by_how_many_of_the_selected_pictures_a_process_has(folder):
    # Three pictures and one, which is the only one that the second row selects.
    weights = of_both(folder, "weights")
    assert torch.stack(weights).tolist() == [[1.5, 0.0], [0.5, 2.0]]
    assert processes.mean_weights(torch.tensor([[True, False], [False, False]])).tolist() == [1.0, 0.0]
    for rows in of_both(folder, "rows"):  # each once
        assert rows.tolist() == [[4, 1], [5, 0], [9, 7]]


def compare(one, two):
    """Every logged number of a run of one process and of a run of two, and what Adam remembers of the gradients."""
    losses, expected = (run.history.set_index(["tag", "step"])["value"].sort_index() for run in (two, one))
    assert len(losses) >= 20
    # Of a normal picture and its copy with an anomaly the calm parts score the same but for rounding, which decides.
    losses, expected = (values.drop("val/image_auroc", errors="ignore") for values in (losses, expected))
    pd.testing.assert_series_equal(losses, expected, rtol=1e-4, atol=1e-6)
    found, wanted = (read_checkpoint(run.folder / "checkpoints/last.ckpt")["optimizer_states"][0] for run in (two, one))
    assert found["state"].keys() == wanted["state"].keys()  # the same weights learn
    for place, of_one in wanted["state"].items():
        own, other = (state["exp_avg"] for state in (found["state"][place], of_one))
        assert (own - other).norm() <= 1e-3 * other.norm() + 1e-7, place


@pytest.mark.parametrize("strategy", ["s6", "s8"])
def test_two_processes_learn_what_one_does_also_after_an_interruption(folder, strategy):
    asked = getattr(two_processes, strategy)
    with two_processes.every_step():
        one = fit(asked(folder, experiment="one"))
    two = fit(asked(folder, experiment="two", devices=2))  # which is there
    compare(one, two)
    assert two.manifest["shown"] == one.manifest["shown"]
    assert {"device": "cpu", "devices": 2, "num_nodes": 1, "launcher": "gainmtl"}.items() <= two.manifest.items()
    assert (one.manifest["devices"], one.manifest["launcher"]) == (1, "none")


def test_two_processes_learn_of_good_parts_what_one_does(folder):
    with two_processes.every_step():
        one = fit_efficientad(two_processes.anomaly(folder, experiment="one"))
    two = fit_efficientad(two_processes.anomaly(folder, experiment="two", devices=2))
    compare(one, two)
    printed = [(folder / f"printed{rank}.txt").read_text() for rank in (0, 1)]
    assert "test" in printed[0] and str(two.folder) in printed[0].replace("\n", "") and printed[1] == ""
    assert two.metrics["test"] and (two.manifest["devices"], two.manifest["launcher"]) == (2, "gainmtl")


def test_an_early_stop_is_for_all_processes(folder):
    asked = two_processes.anomaly(folder, experiment="early", devices=2, val_every_n_steps=1, patience=1)
    run = fit_efficientad(asked)
    assert (run.manifest["steps"], run.manifest["best_step"]) == (2, 1)


def test_a_run_that_is_refused_is_refused_once_and_a_finished_one_returned_to_all(folder):
    told = [json.loads((folder / f"told{rank}.json").read_text()) for rank in (0, 1)]
    assert [each["returned"] for each in told] == [str(folder / "outputs/two/s6/seed42")] * 2
    assert told[0]["refused"][0] == "RunError" and "with other settings" in told[0]["refused"][1]
    assert told[1]["refused"] == ["SystemExit", "0"]
