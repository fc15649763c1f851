"""A real registry on SQLite, and gangs that live in memory and do what a test tells them."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.digest import digest_json
from orchestrator.domain.gang import (
    GangEvent,
    GangOrder,
    GangStatus,
    Node,
    TaskAdmitted,
    TaskCheckpointed,
    TaskFailed,
    TaskFinished,
    TaskOrder,
    TaskProgress,
    TaskWithdrawn,
)
from orchestrator.domain.job import Fault, Job, JobOptions, Submission
from orchestrator.domain.prompt_version import Artifact, Lineage, TrainedPrompt
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.registry import migrate
from orchestrator.registry.batch_book import BatchBook
from orchestrator.registry.database import Database
from orchestrator.registry.gang_book import GangBook
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.leadership import Leadership
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.scheduling.controller import Controller
from orchestrator.scheduling.gang_plan import Limits
from orchestrator.scheduling.gang_starter import Cluster, ControllerOptions
from orchestrator.scheduling.ledger import Ledger
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
    """A gang whose workers are the test: it says what happened, and the controller hears it.

    Tasks that are withdrawn leave at once, unless the gang `is_deaf`.
    """

    order: GangOrder
    events: list[GangEvent] = field(default_factory=list)
    is_running: bool = True
    error: str | None = None
    is_deaf: bool = False
    is_killed: bool = False
    silent_s: dict[str, float] = field(default_factory=dict)
    stage: str | None = None
    stage_s: float = 0.0
    orders: list[TaskOrder] = field(default_factory=list)
    withdrawn: list[tuple[str, int, bool]] = field(default_factory=list)
    has_joined: bool = True

    def admit(self, orders: Sequence[TaskOrder]) -> None:
        self.orders.extend(orders)
        self.events += [TaskAdmitted(each.job_id, each.epoch, 0) for each in orders]

    def withdraw(self, job_id: str, epoch: int, keeps: bool) -> None:
        self.withdrawn.append((job_id, epoch, keeps))
        if not self.is_deaf:
            self.events.append(TaskWithdrawn(job_id, epoch, 5))

    def poll(self) -> GangStatus:
        events, self.events = tuple(self.events), []
        return GangStatus(
            events,
            self.is_running,
            self.error,
            num_workers=self.order.max_workers if self.has_joined else 0,
            silent_s=dict(self.silent_s),
            stage=self.stage,
            stage_s=self.stage_s,
        )

    def finish(self) -> None:
        self.is_running = False

    def stop(self, timeout_s: float) -> None:
        self.is_running = False

    def kill(self) -> None:
        self.is_running, self.is_killed = False, True

    def order_of(self, task: str) -> TaskOrder:
        return [order for order in self.orders if order.spec.task == task][-1]

    @property
    def tasks(self) -> list[str]:
        return sorted(order.spec.task for order in self.orders)

    def train(self, *tasks: str, accuracy: float = 0.75, **lineage: Any) -> None:
        """Tell that tasks are trained (all of them by default)."""
        for task in tasks or self.tasks:
            order = self.order_of(task)
            result = trained(order, accuracy, **lineage)
            self.events.append(TaskFinished(order.job_id, result, order.epoch))

    def fail(self, task: str, reason: str, fault: Fault = Fault.USER) -> None:
        order = self.order_of(task)
        self.events.append(TaskFailed(order.job_id, reason, order.epoch, fault))

    def progress(self, task: str, step: int, seconds: float = 1.0) -> None:
        order = self.order_of(task)
        self.events.append(
            TaskProgress(order.job_id, step, 100, 0.5, 0.25, seconds, epoch=order.epoch)
        )

    def checkpoint(self, task: str, step: int) -> str:
        """Tell that a task's state is stored; returns its digest."""
        order = self.order_of(task)
        digest = digest_json([order.job_id, order.epoch, step])
        self.events.append(TaskCheckpointed(order.job_id, step, digest, order.epoch))
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
def leadership(database: Database) -> Leadership:
    return Leadership(database)


@pytest.fixture
def book(database: Database) -> GangBook:
    return GangBook(database)


@pytest.fixture
def discarded() -> list[str]:
    """Digests of the artifacts that were thrown away."""
    return []


@pytest.fixture
def make_controller(
    queue: JobQueue,
    registry: PromptRegistry,
    book: GangBook,
    leadership: Leadership,
    launcher: MemoryLauncher,
    clock: Clock,
    discarded: list[str],
    database: Database,
) -> Callable[..., Controller]:
    def make(**changes: Any) -> Controller:
        def given(kind: type, **values: Any) -> Any:
            """A `kind` of `values`, with those of the changes that are its fields."""
            own = {field.name for field in fields(kind)}
            return kind(**{**values, **{k: v for k, v in changes.items() if k in own}})

        ledger = given(
            Ledger,
            queue=queue,
            registry=registry,
            book=book,
            batches=BatchBook(database),
            discard=discarded.append,
            actor="ann",
            lease_s=LEASE_S,
            now=clock,
        )
        cluster = given(
            Cluster,
            launcher=launcher,
            connect=lambda: None,
            num_cpus=lambda: None,
            shard=plan_as_asked,
            max_length=lambda fingerprint: 256,
            is_dead=lambda holder: False,
            pause=lambda seconds: None,
        )
        limits = given(Limits, num_workers=2, zero_stage=0)
        options = given(ControllerOptions, holder="host:1:1", limits=limits, code_version="0.1.0")
        return Controller(ledger, leadership, cluster, options)

    return make


@pytest.fixture
def controller(make_controller: Callable[..., Controller]) -> Controller:
    return make_controller()


@pytest.fixture
def submit(queue: JobQueue) -> Callable[..., Job]:
    def submit_one(
        task: str = "colour", base: str = BASE, options: JobOptions | None = None, **changes: Any
    ) -> Job:
        asked = options or JobOptions()
        job, is_new = queue.submit(submission(task, base, **changes), "ann", asked)
        assert is_new
        return job

    return submit_one
