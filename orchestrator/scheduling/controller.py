"""The controller: carries out the plan, one `step()` at a time. The only writer of job states.

Recovery is the normal path: a step first takes back jobs whose holder is gone, and starts on what
it finds, whether the database is new or a controller was killed a moment ago.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.domain.errors import IntegrityError, InvalidInput, StaleLease, TuttiError
from orchestrator.domain.gang import (
    Gang,
    GangEvent,
    GangLauncher,
    GangOrder,
    StageReached,
    TaskCheckpointed,
    TaskFailed,
    TaskFinished,
    TaskOrder,
    TaskProgress,
)
from orchestrator.domain.job import Job, Lease
from orchestrator.registry.completion import Completion
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.scheduling.gang_plan import GangKey, assign_ranks, group_jobs, num_ranks
from orchestrator.scheduling.shard_plan import ShardPlan

MAX_ATTEMPTS = 3  # not counting those a user stopped
STOPPED = "the controller was stopped"
HEARTBEATS_PER_LEASE = 6
MAX_HEARTBEAT_S = 2.0  # so that `tutti jobs list` elsewhere is up to date


@dataclass
class _RunningGang:
    gang: Gang
    order: GangOrder
    leases: dict[str, Lease]
    jobs: dict[str, Job]
    checkpoints: dict[str, str]
    next_heartbeat: float


@dataclass
class Watch:
    """What an observer sees of the controller: the latest of every job it has touched."""

    progress: dict[str, TaskProgress] = field(default_factory=dict)
    completions: dict[str, Completion] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    stages: dict[int, str] = field(default_factory=dict)


class Controller:
    """Runs queued jobs in gangs. `holder` names this process in leases; `now` is a monotonic
    clock, used for pacing alone (leases live by the database's time). `zero_stage` is for specs
    that say nothing; `plan` says how a base is held, given the stage that is asked for, if
    any, and the number of workers that would hold it whole."""

    def __init__(
        self,
        queue: JobQueue,
        registry: PromptRegistry,
        launcher: GangLauncher,
        *,
        holder: str,
        actor: str,
        lease_s: float,
        num_workers: int,
        zero_stage: int | None,
        plan: Callable[[str, int | None, int], ShardPlan],
        code_version: str,
        max_length: Callable[[str], int],
        discard: Callable[[str], None],
        is_dead: Callable[[str], bool],
        now: Callable[[], float],
    ) -> None:
        self._queue, self._registry, self._launcher = queue, registry, launcher
        self._holder, self._actor, self._lease_s = holder, actor, lease_s
        self._num_workers, self._zero_stage, self._plan = num_workers, zero_stage, plan
        self._code_version, self._max_length = code_version, max_length
        self._discard, self._is_dead, self._now = discard, is_dead, now
        self._running: list[_RunningGang] = []
        self.watch = Watch()

    @property
    def is_idle(self) -> bool:
        """No gang is up."""
        return not self._running

    def step(self, admits: bool = True) -> None:
        """Take back lost jobs, hear the gangs, and start what is queued (if it `admits`)."""
        self._queue.reclaim(self._is_dead)
        for running in list(self._running):
            self._hear(running)
        if admits and self.is_idle:
            self._start_next()

    def stop(self) -> None:
        """End all gangs; their unfinished jobs go back to the queue."""
        for running in list(self._running):
            running.gang.stop()
            self._take(running, running.gang.poll().events)  # what finished meanwhile is kept
            for lease in running.leases.values():
                self._release(lease, STOPPED)
        self._running.clear()

    def _start_next(self) -> None:
        """Start the first gang of the plan. Two at once would share the machine's cores."""
        groups = group_jobs(self._queue.queued(), self._zero_stage)
        for key, jobs in groups.items():
            if self._start(key, jobs):
                return

    def _start(self, key: GangKey, jobs: Sequence[Job]) -> bool:
        leases = {
            job.id: lease
            for job in jobs
            if (lease := self._queue.claim(job.id, self._holder, self._lease_s)) is not None
        }
        claimed = {job.id: job for job in jobs if job.id in leases}
        if not claimed:
            return False
        for lease in leases.values():
            self._queue.start(lease)
        try:
            order = self._order(key, list(claimed.values()), leases)
            gang = self._launcher.launch(order)
        except TuttiError as error:
            for job_id, lease in leases.items():
                self._fail(job_id, lease, str(error))
            return True
        kept = {job.id: job.checkpoint for job in claimed.values() if job.checkpoint}
        self._running.append(
            _RunningGang(gang, order, leases, claimed, kept, self._next_heartbeat())
        )
        return True

    def _order(self, key: GangKey, jobs: Sequence[Job], leases: dict[str, Lease]) -> GangOrder:
        fingerprint, zero_stage = key
        orders = [
            TaskOrder(
                job.id,
                job.submission.spec,
                job.submission.datasets,
                fingerprint,
                job.submission.num_positions,
                job.checkpoint,
            )
            for job in jobs
        ]
        plan = self._plan(fingerprint, zero_stage, num_ranks(self._num_workers, orders, 0))
        name = f"gang-{jobs[0].id[:8]}-{leases[jobs[0].id].epoch}"
        return GangOrder(
            name=name,
            base_fingerprint=fingerprint,
            max_length=self._max_length(fingerprint),
            code_version=self._code_version,
            zero_stage=plan.zero_stage,
            ranks=assign_ranks(orders, num_ranks(self._num_workers, orders, plan.zero_stage)),
            offload=plan.offload,
            sharding=plan.reason,
        )

    def _hear(self, running: _RunningGang) -> None:
        status = running.gang.poll()
        self._take(running, status.events)
        if self._now() >= running.next_heartbeat:
            self._beat(running)
        if not status.is_running:
            self._bury(running, status.error or "the gang ended before the job did")

    def _take(self, running: _RunningGang, events: Sequence[GangEvent]) -> None:
        for event in events:
            if isinstance(event, StageReached):
                self.watch.stages[event.rank] = event.stage
            elif isinstance(event, TaskProgress):
                self.watch.progress[event.job_id] = event
            elif isinstance(event, TaskCheckpointed):
                self._keep(running, event)
            else:
                self._end(running, event)

    def _keep(self, running: _RunningGang, event: TaskCheckpointed) -> None:
        """Write a checkpoint down; the one before it is of no use any more."""
        lease = running.leases.get(event.job_id)
        if lease is None:
            self._discard(event.digest)
            return
        try:
            self._queue.checkpoint(lease, event.digest)
        except StaleLease as error:
            self._lose(running, event.job_id, error)
            self._discard(event.digest)
        else:
            superseded = running.checkpoints.get(event.job_id, event.digest)
            running.checkpoints[event.job_id] = event.digest
            if superseded != event.digest:
                self._discard(superseded)

    def _end(self, running: _RunningGang, event: TaskFinished | TaskFailed) -> None:
        lease = running.leases.pop(event.job_id, None)
        if lease is None:
            return
        if isinstance(event, TaskFailed):
            is_ended = self._fail(event.job_id, lease, event.reason)
        else:
            is_ended = self._complete(running, event, lease)
        if is_ended and event.job_id in running.checkpoints:
            self._discard(running.checkpoints.pop(event.job_id))

    def _complete(self, running: _RunningGang, event: TaskFinished, lease: Lease) -> bool:
        """Register a result; False where the job is another holder's by now."""
        try:
            spec = running.jobs[event.job_id].submission.spec
            lease = self._renew(lease)
            completion = self._registry.complete(lease, event.trained, spec.promote, self._actor)
        except StaleLease as error:
            self.watch.failures[event.job_id] = str(error)
            return False
        except (InvalidInput, IntegrityError) as error:  # a result that no version can be made of
            return self._fail(event.job_id, lease, str(error))
        self.watch.completions[event.job_id] = completion
        return True

    def _beat(self, running: _RunningGang) -> None:
        running.next_heartbeat = self._next_heartbeat()
        for job_id, lease in list(running.leases.items()):
            try:
                running.leases[job_id] = self._renew(lease)
            except StaleLease as error:
                self._lose(running, job_id, error)

    def _lose(self, running: _RunningGang, job_id: str, error: StaleLease) -> None:
        """Another holder has the job: what this gang does for it counts no more."""
        running.leases.pop(job_id)
        self.watch.failures[job_id] = str(error)

    def _renew(self, lease: Lease) -> Lease:
        """Extend a lease, and write down how far its job has come."""
        progress = self.watch.progress.get(lease.job_id)
        if progress is None:
            return self._queue.heartbeat(lease, self._lease_s)
        shown = {
            "step": progress.step,
            "num_steps": progress.num_steps,
            "loss": progress.loss,
            "best": progress.best,
            "stage": progress.stage,
        }
        return self._queue.heartbeat(lease, self._lease_s, shown)

    def _next_heartbeat(self) -> float:
        return self._now() + min(self._lease_s / HEARTBEATS_PER_LEASE, MAX_HEARTBEAT_S)

    def _bury(self, running: _RunningGang, error: str) -> None:
        """A gang is over: what it left undone is tried again, up to MAX_ATTEMPTS times in all."""
        self._running.remove(running)
        for job_id, lease in running.leases.items():
            attempts = self._queue.attempts(job_id)
            if sum(attempt.cause != STOPPED for attempt in attempts) >= MAX_ATTEMPTS:
                self._fail(job_id, lease, f"{error} (attempt {MAX_ATTEMPTS} of {MAX_ATTEMPTS})")
            else:
                self._release(lease, error)

    def _fail(self, job_id: str, lease: Lease, reason: str) -> bool:
        """End a job as failed; False where it is another holder's by now."""
        self.watch.failures[job_id] = reason
        try:
            self._queue.fail(lease, reason)
        except StaleLease as error:
            self.watch.failures[job_id] = str(error)
            return False
        return True

    def _release(self, lease: Lease, cause: str) -> None:
        try:
            self._queue.release(lease, cause)
        except StaleLease:
            return  # another holder has it; nothing is ours to give back
