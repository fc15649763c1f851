"""Every row of the database as lines of JSON, and back: the same for SQLite and PostgreSQL.

Read in one unchanging view, written in one transaction, and only into a database without rows.
The counters that number rows come along: a number that was given once is never given again.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Column, Connection, LargeBinary, Table, insert, select, text

from orchestrator.domain.errors import InvalidInput
from orchestrator.registry.database import Database
from orchestrator.registry.dialect import UtcDateTime, lock_table
from orchestrator.registry.snapshot import snapshot
from orchestrator.registry.tables import metadata

BATCH_SIZE = 1000
Lines = Iterator[str]
#: A table's name -> its lines.
Source = Callable[[str], Iterable[str]]


def table_names() -> list[str]:
    """All tables, each after those that it refers to."""
    return [table.name for table in metadata.sorted_tables]


class OpenDump:
    """A database held still."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def lines(self, table_name: str) -> Lines:
        """A table's rows in the order of their keys, a JSON object a line."""
        table = metadata.tables[table_name]
        query = select(table).order_by(*table.primary_key.columns)
        query = query.execution_options(yield_per=BATCH_SIZE)
        for row in self._connection.execute(query):
            values = {
                column.name: _to_json(column, value)
                for column, value in zip(table.columns, row, strict=True)
            }
            yield json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n"

    def counters(self) -> Mapping[str, int]:
        """The highest number that each numbered table has given, also to rows that are gone."""
        if self._connection.dialect.name == "sqlite":
            rows = self._connection.execute(text("SELECT name, seq FROM sqlite_sequence"))
            return {name: seq for name, seq in rows if name in metadata.tables}
        counters = {}
        for table in metadata.sorted_tables:
            if (sequence := _sequence(self._connection, table)) is not None:
                query = text(
                    f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}"
                )
                counters[table.name] = self._connection.execute(query).scalar_one()
        return {name: number for name, number in counters.items() if number}


@contextmanager
def open_dump(database: Database) -> Iterator[OpenDump]:
    with snapshot(database) as connection:
        yield OpenDump(connection)


def load_dump(database: Database, source: Source, counters: Mapping[str, int]) -> int:
    """Write what `open_dump` gave into a database without rows; return how many rows. All or
    nothing. Raises InvalidInput where there are rows already."""
    with database.write() as connection:
        _require_empty(connection)
        num_rows = sum(
            _load_table(connection, table, source(table.name)) for table in metadata.sorted_tables
        )
        for table in metadata.sorted_tables:
            if (number := counters.get(table.name, 0)) > 0:
                _set_counter(connection, table, number)
    return num_rows


def _require_empty(connection: Connection) -> None:
    for table in metadata.sorted_tables:
        lock_table(connection, table)
        if connection.execute(select(table).limit(1)).first() is not None:
            raise InvalidInput(
                f"the database is not empty: there are rows in {table.name}",
                "Restore into a new one: set TUTTI_HOME or TUTTI_DATABASE_URL to another place.",
            )


def _load_table(connection: Connection, table: Table, lines: Iterable[str]) -> int:
    num_rows = 0
    rows = (_to_row(table, line) for line in lines)
    while batch := list(islice(rows, BATCH_SIZE)):
        connection.execute(insert(table), batch)
        num_rows += len(batch)
    return num_rows


def _to_row(table: Table, line: str) -> dict[str, Any]:
    values = json.loads(line)
    return {column.name: _from_json(column, values[column.name]) for column in table.columns}


def _to_json(column: Column[Any], value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def _from_json(column: Column[Any], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(column.type, UtcDateTime):
        return datetime.fromisoformat(value)
    if isinstance(column.type, LargeBinary):
        return base64.b64decode(value, validate=True)
    return value


def _sequence(connection: Connection, table: Table) -> str | None:
    """The PostgreSQL sequence that numbers a table's rows, quoted; None if none does."""
    column = table.autoincrement_column
    if column is None:
        return None
    query = text("SELECT pg_get_serial_sequence(:table, :column)")
    named = {"table": f'"{table.name}"', "column": column.name}
    sequence: str | None = connection.execute(query, named).scalar_one()
    return sequence


def _set_counter(connection: Connection, table: Table, number: int) -> None:
    if connection.dialect.name == "postgresql":
        if (sequence := _sequence(connection, table)) is not None:
            named = {"sequence": sequence, "number": number}
            connection.execute(text("SELECT setval(:sequence, :number)"), named)
        return
    named = {"name": table.name, "number": number}
    connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), named)
    connection.execute(text("INSERT INTO sqlite_sequence VALUES (:name, :number)"), named)
