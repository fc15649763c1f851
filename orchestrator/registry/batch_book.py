"""The ledger of batch runs: one process at a time works on a run, a shard counts once.

Each method is one transaction. `create` and `lead` give a lease; whatever is written to a run is
fenced by its token, and a shard's commit by the shard's own epoch as well: 0 rows is stale, raises
StaleLease and leaves nothing behind. Leases run by the database's clock; a run whose holder is
known to be dead is taken at once.
"""

import secrets
from collections.abc import Callable, Collection, Sequence

from sqlalchemy import exists, insert, select, update

from orchestrator.domain.batch_run import (
    BatchRun,
    BatchState,
    RunLease,
    RunPlan,
    ShardClaim,
    ShardDone,
    ShardRecord,
    ShardState,
)
from orchestrator.domain.digest import short
from orchestrator.domain.errors import InvalidInput
from orchestrator.registry.batch_fence import (
    check_free,
    commit_shard,
    count_done,
    end_lease,
    fetch_run,
    lock_run,
    refuse_shared_output,
    write_run,
)
from orchestrator.registry.batch_rows import (
    NO_LEASE,
    NOT_DONE,
    RUN_COLUMNS,
    fetch_shards,
    find_run_id,
    plan_from_row,
    plan_values,
    run_from_row,
)
from orchestrator.registry.database import Database
from orchestrator.registry.dialect import in_batches, lock_table, now
from orchestrator.registry.job_log import clip
from orchestrator.registry.tables import batch_runs, batch_shards

BatchRuns = list[BatchRun]
ShardRecords = list[ShardRecord]
ShardClaims = list[ShardClaim]


class BatchBook:
    """Every read and write of batch runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, run_id: str, plan: RunPlan, source: str, owner: str, holder: str, lease_s: float
    ) -> RunLease:
        """Enter a run (`run_id`: 32 hex digits of the caller's) with all its shards, and take it.
        Raises InvalidInput where a run that has not ended writes to the same output."""
        token = secrets.token_hex(16)
        values = plan_values(plan, source) | {
            "id": run_id,
            "state": BatchState.RUNNING,
            "owner": owner,
            "epoch": 1,
            "lease_holder": holder,
            "lease_token": token,
            "lease_expires_at": now(lease_s),
            "num_shards_done": 0,
            "num_answered": 0,
            "num_errors": 0,
            "seconds": 0.0,
            "created_at": now(),
        }
        with self._database.write() as connection:
            lock_table(connection, batch_runs)
            refuse_shared_output(connection, plan.output)
            connection.execute(insert(batch_runs).values(values))
            shards = [
                {"run_id": run_id, "number": number, "epoch": 0, "num_rows": size, **NOT_DONE}
                for number, size in enumerate(plan.shard_sizes)
            ]
            for batch in in_batches(shards):
                connection.execute(insert(batch_shards), list(batch))
        return RunLease(run_id, holder, token, 1)

    def lead(
        self, run_id: str, holder: str, lease_s: float, is_dead: Callable[[str], bool]
    ) -> RunLease:
        """Take a run that has not ended, by id or prefix: what its last holder claimed and did not
        commit is free again. Raises InvalidInput where it has ended, or another process has it;
        `is_dead` is asked about that one outside of any transaction."""
        with self._database.read() as connection:
            run_id = find_run_id(connection, run_id)
            other = fetch_run(connection, run_id).holder
        is_gone = other is not None and is_dead(other)
        token = secrets.token_hex(16)
        with self._database.write() as connection:
            row = fetch_run(connection, run_id, lock=True)
            check_free(row, other if is_gone else None)
            values = {
                "state": BatchState.RUNNING,
                "epoch": row.epoch + 1,
                "lease_holder": holder,
                "lease_token": token,
                "lease_expires_at": now(lease_s),
                "error": None,
                "finished_at": None,
            }
            connection.execute(update(batch_runs).where(batch_runs.c.id == run_id).values(values))
            left = update(batch_shards).where(batch_shards.c.run_id == run_id)
            left = left.where(batch_shards.c.state == ShardState.CLAIMED)
            connection.execute(left.values(NOT_DONE))
        return RunLease(run_id, holder, token, row.epoch + 1)

    def renew(self, lease: RunLease, lease_s: float) -> None:
        """Keep the lease for `lease_s` from now. Raises StaleLease, which says why."""
        with self._database.write() as connection:
            write_run(connection, lease, {"lease_expires_at": now(lease_s)})

    def claim(self, lease: RunLease, limit: int | None = None) -> ShardClaims:
        """Take up to `limit` shards that nobody has, the first ones first."""
        own = batch_shards.c.run_id == lease.run_id
        free = select(batch_shards.c.number).where(own, batch_shards.c.state == ShardState.QUEUED)
        taken: ShardClaims = []
        with self._database.write() as connection:
            lock_run(connection, lease)
            query = free.order_by(batch_shards.c.number).limit(limit)
            for batch in in_batches(connection.execute(query).scalars().all()):
                statement = update(batch_shards).where(own, batch_shards.c.number.in_(batch))
                statement = statement.values(
                    state=ShardState.CLAIMED, epoch=batch_shards.c.epoch + 1, holder=lease.holder
                )
                returned = statement.returning(batch_shards.c.number, batch_shards.c.epoch)
                taken += [ShardClaim(*row) for row in connection.execute(returned)]
        return sorted(taken, key=lambda claim: claim.number)

    def commit(self, lease: RunLease, shards: Sequence[ShardDone]) -> None:
        """The shards are answered; all of them count from now on, or none where one is stale.
        Again it changes nothing."""
        with self._database.write() as connection:
            lock_run(connection, lease)
            new = [each for each in shards if commit_shard(connection, lease.run_id, each)]
            write_run(
                connection,
                lease,
                {
                    "num_shards_done": batch_runs.c.num_shards_done + len(new),
                    "num_answered": batch_runs.c.num_answered + sum(s.num_rows for s in new),
                    "num_errors": batch_runs.c.num_errors + sum(s.num_errors for s in new),
                },
            )

    def reopen(self, lease: RunLease, numbers: Collection[int]) -> None:
        """What these shards' part files held is lost: they are to be answered again."""
        with self._database.write() as connection:
            lock_run(connection, lease)
            for batch in in_batches(sorted(numbers)):
                lost = update(batch_shards).where(batch_shards.c.run_id == lease.run_id)
                lost = lost.where(batch_shards.c.number.in_(batch))
                connection.execute(lost.values(NOT_DONE))
            write_run(connection, lease, count_done(connection, lease.run_id))

    def finish(self, lease: RunLease, seconds: float) -> BatchRun:
        """The output is whole: the run has succeeded. `seconds` that the holder worked on it."""
        with self._database.write() as connection:
            row = lock_run(connection, lease)
            assert row.num_shards_done == row.num_shards, "a shard of the run is not answered"
            return end_lease(
                connection, lease, seconds, state=BatchState.SUCCEEDED, finished_at=now()
            )

    def fail(self, lease: RunLease, error: str, seconds: float) -> BatchRun:
        """End the run for now; it may be resumed."""
        values = {"state": BatchState.FAILED, "error": clip(error), "finished_at": now()}
        with self._database.write() as connection:
            return end_lease(connection, lease, seconds, **values)

    def release(self, lease: RunLease, seconds: float) -> BatchRun:
        """Stop working on the run; whoever resumes it goes on at once."""
        with self._database.write() as connection:
            return end_lease(connection, lease, seconds)

    def cancel(self, run_id: str) -> BatchRun:
        """End a run for good, by id or prefix; its holder stops when it hears of it. Cancelling
        twice changes nothing. Raises InvalidInput where it has succeeded."""
        with self._database.write() as connection:
            run_id = find_run_id(connection, run_id)
            row = fetch_run(connection, run_id, lock=True)
            if row.state == BatchState.SUCCEEDED:
                raise InvalidInput(f"batch run {short(run_id)} has succeeded: nothing to cancel")
            if row.state != BatchState.CANCELLED:
                values = {"state": BatchState.CANCELLED, "finished_at": now(), **NO_LEASE}
                statement = update(batch_runs).where(batch_runs.c.id == run_id)
                connection.execute(statement.values(epoch=batch_runs.c.epoch + 1, **values))
            return run_from_row(fetch_run(connection, run_id))

    def get(self, run_id: str) -> BatchRun:
        """By id, or a unique prefix of at least 6 hex digits; raise UnknownName."""
        with self._database.read() as connection:
            return run_from_row(fetch_run(connection, find_run_id(connection, run_id)))

    def plan(self, run_id: str) -> RunPlan:
        """What a run (whole id) was started with."""
        query = select(batch_runs).where(batch_runs.c.id == run_id)
        sizes = select(batch_shards.c.num_rows).where(batch_shards.c.run_id == run_id)
        with self._database.read() as connection:
            found = connection.execute(sizes.order_by(batch_shards.c.number)).scalars().all()
            return plan_from_row(connection.execute(query).one(), tuple(found))

    def shards(self, run_id: str) -> ShardRecords:
        """A run's (whole id) shards, in order."""
        with self._database.read() as connection:
            return fetch_shards(connection, run_id)

    def is_one_at_work(self) -> bool:
        """Whether a process that lives has a run with shards that are not answered."""
        at_work = exists().where(
            batch_runs.c.state == BatchState.RUNNING,
            batch_runs.c.lease_expires_at > now(),
            batch_runs.c.num_shards_done < batch_runs.c.num_shards,
        )
        with self._database.look() as connection:
            return bool(connection.execute(select(at_work)).scalar_one())

    def list(
        self,
        states: Collection[BatchState] | None = None,
        owner: str | None = None,
        limit: int = 100,
    ) -> BatchRuns:
        """Runs, the newest first."""
        query = select(*RUN_COLUMNS).order_by(batch_runs.c.created_at.desc(), batch_runs.c.id)
        if states is not None:
            query = query.where(batch_runs.c.state.in_(states))
        if owner is not None:
            query = query.where(batch_runs.c.owner == owner)
        with self._database.read() as connection:
            return [run_from_row(row) for row in connection.execute(query.limit(limit))]
