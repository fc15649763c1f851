"""One unchanging view of the whole database, however long one reads it."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, text

from orchestrator.registry.database import Database


@contextmanager
def snapshot(database: Database) -> Iterator[Connection]:
    """A transaction that reads, and sees what was committed before it and nothing later: on SQLite
    every reading transaction is one."""
    with database.read() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        yield connection
