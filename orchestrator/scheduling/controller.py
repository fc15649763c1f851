"""The controller: carries out the plan, one `step()` at a time.

Several may run on one database: one leads, that is, plans and starts gangs; each looks after the
gangs it has started. Recovery is the normal path: a step first writes down what gangs told, takes
back jobs whose holder is gone, and plans on what it finds, whether the database is new or a
controller was killed a moment ago.
"""

import logging
from dataclasses import replace
from datetime import UTC, datetime

from orchestrator.registry.errors import DatabaseUnavailable
from orchestrator.registry.leadership import Leadership
from orchestrator.scheduling.decisions import AdmitJobs, CloseGang, Decision, StartGang, WithdrawJob
from orchestrator.scheduling.gang_keeper import GangKeeper
from orchestrator.scheduling.gang_plan import Limits, plan
from orchestrator.scheduling.gang_starter import Cluster, ControllerOptions, GangStarter
from orchestrator.scheduling.ledger import Counters, Ledger

STOPPED = "the controller was stopped"
HEARTBEATS_PER_LEASE = 6
MAX_HEARTBEAT_S = 1.0  # so that who looks on is up to date
#: Planning takes at most this part of the controller's time, unless jobs would wait for long.
PLANNING_PART = 0.1
MAX_PLAN_PAUSE_S = 1.0
#: Between two steps: while jobs and gangs are being started, and when all is as it was for a while.
STEP_S, CALM_STEP_S, CALM_AFTER_S = 0.1, 0.25, 30.0
#: Until a cluster that took no gang is asked again.
RELAUNCH_S = 5.0
logger = logging.getLogger("tutti.controller")


class Controller:
    """Runs queued jobs in gangs."""

    def __init__(
        self, ledger: Ledger, leadership: Leadership, cluster: Cluster, options: ControllerOptions
    ) -> None:
        self._ledger, self._leadership = ledger, leadership
        self._cluster, self._options = cluster, options
        self._keepers: list[GangKeeper] = []
        self._starter = GangStarter(ledger, cluster, options)
        self._next_beat = self._next_plan = self._led = self._decided = ledger.now()
        self._recovered: float | None = None
        self._patience = ledger.now()
        self.is_leading = False
        self.leader: str | None = None
        self.database_error: str | None = None

    @property
    def counters(self) -> Counters:
        return self._ledger.counters

    @property
    def num_gangs(self) -> int:
        return len(self._keepers)

    @property
    def is_idle(self) -> bool:
        """No job is held, and nothing is left to write down."""
        return all(keeper.is_idle for keeper in self._keepers)

    @property
    def pause_s(self) -> float:
        """How long to wait before the next step."""
        is_calm = self._ledger.now() > self._decided + CALM_AFTER_S
        return CALM_STEP_S if is_calm else STEP_S

    def step(self, admits: bool = True) -> None:
        """Hear the gangs, write down what they told, take back lost jobs, and start what is queued
        (if it `admits`). A database that is away is waited for. Raises TuttiError where there is no
        cluster to start the first gang on, or one that takes none."""
        for keeper in self._keepers:
            keeper.hear()
        try:
            self._write_down()
            if self._beats():
                self._recover()
            if admits and self.is_leading and self._ledger.now() >= self._next_plan:
                self._carry_out_plan()
            self.database_error = None
        except DatabaseUnavailable as error:
            if self.database_error is None:
                logger.warning("the database is away", extra={"error": str(error)})
            self.database_error = str(error)
        for keeper in self._keepers:
            keeper.guard(self._options.start_timeout_s)

    def stop(self, timeout_s: float = 60.0) -> None:
        """End all gangs at their next step boundaries; unfinished jobs go back to the queue with
        their checkpoints. Another controller may lead at once."""
        for keeper in self._keepers:
            keeper.drain(STOPPED)
        deadline = self._ledger.now() + timeout_s
        while not self.is_idle and self._ledger.now() < deadline:
            self.step(admits=False)
            self._cluster.pause(0.05)
        for keeper in self._keepers:
            keeper.gang.stop(timeout_s=10.0)
            keeper.hear()
        try:
            self._write_down()
            for keeper in self._keepers:
                keeper.bury()
            self._leadership.resign(self._options.holder)
        except DatabaseUnavailable as error:  # the leases end by themselves
            logger.warning("the database is away", extra={"error": str(error)})
        finally:
            self._keepers.clear()
            self.is_leading = False

    def _write_down(self) -> None:
        for keeper in list(self._keepers):
            keeper.settle()
            if keeper.is_over:
                keeper.bury()
                self._keepers.remove(keeper)

    def _beats(self) -> bool:
        """Lead, or go on leading, and renew all leases, if it is time."""
        if self._ledger.now() < self._next_beat:
            return False
        interval = min(self._ledger.lease_s / HEARTBEATS_PER_LEASE, MAX_HEARTBEAT_S)
        self._next_beat = self._ledger.now() + interval
        for keeper in self._keepers:
            keeper.beat()
        self._lead()
        return True

    def _lead(self) -> None:
        holder = self._options.holder
        term = self._leadership.lead(holder, self._ledger.lease_s, self._cluster.is_dead)
        if (term is not None) != self.is_leading:
            logger.info("leads" if term else "leads no more", extra={"term": term})
        self.is_leading = term is not None
        if self.is_leading:
            self.leader, self._led = holder, self._ledger.now()
        else:
            leader = self._leadership.leader()
            self.leader = leader.holder if leader else None
            for keeper in self._keepers:  # the leader does not know them, and waits for workers
                if keeper.is_open and keeper.is_idle:
                    keeper.close("another controller leads")

    def _recover(self) -> None:
        """What a leader puts right: jobs and gangs whose holder is gone, jobs that wait in vain.

        After the database was away for long, others get a lease's time to write down what they
        heard meanwhile, before their jobs are taken from them.
        """
        known = {job_id for keeper in self._keepers for job_id in keeper.job_ids}
        self._ledger.queue.disown(self._options.holder, known)  # claims whose answer was lost
        if not self.is_leading:
            return
        now, lease_s = self._ledger.now(), self._ledger.lease_s
        if self._recovered is not None and now - self._recovered > lease_s:
            self._patience = now + lease_s
        self._recovered = now
        if now < self._patience:
            return
        queue = self._ledger.queue
        for job in queue.reclaim(self._cluster.is_dead):
            self.counters.lease_expiries += 1
            for keeper in self._keepers:
                keeper.lose(job.id, "its lease has ended")
        queue.settle_dependents()
        self._ledger.book.bury(self._cluster.is_dead, self._ledger.lease_s)

    def _carry_out_plan(self) -> None:
        started = self._ledger.now()
        decisions = self._plan()
        now = self._ledger.now()
        self._next_plan = now + min((now - started) / PLANNING_PART, MAX_PLAN_PAUSE_S)
        for decision in decisions:
            self._carry_out(decision)
        if decisions:
            self._decided = now

    def _plan(self) -> list[Decision]:
        queue = self._ledger.queue
        gangs = [keeper.view() for keeper in self._keepers]
        ready = [job for job in queue.ready() if not self._starter.is_held_back(job)]
        limits = self._options.limits
        if any(gang.idle_s > 0 for gang in gangs) and self._ledger.batches.is_one_at_work():
            limits = replace(limits, idle_s=0.0)  # it may wait for their workers
        if not ready:  # nobody waits: only gangs without work are looked at
            return plan((), (), (), gangs, limits, datetime.now(UTC))
        held, quotas = queue.held(), queue.quotas()
        limits, needs = self._with_processors(limits), self._starter.min_workers
        return plan(ready, held, quotas, gangs, limits, queue.now(), needs)

    def _with_processors(self, limits: Limits) -> Limits:
        """The limits, given the processors there are now and what other controllers' gangs have."""
        holder = self._options.holder
        cpus = self._cluster.num_cpus()
        num_workers = limits.num_workers if cpus is None else min(limits.num_workers, cpus)
        others = (gang for gang in self._ledger.book.list() if gang.holder != holder)
        taken = sum(gang.num_workers for gang in others)
        return replace(limits, num_workers=max(0, num_workers - taken))

    def _carry_out(self, decision: Decision) -> None:
        if isinstance(decision, StartGang):
            self._start(decision)
            return
        keeper = next(each for each in self._keepers if each.order.name == decision.gang)
        if isinstance(decision, AdmitJobs):
            self._starter.admit(keeper, decision.job_ids)
        elif isinstance(decision, WithdrawJob):
            keeper.withdraw(decision.job_id, decision.reason)
        elif isinstance(decision, CloseGang):
            keeper.close(decision.reason)
        else:
            keeper.drain(decision.reason)

    def _start(self, decision: StartGang) -> None:
        """Start a gang, if it can be: not when it took so long to know that another may lead by
        now, with plans of its own."""
        order = self._starter.prepare(decision, [keeper.order for keeper in self._keepers])
        if order is None or self._ledger.now() - self._led > self._ledger.lease_s:
            return
        keeper = self._starter.launch(decision, order)
        if keeper is None:
            self._next_plan = self._ledger.now() + RELAUNCH_S
            return
        self._keepers.append(keeper)
        self._ledger.book.open(order, self._options.holder)
        self._starter.admit(keeper, decision.job_ids)
