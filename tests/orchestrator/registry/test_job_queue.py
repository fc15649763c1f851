"""The queue: one job a submission, one holder a job, and nothing written under an old lease."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo

import pytest
from sqlalchemy import event

from orchestrator.domain.errors import InvalidInput, StaleLease, UnknownName
from orchestrator.domain.job import (
    Fault,
    Job,
    JobOptions,
    JobState,
    Lease,
    QueuedJob,
    Submission,
)
from orchestrator.domain.sweep import SweepSpec
from orchestrator.domain.task_spec import ShardingSpec
from orchestrator.registry import dialect, job_entry
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.leadership import Leadership

Submit = Callable[..., Submission]
Running = Callable[..., Lease]


def alive(holder: str) -> bool:
    return False


def claimed(queue: JobQueue, job: Job, holder: str = "controller", lease_s: float = 60) -> Lease:
    _, lease = queue.claim([job.id], holder, lease_s, "gang-1")[job.id]
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
    queue.heartbeat([lease], 60, {lease.job_id: {"step": 3}})
    if end == "failed":
        ended = queue.fail(lease, "loss is NaN")
    else:
        ended = queue.cancel(lease.job_id, "ann")
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
        queue.submit(submission(nonce=nonce), "ann", JobOptions(priority))[0].id
        for nonce, priority in [("a", 0), ("b", 5), ("c", 0)]
    )
    assert [job.id for job in queue.ready()] == [urgent, first, last]
    assert [job.id for job in queue.ready(limit=2)] == [urgent, first]
    assert [job.id for job in queue.list()] == [last, urgent, first]


def test_list_filters_by_state_task_and_owner(queue: JobQueue, submission: Submit) -> None:
    color, _ = queue.submit(submission("color"), "ann")
    shape, _ = queue.submit(submission("shape"), "bob")
    queue.cancel(shape.id, "ann")
    assert [job.id for job in queue.list(owner="bob")] == [shape.id]
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
    monkeypatch.setattr("orchestrator.registry.job_entry.secrets.token_hex", lambda _: next(ids))
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
    assert queue.claim([job.id, "f" * 32], "other", 60) == {}


def test_claimed_job_is_as_it_was_claimed(queue: JobQueue, submission: Submit) -> None:
    other, _ = queue.submit(submission(nonce="b"), "ann")
    job, _ = queue.submit(submission(), "ann", JobOptions(time_limit_s=60.0, after=()))
    claimed = queue.claim([job.id, job.id, other.id], "controller", 60, "gang-1")
    assert claimed.keys() == {job.id, other.id}
    assert claimed[job.id][0] == queue.get(job.id)
    assert claimed[job.id][0].gang == "gang-1"
    assert [held.gang for held in queue.held()] == ["gang-1", "gang-1"]
    assert queue.attempts(job.id)[0].gang == "gang-1"


def test_two_claimers_never_share_a_job(queue: JobQueue, submission: Submit) -> None:
    asked = [(submission(nonce=str(number)), JobOptions()) for number in range(200)]
    ids = [job.id for job, _ in queue.submit_all(asked, "ann")]

    def claim_some(holder: str) -> set[str]:
        order = ids if holder == "a" else ids[::-1]
        parts = [order[start : start + 10] for start in range(0, 200, 10)]
        return {job_id for part in parts for job_id in queue.claim(part, holder, 60)}

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(claim_some, ["a", "b"])
    assert not first & second
    assert first | second == set(ids)
    assert all(len(queue.attempts(job_id)) == 1 for job_id in ids[::20])


def test_what_is_not_ready_cannot_be_claimed(queue: JobQueue, submission: Submit) -> None:
    first, _ = queue.submit(submission(nonce="first"), "ann")
    for nonce, options in {
        "later": JobOptions(not_before=datetime.now(UTC) + timedelta(hours=1)),
        "after": JobOptions(after=(first.id,)),
    }.items():
        job, _ = queue.submit(submission(nonce=nonce), "ann", options)
        assert queue.claim([job.id], "controller", 60) == {}
    assert [job.id for job in queue.ready()] == [first.id]


def test_plans_read_what_the_submission_says(queue: JobQueue, submission: Submit) -> None:
    given = submission()
    sharding = ShardingSpec(zero_stage=3, data_parallel=True)
    sweep = SweepSpec(over={"training.steps": (7, 90, 30)})
    spec = given.spec.model_copy(update={"sharding": sharding, "sweep": sweep})
    job, _ = queue.submit(replace(given, spec=spec), "ann", JobOptions(priority=2))
    assert queue.ready() == [
        QueuedJob(
            job.id, "color", "ann", 2, job.created_at, given.base_fingerprint, 3, True, 96.5, 90
        )
    ]
    queue.cancel(job.id, "ann")
    queue.submit(given, "ann")
    (plain,) = queue.ready()
    assert (plain.zero_stage, plain.is_data_parallel) == (None, False)
    assert plain.num_steps == given.spec.training.steps


def test_stats_count_the_states_and_know_the_oldest(queue: JobQueue, running: Running) -> None:
    assert set(queue.stats().counts.values()) == {0}
    assert queue.stats().oldest_queued_s is None
    lease = running()
    queue.release(lease, "room is needed", Fault.PREEMPTION)
    stats = queue.stats()
    assert {state: n for state, n in stats.counts.items() if n} == {JobState.QUEUED: 1}
    assert stats.oldest_queued_s is not None
    assert 0 <= stats.oldest_queued_s < 600


def test_heartbeat_renews_the_lease_and_keeps_progress(queue: JobQueue, running: Running) -> None:
    lease = running()
    told = {lease.job_id: {"step": 5.0, "loss": float("nan")}, "f" * 32: {"step": 1.0}}
    beat = queue.heartbeat([lease], 600, told)
    renewed = beat.renewed[lease.job_id]
    assert renewed.expires_at > lease.expires_at
    assert replace(renewed, expires_at=lease.expires_at) == lease
    assert (beat.lost, beat.pause_asked) == ({}, frozenset())
    queue.heartbeat([renewed], 600)
    assert queue.get(lease.job_id).progress == {"step": 5, "loss": None}


def test_jobs_are_read_at_once_with_the_submissions_that_are_known(
    queue: JobQueue, submission: Submit
) -> None:
    jobs = [queue.submit(submission(nonce=nonce), "ann")[0] for nonce in "ab"]
    known = {job.id: job for job in jobs}
    assert {job.id: job for job in queue.get_all([*known, "f" * 32])} == known
    queue.start(claimed(queue, jobs[0]))
    found = {job.id: job for job in queue.get_all(list(known), known)}
    assert found == {job.id: queue.get(job.id) for job in jobs}
    assert found[jobs[1].id].submission is jobs[1].submission
    assert queue.get_all([]) == []


def test_submission_that_changed_is_read_again(queue: JobQueue, submission: Submit) -> None:
    named = JobOptions(key="nightly")
    old, _ = queue.submit(submission(), "ann", named)
    queue.cancel(old.id, "ann")
    new, _ = queue.submit(submission(task="other"), "ann", named)
    assert queue.get_all([old.id], {old.id: old}) == [new]


def test_heartbeat_without_news_is_two_statements(
    database: Database, queue: JobQueue, running: Running
) -> None:
    leases = [running(nonce=nonce) for nonce in "abc"]
    queue.heartbeat(leases, 60, {leases[0].job_id: {"step": 3}})
    statements: list[str] = []
    with database.read() as connection:
        engine = connection.engine

    def note(_: object, __: object, statement: str, *___: object) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    assert len(queue.heartbeat(leases, 60).renewed) == 3
    event.remove(engine, "before_cursor_execute", note)
    assert [each.split()[0] for each in statements if "BEGIN" not in each] == ["SELECT", "UPDATE"]
    assert queue.get(leases[0].job_id).progress == {"step": 3}


def test_heartbeat_tells_lost_leases_and_renews_the_others(
    queue: JobQueue, running: Running
) -> None:
    kept, lost = running(nonce="kept"), running(nonce="lost")
    queue.cancel(lost.job_id, "ann")
    queue.pause(kept.job_id, "ann")
    none = Lease("f" * 32, "controller", "t", 1, datetime.now(UTC))
    beat = queue.heartbeat([lost, kept, none], 600, {lost.job_id: {"step": 9}})
    assert beat.renewed.keys() == beat.pause_asked == {kept.job_id}
    assert beat.lost == {
        lost.job_id: "the job is cancelled at epoch 2",
        none.job_id: "there is no such job",
    }
    assert queue.get(lost.job_id).progress == {}
    assert queue.heartbeat([], 60).renewed == {}


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
    assert attempt.fault is Fault.USER
    assert attempt.finished_at is not None
    assert queue.claim([job.id], "other", 60) == {}


def test_error_without_end_is_cut_to_its_last_part(queue: JobQueue, running: Running) -> None:
    job = queue.fail(running(), "x" * 1_000_000 + "the cause")
    assert job.error is not None
    assert job.error.endswith("the cause")
    assert len(job.error) == 20_000


def test_released_job_is_queued_with_its_cause(queue: JobQueue, running: Running) -> None:
    lease = running()
    job = queue.release(lease, "the gang is stopping", Fault.PREEMPTION)
    assert (job.state, job.attempts, job.faults, job.gang) == (JobState.QUEUED, 1, 0, None)
    assert [(a.outcome, a.cause) for a in queue.attempts(job.id)] == [
        ("released", "the gang is stopping")
    ]
    assert claimed(queue, job).epoch > lease.epoch
    assert [a.number for a in queue.attempts(job.id)] == [1, 2]


@pytest.mark.parametrize("write", ["start", "checkpoint", "fail", "release", "paused"])
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
        queue.cancel(job.id, "ann")
    elif loss == "another token":
        lease = replace(lease, token="0" * 32)
    else:
        lease = replace(lease, epoch=lease.epoch + 1)
    before = queue.get(job.id), queue.attempts(job.id)
    writes: dict[str, Callable[[], object]] = {
        "start": lambda: queue.start(lease),
        "checkpoint": lambda: queue.checkpoint(lease, "d" * 64),
        "fail": lambda: queue.fail(lease, "late"),
        "release": lambda: queue.release(lease, "late", Fault.MACHINE),
        "paused": lambda: queue.paused(lease),
    }
    with pytest.raises(StaleLease, match=f"controller may not write at epoch {lease.epoch}"):
        writes[write]()
    assert (queue.get(job.id), queue.attempts(job.id)) == before


def test_job_starts_once_a_lease(queue: JobQueue, running: Running) -> None:
    lease = running()
    before, num_lines = queue.get(lease.job_id), len(queue.log(lease.job_id))
    assert queue.start(lease) == before
    assert len(queue.log(lease.job_id)) == num_lines


def test_lease_of_no_job_is_stale(queue: JobQueue) -> None:
    lease = Lease("f" * 32, "controller", "t", 1, datetime.now(UTC))
    with pytest.raises(StaleLease, match="there is no such job"):
        queue.start(lease)


def test_machine_faults_wait_longer_and_longer_and_then_end_the_job(
    queue: JobQueue, submission: Submit
) -> None:
    job, _ = queue.submit(submission(), "ann", JobOptions(max_attempts=2))
    first = queue.release(claimed(queue, job), "a node is gone", Fault.MACHINE)
    assert (first.state, first.faults, first.options.not_before) == (JobState.QUEUED, 1, None)
    end = queue.release(claimed(queue, job), "a node is gone", Fault.MACHINE)
    assert (end.state, end.faults) == (JobState.FAILED, 2)
    assert end.error == "a node is gone (attempt 2 of 2)"
    assert {a.fault for a in queue.attempts(job.id)} == {Fault.MACHINE}
    assert queue.log(job.id)[-1].text == (
        "attempt 2 lost: a node is gone; failed for good: attempt 2 of 2"
    )


def test_second_machine_fault_is_tried_again_after_a_pause(
    queue: JobQueue, submission: Submit
) -> None:
    job, _ = queue.submit(submission(), "ann")
    for _ in range(2):
        job = queue.release(claimed(queue, job), "a node is gone", Fault.MACHINE)
    assert job.options.not_before is not None
    assert job.options.not_before > datetime.now(UTC) + timedelta(seconds=1)
    assert (job.state, queue.ready()) == (JobState.QUEUED, [])
    assert queue.log(job.id)[-1].text == (
        "attempt 2 lost: a node is gone; queued again, next try in 5 s"
    )


def test_preemption_costs_nothing(queue: JobQueue, submission: Submit) -> None:
    job, _ = queue.submit(submission(), "ann", JobOptions(max_attempts=1))
    for _ in range(3):
        job = queue.release(claimed(queue, job), "room is needed", Fault.PREEMPTION)
        assert (job.state, job.faults, job.options.not_before) == (JobState.QUEUED, 0, None)


def test_checkpoint_gives_the_machine_its_budget_back(queue: JobQueue, submission: Submit) -> None:
    job, _ = queue.submit(submission(), "ann", JobOptions(max_attempts=2))
    queue.release(claimed(queue, job), "a node is gone", Fault.MACHINE)
    lease = claimed(queue, job)
    queue.checkpoint(lease, "d" * 64)
    again = queue.release(lease, "a node is gone", Fault.MACHINE)
    assert queue.get(job.id).checkpoint == "d" * 64
    assert (again.state, again.faults, again.checkpoint) == (JobState.QUEUED, 1, "d" * 64)


def test_expired_lease_is_reclaimed(queue: JobQueue, submission: Submit) -> None:
    lost, _ = queue.submit(submission(nonce="lost"), "ann")
    kept, _ = queue.submit(submission(nonce="kept"), "ann")
    lease = claimed(queue, lost, lease_s=0)
    claimed(queue, kept, lease_s=60)
    (job,) = queue.reclaim(alive)
    assert (job.id, job.state) == (lost.id, JobState.QUEUED)
    assert job.epoch == lease.epoch + 1
    assert [(a.outcome, a.cause) for a in queue.attempts(job.id)] == [
        ("reclaimed", "the holder's lease expired")
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
    causes = {a.cause for job in queue.list() for a in queue.attempts(job.id)}
    assert causes == {"the holder died", None}


def test_lease_renewed_while_reclaiming_is_left_alone(queue: JobQueue, submission: Submit) -> None:
    job, _ = queue.submit(submission(), "ann")
    lease = claimed(queue, job, lease_s=0)

    def renew(holder: str) -> bool:
        queue.heartbeat([lease], 60)
        return False

    assert queue.reclaim(renew) == []
    assert queue.get(job.id).state == JobState.ADMITTED


def test_job_that_its_own_holder_does_not_know_of_is_queued_again(
    queue: JobQueue, submission: Submit
) -> None:
    holders = {"known": "me", "stray": "me", "other": "another"}
    held = {
        nonce: claimed(queue, queue.submit(submission(nonce=nonce), "ann")[0], holder)
        for nonce, holder in holders.items()
    }
    queue.checkpoint(held["stray"], "d" * 64)
    (job,) = queue.disown("me", {held["known"].job_id})
    assert (job.id, job.state, job.faults) == (held["stray"].job_id, JobState.QUEUED, 0)
    assert (job.checkpoint, job.gang) == ("d" * 64, None)
    assert queue.attempts(job.id)[-1].fault is Fault.PREEMPTION
    assert queue.log(job.id)[-1].text == (
        "attempt 1 released: its holder does not know of it; queued again"
    )
    assert queue.disown("me", {held["known"].job_id}) == []
    assert queue.heartbeat(list(held.values()), 60).lost.keys() == {job.id}


def test_parallel_reclaims_take_a_job_back_once(queue: JobQueue, submission: Submit) -> None:
    job, _ = queue.submit(submission(), "ann")
    claimed(queue, job, lease_s=0)
    with ThreadPoolExecutor(6) as pool:
        found = [
            job for jobs in pool.map(lambda _: queue.reclaim(alive), range(12)) for job in jobs
        ]
    assert len(found) == 1
    assert queue.get(job.id).epoch == 2


@pytest.mark.postgres
@pytest.mark.parametrize("hours", [-1, 1])
def test_wrong_clock_of_the_client_changes_nothing_on_postgresql(
    empty_postgres: Callable[[], str],
    submission: Submit,
    monkeypatch: pytest.MonkeyPatch,
    hours: int,
) -> None:
    class WrongClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "WrongClock":
            return super().now(tz) + timedelta(hours=hours)

    for module in (dialect, job_entry):
        monkeypatch.setattr(module, "datetime", WrongClock)
    database = Database(empty_postgres())
    queue, leadership = JobQueue(database), Leadership(database)
    job, _ = queue.submit(submission(), "ann", JobOptions(max_attempts=9))
    lease = claimed(queue, job, lease_s=600)
    minute = timedelta(minutes=1)
    assert abs(job.created_at - datetime.now(UTC)) < minute
    assert abs(lease.expires_at - datetime.now(UTC) - 10 * minute) < minute
    assert queue.reclaim(alive) == []
    assert leadership.lead("a", 600, alive) == 1
    assert leadership.lead("b", 600, alive) is None
    for _ in range(2):
        job = queue.release(lease, "a node is gone", Fault.MACHINE)
        lease = claimed(queue, job, lease_s=-1) if queue.ready() else lease
    assert job.options.not_before is not None
    assert abs(job.options.not_before - datetime.now(UTC)) < minute
    database.close()


def test_plans_read_one_query_and_no_submission(
    queue: JobQueue, database: Database, submission: Submit
) -> None:
    queue.submit(submission(), "ann")
    queries: list[str] = []
    engine = database._engine
    event.listen(engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
    assert len(queue.ready()) == 1
    assert queue.held() == []
    assert len([query for query in queries if query.startswith("SELECT")]) == 2
    assert not any("jobs.submission" in query for query in queries)
