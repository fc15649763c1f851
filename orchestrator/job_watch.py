"""Looks at jobs as everybody can: in the database. Whoever trains them, it sees the same.

A database that is away is told in the next look, which otherwise repeats the last one.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.bootstrap import Parts
from orchestrator.domain.gang_record import GangRecord
from orchestrator.domain.job import Job, LogLine
from orchestrator.log_archive import read_log
from orchestrator.registry.errors import DatabaseUnavailable

INTERVAL_S = 0.5
#: Looking takes at most this part of the time.
LOOKING_PART = 0.1


@dataclass(frozen=True)
class Sight:
    """What one look saw: the jobs, the gangs that are up, the lines of the jobs' logs that are new
    since the last look, and the leading controller's holder (None: nobody leads)."""

    jobs: Sequence[Job]
    gangs: Sequence[GangRecord] = ()
    lines: Sequence[tuple[Job, LogLine]] = ()
    leader: str | None = None
    error: str | None = None


class JobWatch:
    """Watches the jobs `ids`; those that have ended are read no more."""

    def __init__(self, parts: Parts, ids: Sequence[str]) -> None:
        self._parts = parts
        self._numbers = dict.fromkeys(ids, 0)
        self._jobs = {job_id: parts.jobs.get(job_id) for job_id in ids}
        self._open = set(ids)
        self._next = 0.0
        self._last = Sight(self.jobs)

    @property
    def jobs(self) -> list[Job]:
        """The jobs as they were last seen, in the order they were asked for."""
        return list(self._jobs.values())

    @property
    def is_over(self) -> bool:
        """Whether all the jobs have ended."""
        return all(job.state.is_terminal for job in self._jobs.values())

    def look(self) -> Sight | None:
        """See how things are; None while it is too early to look again."""
        if time.monotonic() < self._next:
            return None
        started = time.monotonic()
        try:
            self._last = self._see()
        except DatabaseUnavailable as error:
            self._last = replace(self._last, lines=(), error=error.message)
        spent = time.monotonic() - started
        self._next = started + max(INTERVAL_S, spent / LOOKING_PART)
        return self._last

    def _see(self) -> Sight:
        lines: list[tuple[Job, LogLine]] = []
        for job_id in [each for each in self._jobs if each in self._open]:
            job = self._jobs[job_id] = self._parts.jobs.get(job_id)
            new = read_log(self._parts.jobs, self._parts.artifacts, job_id, self._numbers[job_id])
            lines += [(job, line) for line in new]
            if new:
                self._numbers[job_id] = new[-1].number
            if job.state.is_terminal:
                self._open.discard(job_id)
        leader = self._parts.leadership.leader()
        gangs = self._parts.gangs.list()
        is_led = leader is not None and not leader.is_expired
        return Sight(self.jobs, gangs, lines, leader.holder if leader and is_led else None)
