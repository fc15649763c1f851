"""What users do with a job, and what becomes of those that wait for it.

Each says in the job's log who did it. What a job's state does not allow raises InvalidInput, which
names the state and what is possible.
"""

from typing import Any

from sqlalchemy import Connection, Row, Select, or_, select, update

from orchestrator.domain.digest import short
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.job import RETRIABLE, JobState
from orchestrator.registry.attempt_rows import end_attempt
from orchestrator.registry.job_entry import check_priority, check_time_limit
from orchestrator.registry.job_log import write_lines
from orchestrator.registry.job_rows import fetch_job_row
from orchestrator.registry.lease_fence import HELD, move, states_before
from orchestrator.registry.tables import job_dependencies, jobs

# Built once: a controller asks several times a second.
_FIRST = jobs.alias("first")
_HOPELESS = (
    select(*jobs.c, _FIRST.c.id.label("first_id"), _FIRST.c.state.label("first_state"))
    .join(job_dependencies, job_dependencies.c.job_id == jobs.c.id)
    .join(_FIRST, _FIRST.c.id == job_dependencies.c.after_id)
    .where(or_(jobs.c.state == JobState.QUEUED, jobs.c.state == JobState.PAUSED))
    .where(_FIRST.c.state.in_(RETRIABLE))
    .order_by(jobs.c.id, _FIRST.c.id)
    .with_for_update(key_share=True, of=jobs)
)


def cancel_job(connection: Connection, job_id: str, actor: str) -> Row[Any]:
    """End a job; cancelling twice changes nothing."""
    row = fetch_job_row(connection, job_id, lock=True)
    if row.state == JobState.CANCELLED:
        return row
    if row.state not in states_before(JobState.CANCELLED):
        raise InvalidInput(f"job {short(row.id)} has already {row.state}: it cannot be cancelled")
    moved = move(connection, row, JobState.CANCELLED)
    end_attempt(connection, row.id, "cancelled", f"by {actor}")
    write_lines(connection, [(row.id, f"cancelled by {actor}")])
    return moved


def pause_job(connection: Connection, job_id: str, actor: str) -> Row[Any]:
    """Pause a queued job at once; ask the holder of a held one to stop. Twice changes nothing."""
    row = fetch_job_row(connection, job_id, lock=True)
    if row.state == JobState.PAUSED or row.is_pause_asked:
        return row
    if row.state in HELD:
        write_lines(connection, [(row.id, f"{actor} asked to pause it")])
        return _set(connection, row, is_pause_asked=True)
    if row.state not in states_before(JobState.PAUSED):
        raise InvalidInput(f"job {short(row.id)} {_had(row)}: it cannot be paused")
    write_lines(connection, [(row.id, f"paused by {actor}")])
    return move(connection, row, JobState.PAUSED)


def resume_job(connection: Connection, job_id: str, actor: str) -> Row[Any]:
    """Queue a paused job again, or take back the wish to pause one that is held."""
    row = fetch_job_row(connection, job_id, lock=True)
    if row.is_pause_asked:
        write_lines(connection, [(row.id, f"{actor} took back the pause")])
        return _set(connection, row, is_pause_asked=False)
    if row.state != JobState.PAUSED:
        raise InvalidInput(
            f"job {short(row.id)} {_had(row)}: only a paused job can be resumed",
            "`tutti jobs retry` queues a failed or cancelled job again."
            if row.state in RETRIABLE
            else "",
        )
    write_lines(connection, [(row.id, f"resumed by {actor}")])
    return move(connection, row, JobState.QUEUED)


def retry_job(
    connection: Connection, job_id: str, actor: str, time_limit_s: float | None
) -> Row[Any]:
    """Queue a failed or cancelled job again, at once; it goes on from its last checkpoint, under
    the new time limit if one is given."""
    if time_limit_s is not None:
        check_time_limit(time_limit_s)
    row = fetch_job_row(connection, job_id, lock=True)
    if row.state not in RETRIABLE:
        raise InvalidInput(
            f"job {short(row.id)} {_had(row)}: only a failed or cancelled job can be retried",
            "`tutti jobs resume` goes on with a paused job."
            if row.state == JobState.PAUSED
            else "",
        )
    _refuse_hopeless(connection, row)
    values: dict[str, Any] = {"faults": 0, "error": None, "not_before": None, "finished_at": None}
    if time_limit_s is not None:
        values["time_limit_s"] = time_limit_s
    write_lines(connection, [(row.id, f"queued again by {actor}")])
    return move(connection, row, JobState.QUEUED, values)


def _refuse_hopeless(connection: Connection, row: Row[Any]) -> None:
    """A job whose first one has failed would be cancelled again at once."""
    query: Select[Any] = (
        select(jobs.c.id, jobs.c.task, jobs.c.state)
        .join(job_dependencies, job_dependencies.c.after_id == jobs.c.id)
        .where(job_dependencies.c.job_id == row.id, jobs.c.state.in_(RETRIABLE))
    )
    first = connection.execute(query.order_by(jobs.c.created_at)).first()
    if first is not None:
        raise InvalidInput(
            f"job {short(row.id)} waits for job {short(first.id)} ({first.task}), which "
            f"{_had(first)}",
            f"Try that one again first: `tutti jobs retry {short(first.id)}`.",
        )


def prioritize_job(connection: Connection, job_id: str, priority: int, actor: str) -> Row[Any]:
    """Set the priority of a job that has not ended; it counts when slots are given out."""
    check_priority(priority)
    row = fetch_job_row(connection, job_id, lock=True)
    if JobState(row.state).is_terminal:
        raise InvalidInput(f"job {short(row.id)} {_had(row)}: its priority matters no more")
    line = f"priority {row.priority} changed to {priority} by {actor}"
    write_lines(connection, [(row.id, line)])
    return _set(connection, row, priority=priority)


def cancel_dependents(connection: Connection) -> list[Row[Any]]:
    """Cancel the jobs that wait for one that failed or was cancelled, and those that wait for
    them, and so on."""
    cancelled: list[Row[Any]] = []
    while found := _fetch_hopeless(connection):
        for row, first_id, first_state in found:
            ended = "failed" if first_state == JobState.FAILED else "was cancelled"
            error = f"waits for job {short(first_id)}, which {ended}"
            cancelled.append(move(connection, row, JobState.CANCELLED, {"error": error}))
            write_lines(connection, [(row.id, f"cancelled: {error}")])
    return cancelled


def _fetch_hopeless(connection: Connection) -> list[tuple[Row[Any], str, str]]:
    """The waiting jobs, locked, each with one that it waits for in vain, and that one's state."""
    rows = {row.id: row for row in reversed(connection.execute(_HOPELESS).all())}
    return [(row, row.first_id, row.first_state) for row in reversed(rows.values())]


def _set(connection: Connection, row: Row[Any], **values: object) -> Row[Any]:
    statement = update(jobs).where(jobs.c.id == row.id).values(values).returning(*jobs.c)
    return connection.execute(statement).one()


def _had(row: Row[Any]) -> str:
    """How a job stands, as a sentence goes on."""
    if row.state in (JobState.SUCCEEDED, JobState.FAILED):
        return f"has already {row.state}"
    return f"is {row.state}"
