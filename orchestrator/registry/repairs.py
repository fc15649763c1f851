"""Mends what `Consistency` finds, from what the database still holds; invents nothing.

Each repair is one transaction and looks again before it writes; False: there was nothing to do.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from orchestrator.registry.database import Database
from orchestrator.registry.dialect import insert_into, now
from orchestrator.registry.outbox import post
from orchestrator.registry.tables import aliases, mlflow_links, promotions, prompt_versions, tasks
from orchestrator.registry.version_rows import lock_task


class Repairs:
    """Writes, each time with the task locked."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def restore_alias(self, task: str, alias: str) -> bool:
        """Point an alias at what its last promotion says, or take it away, and tell MLflow."""
        query = (
            select(promotions.c.generation, promotions.c.to_version, prompt_versions.c.id)
            .outerjoin(
                prompt_versions,
                (prompt_versions.c.task == promotions.c.task)
                & (prompt_versions.c.number == promotions.c.to_version),
            )
            .where(promotions.c.task == task, promotions.c.alias == alias)
            .order_by(promotions.c.generation.desc())
            .limit(1)
        )
        with self._database.write() as connection:
            lock_task(connection, task)
            last = connection.execute(query).one_or_none()
            if last is None or (last.id is None and last.to_version is not None):
                return False
            if last.to_version is None:
                _remove_alias(connection, task, alias)
            else:
                values = {"version_id": last.id, "generation": last.generation, "updated_at": now()}
                _put_alias(connection, task, alias, values)
                _post_alias(connection, task, alias, last.to_version)
        return True

    def raise_counter(self, task: str) -> bool:
        """Let the next version of `task` have a number that was never given."""
        highest = (
            select(func.max(prompt_versions.c.number))
            .where(prompt_versions.c.task == task)
            .scalar_subquery()
        )
        statement = (
            update(tasks)
            .where(tasks.c.name == task, tasks.c.last_version < highest)
            .values(last_version=highest)
        )
        with self._database.write() as connection:
            return connection.execute(statement).rowcount == 1

    def tell_again(self, task: str, number: int) -> bool:
        """Forget what MLflow is said to call a version, and tell it of the version and its aliases
        once more: what is there it finds by its tags, what is gone it gets again."""
        query = select(prompt_versions.c.id).where(
            prompt_versions.c.task == task, prompt_versions.c.number == number
        )
        with self._database.write() as connection:
            lock_task(connection, task)
            version_id = connection.execute(query).scalar_one_or_none()
            if version_id is None:
                return False
            connection.execute(delete(mlflow_links).where(mlflow_links.c.version_id == version_id))
            post(connection, "version_registered", {"task": task, "number": number})
            names = select(aliases.c.alias).where(aliases.c.version_id == version_id)
            for alias in connection.execute(names.order_by(aliases.c.alias)).scalars().all():
                _post_alias(connection, task, alias, number)
        return True


def _put_alias(connection: Connection, task: str, alias: str, values: Mapping[str, Any]) -> None:
    connection.execute(
        insert_into(connection, aliases)
        .values(task=task, alias=alias, **values)
        .on_conflict_do_update(index_elements=["task", "alias"], set_=values)
    )


def _remove_alias(connection: Connection, task: str, alias: str) -> None:
    is_it = (aliases.c.task == task, aliases.c.alias == alias)
    connection.execute(delete(aliases).where(*is_it))
    post(connection, "alias_removed", {"task": task, "alias": alias})


def _post_alias(connection: Connection, task: str, alias: str, number: int) -> None:
    post(connection, "alias_moved", {"task": task, "alias": alias, "number": number})
