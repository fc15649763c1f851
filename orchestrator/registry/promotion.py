"""Alias moves: judged against the version the alias points at, counted, and recorded for ever.

Every function here runs in a transaction that has the task locked, so the incumbent cannot change
between the judgement and the move; the update is compare-and-set on the generation all the same.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from orchestrator.domain.gate import Gate
from orchestrator.domain.prompt_version import Promotion, PromptVersion
from orchestrator.registry.dialect import now
from orchestrator.registry.outbox import post
from orchestrator.registry.tables import aliases, promotions, prompt_versions
from orchestrator.registry.version_rows import fetch_versions

COLUMNS = tuple(promotions.c[name] for name in Promotion.__dataclass_fields__)


@dataclass(frozen=True)
class Incumbent:
    """What an alias points at now: nothing at generation 0."""

    alias: str
    generation: int = 0
    version: PromptVersion | None = None

    @property
    def number(self) -> int | None:
        return self.version.number if self.version else None


def find_incumbent(connection: Connection, task: str, alias: str) -> Incumbent:
    """What `alias` of the locked `task` points at."""
    query = select(aliases).where(aliases.c.task == task, aliases.c.alias == alias)
    row = connection.execute(query).one_or_none()
    if row is None:
        return Incumbent(alias)
    (version,) = fetch_versions(connection, prompt_versions.c.id == row.version_id)
    return Incumbent(alias, row.generation, version)


def judge(gate: Gate | None, version: PromptVersion, incumbent: Incumbent) -> tuple[str, ...]:
    """Why the gate refuses this move, with the numbers; empty when it does not."""
    if gate is None:
        return ()
    rival = incumbent.version.metrics if incumbent.version else None
    verdict = gate.judge(version.metrics, rival)
    if verdict.passed:
        return ()
    return verdict.failures or (f"{gate.source} is false",)


def move_alias(
    connection: Connection,
    version: PromptVersion,
    incumbent: Incumbent,
    *,
    actor: str,
    reason: str,
    gate: Gate | None,
) -> Promotion:
    """Point the alias at `version`: the alias, its audit row and the outbox row."""
    task, alias, generation = version.task, incumbent.alias, incumbent.generation + 1
    _point(connection, version, incumbent)
    record = {
        "task": task,
        "alias": alias,
        "to_version": version.number,
        "from_version": incumbent.number,
        "generation": generation,
        "actor": actor,
        "reason": reason,
        "gate": gate.source if gate else None,
        "promoted_at": now(),
    }
    row = connection.execute(insert(promotions).values(record).returning(*COLUMNS)).one()
    post(connection, "alias_moved", {"task": task, "alias": alias, "number": version.number})
    return Promotion(**row._mapping)


def fetch_promotions(connection: Connection, task: str, alias: str | None) -> list[Promotion]:
    """A task's moves, newest first; of one alias if it is given."""
    query = select(*COLUMNS).where(promotions.c.task == task).order_by(promotions.c.id.desc())
    if alias is not None:
        query = query.where(promotions.c.alias == alias)
    return [Promotion(**row) for row in connection.execute(query).mappings()]


def _point(connection: Connection, version: PromptVersion, incumbent: Incumbent) -> None:
    version_id = (
        select(prompt_versions.c.id)
        .where(prompt_versions.c.task == version.task, prompt_versions.c.number == version.number)
        .scalar_subquery()
    )
    values = {
        "version_id": version_id,
        "generation": incumbent.generation + 1,
        "updated_at": now(),
    }
    if incumbent.generation == 0:
        key = {"task": version.task, "alias": incumbent.alias}
        connection.execute(insert(aliases).values(**key, **values))
        return
    moved = connection.execute(
        update(aliases)
        .where(
            aliases.c.task == version.task,
            aliases.c.alias == incumbent.alias,
            aliases.c.generation == incumbent.generation,
        )
        .values(values)
    )
    assert moved.rowcount == 1, "the alias moved although its task was locked"
