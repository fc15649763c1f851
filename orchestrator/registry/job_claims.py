"""What a holder does with jobs: it takes them, renews its leases, and gives them back.

Of several who claim a job one gets it. All times are the database's.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    bindparam,
    select,
    update,
)

from orchestrator.domain.job import Beat, Fault, JobState, Lease, retry_pause_s
from orchestrator.registry.attempt_rows import begin_attempts, end_attempt
from orchestrator.registry.dialect import in_batches, now
from orchestrator.registry.job_log import write_lines
from orchestrator.registry.lease_fence import HELD, lease_from_row, move, why_stale
from orchestrator.registry.tables import job_dependencies, jobs

LEASE_EXPIRED = "the holder's lease expired"
HOLDER_DIED = "the holder died"
UNKNOWN = "its holder does not know of it"


def is_ready(table: FromClause) -> ColumnElement[bool]:
    """Whether a job may be claimed now."""
    first = jobs.alias("first")
    is_waiting = (
        select(job_dependencies.c.job_id)
        .join(first, first.c.id == job_dependencies.c.after_id)
        .where(job_dependencies.c.job_id == table.c.id, first.c.state != JobState.SUCCEEDED)
        .correlate(table)
        .exists()
    )
    is_due = table.c.not_before.is_(None) | (table.c.not_before <= now())
    return (table.c.state == JobState.QUEUED) & is_due & ~is_waiting


def take(
    connection: Connection, job_ids: Sequence[str], holder: str, lease_s: float, gang: str | None
) -> list[Row[Any]]:
    """Take those of the jobs that are ready; the rows as they are then.

    A job that another transaction is changing is passed by on PostgreSQL.
    """
    queued = jobs.alias("queued")
    token = secrets.token_hex(16)
    taken: list[Row[Any]] = []
    for batch in in_batches(job_ids):
        free = select(queued.c.id).where(queued.c.id.in_(batch), is_ready(queued))
        statement = (
            update(jobs)
            .where(jobs.c.id.in_(free.with_for_update(skip_locked=True, key_share=True, of=queued)))
            .where(jobs.c.lease_token.is_(None))  # queued; by the state SQLite would walk them all
            .values(
                state=JobState.ADMITTED,
                epoch=jobs.c.epoch + 1,
                attempts=jobs.c.attempts + 1,
                lease_holder=holder,
                lease_token=token,
                lease_expires_at=now(lease_s),
                gang=gang,
            )
            .returning(*jobs.c)
        )
        taken.extend(connection.execute(statement))
    taker = f"{gang} ({holder})" if gang else holder
    begin_attempts(connection, taken)
    write_lines(
        connection, [(row.id, f"attempt {row.attempts}: taken by {taker}") for row in taken]
    )
    return taken


def renew(
    connection: Connection,
    leases: Sequence[Lease],
    lease_s: float,
    progress: Mapping[str, Mapping[str, Any]],
) -> Beat:
    """Renew all leases that still are the jobs' own, and store those jobs' progress."""
    rows = _lock(connection, [lease.job_id for lease in leases])
    reasons = {lease.job_id: why_stale(rows.get(lease.job_id), lease) for lease in leases}
    lost = {job_id: reason for job_id, reason in reasons.items() if reason}
    kept = [job_id for job_id in reasons if job_id not in lost]
    renewed: dict[str, Lease] = {}
    for batch in in_batches(kept):
        statement = update(jobs).where(jobs.c.id.in_(batch)).values(lease_expires_at=now(lease_s))
        for row in connection.execute(statement.returning(*_LEASE_COLUMNS)):
            renewed[row.id] = lease_from_row(row)
    told = [{"job": job_id, "new": dict(progress[job_id])} for job_id in kept if job_id in progress]
    if told:
        stored = update(jobs).where(jobs.c.id == bindparam("job"))
        connection.execute(stored.values(progress=bindparam("new")), told)
    asked = frozenset(job_id for job_id in kept if rows[job_id].is_pause_asked)
    return Beat(renewed, lost, asked)


def give_back(
    connection: Connection, row: Row[Any], outcome: str, cause: str, fault: Fault
) -> Row[Any]:
    """End the lease of a locked job without a result: it is queued again, or paused if that was
    asked, or failed when the machine's budget is spent."""
    is_machine = fault is Fault.MACHINE
    faults = row.faults + is_machine
    number = f"attempt {row.attempts}"
    values: dict[str, Any] = {"faults": faults}
    if is_machine and faults >= row.max_attempts:
        state, then = JobState.FAILED, f"failed for good: attempt {faults} of {row.max_attempts}"
        values["error"] = f"{cause} (attempt {faults} of {row.max_attempts})"
    elif row.is_pause_asked:
        state, then = JobState.PAUSED, "paused as asked"
    else:
        state, then = JobState.QUEUED, "queued again"
        pause_s = retry_pause_s(faults) if is_machine else 0.0
        if pause_s:
            values["not_before"] = now(pause_s)
            then += f", next try in {pause_s:g} s"
    moved = move(connection, row, state, values)
    end_attempt(connection, row.id, outcome, cause, fault)
    verb = "lost" if is_machine else "released"
    write_lines(connection, [(row.id, f"{number} {verb}: {cause}; {then}")])
    return moved


def stop_paused(connection: Connection, row: Row[Any]) -> Row[Any]:
    """End the lease of a locked job whose holder stopped, as it was asked to."""
    state, then = JobState.PAUSED, "paused"
    if not row.is_pause_asked:
        state, then = JobState.QUEUED, "stopped to pause, but resumed meanwhile; queued again"
    moved = move(connection, row, state)
    end_attempt(connection, row.id, "paused")
    write_lines(connection, [(row.id, f"attempt {row.attempts} {then}")])
    return moved


def fetch_held(connection: Connection) -> Sequence[Row[Any]]:
    """Id, epoch, holder and `expired` of the jobs that somebody holds."""
    query = select(jobs.c.id, jobs.c.epoch, jobs.c.lease_holder, _EXPIRED)
    return connection.execute(query.where(jobs.c.state.in_(HELD))).all()


def take_back(
    connection: Connection, lost: Mapping[str, int], dead: Collection[str]
) -> list[Row[Any]]:
    """Give back those jobs (id to epoch) that still are lost: a lease may be renewed meanwhile."""
    query: Select[Any] = select(*jobs.c, _EXPIRED).where(jobs.c.id.in_(lost))
    query = query.where(jobs.c.state.in_(HELD)).order_by(jobs.c.id).with_for_update(key_share=True)
    moved: list[Row[Any]] = []
    for row in connection.execute(query).all():
        is_dead = row.lease_holder in dead
        if row.epoch == lost[row.id] and (is_dead or row.expired):
            cause = HOLDER_DIED if is_dead else LEASE_EXPIRED
            moved.append(give_back(connection, row, "reclaimed", cause, Fault.MACHINE))
    return moved


def fetch_strays(connection: Connection, holder: str, known: Collection[str]) -> list[str]:
    """The jobs that `holder` holds by the queue alone: they are not among the `known` ones."""
    query = select(jobs.c.id).where(jobs.c.state.in_(HELD), jobs.c.lease_holder == holder)
    return sorted(set(connection.execute(query).scalars()) - set(known))


def return_strays(connection: Connection, holder: str, job_ids: Sequence[str]) -> list[Row[Any]]:
    """Give back those jobs that `holder` still holds: nobody trains them, nobody is to blame."""
    query: Select[Any] = select(jobs).where(jobs.c.id.in_(job_ids))
    query = query.where(jobs.c.state.in_(HELD), jobs.c.lease_holder == holder)
    rows = connection.execute(query.order_by(jobs.c.id).with_for_update(key_share=True)).all()
    return [give_back(connection, row, "released", UNKNOWN, Fault.PREEMPTION) for row in rows]


def _lock(connection: Connection, job_ids: Sequence[str]) -> dict[str, Row[Any]]:
    """The jobs' rows, locked in the order of their ids, as everywhere."""
    rows: dict[str, Row[Any]] = {}
    for batch in in_batches(sorted(set(job_ids))):
        query: Select[Any] = select(*_LEASE_COLUMNS, jobs.c.state, jobs.c.is_pause_asked)
        query = (
            query.where(jobs.c.id.in_(batch)).order_by(jobs.c.id).with_for_update(key_share=True)
        )
        rows.update((row.id, row) for row in connection.execute(query))
    return rows


_EXPIRED = (jobs.c.lease_expires_at <= now()).label("expired")
_LEASE_COLUMNS = (
    jobs.c.id,
    jobs.c.lease_holder,
    jobs.c.lease_token,
    jobs.c.epoch,
    jobs.c.lease_expires_at,
)
