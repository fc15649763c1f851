"""A job: queued work to train one task. Its states, their transitions, its lease, its attempts.

A lease is (token, holder, expiry); the epoch only grows, so a write with an old epoch changes
nothing. Terminal states absorb. What an attempt failed by decides whose budget it is charged to.
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


class Fault(StrEnum):
    """Whose fault it is that an attempt gave no result."""

    USER = "user"  # the job's own: it would come again, so it is not tried again
    MACHINE = "machine"  # tried again after a pause, `max_attempts` times
    PREEMPTION = "preemption"  # it had to make room: tried again without limit


TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.ADMITTED, JobState.PAUSED, JobState.CANCELLED}),
    JobState.ADMITTED: frozenset(
        {
            JobState.RUNNING,
            JobState.SUCCEEDED,
            JobState.QUEUED,
            JobState.PAUSED,
            JobState.FAILED,
            JobState.CANCELLED,
        }
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


#: The ends that a user may ask to come back from: `retry`, or the same submission again.
RETRIABLE = frozenset({JobState.FAILED, JobState.CANCELLED})
MAX_RETRY_PAUSE_S = 300.0


def retry_pause_s(faults: int) -> float:
    """Seconds to wait before the attempt that follows the machine's `faults`-th fault in a row:
    0, then 5, 10, 20 ... at most 300."""
    return min(5.0 * 2.0 ** min(faults - 2, 16), MAX_RETRY_PAUSE_S) if faults > 1 else 0.0


@dataclass(frozen=True)
class ArrayPlace:
    """A job's place in an array, the jobs of one sweep: which of `size` trials it is, from 0, and
    the `values` that it trains with."""

    array: str
    index: int
    size: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Submission:
    """What a submit writes: the spec, its base's fingerprint, and its data sets by split.

    `num_positions` is the work in one training step: the mean token positions of a row times the
    batch size, for all trials of a sweep; the planner balances ranks by it. `num_bytes` is what its
    encoders and their optimizers take of a worker's memory. `nonce` makes a forced submission a new
    job. `place` is set for a job of an array.
    """

    spec: TaskSpec
    base_fingerprint: str
    datasets: Mapping[str, str]
    num_rows: Mapping[str, int]
    num_positions: float
    nonce: str = ""
    num_bytes: float = 0.0
    place: ArrayPlace | None = None

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
        if self.place is not None:
            content |= {"array": self.place.array, "index": self.place.index}
        return digest_json(content)


@dataclass(frozen=True)
class JobOptions:
    """How a job is to be run, which does not change what it makes.

    Higher `priority` goes first. `max_attempts` is the machine's budget: attempts that may end by
    its fault, the last one included. `time_limit_s` is of training, over all attempts. A job waits
    for `not_before`, and for the jobs `after` (full ids) to succeed. `key` replaces the
    idempotency key that the submission has of itself.
    """

    priority: int = 0
    max_attempts: int = 3
    time_limit_s: float | None = None
    not_before: datetime | None = None
    after: tuple[str, ...] = ()
    key: str | None = None


@dataclass(frozen=True)
class Job:
    """A job as the queue holds it. `version` is the number of the version it made; `outcome` says
    whether that was new, which alias moved, and the refusals of its gate; `checkpoint` is the
    digest of the state that its next attempt goes on from. `faults` counts the machine's, `gang`
    names the gang that has it, `log` is the digest of its log once it has ended."""

    id: str
    submission: Submission
    state: JobState
    epoch: int
    created_at: datetime
    owner: str = ""
    options: JobOptions = JobOptions()
    faults: int = 0
    gang: str | None = None
    is_pause_asked: bool = False
    log: str | None = None
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

    `outcome` is succeeded, failed, released, reclaimed, paused or cancelled; `cause` says why, and
    `fault` whose fault that is.
    """

    job_id: str
    number: int
    epoch: int
    holder: str
    started_at: datetime
    finished_at: datetime | None = None
    outcome: str | None = None
    cause: str | None = None
    fault: Fault | None = None
    gang: str | None = None


@dataclass(frozen=True)
class QueuedJob:
    """What scheduling knows of a job: little, for there may be a hundred thousand of them.

    `num_positions` are those of one training step, `num_steps` the spec's, `num_bytes` what it
    takes of a worker's memory; `zero_stage` is None where the spec leaves it open. `gang` is set
    for a job that a gang holds; `faults` counts the machine's in a row; `array` names the array
    that it belongs to.
    """

    id: str
    task: str
    owner: str
    priority: int
    created_at: datetime
    base_fingerprint: str
    zero_stage: int | None
    is_data_parallel: bool
    num_positions: float
    num_steps: int
    gang: str | None = None
    num_bytes: float = 0.0
    faults: int = 0
    array: str | None = None


@dataclass(frozen=True)
class Quota:
    """An owner's part of the cluster. `max_running` bounds the jobs that gangs hold at a time
    (None: no bound); of equal priorities, owners get slots in the ratio of their `share`."""

    owner: str
    max_running: int | None = None
    share: float = 1.0


@dataclass(frozen=True)
class LogLine:
    """One thing that happened to a job, in plain words. `number` grows along a job's log."""

    number: int
    at: datetime
    text: str


@dataclass(frozen=True)
class Beat:
    """What a heartbeat came to, by job: the leases as they are now, why others are lost (their
    holder stops working on them), and which jobs are to be paused."""

    renewed: Mapping[str, Lease]
    lost: Mapping[str, str]
    pause_asked: frozenset[str]


@dataclass(frozen=True)
class QueueStats:
    """How many jobs there are in each state, and how long the oldest queued one exists."""

    counts: Mapping[JobState, int]
    oldest_queued_s: float | None
