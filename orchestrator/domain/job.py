"""A job: queued work to train one task. Its states, their transitions, and its lease.

A lease is (token, holder, expiry); the epoch only grows, so a write with an old epoch changes
nothing. Terminal states absorb.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from orchestrator.domain.digest import digest_json
from orchestrator.domain.task_spec import TaskSpec


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    ADMITTED = "admitted"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return not TRANSITIONS[self]


TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.ADMITTED, JobState.PAUSED, JobState.CANCELLED}),
    JobState.ADMITTED: frozenset(
        {JobState.RUNNING, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.RUNNING: frozenset(
        {
            JobState.SUCCEEDED,
            JobState.FAILED,
            JobState.QUEUED,
            JobState.PAUSED,
            JobState.CANCELLED,
        }
    ),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


@dataclass(frozen=True)
class Submission:
    """What a submit writes: the spec, its base's fingerprint, and its data sets by split.

    `num_positions` is the work in one training step: the mean token positions of a row times the
    batch size, for all trials of a sweep; the planner balances ranks by it. `nonce` makes a forced
    submission a new job.
    """

    spec: TaskSpec
    base_fingerprint: str
    datasets: Mapping[str, str]
    num_rows: Mapping[str, int]
    num_positions: float
    nonce: str = ""

    @property
    def idempotency_key(self) -> str:
        """The same spec, base and data give the same job.

        Data files count by content, not by path, so a moved spec is the same submission.
        """
        spec = self.spec.model_dump(mode="json")
        spec.pop("data")
        content = {
            "spec": spec,
            "max_length": self.spec.data.max_length,
            "base": self.base_fingerprint,
            "datasets": dict(self.datasets),
            "nonce": self.nonce,
        }
        return digest_json(content)


@dataclass(frozen=True)
class Job:
    """A job as the queue holds it. `version` is the number of the version it made; `outcome` says
    whether that was new, which alias moved, and the refusals of its gate; `checkpoint` is the
    digest of the state that its next attempt goes on from."""

    id: str
    submission: Submission
    state: JobState
    epoch: int
    created_at: datetime
    attempts: int = 0
    error: str | None = None
    version: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    outcome: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None

    @property
    def task(self) -> str:
        return self.submission.spec.task


@dataclass(frozen=True)
class Lease:
    """The right to write to one job: held by `holder` until `expires_at`, at `epoch`."""

    job_id: str
    holder: str
    token: str
    epoch: int
    expires_at: datetime


@dataclass(frozen=True)
class Attempt:
    """One execution of a job, from its lease to its end; `outcome` is None while it lasts.

    `outcome` is succeeded, failed, released, reclaimed or cancelled; `cause` says why.
    """

    job_id: str
    number: int
    epoch: int
    holder: str
    started_at: datetime
    finished_at: datetime | None = None
    outcome: str | None = None
    cause: str | None = None
