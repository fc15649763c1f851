"""A job's log tells its life in plain words, in order, until it moves into an artifact."""

from collections.abc import Callable

from orchestrator.domain.job import Lease, Submission
from orchestrator.registry.job_queue import JobQueue

Running = Callable[..., Lease]


def test_log_tells_what_happened(queue: JobQueue, running: Running) -> None:
    lease = running()
    queue.note([(lease.job_id, "the loss is high"), ("f" * 32, "no such job")])
    queue.reclaim(lambda holder: True)
    _, second = queue.claim([lease.job_id], "host:2", 60)[lease.job_id]
    queue.fail(second, "bad data")
    log = queue.log(lease.job_id[:8])
    assert [line.text for line in log] == [
        "submitted by ann",
        "attempt 1: taken by gang-1 (controller)",
        "attempt 1: training has started",
        "the loss is high",
        "attempt 1 lost: the holder died; queued again",
        "attempt 2: taken by host:2",
        "attempt 2 failed: bad data",
    ]
    assert [line.number for line in log] == sorted({line.number for line in log})
    assert [line.at for line in log] == sorted(line.at for line in log)
    assert queue.log(lease.job_id, after=log[4].number) == log[5:]


def test_refused_change_is_not_in_the_log(
    queue: JobQueue, submission: Callable[..., Submission]
) -> None:
    job, _ = queue.submit(submission(), "ann")
    queue.submit(submission(), "bob")
    queue.claim([job.id, "f" * 32], "controller", 60)
    queue.claim([job.id], "other", 60)
    assert len(queue.log(job.id)) == 2


def test_log_of_an_ended_job_moves_into_an_artifact(queue: JobQueue, running: Running) -> None:
    lease, other = running(nonce="a"), running(nonce="b")
    assert queue.unarchived() == []
    assert not queue.archive(lease.job_id, "d" * 64)
    assert len(queue.log(lease.job_id)) == 3
    queue.fail(lease, "bad data")
    assert queue.unarchived() == [lease.job_id]
    assert queue.archive(lease.job_id, "d" * 64)
    assert (queue.log(lease.job_id), queue.get(lease.job_id).log) == ([], "d" * 64)
    assert (queue.unarchived(), len(queue.log(other.job_id))) == ([], 3)
    assert not queue.archive("f" * 32, "d" * 64)


def test_line_that_came_after_the_artifact_was_made_is_kept(
    queue: JobQueue, running: Running
) -> None:
    lease = running()
    queue.fail(lease, "bad data")
    last = queue.log(lease.job_id)[-1].number
    queue.note([(lease.job_id, "late")])
    assert queue.archive(lease.job_id, "d" * 64, last)
    assert [line.text for line in queue.log(lease.job_id)] == ["late"]
    assert queue.unarchived(limit=1) == [lease.job_id]


def test_numbers_go_on_after_an_archive(queue: JobQueue, running: Running) -> None:
    lease = running()
    queue.fail(lease, "bad data")
    last = queue.log(lease.job_id)[-1].number
    queue.archive(lease.job_id, "d" * 64)
    queue.retry(lease.job_id, "ann")
    (line,) = queue.log(lease.job_id, after=last)
    assert line.text == "queued again by ann"


def test_logs_of_many_jobs_are_read_on_from_where_each_was_left(
    queue: JobQueue, submission: Callable[..., Submission]
) -> None:
    one, two, three = (queue.submit(submission(nonce=nonce), "ann")[0].id for nonce in "abc")
    first = queue.log_of({one: 0, two: 0})
    assert [job_id for job_id, _ in first] == [one, two]
    assert [line for _, line in first] == [*queue.log(one), *queue.log(two)]
    queue.note([(two, "two"), (one, "one"), (three, "three")])
    after = {one: first[0][1].number, two: queue.log(two)[-1].number, three: 0}
    told = [(job_id, line.text) for job_id, line in queue.log_of(after)]
    assert told == [(three, "submitted by ann"), (one, "one"), (three, "three")]
    assert queue.log_of({}) == []
