"""The recorded moves of aliases: by generation, newest first, at a past time, and what a rollback
restores. Rows are read only; promotion.py writes them.

Moves of an alias that are no rollbacks form a stack: a rollback takes the last one off it, and so
does the next. Nothing flips back: after 1, 2, 3 two rollbacks give 2, then 1, and a third one is
refused. What is promoted then goes on top of what the rollbacks left. Taking an alias away is such
a move, which a rollback takes back; but no rollback leads to it, past a later promotion.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, and_, func, select

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.prompt_version import Promotion
from orchestrator.registry.tables import promotions

COLUMNS = tuple(promotions.c[name] for name in Promotion.__dataclass_fields__)


def find_move(connection: Connection, task: str, alias: str, generation: int) -> Promotion:
    """One move that is known to exist."""
    query = select(*COLUMNS).where(
        promotions.c.task == task,
        promotions.c.alias == alias,
        promotions.c.generation == generation,
    )
    return Promotion(**connection.execute(query).one()._mapping)


def last_generation(connection: Connection, task: str, alias: str) -> int:
    """How often the alias has moved; 0: it never was one."""
    query = select(func.coalesce(func.max(promotions.c.generation), 0)).where(
        promotions.c.task == task, promotions.c.alias == alias
    )
    return int(connection.execute(query).scalar_one())


def fetch_promotions(
    connection: Connection, task: str, alias: str | None, limit: int | None = None
) -> list[Promotion]:
    """A task's moves, newest first; of one alias if it is given."""
    query = select(*COLUMNS).where(promotions.c.task == task).order_by(promotions.c.id.desc())
    if alias is not None:
        query = query.where(promotions.c.alias == alias)
    return [Promotion(**row) for row in connection.execute(query.limit(limit)).mappings()]


def fetch_moves_at(
    connection: Connection, moment: datetime, tasks: Sequence[str]
) -> list[Promotion]:
    """The move of each alias (of these tasks, or of all) that was its last at `moment`."""
    last = select(
        promotions.c.task, promotions.c.alias, func.max(promotions.c.generation).label("last")
    ).where(promotions.c.promoted_at <= moment)
    if tasks:
        last = last.where(promotions.c.task.in_(tasks))
    found = last.group_by(promotions.c.task, promotions.c.alias).subquery()
    same = and_(
        promotions.c.task == found.c.task,
        promotions.c.alias == found.c.alias,
        promotions.c.generation == found.c.last,
    )
    query = select(*COLUMNS).join(found, same).order_by(promotions.c.task, promotions.c.alias)
    return [Promotion(**row) for row in connection.execute(query).mappings()]


def find_before(connection: Connection, task: str, alias: str, generation: int) -> tuple[int, int]:
    """The version that a rollback of the alias brings back, and the promotion that it restores, as
    a generation; raise InvalidInput if there is none."""
    last = find_move(connection, task, alias, generation)
    top = find_move(connection, task, alias, last.standing)
    if top.from_version is None:
        since = "since it was taken away" if top.generation > 1 else "it ever had"
        raise InvalidInput(
            f"{task}@{alias} points at {task}@{top.to_version}, the first version {since}: "
            "there is nothing to roll back to",
            f"Promote the version you want, for example `tutti prompts promote {task}@NUMBER "
            f"--to {alias}`.",
        )
    before = find_move(connection, task, alias, top.generation - 1)
    return top.from_version, before.standing
