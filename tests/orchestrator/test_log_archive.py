from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event

from orchestrator.bootstrap import Parts
from orchestrator.domain.errors import IntegrityError, TuttiError, UnknownName
from orchestrator.domain.job import JobOptions, Submission
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


def unreadable(parts: Parts, job_id: str) -> None:
    """Let the archived log of a job get lost."""
    digest = parts.jobs.get(job_id).log
    assert digest is not None
    parts.artifacts.discard(digest)


def test_a_job_whose_log_cannot_be_archived_stops_no_other(parts: Parts, job_id: str) -> None:
    parts.jobs.cancel(job_id, "ann")
    archive_logs(parts.jobs, parts.artifacts)
    unreadable(parts, job_id)
    parts.jobs.retry(job_id, "ann")
    parts.jobs.cancel(job_id, "ann")
    given = parts.jobs.get(job_id).submission
    other, _ = parts.jobs.submit(replace(given, nonce="b"), "ann")
    parts.jobs.cancel(other.id, "ann")
    with pytest.raises(TuttiError, match=f"job {job_id[:12]}: .* is missing from the store"):
        archive_logs(parts.jobs, parts.artifacts)
    assert parts.jobs.unarchived() == [job_id]
    assert texts(parts, other.id) == ["submitted by ann", "cancelled by ann"]


def test_an_artifact_that_is_no_log_is_named(parts: Parts, job_id: str) -> None:
    parts.jobs.cancel(job_id, "ann")
    for noise in (b"noise", b"[]\n", b'{"number": 1}\n', b"\xff"):
        digest = parts.artifacts.put_bytes(noise).digest
        parts.jobs.archive(job_id, digest)
        with pytest.raises(IntegrityError, match=f"{digest[:12]} is not the log of a job"):
            read_log(parts.jobs, parts.artifacts, job_id)


def test_a_watch_goes_on_where_a_log_cannot_be_read(parts: Parts, job_id: str) -> None:
    watch = JobWatch(parts, [job_id])
    parts.jobs.cancel(job_id, "ann")
    archive_logs(parts.jobs, parts.artifacts)
    unreadable(parts, job_id)
    sight = watch.look()
    assert sight is not None
    assert (sight.lines, sight.error, watch.is_over) == ([], None, True)


def test_a_watch_tells_what_was_archived_before_a_retry(parts: Parts, job_id: str) -> None:
    parts.jobs.cancel(job_id, "ann")
    archive_logs(parts.jobs, parts.artifacts)
    parts.jobs.retry(job_id, "ann")
    sight = JobWatch(parts, [job_id]).look()
    assert sight is not None
    assert [line.text for _, line in sight.lines] == texts(parts, job_id)
    assert len(sight.lines) == 3


def test_a_watch_of_many_jobs_asks_the_database_a_few_times(parts: Parts, job_id: str) -> None:
    given = parts.jobs.get(job_id).submission
    asked = [(replace(given, nonce=str(n)), JobOptions()) for n in range(50)]
    ids = [job.id for job, _ in parts.jobs.submit_all(asked, "ann")]
    watch = JobWatch(parts, ids)
    statements: list[str] = []
    with parts.database.read() as connection:
        engine = connection.engine

    def count(_: object, __: object, statement: str, *___: object) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", count)
    sight = watch.look()
    event.remove(engine, "before_cursor_execute", count)
    assert sight is not None
    assert [(job.id, line.text) for job, line in sight.lines] == [
        (job_id, "submitted by ann") for job_id in ids
    ]
    assert len([each for each in statements if each.startswith("SELECT")]) <= 6


def test_a_job_to_watch_that_is_not_there_is_named(parts: Parts) -> None:
    with pytest.raises(UnknownName, match="there is no job"):
        JobWatch(parts, ["f" * 32])


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
