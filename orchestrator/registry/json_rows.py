"""Many rows as one parameter: a JSON array, which the database reads as a table.

A parameter for each value takes a driver longer to bind than the database takes to run.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    Insert,
    Text,
    bindparam,
    cast,
    column,
    func,
    insert,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB

from orchestrator.registry.dialect import plain_text

Columns = Sequence[Column[Any]]
_ROWS = bindparam("rows", type_=Text())


def json_rows(dialect: str, columns: Columns) -> FromClause:
    """The rows that the parameter `rows` holds (`dump_rows`), with their `position`."""
    values: list[ColumnElement[Any]]
    if dialect == "sqlite":
        each = func.json_each(_ROWS).table_valued("value", "key")
        values = [func.json_extract(each.c.value, f"$.{of.name}") for of in columns]
    else:
        rows = func.jsonb_array_elements(cast(_ROWS, JSONB))
        each = rows.table_valued(column("value", JSONB()), with_ordinality="key").render_derived()
        values = [cast(each.c.value[of.name].astext, of.type) for of in columns]
    names = [of.name for of in columns]
    named = (value.label(name) for name, value in zip(names, values, strict=True))
    return select(*named, each.c.key.label("position")).subquery("given")


def insert_rows(dialect: str, columns: Columns, **others: ColumnElement[Any]) -> Insert:
    """An INSERT of the rows that the parameter `rows` holds, in their order, into the columns'
    table; `others`: columns with an expression for all rows."""
    given = json_rows(dialect, columns)
    values = select(*(given.c[of.name] for of in columns), *others.values())
    names = [*(of.name for of in columns), *others]
    return insert(columns[0].table).from_select(names, values.order_by(given.c.position))


def dump_rows(columns: Columns, rows: Iterable[Mapping[str, Any]]) -> str:
    """The parameter `rows` of a statement over `json_rows` of the same columns: texts (for columns
    of JSON `dump_json` of a value) and numbers, of which SQLite may round those that are not whole.
    """
    names = [of.name for of in columns]
    return json.dumps([{name: _plain(row[name]) for name in names} for row in rows])


def _plain(value: Any) -> Any:
    return plain_text(value) if isinstance(value, str) else value
