"""How jobs come in: all or none, each once, and in an order that can be worked off."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.domain.job import JobOptions, JobState, Submission
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue

Submit = Callable[..., Submission]


def test_options_come_back_as_they_were_given(queue: JobQueue, submission: Submit) -> None:
    first, _ = queue.submit(submission(), "ann")
    moment = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
    options = JobOptions(-3, 7, 90.5, moment, (first.id,), "nightly")
    job, _ = queue.submit(submission(nonce="b"), "bob", options)
    assert (job.options, job.owner, first.options) == (options, "bob", JobOptions())
    assert queue.get(job.id) == job == queue.list(limit=1)[0]
    assert [line.text for line in queue.log(job.id)] == [
        f"submitted by bob; waits for 2031-05-04 03:02:01+00:00, job {first.id[:12]}"
    ]


def test_one_key_is_one_job_whatever_is_submitted(queue: JobQueue, submission: Submit) -> None:
    nightly = JobOptions(key="nightly")
    job, _ = queue.submit(submission(), "ann", nightly)
    assert queue.submit(submission(nonce="b"), "bob", nightly) == (job, False)
    assert queue.submit(submission(), "ann")[1]
    own = JobOptions(key=submission().idempotency_key)
    assert queue.submit(submission(), "ann", own)[1]


def test_many_queue_in_their_order_and_each_once(queue: JobQueue, submission: Submit) -> None:
    nonces = ["c", "a", "c", "b"]
    asked = [(submission(nonce=nonce), JobOptions()) for nonce in nonces]
    entered = queue.submit_all(asked, "ann")
    assert [created for _, created in entered] == [True, True, False, True]
    assert entered[0][0] == entered[2][0]
    assert [job.id for job in queue.ready()] == [entered[i][0].id for i in (0, 1, 3)]
    assert [created for _, created in queue.submit_all(asked, "ann")] == [False] * 4
    assert queue.submit_all([], "ann") == []


def test_parallel_submits_of_many_in_other_orders_make_each_once(
    queue: JobQueue, submission: Submit
) -> None:
    asked = [(submission(nonce=str(number)), JobOptions()) for number in range(20)]

    def submit(index: int) -> int:
        order = asked if index % 2 else asked[::-1]
        return sum(created for _, created in queue.submit_all(order, "ann"))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(submit, range(8))) == 20
    assert len(queue.ready()) == 20


def submit_once(url: str, submission: Submission) -> tuple[str, bool]:
    database = Database(url)
    job, created = JobQueue(database).submit(submission, "ann")
    database.close()
    return job.id, created


def test_fifty_submits_by_ten_processes_at_once_make_one_job(
    queue: JobQueue, database_url: str, submission: Submit
) -> None:
    with multiprocessing.get_context("fork").Pool(10) as pool:
        asked = [(database_url, submission())] * 50
        entered = pool.starmap(submit_once, asked, chunksize=1)
    (job,) = queue.list()
    assert {job_id for job_id, _ in entered} == {job.id}
    assert sum(created for _, created in entered) == 1
    assert [line.text for line in queue.log(job.id)] == ["submitted by ann"]


@pytest.mark.postgres
def test_submitting_again_never_waits_in_a_circle_with_heartbeats(
    empty_postgres: Callable[[], str], submission: Submit
) -> None:
    database = Database.open(empty_postgres())
    queue = JobQueue(database)
    asked = [(submission(nonce=str(number)), JobOptions()) for number in range(20)]
    ids = [job.id for job, _ in queue.submit_all(asked, "ann")]
    leases = [lease for _, lease in queue.claim(ids[:10], "controller", 60).values()]
    waiting = (submission(nonce="last"), JobOptions(after=tuple(ids)))

    def beat(_: int) -> None:
        assert queue.heartbeat(leases, 60, {job_id: {"step": 1} for job_id in ids}).lost == {}

    def submit(number: int) -> None:
        for job_id in ids[15:]:
            queue.cancel(job_id, "ann")
        queue.submit_all([*asked, waiting, (submission(nonce=f"new {number}"), JobOptions())], "x")

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, i) for i in range(20) for work in (beat, submit)]:
            done.result()
    database.close()


def test_job_waits_for_others_to_succeed(queue: JobQueue, submission: Submit) -> None:
    first, _ = queue.submit(submission(), "ann")
    last, _ = queue.submit(submission(nonce="b"), "ann", JobOptions(9, after=(first.id,)))
    assert [job.id for job in queue.ready()] == [first.id]
    queue.cancel(first.id, "ann")
    assert queue.ready() == []
    queue.retry(first.id, "ann")
    assert queue.settle_dependents() == []
    assert last.state == JobState.QUEUED


def test_job_waits_for_its_time(queue: JobQueue, submission: Submit) -> None:
    hour, now = timedelta(hours=1), datetime.now(UTC)
    queue.submit(submission(), "ann", JobOptions(not_before=now + hour))
    due, _ = queue.submit(submission(nonce="b"), "ann", JobOptions(not_before=now - hour))
    assert [job.id for job in queue.ready()] == [due.id]


def test_unknown_job_to_wait_for_is_refused_and_nothing_written(
    queue: JobQueue, submission: Submit
) -> None:
    job, _ = queue.submit(submission(), "ann")
    for unknown in ("f" * 32, job.id[:8], "'; --"):
        asked = [
            (submission(nonce="b"), JobOptions()),
            (submission(nonce="c"), JobOptions(after=(job.id, unknown))),
        ]
        with pytest.raises(UnknownName, match=r"after: there is no job(.|\n)*whole job ids"):
            queue.submit_all(asked, "ann")
    assert [each.id for each in queue.list()] == [job.id]


def test_job_submitted_again_may_not_wait_for_itself(queue: JobQueue, submission: Submit) -> None:
    first, _ = queue.submit(submission(), "ann")
    second, _ = queue.submit(submission(nonce="b"), "ann", JobOptions(after=(first.id,)))
    third, _ = queue.submit(submission(nonce="c"), "ann", JobOptions(after=(second.id,)))
    queue.cancel(first.id, "ann")
    for job in (first, third):
        with pytest.raises(InvalidInput, match=f"job {first.id[:12]} would wait for itself"):
            queue.submit(submission(), "ann", JobOptions(after=(job.id,)))
    assert queue.get(first.id).state == JobState.CANCELLED


def test_job_submitted_again_is_run_as_it_is_asked_for_now(
    queue: JobQueue, submission: Submit
) -> None:
    other, _ = queue.submit(submission(nonce="b"), "ann")
    old = JobOptions(1, 2, 3.0, datetime(2031, 1, 1, tzinfo=UTC), (other.id,))
    job, _ = queue.submit(submission(), "ann", old)
    queue.cancel(job.id, "ann")
    again, created = queue.submit(submission(), "bob", JobOptions(priority=5))
    assert (created, again.id, again.owner) == (True, job.id, "bob")
    assert again.options == JobOptions(priority=5)
    assert queue.ready(limit=1)[0].id == job.id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_attempts": 0}, "max_attempts is 0"),
        ({"max_attempts": 2**40}, "from 1 to 1000"),
        ({"priority": 2**40}, "the priority is"),
        ({"time_limit_s": 0.0}, "time_limit_s is 0"),
        ({"time_limit_s": float("nan")}, "time_limit_s is nan"),
        ({"not_before": datetime(2031, 1, 1)}, "with its time zone"),
        ({"key": ""}, "the key is ''"),
        ({"key": "a\x00b"}, r"the key is 'a\\x00b'"),
        ({"key": "k" * 201}, "1 to 200 printable"),
    ],
)
def test_options_that_no_job_can_run_by_are_refused(
    queue: JobQueue, submission: Submit, changes: dict[str, object], message: str
) -> None:
    options = replace(JobOptions(), **changes)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=message):
        queue.submit(submission(), "ann", options)
    assert queue.list() == []
