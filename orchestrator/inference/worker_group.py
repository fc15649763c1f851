"""A group of Ray actors that hold bases together, from the driver's side: shards in, answers out.

They are placed all at once or not at all, and end all at once. The group that has lost one of them
is of no use: `take` raises GroupLost, with the cause.
"""

import contextlib
import threading
import time
from collections import Counter
from typing import Any

from orchestrator.domain.batch_run import ShardClaim, ShardDone
from orchestrator.domain.errors import ClusterUnavailable, TuttiError
from orchestrator.inference.group_watch import GroupLost, GroupWatch
from orchestrator.inference.shard_worker import SplitPlan, WorkerPlan
from orchestrator.inference.split_worker import MeetingPoint, SplitWorker

SHARDS_AHEAD = 2  # of a worker: the next one is there when it is through with one
POLL_S = 0.5
PULSE_S = 1.0
CAUSE_S = 3.0  # in which the one that died is known, after the others have missed it


class WorkerGroup:
    """`stop` set, nothing is waited for. Raises ClusterUnavailable where there is no room for it,
    and what `take` raises."""

    def __init__(self, plan: WorkerPlan, stop: threading.Event) -> None:
        assert plan.split is not None
        self._split, self._stop = plan.split, stop
        self.num_workers = _num_workers(plan.split)
        self._watch = GroupWatch(plan.split, self.num_workers, time.monotonic)
        self._answers: dict[Any, int] = {}  # by reference: the rank that has the shard
        self._pulses: dict[Any, int] = {}
        self._pulse_at = 0.0
        self._lost: GroupLost | None = None
        self._placement, self._actors = _reserve(self.num_workers), list[Any]()
        try:
            self._await_room()
            self._actors = [self._start(plan, rank) for rank in range(self.num_workers)]
            self._introduce()
        except BaseException:
            self.end()
            raise

    @property
    def has_room(self) -> bool:
        """Whether a worker may be given a shard."""
        return len(self._answers) < SHARDS_AHEAD * self.num_workers

    def give(self, claim: ShardClaim) -> None:
        """Have a shard answered by the worker that has the fewest."""
        held = Counter(self._answers.values())
        rank = min(range(self.num_workers), key=lambda each: held[each])
        self._answers[self._actors[rank].answer.remote(claim)] = rank

    def take(self) -> list[ShardDone]:
        """The shards that are answered, after waiting for the first a little. Raises the TuttiError
        that a worker met, or GroupLost once all that was answered is taken."""
        done = [each for _, each in self._look(self._answers, POLL_S)]
        if not done:
            self._check()
        return done

    def end(self) -> None:
        """End all workers now."""
        import ray

        with contextlib.suppress(Exception):  # the cluster may be gone, or what is left of it
            for actor in self._actors:
                ray.kill(actor)
            ray.util.remove_placement_group(self._placement)

    def _await_room(self) -> None:
        deadline = time.monotonic() + self._split.start_timeout_s
        while not self._placement.wait(POLL_S):
            if self._stop.is_set():
                raise GroupLost("it was left")
            if time.monotonic() > deadline:
                raise ClusterUnavailable(
                    f"{self.num_workers} workers are to hold the base together, and the cluster "
                    f"has not had so many free processors at once for "
                    f"{self._split.start_timeout_s:g} s",
                    "Look at it with `ray status`; fewer workers: TUTTI_NUM_WORKERS.",
                )

    def _start(self, plan: WorkerPlan, rank: int) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        place = PlacementGroupSchedulingStrategy(self._placement, rank)
        actor = ray.remote(SplitWorker).options(
            num_cpus=1, max_concurrency=SHARDS_AHEAD + 2, scheduling_strategy=place
        )
        return actor.remote(plan, rank, self.num_workers)

    def _introduce(self) -> None:
        """Tell all where the first one listens, and each which it is on its machine."""
        asked = {actor.meet.remote(): rank for rank, actor in enumerate(self._actors)}
        points: dict[int, MeetingPoint] = {}
        while len(points) < self.num_workers:
            points |= dict(self._look(asked, POLL_S))
            if self._stop.is_set():
                raise GroupLost("it was left")
            self._check()
        for rank, actor in enumerate(self._actors):
            here = points[rank].node_id
            local_rank = sum(points[each].node_id == here for each in range(rank))
            actor.join.remote(points[0], local_rank)

    def _check(self) -> None:
        """Hear all pulses that are there, and ask for the next ones."""
        for rank, pulse in self._look(self._pulses):
            self._watch.hear(rank, pulse)
        if self._lost is not None:
            raise GroupLost(self._cause())
        self._watch.check()
        if time.monotonic() > self._pulse_at:
            asked = set(self._pulses.values())
            missing = [rank for rank in range(self.num_workers) if rank not in asked]
            self._pulses |= {self._actors[rank].pulse.remote(): rank for rank in missing}
            self._pulse_at = time.monotonic() + PULSE_S

    def _look(self, asked: dict[Any, int], timeout_s: float = 0) -> list[tuple[int, Any]]:
        """What was answered, by rank, taken out of what was asked."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        if timeout_s:
            ray.wait(list(asked), timeout=timeout_s)
        ready = ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else []
        found = []
        for reference in ready:
            rank = asked.pop(reference)
            try:
                found.append((rank, ray.get(reference)))
            except RayTaskError as error:
                if isinstance(error.cause, TuttiError):
                    raise error.cause from error
                self._lose(rank, error.cause)
            except RayError as error:
                self._lose(rank, error)
        return found

    def _lose(self, rank: int, error: object) -> None:
        self._lost = self._lost or GroupLost(f"{self._watch.name(rank)}: {_last_line(error)}")

    def _cause(self) -> str:
        """Why the group is lost. Who has died is known a little after the others missed it."""
        import ray
        from ray.exceptions import RayActorError, RayError

        asked = {actor.pulse.remote(): rank for rank, actor in enumerate(self._actors)}
        ray.wait(list(asked), num_returns=len(asked), timeout=CAUSE_S)
        for reference, rank in asked.items():
            try:
                ray.get(reference, timeout=0)
            except RayActorError:
                return f"{self._watch.name(rank)} died"
            except RayError:
                continue
        return str(self._lost)


def _num_workers(split: SplitPlan) -> int:
    """As many as the cluster has processors for, within the plan."""
    import ray

    num_cpus = int(ray.cluster_resources().get("CPU", 0))
    return max(split.min_workers, min(split.max_workers, num_cpus))


def _reserve(num_workers: int) -> Any:
    import ray

    return ray.util.placement_group([{"CPU": 1}] * num_workers, strategy="PACK")


def _last_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
