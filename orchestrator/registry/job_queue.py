"""The job queue: submitted once, held by one holder at a time, never lost.

Each method is one transaction, and each change of state is in the job's log in plain words. A claim
gives a lease; its holder writes only through lease_fence.py. The lease's clock is the database's. A
job whose holder is gone goes back into the queue with `reclaim`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select

from orchestrator.domain.job import (
    Attempt,
    Beat,
    Fault,
    Job,
    JobOptions,
    JobState,
    Lease,
    LogLine,
    QueuedJob,
    QueueStats,
    Quota,
    Submission,
)
from orchestrator.registry import job_control
from orchestrator.registry.attempt_rows import end_attempt, fetch_attempts
from orchestrator.registry.database import Database
from orchestrator.registry.dialect import in_batches, now
from orchestrator.registry.job_claims import (
    fetch_held,
    fetch_strays,
    give_back,
    renew,
    return_strays,
    stop_paused,
    take,
    take_back,
)
from orchestrator.registry.job_entry import enter_jobs
from orchestrator.registry.job_log import (
    archive_lines,
    clip,
    fetch_lines,
    fetch_new_lines,
    fetch_unarchived,
    note_lines,
    write_lines,
)
from orchestrator.registry.job_rows import fetch_job_row, fetch_jobs, job_from_row, jobs_from_rows
from orchestrator.registry.job_views import (
    fetch_listed,
    fetch_planned_held,
    fetch_ready,
    fetch_stats,
)
from orchestrator.registry.lease_fence import HELD, lease_from_row, lock_fenced, move, write_fenced
from orchestrator.registry.quota_rows import fetch_quotas, write_quota

Jobs = list[Job]
Attempts = list[Attempt]
LogLines = list[LogLine]
LinesOfJobs = list[tuple[str, LogLine]]
QueuedJobs = list[QueuedJob]
Quotas = list[Quota]
JobIds = list[str]


class JobQueue:
    """Every read and write of jobs but their completion, which registers a version as well."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def submit(
        self, submission: Submission, owner: str, options: JobOptions | None = None
    ) -> tuple[Job, bool]:
        """The job of this submission, and whether this call put it into the queue.

        The same submission (or key) is the same job. One that failed or was cancelled is queued
        again in place, afresh and as it is asked for now. InvalidInput, UnknownName: see
        `submit_all`.
        """
        (entered,) = self.submit_all([(submission, options or JobOptions())], owner)
        return entered

    def submit_all(
        self, asked: Sequence[tuple[Submission, JobOptions]], owner: str
    ) -> list[tuple[Job, bool]]:
        """Submit many, all or none. They queue in their order.

        Raises InvalidInput (options out of range, a job that would wait for itself) or UnknownName
        (`after` names no job); nothing is written then.
        """
        with self._database.write() as connection:
            return enter_jobs(connection, asked, owner)

    def get(self, job_id: str) -> Job:
        """By id, or a unique prefix of at least 6 hex digits; raise UnknownName."""
        with self._database.read() as connection:
            return job_from_row(connection, fetch_job_row(connection, job_id))

    def get_all(self, job_ids: Sequence[str], known: Mapping[str, Job] | None = None) -> Jobs:
        """Those of the jobs (whole ids) that there are, in no order. Reading a submission takes
        most of the time: that of a `known` job is taken over where its epoch is the same."""
        with self._database.read() as connection:
            return fetch_jobs(connection, job_ids, known or {})

    def attempts(self, job_id: str) -> Attempts:
        """The job's attempts, first to last."""
        with self._database.read() as connection:
            return fetch_attempts(connection, fetch_job_row(connection, job_id).id)

    def list(
        self,
        states: Collection[JobState] | None = None,
        task: str | None = None,
        owner: str | None = None,
        limit: int = 100,
        array: str | None = None,
    ) -> Jobs:
        """Jobs, newest first."""
        with self._database.read() as connection:
            rows = fetch_listed(connection, states, task, owner, limit, array)
            return jobs_from_rows(connection, rows)

    def ready(self, limit: int | None = None) -> QueuedJobs:
        """What may be claimed now: queued, due, and all it waits for has succeeded. Highest
        priority first, then oldest."""
        with self._database.read() as connection:
            return fetch_ready(connection, limit)

    def held(self) -> QueuedJobs:
        """The jobs that are admitted or running, oldest first."""
        with self._database.read() as connection:
            return fetch_planned_held(connection)

    def now(self) -> datetime:
        """The time that all of the queue goes by: the database's."""
        with self._database.read() as connection:
            return connection.execute(select(now())).scalar_one()

    def stats(self) -> QueueStats:
        with self._database.read() as connection:
            return fetch_stats(connection)

    def quotas(self) -> Quotas:
        """The owners' quotas; an owner without one has no bound, and a share of 1."""
        with self._database.read() as connection:
            return fetch_quotas(connection)

    def set_quota(self, owner: str, max_running: int | None = None, share: float = 1.0) -> None:
        """Set an owner's part of the cluster; raise InvalidInput."""
        with self._database.write() as connection:
            write_quota(connection, Quota(owner, max_running, share))

    def claim(
        self, job_ids: Sequence[str], holder: str, lease_s: float, gang: str | None = None
    ) -> dict[str, tuple[Job, Lease]]:
        """Take jobs for `lease_s` seconds; what is not ready any more is not in the answer."""
        with self._database.write() as connection:
            rows = take(connection, job_ids, holder, lease_s, gang)
            leases = [lease_from_row(row) for row in rows]
            taken = zip(jobs_from_rows(connection, rows), leases, strict=True)
            return {job.id: (job, lease) for job, lease in taken}

    def start(self, lease: Lease) -> Job:
        """The holder begins to train: admitted -> running. Again, it changes nothing."""
        with self._database.write() as connection:
            row = lock_fenced(connection, lease)
            if row.state == JobState.ADMITTED:
                values = {"state": JobState.RUNNING, "started_at": now()}
                row = write_fenced(connection, lease, [JobState.ADMITTED], values)
                line = f"attempt {row.attempts}: training has started"
                write_lines(connection, [(row.id, line)])
            return job_from_row(connection, row)

    def heartbeat(
        self,
        leases: Sequence[Lease],
        lease_s: float,
        progress: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Beat:
        """Renew leases to `lease_s` seconds from now, and store `progress` by job id where given.
        A lost lease is told of, never raised."""
        with self._database.write() as connection:
            return renew(connection, leases, lease_s, progress or {})

    def checkpoint(self, lease: Lease, digest: str) -> None:
        """The job's next attempt, if there is one, goes on from the stored state `digest`. It got
        on, so the machine's faults so far do not count any more."""
        with self._database.write() as connection:
            write_fenced(connection, lease, HELD, {"checkpoint": digest, "faults": 0})

    def fail(self, lease: Lease, error: str, fault: Fault = Fault.USER) -> Job:
        """The attempt failed for good: the job is not tried again by itself."""
        error = clip(error)
        with self._database.write() as connection:
            row = move(
                connection, lock_fenced(connection, lease), JobState.FAILED, {"error": error}
            )
            end_attempt(connection, row.id, "failed", error, fault)
            write_lines(connection, [(row.id, f"attempt {row.attempts} failed: {error}")])
            return job_from_row(connection, row)

    def release(self, lease: Lease, cause: str, fault: Fault) -> Job:
        """The holder gives the job back without a result; it is tried again. What PREEMPTION ended
        is queued at once, without limit. What the MACHINE ended is queued after retry_pause_s,
        and fails when that has happened `max_attempts` times in a row. A job whose pause was
        asked is paused instead of queued."""
        assert fault is not Fault.USER, "the user's own faults fail"
        with self._database.write() as connection:
            row = give_back(connection, lock_fenced(connection, lease), "released", cause, fault)
            return job_from_row(connection, row)

    def paused(self, lease: Lease) -> Job:
        """The holder has stopped because the job's pause was asked; queued if it was resumed."""
        with self._database.write() as connection:
            return job_from_row(connection, stop_paused(connection, lock_fenced(connection, lease)))

    def reclaim(self, is_dead: Callable[[str], bool]) -> Jobs:
        """Take back the jobs whose holder `is_dead`, or whose lease has expired: the machine's
        fault, as in `release`.

        Each holder is asked about once, outside of any transaction; a lease that was renewed
        meanwhile is left alone.
        """
        with self._database.read() as connection:
            held = fetch_held(connection)
        dead = {holder for holder in {row.lease_holder for row in held} if is_dead(holder)}
        lost = {row.id: row.epoch for row in held if row.lease_holder in dead or row.expired}
        found: Jobs = []
        for ids in in_batches(sorted(lost)):  # each its own transaction: others write in between
            with self._database.write() as connection:
                rows = take_back(connection, {job_id: lost[job_id] for job_id in ids}, dead)
                found += jobs_from_rows(connection, rows)
        return found

    def disown(self, holder: str, known: Collection[str]) -> Jobs:
        """Give back what `holder` holds by the queue but does not know of: the answer to a claim
        may be lost, though it was written. For the holder's own use; `known` are the ids of all
        jobs whose leases it has."""
        with self._database.read() as connection:
            strays = fetch_strays(connection, holder, known)
        found: Jobs = []
        for ids in in_batches(strays):
            with self._database.write() as connection:
                found += jobs_from_rows(connection, return_strays(connection, holder, ids))
        return found

    def cancel(self, job_id: str, actor: str) -> Job:
        """End a job as cancelled; its holder's next write raises StaleLease. Cancelling twice
        changes nothing. Like all that follow: by id or prefix; what the job's state does not allow
        raises InvalidInput."""
        with self._database.write() as connection:
            return job_from_row(connection, job_control.cancel_job(connection, job_id, actor))

    def pause(self, job_id: str, actor: str) -> Job:
        """A queued job is paused at once; the holder of a held one is asked to stop."""
        with self._database.write() as connection:
            return job_from_row(connection, job_control.pause_job(connection, job_id, actor))

    def resume(self, job_id: str, actor: str) -> Job:
        """Queue a paused job again; of a held one, take back the wish to pause it."""
        with self._database.write() as connection:
            return job_from_row(connection, job_control.resume_job(connection, job_id, actor))

    def retry(self, job_id: str, actor: str, time_limit_s: float | None = None) -> Job:
        """Queue a failed or cancelled job again, at once. It goes on from its last checkpoint, and
        what it trained until then counts: one that its time limit ended needs a higher one."""
        with self._database.write() as connection:
            row = job_control.retry_job(connection, job_id, actor, time_limit_s)
            return job_from_row(connection, row)

    def set_priority(self, job_id: str, priority: int, actor: str) -> Job:
        with self._database.write() as connection:
            row = job_control.prioritize_job(connection, job_id, priority, actor)
            return job_from_row(connection, row)

    def settle_dependents(self) -> Jobs:
        """Cancel the jobs that wait for one that failed or was cancelled."""
        with self._database.write() as connection:
            return jobs_from_rows(connection, job_control.cancel_dependents(connection))

    def log(self, job_id: str, after: int = 0) -> LogLines:
        """What happened to a job, after the line numbered `after`; not what is archived."""
        with self._database.read() as connection:
            return fetch_lines(connection, fetch_job_row(connection, job_id).id, after)

    def log_of(self, after: Mapping[str, int]) -> LinesOfJobs:
        """The jobs' (whole ids) log lines after the ones that are given, with the job's id, in the
        order of their numbers; not what is archived."""
        with self._database.read() as connection:
            return fetch_new_lines(connection, after)

    def note(self, lines: Sequence[tuple[str, str]]) -> None:
        """Add (job id, text) to the jobs' logs; a job that is not there is passed by."""
        with self._database.write() as connection:
            note_lines(connection, lines)

    def unarchived(self, limit: int = 100) -> JobIds:
        """The ids of jobs that have ended and whose log has lines in the database."""
        with self._database.read() as connection:
            return fetch_unarchived(connection, limit)

    def archive(self, job_id: str, digest: str, last: int | None = None) -> bool:
        """The log up to the line numbered `last` (None: all) is the artifact `digest` now, and its
        rows are deleted. Changes nothing and gives False where the job has not ended."""
        with self._database.write() as connection:
            return archive_lines(connection, job_id, digest, last)
