"""How jobs come into the queue: many in one transaction, each once, and none waits for itself."""

import math
import secrets
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from orchestrator.domain.digest import short
from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.domain.job import RETRIABLE, Job, JobOptions, JobState, Submission
from orchestrator.registry.dialect import database_time, in_batches, insert_into
from orchestrator.registry.job_log import write_lines
from orchestrator.registry.job_rows import (
    FRESH,
    ID_DIGITS,
    asked_values,
    fetch_after,
    jobs_from_rows,
    key_of,
)
from orchestrator.registry.lease_fence import NO_LEASE, move
from orchestrator.registry.tables import job_dependencies, jobs

MAX_PRIORITY = 1_000_000
MAX_ATTEMPTS = 1000
MAX_KEY_CHARS = 200
Asked = Sequence[tuple[Submission, JobOptions]]


def enter_jobs(connection: Connection, asked: Asked, owner: str) -> list[tuple[Job, bool]]:
    """The job of each submission, and whether this call put it into the queue."""
    for _, options in asked:
        check_options(options)
    _require_jobs(connection, sorted({id_ for _, options in asked for id_ in options.after}))
    keys = [key_of(submission, options) for submission, options in asked]
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    entered = _insert(connection, {key: asked[first[key]] for key in first}, owner)
    rows = _fetch_by_key(connection, list(first))
    for key, row in _lock_ended(connection, [rows[key] for key in first.keys() - entered]):
        rows[key] = row
        if row.state in RETRIABLE:
            rows[key] = _enter_again(connection, row, asked[first[key]], owner)
            entered.add(key)
    news = [(rows[key].id, asked[first[key]][1]) for key in first if key in entered]
    _insert_after(connection, news)
    write_lines(connection, [(id_, _words(options, owner)) for id_, options in news])
    found = dict(zip(rows, jobs_from_rows(connection, list(rows.values())), strict=True))
    return [(found[key], key in entered and first[key] == i) for i, key in enumerate(keys)]


def check_options(options: JobOptions) -> None:
    """Raise InvalidInput for options that no job can be run by."""
    check_priority(options.priority)
    if not 1 <= options.max_attempts <= MAX_ATTEMPTS:
        raise InvalidInput(
            f"max_attempts is {options.max_attempts}", f"Give a number from 1 to {MAX_ATTEMPTS}."
        )
    if options.time_limit_s is not None:
        check_time_limit(options.time_limit_s)
    if options.not_before is not None and options.not_before.tzinfo is None:
        raise InvalidInput(f"not_before is {options.not_before}", "Give a time with its time zone.")
    key = options.key
    if key is not None and not (0 < len(key) <= MAX_KEY_CHARS and key.isprintable()):
        raise InvalidInput(
            f"the key is {key[:40]!a}", f"Give 1 to {MAX_KEY_CHARS} printable characters."
        )


def check_time_limit(limit: float) -> None:
    """Raise InvalidInput for a time limit of training that is none."""
    if not (math.isfinite(limit) and limit > 0):
        raise InvalidInput(f"time_limit_s is {limit}", "Give seconds above 0, or none.")


def check_priority(priority: int) -> None:
    """Raise InvalidInput for a priority out of range."""
    if abs(priority) > MAX_PRIORITY:
        raise InvalidInput(
            f"the priority is {priority}", f"Give a number from -{MAX_PRIORITY} to {MAX_PRIORITY}."
        )


def _require_jobs(connection: Connection, ids: Sequence[str]) -> None:
    """Raise UnknownName unless all `ids` are of jobs."""
    for batch in in_batches(ids):
        known = set(connection.execute(select(jobs.c.id).where(jobs.c.id.in_(batch))).scalars())
        unknown = [job_id for job_id in batch if job_id not in known]
        if unknown:
            raise UnknownName(
                f"after: there is no job {unknown[0][:40]!r}",
                f"Give whole job ids, of {ID_DIGITS} hex digits; `tutti jobs list` has them.",
            )


def _insert(
    connection: Connection, asked: dict[str, tuple[Submission, JobOptions]], owner: str
) -> set[str]:
    """Enter the jobs that are not there yet; their keys.

    In the order of the keys: two submits of the same jobs must not wait for each other.
    """
    moment = database_time(connection)
    values = {
        key: _new_values(key, submission, options, owner, moment + timedelta(microseconds=index))
        for index, (key, (submission, options)) in enumerate(asked.items())
    }
    statement = (
        insert_into(connection, jobs)
        .on_conflict_do_nothing(index_elements=[jobs.c.idempotency_key])
        .returning(jobs.c.idempotency_key)
    )
    entered: set[str] = set()
    for keys in in_batches(sorted(values)):
        rows = connection.execute(statement, [values[key] for key in keys])
        entered.update(rows.scalars())
    return entered


def _new_values(
    key: str, submission: Submission, options: JobOptions, owner: str, moment: datetime
) -> dict[str, Any]:
    return {
        "id": secrets.token_hex(ID_DIGITS // 2),
        "idempotency_key": key,
        "epoch": 0,
        "attempts": 0,
        "created_at": moment,
        **FRESH,
        **NO_LEASE,
        **asked_values(submission, options, owner),
    }


def _fetch_by_key(connection: Connection, keys: Sequence[str]) -> dict[str, Row[Any]]:
    rows: dict[str, Row[Any]] = {}
    for batch in in_batches(keys):
        query = select(jobs).where(jobs.c.idempotency_key.in_(batch))
        rows.update((row.idempotency_key, row) for row in connection.execute(query))
    return rows


def _lock_ended(connection: Connection, rows: Sequence[Row[Any]]) -> Iterator[tuple[str, Row[Any]]]:
    """The jobs that may be queued again, locked in the order of their ids, as everywhere; by key
    and as they are under the lock. Held ones are left to their holders' heartbeats."""
    ended = sorted(row.id for row in rows if row.state in RETRIABLE)
    for batch in in_batches(ended):
        query = select(jobs).where(jobs.c.id.in_(batch)).order_by(jobs.c.id)
        for row in connection.execute(query.with_for_update(key_share=True)).all():
            yield row.idempotency_key, row


def _enter_again(
    connection: Connection, row: Row[Any], asked: tuple[Submission, JobOptions], owner: str
) -> Row[Any]:
    """Queue an ended job again in place, as it is asked for now."""
    submission, options = asked
    _refuse_circle(connection, row.id, options.after)
    connection.execute(delete(job_dependencies).where(job_dependencies.c.job_id == row.id))
    values = {**FRESH, **asked_values(submission, options, owner)}
    return move(connection, row, JobState.QUEUED, values)


def _refuse_circle(connection: Connection, job_id: str, after: Sequence[str]) -> None:
    """A job that was there before may be waited for by those that it is to wait for."""
    seen: set[str] = set()
    asked = set(after)
    while asked:
        if job_id in asked:
            raise InvalidInput(f"after: job {short(job_id)} would wait for itself")
        seen |= asked
        waited = fetch_after(connection, sorted(asked)).values()
        asked = {id_ for ids in waited for id_ in ids} - seen


def _insert_after(connection: Connection, news: Sequence[tuple[str, JobOptions]]) -> None:
    values = [
        {"job_id": job_id, "after_id": after_id}
        for job_id, options in news
        for after_id in sorted(set(options.after))
    ]
    if values:
        connection.execute(insert(job_dependencies), values)


def _words(options: JobOptions, owner: str) -> str:
    waits = [f"job {short(job_id)}" for job_id in options.after]
    if options.not_before is not None:
        waits.insert(0, f"{options.not_before.isoformat(' ', 'seconds')}")
    return f"submitted by {owner}" + (f"; waits for {', '.join(waits)}" if waits else "")
