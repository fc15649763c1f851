"""Shards through workers that hold bases together, as shard_stream.py's are through whole ones.

When a worker dies all of its group are replaced, for none can go on without it. What was answered
by then counts; only shards that were in work are answered again, behind those that wait.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
    waiting, num_losses = deque(claims), 0
    while waiting and not stop.is_set():
        in_work: dict[int, ShardClaim] = {}
        try:
            for done in _use(start(), waiting, in_work, stop):
                num_losses = 0
                yield done
        except GroupLost as lost:
            num_losses += 1
            if num_losses > MAX_LOSSES:
                raise _no_use(num_losses, lost) from lost
            if not stop.is_set():
                note(f"{lost}; its group starts again, and {len(in_work)} shards with it")
        waiting.extend(in_work.values())


def _use(
    group: Group, waiting: deque[ShardClaim], in_work: dict[int, ShardClaim], stop: threading.Event
) -> Iterator[ShardDone]:
    """What one group answers. `in_work` holds what it has and `waiting` no longer has."""
    try:
        while (waiting or in_work) and not stop.is_set():
            while waiting and group.has_room:
                claim = waiting.popleft()
                in_work[claim.number] = claim
                group.give(claim)
            for done in group.take():
                del in_work[done.number]
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
