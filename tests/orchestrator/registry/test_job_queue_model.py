"""Whatever the order of events, the queue does what a few lines of plain Python say it does."""

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from orchestrator.domain.errors import InvalidInput, StaleLease
from orchestrator.domain.job import TRANSITIONS, JobState, Lease, Submission
from orchestrator.domain.prompt_version import TrainedPrompt
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.prompt_registry import PromptRegistry

HELD = (JobState.ADMITTED, JobState.RUNNING)
HOLDERS = ("ann", "bob")
NONCES = ("a", "b", "c")


@dataclass
class ModelJob:
    """What the queue should know of a job."""

    id: str
    state: JobState = JobState.QUEUED
    lease: Lease | None = None
    expired: bool = False
    epochs: list[int] = field(default_factory=lambda: [0])
    outcomes: list[str | None] = field(default_factory=list)

    def move(self, state: JobState, outcome: str | None = None) -> None:
        resubmitted = self.state in (JobState.FAILED, JobState.CANCELLED)
        assert resubmitted or state in TRANSITIONS[self.state]
        self.state = state
        if state not in HELD:
            self.lease = None
            if self.outcomes and self.outcomes[-1] is None:
                self.outcomes[-1] = outcome


class QueueMachine(RuleBasedStateMachine):
    """Drives the queue and the model side by side."""

    template: Path
    submission: Callable[..., Submission]
    trained: Callable[..., TrainedPrompt]
    numbers = itertools.count()
    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        path = self.template.with_name(f"model-{next(self.numbers)}.db")
        shutil.copy(self.template, path)
        self.database = Database(f"sqlite:///{path}")
        self.queue, self.registry = JobQueue(self.database), PromptRegistry(self.database)
        self.jobs: dict[str, ModelJob] = {}
        self.num_versions = 0

    def teardown(self) -> None:
        self.database.close()

    def holds(self, lease: Lease, *states: JobState) -> bool:
        """Whether a write under `lease` should go through."""
        model = self.jobs[lease.job_id]
        return (
            model.lease is not None and model.lease.token == lease.token and model.state in states
        )

    @rule(nonce=st.sampled_from(NONCES))
    def submit(self, nonce: str) -> None:
        job, created = self.queue.submit(type(self).submission(nonce=nonce), "ann")
        model = self.jobs.get(job.id)
        if model is None:
            assert created
            self.jobs[job.id] = ModelJob(job.id)
            return
        assert created == (model.state in (JobState.FAILED, JobState.CANCELLED))
        if created:
            model.move(JobState.QUEUED)

    @rule(
        target=leases,
        index=st.integers(0, 2),
        holder=st.sampled_from(HOLDERS),
        lease_s=st.sampled_from([0, 3600]),
    )
    def claim(self, index: int, holder: str, lease_s: float) -> Lease:
        model = self.pick(index)
        lease = self.queue.claim(model.id, holder, lease_s)
        assert (lease is not None) == (model.state == JobState.QUEUED)
        if lease is None:
            return Lease(model.id, holder, "never given", 0, self.queue.get(model.id).created_at)
        model.move(JobState.ADMITTED)
        model.lease, model.expired = lease, lease_s == 0
        model.outcomes.append(None)
        return lease

    def pick(self, index: int) -> ModelJob:
        if not self.jobs:
            self.submit(NONCES[0])
        return list(self.jobs.values())[index % len(self.jobs)]

    @rule(lease=leases)
    def start(self, lease: Lease) -> None:
        if self.holds(lease, JobState.ADMITTED):
            self.queue.start(lease)
            self.jobs[lease.job_id].move(JobState.RUNNING)
        else:
            with pytest.raises(StaleLease):
                self.queue.start(lease)

    @rule(lease=leases, lease_s=st.sampled_from([0, 3600]))
    def heartbeat(self, lease: Lease, lease_s: float) -> None:
        if self.holds(lease, *HELD):
            assert self.queue.heartbeat(lease, lease_s, {"step": 1}).token == lease.token
            self.jobs[lease.job_id].expired = lease_s == 0
        else:
            with pytest.raises(StaleLease):
                self.queue.heartbeat(lease, lease_s)

    @rule(lease=leases)
    def fail(self, lease: Lease) -> None:
        if self.holds(lease, *HELD):
            self.queue.fail(lease, "bad data")
            self.jobs[lease.job_id].move(JobState.FAILED, "failed")
        else:
            with pytest.raises(StaleLease):
                self.queue.fail(lease, "bad data")

    @rule(lease=leases)
    def release(self, lease: Lease) -> None:
        if self.holds(lease, *HELD):
            self.queue.release(lease, "stopping")
            self.jobs[lease.job_id].move(JobState.QUEUED, "released")
        else:
            with pytest.raises(StaleLease):
                self.queue.release(lease, "stopping")

    @rule(lease=leases)
    def complete(self, lease: Lease) -> None:
        content = type(self).trained(content=next(self.numbers))
        if self.holds(lease, JobState.RUNNING):
            done = self.registry.complete(lease, content, None, "controller")
            self.num_versions += 1
            assert done.version.number == self.num_versions
            self.jobs[lease.job_id].move(JobState.SUCCEEDED, "succeeded")
        else:
            with pytest.raises(StaleLease):
                self.registry.complete(lease, content, None, "controller")

    @rule(index=st.integers(0, 2))
    def cancel(self, index: int) -> None:
        model = self.pick(index)
        if model.state in (JobState.SUCCEEDED, JobState.FAILED):
            with pytest.raises(InvalidInput):
                self.queue.cancel(model.id)
            return
        assert self.queue.cancel(model.id).state == JobState.CANCELLED
        if model.state != JobState.CANCELLED:
            model.move(JobState.CANCELLED, "cancelled")

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
            model.move(JobState.QUEUED, "reclaimed")

    @invariant()
    def queue_is_as_the_model_says(self) -> None:
        found = {job.id: job for job in self.queue.list()}
        assert found.keys() == self.jobs.keys()
        for model in self.jobs.values():
            job, attempts = found[model.id], self.queue.attempts(model.id)
            assert (job.state, job.attempts) == (model.state, len(model.outcomes))
            assert [attempt.outcome for attempt in attempts] == model.outcomes
            assert job.epoch >= model.epochs[-1]
            model.epochs.append(job.epoch)
            epochs = [attempt.epoch for attempt in attempts]
            assert epochs == sorted(set(epochs))
        waiting = {job.id for job in self.queue.queued()}
        assert waiting == {m.id for m in self.jobs.values() if m.state == JobState.QUEUED}


def test_queue_behaves_as_its_model(
    sqlite_template: Path,
    submission: Callable[..., Submission],
    trained: Callable[..., TrainedPrompt],
) -> None:
    values = {
        "template": sqlite_template,
        "submission": staticmethod(submission),
        "trained": staticmethod(trained),
    }
    run_state_machine_as_test(
        type("Machine", (QueueMachine,), values),
        settings=settings(
            max_examples=20,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        ),
    )
