"""The fence around every write to a batch run: the lease's token and epoch must be the run's own.

The run's row is the lock: who writes to its shards locks it first.
"""

from typing import Any

from sqlalchemy import Connection, Row, Select, func, select, update

from orchestrator.domain.batch_run import BatchRun, BatchState, RunLease, ShardDone, ShardState
from orchestrator.domain.digest import short
from orchestrator.domain.errors import InvalidInput, StaleLease
from orchestrator.registry.batch_rows import (
    NO_LEASE,
    NOT_DONE,
    RUN_COLUMNS,
    done_values,
    run_from_row,
)
from orchestrator.registry.tables import batch_runs, batch_shards

#: The states of a run that may go on.
_OPEN = (BatchState.RUNNING, BatchState.FAILED)


def fetch_run(connection: Connection, run_id: str, *, lock: bool = False) -> Row[Any]:
    query = select(*RUN_COLUMNS).where(batch_runs.c.id == run_id)
    return connection.execute(query.with_for_update() if lock else query).one()


def lock_run(connection: Connection, lease: RunLease) -> Row[Any]:
    """The run's row, locked; raise StaleLease if the lease is not its own."""
    query: Select[Any] = select(batch_runs.c.num_shards, batch_runs.c.num_shards_done)
    query = query.where(*_fence(lease)).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        raise _stale(connection, lease)
    return row


def commit_shard(connection: Connection, run_id: str, shard: ShardDone) -> bool:
    """Let a shard's answer count, whose run is locked; False where it does already, because the
    answer to its commit was lost. Raises StaleLease where it was claimed by another since."""
    own = (
        batch_shards.c.run_id == run_id,
        batch_shards.c.number == shard.number,
        batch_shards.c.epoch == shard.epoch,
        batch_shards.c.num_rows == shard.num_rows,
    )
    statement = update(batch_shards).where(*own, batch_shards.c.state == ShardState.CLAIMED)
    if connection.execute(statement.values(done_values(shard))).rowcount:
        return True
    done = select(batch_shards.c.number).where(*own, batch_shards.c.state == ShardState.DONE)
    if connection.execute(done.where(batch_shards.c.sha256 == shard.sha256)).first() is None:
        raise StaleLease(
            f"batch run {short(run_id)}: the claim of shard {shard.number} at epoch {shard.epoch} "
            "does not hold any more"
        )
    return False


def _fence(lease: RunLease) -> tuple[Any, ...]:
    return (
        batch_runs.c.id == lease.run_id,
        batch_runs.c.lease_token == lease.token,
        batch_runs.c.epoch == lease.epoch,
        batch_runs.c.state == BatchState.RUNNING,
    )


def write_run(connection: Connection, lease: RunLease, values: dict[str, Any]) -> None:
    if connection.execute(update(batch_runs).where(*_fence(lease)).values(values)).rowcount == 0:
        raise _stale(connection, lease)


def end_lease(connection: Connection, lease: RunLease, seconds: float, **values: Any) -> BatchRun:
    """End the lease; what was claimed under it is free again."""
    spent = {"seconds": batch_runs.c.seconds + seconds}
    write_run(connection, lease, {**values, **NO_LEASE, **spent})
    left = update(batch_shards).where(batch_shards.c.run_id == lease.run_id)
    left = left.where(batch_shards.c.state == ShardState.CLAIMED)
    connection.execute(left.values(NOT_DONE))
    return run_from_row(fetch_run(connection, lease.run_id))


def count_done(connection: Connection, run_id: str) -> dict[str, Any]:
    """What is committed, counted again."""
    query = select(
        func.count(),
        func.coalesce(func.sum(batch_shards.c.num_rows), 0),
        func.coalesce(func.sum(batch_shards.c.num_errors), 0),
    ).where(batch_shards.c.run_id == run_id, batch_shards.c.state == ShardState.DONE)
    names = ("num_shards_done", "num_answered", "num_errors")
    return dict(zip(names, map(int, connection.execute(query).one()), strict=True))


def check_free(row: Row[Any], dead: str | None) -> None:
    name = f"batch run {short(row.id)}"
    if row.state not in _OPEN:
        raise InvalidInput(f"{name} is {row.state}: there is nothing to resume")
    if row.holder is not None and row.holder != dead:
        raise InvalidInput(
            f"{name} is being answered by {_place(row.holder)}",
            "Watch it with `tutti batch show`. If that process is gone, its lease ends by itself; "
            "then resume again.",
        )


def refuse_shared_output(connection: Connection, output: str) -> None:
    query = select(batch_runs.c.id).where(
        batch_runs.c.output == output, batch_runs.c.state.in_(_OPEN)
    )
    other = connection.execute(query.limit(1)).scalar_one_or_none()
    if other is not None:
        raise InvalidInput(
            f"{output}: batch run {short(other)}, which has not ended, writes there",
            f"`tutti batch resume {short(other)}` goes on with it, "
            f"`tutti batch cancel {short(other)}` ends it.",
        )


def _stale(connection: Connection, lease: RunLease) -> StaleLease:
    name = f"batch run {short(lease.run_id)}"
    query = select(batch_runs.c.state, batch_runs.c.lease_holder)
    row = connection.execute(query.where(batch_runs.c.id == lease.run_id)).one_or_none()
    if row is None:
        return StaleLease(f"{name} is not there any more")
    if row.state == BatchState.RUNNING and row.lease_holder:
        return StaleLease(f"{name} was taken over by {_place(row.lease_holder)}")
    return StaleLease(f"{name} is {row.state}")


def _place(holder: str) -> str:
    """A holder's host and process."""
    host, pid, *_ = (*holder.split(":"), "", "")
    return f"{host} (pid {pid})" if pid else host
