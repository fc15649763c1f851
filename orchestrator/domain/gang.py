"""What a gang is told to do and what it tells back. Values only; they cross processes.

A gang is one Ray Train run that holds one base and trains many tasks, each on one rank or, where
its spec asks for it, on all of them (data parallel).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

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
    `checkpoint` is the digest of the state to go on from."""

    job_id: str
    spec: TaskSpec
    datasets: Mapping[str, str]
    base_fingerprint: str
    num_positions: float
    checkpoint: str | None = None


@dataclass(frozen=True)
class GangOrder:
    """One gang: a base, how DeepSpeed holds it, and each rank's tasks (`ranks[r]`).

    `sharding` says in one line why the base is held so.
    """

    name: str
    base_fingerprint: str
    max_length: int
    code_version: str
    zero_stage: int
    ranks: tuple[tuple[TaskOrder, ...], ...]
    offload: Offload = "none"
    sharding: str = ""

    @property
    def orders(self) -> tuple[TaskOrder, ...]:
        """All tasks, each once."""
        return tuple({order.job_id: order for rank in self.ranks for order in rank}.values())


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
class TaskProgress:
    """Where one task's training stands. `best` is the best held-out metric so far."""

    job_id: str
    step: int
    num_steps: int
    loss: float | None = None
    best: float | None = None
    seconds: float = 0.0
    stage: str = "training"


@dataclass(frozen=True)
class TaskCheckpointed:
    """A task's state after `step` is stored as the artifact `digest`."""

    job_id: str
    step: int
    digest: str


@dataclass(frozen=True)
class TaskFinished:
    """A task is trained and its artifacts are stored."""

    job_id: str
    trained: TrainedPrompt


@dataclass(frozen=True)
class TaskFailed:
    """A task cannot be trained; its neighbours go on."""

    job_id: str
    reason: str


GangEvent = StageReached | TaskProgress | TaskCheckpointed | TaskFinished | TaskFailed


@dataclass(frozen=True)
class GangStatus:
    """What came since the last poll; `error` says why a gang ended that should not have."""

    events: Sequence[GangEvent] = field(default_factory=tuple)
    is_running: bool = True
    error: str | None = None


class Gang(Protocol):
    """A started gang, as the controller sees it."""

    def poll(self) -> GangStatus:
        """Everything that happened since the last poll."""

    def stop(self) -> None:
        """End the run; unfinished tasks are lost to their last checkpoint."""


class GangLauncher(Protocol):
    """Starts gangs."""

    def nodes(self) -> Sequence[Node]:
        """The machines there are, as they are now."""

    def launch(self, order: GangOrder) -> Gang:
        """Start a gang and return at once."""
