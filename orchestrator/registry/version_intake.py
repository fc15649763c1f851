"""How versions are added: thousands with hardly more statements than one.

A task's row in `tasks` is locked while a version is added or an alias moved, so numbers have no
gaps and no number is given twice. Tasks are locked in the order of their names: two that add to the
same ones wait for each other, and never in a circle.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Insert, Select, and_, bindparam, select, update

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.prompt_version import PromptVersion, TrainedPrompt
from orchestrator.registry.dialect import dump_json, in_batches, insert_into, now
from orchestrator.registry.json_rows import dump_rows, insert_rows, json_rows
from orchestrator.registry.names import require_name
from orchestrator.registry.outbox import post_all
from orchestrator.registry.tables import prompt_versions, tasks
from orchestrator.registry.version_metrics import add_metrics
from orchestrator.registry.version_rows import JSON_COLUMNS, build_version, fetch_versions

Key = tuple[str, str]  # a task, and the digest of a version's content

# Built once: making a statement takes longer than running one.
_NAMED = tasks.c.name.in_(bindparam("names", expanding=True))
_LOCK = select(tasks.c.name, tasks.c.last_version).where(_NAMED).with_for_update()
_LOCK_ON_POSTGRESQL = _LOCK.order_by(tasks.c.name.collate("C"))  # as Python sorts
_SET_LAST = (
    update(tasks)
    .where(tasks.c.name == bindparam("of_task"))
    .values(last_version=bindparam("number"))
)
_KEY = (prompt_versions.c.task, prompt_versions.c.digest)
_GIVEN = tuple(c for c in prompt_versions.c if c.name not in ("id", "created_at"))


def add_version(connection: Connection, trained: TrainedPrompt) -> tuple[PromptVersion, bool]:
    """Register content as the task's next version; equal content is the version it was (False).

    Leaves the task locked.
    """
    (added,) = add_versions(connection, [trained])
    return added


def add_versions(
    connection: Connection, trained: Sequence[TrainedPrompt]
) -> list[tuple[PromptVersion, bool]]:
    """Each as `add_version`, in order."""
    for each in trained:
        _check(each)
    last = _lock(connection, sorted({each.task for each in trained}))
    keys = [(each.task, each.digest) for each in trained]
    known = _find(connection, keys)
    new: dict[Key, TrainedPrompt] = {}
    numbers: dict[Key, int] = {}
    for key, each in zip(keys, trained, strict=True):
        if key not in known and key not in new:
            last[each.task] += 1
            new[key], numbers[key] = each, last[each.task]
    if new:
        known |= _insert(connection, new, numbers)
        counts = {task: last[task] for task, _ in new}
        connection.execute(_SET_LAST, [{"of_task": t, "number": n} for t, n in counts.items()])
    return [(known[key], new.pop(key, None) is not None) for key in keys]


def _lock(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    """Lock the tasks, new ones too; the number of each one's newest version. Names rise."""
    last = _lock_known(connection, names)
    missing = [name for name in names if name not in last]
    if missing:  # another transaction may just be adding the same ones
        rows = [{"name": name, "last_version": 0} for name in missing]
        statement = insert_into(connection, tasks).on_conflict_do_nothing(
            index_elements=[tasks.c.name]
        )
        connection.execute(statement, rows)
        last |= _lock_known(connection, missing)
    return last


def _lock_known(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    query = _LOCK_ON_POSTGRESQL if connection.dialect.name == "postgresql" else _LOCK
    return {
        name: number
        for some in in_batches(names)
        for name, number in connection.execute(query, {"names": list(some)})
    }


def _find(connection: Connection, keys: Sequence[Key]) -> dict[Key, PromptVersion]:
    """Those of the contents that are versions of their task."""
    names = [column.name for column in _KEY]
    rows = dump_rows(_KEY, (dict(zip(names, key, strict=True)) for key in keys))
    statement = _find_statement(connection.dialect.name)
    ids = connection.execute(statement, {"rows": rows}).scalars().all()
    return {
        (version.task, version.digest): version
        for some in in_batches(ids)
        for version in fetch_versions(connection, prompt_versions.c.id.in_(some))
    }


@cache
def _find_statement(dialect: str) -> Select[tuple[int]]:
    """A join: from two pairs on, SQLite would read the whole table for `IN`."""
    given = json_rows(dialect, _KEY)
    same = (column == given.c[column.name] for column in _KEY)
    return select(prompt_versions.c.id).join_from(given, prompt_versions, and_(*same)).distinct()


def _insert(
    connection: Connection, new: Mapping[Key, TrainedPrompt], numbers: Mapping[Key, int]
) -> dict[Key, PromptVersion]:
    """Write new versions, and what MLflow is to be told of them; return them as they are read."""
    given = {key: _row(each, key[1], numbers[key]) for key, each in new.items()}
    statement = _insert_statement(connection.dialect.name)
    written = connection.execute(statement, {"rows": dump_rows(_GIVEN, given.values())}).all()
    add_metrics(connection, {row.id: new[row.task, row.digest].metrics for row in written})
    told = [{"task": task, "number": number} for (task, _), number in numbers.items()]
    post_all(connection, "version_registered", told)
    return {
        (row.task, row.digest): _version(given[row.task, row.digest], row.created_at)
        for row in written
    }


@cache
def _insert_statement(dialect: str) -> Insert:
    statement = insert_rows(dialect, _GIVEN, created_at=now())
    return statement.returning(prompt_versions.c.id, *_KEY, prompt_versions.c.created_at)


def _row(trained: TrainedPrompt, digest: str, number: int) -> dict[str, Any]:
    lineage = replace(trained.lineage, parent=number - 1 or None)
    content = {
        "config": dict(trained.config),
        "metrics": dict(trained.metrics),
        "artifacts": {name: vars(artifact) for name, artifact in trained.artifacts.items()},
        "lineage": {
            **vars(lineage),
            "datasets": dict(lineage.datasets),
            "num_rows": dict(lineage.num_rows),
            "packages": dict(lineage.packages),
        },
    }
    return {
        "task": trained.task,
        "number": number,
        "digest": digest,
        **{name: dump_json(value) for name, value in content.items()},
        "base_fingerprint": lineage.base_fingerprint,
        "job_id": lineage.job,
    }


def _version(row: Mapping[str, Any], created_at: datetime) -> PromptVersion:
    content = {name: json.loads(row[name]) for name in JSON_COLUMNS}
    key = {name: row[name] for name in ("task", "number", "digest")}
    return build_version(content, **key, created_at=created_at)


def _check(trained: TrainedPrompt) -> None:
    require_name("task", trained.task)
    for name, value in trained.metrics.items():
        if not math.isfinite(value):
            raise InvalidInput(
                f"task {trained.task}: the metric {name!r} is {value}", "A metric is a number."
            )
