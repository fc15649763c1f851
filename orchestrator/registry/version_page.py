"""Pages of filtered versions as SQL: values are parameters, never text of a statement.

A page is found by ids first, and starts where the last one ended, so that a late page costs what
the first one does. The rows of versions are wide, so what a million of them are searched by is
chosen here, and is narrow: a comparison's own index if it names few, else the values of a metric.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeGuard

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    exists,
    false,
    func,
    or_,
    select,
    union,
)

from orchestrator.domain.version_filter import Combination, Comparison, Symbol, VersionFilter
from orchestrator.registry.dialect import now, plain_text
from orchestrator.registry.job_rows import ID_DIGITS
from orchestrator.registry.tables import base_models, prompt_versions, tasks, version_metrics
from orchestrator.registry.version_rows import pointed_at

#: A comparison that so many versions at most are named by is looked up first; fewer, where the walk
#: along a metric's values has little to look up, since at most RARE of its newest SAMPLE match.
FEW, FEW_BESIDE_RARE = 50_000, 15_000
RARE, SAMPLE = 0.01, 1_000
_COMPARE: Mapping[Symbol, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def page_of_ids(
    connection: Connection, where: VersionFilter | None, before: int | None, limit: int
) -> Select[tuple[int]]:
    """Selects the newest `limit` ids that `where` holds for, of those below the id `before`."""
    if isinstance(where, Combination) and where.word == "or":
        pages = (page_of_ids(connection, part, before, limit) for part in where.parts)
        found = union(*(select(page.subquery()) for page in pages)).subquery()
        return select(found.c[0]).order_by(found.c[0].desc()).limit(limit)
    parts = _conjuncts(where)
    metrics = filter(_is_metric, parts)
    metric, share = min(
        ((each, _share(connection, each)) for each in metrics),
        key=operator.itemgetter(1),
        default=(None, 1.0),
    )
    most = FEW if share > RARE else FEW_BESIDE_RARE
    few = next((part for part in parts if _has_few(connection, part, most)), None)
    if few is not None:
        named = select(_OTHER.c.id).where(_condition(few, _OTHER))
        # Else PostgreSQL walks along all versions, hoping for enough that match among the first.
        ids = select(named.cte().prefix_with("MATERIALIZED", dialect="postgresql"))
        rest = [_condition(part) for part in parts if part is not few]
        query = _newest(prompt_versions.c.id, before, limit)
        return query.where(prompt_versions.c.id.in_(ids), *rest)
    if metric is not None:
        return _along_metric(metric, [part for part in parts if part is not metric], before, limit)
    is_old = any(_is_old(part) for part in parts)
    query = _newest(prompt_versions.c.id, before, limit, is_sorted=is_old)
    return query.where(*map(_condition, parts))


def _newest(
    id_: Column[int], before: int | None, limit: int, is_sorted: bool = False
) -> Select[tuple[int]]:
    """The start of a page; `is_sorted` keeps the database from walking along the ids."""
    query: Select[tuple[int]] = select(id_)
    query = query.order_by((id_ + 0 if is_sorted else id_).desc()).limit(limit)
    return query if before is None else query.where(id_ < before)


def _along_metric(
    metric: Comparison, rest: Sequence[VersionFilter], before: int | None, limit: int
) -> Select[tuple[int]]:
    """Walks along a metric's values, which lie in the order of the versions."""
    id_ = version_metrics.c.version_id
    query = _newest(id_, before, limit).where(_metric_condition(metric, version_metrics))
    others = [part for part in rest if not _is_metric(part)]
    if others:
        same = prompt_versions.c.id == id_
        version = select(prompt_versions.c.id).where(same, *map(_condition, others))
        # The offset keeps PostgreSQL from joining: it would walk along versions, which are wide.
        query = query.where(version.offset(0).exists())
    return query.where(*(_measured(part, id_) for part in filter(_is_metric, rest)))


def _has_few(connection: Connection, part: VersionFilter, most: int) -> bool:
    """Whether at most `most` versions are named by one comparison that an index serves."""
    if not isinstance(part, Comparison) or part.metric is not None or part.symbol == "!=":
        return False
    some = select(prompt_versions.c.id).where(_condition(part)).limit(most + 1)
    count = select(func.count()).select_from(some.subquery())
    return connection.execute(count).scalar_one() <= most


def _share(connection: Connection, metric: Comparison) -> float:
    """The part of a metric's newest SAMPLE values that a comparison holds for."""
    of_metric = version_metrics.c.name == plain_text(str(metric.metric))
    newest = select(version_metrics).where(of_metric)
    newest = newest.order_by(version_metrics.c.version_id.desc()).limit(SAMPLE)
    values = newest.subquery()
    query = select(func.count()).select_from(values).where(_metric_condition(metric, values))
    return connection.execute(query).scalar_one() / SAMPLE


def _is_metric(part: VersionFilter) -> TypeGuard[Comparison]:
    return isinstance(part, Comparison) and part.metric is not None


def _is_old(part: VersionFilter) -> bool:
    """Whether the versions a comparison means are the oldest ones, far from a walk's start."""
    if not isinstance(part, Comparison):
        return False
    is_below = part.symbol in ("<", "<=")
    return (part.field in ("number", "created") and is_below) or (
        part.field == "age" and not is_below
    )


def _conjuncts(where: VersionFilter | None) -> list[VersionFilter]:
    """The parts that all must hold."""
    if isinstance(where, Combination) and where.word == "and":
        return [part for each in where.parts for part in _conjuncts(each)]
    return [] if where is None else [where]


def _condition(where: VersionFilter, versions: FromClause = prompt_versions) -> ColumnElement[bool]:
    """A condition on a row of prompt_versions."""
    if isinstance(where, Combination):
        join = and_ if where.word == "and" else or_
        return join(*(_condition(part, versions) for part in where.parts))
    if where.metric is not None:
        return _measured(where, versions.c.id)
    if where.field in _SETS:
        is_in = _SETS[where.field](versions, where.value)
        return is_in if where.symbol == "=" else ~is_in
    compare = _COMPARE[where.symbol]
    found: ColumnElement[bool]
    if isinstance(where.value, timedelta):  # the older, the earlier
        moment = select(now(-where.value.total_seconds())).scalar_subquery()
        found = compare(moment, versions.c.created_at)
    else:
        column = "created_at" if where.field == "created" else where.field
        found = compare(versions.c[column], where.value)
    return found


def _measured(metric: Comparison, id_: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether the version of this id has such a value."""
    values = version_metrics.alias()
    return exists().where(values.c.version_id == id_, _metric_condition(metric, values))


def _metric_condition(metric: Comparison, values: FromClause) -> ColumnElement[bool]:
    value = _COMPARE[metric.symbol](values.c.value, metric.value)
    return and_(values.c.name == plain_text(str(metric.metric)), value)


def _has_base(versions: FromClause, name: Any) -> ColumnElement[bool]:
    """On any base that the name has ever stood for."""
    named = select(base_models.c.fingerprint).where(base_models.c.name == name)
    return versions.c.base_fingerprint.in_(named)


def _has_alias(versions: FromClause, alias: Any) -> ColumnElement[bool]:
    return versions.c.id.in_(pointed_at(alias))


def _has_job(versions: FromClause, job_id: Any) -> ColumnElement[bool]:
    """By a job's id or the start of it; a range, which an index serves."""
    column = versions.c.job_id
    is_it = column == job_id
    if re.fullmatch(f"[0-9a-f]{{1,{ID_DIGITS - 1}}}", job_id):
        is_it = and_(column >= job_id, column < f"{job_id}g")
    return and_(column.is_not(None), is_it)


_OTHER = prompt_versions.alias()
_SETS: Mapping[str, Callable[[FromClause, Any], ColumnElement[bool]]] = {
    "task": lambda versions, name: versions.c.task == name,
    "base": _has_base,
    "alias": _has_alias,
    "job": _has_job,
}


def superseded_ids(connection: Connection, limit: int) -> Select[tuple[int]]:
    """Selects the newest versions of tasks, by id, whose base's name means another base now."""
    current = select(func.max(base_models.c.id)).group_by(base_models.c.name)
    columns = (base_models.c.name, base_models.c.fingerprint)
    old = connection.execute(select(*columns).where(base_models.c.id.not_in(current))).all()
    version = prompt_versions.c
    # Not by the fingerprint's index: the tasks' newest versions are fewer than all on a base.
    fingerprint = version.base_fingerprint.concat("")
    is_old = (
        and_(fingerprint == each.fingerprint, version.lineage["base"].as_string() == each.name)
        for each in old
    )
    newest = and_(tasks.c.name == version.task, tasks.c.last_version == version.number)
    query = select(version.id).select_from(tasks).join(prompt_versions, newest)
    return query.where(or_(false(), *is_old)).order_by((version.id + 0).desc()).limit(limit)
