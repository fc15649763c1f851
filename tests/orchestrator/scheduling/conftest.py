"""A real registry on SQLite, and gangs that live in memory and do what a test tells them."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.digest import digest_json
from orchestrator.domain.gang import (
    GangEvent,
    GangOrder,
    GangStatus,
    Node,
    TaskCheckpointed,
    TaskFailed,
    TaskFinished,
    TaskOrder,
    TaskProgress,
)
from orchestrator.domain.job import Job, Submission
from orchestrator.domain.prompt_version import Artifact, Lineage, TrainedPrompt
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.registry import migrate
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.scheduling.controller import Controller
from orchestrator.scheduling.shard_plan import ShardPlan

BASE = digest_json("base")
LEASE_S = 60.0


def submission(task: str = "colour", base: str = BASE, **changes: Any) -> Submission:
    """A submission; `changes` go to its spec."""
    spec = {
        "task": task,
        "base": "tiny",
        "template": "{text}{prompt:2} {label}",
        "answer": "label",
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "promote": {"alias": "production", "when": "accuracy >= 0.5"},
        **changes,
    }
    data = {"train": digest_json("train"), "eval": digest_json("eval")}
    return Submission(TaskSpec.model_validate(spec), base, data, {"train": 8, "eval": 4}, 96.0)


def trained(order: TaskOrder, accuracy: float = 0.75, **lineage: Any) -> TrainedPrompt:
    """The result of an order."""
    spec = order.spec
    names = ("encoder", "prompt_embeddings", "curve")
    made = Lineage(
        base=spec.base,
        base_fingerprint=order.base_fingerprint,
        datasets=order.datasets,
        num_rows={"train": 8, "eval": 4},
        spec_digest=spec.digest(),
        seed=spec.training.seed,
        code_version="0.1.0",
    )
    return TrainedPrompt(
        task=spec.task,
        config={"template": spec.template, "seed": spec.training.seed},
        metrics={"accuracy": accuracy},
        artifacts={name: Artifact(digest_json([name, spec.task]), 10) for name in names},
        lineage=replace(made, **lineage),
    )


@dataclass
class MemoryGang:
    """A gang whose workers are the test: it says what happened, and the controller hears it."""

    order: GangOrder
    events: list[GangEvent] = field(default_factory=list)
    is_running: bool = True
    error: str | None = None
    is_stopped: bool = False

    def poll(self) -> GangStatus:
        events, self.events = tuple(self.events), []
        return GangStatus(events, self.is_running, self.error)

    def stop(self) -> None:
        self.is_running, self.is_stopped = False, True

    def order_of(self, task: str) -> TaskOrder:
        return next(order for order in self.order.orders if order.spec.task == task)

    @property
    def tasks(self) -> list[str]:
        return sorted(order.spec.task for order in self.order.orders)

    def finish(self, *tasks: str, accuracy: float = 0.75, **lineage: Any) -> None:
        """Tell that tasks are trained (all of them by default)."""
        for task in tasks or self.tasks:
            order = self.order_of(task)
            self.events.append(TaskFinished(order.job_id, trained(order, accuracy, **lineage)))

    def fail(self, task: str, reason: str) -> None:
        self.events.append(TaskFailed(self.order_of(task).job_id, reason))

    def progress(self, task: str, step: int) -> None:
        self.events.append(TaskProgress(self.order_of(task).job_id, step, 100, 0.5, 0.25))

    def checkpoint(self, task: str, step: int) -> str:
        """Tell that a task's state is stored; returns its digest."""
        job_id = self.order_of(task).job_id
        digest = digest_json([job_id, step])
        self.events.append(TaskCheckpointed(job_id, step, digest))
        return digest

    def end(self, error: str | None = None) -> None:
        """The run is over."""
        self.is_running, self.error = False, error


@dataclass
class MemoryLauncher:
    """Starts MemoryGangs; with `refusal`, raises it instead."""

    gangs: list[MemoryGang] = field(default_factory=list)
    refusal: Exception | None = None

    def nodes(self) -> list[Node]:
        return [Node(2, 10**9)]

    def launch(self, order: GangOrder) -> MemoryGang:
        if self.refusal is not None:
            raise self.refusal
        self.gangs.append(MemoryGang(order))
        return self.gangs[-1]

    @property
    def gang(self) -> MemoryGang:
        """The newest one."""
        return self.gangs[-1]


@dataclass
class Clock:
    """A clock that stands still until a test moves it."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def database_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "template.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def database(database_template: Path, tmp_path: Path) -> Iterator[Database]:
    path = shutil.copy(database_template, tmp_path / "tutti.db")
    opened = Database.open(f"sqlite:///{path}")
    yield opened
    opened.close()


@pytest.fixture
def queue(database: Database) -> JobQueue:
    return JobQueue(database)


@pytest.fixture
def registry(database: Database) -> PromptRegistry:
    return PromptRegistry(database)


@pytest.fixture
def launcher() -> MemoryLauncher:
    return MemoryLauncher()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def plan_as_asked(fingerprint: str, zero_stage: int | None, num_whole: int) -> ShardPlan:
    """Any base fits everywhere."""
    return ShardPlan(zero_stage or 0, "none", f"{num_whole} could hold it whole")


@pytest.fixture
def make_controller(
    queue: JobQueue, registry: PromptRegistry, launcher: MemoryLauncher, clock: Clock
) -> Callable[..., Controller]:
    def make(**changes: Any) -> Controller:
        arguments: dict[str, Any] = {
            "holder": "host:1:1",
            "actor": "ann",
            "lease_s": LEASE_S,
            "num_workers": 2,
            "zero_stage": 0,
            "plan": plan_as_asked,
            "code_version": "0.1.0",
            "max_length": lambda fingerprint: 256,
            "discard": lambda digest: None,
            "is_dead": lambda holder: False,
            "now": clock,
        }
        return Controller(queue, registry, launcher, **{**arguments, **changes})

    return make


@pytest.fixture
def controller(make_controller: Callable[..., Controller]) -> Controller:
    return make_controller()


@pytest.fixture
def submit(queue: JobQueue) -> Callable[..., Job]:
    def submit_one(task: str = "colour", base: str = BASE, **changes: Any) -> Job:
        job, is_new = queue.submit(submission(task, base, **changes), "ann")
        assert is_new
        return job

    return submit_one
