"""What happened to each job, in plain words, written in the transaction in which it happened.

Lines are numbered under the lock of their job's row, so a reader who goes on after the last number
it saw misses none. The log of a job that has ended moves into an artifact.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, delete, func, insert, select, update

from orchestrator.domain.job import JobState, LogLine
from orchestrator.registry.dialect import in_batches, now
from orchestrator.registry.tables import job_log, jobs

ENDS = tuple(state for state in JobState if state.is_terminal)
#: A longer text keeps its end, where a traceback says what happened.
MAX_TEXT_CHARS = 20_000


def clip(text: str) -> str:
    return text[-MAX_TEXT_CHARS:]


def write_lines(connection: Connection, lines: Sequence[tuple[str, str]]) -> None:
    """Add (job id, text) to the logs of jobs whose rows the caller has locked."""
    values = [{"job_id": job_id, "text": clip(text)} for job_id, text in lines]
    if values:
        connection.execute(insert(job_log).values(at=now()), values)


def note_lines(connection: Connection, lines: Sequence[tuple[str, str]]) -> None:
    """Add (job id, text) to the logs; a job that is not there has none."""
    found: set[str] = set()
    for ids in in_batches(sorted({job_id for job_id, _ in lines})):
        query = select(jobs.c.id).where(jobs.c.id.in_(ids)).order_by(jobs.c.id)
        found.update(connection.execute(query.with_for_update(key_share=True)).scalars())
    write_lines(connection, [line for line in lines if line[0] in found])


def fetch_lines(connection: Connection, job_id: str, after: int) -> list[LogLine]:
    """The lines of a job that come after the one numbered `after`."""
    query = (
        select(job_log.c.number, job_log.c.at, job_log.c.text)
        .where(job_log.c.job_id == job_id, job_log.c.number > after)
        .order_by(job_log.c.number)
    )
    return [LogLine(**row) for row in connection.execute(query).mappings()]


def fetch_new_lines(connection: Connection, after: Mapping[str, int]) -> list[tuple[str, LogLine]]:
    """The lines of many jobs, each job's after the given one, in their order; in few statements."""
    number, found = job_log.c.number, []
    for batch in in_batches(sorted(after)):
        last = select(job_log.c.job_id, func.max(number)).where(job_log.c.job_id.in_(batch))
        rows = connection.execute(last.group_by(job_log.c.job_id))
        new = [job_id for job_id, highest in rows if highest > after[job_id]]
        if new:
            query = select(job_log).where(job_log.c.job_id.in_(new))
            query = query.where(number > min(after[job_id] for job_id in new))
            found += [row for row in connection.execute(query) if row.number > after[row.job_id]]
    found.sort(key=lambda row: row.number)
    return [(row.job_id, LogLine(row.number, row.at, row.text)) for row in found]


def archive_lines(connection: Connection, job_id: str, digest: str, last: int | None) -> bool:
    """Note that a terminal job's lines up to `last` (None: all) are in `digest`; delete them."""
    lock = select(jobs.c.state).where(jobs.c.id == job_id).with_for_update(key_share=True)
    if connection.execute(lock).scalar_one_or_none() not in ENDS:
        return False
    lines = delete(job_log).where(job_log.c.job_id == job_id)
    connection.execute(lines if last is None else lines.where(job_log.c.number <= last))
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(log=digest))
    return True


def fetch_unarchived(connection: Connection, limit: int) -> list[str]:
    """Jobs that have ended and still have lines here, the first to end first."""
    has_lines = select(job_log.c.number).where(job_log.c.job_id == jobs.c.id).exists()
    query = select(jobs.c.id).where(jobs.c.state.in_(ENDS), has_lines)
    order = (jobs.c.finished_at, jobs.c.id)
    return list(connection.execute(query.order_by(*order).limit(limit)).scalars())
