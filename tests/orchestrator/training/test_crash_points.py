"""A process that trains, keeps, counts and finishes a job is killed (SIGKILL) before and after each
call that changes the disk or the database: each new folder, flush, rename and removal of a file,
and each commit. Whoever comes after it finds a whole state, and ends as if nothing had happened.

Worker and controller are one process here, without Ray, so that one walk meets all their instants.
"""

import itertools
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url
from sqlalchemy.engine.default import DefaultDialect

from encoders.packed.context_cache import CacheBudget, ContextCache
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.digest import digest_json
from orchestrator.domain.gang import GangOrder, TaskAdmitted, TaskEvent, TaskFinished
from orchestrator.domain.job import Job, JobState, Submission
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.registry import migrate
from orchestrator.registry.batch_book import BatchBook
from orchestrator.registry.database import Database
from orchestrator.registry.gang_book import GangBook
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.lease_fence import HELD
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.scheduling.decisions import GangKey
from orchestrator.scheduling.gang_keeper import GangKeeper
from orchestrator.scheduling.ledger import Ledger
from orchestrator.training.checkpoint import Checkpointer, load_checkpoint
from orchestrator.training.rank_loop import RankLoop
from orchestrator.training.rank_passes import RankPasses
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_opening import TaskOpening
from orchestrator.training.task_run import TaskRun
from orchestrator.training.trained_prompt import store_trained_prompt
from tests.kill_points import WHEN, where_killed
from tests.orchestrator.scheduling.conftest import MemoryGang
from tests.orchestrator.training.conftest import MAX_LENGTH, MAX_POSITIONS, make_spec
from tests.postgres_server import postgres_server
from tests.tiny import colour_rows, keeps_row_bits

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
BASE = digest_json("base")
GANG = GangOrder("gang-1", BASE, MAX_LENGTH, "0.1.0", 0, 1, 1)
KEPT_STEPS = (2, 3)  # of 4: the second checkpoint takes the place of the first
CALLS = (
    (os, "mkdir"),
    (os, "fsync"),
    (os, "replace"),
    (os, "remove"),
    (DefaultDialect, "do_commit"),
)


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database with the schema."""
    if request.param == "sqlite":
        sqlite = f"sqlite:///{tmp_path_factory.mktemp('database') / 'tutti.db'}"
        migrate.upgrade(sqlite)
        yield sqlite
        return
    with postgres_server() as uri:
        server = make_url(uri).set(drivername="postgresql+psycopg")
        postgres = server.render_as_string(hide_password=False)
        migrate.upgrade(postgres)
        yield postgres


@dataclass
class World:
    """One job, with its database and a store of its own. `live` is what a worker and its controller
    do with the job; no connection outlasts a call, so that none crosses a fork."""

    url: str
    store: ArtifactStore
    base: ShardedBase
    tokenizer: TextTokenizer
    while_keeping: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext()

    def __post_init__(self) -> None:
        rows = {"train": colour_rows(10), "eval": colour_rows(5, offset=100)}
        data = {
            split: self.store.put_bytes("\n".join(map(json.dumps, each)).encode()).digest
            for split, each in rows.items()
        }
        spec = make_spec(f"task-{digest_json(self.store.url)[:8]}", evaluation={"every": 4})
        given = Submission(spec, BASE, data, {"train": 10, "eval": 5}, 96.0)
        with self.opened() as (queue, _):
            self.job_id = queue.submit(given, "ann")[0].id

    @contextmanager
    def opened(self) -> Iterator[tuple[JobQueue, PromptRegistry]]:
        database = Database(self.url)
        yield JobQueue(database), PromptRegistry(database)
        database.close()

    @property
    def job(self) -> Job:
        with self.opened() as (queue, _):
            return queue.get(self.job_id)

    def live(self) -> list[int]:
        """Claim the job, train it from where it stands, and register it; the steps after which it
        still trained."""
        database = Database(self.url)
        queue, registry, book = JobQueue(database), PromptRegistry(database), GangBook(database)
        batches, discard = BatchBook(database), self.store.discard
        ledger = Ledger(queue, registry, book, batches, discard, "ann", 60.0, time.monotonic)
        gang = MemoryGang(GANG)
        keeper = GangKeeper(gang, GANG, GangKey(BASE, 0), ledger)
        keeper.admit(queue.claim([self.job_id], "here", 60.0, GANG.name))
        opening = TaskOpening(self.store, self.tokenizer, self.base, MAX_LENGTH)
        runs, failures = opening(gang.orders, gang.orders)
        assert failures == []
        steps: list[int] = []

        def post(events: Sequence[TaskEvent]) -> None:
            gang.events += events

        def settle() -> None:
            keeper.hear()
            keeper.settle()

        checkpointer = Checkpointer(self.store, post, 1e9)

        def keep(open_runs: Sequence[TaskRun]) -> None:
            for run in open_runs:
                steps.append(run.step)
                if run.step in KEPT_STEPS:
                    with self.while_keeping(run.step):
                        checkpointer.keep_now([run])
            settle()

        def finish(run: TaskRun) -> None:
            order = opening.orders[run.job_id]
            trained = store_trained_prompt(run, order, "0.1.0", self.store)
            post([TaskFinished(run.job_id, trained, order.epoch)])

        post([TaskAdmitted(run.job_id, run.epoch, 0, run.step) for run in runs])
        settle()
        passes = RankPasses(self.base, ContextCache(self.base.model, CacheBudget(0)), MAX_POSITIONS)
        RankLoop(self.base, passes, runs, post, finish, keep).run()
        settle()
        database.close()
        return steps

    def recover(self) -> list[int]:
        """What another controller does once the holder has died; see `live`."""
        with self.opened() as (queue, _):
            (job,) = queue.reclaim(lambda holder: True) or [self.job]
        assert job.state == JobState.QUEUED
        return self.live()

    @property
    def files(self) -> list[Path]:
        return [path for path in Path(self.store.url).rglob("*") if path.is_file()]

    def check_whole(self) -> JobState:
        """Nothing is half there, and what the job refers to is whole; orphans are swept away."""
        for path in self.files:
            if not path.name.endswith(".part"):
                self.store.verify(path.name)
        num_parts = sum(path.name.endswith(".part") for path in self.files)
        assert self.store.sweep(older_than_s=0) == num_parts <= 1
        job = self.job
        if job.state == JobState.SUCCEEDED:
            self.check_done()
        elif job.checkpoint is not None:
            state = load_checkpoint(self.store.get_bytes(job.checkpoint))
            assert state["job"] == job.id
            assert state["trainer"]["slot"]["num_steps"] in KEPT_STEPS
        return job.state

    def check_done(self) -> PromptVersion:
        """The job is done once, and all of its version is there."""
        with self.opened() as (queue, registry):
            job = queue.get(self.job_id)
            outcomes = [attempt.outcome for attempt in queue.attempts(job.id)]
            (version,) = registry.list(job.task)
        assert (job.state, job.version) == (JobState.SUCCEEDED, version.number)
        assert outcomes in (["succeeded"], ["reclaimed", "succeeded"])
        for artifact in version.artifacts.values():
            self.store.verify(artifact.digest)
        return version

    def leftovers(self, version: PromptVersion) -> set[str]:
        """Stored files that neither a version nor the job's data set is."""
        known = {artifact.digest for artifact in version.artifacts.values()}
        known |= set(self.job.submission.datasets.values())
        return {path.name for path in self.files} - known


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(url: str, tmp_path: Path, base: ShardedBase, tokenizer: TextTokenizer) -> MakeWorld:
    numbers = itertools.count()

    def make(folder: Path | None = None) -> World:
        folder = folder or tmp_path / f"store-{next(numbers)}"
        return World(url, ArtifactStore(str(folder)), base, tokenizer)

    return make


def content(version: PromptVersion) -> Any:
    """What of a version must not depend on interruptions."""
    return {name: artifact.digest for name, artifact in version.artifacts.items()}


def test_killed_at_any_instant_the_job_is_done_once_as_if_nothing_had_happened(
    make_world: MakeWorld,
) -> None:
    calm = make_world()
    assert calm.live() == [1, 2, 3]
    undisturbed = calm.check_done()
    assert calm.leftovers(undisturbed) == set()
    met: Counter[str] = Counter()
    states: set[JobState] = set()
    trained: set[tuple[int, ...]] = set()
    num_whole = 0
    for number, when in itertools.product(range(1000), WHEN):
        world = make_world()
        where = where_killed(world.live, CALLS, number, when)
        if where is None:  # some make a folder less: two digests began alike
            num_whole += 1
            if num_whole == 4:
                break
            continue
        met[where] += 1
        states.add(state := world.check_whole())
        if state != JobState.SUCCEEDED:
            trained.add(tuple(world.recover()))
        version = world.check_done()
        if keeps_row_bits():
            assert content(version) == content(undisturbed), (number, where)
        # What was stored and not counted yet, or counted no more, may be left.
        assert len(world.leftovers(version)) <= 1, (number, where)
    assert met.keys() == {f"{when} {name}" for _, name in CALLS for when in ("before", "after")}
    assert states == {JobState.QUEUED, *HELD, JobState.SUCCEEDED}
    assert trained == {(1, 2, 3), (3,), ()}  # from the start, from each of the checkpoints


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here (root may): {done.stderr}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until nothing more goes onto the disk."""
    with pytest.raises(OSError, match="No space left"), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_full_disk_costs_a_checkpoint_and_nothing_else(
    make_world: MakeWorld, small_disk: Path
) -> None:
    calm, world = make_world(), make_world(small_disk / "store")
    calm.live()
    kept: list[str | None] = []

    @contextmanager
    def full_at_step_3(step: int) -> Iterator[None]:
        if step == 3:
            fill(small_disk / "filler")
        yield
        if step == 3:
            assert not [path for path in world.files if path.name.endswith(".part")]
            kept.append(world.job.checkpoint)
            assert world.check_whole() == JobState.RUNNING
            (small_disk / "filler").unlink()

    world.while_keeping = full_at_step_3
    assert world.live() == [1, 2, 3]
    assert kept[0] is not None
    version = world.check_done()
    if keeps_row_bits():
        assert content(version) == content(calm.check_done())
    assert world.leftovers(version) == set()
    with world.opened() as (queue, _):
        told = [line.text for line in queue.log(world.job_id)]
    assert [line for line in told if line.startswith("no checkpoint after step 3: cannot store")]
    assert "No space left on device" in " ".join(told)
