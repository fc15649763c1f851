"""The queue: one job a submission, one holder a job, and nothing written under an old lease."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.domain.errors import InvalidInput, StaleLease, UnknownName
from orchestrator.domain.job import Job, JobState, Lease, Submission
from orchestrator.registry.job_queue import JobQueue

Submit = Callable[..., Submission]
Running = Callable[..., Lease]


def alive(holder: str) -> bool:
    return False


def claimed(queue: JobQueue, job: Job, holder: str = "controller", lease_s: float = 60) -> Lease:
    lease = queue.claim(job.id, holder, lease_s)
    assert lease is not None
    return lease


def test_submitted_job_comes_back_as_it_was_given(queue: JobQueue, submission: Submit) -> None:
    given = submission()
    job, created = queue.submit(given, "ann")
    assert created
    assert job == queue.get(job.id) == queue.get(job.id[:6])
    assert (job.submission, job.state, job.epoch, job.attempts) == (given, JobState.QUEUED, 0, 0)
    assert len(job.id) == 32
    assert abs(job.created_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_same_submission_is_the_same_job(queue: JobQueue, submission: Submit) -> None:
    job, _ = queue.submit(submission(), "ann")
    assert queue.submit(submission(), "bob") == (job, False)
    other, created = queue.submit(submission(nonce="again"), "ann")
    assert created
    assert other.id != job.id


def test_parallel_submits_give_one_job(queue: JobQueue, submission: Submit) -> None:
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda _: queue.submit(submission(), "ann"), range(50)))
    assert len({job.id for job, _ in results}) == 1
    assert sum(created for _, created in results) == 1
    assert len(queue.list()) == 1


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_ended_job_is_queued_again_in_place(
    queue: JobQueue, submission: Submit, running: Running, end: str
) -> None:
    lease = running()
    queue.heartbeat(lease, 60, {"step": 3})
    ended = queue.fail(lease, "loss is NaN") if end == "failed" else queue.cancel(lease.job_id)
    again, created = queue.submit(submission(), "bob")
    assert created
    assert (again.id, again.state, again.attempts) == (lease.job_id, JobState.QUEUED, 1)
    assert again.epoch > ended.epoch
    assert (again.error, again.progress, again.finished_at) == (None, {}, None)
    assert queue.submit(submission(), "bob") == (again, False)
    assert claimed(queue, again).epoch > again.epoch


def test_parallel_submits_of_a_failed_job_queue_it_once(
    queue: JobQueue, submission: Submit, running: Running
) -> None:
    queue.fail(running(), "bad data")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: queue.submit(submission(), "ann"), range(16)))
    assert sum(created for _, created in results) == 1


def test_queue_is_ordered_by_priority_then_age(queue: JobQueue, submission: Submit) -> None:
    first, urgent, last = (
        queue.submit(submission(nonce=nonce), "ann", priority)[0].id
        for nonce, priority in [("a", 0), ("b", 5), ("c", 0)]
    )
    assert [job.id for job in queue.queued()] == [urgent, first, last]
    assert [job.id for job in queue.list()] == [last, urgent, first]


def test_list_filters_by_state_and_task(queue: JobQueue, submission: Submit) -> None:
    color, _ = queue.submit(submission("color"), "ann")
    shape, _ = queue.submit(submission("shape"), "ann")
    queue.cancel(shape.id)
    assert [job.id for job in queue.list(states=[JobState.QUEUED])] == [color.id]
    assert [job.id for job in queue.list(task="shape")] == [shape.id]
    assert queue.list(states=[]) == []
    assert len(queue.list(limit=1)) == 1


def test_job_is_found_by_prefix_only_when_unique(queue: JobQueue, submission: Submit) -> None:
    job, _ = queue.submit(submission(), "ann")
    for text in ("", job.id[:5], "%", "______", "xyz123", job.id.upper() + "G", "a\x00bcdef"):
        with pytest.raises(UnknownName, match="is not a job id"):
            queue.get(text)
    with pytest.raises(UnknownName, match="there is no job"):
        queue.get("0" * 32 if job.id[0] != "0" else "1" * 32)


def test_ambiguous_prefix_names_the_jobs(
    queue: JobQueue, submission: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = iter(["abcdef" + "0" * 26, "abcdef" + "1" * 26])
    monkeypatch.setattr("orchestrator.registry.job_rows.secrets.token_hex", lambda _: next(ids))
    queue.submit(submission(), "ann")
    queue.submit(submission(nonce="b"), "ann")
    with pytest.raises(InvalidInput, match=r"several jobs: abcdef0{26}, abcdef1{26}"):
        queue.get("abcdef")
    assert queue.get("abcdef1").id == "abcdef" + "1" * 26


def test_claim_gives_a_lease_and_opens_an_attempt(queue: JobQueue, submission: Submit) -> None:
    job, _ = queue.submit(submission(), "ann")
    lease = claimed(queue, job, "controller", 60)
    assert (lease.job_id, lease.holder, lease.epoch) == (job.id, "controller", 1)
    assert lease.expires_at > datetime.now(UTC) + timedelta(seconds=30)
    (attempt,) = queue.attempts(job.id)
    assert (attempt.number, attempt.epoch, attempt.holder) == (1, 1, "controller")
    assert attempt.outcome is None
    assert queue.claim(job.id, "other", 60) is None
    assert queue.claim("f" * 32, "other", 60) is None


def test_parallel_claims_have_one_winner(queue: JobQueue, submission: Submit) -> None:
    job, _ = queue.submit(submission(), "ann")
    with ThreadPoolExecutor(10) as pool:
        leases = list(pool.map(lambda i: queue.claim(job.id, f"holder {i}", 60), range(20)))
    (winner,) = (lease for lease in leases if lease)
    assert queue.heartbeat(winner, 60).holder == winner.holder
    assert len(queue.attempts(job.id)) == 1


def test_heartbeat_renews_the_lease_and_keeps_progress(queue: JobQueue, running: Running) -> None:
    lease = running()
    renewed = queue.heartbeat(lease, 600, {"step": 5, "loss": float("nan")})
    assert renewed.expires_at > lease.expires_at
    assert replace(renewed, expires_at=lease.expires_at) == lease
    queue.heartbeat(renewed, 600)
    assert queue.get(lease.job_id).progress == {"step": 5, "loss": None}


def test_failed_job_keeps_its_reason_and_is_not_tried_again(
    queue: JobQueue, running: Running
) -> None:
    lease = running()
    job = queue.fail(lease, "loss is NaN at step 3")
    assert (job.state, job.error) == (JobState.FAILED, "loss is NaN at step 3")
    assert job.finished_at is not None
    assert job == queue.get(job.id)
    (attempt,) = queue.attempts(job.id)
    assert (attempt.outcome, attempt.cause) == ("failed", "loss is NaN at step 3")
    assert attempt.finished_at is not None
    assert queue.claim(job.id, "other", 60) is None


def test_error_without_end_is_cut_to_its_last_part(queue: JobQueue, running: Running) -> None:
    job = queue.fail(running(), "x" * 1_000_000 + "the cause")
    assert job.error is not None
    assert job.error.endswith("the cause")
    assert len(job.error) == 20_000


def test_released_job_is_queued_with_its_cause(queue: JobQueue, running: Running) -> None:
    lease = running()
    job = queue.release(lease, "the gang is stopping")
    assert (job.state, job.attempts) == (JobState.QUEUED, 1)
    assert [(a.outcome, a.cause) for a in queue.attempts(job.id)] == [
        ("released", "the gang is stopping")
    ]
    assert claimed(queue, job).epoch > lease.epoch
    assert [a.number for a in queue.attempts(job.id)] == [1, 2]


@pytest.mark.parametrize("write", ["start", "heartbeat", "fail", "release"])
@pytest.mark.parametrize("loss", ["reclaimed", "cancelled", "another token", "another epoch"])
def test_stale_lease_cannot_write(
    queue: JobQueue, submission: Submit, write: str, loss: str
) -> None:
    job, _ = queue.submit(submission(), "ann")
    lease = claimed(queue, job)
    if loss == "reclaimed":
        queue.reclaim(lambda holder: True)
        claimed(queue, job, "second")
    elif loss == "cancelled":
        queue.cancel(job.id)
    elif loss == "another token":
        lease = replace(lease, token="0" * 32)
    else:
        lease = replace(lease, epoch=lease.epoch + 1)
    before = queue.get(job.id), queue.attempts(job.id)
    writes: dict[str, Callable[[], object]] = {
        "start": lambda: queue.start(lease),
        "heartbeat": lambda: queue.heartbeat(lease, 60, {"step": 1}),
        "fail": lambda: queue.fail(lease, "late"),
        "release": lambda: queue.release(lease, "late"),
    }
    with pytest.raises(StaleLease, match=f"controller may not write at epoch {lease.epoch}"):
        writes[write]()
    assert (queue.get(job.id), queue.attempts(job.id)) == before


def test_job_starts_once_a_lease(queue: JobQueue, running: Running) -> None:
    with pytest.raises(StaleLease, match="the job is running at epoch 1"):
        queue.start(running())


def test_lease_of_no_job_is_stale(queue: JobQueue) -> None:
    lease = Lease("f" * 32, "controller", "t", 1, datetime.now(UTC))
    with pytest.raises(StaleLease, match="there is no such job"):
        queue.heartbeat(lease, 60)


def test_cancel_ends_a_job_and_its_attempt(queue: JobQueue, running: Running) -> None:
    lease = running()
    job = queue.cancel(lease.job_id[:8])
    assert job.state == JobState.CANCELLED
    assert queue.cancel(lease.job_id) == job
    assert [a.outcome for a in queue.attempts(job.id)] == ["cancelled"]


def test_ended_job_cannot_be_cancelled(queue: JobQueue, running: Running) -> None:
    lease = running()
    queue.fail(lease, "bad data")
    with pytest.raises(InvalidInput, match="has already failed"):
        queue.cancel(lease.job_id)


def test_expired_lease_is_reclaimed(queue: JobQueue, submission: Submit) -> None:
    lost, _ = queue.submit(submission(nonce="lost"), "ann")
    kept, _ = queue.submit(submission(nonce="kept"), "ann")
    lease = claimed(queue, lost, lease_s=0)
    claimed(queue, kept, lease_s=60)
    (job,) = queue.reclaim(alive)
    assert (job.id, job.state) == (lost.id, JobState.QUEUED)
    assert job.epoch == lease.epoch + 1
    assert [(a.outcome, a.cause) for a in queue.attempts(job.id)] == [
        ("reclaimed", "lease expired")
    ]
    assert queue.reclaim(alive) == []


def test_job_of_a_dead_holder_is_reclaimed_before_its_lease_ends(
    queue: JobQueue, submission: Submit
) -> None:
    asked: list[str] = []

    def is_dead(holder: str) -> bool:
        asked.append(holder)
        return holder == "dead"

    holders = {"a": "dead", "b": "dead", "c": "living"}
    for nonce, holder in holders.items():
        lease = claimed(queue, queue.submit(submission(nonce=nonce), "ann")[0], holder)
        queue.start(lease)
    assert len(queue.reclaim(is_dead)) == 2
    assert sorted(asked) == ["dead", "living"]
    assert len(queue.list(states=[JobState.RUNNING])) == 1
    causes = {a.cause for job in queue.queued() for a in queue.attempts(job.id)}
    assert causes == {"holder died"}


def test_lease_renewed_while_reclaiming_is_left_alone(queue: JobQueue, submission: Submit) -> None:
    job, _ = queue.submit(submission(), "ann")
    lease = claimed(queue, job, lease_s=0)

    def renew(holder: str) -> bool:
        queue.heartbeat(lease, 60)
        return False

    assert queue.reclaim(renew) == []
    assert queue.get(job.id).state == JobState.ADMITTED


def test_parallel_reclaims_take_a_job_back_once(queue: JobQueue, submission: Submit) -> None:
    job, _ = queue.submit(submission(), "ann")
    claimed(queue, job, lease_s=0)
    with ThreadPoolExecutor(6) as pool:
        found = [
            job for jobs in pool.map(lambda _: queue.reclaim(alive), range(12)) for job in jobs
        ]
    assert len(found) == 1
    assert queue.get(job.id).epoch == 2
