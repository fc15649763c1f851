"""How far a run is, and when it may be through."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.domain.batch_run import ShardDone, TaskCount


@dataclass(frozen=True)
class Progress:
    """`num_rows` of `total` are answered, `num_errors` of them errors; the rate is of the rows that
    this process has seen answered, over the seconds since its first workers were asked for."""

    run_id: str
    total: int
    num_rows: int
    num_errors: int
    num_before: int = 0  # answered before this process
    seconds: float = 0.0
    counts: Mapping[str, TaskCount] = field(default_factory=dict)

    def after(self, shards: list[ShardDone], seconds: float) -> "Progress":
        """With these shards answered too, at `seconds`."""
        counts = dict(self.counts)
        for shard in shards:
            for name, count in shard.counts.items():
                counts[name] = counts.get(name, TaskCount()) + count
        return Progress(
            self.run_id,
            self.total,
            self.num_rows + sum(shard.num_rows for shard in shards),
            self.num_errors + sum(shard.num_errors for shard in shards),
            self.num_before,
            seconds,
            counts,
        )

    @property
    def num_tasks(self) -> int:
        """Tasks of which rows were answered."""
        return len({name.partition("@")[0] for name in self.counts if name})

    @property
    def rows_per_s(self) -> float:
        return (self.num_rows - self.num_before) / self.seconds if self.seconds > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """None while there is no rate."""
        rate = self.rows_per_s
        return (self.total - self.num_rows) / rate if rate > 0 else None
