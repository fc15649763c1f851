"""Looks at jobs as everybody can: in the database. Whoever trains them, it sees the same.

A database that is away is told in the next look, which otherwise repeats the last one.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.bootstrap import Parts
from orchestrator.domain.errors import TuttiError
from orchestrator.domain.gang_record import GangRecord
from orchestrator.domain.job import Job, LogLine
from orchestrator.log_archive import read_log
from orchestrator.registry.errors import DatabaseUnavailable

INTERVAL_S = 0.5
#: Looking takes at most this part of the time.
LOOKING_PART = 0.1
#: Of so many jobs at most, archived logs are read too.
FEW = 20
logger = logging.getLogger("tutti.watch")


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
        self._archives: dict[str, str] = {}
        found = {job.id: job for job in parts.jobs.get_all(ids)}
        self._jobs = {job_id: found.get(job_id) or parts.jobs.get(job_id) for job_id in ids}
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
        watched = [job_id for job_id in self._jobs if job_id in self._open]
        for job in self._parts.jobs.get_all(watched, self._jobs):
            self._jobs[job.id] = job
        lines = [(self._jobs[job_id], line) for job_id, line in self._new_lines(watched)]
        self._numbers.update({job.id: line.number for job, line in lines})
        self._open -= {job_id for job_id in watched if self._jobs[job_id].state.is_terminal}
        leader = self._parts.leadership.leader()
        gangs = self._parts.gangs.list()
        is_led = leader is not None and not leader.is_expired
        return Sight(self.jobs, gangs, lines, leader.holder if leader and is_led else None)

    def _new_lines(self, watched: Sequence[str]) -> list[tuple[str, LogLine]]:
        """What is new in the logs. What was archived is read where few jobs are watched: a
        controller that trains many must not wait for a store."""
        lines = self._parts.jobs.log_of({job_id: self._numbers[job_id] for job_id in watched})
        for job_id in watched if len(self._jobs) <= FEW else ():
            lines += [(job_id, line) for line in self._archived(self._jobs[job_id])]
        found = {line.number: (job_id, line) for job_id, line in lines}
        return [found[number] for number in sorted(found)]

    def _archived(self, job: Job) -> list[LogLine]:
        """The new lines of a job whose log was archived since the last look; each archive once."""
        if job.log is None or job.log == self._archives.get(job.id):
            return []
        self._archives[job.id] = job.log
        parts = self._parts
        try:
            return read_log(parts.jobs, parts.artifacts, job.id, self._numbers[job.id])
        except DatabaseUnavailable:
            raise
        except TuttiError as error:  # a line less to show is no reason to stop training
            logger.warning("a log cannot be read", extra={"job": job.id, "error": str(error)})
            return []
