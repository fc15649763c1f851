"""Works on a batch run under its lease: shards to workers, commits, the whole output, the manifest.

What counts is in the ledger: a shard once its commit is, the run once `finish` is. Killed at any
instant, it leaves a run that `resume.py` goes on with, to the same bytes.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from orchestrator.batch.arrivals import Arrivals
from orchestrator.batch.base_sharding import plan_bases, split_plan
from orchestrator.batch.lease_heart import LeaseHeart
from orchestrator.batch.progress import Progress
from orchestrator.batch.whole_output import make_whole
from orchestrator.batch.worker_plan import worker_plan
from orchestrator.batch_data.join_parts import remove_parts
from orchestrator.batch_data.output_target import OutputTarget
from orchestrator.bootstrap import Parts
from orchestrator.domain.batch_run import (
    BatchRun,
    RunLease,
    RunPlan,
    ShardClaim,
    ShardDone,
    ShardState,
    sum_counts,
)
from orchestrator.domain.digest import short
from orchestrator.domain.errors import StaleLease, TuttiError
from orchestrator.inference.shard_worker import WorkerPlan
from orchestrator.scheduling.shard_plan import ShardPlan

POLL_S = 0.2


class Pool(Protocol):
    """Workers."""

    def up(self) -> AbstractContextManager[Any]:
        """There, for as long as the context lasts."""

    def answer(self, plan: WorkerPlan, claims: Sequence[ShardClaim]) -> Iterator[ShardDone]:
        """Each shard's answer when it is ready."""


def _ignore(_: object) -> None:
    return None


@dataclass(frozen=True)
class Watch:
    """Who looks on: hears of progress and of what is out of the ordinary; `stop` set, the run is
    left as it is, to be resumed."""

    progress: Callable[[Progress], None] = _ignore
    note: Callable[[str], None] = _ignore
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass
class Work:
    """This process's work on one run, which it holds the lease of. `answer` works while the context
    that `up` gives lasts. `sharding`: how bases are held, where it is known."""

    parts: Parts
    lease: RunLease
    plan: RunPlan
    target: OutputTarget
    answer: Callable[[WorkerPlan, Sequence[ShardClaim]], Iterator[ShardDone]]
    up: Callable[[], AbstractContextManager[Any]]
    watch: Watch
    sharding: ShardPlan | None = None

    def __post_init__(self) -> None:
        self._book = self.parts.batches
        self._started = time.monotonic()
        self._folder = self.target.parts_folder(self.lease.run_id)

    def run(self, prepare: Callable[[str], None]) -> BatchRun:
        """Do all that is left. `prepare` is called first, with the parts' folder, under the lease.

        Raises TuttiError where the run fails, is left (`watch.stop`), cancelled or taken over.
        """
        lease_s = self.parts.settings.lease_s
        try:
            with LeaseHeart(lambda: self._book.renew(self.lease, lease_s), lease_s) as heart:
                prepare(self._folder)
                self._answer(heart)
                heart.check()
                return self._finish()
        except StaleLease:
            raise  # another's run now, or nobody's: nothing to write
        except TuttiError as error:
            why = error.message
            self._leave(lambda: self._book.fail(self.lease, why, self._seconds))
            raise
        except BaseException:
            self._leave(lambda: self._book.release(self.lease, self._seconds))
            raise

    def _answer(self, heart: LeaseHeart) -> None:
        """Have all shards answered that are not."""
        run = self._book.get(self.lease.run_id)
        if run.num_shards_done == run.num_shards:
            return
        plan = worker_plan(self.parts, self.plan, self._folder)
        with self.up():
            plan = replace(plan, split=split_plan(self.parts, self._plan_bases()))
            self._walk(plan, self._progress(run), heart)

    def _plan_bases(self) -> ShardPlan:
        """How bases are held now; told where there is something to tell."""
        began = self.plan.zero_stage
        sharding = self.sharding or plan_bases(self.parts, self.plan.bases, began)
        if sharding.reason:
            self.watch.note(sharding.reason)
        if sharding.zero_stage != began:
            self.watch.note(
                f"the run began with its bases {'split' if began else 'whole'}: its later rows may "
                "differ in their last digits from what it would have given"
            )
        return sharding

    def _walk(self, plan: WorkerPlan, progress: Progress, heart: LeaseHeart) -> None:
        """Claim what is free, and commit what arrives."""
        began = time.monotonic()
        self.watch.progress(progress)
        claims = self._book.claim(self.lease)
        arrivals = Arrivals(self.answer(plan, claims))
        num_committed = 0
        pending: list[ShardDone] = []
        while not arrivals.is_over or pending:
            heart.check()
            if self.watch.stop.is_set():
                raise Left(self.lease.run_id)
            pending += arrivals.take(POLL_S)
            if pending and self._commit(pending, heart):
                progress = progress.after(pending, time.monotonic() - began)
                num_committed += len(pending)
                pending = []
                self.watch.progress(progress)
        if num_committed < len(claims):
            raise TuttiError(f"{len(claims) - num_committed} shards came back without an answer")

    def _commit(self, shards: list[ShardDone], heart: LeaseHeart) -> bool:
        """Whether they count now; a database that is away is asked again while the lease lasts."""
        try:
            self._book.commit(self.lease, shards)
        except StaleLease:
            raise
        except TuttiError as error:
            heart.check()
            self.watch.note(f"not committed yet: {error.message}")
            self.watch.stop.wait(POLL_S)
            return False
        return True

    def _progress(self, run: BatchRun) -> Progress:
        done = [s for s in self._book.shards(run.id) if s.state == ShardState.DONE]
        return Progress(
            run.id,
            run.num_rows,
            run.num_answered,
            run.num_errors,
            run.num_answered,
            counts=sum_counts(done),
        )

    def _finish(self) -> BatchRun:
        """Join, write the manifest, say so in the ledger, and remove what was joined."""
        shards = self._book.shards(self.lease.run_id)
        spent = self._book.get(self.lease.run_id).seconds + self._seconds
        parts = make_whole(self.parts, self.lease.run_id, self.plan, self.target, shards, spent)
        run = self._book.finish(self.lease, self._seconds)
        remove_parts(self._folder, parts, self.target)
        return run

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _leave(self, write: Callable[[], object]) -> None:
        """What the ledger should hear of the end; where it does not, the lease ends by itself."""
        try:
            write()
        except TuttiError as error:
            self.watch.note(f"the ledger has not heard of it: {error.message}")


class Left(BaseException):
    """The user left a run in the middle."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id


def left_error(run: BatchRun) -> TuttiError:
    """What is said to a user who left."""
    return TuttiError(
        f"interrupted; {run.num_shards_done} of {run.num_shards} shards of batch run "
        f"{short(run.id)} are done",
        f"`tutti batch resume {short(run.id)}` goes on, `tutti batch cancel {short(run.id)}` "
        "ends it.",
    )
