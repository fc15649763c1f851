"""Whether the workers of a group get on: each must be heard of, and must move, within a time.

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
    _heard: list[float] = field(init=False)
    _moved: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self._last = [Pulse(STARTING)] * self.num_workers
        self._heard = [self.now()] * self.num_workers
        self._moved = list(self._heard)

    def hear(self, rank: int, pulse: Pulse) -> None:
        self._heard[rank] = self.now()
        if pulse != self._last[rank]:
            self._last[rank], self._moved[rank] = pulse, self.now()

    def name(self, rank: int) -> str:
        return f"worker {rank} of {self.num_workers}"

    def check(self) -> None:
        """Raises TuttiError where the start-up hangs, for it would again; GroupLost where a worker
        that had started is not heard of, or stands still."""
        for rank, pulse in enumerate(self._last):
            name, limit_s = self.name(rank), self.plan.start_timeout_s
            silent_s, still_s = self.now() - self._heard[rank], self.now() - self._moved[rank]
            if pulse.stage != ANSWERING:
                if still_s > limit_s:
                    raise _hangs(f"{name} has been {pulse.stage} for {still_s:.0f} s", limit_s)
            elif silent_s > self.plan.silence_s:
                raise GroupLost(f"{name} was not heard of for {silent_s:.0f} s")
            elif still_s > limit_s:
                raise GroupLost(f"{name} has made no pass for {still_s:.0f} s")


def _hangs(what: str, limit_s: float) -> TuttiError:
    return TuttiError(
        f"workers that hold a base together did not start: {what}, at most {limit_s:g} are allowed",
        "Look at the machine's load and memory; TUTTI_START_TIMEOUT_S allows more time.",
    )
