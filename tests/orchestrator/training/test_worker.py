"""What the settings make of a rank, and what it tells."""

import json
from pathlib import Path
from typing import Any

import torch

from encoders.packed.context_cache import ContextCache
from encoders.packed.packing import PackedRow, pack
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.gang import (
    TaskFailed,
    TaskFinished,
    TaskNoted,
    TaskOrder,
    TaskProgress,
    TaskWithdrawn,
)
from orchestrator.training.board import Board
from orchestrator.training.member import Member
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_opening import TaskOpening
from orchestrator.training.task_run import TaskRun
from orchestrator.training.worker import WorkerOptions, _context_cache, _Voice
from tests.orchestrator.training.conftest import make_spec
from tests.tiny import colour_rows


def test_the_context_cache_is_as_the_settings_say(base: ShardedBase) -> None:
    row = PackedRow("a", (5, 6, 7, -1))

    def filled(**options: Any) -> ContextCache:
        cache = _context_cache(base, WorkerOptions(num_threads=1, checkpoint_s=1.0, **options))
        for texts in cache.missing([row], 64):
            cache.compute(texts)
        return cache

    exact = filled(context_memory_bytes=1 << 20)
    half = filled(context_disk_bytes=1 << 20, context_dtype="bfloat16")
    assert exact.memory_bytes == 2 * half.disk_bytes > 0
    assert half.memory_bytes == exact.disk_bytes == 0
    layers = half.layers(pack([row], {"a": 1}, half))
    assert layers is not None
    assert layers[0].key.dtype == torch.bfloat16
    assert len(filled()) == 0


class Telling:
    """A rank's voice; its board is real."""

    def __init__(self, tmp_path: Path, tokenizer: TextTokenizer, base: ShardedBase) -> None:
        self.store, self.board = ArtifactStore(str(tmp_path)), Board(60.0)
        self.board.start_group()
        rows = self.store.put_bytes("\n".join(map(json.dumps, colour_rows(6))).encode()).digest
        self.datasets = {"train": rows, "eval": rows}
        self.opening = TaskOpening(self.store, tokenizer, base, 256)
        member = Member(self.call, self.call, 0, 1, is_collective=False)
        member.join("host")
        self.member, self.voice = member, _Voice(member, self.opening, self.store, "code")

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.board, method)(*arguments)

    def open(self, job_id: str) -> TaskRun:
        order = TaskOrder(job_id, make_spec(), self.datasets, "f" * 64, 10.0)
        self.board.admit([order])
        told = self.member.ask(is_idle=False, saved=0)
        (run,), _ = self.opening(told.own.admits, told.all_admits)
        return run


def test_a_rank_remembers_no_job_that_is_over(
    tmp_path: Path, tokenizer: TextTokenizer, base: ShardedBase
) -> None:
    telling = Telling(tmp_path, tokenizer, base)
    finished, *_ = [telling.open(job) for job in ("finished", "failed", "withdrawn", "open")]
    telling.voice.finish(finished)
    telling.voice.tell([TaskFailed("failed", "bad"), TaskWithdrawn("withdrawn", 0, 1)])
    telling.voice.tell([TaskNoted("open", 0, "goes on")])
    assert list(telling.opening.orders) == ["open"]
    ends = [type(event) for event in telling.board.take().events]
    assert ends == [TaskProgress, TaskFinished, TaskFailed, TaskWithdrawn, TaskNoted]
    assert telling.voice.speaks_for("finished")
