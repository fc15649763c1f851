"""Shards through a Ray Data actor pool: their numbers go in, what their parts are comes out.

Rows never pass through Ray's object store: a worker reads its shard and writes its part itself, so
memory is bounded by shards in work, whatever the input's size. Ray starts a killed worker again and
gives it its shard again.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.domain import errors
from orchestrator.domain.batch_run import ShardClaim, ShardDone, TaskCount
from orchestrator.domain.errors import TuttiError
from orchestrator.inference.shard_worker import ShardWorker, WorkerPlan

#: How often one shard may cost its worker its life before the run stops.
MAX_DEATHS = 3
SHARDS_AHEAD = 2  # of a worker: the next one is there when it is through with one


@dataclass(frozen=True)
class PoolSize:
    """Workers: Ray Data keeps their number between these, by the shards that wait."""

    min_workers: int
    max_workers: int


def answer_shards(
    plan: WorkerPlan, claims: Sequence[ShardClaim], size: PoolSize
) -> Iterator[ShardDone]:
    """Answer the shards on the Ray cluster that is up; each comes when it is ready, in no order.

    Raises the TuttiError that a worker met, or one that says how workers ended.
    """
    import ray.data
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = False
    context.enable_progress_bars = False
    most = min(size.max_workers, len(claims))
    pool = ray.data.ActorPoolStrategy(
        min_size=min(size.min_workers, most),
        max_size=most,
        initial_size=most,
        max_tasks_in_flight_per_actor=SHARDS_AHEAD,
    )
    items = [asdict(claim) for claim in claims]
    answered = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _ShardActor,
        fn_constructor_args=(plan,),
        compute=pool,
        num_cpus=1,
        max_restarts=-1,
        max_task_retries=MAX_DEATHS,
    )
    try:
        for row in answered.iter_rows():
            yield _unwrap(row)
    except (RayError, OSError) as error:
        raise TuttiError(
            f"the workers of a batch run ended: {_last_line(error)}",
            "Is there memory for a base in each worker? See TUTTI_NUM_WORKERS and the log.",
        ) from error


class _ShardActor:
    """The Ray Data face of ShardWorker. What is wrong with a shard comes back as a value: Ray would
    try again what would fail again."""

    def __init__(self, plan: WorkerPlan) -> None:
        self._worker = ShardWorker(plan)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        claim = ShardClaim(int(row["number"]), int(row["epoch"]))
        try:
            return {"done": json.dumps(asdict(self._worker.answer(claim))), "error": ""}
        except TuttiError as error:
            said = {"kind": type(error).__name__, "args": [error.message, error.remedy]}
            return {"done": "", "error": json.dumps(said)}


def _unwrap(row: dict[str, Any]) -> ShardDone:
    if row["error"]:
        said = json.loads(row["error"])
        kind: type[TuttiError] = getattr(errors, said["kind"], TuttiError)
        raise kind(*said["args"])
    done = json.loads(row["done"])
    counts = {name: TaskCount(**count) for name, count in done["counts"].items()}
    return ShardDone(**{**done, "counts": counts})


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
