"""Where the database contradicts itself, which its constraints cannot refuse. Reads only; what can
be mended is mended by `Repairs`.

The audit is believed: it is append-only, and an alias is its last promotion's target (none: it was
taken away).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Label, func, select, text, tuple_

from orchestrator.domain.prompt_version import Artifact, Lineage, TrainedPrompt
from orchestrator.registry.database import Database
from orchestrator.registry.snapshot import snapshot
from orchestrator.registry.tables import (
    aliases,
    mlflow_links,
    outbox,
    promotions,
    prompt_versions,
    tasks,
)

BATCH_SIZE = 10_000
Key = tuple[str, str]


@dataclass(frozen=True)
class Fault:
    """A contradiction: its kind, where it is, and what is wrong. Of which task, alias and version
    it is, a repair must know."""

    kind: str
    where: str
    what: str
    task: str = ""
    alias: str = ""
    number: int = 0


@dataclass(frozen=True)
class Link:
    """What MLflow calls a version."""

    task: str
    number: int
    run_id: str
    model_version: str | None


class Consistency:
    """Each method is one look at one unchanging view of the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def damages(self) -> list[Fault]:
        """What SQLite's own check of its file finds; a server checks its files itself."""
        with self._database.read() as connection:
            if connection.dialect.name != "sqlite":
                return []
            lines = connection.execute(text("PRAGMA integrity_check(20)")).scalars().all()
            orphans = connection.execute(text("PRAGMA foreign_key_check")).all()
        found = [Fault("database-damaged", "database", line) for line in lines if line != "ok"]
        return found + [
            Fault(
                "row-orphaned", f"{row[0]} row {row[1]}", f"it names a row of {row[2]} that is gone"
            )
            for row in orphans[:BATCH_SIZE]
        ]

    def aliases(self) -> list[Fault]:
        """Aliases that are not where their last promotion put them, and gaps in the audit."""
        with snapshot(self._database) as connection:
            now, last = _aliases(connection), _last_promotions(connection)
            gaps = list(_gaps(connection))
        differing = [
            key
            for key in sorted(now.keys() | last.keys())
            if now.get(key) != last.get(key) and (key in now or last[key][0] is not None)
        ]
        return [_alias_fault(key, now.get(key), last.get(key)) for key in differing] + gaps

    def counters(self) -> list[Fault]:
        """Tasks whose next number was given already."""
        highest = (
            select(prompt_versions.c.task, func.max(prompt_versions.c.number).label("number"))
            .group_by(prompt_versions.c.task)
            .subquery()
        )
        query = (
            select(tasks.c.name, tasks.c.last_version, highest.c.number)
            .join(highest, highest.c.task == tasks.c.name)
            .where(tasks.c.last_version < highest.c.number)
        )
        with self._database.read() as connection:
            return [
                Fault(
                    "counter-behind",
                    name,
                    f"the counter says {counter}, but there is a version {number}",
                    task=name,
                )
                for name, counter, number in connection.execute(query)
            ]

    def contents(self) -> Iterator[Fault]:
        """Versions whose config, weights or base are not those of their digest."""
        query = select(prompt_versions).execution_options(yield_per=BATCH_SIZE)
        with self._database.read() as connection:
            for row in connection.execute(query):
                if (what := _content_fault(row)) is not None:
                    yield Fault("content-digest", f"{row.task}@{row.number}", what)

    def untold(self) -> list[Fault]:
        """Versions that MLflow does not have, and that nothing waits to tell it of."""
        link = mlflow_links.c.version_id == prompt_versions.c.id
        query = (
            select(prompt_versions.c.task, prompt_versions.c.number)
            .outerjoin(mlflow_links, link)
            .where(mlflow_links.c.version_id.is_(None))
            .order_by(prompt_versions.c.id)
        )
        with snapshot(self._database) as connection:
            waiting = select(outbox.c.payload).where(outbox.c.delivered_at.is_(None))
            told = {
                (payload["task"], payload["number"])
                for payload in connection.execute(waiting).scalars()
                if "number" in payload
            }
            unlinked = [(task, number) for task, number in connection.execute(query)]
        what = "MLflow was never told of it, and nothing waits to be delivered"
        return [
            Fault("mlflow-untold", f"{task}@{number}", what, task=task, number=number)
            for task, number in unlinked
            if (task, number) not in told
        ]

    def links(self) -> list[Link]:
        """What MLflow is said to have."""
        query = (
            select(
                prompt_versions.c.task,
                prompt_versions.c.number,
                mlflow_links.c.run_id,
                mlflow_links.c.model_version,
            )
            .join(mlflow_links, mlflow_links.c.version_id == prompt_versions.c.id)
            .order_by(prompt_versions.c.id)
        )
        with self._database.read() as connection:
            return [Link(*row) for row in connection.execute(query)]

    def stuck(self, min_attempts: int) -> list[Fault]:
        """What waits for MLflow and was refused time and again."""
        query = select(outbox).where(
            outbox.c.delivered_at.is_(None), outbox.c.attempts >= min_attempts
        )
        with self._database.read() as connection:
            return [
                Fault(
                    "outbox-stuck",
                    f"{row.kind} of {row.payload.get('task', 'no task')}",
                    f"{row.attempts} deliveries failed, the last one: {row.last_error}",
                )
                for row in connection.execute(query.order_by(outbox.c.id))
            ]


def _aliases(connection: Connection) -> Mapping[Key, tuple[int, int]]:
    """Each alias's version number and generation."""
    query = select(
        aliases.c.task, aliases.c.alias, prompt_versions.c.number, aliases.c.generation
    ).join(
        prompt_versions,
        (prompt_versions.c.id == aliases.c.version_id) & (prompt_versions.c.task == aliases.c.task),
    )
    return {(task, alias): (to, turn) for task, alias, to, turn in connection.execute(query)}


def _last_promotions(connection: Connection) -> Mapping[Key, tuple[int | None, int]]:
    columns = (promotions.c.task, promotions.c.alias, promotions.c.generation)
    newest = select(*columns[:2], func.max(columns[2])).group_by(*columns[:2])
    query = select(*columns[:2], promotions.c.to_version, columns[2]).where(
        tuple_(*columns).in_(newest)
    )
    return {(task, alias): (to, turn) for task, alias, to, turn in connection.execute(query)}


def _alias_fault(
    key: Key, now: tuple[int, int] | None, last: tuple[int | None, int] | None
) -> Fault:
    where = f"{key[0]}@{key[1]}"
    if last is None:
        what = "it points at a version, but no promotion put it there"
        return Fault("alias-unaudited", where, what)
    at = f"version {now[0]} (move {now[1]})" if now else "nothing, or another task's version"
    to = f"to version {last[0]}" if last[0] else "which took it away"
    what = f"it points at {at}; its last promotion is move {last[1]}, {to}"
    return Fault("alias-differs", where, what, task=key[0], alias=key[1])


def _gaps(connection: Connection) -> Iterator[Fault]:
    """Moves that do not follow on the one before, or lead to no version from none."""
    alias = (promotions.c.task, promotions.c.alias)
    turn = promotions.c.generation

    def before(column: ColumnElement[Any], label: str) -> Label[Any]:
        return func.lag(column).over(partition_by=alias, order_by=turn).label(label)

    moves = select(
        *alias,
        turn,
        promotions.c.from_version,
        promotions.c.to_version,
        before(turn, "before"),
        before(promotions.c.to_version, "left"),
    ).subquery()
    is_next = moves.c.generation == func.coalesce(moves.c.before, 0) + 1
    follows = moves.c.from_version.is_not_distinct_from(moves.c.left)
    exists = (
        select(prompt_versions.c.id)
        .where(
            prompt_versions.c.task == moves.c.task, prompt_versions.c.number == moves.c.to_version
        )
        .exists()
    )
    takes_away = moves.c.to_version.is_(None) & moves.c.from_version.is_not(None)
    is_whole = is_next & follows & (exists | takes_away)
    for row in connection.execute(select(moves).where(~is_whole)):
        yield Fault(
            "audit-gap",
            f"{row.task}@{row.alias} move {row.generation}",
            f"it goes from {row.from_version} to {row.to_version}, after move {row.before}, "
            f"which led to {row.left}",
        )


def _content_fault(row: Any) -> str | None:
    """What is wrong with a version's row; None if nothing is."""
    try:
        artifacts = {name: Artifact(**value) for name, value in row.artifacts.items()}
        lineage = Lineage(**row.lineage)
        trained = TrainedPrompt(row.task, row.config, row.metrics, artifacts, lineage)
        actual = trained.digest
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        return f"its row is none that this program reads: {type(error).__name__}: {error}"
    if actual != row.digest:
        return f"expected the content {row.digest}, actual {actual}"
    if (lineage.base_fingerprint, lineage.job) != (row.base_fingerprint, row.job_id):
        return "its columns name another base or job than its lineage"
    return None
