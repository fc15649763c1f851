"""What a worker does with a shard: read its rows, have them answered, write its part file.

The same shard gives the same bytes, whoever answers it and whenever.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.batch_data.batch_input import Input
from orchestrator.batch_data.part_file import OutputFormat, write_part
from orchestrator.batch_data.shard_reader import read_shard
from orchestrator.domain.batch_run import ShardClaim, ShardDone, TaskCount
from orchestrator.domain.gang import Offload
from orchestrator.inference.row_answers import AnsweredRow, AnswerPlan, RowAnswers

if TYPE_CHECKING:
    from orchestrator.inference.predictor import LoadBase


@dataclass(frozen=True)
class SplitPlan:
    """How workers hold bases together: as many as there is room for, `min_workers` at least. A
    stage of their start, and later a forward pass, may take `start_timeout_s`; one that is not
    heard of for `silence_s` is given up."""

    min_workers: int
    max_workers: int
    start_timeout_s: float
    silence_s: float
    offload: Offload = "none"
    offload_folder: Path | None = None


@dataclass(frozen=True)
class WorkerPlan:
    """All that a worker needs: what is read, how rows are answered, where parts go. `split`: how
    bases are split over the workers; None: each holds them whole."""

    input: Input
    answers: AnswerPlan
    parts_folder: str
    format: OutputFormat
    split: SplitPlan | None = None


@dataclass
class ShardWorker:
    """Answers shards, one after the other; `load_base` as RowAnswers takes it."""

    plan: WorkerPlan
    load_base: "LoadBase | None" = None
    _answers: RowAnswers = field(init=False)

    def __post_init__(self) -> None:
        self._answers = RowAnswers(self.plan.answers, self.load_base)

    def answer(self, claim: ShardClaim) -> ShardDone:
        """Answer a shard and write its part. Raises InvalidData where the input has changed."""
        started = time.monotonic()
        plan, source = self.plan, self.plan.input
        shard = source.shards[claim.number]
        rows = self._answers.answer(list(read_shard(source, shard, plan.answers.settings)))
        outputs = [row.output for row in rows]
        part = write_part(plan.parts_folder, claim.number, outputs, plan.format)
        return ShardDone(
            number=claim.number,
            epoch=claim.epoch,
            file=part.name,
            sha256=part.sha256,
            num_bytes=part.num_bytes,
            num_rows=part.num_rows,
            num_errors=part.num_errors,
            seconds=round(time.monotonic() - started, 3),
            counts=_count(rows),
        )


def _count(rows: Sequence[AnsweredRow]) -> dict[str, TaskCount]:
    counts: dict[str, TaskCount] = {}
    for row in rows:
        is_error = row.output.error is not None
        one = TaskCount(1, int(is_error), row.output.tokens or 0, row.positions)
        counts[row.counted_as] = counts.get(row.counted_as, TaskCount()) + one
    return dict(sorted(counts.items()))
