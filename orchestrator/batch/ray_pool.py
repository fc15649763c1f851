"""Workers on the Ray cluster that settings name, or on one of this process's own."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from orchestrator.bootstrap import Parts, gang_log
from orchestrator.domain.batch_run import ShardClaim, ShardDone
from orchestrator.inference.shard_worker import WorkerPlan

LEAVE_S = 10.0  # in which workers that hold a base together are ended


@dataclass(frozen=True)
class RayPool:
    """Between `min_workers` and `num_workers` of the settings; `note` hears of groups that were
    lost. It is up once."""

    parts: Parts
    note: Callable[[str], None]
    _stop: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def up(self) -> Iterator[None]:
        """Ray is not left before nobody waits on it: that would end this process."""
        self._ended.set()
        with self.parts.cluster(gang_log(self.parts.settings, "batch")):
            try:
                yield
            finally:
                self._stop.set()
                self._ended.wait(LEAVE_S)

    def answer(self, plan: WorkerPlan, claims: Sequence[ShardClaim]) -> Iterator[ShardDone]:
        if plan.split is None:
            return self._answer_whole(plan, claims)
        return self._answer_split(plan, claims)

    def _answer_whole(self, plan: WorkerPlan, claims: Sequence[ShardClaim]) -> Iterator[ShardDone]:
        from orchestrator.inference.shard_stream import PoolSize, answer_shards

        settings = self.parts.settings
        most = settings.num_workers
        return answer_shards(plan, claims, PoolSize(min(settings.min_workers, most), most))

    def _answer_split(self, plan: WorkerPlan, claims: Sequence[ShardClaim]) -> Iterator[ShardDone]:
        from orchestrator.inference.split_stream import answer_together
        from orchestrator.inference.worker_group import WorkerGroup

        def start() -> WorkerGroup:
            return WorkerGroup(plan, self._stop)

        self._ended.clear()
        try:
            yield from answer_together(start, claims, self.note, self._stop)
        finally:
            self._ended.set()
