"""One gang as its controller keeps it: its jobs, their leases, and what is not written down yet.

What a gang tells is heard first and written down after, in order; while the database is away it
waits here. A lease is renewed only while the rank with its job is heard of, so a job on a worker
that stands still is taken away like one whose controller is gone.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.domain.errors import IntegrityError, InvalidInput, StaleLease
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
from orchestrator.registry.gang_book import GangBook
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.scheduling.gang_plan import GangKey, GangView

PAUSE = "paused"
LOST = "another holder has the job"
DATABASE_AWAY = "the database was away for longer than the lease"
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


class GangKeeper:
    """Holds the leases of a gang's jobs. `hear` and `guard` never touch the database; `settle`,
    `beat` and `bury` raise DatabaseUnavailable and lose nothing by it."""

    def __init__(self, gang: Gang, order: GangOrder, key: GangKey, ledger: Ledger) -> None:
        self.gang, self.order, self.key = gang, order, key
        self.status = GangStatus()
        self.leases: dict[str, Lease] = {}
        self.is_open = True
        self._ledger = ledger
        self._limits: dict[str, float | None] = {}
        self._promote: dict[str, Any] = {}
        self._checkpoints: dict[str, str] = {}
        self._progress: dict[str, TaskProgress] = {}
        self._leaving: dict[str, str] = {}
        self._unwritten: deque[TaskEvent] = deque()
        self._killed: str | None = None
        self._started = self._renewed = self._busy = ledger.now()

    @property
    def is_over(self) -> bool:
        """The run has ended, and all it told is written down."""
        return not self.status.is_running and not self._unwritten

    @property
    def is_idle(self) -> bool:
        """It holds no job and has told nothing that is not written down."""
        return not self.leases and not self._unwritten

    def view(self) -> GangView:
        """What planning sees."""
        now = self._ledger.now()
        return GangView(
            name=self.order.name,
            key=self.key,
            num_workers=self.order.max_workers,
            age_s=now - self._started,
            idle_s=0.0 if self.leases else now - self._busy,
            is_open=self.is_open and self.status.is_running,
        )

    def admit(self, claimed: Mapping[str, tuple[Job, Lease]]) -> None:
        """Train jobs that were claimed for this gang."""
        orders = []
        for job, lease in claimed.values():
            self.leases[job.id] = lease
            self._limits[job.id] = job.options.time_limit_s
            self._promote[job.id] = job.submission.spec.promote
            if job.checkpoint:
                self._checkpoints[job.id] = job.checkpoint
            orders.append(_order_of(job, lease))
        self._ledger.counters.admissions += len(orders)
        self.gang.admit(orders)

    def close(self, reason: str) -> None:
        """Take no more jobs; the gang ends with its last one."""
        logger.info("gang is closed", extra={"gang": self.order.name, "reason": reason})
        self.is_open = False

    def drain(self, reason: str) -> None:
        """Give all jobs back to the queue, with their checkpoints."""
        self.close(reason)
        for job_id in list(self.leases):
            self._withdraw(job_id, reason)

    def lose(self, job_id: str, reason: str) -> None:
        """A job is another holder's, or nobody's: what this gang does for it counts no more."""
        lease = self.leases.pop(job_id, None)
        if lease is None:
            return
        logger.warning("job is lost", extra={"job": job_id, "reason": reason})
        self._forget(job_id)
        self.gang.withdraw(job_id, lease.epoch, keeps=False)

    def hear(self) -> None:
        """Take in what the gang tells."""
        self.status = self.gang.poll()
        if self._killed is not None:
            self.status = replace(self.status, is_running=False, error=self._killed)
        for event in self.status.events:
            if not isinstance(event, StageReached):
                self._unwritten.append(event)
        if self.leases:
            self._busy = self._ledger.now()

    def guard(self, start_timeout_s: float) -> None:
        """Do what must not wait for the database: leave jobs whose leases must have ended, end a
        start that hangs, and a closed gang that has no work left."""
        if self._ledger.now() - self._renewed > self._ledger.lease_s:
            for job_id in self.leases:
                self._withdraw(job_id, DATABASE_AWAY)
        if self._killed is not None:
            return
        if self.status.stage is not None and self.status.stage_s > start_timeout_s:
            self._kill(f"hung for {self.status.stage_s:.0f} s in the stage: {self.status.stage}")
        elif not self.is_open and self.is_idle and self.status.is_running:
            self.gang.finish()

    def settle(self) -> None:
        """Write down what was heard, in order."""
        while self._unwritten:
            self._write(self._unwritten[0])
            self._unwritten.popleft()

    def beat(self) -> None:
        """Renew the leases, and write down how far jobs and gang have come."""
        silent_s, lease_s = self.status.silent_s, self._ledger.lease_s
        heard = [
            lease for job, lease in self.leases.items() if silent_s.get(job, 0.0) < lease_s / 2
        ]
        shown = {job: _shown(p) for job, p in self._progress.items() if job in self.leases}
        beat = self._ledger.queue.heartbeat(heard, lease_s, shown)
        self._renewed = self._ledger.now()
        self.leases.update(beat.renewed)
        for job_id, reason in beat.lost.items():
            self.lose(job_id, reason)
        for job_id in beat.pause_asked:
            self._withdraw(job_id, PAUSE)
        status = self.status
        drains = self._ledger.book.beat(
            self.order.name, status.stage, status.num_workers, status.step_s, status.tokens_per_s
        )
        if drains and self.is_open:
            self.drain("the gang was drained")

    def bury(self) -> None:
        """The run is over: what it left undone is tried again."""
        error = self.status.error
        for job_id, lease in list(self.leases.items()):
            reason = self._leaving.get(job_id)
            if reason is not None:
                self._give_back(lease, reason)
            else:
                cause = error or "the gang ended before the job did"
                self._release(lease, cause, Fault.MACHINE)
        self._ledger.book.close(self.order.name, error)
        logger.info("gang has ended", extra={"gang": self.order.name, "error": error})

    def _kill(self, reason: str) -> None:
        logger.error("gang is killed", extra={"gang": self.order.name, "reason": reason})
        self._killed = reason
        self.gang.kill()

    def _withdraw(self, job_id: str, reason: str) -> None:
        """Let a job leave at its next step boundary, with a checkpoint, once."""
        if job_id not in self._leaving:
            self._leaving[job_id] = reason
            self.gang.withdraw(job_id, self.leases[job_id].epoch, keeps=True)

    def _write(self, event: TaskEvent) -> None:
        lease = self.leases.get(event.job_id)
        if lease is None or lease.epoch != event.epoch:
            self._ledger.counters.stale_events += not isinstance(event, TaskWithdrawn)
            if isinstance(event, TaskCheckpointed):
                self._ledger.discard(event.digest)
            return
        try:
            self._write_held(event, lease)
        except StaleLease as error:
            self.lose(event.job_id, str(error))
            if isinstance(event, TaskCheckpointed):
                self._ledger.discard(event.digest)

    def _write_held(self, event: TaskEvent, lease: Lease) -> None:
        match event:
            case TaskAdmitted():
                self._ledger.queue.start(lease)
            case TaskProgress():
                self._progress[event.job_id] = event
                self._check_time(event, lease)
            case TaskNoted():
                self._ledger.queue.note([(event.job_id, event.text)])
            case TaskCheckpointed():
                self._keep(event, lease)
            case TaskWithdrawn():
                self._give_back(lease, self._leaving.get(event.job_id, LOST))
            case TaskFinished():
                self._complete(event, lease)
            case TaskFailed():
                self._fail(lease, event.reason)

    def _keep(self, event: TaskCheckpointed, lease: Lease) -> None:
        """Write a checkpoint down; the one before it is of no use any more."""
        self._ledger.queue.checkpoint(lease, event.digest)
        superseded = self._checkpoints.get(event.job_id, event.digest)
        self._checkpoints[event.job_id] = event.digest
        if superseded != event.digest:
            self._ledger.discard(superseded)

    def _check_time(self, event: TaskProgress, lease: Lease) -> None:
        limit = self._limits.get(event.job_id)
        if limit is not None and event.seconds > limit:
            step = f"step {event.step} of {event.num_steps}"
            self._fail(lease, f"its time limit of {limit:g} s is over, at {step}")
            self.gang.withdraw(event.job_id, lease.epoch, keeps=False)

    def _complete(self, event: TaskFinished, lease: Lease) -> None:
        """Register a result; one that no version can be made of fails its job."""
        if progress := self._progress.get(event.job_id):
            shown = {event.job_id: _shown(progress)}
            self._ledger.queue.heartbeat([lease], self._ledger.lease_s, shown)
        try:
            promote = self._promote[event.job_id]
            self._ledger.registry.complete(lease, event.trained, promote, self._ledger.actor)
        except (InvalidInput, IntegrityError) as error:
            self._fail(lease, str(error))
        else:
            self._ledger.counters.completions += 1
            self._end(lease)

    def _fail(self, lease: Lease, reason: str) -> None:
        logger.info("job has failed", extra={"job": lease.job_id, "reason": reason})
        self._ledger.queue.fail(lease, reason)
        self._ledger.counters.failures += 1
        self._end(lease)

    def _end(self, lease: Lease) -> None:
        """A job is over: its checkpoint is of no use any more."""
        del self.leases[lease.job_id]
        checkpoint = self._checkpoints.pop(lease.job_id, None)
        self._forget(lease.job_id)
        if checkpoint is not None:
            self._ledger.discard(checkpoint)

    def _give_back(self, lease: Lease, reason: str) -> None:
        if reason == PAUSE:
            try:
                self._ledger.queue.paused(lease)
            except StaleLease as error:
                reason = str(error)
            self.leases.pop(lease.job_id, None)
            self._forget(lease.job_id)
        else:
            self._release(lease, reason, Fault.PREEMPTION)

    def _release(self, lease: Lease, cause: str, fault: Fault) -> None:
        try:
            self._ledger.queue.release(lease, cause, fault)
            self._ledger.counters.releases += 1
        except StaleLease:
            pass  # another holder has it; nothing is ours to give back
        self.leases.pop(lease.job_id, None)
        self._forget(lease.job_id)

    def _forget(self, job_id: str) -> None:
        for known in (self._limits, self._promote, self._checkpoints, self._progress):
            known.pop(job_id, None)
        self._leaving.pop(job_id, None)


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
