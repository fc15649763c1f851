"""The record of each execution of a job. At most one attempt of a job is open (no `outcome`)."""

from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from orchestrator.domain.job import Attempt
from orchestrator.registry.dialect import now
from orchestrator.registry.tables import attempts


def begin_attempt(connection: Connection, job: Row[Any]) -> None:
    """Open the attempt of a job that has just been claimed."""
    connection.execute(
        insert(attempts).values(
            job_id=job.id,
            number=job.attempts,
            epoch=job.epoch,
            holder=job.lease_holder,
            started_at=now(),
        )
    )


def end_attempt(connection: Connection, job_id: str, outcome: str, cause: str | None) -> None:
    """Close the job's open attempt, if it has one."""
    connection.execute(
        update(attempts)
        .where(attempts.c.job_id == job_id, attempts.c.outcome.is_(None))
        .values(outcome=outcome, cause=cause, finished_at=now())
    )


def fetch_attempts(connection: Connection, job_id: str) -> list[Attempt]:
    """A job's attempts, first to last."""
    query = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
    return [Attempt(**row) for row in connection.execute(query).mappings()]
