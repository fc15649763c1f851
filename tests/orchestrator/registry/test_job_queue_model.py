"""Whatever the order of events, the queue does what a few lines of plain Python say it does."""

import itertools
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from orchestrator.domain.errors import InvalidInput, StaleLease
from orchestrator.domain.job import (
    RETRIABLE,
    TRANSITIONS,
    Fault,
    JobOptions,
    JobState,
    Lease,
    LogLine,
    Submission,
)
from orchestrator.domain.prompt_version import TrainedPrompt
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.prompt_registry import PromptRegistry

HELD = (JobState.ADMITTED, JobState.RUNNING)
WAITING = (JobState.QUEUED, JobState.PAUSED)
HOLDERS = ("ann", "bob")
NONCES = ("a", "b", "c")
HOUR = timedelta(hours=1)
MOMENTS = {"past": datetime.now(UTC) - HOUR, "future": datetime.now(UTC) + 24 * HOUR, "any": None}
INDEX = st.integers(0, len(NONCES))
ASKED: dict[str, st.SearchStrategy[Any]] = {
    "priority": st.integers(-1, 1),
    "max_attempts": st.integers(1, 3),
    "after": st.none() | INDEX,
    "moment": st.sampled_from(["any", "any", *MOMENTS]),
}


@dataclass
class ModelJob:
    """What the queue should know of a job."""

    id: str
    key: str
    state: JobState = JobState.QUEUED
    priority: int = 0
    max_attempts: int = 3
    after: tuple[str, ...] = ()
    is_due: bool = True
    faults: int = 0
    is_pause_asked: bool = False
    checkpoint: str | None = None
    lease: Lease | None = None
    expired: bool = False
    epoch: int = -1
    log: list[LogLine] = field(default_factory=list)
    outcomes: list[str | None] = field(default_factory=list)

    def ask(self, options: JobOptions) -> None:
        self.state, self.faults, self.checkpoint = JobState.QUEUED, 0, None
        self.priority, self.max_attempts = options.priority, options.max_attempts
        self.after = options.after
        self.is_due = options.not_before != MOMENTS["future"]

    def move(self, state: JobState, outcome: str | None = None) -> None:
        assert state in TRANSITIONS[self.state]
        self.state = state
        if state not in HELD:
            self.lease, self.is_pause_asked = None, False
            if outcome:
                assert self.outcomes[-1] is None
                self.outcomes[-1] = outcome

    def give_back(self, outcome: str, fault: Fault) -> None:
        self.faults += fault is Fault.MACHINE
        if fault is Fault.MACHINE and self.faults == self.max_attempts:
            return self.move(JobState.FAILED, outcome)
        if self.is_pause_asked:
            return self.move(JobState.PAUSED, outcome)
        if fault is Fault.MACHINE and self.faults > 1:
            self.is_due = False
        return self.move(JobState.QUEUED, outcome)


class QueueMachine(RuleBasedStateMachine):
    """Drives the queue and the model side by side."""

    new_database: Callable[[], str]
    submission: Callable[..., Submission]
    trained: Callable[..., TrainedPrompt]
    numbers = itertools.count()
    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.database = Database(type(self).new_database())
        self.queue, self.registry = JobQueue(self.database), PromptRegistry(self.database)
        self.jobs: dict[str, ModelJob] = {}
        self.num_versions = 0

    def teardown(self) -> None:
        self.database.close()

    def pick(self, index: int) -> ModelJob:
        return list(self.jobs.values())[index % len(self.jobs)]

    def holds(self, lease: Lease, *states: JobState) -> bool:
        """Whether a write under `lease` should go through."""
        model = self.jobs[lease.job_id]
        return (
            model.lease is not None and model.lease.token == lease.token and model.state in states
        )

    def waits_for(self, ids: Iterable[str]) -> set[str]:
        """The jobs that some jobs wait for, and those that these wait for, and themselves."""
        ids = set(ids)
        return ids.union(*(self.waits_for(self.jobs[job_id].after) for job_id in ids))

    def is_ready(self, model: ModelJob) -> bool:
        firsts = [self.jobs[job_id].state for job_id in model.after]
        return (
            model.state == JobState.QUEUED
            and model.is_due
            and all(state == JobState.SUCCEEDED for state in firsts)
        )

    @initialize(asked=st.tuples(*(st.fixed_dictionaries(ASKED) for _ in NONCES)))
    def submit_some(self, asked: Sequence[Mapping[str, Any]]) -> None:
        for nonce, options in zip(NONCES, asked, strict=True):
            self.submit(nonce, has_key=False, **options)

    @rule(nonce=st.sampled_from(NONCES), has_key=st.booleans(), asked=st.fixed_dictionaries(ASKED))
    def submit_one(self, nonce: str, has_key: bool, asked: Mapping[str, Any]) -> None:
        self.submit(nonce, has_key=has_key, **asked)

    def submit(
        self,
        nonce: str,
        has_key: bool,
        priority: int,
        max_attempts: int,
        after: int | None,
        moment: str,
    ) -> None:
        """A submission with a key is the job `d`, whatever it asks for."""
        waits = () if after is None or not self.jobs else (self.pick(after).id,)
        key = "d" if has_key else None
        options = JobOptions(priority, max_attempts, None, MOMENTS[moment], waits, key)
        given = type(self).submission(nonce=nonce)
        same = next((m for m in self.jobs.values() if m.key == (key or nonce)), None)
        if same and same.state in RETRIABLE and same.id in self.waits_for(waits):
            with pytest.raises(InvalidInput, match="would wait for itself"):
                self.queue.submit(given, "ann", options)
            return
        job, created = self.queue.submit(given, "ann", options)
        assert created == (same is None or same.state in RETRIABLE)
        model = self.jobs.setdefault(job.id, ModelJob(job.id, key or nonce))
        assert same is None or model is same
        if created:
            model.ask(options)
            assert job.options == options

    @rule(
        target=leases,
        index=st.sampled_from([0, 0, 0, 1, 2]),
        holder=st.sampled_from(HOLDERS),
        lease_s=st.sampled_from([0, 3600]),
    )
    def claim(self, index: int, holder: str, lease_s: float) -> Lease:
        model = self.pick(index)
        if index == 0:  # mostly one that can be claimed, so that examples get somewhere
            model = next(filter(self.is_ready, self.jobs.values()), model)
        claimed = self.queue.claim([model.id], holder, lease_s, "gang")
        assert (model.id in claimed) == self.is_ready(model)
        if not claimed:
            return Lease(model.id, holder, "never given", 0, datetime.now(UTC))
        job, lease = claimed[model.id]
        assert (job.checkpoint, job.faults) == (model.checkpoint, model.faults)
        model.move(JobState.ADMITTED)
        model.lease, model.expired = lease, lease_s == 0
        model.outcomes.append(None)
        return lease

    @rule(lease=leases)
    def start(self, lease: Lease) -> None:
        if self.holds(lease, *HELD):
            self.queue.start(lease)
            model = self.jobs[lease.job_id]
            if model.state == JobState.ADMITTED:
                model.move(JobState.RUNNING)
        else:
            with pytest.raises(StaleLease):
                self.queue.start(lease)

    @rule(lease=leases, lease_s=st.sampled_from([0, 3600]))
    def heartbeat(self, lease: Lease, lease_s: float) -> None:
        beat = self.queue.heartbeat([lease], lease_s, {lease.job_id: {"step": 1}})
        model = self.jobs[lease.job_id]
        if self.holds(lease, *HELD):
            assert beat.renewed[lease.job_id].token == lease.token
            assert (lease.job_id in beat.pause_asked) == model.is_pause_asked
            model.expired = lease_s == 0
        else:
            assert (beat.renewed, beat.pause_asked) == ({}, frozenset())
            assert lease.job_id in beat.lost

    @rule(lease=leases, digest=st.sampled_from(["d" * 64, "e" * 64]))
    def checkpoint(self, lease: Lease, digest: str) -> None:
        if self.holds(lease, *HELD):
            self.queue.checkpoint(lease, digest)
            self.jobs[lease.job_id].checkpoint = digest
            self.jobs[lease.job_id].faults = 0
        else:
            with pytest.raises(StaleLease):
                self.queue.checkpoint(lease, digest)

    @rule(lease=leases)
    def fail(self, lease: Lease) -> None:
        if self.holds(lease, *HELD):
            self.queue.fail(lease, "bad data")
            self.jobs[lease.job_id].move(JobState.FAILED, "failed")
        else:
            with pytest.raises(StaleLease):
                self.queue.fail(lease, "bad data")

    @rule(lease=leases, fault=st.sampled_from([Fault.MACHINE, Fault.PREEMPTION]))
    def release(self, lease: Lease, fault: Fault) -> None:
        if self.holds(lease, *HELD):
            self.queue.release(lease, "stopping", fault)
            self.jobs[lease.job_id].give_back("released", fault)
        else:
            with pytest.raises(StaleLease):
                self.queue.release(lease, "stopping", fault)

    @rule(lease=leases)
    def stop_to_pause(self, lease: Lease) -> None:
        if self.holds(lease, *HELD):
            self.queue.paused(lease)
            model = self.jobs[lease.job_id]
            model.move(JobState.PAUSED if model.is_pause_asked else JobState.QUEUED, "paused")
        else:
            with pytest.raises(StaleLease):
                self.queue.paused(lease)

    @rule(lease=leases)
    def complete(self, lease: Lease) -> None:
        content = type(self).trained(content=next(self.numbers))
        if self.holds(lease, *HELD):
            done = self.registry.complete(lease, content, None, "controller")
            self.num_versions += 1
            assert done.version.number == self.num_versions
            self.jobs[lease.job_id].move(JobState.SUCCEEDED, "succeeded")
            self.jobs[lease.job_id].checkpoint = None
        else:
            with pytest.raises(StaleLease):
                self.registry.complete(lease, content, None, "controller")

    @rule(index=INDEX)
    def cancel(self, index: int) -> None:
        model = self.pick(index)
        if model.state in (JobState.SUCCEEDED, JobState.FAILED):
            with pytest.raises(InvalidInput):
                self.queue.cancel(model.id, "ann")
            return
        assert self.queue.cancel(model.id, "ann").state == JobState.CANCELLED
        if model.state != JobState.CANCELLED:
            model.move(JobState.CANCELLED, "cancelled" if model.state in HELD else None)

    @rule(index=INDEX)
    def pause(self, index: int) -> None:
        model = self.pick(index)
        if model.state.is_terminal:
            with pytest.raises(InvalidInput):
                self.queue.pause(model.id, "ann")
            return
        self.queue.pause(model.id, "ann")
        if model.state in HELD:
            model.is_pause_asked = True
        elif model.state == JobState.QUEUED:
            model.move(JobState.PAUSED)

    @rule(index=INDEX)
    def resume(self, index: int) -> None:
        model = self.pick(index)
        if model.state != JobState.PAUSED and not model.is_pause_asked:
            with pytest.raises(InvalidInput):
                self.queue.resume(model.id, "ann")
            return
        self.queue.resume(model.id, "ann")
        model.is_pause_asked = False
        if model.state == JobState.PAUSED:
            model.move(JobState.QUEUED)

    @rule(index=INDEX)
    def retry(self, index: int) -> None:
        model = self.pick(index)
        if model.state not in RETRIABLE:
            with pytest.raises(InvalidInput):
                self.queue.retry(model.id, "ann")
            return
        self.queue.retry(model.id, "ann")
        model.state, model.faults, model.is_due = JobState.QUEUED, 0, True

    @rule(index=INDEX, priority=st.integers(-1, 1))
    def set_priority(self, index: int, priority: int) -> None:
        model = self.pick(index)
        if model.state.is_terminal:
            with pytest.raises(InvalidInput):
                self.queue.set_priority(model.id, priority, "ann")
            return
        self.queue.set_priority(model.id, priority, "ann")
        model.priority = priority

    @rule(dead=st.sampled_from([None, *HOLDERS]))
    def reclaim(self, dead: str | None) -> None:
        lost = [
            model
            for model in self.jobs.values()
            if model.lease and (model.expired or model.lease.holder == dead)
        ]
        found = self.queue.reclaim(lambda holder: holder == dead)
        assert {job.id for job in found} == {model.id for model in lost}
        for model in lost:
            model.give_back("reclaimed", Fault.MACHINE)

    @rule()
    def settle_dependents(self) -> None:
        cancelled = set()
        while hopeless := [
            model
            for model in self.jobs.values()
            if model.state in WAITING
            and any(self.jobs[job_id].state in RETRIABLE for job_id in model.after)
        ]:
            for model in hopeless:
                model.move(JobState.CANCELLED)
                cancelled.add(model.id)
        assert {job.id for job in self.queue.settle_dependents()} == cancelled

    @invariant()
    def queue_is_as_the_model_says(self) -> None:
        found = {job.id: job for job in self.queue.list()}
        assert found.keys() == self.jobs.keys()
        for model in self.jobs.values():
            job, attempts = found[model.id], self.queue.attempts(model.id)
            assert (job.state, job.attempts) == (model.state, len(model.outcomes))
            assert (job.faults, job.checkpoint) == (model.faults, model.checkpoint)
            assert (job.options.priority, job.options.after) == (model.priority, model.after)
            assert job.is_pause_asked == model.is_pause_asked
            assert [attempt.outcome for attempt in attempts] == model.outcomes
            assert job.faults < model.max_attempts or job.state == JobState.FAILED
            epochs = [attempt.epoch for attempt in attempts]
            assert epochs == sorted(set(epochs))
            self.check_growth(model, job.epoch)
        ready = sorted(filter(self.is_ready, self.jobs.values()), key=lambda m: -m.priority)
        assert [job.id for job in self.queue.ready()] == [model.id for model in ready]
        held = [model.id for model in self.jobs.values() if model.state in HELD]
        assert [job.id for job in self.queue.held()] == held

    def check_growth(self, model: ModelJob, epoch: int) -> None:
        """Of a job's epoch and of its log, which says something of every change of epoch."""
        assert epoch >= model.epoch
        log = self.queue.log(model.id)
        numbers = [line.number for line in log]
        assert numbers == sorted(set(numbers))
        assert log[: len(model.log)] == model.log
        assert len(log) > len(model.log) or epoch == model.epoch
        model.epoch, model.log = epoch, log


@pytest.fixture
def new_database(dialect: str, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[], str]:
    """Gives the URL of a database without rows."""
    if dialect != "sqlite":
        return request.getfixturevalue("empty_postgres")  # type: ignore[no-any-return]
    template, numbers = request.getfixturevalue("sqlite_template"), itertools.count()
    return lambda: f"sqlite:///{shutil.copy(template, tmp_path / f'{next(numbers)}.db')}"


def test_queue_behaves_as_its_model(
    dialect: str,
    new_database: Callable[[], str],
    submission: Callable[..., Submission],
    trained: Callable[..., TrainedPrompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A pause that no run of this test outlasts.
    pause_s = "orchestrator.registry.job_claims.retry_pause_s"
    monkeypatch.setattr(pause_s, lambda faults: 3600.0 if faults > 1 else 0.0)
    values = {
        "new_database": staticmethod(new_database),
        "submission": staticmethod(submission),
        "trained": staticmethod(trained),
    }
    run_state_machine_as_test(
        type("Machine", (QueueMachine,), values),
        settings=settings(
            max_examples=6 if dialect == "postgres" else 12,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        ),
    )
