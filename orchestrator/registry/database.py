"""The one database of a registry: opened only on the schema this program was written for.

`write` and `read` are each one transaction (`look` is none): it commits when the block ends, and
an exception in the block leaves nothing behind. A write excludes other writers from its start on
SQLite (BEGIN IMMEDIATE) and by row locks on PostgreSQL.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from orchestrator.registry import migrate
from orchestrator.registry.engine import make_engine, parse_url, transaction
from orchestrator.registry.errors import shown


class Database:
    """Connections to the database at `url`. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        self._url = parse_url(url)
        self._engine = make_engine(self._url)

    @classmethod
    def open(cls, url: str) -> "Database":
        """Open and check the schema; a new embedded database is created and upgraded first.

        Raises SchemaMismatch, InvalidInput (a wrong URL or file) or DatabaseUnavailable.
        """
        if migrate.is_new(url):
            migrate.upgrade(url)
        migrate.check(url)
        return cls(url)

    def __repr__(self) -> str:
        return f"Database({self.address!r})"

    @property
    def address(self) -> str:
        """The URL, without its password."""
        return shown(self._url)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with transaction(self._engine, "IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with transaction(self._engine, "DEFERRED") as connection:
            yield connection

    @contextmanager
    def look(self) -> Iterator[Connection]:
        """For a read of one statement: each sees the database as it is when it runs."""
        with transaction(self._engine, None) as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()
