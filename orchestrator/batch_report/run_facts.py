"""What the ledger knows of a run and its output rows do not say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.batch_run import TaskCount, TaskCounts


@dataclass(frozen=True)
class ShardFacts:
    """One finished shard: its rows, the seconds that its worker spent on them, and what of it is
    whose, by `TASK@NUMBER`."""

    index: int
    num_rows: int
    seconds: float
    counts: TaskCounts = field(default_factory=dict)

    @property
    def num_positions(self) -> int:
        return sum(count.positions for count in self.counts.values())

    def seconds_of(self, ref: str) -> float:
        """A version's part of the seconds, by its part of the positions: rows of all versions share
        forward passes, so nothing else can tell."""
        count = self.counts.get(ref, TaskCount())
        return self.seconds * count.positions / max(1, self.num_positions)


@dataclass(frozen=True)
class PinnedVersion:
    """A version as the run pinned it, by content digest, on a base by fingerprint."""

    ref: str
    digest: str
    base: str


@dataclass(frozen=True)
class RunFacts:
    """A run. `seconds`: from its creation to its end, or until now; `inputs`: sha256 by name.
    `num_shards` counts all that it has, `shards` holds those that are finished."""

    id: str
    state: str
    created_at: str = ""
    seconds: float | None = None
    output: str = ""
    num_rows: int | None = None
    num_shards: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    versions: tuple[PinnedVersion, ...] = ()
    shards: tuple[ShardFacts, ...] = ()
