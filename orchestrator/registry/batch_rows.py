"""Batch runs and their shards as rows, and back; how a run is found."""

import re
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, case, select

from orchestrator.domain.batch_run import (
    BatchRun,
    BatchState,
    Pin,
    RunPlan,
    ShardDone,
    ShardRecord,
    ShardState,
    TaskCount,
)
from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.registry.dialect import now
from orchestrator.registry.tables import batch_runs, batch_shards

MIN_PREFIX = 6
_RUN_ID = re.compile(rf"[0-9a-f]{{{MIN_PREFIX},32}}")
_LIST = "List runs with `tutti batch list`."
_HAS_HOLDER: ColumnElement[bool] = and_(
    batch_runs.c.lease_token.is_not(None), batch_runs.c.lease_expires_at > now()
)
#: What views read of a run: not its input, which may name ten thousand shards.
RUN_COLUMNS = (
    *(
        batch_runs.c[name]
        for name in BatchRun.__dataclass_fields__
        if name in batch_runs.c and name != "holder"
    ),
    case((_HAS_HOLDER, batch_runs.c.lease_holder)).label("holder"),
)
NO_LEASE: dict[str, Any] = {"lease_holder": None, "lease_token": None, "lease_expires_at": None}
#: Column values of a shard whose part does not count (any more).
NOT_DONE: dict[str, Any] = {
    "state": ShardState.QUEUED,
    "holder": None,
    "num_errors": 0,
    "file": None,
    "sha256": None,
    "num_bytes": None,
    "seconds": None,
    "counts": {},
}


def find_run_id(connection: Connection, run_id: str) -> str:
    """The whole id of the one run whose id starts so; raise UnknownName or InvalidInput."""
    if not _RUN_ID.fullmatch(run_id):
        raise UnknownName(f"{run_id[:80]!r} is not the id of a batch run", _LIST)
    query = select(batch_runs.c.id).where(batch_runs.c.id.startswith(run_id, autoescape=True))
    found = connection.execute(query.order_by(batch_runs.c.id).limit(2)).scalars().all()
    if not found:
        raise UnknownName(f"there is no batch run {run_id}", _LIST)
    if len(found) > 1:
        raise InvalidInput(f"{run_id} begins the ids of several batch runs", "Give more of it.")
    return str(found[0])


def plan_values(plan: RunPlan, source: str) -> dict[str, Any]:
    """The columns that a plan decides."""
    return {
        "source": source,
        "input": dict(plan.input),
        "settings": dict(plan.settings),
        "pins": {ref: asdict(pin) for ref, pin in plan.pins.items()},
        "bases": list(plan.bases),
        "output": plan.output,
        "format": plan.format,
        "shard_rows": plan.shard_rows,
        "num_threads": plan.num_threads,
        "zero_stage": plan.zero_stage,
        "code_version": plan.code_version,
        "num_shards": len(plan.shard_sizes),
        "num_rows": plan.num_rows,
    }


def plan_from_row(row: Row[Any], shard_sizes: tuple[int, ...]) -> RunPlan:
    return RunPlan(
        input=row.input,
        settings=row.settings,
        pins={ref: Pin(**pin) for ref, pin in row.pins.items()},
        output=row.output,
        format=row.format,
        shard_rows=row.shard_rows,
        shard_sizes=shard_sizes,
        num_threads=row.num_threads,
        code_version=row.code_version,
        zero_stage=row.zero_stage or 0,
    )


def run_from_row(row: Row[Any]) -> BatchRun:
    return BatchRun(**{**row._mapping, "state": BatchState(row.state)})


def done_values(shard: ShardDone) -> dict[str, Any]:
    """The columns of a shard that its answer decides."""
    return {
        "state": ShardState.DONE,
        "num_errors": shard.num_errors,
        "file": shard.file,
        "sha256": shard.sha256,
        "num_bytes": shard.num_bytes,
        "seconds": shard.seconds,
        "counts": {name: asdict(count) for name, count in shard.counts.items()},
    }


def fetch_shards(connection: Connection, run_id: str) -> list[ShardRecord]:
    """A run's shards, in order."""
    columns = [batch_shards.c[name] for name in ShardRecord.__dataclass_fields__]
    query = select(*columns).where(batch_shards.c.run_id == run_id)
    return [
        ShardRecord(
            **{
                **row._mapping,
                "state": ShardState(row.state),
                "counts": {name: TaskCount(**count) for name, count in row.counts.items()},
            }
        )
        for row in connection.execute(query.order_by(batch_shards.c.number))
    ]
