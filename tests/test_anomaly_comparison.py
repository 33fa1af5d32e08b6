"""EfficientAD's runs below the strategies: collected, tabled and exported."""

import pytest
from anomaly_runs import TEACHER, tiny_anomaly_settings, write_anomaly_run
from rich.console import Console

from gainmtl_lib.console import print_comparison
from gainmtl_lib.efficientad.evaluate import evaluate_efficientad
from gainmtl_lib.efficientad.figures import anomaly_table, collect_efficientad
from gainmtl_lib.runs import RunError


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    evaluate_efficientad(write_anomaly_run(tiny_anomaly_settings(folder)))
    write_anomaly_run(tiny_anomaly_settings(folder, seed=7))  # not evaluated
    write_anomaly_run(tiny_anomaly_settings(folder, seed=8), status="running")
    return folder / "outputs/tiny"


def test_finished_and_evaluated_runs_are_collected(experiment):
    (run,) = collect_efficientad(experiment)
    assert run.settings.seed == 42
    assert collect_efficientad(experiment / "nothing here") == []


def test_one_row_per_run_and_split_with_the_teacher(experiment):
    (run,) = collect_efficientad(experiment)
    table = anomaly_table([run])
    assert table.index.tolist() == ["EfficientAD, seed 42, test", "EfficientAD, seed 42, test_shift"]
    assert table["teacher"].tolist() == [TEACHER["text"]] * 2
    assert table.loc["EfficientAD, seed 42, test", "image AUROC"] == f"{run.metrics['test']['auroc']:.3f}"


def test_printed_and_exported_without_any_strategy(experiment, tmp_path):
    console = Console(record=True, width=200)
    print_comparison(console, experiment, export=tmp_path / "export")
    assert "EfficientAD, from good parts alone" in console.export_text()
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["efficientad.jpg", "efficientad.md"]
    assert "| EfficientAD, seed 42, test |" in (tmp_path / "export" / "efficientad.md").read_text()


def test_an_experiment_without_any_run_is_an_error(tmp_path):
    with pytest.raises(RunError, match="no evaluated run"):
        print_comparison(Console(record=True), tmp_path)
