"""Plans gangs: pure functions from queued jobs to orders. No clock, no database, no Ray."""

from collections.abc import Sequence

from orchestrator.domain.gang import TaskOrder
from orchestrator.domain.job import Job

GangKey = tuple[str, int]  # base fingerprint, ZeRO stage


def group_jobs(jobs: Sequence[Job], default_zero_stage: int) -> dict[GangKey, list[Job]]:
    """Jobs that can share one gang: the same base, sharded the same way. At most one job of a
    task is in a group (a second waits for the first), and order is kept."""
    groups: dict[GangKey, list[Job]] = {}
    taken: set[str] = set()
    for job in jobs:
        if job.task in taken:
            continue
        taken.add(job.task)
        sharding = job.submission.spec.sharding
        stage = default_zero_stage if sharding is None else sharding.zero_stage
        groups.setdefault((job.submission.base_fingerprint, stage), []).append(job)
    return groups


def num_ranks(num_workers: int, num_tasks: int, zero_stage: int) -> int:
    """Workers of a gang: all of them where the base is split (stage 3), else one a task at most."""
    return num_workers if zero_stage == 3 else max(1, min(num_workers, num_tasks))


def assign_ranks(
    orders: Sequence[TaskOrder], num_workers: int
) -> tuple[tuple[TaskOrder, ...], ...]:
    """Share tasks among ranks so that the busiest rank has the least to do: the heaviest first,
    each to the rank with the least work so far."""
    ranks: list[list[TaskOrder]] = [[] for _ in range(num_workers)]
    loads = [0.0] * num_workers
    for order in sorted(orders, key=lambda order: -_work(order)):
        rank = loads.index(min(loads))
        ranks[rank].append(order)
        loads[rank] += _work(order)
    return tuple(tuple(rank) for rank in ranks)


def _work(order: TaskOrder) -> float:
    """Positions to compute over the whole training."""
    return order.num_positions * order.spec.training.steps
