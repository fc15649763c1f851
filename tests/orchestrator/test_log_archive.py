from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.bootstrap import Parts
from orchestrator.domain.job import Submission
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.job_watch import JobWatch
from orchestrator.log_archive import archive_logs, read_log
from orchestrator.settings import read_settings


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    parts = Parts(read_settings({"TUTTI_HOME": str(tmp_path)}, tmp_path))
    yield parts
    parts.close()


@pytest.fixture
def job_id(parts: Parts) -> str:
    spec = TaskSpec.model_validate(
        {
            "task": "colour",
            "base": "tiny",
            "template": "{word}:{prompt:4} {colour}",
            "answer": "colour",
            "data": {"train": "t.jsonl", "eval": "e.jsonl"},
        }
    )
    job, _ = parts.jobs.submit(Submission(spec, "f" * 64, {}, {}, 96.0), "ann")
    return job.id


def texts(parts: Parts, job_id: str, after: int = 0) -> list[str]:
    return [line.text for line in read_log(parts.jobs, parts.artifacts, job_id, after)]


def test_the_log_of_a_living_job_stays_in_rows(parts: Parts, job_id: str) -> None:
    assert archive_logs(parts.jobs, parts.artifacts) == 0
    assert texts(parts, job_id) == ["submitted by ann"]


def test_a_log_goes_on_after_it_was_archived(parts: Parts, job_id: str) -> None:
    parts.jobs.cancel(job_id, "ann")
    assert archive_logs(parts.jobs, parts.artifacts) == 1
    assert archive_logs(parts.jobs, parts.artifacts) == 0
    first = parts.jobs.get(job_id).log
    assert first is not None
    parts.jobs.retry(job_id, "bob")
    lines = read_log(parts.jobs, parts.artifacts, job_id)
    assert [line.text for line in lines] == [
        "submitted by ann",
        "cancelled by ann",
        "queued again by bob",
    ]
    assert texts(parts, job_id, lines[0].number) == ["cancelled by ann", "queued again by bob"]
    parts.jobs.cancel(job_id, "bob")
    assert archive_logs(parts.jobs, parts.artifacts) == 1
    assert parts.jobs.log(job_id) == []
    assert texts(parts, job_id)[-1] == "cancelled by bob"
    assert not parts.artifacts.exists(first)


def test_a_watch_tells_each_line_once_and_sees_the_end(parts: Parts, job_id: str) -> None:
    watch = JobWatch(parts, [job_id])
    first = watch.look()
    assert first is not None
    assert [line.text for _, line in first.lines] == ["submitted by ann"]
    assert (first.leader, watch.is_over) == (None, False)
    assert watch.look() is None  # it is too early
    parts.leadership.lead("host:1:1", 60, lambda _: False)
    parts.jobs.cancel(job_id, "ann")
    archive_logs(parts.jobs, parts.artifacts)
    while (second := watch.look()) is None:
        pass
    assert [line.text for _, line in second.lines] == ["cancelled by ann"]
    assert (second.leader, watch.is_over) == ("host:1:1", True)
    assert watch.jobs[0].state == "cancelled"
