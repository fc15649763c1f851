"""This rank's side of the board: it joins a worker group, asks for instructions, tells events.

In a collective gang the first rank asks for all and hands it round, so that all ranks admit, drop
and stop at the same step boundary; such ranks call `ask` together.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from orchestrator.domain.gang import TaskEvent, TaskOrder
from orchestrator.training.instructions import Instructions

IDLE_S = 0.03  # between two questions of a rank that has nothing to do
LONGEST_IDLE_S = 1.0  # a peer waits no longer for what the first rank hands round

Call = Callable[..., Any]


class StaleGroup(RuntimeError):
    """The board knows another worker group, or has ended: this process must end."""


@dataclass(frozen=True)
class Round:
    """What this rank is told, and what all ranks whose passes are tied to its own are to admit."""

    own: Instructions
    all_admits: tuple[TaskOrder, ...]


class Member:
    """`call(method, *arguments)` asks the board; `tell` says something without an answer."""

    def __init__(
        self,
        call: Call,
        tell: Call,
        rank: int,
        world_size: int,
        is_collective: bool,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._call, self._tell, self._pause = call, tell, pause
        self.rank, self.world_size = rank, world_size
        self._is_collective = is_collective and world_size > 1
        self.incarnation = self._agree_on_name()

    def _agree_on_name(self) -> str:
        names = [uuid.uuid4().hex]
        if self.world_size > 1:
            dist.broadcast_object_list(names, src=0)
        return names[0]

    def join(self, host: str) -> None:
        """Become known. Raises StaleGroup if the gang has ended."""
        if not self._call("join", self.incarnation, self.rank, self.world_size, host):
            raise StaleGroup("the gang has ended, or another worker group is at work")

    def ask(self, is_idle: bool, saved: int) -> Round:
        """What to do now. An idle rank waits a little for something to do."""
        if not self._is_collective:
            (own,) = self._sync([self.rank], is_idle, saved)
            return Round(own, own.admits)
        told: list[list[Instructions] | None] = [None]
        if self.rank == 0:
            told = [self._sync(range(self.world_size), is_idle, saved)]
        dist.broadcast_object_list(told, src=0)
        of_ranks = told[0]
        assert of_ranks is not None
        return Round(
            of_ranks[self.rank], tuple(order for each in of_ranks for order in each.admits)
        )

    def _sync(self, ranks: Sequence[int], is_idle: bool, saved: int) -> list[Instructions]:
        until = time.monotonic() + LONGEST_IDLE_S
        while True:
            told: list[Instructions] | None = self._call("sync", self.incarnation, ranks, saved)
            if told is None:
                raise StaleGroup("another worker group has taken this one's place")
            if not is_idle or any(map(_asks, told)) or time.monotonic() > until:
                return told
            self._pause(IDLE_S)

    def post(self, events: Sequence[TaskEvent]) -> None:
        """Tell events; they need no answer."""
        if events:
            self._tell("post", self.incarnation, list(events))

    def post_surely(self, events: Sequence[TaskEvent]) -> None:
        """Tell events and wait until the board has them."""
        self._call("post", self.incarnation, list(events))

    def fail(self, reason: str) -> None:
        """This rank cannot work: its tasks fail, and the gang ends."""
        self._call("fail_rank", self.incarnation, self.rank, reason)

    def beat(self, *said: Any) -> str | None:
        """Tell that this rank lives (see Board.beat)."""
        answer: str | None = self._call("beat", self.incarnation, self.rank, *said)
        return answer


def _asks(told: Instructions) -> bool:
    return bool(told.admits or told.withdrawals or told.is_stopping)
