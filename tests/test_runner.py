"""Runs made one after the other: what is told, what fails, what is read again."""

import logging

import pytest
from tiny import tiny_settings

from gainmtl_lib.readers import DataError
from gainmtl_lib.runs import Run, write_json
from gainmtl_lib.studies.plans import Job, run_jobs, time_left


def job(folder, name, *, kind="S1", seconds=None):
    settings = tiny_settings(folder, experiment=name.replace(" ", "-"))
    if seconds is not None:
        settings.run_dir.mkdir(parents=True)
        write_json(settings.run_dir / "manifest.json", {"duration_s": seconds})
    return Job(name, kind, settings, done=seconds is not None)


def made(settings):
    return Run(settings.run_dir)


def test_runs_are_made_in_order_and_read_anew(tmp_path):
    jobs = [job(tmp_path, name) for name in ("b", "a")]
    first = []

    def make(settings):
        first.append(made(settings))
        return first[-1]

    runs = run_jobs(jobs, make)
    assert list(runs) == ["b", "a"]
    assert [run.folder for run in runs.values()] == [each.settings.run_dir for each in jobs]
    assert not set(map(id, runs.values())) & set(map(id, first)), "the ones that were made hold their models"


def test_what_is_done_is_asked_for_but_not_told(tmp_path, caplog):
    jobs = [job(tmp_path, "a", seconds=120.0), job(tmp_path, "b"), job(tmp_path, "c", seconds=240.0)]
    with caplog.at_level(logging.INFO, logger="gainmtl_lib"):
        assert list(run_jobs(jobs, made)) == ["a", "b", "c"]
    assert caplog.messages == ["run 2 of 3: b, about 3 min left"]


def test_a_failure_is_named_and_takes_no_part_in_the_time(tmp_path, caplog):
    jobs = [job(tmp_path, "a", seconds=600.0), job(tmp_path, "b"), job(tmp_path, "c")]

    def make(settings):
        if settings.experiment == "b":
            raise DataError("no picture")
        return made(settings)

    failures = {}
    with caplog.at_level(logging.INFO, logger="gainmtl_lib"):
        assert list(run_jobs(jobs, make, failures=failures)) == ["a", "c"]
    assert failures == {"b": "no picture"}
    assert caplog.messages == [
        "run 2 of 3: b, about 20 min left",
        "run 2 of 3 failed: b: no picture",
        "run 3 of 3: c, about 10 min left",
    ]
    with pytest.raises(DataError, match="no picture"):
        run_jobs(jobs, make)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_mistakes_and_interruptions_are_passed_on(tmp_path, error):
    def make(settings):
        raise error

    failures = {}
    with pytest.raises(error):
        run_jobs([job(tmp_path, "a")], make, failures=failures)
    assert failures == {}


@pytest.mark.parametrize(
    ("spent", "ahead", "text"),
    [
        ([], ["S1"], ""),
        ([("S1", 60.0)], [], ""),
        ([("S1", 60.0), ("S5", 240.0)], ["S1", "S5", "S5"], ", about 9 min left"),
        ([("S1", 60.0), ("S5", 240.0)], ["S3", "S3"], ", about 5 min left"),  # not known: the mean
        ([("S1", 20.0)], ["S1", "S1"], ", less than a minute left"),
    ],
)
def test_time_left(spent, ahead, text):
    assert time_left(spent, ahead) == text
