"""Registered base models. A name's newest row is the base it means; older rows stay, because
prompt versions are pinned to their base's fingerprint.
"""

from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select

from orchestrator.domain.base_model import BaseModelRecord
from orchestrator.domain.digest import short
from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.registry.database import Database
from orchestrator.registry.dialect import lock_table
from orchestrator.registry.names import require_name, unknown_name
from orchestrator.registry.tables import base_models

BaseModelRecords = list[BaseModelRecord]


class BaseModelRegistry:
    """Names of base models and what they stand for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: BaseModelRecord, replace: bool = False) -> tuple[BaseModelRecord, bool]:
        """Register a base; with its fingerprint there already, return that one and False.

        A name that stands for another fingerprint raises InvalidInput, unless `replace`: then the
        name means the new base, and versions trained on the old one are still found by theirs.
        """
        require_name("base model", record.name)
        with self._database.write() as connection:
            lock_table(connection, base_models)
            known = _current(connection, base_models.c.name == record.name)
            if known and known.fingerprint == record.fingerprint:
                return known, False
            if known and not replace:
                raise InvalidInput(
                    f"the base model {record.name!r} is registered with fingerprint "
                    f"{short(known.fingerprint)}, this one has {short(record.fingerprint)}",
                    "Give it another name, or pass --replace to make the name mean this one.",
                )
            return _insert(connection, record), True

    def get(self, name: str) -> BaseModelRecord:
        """The base a name stands for now; raise UnknownName with close names."""
        with self._database.read() as connection:
            record = _current(connection, base_models.c.name == name)
            if record is not None:
                return record
            names = select(base_models.c.name).distinct().order_by(base_models.c.name)
            known = connection.execute(names).scalars().all()
        raise unknown_name("base model", name, known, "Register one with `tutti base add`.")

    def get_by_fingerprint(self, fingerprint: str) -> BaseModelRecord:
        """The base with this fingerprint, even if its name has moved on; raise UnknownName."""
        query = select(base_models).where(base_models.c.fingerprint == fingerprint)
        with self._database.read() as connection:
            row = connection.execute(query.order_by(base_models.c.id.desc()).limit(1)).first()
        if row is None:
            raise UnknownName(
                f"there is no base model with fingerprint {short(fingerprint)}",
                "Register the base the prompt was trained on with `tutti base add`.",
            )
        return _from_row(row)

    def list(self) -> BaseModelRecords:
        """Each name's current base, by name."""
        newest = select(func.max(base_models.c.id)).group_by(base_models.c.name)
        query = select(base_models).where(base_models.c.id.in_(newest))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(base_models.c.name)).all()
        return [_from_row(row) for row in rows]


def _insert(connection: Connection, record: BaseModelRecord) -> BaseModelRecord:
    """Make `record` its name's newest row; a name that returns to an old base gets a new row."""
    connection.execute(
        delete(base_models).where(
            base_models.c.name == record.name,
            base_models.c.fingerprint == record.fingerprint,
        )
    )
    values = {**vars(record), "files": dict(record.files)}
    statement = insert(base_models).values(values).returning(*base_models.c)
    return _from_row(connection.execute(statement).one())


def _current(connection: Connection, condition: ColumnElement[bool]) -> BaseModelRecord | None:
    query = select(base_models).where(condition).order_by(base_models.c.id.desc()).limit(1)
    row = connection.execute(query).first()
    return None if row is None else _from_row(row)


def _from_row(row: Row[Any]) -> BaseModelRecord:
    values = dict(row._mapping)
    del values["id"]
    return BaseModelRecord(**values)
