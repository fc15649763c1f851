"""What a gang is told to do and what it tells back. Values only; they cross processes.

A gang is one Ray Train run that holds one base and trains many tasks, each on one rank or, where
its spec asks for it, on all of them (data parallel). It stays up while there is work for it: tasks
are admitted and withdrawn at step boundaries. Everything about a task carries the epoch of its
job's lease, so that what an old holder's rank says is told from what the present one's says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from orchestrator.domain.job import Fault
from orchestrator.domain.prompt_version import TrainedPrompt
from orchestrator.domain.task_spec import TaskSpec

#: Of one forward pass, with the activations that its backward pass needs: what bounds memory.
MAX_POSITIONS = 1024
#: Elements of a split base that a worker holds whole at a time; a larger layer goes beyond.
LIVE_PARAMETERS = 100_000_000

Offload = Literal["none", "cpu", "nvme"]  # where a split base's parts are kept


@dataclass(frozen=True)
class TaskOrder:
    """One job to train. `datasets` maps each split to the digest of its stored JSONL file,
    `checkpoint` is the digest of the state to go on from, `epoch` its lease's."""

    job_id: str
    spec: TaskSpec
    datasets: Mapping[str, str]
    base_fingerprint: str
    num_positions: float
    checkpoint: str | None = None
    epoch: int = 0


@dataclass(frozen=True)
class GangOrder:
    """One gang: a base, how DeepSpeed holds it, and how many workers it may have.

    `sharding` says in one line why the base is held so; `shares_rows` that its ranks train
    data-parallel tasks, and so step together.
    """

    name: str
    base_fingerprint: str
    max_length: int
    code_version: str
    zero_stage: int
    min_workers: int
    max_workers: int
    offload: Offload = "none"
    sharding: str = ""
    shares_rows: bool = False

    @property
    def is_collective(self) -> bool:
        """Whether all ranks make every forward pass together."""
        return self.zero_stage == 3 or self.shares_rows


@dataclass(frozen=True)
class Node:
    """A machine that workers run on: its processors, and its free memory in bytes."""

    num_cpus: int
    memory_bytes: int
    gpu_bytes: tuple[int, ...] = ()


@dataclass(frozen=True)
class StageReached:
    """A rank has come to a stage of its start-up (for the view, and to say where one hangs)."""

    rank: int
    stage: str


@dataclass(frozen=True)
class TaskAdmitted:
    """A rank has taken a task up; `step` is where it goes on from."""

    job_id: str
    epoch: int
    rank: int
    step: int = 0


@dataclass(frozen=True)
class TaskProgress:
    """Where one task's training stands. `best` is the best held-out metric so far."""

    job_id: str
    step: int
    num_steps: int
    loss: float | None = None
    best: float | None = None
    seconds: float = 0.0
    stage: str = "training"
    epoch: int = 0


@dataclass(frozen=True)
class TaskNoted:
    """A line for a job's log."""

    job_id: str
    epoch: int
    text: str


@dataclass(frozen=True)
class TaskCheckpointed:
    """A task's state after `step` is stored as the artifact `digest`."""

    job_id: str
    step: int
    digest: str
    epoch: int = 0


@dataclass(frozen=True)
class TaskWithdrawn:
    """A task has left before its end, as it was told to; its last checkpoint came before this."""

    job_id: str
    epoch: int
    step: int


@dataclass(frozen=True)
class TaskFinished:
    """A task is trained and its artifacts are stored."""

    job_id: str
    trained: TrainedPrompt
    epoch: int = 0


@dataclass(frozen=True)
class TaskFailed:
    """A task cannot be trained, here or at all; `fault` says which. Its neighbours go on."""

    job_id: str
    reason: str
    epoch: int = 0
    fault: Fault = Fault.USER


TaskEvent = (
    TaskAdmitted
    | TaskProgress
    | TaskNoted
    | TaskCheckpointed
    | TaskWithdrawn
    | TaskFinished
    | TaskFailed
)
GangEvent = StageReached | TaskEvent


@dataclass(frozen=True)
class GangStatus:
    """What came since the last poll; `error` says why a gang ended that should not have.

    `num_workers` is how many ranks have joined (0 while it starts). `silent_s` gives, for each job
    on a rank, the seconds since that rank was last heard of; a job that waits for a rank is not in
    it. `stage` names the start-up stage of the rank that is furthest behind, None once all train;
    `stage_s` is how long it has been in it. `step_s` and `tokens_per_s` are of the last steps.
    """

    events: Sequence[GangEvent] = field(default_factory=tuple)
    is_running: bool = True
    error: str | None = None
    num_workers: int = 0
    silent_s: Mapping[str, float] = field(default_factory=dict)
    stage: str | None = None
    stage_s: float = 0.0
    step_s: float = 0.0
    tokens_per_s: float = 0.0


class Gang(Protocol):
    """A started gang, as the controller sees it. No call waits for a step."""

    def admit(self, orders: Sequence[TaskOrder]) -> None:
        """Train these too, from the next step boundary on."""

    def withdraw(self, job_id: str, epoch: int, keeps: bool) -> None:
        """Let a task leave at its next step boundary; if it `keeps`, after a last checkpoint.
        TaskWithdrawn follows, also for a task that no rank has."""

    def poll(self) -> GangStatus:
        """Everything that happened since the last poll."""

    def finish(self) -> None:
        """Let the run end at the next step boundary; return at once. Its tasks are done or gone."""

    def stop(self, timeout_s: float) -> None:
        """Let all tasks leave at their next step boundary, after a last checkpoint, and wait until
        the run has ended; one that has not after `timeout_s` is killed."""

    def kill(self) -> None:
        """End the run now; tasks are lost to their last checkpoint."""


class GangLauncher(Protocol):
    """Starts gangs."""

    def nodes(self) -> Sequence[Node]:
        """The machines there are, as they are now."""

    def launch(self, order: GangOrder) -> Gang:
        """Start a gang without tasks and return at once."""
