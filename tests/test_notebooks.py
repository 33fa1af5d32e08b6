"""Hygiene of the committed notebooks, and which run when. Their content is nbval's part."""

import ast
import os
import re
import signal
from itertools import islice
from multiprocessing import Pipe, get_context
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from gainmtl_lib import notebooks
from gainmtl_lib.efficientad.model import EfficientADSettings
from gainmtl_lib.notebooks import ABLATION, ANOMALIES, EXPLANATION, SHORTCUTS, STRATEGY_NOTEBOOKS, clean, notebook_path
from gainmtl_lib.settings import Settings, read_parameters, repository_root
from gainmtl_lib.studies.cluster import Done
from gainmtl_lib.studies.shortcut import ShortcutStudySettings

PARAMS = repository_root() / "params"
OWN_PARAMETERS = {
    ANOMALIES: ("efficientad_synthetic.yaml", EfficientADSettings),
    SHORTCUTS: ("studies/shortcut.yaml", ShortcutStudySettings),
}
NAMES = sorted([notebooks.INSPECTION, *STRATEGY_NOTEBOOKS.values(), ABLATION, EXPLANATION, *OWN_PARAMETERS])


def read(name):
    return nbformat.read(notebook_path(name), as_version=4)


def code_cells(name):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def parameters(name):
    (cell,) = [cell for cell in code_cells(name) if "parameters" in cell.metadata.get("tags", [])]
    statements = ast.parse(cell.source).body
    return {statement.targets[0].id: ast.literal_eval(statement.value) for statement in statements}


@pytest.mark.parametrize("name", NAMES)
def test_executed_top_to_bottom_without_errors_or_stderr_and_clean(name):
    assert sorted(path.stem for path in notebook_path("x").parent.glob("*.ipynb")) == NAMES
    cells, notebook = code_cells(name), read(name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    assert clean(read(name)) == notebook and notebook_path(name).stat().st_size < 400_000


@pytest.mark.parametrize("name", NAMES)
def test_question_then_parameters_then_settings_then_short_cells_of_which_compared_ones_hold_no_trained_numbers(name):
    cells = read(name).cells
    assert cells[0].cell_type == "markdown"
    for heading in (f"# {name[:2]} · ", "**Question.**", "**Adds.**", "**Needs.**", "**Writes.**"):
        assert heading in cells[0].source
    assert "they are no results" in cells[0].source or "Nothing is trained here" in cells[0].source
    assert cells[1].metadata.tags == ["parameters"]
    file, record = OWN_PARAMETERS.get(name, ("quick.yaml", Settings))
    assert cells[2].source.splitlines()[-1] == f"settings = {record.__name__}.from_namespace(globals())"
    wanted = read_parameters(PARAMS / file)  # of the notebook's own file, or quick.yaml and the strategy's
    for strategy, notebook in STRATEGY_NOTEBOOKS.items():
        wanted |= read_parameters(PARAMS / f"{strategy.lower()}.yaml") if notebook == name else {}
    assert parameters(name) == wanted

    for cell in code_cells(name)[1:]:
        assert len(cell.source.splitlines()) <= 25
        library = r"^\s*class |^\s*def |pip install|optimizer\.|\.backward\(|/home/|/Users/"
        assert not re.search(library, cell.source, re.M)
    compared = [cell for cell in code_cells(name) if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert compared or name == ABLATION
    for cell in compared:
        assert cell.execution_count and cell.outputs
        assert "evaluate(" not in cell.source and "summary" not in cell.source


def test_cleaning_keeps_tags_outputs_and_counts_and_drops_what_changes():
    cell = new_code_cell("1", execution_count=1, metadata={"tags": ["x"], "papermill": {"duration": 3}})
    widget = {"text/plain": "w", "application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    cell.outputs = [
        new_output("stream", name="stderr", text="12:00 noise"),
        new_output("display_data", data=widget, metadata={"a": 1}),
        new_output("execute_result", data={"text/plain": "1"}, execution_count=1),
    ]
    kernel = {"name": "python3", "display_name": "Python 3"}
    notebook = clean(new_notebook(cells=[cell], metadata={"papermill": {"x": 1}, "kernelspec": kernel}))
    (cleaned,) = notebook.cells
    assert notebook.metadata == {"kernelspec": kernel}
    assert cleaned.metadata == {"tags": ["x"]} and cleaned.execution_count == 1 and cleaned.id == "cell-00"
    assert [output.get("data") for output in cleaned.outputs] == [{"text/plain": "w"}, {"text/plain": "1"}]
    assert cleaned.outputs[0].metadata == {}


# --- Side by side


@pytest.fixture()
def begun(monkeypatch):
    """Notebooks in the order in which they begin; each ends at once, with the error that `fails` has for it."""
    told = SimpleNamespace(order=[], running=0, at_once=0, fails={})

    def ended():
        told.running -= 1

    def started(job, threads):
        told.order.append(job.name)
        told.running += 1
        told.at_once = max(told.at_once, told.running)
        answer, end = Pipe(duplex=False)
        end.send(told.fails.get(job.name))
        return SimpleNamespace(sentinel=answer, terminate=lambda: None, join=ended), answer

    monkeypatch.setattr(notebooks, "_started", started)
    monkeypatch.setattr(notebooks, "default_workers", lambda: 3)
    return told


def jobs(*names):
    return [notebooks.Job(name, None, {}) for name in names]


def test_notebooks_wait_for_the_runs_that_they_read(begun):
    notebooks.execute(jobs(EXPLANATION, ANOMALIES, *STRATEGY_NOTEBOOKS.values(), SHORTCUTS), workers=2)
    place = {name: begun.order.index(name) for name in begun.order}
    assert len(place) == 11 and place[SHORTCUTS] == 0  # the longest comes first
    assert place[EXPLANATION] > max(place[name] for name in STRATEGY_NOTEBOOKS.values())
    assert place[ANOMALIES] > max(place[STRATEGY_NOTEBOOKS[name]] for name in ("S1", "S5", "S6"))
    assert place[STRATEGY_NOTEBOOKS["S8"]] > max(place[STRATEGY_NOTEBOOKS[name]] for name in ("S1", "S7"))
    begun.order.clear()
    notebooks.execute(jobs(EXPLANATION), workers=4)
    assert begun.order == [EXPLANATION]  # alone it waits for none


def test_after_one_that_stopped_no_other_begins_and_each_is_named(begun):
    s1, s2, s3 = list(STRATEGY_NOTEBOOKS.values())[:3]
    begun.fails = {s1: "01 stopped in cell 3: ValueError: x", s2: "02 stopped"}
    with pytest.raises(notebooks.NotebookError, match=r"(?s)01 stopped in cell 3: ValueError: x.*02 stopped"):
        notebooks.execute(jobs(s1, s2, s3), workers=2)
    assert begun.order == [s1, s2]


@pytest.mark.parametrize("broken", [None, "S2"])
def test_workers_of_a_cluster_take_notebooks_in_the_same_order(begun, monkeypatch, broken):
    order, asked = [], {}

    def run_jobs(function, next_job, **options):
        assert function is notebooks._executed
        asked.update(options)
        while running := list(islice(iter(next_job, None), 2)):  # two workers
            for job in running:
                order.append(job.name)
                yield Done(job, "02 stopped" if job.name == STRATEGY_NOTEBOOKS.get(broken) else None, "far", 1.0)

    monkeypatch.setattr(notebooks, "run_jobs", run_jobs)
    every = jobs(*STRATEGY_NOTEBOOKS.values(), SHORTCUTS, ANOMALIES)
    if broken is None:
        notebooks.execute(every, scheduler="tcp://10.0.0.1:8786", writes=["outputs"])
        assert len(order) == 10 and order[0] == SHORTCUTS
        assert order.index(ANOMALIES) > max(order.index(STRATEGY_NOTEBOOKS[name]) for name in ("S1", "S5", "S6"))
        assert asked == {"scheduler": "tcp://10.0.0.1:8786", "writes": ["outputs"]} and begun.order == []
        return
    with pytest.raises(notebooks.NotebookError, match="02 stopped"):
        notebooks.execute(every, scheduler="tcp://10.0.0.1:8786")
    assert order == [SHORTCUTS, *list(STRATEGY_NOTEBOOKS.values())[:3]]  # S3 ran beside it


def test_a_killed_process_is_told_with_what_to_do(begun):
    s1 = next(iter(STRATEGY_NOTEBOOKS.values()))
    begun.fails = {s1: f"{s1}.ipynb: {notebooks.KILLED}"}
    with pytest.raises(notebooks.NotebookError, match=r"most likely for want of memory; take fewer --workers"):
        notebooks.execute(jobs(s1), workers=1)


@pytest.mark.parametrize(("ends", "told"), [
    (lambda: os.kill(os.getpid(), signal.SIGKILL), r"its process was killed, most likely for want of memory"),
    (lambda: os._exit(3), r"stopped with exit status 3; what it said stands above"),
])  # fmt: skip
def test_a_process_that_ends_without_an_answer_is_told(ends, told, monkeypatch):
    def started(job, threads):
        answer, own_end = Pipe(duplex=False)
        process = get_context("fork").Process(target=ends)
        process.start()
        own_end.close()
        return process, answer

    monkeypatch.setattr(notebooks, "_started", started)
    with pytest.raises(notebooks.NotebookError, match=told):
        notebooks.execute(jobs(next(iter(STRATEGY_NOTEBOOKS.values()))), workers=1)


@pytest.mark.parametrize("force", [False, True])
def test_all_keeps_earlier_runs_unless_forced_and_leaves_the_shortcut_study_to_synthetic_data(
    tmp_path, begun, monkeypatch, force
):
    monkeypatch.setattr("gainmtl_lib.dataset.make_data", lambda settings: None)
    given = {"outputs_dir": tmp_path}
    runs = [notebooks.notebook_settings(strategy, [], given).run_dir for strategy in STRATEGY_NOTEBOOKS]
    runs += [notebooks.anomaly_settings(given).run_dir]
    runs += [cell.settings.run_dir for cell in ShortcutStudySettings(outputs_dir=tmp_path).cells()]
    for folder in runs:
        folder.mkdir(parents=True)
        (folder / "predictions.csv").touch()
    notebooks.run_all([], given | {"dataset_type": "generic"}, force=force)
    assert SHORTCUTS not in begun.order
    assert [(folder / "predictions.csv").exists() for folder in runs] == [not force] * 9 + [True] * 6
    begun.order.clear()
    assert notebooks.run_all([], given, force=force) == tmp_path / "quick"
    assert {(folder / "predictions.csv").exists() for folder in runs} == {not force}
    assert sorted(begun.order) == NAMES and begun.at_once == 3
