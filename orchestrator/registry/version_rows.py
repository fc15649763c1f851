"""Prompt versions as rows, and back: how one is found and added. A row is never changed.

A task's row in `tasks` is locked while a version is added or an alias moved, so numbers have no
gaps and no number is given twice.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, insert, select, update

from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.domain.prompt_version import (
    Artifact,
    Lineage,
    PromptRef,
    PromptVersion,
    TrainedPrompt,
)
from orchestrator.registry.dialect import insert_into, now
from orchestrator.registry.names import require_name, unknown_name
from orchestrator.registry.outbox import post
from orchestrator.registry.tables import aliases, mlflow_links, prompt_versions, tasks

_LIST = "`tutti list` shows the tasks and their versions."


def lock_task(connection: Connection, task: str) -> None:
    """Let no other transaction add a version of `task` or move its aliases until this one ends."""
    connection.execute(select(tasks).where(tasks.c.name == task).with_for_update())


def add_version(connection: Connection, trained: TrainedPrompt) -> tuple[PromptVersion, bool]:
    """Register content as the task's next version; equal content is the version it was (False).

    Leaves the task locked.
    """
    _check(trained)
    task, digest = trained.task, trained.digest
    connection.execute(
        insert_into(connection, tasks)
        .values(name=task, last_version=0)
        .on_conflict_do_nothing(index_elements=[tasks.c.name])
    )
    lock_task(connection, task)
    same = (prompt_versions.c.task == task, prompt_versions.c.digest == digest)
    for version in fetch_versions(connection, *same):
        return version, False
    step = update(tasks).where(tasks.c.name == task).values(last_version=tasks.c.last_version + 1)
    number = connection.execute(step.returning(tasks.c.last_version)).scalar_one()
    _insert(connection, trained, number)
    post(connection, "version_registered", {"task": task, "number": number})
    return fetch_versions(connection, *same)[0], True


def find_version(connection: Connection, ref: PromptRef) -> PromptVersion:
    """The version a reference means; raise UnknownName saying what exists."""
    conditions: list[ColumnElement[bool]] = [prompt_versions.c.task == ref.task]
    if isinstance(ref.target, int):
        conditions.append(prompt_versions.c.number == ref.target)
    elif ref.target is not None:
        conditions.append(prompt_versions.c.id.in_(pointed_at(ref.target)))
    for version in fetch_versions(connection, *conditions, limit=1):
        return version
    raise _unknown(connection, ref)


def pointed_at(alias: str) -> Select[tuple[int]]:
    """The ids of the versions an alias points at, of all tasks."""
    return select(aliases.c.version_id).where(aliases.c.alias == alias)


def fetch_versions(
    connection: Connection, *conditions: ColumnElement[bool], limit: int | None = None
) -> list[PromptVersion]:
    """Versions with their aliases and MLflow names, newest first."""
    query = (
        select(prompt_versions, mlflow_links.c.run_id, mlflow_links.c.model_version)
        .outerjoin(mlflow_links, mlflow_links.c.version_id == prompt_versions.c.id)
        .where(*conditions)
        .order_by(prompt_versions.c.id.desc())
        .limit(limit)
    )
    rows = connection.execute(query).all()
    names = _aliases_of(connection, [row.id for row in rows])
    return [_version(row, names.get(row.id, ())) for row in rows]


def _check(trained: TrainedPrompt) -> None:
    require_name("task", trained.task)
    for name, value in trained.metrics.items():
        if not math.isfinite(value):
            raise InvalidInput(
                f"task {trained.task}: the metric {name!r} is {value}", "A metric is a number."
            )


def _insert(connection: Connection, trained: TrainedPrompt, number: int) -> None:
    lineage = replace(trained.lineage, parent=number - 1 or None)
    values = {
        "task": trained.task,
        "number": number,
        "digest": trained.digest,
        "config": dict(trained.config),
        "metrics": dict(trained.metrics),
        "artifacts": {name: vars(artifact) for name, artifact in trained.artifacts.items()},
        "lineage": {
            **vars(lineage),
            "datasets": dict(lineage.datasets),
            "num_rows": dict(lineage.num_rows),
        },
        "base_fingerprint": lineage.base_fingerprint,
        "job_id": lineage.job,
        "created_at": now(),
    }
    connection.execute(insert(prompt_versions).values(values))


def _aliases_of(connection: Connection, ids: Sequence[int]) -> Mapping[int, tuple[str, ...]]:
    query = select(aliases.c.version_id, aliases.c.alias).where(aliases.c.version_id.in_(ids))
    found: defaultdict[int, tuple[str, ...]] = defaultdict(tuple)
    for version_id, alias in connection.execute(query.order_by(aliases.c.alias)):
        found[version_id] += (alias,)
    return found


def _version(row: Row[Any], names: tuple[str, ...]) -> PromptVersion:
    return PromptVersion(
        task=row.task,
        number=row.number,
        digest=row.digest,
        config=row.config,
        metrics=row.metrics,
        artifacts={name: Artifact(**value) for name, value in row.artifacts.items()},
        lineage=Lineage(**row.lineage),
        created_at=row.created_at,
        aliases=names,
        run_id=row.run_id,
        model_version=row.model_version,
    )


def _unknown(connection: Connection, ref: PromptRef) -> UnknownName:
    last = select(tasks.c.last_version).where(tasks.c.name == ref.task)
    last_version = connection.execute(last).scalar_one_or_none()
    if not last_version:
        names = select(tasks.c.name).where(tasks.c.last_version > 0).order_by(tasks.c.name)
        known = connection.execute(names).scalars().all()
        return unknown_name("task", ref.task, known, _LIST)
    if isinstance(ref.target, int):
        return UnknownName(
            f"{ref.task} has no version {ref.target}; it has 1 to {last_version}", _LIST
        )
    query = select(aliases.c.alias).where(aliases.c.task == ref.task).order_by(aliases.c.alias)
    known = connection.execute(query).scalars().all()
    promote = f"Point an alias at a version with `tutti promote {ref.task}@{last_version}`."
    return unknown_name(f"alias of {ref.task}", str(ref.target), known, promote)
