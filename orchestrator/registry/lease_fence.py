"""The fence around every write to a held job: the lease's token and epoch must be the job's own.

A job's epoch grows whenever its lease is taken away, so a write under an old lease changes 0 rows
and raises StaleLease. Which state may follow which is the domain's TRANSITIONS alone.
"""

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select, update

from orchestrator.domain.digest import short
from orchestrator.domain.errors import StaleLease
from orchestrator.domain.job import TRANSITIONS, JobState, Lease
from orchestrator.registry.tables import jobs

#: The states of a job that somebody holds a lease of.
HELD = (JobState.ADMITTED, JobState.RUNNING)
#: Column values of a job that nobody holds.
NO_LEASE: dict[str, Any] = {"lease_holder": None, "lease_token": None, "lease_expires_at": None}


def states_before(state: JobState) -> list[JobState]:
    """The states a job may come from."""
    return [before for before, after in TRANSITIONS.items() if state in after]


def lease_from_row(row: Row[Any]) -> Lease:
    return Lease(row.id, row.lease_holder, row.lease_token, row.epoch, row.lease_expires_at)


def write_fenced(
    connection: Connection, lease: Lease, states: Collection[JobState], values: dict[str, Any]
) -> Row[Any]:
    """Update the job under `lease` if its state is one of `states`; raise StaleLease if not."""
    statement = (
        update(jobs)
        .where(
            jobs.c.id == lease.job_id,
            jobs.c.lease_token == lease.token,
            jobs.c.epoch == lease.epoch,
            jobs.c.state.in_(states),
        )
        .values(values)
        .returning(*jobs.c)
    )
    row = connection.execute(statement).one_or_none()
    if row is None:
        raise _stale(connection, lease)
    return row


def take_away(
    connection: Connection,
    job_id: str,
    epoch: int,
    values: dict[str, Any],
    *conditions: ColumnElement[bool],
) -> Row[Any] | None:
    """Update a job against its holder's will, if it still is at `epoch`; its epoch grows."""
    statement = (
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.epoch == epoch, *conditions)
        .values({**NO_LEASE, **values, "epoch": epoch + 1})
        .returning(*jobs.c)
    )
    return connection.execute(statement).one_or_none()


def _stale(connection: Connection, lease: Lease) -> StaleLease:
    query = select(jobs.c.state, jobs.c.epoch).where(jobs.c.id == lease.job_id)
    row = connection.execute(query).one_or_none()
    found = f"the job is {row.state} at epoch {row.epoch}" if row else "there is no such job"
    return StaleLease(
        f"job {short(lease.job_id)}: {lease.holder} may not write at epoch {lease.epoch}: {found}",
        "Nothing was written. Drop this result and stop working on the job.",
    )
