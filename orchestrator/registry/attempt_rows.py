"""The record of each execution of a job. At most one attempt of a job is open (no `outcome`)."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from orchestrator.domain.job import Attempt, Fault
from orchestrator.registry.dialect import now
from orchestrator.registry.tables import attempts


def begin_attempts(connection: Connection, claimed: Sequence[Row[Any]]) -> None:
    """Open the attempts of jobs that have just been claimed."""
    values = [
        {
            "job_id": job.id,
            "number": job.attempts,
            "epoch": job.epoch,
            "holder": job.lease_holder,
            "gang": job.gang,
        }
        for job in claimed
    ]
    if values:
        connection.execute(insert(attempts).values(started_at=now()), values)


def end_attempt(
    connection: Connection,
    job_id: str,
    outcome: str,
    cause: str | None = None,
    fault: Fault | None = None,
) -> None:
    """Close the job's open attempt, if it has one."""
    connection.execute(
        update(attempts)
        .where(attempts.c.job_id == job_id, attempts.c.outcome.is_(None))
        .values(outcome=outcome, cause=cause, fault=fault, finished_at=now())
    )


def fetch_attempts(connection: Connection, job_id: str) -> list[Attempt]:
    """A job's attempts, first to last."""
    query = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
    return [_attempt(row) for row in connection.execute(query)]


def _attempt(row: Row[Any]) -> Attempt:
    fault = None if row.fault is None else Fault(row.fault)
    return Attempt(**{**row._mapping, "fault": fault})
