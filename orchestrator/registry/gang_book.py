"""The gangs that there are and were, as their controllers tell it; and who is asked to drain."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.domain.gang import GangOrder
from orchestrator.domain.gang_record import GangRecord
from orchestrator.registry.database import Database
from orchestrator.registry.dialect import insert_into, now
from orchestrator.registry.job_log import clip
from orchestrator.registry.lease_fence import HELD
from orchestrator.registry.names import unknown_name
from orchestrator.registry.tables import gangs, jobs

GangRecords = list[GangRecord]
GangNames = list[str]
STARTING = "starting"
_IS_UP = gangs.c.ended_at.is_(None)


class GangBook:
    """Rows for views; no decision about a job depends on them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._opened: dict[str, dict[str, Any]] = {}  # by this process: what a row begins as

    def open(self, order: GangOrder, holder: str) -> None:
        """A gang is being started. If this does not get through, its first beat does it."""
        values = self._opened[order.name] = {
            "base_fingerprint": order.base_fingerprint,
            "zero_stage": order.zero_stage,
            "sharding": order.sharding,
            "holder": holder,
            "stage": STARTING,
            "num_workers": 0,
            "is_drain_asked": False,
            "step_s": 0.0,
            "tokens_per_s": 0.0,
            "error": None,
            "started_at": now(),
            "seen_at": now(),
            "ended_at": None,
        }
        with self._database.write() as connection:
            connection.execute(_upsert(connection, order.name, values, values))

    def beat(
        self, name: str, stage: str | None, num_workers: int, step_s: float, tokens_per_s: float
    ) -> bool:
        """A gang is up, and how it does; whether it is asked to drain. One that was taken for dead
        is up again, and one whose `open` here did not get through is opened."""
        values = {
            "stage": stage,
            "num_workers": num_workers,
            "step_s": step_s,
            "tokens_per_s": tokens_per_s,
            "seen_at": now(),
            "ended_at": None,
            "error": None,
        }
        first = self._opened.get(name)
        with self._database.write() as connection:
            statement = (
                _upsert(connection, name, {**first, **values}, values)
                if first
                else update(gangs).where(gangs.c.name == name).values(values)
            )
            asked = connection.execute(statement.returning(gangs.c.is_drain_asked))
            return bool(asked.scalar_one_or_none())

    def close(self, name: str, error: str | None = None) -> None:
        """A gang has ended; `error` says why, if it should not have. Again, it changes nothing."""
        with self._database.write() as connection:
            _end(connection, [name], error)
        self._opened.pop(name, None)

    def ask_drain(self, name: str) -> None:
        """Ask a gang to end once its jobs are stored; raise UnknownName if none such is up."""
        statement = update(gangs).where(gangs.c.name == name, _IS_UP).values(is_drain_asked=True)
        with self._database.write() as connection:
            if connection.execute(statement).rowcount == 0:
                names = select(gangs.c.name).where(_IS_UP).order_by(gangs.c.name)
                known = connection.execute(names).scalars().all()
                raise unknown_name("gang up", name, known, "See `tutti gangs list`.")

    def list(self, include_ended: bool = False, limit: int = 100) -> GangRecords:
        """Gangs, the newest first."""
        num_jobs = (
            select(func.count())
            .where(jobs.c.gang == gangs.c.name, jobs.c.state.in_(HELD))
            .scalar_subquery()
            .label("num_jobs")
        )
        query = select(gangs, num_jobs).order_by(gangs.c.started_at.desc(), gangs.c.name)
        if not include_ended:
            query = query.where(_IS_UP)
        with self._database.read() as connection:
            return [_record(row) for row in connection.execute(query.limit(limit))]

    def bury(self, is_dead: Callable[[str], bool], lease_s: float) -> GangNames:
        """Close the gangs whose holder `is_dead`, or that were not seen for `lease_s` seconds;
        their names. Holders are asked about outside of any transaction."""
        unseen = (gangs.c.seen_at <= now(-lease_s)).label("unseen")
        query = select(gangs.c.name, gangs.c.holder, unseen).where(_IS_UP)
        with self._database.read() as connection:
            up = connection.execute(query.order_by(gangs.c.name)).all()
        dead = {holder for holder in {row.holder for row in up} if is_dead(holder)}
        orphans = [row.name for row in up if row.holder in dead]
        silent = [row.name for row in up if row.unseen and row.holder not in dead]
        if orphans or silent:
            with self._database.write() as connection:
                _end(connection, orphans, "the controller that ran it is gone")
                _end(connection, silent, f"not heard of for {lease_s:g} s")
        return orphans + silent


def _upsert(
    connection: Connection, name: str, first: dict[str, Any], later: dict[str, Any]
) -> postgresql.Insert | sqlite.Insert:
    """Write `first` where there is no such gang yet, and `later` where there is."""
    statement = insert_into(connection, gangs).values(name=name, **first)
    return statement.on_conflict_do_update(index_elements=[gangs.c.name], set_=later)


def _end(connection: Connection, names: Sequence[str], error: str | None) -> None:
    statement = update(gangs).where(gangs.c.name.in_(names), _IS_UP)
    text = None if error is None else clip(error)
    connection.execute(statement.values(ended_at=now(), error=text, num_workers=0))


def _record(row: Row[Any]) -> GangRecord:
    return GangRecord(**row._mapping)
