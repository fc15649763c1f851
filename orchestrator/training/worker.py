"""What Ray Train runs on every rank of a gang: join it, load the base, stay until told to end."""

import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.gang import MAX_POSITIONS as MAX_POSITIONS
from orchestrator.domain.gang import GangOrder, TaskEvent, TaskFailed, TaskFinished, TaskWithdrawn
from orchestrator.training.heart import Heart
from orchestrator.training.worker_errors import DETERMINISTIC

if TYPE_CHECKING:
    from orchestrator.training.member import Member
    from orchestrator.training.task_opening import TaskOpening
    from orchestrator.training.task_run import TaskRun


@dataclass(frozen=True)
class WorkerOptions:
    """What the settings say of every rank. The context cache keeps its files in the machine's
    temporary folder; `context_dtype` is torch's name of a dtype. A rank that was not heard of for
    `silence_s` holds the others up no longer."""

    num_threads: int
    checkpoint_s: float
    max_positions: int = MAX_POSITIONS
    context_memory_bytes: int = 0
    context_disk_bytes: int = 0
    context_dtype: str = "float32"
    weight_copies_bytes: int = 0
    offload_folder: Path | None = None
    silence_s: float = 150.0


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
    """Train what the board gives this rank, until it says stop. A task's own error fails that task
    alone; an error in what tasks share, that would come again, gives this rank's tasks back as the
    machine's fault and ends the gang."""
    import ray
    import ray.train

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    log = config.log_folder / f"worker-{rank}.log"
    _send_output_to(log)

    def call(method: str, *arguments: Any) -> Any:
        asked = getattr(config.board, method).remote(*arguments)
        return ray.get(asked, timeout=config.options.silence_s)

    def tell(method: str, *arguments: Any) -> None:
        getattr(config.board, method).remote(*arguments)

    from orchestrator.training.member import Member

    member = Member(call, tell, rank, world_size, config.order.is_collective)
    member.join(socket.gethostname())
    heart = Heart(member.beat)
    heart.start()
    try:
        heart.reach("importing torch and deepspeed")
        _set_threads(config.options.num_threads)
        _stay(config, member, heart)
    except DETERMINISTIC as error:
        member.fail(f"{type(error).__name__}: {error} (the worker's log: {log})")
        raise
    finally:
        heart.stop()


def _stay(config: WorkerConfig, member: "Member", heart: Heart) -> None:
    from encoders.text.tokenization import TextTokenizer
    from orchestrator.training.checkpoint import Checkpointer
    from orchestrator.training.rank_loop import RankLoop
    from orchestrator.training.rank_passes import RankPasses
    from orchestrator.training.resident import Resident
    from orchestrator.training.task_opening import TaskOpening

    store = ArtifactStore(config.artifact_url)
    tokenizer = TextTokenizer.load(config.base_folder)
    base = _load_base(config, tokenizer, heart)
    opening = TaskOpening(store, tokenizer, base, config.order.max_length)
    voice = _Voice(member, opening, store, config.order.code_version)
    passes = RankPasses(base, _context_cache(base, config.options), config.options.max_positions)
    Resident(
        RankLoop(base, passes, (), voice.tell, voice.finish),
        member.ask,
        opening,
        Checkpointer(store, voice.tell, config.options.checkpoint_s, keeps=voice.speaks_for),
        voice.tell,
        member.rank,
        _where(member),
        lambda seconds, positions: heart.measure(seconds, positions / seconds),
    ).run()


class _Voice:
    """What a rank tells. Of jobs that all ranks train, the first one speaks."""

    def __init__(
        self, member: "Member", opening: "TaskOpening", store: ArtifactStore, code_version: str
    ) -> None:
        self._member, self._opening, self._store = member, opening, store
        self._code_version = code_version

    def speaks_for(self, job_id: str) -> bool:
        if self._member.rank == 0:
            return True
        order = self._opening.orders.get(job_id)
        return order is None or not order.spec.is_data_parallel

    def tell(self, events: Sequence[TaskEvent]) -> None:
        self._member.post([event for event in events if self.speaks_for(event.job_id)])
        for event in events:
            if isinstance(event, TaskFailed | TaskWithdrawn):
                self._opening.forget(event.job_id, event.epoch)

    def finish(self, run: "TaskRun") -> None:
        """Store a task's result and tell it. Raises StoreUnavailable."""
        from orchestrator.training.trained_prompt import store_trained_prompt

        if self.speaks_for(run.job_id):
            order = self._opening.orders[run.job_id]
            trained = store_trained_prompt(run, order, self._code_version, self._store)
            done = TaskFinished(run.job_id, trained, run.epoch)
            self._member.post_surely([run.progress("done"), done])
        self._opening.forget(run.job_id, run.epoch)


def _where(member: "Member") -> str:
    return f"worker {member.rank} of {member.world_size} ({socket.gethostname()})"


def _load_base(config: WorkerConfig, tokenizer: Any, heart: Heart) -> Any:
    """The base, checked; tells how it is held, and whether it is not packed."""
    from orchestrator.training.sharded_base import ShardedBase

    heart.reach("loading the base")
    print(config.order.sharding)
    base = ShardedBase.load(
        config.base_folder,
        tokenizer,
        config.order.zero_stage,
        offload=config.order.offload,
        offload_folder=config.options.offload_folder,
        shares_rows=config.order.shares_rows,
    )
    if config.order.zero_stage == 0:
        base.model.keep_weight_copies(config.options.weight_copies_bytes)
    reason = base.model.fallback_reason
    heart.reach(f"training, not packed: {reason}" if reason else "training", is_ready=True)
    return base


def _context_cache(base: Any, options: WorkerOptions) -> Any:
    import torch

    from encoders.packed.context_cache import CacheBudget, ContextCache

    folder = Path(tempfile.gettempdir())
    budget = CacheBudget(options.context_memory_bytes, options.context_disk_bytes, folder)
    return ContextCache(base.model, budget, getattr(torch, options.context_dtype))


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
