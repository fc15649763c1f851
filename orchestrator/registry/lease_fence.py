"""The fence around every write to a job: what may follow what, and who may say so.

A held job changes under its lease alone: the lease's token and epoch must be the job's own. The
epoch grows whenever a lease is given or ends, so a write under an old one changes nothing and
raises StaleLease. Which state may follow which is the domain's TRANSITIONS; `move` asserts it.
"""

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, select, update

from orchestrator.domain.digest import short
from orchestrator.domain.errors import StaleLease
from orchestrator.domain.job import RETRIABLE, TRANSITIONS, JobState, Lease
from orchestrator.registry.dialect import now
from orchestrator.registry.tables import jobs

#: The states of a job that somebody holds a lease of.
HELD = (JobState.ADMITTED, JobState.RUNNING)
#: Column values of a job that nobody holds.
NO_LEASE: dict[str, Any] = {
    "lease_holder": None,
    "lease_token": None,
    "lease_expires_at": None,
    "gang": None,
    "is_pause_asked": False,
}


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


def lock_fenced(connection: Connection, lease: Lease) -> Row[Any]:
    """The row of the job under `lease`, locked; raise StaleLease if the lease is not its own."""
    query = select(jobs).where(jobs.c.id == lease.job_id).with_for_update(key_share=True)
    row = connection.execute(query).one_or_none()
    if why_stale(row, lease):
        raise _stale(connection, lease)
    assert row is not None, "a job that is not there is stale"
    return row


def why_stale(row: Row[Any] | None, lease: Lease) -> str | None:
    """Why `lease` is not that of the job's `row`; None if it is."""
    if row is None:
        return "there is no such job"
    is_own = (row.epoch, row.lease_token) == (lease.epoch, lease.token)
    return None if is_own and row.state in HELD else f"the job is {row.state} at epoch {row.epoch}"


def move(
    connection: Connection, row: Row[Any], state: JobState, values: dict[str, Any] | None = None
) -> Row[Any]:
    """Bring a locked job to a state in which nobody holds it. Its epoch grows."""
    before = JobState(row.state)
    is_retry = before in RETRIABLE and state == JobState.QUEUED
    assert state in TRANSITIONS[before] or is_retry, f"{before} -> {state}"
    end = {"finished_at": now()} if state.is_terminal else {}
    changes = {"state": state, "epoch": row.epoch + 1, **NO_LEASE, **end, **(values or {})}
    statement = (
        update(jobs)
        .where(jobs.c.id == row.id, jobs.c.epoch == row.epoch)
        .values(changes)
        .returning(*jobs.c)
    )
    return connection.execute(statement).one()


def _stale(connection: Connection, lease: Lease) -> StaleLease:
    query = select(jobs.c.state, jobs.c.epoch).where(jobs.c.id == lease.job_id)
    row = connection.execute(query).one_or_none()
    found = f"the job is {row.state} at epoch {row.epoch}" if row else "there is no such job"
    return StaleLease(
        f"job {short(lease.job_id)}: {lease.holder} may not write at epoch {lease.epoch}: {found}",
        "Nothing was written. Drop this result and stop working on the job.",
    )
