"""Cuts rows into forward passes of at most so many positions, which bounds a pass's memory.

A cut depends on a prompt's own rows alone, never on its neighbours.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby

from encoders.packed.packing import PackedRow, Text, common_head, is_cached

CACHED_COST = 0.125  # of a cached position against a packed one, in memory and time


def split_by_budget(
    rows: Iterable[PackedRow], max_positions: int, cached: Container[Text] = frozenset()
) -> Iterator[tuple[PackedRow, ...]]:
    """Cut rows, in order, into runs that cost at most `max_positions` (one row at the least).

    Successive rows of one prompt stay together; where they alone cost more, they are cut among
    themselves, so that a cut never depends on a prompt's neighbours.
    """
    run: list[PackedRow] = []
    used = 0.0
    for _, group in groupby(rows, key=lambda row: row.prompt):
        block = list(group)
        head, costs = _costs(block, cached)
        total = head + sum(costs)
        if run and used + total > max_positions:
            yield tuple(run)
            run, used = [], 0.0
        if total > max_positions:
            yield from _cut(block, costs, max_positions - head)
        else:
            run, used = run + block, used + total
    if run:
        yield tuple(run)


def _costs(rows: Sequence[PackedRow], cached: Container[Text]) -> tuple[int, list[float]]:
    """What rows of one prompt cost together: the head they share, and what each adds to it."""
    head = common_head([row for row in rows if not is_cached(row, cached)])
    return head, [
        row.num_positions - (1 - CACHED_COST) * len(row.text)
        if is_cached(row, cached)
        else row.num_positions - head
        for row in rows
    ]


def _cut(
    rows: Sequence[PackedRow], costs: Sequence[float], room: float
) -> Iterator[tuple[PackedRow, ...]]:
    """Cut rows into runs that cost at most `room` beside their head."""
    first, used = 0, 0.0
    for index, cost in enumerate(costs):
        if index > first and used + cost > room:
            yield tuple(rows[first:index])
            first, used = index, 0.0
        used += cost
    yield tuple(rows[first:])
