"""Shards through workers that hold bases together, as shard_stream.py's are through whole ones.

When a worker dies all of its group are replaced, for none can go on without it. What was answered
by then counts; only shards that were in work are answered again, behind those that wait. One that
was in work twice when its group was lost is tried alone, so that it takes no others along.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.domain.batch_run import ShardClaim, ShardDone
from orchestrator.domain.errors import TuttiError
from orchestrator.inference.group_watch import GroupLost

#: Groups in a row that may be lost without a shard between them.
MAX_LOSSES = 3


class Group(Protocol):
    """WorkerGroup, whose methods say more."""

    @property
    def has_room(self) -> bool: ...
    def give(self, claim: ShardClaim) -> None: ...
    def take(self) -> list[ShardDone]: ...
    def end(self) -> None: ...


def answer_together(
    start: Callable[[], Group],
    claims: Sequence[ShardClaim],
    note: Callable[[str], None],
    stop: threading.Event,
) -> Iterator[ShardDone]:
    """Answer the shards by groups that `start` gives, one after the other; each shard comes when it
    is ready, in no order. Ends early when `stop` is set. Raises the TuttiError that a worker met,
    or one that says how groups were lost."""
    shards, num_losses = _Shards(deque(claims)), 0
    while shards.waiting and not stop.is_set():
        try:
            for done in _use(start(), shards, stop):
                num_losses = 0
                yield done
        except GroupLost as lost:
            num_losses += 1
            if num_losses > MAX_LOSSES:
                raise _no_use(num_losses, lost) from lost
            if not stop.is_set():
                note(f"{lost}; its group starts again, and {len(shards.in_work)} shards with it")
            shards.take_back()


@dataclass
class _Shards:
    """Those that wait, and those that the present group has, by number."""

    waiting: deque[ShardClaim]
    in_work: dict[int, ShardClaim] = field(default_factory=dict)
    num_losses: Counter[int] = field(default_factory=Counter)

    def next(self) -> ShardClaim | None:
        """The next to be given, if it may be beside those in work."""
        if not self.waiting:
            return None
        claim = self.waiting[0]
        beside = (claim.number, *self.in_work)
        if self.in_work and any(self.num_losses[number] > 1 for number in beside):
            return None
        self.in_work[claim.number] = claim
        return self.waiting.popleft()

    def take_back(self) -> None:
        self.num_losses.update(self.in_work.keys())
        self.waiting.extend(self.in_work.values())
        self.in_work.clear()


def _use(group: Group, shards: _Shards, stop: threading.Event) -> Iterator[ShardDone]:
    """What one group answers."""
    try:
        while (shards.waiting or shards.in_work) and not stop.is_set():
            while group.has_room and (claim := shards.next()) is not None:
                group.give(claim)
            for done in group.take():
                del shards.in_work[done.number]
                yield done
    finally:
        group.end()


def _no_use(num_losses: int, lost: GroupLost) -> TuttiError:
    return TuttiError(
        f"workers that hold a base together were lost {num_losses} times in a row, without a shard "
        f"answered between; the last time: {lost}",
        "Is there memory for each worker's share? See TUTTI_NUM_WORKERS, TUTTI_OFFLOAD and Ray's "
        "logs.",
    )
