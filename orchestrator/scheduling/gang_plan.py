"""Plans gangs: pure functions from queued jobs to orders. No clock, no database, no Ray."""

from collections.abc import Sequence

from orchestrator.domain.gang import TaskOrder
from orchestrator.domain.job import Job

GangKey = tuple[str, int | None]  # base fingerprint, ZeRO stage (None: to be planned)


def group_jobs(jobs: Sequence[Job], default_zero_stage: int | None) -> dict[GangKey, list[Job]]:
    """Jobs that can share one gang: the same base, sharded the same way. At most one job of a
    task is in a group (a second waits for the first), and order is kept."""
    groups: dict[GangKey, list[Job]] = {}
    taken: set[str] = set()
    for job in jobs:
        if job.task in taken:
            continue
        taken.add(job.task)
        sharding = job.submission.spec.sharding
        asked = None if sharding is None else sharding.zero_stage
        stage = default_zero_stage if asked is None else asked
        groups.setdefault((job.submission.base_fingerprint, stage), []).append(job)
    return groups


def num_ranks(num_workers: int, orders: Sequence[TaskOrder], zero_stage: int) -> int:
    """Workers of a gang: all of them where the base (stage 3) or the rows of a task (data parallel)
    are split, else one a task at most."""
    if zero_stage == 3 or any(order.spec.is_data_parallel for order in orders):
        return num_workers
    return max(1, min(num_workers, len(orders)))


def assign_ranks(
    orders: Sequence[TaskOrder], num_workers: int
) -> tuple[tuple[TaskOrder, ...], ...]:
    """Share tasks among ranks so that the busiest rank has the least to do: the heaviest first,
    each to the rank with the least work so far. A data-parallel task is first on every rank."""
    shared = [order for order in orders if order.spec.is_data_parallel]
    ranks = [list(shared) for _ in range(num_workers)]
    loads = [0.0] * num_workers
    for order in sorted(orders, key=lambda order: -_work(order)):
        if order.spec.is_data_parallel:
            continue
        rank = loads.index(min(loads))
        ranks[rank].append(order)
        loads[rank] += _work(order)
    return tuple(tuple(rank) for rank in ranks)


def _work(order: TaskOrder) -> float:
    """Positions to compute over the whole training."""
    return order.num_positions * order.spec.training.steps
