"""Jobs and their submissions as rows, and back: how one is found, entered and queued again."""

import re
import secrets
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, Row, Select, select

from orchestrator.domain.digest import short
from orchestrator.domain.errors import IntegrityError, InvalidInput, UnknownName
from orchestrator.domain.job import Job, JobState, Submission
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.registry.dialect import insert_into, now
from orchestrator.registry.tables import jobs

MIN_PREFIX = 6
_JOB_ID = re.compile(rf"[0-9a-f]{{{MIN_PREFIX},32}}")
_NUM_SHOWN = 5
#: What a job that is queued anew must not remember of its last end.
FRESH: dict[str, Any] = {
    "state": JobState.QUEUED,
    "progress": {},
    "checkpoint": None,
    "error": None,
    "version": None,
    "outcome": None,
    "started_at": None,
    "finished_at": None,
}


def submission_to_json(submission: Submission) -> dict[str, Any]:
    return {
        "spec": submission.spec.model_dump(mode="json"),
        "base_fingerprint": submission.base_fingerprint,
        "datasets": dict(submission.datasets),
        "num_rows": dict(submission.num_rows),
        "num_positions": submission.num_positions,
        "nonce": submission.nonce,
    }


def job_from_row(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        submission=_submission(row),
        state=JobState(row.state),
        epoch=row.epoch,
        created_at=row.created_at,
        attempts=row.attempts,
        error=row.error,
        version=row.version,
        started_at=row.started_at,
        finished_at=row.finished_at,
        progress=row.progress,
        outcome=row.outcome or {},
        checkpoint=row.checkpoint,
    )


def insert_job(
    connection: Connection, submission: Submission, asked: dict[str, Any]
) -> Row[Any] | None:
    """Enter a new job into the queue; None when its submission is there already."""
    statement = (
        insert_into(connection, jobs)
        .values(
            id=secrets.token_hex(16),
            idempotency_key=submission.idempotency_key,
            task=submission.spec.task,
            base_fingerprint=submission.base_fingerprint,
            epoch=0,
            attempts=0,
            created_at=now(),
            **FRESH,
            **asked,
        )
        .on_conflict_do_nothing(index_elements=[jobs.c.idempotency_key])
        .returning(*jobs.c)
    )
    return connection.execute(statement).one_or_none()


def fetch_job_row(connection: Connection, job_id: str, *, lock: bool = False) -> Row[Any]:
    """The row of a job by its id or a unique prefix of it; raise UnknownName or InvalidInput."""
    remedy = "`tutti jobs` lists the jobs."
    if not _JOB_ID.fullmatch(job_id):
        raise UnknownName(
            f"{job_id[:40]!r} is not a job id: give {MIN_PREFIX} to 32 of its hex digits", remedy
        )
    query: Select[Any] = select(jobs).where(jobs.c.id.startswith(job_id)).limit(_NUM_SHOWN)
    rows = connection.execute(query.with_for_update() if lock else query).all()
    if not rows:
        raise UnknownName(f"there is no job {job_id}", remedy)
    if len(rows) > 1:
        found = ", ".join(row.id for row in rows)
        raise InvalidInput(f"{job_id} is the start of several jobs: {found}", "Give more digits.")
    return rows[0]


def _submission(row: Row[Any]) -> Submission:
    try:
        spec = TaskSpec.model_validate(row.submission["spec"])
    except ValidationError as error:
        raise IntegrityError(
            f"job {short(row.id)}: its stored spec is none that this program reads: {error}",
            "Finish or cancel the job with the version of Tutti that it was submitted with.",
        ) from error
    return Submission(**{**row.submission, "spec": spec})
