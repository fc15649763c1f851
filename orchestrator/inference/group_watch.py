"""Whether the workers of a group get on: each must move, to a stage or by a pass, within a time.

All ranks make every pass together, so while shards are in work none of them stands still: one that
does, or whose process is stopped, holds up all of them. Values in, a verdict out: no Ray.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.domain.errors import TuttiError
from orchestrator.inference.shard_worker import SplitPlan
from orchestrator.inference.split_worker import ANSWERING, Pulse

STARTING = "starting its process"


class GroupLost(Exception):
    """A group of workers is gone, or of no use; another one may do better. Says why."""


@dataclass
class GroupWatch:
    """Hears the pulses of `num_workers` ranks; `now` gives seconds that only grow."""

    plan: SplitPlan
    num_workers: int
    now: Callable[[], float]
    _last: list[Pulse] = field(init=False)
    _since: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self._last = [Pulse(STARTING)] * self.num_workers
        self._since = [self.now()] * self.num_workers

    def hear(self, rank: int, pulse: Pulse) -> None:
        if pulse != self._last[rank]:
            self._last[rank], self._since[rank] = pulse, self.now()

    def name(self, rank: int) -> str:
        return f"worker {rank} of {self.num_workers}"

    def check(self) -> None:
        """Raises TuttiError where the start-up hangs, for it would again; GroupLost where a worker
        that had started stands still."""
        rank = min(range(self.num_workers), key=lambda each: self._since[each])
        stage, still_s = self._last[rank].stage, self.now() - self._since[rank]
        if stage != ANSWERING and still_s > self.plan.start_timeout_s:
            raise TuttiError(
                f"workers that hold a base together did not start: {self.name(rank)} has been "
                f"{stage} for {still_s:.0f} s, at most {self.plan.start_timeout_s:g} are allowed",
                "Look at the machine's load and memory; TUTTI_START_TIMEOUT_S allows more time.",
            )
        if stage == ANSWERING and still_s > self.plan.silence_s:
            raise GroupLost(f"{self.name(rank)} has made no pass for {still_s:.0f} s")
