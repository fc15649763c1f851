"""What Ray Train runs on every rank of a gang: set up, load the base, train this rank's tasks."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.errors import TuttiError
from orchestrator.domain.gang import (
    GangEvent,
    GangOrder,
    StageReached,
    TaskFailed,
    TaskFinished,
    TaskOrder,
)

#: Errors that would come again: they fail this rank's tasks. Others (a lost peer, a full disk) end
#: the worker group, and Ray starts it again.
DETERMINISTIC = (TuttiError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
MAX_POSITIONS = 1024  # of one forward pass, with the activations its backward pass needs


@dataclass(frozen=True)
class WorkerConfig:
    """What each rank is given. `board` is the actor handle of board.Board."""

    order: GangOrder
    base_folder: Path
    artifact_url: str
    log_folder: Path
    num_threads: int
    context_memory_bytes: int
    checkpoint_s: float
    board: Any


def run_worker(config: WorkerConfig) -> None:
    """Train one rank's tasks to their ends. A task's own error fails that task alone."""
    import ray
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    log = config.log_folder / f"worker-{rank}.log"
    _send_output_to(log)

    def post(events: Sequence[GangEvent]) -> None:
        config.board.post.remote(list(events))

    post([StageReached(rank, "importing torch and deepspeed")])
    _set_threads(config.num_threads)
    ended, checkpoints = ray.get([config.board.ended.remote(), config.board.checkpoints.remote()])
    orders = [
        replace(order, checkpoint=checkpoints.get(order.job_id, order.checkpoint))
        for order in config.order.ranks[rank]
        if order.job_id not in ended
    ]

    def end(event: GangEvent) -> None:
        ray.get(config.board.post.remote([event]))

    try:
        _train(rank, config, orders, post, end)
    except DETERMINISTIC as error:
        for order in orders:
            reason = f"{type(error).__name__}: {error} (the worker's log: {log})"
            end(TaskFailed(order.job_id, reason))
        raise


def _train(rank: int, config: WorkerConfig, orders: list[TaskOrder], post: Any, end: Any) -> None:
    import ray

    from encoders.packed.context_cache import CacheBudget, ContextCache
    from encoders.text.tokenization import TextTokenizer
    from orchestrator.training.checkpoint import Checkpointer
    from orchestrator.training.rank_loop import RankLoop
    from orchestrator.training.rank_passes import RankPasses
    from orchestrator.training.sharded_base import ShardedBase
    from orchestrator.training.task_run import TaskRun
    from orchestrator.training.trained_prompt import store_trained_prompt

    post([StageReached(rank, "loading the base")])
    store = ArtifactStore(config.artifact_url)
    tokenizer = TextTokenizer.load(config.base_folder)
    base = ShardedBase.load(config.base_folder, tokenizer, config.order.zero_stage)
    post([StageReached(rank, "training")])
    by_job = {order.job_id: order for order in orders}
    limit = config.order.max_length
    starts = _look_up_starts(config.order, orders, tokenizer, base)
    runs = [
        run
        for order in orders
        if (run := _open(order, store, tokenizer, base, limit, end, starts.get(order.job_id)))
    ]

    def finish(run: TaskRun) -> None:
        trained = store_trained_prompt(run, by_job[run.job_id], config.order.code_version, store)
        post([run.progress("done")])
        end(TaskFinished(run.job_id, trained))

    def is_stopping() -> bool:
        return bool(ray.get(config.board.is_stopping.remote()))

    cache = ContextCache(base.model, CacheBudget(config.context_memory_bytes))
    passes = RankPasses(base, cache, MAX_POSITIONS)
    keep = Checkpointer(store, post, config.checkpoint_s).keep
    RankLoop(base, passes, runs, post, finish, keep, is_stopping).run()
    post([StageReached(rank, "done")])


def _look_up_starts(
    gang: GangOrder, orders: Sequence[TaskOrder], tokenizer: Any, base: Any
) -> dict[str, Any]:
    """Where this rank's prompts start. All ranks look up if any task of the gang asks for it."""
    from orchestrator.training.prompt_start import look_up_starts

    if all(order.spec.encoder.init is None for order in gang.orders):
        return {}
    specs = {order.job_id: order.spec for order in orders}
    return look_up_starts(specs, tokenizer, base.model.model.get_input_embeddings())


def _open(
    order: TaskOrder,
    store: ArtifactStore,
    tokenizer: Any,
    base: Any,
    limit: int,
    end: Any,
    start: Any = None,
) -> Any:
    """Read a task's stored data and build its trainer; an error fails this task alone."""
    from orchestrator.domain.dataset import parse_dataset
    from orchestrator.training.task_data import encode_task, max_row_length
    from orchestrator.training.task_run import TaskRun
    from orchestrator.training.task_trainer import TaskTrainer

    try:
        fields = (*order.spec.parsed_template().fields, order.spec.answer)
        datasets = {
            split: parse_dataset(store.get_bytes(digest), f"{order.spec.task}.{split}", fields)
            for split, digest in order.datasets.items()
        }
        data = encode_task(order.spec, datasets, tokenizer, max_row_length(order.spec, limit))

        def fresh() -> TaskRun:
            trainer = TaskTrainer(order.spec, data, base.model.token_dim, start)
            return TaskRun(order.job_id, trainer)

        return _resumed(order, store, fresh) or fresh()
    except (TuttiError, ValueError) as error:
        end(TaskFailed(order.job_id, str(error)))
        return None


def _resumed(order: TaskOrder, store: ArtifactStore, fresh: Callable[[], Any]) -> Any:
    """The run as its checkpoint left it; None without one, or where it cannot be used."""
    from orchestrator.training.checkpoint import load_checkpoint

    if order.checkpoint is None:
        return None
    run = fresh()
    try:
        run.restore(load_checkpoint(store.get_bytes(order.checkpoint)))
    except (TuttiError, ValueError, LookupError, TypeError, RuntimeError) as error:
        print(f"{order.spec.task}: starts again, its checkpoint is of no use: {error}")
        return None
    print(f"{order.spec.task}: goes on after step {run.trainer.step}")
    return run


def _set_threads(num_threads: int) -> None:
    import torch

    torch.set_num_threads(num_threads)


def _send_output_to(path: Path) -> None:
    """Everything this process prints, C++ included, goes to one file that the view names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
