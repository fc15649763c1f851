"""The jobs that a gang holds, with their leases; writes down what the gang tells of them.

Every write is fenced by the job's own lease: what comes under another epoch, or too late, changes
nothing. What a job cannot have written costs that job the attempt, and no other.
"""

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.digest import short
from orchestrator.domain.errors import StaleLease, TuttiError
from orchestrator.domain.gang import (
    Gang,
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
from orchestrator.scheduling.ledger import Ledger

PAUSE = "paused"
logger = logging.getLogger("tutti.controller")


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


class HeldJobs:
    """A gang's jobs. `write`, `renew` and `give_back_all` raise DatabaseUnavailable, and lose
    nothing by it; the others never touch the database."""

    def __init__(self, gang: Gang, ledger: Ledger) -> None:
        self._gang, self._ledger = gang, ledger
        self._held: dict[str, _Held] = {}

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(self._held)

    @property
    def with_news(self) -> frozenset[str]:
        """Those whose progress is not written down."""
        return frozenset(
            job_id for job_id, held in self._held.items() if held.progress is not held.shown
        )

    def admit(self, claimed: Mapping[str, tuple[Job, Lease]]) -> None:
        """Train jobs that were claimed for this gang."""
        for job, lease in claimed.values():
            self._held[job.id] = _Held(job, lease, job.checkpoint)
        self._ledger.counters.admissions += len(claimed)
        self._gang.admit([_order_of(job, lease) for job, lease in claimed.values()])

    def withdraw(self, job_id: str, reason: str) -> None:
        """Let a job leave at its next step boundary, with a checkpoint, once."""
        held = self._held.get(job_id)
        if held is not None and held.leaving is None:
            held.leaving = reason
            self._gang.withdraw(job_id, held.lease.epoch, keeps=True)

    def lose(self, job_id: str, reason: str) -> None:
        """A job is another holder's, or nobody's: what this gang does for it counts no more."""
        held = self._held.pop(job_id, None)
        if held is not None:
            logger.warning("job is lost", extra={"job": job_id, "reason": reason})
            self._gang.withdraw(job_id, held.lease.epoch, keeps=False)

    def write(self, event: TaskEvent) -> None:
        """Write an event down."""
        try:
            self._write(event)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # one job must not stop a controller
            logger.exception("an event cannot be written", extra={"job": event.job_id})
            self._expel(event.job_id, f"{type(error).__name__}: {error}")

    def renew(self, job_ids: Collection[str], silent_s: Mapping[str, float]) -> None:
        """Renew the leases of those jobs whose rank is heard of, and write down their progress;
        hear which are lost, and which are to pause."""
        lease_s = self._ledger.lease_s
        heard = [job_id for job_id in job_ids if silent_s.get(job_id, 0.0) < lease_s / 2]
        told = {job_id: self._held[job_id].progress for job_id in self.with_news}
        shown = {job_id: _shown(progress) for job_id, progress in told.items() if progress}
        leases = [self._held[job_id].lease for job_id in heard]
        beat = self._ledger.queue.heartbeat(leases, lease_s, shown)
        for job_id, lease in beat.renewed.items():
            held = self._held[job_id]
            held.lease, held.shown = lease, told.get(job_id, held.shown)
        for job_id, reason in beat.lost.items():
            self.lose(job_id, reason)
        for job_id in beat.pause_asked:
            self.withdraw(job_id, PAUSE)

    def give_back_all(self, cause: str, fault: Fault) -> None:
        """The gang is over: its jobs go back to the queue, for the reason they were told to leave
        for, or else for this `cause`."""
        for held in list(self._held.values()):
            if held.leaving is not None:
                self._give_back(held)
            else:
                self._release(held, cause, fault)

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
            self._gang.withdraw(event.job_id, held.lease.epoch, keeps=False)

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
            self._gang.withdraw(job_id, held.lease.epoch, keeps=False)
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
