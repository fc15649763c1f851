"""Workers on the Ray cluster that settings name, or on one of this process's own."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from orchestrator.bootstrap import Parts, gang_log
from orchestrator.domain.batch_run import ShardClaim, ShardDone
from orchestrator.inference.shard_worker import WorkerPlan


@dataclass(frozen=True)
class RayPool:
    """Between `min_workers` and `num_workers` of the settings."""

    parts: Parts

    def up(self) -> AbstractContextManager[None]:
        return self.parts.cluster(gang_log(self.parts.settings, "batch"))

    def answer(self, plan: WorkerPlan, claims: Sequence[ShardClaim]) -> Iterator[ShardDone]:
        from orchestrator.inference.shard_stream import PoolSize, answer_shards

        settings = self.parts.settings
        most = settings.num_workers
        return answer_shards(plan, claims, PoolSize(min(settings.min_workers, most), most))
