"""Which rank trains which task. Pure: no clock, no Ray."""

from collections.abc import Mapping, Sequence

from orchestrator.domain.gang import TaskOrder

EVERY_RANK = -1


def work_of(order: TaskOrder) -> float:
    """Positions to compute over the whole training."""
    return order.num_positions * order.spec.training.steps


def place(orders: Sequence[TaskOrder], loads: Mapping[int, float]) -> dict[str, int]:
    """The rank of each order, by job id, so that the busiest rank has the least to do: the
    heaviest first, each to the rank with the least work so far.

    `loads` gives the work that each rank has which may take tasks. A data-parallel task goes to
    EVERY_RANK and weighs on none more than on another.
    """
    load = dict(loads)
    ranks = {}
    for order in sorted(orders, key=lambda order: -work_of(order)):
        if order.spec.is_data_parallel:
            ranks[order.job_id] = EVERY_RANK
            continue
        rank = min(load, key=lambda rank: (load[rank], rank))
        ranks[order.job_id] = rank
        load[rank] += work_of(order)
    return ranks
