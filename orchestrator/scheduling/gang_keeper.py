"""One gang as its controller keeps it: what it told that is not written down yet, and its life.

What a gang tells is heard first and written down after, in order; while the database is away it
waits here. A lease is renewed only while the rank with its job is heard of, so a job on a worker
that stands still is taken away like one whose controller is gone.
"""

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from orchestrator.domain.gang import Gang, GangOrder, GangStatus, StageReached, TaskEvent
from orchestrator.domain.job import Fault, Job, Lease
from orchestrator.scheduling.decisions import GangKey
from orchestrator.scheduling.gang_plan import GangView
from orchestrator.scheduling.held_jobs import HeldJobs
from orchestrator.scheduling.ledger import Ledger

DATABASE_AWAY = "the database was away for longer than the lease"
RENEWALS_PER_LEASE = 6
MAX_RENEWAL_S = 2.0  # for it is also how a pause and a cancellation are heard of
logger = logging.getLogger("tutti.controller")


class GangKeeper:
    """Holds the leases of a gang's jobs. `hear` and `guard` never touch the database; `settle`,
    `beat` and `bury` raise DatabaseUnavailable and lose nothing by it."""

    def __init__(self, gang: Gang, order: GangOrder, key: GangKey, ledger: Ledger) -> None:
        self.gang, self.order, self.key = gang, order, key
        self.status = GangStatus()
        self.is_open = True
        self._ledger = ledger
        self._jobs = HeldJobs(gang, ledger)
        self._unwritten: deque[TaskEvent] = deque()
        self._killed: str | None = None
        self._has_joined = False
        self._started = self._renewed = self._busy = ledger.now()

    @property
    def job_ids(self) -> frozenset[str]:
        """The jobs whose leases it holds."""
        return self._jobs.ids

    @property
    def is_over(self) -> bool:
        """The run has ended, and all it told is written down."""
        return not self.status.is_running and not self._unwritten

    @property
    def is_idle(self) -> bool:
        """It holds no job and has told nothing that is not written down."""
        return not self.job_ids and not self._unwritten

    def view(self) -> GangView:
        """What planning sees."""
        now = self._ledger.now()
        return GangView(
            name=self.order.name,
            key=self.key,
            num_workers=self.order.max_workers,
            age_s=now - self._started,
            idle_s=0.0 if self.job_ids else now - self._busy,
            is_open=self.is_open and self.status.is_running,
        )

    def admit(self, claimed: Mapping[str, tuple[Job, Lease]]) -> None:
        """Train jobs that were claimed for this gang."""
        self._jobs.admit(claimed)

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
        self._jobs.withdraw(job_id, reason)

    def lose(self, job_id: str, reason: str) -> None:
        """A job is another holder's, or nobody's: what this gang does for it counts no more."""
        self._jobs.lose(job_id, reason)

    def hear(self) -> None:
        """Take in what the gang tells."""
        self.status = self.gang.poll()
        if self._killed is not None:
            self.status = replace(self.status, is_running=False, error=self._killed)
        for event in self.status.events:
            if not isinstance(event, StageReached):
                self._unwritten.append(event)
        self._has_joined |= self.status.num_workers > 0
        if self.job_ids:
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
        """Write down what was heard, in order."""
        while self._unwritten:
            self._jobs.write(self._unwritten[0])
            self._unwritten.popleft()

    def beat(self) -> None:
        """Renew the leases when it is time, write down what is new of jobs and gang, and hear what
        others want of them."""
        now = self._ledger.now()
        if now - self._renewed >= min(self._ledger.lease_s / RENEWALS_PER_LEASE, MAX_RENEWAL_S):
            self._jobs.renew(self.job_ids, self.status.silent_s)
            self._renewed = now
        elif news := self._jobs.with_news:
            self._jobs.renew(news, self.status.silent_s)
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
        self._jobs.give_back_all(cause, fault)
        self._ledger.book.close(self.order.name, self.status.error)
        logger.info("gang has ended", extra={"gang": self.order.name, "error": self.status.error})

    def _kill(self, reason: str) -> None:
        logger.error("gang is killed", extra={"gang": self.order.name, "reason": reason})
        self._killed = reason
        self.gang.kill()
