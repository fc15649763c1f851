"""The job queue: submitted once, held by one holder at a time, never lost.

A claim gives a lease; its holder writes only through lease_fence.py. The lease's clock is the
database's. A job whose holder is gone goes back into the queue with `reclaim`.
"""

import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Row, select, update

from orchestrator.domain.digest import short
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.job import Attempt, Job, JobState, Lease, Submission
from orchestrator.registry.attempt_rows import begin_attempt, end_attempt, fetch_attempts
from orchestrator.registry.database import Database
from orchestrator.registry.dialect import now
from orchestrator.registry.job_rows import (
    FRESH,
    fetch_job_row,
    insert_job,
    job_from_row,
    submission_to_json,
)
from orchestrator.registry.lease_fence import (
    HELD,
    NO_LEASE,
    lease_from_row,
    states_before,
    take_away,
    write_fenced,
)
from orchestrator.registry.tables import jobs

Jobs = list[Job]
Attempts = list[Attempt]
LEASE_EXPIRED = "lease expired"
HOLDER_DIED = "holder died"
#: A longer error keeps its end, where a traceback says what happened.
MAX_ERROR_CHARS = 20_000


class JobQueue:
    """Every read and write of jobs but their completion, which registers a version as well."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def submit(self, submission: Submission, actor: str, priority: int = 0) -> tuple[Job, bool]:
        """The job of this submission, and whether this call put it into the queue.

        The same submission is the same job. One that failed or was cancelled is queued again in
        place (its epoch grows): submitting it anew is how a user asks for another attempt.
        """
        content = submission_to_json(submission)
        asked = {"submission": content, "actor": actor, "priority": priority}
        same = jobs.c.idempotency_key == submission.idempotency_key
        with self._database.write() as connection:
            row = insert_job(connection, submission, asked)
            if row is not None:
                return job_from_row(row), True
            row = connection.execute(select(jobs).where(same).with_for_update()).one()
            if row.state not in (JobState.FAILED, JobState.CANCELLED):
                return job_from_row(row), False
            again = take_away(connection, row.id, row.epoch, {**FRESH, **asked})
            assert again is not None, "the row is locked"
            return job_from_row(again), True

    def get(self, job_id: str) -> Job:
        """By id, or a unique prefix of at least 6 hex digits; raise UnknownName."""
        with self._database.read() as connection:
            return job_from_row(fetch_job_row(connection, job_id))

    def queued(self) -> Jobs:
        """The queue in its order: highest priority first, then oldest."""
        query = select(jobs).where(jobs.c.state == JobState.QUEUED)
        order = (jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)
        with self._database.read() as connection:
            return [job_from_row(row) for row in connection.execute(query.order_by(*order))]

    def attempts(self, job_id: str) -> Attempts:
        """The job's attempts, first to last."""
        with self._database.read() as connection:
            return fetch_attempts(connection, fetch_job_row(connection, job_id).id)

    def claim(self, job_id: str, holder: str, lease_s: float) -> Lease | None:
        """Take a queued job for `lease_s` seconds; None when it is not queued any more."""
        statement = (
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.state == JobState.QUEUED)
            .values(
                state=JobState.ADMITTED,
                epoch=jobs.c.epoch + 1,
                attempts=jobs.c.attempts + 1,
                lease_holder=holder,
                lease_token=secrets.token_hex(16),
                lease_expires_at=now(lease_s),
            )
            .returning(*jobs.c)
        )
        with self._database.write() as connection:
            row = connection.execute(statement).one_or_none()
            if row is None:
                return None
            begin_attempt(connection, row)
            return lease_from_row(row)

    def start(self, lease: Lease) -> Job:
        """The holder begins to train: admitted -> running."""
        values = {"state": JobState.RUNNING, "started_at": now()}
        with self._database.write() as connection:
            before = states_before(JobState.RUNNING)
            return job_from_row(write_fenced(connection, lease, before, values))

    def heartbeat(
        self, lease: Lease, lease_s: float, progress: Mapping[str, Any] | None = None
    ) -> Lease:
        """Renew the lease to `lease_s` seconds from now; store `progress` if given."""
        values: dict[str, Any] = {"lease_expires_at": now(lease_s)}
        if progress is not None:
            values["progress"] = dict(progress)
        with self._database.write() as connection:
            return lease_from_row(write_fenced(connection, lease, HELD, values))

    def checkpoint(self, lease: Lease, digest: str) -> None:
        """The job's next attempt, if there is one, goes on from the stored state `digest`."""
        with self._database.write() as connection:
            write_fenced(connection, lease, HELD, {"checkpoint": digest})

    def fail(self, lease: Lease, error: str) -> Job:
        """The attempt failed for a reason of the job's own; it is not tried again by itself."""
        error = error[-MAX_ERROR_CHARS:]
        values = {"state": JobState.FAILED, "error": error, "finished_at": now(), **NO_LEASE}
        with self._database.write() as connection:
            row = write_fenced(connection, lease, states_before(JobState.FAILED), values)
            end_attempt(connection, lease.job_id, "failed", error)
            return job_from_row(row)

    def release(self, lease: Lease, cause: str) -> Job:
        """The holder gives the job back to the queue."""
        values = {"state": JobState.QUEUED, "epoch": jobs.c.epoch + 1, **NO_LEASE}
        with self._database.write() as connection:
            row = write_fenced(connection, lease, HELD, values)
            end_attempt(connection, lease.job_id, "released", cause)
            return job_from_row(row)

    def cancel(self, job_id: str) -> Job:
        """End a job as cancelled, by id or prefix; its holder's next write raises StaleLease.

        Cancelling twice changes nothing. A job that succeeded or failed raises InvalidInput.
        """
        with self._database.write() as connection:
            row = fetch_job_row(connection, job_id, lock=True)
            if row.state == JobState.CANCELLED:
                return job_from_row(row)
            if row.state not in states_before(JobState.CANCELLED):
                raise InvalidInput(f"job {short(row.id)} has already {row.state}")
            values = {"state": JobState.CANCELLED, "finished_at": now()}
            cancelled = take_away(connection, row.id, row.epoch, values)
            assert cancelled is not None, "the row is locked"
            end_attempt(connection, row.id, "cancelled", None)
            return job_from_row(cancelled)

    def reclaim(self, is_dead: Callable[[str], bool]) -> Jobs:
        """Queue again the jobs whose holder `is_dead`, or whose lease has expired.

        Each holder is asked about once, outside of any transaction; a lease that was renewed
        meanwhile is left alone.
        """
        expired = (jobs.c.lease_expires_at <= now()).label("expired")
        query = select(jobs.c.id, jobs.c.epoch, jobs.c.lease_holder, expired)
        with self._database.read() as connection:
            held = connection.execute(query.where(jobs.c.state.in_(HELD)).order_by(jobs.c.id)).all()
        dead = {holder for holder in {row.lease_holder for row in held} if is_dead(holder)}
        lost = [row for row in held if row.lease_holder in dead or row.expired]
        if not lost:
            return []
        with self._database.write() as connection:
            found = [_reclaim(connection, row, row.lease_holder in dead) for row in lost]
        return [job for job in found if job is not None]

    def list(
        self, states: Collection[JobState] | None = None, task: str | None = None, limit: int = 100
    ) -> Jobs:
        """Jobs, newest first."""
        query = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        if states is not None:
            query = query.where(jobs.c.state.in_(states))
        if task is not None:
            query = query.where(jobs.c.task == task)
        with self._database.read() as connection:
            return [job_from_row(row) for row in connection.execute(query)]


def _reclaim(connection: Connection, held: Row[Any], is_dead: bool) -> Job | None:
    """Queue one job again; None when it is not lost any more."""
    conditions = () if is_dead else (jobs.c.lease_expires_at <= now(),)
    row = take_away(connection, held.id, held.epoch, {"state": JobState.QUEUED}, *conditions)
    if row is None:
        return None
    end_attempt(connection, held.id, "reclaimed", HOLDER_DIED if is_dead else LEASE_EXPIRED)
    return job_from_row(row)
