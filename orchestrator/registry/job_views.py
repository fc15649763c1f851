"""What scheduling and the views read of all jobs. Plans never read a submission."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from orchestrator.domain.job import JobState, QueuedJob, QueueStats
from orchestrator.registry.dialect import now
from orchestrator.registry.job_claims import is_ready
from orchestrator.registry.lease_fence import HELD
from orchestrator.registry.tables import jobs

# Built once: plans are made several times a second, and making a statement takes its time.
_PLANNED = select(*(jobs.c[name] for name in QueuedJob.__dataclass_fields__))
_READY = _PLANNED.where(is_ready(jobs)).order_by(
    jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id
)
_HELD = _PLANNED.where(jobs.c.state.in_(HELD)).order_by(jobs.c.created_at, jobs.c.id)


def fetch_ready(connection: Connection, limit: int | None) -> list[QueuedJob]:
    """What may be claimed now, the most urgent first."""
    return _planned(connection, _READY if limit is None else _READY.limit(limit))


def fetch_planned_held(connection: Connection) -> list[QueuedJob]:
    """The jobs that somebody holds, the first to be submitted first."""
    return _planned(connection, _HELD)


def fetch_listed(
    connection: Connection,
    states: Collection[JobState] | None,
    task: str | None,
    owner: str | None,
    limit: int,
    array: str | None = None,
) -> list[Row[Any]]:
    """Job rows, newest first."""
    query = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
    if states is not None:
        query = query.where(jobs.c.state.in_(states))
    if task is not None:
        query = query.where(jobs.c.task == task)
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    if array is not None:
        query = query.where(jobs.c.array == array)
    return list(connection.execute(query))


def fetch_stats(connection: Connection) -> QueueStats:
    counted = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    counts = dict.fromkeys(JobState, 0)
    counts |= {JobState(state): count for state, count in connection.execute(counted)}
    oldest = select(func.min(jobs.c.created_at), now()).where(jobs.c.state == JobState.QUEUED)
    created_at, moment = connection.execute(oldest).one()
    age_s = None if created_at is None else max((moment - created_at).total_seconds(), 0.0)
    return QueueStats(counts, age_s)


def _planned(connection: Connection, query: Select[Any]) -> list[QueuedJob]:
    return [QueuedJob(*row) for row in connection.execute(query)]
