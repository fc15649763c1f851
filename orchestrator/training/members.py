"""The ranks of the present worker group: who they are, and when each was last heard of."""

from collections.abc import Callable
from dataclasses import dataclass

STARTING = "starting Ray workers"
#: A rank that was heard of so lately is given tasks; workers beat every second.
LIVELY_S = 5.0


@dataclass
class _Member:
    heard: float
    since: float
    stage: str = STARTING
    host: str = ""
    has_joined: bool = False
    is_ready: bool = False
    saved: int = 0
    step_s: float = 0.0
    tokens_per_s: float = 0.0


class Members:
    """Nobody until the first rank of a group joins; then all its ranks, joined or not."""

    def __init__(self, silence_s: float, now: Callable[[], float]) -> None:
        self.silence_s, self._now = silence_s, now
        self.clear()

    def clear(self) -> None:
        """The group is gone; another one may join."""
        self._incarnation: str | None = None
        self._ranks: dict[int, _Member] = {}
        self._since = self._now()

    def join(self, incarnation: str, rank: int, world_size: int, host: str) -> bool:
        """False while another group is there."""
        if self._incarnation is None:
            self._incarnation = incarnation
            now = self._now()
            self._ranks = {each: _Member(now, self._since) for each in range(world_size)}
        if incarnation != self._incarnation:
            return False
        self.hear(rank)
        self._ranks[rank].has_joined, self._ranks[rank].host = True, host
        return True

    def is_present(self, incarnation: str) -> bool:
        return incarnation == self._incarnation

    def is_ready(self, rank: int) -> bool:
        """Whether a rank has its start behind it."""
        return self._ranks[rank].is_ready

    def hear(self, rank: int, saved: int = 0) -> None:
        member = self._ranks[rank]
        member.heard, member.saved = self._now(), max(saved, member.saved)

    def beat(
        self, rank: int, stage: str, is_ready: bool, step_s: float, tokens_per_s: float
    ) -> bool:
        """Note what a rank says of itself; whether the stage is a new one."""
        self.hear(rank)
        member = self._ranks[rank]
        member.is_ready, member.step_s, member.tokens_per_s = is_ready, step_s, tokens_per_s
        if member.stage == stage:
            return False
        member.stage, member.since = stage, self._now()
        return True

    def silent_s(self, rank: int | None) -> float:
        """Since a rank was heard of; None: the one that was silent longest."""
        ranks = self._ranks if rank is None else (rank,)
        return max((self._now() - self._ranks[each].heard for each in ranks), default=0.0)

    @property
    def lively(self) -> list[int]:
        """Who may be given tasks: all, if nobody was heard of lately."""
        return [r for r in self._ranks if self.silent_s(r) <= LIVELY_S] or list(self._ranks)

    @property
    def are_all_silent(self) -> bool:
        return bool(self._ranks) and all(self.silent_s(r) > self.silence_s for r in self._ranks)

    def whom_it_waits_for(self, rank: int) -> str | None:
        """Which other rank is silent for too long, for people."""
        for other, member in self._ranks.items():
            if other != rank and self.silent_s(other) > self.silence_s:
                where = f" on {member.host}" if member.host else ""
                return f"rank {other}{where} was not heard of for {self.silent_s(other):.0f} s"
        return None

    def all_saved(self, number: int) -> bool:
        """Whether all that train and are heard of have met the request to save."""
        return all(
            member.saved >= number
            for rank, member in self._ranks.items()
            if member.is_ready and self.silent_s(rank) <= LIVELY_S
        )

    @property
    def num_joined(self) -> int:
        return sum(member.has_joined for member in self._ranks.values())

    @property
    def is_up(self) -> bool:
        """Whether all have their start behind them."""
        return bool(self._ranks) and all(member.is_ready for member in self._ranks.values())

    @property
    def stage(self) -> str | None:
        """Where the rank stands that has been in its start-up stage for longest."""
        if not self._ranks:
            return STARTING
        behind = self._furthest_behind()
        return behind.stage if behind else None

    @property
    def stage_s(self) -> float:
        """How long it has been there."""
        if not self._ranks:
            return self._now() - self._since
        behind = self._furthest_behind()
        return self._now() - behind.since if behind else 0.0

    def _furthest_behind(self) -> _Member | None:
        starting = [member for member in self._ranks.values() if not member.is_ready]
        return min(starting, key=lambda member: member.since, default=None)

    @property
    def step_s(self) -> float:
        """Of the slowest rank."""
        return max((member.step_s for member in self._ranks.values()), default=0.0)

    @property
    def tokens_per_s(self) -> float:
        """Of all ranks together."""
        return sum(member.tokens_per_s for member in self._ranks.values())
