"""Which artifacts the database names: as collection must see it, and as a check reports it.

Collection asks conservatively: whatever stands anywhere in the database and looks like a digest is
named, so a table or a key of tomorrow is safe before anybody thinks of it here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Connection, String, Table, cast, select

from orchestrator.registry.database import Database
from orchestrator.registry.dialect import PlainText
from orchestrator.registry.tables import jobs, metadata, prompt_versions

_DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
BATCH_SIZE = 10_000


@dataclass(frozen=True)
class Reference:
    """An artifact that something names. `num_bytes` is None where the database does not say."""

    digest: str
    by: str
    role: str
    num_bytes: int | None = None


class References:
    """Reads only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def digests(self) -> frozenset[str]:
        """Every digest that stands anywhere in the database."""
        found: set[str] = set()
        with self._database.read() as connection:
            for table in metadata.sorted_tables:
                for text in _texts(connection, table):
                    found.update(_DIGEST.findall(text))
        return frozenset(found)

    def list(self) -> list[Reference]:
        """The artifacts that versions and jobs need: weights, curves, checkpoints, logs, data.

        Raises ValueError, TypeError, KeyError or AttributeError for rows that were tampered with.
        """
        with self._database.read() as connection:
            return [*_of_versions(connection), *_of_jobs(connection)]


def _texts(connection: Connection, table: Table) -> Iterator[str]:
    columns = [
        cast(column, String())
        for column in table.columns
        if isinstance(column.type, JSON | PlainText | String)
    ]
    if not columns:
        return
    query = select(*columns).execution_options(yield_per=BATCH_SIZE)
    for row in connection.execute(query):
        yield "\n".join(value for value in row if value)


def _of_versions(connection: Connection) -> Iterator[Reference]:
    columns = (prompt_versions.c.task, prompt_versions.c.number, prompt_versions.c.artifacts)
    query = select(*columns).execution_options(yield_per=BATCH_SIZE)
    for task, number, artifacts in connection.execute(query):
        for role, each in artifacts.items():
            yield Reference(each["digest"], f"{task}@{number}", role, each["num_bytes"])


def _of_jobs(connection: Connection) -> Iterator[Reference]:
    columns = (jobs.c.id, jobs.c.checkpoint, jobs.c.log, jobs.c.submission)
    query = select(*columns).execution_options(yield_per=BATCH_SIZE)
    for job_id, checkpoint, log, submission in connection.execute(query):
        named: dict[str, Any] = {"checkpoint": checkpoint, "log": log}
        named |= {f"{split} data": digest for split, digest in submission["datasets"].items()}
        for role, digest in named.items():
            if digest is not None:
                yield Reference(digest, f"job {job_id}", role)
