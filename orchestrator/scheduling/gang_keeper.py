"""One gang as its controller keeps it: its jobs, their leases, and what is not written down yet.

What a gang tells is heard first and written down after, in order; while the database is away it
waits here. A lease is renewed only while the rank with its job is heard of, so a job on a worker
that stands still is taken away like one whose controller is gone.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.domain.digest import short
from orchestrator.domain.errors import StaleLease, TuttiError
from orchestrator.domain.gang import (
    Gang,
    GangOrder,
    GangStatus,
    StageReached,
    TaskAdmitted,
    TaskCheckpointed,
    TaskEvent,
    TaskFailed,
    TaskFinished,
    TaskNoted,
    TaskOrder,
    TaskProgress,
    TaskWithdrawn,
)
from orchestrator.domain.job import Fault, Job, Lease
from orchestrator.registry.errors import DatabaseUnavailable
from orchestrator.registry.gang_book import GangBook
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.scheduling.gang_plan import GangKey, GangView

PAUSE = "paused"
DATABASE_AWAY = "the database was away for longer than the lease"
RENEWALS_PER_LEASE = 6
MAX_RENEWAL_S = 2.0  # for it is also how a pause and a cancellation are heard of
logger = logging.getLogger("tutti.controller")


@dataclass
class Counters:
    """What a controller has done since it started."""

    admissions: int = 0
    completions: int = 0
    failures: int = 0
    releases: int = 0
    lease_expiries: int = 0
    stale_events: int = 0


@dataclass(frozen=True)
class Ledger:
    """Where keepers write, and by which clock they pace themselves (monotonic seconds; leases live
    by the database's). `discard` removes an artifact that nothing needs any more."""

    queue: JobQueue
    registry: PromptRegistry
    book: GangBook
    discard: Callable[[str], None]
    actor: str
    lease_s: float
    now: Callable[[], float]
    counters: Counters = field(default_factory=Counters)

    def throw_away(self, digest: str) -> None:
        """Discard an artifact; one that stays costs space alone."""
        try:
            self.discard(digest)
        except TuttiError as error:
            logger.warning("an artifact stays", extra={"digest": digest, "error": str(error)})


@dataclass
class _Held:
    """A job of the gang. `leaving` says why it was told to leave, `shown` what of its progress is
    written down."""

    job: Job
    lease: Lease
    checkpoint: str | None
    progress: TaskProgress | None = None
    shown: TaskProgress | None = None
    leaving: str | None = None


class GangKeeper:
    """Holds the leases of a gang's jobs. `hear` and `guard` never touch the database; `settle`,
    `beat` and `bury` raise DatabaseUnavailable and lose nothing by it."""

    def __init__(self, gang: Gang, order: GangOrder, key: GangKey, ledger: Ledger) -> None:
        self.gang, self.order, self.key = gang, order, key
        self.status = GangStatus()
        self.is_open = True
        self._ledger = ledger
        self._held: dict[str, _Held] = {}
        self._unwritten: deque[TaskEvent] = deque()
        self._killed: str | None = None
        self._has_joined = False
        self._started = self._renewed = self._busy = ledger.now()

    @property
    def job_ids(self) -> frozenset[str]:
        """The jobs whose leases it holds."""
        return frozenset(self._held)

    @property
    def is_over(self) -> bool:
        """The run has ended, and all it told is written down."""
        return not self.status.is_running and not self._unwritten

    @property
    def is_idle(self) -> bool:
        """It holds no job and has told nothing that is not written down."""
        return not self._held and not self._unwritten

    def view(self) -> GangView:
        """What planning sees."""
        now = self._ledger.now()
        return GangView(
            name=self.order.name,
            key=self.key,
            num_workers=self.order.max_workers,
            age_s=now - self._started,
            idle_s=0.0 if self._held else now - self._busy,
            is_open=self.is_open and self.status.is_running,
        )

    def admit(self, claimed: Mapping[str, tuple[Job, Lease]]) -> None:
        """Train jobs that were claimed for this gang."""
        for job, lease in claimed.values():
            self._held[job.id] = _Held(job, lease, job.checkpoint)
        self._ledger.counters.admissions += len(claimed)
        self.gang.admit([_order_of(job, lease) for job, lease in claimed.values()])

    def close(self, reason: str) -> None:
        """Take no more jobs; the gang ends with its last one."""
        if self.is_open:
            logger.info("gang is closed", extra={"gang": self.order.name, "reason": reason})
        self.is_open = False

    def drain(self, reason: str) -> None:
        """Give all jobs back to the queue, with their checkpoints."""
        self.close(reason)
        for job_id in self.job_ids:
            self.withdraw(job_id, reason)

    def withdraw(self, job_id: str, reason: str) -> None:
        """Let a job leave at its next step boundary, with a checkpoint, once."""
        held = self._held.get(job_id)
        if held is not None and held.leaving is None:
            held.leaving = reason
            self.gang.withdraw(job_id, held.lease.epoch, keeps=True)

    def lose(self, job_id: str, reason: str) -> None:
        """A job is another holder's, or nobody's: what this gang does for it counts no more."""
        held = self._held.pop(job_id, None)
        if held is not None:
            logger.warning("job is lost", extra={"job": job_id, "reason": reason})
            self.gang.withdraw(job_id, held.lease.epoch, keeps=False)

    def hear(self) -> None:
        """Take in what the gang tells."""
        self.status = self.gang.poll()
        if self._killed is not None:
            self.status = replace(self.status, is_running=False, error=self._killed)
        for event in self.status.events:
            if not isinstance(event, StageReached):
                self._unwritten.append(event)
        self._has_joined |= self.status.num_workers > 0
        if self._held:
            self._busy = self._ledger.now()

    def guard(self, start_timeout_s: float) -> None:
        """Do what must not wait for the database: leave jobs whose leases must have ended, end a
        start that hangs, and a closed gang that has no work left."""
        if self._killed is not None:
            return
        if self._ledger.now() - self._renewed > self._ledger.lease_s:
            for job_id in self.job_ids:
                self.withdraw(job_id, DATABASE_AWAY)
        if self.status.stage is not None and self.status.stage_s > start_timeout_s:
            self._kill(f"hung for {self.status.stage_s:.0f} s in the stage: {self.status.stage}")
        elif not self.is_open and self.is_idle and self.status.is_running:
            self.gang.finish()

    def settle(self) -> None:
        """Write down what was heard, in order. What cannot be written for another reason than the
        database's absence costs its job the attempt, and nothing else."""
        while self._unwritten:
            event = self._unwritten[0]
            try:
                self._write(event)
            except DatabaseUnavailable:
                raise
            except Exception as error:  # one job must not stop a controller
                logger.exception("an event cannot be written", extra={"job": event.job_id})
                self._unwritten.popleft()
                self._expel(event.job_id, f"{type(error).__name__}: {error}")
            else:
                self._unwritten.popleft()

    def beat(self) -> None:
        """Renew the leases when it is time, write down what is new of jobs and gang, and hear what
        others want of them."""
        news = {job_id for job_id, held in self._held.items() if held.progress is not held.shown}
        now = self._ledger.now()
        if now - self._renewed >= min(self._ledger.lease_s / RENEWALS_PER_LEASE, MAX_RENEWAL_S):
            self._renew(self.job_ids, news)
            self._renewed = now
        elif news:
            self._renew(news, news)
        status = self.status
        drains = self._ledger.book.beat(
            self.order.name, status.stage, status.num_workers, status.step_s, status.tokens_per_s
        )
        if drains and self.is_open:
            self.drain("the gang was drained")

    def bury(self) -> None:
        """The run is over: what it left undone is tried again. A gang that found no workers is not
        the fault of its jobs."""
        cause = self.status.error or "the gang ended before the job did"
        fault = Fault.MACHINE if self._has_joined or self._killed is None else Fault.PREEMPTION
        for held in list(self._held.values()):
            if held.leaving is not None:
                self._give_back(held)
            else:
                self._release(held, cause, fault)
        self._ledger.book.close(self.order.name, self.status.error)
        logger.info("gang has ended", extra={"gang": self.order.name, "error": self.status.error})

    def _kill(self, reason: str) -> None:
        logger.error("gang is killed", extra={"gang": self.order.name, "reason": reason})
        self._killed = reason
        self.gang.kill()

    def _renew(self, job_ids: frozenset[str] | set[str], news: set[str]) -> None:
        """Renew the leases of jobs whose rank is heard of."""
        silent_s, lease_s = self.status.silent_s, self._ledger.lease_s
        leases = [
            self._held[job_id].lease
            for job_id in job_ids
            if silent_s.get(job_id, 0.0) < lease_s / 2
        ]
        told = {job_id: self._held[job_id].progress for job_id in news}
        shown = {job_id: _shown(progress) for job_id, progress in told.items() if progress}
        beat = self._ledger.queue.heartbeat(leases, lease_s, shown)
        for job_id, lease in beat.renewed.items():
            held = self._held[job_id]
            held.lease, held.shown = lease, told.get(job_id, held.shown)
        for job_id, reason in beat.lost.items():
            self.lose(job_id, reason)
        for job_id in beat.pause_asked:
            self.withdraw(job_id, PAUSE)

    def _write(self, event: TaskEvent) -> None:
        held = self._held.get(event.job_id)
        if held is None or held.lease.epoch != event.epoch:
            self._ledger.counters.stale_events += not isinstance(event, TaskWithdrawn)
            self._refuse(event)
            return
        try:
            self._write_held(event, held)
        except StaleLease as error:
            self.lose(event.job_id, str(error))
            self._refuse(event)

    def _refuse(self, event: TaskEvent) -> None:
        """A checkpoint that came too late is of no use, unless it is written down already: the
        database may have taken it and its answer been lost."""
        if not isinstance(event, TaskCheckpointed):
            return
        if self._ledger.queue.get(event.job_id).checkpoint != event.digest:
            self._ledger.throw_away(event.digest)

    def _write_held(self, event: TaskEvent, held: _Held) -> None:
        match event:
            case TaskAdmitted():
                self._ledger.queue.start(held.lease)
            case TaskProgress():
                held.progress = event
                self._check_time(event, held)
            case TaskNoted():
                self._ledger.queue.note([(event.job_id, event.text)])
            case TaskCheckpointed():
                self._keep(event, held)
            case TaskWithdrawn():
                self._give_back(held)
            case TaskFinished():
                self._complete(event, held)
            case TaskFailed():
                self._fail(held, event.reason, event.fault)

    def _keep(self, event: TaskCheckpointed, held: _Held) -> None:
        """Write a checkpoint down; the one before it is of no use any more."""
        self._ledger.queue.checkpoint(held.lease, event.digest)
        superseded, held.checkpoint = held.checkpoint, event.digest
        if superseded not in (None, event.digest):
            self._ledger.throw_away(superseded)

    def _check_time(self, event: TaskProgress, held: _Held) -> None:
        limit = held.job.options.time_limit_s
        if limit is not None and event.seconds > limit:
            reason = (
                f"its time limit of {limit:g} s is over, at step {event.step} of "
                f"{event.num_steps}; `tutti jobs retry {short(event.job_id)} --time-limit 2h` goes "
                "on from its last checkpoint, with a higher limit"
            )
            self._fail(held, reason, Fault.USER)
            self.gang.withdraw(event.job_id, held.lease.epoch, keeps=False)

    def _complete(self, event: TaskFinished, held: _Held) -> None:
        """Register a result; one that no version can be made of fails its job."""
        if held.progress is not held.shown and held.progress is not None:
            shown = {event.job_id: _shown(held.progress)}
            self._ledger.queue.heartbeat([held.lease], self._ledger.lease_s, shown)
        try:
            promote = held.job.submission.spec.promote
            self._ledger.registry.complete(held.lease, event.trained, promote, self._ledger.actor)
        except (DatabaseUnavailable, StaleLease):
            raise
        except TuttiError as error:
            self._fail(held, str(error), Fault.USER)
            return
        self._ledger.counters.completions += 1
        del self._held[event.job_id]
        if held.checkpoint is not None:
            self._ledger.throw_away(held.checkpoint)

    def _fail(self, held: _Held, reason: str, fault: Fault) -> None:
        """End an attempt that gave no result. The checkpoint stays: a retry goes on from it."""
        logger.info("job has failed", extra={"job": held.job.id, "reason": reason})
        if fault is Fault.USER:
            self._ledger.queue.fail(held.lease, reason, fault)
        else:
            self._ledger.queue.release(held.lease, reason, fault)
        self._ledger.counters.failures += 1
        del self._held[held.job.id]

    def _give_back(self, held: _Held) -> None:
        """A job has left as it was told to (or, told by nobody, for a reason of the gang's own)."""
        if held.leaving == PAUSE:
            with suppress(StaleLease):  # cancelled meanwhile
                self._ledger.queue.paused(held.lease)
            self._held.pop(held.job.id, None)
        else:
            self._release(held, held.leaving or "its gang let it go", Fault.PREEMPTION)

    def _release(self, held: _Held, cause: str, fault: Fault) -> None:
        with suppress(StaleLease):  # another holder has it; nothing is ours to give back
            self._ledger.queue.release(held.lease, cause, fault)
            self._ledger.counters.releases += 1
        self._held.pop(held.job.id, None)

    def _expel(self, job_id: str, reason: str) -> None:
        """Something of a job cannot be written: it is tried again elsewhere."""
        held = self._held.get(job_id)
        if held is not None:
            self.gang.withdraw(job_id, held.lease.epoch, keeps=False)
            self._release(held, reason, Fault.MACHINE)


def _order_of(job: Job, lease: Lease) -> TaskOrder:
    return TaskOrder(
        job_id=job.id,
        spec=job.submission.spec,
        datasets=job.submission.datasets,
        base_fingerprint=job.submission.base_fingerprint,
        num_positions=job.submission.num_positions,
        checkpoint=job.checkpoint,
        epoch=lease.epoch,
    )


def _shown(progress: TaskProgress) -> dict[str, Any]:
    """A job's progress as its row keeps it."""
    return {
        "step": progress.step,
        "num_steps": progress.num_steps,
        "loss": progress.loss,
        "best": progress.best,
        "seconds": progress.seconds,
        "stage": progress.stage,
    }
