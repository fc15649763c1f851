"""A version's metrics as rows, written in the version's transaction and never changed.

The key is (name, version): a metric's values lie in the order of the versions, newest last, so a
page of the newest versions with a good enough value is one walk, whatever the registry's size.
"""

from collections.abc import Mapping

from sqlalchemy import Connection, insert

from orchestrator.registry.dialect import plain_text
from orchestrator.registry.tables import version_metrics

_INSERT = insert(version_metrics)


def add_metrics(connection: Connection, metrics: Mapping[int, Mapping[str, float]]) -> None:
    """Write the metrics of new versions, by the ids of their rows."""
    rows = [
        {"name": name, "version_id": version_id, "value": value}
        for version_id, values in metrics.items()
        for name, value in {plain_text(name): float(v) for name, v in values.items()}.items()
    ]
    if rows:
        connection.execute(_INSERT, rows)
