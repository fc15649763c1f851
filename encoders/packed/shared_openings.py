"""Where rows of one prompt part from each other, so that what they open with alike is packed once.

Rows in order of their ids form a tree of openings. A branch becomes a segment where it is long
enough to be worth one; which rows share it follows from the rows of that prompt alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from encoders.packed.packing import MIN_SHARED_HEAD, PackedRow


def cut_where_shared(rows: Sequence[PackedRow]) -> list[PackedRow]:
    """`rows` of one prompt, sorted by context, with their `cuts`: at the end of each opening of
    MIN_SHARED_HEAD positions or more that a row shares beyond the one before, and its `head`."""
    shared = [_common(one, other) for one, other in pairwise(rows)]
    cuts: list[tuple[int, ...]] = [()] * len(rows)
    open_ranges = [(0, len(rows), max((row.head for row in rows), default=0))]
    while open_ranges:
        first, stop, depth = open_ranges.pop()
        if stop - first < 2:
            continue
        least = min(shared[first : stop - 1])
        if least - depth >= MIN_SHARED_HEAD:
            depth = least
            for index in range(first, stop):
                cuts[index] += (least,)
        starts = [first, *(i + 1 for i in range(first, stop - 1) if shared[i] == least), stop]
        open_ranges += [(a, b, depth) for a, b in pairwise(starts)]
    return [
        replace(row, cuts=found) if found else row for row, found in zip(rows, cuts, strict=True)
    ]


def _common(one: PackedRow, other: PackedRow) -> int:
    """How many positions two rows open with alike, leaving each at least one of its own."""
    limit = min(len(one.context), len(other.context)) - 1
    for place in range(limit):
        if one.context[place] != other.context[place]:
            return place
    return limit
