"""Jobs, their submissions and their options as rows, and back; how one is found."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, Row, Select, select

from orchestrator.domain.digest import short
from orchestrator.domain.errors import IntegrityError, InvalidInput, UnknownName
from orchestrator.domain.job import ArrayPlace, Job, JobOptions, JobState, Submission
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.registry.dialect import in_batches
from orchestrator.registry.tables import job_dependencies, jobs

MIN_PREFIX = 6
ID_DIGITS = 32
_JOB_ID = re.compile(rf"[0-9a-f]{{{MIN_PREFIX},{ID_DIGITS}}}")
_NUM_SHOWN = 5
#: A key of the user's own never equals a submission's digest.
_OWN_KEY = "key:"
#: What a job that is queued anew must not remember of its last end. Its checkpoint's artifact is
#: left to the collection of artifacts that no row names.
FRESH: dict[str, Any] = {
    "state": JobState.QUEUED,
    "faults": 0,
    "progress": {},
    "checkpoint": None,
    "error": None,
    "version": None,
    "outcome": None,
    "started_at": None,
    "finished_at": None,
}


def key_of(submission: Submission, options: JobOptions) -> str:
    """What makes two submissions the same job."""
    return submission.idempotency_key if options.key is None else _OWN_KEY + options.key


def asked_values(submission: Submission, options: JobOptions, owner: str) -> dict[str, Any]:
    """The columns that a submit decides."""
    return {
        "submission": submission_to_json(submission),
        "owner": owner,
        "priority": options.priority,
        "max_attempts": options.max_attempts,
        "time_limit_s": options.time_limit_s,
        "not_before": options.not_before,
        **planning_values(submission),
    }


def planning_values(submission: Submission) -> dict[str, Any]:
    """The columns that plans read."""
    spec = submission.spec
    return {
        "task": spec.task,
        "array": submission.place.array if submission.place else None,
        "base_fingerprint": submission.base_fingerprint,
        "zero_stage": spec.sharding.zero_stage if spec.sharding else None,
        "is_data_parallel": spec.is_data_parallel,
        "num_positions": submission.num_positions,
        "num_bytes": submission.num_bytes,
        "num_steps": max(trial.training.steps for trial in spec.trials().values()),
    }


def submission_to_json(submission: Submission) -> dict[str, Any]:
    return {
        "spec": submission.spec.model_dump(mode="json"),
        "base_fingerprint": submission.base_fingerprint,
        "datasets": dict(submission.datasets),
        "num_rows": dict(submission.num_rows),
        "num_positions": submission.num_positions,
        "nonce": submission.nonce,
        "num_bytes": submission.num_bytes,
        "place": asdict(submission.place) if submission.place else None,
    }


def jobs_from_rows(connection: Connection, rows: Sequence[Row[Any]]) -> list[Job]:
    """The jobs of some rows, with what they wait for."""
    after = fetch_after(connection, [row.id for row in rows])
    return [_job(row, _submission(row), after.get(row.id, ())) for row in rows]


def job_from_row(connection: Connection, row: Row[Any]) -> Job:
    (job,) = jobs_from_rows(connection, [row])
    return job


def fetch_jobs(connection: Connection, ids: Sequence[str], known: Mapping[str, Job]) -> list[Job]:
    """Those of the jobs that there are. A submission changes with the epoch alone, so that of a
    `known` job of the same epoch is not read again."""
    found: list[Job] = []
    for batch in in_batches(ids):
        rows = connection.execute(select(jobs).where(jobs.c.id.in_(batch))).all()
        after = fetch_after(connection, [row.id for row in rows])
        for row in rows:
            old = known.get(row.id)
            is_same = old is not None and old.epoch == row.epoch
            submission = old.submission if old and is_same else _submission(row)
            found.append(_job(row, submission, after.get(row.id, ())))
    return found


def fetch_after(connection: Connection, ids: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """The jobs that each of some jobs waits for; one that waits for none is not in it."""
    found: dict[str, tuple[str, ...]] = {}
    for batch in in_batches(ids):
        query = select(job_dependencies).where(job_dependencies.c.job_id.in_(batch))
        for job_id, after_id in connection.execute(query.order_by(job_dependencies.c.after_id)):
            found[job_id] = (*found.get(job_id, ()), after_id)
    return found


def fetch_job_row(connection: Connection, job_id: str, *, lock: bool = False) -> Row[Any]:
    """The row of a job by its id or a unique prefix of it; raise UnknownName or InvalidInput."""
    remedy = "`tutti jobs list` lists the jobs."
    if not _JOB_ID.fullmatch(job_id):
        raise UnknownName(
            f"{job_id[:40]!r} is not a job id: give {MIN_PREFIX} to {ID_DIGITS} of its hex digits",
            remedy,
        )
    is_it = jobs.c.id == job_id if len(job_id) == ID_DIGITS else jobs.c.id.startswith(job_id)
    query: Select[Any] = select(jobs).where(is_it).limit(_NUM_SHOWN)
    rows = connection.execute(query.with_for_update(key_share=True) if lock else query).all()
    if not rows:
        raise UnknownName(f"there is no job {job_id}", remedy)
    if len(rows) > 1:
        found = ", ".join(sorted(row.id for row in rows))
        raise InvalidInput(f"{job_id} is the start of several jobs: {found}", "Give more digits.")
    return rows[0]


def _job(row: Row[Any], submission: Submission, after: tuple[str, ...]) -> Job:
    return Job(
        id=row.id,
        submission=submission,
        state=JobState(row.state),
        epoch=row.epoch,
        created_at=row.created_at,
        owner=row.owner,
        options=_options(row, after),
        faults=row.faults,
        gang=row.gang,
        is_pause_asked=row.is_pause_asked,
        log=row.log,
        attempts=row.attempts,
        error=row.error,
        version=row.version,
        started_at=row.started_at,
        finished_at=row.finished_at,
        progress=row.progress,
        outcome=row.outcome or {},
        checkpoint=row.checkpoint,
    )


def _options(row: Row[Any], after: tuple[str, ...]) -> JobOptions:
    key = row.idempotency_key
    return JobOptions(
        priority=row.priority,
        max_attempts=row.max_attempts,
        time_limit_s=row.time_limit_s,
        not_before=row.not_before,
        after=after,
        key=key.removeprefix(_OWN_KEY) if key.startswith(_OWN_KEY) else None,
    )


def _submission(row: Row[Any]) -> Submission:
    try:
        spec = TaskSpec.model_validate(row.submission["spec"])
    except ValidationError as error:
        raise IntegrityError(
            f"job {short(row.id)}: its stored spec is none that this program reads: {error}",
            "Finish or cancel the job with the version of Tutti that it was submitted with.",
        ) from error
    place = row.submission.get("place")
    return Submission(
        **{**row.submission, "spec": spec, "place": ArrayPlace(**place) if place else None}
    )
