"""What Ray Train runs on every rank of a gang: set up, load the base, train this rank's tasks."""

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.errors import TuttiError
from orchestrator.domain.gang import MAX_POSITIONS as MAX_POSITIONS
from orchestrator.domain.gang import (
    GangEvent,
    GangOrder,
    StageReached,
    TaskFailed,
    TaskFinished,
    TaskOrder,
)
from orchestrator.domain.task_spec import TaskSpec

#: Errors that would come again: they fail this rank's tasks. Others (a lost peer, a full disk) end
#: the worker group, and Ray starts it again.
DETERMINISTIC = (TuttiError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True)
class WorkerOptions:
    """What the settings say of every rank. The context cache keeps its files in the machine's
    temporary folder; `context_dtype` is torch's name of a dtype."""

    num_threads: int
    checkpoint_s: float
    max_positions: int = MAX_POSITIONS
    context_memory_bytes: int = 0
    context_disk_bytes: int = 0
    context_dtype: str = "float32"
    offload_folder: Path | None = None


@dataclass(frozen=True)
class WorkerConfig:
    """What each rank is given. `board` is the actor handle of board.Board."""

    order: GangOrder
    base_folder: Path
    artifact_url: str
    log_folder: Path
    options: WorkerOptions
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
    _set_threads(config.options.num_threads)
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

    from encoders.text.tokenization import TextTokenizer
    from orchestrator.training.checkpoint import Checkpointer
    from orchestrator.training.rank_loop import RankLoop
    from orchestrator.training.rank_passes import RankPasses
    from orchestrator.training.task_run import TaskRun
    from orchestrator.training.trained_prompt import store_trained_prompt

    store = ArtifactStore(config.artifact_url)
    tokenizer = TextTokenizer.load(config.base_folder)
    shared = {order.job_id for order in config.order.orders if order.spec.is_data_parallel}
    base = _load_base(rank, config, tokenizer, bool(shared), post)
    by_job = {order.job_id: order for order in orders}
    runs = _open_runs(config, orders, store, tokenizer, base, shared, end)
    silent = shared if rank > 0 else set()  # what the first rank speaks for

    def tell(events: Sequence[GangEvent]) -> None:
        post([event for event in events if getattr(event, "job_id", None) not in silent])

    def finish(run: TaskRun) -> None:
        if run.job_id in silent:
            return
        trained = store_trained_prompt(run, by_job[run.job_id], config.order.code_version, store)
        post([run.progress("done")])
        end(TaskFinished(run.job_id, trained))

    checkpointer = Checkpointer(store, post, config.options.checkpoint_s)

    def keep(runs: Sequence[TaskRun]) -> None:
        checkpointer.keep([run for run in runs if run.job_id not in silent])

    def is_stopping() -> bool:
        return bool(ray.get(config.board.is_stopping.remote()))

    passes = RankPasses(base, _context_cache(base, config.options), config.options.max_positions)
    RankLoop(base, passes, runs, tell, finish, keep, is_stopping).run()
    post([StageReached(rank, "done")])


def _open_runs(
    config: WorkerConfig,
    orders: Sequence[TaskOrder],
    store: ArtifactStore,
    tokenizer: Any,
    base: Any,
    shared: Set[str],
    end: Any,
) -> list[Any]:
    """This rank's runs, all in one bank. RuntimeError unless the jobs that ranks share stand at the
    same steps on all of them."""
    from encoders.bank.encoder_bank import EncoderBank
    from orchestrator.training.data_parallel import check_in_step

    limit, bank = config.order.max_length, EncoderBank()
    starts = _look_up_starts(config.order, orders, tokenizer, base)
    opened = [_open(each, store, tokenizer, base, limit, end, bank, starts) for each in orders]
    runs = [run for run in opened if run is not None]
    if shared:
        check_in_step({run.job_id: run.step for run in runs if run.job_id in shared})
    return runs


def _load_base(
    rank: int, config: WorkerConfig, tokenizer: Any, shares_rows: bool, post: Any
) -> Any:
    """The base, checked; tells how it is held, and whether it is not packed."""
    from orchestrator.training.sharded_base import ShardedBase

    post([StageReached(rank, f"loading the base ({config.order.sharding})")])
    print(config.order.sharding)
    base = ShardedBase.load(
        config.base_folder,
        tokenizer,
        config.order.zero_stage,
        offload=config.order.offload,
        offload_folder=config.options.offload_folder,
        shares_rows=shares_rows,
    )
    reason = base.model.fallback_reason
    post([StageReached(rank, f"training, not packed: {reason}" if reason else "training")])
    return base


def _context_cache(base: Any, options: WorkerOptions) -> Any:
    import torch

    from encoders.packed.context_cache import CacheBudget, ContextCache

    folder = Path(tempfile.gettempdir())
    budget = CacheBudget(options.context_memory_bytes, options.context_disk_bytes, folder)
    return ContextCache(base.model, budget, getattr(torch, options.context_dtype))


def _look_up_starts(
    gang: GangOrder, orders: Sequence[TaskOrder], tokenizer: Any, base: Any
) -> dict[str, Any]:
    """Where this rank's trainers start. All ranks look up if any of the gang asks for it."""
    from orchestrator.training.prompt_start import look_up_starts

    trials = [trial for order in gang.orders for trial in order.spec.trials().values()]
    if all(trial.encoder.init is None for trial in trials):
        return {}
    own = {key: trial for order in orders for key, trial in order.spec.trials().items()}
    return look_up_starts(own, tokenizer, base.model.model.get_input_embeddings())


def _open(
    order: TaskOrder,
    store: ArtifactStore,
    tokenizer: Any,
    base: Any,
    limit: int,
    end: Any,
    bank: Any = None,
    starts: Mapping[str, Any] | None = None,
) -> Any:
    """Read a task's stored data and build its trainer; an error fails this task alone."""
    from orchestrator.domain.dataset import parse_dataset
    from orchestrator.training.sweep_run import open_run
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

        def make(key: str, spec: TaskSpec) -> TaskTrainer:
            start = (starts or {}).get(key)
            return TaskTrainer(spec, data, base.model.token_dim, start, bank, key)

        def fresh() -> TaskRun:
            return open_run(order.job_id, order.spec, make)

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
        run.release()
        return None
    print(f"{order.spec.task}: goes on after step {run.step}")
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
