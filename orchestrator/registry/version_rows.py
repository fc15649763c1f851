"""Prompt versions as rows, and how one is found. A row is never changed."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Row,
    ScalarSelect,
    Select,
    bindparam,
    func,
    select,
)

from orchestrator.domain.errors import UnknownName
from orchestrator.domain.prompt_version import (
    Artifact,
    Lineage,
    PromptRef,
    PromptVersion,
)
from orchestrator.registry.names import unknown_name
from orchestrator.registry.tables import (
    aliases,
    mlflow_links,
    prompt_versions,
    tasks,
    version_descriptions,
)

JSON_COLUMNS = ("config", "metrics", "artifacts", "lineage")
_LIST = "`tutti prompts list` shows the tasks and their versions."

# Built once: making a statement takes longer than running one.
_TASK: BindParameter[str] = bindparam("of_task")
_TARGET: BindParameter[Any] = bindparam("target")
_OF_TASK = prompt_versions.c.task == _TASK
_NAMES = (
    select(func.aggregate_strings(aliases.c.alias, " "))  # no alias holds a space
    .where(aliases.c.version_id == prompt_versions.c.id)
    .correlate(prompt_versions)
    .scalar_subquery()
    .label("names")
)
_VERSIONS = (
    select(
        prompt_versions,
        _NAMES,
        *(mlflow_links.c.run_id, mlflow_links.c.model_version),
        *(version_descriptions.c.description, version_descriptions.c.tags),
    )
    .outerjoin(mlflow_links, mlflow_links.c.version_id == prompt_versions.c.id)
    .outerjoin(version_descriptions, version_descriptions.c.version_id == prompt_versions.c.id)
)
_BY_NUMBER = _VERSIONS.where(_OF_TASK, prompt_versions.c.number == _TARGET)
_BY_ALIAS = _VERSIONS.where(
    prompt_versions.c.id
    == select(aliases.c.version_id)
    .where(aliases.c.task == _TASK, aliases.c.alias == _TARGET)
    .scalar_subquery()
)
_NEWEST = _VERSIONS.where(
    _OF_TASK,
    prompt_versions.c.number
    == select(func.max(prompt_versions.c.number)).where(_OF_TASK).scalar_subquery(),
)
_LOCK_TASK = select(tasks.c.last_version).where(tasks.c.name == _TASK).with_for_update()


def lock_task(connection: Connection, task: str) -> bool:
    """Let no other transaction add a version of `task` or move its aliases until this one ends;
    False where there is no such task yet."""
    return connection.execute(_LOCK_TASK, {"of_task": task}).first() is not None


def find_version(connection: Connection, ref: PromptRef) -> PromptVersion:
    """The version a reference means; raise UnknownName saying what exists."""
    query = {int: _BY_NUMBER, str: _BY_ALIAS}.get(type(ref.target), _NEWEST)
    values = (
        {"of_task": ref.task} if ref.target is None else {"of_task": ref.task, "target": ref.target}
    )
    for version in _read(connection, query, values):
        return version
    raise unknown(connection, ref)


def unknown(connection: Connection, ref: PromptRef) -> UnknownName:
    """That there is no such version, alias or task, and what there is."""
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
    promote = f"Point an alias at a version with `tutti prompts promote {ref.task}@{last_version}`."
    return unknown_name(f"alias of {ref.task}", str(ref.target), known, promote)


def find_id(connection: Connection, ref: PromptRef) -> int:
    """The row id of the version a reference means: versions of all tasks are ordered by it."""
    version = find_version(connection, ref)
    same = (prompt_versions.c.task == version.task, prompt_versions.c.number == version.number)
    found: int = connection.execute(select(prompt_versions.c.id).where(*same)).scalar_one()
    return found


def id_of(version: PromptVersion) -> ScalarSelect[int]:
    """A version's row id, as part of a statement."""
    same = (prompt_versions.c.task == version.task, prompt_versions.c.number == version.number)
    return select(prompt_versions.c.id).where(*same).scalar_subquery()


def pointed_at(alias: str) -> Select[tuple[int]]:
    """The ids of the versions an alias points at, of all tasks."""
    return select(aliases.c.version_id).where(aliases.c.alias == alias)


def fetch_versions(
    connection: Connection, *conditions: ColumnElement[bool], limit: int | None = None
) -> list[PromptVersion]:
    """Versions with their aliases, descriptions and MLflow names, newest first."""
    query = _VERSIONS.where(*conditions).order_by(prompt_versions.c.id.desc()).limit(limit)
    return _read(connection, query, {})


def _read(
    connection: Connection, query: Select[Any], values: Mapping[str, Any]
) -> list[PromptVersion]:
    return [_version(row) for row in connection.execute(query, values)]


def _version(row: Row[Any]) -> PromptVersion:
    return build_version(
        {name: getattr(row, name) for name in JSON_COLUMNS},
        task=row.task,
        number=row.number,
        digest=row.digest,
        created_at=row.created_at,
        aliases=tuple(sorted(row.names.split())) if row.names else (),
        run_id=row.run_id,
        model_version=row.model_version,
        description=row.description or "",
        tags=row.tags or {},
    )


def build_version(content: Mapping[str, Any], **rest: Any) -> PromptVersion:
    """A version of the values of its JSON_COLUMNS and the rest of its fields."""
    artifacts = {name: Artifact(**value) for name, value in content["artifacts"].items()}
    return PromptVersion(
        config=content["config"],
        metrics=content["metrics"],
        artifacts=artifacts,
        lineage=Lineage(**content["lineage"]),
        **rest,
    )
