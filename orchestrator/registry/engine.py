"""Makes the engine of a database URL: SQLite in a file, or PostgreSQL through psycopg; no other.

SQLite's transactions are begun here by hand, since Python's sqlite3 does not begin one for DDL or
for reading (docs.sqlalchemy.org, 'Serializable isolation / Savepoints / Transactional DDL').
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, InterfaceError
from sqlalchemy.exc import OperationalError as SqlOperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from orchestrator.domain.errors import InvalidInput, TuttiError
from orchestrator.registry.dialect import dump_json, sqlite_utc_after
from orchestrator.registry.errors import explain, is_denied, shown

BUSY_TIMEOUT_S = 30
EXAMPLES = "Write sqlite:////absolute/path.db or postgresql://user:password@host:5432/name."
BeginMode = Literal["DEFERRED", "IMMEDIATE", "EXCLUSIVE"]
_BEGIN_MODE = "tutti_begin_mode"
#: SQLSTATEs (PostgreSQL's documentation, appendix A): a transaction that idled or lasted for too
#: long, a server that is read-only after a failover, shut down or starting; connections, resources.
_AWAY = frozenset({"25P03", "25P04", "25006", "57P01", "57P02", "57P03", "57P04", "57P05"})
_AWAY_CLASSES = frozenset({"08", "53"})
# TCP must not hang longer than a lease: a dead server shows within half a minute.
_POSTGRESQL = {"connect_timeout": 10, "tcp_user_timeout": 30_000, "application_name": "tutti"}


def parse_url(text: str) -> URL:
    """Read a database URL; raise InvalidInput without repeating what may hold a password."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise InvalidInput("the database URL cannot be read", EXAMPLES) from error
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise InvalidInput(
            f"{shown(url)}: {url.drivername!r} databases are not supported", EXAMPLES
        )
    if url.get_backend_name() == "sqlite":
        name = url.database or ""
        if name in ("", ":memory:") or name.startswith("file:"):
            raise InvalidInput(f"{shown(url)}: an SQLite database must be a plain file", EXAMPLES)
    return url


def sqlite_path(url: URL) -> Path | None:
    """The file of an embedded database; None for a server."""
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def create_folder(url: URL) -> None:
    """Create the folder of an embedded database."""
    path = sqlite_path(url)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TuttiError(
            f"{path.parent}: the database's folder cannot be created: {error.strerror}",
            "Give a database URL in a folder you may write.",
        ) from error


def make_engine(url: URL) -> Engine:
    """The engine of a parsed URL. It connects on first use."""
    if url.get_backend_name() == "sqlite":
        engine = create_engine(
            url,
            json_serializer=dump_json,
            hide_parameters=True,
            connect_args={"timeout": BUSY_TIMEOUT_S},
        )
        event.listen(engine, "connect", partial(_prepare_sqlite, Path(url.database or "")))
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = create_engine(
        url,
        json_serializer=dump_json,
        hide_parameters=True,
        pool_pre_ping=True,
        connect_args={key: value for key, value in _POSTGRESQL.items() if key not in url.query},
    )
    event.listen(engine, "connect", _prepare_postgresql)
    return engine


@contextmanager
def transaction(engine: Engine, mode: BeginMode | None) -> Iterator[Connection]:
    """One transaction; a failure of the database itself becomes a TuttiError. `mode`: SQLite's.
    None: each statement by itself, which saves a server's client two round trips."""
    options: dict[str, Any] = {_BEGIN_MODE: mode}
    if mode is None and engine.dialect.name == "postgresql":
        options["isolation_level"] = "AUTOCOMMIT"
    try:
        with engine.connect() as connection:
            connection = connection.execution_options(**options)
            with connection.begin():
                yield connection
    except (SqlOperationalError, InterfaceError, PoolTimeout) as error:
        raise explain(error, engine.url) from error
    except DBAPIError as error:
        # Its subclasses mean a wrong statement, which is our bug; itself, a damaged file.
        if type(error) is DatabaseError or _is_away(error) or is_denied(error):
            raise explain(error, engine.url) from error
        raise


def _is_away(error: DBAPIError) -> bool:
    """Whether the server ended it, and not the statement: psycopg has InternalError for some."""
    code = str(getattr(error.orig, "sqlstate", None) or "")
    return error.connection_invalidated or code in _AWAY or code[:2] in _AWAY_CLASSES


def _prepare_sqlite(path: Path, connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None
    connection.create_function("utc_after", 1, sqlite_utc_after)
    with _lock_folder(path.parent):
        connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """SQLite fails at once, without waiting, when two processes turn WAL on in a new file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _begin_sqlite(connection: Connection) -> None:
    mode = connection.get_execution_options().get(_BEGIN_MODE, "DEFERRED")
    if mode is not None:
        connection.exec_driver_sql(f"BEGIN {mode}")


def _prepare_postgresql(connection: Any, entry: ConnectionPoolEntry) -> None:
    """A stopped process must not hold locks for ever, nor a waiting one wait for ever."""
    connection.autocommit = True
    connection.execute(f"SET lock_timeout = '{BUSY_TIMEOUT_S}s'")
    connection.execute("SET idle_in_transaction_session_timeout = '60s'")
    connection.autocommit = False
