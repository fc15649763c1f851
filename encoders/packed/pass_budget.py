"""Cuts rows into forward passes of at most so many positions, which bounds a pass's memory.

A cut depends on a prompt's own rows alone, never on its neighbours.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby

from encoders.packed.packing import PackedRow, Root, common_head, is_cached

CACHED_COST = 0.125  # of a cached position against a packed one, in memory and time


def split_by_budget(
    rows: Iterable[PackedRow], max_positions: int, cached: Container[Root] = frozenset()
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
            yield from _cut(block, costs, _room(block, head, max_positions))
        else:
            run, used = run + block, used + total
    if run:
        yield tuple(run)


def _costs(rows: Sequence[PackedRow], cached: Container[Root]) -> tuple[int, list[float]]:
    """What rows of one prompt cost together: the head they share, and what each adds to it and, by
    its cuts, to the row before."""
    head = common_head([row for row in rows if not (row.cuts or is_cached(row, cached))])
    costs: list[float] = []
    for before, row in zip((None, *rows), rows, strict=False):
        root = len(row.root) if is_cached(row, cached) else 0
        shared = _shared_cut(before, row) if row.cuts else 0 if root else head
        costs.append(row.num_positions - max(root, shared) + CACHED_COST * root)
    return head, costs


def _room(rows: Sequence[PackedRow], head: int, max_positions: int) -> float:
    """What is left for rows in each run beside what it has to repeat; where they share an opening
    by their cuts, half of a pass at the least, or long openings would be repeated too often."""
    longest = max((row.cuts[-1] for row in rows if row.cuts), default=0)
    return max(max_positions - max(head, longest), max_positions / 2 if longest else 0)


def _shared_cut(before: PackedRow | None, row: PackedRow) -> int:
    """Positions that `row` shares with the row before it in its pack, by its cuts."""
    if before is None:
        return 0
    same = (cut for cut in reversed(row.cuts) if row.context[:cut] == before.context[:cut])
    return next(same, 0)


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
