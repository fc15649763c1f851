"""Which of several processes leads in something: a lease in the database, by the database's time.

Its term grows with every new leader, never with a renewal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select, update

from orchestrator.registry.database import Database
from orchestrator.registry.dialect import insert_into, now
from orchestrator.registry.tables import leadership

CONTROLLER = "controller"
MLFLOW = "mlflow"  # whoever tells it, alone


@dataclass(frozen=True)
class Leader:
    """Who leads, and until when if it is not heard of again."""

    holder: str
    term: int
    expires_at: datetime
    is_expired: bool


class Leadership:
    """The one lease that controllers compete for, or another of that `name`."""

    def __init__(self, database: Database, name: str = CONTROLLER) -> None:
        self._database, self._name = database, name

    def lead(self, holder: str, lease_s: float, is_dead: Callable[[str], bool]) -> int | None:
        """Become or stay the leader for `lease_s` seconds: the term. None: another leads.

        `is_dead` is asked about another leader outside of any transaction.
        """
        found = self.leader()
        other = found.holder if found and found.holder != holder and not found.is_expired else None
        if other is not None and not is_dead(other):
            return None
        with self._database.write() as connection:
            row = _fetch(connection, self._name, lock=True)
            if row is None:
                return _begin(connection, self._name, holder, lease_s)
            is_free = row.holder in (None, holder, other) or row.is_expired
            return _take(connection, self._name, row, holder, lease_s) if is_free else None

    def leader(self) -> Leader | None:
        """The last to lead, unless it resigned."""
        with self._database.read() as connection:
            row = _fetch(connection, self._name)
        return None if row is None or row.holder is None else Leader(**row._mapping)

    def resign(self, holder: str) -> None:
        """Let another lead at once; nothing happens if `holder` does not lead."""
        is_own = (leadership.c.name == self._name, leadership.c.holder == holder)
        with self._database.write() as connection:
            connection.execute(update(leadership).where(*is_own).values(holder=None))


@dataclass(frozen=True)
class Turn:
    """The process `holder`'s turn at something that one process does at a time, in bits that take
    less than `lease_s` seconds."""

    leadership: Leadership
    holder: str
    is_dead: Callable[[str], bool]
    lease_s: float = 60.0

    def take(self) -> bool:
        """Whether it is this process's turn, for `lease_s` seconds from now."""
        return self.leadership.lead(self.holder, self.lease_s, self.is_dead) is not None

    def end(self) -> None:
        """Let another take its turn at once."""
        self.leadership.resign(self.holder)


def _fetch(connection: Connection, name: str, *, lock: bool = False) -> Row[Any] | None:
    is_expired = (leadership.c.expires_at <= now()).label("is_expired")
    columns = (leadership.c.holder, leadership.c.term, leadership.c.expires_at, is_expired)
    query = select(*columns).where(leadership.c.name == name)
    return connection.execute(query.with_for_update() if lock else query).one_or_none()


def _begin(connection: Connection, name: str, holder: str, lease_s: float) -> int | None:
    """The first term; None when another was faster."""
    values = {"name": name, "holder": holder, "term": 1, "expires_at": now(lease_s)}
    statement = insert_into(connection, leadership).values(values)
    first = statement.on_conflict_do_nothing().returning(leadership.c.term)
    return connection.execute(first).scalar_one_or_none()


def _take(connection: Connection, name: str, row: Row[Any], holder: str, lease_s: float) -> int:
    term: int = row.term + (row.holder != holder)
    values = {"holder": holder, "term": term, "expires_at": now(lease_s)}
    connection.execute(update(leadership).where(leadership.c.name == name).values(values))
    return term
