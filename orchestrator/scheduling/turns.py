"""Whose turn it is: queued jobs in the order they are to be served. Pure.

Higher priority first. Of equal priorities, the owner who has the least for their share, then the
oldest job. Of one task, one job at a time, so that versions come in the order of submission; but
the jobs of one array go side by side.
"""

import heapq
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import groupby

from orchestrator.domain.job import QueuedJob, Quota


class Turns:
    """Iterates over the jobs that may be served now; `take` tells that the one just given is.

    `ready` comes by priority, the highest first, then by age; `held` are jobs that gangs have.
    """

    def __init__(
        self, ready: Sequence[QueuedJob], held: Sequence[QueuedJob], quotas: Sequence[Quota]
    ) -> None:
        self._ready = ready
        self._quotas = {quota.owner: quota for quota in quotas}
        self._running = Counter(job.owner for job in held)
        self._busy = {job.task: job.array for job in held}

    def __iter__(self) -> Iterator[QueuedJob]:
        for _, jobs in groupby(self._ready, key=lambda job: job.priority):
            yield from self._of_one_priority(jobs)

    def take(self, job: QueuedJob) -> None:
        """Count a job as running from now on."""
        self._running[job.owner] += 1
        self._busy[job.task] = job.array

    def _of_one_priority(self, jobs: Iterator[QueuedJob]) -> Iterator[QueuedJob]:
        lines: dict[str, deque[QueuedJob]] = {}
        for job in jobs:
            lines.setdefault(job.owner, deque()).append(job)
        order = [self._standing(line) for line in lines.values()]
        heapq.heapify(order)
        while order:
            owner = heapq.heappop(order)[-1]
            if self._is_at_bound(owner):
                continue
            job = lines[owner].popleft()
            if self._has_turn(job):
                yield job
            if lines[owner]:
                heapq.heappush(order, self._standing(lines[owner]))

    def _has_turn(self, job: QueuedJob) -> bool:
        """Whether no job of its task is held but those of its own array."""
        if job.task not in self._busy:
            return True
        return job.array is not None and self._busy[job.task] == job.array

    def _standing(self, line: deque[QueuedJob]) -> tuple[float, float, str]:
        """Of two owners, the one with the lesser standing comes first."""
        owner = line[0].owner
        share = self._quotas[owner].share if owner in self._quotas else 1.0
        return self._running[owner] / share, line[0].created_at.timestamp(), owner

    def _is_at_bound(self, owner: str) -> bool:
        quota = self._quotas.get(owner)
        bound = quota.max_running if quota else None
        return bound is not None and self._running[owner] >= bound
