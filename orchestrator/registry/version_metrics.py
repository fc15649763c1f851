"""A version's metrics as rows, written in the version's transaction and never changed.

The key is (name, version): a metric's values lie in the order of the versions, newest last, so a
page of the newest versions with a good enough value is one walk, whatever the registry's size.
"""

from collections.abc import Mapping
from functools import cache

from sqlalchemy import Connection, Insert, insert

from orchestrator.registry.dialect import plain_text
from orchestrator.registry.json_rows import dump_rows, insert_rows
from orchestrator.registry.tables import version_metrics

_INSERT = insert(version_metrics)
_COLUMNS = tuple(version_metrics.c)


def add_metrics(connection: Connection, metrics: Mapping[int, Mapping[str, float]]) -> None:
    """Write the metrics of new versions, by the ids of their rows."""
    rows = [
        {"name": name, "version_id": version_id, "value": value}
        for version_id, values in metrics.items()
        for name, value in {plain_text(name): float(v) for name, v in values.items()}.items()
    ]
    if not rows:
        return
    if connection.dialect.name == "sqlite":  # binds fast, and may round the numbers in a JSON
        connection.execute(_INSERT, rows)
    else:
        statement = _insert_statement(connection.dialect.name)
        connection.execute(statement, {"rows": dump_rows(_COLUMNS, rows)})


@cache
def _insert_statement(dialect: str) -> Insert:
    return insert_rows(dialect, _COLUMNS)
