"""What to do with gangs and queued jobs: a pure policy from what there is to decisions.

Jobs that can share a base share a gang. A gang has room for `step_positions` of a step on each
worker; while workers are free, a busy gang is left at `grow_positions` and another one is started
beside it. When workers run out, a gang without work ends at once, one that had its turn is closed
for those who waited long, and less urgent jobs make room: those of the same base in their gang, the
others with theirs. Jobs that were unlucky twice go on trial, for one of them may be the cause: into
a gang apart, each when the one before it is known to be well.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

from orchestrator.domain.job import QueuedJob, Quota
from orchestrator.scheduling.decisions import (
    AdmitJobs,
    CloseGang,
    Decision,
    DrainGang,
    GangKey,
    StartGang,
    WithdrawJob,
)
from orchestrator.scheduling.turns import Turns

#: Jobs in a row that find no place before planning stops looking.
LOOK_AHEAD = 1000
#: The machine's faults in a row, without a checkpoint between, after which a job goes on trial.
SUSPECT_FAULTS = 2


@dataclass(frozen=True)
class GangView:
    """A gang as planning sees it. `age_s` since its start; `idle_s` since it had a job last, 0 with
    jobs; a gang that is not open takes no more jobs."""

    name: str
    key: GangKey
    num_workers: int
    age_s: float = 0.0
    idle_s: float = 0.0
    is_open: bool = True


@dataclass(frozen=True)
class Limits:
    """The cluster's workers, and the policy's numbers. A gang has at most `gang_workers`, for they
    start again together when one dies (more where the base or rows are split); positions are a
    worker's in one step, `task_bytes` its memory for encoders and their optimizers;
    `turn_s` is how long a gang may stay while jobs that need another wait, and how long these
    must have waited for that; `idle_s` how long a gang without jobs stays when nobody waits."""

    num_workers: int
    gang_workers: int = 16
    step_positions: float = 8_192.0
    task_bytes: float = math.inf
    grow_positions: float = 4_096.0
    turn_s: float = 300.0
    idle_s: float = 60.0
    zero_stage: int | None = None


@dataclass
class _Place:
    """A gang that is up or to be started, with the work it has so far and the jobs it gets."""

    key: GangKey
    num_workers: int
    name: str | None = None
    positions: float = 0.0
    num_bytes: float = 0.0
    is_reserved: bool = False
    has_suspect: bool = False
    job_ids: list[str] = field(default_factory=list)

    def takes(self, job: QueuedJob, positions: float, num_bytes: float) -> bool:
        """Whether it takes a job, at so many positions and bytes a worker; an empty one takes any,
        a trial none beside one that is not known to be well."""
        if self.is_reserved or (self.key.is_trial and self.has_suspect):
            return False
        has_room = self.positions + job.num_positions <= positions * self.num_workers
        has_memory = self.num_bytes + job.num_bytes <= num_bytes * self.num_workers
        return self.positions == 0 or (has_room and has_memory)

    @property
    def wants_worker(self) -> bool:
        """Whether it is still to be started, with a job on each worker."""
        return self.name is None and len(self.job_ids) >= self.num_workers

    def hold(self, job: QueuedJob) -> None:
        """Count the work of a job that it has."""
        self.positions += job.num_positions
        self.num_bytes += job.num_bytes
        self.has_suspect = self.has_suspect or _is_suspect(job)

    def add(self, job: QueuedJob) -> None:
        self.hold(job)
        self.job_ids.append(job.id)


def key_of(job: QueuedJob, default_zero_stage: int | None) -> GangKey:
    """The kind of gang a job needs."""
    stage = default_zero_stage if job.zero_stage is None else job.zero_stage
    return GangKey(job.base_fingerprint, stage, job.is_data_parallel, _is_suspect(job))


def _is_suspect(job: QueuedJob) -> bool:
    return job.faults >= SUSPECT_FAULTS


def plan(
    ready: Sequence[QueuedJob],
    held: Sequence[QueuedJob],
    quotas: Sequence[Quota],
    gangs: Sequence[GangView],
    limits: Limits,
    now: datetime,
    min_workers: Mapping[GangKey, int] = MappingProxyType({}),
) -> list[Decision]:
    """The decisions for this moment. `ready` are the queued jobs that may start (by priority, then
    age), `held` those that gangs have; `now` is on the clock of `created_at`. `min_workers`: of the
    kinds whose base is known not to fit fewer."""
    planning = _Planning(held, gangs, limits, min_workers, now)
    turns = Turns(ready, held, quotas)
    for job in turns:
        if planning.place(job):
            turns.take(job)
        elif planning.num_unplaced >= LOOK_AHEAD:
            break
    room = _make_room(planning.waiting, held, gangs, limits, now)
    return [*planning.decisions(), *_make_room_within(planning.crowded, held, gangs), *room]


class _Planning:
    """Places jobs one by one, and remembers which found no place."""

    def __init__(
        self,
        held: Sequence[QueuedJob],
        gangs: Sequence[GangView],
        limits: Limits,
        min_workers: Mapping[GangKey, int],
        now: datetime,
    ) -> None:
        self._limits, self._min_workers, self._now = limits, min_workers, now
        self._kept: QueuedJob | None = None  # whom the free workers are kept for
        self._free = limits.num_workers - sum(gang.num_workers for gang in gangs)
        self._places: dict[GangKey, list[_Place]] = {}
        by_name = {}
        for gang in gangs:
            if gang.is_open:
                place = _Place(gang.key, gang.num_workers, gang.name)
                self._places.setdefault(gang.key, []).append(place)
                by_name[gang.name] = place
        for job in held:
            if job.gang in by_name:
                by_name[job.gang].hold(job)
        self.waiting: dict[GangKey, QueuedJob] = {}  # the first that has no gang, of each kind
        self.crowded: dict[GangKey, QueuedJob] = {}  # the first whose gangs are full
        self.num_unplaced = 0

    def place(self, job: QueuedJob) -> bool:
        """Give a job to a gang, a new one if need be; False if none has room."""
        key = key_of(job, self._limits.zero_stage)
        place = self._find(key, job)
        if place is None:
            self.num_unplaced += 1
            self._remember(key, job)
            return False
        place.add(job)
        return True

    def _remember(self, key: GangKey, job: QueuedJob) -> None:
        """A job found no place. The first whose gangs are full has the next room in one of them:
        smaller jobs that come later would keep a large one out for ever. One that needs more
        workers than there are waits for a larger cluster, and nobody makes room."""
        places = self._places.get(key)
        if not places:
            if self._min_workers.get(key, 1) <= self._limits.num_workers:
                self.waiting.setdefault(key, job)
                self._kept = self._kept or job
        elif key not in self.crowded and not key.is_trial:
            self.crowded[key] = job
            min(places, key=lambda p: p.positions / p.num_workers).is_reserved = True

    def _may_grow(self, key: GangKey, job: QueuedJob) -> bool:
        """Whether there are free workers for this kind of gang, and they are not kept for
        another job."""
        if self._free < self._min_workers.get(key, 1):
            return False
        if self._kept is None:
            return True
        waited_s = (self._now - self._kept.created_at).total_seconds()
        return job.priority >= self._kept.priority and waited_s < self._limits.turn_s

    def _find(self, key: GangKey, job: QueuedJob) -> _Place | None:
        places = self._places.get(key, [])
        limits = self._limits
        calm_positions = min(limits.grow_positions, limits.step_positions)
        calm = [p for p in places if p.takes(job, calm_positions, limits.task_bytes)]
        wanted = not calm or all(place.wants_worker for place in calm)
        if wanted and self._may_grow(key, job):
            return self._grow(key)
        busy = [p for p in places if p.takes(job, limits.step_positions, limits.task_bytes)]
        return min(calm or busy, key=lambda p: p.positions / p.num_workers, default=None)

    def _grow(self, key: GangKey) -> _Place:
        """Give free workers to the gang that is being started, or to a new one: a gang that is up
        is not restarted for them. Where the base or the rows are split, all of them join."""
        takes_all = key.zero_stage == 3 or key.shares_rows or key in self._min_workers
        num_workers = self._free if takes_all else 1
        self._free -= num_workers
        places = self._places.setdefault(key, [])
        most = 0 if key.is_trial else self._limits.gang_workers
        small = (each for each in places if each.name is None and each.num_workers < most)
        starting = next(small, None)
        if starting is None:
            places.append(starting := _Place(key, 0))
        starting.num_workers += num_workers
        return starting

    def decisions(self) -> Iterable[Decision]:
        for places in self._places.values():
            for place in places:
                if place.name is None:
                    yield StartGang(place.key, place.num_workers, tuple(place.job_ids))
                elif place.job_ids:
                    yield AdmitJobs(place.name, tuple(place.job_ids))


def _make_room_within(
    crowded: dict[GangKey, QueuedJob], held: Sequence[QueuedJob], gangs: Sequence[GangView]
) -> Iterable[Decision]:
    """Of each kind of gang that is full for a more urgent job, the least urgent job leaves."""
    for key, first in crowded.items():
        names = {gang.name for gang in gangs if gang.key == key and gang.is_open}
        less = [job for job in held if job.gang in names and job.priority < first.priority]
        if less:
            job = min(less, key=lambda job: (job.priority, -job.created_at.timestamp(), job.id))
            reason = f"a job of priority {first.priority} needs its place"
            yield WithdrawJob(job.gang or "", job.id, reason)


def _make_room(
    waiting: dict[GangKey, QueuedJob],
    held: Sequence[QueuedJob],
    gangs: Sequence[GangView],
    limits: Limits,
    now: datetime,
) -> Iterable[Decision]:
    """End what idles; for jobs that find no workers, end one gang more."""
    urgency: dict[str | None, int] = {}
    for job in held:
        urgency[job.gang] = max(job.priority, urgency.get(job.gang, job.priority))
    open_gangs = [gang for gang in gangs if gang.is_open]
    for gang in open_gangs:
        if gang.idle_s > 0 and (waiting or gang.idle_s >= limits.idle_s):
            why = "others wait for its workers" if waiting else "it had no work"
            yield CloseGang(gang.name, why)
    busy = [gang for gang in gangs if gang.name in urgency]
    if not waiting or len(busy) < len(gangs):  # nobody waits, or workers are about to be free
        return
    first = max(waiting.values(), key=lambda job: job.priority)
    least = min(busy, key=lambda gang: (urgency[gang.name], -gang.age_s), default=None)
    if least is None:
        return
    if urgency[least.name] < first.priority:
        yield DrainGang(least.name, f"a job of priority {first.priority} needs its workers")
        return
    if any(not gang.is_open for gang in gangs):
        return
    oldest = max(busy, key=lambda gang: gang.age_s)
    waited_s = (now - min(job.created_at for job in waiting.values())).total_seconds()
    if min(waited_s, oldest.age_s) >= limits.turn_s and urgency[oldest.name] <= first.priority:
        yield CloseGang(oldest.name, "jobs on another base waited for its workers")
