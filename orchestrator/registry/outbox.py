"""What MLflow is still to be told. Rows are written in the transaction of the change they report.

Items of one task come in the order of its changes: they are numbered under the task's lock.
`version_registered` carries {task, number}; `alias_moved` {task, alias, number}; `alias_removed`
{task, alias}.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Literal

from sqlalchemy import Connection, Insert, Row, Select, func, literal, select, update

from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.registry.database import Database
from orchestrator.registry.dialect import dump_json, insert_into, now
from orchestrator.registry.json_rows import dump_rows, insert_rows
from orchestrator.registry.names import unknown_name
from orchestrator.registry.tables import mlflow_links, outbox, prompt_versions

Kind = Literal["version_registered", "alias_moved", "alias_removed"]
OutboxItems = list["OutboxItem"]
_POSTED = (outbox.c.kind, outbox.c.payload)


@dataclass(frozen=True)
class OutboxItem:
    """One fact to deliver. `attempts` counts the failed deliveries, `last_error` is the newest."""

    id: int
    kind: str
    payload: Mapping[str, Any]
    attempts: int
    created_at: datetime
    last_error: str | None = None


class Outbox:
    """The undelivered items, and the MLflow names that deliveries brought back."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pending(self, limit: int = 100) -> OutboxItems:
        """Undelivered items in the order they were written."""
        with self._database.read() as connection:
            return [_item(row) for row in connection.execute(_pending().limit(limit))]

    def oldest_pending(self) -> OutboxItem | None:
        """The item that has waited longest."""
        return next(iter(self.pending(limit=1)), None)

    def num_pending(self) -> int:
        query = select(func.count()).select_from(outbox).where(outbox.c.delivered_at.is_(None))
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()

    def delivered(self, item_id: int) -> None:
        """Mark an item delivered; doing so again changes nothing."""
        statement = (
            update(outbox)
            .where(outbox.c.id == item_id, outbox.c.delivered_at.is_(None))
            .values(delivered_at=now(), last_error=None)
        )
        with self._database.write() as connection:
            connection.execute(statement)

    def failed(self, item_id: int, error: str) -> None:
        """Count a failed delivery; the item stays pending."""
        statement = (
            update(outbox)
            .where(outbox.c.id == item_id, outbox.c.delivered_at.is_(None))
            .values(attempts=outbox.c.attempts + 1, last_error=error)
        )
        with self._database.write() as connection:
            connection.execute(statement)

    def link(
        self, version: PromptVersion | tuple[str, int], run_id: str, model_version: str | None
    ) -> None:
        """Remember (or correct) under which names MLflow knows a version; raise UnknownName."""
        if isinstance(version, PromptVersion):
            version = (version.task, version.number)
        task, number = version
        query = select(prompt_versions.c.id).where(
            prompt_versions.c.task == task, prompt_versions.c.number == number
        )
        names = {"run_id": run_id, "model_version": model_version}
        with self._database.write() as connection:
            version_id = connection.execute(query).scalar_one_or_none()
            if version_id is None:
                raise unknown_name("version", f"{task}@{number}", (), "See `tutti prompts list`.")
            connection.execute(
                insert_into(connection, mlflow_links)
                .values(version_id=version_id, **names)
                .on_conflict_do_update(index_elements=[mlflow_links.c.version_id], set_=names)
            )


def post(connection: Connection, kind: Kind, payload: Mapping[str, Any]) -> None:
    """Write an item within the caller's transaction."""
    post_all(connection, kind, [payload])


def post_all(connection: Connection, kind: Kind, payloads: Sequence[Mapping[str, Any]]) -> None:
    """Write items in this order."""
    rows = [{"kind": kind, "payload": dump_json(payload)} for payload in payloads]
    statement = _post_statement(connection.dialect.name)
    connection.execute(statement, {"rows": dump_rows(_POSTED, rows)})


@cache
def _post_statement(dialect: str) -> Insert:
    return insert_rows(dialect, _POSTED, attempts=literal(0), created_at=now())


def _pending() -> Select[Any]:
    columns = (outbox.c[name] for name in OutboxItem.__dataclass_fields__)
    return select(*columns).where(outbox.c.delivered_at.is_(None)).order_by(outbox.c.id)


def _item(row: Row[Any]) -> OutboxItem:
    return OutboxItem(**row._mapping)
