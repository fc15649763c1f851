"""Where SQLite and PostgreSQL differ: clock, time and text columns, upserts, table locks, JSON.

Every time is the database's own, timezone-aware UTC outside and to the microsecond inside. SQLite
runs in this process and reads the same clock; its `utc_after` function is set up in engine.py.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection, DateTime, Dialect, Float, Table, Text, bindparam, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

T = TypeVar("T")
BATCH_SIZE = 1000
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in and out; SQLite stores it as naive text, whose order is the order of time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value}: a time needs a time zone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class PlainText(TypeDecorator[str]):
    """Text that both databases can hold: NUL and lone surrogates become U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else plain_text(value)


def plain_text(value: str) -> str:
    """`value` as both databases can hold it."""
    # str() makes plain text of a StrEnum, which psycopg would send as its member's name.
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", str(value))


class _After(FunctionElement[datetime]):
    """The database's time, some seconds from now."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(_After, "sqlite")
def _compile_sqlite(element: _After, compiler: SQLCompiler, **kw: Any) -> str:
    return f"utc_after({compiler.process(element.clauses, **kw)})"


@compiles(_After, "postgresql")
def _compile_postgresql(element: _After, compiler: SQLCompiler, **kw: Any) -> str:
    return f"clock_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kw)})"


def now(after_s: float = 0.0) -> FunctionElement[datetime]:
    """An SQL expression: the database's time, `after_s` seconds from now."""
    return _After(bindparam(None, after_s, type_=Float()))


def sqlite_utc_after(seconds: float) -> str:
    """What `utc_after` computes on SQLite, in the form its DateTime columns have."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")


def insert_into(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that can carry ON CONFLICT."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table)
    return postgresql.insert(table)


def database_time(connection: Connection) -> datetime:
    return connection.execute(select(now())).scalar_one()


def in_batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """`items` in parts that fit a statement's number of parameters."""
    for start in range(0, len(items), BATCH_SIZE):
        yield items[start : start + BATCH_SIZE]


def lock_table(connection: Connection, table: Table) -> None:
    """Let no other transaction write `table` until this one ends (always so on SQLite)."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f'LOCK TABLE "{table.name}" IN SHARE ROW EXCLUSIVE MODE'))


def dump_json(value: Any) -> str:
    """JSON text; NaN and infinities, which are not JSON, become null."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
