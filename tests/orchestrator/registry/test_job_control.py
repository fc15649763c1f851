"""What users do with a job: what its state allows, once, and with their name in its log."""

from collections.abc import Callable

import pytest

from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.domain.job import Fault, Job, JobOptions, JobState, Lease, Submission
from orchestrator.domain.prompt_version import TrainedPrompt
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.prompt_registry import PromptRegistry

Submit = Callable[..., Submission]
Running = Callable[..., Lease]
Verb = Callable[[JobQueue, str], Job]
VERBS: dict[str, Verb] = {
    "cancel": lambda queue, job_id: queue.cancel(job_id, "bob"),
    "pause": lambda queue, job_id: queue.pause(job_id, "bob"),
    "resume": lambda queue, job_id: queue.resume(job_id, "bob"),
    "retry": lambda queue, job_id: queue.retry(job_id, "bob"),
    "set_priority": lambda queue, job_id: queue.set_priority(job_id, 3, "bob"),
}
#: What each state allows, and the state that follows.
ALLOWED: dict[JobState, dict[str, JobState]] = {
    JobState.QUEUED: {
        "cancel": JobState.CANCELLED,
        "pause": JobState.PAUSED,
        "set_priority": JobState.QUEUED,
    },
    JobState.ADMITTED: {
        "cancel": JobState.CANCELLED,
        "pause": JobState.ADMITTED,
        "set_priority": JobState.ADMITTED,
    },
    JobState.RUNNING: {
        "cancel": JobState.CANCELLED,
        "pause": JobState.RUNNING,
        "set_priority": JobState.RUNNING,
    },
    JobState.PAUSED: {
        "cancel": JobState.CANCELLED,
        "pause": JobState.PAUSED,
        "resume": JobState.QUEUED,
        "set_priority": JobState.PAUSED,
    },
    JobState.SUCCEEDED: {},
    JobState.FAILED: {"retry": JobState.QUEUED},
    JobState.CANCELLED: {"cancel": JobState.CANCELLED, "retry": JobState.QUEUED},
}


@pytest.fixture
def job_in(
    queue: JobQueue,
    registry: PromptRegistry,
    submission: Submit,
    trained: Callable[..., TrainedPrompt],
) -> Callable[[JobState], Job]:
    """A job that has come to a state."""

    def make(state: JobState) -> Job:
        job, _ = queue.submit(submission(), "ann")
        if state in (JobState.PAUSED, JobState.CANCELLED):
            VERBS["pause" if state == JobState.PAUSED else "cancel"](queue, job.id)
        elif state != JobState.QUEUED:
            _, lease = queue.claim([job.id], "controller", 60)[job.id]
            if state == JobState.RUNNING:
                queue.start(lease)
            elif state == JobState.FAILED:
                queue.fail(lease, "bad data")
            elif state == JobState.SUCCEEDED:
                registry.complete(lease, trained(), None, "controller")
        found = queue.get(job.id)
        assert found.state == state
        return found

    return make


@pytest.mark.parametrize("state", list(JobState))
def test_each_state_allows_what_it_allows_and_no_more(
    queue: JobQueue, job_in: Callable[[JobState], Job], state: JobState
) -> None:
    job = job_in(state)
    refused = VERBS.keys() - ALLOWED[state].keys()
    for verb in sorted(refused):
        with pytest.raises(InvalidInput, match=rf"job {job.id[:12]} (is|has already) {state}: "):
            VERBS[verb](queue, job.id)
    assert queue.get(job.id) == job


@pytest.mark.parametrize(
    ("state", "verb", "then"),
    [(state, verb, then) for state, verbs in ALLOWED.items() for verb, then in verbs.items()],
)
def test_what_is_allowed_is_done_and_told(
    queue: JobQueue,
    job_in: Callable[[JobState], Job],
    state: JobState,
    verb: str,
    then: JobState,
) -> None:
    job = job_in(state)
    done = VERBS[verb](queue, job.id[:8])
    assert (done.state, done) == (then, queue.get(job.id))
    is_same = (state, verb) in {(JobState.PAUSED, "pause"), (JobState.CANCELLED, "cancel")}
    assert ("bob" in queue.log(job.id)[-1].text) or is_same
    assert (done.epoch > job.epoch) == (done.state != job.state)


@pytest.mark.parametrize("verb", VERBS)
def test_unknown_job_is_named(queue: JobQueue, verb: str) -> None:
    with pytest.raises(UnknownName, match="there is no job ffffff"):
        VERBS[verb](queue, "ffffff")


def test_cancel_ends_the_attempt_and_twice_is_once(queue: JobQueue, running: Running) -> None:
    lease = running()
    job = queue.cancel(lease.job_id[:8], "bob")
    num_lines = len(queue.log(job.id))
    assert queue.cancel(lease.job_id, "bob") == job
    assert [(a.outcome, a.cause) for a in queue.attempts(job.id)] == [("cancelled", "by bob")]
    assert len(queue.log(job.id)) == num_lines


def test_held_job_is_paused_by_its_holder(queue: JobQueue, running: Running) -> None:
    lease = running()
    assert queue.pause(lease.job_id, "bob").is_pause_asked
    assert queue.heartbeat([lease], 60).pause_asked == {lease.job_id}
    job = queue.paused(lease)
    assert (job.state, job.is_pause_asked, job.gang) == (JobState.PAUSED, False, None)
    assert [(a.outcome, a.fault) for a in queue.attempts(job.id)] == [("paused", None)]
    assert queue.log(job.id)[-1].text == "attempt 1 paused"
    assert queue.ready() == []
    assert queue.resume(job.id, "bob").state == JobState.QUEUED
    assert [each.id for each in queue.ready()] == [job.id]


def test_pause_that_was_taken_back_queues_the_job(queue: JobQueue, running: Running) -> None:
    lease = running()
    queue.pause(lease.job_id, "bob")
    assert not queue.resume(lease.job_id, "bob").is_pause_asked
    assert queue.heartbeat([lease], 60).pause_asked == frozenset()
    assert queue.paused(lease).state == JobState.QUEUED


@pytest.mark.parametrize("fault", [Fault.MACHINE, Fault.PREEMPTION])
def test_job_whose_pause_was_asked_is_paused_when_it_is_released(
    queue: JobQueue, running: Running, fault: Fault
) -> None:
    lease = running()
    queue.pause(lease.job_id, "bob")
    job = queue.release(lease, "a node is gone", fault)
    assert (job.state, job.faults) == (JobState.PAUSED, int(fault is Fault.MACHINE))
    assert not job.is_pause_asked


def test_job_whose_pause_was_asked_is_paused_when_its_holder_died(
    queue: JobQueue, running: Running
) -> None:
    lease = running()
    queue.pause(lease.job_id, "bob")
    (job,) = queue.reclaim(lambda holder: True)
    assert job.state == JobState.PAUSED
    assert queue.log(job.id)[-1].text == "attempt 1 lost: the holder died; paused as asked"


def test_retried_job_goes_on_from_its_checkpoint_at_once(
    queue: JobQueue, submission: Submit
) -> None:
    job, _ = queue.submit(submission(), "ann", JobOptions(max_attempts=1))
    _, lease = queue.claim([job.id], "controller", 60)[job.id]
    queue.checkpoint(lease, "d" * 64)
    failed = queue.release(lease, "a node is gone", Fault.MACHINE)
    assert failed.state == JobState.FAILED
    again = queue.retry(job.id, "bob")
    assert (again.faults, again.error, again.finished_at) == (0, None, None)
    assert (again.checkpoint, again.attempts) == ("d" * 64, 1)
    assert queue.ready()[0].id == job.id


def test_job_that_its_time_limit_ended_goes_on_under_a_higher_one(
    queue: JobQueue, running: Running
) -> None:
    lease = running()
    queue.checkpoint(lease, "d" * 64)
    failed = queue.fail(lease, "its time limit of 9 s is over")
    assert failed.checkpoint == "d" * 64
    with pytest.raises(InvalidInput, match="time_limit_s is -1"):
        queue.retry(lease.job_id, "bob", -1)
    assert queue.get(lease.job_id) == failed
    again = queue.retry(lease.job_id, "bob", 90)
    assert (again.checkpoint, again.options.time_limit_s) == ("d" * 64, 90)
    queue.cancel(lease.job_id, "bob")
    assert queue.retry(lease.job_id, "bob").options.time_limit_s == 90


def test_retry_of_a_job_that_waits_in_vain_names_the_one_to_retry_first(
    queue: JobQueue, submission: Submit
) -> None:
    first, _ = queue.submit(submission(task="first"), "ann")
    last, _ = queue.submit(submission(), "ann", JobOptions(after=(first.id,)))
    queue.cancel(first.id, "ann")
    (cancelled,) = queue.settle_dependents()
    with pytest.raises(InvalidInput) as caught:
        queue.retry(last.id, "ann")
    short = first.id[:12]
    assert f"waits for job {short} (first), which is cancelled" in str(caught.value)
    assert f"`tutti jobs retry {short}`" in str(caught.value)
    assert queue.get(last.id) == cancelled
    queue.retry(first.id, "ann")
    assert queue.retry(last.id, "ann").state == JobState.QUEUED
    assert queue.settle_dependents() == []


def test_priority_decides_who_is_next(queue: JobQueue, submission: Submit) -> None:
    first, _ = queue.submit(submission(), "ann")
    second, _ = queue.submit(submission(nonce="b"), "ann")
    queue.set_priority(second.id, 1, "bob")
    assert [job.id for job in queue.ready()] == [second.id, first.id]
    with pytest.raises(InvalidInput, match="the priority is"):
        queue.set_priority(second.id, 2**40, "bob")


def test_those_that_wait_in_vain_are_cancelled_down_the_line(
    queue: JobQueue, submission: Submit, running: Running
) -> None:
    first = running(nonce="first")
    second, _ = queue.submit(submission(nonce="b"), "ann", JobOptions(after=(first.job_id,)))
    third, _ = queue.submit(submission(nonce="c"), "ann", JobOptions(after=(second.id,)))
    free, _ = queue.submit(submission(nonce="d"), "ann")
    queue.pause(third.id, "ann")
    assert queue.settle_dependents() == []
    queue.fail(first, "bad data")
    assert [job.id for job in queue.settle_dependents()] == [second.id, third.id]
    assert queue.get(second.id).error == f"waits for job {first.job_id[:12]}, which failed"
    error = f"waits for job {second.id[:12]}, which was cancelled"
    assert queue.get(third.id).error == error
    assert queue.log(third.id)[-1].text == f"cancelled: {error}"
    assert queue.settle_dependents() == []
    assert queue.get(free.id).state == JobState.QUEUED
