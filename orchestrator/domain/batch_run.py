"""A batch run in the ledger: what was fixed when it started, its shards, who works on it.

A shard is a range of consecutive input rows: what is claimed, committed and resumed as one. Its
epoch grows with every claim, so who answers it late changes nothing; a shard that is done keeps the
epoch it was done at. A run's own epoch grows with every process that takes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from orchestrator.domain.prompt_version import PromptVersion


class BatchState(StrEnum):
    """RUNNING: not ended, whether or not a process works on it now. FAILED may be resumed too."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ShardState(StrEnum):
    QUEUED = "queued"
    CLAIMED = "claimed"
    DONE = "done"


@dataclass(frozen=True)
class Pin:
    """What a reference of the input stands for in the whole run, or why for nothing (`error`)."""

    task: str
    number: int | None = None
    digest: str | None = None
    base_fingerprint: str | None = None
    error: str | None = None

    @classmethod
    def of(cls, version: PromptVersion) -> "Pin":
        base = version.lineage.base_fingerprint
        return cls(version.task, version.number, version.digest, base)

    @property
    def ref(self) -> str | None:
        """`TASK@NUMBER`; None where there is no such version."""
        return None if self.number is None else f"{self.task}@{self.number}"


@dataclass(frozen=True)
class RunPlan:
    """What is fixed when a run starts, so that whoever resumes it gives the same bytes.

    `input`: batch_data's Input as JSON; `settings`: BatchSettings as JSON; `pins`: by reference as
    rows give it; `shard_sizes`: rows of each shard. A worker's `num_threads` may decide a last bit,
    and so may whether bases are whole or split (`zero_stage` 0 or 3).
    """

    input: Mapping[str, Any]
    settings: Mapping[str, Any]
    pins: Mapping[str, Pin]
    output: str
    format: str
    shard_rows: int
    shard_sizes: tuple[int, ...]
    num_threads: int
    code_version: str
    zero_stage: int = 0

    @property
    def num_rows(self) -> int:
        return sum(self.shard_sizes)

    @property
    def bases(self) -> tuple[str, ...]:
        """The fingerprints of the bases that the versions are on."""
        found = {pin.base_fingerprint for pin in self.pins.values() if pin.base_fingerprint}
        return tuple(sorted(found))


@dataclass(frozen=True)
class RunLease:
    """The right to write to a run: one process has it at a time."""

    run_id: str
    holder: str
    token: str
    epoch: int


@dataclass(frozen=True)
class ShardClaim:
    """A shard to answer, at the epoch that its commit must name."""

    number: int
    epoch: int


@dataclass(frozen=True)
class TaskCount:
    """What of a shard (or run) one version answered: rows, errors among them, generated tokens, and
    positions that were read."""

    rows: int = 0
    errors: int = 0
    tokens: int = 0
    positions: int = 0

    def __add__(self, other: "TaskCount") -> "TaskCount":
        mine, theirs = asdict(self), asdict(other)
        return TaskCount(**{name: mine[name] + theirs[name] for name in mine})


#: By `TASK@NUMBER`; by the task alone where it has no such version; "" where no task is named.
TaskCounts = Mapping[str, TaskCount]


@dataclass(frozen=True)
class ShardDone:
    """An answered shard: its part file lies where the run's parts lie. `seconds` of the worker."""

    number: int
    epoch: int
    file: str
    sha256: str
    num_bytes: int
    num_rows: int
    num_errors: int
    seconds: float
    counts: TaskCounts


@dataclass(frozen=True)
class ShardRecord:
    """A shard for views; what its part is, once it is done."""

    number: int
    state: ShardState
    epoch: int
    holder: str | None
    num_rows: int
    num_errors: int = 0
    file: str | None = None
    sha256: str | None = None
    num_bytes: int | None = None
    seconds: float | None = None
    counts: TaskCounts = field(default_factory=dict)


@dataclass(frozen=True)
class BatchRun:
    """A run for views. `num_answered` rows are in committed shards, `num_errors` of them errors;
    `seconds` is the time that processes worked on it, all together. `holder` is None where no
    process works on it, or its lease has ended."""

    id: str
    state: BatchState
    owner: str
    output: str
    format: str
    source: str
    shard_rows: int
    num_shards: int
    num_shards_done: int
    num_rows: int
    num_answered: int
    num_errors: int
    epoch: int
    holder: str | None
    error: str | None
    seconds: float
    code_version: str
    created_at: datetime
    finished_at: datetime | None

    @property
    def can_resume(self) -> bool:
        return self.state in (BatchState.RUNNING, BatchState.FAILED)


def sum_counts(shards: Sequence[ShardRecord]) -> dict[str, TaskCount]:
    """The counts of all shards together, in the order of their names."""
    total: dict[str, TaskCount] = {}
    for shard in shards:
        for name, count in shard.counts.items():
            total[name] = total.get(name, TaskCount()) + count
    return dict(sorted(total.items()))
